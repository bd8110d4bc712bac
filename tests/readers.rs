//! Polling and enhanced fan-out through sockets, with the endpoint behaving as Kinesis does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hotserve::app::Boards;
use hotserve::aws::{Aws, Retries};
use hotserve::config::{Config, ConsumerMode, Settings, StreamConfig};
use hotserve::embedded::faults::{Faults, Rules};
use hotserve::manifest::object::ManifestObject;
use hotserve::publisher::{Draft, Publisher};
use hotserve::source::kinesis::KinesisSource;
use hotserve::source::kinesis::consumers::{ConsumerStatus, Consumers};
use hotserve::source::{Source as _, SourceEvent};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::stream::{merge, split};
use crate::support::{BUCKET, Cloud, STREAM, Server, until};

/// A layer that behaves as Kinesis, but lets a subscription be taken over at once.
fn kinesis() -> Arc<Faults> {
    let faults = Faults::new(Rules::default());
    faults.update(|rules| rules.fan_out.takeover_after = Duration::ZERO);
    faults
}

async fn server(cloud: &Cloud, mode: ConsumerMode) -> Server {
    cloud.server_with(|settings: &mut Settings| settings.consumer = Some(mode)).await.ready().await
}

/// The configuration of a server that subscribes.
fn subscriber() -> Config {
    let settings = Settings {
        stream: Some(STREAM.to_owned()),
        host: Some([127, 0, 0, 1].into()),
        port: Some(0),
        consumer: Some(ConsumerMode::FanOut),
        ..Settings::default()
    };
    settings.validate().unwrap()
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
    let mut config = subscriber();
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

    let consumers = Consumers::new(&cloud.aws, STREAM);
    let left = consumers.list().await.unwrap();
    assert!(left.iter().all(|consumer| consumer.status != ConsumerStatus::Active));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_renewed_without_a_gap() {
    let faults = kinesis();
    let cloud = Cloud::faulty(1, &faults).await;
    let mut config = subscriber();
    config.stream.renew = Duration::from_millis(500);
    let server = Server::of(&cloud.aws, config).await.ready().await;
    until_subscribed(&server, 1.0).await;
    let (subscribe, read) = ("kinesis:SubscribeToShard".parse().unwrap(), "kinesis:GetRecords".parse().unwrap());
    let polls = faults.count(&read).calls;
    for number in 0..200 {
        cloud.put(json!({"key": format!("k{number}"), "state": number}).to_string()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("the last one", async || {
        (server.client.get("/state/k199").await.status == http::StatusCode::OK).then_some(())
    })
    .await;
    for number in 0..200 {
        assert_eq!(server.client.get(&format!("/state/k{number}")).await.status, http::StatusCode::OK, "k{number}");
    }
    assert!(faults.count(&subscribe).calls >= 6, "{:?}", faults.count(&subscribe));
    assert_eq!(faults.count(&read).calls, polls, "nothing was polled");
    server.stop().await;
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

/// How long the fleet is watched, in seconds; three minutes or more for figures worth a comparison.
fn watch() -> Duration {
    let seconds = std::env::var("HOTSERVE_TEST_FLEET_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

/// 20 tailers poll one shard that answers five reads a second to all of them.
async fn fleet(fleet_size: Option<u32>) {
    const TAILERS: usize = 20;
    let faults = Faults::new(Rules::default());
    let cloud = Cloud::faulty(1, &faults).await;
    cloud.put("0").await;
    faults.update(|rules| rules.kinesis.reads_per_second = Some(5));
    let shutdown = CancellationToken::new();
    let (outlet, mut heard) = mpsc::unbounded_channel::<(usize, u64, Instant)>();
    for tailer in 0..TAILERS {
        let Boards { metrics, status } = Boards::default();
        let config = StreamConfig { fleet_size, ..StreamConfig::named(STREAM) };
        let source = Box::new(KinesisSource::new(cloud.aws.clone(), config, metrics, status));
        let (records, mut events) = mpsc::channel(4);
        tokio::spawn(source.run(records, shutdown.clone()));
        let outlet = outlet.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let SourceEvent::Records(records) = event else { continue };
                for record in records {
                    let number = std::str::from_utf8(&record.data).unwrap().parse().unwrap();
                    outlet.send((tailer, number, Instant::now())).unwrap();
                }
            }
        });
    }
    // They have all found the last record before the clock runs.
    let mut newest = [None; TAILERS];
    while newest.iter().any(Option::is_none) {
        let (tailer, number, _) = heard.recv().await.unwrap();
        newest[tailer] = Some(number);
    }
    let read = "kinesis:GetRecords".parse().unwrap();
    let before = faults.count(&read);
    let (begun, mut put_at) = (Instant::now(), vec![Instant::now()]);
    let mut lags = vec![];
    let mut next = tokio::time::interval(Duration::from_millis(500));
    while begun.elapsed() < watch() {
        tokio::select! {
            _ = next.tick() => {
                put_at.push(Instant::now());
                cloud.put((put_at.len() - 1).to_string()).await;
            }
            Some((tailer, number, at)) = heard.recv() => {
                newest[tailer] = newest[tailer].max(Some(number));
                lags.extend(put_at.get(number as usize).map(|put| at.saturating_duration_since(*put).as_secs_f64()));
            }
        }
    }
    let count = faults.count(&read);
    let last = Some(put_at.len() as u64 - 1);
    while newest.iter().any(|newest| *newest < last) {
        let (tailer, number, at) = tokio::time::timeout(Duration::from_secs(120), heard.recv()).await.unwrap().unwrap();
        newest[tailer] = newest[tailer].max(Some(number));
        lags.push(at.saturating_duration_since(put_at[number as usize]).as_secs_f64());
    }
    shutdown.cancel();
    lags.sort_by(f64::total_cmp);
    let at = |share: usize| lags[(lags.len() - 1) * share / 100];
    let (calls, throttled) = (count.calls - before.calls, count.throttled - before.throttled);
    println!(
        "{TAILERS} tailers, fleet size {fleet_size:?}, {:?}: lag p50 {:.2} s, p99 {:.2} s; {throttled} of {calls} reads throttled",
        watch(),
        at(50),
        at(99)
    );
    // Each got each record, once.
    assert_eq!(lags.len(), TAILERS * (put_at.len() - 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_tailers_of_one_throttled_shard_all_get_everything() {
    tokio::join!(fleet(None), fleet(Some(20)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_records_trimmed_a_fresh_instance_is_right_from_the_manifest() {
    let faults = kinesis();
    let cloud = Cloud::faulty(1, &faults).await;
    let manifest = format!("s3://{BUCKET}/manifest.json");
    let object = |aws: &Aws| {
        ManifestObject::new(
            aws,
            Retries::Standard,
            manifest.parse().unwrap(),
            hotserve::manifest::Limits::default().bytes,
        )
    };
    let publisher = Publisher::new(&cloud.aws, STREAM.to_owned()).with_manifest(Some(object(&cloud.aws)));
    for value in ["1", "2"] {
        let json = serde_json::value::RawValue::from_string(value.to_owned()).unwrap();
        publisher.publish(Draft::state("pricing".parse().unwrap(), None, json)).await.unwrap();
    }
    faults.trim_all(STREAM);
    let server = cloud.server_with(|settings| settings.manifest = Some(manifest.clone())).await.ready().await;
    let reply = server.client.get("/state/pricing").await;
    assert_eq!((reply.text().as_str(), reply.header("x-state-version")), (r#"{"state":2}"#, "2"));
    server.stop().await;

    // Without it: ready, with the initial state.
    let server = cloud.server().await.ready().await;
    assert_eq!(server.state().await, 0);
    assert_eq!(server.client.get("/state/pricing").await.status, http::StatusCode::NOT_FOUND);
    server.stop().await;
}

/// Times served, as a line for a person.
fn print(what: &str, times_ms: &mut [f64]) {
    times_ms.sort_by(f64::total_cmp);
    let at = |share: usize| times_ms[(times_ms.len() - 1) * share / 100];
    println!("{what}: p50 {:.2} ms, p99 {:.2} ms over {}", at(50), at(99), times_ms.len());
}

/// When a server serves this version.
async fn served(server: &Server, version: u64) -> Instant {
    loop {
        let snapshot = server.http.serving.snapshot();
        let rank = snapshot.states.values().next().and_then(|state| state.rank.version());
        if rank.is_some_and(|rank| rank.get() >= version) {
            return Instant::now();
        }
        // A sleep would take a millisecond.
        tokio::task::yield_now().await;
    }
}

/// Not a test of a time: it prints how long a record takes to be served, by fan-out and by polling, beside the SDK alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_fan_out_a_record_is_served_as_soon_as_it_is_delivered() {
    const PUTS: u64 = 60;
    let puts = std::env::var("HOTSERVE_TEST_PUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(PUTS);
    let faults = kinesis();
    let cloud = Cloud::faulty(1, &faults).await;
    let subscribed = server(&cloud, ConsumerMode::FanOut).await;
    let polling = server(&cloud, ConsumerMode::Poll).await;
    until_subscribed(&subscribed, 1.0).await;
    let consumers = Consumers::new(&cloud.aws, STREAM);
    let mut consumer = consumers.register("alone").await.unwrap();
    while consumer.status != ConsumerStatus::Active {
        tokio::time::sleep(Duration::from_millis(100)).await;
        consumer = consumers.describe(&consumer.arn).await.unwrap();
    }
    let position = aws_sdk_kinesis::types::StartingPosition::builder()
        .r#type(aws_sdk_kinesis::types::ShardIteratorType::Latest)
        .build()
        .unwrap();
    let request = cloud.kinesis().subscribe_to_shard().consumer_arn(consumer.arn).shard_id("shardId-000000000000");
    let mut alone = request.starting_position(position).send().await.unwrap();
    let (heard, mut hears) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        use aws_sdk_kinesis::types::SubscribeToShardEventStream as Event;
        while let Ok(Some(Event::SubscribeToShardEvent(event))) = alone.event_stream.recv().await {
            event.records.iter().for_each(|_| heard.send(Instant::now()).unwrap());
        }
    });
    let (mut sdk, mut fan_out, mut poll) = (vec![], vec![], vec![]);
    for version in 1..=puts {
        let put = Instant::now();
        let ((), sdk_at, fan_out_at, poll_at) = tokio::join!(
            async {
                cloud.put(json!({"version": version, "state": version}).to_string()).await;
            },
            async { hears.recv().await.unwrap() },
            served(&subscribed, version),
            served(&polling, version)
        );
        sdk.push((sdk_at - put).as_secs_f64() * 1e3);
        fan_out.push((fan_out_at - put).as_secs_f64() * 1e3);
        poll.push((poll_at - put).as_secs_f64() * 1e3);
    }
    print("another subscription, the SDK alone", &mut sdk);
    print("served, fan-out", &mut fan_out);
    print("served, polling", &mut poll);
    subscribed.stop().await;
    polling.stop().await;

    // Each subscription gets a record when the endpoint comes round to it; what hotserve adds is from there on.
    let (server, feeder) = Server::fed().await;
    let mut added = vec![];
    for version in 1..=puts {
        let handed_on = Instant::now();
        feeder.put(json!({"version": version, "state": version}).to_string()).await;
        added.push((served(&server, version).await - handed_on).as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    print("added: from handed on to served", &mut added);
    server.stop().await;
}
