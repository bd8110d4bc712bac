//! What a server serves when it starts: the last message already there, else what it served last.

use hotserve::config::HumanDuration;
use http::StatusCode;
use serde_json::json;
use std::time::{Duration, Instant};

use crate::stream::{merge, split};
use crate::support::{BUCKET, Cloud, constant_model, until};

/// Starts a server on what the stream holds, and checks that its first ready answer is this state.
async fn first_ready_state_is(cloud: &Cloud, expected: u64) {
    let server = cloud.server().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    // Without a pause: a server that is ready too early would soon be right by itself.
    while !server.is_ready().await {
        assert!(Instant::now() < deadline, "it does not become ready");
    }
    let state = server.state().await;
    assert_eq!(state, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_message_of_one_shard_is_served_before_ready() {
    let cloud = Cloud::start(1).await;
    for state in 1..=30 {
        cloud.put(json!({"message_id": state.to_string(), "state": state}).to_string()).await;
    }
    first_ready_state_is(&cloud, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_highest_version_of_four_shards_is_served_before_ready() {
    let cloud = Cloud::start(4).await;
    for version in (1..=40).rev() {
        let message = json!({"version": version, "state": version});
        cloud.put_with_key(&format!("key {version}"), message.to_string()).await;
    }
    first_ready_state_is(&cloud, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_versions_the_last_to_arrive_at_four_shards_is_served() {
    let cloud = Cloud::start(4).await;
    for state in 1..=12 {
        if state == 12 {
            // The embedded endpoint stamps arrivals to the second.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        cloud.put_with_key(&format!("key {state}"), json!({"state": state}).to_string()).await;
    }
    first_ready_state_is(&cloud, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_from_before_a_split_and_a_merge_is_found_in_the_closed_shards() {
    let cloud = Cloud::start(1).await;
    cloud.put(json!({"state": 7}).to_string()).await;
    split(&cloud, "shardId-000000000000").await;
    first_ready_state_is(&cloud, 7).await;
    merge(&cloud, "shardId-000000000001", "shardId-000000000002").await;
    first_ready_state_is(&cloud, 7).await;
    cloud.put(json!({"state": 8}).to_string()).await;
    first_ready_state_is(&cloud, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_stream_is_ready_with_the_initial_state() {
    let cloud = Cloud::start(2).await;
    let server =
        cloud.server_with(|settings| settings.initial_state = Some(r#"{"eur": 1.0}"#.to_owned())).await.ready().await;
    assert_eq!(server.client.get("/state").await.text(), r#"{"state":{"eur": 1.0}}"#);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_look_back_finds_the_slots_before_the_last_message() {
    let cloud = Cloud::start(1).await;
    cloud.put(json!({"key": "early", "state": 1}).to_string()).await;
    // Just beyond the first window of ten seconds; this machine's clock is the service's.
    tokio::time::sleep(Duration::from_secs(13)).await;
    cloud.put(json!({"key": "late", "state": 2}).to_string()).await;
    let status = async |lookback_s| {
        let lookback = Some(HumanDuration(Duration::from_secs(lookback_s)));
        let server = cloud.server_with(|settings| settings.lookback = lookback).await.ready().await;
        assert_eq!(server.client.get("/state/late").await.status, StatusCode::OK);
        let status = server.client.get("/state/early").await.status;
        server.stop().await;
        status
    };
    assert_eq!(status(0).await, StatusCode::NOT_FOUND, "only the last message is sought");
    assert_eq!(status(3600).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_look_back_reaches_behind_a_split() {
    let cloud = Cloud::start(1).await;
    cloud.put(json!({"key": "early", "state": 1}).to_string()).await;
    split(&cloud, "shardId-000000000000").await;
    // Both children have a record.
    for number in 0..20 {
        cloud.put_with_key(&format!("key {number}"), json!({"key": "late", "state": number}).to_string()).await;
    }
    let lookback = Some(HumanDuration(Duration::from_secs(3600)));
    let server = cloud.server_with(|settings| settings.lookback = lookback).await.ready().await;
    assert_eq!(server.client.get("/state/early").await.status, StatusCode::OK);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_everything_gone_a_restart_serves_the_last_known_good() {
    let mut cloud = Cloud::start(1).await;
    let cache_dir = cloud.path("cache");
    let with_cache = |settings: &mut hotserve::config::Settings| settings.cache_dir = Some(cache_dir.clone());
    let server = cloud.server_with(with_cache).await.ready().await;
    // Kept byte for byte, newlines included.
    cloud.put("{\"version\": 3, \"state\": {\n  \"x\": 1.50\n}}").await;
    cloud.put(json!({"model": cloud.upload("m", 4, "linear", &constant_model(4)).await}).to_string()).await;
    until("the model", async || (server.client.get("/models").await.text().contains(r#""name":"m""#)).then_some(()))
        .await;
    until("the state", async || (server.client.get("/state").await.header("x-state-version") == "3").then_some(()))
        .await;
    server.stop().await;

    cloud.embedded.kinesis.stop().await;
    cloud.embedded.s3.stop().await;
    let server = cloud.server_with(with_cache).await.ready().await;
    assert_eq!(server.client.get("/state").await.text(), "{\"state\":{\n  \"x\": 1.50\n}}");
    let reply = server.client.post("/predict", r#"{"instances":[[0]]}"#).await;
    assert_eq!((reply.status, reply.header("x-model-version")), (StatusCode::OK, "4"));

    // Back up: an older version is not taken, a newer one is, without a restart.
    cloud.embedded.kinesis.restart().await.unwrap();
    cloud.embedded.s3.restart().await.unwrap();
    cloud.put(json!({"version": 2, "state": "older"}).to_string()).await;
    cloud.put(json!({"version": 5, "state": "newer"}).to_string()).await;
    server.until_state("newer").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_cache_is_noticed_and_healed_from_the_bucket() {
    let cloud = Cloud::start(1).await;
    let cache_dir = cloud.path("cache");
    let with_cache = |settings: &mut hotserve::config::Settings| settings.cache_dir = Some(cache_dir.clone());
    let model = cloud.upload("m", 4, "linear", &constant_model(4)).await;
    cloud.put(json!({"model": model}).to_string()).await;
    let server = cloud.server_with(with_cache).await.ready().await;
    server.stop().await;
    let artifact = cache_dir.join("artifacts").join(model["sha256"].as_str().unwrap());
    let size = std::fs::metadata(&artifact).unwrap().len();
    std::fs::write(&artifact, vec![b'x'; usize::try_from(size).unwrap()]).unwrap();

    let server = cloud.server_with(with_cache).await.ready().await;
    let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
    assert_eq!((reply.status, reply.header("x-model-version")), (StatusCode::OK, "4"), "{BUCKET} has it still");
    assert_eq!(server.metric(r#"hotserve_rejections_total{reason="digest"}"#).await, 1.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_digest_is_itself_again_after_a_restart() {
    let cloud = Cloud::start(1).await;
    let cache_dir = cloud.path("cache");
    let unverified = |settings: &mut hotserve::config::Settings| {
        settings.cache_dir = Some(cache_dir.clone());
        settings.allow_unverified = Some(true);
    };
    let mut model = cloud.upload("m", 4, "linear", &constant_model(4)).await;
    model.as_object_mut().unwrap().retain(|field, _| field != "sha256" && field != "size");
    cloud.put(json!({"model": model}).to_string()).await;
    for outcome in ["applied", "duplicate"] {
        let server = cloud.server_with(unverified).await.ready().await;
        let series = format!(r#"hotserve_updates_total{{kind="model",outcome="{outcome}"}}"#);
        assert_eq!(server.metric(&series).await, 1.0, "{outcome}");
        server.stop().await;
    }
}
