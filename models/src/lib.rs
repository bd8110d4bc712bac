//! What hotserve serves: bytes to [`Model`], tensors to tensors.
//!
//! ```text
//!   artifact bytes ──Loader::load──► Box<dyn Model> ──warm_up──► ready
//!   request ──► [Tensor] in the order of signature().inputs ──Model::infer──► [Tensor] in the order of outputs
//! ```
//!
//! Nothing here knows AWS, HTTP or an async runtime: a kind of model is a pure function of bytes, and every kind can
//! be tested with nothing but files. To add one, write a [`Loader`], pass [`conformance::check`], and add it to
//! [`Loaders::bundled`].

mod tensor;
mod signature;
mod forest;
mod linear;
mod xgboost;
mod lightgbm;
mod catboost;
pub mod blocks;
mod neural;
#[cfg(feature = "onnxruntime")]
mod ort;
mod onnx;
mod golden;
mod processing;
pub mod conformance;
pub mod samples;

use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(feature = "onnxruntime")]
pub use self::ort::OrtLoader;
pub use catboost::CatboostLoader;
pub use golden::{Case, Golden, GoldenError};
pub use lightgbm::LightgbmLoader;
pub use linear::LinearLoader;
pub use neural::NeuralLoader;
pub use onnx::OnnxLoader;
pub use processing::Processing;
pub use signature::{Dim, Signature, TensorSpec};
pub use tensor::{Data, DataType, ShapeError, Tensor};
pub use xgboost::XgboostLoader;

/// A loaded model: a pure function of its inputs, shared by every thread that serves.
///
/// # Contract
/// - `infer` takes one tensor per entry of `signature().inputs`, in that order, each of the declared datatype and of a
///   shape that [`Signature::check_inputs`] accepts; the caller has checked that. It answers one tensor per entry of
///   `signature().outputs`, in that order, with the same number of rows.
/// - `infer` never panics on any value of a checked input, NaN and the infinities included; a row's answer does not
///   depend on the other rows of its batch.
/// - It does not block, spawn, or keep state between calls.
pub trait Model: Send + Sync {
    /// What goes in and what comes out; constant for the model's life.
    fn signature(&self) -> &Signature;

    /// Answers a batch; the first axis of every tensor is the row.
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError>;

    /// Bytes of memory that the model holds, to within a few per cent.
    fn memory_bytes(&self) -> usize;

    /// The engine that answers, as shown in `/models`: `linear`, `forest`, ….
    fn engine(&self) -> &'static str;
}

/// Makes one kind of [`Model`] from the verified bytes of an artifact.
///
/// # Contract
/// - The bytes are hostile: every index, count, depth and length is checked before use; memory stays within a small
///   multiple of the file's size; a bad file is an error that says what and where, never a panic.
/// - What the kind cannot do faithfully it refuses by name ([`LoadError::Unsupported`]) rather than answer wrongly.
pub trait Loader: Send + Sync {
    /// The format's name in a message: `linear`, `xgboost`, ….
    fn format(&self) -> &'static str;

    /// Whether these bytes look like this format; a guess from the first bytes, used when a publisher names no format.
    fn recognizes(&self, bytes: &[u8]) -> bool;

    /// About how many bytes of memory loading an artifact of this size takes at its peak, the artifact included.
    ///
    /// It decides whether the artifact is tried at all; what is measured then decides whether it is served.
    fn memory_estimate(&self, artifact_bytes: u64) -> u64 {
        artifact_bytes.saturating_mul(2)
    }

    /// Parses and checks the whole artifact.
    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError>;
}

/// Why an artifact did not become a [`Model`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The bytes are not the format, or contradict themselves.
    #[error("malformed {format} model: {detail}")]
    Malformed {
        /// The format that was expected.
        format: &'static str,
        /// What is wrong and where, for a person.
        detail: String,
    },
    /// The bytes are the format, with a feature that this kind does not serve.
    #[error("{format} model needs {feature}, which is not supported")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// The feature, in the words of the format's own documentation.
        feature: String,
    },
}

/// Why a model did not answer a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// The inputs do not fit the signature: the caller's mistake.
    #[error("{0}")]
    BadInput(String),
    /// The model failed on inputs that fit: the server's mistake.
    #[error("inference failed: {0}")]
    Failed(String),
}

/// The kinds of model that a server can load, by format.
#[derive(Clone, Default)]
pub struct Loaders {
    by_format: BTreeMap<&'static str, Arc<dyn Loader>>,
    /// Each around the model of this name, or around all.
    processing: Vec<(Option<String>, Processing)>,
}

impl Loaders {
    /// Every kind of this crate.
    pub fn bundled() -> Self {
        let mut loaders = Self::default();
        loaders.register(LinearLoader);
        loaders.register(XgboostLoader);
        loaders.register(LightgbmLoader);
        loaders.register(CatboostLoader);
        loaders.register(OnnxLoader);
        loaders
    }

    /// Adds a kind; one with the same format name is replaced.
    pub fn register(&mut self, loader: impl Loader + 'static) {
        self.by_format.insert(loader.format(), Arc::new(loader));
    }

    /// Adds steps of one's own around the model of this name, or around all.
    pub fn process(&mut self, model: Option<&str>, processing: Processing) {
        self.processing.push((model.map(str::to_owned), processing));
    }

    /// The model as it is served under this name: with the steps that were added around it.
    pub fn dress(&self, name: Option<&str>, model: Box<dyn Model>) -> Box<dyn Model> {
        let meant = self.processing.iter().filter(|(whose, _)| whose.is_none() || whose.as_deref() == name);
        meant.fold(Processing::default(), |all, (_, steps)| all.and(steps)).around(model)
    }

    /// The kind for a format's name.
    pub fn get(&self, format: &str) -> Option<&Arc<dyn Loader>> {
        self.by_format.get(format)
    }

    /// The names of all formats, sorted.
    pub fn formats(&self) -> Vec<&'static str> {
        self.by_format.keys().copied().collect()
    }

    /// The one format that recognizes these bytes, if just one does.
    pub fn recognize(&self, bytes: &[u8]) -> Option<&'static str> {
        let mut hits = self.by_format.values().filter(|loader| loader.recognizes(bytes));
        match (hits.next(), hits.next()) {
            (Some(one), None) => Some(one.format()),
            _ => None,
        }
    }
}
