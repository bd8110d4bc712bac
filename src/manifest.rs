//! The manifest: one object in S3 that holds the newest notification of every slot. It is the truth to start from, of
//! which the stream is the fast hint; so a lost, trimmed or throttled record costs freshness only.
//!
//! ```text
//!   publish ─► fold ─► conditional PUT ─► s3://…/manifest.json ─► read every half a minute ─► Records ─► manager
//! ```
//!
//! What is in this file is pure: format, decode, encode, fold. [`object`] reads and writes, [`update`] does both with
//! compare-and-swap.
//!
//! **Invariant:** `fold` takes, slot by slot, the greatest of a total order. So the outcome does not depend on the order
//! in which entries are folded, and folding one again changes nothing.

mod format;
// The fuzzer builds the decoder alone.
#[cfg(not(fuzzing))]
pub mod object;
#[cfg(not(fuzzing))]
pub mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::aws::Fault;
use crate::id::{Digest, Position, Rank, Slot, Version};
use crate::notification::{self, Notification};

/// The bounds of a manifest.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest object, in bytes.
    pub bytes: u64,
    /// The most slots; as many as a server keeps.
    pub slots: usize,
    /// What a message may be.
    pub message: notification::Limits,
}

impl Default for Limits {
    /// What a message may be is wide here: each server judges for itself by its own settings.
    fn default() -> Self {
        let message = notification::Limits { require_digest: false, ..notification::Limits::default() };
        Self { bytes: 64 << 20, slots: 10_000, message }
    }
}

/// What is wrong with a manifest, or with a change to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// S3 did not do as it was asked.
    #[error("{uri}: {}", fault.message)]
    Storage {
        /// The object.
        uri: String,
        /// What S3 said.
        fault: Fault,
    },
    /// The object is no manifest.
    #[error("not a manifest: {0}")]
    Broken(String),
    /// It is of a later kind.
    #[error("a manifest of version {0}, and this program knows version 1: upgrade hotserve")]
    Newer(u64),
    /// It is over the limit.
    #[error("the manifest has {bytes} bytes, over the limit of {limit}: put large models into S3, not inline")]
    TooLarge {
        /// How many bytes, as far as they were counted.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It has no room for another slot.
    #[error("the manifest has {limit} slots, and may have no more")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// Another content has the same rank.
    #[error("{slot} {rank} is another content already: publish a higher version")]
    Conflict {
        /// The slot.
        slot: Slot,
        /// The rank.
        rank: Rank,
    },
    /// It belongs to another stream.
    #[error("the manifest is that of stream {theirs:?}, not of {ours:?}: each stream has a manifest of its own")]
    OtherStream {
        /// The stream in the manifest.
        theirs: String,
        /// The stream asked for.
        ours: String,
    },
    /// Others wrote it again and again.
    #[error("{uri}: others wrote it {tries} times between reading and writing: try again")]
    Busy {
        /// The object.
        uri: String,
        /// How often it was tried.
        tries: u32,
    },
}

impl Error {
    /// A bounded name for logs and the status page.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Storage { fault, .. } => fault.kind.code(),
            Self::Broken(_) => "broken",
            Self::Newer(_) => "newer",
            Self::TooLarge { .. } => "too_large",
            Self::Full { .. } => "full",
            Self::Conflict { .. } => "conflict",
            Self::OtherStream { .. } => "other_stream",
            Self::Busy { .. } => "busy",
        }
    }
}

/// The newest notification of every slot.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The stream on which its messages were announced.
    pub stream: Option<String>,
    /// When it was written.
    pub updated_at: Option<Timestamp>,
    limits: Limits,
    slots: BTreeMap<Slot, Arc<Entry>>,
    unreadable: Vec<Unreadable>,
}

/// One message, byte for byte as it was published.
#[derive(Debug, Clone)]
pub struct Entry {
    message: Box<RawValue>,
    /// Where it stood in the stream; kept only where it orders a slot, for lack of a version.
    position: Option<Position>,
    notification: Notification,
    parts: Vec<Part>,
}

/// One slot that a message means to replace.
#[derive(Debug, Clone)]
struct Part {
    slot: Slot,
    rank: Rank,
    content: Digest,
}

/// An entry that cannot be read. It is kept as it is: a later version of the program may know what it says.
#[derive(Debug, Clone)]
pub struct Unreadable {
    entry: Box<RawValue>,
    /// What is wrong with it.
    pub reason: String,
}

impl Entry {
    /// Reads a message. It needs a version for each of its slots, or a place in the stream.
    pub fn new(
        message: Box<RawValue>,
        position: Option<Position>,
        limits: &notification::Limits,
    ) -> Result<Self, String> {
        let data = Bytes::copy_from_slice(message.get().as_bytes());
        let notification = notification::decode(&data, limits).map_err(|rejection| rejection.detail)?;
        let rank = |slot: &Slot, version: Option<Version>| match (version, &position) {
            (Some(version), _) => Ok(Rank::Version(version)),
            (None, Some(position)) => Ok(Rank::Stream(position.clone())),
            (None, None) => Err(format!("{slot} has neither a version nor a position")),
        };
        let part = |(slot, version)| {
            let (rank, content) = (rank(&slot, version)?, notification.content(&slot));
            Ok(Part { slot, rank, content })
        };
        let parts = notification.slots().map(part).collect::<Result<Vec<_>, String>>()?;
        let ordered_by_position = parts.iter().any(|part| part.rank.version().is_none());
        Ok(Self { message, position: position.filter(|_| ordered_by_position), notification, parts })
    }

    /// The message.
    pub fn message(&self) -> &str {
        self.message.get()
    }

    /// What it says.
    pub fn notification(&self) -> &Notification {
        &self.notification
    }

    /// Where it stood in the stream, if that is what orders it.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// What tells this entry from every other, changed ones included.
    pub fn digest(&self) -> Digest {
        Digest::of(format!("{} {:?}", self.message(), self.position).as_bytes())
    }

    fn part(&self, slot: &Slot) -> Option<&Part> {
        self.parts.iter().find(|part| part.slot == *slot)
    }

    /// Whether this entry is to hold the slot and not the other. Of the same content announced twice the later
    /// announcement counts, for it may correct where the content lies; the text makes the order total.
    fn beats(&self, other: &Self, slot: &Slot) -> bool {
        let (Some(ours), Some(theirs)) = (self.part(slot), other.part(slot)) else { return false };
        if ours.rank == theirs.rank {
            let key = |entry: &Self| (entry.notification.published_at, entry.message().to_owned());
            return key(self) > key(other);
        }
        ours.rank.is_above(&theirs.rank)
    }
}

/// What a slot holds.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// The message.
    pub entry: &'a Entry,
    /// Its place in the slot's order.
    pub rank: &'a Rank,
    /// What tells it from other contents of the same rank.
    pub content: Digest,
}

impl Manifest {
    /// One without slots.
    pub fn new(limits: Limits) -> Self {
        Self { stream: None, updated_at: None, limits, slots: BTreeMap::new(), unreadable: Vec::new() }
    }

    /// What a slot holds.
    pub fn held(&self, slot: &Slot) -> Option<Held<'_>> {
        let entry = self.slots.get(slot)?;
        let part = entry.part(slot)?;
        Some(Held { entry, rank: &part.rank, content: part.content })
    }

    /// Every slot and what it holds, in the order of their names.
    pub fn slots(&self) -> impl Iterator<Item = (&Slot, Held<'_>)> {
        self.slots.keys().filter_map(|slot| Some((slot, self.held(slot)?)))
    }

    /// The messages, each once: one that brings a state and a model at once holds two slots.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|(slot, entry)| {
            let holds = |slot: &&Slot| self.slots.get(slot).is_some_and(|held| Arc::ptr_eq(held, entry));
            let first = entry.parts.iter().map(|part| &part.slot).filter(holds).min();
            (first == Some(slot)).then_some(&**entry)
        })
    }

    /// What could not be read.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Drops what could not be read. Answers how much that was.
    pub fn forget_unreadable(&mut self) -> usize {
        std::mem::take(&mut self.unreadable).len()
    }

    /// The bounds that it keeps.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Says which stream it belongs to, or that it belongs to another.
    pub fn belongs_to(&mut self, stream: &str) -> Result<(), Error> {
        match &self.stream {
            Some(theirs) if theirs != stream => {
                Err(Error::OtherStream { theirs: theirs.clone(), ours: stream.to_owned() })
            }
            _ => {
                self.stream = Some(stream.to_owned());
                Ok(())
            }
        }
    }

    /// Takes in an entry: each of its slots that holds something older, or nothing, holds it from now on, and an entry
    /// that holds no slot any more is gone. Answers whether anything changed. An entry in conflict changes nothing.
    pub fn fold(&mut self, entry: Entry) -> Result<bool, Error> {
        for Part { slot, rank, content } in &entry.parts {
            if self.held(slot).is_some_and(|held| held.rank == rank && held.content != *content) {
                return Err(Error::Conflict { slot: slot.clone(), rank: rank.clone() });
            }
        }
        let takes = |slot: &&Slot| self.slots.get(slot).is_none_or(|held| entry.beats(held, slot));
        let taken: Vec<Slot> = entry.parts.iter().map(|part| &part.slot).filter(takes).cloned().collect();
        let new = taken.iter().filter(|slot| !self.slots.contains_key(slot)).count();
        if self.slots.len() + new > self.limits.slots {
            return Err(Error::Full { limit: self.limits.slots });
        }
        let changed = !taken.is_empty();
        let entry = Arc::new(entry);
        self.slots.extend(taken.into_iter().map(|slot| (slot, Arc::clone(&entry))));
        Ok(changed)
    }
}

#[cfg(test)]
mod tests;
