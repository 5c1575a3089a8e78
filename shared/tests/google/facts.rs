//! docs/clone-job.md is held to what was found out of Google's API beyond the description of `CloneJob`, where that lies beside the
//! workspace: a table with a row a resource, which lists its fields and its values in words of its own.
//!
//! ```text
//!   | MigratingVm fields | oneof {a, b}; name, policy, expiration{expireTime, extendable} … |
//!     owner                          field    field    field       field of whatever it is
//!   | CloneJob | … State numbers: 1 PENDING, 2 ACTIVE … |
//!                               value
//! ```

use super::document::{page, published, rows};

/// Something that the page has to have a row of.
#[derive(Debug)]
enum Fact {
    /// A field; of which resource, where that is said.
    Field { owner: Option<String>, name: String },
    /// A value of a list that belongs to this.
    Value { owner: String, number: String, name: String },
    /// A method, by its last word.
    Method { name: String },
}

impl Fact {
    fn has_row(&self, rows: &[Vec<&str>]) -> bool {
        rows.iter().any(|row| match self {
            Self::Field { owner, name } => {
                let field = row[0].trim_matches('`').trim_end_matches("[]").split_once('.');
                field.is_some_and(|(of, field)| field == name && owner.as_ref().is_none_or(|owner| owner == of))
            }
            Self::Value { owner, number, name } => {
                let told = row.get(2).map_or("", |told| told.trim_matches('`'));
                let list = row[0].strip_prefix(owner.as_str()).is_some_and(|rest| rest.starts_with('.'));
                let same = [format!("STATE_{name}"), format!("{name}_ERROR"), name.clone()].iter().any(|is| is == told);
                row.len() == 5 && list && row[1] == number && same
            }
            Self::Method { name } => row[0].trim_matches('`').split_once('.').is_some_and(|(_, method)| method == name),
        })
    }
}

/// The text without what stands in parentheses.
fn without_remarks(text: &str) -> String {
    let mut depth = 0_u32;
    let mut rest = String::new();
    for letter in text.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => rest.push(letter),
            _ => {}
        }
    }
    rest
}

/// The fields that a text lists: words that stand alone between its signs. Who stands before a brace has what is in it.
fn fields(item: &str, text: &str) -> Vec<Fact> {
    let text = without_remarks(text).replace("**plus**", ",").replace(['*', '[', ']'], "").replace(". ", ";");
    let is_resource = |word: &str| word.starts_with(|letter: char| letter.is_ascii_uppercase());
    let mut owners = vec![is_resource(item).then(|| item.to_owned())];
    // Where the facts of the braces begin that are open.
    let mut opened: Vec<usize> = Vec::new();
    let mut facts: Vec<Fact> = Vec::new();
    let mut read = 0;
    for piece in text.split_inclusive([',', ';', '{', '}']) {
        read += piece.len();
        let words: Vec<&str> = piece.trim_end_matches([',', ';', '{', '}']).split_whitespace().collect();
        let owner = owners.last().cloned().flatten();
        let word = match words[..] {
            [word] => word,
            // Of what type it is, or what it is.
            [word, "=", ..] => word,
            [word, _] if word.ends_with(':') => word.trim_end_matches(':'),
            _ => "",
        };
        let is_field = word != "oneof" && word.starts_with(|letter: char| letter.is_ascii_lowercase());
        if is_field && word.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            facts.push(Fact::Field { owner: owner.clone(), name: word.to_owned() });
        }
        match piece.chars().last() {
            Some('{') => {
                let before = words.last().copied().unwrap_or_default();
                owners.push(match before {
                    "oneof" => owner,
                    before => is_resource(before).then(|| before.to_owned()),
                });
                opened.push(facts.len());
            }
            Some('}') => {
                owners.pop();
                let within = opened.pop().expect("a brace that was opened");
                // What follows at once is the end of each name in it.
                let end: String = text[read..].chars().take_while(char::is_ascii_alphabetic).collect();
                for fact in &mut facts[within..] {
                    if let Fact::Field { name, .. } = fact {
                        name.push_str(&end);
                    }
                }
            }
            _ => {}
        }
    }
    facts
}

/// The values that a text lists: each a number, and then a name in capitals.
fn values(owner: &str, text: &str) -> Vec<Fact> {
    let text = without_remarks(text);
    let words: Vec<&str> = text.split(|letter: char| letter != '_' && !letter.is_ascii_alphanumeric()).collect();
    let is_name = |word: &str| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    let pairs = words.windows(2).filter(|pair| pair[0].parse::<u8>().is_ok() && is_name(pair[1]));
    let value = |pair: &[&str]| (pair[0].to_owned(), pair[1].to_owned());
    let told = pairs.map(value);
    told.map(|(number, name)| Fact::Value { owner: owner.to_owned(), number, name }).collect()
}

/// What a table says that there is. Its first column has resources, and what else it is about.
fn facts(table: &str) -> Vec<Fact> {
    let mut facts = Vec::new();
    for row in rows(table) {
        let (item, text) = (row[0], row[1]);
        if item.contains("ethod") || item.contains("groups") || item == "LRO" {
            // `…:verb`
            let verbs = text
                .split(':')
                .skip(1)
                .map(|rest| rest.chars().take_while(|letter| letter.is_ascii_alphabetic()).collect::<String>());
            facts.extend(verbs.filter(|verb| !verb.is_empty()).map(|name| Fact::Method { name }));
        }
        let owner = match item.split([' ', '.']).next().unwrap_or_default() {
            "error" => "MigrationError",
            owner => owner,
        };
        facts.extend(values(owner, text));
        facts.extend(fields(owner, text));
    }
    facts
}

#[test]
fn all_that_was_found_out_has_its_row() {
    let Some(text) = published("reference", "Google Migrate to VMs") else { return };
    let (_, section) = text.split_once("Google Migrate to VMs (second document)").expect("its section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let facts = facts(section);
    let page = page();
    let rows = rows(&page);
    let missing = |rows: &[Vec<&str>]| facts.iter().filter(|fact| !fact.has_row(rows)).collect::<Vec<_>>();
    assert!(missing(&rows).is_empty(), "docs/clone-job.md has no row of {:#?}", missing(&rows));
    for lost in ["`CloneStep.adaptingOs`", "`CANCELLING`", "`migratingVms.extendMigration`"] {
        let others: Vec<_> = rows.iter().filter(|row| !row.contains(&lost)).cloned().collect();
        assert!(others.len() < rows.len() && !missing(&others).is_empty(), "nobody misses {lost}");
    }
    let count = |is: fn(&Fact) -> bool| facts.iter().filter(|fact| is(fact)).count();
    let counts = [
        count(|fact| matches!(fact, Fact::Field { .. })),
        count(|fact| matches!(fact, Fact::Value { .. })),
        count(|fact| matches!(fact, Fact::Method { .. })),
    ];
    assert!(counts.iter().zip([111, 43, 9]).all(|(count, least)| *count >= least), "{counts:?} of {facts:#?}");
}
