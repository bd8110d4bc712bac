//! The stream changes its shape, or its identity, while it is followed.

use std::time::Duration;

use serde_json::json;

use crate::support::{Cloud, STREAM, until};

async fn active(cloud: &Cloud) {
    until("the stream to be active", async || {
        let answer = cloud.kinesis().describe_stream_summary().stream_name(STREAM).send().await.ok()?;
        (answer.stream_description_summary?.stream_status.as_str() == "ACTIVE").then_some(())
    })
    .await;
}

/// Splits a shard in the middle of its hash range.
pub async fn split(cloud: &Cloud, shard: &str) {
    let kinesis = cloud.kinesis();
    let shards = kinesis.list_shards().stream_name(STREAM).send().await.unwrap().shards.unwrap();
    let range = shards.into_iter().find(|listed| listed.shard_id == shard).unwrap().hash_key_range.unwrap();
    let (start, end): (u128, u128) = (range.starting_hash_key.parse().unwrap(), range.ending_hash_key.parse().unwrap());
    let middle = start + (end - start) / 2;
    let request = kinesis.split_shard().stream_name(STREAM).shard_to_split(shard);
    request.new_starting_hash_key(middle.to_string()).send().await.unwrap();
    active(cloud).await;
}

/// Merges two neighbours.
pub async fn merge(cloud: &Cloud, shard: &str, neighbour: &str) {
    let request = cloud.kinesis().merge_shards().stream_name(STREAM).shard_to_merge(shard);
    request.adjacent_shard_to_merge(neighbour).send().await.unwrap();
    active(cloud).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slot_shows_its_last_version_after_splits_and_merges() {
    let cloud = Cloud::start(2).await;
    let server = cloud.server().await.ready().await;
    let publish = async |version: u64| {
        for key in 0..10 {
            let message = json!({"key": format!("k{key}"), "version": version, "state": version});
            cloud.put_with_key(&format!("key {key}"), message.to_string()).await;
        }
    };
    publish(1).await;
    split(&cloud, "shardId-000000000000").await;
    publish(2).await;
    merge(&cloud, "shardId-000000000002", "shardId-000000000003").await;
    publish(3).await;
    split(&cloud, "shardId-000000000001").await;
    publish(4).await;
    for key in 0..10 {
        until(&format!("k{key} to show its last version"), async || {
            let reply = server.client.get(&format!("/state/k{key}")).await;
            (reply.headers.get("x-state-version")? == "4").then_some(())
        })
        .await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_deleted_and_made_anew_is_followed_from_its_beginning() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    cloud.put(json!({"state": "old stream"}).to_string()).await;
    server.until_state("old stream").await;
    cloud.kinesis().delete_stream().stream_name(STREAM).send().await.unwrap();
    until("the stream to be gone", async || {
        cloud.kinesis().describe_stream_summary().stream_name(STREAM).send().await.is_err().then_some(())
    })
    .await;
    // Long enough for the tailer to have met it, and for another second: this endpoint stamps creations to the second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(server.state().await, "old stream");
    assert!(server.is_ready().await, "readiness never depends on the stream again");
    cloud.publisher.ensure_stream(1).await.unwrap();
    cloud.put(json!({"state": "new stream"}).to_string()).await;
    server.until_state("new stream").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_there_before_its_stream_waits_and_says_so() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server_with(|settings| settings.stream = Some("later".to_owned())).await;
    let reason = until("the reason", async || {
        let reply = server.client.get("/readyz").await.json();
        reply["reason"].as_str().filter(|reason| reason.contains("no stream")).map(str::to_owned)
    })
    .await;
    assert!(reason.contains("\"later\"") && reason.contains("KINESIS_STREAM"), "{reason}");
    let later = hotserve::publisher::Publisher::new(&cloud.aws, "later".to_owned());
    later.ensure_stream(1).await.unwrap();
    later.announce("k", br#"{"state":5}"#).await.unwrap();
    let server = server.ready().await;
    assert_eq!(server.state().await, 5);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kpl_aggregate_is_taken_apart() {
    let cloud = Cloud::start(1).await;
    // Before the server is there, and while it follows.
    cloud.put(include_bytes!("kpl/two.bin")).await;
    let server = cloud.server().await.ready().await;
    for (key, state) in [("one", 1), ("two", 2)] {
        assert_eq!(server.client.get(&format!("/state/{key}")).await.json()["state"], state, "{key}");
    }
    cloud.put(include_bytes!("kpl/hash_keys.bin")).await;
    // The last of six states of one key.
    server.until_state(5).await;
    assert_eq!(server.metric(r#"hotserve_rejections_total{reason="unknown_kind"}"#).await, 0.0);
    server.stop().await;
}
