//! The one writer: takes records in, decides what each slot should serve, gets it ready, and swaps it in.
//!
//! ```text
//!   SourceEvent ─► take_in ─► Book (policy) ─► advance ─► pipeline: fetch ─► load ─► warm   (off this task)
//!                    │                                        │
//!                    └─ refused: counted, logged, /history    └─► commit: persist ─► swap ─► retire
//! ```
//!
//! **Invariant:** everything that can fail comes before the swap. **Invariant:** only this task swaps, so a slot's rank
//! never goes back. **Invariant:** nothing here runs on a thread that answers requests.

mod handle;
mod attempts;
mod recent;
mod update;
mod policy;
mod timing;
mod pipeline;
mod memory;
mod stages;
mod batch;
pub mod probe;
pub mod check;
mod journal;
mod reaper;
// The manager's own methods, in the order in which an update meets them.
mod restore;
mod intake;
mod control;
mod commit;
mod back;
mod room;
mod notes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hotserve_models::Loaders;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::attempts::Attempts;
use self::handle::Command;
pub use self::handle::{Denied, Done, Handle, Progress};
use self::journal::{Journal, Saved};
use self::pipeline::Pipeline;
use self::policy::{Book, By, Hold, Mark, Wish};
use self::reaper::Reaper;
use self::recent::Recent;
use self::room::Room;
use self::stages::{Refusal, Warm};
use self::timing::Stages;
use self::update::Update;
use crate::config::GatesConfig;
use crate::id::{Digest, ModelName, Rank, Slot, StateKey, Version};
use crate::metrics::Metrics;
use crate::notification::Limits;
use crate::serving::live::StateTypes;
use crate::serving::{ServedModel, Swapper};
use crate::source::SourceEvent;
use crate::status::{Bootstrapped, Status};
use crate::store::{Artifact, Cache, Fetcher};

/// How many slots there may be: a producer that makes up keys must not fill the memory.
const MAX_SLOTS: usize = 10_000;
/// How long until what could not be had is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How long readiness waits for the models that were announced before the start.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How often to look whether the stream answers at all, while that is what readiness waits for.
const LOOK: Duration = Duration::from_millis(20);
/// With a last known good, how long to wait for the stream before answering with that.
const CATCH_UP_GRACE: Duration = Duration::from_secs(5);

/// What the manager is made from.
pub struct Options {
    /// The stream, or whatever it is that the source follows: its name, for traces.
    pub stream: String,
    /// What a message may be.
    pub limits: Limits,
    /// The largest artifact, inflated, in bytes.
    pub max_artifact: u64,
    /// By how much a slot's version may grow at once.
    pub max_version_jump: Option<u64>,
    /// The kinds of model.
    pub loaders: Loaders,
    /// What a model must pass.
    pub gates: GatesConfig,
    /// The initial states, which any message replaces. They are what `types` wants.
    pub initial: BTreeMap<StateKey, Box<RawValue>>,
    /// What states must be.
    pub types: StateTypes,
    /// Slots that are held at a version.
    pub pins: BTreeMap<Slot, Version>,
}

/// The event loop.
pub struct Manager {
    options: Options,
    swapper: Swapper,
    fetcher: Arc<Fetcher>,
    cache: Arc<Cache>,
    journal: Journal,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    reaper: Reaper,
    pipeline: Pipeline,
    attempts: Arc<Attempts>,
    room: Room,

    books: HashMap<Slot, Book<Arc<Update>>>,
    work: HashMap<Slot, Work>,
    /// The model that each slot served before: the way back needs nothing but a swap.
    warm: HashMap<ModelName, Arc<ServedModel>>,
    recent: Recent,
    finished: (mpsc::UnboundedSender<Finished>, mpsc::UnboundedReceiver<Finished>),
    next_update: u64,
    caught_up: bool,
    /// Whether the source had any message.
    found: bool,
    ready: bool,
    /// The slots whose first content readiness waits for.
    awaited: HashSet<Slot>,
    handle: Handle,
    commands: mpsc::Receiver<Command>,
    /// Updates that were refused once for a reason of the moment: they are not said again.
    deferred: HashSet<u64>,
    /// Slots whose way back waits for something to pass.
    waiting: HashSet<Slot>,
    /// Slots of which it was said that their way back waits.
    said: HashSet<Slot>,
    /// Slots whose hold is not on the disk yet.
    unwritten: HashSet<Slot>,
}

/// A model being made ready.
struct Work {
    goal: Goal,
    abort: AbortHandle,
}

/// Which content is being made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
    /// That of an update.
    Bring(u64),
    /// One that was served before.
    GoBack(Rank),
    /// The one that is served, and was unloaded for a newer one.
    Reload,
}

/// What a slot does next.
enum Step {
    Bring(Arc<Update>),
    GoBack(Rank),
    Withdraw,
    Unload,
}

impl Step {
    fn goal(&self) -> Option<Goal> {
        match self {
            Self::Bring(update) => Some(Goal::Bring(update.id)),
            Self::GoBack(rank) => Some(Goal::GoBack(rank.clone())),
            Self::Withdraw | Self::Unload => None,
        }
    }
}

/// The end of a model's way to readiness.
struct Finished {
    slot: Slot,
    errand: Errand,
    outcome: Outcome,
}

/// What the way to readiness ends in, and how long its stages took.
type Outcome = (Result<(Artifact, Warm), Refusal>, Stages);

/// For what a model was made ready.
enum Errand {
    Bring(Arc<Update>),
    GoBack(Box<Saved>),
}

impl Errand {
    fn goal(&self) -> Goal {
        match self {
            Self::Bring(update) => Goal::Bring(update.id),
            Self::GoBack(saved) => Goal::GoBack(saved.rank.clone()),
        }
    }
}

impl Manager {
    /// Opens the journal and starts the threads that load and free.
    pub fn new(
        options: Options,
        swapper: Swapper,
        fetcher: Arc<Fetcher>,
        cache: Arc<Cache>,
        metrics: Arc<Metrics>,
        status: Arc<Status>,
    ) -> std::io::Result<Self> {
        let (journal, skipped) = Journal::open(cache.root(), cache.is_durable())?;
        if skipped > 0 {
            tracing::warn!(skipped, "lines of the journal are torn or rotten; going on with the ones before them");
        }
        let reaper = Reaper::start(metrics.live_generations.clone())?;
        let attempts = Arc::new(Attempts::open(cache.root(), cache.is_durable()));
        #[expect(clippy::cast_precision_loss, reason = "a few artifacts")]
        metrics.quarantined_artifacts.set(attempts.quarantined() as f64);
        let (room, asking) = Room::new();
        let (loaders, gates) = (options.loaders.clone(), options.gates.clone());
        let largest = options.max_artifact;
        let pipeline =
            Pipeline::start(Arc::clone(&fetcher), Arc::clone(&attempts), loaders, largest, gates, &metrics, asking)?;
        status.set_isolation(pipeline.isolation());
        let mut books: HashMap<Slot, Book<Arc<Update>>> = HashMap::new();
        for key in options.initial.keys() {
            books.entry(Slot::State(key.clone())).or_default().serve(initial_mark());
        }
        for (slot, version) in &options.pins {
            let mut hold = Hold::default();
            hold.set_pin(By::Setting, Some(Rank::Version(*version)), 0);
            books.entry(slot.clone()).or_default().set_hold(hold);
        }
        let (handle, commands) = Handle::new();
        Ok(Self {
            options,
            swapper,
            fetcher,
            cache,
            journal,
            metrics,
            status,
            reaper,
            pipeline,
            attempts,
            room,
            books,
            work: HashMap::new(),
            warm: HashMap::new(),
            recent: Recent::default(),
            finished: mpsc::unbounded_channel(),
            next_update: 0,
            caught_up: false,
            found: false,
            ready: false,
            awaited: HashSet::new(),
            handle,
            commands,
            deferred: HashSet::new(),
            waiting: HashSet::new(),
            said: HashSet::new(),
            unwritten: HashSet::new(),
        })
    }

    /// The way to tell it something while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves what the last run served, then what the source brings, until shut down.
    pub async fn run(mut self, mut events: mpsc::Receiver<SourceEvent>, shutdown: CancellationToken) {
        let restored = self.restore().await;
        let grace = tokio::time::sleep(CATCH_UP_GRACE);
        tokio::pin!(grace);
        let slots: Vec<Slot> = self.books.keys().cloned().collect();
        slots.iter().for_each(|slot| self.show_hold(slot));
        let mut retry = tokio::time::interval(RETRY);
        let mut look = tokio::time::interval(LOOK);
        let mut patience = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(finished) = self.finished.1.recv() => self.on_finished(finished),
                Some(event) = self.room.events.recv() => self.on_room(event),
                Some(Command { control, answer }) = self.commands.recv() => {
                    let done = self.command(&control);
                    // Who does not wait any more finds it in the history.
                    let _ = answer.send(done);
                }
                event = events.recv() => match event {
                    Some(SourceEvent::Records(records)) => {
                        self.found |= !records.is_empty();
                        // Whatever waits in one page is folded before anything is loaded: the newest wins.
                        for record in records {
                            self.take_in(record);
                        }
                    }
                    Some(SourceEvent::CaughtUp) => {
                        self.caught_up = true;
                        self.advance();
                        self.awaited = self.work.keys().cloned().collect();
                        patience = Some(Instant::now() + READY_PATIENCE);
                    }
                    None => break,
                },
                _ = retry.tick() => {
                    self.waiting.clear();
                    self.write_holds();
                    self.books.values_mut().for_each(Book::revive);
                }
                () = &mut grace, if restored && !self.ready => {
                    self.become_ready("from the last known good; the stream has not caught up yet", Bootstrapped::Journal);
                }
                _ = look.tick(), if restored && !self.ready => {
                    if self.status.is_stream_troubled() {
                        let how = "from the last known good; the stream does not answer";
                        self.become_ready(how, Bootstrapped::Journal);
                    }
                }
            }
            self.advance();
            self.bring_back();
            if self.caught_up && !self.ready {
                if self.awaited.is_empty() {
                    self.become_ready("caught up with the stream", self.begun_from());
                } else if patience.is_some_and(|patience| Instant::now() > patience) {
                    self.become_ready("without models that take long to come", self.begun_from());
                }
            }
        }
        for work in self.work.values() {
            work.abort.abort();
        }
        self.attempts.abandon();
    }

    /// Starts the work that each slot's wish needs, and ends what is not wished for any more.
    fn advance(&mut self) {
        let mut steps = Vec::new();
        for (slot, book) in &self.books {
            let step = match book.wish() {
                // Until the end of the stream is known, what comes is only folded, not loaded.
                Wish::Bring(update) if self.caught_up => Step::Bring(Arc::clone(update)),
                Wish::GoBack(mark) if !self.waiting.contains(slot) => Step::GoBack(mark.rank.clone()),
                Wish::Withdraw => Step::Withdraw,
                Wish::Unload => Step::Unload,
                Wish::Bring(_) | Wish::GoBack(_) | Wish::Stay | Wish::Await => continue,
            };
            steps.push((slot.clone(), step));
        }
        let goals: HashMap<&Slot, Goal> = steps.iter().filter_map(|(slot, step)| Some((slot, step.goal()?))).collect();
        // Newest wins: what is under way and not wanted now stays a candidate, should the newer one fail.
        self.work.retain(|slot, work| {
            // What is served, and was unloaded, comes back unless the slot has something else to do.
            let goes_on = goals.get(slot).map_or(work.goal == Goal::Reload, |goal| *goal == work.goal);
            if !goes_on {
                work.abort.abort();
            }
            goes_on
        });
        for (slot, step) in steps {
            match step {
                Step::Bring(_) | Step::GoBack(_) if self.work.contains_key(&slot) => {}
                Step::Bring(update) => self.bring(slot, update),
                Step::GoBack(rank) => self.go_back(&slot, &rank),
                Step::Withdraw => self.withdraw(&slot),
                Step::Unload => self.unload(&slot),
            }
        }
        self.show_loading();
        self.awaited.retain(|slot| self.work.contains_key(slot));
        if let Some(slot) = self.awaited.iter().next().filter(|_| !self.ready) {
            self.status.waiting_for(format!("{slot} is being loaded"));
        }
    }

    /// Begins with a candidate: a state is ready as it is, a model is sent on its way to readiness.
    fn bring(&mut self, slot: Slot, update: Arc<Update>) {
        let brings_model = update.parts.iter().any(|(slot, _)| matches!(slot, Slot::Model(_)));
        let Some(model) = update.notification.model.clone().filter(|_| brings_model) else {
            self.commit(&update, None, Stages::of(&update.trace));
            return;
        };
        let (pipeline, served) = (self.pipeline.clone(), self.served_beside(&slot));
        let mut stages = Stages::of(&update.trace);
        self.send(
            slot,
            Errand::Bring(update),
            async move { (pipeline.prepare(model, served, &mut stages).await, stages) },
        );
    }

    /// Does the work of an errand off this task.
    fn send(&mut self, slot: Slot, errand: Errand, work: impl Future<Output = Outcome> + Send + 'static) {
        let finished = self.finished.0.clone();
        let (leader, goal) = (slot.clone(), errand.goal());
        let task = tokio::spawn(async move {
            let outcome = work.await;
            // The manager that does not listen any more is shutting down.
            let _ = finished.send(Finished { slot: leader, errand, outcome });
        });
        self.work.insert(slot, Work { goal, abort: task.abort_handle() });
    }

    fn on_finished(&mut self, finished: Finished) {
        let Finished { slot, errand, outcome: (result, stages) } = finished;
        if self.work.get(&slot).is_some_and(|work| work.goal == errand.goal()) {
            self.work.remove(&slot);
            self.show_loading();
        } else {
            // It was aborted after it had ended: its slot has something else to do.
            return;
        }
        match (errand, result) {
            (Errand::Bring(update), Ok((artifact, _))) if self.is_revoked(&slot, artifact.digest()) => {
                let detail = format!("artifact {} was revoked", artifact.digest().short());
                self.refuse(&update, &Refusal::new("revoked", detail), stages);
            }
            (Errand::Bring(update), Ok((artifact, warm))) => self.commit(&update, Some((artifact, warm)), stages),
            (Errand::Bring(update), Err(refusal)) => self.refuse(&update, &refusal, stages),
            (Errand::GoBack(saved), Ok((_, warm))) => self.commit_model_again(*saved, warm, stages),
            // There may be room later; the version is as good as it was.
            (Errand::GoBack(saved), Err(refusal)) if refusal.reason == "memory" => {
                if self.said.insert(slot.clone()) {
                    let (version, reason) = (&saved.rank, refusal.reason);
                    tracing::warn!(%slot, %version, %reason, "what was kept is not loaded for want of memory: {refusal}");
                }
                self.waiting.insert(slot);
            }
            (Errand::GoBack(saved), Err(refusal)) => self.lose(&saved, &refusal),
        }
    }

    fn is_revoked(&self, slot: &Slot, digest: Digest) -> bool {
        self.books.get(slot).is_some_and(|book| book.hold().is_digest_revoked(digest))
    }
}

/// What the initial state is in its slot's order.
fn initial_mark() -> Mark {
    Mark { rank: Rank::Initial, content: Digest::of(b""), announcement: Digest::of(b"") }
}
