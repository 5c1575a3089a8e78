//! JSON that anybody may have written, read so that what is wrong with it has a place: the names that lead there.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{BODY_LENGTH_MAX, BodyFault, fault};

/// How deep values may lie in each other. What Google has is less deep.
const DEPTH_MAX: usize = 16;
/// How many values there may be in a list or an object, and how long the name of one may be: each is compared with those before it,
/// and told of by the whole way to it.
const MEMBERS_MAX: usize = 1024;
const NAME_MAX: usize = 256;
/// So many characters of a name are shown that nobody knows.
const SHOWN_MAX: usize = 160;

/// A value. Of a number it is enough to know it where it counts something; of any other, that it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::google) enum Node {
    Null,
    Flag(bool),
    Number(Option<u32>),
    Text(String),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

/// What kind of value a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::google) enum Kind {
    Flag,
    Number,
    Text,
    List,
    Object,
}

impl Kind {
    pub(super) const fn holds(self, node: &Node) -> bool {
        matches!(
            (self, node),
            (Self::Flag, Node::Flag(_))
                | (Self::Number, Node::Number(Some(_)))
                | (Self::Text, Node::Text(_))
                | (Self::List, Node::List(_))
                | (Self::Object, Node::Object(_))
        )
    }

    pub(super) fn wanted(self, found: &Node) -> String {
        let wanted = match self {
            Self::Flag => "true or false",
            Self::Number => "a whole number from 0 on",
            Self::Text => "a text",
            Self::List => "a list",
            Self::Object => "an object",
        };
        let found = match found {
            Node::Null => "null",
            Node::Flag(_) => "true or false",
            Node::Number(_) if self == Self::Number => "another number",
            Node::Number(_) => "a number",
            Node::Text(_) => "a text",
            Node::List(_) => "a list",
            Node::Object(_) => "an object",
        };
        format!("give {wanted}, and not {found}")
    }
}

/// Reads one value.
///
/// # Errors
/// What is wrong with the text, and the field where it is.
pub(in crate::google) fn read(text: &str) -> Result<Node, BodyFault> {
    if text.len() > BODY_LENGTH_MAX {
        return Err(fault("", format!("it is longer than {BODY_LENGTH_MAX} bytes; no resource is")));
    }
    let place = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let seed = Seed { path: "", depth: 0, place: &place };
    let read = seed.deserialize(&mut reader).and_then(|node| reader.end().map(|()| node));
    read.map_err(|error| fault(place.borrow().as_deref().unwrap_or_default(), error.to_string()))
}

/// The path of a member.
pub(super) fn path(of: &str, name: &str) -> String {
    if of.is_empty() { name.to_owned() } else { format!("{of}.{name}") }
}

/// A path for people: what of it is no plain text is escaped, and what is too long is cut.
pub(in crate::google) fn shown(path: &str) -> String {
    let mut shown: String = path.escape_debug().take(SHOWN_MAX).collect();
    if path.escape_debug().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// One value in the making.
#[derive(Clone, Copy)]
struct Seed<'a> {
    path: &'a str,
    depth: usize,
    /// The innermost value where something is wrong, once something is.
    place: &'a RefCell<Option<String>>,
}

impl Seed<'_> {
    fn wrong(&self, at: &str) {
        self.place.borrow_mut().get_or_insert_with(|| at.to_owned());
    }

    fn check_depth<E: Error>(&self) -> Result<(), E> {
        if self.depth < DEPTH_MAX {
            return Ok(());
        }
        self.wrong(self.path);
        Err(E::custom(format!("more than {DEPTH_MAX} values lie in each other")))
    }

    fn check_members<E: Error>(&self, count: usize) -> Result<(), E> {
        if count <= MEMBERS_MAX {
            return Ok(());
        }
        self.wrong(self.path);
        Err(E::custom(format!("more than {MEMBERS_MAX} values are in it")))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E: Error>(self, is_set: bool) -> Result<Node, E> {
        Ok(Node::Flag(is_set))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Node, E> {
        Ok(Node::Number(u32::try_from(number).ok()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Node, E> {
        Ok(Node::Number(u32::try_from(number).ok()))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Number(None))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        self.check_depth()?;
        let mut nodes = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, nodes.len());
            let seed = Seed { path: &path, depth: self.depth + 1, ..self };
            match list.next_element_seed(seed).inspect_err(|_| self.wrong(&path))? {
                Some(node) => nodes.push(node),
                None => return Ok(Node::List(nodes)),
            }
            self.check_members(nodes.len())?;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        self.check_depth()?;
        let mut members: Vec<(String, Node)> = Vec::new();
        while let Some(name) = map.next_key::<String>().inspect_err(|_| self.wrong(self.path))? {
            let path = path(self.path, &name);
            if name.len() > NAME_MAX {
                self.wrong(&path);
                return Err(A::Error::custom(format!("its name is longer than {NAME_MAX} bytes")));
            }
            if members.iter().any(|(known, _)| *known == name) {
                self.wrong(&path);
                return Err(A::Error::custom("it is there twice"));
            }
            let seed = Seed { path: &path, depth: self.depth + 1, ..self };
            let value = map.next_value_seed(seed).inspect_err(|_| self.wrong(&path))?;
            members.push((name, value));
            self.check_members(members.len())?;
        }
        Ok(Node::Object(members))
    }
}
