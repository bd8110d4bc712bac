//! ONNX Runtime: with the feature `onnxruntime`, and the library that ORT_DYLIB_PATH names.
#![cfg(feature = "onnxruntime")]

use std::fs;
use std::path::Path;

use hotserve_models::{Golden, Loader, OrtLoader, conformance};

fn read(file: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/neural").join(file)).expect(file)
}

fn refusal(file: &str) -> String {
    match OrtLoader.load(&read(file)) {
        Ok(_) => "it is served".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn nets_are_answered_or_the_library_is_asked_for() {
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        let error = refusal("mlp.onnx");
        assert!(error.contains("ORT_DYLIB_PATH (it is not set"), "{error}");
        return;
    }
    for name in ["mlp", "mlp_one_row", "cnn", "transformer", "gru", "heads"] {
        let model = OrtLoader.load(&read(&format!("{name}.onnx"))).expect(name);
        assert_eq!(model.engine(), "onnxruntime");
        let golden: Golden = serde_json::from_slice(&read(&format!("{name}.golden.json"))).expect(name);
        golden.check(&*model).expect(name);
    }
    conformance::check(&OrtLoader, &read("mlp.onnx"), None).expect("mlp");
    conformance::check(&OrtLoader, &read("heads.onnx"), None).expect("heads");
    for name in ["conv", "double"] {
        assert_eq!(refusal(&format!("{name}.refused.onnx")), "it is served", "{name}");
    }
    for (name, says) in [("rows_mixed", "the other rows of a batch"), ("external", "external data"), ("text", "STRING")]
    {
        let error = refusal(&format!("{name}.refused.onnx"));
        assert!(error.contains(says), "{name}: {error:?} does not say {says:?}");
    }
}
