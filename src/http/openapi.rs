//! `GET /openapi.json`: the interface as OpenAPI 3.1, with the schema of each model that is served.
//!
//! What is answered is described by its own types (`schemars`), what may be asked by the table in [`paths`], which a test
//! holds against the router, and what a model takes and gives by its signature.
#![expect(clippy::needless_pass_by_value, reason = "a schema is put together from parts that are made for it")]

mod model;
mod parts;
mod paths;
mod v2;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use tokio::task::spawn_blocking;

use super::Http;
use super::problem::Problem;
use super::state::is_current;
use crate::id::{Digest, ModelName};
use crate::serving::Snapshot;

/// How many models are described one by one; the others are served by `/predict/{model}` all the same.
const MODELS: usize = 100;
/// What the whole document has room for: what is wider is described without names.
const ROOM: model::Room = model::Room { features: 5_000, tensors: 1_000 };

/// The document as it was last made: it changes with what is served.
#[derive(Default)]
pub(super) struct Kept(pub(super) Arc<tokio::sync::Mutex<Option<Document>>>);

#[derive(Clone)]
pub(super) struct Document {
    /// Of which snapshot.
    generation: u64,
    json: Bytes,
    etag: HeaderValue,
}

/// What the document depends on besides the snapshot.
#[derive(Clone, Default)]
pub(super) struct Facts {
    /// The model that is meant where none is named.
    pub(super) default_model: Option<ModelName>,
    /// Whether commands are taken, and on which port, if that is another.
    pub(super) admin: Option<Option<u16>>,
    /// How that port is reached.
    pub(super) scheme: &'static str,
}

/// The document.
pub(super) async fn document(State(http): State<Arc<Http>>, headers: HeaderMap) -> Result<Response, Problem> {
    // Made once a generation: whoever asks meanwhile waits for it.
    let mut kept = Arc::clone(&http.document.0).lock_owned().await;
    let snapshot = http.serving.snapshot();
    let document = match kept.as_ref().filter(|kept| kept.generation == snapshot.generation).cloned() {
        Some(document) => {
            drop(kept);
            document
        }
        None => {
            let port = http.admin_listen().map(|address| address.port());
            let scheme = if http.config.connections.tls.is_some() { "https" } else { "http" };
            let (default_model, admin) = (http.config.default_model.clone(), http.admin.as_ref().map(|_| port));
            let facts = Facts { default_model, admin, scheme };
            // The lock goes along: it is made to its end even if nobody waits any more, and none beside it.
            let made = spawn_blocking(move || kept.insert(Document::new(&snapshot, &facts)).clone());
            made.await.map_err(|_| Problem::internal())?
        }
    };
    let mut response = if is_current(&headers, &document.etag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], document.json).into_response()
    };
    response.headers_mut().insert(header::ETAG, document.etag);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

impl Document {
    fn new(snapshot: &Snapshot, facts: &Facts) -> Self {
        let json: Bytes = serde_json::to_vec(&describe(snapshot, facts)).expect("a JSON value is JSON").into();
        let digest = Digest::of(&json).to_string();
        let etag = format!("\"{}\"", digest.get(..32).unwrap_or_default());
        let etag = HeaderValue::try_from(etag).expect("hex digits are visible ASCII");
        Self { generation: snapshot.generation, json, etag }
    }
}

/// The whole document.
pub(super) fn describe(snapshot: &Snapshot, facts: &Facts) -> Value {
    let mut models: Vec<_> = snapshot.models.values().collect();
    models.sort_unstable_by(|a, b| a.facts.name.cmp(&b.facts.name));
    let left_out = models.len().saturating_sub(MODELS);
    models.truncate(MODELS);

    let mut generator = generator();
    let mut examples = HashMap::new();
    let (mut own, mut of_models) = (Map::new(), Map::new());
    let mut room = ROOM;
    for served in &models {
        let name = served.facts.name.as_str();
        let rows = format!("{name}.rows");
        let reference = format!("#/components/schemas/{rows}");
        let described = model::Described::new(served.model.signature(), &reference, &mut room);
        own.insert(
            format!("/predict/{name}"),
            json!({ "post": paths::own_predict(&mut generator, served, &described) }),
        );
        own.insert(format!("/v2/models/{name}/infer"), json!({ "post": v2::own_infer(served, &described) }));
        of_models.insert(rows, described.rows);
        examples.insert(name, (described.examples, described.tensors));
    }
    let meant = match (&facts.default_model, models.as_slice()) {
        (Some(name), _) => Some(name.as_str()),
        (None, [only]) => Some(only.facts.name.as_str()),
        (None, _) => None,
    };
    let first = models.first().map(|first| (first.facts.name.as_str(), first.facts.rank.to_string()));
    let of = |name: &str| examples.get(name).map(|(bodies, _)| bodies);
    let shown = paths::Shown {
        default: meant.and_then(of),
        named: first.as_ref().and_then(|(name, _)| Some((*name, of(name)?))),
    };
    let in_protocol = first.as_ref().map(|(name, version)| v2::Shown {
        name,
        version: version.clone(),
        inputs: examples.get(name).and_then(|(_, inputs)| inputs.as_ref()),
    });
    let mut paths = paths::fixed(&mut generator, &shown, facts);
    paths.extend(v2::fixed(facts, in_protocol.as_ref()));
    paths.extend(own);

    let mut schemas = generator.take_definitions(true);
    schemas.extend(parts::schemas());
    schemas.extend(v2::schemas());
    schemas.extend(of_models);
    let more = match left_out {
        0 => String::new(),
        more => format!(" {more} more models are served than are described here."),
    };
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "hotserve",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "States and models that are replaced while they are served",
            "description": format!(
                "A request is answered from one snapshot: state, model and version headers belong together. HEAD works \
                 where GET does. A path answers methods that it does not take with 405, and what is at no path with 404, \
                 as application/problem+json.{more}"
            ),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        // Wherever this document lies, the interface lies beside it.
        "servers": [{ "url": "./" }],
        "tags": parts::tags(facts.admin.is_some()),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": parts::headers(),
            "securitySchemes": parts::security_schemes(),
        },
    })
}

/// Makes schemas of what is written, with the shared ones among the components.
fn generator() -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    settings.for_serialize().into_generator()
}
