//! The time that a probe had: what it waited for a processor is not its own.
//!
//! A probe has a low priority. On a machine that is busy serving, a sound model may take ten times as long to load as on
//! an idle one, and must not be refused for that. One that hardly gets on at all is starved.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the threads of the probe are looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Even a probe that only waits does not wait for ever: how many times the timeout.
const MOST: u32 = 10;

/// After so long it shows whether a probe gets on. Longer, and a machine that never rests would see its swaps late.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// Runs out when the probe has had its time.
pub struct Clock {
    tasks: PathBuf,
    timeout: Duration,
    begun: Instant,
    looked: Instant,
    /// What each of its threads waited for a processor; threads come and go.
    waited: HashMap<String, Duration>,
    /// What they had waited before.
    before: HashMap<String, Duration>,
}

impl Clock {
    /// For a process that begins to work now.
    pub fn start(process: u32, timeout: Duration) -> Self {
        let tasks = PathBuf::from(format!("/proc/{process}/task"));
        let now = Instant::now();
        Self { before: waits(&tasks).collect(), tasks, timeout, begun: now, looked: now, waited: HashMap::new() }
    }

    /// Whether it has had its time.
    pub fn is_over(&mut self) -> bool {
        if self.looked.elapsed() >= LOOK {
            self.look();
            self.looked = Instant::now();
        }
        is_over(self.begun.elapsed(), self.waited.values().sum(), self.timeout)
    }

    /// Whether others keep the processor from it.
    pub fn is_starved(&self) -> bool {
        is_starved(self.begun.elapsed(), self.waited.values().sum())
    }

    fn look(&mut self) {
        for (task, waited) in waits(&self.tasks) {
            let before = self.before.get(&task).copied().unwrap_or_default();
            self.waited.insert(task, waited.saturating_sub(before));
        }
    }
}

/// What each thread of a process has waited for a processor.
fn waits(tasks: &Path) -> impl Iterator<Item = (String, Duration)> {
    std::fs::read_dir(tasks).into_iter().flatten().flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((task.file_name().to_string_lossy().into_owned(), waited(&text)?))
    })
}

fn is_over(wall: Duration, waited: Duration, timeout: Duration) -> bool {
    wall.saturating_sub(waited) > timeout || wall > timeout.saturating_mul(MOST)
}

/// Nine tenths of the time on a run queue.
fn is_starved(wall: Duration, waited: Duration) -> bool {
    wall > PATIENCE && waited > wall / 10 * 9
}

/// The second number of a `schedstat`: nanoseconds on a run queue.
fn waited(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_processor_has_more_time_but_not_for_ever() {
        let s = Duration::from_secs;
        assert!(!is_over(s(60), s(0), s(60)));
        assert!(is_over(s(61), s(0), s(60)));
        assert!(!is_over(s(500), s(440), s(60)));
        assert!(is_over(s(501), s(440), s(60)));
        assert!(is_over(s(601), s(601), s(60)));
        assert!(is_over(s(61), s(0), s(60)));
        assert!(!is_starved(Duration::from_millis(250), Duration::from_millis(250)));
        assert!(is_starved(s(10), Duration::from_millis(9_500)));
        assert!(!is_starved(s(10), s(8)));
        assert_eq!(waited("2316528 1500000000 12\n"), Some(Duration::from_millis(1500)));
        assert_eq!(waited(""), None);
    }

    #[test]
    fn this_very_process_is_looked_at() {
        let mut clock = Clock::start(std::process::id(), Duration::from_secs(3600));
        clock.look();
        assert!(!clock.waited.is_empty(), "no thread of {:?}", clock.tasks);
        assert!(!clock.is_over());
    }
}
