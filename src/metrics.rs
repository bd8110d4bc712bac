//! Every metric: one table, from which the series are made at zero, the dashboards are tested, and nothing is omitted.
//!
//! Handles are resolved once, here; recording is an atomic operation. Each server has a registry of its own, so that
//! several can live in one process. Gauges of things that come and go (models, states, shards) are written at scrape
//! time from what is served then: a series of something gone does not linger.

mod in_flight;
mod meter;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

pub use self::in_flight::{Flight, InFlight};
use self::meter::Mirror;
pub use self::meter::{Asked, Contact, Contacted, Counts, Ended, Traffic};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; the name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in the buckets given, with sum and count.
    Histogram(Buckets),
    /// A gauge written at scrape time, one series for each thing that is there then.
    Scraped,
}

/// Bucket bounds, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buckets {
    /// 10 µs to 10 s: answering a request.
    Request,
    /// 100 µs to 10 min: the stages of a swap.
    Stage,
    /// 1 ms to 1 h: from publication to serving.
    Freshness,
}

impl Buckets {
    fn bounds(self) -> &'static [f64] {
        match self {
            Self::Request => &[
                10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5,
                1.0, 2.5, 5.0, 10.0,
            ],
            Self::Stage => {
                &[100e-6, 500e-6, 1e-3, 5e-3, 10e-3, 50e-3, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0]
            }
            Self::Freshness => &[
                1e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
            ],
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The full name, unit included.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it says, and when to look at it.
    pub help: &'static str,
    /// Its labels, each with all its values; a scraped metric's values are open.
    pub labels: &'static [(&'static str, &'static [&'static str])],
}

const fn spec(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    labels: &'static [(&'static str, &'static [&'static str])],
) -> Spec {
    Spec { name, kind, help, labels }
}

const SLOT_KINDS: &[&str] = &["state", "model"];
const OUTCOMES: &[&str] = &["applied", "rejected", "superseded", "duplicate", "stale"];
const STAGES: &[&str] = &["stream", "fetch", "verify", "load", "warm", "persist", "swap", "probe"];
/// Everything that keeps a message or an artifact from being served.
pub const REJECTIONS: &[&str] = &[
    "not_json",
    "too_large",
    "inflate",
    "depth",
    "duplicate_key",
    "schema",
    "state_type",
    "unknown_kind",
    "must_understand",
    "uri",
    "expired",
    "conflict",
    "unversioned",
    "too_many_slots",
    "forbidden_uri",
    "not_found",
    "access_denied",
    "unavailable",
    "size",
    "digest",
    "changed",
    "unsupported_format",
    "malformed",
    "contract",
    "golden",
    "warm_up",
    "panic",
    "disk",
    "control",
    "version_jump",
    "rolled_back",
    "revoked",
    "quarantined",
    "unsigned",
    "bad_signature",
    "unknown_key",
    "key_expired",
    "key_scope",
    "threshold",
    "slow",
    "redirect",
    "crash",
    "timeout",
    "memory",
    "non_finite",
    "too_slow",
];
/// How a connection ended. Errors of HTTP/2 and torn ones are both broken: its frames do not tell.
pub const ENDS: &[&str] = &[
    "closed",
    "idle",
    "head_timeout",
    "malformed",
    "head_too_large",
    "stalled",
    "handshake",
    "evicted",
    "broken",
    "drained",
];
const RELOADS: &[&str] = &["applied", "failed"];
/// The routes of the HTTP interface, as matched.
pub const ROUTES: &[&str] = &[
    "/",
    "/state",
    "/state/{key}",
    "/predict",
    "/predict/{model}",
    "/models",
    "/history",
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "unmatched",
    "/events",
    "/openapi.json",
    "/docs",
    "/docs/{file}",
    "/page/{file}",
    "/admin/control",
    // Of the Open Inference Protocol. The first two stand for all that is only read, the third for every version.
    "/v2",
    "/v2/models",
    "/v2/models/{model}/infer",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
];
/// The statuses that have a series of their own, and four for all others of a class: a 502 is an error as a 503 is.
pub const STATUSES: &[&str] = &[
    "200", "202", "304", "400", "401", "404", "405", "408", "409", "412", "413", "422", "500", "503", "2xx", "3xx",
    "4xx", "5xx",
];
/// The methods of gRPC, by their paths.
pub const GRPC_METHODS: &[&str] = &[
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/ServerMetadata",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelStatistics",
    "/inference.GRPCInferenceService/RepositoryIndex",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "unmatched",
];
/// The codes of gRPC that have a series of their own.
pub const GRPC_CODES: &[&str] = &[
    "OK",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "other",
];
/// What can be read anew while the server runs.
const READ_ANEW: &[&str] = &["trusted_keys", "admin_token", "certificate"];
const POLLS: &[&str] = &["ok", "throttled", "expired", "invalid", "not_found", "denied", "failed"];
const MANIFEST_READS: &[&str] = &["changed", "unchanged", "absent", "failed"];
const SIGNATURES: &[&str] = &["none", "unchecked", "good"];
const PROBES: &[&str] = &["passed", "refused", "crash", "timeout", "memory", "unavailable", "superseded"];
const PREDICT_ERRORS: &[&str] = &["bad_input", "no_model", "failed", "overloaded"];

/// Every metric of a server.
pub const TABLE: &[Spec] = &[
    spec(
        "hotserve_updates_total",
        Kind::Counter,
        "Notifications by what became of them, for each slot they name",
        &[("kind", SLOT_KINDS), ("outcome", OUTCOMES)],
    ),
    spec(
        "hotserve_rejections_total",
        Kind::Counter,
        "Messages and artifacts refused, by reason; the newest are on /history",
        &[("reason", REJECTIONS)],
    ),
    spec(
        "hotserve_controls_total",
        Kind::Counter,
        "Pins, unpins, rollbacks, revocations, unloads and loads obeyed, by who told them",
        &[("action", &["pin", "unpin", "rollback", "revoke", "unload", "load"]), ("by", &["admin", "stream"])],
    ),
    spec(
        "hotserve_fallbacks_total",
        Kind::Counter,
        "Slots that began with an older version than they served last, because that was rotten, gone or quarantined",
        &[],
    ),
    spec(
        "hotserve_held",
        Kind::Scraped,
        "1 for each slot that is pinned, with who says so: setting, admin or stream",
        &[("slot", &[]), ("by", &[])],
    ),
    spec(
        "hotserve_quarantined_artifacts",
        Kind::Gauge,
        "Artifacts that took the process down twice, and are not tried again",
        &[],
    ),
    spec("hotserve_swaps_total", Kind::Counter, "Snapshots swapped in", &[]),
    spec(
        "hotserve_swap_stage_duration_seconds",
        Kind::Histogram(Buckets::Stage),
        "Time of each stage of an update on its way to being served",
        &[("stage", STAGES)],
    ),
    spec(
        "hotserve_publish_to_serving_seconds",
        Kind::Histogram(Buckets::Freshness),
        "Time from publication (published_at, else arrival in the stream) to being served",
        &[("kind", SLOT_KINDS)],
    ),
    spec(
        "hotserve_last_swap_timestamp_seconds",
        Kind::Gauge,
        "When the newest snapshot was swapped in, Unix time; 0 before the first",
        &[],
    ),
    spec(
        "hotserve_generation",
        Kind::Gauge,
        "Number of the snapshot served now, counted from the start of the process",
        &[],
    ),
    spec(
        "hotserve_live_generations",
        Kind::Gauge,
        "Snapshots not yet freed, the served one included: over 2 for long means that readers hold on",
        &[],
    ),
    spec("hotserve_ready", Kind::Gauge, "1 when /readyz answers 200", &[]),
    spec("hotserve_stream_records_total", Kind::Counter, "Records read from the stream", &[]),
    spec("hotserve_stream_bytes_total", Kind::Counter, "Bytes of record data read from the stream", &[]),
    spec("hotserve_stream_polls_total", Kind::Counter, "Calls to the stream by outcome", &[("outcome", POLLS)]),
    spec(
        "hotserve_stream_poll_interval_seconds",
        Kind::Gauge,
        "Time between polls of a shard at the tip, after adapting to throttling",
        &[],
    ),
    spec(
        "hotserve_stream_last_poll_timestamp_seconds",
        Kind::Gauge,
        "When the stream last answered, Unix time; 0 before the first answer",
        &[],
    ),
    spec(
        "hotserve_stream_last_record_timestamp_seconds",
        Kind::Gauge,
        "Arrival time of the newest record read, Unix time; 0 before the first",
        &[],
    ),
    spec(
        "hotserve_stream_last_contact_timestamp_seconds",
        Kind::Scraped,
        "When each shard last answered, Unix time",
        &[("shard", &[])],
    ),
    spec(
        "hotserve_stream_throttle_ratio",
        Kind::Gauge,
        "Share of the reads of the last 5 min that were throttled, of the worst shard: over 0.1, too many instances poll",
        &[],
    ),
    spec(
        "hotserve_stream_estimated_readers",
        Kind::Gauge,
        "How many instances seem to poll the worst shard: what it gives over what this one gets; 0 while nothing is throttled",
        &[],
    ),
    spec("hotserve_stream_subscriptions", Kind::Gauge, "Shards read with enhanced fan-out; the others are polled", &[]),
    spec(
        "hotserve_stream_lag_seconds",
        Kind::Scraped,
        "What arrived in a shard longer ago than this has been read: it grows between answers, and while there are none",
        &[("shard", &[])],
    ),
    spec(
        "hotserve_stream_clock_offset_seconds",
        Kind::Gauge,
        "How far the stream's clock is ahead of this machine's; 0 where they agree to 3 s",
        &[],
    ),
    spec("hotserve_stream_shards", Kind::Gauge, "Shards being read", &[]),
    spec(
        "hotserve_stream_gaps_total",
        Kind::Counter,
        "Times the stream had trimmed records that were not yet read",
        &[],
    ),
    spec(
        "hotserve_manifest_reads_total",
        Kind::Counter,
        "Reads of the manifest by outcome; none where there is no --manifest",
        &[("outcome", MANIFEST_READS)],
    ),
    spec(
        "hotserve_manifest_last_read_timestamp_seconds",
        Kind::Gauge,
        "When the manifest was last read, or found to be unchanged, Unix time; 0 before the first time",
        &[],
    ),
    spec(
        "hotserve_bootstrap_info",
        Kind::Scraped,
        "1, with what the server became ready from: manifest, lookback, journal (the last known good), none",
        &[("kind", &[])],
    ),
    spec("hotserve_artifact_fetch_bytes_total", Kind::Counter, "Bytes of artifacts fetched", &[]),
    spec("hotserve_artifact_fetch_retries_total", Kind::Counter, "Fetches tried again after a passing fault", &[]),
    spec(
        "hotserve_artifact_fetch_resumes_total",
        Kind::Counter,
        "Torn transfers of artifacts that were gone on with from where they had ended",
        &[],
    ),
    spec(
        "hotserve_artifact_cache_total",
        Kind::Counter,
        "Look-ups of artifacts in the cache",
        &[("result", &["hit", "miss"])],
    ),
    spec(
        "hotserve_http_requests_total",
        Kind::Counter,
        "Requests answered",
        &[("route", ROUTES), ("status", STATUSES)],
    ),
    spec(
        "hotserve_http_request_duration_seconds",
        Kind::Histogram(Buckets::Request),
        "Time from a request's head to its answer",
        &[("route", ROUTES)],
    ),
    spec(
        "hotserve_http_requests_in_flight",
        Kind::Gauge,
        "Requests being answered, but those of who looks after the server",
        &[],
    ),
    spec(
        "hotserve_grpc_requests_total",
        Kind::Counter,
        "Calls of gRPC answered; a stream when it begins",
        &[("method", GRPC_METHODS), ("code", GRPC_CODES)],
    ),
    spec(
        "hotserve_grpc_request_duration_seconds",
        Kind::Histogram(Buckets::Request),
        "Time from a call's head to its answer",
        &[("method", GRPC_METHODS)],
    ),
    spec("hotserve_predict_rows_total", Kind::Counter, "Rows predicted", &[]),
    spec(
        "hotserve_predict_duration_seconds",
        Kind::Histogram(Buckets::Request),
        "Time of inference alone, per request",
        &[],
    ),
    spec(
        "hotserve_predict_batches_total",
        Kind::Counter,
        "Times that a model was asked for several requests at once",
        &[],
    ),
    spec("hotserve_predict_batched_total", Kind::Counter, "Requests that were answered together with others", &[]),
    spec("hotserve_predict_queue_depth", Kind::Gauge, "Requests waiting for the compute pool", &[]),
    spec(
        "hotserve_predict_errors_total",
        Kind::Counter,
        "Predictions not given, by cause",
        &[("code", PREDICT_ERRORS)],
    ),
    spec(
        "hotserve_model_info",
        Kind::Scraped,
        "1 for each model served, with what it is",
        &[("model", &[]), ("version", &[]), ("digest", &[]), ("format", &[])],
    ),
    spec(
        "hotserve_model_version",
        Kind::Scraped,
        "Version of each model served; 0 where its message had none",
        &[("model", &[])],
    ),
    spec("hotserve_model_memory_bytes", Kind::Scraped, "Memory held by each model served", &[("model", &[])]),
    spec(
        "hotserve_model_loaded_timestamp_seconds",
        Kind::Scraped,
        "When each model served was swapped in, Unix time",
        &[("model", &[])],
    ),
    spec(
        "hotserve_state_version",
        Kind::Scraped,
        "Version of each state served; 0 where its message had none",
        &[("key", &[])],
    ),
    spec(
        "hotserve_probes_total",
        Kind::Counter,
        "New models tried in a process of their own, by what became of the process",
        &[("outcome", PROBES)],
    ),
    spec(
        "hotserve_isolation_info",
        Kind::Scraped,
        "1, with where new models are tried: process, thread",
        &[("mode", &[])],
    ),
    spec(
        "hotserve_memory_budget_bytes",
        Kind::Gauge,
        "Memory that models may take, those on their way included; 0 without a bound",
        &[],
    ),
    spec(
        "hotserve_memory_used_bytes",
        Kind::Gauge,
        "Memory of the budget that is taken: by models served, kept, not yet freed, being tried and being loaded",
        &[],
    ),
    spec(
        "hotserve_build_info",
        Kind::Scraped,
        "1, with the version of the program and the revision that it was built from",
        &[("version", &[]), ("revision", &[])],
    ),
    spec(
        "hotserve_reloads_total",
        Kind::Counter,
        "What was read anew on SIGHUP: changed, unchanged, or failed, when the old is kept and the log says why",
        &[("what", READ_ANEW), ("outcome", &["changed", "unchanged", "failed"])],
    ),
    spec("hotserve_connections", Kind::Gauge, "Connections that are open, on all ports", &[]),
    spec(
        "hotserve_connections_limit",
        Kind::Gauge,
        "Connections that may be open on the server's port: at it, the one that is idle longest makes room",
        &[],
    ),
    spec("hotserve_connections_opened_total", Kind::Counter, "Connections that were accepted", &[]),
    spec(
        "hotserve_connections_refused_total",
        Kind::Counter,
        "Connections turned away because as many as may be were open, and none of them was idle",
        &[],
    ),
    spec(
        "hotserve_connections_ended_total",
        Kind::Counter,
        "Connections that ended, by how: closed is the usual way",
        &[("how", ENDS)],
    ),
    spec(
        "hotserve_requests_shed_total",
        Kind::Counter,
        "Requests answered 503 because as many as may be were under way",
        &[],
    ),
    spec(
        "hotserve_tls_certificate_expiry_timestamp_seconds",
        Kind::Gauge,
        "When the server's certificate expires, Unix time; 0 where no TLS is spoken",
        &[],
    ),
    spec(
        "hotserve_tls_reloads_total",
        Kind::Counter,
        "Changed certificates by what became of them: applied, failed (the one before is used on)",
        &[("outcome", RELOADS)],
    ),
    spec(
        "hotserve_signature_required",
        Kind::Gauge,
        "What must be signed to be taken: 0 nothing, 1 all but states, 2 everything",
        &[],
    ),
    spec(
        "hotserve_signatures_total",
        Kind::Counter,
        "Messages that were let through, by their signatures: none, unchecked (the server has no keys), good",
        &[("signature", SIGNATURES)],
    ),
];

/// Counters of one metric, one for each combination of its labels' values.
pub struct Counters(HashMap<Vec<&'static str>, Counter>);

impl Counters {
    /// The counter for these label values, in the table's order.
    ///
    /// # Panics
    /// When the values are not in the table: a fault of the program that the tests of the caller meet.
    pub fn get(&self, values: &[&'static str]) -> &Counter {
        self.0.get(values).expect("every label value is in the metrics table")
    }
}

/// Histograms of one metric, by the value of its one label.
pub struct Histograms(HashMap<&'static str, Histogram>);

impl Histograms {
    /// The histogram for this label value.
    ///
    /// # Panics
    /// When the value is not in the table: a fault of the program that the tests of the caller meet.
    pub fn get(&self, value: &'static str) -> &Histogram {
        self.0.get(value).expect("every label value is in the metrics table")
    }
}

/// The handles of every metric that is recorded as things happen.
#[expect(missing_docs, reason = "the table above says what each is")]
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    /// Gauges that [`value`](Self::value) reads.
    mirrors: Vec<(&'static str, Mirror)>,
    /// The requests that a server is there for, to be read.
    pub traffic: Traffic,
    /// The store of artifacts, as it was last asked.
    pub artifact_store: Contact,

    pub updates: Counters,
    pub rejections: Counters,
    pub controls: Counters,
    pub fallbacks: Counter,
    pub quarantined_artifacts: Gauge,
    pub swaps: Counter,
    pub swap_stage_duration: Histograms,
    pub publish_to_serving: Histograms,
    pub last_swap_timestamp: Gauge,
    pub generation: Gauge,
    pub live_generations: Gauge,
    pub ready: Gauge,
    pub stream_records: Counter,
    pub stream_bytes: Counter,
    pub stream_polls: Counters,
    pub stream_poll_interval: Gauge,
    pub stream_last_poll_timestamp: Gauge,
    pub stream_last_record_timestamp: Gauge,
    pub stream_clock_offset: Gauge,
    pub stream_shards: Gauge,
    pub stream_subscriptions: Gauge,
    pub stream_throttle_ratio: Gauge,
    pub stream_estimated_readers: Gauge,
    pub stream_gaps: Counter,
    pub manifest_reads: Counters,
    pub manifest_last_read_timestamp: Gauge,
    pub artifact_fetch_bytes: Counter,
    pub artifact_fetch_retries: Counter,
    pub artifact_fetch_resumes: Counter,
    pub artifact_cache: Counters,
    pub http_requests: Counters,
    pub http_request_duration: Histograms,
    pub http_requests_in_flight: Gauge,
    pub grpc_requests: Counters,
    pub grpc_request_duration: Histograms,
    pub predict_rows: Counter,
    pub predict_batches: Counter,
    pub predict_batched: Counter,
    pub predict_duration: Histogram,
    pub predict_queue_depth: Gauge,
    pub predict_errors: Counters,
    pub signature_required: Gauge,
    pub signatures: Counters,
    pub reloads: Counters,
    pub probes: Counters,
    pub memory_budget: Gauge,
    pub memory_used: Gauge,
    pub in_flight: InFlight,
    pub connections: Gauge,
    pub connections_limit: Gauge,
    pub connections_opened: Counter,
    pub connections_refused: Counter,
    pub connections_ended: Counters,
    pub requests_shed: Counter,
    pub tls_certificate_expiry: Gauge,
    pub tls_reloads: Counters,
}

const METADATA: Metadata<'static> = Metadata::new("hotserve", Level::INFO, None);

impl Metrics {
    /// A registry with every series of the table at zero.
    pub fn new() -> Arc<Self> {
        let mut builder = PrometheusBuilder::new();
        for spec in TABLE {
            if let Kind::Histogram(buckets) = spec.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(spec.name.to_owned()), buckets.bounds())
                    .expect("the table's buckets are not empty");
            }
        }
        let recorder = builder.build_recorder();
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let r = &recorder;
        let mut mirrors = Vec::new();
        let mut mirrored = |name: &'static str| {
            let mirror = Mirror::of(gauge(r, name));
            let handle = mirror.handle();
            mirrors.push((name, mirror));
            handle
        };
        let metrics = Self {
            updates: counters(r, "hotserve_updates_total"),
            rejections: counters(r, "hotserve_rejections_total"),
            controls: counters(r, "hotserve_controls_total"),
            fallbacks: counter(r, "hotserve_fallbacks_total"),
            quarantined_artifacts: gauge(r, "hotserve_quarantined_artifacts"),
            swaps: counter(r, "hotserve_swaps_total"),
            swap_stage_duration: histograms(r, "hotserve_swap_stage_duration_seconds"),
            publish_to_serving: histograms(r, "hotserve_publish_to_serving_seconds"),
            last_swap_timestamp: gauge(r, "hotserve_last_swap_timestamp_seconds"),
            generation: gauge(r, "hotserve_generation"),
            live_generations: gauge(r, "hotserve_live_generations"),
            ready: gauge(r, "hotserve_ready"),
            stream_records: counter(r, "hotserve_stream_records_total"),
            stream_bytes: counter(r, "hotserve_stream_bytes_total"),
            stream_polls: counters(r, "hotserve_stream_polls_total"),
            stream_poll_interval: gauge(r, "hotserve_stream_poll_interval_seconds"),
            stream_last_poll_timestamp: gauge(r, "hotserve_stream_last_poll_timestamp_seconds"),
            stream_last_record_timestamp: gauge(r, "hotserve_stream_last_record_timestamp_seconds"),
            stream_clock_offset: gauge(r, "hotserve_stream_clock_offset_seconds"),
            stream_shards: gauge(r, "hotserve_stream_shards"),
            stream_subscriptions: gauge(r, "hotserve_stream_subscriptions"),
            stream_throttle_ratio: mirrored("hotserve_stream_throttle_ratio"),
            stream_estimated_readers: mirrored("hotserve_stream_estimated_readers"),
            stream_gaps: counter(r, "hotserve_stream_gaps_total"),
            manifest_reads: counters(r, "hotserve_manifest_reads_total"),
            manifest_last_read_timestamp: gauge(r, "hotserve_manifest_last_read_timestamp_seconds"),
            artifact_fetch_bytes: counter(r, "hotserve_artifact_fetch_bytes_total"),
            artifact_fetch_retries: counter(r, "hotserve_artifact_fetch_retries_total"),
            artifact_fetch_resumes: counter(r, "hotserve_artifact_fetch_resumes_total"),
            artifact_cache: counters(r, "hotserve_artifact_cache_total"),
            http_requests: counters(r, "hotserve_http_requests_total"),
            http_request_duration: histograms(r, "hotserve_http_request_duration_seconds"),
            http_requests_in_flight: gauge(r, "hotserve_http_requests_in_flight"),
            grpc_requests: counters(r, "hotserve_grpc_requests_total"),
            grpc_request_duration: histograms(r, "hotserve_grpc_request_duration_seconds"),
            predict_rows: counter(r, "hotserve_predict_rows_total"),
            predict_batches: counter(r, "hotserve_predict_batches_total"),
            predict_batched: counter(r, "hotserve_predict_batched_total"),
            predict_duration: histogram(r, "hotserve_predict_duration_seconds"),
            predict_queue_depth: gauge(r, "hotserve_predict_queue_depth"),
            predict_errors: counters(r, "hotserve_predict_errors_total"),
            signature_required: gauge(r, "hotserve_signature_required"),
            signatures: counters(r, "hotserve_signatures_total"),
            reloads: counters(r, "hotserve_reloads_total"),
            probes: counters(r, "hotserve_probes_total"),
            memory_budget: mirrored("hotserve_memory_budget_bytes"),
            memory_used: mirrored("hotserve_memory_used_bytes"),
            mirrors,
            traffic: Traffic::default(),
            artifact_store: Contact::default(),
            in_flight: InFlight::default(),
            connections: gauge(r, "hotserve_connections"),
            connections_limit: gauge(r, "hotserve_connections_limit"),
            connections_opened: counter(r, "hotserve_connections_opened_total"),
            connections_refused: counter(r, "hotserve_connections_refused_total"),
            connections_ended: counters(r, "hotserve_connections_ended_total"),
            requests_shed: counter(r, "hotserve_requests_shed_total"),
            tls_certificate_expiry: gauge(r, "hotserve_tls_certificate_expiry_timestamp_seconds"),
            tls_reloads: counters(r, "hotserve_tls_reloads_total"),
            handle: recorder.handle(),
            process,
            recorder,
        };
        Arc::new(metrics)
    }

    /// Moves recorded samples into their buckets; without a regular call the samples pile up between scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// A gauge as it is now; 0 for one that cannot be read here.
    pub fn value(&self, name: &str) -> f64 {
        self.mirrors.iter().find(|(mirrored, _)| *mirrored == name).map_or(0.0, |(_, mirror)| mirror.read())
    }

    /// The memory of the process, in bytes, where the system tells it. It reads files of the system's.
    pub fn resident_bytes() -> Option<u64> {
        metrics_process::collector::collect().resident_memory_bytes
    }

    /// The text for Prometheus: everything recorded, then the scraped gauges.
    pub fn render(&self, scraped: &Scraped) -> String {
        self.http_requests_in_flight.set(self.in_flight.count() as f64);
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.mirrors.iter().for_each(|(_, mirror)| mirror.shown.set(mirror.read()));
        let mut text = self.handle.render();
        text.push_str(&scraped.text);
        text
    }
}

/// Scraped gauges on their way into the text of one scrape.
#[derive(Default)]
pub struct Scraped {
    text: String,
}

impl Scraped {
    /// Writes one metric with all its series: label values in the table's order, and the value.
    ///
    /// # Panics
    /// When the table has no such scraped metric.
    pub fn write<'a, const N: usize>(
        &mut self,
        name: &'static str,
        series: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) {
        let spec = find(name);
        assert_eq!(spec.kind, Kind::Scraped, "{name} is recorded, not scraped");
        assert_eq!(spec.labels.len(), N, "{name} has other labels");
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {}\n# TYPE {name} gauge", spec.help);
        for (values, value) in series {
            let labels =
                spec.labels.iter().zip(values).map(|((label, _), value)| format!("{label}=\"{}\"", escape(value)));
            let _ = writeln!(self.text, "{name}{{{}}} {value}", labels.collect::<Vec<_>>().join(","));
        }
        self.text.push('\n');
    }
}

/// Now, as a gauge wants it.
pub fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn find(name: &str) -> &'static Spec {
    TABLE.iter().find(|spec| spec.name == name).expect("every metric is in the table")
}

/// Every combination of the label values of a metric, each as a key.
fn keys(name: &str) -> Vec<(Vec<&'static str>, Key)> {
    let spec = find(name);
    let mut combinations = vec![vec![]];
    for (_, values) in spec.labels {
        combinations = combinations
            .iter()
            .flat_map(|head| values.iter().map(|value| [head.as_slice(), &[*value]].concat()))
            .collect();
    }
    let key = |values: &Vec<&'static str>| {
        let labels = spec.labels.iter().zip(values).map(|((label, _), value)| Label::from_static_parts(label, value));
        Key::from_parts(spec.name, labels.collect::<Vec<_>>())
    };
    combinations.into_iter().map(|values| (values.clone(), key(&values))).collect()
}

fn counters(recorder: &PrometheusRecorder, name: &'static str) -> Counters {
    recorder.describe_counter(name.into(), None, find(name).help.into());
    Counters(keys(name).into_iter().map(|(values, key)| (values, recorder.register_counter(&key, &METADATA))).collect())
}

fn counter(recorder: &PrometheusRecorder, name: &'static str) -> Counter {
    recorder.describe_counter(name.into(), None, find(name).help.into());
    recorder.register_counter(&Key::from_static_name(name), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str) -> Gauge {
    recorder.describe_gauge(name.into(), None, find(name).help.into());
    recorder.register_gauge(&Key::from_static_name(name), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, name: &'static str) -> Histogram {
    recorder.describe_histogram(name.into(), None, find(name).help.into());
    recorder.register_histogram(&Key::from_static_name(name), &METADATA)
}

fn histograms(recorder: &PrometheusRecorder, name: &'static str) -> Histograms {
    recorder.describe_histogram(name.into(), None, find(name).help.into());
    let series = keys(name).into_iter().map(|(values, key)| (values[0], recorder.register_histogram(&key, &METADATA)));
    Histograms(series.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_conventions() {
        for spec in TABLE {
            assert!(spec.name.starts_with("hotserve_"), "{}", spec.name);
            assert_eq!(spec.name.ends_with("_total"), spec.kind == Kind::Counter, "{}", spec.name);
            assert!(!spec.help.ends_with('.') && !spec.help.is_empty(), "{}", spec.name);
        }
    }

    #[test]
    fn every_recorded_series_is_there_at_zero() {
        let text = Metrics::new().render(&Scraped::default());
        for spec in TABLE.iter().filter(|spec| spec.kind != Kind::Scraped) {
            assert!(text.contains(&format!("# HELP {} {}\n", spec.name, spec.help)), "{} is not registered", spec.name);
            for (values, _) in keys(spec.name) {
                let suffix = if matches!(spec.kind, Kind::Histogram(_)) { "_count" } else { "" };
                let series = |line: &str| {
                    line.starts_with(&format!("{}{suffix}", spec.name))
                        && values.iter().all(|value| line.contains(&format!("\"{value}\"")))
                        && line.ends_with(" 0")
                };
                assert!(text.lines().any(series), "{} {values:?} is missing", spec.name);
            }
        }
    }

    #[test]
    fn a_label_value_cannot_break_the_text() {
        let mut scraped = Scraped::default();
        scraped.write("hotserve_stream_lag_seconds", [(["a\"b\\c\nd"], 1.0)]);
        assert!(scraped.text.contains("{shard=\"a\\\"b\\\\c\\nd\"} 1\n"), "{}", scraped.text);
    }
}
