//! `POST /v2/models/{model}[/versions/{version}]/infer`.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::time::{Instant, timeout_at};

use super::super::body::Inputs;
use super::super::min_version::MinVersion;
use super::super::predict::{MODEL_DIGEST, MODEL_NAME, MODEL_VERSION, counted};
use super::super::problem::Problem;
use super::super::trace::request_id;
use super::super::upload::read;
use super::super::{Http, inference};
use super::encoding::{Encoding, plain};
use super::models::{Named, chosen};
use super::request::{self, Error, Output};
use super::response::{Head, Written, empty, write};
use crate::serving::ServedModel;

/// Answers up to this are compressed where they are given: at some 100 MB/s that is less than 200 µs.
const INLINE_DEFLATE: usize = 16 << 10;
/// Where the JSON of a body ends, if bytes follow it.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Answers with the model's outputs.
pub(super) async fn infer(State(http): State<Arc<Http>>, named: Named, request: Request) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    counted(&http, answer(&http, &named, &head, body).await)
}

/// What an answer needs of the request besides the inputs.
struct Plan {
    id: String,
    outputs: Vec<Output>,
}

async fn answer(http: &Http, named: &Named, head: &Parts, body: Body) -> Result<Response, Problem> {
    let deadline = Instant::now() + http.config.request_timeout;
    let encoding = Encoding::of(&head.headers)?;
    let accepted = Encoding::accepted(&head.headers);
    let wanted = MinVersion::of(&head.headers, http)?;
    let json_length = head.headers.get(JSON_LENGTH).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let limit = http.config.body_limit;
    let body = body_in_time(http, deadline, body, limit).await?;

    // Taken now: an upload that took long is answered by what is served at its end, and held nothing meanwhile.
    let model = chosen(http, wanted, deadline, named).await?;

    // How large a compressed body becomes shows only when it is: not on this thread.
    let size = if encoding.is_some() { usize::MAX } else { body.len() };
    let plan = Arc::new(OnceLock::new());
    let planned = Arc::clone(&plan);
    let fallback = request_id(&head.headers);
    let parse = move |model: &ServedModel| {
        let body = plain(encoding, body, limit)?;
        let asked = request::parse(&body, json_length.as_deref(), model.model.signature(), &model.layout);
        let asked = asked.map_err(problem)?;
        let id = asked.id.unwrap_or_else(|| fallback.to_str().unwrap_or_default().to_owned());
        // It is asked for once.
        let _ = planned.set(Plan { id, outputs: asked.outputs });
        Ok(Inputs { tensors: asked.tensors, rows: asked.rows })
    };
    let done = inference::run(http, &model, deadline, size, parse, move |model, outputs, rows| {
        let Some(Plan { id, outputs: wanted }) = plan.get() else { return Written { bytes: Vec::new(), json: None } };
        let signature = model.model.signature();
        let version = model.facts.rank.to_string();
        let head = Head { name: model.facts.name.as_str(), version: &version, id };
        if rows == 0 {
            write(head, &empty(signature), signature, wanted)
        } else {
            write(head, outputs, signature, wanted)
        }
    })
    .await?;

    let Written { bytes, json } = done.answer;
    let (bytes, encoding) = compressed(http, deadline, accepted, bytes.into()).await;
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    let content_type = if json.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(MODEL_NAME, model.headers.name.clone());
    headers.insert(MODEL_VERSION, model.headers.version.clone());
    headers.insert(MODEL_DIGEST, model.headers.digest.clone());
    if let Some(length) = json {
        headers.insert(JSON_LENGTH, HeaderValue::from(length));
    }
    if let Some(encoding) = encoding {
        headers.insert(header::CONTENT_ENCODING, encoding.name());
    }
    Ok(response)
}

/// The answer as the client accepts it, and how that is compressed, if it is.
///
/// A large one is compressed where it holds up no other request. Where there is no place or no time for that, it goes out
/// as it is.
async fn compressed(
    http: &Http,
    deadline: Instant,
    accepted: Option<Encoding>,
    bytes: Bytes,
) -> (Bytes, Option<Encoding>) {
    let Some(encoding) = accepted else { return (bytes, None) };
    let smaller = if bytes.len() > INLINE_DEFLATE {
        let whole = bytes.clone();
        let deflated = timeout_at(deadline, http.compute.run(move || encoding.deflate(&whole))).await;
        deflated.ok().and_then(Result::ok).flatten()
    } else {
        encoding.deflate(&bytes)
    };
    match smaller {
        Some(smaller) => (smaller.into(), Some(encoding)),
        None => (bytes, None),
    }
}

/// The whole body, if it keeps the limit and arrives in time.
pub(super) async fn body_in_time(http: &Http, deadline: Instant, body: Body, limit: usize) -> Result<Bytes, Problem> {
    timeout_at(deadline, read(&http.bodies, body, limit)).await.map_err(|_| {
        let detail = format!("the body did not arrive within {:?}", http.config.request_timeout);
        Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail)
    })?
}

/// What a client is told of its mistake.
pub(super) fn problem(error: Error) -> Problem {
    match error {
        Error::Bad(detail) => Problem::new(StatusCode::BAD_REQUEST, "bad_input", detail),
        Error::Unsupported(detail) => Problem::new(StatusCode::NOT_IMPLEMENTED, "unsupported", detail),
    }
}
