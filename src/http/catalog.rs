//! What is served, and what became of the last messages.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use hotserve_models::TensorSpec;
use http::{StatusCode, header};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Http;
use super::problem::Problem;
use crate::id::{Digest, Rank, Slot};
use crate::serving::{ServedModel, ServedState};
use crate::status::{By, Entry, Held, KEPT, timestamp};

/// What is served.
#[derive(Serialize, JsonSchema)]
pub(super) struct Catalog<'a> {
    /// Counts the swaps since the start of the process.
    generation: u64,
    models: Vec<ModelRow<'a>>,
    states: Vec<StateRow<'a>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Model")]
struct ModelRow<'a> {
    name: &'a str,
    version: Number,
    label: Option<&'a str>,
    format: &'a str,
    engine: &'a str,
    #[schemars(with = "String")]
    digest: Digest,
    size_bytes: u64,
    memory_bytes: usize,
    row_cost_us: f64,
    /// How many rows of requests that wait are answered together at most; 1 where that is no cheaper.
    batch_rows: usize,
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    published_at: Option<Timestamp>,
    #[schemars(with = "String", extend("format" = "date-time"))]
    applied_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Pinned>,
    #[schemars(with = "Vec<Spec>")]
    inputs: &'a [TensorSpec],
    #[schemars(with = "Vec<Spec>")]
    outputs: &'a [TensorSpec],
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "State")]
struct StateRow<'a> {
    key: &'a str,
    version: Number,
    etag: Option<&'a str>,
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    published_at: Option<Timestamp>,
    #[schemars(with = "String", extend("format" = "date-time"))]
    applied_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<Pinned>,
}

/// A [`TensorSpec`], whose crate knows nothing of schemas. A test holds one against the other.
#[derive(JsonSchema)]
#[schemars(rename = "Tensor")]
#[expect(dead_code, reason = "only its schema is used")]
struct Spec {
    name: String,
    #[schemars(extend("enum" = ["BOOL", "INT32", "INT64", "FP32", "FP64", "BYTES"]))]
    datatype: String,
    /// -1 is any length; the first axis is the row.
    shape: Vec<i64>,
    /// Names of the columns, if they have any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    features: Vec<String>,
}

/// To what a slot is pinned, and who says so.
#[derive(Serialize, JsonSchema)]
struct Pinned {
    by: By,
    version: Number,
}

impl From<&Held> for Pinned {
    fn from(held: &Held) -> Self {
        Self { by: held.by, version: (&held.rank).into() }
    }
}

/// A version: a number, or the text of a sequence number, which is no JSON number.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Version")]
pub(super) enum Number {
    Version(u64),
    Sequence(String),
}

impl From<&Rank> for Number {
    fn from(rank: &Rank) -> Self {
        rank.version().map_or_else(|| Self::Sequence(rank.to_string()), |version| Self::Version(version.get()))
    }
}

impl<'a> ModelRow<'a> {
    fn new(served: &'a ServedModel, held: &BTreeMap<Slot, Held>) -> Self {
        let signature = served.model.signature();
        Self {
            name: served.facts.name.as_str(),
            version: (&served.facts.rank).into(),
            label: served.facts.label.as_deref(),
            format: served.facts.format.as_str(),
            engine: served.model.engine(),
            digest: served.facts.digest,
            size_bytes: served.facts.size,
            memory_bytes: served.model.memory_bytes(),
            row_cost_us: served.row_cost.as_secs_f64() * 1e6,
            batch_rows: served.batches.most(),
            published_at: served.facts.published_at,
            applied_at: timestamp(served.applied_at),
            held: held.get(&Slot::Model(served.facts.name.clone())).map(Pinned::from),
            inputs: &signature.inputs,
            outputs: &signature.outputs,
        }
    }
}

impl<'a> StateRow<'a> {
    fn new(served: &'a ServedState, held: &BTreeMap<Slot, Held>) -> Self {
        Self {
            key: served.key.as_str(),
            version: (&served.rank).into(),
            etag: served.etag.to_str().ok(),
            published_at: served.published_at,
            applied_at: timestamp(served.applied_at),
            held: held.get(&Slot::State(served.key.clone())).map(Pinned::from),
        }
    }
}

/// What is served: every model and every state, sorted by name.
pub(super) async fn models(State(http): State<Arc<Http>>) -> Response {
    let (snapshot, held) = (http.serving.snapshot(), http.status.held());
    let mut models: Vec<ModelRow<'_>> = snapshot.models.values().map(|model| ModelRow::new(model, &held)).collect();
    models.sort_unstable_by_key(|model| model.name);
    let mut states: Vec<StateRow<'_>> = snapshot.states.values().map(|state| StateRow::new(state, &held)).collect();
    states.sort_unstable_by_key(|state| state.key);
    let body = Json(Catalog { generation: snapshot.generation, models, states });
    ([(header::CACHE_CONTROL, "no-cache")], body).into_response()
}

#[derive(Deserialize)]
pub(super) struct HistoryQuery {
    limit: Option<usize>,
}

/// What became of the last messages.
#[derive(Serialize, JsonSchema)]
pub(super) struct History<'a> {
    #[schemars(with = "Vec<Entry>")]
    entries: Vec<&'a RawValue>,
}

/// The last swaps, rejections and commands, newest first.
pub(super) async fn history(
    State(http): State<Arc<Http>>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let limit = query.ok().map(|Query(query)| query.limit.unwrap_or(KEPT)).filter(|limit| *limit <= KEPT);
    let limit = limit.ok_or_else(|| {
        Problem::new(StatusCode::BAD_REQUEST, "bad_query", format!("limit is a number from 0 to {KEPT}"))
    })?;
    let lines = http.status.history(limit);
    let body = Json(History { entries: lines.iter().map(|line| &*line.json).collect() });
    Ok(([(header::CACHE_CONTROL, "no-cache")], body).into_response())
}
