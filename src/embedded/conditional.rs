//! Conditional requests of S3, which the stand-in knows only in part.
//!
//! On its own it ignores `If-Match` and `If-None-Match` of a GET, looks at those of a PUT before it writes and not
//! while it does, so that two writers can both win, and can pair an old body with a new ETag. Whoever keeps a manifest
//! with compare-and-swap would see none of its races here, and others that are not real.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use tokio::sync::RwLock;

/// A body up to this size is taken in before its key is locked, so that a slow writer holds up nobody.
const TAKEN_IN: usize = 8 << 20;
/// How long a reader waits for a writer; the real S3 would let it read at once.
const READER_PATIENCE: Duration = Duration::from_secs(1);
/// How many keys may have a lock before those that nobody holds are dropped.
const LOCKS: usize = 1_000;

/// Adds conditional requests to an S3 service.
pub(super) fn layer(s3: Router) -> Router {
    s3.layer(middleware::from_fn_with_state(Arc::<Keys>::default(), answer))
}

/// One lock a key: writers one after the other, readers between them.
#[derive(Default)]
struct Keys(Mutex<HashMap<String, Arc<RwLock<()>>>>);

impl Keys {
    fn lock(&self, path: &str) -> Arc<RwLock<()>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= LOCKS {
            keys.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(keys.entry(path.to_owned()).or_default())
    }
}

async fn answer(State(keys): State<Arc<Keys>>, request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    // A part changes nothing that can be read; the upload's completion does.
    let is_part = query.contains("partNumber=");
    let is_completion = query.contains("uploadId=");
    let lock = keys.lock(request.uri().path());
    match *request.method() {
        Method::GET | Method::HEAD => {
            let conditions = Conditions::of(request.headers());
            let is_head = request.method() == Method::HEAD;
            // Held until the file is open and its ETag is known: the two belong together.
            let _shared = tokio::time::timeout(READER_PATIENCE, lock.read()).await;
            conditions.judge(next.run(request).await, is_head)
        }
        Method::PUT | Method::POST | Method::DELETE
            if !is_part && (request.method() != Method::POST || is_completion) =>
        {
            let request = match taken_in(request).await {
                Ok(request) => request,
                Err(answer) => return answer,
            };
            let _alone = lock.write().await;
            missing_is_not_found(next.run(request).await).await
        }
        _ => next.run(request).await,
    }
}

async fn taken_in(request: Request) -> Result<Request, Response> {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_none_or(|length| length > TAKEN_IN) {
        return Ok(request);
    }
    let (head, body) = request.into_parts();
    match to_bytes(body, TAKEN_IN).await {
        Ok(bytes) => Ok(Request::from_parts(head, Body::from(bytes))),
        Err(_) => Err(error(StatusCode::BAD_REQUEST, "IncompleteBody", "The body ended before its length.")),
    }
}

/// `If-Match` on a key that is not there is 404 on S3; the stand-in says 412.
async fn missing_is_not_found(answer: Response) -> Response {
    if answer.status() != StatusCode::PRECONDITION_FAILED {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let bytes = to_bytes(body, TAKEN_IN).await.unwrap_or_default();
    if String::from_utf8_lossy(&bytes).contains("Object does not exist") {
        return error(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist.");
    }
    Response::from_parts(head, Body::from(bytes))
}

struct Conditions {
    if_match: Option<String>,
    if_none_match: Option<String>,
}

impl Conditions {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Self { if_match: text(IF_MATCH), if_none_match: text(IF_NONE_MATCH) }
    }

    fn judge(&self, answer: Response, is_head: bool) -> Response {
        if !answer.status().is_success() {
            return answer;
        }
        let Some(etag) = answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok()) else {
            return answer;
        };
        if self.if_match.as_deref().is_some_and(|list| !names(list, etag)) {
            let message = "At least one of the pre-conditions you specified did not hold";
            let failed = error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", message);
            return if is_head { failed.status().into_response() } else { failed };
        }
        if self.if_none_match.as_deref().is_some_and(|list| names(list, etag)) {
            let mut same = StatusCode::NOT_MODIFIED.into_response();
            for name in [ETAG, LAST_MODIFIED] {
                if let Some(value) = answer.headers().get(&name) {
                    same.headers_mut().insert(name, value.clone());
                }
            }
            return same;
        }
        answer
    }
}

/// Whether a list of ETags has this one; S3 takes them without quotes too.
fn names(list: &str, etag: &str) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
    list.split(',').any(|tag| tag.trim() == "*" || bare(tag) == bare(etag))
}

/// An error as S3 writes it.
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>\
         <RequestId>0000000000000000</RequestId></Error>"
    );
    (status, [(CONTENT_TYPE, "application/xml")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn an_etag_is_found_in_a_list_quoted_weak_or_bare() {
        for list in ["\"a\"", "a", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert!(names(list, "\"a\""), "{list}");
        }
        for list in ["\"b\"", "", "\"aa\""] {
            assert!(!names(list, "\"a\""), "{list}");
        }
    }
}
