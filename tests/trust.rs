//! Signatures: what nobody trusted has signed changes nothing, and is refused before any of it is fetched or parsed.

use std::path::{Path, PathBuf};

use hotserve::aws::Retries;
use hotserve::config::{HumanDuration, ManifestUri};
use hotserve::manifest::object::{Condition, ManifestObject, Read};
use hotserve::manifest::{self, Manifest};
use hotserve::notification::envelope::seal;
use hotserve::publisher::{Draft, Error, Publisher};
use hotserve::trust::{Required, SigningKey};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cli;
use crate::support::{BUCKET, Cloud, STREAM, Server, constant_model, until};

fn key() -> SigningKey {
    SigningKey::generate().unwrap()
}

/// An entry of a keyring, as `hotserve keygen` prints it, with more lines.
fn entry(key: &SigningKey, more: &str) -> String {
    format!("[[keys]]\npublic = \"{}\"\n{more}\n", key.public())
}

fn keyring(cloud: &Cloud, text: impl AsRef<[u8]>) -> PathBuf {
    let path = cloud.path(&format!("keyring-{}.toml", fastrand::u64(..)));
    std::fs::write(&path, text).unwrap();
    path
}

async fn server(cloud: &Cloud, required: Required, keyring: &Path) -> Server {
    let server = cloud.server_with(|settings| {
        settings.trusted_keys = Some(keyring.to_owned());
        settings.require_signature = Some(required);
    });
    server.await.ready().await
}

fn signed<'a>(message: impl AsRef<[u8]>, keys: impl IntoIterator<Item = &'a SigningKey>) -> Value {
    serde_json::from_slice(&seal(message.as_ref(), keys).unwrap()).unwrap()
}

fn base64(text: impl AsRef<[u8]>) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Puts a message, and waits until it is refused for this reason.
async fn is_refused(cloud: &Cloud, server: &Server, message: impl ToString, reason: &str) {
    let series = format!(r#"hotserve_rejections_total{{reason="{reason}"}}"#);
    let before = server.metric(&series).await;
    cloud.put(message.to_string()).await;
    until(&format!("{reason} of {}", message.to_string()), async || {
        (server.metric(&series).await > before).then_some(())
    })
    .await;
}

/// The version that answers, once one does.
async fn predicted(server: &Server, model: &str) -> Option<String> {
    let reply = server.client.post(&format!("/predict/{model}"), r#"{"instances":[[0]]}"#).await;
    reply.headers.get("x-model-version").map(|version| version.to_str().unwrap().to_owned())
}

async fn until_predicted(server: &Server, model: &str, version: &str) {
    until(&format!("{model} {version}"), async || (predicted(server, model).await? == version).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_rightly_signed_is_refused_before_any_of_it_is_fetched_or_parsed() {
    let cloud = Cloud::start(1).await;
    let (ours, irises, stranger) = (key(), key(), key());
    let keys = entry(&ours, "") + &entry(&irises, "slots = [\"model/iris\"]");
    let server = server(&cloud, Required::All, &keyring(&cloud, keys)).await;
    assert_eq!(server.metric("hotserve_signature_required").await, 2.0);

    let model = cloud.upload("m", 1, "linear", &constant_model(1)).await;
    let evil = cloud.upload("m", 1, "linear", &constant_model(666)).await;
    let message = json!({ "model": model }).to_string();
    let iris = json!({"model": {"name": "iris", "version": 1, "format": "linear", "inline": base64("no model")}});
    let good = signed(&message, [&ours]);
    let with_payload = |payload: &Value| {
        let mut envelope = good.clone();
        envelope["payload"] = base64(payload.to_string()).into();
        envelope
    };
    let mut other_key = signed(&message, [&stranger]);
    other_key["signatures"][0]["keyid"] = good["signatures"][0]["keyid"].clone();
    let mut nobody = good.clone();
    nobody["signatures"] = json!([]);
    let old = json!({"model": model, "expires_at": "2020-01-01T00:00:00Z"}).to_string();
    let undigested = json!({"model": {"name": "m", "version": 1, "format": "linear", "uri": model["uri"]}}).to_string();
    let unversioned = json!({"model": {"name": "m", "format": "linear", "inline": base64("no model")}}).to_string();
    for (message, reason) in [
        (message.clone(), "unsigned"),
        (iris.to_string(), "unsigned"),
        (r#"{"model":"no model"}"#.to_owned(), "unsigned"),
        (nobody.to_string(), "unsigned"),
        (signed(&message, [&stranger]).to_string(), "unknown_key"),
        (other_key.to_string(), "bad_signature"),
        // The digest of another object, and another slot's content under this signature.
        (with_payload(&json!({ "model": evil })).to_string(), "bad_signature"),
        (with_payload(&iris).to_string(), "bad_signature"),
        // Another slot's key.
        (signed(&message, [&irises]).to_string(), "key_scope"),
        (signed(&old, [&ours]).to_string(), "expired"),
        (signed(&undigested, [&ours]).to_string(), "schema"),
        (signed(&unversioned, [&ours]).to_string(), "unversioned"),
        (signed(r#"{"telepathy":{}}"#, [&ours]).to_string(), "unknown_kind"),
        (signed(good.to_string(), [&ours]).to_string(), "schema"),
        (r#"{"version":1,"state":"unsigned"}"#.to_owned(), "unsigned"),
    ] {
        is_refused(&cloud, &server, message, reason).await;
    }
    for (series, what) in [
        ("hotserve_artifact_fetch_bytes_total", "no byte was fetched"),
        (r#"hotserve_artifact_cache_total{result="miss"}"#, "no artifact was looked for"),
        (r#"hotserve_swap_stage_duration_seconds_count{stage="load"}"#, "no model was loaded"),
        (r#"hotserve_rejections_total{reason="malformed"}"#, "no model was parsed"),
        ("hotserve_swaps_total", "nothing was swapped in"),
    ] {
        assert_eq!(server.metric(series).await, 0.0, "{what}");
    }

    cloud.put(good.to_string()).await;
    until_predicted(&server, "m", "1").await;
    assert!(server.metric("hotserve_artifact_fetch_bytes_total").await > 0.0);
    let history = server.client.get("/history?limit=1").await.json();
    assert_eq!(history["entries"][0]["signers"], json!([ours.public().id()]), "{history}");
    // What the key of the irises may sign is parsed: only then it is found to be no model.
    is_refused(&cloud, &server, signed(iris.to_string(), [&irises]), "malformed").await;
    assert_eq!(server.state().await, 0, "the initial state");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_played_again_changes_nothing_also_after_a_restart() {
    let cloud = Cloud::start(1).await;
    let ours = key();
    let (keyring, cache) = (keyring(&cloud, entry(&ours, "")), cloud.path("cache"));
    let start = async || {
        let server = cloud.server_with(|settings| {
            settings.trusted_keys = Some(keyring.clone());
            settings.cache_dir = Some(cache.clone());
        });
        server.await.ready().await
    };
    let first = start().await;
    let mut envelopes = Vec::new();
    for version in 1..=2 {
        let model = cloud.upload("m", version, "linear", &constant_model(version)).await;
        let envelope = signed(json!({ "model": model }).to_string(), [&ours]).to_string();
        cloud.put(&envelope).await;
        until_predicted(&first, "m", &version.to_string()).await;
        envelopes.push(envelope);
    }
    // It is kept for a way back, so that it is known.
    let known = r#"hotserve_updates_total{kind="model",outcome="duplicate"}"#;
    cloud.put(&envelopes[0]).await;
    until("the replay to be known", async || (first.metric(known).await == 1.0).then_some(())).await;
    assert_eq!(predicted(&first, "m").await.as_deref(), Some("2"));
    first.stop().await;
    // The last message of the stream is the one played again; those shortly before it are read too.
    let second = start().await;
    until("the replay to be known", async || (second.metric(known).await >= 1.0).then_some(())).await;
    assert_eq!(predicted(&second, "m").await.as_deref(), Some("2"));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restart_serves_from_the_disk_is_vouched_for_again() {
    let cloud = Cloud::start(1).await;
    let (ours, theirs) = (key(), key());
    let (ring, other) = (keyring(&cloud, entry(&ours, "")), keyring(&cloud, entry(&theirs, "")));
    let start = async |ring: Option<&Path>, cache: &str| {
        let server = cloud.server_with(|settings| {
            settings.trusted_keys = ring.map(ToOwned::to_owned);
            settings.require_signature = ring.map(|_| Required::All);
            settings.cache_dir = Some(cloud.path(cache));
        });
        server.await.ready().await
    };
    let model = cloud.upload("m", 1, "linear", &constant_model(1)).await;
    cloud.put(signed(json!({ "model": model }).to_string(), [&ours]).to_string()).await;
    let server = start(Some(&ring), "cache").await;
    until_predicted(&server, "m", "1").await;
    server.stop().await;
    // Nothing of it is in the stream that is read: what answers comes from the disk.
    cloud.put("not a message").await;
    let server = start(Some(&ring), "cache").await;
    assert_eq!(predicted(&server, "m").await.as_deref(), Some("1"));
    server.stop().await;
    let server = start(Some(&other), "cache").await;
    assert_eq!(predicted(&server, "m").await, None, "its key is trusted no more");
    assert!(server.metric(r#"hotserve_rejections_total{reason="unknown_key"}"#).await >= 1.0);
    server.stop().await;

    let unsigned = cloud.upload("m", 2, "linear", &constant_model(2)).await;
    cloud.put(json!({ "model": unsigned }).to_string()).await;
    let server = start(None, "other").await;
    until_predicted(&server, "m", "2").await;
    server.stop().await;
    let server = start(Some(&ring), "other").await;
    assert_eq!(predicted(&server, "m").await, None, "it was never signed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_threshold_takes_so_many_keys_and_a_new_key_is_rolled_out_beside_the_old_one() {
    let cloud = Cloud::start(1).await;
    let (old, new, third) = (key(), key(), key());
    let all = entry(&old, "") + &entry(&new, "") + &entry(&third, "");
    let two_of_three = server(&cloud, Required::All, &keyring(&cloud, format!("threshold = 2\n{all}"))).await;
    let before = server(&cloud, Required::All, &keyring(&cloud, entry(&old, ""))).await;
    let during = server(&cloud, Required::All, &keyring(&cloud, entry(&old, "") + &entry(&new, ""))).await;
    let after = server(&cloud, Required::All, &keyring(&cloud, entry(&new, ""))).await;
    let message = |version: u64| json!({"version": version, "state": version}).to_string();

    // Each of the servers that is to take it has it, and the others have said why they do not.
    let judge = async |envelope: Value, version: u64, verdicts: [Option<&str>; 4]| {
        let servers = [&two_of_three, &before, &during, &after];
        let refusals = async |server: &Server, reason: &str| {
            server.metric(&format!(r#"hotserve_rejections_total{{reason="{reason}"}}"#)).await
        };
        let mut counts = Vec::new();
        for (server, verdict) in servers.iter().zip(verdicts) {
            counts.push(refusals(server, verdict.unwrap_or("unsigned")).await);
        }
        cloud.put(envelope.to_string()).await;
        for ((server, verdict), count) in servers.into_iter().zip(verdicts).zip(counts) {
            match verdict {
                None => server.until_state(version).await,
                Some(reason) => {
                    until(reason, async || (refusals(server, reason).await > count).then_some(())).await;
                    assert_ne!(server.state().await, version, "{reason}");
                }
            }
        }
    };
    let (threshold, unknown) = (Some("threshold"), Some("unknown_key"));
    judge(signed(message(1), [&old]), 1, [threshold, None, None, unknown]).await;
    judge(signed(message(2), [&old, &old]), 2, [threshold, None, None, unknown]).await;
    judge(signed(message(3), [&old, &new]), 3, [None, None, None, None]).await;
    judge(signed(message(4), [&new]), 4, [threshold, unknown, None, None]).await;
    judge(signed(message(5), [&third, &new]), 5, [None, unknown, None, None]).await;
    for server in [two_of_three, before, during, after] {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_only_models_must_be_signed_a_state_need_not_but_a_bad_signature_is_refused() {
    let cloud = Cloud::start(1).await;
    let (ours, stranger) = (key(), key());
    let keyring = keyring(&cloud, entry(&ours, ""));
    let models = server(&cloud, Required::Model, &keyring).await;
    let off = server(&cloud, Required::Off, &keyring).await;
    assert_eq!(
        (models.metric("hotserve_signature_required").await, off.metric("hotserve_signature_required").await),
        (1.0, 0.0)
    );
    cloud.put(json!({"version": 1, "state": 1}).to_string()).await;
    models.until_state(1).await;
    off.until_state(1).await;
    let model = cloud.upload("m", 1, "linear", &constant_model(1)).await;
    is_refused(&cloud, &models, json!({"model": model, "version": 2, "state": 2}), "unsigned").await;
    off.until_state(2).await;
    is_refused(&cloud, &off, signed(r#"{"version":3,"state":3}"#, [&stranger]), "unknown_key").await;
    cloud.put(signed(r#"{"version":4,"state":4}"#, [&ours]).to_string()).await;
    for server in [&models, &off] {
        server.until_state(4).await;
        assert_eq!(server.metric(r#"hotserve_signatures_total{signature="good"}"#).await, 1.0);
    }
    assert_eq!(off.metric(r#"hotserve_signatures_total{signature="none"}"#).await, 2.0);
    // Without keys nobody is trusted, and nobody asked for: what is signed is read as it stands.
    let keyless = cloud.server().await.ready().await;
    keyless.until_state(4).await;
    assert!(keyless.metric(r#"hotserve_signatures_total{signature="unchecked"}"#).await >= 1.0);
    for server in [models, off, keyless] {
        server.stop().await;
    }
}

fn uri() -> ManifestUri {
    format!("s3://{BUCKET}/manifest.json").parse().unwrap()
}

fn object(cloud: &Cloud) -> ManifestObject {
    ManifestObject::new(&cloud.aws, Retries::Standard, uri(), 64 << 20)
}

fn draft(key: &str, version: Option<u64>, state: &str) -> Draft {
    let state = RawValue::from_string(state.to_owned()).unwrap();
    Draft::state(key.parse().unwrap(), version.map(|version| version.try_into().unwrap()), state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_keeps_what_was_signed_and_is_trusted_no_more_than_the_stream() {
    let cloud = Cloud::start(1).await;
    let ours = key();
    let keyring = keyring(&cloud, entry(&ours, ""));
    let id = ours.public().id();
    let publisher = Publisher::new(&cloud.aws, STREAM.to_owned()).with_manifest(Some(object(&cloud)));
    let publisher = publisher.with_signing_keys(vec![ours]);
    publisher.publish(draft("default", Some(6), "1")).await.unwrap();
    let published = publisher.publish(draft("default", None, "1.50")).await.unwrap();
    assert_eq!((published.version.unwrap().get(), published.assigned), (7, true), "assigned, then signed");
    // The stream made anew: the manifest alone has it.
    cloud.kinesis().delete_stream().stream_name(STREAM).send().await.unwrap();
    until("the stream to be gone", async || {
        cloud.kinesis().describe_stream_summary().stream_name(STREAM).send().await.is_err().then_some(())
    })
    .await;
    cloud.publisher.ensure_stream(1).await.unwrap();
    let server = cloud.server_with(|settings| {
        settings.manifest = Some(uri().to_string());
        settings.manifest_interval = Some(HumanDuration(std::time::Duration::from_millis(200)));
        settings.trusted_keys = Some(keyring.clone());
    });
    let server = server.await.ready().await;
    assert_eq!(server.client.get("/state").await.text(), r#"{"state":1.50}"#, "digit for digit");
    assert_eq!(server.client.get("/history").await.json()["entries"][0]["signers"], json!([id]));

    // Somebody writes into the manifest what nobody has signed, beside what was.
    let Read::Found { etag, bytes } = object(&cloud).read(None).await.unwrap() else { panic!("no manifest") };
    let manifest = Manifest::decode(&bytes, &manifest::Limits::default()).unwrap();
    let message = manifest.entries().next().unwrap().message().to_owned();
    assert!(message.contains("payloadType") && manifest.unreadable().is_empty(), "{message}");
    assert_eq!(manifest.encode().unwrap(), bytes, "byte for byte");
    let entries = format!(r#"{{"message":{{"key":"default","version":8,"state":"evil"}}}},{{"message":{message}}}"#);
    let text = format!(r#"{{"manifest":1,"stream":"{STREAM}","entries":[{entries}]}}"#);
    object(&cloud).write(text.into_bytes(), &Condition::Is(etag)).await.unwrap();
    let unsigned = r#"hotserve_rejections_total{reason="unsigned"}"#;
    until("the entry to be refused", async || (server.metric(unsigned).await == 1.0).then_some(())).await;
    assert_eq!(server.state().await, 1.5);
    publisher.publish(draft("other", None, "2")).await.unwrap();
    until("the next good entry", async || {
        (server.client.get("/state/other").await.headers.get("x-state-version")? == "1").then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_signed_is_not_published_without_a_version() {
    let cloud = Cloud::start(1).await;
    let publisher = Publisher::new(&cloud.aws, STREAM.to_owned()).with_signing_keys(vec![key()]);
    let error = publisher.publish(draft("a", None, "1")).await.unwrap_err();
    assert!(matches!(error, Error::SignedWithoutVersion { .. }) && error.to_string().contains("--manifest"), "{error}");
    publisher.publish(draft("a", Some(1), "1")).await.unwrap();
}

/// Runs the program on this cloud. Answers its exit code and what it printed.
async fn run(cloud: &Cloud, arguments: &[&str]) -> (i32, String) {
    let mut command = cli::hotserve(arguments);
    command.envs(cloud.environment());
    tokio::task::spawn_blocking(|| cli::run(command)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_made_by_the_program_signs_and_its_lines_make_a_server_trust_it() {
    let cloud = Cloud::start(1).await;
    let (file, other) = (cloud.path("key.pem"), cloud.path("other.pem"));
    let (file, other) = (file.to_str().unwrap(), other.to_str().unwrap());
    let mut lines = Vec::new();
    for file in [file, other] {
        let mut command = cli::hotserve(&["keygen", "--out", file]);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        lines.push(String::from_utf8(output.stdout).unwrap());
    }
    assert_ne!(lines[0], lines[1]);
    let secret = std::fs::read_to_string(file).unwrap();
    let (code, said) = run(&cloud, &["keygen", "--out", file]).await;
    assert!(code == 64 && said.contains("never overwritten"), "{code}: {said}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), secret);

    let keyring = keyring(&cloud, format!("threshold = 2\n{}", lines.concat()));
    let server = server(&cloud, Required::All, &keyring).await;
    let publish = ["publish", "state", "7", "--version", "7", "--sign", file];
    assert_eq!(run(&cloud, &publish).await.0, 0);
    let threshold = r#"hotserve_rejections_total{reason="threshold"}"#;
    until("one key to be too few", async || (server.metric(threshold).await == 1.0).then_some(())).await;
    assert_eq!(run(&cloud, &[&publish[..], &["--sign", other]].concat()).await.0, 0);
    server.until_state(7).await;
    server.stop().await;

    let keyring = keyring.to_str().unwrap();
    let (code, said) = run(&cloud, &["tail", "--since", "1h", "--count", "2", "--trusted-keys", keyring]).await;
    assert!(
        code == 0 && said.contains("refused (threshold)") && said.contains("state default v7 = 7; signed by"),
        "{said}"
    );

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let (code, said) = run(&cloud, &publish).await;
        assert!(code == 64 && said.contains("chmod 600"), "{code}: {said}");
    }
}
