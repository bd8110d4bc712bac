//! hotserve within another program: typed states, steps around models, the host's own routes, start and stop.

mod alone;
mod examples;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use hotserve::config::{Isolation, Program, Settings};
use hotserve::models::{Data, InferError, Loaders, Processing, Tensor};
use hotserve::source::memory::{Feeder, MemorySource};
use hotserve::store::memory::MemoryStore;
use hotserve::{Builder, Live, Running};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{Client, until};

/// A state of which every part is the same number.
#[derive(Debug, Deserialize)]
struct Same {
    first: u64,
    others: Vec<u64>,
}

fn same(number: u64) -> Value {
    json!({"first": number, "others": vec![number; 20]})
}

/// The announcement of a model of one feature that answers it.
fn announce(name: &str, version: u64, golden: &Value) -> Value {
    use ::base64::Engine as _;
    let artifact = json!({"kind": "linear", "features": ["x"], "coefficients": [[1.0]], "intercepts": [0.0]});
    let inline = ::base64::engine::general_purpose::STANDARD.encode(artifact.to_string());
    json!({"model": {"name": name, "version": version, "format": "linear", "inline": inline, "golden": golden}})
}

/// A host that is fed by hand.
fn fed() -> (Builder, Feeder) {
    let (source, feeder) = MemorySource::new();
    let settings = Settings { isolation: Some(Isolation::Thread), ..Settings::default() };
    (Builder::new(settings).source(source).store(MemoryStore::default()), feeder)
}

async fn put(feeder: &Feeder, message: &Value) {
    assert!(feeder.put(message.to_string()).await, "somebody listens");
}

async fn listener() -> (TcpListener, Client, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, Client::to(addr), addr)
}

/// A host that serves.
struct Host {
    client: Client,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), hotserve::app::Error>>,
}

impl Host {
    async fn serve(running: Running, app: Router) -> Self {
        running.ready_within(Duration::from_secs(60)).await.unwrap();
        let (listener, client, _) = listener().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(running.serve(listener, app, async { drop(stopped.await) }));
        Self { client, stop, task }
    }

    /// With nothing but hotserve's own routes.
    async fn of(builder: Builder) -> Self {
        let running = builder.build().await.unwrap().start();
        let app = running.router();
        Self::serve(running, app).await
    }

    async fn metric(&self, series: &str) -> f64 {
        let text = self.client.get("/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series} in\n{text}")).parse().unwrap()
    }

    async fn until_refused(&self, reason: &str) -> String {
        until(&format!("a refusal: {reason}"), async || {
            let history = self.client.get("/history").await.json();
            let entry = history["entries"].as_array().unwrap().iter().find(|entry| entry["reason"] == reason)?.clone();
            Some(entry["detail"].as_str().unwrap().to_owned())
        })
        .await
    }

    /// The first number of the answer to a row of this one.
    async fn predict(&self, name: &str, x: f64) -> Value {
        self.client.post(&format!("/predict/{name}"), json!({"instances": [[x]]}).to_string()).await.json()
    }

    async fn until_predicted(&self, name: &str, version: u64) {
        until(&format!("{name} {version}"), async || {
            (self.predict(name, 0.0).await["model"]["version"] == version).then_some(())
        })
        .await;
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typed_state_is_swapped_while_handlers_read_and_none_sees_a_half_or_an_older_one() {
    let (mut builder, feeder) = fed();
    let live: Live<Same> = builder.state("same", same(0)).unwrap();
    let hotserve = builder.build().await.unwrap();
    // The whole of an answer is of one read, and so is what a snapshot of the same request says.
    let handler = async |State((live, serving)): State<(Live<Same>, Arc<hotserve::serving::Serving>)>| {
        let snapshot = serving.snapshot();
        let same = live.of(&snapshot);
        assert_eq!(same.state().version, snapshot.state("same").unwrap().version);
        assert_eq!(same.version().unwrap_or(0), same.first);
        assert!(same.others.iter().all(|other| *other == same.first), "{same:?}");
        same.first.to_string()
    };
    let state = (live.clone(), hotserve.serving());
    let app = Router::new().route("/first", get(handler)).merge(hotserve.router()).with_state(state);
    let host = Host::serve(hotserve.start(), app).await;
    let mut watch = live.watch();

    const LAST: u64 = 300;
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let client = host.client.clone();
            tokio::spawn(async move {
                let (mut last, mut reads) = (0, 0);
                while last < LAST {
                    let reply = client.get("/first").await;
                    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
                    let first: u64 = reply.text().parse().unwrap();
                    assert!(first >= last, "{first} after {last}");
                    (last, reads) = (first, reads + 1);
                }
                reads
            })
        })
        .collect();
    for version in 1..=LAST {
        put(&feeder, &json!({"key": "same", "version": version, "state": same(version)})).await;
    }
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    let mut seen = 0;
    while seen < LAST {
        let next = watch.changed().await.unwrap();
        assert!(next.first > seen, "{} after {seen}", next.first);
        seen = next.first;
    }
    assert_eq!(host.client.get("/state/same").await.json()["state"]["first"], LAST);
    host.stop().await;
    assert_eq!(live.get().first, LAST, "what was served last can be read after the end");
    assert!(watch.changed().await.is_none(), "nothing comes any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_not_of_the_type_is_refused_whole_and_the_next_that_is_comes_through() {
    let (mut builder, feeder) = fed();
    let live: Live<Same> = builder.state("same", same(0)).unwrap();
    let host = Host::of(builder).await;
    assert_eq!(host.client.get("/state/same").await.json()["state"], same(0), "the initial one is served too");
    put(&feeder, &json!({"key": "same", "version": 1, "state": same(1)})).await;
    until("the first", async || (live.get().first == 1).then_some(())).await;

    let mut wrong = json!({"key": "same", "version": 2, "state": same(2)});
    wrong["state"]["others"][7] = json!("seven");
    // Neither half of a pair is served.
    wrong["model"] = announce("m", 2, &Value::Null)["model"].clone();
    put(&feeder, &wrong).await;
    let detail = host.until_refused("state_type").await;
    assert!(detail.contains("state same is no ") && detail.contains("Same: at others[7]: invalid type"), "{detail}");
    assert_eq!(host.metric(r#"hotserve_rejections_total{reason="state_type"}"#).await, 1.0);
    assert_eq!(host.metric(r#"hotserve_updates_total{kind="state",outcome="rejected"}"#).await, 1.0);
    assert_eq!((live.get().first, live.get().version()), (1, Some(1)));
    assert_eq!(host.client.get("/state/same").await.header("x-state-version"), "1");
    assert_eq!(host.predict("m", 1.0).await["status"], 404);
    // A state of another key may be anything.
    put(&feeder, &json!({"key": "other", "version": 2, "state": "seven"})).await;
    // The refused version is not taken: what is published again under it comes through.
    wrong["state"] = same(2);
    put(&feeder, &wrong).await;
    until("the mended one", async || (live.get().first == 2).then_some(())).await;
    host.until_predicted("m", 2).await;
    assert_eq!(host.client.get("/state/other").await.json()["state"], "seven");
    host.stop().await;
}

#[tokio::test]
async fn a_state_has_one_type_and_begins_with_it() {
    let (mut builder, _feeder) = fed();
    let told = |error: hotserve::app::Error| error.to_string();
    let fault = told(builder.state::<Same>("same", 7).map(drop).unwrap_err());
    assert!(fault.contains("state \"same\": its initial value: ") && fault.contains("invalid type"), "{fault}");
    let first = builder.state::<Option<Same>>("maybe", ()).unwrap();
    assert!(first.get().is_none());
    let fault = told(builder.state::<u8>("maybe", 1).map(drop).unwrap_err());
    assert!(fault.contains("Option") && fault.contains("already"), "{fault}");
    let again = builder.state::<Option<Same>>("maybe", ()).unwrap();
    assert_eq!(again.key(), first.key());
    assert!(told(builder.state::<u8>("no key", 1).map(drop).unwrap_err()).contains("no key"));
    // What the settings say of the default state goes before what the code says.
    let settings = Settings { initial_state: Some("5".to_owned()), ..Settings::default() };
    assert_eq!(*builder.or(settings).state::<u8>("default", 1).unwrap().get(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_from_the_disk_passes_the_same_gate() {
    let folder = tempfile::tempdir().unwrap();
    let settings = || Settings { cache_dir: Some(folder.path().to_owned()), ..Settings::default() };
    let (builder, feeder) = fed();
    let host = Host::of(builder.or(settings())).await;
    for (key, state) in [("same", same(3)), ("text", json!("seven"))] {
        put(&feeder, &json!({"key": key, "version": 3, "state": state})).await;
        until(key, async || (host.client.get(&format!("/state/{key}")).await.status == StatusCode::OK).then_some(()))
            .await;
    }
    host.stop().await;

    // The next program wants types.
    let (builder, feeder) = fed();
    let mut builder = builder.or(settings());
    let kept: Live<Same> = builder.state("same", same(0)).unwrap();
    let lost: Live<u64> = builder.state("text", 1).unwrap();
    let host = Host::of(builder).await;
    assert_eq!((kept.get().first, *lost.get()), (3, 1));
    assert!(host.until_refused("state_type").await.contains("invalid type: string \"seven\", expected u64"));
    put(&feeder, &json!({"key": "text", "version": 4, "state": 4})).await;
    until("the next", async || (*lost.get() == 4).then_some(())).await;
    host.stop().await;
}

fn plus(number: f32) -> impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>, InferError> + Send + Sync + 'static {
    move |tensors| {
        let add = |tensor: Tensor| {
            let (shape, data) = tensor.into_parts();
            let Data::Fp32(numbers) = data else { return Err(InferError::Failed("no floats".to_owned())) };
            let numbers = numbers.iter().map(|x| x + number).collect();
            Tensor::new(shape, Data::Fp32(numbers)).map_err(|error| InferError::Failed(error.to_string()))
        };
        tensors.into_iter().map(add).collect()
    }
}

fn no_negative(tensors: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
    let negative = tensors.iter().filter_map(Tensor::as_f32).flatten().any(|x| *x < 0.0);
    if negative { Err(InferError::BadInput("x is negative".to_owned())) } else { Ok(tensors) }
}

/// What this test program has of its own, as a host and as a probe.
fn own_loaders() -> Loaders {
    let mut loaders = Loaders::bundled();
    loaders.register(examples::custom_kind::StepLoader);
    loaders.process(Some("shifted"), Processing::default().before(no_negative).before(plus(10.0)).after(plus(0.5)));
    loaders
}

fn probe() -> Program {
    let args = ["embedding::this_program_as_a_probe", "--exact", "--nocapture"];
    Program { path: std::env::current_exe().unwrap(), args: args.map(str::to_owned).to_vec() }
}

#[test]
fn this_program_as_a_probe() {
    // Asked for in vain it would say that this program, as it is started, can be a probe.
    if std::env::var_os("HOTSERVE_PROBE").is_some() {
        assert!(hotserve::probe::child(&own_loaders()).is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_steps_change_the_prediction_and_golden_cases_are_held_to_what_is_served() {
    for isolation in [Isolation::Process, Isolation::Thread] {
        let (source, feeder) = MemorySource::new();
        let settings = Settings { isolation: Some(isolation), ..Settings::default() };
        let builder = Builder::new(settings).source(source).store(MemoryStore::default()).probe_program(probe());
        let builder = builder.before("shifted", no_negative).before("shifted", plus(10.0)).after("shifted", plus(0.5));
        let host = Host::of(builder).await;
        let golden = |y: f64| json!({"cases": [{"inputs": {"input": [[2]]}, "outputs": {"prediction": [y]}}]});
        put(&feeder, &announce("shifted", 1, &golden(12.5))).await;
        put(&feeder, &announce("plain", 1, &golden(2.0))).await;
        host.until_predicted("shifted", 1).await;
        host.until_predicted("plain", 1).await;
        assert_eq!(host.predict("shifted", 1.0).await["predictions"], json!([11.5]));
        assert_eq!(host.predict("plain", 1.0).await["predictions"], json!([1.0]));
        let refused = host.client.post("/predict/shifted", r#"{"instances":[[-1]]}"#).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text());
        assert!(refused.text().contains("x is negative"), "{}", refused.text());
        // What is right for the artifact alone is wrong for what would be served.
        put(&feeder, &announce("shifted", 2, &golden(2.0))).await;
        let detail = host.until_refused("golden").await;
        assert!(detail.contains("12.5"), "{detail}");
        assert_eq!(host.predict("shifted", 1.0).await["model"]["version"], 1);
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_routes_go_into_an_app_with_routes_a_state_and_a_fallback_of_its_own() {
    let (builder, feeder) = fed();
    let hotserve = builder.build().await.unwrap();
    let own = Router::new()
        .route("/", get(async |State(name): State<&'static str>| name))
        .nest("/ml", hotserve.router())
        .merge(hotserve.router())
        .fallback(async || (StatusCode::NOT_FOUND, "nothing of ours"));
    let host = Host::serve(hotserve.start(), own.with_state("our page")).await;
    put(&feeder, &json!({"version": 1, "state": 7})).await;
    put(&feeder, &announce("m", 1, &Value::Null)).await;
    host.until_predicted("m", 1).await;
    assert_eq!(host.client.get("/").await.text(), "our page");
    for below in ["", "/ml"] {
        assert_eq!(host.client.get(&format!("{below}/state")).await.json()["state"], 7);
        assert_eq!(host.client.get(&format!("{below}/readyz")).await.status, StatusCode::OK);
        let answer = host.client.post(&format!("{below}/predict/m"), r#"{"instances":[[3]]}"#).await;
        assert_eq!(answer.json()["predictions"], json!([3.0]));
        // The host's answer to what is nowhere.
        let nowhere = host.client.get(&format!("{below}/nowhere")).await;
        assert_eq!((nowhere.status, nowhere.text().as_str()), (StatusCode::NOT_FOUND, "nothing of ours"));
        let wrong = host.client.post(&format!("{below}/state"), "").await;
        assert_eq!(
            (wrong.status, &wrong.json()["code"]),
            (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed"))
        );
    }
    assert_eq!(host.metric(r#"hotserve_http_requests_total{route="/state",status="200"}"#).await, 2.0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_fails_no_request_that_was_begun() {
    // With hotserve's own listener and with axum's.
    for own in [true, false] {
        let (mut builder, feeder) = fed();
        let live: Live<Same> = builder.state("same", same(0)).unwrap();
        let running = builder.build().await.unwrap().start();
        running.ready_within(Duration::from_secs(60)).await.unwrap();
        let begun = Arc::new(AtomicU64::new(0));
        let handler = {
            let (begun, live) = (Arc::clone(&begun), live.clone());
            async move || {
                begun.fetch_add(1, Ordering::SeqCst);
                // Longer than a stop takes that waits for nobody.
                let before = live.get();
                tokio::time::sleep(Duration::from_millis(300)).await;
                assert!(live.get().first >= before.first);
                "done"
            }
        };
        let app = Router::new().route("/slow", get(handler)).merge(running.router());
        let (listener, _, addr) = listener().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let serving = tokio::spawn(async move {
            if own {
                running.serve(listener, app, stopped).await.unwrap();
            } else {
                axum::serve(listener, app).with_graceful_shutdown(stopped).await.unwrap();
                running.stop().await;
            }
        });
        let feeding = tokio::spawn(async move {
            let mut version = 0;
            while feeder
                .put(json!({"key": "same", "version": version + 1, "state": same(version + 1)}).to_string())
                .await
            {
                version += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let clients: Vec<_> = (0..48)
            .map(|_| {
                tokio::spawn(async move {
                    let mut answered = 0_u64;
                    while let Some(answer) = ask(addr, "/slow").await {
                        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        until("requests to be under way", async || (begun.load(Ordering::SeqCst) > 60).then_some(())).await;
        stop.send(()).unwrap();
        serving.await.unwrap();
        let mut answered = 0;
        for client in clients {
            answered += client.await.unwrap();
        }
        assert_eq!(answered, begun.load(Ordering::SeqCst), "own listener: {own}");
        feeding.await.unwrap();
    }
}

/// One request on a connection of its own; nothing where nobody takes it any more.
async fn ask(addr: SocketAddr, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    // A connection that was not accepted when the listener went is reset.
    stream.read_to_string(&mut answer).await.ok()?;
    (!answer.is_empty()).then_some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_in_one_process_do_not_disturb_each_other() {
    let (mut one, feeds_one) = fed();
    let (mut two, feeds_two) = fed();
    let numbers: Live<u64> = one.state("it", 0).unwrap();
    let texts: Live<String> = two.state("it", "zero").unwrap();
    let (one, two) = (Host::of(one).await, Host::of(two.before("m", plus(100.0))).await);
    for (feeder, state) in [(&feeds_one, json!(1)), (&feeds_two, json!("one"))] {
        put(feeder, &json!({"key": "it", "version": 1, "state": state})).await;
        put(feeder, &announce("m", 1, &Value::Null)).await;
    }
    one.until_predicted("m", 1).await;
    two.until_predicted("m", 1).await;
    assert_eq!((*numbers.get(), texts.get().as_str()), (1, "one"));
    assert_eq!(one.predict("m", 1.0).await["predictions"], json!([1.0]));
    assert_eq!(two.predict("m", 1.0).await["predictions"], json!([101.0]));
    put(&feeds_one, &json!({"key": "it", "version": 2, "state": "two"})).await;
    one.until_refused("state_type").await;
    let refused = r#"hotserve_rejections_total{reason="state_type"}"#;
    assert_eq!((one.metric(refused).await, two.metric(refused).await), (1.0, 0.0));
    one.stop().await;
    put(&feeds_two, &json!({"key": "it", "version": 2, "state": "two"})).await;
    until("the other goes on", async || (texts.get().as_str() == "two").then_some(())).await;
    two.stop().await;
}

#[tokio::test]
async fn what_cannot_be_built_says_why() {
    let (source, _feeder) = MemorySource::new();
    let settings = Settings { manifest: Some("s3://bucket/manifest.json".to_owned()), ..Settings::default() };
    let fault = Builder::new(settings).source(source).build().await.err().unwrap().to_string();
    assert!(fault.contains("--manifest") && fault.contains("a source of its own"), "{fault}");
    let fault = Builder::default().build().await.err().unwrap().to_string();
    assert!(fault.contains("--stream"), "{fault}");
    // One whose source says nothing of the end is not ready, and says so.
    struct Silent;
    impl hotserve::source::Source for Silent {
        fn run(
            self: Box<Self>,
            outlet: hotserve::source::Outlet,
            shutdown: tokio_util::sync::CancellationToken,
        ) -> hotserve::source::Running {
            Box::pin(async move {
                shutdown.cancelled().await;
                drop(outlet);
            })
        }
    }
    let settings = Settings { isolation: Some(Isolation::Thread), ..Settings::default() };
    let builder = Builder::new(settings).source(Silent).store(MemoryStore::default());
    let running = builder.build().await.unwrap().start();
    let fault = running.ready_within(Duration::from_millis(20)).await.unwrap_err().to_string();
    assert!(fault.starts_with("not ready after"), "{fault}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_ends_or_panics_is_told_and_what_it_brought_is_served_on() {
    struct Short(bool);
    impl hotserve::source::Source for Short {
        fn run(
            self: Box<Self>,
            outlet: hotserve::source::Outlet,
            _: tokio_util::sync::CancellationToken,
        ) -> hotserve::source::Running {
            use hotserve::source::{Record, SourceEvent};
            Box::pin(async move {
                let record = Record::numbered(&"short".parse().unwrap(), 1, r#"{"state": 1}"#);
                outlet.send(SourceEvent::Records(vec![record])).await.unwrap();
                outlet.send(SourceEvent::CaughtUp).await.unwrap();
                assert!(self.0, "on purpose");
            })
        }
    }
    for (ends, how) in [(true, "ended"), (false, "panicked")] {
        let settings = Settings { isolation: Some(Isolation::Thread), ..Settings::default() };
        let host = Host::of(Builder::new(settings).source(Short(ends)).store(MemoryStore::default())).await;
        until(how, async || {
            let said = host.client.get("/readyz?verbose").await;
            (said.status == StatusCode::OK && said.text().contains(&format!("the source {how}"))).then_some(())
        })
        .await;
        assert_eq!(host.client.get("/state").await.json()["state"], 1);
        host.stop().await;
    }
}
