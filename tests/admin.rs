//! Commands: what an operator tells a server at `/admin`, from the command line, and by the stream.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use axum::Router;
use axum::routing::post;
use hotserve::config::{Settings, Token};
use hotserve::embedded::Endpoint;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::cli::{hotserve, run};
use crate::support::{Client, Cloud, Reply, STREAM, Server, constant_model, until};

const TOKEN: &str = "0123456789abcdef-secret";

fn with_token(settings: &mut Settings) {
    settings.admin_token = Some(Token::parse(TOKEN).unwrap());
}

/// Gives a server a command.
async fn tell(server: &Server, control: Value) -> Reply {
    let client = Client::to(server.admin.unwrap());
    let bearer = format!("Bearer {TOKEN}");
    client.ask("/admin/control", &[("authorization", &bearer)], Some(&control.to_string())).await
}

/// Runs a command line with this token, beside the servers of this runtime.
async fn command(token: Option<&str>, arguments: &[&str]) -> (i32, String) {
    let mut command = hotserve(arguments);
    command.envs(token.map(|token| ("HOTSERVE_ADMIN_TOKEN", token)));
    let (code, text) = tokio::task::spawn_blocking(move || run(command)).await.unwrap();
    assert!(!text.contains(TOKEN), "a token is shown nowhere: {text}");
    (code, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_taken_from_who_has_the_token_where_they_are_to_be_taken() {
    let cloud = Cloud::start(1).await;
    let own_port = |settings: &mut Settings| {
        with_token(settings);
        settings.admin_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    };
    let unknown = json!({"action": "rollback", "model": "nope"});
    for own in [false, true] {
        let server = if own { cloud.server_with(own_port).await } else { cloud.server_with(with_token).await };
        let server = server.ready().await;
        assert_eq!(server.admin != Some(server.addr), own);
        let reply = tell(&server, unknown.clone()).await;
        assert_eq!((reply.status, reply.json()["code"].clone()), (StatusCode::NOT_FOUND, json!("no_slot")));
        let reply = Client::to(server.admin.unwrap()).post("/admin/control", unknown.to_string()).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert!(reply.header("www-authenticate").starts_with("Bearer"));
        if own {
            let reply = server.client.post("/admin/control", unknown.to_string()).await;
            assert_eq!((reply.status, reply.json()["code"].clone()), (StatusCode::NOT_FOUND, json!("not_found")));
            assert_eq!(Client::to(server.admin.unwrap()).get("/state").await.status, StatusCode::NOT_FOUND);
        }
        server.stop().await;
    }
    let server = cloud.server().await.ready().await;
    assert_eq!(server.admin, None);
    let reply = server.client.post("/admin/control", unknown.to_string()).await;
    assert_eq!((reply.status, reply.json()["code"].clone()), (StatusCode::NOT_FOUND, json!("not_found")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_says_what_is_wrong_and_what_to_do() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server_with(with_token).await.ready().await;
    let closed = cloud.server().await.ready().await;
    let (url, closed_url) = (format!("http://{}", server.addr), format!("http://{}", closed.addr));
    let short = cloud.path("short");
    std::fs::write(&short, "short\n").unwrap();
    let short = short.to_str().unwrap();
    let rollback = ["rollback", "--model", "nope"];
    for (token, arguments, expected, named) in [
        (Some(TOKEN), &["--server", &url][..], 1, "there is no model nope"),
        (Some("another token entirely".replace(' ', "-").as_str()), &["--server", &url], 1, "does not take this token"),
        (Some(TOKEN), &["--server", &closed_url], 1, "start it with --admin-token-file"),
        // Nobody listens on port 1.
        (Some(TOKEN), &["--server", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1 does not answer"),
        (None, &["--server", &url], 64, "HOTSERVE_ADMIN_TOKEN: missing"),
        (Some("short"), &["--server", &url], 64, "openssl rand"),
        (None, &["--server", &url, "--admin-token-file", short], 64, "16 to 1024"),
        (None, &["--server", &url, "--admin-token-file", "/nonexistent"], 64, "/nonexistent"),
        (Some(TOKEN), &[], 64, "--server (HOTSERVE_SERVER)"),
        (Some(TOKEN), &["--server", "localhost:8000"], 64, "http://host:8000"),
    ] {
        let (code, text) = command(token, &[&rollback[..], arguments].concat()).await;
        assert_eq!(code, expected, "{arguments:?}: {text}");
        assert!(text.contains(named), "{arguments:?} does not say {named:?}: {text}");
    }
    for arguments in [
        &["rollback"][..],
        &["rollback", "--model", "a", "--key", "b"],
        &["pin", "--model", "a", "--version", "0"],
        &["unpin", "--model", "a", "--version", "1"],
        &["revoke", "--model", "a"],
        &["revoke", "--model", "a", "--version", "1", "--sha256", "00"],
        &["publish", "control", "rollback", "--stream", "s"],
    ] {
        assert_eq!(command(Some(TOKEN), arguments).await.0, 64, "{arguments:?}");
    }
    server.stop().await;
    closed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_sends_the_command_and_says_what_is_served_now() {
    // What it is sent it answers as the version that is served, for the test to see.
    let router = Router::new().route(
        "/admin/control",
        post(async |headers: HeaderMap, body: String| {
            assert_eq!(headers["authorization"], format!("Bearer {TOKEN}"));
            let progress = if body.contains("loading") {
                "loading"
            } else if body.contains("waiting") {
                "waiting"
            } else {
                "done"
            };
            let done = json!({
                "slot": "model fraud", "action": "x", "before": "12", "serving": body, "progress": progress,
            });
            axum::Json(done)
        }),
    );
    let endpoint = Endpoint::start("a server", ([127, 0, 0, 1], 0).into(), router).await.unwrap();
    let url = format!("http://{}", endpoint.addr());
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for (arguments, control) in [
        (&["rollback", "--model", "fraud"][..], r#"{"action":"rollback","model":"fraud"}"#),
        (&["rollback", "--model", "fraud", "--to", "11"], r#"{"action":"rollback","model":"fraud","version":11}"#),
        (&["pin", "--key", "pricing"], r#"{"action":"pin","key":"pricing"}"#),
        (&["pin", "--key", "pricing", "--version", "7"], r#"{"action":"pin","key":"pricing","version":7}"#),
        (&["unpin", "--model", "fraud"], r#"{"action":"unpin","model":"fraud"}"#),
        (&["revoke", "--model", "fraud", "--version", "12"], r#"{"action":"revoke","model":"fraud","version":12}"#),
        (
            &["revoke", "--model", "fraud", "--sha256", digest],
            &format!(r#"{{"action":"revoke","model":"fraud","sha256":"{digest}"}}"#),
        ),
    ] {
        let (code, text) = command(Some(TOKEN), &[arguments, &["--server", &url]].concat()).await;
        assert_eq!(code, 0, "{text}");
        assert!(text.contains(&format!("model fraud: version {control} is served (12 was)")), "{text}");
    }
    let (code, text) = command(Some(TOKEN), &["rollback", "--model", "loading", "--server", &url]).await;
    assert!(code == 0 && text.contains("is being made ready"), "{code} {text}");
    let (code, text) = command(Some(TOKEN), &["rollback", "--model", "waiting", "--server", &url]).await;
    assert!(code == 1 && text.contains("is not on this server") && text.contains("publish it again"), "{code} {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_for_all_servers_goes_into_the_stream() {
    use aws_sdk_kinesis::types::ShardIteratorType::TrimHorizon;
    let cloud = Cloud::start(1).await;
    let endpoints = cloud.embedded.endpoints();
    let mut command =
        hotserve(&["publish", "control", "rollback", "--model", "fraud", "--to", "11", "--stream", STREAM]);
    command
        .env("AWS_REGION", &endpoints.region)
        .env("AWS_ACCESS_KEY_ID", &endpoints.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &endpoints.secret_access_key)
        .env("AWS_ENDPOINT_URL_KINESIS", &endpoints.kinesis);
    let (code, text) = tokio::task::spawn_blocking(move || run(command)).await.unwrap();
    assert!(code == 0 && text.starts_with("published rollback of model fraud: sequence number"), "{code} {text}");
    let kinesis = cloud.kinesis();
    let iterator = kinesis.get_shard_iterator().stream_name(STREAM).shard_id("shardId-000000000000");
    let iterator = iterator.shard_iterator_type(TrimHorizon).send().await.unwrap().shard_iterator.unwrap();
    let page = kinesis.get_records().shard_iterator(iterator).send().await.unwrap();
    let [record] = page.records() else { panic!("{page:?}") };
    // As the messages of the model have it, so that it keeps its order with them.
    assert_eq!(record.partition_key(), Some("model:fraud"));
    let message: Value = serde_json::from_slice(record.data().as_ref()).unwrap();
    assert_eq!(message["control"], json!({"action": "rollback", "model": "fraud", "version": 11}));
    assert!(message["message_id"].is_string() && message["published_at"].is_string(), "{message}");
}

/// A server with the model `m` in versions 1 to `newest`, each served once, and a way to keep them over a restart.
async fn with_versions(newest: u64) -> (Cloud, PathBuf, Server) {
    let cloud = Cloud::start(1).await;
    let cache_dir = cloud.path("cache");
    let server = again(&cloud, &cache_dir).await;
    for version in 1..=newest {
        publish(&cloud, version).await;
        until_version(&server, version).await;
    }
    (cloud, cache_dir, server)
}

async fn again(cloud: &Cloud, cache_dir: &std::path::Path) -> Server {
    let settings = |settings: &mut Settings| {
        with_token(settings);
        settings.cache_dir = Some(cache_dir.to_owned());
    };
    cloud.server_with(settings).await.ready().await
}

async fn publish(cloud: &Cloud, version: u64) {
    cloud.put(json!({"model": cloud.upload("m", version, "linear", &constant_model(version)).await}).to_string()).await;
}

/// Waits until the server has taken in everything that was put so far.
async fn until_taken_in(cloud: &Cloud, server: &Server) {
    let marker = format!("{:032x}", fastrand::u128(..));
    cloud.put(json!({"key": "marker", "state": marker}).to_string()).await;
    until("the marker", async || server.client.get("/state/marker").await.text().contains(&marker).then_some(())).await;
}

async fn version(client: &Client) -> Result<u64, String> {
    let reply = client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
    let version: u64 = match reply.headers.get("x-model-version") {
        Some(version) if reply.status == StatusCode::OK => version.to_str().unwrap().parse().unwrap(),
        _ => return Err(format!("{reply:?}")),
    };
    if reply.json()["predictions"] == json!([version as f64]) { Ok(version) } else { Err(format!("{reply:?}")) }
}

async fn until_version(server: &Server, expected: u64) {
    until(&format!("version {expected}"), async || (version(&server.client).await == Ok(expected)).then_some(())).await;
}

/// What was told last; the swap that followed has an entry of its own.
async fn newest_command(server: &Server) -> Value {
    let history = server.client.get("/history").await.json();
    let entries = history["entries"].as_array().unwrap();
    entries.iter().find(|entry| entry["by"].is_string()).cloned().unwrap_or_default()
}

async fn held(server: &Server) -> Value {
    server.client.get("/models").await.json()["models"][0]["held"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_under_load_is_at_once_downloads_nothing_and_fails_no_request() {
    let (cloud, _, server) = with_versions(2).await;
    let fetched = server.metric("hotserve_artifact_fetch_bytes_total").await;
    let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let readers: Vec<_> = (0..16)
        .map(|_| {
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            let client = Client::to(server.addr);
            tokio::spawn(async move {
                let mut first = None;
                while !stop.load(Ordering::Relaxed) {
                    if version(&client).await? == 1 && first.is_none() {
                        first = Some(Instant::now());
                    }
                    requests.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(first)
            })
        })
        .collect();
    until("load", async || (requests.load(Ordering::Relaxed) > 2000).then_some(())).await;
    let told = Instant::now();
    let reply = tell(&server, json!({"action": "rollback", "model": "m"})).await;
    let answered = told.elapsed();
    let done = json!({"slot": "model m", "action": "rollback", "before": "2", "serving": "1", "progress": "done"});
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, done));
    assert_eq!(version(&server.client).await, Ok(1), "the answer comes after the swap");
    let before = requests.load(Ordering::Relaxed);
    until("more load", async || (requests.load(Ordering::Relaxed) > before + 2000).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    let mut first = Vec::new();
    for reader in readers {
        first.push(reader.await.unwrap().unwrap().expect("every reader sees it").duration_since(told));
    }
    first.sort();
    println!(
        "{} requests on 16 connections, none failed; the command was answered after {answered:?}, the first answer of \
         the version before came after {:?} and the last connection's first after {:?}",
        requests.load(Ordering::Relaxed),
        first[0],
        first[15],
    );
    assert_eq!(server.metric("hotserve_artifact_fetch_bytes_total").await, fetched);
    let entry = newest_command(&server).await;
    assert_eq!((&entry["outcome"], &entry["by"]), (&json!("rolled_back"), &json!("admin")), "{entry}");
    // What was taken back stays so; what is newer is served.
    publish(&cloud, 2).await;
    until_taken_in(&cloud, &server).await;
    assert_eq!(version(&server.client).await, Ok(1));
    publish(&cloud, 3).await;
    until_version(&server, 3).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_survives_a_restart() {
    let (cloud, cache_dir, server) = with_versions(3).await;
    let reply = tell(&server, json!({"action": "rollback", "model": "m", "version": 2})).await;
    assert_eq!((reply.status, reply.json()["serving"].clone()), (StatusCode::OK, json!("2")));
    server.stop().await;
    let server = again(&cloud, &cache_dir).await;
    until_taken_in(&cloud, &server).await;
    assert_eq!(version(&server.client).await, Ok(2));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_holds_against_what_is_published_and_over_a_restart() {
    let (cloud, cache_dir, server) = with_versions(2).await;
    let reply = tell(&server, json!({"action": "pin", "model": "m", "version": 1})).await;
    assert_eq!((reply.status, reply.json()["serving"].clone()), (StatusCode::OK, json!("1")));
    assert_eq!(held(&server).await, json!({"by": "admin", "version": 1}));
    publish(&cloud, 3).await;
    until_taken_in(&cloud, &server).await;
    assert_eq!(version(&server.client).await, Ok(1));
    server.stop().await;

    let server = again(&cloud, &cache_dir).await;
    until_taken_in(&cloud, &server).await;
    assert_eq!(version(&server.client).await, Ok(1));
    assert_eq!(held(&server).await, json!({"by": "admin", "version": 1}));
    let reply = tell(&server, json!({"action": "unpin", "model": "m"})).await;
    assert!(reply.status.is_success(), "{reply:?}");
    until_version(&server, 3).await;
    assert_eq!(held(&server).await, Value::Null);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_is_never_served_again() {
    let (cloud, cache_dir, server) = with_versions(2).await;
    let reply = tell(&server, json!({"action": "revoke", "model": "m", "version": 2})).await;
    assert_eq!((reply.status, reply.json()["serving"].clone()), (StatusCode::OK, json!("1")));
    publish(&cloud, 2).await;
    until_taken_in(&cloud, &server).await;
    assert_eq!(version(&server.client).await, Ok(1));
    server.stop().await;
    let server = again(&cloud, &cache_dir).await;
    until_taken_in(&cloud, &server).await;
    assert_eq!(version(&server.client).await, Ok(1));
    let reply = tell(&server, json!({"action": "pin", "model": "m", "version": 2})).await;
    assert_eq!((reply.status, reply.json()["code"].clone()), (StatusCode::CONFLICT, json!("barred")));
    // By its digest it is barred under any version.
    let three = cloud.upload("m", 3, "linear", &constant_model(3)).await;
    let reply = tell(&server, json!({"action": "revoke", "model": "m", "sha256": three["sha256"]})).await;
    assert!(reply.status.is_success(), "{reply:?}");
    cloud.put(json!({"model": three}).to_string()).await;
    until_taken_in(&cloud, &server).await;
    assert_eq!(version(&server.client).await, Ok(1));
    publish(&cloud, 4).await;
    until_version(&server, 4).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_of_the_stream_is_obeyed() {
    let (cloud, _, server) = with_versions(2).await;
    cloud.put(json!({"control": {"action": "rollback", "model": "m"}}).to_string()).await;
    until_version(&server, 1).await;
    let entry = until("the entry", async || {
        let entry = newest_command(&server).await;
        (entry["outcome"] == "rolled_back").then_some(entry)
    })
    .await;
    assert_eq!((&entry["by"], &entry["slots"]), (&json!("stream"), &json!(["model m"])), "{entry}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_nothing_to_go_back_to_everything_stays_as_it_is() {
    let (_cloud, _, server) = with_versions(1).await;
    let reply = tell(&server, json!({"action": "rollback", "model": "m"})).await;
    assert_eq!((reply.status, reply.json()["code"].clone()), (StatusCode::CONFLICT, json!("nothing_to_go_back_to")));
    assert_eq!(version(&server.client).await, Ok(1));
    let url = format!("http://{}", server.addr);
    let (code, text) = command(Some(TOKEN), &["rollback", "--model", "m", "--server", &url]).await;
    assert!(code == 1 && text.contains("nothing_to_go_back_to"), "{code} {text}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_rolls_back() {
    let (_cloud, _, server) = with_versions(2).await;
    let url = format!("http://{}", server.addr);
    let (code, text) = command(Some(TOKEN), &["rollback", "--model", "m", "--server", &url]).await;
    assert_eq!((code, text.trim()), (0, "model m: version 1 is served (2 was)"));
    assert_eq!(version(&server.client).await, Ok(1));
    server.stop().await;
}
