//! The composition root: makes the parts, connects them, supervises them, and stops them in order.
//!
//! Requests are answered on the caller's runtime. The stream, the artifacts and the swap live on a runtime of their
//! own, so that a page of ten thousand records or a slow disk takes no time from a request.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hotserve_models::Loaders;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::aws::{Aws, Retries};
use crate::config::Config;
use crate::http::{self, Front, Http};
use crate::id::{Rank, StateKey};
use crate::manager::{self, Manager};
use crate::manifest;
use crate::manifest::object::ManifestObject;
use crate::metrics::Metrics;
use crate::notification::Limits;
use crate::serving::compute::ComputePool;
use crate::serving::{ServedState, Serving, Snapshot};
use crate::source::kinesis::KinesisSource;
use crate::source::manifest::{ManifestOptions, ManifestSource};
use crate::source::{Bootstrap, Source};
use crate::status::{HistoryFile, Status};
use crate::store::cache::OpenError;
use crate::store::s3::S3Store;
use crate::store::{Cache, Fetcher, Store};
use crate::trust::{Required, Trust};

/// How many pages of records, of up to 10 MiB each, may wait for the manager.
const OUTLET: usize = 4;
/// How many predictions may wait for the compute pool.
const COMPUTE_QUEUE: usize = 256;
/// How long the stream and the swap may take to stop.
const STOP: Duration = Duration::from_secs(5);

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The port is taken, or not allowed.
    #[error("listen on {addr}: choose another port with --port (PORT), 0 for any free one")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The port for commands is taken, or not allowed.
    #[error("listen on {addr}: choose another address with --admin-listen (HOTSERVE_ADMIN_LISTEN)")]
    AdminListen {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The cache folder cannot be used.
    #[error("cache folder {folder} (--cache-dir, HOTSERVE_CACHE_DIR)")]
    Cache {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        source: OpenError,
    },
    /// A thread, a file or a socket is refused.
    #[error("start the server")]
    System(#[from] std::io::Error),
}

/// Where notifications and artifacts come from.
pub struct Adapters {
    /// The stream.
    pub source: Box<dyn Source>,
    /// What serves `s3://`.
    pub s3: Arc<dyn Store>,
    /// The kinds of model.
    pub loaders: Loaders,
}

/// The registry and the board that all parts of one server share.
#[derive(Clone)]
pub struct Boards {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The status.
    pub status: Arc<Status>,
}

impl Default for Boards {
    fn default() -> Self {
        Self { metrics: Metrics::new(), status: Arc::new(Status::default()) }
    }
}

impl Adapters {
    /// Kinesis and S3.
    pub fn aws(aws: &Aws, config: &Config, boards: &Boards) -> Self {
        let Boards { metrics, status } = boards.clone();
        let stream = KinesisSource::new(aws.clone(), config.stream.clone(), metrics, status);
        let source: Box<dyn Source> = match &config.manifest {
            None => Box::new(stream),
            Some(manifest) => {
                let limits = manifest::Limits::default();
                let object = ManifestObject::new(aws, Retries::Ours, manifest.uri.clone(), limits.bytes);
                let options =
                    ManifestOptions { stream: config.stream.name.clone(), interval: manifest.interval, limits };
                let Boards { metrics, status } = boards.clone();
                let (bootstrap, brought) = watch::channel(Bootstrap::default());
                let stream = stream.vouched(brought);
                Box::new(ManifestSource::new(object, options, Box::new(stream), bootstrap, metrics, status))
            }
        };
        Self { source, s3: Arc::new(S3Store::new(aws.s3(Retries::Ours))), loaders: Loaders::bundled() }
    }
}

/// A server that listens, and waits to be run.
pub struct App {
    listener: TcpListener,
    addr: SocketAddr,
    /// For commands alone.
    admin: Option<TcpListener>,
    history: Option<HistoryFile>,
    http: Arc<Http>,
    manager: Manager,
    source: Box<dyn Source>,
    background: Background,
    drain: Duration,
}

/// A runtime that may be dropped anywhere: its threads are left to end by themselves.
struct Background(Option<Runtime>);

impl Background {
    fn start() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Ok(Self(Some(builder.worker_threads(2).thread_name("background").enable_all().build()?)))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Says whom the server trusts, as far as the log of its start should.
fn say(trust: &Trust) {
    let (keyring, required) = (trust.keyring(), trust.required());
    let ids: Vec<_> = keyring.keys().iter().map(|key| key.id().as_str()).collect();
    let needed = keyring.threshold();
    tracing::info!(%required, needed, keys = ids.join(" "), "messages are checked against the trusted keys");
    let now = Timestamp::now();
    for key in keyring.keys().iter().filter(|key| key.is_expired(now)) {
        tracing::warn!(key = %key.id(), "its not_after has passed: what it signs is refused");
    }
}

impl App {
    /// Makes all parts and binds the port; nothing runs yet.
    pub async fn bind(config: Config, adapters: Adapters, boards: Boards) -> Result<Self, Error> {
        let Boards { metrics, status } = boards;
        let Adapters { source, s3, loaders } = adapters;
        let cache = Cache::open(config.store.cache_dir.as_deref()).map_err(|source| Error::Cache {
            folder: config
                .store
                .cache_dir
                .as_ref()
                .map_or_else(|| "(temporary)".to_owned(), |dir| dir.display().to_string()),
            source,
        })?;
        let cache = Arc::new(cache);
        let history = if cache.is_durable() { keep_history(cache.root(), &status) } else { None };

        let key = StateKey::default();
        let initial = ServedState::new(key.clone(), Rank::Initial, &config.initial_state, None);
        let (serving, swapper) = Serving::new(Snapshot::default().with(vec![initial], vec![]));
        if let Some(trust) = &config.message.trust {
            say(trust);
            metrics.signature_required.set(match trust.required() {
                Required::Off => 0.0,
                Required::Model => 1.0,
                Required::All => 2.0,
            });
        }
        let options = manager::Options {
            limits: Limits {
                payload_bytes: config.message.max_bytes,
                require_digest: config.message.require_digest,
                trust: config.message.trust,
                ..Limits::default()
            },
            max_artifact: config.store.max_artifact,
            max_version_jump: config.message.max_version_jump,
            loaders,
            initial: Some((key, config.initial_state)),
            pins: config.pins,
            gates: config.gates,
        };
        let fetcher = Arc::new(Fetcher::new(s3, Arc::clone(&cache), config.store, Arc::clone(&metrics)));
        let manager = Manager::new(options, swapper, fetcher, cache, Arc::clone(&metrics), Arc::clone(&status))?;

        let compute =
            ComputePool::new(config.http.compute_threads, COMPUTE_QUEUE, metrics.predict_queue_depth.clone())?;
        let (listen, drain) = (config.http.listen, config.http.drain);
        let http = Arc::new(Http::new(serving, status, metrics, compute, config.http, manager.handle()));

        let listener = TcpListener::bind(listen).await.map_err(|source| Error::Listen { addr: listen, source })?;
        let addr = listener.local_addr()?;
        let admin = match http.admin_listen() {
            Some(addr) => Some(TcpListener::bind(addr).await.map_err(|source| Error::AdminListen { addr, source })?),
            None => None,
        };
        let background = Background::start()?;
        Ok(Self { listener, addr, admin, history, http, manager, source, background, drain })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it takes commands, if it does.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.http.admin.as_ref()?;
        Some(self.admin.as_ref().and_then(|listener| listener.local_addr().ok()).unwrap_or(self.addr))
    }

    /// What is served, for a host that looks itself.
    pub fn http(&self) -> Arc<Http> {
        Arc::clone(&self.http)
    }

    /// Serves until shut down; then answers the requests that are under way, and stops.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { listener, admin, history, http, manager, source, background, drain, .. } = self;
        let runtime = background.0.as_ref().expect("it is taken only when dropped").handle().clone();
        let (outlet, events) = mpsc::channel(OUTLET);
        // The stream stops after the last request: until then its swaps are still wanted.
        let stop = CancellationToken::new();
        let source = runtime.spawn(source.run(outlet, stop.clone()));
        let manager = runtime.spawn(manager.run(events, stop.clone()));
        let upkeep = runtime.spawn({
            let metrics = Arc::clone(&http.metrics);
            async move {
                loop {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    metrics.upkeep();
                }
            }
        });
        let unready = tokio::spawn({
            let (status, shutdown) = (Arc::clone(&http.status), shutdown.clone());
            async move {
                shutdown.cancelled().await;
                status.set_draining();
            }
        });

        // The history is kept until nothing is swapped any more.
        let ended = CancellationToken::new();
        let history = history.map(|history| runtime.spawn(history.run(ended.clone())));
        let admin = admin.map(|admin| {
            let router = http::admin_router(Arc::clone(&http));
            tokio::spawn(http::listener::serve(admin, router, drain, shutdown.clone()))
        });

        let served = http::listener::serve(listener, Front::new(http), drain, shutdown).await;
        if let Some(admin) = admin {
            match admin.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the port for commands ended badly"),
                Err(error) => tracing::error!(%error, "the port for commands ended badly"),
            }
        }
        stop.cancel();
        for task in [source, manager] {
            match tokio::time::timeout(STOP, task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a part of the server ended badly"),
                Err(_) => tracing::warn!("the stream or the swap did not stop within {STOP:?}; leaving it behind"),
            }
        }
        ended.cancel();
        if let Some(history) = history
            && tokio::time::timeout(STOP, history).await.is_err()
        {
            tracing::warn!("the last lines of the history could not be written within {STOP:?}");
        }
        upkeep.abort();
        unready.abort();
        Ok(served?)
    }
}

/// The history is for people: a server that cannot keep it serves without.
fn keep_history(folder: &Path, status: &Arc<Status>) -> Option<HistoryFile> {
    HistoryFile::open(folder, status)
        .inspect_err(|error| tracing::warn!(%error, "the history cannot be kept on disk; it ends with this process"))
        .ok()
}
