//! The keys that are trusted: the file, and what each key may sign for.
//!
//! ```toml
//! threshold = 1                        # how many of the keys must have signed
//! [[keys]]
//! public = "MCowBQYDK2VwAyEA…"         # or PEM
//! slots = ["model/fraud", "state/*"]   # all, if left out
//! not_after = "2027-12-31T23:59:59Z"   # for ever, if left out
//! comment = "the nightly training"
//! ```
//!
//! or the same as JSON. A key's id is made from the key; `id` gives it another, for signers that use their own.

// The fuzzer takes its keys from the program.
#[cfg(not(fuzzing))]
mod file;

use std::str::FromStr;

use jiff::Timestamp;

use super::{Invalid, PublicKey};
use crate::id::{KeyId, ModelName, Slot, StateKey};

/// How many keys there may be.
const MAX_KEYS: usize = 32;

/// The keys that are trusted, and how many of them it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<TrustedKey>,
    threshold: usize,
}

/// A key that is trusted, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    id: KeyId,
    public: PublicKey,
    scope: Scope,
    not_after: Option<Timestamp>,
}

/// Which slots a key may sign for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(Option<Vec<Pattern>>);

/// `model/NAME`, `state/KEY`, or either with a `*` at the end of the name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    kind: &'static str,
    name: String,
    is_prefix: bool,
}

impl TrustedKey {
    /// A key that may sign for everything, for ever.
    pub fn new(public: PublicKey) -> Self {
        Self { id: public.id(), public, scope: Scope(None), not_after: None }
    }

    /// Its id.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The key.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Which slots it may sign for.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether its time is over.
    pub fn is_expired(&self, at: Timestamp) -> bool {
        self.not_after.is_some_and(|not_after| not_after < at)
    }

    /// Whether a signature with this key id means it: by the id of the keyring, or by the one made from the key.
    pub(super) fn is_called(&self, id: &str) -> bool {
        self.id.as_str() == id || self.public.id().as_str() == id
    }
}

impl Scope {
    /// Whether it may sign for this slot.
    pub fn covers(&self, slot: &Slot) -> bool {
        let name = match slot {
            Slot::State(key) => key.as_str(),
            Slot::Model(name) => name.as_str(),
        };
        self.0.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.covers(slot.kind(), name)))
    }

    /// Whether it may sign for everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_none()
    }
}

impl Pattern {
    fn covers(&self, kind: &str, name: &str) -> bool {
        self.kind == kind && if self.is_prefix { name.starts_with(&self.name) } else { name == self.name }
    }
}

impl FromStr for Pattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::new(format!("{text:?} is none of model/NAME, state/KEY, model/PREFIX* and state/*"));
        let (kind, name) = text.split_once('/').ok_or_else(wrong)?;
        let (name, is_prefix) = name.strip_suffix('*').map_or((name, false), |name| (name, true));
        let is_name = match kind {
            "model" => name.parse::<ModelName>().is_ok(),
            "state" => name.parse::<StateKey>().is_ok(),
            _ => return Err(wrong()),
        };
        let is_all = is_prefix && name.is_empty();
        if !is_name && !is_all {
            return Err(wrong());
        }
        let kind = if kind == "model" { "model" } else { "state" };
        Ok(Self { kind, name: name.to_owned(), is_prefix })
    }
}

impl Keyring {
    /// These keys, of which so many must have signed.
    pub fn new(keys: Vec<TrustedKey>, threshold: usize) -> Result<Self, Invalid> {
        if keys.is_empty() {
            return Err(Invalid::new("it has no keys: put in what hotserve keygen prints"));
        }
        if keys.len() > MAX_KEYS {
            return Err(Invalid::new(format!("{} keys are more than {MAX_KEYS}", keys.len())));
        }
        if !(1..=keys.len()).contains(&threshold) {
            let problem = format!("a threshold of {threshold} of {} keys: from 1 to the number of keys", keys.len());
            return Err(Invalid::new(problem));
        }
        for (at, key) in keys.iter().enumerate() {
            let before = keys.iter().take(at);
            // Else one key would count twice, or its id mean two.
            let again = |other: &&TrustedKey| {
                other.public == key.public || other.is_called(key.id.as_str()) || key.is_called(other.id.as_str())
            };
            if let Some(other) = before.into_iter().find(again) {
                return Err(Invalid::new(format!("keys {} and {} are one key, or have one id", other.id, key.id)));
            }
        }
        Ok(Self { keys, threshold })
    }

    /// The keys.
    pub fn keys(&self) -> &[TrustedKey] {
        &self.keys
    }

    /// How many of them must have signed.
    pub fn threshold(&self) -> usize {
        self.threshold
    }
}
