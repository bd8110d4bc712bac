//! The thread that frees what is no longer served, so that no request ever does: freeing a large model takes a while.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use metrics::Gauge;

use crate::serving::{ServedModel, Snapshot};

const LOOK: Duration = Duration::from_millis(20);

/// The way to the reaper.
pub struct Reaper {
    retired: Sender<Retired>,
}

/// A snapshot that was replaced, and the models that went with it: a request may hold its model longer than the
/// snapshot that it took it from.
struct Retired {
    snapshot: Option<Arc<Snapshot>>,
    models: Vec<Arc<ServedModel>>,
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

    /// Hands over a snapshot that was replaced, and those of its models that the next one does not have.
    pub fn retire(&self, snapshot: Arc<Snapshot>, models: Vec<Arc<ServedModel>>) {
        self.send(Some(snapshot), models);
    }

    /// Hands over a model that no snapshot has any more.
    pub fn retire_model(&self, model: Arc<ServedModel>) {
        self.send(None, vec![model]);
    }

    fn send(&self, snapshot: Option<Arc<Snapshot>>, models: Vec<Arc<ServedModel>>) {
        // A snapshot may know it still, as the one before.
        models.iter().for_each(|model| model.retire());
        // A reaper that is gone means that the process is going; freeing it here is as good.
        let _ = self.retired.send(Retired { snapshot, models });
    }
}

fn reap(inbox: &Receiver<Retired>, live: &Gauge) {
    super::lower_priority();
    let mut snapshots: Vec<Arc<Snapshot>> = Vec::new();
    let mut models: Vec<Arc<ServedModel>> = Vec::new();
    let mut open = true;
    while open || !snapshots.is_empty() || !models.is_empty() {
        let newcomer = if snapshots.is_empty() && models.is_empty() {
            inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            inbox.recv_timeout(LOOK)
        };
        match newcomer {
            Ok(retired) => {
                snapshots.extend(retired.snapshot);
                models.extend(retired.models);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                // Readers may hold on for a request's time still.
                if !open {
                    std::thread::sleep(LOOK);
                }
                open = false;
            }
        }
        // Nobody can get hold of a retired snapshot anew: once the count is one, it is ours alone. A model may be looked
        // at just now by who knows it weakly, hence in one step: either it is taken out here, or that one has it.
        snapshots.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        models = models.into_iter().filter_map(|model| Arc::try_unwrap(model).map(drop).err()).collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of snapshots")]
        live.set(snapshots.len() as f64 + 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, Rank};
    use crate::serving::ModelFacts;
    use hotserve_models::{InferError, Model, Signature, Tensor};

    /// Says on which thread it was freed.
    struct Witness(Signature, Sender<String>);

    impl Model for Witness {
        fn signature(&self) -> &Signature {
            &self.0
        }

        fn infer(&self, _: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
            Ok(vec![])
        }

        fn memory_bytes(&self) -> usize {
            0
        }

        fn engine(&self) -> &'static str {
            "witness"
        }
    }

    impl Drop for Witness {
        fn drop(&mut self) {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            // The test that does not listen any more has failed.
            let _ = self.1.send(thread);
        }
    }

    fn snapshot(freed: &Sender<String>) -> Arc<Snapshot> {
        Arc::new(Snapshot::default().with(vec![], vec![model(freed)]))
    }

    fn model(freed: &Sender<String>) -> ServedModel {
        let facts = ModelFacts {
            name: "m".parse().expect("a name"),
            rank: Rank::Initial,
            label: None,
            format: "witness".parse().expect("a format"),
            digest: Digest::of(b""),
            size: 0,
            published_at: None,
        };
        let signature = Signature { inputs: vec![], outputs: vec![] };
        ServedModel::new(facts, Box::new(Witness(signature, freed.clone())), Duration::ZERO)
    }

    #[test]
    fn what_was_served_before_is_found_until_it_is_retired_and_then_freed_by_the_reaper() {
        let reaper = Reaper::start(Gauge::noop()).expect("a thread");
        let (freed, heard) = channel();
        let first = snapshot(&freed);
        let kept_warm = Arc::clone(first.model("m").expect("it has one"));
        let second = first.with(vec![], vec![model(&freed)]);
        reaper.retire(first, vec![]);
        assert!(heard.recv_timeout(3 * LOOK).is_err(), "it is kept warm");
        let reader = second.previous("m").expect("it is kept warm");
        reaper.retire_model(kept_warm);
        assert!(second.previous("m").is_none(), "nobody finds it anew, though a reader has it");
        assert!(heard.recv_timeout(3 * LOOK).is_err(), "the reader has it");
        drop(reader);
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)).as_deref(), Ok("reaper"));
        assert!(second.previous("m").is_none());
    }

    #[test]
    fn whoever_holds_on_longest_a_model_is_freed_by_the_reaper() {
        let reaper = Reaper::start(Gauge::noop()).expect("a thread");
        let (freed, heard) = channel();
        // A reader may have taken the snapshot, or only a model out of it.
        let take_model = |snapshot: &Arc<Snapshot>| Arc::clone(snapshot.model("m").expect("it has one"));
        for takes_snapshot in [true, false] {
            let snapshot = snapshot(&freed);
            let held_snapshot = takes_snapshot.then(|| Arc::clone(&snapshot));
            let held_model = (!takes_snapshot).then(|| take_model(&snapshot));
            let models = vec![take_model(&snapshot)];
            reaper.retire(snapshot, models);
            assert!(heard.recv_timeout(3 * LOOK).is_err(), "a reader has it");
            drop((held_snapshot, held_model));
            assert_eq!(heard.recv_timeout(Duration::from_secs(10)).as_deref(), Ok("reaper"));
        }
    }
}
