use super::*;
use crate::id::{Position, Version};
use proptest::prelude::*;

pub(super) fn version(number: u64) -> Rank {
    Rank::Version(Version::try_from(number).expect("a version"))
}

pub(super) fn place(sequence: u64) -> Rank {
    Rank::Stream(Position {
        era: 1,
        arrival_ms: 0,
        shard: "s".parse().expect("a shard id"),
        sequence: sequence.to_string().parse().expect("digits"),
        subsequence: 0,
    })
}

pub(super) fn mark(rank: Rank, content: &str) -> Mark {
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
    book.raise_floor(mark(version(5), ""));
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
