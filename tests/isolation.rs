//! Models that crash, hang, eat memory, answer nonsense or are slow: none is served, and none hurts the server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hotserve::config::{HumanDuration, Isolation, Program, Settings};
use hotserve::id::Digest;
use hotserve::source::memory::Feeder;
use hotserve::store::memory::MemoryStore;
use hotserve_models::Loaders;
use http::StatusCode;
use serde_json::{Value, json};

use crate::misbehaving::{self, Misbehaving, artifact};
use crate::support::{Server, until};

pub fn loaders() -> Loaders {
    let mut loaders = Loaders::bundled();
    loaders.register(Misbehaving);
    loaders
}

/// This test program, as a probe that knows the kind `misbehaving`.
pub fn probe() -> Program {
    let args = ["isolation::this_program_as_a_probe", "--exact", "--nocapture"];
    Program { path: std::env::current_exe().unwrap(), args: args.map(str::to_owned).to_vec() }
}

#[test]
fn this_program_as_a_probe() {
    // Asked for in vain it would say that this program, as it is started, can be a probe.
    if std::env::var_os("HOTSERVE_PROBE").is_some() {
        assert!(hotserve::probe::child(&loaders()).is_some());
    }
}

/// A server that is fed by hand with misbehaving models.
pub struct Fed {
    pub server: Server,
    pub feeder: Feeder,
    pub store: Arc<MemoryStore>,
}

impl Fed {
    pub async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let (server, feeder, store) = Server::fed_with(loaders(), probe(), change).await;
        Self { server: server.ready().await, feeder, store }
    }

    /// Publishes an artifact as this version of the model `m`.
    pub async fn put(&self, version: u64, bytes: Vec<u8>, more: Value) {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        let uri = format!("s3://artifacts/{digest}");
        self.store.put(&uri.parse().unwrap(), bytes);
        let mut model = json!({
            "name": "m", "version": version, "format": misbehaving::FORMAT,
            "uri": uri, "sha256": digest.to_string(), "size": size,
        });
        model.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        self.feeder.put(json!({ "model": model }).to_string()).await;
    }

    /// Tells the slot by a message.
    pub async fn control(&self, control: Value) {
        self.feeder.put(json!({ "control": control }).to_string()).await;
    }

    pub async fn until_served(&self, version: u64) {
        until(&format!("version {version}"), async || {
            let reply = self.server.client.post("/predict/m", r#"{"instances":[[0]]}"#).await;
            (reply.status == StatusCode::OK && reply.header("x-model-version") == version.to_string()).then_some(())
        })
        .await;
    }

    /// The reason and the detail of a version's rejection.
    pub async fn until_refused(&self, version: u64) -> (String, String) {
        until(&format!("the refusal of version {version}"), async || {
            let history = self.server.client.get("/history").await.json();
            let entries = history["entries"].as_array().unwrap();
            let entry = entries.iter().find(|entry| entry["versions"] == json!([version.to_string()]))?;
            assert_eq!(entry["outcome"], "rejected", "{entry}");
            Some((entry["reason"].as_str()?.to_owned(), entry["detail"].as_str()?.to_owned()))
        })
        .await
    }

    pub async fn outcome(&self, outcome: &str) -> f64 {
        self.server.metric(&format!(r#"hotserve_probes_total{{outcome="{outcome}"}}"#)).await
    }
}

/// Processes that this one started as probes of its own kind and that are still there, zombies included, but for those
/// that only wait for a model.
fn probes_left() -> Vec<PathBuf> {
    let own = std::process::id().to_string();
    let is_ours = |process: &Path| {
        let read = |file| std::fs::read_to_string(process.join(file)).unwrap_or_default();
        let stat = read("stat");
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let (state, parent) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let waits = read("comm").trim() == "probe-spare";
        parent == own && (state == "Z" || read("cmdline").contains("this_program_as_a_probe") && !waits)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(|process| is_ours(process)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_model_does_the_old_one_is_served_on_and_the_next_good_one_after_it() {
    let fed = Fed::start(|settings| {
        settings.isolation = Some(Isolation::Process);
        settings.load_timeout = Some(HumanDuration(std::time::Duration::from_secs(2)));
        settings.max_row_time = Some(HumanDuration(std::time::Duration::from_micros(300)));
    })
    .await;
    fed.put(1, artifact("good", "", 1), json!({})).await;
    fed.until_served(1).await;
    let mut version = 1;
    for (how, when, reason, says) in [
        ("panic", "load", "panic", "on purpose"),
        ("panic", "infer", "panic", "on purpose"),
        ("abort", "load", "crash", "SIGABRT while it was loaded"),
        ("abort", "infer", "crash", "SIGABRT while it answered"),
        ("exit", "load", "crash", "exit code 0 while it was loaded"),
        ("overflow", "load", "crash", "overflowed its stack"),
        ("overflow", "infer", "crash", "overflowed its stack"),
        ("loop", "load", "timeout", "while it was loaded"),
        ("sleep", "infer", "timeout", "while it answered"),
        ("allocate", "load", "memory", "while it was loaded"),
        ("allocate", "infer", "memory", "while it answered"),
        ("nan", "infer", "non_finite", "no finite number"),
        ("infinity", "infer", "non_finite", "no finite number"),
        ("slow", "infer", "too_slow", "--max-row-time"),
    ] {
        version += 1;
        fed.put(version, artifact(how, when, version), json!({})).await;
        let (found, detail) = fed.until_refused(version).await;
        assert_eq!(found, reason, "{how} at {when}: {detail}");
        assert!(detail.contains(says), "{how} at {when}: {detail:?} does not say {says:?}");
        fed.until_served(1).await;
    }
    until("all probes to be gone", async || probes_left().is_empty().then_some(())).await;
    assert_eq!(fed.server.metric(r#"hotserve_isolation_info{mode="process"}"#).await, 1.0);
    for (outcome, count) in [("crash", 5.0), ("timeout", 2.0), ("memory", 2.0), ("refused", 4.0), ("passed", 2.0)] {
        assert_eq!(fed.outcome(outcome).await, count, "{outcome}");
    }
    version += 1;
    fed.put(version, artifact("good", "", version), json!({})).await;
    fed.until_served(version).await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_of_what_is_superseded_is_killed() {
    let fed = Fed::start(|settings| {
        settings.load_timeout = Some(HumanDuration(std::time::Duration::from_secs(3600)));
    })
    .await;
    fed.put(1, artifact("loop", "load", 1), json!({})).await;
    until("the probe to run", async || (!probes_left().is_empty()).then_some(())).await;
    // An hour is not over: only who is killed makes room for the next one.
    fed.put(2, artifact("good", "", 2), json!({})).await;
    fed.until_served(2).await;
    until("it to be counted", async || (fed.outcome("superseded").await == 1.0).then_some(())).await;
    fed.server.stop().await;
}

/// The kernel has it since 5.13, and with bounds on connections since 6.7.
fn has_landlock() -> bool {
    use landlock::{ABI, Access as _, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _};
    let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    strict.handle_access(AccessNet::from_all(ABI::V4)).and_then(Ruleset::create).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_reaches_no_file_no_network_and_no_secret() {
    if !has_landlock() {
        println!("this kernel has no Landlock: a probe has only its other bounds");
        return;
    }
    let fed = Fed::start(|_| {}).await;
    fed.put(1, artifact("pry", "load", 1), json!({})).await;
    fed.until_served(1).await;
    fed.put(2, artifact("pry", "infer", 2), json!({})).await;
    fed.until_served(2).await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_has_a_contract_and_a_model_that_breaks_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("contract.json");
    let tensor = |name: &str, shape: Value| json!({"name": name, "datatype": "FP32", "shape": shape});
    let contract = json!({"inputs": [tensor("x", json!([-1, 1]))], "outputs": [tensor("prediction", json!([-1]))]});
    std::fs::write(&file, contract.to_string()).unwrap();
    let fed = Fed::start(|settings| settings.contract = vec![format!("m={}", file.display())]).await;
    fed.put(1, artifact("good", "", 1), json!({})).await;
    fed.until_served(1).await;
    let wide = json!({"kind": "linear", "features": ["a", "b"], "coefficients": [[0, 0]], "intercepts": [0]});
    fed.put(2, wide.to_string().into_bytes(), json!({"format": "linear"})).await;
    let (reason, detail) = fed.until_refused(2).await;
    assert_eq!(reason, "contract", "{detail}");
    assert!(detail.contains("--contract"), "{detail}");
    // Another slot has none.
    fed.put(1, wide.to_string().into_bytes(), json!({"format": "linear", "name": "other"})).await;
    until("the other model", async || {
        let reply = fed.server.client.post("/predict/other", r#"{"instances":[[0, 0]]}"#).await;
        (reply.status == StatusCode::OK).then_some(())
    })
    .await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_much_slower_than_the_one_it_replaces_is_refused() {
    let fed = Fed::start(|settings| settings.max_slowdown = Some(2.0)).await;
    fed.put(1, artifact("dear", "infer", 1), json!({})).await;
    fed.until_served(1).await;
    fed.put(2, artifact("slow", "infer", 2), json!({})).await;
    let (reason, detail) = fed.until_refused(2).await;
    assert_eq!(reason, "too_slow", "{detail}");
    assert!(detail.contains("--max-slowdown"), "{detail}");
    // A message may only tighten.
    fed.put(3, artifact("dear", "infer", 3), json!({"limits": {"row_time": "50ms"}})).await;
    fed.until_served(3).await;
    for (version, limits, reason) in
        [(4, json!({"row_time": "0.05ms"}), "too_slow"), (5, json!({"memory_bytes": 10}), "memory")]
    {
        fed.put(version, artifact("dear", "infer", version), json!({ "limits": limits })).await;
        let (found, detail) = fed.until_refused(version).await;
        assert_eq!(found, reason, "{detail}");
        assert!(detail.contains("message"), "{detail}");
    }
    fed.until_served(3).await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_finite_is_served_where_that_is_allowed_or_expected() {
    let expected = json!({"golden": {"cases": [{"inputs": {"x": [[1]]}, "outputs": {"prediction": [null]}}]}});
    let fed = Fed::start(|_| {}).await;
    fed.put(1, artifact("nan", "infer", 1), json!({})).await;
    assert_eq!(fed.until_refused(1).await.0, "non_finite");
    fed.put(2, artifact("nan", "infer", 2), expected).await;
    fed.until_served(2).await;
    fed.server.stop().await;

    let fed = Fed::start(|settings| settings.allow_non_finite = Some(true)).await;
    fed.put(1, artifact("nan", "infer", 1), json!({})).await;
    fed.until_served(1).await;
    fed.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_isolation_the_gates_hold_in_the_server() {
    let fed = Fed::start(|settings| {
        settings.isolation = Some(Isolation::Thread);
        settings.max_row_time = Some(HumanDuration(std::time::Duration::from_micros(300)));
    })
    .await;
    assert_eq!(fed.server.metric(r#"hotserve_isolation_info{mode="thread"}"#).await, 1.0);
    fed.put(1, artifact("good", "", 1), json!({})).await;
    fed.until_served(1).await;
    for (version, how, reason) in [(2, "panic", "panic"), (3, "nan", "non_finite"), (4, "slow", "too_slow")] {
        fed.put(version, artifact(how, "infer", version), json!({})).await;
        assert_eq!(fed.until_refused(version).await.0, reason, "{how}");
    }
    fed.put(5, artifact("good", "", 5), json!({"limits": {"memory_bytes": 1}})).await;
    assert_eq!(fed.until_refused(5).await.0, "memory");
    fed.until_served(1).await;
    fed.server.stop().await;
}
