//! A server through all of it.

use std::fs;

use serde_json::json;

use std::net::SocketAddr;
use std::path::Path;

use aws_sdk_kinesis::types::ShardIteratorType::TrimHorizon;
use hotserve::aws::Aws;
use hotserve::embedded::{self, Embedded};
use hotserve::publisher::Publisher;

use super::*;
use crate::support::{repository, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_finds_a_record_of_an_hour_ago_and_follows_through_a_game_day() {
    let faults = faults_before("", HOUR);
    let cloud = Cloud::faulty(2, &faults).await;
    cloud.put(json!({"version": 1, "state": "old"}).to_string()).await;
    faults.advance(HOUR);
    let server = cloud.server().await.ready().await;
    assert_eq!(server.state().await, "old");

    let rules = Rules::from_file(&repository("tests/faults/gameday.toml")).unwrap();
    faults.set(rules);
    for version in 2..6 {
        let message = json!({"version": version, "state": version}).to_string();
        until("a put", async || {
            let put = cloud.publisher.announce("k", message.as_bytes()).await;
            put.is_ok().then_some(())
        })
        .await;
        server.until_state(version).await;
    }
    assert!(faults.count(&action("kinesis:GetRecords")).calls > 5);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_follow_their_file_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.toml");
    fs::write(&path, "[kinesis]\nreads-per-second = 5").unwrap();
    let faults = embedded::faults::follow(&path).unwrap();
    assert_eq!(faults.rules().kinesis.reads_per_second, Some(5));
    fs::write(&path, "nonsense").unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(faults.rules().kinesis.reads_per_second, Some(5));
    fs::write(&path, "[kinesis]\nreads-per-second = 2").unwrap();
    until("the new rules", async || (faults.rules().kinesis.reads_per_second == Some(2)).then_some(())).await;

    fs::write(&path, "deny = ['kinesis:GetRecord']").unwrap();
    let error = embedded::faults::follow(&path).unwrap_err().to_string();
    assert!(error.starts_with("--faults ") && error.contains("kinesis:GetRecord"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_from_before_the_layer_are_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let start = async |folder: &Path, faults: Option<Arc<Faults>>| {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = embedded::Options { kinesis: any, s3: any, folder: folder.to_owned(), durable: true, faults };
        let embedded = Embedded::start(options).await.unwrap();
        let aws = Aws::at(embedded.endpoints()).await;
        let publisher = Publisher::new(&aws, STREAM.to_owned());
        publisher.ensure_stream(1).await.unwrap();
        (embedded, aws, publisher)
    };
    let (embedded, _, publisher) = start(folder.path(), None).await;
    publisher.announce("k", b"before").await.unwrap();
    drop(embedded);
    let faults = faults("");
    let (_embedded, aws, publisher) = start(folder.path(), Some(Arc::clone(&faults))).await;
    publisher.announce("k", b"after").await.unwrap();
    let kinesis = aws.kinesis(Retries::Ours, &Arc::default());
    let ask = kinesis.get_shard_iterator().stream_name(STREAM).shard_id(SHARD).shard_iterator_type(TrimHorizon);
    let iterator = ask.send().await.unwrap().shard_iterator.unwrap();
    let page = kinesis.get_records().shard_iterator(iterator).send().await.unwrap();
    assert_eq!(texts(&page.records), ["before", "after"]);
    assert!(faults.now_ms().abs_diff(u64::try_from(arrival(&page.records[0])).unwrap()) < 60_000);
}
