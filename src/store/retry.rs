//! When to ask again: pauses that grow, spread so that a fleet does not ask in step, within a budget for all fetches.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How many retries there may be at once, of all fetches together.
const BURST: f64 = 20.0;
/// How many there may be a second for long.
const PER_SECOND: f64 = 2.0;

/// The pauses of one fetch.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Backoff {
    /// The next pause: anything up to a bound that doubles ("full jitter").
    pub fn pause(&mut self) -> Duration {
        let bound = self.0;
        self.0 = (bound * 2).min(LONGEST_PAUSE);
        bound.mul_f64(fastrand::f64())
    }
}

/// Retries that all fetches share: however many artifacts cannot be had, a store in trouble is not asked more often.
#[derive(Debug)]
pub struct Budget(Mutex<(f64, Instant)>);

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }
}

impl Budget {
    /// Takes one retry. Answers how long to wait for it.
    pub fn take(&self, now: Instant) -> Duration {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = *budget;
        let earned = now.saturating_duration_since(at).as_secs_f64() * PER_SECOND;
        // A debt has an end as well: an outage of hours is not paid for afterwards.
        let left = ((left + earned).min(BURST) - 1.0).max(-BURST);
        *budget = (left, now.max(at));
        Duration::from_secs_f64((-left).max(0.0) / PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_are_spread_from_nothing_on() {
        let mut largest = [Duration::ZERO; 12];
        let mut smallest = [Duration::MAX; 12];
        for _ in 0..500 {
            let mut backoff = Backoff::default();
            for (largest, smallest) in largest.iter_mut().zip(&mut smallest) {
                let pause = backoff.pause();
                *largest = pause.max(*largest);
                *smallest = pause.min(*smallest);
            }
        }
        for (number, (largest, smallest)) in largest.into_iter().zip(smallest).enumerate() {
            let bound = (FIRST_PAUSE * 2_u32.pow(number as u32)).min(LONGEST_PAUSE);
            assert!(largest <= bound && largest > bound.mul_f64(0.9), "{number}: {largest:?} of {bound:?}");
            assert!(smallest < bound.mul_f64(0.1), "{number}: {smallest:?} of {bound:?}");
        }
    }

    #[test]
    fn a_burst_is_free_and_what_comes_then_waits_its_turn() {
        let budget = Budget::default();
        let start = Instant::now();
        let waits: Vec<Duration> = (0..40).map(|_| budget.take(start)).collect();
        assert!(waits[..20].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[39], Duration::from_secs(10), "the twentieth after the burst, at two a second");
        assert_eq!(budget.take(start + Duration::from_secs(60)), Duration::ZERO, "earned back");
        let burst = (0..40).filter(|_| budget.take(start + Duration::from_secs(3600)).is_zero()).count();
        assert_eq!(burst, 20, "no more than a burst is saved up");
    }
}
