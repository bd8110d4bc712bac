//! What readers see while everything is replaced under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hotserve::config::{Isolation, Settings};
use hotserve_models::Loaders;
use http::StatusCode;
use serde_json::json;

use crate::support::{Client, Cloud, Server, constant_model, probe, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_changes_the_state_and_a_model_changes_the_answer() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    assert_eq!(server.client.get("/state").await.text(), r#"{"state":0}"#);
    assert_eq!(server.client.post("/predict", r#"{"instances":[[1]]}"#).await.status, StatusCode::NOT_FOUND);

    cloud.put(r#"{"message_id":"4142","text":"some text","state":96}"#).await;
    server.until_state(96).await;
    cloud.put(r#"{"key":"pricing","version":7,"state":{"eur":1.080}}"#).await;
    let reply = until("the keyed state", async || {
        let reply = server.client.get("/state/pricing").await;
        (reply.status == StatusCode::OK).then_some(reply)
    })
    .await;
    assert_eq!((reply.text().as_str(), reply.header("x-state-version")), (r#"{"state":{"eur":1.080}}"#, "7"));
    let again = server.client.get_if_none_match("/state/pricing", reply.header("etag")).await;
    assert_eq!(again.status, StatusCode::NOT_MODIFIED);

    for version in [1, 2] {
        let model = cloud.upload("m", version, "linear", &constant_model(version)).await;
        cloud.put(json!({"model": model}).to_string()).await;
        let reply = until("the model", async || {
            let reply = server.client.post("/predict/m", r#"{"instances":[{"x":3}]}"#).await;
            (reply.status == StatusCode::OK && reply.header("x-model-version") == version.to_string()).then_some(reply)
        })
        .await;
        assert_eq!(reply.json(), json!({"predictions": [version as f64], "model": {"name": "m", "version": version}}));
    }
    // It is counted after it is served.
    until("both models to be counted", async || {
        let applied = server.metric(r#"hotserve_updates_total{kind="model",outcome="applied"}"#).await;
        (applied == 2.0).then_some(())
    })
    .await;
    assert_eq!(server.metric(r#"hotserve_model_version{model="m"}"#).await, 2.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inline_model_and_compressed_payloads_are_served_too() {
    use base64::Engine as _;
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    let packed = zstd::encode_all(&constant_model(5)[..], 3).unwrap();
    let inline = base64::engine::general_purpose::STANDARD.encode(packed);
    let message =
        json!({"model": {"name": "m", "version": 3, "format": "linear", "inline": inline, "encoding": "zstd"}});
    cloud.put(zstd::encode_all(message.to_string().as_bytes(), 3).unwrap()).await;
    until("the model", async || {
        let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
        (reply.status == StatusCode::OK && reply.json()["predictions"] == json!([5.0])).then_some(())
    })
    .await;
    server.stop().await;
}

/// Readers on several connections, each checking that what it reads belongs together and never goes back.
struct Readers {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Result<(), String>>>,
}

impl Readers {
    /// `check` takes one answer's own idea of its version, and fails if the answer contradicts itself.
    fn start(addr: std::net::SocketAddr, connections: usize, both: bool) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let tasks = (0..connections)
            .map(|number| {
                let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
                // A client of its own is a connection of its own.
                let client = Client::to(addr);
                tokio::spawn(async move {
                    let (mut state, mut model) = (0, 0);
                    while !stop.load(Ordering::Relaxed) {
                        if number % 2 == 0 {
                            read_state(&client, &mut state).await?;
                        } else {
                            read_prediction(&client, &mut model, &mut state, both).await?;
                        }
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        Self { stop, requests, tasks }
    }

    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert_eq!(task.await.unwrap(), Ok(()));
        }
        self.requests.load(Ordering::Relaxed)
    }
}

fn forward(what: &str, seen: &mut u64, now: u64) -> Result<(), String> {
    if now < *seen {
        return Err(format!("{what} went back from {seen} to {now}"));
    }
    *seen = now;
    Ok(())
}

async fn read_state(client: &Client, seen: &mut u64) -> Result<(), String> {
    let reply = client.get("/state").await;
    if reply.status != StatusCode::OK {
        return Err(format!("{reply:?}"));
    }
    let state = reply.json()["state"].as_u64().unwrap();
    let header: u64 = reply.header("x-state-version").parse().unwrap();
    if state != header {
        return Err(format!("state {state} under the version {header}"));
    }
    forward("the state", seen, state)
}

async fn read_prediction(client: &Client, seen: &mut u64, seen_state: &mut u64, both: bool) -> Result<(), String> {
    let reply = client.post("/predict/m", r#"{"instances":[[0],[1]]}"#).await;
    if reply.status != StatusCode::OK {
        return Err(format!("{reply:?}"));
    }
    let body = reply.json();
    let header: u64 = reply.header("x-model-version").parse().unwrap();
    let predicted: Vec<f64> = body["predictions"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
    if predicted.iter().any(|p| *p != header as f64) || body["model"]["version"] != json!(header) {
        return Err(format!("{body} under the version {header}"));
    }
    let state: u64 = reply.header("x-state-version").parse().unwrap();
    if both && state != header {
        return Err(format!("a torn pair: state {state} with model {header}"));
    }
    forward("the state", seen_state, state)?;
    forward("the model", seen, header)
}

fn pair(version: u64) -> String {
    use base64::Engine as _;
    let inline = base64::engine::general_purpose::STANDARD.encode(constant_model(version));
    json!({
        "version": version, "state": version,
        "model": {"name": "m", "version": version, "format": "linear", "inline": inline},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_swaps_under_eight_readers_fail_no_request_and_go_never_back() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    cloud.put(pair(1)).await;
    server.until_state(1).await;
    let readers = Readers::start(server.addr, 8, false);
    // Messages to one slot that come within one poll are folded into one swap: go on until enough were swapped in.
    let before = server.metric("hotserve_swaps_total").await;
    let mut version = 1;
    while server.metric("hotserve_swaps_total").await - before < 1000.0 {
        for _ in 0..50 {
            version += 1;
            cloud.put_with_key("state", json!({"version": version, "state": version}).to_string()).await;
            // A key of its own for each: nothing to fold, every one a swap.
            cloud.put_with_key("k", json!({"key": format!("k{version}"), "state": version}).to_string()).await;
        }
        cloud
            .put(json!({"model": cloud.upload("m", version, "linear", &constant_model(version)).await}).to_string())
            .await;
    }
    server.until_state(version).await;
    let requests = readers.finish().await;
    assert!(requests > 1000, "{requests} requests are no load");
    let live = until("replaced snapshots to be freed", async || {
        let live = server.metric("hotserve_live_generations").await;
        (live <= 2.0).then_some(live)
    })
    .await;
    println!("{requests} requests over {} swaps, {live} generations live", server.metric("hotserve_swaps_total").await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_and_a_model_of_one_message_are_never_seen_apart() {
    // Thousands of models: what is tried here is the swap, and a process for each would take most of the time.
    let thread = |settings: &mut Settings| settings.isolation = Some(Isolation::Thread);
    let (server, feeder, _) = Server::fed_with(Loaders::bundled(), probe(), thread).await;
    let server = server.ready().await;
    let served = async |version: u64| {
        until("the pair", async || {
            // No pause between looks: as many swaps as can be.
            for _ in 0..10_000 {
                let snapshot = server.http.serving.snapshot();
                if snapshot.state("default").is_some_and(|state| state.version == version.to_string().as_str()) {
                    return Some(());
                }
                drop(snapshot);
                tokio::task::yield_now().await;
            }
            None
        })
        .await;
    };
    feeder.put(pair(1)).await;
    served(1).await;
    let readers = Readers::start(server.addr, 8, true);
    for version in 2..=3000 {
        feeder.put(pair(version)).await;
        served(version).await;
    }
    let requests = readers.finish().await;
    assert!(requests > 100, "{requests} requests are no load");
    println!("{requests} requests over 3,000 swaps of a pair");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_queued_updates_to_a_slot_the_newest_is_loaded() {
    let cloud = Cloud::start(1).await;
    // All of it is there before the server is: one page, one load.
    for version in (1..=50).rev() {
        cloud.put(pair(version)).await;
    }
    let server = cloud.server().await.ready().await;
    assert_eq!(server.state().await, 50);
    assert_eq!(server.metric(r#"hotserve_updates_total{kind="model",outcome="applied"}"#).await, 1.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_packed_into_one_record_are_served_in_their_order() {
    let (server, feeder) = Server::fed().await;
    let server = server.ready().await;
    // Six states of one key, without versions: the last one is served, and its version tells them apart.
    feeder.put(&include_bytes!("kpl/hash_keys.bin")[..]).await;
    server.until_state(5).await;
    assert_eq!(server.client.get("/state").await.header("x-state-version"), "1.5");
    // In a record of its own, a message shows the record's number.
    feeder.put(&include_bytes!("kpl/one.bin")[..]).await;
    server.until_state(1).await;
    assert_eq!(server.client.get("/state").await.header("x-state-version"), "2");
    server.stop().await;
}
