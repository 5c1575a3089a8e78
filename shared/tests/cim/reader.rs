//! Enough of an XML reader to tell whether an instance is well-formed and what it says. It takes nothing for granted that
//! the writer does: any unknown entity, character, attribute or nesting is an error.

use std::collections::BTreeMap;

/// An element with what is inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) elements: Vec<Element>,
    /// Its text, without that between elements.
    pub(crate) text: String,
}

impl Element {
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }
}

/// The one element of a document.
pub(crate) fn read(text: &str) -> Result<Element, String> {
    let forbidden = |it: char| (it < ' ' && !"\t\n\r".contains(it)) || matches!(it, '\u{fffe}' | '\u{ffff}');
    if let Some(character) = text.chars().find(|character| forbidden(*character)) {
        return Err(format!("{character:?} cannot stand in XML"));
    }
    let (element, rest) = element(text)?;
    if rest.trim().is_empty() { Ok(element) } else { Err(format!("{rest:?} after the element")) }
}

fn element(text: &str) -> Result<(Element, &str), String> {
    let inside = text.strip_prefix('<').ok_or_else(|| format!("no element at {text:?}"))?;
    let (tag, mut rest) = inside.split_once('>').ok_or("a tag without an end")?;
    let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
    if name.is_empty() || !name.chars().all(|it| it.is_ascii_alphanumeric() || it == '.') {
        return Err(format!("{name:?} is no name of an element"));
    }
    let mut element = Element {
        name: name.to_owned(),
        attributes: read_attributes(attributes)?,
        elements: vec![],
        text: String::new(),
    };
    loop {
        let (text, at) = rest.split_at(rest.find('<').ok_or_else(|| format!("{name} has no end"))?);
        element.text.push_str(&unescape(text)?);
        if let Some(end) = at.strip_prefix("</") {
            let rest = end.strip_prefix(name).and_then(|rest| rest.strip_prefix('>'));
            if !element.elements.is_empty() && !element.text.trim().is_empty() {
                return Err(format!("text between the elements of {name}"));
            }
            return rest.map(|rest| (element, rest)).ok_or_else(|| format!("{name} ends as something else"));
        }
        let (inner, after) = self::element(at)?;
        element.elements.push(inner);
        rest = after;
    }
}

fn read_attributes(mut text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut attributes = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").ok_or_else(|| format!("{text:?} is no attribute"))?;
        let (value, rest) = rest.split_once('"').ok_or_else(|| format!("{name} has no end"))?;
        if attributes.insert(name.to_owned(), unescape(value)?).is_some() {
            return Err(format!("{name} stands twice"));
        }
        text = rest.strip_prefix(' ').unwrap_or(rest);
    }
    Ok(attributes)
}

fn unescape(text: &str) -> Result<String, String> {
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';').ok_or_else(|| format!("& in {text:?}"))?;
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "#13" => '\r',
            other => return Err(format!("unknown entity {other:?}")),
        });
        plain.push_str(rest);
    }
    Ok(plain)
}

#[test]
fn what_is_not_well_formed_is_noticed() {
    for wrong in [
        "",
        "<A>",
        "<A></B>",
        "<A></A><A></A>",
        "<A><B></A></B>",
        "<A>&</A>",
        "<A>&nbsp;</A>",
        "<A X=1></A>",
        "<A X=\"1\" X=\"2\"></A>",
        "<A>\u{1}</A>",
        "<A>x<B></B></A>",
        "<<>",
    ] {
        assert!(read(wrong).is_err(), "{wrong:?}");
    }
    let right = read("<A X=\"1\" Y=\"&lt;\">\n <B>a &amp; b</B>\n</A>").expect("well-formed");
    assert_eq!((right.attribute("Y"), right.elements[0].text.as_str()), (Some("<"), "a & b"));
}
