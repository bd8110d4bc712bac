//! How gRPC lies on HTTP/2: a message behind five bytes, which say its length and whether it is compressed; and the
//! status in the trailers, or in the headers where there is no message.
//!
//! By hand, for what is asked most: tonic's own server reads and inflates a message where requests are answered, and a
//! large one would hold up all others there.

use std::fmt::Display;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::http::Http;
use crate::http::problem::Problem;
use crate::http::upload;
use crate::http::v2::encoding::Encoding;
use crate::serving::compute::ComputeError;

/// What stands before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Compressed messages up to this are inflated where they are answered.
const INLINE_INFLATE: usize = 256;
/// How much of an error is told: HTTP/2 clients refuse headers much longer.
const MESSAGE: usize = 1024;

pub(super) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const ACCEPTED: HeaderValue = HeaderValue::from_static("identity,deflate,gzip");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Until when a call is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    /// How long that was when the call came.
    pub(super) after: Duration,
}

impl Deadline {
    /// The server's own, or the client's where that is nearer.
    pub(super) fn of(headers: &HeaderMap, most: Duration) -> Result<Self, Status> {
        let after = match headers.get(TIMEOUT) {
            None => most,
            Some(text) => timeout(text.as_bytes())
                .ok_or_else(|| {
                    let detail = "grpc-timeout is up to eight digits and one of H, M, S, m, u and n";
                    Status::invalid_argument(detail)
                })?
                .min(most),
        };
        Ok(Self { at: Instant::now() + after, after })
    }

    /// That it is over.
    pub(super) fn exceeded(self) -> Status {
        Status::deadline_exceeded(format!("the call was not answered within {:?}", self.after))
    }
}

fn timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The one message of a call, whole and inflated. `limit` is in bytes, and holds before and after it is inflated.
pub(super) async fn read<B>(http: &Http, headers: &HeaderMap, body: B, limit: usize) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes, Error: Display> + Unpin,
{
    let encoding = encoding(headers)?;
    let mut body =
        upload::read(&http.bodies, body, limit.saturating_add(PREFIX)).await.map_err(|problem| {
            match problem.status {
                StatusCode::PAYLOAD_TOO_LARGE => too_large(limit),
                StatusCode::SERVICE_UNAVAILABLE => Status::unavailable(problem.detail),
                _ => Status::cancelled(problem.detail),
            }
        })?;
    let Some((&[flag, a, b, c, d], rest)) = body.split_first_chunk::<PREFIX>() else {
        let detail = if body.is_empty() { "the call has no message" } else { "the message is cut off in its length" };
        return Err(Status::invalid_argument(detail));
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > limit {
        return Err(too_large(limit));
    }
    match rest.len() {
        given if given < length => {
            let detail = format!("the message is cut off: {given} of its {length} bytes came");
            return Err(Status::invalid_argument(detail));
        }
        given if given > length => return Err(Status::invalid_argument("the call takes one message, and more came")),
        _ => {}
    }
    let message = body.split_off(PREFIX);
    match (flag, encoding) {
        (0, _) => Ok(message),
        (1, Some(encoding)) if message.len() <= INLINE_INFLATE => Ok(encoding.inflate(&message, limit)?.into()),
        (1, Some(encoding)) => match http.compute.run(move || encoding.inflate(&message, limit)).await {
            Ok(inflated) => Ok(inflated?.into()),
            Err(ComputeError::Full) => {
                Err(Status::unavailable("the queue of predictions is full: send the request again"))
            }
            Err(ComputeError::Panicked) => Err(Problem::internal().into()),
        },
        (1, None) => Err(Status::internal("the message is compressed, and grpc-encoding does not say how")),
        (flag, _) => Err(Status::invalid_argument(format!("a message begins with 0 or 1, not with {flag}"))),
    }
}

fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Status> {
    match headers.get(ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(None),
        Some(b"gzip") => Ok(Some(Encoding::Gzip)),
        Some(b"deflate") => Ok(Some(Encoding::Deflate)),
        Some(_) => Err(Status::unimplemented("grpc-encoding is one of identity, deflate and gzip")),
    }
}

fn too_large(limit: usize) -> Status {
    Status::resource_exhausted(format!("the message is over the limit of {limit} bytes"))
}

/// Reads a message of the protocol from its bytes.
pub(super) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::invalid_argument(format!("the message cannot be read: {error}")))
}

/// A message as it is sent.
pub(super) fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut frame).expect("there is room for all of it");
    frame.freeze()
}

/// An answer of one message.
pub(super) fn answer(frame: Bytes) -> Response {
    let trailers = std::future::ready(Some(Ok(status_ok())));
    head(Body::new(Full::new(frame).with_trailers(trailers)))
}

/// An answer of many messages, which ends well.
pub(super) fn answers(frames: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let frames = frames.map(Frame::data).chain(stream::once(std::future::ready(Frame::trailers(status_ok()))));
    head(Body::new(StreamBody::new(frames.map(Ok::<_, std::convert::Infallible>))))
}

fn head(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response.headers_mut().insert(ACCEPT_ENCODING, ACCEPTED);
    response
}

fn status_ok() -> HeaderMap {
    HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))])
}

/// An answer without a message.
pub(super) fn refuse(status: Status) -> Response {
    let status = match status.message().char_indices().nth(MESSAGE) {
        None => status,
        Some((cut, _)) => {
            let short = format!("{}…", status.message().get(..cut).unwrap_or_default());
            Status::with_metadata(status.code(), short, status.metadata().clone())
        }
    };
    let unknown_coding = status.code() == Code::Unimplemented;
    let mut response = status.into_http::<Body>();
    if unknown_coding {
        response.headers_mut().insert(ACCEPT_ENCODING, ACCEPTED);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_in_each_unit_and_nothing_else_is() {
        let seconds = Duration::from_secs;
        for (text, expected) in [
            ("1H", seconds(3600)),
            ("2M", seconds(120)),
            ("99999999S", seconds(99_999_999)),
            ("20m", Duration::from_millis(20)),
            ("0u", Duration::ZERO),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(timeout(text.as_bytes()), Some(expected), "{text}");
        }
        for text in ["", "S", "5", "5s", "-1S", "+1S", "1.5S", "100000000S", "5 S", "S5"] {
            assert_eq!(timeout(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_nearer_deadline_counts() {
        let of =
            |text| Deadline::of(&HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static(text))]), Duration::MAX / 4);
        assert_eq!(of("5S").expect("well formed").after, Duration::from_secs(5));
        assert_eq!(of("soon").expect_err("no time").code(), Code::InvalidArgument);
        let most = Duration::from_secs(3);
        let far = HeaderMap::from_iter([(TIMEOUT, HeaderValue::from_static("1H"))]);
        assert_eq!(Deadline::of(&far, most).expect("well formed").after, most);
        assert_eq!(Deadline::of(&HeaderMap::new(), most).expect("well formed").after, most);
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        let response = refuse(Status::internal("ä".repeat(5000)));
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.message(), format!("{}…", "ä".repeat(MESSAGE)));
    }
}
