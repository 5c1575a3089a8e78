//! Labels on the command line: given when something is asked for, changed later, and looked for.

use std::collections::BTreeMap;

use sterna_shared::bus::JobChange;

/// A label that is looked for: its key, and its value where that is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    key: String,
    value: Option<String>,
}

/// Whether something with such labels is looked for.
pub(super) fn are_wanted(labels: &BTreeMap<String, String>, wanted: &[Wanted]) -> bool {
    wanted.iter().all(|Wanted { key, value }| {
        labels.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
    })
}

/// Labels for people.
pub(super) fn told(labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "-".to_owned();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

pub(super) fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "give KEY=VALUE".to_owned())?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(super) fn parse_wanted(text: &str) -> Result<Wanted, String> {
    let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value.to_owned())));
    Ok(Wanted { key: key.to_owned(), value })
}

/// A label that is set, or one that goes: its key with a `-` behind it.
pub(super) fn parse_change(text: &str) -> Result<JobChange, String> {
    let (key, value) = match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => (key, Some(value.to_owned())),
        (None, Some(key)) => (key, None),
        (None, None) => return Err("give KEY=VALUE, or KEY- for it to go".to_owned()),
    };
    Ok(JobChange::Label { key: key.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_looked_for_by_key_or_with_their_value() {
        let labels = BTreeMap::from([("team".to_owned(), "shop".to_owned()), ("new".to_owned(), String::new())]);
        let found = |wanted: &[&str]| {
            let wanted = wanted.iter().map(|text| parse_wanted(text)).collect::<Result<Vec<_>, _>>();
            are_wanted(&labels, &wanted.expect("they are understood"))
        };
        assert!(found(&[]) && found(&["team"]) && found(&["team=shop", "new"]) && found(&["new="]));
        assert!(!found(&["team=night"]) && !found(&["team", "old"]) && !found(&["team="]));
        assert_eq!(told(&labels), "new=, team=shop");
    }

    #[test]
    fn a_label_is_set_or_goes() {
        let change = |key: &str, value: Option<&str>| {
            Ok(JobChange::Label { key: key.to_owned(), value: value.map(ToOwned::to_owned) })
        };
        assert_eq!(parse_change("team=shop-"), change("team", Some("shop-")));
        assert_eq!(parse_change("team="), change("team", Some("")));
        assert_eq!(parse_change("team-"), change("team", None));
        assert!(parse_change("team").is_err() && parse_label("team").is_err());
    }
}
