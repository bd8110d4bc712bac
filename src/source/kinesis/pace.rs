//! How fast to ask: additive increase, multiplicative decrease, with jitter. Pure but for the dice.
//!
//! Every instance reads the same shard, which answers five reads a second to all of them together. "Back off when
//! throttled, full speed on success" lets one instance win and starves the others; a rate that falls by a fifth, and
//! grows by the same amount in the same *time* for all, comes to equal shares: the slow gain on the fast. (Growth by
//! success favours those who have much: in the model below, its 99th percentile for 20 instances is three times as
//! long.) Without jitter, instances that started together stay in step for minutes.

use std::collections::VecDeque;
use std::time::Duration;

use fastrand::Rng;

/// What a shard answers to all its readers together: reads a second (the limit of `GetRecords`).
const SHARD_READS: f64 = 5.0;
/// How much of that a fleet of a known size takes; the rest is for whoever else reads.
const FLEET_SHARE: f64 = 0.8;
/// How fast to catch up, and to poll at all.
const FASTEST: Duration = Duration::from_millis(250);
/// The slowest poll: an iterator lives for five minutes.
const SLOWEST: Duration = Duration::from_secs(240);
/// How much faster a reader asks after a second of success once a limit was met: polls a second, at a top of one.
const GROWTH: f64 = 0.0002;
/// The same for a reader whose top is its fair share, so that all of them together keep to the limit.
const GROWTH_TO_SHARE: f64 = 0.002;
/// So many calls at a start are made at once: a shard that nobody reads has five to give.
const BURST: u32 = 4;

/// The pace of one shard's reader.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Polls a second that are never exceeded at the tip.
    top: f64,
    /// Polls a second, at the tip.
    rate: f64,
    /// Polls a second more after each second of success, once a limit was met.
    growth: f64,
    /// Whether a throttle has shown where the limit is; before, the rate grows fast.
    met_limit: bool,
    /// Calls made so far, up to the burst.
    calls: u32,
    /// Faults in a row.
    faults: u32,
}

/// The fastest that one instance polls a shard at its tip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Top {
    /// Polls a second.
    pub rate: f64,
    /// Whether it is the share of a fleet of a known size.
    is_share: bool,
}

impl Top {
    /// As asked for, or its share of what a shard gives a fleet of this size; the slower of both.
    pub fn new(interval: Option<Duration>, fleet_size: Option<u32>) -> Self {
        let asked = interval.map(|interval| 1.0 / interval.as_secs_f64());
        match (asked, fleet_size.map(|size| SHARD_READS * FLEET_SHARE / f64::from(size.max(1)))) {
            (asked, Some(share)) if asked.is_none_or(|asked| share <= asked) => Self { rate: share, is_share: true },
            (asked, _) => Self { rate: asked.unwrap_or(1.0), is_share: false },
        }
    }
}

impl Pace {
    /// Polls no faster than `top` a second, and begins somewhat below, each instance for itself.
    pub fn new(top: Top, rng: &mut Rng) -> Self {
        let Top { rate: top, is_share } = top;
        let growth = if is_share { GROWTH_TO_SHARE } else { GROWTH };
        Self { top, rate: top * (0.5 + 0.5 * rng.f64()), growth, met_limit: false, calls: 0, faults: 0 }
    }

    /// The time between polls at the tip, without jitter.
    pub fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate).min(SLOWEST)
    }

    /// The pause before the next poll.
    pub fn pause(&mut self, is_behind: bool, rng: &mut Rng) -> Duration {
        let full = if is_behind {
            self.calls += 1;
            if self.calls < BURST && self.faults == 0 && !self.met_limit {
                return Duration::ZERO;
            }
            // As much slower than usual as the throttling asks for.
            FASTEST.min(self.interval()).mul_f64(if self.met_limit { self.top / self.rate } else { 1.0 })
        } else {
            self.interval()
        };
        full.mul_f64(0.75 + rng.f64() / 2.0).min(SLOWEST)
    }

    /// The stream answered.
    pub fn on_success(&mut self) {
        self.faults = 0;
        // A success stands for the time since the one before.
        let more = if self.met_limit { self.growth / self.rate } else { 0.25 * self.rate };
        self.rate = (self.rate + more).min(self.top);
    }

    /// The stream said: too fast.
    pub fn on_throttle(&mut self) {
        self.met_limit = true;
        self.rate = (self.rate * 0.8).max(1.0 / 600.0);
    }

    /// The stream did not answer: a pause that doubles, up to a limit, with jitter.
    pub fn on_fault(&mut self, longest: Duration, rng: &mut Rng) -> Duration {
        let full = Duration::from_millis(200).saturating_mul(1 << self.faults.min(10)).min(longest);
        self.faults += 1;
        full.mul_f64(0.1 + 0.9 * rng.f64())
    }
}

/// How far back the load is looked at.
const WINDOW_MS: u64 = 300_000;
/// With fewer answers than this, a ratio says nothing.
const ENOUGH: usize = 20;
/// Above this share of throttled reads the instances are too many for polling.
const TOO_MANY: f64 = 0.10;
/// Below this share, the next time is news again.
pub const FEW: f64 = 0.05;

/// How a shard's readers get in each other's way, over the last minutes.
#[derive(Debug, Default)]
pub struct Load {
    /// When, and whether it was throttled.
    answers: VecDeque<(u64, bool)>,
    throttled: usize,
    warned: bool,
}

impl Load {
    /// Notes the answer to a read of one shard.
    pub fn note(&mut self, now_ms: u64, throttled: bool) {
        self.answers.push_back((now_ms, throttled));
        self.throttled += usize::from(throttled);
        while self.answers.front().is_some_and(|(at, _)| at + WINDOW_MS < now_ms) {
            let gone = self.answers.pop_front();
            self.throttled -= usize::from(gone.is_some_and(|(_, throttled)| throttled));
        }
    }

    /// The share of the reads that were throttled.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand at the most")]
    pub fn ratio(&self) -> f64 {
        if self.answers.len() < ENOUGH { 0.0 } else { self.throttled as f64 / self.answers.len() as f64 }
    }

    /// How many readers seem to share the shard: what it gives, over what this one gets. 0 while nothing is throttled,
    /// for then this reader gets what it asks for.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand at the most")]
    pub fn readers(&self) -> f64 {
        let (Some((first, _)), Some((last, _))) = (self.answers.front(), self.answers.back()) else { return 0.0 };
        let served = self.answers.len() - self.throttled;
        if self.throttled == 0 || self.answers.len() < ENOUGH || last <= first || served == 0 {
            return 0.0;
        }
        SHARD_READS * (last - first) as f64 / 1e3 / served as f64
    }

    /// Whether it is time to say that the instances are too many: once, until it has been better.
    pub fn is_news(&mut self) -> bool {
        let ratio = self.ratio();
        let news = ratio > TOO_MANY && !self.warned;
        self.warned = ratio > TOO_MANY || (self.warned && ratio > FEW);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttling_slows_down_and_success_restores() {
        let mut rng = Rng::with_seed(1);
        let mut pace = Pace::new(Top::new(None, None), &mut rng);
        for _ in 0..10 {
            pace.on_success();
        }
        assert_eq!(pace.interval(), Duration::from_secs(1), "fast, until a limit is met");
        assert!(pace.pause(false, &mut rng) >= Duration::from_millis(750));
        for _ in 0..50 {
            pace.on_throttle();
        }
        assert_eq!(pace.interval(), SLOWEST);
        assert!(pace.pause(false, &mut rng) <= SLOWEST && pace.pause(true, &mut rng) <= SLOWEST);
        pace.on_success();
        assert!(pace.interval() > Duration::from_secs(5), "slowly, after one was met");
        for _ in 0..10_000 {
            pace.on_success();
        }
        assert_eq!(pace.interval(), Duration::from_secs(1));
    }

    #[test]
    fn faults_are_met_with_growing_bounded_pauses() {
        let mut rng = Rng::with_seed(2);
        let mut pace = Pace::new(Top::new(None, None), &mut rng);
        let longest = Duration::from_secs(10);
        assert!(pace.on_fault(longest, &mut rng) <= Duration::from_millis(200));
        let pauses: Vec<_> = (0..100).map(|_| pace.on_fault(longest, &mut rng)).collect();
        assert!(pauses.iter().all(|pause| *pause <= longest && !pause.is_zero()));
    }

    #[test]
    fn a_known_fleet_shares_what_a_shard_gives() {
        let top = |interval_s: Option<u64>, size| Top::new(interval_s.map(Duration::from_secs), size).rate;
        assert!((top(None, None) - 1.0).abs() < 1e-9);
        assert!((top(None, Some(1)) - 4.0).abs() < 1e-9);
        assert!((top(None, Some(20)) - 0.2).abs() < 1e-9);
        assert!((top(Some(10), Some(20)) - 0.1).abs() < 1e-9, "the slower of both");
        assert!((top(Some(1), Some(20)) - 0.2).abs() < 1e-9);
    }

    #[test]
    fn too_many_readers_are_told_once_until_it_gets_better() {
        let mut load = Load::default();
        let mut news = 0;
        // One in five is throttled; 4 reads a second get through.
        for at in 0..100 {
            load.note(at * 200, at % 5 == 0);
            news += u32::from(load.is_news());
        }
        assert_eq!(news, 1);
        assert!((load.ratio() - 0.2).abs() < 0.01);
        assert!((load.readers() - 1.25).abs() < 0.05, "{}", load.readers());
        for at in 0..1000 {
            load.note(20_000 + at * 1000, false);
            assert!(!load.is_news());
        }
        assert!(load.ratio() < 0.01 && load.readers() < 0.01);
        for at in 0..400 {
            load.note(1_100_000 + at * 1000, at % 5 == 0);
            news += u32::from(load.is_news());
        }
        assert_eq!(news, 2);
    }

    /// The model of the design's table: instances that poll one shard with a bucket of five reads a second.
    /// Answers the 50th and 99th percentile of the time from a record's arrival to its reading, in seconds, and the
    /// throttled share.
    fn fleet(size: u32, hint: Option<u32>, minutes: u64) -> (f64, f64, f64) {
        let mut rng = Rng::with_seed(7);
        let top = Top::new(None, hint);
        let mut pollers: Vec<(u64, u64, Pace)> =
            (0..size).map(|_| (rng.u64(0..1000), 0, Pace::new(top, &mut rng))).collect();
        let (mut tokens, mut at) = (SHARD_READS, 0_u64);
        let (mut lags, mut calls, mut throttled) = (vec![], 0_u64, 0_u64);
        while at < minutes * 60_000 {
            let (now, before, pace) = pollers.iter_mut().min_by_key(|poller| poller.0).expect("there are some");
            tokens = ((*now - at) as f64 / 1e3).mul_add(SHARD_READS, tokens).min(SHARD_READS);
            at = *now;
            calls += 1;
            if tokens >= 1.0 {
                tokens -= 1.0;
                pace.on_success();
                // Records arrive evenly: each of the time since the last read waited as long as it is ago.
                lags.extend((*before..at).step_by(100).map(|arrived| (at - arrived) as f64 / 1e3));
                *before = at;
            } else {
                throttled += 1;
                pace.on_throttle();
            }
            let pause = pace.pause(false, &mut rng).as_millis() as u64;
            *now += pause + rng.u64(5..35);
        }
        lags.sort_by(f64::total_cmp);
        let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
        (at(0.5), at(0.99), throttled as f64 / calls as f64)
    }

    #[test]
    fn a_fleet_shares_a_shard_without_starving_anyone() {
        // (p50, p99), within half as much again; the rule in the design's table has 16 and 30 s for 10 and 20.
        for (size, hint, p50, p99) in [
            (1, None, 0.51, 1.2),
            (5, None, 0.5, 1.2),
            (10, None, 1.1, 3.8),
            (20, None, 2.5, 10.0),
            (20, Some(20), 2.6, 5.3),
        ] {
            let (got50, got99, throttled) = fleet(size, hint, 40);
            assert!(got50 <= p50 * 1.5 && got99 <= p99 * 1.5, "{size} {hint:?}: {got50:.2} {got99:.2}");
            assert!(throttled <= 0.10, "{size} {hint:?}: {throttled:.3}");
        }
    }
}
