//! `GET /state`: bytes prepared at swap time, told apart by their tag.
//!
//! With `?wait=30s` and the tag of what the client has, the answer waits for another one.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::time::{Instant, sleep_until};

use super::Http;
use super::body::list;
use super::min_version::MinVersion;
use super::problem::Problem;
use crate::config::HumanDuration;
use crate::id::{Slot, StateKey};
use crate::serving::{ServedState, Snapshot};
use crate::status::Readiness;

/// The version of a state, on its own answers and on those of models served beside it.
pub(super) const VERSION: HeaderName = HeaderName::from_static("x-state-version");

/// How many requests may wait for another state: each is a connection, and wakes at every swap.
pub(super) const POLLERS: usize = 1024;
/// How long one waits at most, whatever it asks for: shorter than what most proxies between take for dead.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The default state.
pub(super) async fn get_default(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    get(&http, StateKey::DEFAULT, request.uri().query(), request.headers()).await
}

/// The state of a key.
pub(super) async fn get_by_key(
    State(http): State<Arc<Http>>,
    key: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Path(key) = key.map_err(|rejection| {
        Problem::new(StatusCode::BAD_REQUEST, "bad_path", format!("the key is no text: {}", rejection.body_text()))
    })?;
    get(&http, &key, request.uri().query(), request.headers()).await
}

/// The state that is served now.
pub(super) fn get_now(http: &Http, key: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    answer(&http.serving.snapshot(), key, headers)
}

pub(super) async fn get(http: &Http, key: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Response, Problem> {
    let wait = query.map_or(Ok(None), wait)?;
    let snapshot = match MinVersion::of(headers, http)? {
        None => http.serving.snapshot(),
        Some(wanted) => {
            let found = |state: &Arc<ServedState>| (Slot::State(state.key.clone()), state.rank.clone());
            let deadline = Instant::now() + http.config.request_timeout;
            wanted.snapshot(http, deadline, |snapshot| snapshot.state(key).map(found)).await?
        }
    };
    match wait {
        None => answer(&snapshot, key, headers),
        Some(wait) => answer_other(http, key, headers, snapshot, wait).await,
    }
}

/// Answers when there is something else than the client has, and at the end of the wait that there is not.
async fn answer_other(
    http: &Http,
    key: &str,
    headers: &HeaderMap,
    mut snapshot: Arc<Snapshot>,
    wait: Duration,
) -> Result<Response, Problem> {
    let begun = Instant::now();
    let end = sleep_until(begun + wait.min(LONGEST_WAIT));
    tokio::pin!(end);
    let (mut swaps, mut news) = (http.serving.swaps(), http.status.news());
    let mut place = None;
    let mut over = wait.is_zero();
    loop {
        let same = snapshot.state(key).is_some_and(|state| is_current(headers, &state.etag));
        // Who drains has no time for who waits.
        if !same || over || http.status.readiness() == Readiness::Draining {
            let mut response = answer(&snapshot, key, headers).into_response();
            response.extensions_mut().insert(Waited(begun.elapsed()));
            return Ok(response);
        }
        // Nothing that is replaced meanwhile is held while it waits.
        drop(snapshot);
        if place.is_none() {
            let waits = http.pollers.try_acquire().map_err(|_| {
                let detail = format!("{POLLERS} requests wait for a state already: send the request again");
                Problem::unavailable("overloaded", detail)
            })?;
            // It takes no place of those that have something to do.
            place = Some((waits, http.metrics.in_flight.wait()));
        }
        over = tokio::select! {
            () = &mut end => true,
            // Over too when nobody swaps any more.
            changed = swaps.changed() => changed.is_err(),
            changed = news.changed() => changed.is_err(),
        };
        swaps.borrow_and_update();
        snapshot = http.serving.snapshot();
    }
}

/// How long the answer was held back because the client asked for that: no part of what the server took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waited(pub(super) Duration);

/// The wait that a query asks for.
fn wait(query: &str) -> Result<Option<Duration>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad_wait", detail);
    let mut values = query.split('&').filter_map(|field| match field.split_once('=') {
        Some(("wait", value)) => Some(value),
        None if field == "wait" => Some(""),
        _ => None,
    });
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.parse::<HumanDuration>() {
            Ok(HumanDuration(wait)) => Ok(Some(wait)),
            Err(error) => Err(bad(format!("wait: {error}"))),
        },
        (Some(_), Some(_)) => Err(bad("wait comes more than once".to_owned())),
    }
}

fn answer(snapshot: &Snapshot, key: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let Some(state) = snapshot.state(key) else {
        return Err(unknown(snapshot, key));
    };
    // Room for all of them, so that it is taken once.
    let mut answered = HeaderMap::with_capacity(6);
    let mut response = if is_current(headers, &state.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        answered.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Response::new(state.body.clone().into())
    };
    let headers = &mut answered;
    headers.insert(header::ETAG, state.etag.clone());
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VERSION, state.version.clone());
    *response.headers_mut() = answered;
    Ok(response)
}

fn unknown(snapshot: &Snapshot, key: &str) -> Problem {
    let mut keys: Vec<&str> = snapshot.states.keys().map(StateKey::as_str).collect();
    keys.sort_unstable();
    let known = if keys.is_empty() { "none yet".to_owned() } else { list(&keys) };
    let key: String = key.chars().take(64).collect();
    Problem::new(StatusCode::NOT_FOUND, "state_not_found", format!("there is no state {key:?}; there is {known}"))
}

/// Whether the client has this body already. The weak comparison of RFC 9110, 13.1.2.
pub(super) fn is_current(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter();
    lists
        .flat_map(|list| list.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes())
}
