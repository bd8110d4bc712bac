//! The pulse: how the server does, once a second, for those who listen to `/events?pulse`.
//!
//! ```text
//! event: server
//! data: {"version":"0.7.0","started_at":"…","admin":{"here":true,"port":null,"token":true},…}
//!
//! event: pulses
//! data: {"columns":["at_ms","in_flight","all.per_second",…],"rows":[[1764362387000,3,812.0,…],…]}
//!
//! event: pulse
//! data: {"at":"…","ready":true,"requests":{"all":{"per_second":812.0,…},…},"stream":{…},…}
//! ```
//!
//! First what does not change, then the last ten minutes, then each second as it ends. One sample is taken a second,
//! whoever listens, and only if somebody does it is written out: once, for all of them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use super::Http;
use crate::metrics::{Asked, Contacted, Counts, Metrics, Traffic};
use crate::status::{Absence, Bootstrapped, Manifest, Readiness, Stream, Trouble, timestamp};

/// How many seconds are kept.
const KEPT: usize = 600;
/// Medians and tails are those of the last minute, begun anew as often as this.
const MARK: Duration = Duration::from_secs(10);
/// How many beginnings of a minute are kept.
const MARKS: usize = 6;

/// What a row of [`rows`](Pulse::before) holds.
const COLUMNS: [&str; 17] = [
    "at_ms",
    "in_flight",
    "all.per_second",
    "all.refused_per_second",
    "all.failed_per_second",
    "all.p50_ms",
    "all.p99_ms",
    "predictions.per_second",
    "predictions.refused_per_second",
    "predictions.failed_per_second",
    "predictions.p50_ms",
    "predictions.p99_ms",
    "states.per_second",
    "states.refused_per_second",
    "states.failed_per_second",
    "states.p50_ms",
    "states.p99_ms",
];

/// The one sampler of a server.
pub(super) struct Pulse {
    started_at: Timestamp,
    ring: Mutex<Ring>,
    /// The last second, as the event that it is.
    latest: watch::Sender<Bytes>,
}

struct Ring {
    at: Instant,
    before: Kinds<Counts>,
    marks: VecDeque<(Instant, Kinds<Counts>)>,
    seconds: VecDeque<Second>,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Kinds<T> {
    all: T,
    predictions: T,
    states: T,
}

struct Second {
    at: Timestamp,
    in_flight: f64,
    requests: Kinds<Rates>,
}

/// Requests of one kind in one second. Times are in milliseconds; there are none where nothing was asked.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Rates {
    per_second: f64,
    refused_per_second: f64,
    failed_per_second: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

/// The times of a minute.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Times {
    requests: u64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

/// What the event says.
#[derive(Serialize)]
struct Said<'a> {
    at: Timestamp,
    ready: bool,
    draining: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    generation: u64,
    requests: Kinds<Rates>,
    minute: Kinds<Times>,
    in_flight: f64,
    stream: Stream,
    throttled_ratio: f64,
    estimated_readers: f64,
    manifest: Option<Manifest>,
    artifacts: Store,
    bootstrapped: Option<Bootstrapped>,
    memory: Memory,
    loading: Vec<&'a str>,
    unloaded: Vec<&'a str>,
}

/// Where artifacts come from.
#[derive(Serialize)]
struct Store {
    last_contact: Option<Timestamp>,
    trouble: Option<Trouble>,
}

/// In bytes.
#[derive(Serialize)]
struct Memory {
    models: f64,
    /// None without a bound.
    budget: Option<f64>,
    resident: Option<u64>,
}

impl Kinds<Counts> {
    fn now(traffic: &Traffic) -> Self {
        let (predictions, states) = (traffic.counts(Asked::Prediction), traffic.counts(Asked::State));
        Self { all: predictions.with(&states), predictions, states }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            all: self.all.since(&before.all),
            predictions: self.predictions.since(&before.predictions),
            states: self.states.since(&before.states),
        }
    }
}

impl<T> Kinds<T> {
    fn map<U>(&self, map: impl Fn(&T) -> U) -> Kinds<U> {
        Kinds { all: map(&self.all), predictions: map(&self.predictions), states: map(&self.states) }
    }
}

impl Rates {
    fn new(counts: &Counts, seconds: f64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
        let rate = |count: u64| (count as f64 / seconds * 10.0).round() / 10.0;
        Self {
            per_second: rate(counts.requests()),
            refused_per_second: rate(counts.refused),
            failed_per_second: rate(counts.failed),
            p50_ms: milliseconds(counts, 0.5),
            p99_ms: milliseconds(counts, 0.99),
        }
    }

    fn columns(&self) -> [Option<f64>; 5] {
        let rates = [self.per_second, self.refused_per_second, self.failed_per_second];
        let [rate, refused, failed] = rates.map(Some);
        [rate, refused, failed, self.p50_ms, self.p99_ms]
    }
}

fn milliseconds(counts: &Counts, share: f64) -> Option<f64> {
    // To the microsecond: less is not told apart.
    counts.quantile(share).map(|duration| (duration.as_secs_f64() * 1e6).round() / 1e3)
}

impl Pulse {
    /// Of a server that has just been started.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let (at, before) = (Instant::now(), Kinds::now(&metrics.traffic));
        let marks = VecDeque::from([(at, before.clone())]);
        let ring = Mutex::new(Ring { at, before, marks, seconds: VecDeque::with_capacity(KEPT) });
        Self { started_at: Timestamp::now(), ring, latest: watch::Sender::default() }
    }

    /// Hears each second as it ends.
    pub(super) fn listen(&self) -> watch::Receiver<Bytes> {
        self.latest.subscribe()
    }
}

impl Http {
    /// Takes the sample of a second: to be called once a second.
    pub fn sample(&self) {
        let now = Instant::now();
        let counts = Kinds::now(&self.metrics.traffic);
        {
            let mut ring = self.pulse.ring.lock().unwrap_or_else(PoisonError::into_inner);
            let seconds = now.duration_since(ring.at).as_secs_f64().max(1e-3);
            let requests = counts.since(&ring.before).map(|counts| Rates::new(counts, seconds));
            if ring.seconds.len() == KEPT {
                ring.seconds.pop_front();
            }
            ring.seconds.push_back(Second { at: Timestamp::now(), in_flight: self.in_flight(), requests });
            if ring.marks.back().is_none_or(|(mark, _)| now.duration_since(*mark) >= MARK) {
                if ring.marks.len() == MARKS {
                    ring.marks.pop_front();
                }
                ring.marks.push_back((now, counts.clone()));
            }
            (ring.at, ring.before) = (now, counts);
        }
        if self.pulse.latest.receiver_count() > 0 {
            self.pulse.latest.send_replace(self.pulse_now());
        }
    }

    fn in_flight(&self) -> f64 {
        self.metrics.in_flight.count() as f64
    }

    /// The event of this moment.
    pub(super) fn pulse_now(&self) -> Bytes {
        let (ready, draining, reason) = match self.status.readiness() {
            Readiness::Ready => (true, false, None),
            Readiness::Starting(reason) => (false, false, Some(reason)),
            Readiness::Draining => (false, true, Some("shutting down".to_owned())),
        };
        let counts = Kinds::now(&self.metrics.traffic);
        let (requests, minute) = {
            let ring = self.pulse.ring.lock().unwrap_or_else(PoisonError::into_inner);
            let begun = ring.marks.front().map(|(_, counts)| counts.clone()).unwrap_or_else(|| counts.clone());
            (ring.seconds.back().map(|second| second.requests).unwrap_or_default(), counts.since(&begun))
        };
        let minute = minute.map(|counts| Times {
            requests: counts.requests(),
            p50_ms: milliseconds(counts, 0.5),
            p99_ms: milliseconds(counts, 0.99),
        });
        let Contacted { at, trouble, .. } = self.metrics.artifact_store.read();
        let absent: Vec<_> = self.status.absent().into_iter().map(|(slot, why)| (slot.to_string(), why)).collect();
        let those = |which: Absence| absent.iter().filter(move |(_, why)| *why == which).map(|(slot, _)| slot.as_str());
        let budget = self.metrics.value("hotserve_memory_budget_bytes");
        let said = Said {
            at: Timestamp::now(),
            ready,
            draining,
            reason,
            generation: self.serving.snapshot().generation,
            requests,
            minute,
            in_flight: self.in_flight(),
            stream: self.status.stream(),
            throttled_ratio: self.metrics.value("hotserve_stream_throttle_ratio"),
            estimated_readers: self.metrics.value("hotserve_stream_estimated_readers"),
            manifest: self.status.manifest(),
            artifacts: Store {
                last_contact: at.map(timestamp),
                trouble: trouble.map(|(code, message)| Trouble { code, message }),
            },
            bootstrapped: self.status.bootstrapped(),
            memory: Memory {
                models: self.metrics.value("hotserve_memory_used_bytes"),
                budget: (budget > 0.0).then_some(budget),
                resident: Metrics::resident_bytes(),
            },
            loading: those(Absence::Loading).collect(),
            unloaded: those(Absence::Unloaded).collect(),
        };
        event("pulse", &said)
    }

    /// What a listener hears first.
    pub(super) fn pulses_before(&self) -> [Bytes; 3] {
        let admin = self.admin.as_ref().map(|admin| {
            let port = self.admin_listen().map(|address| address.port());
            // Without a token they are taken from who shows a certificate.
            json!({ "here": port.is_none(), "port": port, "token": admin.token.is_some() })
        });
        let server = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "started_at": self.pulse.started_at,
            "admin": admin,
            "default_model": self.config.default_model,
            "isolation": self.status.isolation(),
        });
        let rows: Vec<Vec<Option<f64>>> = {
            let ring = self.pulse.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.seconds.iter().map(Second::columns).collect()
        };
        let pulses = json!({ "columns": COLUMNS, "rows": rows });
        [event("server", &server), event("pulses", &pulses), self.pulse_now()]
    }
}

impl Second {
    /// In the order of [`COLUMNS`].
    fn columns(&self) -> Vec<Option<f64>> {
        let Kinds { all, predictions, states } = &self.requests;
        #[expect(clippy::cast_precision_loss, reason = "a double holds milliseconds since 1970")]
        let at = self.at.as_millisecond() as f64;
        let rates = [all, predictions, states].into_iter().flat_map(Rates::columns);
        [Some(at), Some(self.in_flight)].into_iter().chain(rates).collect()
    }
}

fn event(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("text and numbers are JSON");
    format!("event: {name}\ndata: {data}\n\n").into()
}
