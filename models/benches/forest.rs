//! How long trees take: one row at a time over all rows, and in batches. `bench/engines.py` makes the files, and measures
//! other engines beside it.
//!
//! `forest MODEL ROWS` reads a model in a format that the crate loads, or trees in the JSON of `bench/engines.py`; and rows
//! in FP64, little endian. `--path=NAME` asks trees in that JSON by another path than the fastest of this machine, and
//! `forest MODEL --memory` measures what a load takes. Without arguments a small forest is made up, which only shows that
//! this runs.

#[expect(dead_code, reason = "the forest as the crate has it, which keeps it to itself")]
#[path = "../src"]
mod own {
    pub mod forest;
}

use std::hint::black_box;
use std::time::Instant;

use hotserve_models::{Data, DataType, Loaders, Model, Tensor};
use own::forest::{Children, Forest, Number, Path, Split, Tree};
use serde_json::{Value, json};

/// The best of so many passes, for each section of the calls by itself: then others on the machine disturb a section, and
/// not all of a pass.
const PASSES: usize = 9;
const SECTIONS: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let ([model], true) = (arguments.as_slice(), std::env::args().any(|argument| argument == "--memory")) {
        println!("{}", measure_load(&std::fs::read(model)?)?);
        return Ok(());
    }
    let (model, rows) = match arguments.as_slice() {
        [model, rows] => (std::fs::read(model)?, std::fs::read(rows)?),
        _ => {
            let tree = json!([[0, 0.5, 1, 2, true], [0.25], [0.75]]);
            let model = json!({"width": 2, "trees": vec![tree; 20]});
            (serde_json::to_vec(&model)?, vec![0; 64 * 2 * 8])
        }
    };
    let rows: Vec<f64> = rows.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();

    let loaders = Loaders::bundled();
    let report = match loaders.recognize(&model).and_then(|format| loaders.get(format)) {
        Some(loader) => {
            let mut loads = Vec::new();
            for _ in 0..PASSES {
                let started = Instant::now();
                black_box(loader.load(black_box(&model))?);
                loads.push(started.elapsed().as_secs_f64() * 1e3);
            }
            let model = loader.load(&model)?;
            let first = loads.first().copied().unwrap_or_default();
            let best = loads.into_iter().fold(f64::INFINITY, f64::min);
            measure_model(&*model, &rows, json!({"load_ms": best, "first_ms": first, "bytes": model.memory_bytes()}))
        }
        None => {
            let model: Value = serde_json::from_slice(&model)?;
            let name = std::env::args().find_map(|argument| argument.strip_prefix("--path=").map(str::to_owned));
            let named = |path: &Path| name.as_ref().is_some_and(|name| format!("{path:?}").eq_ignore_ascii_case(name));
            let path = Path::ALL.into_iter().find(named);
            if name.is_some() && path.is_none_or(|path| !path.available()) {
                return Err("this machine has no such path".into());
            }
            match model.get("fp32").and_then(Value::as_bool) {
                Some(true) => measure_forest(&model, path, &rows, |x| x as f32, f64::from)?,
                _ => measure_forest(&model, path, &rows, |x| x, |x: f64| x)?,
            }
        }
    };
    println!("{report}");
    Ok(())
}

/// What a load takes beside the bytes of the file, as Linux counts it.
fn measure_load(bytes: &[u8]) -> Result<Value, Box<dyn std::error::Error>> {
    let status = |name: &str| -> Result<u64, Box<dyn std::error::Error>> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line of the status")?;
        let kibibytes: u64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse()?;
        Ok(kibibytes << 10)
    };
    let loaders = Loaders::bundled();
    let loader = loaders.recognize(bytes).and_then(|format| loaders.get(format)).ok_or("no known format")?;
    let before = status("VmRSS")?;
    // From here on the most is counted anew.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let started = Instant::now();
    let model = loader.load(black_box(bytes))?;
    let load = started.elapsed();
    let peak = status("VmHWM")?.saturating_sub(before);
    Ok(json!({"load_ms": load.as_secs_f64() * 1e3, "bytes": model.memory_bytes(), "peak": peak}))
}

fn measure_forest<T: Number>(
    model: &Value,
    path: Option<Path>,
    rows: &[f64],
    narrow: impl Fn(f64) -> T,
    wide: impl Fn(T) -> f64,
) -> Result<Value, Box<dyn std::error::Error>> {
    let (features, trees) = plain(model).ok_or("these are no trees")?;
    let started = Instant::now();
    let forest = Forest::with(features, 1, &trees, path).map_err(|error| error.to_string())?;
    let load = started.elapsed();
    let base = narrow(model.get("base").and_then(Value::as_f64).unwrap_or_default());
    let report = json!({"load_ms": load.as_secs_f64() * 1e3, "bytes": forest.memory_bytes()});
    let prepare = |rows: &[f64]| rows.iter().map(|x| narrow(*x)).collect::<Vec<T>>();
    Ok(measure(features, rows, report, prepare, |rows| {
        let mut margins = vec![base; rows.len() / features];
        forest.add_margins(rows, &mut margins);
        margins.into_iter().map(&wide).collect()
    }))
}

fn measure_model(model: &dyn Model, rows: &[f64], report: Value) -> Value {
    let Some(input) = model.signature().inputs.first() else { return report };
    let features = input.row_len().unwrap_or(1);
    let tensor = |rows: &[f64]| {
        let data = match input.datatype {
            DataType::Fp32 => Data::Fp32(rows.iter().map(|x| *x as f32).collect()),
            _ => Data::Fp64(rows.to_vec()),
        };
        [Tensor::new(vec![rows.len() / features, features], data).expect("as many numbers as the shape says")]
    };
    measure(features, rows, report, tensor, |rows| {
        let outputs = model.infer(rows).unwrap_or_default();
        match outputs.first().map(Tensor::data) {
            Some(Data::Fp32(numbers)) => numbers.iter().map(|x| f64::from(*x)).collect(),
            Some(Data::Fp64(numbers)) => numbers.clone(),
            _ => Vec::new(),
        }
    })
}

/// The nanoseconds that a row takes, by the size of the batch, and the answers.
fn measure<I>(
    features: usize,
    rows: &[f64],
    mut report: Value,
    prepare: impl Fn(&[f64]) -> I,
    ask: impl Fn(&I) -> Vec<f64>,
) -> Value {
    for size in [1, 8, 64, 256, 1024] {
        let inputs: Vec<I> = rows.chunks_exact(features * size).map(&prepare).collect();
        let mut best = [f64::INFINITY; SECTIONS];
        let section = inputs.len().div_ceil(SECTIONS).max(1);
        for _ in 0..PASSES {
            for (inputs, best) in inputs.chunks(section).zip(&mut best) {
                let started = Instant::now();
                for input in inputs {
                    black_box(ask(black_box(input)));
                }
                *best = best.min(started.elapsed().as_secs_f64() * 1e9);
            }
        }
        let total: f64 = best.iter().filter(|best| best.is_finite()).sum();
        report[format!("rows_{size}")] = json!(total / (inputs.len().max(1) * size) as f64);
    }
    let answers: Vec<f64> = rows.chunks_exact(features).take(64).flat_map(|row| ask(&prepare(row))).collect();
    report["answers"] = json!(answers);
    report
}

/// Trees as `[feature, threshold, left, right, missing left]` and `[leaf]`; `[feature, [category, …], …]` for a set.
fn plain(model: &Value) -> Option<(usize, Vec<Tree>)> {
    let index = |value: &Value| value.as_u64().map(|n| n as usize);
    let node = |node: &Value| match node.as_array()?.as_slice() {
        [leaf] => Some(Split::Leaf(leaf.as_f64()?)),
        [feature, split, left, right, missing_left] => {
            let children = Children { left: index(left)?, right: index(right)?, missing_left: missing_left.as_bool()? };
            let feature = index(feature)?;
            Some(match split.as_array() {
                Some(set) => {
                    let categories = set.iter().map(|category| category.as_u64().map(|n| n as u32));
                    Split::Among { feature, categories: categories.collect::<Option<_>>()?, children }
                }
                None => Split::Below { feature, threshold: split.as_f64()?, children },
            })
        }
        _ => None,
    };
    let tree = |tree: &Value| {
        let nodes = tree.as_array()?.iter().map(node).collect::<Option<_>>()?;
        Some(Tree { group: 0, nodes, unreachable: 0 })
    };
    let trees = model.get("trees")?.as_array()?.iter().map(tree).collect::<Option<_>>()?;
    Some((index(model.get("width")?)?, trees))
}
