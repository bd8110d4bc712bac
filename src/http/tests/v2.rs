//! The Open Inference Protocol, request by request.

use std::io::Write as _;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::{GzEncoder, ZlibEncoder};

use super::*;
use crate::http::problem::Problem;
use crate::http::v2::repository::served;
use crate::manager::{Done, Progress};

/// Two rows for a test model, as bytes.
fn rows() -> Vec<u8> {
    [1.0_f32, 2.0, 3.0, 4.5].iter().flat_map(|value| value.to_le_bytes()).collect()
}

const JSON: &str = r#"{"id":"a","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4.5]}]}"#;
const BINARY: &str = r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}"#;

impl Answer {
    /// Checks that this is a failure as the protocol has it, and answers its message.
    fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/json");
        assert!(!self.header("x-request-id").is_empty());
        let body = self.json();
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
        body["error"].as_str().expect("a message").to_owned()
    }
}

impl Server {
    async fn infer(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let request = headers.iter().fold(Request::post(path), |request, (name, value)| request.header(*name, *value));
        self.send(request.body(body.into()).expect("a request")).await
    }

    async fn binary(&self, json: &str, tail: &[u8]) -> Answer {
        let length = json.len().to_string();
        let body = [json.as_bytes(), tail].concat();
        self.infer("/v2/models/iris/infer", &[("inference-header-content-length", &length)], body).await
    }
}

#[tokio::test]
async fn the_server_and_its_models_say_what_they_are() {
    let server = iris();
    for path in ["/v2", "/v2/"] {
        let body = server.get(path).await.json();
        assert_eq!((&body["name"], &body["extensions"][0]), (&json!("hotserve"), &json!("binary_tensor_data")));
    }
    assert_eq!(server.get("/v2/health/live").await.json(), json!({"live": true}));
    let starting = server.get("/v2/health/ready").await;
    assert!(starting.error(503).contains("stream"));
    server.http.status.set_ready();
    assert_eq!(server.get("/v2/health/ready").await.json(), json!({"ready": true}));

    let iris = json!({
        "name": "iris", "versions": ["3"], "platform": "hotserve_test",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "sum", "datatype": "FP32", "shape": [-1]}],
    });
    for path in ["/v2/models/iris", "/v2/models/iris/versions/3"] {
        assert_eq!(server.get(path).await.json(), iris);
        assert_eq!(server.get(&format!("{path}/ready")).await.json(), json!({"name": "iris", "ready": true}));
    }
    assert_eq!(server.get("/v2/models").await.json(), json!({"models": ["iris"]}));
    let index = server.post("/v2/repository/index", "").await.json();
    assert_eq!(index, json!([{"name": "iris", "version": "3", "state": "READY", "reason": ""}]));
}

#[tokio::test]
async fn the_same_tensor_gives_the_same_answer_as_json_and_as_bytes() {
    let server = Server::new(vec![], vec![model("iris", 3, Does::Both, CHEAP), model("dear", 3, Does::Both, DEAR)]);
    for name in ["iris", "dear"] {
        let path = format!("/v2/models/{name}/versions/3/infer");
        let answer = server.infer(&path, &[], JSON).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-model-version"), "3");
        assert_eq!(answer.json()["model_name"], name);
    }
    let json = server.infer("/v2/models/iris/infer", &[], JSON).await;
    assert_eq!(json.header("content-type"), "application/json");
    let expected = json!({
        "model_name": "iris", "model_version": "3", "id": "a",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [2], "data": [3.0, 7.5]},
            {"name": "again", "datatype": "FP32", "shape": [2, 1], "data": [3.0, 7.5]},
        ],
    });
    assert_eq!(json.json(), expected);

    let sums: Vec<u8> = [3.0_f32, 7.5].iter().flat_map(|value| value.to_le_bytes()).collect();
    let split = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        let length: usize = answer.header("inference-header-content-length").parse().expect("a length");
        let head: Value = serde_json::from_slice(&answer.body[..length]).expect("JSON");
        (head, answer.body[length..].to_vec())
    };
    let (head, bytes) = split(&server.binary(BINARY, &rows()).await);
    assert_eq!(bytes, [&sums[..], &sums].concat());
    assert_eq!(head["outputs"][1]["parameters"], json!({"binary_data_size": 8}));
    assert!(!head["id"].as_str().expect("one was made").is_empty());
    let (_, raw) = split(&server.binary("", &rows()).await);
    assert_eq!(raw, bytes);
    let one = BINARY.replace(r#""parameters":{"binary_data_output":true}"#, r#""outputs":[{"name":"again"}]"#);
    let one = server.binary(&one, &rows()).await.json();
    assert_eq!(one["outputs"], json!([{"name": "again", "datatype": "FP32", "shape": [2, 1], "data": [3.0, 7.5]}]));
    let none = r#"{"inputs":[{"name":"x","shape":[0,2],"datatype":"FP32","data":[]}]}"#;
    let none = server.infer("/v2/models/iris/infer", &[], none).await.json();
    assert_eq!(none["outputs"][1], json!({"name": "again", "datatype": "FP32", "shape": [0, 1], "data": []}));
}

#[tokio::test]
async fn every_failure_is_an_error_by_the_protocol() {
    let server = iris();
    server.http.status.set_ready();
    let told = server.get("/v2/nope/at/all").await.error(404);
    assert!(told.contains("Open Inference Protocol"), "{told}");
    assert!(server.get("/v2/models/iris/config").await.error(404).contains("nothing at this path"));
    assert!(server.get("/v2/models/rose").await.error(404).contains("no model \"rose\"; there is \"iris\""));
    assert!(server.get("/v2/models/%ff").await.error(400).contains("no text"));
    let told = server.get("/v2/models/iris/versions/7/ready").await.error(404);
    assert!(told.contains("no version \"7\" here; there is 3"), "{told}");
    server.get("/v2/models/iris/infer").await.error(405);
    server.post("/v2/models/iris", "").await.error(405);
    let infer = |body: String| async { server.infer("/v2/models/iris/infer", &[], body).await };
    assert!(infer("{".to_owned()).await.error(400).contains("no JSON"));
    assert!(infer(JSON.replace("4.5]", "4.5,5]")).await.error(400).contains("takes 4 elements, not 5"));
    assert!(infer(JSON.replace("[1,2,3,4.5]", "[6,7,3,4]")).await.error(400).contains("13 is unlucky"));
    let told = infer(JSON.replace("[1,2,3,4.5]", "[7,7,3,4]")).await.error(500);
    assert!(told.contains("failed on an input that fits it"), "{told}");
    assert!(infer(JSON.replace("[1,2,3,4.5]", "[7,8,3,4]")).await.error(500).contains("failed"));
    assert!(infer("x".repeat(100_001)).await.error(413).contains("limit of 100000 bytes"));
    let told = infer(JSON.replace("\"id\"", "\"parameters\":{\"sequence_id\":7},\"id\"")).await.error(501);
    assert!(told.contains("\"sequence_id\" is not supported"), "{told}");
    let told = server.infer("/v2/models/iris/infer", &[("content-encoding", "br")], "x").await.error(415);
    assert!(told.contains("\"br\" is not known"), "{told}");
    for path in ["load", "unload"] {
        let told = server.post(&format!("/v2/repository/models/iris/{path}"), "{}").await.error(403);
        assert!(told.contains("--admin-token-file"), "{told}");
    }
    let series = |route: &str, status| {
        server.metric(&format!("hotserve_http_requests_total{{route=\"{route}\",status=\"{status}\"}}"))
    };
    assert_eq!(series("/v2", "404"), 2.0);
    assert_eq!(series("/v2/models/{model}/infer", "400"), 3.0);
    assert_eq!(server.metric("hotserve_predict_errors_total{code=\"failed\"}"), 2.0);
    let statistics = server.get("/v2/models/iris/stats").await.json();
    assert_eq!(statistics["model_stats"][0]["inference_stats"]["fail"]["count"], 6);
}

#[tokio::test]
async fn bodies_may_be_compressed_both_ways() {
    let server = iris();
    let gzip = |bytes: &[u8]| {
        let mut writer = GzEncoder::new(Vec::new(), Compression::default());
        writer.write_all(bytes).expect("memory");
        writer.finish().expect("memory")
    };
    let zlib = |bytes: &[u8]| {
        let mut writer = ZlibEncoder::new(Vec::new(), Compression::default());
        writer.write_all(bytes).expect("memory");
        writer.finish().expect("memory")
    };
    let body = [BINARY.as_bytes(), &rows()].concat();
    let (length, path) = (BINARY.len().to_string(), "/v2/models/iris/infer");
    for (name, body) in [("gzip", gzip(&body)), ("deflate", zlib(&body))] {
        let headers = [("inference-header-content-length", length.as_str()), ("content-encoding", name)];
        let answer = server.infer(path, &headers, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let many = 2000;
    let json = format!(
        r#"{{"inputs":[{{"name":"x","shape":[{many},2],"datatype":"FP32","data":[{}]}}]}}"#,
        vec!["1,2"; many].join(",")
    );
    let plain = server.infer(path, &[], json.clone()).await;
    assert_eq!(plain.header("content-encoding"), "");
    let small = server.infer(path, &[("accept-encoding", "gzip, deflate")], json.clone()).await;
    assert_eq!((small.header("content-encoding"), small.header("vary")), ("gzip", "accept-encoding"));
    let mut inflated = Vec::new();
    std::io::Read::read_to_end(&mut GzDecoder::new(&small.body[..]), &mut inflated).expect("gzip");
    let outputs = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON")["outputs"].clone();
    assert_eq!(outputs(&inflated), outputs(&plain.body));
    let refused = server.infer(path, &[("accept-encoding", "gzip;q=0")], json).await;
    assert_eq!(refused.header("content-encoding"), "");
    let little = server.infer(path, &[("accept-encoding", "gzip")], JSON).await;
    assert_eq!(little.header("content-encoding"), "", "it fits into a packet");

    let bomb = gzip(&vec![b' '; 50_000_000]);
    assert!(bomb.len() < 100_000);
    let told = server.infer(path, &[("content-encoding", "gzip")], bomb).await.error(413);
    assert!(told.contains("inflates to more than"), "{told}");
}

#[tokio::test]
async fn the_version_before_answers_while_it_is_kept_warm() {
    let server = iris();
    let before = server.http.serving.snapshot();
    let old = Arc::clone(before.model("iris").expect("served"));
    server.swapper.swap(before.with(vec![], vec![model("iris", 4, Does::Sum, CHEAP)]));
    drop(before);
    for (version, path) in [("4", "/v2/models/iris/infer"), ("3", "/v2/models/iris/versions/3/infer")] {
        let answer = server.infer(path, &[], JSON).await;
        assert_eq!((answer.status, answer.json()["model_version"].as_str()), (200, Some(version)));
    }
    assert_eq!(server.get("/v2/models/iris").await.json()["versions"], json!(["4", "3"]));
    let statistics = server.get("/v2/models/stats").await.json();
    let counts = |index: usize| statistics["model_stats"][index]["inference_count"].clone();
    assert_eq!((counts(0), counts(1)), (json!(2), json!(2)), "of either version");
    // Whoever holds it: it is on its way to be freed.
    old.retire();
    let told = server.infer("/v2/models/iris/versions/3/infer", &[], JSON).await.error(404);
    assert!(told.contains("there is 4"), "{told}");
    assert_eq!(server.get("/v2/models/iris").await.json()["versions"], json!(["4"]));
}

#[tokio::test]
async fn commands_need_the_token_and_a_body_that_means_something() {
    let server = admin::server();
    let path = "/v2/repository/models/iris/load";
    let answer = server.post(path, "").await;
    answer.error(401);
    assert_eq!(answer.header("www-authenticate"), r#"Bearer realm="hotserve""#);
    let token = admin::bearer();
    let with = [("authorization", token.as_str())];
    assert!(server.infer(path, &with, r#"{"parameters":{"config":"{}"}}"#).await.error(400).contains("no parameters"));
    assert!(server.infer(path, &with, "[").await.error(400).contains("an object"));
    // The manager is gone.
    assert!(server.infer(path, &with, r#"{"parameters":{}}"#).await.error(503).contains("shutting down"));
    let unload = "/v2/repository/models/iris/unload";
    let body = r#"{"parameters":{"unload_dependents":false}}"#;
    assert!(server.infer(unload, &with, body).await.error(503).contains("shutting down"));
    assert!(server.post("/v2/repository/index", "{\"ready\":1}").await.error(400).contains("an object"));
    assert_eq!(server.post("/v2/repository/index", "{\"ready\":true}").await.json()[0]["name"], "iris");
}

#[tokio::test]
async fn the_index_shows_what_is_not_there_and_why() {
    let server = iris();
    let slot = |name: &str| Slot::Model(name.parse().expect("a name"));
    server.http.status.set_unloaded(&slot("gone"), true);
    server.http.status.set_loading([slot("new"), slot("iris"), slot("gone")].iter());
    let index = server.post("/v2/repository/index", "{}").await.json();
    let states: Vec<_> = index.as_array().expect("a list").iter().map(|row| (&row["name"], &row["state"])).collect();
    let expected = [
        (&json!("gone"), &json!("UNAVAILABLE")),
        (&json!("iris"), &json!("READY")),
        (&json!("new"), &json!("LOADING")),
    ];
    assert_eq!(states, expected, "what replaces a model does not make it less ready");
    let ready = server.post("/v2/repository/index", r#"{"ready":true}"#).await.json();
    assert_eq!(ready.as_array().map(Vec::len), Some(1));
}

fn done(progress: Progress, serving: Option<&str>) -> Done {
    let serving = serving.map(str::to_owned);
    Done { slot: "model new".to_owned(), action: "load", before: None, serving, progress }
}

#[tokio::test]
async fn a_load_that_ends_with_nothing_served_is_no_success() {
    let server = iris();
    let slot = Slot::Model("new".parse().expect("a name"));
    let load = |progress, serving| {
        served(&server.http, &slot, move || std::future::ready(Ok::<_, Problem>(done(progress, serving))))
    };
    for (progress, code, told) in [
        (Progress::Waiting, "not_here", "model new is pinned to a version that is not here"),
        (Progress::Done, "nothing_to_serve", "nothing that can be served as model new"),
    ] {
        let problem = load(progress, None).await.expect_err("nothing is served");
        assert_eq!((problem.status.as_u16(), problem.code), (409, code));
        assert!(problem.detail.contains(told), "{}", problem.detail);
        load(progress, Some("3")).await.expect("what is pinned elsewhere is served still");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_ends_as_soon_as_it_is_refused_or_overtaken() {
    let server = iris();
    let (http, slot) = (&server.http, Slot::Model("new".parse().expect("a name")));
    let times = std::cell::Cell::new(0);
    let load = || {
        let answers = || {
            times.set(times.get() + 1);
            let first = times.get() == 1;
            let progress = if first { Progress::Loading } else { Progress::Done };
            std::future::ready(Ok::<_, Problem>(done(progress, None)))
        };
        times.set(0);
        http.status.set_loading([slot.clone()].iter());
        let begun = tokio::time::Instant::now();
        (begun, served(http, &slot, answers))
    };
    let soon = |begun: tokio::time::Instant| assert!(begun.elapsed() < Duration::from_secs(1));
    let refuse = async {
        tokio::task::yield_now().await;
        http.status.set_loading([].iter());
        http.status.record(Entry::new("rejected", [(slot.clone(), "3".to_owned())]));
    };
    let (begun, loaded) = load();
    assert_eq!(tokio::join!(loaded, refuse).0.expect_err("refused").code, "nothing_to_serve");
    soon(begun);
    // That an unloading is under way is told before it is done.
    let unload = async {
        http.status.record(Entry::new("unloaded", [(slot.clone(), "3".to_owned())]));
        tokio::task::yield_now().await;
        http.status.set_unloaded(&slot, true);
    };
    let (begun, loaded) = load();
    assert_eq!(tokio::join!(loaded, unload).0.expect_err("overtaken").code, "unloaded");
    soon(begun);
    http.status.set_unloaded(&slot, false);
    let swap = async {
        tokio::task::yield_now().await;
        let before = http.serving.snapshot();
        server.swapper.swap(before.with(vec![], vec![model("new", 3, Does::Sum, CHEAP)]));
    };
    let (_, loaded) = load();
    tokio::join!(loaded, swap).0.expect("served");
}

#[tokio::test]
async fn a_large_answer_is_compressed_where_it_holds_up_nobody() {
    let server = Server::new(vec![], vec![model("iris", 3, Does::Both, CHEAP)]);
    let asked = |rows: usize| {
        let data = vec!["1.5,2.25"; rows].join(",");
        let json = format!(r#"{{"inputs":[{{"name":"x","shape":[{rows},2],"datatype":"FP32","data":[{data}]}}]}}"#);
        server.infer("/v2/models/iris/infer", &[("accept-encoding", "gzip")], json)
    };
    // One at work and one in the queue: there is no place.
    let (held, free) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let first = server.http.compute.run(move || begun.send(()).is_ok() && free.recv().is_ok());
    let blocked = async {
        has_begun.await.expect("it is at work");
        let second = server.http.compute.run(|| ());
        let asks = async {
            tokio::task::yield_now().await;
            let (large, small) = (asked(1900).await, asked(300).await);
            held.send(()).expect("it waits");
            (large, small)
        };
        tokio::join!(asks, second).0
    };
    let (large, small) = tokio::join!(blocked, first).0;
    assert_eq!((large.status, large.header("content-encoding")), (200, ""), "as it is, rather than not at all");
    assert_eq!((small.status, small.header("content-encoding")), (200, "gzip"));
    let again = asked(1900).await;
    assert_eq!(again.header("content-encoding"), "gzip");
    let mut inflated = Vec::new();
    std::io::Read::read_to_end(&mut GzDecoder::new(&again.body[..]), &mut inflated).expect("gzip");
    let outputs = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON")["outputs"].clone();
    assert_eq!(outputs(&inflated), outputs(&large.body));
}

/// A call over gRPC, with this body.
async fn call(server: &Server, path: &str, body: &'static [u8]) -> Answer {
    let request = Request::post(path).version(http::Version::HTTP_2).header("content-type", "application/grpc");
    server.send(request.body(Body::from(body)).expect("a request")).await
}

#[tokio::test]
async fn streams_of_grpc_and_listeners_to_events_take_no_places_from_each_other() {
    let server = iris();
    // Each ends with its first word.
    server.http.status.set_draining();
    let watch = "/grpc.health.v1.Health/Watch";
    let (listeners, streams) = (crate::http::events::CLIENTS, crate::http::v2::grpc::STREAMS);
    let held = server.http.listeners.try_acquire_many(u32::try_from(listeners).expect("some")).expect("nobody listens");
    let answer = call(&server, watch, &[0; 5]).await;
    assert_eq!((answer.header("grpc-status"), answer.body.is_empty()), ("", false));
    drop(held);
    let held = server.http.streams.try_acquire_many(u32::try_from(streams).expect("some")).expect("nobody watches");
    assert_eq!(call(&server, watch, &[0; 5]).await.header("grpc-status"), "14");
    assert_eq!(server.get("/events").await.status, 200);
    drop(held);
    assert_eq!(server.http.streams.available_permits(), streams);
}

#[tokio::test]
async fn what_is_not_predicted_is_counted_by_its_cause() {
    let server = iris();
    let count = |code: &str| server.metric(&format!("hotserve_predict_errors_total{{code=\"{code}\"}}"));
    let infer = "/inference.GRPCInferenceService/ModelInfer";
    for (body, status) in [(&[][..], "3"), (&[0, 0, 0], "3"), (&[0, 255, 0, 0, 0], "8"), (&[1, 0, 0, 0, 0], "13")] {
        assert_eq!(call(&server, infer, body).await.header("grpc-status"), status, "{body:?}");
    }
    assert_eq!((count("bad_input"), count("failed")), (4.0, 0.0));
    // Only inferences are predictions.
    call(&server, "/inference.GRPCInferenceService/ServerLive", &[0, 0]).await;
    assert_eq!(count("bad_input"), 4.0);
    let fault = predict::counted(&server.http, Err::<(), _>(Problem::internal()));
    assert!(fault.is_err());
    assert_eq!((count("bad_input"), count("failed")), (4.0, 1.0));
}
