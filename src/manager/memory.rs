//! The memory of models: what may be taken, what is, and who has to go for a new one.
//!
//! ```text
//!   about to load ─► Memory::fits? ─ no ─► Budget::admit (pure): Fits | LetPreviousGo | UnloadFirst | Refuse
//!                        │ yes
//!                        └─► Lease: while it loads ─► Accounted: as long as the model lives, whoever holds it
//! ```
//!
//! A lease is given back when what it stands for is freed, so that the sum is right whatever is served, kept warm for a
//! rollback, or held by a request after it was replaced.

mod cgroup;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hotserve_models::{InferError, Model, Signature, Tensor};
use metrics::Gauge;

use crate::config::{MemoryBudget, MemoryPolicy};

/// The share of a container's memory that models may take, in hundredths: the rest is for requests, messages and the
/// program.
const SHARE: u64 = 80;

/// How much models may take, and what to do when a new one does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// In bytes.
    pub bytes: u64,
    /// Who has to go.
    pub policy: MemoryPolicy,
}

/// What models take once everything that was retired is freed, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// All of them, the two below included.
    pub all: u64,
    /// Those that are kept only to go back to.
    pub previous: u64,
    /// The one that the new one replaces.
    pub replaced: u64,
}

/// Whether a model may be loaded, and what has to happen first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// There is room, or will be when what was retired is freed.
    Fits,
    /// The models that are kept to go back to have to go.
    LetPreviousGo,
    /// So has the one that is to be replaced.
    UnloadFirst,
    /// It does not fit, whoever goes.
    Refuse,
}

impl Budget {
    /// The bound that a setting means on this machine.
    pub fn resolve(budget: MemoryBudget, policy: MemoryPolicy) -> Option<Self> {
        let bytes = match budget {
            MemoryBudget::None => return None,
            MemoryBudget::Bytes(bytes) => bytes,
            MemoryBudget::Auto => cgroup::limit()? / 100 * SHARE,
        };
        Some(Self { bytes, policy })
    }

    /// Who has to go so that `need` bytes more can be taken. Nobody goes in vain.
    pub fn admit(&self, held: Held, need: u64) -> Admission {
        let fits = |freed: u64| held.all.saturating_sub(freed).saturating_add(need) <= self.bytes;
        let unloads = self.policy == MemoryPolicy::Resource && held.replaced > 0;
        if fits(0) {
            Admission::Fits
        } else if held.previous > 0 && fits(held.previous) {
            Admission::LetPreviousGo
        } else if unloads && fits(held.previous.saturating_add(held.replaced)) {
            Admission::UnloadFirst
        } else {
            Admission::Refuse
        }
    }
}

/// What is taken at this moment.
pub struct Memory {
    budget: Option<Budget>,
    used: AtomicU64,
    gauge: Gauge,
}

impl Memory {
    /// Nothing is taken yet.
    pub fn new(budget: Option<Budget>, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self { budget, used: AtomicU64::new(0), gauge })
    }

    /// The bound, if there is one.
    pub fn budget(&self) -> Option<Budget> {
        self.budget
    }

    /// What is left, if there is a bound.
    pub fn room(&self) -> Option<u64> {
        self.budget.map(|budget| budget.bytes.saturating_sub(self.used.load(Ordering::Relaxed)))
    }

    /// Whether so many bytes more can be taken now.
    pub fn fits(&self, bytes: u64) -> bool {
        self.room().is_none_or(|room| bytes <= room)
    }

    /// Takes them, whether they fit or not: what is there is counted.
    pub fn lease(self: &Arc<Self>, bytes: u64) -> Lease {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes);
        self.show(used);
        Lease { memory: Arc::clone(self), bytes }
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
    fn show(&self, used: u64) {
        self.gauge.set(used as f64);
    }
}

/// Memory that is taken, until it is dropped.
pub struct Lease {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Lease {
    /// The same for another number of bytes.
    pub fn resized(self, bytes: u64) -> Self {
        // The new one first: in between, rather too much is counted than too little.
        let memory = Arc::clone(&self.memory);
        memory.lease(bytes)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let used = self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed).wrapping_sub(self.bytes);
        self.memory.show(used);
    }
}

/// A model whose memory is counted as long as it lives.
pub struct Accounted {
    // Freed first, and only then not counted any more.
    model: Box<dyn Model>,
    _lease: Lease,
}

impl Accounted {
    /// Counts what the model holds; `lease` was for its loading.
    pub fn new(model: Box<dyn Model>, lease: Lease) -> Self {
        let lease = lease.resized(model.memory_bytes() as u64);
        Self { model, _lease: lease }
    }
}

/// Every method of the trait is passed on: one with a default must be written here too.
impl Model for Accounted {
    fn signature(&self) -> &Signature {
        self.model.signature()
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        self.model.infer(inputs)
    }

    fn memory_bytes(&self) -> usize {
        self.model.memory_bytes()
    }

    fn engine(&self) -> &'static str {
        self.model.engine()
    }
}

/// Bytes, for a person.
pub fn human(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for a person")]
    let mib = bytes as f64 / f64::from(1 << 20);
    if bytes < 1 << 20 { format!("{bytes} bytes") } else { format!("{mib:.1} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn budget(policy: MemoryPolicy) -> Budget {
        Budget { bytes: 100, policy }
    }

    #[test]
    fn only_those_have_to_go_without_whom_it_fits() {
        use Admission::{Fits, LetPreviousGo, Refuse, UnloadFirst};
        let held = |all, previous, replaced| Held { all, previous, replaced };
        for (held, need, availability, resource) in [
            (held(0, 0, 0), 100, Fits, Fits),
            (held(0, 0, 0), 101, Refuse, Refuse),
            (held(40, 0, 40), 60, Fits, Fits),
            (held(40, 0, 40), 61, Refuse, UnloadFirst),
            (held(80, 40, 40), 20, Fits, Fits),
            (held(80, 40, 40), 60, LetPreviousGo, LetPreviousGo),
            (held(80, 40, 40), 61, Refuse, UnloadFirst),
            (held(80, 40, 40), 100, Refuse, UnloadFirst),
            (held(80, 40, 40), 101, Refuse, Refuse),
            // Another slot's model never has to go.
            (held(80, 0, 10), 31, Refuse, Refuse),
            (held(80, 0, 0), 21, Refuse, Refuse),
            (held(u64::MAX, 0, 0), u64::MAX, Refuse, Refuse),
        ] {
            let case = format!("{held:?} and {need}");
            assert_eq!(budget(MemoryPolicy::Availability).admit(held, need), availability, "{case}");
            assert_eq!(budget(MemoryPolicy::Resource).admit(held, need), resource, "{case}");
        }
    }

    #[test]
    fn a_lease_counts_until_it_is_dropped() {
        let memory = Memory::new(Some(budget(MemoryPolicy::Availability)), Gauge::noop());
        let lease = memory.lease(60);
        assert!(memory.fits(40) && !memory.fits(41));
        let lease = lease.resized(10);
        assert_eq!(memory.room(), Some(90));
        drop(lease);
        assert_eq!(memory.room(), Some(100));
        let over = memory.lease(150);
        assert_eq!(memory.room(), Some(0));
        drop(over);
        assert!(Memory::new(None, Gauge::noop()).fits(u64::MAX));
    }
}
