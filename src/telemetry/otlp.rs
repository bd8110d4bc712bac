//! Spans to a collector: OTLP as protobuf over HTTP, in batches, by a thread of its own. What cannot be exported is
//! dropped, and the queue is bounded: nothing that serves waits for it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::context::TraceContext;
use super::trace::{Answered, Origin};

static EXPORT: OnceLock<Export> = OnceLock::new();

/// How long one export may take, where `OTEL_EXPORTER_OTLP_TIMEOUT` (in milliseconds) says nothing.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Far above the answer of any collector.
const ANSWER: usize = 64 << 10;

struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Exports from here on.
pub(super) fn export() -> Result<(), String> {
    let set = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let protocol = set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some(other) = protocol.filter(|protocol| !protocol.is_empty() && protocol != "http/protobuf") {
        return Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL is {other:?}, and only http/protobuf is spoken (port 4318)"));
    }
    let timeout = set("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT").or_else(|| set("OTEL_EXPORTER_OTLP_TIMEOUT"));
    let timeout = timeout.and_then(|ms| ms.parse().ok()).map_or(TIMEOUT, Duration::from_millis);
    let collector = Collector::new(timeout).map_err(|error| error.to_string())?;
    let exporter = SpanExporter::builder().with_http().with_http_client(collector).build();
    let exporter = exporter.map_err(|error| error.to_string())?;
    // What the environment says counts before this.
    let given = set("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let mut resource = Resource::builder();
    if !given.contains("service.version=") {
        resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    if !given.contains("service.name=") && set("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
        resource = resource.with_service_name("hotserve");
    }
    let provider = SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
    let tracer = provider.tracer("hotserve");
    EXPORT.set(Export { provider, tracer }).map_err(|_| "they are already".to_owned())
}

/// Exports what is left.
pub(super) fn flush(patience: Duration) {
    if let Some(export) = EXPORT.get() {
        // A collector that is not there was said before.
        let _ = export.provider.shutdown_with_timeout(patience);
    }
}

/// The root of an update's trace on this instance.
#[derive(Debug, Clone)]
pub(super) struct UpdateSpan {
    context: Context,
    tracer: &'static SdkTracer,
}

impl UpdateSpan {
    pub(super) fn begin(parent: Option<TraceContext>, origin: Origin<'_>, begun: Instant) -> Option<Self> {
        let Export { tracer, .. } = EXPORT.get()?;
        let Origin { stream, shard, sequence_number } = origin;
        let builder = SpanBuilder::from_name("update")
            .with_kind(SpanKind::Consumer)
            .with_start_time(time(begun))
            .with_attributes([
                KeyValue::new("messaging.system", "aws_kinesis"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.destination.name", stream.to_owned()),
                KeyValue::new("messaging.destination.partition.id", shard.to_owned()),
                KeyValue::new("messaging.message.id", sequence_number.to_owned()),
            ]);
        let span = tracer.build_with_context(builder, &remote(parent));
        Some(Self { context: Context::new().with_span(span), tracer })
    }

    /// Nothing once spans are not exported any more.
    pub(super) fn context(&self) -> Option<TraceContext> {
        ours(self.context.span().span_context())
    }

    pub(super) fn stage(&self, stage: &'static str, begun: Instant, took: Duration) {
        let start = time(begun);
        let builder = SpanBuilder::from_name(stage).with_kind(SpanKind::Internal).with_start_time(start);
        self.tracer.build_with_context(builder, &self.context).end_with_timestamp(start + took);
    }

    pub(super) fn end(
        &self,
        outcome: &'static str,
        slots: &[String],
        versions: &[String],
        refused: Option<(&'static str, &str)>,
    ) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("hotserve.outcome", outcome));
        span.set_attribute(KeyValue::new("hotserve.slot", slots.join(" and ")));
        span.set_attribute(KeyValue::new("hotserve.version", versions.join(" and ")));
        if let Some((reason, detail)) = refused {
            span.set_attribute(KeyValue::new("error.type", reason));
            span.set_status(Status::error(detail.to_owned()));
        }
        span.end();
    }
}

/// Exports the span of a request.
pub(super) fn answered<'a>(request: &Answered<'_>, version: impl FnOnce() -> Option<&'a [u8]>) -> Option<TraceContext> {
    let Export { tracer, .. } = EXPORT.get()?;
    let Answered { parent, begun, method, route, status, grpc, request_id } = *request;
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.to_owned()),
        KeyValue::new("http.route", route.to_owned()),
        KeyValue::new("http.response.status_code", i64::from(status)),
        KeyValue::new("hotserve.request_id", request_id.to_owned()),
    ];
    if let Some(version) = version() {
        attributes.push(KeyValue::new("hotserve.model.version", String::from_utf8_lossy(version).into_owned()));
    }
    if let Some(code) = grpc {
        attributes.push(KeyValue::new("rpc.system", "grpc"));
        attributes.push(KeyValue::new("rpc.grpc.status_code", i64::from(code)));
    }
    let failed = status >= 500;
    if failed {
        attributes.push(KeyValue::new("error.type", status.to_string()));
    }
    let builder = SpanBuilder::from_name(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_start_time(time(begun))
        .with_attributes(attributes);
    let mut span = tracer.build_with_context(builder, &remote(parent));
    if failed {
        span.set_status(Status::error(""));
    }
    // Who looks for the id of one that is not kept finds nothing.
    let trace = ours(span.span_context()).filter(|trace| trace.is_sampled() || parent.is_some());
    span.end();
    trace
}

/// A place in a trace that began elsewhere, for the SDK.
fn remote(parent: Option<TraceContext>) -> Context {
    let Some(parent) = parent else { return Context::new() };
    let flags = if parent.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let trace_id = TraceId::from_bytes(u128::from(parent.trace_id()).to_be_bytes());
    let span_id = SpanId::from_bytes(parent.span_id().to_be_bytes());
    Context::new().with_remote_span_context(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
}

fn ours(span: &SpanContext) -> Option<TraceContext> {
    let (trace_id, span_id) = (span.trace_id().to_bytes(), span.span_id().to_bytes());
    TraceContext::new(u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id), span.is_sampled())
}

/// When that was, by the clock on the wall.
fn time(at: Instant) -> SystemTime {
    SystemTime::now().checked_sub(at.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What spans are sent with. The thread that exports has no runtime, so that there is one for it here, which runs as
/// long as a call lasts.
#[derive(Debug)]
struct Collector {
    runtime: tokio::runtime::Runtime,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
    /// Whether it was said that exporting fails.
    said: AtomicBool,
}

impl Collector {
    fn new(timeout: Duration) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().build();
        // A connection would not be looked after between two calls.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { runtime, client, timeout, said: AtomicBool::new(false) })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = self.client.request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.runtime.block_on(async { tokio::time::timeout(self.timeout, self.send(request)).await });
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer came within {:?}", self.timeout).into()));
        let trouble = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("the collector answered {}", answer.status())),
            Err(error) => Some(crate::error::chain(&**error)),
        };
        let was = self.said.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(trouble) if !was => tracing::warn!("traces cannot be exported, and are dropped: {trouble}"),
            None if was => tracing::info!("traces are exported again"),
            _ => {}
        }
        answer
    }
}
