//! The gates between an artifact and being served: `Artifact → Verified → Loaded → Warm`. Each step consumes the one before, so
//! that a model that skipped a gate cannot reach the swap.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use hotserve_models::{Data, DataType, Dim, Golden, Loaders, Model, Signature, Tensor};

use crate::id::Format;
use crate::notification::{self, Encoding};
use crate::store::{self, Artifact};

/// How often a row is predicted to measure it.
const WARM_UP_RUNS: u32 = 20;
/// The longest time to spend on measuring.
const WARM_UP_TIME: Duration = Duration::from_millis(200);
/// The largest inflated : deflated ratio of an artifact.
const INFLATE_RATIO: usize = 200;

/// Why an artifact is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// The label of `hotserve_rejections_total`.
    pub reason: &'static str,
    /// What is wrong, for a person.
    pub detail: String,
}

impl Refusal {
    pub(super) fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: crate::error::shorten(detail.into()) }
    }
}

impl Refusal {
    /// Whether it says nothing against the artifact: it cannot be had, or kept, for now.
    pub fn is_of_the_moment(&self) -> bool {
        matches!(self.reason, "access_denied" | "unavailable" | "not_found" | "disk" | "slow" | "redirect")
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::new(error.code(), crate::error::chain(&error))
    }
}

/// What the message says of the model, besides where it is.
#[derive(Debug, Clone)]
pub struct Announced {
    /// Which kind of model.
    pub format: Format,
    /// How the bytes are compressed.
    pub encoding: Encoding,
    /// What goes in and comes out.
    pub signature: Option<Signature>,
    /// Cases it must get right.
    pub golden: Option<Golden>,
}

/// Bytes that are, at this moment, the announced ones.
pub struct Verified(bytes::Bytes);

impl Verified {
    /// Size and digest: the disk may have rotted since the artifact came.
    pub fn read(artifact: &Artifact) -> Result<Self, Refusal> {
        Ok(Self(artifact.read()?))
    }
}

/// A model whose format and contract are good.
pub struct Loaded {
    model: Box<dyn Model>,
}

/// A model that has predicted, and rightly.
pub struct Warm {
    pub(super) model: Box<dyn Model>,
    pub(super) row_cost: Duration,
}

impl Loaded {
    /// Format and contract: the bytes are the format, and the model takes and gives what was announced.
    pub fn load(artifact: Verified, announced: &Announced, loaders: &Loaders, max_bytes: u64) -> Result<Self, Refusal> {
        let loader = loaders.get(announced.format.as_str()).ok_or_else(|| {
            let known = loaders.formats().join(", ");
            Refusal::new("unsupported_format", format!("no format {:?}: there are {known}", announced.format))
        })?;
        let Verified(bytes) = artifact;
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let bytes = notification::inflate(&bytes, announced.encoding, max_bytes, INFLATE_RATIO)
            .map_err(|rejection| Refusal::new(rejection.reason.code(), rejection.detail))?;
        let model = guarded(|| loader.load(&bytes))?.map_err(|error| {
            let reason = match error {
                hotserve_models::LoadError::Unsupported { .. } => "unsupported_format",
                _ => "malformed",
            };
            Refusal::new(reason, error.to_string())
        })?;
        if let Some(announced) = &announced.signature {
            check_contract(announced, model.signature())?;
        }
        Ok(Self { model })
    }

    /// Warm-up and golden cases: the model answers, in the shape it promises, and what it must.
    pub fn warm_up(self, announced: &Announced) -> Result<Warm, Refusal> {
        let model = self.model;
        let inputs = blank_row(model.signature());
        let begun = Instant::now();
        let mut row_cost = Duration::MAX;
        for _ in 0..WARM_UP_RUNS {
            let run = Instant::now();
            let outputs = guarded(|| model.infer(&inputs))?
                .map_err(|error| Refusal::new("warm_up", format!("a blank row fails: {error}")))?;
            row_cost = row_cost.min(run.elapsed());
            let rows = model
                .signature()
                .check_outputs(&outputs)
                .map_err(|error| Refusal::new("warm_up", format!("a blank row is answered wrongly: {error}")))?;
            if rows != 1 {
                return Err(Refusal::new("warm_up", format!("one row is answered with {rows}")));
            }
            if begun.elapsed() > WARM_UP_TIME {
                break;
            }
        }
        if let Some(golden) = &announced.golden {
            guarded(|| golden.check(&*model))?.map_err(|error| Refusal::new("golden", error.to_string()))?;
        }
        Ok(Warm { model, row_cost })
    }
}

/// What was announced must be there; how the columns are called may be left out.
fn check_contract(announced: &Signature, found: &Signature) -> Result<(), Refusal> {
    for (what, announced, found) in
        [("inputs", &announced.inputs, &found.inputs), ("outputs", &announced.outputs, &found.outputs)]
    {
        let fits = announced.len() == found.len()
            && announced.iter().zip(found).all(|(a, f)| {
                a.name == f.name
                    && a.datatype == f.datatype
                    && a.shape == f.shape
                    && (a.features.is_empty() || a.features == f.features)
            });
        if !fits {
            let text = |specs| serde_json::to_string(specs).unwrap_or_default();
            let detail = format!("the message announces the {what} {}, the model has {}", text(announced), text(found));
            return Err(Refusal::new("contract", detail));
        }
    }
    Ok(())
}

fn blank_row(signature: &Signature) -> Vec<Tensor> {
    let blank = |spec: &hotserve_models::TensorSpec| {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| if let Dim::Fixed(n) = dim { *n } else { 1 }).collect();
        let len = shape.iter().product();
        let data = match spec.datatype {
            DataType::Bool => Data::Bool(vec![false; len]),
            DataType::Int32 => Data::Int32(vec![0; len]),
            DataType::Int64 => Data::Int64(vec![0; len]),
            DataType::Fp32 => Data::Fp32(vec![0.0; len]),
            DataType::Fp64 => Data::Fp64(vec![0.0; len]),
            DataType::Bytes => Data::Bytes(vec![String::new(); len]),
        };
        Tensor::new(shape, data).expect("the buffer was made for the shape")
    };
    signature.inputs.iter().map(blank).collect()
}

fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let said = payload.downcast_ref::<&str>().map(ToString::to_string).or_else(|| payload.downcast_ref().cloned());
        Refusal::new("panic", format!("the model panicked: {}", said.unwrap_or_else(|| "without a word".to_owned())))
    })
}
