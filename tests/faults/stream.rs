//! The stream refuses, lies, or is not there; what is served stays, and the reason is told.

use hotserve::aws::{Aws, Endpoints};
use hotserve::embedded::faults::{Action, Answer, Fault, Faults, Rules};
use serde_json::Value;

use super::*;
use crate::support::{STREAM, Server};

fn all(answer: Answer) -> Vec<Fault> {
    let on = |service: &str| service.parse::<Action>().unwrap();
    vec![Fault::on(on("kinesis:*"), answer), Fault::on(on("s3:*"), answer)]
}

async fn trouble(server: &Server) -> Option<(String, String)> {
    let stream = server.client.get("/readyz?verbose").await.json()["stream"].clone();
    let text = |field: &str| stream["trouble"][field].as_str().map(str::to_owned);
    Some((text("code")?, text("message")?))
}

async fn until_trouble(server: &Server, code: &str, named: &str) {
    until(&format!("the trouble {code}: {named}"), async || {
        let (seen, message) = trouble(server).await?;
        (seen == code && message.contains(named)).then_some(())
    })
    .await;
}

/// A stream that answers so for a while.
async fn refusing(answer: Answer, code: &str, named: &str) {
    let faults = Faults::new(Rules::default());
    let cloud = Cloud::faulty(1, &faults).await;
    let server = cloud.server().await.ready().await;
    cloud.put(json!({"version": 1, "state": 1}).to_string()).await;
    server.until_state(1).await;
    faults.update(|rules| rules.faults = all(answer));
    until_trouble(&server, code, named).await;
    assert_eq!(server.state().await, 1, "{answer:?}");
    assert!(server.is_ready().await, "{answer:?}");
    faults.update(|rules| rules.faults = vec![]);
    cloud.put(json!({"version": 2, "state": 2}).to_string()).await;
    server.until_state(2).await;
    until("the trouble to be over", async || trouble(&server).await.is_none().then_some(())).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_of_the_stream_is_told_by_its_own_name_and_passes_without_a_restart() {
    let refusals = [
        (Answer::KmsDisabled, "access_denied", "KMSDisabledException"),
        (Answer::KmsThrottling, "throttled", "KMSThrottlingException"),
        (Answer::AccessDenied, "access_denied", "AccessDeniedException"),
        (Answer::ExpiredToken, "no_credentials", "ExpiredTokenException"),
        (Answer::InternalFailure, "unavailable", "InternalFailure"),
        (Answer::Html, "unavailable", "does not answer"),
        (Answer::Captive, "unavailable", "does not answer"),
        (Answer::Redirect, "unavailable", "does not answer"),
        (Answer::CutBody, "unavailable", "does not answer"),
    ];
    // At the same time: some are told by the next look at the shards only.
    let all = refusals.into_iter().map(|(answer, code, named)| refusing(answer, code, named));
    futures_util::future::join_all(all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_told_and_left_when_it_is_gone() {
    let faults = Faults::new(Rules::default());
    let cloud = Cloud::faulty(1, &faults).await;
    let server = cloud.server().await.ready().await;
    cloud.put(json!({"version": 1, "state": 1}).to_string()).await;
    server.until_state(1).await;
    for answer in [Answer::Hang, Answer::HangBody] {
        faults.update(|rules| rules.faults = all(answer));
        // The connections stay: nothing but a deadline of our own ends the wait.
        until_trouble(&server, "unavailable", "does not answer").await;
        assert_eq!(server.state().await, 1);
        assert!(server.is_ready().await);
        let lag = server.metric(r#"hotserve_stream_lag_seconds{shard="shardId-000000000000"}"#).await;
        assert!(lag > 1.0, "{lag} s: it grows while nothing answers");
        faults.update(|rules| rules.faults = vec![]);
        until("the trouble to be over", async || trouble(&server).await.is_none().then_some(())).await;
    }
    cloud.put(json!({"version": 2, "state": 2}).to_string()).await;
    server.until_state(2).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_name_service_the_last_known_good_is_served_and_the_trouble_told() {
    let cloud = Cloud::start(1).await;
    let folder = cloud.path("cache");
    let with_cache = |settings: &mut hotserve::config::Settings| settings.cache_dir = Some(folder.clone());
    cloud.put(json!({"version": 1, "state": 1}).to_string()).await;
    let server = cloud.server_with(with_cache).await.ready().await;
    server.stop().await;

    // RFC 6761: no name service knows a name in this domain.
    let endpoints = Endpoints {
        kinesis: "http://kinesis.invalid".to_owned(),
        s3: "http://s3.invalid".to_owned(),
        ..cloud.embedded.endpoints()
    };
    let mut settings = hotserve::config::Settings {
        stream: Some(STREAM.to_owned()),
        host: Some([127, 0, 0, 1].into()),
        port: Some(0),
        ..Default::default()
    };
    with_cache(&mut settings);
    let server = Server::start(&Aws::at(endpoints).await, settings).await.ready().await;
    assert_eq!(server.state().await, 1);
    until_trouble(&server, "unavailable", "does not answer").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_made_anew_keeps_the_versions_that_were_served_and_serves_throughout() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    cloud.put(json!({"version": 5, "state": 5}).to_string()).await;
    server.until_state(5).await;
    let (stop, client) = (Arc::new(AtomicBool::new(false)), Client::to(server.addr));
    let reader = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut newest = 5;
            while !stop.load(Ordering::Relaxed) {
                let reply = client.get("/state").await;
                assert_eq!(reply.status, StatusCode::OK);
                let state = reply.json()["state"].as_u64().unwrap();
                assert!(state >= newest, "back from {newest} to {state}");
                newest = state;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    cloud.kinesis().delete_stream().stream_name(STREAM).send().await.unwrap();
    until_trouble(&server, "not_found", "no stream").await;
    cloud.publisher.ensure_stream(1).await.unwrap();
    cloud.put(json!({"version": 3, "state": 3}).to_string()).await;
    cloud.put(json!({"key": "behind-it", "state": 1}).to_string()).await;
    until("what comes behind it", async || {
        (server.client.get("/state/behind-it").await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(server.state().await, 5, "an older version is old in a new stream too");
    cloud.put(json!({"version": 6, "state": 6}).to_string()).await;
    server.until_state(6).await;
    stop.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_contents_of_one_version_the_first_stays_and_the_mistake_is_counted() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    let upload = async |version, value| -> Value { cloud.upload("m", version, "linear", &constant_model(value)).await };
    cloud.put(json!({"version": 1, "state": "first"}).to_string()).await;
    cloud.put(json!({"model": upload(1, 1).await}).to_string()).await;
    server.until_state("first").await;
    server.until_model(1).await;
    cloud.put(json!({"version": 1, "state": "second"}).to_string()).await;
    cloud.put(json!({"model": upload(1, 2).await}).to_string()).await;
    server.until_refused("conflict", 2.0).await;
    assert_eq!(server.state().await, "first");
    let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await.json();
    assert_eq!(reply["predictions"], json!([1.0]));
    // A higher version mends it; the same content again is no mistake.
    cloud.put(json!({"version": 2, "state": "second"}).to_string()).await;
    cloud.put(json!({"version": 2, "state": "second"}).to_string()).await;
    server.until_state("second").await;
    let duplicates = r#"hotserve_updates_total{kind="state",outcome="duplicate"}"#;
    until("the duplicate", async || (server.metric(duplicates).await == 1.0).then_some(())).await;
    assert_eq!(server.refused("conflict").await, 2.0);
    server.stop().await;
}
