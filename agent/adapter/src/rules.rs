//! udev's rules that name network interfaces by their addresses, which a clone's are not. Others stay.

/// What a rule compares with an address.
const KEYS: [&str; 3] = ["ATTR{address}", "ATTRS{address}", "SYSFS{address}"];

/// The text without rules that match by an address, and how many those were; nothing where there are none. The text is empty
/// where no rule is left in it.
pub(crate) fn without_addresses(text: &str) -> Option<(String, usize)> {
    let (mut kept, mut count, mut others) = (String::new(), 0, false);
    for rule in rules(text) {
        let comment = rule.trim_start().starts_with('#') || rule.trim().is_empty();
        if !comment && by_address(rule) {
            count += 1;
            continue;
        }
        others |= !comment;
        kept.push_str(rule);
    }
    (count > 0).then(|| (if others { kept } else { String::new() }, count))
}

/// Lines, each with those that it is continued on.
fn rules(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let mut end = 0;
        for line in rest.split_inclusive('\n') {
            end += line.len();
            if line.starts_with('#') || !line.trim_end_matches(['\n', '\r']).ends_with('\\') {
                break;
            }
        }
        let (rule, after) = rest.split_at(end);
        rest = after;
        (!rule.is_empty()).then_some(rule)
    })
}

/// Whether it holds of some addresses only; `?*` is any.
fn by_address(rule: &str) -> bool {
    let compared = KEYS.iter().flat_map(|key| rule.split(key).skip(1));
    let values = compared.filter_map(|rest| rest.trim_start().strip_prefix("==")?.trim_start().strip_prefix('"'));
    values
        .filter_map(|rest| rest.split('"').next())
        .any(|value| value.contains(|letter: char| letter.is_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_by_address_go_and_others_stay() {
        let bound = "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:00:00:64\", NAME=\"lan0\"\n";
        let wrapped = "SUBSYSTEM==\"net\", \\\n  ATTRS{address} == \"52:54:00:00:00:65\", \\\n  NAME=\"lan1\"\n";
        let other = "SUBSYSTEM==\"net\", ATTR{address}==\"?*\", KERNELS==\"0000:00:03.0\", NAME=\"lan2\"\n";
        let comment = "# ATTR{address}==\"52:54:00:00:00:66\" \\\n";
        assert_eq!(without_addresses(bound), Some((String::new(), 1)));
        assert_eq!(without_addresses(&format!("{comment}\n{bound}{wrapped}")), Some((String::new(), 2)));
        let mixed = format!("{comment}{bound}{other}{wrapped}");
        assert_eq!(without_addresses(&mixed), Some((format!("{comment}{other}"), 2)));
        assert_eq!(without_addresses(&format!("{comment}{other}")), None);
        assert_eq!(without_addresses(""), None);
    }
}
