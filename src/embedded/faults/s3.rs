//! S3 behind the layer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::{Method, StatusCode};

use super::{Action, Answer, Call, Faults, answers};

/// Lays the layer over S3.
pub(super) fn layer(faults: Arc<Faults>, s3: Router) -> Router {
    s3.layer(middleware::from_fn_with_state(faults, answer))
}

/// When each object was first put.
#[derive(Debug, Default)]
pub(super) struct Appeared(Mutex<HashMap<String, Instant>>);

impl Appeared {
    fn put(&self, path: &str) {
        let mut appeared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        appeared.entry(path.to_owned()).or_insert_with(Instant::now);
    }

    fn delete(&self, path: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    fn is_there(&self, path: &str, after: Duration) -> bool {
        let appeared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        appeared.get(path).is_none_or(|at| at.elapsed() >= after)
    }
}

async fn answer(State(faults): State<Arc<Faults>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let operation = operation(request.method(), &path, request.uri().query().unwrap_or_default());
    let call = Call { action: Action::s3(operation), shard: None };
    let fault = faults.meet(&call).await;
    if let Some(wrong) = fault.and_then(answers::instead_of_s3) {
        return wrong;
    }
    let rules = faults.rules().s3;
    let is_read = matches!(operation, "GetObject" | "HeadObject");
    if is_read
        && !faults.appeared.is_there(&path, rules.appears_after)
        && let Some(missing) = answers::instead_of_s3(Answer::NotFound)
    {
        return missing;
    }
    let mut right = next.run(request).await;
    if right.status().is_success() {
        match operation {
            "PutObject" | "CompleteMultipartUpload" => faults.appeared.put(&path),
            "DeleteObject" => faults.appeared.delete(&path),
            _ => {}
        }
    }
    if let (Some(speed), "GetObject", StatusCode::OK | StatusCode::PARTIAL_CONTENT) =
        (rules.bytes_per_second, operation, right.status())
    {
        let (head, body) = right.into_parts();
        right = Response::from_parts(head, answers::slowed(body, speed));
    }
    match fault {
        Some(fault) => answers::spoil(fault, right).await,
        None => right,
    }
}

/// The operation, as IAM names it where it has a name of its own there.
fn operation(method: &Method, path: &str, query: &str) -> &'static str {
    let of_object = path.trim_start_matches('/').split_once('/').is_some_and(|(_, key)| !key.is_empty());
    let has = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
    match (method.as_str(), of_object) {
        ("GET", true) => "GetObject",
        ("HEAD", true) => "HeadObject",
        ("PUT", true) if has("partNumber") => "UploadPart",
        ("PUT", true) => "PutObject",
        ("DELETE", true) if has("uploadId") => "AbortMultipartUpload",
        ("POST", true) if has("uploads") => "CreateMultipartUpload",
        ("POST", true) => "CompleteMultipartUpload",
        ("PUT", false) => "CreateBucket",
        ("HEAD", false) => "HeadBucket",
        ("GET", false) => "ListBucket",
        _ => "DeleteObject",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_by_its_method_path_and_query() {
        for (method, path, query, expected) in [
            ("GET", "/b/k/l", "x-id=GetObject", "GetObject"),
            ("GET", "/b", "list-type=2", "ListBucket"),
            ("GET", "/b/", "list-type=2", "ListBucket"),
            ("PUT", "/b/k", "", "PutObject"),
            ("PUT", "/b/k", "partNumber=1&uploadId=u", "UploadPart"),
            ("POST", "/b/k", "uploads", "CreateMultipartUpload"),
            ("POST", "/b/k", "uploadId=u", "CompleteMultipartUpload"),
            ("DELETE", "/b/k", "uploadId=u", "AbortMultipartUpload"),
            ("DELETE", "/b/k", "", "DeleteObject"),
            ("HEAD", "/b", "", "HeadBucket"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(operation(&method, path, query), expected, "{method} {path}?{query}");
        }
    }
}
