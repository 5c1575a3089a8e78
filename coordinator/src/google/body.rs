//! Bodies of requests in Google's form, in JSON: which fields there are, which of them have a meaning here, and what is wrong with
//! one. The text is anybody's: its length and its depth have bounds.

mod json;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

pub(super) use json::{Kind, Node, read, shown};

/// The longest body that is read, in bytes. None that says something is as long.
pub(crate) const BODY_LENGTH_MAX: usize = 64 * 1024;

/// What is wrong with a body, with the field's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub(crate) struct BodyFault {
    /// Where it is: names with points between.
    field: String,
    /// What is wrong, and what to give.
    what: String,
}

/// A field that Google has.
pub(super) struct Field {
    pub(super) name: &'static str,
    /// What kind of value it has.
    kind: Kind,
    /// Why it is left aside; none of those that have a meaning here.
    pub(super) aside: Option<&'static str>,
}

pub(super) const fn taken(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, aside: None }
}

pub(super) const fn aside(name: &'static str, kind: Kind, why: &'static str) -> Field {
    Field { name, kind, aside: Some(why) }
}

/// The fields of an object that were found to be Google's, and of the right kinds.
pub(super) struct Fields<'a> {
    path: String,
    found: Vec<(&'a str, &'a Node)>,
}

impl<'a> Fields<'a> {
    /// Holds an object against the fields that it may have, and tells of those that are left aside.
    pub(super) fn of(
        node: &'a Node,
        path: String,
        may: &[&[Field]],
        warnings: &mut Vec<String>,
    ) -> Result<Self, BodyFault> {
        let Node::Object(members) = node else { return Err(fault(&path, Kind::Object.wanted(node))) };
        let mut fields = Self { path, found: Vec::new() };
        for (name, value) in members {
            let path = fields.path(name);
            let Some(field) = may.iter().copied().flatten().find(|field| field.name == name) else {
                let names: Vec<&str> = may.iter().copied().flatten().map(|field| field.name).collect();
                return Err(fault(&path, format!("there is no such field; there are {}", names.join(", "))));
            };
            // As Google reads it, null is what is not there.
            if *value == Node::Null {
                continue;
            }
            if !field.kind.holds(value) {
                return Err(fault(&path, field.kind.wanted(value)));
            }
            match field.aside {
                Some(why) => warnings.push(format!("{path} is left aside: {why}")),
                None => fields.found.push((name, value)),
            }
        }
        Ok(fields)
    }

    pub(super) fn path(&self, name: &str) -> String {
        json::path(&self.path, name)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Node> {
        self.found.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    /// A text; none where it is empty, which is what is not there.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        match self.get(name)? {
            Node::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Node::Flag(is_set) => Some(*is_set),
            _ => None,
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<u32> {
        match self.get(name)? {
            Node::Number(number) => *number,
            _ => None,
        }
    }

    /// A map of texts; one that is not there is empty.
    pub(super) fn texts(&self, name: &str) -> Result<BTreeMap<String, String>, BodyFault> {
        let Some(Node::Object(members)) = self.get(name) else { return Ok(BTreeMap::new()) };
        let text = |(key, value): &(String, Node)| match value {
            Node::Text(value) => Ok((key.clone(), value.clone())),
            other => Err(fault(&json::path(&self.path(name), key), Kind::Text.wanted(other))),
        };
        members.iter().map(text).collect()
    }

    pub(super) fn parsed<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, BodyFault> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|error: T::Err| fault(&self.path(name), error.to_string()))
    }
}

pub(super) fn fault(field: &str, what: String) -> BodyFault {
    BodyFault { field: if field.is_empty() { "the body".to_owned() } else { shown(field) }, what }
}
