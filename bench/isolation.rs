//! What a probe costs, and what those who ask meanwhile notice of a model that misbehaves in it.
//!
//! `cargo bench --bench gates -- isolation`. The clients share the machine with the server and the probe: what counts is the ratio
//! to idle, in the same run.

use std::time::{Duration, Instant};

use hotserve::config::{HumanDuration, Isolation};
use serde_json::{Value, json};

use crate::common::{Load, Server, percentile};
use crate::misbehaving::{FORMAT, artifact};

const ROUNDS: u64 = 15;
const RUNS: usize = 3;
/// How long each case has in a run.
const WINDOW: Duration = Duration::from_secs(12);
/// Before each attempt, and before the quiet time that is as long and is watched in the same way: long enough for the
/// next probe to be there, as it is where a model comes now and then.
const PAUSE: Duration = Duration::from_millis(80);
const BODY: &str = r#"{"instances":[[5.1,3.5,1.4,0.2]]}"#;

pub async fn run() {
    costs().await;
    attempts().await;
}

fn iris(retrained: bool) -> &'static [u8] {
    let iris = hotserve_models::samples::all().iter().find(|sample| sample.name == "iris").unwrap();
    if retrained { iris.retrained.unwrap() } else { iris.bytes }
}

/// Coefficients of 200 scores by 25,000 features.
fn large() -> Vec<u8> {
    let mut number = 1_u64;
    let mut next = || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (number >> 11) as f64 / (1_u64 << 53) as f64
    };
    let rows: Vec<Vec<f64>> = (0..200).map(|_| (0..25_000).map(|_| next()).collect()).collect();
    let features: Vec<String> = (0..25_000).map(|number| format!("f{number}")).collect();
    let model = json!({"kind": "linear", "features": features, "coefficients": rows, "intercepts": vec![0.0; 200]});
    model.to_string().into_bytes()
}

/// The stages of a swap, with and without a probe.
async fn costs() {
    let fraud = hotserve_models::samples::all().iter().find(|sample| sample.name == "fraud").unwrap();
    println!("median of {ROUNDS} swaps, in ms");
    println!(
        "{:<18}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>12}",
        "", "bytes", "probe", "verify", "load", "warm", "swap", "served in"
    );
    for mode in [Isolation::Thread, Isolation::Process] {
        let server = Server::start(|settings| settings.isolation = Some(mode)).await;
        for (name, format, bytes) in [
            ("iris", "linear", iris(false).to_vec()),
            ("fraud", "xgboost", fraud.bytes.to_vec()),
            ("large", "linear", large()),
        ] {
            let model = server.write(format, &bytes);
            let mut stages: Vec<Value> = Vec::new();
            for version in 1..=ROUNDS {
                server.publish(name, version, model.clone()).await;
                let entry = server.outcome(name, version).await;
                assert_eq!(entry["outcome"], "applied", "{entry}");
                stages.push(entry);
            }
            let median = |value: &dyn Fn(&Value) -> f64| {
                let mut all: Vec<f64> = stages.iter().map(value).collect();
                all.sort_by(f64::total_cmp);
                all[all.len() / 2] * 1e3
            };
            let stage = |name: &'static str| median(&|entry| entry["stages"][name].as_f64().unwrap_or(0.0));
            println!(
                "{:<18}{:>9}{:>9.2}{:>9.2}{:>9.2}{:>9.2}{:>9.3}{:>12.2}",
                format!("{name}, {}", if mode == Isolation::Thread { "thread" } else { "process" }),
                bytes.len(),
                stage("probe"),
                stage("verify"),
                stage("load"),
                stage("warm"),
                stage("swap"),
                median(&|entry| entry["publish_to_serving_seconds"].as_f64().unwrap_or(0.0)),
            );
        }
        server.stop().await;
    }
}

/// The latency of the old model while a new one misbehaves, beside that of a time as long in which nothing is tried.
async fn attempts() {
    let server = Server::start(|settings| {
        settings.isolation = Some(Isolation::Process);
        settings.load_timeout = Some(HumanDuration(Duration::from_secs(1)));
        settings.max_row_time = Some(HumanDuration(Duration::from_micros(300)));
    })
    .await;
    server.publish("old", 1, server.write("linear", iris(false))).await;
    server.outcome("old", 1).await;
    let load = || Load::start(server.addr, "old", BODY, 4, 1000);
    let mut version = 1;
    println!(
        "\n1,000 requests a second to the served model, those sent during an attempt beside those of a quiet time"
    );
    let cases = [
        ("good", "load"),
        ("panic", "load"),
        ("abort", "infer"),
        ("overflow", "load"),
        ("loop", "load"),
        ("sleep", "infer"),
        ("allocate", "load"),
        ("nan", "infer"),
        ("slow", "infer"),
    ];
    let mut seen = cases.map(|_| (Vec::new(), Vec::new(), 0, Value::Null));
    for _ in 0..RUNS {
        for ((how, when), (idle, busy, attempts, reason)) in cases.iter().zip(&mut seen) {
            let asking = load();
            let begun = Instant::now();
            let mut spans = Vec::new();
            while begun.elapsed() < WINDOW {
                version += 1;
                let artifact = server.write(FORMAT, &artifact(how, when, version));
                tokio::time::sleep(PAUSE).await;
                let from = Instant::now();
                server.publish("new", version, artifact).await;
                *reason = server.outcome("new", version).await["reason"].clone();
                let tried = Instant::now();
                tokio::time::sleep(PAUSE).await;
                let quiet = Instant::now();
                tokio::time::sleep(tried - from).await;
                spans.push((from..tried, quiet..Instant::now()));
            }
            *attempts += spans.len();
            // By when it was sent, and not by whether it overlaps: that would pick the slow ones.
            for (sent, took) in asking.finish().await {
                if spans.iter().any(|(tried, _)| tried.contains(&sent)) {
                    busy.push((sent, took));
                } else if spans.iter().any(|(_, quiet)| quiet.contains(&sent)) {
                    idle.push((sent, took));
                }
            }
        }
    }
    println!(
        "{:<20}{:>9}{:>9}{:>8}{:>11}{:>9}{:>9}{:>8}{:>10}",
        "", "idle", "during", "ratio", "requests", "idle p50", "during", "ratio", "attempts"
    );
    for ((how, when), (idle, busy, attempts, reason)) in cases.iter().zip(seen) {
        let name = format!("{how} at {when}");
        let micros = |times, at| percentile(times, at).as_secs_f64() * 1e6;
        let (idle99, busy99) = (micros(&idle, 99), micros(&busy, 99));
        let (idle50, busy50) = (micros(&idle, 50), micros(&busy, 50));
        let reason = reason.as_str().unwrap_or("served").to_owned();
        println!(
            "{name:<20}{idle99:>6.0} µs{busy99:>6.0} µs{:>8.2}{:>11}{idle50:>6.0} µs{busy50:>6.0} µs{:>8.2}{attempts:>10}  {reason}",
            busy99 / idle99,
            busy.len(),
            busy50 / idle50,
        );
    }
    server.stop().await;
}
