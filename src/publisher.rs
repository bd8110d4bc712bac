//! The other end of the stream: uploads an artifact to a key of its own, and announces it.
//!
//! Upload first, announce after: whoever reads the announcement finds the object. The key holds the digest, so that an
//! object is never overwritten.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use std::path::Path;
use std::sync::Arc;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use base64::Engine as _;
use http_body_util::BodyExt as _;

use crate::aws::{Aws, Fault, FaultKind, Retries, ServerClock};
use crate::id::Digest;

/// The largest message, with its partition key: Kinesis' own limit, unless a stream is set to allow more.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Publishes to one stream.
pub struct Publisher {
    kinesis: aws_sdk_kinesis::Client,
    s3: aws_sdk_s3::Client,
    stream: String,
}

/// Where a message went.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// The shard.
    pub shard: String,
    /// Its place there.
    pub sequence_number: String,
}

/// Why something was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The message does not fit into a record.
    #[error(
        "the message has {bytes} bytes, and a record holds {MAX_MESSAGE}: upload the model with --to s3://bucket/prefix"
    )]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// The artifact could not be stored.
    #[error("upload to s3://{bucket}/{key}")]
    Upload {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// What S3 said.
        source: Fault,
    },
    /// The artifact could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The message could not be put.
    #[error("put the message into stream {stream:?}")]
    Announce {
        /// The stream.
        stream: String,
        /// What Kinesis said.
        source: Fault,
    },
}

impl Publisher {
    /// A publisher to this stream.
    pub fn new(aws: &Aws, stream: String) -> Self {
        let clock = Arc::new(ServerClock::default());
        Self { kinesis: aws.kinesis(Retries::Standard, &clock), s3: aws.s3(Retries::Standard), stream }
    }

    /// Puts a message. Messages with the same partition key keep their order.
    pub async fn announce(&self, partition_key: &str, message: &[u8]) -> Result<Receipt, Error> {
        if message.len() + partition_key.len() > MAX_MESSAGE {
            return Err(Error::TooLarge { bytes: message.len() });
        }
        let put = self.kinesis.put_record().stream_name(&self.stream).partition_key(partition_key);
        let answer = put
            .data(Blob::new(message))
            .send()
            .await
            .map_err(|error| Error::Announce { stream: self.stream.clone(), source: Fault::of(&error) })?;
        Ok(Receipt { shard: answer.shard_id, sequence_number: answer.sequence_number })
    }

    /// Stores a file under a key. S3 proves the digest too; `progress` hears of every piece that is sent.
    pub async fn upload(
        &self,
        bucket: &str,
        key: &str,
        path: &Path,
        size: u64,
        digest: &Digest,
        progress: impl Fn(u64) + Clone + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let body = ByteStream::from_path(path)
            .await
            .map_err(|error| Error::Read { path: path.display().to_string(), source: std::io::Error::other(error) })?;
        let put = self
            .s3
            .put_object()
            .bucket(bucket)
            .key(key)
            .content_length(i64::try_from(size).unwrap_or(i64::MAX))
            .checksum_sha256(base64::engine::general_purpose::STANDARD.encode(digest.as_bytes()))
            .body(body)
            .customize()
            .mutate_request(move |request| {
                let progress = progress.clone();
                let body = std::mem::replace(request.body_mut(), SdkBody::taken());
                *request.body_mut() = body.map_preserve_contents(move |body| {
                    let progress = progress.clone();
                    SdkBody::from_body_1_x(body.map_frame(move |frame| {
                        progress(frame.data_ref().map_or(0, |data| data.len() as u64));
                        frame
                    }))
                });
            });
        put.send().await.map_err(|error| Error::Upload {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            source: Fault::of(&error),
        })?;
        Ok(())
    }

    /// Makes the stream, if it is not there, and waits until it can be used. Answers whether it was made.
    pub async fn ensure_stream(&self, shards: i32) -> Result<bool, Error> {
        let failed = |source| Error::Announce { stream: self.stream.clone(), source };
        let made = match self.kinesis.create_stream().stream_name(&self.stream).shard_count(shards).send().await {
            Ok(_) => true,
            Err(error) => match Fault::of(&error) {
                Fault { kind: FaultKind::NotReady, .. } => false,
                fault => return Err(failed(fault)),
            },
        };
        for _ in 0..200 {
            let answer = self.kinesis.describe_stream_summary().stream_name(&self.stream).send().await;
            let summary = answer.map_err(|error| failed(Fault::of(&error)))?.stream_description_summary;
            if summary.is_some_and(|summary| summary.stream_status == aws_sdk_kinesis::types::StreamStatus::Active) {
                return Ok(made);
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        let message = "the stream does not become active".to_owned();
        Err(failed(Fault { kind: FaultKind::NotReady, message }))
    }

    /// Makes the bucket, if it is not there.
    pub async fn ensure_bucket(&self, bucket: &str) -> Result<(), Error> {
        if self.s3.head_bucket().bucket(bucket).send().await.is_ok() {
            return Ok(());
        }
        self.s3.create_bucket().bucket(bucket).send().await.map(|_| ()).map_err(|error| Error::Upload {
            bucket: bucket.to_owned(),
            key: String::new(),
            source: Fault::of(&error),
        })
    }
}
