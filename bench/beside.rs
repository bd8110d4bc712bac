//! A model of 20 ms a row beside a cheap one: what those who ask the cheap one notice, and how overload is answered.
//!
//! `cargo bench --bench gates -- beside`. The clients share the machine with the server: what counts is the ratio to
//! the cheap one alone, by turns in the same run.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hotserve_models::{Data, DataType, Dim, InferError, LoadError, Loader, Model, Signature, Tensor, TensorSpec};
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use crate::common::{Load, Server, percentile, resident};

const ROUNDS: usize = 3;
const WINDOW: Duration = Duration::from_secs(5);
const ROW: Duration = Duration::from_millis(20);
/// Over the queue and the threads of the compute pool.
const CROWD: usize = 400;
const CHEAP: &str = r#"{"instances":[[5.1,3.5,1.4,0.2]]}"#;
const DEAR: &str = r#"{"instances":[1]}"#;

pub async fn run() {
    let server = Server::start(|_| {}).await;
    let iris = hotserve_models::samples::all().iter().find(|sample| sample.name == "iris").unwrap();
    server.publish("cheap", 1, server.write("linear", iris.bytes)).await;
    assert_eq!(server.outcome("cheap", 1).await["outcome"], "applied");
    server.publish("dear", 1, server.write(FORMAT, b"dear")).await;
    assert_eq!(server.outcome("dear", 1).await["outcome"], "applied");

    println!("1,000 requests a second to a cheap model, alone and beside one of {ROW:?} a row");
    println!("{:>12}{:>12}{:>8}{:>12}{:>12}{:>8}", "p50 alone", "beside", "ratio", "p99 alone", "beside", "ratio");
    for _ in 0..ROUNDS {
        let cheap = || Load::start(server.addr, "cheap", CHEAP, 4, 1000);
        let asking = cheap();
        tokio::time::sleep(WINDOW).await;
        let alone = asking.finish().await;
        let (asking, dear) = (cheap(), Load::start(server.addr, "dear", DEAR, 4, 1000));
        tokio::time::sleep(WINDOW).await;
        let beside = asking.finish().await;
        dear.finish().await;
        let micros = |times, at| percentile(times, at).as_secs_f64() * 1e6;
        let [a50, b50, a99, b99] =
            [(&alone, 50), (&beside, 50), (&alone, 99), (&beside, 99)].map(|(t, at)| micros(t, at));
        println!("{a50:>9.0} µs{b50:>9.0} µs{:>8.2}{a99:>9.0} µs{b99:>9.0} µs{:>8.2}", b50 / a50, b99 / a99);
    }
    for _ in 0..ROUNDS {
        overload(&server).await;
    }
    server.stop().await;
}

/// More requests at once than the pool and its queue hold.
async fn overload(server: &Server) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let uri = format!("http://{}/predict/dear", server.addr);
    let ask = |_| {
        let request = Request::post(&uri).body(Full::new(Bytes::from_static(DEAR.as_bytes()))).unwrap();
        let client = client.clone();
        tokio::spawn(async move {
            let sent = Instant::now();
            let answer = client.request(request).await.unwrap();
            let (status, retry) = (answer.status(), answer.headers().contains_key(header::RETRY_AFTER));
            answer.into_body().collect().await.unwrap();
            (status, retry, sent.elapsed())
        })
    };
    let mut refused = Vec::new();
    let mut answered = 0;
    let tasks: Vec<_> = (0..CROWD).map(ask).collect();
    for task in tasks {
        match task.await.unwrap() {
            (StatusCode::OK, _, _) => answered += 1,
            (status, retry, took) => {
                assert_eq!((status, retry), (StatusCode::SERVICE_UNAVAILABLE, true));
                refused.push(took);
            }
        }
    }
    println!(
        "{CROWD} at once: {answered} answered, {} refused with Retry-After, the last of them after {:.1?}; {} MiB resident",
        refused.len(),
        refused.iter().max().copied().unwrap_or_default(),
        resident().0 >> 20,
    );
}

pub const FORMAT: &str = "dear";

/// Loads a model that takes its time.
pub struct Dear;

impl Loader for Dear {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, _: &[u8]) -> bool {
        false
    }

    fn load(&self, _: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: vec![Dim::Any],
            features: vec![],
        };
        Ok(Box::new(Slow { signature: Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] } }))
    }
}

struct Slow {
    signature: Signature,
}

impl Model for Slow {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = self.signature.check_inputs(inputs)?;
        let begun = Instant::now();
        while begun.elapsed() < ROW * u32::try_from(rows).unwrap_or(u32::MAX) {}
        Tensor::new(vec![rows], Data::Fp32(vec![1.0; rows]))
            .map(|answer| vec![answer])
            .map_err(|error| InferError::Failed(error.to_string()))
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
    }

    fn engine(&self) -> &'static str {
        FORMAT
    }
}
