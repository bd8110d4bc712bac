//! The gates between an artifact and being served: `Artifact → Proved → Verified → Loaded → Warm`. Each step consumes the
//! one before, so that a model that skipped a gate cannot reach the swap.
//!
//! A probe (see [`probe`](super::probe)) takes the same steps in a process of its own, and its pass is what `Proved` says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use hotserve_models::{Data, DataType, Dim, Golden, GoldenError, InferError, Loaders, Model, Signature, Tensor};
use serde::{Deserialize, Serialize};

use super::batch;
use crate::id::{Digest, Format, ModelName};
use crate::notification::{self, Encoding, ModelLimits};
use crate::serving::{INLINE_COST, ModelFacts, ServedModel};
use crate::store::{self, Artifact};

/// The longest time to spend on measuring.
const WARM_UP_TIME: Duration = Duration::from_millis(200);
/// How often a row is predicted to measure it.
const RUNS: u32 = 20;
/// Rows cheaper than this are never too slow beside another model: a step of the clock would be a factor.
const SLOWDOWN_FLOOR: Duration = Duration::from_micros(20);
/// The stack of the thread that loads. A probe gives half of it, so that what passes there does not overflow here.
pub const LOAD_STACK: usize = 8 << 20;
/// The stack that a model may count on when it answers: any thread of the server may ask it. Again a probe gives half.
pub const INFER_STACK: usize = 2 << 20;
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

/// What the message says of the model, besides where it is, and what its slot wants of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Announced {
    /// Whose slot it is for; nothing for a file at hand.
    pub name: Option<ModelName>,
    /// Which kind of model.
    pub format: Format,
    /// How the bytes are compressed.
    pub encoding: Encoding,
    /// What goes in and comes out.
    pub signature: Option<Signature>,
    /// Cases it must get right.
    pub golden: Option<Golden>,
    /// What it may take.
    pub limits: ModelLimits,
    /// What must go in and come out, by this server's settings.
    pub contract: Option<Signature>,
}

/// What the gates of a server allow.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Gates {
    /// The largest inflated artifact.
    pub max_bytes: u64,
    /// Whether NaN and infinities may come out where nothing expects them.
    pub allow_non_finite: bool,
    /// How many rows of requests that wait may be answered together.
    pub max_batch_rows: usize,
}

/// An artifact of which it is known that loading it hurts nobody.
pub struct Proved {
    pub(super) artifact: Artifact,
    pub(super) announced: Announced,
}

impl Proved {
    /// It passed in a process of its own.
    pub(super) fn by_probe(artifact: Artifact, announced: Announced) -> Self {
        Self { artifact, announced }
    }

    /// It was served on this machine before.
    pub(super) fn by_service(artifact: Artifact, announced: Announced) -> Self {
        Self { artifact, announced }
    }

    /// Nobody knows: `--isolation thread` takes the risk.
    pub(super) fn by_nobody(artifact: Artifact, announced: Announced) -> Self {
        Self { artifact, announced }
    }
}

/// Bytes that are, at this moment, the announced ones.
pub struct Verified(bytes::Bytes);

impl Verified {
    /// Size and digest: the disk may have rotted since the artifact came.
    pub fn read(artifact: &Artifact) -> Result<Self, Refusal> {
        Ok(Self(artifact.read()?))
    }

    /// Bytes that nobody announced: a person has them at hand.
    pub(super) fn at_hand(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The same, from a file that is open already.
    pub(super) fn read_file(file: std::fs::File, digest: Digest) -> Result<Self, Refusal> {
        Ok(Self(store::read_proved(file, digest)?))
    }
}

/// A model whose format and contract are good.
pub struct Loaded {
    pub(super) model: Box<dyn Model>,
}

/// A model that has predicted, and rightly.
pub struct Warm {
    pub(super) model: Box<dyn Model>,
    /// The fastest of the runs of one row.
    pub(super) row_cost: Duration,
    /// The middle one.
    pub(super) row_p50: Duration,
    /// The slowest but for a hundredth.
    pub(super) row_p99: Duration,
    /// How many rows of it are best answered together; 1 until that [is measured](Self::with_batches).
    pub(super) batch_rows: usize,
}

impl Warm {
    /// The same, once it is known whether rows gain by being answered together.
    pub(super) fn with_batches(self, most: usize) -> Self {
        let batch_rows = if self.row_cost < INLINE_COST { 1 } else { batch::worth(&*self.model, self.row_cost, most) };
        Self { batch_rows, ..self }
    }

    /// As it is served.
    pub(super) fn served(self, facts: ModelFacts) -> ServedModel {
        ServedModel::new(facts, self.model, self.row_cost).with_batches(self.batch_rows)
    }
}

impl Loaded {
    /// Format and contract: the bytes are the format, and the model takes and gives what was announced, and what is
    /// wanted of its slot.
    pub fn load(artifact: Verified, announced: &Announced, loaders: &Loaders, max_bytes: u64) -> Result<Self, Refusal> {
        let loader = loaders.get(announced.format.as_str()).ok_or_else(|| {
            let known = loaders.formats().join(", ");
            Refusal::new("unsupported_format", format!("no format {:?}: there are {known}", announced.format))
        })?;
        let Verified(encoded) = artifact;
        let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
        let bytes = notification::inflate(&encoded, announced.encoding, max_bytes, INFLATE_RATIO)
            .map_err(|rejection| Refusal::new(rejection.reason.code(), rejection.detail))?;
        // A large artifact is not to lie beside its inflated self and the model.
        drop(encoded);
        let model = guarded(|| loader.load(&bytes))?.map_err(|error| {
            let reason = match error {
                hotserve_models::LoadError::Unsupported { .. } => "unsupported_format",
                _ => "malformed",
            };
            Refusal::new(reason, error.to_string())
        })?;
        drop(bytes);
        // What is proved from here on is what is served.
        let model = guarded(|| loaders.dress(announced.name.as_ref().map(ModelName::as_str), model))?;
        if let Some(announced) = &announced.signature {
            check_contract("the message announces", announced, model.signature())?;
        }
        if let Some(wanted) = &announced.contract {
            check_contract("this slot's contract (--contract) wants", wanted, model.signature())?;
        }
        Ok(Self { model })
    }

    /// Warm-up and golden cases: the model answers, in the shape it promises, and what it must.
    pub fn warm_up(self, announced: &Announced, allow_non_finite: bool) -> Result<Warm, Refusal> {
        let model = self.model;
        let golden = announced.golden.as_ref().filter(|golden| !golden.cases.is_empty());
        let inputs = warm_up_inputs(&*model, golden)?;
        let wanted = model.signature().check_inputs(&inputs).unwrap_or(1).max(1);
        let begun = Instant::now();
        let mut answer = Vec::new();
        let mut times = Vec::new();
        for _ in 0..RUNS {
            let run = Instant::now();
            let outputs = guarded(|| model.infer(&inputs))?
                .map_err(|error| Refusal::new("warm_up", format!("a blank row fails: {error}")))?;
            times.push(run.elapsed() / u32::try_from(wanted).unwrap_or(u32::MAX));
            let rows = model
                .signature()
                .check_outputs(&outputs)
                .map_err(|error| Refusal::new("warm_up", format!("a row is answered wrongly: {error}")))?;
            if rows != wanted {
                return Err(Refusal::new("warm_up", format!("{wanted} rows are answered with {rows}")));
            }
            answer = outputs;
            if begun.elapsed() > WARM_UP_TIME {
                break;
            }
        }
        match golden {
            Some(golden) => {
                let check = || if allow_non_finite { golden.check(&*model) } else { golden.check_finite(&*model) };
                guarded(check)?.map_err(|error| {
                    let reason = if matches!(error, GoldenError::NonFinite { .. }) { "non_finite" } else { "golden" };
                    Refusal::new(reason, error.to_string())
                })?;
            }
            None if !allow_non_finite => check_finite(&*model, &answer)?,
            None => {}
        }
        times.sort_unstable();
        let at = |hundredths: usize| times.get((times.len() - 1) * hundredths / 100).copied().unwrap_or_default();
        Ok(Warm { row_cost: at(0), row_p50: at(50), row_p99: at(99), batch_rows: 1, model })
    }
}

/// A blank row; or, for a model that takes only what it knows, the first of its golden cases.
fn warm_up_inputs(model: &dyn Model, golden: Option<&Golden>) -> Result<Vec<Tensor>, Refusal> {
    let blank = row_of(0, model.signature());
    match (guarded(|| model.infer(&blank))?, golden.and_then(|golden| golden.cases.first())) {
        (Err(InferError::BadInput(_)), Some(case)) => {
            let unusable = |detail| Refusal::new("golden", format!("golden case 0: {detail}"));
            case.inputs(model.signature()).map_err(unusable)
        }
        (Err(InferError::BadInput(why)), None) => {
            let detail = format!("a blank row is no input of it ({why}): add golden cases, so that it can be tried");
            Err(Refusal::new("warm_up", detail))
        }
        // What fails otherwise fails again.
        _ => Ok(blank),
    }
}

/// Without golden cases to say what is right: a number that is not finite for zeros, nor for ones, is taken to be so for
/// every row. Zeros alone may be the one place where a sound model has no value.
fn check_finite(model: &dyn Model, blank: &[Tensor]) -> Result<(), Refusal> {
    if blank.iter().all(|output| output.data().first_non_finite().is_none()) {
        return Ok(());
    }
    let Ok(ones) = guarded(|| model.infer(&row_of(1, model.signature())))? else { return Ok(()) };
    for ((spec, blank), ones) in model.signature().outputs.iter().zip(blank).zip(&ones) {
        let both = non_finite(blank.data()).into_iter().zip(non_finite(ones.data())).position(|(a, b)| a && b);
        if let Some(column) = both {
            let detail = format!(
                "output {:?}, column {column}, is no finite number for a row of zeros, nor for one of ones: train it \
                 anew, or add golden cases that expect it (or --allow-non-finite)",
                spec.name
            );
            return Err(Refusal::new("non_finite", detail));
        }
    }
    Ok(())
}

fn non_finite(data: &Data) -> Vec<bool> {
    match data {
        Data::Fp32(numbers) => numbers.iter().map(|x| !x.is_finite()).collect(),
        Data::Fp64(numbers) => numbers.iter().map(|x| !x.is_finite()).collect(),
        _ => Vec::new(),
    }
}

/// Whether one row takes too long, and why. The times are the fastest of several runs: noise only ever adds.
pub fn too_slow(row: Duration, bound: Option<Duration>) -> Option<String> {
    let bound = bound.filter(|bound| row > *bound)?;
    Some(format!("one row takes {row:.1?}, and {bound:?} is allowed (--max-row-time, or the message's limits)"))
}

/// Whether one row takes too long beside the model that is served.
pub fn slowed_down(row: Duration, served: Duration, factor: f64) -> Option<String> {
    let bound = served.mul_f64(factor).max(SLOWDOWN_FLOOR);
    (row > bound).then(|| {
        let times = row.as_secs_f64() / served.as_secs_f64().max(1e-9);
        format!(
            "one row takes {row:.1?}, {times:.1} times the {served:.1?} of the model that is served, and \
                 {factor} is allowed (--max-slowdown)"
        )
    })
}

/// What was promised must be there; how the columns are called may be left out.
fn check_contract(who: &str, promised: &Signature, found: &Signature) -> Result<(), Refusal> {
    for (what, promised, found) in
        [("inputs", &promised.inputs, &found.inputs), ("outputs", &promised.outputs, &found.outputs)]
    {
        let fits = promised.len() == found.len()
            && promised.iter().zip(found).all(|(a, f)| {
                a.name == f.name
                    && a.datatype == f.datatype
                    && a.shape == f.shape
                    && (a.features.is_empty() || a.features == f.features)
            });
        if !fits {
            let text = |specs| serde_json::to_string(specs).unwrap_or_default();
            let detail = format!("{who} the {what} {}, the model has {}", text(promised), text(found));
            return Err(Refusal::new("contract", detail));
        }
    }
    Ok(())
}

/// One row, of nothing but this number; texts are empty.
fn row_of(number: u8, signature: &Signature) -> Vec<Tensor> {
    let fill = |spec: &hotserve_models::TensorSpec| {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| if let Dim::Fixed(n) = dim { *n } else { 1 }).collect();
        let len = shape.iter().product();
        let data = match spec.datatype {
            DataType::Bool => Data::Bool(vec![number != 0; len]),
            DataType::Int32 => Data::Int32(vec![number.into(); len]),
            DataType::Int64 => Data::Int64(vec![number.into(); len]),
            DataType::Fp32 => Data::Fp32(vec![number.into(); len]),
            DataType::Fp64 => Data::Fp64(vec![number.into(); len]),
            DataType::Bytes => Data::Bytes(vec![String::new(); len]),
        };
        Tensor::new(shape, data).expect("the buffer was made for the shape")
    };
    signature.inputs.iter().map(fill).collect()
}

/// On a thread with just this much of a stack.
pub(super) fn on_a_stack<T: Send>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Refusal> + Send,
) -> Result<T, Refusal> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bytes).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| Refusal::new("unavailable", format!("no thread can be had: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(Refusal::new("panic", "the model panicked")))
    })
}

pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let said = payload.downcast_ref::<&str>().map(ToString::to_string).or_else(|| payload.downcast_ref().cloned());
        Refusal::new("panic", format!("the model panicked: {}", said.unwrap_or_else(|| "without a word".to_owned())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hotserve_models::{Dim, TensorSpec};

    /// What stands for an input that a model does not take.
    const BAD: [f32; 2] = [-1.0, -1.0];

    /// Answers two numbers of its input.
    struct Answers(Signature, fn(f32) -> [f32; 2]);

    impl Model for Answers {
        fn signature(&self) -> &Signature {
            &self.0
        }

        fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
            let x = inputs.first().and_then(Tensor::as_f32).and_then(|row| row.first().copied()).unwrap_or(f32::NAN);
            let y = (self.1)(x);
            if y == BAD {
                return Err(InferError::BadInput("a value is no category of the model".to_owned()));
            }
            Ok(vec![Tensor::new(vec![1, 2], Data::Fp32(y.to_vec())).expect("two numbers")])
        }

        fn memory_bytes(&self) -> usize {
            0
        }

        fn engine(&self) -> &'static str {
            "answers"
        }
    }

    fn warm(answers: fn(f32) -> [f32; 2], golden: Option<&str>, allow: bool) -> Result<(), &'static str> {
        let spec = |name: &str, width| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: vec![Dim::Any, Dim::Fixed(width)],
            features: vec![],
        };
        let signature = Signature { inputs: vec![spec("x", 1)], outputs: vec![spec("y", 2)] };
        let announced = Announced {
            name: None,
            format: "answers".parse().expect("a format"),
            encoding: Encoding::None,
            signature: None,
            golden: golden.map(|text| serde_json::from_str(text).expect("golden cases")),
            limits: ModelLimits::default(),
            contract: None,
        };
        let loaded = Loaded { model: Box::new(Answers(signature, answers)) };
        loaded.warm_up(&announced, allow).map(|_| ()).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn what_is_never_a_number_is_refused_unless_it_is_expected() {
        let nan = Err("non_finite");
        assert_eq!(warm(|x| [x, 1.0], None, false), Ok(()));
        assert_eq!(warm(|x| [x, f32::NAN], None, false), nan);
        assert_eq!(warm(|_| [f32::INFINITY, 0.0], None, false), nan);
        assert_eq!(warm(|x| [x, f32::NAN], None, true), Ok(()));
        // A logarithm, a quotient: zeros are no row of any client.
        assert_eq!(warm(|x| [x.ln(), 1.0 / x], None, false), Ok(()));
        let golden = |y: &str| format!(r#"{{"cases": [{{"inputs": {{"x": [[2]]}}, "outputs": {{"y": {y}}}}}]}}"#);
        assert_eq!(warm(|x| [x, f32::NAN], Some(&golden("[[2, null]]")), false), Ok(()));
        assert_eq!(warm(|x| [x, f32::NAN], Some(&golden("[[2, 3]]")), false), Err("golden"));
        assert_eq!(warm(|x| [x / x, 1.0], Some(&golden("[[1, 1]]")), false), Ok(()));
    }

    #[test]
    fn a_model_that_takes_no_blank_row_is_judged_by_its_golden_cases() {
        // Below 2 there is nothing that it knows.
        let strict = |x: f32| if x < 2.0 { BAD } else { [x, 3.0] };
        let golden = |y: &str| format!(r#"{{"cases": [{{"inputs": {{"x": [[2]]}}, "outputs": {{"y": {y}}}}}]}}"#);
        assert_eq!(warm(strict, None, false), Err("warm_up"), "nothing says what it takes");
        assert_eq!(warm(strict, Some(&golden("[[2, 3]]")), false), Ok(()));
        assert_eq!(warm(strict, Some(&golden("[[2, 4]]")), false), Err("golden"));
    }

    #[test]
    fn noise_is_not_slow_and_a_multiple_is() {
        let us = Duration::from_micros;
        assert_eq!(too_slow(us(100), None), None);
        assert_eq!(too_slow(us(100), Some(us(100))), None);
        assert!(too_slow(us(101), Some(us(100))).is_some());
        assert_eq!(slowed_down(us(20), us(1), 1.0), None);
        assert!(slowed_down(us(21), us(1), 2.0).is_some_and(|why| why.contains("21.0 times")));
        assert_eq!(slowed_down(us(200), us(100), 2.0), None);
        assert!(slowed_down(us(201), us(100), 2.0).is_some());
        assert!(slowed_down(us(201), Duration::ZERO, 2.0).is_some());
    }
}
