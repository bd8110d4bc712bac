//! The calls of the checks: one each, with a deadline, and what matters of its answer.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_kinesis::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_kinesis::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kinesis::error::{BoxError, ProvideErrorMetadata as _, SdkError};
use aws_sdk_kinesis::types::{
    EncryptionType, RecordDistributionStrategy, ShardIteratorType, StartingPosition, StreamMode, StreamStatus,
};
use bytes::Bytes;
use jiff::Timestamp;

use crate::aws::{Aws, Fault, FaultKind, Retries, ServerClock};

/// The longest time for a check.
pub(super) const DEADLINE: Duration = Duration::from_secs(8);
/// A manifest is small; more is not read.
const MOST_BYTES: usize = 16 << 20;

/// Asks about one stream.
pub(super) struct Probe {
    aws: Aws,
    kinesis: aws_sdk_kinesis::Client,
    s3: aws_sdk_s3::Client,
    stream: String,
}

/// An endpoint.
pub(super) struct Reached {
    pub(super) url: String,
    /// How long the answer took and how far ahead its clock is, in milliseconds; or why there was none.
    pub(super) answer: Result<(Duration, i64), Fault>,
}

/// What matters of a stream.
#[derive(Debug, Clone)]
pub(super) struct Summary {
    pub(super) arn: String,
    pub(super) status: String,
    pub(super) ready: bool,
    pub(super) on_demand: bool,
    pub(super) retention_hours: u64,
    /// The KMS key, where the stream is encrypted.
    pub(super) key: Option<String>,
    /// Whether Kinesis distributes the records as it likes, whatever their partition keys.
    pub(super) auto_distribution: bool,
    pub(super) created_at: Timestamp,
}

/// The shards.
#[derive(Debug, Clone, Default)]
pub(super) struct Shards {
    pub(super) open: Vec<String>,
    pub(super) closed: usize,
}

/// What a read at the tip tells.
pub(super) struct Tip {
    pub(super) took: Duration,
    pub(super) behind: Duration,
}

/// What a bucket does not allow, if anything.
pub(super) struct Bucket {
    /// The region that it is in, where it says that this is another.
    pub(super) elsewhere: Option<String>,
    /// A key under the prefix, if there is one.
    pub(super) listed: Result<Option<String>, Fault>,
    /// Reading that key, or one that is most likely not there. `None`: nothing was there to read.
    pub(super) read: Option<Result<(), Fault>>,
}

impl Probe {
    pub(super) fn new(aws: &Aws, stream: &str) -> Self {
        Self {
            aws: aws.clone(),
            kinesis: aws.kinesis(Retries::Ours, &Arc::default()),
            s3: aws.s3(Retries::Ours),
            stream: stream.to_owned(),
        }
    }

    /// Whether the endpoint answers at all: to a call with credentials that it refuses.
    pub(super) async fn reach(&self) -> Reached {
        let (clock, url) = (Arc::new(ServerClock::default()), Arc::new(Mutex::new(String::new())));
        let client = self.aws.without_credentials().kinesis(Retries::Ours, &clock);
        let call = client.list_streams().limit(1).customize().interceptor(UrlReader(Arc::clone(&url)));
        let begun = Instant::now();
        let answer = within(async {
            match call.send().await {
                Ok(_) | Err(SdkError::ServiceError(_)) => Ok((begun.elapsed(), clock.offset_ms())),
                Err(error) => Err(Fault::of(&error)),
            }
        })
        .await;
        let url = url.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Reached { url, answer }
    }

    pub(super) async fn summary(&self) -> Result<Summary, Fault> {
        let call = self.kinesis.describe_stream_summary().stream_name(&self.stream);
        let answer = within(async { call.send().await.map_err(|error| Fault::of(&error)) }).await?;
        let summary = answer.stream_description_summary.ok_or_else(|| lacking("a description"))?;
        let created_ms = summary.stream_creation_timestamp.to_millis().unwrap_or(0);
        Ok(Summary {
            arn: summary.stream_arn,
            ready: matches!(summary.stream_status, StreamStatus::Active | StreamStatus::Updating),
            status: summary.stream_status.as_str().to_ascii_lowercase(),
            on_demand: summary.stream_mode_details.is_some_and(|mode| mode.stream_mode == StreamMode::OnDemand),
            retention_hours: u64::try_from(summary.retention_period_hours).unwrap_or(0),
            key: match summary.encryption_type {
                Some(EncryptionType::Kms) => Some(summary.key_id.unwrap_or_else(|| "a KMS key".to_owned())),
                _ => None,
            },
            auto_distribution: summary.record_distribution_strategy == Some(RecordDistributionStrategy::Auto),
            created_at: Timestamp::from_millisecond(created_ms).unwrap_or(Timestamp::UNIX_EPOCH),
        })
    }

    /// The streams there are, as far as one page shows them; none if that may not be asked.
    pub(super) async fn streams(&self) -> Vec<String> {
        let call = self.kinesis.list_streams();
        let answer = within(async { call.send().await.map_err(|error| Fault::of(&error)) }).await;
        answer.map(|answer| answer.stream_names).unwrap_or_default()
    }

    pub(super) async fn shards(&self) -> Result<Shards, Fault> {
        within(async {
            let (mut shards, mut token) = (Shards::default(), None);
            loop {
                let request = match token {
                    Some(token) => self.kinesis.list_shards().next_token(token),
                    None => self.kinesis.list_shards().stream_name(&self.stream),
                };
                let answer = request.send().await.map_err(|error| Fault::of(&error))?;
                for shard in answer.shards.unwrap_or_default() {
                    match shard.sequence_number_range.and_then(|range| range.ending_sequence_number) {
                        Some(_) => shards.closed += 1,
                        None => shards.open.push(shard.shard_id),
                    }
                }
                token = answer.next_token;
                if token.is_none() {
                    return Ok(shards);
                }
            }
        })
        .await
    }

    pub(super) async fn iterator(&self, shard: &str) -> Result<String, Fault> {
        let call = self.kinesis.get_shard_iterator().stream_name(&self.stream).shard_id(shard);
        let call = call.shard_iterator_type(ShardIteratorType::Latest);
        let answer = within(async { call.send().await.map_err(|error| Fault::of(&error)) }).await?;
        answer.shard_iterator.ok_or_else(|| lacking("an iterator"))
    }

    pub(super) async fn tip(&self, iterator: &str) -> Result<Tip, Fault> {
        let call = self.kinesis.get_records().shard_iterator(iterator).limit(1);
        let begun = Instant::now();
        let answer = within(async { call.send().await.map_err(|error| Fault::of(&error)) }).await?;
        let behind_ms = u64::try_from(answer.millis_behind_latest.unwrap_or(0)).unwrap_or(0);
        Ok(Tip { took: begun.elapsed(), behind: Duration::from_millis(behind_ms) })
    }

    /// Whether a subscription would be allowed. AWS only: a stand-in that does not know the parameter would subscribe,
    /// and take the shard from whoever reads it.
    pub(super) async fn may_subscribe(&self, consumer_arn: &str, shard: &str) -> Result<(), Fault> {
        let position = StartingPosition::builder().r#type(ShardIteratorType::Latest).build();
        let position = position.map_err(|error| Fault { kind: FaultKind::Config, message: error.to_string() })?;
        let call = self.kinesis.subscribe_to_shard().consumer_arn(consumer_arn).shard_id(shard);
        let call = call.starting_position(position).dry_run(true);
        within(async {
            match call.send().await {
                Ok(_) => Ok(()),
                Err(error) if error.code() == Some("DryRunOperationException") => Ok(()),
                Err(error) => Err(Fault::of(&error)),
            }
        })
        .await
    }

    pub(super) async fn bucket(&self, bucket: &str, prefix: &str) -> Bucket {
        let mut elsewhere = None;
        let list = self.s3.list_objects_v2().bucket(bucket).prefix(prefix).max_keys(1);
        let listed = within(async {
            list.send().await.map_err(|error| {
                let region = error.raw_response().and_then(|response| response.headers().get("x-amz-bucket-region"));
                elsewhere = region.map(str::to_owned).filter(|region| Some(region.as_str()) != self.aws.region());
                Fault::of(&error)
            })
        })
        .await
        .map(|answer| answer.contents.unwrap_or_default().into_iter().find_map(|object| object.key));
        let key = match &listed {
            Ok(key) => key.clone(),
            // Whoever may read and may not list is told of a missing object that it is forbidden.
            Err(fault) if fault.kind == FaultKind::Denied && elsewhere.is_none() => {
                Some(format!("{prefix}hotserve-doctor"))
            }
            Err(_) => None,
        };
        let read = match key {
            Some(key) => Some(self.read(bucket, &key).await),
            None => None,
        };
        Bucket { elsewhere, listed, read }
    }

    async fn read(&self, bucket: &str, key: &str) -> Result<(), Fault> {
        let get = self.s3.get_object().bucket(bucket).key(key).range("bytes=0-0");
        within(async {
            match get.send().await {
                Ok(_) => Ok(()),
                // An empty object has no first byte.
                Err(error) if error.code() == Some("InvalidRange") => Ok(()),
                Err(error) => Err(Fault::of(&error)),
            }
        })
        .await
    }

    /// An object, and when it was written.
    pub(super) async fn object(&self, bucket: &str, key: &str) -> Result<(Bytes, Option<Timestamp>), Fault> {
        let unread = |message: String| Fault { kind: FaultKind::Unavailable, message };
        within(async {
            let get = self.s3.get_object().bucket(bucket).key(key);
            let object = get.send().await.map_err(|error| Fault::of(&error))?;
            let written = object.last_modified.and_then(|at| Timestamp::from_second(at.secs()).ok());
            let (mut body, mut bytes) = (object.body, Vec::new());
            while let Some(chunk) = body.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| unread(error.to_string()))?);
                if bytes.len() > MOST_BYTES {
                    return Err(unread(format!("more than {MOST_BYTES} bytes")));
                }
            }
            Ok((bytes.into(), written))
        })
        .await
    }
}

/// The calls of the SDK are large: boxed, they are one pointer to whoever waits.
fn within<'a, T>(
    call: impl Future<Output = Result<T, Fault>> + Send + 'a,
) -> Pin<Box<dyn Future<Output = Result<T, Fault>> + Send + 'a>> {
    Box::pin(async move {
        tokio::time::timeout(DEADLINE, call).await.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", DEADLINE.as_secs());
            Err(Fault { kind: FaultKind::Unavailable, message })
        })
    })
}

fn lacking(what: &str) -> Fault {
    Fault { kind: FaultKind::Unavailable, message: format!("an answer without {what}") }
}

/// Notes where a request goes: only the SDK knows, from the region, FIPS, dual stack and so on.
#[derive(Debug)]
struct UrlReader(Arc<Mutex<String>>);

impl Intercept for UrlReader {
    fn name(&self) -> &'static str {
        "UrlReader"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        context
            .request()
            .uri()
            .trim_end_matches('/')
            .clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}
