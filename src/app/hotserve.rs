//! All parts of one server, made and connected: not yet running, then running, then stopped in order.
//!
//! Requests are answered on the caller's runtime. The stream, the artifacts and the swap live on a runtime of their
//! own, so that a page of ten thousand records or a slow disk takes no time from a request.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::Response;
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::Service;

use super::{Adapters, App, Boards, Error, States};
use crate::config::{self, Config};
use crate::http::{self, Doors, Http};
use crate::manager::{self, Manager};
use crate::notification::Limits;
use crate::serving::compute::ComputePool;
use crate::serving::{Serving, Snapshot};
use crate::source::{Outlet, Source};
use crate::status::{HistoryFile, Readiness, Status, Trouble};
use crate::store::{Cache, Fetcher};
use crate::trust::{Required, Trust};

/// How many pages of records, of up to 10 MiB each, may wait for the manager.
const OUTLET: usize = 4;
/// How many predictions may wait for the compute pool.
const COMPUTE_QUEUE: usize = 256;
/// How long the stream and the swap may take to stop.
const STOP: Duration = Duration::from_secs(5);
/// How long a request for the threads of the background to end waits for them.
const END: Duration = Duration::from_secs(1);

/// A server without a listener, all of it made and nothing running: for [`start`](Self::start), or [`run`](Self::run).
pub struct Hotserve {
    http: Arc<Http>,
    doors: Doors,
    manager: Manager,
    source: Box<dyn Source>,
    history: Option<HistoryFile>,
    background: Background,
}

/// A server that follows its source. Dropped, it stops at once; [`stop`](Self::stop) waits until that is done.
///
/// Its router answers as long as somebody has it, from what was served last.
pub struct Running {
    http: Arc<Http>,
    doors: Doors,
    source: JoinHandle<()>,
    manager: JoinHandle<()>,
    upkeep: JoinHandle<()>,
    history: Option<JoinHandle<()>>,
    certificate: Option<JoinHandle<()>>,
    /// Ends the source and the manager.
    stop: DropGuard,
    /// Ends the history, which is kept until nothing is swapped any more.
    ended: DropGuard,
    background: Background,
}

/// A runtime that may be dropped anywhere: its threads are left to end by themselves.
struct Background(Option<Runtime>);

impl Background {
    fn start() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Ok(Self(Some(builder.worker_threads(2).thread_name("background").enable_all().build()?)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("it is taken only when it ends").handle().clone()
    }

    /// Ends it, and waits for its threads.
    async fn end(mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for threads is no work for one that answers requests.
            let waited = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(END)).await;
            if let Err(error) = waited {
                tracing::warn!(%error, "the threads of the background could not be waited for");
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Hotserve {
    /// Makes all parts. It opens files, and waits for a child process to answer: it is not for a thread that answers
    /// requests.
    pub(super) fn new(config: Config, adapters: Adapters, boards: Boards, states: States) -> Result<Self, Error> {
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

        let States { serving, swapper, types, initial } = states;
        if let Some(trust) = &config.message.trust {
            say(trust);
            metrics.signature_required.set(match trust.required() {
                Required::Off => 0.0,
                Required::Model => 1.0,
                Required::All => 2.0,
            });
        }
        let options = manager::Options {
            stream: config.stream.name,
            limits: Limits {
                payload_bytes: config.message.max_bytes,
                require_digest: config.message.require_digest,
                trust: config.message.trust,
                ..Limits::default()
            },
            max_artifact: config.store.max_artifact,
            max_version_jump: config.message.max_version_jump,
            loaders,
            initial,
            types,
            pins: config.pins,
            gates: config.gates,
        };
        let fetcher = Arc::new(Fetcher::new(s3, Arc::clone(&cache), config.store, Arc::clone(&metrics)));
        let manager = Manager::new(options, swapper, fetcher, cache, Arc::clone(&metrics), Arc::clone(&status))?;

        let compute =
            ComputePool::new(config.http.compute_threads, COMPUTE_QUEUE, metrics.predict_queue_depth.clone())?;
        let http = Arc::new(Http::new(serving, status, metrics, compute, config.http, manager.handle()));
        let doors = Doors::open(Arc::clone(&http))?;
        Ok(Self { http, doors, manager, source, history, background: Background::start()? })
    }

    /// The routes of its HTTP interface, to be merged into the host's own app, or nested below a path of it:
    /// everything but the status page at `/`, and with no answer to other paths.
    ///
    /// Commands are among them where there is an admin token, unless they have an address of their own
    /// (`--admin-listen`), which only [`run`](Self::run) and [`serve`](Self::serve) listen on. So it is with the
    /// operators' paths and `--ops-listen`.
    pub fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        http::routes(Arc::clone(&self.http))
    }

    /// What is served, as it is now: for handlers that read several states, or a model, of one snapshot.
    pub fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.http.serving)
    }

    /// How it is doing.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.http.status)
    }

    /// The ports.
    pub(super) fn doors(&self) -> &Doors {
        &self.doors
    }

    /// The HTTP interface.
    pub(super) fn http(&self) -> &Arc<Http> {
        &self.http
    }

    /// Follows the source from now on, on threads of its own.
    pub fn start(self) -> Running {
        let Self { http, doors, manager, source, history, background } = self;
        let runtime = background.handle();
        let (outlet, events) = mpsc::channel(OUTLET);
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let upkeep = runtime.spawn({
            let http = Arc::clone(&http);
            async move {
                let mut seconds = tokio::time::interval(Duration::from_secs(1));
                seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
                for second in 0_u64.. {
                    seconds.tick().await;
                    http.sample();
                    if second % 5 == 4 {
                        http.metrics.upkeep();
                    }
                }
            }
        });
        Running {
            source: runtime.spawn(supervise(source, outlet, stop.clone(), Arc::clone(&http.status))),
            manager: runtime.spawn(manager.run(events, stop.clone())),
            history: history.map(|history| runtime.spawn(history.run(ended.clone()))),
            certificate: doors.tls().map(|tls| runtime.spawn(Arc::clone(tls).watch(stop.clone()))),
            upkeep,
            http,
            doors,
            stop: stop.drop_guard(),
            ended: ended.drop_guard(),
            background,
        }
    }

    /// Serves all of the interface as `hotserve serve` does, where the settings say, until `shutdown`; then answers the
    /// requests that are under way, and stops.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let addr = self.http.config.listen;
        let listener = http::listener::bind(addr).map_err(|source| Error::Listen { addr, source })?;
        self.serve(listener, shutdown).await
    }

    /// The same on a listener of the host's.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let app = App::on(self, listener).await?;
        tracing::info!(addr = %app.addr(), "listening");
        // Dropped, it takes the port for commands with it.
        let stop = CancellationToken::new().drop_guard();
        let served = app.run(stop.token().clone());
        tokio::pin!(served);
        tokio::select! {
            served = &mut served => return served,
            () = shutdown => {}
        }
        stop.disarm().cancel();
        served.await
    }
}

impl Running {
    /// The routes of its HTTP interface, as [`Hotserve::router`].
    pub fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        http::routes(Arc::clone(&self.http))
    }

    /// What is served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.http.serving.snapshot()
    }

    /// How it is doing.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.http.status)
    }

    /// Reads the certificate anew, where there is one: new connections get it. What is wrong with it is the error, and
    /// the one before is used on. It reads files: not for a thread that answers requests.
    pub fn reload_certificate(&self) -> Result<(), config::Error> {
        self.doors.tls().map_or(Ok(()), |tls| tls.reload().map(drop))
    }

    /// Waits until it serves what its source had at the start, or what the last run served, as `/readyz` says it.
    /// [`Error::NotReady`] where that takes longer, or it is stopped before.
    pub async fn ready_within(&self, patience: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        let mut news = self.http.status.news();
        let ready = async {
            loop {
                news.borrow_and_update();
                match self.http.status.readiness() {
                    Readiness::Ready => return true,
                    Readiness::Draining => return false,
                    Readiness::Starting(_) => {}
                }
                if news.changed().await.is_err() {
                    return false;
                }
            }
        };
        if tokio::time::timeout(patience, ready).await == Ok(true) {
            return Ok(());
        }
        let reason = match self.http.status.readiness() {
            Readiness::Ready => return Ok(()),
            Readiness::Starting(reason) => reason,
            Readiness::Draining => "it was stopped".to_owned(),
        };
        Err(Error::NotReady { waited: begun.elapsed(), reason })
    }

    /// Says on `/readyz` that no more requests should be sent here. They are answered all the same, and swaps go on.
    pub fn drain(&self) {
        self.http.status.set_draining();
    }

    /// Answers requests to the host's app, with [`router`](Self::router) in it or not, until `shutdown`; then answers
    /// those that come within `--drain-delay` and those that are under way, for as long as `--drain` says, and stops.
    ///
    /// `axum::serve` does as well; this listener has limits, speaks TLS where the settings say so, and its drain has an
    /// end.
    pub async fn serve(
        self,
        listener: TcpListener,
        app: Router,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), Error> {
        self.serve_until(listener, app, shutdown, std::future::ready(())).await
    }

    /// The same, and then waits for something that is shut down too.
    pub(super) async fn serve_until<S>(
        self,
        listener: TcpListener,
        service: S,
        shutdown: impl Future<Output = ()>,
        beside: impl Future<Output = ()>,
    ) -> Result<(), Error>
    where
        S: Service<::http::Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let closing = CancellationToken::new();
        let served = http::listener::serve(listener, service, self.doors.clients(), self.http.drain(), closing.clone());
        tokio::pin!(served);
        let served = tokio::select! {
            served = &mut served => served,
            () = shutdown => {
                self.drain();
                closing.cancel();
                served.await
            }
        };
        beside.await;
        // The stream stops after the last request: until then its swaps are still wanted.
        self.stop().await;
        Ok(served?)
    }

    /// Stops following the source, and waits until all that it began has ended; a few seconds at the most. A host with a
    /// listener of its own ends that first.
    pub async fn stop(self) {
        let Self { http, source, manager, upkeep, history, certificate, stop, ended, background, .. } = self;
        http.status.set_draining();
        stop.disarm().cancel();
        for task in [source, manager] {
            match tokio::time::timeout(STOP, task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a part of the server ended badly"),
                Err(_) => tracing::warn!("the stream or the swap did not stop within {STOP:?}; leaving it behind"),
            }
        }
        ended.disarm().cancel();
        if let Some(history) = history
            && tokio::time::timeout(STOP, history).await.is_err()
        {
            tracing::warn!("the last lines of the history could not be written within {STOP:?}");
        }
        upkeep.abort();
        if let Some(certificate) = certificate {
            certificate.abort();
        }
        background.end().await;
    }
}

/// Runs the source. One that ends before it is told to, or panics, costs what it would have brought, and nothing else:
/// what is served is served on, and commands are taken.
async fn supervise(source: Box<dyn Source>, outlet: Outlet, stop: CancellationToken, status: Arc<Status>) {
    // A source may also panic where it only makes its future.
    let running = AssertUnwindSafe(async { source.run(outlet.clone(), stop.clone()).await });
    let ended = running.catch_unwind().await;
    if stop.is_cancelled() || outlet.is_closed() {
        return;
    }
    let how = if ended.is_ok() { "ended" } else { "panicked" };
    tracing::error!("the source {how}: what is served is served on, and nothing new comes until a restart");
    let message = format!("the source {how}: nothing new comes until a restart");
    status.stream_trouble(Trouble { code: "source_ended", message });
    stop.cancelled().await;
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

/// The history is for people: a server that cannot keep it serves without.
fn keep_history(folder: &Path, status: &Arc<Status>) -> Option<HistoryFile> {
    HistoryFile::open(folder, status)
        .inspect_err(|error| tracing::warn!(%error, "the history cannot be kept on disk; it ends with this process"))
        .ok()
}
