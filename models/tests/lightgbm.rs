//! The format `lightgbm`: parity with LightGBM, conformance, and hostile files.

use std::fs;
use std::path::{Path, PathBuf};

use hotserve_models::{Data, Golden, LightgbmLoader, LoadError, Loader, Loaders, Model, Tensor, conformance, samples};
use proptest::prelude::*;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lightgbm")
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).expect("it is recorded")
}

/// The name, the file and the cases of each recorded model.
fn recorded() -> Vec<(String, Vec<u8>, Golden)> {
    let mut recorded = Vec::new();
    for file in fs::read_dir(folder()).expect("the recorded models are there") {
        let name = file.expect("the folder can be read").file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".golden.json") else { continue };
        let golden = serde_json::from_slice(&bytes(&format!("{name}.golden.json"))).expect("the cases are JSON");
        recorded.push((name.to_owned(), bytes(&format!("{name}.txt")), golden));
    }
    assert!(recorded.len() > 40, "only {} models are recorded", recorded.len());
    recorded
}

fn load(bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
    LightgbmLoader.load(bytes)
}

fn ask(model: &dyn Model, rows: &[f64]) -> Vec<f64> {
    let width = model.signature().inputs[0].features.len();
    let input = Tensor::new(vec![rows.len() / width, width], Data::Fp64(rows.to_vec())).expect("the rows are full");
    let outputs = model.infer(&[input]).expect("the rows fit");
    outputs[0].as_f64().expect("the prediction is FP64").to_vec()
}

fn floats(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(floats).collect(),
        Value::String(infinity) => vec![infinity.parse().expect("it is an infinity")],
        value => vec![value.as_f64().unwrap_or(f64::NAN)],
    }
}

#[test]
fn the_answers_are_those_of_lightgbm() {
    let (mut worst, mut compared, mut inexact) = ((0.0, String::new()), 0, 0);
    for (name, bytes, golden) in recorded() {
        let model = load(&bytes).expect(&name);
        golden.check(&*model).expect(&name);
        for case in &golden.cases {
            let got = ask(&*model, &floats(&case.inputs["input"]));
            let expected = floats(&case.outputs["prediction"]);
            assert_eq!(got.len(), expected.len(), "{name}");
            for (got, expected) in got.iter().zip(expected) {
                compared += 1;
                if *got == expected || (got.is_nan() && expected.is_nan()) {
                    continue;
                }
                inexact += 1;
                let error = (got - expected).abs() / expected.abs();
                // Not `>`: a NaN must not slip through.
                if !(error <= worst.0) {
                    worst = (error, format!("{name}: {got} for {expected}"));
                }
            }
        }
    }
    println!("{inexact} of {compared} are not the same to the bit; worst relative difference: {worst:?}");
    assert!(worst.0 <= 1e-12, "{worst:?}");
}

#[test]
fn every_recorded_model_conforms() {
    for (name, bytes, golden) in recorded() {
        conformance::check(&LightgbmLoader, &bytes, Some(&golden)).expect(&name);
    }
}
