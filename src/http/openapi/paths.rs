//! Every path and method, what it takes, and how it can end.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::Facts;
use super::model::Described;
use super::parts::{
    NAME, Operation, content, if_none_match, in_headers, in_path, in_query, min_version, problems, unchanged, wait,
};
use crate::http::catalog::{Catalog, History, Number};
use crate::http::docs;
use crate::http::health::{Live, Ready};
use crate::http::page;
use crate::http::problem::Body;
use crate::id::StateKey;
use crate::manager::Done;
use crate::serving::ServedModel;
use crate::status::KEPT;

/// Bodies to show where no model is named.
#[derive(Default)]
pub(super) struct Shown<'a> {
    /// For the model that is meant then.
    pub(super) default: Option<&'a Map<String, Value>>,
    /// For a model that can be named.
    pub(super) named: Option<(&'a str, &'a Map<String, Value>)>,
}

/// The paths that are there whatever is served.
pub(super) fn fixed(generator: &mut SchemaGenerator, shown: &Shown<'_>, facts: &Facts) -> Map<String, Value> {
    // Named by every failure.
    generator.subschema_for::<Body<'_>>();
    let mut paths = Map::new();
    let mut get = |path: &str, operation: Operation| {
        paths.insert(path.to_owned(), json!({ "get": Value::from(operation) }));
    };
    get("/state", state(None));
    let mut key = in_path("key", "Which state", json!({ "type": "string", "pattern": NAME }));
    key["example"] = StateKey::DEFAULT.into();
    get("/state/{key}", state(Some(key)));
    get("/models", models(generator));
    get("/history", history(generator));
    get("/events", events());
    for path in ["/livez", "/healthz"] {
        get(path, live(generator, path));
    }
    get("/readyz", ready(generator));
    get("/metrics", metrics());
    get("/", status_page());
    get("/page/{file}", page_file());
    get("/docs", docs_page());
    get("/docs/{file}", docs_file());
    get("/openapi.json", document());
    let mut post = |path: &str, operation: Value| {
        paths.insert(path.to_owned(), json!({ "post": operation }));
    };
    post("/predict", predict(generator, shown.default, None));
    post(
        "/predict/{model}",
        predict(generator, shown.named.map(|(_, examples)| examples), Some(shown.named.map(|(name, _)| name))),
    );
    if let Some(port) = facts.admin {
        let mut command = Value::from(control(generator));
        command["security"] = json!([{ "token": [] }]);
        if let Some(port) = port {
            let host = json!({ "host": { "default": "localhost" } });
            let url = format!("{}://{{host}}:{port}/", facts.scheme);
            command["servers"] =
                json!([{ "url": url, "description": "The port for commands alone", "variables": host }]);
        }
        post("/admin/control", command);
    }
    paths
}

fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn state(key: Option<Value>) -> Operation {
    let headers = &["etag", "x-state-version"];
    let schema = json!({
        "type": "object", "required": ["state"], "properties": { "state": true }, "additionalProperties": false,
    });
    let mut bad = vec!["bad_wait", "bad_min_version"];
    if key.is_some() {
        bad.push("bad_path");
    }
    let mut answers = vec![(200, content("The state", "application/json", &schema, headers)), unchanged(headers)];
    answers.extend(problems(&[
        (400, &bad),
        (404, &["state_not_found"]),
        (412, &["version_not_served"]),
        (503, &["overloaded"]),
    ]));
    let (id, summary) = match key {
        None => ("state", "The default state"),
        Some(_) => ("state_of_key", "The state of a key"),
    };
    let parameters = key.into_iter().chain([wait(), if_none_match()]).chain(min_version()).collect();
    Operation { parameters, ..Operation::new(id, "state", summary, answers) }
}

fn predict(
    generator: &mut SchemaGenerator,
    examples: Option<&Map<String, Value>>,
    named: Option<Option<&str>>,
) -> Value {
    let request = json!({
        "anyOf": [
            { "type": "object", "properties": {
                "instances": { "description": "The rows, each as a list, an object by name, or a bare value", "type": "array" },
                "inputs": { "description": "All rows, with the row as the first axis", "type": ["array", "object"] },
                "dataframe_records": { "description": "The rows, as pandas writes them", "type": "array" },
                "dataframe_split": { "description": "A table: columns and data", "type": "object" },
            } },
            { "description": "The rows", "type": "array" },
        ],
    });
    let answer = answer(generator, json!({ "type": "array" }), &json!({ "type": "string" }));
    let bad: &[&str] = match named {
        None => &["bad_json", "bad_csv", "body_broken", "bad_min_version", "model_required"],
        Some(_) => &["bad_json", "bad_csv", "body_broken", "bad_min_version", "bad_path"],
    };
    let (id, summary) = match named {
        None => ("predict", "Predict with the default model, or the only one"),
        Some(_) => ("predict_with_model", "Predict with a model, in whatever form it takes"),
    };
    let mut operation = Operation::new(id, "predict", summary, predicted(&answer, bad));
    operation.parameters.extend(min_version());
    operation.body = Some(json!({
        "required": true,
        "content": bodies(request, examples),
    }));
    if let Some(example) = named {
        let mut parameter = in_path("model", "Which model", json!({ "type": "string", "pattern": NAME }));
        if let Some(example) = example {
            parameter["example"] = example.into();
        }
        operation.parameters.push(parameter);
    }
    operation.into()
}

/// A served model's own path.
pub(super) fn own_predict(generator: &mut SchemaGenerator, served: &ServedModel, described: &Described) -> Value {
    let facts = &served.facts;
    let name = facts.name.as_str();
    let predictions = json!({ "type": "array", "items": described.prediction });
    let answer = answer(generator, predictions, &json!({ "const": name }));
    let answers = predicted(&answer, &["bad_json", "bad_csv", "body_broken", "bad_min_version"]);
    let mut operation = Operation::new(&format!("predict.{name}"), "models", &format!("Predict with {name}"), answers);
    let label = facts.label.as_deref().map(|label| format!(" ({label})")).unwrap_or_default();
    operation.description = format!("Version {}{label} is served, of format {}.", facts.rank, facts.format);
    operation.parameters.extend(min_version());
    operation.body = Some(json!({
        "required": true,
        "content": bodies(described.request.clone(), Some(&described.examples)),
    }));
    operation.into()
}

/// As JSON, or as CSV.
fn bodies(schema: Value, examples: Option<&Map<String, Value>>) -> Value {
    let text = "A line of names, then a line a row; with header=absent no names";
    json!({
        "application/json": body(schema, examples),
        "text/csv": { "schema": { "description": text, "type": "string" } },
    })
}

fn body(schema: Value, examples: Option<&Map<String, Value>>) -> Value {
    match examples.filter(|examples| !examples.is_empty()) {
        Some(examples) => json!({ "schema": schema, "examples": examples }),
        None => json!({ "schema": schema }),
    }
}

fn answer(generator: &mut SchemaGenerator, predictions: Value, name: &Value) -> Value {
    let version = reference::<Number>(generator);
    json!({
        "type": "object",
        "required": ["predictions", "model"],
        "properties": {
            "predictions": predictions,
            "model": {
                "description": "What answered",
                "type": "object", "required": ["name", "version"],
                "properties": { "name": name, "version": version },
                "additionalProperties": false,
            },
        },
        "additionalProperties": false,
    })
}

fn predicted(answer: &Value, bad: &[&str]) -> Vec<(u16, Value)> {
    let headers = &["x-model-name", "x-model-version", "x-model-digest", "server-timing"];
    let mut done = content("A prediction for each row", "application/json", answer, headers);
    done["headers"]["x-state-version"] = json!({
        "description": "The version of the default state beside it, where there is one",
        "schema": { "type": "string" },
    });
    let mut answers = vec![(200, done)];
    answers.extend(problems(&[
        (400, bad),
        (404, &["model_not_found"]),
        (408, &["body_timeout"]),
        (412, &["version_not_served"]),
        (413, &["body_too_large"]),
        (422, &["bad_input"]),
        (500, &["inference_failed", "internal"]),
        (503, &["overloaded", "timeout", "not_ready", "model_reloading"]),
    ]));
    answers
}

fn models(generator: &mut SchemaGenerator) -> Operation {
    let schema = reference::<Catalog<'_>>(generator);
    let mut answers = vec![(200, content("Everything, sorted by name", "application/json", &schema, &[]))];
    answers.extend(problems(&[]));
    Operation::new("models", "watch", "Which models and states are served", answers)
}

fn history(generator: &mut SchemaGenerator) -> Operation {
    let schema = reference::<History<'_>>(generator);
    let mut answers = vec![(200, content("The newest first", "application/json", &schema, &[]))];
    answers.extend(problems(&[(400, &["bad_query"])]));
    let limit = json!({ "type": "integer", "minimum": 0, "maximum": KEPT, "default": KEPT });
    Operation {
        parameters: vec![in_query("limit", "How many entries", limit)],
        ..Operation::new("history", "watch", "The last swaps, rejections and commands", answers)
    }
}

fn events() -> Operation {
    let text = "An event for each entry of the history, whose id it has, and `gap` where some are lost. With `pulse` \
                also `server`, which says what does not change, `pulses` with a row for each of the last seconds, and \
                each second a `pulse`: rates and times of requests, readiness, stream, manifest, memory. It does not end";
    let mut answers = vec![(200, content(text, "text/event-stream", &json!({ "type": "string" }), &[]))];
    answers.extend(problems(&[(400, &["bad_last_event_id"]), (503, &["too_many_listeners"])]));
    let id = json!({ "type": "string", "pattern": "^[0-9]{1,18}$" });
    Operation {
        parameters: vec![
            in_headers("last-event-id", "Go on behind this one; 0 is all that is kept", id),
            in_query("pulse", "Say each second how the server does", json!({ "type": "string" })),
        ],
        ..Operation::new("events", "watch", "The history as it happens", answers)
    }
}

fn live(generator: &mut SchemaGenerator, path: &str) -> Operation {
    let schema = reference::<Live>(generator);
    let mut answers = vec![(200, content("It answers", "application/json", &schema, &[]))];
    answers.extend(problems(&[]));
    Operation::new(path.trim_start_matches('/'), "health", "Whether the process answers", answers)
}

fn ready(generator: &mut SchemaGenerator) -> Operation {
    let schema = reference::<Ready>(generator);
    let mut answers = vec![
        (200, content("Yes", "application/json", &schema, &[])),
        (503, content("Not yet, or no more, and why", "application/json", &schema, &[])),
    ];
    answers.extend(problems(&[]));
    let verbose = in_query("verbose", "Show the stream and the manifest too", json!({ "type": "string" }));
    Operation {
        parameters: vec![verbose],
        ..Operation::new("readyz", "health", "Whether requests should be sent here", answers)
    }
}

fn metrics() -> Operation {
    let text = json!({ "type": "string" });
    let mut answers = vec![(200, content("Prometheus' text format", "text/plain", &text, &[]))];
    answers.extend(problems(&[]));
    Operation::new("metrics", "health", "Everything for Prometheus", answers)
}

fn status_page() -> Operation {
    let headers = ["content-security-policy", "etag", "vary"];
    let text = json!({ "type": "string" });
    let mut answers = vec![(200, content("The page", "text/html", &text, &headers)), unchanged(&headers)];
    answers.extend(problems(&[]));
    Operation { parameters: vec![if_none_match()], ..Operation::new("page", "pages", "The status page", answers) }
}

fn page_file() -> Operation {
    let names: Vec<&str> = page::files().collect();
    Operation {
        parameters: vec![in_path("file", "Which file", json!({ "enum": names })), if_none_match()],
        ..Operation::new(
            "page_file",
            "pages",
            "What the status page is made of",
            files(&["text/javascript", "text/css"]),
        )
    }
}

fn docs_page() -> Operation {
    let text = json!({ "type": "string" });
    let mut answers = vec![(200, content("The page", "text/html", &text, &["content-security-policy"]))];
    answers.extend(problems(&[]));
    Operation::new("docs", "pages", "The page that shows this document", answers)
}

/// A file of a page, of one of these types.
fn files(media_types: &[&str]) -> Vec<(u16, Value)> {
    let headers = ["etag", "vary"];
    let file = |media_type: &&str| ((*media_type).to_owned(), json!({ "schema": { "type": "string" } }));
    let mut found = content("The file", "text/plain", &json!({ "type": "string" }), &headers);
    found["content"] = Value::Object(media_types.iter().map(file).collect());
    let mut answers = vec![(200, found), unchanged(&headers)];
    answers.extend(problems(&[(404, &["not_found"])]));
    answers
}

fn docs_file() -> Operation {
    let names: Vec<&str> = docs::files().collect();
    let answers = files(&["text/javascript", "text/css", "text/plain"]);
    Operation {
        parameters: vec![in_path("file", "Which file", json!({ "enum": names })), if_none_match()],
        ..Operation::new("docs_file", "pages", "What the page is made of, licences included", answers)
    }
}

fn document() -> Operation {
    let mut answers = vec![
        (200, content("OpenAPI 3.1", "application/json", &json!({ "type": "object" }), &["etag"])),
        unchanged(&["etag"]),
    ];
    answers.extend(problems(&[]));
    Operation {
        parameters: vec![if_none_match()],
        ..Operation::new("openapi", "pages", "This document: it changes with what is served", answers)
    }
}

fn control(generator: &mut SchemaGenerator) -> Operation {
    let done = reference::<Done>(generator);
    let mut answers = vec![
        (200, content("It is so", "application/json", &done, &[])),
        (202, content("It is being made ready, or waited for", "application/json", &done, &[])),
    ];
    answers.extend(problems(&[
        (400, &["bad_control", "body_broken"]),
        (401, &["unauthorized"]),
        (404, &["no_slot"]),
        (408, &["body_timeout"]),
        (409, &["nothing_to_go_back_to", "barred", "overruled"]),
        (413, &["body_too_large"]),
        (503, &["disk", "stopping", "timeout"]),
    ]));
    let name = json!({ "type": "string", "pattern": NAME });
    let version = json!({ "type": "integer", "minimum": 1, "maximum": (1_u64 << 53) - 1 });
    let digest = json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" });
    // A field that is null is as good as none.
    let none = json!({ "type": "null" });
    let given = |field: &str| if field == "version" { "integer" } else { "string" };
    let one_of = |these: [&str; 2], more: &str| {
        let fields = these.map(|field| {
            (field.to_owned(), if field == more { json!({ "type": given(field) }) } else { none.clone() })
        });
        json!({ "required": [more], "properties": Map::from_iter(fields) })
    };
    let action = |actions: &[&str], rest: Value| json!({ "allOf": [{ "required": ["action"], "properties": { "action": { "enum": actions } } }, rest] });
    let schema = json!({
        "type": "object",
        "properties": {
            "action": { "enum": ["pin", "unpin", "rollback", "revoke"] },
            "model": { "description": "Which model", "anyOf": [name, none] },
            "key": { "description": "Or which state", "anyOf": [name, none] },
            "version": { "anyOf": [version, none] },
            "sha256": { "description": "Of the artifact that is never to be served", "anyOf": [digest, none] },
        },
        "allOf": [
            { "oneOf": [one_of(["model", "key"], "model"), one_of(["model", "key"], "key")] },
            { "oneOf": [
                action(&["pin", "rollback"], json!({ "properties": { "sha256": none } })),
                action(&["unpin"], json!({ "properties": { "sha256": none, "version": none } })),
                action(&["revoke"], one_of(["version", "sha256"], "version")),
                action(&["revoke"], one_of(["version", "sha256"], "sha256")),
            ] },
        ],
        "additionalProperties": false,
    });
    let examples = json!({
        "rollback": { "summary": "Take it back", "value": { "action": "rollback", "model": "iris" } },
        "pin": { "summary": "Hold it", "value": { "action": "pin", "model": "iris", "version": 1 } },
        "unpin": { "summary": "Follow the stream again", "value": { "action": "unpin", "model": "iris" } },
    });
    Operation {
        body: Some(json!({
            "required": true,
            "content": { "application/json": { "schema": schema, "examples": examples } },
        })),
        ..Operation::new("control", "admin", "Tell a slot what to serve", answers)
    }
}
