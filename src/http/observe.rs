//! What happens around every request: its id, its metrics, the end of a panic, and the writing of problems.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::StatusCode;
use metrics::{Counter, Histogram};
use tower::{Layer, Service};

use super::problem::{Dialect, Problem};
use super::state::Waited;
use super::trace::{Caller, Fault, REQUEST_ID};
use crate::metrics::{Asked, Ended, Flight, Metrics, STATUSES};

/// What is answered however much is under way, and takes nobody's place: those who look after the server are not to be
/// locked out by its load.
const ALWAYS: &[&str] = &[
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/history",
    "/events",
    "/",
    "/page/{file}",
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
    /// By status code; one that has no series of its own counts in its class.
    requests: Vec<(u16, Counter)>,
    /// From 2xx to 5xx.
    classes: [Counter; 4],
    duration: Histogram,
    /// Whether it is answered however much is under way.
    always: bool,
    /// What the status page counts it as.
    asked: Option<Asked>,
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
            classes: ["2xx", "3xx", "4xx", "5xx"].map(counter),
            duration: metrics.http_request_duration.get(name).clone(),
            always: ALWAYS.contains(&name),
            asked: match name {
                "/predict" | "/predict/{model}" | "/v2/models/{model}/infer" => Some(Asked::Prediction),
                "/state" | "/state/{key}" => Some(Asked::State),
                _ => None,
            },
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
        let caller = Caller::of(request.method(), request.headers());
        let answer = self.inner.call(request);
        let route = Arc::clone(&self.route);
        Box::pin(async move { Ok(route.observe(caller, answer).await) })
    }
}

/// What a handler comes to.
type Answered = Result<Response, Infallible>;

impl Observe {
    /// Observes an answer that is made without the router.
    pub(super) async fn answer<A: IntoResponse>(&self, caller: Caller, answer: impl Future<Output = A>) -> Response {
        self.0.observe(caller, async move { Ok(answer.await.into_response()) }).await
    }

    /// The same of an answer that nothing is waited for.
    pub(super) fn answer_now<A: IntoResponse>(&self, caller: Caller, answer: impl FnOnce() -> A) -> Response {
        let flight = self.0.enter();
        let answered = if self.0.fits(flight.as_ref()) {
            std::panic::catch_unwind(AssertUnwindSafe(|| Ok(answer().into_response())))
        } else {
            Ok(Ok(overloaded().into_response()))
        };
        self.0.answered(caller, answered)
    }
}

impl Route {
    async fn observe(&self, caller: Caller, answer: impl Future<Output = Answered>) -> Response {
        let flight = self.enter();
        let answered = if self.fits(flight.as_ref()) {
            AssertUnwindSafe(answer).catch_unwind().await
        } else {
            Ok(Ok(overloaded().into_response()))
        };
        self.answered(caller, answered)
    }

    /// Takes a place for what is under way, where one is needed.
    fn enter(&self) -> Option<Flight<'_>> {
        (!self.always).then(|| self.metrics.in_flight.enter())
    }

    /// Whether there is a place; counts who gets none.
    fn fits(&self, flight: Option<&Flight<'_>>) -> bool {
        let fits = flight.is_none_or(Flight::fits);
        if !fits {
            self.metrics.requests_shed.increment(1);
        }
        fits
    }

    fn answered(&self, caller: Caller, answered: std::thread::Result<Answered>) -> Response {
        let mut response = match answered {
            Ok(Ok(response)) => response,
            Err(_) => Problem { fault: Some(Arc::new(Fault::panicked())), ..Problem::internal() }.into_response(),
        };
        let trace = caller.answered(self.name, &response, None);
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            if let Some(fault) = &problem.fault {
                caller.failed(self.name, trace, fault);
            }
            problem.render(self.dialect, caller.id(), trace, &mut response);
        }
        response.headers_mut().insert(REQUEST_ID, caller.id);
        self.counter(response.status()).increment(1);
        let waited = response.extensions_mut().remove::<Waited>().map_or(Duration::ZERO, |Waited(waited)| waited);
        let duration = caller.begun.elapsed().saturating_sub(waited);
        self.duration.record(duration);
        if let Some(asked) = self.asked {
            self.metrics.traffic.record(asked, duration, Ended::by_status(response.status().as_u16()));
        }
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

/// There is too much to do. What is shed costs next to nothing, so that the others are answered in time.
pub(super) fn overloaded() -> Problem {
    Problem::unavailable("overloaded", "as many requests as may be are under way (--max-in-flight): ask again later")
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::metrics::Scraped;

    #[tokio::test]
    async fn a_status_without_a_series_of_its_own_counts_in_its_class() {
        let metrics = Metrics::new();
        let observe = Observe::route("/state", &metrics);
        for status in [200, 206, 302, 304, 405, 418, 503, 502, 504] {
            let status = StatusCode::from_u16(status).unwrap();
            let caller = Caller::of(&Method::GET, &HeaderMap::new());
            observe.answer(caller, async move { status }).await;
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
