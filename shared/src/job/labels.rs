//! Labels: keys and values by which operators find things again, within the limits of Google's.

use std::collections::BTreeMap;

/// The most labels of one thing.
pub const LABELS_MAX: usize = 64;
/// The longest key and the longest value, in characters.
pub const LABEL_LENGTH_MAX: usize = 63;
/// The same in bytes: characters may be of any script.
pub const LABEL_BYTES_MAX: usize = 128;

/// Everything that is wrong with labels, each in a sentence.
#[must_use]
pub fn label_faults(labels: &BTreeMap<String, String>) -> Vec<String> {
    let mut faults = Vec::new();
    if labels.len() > LABELS_MAX {
        faults.push(format!("there are {} labels; give {LABELS_MAX} at most", labels.len()));
    }
    let wrong = |(key, value): &(&String, &String)| !is_key(key) || !is_value(value);
    // The first is enough to tell what they should be like.
    faults.extend(labels.iter().find(wrong).map(|(key, value)| {
        let shown: String = format!("{key}={value}").escape_debug().take(LABEL_BYTES_MAX).collect();
        format!(
            "{shown} is no label: give letters in lower case, digits, _ and -, of each at most {LABEL_LENGTH_MAX}, and a key that begins \
             with a letter"
        )
    }));
    faults
}

fn is_key(text: &str) -> bool {
    text.chars().next().is_some_and(char::is_alphabetic) && is_value(text)
}

fn is_value(text: &str) -> bool {
    let fits = |char: char| matches!(char, '_' | '-') || (char.is_alphanumeric() && char.to_lowercase().eq([char]));
    text.len() <= LABEL_BYTES_MAX && text.chars().count() <= LABEL_LENGTH_MAX && text.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: &str, value: &str) -> Vec<String> {
        label_faults(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn labels_are_within_google_s_limits() {
        let longest = "a".repeat(LABEL_LENGTH_MAX);
        for (key, value) in [("team", "shop-2_b"), ("t", ""), ("größe", "2"), (&longest, &longest), ("本", "ー")] {
            assert_eq!(of(key, value), Vec::<String>::new(), "{key}={value}");
        }
        let longer = "a".repeat(LABEL_LENGTH_MAX + 1);
        let wide = "本".repeat(LABEL_LENGTH_MAX);
        for (key, value) in [
            ("", "a"),
            ("Team", "a"),
            ("team", "A"),
            ("2team", "a"),
            ("-team", "a"),
            ("team", "a b"),
            ("team", "a\u{1b}[2J"),
            (longer.as_str(), ""),
            ("team", longer.as_str()),
            ("team", wide.as_str()),
        ] {
            let faults = of(key, value);
            assert!(faults.len() == 1 && faults[0].len() < 512 && !faults[0].contains('\u{1b}'), "{faults:?}");
        }
        let many = |count: usize| (0..count).map(|number| (format!("a{number}"), String::new())).collect();
        assert_eq!(label_faults(&many(LABELS_MAX)).len(), 0);
        assert_eq!(label_faults(&many(LABELS_MAX + 1)).len(), 1);
    }
}
