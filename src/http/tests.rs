//! The interface as a client meets it, over a snapshot made by hand.

mod admin;
mod batch;
mod docs;
mod events;
mod long_poll;
mod min_version;
mod openapi;
mod page;
mod pulse;
mod trace;
mod v2;

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hotserve_models::{Data, DataType, Dim, InferError, Model, Signature, Tensor, TensorSpec};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::*;
use crate::id::{Digest, Rank, Slot, Version};
use crate::metrics::{ROUTES, Scraped};
use crate::serving::{ModelFacts, ServedModel, ServedState, Snapshot, Swapper};
use crate::status::{Entry, ShardReport, Trouble};

/// What the test model does.
#[derive(Clone, Copy)]
enum Does {
    /// Sums each row; refuses a sum of 13, fails on 14, and panics on 15.
    Sum,
    /// The same, and says so twice.
    Both,
    /// Gives a row too few.
    Short,
}

struct TestModel {
    signature: Signature,
    does: Does,
}

impl TestModel {
    fn boxed(does: Does) -> Box<dyn Model> {
        let spec = |name: &str, shape: &[Dim], features: &[&str]| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            features: features.iter().map(|name| (*name).to_owned()).collect(),
        };
        let mut outputs = vec![spec("sum", &[Dim::Any], &[])];
        if matches!(does, Does::Both) {
            outputs.push(spec("again", &[Dim::Any, Dim::Fixed(1)], &[]));
        }
        let inputs = vec![spec("x", &[Dim::Any, Dim::Fixed(2)], &["a", "b"])];
        Box::new(Self { signature: Signature { inputs, outputs }, does })
    }
}

impl Model for TestModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let mut sums: Vec<f32> = inputs[0].as_f32().expect("checked").chunks(2).map(|row| row[0] + row[1]).collect();
        for sum in &sums {
            match *sum {
                13.0 => return Err(InferError::BadInput("13 is unlucky".to_owned())),
                14.0 => return Err(InferError::Failed("the secret of the model".to_owned())),
                15.0 => panic!("on purpose"),
                _ => {}
            }
        }
        if matches!(self.does, Does::Short) {
            sums.pop();
        }
        let rows = sums.len();
        let tensor = |shape, sums: &[f32]| Tensor::new(shape, Data::Fp32(sums.to_vec())).expect("fits");
        Ok(match self.does {
            Does::Both => vec![tensor(vec![rows], &sums), tensor(vec![rows, 1], &sums)],
            Does::Sum | Does::Short => vec![tensor(vec![rows], &sums)],
        })
    }

    fn memory_bytes(&self) -> usize {
        4096
    }

    fn engine(&self) -> &'static str {
        "sum"
    }
}

fn state(key: &str, version: u64, json: &str) -> ServedState {
    let raw = serde_json::value::RawValue::from_string(json.to_owned()).expect("JSON");
    let rank = Rank::Version(Version::try_from(version).expect("a version"));
    ServedState::new(key.parse().expect("a key"), rank, &raw, None)
}

fn model(name: &str, version: u64, does: Does, row_cost: Duration) -> ServedModel {
    let facts = ModelFacts {
        name: name.parse().expect("a name"),
        rank: Rank::Version(Version::try_from(version).expect("a version")),
        label: Some("a label".to_owned()),
        format: "test".parse().expect("a format"),
        digest: Digest::of(name.as_bytes()),
        size: 7,
        published_at: None,
    };
    ServedModel::new(facts, TestModel::boxed(does), row_cost)
}

/// A server without a socket.
struct Server {
    http: Arc<Http>,
    router: Front,
    swapper: Swapper,
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("ASCII"))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Checks that this is a problem, and answers its detail.
    fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.header("cache-control"), "no-store");
        let body = self.json();
        assert_eq!((&body["status"], &body["code"]), (&json!(status), &json!(code)));
        assert_eq!(body["type"], "about:blank");
        assert!(!body["title"].as_str().expect("a title").is_empty());
        assert_eq!(body["request_id"], self.header("x-request-id"));
        assert!(!self.header("x-request-id").is_empty());
        body["detail"].as_str().expect("a detail").to_owned()
    }
}

const CHEAP: Duration = Duration::from_nanos(100);
const DEAR: Duration = Duration::from_secs(1);

impl Server {
    fn new(states: Vec<ServedState>, models: Vec<ServedModel>) -> Self {
        Self::with(states, models, |_| {})
    }

    fn with(states: Vec<ServedState>, models: Vec<ServedModel>, configure: impl FnOnce(&mut HttpConfig)) -> Self {
        Self::with_queue(states, models, 1, configure)
    }

    /// With so many places in the queue of dear predictions.
    fn with_queue(
        states: Vec<ServedState>,
        models: Vec<ServedModel>,
        queue: usize,
        configure: impl FnOnce(&mut HttpConfig),
    ) -> Self {
        let (serving, swapper) = Serving::new(Snapshot::default().with(states, models));
        let metrics = Metrics::new();
        let mut config = HttpConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            body_limit: 100_000,
            request_timeout: Duration::from_secs(60),
            drain_delay: Duration::ZERO,
            drain: Duration::from_secs(60),
            default_model: None,
            compute_threads: 1,
            min_version_wait: Duration::from_secs(10),
            admin: None,
            connections: Default::default(),
        };
        configure(&mut config);
        let compute = ComputePool::new(1, queue, metrics.predict_queue_depth.clone()).expect("threads");
        let http = Arc::new(Http::new(serving, Arc::default(), metrics, compute, config, Handle::detached()));
        Self { router: Front::new(Arc::clone(&http)), http, swapper }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        send(&self.router, request).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    async fn get_if(&self, path: &str, tags: &str) -> Answer {
        let request = Request::get(path).header("if-none-match", tags);
        self.send(request.body(Body::empty()).expect("a request")).await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::post(path).body(body.into()).expect("a request")).await
    }

    /// The value of one series of the metrics.
    fn metric(&self, series: &str) -> f64 {
        let text = self.http.metrics.render(&Scraped::default());
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no series {series}")).parse().expect("a number")
    }
}

async fn send<S>(router: &S, request: Request<Body>) -> Answer
where
    S: tower::Service<Request<Body>, Response = Response, Error = std::convert::Infallible> + Clone,
{
    let response = router.clone().oneshot(request).await.expect("infallible");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes().to_vec();
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

fn iris() -> Server {
    Server::new(vec![state("default", 96, "96")], vec![model("iris", 3, Does::Sum, CHEAP)])
}

#[tokio::test]
async fn a_state_is_its_prepared_bytes_and_a_known_one_is_not_sent_again() {
    let server = Server::new(vec![state("default", 96, "96"), state("pricing", 7, r#"{"eur": 1.08}"#)], vec![]);
    let default = server.get("/state").await;
    assert_eq!((default.status, default.text().as_str()), (200, r#"{"state":96}"#));
    assert_eq!(default.header("content-type"), "application/json");
    assert_eq!(default.header("cache-control"), "no-cache");
    assert_eq!(default.header("x-state-version"), "96");
    assert_eq!(server.get("/state/default").await.text(), r#"{"state":96}"#);

    let pricing = server.get("/state/pricing").await;
    assert_eq!(pricing.text(), r#"{"state":{"eur": 1.08}}"#);
    let etag = pricing.header("etag");
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag != default.header("etag"));
    for tags in [etag, "*", &format!("\"other\", {etag}"), &format!("W/{etag}"), &format!("\"a\",W/{etag} ,\"b\"")] {
        let known = server.get_if("/state/pricing", tags).await;
        assert_eq!((known.status, known.body.len()), (304, 0), "{tags}");
        assert_eq!((known.header("etag"), known.header("x-state-version")), (etag, "7"));
    }
    for tags in ["\"other\"", "W/\"other\"", "", etag.trim_matches('"')] {
        assert_eq!(server.get_if("/state/pricing", tags).await.status, 200, "{tags}");
    }
}

#[tokio::test]
async fn an_unknown_state_is_answered_with_the_known_ones() {
    let states = (0..30).map(|index| state(&format!("key-{index:02}"), 1, "0")).collect();
    let server = Server::new(states, vec![]);
    let detail = server.get("/state/nope").await.problem(404, "state_not_found");
    assert!(detail.starts_with("there is no state \"nope\"; there is \"key-00\", \"key-01\""), "{detail}");
    assert!(detail.ends_with("\"key-19\" and 10 more"), "{detail}");
    let detail = Server::new(vec![], vec![]).get("/state").await.problem(404, "state_not_found");
    assert_eq!(detail, "there is no state \"default\"; there is none yet");
    server.get("/state/%ff").await.problem(400, "bad_path");
}

#[tokio::test]
async fn every_form_of_a_body_gives_the_same_answer_wherever_it_is_computed() {
    let models = || vec![model("iris", 3, Does::Sum, CHEAP), model("dear", 3, Does::Sum, DEAR)];
    let server = Server::new(vec![], models());
    let long = format!("{{\"instances\":[[1,2],[3,4.5]]{}}}", " ".repeat(50_000));
    for body in [
        r#"{"instances":[[1,2],[3,4.5]]}"#,
        r#"{"instances":[{"a":1,"b":2},{"b":4.5,"a":3}]}"#,
        r#"{"inputs":{"a":[1,3],"b":[2,4.5]}}"#,
        r#"{"inputs":{"x":[[1,2],[3,4.5]]}}"#,
        r#"{"inputs":[[1,2],[3,4.5]]}"#,
        &long,
    ] {
        for name in ["iris", "dear"] {
            let answer = server.post(&format!("/predict/{name}"), body.to_owned()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let expected = format!("{{\"predictions\":[3.0,7.5],\"model\":{{\"name\":\"{name}\",\"version\":3}}}}");
            assert_eq!(answer.text(), expected, "{body}");
        }
    }
    assert_eq!(server.metric("hotserve_predict_rows_total"), 24.0);
    assert_eq!(server.metric("hotserve_predict_duration_seconds_count"), 12.0);
    assert_eq!(server.metric("hotserve_predict_queue_depth"), 0.0);
}

#[tokio::test]
async fn answers_name_what_they_were_computed_with() {
    let server = iris();
    let answer = server.post("/predict", r#"{"instances":[[null,1]]}"#).await;
    assert_eq!(answer.text(), r#"{"predictions":[null],"model":{"name":"iris","version":3}}"#);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!((answer.header("x-model-name"), answer.header("x-model-version")), ("iris", "3"));
    assert_eq!(answer.header("x-model-digest"), format!("sha256:{}", Digest::of(b"iris")));
    assert_eq!(answer.header("x-state-version"), "96");
    let timing = answer.header("server-timing");
    assert!(timing.starts_with("parse;dur=") && timing.contains(", infer;dur="), "{timing}");

    let empty = server.post("/predict", r#"{"instances":[]}"#).await;
    assert_eq!(empty.text(), r#"{"predictions":[],"model":{"name":"iris","version":3}}"#);

    let both = Server::new(vec![], vec![model("both", 1, Does::Both, CHEAP)]);
    let answer = both.post("/predict", r#"{"instances":[[1,2]]}"#).await;
    assert_eq!(answer.json()["predictions"], json!([{"sum": 3.0, "again": [3.0]}]));
    assert!(!answer.headers.contains_key("x-state-version"));
}

#[tokio::test]
async fn one_answer_is_of_one_snapshot() {
    let server = iris();
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let chunks = futures_util::stream::unfold(receive, |mut receive| async {
        let chunk = receive.recv().await?;
        Some((chunk, receive))
    });
    let pending = server.post("/predict", Body::from_stream(chunks));
    let swapped = async {
        send.send(Ok("{\"instances\":".into())).await.expect("the body is read");
        let next =
            server.swapper.snapshot().with(vec![state("default", 97, "97")], vec![model("iris", 4, Does::Sum, CHEAP)]);
        drop(server.swapper.swap(next));
        send.send(Ok("[[1,2]]}".into())).await.expect("the body is read");
        drop(send);
    };
    let (answer, ()) = tokio::join!(pending, swapped);
    assert_eq!((answer.header("x-model-version"), answer.header("x-state-version")), ("4", "97"));
    assert_eq!(answer.json()["model"]["version"], 4);
}

#[tokio::test]
async fn which_model_is_meant_is_never_guessed() {
    let models = || vec![model("iris", 3, Does::Sum, CHEAP), model("fraud", 1, Does::Sum, CHEAP)];
    let body = r#"{"instances":[[1,2]]}"#;
    let server = Server::new(vec![], models());
    let detail = server.post("/predict", body).await.problem(400, "model_required");
    assert!(detail.ends_with(r#""fraud", "iris""#), "{detail}");
    let detail = server.post("/predict/nope", body).await.problem(404, "model_not_found");
    assert_eq!(detail, r#"there is no model "nope"; there is "fraud", "iris""#);

    let name = |name: &str| name.parse().expect("a name");
    let server = Server::with(vec![], models(), |config| config.default_model = Some(name("fraud")));
    assert_eq!(server.post("/predict", body).await.header("x-model-name"), "fraud");
    let server = Server::with(vec![], models(), |config| config.default_model = Some(name("gone")));
    server.post("/predict", body).await.problem(404, "model_not_found");

    let server = Server::new(vec![], vec![]);
    for path in ["/predict", "/predict/iris"] {
        let answer = server.post(path, body).await;
        answer.problem(503, "not_ready");
        assert_eq!(answer.header("retry-after"), "1");
    }
    server.http.status.set_ready();
    server.post("/predict", body).await.problem(404, "model_not_found");
    server.post("/predict/iris", body).await.problem(404, "model_not_found");
    assert_eq!(server.metric("hotserve_predict_errors_total{code=\"no_model\"}"), 4.0);
}

#[tokio::test]
async fn a_bad_body_is_told_what_is_wrong_with_it() {
    let server = iris();
    let detail = server.post("/predict", "{\"instances\":\n[[1,2}").await.problem(400, "bad_json");
    assert!(detail.ends_with("at line 2 column 6"), "{detail}");
    let detail = server.post("/predict", "").await.problem(400, "bad_json");
    assert!(detail.ends_with("the body is empty"), "{detail}");
    let detail = server.post("/predict", r#"{"instances":[[1,2],[3,"x"]]}"#).await.problem(422, "bad_input");
    assert!(detail.starts_with(r#"instances[1][1] ("b"): expected a number"#), "{detail}");
    let detail = server.post("/predict", r#"{"instances":[[6,7]]}"#).await.problem(422, "bad_input");
    assert_eq!(detail, "13 is unlucky");
    assert_eq!(server.metric("hotserve_predict_errors_total{code=\"bad_input\"}"), 4.0);
}

#[tokio::test]
async fn a_model_that_fails_or_panics_costs_one_answer() {
    let server = Server::new(
        vec![],
        vec![
            model("cheap", 1, Does::Sum, CHEAP),
            model("dear", 1, Does::Sum, DEAR),
            model("short", 1, Does::Short, CHEAP),
        ],
    );
    for name in ["cheap", "dear"] {
        let path = format!("/predict/{name}");
        let detail = server.post(&path, r#"{"instances":[[7,7]]}"#).await.problem(500, "inference_failed");
        assert!(!detail.contains("secret"), "{detail}");
        server.post(&path, r#"{"instances":[[7,8]]}"#).await.problem(500, "inference_failed");
        assert_eq!(server.post(&path, r#"{"instances":[[1,2]]}"#).await.status, 200);
    }
    server.post("/predict/short", r#"{"instances":[[1,2]]}"#).await.problem(500, "inference_failed");
    assert_eq!(server.metric("hotserve_predict_errors_total{code=\"failed\"}"), 5.0);
    assert_eq!(server.metric("hotserve_http_requests_in_flight"), 0.0);
}

#[tokio::test]
async fn a_panic_anywhere_else_is_a_problem_too() {
    async fn handler() -> Response {
        panic!("on purpose")
    }
    let metrics = Metrics::new();
    let router: Router = Router::new().route("/", get(handler).layer(Observe::route("/", &metrics)));
    let get = async |path: &str| send(&router, Request::get(path).body(Body::empty()).expect("a request")).await;
    get("/").await.problem(500, "internal");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_and_without_its_length() {
    let server = Server::with(vec![], vec![model("iris", 3, Does::Sum, CHEAP)], |config| config.body_limit = 100);
    let detail = server.post("/predict", " ".repeat(101)).await.problem(413, "body_too_large");
    assert_eq!(detail, "the body is over the limit of 100 bytes");
    let chunked = |chunks: Vec<String>| {
        Body::from_stream(futures_util::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)))
    };
    server.post("/predict", chunked(vec![" ".repeat(60), " ".repeat(41)])).await.problem(413, "body_too_large");
    let parts = ["{\"instances\"", ":[[1", ",2]]}"].map(str::to_owned);
    let answer = server.post("/predict", chunked([parts.to_vec(), vec![" ".repeat(79)]].concat())).await;
    assert_eq!((answer.status, &answer.json()["predictions"]), (200, &json!([3.0])));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_and_a_prediction_that_does_not_end_are_given_up() {
    let server = Server::new(vec![], vec![model("dear", 3, Does::Sum, DEAR)]);
    let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let detail = server.post("/predict", Body::from_stream(never)).await.problem(408, "body_timeout");
    assert_eq!(detail, "the body did not arrive within 60s");

    let (release, released) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = tokio::sync::oneshot::channel();
    let http = Arc::clone(&server.http);
    let block = move || begin.send(()).is_ok() && released.recv().is_ok();
    let blocker = tokio::spawn(async move { http.compute.run(block).await });
    begun.await.expect("the pool is busy");
    let answer = server.post("/predict", r#"{"instances":[[1,2]]}"#).await;
    answer.problem(503, "timeout");
    assert_eq!(answer.header("retry-after"), "1");
    // The job that was given up still holds its place in the queue of one.
    let answer = server.post("/predict", r#"{"instances":[[1,2]]}"#).await;
    answer.problem(503, "overloaded");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(server.metric("hotserve_predict_errors_total{code=\"overloaded\"}"), 2.0);
    release.send(()).expect("the pool waits");
    assert_eq!(blocker.await.expect("no panic"), Ok(true));
}

#[tokio::test]
async fn a_wrong_path_or_method_is_a_problem() {
    let server = iris();
    for path in ["/nope", "/state/a/b", "/state/", "/predict/", "//"] {
        server.get(path).await.problem(404, "not_found");
    }
    for (method, path, allow) in [
        (Method::GET, "/predict", "POST"),
        (Method::GET, "/predict/iris", "POST"),
        (Method::POST, "/state", "GET,HEAD"),
        (Method::DELETE, "/models", "GET,HEAD"),
        (Method::OPTIONS, "/", "GET,HEAD"),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        let answer = server.send(request).await;
        answer.problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), allow, "{path}");
    }
    server.get("/history?limit=501").await.problem(400, "bad_query");
    server.get("/history?limit=-1").await.problem(400, "bad_query");
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = iris();
    // Else /events would not end.
    server.http.status.set_draining();
    for path in
        ["/", "/state", "/state/default", "/models", "/history", "/events", "/livez", "/readyz", "/healthz", "/metrics"]
    {
        let (get, head) = (server.get(path).await, Request::head(path).body(Body::empty()).expect("a request"));
        let head = server.send(head).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
    }
}

#[tokio::test]
async fn the_request_id_is_the_clients_where_it_is_fit() {
    let server = iris();
    let long = "x".repeat(129);
    for (given, kept) in
        [("abc-1/2", true), ("a b", false), ("ü", false), ("", false), (&long, false), (&long[1..], true)]
    {
        let request = Request::get("/livez").header("x-request-id", given.as_bytes()).body(Body::empty());
        let answer = server.send(request.expect("a request")).await;
        let id = answer.header("x-request-id");
        assert_eq!(id == given, kept, "{given:?}");
        assert!(kept || (id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())), "{id}");
    }
    assert_ne!(server.get("/livez").await.header("x-request-id"), server.get("/livez").await.header("x-request-id"));
}

#[tokio::test]
async fn models_and_states_are_listed_by_name() {
    let models = vec![model("b", 2, Does::Sum, CHEAP), model("a", 1, Does::Both, DEAR)];
    let server = Server::new(vec![state("default", 96, "96"), state("another", 1, "1")], models);
    let catalog = server.get("/models").await.json();
    assert_eq!(catalog["generation"], 1);
    let names = |field: &str, name: &str| {
        let rows = catalog[field].as_array().expect("a list").iter();
        rows.map(|row| row[name].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("models", "name"), ["a", "b"]);
    assert_eq!(names("states", "key"), ["another", "default"]);
    let mut first = catalog["models"][0].clone();
    assert!(first["applied_at"].take().is_string());
    let expected = json!({
        "name": "a", "version": 1, "label": "a label", "format": "test", "engine": "sum",
        "digest": Digest::of(b"a"), "size_bytes": 7, "memory_bytes": 4096, "row_cost_us": 1e6, "batch_rows": 1,
        "published_at": null, "applied_at": null,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2], "features": ["a", "b"]}],
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [-1]},
            {"name": "again", "datatype": "FP32", "shape": [-1, 1]},
        ],
    });
    assert_eq!(first, expected);
    assert_eq!(catalog["states"][1]["etag"], server.get("/state").await.header("etag"));
}

#[tokio::test]
async fn history_is_newest_first_and_no_longer_than_asked() {
    let server = iris();
    for version in 1..=3 {
        let slot = (Slot::State("default".parse().expect("a key")), version.to_string());
        server.http.status.record(Entry::new("applied", [slot]));
    }
    let ids = |answer: &Answer| {
        let body = answer.json();
        body["entries"].as_array().expect("a list").iter().map(|entry| entry["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&server.get("/history").await), [3, 2, 1]);
    assert_eq!(ids(&server.get("/history?limit=2").await), [3, 2]);
    assert_eq!(ids(&server.get("/history?limit=0").await), [0; 0]);
}

#[tokio::test]
async fn readiness_says_why_and_liveness_depends_on_nothing() {
    let server = iris();
    let status = Arc::clone(&server.http.status);
    status.waiting_for("waiting for \"iris\"");
    let answer = server.get("/readyz").await;
    assert_eq!((answer.status, answer.json()), (503, json!({"ready": false, "reason": "waiting for \"iris\""})));

    status.set_ready();
    let answer = server.get("/readyz").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"ready": true})));
    status.stream_shard(
        &"shard-0".parse().expect("a shard"),
        ShardReport { behind_ms: 1500, last_record_ms: None, via: "poll" },
    );
    status.stream_trouble(Trouble { code: "throttled", message: "slow down".to_owned() });
    let contact = status.stream().shards["shard-0"].last_contact;
    let stream = json!({
        "last_contact": null, "trouble": {"code": "throttled", "message": "slow down"}, "clock_offset_ms": 0,
        "shards": {"shard-0": {"via": "poll", "last_contact": contact, "behind_ms": 1500, "last_record": null}},
    });
    for query in ["?verbose", "?verbose=1&x=2"] {
        let answer = server.get(&format!("/readyz{query}")).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"ready": true, "stream": stream})), "{query}");
    }

    status.set_draining();
    let answer = server.get("/readyz").await;
    assert_eq!((answer.status, answer.json()), (503, json!({"ready": false, "reason": "shutting down"})));
    for path in ["/livez", "/healthz"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"live": true})), "{path}");
    }
}

#[tokio::test]
async fn metrics_tell_what_is_served_and_what_was_asked() {
    let server = Server::new(vec![state("default", 96, "96")], vec![model("iris", 3, Does::Sum, CHEAP)]);
    server.http.status.set_ready();
    server.http.status.stream_shard(
        &"shard-0".parse().expect("a shard"),
        ShardReport { behind_ms: 1500, last_record_ms: None, via: "poll" },
    );
    server.get("/state").await;
    server.get("/state/nope").await;
    server.get("/nope").await;
    server.get("/predict").await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4");
    let text = answer.text();
    let digest = Digest::of(b"iris");
    for line in [
        "hotserve_ready 1",
        &format!("hotserve_model_info{{model=\"iris\",version=\"3\",digest=\"{digest}\",format=\"test\"}} 1"),
        "hotserve_model_version{model=\"iris\"} 3",
        "hotserve_model_memory_bytes{model=\"iris\"} 4096",
        "hotserve_state_version{key=\"default\"} 96",
        concat!(
            "hotserve_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\",revision=\"",
            env!("HOTSERVE_BUILT_FROM"),
            "\"} 1"
        ),
        "hotserve_http_requests_total{route=\"/state\",status=\"200\"} 1",
        "hotserve_http_requests_total{route=\"/state/{key}\",status=\"404\"} 1",
        "hotserve_http_requests_total{route=\"unmatched\",status=\"404\"} 1",
        "hotserve_http_requests_total{route=\"/predict\",status=\"405\"} 1",
        "hotserve_http_request_duration_seconds_count{route=\"/state\"} 1",
        "hotserve_http_requests_in_flight 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("hotserve_model_loaded_timestamp_seconds{model=\"iris\"} "));
    // What it was behind, and what has passed since.
    let lag = text.lines().find_map(|line| line.strip_prefix("hotserve_stream_lag_seconds{shard=\"shard-0\"} "));
    let lag: f64 = lag.expect("the series").parse().expect("a number");
    assert!((1.5..60.0).contains(&lag), "{lag}");
}

#[tokio::test]
async fn every_route_of_the_metrics_table_is_a_route() {
    let server = admin::server();
    // Else /events would not end.
    server.http.status.set_draining();
    for route in ROUTES.iter().filter(|route| **route != "unmatched") {
        let path = route.replace("/page/{file}", "/page/page.js");
        let path = path.replace("{key}", "default").replace("{model}", "iris").replace("{file}", "LICENSE");
        assert_ne!(server.get(&path).await.status, 404, "{route}");
        let answered: f64 = ["200", "405", "503"]
            .iter()
            .map(|status| {
                server.metric(&format!("hotserve_http_requests_total{{route=\"{route}\",status=\"{status}\"}}"))
            })
            .sum();
        assert_eq!(answered, 1.0, "{route}");
    }
}
