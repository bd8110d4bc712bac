//! Kinesis and S3 in this process, over real sockets: for `hotserve dev`, and for tests. Not for production.

mod conditional;
pub mod faults;
mod sandbox;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::error_handling::HandleError;
use axum::http::StatusCode;
use ferrokinesis::store::{DurableStateOptions, StoreOptions};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::aws::Endpoints;
use faults::Faults;

pub use sandbox::Sandbox;

/// The region that the endpoints sign for.
pub const REGION: &str = "us-east-1";
/// Credentials for the S3 endpoint; the Kinesis one takes any.
pub const ACCESS_KEY_ID: &str = "hotserve-dev";
/// The secret half.
pub const SECRET_ACCESS_KEY: &str = "hotserve-dev-secret";
const ACCOUNT: &str = "000000000000";

/// What the endpoints are to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where Kinesis listens; port 0 takes any free one.
    pub kinesis: SocketAddr,
    /// Where S3 listens; port 0 takes any free one.
    pub s3: SocketAddr,
    /// The folder of streams and buckets.
    pub folder: PathBuf,
    /// Whether the streams are kept in the folder too, to be there after a restart.
    pub durable: bool,
    /// What goes wrong around them, and time as Kinesis tells it; none leaves both as the stand-ins have them.
    pub faults: Option<Arc<Faults>>,
}

/// Why the endpoints do not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The port is taken, or not allowed.
    #[error("listen on {addr} for {service}")]
    Listen {
        /// `Kinesis` or `S3`.
        service: &'static str,
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder cannot be used.
    #[error("use {folder}: {detail}")]
    Folder {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A sandbox's message or artifact could not be published.
    #[error("publish: {detail}")]
    Publish {
        /// What is wrong.
        detail: String,
    },
}

/// Two running endpoints; dropping them ends them.
pub struct Embedded {
    /// The Kinesis endpoint.
    pub kinesis: Endpoint,
    /// The S3 endpoint.
    pub s3: Endpoint,
}

impl Embedded {
    /// Starts both.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let folder_error = |detail: String| Error::Folder { folder: options.folder.display().to_string(), detail };
        let buckets = options.folder.join("s3");
        std::fs::create_dir_all(&buckets).map_err(|error| folder_error(error.to_string()))?;
        let kinesis = kinesis_router(options.durable.then(|| options.folder.join("kinesis")));
        let s3 = s3_router(&buckets).map_err(folder_error)?;
        let (kinesis, s3) = match &options.faults {
            Some(faults) => faults.over(kinesis, s3),
            None => (kinesis, s3),
        };
        Ok(Self {
            kinesis: Endpoint::start("Kinesis", options.kinesis, kinesis).await?,
            s3: Endpoint::start("S3", options.s3, s3).await?,
        })
    }

    /// How clients reach them.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            kinesis: format!("http://{}", self.kinesis.addr()),
            s3: format!("http://{}", self.s3.addr()),
            region: REGION.to_owned(),
            access_key_id: ACCESS_KEY_ID.to_owned(),
            secret_access_key: SECRET_ACCESS_KEY.to_owned(),
        }
    }
}

fn kinesis_router(state_dir: Option<PathBuf>) -> Router {
    let durable = state_dir.map(|state_dir| DurableStateOptions {
        state_dir,
        snapshot_interval_secs: 5,
        max_retained_bytes: None,
    });
    let options = StoreOptions {
        create_stream_ms: 20,
        delete_stream_ms: 20,
        update_stream_ms: 20,
        shard_limit: 100,
        aws_account_id: ACCOUNT.to_owned(),
        aws_region: REGION.to_owned(),
        retention_check_interval_secs: 60,
        durable,
        ..StoreOptions::default()
    };
    ferrokinesis::create_app(options).0
}

fn s3_router(folder: &Path) -> Result<Router, String> {
    let files = s3s_fs::FileSystem::new(folder).map_err(|error| format!("{error:?}"))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    let service = HandleError::new(builder.build(), async |error: s3s::HttpError| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}"))
    });
    Ok(conditional::layer(Router::new().fallback_service(service)))
}

/// One endpoint: it can be stopped as a cut cable would stop it, and started again at the same place.
pub struct Endpoint {
    service: &'static str,
    addr: SocketAddr,
    router: Router,
    task: Option<JoinHandle<Infallible>>,
}

impl Endpoint {
    /// Serves a router there.
    pub async fn start(service: &'static str, addr: SocketAddr, router: Router) -> Result<Self, Error> {
        let mut endpoint = Self { service, addr, router, task: None };
        endpoint.restart().await?;
        Ok(endpoint)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops at once: no new connections, and the ones there are are cut.
    pub async fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // It was aborted on purpose.
            let _ = task.await;
        }
    }

    /// Serves again, where it did before.
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.stop().await;
        let failed = |source| Error::Listen { service: self.service, addr: self.addr, source };
        let listener = TcpListener::bind(self.addr).await.map_err(failed)?;
        self.addr = listener.local_addr().map_err(failed)?;
        self.task = Some(tokio::spawn(serve(listener, self.router.clone())));
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Its connections end with it: they are in a set of its own.
async fn serve(listener: TcpListener, router: Router) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                };
                let _ = socket.set_nodelay(true);
                let service = TowerToHyperService::new(router.clone());
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A client that goes away is its own affair.
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
