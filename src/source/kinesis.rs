//! The tailer: every record of every shard of a Kinesis stream, for this instance alone, without checkpoints.
//!
//! ```text
//!   KinesisSource ── session: one era of the stream ── Lineage: which shards, in which order
//!        │                                                │ starts
//!        │                                              Reader (a task a shard) ── Cursor: what to ask next
//!        │                                                │                        Pace: when
//!        └── era over: the stream was made anew           └─► Outlet
//! ```
//!
//! What decides is pure (`cursor`, `lineage`, `pace`); the I/O around it is thin. Nothing that Kinesis does ends
//! the source: it says what is wrong on the status board, waits, and goes on.

mod api;
pub mod consumers;
mod cursor;
mod lineage;
mod pace;
mod reader;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::api::Api;
use self::cursor::{Anchor, Start};
use self::lineage::Lineage;
use self::pace::Pace;
use self::reader::{Outcome, Reader, Report};
use super::{Outlet, Running, Source, SourceEvent};
use crate::aws::{Aws, Fault, FaultKind};
use crate::config::StreamConfig;
use crate::id::{Position, SequenceNumber, ShardId};
use crate::metrics::Metrics;
use crate::status::{Status, Trouble};

/// How often to look for new shards, and for a stream made anew.
const RELIST: Duration = Duration::from_secs(30);
/// The longest pause after a fault that passes by itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause after a fault that a person has to mend.
const LONGEST_PAUSE_FOR_PEOPLE: Duration = Duration::from_secs(30);

/// Reads a Kinesis stream.
pub struct KinesisSource {
    aws: Aws,
    context: Context,
    caught_up: bool,
    era: Option<u64>,
    /// The shards of this era, and where their readers stand: a session that begins again goes on from there.
    lineage: Lineage,
    places: Places,
}

/// What every reader needs.
#[derive(Clone)]
struct Context {
    api: Arc<Api>,
    config: StreamConfig,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
}

/// The last record handed on, and the latest arrival time, of each shard.
type Places = Arc<Mutex<HashMap<ShardId, (Option<SequenceNumber>, u64)>>>;

impl KinesisSource {
    /// A source of this stream.
    pub fn new(aws: Aws, config: StreamConfig, metrics: Arc<Metrics>, status: Arc<Status>) -> Self {
        let api = Arc::new(Api::new(&aws, config.name.clone()));
        let context = Context { api, config, metrics, status };
        Self { aws, context, caught_up: false, era: None, lineage: Lineage::default(), places: Places::default() }
    }

    async fn follow(mut self, outlet: Outlet) {
        let mut pace = Pace::new(self.context.config.poll_interval);
        loop {
            let begun = Instant::now();
            let Err(fault) = self.session(&outlet).await else { return };
            if begun.elapsed() > LONGEST_PAUSE_FOR_PEOPLE {
                pace.on_success();
            }
            self.context.count(fault.kind);
            let pause = pace.on_fault(self.context.longest_pause(fault.kind));
            self.context.trouble(&fault);
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads one era of the stream. Ends with a fault, or well when nobody listens any more.
    async fn session(&mut self, outlet: &Outlet) -> Result<(), Fault> {
        self.aws.check().await?;
        let description = self.context.api.describe().await?;
        // An era that could not be asked for stays unknown, and one that cannot be any more is taken to be the one before:
        // nothing is read anew because of a policy.
        let era = match (self.era, description.era) {
            (Some(Position::UNKNOWN_ERA), _) | (None, None) => Position::UNKNOWN_ERA,
            (Some(before), None) => before,
            (_, Some(era)) => era,
        };
        if self.era.is_some_and(|before| before != era) {
            tracing::warn!(stream = %self.context.config.name, "the stream was made anew: reading it from its beginning");
            self.places = Places::default();
            self.context.metrics.stream_gaps.increment(1);
        }
        let same_era = self.era == Some(era);
        self.era = Some(era);
        let listed = self.context.api.list_shards().await?;
        self.context.contact();
        self.context.status.stream_shards_gone();

        let now_ms = self.context.api.now_ms();
        let oldest_ms = now_ms.saturating_sub(description.retention_ms).max(era);
        let mut session = Session::new(self, outlet, era, oldest_ms);
        if !session.source.caught_up {
            session.source.lineage = Lineage::default();
            for shard in session.source.lineage.begin(listed) {
                session.seeking.insert(shard.clone());
                let start = session.seek(now_ms, false);
                session.spawn(shard, start);
            }
        } else if same_era {
            for shard in session.source.lineage.resume(listed) {
                session.follow_on(shard);
            }
        } else {
            session.source.lineage = Lineage::default();
            for shard in session.source.lineage.update(listed) {
                session.spawn(shard, Start::Follow(Anchor::TrimHorizon));
            }
        }
        session.run().await
    }
}

impl Source for KinesisSource {
    fn run(self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Running {
        Box::pin(async move {
            // Dropping the future at shutdown drops the readers: they own nothing that has to be given back.
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.follow(outlet) => {}
            }
        })
    }
}

/// The readers of one era.
struct Session<'a> {
    source: &'a mut KinesisSource,
    context: Context,
    places: Places,
    outlet: &'a Outlet,
    era: u64,
    oldest_ms: u64,
    readers: JoinSet<(ShardId, Outcome)>,
    closing: BTreeMap<ShardId, Arc<AtomicBool>>,
    reports: (mpsc::UnboundedSender<Report>, mpsc::UnboundedReceiver<Report>),
    /// Shards whose last record is being looked for.
    seeking: BTreeSet<ShardId>,
    /// Shards that said they have ended, until the listing agrees.
    ended: BTreeSet<ShardId>,
}

impl<'a> Session<'a> {
    fn new(source: &'a mut KinesisSource, outlet: &'a Outlet, era: u64, oldest_ms: u64) -> Self {
        Self {
            context: source.context.clone(),
            places: Arc::clone(&source.places),
            source,
            outlet,
            era,
            oldest_ms,
            readers: JoinSet::new(),
            closing: BTreeMap::new(),
            // Two reports a shard at the most: unbounded in type, bounded by the number of shards.
            reports: mpsc::unbounded_channel(),
            seeking: BTreeSet::new(),
            ended: BTreeSet::new(),
        }
    }

    fn seek(&self, now_ms: u64, history: bool) -> Start {
        let lookback_ms = u64::try_from(self.context.config.lookback.as_millis()).unwrap_or(u64::MAX);
        Start::Last { now_ms, lookback_ms, oldest_ms: self.oldest_ms, history }
    }

    /// Goes on behind the last record that was handed on.
    fn follow_on(&mut self, shard: ShardId) {
        let place = self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned();
        let anchor = place.and_then(|(last, _)| last).map_or(Anchor::TrimHorizon, Anchor::After);
        self.spawn(shard, Start::Follow(anchor));
    }

    fn spawn(&mut self, shard: ShardId, start: Start) {
        // What a shard's ancestors had is older than all that it has.
        let floor_ms = {
            let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let arrival = |shard: &ShardId| places.get(shard).map_or(0, |(_, arrival_ms)| *arrival_ms);
            self.source.lineage.parents(&shard).iter().map(arrival).max().unwrap_or(0).max(arrival(&shard))
        };
        let closing = Arc::new(AtomicBool::new(false));
        self.closing.insert(shard.clone(), Arc::clone(&closing));
        let reader = Reader {
            context: self.context.clone(),
            cursor: cursor::Cursor::new(shard.clone(), self.era, floor_ms, start),
            shard: shard.clone(),
            outlet: self.outlet.clone(),
            reports: self.reports.0.clone(),
            places: Arc::clone(&self.places),
            closing,
        };
        self.readers.spawn(async move { (shard, reader.run().await) });
        self.count();
    }

    fn count(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a number of shards")]
        self.context.metrics.stream_shards.set(self.readers.len() as f64);
    }

    async fn run(mut self) -> Result<(), Fault> {
        self.caught_up().await;
        let mut relist = Instant::now() + jittered(RELIST);
        loop {
            tokio::select! {
                Some(report) = self.reports.1.recv() => {
                    self.on_sought(&report).await;
                }
                Some(joined) = self.readers.join_next() => {
                    let (shard, outcome) = joined.map_err(|error| Fault {
                        kind: FaultKind::Unavailable,
                        message: format!("a reader ended badly: {error}"),
                    })?;
                    self.count();
                    match outcome {
                        Outcome::NobodyListens => return Ok(()),
                        Outcome::Ended => {
                            self.context.status.stream_shard_gone(&shard);
                            self.ended.insert(shard);
                        }
                        // The stream may be gone or made anew: begin again, from where the readers stand.
                        Outcome::Lost(fault) => return Err(fault),
                    }
                    // Soon, for a split is followed by its children; not at once, for some shards end again and again.
                    relist = relist.min(Instant::now() + Duration::from_millis(200));
                }
                () = tokio::time::sleep_until(relist) => {
                    relist = Instant::now() + match self.relist().await {
                        Ok(()) => jittered(RELIST),
                        Err(fault) if matches!(fault.kind, FaultKind::NotFound) => return Err(fault),
                        Err(fault) => {
                            self.context.count(fault.kind);
                            self.context.trouble(&fault);
                            jittered(Duration::from_secs(2))
                        }
                    };
                }
            }
        }
    }

    async fn relist(&mut self) -> Result<(), Fault> {
        let description = self.context.api.describe().await?;
        if self.era != Position::UNKNOWN_ERA && description.era.is_some_and(|era| era != self.era) {
            let message = "the stream was deleted and made anew".to_owned();
            return Err(Fault { kind: FaultKind::NotFound, message });
        }
        let listed = self.context.api.list_shards().await?;
        let mut start = self.source.lineage.update(listed);
        for shard in std::mem::take(&mut self.ended) {
            if self.source.lineage.is_open(&shard) {
                // Some answers lack the next iterator although the shard goes on.
                self.follow_on(shard);
            } else {
                start.extend(self.source.lineage.end(&shard));
            }
        }
        for (shard, closing) in &self.closing {
            if self.source.lineage.is_closed(shard) {
                closing.store(true, Ordering::Relaxed);
            }
        }
        for shard in start {
            self.spawn(shard, Start::Follow(Anchor::TrimHorizon));
        }
        Ok(())
    }

    /// A seek is over. What a shard lacks its parents may have.
    async fn on_sought(&mut self, report: &Report) {
        self.seeking.remove(&report.shard);
        // A longer look-back reaches behind the last reshard, whatever was found since.
        if !report.found || !self.context.config.lookback.is_zero() {
            let now_ms = self.context.api.now_ms();
            for parent in self.source.lineage.parents_to_seek(&report.shard) {
                self.seeking.insert(parent.clone());
                let start = self.seek(now_ms, true);
                self.spawn(parent, start);
            }
        }
        self.caught_up().await;
    }

    async fn caught_up(&mut self) {
        if self.seeking.is_empty() && !self.source.caught_up {
            self.source.caught_up = true;
            // The manager that does not listen any more ends the readers too.
            let _ = self.outlet.send(SourceEvent::CaughtUp).await;
        }
    }
}

impl Context {
    fn contact(&self) {
        self.metrics.stream_last_poll_timestamp.set(crate::metrics::unix_seconds(std::time::SystemTime::now()));
        self.status.stream_contact();
    }

    /// Counts a call that was not answered as asked.
    fn count(&self, kind: FaultKind) {
        let outcome = match kind {
            FaultKind::Throttled => "throttled",
            FaultKind::ExpiredIterator => "expired",
            FaultKind::InvalidArgument => "invalid",
            FaultKind::NotFound => "not_found",
            FaultKind::Denied => "denied",
            FaultKind::Credentials | FaultKind::Config | FaultKind::NotReady | FaultKind::Unavailable => "failed",
        };
        self.metrics.stream_polls.get(&[outcome]).increment(1);
    }

    /// Says once what is wrong, and its cure.
    fn trouble(&self, fault: &Fault) {
        let stream = &self.config.name;
        let cure = match fault.kind {
            FaultKind::NotFound => {
                format!(
                    "no stream {stream:?} in this account and region: create it, or check KINESIS_STREAM and AWS_REGION"
                )
            }
            FaultKind::Denied => {
                "not allowed: kinesis:DescribeStreamSummary, ListShards, GetShardIterator and GetRecords are needed \
                 (and kms:Decrypt on an encrypted stream)"
                    .to_owned()
            }
            FaultKind::Credentials | FaultKind::Config => "cannot ask AWS".to_owned(),
            FaultKind::NotReady => format!("stream {stream:?} is being created or changed"),
            FaultKind::Throttled => format!("stream {stream:?} is read by too many"),
            FaultKind::ExpiredIterator | FaultKind::InvalidArgument | FaultKind::Unavailable => {
                format!("stream {stream:?} does not answer")
            }
        };
        let message = format!("{cure}: {}", fault.message);
        let code = fault.kind.code();
        if self.status.stream_trouble(Trouble { code, message: message.clone() }) {
            self.status.waiting_for(format!("the stream: {message}"));
            tracing::warn!(stream, code, "{message}; serving what there is, and trying again");
        }
    }

    fn longest_pause(&self, kind: FaultKind) -> Duration {
        match kind {
            FaultKind::Unavailable | FaultKind::Throttled | FaultKind::NotReady => LONGEST_PAUSE,
            _ => LONGEST_PAUSE_FOR_PEOPLE,
        }
    }
}

fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.8 + 0.4 * fastrand::f64())
}
