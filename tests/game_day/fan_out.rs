//! Subscriptions, and what goes wrong with them.

use std::time::Instant;

use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::types::{
    ConsumerStatus, ShardIteratorType, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream,
};
use hotserve::embedded::faults::{Answer, Fault};

use super::*;
use crate::support::until;

const PATIENCE: Duration = Duration::from_secs(5);

async fn consumer(cloud: &Cloud) -> String {
    let client = client(cloud);
    let summary = client.describe_stream_summary().stream_name(STREAM).send().await.unwrap();
    let stream = summary.stream_description_summary.unwrap().stream_arn;
    let made = client.register_stream_consumer().stream_arn(stream).consumer_name("c").send().await.unwrap();
    let arn = made.consumer.unwrap().consumer_arn;
    until("the consumer", async || {
        let of_it = client.describe_stream_consumer().consumer_arn(&arn).send().await.unwrap();
        (of_it.consumer_description.unwrap().consumer_status == ConsumerStatus::Active).then_some(())
    })
    .await;
    arn
}

async fn subscribe(cloud: &Cloud, consumer: &str, start: StartingPosition) -> Result<SubscribeToShardOutput, String> {
    let ask = client(cloud).subscribe_to_shard().consumer_arn(consumer).shard_id(SHARD).starting_position(start);
    match tokio::time::timeout(Duration::from_secs(2), ask.send()).await {
        Ok(answer) => answer.map_err(|error| code(&error)),
        Err(_) => Err("silence".to_owned()),
    }
}

fn from(kind: ShardIteratorType) -> StartingPosition {
    StartingPosition::builder().r#type(kind).build().unwrap()
}

fn after(sequence: &str) -> StartingPosition {
    let kind = ShardIteratorType::AfterSequenceNumber;
    StartingPosition::builder().r#type(kind).sequence_number(sequence).build().unwrap()
}

async fn event(subscription: &mut SubscribeToShardOutput) -> Result<Option<SubscribeToShardEvent>, String> {
    match tokio::time::timeout(PATIENCE, subscription.event_stream.recv()).await {
        Ok(Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event)))) => Ok(Some(event)),
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(other)) => panic!("{other:?}"),
        // The kind of an exception is in its frame's header, and no code in its body.
        Ok(Err(error)) if error.as_service_error().is_some_and(|error| error.is_resource_in_use_exception()) => {
            Err("ResourceInUseException".to_owned())
        }
        Ok(Err(error)) => Err(code(&error)),
        Err(_) => Err("silence".to_owned()),
    }
}

/// Events until one has records.
async fn records(subscription: &mut SubscribeToShardOutput) -> SubscribeToShardEvent {
    loop {
        let event = event(subscription).await.unwrap().unwrap();
        if !event.records.is_empty() {
            return event;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_has_true_stamps_and_goes_on_where_another_ended() {
    let faults = faults_before("[fan-out]\ntakeover-after = '0s'", HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    let consumer = consumer(&cloud).await;
    let mut latest = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap();
    let idle = event(&mut latest).await.unwrap().unwrap();
    // Nothing was read: to go on from there must not lose what comes now.
    let put_ms = faults.now_ms();
    cloud.put("1").await;
    let first = records(&mut latest).await;
    assert_eq!(texts(&first.records), ["1"]);
    assert!(u64::try_from(arrival(&first.records[0])).unwrap().abs_diff(put_ms) < 1_000);
    assert_eq!(first.millis_behind_latest, 0);

    let mut again = subscribe(&cloud, &consumer, after(&idle.continuation_sequence_number)).await.unwrap();
    assert_eq!(texts(&records(&mut again).await.records), ["1"]);
    assert_eq!(event(&mut latest).await.unwrap_err(), "ResourceInUseException", "taken over");
    let next = cloud.put("2").await.sequence_number;
    let mut third = subscribe(&cloud, &consumer, after(&first.continuation_sequence_number)).await.unwrap();
    let second = records(&mut third).await;
    assert_eq!(texts(&second.records), ["2"]);
    assert_eq!(second.continuation_sequence_number, next);
    let at = aws_smithy_types::DateTime::from_millis(arrival(&second.records[0]));
    let start = StartingPosition::builder().r#type(ShardIteratorType::AtTimestamp).timestamp(at).build().unwrap();
    let mut at_time = subscribe(&cloud, &consumer, start).await.unwrap();
    assert_eq!(texts(&records(&mut at_time).await.records).last().unwrap(), "2");
    faults.advance(10 * MINUTE);
    let mut behind = subscribe(&cloud, &consumer, from(ShardIteratorType::TrimHorizon)).await.unwrap();
    let far = event(&mut behind).await.unwrap().unwrap();
    assert!(far.millis_behind_latest > 290_000, "{far:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_subscription_within_five_seconds_is_refused() {
    let faults = faults("");
    let cloud = Cloud::faulty(1, &faults).await;
    let consumer = consumer(&cloud).await;
    let _held = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap();
    let refused = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap_err();
    assert_eq!(refused, "ResourceInUseException");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_to_a_closed_shard_ends_with_its_children() {
    let faults = faults("");
    let cloud = Cloud::faulty(1, &faults).await;
    let consumer = consumer(&cloud).await;
    cloud.put("1").await;
    let mut subscription = subscribe(&cloud, &consumer, from(ShardIteratorType::TrimHorizon)).await.unwrap();
    assert_eq!(texts(&records(&mut subscription).await.records), ["1"]);
    let middle = (u128::MAX / 2).to_string();
    let split = client(&cloud).split_shard().stream_name(STREAM).shard_to_split(SHARD).new_starting_hash_key(middle);
    split.send().await.unwrap();
    let mut children = Vec::new();
    while let Some(event) = event(&mut subscription).await.unwrap() {
        children.push((event.child_shards().len(), event.continuation_sequence_number.is_empty()));
        assert!(children.len() < 100, "it never ends: {children:?}");
    }
    let (last, before) = children.split_last().unwrap();
    assert_eq!(*last, (2, true), "no place to go on from");
    assert!(before.iter().all(|event| *event == (0, false)), "{before:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_takes_subscriptions_and_new_ones_until_it_is_gone() {
    let faults = faults("[fan-out]\ntakeover-after = '0s'\nheartbeat = '100ms'");
    let cloud = Cloud::faulty(1, &faults).await;
    let consumer = consumer(&cloud).await;
    let mut old = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap();
    event(&mut old).await.unwrap().unwrap();
    faults.update(|rules| rules.fan_out.blackhole = true);
    let silent = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await;
    assert_eq!(silent.unwrap_err(), "silence", "send() waits for the first frame");
    cloud.put("1").await;
    faults.update(|rules| rules.fan_out.blackhole = false);
    // What was under way when it closed may have come through.
    let end = loop {
        match event(&mut old).await {
            Ok(Some(event)) => assert!(event.records.is_empty(), "{event:?}"),
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err(), "silence", "for ever");
    let mut new = subscribe(&cloud, &consumer, from(ShardIteratorType::TrimHorizon)).await.unwrap();
    assert_eq!(texts(&records(&mut new).await.records), ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_ends_early_or_is_cut_or_stops_after_its_first_frame() {
    let faults = faults("[fan-out]\ntakeover-after = '0s'\nheartbeat = '50ms'\nsession = '400ms'");
    let cloud = Cloud::faulty(1, &faults).await;
    let consumer = consumer(&cloud).await;
    let started = Instant::now();
    let mut ends = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap();
    while event(&mut ends).await.unwrap().is_some() {}
    assert!(started.elapsed() >= Duration::from_millis(400));

    faults.update(|rules| {
        rules.fan_out.session = Duration::from_secs(300);
        rules.fan_out.cut_after = Some(Duration::from_millis(400));
    });
    let mut cut = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap();
    let end = loop {
        match event(&mut cut).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err(), "none", "no word of why");

    let subscribe_action = action("kinesis:SubscribeToShard");
    faults.update(|rules| {
        rules.fan_out.cut_after = None;
        rules.faults = vec![Fault::on(subscribe_action.clone(), Answer::HangBody)];
    });
    let mut stops = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap();
    assert_eq!(event(&mut stops).await.unwrap_err(), "silence");
    faults.update(|rules| rules.faults = vec![Fault::on(subscribe_action, Answer::ResourceInUse)]);
    let refused = subscribe(&cloud, &consumer, from(ShardIteratorType::Latest)).await.unwrap_err();
    assert_eq!(refused, "ResourceInUseException");
}
