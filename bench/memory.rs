//! A large model is swapped again and again: the peak of memory, what is given back, and who waits for it.
//!
//! `cargo bench --bench gates -- memory`. It takes 5 GB of disk beside the build, and 4 GB of memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hotserve::config::{HumanDuration, Isolation, MemoryBudget};
use serde_json::{Value, json};

use crate::common::{Load, Server, percentile, resident};
use crate::misbehaving::{FORMAT, ballast};

const SWAPS: u64 = 10;
const GIB: u64 = 1 << 30;
const BUDGET: u64 = 7 * GIB / 2;

pub async fn run() {
    let gib = |value| ballast(GIB as usize, value, 0);
    swaps("1 GiB in one piece, the one before not kept", FORMAT, false, &gib).await;
    swaps("1 GiB in one piece, the one before kept warm", FORMAT, true, &gib).await;
    swaps("20,000 trees, the one before not kept", "xgboost", false, &|value| forest(20_000, value)).await;
}

async fn swaps(what: &str, format: &str, warm: bool, artifact: &dyn Fn(u64) -> Vec<u8>) {
    let server = Server::start(|settings| {
        settings.isolation = Some(Isolation::Process);
        settings.memory_budget = Some(MemoryBudget::Bytes(BUDGET));
        settings.warm_previous = Some(warm);
        settings.load_timeout = Some(HumanDuration(Duration::from_secs(120)));
    })
    .await;
    let small = hotserve_models::samples::all().iter().find(|sample| sample.name == "iris").unwrap();
    server.publish("small", 1, server.write("linear", small.bytes)).await;
    server.outcome("small", 1).await;
    // Two artifacts by turns: what differs is enough to be another model, and the disk holds it.
    let artifacts = [1, 2].map(|value| {
        let bytes = artifact(value);
        (server.write(format, &bytes), bytes.len())
    });
    println!("\n{what}: an artifact of {} MiB, {SWAPS} swaps, a budget of {} MiB", artifacts[0].1 >> 20, BUDGET >> 20);
    let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = std::thread::spawn({
        let (peak, stop) = (Arc::clone(&peak), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let (own, probes) = resident();
                peak.fetch_max(own + probes, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    let ask = || Load::start(server.addr, "small", r#"{"instances":[[5.1,3.5,1.4,0.2]]}"#, 2, 500);
    let idle = ask();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = idle.finish().await;
    let longest = |times: &[(Instant, Duration)]| times.iter().map(|(_, time)| *time).max().unwrap_or_default();
    let mut plateaus = Vec::new();
    let mut freeing = Vec::new();
    for version in 1..=SWAPS {
        let (model, _) = &artifacts[(version % 2) as usize];
        peak.store(0, Ordering::Relaxed);
        server.publish("large", version, model.clone()).await;
        let entry = server.outcome("large", version).await;
        assert_eq!(entry["outcome"], "applied", "{entry}");
        // From here on the reaper has the old one.
        let asking = ask();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let times = asking.finish().await;
        let plateau = resident().0;
        let used = server.metric("hotserve_memory_used_bytes").await;
        println!(
            "swap {version:>2}: peak {:>5} MiB, plateau {:>5} MiB, models {:>5} MiB, longest request {:.1?}, {}",
            peak.load(Ordering::Relaxed) >> 20,
            plateau >> 20,
            used as u64 >> 20,
            longest(&times),
            stages(&entry),
        );
        freeing.extend(times);
        plateaus.push(plateau);
    }
    stop.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    // With the one before, there are two from the second swap on.
    let plateaus = &plateaus[usize::from(warm)..];
    let worst = plateaus.iter().max().unwrap();
    println!("plateaus within {:.1} % of the first", 100.0 * (*worst as f64 / plateaus[0] as f64 - 1.0).abs());
    println!(
        "while the old one is freed: p99 {:.1?}, longest {:.1?}; idle: p99 {:.1?}, longest {:.1?}",
        percentile(&freeing, 99),
        longest(&freeing),
        percentile(&idle, 99),
        longest(&idle)
    );
    server.stop().await;
}

fn stages(entry: &Value) -> String {
    let text = |name: &str| format!("{name} {:.2} s", entry["stages"][name].as_f64().unwrap_or(0.0));
    ["probe", "verify", "load", "warm"].map(text).join(", ")
}

/// A forest of trees of 127 nodes, as XGBoost writes it in JSON.
fn forest(trees: usize, value: u64) -> Vec<u8> {
    let nodes = 127;
    let split = |node: usize| node < nodes / 2;
    let list = |of: &dyn Fn(usize) -> Value| Value::Array((0..nodes).map(of).collect());
    let tree = json!({
        "tree_param": {"num_nodes": nodes.to_string(), "num_deleted": "0", "size_leaf_vector": "1"},
        "left_children": list(&|node| if split(node) { json!(2 * node + 1) } else { json!(-1) }),
        "right_children": list(&|node| if split(node) { json!(2 * node + 2) } else { json!(-1) }),
        "split_indices": list(&|node| json!(node % 4)),
        "split_conditions": list(&|node| json!(node as f64 / 1000.0 * value as f64)),
        "default_left": list(&|_| json!(0)),
        "split_type": list(&|_| json!(0)),
    });
    let tree = tree.to_string();
    let mut text = String::with_capacity(trees * (tree.len() + 3));
    text.push_str(r#"{"learner":{"feature_names":[],"gradient_booster":{"name":"gbtree","model":{"tree_info":["#);
    text.push_str(&vec!["0"; trees].join(","));
    text.push_str(r#"],"trees":["#);
    text.push_str(&vec![tree.as_str(); trees].join(","));
    text.push_str(
        r#"]}},"learner_model_param":{"base_score":"0","num_feature":"4","num_class":"0","num_target":"1"},"#,
    );
    text.push_str(r#""objective":{"name":"reg:squarederror"}},"version":[2,0,0]}"#);
    text.into_bytes()
}
