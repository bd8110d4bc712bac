//! A kind of model that does harm, for tests and benches only: its artifact says which, and when.

use std::hint::black_box;
use std::time::{Duration, Instant};

use hotserve_models::{Data, DataType, Dim, InferError, LoadError, Loader, Model, Signature, Tensor, TensorSpec};
use serde_json::{Value, json};

pub const FORMAT: &str = "misbehaving";

/// An artifact: what it does (`good`: nothing), and when (`load` or `infer`). It answers `value` for every row.
pub fn artifact(how: &str, when: &str, value: u64) -> Vec<u8> {
    json!({"how": how, "when": when, "value": value}).to_string().into_bytes()
}

/// An artifact that is as large as the memory that its model holds, and takes a while to load.
pub fn ballast(bytes: usize, value: u64, load_ms: u64) -> Vec<u8> {
    let mut artifact = json!({"how": "good", "when": "", "value": value, "load_ms": load_ms}).to_string().into_bytes();
    artifact.resize(bytes, b' ');
    artifact
}

/// Loads what must not be served.
pub struct Misbehaving;

impl Loader for Misbehaving {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, _: &[u8]) -> bool {
        false
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        let recipe: Value = serde_json::from_slice(bytes)
            .map_err(|error| LoadError::Malformed { format: FORMAT, detail: error.to_string() })?;
        let text = |field: &str| recipe[field].as_str().unwrap_or_default().to_owned();
        if text("when") == "load" {
            harm(&text("how"));
        }
        std::thread::sleep(Duration::from_millis(recipe["load_ms"].as_u64().unwrap_or(0)));
        let spec =
            |name: &str, shape| TensorSpec { name: name.to_owned(), datatype: DataType::Fp32, shape, features: vec![] };
        let signature = Signature {
            inputs: vec![spec("x", vec![Dim::Any, Dim::Fixed(1)])],
            outputs: vec![spec("prediction", vec![Dim::Any])],
        };
        let how = if text("when") == "infer" { text("how") } else { String::new() };
        #[expect(clippy::cast_possible_truncation, reason = "a small number")]
        let value = recipe["value"].as_f64().unwrap_or(0.0) as f32;
        Ok(Box::new(Harm { signature, how, value, ballast: bytes.to_vec() }))
    }
}

struct Harm {
    signature: Signature,
    how: String,
    value: f32,
    ballast: Vec<u8>,
}

impl Model for Harm {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = self.signature.check_inputs(inputs)?;
        let value = match self.how.as_str() {
            "nan" => f32::NAN,
            "infinity" => f32::INFINITY,
            how => {
                harm(how);
                self.value
            }
        };
        Tensor::new(vec![rows], Data::Fp32(vec![value; rows]))
            .map(|answer| vec![answer])
            .map_err(|error| InferError::Failed(error.to_string()))
    }

    fn memory_bytes(&self) -> usize {
        self.ballast.capacity()
    }

    fn engine(&self) -> &'static str {
        FORMAT
    }
}

#[expect(clippy::panic, clippy::exit, reason = "this is what it is for")]
fn harm(how: &str) {
    match how {
        "panic" => panic!("on purpose"),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(0),
        "overflow" => drop(black_box(descend(black_box(0)))),
        "loop" => while black_box(true) {},
        "sleep" => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        "allocate" => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(black_box(vec![1_u8; 64 << 20]));
            }
        }
        // Only in a probe: in the server it is nobody's fault that it can.
        "pry" if std::env::var_os("HOTSERVE_PROBE").is_some() => {
            let parent = format!("/proc/{}/environ", std::os::unix::process::parent_id());
            let files = ["/etc/passwd", "/proc/self/environ", parent.as_str()].map(|path| std::fs::read(path).is_ok());
            let written = std::fs::write("/tmp/hotserve-was-here", "x").is_ok();
            // Refused, or forbidden: whether it may connect tells the error.
            let socket = std::net::TcpStream::connect("127.0.0.1:9");
            let connected = socket.map_or_else(|error| error.kind() != std::io::ErrorKind::PermissionDenied, |_| true);
            let secrets = std::env::vars_os().any(|(name, _)| name != "HOTSERVE_PROBE" && name != "LD_LIBRARY_PATH");
            assert!(
                files == [false; 3] && !written && !connected && !secrets,
                "files {files:?}, written {written}, connected {connected}, environment {secrets}"
            );
        }
        // Right, and 400 µs dearer than it need be.
        "slow" => {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(400) {}
        }
        // Right, and dear: what a slower one is compared with.
        "dear" => {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(100) {}
        }
        _ => {}
    }
}

#[expect(unconditional_recursion, reason = "this is what it is for")]
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    frame.iter().sum::<u64>() + black_box(descend(depth + 1))
}
