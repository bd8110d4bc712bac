//! The format `onnx` against ONNX Runtime's own answers, which `record_onnx.py` has recorded, and against hostile files.

use std::fs;
use std::path::{Path, PathBuf};

use hotserve_models::{Golden, Loader, OnnxLoader, conformance};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx")
}

fn recorded() -> Vec<(String, Vec<u8>, Golden)> {
    let mut recorded = Vec::new();
    for file in fs::read_dir(folder()).expect("the recorded models are there") {
        let path = file.expect("the folder can be read").path();
        if path.extension().is_none_or(|extension| extension != "onnx") {
            continue;
        }
        let golden = fs::read_to_string(path.with_extension("golden.json")).expect("the model has cases");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(path).expect("the model can be read");
        recorded.push((name, bytes, serde_json::from_str(&golden).expect("the cases are JSON")));
    }
    assert!(recorded.len() > 50, "only {} models are recorded", recorded.len());
    recorded.sort_by(|a, b| a.0.cmp(&b.0));
    recorded
}

#[test]
fn the_answers_are_those_of_onnx_runtime() {
    let mut wrong = Vec::new();
    for (name, bytes, golden) in recorded() {
        match OnnxLoader.load(&bytes) {
            Ok(model) => {
                if let Err(error) = golden.check(&*model) {
                    wrong.push(format!("{name}: {error}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_recorded_model_conforms() {
    let mut wrong = Vec::new();
    for (name, bytes, golden) in recorded() {
        // It refuses rows with what is no category, as it should.
        if name == "frame_strict" {
            continue;
        }
        if let Err(error) = conformance::check(&OnnxLoader, &bytes, Some(&golden)) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
