//! The classical part of ONNX, lowered to native steps: the format `onnx`. What is not lowered goes to
//! [`neural`](crate::neural), and to ONNX Runtime where it is built in.
//!
//! ```text
//!   bytes ──proto──► nodes by name ──plan──► steps over numbered slots ──run──► tensors
//!                                     │ each operator is built for the types and widths that it meets,
//!                                     │ and tried at once; constants are folded
//! ```
//!
//! | what | served | refused by name |
//! |---|---|---|
//! | ai.onnx.ml 1 to 5 | tree ensembles, linear models, SVMs with support vectors, Scaler, Normalizer, Imputer, Binarizer, OneHotEncoder, LabelEncoder, ArrayFeatureExtractor, FeatureVectorizer, ZipMap | TreeEnsemble of version 5, maps and dictionaries |
//! | ai.onnx 7 to 24 | what the exporters of scikit-learn put between them: arithmetic, comparisons, shapes, casts, Gemm, Softmax, … | convolutions, control flow, all else |
//! | files | tensors within the file | external data, functions, sparse tensors |
//!
//! The inputs are the graph's own, by their names: one of two axes, or one for each column of a DataFrame (`[-1, 1]`).
//! Their first axis must be open and the others fixed. The outputs are the graph's too. Where ZipMap would make a list of
//! maps, the scores come as a tensor, with the classes as the names of its columns.
//!
//! A value that a OneHotEncoder without `zeros` does not know, a text that a Cast cannot read and an index out of range
//! are errors of the request.

mod value;
mod proto;
mod plan;
mod glue;
mod ml;
mod trees;
mod svm;

use self::plan::Plan;
use self::value::{Buf, Fault, Shape, Slice, Text, Value};
use crate::blocks;
use crate::{Data, InferError, LoadError, Loader, Model, Signature, Tensor};

const FORMAT: &str = "onnx";

/// The versions of the operators that are served.
const OPSETS: [(&str, std::ops::RangeInclusive<i64>); 2] = [("ai.onnx", 7..=24), ("ai.onnx.ml", 1..=5)];

/// The loader of the format `onnx`: pipelines as skl2onnx and onnxmltools export them from scikit-learn, XGBoost and
/// LightGBM.
///
/// The answers are those of ONNX Runtime to within 1e-6. What cannot be answered so is refused by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnnxLoader;

impl Loader for OnnxLoader {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, bytes: &[u8]) -> bool {
        // `ir_version`, from 3 on, stands first; the producer's name, its version or the graph come next.
        matches!(bytes, [0x08, 3..=20, 0x12 | 0x1a | 0x22 | 0x32 | 0x3a | 0x42, ..])
    }

    /// A node of a tree takes some 40 bytes in the file, 100 as it is read, 80 as it is checked and 12 as it is kept.
    /// rten and its thread take some room besides.
    fn memory_estimate(&self, artifact_bytes: u64) -> u64 {
        artifact_bytes.saturating_mul(8).saturating_add(16 << 20)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        match native(bytes) {
            Err(LoadError::Unsupported { feature, .. }) => elsewhere(bytes, &feature),
            done => done,
        }
    }
}

/// Lowered to steps of this crate.
fn native(bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
    let model = proto::Model::parse(bytes).map_err(refusal)?;
    let lacking = lacking_operators(bytes)?;
    if !lacking.is_empty() {
        let operators = lacking.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(refusal(Fault::Unsupported(format!("the operators {operators}"))));
    }
    for (domain, version) in &model.opsets {
        let name = if domain.is_empty() { "ai.onnx" } else { domain };
        let served = OPSETS.iter().find(|(served, _)| *served == name);
        if served.is_some_and(|(_, versions)| !versions.contains(version)) {
            return Err(refusal(Fault::Unsupported(format!("version {version} of {name}"))));
        }
    }
    let planned = plan::plan(&model).map_err(refusal)?;
    let signature = Signature { inputs: planned.inputs, outputs: planned.outputs };
    Ok(Box::new(Onnx { signature, plan: planned.plan }))
}

/// What is not lowered is run by rten, which knows neural nets, and last by ONNX Runtime, where that is built in.
fn elsewhere(bytes: &[u8], lacking: &str) -> Result<Box<dyn Model>, LoadError> {
    let why = |error| match error {
        LoadError::Unsupported { feature: why, .. } | LoadError::Malformed { detail: why, .. } => why,
    };
    let net = match crate::neural::load(bytes) {
        Ok(model) => return Ok(model),
        Err(error) => why(error),
    };
    #[cfg(feature = "onnxruntime")]
    let runtime = match crate::ort::load(bytes) {
        Ok(model) => return Ok(model),
        Err(error) => format!("ONNX Runtime: {}", why(error)),
    };
    #[cfg(not(feature = "onnxruntime"))]
    let runtime = "ONNX Runtime is not built in: cargo build --features onnxruntime";
    let feature = format!("{lacking} (as a neural net: {net}; {runtime})");
    Err(LoadError::Unsupported { format: FORMAT, feature })
}

/// The operators of a file that this format does not serve, each with its domain and a node that has it; the error is
/// why the file cannot be read at all.
pub(crate) fn lacking_operators(bytes: &[u8]) -> Result<Vec<String>, LoadError> {
    Ok(plan::lacking(&proto::Model::parse(bytes).map_err(refusal)?))
}

fn refusal(fault: Fault) -> LoadError {
    match fault {
        Fault::Unsupported(feature) => LoadError::Unsupported { format: FORMAT, feature },
        Fault::Malformed(detail) | Fault::Input(detail) => LoadError::Malformed { format: FORMAT, detail },
    }
}

struct Onnx {
    signature: Signature,
    plan: Plan,
}

impl Model for Onnx {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = self.signature.check_inputs(inputs)?;
        if rows == 0 {
            return self.signature.outputs.iter().map(nothing).collect();
        }
        let failed = |fault| match fault {
            Fault::Input(detail) => InferError::BadInput(detail),
            Fault::Malformed(detail) | Fault::Unsupported(detail) => InferError::Failed(detail),
        };
        blocks::run(inputs, rows, self.plan.block_rows(), |inputs| {
            let values = inputs.iter().map(value).collect::<Result<Vec<_>, _>>().map_err(failed)?;
            let outputs = self.plan.run(values, plan::BLOCK_ELEMENTS, false).map_err(failed)?;
            outputs.into_iter().map(tensor).collect()
        })
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.plan.memory_bytes() + self.signature.memory_bytes()
    }

    fn engine(&self) -> &'static str {
        FORMAT
    }
}

fn nothing(spec: &crate::TensorSpec) -> Result<Tensor, InferError> {
    let inner = spec.shape.iter().skip(1).map(|dim| match dim {
        crate::Dim::Fixed(length) => *length,
        crate::Dim::Any => 0,
    });
    let shape = std::iter::once(0).chain(inner).collect();
    Tensor::new(shape, Data::with_capacity(spec.datatype, 0)).map_err(|error| InferError::Failed(error.to_string()))
}

fn value(tensor: &Tensor) -> Result<Value<'_>, Fault> {
    let buf = match tensor.data() {
        Data::Bool(v) => Buf::Bool(Slice::Borrowed(v)),
        Data::Int32(v) => Buf::I32(Slice::Borrowed(v)),
        Data::Int64(v) => Buf::I64(Slice::Borrowed(v)),
        Data::Fp32(v) => Buf::F32(Slice::Borrowed(v)),
        Data::Fp64(v) => Buf::F64(Slice::Borrowed(v)),
        Data::Bytes(v) => Buf::Text(Slice::Owned(v.iter().map(|text| Text::Borrowed(text)).collect())),
    };
    Ok(Value { shape: Shape::new(tensor.shape())?, buf })
}

fn tensor(value: Value<'_>) -> Result<Tensor, InferError> {
    let data = match value.buf {
        Buf::Bool(v) => Data::Bool(v.into_vec()),
        Buf::I32(v) => Data::Int32(v.into_vec()),
        Buf::I64(v) => Data::Int64(v.into_vec()),
        Buf::F32(v) => Data::Fp32(v.into_vec()),
        Buf::F64(v) => Data::Fp64(v.into_vec()),
        Buf::Text(v) => Data::Bytes(v.into_vec().into_iter().map(Text::into_owned).collect()),
    };
    Tensor::new(value.shape.dims().to_vec(), data).map_err(|error| InferError::Failed(error.to_string()))
}
