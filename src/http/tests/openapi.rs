//! The document says what the server does: its routes, its bodies, its answers.

mod validator;

use std::collections::{BTreeMap, BTreeSet};

use hotserve_models::Data;
use validator::is_valid;

use super::*;

/// Answers rows of zeros, of whatever shape its signature has.
struct Zeros(Signature);

impl Model for Zeros {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = inputs[0].rows();
        let zeros = |spec: &TensorSpec| {
            let lengths = spec.shape.iter().skip(1).map(|dim| match dim {
                Dim::Any => 2,
                Dim::Fixed(length) => *length,
            });
            let shape: Vec<usize> = std::iter::once(rows).chain(lengths).collect();
            let length = shape.iter().product();
            let data = match spec.datatype {
                DataType::Bool => Data::Bool(vec![false; length]),
                DataType::Int32 => Data::Int32(vec![0; length]),
                DataType::Int64 => Data::Int64(vec![0; length]),
                DataType::Fp32 => Data::Fp32(vec![f32::NAN; length]),
                DataType::Fp64 => Data::Fp64(vec![0.0; length]),
                DataType::Bytes => Data::Bytes(vec![String::new(); length]),
            };
            Tensor::new(shape, data).expect("the shape fits")
        };
        Ok(self.0.outputs.iter().map(zeros).collect())
    }

    fn memory_bytes(&self) -> usize {
        1
    }

    fn engine(&self) -> &'static str {
        "zeros"
    }
}

fn spec(name: &str, datatype: DataType, shape: &[i64], features: &[&str]) -> TensorSpec {
    let shape = shape.iter().map(|length| usize::try_from(*length).map_or(Dim::Any, Dim::Fixed)).collect();
    let features = features.iter().map(|name| (*name).to_owned()).collect();
    TensorSpec { name: name.to_owned(), datatype, shape, features }
}

fn zeros(name: &str, inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> ServedModel {
    let facts = model(name, 3, Does::Sum, CHEAP).facts;
    ServedModel::new(facts, Box::new(Zeros(Signature { inputs, outputs })), CHEAP)
}

/// A model of every kind of signature.
fn models() -> Vec<ServedModel> {
    let label = || vec![spec("label", DataType::Int64, &[-1], &[]), spec("p", DataType::Fp32, &[-1, 2], &[])];
    vec![
        model("iris", 3, Does::Sum, CHEAP),
        model("both", 3, Does::Both, CHEAP),
        zeros("scalar", vec![spec("x", DataType::Fp64, &[-1], &[])], label()),
        zeros("unnamed", vec![spec("x", DataType::Fp32, &[-1, 2], &[])], label()),
        zeros(
            "image",
            vec![spec("x", DataType::Int32, &[-1, 2, 3], &[])],
            vec![spec("y", DataType::Bytes, &[-1], &[])],
        ),
        zeros(
            "loose",
            vec![spec("x", DataType::Int64, &[-1, -1], &[])],
            vec![spec("y", DataType::Bool, &[-1, -1], &[])],
        ),
        zeros("text", vec![spec("x", DataType::Bytes, &[-1, 2], &["a", "b \"c\""])], label()),
        zeros(
            "several",
            vec![
                spec("age", DataType::Int32, &[-1, 1], &["age"]),
                spec("on", DataType::Bool, &[-1], &[]),
                spec("pair", DataType::Fp32, &[-1, 2], &["a", "b"]),
            ],
            label(),
        ),
    ]
}

async fn document(server: &Server) -> Value {
    let answer = server.get("/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"), "{}", answer.text());
    answer.json()
}

fn served() -> Server {
    Server::with(vec![state("default", 96, "96")], models(), |config| {
        config.default_model = Some("iris".parse().expect("a name"));
    })
}

/// Every path that is named where the router is made: where a call or a constant begins with one.
fn routes() -> BTreeSet<String> {
    let sources = [include_str!("../../http.rs"), include_str!("../v2.rs")];
    let named = sources.iter().flat_map(|source| source.split("(\"/").chain(source.split("str = \"/")).skip(1));
    let path = |rest: &str| format!("/{}", rest.split('"').next().unwrap_or_default());
    // The first is the second path of the server's metadata, the other what is at no path of the protocol.
    let aside = |path: &String| ["/v2/", "/v2/{*rest}"].contains(&path.as_str());
    named.map(path).filter(|path| path.len() < 100 && !path.contains(char::is_whitespace) && !aside(path)).collect()
}

/// The methods that a path takes, as a method that none takes is told.
async fn methods(server: &Server, route: &str) -> BTreeSet<String> {
    let values = [("{key}", "default"), ("{model}", "iris"), ("{file}", "LICENSE"), ("{version}", "3")];
    let path = values.iter().fold(route.to_owned(), |path, (name, value)| path.replace(name, value));
    let request = Request::builder().method(Method::TRACE).uri(path).body(Body::empty()).expect("a request");
    let answer = server.send(request).await;
    assert_eq!(answer.status, 405, "{route}");
    let named = answer.header("allow").split(',').map(|method| method.trim().to_lowercase());
    named.filter(|method| method != "head").collect()
}

#[tokio::test]
async fn every_route_and_method_is_in_the_document_and_nothing_else() {
    let server = admin::server();
    let mut routes = BTreeMap::new();
    for route in self::routes() {
        let methods = methods(&server, &route).await;
        routes.insert(route, methods);
    }
    let missing = |route: &&&str| !routes.contains_key(**route) && **route != "unmatched";
    assert_eq!(ROUTES.iter().find(missing), None, "each route that is counted was found");
    let document = document(&server).await;
    let paths = document["paths"].as_object().expect("paths");
    let mut described: BTreeMap<String, BTreeSet<String>> = paths
        .iter()
        .map(|(path, methods)| (path.clone(), methods.as_object().expect("methods").keys().cloned().collect()))
        .collect();
    let own: Vec<String> = described.keys().filter(|path| path.contains("/iris")).cloned().collect();
    assert_eq!(own, ["/predict/iris", "/v2/models/iris/infer"]);
    own.iter().for_each(|path| drop(described.remove(path)));
    assert_eq!(described, routes);
    // Without a token there are no commands, and none are described.
    assert!(self::document(&iris()).await["paths"].get("/admin/control").is_none());
}

#[tokio::test]
async fn every_operation_is_whole() {
    let server = admin::server();
    let document = document(&server).await;
    let mut ids = BTreeSet::new();
    let tags: Vec<&Value> = document["tags"].as_array().expect("tags").iter().map(|tag| &tag["name"]).collect();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(ids.insert(id), "{id} comes twice");
            assert!(tags.contains(&&operation["tags"][0]), "{path}");
            assert!(operation["responses"]["500"].is_object(), "{path}");
            assert_eq!(operation["requestBody"].is_object(), method == "post", "{path}");
            let command = path.starts_with("/admin/") || path.starts_with("/v2/repository/models/");
            assert_eq!(operation["security"].is_array(), command, "{path}");
            let placed = operation["parameters"].as_array().into_iter().flatten();
            let in_path: Vec<_> = placed.filter(|parameter| parameter["in"] == "path").collect();
            assert_eq!(in_path.len(), path.matches('{').count(), "{path}");
        }
    }
    // Whatever is referred to is there.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn each_models_examples_fit_its_schema_and_are_answered_as_the_document_says() {
    let server = served();
    let document = document(&server).await;
    let mut tried = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let Some(operation) = methods.get("post") else { continue };
        let media = &operation["requestBody"]["content"]["application/json"];
        if media["examples"].is_null() {
            continue;
        }
        let path = path.replace("{model}", "both").replace("{version}", "3");
        for (form, example) in media["examples"].as_object().expect("examples") {
            let body = &example["value"];
            assert!(is_valid(&document, &media["schema"], body), "{path} {form}: {body}");
            let answer = server.post(&path, body.to_string()).await;
            assert_eq!(answer.status, 200, "{path} {form} {body}: {}", answer.text());
            let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
            assert!(is_valid(&document, schema, &answer.json()), "{path} {form}: {} {schema}", answer.text());
            for (header, _) in operation["responses"]["200"]["headers"].as_object().expect("headers") {
                assert_ne!(answer.header(header), "", "{path}: {header}");
            }
            tried += 1;
        }
    }
    let forms = [4, 4, 1, 1, 1, 1, 4, 2].iter().map(|forms| forms + 1).sum::<usize>();
    assert_eq!(tried, 2 * 4 + 2 + forms, "each form of each model, the protocol's too, and of the general paths");
}

#[tokio::test]
async fn a_body_fits_a_models_schema_just_if_the_model_takes_it() {
    let server = served();
    let document = document(&server).await;
    let mut verdicts = [0, 0];
    let mut wrong = Vec::new();
    let values = [
        "1",
        "0.5",
        "null",
        "true",
        "\"t\"",
        "[1,2]",
        "[1,2,3]",
        "[]",
        "{}",
        r#"{"a":1,"b":2}"#,
        r#"{"a":1}"#,
        r#"{"a":[1],"b":[2]}"#,
        r#"{"x":[1,2]}"#,
        r#"{"x":[[1,2]]}"#,
        r#"{"x":{"a":1,"b":2}}"#,
        r#"{"x":{"a":[1],"b":[2]}}"#,
        r#"{"x":1}"#,
        r#"{"x":[1]}"#,
        "[[1,2,3],[4,5,6]]",
        "[[1,2],[3,4]]",
        r#"["s","t"]"#,
        r#"{"a":"s","b \"c\"":"t"}"#,
        r#"{"age":[1],"on":true,"pair":[1,2]}"#,
        r#"{"age":{"age":1},"on":true,"pair":{"a":1,"b":null}}"#,
        r#"{"age":[[1]],"on":[true],"pair":[[1,2]]}"#,
        r#"{"age":{"age":[1]},"on":[true],"pair":{"a":[1],"b":[2]}}"#,
        r#"{"age":1,"on":true,"pair":[1,2]}"#,
        "[1,true,[1,2]]",
        "[[1],false,[1,null]]",
        r#"{"age":[1],"on":true}"#,
        r#"{"age":[1],"on":1,"pair":[1,2]}"#,
    ];
    for name in ["iris", "both", "scalar", "unnamed", "image", "loose", "text", "several"] {
        let path = format!("/predict/{name}");
        let schema = &document["paths"][&path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        for value in values {
            for body in [
                format!(r#"{{"instances":[{value}],"id":"7"}}"#),
                format!(r#"{{"instances":{value}}}"#),
                format!(r#"{{"inputs":[{value}]}}"#),
                format!(r#"{{"inputs":{value},"parameters":{{}}}}"#),
                format!(r#"{{"inputs":{value},"other":1}}"#),
                format!(r#"{{"rows":{value}}}"#),
                format!(r#"[{value}]"#),
                format!(r#"{{"dataframe_records":[{value}],"params":{{}}}}"#),
                format!(r#"{{"dataframe_records":[{value}],"params":{{"a":1}}}}"#),
                format!(r#"{{"dataframe_split":{{"columns":["b","a"],"data":[{value}],"index":[0]}}}}"#),
                format!(r#"{{"columns":["a","b","b"],"data":[{value}]}}"#),
                format!(r#"{{"columns":["a","b"],"data":[{value}]}}"#),
                format!(r#"{{"dataframe_split":{{"columns":["age","on","pair"],"data":[{value}]}}}}"#),
                r#"{"columns":["a","b"]}"#.to_owned(),
                format!(r#"{{"inputs":{value},"instances":[{value}]}}"#),
                value.to_owned(),
            ] {
                // That a table has as many columns as its rows have values, no schema says.
                if name == "loose" && body.contains("columns") {
                    continue;
                }
                let parsed = serde_json::from_str(&body).expect("JSON");
                let (fits, answer) = (is_valid(&document, schema, &parsed), server.post(&path, body.clone()).await);
                if fits != (answer.status == 200) {
                    wrong.push(format!("{name} {body}: {}", answer.text()));
                }
                verdicts[usize::from(fits)] += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(verdicts.iter().all(|count| *count > 50), "both verdicts come: {verdicts:?}");
}

#[tokio::test]
async fn a_command_fits_the_schema_just_if_it_is_one() {
    let server = admin::server();
    let document = document(&server).await;
    let schema = &document["paths"]["/admin/control"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    let digest = "ab".repeat(32);
    let mut verdicts = [0, 0];
    for action in ["pin", "unpin", "rollback", "revoke", "promote"] {
        for slot in [
            json!({"model": "iris"}),
            json!({"key": "default"}),
            json!({"model": null, "key": "default"}),
            json!({"model": "iris", "key": "default"}),
            json!({"model": null}),
            json!({}),
        ] {
            for what in [
                json!({}),
                json!({"version": 7}),
                json!({"version": null}),
                json!({"version": "7"}),
                json!({"sha256": digest}),
                json!({"sha256": null, "version": 7}),
                json!({"sha256": digest, "version": 7}),
                json!({"sha256": digest, "version": null}),
                json!({"verison": 7}),
            ] {
                let mut body = json!({ "action": action });
                for (name, value) in [&slot, &what].into_iter().flat_map(|part| part.as_object().expect("an object")) {
                    body[name] = value.clone();
                }
                // The manager is gone: what is a command gets as far as that.
                let answer = admin::post(&server.router, Some(&admin::bearer()), &body.to_string()).await;
                assert_eq!(is_valid(&document, schema, &body), answer.status == 503, "{body}: {}", answer.text());
                verdicts[usize::from(answer.status == 503)] += 1;
            }
        }
    }
    assert!(verdicts.iter().all(|count| *count > 20), "both verdicts come: {verdicts:?}");
}

#[tokio::test]
async fn answers_and_failures_are_as_the_document_says() {
    let server = served();
    server.http.status.record(Entry { detail: Some("why".to_owned()), ..Entry::new("rejected", []) });
    let report = ShardReport { behind_ms: 1, last_record_ms: Some(7), via: "poll" };
    server.http.status.stream_shard(&"s-0".parse().expect("a shard"), report);
    let document = document(&server).await;
    let check = async |route: &str, path: &str, body: Option<&str>, expected: u16| {
        let answer = match body {
            Some(body) => server.post(path, body.to_owned()).await,
            None => server.get(path).await,
        };
        assert_eq!(answer.status, expected, "{path}: {}", answer.text());
        let method = if body.is_some() { "post" } else { "get" };
        let described = &document["paths"][route][method]["responses"][expected.to_string()];
        let media_type = answer.header("content-type").split(';').next().unwrap_or_default();
        let schema = &described["content"][media_type]["schema"];
        assert!(schema.is_object() || schema.is_boolean(), "{route} {expected}: {media_type} is not described");
        let body = if media_type.ends_with("json") { answer.json() } else { answer.text().into() };
        assert!(is_valid(&document, schema, &body), "{path}: {body} {schema}");
        for (header, _) in described["headers"].as_object().expect("headers") {
            assert_ne!(answer.header(header), "", "{path}: {header}");
        }
    };
    for route in ["/", "/state", "/models", "/history", "/livez", "/healthz", "/metrics", "/openapi.json", "/docs"] {
        check(route, route, None, 200).await;
    }
    check("/docs/{file}", "/docs/page.css", None, 200).await;
    check("/docs/{file}", "/docs/nope", None, 404).await;
    check("/readyz", "/readyz?verbose", None, 503).await;
    check("/state/{key}", "/state/nope", None, 404).await;
    check("/state", "/state?wait=x", None, 400).await;
    check("/history", "/history?limit=x", None, 400).await;
    for (body, status) in [("{", 400), (r#"{"instances":[[1,2,3]]}"#, 422), (r#"{"instances":[[14,0]]}"#, 500)] {
        check("/predict", "/predict", Some(body), status).await;
        check("/predict/{model}", "/predict/iris", Some(body), status).await;
        check("/predict/iris", "/predict/iris", Some(body), status).await;
    }
    check("/predict/{model}", "/predict/nope", Some("{}"), 404).await;
    for end in ["", "/ready", "/stats"] {
        check(&format!("/v2/models/{{model}}{end}"), &format!("/v2/models/iris{end}"), None, 200).await;
        let (route, path) = ("/v2/models/{model}/versions/{version}", "/v2/models/iris/versions");
        check(&format!("{route}{end}"), &format!("{path}/3{end}"), None, 200).await;
        check(&format!("{route}{end}"), &format!("{path}/4{end}"), None, 404).await;
    }
    for route in ["/v2", "/v2/health/live", "/v2/models", "/v2/models/stats"] {
        check(route, route, None, 200).await;
    }
    check("/v2/health/ready", "/v2/health/ready", None, 503).await;
    check("/v2/repository/index", "/v2/repository/index", Some(""), 200).await;
    check("/v2/repository/models/{model}/load", "/v2/repository/models/iris/load", Some(""), 403).await;
    let infer = "/v2/models/{model}/infer";
    check(infer, "/v2/models/iris/infer", Some("{"), 400).await;
    check("/v2/models/iris/infer", "/v2/models/iris/infer", Some(r#"{"inputs":[]}"#), 400).await;
    check(infer, "/v2/models/nope/infer", Some("{}"), 404).await;
    server.http.status.set_ready();
    check("/readyz", "/readyz?verbose", None, 200).await;
}

#[tokio::test]
async fn the_document_changes_with_what_is_served_and_is_not_sent_twice() {
    let server = iris();
    let first = server.get("/openapi.json").await;
    let etag = first.header("etag").to_owned();
    let known = server.get_if("/openapi.json", &etag).await;
    assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, etag.as_str()));
    assert_eq!((first.header("cache-control"), known.header("cache-control")), ("no-cache", "no-cache"));
    let description = |document: &Value| document["paths"]["/predict/iris"]["post"]["description"].clone();
    assert_eq!(description(&first.json()), "Version 3 (a label) is served, of format test.");
    let next = vec![model("iris", 4, Does::Sum, CHEAP), model("other", 1, Does::Both, CHEAP)];
    server.swapper.swap(server.swapper.snapshot().with(vec![], next));
    let second = server.get_if("/openapi.json", &etag).await;
    assert_eq!(second.status, 200);
    assert_eq!(description(&second.json()), "Version 4 (a label) is served, of format test.");
    assert!(second.json()["paths"]["/predict/other"].is_object());
}

#[tokio::test]
async fn the_document_is_bounded_however_much_is_served() {
    let names: Vec<String> = (0..6_000).map(|index| format!("feature-{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wide = |name: &str, width: usize| {
        let input = spec("x", DataType::Fp32, &[-1, i64::try_from(width).expect("small")], &names[..width]);
        zeros(name, vec![input], vec![spec("y", DataType::Fp32, &[-1], &[])])
    };
    let mut models: Vec<_> = (0..150).map(|index| model(&format!("m-{index:03}"), 1, Does::Sum, CHEAP)).collect();
    models.extend([wide("a-wide", 6_000), wide("b-wide", 4_000)]);
    let server = Server::new(vec![], models);
    let answer = server.get("/openapi.json").await;
    assert!(answer.body.len() < 4 << 20, "{}", answer.body.len());
    let document = answer.json();
    let paths = document["paths"].as_object().expect("paths");
    assert_eq!(paths.keys().filter(|path| path.starts_with("/predict/")).count(), 101);
    assert!(document["info"]["description"].as_str().expect("text").contains("52 more models"));
    let text = |path: &str| paths[path].to_string();
    assert!(!text("/predict/a-wide").contains("feature-7") && text("/predict/b-wide").contains("feature-7"));
    // By name it is described without the names, and taken.
    let row: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), json!(1))).collect();
    let body = json!({ "instances": [row] });
    let schema = &paths["/predict/a-wide"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert!(is_valid(&document, schema, &body));
}

#[tokio::test]
async fn a_model_of_very_many_inputs_and_outputs_is_described_without_their_names() {
    let many = |what: &str, shape: &[i64]| -> Vec<TensorSpec> {
        (0..20_000).map(|index| spec(&format!("{what}-{index}"), DataType::Fp32, shape, &[])).collect()
    };
    let few = |shape: &[i64]| vec![spec("x", DataType::Fp32, shape, &[])];
    let models = vec![
        zeros("a-many", many("input", &[-1, 3]), many("output", &[-1])),
        zeros("b-out", few(&[-1, 3]), many("output", &[-1])),
        model("c-few", 1, Does::Sum, CHEAP),
    ];
    let server = Server::new(vec![], models);
    let answer = server.get("/openapi.json").await;
    assert!(answer.body.len() < 1 << 20, "{}", answer.body.len());
    let document = answer.json();
    let text = |path: &str| document["paths"][path].to_string();
    for path in ["/v2/models/a-many/infer", "/predict/a-many", "/v2/models/b-out/infer", "/predict/b-out"] {
        assert!(!text(path).contains("put-7"), "{path}");
    }
    assert!(text("/v2/models/c-few/infer").contains("\"x\""), "the others are described as ever");
    let schema = |path: &str| &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
    for (body, valid) in [(json!({"instances": [{"input-7": [1, 2, 3]}]}), true), (json!(7), false)] {
        assert_eq!(is_valid(&document, schema("/predict/a-many"), &body), valid, "{body}");
    }
}

#[tokio::test]
async fn a_document_that_is_being_made_is_made_once_even_if_its_client_leaves() {
    let server = served();
    // It has begun, and is left at once.
    let _ = tokio::time::timeout(Duration::ZERO, server.get("/openapi.json")).await;
    let kept = server.http.document.0.lock().await;
    assert!(kept.is_some(), "who comes next waits for it, and finds it");
}
