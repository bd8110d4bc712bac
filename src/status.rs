//! The board that says how the server is doing: readiness with its reason, the stream, the last swaps and rejections.
//!
//! The source and the manager write on it, the HTTP interface reads it; nobody decides by it.

mod file;
mod history;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;

use self::history::History;
use crate::id::{Rank, ShardId, Slot};

pub use self::file::HistoryFile;
pub use self::history::{By, Entry, KEPT, Line};

/// Clocks that differ by less than this may be the same: one of them is read to the second, after a way of unknown length.
const CLOCKS_AGREE_MS: u64 = 3_000;

/// The board.
pub struct Status {
    inner: Mutex<Inner>,
    /// Says that the history has grown, or that the server is ready or draining.
    news: watch::Sender<()>,
}

struct Inner {
    readiness: Readiness,
    stream: Stream,
    manifest: Option<Manifest>,
    bootstrapped: Option<Bootstrapped>,
    held: BTreeMap<Slot, Held>,
    unloaded: BTreeSet<Slot>,
    loading: BTreeSet<Slot>,
    history: History,
    isolation: Option<&'static str>,
}

/// Whether requests should be sent here. A latch: once ready, only draining ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet, and why.
    Starting(String),
    /// Yes.
    Ready,
    /// No more: the server is shutting down.
    Draining,
}

/// The stream as its reader sees it.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Stream {
    /// When it last answered.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_contact: Option<Timestamp>,
    /// What is wrong now, if something is.
    pub trouble: Option<Trouble>,
    /// How far its clock is ahead of this machine's, in milliseconds; 0 where they agree as far as can be told.
    pub clock_offset_ms: i64,
    /// Each shard that is read.
    pub shards: BTreeMap<String, Shard>,
}

/// A shard as its reader sees it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Shard {
    /// `poll` or `fan-out`.
    pub via: &'static str,
    /// When it last answered.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub last_contact: Timestamp,
    /// How far the reader was behind the tip then, in milliseconds.
    pub behind_ms: u64,
    /// When the last record that was read had arrived; none if none has been.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_record: Option<Timestamp>,
}

impl Shard {
    /// What arrived longer ago than this has been read: it grows while the shard does not answer. In seconds.
    pub fn lag(&self, now: Timestamp) -> f64 {
        let silence_ms = now.as_millisecond().saturating_sub(self.last_contact.as_millisecond()).max(0);
        #[expect(clippy::cast_precision_loss, reason = "a double holds milliseconds since 1970")]
        let lag_ms = silence_ms as f64 + self.behind_ms as f64;
        lag_ms / 1e3
    }
}

/// What a shard answered.
#[derive(Debug, Clone, Copy)]
pub struct ShardReport {
    /// How far behind the tip the answer was, in milliseconds.
    pub behind_ms: u64,
    /// When its last record had arrived, in milliseconds since 1970.
    pub last_record_ms: Option<u64>,
    /// `poll` or `fan-out`.
    pub via: &'static str,
}

/// The manifest as its reader sees it.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct Manifest {
    /// When it was last read, or found to be unchanged.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_contact: Option<Timestamp>,
    /// How many messages it holds.
    pub entries: usize,
    /// What is wrong now, if something is.
    pub trouble: Option<Trouble>,
}

/// From what a server became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Bootstrapped {
    /// From the manifest, and the stream behind it: every slot, however old.
    Manifest,
    /// From what the look-back found in the stream.
    Lookback,
    /// From the last known good on its disk; the stream had not caught up.
    Journal,
    /// From nothing: there was no message.
    None,
}

impl Bootstrapped {
    /// The metric's label.
    pub fn code(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Lookback => "lookback",
            Self::Journal => "journal",
            Self::None => "none",
        }
    }
}

/// To what a slot is pinned, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Who says so.
    pub by: By,
    /// The version; it need not be here.
    pub rank: Rank,
}

/// Why nothing may be served in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// It is being made ready.
    Loading,
    /// An operator unloaded it.
    Unloaded,
}

/// What keeps the reader from the stream, or from the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Trouble {
    /// The kind of fault.
    pub code: &'static str,
    /// The fault and its cure, for a person.
    pub message: String,
}

impl Default for Status {
    fn default() -> Self {
        let inner = Inner {
            readiness: Readiness::Starting("looking for the last message in the stream".to_owned()),
            stream: Stream::default(),
            manifest: None,
            bootstrapped: None,
            held: BTreeMap::new(),
            unloaded: BTreeSet::new(),
            loading: BTreeSet::new(),
            history: History::default(),
            isolation: None,
        };
        Self { inner: Mutex::new(inner), news: watch::Sender::new(()) }
    }
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each update is one assignment: the board is whole even if a writer panicked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests should be sent here.
    pub fn readiness(&self) -> Readiness {
        self.lock().readiness.clone()
    }

    /// Says what a server that is not ready waits for; without effect on one that is.
    pub fn waiting_for(&self, reason: impl Into<String>) {
        let mut inner = self.lock();
        if let Readiness::Starting(current) = &mut inner.readiness {
            *current = reason.into();
        }
    }

    /// Ready from here on. Answers whether it was not before.
    pub fn set_ready(&self) -> bool {
        let mut inner = self.lock();
        let first = matches!(inner.readiness, Readiness::Starting(_));
        if first {
            inner.readiness = Readiness::Ready;
            drop(inner);
            self.news.send_replace(());
        }
        first
    }

    /// Shutting down from here on.
    pub fn set_draining(&self) {
        self.lock().readiness = Readiness::Draining;
        self.news.send_replace(());
    }

    /// The stream answered.
    pub fn stream_contact(&self) {
        let mut inner = self.lock();
        inner.stream.last_contact = Some(Timestamp::now());
        inner.stream.trouble = None;
    }

    /// The stream did not answer, or refused. Answers whether that is news.
    pub fn stream_trouble(&self, trouble: Trouble) -> bool {
        let mut inner = self.lock();
        let news = inner.stream.trouble.as_ref().is_none_or(|before| before.code != trouble.code);
        inner.stream.trouble = Some(trouble);
        news
    }

    /// Whether the stream did not answer, or refused, when it was last asked.
    pub fn is_stream_troubled(&self) -> bool {
        self.lock().stream.trouble.is_some()
    }

    /// The stream's clock is ahead of this machine's by so many milliseconds. Answers what of it can be told: the stream
    /// tells its time to the second.
    pub fn set_clock_offset(&self, offset_ms: i64) -> i64 {
        let offset_ms = if offset_ms.unsigned_abs() < CLOCKS_AGREE_MS { 0 } else { offset_ms };
        self.lock().stream.clock_offset_ms = offset_ms;
        offset_ms
    }

    /// Now, by the stream's clock: what is stamped and what expires is compared with that, whatever this machine's says.
    pub fn stream_now(&self) -> Timestamp {
        let offset = SignedDuration::from_millis(self.lock().stream.clock_offset_ms);
        let now = Timestamp::now();
        now.checked_add(offset).unwrap_or(now)
    }

    /// A shard answered.
    pub fn stream_shard(&self, shard: &ShardId, report: ShardReport) {
        let ShardReport { behind_ms, last_record_ms, via } = report;
        let arrived = last_record_ms.and_then(|ms| Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok());
        let mut inner = self.lock();
        let last_record = arrived.or_else(|| inner.stream.shards.get(shard.as_str())?.last_record);
        let answered = Shard { via, last_contact: Timestamp::now(), behind_ms, last_record };
        match inner.stream.shards.get_mut(shard.as_str()) {
            Some(shard) => *shard = answered,
            None => {
                inner.stream.shards.insert(shard.to_string(), answered);
            }
        }
    }

    /// A shard is not read any more.
    pub fn stream_shard_gone(&self, shard: &ShardId) {
        self.lock().stream.shards.remove(shard.as_str());
    }

    /// The stream as its reader sees it.
    pub fn stream(&self) -> Stream {
        self.lock().stream.clone()
    }

    /// The manifest was read, or is as it was, perhaps not as a whole. Answers whether that is news.
    pub fn manifest_contact(&self, entries: usize, trouble: Option<Trouble>) -> bool {
        let mut inner = self.lock();
        let code = |trouble: &Option<Trouble>| trouble.as_ref().map(|trouble| trouble.code);
        let before = inner.manifest.as_ref().filter(|before| before.last_contact.is_some());
        let news = before.is_none_or(|before| code(&before.trouble) != code(&trouble));
        inner.manifest = Some(Manifest { last_contact: Some(Timestamp::now()), entries, trouble });
        news
    }

    /// The manifest could not be read. Answers whether that is news.
    pub fn manifest_trouble(&self, trouble: Trouble) -> bool {
        let mut inner = self.lock();
        let manifest = inner.manifest.get_or_insert_default();
        let news = manifest.trouble.as_ref().is_none_or(|before| before.code != trouble.code);
        manifest.trouble = Some(trouble);
        news
    }

    /// The manifest as its reader sees it; nothing where there is no reader.
    pub fn manifest(&self) -> Option<Manifest> {
        self.lock().manifest.clone()
    }

    /// Says where new models are tried: `process` or `thread`.
    pub fn set_isolation(&self, mode: &'static str) {
        self.lock().isolation = Some(mode);
    }

    /// Where new models are tried, once that is decided.
    pub fn isolation(&self) -> Option<&'static str> {
        self.lock().isolation
    }

    /// Says from what the server became ready.
    pub fn set_bootstrapped(&self, from: Bootstrapped) {
        self.lock().bootstrapped = Some(from);
    }

    /// From what the server became ready; nothing while it is not.
    pub fn bootstrapped(&self) -> Option<Bootstrapped> {
        self.lock().bootstrapped
    }

    /// Says to what a slot is pinned, if it is.
    pub fn set_held(&self, slot: &Slot, held: Option<Held>) {
        let slots = &mut self.lock().held;
        match held {
            Some(held) => drop(slots.insert(slot.clone(), held)),
            None => drop(slots.remove(slot)),
        }
    }

    /// The slots that are pinned.
    pub fn held(&self) -> BTreeMap<Slot, Held> {
        self.lock().held.clone()
    }

    /// Says whether a slot is unloaded.
    pub fn set_unloaded(&self, slot: &Slot, unloaded: bool) {
        let slots = &mut self.lock().unloaded;
        if unloaded {
            slots.insert(slot.clone())
        } else {
            slots.remove(slot)
        };
    }

    /// Says what is being made ready, and nothing else is.
    pub fn set_loading<'s>(&self, slots: impl ExactSizeIterator<Item = &'s Slot>) {
        let loading = &mut self.lock().loading;
        // Most often it is nothing, as before.
        if slots.len() > 0 || !loading.is_empty() {
            *loading = slots.cloned().collect();
        }
    }

    /// The slots in which nothing may be served, and why. Some that are being made ready serve something meanwhile.
    pub fn absent(&self) -> BTreeMap<Slot, Absence> {
        let inner = self.lock();
        let loading = inner.loading.iter().map(|slot| (slot.clone(), Absence::Loading));
        loading.chain(inner.unloaded.iter().map(|slot| (slot.clone(), Absence::Unloaded))).collect()
    }

    /// Notes a swap, a rejection or a command.
    pub fn record(&self, entry: Entry) {
        self.lock().history.push(entry);
        self.news.send_replace(());
    }

    /// Takes in the history of an earlier run, before this one has any.
    fn remember(&self, lines: Vec<Line>) {
        let mut inner = self.lock();
        lines.into_iter().for_each(|line| inner.history.push_line(line));
    }

    /// The newest entries, newest first.
    pub fn history(&self, limit: usize) -> Vec<Arc<Line>> {
        self.lock().history.last(limit)
    }

    /// The entries that came after an id, oldest first. Some may be gone: the ids tell.
    pub fn after(&self, id: u64, limit: usize) -> Vec<Arc<Line>> {
        self.lock().history.after(id, limit)
    }

    /// The id of the newest entry there ever was; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.lock().history.newest()
    }

    /// Changes whenever the history has grown, and when the server is ready or begins to drain.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

/// A wall-clock time as the history shows it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
