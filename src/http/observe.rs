//! What happens around every request: its id, its metrics, the end of a panic, and the writing of problems.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use metrics::{Counter, Histogram};
use tower::{Layer, Service};

use super::problem::{Dialect, Problem};
use super::state::Waited;
use crate::metrics::{Metrics, STATUSES};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is answered however much is under way: those who look after the server are not to be locked out by its load.
const ALWAYS: &[&str] = &[
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/history",
    "/events",
    "/",
    "/admin/control",
    // Health and metadata of the Open Inference Protocol, and its commands.
    "/v2",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
];

/// Observes one route. Its handles are resolved here, once: a request looks nothing up.
#[derive(Clone)]
pub(super) struct Observe(Arc<Route>);

struct Route {
    name: &'static str,
    dialect: Dialect,
    /// By status code; one that has no series of its own counts as another.
    requests: Vec<(u16, Counter)>,
    other: Counter,
    duration: Histogram,
    /// Whether it is answered however much is under way.
    always: bool,
    metrics: Arc<Metrics>,
}

impl Observe {
    /// For a route of the metrics' table.
    pub(super) fn route(name: &'static str, metrics: &Arc<Metrics>) -> Self {
        let counter = |status: &'static str| metrics.http_requests.get(&[name, status]).clone();
        let requests = STATUSES.iter().filter_map(|status| Some((status.parse().ok()?, counter(status)))).collect();
        let dialect = if name.starts_with("/v2") { Dialect::Protocol } else { Dialect::Problem };
        Self(Arc::new(Route {
            name,
            dialect,
            requests,
            other: counter("other"),
            duration: metrics.http_request_duration.get(name).clone(),
            always: ALWAYS.contains(&name),
            metrics: Arc::clone(metrics),
        }))
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, route: Arc::clone(&self.0) }
    }
}

/// A service under observation.
#[derive(Clone)]
pub(super) struct Observed<S> {
    inner: S,
    route: Arc<Route>,
}

impl<S> Service<Request> for Observed<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (start, id) = (Instant::now(), request_id(request.headers()));
        let answer = self.inner.call(request);
        let route = Arc::clone(&self.route);
        Box::pin(async move { Ok(route.observe(start, id, answer).await) })
    }
}

impl Observe {
    /// Observes an answer that is made without the router.
    pub(super) async fn answer<A: IntoResponse>(
        &self,
        start: Instant,
        id: HeaderValue,
        answer: impl Future<Output = A>,
    ) -> Response {
        self.0.observe(start, id, async move { Ok(answer.await.into_response()) }).await
    }
}

impl Route {
    async fn observe(
        &self,
        start: Instant,
        id: HeaderValue,
        answer: impl Future<Output = Result<Response, Infallible>>,
    ) -> Response {
        let flight = self.metrics.in_flight.enter();
        let answered = if flight.fits() || self.always {
            AssertUnwindSafe(answer).catch_unwind().await
        } else {
            self.metrics.requests_shed.increment(1);
            Ok(Ok(overloaded().into_response()))
        };
        let mut response = match answered {
            Ok(Ok(response)) => response,
            // The panic hook has told where; a request costs itself, and nothing else.
            Err(_) => {
                tracing::error!(route = self.name, request_id = text(&id), "a request's handler panicked");
                Problem::internal().into_response()
            }
        };
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            problem.render(self.dialect, text(&id), &mut response);
        }
        response.headers_mut().insert(REQUEST_ID, id);
        self.counter(response.status()).increment(1);
        let waited = response.extensions_mut().remove::<Waited>().map_or(Duration::ZERO, |Waited(waited)| waited);
        self.duration.record(start.elapsed().saturating_sub(waited));
        response
    }

    fn counter(&self, status: StatusCode) -> &Counter {
        let found = self.requests.iter().find(|(code, _)| *code == status.as_u16());
        found.map_or(&self.other, |(_, counter)| counter)
    }
}

/// There is too much to do. What is shed costs next to nothing, so that the others are answered in time.
pub(super) fn overloaded() -> Problem {
    Problem::unavailable("overloaded", "as many requests as may be are under way (--max-in-flight): ask again later")
}

/// The client's id where it is fit for headers and logs, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID);
    let fit = |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    given.filter(fit).cloned().unwrap_or_else(|| {
        let mut id = [0; 16];
        let mut bits = fastrand::u64(..);
        for digit in &mut id {
            *digit = b"0123456789abcdef"[(bits & 0xf) as usize];
            bits >>= 4;
        }
        HeaderValue::from_bytes(&id).expect("hex digits are visible ASCII")
    })
}

fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}
