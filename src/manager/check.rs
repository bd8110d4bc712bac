//! The gates of a swap for a file at hand, and what it would cost to serve: `hotserve check`.

use std::path::Path;
use std::time::{Duration, Instant};

use hotserve_models::{Data, DataType, Dim, Golden, InferError, Loaders, Model, Signature, Tensor};
use serde::Serialize;

use super::stages::{Announced, INFER_STACK, LOAD_STACK, Loaded, Refusal, Verified, Warm, on_a_stack, too_slow};
use crate::id::{Digest, Format};
use crate::notification::{Encoding, ModelLimits};

/// How many rows are asked one by one, each another.
const ROWS: usize = 1024;
/// The batches that are measured.
const BATCHES: [usize; 2] = [64, 1024];
/// The longest time that each measurement takes.
const TIME: Duration = Duration::from_millis(500);
/// Rows of more elements than this in all are not made up.
const ELEMENTS: usize = 16 << 20;

/// What to hold a file to.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Cases it must get right.
    pub golden: Option<Golden>,
    /// What must go in and come out.
    pub contract: Option<Signature>,
    /// The longest time of one row.
    pub row_time: Option<Duration>,
    /// Whether NaN and infinities may come out where nothing expects them.
    pub allow_non_finite: bool,
}

/// What a server would find.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The kind of model.
    pub format: Format,
    /// Of the file.
    pub bytes: u64,
    /// Of the file.
    pub sha256: Digest,
    /// What evaluates it.
    pub engine: &'static str,
    /// What goes in and comes out.
    pub signature: Signature,
    /// How many golden cases it got right.
    pub golden_cases: usize,
    /// From bytes in memory to a model.
    pub load_seconds: f64,
    /// What it holds once it is loaded.
    pub memory_bytes: usize,
    /// One row after the other, each another, on one thread.
    pub row: Row,
    /// Rows together, on one thread.
    pub batches: Vec<Batch>,
}

/// What one row takes.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The middle one.
    pub p50_seconds: f64,
    /// The slowest but for a hundredth.
    pub p99_seconds: f64,
}

/// What rows take together.
#[derive(Debug, Serialize)]
pub struct Batch {
    /// How many.
    pub rows: usize,
    /// The best of the runs.
    pub rows_per_second: f64,
}

/// Puts a file through the gates of a swap, in this process: a model that crashes takes it along.
pub fn check(path: &Path, format: Format, expected: Expected, loaders: &Loaders) -> Result<Report, Refusal> {
    let unreadable = |error: std::io::Error| Refusal::new("disk", format!("{}: {error}", path.display()));
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let size = bytes.len() as u64;
    let sha256 = Digest::of(&bytes);
    let golden_cases = expected.golden.as_ref().map_or(0, |golden| golden.cases.len());
    let announced = Announced {
        name: None,
        format: format.clone(),
        encoding: Encoding::None,
        signature: None,
        golden: expected.golden,
        limits: ModelLimits { row_time: expected.row_time, ..ModelLimits::default() },
        contract: expected.contract,
    };
    let (loaded, load) = on_a_stack(LOAD_STACK, || {
        let begun = Instant::now();
        let loaded = Loaded::load(Verified::at_hand(bytes), &announced, loaders, u64::MAX)?;
        Ok((loaded, begun.elapsed()))
    })?;
    on_a_stack(INFER_STACK, || {
        let Warm { model, row_cost, row_p50, row_p99, .. } = loaded.warm_up(&announced, expected.allow_non_finite)?;
        if let Some(detail) = too_slow(row_cost, announced.limits.row_time) {
            return Err(Refusal::new("too_slow", detail));
        }
        // A model that takes only what it knows takes no row that is made up: its warm-up says what a row takes.
        let row = one_by_one(&*model)
            .unwrap_or(Row { p50_seconds: row_p50.as_secs_f64(), p99_seconds: row_p99.as_secs_f64() });
        let batches = BATCHES.into_iter().filter_map(|rows| together(&*model, rows).ok()).collect();
        Ok(Report {
            format,
            bytes: size,
            sha256,
            engine: model.engine(),
            signature: model.signature().clone(),
            golden_cases,
            load_seconds: load.as_secs_f64(),
            memory_bytes: model.memory_bytes(),
            row,
            batches,
        })
    })
}

fn one_by_one(model: &dyn Model) -> Result<Row, InferError> {
    let rows = fitting(model.signature(), ROWS);
    let inputs: Vec<_> = (0..rows).map(|seed| made_up(model.signature(), 1, seed as u64)).collect();
    let begun = Instant::now();
    let mut times = Vec::new();
    // The first round only warms the caches.
    for round in 0..4 {
        for inputs in &inputs {
            let run = Instant::now();
            infer(model, inputs)?;
            let time = run.elapsed();
            if round > 0 || times.is_empty() {
                times.push(time);
            }
            if begun.elapsed() > TIME {
                break;
            }
        }
    }
    times.sort_unstable();
    let at = |hundredths: usize| times.get((times.len() - 1) * hundredths / 100).copied().unwrap_or_default();
    Ok(Row { p50_seconds: at(50).as_secs_f64(), p99_seconds: at(99).as_secs_f64() })
}

fn together(model: &dyn Model, rows: usize) -> Result<Batch, InferError> {
    let rows = fitting(model.signature(), rows);
    let inputs = made_up(model.signature(), rows, 0);
    let begun = Instant::now();
    let mut best = Duration::MAX;
    while begun.elapsed() < TIME {
        let run = Instant::now();
        infer(model, &inputs)?;
        best = best.min(run.elapsed());
    }
    Ok(Batch { rows, rows_per_second: rows as f64 / best.as_secs_f64().max(1e-9) })
}

fn infer(model: &dyn Model, inputs: &[Tensor]) -> Result<(), InferError> {
    std::hint::black_box(model.infer(inputs)?);
    Ok(())
}

/// As many rows as asked for, unless they are very wide.
pub(super) fn fitting(signature: &Signature, rows: usize) -> usize {
    let width: usize = signature.inputs.iter().map(|spec| spec.row_len().unwrap_or(1)).sum();
    rows.min(ELEMENTS / width.max(1)).max(1)
}

/// Rows of numbers from -4 to 4, the same for the same seed; whole ones from 0 to 7, and short texts.
pub(super) fn made_up(signature: &Signature, rows: usize, seed: u64) -> Vec<Tensor> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut fill = |spec: &hotserve_models::TensorSpec| {
        let length = |dim: &Dim| if let Dim::Fixed(length) = dim { *length } else { 1 };
        let shape: Vec<usize> = std::iter::once(rows).chain(spec.shape.iter().skip(1).map(length)).collect();
        let len = 0..shape.iter().product();
        let data = match spec.datatype {
            DataType::Bool => Data::Bool(len.map(|_| random.bool()).collect()),
            DataType::Int32 => Data::Int32(len.map(|_| random.i32(0..8)).collect()),
            DataType::Int64 => Data::Int64(len.map(|_| random.i64(0..8)).collect()),
            DataType::Fp32 => Data::Fp32(len.map(|_| (random.f32() - 0.5) * 8.0).collect()),
            DataType::Fp64 => Data::Fp64(len.map(|_| (random.f64() - 0.5) * 8.0).collect()),
            DataType::Bytes => Data::Bytes(len.map(|_| random.lowercase().to_string()).collect()),
        };
        Tensor::new(shape, data).expect("the buffer was made for the shape")
    };
    signature.inputs.iter().map(&mut fill).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(sample: &str, expected: Expected) -> Result<Report, Refusal> {
        let sample = hotserve_models::samples::all().iter().find(|known| known.name == sample).expect("a sample");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), sample.bytes).expect("written");
        check(file.path(), sample.format.parse().expect("a format"), expected, &Loaders::bundled())
    }

    #[test]
    fn a_sound_file_is_measured() {
        let report = checked("fraud", Expected::default()).expect("it is sound");
        assert_eq!((report.engine, report.golden_cases), ("forest", 0));
        assert!(report.row.p50_seconds > 0.0 && report.row.p99_seconds >= report.row.p50_seconds);
        assert_eq!(report.batches.iter().map(|batch| batch.rows).collect::<Vec<_>>(), BATCHES);
        assert!(report.load_seconds > 0.0 && report.memory_bytes > 1000);
    }

    #[test]
    fn what_a_server_would_refuse_is_refused() {
        let wrong: Golden = serde_json::from_str(
            r#"{"cases": [{"inputs": {"input": [[5.1, 3.5, 1.4, 0.2]]}, "outputs": {"label": ["virginica"]}}]}"#,
        )
        .expect("golden cases");
        let refused = |expected| checked("iris", expected).expect_err("it is refused").reason;
        assert_eq!(refused(Expected { golden: Some(wrong), ..Expected::default() }), "golden");
        let contract = Some(Signature { inputs: vec![], outputs: vec![] });
        assert_eq!(refused(Expected { contract, ..Expected::default() }), "contract");
        assert_eq!(refused(Expected { row_time: Some(Duration::from_nanos(1)), ..Expected::default() }), "too_slow");
    }
}
