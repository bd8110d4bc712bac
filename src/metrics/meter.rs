//! What the server reads of itself, once a second: the handles of the recorder can only be written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use metrics::Gauge;

/// Steps of an octave: a duration is told to within 6 %.
const STEPS: usize = 8;
/// Up to 2^28 units, over a minute.
const BUCKETS: usize = 27 * STEPS;
/// The least that is told apart, in nanoseconds.
const UNIT: u64 = 256;

/// What a request asks for, where it is one of those that a server is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A prediction, over whatever protocol.
    Prediction,
    /// A state.
    State,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As asked.
    Well,
    /// By a fault of the client's.
    Refused,
    /// By a fault of the server's.
    Failed,
}

impl Ended {
    /// By the status of HTTP.
    pub fn by_status(status: u16) -> Self {
        match status {
            500.. => Self::Failed,
            400.. => Self::Refused,
            _ => Self::Well,
        }
    }
}

/// Requests and their durations since the start. Recording is one atomic operation, two where a request ended badly.
pub struct Traffic {
    predictions: Tally,
    states: Tally,
}

struct Tally {
    durations: Box<[AtomicU64]>,
    refused: AtomicU64,
    failed: AtomicU64,
}

/// The counts of one kind of request, at one moment or between two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    durations: Box<[u64]>,
    /// Of them, those that were refused.
    pub refused: u64,
    /// Of them, those that failed.
    pub failed: u64,
}

impl Default for Traffic {
    fn default() -> Self {
        let tally = || Tally {
            durations: std::iter::repeat_with(AtomicU64::default).take(BUCKETS).collect(),
            refused: AtomicU64::default(),
            failed: AtomicU64::default(),
        };
        Self { predictions: tally(), states: tally() }
    }
}

impl Traffic {
    fn of(&self, asked: Asked) -> &Tally {
        match asked {
            Asked::Prediction => &self.predictions,
            Asked::State => &self.states,
        }
    }

    /// Counts a request that was answered.
    pub fn record(&self, asked: Asked, duration: Duration, ended: Ended) {
        let tally = self.of(asked);
        if let Some(count) = tally.durations.get(bucket(duration)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        match ended {
            Ended::Well => {}
            Ended::Refused => drop(tally.refused.fetch_add(1, Ordering::Relaxed)),
            Ended::Failed => drop(tally.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// All of a kind until now.
    pub fn counts(&self, asked: Asked) -> Counts {
        let tally = self.of(asked);
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            durations: tally.durations.iter().map(read).collect(),
            refused: read(&tally.refused),
            failed: read(&tally.failed),
        }
    }
}

impl Counts {
    /// What came after an earlier moment.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let durations = self.durations.iter().zip(&before.durations);
        Self {
            durations: durations.map(|(now, before)| now.saturating_sub(*before)).collect(),
            refused: self.refused.saturating_sub(before.refused),
            failed: self.failed.saturating_sub(before.failed),
        }
    }

    /// Both together.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let durations = self.durations.iter().zip(&other.durations);
        Self {
            durations: durations.map(|(one, other)| one + other).collect(),
            refused: self.refused + other.refused,
            failed: self.failed + other.failed,
        }
    }

    /// How many requests.
    pub fn requests(&self) -> u64 {
        self.durations.iter().sum()
    }

    /// The duration that this share of them did not exceed, to within 6 %; nothing where there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let requests = self.requests();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let rank = ((requests as f64 * share).ceil() as u64).clamp(1, requests.max(1));
        let mut seen = 0;
        let found = self.durations.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map(middle)
    }
}

/// Eight of the first octaves are whole units; then each octave has eight steps.
fn bucket(duration: Duration) -> usize {
    let units = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX) / UNIT;
    let octave = usize::try_from(units.checked_ilog2().unwrap_or(0)).unwrap_or(0);
    let units = usize::try_from(units).unwrap_or(usize::MAX);
    let place = if octave < 3 { units } else { (octave - 2) * STEPS + ((units >> (octave - 3)) & (STEPS - 1)) };
    place.min(BUCKETS - 1)
}

/// The middle of a bucket.
fn middle(place: usize) -> Duration {
    let (octave, step) = (place / STEPS, (place % STEPS) as u64);
    let (from, width) = match octave.checked_sub(1) {
        None => (step, 1),
        Some(shift) => ((STEPS as u64 + step) << shift, 1 << shift),
    };
    Duration::from_nanos(from * UNIT + width * UNIT / 2)
}

/// A gauge that is read here too: written to a number, and copied to the recorder's when that is rendered.
pub(super) struct Mirror {
    pub(super) value: Arc<AtomicU64>,
    pub(super) shown: Gauge,
}

impl Mirror {
    pub(super) fn of(shown: Gauge) -> Self {
        Self { value: Arc::default(), shown }
    }

    pub(super) fn handle(&self) -> Gauge {
        Gauge::from_arc(Arc::clone(&self.value))
    }

    /// As it is now.
    pub(super) fn read(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }
}

/// When a service last answered, and what is wrong if it did not since.
#[derive(Default)]
pub struct Contact(Mutex<Contacted>);

/// The same, read.
#[derive(Debug, Clone, Default)]
pub struct Contacted {
    /// When it last answered.
    pub at: Option<SystemTime>,
    /// What was wrong when it was last asked: the kind of fault, and the same for a person.
    pub trouble: Option<(&'static str, String)>,
    /// When that was.
    asked: Option<Instant>,
}

/// For so long a fault is told. What cannot be had is asked for again sooner; nobody asks for what is wanted no more.
const TOLD: Duration = Duration::from_secs(120);

impl Contact {
    /// It answered.
    pub fn made(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Contacted { at: Some(SystemTime::now()), trouble: None, asked: None };
    }

    /// It did not.
    pub fn lost(&self, code: &'static str, detail: String) {
        let mut here = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (here.trouble, here.asked) = (Some((code, detail)), Some(Instant::now()));
    }

    /// As it is now.
    pub fn read(&self) -> Contacted {
        let mut here = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if here.asked.is_none_or(|asked| asked.elapsed() >= TOLD) {
            here.trouble = None;
        }
        here.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_comes_back_to_within_six_percent() {
        let mut nanos = 4_000_u64;
        while nanos < 60_000_000_000 {
            let duration = Duration::from_nanos(nanos);
            let told = middle(bucket(duration)).as_secs_f64();
            let off = (told / duration.as_secs_f64() - 1.0).abs();
            assert!(off < 0.065, "{duration:?} is told as {told} s");
            nanos += nanos / 7 + 1;
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        let places: Vec<usize> = (0..1_000_000).map(|units| bucket(Duration::from_nanos(units * UNIT))).collect();
        assert!(places.windows(2).all(|two| two[1] == two[0] || two[1] == two[0] + 1));
    }

    #[test]
    fn quantiles_are_of_what_came_in_between() {
        let traffic = Traffic::default();
        let record = |ms, ended| traffic.record(Asked::Prediction, Duration::from_millis(ms), ended);
        record(5_000, Ended::Failed);
        let before = traffic.counts(Asked::Prediction);
        (0..98).for_each(|_| record(1, Ended::Well));
        record(100, Ended::Refused);
        record(100, Ended::Failed);
        let counts = traffic.counts(Asked::Prediction).since(&before);
        assert_eq!((counts.requests(), counts.refused, counts.failed), (100, 1, 1));
        let about = |share: f64, ms: f64| {
            let told = counts.quantile(share).expect("requests").as_secs_f64() * 1e3;
            assert!((told / ms - 1.0).abs() < 0.065, "{share}: {told} ms");
        };
        about(0.5, 1.0);
        about(0.98, 1.0);
        about(0.99, 100.0);
        about(1.0, 100.0);
        assert_eq!(traffic.counts(Asked::State).quantile(0.5), None);
    }
}
