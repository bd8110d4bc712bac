//! Answers that are wrong, and bodies that do not end well.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, to_bytes};
use axum::response::{IntoResponse as _, Response};
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, StatusCode};

use super::{Answer, Call};
use crate::embedded::conditional;

pub(super) const JSON: &str = "application/x-amz-json-1.1";

/// An answer that says no. Boxed: it is large, and rare.
pub(super) type Refusal = Box<Response>;

/// An error as Kinesis writes it.
pub(super) fn kinesis(status: StatusCode, code: &str, message: &str) -> Response {
    let body = serde_json::json!({"__type": code, "message": message}).to_string();
    (status, [(CONTENT_TYPE.as_str(), JSON), ("x-amzn-errortype", code)], body).into_response()
}

/// A request that Kinesis refuses.
pub(super) fn refused(code: &str, message: &str) -> Response {
    kinesis(StatusCode::BAD_REQUEST, code, message)
}

/// The answer of Kinesis instead of the right one; none where the right one comes first.
pub(super) fn instead_of_kinesis(answer: Answer, call: &Call) -> Option<Response> {
    let (stream, shard) = call.shard.clone().unwrap_or_default();
    let action = &call.action;
    Some(match answer {
        Answer::InternalFailure => {
            kinesis(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure", "An internal error occurred.")
        }
        Answer::Unavailable => kinesis(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "The service is unavailable. Please try again later.",
        ),
        Answer::Throttle => refused(
            "ProvisionedThroughputExceededException",
            &format!("Rate exceeded for shard {shard} in stream {stream} under account 000000000000."),
        ),
        Answer::LimitExceeded => refused(
            "LimitExceededException",
            &format!("Rate exceeded for {} under account 000000000000.", action.operation()),
        ),
        Answer::KmsThrottling => refused("KMSThrottlingException", "You have exceeded the rate of requests to KMS."),
        Answer::AccessDenied => refused(
            "AccessDeniedException",
            &format!(
                "User: arn:aws:iam::000000000000:user/dev is not authorized to perform: {action} because no \
                 identity-based policy allows the {action} action"
            ),
        ),
        Answer::NotFound => {
            refused("ResourceNotFoundException", &format!("Stream {stream} under account 000000000000 not found."))
        }
        Answer::ResourceInUse => {
            refused("ResourceInUseException", "Another operation on this resource is in progress.")
        }
        Answer::ExpiredIterator => refused(
            "ExpiredIteratorException",
            "Iterator expired. The iterator was created too long ago, which is further in the past than the tolerated \
             delay of 300000 milliseconds.",
        ),
        Answer::KmsDisabled => refused("KMSDisabledException", "arn:aws:kms:us-east-1:000000000000:key/k is disabled."),
        Answer::ExpiredToken => {
            refused("ExpiredTokenException", "The security token included in the request is expired")
        }
        Answer::Html => html(),
        Answer::Captive => captive(),
        Answer::Redirect => redirect(),
        Answer::CutBody | Answer::HangBody | Answer::GarbleBody | Answer::EndlessBody | Answer::Hang => return None,
    })
}

/// The answer of S3 instead of the right one; none where the right one comes first.
pub(super) fn instead_of_s3(answer: Answer) -> Option<Response> {
    let (status, code, message) = match answer {
        Answer::InternalFailure => (500, "InternalError", "We encountered an internal error. Please try again."),
        Answer::Unavailable | Answer::Throttle | Answer::LimitExceeded | Answer::KmsThrottling => {
            (503, "SlowDown", "Please reduce your request rate.")
        }
        Answer::AccessDenied => (403, "AccessDenied", "Access Denied"),
        Answer::NotFound => (404, "NoSuchKey", "The specified key does not exist."),
        Answer::ResourceInUse => {
            (409, "OperationAborted", "A conflicting conditional operation is currently in progress.")
        }
        Answer::ExpiredIterator | Answer::ExpiredToken => (400, "ExpiredToken", "The provided token has expired."),
        Answer::KmsDisabled => (400, "KMS.DisabledException", "arn:aws:kms:us-east-1:000000000000:key/k is disabled."),
        Answer::Html => return Some(html()),
        Answer::Captive => return Some(captive()),
        Answer::Redirect => return Some(redirect()),
        Answer::CutBody | Answer::HangBody | Answer::GarbleBody | Answer::EndlessBody | Answer::Hang => return None,
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Some(conditional::error(status, code, message))
}

fn html() -> Response {
    let page = "<html>\n<head><title>502 Bad Gateway</title></head>\n<body>\n<center><h1>502 Bad Gateway</h1></center>\n\
                </body>\n</html>\n";
    (StatusCode::BAD_GATEWAY, [(CONTENT_TYPE, "text/html")], page).into_response()
}

fn captive() -> Response {
    (StatusCode::OK, [(CONTENT_TYPE, "text/html")], "<html><body>Please accept our terms.</body></html>\n")
        .into_response()
}

fn redirect() -> Response {
    let message = "The bucket you are attempting to access must be addressed using the specified endpoint. Please send \
                   all future requests to this endpoint.";
    let mut answer = conditional::error(StatusCode::MOVED_PERMANENTLY, "PermanentRedirect", message);
    // RFC 6761: this name never leads anywhere.
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static("http://s3.eu-west-1.invalid/"));
    answer.headers_mut().insert("x-amz-bucket-region", HeaderValue::from_static("eu-west-1"));
    answer
}

/// Spoils the body of a right answer, where the answer wants that.
pub(super) async fn spoil(answer: Answer, right: Response) -> Response {
    match answer {
        Answer::CutBody => broken(right, cut()).await,
        Answer::HangBody => broken(right, Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>())).await,
        Answer::GarbleBody => garbled(right).await,
        Answer::EndlessBody => endless(right),
        _ => right,
    }
}

/// A body that is an error: the connection ends where it begins.
pub(super) fn cut() -> Body {
    Body::from_stream(stream::once(async {
        // What comes before has to leave first, or the client sees nothing but a closed connection.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err::<Bytes, _>(std::io::Error::other("cut on purpose"))
    }))
}

/// The first half of a body, and then another end. An event stream is cut after its first frame.
async fn broken(right: Response, end: Body) -> Response {
    let (mut head, body) = right.into_parts();
    let is_events = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().ends_with(b"eventstream"));
    let beginning = if is_events {
        let mut frames = body.into_data_stream();
        frames.next().await.and_then(Result::ok).unwrap_or_default()
    } else {
        let whole = to_bytes(body, usize::MAX).await.unwrap_or_default();
        // Promised in full: only so does a client see that something is missing.
        head.headers.insert(CONTENT_LENGTH, whole.len().into());
        whole.slice(..whole.len() / 2)
    };
    let beginning = stream::once(async move { Ok::<_, axum::Error>(beginning) });
    Response::from_parts(head, Body::from_stream(beginning.chain(end.into_data_stream())))
}

async fn garbled(right: Response) -> Response {
    let (head, body) = right.into_parts();
    let mut bytes = to_bytes(body, usize::MAX).await.unwrap_or_default().to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    Response::from_parts(head, Body::from(bytes))
}

/// The body, and zeros for ever; nothing says how long it is.
fn endless(right: Response) -> Response {
    const PIECE: Bytes = Bytes::from_static(&[0; 16 << 10]);
    let (mut head, body) = right.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    let zeros = stream::unfold((), |()| async {
        // A client that does not stop must not take the machine with it.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok::<_, axum::Error>(PIECE), ()))
    });
    Response::from_parts(head, Body::from_stream(body.into_data_stream().chain(zeros)))
}

/// Lets a body through at a speed.
pub(super) fn slowed(body: Body, bytes_per_second: u64) -> Body {
    /// Several pieces a second, so that it is a trickle and not bursts.
    const PIECES_A_SECOND: u64 = 10;
    let piece = usize::try_from((bytes_per_second / PIECES_A_SECOND).max(1)).unwrap_or(usize::MAX);
    let pause = move |bytes: usize| {
        #[expect(clippy::cast_precision_loss, reason = "a wait")]
        Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64)
    };
    let start = (body.into_data_stream(), Bytes::new());
    let parts = stream::unfold(start, move |(mut rest, mut held): (BodyDataStream, Bytes)| async move {
        while held.is_empty() {
            match rest.next().await? {
                Ok(bytes) => held = bytes,
                Err(error) => return Some((Err(error), (rest, held))),
            }
        }
        let part = held.split_to(piece.min(held.len()));
        tokio::time::sleep(pause(part.len())).await;
        Some((Ok(part), (rest, held)))
    });
    Body::from_stream(parts)
}
