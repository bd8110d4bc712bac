//! What other servers' clients send is answered as the same rows are.

use hotserve::id::Digest;
use hotserve_models::{Golden, Loaders, samples};
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Server, probe, repository, until};

/// A model, and rows for it.
struct Table {
    name: String,
    format: &'static str,
    bytes: Vec<u8>,
    /// The columns' names; for one input without names they are made up, for they do not matter then.
    columns: Vec<String>,
    /// The input, if there is only one.
    input: Option<String>,
    nameless: bool,
    rows: Vec<Vec<Value>>,
}

impl Table {
    fn new(name: &str, format: &'static str, bytes: Vec<u8>, golden: &str) -> Self {
        let model = Loaders::bundled().get(format).unwrap().load(&bytes).unwrap();
        let golden: Golden = serde_json::from_str(golden).unwrap();
        let (inputs, case) = (&model.signature().inputs, &golden.cases[0].inputs);
        let list = |value: &Value| value.as_array().unwrap().clone();
        let (columns, rows): (Vec<String>, Vec<Vec<Value>>) = match inputs.as_slice() {
            [input] => {
                let rows: Vec<_> = list(&case[&input.name]).iter().map(list).collect();
                let names = input.features.clone();
                let made_up = || (0..rows[0].len()).map(|column| format!("column {column}")).collect();
                (if names.is_empty() { made_up() } else { names }, rows)
            }
            inputs => {
                let columns: Vec<_> = inputs.iter().map(|input| list(&case[&input.name])).collect();
                let rows =
                    (0..columns[0].len()).map(|row| columns.iter().map(|column| column[row][0].clone()).collect());
                (inputs.iter().map(|input| input.name.clone()).collect(), rows.collect())
            }
        };
        // JSON has no infinity, and no client may send one.
        let rows = rows.into_iter().filter(|row| !row.iter().any(|value| value == "Infinity" || value == "-Infinity"));
        let input = (inputs.len() == 1).then(|| inputs[0].name.clone());
        let nameless = input.is_some() && inputs[0].features.is_empty();
        Self { name: name.to_owned(), format, bytes, columns, input, nameless, rows: rows.collect() }
    }

    fn samples() -> Vec<Self> {
        let samples = samples::all().iter();
        samples.map(|sample| Self::new(sample.name, sample.format, sample.bytes.to_vec(), sample.golden)).collect()
    }

    fn onnx(name: &str) -> Self {
        let file = |end: &str| repository(&format!("models/tests/data/onnx/{name}.{end}"));
        let golden = std::fs::read_to_string(file("golden.json")).unwrap();
        Self::new(name, "onnx", std::fs::read(file("onnx")).unwrap(), &golden)
    }

    /// The columns in an order that is not the model's.
    fn shuffled(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.columns.len()).rev().collect();
        order.swap(0, 1);
        order
    }

    /// Each row by name, as text, for a value of serde_json would sort the names.
    fn objects(&self, order: &[usize]) -> String {
        let object = |row: &Vec<Value>| {
            let fields = order.iter().map(|at| format!("{}:{}", json!(self.columns[*at]), row[*at]));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        };
        format!("[{}]", self.rows.iter().map(object).collect::<Vec<_>>().join(","))
    }

    fn lists(&self, order: &[usize]) -> Value {
        self.rows.iter().map(|row| order.iter().map(|at| row[*at].clone()).collect::<Value>()).collect()
    }

    fn names(&self, order: &[usize]) -> Value {
        order.iter().map(|at| self.columns[*at].as_str()).collect()
    }

    fn csv(&self, order: &[usize]) -> String {
        let field = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) if text.is_empty() || text.contains(['"', ',', '\n']) => {
                format!("\"{}\"", text.replace('"', "\"\""))
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let line = |values: Vec<String>| values.join(",") + "\r\n";
        let header = line(order.iter().map(|at| field(&json!(self.columns[*at]))).collect());
        let rows = self.rows.iter().map(|row| line(order.iter().map(|at| field(&row[*at])).collect()));
        header + &rows.collect::<String>()
    }

    /// Bodies that mean the same rows: who sends them so, the content type, and the text.
    fn bodies(&self) -> Vec<(&'static str, &'static str, String)> {
        const JSON: &str = "application/json";
        let in_order: Vec<usize> = (0..self.columns.len()).collect();
        let order = if self.nameless { in_order.clone() } else { self.shuffled() };
        let index: Vec<usize> = (0..self.rows.len()).collect();
        // As Python writes a missing number.
        let python = |body: String| body.replace("null", "NaN").replace(',', ", ").replace(':', ": ");
        let (names, lists) = (self.names(&order), self.lists(&order));
        let numbers = json!({"columns": in_order, "index": index, "data": self.lists(&in_order)});
        let mut bodies = vec![
            ("MLflow, a DataFrame", JSON, {
                python(format!("{{\"dataframe_split\":{{\"index\":{index:?},\"columns\":{names},\"data\":{lists}}}}}"))
            }),
            (
                "MLflow, a DataFrame whose columns have no names",
                JSON,
                python(json!({"dataframe_split": numbers}).to_string()),
            ),
            ("MLflow 1, split", "application/json; format=pandas-split", {
                json!({"columns": names, "index": index, "data": lists}).to_string()
            }),
            ("rows before their columns", JSON, format!("{{\"data\":{lists},\"columns\":{names}}}")),
            ("CSV", "text/csv", self.csv(&order)),
            ("CSV with an index", "text/csv; charset=utf-8", {
                let csv = self.csv(&order);
                csv.lines().enumerate().fold(String::new(), |text, (at, line)| {
                    text + &if at == 0 { format!(",{line}\n") } else { format!("{},{line}\n", at - 1) }
                })
            }),
            ("CSV without names", "text/csv; header=absent", {
                let csv = self.csv(&in_order);
                csv.split_once("\r\n").unwrap().1.to_owned()
            }),
        ];
        if let Some(input) = &self.input {
            let rows = self.lists(&in_order);
            bodies.extend([
                ("TensorFlow Serving, rows by the input's name", JSON, {
                    let rows: Vec<_> = rows.as_array().unwrap().iter().map(|row| json!({ input: row })).collect();
                    json!({"signature_name": "serving_default", "instances": rows}).to_string()
                }),
                ("TensorFlow Serving, columns", JSON, json!({"inputs": {input: rows}}).to_string()),
                ("MLflow, an array", JSON, python(json!({"inputs": rows}).to_string())),
                ("a bare list", JSON, rows.to_string()),
            ]);
        }
        if !self.nameless {
            let records = self.objects(&order);
            let column = |at: usize| self.rows.iter().map(|row| row[at].clone()).collect::<Value>();
            let columns: Vec<_> =
                order.iter().map(|at| format!("{}:{}", json!(self.columns[*at]), column(*at))).collect();
            bodies.extend([
                ("MLflow, records", JSON, python(format!("{{\"dataframe_records\":{records},\"params\":{{}}}}"))),
                ("MLflow 1, records", "application/json; format=pandas-records", records.clone()),
                ("rows by name", JSON, format!("{{\"instances\":{records}}}")),
                ("columns by name", JSON, format!("{{\"inputs\":{{{}}}}}", columns.join(","))),
            ]);
        }
        bodies
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_servers_clients_send_is_answered_as_rows_are() {
    let (server, feeder, store) = Server::fed_with(Loaders::bundled(), probe(), |_| {}).await;
    let server = server.ready().await;
    let mut tables = Table::samples();
    // Of the last two one has columns of text, the other no names.
    tables.extend(["frame", "frame_words", "logistic"].map(Table::onnx));
    for table in tables {
        let (digest, size) = (Digest::of(&table.bytes), table.bytes.len());
        let uri = format!("s3://artifacts/{digest}");
        store.put(&uri.parse().unwrap(), table.bytes.clone());
        let model = json!({
            "name": table.name, "version": 1, "format": table.format,
            "uri": uri, "sha256": digest.to_string(), "size": size,
        });
        feeder.put(json!({ "model": model }).to_string()).await;

        let path = format!("/predict/{}", table.name);
        let in_order: Vec<usize> = (0..table.columns.len()).collect();
        let rows = if table.input.is_some() { table.lists(&in_order).to_string() } else { table.objects(&in_order) };
        let rows = format!("{{\"instances\":{rows}}}");
        let expected = until(&format!("{} to be served", table.name), async || {
            let reply = server.client.post(&path, rows.clone()).await;
            (reply.status != StatusCode::NOT_FOUND).then(|| reply.text())
        })
        .await;
        assert!(expected.starts_with("{\"predictions\":["), "{}: {expected}", table.name);
        for (who, content_type, body) in table.bodies() {
            let reply = server.client.ask(&path, &[("content-type", content_type)], Some(&body)).await;
            assert_eq!(reply.text(), expected, "{}, {who}: {body}", table.name);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_any_form_names_the_feature_and_the_row() {
    let (server, feeder, _) = Server::fed_with(Loaders::bundled(), probe(), |_| {}).await;
    let server = server.ready().await;
    let model = json!({"kind": "linear", "features": ["age", "fare"], "coefficients": [[1.0, 2.0]], "intercepts": [0]});
    let model = json!({"name": "m", "version": 1, "format": "linear", "inline": base64(&model.to_string())});
    feeder.put(json!({ "model": model }).to_string()).await;
    until("the model", async || {
        let reply = server.client.post("/predict/m", r#"{"instances":[[1,2]]}"#).await;
        (reply.status == StatusCode::OK).then_some(())
    })
    .await;
    for (content_type, body, status, expected) in [
        (
            "application/json",
            r#"{"dataframe_split":{"columns":["fare","age"],"data":[[1,2],[3,"x"]]}}"#,
            422,
            r#"dataframe_split.data[1]["age"]: expected a number"#,
        ),
        (
            "application/json",
            r#"{"dataframe_split":{"columns":["fare","agee"],"data":[]}}"#,
            422,
            r#"dataframe_split.columns[1]: unknown column "agee", did you mean "age"?"#,
        ),
        (
            "application/json",
            r#"{"dataframe_records":[{"age":1}]}"#,
            422,
            "dataframe_records[0]: feature \"fare\" is missing",
        ),
        ("text/csv", "age,fare\n1,2\n3,x\n", 422, "csv[1][\"fare\"]: expected a number"),
        ("text/csv", "age,fare\n1,\"2\n", 400, "the body is no CSV: the quote is not closed that is opened in line 2"),
        // What it is called decides, not what it looks like.
        ("text/csv", r#"{"instances":[[1,2]]}"#, 400, "the body is no CSV: a quote stands within the value"),
        ("application/x-www-form-urlencoded", "age,fare\n1,2\n", 400, "the body is no JSON: "),
    ] {
        let reply = server.client.ask("/predict/m", &[("content-type", content_type)], Some(body)).await;
        assert_eq!(reply.status, status, "{body}");
        let problem = reply.json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(expected), "{body}: {detail}");
        let code = match (status, content_type) {
            (422, _) => "bad_input",
            (_, "text/csv") => "bad_csv",
            _ => "bad_json",
        };
        assert_eq!(problem["code"], code, "{body}");
    }
    server.stop().await;
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
