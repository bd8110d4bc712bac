//! What the tailer does, as metrics, logs and the status board show it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::pace::FEW;
use super::tailer::{Effect, Event, ReaderId, Tailer};
use crate::aws::{Fault, FaultKind};
use crate::id::SequenceNumber;
use crate::metrics::{Metrics, unix_seconds};
use crate::status::{ShardReport, Status, Trouble};

/// Tells people and Prometheus.
#[derive(Clone)]
pub(super) struct Observer {
    stream: String,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    said: Arc<Mutex<Said>>,
    /// Arrival of the newest record of all shards.
    newest_ms: Arc<AtomicU64>,
}

/// What is wrong and was said, so that it is said once, and its end too.
#[derive(Debug, Default)]
struct Said {
    trouble: Option<Lasting>,
    crowded: bool,
}

/// A trouble that was said.
#[derive(Debug)]
struct Lasting {
    /// Each kind is said once until all is well.
    codes: Vec<&'static str>,
    since: Instant,
    last: Instant,
}

/// For so long nothing must have gone wrong before it is said that it is over: of many shards, or one that answers now
/// and then, the log must not say so each time.
const OVER: Duration = Duration::from_secs(10);

impl Said {
    /// Something is wrong. Answers whether to say it: not what was said and is not over.
    fn on_trouble(&mut self, code: &'static str, now: Instant) -> bool {
        let trouble = self.trouble.get_or_insert_with(|| Lasting { codes: Vec::new(), since: now, last: now });
        trouble.last = now;
        let news = !trouble.codes.contains(&code);
        if news {
            trouble.codes.push(code);
        }
        news
    }

    /// There was an answer. Answers how long it was wrong, when that is to be said.
    fn on_answer(&mut self, now: Instant) -> Option<Duration> {
        let over = self.trouble.take_if(|trouble| now.duration_since(trouble.last) >= OVER)?;
        Some(over.last - over.since)
    }
}

impl Observer {
    pub(super) fn new(stream: String, metrics: Arc<Metrics>, status: Arc<Status>) -> Self {
        Self { stream, metrics, status, said: Arc::default(), newest_ms: Arc::default() }
    }

    /// How far the service's clock is ahead of this machine's.
    pub(super) fn clock(&self, offset_ms: i64) {
        let offset_ms = self.status.set_clock_offset(offset_ms);
        #[expect(clippy::cast_precision_loss, reason = "a difference of clocks, for a person")]
        self.metrics.stream_clock_offset.set(offset_ms as f64 / 1e3);
    }

    /// An answer, before the tailer hears of it.
    pub(super) fn on_event(&self, event: &Event, tailer: &Tailer) {
        match event {
            Event::Surveyed(Ok(_)) => self.contact(),
            Event::Page(reader, Ok(page)) => {
                self.metrics.stream_polls.get(&["ok"]).increment(1);
                self.brought(&page.records, page.behind_ms, "poll", *reader, tailer);
            }
            Event::Delivered(reader, delivery) => {
                self.brought(&delivery.records, delivery.behind_ms, "fan-out", *reader, tailer);
            }
            Event::Surveyed(Err(fault))
            | Event::Iterator(_, Err(fault))
            | Event::Page(_, Err(fault))
            | Event::Unsubscribed(_, Err(fault)) => self.count(fault.kind),
            Event::Iterator(_, Ok(_)) | Event::Unsubscribed(_, Ok(())) | Event::Consumer(_) | Event::Vouched(_) => {}
        }
    }

    /// A record arrived then: another shard may have brought a newer one before, for a start reads all from the past on.
    fn newest(&self, arrival_ms: u64) {
        let newest_ms = self.newest_ms.fetch_max(arrival_ms, Ordering::Relaxed).max(arrival_ms);
        #[expect(clippy::cast_precision_loss, reason = "a double holds milliseconds since 1970")]
        self.metrics.stream_last_record_timestamp.set(newest_ms as f64 / 1e3);
    }

    /// What the tailer wants done.
    pub(super) fn on_effect(&self, effect: &Effect) {
        match effect {
            Effect::Drop(_, shard) => self.status.stream_shard_gone(shard),
            Effect::Gap(what) => {
                self.metrics.stream_gaps.increment(1);
                tracing::warn!(stream = self.stream, "{what}");
            }
            Effect::Trouble(fault) => self.trouble(fault),
            Effect::Crowded(ratio) if !self.crowded(true) => tracing::warn!(
                stream = self.stream,
                throttled_percent = (ratio * 100.0).round(),
                "instances share five reads a second of a shard, and are too many for it: up to 5 poll well, up to 20 \
                 with --fleet-size N or --consumer fan-out, up to 50 with fan-out on a stream in on-demand advantage \
                 mode; more read the --manifest"
            ),
            Effect::Crowded(_)
            | Effect::Ask { .. }
            | Effect::Survey(_)
            | Effect::HandOn(_)
            | Effect::CaughtUp
            | Effect::Register => {}
        }
    }

    /// The tailer after an event.
    pub(super) fn on_load(&self, tailer: &Tailer) {
        let load = tailer.load();
        let metrics = &self.metrics;
        #[expect(clippy::cast_precision_loss, reason = "a number of shards")]
        let (reading, subscribed) = (tailer.reading() as f64, load.subscribed as f64);
        metrics.stream_shards.set(reading);
        metrics.stream_subscriptions.set(subscribed);
        metrics.stream_poll_interval.set(load.interval.as_secs_f64());
        metrics.stream_throttle_ratio.set(load.throttled);
        metrics.stream_estimated_readers.set(load.readers);
        if load.throttled <= FEW && self.crowded(false) {
            tracing::info!(stream = self.stream, "instances do not get in each other's way any more");
        }
    }

    /// There is no consumer to subscribe with: shards are polled.
    pub(super) fn no_consumer(&self, fault: &Fault) {
        let cure = match fault.kind {
            FaultKind::Denied => {
                "kinesis:RegisterStreamConsumer, DescribeStreamConsumer, SubscribeToShard and DeregisterStreamConsumer \
                 are needed for fan-out: "
            }
            _ => "",
        };
        tracing::warn!(stream = self.stream, code = fault.kind.code(), "no fan-out, polling instead: {cure}{fault}");
    }

    fn brought(
        &self,
        records: &[(SequenceNumber, u64, bytes::Bytes)],
        behind_ms: u64,
        via: &'static str,
        reader: ReaderId,
        tailer: &Tailer,
    ) {
        self.contact();
        self.metrics.stream_records.increment(records.len() as u64);
        self.metrics.stream_bytes.increment(records.iter().map(|(_, _, data)| data.len() as u64).sum());
        let last_record_ms = records.last().map(|(_, arrival_ms, _)| *arrival_ms);
        if let Some(arrival_ms) = last_record_ms {
            self.newest(arrival_ms);
        }
        if let Some(shard) = tailer.shard(reader) {
            self.status.stream_shard(shard, ShardReport { behind_ms, last_record_ms, via });
        }
    }

    fn contact(&self) {
        self.metrics.stream_last_poll_timestamp.set(unix_seconds(SystemTime::now()));
        self.status.stream_contact();
        let over = self.said.lock().unwrap_or_else(PoisonError::into_inner).on_answer(Instant::now());
        if let Some(lasted) = over {
            tracing::info!(stream = self.stream, lasted_seconds = lasted.as_secs(), "the stream answers again");
        }
    }

    /// Notes whether it is said that the instances are too many. Answers whether it was before.
    fn crowded(&self, now: bool) -> bool {
        std::mem::replace(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner).crowded, now)
    }

    /// Counts a call that was not answered as asked.
    fn count(&self, kind: FaultKind) {
        let outcome = match kind {
            FaultKind::Throttled => "throttled",
            FaultKind::ExpiredIterator => "expired",
            FaultKind::InvalidArgument => "invalid",
            FaultKind::NotFound => "not_found",
            FaultKind::Denied => "denied",
            FaultKind::Credentials | FaultKind::Config | FaultKind::NotReady | FaultKind::Unavailable => "failed",
        };
        self.metrics.stream_polls.get(&[outcome]).increment(1);
    }

    /// Says once what is wrong, and its cure.
    fn trouble(&self, fault: &Fault) {
        let stream = &self.stream;
        let cure = match fault.kind {
            FaultKind::NotFound => {
                format!(
                    "no stream {stream:?} in this account and region: create it, or check KINESIS_STREAM and AWS_REGION"
                )
            }
            FaultKind::Denied => {
                "not allowed: kinesis:DescribeStreamSummary, ListShards, GetShardIterator and GetRecords are needed \
                 (and kms:Decrypt on an encrypted stream)"
                    .to_owned()
            }
            FaultKind::Credentials | FaultKind::Config => "cannot ask AWS".to_owned(),
            FaultKind::NotReady => format!("stream {stream:?} is being created or changed"),
            FaultKind::Throttled => format!("stream {stream:?} is read by too many"),
            FaultKind::ExpiredIterator | FaultKind::InvalidArgument | FaultKind::Unavailable => {
                format!("stream {stream:?} does not answer")
            }
        };
        let message = format!("{cure}: {}", fault.message.trim_end_matches('.'));
        let code = fault.kind.code();
        if self.status.stream_trouble(Trouble { code, message: message.clone() }) {
            self.status.waiting_for(format!("the stream: {message}"));
        }
        if self.said.lock().unwrap_or_else(PoisonError::into_inner).on_trouble(code, Instant::now()) {
            tracing::warn!(stream, code, "{message}; serving what there is, and trying again");
        }
    }
}

/// Warns of what a stream does to the order of messages.
pub(super) fn warn_of_auto_distribution(stream: &str) {
    tracing::warn!(
        stream,
        "the stream spreads records over its shards whatever their partition key (record distribution AUTO): only \
         messages with versions keep their order"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Scraped;

    #[test]
    fn a_trouble_that_comes_and_goes_is_said_once_and_its_end_when_it_is_over() {
        let mut said = Said::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(said.on_answer(at(0)), None);
        assert!(said.on_trouble("unavailable", at(1)));
        for second in 2..60 {
            // One shard answers, another does not.
            assert_eq!(said.on_answer(at(second)), None);
            assert!(!said.on_trouble("unavailable", at(second)));
        }
        assert!(said.on_trouble("access_denied", at(60)), "another trouble is news");
        assert!(!said.on_trouble("unavailable", at(60)) && !said.on_trouble("access_denied", at(60)), "once");
        assert_eq!(said.on_answer(at(69)), None);
        assert_eq!(said.on_answer(at(70)), Some(Duration::from_secs(59)));
        assert_eq!(said.on_answer(at(71)), None);
        assert!(said.on_trouble("access_denied", at(72)), "it is news again");
    }

    #[test]
    fn an_older_record_of_another_shard_is_not_the_newest() {
        let metrics = Metrics::new();
        let observer = Observer::new("stream".to_owned(), Arc::clone(&metrics), Arc::new(Status::default()));
        for arrival_ms in [5_000, 9_000, 7_000] {
            observer.clone().newest(arrival_ms);
        }
        let text = metrics.render(&Scraped::default());
        assert!(text.contains("hotserve_stream_last_record_timestamp_seconds 9\n"), "{text}");
    }
}
