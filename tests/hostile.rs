//! Two hundred messages that mean harm, or only know no better.

use http::StatusCode;
use serde_json::{Value, json};
use std::io::Write as _;

use crate::support::{BUCKET, Cloud, constant_model, until};

/// What is sent, and the reason for which it must be refused.
fn hostile(cloud_model: &Value) -> Vec<(Vec<u8>, &'static str)> {
    use base64::Engine as _;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let zeros = vec![b' '; 32 << 20];
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let model = |change: Value| {
        let mut model = cloud_model.clone();
        model.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({ "model": model }).to_string().into_bytes()
    };
    let inline = |version: u64, format: &str, bytes: &[u8]| {
        json!({"model": {"name": "m", "version": version, "format": format, "inline": base64(bytes)}})
            .to_string()
            .into_bytes()
    };
    let mut all: Vec<(Vec<u8>, &'static str)> = vec![
        (b"not json".to_vec(), "not_json"),
        (b"\xff\xfe\x00".to_vec(), "not_json"),
        (b" ".to_vec(), "not_json"),
        (b"{'message_id':'4142','text':'some text','state':96}".to_vec(), "not_json"),
        (b"[".repeat((1 << 20) - 100), "depth"),
        (br#"{"a":"#.repeat(100_000), "depth"),
        (br#"{"state":1,"state":2}"#.to_vec(), "duplicate_key"),
        (br#"{"state":{"a":1,"a":1}}"#.to_vec(), "duplicate_key"),
        (b"42".to_vec(), "unknown_kind"),
        (b"null".to_vec(), "unknown_kind"),
        (br#"{"hello":"world"}"#.to_vec(), "unknown_kind"),
        (br#"{"control":{"action":"promote","model":"m","version":1}}"#.to_vec(), "unknown_kind"),
        (b"\xf3\x89\x9a\xc2not really an aggregate".to_vec(), "unknown_kind"),
        (br#"{"state":1,"must_understand":["telepathy"]}"#.to_vec(), "must_understand"),
        (br#"{"state":1,"key":"../../etc/passwd"}"#.to_vec(), "schema"),
        (br#"{"state":1,"version":"seven"}"#.to_vec(), "schema"),
        (br#"{"state":1,"version":1.5}"#.to_vec(), "schema"),
        (br#"{"state":1,"version":18446744073709551615}"#.to_vec(), "schema"),
        (br#"{"model":[1,2,3]}"#.to_vec(), "schema"),
        (br#"{"state":"old","expires_at":"2020-01-01T00:00:00Z"}"#.to_vec(), "expired"),
        (gzip(&zeros), "too_large"),
        (zstd::encode_all(&zeros[..], 19).unwrap(), "too_large"),
        (gzip(b"{\"state\":1}")[..15].to_vec(), "inflate"),
        (model(json!({"version": 50, "uri": "s3://other-bucket/key"})), "forbidden_uri"),
        (model(json!({"version": 51, "uri": "file:///etc/passwd"})), "forbidden_uri"),
        (model(json!({"version": 52, "uri": "s3://artifacts/../other/key"})), "uri"),
        (model(json!({"version": 53, "uri": "../../etc/passwd"})), "uri"),
        (model(json!({"version": 54, "uri": "http://169.254.169.254/latest/meta-data"})), "uri"),
        (model(json!({"version": 55, "sha256": "../../etc/passwd"})), "schema"),
        (model(json!({"version": 56, "name": "../m"})), "schema"),
        (inline(57, "pickle", b"cos\nsystem\n(S'id'\ntR."), "unsupported_format"),
        (inline(58, "linear", b"{\"kind\":\"linear\"}"), "malformed"),
        (inline(59, "xgboost", b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner"), "malformed"),
        (
            json!({"model": {"name": "m", "version": 60, "format": "linear", "encoding": "gzip", "inline": base64(&gzip(&zeros))}})
                .to_string()
                .into_bytes(),
            "too_large",
        ),
        (
            json!({"model": {"name": "m", "version": 61, "format": "linear", "inline": base64(&constant_model(7)),
                "signature": {"inputs": [], "outputs": []}}})
            .to_string()
            .into_bytes(),
            "contract",
        ),
        (
            json!({"model": {"name": "m", "version": 62, "format": "linear", "inline": base64(&constant_model(7)),
                "golden": {"cases": [{"inputs": {"input": [[0.0]]}, "outputs": {"prediction": [8.0]}}]}}})
            .to_string()
            .into_bytes(),
            "golden",
        ),
        (model(json!({"version": 63, "sha256": "0".repeat(64)})), "digest"),
        (model(json!({"version": 64, "size": 1})), "size"),
        (
            model(json!({"version": 65, "uri": format!("s3://{BUCKET}/missing"), "sha256": "1".repeat(64)})),
            "not_found",
        ),
        // The one served already has this version, and other bytes.
        (inline(1, "linear", &constant_model(99)), "conflict"),
        // The slot has had versions.
        (br#"{"key":"versioned","state":1}"#.to_vec(), "unversioned"),
    ];
    // Torn, doubled and shuffled copies of a good message.
    let good =
        br#"{"message_id":"1","key":"k","version":7,"state":{"a":[1,2,3]},"published_at":"2026-11-23T18:00:00Z"}"#;
    for cut in 1..good.len() {
        all.push((good[..cut].to_vec(), "not_json"));
    }
    for number in 0..60_u8 {
        let mut bytes = vec![b'{', b'"', number, b'"'];
        bytes.extend(std::iter::repeat_n(number.wrapping_mul(37), usize::from(number)));
        all.push((bytes, "not_json"));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hostile_message_is_counted_by_its_reason_and_the_next_good_one_is_served() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server_with(|settings| settings.allow = vec![format!("s3://{BUCKET}")]).await.ready().await;
    let first = cloud.upload("m", 1, "linear", &constant_model(1)).await;
    cloud.put(json!({ "model": first }).to_string()).await;
    cloud.put(json!({"key": "versioned", "version": 1, "state": 0}).to_string()).await;
    until("the first model", async || {
        (server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await.status == StatusCode::OK).then_some(())
    })
    .await;

    let other = cloud.upload("m", 2, "linear", &constant_model(2)).await;
    let messages = hostile(&other);
    assert!(messages.len() >= 200, "{}", messages.len());
    let mut expected = std::collections::BTreeMap::<&str, f64>::new();
    for (message, reason) in &messages {
        cloud.put(message).await;
        *expected.entry(reason).or_default() += 1.0;
        let series = format!(r#"hotserve_rejections_total{{reason="{reason}"}}"#);
        let begin: String = String::from_utf8_lossy(message).chars().take(100).collect();
        // One after the other, so that none is folded into another.
        until(&format!("{reason} of {begin:?}"), async || {
            (server.metric(&series).await >= expected[reason]).then_some(())
        })
        .await;
    }
    for reason in hotserve::metrics::REJECTIONS {
        let counted = server.metric(&format!(r#"hotserve_rejections_total{{reason="{reason}"}}"#)).await;
        assert_eq!(counted, expected.get(reason).copied().unwrap_or_default(), "{reason}");
    }
    let history = server.client.get("/history?limit=500").await.json();
    let rejected = history["entries"].as_array().unwrap().iter().filter(|entry| entry["outcome"] == "rejected").count();
    assert_eq!(rejected, messages.len());

    let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
    assert_eq!((reply.status, reply.header("x-model-version")), (StatusCode::OK, "1"));
    cloud.put(json!({"model": other, "key": "versioned", "version": 2, "state": "good"}).to_string()).await;
    until("the next good message", async || {
        let reply = server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
        (reply.header("x-model-version") == "2").then_some(())
    })
    .await;
    assert_eq!(server.client.get("/state/versioned").await.text(), r#"{"state":"good"}"#);
    assert!(server.is_ready().await);
    server.stop().await;
}
