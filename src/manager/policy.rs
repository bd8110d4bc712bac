//! Which content a slot should have: pure, and the same whatever the order in which messages come.
//!
//! A slot remembers what it serves and the few newest candidates above it. The newest candidate is worked on first;
//! when it is served, the ones below are superseded; when it is refused, the next one gets its turn; when it cannot be
//! had for now, it is deferred: the next one gets its turn, and it comes back. So the end is
//! always the newest content that passes the gates, however the messages and the loads were timed.

use crate::id::{Digest, Rank};

/// How many candidates a slot remembers.
const CANDIDATES: usize = 8;

/// What one slot serves and may come to serve.
#[derive(Debug)]
pub struct Book<T> {
    served: Option<Mark>,
    /// What readers have seen before, though it cannot be served now: nothing below it may be.
    floor: Option<Rank>,
    /// Whether a version has been seen: from then on, messages without one are refused.
    versioned: bool,
    /// Newest first.
    candidates: Vec<Candidate<T>>,
}

#[derive(Debug)]
struct Candidate<T> {
    mark: Mark,
    deferred: bool,
    update: T,
}

/// A content, by its rank and identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its place in the slot's order.
    pub rank: Rank,
    /// What tells it from other contents of the same rank.
    pub content: Digest,
    /// How it was announced: where it is, in which format, and so on.
    pub announcement: Digest,
}

/// What to do with a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may come to be served.
    Admit,
    /// It is served, or a candidate, already.
    Duplicate,
    /// It is a candidate already, announced in another way: the new announcement takes the old one's place.
    Correction,
    /// Something newer is served.
    Stale,
    /// Another content has the same rank: the first one stays.
    Conflict,
    /// It has no version, and the slot has seen versions.
    Unversioned,
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self { served: None, floor: None, versioned: false, candidates: Vec::new() }
    }
}

impl<T> Book<T> {
    /// Judges a newcomer; changes nothing.
    pub fn judge(&self, mark: &Mark) -> Verdict {
        if let Some(served) = self.served.as_ref().filter(|served| served.rank == mark.rank) {
            return if served.content == mark.content { Verdict::Duplicate } else { Verdict::Conflict };
        }
        if let Some(known) = self.candidates.iter().map(|known| &known.mark).find(|known| known.rank == mark.rank) {
            return if known == mark {
                Verdict::Duplicate
            } else if known.content == mark.content {
                Verdict::Correction
            } else {
                Verdict::Conflict
            };
        }
        if self.versioned && matches!(mark.rank, Rank::Stream(_)) {
            return Verdict::Unversioned;
        }
        let below_served = self.served.as_ref().is_some_and(|served| !mark.rank.is_above(&served.rank));
        let below_floor = self.floor.as_ref().is_some_and(|floor| floor.is_above(&mark.rank));
        if below_served || below_floor { Verdict::Stale } else { Verdict::Admit }
    }

    /// Readers have seen this rank: nothing below it comes any more.
    pub fn raise_floor(&mut self, rank: Rank) {
        self.versioned |= matches!(rank, Rank::Version(_));
        self.floor = Some(rank);
    }

    /// Takes in a newcomer that was judged `Admit` or `Correction`. Answers the candidate that had to make room.
    pub fn admit(&mut self, mark: Mark, update: T) -> Option<T> {
        if let Some(known) = self.candidates.iter_mut().find(|known| known.mark.rank == mark.rank) {
            let old = std::mem::replace(known, Candidate { mark, deferred: false, update });
            return Some(old.update);
        }
        let place = self.candidates.iter().position(|other| mark.rank.is_above(&other.mark.rank));
        let place = place.unwrap_or(self.candidates.len());
        self.candidates.insert(place, Candidate { mark, deferred: false, update });
        if self.candidates.len() > CANDIDATES { self.candidates.pop().map(|ousted| ousted.update) } else { None }
    }

    /// The candidate to work on.
    pub fn aspired(&self) -> Option<&T> {
        self.candidates.iter().find(|candidate| !candidate.deferred).map(|candidate| &candidate.update)
    }

    /// A candidate cannot be had for now: the next one gets its turn meanwhile.
    pub fn defer(&mut self, is_it: impl Fn(&T) -> bool) {
        for candidate in self.candidates.iter_mut().filter(|candidate| is_it(&candidate.update)) {
            candidate.deferred = true;
        }
    }

    /// Deferred candidates get another turn.
    pub fn revive(&mut self) {
        for candidate in &mut self.candidates {
            candidate.deferred = false;
        }
    }

    /// Whether nothing is or was served, and nothing may come to be.
    pub fn is_blank(&self) -> bool {
        self.served.is_none() && self.floor.is_none() && self.candidates.is_empty()
    }

    /// Whether this rank is above what is served.
    pub fn is_news(&self, rank: &Rank) -> bool {
        self.served.as_ref().is_none_or(|served| rank.is_above(&served.rank))
    }

    /// A content is served from now on. Answers the candidates that are thereby superseded.
    pub fn serve(&mut self, mark: Mark) -> Vec<T> {
        self.versioned |= matches!(mark.rank, Rank::Version(_));
        let (above, below) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition::<Vec<_>, _>(|candidate| candidate.mark.rank.is_above(&mark.rank));
        self.candidates = above;
        let superseded = below.into_iter().filter(|candidate| candidate.mark != mark);
        let superseded = superseded.map(|candidate| candidate.update).collect();
        self.served = Some(mark);
        superseded
    }

    /// A candidate was refused by a gate: the next one gets its turn.
    pub fn refuse(&mut self, is_it: impl Fn(&T) -> bool) {
        self.candidates.retain(|candidate| !is_it(&candidate.update));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Position, Version};
    use proptest::prelude::*;

    fn version(number: u64) -> Rank {
        Rank::Version(Version::try_from(number).expect("a version"))
    }

    fn place(sequence: u64) -> Rank {
        Rank::Stream(Position {
            era: 1,
            arrival_ms: 0,
            shard: "s".parse().expect("a shard id"),
            sequence: sequence.to_string().parse().expect("digits"),
            subsequence: 0,
        })
    }

    fn mark(rank: Rank, content: &str) -> Mark {
        Mark { rank, content: Digest::of(content.as_bytes()), announcement: Digest::of(b"") }
    }

    #[test]
    fn every_newcomer_gets_its_verdict() {
        let mut book = Book::default();
        book.serve(mark(version(5), "five"));
        book.admit(mark(version(7), "seven"), ());
        for (newcomer, verdict) in [
            (mark(version(6), "six"), Verdict::Admit),
            (mark(version(8), "eight"), Verdict::Admit),
            (mark(version(5), "five"), Verdict::Duplicate),
            (mark(version(7), "seven"), Verdict::Duplicate),
            (mark(version(5), "other"), Verdict::Conflict),
            (mark(version(7), "other"), Verdict::Conflict),
            (mark(version(4), "four"), Verdict::Stale),
            (mark(place(9), "nine"), Verdict::Unversioned),
        ] {
            assert_eq!(book.judge(&newcomer), verdict, "{newcomer:?}");
        }
    }

    #[test]
    fn without_versions_the_stream_orders_until_the_first_version() {
        let mut book = Book::default();
        book.serve(mark(Rank::Initial, "0"));
        assert_eq!(book.judge(&mark(place(9), "a")), Verdict::Admit);
        book.serve(mark(place(9), "a"));
        assert_eq!(book.judge(&mark(place(8), "b")), Verdict::Stale);
        assert_eq!(book.judge(&mark(place(10), "b")), Verdict::Admit);
        assert_eq!(book.judge(&mark(version(1), "c")), Verdict::Admit, "a version is above every place");
        book.admit(mark(version(1), "c"), ());
        assert_eq!(book.judge(&mark(place(10), "b")), Verdict::Admit, "the version may yet be refused");
        book.serve(mark(version(1), "c"));
        assert_eq!(book.judge(&mark(place(10), "b")), Verdict::Unversioned);
    }

    #[test]
    fn a_refused_candidate_gives_way_to_the_next_best() {
        let mut book = Book::default();
        for number in [3, 1, 2] {
            book.admit(mark(version(number), ""), number);
        }
        assert_eq!(book.aspired(), Some(&3));
        book.refuse(|number| *number == 3);
        assert_eq!(book.aspired(), Some(&2));
        assert_eq!(book.serve(mark(version(2), "")), [1]);
        assert_eq!(book.aspired(), None);
        assert_eq!(book.judge(&mark(version(3), "mended")), Verdict::Admit, "a refused version may come again");
    }

    #[test]
    fn a_deferred_candidate_comes_back_and_a_corrected_one_takes_its_place() {
        let mut book = Book::default();
        book.admit(mark(version(1), "one"), "one");
        book.admit(mark(version(2), "two"), "two, wrong place");
        book.defer(|update| *update == "two, wrong place");
        assert_eq!(book.aspired(), Some(&"one"));
        book.serve(mark(version(1), "one"));
        assert_eq!(book.aspired(), None);
        book.revive();
        assert_eq!(book.aspired(), Some(&"two, wrong place"));
        let corrected = Mark { announcement: Digest::of(b"right place"), ..mark(version(2), "two") };
        assert_eq!(book.judge(&corrected), Verdict::Correction);
        assert_eq!(book.admit(corrected, "two, right place"), Some("two, wrong place"));
        assert_eq!(book.aspired(), Some(&"two, right place"));
    }

    #[test]
    fn a_slot_whose_only_candidate_was_refused_is_blank_again() {
        let mut book = Book::default();
        book.admit(mark(version(1), "bad"), 1);
        assert!(!book.is_blank());
        book.refuse(|number| *number == 1);
        assert!(book.is_blank());
        assert_eq!(book.judge(&mark(place(1), "good")), Verdict::Admit, "it has had no version that counts");
    }

    #[test]
    fn what_readers_have_seen_before_a_restart_is_the_floor() {
        let mut book = Book::<()>::default();
        book.raise_floor(version(5));
        for (number, verdict) in [(4, Verdict::Stale), (5, Verdict::Admit), (6, Verdict::Admit)] {
            assert_eq!(book.judge(&mark(version(number), "")), verdict);
        }
        assert_eq!(book.judge(&mark(place(9), "")), Verdict::Unversioned);
    }

    proptest! {
        /// Whatever comes in whatever order, with loads that end whenever, the end is the newest good content.
        #[test]
        fn the_newest_good_content_wins(
            arrivals in proptest::collection::vec((1_u64..12, any::<bool>()), 1..40),
            finishes in proptest::collection::vec(any::<bool>(), 40),
        ) {
            // A version is good or bad for all its copies.
            let good = |number: u64| arrivals.iter().find(|(n, _)| *n == number).is_some_and(|(_, good)| *good);
            let mut book = Book::default();
            let mut served = 0;
            let finish = |book: &mut Book<u64>, served: &mut u64| {
                let Some(number) = book.aspired().copied() else { return false };
                if good(number) {
                    assert!(number > *served, "a version never goes back");
                    *served = number;
                    book.serve(mark(version(number), &number.to_string()));
                } else {
                    book.refuse(|other| *other == number);
                }
                true
            };
            for ((number, _), finishes) in arrivals.iter().zip(&finishes) {
                let newcomer = mark(version(*number), &number.to_string());
                if book.judge(&newcomer) == Verdict::Admit {
                    book.admit(newcomer, *number);
                }
                if *finishes {
                    finish(&mut book, &mut served);
                }
            }
            while finish(&mut book, &mut served) {}
            let newest = arrivals.iter().filter(|(number, _)| good(*number)).map(|(number, _)| *number).max();
            // At most twelve versions, of which eight are remembered at a time; the newest good one is always among
            // them unless more than eight bad ones are above it.
            let bad_above = arrivals.iter().filter(|(n, _)| !good(*n) && Some(*n) > newest).count();
            prop_assume!(bad_above < CANDIDATES);
            prop_assert_eq!(served, newest.unwrap_or(0));
        }
    }
}
