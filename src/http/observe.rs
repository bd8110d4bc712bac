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
use metrics::{Counter, Gauge, Histogram};
use tower::{Layer, Service};

use super::problem::{Dialect, Problem};
use super::state::Waited;
use crate::metrics::{Metrics, STATUSES};

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Observes one route. Its handles are resolved here, once: a request looks nothing up.
#[derive(Clone)]
pub(super) struct Observe(Arc<Route>);

struct Route {
    name: &'static str,
    dialect: Dialect,
    /// By status code; one that has no series of its own counts in its class.
    requests: Vec<(u16, Counter)>,
    /// From 2xx to 5xx.
    classes: [Counter; 4],
    duration: Histogram,
    in_flight: Gauge,
}

impl Observe {
    /// For a route of the metrics' table.
    pub(super) fn route(name: &'static str, metrics: &Metrics) -> Self {
        let counter = |status: &'static str| metrics.http_requests.get(&[name, status]).clone();
        let requests = STATUSES.iter().filter_map(|status| Some((status.parse().ok()?, counter(status)))).collect();
        let dialect = if name.starts_with("/v2") { Dialect::Protocol } else { Dialect::Problem };
        Self(Arc::new(Route {
            name,
            dialect,
            requests,
            classes: ["2xx", "3xx", "4xx", "5xx"].map(counter),
            duration: metrics.http_request_duration.get(name).clone(),
            in_flight: metrics.http_requests_in_flight.clone(),
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
        let _flight = Flight::new(&self.in_flight);
        let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
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
        let [success, redirection, client, server] = &self.classes;
        found.map_or_else(
            || match status.as_u16() {
                ..300 => success,
                300..400 => redirection,
                400..500 => client,
                _ => server,
            },
            |(_, counter)| counter,
        )
    }
}

/// Counts a request as in flight until it is answered or its client has gone.
pub(super) struct Flight<'r>(&'r Gauge);

impl<'r> Flight<'r> {
    pub(super) fn new(in_flight: &'r Gauge) -> Self {
        in_flight.increment(1.0);
        Self(in_flight)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Scraped;

    #[tokio::test]
    async fn a_status_without_a_series_of_its_own_counts_in_its_class() {
        let metrics = Metrics::new();
        let observe = Observe::route("/state", &metrics);
        for status in [200, 206, 302, 304, 405, 418, 503, 502, 504] {
            let status = StatusCode::from_u16(status).unwrap();
            observe.answer(Instant::now(), HeaderValue::from_static("id"), async move { status }).await;
        }
        let text = metrics.render(&Scraped::default());
        let count = |status: &str| {
            let series = format!("hotserve_http_requests_total{{route=\"/state\",status=\"{status}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_owned()
        };
        assert_eq!(["200", "304", "405", "503"].map(count), ["1"; 4]);
        assert_eq!(["2xx", "3xx", "4xx", "5xx"].map(count), ["1", "1", "1", "2"]);
    }
}
