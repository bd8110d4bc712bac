//! What the tailer does, as metrics, logs and the status board show it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

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
    /// Arrival of the newest record of all shards.
    newest_ms: Arc<AtomicU64>,
}

impl Observer {
    pub(super) fn new(stream: String, metrics: Arc<Metrics>, status: Arc<Status>) -> Self {
        Self { stream, metrics, status, newest_ms: Arc::default() }
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
            Effect::Crowded(ratio) => tracing::warn!(
                stream = self.stream,
                throttled_percent = (ratio * 100.0).round(),
                "instances share five reads a second of a shard, and are too many for it: up to 5 poll well, up to 20 \
                 with --fleet-size N or --consumer fan-out, up to 50 with fan-out on a stream in on-demand advantage \
                 mode; more read the --manifest"
            ),
            Effect::Ask { .. } | Effect::Survey(_) | Effect::HandOn(_) | Effect::CaughtUp | Effect::Register => {}
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
        let message = format!("{cure}: {}", fault.message);
        let code = fault.kind.code();
        if self.status.stream_trouble(Trouble { code, message: message.clone() }) {
            self.status.waiting_for(format!("the stream: {message}"));
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
