//! The traces: one of each update on its way, a span of each request.
//!
//! Without the feature `otlp` all of this is the id that came in. With it, nothing is made until spans are exported.

use std::time::{Duration, Instant};

use super::context::TraceContext;
#[cfg(feature = "otlp")]
use super::otlp;

/// The trace of one update. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// What the message said.
    parent: Option<TraceContext>,
    #[cfg(feature = "otlp")]
    span: Option<otlp::UpdateSpan>,
}

/// Where a message came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The stream, or whatever it is that a source follows.
    pub stream: &'a str,
    /// The shard.
    pub shard: &'a str,
    /// The place within it.
    pub sequence_number: &'a str,
}

impl Trace {
    /// Of a message of which nobody asks how long it took: one that was there before the start.
    pub fn silent(parent: Option<TraceContext>) -> Self {
        Self {
            parent,
            #[cfg(feature = "otlp")]
            span: None,
        }
    }

    /// Of a message that was read at `begun`, as a part of the trace that it names, if it does.
    #[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "nothing is exported"))]
    pub fn begin(parent: Option<TraceContext>, origin: Origin<'_>, begun: Instant) -> Self {
        Self {
            parent,
            #[cfg(feature = "otlp")]
            span: otlp::UpdateSpan::begin(parent, origin, begun),
        }
    }

    /// Where in the trace it is now: for what is done for it elsewhere.
    pub fn context(&self) -> Option<TraceContext> {
        #[cfg(feature = "otlp")]
        if let Some(trace) = self.span.as_ref().and_then(otlp::UpdateSpan::context) {
            return Some(trace);
        }
        self.parent
    }

    /// A stage is over.
    #[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "nothing is exported"))]
    pub fn stage(&self, stage: &'static str, begun: Instant, took: Duration) {
        #[cfg(feature = "otlp")]
        if let Some(span) = &self.span {
            span.stage(stage, begun, took);
        }
    }

    /// It came to its end: `applied`, `rejected` or `superseded`. What is said after the first end is not kept.
    #[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "nothing is exported"))]
    pub fn end(
        &self,
        outcome: &'static str,
        slots: &[String],
        versions: &[String],
        refused: Option<(&'static str, &str)>,
    ) {
        #[cfg(feature = "otlp")]
        if let Some(span) = &self.span {
            span.end(outcome, slots, versions, refused);
        }
    }
}

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The trace that it named, if it did.
    pub parent: Option<TraceContext>,
    /// When it came.
    pub begun: Instant,
    /// Its method.
    pub method: &'a str,
    /// Its route, as in the metrics.
    pub route: &'a str,
    /// The status of its answer.
    pub status: u16,
    /// The code of gRPC, for a call of that.
    pub grpc: Option<i32>,
    /// Its id.
    pub request_id: &'a str,
}

/// Exports the span of a request, where spans are exported. Answers to which trace it belongs: the one that it named,
/// or its own where it is kept. `version` is that of the model that answered, if one did; it is asked for only where
/// spans are exported.
#[inline]
#[cfg_attr(not(feature = "otlp"), expect(unused_variables, reason = "nothing is exported"))]
pub fn answered<'a>(request: &Answered<'_>, version: impl FnOnce() -> Option<&'a [u8]>) -> Option<TraceContext> {
    #[cfg(feature = "otlp")]
    if let Some(trace) = otlp::answered(request, version) {
        return Some(trace);
    }
    request.parent
}

/// Exports spans from here on, where the environment says to where: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or
/// `OTEL_EXPORTER_OTLP_ENDPOINT`. Says so, or why not. Once a process.
pub fn export() {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    let off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let Some(endpoint) = names.iter().find_map(|name| set(name)).filter(|_| !off) else { return };
    let endpoint = without_secrets(&endpoint.to_string_lossy());
    #[cfg(feature = "otlp")]
    match otlp::export() {
        Ok(()) => tracing::info!(%endpoint, "traces are exported"),
        Err(detail) => tracing::warn!(%endpoint, "traces are not exported: {detail}"),
    }
    #[cfg(not(feature = "otlp"))]
    tracing::warn!(%endpoint, "traces are not exported: this build cannot, build it with `cargo build --release --features otlp`");
}

/// Where spans go, as it may be logged: neither a password nor a key in the path or the query.
fn without_secrets(endpoint: &str) -> String {
    let Ok(uri) = endpoint.parse::<http::Uri>() else { return "(no URL)".to_owned() };
    let port = uri.port().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{}{port}", uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default())
}

/// Exports what is left, for two seconds at the most. It waits: not for a thread that answers requests.
pub fn flush() {
    #[cfg(feature = "otlp")]
    otlp::flush(Duration::from_secs(2));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_shown_without_its_secrets() {
        assert_eq!(without_secrets("https://user:hunter2@collector:4318/v1?key=hunter2"), "https://collector:4318");
        assert_eq!(without_secrets("http://[::1]:4318"), "http://[::1]:4318");
        assert_eq!(without_secrets("hunter2 "), "(no URL)");
    }
}
