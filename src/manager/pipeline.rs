//! A model's way to readiness, off the manager's task: fetched, tried in a probe, then loaded and warmed on a thread of
//! its own.
//!
//! One model at a time is tried and loaded: what that takes of memory and processor is known then, and the next one
//! waits at most until `--load-timeout`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use hotserve_models::{Loaders, Signature};
use tokio::sync::{Semaphore, mpsc as channel, oneshot};

use super::attempts::Attempts;
use super::memory::{Accounted, Budget, Lease, Memory, human};
use super::probe::{self, Facts, Prober, Request};
use super::room::{NeedsRoom, RoomEvent};
use super::stages::{Announced, Gates, LOAD_STACK, Loaded, Proved, Refusal, Verified, Warm, slowed_down, too_slow};
use super::timing::Stages;
use crate::config::GatesConfig;
use crate::failpoint;
use crate::id::{Digest, ModelName};
use crate::metrics::Metrics;
use crate::notification::ModelUpdate;
use crate::store::{Artifact, Fetcher};
use crate::telemetry;

/// What a probe may take without a budget: so much, and so many times the artifact.
const PROBE_LEAST: u64 = 1 << 30;
const PROBE_RATIO: u64 = 16;
/// How long to wait until what was let go is freed: no request is to take longer.
const FREED: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// How many measured models are remembered.
const REMEMBERED: usize = 1000;

/// Makes models ready. Cheap to clone; the loader thread ends with the last clone.
#[derive(Clone)]
pub struct Pipeline {
    fetcher: Arc<Fetcher>,
    loader: mpsc::Sender<Job>,
    shop: Arc<Shop>,
}

/// What all models on their way share.
struct Shop {
    config: GatesConfig,
    gates: Gates,
    loaders: Loaders,
    memory: Arc<Memory>,
    /// None: models are tried in the server.
    prober: Option<Prober>,
    turn: Semaphore,
    room: channel::UnboundedSender<RoomEvent>,
    /// What one row of the models that passed took, measured by probes.
    row_times: Mutex<HashMap<Digest, Duration>>,
}

/// A model for the loader thread.
struct Job {
    proved: Proved,
    lease: Lease,
    answer: oneshot::Sender<(Result<Warm, Refusal>, [Duration; 3])>,
}

/// The model that a new one is to replace.
pub struct Served {
    /// Its bytes.
    pub artifact: Artifact,
    /// What was said of it.
    pub announced: Announced,
}

impl Pipeline {
    /// Decides where models are tried, and starts the thread that loads and warms; inflated artifacts may have
    /// `max_bytes`. Who lacks memory asks for it through `room`.
    pub fn start(
        fetcher: Arc<Fetcher>,
        attempts: Arc<Attempts>,
        loaders: Loaders,
        max_bytes: u64,
        config: GatesConfig,
        metrics: &Arc<Metrics>,
        room: channel::UnboundedSender<RoomEvent>,
    ) -> std::io::Result<Self> {
        let GatesConfig { allow_non_finite, max_batch_rows, .. } = config;
        let gates = Gates { max_bytes, allow_non_finite, max_batch_rows };
        let budget = Budget::resolve(config.memory_budget, config.memory_policy);
        #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
        metrics.memory_budget.set(budget.map_or(0.0, |budget| budget.bytes as f64));
        let prober = probe::settle(&config.isolation, config.load_timeout, metrics)?;
        let shop = Shop {
            memory: Memory::new(budget, metrics.memory_used.clone()),
            config,
            gates,
            loaders,
            prober,
            turn: Semaphore::new(1),
            room,
            row_times: Mutex::default(),
        };
        let shop = Arc::new(shop);
        let (loader, inbox) = mpsc::channel();
        let (gates, loaders) = (shop.gates, shop.loaders.clone());
        std::thread::Builder::new()
            .name("loader".to_owned())
            .stack_size(LOAD_STACK)
            .spawn(move || work(&inbox, &attempts, &loaders, gates))?;
        Ok(Self { fetcher, loader, shop })
    }

    /// The bound on the memory of models.
    pub fn budget(&self) -> Option<Budget> {
        self.shop.memory.budget()
    }

    /// Where models are tried: `process` or `thread`.
    pub fn isolation(&self) -> &'static str {
        if self.shop.prober.is_some() { "process" } else { "thread" }
    }

    /// Whether a new model is compared with the one that it replaces.
    pub fn compares(&self) -> bool {
        self.shop.config.max_slowdown.is_some()
    }

    /// The whole way. Dropping the future abandons it: a probe is killed, and what is being loaded then is dropped where
    /// it was loaded.
    pub async fn prepare(
        &self,
        model: ModelUpdate,
        served: Option<Served>,
        stages: &mut Stages,
    ) -> Result<(Artifact, Warm), Refusal> {
        let begun = Instant::now();
        let fetched = telemetry::within(stages.trace.context(), self.fetcher.fetch(&model.location)).await;
        stages.end("fetch", begun);
        let artifact = fetched?;
        let ModelUpdate { name, format, encoding, signature, golden, limits, .. } = model;
        let contract: Option<Signature> = self.shop.config.contracts.get(&name).cloned();
        let slot = Some(name.clone());
        let announced = Announced { name: slot, format, encoding, signature, golden, limits, contract };

        let _turn = self.shop.turn.acquire().await.expect("the semaphore is never closed");
        let mut need = self.shop.estimate(&artifact, &announced);
        let lease = self.shop.room(&name, need).await?;
        let proved = match &self.shop.prober {
            None => Proved::by_nobody(artifact.clone(), announced),
            Some(prober) => {
                drop(lease);
                let begun = Instant::now();
                let facts = self.shop.probe(prober, &artifact, &announced).await;
                stages.end("probe", begun);
                let facts = facts?;
                self.shop.judge(&facts, &announced)?;
                if let Some(served) = served {
                    self.shop.compare(prober, &facts, &artifact, served).await?;
                }
                self.shop.remember(artifact.digest(), facts.row_cost);
                need = facts.peak_bytes.unwrap_or(need).max(facts.model_bytes);
                Proved::by_probe(artifact.clone(), announced)
            }
        };
        let lease = self.shop.room(&name, need).await?;
        let limits = proved.announced.limits;
        let warm = self.load_proved(proved, lease, stages).await?;
        if self.shop.prober.is_none() {
            // Nobody has measured it before.
            let facts = Facts {
                model_bytes: warm.model.memory_bytes() as u64,
                peak_bytes: None,
                row_cost: warm.row_cost,
                row_p50: warm.row_p50,
                row_p99: warm.row_p99,
            };
            self.shop.judge_measured(&facts, limits.memory_bytes, limits.row_time)?;
        }
        Ok((artifact, warm))
    }

    /// The way from an artifact that is here and was served here before: it needs no probe, and its memory is counted but
    /// not refused.
    pub async fn load(&self, artifact: Artifact, announced: Announced, stages: &mut Stages) -> Result<Warm, Refusal> {
        let lease = self.shop.memory.lease(self.shop.estimate(&artifact, &announced));
        self.load_proved(Proved::by_service(artifact, announced), lease, stages).await
    }

    /// The same for a slot that serves nothing: others may have taken the room that it had.
    pub async fn load_into_room(
        &self,
        name: &ModelName,
        artifact: Artifact,
        announced: Announced,
        stages: &mut Stages,
    ) -> Result<Warm, Refusal> {
        let lease = self.shop.room(name, self.shop.estimate(&artifact, &announced)).await?;
        self.load_proved(Proved::by_service(artifact, announced), lease, stages).await
    }

    async fn load_proved(&self, proved: Proved, lease: Lease, stages: &mut Stages) -> Result<Warm, Refusal> {
        let (answer, outcome) = oneshot::channel();
        let gone = || Refusal::new("panic", "the loader thread is gone");
        self.loader.send(Job { proved, lease, answer }).map_err(|_| gone())?;
        let (result, times) = outcome.await.map_err(|_| gone())?;
        let mut begun = Instant::now().checked_sub(times.iter().sum()).unwrap_or_else(Instant::now);
        for (stage, time) in ["verify", "load", "warm"].into_iter().zip(times) {
            stages.note(stage, begun, time);
            begun += time;
        }
        result
    }
}

impl Shop {
    /// What loading takes at its peak, before anybody has measured it.
    fn estimate(&self, artifact: &Artifact, announced: &Announced) -> u64 {
        let loader = self.loaders.get(announced.format.as_str());
        let estimate = loader.map_or(0, |loader| loader.memory_estimate(artifact.size()));
        // Who says how much the model may hold knows more of it than its size tells.
        let said = announced.limits.memory_bytes.map_or(0, |bytes| bytes.saturating_add(artifact.size()));
        estimate.max(said)
    }

    /// Takes memory, and has others go for it where that helps.
    async fn room(&self, name: &ModelName, need: u64) -> Result<Lease, Refusal> {
        let Some(budget) = self.memory.budget().filter(|_| !self.memory.fits(need)) else {
            return Ok(self.memory.lease(need));
        };
        let (answer, outcome) = oneshot::channel();
        let asked = NeedsRoom { name: name.clone(), need, answer };
        let gone = || Refusal::new("unavailable", "the manager is gone");
        self.room.send(RoomEvent::Needed(asked)).map_err(|_| gone())?;
        outcome.await.map_err(|_| gone())?.map_err(|detail| Refusal::new("memory", detail))?;
        // What goes is freed by the reaper, when the last request lets go of it.
        let begun = Instant::now();
        while !self.memory.fits(need) {
            if begun.elapsed() > FREED {
                let detail = format!(
                    "it takes {} to load, and of the {} of the budget too much is still held by requests",
                    human(need),
                    human(budget.bytes)
                );
                return Err(Refusal::new("memory", detail));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(self.memory.lease(need))
    }

    async fn probe(&self, prober: &Prober, artifact: &Artifact, announced: &Announced) -> Result<Facts, Refusal> {
        match self.probe_once(prober, artifact, announced).await {
            Err(refusal) if refusal.reason == "memory" && self.memory.budget().is_some() => {
                // What is kept to go back to may go; what is served does not go for a model of unknown appetite.
                if !self.let_previous_go().await {
                    return Err(refusal);
                }
                self.probe_once(prober, artifact, announced).await
            }
            result => result,
        }
    }

    async fn probe_once(&self, prober: &Prober, artifact: &Artifact, announced: &Announced) -> Result<Facts, Refusal> {
        let most = artifact.size().saturating_mul(PROBE_RATIO).saturating_add(PROBE_LEAST);
        let memory = self.memory.room().unwrap_or(most);
        let request = Request {
            path: artifact.path().to_owned(),
            digest: artifact.digest(),
            announced: announced.clone(),
            gates: self.gates,
            memory,
            time: self.config.load_timeout,
        };
        // Without a budget, the bound is far above what it takes.
        let counted = if self.memory.budget().is_some() { memory } else { self.estimate(artifact, announced) };
        prober.run(request, self.memory.lease(counted)).await
    }

    /// Asks for the room that those take who are kept to go back to. Answers whether there is any more now.
    async fn let_previous_go(&self) -> bool {
        let (answer, outcome) = oneshot::channel();
        let before = self.memory.room();
        if self.room.send(RoomEvent::PreviousUnwanted(answer)).is_err() {
            return false;
        }
        if !outcome.await.unwrap_or(false) {
            return false;
        }
        let begun = Instant::now();
        while self.memory.room() <= before && begun.elapsed() < FREED {
            tokio::time::sleep(LOOK).await;
        }
        self.memory.room() > before
    }

    /// The bounds that need nothing but the model.
    fn judge(&self, facts: &Facts, announced: &Announced) -> Result<(), Refusal> {
        self.judge_measured(facts, announced.limits.memory_bytes, announced.limits.row_time)
    }

    fn judge_measured(&self, facts: &Facts, memory: Option<u64>, row_time: Option<Duration>) -> Result<(), Refusal> {
        if let Some(bound) = memory.filter(|bound| facts.model_bytes > *bound) {
            let detail = format!("it holds {} of memory, and the message allows {bound}", facts.model_bytes);
            return Err(Refusal::new("memory", detail));
        }
        // A message may only tighten.
        let bound = [self.config.max_row_time, row_time].into_iter().flatten().min();
        too_slow(facts.row_cost, bound).map_or(Ok(()), |detail| Err(Refusal::new("too_slow", detail)))
    }

    /// The bound that the served model sets. A machine has busy hours: before anything is refused, the served model is
    /// measured anew, right behind the new one.
    async fn compare(
        &self,
        prober: &Prober,
        facts: &Facts,
        artifact: &Artifact,
        served: Served,
    ) -> Result<(), Refusal> {
        let Some(factor) = self.config.max_slowdown.filter(|_| served.artifact.digest() != artifact.digest()) else {
            return Ok(());
        };
        let known = self.row_time(served.artifact.digest());
        if known.is_some_and(|served| slowed_down(facts.row_cost, served, factor).is_none()) {
            return Ok(());
        }
        let again = match self.probe_once(prober, &served.artifact, &served.announced).await {
            Ok(facts) => facts.row_cost,
            Err(refusal) => {
                tracing::warn!(
                    digest = %served.artifact.digest().short(),
                    reason = %refusal.reason,
                    "the served model could not be measured, and the new one not be compared with it: {refusal}"
                );
                return Ok(());
            }
        };
        let served = known.map_or(again, |known| known.max(again));
        slowed_down(facts.row_cost, served, factor).map_or(Ok(()), |detail| Err(Refusal::new("too_slow", detail)))
    }

    fn row_time(&self, digest: Digest) -> Option<Duration> {
        self.row_times.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied()
    }

    fn remember(&self, digest: Digest, row_time: Duration) {
        let mut times = self.row_times.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() >= REMEMBERED {
            times.clear();
        }
        times.insert(digest, row_time);
    }
}

fn work(inbox: &mpsc::Receiver<Job>, attempts: &Attempts, loaders: &Loaders, gates: Gates) {
    crate::priority::low();
    for Job { proved: Proved { artifact, announced }, lease, answer } in inbox {
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
        let loaded = verified.and_then(|verified| Loaded::load(verified, &announced, loaders, gates.max_bytes));
        let load = begun.elapsed().saturating_sub(verify);
        let result = loaded.and_then(|loaded| loaded.warm_up(&announced, gates.allow_non_finite));
        let result = result.map(|warm| warm.with_batches(gates.max_batch_rows));
        let warm = begun.elapsed().saturating_sub(verify + load);
        let result = result.map(|warm| Warm { model: Box::new(Accounted::new(warm.model, lease)), ..warm });
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
    if let Err(error) = attempts.begin(digest) {
        // It guards against what is rare: a full disk must not keep the last known good from being served.
        tracing::warn!(%error, digest = %digest.short(), "the load of an artifact cannot be noted; loading it all the same");
    }
    Ok(())
}
