//! How long the stages of an update took: for metrics, the history, the log and its trace.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use crate::telemetry::Trace;

/// What one update went through so far.
#[derive(Debug, Clone, Default)]
pub struct Stages {
    /// Seconds that each stage took.
    pub seconds: BTreeMap<&'static str, f64>,
    /// The trace of the update.
    pub trace: Trace,
}

impl Stages {
    /// Nothing yet, of something that has no trace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing yet.
    pub fn of(trace: &Trace) -> Self {
        Self { trace: trace.clone(), ..Self::default() }
    }

    /// A stage ends now.
    pub fn end(&mut self, stage: &'static str, begun: Instant) {
        self.note(stage, begun, begun.elapsed());
    }

    /// A stage took so long.
    pub fn note(&mut self, stage: &'static str, begun: Instant, took: Duration) {
        self.seconds.insert(stage, took.as_secs_f64());
        self.trace.stage(stage, begun, took);
    }

    /// Counts all of it.
    pub fn record(&self, metrics: &Metrics) {
        for (stage, seconds) in &self.seconds {
            metrics.swap_stage_duration.get(stage).record(*seconds);
        }
    }

    /// How long a stage took, in milliseconds to the microsecond; nothing if it was not gone through.
    pub fn ms(&self, stage: &str) -> Option<f64> {
        self.seconds.get(stage).map(|seconds| (seconds * 1e6).round() / 1e3)
    }
}
