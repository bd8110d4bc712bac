//! Kinesis and S3 go away, and come back.

mod artifacts;
mod clock;
mod load;
mod process;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use crate::support::{BUCKET, Client, Cloud, constant_model, until};
use hotserve::id::Digest;

/// How long the endpoints stay down; `.ci/run` makes it half a minute.
fn outage() -> Duration {
    let seconds = std::env::var("HOTSERVE_TEST_OUTAGE_SECONDS").map_or(3, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_fails_no_request_and_ends_without_a_restart() {
    let mut cloud = Cloud::start(2).await;
    let server = cloud.server().await.ready().await;
    cloud.put(json!({"version": 1, "state": 1}).to_string()).await;
    cloud.put(json!({"model": cloud.upload("m", 1, "linear", &constant_model(1)).await}).to_string()).await;
    until("the model", async || {
        (server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await.status == StatusCode::OK).then_some(())
    })
    .await;
    // Announced, and its object is there, but S3 goes before it can be fetched... or not: both must end well.
    let second = cloud.upload("m", 2, "linear", &constant_model(2)).await;

    let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..4)
        .map(|number| {
            let (stop, requests, client) = (Arc::clone(&stop), Arc::clone(&requests), Client::to(server.addr));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let reply = match number % 2 {
                        0 => client.get("/state").await,
                        _ => client.post("/predict/m", r#"{"instances":[[0]]}"#).await,
                    };
                    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
                    requests.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();

    cloud.put(json!({"model": second}).to_string()).await;
    cloud.embedded.s3.stop().await;
    cloud.embedded.kinesis.stop().await;
    tokio::time::sleep(outage()).await;
    assert!(server.is_ready().await, "readiness never depends on the stream again");
    let trouble = server.client.get("/readyz?verbose").await.json();
    assert_eq!(trouble["stream"]["trouble"]["code"], "unavailable", "{trouble}");

    cloud.embedded.kinesis.restart().await.unwrap();
    cloud.embedded.s3.restart().await.unwrap();
    cloud.put(json!({"version": 2, "state": 2}).to_string()).await;
    let third = cloud.upload("m", 3, "linear", &constant_model(3)).await;
    cloud.put(json!({"model": third}).to_string()).await;
    server.until_state(2).await;
    until("the newest model", async || {
        let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
        (reply.header("x-model-version") == "3").then_some(())
    })
    .await;

    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    println!("{} requests, none failed, over an outage of {:?}", requests.load(Ordering::Relaxed), outage());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_announced_before_its_object_is_there_is_served_when_it_is() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    let model = constant_model(2);
    let announcement = json!({"model": {
        "name": "m", "version": 2, "format": "linear",
        "uri": format!("s3://{BUCKET}/m/{}/model", Digest::of(&model)), "sha256": Digest::of(&model), "size": model.len(),
    }});
    cloud.put(announcement.to_string()).await;
    let refused = r#"hotserve_rejections_total{reason="not_found"}"#;
    until("the refusal", async || (server.metric(refused).await == 1.0).then_some(())).await;
    // An older one gets its turn meanwhile.
    cloud.put(json!({"model": cloud.upload("m", 1, "linear", &constant_model(1)).await}).to_string()).await;
    let version = async |expected: &str| {
        until(&format!("version {expected}"), async || {
            let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
            (reply.headers.get("x-model-version")? == expected).then_some(())
        })
        .await;
    };
    version("1").await;
    cloud.upload("m", 2, "linear", &model).await;
    version("2").await;
    assert_eq!(server.metric(refused).await, 1.0, "said once");
    server.stop().await;
}
