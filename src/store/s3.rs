//! Objects of S3.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use futures_util::{StreamExt as _, stream};

use super::{Body, Error, Opening, Store};
use crate::aws::{Fault, FaultKind};
use crate::error::chain;
use crate::notification::ArtifactUri;

/// Serves `s3://bucket/key`.
pub struct S3Store {
    client: aws_sdk_s3::Client,
}

impl S3Store {
    /// A store behind this client, which must not retry by itself.
    pub fn new(client: aws_sdk_s3::Client) -> Self {
        Self { client }
    }
}

impl Store for S3Store {
    fn open<'a>(&'a self, uri: &'a ArtifactUri, version_id: Option<&'a str>) -> Opening<'a> {
        Box::pin(async move {
            let ArtifactUri::S3 { bucket, key } = uri else {
                return Err(Error::Forbidden { uri: uri.to_string() });
            };
            let request =
                self.client.get_object().bucket(bucket).key(key).set_version_id(version_id.map(str::to_owned));
            let object = request.send().await.map_err(|error| {
                let Fault { kind, message: detail } = Fault::of(&error);
                match kind {
                    FaultKind::NotFound => Error::NotFound { uri: uri.to_string(), detail },
                    FaultKind::Denied => Error::Denied { uri: uri.to_string(), detail },
                    _ => Error::Unavailable { detail },
                }
            })?;
            let length = object.content_length.and_then(|length| u64::try_from(length).ok());
            let chunks = stream::unfold(object.body, |mut body| async move {
                let chunk = body.next().await?;
                Some((chunk.map_err(|error| Error::Unavailable { detail: chain(&error) }), body))
            });
            Ok(Body { length, chunks: chunks.boxed() })
        })
    }
}
