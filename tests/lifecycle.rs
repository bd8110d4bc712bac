//! The program's life: its start as systemd sees it, what SIGHUP does, and an end in which no request is lost.

mod config;
mod load;
mod systemd;

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::load::Load;
use crate::cli::{hotserve, run};
use crate::support::{Client, Cloud, until};

/// `hotserve serve` as a process, killed when dropped.
pub struct Process {
    child: Child,
    folder: TempDir,
    pub addr: SocketAddr,
    pub client: Client,
}

impl Process {
    /// Starts it where nothing of AWS answers, or on a cloud, and waits until it listens.
    pub async fn start(cloud: Option<&Cloud>, change: impl FnOnce(&mut Command, &TempDir)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = hotserve(&["serve", "--port", "0", "--host", "127.0.0.1", "--poll-interval", "200ms"]);
        match cloud {
            Some(cloud) => command.envs(cloud.environment()),
            None => command
                .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
                .env("AWS_REGION", "us-east-1")
                .env("AWS_ACCESS_KEY_ID", "a")
                .env("AWS_SECRET_ACCESS_KEY", "b")
                .env("KINESIS_STREAM", "s"),
        };
        change(&mut command, &folder);
        let mut child = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let addr = until("the server to listen", async || {
            let log = std::fs::read_to_string(&log).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "it ended: {log}");
            let line = log.lines().find(|line| line.contains("listening"))?;
            serde_json::from_str::<Value>(line).ok()?["addr"].as_str()?.parse().ok()
        })
        .await;
        Self { child, folder, addr, client: Client::to(addr) }
    }

    pub async fn ready(self) -> Self {
        until("the server to be ready", async || {
            (self.client.get("/readyz").await.status == StatusCode::OK).then_some(())
        })
        .await;
        self
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until the log has a word so many times.
    pub async fn says(&self, word: &str, times: usize) {
        until(word, async || (self.log().matches(word).count() >= times).then_some(())).await;
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        until("the server to end", async || self.child.try_wait().unwrap()).await
    }

    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a server under the load of 16 connections, and answers what the clients saw and how long it took.
async fn end_under_load(delay: &str) -> (Load, Duration) {
    let cloud = Cloud::start(1).await;
    cloud.put(json!({"state": 7}).to_string()).await;
    let mut server = Process::start(Some(&cloud), |command, _| {
        command.args(["--drain-delay", delay, "--drain", "20s"]);
    })
    .await
    .ready()
    .await;
    let clients: Vec<_> = (0..16).map(|_| tokio::spawn(load::client(server.addr))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.signal(Signal::TERM);
    let begun = Instant::now();
    let status = server.ended().await;
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(0), "{}", server.log());
    let mut load = Load::default();
    for client in clients {
        load += client.await.unwrap();
    }
    println!("--drain-delay {delay}: {load:?}, ended in {took:?}");
    assert!(load.answered > 100, "there is no load: {load:?}");
    assert_eq!(load.failed, 0, "{load:?}: {}", server.log());
    (load, took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_under_load_fails_no_request() {
    let (load, took) = end_under_load("0s").await;
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Between two requests a client may find its connection closed, where it is slower than the last word is long.
    assert!(load.closed_before_an_answer <= 1, "{load:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_delay_every_client_is_told_to_leave_first() {
    let (load, took) = end_under_load("1s").await;
    assert!((Duration::from_secs(1)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert_eq!((load.closed_before_an_answer, load.never_accepted), (0, 0), "{load:?}");
    // All through the delay, and not only at its end.
    assert!(load.told_to_leave > 160, "{load:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn during_the_delay_readyz_says_503_and_requests_are_answered() {
    let cloud = Cloud::start(1).await;
    let change = |command: &mut Command, _: &TempDir| {
        command.args(["--drain-delay", "20s", "--drain", "30s"]);
    };
    let mut server = Process::start(Some(&cloud), change).await.ready().await;
    server.signal(Signal::TERM);
    until("/readyz to say so", async || {
        let reply = server.client.get("/readyz").await;
        (reply.status == StatusCode::SERVICE_UNAVAILABLE).then(|| assert_eq!(reply.json()["reason"], "shutting down"))
    })
    .await;
    let state = server.client.get("/state").await;
    assert_eq!((state.status, state.header("connection")), (StatusCode::OK, "close"));
    assert_eq!(Client::to(server.addr).get("/livez").await.status, StatusCode::OK);
    // Who insists ends it at once.
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(130));
}

fn history(reply: &Value, outcome: &str) -> Vec<Value> {
    let entries = reply["entries"].as_array().unwrap().clone();
    entries.into_iter().filter(|entry| entry["outcome"] == outcome).collect()
}

const OLD: &str = "0123456789abcdef-old";
const NEW: &str = "0123456789abcdef-new";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reads_the_token_anew_and_a_bad_file_changes_nothing() {
    let server = Process::start(None, |command, folder| {
        let file = folder.path().join("token");
        std::fs::write(&file, OLD).unwrap();
        command.arg("--admin-token-file").arg(file);
    })
    .await;
    let file = server.folder.path().join("token");
    let takes = async |token: &str| {
        let bearer = format!("Bearer {token}");
        let body = r#"{"action":"unpin","model":"m"}"#;
        let reply = server.client.ask("/admin/control", &[("authorization", &bearer)], Some(body)).await;
        reply.status != StatusCode::UNAUTHORIZED
    };
    assert!(takes(OLD).await && !takes(NEW).await);

    std::fs::write(&file, NEW).unwrap();
    server.signal(Signal::HUP);
    server.says("SIGHUP: read anew", 1).await;
    assert!(takes(NEW).await && !takes(OLD).await);

    std::fs::write(&file, "short").unwrap();
    server.signal(Signal::HUP);
    server.says("SIGHUP: cannot be read anew", 1).await;
    assert!(takes(NEW).await, "the old one is kept");

    let history_now = server.client.get("/history").await.json();
    let (good, bad) = (history(&history_now, "reloaded"), history(&history_now, "reload_failed"));
    assert_eq!((good.len(), bad.len()), (1, 1), "{history_now}");
    assert_eq!(bad[0]["reason"], "admin_token");
    assert!(bad[0]["detail"].as_str().unwrap().contains("--admin-token-file"), "{history_now}");
    let metrics = server.client.get("/metrics").await.text();
    for outcome in ["changed", "failed"] {
        let series = format!(r#"hotserve_reloads_total{{what="admin_token",outcome="{outcome}"}} 1"#);
        assert!(metrics.contains(&series), "{series} is not in\n{metrics}");
    }
    for secret in [OLD, NEW, "short"] {
        assert!(!history_now.to_string().contains(secret) && !server.log().contains(secret), "{secret} is shown");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_never_ends_the_process() {
    let server = Process::start(None, |_, _| {}).await;
    for times in 1..=3 {
        server.signal(Signal::HUP);
        server.says("there is nothing to read anew", times).await;
    }
    assert_eq!(server.client.get("/livez").await.status, StatusCode::OK);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reads_the_trusted_keys_anew() {
    let cloud = Cloud::start(1).await;
    let signer = hotserve::trust::SigningKey::generate().unwrap();
    let other = hotserve::trust::SigningKey::generate().unwrap();
    let keyring = |key: &hotserve::trust::SigningKey| format!("[[keys]]\npublic = \"{}\"\n", key.public());
    let server = Process::start(Some(&cloud), |command, folder| {
        let file = folder.path().join("keys");
        std::fs::write(&file, keyring(&other)).unwrap();
        command.arg("--trusted-keys").arg(file);
    })
    .await
    .ready()
    .await;
    let put = async |version: u64| {
        let message = json!({"version": version, "state": version}).to_string();
        cloud.put(hotserve::notification::envelope::seal(message.as_bytes(), [&signer]).unwrap()).await;
    };
    put(1).await;
    server.says("unknown_key", 1).await;
    std::fs::write(server.folder.path().join("keys"), keyring(&signer)).unwrap();
    server.signal(Signal::HUP);
    server.says("SIGHUP: read anew", 1).await;
    put(2).await;
    until("the state", async || (server.client.get("/state").await.text() == r#"{"state":2}"#).then_some(())).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_says_whether_the_server_is_ready_and_why_not() {
    let ask = async |arguments: &[&str], port: u16| {
        let mut command = hotserve(&["healthcheck"]);
        command.args(arguments).env("PORT", port.to_string());
        tokio::task::spawn_blocking(|| run(command)).await.unwrap()
    };
    let cloud = Cloud::start(1).await;
    let server = Process::start(Some(&cloud), |_, _| {}).await.ready().await;
    assert_eq!(ask(&[], server.addr.port()).await, (0, "ready\n".to_owned()));
    // The file is asked as the server asks it, and a flag wins.
    let file = server.folder.path().join("hotserve.toml");
    std::fs::write(&file, format!("stream = \"s\"\nhost = \"127.0.0.1\"\nport = {}", server.addr.port())).unwrap();
    let mut command = hotserve(&["healthcheck", "--config", file.to_str().unwrap()]);
    command.env_remove("PORT");
    assert_eq!(tokio::task::spawn_blocking(|| run(command)).await.unwrap().0, 0);
    server.stop().await;

    let server = Process::start(None, |_, _| {}).await;
    let (code, text) = ask(&[], server.addr.port()).await;
    assert!(code == 1 && text.contains("not ready: "), "{code}: {text}");
    assert_eq!(ask(&["--live"], server.addr.port()).await, (0, "live\n".to_owned()));
    let port = server.addr.port();
    server.stop().await;

    let (code, text) = ask(&[], port).await;
    assert!(code == 1 && text.contains("does not answer") && text.contains("--port"), "{code}: {text}");
    let (code, text) = ask(&["--config", "/nonexistent"], port).await;
    assert!(code == 1 && text.contains("/nonexistent"), "{code}: {text}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let (code, text) = ask(&["--timeout", "300ms"], silent.local_addr().unwrap().port()).await;
    assert!(code == 1 && text.contains("no answer within 300ms"), "{code}: {text}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_health_check_asks_and_a_hangup_changes_the_certificate() {
    let write = |folder: &std::path::Path| {
        let pair = rcgen::generate_simple_self_signed(vec!["models.example.com".to_owned()]).unwrap();
        std::fs::write(folder.join("key"), pair.signing_key.serialize_pem()).unwrap();
        std::fs::write(folder.join("cert"), pair.cert.pem()).unwrap();
    };
    let server = Process::start(None, |command, folder| {
        write(folder.path());
        command.arg("--tls-cert").arg(folder.path().join("cert")).arg("--tls-key").arg(folder.path().join("key"));
    })
    .await;
    let ask = async |arguments: &[&str]| {
        let mut command = hotserve(&["healthcheck"]);
        command.args(arguments).env("PORT", server.addr.port().to_string());
        command.env("HOTSERVE_TLS_CERT", server.folder.path().join("cert"));
        tokio::task::spawn_blocking(|| run(command)).await.unwrap()
    };
    assert_eq!(ask(&["--live"]).await, (0, "live\n".to_owned()));
    let (code, text) = ask(&[]).await;
    assert!(code == 1 && text.contains("not ready: "), "{code}: {text}");
    write(server.folder.path());
    server.signal(Signal::HUP);
    server.says("new connections get another one", 1).await;
    std::fs::write(server.folder.path().join("cert"), "no certificate").unwrap();
    server.signal(Signal::HUP);
    server.says("SIGHUP: cannot be read anew", 1).await;
    assert_eq!(ask(&["--live"]).await, (0, "live\n".to_owned()), "the old one is kept");
    server.stop().await;
}

#[test]
fn the_program_says_its_version_and_the_revision_where_it_knows_it() {
    let (code, text) = run(hotserve(&["--version"]));
    let (name, revision) = (concat!("hotserve ", env!("CARGO_PKG_VERSION")), text.trim().split_once(" ("));
    assert_eq!(code, 0, "{text}");
    match revision {
        None => assert_eq!(text.trim(), name),
        Some((before, revision)) => assert!(before == name && revision.len() > 7 && revision.ends_with(')'), "{text}"),
    }
}

#[test]
fn whatever_can_be_read_anew_has_a_series() {
    let reloads = hotserve::metrics::TABLE.iter().find(|spec| spec.name == "hotserve_reloads_total").unwrap();
    assert_eq!(reloads.labels[0].1, hotserve::config::RELOADS);
}
