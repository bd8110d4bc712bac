//! The consumer that this instance registers with the stream, to subscribe to its shards: one for each instance, for a
//! consumer's shard has one subscriber.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::Consumer;
use super::consumers::{ConsumerStatus, Consumers, PREFIX, RegisterError};
use super::observe::Observer;
use crate::aws::{Aws, Fault, FaultKind};
use crate::config::{ConsumerMode, StreamConfig};

/// How long until a registration that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// The same where the stream has no room and polling will do.
const RETRY_FULL: Duration = Duration::from_secs(600);
/// How often to ask whether the consumer can be used, and for how long.
const ASK: Duration = Duration::from_millis(500);
const ASKS: u32 = 120;

/// Keeps a consumer registered; until there is one, and when there is none, shards are polled.
pub(super) struct Membership {
    state: watch::Receiver<bool>,
    renew: Arc<Notify>,
    consumers: Arc<Consumers>,
    registered: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

impl Membership {
    pub(super) fn start(
        aws: &Aws,
        config: &StreamConfig,
        mode: ConsumerMode,
        consumer: Arc<Consumer>,
        observer: &Observer,
    ) -> Self {
        let (is_there, state) = watch::channel(false);
        let renew = Arc::new(Notify::new());
        let consumers = Arc::new(Consumers::new(aws, config.name.clone()));
        let registered = Arc::new(Mutex::new(None));
        let keeper = Keeper {
            consumers: Arc::clone(&consumers),
            registered: Arc::clone(&registered),
            name: config.consumer_name.clone().unwrap_or_else(name),
            mode,
            consumer,
            is_there,
            renew: Arc::clone(&renew),
            observer: observer.clone(),
        };
        Self { state, renew, consumers, registered, task: tokio::spawn(keeper.keep()) }
    }

    /// Waits until there is a consumer, or there is none any more; for ever, where none is wanted.
    pub(super) async fn changed(membership: &mut Option<Self>) -> Option<bool> {
        let Some(membership) = membership else { return std::future::pending().await };
        if membership.state.changed().await.is_err() {
            return std::future::pending().await;
        }
        Some(*membership.state.borrow_and_update())
    }

    /// The consumer is gone: registers it again.
    pub(super) fn renew(&self) {
        self.renew.notify_one();
    }

    /// Takes leave of the stream, when awaited.
    pub(super) fn leave(&self) -> impl Future<Output = ()> + use<> {
        let (consumers, registered) = (Arc::clone(&self.consumers), Arc::clone(&self.registered));
        let keeper = self.task.abort_handle();
        async move {
            keeper.abort();
            let arn = registered.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(arn) = arn
                && let Err(fault) = consumers.deregister(&arn).await
            {
                tracing::warn!(
                    arn,
                    "the consumer could not be deregistered; `hotserve consumers clear` removes it: {fault}"
                );
            }
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    consumers: Arc<Consumers>,
    registered: Arc<Mutex<Option<String>>>,
    name: String,
    mode: ConsumerMode,
    consumer: Arc<Consumer>,
    is_there: watch::Sender<bool>,
    renew: Arc<Notify>,
    observer: Observer,
}

impl Keeper {
    async fn keep(self) {
        // What was said already: it is tried again twice a minute, and said again when it is another.
        let mut said = None;
        loop {
            match self.register().await {
                Ok(arn) => {
                    said = None;
                    tracing::info!(consumer = self.name, "reading with enhanced fan-out");
                    self.consumer.set(Some(arn));
                    self.is_there.send_replace(true);
                    self.renew.notified().await;
                    tracing::warn!(consumer = self.name, "the consumer is not there any more: registering it again");
                    self.consumer.set(None);
                    self.is_there.send_replace(false);
                }
                Err(RegisterError::Full { registered, .. }) if self.mode == ConsumerMode::Auto => {
                    if said.replace("full") != Some("full") {
                        tracing::warn!(
                            registered,
                            "the stream has no room for another consumer: polling instead. `hotserve consumers` lists \
                             them, and clears stale ones; a stream in on-demand advantage mode has room for 50"
                        );
                    }
                    tokio::time::sleep(RETRY_FULL).await;
                }
                Err(error) => {
                    let fault = match error {
                        RegisterError::Fault(fault) => fault,
                        RegisterError::Full { registered, message } => Fault {
                            kind: FaultKind::Throttled,
                            message: format!(
                                "the stream has {registered} consumers and room for no more ({message}): clear stale \
                                 ones with `hotserve consumers clear`, or use --consumer auto"
                            ),
                        },
                    };
                    let code = fault.kind.code();
                    if said.replace(code) != Some(code) {
                        self.observer.no_consumer(&fault);
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn register(&self) -> Result<String, RegisterError> {
        let mut consumer = self.consumers.register(&self.name).await?;
        *self.registered.lock().unwrap_or_else(PoisonError::into_inner) = Some(consumer.arn.clone());
        for _ in 0..ASKS {
            match consumer.status {
                ConsumerStatus::Active => return Ok(consumer.arn),
                ConsumerStatus::Creating => {}
                ConsumerStatus::Deleting => return Err(Fault::not_ready("the consumer is being deleted").into()),
            }
            tokio::time::sleep(ASK).await;
            consumer = self.consumers.describe(&consumer.arn).await?;
        }
        Err(Fault::not_ready("the consumer does not become active").into())
    }
}

/// A name that tells a person whose it is, and that no other instance has.
fn name() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host: String = host.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')).collect();
    format!("{PREFIX}{}-{:08x}", host.chars().take(64).collect::<String>(), fastrand::u32(..))
}
