//! What can go wrong around Kinesis and S3, and time as Kinesis tells it: for tests and for game days.
//!
//! The stand-in knows no time: stamps are of whole seconds, and every answer says that it is the newest. With
//! [`Faults`] the endpoints keep an index of the records and a clock that can be moved:
//!
//! - arrival stamps, the `Date` header, retention and the life of iterators follow the clock of [`Faults::now_ms`];
//!   move it back, put, [`advance`](Faults::advance), put again, and a stream has a history;
//! - `MillisBehindLatest` is the time from the place of an answer to the tip, and one `GetRecords` looks through five
//!   minutes of a shard at most, so that quiet hours are many empty pages;
//! - `AT_TIMESTAMP` finds the first record from then on, and refuses the future; what is trimmed is gone;
//! - `SubscribeToShard` reads the same index: stamps, distance, one subscription of a consumer to a shard.
//!
//! On top of that [`Rules`] say what goes wrong. They can be changed at any time and hold from the next call on.
//!
//! The `Date` of S3 stays the machine's own, as signatures are checked with it. Requests in CBOR pass by unchanged; the
//! Rust SDK sends JSON.

mod action;
mod answers;
mod frame;
mod index;
mod kinesis;
mod reads;
mod rules;
mod s3;
mod subscribe;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use action::Action;
use axum::Router;
pub use rules::{Answer, FanOutRules, Fault, KinesisRules, Latency, MillisBehind, Rules, S3Rules};
pub use watch::follow;

use index::Index;

/// The handle of the fault layer: rules, clock and counters.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
    offset_ms: AtomicI64,
    index: Mutex<Index>,
    /// Puts one after the other, so that the index has them in the order of their numbers.
    puts: tokio::sync::Mutex<()>,
    subscriptions: subscribe::Subscriptions,
    appeared: s3::Appeared,
}

#[derive(Debug, Default)]
struct State {
    rules: Rules,
    /// How often each fault struck.
    struck: Vec<u64>,
    random: Random,
    counts: BTreeMap<(Action, Option<String>), Count>,
    buckets: BTreeMap<String, Bucket>,
}

/// What became of the calls of an action.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub calls: u64,
    /// Those that were too many, by `reads-per-second` or by a fault.
    pub throttled: u64,
    /// Those that were denied.
    pub denied: u64,
    /// Those that a fault struck, throttled and denied ones left out.
    pub faulted: u64,
}

impl Count {
    fn add(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            throttled: self.throttled + other.throttled,
            denied: self.denied + other.denied,
            faulted: self.faulted + other.faulted,
        }
    }
}

impl Faults {
    /// A layer with rules.
    pub fn new(rules: Rules) -> Arc<Self> {
        let faults = Self::default();
        faults.set(rules);
        Arc::new(faults)
    }

    /// The rules that hold.
    pub fn rules(&self) -> Rules {
        self.state().rules.clone()
    }

    /// Lets these rules hold from now on. Another list of faults strikes anew, another seed begins its numbers anew.
    pub fn set(&self, rules: Rules) {
        let mut state = self.state();
        if rules.faults != state.rules.faults {
            state.struck = vec![0; rules.faults.len()];
        }
        if rules.seed != state.rules.seed {
            state.random = Random(fastrand::Rng::with_seed(rules.seed));
        }
        if rules.kinesis.reads_per_second != state.rules.kinesis.reads_per_second {
            state.buckets.clear();
        }
        state.rules = rules;
    }

    /// Changes the rules that hold.
    pub fn update(&self, change: impl FnOnce(&mut Rules)) {
        let mut rules = self.rules();
        change(&mut rules);
        self.set(rules);
    }

    /// The time of the endpoints, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        millis(real).saturating_add_signed(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Sets how far the endpoints' time is before (less than 0) or after that of this machine.
    ///
    /// A stream that would be created in the future then is created then: set it before a reader looks at the stream.
    pub fn set_clock_offset(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
        let now = self.now_ms();
        self.index().created_by(now);
    }

    /// How far the endpoints' time is from that of this machine, in milliseconds.
    pub fn clock_offset(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// Moves the endpoints' time on.
    pub fn advance(&self, by: Duration) {
        self.offset_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Forgets every record of a stream, as retention does.
    pub fn trim_all(&self, stream: &str) {
        self.trim_before(stream, u64::MAX);
    }

    /// Forgets the records of a stream that arrived before a time, in milliseconds since 1970.
    pub fn trim_before(&self, stream: &str, ms: u64) {
        let horizon = ms.min(self.now_ms().saturating_add(1));
        self.index().trim(stream, horizon);
    }

    /// What became of the calls of an action, of all shards. Of a subscription to a shard, what became of the call.
    pub fn count(&self, action: &Action) -> Count {
        let state = self.state();
        let of_it = state.counts.iter().filter(|((one, _), _)| action.covers(one));
        of_it.fold(Count::default(), |sum, (_, count)| sum.add(*count))
    }

    /// What became of the calls of an action for one shard.
    pub fn count_of_shard(&self, action: &Action, shard: &str) -> Count {
        let state = self.state();
        let of_it = state.counts.iter().filter(|((one, of), _)| action.covers(one) && of.as_deref() == Some(shard));
        of_it.fold(Count::default(), |sum, (_, count)| sum.add(*count))
    }

    /// Lays this layer over the two services.
    pub(super) fn over(self: &Arc<Self>, kinesis: Router, s3: Router) -> (Router, Router) {
        (kinesis::layer(Arc::clone(self), kinesis), s3::layer(Arc::clone(self), s3))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call, waits as long as the rules want, and says what is to be answered instead, if anything.
    async fn meet(&self, call: &Call) -> Option<Answer> {
        let (wait, answer) = {
            let mut state = self.state();
            (state.latency(call), state.decide(call, Instant::now()))
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if answer == Some(Answer::Hang) {
            // Until the client gives up, or the endpoint is stopped.
            std::future::pending::<()>().await;
        }
        answer
    }
}

/// Who calls what.
#[derive(Debug, Clone)]
struct Call {
    action: Action,
    /// The stream and the shard, where the call names them.
    shard: Option<(String, String)>,
}

impl State {
    fn latency(&mut self, call: &Call) -> Duration {
        let mut rules = self.rules.latency.iter();
        let Some(rule) = rules.find(|rule| rule.on.iter().any(|on| on.covers(&call.action))) else {
            return Duration::ZERO;
        };
        let more = millis(rule.max.saturating_sub(rule.min));
        rule.min + Duration::from_millis(self.random.0.u64(0..=more))
    }

    fn decide(&mut self, call: &Call, now: Instant) -> Option<Answer> {
        let answer = self.judge(call, now);
        let count = self.counts.entry((call.action.clone(), call.shard.clone().map(|(_, shard)| shard))).or_default();
        count.calls += 1;
        match answer {
            None => {}
            Some(Answer::Throttle | Answer::LimitExceeded | Answer::KmsThrottling) => count.throttled += 1,
            Some(Answer::AccessDenied) => count.denied += 1,
            Some(_) => count.faulted += 1,
        }
        answer
    }

    fn judge(&mut self, call: &Call, now: Instant) -> Option<Answer> {
        if self.rules.deny.iter().any(|denied| denied.covers(&call.action)) {
            return Some(Answer::AccessDenied);
        }
        if let (Some(rate), Some((stream, shard)), "GetRecords") =
            (self.rules.kinesis.reads_per_second, &call.shard, call.action.operation())
        {
            let bucket = self.buckets.entry(format!("{stream}/{shard}")).or_insert_with(|| Bucket::full(rate, now));
            if !bucket.take(rate, now) {
                return Some(Answer::Throttle);
            }
        }
        for (fault, struck) in self.rules.faults.iter().zip(&mut self.struck) {
            let shard = call.shard.as_ref().map(|(_, shard)| shard.as_str());
            let matches = fault.on.iter().any(|on| on.covers(&call.action))
                && fault.shard.as_deref().is_none_or(|one| Some(one) == shard)
                && fault.times.is_none_or(|times| *struck < times);
            if matches && (fault.rate >= 1.0 || self.random.0.f64() < fault.rate) {
                *struck += 1;
                return Some(fault.answer);
            }
        }
        None
    }
}

#[derive(Debug)]
struct Random(fastrand::Rng);

impl Default for Random {
    fn default() -> Self {
        Self(fastrand::Rng::with_seed(0))
    }
}

/// So many at once, and as many a second.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: u32, at: Instant) -> Self {
        Self { tokens: f64::from(rate), at }
    }

    fn take(&mut self, rate: u32, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = f64::from(rate).min(since.mul_add(f64::from(rate), self.tokens));
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(operation: &str, shard: &str) -> Call {
        Call { action: Action::kinesis(operation), shard: Some(("s".to_owned(), shard.to_owned())) }
    }

    #[test]
    fn a_shard_gives_so_many_reads_at_once_and_as_many_a_second() {
        let faults = Faults::new(Rules::parse("[kinesis]\nreads-per-second = 5").unwrap());
        let mut state = faults.state();
        let start = Instant::now();
        let mut reads = |after_ms: u64, shard: &str| {
            let now = start + Duration::from_millis(after_ms);
            (0..20).filter(|_| state.decide(&call("GetRecords", shard), now).is_none()).count()
        };
        assert_eq!(reads(0, "a"), 5);
        assert_eq!(reads(0, "b"), 5, "each shard has its own");
        assert_eq!(reads(400, "a"), 2);
        assert_eq!(reads(10_000, "a"), 5, "no more are saved up");
        assert_eq!(state.decide(&call("PutRecord", "a"), start), None, "only reads");
        drop(state);
        let count = faults.count_of_shard(&Action::kinesis("GetRecords"), "a");
        assert_eq!((count.calls, count.throttled), (60, 48));
        assert_eq!(faults.count(&Action::kinesis("GetRecords")).calls, 80);
    }

    #[test]
    fn a_fault_strikes_at_its_rate_its_shard_and_its_times_and_always_the_same() {
        let text = |fault: &str| format!("seed = 3\n[[fault]]\non = ['kinesis:GetRecords']\nanswer = 'html'\n{fault}");
        let strikes = |fault: &str| -> Vec<bool> {
            let faults = Faults::new(Rules::parse(&text(fault)).unwrap());
            let mut state = faults.state();
            (0..200).map(|_| state.decide(&call("GetRecords", "a"), Instant::now()).is_some()).collect()
        };
        let count = |fault: &str| strikes(fault).into_iter().filter(|struck| *struck).count();
        assert_eq!(count(""), 200);
        assert_eq!(count("times = 3"), 3);
        assert_eq!(count("shard = 'b'"), 0);
        assert!((60..140).contains(&count("rate = 0.5")), "{}", count("rate = 0.5"));
        assert_eq!(strikes("rate = 0.5"), strikes("rate = 0.5"), "the seed decides");
    }

    #[test]
    fn the_clock_can_be_moved() {
        let faults = Faults::default();
        let real = faults.now_ms();
        faults.set_clock_offset(-86_400_000);
        assert!(faults.now_ms() < real - 86_300_000);
        faults.advance(Duration::from_secs(86_400));
        assert_eq!(faults.clock_offset(), 0);
    }
}
