//! The manifest in S3: nothing published through it is lost, whatever becomes of the stream.

use std::time::Duration;

use hotserve::aws::Retries;
use hotserve::config::{HumanDuration, ManifestUri, Settings};
use hotserve::id::{Slot, StateKey};
use hotserve::manifest::object::{Condition, ManifestObject, Read, Write};
use hotserve::manifest::{self, Manifest};
use hotserve::publisher::{Draft, Error, Publisher};
use serde_json::json;
use serde_json::value::RawValue;

use crate::cli;
use crate::support::{BUCKET, Cloud, STREAM, Server, constant_model, until};

const KEY: &str = "prod/manifest.json";

fn uri() -> ManifestUri {
    format!("s3://{BUCKET}/{KEY}").parse().unwrap()
}

fn object(cloud: &Cloud) -> ManifestObject {
    ManifestObject::new(&cloud.aws, Retries::Standard, uri(), 64 << 20)
}

fn publisher(cloud: &Cloud, stream: &str) -> Publisher {
    Publisher::new(&cloud.aws, stream.to_owned()).with_manifest(Some(object(cloud)))
}

fn draft(key: &str, version: Option<u64>, state: &str) -> Draft {
    let state = RawValue::from_string(state.to_owned()).unwrap();
    Draft::state(key.parse().unwrap(), version.map(|version| version.try_into().unwrap()), state)
}

async fn read(cloud: &Cloud) -> Manifest {
    let Read::Found { bytes, .. } = object(cloud).read(None).await.unwrap() else { panic!("no manifest") };
    Manifest::decode(&bytes, &manifest::Limits::default()).unwrap()
}

/// Writes an object in the manifest's place, whatever is there.
async fn overwrite(cloud: &Cloud, text: impl Into<String>) {
    let condition = match object(cloud).read(None).await.unwrap() {
        Read::Found { etag, .. } => Condition::Is(etag),
        Read::Absent | Read::NotModified => Condition::Absent,
    };
    let written = object(cloud).write(text.into().into_bytes(), &condition).await.unwrap();
    assert_eq!(written, Write::Written);
}

fn with_manifest(settings: &mut Settings) {
    settings.manifest = Some(uri().to_string());
    settings.manifest_interval = Some(HumanDuration(Duration::from_millis(200)));
}

async fn server(cloud: &Cloud) -> Server {
    cloud.server_with(with_manifest).await
}

/// The manifest of `/readyz?verbose`.
async fn board(server: &Server) -> serde_json::Value {
    server.client.get("/readyz?verbose").await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_publishers_that_race_lose_nothing_and_give_no_version_twice() {
    let cloud = Cloud::start(1).await;
    let race = |name: &'static str| {
        let publisher = publisher(&cloud, STREAM);
        tokio::spawn(async move {
            let mut versions = Vec::new();
            for number in 0..50 {
                // A slot of its own each time, and one that both fight for.
                publisher.publish(draft(&format!("{name}-{number}"), None, "1")).await.unwrap();
                let published =
                    publisher.publish(draft("shared", None, &format!("\"{name} {number}\""))).await.unwrap();
                versions.push(published.version.unwrap().get());
            }
            versions
        })
    };
    let (one, other) = (race("one"), race("other"));
    let (one, other) = (one.await.unwrap(), other.await.unwrap());
    let manifest = read(&cloud).await;
    assert_eq!(manifest.slots().count(), 101, "each publication is in the manifest");
    let mut versions = [&one[..], &other].concat();
    versions.sort_unstable();
    assert_eq!(versions, (1..=100).collect::<Vec<_>>(), "each version is given once");
    let shared = Slot::State("shared".parse::<StateKey>().unwrap());
    let held = manifest.held(&shared).unwrap().entry.message().to_owned();
    let last = if one.contains(&100) { "one 49" } else { "other 49" };
    assert!(held.contains(last) && held.contains("\"version\":100"), "{held}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_never_announced_is_served_after_the_next_read() {
    let cloud = Cloud::start(1).await;
    let server = server(&cloud).await.ready().await;
    publisher(&cloud, STREAM).publish(draft("default", Some(1), "1.50")).await.unwrap();
    server.until_state(1.5).await;
    assert_eq!(server.client.get("/state").await.text(), r#"{"state":1.50}"#, "digit for digit");

    // The stream is not there: the manifest is written, the announcement fails, and it says what that means.
    let lost = Publisher::new(&cloud.aws, STREAM.to_owned()).with_manifest(Some(object(&cloud)));
    let mut cloud = cloud;
    cloud.embedded.kinesis.stop().await;
    let error = lost.publish(draft("default", None, "2")).await.unwrap_err();
    assert!(matches!(error, Error::NotAnnounced { .. }), "{error}");
    assert!(error.to_string().contains("state default version 2") && error.to_string().contains("30 s"), "{error}");
    server.until_state(2).await;
    assert_eq!(server.client.get("/state").await.header("x-state-version"), "2");

    // A model and a state in one entry.
    let model = cloud.upload("m", 5, "linear", &constant_model(5)).await;
    let pair = json!({"message": {"key": "pair", "version": 5, "state": 5, "model": model}});
    overwrite(&cloud, json!({"manifest": 1, "stream": STREAM, "entries": [pair]}).to_string()).await;
    until("the pair", async || {
        let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
        (reply.headers.get("x-model-version")? == "5").then_some(())
    })
    .await;
    assert_eq!(server.client.get("/state/pair").await.header("x-state-version"), "5");
    assert_eq!(server.state().await, 2, "what is gone from the manifest stays served");
    let changed = r#"hotserve_manifest_reads_total{outcome="changed"}"#;
    until("the reads to be counted", async || (server.metric(changed).await >= 2.0).then_some(())).await;
    server.stop().await;
}

/// From here on the stream has no record.
async fn make_stream_anew(cloud: &Cloud) {
    cloud.kinesis().delete_stream().stream_name(STREAM).send().await.unwrap();
    until("the stream to be gone", async || {
        cloud.kinesis().describe_stream_summary().stream_name(STREAM).send().await.is_err().then_some(())
    })
    .await;
    cloud.publisher.ensure_stream(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_an_empty_stream_finds_every_slot_in_the_manifest() {
    let cloud = Cloud::start(1).await;
    let publisher = publisher(&cloud, STREAM);
    for key in ["default", "a", "b"] {
        publisher.publish(draft(key, None, "1")).await.unwrap();
        publisher.publish(draft(key, None, "2")).await.unwrap();
    }
    make_stream_anew(&cloud).await;

    let server = server(&cloud).await;
    // Without a pause: a server that is ready too early would soon be right by itself.
    while !server.is_ready().await {}
    assert_eq!(server.state().await, 2);
    for key in ["a", "b"] {
        assert_eq!(server.client.get(&format!("/state/{key}")).await.header("x-state-version"), "2");
    }
    let board = board(&server).await;
    assert_eq!(board["bootstrapped"], "manifest", "{board}");
    assert_eq!(board["manifest"]["entries"], 6, "{board}");
    assert_eq!(server.metric(r#"hotserve_bootstrap_info{kind="manifest"}"#).await, 1.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_manifest_yet_the_server_starts_by_itself_and_takes_it_when_it_comes() {
    let cloud = Cloud::start(1).await;
    let server = server(&cloud).await.ready().await;
    assert_eq!(server.state().await, 0, "the initial state");
    let board = board(&server).await;
    assert_eq!(board["bootstrapped"], "none", "{board}");
    assert_eq!(board["manifest"]["trouble"]["code"], "absent", "{board}");
    let said = board["manifest"]["trouble"]["message"].as_str().unwrap();
    assert!(said.contains(&uri().to_string()) && said.contains("look-back"), "{said}");
    assert!(server.metric(r#"hotserve_manifest_reads_total{outcome="absent"}"#).await >= 1.0);
    publisher(&cloud, STREAM).publish(draft("default", None, "7")).await.unwrap();
    server.until_state(7).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_cannot_be_read_is_said_and_the_look_back_still_works() {
    for (text, code) in [
        ("{\"manifest\":1,\"entries\":[".to_owned(), "broken"),
        (json!({"manifest": 2}).to_string(), "newer"),
        (json!({"manifest": 1, "stream": "another"}).to_string(), "other_stream"),
    ] {
        let cloud = Cloud::start(1).await;
        overwrite(&cloud, text).await;
        cloud.put(json!({"version": 3, "state": 3}).to_string()).await;
        let server = server(&cloud).await.ready().await;
        assert_eq!(server.state().await, 3);
        let board = board(&server).await;
        assert_eq!((&board["manifest"]["trouble"]["code"], &board["bootstrapped"]), (&code.into(), &"lookback".into()));
        // It is never overwritten by a publisher that cannot read it either.
        let error = publisher(&cloud, STREAM).publish(draft("default", None, "4")).await.unwrap_err();
        assert!(matches!(error, Error::Manifest(_)), "{error}");
        let mended = json!({"manifest": 1, "entries": [{"message": {"version": 9, "state": 9}}, "broken"]});
        overwrite(&cloud, mended.to_string()).await;
        server.until_state(9).await;
        until("the broken entry to be said", async || {
            let code = self::board(&server).await["manifest"]["trouble"]["code"].clone();
            (code == "unreadable_entries").then_some(())
        })
        .await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_s3_away_at_the_start_the_server_becomes_ready_and_takes_the_manifest_later() {
    let mut cloud = Cloud::start(1).await;
    publisher(&cloud, STREAM).publish(draft("old", None, "1")).await.unwrap();
    cloud.put(json!({"version": 3, "state": 3}).to_string()).await;
    cloud.embedded.s3.stop().await;
    let server = server(&cloud).await.ready().await;
    assert_eq!(server.state().await, 3);
    assert_eq!(board(&server).await["manifest"]["trouble"]["code"], "unavailable");
    assert!(server.metric(r#"hotserve_manifest_reads_total{outcome="failed"}"#).await >= 1.0);
    cloud.embedded.s3.restart().await.unwrap();
    until("the manifest to be read", async || (board(&server).await["manifest"]["trouble"].is_null()).then_some(()))
        .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_below_the_manifests_is_refused_and_the_same_content_is_announced_again() {
    let cloud = Cloud::start(1).await;
    let publisher = publisher(&cloud, STREAM);
    let published = publisher.publish(draft("a", Some(5), "5")).await.unwrap();
    assert!(!published.assigned);
    let error = publisher.publish(draft("a", Some(4), "4")).await.unwrap_err().to_string();
    assert!(error.contains("version 5") && error.contains("version 4"), "{error}");
    let error = publisher.publish(draft("a", Some(5), "\"other\"")).await.unwrap_err();
    assert!(matches!(error, Error::Manifest(manifest::Error::Conflict { .. })), "{error}");
    publisher.publish(draft("a", Some(5), "5")).await.unwrap();
    let published = publisher.publish(draft("a", None, "6")).await.unwrap();
    assert_eq!((published.version.unwrap().get(), published.assigned), (6, true));
    let error = self::publisher(&cloud, "another").publish(draft("a", None, "7")).await.unwrap_err();
    assert!(matches!(error, Error::Manifest(manifest::Error::OtherStream { .. })), "{error}");
}

/// Runs the program on this cloud. Answers what it printed.
async fn run(cloud: &Cloud, arguments: &[&str]) -> String {
    let mut command = cli::hotserve(arguments);
    command.envs(cloud.environment()).env("HOTSERVE_MANIFEST", uri().to_string());
    let (code, text) = tokio::task::spawn_blocking(|| cli::run(command)).await.unwrap();
    assert_eq!(code, 0, "{arguments:?}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_made_from_a_stream_that_had_none() {
    let cloud = Cloud::start(2).await;
    let old = json!({"state": "old"}).to_string();
    cloud.put(&old).await;
    cloud.put(zstd::encode_all(&br#"{"state": "new"}"#[..], 0).unwrap()).await;
    cloud.put(json!({"key": "a", "version": 2, "state": 2}).to_string()).await;
    cloud.put_with_key("other", json!({"key": "a", "version": 1, "state": 1}).to_string()).await;
    cloud.put("not JSON").await;

    let text = run(&cloud, &["manifest", "rebuild", "--dry-run"]).await;
    assert!(text.contains("read 5 records") && text.contains("4 messages are news"), "{text}");
    assert!(text.contains("left out 1: ") && text.contains("wrote nothing"), "{text}");
    assert!(matches!(object(&cloud).read(None).await.unwrap(), Read::Absent), "a dry run writes nothing");

    let text = run(&cloud, &["manifest", "rebuild"]).await;
    assert!(text.contains(&format!("wrote {}", uri())), "{text}");
    let manifest = read(&cloud).await;
    let messages: Vec<_> = manifest.entries().map(manifest::Entry::message).collect();
    let [a2, a1] = [2, 1].map(|version| json!({"key": "a", "version": version, "state": version}).to_string());
    assert_eq!(messages, [&a2, &a1, r#"{"state": "new"}"#, &old]);
    let text = run(&cloud, &["manifest", "rebuild"]).await;
    assert!(text.contains("0 messages are news") && text.contains("up to date"), "{text}");

    let shown: serde_json::Value =
        serde_json::from_str(&run(&cloud, &["manifest", "show", "--json", &uri().to_string()]).await).unwrap();
    assert_eq!(
        (&shown["slots"][0]["slot"], &shown["slots"][0]["version"]),
        (&"state a".into(), &"2".into()),
        "{shown}"
    );
    assert!(shown["slots"][1]["version"].as_str().unwrap().starts_with('@'), "{shown}");
    let text = run(&cloud, &["manifest", "show"]).await;
    assert!(text.contains("state default  @") && text.contains(STREAM), "{text}");

    // A version is above every place in the stream, so the first one will do.
    let text = run(&cloud, &["publish", "state", "3"]).await;
    assert!(text.contains("version 1, the next after the manifest's"), "{text}");
    let text = run(&cloud, &["publish", "state", "4", "--key", "a"]).await;
    assert!(text.contains("version 3, the next"), "{text}");
    let server = server(&cloud).await.ready().await;
    assert_eq!(server.state().await, 3);
    assert_eq!(server.client.get("/state/a").await.header("x-state-version"), "3");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_instance_finds_in_the_manifest_what_was_taken_back_and_the_way_back() {
    let cloud = Cloud::start(1).await;
    let mut entries = Vec::new();
    for version in 1..=3 {
        let model = cloud.upload("m", version, "linear", &constant_model(version)).await;
        entries.push(json!({ "message": { "model": model } }));
    }
    overwrite(&cloud, json!({"manifest": 1, "stream": STREAM, "entries": entries}).to_string()).await;
    let text = run(&cloud, &["publish", "control", "rollback", "--model", "m"]).await;
    assert!(text.contains("published rollback of model m"), "{text}");
    let told = read(&cloud).await;
    let told: Vec<_> = told.controls(&Slot::Model("m".parse().unwrap())).map(|c| json!(c)).collect();
    assert_eq!(told, [json!({"action": "rollback", "model": "m", "version": 2, "from": 3})]);
    let text = run(&cloud, &["manifest", "show"]).await;
    assert!(text.contains("model m: before it 2, 1") && text.contains(r#"told {"action":"rollback""#), "{text}");
    // Once more is one further back.
    run(&cloud, &["publish", "control", "rollback", "--model", "m"]).await;
    let told = read(&cloud).await;
    let told: Vec<_> = told.controls(&Slot::Model("m".parse().unwrap())).map(|c| json!(c)).collect();
    assert_eq!(told[0], json!({"action": "rollback", "model": "m", "version": 1, "from": 3}));
    make_stream_anew(&cloud).await;

    let server = server(&cloud).await;
    while !server.is_ready().await {}
    let reply = server.client.post("/predict/m", r#"{"instances":[[1]]}"#).await;
    assert_eq!(reply.header("x-model-version"), "1");
    let model = cloud.upload("m", 4, "linear", &constant_model(4)).await;
    cloud.put(json!({ "model": model }).to_string()).await;
    until("what is newer than what was taken back", async || {
        let reply = server.client.post("/predict/m", r#"{"instances":[[1]]}"#).await;
        (reply.header("x-model-version") == "4").then_some(())
    })
    .await;
    server.stop().await;
}
