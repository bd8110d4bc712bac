//! The tailer: every record of every shard of a Kinesis stream, for this instance alone, without checkpoints.
//!
//! ```text
//!                    ┌──────────── Tailer (pure): Lineage, Cursor, Pace ◄───────────┐
//!            effects │                                                              │ events
//!                    ▼                                                              │
//!   KinesisSource: hand on ─► Outlet      ask ─► Api ─► AWS ─► answer ──────────────┤
//!                                         subscribe ─► Subscription ─► deliveries ──┤
//!                                         register ─► Membership: the consumer ─────┘
//! ```
//!
//! What decides is pure; the I/O around it, here, is thin. Nothing that Kinesis does ends the source: it says what is
//! wrong on the status board, waits, and goes on.

mod api;
pub mod consumers;
mod cursor;
mod lineage;
mod membership;
mod observe;
mod pace;
#[cfg(test)]
mod simulation;
mod subscription;
mod tailer;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::api::Api;
use self::membership::Membership;
use self::observe::Observer;
use self::pace::Top;
use self::subscription::Terms;
use self::tailer::{Call, Effect, Event, Plan, ReaderId, Survey, Tailer, Vouch};
use super::{Bootstrap, Outlet, Running, Source, SourceEvent};
use crate::aws::{Aws, Fault};
use crate::config::{ConsumerMode, StreamConfig};
use crate::id::ShardId;
use crate::metrics::Metrics;
use crate::status::Status;

/// How many answers may wait for the tailer; with a page of up to 10 MiB each, few.
const ANSWERS: usize = 4;
/// How long to try to take leave of the stream at shutdown.
const LEAVE: Duration = Duration::from_secs(3);

/// Reads a Kinesis stream.
pub struct KinesisSource {
    aws: Aws,
    api: Arc<Api>,
    config: StreamConfig,
    observer: Observer,
    bootstrap: Option<watch::Receiver<Bootstrap>>,
}

impl KinesisSource {
    /// A source of this stream.
    pub fn new(aws: Aws, config: StreamConfig, metrics: Arc<Metrics>, status: Arc<Status>) -> Self {
        let api = Arc::new(Api::new(&aws, config.name.clone()));
        let observer = Observer::new(config.name.clone(), metrics, status);
        Self { aws, api, config, observer, bootstrap: None }
    }

    /// The same, where a manifest vouches for what is older than the start.
    #[must_use]
    pub fn vouched(self, bootstrap: watch::Receiver<Bootstrap>) -> Self {
        Self { bootstrap: Some(bootstrap), ..self }
    }

    async fn follow(mut self, outlet: Outlet, consumer: Arc<Consumer>, mut register: Option<Membership>) {
        let plan = Plan {
            start: self.config.start,
            lookback_ms: u64::try_from(self.config.lookback.as_millis()).unwrap_or(u64::MAX),
            top: Top::new(self.config.poll_interval, self.config.fleet_size),
            vouch: self.bootstrap.as_mut().map_or(Vouch::Nothing, |bootstrap| vouch(*bootstrap.borrow_and_update())),
        };
        let mut tailer = Tailer::new(plan, fastrand::Rng::new());
        let (answers, mut events) = mpsc::channel(ANSWERS);
        let mut shell = Shell {
            api: Arc::clone(&self.api),
            aws: self.aws.clone(),
            terms: Terms { silence: self.config.silence, renew: self.config.renew },
            consumer,
            answers,
            outlet,
            calls: HashMap::new(),
            tasks: JoinSet::new(),
            survey_at: Some(Instant::now()),
            surveying: false,
        };
        loop {
            let survey_at = shell.survey_at.filter(|_| !shell.surveying);
            let event = tokio::select! {
                Some(event) = events.recv() => event,
                () = tokio::time::sleep_until(survey_at.unwrap_or_else(Instant::now)), if survey_at.is_some() => {
                    shell.survey();
                    continue;
                }
                Some(is_there) = Membership::changed(&mut register) => Event::Consumer(is_there),
                vouched = changed(&mut self.bootstrap) => Event::Vouched(vouched),
                Some(_) = shell.tasks.join_next() => continue,
            };
            shell.surveying &= !matches!(event, Event::Surveyed(_));
            self.observer.clock(self.api.clock_offset_ms());
            self.observer.on_event(&event, &tailer);
            for effect in tailer.on(event, self.api.now_ms()) {
                self.observer.on_effect(&effect);
                if matches!(effect, Effect::Register) {
                    register.as_ref().inspect(|membership| membership.renew());
                } else if !shell.apply(effect).await {
                    return;
                }
            }
            self.observer.on_load(&tailer);
        }
    }
}

impl Source for KinesisSource {
    fn run(self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Running {
        Box::pin(async move {
            let consumer = Arc::new(Consumer::default());
            let membership = match self.config.consumer {
                ConsumerMode::Poll => None,
                mode => Some(Membership::start(&self.aws, &self.config, mode, Arc::clone(&consumer), &self.observer)),
            };
            let leave = membership.as_ref().map(Membership::leave);
            // Dropping the future at shutdown drops the calls: they own nothing that has to be given back.
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.follow(outlet, consumer, membership) => {}
            }
            if let Some(leave) = leave {
                // What stays behind is cleared by `hotserve consumers clear`.
                let _ = tokio::time::timeout(LEAVE, leave).await;
            }
        })
    }
}

/// The ARN of the consumer to subscribe with, while there is one.
#[derive(Debug, Default)]
struct Consumer(RwLock<Option<String>>);

impl Consumer {
    fn get(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, arn: Option<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = arn;
    }
}

/// Does what the tailer wants done.
struct Shell {
    api: Arc<Api>,
    aws: Aws,
    terms: Terms,
    consumer: Arc<Consumer>,
    answers: mpsc::Sender<Event>,
    outlet: Outlet,
    /// The one call, or subscription, of each reader.
    calls: HashMap<ReaderId, AbortHandle>,
    /// Dropping it ends them all.
    tasks: JoinSet<()>,
    survey_at: Option<Instant>,
    surveying: bool,
}

impl Shell {
    /// Answers whether anybody listens still.
    async fn apply(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::HandOn(records) => self.outlet.send(SourceEvent::Records(records)).await.is_ok(),
            Effect::CaughtUp => self.outlet.send(SourceEvent::CaughtUp).await.is_ok(),
            Effect::Ask { reader, shard, call, after } => {
                self.ask(reader, shard, call, after);
                true
            }
            Effect::Survey(after) => {
                let at = Instant::now() + after;
                self.survey_at = Some(self.survey_at.map_or(at, |before| before.min(at)));
                true
            }
            Effect::Drop(reader, _) => {
                if let Some(call) = self.calls.remove(&reader) {
                    call.abort();
                }
                true
            }
            Effect::Gap(_) | Effect::Trouble(_) | Effect::Crowded(_) | Effect::Register => true,
        }
    }

    fn ask(&mut self, reader: ReaderId, shard: ShardId, call: Call, after: Duration) {
        let (api, answers) = (Arc::clone(&self.api), self.answers.clone());
        let (consumer, terms) = (self.consumer.get(), self.terms);
        let task = self.tasks.spawn(async move {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let event = match call {
                Call::Iterator(anchor) => Event::Iterator(reader, api.iterator(&shard, &anchor).await),
                Call::Records(iterator) => Event::Page(reader, api.records(&iterator).await),
                Call::Subscribe(anchor) => {
                    let over = match consumer {
                        Some(arn) => subscription::run(&api, &arn, &shard, anchor, terms, reader, &answers).await,
                        None => Err(Fault::not_ready("there is no consumer any more")),
                    };
                    Event::Unsubscribed(reader, over)
                }
            };
            // The tailer that does not listen any more has dropped this task.
            let _ = answers.send(event).await;
        });
        self.calls.insert(reader, task);
    }

    fn survey(&mut self) {
        self.surveying = true;
        self.survey_at = None;
        let (api, aws, answers) = (Arc::clone(&self.api), self.aws.clone(), self.answers.clone());
        self.tasks.spawn(async move {
            let survey = async {
                aws.check().await?;
                let description = api.describe().await?;
                let shards = api.list_shards().await?;
                Ok(Survey { era: description.era, retention_ms: description.retention_ms, shards })
            };
            let _ = answers.send(Event::Surveyed(survey.await)).await;
        });
    }
}

fn vouch(bootstrap: Bootstrap) -> Vouch {
    match bootstrap {
        Bootstrap::Pending => Vouch::Pending,
        Bootstrap::Folded { .. } => Vouch::Folded,
        Bootstrap::Absent | Bootstrap::Unavailable => Vouch::Nothing,
    }
}

/// Waits for news of the manifest; for ever, where there is none.
async fn changed(bootstrap: &mut Option<watch::Receiver<Bootstrap>>) -> Vouch {
    if let Some(receiver) = bootstrap {
        if receiver.changed().await.is_ok() {
            return vouch(*receiver.borrow_and_update());
        }
        // Whoever read it is gone.
        *bootstrap = None;
    }
    std::future::pending().await
}
