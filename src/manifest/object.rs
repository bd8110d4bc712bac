//! The manifest as an object of S3: conditional reads and writes.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};

use super::Error;
use crate::aws::{Aws, Fault, FaultKind, Retries};
use crate::config::ManifestUri;
use crate::error::chain;

/// One manifest, where it lies.
#[derive(Debug, Clone)]
pub struct ManifestObject {
    client: aws_sdk_s3::Client,
    uri: ManifestUri,
    max_bytes: u64,
}

/// What a read found.
#[derive(Debug, Clone)]
pub enum Read {
    /// It is as it was.
    NotModified,
    /// There is none.
    Absent,
    /// Here it is.
    Found {
        /// What tells this content from another.
        etag: String,
        /// The content.
        bytes: Bytes,
    },
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is none yet.
    Absent,
    /// It is the one with this ETag.
    Is(String),
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It was written.
    Written,
    /// The condition did not hold: somebody else wrote.
    Conflict,
}

impl ManifestObject {
    /// The object at this place, not read beyond so many bytes.
    pub fn new(aws: &Aws, retries: Retries, uri: ManifestUri, max_bytes: u64) -> Self {
        Self { client: aws.s3(retries), uri, max_bytes }
    }

    /// Where it lies.
    pub fn uri(&self) -> &ManifestUri {
        &self.uri
    }

    /// Reads it, unless it is the one with this ETag.
    pub async fn read(&self, known_etag: Option<&str>) -> Result<Read, Error> {
        let request = self.client.get_object().bucket(self.uri.bucket()).key(self.uri.key());
        let object = match request.set_if_none_match(known_etag.map(str::to_owned)).send().await {
            Ok(object) => object,
            Err(error) if status(&error) == Some(304) => return Ok(Read::NotModified),
            // A bucket that is not there is a fault: nobody could write a manifest into it.
            Err(error) if error.code() == Some("NoSuchKey") => return Ok(Read::Absent),
            Err(error) => return Err(self.failed(Fault::of(&error))),
        };
        let etag = object.e_tag.unwrap_or_default();
        if etag.is_empty() {
            let message = "the store answers without an ETag: a manifest needs one that does conditional requests";
            return Err(self.failed(Fault { kind: FaultKind::Config, message: message.to_owned() }));
        }
        // Some stand-ins ignore the condition; the body is not read then.
        if known_etag == Some(etag.as_str()) {
            return Ok(Read::NotModified);
        }
        let too_large = |bytes| Err(Error::TooLarge { bytes, limit: self.max_bytes });
        let announced = object.content_length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0);
        if announced > self.max_bytes {
            return too_large(announced);
        }
        let (mut body, mut bytes) = (object.body, BytesMut::new());
        while let Some(chunk) = body.next().await {
            let unavailable = |error| Fault { kind: FaultKind::Unavailable, message: chain(&error) };
            bytes.extend_from_slice(&chunk.map_err(|error| self.failed(unavailable(error)))?);
            // The length that was announced need not be the true one.
            if bytes.len() as u64 > self.max_bytes {
                return too_large(bytes.len() as u64);
            }
        }
        Ok(Read::Found { etag, bytes: bytes.freeze() })
    }

    /// Writes it, if the condition holds at that moment.
    pub async fn write(&self, bytes: Vec<u8>, condition: &Condition) -> Result<Write, Error> {
        let request = self.client.put_object().bucket(self.uri.bucket()).key(self.uri.key());
        let request = match condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Is(etag) => request.if_match(etag),
        };
        let request = request.content_type("application/json").body(ByteStream::from(bytes));
        match request.send().await {
            Ok(_) => Ok(Write::Written),
            // 412: another one is there. 409: another write is under way. 404: it was deleted meanwhile.
            Err(error) if matches!(status(&error), Some(409 | 412)) || error.code() == Some("NoSuchKey") => {
                Ok(Write::Conflict)
            }
            Err(error) => Err(self.failed(Fault::of(&error))),
        }
    }

    fn failed(&self, fault: Fault) -> Error {
        Error::Storage { uri: self.uri.to_string(), fault }
    }
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}
