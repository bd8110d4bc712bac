//! A model's way to readiness, off the manager's task: fetched, then loaded and warmed on a thread of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use hotserve_models::Loaders;
use tokio::sync::oneshot;

use super::attempts::Attempts;
use super::stages::{Announced, Loaded, Refusal, Verified, Warm};
use crate::failpoint;
use crate::id::Digest;
use crate::notification::ModelUpdate;
use crate::store::{Artifact, Fetcher};

/// Seconds that each stage took.
pub type Stages = BTreeMap<&'static str, f64>;

/// Makes models ready. Cheap to clone; the loader thread ends with the last clone.
#[derive(Clone)]
pub struct Pipeline {
    fetcher: Arc<Fetcher>,
    loader: mpsc::Sender<Job>,
}

/// A model for the loader thread.
struct Job {
    artifact: Artifact,
    announced: Announced,
    answer: oneshot::Sender<(Result<Warm, Refusal>, [Duration; 3])>,
}

impl Pipeline {
    /// Starts the thread that loads and warms, one model at a time; inflated artifacts may have `max_bytes`.
    pub fn start(fetcher: Arc<Fetcher>, attempts: Attempts, loaders: Loaders, max_bytes: u64) -> std::io::Result<Self> {
        let (loader, inbox) = mpsc::channel();
        let work = move || work(&inbox, &attempts, &loaders, max_bytes);
        std::thread::Builder::new().name("loader".to_owned()).spawn(work)?;
        Ok(Self { fetcher, loader })
    }

    /// The whole way. Dropping the future abandons it; what is being loaded then is dropped where it was loaded.
    pub async fn prepare(&self, model: ModelUpdate, stages: &mut Stages) -> Result<(Artifact, Warm), Refusal> {
        let begun = Instant::now();
        let artifact = self.fetcher.fetch(&model.location).await?;
        stages.insert("fetch", begun.elapsed().as_secs_f64());
        let ModelUpdate { format, encoding, signature, golden, .. } = model;
        let announced = Announced { format, encoding, signature, golden };
        let warm = self.load(artifact.clone(), announced, stages).await?;
        Ok((artifact, warm))
    }

    /// The way from an artifact that is here.
    pub async fn load(&self, artifact: Artifact, announced: Announced, stages: &mut Stages) -> Result<Warm, Refusal> {
        let (answer, outcome) = oneshot::channel();
        let gone = || Refusal::new("panic", "the loader thread is gone");
        self.loader.send(Job { artifact, announced, answer }).map_err(|_| gone())?;
        let (result, times) = outcome.await.map_err(|_| gone())?;
        for (stage, time) in ["verify", "load", "warm"].into_iter().zip(times) {
            stages.insert(stage, time.as_secs_f64());
        }
        result
    }
}

fn work(inbox: &mpsc::Receiver<Job>, attempts: &Attempts, loaders: &Loaders, max_bytes: u64) {
    super::lower_priority();
    for Job { artifact, announced, answer } in inbox {
        if answer.is_closed() {
            // Superseded while it waited.
            continue;
        }
        let digest = artifact.digest();
        let begun = Instant::now();
        let verified = begin(attempts, digest);
        failpoint::hit("load.begun");
        let verified = verified.and_then(|()| Verified::read(&artifact));
        let verify = begun.elapsed();
        let loaded = verified.and_then(|verified| Loaded::load(verified, &announced, loaders, max_bytes));
        let load = begun.elapsed().saturating_sub(verify);
        let result = loaded.and_then(|loaded| loaded.warm_up(&announced));
        let warm = begun.elapsed().saturating_sub(verify + load);
        failpoint::hit("load.ended");
        attempts.end(digest);
        // Superseded meanwhile: the model is dropped here, off every other path.
        let _ = answer.send((result, [verify, load, warm]));
    }
}

/// What took the process down twice is not tried again.
fn begin(attempts: &Attempts, digest: Digest) -> Result<(), Refusal> {
    if attempts.is_quarantined(digest) {
        let detail = format!("artifact {} took the process down twice while it was loaded", digest.short());
        return Err(Refusal::new("quarantined", detail));
    }
    attempts.begin(digest).map_err(|error| Refusal::new("disk", format!("note the load of an artifact: {error}")))
}
