//! Objects of S3.
#![expect(clippy::disallowed_types, reason = "an adapter")]

use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectError;
use futures_util::{StreamExt as _, stream};

use super::{Body, Error, Opening, Request, Resume, Store};
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
    fn open<'a>(&'a self, request: Request<'a>) -> Opening<'a> {
        Box::pin(async move {
            let Request { uri, version_id, resume } = request;
            let ArtifactUri::S3 { bucket, key } = uri else {
                return Err(Error::Forbidden { uri: uri.to_string() });
            };
            let mut get =
                self.client.get_object().bucket(bucket).key(key).set_version_id(version_id.map(str::to_owned));
            if let Some(Resume { from, tag }) = resume {
                get = get.range(format!("bytes={from}-")).if_match(tag);
            }
            let object = get.send().await.map_err(|error| refusal(uri, &error))?;
            let rest = object.content_length.and_then(|length| u64::try_from(length).ok());
            // Whoever does not go on answers the whole.
            let (from, length) = match object.content_range.as_deref() {
                None => (0, rest),
                Some(range) => content_range(range)
                    .ok_or_else(|| Error::Unavailable { detail: format!("a part without a place: {range:?}") })?,
            };
            let tag = object.e_tag;
            let chunks = stream::unfold(object.body, |mut body| async move {
                let chunk = body.next().await?;
                Some((chunk.map_err(|error| Error::Unavailable { detail: chain(&error) }), body))
            });
            Ok(Body { from, length, tag, chunks: chunks.boxed() })
        })
    }
}

/// `bytes 5-9/10`: where a part begins, and how many bytes the whole has.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, length) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, length.parse().ok()))
}

fn refusal(uri: &ArtifactUri, error: &SdkError<GetObjectError>) -> Error {
    let answer = error.raw_response();
    let status = answer.map_or(0, |answer| answer.status().as_u16());
    let region = answer.and_then(|answer| answer.headers().get("x-amz-bucket-region")).map(str::to_owned);
    let (code, uri) = (error.code().unwrap_or_default(), uri.to_string());
    let Fault { kind, message } = Fault::of(error);
    match (status, code) {
        (412, _) | (416, _) => return Error::Changed { uri },
        (300..400, _) | (400, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            let region = region.map_or_else(String::new, |region| format!("; the bucket is in {region}"));
            return Error::Redirected { uri, detail: format!("{status} {message}{region}") };
        }
        _ => {}
    }
    match kind {
        FaultKind::NotFound => Error::NotFound { uri, detail: message },
        FaultKind::Denied => Error::Denied { uri, detail: message },
        _ => Error::Unavailable { detail: message },
    }
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn a_part_says_where_it_begins_and_of_how_many() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in ["", "bytes", "bytes */10", "lines 5-9/10", "bytes -9/10", "bytes 5/10"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
