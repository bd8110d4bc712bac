//! The standard health service: what `/readyz` says.

use std::sync::Arc;

use axum::response::Response;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tonic::Status;

use super::frame;
use super::proto::health::health_check_response::ServingStatus;
use super::proto::health::{HealthCheckRequest, HealthCheckResponse};
use crate::http::Http;
use crate::http::problem::Problem;
use crate::status::Readiness;

/// The services that are asked after by name; an empty one is the server as a whole.
const SERVICES: [&str; 3] = ["", "inference.GRPCInferenceService", "grpc.health.v1.Health"];

fn serving(http: &Http) -> ServingStatus {
    match http.status.readiness() {
        Readiness::Ready => ServingStatus::Serving,
        Readiness::Starting(_) | Readiness::Draining => ServingStatus::NotServing,
    }
}

/// Whether a service can be asked now.
pub(super) fn check(http: &Http, request: &HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
    if !SERVICES.contains(&request.service.as_str()) {
        return Err(Status::not_found(format!("there is no service {}", super::shown(&request.service))));
    }
    Ok(HealthCheckResponse { status: serving(http).into() })
}

/// The same, and each change of it. It ends with the server, after its last word.
pub(super) fn watch(http: &Arc<Http>, request: &HealthCheckRequest) -> Result<Response, Status> {
    let watcher = Watcher {
        known: SERVICES.contains(&request.service.as_str()),
        // Before the first look, so that no change is missed.
        news: http.status.news(),
        _place: place(http)?,
        http: Arc::clone(http),
        told: None,
    };
    Ok(frame::answers(stream::unfold(watcher, |mut watcher| async move {
        let status = watcher.next().await?;
        Some((frame::encode(&HealthCheckResponse { status: status.into() }), watcher))
    })))
}

/// A place for a stream that lasts as long as its client likes.
pub(super) fn place(http: &Http) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(&http.streams).try_acquire_owned().map_err(|_| {
        Problem::unavailable("too_many_listeners", "too many streams are open already: ask another instance").into()
    })
}

/// Waits until the server is shutting down.
pub(super) async fn drained(http: Arc<Http>) {
    let mut news = http.status.news();
    while http.status.readiness() != Readiness::Draining && news.changed().await.is_ok() {}
}

struct Watcher {
    http: Arc<Http>,
    news: watch::Receiver<()>,
    known: bool,
    told: Option<ServingStatus>,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    /// The next status that differs from the last; nothing once it can change no more.
    async fn next(&mut self) -> Option<ServingStatus> {
        loop {
            self.news.borrow_and_update();
            let readiness = self.http.status.readiness();
            let now = if self.known { serving(&self.http) } else { ServingStatus::ServiceUnknown };
            if self.told.replace(now) != Some(now) {
                return Some(now);
            }
            if readiness == Readiness::Draining || self.news.changed().await.is_err() {
                return None;
            }
        }
    }
}
