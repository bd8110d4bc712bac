//! What operations are put together from.

use serde_json::{Map, Value, json};

/// What the version of a slot can be.
const MAX_VERSION: u64 = (1 << 53) - 1;
/// As a person writes a length of time.
const DURATION: &str = r"^[0-9]{1,6}(\.[0-9]{1,6})?(us|ms|s|m|h|d)$";
/// The names of models, and the keys of states.
pub(super) const NAME: &str = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";

/// What may stand in an answer besides its body. Each is there whenever an answer lists it, but for `x-state-version`
/// beside a prediction.
const HEADERS: &[(&str, &str)] = &[
    ("x-request-id", "The request's own, where it was fit for a log, else a new one"),
    ("etag", "What If-None-Match compares"),
    ("x-state-version", "The version of the state, or the sequence number of its message, where that had none"),
    ("x-model-name", "Which model answered"),
    ("x-model-version", "Its version, or the sequence number of its message, where that had none"),
    ("x-model-digest", "sha256: and the digest of its artifact"),
    ("server-timing", "Milliseconds of parsing and of inference: parse;dur=0.021, infer;dur=0.113"),
    ("retry-after", "Seconds"),
    ("www-authenticate", "How to present the token"),
    ("content-security-policy", "What the page may load: nothing from elsewhere"),
    ("vary", "What else the answer depends on"),
];

/// Every header that answers have.
pub(super) fn headers() -> Value {
    let header = |(name, text): &(&str, &str)| {
        let schema = match *name {
            "retry-after" => json!({ "type": "integer", "minimum": 0 }),
            _ => json!({ "type": "string" }),
        };
        ((*name).to_owned(), json!({ "description": text, "required": true, "schema": schema }))
    };
    Value::Object(HEADERS.iter().map(header).collect())
}

/// The headers of an answer: these, and the id that all have.
pub(super) fn with_headers(names: &[&str]) -> Value {
    let names = ["x-request-id"].iter().chain(names);
    let header = |name: &&str| ((*name).to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }));
    Value::Object(names.map(header).collect())
}

/// The groups of operations, in the order in which they are shown.
pub(super) fn tags(admin: bool) -> Value {
    let tag = |name: &str, text: &str| json!({ "name": name, "description": text });
    let mut tags = vec![
        tag("models", "Predictions from the models that are served now, each by its own signature"),
        tag("predict", "Predictions, whatever the model"),
        tag("v2", "The Open Inference Protocol; every failure is {\"error\"}"),
        tag("state", "The states, as the last message brought them"),
        tag("watch", "What is served, and what happens"),
        tag("health", "For orchestrators and Prometheus"),
        tag("pages", "For people"),
    ];
    if admin {
        tags.push(tag("admin", "Commands, for who has the token"));
    }
    Value::Array(tags)
}

pub(super) fn security_schemes() -> Value {
    json!({ "token": { "type": "http", "scheme": "bearer", "description": "The server's --admin-token" } })
}

/// The elements of tensors, as JSON has them.
pub(super) fn schemas() -> Map<String, Value> {
    let double = f64::MAX;
    let float = f64::from(f32::MAX);
    let schemas = json!({
        "BOOL": { "type": "boolean" },
        "INT32": { "type": "integer", "format": "int32", "minimum": i32::MIN, "maximum": i32::MAX },
        "INT64": { "type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX },
        "FP32": {
            "description": "null is NaN",
            "type": ["number", "null"], "format": "float", "minimum": -float, "maximum": float,
        },
        "FP64": {
            "description": "null is NaN",
            "type": ["number", "null"], "format": "double", "minimum": -double, "maximum": double,
        },
        "BYTES": { "description": "UTF-8", "type": "string" },
    });
    match schemas {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    }
}

/// An operation: what it is, what it takes, and its answers.
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) tag: &'static str,
    pub(super) summary: String,
    pub(super) description: String,
    pub(super) parameters: Vec<Value>,
    pub(super) body: Option<Value>,
    pub(super) answers: Vec<(u16, Value)>,
}

impl Operation {
    pub(super) fn new(id: &str, tag: &'static str, summary: &str, answers: Vec<(u16, Value)>) -> Self {
        let (id, summary) = (id.to_owned(), summary.to_owned());
        Self { id, tag, summary, description: String::new(), parameters: Vec::new(), body: None, answers }
    }
}

impl From<Operation> for Value {
    fn from(operation: Operation) -> Self {
        let Operation { id, tag, summary, description, parameters, body, answers } = operation;
        let answers: Map<_, _> = answers.into_iter().map(|(status, answer)| (status.to_string(), answer)).collect();
        let mut value = json!({ "operationId": id, "tags": [tag], "summary": summary, "responses": answers });
        if !description.is_empty() {
            value["description"] = description.into();
        }
        if !parameters.is_empty() {
            value["parameters"] = parameters.into();
        }
        if let Some(body) = body {
            value["requestBody"] = body;
        }
        value
    }
}

/// An answer with a body of this type.
pub(super) fn content(text: &str, media_type: &str, schema: &Value, headers: &[&str]) -> Value {
    json!({
        "description": text,
        "headers": with_headers(headers),
        "content": { media_type: { "schema": schema } },
    })
}

/// What the client has is still so.
pub(super) fn unchanged(headers: &[&str]) -> (u16, Value) {
    (304, json!({ "description": "What the client has is still so", "headers": with_headers(headers) }))
}

/// Every failure that an operation can have, by status and `code`.
pub(super) fn problems(causes: &[(u16, &[&str])]) -> Vec<(u16, Value)> {
    let answer = |(status, codes): &(u16, &[&str])| {
        let reason = http::StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
        let text = format!("{}: {}", reason.unwrap_or_default(), codes.join(", "));
        let only = json!({ "properties": { "status": { "const": status }, "code": { "enum": codes } } });
        let schema = json!({ "allOf": [{ "$ref": "#/components/schemas/Problem" }, only] });
        let headers: &[&str] = if *status == 401 { &["www-authenticate"] } else { &[] };
        (*status, content(&text, "application/problem+json", &schema, headers))
    };
    // A fault of the server's own can happen anywhere.
    let internal: (u16, &[&str]) = (500, &["internal"]);
    let any = causes.iter().all(|(status, _)| *status != 500).then_some(internal);
    causes.iter().chain(any.as_ref()).map(answer).collect()
}

fn parameter(name: &str, place: &str, text: &str, schema: Value) -> Value {
    json!({ "name": name, "in": place, "required": place == "path", "description": text, "schema": schema })
}

pub(super) fn in_path(name: &str, text: &str, schema: Value) -> Value {
    parameter(name, "path", text, schema)
}

pub(super) fn in_query(name: &str, text: &str, schema: Value) -> Value {
    parameter(name, "query", text, schema)
}

pub(super) fn in_headers(name: &str, text: &str, schema: Value) -> Value {
    parameter(name, "header", text, schema)
}

pub(super) fn if_none_match() -> Value {
    let text = "The tag of what the client has: it is not sent again";
    in_headers("if-none-match", text, json!({ "type": "string" }))
}

pub(super) fn wait() -> Value {
    let text = "With If-None-Match: wait so long for something else than the client has, a minute at most; 304 if \
                there is nothing else by then";
    in_query("wait", text, json!({ "type": "string", "pattern": DURATION, "examples": ["30s"] }))
}

pub(super) fn min_version() -> [Value; 2] {
    let version = json!({ "type": "integer", "minimum": 1, "maximum": MAX_VERSION });
    let duration = json!({ "type": "string", "pattern": DURATION, "examples": ["500ms"] });
    [
        in_headers("x-min-version", "The least version that the answer may come from", version),
        in_headers("x-min-version-wait", "How long to wait for it at most, before 412", duration),
    ]
}
