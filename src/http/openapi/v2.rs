//! The paths of the Open Inference Protocol. Its bodies are the protocol's, which fixes them.

use serde_json::{Map, Value, json};

use super::Facts;
use super::model::Described;
use super::parts::{NAME, Operation, content, in_headers, in_path, min_version};
use crate::serving::ServedModel;

/// Every failure of the protocol: its statuses, and one body.
fn errors(statuses: &[u16]) -> Vec<(u16, Value)> {
    let schema = json!({ "$ref": "#/components/schemas/ProtocolError" });
    let all = statuses.iter().chain(if statuses.contains(&500) { &[][..] } else { &[500] });
    let answer = |status: &u16| {
        let reason = http::StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
        let headers: &[&str] = if *status == 401 { &["www-authenticate"] } else { &[] };
        (*status, content(reason.unwrap_or_default(), "application/json", &schema, headers))
    };
    all.map(answer).collect()
}

/// The schemas that the paths refer to.
pub(super) fn schemas() -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let count = json!({ "type": "integer", "minimum": 0 });
    let shape = json!({ "type": "array", "items": { "type": "integer", "minimum": -1 } });
    let object = |fields: Value| {
        let names: Vec<String> = fields.as_object().into_iter().flat_map(Map::keys).cloned().collect();
        json!({ "type": "object", "required": names, "properties": fields })
    };
    let total = object(json!({ "count": count, "ns": count }));
    let totals =
        ["success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"];
    let totals: Map<String, Value> = totals.into_iter().map(|name| (name.to_owned(), total.clone())).collect();
    let tensor = json!({ "type": "array", "items": object(json!({
        "name": text, "datatype": { "enum": DATATYPES }, "shape": shape,
    })) });
    let parameters = json!({ "type": "object" });
    let mut index_row =
        object(json!({ "name": text, "state": { "enum": ["READY", "LOADING", "UNAVAILABLE"] }, "reason": text }));
    index_row["properties"]["version"] = text.clone();
    let mut inferred = object(json!({ "name": text, "datatype": { "enum": DATATYPES }, "shape": shape }));
    inferred["properties"]["data"] = json!({ "description": "Flat; null is NaN", "type": "array" });
    inferred["properties"]["parameters"] = parameters.clone();
    let mut asked = inferred.clone();
    asked["properties"]["data"] = json!({ "description": "Flat, or nested as the shape is", "type": "array" });
    asked["properties"]["shape"] = json!({ "type": "array", "items": count });
    let output = json!({
        "type": "object", "required": ["name"],
        "properties": { "name": text, "parameters": parameters },
    });
    let schemas = json!({
        "ProtocolError": {
            "type": "object", "required": ["error"], "properties": { "error": text }, "additionalProperties": false,
        },
        "ServerMetadata": object(json!({ "name": text, "version": text, "extensions": { "type": "array", "items": text } })),
        "ServerLive": object(json!({ "live": { "type": "boolean" } })),
        "ServerReady": object(json!({ "ready": { "type": "boolean" } })),
        "ModelNames": object(json!({ "models": { "type": "array", "items": text } })),
        "ModelReady": object(json!({ "name": text, "ready": { "type": "boolean" } })),
        "ModelMetadata": object(json!({
            "name": text, "versions": { "type": "array", "items": text }, "platform": text,
            "inputs": tensor, "outputs": tensor,
        })),
        "ModelStatistics": object(json!({ "model_stats": { "type": "array", "items": object(json!({
            "name": text, "version": text, "last_inference": count, "inference_count": count, "execution_count": count,
            "inference_stats": object(Value::Object(totals)),
            "batch_stats": { "type": "array" }, "memory_usage": { "type": "array" },
        })) } })),
        "RepositoryIndex": { "type": "array", "items": index_row },
        "InferenceRequest": {
            "type": "object", "required": ["inputs"],
            "properties": {
                "id": text, "parameters": parameters,
                "inputs": { "type": "array", "items": asked },
                "outputs": { "type": "array", "items": output },
            },
        },
        "InferenceResponse": object(json!({
            "model_name": text, "model_version": text, "id": text,
            "outputs": { "type": "array", "items": inferred },
        })),
    });
    match schemas {
        Value::Object(schemas) => schemas,
        _ => Map::new(),
    }
}

const DATATYPES: [&str; 14] = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64",
    "BYTES",
];

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

/// What is shown where a path names a model.
pub(super) struct Shown<'a> {
    pub(super) name: &'a str,
    pub(super) version: String,
    /// The inputs of a row.
    pub(super) inputs: Option<&'a Value>,
}

/// The paths that are there whatever is served.
pub(super) fn fixed(facts: &Facts, shown: Option<&Shown<'_>>) -> Map<String, Value> {
    let mut paths = Map::new();
    let with_example = |mut parameter: Value, example: Option<&str>| {
        if let Some(example) = example {
            parameter["example"] = example.into();
        }
        parameter
    };
    let unnamed = || in_path("model", "Which model", json!({ "type": "string", "pattern": NAME }));
    let model = || with_example(unnamed(), shown.map(|shown| shown.name));
    let version = || {
        let text = "Which version: the one that is served, or the one before";
        let version = in_path("version", text, json!({ "type": "string", "minLength": 1 }));
        with_example(version, shown.map(|shown| shown.version.as_str()))
    };
    let mut get = |path: &str, id: &str, summary: &str, schema: &str, statuses: &[u16]| {
        let mut answers = vec![(200, content(summary, "application/json", &reference(schema), &[]))];
        answers.extend(errors(statuses));
        let mut operation = Operation::new(id, TAG, summary, answers);
        operation.parameters.extend(path.contains("{model}").then(model));
        operation.parameters.extend(path.contains("{version}").then(version));
        paths.insert(path.to_owned(), json!({ "get": Value::from(operation) }));
    };
    get("/v2", "v2.server", "What the server is", "ServerMetadata", &[]);
    get("/v2/health/live", "v2.live", "Whether the process answers", "ServerLive", &[]);
    get("/v2/health/ready", "v2.ready", "Whether requests should be sent here", "ServerReady", &[503]);
    get("/v2/models", "v2.models", "The names of what is served", "ModelNames", &[]);
    get("/v2/models/stats", "v2.stats", "What all models have answered", "ModelStatistics", &[]);
    let of_model = [
        ("", "metadata", "What a model takes and gives", "ModelMetadata"),
        ("/ready", "ready", "Whether a model would answer", "ModelReady"),
        ("/stats", "stats", "What a model has answered", "ModelStatistics"),
    ];
    for (end, id, summary, schema) in of_model {
        let statuses = &[400, 404, 503];
        get(&format!("/v2/models/{{model}}{end}"), &format!("v2.model.{id}"), summary, schema, statuses);
        let path = format!("/v2/models/{{model}}/versions/{{version}}{end}");
        get(&path, &format!("v2.version.{id}"), &format!("{summary}, by version"), schema, statuses);
    }
    let mut post = |path: &str, operation: Value| {
        paths.insert(path.to_owned(), json!({ "post": operation }));
    };
    let inputs = shown.and_then(|shown| shown.inputs);
    let mut infer = infer("v2.infer", "Infer with a model", &reference("InferenceRequest"), inputs);
    infer.parameters.push(model());
    post("/v2/models/{model}/infer", infer.into());
    let mut infer = self::infer("v2.version.infer", "Infer with a version", &reference("InferenceRequest"), inputs);
    infer.parameters.extend([model(), version()]);
    post("/v2/models/{model}/versions/{version}/infer", infer.into());

    let mut answers = vec![(200, content("Each version", "application/json", &reference("RepositoryIndex"), &[]))];
    answers.extend(errors(&[400, 408, 413]));
    let ready = json!({ "type": "object", "properties": { "ready": { "type": ["boolean", "null"] } } });
    let body = json!({ "required": false, "content": { "application/json": { "schema": ready } } });
    let index = Operation::new("v2.repository.index", TAG, "Which models and versions there are", answers);
    post("/v2/repository/index", Operation { body: Some(body), ..index }.into());
    for (end, summary) in [("load", "Serve the newest of a model again"), ("unload", "Serve a model no more")] {
        let nothing = json!({ "type": "object", "additionalProperties": false });
        let mut answers = vec![(200, content("It is so", "application/json", &nothing, &[]))];
        answers.extend(match facts.admin {
            Some(None) => errors(&[400, 401, 404, 408, 409, 413, 503]),
            // Without a token nobody may, and with a port for commands alone not here.
            None | Some(Some(_)) => errors(&[400, 403]),
        });
        let parameters =
            json!({ "type": "object", "properties": { "parameters": { "type": "object", "maxProperties": 0 } } });
        let mut operation = Value::from(Operation {
            parameters: vec![unnamed()],
            body: Some(json!({ "required": false, "content": { "application/json": { "schema": parameters } } })),
            ..Operation::new(&format!("v2.repository.{end}"), TAG, summary, answers)
        });
        if facts.admin.is_some() {
            operation["security"] = json!([{ "token": [] }]);
        }
        post(&format!("/v2/repository/models/{{model}}/{end}"), operation);
    }
    paths
}

pub(super) const TAG: &str = "v2";

/// A served model's own path.
pub(super) fn own_infer(served: &ServedModel, described: &Described) -> Value {
    let name = served.facts.name.as_str();
    let signature = served.model.signature();
    let count = signature.inputs.len();
    let mut fields = json!({ "inputs": { "minItems": count, "maxItems": count }, "outputs": {} });
    let named = [
        ("inputs", &signature.inputs, described.inputs_named),
        ("outputs", &signature.outputs, described.outputs_named),
    ];
    for (field, specs, _) in named.into_iter().filter(|(.., named)| *named) {
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        fields[field]["items"] = json!({ "properties": { "name": { "enum": names } } });
    }
    let schema = json!({ "allOf": [reference("InferenceRequest"), { "properties": fields }] });
    let summary = format!("Infer with {name}");
    infer(&format!("v2.infer.{name}"), &summary, &schema, described.tensors.as_ref()).into()
}

fn infer(id: &str, summary: &str, schema: &Value, inputs: Option<&Value>) -> Operation {
    let headers = &["x-model-name", "x-model-version", "x-model-digest", "vary"];
    let mut done = content("The outputs", "application/json", &reference("InferenceResponse"), headers);
    done["content"]["application/octet-stream"] = json!({
        "schema": { "description": "JSON, and the bytes of the outputs that were asked for so", "type": "string" },
    });
    let mut answers = vec![(200, done)];
    answers.extend(errors(&[400, 404, 408, 412, 413, 415, 500, 501, 503]));
    let mut json = json!({ "schema": schema });
    if let Some(inputs) = inputs {
        json["examples"] = json!({ "row": { "summary": "A row", "value": { "inputs": inputs } } });
    }
    let length = json!({ "type": "integer", "minimum": 0 });
    let text = "Where the JSON ends, if the bytes of tensors follow it";
    Operation {
        parameters: [in_headers("inference-header-content-length", text, length)]
            .into_iter()
            .chain(min_version())
            .collect(),
        body: Some(json!({ "required": true, "content": { "application/json": json } })),
        ..Operation::new(id, TAG, summary, answers)
    }
}
