//! Pins, rollbacks and revocations, case by case and against a plain model.

use proptest::prelude::*;

use super::tests::{mark, place, version};
use super::*;

/// A book that has served 10, 11 and 12, one after the other.
fn served_to_12() -> Book<u64> {
    let mut book = Book::default();
    for number in [10, 11, 12] {
        book.serve(mark(version(number), &number.to_string()));
    }
    book
}

fn admit(book: &mut Book<u64>, number: u64) {
    let newcomer = mark(version(number), &number.to_string());
    assert_eq!(book.judge(&newcomer), Verdict::Admit, "{number}");
    book.admit(newcomer, number);
}

fn hold(book: &mut Book<u64>, change: impl FnOnce(&mut Hold)) -> Vec<u64> {
    let mut hold = book.hold().clone();
    change(&mut hold);
    book.set_hold(hold)
}

fn roll_back(book: &mut Book<u64>, to: Option<u64>) -> Result<(), NoWayBack> {
    let (above, up_to) = book.way_back(to.map(version), true)?;
    hold(book, |hold| hold.take_back(above, up_to, 1));
    Ok(())
}

/// Does what the book wishes until it wishes nothing; answers what is served then.
fn settle(book: &mut Book<u64>) -> String {
    loop {
        match book.wish() {
            Wish::Bring(number) => {
                let number = *number;
                book.serve(mark(version(number), &number.to_string()));
            }
            Wish::GoBack(mark) => {
                let mark = mark.clone();
                book.serve(mark);
            }
            Wish::Withdraw => book.withdraw(),
            Wish::Unload => book.unload(),
            Wish::Stay | Wish::Await => break,
        }
    }
    book.served().map_or_else(|| "nothing".to_owned(), |mark| mark.rank.to_string())
}

#[test]
fn a_rollback_goes_to_the_one_before_and_on_to_what_is_newer_than_what_was_taken_back() {
    let mut book = served_to_12();
    roll_back(&mut book, None).expect("there is a way back");
    assert_eq!(book.wish(), Wish::GoBack(&mark(version(11), "11")));
    assert_eq!(settle(&mut book), "11");
    let again = book.judge(&mark(version(12), "12"));
    assert_eq!(again, Verdict::Barred(Why::TakenBack { since_ms: 1 }));
    admit(&mut book, 13);
    assert_eq!(settle(&mut book), "13");
    roll_back(&mut book, None).expect("there is a way back");
    assert_eq!(settle(&mut book), "11", "12 was taken back before");
    roll_back(&mut book, None).expect("there is a way back");
    assert_eq!(settle(&mut book), "10");
    assert_eq!(roll_back(&mut book, None), Err(NoWayBack::NothingOlder));
}

#[test]
fn what_is_unloaded_is_kept_and_the_newest_comes_back_when_it_is_loaded() {
    let mut book = served_to_12();
    hold(&mut book, |hold| hold.set_unloaded(true));
    assert_eq!(book.wish(), Wish::Unload);
    assert_eq!(settle(&mut book), "nothing");
    assert_eq!(book.judge(&mark(version(12), "12")), Verdict::Duplicate, "it is kept");
    hold(&mut book, |hold| hold.set_pin(By::Admin, Some(version(11)), 0));
    assert_eq!(settle(&mut book), "nothing", "whatever is pinned");
    hold(&mut book, |hold| hold.set_pin(By::Admin, None, 0));
    hold(&mut book, |hold| hold.set_unloaded(false));
    assert_eq!(book.wish(), Wish::GoBack(&mark(version(12), "12")));
    assert_eq!(settle(&mut book), "12");
    hold(&mut book, |hold| hold.set_unloaded(true));
    assert_eq!(settle(&mut book), "nothing");
    admit(&mut book, 13);
    assert!(!book.takes(&mark(version(13), "13")), "nor as the other half of a pair");
    assert_eq!(settle(&mut book), "nothing", "whatever is announced");
    hold(&mut book, |hold| hold.set_unloaded(false));
    assert_eq!(settle(&mut book), "13");
}

#[test]
fn a_rollback_names_its_goal_and_takes_back_what_is_on_its_way_too() {
    let mut book = served_to_12();
    admit(&mut book, 13);
    roll_back(&mut book, Some(10)).expect("10 is kept");
    assert_eq!(settle(&mut book), "10");
    assert_eq!(roll_back(&mut book, Some(10)), Ok(()), "told twice is as told once");
    assert_eq!(settle(&mut book), "10");
    let gone = roll_back(&mut book, Some(7)).expect_err("7 was never here");
    assert!(gone.to_string().starts_with("7 is not here any more; kept: "), "{gone}");
    admit(&mut book, 14);
    assert_eq!(settle(&mut book), "14");
}

#[test]
fn a_pin_holds_and_what_came_meanwhile_is_served_afterwards() {
    let mut book = served_to_12();
    hold(&mut book, |hold| hold.set_pin(By::Stream, Some(version(11)), 1));
    assert_eq!(settle(&mut book), "11");
    admit(&mut book, 13);
    admit(&mut book, 14);
    assert_eq!(settle(&mut book), "11");
    assert!(!book.takes(&mark(version(14), "14")), "not as the other half of a pair either");
    hold(&mut book, |hold| hold.set_pin(By::Stream, None, 1));
    assert_eq!(settle(&mut book), "14");
}

#[test]
fn the_setting_wins_over_the_operator_and_the_operator_over_the_stream() {
    let mut book = served_to_12();
    hold(&mut book, |hold| hold.set_pin(By::Stream, Some(version(10)), 1));
    assert_eq!(settle(&mut book), "10");
    hold(&mut book, |hold| hold.set_pin(By::Admin, Some(version(11)), 1));
    assert_eq!(settle(&mut book), "11");
    hold(&mut book, |hold| hold.set_pin(By::Setting, Some(version(12)), 1));
    assert_eq!(settle(&mut book), "12");
    hold(&mut book, |hold| hold.set_pin(By::Setting, None, 1));
    assert_eq!(settle(&mut book), "11");
    hold(&mut book, |hold| hold.set_pin(By::Admin, None, 1));
    assert_eq!(settle(&mut book), "10");
}

#[test]
fn a_pin_to_what_is_not_here_waits_for_it_whatever_else_comes() {
    let mut book = served_to_12();
    hold(&mut book, |hold| hold.set_pin(By::Admin, Some(version(5)), 1));
    assert_eq!(book.wish(), Wish::Await);
    for number in 20..40 {
        admit(&mut book, number);
    }
    assert_eq!(settle(&mut book), "12");
    admit(&mut book, 5);
    for number in 40..60 {
        admit(&mut book, number);
    }
    assert_eq!(settle(&mut book), "5", "newer ones do not oust it");
}

#[test]
fn a_pin_brings_back_what_was_taken_back_but_not_what_was_revoked() {
    let mut book = served_to_12();
    roll_back(&mut book, None).expect("there is a way back");
    assert_eq!(settle(&mut book), "11");
    hold(&mut book, |hold| hold.set_pin(By::Admin, Some(version(12)), 1));
    assert_eq!(settle(&mut book), "12");
    hold(&mut book, |hold| hold.revoke(version(12), 2));
    assert_eq!(settle(&mut book), "11");
    assert_eq!(book.judge(&mark(version(12), "12")), Verdict::Barred(Why::Revoked { since_ms: 2 }));
}

#[test]
fn what_is_revoked_is_not_served_even_if_nothing_else_is_there() {
    let mut book = Book::<u64>::default();
    book.serve(mark(version(1), "bad"));
    assert_eq!(hold(&mut book, |hold| hold.revoke_digest(Digest::of(b"bad"), 1)), [0; 0]);
    assert_eq!(settle(&mut book), "nothing");
    assert_eq!(book.judge(&mark(version(2), "bad")), Verdict::Barred(Why::Revoked { since_ms: 1 }));
    admit(&mut book, 2);
    assert_eq!(settle(&mut book), "2");
}

#[test]
fn without_versions_it_works_by_place() {
    let mut book = Book::<u64>::default();
    for number in [1, 2, 3] {
        book.serve(mark(place(number), &number.to_string()));
    }
    roll_back(&mut book, None).expect("there is a way back");
    assert_eq!(settle(&mut book), "2");
    assert_eq!(book.judge(&mark(place(4), "4")), Verdict::Admit);
}

#[test]
fn what_a_fresh_instance_reads_of_a_rollback_is_not_served_there_either() {
    let mut book = Book::<u64>::default();
    admit(&mut book, 12);
    let (above, up_to) = book.way_back(Some(version(11)), false).expect("12 is above");
    hold(&mut book, |hold| hold.take_back(above, up_to, 1));
    assert_eq!(settle(&mut book), "nothing");
    admit(&mut book, 11);
    assert_eq!(settle(&mut book), "11");
}

#[test]
fn of_the_pins_by_message_the_latest_counts_in_whatever_order_they_are_read() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1], [3, 1, 2]] {
        let mut book = served_to_12();
        for at in order {
            let rank = (at != 2).then(|| version(9 + at));
            hold(&mut book, |hold| hold.set_pin(By::Stream, rank, at));
        }
        assert_eq!(book.hold().pin(), Some((&version(12), By::Stream)), "{order:?}");
    }
}

#[test]
fn what_was_announced_below_what_is_served_is_there_for_a_way_back() {
    let mut book = Book::<u64>::default();
    for number in [12, 10, 11, 9, 8] {
        admit(&mut book, number);
    }
    assert_eq!(book.serve(mark(version(12), "12")), [11, 10, 9, 8]);
    assert_eq!(book.wish(), Wish::Stay);
    roll_back(&mut book, None).expect("11 is known");
    assert_eq!(book.wish(), Wish::Bring(&11), "it was never here, but it is known where it is");
    book.refuse(|number| *number == 11);
    assert_eq!(settle(&mut book), "10");
    assert_eq!(roll_back(&mut book, Some(8)).expect_err("forgotten").to_string(), "8 is not here any more; kept: 12");
}

#[test]
fn of_what_is_older_the_newest_few_are_remembered_and_nothing_else() {
    let mut book = Book::<u64>::default();
    book.serve(mark(version(20), "20"));
    for (number, remembered) in [(20, false), (21, false), (10, true), (12, true), (11, true), (9, false), (13, true)] {
        let newcomer = mark(version(number), &number.to_string());
        assert_eq!(book.remembers(&newcomer), remembered, "{number}");
        if remembered {
            book.admit(newcomer, number);
        }
    }
    assert_eq!(book.wish(), Wish::Stay);
    assert_eq!(book.candidates().copied().collect::<Vec<_>>(), [13, 12, 11]);
    roll_back(&mut book, None).expect("13 is known");
    assert_eq!(settle(&mut book), "13");
}

#[test]
fn a_message_is_obeyed_once() {
    let mut hold = Hold::default();
    assert!(!hold.has_obeyed(&place(5)));
    hold.obey(place(5));
    for (number, obeyed) in [(4, true), (5, true), (6, false)] {
        assert_eq!(hold.has_obeyed(&place(number)), obeyed, "{number}");
    }
}

#[derive(Debug, Clone)]
enum Move {
    Publish(u64),
    Pin(u64),
    Unpin,
    RollBack,
    Revoke(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let number = 1..15_u64;
    let one = prop_oneof![
        4 => number.clone().prop_map(Move::Publish),
        1 => number.clone().prop_map(Move::Pin),
        1 => Just(Move::Unpin),
        2 => Just(Move::RollBack),
        1 => number.prop_map(Move::Revoke),
    ];
    proptest::collection::vec(one, 1..60)
}

proptest! {
    /// Whatever is told in whatever order: what is revoked is never served, a pin that can be kept is kept, and a
    /// version goes back only when it is told to.
    #[test]
    fn holds_are_kept(moves in moves()) {
        let mut book = Book::<u64>::default();
        let mut revoked = Vec::new();
        let served = |book: &Book<u64>| book.served().and_then(|mark| mark.rank.version()).map_or(0, |v| v.get());
        for step in moves {
            let before = served(&book);
            let pinned = book.hold().pin().map(|(rank, _)| rank.clone());
            let was_barred = book.served().is_some_and(|mark| book.hold().why_not(mark).is_some());
            let publishes = matches!(step, Move::Publish(_)) && !was_barred;
            match step {
                Move::Publish(number) => {
                    let newcomer = mark(version(number), &number.to_string());
                    if book.judge(&newcomer) == Verdict::Admit {
                        book.admit(newcomer, number);
                    }
                }
                Move::Pin(number) => drop(hold(&mut book, |hold| hold.set_pin(By::Admin, Some(version(number)), 1))),
                Move::Unpin => drop(hold(&mut book, |hold| hold.set_pin(By::Admin, None, 1))),
                // There may be nothing to go back to.
                Move::RollBack => drop(roll_back(&mut book, None)),
                Move::Revoke(number) => {
                    revoked.push(number);
                    hold(&mut book, |hold| hold.revoke(version(number), 1));
                }
            }
            settle(&mut book);
            let now = served(&book);
            prop_assert!(!revoked.contains(&now), "revoked {now} is served");
            prop_assert!(!publishes || now >= before || pinned == Some(version(now)), "{before} went back to {now}");
            if let Some((pin, _)) = book.hold().pin() && book.wish() != Wish::Await {
                let pin = pin.version().map_or(0, |v| v.get());
                prop_assert!(pin == now || revoked.contains(&pin) || now == 0, "pinned to {pin}, serving {now}");
            }
        }
    }
}

#[test]
fn a_slot_that_was_emptied_still_knows_the_newest_that_it_served() {
    let newest = |book: &Book<u64>| book.newest_ever().map(|mark| mark.rank.to_string());
    let mut book = served_to_12();
    assert_eq!(newest(&book).as_deref(), Some("12"));
    book.unload();
    assert!(book.served().is_none());
    assert_eq!(newest(&book).as_deref(), Some("12"));
    let mut book = Book::<u64>::default();
    assert_eq!(newest(&book), None);
    book.serve(mark(version(5), "5"));
    book.withdraw();
    assert_eq!(newest(&book).as_deref(), Some("5"));
}
