//! What a request costs above a bare axum handler that answers the same bytes, measured by turns in one run.
//!
//! `cargo bench --bench gates -- http`. It needs `wrk` (Debian: `apt-get install wrk`). The servers are processes of
//! their own; of a loaded machine the processor time of a request says more than the requests of a second. The load has
//! the last processor for itself: where it shares one with a server, the p99 is the turns of the scheduler. The p99 is
//! that of all rounds together, for what else the machine does decides that of one; nine of ten draws of as many rounds
//! from these lie in its range.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::common::Server;

const ROUNDS: usize = 12;
/// Of a state, which costs so little that all else shows.
const STATE_ROUNDS: usize = 60;
/// What wrk is told for each round.
const ROUND: &str = "1s";
/// How often rounds are drawn anew for the range of a quantile.
const DRAWS: usize = 200;
/// Lets wrk say at its end how often each latency in µs came.
const DONE: &str = "\
function done(summary, latency)
    local counts = {}
    for i = 1, #latency do
        counts[i] = string.format('[%d,%d]', latency(i))
    end
    io.write('\\n[' .. table.concat(counts, ',') .. ']\\n')
end
";
const CHILD: &str = "http-server";
const CASES: &[(&str, &str, Option<&str>)] = &[
    ("GET /state", "/state", None),
    ("linear, one row", "/predict/iris", Some(r#"{"instances":[[5.1,3.5,1.4,0.2]]}"#)),
    ("forest, one row", "/predict/fraud", Some(r#"{"instances":[[912.5,3,840.0,2.5,0.71,40,1]]}"#)),
];
/// The tensor that is sent as JSON and as bytes: rows and features.
const TENSOR: (usize, usize) = (64, 28);
const WIDE: &str = "/v2/models/wide/infer";

pub async fn run() {
    if Command::new("wrk").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("wrk is not on the PATH: apt-get install wrk");
        return;
    }
    let hotserve = Process::start(&[CHILD, "hotserve"]);
    let mut answers = Vec::new();
    for (_, path, body) in CASES {
        answers.push(json!({"path": path, "answer": answer(hotserve.addr, path, *body).await}));
    }
    let bare = Process::start(&[CHILD, "bare", &serde_json::to_string(&answers).unwrap()]);
    let folder = tempfile::tempdir().unwrap();
    println!(
        "{ROUNDS} rounds of {ROUND}, {STATE_ROUNDS} of a state, by turns; the ratio of hotserve to the bare handler: median, least to most"
    );
    println!("but for the p99: of all rounds together, and the range of nine of ten draws of as many rounds");
    println!(
        "{:<18}{:>5}{:>10}{:>10}{:>22}{:>22}{:>22}",
        "", "conn", "bare/s", "ours/s", "rate", "p99", "CPU a request"
    );
    for (name, path, body) in CASES {
        let script = folder.path().join("request.lua");
        let method = if body.is_some() { "POST" } else { "GET" };
        let text = format!(
            "{DONE}wrk.method = '{method}'\nwrk.body = {}\n",
            body.map_or("nil".to_owned(), |b| format!("'{b}'"))
        );
        std::fs::write(&script, text).unwrap();
        let rounds = if body.is_some() { ROUNDS } else { STATE_ROUNDS };
        for connections in [1, 16, 64] {
            let mut pairs = Vec::new();
            for _ in 0..rounds {
                let [bare, ours] = [&bare, &hotserve].map(|server| server.round(path, &script, connections));
                pairs.push((bare, ours));
            }
            let best = |of: fn(&(Round, Round)) -> f64| pairs.iter().map(of).fold(0.0, f64::max);
            println!(
                "{name:<18}{connections:>5}{:>10.0}{:>10.0}{:>22}{:>22}{:>22}",
                best(|(bare, _)| bare.rate),
                best(|(_, ours)| ours.rate),
                ratios(&pairs, |round| round.rate),
                p99s(&pairs),
                ratios(&pairs, |round| round.cpu),
            );
        }
    }
    tensors(&hotserve, folder.path());
}

/// The same FP32 tensor to the same model by the Open Inference Protocol, as bytes and as JSON, by turns.
fn tensors(hotserve: &Process, folder: &Path) {
    let (rows, features) = TENSOR;
    let mut random = fastrand::Rng::with_seed(6);
    let values: Vec<f32> = (0..rows * features).map(|_| random.f32() * 200.0 - 100.0).collect();
    let input = |rest: serde_json::Value| {
        let mut input = json!({"name": "input", "datatype": "FP32", "shape": [rows, features]});
        input.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        input
    };
    // Put in as text: a value would make doubles of them, with twice the digits.
    let data = serde_json::to_string(&values).unwrap();
    let text = json!({"inputs": [input(json!({"data": "DATA"}))]}).to_string().replace("\"DATA\"", &data);
    let size = values.len() * 4;
    let head = input(json!({"parameters": {"binary_data_size": size}}));
    let head = json!({"inputs": [head], "parameters": {"binary_data_output": true}}).to_string();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let bytes = [head.as_bytes(), &bytes].concat();
    let script = |name: &str, body: &[u8], header: &str| {
        let (script, file) = (folder.join(format!("{name}.lua")), folder.join(name));
        std::fs::write(&file, body).unwrap();
        let read =
            format!("local file = io.open('{}', 'rb')\nwrk.body = file:read('*a')\nfile:close()", file.display());
        std::fs::write(&script, format!("wrk.method = 'POST'\n{header}\n{read}\n")).unwrap();
        script
    };
    let length = format!("wrk.headers['inference-header-content-length'] = '{}'", head.len());
    let scripts = [script("json", text.as_bytes(), ""), script("bytes", &bytes, &length)];
    println!(
        "\n{rows} x {features} FP32 as JSON of {} bytes and as {} bytes, to a linear model",
        text.len(),
        bytes.len()
    );
    println!("{:<18}{:>5}{:>10}{:>10}{:>22}{:>22}", "", "conn", "JSON/s", "bytes/s", "rate", "CPU a request");
    for connections in [1, 16] {
        let mut pairs = Vec::new();
        for _ in 0..ROUNDS {
            let [json, bytes] = scripts.each_ref().map(|script| hotserve.round(WIDE, script, connections));
            pairs.push((json, bytes));
        }
        let best = |of: fn(&(Round, Round)) -> f64| pairs.iter().map(of).fold(0.0, f64::max);
        println!(
            "{:<18}{connections:>5}{:>10.0}{:>10.0}{:>22}{:>22}",
            "bytes to JSON",
            best(|(json, _)| json.rate),
            best(|(_, bytes)| bytes.rate),
            ratios(&pairs, |round| round.rate),
            ratios(&pairs, |round| round.cpu),
        );
    }
}

/// The second of each pair to the first: the median, the least and the most.
fn ratios(pairs: &[(Round, Round)], of: fn(&Round) -> f64) -> String {
    let mut all: Vec<f64> = pairs.iter().map(|(first, second)| of(second) / of(first)).collect();
    all.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2} to {:.2})", all[all.len() / 2], all[0], all[all.len() - 1])
}

/// The p99 of all second rounds to that of all first ones, and its range by drawing pairs anew (bootstrap).
fn p99s(pairs: &[(Round, Round)]) -> String {
    let of = |drawn: &[usize]| {
        let all = |which: fn(&(Round, Round)) -> &Round| {
            let mut counts = BTreeMap::<u64, u64>::new();
            for (latency, count) in drawn.iter().flat_map(|at| &which(&pairs[*at]).latencies) {
                *counts.entry(*latency).or_default() += count;
            }
            let mut left = counts.values().sum::<u64>() / 100;
            let slowest = counts.iter().rev().find(|(_, count)| {
                left = left.saturating_sub(**count);
                left == 0
            });
            *slowest.unwrap().0 as f64
        };
        all(|(_, ours)| ours) / all(|(bare, _)| bare)
    };
    let mut random = fastrand::Rng::with_seed(1);
    let mut draws: Vec<f64> = (0..DRAWS)
        .map(|_| of(&std::iter::repeat_with(|| random.usize(..pairs.len())).take(pairs.len()).collect::<Vec<_>>()))
        .collect();
    draws.sort_by(f64::total_cmp);
    let all: Vec<usize> = (0..pairs.len()).collect();
    format!("{:.2} ({:.2} to {:.2})", of(&all), draws[DRAWS / 20], draws[DRAWS - 1 - DRAWS / 20])
}

/// Headers and body of an answer, for the bare handler to give.
async fn answer(addr: SocketAddr, path: &str, body: Option<&'static str>) -> serde_json::Value {
    let request = Request::builder().method(if body.is_some() { "POST" } else { "GET" });
    let request = request.uri(format!("http://{addr}{path}"));
    let client = Client::builder(TokioExecutor::new()).build_http();
    let answer = client.request(request.body(Full::new(Bytes::from(body.unwrap_or_default()))).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    // These hyper writes itself.
    let own = |name: &HeaderName| !["date", "content-length"].contains(&name.as_str());
    let headers = answer.headers().iter().filter(|(name, _)| own(name));
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    json!({"headers": headers, "body": String::from_utf8(body.to_vec()).unwrap()})
}

struct Round {
    rate: f64,
    /// How often each latency in µs came.
    latencies: BTreeMap<u64, u64>,
    /// Nanoseconds of the server's processor time a request.
    cpu: f64,
}

struct Process {
    child: Child,
    addr: SocketAddr,
}

impl Process {
    fn start(words: &[&str]) -> Self {
        let others = format!("0-{}", last_processor().saturating_sub(1));
        let mut child = on(&others, &std::env::current_exe().unwrap())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self { child, addr: line.trim().parse().unwrap() }
    }

    fn round(&self, path: &str, script: &Path, connections: u32) -> Round {
        let before = self.cpu();
        let output = on(&last_processor().to_string(), Path::new("wrk"))
            .args(["-t1", "--latency", "-d", ROUND, "-c", &connections.to_string(), "-s"])
            .arg(script)
            .arg(format!("http://{}{path}", self.addr))
            .output()
            .unwrap();
        let cpu = self.cpu() - before;
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
        let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap().trim();
        let requests = text.lines().find_map(|line| line.split_once(" requests in")).unwrap().0.trim();
        let counts = text.lines().rev().find(|line| line.starts_with('[')).unwrap_or("[]");
        let latencies: Vec<(u64, u64)> = serde_json::from_str(counts).unwrap();
        Round {
            rate: field("Requests/sec:").parse().unwrap(),
            latencies: latencies.into_iter().collect(),
            cpu: cpu / requests.parse::<f64>().unwrap(),
        }
    }

    /// Nanoseconds that all its threads have had.
    fn cpu(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let had = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok());
        had.filter_map(|text| text.split(' ').next()?.parse::<f64>().ok()).sum()
    }
}

fn last_processor() -> usize {
    std::thread::available_parallelism().unwrap().get() - 1
}

/// A program on these processors only.
fn on(processors: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", processors]).arg(program);
    command
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A server's process: its address on a line, and its end when its input ends.
pub fn server() -> Option<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_none_or(|word| word != CHILD) {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let input = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        if let Some(answers) = words.get(2) {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            println!("{}", listener.local_addr().unwrap());
            let served =
                axum::serve(axum::serve::ListenerExt::tap_io(listener, |io| drop(io.set_nodelay(true))), bare(answers));
            tokio::spawn(async move { served.await });
            input.await.unwrap().unwrap();
        } else {
            let server = Server::start(|_| {}).await;
            for sample in hotserve_models::samples::all() {
                server.publish(sample.name, 1, server.write(sample.format, sample.bytes)).await;
                assert_eq!(server.outcome(sample.name, 1).await["outcome"], "applied");
            }
            server.publish("wide", 1, server.write("linear", wide().as_bytes())).await;
            assert_eq!(server.outcome("wide", 1).await["outcome"], "applied");
            println!("{}", server.addr);
            input.await.unwrap().unwrap();
            server.stop().await;
        }
    });
    Some(ExitCode::SUCCESS)
}

/// A model as wide as the tensor.
fn wide() -> String {
    let features: Vec<String> = (0..TENSOR.1).map(|index| format!("f{index}")).collect();
    let coefficients = [vec![0.5; TENSOR.1]];
    json!({"kind": "linear", "features": features, "coefficients": coefficients, "intercepts": [0.0]}).to_string()
}

/// Handlers that read the body and answer constants, with as many headers.
fn bare(answers: &str) -> Router {
    let answers: Vec<serde_json::Value> = serde_json::from_str(answers).unwrap();
    let mut router = Router::new();
    for entry in answers {
        let headers: Vec<(String, String)> = serde_json::from_value(entry["answer"]["headers"].clone()).unwrap();
        let header = |(name, value): &(String, String)| -> (HeaderName, HeaderValue) {
            (name.parse().unwrap(), value.parse().unwrap())
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        let body = Bytes::from(entry["answer"]["body"].as_str().unwrap().to_owned());
        let answer = move || {
            let mut response = Response::new(Body::from(body.clone()));
            *response.headers_mut() = headers.clone();
            std::future::ready(response)
        };
        let path = entry["path"].as_str().unwrap();
        let methods = if path == "/state" { get(answer) } else { post(move |_: Bytes| answer()) };
        router = router.route(path, methods);
    }
    router
}
