//! What the benches share: a server in this process, fed by hand, and clients that ask at a steady pace.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hotserve::app::{Adapters, App, Boards};
use hotserve::config::Settings;
use hotserve::id::Digest;
use hotserve::source::memory::{Feeder, MemorySource};
use hotserve::store::memory::MemoryStore;
use hotserve_models::Loaders;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::misbehaving::Misbehaving;

pub fn loaders() -> Loaders {
    let mut loaders = Loaders::bundled();
    loaders.register(Misbehaving);
    loaders
}

pub struct Server {
    pub addr: SocketAddr,
    pub client: Client,
    feeder: Feeder,
    folder: tempfile::TempDir,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), hotserve::app::Error>>,
}

impl Server {
    pub async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        // Beside the build, for the system's folder of temporary files may lie in memory.
        let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let mut settings = Settings {
            stream: Some("memory".to_owned()),
            host: Some([127, 0, 0, 1].into()),
            port: Some(0),
            cache_dir: Some(folder.path().join("cache")),
            allow: vec![format!("file://{}/", folder.path().display())],
            ..Settings::default()
        };
        change(&mut settings);
        let (source, feeder) = MemorySource::new();
        let s3 = Arc::new(MemoryStore::default());
        let adapters = Adapters { source: Box::new(source), s3, loaders: loaders() };
        let app = App::bind(settings.validate().unwrap(), adapters, Boards::default()).await.unwrap();
        let addr = app.addr();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(app.run(shutdown.clone()));
        Self { addr, client: Client::to(addr), feeder, folder, shutdown, task }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Writes an artifact, and answers the fields of its announcement.
    pub fn write(&self, format: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let path = self.folder.path().join(digest.to_string());
        std::fs::write(&path, bytes).unwrap();
        let uri = format!("file://{}", path.display());
        json!({"format": format, "uri": uri, "sha256": digest.to_string(), "size": bytes.len()})
    }

    pub async fn publish(&self, name: &str, version: u64, mut model: Value) {
        model["name"] = json!(name);
        model["version"] = json!(version);
        self.feeder.put(json!({ "model": model }).to_string()).await;
    }

    /// What became of a version.
    pub async fn outcome(&self, slot: &str, version: u64) -> Value {
        loop {
            let history = self.client.json("/history?limit=20").await;
            let entries = history["entries"].as_array().unwrap();
            let this = |entry: &&Value| {
                entry["slots"] == json!([format!("model {slot}")]) && entry["versions"] == json!([version.to_string()])
            };
            if let Some(entry) = entries.iter().find(this) {
                return entry.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.client.text("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).unwrap().parse().unwrap()
    }
}

#[derive(Clone)]
pub struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    addr: SocketAddr,
}

impl Client {
    pub fn to(addr: SocketAddr) -> Self {
        Self { http: HyperClient::builder(TokioExecutor::new()).build_http(), addr }
    }

    pub async fn text(&self, path: &str) -> String {
        let uri = format!("http://{}{path}", self.addr);
        let answer = self.http.request(Request::get(uri).body(Full::default()).unwrap()).await.unwrap();
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path).await).unwrap()
    }

    pub async fn predict(&self, name: &str, body: &'static str) -> StatusCode {
        let uri = format!("http://{}/predict/{name}", self.addr);
        let request = Request::post(uri).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap();
        let answer = self.http.request(request).await.unwrap();
        let status = answer.status();
        answer.into_body().collect().await.unwrap();
        status
    }
}

/// Asks at a steady pace until it is told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Vec<(Instant, Duration)>>>,
}

impl Load {
    pub fn start(addr: SocketAddr, name: &'static str, body: &'static str, connections: u32, per_second: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ask = |number| {
            let (stop, client) = (Arc::clone(&stop), Client::to(addr));
            let pause = Duration::from_secs(1) * connections / per_second;
            tokio::spawn(async move {
                let mut times = Vec::new();
                let mut next =
                    tokio::time::interval_at(tokio::time::Instant::now() + pause * number / connections, pause);
                next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    next.tick().await;
                    let begun = Instant::now();
                    assert_eq!(client.predict(name, body).await, StatusCode::OK);
                    times.push((begun, begun.elapsed()));
                }
                times
            })
        };
        let tasks = (0..connections).map(ask).collect();
        Self { stop, tasks }
    }

    pub async fn finish(self) -> Vec<(Instant, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.unwrap());
        }
        all
    }
}

pub fn percentile(times: &[(Instant, Duration)], hundredths: usize) -> Duration {
    let mut sorted: Vec<_> = times.iter().map(|(_, time)| *time).collect();
    sorted.sort_unstable();
    sorted.get((sorted.len().saturating_sub(1)) * hundredths / 100).copied().unwrap_or_default()
}

/// Resident memory of this process, and of the probes that it started, in bytes.
pub fn resident() -> (u64, u64) {
    let of = |process: &Path| -> Option<(u64, String)> {
        let text = std::fs::read_to_string(process.join("status")).ok()?;
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        let kib: u64 = field("VmRSS:")?.trim_end_matches("kB").trim().parse().ok()?;
        Some((kib << 10, field("PPid:")?))
    };
    let own = std::process::id().to_string();
    // A process that is only just being started still shares the memory of this one.
    let is_probe =
        |process: &Path| std::fs::read(process.join("cmdline")).is_ok_and(|words| words.starts_with(b"hotserve-probe"));
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let children = processes.filter(|process| is_probe(process)).filter_map(|process| of(&process));
    let probes = children.filter(|(_, parent)| *parent == own).map(|(bytes, _)| bytes).sum();
    (of(Path::new("/proc/self")).map_or(0, |(bytes, _)| bytes), probes)
}
