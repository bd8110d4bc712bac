//! Polling and enhanced fan-out through sockets, with the endpoint behaving as Kinesis does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotserve::config::{ConsumerMode, Settings};
use hotserve::embedded::faults::{Faults, Rules};
use serde_json::json;

use crate::stream::{merge, split};
use crate::support::{Cloud, STREAM, Server, until};

/// A layer that behaves as Kinesis, but lets a subscription be taken over at once.
fn kinesis() -> Arc<Faults> {
    let faults = Faults::new(Rules::default());
    faults.update(|rules| rules.fan_out.takeover_after = Duration::ZERO);
    faults
}

async fn server(cloud: &Cloud, mode: ConsumerMode) -> Server {
    cloud.server_with(|settings: &mut Settings| settings.consumer = Some(mode)).await.ready().await
}

async fn until_subscribed(server: &Server, shards: f64) {
    until("subscriptions", async || (server.metric("hotserve_stream_subscriptions").await >= shards).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slot_shows_its_last_version_whatever_happens_to_the_shards_meanwhile() {
    let faults = kinesis();
    let cloud = Cloud::faulty(2, &faults).await;
    let polling = server(&cloud, ConsumerMode::Poll).await;
    let subscribed = server(&cloud, ConsumerMode::FanOut).await;
    until_subscribed(&subscribed, 2.0).await;

    // Versions of 50 keys at about a hundred a second, while the shards are split, merged and doubled.
    let publish = async {
        for version in 1..=16_u64 {
            for key in 0..50 {
                let message = json!({"key": format!("k{key}"), "version": version, "state": version});
                cloud.put_with_key(&format!("key {key}"), message.to_string()).await;
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        }
    };
    let reshard = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        split(&cloud, "shardId-000000000000").await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        merge(&cloud, "shardId-000000000002", "shardId-000000000003").await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let request = cloud.kinesis().update_shard_count().stream_name(STREAM).target_shard_count(4);
        request.scaling_type(aws_sdk_kinesis::types::ScalingType::UniformScaling).send().await.unwrap();
    };
    tokio::join!(publish, reshard);
    for server in [&polling, &subscribed] {
        for key in 0..50 {
            until(&format!("k{key} to show its last version"), async || {
                let reply = server.client.get(&format!("/state/k{key}")).await;
                (reply.headers.get("x-state-version")? == "16").then_some(())
            })
            .await;
        }
    }
    assert_eq!(polling.metric("hotserve_stream_subscriptions").await, 0.0);
    until_subscribed(&subscribed, 1.0).await;
    polling.stop().await;
    subscribed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_falls_silent_is_noticed_and_replaced() {
    let faults = kinesis();
    let cloud = Cloud::faulty(1, &faults).await;
    let mut config = Settings {
        stream: Some(STREAM.to_owned()),
        host: Some([127, 0, 0, 1].into()),
        port: Some(0),
        consumer: Some(ConsumerMode::FanOut),
        ..Settings::default()
    }
    .validate()
    .unwrap();
    config.stream.silence = Duration::from_secs(2);
    let server = Server::of(&cloud.aws, config).await.ready().await;
    until_subscribed(&server, 1.0).await;
    cloud.put(json!({"state": 1}).to_string()).await;
    server.until_state(1).await;

    faults.update(|rules| rules.fan_out.blackhole = true);
    cloud.put(json!({"state": 2}).to_string()).await;
    // Polled, once it is noticed: the new subscription does not open.
    server.until_state(2).await;
    faults.update(|rules| rules.fan_out.blackhole = false);
    cloud.put(json!({"state": 3}).to_string()).await;
    server.until_state(3).await;
    until_subscribed(&server, 1.0).await;
    server.stop().await;

    let consumers = hotserve::source::kinesis::consumers::Consumers::new(&cloud.aws, STREAM);
    let left = consumers.list().await.unwrap();
    assert!(
        left.iter().all(|consumer| consumer.status != hotserve::source::kinesis::consumers::ConsumerStatus::Active)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_last_record_is_found_in_as_many_calls_as_the_model_says() {
    const HOUR: Duration = Duration::from_secs(3600);
    let faults = Faults::new(Rules::default());
    faults.set_clock_offset(-24 * 3_600_000);
    let cloud = Cloud::faulty(1, &faults).await;
    // 23 hours of other traffic, and an hour of nothing.
    for minute in 0..23 * 12 {
        cloud.put(json!({"state": minute}).to_string()).await;
        faults.advance(Duration::from_secs(300));
    }
    cloud.put(json!({"state": "last"}).to_string()).await;
    faults.advance(HOUR);
    let read = "kinesis:GetRecords".parse().unwrap();
    let before = faults.count(&read).calls;
    let begun = Instant::now();
    let server = cloud.server().await.ready().await;
    let calls = faults.count(&read).calls - before;
    println!("an hour-old last record: {calls} calls of GetRecords, {:?}; the model says 46", begun.elapsed());
    assert_eq!(server.state().await, "last");
    assert!((37..=55).contains(&calls), "{calls} calls");
    server.stop().await;

    cloud.put(json!({"state": "news"}).to_string()).await;
    let begun = Instant::now();
    let server = cloud.server().await.ready().await;
    println!("a record seconds old: ready after {:?}", begun.elapsed());
    assert_eq!(server.state().await, "news");
    server.stop().await;
}
