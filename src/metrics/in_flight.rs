//! How many requests are under way, and how many may be.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The requests under way. The count is the metric too: a request pays for one of them, not for two.
#[derive(Debug)]
pub struct InFlight {
    count: AtomicUsize,
    limit: AtomicUsize,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { count: AtomicUsize::new(0), limit: AtomicUsize::new(usize::MAX) }
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
        Flight { of: self, fits: before < self.limit.load(Ordering::Relaxed) }
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
}
