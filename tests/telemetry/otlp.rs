//! Spans as a collector gets them: OTLP as protobuf over HTTP. Of the messages, only what is looked at is described.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use prost::Message;

use super::*;

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes, tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes, tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes, tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

const SERVER: i32 = 2;
const CONSUMER: i32 = 5;
const ERROR: i32 = 2;

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &AnyValue| value.text.clone().or(value.number.map(|number| number.to_string()));
    list.iter().map(|it| (it.key.clone(), it.value.as_ref().and_then(text).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A collector, and what it got.
#[derive(Clone, Default)]
struct Collector {
    exports: Arc<Mutex<Vec<Export>>>,
    answers: Arc<Mutex<u16>>,
}

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self { answers: Arc::new(Mutex::new(200)), ..Self::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let this = collector.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let this = this.clone();
                let service = hyper::service::service_fn(move |request| this.clone().take(request));
                let builder = Builder::new(TokioExecutor::new());
                // The client closes it.
                tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), service).await.ok() });
            }
        });
        (collector, at)
    }

    async fn take(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        assert_eq!(request.headers()["x-token"], "of the collector");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let status = *self.answers.lock().unwrap();
        if status == 200 {
            self.exports.lock().unwrap().push(Export::decode(body).unwrap());
        }
        Ok(Response::builder().status(status).body(Full::default()).unwrap())
    }

    fn spans(&self) -> Vec<Span> {
        let exports = self.exports.lock().unwrap();
        let scopes = exports.iter().flat_map(|export| &export.resources).flat_map(|resource| &resource.scopes);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    async fn until_span(&self, what: &str, is_it: impl Fn(&Span) -> bool) -> Span {
        until(&format!("a span: {what}"), async || self.spans().into_iter().find(&is_it)).await
    }
}

fn exporting(command: &mut Command, at: &str) {
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", at)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-token=of the collector")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "1")
        .env("OTEL_BSP_SCHEDULE_DELAY", "50");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_one_trace_that_goes_on_where_its_publisher_began_it() {
    let cloud = Cloud::start(1).await;
    let (collector, at) = Collector::start().await;
    let mut program = Program::serve(&cloud, |command| exporting(command, &at)).await;
    let model = cloud.upload("m", 1, "linear", &constant_model(1)).await;
    let receipt = cloud.put(json!({"model": model, "traceparent": TRACEPARENT}).to_string()).await;
    let swap = program.until_swapped("model m", "1").await;
    assert_eq!(swap["trace_id"], TRACE);

    let outcome = |wanted: &'static str| {
        move |span: &Span| {
            span.name == "update" && attributes(&span.attributes).get("hotserve.outcome").is_some_and(|it| it == wanted)
        }
    };
    let root = collector.until_span("the update", outcome("applied")).await;
    assert_eq!((hex(&root.trace_id).as_str(), hex(&root.parent_span_id).as_str()), (TRACE, "00f067aa0ba902b7"));
    assert_eq!(root.kind, CONSUMER);
    let said = attributes(&root.attributes);
    for (name, value) in [
        ("messaging.system", "aws_kinesis"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", crate::support::STREAM),
        ("messaging.destination.partition.id", "shardId-000000000000"),
        ("messaging.message.id", receipt.sequence_number.as_str()),
        ("hotserve.slot", "model m"),
        ("hotserve.version", "1"),
    ] {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{name} of {said:?}");
    }
    for stage in ["decode", "fetch", "probe", "verify", "load", "warm", "persist", "swap"] {
        let span = collector.until_span(stage, |span| span.name == stage && span.parent_span_id == root.span_id).await;
        assert_eq!(hex(&span.trace_id), TRACE, "{stage}");
        // Both are reckoned back from now, to some microseconds.
        assert!(span.start + 1_000_000 >= root.start && span.end <= root.end + 1_000_000, "{stage} is not within");
    }

    // Without a traceparent it is a trace of its own, and a refusal is an error.
    cloud.put(r#"{"garbage":1}"#).await;
    let refused = collector.until_span("the refusal", outcome("rejected")).await;
    assert!(refused.parent_span_id.is_empty() && hex(&refused.trace_id) != TRACE);
    assert_eq!(attributes(&refused.attributes)["error.type"], "unknown_kind");
    assert_eq!(refused.status.unwrap().code, ERROR);

    // Who began the trace and does not keep it has nothing exported.
    cloud
        .put(
            json!({"key": "k", "version": 1, "state": 1, "traceparent": TRACEPARENT.replace("-01", "-00")}).to_string(),
        )
        .await;
    cloud.put(r#"{"key":"end","version":1,"state":1}"#).await;
    collector
        .until_span("the end", |span| {
            attributes(&span.attributes).get("hotserve.slot").is_some_and(|it| it == "state end")
        })
        .await;
    assert!(
        !collector
            .spans()
            .iter()
            .any(|span| attributes(&span.attributes).get("hotserve.slot").is_some_and(|it| it == "state k"))
    );
    assert_eq!(program.stop().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_spans_and_a_collector_that_fails_harms_none() {
    let cloud = Cloud::start(1).await;
    let (collector, at) = Collector::start().await;
    *collector.answers.lock().unwrap() = 400;
    let mut program = Program::serve(&cloud, |command| exporting(command, &at)).await;
    let model = cloud.upload("m", 4, "linear", &constant_model(1)).await;
    cloud.put(json!({"model": model}).to_string()).await;
    program.until_swapped("model m", "4").await;
    let said = |what: &'static str| {
        let program = &program;
        async move {
            until(what, async || {
                let lines = program.lines();
                let count = lines.iter().filter(|line| line["message"].as_str().unwrap().starts_with(what)).count();
                (count > 0).then_some(count)
            })
            .await
        }
    };
    for _ in 0..20 {
        assert_eq!(program.client.post("/predict/m", r#"{"instances":[[0]]}"#).await.status, StatusCode::OK);
    }
    assert_eq!(said("traces cannot be exported").await, 1);
    *collector.answers.lock().unwrap() = 200;

    let asked = &[("traceparent", TRACEPARENT), ("x-request-id", "mine")][..];
    program.client.ask("/predict/m", asked, Some(r#"{"instances":[[0]]}"#)).await;
    program.client.ask("/predict/none", asked, Some("{}")).await;
    let of = |status: &'static str| {
        move |span: &Span| {
            let said = attributes(&span.attributes);
            span.kind == SERVER && said["http.response.status_code"] == status && said["hotserve.request_id"] == "mine"
        }
    };
    for (status, version) in [("200", Some("4")), ("404", None)] {
        let span = collector.until_span("a request", of(status)).await;
        assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()), (TRACE, "00f067aa0ba902b7"));
        assert_eq!(span.name, "POST /predict/{model}");
        let said = attributes(&span.attributes);
        assert_eq!((&*said["http.request.method"], &*said["http.route"]), ("POST", "/predict/{model}"));
        assert_eq!(said.get("hotserve.model.version").map(String::as_str), version);
    }
    said("traces are exported again").await;
    let resource = collector.exports.lock().unwrap()[0].resources[0].resource.clone().unwrap();
    let resource = attributes(&resource.attributes);
    assert_eq!((&*resource["service.name"], &*resource["deployment.environment.name"]), ("hotserve", "test"));

    // What waits to be exported at the end is, and a collector that is gone holds nothing up for long.
    program.client.ask("/livez", &[("x-request-id", "last")], None).await;
    let begun = std::time::Instant::now();
    assert_eq!(program.stop().await, Some(0));
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    collector
        .until_span("the last", |span| {
            attributes(&span.attributes).get("hotserve.request_id").is_some_and(|id| id == "last")
        })
        .await;
}
