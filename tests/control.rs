//! Pins, rollbacks and revocations by message and setting, and what a restart keeps of them.

use std::path::Path;

use hotserve::config::{HumanDuration, Settings};
use hotserve::id::Digest;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Cloud, Server, constant_model, until};

/// A server that keeps what it serves in a folder.
async fn kept(cloud: &Cloud, folder: &Path, change: impl FnOnce(&mut Settings)) -> Server {
    let settings = |settings: &mut Settings| {
        settings.cache_dir = Some(folder.to_owned());
        change(settings);
    };
    cloud.server_with(settings).await.ready().await
}

async fn publish(cloud: &Cloud, version: u64) {
    let model = cloud.upload("m", version, "linear", &constant_model(version)).await;
    cloud.put(json!({ "model": model }).to_string()).await;
}

async fn tell(cloud: &Cloud, control: Value) {
    cloud.put(json!({ "control": control }).to_string()).await;
}

/// The version that answers, 0 where there is none; the answer is that of the version.
async fn version(server: &Server) -> u64 {
    let reply = server.client.post("/predict/m", r#"{"instances":[[1]]}"#).await;
    if reply.status == StatusCode::NOT_FOUND {
        return 0;
    }
    let version: u64 = reply.header("x-model-version").parse().unwrap();
    assert_eq!(reply.json()["predictions"], json!([version as f64]));
    version
}

async fn until_version(server: &Server, expected: u64) {
    until(&format!("version {expected}"), async || (version(server).await == expected).then_some(())).await;
}

async fn until_outcome(server: &Server, outcome: &str) -> Value {
    until(&format!("{outcome} in the history"), async || {
        let history = server.client.get("/history").await.json();
        history["entries"].as_array()?.iter().find(|entry| entry["outcome"] == outcome).cloned()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_by_message_survives_a_restart_and_ends_with_the_next_version() {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    let server = kept(&cloud, folder.path(), |_| {}).await;
    for version in [1, 2] {
        publish(&cloud, version).await;
        until_version(&server, version).await;
    }
    let fetched = server.metric("hotserve_artifact_fetch_bytes_total").await;
    tell(&cloud, json!({"action": "rollback", "model": "m"})).await;
    until_version(&server, 1).await;
    assert_eq!(server.metric("hotserve_artifact_fetch_bytes_total").await, fetched, "the way back is no download");
    let entry = until_outcome(&server, "rolled_back").await;
    assert_eq!(
        (&entry["slots"], &entry["versions"], &entry["by"]),
        (&json!(["model m"]), &json!(["1"]), &json!("stream"))
    );
    assert_eq!(server.metric(r#"hotserve_controls_total{action="rollback",by="stream"}"#).await, 1.0);
    server.stop().await;

    // The record of the rollback is read again, and not obeyed again.
    let server =
        kept(&cloud, folder.path(), |s| s.lookback = Some(HumanDuration(std::time::Duration::from_secs(600)))).await;
    assert_eq!(version(&server).await, 1);
    publish(&cloud, 3).await;
    until_version(&server, 3).await;
    assert_eq!(server.metric(r#"hotserve_controls_total{action="rollback",by="stream"}"#).await, 0.0);
    tell(&cloud, json!({"action": "rollback", "model": "m"})).await;
    until_version(&server, 1).await;
    server.stop().await;

    // An instance that has nothing of its own reads the same story, and ends the same.
    let fresh = cloud.server_with(|s| s.lookback = Some(HumanDuration(std::time::Duration::from_secs(600)))).await;
    let fresh = fresh.ready().await;
    assert_eq!(version(&fresh).await, 1);
    fresh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_by_message_holds_over_a_restart_and_a_setting_wins_over_it() {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    let server = kept(&cloud, folder.path(), |_| {}).await;
    publish(&cloud, 1).await;
    until_version(&server, 1).await;
    tell(&cloud, json!({"action": "pin", "model": "m"})).await;
    until_outcome(&server, "pinned").await;
    publish(&cloud, 2).await;
    cloud.put(r#"{"state":"after"}"#).await;
    server.until_state("after").await;
    assert_eq!(version(&server).await, 1);
    let row = server.client.get("/models").await.json()["models"][0].clone();
    assert_eq!(row["held"], json!({"by": "stream", "version": 1}));
    assert_eq!(server.metric(r#"hotserve_held{slot="model m",by="stream"}"#).await, 1.0);
    server.stop().await;

    let lookback = Some(HumanDuration(std::time::Duration::from_secs(600)));
    let server = kept(&cloud, folder.path(), |s| s.lookback = lookback).await;
    assert_eq!(version(&server).await, 1);
    tell(&cloud, json!({"action": "unpin", "model": "m"})).await;
    until_version(&server, 2).await;
    tell(&cloud, json!({"action": "pin", "model": "m", "version": 2})).await;
    until_outcome(&server, "pinned").await;
    server.stop().await;

    let server = kept(&cloud, folder.path(), |s| s.pins = vec!["m=1".to_owned()]).await;
    until_version(&server, 1).await;
    server.stop().await;
    let server = kept(&cloud, folder.path(), |_| {}).await;
    until_version(&server, 2).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_goes_and_does_not_come_back() {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    let server = kept(&cloud, folder.path(), |_| {}).await;
    publish(&cloud, 1).await;
    until_version(&server, 1).await;
    let sha256 = Digest::of(&constant_model(1)).to_string();
    tell(&cloud, json!({"action": "revoke", "model": "m", "sha256": sha256})).await;
    until_version(&server, 0).await;
    // Kinesis' arrival times are whole seconds here: later is a second later.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let again = cloud.upload("m", 2, "linear", &constant_model(1)).await;
    cloud.put(json!({ "model": again }).to_string()).await;
    until("the refusal", async || {
        (server.metric(r#"hotserve_rejections_total{reason="revoked"}"#).await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(version(&server).await, 0);
    publish(&cloud, 3).await;
    until_version(&server, 3).await;
    tell(&cloud, json!({"action": "revoke", "model": "m", "version": 3})).await;
    until_version(&server, 0).await;
    server.stop().await;
    let server = kept(&cloud, folder.path(), |_| {}).await;
    assert_eq!(version(&server).await, 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_go_back_too_down_to_the_initial_one() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    for state in [1, 2] {
        cloud.put(json!({ "state": state }).to_string()).await;
        server.until_state(state).await;
    }
    for expected in [1, 0] {
        tell(&cloud, json!({"action": "rollback", "key": "default"})).await;
        server.until_state(expected).await;
    }
    tell(&cloud, json!({"action": "rollback", "key": "nothing"})).await;
    until("the refusal", async || {
        (server.metric(r#"hotserve_rejections_total{reason="control"}"#).await == 1.0).then_some(())
    })
    .await;
    cloud.put(r#"{"state":3}"#).await;
    server.until_state(3).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_far_ahead_is_refused_or_revoked_and_leaves_room_for_the_next() {
    const FAR: u64 = (1 << 53) - 1;
    let cloud = Cloud::start(1).await;
    let bounded = cloud.server_with(|settings| settings.max_version_jump = Some(100)).await.ready().await;
    let free = cloud.server().await.ready().await;
    let state = |version: u64| json!({"key": "k", "version": version, "state": version}).to_string();
    let version = async |server: &Server| {
        let reply = server.client.get("/state/k").await;
        let served = reply.headers.get("x-state-version")?;
        served.to_str().unwrap().parse::<u64>().ok()
    };
    let until_state = async |server: &Server, expected: u64| {
        until(&format!("{expected}"), async || (version(server).await == Some(expected)).then_some(())).await;
    };
    cloud.put(state(7)).await;
    for server in [&bounded, &free] {
        until_state(server, 7).await;
    }
    cloud.put(state(FAR)).await;
    until_state(&free, FAR).await;
    until("the refusal", async || {
        (bounded.metric(r#"hotserve_rejections_total{reason="version_jump"}"#).await == 1.0).then_some(())
    })
    .await;
    tell(&cloud, json!({"action": "revoke", "key": "k", "version": FAR})).await;
    until_state(&free, 7).await;
    cloud.put(state(107)).await;
    for server in [bounded, free] {
        until_state(&server, 107).await;
        server.stop().await;
    }
}

fn artifact(folder: &Path, version: u64) -> std::path::PathBuf {
    folder.join("artifacts").join(Digest::of(&constant_model(version)).to_string())
}

/// Serves versions 1 to 3, stops, and lets `harm` at the folder.
async fn harmed(harm: impl FnOnce(&Path)) -> (Cloud, tempfile::TempDir) {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    let server = kept(&cloud, folder.path(), |_| {}).await;
    for version in [1, 2, 3] {
        publish(&cloud, version).await;
        until_version(&server, version).await;
    }
    server.stop().await;
    harm(folder.path());
    (cloud, folder)
}

/// A server that begins with nothing but its folder.
async fn alone(folder: &Path) -> Server {
    alone_with(folder, &[]).await
}

async fn alone_with(folder: &Path, pins: &[&str]) -> Server {
    let settings = Settings {
        pins: pins.iter().map(ToString::to_string).collect(),
        stream: Some("nowhere".to_owned()),
        host: Some([127, 0, 0, 1].into()),
        port: Some(0),
        cache_dir: Some(folder.to_owned()),
        ..Settings::default()
    };
    Server::start(&crate::support::unreachable().await, settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_everything_gone_a_restart_serves_the_last_known_good_at_once() {
    let (_cloud, folder) = harmed(|_| {}).await;
    let begun = std::time::Instant::now();
    let server = alone(folder.path()).await.ready().await;
    println!("ready from the disk after {:?}", begun.elapsed());
    assert_eq!(version(&server).await, 3);
    assert_eq!(server.client.get("/readyz?verbose").await.json()["bootstrapped"], "journal");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_artifact_gives_way_to_the_one_before_and_comes_again_from_the_store() {
    let rot = |folder: &Path| {
        let mut bytes = std::fs::read(artifact(folder, 3)).unwrap();
        bytes[5] ^= 1;
        std::fs::write(artifact(folder, 3), bytes).unwrap();
        std::fs::remove_file(artifact(folder, 2)).unwrap();
    };
    let (cloud, folder) = harmed(rot).await;
    let server = alone(folder.path()).await.ready().await;
    assert_eq!(version(&server).await, 1);
    assert_eq!(server.metric("hotserve_fallbacks_total").await, 1.0);
    assert_eq!(until_outcome(&server, "fell_back").await["versions"], json!(["1"]));
    server.stop().await;
    let server = kept(&cloud, folder.path(), |_| {}).await;
    until_version(&server, 3).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_journal_begins_with_the_line_before() {
    let tear = |folder: &Path| {
        let journal = folder.join("journal");
        let text = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, &text[..text.len() - 10]).unwrap();
    };
    let (_cloud, folder) = harmed(tear).await;
    let server = alone(folder.path()).await.ready().await;
    assert_eq!(version(&server).await, 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_that_took_the_process_down_twice_is_not_tried_again() {
    let digest = Digest::of(&constant_model(3)).to_string();
    // As the process leaves it behind when it dies in the middle of a load.
    let die = |folder: &Path| std::fs::write(folder.join("loading"), &digest).unwrap();
    let (cloud, folder) = harmed(die).await;
    let server = alone(folder.path()).await.ready().await;
    assert_eq!(version(&server).await, 3, "once may be chance");
    server.stop().await;
    for strikes in [1, 2] {
        die(folder.path());
        if strikes == 1 {
            // It dies again before it gets to the end of the load.
            let strikes = serde_json::json!({ &digest: 1 }).to_string();
            std::fs::write(folder.path().join("strikes"), strikes).unwrap();
        }
    }
    let server = kept(&cloud, folder.path(), |_| {}).await;
    until_version(&server, 2).await;
    assert_eq!(server.metric("hotserve_quarantined_artifacts").await, 1.0);
    assert!(server.metric(r#"hotserve_rejections_total{reason="quarantined"}"#).await >= 1.0);
    publish(&cloud, 4).await;
    until_version(&server, 4).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_a_slot_holds_it_from_the_first_moment_of_a_start() {
    let (_cloud, folder) = harmed(|_| {}).await;
    let server = alone_with(folder.path(), &["m=1"]).await;
    while !server.is_ready().await {}
    assert_eq!(version(&server).await, 1);
    assert_eq!(server.metric("hotserve_fallbacks_total").await, 0.0, "it is as it was told");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_knows_the_way_back_to_what_was_never_here() {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    for version in [1, 2, 3] {
        publish(&cloud, version).await;
    }
    let lookback = Some(HumanDuration(std::time::Duration::from_secs(600)));
    for _ in 0..2 {
        let server = kept(&cloud, folder.path(), |settings| settings.lookback = lookback).await;
        until_version(&server, 3).await;
        server.stop().await;
    }
    let server = kept(&cloud, folder.path(), |settings| settings.lookback = lookback).await;
    tell(&cloud, json!({"action": "rollback", "model": "m", "version": 2, "from": 3})).await;
    until_version(&server, 2).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_waits_is_not_torn_by_its_copy_and_half_held_not_lost() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    let bytes = constant_model(1);
    let gone = json!({"name": "m", "version": 1, "format": "linear", "uri": format!("s3://{}/later", crate::support::BUCKET),
        "sha256": Digest::of(&bytes).to_string(), "size": bytes.len()});
    let pair =
        |id: u32| json!({"message_id": id.to_string(), "version": 1, "state": "pair", "model": gone}).to_string();
    cloud.put(pair(1)).await;
    cloud.put(pair(2)).await;
    cloud.put(r#"{"key":"after","state":1}"#).await;
    until("what came after the copy", async || {
        (server.client.get("/state/after").await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(server.state().await, json!(0), "the model is not there yet, and the state does not come without it");

    // A slot that is held keeps its half in mind.
    cloud.put(r#"{"key":"k","version":1,"state":1}"#).await;
    tell(&cloud, json!({"action": "pin", "key": "k", "version": 1})).await;
    let model = cloud.upload("n", 2, "linear", &constant_model(2)).await;
    cloud.put(json!({"key": "k", "version": 2, "state": 2, "model": model}).to_string()).await;
    until("the model of the pair", async || {
        (server.client.post("/predict/n", r#"{"instances":[[1]]}"#).await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(server.client.get("/state/k").await.header("x-state-version"), "1");
    tell(&cloud, json!({"action": "unpin", "key": "k"})).await;
    until("the other half", async || {
        (server.client.get("/state/k").await.header("x-state-version") == "2").then_some(())
    })
    .await;
    server.stop().await;
}
