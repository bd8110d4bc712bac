//! The HTTP interface.
//!
//! It reads what is served and how the server does, and knows nothing of where that comes from. A request takes one
//! [`Snapshot`](crate::serving::Snapshot) and answers everything from it. Commands go to the manager through its
//! [`Handle`], which is all of it that is named here.

mod admin;
mod answer;
mod body;
mod catalog;
mod cors;
mod docs;
mod doors;
mod events;
mod health;
mod front;
mod inference;
pub mod limits;
pub mod listener;
mod min_version;
mod observe;
mod openapi;
mod page;
mod predict;
mod problem;
mod pulse;
mod state;
pub mod tls;
mod trace;
mod upload;
mod v2;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodRouter, any, get, post};
use http::StatusCode;
use tokio::sync::Semaphore;

use crate::config::HttpConfig;
use crate::manager::Handle;
use crate::metrics::Metrics;
use crate::serving::Serving;
use crate::serving::compute::ComputePool;
use crate::status::Status;
use observe::Observe;
use problem::Problem;

pub use admin::Admin;
pub use doors::Doors;
pub use front::Front;

/// What the interface shows and uses.
pub struct Http {
    /// What is served.
    pub serving: Arc<Serving>,
    /// How the server is doing.
    pub status: Arc<Status>,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// Where dear predictions are computed.
    pub compute: ComputePool,
    /// The limits.
    pub config: HttpConfig,
    /// Who may give commands; nobody where there is none.
    pub admin: Option<Admin>,
    /// Places for requests that wait for a version.
    waiters: Semaphore,
    /// Places for requests that wait for another state.
    pollers: Semaphore,
    /// Room for bodies.
    bodies: Arc<Semaphore>,
    /// The document of the interface, as it was last made.
    document: openapi::Kept,
    /// Places for those who listen to events.
    listeners: Arc<Semaphore>,
    /// Places for streams of gRPC that last.
    streams: Arc<Semaphore>,
    /// How it does, second by second.
    pulse: pulse::Pulse,
}

impl Http {
    /// An interface to these parts.
    pub fn new(
        serving: Arc<Serving>,
        status: Arc<Status>,
        metrics: Arc<Metrics>,
        compute: ComputePool,
        config: HttpConfig,
        commands: Handle,
    ) -> Self {
        let admin = config.admin.as_ref().map(|admin| Admin { token: admin.token.clone(), handle: commands });
        metrics.in_flight.limit(config.connections.max_in_flight.unwrap_or(usize::MAX));
        let (waiters, listeners) = (Semaphore::new(min_version::WAITERS), Arc::new(Semaphore::new(events::CLIENTS)));
        let (pollers, document) = (Semaphore::new(state::POLLERS), openapi::Kept::default());
        let streams = Arc::new(Semaphore::new(v2::grpc::STREAMS));
        let (pulse, bodies) = (pulse::Pulse::new(&metrics), upload::room(config.body_limit));
        Self {
            serving,
            status,
            metrics,
            compute,
            config,
            admin,
            waiters,
            pollers,
            bodies,
            document,
            listeners,
            streams,
            pulse,
        }
    }

    /// How its listeners end.
    pub fn drain(&self) -> listener::Drain {
        listener::Drain { delay: self.config.drain_delay, limit: self.config.drain }
    }

    /// Where commands are taken, if that is neither where everything else is nor where the operators' paths are.
    pub fn admin_listen(&self) -> Option<SocketAddr> {
        self.config.admin.as_ref()?.listen
    }

    /// Where the operators' paths are, if that is not where everything is.
    pub fn ops_listen(&self) -> Option<SocketAddr> {
        self.config.connections.ops
    }

    /// Whether commands are taken where clients are answered.
    fn takes_commands(&self) -> bool {
        self.admin.is_some() && self.admin_listen().is_none() && self.ops_listen().is_none()
    }
}

/// Every route for clients, and an answer to every other path. HEAD works where GET does. The operators' routes are
/// among them, unless they have an address of their own.
pub fn router(http: &Arc<Http>) -> Router {
    let page = if http.ops_listen().is_none() { page_route(http) } else { Router::new() };
    finish(routes(Arc::clone(http)).merge(page.with_state(Arc::clone(http))), http)
}

/// The routes alone, for a host that has a page and an answer to every other path of its own.
pub fn routes<S: Clone + Send + Sync + 'static>(http: Arc<Http>) -> Router<S> {
    let ops = if http.ops_listen().is_none() { ops_routes(&http) } else { Router::new() };
    let admin = if http.takes_commands() { admin_route(&http) } else { Router::new() };
    client_routes(&http, http.ops_listen().is_none() && http.admin_listen().is_none())
        .merge(ops)
        .merge(admin)
        .with_state(http)
}

/// The routes of a port for operators: all that there are. The page there tries predictions.
pub fn ops_router(http: &Arc<Http>) -> Router {
    let commands = http.admin_listen().is_none();
    let admin = if http.admin.is_some() && commands { admin_route(http) } else { Router::new() };
    let all = client_routes(http, commands).merge(ops_routes(http)).merge(admin).merge(page_route(http));
    finish(all.with_state(Arc::clone(http)), http)
}

/// The routes of a port for commands alone.
pub fn admin_router(http: &Arc<Http>) -> Router {
    finish(admin_route(http).merge(v2::commands(http)).with_state(Arc::clone(http)), http)
}

fn finish(router: Router, http: &Http) -> Router {
    router.fallback_service(any(not_found).layer(Observe::route("unmatched", &http.metrics)))
}

/// What clients ask, and who sends them here.
fn client_routes(http: &Arc<Http>, commands: bool) -> Router<Arc<Http>> {
    let on = |path, methods| route(path, methods, &http.metrics);
    Router::new()
        .merge(on("/state", get(state::get_default)))
        .merge(on("/state/{key}", get(state::get_by_key)))
        .merge(on("/predict", post(predict::by_default)))
        .merge(on("/predict/{model}", post(predict::by_name)))
        .merge(on("/livez", get(health::live)))
        .merge(on("/healthz", get(health::live)))
        .merge(on("/readyz", get(health::ready)))
        .merge(v2::router(http, commands))
        .merge(v2::grpc::router(http))
}

/// What those ask who look after the server.
fn ops_routes(http: &Http) -> Router<Arc<Http>> {
    let on = |path, methods| route(path, methods, &http.metrics);
    Router::new()
        .merge(on("/models", get(catalog::models)))
        .merge(on("/history", get(catalog::history)))
        .merge(on("/events", get(events::events)))
        .merge(on("/openapi.json", get(openapi::document)))
        .merge(on("/docs", get(docs::page)))
        .merge(on("/docs/{file}", get(docs::file)))
        .merge(on("/metrics", get(health::metrics)))
}

fn page_route(http: &Http) -> Router<Arc<Http>> {
    route("/", get(page::page), &http.metrics).merge(route("/page/{file}", get(page::file), &http.metrics))
}

fn admin_route(http: &Http) -> Router<Arc<Http>> {
    route("/admin/control", post(admin::control), &http.metrics)
}

fn route(path: &'static str, methods: MethodRouter<Arc<Http>>, metrics: &Arc<Metrics>) -> Router<Arc<Http>> {
    Router::new().route(path, methods.fallback(method_not_allowed).layer(Observe::route(path, metrics)))
}

async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path; / shows what there is")
}

/// The router adds which methods are, in `allow`.
async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the path does not take this method")
}
