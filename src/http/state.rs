//! `GET /state`: bytes prepared at swap time, told apart by their tag.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::time::Instant;

use super::Http;
use super::body::list;
use super::min_version::MinVersion;
use super::problem::Problem;
use crate::id::{Slot, StateKey};
use crate::serving::{ServedState, Snapshot};

/// The version of a state, on its own answers and on those of models served beside it.
pub(super) const VERSION: HeaderName = HeaderName::from_static("x-state-version");

/// The default state.
pub(super) async fn get_default(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    get(&http, StateKey::DEFAULT, request.headers()).await
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
    get(&http, &key, request.headers()).await
}

pub(super) async fn get(http: &Http, key: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let snapshot = match MinVersion::of(headers, http)? {
        None => http.serving.snapshot(),
        Some(wanted) => {
            let found = |state: &Arc<ServedState>| (Slot::State(state.key.clone()), state.rank.clone());
            let deadline = Instant::now() + http.config.request_timeout;
            wanted.snapshot(http, deadline, |snapshot| snapshot.state(key).map(found)).await?
        }
    };
    answer(&snapshot, key, headers)
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
fn is_current(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter();
    lists
        .flat_map(|list| list.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|tag| tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == etag.as_bytes())
}
