//! How many requests are under way, and how many may be.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The requests under way. The count is the metric too: a request pays for one of them, not for two.
#[derive(Debug)]
pub struct InFlight {
    count: AtomicUsize,
    limit: AtomicUsize,
    waiting: AtomicUsize,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), limit: AtomicUsize::new(usize::MAX), waiting: AtomicUsize::new(0) }
    }
}

impl InFlight {
    /// How many there may be from now on, of those that have to ask.
    pub fn limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts a request until it is dropped.
    pub fn enter(&self) -> Flight<'_> {
        let before = self.count.fetch_add(1, Ordering::Relaxed);
        // The same line of memory as the count, which this processor has now.
        let places = self.limit.load(Ordering::Relaxed).saturating_add(self.waiting.load(Ordering::Relaxed));
        Flight { of: self, fits: before < places }
    }

    /// Lets another have the place of a request that waits for something to happen, until this is dropped.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }
}

/// A request under way: until it is answered, or its client has gone.
#[must_use = "it counts until it is dropped"]
pub struct Flight<'f> {
    of: &'f InFlight,
    fits: bool,
}

impl Flight<'_> {
    /// Whether it is within the limit.
    pub fn fits(&self) -> bool {
        self.fits
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.of.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request under way that does nothing.
#[must_use = "it waits until this is dropped"]
pub struct Waiting<'f>(&'f InFlight);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_when_all_places_are_taken_does_not_fit_until_one_is_free() {
        let all = InFlight::default();
        all.limit(2);
        let (first, second) = (all.enter(), all.enter());
        assert!(first.fits() && second.fits());
        assert!(!all.enter().fits());
        assert_eq!(all.count(), 2, "who does not fit takes no place");
        drop(first);
        assert!(all.enter().fits());
    }

    #[test]
    fn who_only_waits_takes_no_place() {
        let all = InFlight::default();
        all.limit(1);
        let poll = all.enter();
        let waiting = all.wait();
        assert!(poll.fits() && all.enter().fits());
        assert_eq!(all.count(), 1, "it is under way all the same");
        drop(waiting);
        assert!(!all.enter().fits());
    }
}
