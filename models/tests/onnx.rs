//! The format `onnx` against ONNX Runtime's own answers, which `record_onnx.py` has recorded, and against hostile files.

use std::fs;
use std::path::{Path, PathBuf};

use hotserve_models::{Data, Golden, InferError, LoadError, Loader, OnnxLoader, Tensor, conformance};
use proptest::prelude::*;

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

fn bytes(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).expect("it is recorded")
}

/// Messages as the wire has them: just enough to write graphs that no exporter writes.
mod wire {
    pub fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    pub fn int(number: u64, value: i64) -> Vec<u8> {
        [varint(number << 3), varint(value.cast_unsigned())].concat()
    }

    pub fn bytes(number: u64, value: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
    }

    pub fn text(number: u64, value: &str) -> Vec<u8> {
        bytes(number, value.as_bytes())
    }

    /// A node of ai.onnx, or of ai.onnx.ml where its operator is told so.
    pub fn node(operator: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
        let (domain, operator) = match operator.strip_prefix("ml.") {
            Some(operator) => ("ai.onnx.ml", operator),
            None => ("", operator),
        };
        let mut node: Vec<u8> = inputs.iter().flat_map(|name| text(1, name)).collect();
        node.extend([text(2, output), text(3, "here"), text(4, operator), text(7, domain)].concat());
        node.extend(attributes.iter().flat_map(|attribute| bytes(5, attribute)));
        bytes(1, &node)
    }

    pub fn ints(name: &str, values: &[i64]) -> Vec<u8> {
        let values = values.iter().flat_map(|value| int(8, *value));
        text(1, name).into_iter().chain(values).collect()
    }

    /// A constant list of INT64.
    pub fn longs(name: &str, values: &[i64]) -> Vec<u8> {
        let head = [text(8, name), int(2, 7), int(1, i64::try_from(values.len()).expect("few"))].concat();
        bytes(5, &head.into_iter().chain(values.iter().flat_map(|value| int(7, *value))).collect::<Vec<_>>())
    }

    /// An input or output of FP32; an axis of -1 is open.
    pub fn info(number: u64, name: &str, dims: &[i64]) -> Vec<u8> {
        info_of(number, name, 1, dims)
    }

    /// An input or output of an element type.
    pub fn info_of(number: u64, name: &str, element: i64, dims: &[i64]) -> Vec<u8> {
        let dim = |dim: &i64| bytes(1, &if *dim < 0 { text(2, "N") } else { int(1, *dim) });
        let shape: Vec<u8> = dims.iter().flat_map(dim).collect();
        let tensor = [int(1, element), bytes(2, &shape)].concat();
        bytes(number, &[text(1, name), bytes(2, &bytes(1, &tensor))].concat())
    }

    pub fn model(graph: &[Vec<u8>]) -> Vec<u8> {
        let opset = |domain: &str, version: i64| bytes(8, &[text(1, domain), int(2, version)].concat());
        [int(1, 8), text(2, "test"), bytes(7, &graph.concat()), opset("", 15), opset("ai.onnx.ml", 3)].concat()
    }

    /// From `x` of so many columns to `y`.
    pub fn graph_of(parts: &[Vec<u8>], width: i64) -> Vec<u8> {
        model(&[parts.concat(), info(11, "x", &[-1, width]), info(12, "y", &[-1, width])])
    }

    /// From `x` of two columns to `y`.
    pub fn graph(nodes: &[Vec<u8>]) -> Vec<u8> {
        graph_of(nodes, 2)
    }
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    use wire::{bytes, graph, info, int, ints, model, node, text};
    let identity = || node("Identity", &["x"], "y", &[]);
    let inputs = |dims: &[i64]| model(&[identity(), info(11, "x", dims), info(12, "y", &[])]);
    let external = [text(8, "w"), int(2, 1), int(1, 2), int(14, 1)].concat();
    let sum = [ints("axes", &[0]), [text(1, "keepdims"), int(3, 1)].concat()];
    let batch = [node("ReduceMean", &["x"], "mean", &sum), node("Sub", &["x", "mean"], "y", &[])];
    for (file, says) in [
        (graph(&[node("Conv", &["x"], "y", &[])]), r#"the operators ai.onnx.Conv (node "here")"#),
        (graph(&[node("If", &["x"], "y", &[])]), r#"ai.onnx.If (node "here")"#),
        (graph(&[node("ml.TreeEnsemble", &["x"], "y", &[])]), r#"ai.onnx.ml.TreeEnsemble (node "here")"#),
        (model(&[bytes(5, &external), identity(), info(11, "x", &[-1, 2])]), r#"external data (tensor "w")"#),
        (inputs(&[3, 2]), r#"the input "x" of just 3 rows"#),
        (inputs(&[-1, -1]), r#"the input "x" of any width"#),
        (inputs(&[]), r#"the input "x", a scalar"#),
        (graph(&batch), "rows whose answers depend on the other rows of the batch"),
        (graph(&[node("Transpose", &["x"], "y", &[])]), r#"the output "y", whose first axis is not the row"#),
        ([inputs(&[-1, 2]), bytes(25, &[])].concat(), "functions of its own"),
        ([inputs(&[-1, 2]), bytes(8, &int(2, 99))].concat(), "version 99 of ai.onnx"),
    ] {
        match OnnxLoader.load(&file).err() {
            Some(LoadError::Unsupported { feature, .. }) => {
                assert!(feature.contains(says), "{feature:?} does not say {says:?}");
            }
            other => assert_eq!(other.map(|error| error.to_string()).as_deref(), Some(says)),
        }
    }
}

#[test]
fn a_hostile_file_is_refused_and_the_error_says_where() {
    use wire::{bytes, graph, info, int, ints, model, node, text, varint};
    let cycle = [node("Add", &["x", "b"], "a", &[]), node("Add", &["x", "a"], "b", &[])];
    let twice = [node("Identity", &["x"], "y", &[]), node("Identity", &["x"], "y", &[])];
    let tensor = bytes(5, &[text(8, "w"), int(2, 1), int(1, i64::MAX), int(1, i64::MAX)].concat());
    let negative = bytes(5, &[text(8, "w"), int(2, 1), int(1, -1)].concat());
    let stump = |trues: i64, feature: i64| {
        let attribute = |name: &str, field: u64, values: &[&str]| {
            values.iter().fold(text(1, name), |bytes, value| [bytes, text(field, value)].concat())
        };
        let floats = |name: &str| {
            let values = [0.5_f32, 0.0, 0.0].map(f32::to_le_bytes).concat();
            [text(1, name), bytes(7, &values)].concat()
        };
        let lists = [
            ints("nodes_treeids", &[0, 0, 0]),
            ints("nodes_nodeids", &[0, 1, 2]),
            ints("nodes_featureids", &[feature, 0, 0]),
            ints("nodes_truenodeids", &[trues, 0, 0]),
            ints("nodes_falsenodeids", &[2, 0, 0]),
            attribute("nodes_modes", 9, &["BRANCH_LEQ", "LEAF", "LEAF"]),
            floats("nodes_values"),
        ];
        graph(&[node("ml.TreeEnsembleRegressor", &["x"], "y", &lists)])
    };
    for (file, says) in [
        (Vec::new(), "there is no graph"),
        (vec![0xff; 40], "a number is cut off or too long"),
        ([varint(7 << 3 | 2), varint(u64::MAX)].concat(), "a field is cut off"),
        (vec![0x0b, 0x0b], "wire type 3"),
        (graph(&cycle), "comes from nowhere, or a cycle"),
        (graph(&[node("Identity", &["z"], "y", &[])]), "comes from nowhere"),
        (graph(&twice), r#"the value "y" is made twice"#),
        (model(&[tensor, info(11, "x", &[-1, 2])]), "is too large"),
        (model(&[negative, info(11, "x", &[-1, 2])]), "has an axis of -1"),
        (graph(&[]), r#"the output "y" comes from nowhere"#),
        (
            model(&[
                node("Identity", &["x"], "y", &[]),
                info(11, "x", &[-1, 2]),
                info(12, "y", &[]),
                info(12, "y", &[]),
            ]),
            r#"the output "y" is listed twice"#,
        ),
        (graph(&[node("Concat", &["x"; 9], "y", &[[text(1, "axis"), int(3, 7)].concat()])]), "there is no axis 7"),
        (stump(0, 0), "tree 0, node 0: two paths lead to it"),
        (stump(9, 0), "there is no such node"),
        (stump(1, 2), "it splits on feature 2 of 2"),
        (stump(1, -1), "it splits on feature"),
    ] {
        let error = OnnxLoader.load(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    // 40 times the same, joined to itself: a short file that would take terabytes.
    let axis = [text(1, "axis"), int(3, 1)].concat();
    let name = |at: usize| if at == 0 { "x".to_owned() } else { format!("v{at}") };
    let doubling = |at| node("Concat", &[&name(at), &name(at)], &name(at + 1), std::slice::from_ref(&axis));
    let nodes: Vec<_> = (0..40).map(doubling).chain([node("Identity", &["v40"], "y", &[])]).collect();
    let error = OnnxLoader.load(&graph(&nodes)).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("elements a row") || error.contains("intermediate tensor"), "{error}");
}

/// The most memory that the process has held, in MB.
#[cfg(target_os = "linux")]
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the line is there");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().expect("a number") / 1024
}

#[cfg(target_os = "linux")]
#[test]
fn a_large_batch_unfolds_a_block_of_rows_at_a_time() {
    use wire::{bytes, graph_of, int, ints, node, text};
    let categories: Vec<i64> = (0..1000).collect();
    let nodes = [
        node("ml.OneHotEncoder", &["x"], "hot", &[ints("cats_int64s", &categories)]),
        node("ml.ArrayFeatureExtractor", &["hot", "column"], "y", &[]),
    ];
    let column = bytes(5, &[text(8, "column"), int(2, 7), int(1, 1), int(7, 3)].concat());
    let model = OnnxLoader.load(&graph_of(&[nodes.concat(), column], 1)).expect("it is served");
    assert_eq!(model.engine(), "onnx");
    let rows: Vec<f32> = (0..1_u32 << 17).map(|row| (row % 1000) as f32).collect();
    let expected: Vec<f32> = rows.iter().map(|x| f32::from(u8::from(*x == 3.0))).collect();
    let before = peak();
    let answer = model.infer(&[Tensor::new(vec![rows.len(), 1], Data::Fp32(rows)).expect("numbers")]);
    // All at once they would take 500 MB.
    let taken = peak() - before;
    assert!(taken < 250, "{taken} MB");
    assert_eq!(answer.expect("it is answered")[0].as_f32(), Some(&expected[..]));
}

#[test]
fn a_wide_product_is_answered_for_many_rows() {
    use wire::{bytes, graph_of, int, node, text};
    let ones = 1.0_f32.to_le_bytes().repeat(256 * 256);
    let weights = bytes(5, &[text(8, "w"), int(2, 1), int(1, 256), int(1, 256), bytes(9, &ones)].concat());
    let product = node("MatMul", &["x", "w"], "y", &[]);
    let model = OnnxLoader.load(&graph_of(&[product, weights], 256)).expect("it is served");
    let rows = (1 << 12) + 1;
    let x = Tensor::new(vec![rows, 256], Data::Fp32(vec![1.0; rows * 256])).expect("numbers");
    let answer = model.infer(&[x]).expect("it is answered");
    assert_eq!(answer[0].shape(), [rows, 256]);
    assert!(answer[0].as_f32().is_some_and(|sums| sums.iter().all(|sum| *sum == 256.0)));
}

#[test]
fn an_axis_of_no_length_hides_no_others() {
    use wire::{bytes, graph, int, longs, node, text};
    let long = 1_i64 << 40;
    let empty = |dims: &[i64]| {
        let dims: Vec<u8> = dims.iter().flat_map(|dim| int(1, *dim)).collect();
        bytes(5, &[text(8, "w"), int(2, 1), dims].concat())
    };
    let keep_zero = [text(1, "allowzero"), int(3, 1)].concat();
    let drop_axis = [text(1, "keepdims"), int(3, 0)].concat();
    let second = [text(1, "axis"), int(3, 1)].concat();
    let sum = node("ReduceSum", &["w", "first"], "sum", std::slice::from_ref(&drop_axis));
    let made = |dims: &[i64]| [longs("dims", dims), node("ConstantOfShape", &["dims"], "w", &[])].concat();
    let turned = node("Transpose", &["w"], "sum", &[]);
    let flat = node("Softmax", &["w"], "sum", &[]);
    let none = [longs("none", &[]), node("Gather", &["x", "none"], "nothing", std::slice::from_ref(&second))].concat();
    let reshaped = |dims: &[i64]| {
        let reshape = node("Reshape", &["nothing", "dims"], "w", std::slice::from_ref(&keep_zero));
        [none.clone(), longs("dims", dims), reshape].concat()
    };
    let first = longs("first", &[0]);
    for (made, then) in [
        (empty(&[0, long]), &sum),
        (empty(&[long, 0]), &turned),
        (empty(&[0, long, long]), &flat),
        (made(&[0, long]), &sum),
        (made(&[long, 0]), &turned),
        (reshaped(&[0, long]), &sum),
        (reshaped(&[long, 0]), &turned),
    ] {
        // No output needs them.
        let file = graph(&[first.clone(), made, then.clone(), node("Identity", &["x"], "y", &[])]);
        let error = OnnxLoader.load(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("no elements of shape [") || error.contains("is too large"), "{error:?}");
    }
    // What is small in the trial is run by blocks, which are short enough.
    let wide = [none, longs("dims", &[0, 0, 100_000]), node("Reshape", &["nothing", "dims"], "w", &[])].concat();
    let sum = [longs("last", &[2]), node("ReduceSum", &["w", "last"], "sum", &[drop_axis])].concat();
    let file = graph(&[wide, sum, node("Concat", &["x", "sum"], "y", &[second])]);
    let model = OnnxLoader.load(&file).expect("it is served");
    assert_eq!(model.engine(), "onnx");
    let answer = model.infer(&[Tensor::new(vec![100, 2], Data::Fp32(vec![1.0; 200])).expect("numbers")]);
    assert_eq!(answer.expect("it is answered")[0].as_f32(), Some(&[1.0; 200][..]));
}

#[test]
fn steps_that_no_output_needs_are_not_run() {
    use wire::{graph, int, ints, node, text};
    let strict = [ints("cats_int64s", &[0, 1]), [text(1, "zeros"), int(3, 0)].concat()];
    let nodes = [node("ml.OneHotEncoder", &["x"], "unused", &strict), node("Identity", &["x"], "y", &[])];
    let model = OnnxLoader.load(&graph(&nodes)).expect("it is served");
    let row = Tensor::new(vec![1, 2], Data::Fp32(vec![7.0, 9.0])).expect("numbers");
    assert_eq!(model.infer(&[row]).expect("no category is asked for")[0].as_f32(), Some(&[7.0, 9.0][..]));
}

#[test]
fn an_index_out_of_range_is_the_callers_mistake() {
    use wire::{bytes, graph, info, info_of, int, longs, model, node, text};
    let numbers = [10.0_f32, 11.0, 20.0, 21.0, 30.0, 31.0].map(f32::to_le_bytes).concat();
    let table = bytes(5, &[text(8, "table"), int(2, 1), int(1, 3), int(1, 2), bytes(9, &numbers)].concat());
    let embed = node("Gather", &["table", "x"], "y", &[]);
    let file = model(&[embed, table, info_of(11, "x", 7, &[-1, 1]), info(12, "y", &[-1, 1, 2])]);
    // The rows that are made up to try it are far more than its three.
    let embedding = OnnxLoader.load(&file).expect("it is served");
    assert_eq!(embedding.engine(), "onnx");
    let ask = |index| embedding.infer(&[Tensor::new(vec![1, 1], Data::Int64(vec![index])).expect("an index")]);
    assert_eq!(ask(2).expect("the last")[0].as_f32(), Some(&[30.0, 31.0][..]));
    assert_eq!(ask(-3).expect("the first")[0].as_f32(), Some(&[10.0, 11.0][..]));
    for index in [3, -4, i64::MAX, i64::MIN] {
        match ask(index) {
            Err(InferError::BadInput(detail)) => assert!(detail.contains("is not below 3"), "{detail}"),
            other => assert_eq!(format!("{other:?}"), "a mistake of the caller"),
        }
    }
    let axis = [text(1, "axis"), int(3, 1)].concat();
    let constant = graph(&[longs("column", &[2]), node("Gather", &["x", "column"], "y", &[axis])]);
    let error = OnnxLoader.load(&constant).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("the index 2 is not below 2"), "{error}");
}

#[test]
fn no_digit_of_an_integer_is_lost_when_a_text_is_cast() {
    use wire::{info, info_of, int, model, node, text};
    let cast = node("Cast", &["x"], "y", &[[text(1, "to"), int(3, 7)].concat()]);
    let cast = model(&[cast, info_of(11, "x", 8, &[-1, 1]), info(12, "y", &[-1, 1])]);
    let cast = OnnxLoader.load(&cast).expect("it is served");
    let ask = |text: &str| cast.infer(&[Tensor::new(vec![1, 1], Data::Bytes(vec![text.to_owned()])).expect("a text")]);
    for (text, integer) in [
        ("9007199254740993", 9_007_199_254_740_993),
        (" -9223372036854775807 ", -9_223_372_036_854_775_807),
        ("9223372036854775807", i64::MAX),
        ("+7", 7),
        ("2.9", 2),
        ("1e3", 1000),
    ] {
        assert_eq!(ask(text).expect("a number")[0].data(), &Data::Int64(vec![integer]), "{text:?}");
    }
    assert!(matches!(ask("seven"), Err(InferError::BadInput(_))));
}

#[test]
fn the_sign_of_a_double_is_that_of_its_smallest_and_largest() {
    use wire::{info_of, model, node};
    let graph = [node("Sign", &["x"], "y", &[]), info_of(11, "x", 11, &[-1, 1]), info_of(12, "y", 11, &[-1, 1])];
    let model = OnnxLoader.load(&model(&graph)).expect("it is served");
    let x = Data::Fp64(vec![1e-60, -1e-60, 1e300, -0.0, f64::INFINITY]);
    let answer = model.infer(&[Tensor::new(vec![5, 1], x).expect("numbers")]).expect("it is answered");
    assert_eq!(answer[0].as_f64(), Some(&[1.0, -1.0, 1.0, 0.0, 1.0][..]));
}

#[test]
fn names_and_classes_come_from_the_graph() {
    let model = OnnxLoader.load(&bytes("frame_words.onnx")).expect("it is served");
    let signature = serde_json::to_value(model.signature()).expect("a signature is JSON");
    assert_eq!(
        signature,
        serde_json::json!({
            "inputs": [
                {"name": "age", "datatype": "FP32", "shape": [-1, 1]},
                {"name": "fare", "datatype": "FP32", "shape": [-1, 1]},
                {"name": "port", "datatype": "BYTES", "shape": [-1, 1]},
                {"name": "sex", "datatype": "BYTES", "shape": [-1, 1]},
            ],
            "outputs": [
                {"name": "output_label", "datatype": "BYTES", "shape": [-1]},
                {"name": "output_probability", "datatype": "FP32", "shape": [-1, 2], "features": ["no", "yes"]},
            ],
        })
    );
}

#[test]
fn an_unknown_category_is_the_callers_mistake_where_the_model_says_so() {
    let model = OnnxLoader.load(&bytes("frame_strict.onnx")).expect("it is served");
    let ask = |port: &str| {
        let number = || Tensor::new(vec![1, 1], Data::Fp32(vec![0.5])).expect("a number");
        let text = |text: &str| Tensor::new(vec![1, 1], Data::Bytes(vec![text.to_owned()])).expect("a text");
        model.infer(&[number(), number(), text(port), text("male")])
    };
    assert!(ask("Cherbourg").is_ok());
    match ask("nowhere") {
        Err(InferError::BadInput(detail)) => assert!(detail.contains("is no category"), "{detail}"),
        other => assert!(other.is_err(), "an unknown category is answered"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_bytes_never_panic(at in any::<prop::sample::Index>(), edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let names = ["frame.onnx", "encoders.onnx", "forest_old.onnx", "mlp.onnx", "svc_three.onnx", "transform_logistic.onnx"];
        let mut file = bytes(names[at.index(names.len())]);
        for (place, byte) in edits {
            let place = place.index(file.len());
            file[place] = byte;
        }
        if let Ok(model) = OnnxLoader.load(&file) {
            prop_assert!(model.memory_bytes() < 64 * file.len() + (1 << 20));
        }
    }

    #[test]
    fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
        OnnxLoader.recognizes(&garbage);
        prop_assert!(OnnxLoader.load(&garbage).is_err());
    }
}
