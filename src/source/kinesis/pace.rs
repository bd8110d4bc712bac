//! How fast to ask: additive increase, multiplicative decrease, with jitter. Pure but for the dice.
//!
//! Every instance reads the same shard, which answers five reads a second to all of them together. "Back off when
//! throttled, full speed on success" lets one instance win and starves the others; a rate that falls by a fifth and
//! grows slowly shares what there is.

use std::time::Duration;

/// How fast to catch up: below the five reads a second that a shard allows.
const CATCH_UP: Duration = Duration::from_millis(250);
/// The slowest poll: an iterator lives for five minutes.
const SLOWEST: Duration = Duration::from_secs(240);

/// The pace of one shard's reader.
#[derive(Debug, Clone)]
pub struct Pace {
    interval: Duration,
    /// Polls a second, at the tip.
    rate: f64,
    /// Faults in a row.
    faults: u32,
}

impl Pace {
    /// Polls no faster than once an interval.
    pub fn new(interval: Duration) -> Self {
        Self { interval, rate: 1.0 / interval.as_secs_f64(), faults: 0 }
    }

    /// The time between polls at the tip, without jitter.
    pub fn interval(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate).min(SLOWEST)
    }

    /// The pause before the next poll. Jittered, so that instances that started together do not stay in step.
    pub fn pause(&self, is_behind: bool) -> Duration {
        let full = if is_behind {
            // As much slower than usual as the throttling asks for.
            let top = 1.0 / self.interval.as_secs_f64();
            CATCH_UP.min(self.interval).mul_f64(top / self.rate)
        } else {
            self.interval()
        };
        full.mul_f64(0.75 + fastrand::f64() / 2.0).min(SLOWEST)
    }

    /// The stream answered.
    pub fn on_success(&mut self) {
        self.faults = 0;
        let top = 1.0 / self.interval.as_secs_f64();
        self.rate = (self.rate + (0.03 * self.rate * self.rate).max(0.0008)).min(top);
    }

    /// The stream said: too fast.
    pub fn on_throttle(&mut self) {
        self.rate = (self.rate * 0.8).max(1.0 / 600.0);
    }

    /// The stream did not answer: a pause that doubles, up to a limit, with full jitter.
    pub fn on_fault(&mut self, longest: Duration) -> Duration {
        let full = Duration::from_millis(200).saturating_mul(1 << self.faults.min(10)).min(longest);
        self.faults += 1;
        full.mul_f64(0.1 + 0.9 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttling_slows_down_and_success_restores() {
        let mut pace = Pace::new(Duration::from_secs(1));
        assert!(pace.pause(false) >= Duration::from_millis(750));
        for _ in 0..50 {
            pace.on_throttle();
        }
        assert_eq!(pace.interval(), SLOWEST);
        assert!(pace.pause(false) <= SLOWEST && pace.pause(true) <= SLOWEST);
        for _ in 0..100_000 {
            pace.on_success();
        }
        assert_eq!(pace.interval(), Duration::from_secs(1));
    }

    #[test]
    fn faults_are_met_with_growing_bounded_pauses() {
        let mut pace = Pace::new(Duration::from_secs(1));
        let longest = Duration::from_secs(10);
        assert!(pace.on_fault(longest) <= Duration::from_millis(200));
        let pauses: Vec<_> = (0..100).map(|_| pace.on_fault(longest)).collect();
        assert!(pauses.iter().all(|pause| *pause <= longest && !pause.is_zero()));
    }
}
