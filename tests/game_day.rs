//! The endpoints of `hotserve dev` behave, and misbehave, as the real ones do: what the SDK's clients see of them.

mod fan_out;
mod polling;
mod s3;
mod servers;
mod time;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::types::{Record, ShardIteratorType};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use hotserve::aws::{Retries, ServerClock};
use hotserve::embedded::faults::{Action, Faults, Rules};

use crate::support::{Cloud, STREAM};

const SHARD: &str = "shardId-000000000000";
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn faults(rules: &str) -> Arc<Faults> {
    Faults::new(Rules::parse(rules).unwrap())
}

/// A layer whose clock is behind by so much.
fn faults_before(rules: &str, before: Duration) -> Arc<Faults> {
    let faults = faults(rules);
    faults.set_clock_offset(-i64::try_from(before.as_millis()).unwrap());
    faults
}

fn action(name: &str) -> Action {
    name.parse().unwrap()
}

/// A client that shows every answer.
fn client(cloud: &Cloud) -> aws_sdk_kinesis::Client {
    cloud.aws.kinesis(Retries::Ours, &Arc::new(ServerClock::default()))
}

fn code<E: ProvideErrorMetadata + Debug, R: Debug>(error: &SdkError<E, R>) -> String {
    error.code().unwrap_or("none").to_owned()
}

async fn iterator_of(cloud: &Cloud, shard: &str, kind: ShardIteratorType) -> String {
    let ask = client(cloud).get_shard_iterator().stream_name(STREAM).shard_id(shard).shard_iterator_type(kind);
    ask.send().await.unwrap().shard_iterator.unwrap()
}

async fn iterator(cloud: &Cloud, kind: ShardIteratorType) -> String {
    iterator_of(cloud, SHARD, kind).await
}

async fn page(cloud: &Cloud, iterator: &str) -> GetRecordsOutput {
    client(cloud).get_records().shard_iterator(iterator).send().await.unwrap()
}

/// All pages from there until one says that it is at the tip, or the shard ends.
async fn pages(cloud: &Cloud, iterator: String) -> Vec<GetRecordsOutput> {
    let (client, mut next, mut pages) = (client(cloud), Some(iterator), Vec::new());
    while let Some(iterator) = next {
        let page = client.get_records().shard_iterator(iterator).send().await.unwrap();
        next = page.next_shard_iterator.clone().filter(|_| page.millis_behind_latest != Some(0));
        pages.push(page);
    }
    pages
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.data.as_ref().to_vec()).unwrap()).collect()
}

fn arrival(record: &Record) -> i64 {
    record.approximate_arrival_timestamp.unwrap().to_millis().unwrap()
}
