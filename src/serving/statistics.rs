//! What one version of a model has answered, as the Open Inference Protocol's statistics count it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Counters since the model was made ready. They only grow, and each is exact; read together under load they may be a
/// request apart.
#[derive(Debug, Default)]
pub struct Statistics {
    requests: AtomicU64,
    rows: AtomicU64,
    /// Nanoseconds waited, parsed, inferred and written.
    parts: [AtomicU64; 4],
    failures: AtomicU64,
    failed: AtomicU64,
    /// Milliseconds since 1970.
    last: AtomicU64,
}

/// How often, and how long altogether.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// How often.
    pub count: u64,
    /// Nanoseconds.
    pub nanos: u64,
}

/// The counters at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Requests answered, and all of their time.
    pub success: Total,
    /// Requests refused or failed.
    pub fail: Total,
    /// The time spent waiting for a thread.
    pub queue: Total,
    /// The time spent reading the inputs.
    pub input: Total,
    /// The time spent in the model.
    pub infer: Total,
    /// The time spent writing the outputs.
    pub output: Total,
    /// Rows answered.
    pub rows: u64,
    /// The last answer, in milliseconds since 1970; 0 where there was none.
    pub last: u64,
}

impl Statistics {
    /// Counts an answer: its rows, and the time it waited, was parsed, inferred and written.
    pub fn answered(&self, rows: usize, parts: [Duration; 4]) {
        add(&self.requests, 1);
        add(&self.rows, rows as u64);
        for (total, part) in self.parts.iter().zip(parts) {
            add(total, nanos(part));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts a request that was not answered, and how long that took.
    pub fn failed(&self, took: Duration) {
        add(&self.failures, 1);
        add(&self.failed, nanos(took));
    }

    /// The counters now.
    pub fn counted(&self) -> Counted {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let count = get(&self.requests);
        let [queue, input, infer, output] = self.parts.each_ref().map(|part| Total { count, nanos: get(part) });
        let all = [queue, input, infer, output].iter().fold(0_u64, |sum, part| sum.wrapping_add(part.nanos));
        Counted {
            success: Total { count, nanos: all },
            fail: Total { count: get(&self.failures), nanos: get(&self.failed) },
            queue,
            input,
            infer,
            output,
            rows: get(&self.rows),
            last: get(&self.last),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_failures_add_up() {
        let statistics = Statistics::default();
        statistics.answered(3, [1, 2, 3, 4].map(Duration::from_nanos));
        statistics.answered(1, [10, 20, 30, 40].map(Duration::from_nanos));
        statistics.failed(Duration::from_nanos(5));
        let counted = statistics.counted();
        let total = |nanos| Total { count: 2, nanos };
        assert_eq!(counted.success, total(110));
        assert_eq!([counted.queue, counted.input, counted.infer, counted.output], [11, 22, 33, 44].map(total));
        assert_eq!((counted.fail, counted.rows), (Total { count: 1, nanos: 5 }, 4));
        assert!(counted.last > 1_700_000_000_000, "{counted:?}");
    }
}
