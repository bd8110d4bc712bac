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

mod recent;
mod update;
mod policy;
mod pipeline;
mod stages;
mod journal;
mod reaper;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hotserve_models::Loaders;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::journal::{Journal, Saved, SavedModel};
use self::pipeline::{Pipeline, Stages};
use self::policy::{Book, Mark, Verdict};
use self::reaper::Reaper;
use self::recent::Recent;
use self::stages::{Announced, Refusal, Warm};
use self::update::{Update, announcement, saved};
use crate::id::{Digest, Rank, Slot};
use crate::metrics::{Metrics, unix_seconds};
use crate::notification::{self, Limits, Location, ModelUpdate, Notification};
use crate::serving::{ModelFacts, ServedModel, ServedState, Swapper};
use crate::source::{Record, SourceEvent};
use crate::status::{Bootstrapped, Entry, Status};
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
        let pipeline = Pipeline::start(Arc::clone(&fetcher), options.loaders.clone(), options.max_artifact)?;
        let mut books: HashMap<Slot, Book<Arc<Update>>> = HashMap::new();
        if let Some(slot) = &options.initial_slot {
            let mark = Mark { rank: Rank::Initial, content: Digest::of(b""), announcement: Digest::of(b"") };
            books.entry(slot.clone()).or_default().serve(mark);
        }
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
            books,
            work: HashMap::new(),
            recent: Recent::default(),
            finished: mpsc::unbounded_channel(),
            next_update: 0,
            caught_up: false,
            found: false,
            ready: false,
            awaited: HashSet::new(),
            deferred: HashSet::new(),
        })
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

    /// Decodes and judges a record.
    fn take_in(&mut self, record: Record) {
        let notification = match notification::decode(&record.data, &self.options.limits) {
            Ok(notification) => notification,
            Err(rejection) => {
                self.reject_message(&record, rejection.reason.code(), rejection.detail);
                return;
            }
        };
        if notification.id.is_some() && !self.recent.insert(&record.data) {
            self.count_slots(&notification, "duplicate");
            return;
        }
        if notification.expires_at.is_some_and(|at| at < self.status.stream_now()) {
            self.reject_message(&record, "expired", "its expires_at has passed");
            return;
        }
        let mut parts = Vec::new();
        for (slot, version) in notification.slots() {
            let rank = version.map_or_else(|| Rank::Stream(record.position.clone()), Rank::Version);
            let mark =
                Mark { rank, content: notification.content(&slot), announcement: announcement(&slot, &notification) };
            let verdict = match self.books.get(&slot) {
                Some(book) => book.judge(&mark),
                None if self.books.len() >= MAX_SLOTS => {
                    self.reject_message(&record, "too_many_slots", format!("there are {MAX_SLOTS} slots already"));
                    return;
                }
                None => Verdict::Admit,
            };
            match verdict {
                Verdict::Admit | Verdict::Correction => parts.push((slot, mark)),
                Verdict::Duplicate => self.count(&slot, "duplicate"),
                Verdict::Stale => self.count(&slot, "stale"),
                Verdict::Conflict => {
                    let detail = format!("{slot} {} is another content already: publish a higher version", mark.rank);
                    self.reject_message(&record, "conflict", detail);
                    return;
                }
                Verdict::Unversioned => {
                    let detail = format!("{slot} has had versions: a message without one cannot be ordered");
                    self.reject_message(&record, "unversioned", detail);
                    return;
                }
            }
        }
        if parts.is_empty() {
            return;
        }
        if let Some(ModelUpdate { location: Location::Uri { uri, .. }, .. }) = &notification.model
            && let Err(error) = self.fetcher.check_allowed(uri)
        {
            self.reject_message(&record, error.code(), error.to_string());
            return;
        }
        self.next_update += 1;
        let arrived = SystemTime::UNIX_EPOCH + Duration::from_millis(record.position.arrival_ms);
        let update = Arc::new(Update {
            id: self.next_update,
            notification,
            parts,
            record,
            taken_in: Instant::now(),
            arrived,
            live: self.caught_up,
        });
        let leader = update.leader().clone();
        let mark = update.parts.iter().find(|(slot, _)| *slot == leader).map(|(_, mark)| mark.clone());
        let mark = mark.expect("the leader is a part");
        if let Some(ousted) = self.books.entry(leader).or_default().admit(mark, update) {
            self.supersede(&ousted);
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
        let leader = slot.clone();
        let task = tokio::spawn(async move {
            let mut stages = Stages::new();
            let result = pipeline.prepare(model, &mut stages).await;
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

    /// Persists, swaps, retires. All that can fail is over when the snapshot is replaced.
    fn commit(&mut self, update: &Arc<Update>, model: Option<(Artifact, Warm)>, mut stages: Stages) {
        // A slot may have moved on while the other half of a pair was being loaded.
        let news = |slot: &Slot, mark: &Mark| self.books.get(slot).is_none_or(|book| book.is_news(&mark.rank));
        let parts: Vec<_> = update.parts.iter().filter(|(slot, mark)| news(slot, mark)).cloned().collect();
        let saved = parts.iter().filter_map(|(slot, mark)| saved(slot, mark, update, model.as_ref())).collect();
        let begun = Instant::now();
        if let Err(error) = self.journal.write(saved) {
            let detail = format!("the journal cannot be written, so what readers see would not survive: {error}");
            self.refuse(update, &Refusal::new("disk", detail), stages);
            return;
        }
        stages.insert("persist", begun.elapsed().as_secs_f64());

        let begun = Instant::now();
        let (mut states, mut models) = (Vec::new(), Vec::new());
        let mut digest = None;
        let mut model = model;
        for (slot, mark) in &parts {
            let published_at = update.notification.published_at;
            match slot {
                Slot::State(key) => states.extend(
                    update
                        .notification
                        .state
                        .as_ref()
                        .map(|state| ServedState::new(key.clone(), mark.rank.clone(), &state.json, published_at)),
                ),
                Slot::Model(name) => {
                    if let (Some((artifact, warm)), Some(announced)) = (model.take(), &update.notification.model) {
                        digest = Some(artifact.digest());
                        let facts = ModelFacts {
                            name: name.clone(),
                            rank: mark.rank.clone(),
                            label: announced.label.clone(),
                            format: announced.format.clone(),
                            digest: artifact.digest(),
                            size: artifact.size(),
                            published_at,
                        };
                        models.push(ServedModel::new(facts, warm.model, warm.row_cost));
                    }
                }
            }
        }
        self.swap(states, models);
        stages.insert("swap", begun.elapsed().as_secs_f64());

        for (slot, mark) in &parts {
            for superseded in self.books.entry(slot.clone()).or_default().serve(mark.clone()) {
                self.supersede(&superseded);
            }
            self.count(slot, "applied");
        }
        for (slot, _) in update.parts.iter().filter(|part| !parts.contains(part)) {
            self.count(slot, "superseded");
        }
        self.deferred.remove(&update.id);
        let leader = update.leader();
        if let Some(book) = self.books.get_mut(leader) {
            // Already taken out where the leader was served.
            book.refuse(|candidate| candidate.id == update.id);
        }
        self.note_applied(update, parts, digest, stages);
        if digest.is_some() {
            self.collect_cache();
        }
    }

    fn swap(&self, states: Vec<ServedState>, models: Vec<ServedModel>) {
        let replaced: Vec<_> = models.iter().map(|model| model.facts.name.clone()).collect();
        let next = self.swapper.snapshot().with(states, models);
        #[expect(clippy::cast_precision_loss, reason = "a count of swaps")]
        self.metrics.generation.set(next.generation as f64);
        let before = self.swapper.swap(next);
        let gone = replaced.iter().filter_map(|name| before.models.get(name)).cloned().collect();
        self.reaper.retire(before, gone);
        self.metrics.swaps.increment(1);
        self.metrics.last_swap_timestamp.set(unix_seconds(SystemTime::now()));
    }

    fn note_applied(&self, update: &Update, parts: Vec<(Slot, Mark)>, digest: Option<Digest>, mut stages: Stages) {
        let now = SystemTime::try_from(self.status.stream_now()).unwrap_or_else(|_| SystemTime::now());
        let since = |then| now.duration_since(then).unwrap_or(Duration::ZERO).as_secs_f64();
        let fresh = since(update.published());
        if update.live {
            stages.insert("stream", (fresh - update.taken_in.elapsed().as_secs_f64()).max(0.0));
        }
        for (stage, seconds) in &stages {
            self.metrics.swap_stage_duration.get(stage).record(*seconds);
        }
        for (slot, _) in parts.iter().filter(|_| update.live) {
            self.metrics.publish_to_serving.get(slot.kind()).record(fresh);
        }
        let served = parts.into_iter().map(|(slot, mark)| (slot, mark.rank.to_string()));
        let entry = Entry {
            digest: digest.map(|digest| digest.to_string()),
            sequence_number: Some(update.record.position.sequence.to_string()),
            publish_to_serving_seconds: update.live.then_some(fresh),
            stages,
            ..Entry::new("applied", served)
        };
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds for a person")]
        let publish_to_serving_ms = update.live.then_some((fresh * 1e3) as i64);
        tracing::info!(
            slots = %entry.slots.join(" and "),
            versions = %entry.versions.join(" and "),
            digest = digest.map(|digest| digest.short()),
            publish_to_serving_ms,
            "swapped in"
        );
        self.status.record(entry);
    }

    /// A gate says no: the slot keeps what it serves, and its next candidate gets its turn.
    fn refuse(&mut self, update: &Arc<Update>, refusal: &Refusal, stages: Stages) {
        if let Some(book) = self.books.get_mut(update.leader()) {
            if refusal.is_of_the_moment() {
                book.defer(|candidate| candidate.id == update.id);
                if !self.deferred.insert(update.id) {
                    tracing::debug!(reason = refusal.reason, "still not to be had; trying again: {refusal}");
                    return;
                }
            } else {
                book.refuse(|candidate| candidate.id == update.id);
                self.deferred.remove(&update.id);
                if book.is_blank() {
                    self.books.remove(update.leader());
                }
            }
        }
        // The same bytes may be sent again when what they name is mended.
        self.recent.forget(&update.record.data);
        for (slot, _) in &update.parts {
            self.count(slot, "rejected");
        }
        let entry = Entry { stages, ..Entry::new("rejected", update.versions()) };
        let again = if refusal.is_of_the_moment() { "; it is tried again until something newer is served" } else { "" };
        self.note_rejected(&update.record, entry, refusal.reason, format!("{}{again}", refusal.detail));
    }

    fn reject_message(&mut self, record: &Record, reason: &'static str, detail: impl Into<String>) {
        self.recent.forget(&record.data);
        self.note_rejected(record, Entry::new("rejected", []), reason, detail.into());
    }

    fn note_rejected(&self, record: &Record, mut entry: Entry, reason: &'static str, detail: String) {
        self.metrics.rejections.get(&[reason]).increment(1);
        tracing::warn!(
            slots = %entry.slots.join(" and "),
            versions = %entry.versions.join(" and "),
            sequence_number = %record.position.sequence,
            reason,
            "refused, serving what was served before: {detail}"
        );
        entry.reason = Some(reason);
        entry.detail = Some(detail);
        entry.sequence_number = Some(record.position.sequence.to_string());
        self.status.record(entry);
    }

    fn supersede(&mut self, update: &Update) {
        self.deferred.remove(&update.id);
        for (slot, _) in &update.parts {
            self.count(slot, "superseded");
        }
    }

    fn count(&self, slot: &Slot, outcome: &'static str) {
        self.metrics.updates.get(&[slot.kind(), outcome]).increment(1);
    }

    fn count_slots(&self, notification: &Notification, outcome: &'static str) {
        for (slot, _) in notification.slots() {
            self.count(&slot, outcome);
        }
    }

    /// Where what is served at the start came from.
    fn begun_from(&self) -> Bootstrapped {
        match self.status.manifest() {
            Some(manifest) if manifest.last_contact.is_some() => Bootstrapped::Manifest,
            _ if self.found => Bootstrapped::Lookback,
            _ => Bootstrapped::None,
        }
    }

    fn become_ready(&mut self, how: &str, from: Bootstrapped) {
        self.ready = true;
        if self.status.set_ready() {
            self.status.set_bootstrapped(from);
            let (snapshot, from) = (self.swapper.snapshot(), from.code());
            tracing::info!(states = snapshot.states.len(), models = snapshot.models.len(), from, "ready: {how}");
        }
    }

    /// Serves what the last run served last, each model proved and warmed again. Answers whether there was anything.
    async fn restore(&mut self) -> bool {
        let kept: Vec<Saved> = self.journal.live().cloned().collect();
        if kept.is_empty() {
            return false;
        }
        self.status.waiting_for("the last known good is being loaded");
        let (mut states, mut models) = (Vec::new(), Vec::new());
        for saved in kept {
            let Saved { slot, rank, content, published_at, state, model } = saved;
            match (&slot, state, model) {
                (Slot::State(key), Some(json), _) => {
                    let Ok(json) = RawValue::from_string(json) else { continue };
                    states.push(ServedState::new(key.clone(), rank.clone(), &json, published_at));
                    self.books.entry(slot).or_default().serve(Mark { rank, content, announcement: content });
                }
                (Slot::Model(name), _, Some(model)) => match self.restore_model(&model).await {
                    Ok(warm) => {
                        let SavedModel { label, format, digest, size, .. } = model;
                        let (name, version) = (name.clone(), rank.clone());
                        let facts = ModelFacts { name, rank: version, label, format, digest, size, published_at };
                        models.push(ServedModel::new(facts, warm.model, warm.row_cost));
                        self.books.entry(slot).or_default().serve(Mark { rank, content, announcement: content });
                    }
                    Err(refusal) => {
                        self.metrics.rejections.get(&[refusal.reason]).increment(1);
                        self.books.entry(slot.clone()).or_default().raise_floor(rank.clone());
                        tracing::warn!(%slot, version = %rank, reason = refusal.reason,
                            "the last known good cannot be served; waiting for the stream: {refusal}");
                    }
                },
                _ => {}
            }
        }
        let restored = !states.is_empty() || !models.is_empty();
        if restored {
            tracing::info!(states = states.len(), models = models.len(), "serving the last known good");
            self.swap(states, models);
        }
        restored
    }

    async fn restore_model(&self, saved: &SavedModel) -> Result<Warm, Refusal> {
        let artifact = self.cache.get(saved.digest, Some(saved.size)).ok_or_else(|| {
            Refusal::new("not_found", format!("artifact {} is not in the cache folder", saved.digest.short()))
        })?;
        let announced = Announced {
            format: saved.format.clone(),
            encoding: saved.encoding,
            signature: saved.signature.clone(),
            golden: saved.golden.clone(),
        };
        self.pipeline.load(artifact, announced, &mut Stages::new()).await
    }

    fn collect_cache(&self) {
        let live = self.journal.live().filter_map(|saved| saved.model.as_ref().map(|model| model.digest));
        let candidates = self.books.values().filter_map(Book::aspired);
        let wanted = candidates.filter_map(|update| match update.notification.model.as_ref()?.location {
            Location::Uri { sha256, .. } => sha256,
            Location::Inline(ref bytes) => Some(Digest::of(bytes)),
        });
        let in_use: HashSet<Digest> = live.chain(wanted).collect();
        if let Err(error) = self.cache.collect(&in_use) {
            tracing::warn!(error = %error, "old artifacts cannot be removed from the cache folder");
        }
    }
}

/// This thread's work must not take time from the threads that answer requests.
fn lower_priority() {
    // Not allowed everywhere; then it is only slower to get out of the way.
    let _ = rustix::process::setpriority_process(None, 10);
}
