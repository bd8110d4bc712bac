//! The calls of the tailer.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::types::{
    Record, RecordDistributionStrategy, ShardIteratorType, StartingPosition, StreamStatus, SubscribeToShardEventStream,
};
use aws_smithy_types::DateTime;
use bytes::Bytes;

use super::cursor::{Anchor, Delivery, Page};
use super::lineage::Shard;
use crate::aws::{Aws, Fault, FaultKind, Retries, ServerClock};
use crate::id::{SequenceNumber, ShardId};

/// The stream's service.
pub(super) struct Api {
    client: Client,
    clock: Arc<ServerClock>,
    stream: String,
    warned: AtomicBool,
}

/// What matters of a stream.
pub(super) struct Description {
    /// When it was created, in milliseconds since 1970; unknown where that may not be asked.
    pub(super) era: Option<u64>,
    /// How long it keeps records.
    pub(super) retention_ms: u64,
}

impl Api {
    pub(super) fn new(aws: &Aws, stream: String) -> Self {
        let clock = Arc::new(ServerClock::default());
        let client = aws.kinesis(Retries::Ours, &clock);
        Self { client, clock, stream, warned: AtomicBool::new(false) }
    }

    /// The service's time. It is known to the second, and a time in its future is refused: two seconds early.
    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now_ms().saturating_sub(2_000)
    }

    /// How far the service's clock is ahead of this machine's, in milliseconds.
    pub(super) fn clock_offset_ms(&self) -> i64 {
        self.clock.offset_ms()
    }

    pub(super) async fn describe(&self) -> Result<Description, Fault> {
        let answer = match self.client.describe_stream_summary().stream_name(&self.stream).send().await {
            Ok(answer) => answer,
            Err(error) => {
                let fault = Fault::of(&error);
                // Useful, not needed: a policy may leave it out.
                return if fault.kind == FaultKind::Denied {
                    Ok(Description { era: None, retention_ms: 365 * 86_400_000 })
                } else {
                    Err(fault)
                };
            }
        };
        let Some(summary) = answer.stream_description_summary else {
            let message = "an answer without a description".to_owned();
            return Err(Fault { kind: FaultKind::Unavailable, message });
        };
        if summary.record_distribution_strategy == Some(RecordDistributionStrategy::Auto)
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            super::observe::warn_of_auto_distribution(&self.stream);
        }
        match summary.stream_status {
            StreamStatus::Creating => {
                Err(Fault { kind: FaultKind::NotReady, message: "the stream is being created".to_owned() })
            }
            StreamStatus::Deleting => {
                Err(Fault { kind: FaultKind::NotFound, message: "the stream is being deleted".to_owned() })
            }
            _ => Ok(Description {
                era: Some(millis(Some(&summary.stream_creation_timestamp))),
                retention_ms: u64::try_from(summary.retention_period_hours).unwrap_or(24).max(1) * 3_600_000,
            }),
        }
    }

    pub(super) async fn list_shards(&self) -> Result<Vec<Shard>, Fault> {
        let mut shards = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let request = match token.take() {
                Some(token) => self.client.list_shards().next_token(token),
                None => self.client.list_shards().stream_name(&self.stream),
            };
            let answer = request.send().await.map_err(|error| Fault::of(&error))?;
            for shard in answer.shards.unwrap_or_default() {
                let parents = [shard.parent_shard_id, shard.adjacent_parent_shard_id];
                let range = shard.sequence_number_range;
                shards.push(Shard {
                    id: parse_shard(&shard.shard_id)?,
                    parents: parents.iter().flatten().map(|id| parse_shard(id)).collect::<Result<_, _>>()?,
                    closed: range.is_some_and(|range| range.ending_sequence_number.is_some()),
                });
            }
            token = answer.next_token;
            if token.is_none() {
                return Ok(shards);
            }
        }
    }

    pub(super) async fn iterator(&self, shard: &ShardId, anchor: &Anchor) -> Result<String, Fault> {
        let request = self.client.get_shard_iterator().stream_name(&self.stream).shard_id(shard.as_str());
        let (kind, at, sequence) = self.place(anchor);
        let request = request.shard_iterator_type(kind).set_timestamp(at).set_starting_sequence_number(sequence);
        let answer = request.send().await.map_err(|error| Fault::of(&error))?;
        answer.shard_iterator.ok_or_else(|| Fault::unavailable("an answer without an iterator"))
    }

    /// An anchor as the service writes it; a time never in its future.
    fn place(&self, anchor: &Anchor) -> (ShardIteratorType, Option<DateTime>, Option<String>) {
        match anchor {
            Anchor::TrimHorizon => (ShardIteratorType::TrimHorizon, None, None),
            Anchor::AtTime(at) => {
                let at = i64::try_from((*at).min(self.now_ms())).unwrap_or(i64::MAX);
                (ShardIteratorType::AtTimestamp, Some(DateTime::from_millis(at)), None)
            }
            Anchor::At(sequence) => (ShardIteratorType::AtSequenceNumber, None, Some(sequence.to_string())),
            Anchor::After(sequence) => (ShardIteratorType::AfterSequenceNumber, None, Some(sequence.to_string())),
        }
    }

    pub(super) async fn records(&self, iterator: &str) -> Result<Page, Fault> {
        let answer =
            self.client.get_records().shard_iterator(iterator).send().await.map_err(|error| Fault::of(&error))?;
        let records = read(answer.records)?;
        let behind_ms = u64::try_from(answer.millis_behind_latest.unwrap_or(0)).unwrap_or(0);
        // Some stand-ins say "no more" with an empty text.
        Ok(Page { records, next: answer.next_shard_iterator.filter(|next| !next.is_empty()), behind_ms })
    }
}

impl Api {
    /// Opens a subscription. Waits for its first frame, without a limit of its own.
    pub(super) async fn subscribe(
        &self,
        consumer: &str,
        shard: &ShardId,
        anchor: &Anchor,
    ) -> Result<Subscription, Fault> {
        let (kind, at, sequence) = self.place(anchor);
        let position = StartingPosition::builder().r#type(kind).set_timestamp(at).set_sequence_number(sequence);
        let position = position.build().map_err(|error| Fault::unavailable(error.to_string()))?;
        let request = self.client.subscribe_to_shard().consumer_arn(consumer).shard_id(shard.as_str());
        let output = request.starting_position(position).send().await.map_err(|error| Fault::of(&error))?;
        Ok(Subscription { output })
    }
}

/// An open subscription.
pub(super) struct Subscription {
    output: SubscribeToShardOutput,
}

impl Subscription {
    /// What it brings next; nothing more when it has lived its time.
    pub(super) async fn next(&mut self) -> Result<Option<Delivery>, Fault> {
        loop {
            return match self.output.event_stream.recv().await.map_err(|error| Fault::of(&error))? {
                None => Ok(None),
                Some(SubscribeToShardEventStream::SubscribeToShardEvent(event)) => {
                    let records = read(event.records)?;
                    // The SDK reads an absent one as an empty one: the end of the shard. Some stand-ins name the
                    // children with every event of a closed shard, so that those with records need not be the last.
                    let children = event.child_shards.is_some_and(|children| !children.is_empty());
                    let ended = event.continuation_sequence_number.is_empty() || (children && records.is_empty());
                    let continuation = event.continuation_sequence_number.parse().ok();
                    let behind_ms = u64::try_from(event.millis_behind_latest).unwrap_or(0);
                    Ok(Some(Delivery { records, continuation, behind_ms, ended }))
                }
                // An event that this SDK does not know.
                Some(_) => continue,
            };
        }
    }
}

fn read(given: Vec<Record>) -> Result<Vec<(SequenceNumber, u64, Bytes)>, Fault> {
    let mut records = Vec::with_capacity(given.len());
    for record in given {
        let sequence = record.sequence_number.parse().map_err(|invalid: crate::id::Invalid| Fault {
            kind: FaultKind::Unavailable,
            message: format!("an answer that makes no sense: {invalid}"),
        })?;
        let arrival_ms = millis(record.approximate_arrival_timestamp.as_ref());
        records.push((sequence, arrival_ms, record.data.into_inner().into()));
    }
    Ok(records)
}

fn parse_shard(id: &str) -> Result<ShardId, Fault> {
    id.parse().map_err(|invalid: crate::id::Invalid| Fault {
        kind: FaultKind::Unavailable,
        message: format!("an answer that makes no sense: {invalid}"),
    })
}

fn millis(time: Option<&DateTime>) -> u64 {
    time.and_then(|time| time.to_millis().ok()).and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}
