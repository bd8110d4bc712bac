//! Names of features and inputs, and the place of an error.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, Visitor};

use super::element::quoted;
use crate::serving::layout::Lookup;

/// Names by position, and positions by name, for one request.
pub(super) struct Names<'s> {
    lookup: &'s Lookup,
    /// Which name came at which place of the last object: clients write every row in the same order. Nothing, as long as
    /// that is the model's.
    order: Vec<usize>,
}

impl<'s> Names<'s> {
    pub(super) fn new(lookup: &'s Lookup) -> Self {
        Self { lookup, order: Vec::new() }
    }

    /// How many positions there are, named or not.
    pub(super) fn width(&self) -> usize {
        self.lookup.width()
    }

    pub(super) fn are_named(&self) -> bool {
        !self.lookup.names().is_empty()
    }

    pub(super) fn get(&self, index: usize) -> Option<&'s str> {
        self.lookup.get(index)
    }

    /// The name, or the number where there are no names.
    pub(super) fn label(&self, index: usize) -> Cow<'s, str> {
        label(self.lookup, index)
    }

    /// The position of a name that came at this place of an object.
    fn find(&mut self, place: usize, name: &str) -> Option<usize> {
        let guess = self.order.get(place).copied().unwrap_or(place);
        if self.get(guess) == Some(name) {
            return Some(guess);
        }
        let found = self.lookup.find(name)?;
        if self.order.is_empty() {
            self.order.extend(0..self.width());
        }
        if let Some(guess) = self.order.get_mut(place) {
            *guess = found;
        }
        Some(found)
    }
}

/// The name of a position, or its number where there are no names.
pub(super) fn label(lookup: &Lookup, index: usize) -> Cow<'_, str> {
    lookup.get(index).map_or_else(|| index.to_string().into(), Cow::from)
}

/// What there is instead of an unknown name, for a person: the one that it is nearly, and those there are.
pub(super) fn instead(names: &[Box<str>], unknown: &str) -> String {
    /// Wide models have many names, and only what a person may have typed is worth the search.
    const SEARCHED: usize = 2000;
    const LENGTH: usize = 64;
    let near = names.iter().take(SEARCHED).filter(|name| name.len().max(unknown.len()) <= LENGTH).map(|name| {
        let same = name.eq_ignore_ascii_case(unknown);
        (if same { 0 } else { strsim::osa_distance(name, unknown) }, name)
    });
    let nearest = near.min_by_key(|(distance, _)| *distance).filter(|(distance, _)| *distance <= unknown.len() / 3);
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match nearest {
        Some((_, name)) => format!("did you mean {name:?}? The model takes {}", list(&names)),
        None => format!("the model takes {}", list(&names)),
    }
}

/// Names for a person, not all of very many.
pub(in crate::http) fn list(names: &[&str]) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

/// Where an error happened, innermost step first: filled as it passes outwards, so that it costs nothing otherwise.
#[derive(Default)]
pub(super) struct Path {
    pub(super) root: Option<&'static str>,
    pub(super) steps: Vec<String>,
}

/// The place as a prefix of an error's message.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(root) = self.root else { return Ok(()) };
        f.write_str(root)?;
        self.steps.iter().rev().try_for_each(|step| f.write_str(step))?;
        let empty = root.is_empty() && self.steps.is_empty();
        if empty { Ok(()) } else { f.write_str(": ") }
    }
}

impl Path {
    pub(super) fn index<E>(&mut self, index: usize, error: E) -> E {
        self.steps.push(format!("[{index}]"));
        error
    }

    /// A column of a row: its position, and its name if it has one.
    pub(super) fn column<E>(&mut self, index: usize, name: Option<&str>, error: E) -> E {
        match name {
            Some(name) => self.steps.push(format!("[{index}] ({name:?})")),
            None => self.steps.push(format!("[{index}]")),
        }
        error
    }

    pub(super) fn name<E>(&mut self, name: &str, error: E) -> E {
        self.steps.push(format!("[{name:?}]"));
        error
    }
}

/// A key of an object by name: the index of its name, or nothing for the name of the whole input.
pub(super) struct Key<'a, 's> {
    pub(super) names: &'a mut Names<'s>,
    pub(super) place: usize,
    pub(super) whole: Option<&'s str>,
    pub(super) what: &'static str,
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name of an {}", self.what)
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Option<usize>, E> {
        if let Some(index) = self.names.find(self.place, name) {
            return Ok(Some(index));
        }
        if self.whole == Some(name) {
            return Ok(None);
        }
        let known = match self.whole {
            Some(whole) if !self.names.are_named() => format!("the model takes {whole:?}"),
            _ => instead(self.names.lookup.names(), name),
        };
        Err(E::custom(format_args!("unknown {} {}, {known}", self.what, quoted(name))))
    }
}
