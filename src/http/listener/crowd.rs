//! All connections of one port, and which of them can be spared.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::Id;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;

/// How many of the longest idle are looked up at once: a look goes over all connections.
const BATCH: usize = 64;
/// How long a look that has found nobody is believed: else those who come while all are busy cost a look each.
const BELIEVED: Duration = Duration::from_millis(10);

/// The connections that are open.
#[derive(Default)]
pub(super) struct Crowd {
    all: HashMap<Id, Member>,
    /// Those that were idle longest when last looked, the longest first.
    spare: VecDeque<(u64, Id)>,
    /// When a look found nobody.
    nobody: Option<Instant>,
}

struct Member {
    activity: Arc<Activity>,
    stop: CancellationToken,
    evicted: bool,
}

impl Crowd {
    pub(super) fn add(&mut self, id: Id, activity: Arc<Activity>, stop: CancellationToken) {
        self.all.insert(id, Member { activity, stop, evicted: false });
    }

    /// Forgets one that has ended. Whether it had been told to.
    pub(super) fn remove(&mut self, id: Id) -> bool {
        self.all.remove(&id).is_some_and(|member| member.evicted)
    }

    /// Tells the connection to end that has done nothing for the longest time: one that answers nothing, and neither
    /// a request nor an answer is lost with it. Whether there was one.
    pub(super) fn evict(&mut self) -> bool {
        self.evict_known() || (self.look() && self.evict_known())
    }

    fn evict_known(&mut self) -> bool {
        while let Some((since, id)) = self.spare.pop_front() {
            // It may have ended, or may have been asked something since.
            if let Some(member) = self.all.get_mut(&id).filter(|member| member.is_spare() == Some(since)) {
                member.evicted = true;
                member.stop.cancel();
                return true;
            }
        }
        false
    }

    fn look(&mut self) -> bool {
        if self.nobody.is_some_and(|at| at.elapsed() < BELIEVED) {
            return false;
        }
        let mut idle: Vec<_> = self.all.iter().filter_map(|(id, member)| Some((member.is_spare()?, *id))).collect();
        if idle.len() > BATCH {
            idle.select_nth_unstable_by_key(BATCH, |(since, _)| *since);
            idle.truncate(BATCH);
        }
        idle.sort_unstable_by_key(|(since, _)| *since);
        self.spare = idle.into();
        self.nobody = self.spare.is_empty().then(Instant::now);
        self.nobody.is_none()
    }
}

impl Member {
    fn is_spare(&self) -> Option<u64> {
        if self.evicted { None } else { self.activity.idle_since() }
    }
}
