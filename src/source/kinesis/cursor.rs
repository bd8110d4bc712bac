//! One shard's reader as a pure state machine: it says what to ask of Kinesis next, and takes in the answers.
//!
//! ```text
//!            ┌── nothing yet: widen ──┐
//!            ▼                        │
//!   Seek: iterator at T0−w ─► pages ──┴─ something, and the tip ─► Follow: pages, for ever ─► end of the shard
//! ```
//!
//! **Seek** finds the last message without reading the whole retention: it looks at the last 10 s, then the last 40 s,
//! and so on (four times as far each time), until a window holds a record or reaches the oldest one kept. A window that
//! was read to the tip and was empty need not be read again, but for a margin against clocks that disagree.
//!
//! An empty page is no end: Kinesis answers with empty pages while it looks through a quiet shard. The tip is an empty
//! page that is 0 ms behind; some stand-ins always say 0, so that a page with records is never taken for the tip, and
//! AWS at times says more than 0 at an idle tip, so that a distance that does not shrink is.

use bytes::Bytes;

use crate::id::{Position, SequenceNumber, ShardId};
use crate::source::{Record, aggregate};

/// The first window of a seek.
const FIRST_WINDOW_MS: u64 = 10_000;
/// How much further back each window reaches.
const WIDEN: u64 = 4;
/// How far arrival times may disagree with the clock that stamps answers.
const MARGIN_MS: u64 = 60_000;
/// The same for a place found by time although a record was read: what a sequence number would tell for sure.
const LONG_MARGIN_MS: u64 = 600_000;
/// So many pages in a row without a next iterator are the end of a shard, whatever the listing says.
const ENDINGS: u32 = 10;
/// So many empty pages in a row that do not come closer to the tip are the tip.
const STUCK: u32 = 5;

/// Where an iterator begins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anchor {
    /// The oldest record that is kept.
    TrimHorizon,
    /// The first record that arrived at or after this time, in milliseconds since 1970.
    AtTime(u64),
    /// This place, and what comes after it.
    At(SequenceNumber),
    /// The record after this one.
    After(SequenceNumber),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Get an iterator there.
    Iterator(Anchor),
    /// Get the records at this iterator.
    Records(String),
    /// Nothing: there is no more to read.
    Done,
}

/// Where a cursor begins.
#[derive(Debug, Clone)]
pub enum Start {
    /// Some way back, and followed from there.
    Seek(Range),
    /// There, and followed.
    Follow(Anchor),
}

/// How far back a seek looks.
#[derive(Debug, Clone)]
pub struct Range {
    /// The service's time.
    pub now_ms: u64,
    /// How far back to read at least.
    pub window_ms: u64,
    /// Whether to look further back until there is a record.
    pub widen: bool,
    /// Nothing is older than this.
    pub oldest_ms: u64,
    /// Whether to stop at the end of what was found: the shard is closed, and only its last record matters.
    pub history: bool,
}

/// A page of records.
#[derive(Debug, Default)]
pub struct Page {
    /// The records: sequence number, arrival time in milliseconds since 1970, data.
    pub records: Vec<(SequenceNumber, u64, Bytes)>,
    /// The iterator of the next page; none at the end of a closed shard.
    pub next: Option<String>,
    /// How far the end of this page is behind the tip.
    pub behind_ms: u64,
}

/// What a subscription delivers at a time.
#[derive(Debug, Default)]
pub struct Delivery {
    /// As in a page.
    pub records: Vec<(SequenceNumber, u64, Bytes)>,
    /// Where the next subscription goes on; it moves on without records too.
    pub continuation: Option<SequenceNumber>,
    /// How far this is behind the tip.
    pub behind_ms: u64,
    /// Whether it was the last one of a closed shard.
    pub ended: bool,
}

/// What a page meant.
#[derive(Debug, Default)]
pub struct Step {
    /// The records that are new.
    pub records: Vec<Record>,
    /// Whether the newest part of the shard, as far back as the first window, has been read.
    pub fresh: bool,
    /// Whether the seek is over, and whether it found a record.
    pub sought: Option<bool>,
    /// Whether the shard has ended.
    pub ended: bool,
    /// Whether it would have, if the listing agreed.
    pub doubtful: bool,
}

/// Reads one shard.
#[derive(Debug)]
pub struct Cursor {
    shard: ShardId,
    era: u64,
    seek: Option<Seek>,
    iterator: Option<String>,
    /// The last record that was handed on.
    last: Option<SequenceNumber>,
    /// Where the last subscription stopped.
    continuation: Option<SequenceNumber>,
    /// Where to begin while there is no such record.
    anchor: Anchor,
    /// What came before is not wanted.
    not_before_ms: u64,
    /// The latest arrival time so far, this shard's ancestors included.
    arrival_ms: u64,
    at_tip: bool,
    /// How far the last page was behind the tip, as it said.
    behind_ms: u64,
    /// How many empty pages in a row came no closer to the tip, and how far the last one was.
    stuck: (u32, u64),
    /// How many pages in a row had no next iterator.
    endings: u32,
    /// Listed as closed: the next sight of the tip is the end.
    closed: bool,
    done: bool,
}

#[derive(Debug)]
struct Seek {
    started_ms: u64,
    oldest_ms: u64,
    history: bool,
    widen: bool,
    window_ms: u64,
    /// The window before, read to the tip and empty.
    empty_ms: Option<u64>,
    /// The iterator at the tip of the first window: nothing between it and what is served may be missed.
    tip: Option<String>,
    found: bool,
}

impl Seek {
    fn anchor(&self) -> Anchor {
        match self.started_ms.checked_sub(self.window_ms) {
            Some(at) if at > self.oldest_ms => Anchor::AtTime(at),
            _ => Anchor::TrimHorizon,
        }
    }

    fn exhausted(&self) -> bool {
        !self.widen || self.anchor() == Anchor::TrimHorizon
    }

    /// Whether a page ends in what the window before has shown to be empty.
    fn reached_empty(&self, end_ms: u64) -> bool {
        self.empty_ms.is_some_and(|empty_ms| end_ms > self.started_ms.saturating_sub(empty_ms) + MARGIN_MS)
    }
}

impl Cursor {
    /// A cursor that has asked nothing yet. `arrival_ms` is the latest arrival in the shard's ancestors.
    pub fn new(shard: ShardId, era: u64, arrival_ms: u64, start: Start) -> Self {
        let mut not_before_ms = 0;
        let (seek, anchor, last) = match start {
            Start::Seek(Range { now_ms, window_ms, widen, oldest_ms, history }) => {
                if !widen {
                    not_before_ms = now_ms.saturating_sub(window_ms);
                }
                let seek = Seek {
                    started_ms: now_ms,
                    oldest_ms,
                    history,
                    widen,
                    // Never nothing: widening multiplies.
                    window_ms: if widen { window_ms.max(FIRST_WINDOW_MS) } else { window_ms },
                    empty_ms: None,
                    tip: None,
                    found: false,
                };
                let anchor = seek.anchor();
                (Some(seek), anchor, None)
            }
            Start::Follow(Anchor::After(last)) => (None, Anchor::TrimHorizon, Some(last)),
            Start::Follow(anchor) => (None, anchor, None),
        };
        Self {
            shard,
            era,
            seek,
            iterator: None,
            last,
            continuation: None,
            anchor,
            not_before_ms,
            arrival_ms,
            at_tip: false,
            behind_ms: 0,
            stuck: (0, u64::MAX),
            endings: 0,
            closed: false,
            done: false,
        }
    }

    /// What to do next.
    pub fn ask(&self) -> Ask {
        match &self.iterator {
            _ if self.done => Ask::Done,
            Some(iterator) => Ask::Records(iterator.clone()),
            None => Ask::Iterator(self.resume()),
        }
    }

    fn resume(&self) -> Anchor {
        let Some(last) = &self.last else { return self.anchor.clone() };
        // Behind the last record may lie hours without any, and each takes a dozen empty pages to cross.
        match self.anchor {
            Anchor::AtTime(at_ms) if at_ms > self.arrival_ms + 2 * LONG_MARGIN_MS => {
                Anchor::AtTime(at_ms - LONG_MARGIN_MS)
            }
            _ => Anchor::After(last.clone()),
        }
    }

    /// Where a subscription begins.
    pub fn subscribe_at(&self) -> Anchor {
        self.continuation.clone().map_or_else(|| self.resume(), Anchor::At)
    }

    /// Whether it still looks back.
    pub fn is_seeking(&self) -> bool {
        self.seek.is_some()
    }

    /// Whether there is much to catch up with, so that the next page is wanted sooner than at the usual interval.
    pub fn is_behind(&self, interval_ms: u64) -> bool {
        self.seek.is_some() || (!self.at_tip && self.behind_ms > interval_ms.max(1000))
    }

    /// The last record handed on, and the latest arrival time.
    pub fn progress(&self) -> (Option<&SequenceNumber>, u64) {
        (self.last.as_ref(), self.arrival_ms)
    }

    /// The listing says that the shard is closed. Some stand-ins never end a closed shard by themselves.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Takes in the iterator that was asked for.
    pub fn on_iterator(&mut self, iterator: String) {
        self.iterator = Some(iterator);
    }

    /// The iterator is too old: begin again behind the last record, never at the newest.
    pub fn on_expired(&mut self) {
        self.iterator = None;
        // The same pages come again: that they come no closer to the tip says nothing.
        self.stuck = (0, u64::MAX);
    }

    /// Kinesis does not take the iterator, or the place to begin. Answers whether records may have been lost: the
    /// place is before the oldest record that is kept.
    pub fn on_invalid(&mut self) -> bool {
        self.stuck = (0, u64::MAX);
        if self.iterator.take().is_some() || self.continuation.take().is_some() {
            return false;
        }
        match self.resume() {
            Anchor::After(_) => {
                self.last = None;
                self.anchor = Anchor::TrimHorizon;
                true
            }
            Anchor::AtTime(at) => {
                // In the future of the service's clock.
                self.anchor = Anchor::AtTime(at.saturating_sub(MARGIN_MS));
                false
            }
            Anchor::TrimHorizon | Anchor::At(_) => false,
        }
    }

    /// Takes in what a subscription delivered. `now_ms` is the service's time.
    pub fn on_delivery(&mut self, delivery: Delivery, now_ms: u64) -> Step {
        // An iterator from before the subscription is behind it.
        self.iterator = None;
        let empty = delivery.records.is_empty();
        let mut step = Step { records: self.take(delivery.records), ..Step::default() };
        self.behind_ms = delivery.behind_ms;
        self.continuation = delivery.continuation.or(self.continuation.take());
        self.at_tip = empty && self.is_tip(delivery.behind_ms);
        if !empty {
            self.stuck = (0, u64::MAX);
        }
        if self.at_tip {
            self.anchor_before(now_ms.saturating_sub(delivery.behind_ms));
        }
        step.ended = delivery.ended || (self.closed && self.at_tip);
        self.done = step.ended;
        step
    }

    /// Takes in a page. `now_ms` is the service's time.
    pub fn on_page(&mut self, page: Page, now_ms: u64) -> Step {
        let empty = page.records.is_empty();
        // Where this page ends: at its last record, or as far from the tip as it says. Stand-ins that are never behind
        // are not, whatever they say, while they have records.
        let end_ms =
            page.records.last().map_or(now_ms.saturating_sub(page.behind_ms), |(_, arrival_ms, _)| *arrival_ms);
        // Those that are never behind are at least as far as their records are old.
        self.behind_ms = page.behind_ms.max(if empty { 0 } else { now_ms.saturating_sub(end_ms) });
        // What a poll read, the next subscription need not deliver again.
        self.continuation = None;
        let mut step = Step { records: self.take(page.records), ..Step::default() };
        self.at_tip = empty && self.is_tip(page.behind_ms);
        if !empty {
            self.stuck = (0, u64::MAX);
        }
        if let Some(seek) = &mut self.seek {
            seek.found |= !empty;
        }
        self.endings = if page.next.is_none() { self.endings + 1 } else { 0 };
        if page.next.is_none()
            && self.endings < ENDINGS
            && (page.behind_ms > 0 || (self.seek.is_some() && !self.closed))
        {
            // Some answers lack the next iterator although the shard goes on.
            step.doubtful = true;
            self.on_expired();
        } else if self.seek.is_some() {
            self.on_seek_page(page.next, end_ms, &mut step);
        } else if page.next.is_none() || (self.closed && self.at_tip) {
            step.ended = true;
            self.done = true;
        } else {
            self.iterator = page.next;
            if self.at_tip {
                self.anchor_before(now_ms.saturating_sub(page.behind_ms));
            }
        }
        step
    }

    /// The records that are new, with their places.
    fn take(&mut self, records: Vec<(SequenceNumber, u64, Bytes)>) -> Vec<Record> {
        let mut taken = Vec::with_capacity(records.len());
        for (sequence, arrival_ms, data) in records {
            if self.last.as_ref().is_some_and(|last| sequence <= *last) {
                continue;
            }
            self.arrival_ms = self.arrival_ms.max(arrival_ms);
            self.last = Some(sequence.clone());
            let (era, arrival_ms, shard) = (self.era, self.arrival_ms, self.shard.clone());
            taken.extend(aggregate::expand(Position { era, arrival_ms, shard, sequence, subsequence: 0 }, data));
        }
        taken
    }

    fn is_tip(&mut self, behind_ms: u64) -> bool {
        let (count, before) = self.stuck;
        self.stuck = if behind_ms.saturating_add(1000) >= before { (count + 1, behind_ms) } else { (0, behind_ms) };
        behind_ms == 0 || self.stuck.0 >= STUCK
    }

    fn on_seek_page(&mut self, next: Option<String>, end_ms: u64, step: &mut Step) {
        let Some(seek) = &mut self.seek else { return };
        let ended = next.is_none();
        let reached_empty = seek.reached_empty(end_ms);
        if !ended && !self.at_tip && !reached_empty {
            self.iterator = next;
            // Should the iterator expire: not from the start of the window again.
            let reached_ms = end_ms.saturating_sub(MARGIN_MS);
            if self.last.is_none() && (self.anchor == Anchor::TrimHorizon || self.anchor < Anchor::AtTime(reached_ms)) {
                self.anchor = Anchor::AtTime(reached_ms.max(self.not_before_ms));
            }
            return;
        }
        if self.at_tip && (seek.found || seek.tip.is_none()) {
            seek.tip = next.or(seek.tip.take());
        }
        step.fresh = true;
        if !seek.found && !seek.exhausted() {
            seek.empty_ms = Some(seek.window_ms);
            seek.window_ms = seek.window_ms.saturating_mul(WIDEN);
            self.anchor = seek.anchor();
            self.iterator = None;
            self.stuck = (0, u64::MAX);
            return;
        }
        step.sought = Some(seek.found);
        step.ended = ended;
        self.done = ended || seek.history;
        self.iterator = seek.tip.take();
        let started_ms = seek.started_ms;
        self.seek = None;
        self.anchor_before(started_ms);
    }

    /// All that arrived until then has been read, but for clocks that disagree.
    fn anchor_before(&mut self, at_ms: u64) {
        self.anchor = Anchor::AtTime(at_ms.saturating_sub(MARGIN_MS).max(self.not_before_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: u64 = 1_800_000_000_000;

    /// A shard of records (arrival, sequence) behind a clock, that serves pages as Kinesis does.
    struct Fake {
        records: Vec<(u64, u64)>,
        page_records: usize,
        /// How much quiet time one empty page skips.
        skip_ms: u64,
        closed: bool,
        always_zero_behind: bool,
        calls: usize,
    }

    impl Fake {
        fn new(records: Vec<(u64, u64)>) -> Self {
            Self { records, page_records: 10_000, skip_ms: 300_000, closed: false, always_zero_behind: false, calls: 0 }
        }

        /// An iterator is "time:sequence": everything from that time on with a higher sequence number.
        fn iterator(&self, anchor: &Anchor) -> String {
            match anchor {
                Anchor::TrimHorizon => format!("{}:0", T0 - 86_400_000),
                Anchor::AtTime(at) => {
                    // The cursor stands at the first record that arrived then or later, and what follows it.
                    let first = self.records.iter().find(|(arrival, _)| arrival >= at);
                    let newest = self.records.iter().map(|(_, sequence)| *sequence).max().unwrap_or(0);
                    format!("{at}:{}", first.map_or(newest, |(_, sequence)| sequence - 1))
                }
                Anchor::At(sequence) | Anchor::After(sequence) => {
                    let number: u64 = sequence.as_str().parse().expect("a small number");
                    let arrival = self.records.iter().find(|(_, s)| *s == number).map_or(T0, |(arrival, _)| *arrival);
                    format!("{arrival}:{number}")
                }
            }
        }

        fn page(&mut self, iterator: &str, now_ms: u64) -> Page {
            self.calls += 1;
            let (at, after) = iterator.split_once(':').expect("an iterator of ours");
            let (at, after): (u64, u64) = (at.parse().expect("time"), after.parse().expect("number"));
            let mut rest = self.records.iter().filter(|(_, sequence)| *sequence > after).peekable();
            let horizon = at + self.skip_ms;
            let (records, end) = match rest.peek() {
                Some((arrival, _)) if *arrival <= horizon => {
                    let taken: Vec<_> = rest.by_ref().take(self.page_records).copied().collect();
                    let last = *taken.last().expect("at least one");
                    (taken, last)
                }
                // A quiet stretch: an empty page on the way, or the tip.
                _ => (vec![], (horizon.min(now_ms), after)),
            };
            let more = rest.peek().is_some() || (records.is_empty() && end.0 < now_ms);
            Page {
                behind_ms: if more && !self.always_zero_behind { now_ms.saturating_sub(end.0).max(1) } else { 0 },
                next: (more || !self.closed).then(|| format!("{}:{}", end.0, end.1)),
                records: records
                    .into_iter()
                    .map(|(arrival, sequence)| (sequence.to_string().parse().expect("digits"), arrival, Bytes::new()))
                    .collect(),
            }
        }
    }

    fn shard() -> ShardId {
        "shardId-000000000000".parse().expect("a shard id")
    }

    fn seek(history: bool) -> Cursor {
        let range = Range { now_ms: T0, window_ms: 0, widen: true, oldest_ms: T0 - 86_400_000, history };
        Cursor::new(shard(), 1, 0, Start::Seek(range))
    }

    /// Runs a cursor until its seek is over, and answers the sequence numbers it handed on.
    fn find(cursor: &mut Cursor, fake: &mut Fake) -> (bool, Vec<String>) {
        let mut seen = vec![];
        for _ in 0..10_000 {
            match cursor.ask() {
                Ask::Iterator(anchor) => cursor.on_iterator(fake.iterator(&anchor)),
                Ask::Records(iterator) => {
                    let step = cursor.on_page(fake.page(&iterator, T0), T0);
                    seen.extend(step.records.iter().map(|record| record.position.sequence.to_string()));
                    if let Some(found) = step.sought {
                        return (found, seen);
                    }
                }
                Ask::Done => break,
            }
        }
        unreachable!("the seek does not end");
    }

    /// Reads on until the tip.
    fn follow(cursor: &mut Cursor, fake: &mut Fake) -> Vec<String> {
        let mut seen = vec![];
        for _ in 0..10_000 {
            match cursor.ask() {
                Ask::Iterator(anchor) => cursor.on_iterator(fake.iterator(&anchor)),
                Ask::Records(iterator) => {
                    let step = cursor.on_page(fake.page(&iterator, T0), T0);
                    seen.extend(step.records.iter().map(|record| record.position.sequence.to_string()));
                    if cursor.at_tip {
                        return seen;
                    }
                }
                Ask::Done => return seen,
            }
        }
        unreachable!("the tip is never reached");
    }

    #[test]
    fn a_recent_message_is_found_without_reading_the_retention() {
        // Age of the last record in seconds, and the calls that the model of the algorithm predicts, where an empty page
        // skips five minutes.
        for (age_s, calls) in [(2, 5), (60, 8), (900, 18), (3600, 46)] {
            let old =
                (0..1000).map(|n| (T0 - 86_000_000 + n * 60_000, n + 1)).filter(|(at, _)| *at < T0 - age_s * 1000);
            let mut records: Vec<_> = old.collect();
            records.push((T0 - age_s * 1000, 5000));
            let mut fake = Fake::new(records);
            let (found, seen) = find(&mut seek(false), &mut fake);
            assert!(found);
            assert_eq!(seen.last().map(String::as_str), Some("5000"), "the last record, {age_s} s old");
            assert!(fake.calls <= calls, "{} calls for a record {age_s} s old", fake.calls);
        }
    }

    #[test]
    fn a_quiet_stream_is_searched_to_its_end() {
        let mut fake = Fake::new(vec![(T0 - 80_000_000, 7)]);
        assert_eq!(find(&mut seek(false), &mut fake), (true, vec!["7".to_owned()]));
        let mut fake = Fake::new(vec![]);
        assert_eq!(find(&mut seek(false), &mut fake), (false, vec![]));
    }

    #[test]
    fn a_stand_in_that_is_never_behind_is_read_to_the_last_page() {
        let mut fake = Fake::new((1..=25).map(|n| (T0 - 5_000 + n, n)).collect());
        fake.page_records = 10;
        fake.always_zero_behind = true;
        let (_, seen) = find(&mut seek(false), &mut fake);
        assert_eq!(seen.len(), 25);
    }

    #[test]
    fn an_idle_tip_that_claims_to_be_behind_ends_the_seek() {
        let mut cursor = seek(false);
        for _ in 0..1000 {
            match cursor.ask() {
                Ask::Iterator(_) => cursor.on_iterator("i".to_owned()),
                Ask::Records(_) => {
                    let page = Page { records: vec![], next: Some("i".to_owned()), behind_ms: 1234 };
                    if cursor.on_page(page, T0).sought.is_some() {
                        return;
                    }
                }
                Ask::Done => unreachable!("the shard is open"),
            }
        }
        unreachable!("the seek does not end");
    }

    #[test]
    fn what_arrives_during_the_seek_is_not_missed() {
        // The first window is empty; then a record arrives, while older windows are searched.
        let mut fake = Fake::new(vec![(T0 - 3_000_000, 7)]);
        let mut cursor = seek(false);
        let Ask::Iterator(anchor) = cursor.ask() else { unreachable!("an iterator comes first") };
        cursor.on_iterator(fake.iterator(&anchor));
        let Ask::Records(iterator) = cursor.ask() else { unreachable!("then records") };
        assert!(cursor.on_page(fake.page(&iterator, T0), T0).records.is_empty());
        fake.records.push((T0, 8));
        let (found, mut seen) = find(&mut cursor, &mut fake);
        assert!(found);
        fake.records.push((T0, 9));
        seen.extend(follow(&mut cursor, &mut fake));
        assert_eq!(seen, ["8", "9"]);
    }

    #[test]
    fn an_expired_iterator_resumes_behind_the_last_record_and_never_at_the_newest() {
        let mut fake = Fake::new(vec![(T0 - 1000, 7)]);
        let mut cursor = seek(false);
        find(&mut cursor, &mut fake);
        cursor.on_expired();
        assert_eq!(cursor.ask(), Ask::Iterator(Anchor::After("7".parse().expect("digits"))));

        let mut fake = Fake::new(vec![]);
        let mut cursor = seek(false);
        find(&mut cursor, &mut fake);
        cursor.on_expired();
        assert_eq!(cursor.ask(), Ask::Iterator(Anchor::AtTime(T0 - MARGIN_MS)), "before anything that is not yet seen");
    }

    #[test]
    fn a_trimmed_place_is_a_gap_and_a_refused_iterator_is_none() {
        let mut cursor = Cursor::new(shard(), 1, 0, Start::Follow(Anchor::After("7".parse().expect("digits"))));
        assert!(cursor.on_invalid());
        assert_eq!(cursor.ask(), Ask::Iterator(Anchor::TrimHorizon));
        cursor.on_iterator("i".to_owned());
        assert!(!cursor.on_invalid());
        assert_eq!(cursor.ask(), Ask::Iterator(Anchor::TrimHorizon));
    }

    #[test]
    fn a_closed_shard_ends_by_itself_or_at_its_tip_once_it_is_listed_as_closed() {
        let follow_from = || Cursor::new(shard(), 1, 0, Start::Follow(Anchor::TrimHorizon));
        let mut fake = Fake::new(vec![(T0 - 1000, 7)]);
        fake.closed = true;
        let mut cursor = follow_from();
        assert_eq!(follow(&mut cursor, &mut fake), ["7"]);
        assert_eq!(cursor.ask(), Ask::Done);

        fake.closed = false;
        let mut cursor = follow_from();
        follow(&mut cursor, &mut fake);
        assert_ne!(cursor.ask(), Ask::Done);
        cursor.close();
        let Ask::Records(iterator) = cursor.ask() else { unreachable!("it follows") };
        assert!(cursor.on_page(fake.page(&iterator, T0), T0).ended);
        assert_eq!(cursor.ask(), Ask::Done);
    }

    #[test]
    fn the_history_of_a_closed_shard_is_its_last_record_and_no_more() {
        for closed in [true, false] {
            let mut fake = Fake::new(vec![(T0 - 50_000_000, 6), (T0 - 40_000_000, 7)]);
            fake.closed = closed;
            let mut cursor = seek(true);
            let (found, seen) = find(&mut cursor, &mut fake);
            assert!(found && seen.last().is_some_and(|last| last == "7"), "{seen:?}");
            assert_eq!(cursor.ask(), Ask::Done);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever the history, the seek ends with the last record, and what follows has no gap.
        #[test]
        fn the_last_record_is_always_found(
            ages_s in proptest::collection::vec(0_u64..86_000, 0..40),
            jitter_ms in proptest::collection::vec(0_u64..4_000, 40),
            arrivals in proptest::collection::vec(0_usize..60, 0..5),
            page_records in 1_usize..4,
            skip_ms in prop_oneof![Just(60_000_u64), Just(300_000), Just(3_000_000)],
            always_zero_behind: bool,
            expire_every in prop_oneof![2_usize..50, Just(usize::MAX)],
        ) {
            let mut ages = ages_s;
            ages.sort_unstable();
            let records: Vec<(u64, u64)> = ages
                .iter()
                .rev()
                .zip(1..)
                .zip(&jitter_ms)
                .map(|((age, sequence), jitter)| ((T0 - age * 1000).saturating_sub(*jitter), sequence))
                .collect();
            // A stand-in that is never behind has no empty pages in front of records either.
            let skip_ms = if always_zero_behind { 86_400_000 } else { skip_ms };
            let mut fake = Fake { page_records, skip_ms, always_zero_behind, ..Fake::new(records.clone()) };
            let mut cursor = seek(false);
            let mut seen: Vec<String> = vec![];
            let mut sequence = records.len() as u64;
            let (mut sought, mut at_end) = (false, 0);
            for turn in 0..20_000_usize {
                if arrivals.contains(&turn) {
                    sequence += 1;
                    fake.records.push((T0, sequence));
                }
                match cursor.ask() {
                    Ask::Iterator(anchor) => cursor.on_iterator(fake.iterator(&anchor)),
                    Ask::Records(_) if turn % expire_every == 0 && turn < 200 => cursor.on_expired(),
                    Ask::Records(iterator) => {
                        let step = cursor.on_page(fake.page(&iterator, T0), T0);
                        seen.extend(step.records.iter().map(|record| record.position.sequence.to_string()));
                        sought |= step.sought.is_some();
                        at_end = if sought && cursor.at_tip { at_end + 1 } else { 0 };
                    }
                    Ask::Done => break,
                }
                if at_end > 2 && turn > 60 {
                    break;
                }
            }
            prop_assert!(sought);
            prop_assert_eq!(seen.last().cloned(), (sequence > 0).then(|| sequence.to_string()));
            let numbers: Vec<u64> = seen.iter().map(|number| number.parse().expect("a small number")).collect();
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once: {:?}", numbers);
            if let Some(first) = numbers.iter().position(|number| *number > records.len() as u64) {
                let later = &numbers[first..];
                prop_assert!(later.windows(2).all(|pair| pair[0] + 1 == pair[1]), "no gap: {:?}", numbers);
            }
        }
    }
}
