//! What a probe costs, and what those who ask meanwhile notice of a model that misbehaves in it.
//!
//! `cargo bench --bench gates -- isolation`. The clients share the machine with the server and the probe: what counts is the ratio
//! to idle, the best of three runs.

use std::time::{Duration, Instant};

use hotserve::config::{HumanDuration, Isolation};
use serde_json::{Value, json};

use crate::common::{Load, Server, percentile};
use crate::misbehaving::{FORMAT, artifact};

const ROUNDS: u64 = 15;
const RUNS: usize = 3;
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
    }
}

/// The latency of the old model while a new one misbehaves.
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
    println!("\n1,000 requests a second to the served model, p99 (best of {RUNS})");
    let mut idle = Duration::MAX;
    let mut best: Vec<(String, Duration, Value)> = Vec::new();
    for run in 0..RUNS {
        let asking = load();
        tokio::time::sleep(Duration::from_secs(3)).await;
        idle = idle.min(percentile(&asking.finish().await, 99));
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
        for (number, (how, when)) in cases.into_iter().enumerate() {
            let begun = Instant::now();
            let asking = load();
            let mut entry = Value::Null;
            while begun.elapsed() < Duration::from_secs(3) {
                version += 1;
                server.publish("new", version, server.write(FORMAT, &artifact(how, when, version))).await;
                entry = server.outcome("new", version).await;
            }
            let p99 = percentile(&asking.finish().await, 99);
            if run == 0 {
                best.push((format!("{how} at {when}"), p99, entry["reason"].clone()));
            } else {
                best[number].1 = best[number].1.min(p99);
            }
        }
    }
    println!("{:<20}{:>10.1?}", "idle", idle);
    for (what, p99, reason) in best {
        println!(
            "{what:<20}{p99:>10.1?}{:>8.2}×  {}",
            p99.as_secs_f64() / idle.as_secs_f64(),
            reason.as_str().unwrap_or("served")
        );
    }
}
