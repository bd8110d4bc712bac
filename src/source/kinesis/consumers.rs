//! The consumers with enhanced fan-out that are registered with a stream: one call each, nothing waits or tries again.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use std::fmt;
use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::ProvideErrorMetadata as _;
use aws_sdk_kinesis::types;
use aws_smithy_types::DateTime;
use jiff::Timestamp;
use tokio::sync::OnceCell;

use crate::aws::{Aws, Fault, FaultKind, Retries};

/// What the names of consumers begin with that instances of hotserve registered.
pub const PREFIX: &str = "hotserve-";
/// The fewest consumers that a full stream has: 20, or 50 in on-demand advantage mode.
pub const LIMIT: usize = 20;
/// A stream has 50 consumers at most, and a page 100: a listing that goes on is one that goes round.
const MOST_PAGES: usize = 20;

/// A registered consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    /// Its name, unique within the stream.
    pub name: String,
    /// Its ARN. It holds the time of the registration: one registered anew has another.
    pub arn: String,
    /// Whether it can be read with.
    pub status: ConsumerStatus,
    /// When it was registered, to the second.
    pub created_at: Timestamp,
}

impl Consumer {
    /// Whether its name is one that hotserve gives.
    pub fn is_ours(&self) -> bool {
        self.name.starts_with(PREFIX)
    }
}

/// Whether a consumer can be read with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsumerStatus {
    /// Not yet: ask again in a second.
    Creating,
    /// Yes.
    Active,
    /// No more.
    Deleting,
}

impl fmt::Display for ConsumerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Active => "active",
            Self::Deleting => "deleting",
        })
    }
}

/// Why a consumer was not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The stream has as many as it may: no use in trying again before one is gone.
    #[error("the stream has {registered} registered consumers, and may have no more: {message}")]
    Full {
        /// How many there are.
        registered: usize,
        /// What Kinesis said.
        message: String,
    },
    /// Anything else. Too many calls at the same time, or too many consumers in creation, are `Throttled`.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// The consumers of one stream. The calls do not retry.
pub struct Consumers {
    client: Client,
    stream: String,
    arn: OnceCell<String>,
}

impl Consumers {
    /// The consumers of this stream.
    pub fn new(aws: &Aws, stream: impl Into<String>) -> Self {
        let client = aws.kinesis(Retries::Ours, &Arc::default());
        Self { client, stream: stream.into(), arn: OnceCell::new() }
    }

    /// The stream's ARN; it is made of names, so it is asked for once.
    pub async fn stream_arn(&self) -> Result<&str, Fault> {
        let ask = async || {
            let answer = self.client.describe_stream_summary().stream_name(&self.stream).send().await;
            let summary = answer.map_err(|error| Fault::of(&error))?.stream_description_summary;
            summary.map(|summary| summary.stream_arn).ok_or_else(|| lacking("a description"))
        };
        self.arn.get_or_try_init(ask).await.map(String::as_str)
    }

    /// Registers a consumer. One that has the name already is taken over.
    pub async fn register(&self, name: &str) -> Result<Consumer, RegisterError> {
        let request = self.client.register_stream_consumer().stream_arn(self.stream_arn().await?).consumer_name(name);
        let error = match request.send().await {
            Ok(answer) => return Ok(answer.consumer.map(consumer).ok_or_else(|| lacking("a consumer"))?),
            Err(error) => error,
        };
        let fault = Fault::of(&error);
        match error.code() {
            Some("ResourceInUseException") => match self.describe(name).await {
                Ok(there) if there.status == ConsumerStatus::Deleting => {
                    let message = format!("a consumer {name:?} is still being deleted");
                    Err(Fault { kind: FaultKind::NotReady, message }.into())
                }
                Ok(there) => Ok(there),
                // It is the stream, then, that is being created or changed.
                Err(Fault { kind: FaultKind::NotFound, .. }) => Err(fault.into()),
                Err(other) => Err(other.into()),
            },
            // One answer for three faults: too many consumers, too many in creation, too many calls.
            Some("LimitExceededException") => match self.list().await {
                Ok(there) if there.len() >= LIMIT => {
                    Err(RegisterError::Full { registered: there.len(), message: fault.message })
                }
                _ => Err(fault.into()),
            },
            _ => Err(fault.into()),
        }
    }

    /// A consumer, by its ARN or its name.
    pub async fn describe(&self, arn_or_name: &str) -> Result<Consumer, Fault> {
        let request = self.client.describe_stream_consumer();
        let request = if arn_or_name.starts_with("arn:") {
            request.consumer_arn(arn_or_name)
        } else {
            request.stream_arn(self.stream_arn().await?).consumer_name(arn_or_name)
        };
        let answer = request.send().await.map_err(|error| Fault::of(&error))?;
        let found = answer.consumer_description.ok_or_else(|| lacking("a consumer"))?;
        Ok(Consumer {
            status: status(&found.consumer_status),
            created_at: timestamp(&found.consumer_creation_timestamp),
            name: found.consumer_name,
            arn: found.consumer_arn,
        })
    }

    /// All consumers, those being deleted included, the oldest first.
    pub async fn list(&self) -> Result<Vec<Consumer>, Fault> {
        let arn = self.stream_arn().await?;
        let mut found = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let request = self.client.list_stream_consumers().stream_arn(arn).set_next_token(token);
            let answer = request.send().await.map_err(|error| Fault::of(&error))?;
            found.extend(answer.consumers.unwrap_or_default().into_iter().map(consumer));
            token = answer.next_token;
            if token.is_none() {
                break;
            }
        }
        found.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
        Ok(found)
    }

    /// Removes a consumer. One that is gone already is as good.
    pub async fn deregister(&self, arn: &str) -> Result<(), Fault> {
        match self.client.deregister_stream_consumer().consumer_arn(arn).send().await {
            Ok(_) => Ok(()),
            Err(error) => match Fault::of(&error) {
                Fault { kind: FaultKind::NotFound, .. } => Ok(()),
                fault => Err(fault),
            },
        }
    }
}

fn consumer(found: types::Consumer) -> Consumer {
    Consumer {
        status: status(&found.consumer_status),
        created_at: timestamp(&found.consumer_creation_timestamp),
        name: found.consumer_name,
        arn: found.consumer_arn,
    }
}

fn status(status: &types::ConsumerStatus) -> ConsumerStatus {
    match status {
        types::ConsumerStatus::Active => ConsumerStatus::Active,
        types::ConsumerStatus::Deleting => ConsumerStatus::Deleting,
        // A status that is not known yet is one to wait for.
        _ => ConsumerStatus::Creating,
    }
}

fn timestamp(time: &DateTime) -> Timestamp {
    time.to_millis().ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn lacking(what: &str) -> Fault {
    Fault { kind: FaultKind::Unavailable, message: format!("an answer without {what}") }
}
