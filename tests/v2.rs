//! The Open Inference Protocol over real sockets: commands that last, versions that end, and a thousand bad bodies.

mod hostile;

use std::path::Path;

use hotserve::config::Token;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Cloud, Reply, Server, constant_model, until};

const TOKEN: &str = "0123456789abcdef-secret";
const JSON: &str = r#"{"inputs":[{"name":"input","shape":[1,1],"datatype":"FP64","data":[0]}]}"#;

/// A server that takes commands, and keeps what it serves in a folder.
async fn kept(cloud: &Cloud, folder: &Path) -> Server {
    let settings = |settings: &mut hotserve::config::Settings| {
        settings.cache_dir = Some(folder.to_owned());
        settings.admin_token = Some(Token::parse(TOKEN).unwrap());
    };
    cloud.server_with(settings).await.ready().await
}

async fn publish(cloud: &Cloud, version: u64) {
    let model = cloud.upload("m", version, "linear", &constant_model(version)).await;
    cloud.put(json!({ "model": model, "state": version, "version": version }).to_string()).await;
}

/// The number that a version answers, which is its own.
async fn infer(server: &Server, path: &str) -> Result<Value, Reply> {
    let reply = server.client.post(&format!("/v2/models/m{path}/infer"), JSON).await;
    if reply.status == StatusCode::OK { Ok(reply.json()["outputs"][0]["data"][0].clone()) } else { Err(reply) }
}

async fn until_version(server: &Server, expected: u64) {
    let expected = json!(expected as f64);
    until("the version", async || (infer(server, "").await.ok()? == expected).then_some(())).await;
}

async fn tell(server: &Server, what: &str) -> Reply {
    let bearer = format!("Bearer {TOKEN}");
    let path = format!("/v2/repository/models/m/{what}");
    server.client.ask(&path, &[("authorization", &bearer)], Some("{}")).await
}

async fn index(server: &Server) -> Value {
    server.client.post("/v2/repository/index", "").await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unloaded_stays_away_over_a_restart_until_it_is_loaded() {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    let server = kept(&cloud, folder.path()).await;
    assert_eq!(tell(&server, "unload").await.status, StatusCode::NOT_FOUND, "nothing was announced yet");
    for version in [1, 2] {
        publish(&cloud, version).await;
        until_version(&server, version).await;
    }
    assert_eq!(infer(&server, "/versions/1").await.unwrap(), json!(1.0), "it is warm still");
    for _ in 0..2 {
        let reply = tell(&server, "unload").await;
        assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({})));
    }
    assert_eq!(server.metric("hotserve_controls_total{action=\"unload\",by=\"admin\"}").await, 1.0);
    let gone =
        |index: &Value| index[0]["state"] == "UNAVAILABLE" && index[0]["reason"].as_str().unwrap().contains("load");
    for path in ["", "/versions/1", "/versions/2"] {
        assert_eq!(infer(&server, path).await.unwrap_err().status, StatusCode::NOT_FOUND, "{path}");
    }
    assert!(gone(&index(&server).await), "{}", index(&server).await);
    // A newer one is not served either; what comes behind it in the stream shows that it has been read.
    publish(&cloud, 3).await;
    cloud.put(r#"{"state":"behind it","key":"mark"}"#).await;
    until("the mark", async || (server.client.get("/state/mark").await.status == 200).then_some(())).await;
    assert_eq!(infer(&server, "").await.unwrap_err().status, StatusCode::NOT_FOUND);
    server.stop().await;

    let server = kept(&cloud, folder.path()).await;
    assert!(gone(&index(&server).await), "{}", index(&server).await);
    assert_eq!(infer(&server, "").await.unwrap_err().status, StatusCode::NOT_FOUND);
    let reply = tell(&server, "load").await;
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({})));
    until_version(&server, 3).await;
    assert_eq!(tell(&server, "load").await.status, StatusCode::OK, "it is served already");
    let history = server.client.get("/history").await.json();
    let outcomes: Vec<_> = history["entries"].as_array().unwrap().iter().map(|entry| &entry["outcome"]).collect();
    assert!(outcomes.contains(&&json!("loaded")), "{outcomes:?}");
    server.stop().await;
    // What was lifted stays lifted.
    let server = kept(&cloud, folder.path()).await;
    until_version(&server, 3).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_served_before_ends_when_it_is_revoked() {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    let server = kept(&cloud, folder.path()).await;
    for version in [1, 2] {
        publish(&cloud, version).await;
        until_version(&server, version).await;
    }
    assert_eq!(infer(&server, "/versions/1").await.unwrap(), json!(1.0));
    assert_eq!(infer(&server, "/versions/2").await.unwrap(), json!(2.0));
    assert_eq!(index(&server).await.as_array().unwrap().len(), 2);
    // What was gone back to is the one before like any other.
    cloud.put(json!({"control": {"action": "rollback", "model": "m", "version": 1, "from": 2}}).to_string()).await;
    until_version(&server, 1).await;
    assert_eq!(infer(&server, "/versions/2").await.unwrap(), json!(2.0));
    publish(&cloud, 3).await;
    until_version(&server, 3).await;
    assert_eq!(infer(&server, "/versions/1").await.unwrap(), json!(1.0));
    cloud.put(json!({"control": {"action": "revoke", "model": "m", "version": 1}}).to_string()).await;
    until("the end of version 1", async || infer(&server, "/versions/1").await.err()).await;
    assert_eq!(infer(&server, "/versions/3").await.unwrap(), json!(3.0));
    let versions = server.client.get("/v2/models/m").await.json();
    assert_eq!(versions["versions"], json!(["3"]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_which_nothing_comes_says_so_at_once() {
    let (cloud, folder) = (Cloud::start(1).await, tempfile::tempdir().unwrap());
    let server = kept(&cloud, folder.path()).await;
    let told = async |what: &str| {
        let (begun, reply) = (std::time::Instant::now(), tell(&server, "load").await);
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(reply.status, StatusCode::CONFLICT, "{error}");
        assert!(error.contains(what), "{error}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
    };
    cloud.put(json!({"control": {"action": "pin", "model": "m", "version": 9}}).to_string()).await;
    let known = async || (tell(&server, "load").await.status != StatusCode::NOT_FOUND).then_some(());
    until("the pin", known).await;
    told("pinned to a version that is not here").await;
    // What it is pinned to comes while it is unloaded, and is no model.
    assert_eq!(tell(&server, "unload").await.status, StatusCode::OK);
    let model = cloud.upload("m", 9, "linear", b"no model").await;
    cloud.put(json!({ "model": model, "version": 9 }).to_string()).await;
    cloud.put(r#"{"state":"behind it","key":"mark"}"#).await;
    until("the mark", async || (server.client.get("/state/mark").await.status == 200).then_some(())).await;
    told("pinned to a version that is not here").await;
    let newest = server.client.get("/history").await.json()["entries"][0].clone();
    assert_eq!((&newest["outcome"], &newest["slots"]), (&json!("rejected"), &json!(["model m"])), "{newest}");
    // Once it is pinned no more, nothing else is here.
    cloud.put(json!({"control": {"action": "unpin", "model": "m"}}).to_string()).await;
    let unpinned = async || tell(&server, "load").await.text().contains("nothing that can be served").then_some(());
    until("the end of the pin", unpinned).await;
    server.stop().await;
}
