//! What the program tells of itself: the lines of its log, and the traces that go through it.

#[cfg(feature = "otlp")]
mod otlp;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hotserve::aws::{Aws, Endpoints, Retries};
use hotserve::telemetry::{TraceContext, within};
use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cli::{hotserve, run};
use crate::support::{Client, Cloud, constant_model, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SECRET: &str = "a-token-of-this-test-alone-0123456789";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The program with its log.
struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    client: Client,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Serves from a cloud.
    async fn serve(cloud: &Cloud, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = hotserve(&["serve", "--host", "127.0.0.1", "--port", "0", "--poll-interval", "200ms"]);
        command.envs(cloud.environment());
        change(&mut command);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in stderr.lines() {
                lines.lock().unwrap().push(line.unwrap());
            }
        });
        let at = Arc::clone(&log);
        let addr: SocketAddr = until("the program to listen", async || {
            let line = parsed(&at).into_iter().find(|line| line["addr"].is_string())?;
            Some(line["addr"].as_str().unwrap().parse().unwrap())
        })
        .await;
        let program = Self { child, log, client: Client::to(addr) };
        until("the program to be ready", async || {
            (program.client.get("/readyz").await.status == StatusCode::OK).then_some(())
        })
        .await;
        program
    }

    fn lines(&self) -> Vec<Value> {
        parsed(&self.log)
    }

    async fn until_swapped(&self, slot: &str, version: &str) -> Value {
        until(&format!("{slot} {version} to be swapped in"), async || {
            let is_it = |line: &Value| line["message"] == "swapped in" && line["slot"] == slot;
            self.lines().into_iter().find(|line| is_it(line) && line["version"] == version)
        })
        .await
    }

    /// Asks it to end, and answers its exit code.
    async fn stop(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        until("the program to end", async || self.child.try_wait().unwrap()).await.code()
    }
}

/// All lines: each is JSON, and has what every line has.
fn parsed(log: &Mutex<Vec<String>>) -> Vec<Value> {
    let parse = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let timestamp = line["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>();
        assert!(timestamp.is_ok(), "{line}");
        assert!(["INFO", "WARN", "ERROR"].contains(&line["level"].as_str().unwrap()), "{line}");
        assert!(!line["message"].as_str().unwrap().is_empty(), "{line}");
        assert!(line["target"].as_str().unwrap().starts_with("hotserve"), "{line}");
        line
    };
    log.lock().unwrap().iter().map(parse).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_json_with_one_line_a_decision() {
    let cloud = Cloud::start(1).await;
    let cache = cloud.path("cache");
    let mut program = Program::serve(&cloud, |command| {
        command.arg("--cache-dir").arg(&cache).env("HOTSERVE_ADMIN_TOKEN", SECRET);
    })
    .await;

    let model = cloud.upload("m", 1, "linear", &constant_model(1)).await;
    cloud.put(json!({"model": model, "traceparent": TRACEPARENT}).to_string()).await;
    let swap = program.until_swapped("model m", "1").await;
    assert!(swap["publish_to_serving_ms"].as_u64().is_some(), "{swap}");
    for stage in ["stream", "fetch", "probe", "verify", "load", "warm", "persist", "swap"] {
        assert!(swap[format!("{stage}_ms")].as_f64().is_some_and(|ms| ms >= 0.0), "{stage}: {swap}");
    }
    let digest = model["sha256"].as_str().unwrap();
    assert_eq!((&swap["digest"], &swap["trace_id"]), (&json!(digest[..12]), &json!(TRACE)));
    assert!(swap["sequence_number"].as_str().is_some_and(|number| number.len() > 20), "{swap}");

    // Twice the same: once.
    for _ in 0..2 {
        cloud.put(r#"{"message_id":"a","key":"k","version":7,"state":1}"#).await;
    }
    program.until_swapped("state k", "7").await;
    cloud.put(r#"{"key":"k","version":7,"state":2}"#).await;
    cloud.put(r#"{"key":"k","version":6,"state":1}"#).await;
    cloud.put(format!(r#"{{"garbage":1,"traceparent":"{TRACEPARENT}"}}"#)).await;
    let bad = cloud.upload("m", 2, "linear", b"{}").await;
    cloud.put(json!({"model": bad, "traceparent": TRACEPARENT}).to_string()).await;
    cloud.put(r#"{"control":{"action":"pin","key":"k","version":7}}"#).await;
    until("the bad model to be refused", async || {
        program.lines().into_iter().find(|line| line["slot"] == "model m" && line["version"] == "2")
    })
    .await;
    cloud.put(r#"{"key":"end","version":1,"state":1}"#).await;
    program.until_swapped("state end", "1").await;
    assert_eq!(program.stop().await, Some(0));

    let lines = program.lines();
    let text = |line: &Value, field: &str| line[field].as_str().unwrap_or("-").to_owned();
    let decisions: Vec<_> = lines
        .iter()
        .filter(|line| line["target"].as_str().unwrap().starts_with("hotserve::manager"))
        .map(|line| {
            let said = line["message"].as_str().unwrap().split(':').next().unwrap().to_owned();
            (text(line, "level"), said, text(line, "slot"), text(line, "version"), text(line, "reason"))
        })
        .collect();
    let decision = |level: &str, said: &str, slot: &str, version: &str, reason: &str| {
        (level.to_owned(), said.to_owned(), slot.to_owned(), version.to_owned(), reason.to_owned())
    };
    let refused = "refused, serving what was served before";
    let expected = [
        decision("INFO", "ready", "-", "-", "-"),
        decision("INFO", "swapped in", "model m", "1", "-"),
        decision("INFO", "swapped in", "state k", "7", "-"),
        decision("WARN", refused, "state k", "7", "conflict"),
        decision("INFO", "older than what is served", "state k", "6", "-"),
        decision("WARN", refused, "-", "-", "unknown_kind"),
        decision("WARN", refused, "model m", "2", "malformed"),
        decision("INFO", "pinned", "state k", "7", "-"),
        decision("INFO", "swapped in", "state end", "1", "-"),
    ];
    for decision in &expected {
        assert_eq!(decisions.iter().filter(|found| *found == decision).count(), 1, "{decision:?} in {decisions:#?}");
    }
    assert_eq!(decisions.len(), expected.len(), "{decisions:#?}");
    let refusal = lines.iter().find(|line| line["reason"] == "malformed").unwrap();
    assert_eq!(refusal["trace_id"], TRACE, "{refusal}");
    let all = program.log.lock().unwrap().join("\n");
    assert!(!all.contains(SECRET), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_written_as_it_is_wished() {
    let said = |format: Option<&str>, flag: &[&str]| {
        let mut command = hotserve(&[&["serve", "--stream", "s", "--port", "0", "--host", "127.0.0.1"], flag].concat());
        command.envs(format.map(|format| ("HOTSERVE_LOG_FORMAT", format)));
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        line
    };
    for (format, flag, json) in [
        (None, &[][..], true),
        (Some("human"), &[], false),
        (None, &["--log-format", "human"], false),
        (Some("human"), &["--log-format=json"], true),
        (Some("auto"), &[], true),
    ] {
        let line = said(format, flag);
        assert_eq!(serde_json::from_str::<Value>(&line).is_ok(), json, "{format:?} {flag:?}: {line}");
        assert!(!line.contains('\x1b'), "colours, and nobody looks: {line}");
    }
    let mut command = hotserve(&["serve", "--stream", "s"]);
    command.env("HOTSERVE_LOG_FORMAT", "xml");
    let (code, text) = run(command);
    assert!(code == 64 && text.contains("HOTSERVE_LOG_FORMAT"), "{code}: {text}");
    let mut command = hotserve(&["serve", "--stream", "s", "--port", "0", "--host", "127.0.0.1"]);
    command.env("RUST_LOG", "hotserve=loud").stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("RUST_LOG cannot be read"), "{line}");
}

/// The head of the first request that comes.
fn first_request(listener: TcpListener) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
        while !head.windows(4).any(|window| window == b"\r\n\r\n") {
            let read = stream.read(&mut buffer).unwrap();
            head.extend_from_slice(&buffer[..read]);
        }
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
        String::from_utf8(head).unwrap().to_ascii_lowercase()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fetched_for_an_update_names_its_trace_and_signs_it_not() {
    let trace = TraceContext::parse(TRACEPARENT.as_bytes());
    for (trace, expected) in [(trace, true), (None, false)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let heard = first_request(listener);
        let aws = Aws::at(Endpoints {
            kinesis: at.clone(),
            s3: at,
            region: "us-east-1".to_owned(),
            access_key_id: "a".to_owned(),
            secret_access_key: "b".to_owned(),
        })
        .await;
        let get = aws.s3(Retries::Ours).get_object().bucket("b").key("k");
        assert!(within(trace, get.send()).await.is_err());
        let head = heard.join().unwrap();
        assert_eq!(head.contains(&format!("traceparent: {TRACEPARENT}\r\n")), expected, "{head}");
        let signed = head.split("signedheaders=").nth(1).unwrap().split(',').next().unwrap().to_owned();
        assert!(!signed.contains("traceparent"), "{signed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_within_a_trace_says_so() {
    let cloud = Cloud::start(1).await;
    let program = Program::serve(&cloud, |_| {}).await;
    for (key, traceparent, expected) in [("a", TRACEPARENT, json!(TRACE)), ("b", "00-nonsense", Value::Null)] {
        let mut command = hotserve(&["publish", "state", "1", "--key", key, "--version", "1"]);
        command.envs(cloud.environment()).env("TRACEPARENT", traceparent);
        let (code, text) = run(command);
        assert_eq!(code, 0, "{text}");
        assert_eq!(program.until_swapped(&format!("state {key}"), "1").await["trace_id"], expected);
    }
}

#[cfg(not(feature = "otlp"))]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_cannot_export_says_once_how_to_get_one_that_can() {
    let cloud = Cloud::start(1).await;
    let program = Program::serve(&cloud, |command| {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    })
    .await;
    let said = program.lines().into_iter().filter(|line| line["message"].as_str().unwrap().contains("--features otlp"));
    assert_eq!(said.count(), 1);
}
