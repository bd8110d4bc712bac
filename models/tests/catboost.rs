//! The format `catboost`: parity with CatBoost, conformance, and hostile files.

use std::fs;
use std::path::{Path, PathBuf};

use hotserve_models::{CatboostLoader, Data, Golden, LoadError, Loader, Loaders, Model, Tensor, conformance, samples};
use proptest::prelude::*;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/catboost")
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
        recorded.push((name.to_owned(), bytes(&format!("{name}.json")), golden));
    }
    assert!(recorded.len() > 30, "only {} models are recorded", recorded.len());
    recorded
}

fn load(bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
    CatboostLoader.load(bytes)
}

fn ask(model: &dyn Model, rows: &[f32]) -> Vec<f64> {
    let width = model.signature().inputs[0].features.len();
    let input = Tensor::new(vec![rows.len() / width, width], Data::Fp32(rows.to_vec())).expect("the rows are full");
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
fn the_answers_are_those_of_catboost() {
    let mut worst = (0.0, String::new());
    for (name, bytes, golden) in recorded() {
        let model = load(&bytes).expect(&name);
        golden.check(&*model).expect(&name);
        for case in &golden.cases {
            let rows: Vec<f32> = floats(&case.inputs["input"]).into_iter().map(|x| x as f32).collect();
            let got = ask(&*model, &rows);
            let expected = floats(&case.outputs["prediction"]);
            assert_eq!(got.len(), expected.len(), "{name}");
            for (got, expected) in got.iter().zip(expected) {
                let error = (got - expected).abs() / expected.abs();
                if *got != expected && (error.is_nan() || error > worst.0) {
                    worst = (error, format!("{name}: {got} for {expected}"));
                }
            }
        }
    }
    println!("worst relative difference: {worst:?}");
    assert!(worst.0 <= 1e-12, "{worst:?}");
}

#[test]
fn every_recorded_model_conforms() {
    for (name, bytes, golden) in recorded() {
        conformance::check(&CatboostLoader, &bytes, Some(&golden)).expect(&name);
    }
}

#[test]
fn names_and_shapes_come_from_the_model() {
    let named = load(&bytes("names.json")).expect("it is served");
    assert_eq!(named.signature().inputs[0].features, ["a", "b c", "größe", "d", "e"]);
    let classes = load(&bytes("multiclass.json")).expect("it is served");
    let signature = serde_json::to_value(classes.signature()).expect("a signature is JSON");
    assert_eq!(
        signature,
        json!({
            "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 5], "features": ["0", "1", "2", "3", "4"]}],
            "outputs": [{"name": "prediction", "datatype": "FP64", "shape": [-1, 3]}],
        })
    );
    let single = load(&bytes("logloss.json")).expect("it is served");
    assert_eq!(single.signature().outputs[0].shape.len(), 1);
}

#[test]
fn no_other_format_is_taken_for_this_one() {
    for sample in samples::all() {
        assert_eq!(CatboostLoader.recognizes(sample.bytes), sample.format == "catboost", "{}", sample.name);
    }
    for bytes in [&b""[..], b"{", b"{}", b"[]", b"{\"learner\"", b"{\"version\"", b"features_info"] {
        assert!(!CatboostLoader.recognizes(bytes));
    }
    assert_eq!(Loaders::bundled().recognize(&bytes("logloss.json")), Some("catboost"));
}

/// One tree: both bits of feature 0 above 2 and feature 1 above 0.5 number the leaf.
fn sound() -> Value {
    let split = |feature: usize, border: f64| json!({"split_type": "FloatFeature", "float_feature_index": feature, "border": border, "split_index": 0});
    let feature = |at: usize, missing: &str| json!({"feature_index": at, "flat_feature_index": at, "feature_id": "", "borders": [], "nan_value_treatment": missing});
    json!({
        "features_info": {"float_features": [feature(0, "AsFalse"), feature(1, "AsTrue")]},
        "model_info": {"params": {"loss_function": {"type": "RMSE"}}},
        "oblivious_trees": [{"leaf_values": [1, 2, 3, 4], "leaf_weights": [1, 1, 1, 1],
            "splits": [split(0, 2.0), split(1, 0.5)]}],
        "scale_and_bias": [10, [0.5]],
    })
}

fn edited(path: &str, value: Value) -> Vec<u8> {
    let mut file = sound();
    match file.pointer_mut(path) {
        Some(place) => *place = value,
        None => {
            let (parent, key) = path.rsplit_once('/').expect("a path");
            file.pointer_mut(parent).expect("the path is there")[key] = value;
        }
    }
    file.to_string().into_bytes()
}

#[test]
fn a_file_by_hand_answers_what_it_says() {
    let model = load(&edited("/more", json!(1))).expect("it is served");
    let rows = [2.0, 0.5, 2.1, 0.5, 2.0, 0.6, 2.1, 0.6, f32::NAN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    assert_eq!(ask(&*model, &rows), [10.5, 20.5, 30.5, 40.5, 30.5, 20.5]);
    // A block, and the two rows after it.
    let answers = ask(&*model, &rows.repeat(11));
    assert_eq!(answers, [10.5, 20.5, 30.5, 40.5, 30.5, 20.5].repeat(11));
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    for (bytes, says) in [
        (bytes("categorical.refused.json"), "categorical features"),
        (bytes("lossguide.refused.json"), "trees that are not symmetric (grow_policy)"),
        (bytes("depthwise.refused.json"), "trees that are not symmetric (grow_policy)"),
        (bytes("uncertainty.refused.json"), r#"the loss "RMSEWithUncertainty""#),
        (edited("/model_info/params/loss_function/type", json!("Mine")), r#"the loss "Mine""#),
        (edited("/features_info/text_features", json!([{}])), "text features"),
        (edited("/features_info/embedding_features", json!([{}])), "embedding features"),
        (edited("/oblivious_trees/0/splits/1/split_type", json!("OneHotFeature")), "one-hot splits"),
        (edited("/oblivious_trees/0/splits/1/split_type", json!("OnlineCtr")), "splits on statistics of categorical"),
    ] {
        match load(&bytes).err() {
            Some(LoadError::Unsupported { feature, .. }) => {
                assert!(feature.contains(says), "{feature:?} does not say {says:?}");
            }
            other => assert_eq!(other.map(|error| error.to_string()).as_deref(), Some(says)),
        }
    }
}

#[test]
fn a_hostile_file_is_refused() {
    let tree = |path: &str, value: Value| edited(&format!("/oblivious_trees/0/{path}"), value);
    let split = json!({"split_type": "FloatFeature", "float_feature_index": 0, "border": 1});
    for (file, says) in [
        (b"".to_vec(), "EOF while parsing a value at line 1 column 0"),
        (b"{}".to_vec(), "missing field `features_info`"),
        (b"[]".to_vec(), "invalid length 0"),
        (edited("/oblivious_trees", json!(null)), "there are no oblivious_trees"),
        (edited("/oblivious_trees", json!([{}])), "missing field `leaf_values`"),
        (edited("/scale_and_bias", json!([1])), "invalid length 1"),
        (edited("/scale_and_bias", json!([1, []])), "scale_and_bias has no bias"),
        (edited("/scale_and_bias", json!([1, ["x"]])), "invalid type: string"),
        (edited("/scale_and_bias", json!([1, [0, 0]])), "tree 0: 4 leaf_values are not 2^2 times 2"),
        (edited("/model_info/params/loss_function", json!("{}")), "missing field `type`"),
        (edited("/model_info/params/loss_function", json!(1)), "expected a loss function"),
        (edited("/model_info", json!({})), "model_info names no loss_function"),
        (edited("/model_info/params/loss_function/type", json!("MultiClass")), "MultiClass has 1 outputs"),
        (edited("/features_info/float_features", json!([])), "there are no float_features"),
        (edited("/features_info/float_features/1/feature_id", json!("0")), r#"the feature_id "0" is there twice"#),
        (edited("/features_info/float_features/1/flat_feature_index", json!(2)), "1: flat_feature_index is 2"),
        (edited("/features_info/float_features/1/flat_feature_index", json!(-1)), "invalid value: integer `-1`"),
        (edited("/features_info/float_features/1/nan_value_treatment", json!("As")), "unknown variant `As`"),
        (tree("leaf_values", json!([1, 2, 3])), "tree 0: 3 leaf_values are not 2^2 times 1"),
        (tree("leaf_values", json!([1, 2, 3, null])), "invalid type: null"),
        (tree("splits", json!([])), "tree 0: 4 leaf_values are not 2^0 times 1"),
        (tree("splits", json!(vec![split; 17])), "tree 0: it has 17 splits, more than 16"),
        (tree("splits/1/float_feature_index", json!(2)), "splits 1, float_feature_index is none of 2 features"),
        (tree("splits/1/float_feature_index", json!(null)), "splits 1, float_feature_index is none of 2"),
        (tree("splits/1/border", json!(1e39)), "tree 0: splits 1, border is not a number in FP32"),
        (tree("splits/1/border", json!(null)), "tree 0: splits 1, border is not a number"),
        (sound().to_string().replace("10,", "1e999,").into_bytes(), "number out of range"),
        (format!("{{\"a\": {}", "[".repeat(100_000)).into_bytes(), "EOF while parsing a list"),
    ] {
        let error = load(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("malformed catboost model: "), "{says}: {error:?}");
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_changed_file_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![
            "0", "1", "-1", "1e308", "1e39", "null", "[]", "{}", "\"\"", "\"FloatFeature\"", "4294967296", "16", "true",
        ])), 1..5),
    ) {
        let text = sound().to_string();
        let mut tokens: Vec<&str> = text.split_inclusive([',', ':', '[', ']', '{', '}']).collect();
        for (at, new) in &edits {
            let at = at.index(tokens.len());
            tokens[at] = new;
        }
        if let Ok(model) = load(tokens.join(" ").as_bytes()) {
            let width = model.signature().inputs[0].features.len();
            ask(&*model, &vec![f32::NAN; width * 3]);
        }
        let values: String = text.chars().map(|c| if edits.len() == 4 && c.is_ascii_digit() { '9' } else { c }).collect();
        let _ = load(values.as_bytes());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(load(&bytes).is_err());
    }
}
