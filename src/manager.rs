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
mod recent;
mod update;
mod policy;
mod pipeline;
mod memory;
mod stages;
pub mod probe;
mod journal;
mod reaper;
// The manager's own methods, in the order in which an update meets them.
mod restore;
mod intake;
mod control;
mod commit;
mod room;
mod notes;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hotserve_models::Loaders;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::handle::Command;
pub use self::handle::{Denied, Done, Handle, Progress};
use self::journal::Journal;
use self::pipeline::{Pipeline, Stages};
use self::policy::{Book, Mark};
use self::reaper::Reaper;
use self::recent::Recent;
use self::room::Room;
use self::stages::{Refusal, Warm};
use self::update::Update;
use crate::config::GatesConfig;
use crate::id::{Digest, Rank, Slot};
use crate::metrics::Metrics;
use crate::notification::{Limits, ModelUpdate};
use crate::serving::Swapper;
use crate::source::SourceEvent;
use crate::status::{Bootstrapped, Status};
use crate::store::{Artifact, Cache, Fetcher};

/// How many slots there may be: a producer that makes up keys must not fill the memory.
const MAX_SLOTS: usize = 10_000;
/// How long until what could not be had is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How long readiness waits for the models that were announced before the start.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// With a last known good, how long to wait for the stream before answering with that.
const CATCH_UP_GRACE: Duration = Duration::from_secs(5);

/// What the manager is made from.
pub struct Options {
    /// What a message may be.
    pub limits: Limits,
    /// The largest artifact, inflated, in bytes.
    pub max_artifact: u64,
    /// The kinds of model.
    pub loaders: Loaders,
    /// What a model must pass.
    pub gates: GatesConfig,
    /// The initial state, which any message replaces.
    pub initial_slot: Option<Slot>,
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
    room: Room,

    books: HashMap<Slot, Book<Arc<Update>>>,
    work: HashMap<Slot, Work>,
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
}

/// A model being made ready.
struct Work {
    update: u64,
    abort: AbortHandle,
}

/// The end of a model's way to readiness.
struct Finished {
    slot: Slot,
    update: Arc<Update>,
    result: Result<(Artifact, Warm), Refusal>,
    stages: Stages,
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
        let (room, asking) = Room::new();
        let (loaders, gates) = (options.loaders.clone(), options.gates.clone());
        let pipeline = Pipeline::start(Arc::clone(&fetcher), loaders, options.max_artifact, gates, &metrics, asking)?;
        status.set_isolation(pipeline.isolation());
        let mut books: HashMap<Slot, Book<Arc<Update>>> = HashMap::new();
        if let Some(slot) = &options.initial_slot {
            let mark = Mark { rank: Rank::Initial, content: Digest::of(b""), announcement: Digest::of(b"") };
            books.entry(slot.clone()).or_default().serve(mark);
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
            room,
            books,
            work: HashMap::new(),
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
        let mut retry = tokio::time::interval(RETRY);
        let mut patience = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(finished) = self.finished.1.recv() => self.on_finished(finished),
                Some(event) = self.room.events.recv() => self.on_room(event),
                Some(Command { control, answer }) = self.commands.recv() => {
                    let done = self.control(&control);
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
                _ = retry.tick() => self.books.values_mut().for_each(Book::revive),
                () = &mut grace, if restored && !self.ready => {
                    self.become_ready("from the last known good; the stream has not caught up yet", Bootstrapped::Journal);
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
    }

    /// Starts the work that each slot's newest candidate needs.
    fn advance(&mut self) {
        if !self.caught_up {
            // What is older than the end of the stream is only folded, not loaded.
            return;
        }
        let aspired: Vec<Arc<Update>> = self.books.values().filter_map(Book::aspired).cloned().collect();
        for update in aspired {
            let slot = update.leader().clone();
            match self.work.get(&slot) {
                Some(work) if work.update == update.id => continue,
                // Newest wins: what is under way is not wanted now. It stays a candidate, should the newer one fail.
                Some(work) => work.abort.abort(),
                None => {}
            }
            let brings_model = update.parts.iter().any(|(slot, _)| matches!(slot, Slot::Model(_)));
            match update.notification.model.clone().filter(|_| brings_model) {
                Some(model) => self.start(slot, update, model),
                None => self.commit(&update, None, Stages::new()),
            }
        }
        if let Some(slot) = self.awaited.iter().next().filter(|_| !self.ready) {
            self.status.waiting_for(format!("{slot} is being loaded"));
        }
    }

    /// Sends a model on its way to readiness.
    fn start(&mut self, slot: Slot, update: Arc<Update>, model: ModelUpdate) {
        let id = update.id;
        let (pipeline, finished) = (self.pipeline.clone(), self.finished.0.clone());
        let (leader, served) = (slot.clone(), self.served_beside(&slot));
        let task = tokio::spawn(async move {
            let mut stages = Stages::new();
            let result = pipeline.prepare(model, served, &mut stages).await;
            // The manager that does not listen any more is shutting down.
            let _ = finished.send(Finished { slot: leader, update, result, stages });
        });
        self.work.insert(slot, Work { update: id, abort: task.abort_handle() });
    }

    fn on_finished(&mut self, finished: Finished) {
        let Finished { slot, update, result, stages } = finished;
        if self.work.get(&slot).is_some_and(|work| work.update == update.id) {
            self.work.remove(&slot);
        } else {
            // It was aborted after it had ended: its slot has something newer to do.
            return;
        }
        match result {
            Ok((artifact, warm)) => self.commit(&update, Some((artifact, warm)), stages),
            Err(refusal) => self.refuse(&update, &refusal, stages),
        }
        if self.books.get(&slot).is_none_or(|book| book.aspired().is_none()) {
            self.awaited.remove(&slot);
        }
    }
}

/// This thread's work must not take time from the threads that answer requests.
fn lower_priority() {
    // Not allowed everywhere; then it is only slower to get out of the way.
    let _ = rustix::process::setpriority_process(None, 10);
}
