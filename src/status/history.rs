//! The history: the last swaps and rejections, in a bounded ring that `/history`, `/events` and the file on disk read.
//!
//! A reader has no queue here: it remembers the id it has seen and takes what came after. One that is slow for so long
//! that the ring went round finds a gap in the ids.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::id::{KeyId, Slot};

/// How many entries are kept.
pub const KEPT: usize = 500;

/// Something was swapped in, or refused, or a slot was told what to serve.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Entry {
    /// Counts up from 1; with a cache folder it goes on counting after a restart.
    pub id: u64,
    /// When.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// What happened, in lower-case letters and underscores: `applied`, `rejected`, `pinned`, ….
    pub outcome: &'static str,
    /// Which slots; none if the message could not be read.
    pub slots: Vec<String>,
    /// Their versions, in the same order.
    pub versions: Vec<String>,
    /// Who wanted it, where it was a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// Why it was refused: the label of `hotserve_rejections_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The same for a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Where the message stood in the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_number: Option<String>,
    /// The model's digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Seconds that each stage took.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<&'static str, f64>,
    /// Seconds from publication to serving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_to_serving_seconds: Option<f64>,
    /// Whose signatures were good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub signers: Vec<KeyId>,
}

/// Who told a slot what to serve. The first wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// A setting of this instance.
    Setting,
    /// An operator, at this instance.
    Admin,
    /// A message, to every instance.
    Stream,
}

impl By {
    /// The label of metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Admin => "admin",
            Self::Stream => "stream",
        }
    }
}

impl Entry {
    /// An entry of now, to be filled in.
    pub fn new(outcome: &'static str, slots: impl IntoIterator<Item = (Slot, String)>) -> Self {
        let (slots, versions) = slots.into_iter().map(|(slot, version)| (slot.to_string(), version)).unzip();
        Self {
            id: 0,
            at: Timestamp::now(),
            outcome,
            slots,
            versions,
            by: None,
            reason: None,
            detail: None,
            sequence_number: None,
            digest: None,
            stages: BTreeMap::new(),
            publish_to_serving_seconds: None,
            signers: Vec::new(),
        }
    }
}

/// An entry as it is shown and kept: written out once, whoever reads it.
#[derive(Debug, Clone)]
pub struct Line {
    /// The entry's.
    pub id: u64,
    /// The entry's.
    pub outcome: Box<str>,
    /// The entry, as JSON in one line.
    pub json: Box<RawValue>,
}

impl Line {
    fn of(entry: &Entry) -> Self {
        let json = serde_json::value::to_raw_value(entry).expect("text and numbers are JSON");
        Self { id: entry.id, outcome: entry.outcome.into(), json }
    }

    /// Reads back what was kept; nothing where it is torn, or none of ours.
    pub fn parse(text: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Head {
            id: u64,
            outcome: Box<str>,
        }
        let text = std::str::from_utf8(text).ok()?;
        let Head { id, outcome } = serde_json::from_str(text).ok()?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        if !(1..=64).contains(&outcome.len()) || !outcome.bytes().all(plain) {
            return None;
        }
        let json = RawValue::from_string(text.to_owned()).ok()?;
        // It goes out as one line of an event; a bare return would end it.
        (!json.get().contains(['\n', '\r'])).then_some(Self { id, outcome, json })
    }
}

/// The ring. Ids only grow.
#[derive(Default)]
pub(super) struct History {
    lines: VecDeque<Arc<Line>>,
    /// The id of the newest entry ever.
    newest: u64,
}

impl History {
    /// Takes an entry in, and answers its id.
    pub(super) fn push(&mut self, mut entry: Entry) -> u64 {
        entry.id = self.newest + 1;
        self.push_line(Line::of(&entry));
        entry.id
    }

    /// Takes in what an earlier run wrote. What is not above the one before it is left out.
    pub(super) fn push_line(&mut self, line: Line) {
        // An id at the end of the numbers would leave none for the next.
        if line.id <= self.newest || line.id > u64::MAX / 2 {
            return;
        }
        self.newest = line.id;
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(Arc::new(line));
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The newest, newest first.
    pub(super) fn last(&self, limit: usize) -> Vec<Arc<Line>> {
        self.lines.iter().rev().take(limit).cloned().collect()
    }

    /// What came after an id, oldest first.
    pub(super) fn after(&self, id: u64, limit: usize) -> Vec<Arc<Line>> {
        let from = self.lines.partition_point(|line| line.id <= id);
        self.lines.iter().skip(from).take(limit).cloned().collect()
    }
}
