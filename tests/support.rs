//! A stream, a bucket and servers for tests, all in this process and all over real sockets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hotserve::app::{Adapters, App, Boards};
use hotserve::aws::Aws;
use hotserve::config::{Config, HumanDuration, Program, Settings};
use hotserve::embedded::faults::Faults;
use hotserve::embedded::{self, Embedded};
use hotserve::http::Http;
use hotserve::id::Digest;
use hotserve::publisher::{Publisher, Receipt};
use hotserve::source::memory::{Feeder, MemorySource};
use hotserve::store::memory::MemoryStore;
use hotserve_models::Loaders;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const STREAM: &str = "updates";
pub const BUCKET: &str = "artifacts";

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A Kinesis stream and an S3 bucket.
pub struct Cloud {
    pub embedded: Embedded,
    pub aws: Aws,
    pub publisher: Publisher,
    folder: TempDir,
}

impl Cloud {
    pub async fn start(shards: i32) -> Self {
        Self::start_with(shards, None).await
    }

    /// A cloud in which things go wrong, and that has a clock.
    pub async fn faulty(shards: i32, faults: &Arc<Faults>) -> Self {
        Self::start_with(shards, Some(Arc::clone(faults))).await
    }

    async fn start_with(shards: i32, faults: Option<Arc<Faults>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = embedded::Options {
            kinesis: SocketAddr::from(([127, 0, 0, 1], 0)),
            s3: SocketAddr::from(([127, 0, 0, 1], 0)),
            folder: folder.path().join("cloud"),
            durable: false,
            faults,
        };
        let embedded = Embedded::start(options).await.unwrap();
        let aws = Aws::at(embedded.endpoints()).await;
        let publisher = Publisher::new(&aws, STREAM.to_owned());
        publisher.ensure_bucket(BUCKET).await.unwrap();
        publisher.ensure_stream(shards).await.unwrap();
        Self { embedded, aws, publisher, folder }
    }

    pub fn kinesis(&self) -> aws_sdk_kinesis::Client {
        self.aws.kinesis(hotserve::aws::Retries::Standard, &Arc::default())
    }

    /// What a program needs in its environment to work on this cloud.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        let endpoints = self.embedded.endpoints();
        [
            ("AWS_ENDPOINT_URL_KINESIS", endpoints.kinesis),
            ("AWS_ENDPOINT_URL_S3", endpoints.s3),
            ("AWS_REGION", endpoints.region),
            ("AWS_ACCESS_KEY_ID", endpoints.access_key_id),
            ("AWS_SECRET_ACCESS_KEY", endpoints.secret_access_key),
            ("KINESIS_STREAM", STREAM.to_owned()),
        ]
    }

    /// Puts a message as it is.
    pub async fn put(&self, message: impl AsRef<[u8]>) -> Receipt {
        self.put_with_key("test", message).await
    }

    pub async fn put_with_key(&self, partition_key: &str, message: impl AsRef<[u8]>) -> Receipt {
        self.publisher.announce(partition_key, message.as_ref()).await.unwrap()
    }

    /// Uploads a model and answers the fields of its announcement.
    pub async fn upload(&self, name: &str, version: u64, format: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let file = self.folder.path().join(format!("{digest}"));
        std::fs::write(&file, bytes).unwrap();
        let key = format!("{name}/{digest}/model");
        self.publisher.upload(BUCKET, &key, &file, bytes.len() as u64, &digest, |_| {}).await.unwrap();
        json!({
            "name": name, "version": version, "format": format,
            "uri": format!("s3://{BUCKET}/{key}"), "sha256": digest.to_string(), "size": bytes.len(),
        })
    }

    pub async fn server(&self) -> Server {
        self.server_with(|_| {}).await
    }

    /// Starts a server; it need not become ready.
    pub async fn server_with(&self, change: impl FnOnce(&mut Settings)) -> Server {
        let mut settings = Settings {
            stream: Some(STREAM.to_owned()),
            host: Some([127, 0, 0, 1].into()),
            port: Some(0),
            poll_interval: Some(HumanDuration(Duration::from_millis(200))),
            fetch_deadline: Some(HumanDuration(Duration::from_secs(2))),
            ..Settings::default()
        };
        change(&mut settings);
        Server::start(&self.aws, settings).await
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A model of one feature that answers a constant: its version.
pub fn constant_model(value: u64) -> Vec<u8> {
    json!({"kind": "linear", "features": ["x"], "coefficients": [[0.0]], "intercepts": [value]})
        .to_string()
        .into_bytes()
}

/// A cloud of which nothing answers.
pub async fn unreachable() -> Aws {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Aws::at(hotserve::aws::Endpoints {
        kinesis: format!("http://{nobody}"),
        s3: format!("http://{nobody}"),
        region: "us-east-1".to_owned(),
        access_key_id: "nobody".to_owned(),
        secret_access_key: "nothing".to_owned(),
    })
    .await
}

/// The program in which these tests try models: the one that is shipped.
pub fn probe() -> Program {
    Program { path: env!("CARGO_BIN_EXE_hotserve").into(), args: vec![] }
}

/// A running server.
pub struct Server {
    pub addr: SocketAddr,
    /// Where it takes commands.
    pub admin: Option<SocketAddr>,
    pub client: Client,
    pub http: Arc<Http>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), hotserve::app::Error>>,
}

impl Server {
    pub async fn start(aws: &Aws, settings: Settings) -> Self {
        Self::of(aws, settings.validate().unwrap()).await
    }

    pub async fn of(aws: &Aws, mut config: Config) -> Self {
        config.gates.isolation.program.get_or_insert_with(probe);
        let boards = Boards::default();
        let adapters = Adapters::aws(aws, &config, &boards);
        Self::run(App::bind(config, adapters, boards).await.unwrap())
    }

    /// A server that is fed by hand, much faster than any stream is polled.
    pub async fn fed() -> (Self, Feeder) {
        let (server, feeder, _) = Self::fed_with(Loaders::bundled(), probe(), |_| {}).await;
        (server, feeder)
    }

    /// The same with kinds of its own, which the probe has too, and a store for artifacts.
    pub async fn fed_with(
        loaders: Loaders,
        probe: Program,
        change: impl FnOnce(&mut Settings),
    ) -> (Self, Feeder, Arc<MemoryStore>) {
        let mut settings = Settings {
            stream: Some("memory".to_owned()),
            host: Some([127, 0, 0, 1].into()),
            port: Some(0),
            ..Settings::default()
        };
        change(&mut settings);
        let mut config = settings.validate().unwrap();
        config.gates.isolation.program = Some(probe);
        let (source, feeder) = MemorySource::new();
        let store = Arc::new(MemoryStore::default());
        let adapters = Adapters { source: Box::new(source), s3: Arc::<MemoryStore>::clone(&store), loaders };
        let app = App::bind(config, adapters, Boards::default()).await.unwrap();
        (Self::run(app), feeder, store)
    }

    pub fn run(app: App) -> Self {
        let (addr, admin, http, shutdown) = (app.addr(), app.admin_addr(), app.http(), CancellationToken::new());
        let task = tokio::spawn(app.run(shutdown.clone()));
        Self { addr, admin, client: Client::to(addr), http, shutdown, task }
    }

    pub async fn ready(self) -> Self {
        until("the server to be ready", async || self.is_ready().await.then_some(())).await;
        self
    }

    pub async fn is_ready(&self) -> bool {
        self.client.get("/readyz").await.status == StatusCode::OK
    }

    /// The default state as it is now.
    pub async fn state(&self) -> Value {
        self.client.get("/state").await.json()["state"].clone()
    }

    pub async fn until_state(&self, expected: impl Into<Value>) {
        let expected = expected.into();
        until(&format!("the state to be {expected}"), async || (self.state().await == expected).then_some(())).await;
    }

    /// The value of one series of `/metrics`.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.client.get("/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series} in\n{text}")).parse().unwrap()
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// An HTTP client to one server, with connections kept alive.
#[derive(Clone)]
pub struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    addr: SocketAddr,
}

impl Client {
    pub fn to(addr: SocketAddr) -> Self {
        Self { http: HyperClient::builder(TokioExecutor::new()).build_http(), addr }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::builder().method(Method::GET).uri(self.uri(path)).body(Full::default()).unwrap()).await
    }

    pub async fn get_if_none_match(&self, path: &str, etag: &str) -> Reply {
        let request = Request::builder().uri(self.uri(path)).header("if-none-match", etag);
        self.send(request.body(Full::default()).unwrap()).await
    }

    /// A request with headers; with a body it is a POST.
    pub async fn ask(&self, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Reply {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let request = Request::builder().method(method).uri(self.uri(path));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.send(request.body(Full::from(body.unwrap_or_default().to_owned())).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        let request = Request::builder().method(Method::POST).uri(self.uri(path));
        self.send(request.body(Full::new(body.into())).unwrap()).await
    }

    pub async fn put(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
        let request = Request::builder().method(Method::PUT).uri(self.uri(path));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.send(request.body(Full::new(body.into())).unwrap()).await
    }

    fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        self.try_send(request).await.unwrap()
    }

    async fn try_send(&self, request: Request<Full<Bytes>>) -> Result<Reply, String> {
        let answer = self.http.request(request).await.map_err(|error| format!("{error:?}"))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Reply { status: head.status, headers: head.headers, body })
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers)).to_str().unwrap()
    }
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The same model as [`constant_model`], padded to a size: bytes enough to be torn on their way.
pub fn padded_model(value: u64, size: usize) -> Vec<u8> {
    let mut bytes = constant_model(value);
    bytes.resize(size, b' ');
    bytes
}

impl Server {
    /// Waits until `/predict/m` is answered by this version of the model.
    pub async fn until_model(&self, version: u64) {
        until(&format!("version {version} of the model"), async || {
            (self.model().await == version.to_string()).then_some(())
        })
        .await;
    }

    /// The version that answers `/predict/m`; nothing where there is none.
    pub async fn model(&self) -> String {
        let reply = self.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
        reply.headers.get("x-model-version").map_or_else(String::new, |version| version.to_str().unwrap().to_owned())
    }

    /// How many messages and artifacts were refused for a reason.
    pub async fn refused(&self, reason: &str) -> f64 {
        self.metric(&format!(r#"hotserve_rejections_total{{reason="{reason}"}}"#)).await
    }

    pub async fn until_refused(&self, reason: &str, times: f64) {
        until(&format!("{times} refusals: {reason}"), async || (self.refused(reason).await >= times).then_some(()))
            .await;
    }
}
