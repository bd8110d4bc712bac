//! Every bundled kind: conformance, parity with the library that trained the model, and hostile files.

use std::fs;
use std::path::{Path, PathBuf};

use hotserve_models::samples::{self, Sample};
use hotserve_models::{
    Data, Golden, LinearLoader, LoadError, Loader, Loaders, Model, Tensor, XgboostLoader, conformance,
};
use serde_json::{Value, json};

mod samples_serve {
    use super::*;

    fn load(sample: &Sample, bytes: &[u8]) -> Box<dyn Model> {
        let loaders = Loaders::bundled();
        assert_eq!(loaders.recognize(bytes), Some(sample.format), "{}", sample.name);
        let loader = loaders.get(sample.format).expect("the format is bundled");
        loader.load(bytes).expect("the sample is sound")
    }

    fn golden(sample: &Sample) -> Golden {
        serde_json::from_str(sample.golden).expect("the golden cases are JSON")
    }

    #[test]
    fn every_sample_conforms_and_answers_its_golden_cases() {
        for sample in samples::all() {
            let golden = golden(sample);
            assert!(!golden.cases.is_empty(), "{}", sample.name);
            let loaders = Loaders::bundled();
            let loader = loaders.get(sample.format).expect("the format is bundled");
            conformance::check(&**loader, sample.bytes, Some(&golden)).expect(sample.name);
        }
    }

    #[test]
    fn a_retrained_sample_takes_the_same_inputs_and_answers_otherwise() {
        let mut compared = 0;
        for sample in samples::all() {
            let Some(bytes) = sample.retrained else { continue };
            let (old, new) = (load(sample, sample.bytes), load(sample, bytes));
            assert_eq!(old.signature(), new.signature(), "{}", sample.name);
            assert!(golden(sample).check(&*new).is_err(), "{}", sample.name);
            let (old, new) = (answer(&*old, sample), answer(&*new, sample));
            let differ = old.iter().zip(&new).any(|(old, new)| (old - new).abs() > 0.01);
            assert!(differ, "{} would show no swap: {old:?} {new:?}", sample.name);
            compared += 1;
        }
        assert!(compared > 0);
    }

    /// The first output for the sample's example, whose rows are lists or objects.
    fn answer(model: &dyn Model, sample: &Sample) -> Vec<f32> {
        let example: Value = serde_json::from_str(sample.example).expect("the example is JSON");
        let spec = &model.signature().inputs[0];
        let rows = example["instances"].as_array().expect("the example has instances");
        let cell = |value: &Value| value.as_f64().expect("the example has numbers") as f32;
        let row = |row: &Value| -> Vec<f32> {
            match row {
                Value::Object(row) => {
                    assert_eq!(row.len(), spec.features.len(), "{}", sample.name);
                    spec.features.iter().map(|name| cell(&row[name])).collect()
                }
                row => row.as_array().expect("a row is a list or an object").iter().map(cell).collect(),
            }
        };
        let data: Vec<f32> = rows.iter().flat_map(row).collect();
        let input = Tensor::new(vec![rows.len(), spec.features.len()], Data::Fp32(data)).expect("the rows are full");
        let outputs = model.infer(&[input]).expect("the example fits");
        outputs[0].as_f32().expect("the first output is FP32").to_vec()
    }

    #[test]
    fn what_the_code_says_of_a_sample_is_what_its_metadata_say() {
        for sample in samples::all() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(sample.name);
            let text = fs::read_to_string(folder.join("metadata.json")).expect("the sample has metadata");
            let metadata: Value = serde_json::from_str(&text).expect("the metadata are JSON");
            assert_eq!(metadata["name"], sample.name);
            assert_eq!(metadata["format"], sample.format);
            assert_eq!(metadata["file"], sample.file_name);
            assert_eq!(metadata["description"], sample.description);
            let example: Value = serde_json::from_str(sample.example).expect("the example is JSON");
            assert_eq!(metadata["example"], example);
            assert!(!answer(&*load(sample, sample.bytes), sample).is_empty());
            assert_eq!(fs::read(folder.join(sample.file_name)).expect("the file is there"), sample.bytes);
        }
    }
}

mod xgboost {
    use super::*;

    fn recorded() -> Vec<(PathBuf, Golden)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/xgboost");
        let files = fs::read_dir(folder).expect("the recorded models are there");
        let mut recorded = Vec::new();
        for file in files {
            let path = file.expect("the folder can be read").path();
            let name = path.to_string_lossy().into_owned();
            let Some(stem) = name.strip_suffix(".golden.json") else { continue };
            let model = ["ubj", "json"].map(|suffix| PathBuf::from(format!("{stem}.{suffix}")));
            let model = model.into_iter().find(|model| model.exists()).expect("the cases have a model");
            let text = fs::read_to_string(path).expect("the cases can be read");
            recorded.push((model, serde_json::from_str(&text).expect("the cases are JSON")));
        }
        assert!(recorded.len() > 30, "only {} models are recorded", recorded.len());
        recorded
    }

    fn bytes(name: &str) -> Vec<u8> {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/xgboost").join(name)).expect("it is recorded")
    }

    fn load(bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        XgboostLoader.load(bytes)
    }

    #[test]
    fn the_answers_are_those_of_xgboost() {
        let mut worst = (0.0, String::new());
        for (path, golden) in recorded() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let model = load(&fs::read(&path).expect("the model can be read")).expect(&name);
            golden.check(&*model).expect(&name);
            // The golden cases allow 1e-6 absolute below 1; here small numbers must be right too.
            for case in &golden.cases {
                let rows = floats(&case.inputs["input"]);
                let width = model.signature().inputs[0].features.len();
                let input = Tensor::new(vec![rows.len() / width, width], Data::Fp32(rows)).expect("the rows are full");
                let outputs = model.infer(&[input]).expect("the rows fit");
                let got = outputs[0].as_f32().expect("the prediction is FP32");
                for (got, expected) in got.iter().zip(floats(&case.outputs["prediction"])) {
                    let error = f64::from((got - expected).abs() / expected.abs().max(1e-3));
                    if error > worst.0 {
                        worst = (error, format!("{name}: {got} for {expected}"));
                    }
                }
            }
        }
        println!("worst relative difference: {worst:?}");
        assert!(worst.0 <= 1e-6, "{worst:?}");
    }

    fn floats(value: &Value) -> Vec<f32> {
        match value {
            Value::Array(values) => values.iter().flat_map(floats).collect(),
            value => vec![value.as_f64().map_or(f32::NAN, |value| value as f32)],
        }
    }

    #[test]
    fn json_and_ubj_conform() {
        for (path, golden) in recorded() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if ["softprob_json.json", "categories.ubj", "dart.ubj", "quantiles.ubj"].contains(&name.as_str()) {
                let bytes = fs::read(&path).expect("the model can be read");
                conformance::check(&XgboostLoader, &bytes, Some(&golden)).expect(&name);
            }
        }
    }

    #[test]
    fn names_and_shapes_come_from_the_model() {
        let named = load(&bytes("names.json")).expect("it is served");
        assert_eq!(named.signature().inputs[0].features, ["a", "b c", "größe", "d", "e"]);
        let unnamed = load(&bytes("softprob.ubj")).expect("it is served");
        let signature = serde_json::to_value(unnamed.signature()).expect("a signature is JSON");
        assert_eq!(
            signature,
            json!({
                "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 5], "features": ["f0", "f1", "f2", "f3", "f4"]}],
                "outputs": [{"name": "prediction", "datatype": "FP32", "shape": [-1, 3]}],
            })
        );
        let classes = load(&bytes("softmax.ubj")).expect("it is served");
        assert_eq!(classes.signature().outputs[0].shape.len(), 1);
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let with = |path: &str, value: Value| edited(&[(path, value)]);
        for (bytes, says) in [
            (bytes("gblinear.refused.ubj"), r#"the booster "gblinear""#),
            (bytes("multi_output_trees.refused.ubj"), "multi-output trees"),
            (with("/learner/objective/name", json!("my:own")), r#"the objective "my:own""#),
            (with("/learner/learner_model_param/num_feature", json!("1048577")), "num_feature 1048577"),
            (b"binf\0\0\0\x3f".to_vec(), "the binary format of old versions"),
        ] {
            match load(&bytes).err() {
                Some(LoadError::Unsupported { feature, .. }) => {
                    assert!(feature.contains(says), "{feature:?} does not say {says:?}");
                }
                other => assert_eq!(other.map(|error| error.to_string()).as_deref(), Some(says)),
            }
        }
    }

    /// One tree: below 2 on feature 0 to node 1 (leaf 10), else to node 2 (leaf 20); missing goes right.
    fn stump() -> Value {
        json!({
            "version": [3, 2, 0],
            "learner": {
                "feature_names": [],
                "learner_model_param": {"base_score": "5E-1", "num_class": "0", "num_feature": "2", "num_target": "1"},
                "objective": {"name": "reg:squarederror"},
                "gradient_booster": {"name": "gbtree", "model": {"tree_info": [0], "trees": [{
                    "tree_param": {"num_nodes": "3", "num_deleted": "0", "size_leaf_vector": "1"},
                    "left_children": [1, -1, -1],
                    "right_children": [2, -1, -1],
                    "split_indices": [0, 0, 0],
                    "split_conditions": [2.0, 10.0, 20.0],
                    "default_left": [0, 0, 0],
                    "split_type": [0, 0, 0],
                    "categories": [], "categories_nodes": [], "categories_segments": [], "categories_sizes": [],
                }]}},
            },
        })
    }

    fn edited(edits: &[(&str, Value)]) -> Vec<u8> {
        let mut file = stump();
        for (path, value) in edits {
            *file.pointer_mut(path).expect("the path is there") = value.clone();
        }
        file.to_string().into_bytes()
    }

    fn ask(file: &[u8]) -> Vec<f32> {
        let rows = Data::Fp32(vec![1.0, 0.0, 2.0, 0.0, f32::NAN, 0.0]);
        let model = load(file).expect("it is served");
        let outputs = model.infer(&[Tensor::new(vec![3, 2], rows).expect("three rows")]).expect("it answers");
        outputs[0].as_f32().expect("the prediction is FP32").to_vec()
    }

    #[test]
    fn every_way_of_writing_a_field_is_read() {
        const TREE: &str = "/learner/gradient_booster/model/trees/0";
        let base = "/learner/learner_model_param/base_score";
        assert_eq!(ask(&edited(&[])), [10.5, 20.5, 20.5]);
        for score in [json!("[5E-1]"), json!(0.5), json!([0.5]), json!("0.5"), json!(" [ 0.5 ] ")] {
            assert_eq!(ask(&edited(&[(base, score)])), [10.5, 20.5, 20.5]);
        }
        assert_eq!(ask(&edited(&[(base, json!(1))])), [11.0, 21.0, 21.0]);
        let flags = json!([true, false, false]);
        assert_eq!(ask(&edited(&[(&format!("{TREE}/default_left"), flags)])), [10.5, 20.5, 10.5]);
        assert_eq!(ask(&edited(&[(&format!("{TREE}/tree_param/num_nodes"), json!(3))])), [10.5, 20.5, 20.5]);
        // As versions before 1.5 and before 2.0 wrote it.
        let mut old = stump();
        let tree = old.pointer_mut(TREE).and_then(Value::as_object_mut).expect("a tree");
        tree.retain(|name, _| !name.starts_with("categor") && name != "split_type");
        let learner = old["learner"].as_object_mut().expect("a learner");
        learner.remove("feature_names");
        learner["learner_model_param"].as_object_mut().expect("parameters").remove("num_target");
        assert_eq!(ask(old.to_string().as_bytes()), [10.5, 20.5, 20.5]);
        let spaced = format!("\n {}\n", serde_json::to_string_pretty(&stump()).expect("JSON"));
        assert_eq!(ask(spaced.as_bytes()), [10.5, 20.5, 20.5]);
        assert!(XgboostLoader.recognizes(spaced.as_bytes()));
    }

    #[test]
    fn a_hostile_file_is_refused_and_the_error_says_where() {
        let tree =
            |field: &str, value: Value| edited(&[(&format!("/learner/gradient_booster/model/trees/0/{field}"), value)]);
        let learner = |field: &str, value: Value| edited(&[(&format!("/learner/{field}"), value)]);
        let deep = [&br#"{"learner":{"gradient_booster":"#[..], &br#"{"gbtree":"#.repeat(1000)].concat();
        let deep_ubj = [&b"{i\x07learner{i\x10gradient_booster"[..], &b"{i\x06gbtree".repeat(1000)].concat();
        let deep_skipped = [&b"{i\x01x"[..], &b"[".repeat(100_000)].concat();
        let categorical = |nodes: Value, segments: Value, sizes: Value, categories: Value| {
            let at = |field: &str| format!("/learner/gradient_booster/model/trees/0/{field}");
            edited(&[
                (&at("split_type"), json!([1, 0, 0])),
                (&at("categories_nodes"), nodes),
                (&at("categories_segments"), segments),
                (&at("categories_sizes"), sizes),
                (&at("categories"), categories),
            ])
        };
        for (file, says) in [
            (tree("left_children", json!([0, -1, -1])), "tree 0, node 0: two paths"),
            (tree("right_children", json!([1, -1, -1])), "tree 0, node 1: two paths"),
            (tree("right_children", json!([3, -1, -1])), "tree 0, node 3: there is no such node"),
            (tree("right_children", json!([-7, -1, -1])), "there is no such node"),
            (tree("right_children", json!([i32::MAX, -1, -1])), "there is no such node"),
            (
                tree("right_children", json!([i64::MAX, -1, -1])),
                "integer `9223372036854775807`, expected i32 at line 1",
            ),
            (tree("left_children", json!([-1, -1, -1])), "no path leads to 2 nodes"),
            (tree("left_children", json!([1, -1])), "left_children has 2 entries for num_nodes 3"),
            (tree("left_children", json!([1, -1, "x"])), "invalid type: string"),
            (tree("left_children", json!([1, -1, 1.5])), "invalid type: floating point"),
            (tree("left_children", json!({})), "invalid type: map"),
            (tree("split_indices", json!([2, 0, 0])), "splits on feature 2 of 2"),
            (tree("split_indices", json!([-1, 0, 0])), "splits on feature"),
            (tree("split_conditions", json!([2.0, 1e39, 20.0])), "number out of range"),
            (tree("default_left", json!([2, 0, 0])), "expected true, false, 1 or 0"),
            (tree("tree_param/num_nodes", json!("4000000000")), "for num_nodes 4000000000"),
            (tree("tree_param/num_deleted", json!("1")), "no path leads to 0 nodes, and 1"),
            (tree("split_type", json!([1, 0])), "split_type has 2"),
            (tree("split_type", json!([1, 0, 0])), "node 0 splits on categories, and lists none"),
            (categorical(json!([3]), json!([0]), json!([1]), json!([0])), "categories of node 3"),
            (categorical(json!([0]), json!([1]), json!([1]), json!([0])), "categories of node 0"),
            (categorical(json!([0]), json!([0]), json!([i64::MAX]), json!([0])), "categories of node 0"),
            (categorical(json!([0]), json!([0]), json!([1]), json!([-1])), "categories of node 0"),
            (
                categorical(json!([0]), json!([0]), json!([1]), json!([u32::MAX])),
                "its category 4294967295 is not below",
            ),
            (categorical(json!([0, 1]), json!([0, 0]), json!([1, 1]), json!([1])), "categories of node 1"),
            (categorical(json!([0]), json!([]), json!([1]), json!([1])), "differ in length"),
            (learner("gradient_booster/model/tree_info", json!([])), "tree_info has 0 entries for 1 trees"),
            (learner("gradient_booster/model/tree_info", json!([1])), "it adds to output 1 of 1"),
            (learner("gradient_booster/model/tree_info", json!([-1])), "tree_info 0 is -1"),
            (learner("learner_model_param/num_feature", json!("0")), "num_feature is 0"),
            (learner("learner_model_param/num_feature", json!("-1")), "expected a count"),
            (learner("learner_model_param/num_class", json!("3")), "has 3 classes"),
            (learner("learner_model_param/num_target", json!("4000000000")), "cannot have 4000000000 outputs"),
            (learner("learner_model_param/base_score", json!("[1, 2]")), "base_score has 2 numbers for 1"),
            (learner("learner_model_param/base_score", json!("[]")), "expected a number"),
            (learner("learner_model_param/base_score", json!("nan")), "base_score 0 does not fit"),
            (learner("feature_names", json!(["a"])), "there are 1 feature_names for num_feature 2"),
            (learner("feature_names", json!(["a", "a"])), r#"the feature name "a""#),
            (learner("objective/name", json!("multi:softprob")), "has no num_class"),
            (learner("gradient_booster/name", json!("dart")), "dart has no gbtree"),
            (
                edited(&[
                    ("/learner/objective/name", json!("binary:logistic")),
                    ("/learner/learner_model_param/base_score", json!("1.5")),
                ]),
                "base_score 0 does not fit the objective",
            ),
            (b"{}".to_vec(), "missing field `learner`"),
            (b"{\"learner\": 1}".to_vec(), "invalid type"),
            (b"".to_vec(), "the file ends early"),
            (b"[]".to_vec(), "expected struct File"),
            (b"{L\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec(), "is more than the 0 bytes"),
            (deep, "recursion limit"),
            (deep_ubj, "nested deeper than 64"),
            (deep_skipped, "nested deeper than 64"),
        ] {
            let error = load(&file).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with("malformed xgboost model: "), "{says}: {error:?}");
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        let two = categorical(json!([0]), json!([0]), json!([1]), json!([1]));
        assert_eq!(ask(&two), [20.5, 10.5, 20.5]);
    }
}

mod linear {
    use super::*;

    fn load(file: &Value) -> Result<Box<dyn Model>, String> {
        LinearLoader.load(file.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    fn ask(file: &Value, rows: &[[f32; 2]]) -> Vec<Data> {
        let model = load(file).expect("it is served");
        let input = Tensor::new(vec![rows.len(), 2], Data::Fp32(rows.concat())).expect("rows of two");
        let outputs = model.infer(&[input]).expect("it answers");
        outputs.iter().map(|output| output.data().clone()).collect()
    }

    fn sound(kind: &str) -> Value {
        match kind {
            "linear" => {
                json!({"kind": kind, "features": ["x", "y"], "coefficients": [[1, 2], [0, -1]], "intercepts": [0.5, 0]})
            }
            "logistic" => {
                json!({"kind": kind, "features": ["x", "y"], "coefficients": [[1, 0]], "intercepts": [0], "classes": ["no", "yes"]})
            }
            _ => json!({"kind": kind, "features": ["x", "y"], "coefficients": [[1, 0], [0, 1], [0, 0]],
                "intercepts": [0, 0, 0], "classes": ["x", "y", "none"], "input": "point"}),
        }
    }

    #[test]
    fn every_kind_conforms() {
        for kind in ["linear", "logistic", "softmax"] {
            let mut file = sound(kind);
            conformance::check(&LinearLoader, file.to_string().as_bytes(), None).expect(kind);
            file.as_object_mut().expect("an object").remove("classes");
            conformance::check(&LinearLoader, file.to_string().as_bytes(), None).expect(kind);
        }
    }

    #[test]
    fn every_kind_answers_what_the_formula_says() {
        assert_eq!(ask(&sound("linear"), &[[1.0, 2.0], [0.0, 0.0]]), [Data::Fp32(vec![5.5, -2.0, 0.5, 0.0])]);
        let labels = |labels: &[&str]| Data::Bytes(labels.iter().map(ToString::to_string).collect());
        let third = (3.0_f32.ln(), 0.75);
        assert_eq!(
            ask(&sound("logistic"), &[[third.0, 0.0], [0.0, 9.0], [-1e30, 0.0], [1e30, 0.0], [f32::NEG_INFINITY, 0.0]]),
            [Data::Fp32(vec![third.1, 0.5, 0.0, 1.0, 0.0]), labels(&["yes", "no", "no", "yes", "no"])]
        );
        assert_eq!(
            ask(&sound("softmax"), &[[1e30, 0.0], [-1e30, -1e30], [0.0, 2.0_f32.ln()]]),
            [Data::Fp32(vec![1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.25, 0.5, 0.25]), labels(&["x", "none", "y"])]
        );
        assert_eq!(load(&sound("softmax")).expect("it is served").signature().inputs[0].name, "point");
    }

    #[test]
    fn a_document_that_contradicts_itself_is_refused() {
        for (kind, field, value, says) in [
            ("linear", "kind", json!("ridge"), "unknown variant `ridge`"),
            ("linear", "features", json!([]), "there are no features"),
            ("linear", "features", json!(["x", "x"]), r#"feature "x" is named twice"#),
            ("linear", "features", json!(["x", ""]), "the name of a feature is empty"),
            ("linear", "features", json!(["x", "y", "z"]), "coefficients[0] has 2 numbers for 3 features"),
            ("linear", "coefficients", json!([]), "there are no coefficients"),
            ("linear", "coefficients", json!([[1, 2], [3]]), "coefficients[1] has 1"),
            ("linear", "coefficients", json!([[1, null], [3, 4]]), "invalid type: null"),
            ("linear", "intercepts", json!([1]), "there are 1 intercepts for 2 scores"),
            ("linear", "classes", json!(["a", "b"]), "linear has no classes"),
            ("linear", "input", json!(""), "the name of the input is empty"),
            ("linear", "scale", json!(1), "unknown field `scale`"),
            ("logistic", "coefficients", json!([[1, 2], [3, 4]]), "logistic has 1 list"),
            ("logistic", "classes", json!(["a"]), "there are 1 classes, not 2"),
            ("softmax", "coefficients", json!([[1, 2]]), "softmax has 2 lists"),
            ("softmax", "classes", json!(["a", "b", "b"]), r#"class "b" is named twice"#),
        ] {
            let mut file = sound(kind);
            file[field] = value;
            let error = load(&file).err().unwrap_or_default();
            assert!(error.starts_with("malformed linear model: ") && error.contains(says), "{error:?}: {says:?}");
        }
        let infinite = br#"{"kind": "linear", "features": ["x"], "coefficients": [[1e999]], "intercepts": [0]}"#;
        assert!(LinearLoader.load(infinite).is_err());
        let twice =
            br#"{"kind": "linear", "kind": "linear", "features": ["x"], "coefficients": [[1]], "intercepts": [0]}"#;
        assert!(LinearLoader.load(twice).is_err());
    }

    #[test]
    fn no_other_format_is_taken_for_this_one() {
        for sample in samples::all() {
            assert_eq!(LinearLoader.recognizes(sample.bytes), sample.format == "linear", "{}", sample.name);
            assert_eq!(XgboostLoader.recognizes(sample.bytes), sample.format == "xgboost", "{}", sample.name);
        }
        for bytes in [&b""[..], b"{", b"{}", b"[]", b"\x80\x04", b"{\"features\"", b"{\"other\": 1}"] {
            assert!(Loaders::bundled().recognize(bytes).is_none_or(|_| bytes == b"{\"features\""));
        }
    }
}

mod conformance_finds {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use hotserve_models::{Dim, InferError, Signature};

    use super::*;

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        PanicOnDamage,
        PanicOnInfinity,
        DependOnBatch,
        KeepState,
        LoseRow,
        NoMemory,
        MuchMemory,
        FixedRows,
        SameNames,
        NotRecognized,
        UpperCase,
    }

    const GOOD: &[u8] = br#"{"kind": "linear", "features": ["x", "y"], "coefficients": [[1, 2]], "intercepts": [0]}"#;

    struct Faulty(Fault);

    impl Loader for Faulty {
        fn format(&self) -> &'static str {
            if self.0 == Fault::UpperCase { "Faulty" } else { "faulty" }
        }

        fn recognizes(&self, bytes: &[u8]) -> bool {
            self.0 != Fault::NotRecognized && LinearLoader.recognizes(bytes)
        }

        fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
            assert!(self.0 != Fault::PanicOnDamage || bytes == GOOD, "damage is found");
            let inner: Arc<dyn Model> = LinearLoader.load(bytes)?.into();
            let mut signature = inner.signature().clone();
            match self.0 {
                Fault::FixedRows => signature.inputs[0].shape[0] = Dim::Fixed(1),
                Fault::SameNames => signature.inputs[0].features = vec!["x".to_owned(); 2],
                _ => {}
            }
            Ok(Box::new(FaultyModel { fault: self.0, inner, signature, calls: AtomicU32::new(0) }))
        }
    }

    struct FaultyModel {
        fault: Fault,
        inner: Arc<dyn Model>,
        signature: Signature,
        calls: AtomicU32,
    }

    impl Model for FaultyModel {
        fn signature(&self) -> &Signature {
            &self.signature
        }

        fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
            let outputs = self.inner.infer(inputs)?;
            let mut numbers = outputs[0].as_f32().unwrap_or_default().to_vec();
            let calls = self.calls.fetch_add(1, Ordering::Relaxed);
            match self.fault {
                Fault::DependOnBatch => numbers.iter_mut().for_each(|x| *x += inputs[0].rows() as f32),
                Fault::KeepState => numbers.iter_mut().for_each(|x| *x += calls as f32),
                Fault::LoseRow => drop(numbers.pop()),
                Fault::PanicOnInfinity => assert!(numbers.iter().all(|x| !x.is_infinite()), "all are finite"),
                _ => {}
            }
            Ok(vec![Tensor::new(vec![numbers.len()], Data::Fp32(numbers)).expect("one axis")])
        }

        fn memory_bytes(&self) -> usize {
            match self.fault {
                Fault::NoMemory => 0,
                Fault::MuchMemory => 1 << 40,
                _ => self.inner.memory_bytes(),
            }
        }

        fn engine(&self) -> &'static str {
            "faulty"
        }
    }

    #[test]
    fn every_breach_of_the_contract() {
        for (fault, says) in [
            (Fault::PanicOnDamage, "the artifact cut off (0) makes the loader or its model panic"),
            (Fault::PanicOnInfinity, "infer panics on a batch of 150"),
            (Fault::DependOnBatch, "rows 0 to 1 are answered in another way in a batch of 1"),
            (Fault::KeepState, "the same batch is answered in two ways"),
            (Fault::LoseRow, "150 rows are answered by 149"),
            (Fault::NoMemory, "the model claims to hold no memory"),
            (Fault::MuchMemory, "the model claims 1099511627776 bytes of memory"),
            (Fault::FixedRows, r#"the first axis of input "input" is not -1"#),
            (Fault::SameNames, r#"the feature "x" is there twice"#),
            (Fault::NotRecognized, "the artifact is not recognized"),
            (Fault::UpperCase, "is not in lower case"),
        ] {
            let error = conformance::check(&Faulty(fault), GOOD, None).err().unwrap_or_default();
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        assert_eq!(conformance::check(&Faulty(Fault::None), GOOD, None), Ok(()));
        let wrong = r#"{"cases": [{"inputs": {"input": [[1, 1]]}, "outputs": {"prediction": [4]}}]}"#;
        let wrong: Golden = serde_json::from_str(wrong).expect("the cases are JSON");
        let error = conformance::check(&Faulty(Fault::None), GOOD, Some(&wrong)).err().unwrap_or_default();
        assert!(error.contains("expected 4.0, got 3.0"), "{error}");
    }
}
