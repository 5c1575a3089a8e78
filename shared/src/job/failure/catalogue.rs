//! The catalogue: what there is to say of each error wherever it occurs, under an id that never changes.
//!
//! ```text
//!   FailureCode   ──▶ STERNA-F…   a job failed                       rows in `failures`
//!   ConditionCode ──▶ STERNA-J…   a job has something to tell        rows in `failures`
//!   RefusalCode   ──▶ STERNA-R…   a request cannot become a plan     rows in `refusals`
//! ```
//!
//! A code without a row does not compile, since the rows are the arms of one match; the same rows are the list of all codes.
//! docs/errors.md is made of them, and a test holds it to that. It costs a line of each row that a code's name stands there a
//! second time, as programs spell it; a test compares the two.

/// What there is to say of an error wherever it occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorEntry {
    /// The id that stands for it in CIM, in documents and in searches. Never given to another error, also when its own is gone.
    pub message_id: &'static str,
    /// The code as programs read it.
    pub name: &'static str,
    /// What it means, in one sentence.
    pub meaning: &'static str,
    /// What probably led to it.
    pub causes: &'static [&'static str],
    /// What to do, with the commands; names stand in them as `{vm}`. See [`Self::remedies()`].
    pub remedies: &'static [&'static str],
}

/// The names that go into remedies. What is not known is written as the documents write it: `VM`, `HOST`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemedyNames<'a> {
    /// For `{vm}`.
    pub vm: Option<&'a str>,
    /// For `{job}`.
    pub job: Option<&'a str>,
    /// For `{source}`.
    pub source: Option<&'a str>,
    /// For `{target}`.
    pub target: Option<&'a str>,
    /// For `{host}`: where it happened.
    pub host: Option<&'a str>,
}

impl ErrorEntry {
    /// The remedies with these names in their places.
    #[must_use]
    pub fn remedies(&self, names: RemedyNames<'_>) -> Vec<String> {
        self.remedies.iter().map(|remedy| names.fill(remedy)).collect()
    }
}

impl RemedyNames<'_> {
    fn fill(self, text: &str) -> String {
        let mut filled = text.to_owned();
        for (place, name, unknown) in [
            ("{vm}", self.vm, "VM"),
            ("{job}", self.job, "JOB"),
            ("{source}", self.source, "SOURCE"),
            ("{target}", self.target, "TARGET"),
            ("{host}", self.host, "HOST"),
        ] {
            filled = filled.replace(place, name.unwrap_or(unknown));
        }
        filled
    }
}

/// The rows of an enum: its list of all codes, and the entry of each.
macro_rules! catalogue {
    ($code:ident {
        $($variant:ident = $id:literal, $name:literal, $meaning:literal,
            causes [$($cause:literal),+ $(,)?],
            remedies [$($remedy:literal),+ $(,)?];)+
    }) => {
        impl $code {
            /// All of them, in the order of the catalogue.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// What there is to say of it wherever it occurs.
            #[must_use]
            pub const fn entry(self) -> &'static ErrorEntry {
                match self {
                    $(Self::$variant => &ErrorEntry {
                        message_id: $id,
                        name: $name,
                        meaning: $meaning,
                        causes: &[$($cause,)+],
                        remedies: &[$($remedy,)+],
                    },)+
                }
            }
        }
    };
}

pub(super) use catalogue;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{ConditionCode, FailureCode, RefusalCode};
    use super::*;

    fn all() -> Vec<&'static ErrorEntry> {
        let failures = FailureCode::ALL.iter().map(|code| code.entry());
        let conditions = ConditionCode::ALL.iter().map(|code| code.entry());
        failures.chain(conditions).chain(RefusalCode::ALL.iter().map(|code| code.entry())).collect()
    }

    #[test]
    fn no_id_is_given_twice() {
        let ids: BTreeSet<&str> = all().iter().map(|entry| entry.message_id).collect();
        assert_eq!(ids.len(), all().len());
    }

    #[test]
    fn names_are_those_that_programs_read() {
        for code in FailureCode::ALL {
            assert_eq!(serde_json::to_value(code).expect("JSON"), code.entry().name);
        }
        for code in RefusalCode::ALL {
            assert_eq!(serde_json::to_value(code).expect("JSON"), code.entry().name);
        }
    }

    #[test]
    fn every_entry_is_told_in_sentences() {
        let is_sentence = |text: &str| text.ends_with('.') && text.starts_with(|first: char| !first.is_lowercase());
        for entry in all() {
            assert!((1..=3).contains(&entry.causes.len()), "{}: causes", entry.message_id);
            assert!((1..=4).contains(&entry.remedies.len()), "{}: remedies", entry.message_id);
            for text in std::iter::once(&entry.meaning).chain(entry.causes).chain(entry.remedies) {
                assert!(is_sentence(text), "{}: {text:?}", entry.message_id);
                assert!(text.matches('`').count() % 2 == 0, "{}: {text:?}", entry.message_id);
            }
            assert!(!entry.meaning.contains('{') && !entry.causes.concat().contains('{'), "{}", entry.message_id);
        }
    }

    #[test]
    fn every_place_for_a_name_is_known() {
        let names = RemedyNames { vm: Some("web"), target: Some("bravo"), ..RemedyNames::default() };
        for entry in all() {
            assert!(!entry.remedies(names).concat().contains(['{', '}']), "{}", entry.message_id);
        }
        let dropped = ConditionCode::Killed.entry().remedies(names).concat();
        assert!(dropped.contains("`sterna vm drop web --host bravo`"), "{dropped}");
        let dropped = ConditionCode::Killed.entry().remedies(RemedyNames::default()).concat();
        assert!(dropped.contains("`sterna vm drop VM --host TARGET`"), "{dropped}");
    }
}
