//! Which models there are: their versions, metadata, readiness and statistics.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequestParts, RawPathParams, State};
use axum::response::{IntoResponse, Response};
use hotserve_models::{Dim, TensorSpec};
use http::request::Parts;
use http::{StatusCode, header};
use serde::Serialize;
use tokio::time::Instant;

use super::super::Http;
use super::super::min_version::MinVersion;
use super::super::predict::choose;
use super::super::problem::Problem;
use super::wire::shown;
use crate::id::{ModelName, Slot};
use crate::serving::statistics::{Counted, Total};
use crate::serving::{ServedModel, Snapshot};

/// The model that a path names, and its version if it names one.
#[derive(Debug, Clone)]
pub(in crate::http) struct Named {
    pub model: String,
    pub version: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(head: &mut Parts, state: &S) -> Result<Self, Problem> {
        let bad = |rejection: RawPathParamsRejection| {
            let detail = format!("the path is no text: {}", rejection.body_text());
            Problem::new(StatusCode::BAD_REQUEST, "bad_path", detail)
        };
        let found = RawPathParams::from_request_parts(head, state).await.map_err(bad)?;
        let get = |name| found.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
        Ok(Self { model: get("model").unwrap_or_default(), version: get("version") })
    }
}

/// The model that is meant: the one that is served, or by its version the one before, while that is warm.
pub fn find(http: &Http, snapshot: &Snapshot, named: &Named) -> Result<Arc<ServedModel>, Problem> {
    let model = choose(snapshot, Some(&named.model), http)?;
    let Some(version) = named.version.as_deref().filter(|version| !version.is_empty()) else {
        return Ok(Arc::clone(model));
    };
    let here = [Some(Arc::clone(model)), snapshot.previous(&named.model)];
    let found = here.into_iter().flatten().find(|model| model.headers.version == version);
    found.ok_or_else(|| {
        let versions = versions(snapshot, model).join(" and ");
        let detail = format!("model {:?} has no version {} here; there is {versions}", named.model, shown(version));
        Problem::new(StatusCode::NOT_FOUND, "version_not_served", detail)
    })
}

/// The model that is meant, from the first snapshot that has the version which the client has seen elsewhere.
pub async fn chosen(
    http: &Http,
    wanted: Option<MinVersion>,
    deadline: Instant,
    named: &Named,
) -> Result<Arc<ServedModel>, Problem> {
    let snapshot = match wanted {
        None => http.serving.snapshot(),
        Some(wanted) => {
            let slot = |snapshot: &Snapshot| {
                let facts = &find(http, snapshot, named).ok()?.facts;
                Some((Slot::Model(facts.name.clone()), facts.rank.clone()))
            };
            wanted.snapshot(http, deadline, slot).await?
        }
    };
    find(http, &snapshot, named)
}

/// The versions of a model that are here, the one that is served first.
pub fn versions(snapshot: &Snapshot, model: &ServedModel) -> Vec<String> {
    let previous = snapshot.previous(model.facts.name.as_str());
    std::iter::once(model.facts.rank.to_string()).chain(previous.map(|model| model.facts.rank.to_string())).collect()
}

/// What a model is called elsewhere: the server and the format.
pub fn platform(model: &ServedModel) -> String {
    format!("hotserve_{}", model.facts.format)
}

/// The axes of a tensor, as metadata have them.
pub fn shape(spec: &TensorSpec) -> Vec<i64> {
    let dim = |dim: &Dim| match dim {
        Dim::Any => -1,
        Dim::Fixed(length) => i64::try_from(*length).unwrap_or(i64::MAX),
    };
    spec.shape.iter().map(dim).collect()
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: &'a str,
    versions: Vec<String>,
    platform: String,
    inputs: Vec<TensorMetadata<'a>>,
    outputs: Vec<TensorMetadata<'a>>,
}

#[derive(Serialize)]
struct TensorMetadata<'a> {
    name: &'a str,
    datatype: &'static str,
    shape: Vec<i64>,
}

impl<'a> From<&'a TensorSpec> for TensorMetadata<'a> {
    fn from(spec: &'a TensorSpec) -> Self {
        Self { name: &spec.name, datatype: spec.datatype.as_str(), shape: shape(spec) }
    }
}

/// What a model takes and gives.
pub(super) async fn metadata(State(http): State<Arc<Http>>, named: Named) -> Result<Response, Problem> {
    let snapshot = http.serving.snapshot();
    let model = find(&http, &snapshot, &named)?;
    let signature = model.model.signature();
    let body = Metadata {
        name: model.facts.name.as_str(),
        versions: versions(&snapshot, choose(&snapshot, Some(&named.model), &http)?),
        platform: platform(&model),
        inputs: signature.inputs.iter().map(TensorMetadata::from).collect(),
        outputs: signature.outputs.iter().map(TensorMetadata::from).collect(),
    };
    Ok(answer(body))
}

#[derive(Serialize)]
struct Ready<'a> {
    name: &'a str,
    ready: bool,
}

/// Whether a model would answer.
pub(super) async fn ready(State(http): State<Arc<Http>>, named: Named) -> Result<Response, Problem> {
    find(&http, &http.serving.snapshot(), &named)?;
    Ok(answer(Ready { name: &named.model, ready: true }))
}

#[derive(Serialize)]
struct Models<'a> {
    models: BTreeSet<&'a str>,
}

/// The names of what is served.
pub(super) async fn names(State(http): State<Arc<Http>>) -> Response {
    let snapshot = http.serving.snapshot();
    answer(Models { models: snapshot.models.keys().map(ModelName::as_str).collect() })
}

#[derive(Serialize)]
struct ModelStatistics<'a> {
    model_stats: Vec<VersionStatistics<'a>>,
}

#[derive(Serialize)]
struct VersionStatistics<'a> {
    name: &'a str,
    version: String,
    last_inference: u64,
    inference_count: u64,
    execution_count: u64,
    inference_stats: InferenceStatistics,
    batch_stats: [(); 0],
    memory_usage: [(); 0],
}

#[derive(Serialize)]
struct InferenceStatistics {
    success: Duration,
    fail: Duration,
    queue: Duration,
    compute_input: Duration,
    compute_infer: Duration,
    compute_output: Duration,
    cache_hit: Duration,
    cache_miss: Duration,
}

#[derive(Serialize)]
struct Duration {
    count: u64,
    ns: u64,
}

impl From<Total> for Duration {
    fn from(total: Total) -> Self {
        Self { count: total.count, ns: total.nanos }
    }
}

impl<'a> From<&'a ServedModel> for VersionStatistics<'a> {
    fn from(model: &'a ServedModel) -> Self {
        let Counted { success, fail, queue, input, infer, output, rows, last } = model.statistics.counted();
        Self {
            name: model.facts.name.as_str(),
            version: model.facts.rank.to_string(),
            last_inference: last,
            inference_count: rows,
            execution_count: success.count,
            inference_stats: InferenceStatistics {
                success: success.into(),
                fail: fail.into(),
                queue: queue.into(),
                compute_input: input.into(),
                compute_infer: infer.into(),
                compute_output: output.into(),
                // Nothing is answered from a cache.
                cache_hit: Total::default().into(),
                cache_miss: Total::default().into(),
            },
            batch_stats: [],
            memory_usage: [],
        }
    }
}

/// The versions whose statistics are asked for: of one model or of all, each with the one before, while that is warm.
pub fn counted(http: &Http, snapshot: &Snapshot, named: Option<&Named>) -> Result<Vec<Arc<ServedModel>>, Problem> {
    let mut models = match named {
        Some(named) if named.version.as_ref().is_some_and(|version| !version.is_empty()) => {
            return Ok(vec![find(http, snapshot, named)?]);
        }
        Some(named) => vec![find(http, snapshot, named)?],
        None => snapshot.models.values().cloned().collect(),
    };
    models.sort_unstable_by(|a, b| a.facts.name.cmp(&b.facts.name));
    let with_previous = |model: Arc<ServedModel>| {
        let previous = snapshot.previous(model.facts.name.as_str());
        std::iter::once(model).chain(previous)
    };
    Ok(models.into_iter().flat_map(with_previous).collect())
}

/// What a model has answered.
pub(super) async fn statistics(State(http): State<Arc<Http>>, named: Named) -> Result<Response, Problem> {
    let models = counted(&http, &http.serving.snapshot(), Some(&named))?;
    Ok(answer(ModelStatistics { model_stats: models.iter().map(|model| model.as_ref().into()).collect() }))
}

/// What all models have answered.
pub(super) async fn all_statistics(State(http): State<Arc<Http>>) -> Result<Response, Problem> {
    let models = counted(&http, &http.serving.snapshot(), None)?;
    Ok(answer(ModelStatistics { model_stats: models.iter().map(|model| model.as_ref().into()).collect() }))
}

/// JSON that is not to be kept.
pub(super) fn answer(body: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}
