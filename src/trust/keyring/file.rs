//! The keyring's file.

use std::io::Read as _;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;

use super::{Keyring, Scope, TrustedKey};
use crate::id::KeyId;
use crate::trust::{Invalid, PublicKey};

/// How large the file may be, in bytes.
const MAX_FILE: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    threshold: Option<usize>,
    #[serde(default)]
    keys: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    public: String,
    id: Option<KeyId>,
    slots: Option<Vec<String>>,
    not_after: Option<String>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

impl Keyring {
    /// Reads the text of a keyring, TOML or JSON.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let File { threshold, keys } = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| Invalid::new(error.to_string()))?
        } else {
            toml::from_str(text).map_err(|error| Invalid::new(error.to_string()))?
        };
        let keys = keys.into_iter().enumerate().map(|(at, entry)| {
            entry.validate().map_err(|Invalid(problem)| Invalid::new(format!("key {}: {problem}", at + 1)))
        });
        Self::new(keys.collect::<Result<_, _>>()?, threshold.unwrap_or(1))
    }

    /// Reads a keyring's file.
    pub fn read(path: &Path) -> Result<Self, Invalid> {
        let at = |problem: String| Invalid::new(format!("{}: {problem}", path.display()));
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| at(error.to_string()))?;
        file.take(MAX_FILE).read_to_string(&mut text).map_err(|error| at(error.to_string()))?;
        Self::parse(&text).map_err(|Invalid(problem)| at(problem))
    }
}

impl Entry {
    fn validate(self) -> Result<TrustedKey, Invalid> {
        let Self { public, id, slots, not_after, .. } = self;
        let public: PublicKey = public.parse()?;
        let scope = match slots {
            None => None,
            Some(slots) if slots.is_empty() => {
                return Err(Invalid::new(
                    "slots is empty, so that it may sign nothing: leave slots out for everything",
                ));
            }
            Some(slots) => Some(slots.iter().map(|slot| slot.parse()).collect::<Result<_, _>>()?),
        };
        let not_after = not_after
            .map(|text| text.parse::<Timestamp>().map_err(|error| Invalid::new(format!("not_after {text:?}: {error}"))))
            .transpose()?;
        Ok(TrustedKey { id: id.unwrap_or_else(|| public.id()), public, scope: Scope(scope), not_after })
    }
}
