//! Every record by shard, with its arrival in milliseconds: what a reader gets, and when it is how far behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::SequenceNumber;

/// A record.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) sequence: SequenceNumber,
    pub(super) arrival_ms: u64,
    pub(super) partition_key: String,
    /// In base64, as it came.
    pub(super) data: String,
}

/// Where a reader is among the records of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// Before the first.
    Start,
    /// Before this one.
    At(SequenceNumber),
    /// Behind this one.
    After(SequenceNumber),
}

impl Place {
    fn is_behind(&self, entry: &Entry) -> bool {
        match self {
            Self::Start => false,
            Self::At(sequence) => entry.sequence < *sequence,
            Self::After(sequence) => entry.sequence <= *sequence,
        }
    }
}

/// Where a reader is: among the records, and in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    pub(super) place: Place,
    pub(super) at_ms: u64,
}

/// How much one page may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How far in the time of the shard it may look.
    pub(super) skip_ms: u64,
    pub(super) records: usize,
}

/// A page of a shard.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// Where the next one begins.
    pub(super) next: Cursor,
    /// From there to the tip.
    pub(super) behind_ms: u64,
    /// Whether no record is left behind it.
    pub(super) is_last: bool,
}

/// All streams.
#[derive(Debug, Default)]
pub(super) struct Index(BTreeMap<String, Stream>);

impl Index {
    pub(super) fn stream(&mut self, name: &str) -> Option<&mut Stream> {
        self.0.get_mut(name)
    }

    /// Begins a stream, or begins it anew.
    pub(super) fn create(&mut self, name: &str, now_ms: u64) -> &mut Stream {
        let stream = Stream { created_ms: now_ms, resharded_ms: now_ms, ..Stream::default() };
        self.0.insert(name.to_owned(), stream);
        self.0.entry(name.to_owned()).or_default()
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// No stream was created after this.
    pub(super) fn created_by(&mut self, ms: u64) {
        for stream in self.0.values_mut() {
            stream.created_ms = stream.created_ms.min(ms);
        }
    }

    pub(super) fn trim(&mut self, name: &str, horizon_ms: u64) {
        if let Some(stream) = self.stream(name) {
            stream.trim(horizon_ms);
        }
    }
}

/// A stream.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// When it was created.
    pub(super) created_ms: u64,
    /// When it was last resharded: children are born then.
    pub(super) resharded_ms: u64,
    horizon_ms: u64,
    shards: BTreeMap<String, Shard>,
}

impl Stream {
    /// A shard, which is made when it is first seen.
    pub(super) fn shard(&mut self, id: &str, is_child: bool) -> &mut Shard {
        let born_ms = if is_child { self.resharded_ms } else { self.created_ms };
        let shard = self.shards.entry(id.to_owned()).or_insert_with(|| Shard { born_ms, ..Shard::default() });
        if !is_child {
            shard.born_ms = shard.born_ms.min(self.created_ms);
        }
        shard.horizon_ms = self.horizon_ms;
        shard
    }

    /// A shard that was seen.
    pub(super) fn known(&mut self, id: &str) -> Option<&mut Shard> {
        self.shards.get_mut(id)
    }

    /// Forgets what arrived before.
    pub(super) fn trim(&mut self, horizon_ms: u64) {
        self.horizon_ms = self.horizon_ms.max(horizon_ms);
        for shard in self.shards.values_mut() {
            shard.trim(self.horizon_ms);
        }
    }
}

/// A shard.
#[derive(Debug, Default)]
pub(super) struct Shard {
    entries: Vec<Entry>,
    born_ms: u64,
    horizon_ms: u64,
    trimmed: Option<SequenceNumber>,
}

impl Shard {
    /// Adds a record, wherever its number belongs.
    pub(super) fn add(&mut self, entry: Entry) {
        let at = self.entries.partition_point(|other| other.sequence < entry.sequence);
        if self.entries.get(at).is_none_or(|other| other.sequence != entry.sequence) {
            self.entries.insert(at, entry);
        }
    }

    /// Whether a record of this number is gone.
    pub(super) fn is_trimmed(&self, sequence: &SequenceNumber) -> bool {
        self.trimmed.as_ref().is_some_and(|trimmed| sequence <= trimmed)
    }

    /// Before the oldest record there is.
    pub(super) fn start(&self) -> Cursor {
        Cursor { place: self.trimmed.clone().map_or(Place::Start, Place::After), at_ms: self.oldest_ms() }
    }

    /// Behind the newest.
    pub(super) fn tip(&self, now_ms: u64) -> Cursor {
        let newest = self.entries.last().map(|entry| &entry.sequence).or(self.trimmed.as_ref());
        Cursor { place: newest.cloned().map_or(Place::Start, Place::After), at_ms: now_ms }
    }

    /// Before the first record that arrived at a time or later.
    pub(super) fn at_time(&self, ms: u64, now_ms: u64) -> Cursor {
        let place = match self.entries.iter().find(|entry| entry.arrival_ms >= ms) {
            Some(entry) => Place::At(entry.sequence.clone()),
            None => self.tip(now_ms).place,
        };
        Cursor { place, at_ms: ms.max(self.oldest_ms()) }
    }

    /// A place among the records, at the time that the record there arrived.
    pub(super) fn at_place(&self, place: Place) -> Cursor {
        let at = self.entries.partition_point(|entry| place.is_behind(entry));
        // Behind a record is its time; before one is the time of that.
        let there = match place {
            Place::After(_) => at.checked_sub(1).and_then(|at| self.entries.get(at)),
            Place::Start | Place::At(_) => self.entries.get(at),
        };
        let at_ms = there.map_or(self.born_ms, |entry| entry.arrival_ms).max(self.oldest_ms());
        Cursor { place, at_ms }
    }

    /// The newest number behind a place.
    pub(super) fn before(&self, place: &Place) -> Option<&SequenceNumber> {
        let at = self.entries.partition_point(|entry| place.is_behind(entry));
        let entry = at.checked_sub(1).and_then(|at| self.entries.get(at));
        entry.map(|entry| &entry.sequence).or(self.trimmed.as_ref())
    }

    /// What a reader gets who asks here and now.
    pub(super) fn page(&self, from: &Cursor, now_ms: u64, limits: Limits) -> Page {
        let at_ms = from.at_ms.max(self.oldest_ms());
        let looked_ms = at_ms.saturating_add(limits.skip_ms);
        let start = self.entries.partition_point(|entry| from.place.is_behind(entry));
        let ahead = self.entries.get(start..).unwrap_or_default();
        let within = ahead.iter().take_while(|entry| entry.arrival_ms <= looked_ms).take(limits.records);
        let mut bytes = 0;
        let entries: Vec<Entry> = within.take_while(|entry| fits(&mut bytes, entry)).cloned().collect();
        let place = entries.last().map_or_else(|| from.place.clone(), |entry| Place::After(entry.sequence.clone()));
        let left = ahead.get(entries.len());
        let next_ms = match (left, entries.last()) {
            // It was full before its time was up.
            (Some(left), Some(last)) if left.arrival_ms <= looked_ms => at_ms.max(last.arrival_ms),
            _ => looked_ms.min(now_ms),
        };
        let behind_ms = now_ms.saturating_sub(next_ms).max(u64::from(left.is_some()));
        Page { entries, next: Cursor { place, at_ms: next_ms }, behind_ms, is_last: left.is_none() }
    }

    fn oldest_ms(&self) -> u64 {
        // The clock may have been moved back after the shard was made.
        let first = self.entries.first().map_or(u64::MAX, |entry| entry.arrival_ms);
        self.born_ms.min(first).max(self.horizon_ms)
    }

    fn trim(&mut self, horizon_ms: u64) {
        self.horizon_ms = horizon_ms;
        let gone = self.entries.iter().take_while(|entry| entry.arrival_ms < horizon_ms).count();
        if let Some(last) = self.entries.drain(..gone).next_back() {
            self.trimmed = Some(last.sequence);
        }
    }
}

/// A page has 10 MiB at most, and one record at least.
fn fits(bytes: &mut usize, entry: &Entry) -> bool {
    let first = *bytes == 0;
    *bytes += entry.data.len() / 4 * 3 + entry.partition_key.len() + 1;
    first || *bytes <= 10 << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;
    const LIMITS: Limits = Limits { skip_ms: 5 * MINUTE, records: 10_000 };

    fn number(number: u64) -> SequenceNumber {
        number.to_string().parse().unwrap()
    }

    /// A shard made at 0 with records that arrived then.
    fn shard(arrivals: &[u64]) -> Shard {
        let mut shard = Shard::default();
        for (n, arrival_ms) in arrivals.iter().enumerate() {
            let sequence = number(n as u64 + 1);
            shard.add(Entry { sequence, arrival_ms: *arrival_ms, partition_key: String::new(), data: String::new() });
        }
        shard
    }

    /// How many records each page has, and how far it is behind, until the tip.
    fn pages(shard: &Shard, mut cursor: Cursor, now_ms: u64, limits: Limits) -> Vec<(usize, u64)> {
        let mut pages = Vec::new();
        loop {
            let page = shard.page(&cursor, now_ms, limits);
            pages.push((page.entries.len(), page.behind_ms));
            cursor = page.next;
            if page.behind_ms == 0 {
                return pages;
            }
        }
    }

    #[test]
    fn quiet_time_is_empty_pages_that_say_how_far_it_is() {
        let shard = shard(&[60 * MINUTE]);
        let pages = pages(&shard, shard.start(), 120 * MINUTE, LIMITS);
        assert_eq!(pages.len(), 24, "two hours, five minutes a page");
        assert_eq!(pages[0], (0, 115 * MINUTE));
        assert_eq!(pages[11], (1, 60 * MINUTE), "the record is at the end of the twelfth");
        assert_eq!(pages[23], (0, 0));
    }

    #[test]
    fn a_full_page_ends_at_its_last_record() {
        let shard = shard(&[MINUTE, 2 * MINUTE, 3 * MINUTE]);
        let pages = pages(&shard, shard.start(), 4 * MINUTE, Limits { records: 2, ..LIMITS });
        assert_eq!(pages, [(2, 2 * MINUTE), (1, 0)]);
    }

    #[test]
    fn a_record_of_this_very_millisecond_is_still_ahead() {
        let shard = shard(&[MINUTE, MINUTE]);
        let page = shard.page(&shard.start(), MINUTE, Limits { records: 1, ..LIMITS });
        assert_eq!((page.behind_ms, page.is_last), (1, false), "0 would say that there is no more");
    }

    #[test]
    fn a_time_finds_the_first_record_from_then_on() {
        let shard = shard(&[1_000, 2_000, 3_000]);
        let first =
            |ms: u64| shard.page(&shard.at_time(ms, 9_000), 9_000, LIMITS).entries.first().map(|e| e.arrival_ms);
        assert_eq!(first(0), Some(1_000));
        assert_eq!(first(2_000), Some(2_000));
        assert_eq!(first(2_001), Some(3_000));
        assert_eq!(first(3_001), None);
    }

    #[test]
    fn a_place_is_at_or_after_its_record() {
        let shard = shard(&[1_000, 2_000, 3_000]);
        let first =
            |place: Place| shard.page(&shard.at_place(place), 9_000, LIMITS).entries.first().map(|e| e.arrival_ms);
        assert_eq!(first(Place::At(number(2))), Some(2_000));
        assert_eq!(first(Place::After(number(2))), Some(3_000));
        assert_eq!(first(Place::After(number(3))), None);
        assert_eq!(shard.at_place(Place::After(number(2))).at_ms, 2_000);
    }

    #[test]
    fn what_is_trimmed_is_gone_and_a_reader_goes_on_behind_it() {
        let mut shard = shard(&[1_000, 2_000, 3_000]);
        let reader = shard.at_place(Place::After(number(1)));
        shard.trim(2_500);
        assert!(shard.is_trimmed(&number(2)) && !shard.is_trimmed(&number(3)));
        for cursor in [reader, shard.start(), shard.at_time(0, 9_000)] {
            let page = shard.page(&cursor, 9_000, LIMITS);
            assert_eq!(page.entries.iter().map(|entry| entry.arrival_ms).collect::<Vec<_>>(), [3_000]);
        }
        shard.trim(9_001);
        assert!(shard.page(&shard.start(), 9_000, LIMITS).entries.is_empty());
        assert_eq!(shard.start().place, Place::After(number(3)));
    }
}
