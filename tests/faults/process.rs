//! A process of its own: what its disk, its folder and its signals do to it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use hotserve::embedded::faults::{Faults, Rules};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

use super::*;
use crate::cli::hotserve;
use crate::support::{STREAM, padded_model};

/// `hotserve serve`, on the endpoints of a cloud.
fn serve(cloud: &Cloud, cache_dir: &Path) -> Command {
    let endpoints = cloud.embedded.endpoints();
    let mut command = hotserve(&["serve", "--stream", STREAM, "--host", "127.0.0.1", "--port", "0"]);
    command.args(["--poll-interval", "200ms", "--fetch-deadline", "2s", "--cache-dir"]).arg(cache_dir);
    command.envs([
        ("AWS_REGION", endpoints.region),
        ("AWS_ACCESS_KEY_ID", endpoints.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", endpoints.secret_access_key),
        ("AWS_ENDPOINT_URL_KINESIS", endpoints.kinesis),
        ("AWS_ENDPOINT_URL_S3", endpoints.s3),
    ]);
    command
}

/// A child that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server in a process of its own.
struct Process {
    child: Ended,
    log: Arc<Mutex<String>>,
    addr: SocketAddr,
    client: Client,
}

impl Process {
    async fn start(mut command: Command) -> Self {
        // A pipe: a file would count against a limit on files.
        let mut child = Ended(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let (log, mut stderr) = (Arc::new(Mutex::new(String::new())), child.0.stderr.take().unwrap());
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stderr.read(&mut buffer) {
                written.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        });
        let addr = until("the process to listen", async || {
            let log = log.lock().unwrap().clone();
            let line: Value = log
                .lines()
                .find_map(|line| serde_json::from_str(line).ok().filter(|line: &Value| line["addr"].is_string()))?;
            line["addr"].as_str().unwrap().parse().ok()
        })
        .await;
        Self { child, log, addr, client: Client::to(addr) }
    }

    async fn ready(self) -> Self {
        until("the process to be ready", async || {
            (self.client.get("/readyz").await.status == StatusCode::OK).then_some(())
        })
        .await;
        self
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child.0)
    }

    /// How large a file may become from now on.
    fn limit_files(&self, bytes: Option<u64>) {
        prlimit(Some(self.pid()), Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    }

    /// The state and the version of the model that are served.
    async fn served(&self) -> (Value, String) {
        let state = self.client.get("/state").await.json()["state"].clone();
        let reply = self.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
        let version = reply.headers.get("x-model-version").map(|version| version.to_str().unwrap().to_owned());
        (state, version.unwrap_or_default())
    }

    async fn until_served(&self, version: u64) {
        until(&format!("version {version} of both"), async || {
            (self.served().await == (json!(version), version.to_string())).then_some(())
        })
        .await;
    }

    async fn until_refused(&self, reason: &str, times: f64) {
        let series = format!(r#"hotserve_rejections_total{{reason="{reason}"}} "#);
        until(&format!("{times} refusals: {reason}"), async || {
            let text = self.client.get("/metrics").await.text();
            let count: f64 = text.lines().find_map(|line| line.strip_prefix(&series))?.parse().unwrap();
            (count >= times).then_some(())
        })
        .await;
    }

    /// Asks it to end. Answers its exit code, once it has.
    async fn terminate(&mut self) -> i32 {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.ended().await
    }

    async fn ended(&mut self) -> i32 {
        let status = until("the process to end", async || self.child.0.try_wait().unwrap()).await;
        status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {}", status.signal(), self.log.lock().unwrap()))
    }
}

/// Announces a state and a model of this version.
async fn announce(cloud: &Cloud, version: u64) {
    let model = cloud.upload("m", version, "linear", &padded_model(version, 100_000)).await;
    cloud.put(json!({"version": version, "state": version}).to_string()).await;
    cloud.put(json!({ "model": model }).to_string()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_what_came_meanwhile_is_served_when_there_is_room() {
    let mut cloud = Cloud::start(1).await;
    let folder = cloud.path("cache");
    let mut process = Process::start(serve(&cloud, &folder)).await.ready().await;
    announce(&cloud, 1).await;
    process.until_served(1).await;

    // No file may grow: neither the journal nor an artifact. (A quota, for whoever runs as root too.)
    process.limit_files(Some(0));
    announce(&cloud, 2).await;
    process.until_refused("disk", 2.0).await;
    assert_eq!(process.served().await, (json!(1), "1".to_owned()));
    assert_eq!(process.client.get("/readyz").await.status, StatusCode::OK);
    let incoming = std::fs::read_dir(folder.join("incoming")).unwrap().count();
    assert_eq!(incoming, 0, "what could not be written leaves nothing behind");

    // Nobody announces it again.
    process.limit_files(None);
    process.until_served(2).await;
    assert_eq!(process.terminate().await, 0);
    cloud.embedded.kinesis.stop().await;
    cloud.embedded.s3.stop().await;
    let mut process = Process::start(serve(&cloud, &folder)).await.ready().await;
    assert_eq!(process.served().await, (json!(2), "2".to_owned()), "the last known good is whole");
    assert_eq!(process.terminate().await, 0);

    // A start on a full disk serves what is on it.
    let serve = serve(&cloud, &folder);
    let mut full = Command::new("sh");
    full.args(["-c", "ulimit -f 0; exec \"$@\"", "sh"]).arg(serve.get_program()).args(serve.get_args());
    full.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?)))).stderr(Stdio::piped());
    let process = Process::start(full).await.ready().await;
    assert_eq!(process.served().await, (json!(2), "2".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_a_folder_is_refused_in_plain_words_and_the_first_goes_on() {
    let cloud = Cloud::start(1).await;
    let folder = cloud.path("cache");
    let first = Process::start(serve(&cloud, &folder)).await.ready().await;
    announce(&cloud, 1).await;
    first.until_served(1).await;
    let mut second = serve(&cloud, &folder);
    let mut second = Ended(second.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let status = until("the second one to end", async || second.0.try_wait().unwrap()).await;
    let (code, mut text) = (status.code().unwrap(), String::new());
    second.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(code, 64, "{text}");
    for part in ["--cache-dir (HOTSERVE_CACHE_DIR)", folder.to_str().unwrap(), "another hotserve uses it"] {
        assert!(text.contains(part), "{text}");
    }
    first.until_served(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_in_the_middle_of_a_fetch_answers_requests_under_way_and_leaves_nothing_half_written() {
    let faults = Faults::new(Rules::default());
    let cloud = Cloud::faulty(1, &faults).await;
    let folder = cloud.path("cache");
    let mut process = Process::start(serve(&cloud, &folder)).await.ready().await;
    announce(&cloud, 1).await;
    process.until_served(1).await;

    // The next artifact takes minutes.
    faults.update(|rules| rules.s3.bytes_per_second = Some(40_000));
    let model = cloud.upload("m", 2, "linear", &padded_model(2, 10 << 20)).await;
    cloud.put(json!({ "model": model }).to_string()).await;
    until("the fetch to be under way", async || {
        let mut incoming = std::fs::read_dir(folder.join("incoming")).unwrap().flatten();
        incoming.any(|entry| entry.metadata().is_ok_and(|data| data.len() > 0)).then_some(())
    })
    .await;
    // A request that is half sent.
    let mut stream = TcpStream::connect(process.addr).unwrap();
    let (head, tail) = (r#"{"instances":"#, "[[0]]}");
    let length = head.len() + tail.len();
    write!(stream, "POST /predict/m HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{head}").unwrap();
    until("the request to be under way", async || {
        let text = process.client.get("/metrics").await.text();
        text.contains("hotserve_http_requests_in_flight 1").then_some(())
    })
    .await;

    kill_process(process.pid(), Signal::TERM).unwrap();
    until("the process to say so", async || process.log.lock().unwrap().contains("shutting down").then_some(())).await;
    stream.write_all(tail.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-model-version: 1"), "{answer}");
    assert_eq!(process.ended().await, 0);
    for entry in std::fs::read_dir(folder.join("artifacts")).unwrap().flatten() {
        let digest = Digest::of(&std::fs::read(entry.path()).unwrap()).to_string();
        assert_eq!(entry.file_name().to_str(), Some(digest.as_str()));
    }

    faults.update(|rules| rules.s3.bytes_per_second = None);
    let process = Process::start(serve(&cloud, &folder)).await.ready().await;
    until("the artifact after all", async || (process.served().await.1 == "2").then_some(())).await;
    assert_eq!(std::fs::read_dir(folder.join("incoming")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_takes_no_file_stops_the_fetch_and_not_the_server() {
    let cloud = Cloud::start(1).await;
    let folder = cloud.path("cache");
    let server = cloud.server_with(|settings| settings.cache_dir = Some(folder.clone())).await.ready().await;
    let upload = async |version| cloud.upload("m", version, "linear", &padded_model(version, 1000)).await;
    cloud.put(json!({"model": upload(1).await}).to_string()).await;
    server.until_model(1).await;
    std::fs::rename(folder.join("incoming"), folder.join("away")).unwrap();
    cloud.put(json!({"model": upload(2).await}).to_string()).await;
    server.until_refused("disk", 1.0).await;
    assert_eq!(server.model().await, "1");
    std::fs::rename(folder.join("away"), folder.join("incoming")).unwrap();
    cloud.put(json!({"model": upload(3).await}).to_string()).await;
    server.until_model(3).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_journal_refers_to_is_never_collected() {
    let mut cloud = Cloud::start(1).await;
    let folder = cloud.path("cache");
    let with_cache = |settings: &mut hotserve::config::Settings| settings.cache_dir = Some(folder.clone());
    let server = cloud.server_with(with_cache).await.ready().await;
    let upload = async |name: &str, version| cloud.upload(name, version, "linear", &padded_model(version, 1000)).await;
    // One that is never replaced, and one that is, much more often than what is kept.
    cloud.put(json!({"model": upload("old", 100).await}).to_string()).await;
    for version in 1..=12 {
        cloud.put(json!({"model": upload("m", version).await}).to_string()).await;
        server.until_model(version).await;
    }
    server.stop().await;
    let kept = std::fs::read_dir(folder.join("artifacts")).unwrap().count();
    // Of the one that is replaced: what is served, three before it, and three that nobody asks for.
    assert!(kept <= 1 + 7, "{kept} artifacts are kept: nothing was collected, so that nothing is shown");
    cloud.embedded.kinesis.stop().await;
    cloud.embedded.s3.stop().await;
    let server = cloud.server_with(with_cache).await.ready().await;
    assert_eq!(server.model().await, "12");
    let reply = server.client.post("/predict/old", r#"{"instances":[[0]]}"#).await;
    assert_eq!((reply.status, reply.header("x-model-version")), (StatusCode::OK, "100"));
    server.stop().await;
}
