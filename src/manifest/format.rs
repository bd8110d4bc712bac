//! The manifest as JSON.
//!
//! ```json
//! {"manifest":1,"stream":"updates","updated_at":"2026-11-23T18:00:00Z","entries":[
//!   {"message":{"key":"pricing","version":7,"state":{"eur":1.08}}},
//!   {"message":{"state":96},"position":{"era":…,"arrival_ms":…,"shard":"…","sequence":"…"}}]}
//! ```
//!
//! Fields that this version does not know are ignored. An entry that cannot be read hides none of the others.

use std::fmt;

use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Entry, Error, Limits, Manifest, Unreadable};
use crate::id::Position;
use crate::notification;

/// The version of the format.
const VERSION: u64 = 1;

#[derive(Deserialize)]
struct Envelope<'a> {
    // Looked at first: the other fields may have another shape in another version.
    manifest: u64,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    updated_at: Option<&'a RawValue>,
    #[serde(borrow)]
    entries: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Written<'a> {
    manifest: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
    updated_at: Option<Timestamp>,
    entries: Vec<EntryOut<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EntryOut<'a> {
    Read {
        message: &'a RawValue,
        #[serde(skip_serializing_if = "Option::is_none")]
        position: Option<&'a Position>,
    },
    Unreadable(&'a RawValue),
}

#[derive(Deserialize)]
struct EntryIn<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
    position: Option<Position>,
}

impl Manifest {
    /// Reads a manifest: hostile bytes end in an error, never in a panic or in much memory.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, Error> {
        let length = bytes.len() as u64;
        if length > limits.bytes {
            return Err(Error::TooLarge { bytes: length, limit: limits.bytes });
        }
        let broken = |error: serde_json::Error| Error::Broken(error.to_string());
        let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(broken)?;
        match envelope.manifest {
            VERSION => {}
            0 => return Err(Error::Broken("there is no version 0".to_owned())),
            newer => return Err(Error::Newer(newer)),
        }
        let mut manifest = Self::new(limits.clone());
        if let Some(stream) = envelope.stream {
            manifest.stream = serde_json::from_str(stream.get()).map_err(broken)?;
        }
        if let Some(updated_at) = envelope.updated_at {
            manifest.updated_at = serde_json::from_str(updated_at.get()).map_err(broken)?;
        }
        if let Some(entries) = envelope.entries {
            let mut reader = serde_json::Deserializer::from_str(entries.get());
            for entry in (AtMost { entries: limits.entries() }).deserialize(&mut reader).map_err(broken)? {
                let read = read(entry, &limits.message)
                    .and_then(|entry| manifest.fold(entry).map_err(|error| error.to_string()));
                if let Err(reason) = read {
                    manifest.unreadable.push(Unreadable { entry: entry.to_owned(), reason });
                }
            }
        }
        Ok(manifest)
    }

    /// Writes it; without what the slots held before, if there is no room for that.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        match self.write() {
            Err(Error::TooLarge { .. }) => {
                let mut smaller = self.clone();
                smaller.shrink();
                smaller.write()
            }
            written => written,
        }
    }

    fn write(&self) -> Result<Vec<u8>, Error> {
        let read = self
            .entries()
            .map(|Entry { message, position, .. }| EntryOut::Read { message, position: position.as_ref() });
        let unreadable = self.unreadable.iter().map(|Unreadable { entry, .. }| EntryOut::Unreadable(entry));
        let entries: Vec<_> = read.chain(unreadable).collect();
        if entries.len() > self.limits.entries() {
            return Err(Error::Full { limit: self.limits.slots });
        }
        let written =
            Written { manifest: VERSION, stream: self.stream.as_deref(), updated_at: self.updated_at, entries };
        let bytes = serde_json::to_vec(&written).map_err(|error| Error::Broken(error.to_string()))?;
        let length = bytes.len() as u64;
        if length > self.limits.bytes {
            return Err(Error::TooLarge { bytes: length, limit: self.limits.bytes });
        }
        Ok(bytes)
    }
}

fn read(entry: &RawValue, limits: &notification::Limits) -> Result<Entry, String> {
    let EntryIn { message, position } =
        serde_json::from_str(entry.get()).map_err(|error| format!("not an entry: {error}"))?;
    Entry::new(message.to_owned(), position, limits)
}

/// Reads a list of no more than so many entries: a hostile one of millions must not fill the memory.
#[derive(Clone, Copy)]
struct AtMost {
    entries: usize,
}

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {} entries", self.entries)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() == self.entries {
                return Err(A::Error::custom(format_args!("more than {} entries", self.entries)));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}
