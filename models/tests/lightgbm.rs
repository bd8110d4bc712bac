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
                if error.is_nan() || error > worst.0 {
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

#[test]
fn names_and_shapes_come_from_the_model() {
    let named = load(&bytes("names.txt")).expect("it is served");
    assert_eq!(named.signature().inputs[0].features, ["a", "b=c", "größe", "d.e", "f_g", "h"]);
    let classes = load(&bytes("multiclass.txt")).expect("it is served");
    let names: Vec<String> = (0..6).map(|at| format!("Column_{at}")).collect();
    let signature = serde_json::to_value(classes.signature()).expect("a signature is JSON");
    assert_eq!(
        signature,
        json!({
            "inputs": [{"name": "input", "datatype": "FP64", "shape": [-1, 6], "features": names}],
            "outputs": [{"name": "prediction", "datatype": "FP64", "shape": [-1, 3]}],
        })
    );
    let single = load(&bytes("binary.txt")).expect("it is served");
    assert_eq!(single.signature().outputs[0].shape.len(), 1);
}

#[test]
fn no_other_format_is_taken_for_this_one() {
    for sample in samples::all() {
        assert_eq!(LightgbmLoader.recognizes(sample.bytes), sample.format == "lightgbm", "{}", sample.name);
    }
    for bytes in [&b""[..], b"tree", b"tree\n", b"tree\nnum_class=1\n", b"trees\nversion=v4\n", b"{\"tree\": 1}"] {
        assert!(!LightgbmLoader.recognizes(bytes));
    }
    assert_eq!(Loaders::bundled().recognize(&bytes("binary.txt")), Some("lightgbm"));
    assert_eq!(Loaders::bundled().recognize(b"tree\r\nversion=v4\r\n"), Some("lightgbm"));
}

/// One tree of three leaves: up to 2 on feature 0 it is 10; else 20 for the categories 1 and 33 of feature 1, or 30.
const SOUND: &str = "tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=1
objective=regression
feature_names=a b
feature_infos=[0:9] 1:33
tree_sizes=300

Tree=0
num_leaves=3
num_cat=1
split_feature=0 1
split_gain=1 1
threshold=2 0
decision_type=2 1
left_child=-1 -2
right_child=1 -3
leaf_value=10 20 30
cat_boundaries=0 2
cat_threshold=2 2
is_linear=0
shrinkage=1


end of trees

pandas_categorical:null
";

/// The sound file with lines replaced, each named by its key, or taken out where nothing replaces them.
fn edited(edits: &[(&str, &str)]) -> Vec<u8> {
    let line = |line: &str| {
        let key = line.split('=').next().unwrap_or_default();
        match edits.iter().find(|(name, _)| *name == key) {
            Some((_, "")) => String::new(),
            Some((_, new)) => format!("{new}\n"),
            None => format!("{line}\n"),
        }
    };
    SOUND.lines().map(line).collect::<String>().into_bytes()
}

#[test]
fn a_file_by_hand_answers_what_it_says() {
    let rows = [2.0, 1.0, 2.1, 1.0, 2.1, 33.9, 2.1, 0.0, 2.1, f64::NAN, f64::NAN, 2.0, 2.1, -0.5];
    let answers = [10.0, 20.0, 20.0, 30.0, 30.0, 10.0, 30.0];
    let windows = SOUND.replace('\n', "\r\n").into_bytes();
    for file in [edited(&[]), windows, edited(&[("split_gain", "split_gain=x"), ("shrinkage", "none")])] {
        assert_eq!(ask(&*load(&file).expect("it is served"), &rows), answers);
    }
    // -0.5 is category 0, and -1 is none.
    let zero = load(&edited(&[("cat_threshold", "cat_threshold=3 2")])).expect("it is served");
    assert_eq!(ask(&*zero, &[3.0, 0.0, 3.0, -0.5, 3.0, -1.0, 3.0, -0.0]), [20.0, 20.0, 30.0, 20.0]);
    // A split between NaN and all numbers, as LightGBM writes it.
    let missing = load(&edited(&[("threshold", "threshold=inf 0"), ("decision_type", "decision_type=8 1")]));
    let rows = [f64::INFINITY, 1.0, f64::NEG_INFINITY, 1.0, 1e300, 1.0, f64::NAN, 1.0];
    assert_eq!(ask(&*missing.expect("it is served"), &rows), [10.0, 10.0, 10.0, 20.0]);
    // Without decision types, every split is numeric, nothing is missing, and NaN is 0.
    let plain = load(&edited(&[("decision_type", "")])).expect("it is served");
    assert_eq!(ask(&*plain, &[f64::NAN, 9.0, 3.0, f64::NAN, 3.0, 1e-35, 3.0, 1e-34]), [10.0, 20.0, 20.0, 30.0]);
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    for (bytes, says) in [
        (bytes("zero_and_nan.refused.txt"), "both split on with missing type Zero and with NaN (line "),
        (edited(&[("version", "version=v2")]), r#"version "v2" (v3 and v4 are)"#),
        (edited(&[("objective", "objective=my_own a:1")]), r#"the objective "my_own""#),
        (
            edited(&[("split_feature", "split_feature=0 0")]),
            "feature 0 to be both numeric and categorical (line 18, decision_type, entry 1)",
        ),
        (edited(&[("max_feature_idx", "max_feature_idx=1048576")]), "1048576 features and more"),
        (
            edited(&[
                ("cat_boundaries", "cat_boundaries=0 524289"),
                ("cat_threshold", &format!("cat_threshold={}1", "0 ".repeat(524_288))),
            ]),
            "codes of categories from 2^24 up (line 23)",
        ),
        (
            edited(&[
                ("cat_boundaries", "cat_boundaries=0 524289"),
                ("cat_threshold", &format!("cat_threshold={}", "4294967295 ".repeat(524_289))),
            ]),
            "16777248 categories in one tree",
        ),
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
fn a_hostile_file_is_refused_with_its_line_and_field() {
    let with = |key: &str, line: &str| edited(&[(key, line)]);
    let linear = |edits: &[(&str, &str)]| {
        let mut lines = ["is_linear=1", "leaf_const=1 2 3", "num_features=0 1 0", "leaf_features=0", "leaf_coeff=2"];
        for (key, line) in edits {
            lines.iter_mut().filter(|old| old.starts_with(key)).for_each(|old| *old = line);
        }
        edited(&[("is_linear", &lines.join("\n"))])
    };
    assert_eq!(ask(&*load(&linear(&[])).expect("it is served"), &[3.0, 1.0, 0.0, 1.0, f64::NAN, 0.0]), [8.0, 1.0, 1.0]);
    // What is zero to a split is zero to a leaf, whatever the coefficient.
    let steep = linear(&[("num_features", "num_features=1 0 0"), ("leaf_coeff", "leaf_coeff=1e36")]);
    assert_eq!(ask(&*load(&steep).expect("it is served"), &[1e-35, 0.0, 1e-34, 0.0]), [1.0, 101.0]);
    for (file, says) in [
        (b"".to_vec(), "line 1: it is not \"tree\""),
        (b"tree\n".to_vec(), "the header has no version"),
        (with("tree", "trees"), "line 1: it is not"),
        (with("num_class", ""), "the header has no num_class"),
        (with("num_class", "num_class=-1"), r#"line 3, num_class: "-1" is not a count"#),
        (with("num_class", "num_class=0\nx=1"), "line 5, num_tree_per_iteration: it is not num_class, 0"),
        (
            edited(&[("num_class", "num_class=0"), ("num_tree_per_iteration", "num_tree_per_iteration=0")]),
            "line 3, num_class: it is 0",
        ),
        (
            edited(&[
                ("num_class", "num_class=4000000000"),
                ("num_tree_per_iteration", ""),
                ("objective", "objective=custom"),
            ]),
            "line 3, num_class: 1 trees cannot have 4000000000 outputs",
        ),
        (with("num_tree_per_iteration", "num_tree_per_iteration=2"), "line 4, num_tree_per_iteration: it is not"),
        (with("num_class", "num_class=1\nnum_class=1"), "line 4, num_class: it is there twice"),
        (with("max_feature_idx", "max_feature_idx=2"), "line 8, feature_names: 2 names for max_feature_idx 2"),
        (with("max_feature_idx", "max_feature_idx=99999999999999999999"), "line 6, max_feature_idx: "),
        (with("feature_names", "feature_names=a a"), r#"line 8, feature_names: the name "a" is there twice"#),
        (with("feature_names", "feature_names"), "line 8, feature_names: 0 names"),
        (with("objective", "objective=binary"), "line 7, objective: its sigmoid is not a number above 0"),
        (with("objective", "objective=binary sigmoid:-1"), "line 7, objective: its sigmoid"),
        (with("objective", "objective=binary sigmoid:nan"), "line 7, objective: its sigmoid"),
        (with("objective", "objective=multiclass num_class:3"), "line 7, objective: its num_class does not fit 1"),
        (with("objective", "objective=multiclass num_class:1"), "line 7, objective: its num_class does not fit 1"),
        (with("tree_sizes", "tree_sizes=1 2"), "line 10, tree_sizes: 2 entries for 1 trees"),
        (with("Tree", "Tree=1"), r#"line 12: "Tree=1" stands where Tree=0 is expected"#),
        (with("Tree", "Tree=x"), r#"line 12: "Tree=x" stands"#),
        (with("shrinkage", "shrinkage=1\n\nTree=0"), r#"line 27: "Tree=0" stands where Tree=1"#),
        (with("end of trees", ""), r#""pandas_categorical:null" stands where Tree=1"#),
        (SOUND.split("end").next().unwrap_or_default().into(), "the file ends early, without \"end of trees\""),
        (with("num_leaves", ""), "line 12: the tree has no num_leaves"),
        (with("num_leaves", "num_leaves=0"), "line 13, num_leaves: 0 is not from 1 to 131072"),
        (with("num_leaves", "num_leaves=4000000000"), "line 13, num_leaves: 4000000000 is not from 1"),
        (with("num_leaves", "num_leaves=2"), "line 21, leaf_value: 3 entries, not 2"),
        (with("num_leaves", "num_leaves=4"), "line 21, leaf_value: 3 entries, not 4"),
        (with("num_cat", "num_cat"), r#"line 14, num_cat: "" is not a count"#),
        (with("num_cat", "num_cat=0"), "line 17, threshold: entry 1, 0, is no set of categories"),
        (with("num_cat", "num_cat=2"), "line 22, cat_boundaries: 2 entries, not 3"),
        (with("num_cat", "num_cat=4000000000"), "line 14, num_cat: 4000000000 is more than"),
        (with("split_feature", "split_feature=0"), "line 15, split_feature: 1 entries, not 2"),
        (with("split_feature", "split_feature=0 2"), "line 15, split_feature: entry 1, 2, is none of 2 features"),
        (with("split_feature", "split_feature=0 -1"), r#"line 15, split_feature: entry 1, "-1", is not"#),
        (with("split_feature", "split_features=0 1"), "line 12: the tree has no split_feature"),
        (with("threshold", "threshold=2 1"), "line 17, threshold: entry 1, 1, is no set of categories"),
        (with("threshold", "threshold=2 0.5"), "line 17, threshold: entry 1, 0.5, is no set of categories"),
        (with("threshold", "threshold=2 -1"), "line 17, threshold: entry 1, -1, is no set of categories"),
        (with("threshold", "threshold=nan 0"), "line 17, threshold: entry 0 is NaN"),
        (with("threshold", "threshold=2 inf"), "line 17, threshold: entry 1, inf, is no set of categories"),
        (with("threshold", "threshold=2 0 0"), "line 17, threshold: 3 entries, not 2"),
        (with("threshold", "threshold=2 x\u{fffd}"), "line 17, threshold: entry 1, \"x"),
        (with("decision_type", "decision_type=2 13"), "line 18, decision_type: entry 1, 13, is not below 12"),
        (with("decision_type", "decision_type=2 -1"), r#"line 18, decision_type: entry 1, "-1", is not"#),
        (
            edited(&[("decision_type", "decision_type=1 1"), ("threshold", "threshold=0 0")]),
            "line 17, threshold: entry 1, 0, is no set of categories, or one that is in use",
        ),
        (with("left_child", "left_child=-1 2"), "line 19, left_child: entry 1, 2, is none of 2 splits and 3 leaves"),
        (with("left_child", "left_child=-4 -2"), "line 19, left_child: entry 0, -4, is none of 2 splits"),
        (
            with("left_child", "left_child=-9223372036854775808 -2"),
            "line 19, left_child: entry 0, -9223372036854775808",
        ),
        (with("right_child", "right_child=0 -3"), "line 12, Tree=0: node 0: two paths lead to it"),
        (with("right_child", "right_child=-3 -3"), "line 12, Tree=0: node 0: no path leads to 2 nodes"),
        (with("leaf_value", "leaf_value=10 20 inf"), "line 21, leaf_value: entry 2 is not a finite number"),
        (with("leaf_value", "leaf_value=10 20 30\nleaf_value=1 2 3"), "line 22, leaf_value: it is there twice"),
        (with("cat_boundaries", "cat_boundaries=1 2"), "line 22, cat_boundaries: it does not rise from 0"),
        (with("cat_boundaries", "cat_boundaries=0 3"), "line 23, cat_threshold: 2 entries, not 3"),
        (with("cat_boundaries", "cat_boundaries=0 18446744073709551615"), "line 23, cat_threshold: 2 entries, not"),
        (with("cat_threshold", "cat_threshold=2 4294967296"), r#"line 23, cat_threshold: entry 1, "4294967296", is"#),
        (with("is_linear", "is_linear=2"), "line 24, is_linear: it is neither 0 nor 1"),
        (with("is_linear", "is_linear=1"), "line 12: the tree has no leaf_const"),
        (linear(&[("leaf_const", "leaf_const=1 2")]), "line 25, leaf_const: 2 entries, not 3"),
        (linear(&[("num_features", "num_features=0 2 0")]), "line 27, leaf_features: 1 entries, not 2"),
        (
            linear(&[("num_features", "num_features=18446744073709551615 2 0")]),
            "line 26, num_features: its sum is out of range",
        ),
        (linear(&[("leaf_features", "leaf_features=2")]), "line 27, leaf_features: entry 0 is none of 2 features"),
        (linear(&[("leaf_coeff", "leaf_coeff=nan")]), "line 28, leaf_coeff: entry 0 is not a finite number"),
        (
            SOUND.replace("objective=regression\n", "average_output\n").replace("=0 1", "=1 1").into(),
            "feature 1 to be both",
        ),
    ] {
        let error = load(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    let empty = SOUND.split("Tree").next().unwrap_or_default().replace("tree_sizes=300", "average_output");
    let error = load(format!("{empty}end of trees\n").as_bytes()).err().map(|error| error.to_string());
    assert_eq!(error.as_deref(), Some("malformed lightgbm model: average_output without trees"));
}

/// The sound file's header with other trees.
fn with_trees(count: usize, tree: impl Fn(usize) -> String) -> Vec<u8> {
    let header = SOUND.split("tree_sizes").next().unwrap_or_default();
    let trees: String = (0..count).map(|at| format!("Tree={at}\n{}\n\n", tree(at))).collect();
    format!("{header}\n{trees}end of trees\n").into_bytes()
}

#[test]
fn trees_of_several_parts_are_added_in_their_order() {
    // Each tree takes half a megabyte before it is laid out, and a part has 24.
    const SPLITS: usize = 4095;
    let child = |child: usize| if child < SPLITS { child.to_string() } else { format!("-{}", child - SPLITS + 1) };
    let join = |entry: &dyn Fn(usize) -> String| (0..SPLITS).map(entry).collect::<Vec<_>>().join(" ");
    let (left, right) = (join(&|at| child(2 * at + 1)), join(&|at| child(2 * at + 2)));
    let zeros = "0 ".repeat(SPLITS);
    let large = |at: usize, left: &str| {
        let leaf = if at == 0 { 1e16 } else { 1.0 };
        format!(
            "num_leaves={}\nnum_cat=0\nsplit_feature={zeros}\nthreshold={zeros}\nleft_child={left}\n\
             right_child={right}\nleaf_value={}\n",
            SPLITS + 1,
            format!("{leaf} ").repeat(SPLITS + 1)
        )
    };
    let model = load(&with_trees(60, |at| large(at, &left))).expect("it is served");
    // In FP64 1e16 + 1 is 1e16, so that another order answers another sum.
    assert_eq!(ask(&*model, &[-1.0, 0.0, 1.0, 0.0]), [1e16, 1e16]);
    let cycle = left.replacen('1', "0", 1);
    let error = load(&with_trees(60, |at| large(at, if at == 55 { &cycle } else { &left }))).err();
    let error = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("line 561, Tree=55: node 0: two paths lead to it"), "{error}");

    let constant = |at: usize| {
        let leaf = if at == 0 { 1e16 } else { 1.0 };
        format!(
            "num_leaves=1\nnum_cat=0\nleaf_value=5\nis_linear=1\nleaf_const={leaf}\nnum_features=1\nleaf_features=1\n\
             leaf_coeff=0\n"
        )
    };
    let linear = load(&with_trees(3000, constant)).expect("it is served");
    assert_eq!(ask(&*linear, &[0.0, 1.0, 0.0, f64::NAN]), [1e16, 15_000.0]);
    let rows: Vec<f64> = (0..200).map(|at| if at % 6 == 1 { f64::NAN } else { 0.0 }).collect();
    for (row, answer) in ask(&*linear, &rows).into_iter().enumerate() {
        assert_eq!(answer, if row % 3 == 0 { 15_000.0 } else { 1e16 }, "{row}");
    }
}

/// What a file is made of, and what breaks it.
fn token() -> impl Strategy<Value = String> {
    let words = [
        "",
        "0",
        "1",
        "-1",
        "-2",
        "2",
        "3",
        "9",
        "1e-35",
        "-1e308",
        "inf",
        "nan",
        "131072",
        "4294967295",
        "x",
        "=",
        "\n",
        "\n\n",
        "Tree=0",
        "Tree=1",
        "end of trees",
        "num_leaves=1",
        "is_linear=1",
        "num_cat=1",
        "average_output",
        "9223372036854775807",
        "18446744073709551616",
        "leaf_const=1 2 3",
        "num_features=1 1 1",
        "leaf_features=0 1 0",
        "leaf_coeff=1 2 -3",
    ];
    prop_oneof![9 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => any::<String>()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn a_changed_file_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), token()), 1..6),
        windows in any::<bool>(),
    ) {
        let mut tokens: Vec<String> = SOUND.split_inclusive([' ', '\n', '=']).map(str::to_owned).collect();
        for (at, keep, new) in edits {
            let at = at.index(tokens.len());
            let end = tokens[at].chars().next_back().unwrap_or(' ');
            tokens[at] = if keep { format!("{new}{end}{}", tokens[at]) } else { format!("{new}{end}") };
        }
        let text = tokens.concat();
        let text = if windows { text.replace('\n', "\r\n") } else { text };
        if let Ok(model) = load(text.as_bytes()) {
            let width = model.signature().inputs[0].features.len();
            let values = [0.0, 1.0, 2.0, 33.0, -0.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-36];
            let rows: Vec<f64> = (0..width * 9).map(|at| values[(at + at / width) % 9]).collect();
            prop_assert!(ask(&*model, &rows).len() >= 9);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(load(&tail).is_err());
        let _ = load(&[&b"tree\nversion=v4\n"[..], &tail].concat());
    }
}
