//! ONNX files run by ONNX Runtime: what the native engines cannot, where the feature `onnxruntime` is built in.
//!
//! The library is loaded at run time, from the path that `ORT_DYLIB_PATH` has; the wheel `onnxruntime` on PyPI holds
//! one, `onnxruntime/capi/libonnxruntime.so.*`. What is made of a file is as in [`crate::neural`], and is tried as there.
//! FP32, FP64, INT32, INT64 and BOOL are served, with integers as wide as they are.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, Tensor as OrtTensor};

use crate::neural::{Described, Engine, Scope, caught, malformed, unsupported};
use crate::{Data, DataType, InferError, LoadError, Loader, Model, Tensor};

const SCOPE: Scope = Scope { domains: &["", "ai.onnx", "ai.onnx.ml", "com.microsoft"], fp64: true };

/// The loader of the format `onnx` that runs every graph by ONNX Runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct OrtLoader;

impl Loader for OrtLoader {
    fn format(&self) -> &'static str {
        "onnx"
    }

    fn recognizes(&self, bytes: &[u8]) -> bool {
        crate::NeuralLoader.recognizes(bytes)
    }

    fn memory_estimate(&self, artifact_bytes: u64) -> u64 {
        artifact_bytes.saturating_mul(4)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        load(bytes)
    }
}

/// Makes a model of an ONNX file.
pub(crate) fn load(bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
    let described = Described::read(bytes, &SCOPE)?;
    let environment = environment()?;
    let first = caught(|| session(environment, bytes))
        .map_err(|panic| malformed(format!("the reader gave up: {panic}")))?
        .map_err(|error| malformed(error.to_string()))?;
    let inputs = described.input_names().map(str::to_owned).collect();
    let outputs = described.output_names().map(str::to_owned).collect();
    let datatypes = described.output_datatypes();
    let pool = Mutex::new(vec![first]);
    let engine = OnnxRuntime { bytes: bytes.to_vec(), pool, inputs, outputs, datatypes };
    described.tried(Box::new(engine))
}

/// The library, once; a path that is wrong stays wrong until the next start.
fn environment() -> Result<&'static Environment, LoadError> {
    static ENVIRONMENT: OnceLock<Result<Environment, String>> = OnceLock::new();
    let loaded = ENVIRONMENT.get_or_init(|| {
        let path = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty());
        let path = PathBuf::from(path.ok_or("it is not set")?);
        let made = caught(|| {
            let builder = ort::environment::init_from(&path).map_err(|error| error.to_string())?;
            builder.with_name("hotserve").with_telemetry(false).build().map_err(|error| error.to_string())
        });
        made.unwrap_or_else(Err)
    });
    loaded.as_ref().map_err(|error| {
        unsupported(format!(
            "ONNX Runtime, which is loaded from the path in ORT_DYLIB_PATH ({error}; `pip download onnxruntime` has \
             onnxruntime/capi/libonnxruntime.so.*)"
        ))
    })
}

/// One thread, which does not spin: requests run beside each other.
fn session(environment: &Environment, bytes: &[u8]) -> ort::Result<Session> {
    let builder = Session::builder(environment)?;
    let builder = builder.with_intra_threads(1)?.with_inter_threads(1)?.with_intra_op_spinning(false)?;
    let mut builder = builder.with_deterministic_compute(true)?;
    builder.commit_from_memory(bytes)
}

struct OnnxRuntime {
    /// For another session, when all are at work.
    bytes: Vec<u8>,
    /// The sessions that are idle: running takes one for itself. There are never more than ran at the same time.
    pool: Mutex<Vec<Session>>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// Of the outputs.
    datatypes: Vec<DataType>,
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let failed = |error: ort::Error| InferError::Failed(error.to_string());
        let idle = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut session = match idle {
            Some(session) => session,
            None => {
                let environment = environment().map_err(|error| InferError::Failed(error.to_string()))?;
                session(environment, &self.bytes).map_err(failed)?
            }
        };
        // A session that panics is not used again.
        let answer = caught(|| self.run_in(&mut session, inputs))
            .map_err(|panic| InferError::Failed(format!("the engine gave up: {panic}")))?;
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        answer
    }

    fn memory_bytes(&self) -> usize {
        // The bytes, and the weights as the session has them.
        self.bytes.len().saturating_mul(2)
    }
}

impl OnnxRuntime {
    fn run_in(&self, session: &mut Session, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let failed = |error: ort::Error| InferError::Failed(error.to_string());
        let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (name, tensor) in self.inputs.iter().zip(inputs) {
            values.push((name, value_of(tensor).map_err(failed)?.into()));
        }
        let answers = session.run(values).map_err(failed)?;
        let outputs = self.outputs.iter().zip(&self.datatypes).map(|(name, datatype)| {
            let value =
                answers.get(name).ok_or_else(|| InferError::Failed(format!("the output {name:?} is missing")))?;
            tensor_of(value, *datatype)
        });
        outputs.collect()
    }
}

fn value_of(tensor: &Tensor) -> ort::Result<DynValue> {
    let shape = tensor.shape().to_vec();
    Ok(match tensor.data() {
        Data::Fp32(numbers) => OrtTensor::from_array((shape, numbers.clone()))?.into_dyn(),
        Data::Fp64(numbers) => OrtTensor::from_array((shape, numbers.clone()))?.into_dyn(),
        Data::Int32(numbers) => OrtTensor::from_array((shape, numbers.clone()))?.into_dyn(),
        Data::Int64(numbers) => OrtTensor::from_array((shape, numbers.clone()))?.into_dyn(),
        Data::Bool(flags) => OrtTensor::from_array((shape, flags.clone()))?.into_dyn(),
        Data::Bytes(_) => return Err(ort::Error::new("a tensor of BYTES")),
    })
}

fn tensor_of(value: &DynValue, datatype: DataType) -> Result<Tensor, InferError> {
    macro_rules! tensor {
        ($number:ty, $data:expr) => {
            value.try_extract_tensor::<$number>().map(|(shape, numbers)| (shape, $data(numbers.to_vec())))
        };
    }
    let (shape, data) = match datatype {
        DataType::Fp32 => tensor!(f32, Data::Fp32),
        DataType::Fp64 => tensor!(f64, Data::Fp64),
        DataType::Int32 => tensor!(i32, Data::Int32),
        DataType::Int64 => tensor!(i64, Data::Int64),
        DataType::Bool => tensor!(bool, Data::Bool),
        DataType::Bytes => return Err(InferError::Failed("an output of BYTES".to_owned())),
    }
    .map_err(|error| InferError::Failed(error.to_string()))?;
    let shape = shape.iter().map(|length| usize::try_from(*length).unwrap_or(0)).collect();
    Tensor::new(shape, data).map_err(|error| InferError::Failed(error.to_string()))
}
