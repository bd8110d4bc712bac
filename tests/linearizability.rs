//! Readers on many connections see what one reader could: versions that never go back from one answer to the next, on
//! whichever connection, and answers of one piece.

mod planted;
mod register;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use hotserve::id::Digest;
use hotserve::source::memory::Feeder;
use serde_json::json;

use self::planted::Mistake;
use self::register::{Read, Stale, stale};
use crate::support::{Server, constant_model};
use crate::wire::{Answer, Wire, get, post};

/// How many requests are under way on a connection.
const DEPTH: usize = 8;
/// How long the readers may take to get on by one swap.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much is done.
#[derive(Debug, Clone, Copy)]
struct Load {
    connections: u64,
    /// Pairs of a state and a model that are swapped in, and as many states beside them.
    pairs: u64,
    reads: u64,
}

impl Load {
    fn of_the_environment() -> Self {
        let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
        Self {
            connections: number("HOTSERVE_TEST_READERS", 8),
            pairs: number("HOTSERVE_TEST_SWAPS", 1000) / 2,
            reads: number("HOTSERVE_TEST_READS", 100_000),
        }
    }
}

/// What every version must be answered with, made before anybody asks; the first is the version 0, which nobody has.
struct Expected {
    digests: Vec<String>,
    states: Vec<Vec<u8>>,
    predictions: Vec<Vec<u8>>,
}

impl Expected {
    fn of(versions: u64) -> Self {
        let digests: Vec<String> =
            (0..=versions).map(|version| format!("sha256:{}", Digest::of(&constant_model(version)))).collect();
        let states = digests.iter().map(|digest| json!({"state": digest}).to_string().into_bytes()).collect();
        let prediction = |version| {
            let model = format!("{{\"name\":\"pair\",\"version\":{version}}}");
            format!("{{\"predictions\":[{version}.0],\"model\":{model}}}").into_bytes()
        };
        Self { digests, states, predictions: (0..=versions).map(prediction).collect() }
    }

    /// The version that a state's answer is of.
    fn state(&self, answer: &Answer<'_>) -> Result<u64, u64> {
        let version = answer.state_version.unwrap_or(0);
        self.check(version, |at| answer.status == 200 && answer.body == self.states[at])
    }

    /// The version that a prediction is of: of its state and of its model, for they were one message.
    fn prediction(&self, answer: &Answer<'_>) -> Result<u64, u64> {
        let version = answer.model_version.unwrap_or(0);
        self.check(version, |at| {
            answer.state_version == answer.model_version
                && answer.model_digest == Some(&self.digests[at])
                && answer.body == self.predictions[at]
        })
    }

    fn check(&self, version: u64, whole: impl FnOnce(usize) -> bool) -> Result<u64, u64> {
        let at = usize::try_from(version).unwrap();
        let known = (1..self.states.len()).contains(&at);
        if known && whole(at) { Ok(version) } else { Err(version) }
    }
}

/// What was read and written of one register.
#[derive(Default)]
struct History {
    reads: Vec<Read>,
    /// One of each version, from before it was published until it was seen to be served.
    writes: Vec<Read>,
}

/// What one reader saw, or all of them.
#[derive(Default)]
struct Log {
    /// Of the pair: its state, and predictions with it.
    pair: History,
    /// Of the state beside it.
    beside: History,
    /// How many answers were made of two versions.
    torn: u64,
    /// One of them.
    example: Option<String>,
}

/// What the readers saw, judged.
struct Report {
    reads: usize,
    swaps: u64,
    /// How many versions of the pair were seen.
    seen: usize,
    torn: u64,
    /// An answer that was torn.
    example: Option<String>,
    /// Reads that show less than one that had returned before they were called.
    stale: Vec<Stale>,
    /// Reads that returned before their version was published.
    early: usize,
}

/// Swaps and reads, all at once, through what listens at the address.
async fn run(addr: SocketAddr, server: &Server, feeder: &Feeder, load: Load) -> Report {
    let expected = Arc::new(Expected::of(load.pairs));
    let (done, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut log = Log::default();
    write(server, feeder, &expected, 1, begun, &mut log).await;
    let readers: Vec<_> = (0..load.connections)
        .map(|_| {
            let (expected, done) = (Arc::clone(&expected), Arc::clone(&done));
            std::thread::spawn(move || read(addr, load.reads, &expected, begun, &done))
        })
        .collect();
    let before = server.http.serving.snapshot().generation;
    for version in 2..=load.pairs {
        // Evenly among the reads.
        let due = load.reads / load.pairs * (version - 1);
        let deadline = Instant::now() + PATIENCE;
        while done.load(Ordering::Relaxed) < due {
            assert!(Instant::now() < deadline, "the readers stand still at {}", done.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        write(server, feeder, &expected, version, begun, &mut log).await;
    }
    for reader in readers {
        let Log { mut pair, mut beside, torn, example } = reader.join().unwrap();
        log.pair.reads.append(&mut pair.reads);
        log.beside.reads.append(&mut beside.reads);
        log.torn += torn;
        log.example = log.example.or(example);
    }
    judge(log, server.http.serving.snapshot().generation - before)
}

fn judge(log: Log, swaps: u64) -> Report {
    let Log { pair, beside, torn, example } = log;
    let mut seen: Vec<_> = pair.reads.iter().map(|read| read.version).collect();
    seen.sort_unstable();
    seen.dedup();
    let (mut early, mut out_of_order) = (0, vec![]);
    let reads = pair.reads.len() + beside.reads.len();
    for History { mut reads, writes } in [pair, beside] {
        let published = |version: u64| writes[usize::try_from(version).unwrap() - 1].called;
        early += reads.iter().filter(|read| read.returned < published(read.version)).count();
        reads.extend(writes);
        out_of_order.extend(stale(&mut reads));
    }
    Report { reads, swaps, seen: seen.len(), torn, example, stale: out_of_order, early }
}

fn since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap()
}

/// Publishes a version of everything and waits until it is served.
async fn write(server: &Server, feeder: &Feeder, expected: &Expected, version: u64, begun: Instant, log: &mut Log) {
    let state = &expected.digests[usize::try_from(version).unwrap()];
    let inline = base64::engine::general_purpose::STANDARD.encode(constant_model(version));
    let model = json!({"name": "pair", "version": version, "format": "linear", "inline": inline});
    let called = since(begun);
    feeder.put(json!({"version": version, "state": state, "model": model}).to_string()).await;
    feeder.put(json!({"key": "beside", "version": version, "state": state}).to_string()).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let snapshot = server.http.serving.snapshot();
        let served = |key| {
            let rank = snapshot.state(key).and_then(|state| state.rank.version());
            rank.is_some_and(|rank| rank.get() == version)
        };
        if served("default") && served("beside") {
            break;
        }
        assert!(Instant::now() < deadline, "the version {version} is not served");
        drop(snapshot);
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    let read = Read { called, returned: since(begun), version };
    log.pair.writes.push(read);
    log.beside.writes.push(read);
}

/// A connection that reads until enough was read by all.
fn read(addr: SocketAddr, enough: u64, expected: &Expected, begun: Instant, done: &AtomicU64) -> Log {
    let mut wire = Wire::connect(addr).unwrap();
    let predict = post("/predict/pair", r#"{"instances":[[0]]}"#);
    let four = [get("/state"), predict.clone(), get("/state/beside"), predict].concat();
    let requests = four.repeat(DEPTH / 4);
    let mut log = Log::default();
    while done.load(Ordering::Relaxed) < enough {
        let called = since(begun);
        wire.send(&requests).unwrap();
        for number in 0..DEPTH {
            let answer = wire.receive().unwrap();
            let returned = since(begun);
            let (version, history) = match number % 4 {
                0 => (expected.state(&answer), &mut log.pair),
                2 => (expected.state(&answer), &mut log.beside),
                _ => (expected.prediction(&answer), &mut log.pair),
            };
            if let Ok(version) = version {
                history.reads.push(Read { called, returned, version });
            } else {
                log.torn += 1;
                log.example.get_or_insert_with(|| answer.to_string());
            }
        }
        done.fetch_add(DEPTH as u64, Ordering::Relaxed);
    }
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_on_many_connections_see_one_register_that_only_grows() {
    let load = Load::of_the_environment();
    let (server, feeder) = Server::fed().await;
    let server = server.ready().await;
    let begun = Instant::now();
    let report = run(server.addr, &server, &feeder, load).await;
    let Report { reads, swaps, seen, torn, example, stale, early } = report;
    println!("{reads} reads on {} connections over {swaps} swaps in {:.1?}", load.connections, begun.elapsed());
    println!("{seen} of {} pairs seen; {torn} torn, {} out of order, {early} early", load.pairs, stale.len());
    assert_eq!((torn, stale.len(), early), (0, 0, 0), "{example:?} {:?}", stale.first());
    // On a machine that has other things to do, fewer: but those that are seen must tell.
    assert!(seen as u64 > load.pairs / 10, "the readers were too slow to see it: {seen} of {}", load.pairs);
    assert!(swaps >= 2 * (load.pairs - 1) && reads as u64 >= load.reads, "{reads} reads, {swaps} swaps");
    server.stop().await;
}

/// The same readers and the same checks, over a server that makes a mistake.
async fn reads_of(mistake: Mistake) -> Report {
    let (server, feeder) = Server::fed().await;
    let server = server.ready().await;
    let addr = planted::start(mistake, Arc::clone(&server.http.serving)).await;
    let report = run(addr, &server, &feeder, Load { connections: 8, pairs: 100, reads: 8_000 }).await;
    let Report { reads, torn, stale, example, .. } = &report;
    println!("{mistake:?}: of {reads} reads {} out of order; {torn} torn besides, {example:?}", stale.len());
    server.stop().await;
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_the_snapshot_twice_is_found_out() {
    assert!(reads_of(Mistake::TwoLoads).await.torn > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_keeps_a_snapshot_is_found_out() {
    let report = reads_of(Mistake::KeptSnapshot).await;
    assert!(!report.stale.is_empty());
    assert_eq!(report.torn, 0, "each answer is of one piece");
}
