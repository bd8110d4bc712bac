//! Which content a slot should have: pure, and the same whatever the order in which messages come.
//!
//! A slot remembers what it serves and the few newest candidates above it. The newest candidate is worked on first;
//! when it is served, the ones below are superseded; when it is refused, the next one gets its turn. So the end is
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
    candidates: Vec<(Mark, T)>,
}

/// A content, by its rank and identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its place in the slot's order.
    pub rank: Rank,
    /// What tells it from other contents of the same rank.
    pub content: Digest,
}

/// What to do with a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may come to be served.
    Admit,
    /// It is served, or a candidate, already.
    Duplicate,
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
        let known = self.served.iter().chain(self.candidates.iter().map(|(mark, _)| mark));
        for other in known {
            if other.rank == mark.rank {
                return if other.content == mark.content { Verdict::Duplicate } else { Verdict::Conflict };
            }
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

    /// Takes in a newcomer that was judged `Admit`. Answers the candidate that had to make room.
    pub fn admit(&mut self, mark: Mark, candidate: T) -> Option<T> {
        self.versioned |= matches!(mark.rank, Rank::Version(_));
        let place = self.candidates.iter().position(|(other, _)| mark.rank.is_above(&other.rank));
        self.candidates.insert(place.unwrap_or(self.candidates.len()), (mark, candidate));
        if self.candidates.len() > CANDIDATES { self.candidates.pop().map(|(_, candidate)| candidate) } else { None }
    }

    /// The candidate to work on.
    pub fn aspired(&self) -> Option<&T> {
        self.candidates.first().map(|(_, candidate)| candidate)
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
            .partition::<Vec<_>, _>(|(candidate, _)| candidate.rank.is_above(&mark.rank));
        self.candidates = above;
        let superseded = below.into_iter().filter(|(candidate, _)| *candidate != mark);
        let superseded = superseded.map(|(_, candidate)| candidate).collect();
        self.served = Some(mark);
        superseded
    }

    /// A candidate was refused by a gate: the next one gets its turn.
    pub fn refuse(&mut self, is_it: impl Fn(&T) -> bool) {
        self.candidates.retain(|(_, candidate)| !is_it(candidate));
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
        })
    }

    fn mark(rank: Rank, content: &str) -> Mark {
        Mark { rank, content: Digest::of(content.as_bytes()) }
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
