//! What goes wrong with calls and with polling.

use std::time::Instant;

use aws_sdk_kinesis::types::ShardIteratorType::{Latest, TrimHorizon};
use hotserve::embedded::faults::{Answer, Fault, MillisBehind};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sixth_read_of_a_second_is_throttled() {
    let faults = faults("[kinesis]\nreads-per-second = 5");
    let cloud = Cloud::faulty(2, &faults).await;
    let (first, other) = (iterator(&cloud, Latest).await, iterator_of(&cloud, "shardId-000000000001", Latest).await);
    // Two clients share what the shard gives.
    let clients = [client(&cloud), client(&cloud)];
    let read = async |n: usize, iterator: &str| clients[n % 2].get_records().shard_iterator(iterator).send().await;
    let started = Instant::now();
    for n in 0..5 {
        read(n, &first).await.unwrap();
    }
    let throttled = read(5, &first).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(200), "or the bucket may have filled again");
    assert_eq!(code(&throttled), "ProvisionedThroughputExceededException");
    let expected = format!("Rate exceeded for shard {SHARD} in stream {STREAM} under account 000000000000.");
    assert_eq!(throttled.message(), Some(expected.as_str()));
    read(0, &other).await.unwrap();
    tokio::time::sleep(Duration::from_millis(250)).await;
    read(1, &first).await.unwrap();
    let count = faults.count_of_shard(&action("kinesis:GetRecords"), SHARD);
    assert_eq!((count.calls, count.throttled), (7, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_answer_is_what_a_client_sees() {
    let faults = faults("");
    let cloud = Cloud::faulty(1, &faults).await;
    cloud.put("1").await;
    let start = iterator(&cloud, TrimHorizon).await;
    for (answer, status, expected) in [
        (Answer::InternalFailure, 500, "InternalFailure"),
        (Answer::Unavailable, 503, "ServiceUnavailable"),
        (Answer::Throttle, 400, "ProvisionedThroughputExceededException"),
        (Answer::LimitExceeded, 400, "LimitExceededException"),
        (Answer::KmsThrottling, 400, "KMSThrottlingException"),
        (Answer::AccessDenied, 400, "AccessDeniedException"),
        (Answer::NotFound, 400, "ResourceNotFoundException"),
        (Answer::ResourceInUse, 400, "ResourceInUseException"),
        (Answer::ExpiredIterator, 400, "ExpiredIteratorException"),
        (Answer::Html, 502, "none"),
    ] {
        faults.update(|rules| {
            rules.faults = vec![Fault { times: Some(1), ..Fault::on(action("kinesis:GetRecords"), answer) }];
        });
        let error = client(&cloud).get_records().shard_iterator(&start).send().await.unwrap_err();
        assert_eq!(code(&error), expected, "{answer:?}: {error:?}");
        assert_eq!(error.raw_response().unwrap().status().as_u16(), status, "{answer:?}");
        assert_eq!(texts(&page(&cloud, &start).await.records), ["1"], "once only");
    }

    faults.update(|rules| rules.faults = vec![Fault::on(action("kinesis:GetRecords"), Answer::CutBody)]);
    let cut = client(&cloud).get_records().shard_iterator(&start).send().await.unwrap_err();
    assert!(matches!(cut, SdkError::DispatchFailure(_) | SdkError::ResponseError(_)), "{cut:?}");
    for hang in [Answer::Hang, Answer::HangBody] {
        faults.update(|rules| rules.faults = vec![Fault::on(action("kinesis:GetRecords"), hang)]);
        let (client, patience) = (client(&cloud), Duration::from_millis(300));
        let call = client.get_records().shard_iterator(&start).send();
        assert!(tokio::time::timeout(patience, call).await.is_err(), "{hang:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_denied_is_denied_and_nothing_else() {
    let faults = faults("");
    let cloud = Cloud::faulty(1, &faults).await;
    faults.update(|rules| rules.deny = vec![action("kinesis:DescribeStreamSummary"), action("s3:GetObject")]);
    let describe = || async { client(&cloud).describe_stream_summary().stream_name(STREAM).send().await };
    let denied = describe().await.unwrap_err();
    assert_eq!(code(&denied), "AccessDeniedException");
    assert!(denied.message().unwrap().contains("not authorized to perform: kinesis:DescribeStreamSummary"));
    iterator(&cloud, Latest).await;
    faults.update(|rules| rules.deny.clear());
    describe().await.unwrap();
    assert_eq!(faults.count(&action("kinesis:DescribeStreamSummary")).denied, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_whether_it_would_be_allowed() {
    let faults = faults("deny = ['kinesis:PutRecord']");
    let cloud = Cloud::faulty(1, &faults).await;
    let start = iterator(&cloud, TrimHorizon).await;
    let allowed = client(&cloud).get_records().shard_iterator(&start).dry_run(true).send().await.unwrap_err();
    assert_eq!(code(&allowed), "DryRunOperationException");
    let put =
        client(&cloud).put_record().stream_name(STREAM).partition_key("k").data("1".to_owned().into_bytes().into());
    assert_eq!(code(&put.dry_run(true).send().await.unwrap_err()), "AccessDeniedException");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_slow_when_they_are_to_be() {
    let faults = faults("[[latency]]\non = ['kinesis:ListShards']\nmin = '150ms'\nmax = '200ms'");
    let cloud = Cloud::faulty(1, &faults).await;
    let client = client(&cloud);
    let started = Instant::now();
    client.list_shards().stream_name(STREAM).send().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(150), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_distance_to_the_tip_can_lie() {
    let faults = faults_before("", HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    let start = iterator(&cloud, TrimHorizon).await;
    let told = async |lie: MillisBehind| {
        faults.update(|rules| rules.kinesis.millis_behind = lie);
        page(&cloud, &start).await.millis_behind_latest
    };
    assert_eq!(told(MillisBehind::Constant(Duration::from_secs(7))).await, Some(7_000));
    assert_eq!(told(MillisBehind::Absent).await, None);
    let mut spurious = Vec::new();
    faults.update(|rules| rules.kinesis.millis_behind = MillisBehind::Spurious(Duration::from_secs(2)));
    for _ in 0..30 {
        spurious.push(page(&cloud, &start).await.millis_behind_latest.unwrap());
    }
    assert!(spurious.contains(&0) && spurious.iter().any(|ms| (1..=2_000).contains(ms)), "{spurious:?}");
    faults.advance(10 * MINUTE);
    let begin = iterator(&cloud, TrimHorizon).await;
    assert!(page(&cloud, &begin).await.millis_behind_latest.unwrap() >= 290_000, "a backlog is told truly");
    faults.update(|rules| rules.kinesis.millis_behind = MillisBehind::Zero);
    assert_eq!(page(&cloud, &begin).await.millis_behind_latest, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_can_be_empty_first_and_small() {
    let faults = faults("[kinesis]\nempty-pages = 2\npage-limit = 2");
    let cloud = Cloud::faulty(1, &faults).await;
    for n in 0..3 {
        cloud.put(n.to_string()).await;
    }
    let start = iterator(&cloud, TrimHorizon).await;
    let sizes: Vec<_> = pages(&cloud, start).await.iter().map(|page| page.records.len()).collect();
    assert_eq!(sizes, [0, 0, 2, 0, 0, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_shard_can_hide_its_children_or_never_end() {
    let faults = faults("[kinesis]\nhide-children = true");
    let cloud = Cloud::faulty(2, &faults).await;
    let merge = client(&cloud).merge_shards().stream_name(STREAM).shard_to_merge(SHARD);
    merge.adjacent_shard_to_merge("shardId-000000000001").send().await.unwrap();
    crate::support::until("the child", async || {
        let shards = client(&cloud).list_shards().stream_name(STREAM).send().await.unwrap().shards.unwrap();
        (shards.len() == 3).then_some(())
    })
    .await;
    let start = iterator(&cloud, TrimHorizon).await;
    let last = page(&cloud, &start).await;
    assert!(last.next_shard_iterator.is_none() && last.child_shards().is_empty(), "{last:?}");
    faults.update(|rules| rules.kinesis.hide_children = false);
    assert_eq!(page(&cloud, &start).await.child_shards()[0].parent_shards.len(), 2);
    faults.update(|rules| rules.kinesis.endless_shards = true);
    assert!(page(&cloud, &start).await.next_shard_iterator.is_some());
}
