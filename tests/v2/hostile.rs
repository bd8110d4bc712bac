//! A thousand bodies that mean harm, or only know no better, made from a seed.

use std::io::Write as _;
use std::sync::LazyLock;

use hotserve_models::Loaders;
use serde_json::{Value, json};

use crate::support::{Server, probe, until};
use crate::wire::Wire;

const SEED: u64 = 6;
const BODIES: usize = 1000;
const LIMIT: u64 = 64 << 10;
const PATH: &str = "/v2/models/m/infer";

struct Bad {
    kind: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Bad {
    fn request(&self) -> Vec<u8> {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head =
            format!("POST {PATH} HTTP/1.1\r\nhost: test\r\n{headers}content-length: {}\r\n\r\n", self.body.len());
        [head.as_bytes(), &self.body].concat()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Some megabytes of nothing.
static BOMBS: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| [b' ', b'[', 0].map(|fill| gzip(&vec![fill; 4 << 20])));

/// A good request: its JSON, whose one input has its data in it or behind it.
fn good(rows: usize, binary: bool) -> Value {
    let mut input = json!({"name": "input", "datatype": "FP32", "shape": [rows, 3]});
    if binary {
        input["parameters"] = json!({"binary_data_size": rows * 12});
    } else {
        input["data"] = json!(vec![0.5; rows * 3]);
    }
    json!({"id": "a", "inputs": [input], "outputs": [{"name": "prediction"}]})
}

fn with_tail(kind: &'static str, json: &Value, tail: usize) -> Bad {
    let mut body = json.to_string().into_bytes();
    let headers = vec![("inference-header-content-length", body.len().to_string())];
    body.extend(std::iter::repeat_n(0, tail));
    Bad { kind, headers, body }
}

fn plain(kind: &'static str, json: &Value) -> Bad {
    Bad { kind, headers: vec![], body: json.to_string().into_bytes() }
}

/// Something of no use anywhere.
fn nonsense(random: &mut fastrand::Rng) -> Value {
    match random.u8(..9) {
        0 => json!({}),
        1 => json!([[[]]]),
        2 => json!(-1),
        3 => json!(1e308),
        4 => json!(u64::MAX),
        5 => json!("x".repeat(random.usize(1..5000))),
        6 => json!(true),
        7 => json!([null]),
        _ => json!({"name": {"name": []}}),
    }
}

fn bad(random: &mut fastrand::Rng) -> Bad {
    let rows = random.usize(1..20);
    let mut json = good(rows, true);
    let size = rows * 12;
    let lengths = || ["-1", "+1", "0x10", "1e3", " ", "1 2", "18446744073709551616", "99999999999999999999999999"];
    match random.u8(..16) {
        0 => {
            let mut bad = with_tail("a header's length that is none", &json, size);
            bad.headers[0].1 = random.choice(lengths()).unwrap().to_owned();
            bad
        }
        1 => {
            let mut bad = with_tail("a header's length that is not that of the JSON", &json, size);
            let right = bad.headers[0].1.clone();
            let wrong = std::iter::repeat_with(|| random.usize(1..2 * bad.body.len()).to_string());
            bad.headers[0].1 = wrong.into_iter().find(|wrong| *wrong != right).unwrap();
            bad
        }
        2 => {
            let huge = [u64::MAX, u64::MAX / 12, u64::MAX / 4 + 2, 1 << 63, 1 << 40, u64::from(u32::MAX)];
            json["inputs"][0]["parameters"]["binary_data_size"] = json!(random.choice(huge).unwrap());
            with_tail("a size that overflows", &json, size)
        }
        3 => {
            let huge = [u64::MAX, u64::MAX / 3 + 1, u64::MAX / 12 + 1, 1 << 62, 1 << 33];
            json["inputs"][0]["shape"][0] = json!(random.choice(huge).unwrap());
            with_tail("a shape that overflows", &json, size)
        }
        4 => {
            let mut bad = with_tail("a body cut short", &json, size);
            bad.body.truncate(random.usize(1..bad.body.len()));
            bad
        }
        5 => with_tail("bytes behind the last tensor", &json, size + random.usize(1..100)),
        6 => {
            let open = random.choice(["[", "{\"a\":", "{\"inputs\":[", "[{\"data\":["]).unwrap();
            let before =
                random.choice(["", "{\"inputs\":[{\"name\":\"input\",\"datatype\":\"FP32\",\"data\":"]).unwrap();
            let body = format!("{before}{}", open.repeat(random.usize(200..4000)));
            Bad { kind: "deep JSON", headers: vec![], body: body.into_bytes() }
        }
        7 => {
            let body = random.choice(BOMBS.iter()).unwrap().clone();
            Bad { kind: "a bomb", headers: vec![("content-encoding", "gzip".to_owned())], body }
        }
        8 => {
            let mut body = gzip(json.to_string().as_bytes());
            let cut = random.usize(1..body.len());
            body.truncate(cut);
            let encoding = random.choice(["gzip", "deflate"]).unwrap().to_owned();
            Bad { kind: "a broken compression", headers: vec![("content-encoding", encoding)], body }
        }
        9 => {
            let axes = random.usize(0..2000);
            let mut shape: Vec<i64> = (0..axes).map(|_| random.i64(-3..1000)).collect();
            if axes == 2 {
                shape[1] = 4;
            }
            json["inputs"][0]["shape"] = json!(shape);
            with_tail("a wrong shape", &json, size)
        }
        10 => {
            let datatype = random.choice(["FP33", "fp32", "", "BYTES", "BOOL", "INT64", "\u{0}"]).unwrap();
            json["inputs"][0]["datatype"] = json!(datatype);
            with_tail("a datatype that is none, or another's", &json, size)
        }
        11 => {
            let body = std::iter::repeat_with(|| random.u8(..)).take(1000).collect();
            Bad { kind: "noise", headers: vec![], body }
        }
        12 => {
            let mut json = good(rows, false);
            let field = random.choice(["name", "datatype", "shape", "data"]).unwrap();
            json["inputs"][0].as_object_mut().unwrap().remove(field);
            plain("a field that is missing", &json)
        }
        13 => {
            let mut json = good(rows, false);
            let field = random.choice(["name", "datatype", "shape", "data"]).unwrap();
            json["inputs"][0][field] = nonsense(random);
            plain("a field that is something else", &json)
        }
        14 => {
            let mut json = good(rows, false);
            let at = random.usize(..rows * 3);
            json["inputs"][0]["data"][at] = nonsense(random);
            if json["inputs"][0]["data"][at].is_number() {
                json["inputs"][0]["data"][at] = json!(1e39);
            }
            plain("an element that is something else", &json)
        }
        _ => {
            let body = vec![b'x'; usize::try_from(LIMIT).unwrap() + random.usize(1..100)];
            Bad { kind: "a body over the limit", headers: vec![], body }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_hostile_bodies_are_told_what_is_wrong_with_them() {
    let limit = |settings: &mut hotserve::config::Settings| settings.body_limit = Some(hotserve::config::Size(LIMIT));
    let (server, feeder, _) = Server::fed_with(Loaders::bundled(), probe(), limit).await;
    let server = server.ready().await;
    let model = json!({"kind": "linear", "features": ["a", "b", "c"], "coefficients": [[1, 2, 3]], "intercepts": [0]});
    use base64::Engine as _;
    let inline = base64::engine::general_purpose::STANDARD.encode(model.to_string());
    feeder.put(json!({"model": {"name": "m", "version": 1, "format": "linear", "inline": inline}}).to_string()).await;
    until("the model", async || (server.client.get("/v2/models/m/ready").await.status == 200).then_some(())).await;

    let addr = server.addr;
    let counted = tokio::task::spawn_blocking(move || {
        let mut random = fastrand::Rng::with_seed(SEED);
        let mut counted = std::collections::BTreeMap::new();
        let mut wire = Wire::connect(addr).unwrap();
        for number in 0..BODIES {
            let bad = bad(&mut random);
            *counted.entry(bad.kind).or_insert(0) += 1;
            // After a body that was not read the server may close: that is another connection's business.
            let sent = wire.send(&bad.request());
            let answer = sent.and_then(|()| wire.receive()).map(|answer| (answer.status, answer.body.to_vec()));
            let (status, body) = match answer {
                Ok(answer) => answer,
                Err(_) if bad.body.len() as u64 > LIMIT => {
                    wire = Wire::connect(addr).unwrap();
                    continue;
                }
                Err(error) => panic!("seed {SEED}, body {number}, {}: {error}", bad.kind),
            };
            let text = String::from_utf8_lossy(&body);
            assert!(matches!(status, 400 | 413), "seed {SEED}, body {number}, {}: {status} {text}", bad.kind);
            let json: Value = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{}: {text}", bad.kind));
            let told = json["error"].as_str().unwrap_or_else(|| panic!("{}: {text}", bad.kind));
            assert!(!told.is_empty() && told.len() < 1000, "{}: {told:.1000}", bad.kind);
            if status == 413 {
                wire = Wire::connect(addr).unwrap();
            }
        }
        let good = with_tail("good", &good(2, true), 24);
        let mut wire = Wire::connect(addr).unwrap();
        wire.send(&good.request()).unwrap();
        assert_eq!(wire.receive().unwrap().status, 200, "it answers as before");
        counted
    });
    let counted = counted.await.unwrap();
    assert!(counted.len() == 16 && counted.values().all(|count| *count > 20), "{counted:?}");
    server.stop().await;
}
