//! The manifest: one object in S3 that holds the newest notification of every slot, the few before it, and what holds
//! the slot. It is the truth to start from, of which the stream is the fast hint; so a lost, trimmed or throttled record
//! costs freshness only, and an instance that starts finds the way back that the others have.
//!
//! ```text
//!   publish ─► fold ─► conditional PUT ─► s3://…/manifest.json ─► read every half a minute ─► Records ─► manager
//! ```
//!
//! What is in this file is pure: format, decode, encode, fold. [`object`] reads and writes, [`update`] does both with
//! compare-and-swap.
//!
//! **Invariant:** `fold` keeps, slot by slot, the greatest few of a total order. So the outcome does not depend on the order
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
use crate::notification::{self, Action, Control, Notification};

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

impl Limits {
    /// The most entries: a slot keeps a few.
    fn entries(&self) -> usize {
        self.slots.saturating_mul(KEEP + 1)
    }
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

/// How many messages of a slot are kept, the newest included.
const KEEP: usize = 3;
/// How many rollbacks of a slot are kept, and how many revocations.
const KEEP_ROLLBACKS: usize = 32;
const KEEP_REVOKED: usize = 256;

/// The newest notifications of every slot.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The stream on which its messages were announced.
    pub stream: Option<String>,
    /// When it was written.
    pub updated_at: Option<Timestamp>,
    limits: Limits,
    /// Newest first, and never empty.
    slots: BTreeMap<Slot, Vec<Arc<Entry>>>,
    /// The commands about each slot, the latest first.
    controls: BTreeMap<Slot, Vec<Arc<Entry>>>,
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
        if let Some(Action::Pin(None) | Action::Rollback { from: None, .. } | Action::Rollback { to: None, .. }) =
            notification.control.as_ref().map(|control| control.action)
        {
            return Err(
                "what a pin or a rollback means must not depend on when it is read: name its versions".to_owned()
            );
        }
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

    /// What tells which of two messages was published later; the text makes the order total.
    fn time(&self) -> (Option<Timestamp>, &str) {
        (self.notification.published_at, self.message())
    }

    /// Whether this entry is to hold the slot and not the other. Of the same content announced twice the later
    /// announcement counts, for it may correct where the content lies; the text makes the order total.
    fn beats(&self, other: &Self, slot: &Slot) -> bool {
        let (Some(ours), Some(theirs)) = (self.part(slot), other.part(slot)) else { return false };
        if ours.rank == theirs.rank {
            return self.time() > other.time();
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
        let (slots, controls) = (BTreeMap::new(), BTreeMap::new());
        Self { stream: None, updated_at: None, limits, slots, controls, unreadable: Vec::new() }
    }

    /// What a slot holds.
    pub fn held(&self, slot: &Slot) -> Option<Held<'_>> {
        let entry = self.slots.get(slot)?.first()?;
        let part = entry.part(slot)?;
        Some(Held { entry, rank: &part.rank, content: part.content })
    }

    /// What a slot holds, and held before, the newest first.
    pub fn kept<'a>(&'a self, slot: &'a Slot) -> impl Iterator<Item = Held<'a>> {
        self.slots.get(slot).into_iter().flatten().filter_map(|entry| {
            let part = entry.part(slot)?;
            Some(Held { entry, rank: &part.rank, content: part.content })
        })
    }

    /// Whether a rank was taken back or revoked.
    pub fn is_barred(&self, slot: &Slot, rank: &Rank) -> bool {
        let Some(version) = rank.version() else { return false };
        self.controls(slot).any(|control| match control.action {
            Action::Rollback { to: Some(to), from: Some(from) } => to < version && version <= from,
            Action::Revoke(revoked) => revoked == version,
            _ => false,
        })
    }

    /// The version that a slot is pinned to.
    fn pinned(&self, slot: &Slot) -> Option<Version> {
        self.controls(slot).find_map(|control| match control.action {
            Action::Pin(version) => Some(version),
            Action::Unpin => Some(None),
            _ => None,
        })?
    }

    /// Of a slot's messages the newest is kept, a few that may be served, and what the slot is pinned to.
    fn prune(&mut self, slot: &Slot, keep: usize) {
        let Some(mut kept) = self.slots.remove(slot) else { return };
        let pinned = self.pinned(slot);
        let (mut good, mut first) = (0, true);
        kept.retain(|entry| {
            let rank = entry.part(slot).map(|part| &part.rank);
            let usable = rank.is_some_and(|rank| !self.is_barred(slot, rank));
            good += usize::from(usable);
            let is_pinned = pinned.is_some() && rank.and_then(Rank::version) == pinned;
            std::mem::take(&mut first) || is_pinned || (usable && good <= keep)
        });
        self.slots.insert(slot.clone(), kept);
    }

    /// The commands about a slot, the latest first.
    pub fn controls(&self, slot: &Slot) -> impl Iterator<Item = &Control> {
        self.controls.get(slot).into_iter().flatten().filter_map(|entry| entry.notification.control.as_ref())
    }

    /// Every slot and what it holds, in the order of their names.
    pub fn slots(&self) -> impl Iterator<Item = (&Slot, Held<'_>)> {
        self.slots.keys().filter_map(|slot| Some((slot, self.held(slot)?)))
    }

    /// The messages, each once: one that brings a state and a model at once is kept for two slots.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        let contents = self.slots.iter().flat_map(|(slot, entries)| entries.iter().map(move |entry| (slot, entry)));
        let contents = contents.filter_map(|(slot, entry)| {
            let keeps = |slot: &&Slot| {
                self.slots.get(slot).is_some_and(|kept| kept.iter().any(|kept| Arc::ptr_eq(kept, entry)))
            };
            let first = entry.parts.iter().map(|part| &part.slot).filter(keeps).min();
            (first == Some(slot)).then_some(&**entry)
        });
        contents.chain(self.controls.values().flatten().map(|entry| &**entry))
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

    /// Takes in an entry: each of its slots that holds something older, or nothing, holds it from now on, and what it
    /// held is kept for a while; an entry that no slot keeps any more is gone. Answers whether anything changed. An
    /// entry in conflict changes nothing.
    pub fn fold(&mut self, entry: Entry) -> Result<bool, Error> {
        for Part { slot, rank, content } in &entry.parts {
            if self.kept(slot).any(|held| held.rank == rank && held.content != *content) {
                return Err(Error::Conflict { slot: slot.clone(), rank: rank.clone() });
            }
        }
        let named = entry.parts.iter().map(|part| &part.slot);
        let named = named.chain(entry.notification.control.as_ref().map(|control| &control.slot));
        let unknown = |slot: &&Slot| !self.slots.contains_key(slot) && !self.controls.contains_key(slot);
        let known = self.slots.len() + self.controls.keys().filter(|slot| !self.slots.contains_key(slot)).count();
        let slots: Vec<Slot> = named.clone().cloned().collect();
        if known + named.filter(unknown).count() > self.limits.slots {
            return Err(Error::Full { limit: self.limits.slots });
        }
        let (entry, mut changed) = (Arc::new(entry), false);
        for slot in slots {
            changed |= match &entry.notification.control {
                Some(_) => self.keep_control(&slot, &entry),
                None => self.keep(&slot, &entry),
            };
        }
        Ok(changed)
    }

    fn keep(&mut self, slot: &Slot, entry: &Arc<Entry>) -> bool {
        let kept = self.slots.entry(slot.clone()).or_default();
        let rank = |entry: &Entry| entry.part(slot).map(|part| part.rank.clone());
        // One rank is kept once, by the announcement that counts.
        if let Some(same) = kept.iter_mut().find(|kept| rank(kept) == rank(entry)) {
            let better = entry.beats(same, slot);
            if better {
                *same = Arc::clone(entry);
            }
            return better;
        }
        let place = kept.iter().position(|kept| entry.beats(kept, slot)).unwrap_or(kept.len());
        kept.insert(place, Arc::clone(entry));
        self.prune(slot, KEEP);
        self.slots.get(slot).is_some_and(|kept| kept.iter().any(|kept| Arc::ptr_eq(kept, entry)))
    }

    /// Of the pins and unpins of a slot the latest is kept, of the others as many as there is room for.
    fn keep_control(&mut self, slot: &Slot, entry: &Arc<Entry>) -> bool {
        let is_pin = |entry: &Entry| {
            matches!(&entry.notification.control, Some(Control { action: Action::Pin(_) | Action::Unpin, .. }))
        };
        let kept = self.controls.entry(slot.clone()).or_default();
        if kept.iter().any(|kept| kept.message() == entry.message()) {
            return false;
        }
        kept.push(Arc::clone(entry));
        kept.sort_by(|one, other| other.time().cmp(&one.time()));
        // A revocation is for good: it does not make room for rollbacks.
        let (mut pins, mut rollbacks, mut revoked) = (0, 0, 0);
        kept.retain(|kept| {
            let (count, most) = match kept.notification.control.as_ref().map(|control| control.action) {
                _ if is_pin(kept) => (&mut pins, 1),
                Some(Action::Rollback { .. }) => (&mut rollbacks, KEEP_ROLLBACKS),
                _ => (&mut revoked, KEEP_REVOKED),
            };
            *count += 1;
            *count <= most
        });
        let is_kept = kept.iter().any(|kept| Arc::ptr_eq(kept, entry));
        self.prune(slot, KEEP);
        is_kept
    }

    /// Keeps of each slot what is to be served, and the newest.
    fn shrink(&mut self) {
        let slots: Vec<Slot> = self.slots.keys().cloned().collect();
        slots.iter().for_each(|slot| self.prune(slot, 1));
    }
}

#[cfg(test)]
mod tests;
