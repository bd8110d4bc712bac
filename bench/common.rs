//! What the benches share: a server in this process, fed by hand, and clients that ask at a steady pace.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hotserve::app::{Adapters, App, Boards};
use hotserve::config::Settings;
use hotserve::id::Digest;
use hotserve::source::memory::{Feeder, MemorySource};
use hotserve::status::Status;
use hotserve::store::memory::MemoryStore;
use hotserve_models::Loaders;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::beside::Dear;
use crate::misbehaving::Misbehaving;

pub fn loaders() -> Loaders {
    let mut loaders = Loaders::bundled();
    loaders.register(Misbehaving);
    loaders.register(Dear);
    loaders
}

pub struct Server {
    pub addr: SocketAddr,
    pub client: Client,
    status: Arc<Status>,
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
        let boards = Boards::default();
        let status = Arc::clone(&boards.status);
        let app = App::bind(settings.validate().unwrap(), adapters, boards).await.unwrap();
        let addr = app.addr();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(app.run(shutdown.clone()));
        Self { addr, client: Client::to(addr), status, feeder, folder, shutdown, task }
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

    /// What became of a version. Nobody asks over HTTP: that would be load.
    pub async fn outcome(&self, slot: &str, version: u64) -> Value {
        let mut news = self.status.news();
        loop {
            news.mark_unchanged();
            let lines = self.status.history(20);
            let entries = lines.iter().map(|line| serde_json::from_str::<Value>(line.json.get()).unwrap());
            let this = |entry: &Value| {
                entry["slots"] == json!([format!("model {slot}")]) && entry["versions"] == json!([version.to_string()])
            };
            if let Some(entry) = entries.into_iter().find(this) {
                return entry;
            }
            news.changed().await.unwrap();
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

    pub async fn predict(&self, name: &str, body: Bytes) -> StatusCode {
        let uri = format!("http://{}/predict/{name}", self.addr);
        let request = Request::post(uri).body(Full::new(body)).unwrap();
        let answer = self.http.request(request).await.unwrap();
        let status = answer.status();
        answer.into_body().collect().await.unwrap();
        status
    }
}

/// Asks at a steady pace until it is told to stop, from a process of its own: its threads are not the server's.
pub struct Load {
    client: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
    begun: Instant,
}

impl Load {
    pub fn start(addr: SocketAddr, name: &str, body: &str, connections: u32, per_second: u32) -> Self {
        let mut client = std::process::Command::new(std::env::current_exe().unwrap())
            .args([CLIENT, &addr.to_string(), name, body, &connections.to_string(), &per_second.to_string()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut answers = BufReader::new(client.stdout.take().unwrap());
        answers.read_line(&mut String::new()).unwrap();
        Self { client, answers, begun: Instant::now() }
    }

    /// When each request was sent, and how long it took.
    pub async fn finish(mut self) -> Vec<(Instant, Duration)> {
        let begun = self.begun;
        let finish = move || {
            drop(self.client.stdin.take());
            let times: Vec<(u64, u64)> = serde_json::from_reader(&mut self.answers).unwrap();
            assert!(self.client.wait().unwrap().success(), "a request failed");
            times
        };
        let times = tokio::task::spawn_blocking(finish).await.unwrap();
        let nanos = Duration::from_nanos;
        times.into_iter().map(|(sent, took)| (begun + nanos(sent), nanos(took))).collect()
    }
}

/// The first argument of a process that is a client.
const CLIENT: &str = "client";

/// A client's process: a line when it begins, and its times when its input ends.
pub fn client() -> Option<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [word, addr, name, body, connections, per_second] = &words[..] else { return None };
    if word != CLIENT {
        return None;
    }
    let (connections, per_second): (u32, u32) = (connections.parse().unwrap(), per_second.parse().unwrap());
    let (addr, name, body): (SocketAddr, String, Bytes) = (addr.parse().unwrap(), name.clone(), body.clone().into());
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap();
        stopping.store(true, Ordering::Relaxed);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let times = runtime.block_on(async {
        println!("begun");
        let begun = Instant::now();
        let pause = Duration::from_secs(1) * connections / per_second;
        let ask = |number| {
            let (stop, client, name, body) = (Arc::clone(&stop), Client::to(addr), name.clone(), body.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                let first = tokio::time::Instant::now() + pause * number / connections;
                let mut next = tokio::time::interval_at(first, pause);
                next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    next.tick().await;
                    let sent = Instant::now();
                    assert_eq!(client.predict(&name, body.clone()).await, StatusCode::OK);
                    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap();
                    times.push((nanos(sent - begun), nanos(sent.elapsed())));
                }
                times
            })
        };
        let tasks: Vec<_> = (0..connections).map(ask).collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all
    });
    println!("{}", serde_json::to_string(&times).unwrap());
    Some(ExitCode::SUCCESS)
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
