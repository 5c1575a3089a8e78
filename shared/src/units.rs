//! Quantities: bytes and bytes a second, printed and parsed in binary units.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

/// A count of bytes. In a configuration file: a number, or text such as `"512 MiB"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

/// A rate in bytes a second. In a configuration file: a number, or text such as `"100 MiB/s"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Bandwidth(pub u64);

/// A text that is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a size; write a number of bytes, or one with a unit, such as 512 MiB or 4G (units are powers of 1024)"
)]
pub struct InvalidQuantity {
    text: String,
}

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteCount {
    /// That many mebibytes.
    #[must_use]
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// The sum, or the largest count where it would not fit.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, size) = UNITS.iter().find(|(_, size)| self.0 >= *size).copied().unwrap_or(("B", 1));
        let text = if self.0.is_multiple_of(size) {
            format!("{} {name}", self.0 / size)
        } else {
            // Two digits behind the point are for people; the exact count is in the JSON.
            let whole = self.0 / size;
            let hundredths = (u128::from(self.0 % size) * 100) / u128::from(size);
            format!("{whole}.{hundredths:02} {name}")
        };
        f.pad(&text)
    }
}

impl FromStr for ByteCount {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let invalid = || InvalidQuantity { text: text.chars().take(48).collect() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let factor = match unit.trim() {
            "" | "B" => 1,
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            "G" | "GiB" => 1 << 30,
            "T" | "TiB" => 1_u64 << 40,
            _ => return Err(invalid()),
        };
        let number: u64 = number.parse().map_err(|_| invalid())?;
        number.checked_mul(factor).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", ByteCount(self.0)))
    }
}

impl FromStr for Bandwidth {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let bytes = text.trim().strip_suffix("/s").unwrap_or(text);
        bytes.parse::<ByteCount>().map(|count| Self(count.0))
    }
}

/// Accepts a number or a text, so that people can write units and programs need not.
struct Quantity<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = InvalidQuantity> + From<u64>> de::Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of bytes or a text such as \"512 MiB\"")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        Ok(T::from(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        u64::try_from(value).map(T::from).map_err(|_| E::custom("a size cannot be negative"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        value.parse().map_err(E::custom)
    }
}

macro_rules! quantity {
    ($name:ident) => {
        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Quantity(std::marker::PhantomData))
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                quantity_schema(generator)
            }
        }
    };
}

/// Written as a number, always; read as one, or as a text with a unit.
#[cfg(feature = "schema")]
fn quantity_schema(generator: &schemars::SchemaGenerator) -> schemars::Schema {
    let number = schemars::json_schema!({ "type": "integer", "format": "uint64", "minimum": 0 });
    if generator.contract().is_serialize() {
        return number;
    }
    let text = r"^\s*[0-9]+\s*(B|K|KiB|M|MiB|G|GiB|T|TiB)?\s*(/s)?\s*$";
    schemars::json_schema!({ "anyOf": [number, { "type": "string", "pattern": text }] })
}

quantity!(ByteCount);
quantity!(Bandwidth);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_parse_and_print() {
        assert_eq!("512 MiB".parse(), Ok(ByteCount(512 << 20)));
        assert_eq!("4G".parse(), Ok(ByteCount(4 << 30)));
        assert_eq!("100 MiB/s".parse(), Ok(Bandwidth(100 << 20)));
        assert_eq!(ByteCount(1536).to_string(), "1.50 KiB");
        assert_eq!(ByteCount(0).to_string(), "0 B");
        for bad in ["", "MiB", "-1", "1.5G", "4 GB", "99999999999T"] {
            assert!(bad.parse::<ByteCount>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whole_units_come_back(count in 0_u64..1 << 50) {
            let text = ByteCount(count).to_string();
            if !text.contains('.') {
                prop_assert_eq!(text.parse(), Ok(ByteCount(count)));
            }
        }
    }
}
