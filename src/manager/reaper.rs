//! The thread that frees what is no longer served, so that no request ever does: freeing a large model takes a while.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use metrics::Gauge;

use crate::serving::Snapshot;

const LOOK: Duration = Duration::from_millis(20);

/// The way to the reaper.
pub struct Reaper {
    retired: Sender<Arc<Snapshot>>,
}

impl Reaper {
    /// Starts the thread; it ends when the handle is dropped and everything is freed. `live` counts the snapshots
    /// that are not freed yet, the one that is served included.
    pub fn start(live: Gauge) -> std::io::Result<Self> {
        let (retired, inbox) = channel();
        live.set(1.0);
        std::thread::Builder::new().name("reaper".to_owned()).spawn(move || reap(&inbox, &live))?;
        Ok(Self { retired })
    }

    /// Hands over a snapshot that was replaced.
    pub fn retire(&self, snapshot: Arc<Snapshot>) {
        // A reaper that is gone means that the process is going; freeing it here is as good.
        let _ = self.retired.send(snapshot);
    }
}

fn reap(inbox: &Receiver<Arc<Snapshot>>, live: &Gauge) {
    super::lower_priority();
    let mut waiting: Vec<Arc<Snapshot>> = Vec::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        let newcomer = if waiting.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(LOOK)
        };
        match newcomer {
            Ok(snapshot) => waiting.push(snapshot),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                open = false;
                // Readers may hold on for a request's time still.
                std::thread::sleep(if waiting.is_empty() { Duration::ZERO } else { LOOK });
            }
        }
        // Nobody can get hold of a retired snapshot anew: once the count is one, it is ours alone.
        waiting.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        #[expect(clippy::cast_precision_loss, reason = "a number of snapshots")]
        live.set(waiting.len() as f64 + 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_snapshot_is_freed_by_the_reaper_and_not_before_its_readers_let_go() {
        let reaper = Reaper::start(Gauge::noop()).expect("a thread");
        let snapshot = Arc::new(Snapshot::default());
        let watch = Arc::downgrade(&snapshot);
        let reader = Arc::clone(&snapshot);
        reaper.retire(snapshot);
        std::thread::sleep(3 * LOOK);
        assert!(watch.upgrade().is_some(), "a reader has it");
        drop(reader);
        let deadline = Instant::now() + Duration::from_secs(10);
        while watch.strong_count() > 0 && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        assert_eq!(watch.strong_count(), 0);
    }
}
