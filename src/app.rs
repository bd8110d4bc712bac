//! The composition root: names the adapters, makes the parts, connects them, supervises them, and stops them in order.
//!
//! ```text
//!   Builder ─┐
//!            ├─► Hotserve: all parts, nothing runs ── start ─► Running ── stop: drained, no thread is left
//!   App ─────┘      router: for the host's own app                └─ serve: on a listener, till it is shut down
//! ```
//!
//! [`App`] is the program `hotserve serve`: a [`Hotserve`] and its listeners. [`Builder`] is for programs that embed it.

mod builder;
mod hotserve;
mod states;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hotserve_models::Loaders;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::aws::{Aws, Retries};
use crate::config::{self, Config};
use crate::http::listener::Door;
use crate::http::tls::Tls;
use crate::http::{self, Front, Http};
use crate::id::StateKey;
use crate::manifest;
use crate::manifest::object::ManifestObject;
use crate::metrics::Metrics;
use crate::source::kinesis::KinesisSource;
use crate::source::manifest::{ManifestOptions, ManifestSource};
use crate::source::{Bootstrap, Source};
use crate::status::Status;
use crate::store::Store;
use crate::store::cache::OpenError;
use crate::store::s3::S3Store;

pub use self::builder::Builder;
pub use self::hotserve::{Hotserve, Running};
use self::states::States;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The port is taken or not allowed, or the address is not this machine's.
    #[error(
        "listen on {addr}: choose another port with --port (PORT), 0 for any free one, or address with --host \
         (HOTSERVE_HOST)"
    )]
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
    /// The port for operators is taken, or not allowed.
    #[error("listen on {addr}: choose another address with --ops-listen (HOTSERVE_OPS_LISTEN)")]
    OpsListen {
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
    /// A setting is missing or wrong.
    #[error(transparent)]
    Setting(#[from] config::Error),
    /// A state cannot be what the host wants it to be.
    #[error("state {key:?}: {problem}")]
    State {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// It was not ready in time, or was stopped before.
    #[error("not ready after {waited:?}: {reason}")]
    NotReady {
        /// How long was waited.
        waited: Duration,
        /// What it waits for.
        reason: String,
    },
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
        let source = Self::stream(aws, config, boards);
        Self { source, s3: Self::s3(aws), loaders: Loaders::bundled() }
    }

    /// The stream, and the manifest beside it where there is one.
    fn stream(aws: &Aws, config: &Config, boards: &Boards) -> Box<dyn Source> {
        let Boards { metrics, status } = boards.clone();
        let stream = KinesisSource::new(aws.clone(), config.stream.clone(), metrics, status);
        let Some(manifest) = &config.manifest else { return Box::new(stream) };
        let limits = manifest::Limits::default();
        let object = ManifestObject::new(aws, Retries::Ours, manifest.uri.clone(), limits.bytes);
        let options = ManifestOptions { stream: config.stream.name.clone(), interval: manifest.interval, limits };
        let Boards { metrics, status } = boards.clone();
        let (bootstrap, brought) = watch::channel(Bootstrap::default());
        let stream = stream.vouched(brought);
        Box::new(ManifestSource::new(object, options, Box::new(stream), bootstrap, metrics, status))
    }

    fn s3(aws: &Aws) -> Arc<dyn Store> {
        Arc::new(S3Store::new(aws.s3(Retries::Ours)))
    }
}

/// A server that listens, and waits to be run.
pub struct App {
    listener: TcpListener,
    addr: SocketAddr,
    /// For commands alone.
    admin: Option<TcpListener>,
    /// For operators.
    ops: Option<TcpListener>,
    hotserve: Hotserve,
}

impl App {
    /// Makes all parts and binds the port; nothing runs yet.
    pub async fn bind(config: Config, adapters: Adapters, boards: Boards) -> Result<Self, Error> {
        let listen = config.http.listen;
        let mut states = States::default();
        states.begin_with(&StateKey::default(), &config.initial_state)?;
        let hotserve = Hotserve::new(config, adapters, boards, states)?;
        let listener = http::listener::bind(listen).map_err(|source| Error::Listen { addr: listen, source })?;
        Self::on(hotserve, listener).await
    }

    async fn on(hotserve: Hotserve, listener: TcpListener) -> Result<Self, Error> {
        let addr = listener.local_addr()?;
        let admin = match hotserve.http().admin_listen() {
            Some(addr) => Some(http::listener::bind(addr).map_err(|source| Error::AdminListen { addr, source })?),
            None => None,
        };
        let ops = match hotserve.http().ops_listen() {
            Some(addr) => Some(http::listener::bind(addr).map_err(|source| Error::OpsListen { addr, source })?),
            None => None,
        };
        Ok(Self { listener, addr, admin, ops, hotserve })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where it takes commands, if it does.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.hotserve.http().admin.as_ref()?;
        let listener = self.admin.as_ref().or(self.ops.as_ref());
        Some(listener.and_then(|listener| listener.local_addr().ok()).unwrap_or(self.addr))
    }

    /// Where the operators' paths are, if that is not where everything is.
    pub fn ops_addr(&self) -> Option<SocketAddr> {
        self.ops.as_ref()?.local_addr().ok()
    }

    /// The certificate, where TLS is spoken: for who wants it read anew.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.hotserve.doors().tls().cloned()
    }

    /// What is served, for a host that looks itself.
    pub fn http(&self) -> Arc<Http> {
        Arc::clone(self.hotserve.http())
    }

    /// Serves until shut down; then answers the requests that are under way, and stops.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { listener, admin, ops, hotserve, .. } = self;
        let (http, doors) = (Arc::clone(hotserve.http()), hotserve.doors().clone());
        let drain = http.drain();
        let running = hotserve.start();
        let beside = |what: &'static str,
                      listener: Option<TcpListener>,
                      router: fn(&Arc<Http>) -> Router,
                      door: Door| {
            let listener = listener?;
            Some((what, tokio::spawn(http::listener::serve(listener, router(&http), door, drain, shutdown.clone()))))
        };
        let ports = [
            beside("the port for commands", admin, http::admin_router, doors.admin()),
            beside("the port for operators", ops, http::ops_router, doors.ops()),
        ];
        let ended = async move {
            for (what, port) in ports.into_iter().flatten() {
                match port.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "{what} ended badly"),
                    Err(error) => tracing::error!(%error, "{what} ended badly"),
                }
            }
        };
        running.serve_until(listener, Front::new(http), shutdown.cancelled_owned(), ended).await
    }
}
