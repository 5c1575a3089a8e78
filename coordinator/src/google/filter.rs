//! The `filter` of a list, in the language of Google's AIP-160 (<https://google.aip.dev/160>): which resources it takes, by their
//! fields in JSON. The text is anybody's: its length, its depth and its work have bounds.
//!
//! ```text
//!   all   = any { [AND] any }                     any  = not { OR not }       OR binds before AND
//!   not   = [NOT | -] ( '(' all ')' | test )      test = field sign value     = != < <= > >= :
//! ```
//!
//! A list has what any of its members has. A field that is not there is an empty text. Instants, spans such as `600s` and numbers are
//! compared as such, all else as texts. A `*` at the end or the beginning of an unquoted value stands for anything.

use std::cmp::Ordering;

use serde_json::Value;
use sterna_shared::time::Timestamp;

use super::body::shown;

/// The longest filter, in bytes.
const LENGTH_MAX: usize = 4096;
/// How deep parentheses may lie in each other.
const DEPTH_MAX: usize = 16;

/// Which resources a list takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Test(Test),
}

/// What one field has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test {
    path: Vec<String>,
    sign: Sign,
    value: String,
    /// A `*` in it is one.
    quoted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Has,
}

/// The longer before the shorter that they begin with.
const SIGNS: [(&str, Sign); 7] = [
    ("!=", Sign::NotEqual),
    ("<=", Sign::LessOrEqual),
    (">=", Sign::GreaterOrEqual),
    ("=", Sign::Equal),
    ("<", Sign::Less),
    (">", Sign::Greater),
    (":", Sign::Has),
];

impl Filter {
    /// Reads a filter of resources that have these fields.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(super) fn parse(text: &str, fields: &[&str]) -> Result<Self, String> {
        if text.len() > LENGTH_MAX {
            return Err(format!("it is longer than {LENGTH_MAX} bytes"));
        }
        let mut reader = Reader { text, at: 0, fields };
        let filter = reader.all(0)?;
        if reader.skip_spaces().is_empty() { Ok(filter) } else { Err(reader.wrong("there is a ) without its (")) }
    }

    /// Whether it takes a resource.
    pub(super) fn takes(&self, resource: &Value) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.takes(resource)),
            Self::Any(parts) => parts.iter().any(|part| part.takes(resource)),
            Self::Not(part) => !part.takes(resource),
            Self::Test(test) => test.holds(&test.path, resource),
        }
    }

    fn one_of(mut parts: Vec<Self>, several: fn(Vec<Self>) -> Self) -> Self {
        if parts.len() == 1 { parts.remove(0) } else { several(parts) }
    }
}

impl Test {
    fn holds(&self, path: &[String], value: &Value) -> bool {
        if let Value::Array(members) = value {
            return members.iter().any(|member| self.holds(path, member));
        }
        match path {
            [first, rest @ ..] => self.holds(rest, value.get(first).unwrap_or(&Value::Null)),
            [] => self.is(value),
        }
    }

    fn is(&self, value: &Value) -> bool {
        let text = match value {
            Value::Object(members) => {
                // Of what has members: whether there are any, or one of that name.
                return self.sign == Sign::Has && (self.is_anything() || members.contains_key(&self.value));
            }
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match self.sign {
            Sign::Equal => self.equals(&text),
            Sign::NotEqual => !self.equals(&text),
            Sign::Has if self.is_anything() => !text.is_empty(),
            Sign::Has => text.to_lowercase().contains(&self.value.to_lowercase()),
            // Before and after there is nothing where there is nothing.
            _ if text.is_empty() => false,
            Sign::Less => compare(&text, &self.value).is_lt(),
            Sign::LessOrEqual => compare(&text, &self.value).is_le(),
            Sign::Greater => compare(&text, &self.value).is_gt(),
            Sign::GreaterOrEqual => compare(&text, &self.value).is_ge(),
        }
    }

    fn is_anything(&self) -> bool {
        !self.quoted && self.value == "*"
    }

    fn equals(&self, text: &str) -> bool {
        let ends = (self.value.strip_prefix('*'), self.value.strip_suffix('*'));
        match ends {
            _ if self.quoted => compare(text, &self.value).is_eq(),
            _ if self.value == "*" => !text.is_empty(),
            (Some(end), Some(_)) => text.contains(end.strip_suffix('*').unwrap_or(end)),
            (Some(end), None) => text.ends_with(end),
            (None, Some(beginning)) => text.starts_with(beginning),
            (None, None) => compare(text, &self.value).is_eq(),
        }
    }
}

/// As instants, as spans in seconds, as numbers, or as texts: the first that both are.
fn compare(a: &str, b: &str) -> Ordering {
    let instants = || Some((a.parse::<Timestamp>().ok()?, b.parse::<Timestamp>().ok()?));
    if let Some((a, b)) = instants() {
        return a.cmp(&b);
    }
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
    let both = |a: Option<&str>, b: Option<&str>| Some((number(a?)?, number(b?)?));
    let numbers = both(a.strip_suffix('s'), b.strip_suffix('s')).or_else(|| both(Some(a), Some(b)));
    numbers.map_or_else(|| a.cmp(b), |(a, b)| a.total_cmp(&b))
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    fields: &'a [&'a str],
}

impl<'a> Reader<'a> {
    fn wrong(&self, what: &str) -> String {
        format!("at character {}: {what}", self.text[..self.at].chars().count() + 1)
    }

    /// What is left, without the spaces before it.
    fn skip_spaces(&mut self) -> &'a str {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        rest
    }

    /// Takes a text where it comes next.
    fn take(&mut self, what: &str) -> bool {
        let is_next = self.skip_spaces().starts_with(what);
        self.at += if is_next { what.len() } else { 0 };
        is_next
    }

    /// Takes a word where it comes next, and no longer one.
    fn take_word(&mut self, word: &str) -> bool {
        let rest = self.skip_spaces().strip_prefix(word);
        let is_next = rest.is_some_and(|rest| !rest.starts_with(|next: char| is_of_name(next) || next == '.'));
        self.at += if is_next { word.len() } else { 0 };
        is_next
    }

    fn all(&mut self, depth: usize) -> Result<Filter, String> {
        let mut parts = vec![self.any(depth)?];
        loop {
            let joined = self.take_word("AND");
            let rest = self.skip_spaces();
            if !joined && (rest.is_empty() || rest.starts_with(')')) {
                return Ok(Filter::one_of(parts, Filter::All));
            }
            parts.push(self.any(depth)?);
        }
    }

    fn any(&mut self, depth: usize) -> Result<Filter, String> {
        let mut parts = vec![self.not(depth)?];
        while self.take_word("OR") {
            parts.push(self.not(depth)?);
        }
        Ok(Filter::one_of(parts, Filter::Any))
    }

    fn not(&mut self, depth: usize) -> Result<Filter, String> {
        if self.take_word("NOT") || self.take("-") {
            return Ok(Filter::Not(Box::new(self.one(depth)?)));
        }
        self.one(depth)
    }

    fn one(&mut self, depth: usize) -> Result<Filter, String> {
        if !self.take("(") {
            return self.test().map(Filter::Test);
        }
        if depth == DEPTH_MAX {
            return Err(self.wrong(&format!("more than {DEPTH_MAX} parentheses lie in each other")));
        }
        let within = self.all(depth + 1)?;
        if self.take(")") { Ok(within) } else { Err(self.wrong("a ) is missing")) }
    }

    fn test(&mut self) -> Result<Test, String> {
        self.skip_spaces();
        let begun = self.at;
        let mut path = vec![self.name()?];
        if !self.fields.contains(&path[0].as_str()) {
            self.at = begun;
            let what = format!("there is no field {}; there are {}", shown(&path[0]), self.fields.join(", "));
            return Err(self.wrong(&what));
        }
        while self.text[self.at..].starts_with('.') {
            self.at += 1;
            path.push(self.name()?);
        }
        self.skip_spaces();
        let Some((_, sign)) = SIGNS.into_iter().find(|(text, _)| self.take(text)) else {
            return Err(self.wrong("give one of = != < <= > >= : after a field"));
        };
        self.skip_spaces();
        let (value, quoted) = self.value()?;
        Ok(Test { path, sign, value, quoted })
    }

    /// A field's name, or the key of a label, which may be quoted.
    fn name(&mut self) -> Result<String, String> {
        if let Some(quoted) = self.quoted()? {
            return Ok(quoted);
        }
        let rest = &self.text[self.at..];
        let end = rest.find(|next: char| !is_of_name(next)).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.wrong("give a field, such as state=\"ACTIVE\""));
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    fn value(&mut self) -> Result<(String, bool), String> {
        if let Some(quoted) = self.quoted()? {
            return Ok((quoted, true));
        }
        let rest = &self.text[self.at..];
        let end = rest.find(|next: char| next.is_whitespace() || "()\"'".contains(next)).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.wrong("a value is missing; an empty one is \"\""));
        }
        self.at += end;
        Ok((rest[..end].to_owned(), false))
    }

    /// A text in quotes, where there is one: a backslash stands before a quote, or before itself.
    fn quoted(&mut self) -> Result<Option<String>, String> {
        let rest = &self.text[self.at..];
        let Some(quote) = rest.chars().next().filter(|first| matches!(first, '"' | '\'')) else { return Ok(None) };
        let (mut text, mut escaped) = (String::new(), false);
        for (at, letter) in rest.char_indices().skip(1) {
            match letter {
                _ if escaped => text.push(letter),
                '\\' => {}
                letter if letter == quote => {
                    self.at += at + 1;
                    return Ok(Some(text));
                }
                letter => text.push(letter),
            }
            escaped = letter == '\\' && !escaped;
        }
        Err(self.wrong("a text has no end: its closing quote is missing"))
    }
}

fn is_of_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FIELDS: &[&str] =
        &["name", "state", "createTime", "labels", "steps", "policy", "done", "cycleNumber", "error"];

    fn takes(filter: &str) -> bool {
        let resource = json!({
            "name": "projects/sterna/locations/beta/sources/alpha/migratingVms/web",
            "state": "ACTIVE",
            "createTime": "2026-11-30T10:00:00Z",
            "labels": { "team": "shop", "a-b": "" , "AND": "1" },
            "steps": [{ "adaptingOs": {}, "startTime": "2026-11-30T10:00:01.5Z" }, { "preparingVmDisks": {} }],
            "policy": { "idleDuration": "600s" },
            "done": true,
            "cycleNumber": 12,
        });
        Filter::parse(filter, FIELDS).unwrap_or_else(|fault| panic!("{filter}: {fault}")).takes(&resource)
    }

    #[test]
    fn a_filter_takes_what_it_says() {
        for filter in [
            "state=ACTIVE",
            " state = \"ACTIVE\" ",
            "state='ACTIVE' AND done=true",
            "state=ACTIVE done=true",
            "state=PAUSED OR state=ACTIVE",
            "NOT state=PAUSED",
            "-state=PAUSED",
            "-(state=PAUSED OR done=false)",
            "state!=PAUSED",
            "error!=x",
            "error=\"\"",
            "name=*web",
            "name=projects/*",
            "name=*sources/alpha*",
            "name:ALPHA",
            "labels.team=shop",
            "labels.\"team\"=shop",
            "labels:team",
            "labels.a-b=\"\"",
            "labels:*",
            "labels.AND=1",
            "steps:adaptingOs",
            "steps.startTime<\"2026-11-30T10:00:01.500001Z\"",
            "createTime>=2026-11-30T10:00:00.000Z",
            "createTime=2026-11-30T11:00:00+01:00",
            "policy.idleDuration>90s",
            "cycleNumber>9",
            "cycleNumber<=12.0",
            "createTime:*",
        ] {
            assert!(takes(filter), "{filter}");
        }
        for filter in [
            "state=PAUSED",
            "state=active",
            "state=\"ACT*\"",
            "state=ACTIVE AND done=false",
            "state=ACTIVE done=false",
            "NOT state=ACTIVE",
            "error:*",
            "error=*",
            "error<z",
            "error>\"\"",
            "labels.team!=shop",
            "labels:shop",
            "labels.team.deeper=shop",
            "labels=shop",
            "policy.idleDuration<90s",
            "cycleNumber<9",
            "createTime<2026-11-30T10:00:00Z",
        ] {
            assert!(!takes(filter), "{filter}");
        }
    }

    #[test]
    fn or_binds_before_and() {
        assert!(takes("state=ACTIVE OR state=PAUSED AND done=true"));
        assert!(!takes("state=ACTIVE OR state=PAUSED AND done=false"), "it would, if AND did");
        assert!(takes("state=ACTIVE OR (state=PAUSED AND done=false)"));
    }

    #[test]
    fn what_is_wrong_with_a_filter_has_a_place() {
        let deep = format!("{}state=A{}", "(".repeat(17), ")".repeat(17));
        let long = "x".repeat(LENGTH_MAX + 1);
        for (filter, said) in [
            ("", "at character 1: give a field"),
            ("state", "at character 6: give one of = !="),
            ("state=", "at character 7: a value is missing"),
            ("state=ACTIVE AND", "at character 17: give a field"),
            ("state=ACTIVE)", "at character 13: there is a ) without its ("),
            ("(state=ACTIVE", "at character 14: a ) is missing"),
            ("state=\"ACTIVE", "at character 7: a text has no end"),
            ("ü=1", "at character 1: give a field"),
            ("state=ü stat=1", "at character 9: there is no field stat; there are name, state, "),
            ("labels.=x", "at character 8: give a field"),
            (deep.as_str(), "at character 18: more than 16"),
            (long.as_str(), "it is longer than 4096 bytes"),
        ] {
            let fault = Filter::parse(filter, FIELDS).expect_err(filter);
            assert!(fault.starts_with(said), "{fault}");
        }
    }
}
