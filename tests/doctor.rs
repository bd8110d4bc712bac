//! The commands that look at a stream, as a person meets them: what they say, and their exit codes.

use std::process::Command;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use hotserve::aws::Endpoints;
use hotserve::embedded::Endpoint;
use hotserve::source::kinesis::consumers::Consumers;
use http::StatusCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::cli::{hotserve, run};
use crate::support::{BUCKET, Cloud, STREAM};

/// Runs a command against these endpoints, beside the servers of this runtime.
async fn against(endpoints: &Endpoints, arguments: &[&str]) -> (i32, String) {
    let mut command = hotserve(arguments);
    command
        .env("AWS_REGION", &endpoints.region)
        .env("AWS_ACCESS_KEY_ID", &endpoints.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &endpoints.secret_access_key)
        .env("AWS_ENDPOINT_URL_KINESIS", &endpoints.kinesis)
        .env("AWS_ENDPOINT_URL_S3", &endpoints.s3);
    run_beside(command).await
}

async fn run_beside(command: Command) -> (i32, String) {
    tokio::task::spawn_blocking(move || run(command)).await.unwrap()
}

/// A Kinesis endpoint that refuses one call with this error, and hands the others on.
async fn refusing(cloud: &Cloud, call: &'static str, error: &'static str) -> (Endpoint, Endpoints) {
    let behind = cloud.embedded.endpoints();
    let (client, to) = (Client::builder(TokioExecutor::new()).build_http::<Body>(), Arc::new(behind.kinesis.clone()));
    let router = Router::new().fallback(move |mut request: Request| {
        let (client, to) = (client.clone(), Arc::clone(&to));
        async move {
            let target = request.headers().get("x-amz-target").unwrap().to_str().unwrap().to_owned();
            if target.ends_with(&format!(".{call}")) {
                let body = format!(r#"{{"__type":"{error}","message":"you may not {call}"}}"#);
                let head = [("content-type", "application/x-amz-json-1.1")];
                return (StatusCode::BAD_REQUEST, head, body).into_response();
            }
            *request.uri_mut() = to.parse().unwrap();
            let answer: Response = client.request(request).await.unwrap().map(Body::new);
            answer
        }
    });
    let endpoint = Endpoint::start("Kinesis", ([127, 0, 0, 1], 0).into(), router).await.unwrap();
    let endpoints = Endpoints { kinesis: format!("http://{}", endpoint.addr()), ..behind };
    (endpoint, endpoints)
}

/// The result of a check: status, finding and cure.
fn finding<'a>(report: &'a Value, check: &str) -> (&'a str, &'a str, &'a str) {
    let all = report.as_array().unwrap();
    let found = all.iter().find(|finding| finding["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no check {check} in {report:#}"));
    let text = |field: &str| found[field].as_str().unwrap_or_default();
    (text("status"), text("finding"), text("cure"))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_finds_a_healthy_stream_well() {
    let cloud = Cloud::start(1).await;
    cloud.put(r#"{"key":"pricing","version":7,"state":1}"#).await;
    cloud.upload("m", 1, "linear", b"a model").await;
    let artifacts = format!("s3://{BUCKET}");
    let (code, text) =
        against(&cloud.embedded.endpoints(), &["doctor", "--stream", STREAM, "--artifacts", &artifacts]).await;
    assert_eq!(code, 0, "{text}");
    for expected in
        ["ok    last message: ", " ago: state pricing v7\n", "may be listed and read", "It serves; 1 warning."]
    {
        assert!(text.contains(expected), "{text}");
    }
    assert!(!text.contains("FAIL") && !text.contains('\u{1b}'), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_worth_a_warning_is_no_failure() {
    let cloud = Cloud::start(2).await;
    cloud.put("garbage").await;
    let (code, text) = against(&cloud.embedded.endpoints(), &["doctor", "--stream", STREAM, "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let report = json(&text);
    for (check, found, cured) in [
        ("shards", "2 open", "--version N"),
        ("retention", "24 h", "increase-stream-retention-period"),
        ("last message", "not_json", "hotserve tail"),
    ] {
        let (status, finding, cure) = finding(&report, check);
        assert_eq!(status, "warn", "{report:#}");
        assert!(finding.contains(found) && cure.contains(cured), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_or_a_bucket_that_is_not_there_is_named_with_what_there_is() {
    let cloud = Cloud::start(1).await;
    let arguments = ["doctor", "--stream", "updtaes", "--artifacts", "s3://elsewhere/models", "--json"];
    let (code, text) = against(&cloud.embedded.endpoints(), &arguments).await;
    assert_eq!(code, 1, "{text}");
    let report = json(&text);
    let (status, found, cure) = finding(&report, "stream");
    assert_eq!(status, "fail");
    assert!(found.contains("no stream updtaes in us-east-1") && found.contains(STREAM), "{found}");
    assert!(cure.contains("KINESIS_STREAM") && cure.contains("aws kinesis create-stream"), "{cure}");
    let (status, found, _) = finding(&report, "artifacts");
    assert_eq!((status, found), ("fail", "no bucket elsewhere"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permission_that_is_missing_is_named_with_its_resource() {
    let cloud = Cloud::start(1).await;
    let arn = format!("arn:aws:kinesis:us-east-1:000000000000:stream/{STREAM}");
    for (call, error, check, status, cured) in [
        ("ListShards", "AccessDeniedException", "ListShards", "fail", format!("kinesis:ListShards on {arn}")),
        ("GetShardIterator", "AccessDeniedException", "GetShardIterator", "fail", format!("GetShardIterator on {arn}")),
        ("GetRecords", "AccessDeniedException", "GetRecords", "fail", format!("kinesis:GetRecords on {arn}")),
        ("GetRecords", "KMSAccessDeniedException", "GetRecords", "fail", "kms:Decrypt".to_owned()),
        ("DescribeStreamSummary", "AccessDeniedException", "stream", "warn", "DescribeStreamSummary".to_owned()),
        ("ListStreamConsumers", "AccessDeniedException", "consumers", "warn", "ListStreamConsumers".to_owned()),
        ("GetRecords", "ProvisionedThroughputExceededException", "GetRecords", "warn", "--poll-interval".to_owned()),
    ] {
        let (_endpoint, endpoints) = refusing(&cloud, call, error).await;
        let (code, text) = against(&endpoints, &["doctor", "--stream", STREAM, "--json"]).await;
        let report = json(&text);
        let (found_status, _, cure) = finding(&report, check);
        assert_eq!((found_status, code), (status, i32::from(status == "fail")), "{call} {error}: {report:#}");
        assert!(cure.contains(&cured), "{call} {error}: {report:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_region_credentials_or_a_connection_the_way_out_is_named() {
    let home = tempfile::tempdir().unwrap();
    let doctor = || {
        let mut command = hotserve(&["doctor", "--stream", "s", "--json"]);
        // Nobody listens on port 1.
        command.env("HOME", home.path()).env("AWS_ENDPOINT_URL_KINESIS", "http://127.0.0.1:1");
        command
    };
    let failed = async |command: Command, check: &str, cured: &[&str]| {
        let (code, text) = run_beside(command).await;
        let report = json(&text);
        let (status, found, cure) = finding(&report, check);
        assert_eq!((code, status), (1, "fail"), "{report:#}");
        assert!(!found.contains("dispatch failure") && !found.contains("Attempted"), "{found}");
        assert!(cured.iter().all(|word| cure.contains(word)), "{report:#}");
    };
    failed(doctor(), "region", &["AWS_REGION"]).await;
    let mut command = doctor();
    command.env("AWS_REGION", "us-east-1");
    failed(command, "credentials", &["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "a role"]).await;
    let mut command = doctor();
    command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b");
    failed(command, "endpoint", &["nobody listens there", "AWS_ENDPOINT_URL_KINESIS"]).await;
    assert_eq!(run(hotserve(&["doctor"])).0, 64, "no stream is named");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_shows_what_is_there_and_ends_when_told() {
    let cloud = Cloud::start(1).await;
    let endpoints = cloud.embedded.endpoints();
    cloud.put(r#"{"state":1}"#).await;
    cloud.put("garbage").await;
    cloud.put(r#"{"key":"pricing","version":7,"state":{"eur":1.080}}"#).await;

    let (code, text) = against(&endpoints, &["tail", "--stream", STREAM, "--count", "1"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("state pricing v7 = {\"eur\":1.080}") && text.lines().count() == 1, "{text}");

    let arguments = ["tail", "--stream", STREAM, "--since", "10m", "--count", "3", "--json"];
    let (code, text) = against(&endpoints, &arguments).await;
    assert_eq!(code, 0, "{text}");
    let lines: Vec<_> = text.lines().map(json).collect();
    let outcomes: Vec<_> = lines.iter().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["notification", "rejection", "notification"]);
    assert_eq!((&lines[1]["reason"], &lines[1]["text"]), (&"not_json".into(), &"garbage".into()));
    assert!(text.contains("1.080"), "a message is shown as it was published: {text}");

    let (code, text) = against(&endpoints, &["tail", "--stream", "nosuch"]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("no stream \"nosuch\"") && text.contains("hotserve doctor"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_that_were_left_behind_are_cleared_and_those_of_others_stay() {
    let cloud = Cloud::start(1).await;
    let (endpoints, consumers) = (cloud.embedded.endpoints(), Consumers::new(&cloud.aws, STREAM));
    for name in ["hotserve-a", "billing"] {
        consumers.register(name).await.unwrap();
    }
    let (code, text) = against(&endpoints, &["consumers", "list", "--stream", STREAM]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("hotserve-a") && text.contains("billing"), "{text}");

    let clear = async |arguments: &[&str]| {
        let arguments = [&["consumers", "clear", "--stream", STREAM], arguments].concat();
        against(&endpoints, &arguments).await
    };
    let (code, text) = clear(&[]).await;
    assert!(code == 64 && text.contains("--older-than 1h"), "{code} {text}");
    let (code, text) = clear(&["--older-than", "1h"]).await;
    assert!(code == 0 && text.contains("nothing to remove"), "{code} {text}");
    let (code, text) = clear(&["--older-than", "0s", "--dry-run"]).await;
    assert!(code == 0 && text.contains("would remove hotserve-a") && !text.contains("billing"), "{code} {text}");
    let (code, text) = clear(&["--older-than", "0s"]).await;
    assert!(code == 0 && text.contains("removed hotserve-a") && !text.contains("billing"), "{code} {text}");
    let (code, text) = clear(&["nobody"]).await;
    assert!(code == 1 && text.contains("\"nobody\""), "{code} {text}");
    let (code, text) = clear(&["billing"]).await;
    assert!(code == 0 && text.contains("removed billing"), "{code} {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_and_a_bucket_of_another_region_are_told() {
    let cloud = Cloud::start(1).await;
    let router = Router::new().fallback(async |request: Request| match request.method() {
        &http::Method::POST => {
            let identity = "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                <GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/eve</Arn></GetCallerIdentityResult>\
                </GetCallerIdentityResponse>";
            (StatusCode::OK, [("content-type", "text/xml")], identity)
        }
        _ => {
            let error = "<Error><Code>PermanentRedirect</Code><Message>another endpoint</Message></Error>";
            (StatusCode::MOVED_PERMANENTLY, [("x-amz-bucket-region", "eu-west-1")], error)
        }
    });
    let endpoint = Endpoint::start("AWS", ([127, 0, 0, 1], 0).into(), router).await.unwrap();
    let url = format!("http://{}", endpoint.addr());
    let mut command = hotserve(&["doctor", "--stream", STREAM, "--artifacts", "s3://models/prod", "--json"]);
    let here = cloud.embedded.endpoints();
    command
        .env("AWS_REGION", &here.region)
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_ENDPOINT_URL_KINESIS", &here.kinesis)
        .env("AWS_ENDPOINT_URL_S3", &url)
        .env("AWS_ENDPOINT_URL_STS", &url);
    let (code, text) = run_beside(command).await;
    assert_eq!(code, 1, "{text}");
    let report = json(&text);
    assert_eq!(finding(&report, "identity").1, "arn:aws:iam::123456789012:user/eve");
    let credentials = finding(&report, "credentials").1;
    assert_eq!(credentials, "AKIA…MPLE from AWS_ACCESS_KEY_ID in the environment");
    let (status, found, cure) = finding(&report, "artifacts");
    assert_eq!(status, "fail");
    assert!(found.contains("is in eu-west-1") && cure.contains("us-east-1"), "{found} {cure}");
}
