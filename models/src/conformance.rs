//! The checks that every [`Loader`] must pass; for the authors of new kinds, to call from their tests.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Data, DataType, Dim, Golden, Loader, Model, Signature, Tensor, TensorSpec, blocks};

/// Rows of the largest batch; more than the blocks that evaluators work in.
const ROWS: usize = 150;

/// How far a row's answer may depend on the size of its batch, relative: kernels for batches may sum in another order.
const BATCH_TOLERANCE: f64 = 1e-5;

/// Inputs wider than this are not made up: a damaged file may declare any width.
const MAX_ROW_LEN: usize = 1 << 20;

/// Checks that a kind keeps the contracts of [`Loader`] and [`Model`], given one good artifact of it.
///
/// The artifact must load, answer `golden`, and answer batches of no, one and many rows, extremes included, the same
/// way every time, row by row and from several threads. Then the artifact is cut off, damaged and replaced by garbage
/// a few hundred times: each of these must load or be refused, without a panic and without outsized memory. The error
/// says what failed first.
pub fn check(loader: &dyn Loader, good: &[u8], golden: Option<&Golden>) -> Result<(), String> {
    let format = loader.format();
    ensure(!format.is_empty() && format == format.to_ascii_lowercase(), || {
        format!("the format's name {format:?} is not in lower case")
    })?;
    ensure(loader.recognizes(good), || "the artifact is not recognized".to_owned())?;
    ensure(!loader.recognizes(b""), || "an empty artifact is recognized".to_owned())?;
    let model = loader.load(good).map_err(|error| format!("load the artifact: {error}"))?;
    let model = &*model;

    check_signature(model.signature())?;
    check_memory(model, good.len())?;
    ensure(!model.engine().is_empty(), || "the engine has no name".to_owned())?;
    if let Some(golden) = golden {
        golden.check(model).map_err(|error| error.to_string())?;
    }
    check_answers(model)?;
    check_threads(model)?;
    check_damage(loader, good)
}

fn check_signature(signature: &Signature) -> Result<(), String> {
    for (what, specs) in [("input", &signature.inputs), ("output", &signature.outputs)] {
        ensure(!specs.is_empty(), || format!("there is no {what}"))?;
        check_names(what, specs.iter().map(|spec| &spec.name))?;
        for TensorSpec { name, shape, features, .. } in specs {
            ensure(shape.first() == Some(&Dim::Any), || format!("the first axis of {what} {name:?} is not -1"))?;
            if !features.is_empty() {
                ensure(shape.get(1..) == Some(&[Dim::Fixed(features.len())]), || {
                    format!("{what} {name:?} has {} features and the shape {shape:?}", features.len())
                })?;
                check_names("feature", features.iter())?;
            }
        }
    }
    Ok(())
}

fn check_names<'a>(what: &str, names: impl Iterator<Item = &'a String>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        ensure(!name.is_empty(), || format!("an {what} has no name"))?;
        ensure(seen.insert(name), || format!("the {what} {name:?} is there twice"))?;
    }
    Ok(())
}

fn check_memory(model: &dyn Model, file: usize) -> Result<(), String> {
    let bytes = model.memory_bytes();
    ensure(bytes > 0, || "the model claims to hold no memory".to_owned())?;
    let most = file.saturating_mul(64).saturating_add(1 << 20);
    ensure(bytes <= most, || format!("the model claims {bytes} bytes of memory for a file of {file} bytes"))
}

fn check_answers(model: &dyn Model) -> Result<(), String> {
    let mut random = Random(0x5eed);
    for extremes in [false, true] {
        let batch = random.batch(model.signature(), ROWS, extremes);
        let whole = infer(model, &batch)?;
        ensure(same(&whole, &infer(model, &batch)?, 0.0), || "the same batch is answered in two ways".to_owned())?;
        for (from, rows) in [(0, 0), (0, 1), (3, 2), (5, 64), (1, ROWS - 1)] {
            let part = infer(model, &rows_of(&batch, from, rows))?;
            ensure(same(&rows_of(&whole, from, rows), &part, BATCH_TOLERANCE), || {
                format!("rows {from} to {} are answered in another way in a batch of {rows}", from + rows)
            })?;
        }
        for row in 0..ROWS {
            let alone = infer(model, &rows_of(&batch, row, 1))?;
            ensure(same(&rows_of(&whole, row, 1), &alone, BATCH_TOLERANCE), || {
                format!("row {row} of a batch is answered in another way alone")
            })?;
        }
    }
    Ok(())
}

fn check_threads(model: &dyn Model) -> Result<(), String> {
    let batch = &random_batch(model.signature());
    let expected = &infer(model, batch)?;
    std::thread::scope(|scope| {
        let ask = || -> Result<(), String> {
            for _ in 0..8 {
                ensure(same(expected, &infer(model, batch)?, 0.0), || "another thread gets another answer".to_owned())?;
            }
            Ok(())
        };
        let threads = [scope.spawn(ask), scope.spawn(ask), scope.spawn(ask), scope.spawn(ask)];
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
    })
}

fn check_damage(loader: &dyn Loader, good: &[u8]) -> Result<(), String> {
    // Large artifacts take long to load: the total of bytes read is what is kept level.
    let rounds = (6_000_000 / good.len().max(1)).clamp(24, 400);
    let before = peak_address_space();
    let mut random = Random(0xdead_beef);

    for round in 0..rounds {
        let length = if good.len() <= rounds { round } else { random.below(good.len()) };
        try_damaged(loader, good.get(..length).unwrap_or(good), "cut off", length)?;
    }
    for round in 0..rounds {
        let mut bytes = good.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                // Half of them one bit, which often leaves the file's structure whole.
                *byte ^= if random.below(2) == 0 { 1 << random.below(8) } else { random.below(256) as u8 };
            }
        }
        try_damaged(loader, &bytes, "with flipped bytes", round)?;
    }
    for round in 0..rounds {
        let head = good.get(..random.below(64).min(good.len())).unwrap_or(good);
        let length = random.below(2048);
        let bytes: Vec<u8> = head.iter().copied().chain((0..length).map(|_| random.below(256) as u8)).collect();
        try_damaged(loader, &bytes, "replaced by garbage", round)?;
    }
    if let (Some(before), Some(after)) = (before, peak_address_space()) {
        // Far above what other threads of a test binary take, far below a 32-bit count that was believed.
        ensure(after.saturating_sub(before) < 4 << 30, || "damaged artifacts took gigabytes of memory".to_owned())?;
    }
    Ok(())
}

/// Loads what may be nonsense: the only wrong outcomes are a panic and a model that panics or claims outsized memory.
fn try_damaged(loader: &dyn Loader, bytes: &[u8], how: &str, round: usize) -> Result<(), String> {
    let attempt = catch_unwind(AssertUnwindSafe(|| -> Result<(), String> {
        loader.recognizes(bytes);
        let Ok(model) = loader.load(bytes) else { return Ok(()) };
        check_memory(&*model, bytes.len())?;
        check_signature(model.signature())?;
        let row_len = |spec: &TensorSpec| spec.row_len().unwrap_or(1);
        if model.signature().inputs.iter().all(|spec| row_len(spec) <= MAX_ROW_LEN) {
            infer(&*model, &Random(7).batch(model.signature(), 2, true))?;
        }
        Ok(())
    }));
    match attempt {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("the artifact {how} ({round}) loads, but {error}")),
        Err(_) => Err(format!("the artifact {how} ({round}) makes the loader or its model panic")),
    }
}

fn infer(model: &dyn Model, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let rows = model.signature().check_inputs(inputs).map_err(|error| format!("check made-up inputs: {error}"))?;
    let outputs = catch_unwind(AssertUnwindSafe(|| model.infer(inputs)))
        .map_err(|_| format!("infer panics on a batch of {rows}"))?
        .map_err(|error| format!("infer fails on a batch of {rows}: {error}"))?;
    let answered = model.signature().check_outputs(&outputs).map_err(|error| format!("check the answer: {error}"))?;
    ensure(answered == rows, || format!("{rows} rows are answered by {answered}"))?;
    Ok(outputs)
}

/// Compares bit by bit (any NaN is any other) or, for floats, within a relative tolerance.
fn same(a: &[Tensor], b: &[Tensor], tolerance: f64) -> bool {
    let close = |a: f64, b: f64| {
        let allowed = tolerance * a.abs().max(1.0);
        (a.is_nan() && b.is_nan()) || a == b || (allowed.is_finite() && (a - b).abs() <= allowed)
    };
    let equal = |a: &Tensor, b: &Tensor| match (a.data(), b.data()) {
        (Data::Fp32(x), Data::Fp32(y)) => x.iter().zip(y).all(|(x, y)| close(f64::from(*x), f64::from(*y))),
        (Data::Fp64(x), Data::Fp64(y)) => x.iter().zip(y).all(|(x, y)| close(*x, *y)),
        (x, y) => x == y,
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.shape() == b.shape() && equal(a, b))
}

fn rows_of(tensors: &[Tensor], from: usize, rows: usize) -> Vec<Tensor> {
    blocks::rows_of(tensors, from..from + rows).expect("the rows lie within the tensor")
}

fn random_batch(signature: &Signature) -> Vec<Tensor> {
    Random(0xbea7).batch(signature, ROWS, false)
}

/// The most address space that this process has ever had, where the system tells.
fn peak_address_space() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn ensure(holds: bool, error: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(error()) }
}

/// SplitMix64: every run makes up the same inputs and the same damage.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when that is 0.
    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end.max(1)
    }

    fn batch(&mut self, signature: &Signature, rows: usize, extremes: bool) -> Vec<Tensor> {
        signature.inputs.iter().map(|spec| self.tensor(spec, rows, extremes)).collect()
    }

    fn tensor(&mut self, spec: &TensorSpec, rows: usize, extremes: bool) -> Tensor {
        let inner = spec.shape.iter().skip(1).map(|dim| match dim {
            Dim::Fixed(length) => *length,
            Dim::Any => 3,
        });
        let shape: Vec<usize> = std::iter::once(rows).chain(inner).collect();
        let elements: usize = shape.iter().product();
        let data = match spec.datatype {
            DataType::Bool => Data::Bool((0..elements).map(|_| self.below(2) == 0).collect()),
            DataType::Int32 => Data::Int32((0..elements).map(|_| self.integer(extremes) as i32).collect()),
            DataType::Int64 => Data::Int64((0..elements).map(|_| self.integer(extremes)).collect()),
            DataType::Fp32 => Data::Fp32((0..elements).map(|_| self.float(extremes) as f32).collect()),
            DataType::Fp64 => Data::Fp64((0..elements).map(|_| self.float(extremes)).collect()),
            DataType::Bytes => Data::Bytes((0..elements).map(|_| self.text(extremes)).collect()),
        };
        Tensor::new(shape, data).expect("as many elements were made as the shape holds")
    }

    fn integer(&mut self, extremes: bool) -> i64 {
        const EXTREMES: [i64; 6] = [i64::MIN, i64::MAX, i32::MIN as i64, i32::MAX as i64, 0, -1];
        match EXTREMES.get(self.below(if extremes { 9 } else { usize::MAX })) {
            Some(extreme) => *extreme,
            None => i64::from(self.below(20) as u8) - 4,
        }
    }

    fn float(&mut self, extremes: bool) -> f64 {
        const EXTREMES: [f64; 9] = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f32::MAX as f64,
            f32::MIN as f64,
            f32::MIN_POSITIVE as f64,
            1e-45,
            -0.0,
            16_777_216.0,
        ];
        match EXTREMES.get(self.below(if extremes { 12 } else { 90 })) {
            // Ordinary rows have a missing value now and then, and nothing else out of the ordinary.
            Some(extreme) if extremes || extreme.is_nan() => *extreme,
            _ if self.below(4) == 0 => self.below(12) as f64,
            _ => (self.next() >> 11) as f64 / (1_u64 << 53) as f64 * 16.0 - 4.0,
        }
    }

    fn text(&mut self, extremes: bool) -> String {
        const ORDINARY: [&str; 4] = ["a", "b", "blue", "42"];
        const EXTREMES: [&str; 4] = ["", "\u{0}", "\u{1f600}\u{301}", "NaN"];
        let texts = if extremes { EXTREMES } else { ORDINARY };
        texts.get(self.below(texts.len())).copied().unwrap_or_default().to_owned()
    }
}
