//! What a death loses: nothing. A real process is killed at each place on the way of a swap, while it is read, and starts
//! again from disk with every endpoint out of reach.
//!
//! SIGKILL leaves what was written to the system: what only a power cut loses is not seen here.

mod lane;
mod process;
mod readers;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use hotserve::failpoint::NAMES;

use self::lane::{Lane, Outcome};
use self::process::Failpoint;
use crate::cli::{hotserve, run};
use crate::support::{Cloud, repository};

/// How many instances die side by side: most of a round is waiting.
const LANES: u64 = 13;

impl Failpoint {
    /// Which time and how long before is up to chance.
    fn choose(name: &'static str, rng: &mut fastrand::Rng) -> Self {
        // How often a process comes there while it starts and takes in a version or two.
        let most = match name {
            "restore.before" | "restore.before_swap" | "restore.after_swap" => 1,
            _ if name.starts_with("journal.compact.") || name.starts_with("cache.collect.") => 2,
            _ => 4,
        };
        Self { name, nth: rng.u32(1..=most), pause_ms: if rng.f32() < 0.8 { 20 } else { 0 } }
    }

    /// At the start a journal is always written anew, later only when most of it is history.
    fn needs_pad(self) -> bool {
        self.name.starts_with("journal.compact.") && self.nth > 1
    }
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Every place equally often, in an order of chance.
fn plan(kills: usize, rng: &mut fastrand::Rng) -> VecDeque<Failpoint> {
    let mut plan = VecDeque::new();
    while plan.len() < kills {
        let mut names = NAMES.to_vec();
        rng.shuffle(&mut names);
        plan.extend(names.into_iter().map(|name| Failpoint::choose(name, rng)));
    }
    plan.truncate(kills);
    plan
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_it_starts_from_disk_with_what_was_read_or_what_was_on_its_way() {
    let kills = number("HOTSERVE_TEST_KILLS").unwrap_or(NAMES.len());
    let seed = number("HOTSERVE_TEST_SEED").map_or_else(|| fastrand::u64(..), |seed| seed as u64);
    println!("{kills} kills, HOTSERVE_TEST_SEED={seed}");
    let plan = RefCell::new(plan(kills, &mut fastrand::Rng::with_seed(seed)));
    let (cloud, begun) = (Cloud::start(1).await, Instant::now());
    let lanes = (0..LANES.min(kills as u64)).map(async |number| {
        let mut lane = Lane::new(number, &cloud).await;
        let mut done: Vec<(Failpoint, Outcome)> = vec![];
        loop {
            let next = plan.borrow_mut().pop_front();
            let Some(failpoint) = next else { return done };
            done.push((failpoint, lane.round(failpoint).await));
        }
    });
    let done = futures_util::future::join_all(lanes).await.concat();
    let mut by_name: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for (failpoint, outcome) in &done {
        let (kills, read, newer) = by_name.entry(failpoint.name).or_default();
        (*kills, *read, *newer) = (*kills + 1, *read + outcome.read, *newer + outcome.newer);
    }
    println!("{:34} kills  newest was read  newer than read was found", "failpoint");
    for (name, (kills, read, newer)) in &by_name {
        println!("{name:34} {kills:5}  {read:15}  {newer:25}");
    }
    println!("{} kills in {:.0?}, nothing lost", done.len(), begun.elapsed());
    assert_eq!(done.len(), kills);
    if kills >= NAMES.len() {
        assert_eq!(by_name.into_keys().collect::<BTreeSet<_>>(), BTreeSet::from_iter(NAMES.iter().copied()));
    }
}

#[test]
fn every_failpoint_has_its_place_and_every_place_its_name() {
    let mut found = vec![];
    for file in crate::tidy::rust_files(&repository("src")) {
        if file.ends_with("failpoint.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for (at, _) in text.match_indices("failpoint::hit") {
            found.push(text[at..].split('"').nth(1).unwrap().to_owned());
        }
    }
    let mut names = NAMES.to_vec();
    found.sort_unstable();
    names.sort_unstable();
    assert_eq!(found, names);
}

#[test]
fn a_failpoint_that_is_not_there_ends_the_start_and_the_names_are_listed() {
    let mut command = hotserve(&["serve", "--stream", "s", "--port", "0"]);
    command.env("HOTSERVE_FAILPOINT", "swap.aftr");
    let (code, text) = run(command);
    assert_eq!(code, 64, "{text}");
    for named in ["HOTSERVE_FAILPOINT", "swap.aftr", "swap.after,", "restore.before,"] {
        assert!(text.contains(named), "{text}");
    }
}
