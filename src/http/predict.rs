//! `POST /predict`: body → tensors → [`Model::infer`](hotserve_models::Model::infer) → bytes.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use hotserve_models::Tensor;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::time::timeout_at;

use super::body::{Error, Inputs, csv, list, parse, plain};
use super::min_version::MinVersion;
use super::problem::Problem;
use super::{Http, answer, inference, state, upload};
use crate::id::{ModelName, Slot, StateKey};
use crate::serving::{ServedModel, Snapshot};
use crate::status::Readiness;

pub(super) const MODEL_NAME: HeaderName = HeaderName::from_static("x-model-name");
pub(super) const MODEL_VERSION: HeaderName = HeaderName::from_static("x-model-version");
pub(super) const MODEL_DIGEST: HeaderName = HeaderName::from_static("x-model-digest");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Predicts with the model that is meant where none is named.
pub(super) async fn by_default(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    answer(&http, None, &head.headers, body).await
}

/// Predicts with the named model.
pub(super) async fn by_name(
    State(http): State<Arc<Http>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Path(name) = name.or_else(|rejection| {
        let detail = format!("the model's name is no text: {}", rejection.body_text());
        counted(&http, Err(Problem::new(StatusCode::BAD_REQUEST, "bad_path", detail)))
    })?;
    let (head, body) = request.into_parts();
    answer(&http, Some(&name), &head.headers, body).await
}

/// Predicts with the named model, or the one that is meant where none is.
pub(super) async fn answer<B>(
    http: &Http,
    name: Option<&str>,
    headers: &HeaderMap,
    body: B,
) -> Result<Response, Problem>
where
    B: HttpBody<Data = Bytes, Error: Display> + Unpin,
{
    counted(http, predict(http, name, headers, body).await)
}

/// Counts a prediction not given, by its cause.
pub(super) fn counted<T>(http: &Http, answer: Result<T, Problem>) -> Result<T, Problem> {
    answer.inspect_err(|problem| count(http, problem.code))
}

/// Counts a prediction that ended in a problem of this code.
pub(super) fn count(http: &Http, code: &str) {
    let cause = match code {
        "model_not_found" | "model_required" | "model_reloading" | "not_ready" | "version_not_served" => "no_model",
        "inference_failed" | "internal" => "failed",
        "overloaded" | "timeout" => "overloaded",
        _ => "bad_input",
    };
    http.metrics.predict_errors.get(&[cause]).increment(1);
}

async fn predict<B>(http: &Http, name: Option<&str>, headers: &HeaderMap, body: B) -> Result<Response, Problem>
where
    B: HttpBody<Data = Bytes, Error: Display> + Unpin,
{
    let deadline = tokio::time::Instant::now() + http.config.request_timeout;
    let wanted = MinVersion::of(headers, http)?;
    let body =
        timeout_at(deadline, upload::read(&http.bodies, body, http.config.body_limit)).await.map_err(|_| {
            let detail = format!("the body did not arrive within {:?}", http.config.request_timeout);
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
        })??;

    // Taken now: an upload that took long is answered by what is served at its end, and held nothing meanwhile.
    let snapshot = match wanted {
        None => http.serving.snapshot(),
        Some(wanted) => {
            let find = |snapshot: &Snapshot| {
                let facts = &choose(snapshot, name, http).ok()?.facts;
                Some((Slot::Model(facts.name.clone()), facts.rank.clone()))
            };
            wanted.snapshot(http, deadline, find).await?
        }
    };
    let model = Arc::clone(choose(&snapshot, name, http)?);
    let state_version = snapshot.state(StateKey::DEFAULT).map(|state| state.version.clone());
    drop(snapshot);

    let (size, csv) = (body.len(), csv::announced(headers));
    let done = inference::run(http, &model, deadline, size, move |model| parse_body(model, &body, csv), write).await?;

    // Room for all of them, so that it is taken once.
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(MODEL_NAME, model.headers.name.clone());
    headers.insert(MODEL_VERSION, model.headers.version.clone());
    headers.insert(MODEL_DIGEST, model.headers.digest.clone());
    if let Some(version) = state_version {
        headers.insert(state::VERSION, version);
    }
    headers.insert(SERVER_TIMING, server_timing(done.parse, done.infer));
    let mut response = Response::new(Body::from(done.answer));
    *response.headers_mut() = headers;
    Ok(response)
}

/// The model that a request means.
pub(super) fn choose<'s>(
    snapshot: &'s Snapshot,
    name: Option<&str>,
    http: &Http,
) -> Result<&'s Arc<ServedModel>, Problem> {
    let models = &snapshot.models;
    let wanted = name.or(http.config.default_model.as_ref().map(ModelName::as_str));
    let found = match wanted {
        Some(name) => snapshot.model(name),
        None if models.len() + snapshot.reloading.len() == 1 => models.values().next(),
        None => None,
    };
    if let Some(model) = found {
        return Ok(model);
    }
    let reloading = |name: &ModelName| wanted.map_or(models.is_empty(), |wanted| name.as_str() == wanted);
    if snapshot.reloading.iter().any(reloading) {
        let detail = "the model is being replaced by a version that does not fit beside it: send the request again";
        return Err(Problem::unavailable("model_reloading", detail));
    }
    if models.is_empty() && http.status.readiness() != Readiness::Ready {
        return Err(Problem::unavailable("not_ready", "there is no model yet, and the server is not ready"));
    }
    let mut names: Vec<&str> = models.keys().map(ModelName::as_str).collect();
    names.sort_unstable();
    let known = if names.is_empty() { "none".to_owned() } else { list(&names) };
    Err(match wanted {
        Some(name) => {
            let name: String = name.chars().take(64).collect();
            let detail = format!("there is no model {name:?}; there is {known}");
            Problem::new(StatusCode::NOT_FOUND, "model_not_found", detail)
        }
        None if names.is_empty() => Problem::new(StatusCode::NOT_FOUND, "model_not_found", "there is no model"),
        None => {
            let detail = format!("there are several models, name one as /predict/{{model}}: {known}");
            Problem::new(StatusCode::BAD_REQUEST, "model_required", detail)
        }
    })
}

/// Whatever a body's content type says, it is JSON, unless that is CSV: curl calls everything a form.
fn parse_body(model: &ServedModel, body: &[u8], csv: Option<csv::Names>) -> Result<Inputs, Problem> {
    let (signature, layout) = (model.model.signature(), &model.layout);
    let (read, code, kind) = match csv {
        Some(names) => (csv::parse(body, names, signature, layout), "bad_csv", "CSV"),
        None => {
            if model.plain
                && let Some(inputs) = plain::parse(body, signature, layout)
            {
                return Ok(inputs);
            }
            (parse(body, signature, layout), "bad_json", "JSON")
        }
    };
    read.map_err(|error| match error {
        Error::Syntax(detail) => {
            Problem::new(StatusCode::BAD_REQUEST, code, format!("the body is no {kind}: {detail}"))
        }
        Error::Mismatch(detail) => inference::bad_input(detail),
    })
}

fn write(model: &ServedModel, outputs: &[Tensor], rows: usize) -> Vec<u8> {
    if rows == 0 {
        return [b"{\"predictions\":[]", model.answer_tail.as_ref()].concat();
    }
    answer::write(outputs, model.model.signature(), rows, &model.answer_tail)
}

/// `parse;dur=0.021, infer;dur=0.113`, in milliseconds.
fn server_timing(parse: Duration, infer: Duration) -> HeaderValue {
    let mut text = Vec::with_capacity(40);
    text.extend_from_slice(b"parse;dur=");
    milliseconds(&mut text, parse);
    text.extend_from_slice(b", infer;dur=");
    milliseconds(&mut text, infer);
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("letters and digits are visible ASCII")
}

/// With three decimals. By hand: the standard library's exact floats cost as much as a small model.
fn milliseconds(text: &mut Vec<u8>, duration: Duration) {
    let micros = (duration.as_nanos() + 500) / 1000;
    if micros >= 1000 {
        text.extend_from_slice((micros / 1000).to_string().as_bytes());
    } else {
        text.push(b'0');
    }
    text.push(b'.');
    text.extend([100, 10, 1].map(|place| b'0' + u8::try_from(micros / place % 10).unwrap_or(0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timing_is_in_milliseconds_with_three_decimals() {
        for (nanos, text) in
            [(0, "0.000"), (499, "0.000"), (21_400, "0.021"), (999_500, "1.000"), (12_345_678, "12.346")]
        {
            let mut written = Vec::new();
            milliseconds(&mut written, Duration::from_nanos(nanos));
            assert_eq!(String::from_utf8(written).expect("ASCII"), text);
        }
        let timing = server_timing(Duration::from_micros(21), Duration::from_micros(113));
        assert_eq!(timing, "parse;dur=0.021, infer;dur=0.113");
    }
}
