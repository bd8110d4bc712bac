//! The last message of the stream: read as a server reads it on start.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::probe::DEADLINE;
use crate::app::Boards;
use crate::aws::Aws;
use crate::config::StreamConfig;
use crate::notification::{Limits, decode};
use crate::source::kinesis::KinesisSource;
use crate::source::{Record, Source as _, SourceEvent};

/// What was found.
pub(super) enum Last {
    Message {
        arrived_at: Timestamp,
        /// The slots that it replaces, or why no server applies it.
        contents: Result<Vec<String>, String>,
    },
    /// None, although all that the stream keeps was looked through.
    Nothing,
    /// None so far: looking through hours without a message takes many calls.
    NothingYet,
}

pub(super) async fn look(aws: &Aws, stream: &str) -> Last {
    // One call in 300 ms: beside the servers that read the same shards.
    let config = StreamConfig { poll_interval: Some(Duration::from_millis(300)), ..StreamConfig::named(stream) };
    let boards = Boards::default();
    let source = Box::new(KinesisSource::new(aws.clone(), config, boards.metrics, boards.status));
    let (shutdown, deadline) = (CancellationToken::new(), Instant::now() + DEADLINE);
    let (outlet, mut events) = mpsc::channel(16);
    let reader = tokio::spawn(source.run(outlet, shutdown.clone()));
    let (mut newest, mut complete) = (None::<Record>, false);
    while let Ok(Some(event)) = tokio::time::timeout_at(deadline, events.recv()).await {
        match event {
            SourceEvent::Records(records) => {
                for record in records {
                    if newest.as_ref().is_none_or(|newest| record.position.is_after(&newest.position)) {
                        newest = Some(record);
                    }
                }
            }
            SourceEvent::CaughtUp => {
                complete = true;
                break;
            }
        }
    }
    shutdown.cancel();
    // It ends at once, and has nothing to give back.
    let _ = reader.await;
    match newest {
        Some(record) => message(&record),
        None if complete => Last::Nothing,
        None => Last::NothingYet,
    }
}

fn message(record: &Record) -> Last {
    let arrived_ms = i64::try_from(record.position.arrival_ms).unwrap_or(i64::MAX);
    let contents = match decode(&record.data, &Limits::default()) {
        Ok(notification) => Ok(notification
            .slots()
            .map(|(slot, version)| match version {
                Some(version) => format!("{slot} v{version}"),
                None => slot.to_string(),
            })
            .collect()),
        Err(rejection) => Err(format!("{}: {}", rejection.reason.code(), rejection.detail)),
    };
    Last::Message { arrived_at: Timestamp::from_millisecond(arrived_ms).unwrap_or(Timestamp::UNIX_EPOCH), contents }
}
