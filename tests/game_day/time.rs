//! Time as Kinesis tells it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_kinesis::types::ShardIteratorType::{
    self, AfterSequenceNumber, AtSequenceNumber, AtTimestamp, Latest, TrimHorizon,
};
use aws_smithy_types::DateTime;
use hotserve::embedded::faults::Faults;

use super::*;

async fn at_time(cloud: &Cloud, ms: i64) -> Result<String, String> {
    let ask = client(cloud).get_shard_iterator().stream_name(STREAM).shard_id(SHARD).shard_iterator_type(AtTimestamp);
    let answer = ask.timestamp(DateTime::from_millis(ms)).send().await;
    answer.map(|answer| answer.shard_iterator.unwrap()).map_err(|error| {
        assert_eq!(code(&error), "InvalidArgumentException", "{error:?}");
        error.message().unwrap().to_owned()
    })
}

async fn at_sequence(cloud: &Cloud, kind: ShardIteratorType, sequence: &str) -> Result<String, String> {
    let ask = client(cloud).get_shard_iterator().stream_name(STREAM).shard_id(SHARD).shard_iterator_type(kind);
    let answer = ask.starting_sequence_number(sequence).send().await;
    answer.map(|answer| answer.shard_iterator.unwrap()).map_err(|error| code(&error))
}

fn now(faults: &Faults) -> i64 {
    i64::try_from(faults.now_ms()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_an_hour_old_in_quiet_time_is_many_pages_from_either_end() {
    let faults = faults_before("", 2 * HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    faults.advance(HOUR);
    let put_ms = now(&faults);
    cloud.put("old").await;
    faults.advance(HOUR);

    let start = iterator(&cloud, TrimHorizon).await;
    let pages = pages(&cloud, start).await;
    assert!((24..=25).contains(&pages.len()), "two hours at five minutes a page: {}", pages.len());
    let with: Vec<_> = pages.iter().enumerate().filter(|(_, page)| !page.records.is_empty()).collect();
    let [(at, page)] = with.as_slice() else { panic!("{with:?}") };
    assert!((11..=12).contains(at), "{at}");
    assert_eq!(texts(&page.records), ["old"]);
    assert!((put_ms..put_ms + 1_000).contains(&arrival(&page.records[0])), "{:?}", page.records);
    for (number, page) in pages.iter().enumerate() {
        let left = 120 - 5 * (i64::try_from(number).unwrap() + 1);
        let behind = page.millis_behind_latest.unwrap() / 60_000;
        assert!((left.max(0) - 1..=left.max(0)).contains(&behind), "page {number} is {behind} min behind");
    }

    let read = |page: i64| page.max(0);
    let behind = |ms: i64| read(now(&faults) - ms);
    let from = at_time(&cloud, put_ms - 10_000).await.unwrap();
    let page = super::page(&cloud, &from).await;
    assert_eq!(texts(&page.records), ["old"]);
    let told = page.millis_behind_latest.unwrap();
    assert!((told - behind(put_ms - 10_000 + 300_000)).abs() < 1_000, "{told}");
    let after = at_time(&cloud, arrival(&page.records[0]) + 1).await.unwrap();
    assert!(super::page(&cloud, &after).await.records.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_future_is_refused_and_the_date_follows_the_clock() {
    let faults = faults_before("", 24 * HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    let clock = Arc::new(ServerClock::default());
    let kinesis = cloud.aws.kinesis(Retries::Ours, &clock);
    let created = || async {
        let summary = kinesis.describe_stream_summary().stream_name(STREAM).send().await.unwrap();
        summary.stream_description_summary.unwrap().stream_creation_timestamp.to_millis().unwrap()
    };
    let first = created().await;
    let off = |ms: u64| clock.now_ms().abs_diff(ms);
    assert!(off(faults.now_ms()) < 1_500, "the Date header: {} ms off", off(faults.now_ms()));
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    assert!(u128::from(clock.now_ms()) + 86_000_000 < real);

    let refused = at_time(&cloud, now(&faults) + 60_000).await.unwrap_err();
    assert!(refused.contains("cannot be greater than the currentTimestampInMillis"), "{refused}");
    at_time(&cloud, now(&faults) - 1).await.unwrap();

    cloud.put("1").await;
    let oldest = now(&faults);
    faults.advance(HOUR);
    assert_eq!(created().await, first, "the creation stays");
    assert!(first <= oldest);
    assert!(off(faults.now_ms()) < 1_500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stamp_is_of_milliseconds_and_a_time_finds_its_record() {
    let faults = faults_before("", HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    for n in 0..4 {
        cloud.put(n.to_string()).await;
        faults.advance(Duration::from_millis(333));
    }
    let start = iterator(&cloud, TrimHorizon).await;
    let records = page(&cloud, &start).await.records;
    assert!(records.iter().any(|record| arrival(record) % 1_000 != 0), "{records:?}");
    for (n, record) in records.iter().enumerate() {
        let from = at_time(&cloud, arrival(record)).await.unwrap();
        assert_eq!(texts(&page(&cloud, &from).await.records).first(), Some(&n.to_string()));
    }
    let second = records[1].sequence_number.as_str();
    let at = at_sequence(&cloud, AtSequenceNumber, second).await.unwrap();
    assert_eq!(texts(&page(&cloud, &at).await.records), ["1", "2", "3"]);
    let after = at_sequence(&cloud, AfterSequenceNumber, second).await.unwrap();
    assert_eq!(texts(&page(&cloud, &after).await.records), ["2", "3"]);
    let latest = iterator(&cloud, Latest).await;
    cloud.put("new").await;
    assert!(page(&cloud, &latest).await.next_shard_iterator.is_some());
    let last = page(&cloud, &latest).await;
    assert_eq!(last.millis_behind_latest, Some(0));
    assert_eq!(texts(&last.records), ["new"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_trimmed_is_gone() {
    let faults = faults_before("", 30 * HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    let mut puts = Vec::new();
    for n in 0..3 {
        puts.push((cloud.put(n.to_string()).await.sequence_number, now(&faults)));
        faults.advance(HOUR);
    }
    faults.trim_before(STREAM, u64::try_from(puts[1].1).unwrap() + 1_000);
    let start = iterator(&cloud, TrimHorizon).await;
    let all: Vec<_> = pages(&cloud, start).await.into_iter().flat_map(|page| texts(&page.records)).collect();
    assert_eq!(all, ["2"]);
    let of = |n: usize| puts[n].0.to_string();
    for kind in [AtSequenceNumber, AfterSequenceNumber] {
        assert_eq!(at_sequence(&cloud, kind, &of(1)).await.unwrap_err(), "InvalidArgumentException");
    }
    at_sequence(&cloud, AfterSequenceNumber, &of(2)).await.unwrap();
    let older = at_time(&cloud, puts[0].1).await.unwrap();
    let from = pages(&cloud, older).await.into_iter().flat_map(|page| texts(&page.records)).collect::<Vec<_>>();
    assert_eq!(from, ["2"]);

    // Retention does the same: a day after it was put, the last one is gone too.
    faults.advance(25 * HOUR);
    let start = iterator(&cloud, TrimHorizon).await;
    assert!(page(&cloud, &start).await.records.is_empty());
    assert_eq!(at_sequence(&cloud, AfterSequenceNumber, &of(2)).await.unwrap_err(), "InvalidArgumentException");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_iterator_expires_with_the_clock() {
    let faults = faults_before("", HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    let start = iterator(&cloud, TrimHorizon).await;
    faults.advance(4 * MINUTE);
    page(&cloud, &start).await;
    faults.advance(2 * MINUTE);
    let expired = client(&cloud).get_records().shard_iterator(&start).send().await.unwrap_err();
    assert_eq!(code(&expired), "ExpiredIteratorException");
    assert!(expired.message().unwrap().contains("tolerated delay of 300000 milliseconds"), "{expired:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_shard_ends_with_its_children_and_they_begin_then() {
    let faults = faults_before("", 2 * HOUR);
    let cloud = Cloud::faulty(1, &faults).await;
    cloud.put("parent").await;
    faults.advance(HOUR);
    let middle = (u128::MAX / 2).to_string();
    let split = client(&cloud).split_shard().stream_name(STREAM).shard_to_split(SHARD).new_starting_hash_key(middle);
    split.send().await.unwrap();
    crate::support::until("the children", async || {
        let shards = client(&cloud).list_shards().stream_name(STREAM).send().await.unwrap().shards.unwrap();
        (shards.len() == 3).then_some(())
    })
    .await;
    faults.advance(HOUR);
    cloud.put_with_key("a", "child").await;

    let start = iterator(&cloud, TrimHorizon).await;
    let parent = pages(&cloud, start).await;
    assert_eq!(texts(&parent[0].records), ["parent"]);
    let last = parent.last().unwrap();
    assert!(last.next_shard_iterator.is_none(), "{last:?}");
    let children: Vec<_> = last.child_shards().iter().map(|child| child.shard_id.clone()).collect();
    assert_eq!(children, ["shardId-000000000001", "shardId-000000000002"]);
    assert_eq!(last.child_shards()[0].parent_shards, [SHARD]);
    let mut records = Vec::new();
    for child in children {
        let start = iterator_of(&cloud, &child, TrimHorizon).await;
        let pages = pages(&cloud, start).await;
        assert!((12..=13).contains(&pages.len()), "an hour since it began: {}", pages.len());
        records.extend(pages.into_iter().flat_map(|page| texts(&page.records)));
    }
    assert_eq!(records, ["child"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_lose_nothing_on_the_way_to_a_reader() {
    const WRITERS: usize = 4;
    const EACH: usize = 40;
    let faults = faults("");
    let cloud = Cloud::faulty(1, &faults).await;
    let mut next = iterator(&cloud, TrimHorizon).await;
    let client = client(&cloud);
    let writing = futures_util::future::join_all((0..WRITERS).map(|writer| {
        let cloud = &cloud;
        async move {
            for n in 0..EACH {
                cloud.put(format!("{writer}-{n}")).await;
            }
        }
    }));
    let reading = async {
        let mut seen = Vec::new();
        while seen.len() < WRITERS * EACH {
            let page = client.get_records().shard_iterator(&next).send().await.unwrap();
            seen.extend(texts(&page.records));
            next = page.next_shard_iterator.unwrap();
        }
        seen
    };
    let read = tokio::time::timeout(MINUTE, async { futures_util::future::join(writing, reading).await.1 });
    let seen = read.await.unwrap();
    assert_eq!(seen.iter().collect::<std::collections::BTreeSet<_>>().len(), WRITERS * EACH);
}
