//! Names of features and inputs, and the place of an error.

use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, Visitor};

use super::element::quoted;

/// Names by position, and positions by name.
pub(super) struct Names<'s> {
    names: Vec<&'s str>,
    /// By name; made when the guess first fails.
    sorted: Vec<(&'s str, usize)>,
    /// Which name came at which place of the last object: clients write every row in the same order.
    order: Vec<usize>,
}

impl<'s> Names<'s> {
    pub(super) fn new(names: impl Iterator<Item = &'s str>) -> Self {
        let names: Vec<_> = names.collect();
        Self { order: (0..names.len()).collect(), names, sorted: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&'s str> {
        self.names.get(index).copied()
    }

    /// The position of a name that came at this place of an object.
    fn find(&mut self, place: usize, name: &str) -> Option<usize> {
        if let Some(guess) = self.order.get(place).copied()
            && self.get(guess) == Some(name)
        {
            return Some(guess);
        }
        if self.sorted.is_empty() {
            self.sorted = self.names.iter().enumerate().map(|(index, name)| (*name, index)).collect();
            self.sorted.sort_unstable();
        }
        let at = self.sorted.binary_search_by(|(candidate, _)| (*candidate).cmp(name)).ok()?;
        let found = self.sorted.get(at).map(|(_, index)| *index)?;
        if let Some(guess) = self.order.get_mut(place) {
            *guess = found;
        }
        Some(found)
    }

    /// The names for a person, not all of very many.
    fn list(&self) -> String {
        list(&self.names)
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

    pub(super) fn name<E>(&mut self, name: Option<&str>, error: E) -> E {
        self.steps.push(format!("[{:?}]", name.unwrap_or_default()));
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
            Some(whole) if self.names.is_empty() => list(&[whole]),
            _ => self.names.list(),
        };
        Err(E::custom(format_args!("unknown {} {}, the model takes {known}", self.what, quoted(name))))
    }
}
