//! Whether a model answers rows together for less than one after the other, and rightly: measured when it is made ready.

use std::time::{Duration, Instant};

use hotserve_models::{Data, InferError, Model, Tensor, blocks};

use super::check::{fitting, made_up};
use super::stages::guarded;

/// The longest time to spend on it; a run that has begun ends.
const TIME: Duration = Duration::from_millis(200);
/// The longest time for finding out whether rows change each other: a model that takes longer is asked for one at a time.
const MOST: Duration = Duration::from_secs(2);
/// How often each size is tried at most.
const RUNS: usize = 3;
/// What more rows must save of the time of each.
const SAVING: f64 = 0.1;
/// How far two answers to the same row may lie apart, of their size, and of nothing: sums are taken in another order.
const TOLERANCE: (f64, f64) = (1e-3, 1e-6);
/// What is made of every other row: so much larger, it shows in its neighbours where they share a scale.
const LARGER: f64 = 1e6;

/// How many rows are best answered together: the last size of which each row took clearly less than of any before. It is
/// 1 for a model whose answers depend on what else is asked, or that does not take rows that are made up.
pub(super) fn worth(model: &dyn Model, row_cost: Duration, most: usize) -> usize {
    // A model that panics passed its gates by luck, and is asked for one row at a time.
    guarded(|| measured(model, row_cost, most)).ok().and_then(Result::ok).unwrap_or(1)
}

fn measured(model: &dyn Model, row_cost: Duration, most: usize) -> Result<usize, InferError> {
    // Two rows together, and each of two pairs alone, take some six rows' time.
    if row_cost * 6 > MOST {
        return Ok(1);
    }
    let begun = Instant::now();
    let rows = made_up(model.signature(), fitting(model.signature(), most), 7);
    if most < 2 || !alone_too(model, &blocks::rows_of(&rows, 0..2)?)? || !alone_too(model, &uneven(&rows)?)? {
        return Ok(1);
    }
    let (mut best, mut each) = (1, row_cost.as_secs_f64());
    let mut size = 2;
    while size <= fitting(model.signature(), most) && begun.elapsed() < TIME {
        let inputs = blocks::rows_of(&rows, 0..size)?;
        let mut fastest = Duration::MAX;
        for _ in 0..RUNS {
            let run = Instant::now();
            std::hint::black_box(model.infer(&inputs)?);
            fastest = fastest.min(run.elapsed());
            if begun.elapsed() > TIME {
                break;
            }
        }
        let now = fastest.as_secs_f64() / size as f64;
        // Two rows may gain nothing where eight do: only then an engine multiplies matrices.
        if now < each * (1.0 - SAVING) {
            (best, each) = (size, now);
        }
        size *= 2;
    }
    Ok(best)
}

/// Whether each row gets the answer that it gets alone.
fn alone_too(model: &dyn Model, inputs: &[Tensor]) -> Result<bool, InferError> {
    let outputs = model.infer(inputs)?;
    let rows = outputs.first().and_then(|output| output.shape().first().copied()).unwrap_or(0);
    for row in 0..rows {
        let alone = model.infer(&blocks::rows_of(inputs, row..row + 1)?)?;
        let together = blocks::rows_of(&outputs, row..row + 1)?;
        let same = |(a, b): (&Tensor, &Tensor)| a.shape() == b.shape() && near(a.data(), b.data());
        if alone.len() != together.len() || !alone.iter().zip(&together).all(same) {
            return Ok(false);
        }
    }
    Ok(rows > 0)
}

/// Two rows, the second of which is much larger.
fn uneven(rows: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
    let larger = |tensor: Tensor| {
        let (shape, mut data) = tensor.into_parts();
        let half = data.len() / 2;
        match &mut data {
            Data::Fp32(values) => values.iter_mut().skip(half).for_each(|value| *value *= LARGER as f32),
            Data::Fp64(values) => values.iter_mut().skip(half).for_each(|value| *value *= LARGER),
            _ => {}
        }
        Tensor::new(shape, data).map_err(|error| InferError::Failed(error.to_string()))
    };
    blocks::rows_of(rows, 0..2)?.into_iter().map(larger).collect()
}

fn near(a: &Data, b: &Data) -> bool {
    let (relative, least) = TOLERANCE;
    // Of an infinity all would be near.
    let within = |a: f64, b: f64| a.is_finite() && (a - b).abs() <= relative * a.abs() + least;
    let close = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan() || within(a, b);
    match (a, b) {
        (Data::Fp32(a), Data::Fp32(b)) => a.iter().zip(b).all(|(a, b)| close((*a).into(), (*b).into())),
        (Data::Fp64(a), Data::Fp64(b)) => a.iter().zip(b).all(|(a, b)| close(*a, *b)),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use hotserve_models::{DataType, Dim, Signature, TensorSpec};

    use super::*;

    /// Takes a time for each call and one for each row, and answers what it is told to.
    struct Slow {
        signature: Signature,
        call: Duration,
        row: Duration,
        answer: fn(&[f32]) -> Vec<f32>,
    }

    impl Model for Slow {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
            let numbers = inputs[0].as_f32().expect("floats");
            std::thread::sleep(self.call + self.row * u32::try_from(numbers.len()).expect("few rows"));
            let answers = (self.answer)(numbers);
            if answers.is_empty() {
                return Err(InferError::BadInput("it knows no such row".to_owned()));
            }
            Ok(vec![Tensor::new(vec![answers.len(), 1], Data::Fp32(answers)).expect("a column")])
        }

        fn memory_bytes(&self) -> usize {
            0
        }

        fn engine(&self) -> &'static str {
            "slow"
        }
    }

    fn rows(call_ms: u64, row_ms: u64, answer: fn(&[f32]) -> Vec<f32>, most: usize) -> usize {
        let spec = |name: &str| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: vec![Dim::Any, Dim::Fixed(1)],
            features: vec![],
        };
        let signature = Signature { inputs: vec![spec("x")], outputs: vec![spec("y")] };
        let (call, row) = (Duration::from_millis(call_ms), Duration::from_millis(row_ms));
        worth(&Slow { signature, call, row, answer }, call + row, most)
    }

    #[test]
    fn rows_are_answered_together_where_that_takes_less_for_each() {
        assert_eq!(rows(4, 0, |x| x.to_vec(), 16), 16);
        assert_eq!(rows(4, 0, |x| x.to_vec(), 1), 1);
        assert_eq!(rows(0, 4, |x| x.to_vec(), 16), 1, "each row takes as long as alone");
    }

    #[test]
    fn a_model_whose_rows_change_each_other_is_asked_for_one_at_a_time() {
        let less_mean = |x: &[f32]| x.iter().map(|value| value - x.iter().sum::<f32>() / x.len() as f32).collect();
        assert_eq!(rows(4, 0, less_mean, 16), 1);
        // A scale of all that is asked, as of numbers that are made whole ones on the way.
        let whole = |x: &[f32]| {
            let scale = x.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
            x.iter().map(|value| (value / scale).round() * scale).collect()
        };
        assert_eq!(rows(4, 0, whole, 16), 1);
        let infinite = |x: &[f32]| vec![if x.len() > 1 { 1.0 } else { f32::INFINITY }; x.len()];
        assert_eq!(rows(4, 0, infinite, 16), 1);
        assert_eq!(rows(400, 0, |x| x.to_vec(), 16), 1, "to find it out takes too long");
        assert_eq!(rows(4, 0, |_| vec![], 16), 1, "it takes no row that is made up");
        assert_eq!(rows(4, 0, |x| if x.len() > 1 { panic!("on purpose") } else { x.to_vec() }, 16), 1);
    }
}
