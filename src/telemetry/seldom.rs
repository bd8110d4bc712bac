//! A bound on how often the same is said.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines that anybody can cause, once a request: so many a second are said, and the rest is counted.
#[derive(Debug)]
pub struct Seldom {
    /// The second, since the first call, and how many lines were said in it.
    said: AtomicU64,
    unsaid: AtomicU64,
    most: u32,
    since: std::sync::OnceLock<Instant>,
}

impl Seldom {
    /// So many lines a second at the most.
    pub const fn new(most: u32) -> Self {
        Self { said: AtomicU64::new(0), unsaid: AtomicU64::new(0), most, since: std::sync::OnceLock::new() }
    }

    /// Whether to say it now, and how many times it was not said since it was said last. At most a few lines more come
    /// through where many ask at once.
    pub fn may_say(&self) -> Option<u64> {
        self.at(self.since.get_or_init(Instant::now).elapsed().as_secs())
    }

    fn at(&self, second: u64) -> Option<u64> {
        let now = second << 32;
        let said = self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |said| {
            let lines = if said >> 32 == second { said & u64::from(u32::MAX) } else { 0 };
            (lines < u64::from(self.most)).then_some(now | (lines + 1))
        });
        match said {
            Ok(_) => Some(self.unsaid.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.unsaid.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_too_often_is_counted() {
        let seldom = Seldom::new(2);
        assert_eq!([seldom.at(0), seldom.at(0), seldom.at(0), seldom.at(0)], [Some(0), Some(0), None, None]);
        assert_eq!([seldom.at(1), seldom.at(1), seldom.at(1), seldom.at(5)], [Some(2), Some(0), None, Some(1)]);
        assert_eq!(Seldom::new(1).may_say(), Some(0));
    }
}
