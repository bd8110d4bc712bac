//! Failures: the same as over HTTP, with a code of gRPC.

use http::StatusCode;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::http::problem::Problem;

/// The code that belongs to a failure.
fn code(problem: &Problem) -> Code {
    match problem.status {
        _ if problem.code == "timeout" => Code::DeadlineExceeded,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Code::InvalidArgument,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => Code::FailedPrecondition,
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
        StatusCode::NOT_IMPLEMENTED => Code::Unimplemented,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        _ => Code::Internal,
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let mut status = Self::new(code(&problem), problem.detail.as_ref());
        let metadata = status.metadata_mut();
        metadata.insert("x-error-code", MetadataValue::from_static(problem.code));
        if problem.retry {
            // In milliseconds, for clients that have a policy for retries.
            metadata.insert("grpc-retry-pushback-ms", MetadataValue::from_static("1000"));
        }
        // Whoever answers the call logs it.
        if let Some(fault) = problem.fault {
            status.set_source(fault);
        }
        status
    }
}

/// A mistake of the caller's.
pub(super) fn bad(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
}

/// The names of the codes that have a series of their own, as in [`crate::metrics::GRPC_CODES`].
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_code_and_the_same_words() {
        for (status, code) in [
            (400, Code::InvalidArgument),
            (401, Code::Unauthenticated),
            (403, Code::PermissionDenied),
            (404, Code::NotFound),
            (408, Code::DeadlineExceeded),
            (409, Code::FailedPrecondition),
            (412, Code::FailedPrecondition),
            (413, Code::ResourceExhausted),
            (422, Code::InvalidArgument),
            (429, Code::ResourceExhausted),
            (500, Code::Internal),
            (501, Code::Unimplemented),
            (503, Code::Unavailable),
            (507, Code::Internal),
        ] {
            let problem = Problem::new(StatusCode::from_u16(status).expect("a status"), "some_code", "what is wrong");
            let told = Status::from(problem);
            assert_eq!((told.code(), told.message()), (code, "what is wrong"), "{status}");
            assert_eq!(told.metadata().get("x-error-code").expect("there"), "some_code");
        }
        let timeout = Status::from(Problem::unavailable("timeout", "too long"));
        assert_eq!(timeout.code(), Code::DeadlineExceeded);
        assert_eq!(timeout.metadata().get("grpc-retry-pushback-ms").expect("there"), "1000");
    }
}
