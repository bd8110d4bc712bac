//! One pass over JSON text that refuses what a lenient reader lets through: keys given twice, deep nesting, text
//! behind the end.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::{Reason, Rejection};

/// Checks the structure of a whole document.
pub(super) fn check(text: &[u8], max_depth: usize) -> Result<(), Rejection> {
    let fault = Cell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(text);
    Strict { depth_left: max_depth, fault: &fault }
        .deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(|error| Rejection::new(fault.get().unwrap_or(Reason::NotJson), describe(text, &error)))
}

fn describe(text: &[u8], error: &serde_json::Error) -> String {
    if text.iter().all(u8::is_ascii_whitespace) {
        return "an empty message".to_owned();
    }
    if text.starts_with(b"{'") {
        return "single quotes are not JSON: this looks like Python's repr; send json.dumps(…)".to_owned();
    }
    format!("not acceptable JSON: {error}")
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth_left: usize,
    fault: &'a Cell<Option<Reason>>,
}

impl Strict<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        match self.depth_left.checked_sub(1) {
            Some(depth_left) => Ok(Self { depth_left, ..self }),
            None => {
                self.fault.set(Some(Reason::Depth));
                Err(E::custom("nested too deep"))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        while seq.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.deeper()?;
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(inner)?;
            if let Some(again) = seen.replace(key) {
                self.fault.set(Some(Reason::DuplicateKey));
                return Err(A::Error::custom(format_args!("key {again:?} is given twice")));
            }
        }
        Ok(())
    }
}
