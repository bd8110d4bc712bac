//! Neural nets: parity with ONNX Runtime, what is refused, and hostile files.

use std::fs;
use std::path::{Path, PathBuf};

use hotserve_models::{
    Data, DataType, Dim, Golden, InferError, LoadError, Loader, Model, NeuralLoader, Tensor, conformance,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/neural")
}

fn read(file: &str) -> Vec<u8> {
    fs::read(folder().join(file)).expect(file)
}

fn load(name: &str) -> Box<dyn Model> {
    NeuralLoader.load(&read(&format!("{name}.onnx"))).expect(name)
}

fn golden(name: &str) -> Golden {
    serde_json::from_slice(&read(&format!("{name}.golden.json"))).expect(name)
}

fn refusal(bytes: &[u8]) -> String {
    match NeuralLoader.load(bytes) {
        Ok(_) => "it is served".to_owned(),
        Err(error) => error.to_string(),
    }
}

const NETS: [&str; 6] = ["mlp", "mlp_one_row", "cnn", "transformer", "gru", "heads"];

#[test]
fn every_net_answers_as_onnx_runtime() {
    let files = fs::read_dir(folder()).expect("the folder is there");
    let recorded =
        files.filter(|file| file.as_ref().is_ok_and(|file| file.path().to_string_lossy().contains("golden")));
    assert_eq!(recorded.count(), NETS.len(), "a recorded net is not listed");
    for name in NETS {
        golden(name).check(&*load(name)).expect(name);
    }
}

#[test]
fn nets_keep_the_contract() {
    // Integers of any size are not in a vocabulary, and not in 32 bits: such nets refuse what is made up.
    for name in ["mlp", "mlp_one_row", "cnn", "gru", "heads"] {
        conformance::check(&NeuralLoader, &read(&format!("{name}.onnx")), Some(&golden(name))).expect(name);
    }
}

#[test]
fn a_signature_is_that_of_the_file() {
    let model = load("transformer");
    let signature = model.signature();
    assert_eq!(signature.inputs[0].datatype, DataType::Int64);
    assert_eq!(signature.inputs[0].shape, [Dim::Any, Dim::Any]);
    assert_eq!(signature.outputs[0].shape, [Dim::Any, Dim::Fixed(2)]);
    assert_eq!(load("mlp_one_row").signature().inputs[0].shape, [Dim::Any, Dim::Fixed(8)]);
    let heads = load("heads");
    let kinds: Vec<DataType> = heads.signature().outputs.iter().map(|spec| spec.datatype).collect();
    assert_eq!(kinds, [DataType::Fp32, DataType::Int64, DataType::Bool]);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    for (name, says) in [
        ("rows_mixed", r#"the other rows of a batch for each row of the output "y""#),
        ("rows_lost", "3 rows are answered by a tensor of shape [1, 3]"),
        ("four_rows", r#"4 rows in every batch (the first axis of "x")"#),
        ("double", r#"the input "x" of datatype DOUBLE"#),
        ("text", r#"the input "x" of datatype STRING"#),
        ("scalar", r#"the input "x", which has no axis for the rows"#),
        ("operator", "onnx model needs the operator Det, which is not supported"),
        ("random", "the operator RandomNormalLike"),
        ("conv", "the operator Conv as it is used here (inference failed: operator \"Conv_0\" failed"),
        ("external", "external data"),
    ] {
        let error = refusal(&read(&format!("{name}.refused.onnx")));
        assert!(error.contains(says), "{name}: {error:?} does not say {says:?}");
    }
}

#[test]
fn integers_beyond_what_the_net_computes_in_are_the_callers_mistake() {
    let model = load("transformer");
    let tokens = |token| [Tensor::new(vec![1, 2], Data::Int64(vec![1, token])).expect("two tokens")];
    assert!(model.infer(&tokens(19)).is_ok());
    assert!(matches!(model.infer(&tokens(1 << 32)), Err(InferError::BadInput(_))));
    // The vocabulary has 20.
    assert!(matches!(model.infer(&tokens(20)), Err(InferError::Failed(_))));
}

/// Protocol Buffers by hand: what no exporter writes.
mod hostile {
    use super::*;

    fn varint(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number > 0x7f {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }

    fn field(number: usize, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        [varint(number << 3 | 2), varint(content.len()), content].concat()
    }

    fn value(number: usize, name: &str, dims: &[&[u8]]) -> Vec<u8> {
        let tensor = [&[0x08, 1][..], &field(2, dims)].concat();
        field(number, &[&field(1, &[name.as_bytes()]), &field(2, &[&field(1, &[&tensor])])])
    }

    fn node(input: &str, output: &str, operator: &str, rest: &[u8]) -> Vec<u8> {
        let named = |number, name: &str| field(number, &[name.as_bytes()]);
        field(1, &[&named(1, input), &named(2, output), &named(4, operator), rest])
    }

    fn model(graph: &[&[u8]]) -> Vec<u8> {
        let opset = field(8, &[&[0x10, 17]]);
        [&[0x08, 8][..], &field(7, graph), &opset].concat()
    }

    fn dims() -> [Vec<u8>; 2] {
        [field(1, &[&field(2, &[b"N"])]), field(1, &[&[0x08, 3]])]
    }

    #[test]
    fn graphs_within_graphs_do_not_exhaust_the_stack() {
        let [n, three] = dims();
        let dims: [&[u8]; 2] = [&n, &three];
        let mut inner = Vec::new();
        for _ in 0..20_000 {
            let attribute = field(5, &[&field(1, &[b"body"]), &field(6, &[&inner])]);
            inner = node("x", "y", "Loop", &attribute);
        }
        let bytes = model(&[&inner, &value(11, "x", &dims), &value(12, "y", &dims)]);
        assert!(refusal(&bytes).contains("graphs within graphs"), "{}", refusal(&bytes));
    }

    #[test]
    fn types_within_types_do_not_exhaust_the_stack() {
        let [n, three] = dims();
        let dims: [&[u8]; 2] = [&n, &three];
        let plain = node("x", "y", "Relu", &[]);
        // In a sequence, a map and an optional; as an output, beside the values of the graph and in an attribute.
        for (kind, within) in [(4, 1), (5, 2), (9, 1)] {
            for (depth, refused) in [(8, false), (9, true), (10_000, true)] {
                let mut nested = Vec::new();
                for _ in 0..depth {
                    nested = field(kind, &[&field(within, &[&nested])]);
                }
                let beside = field(13, &[&field(1, &[b"z"]), &field(2, &[&nested])]);
                let attribute = field(5, &[&field(1, &[b"kind"]), &field(14, &[&nested])]);
                let edges = [value(11, "x", &dims), value(12, "y", &dims)].concat();
                let inside = node("x", "y", "Relu", &attribute);
                let output = field(12, &[&field(1, &[b"y"]), &field(2, &[&nested])]);
                let says = refusal(&model(&[&plain, &edges, &beside]));
                assert!(if refused { says.contains("types within types") } else { says == "it is served" }, "{says}");
                for bytes in [model(&[&plain, &value(11, "x", &dims), &output]), model(&[&inside, &edges])] {
                    assert_eq!(refusal(&bytes).contains("types within types"), refused, "{}", refusal(&bytes));
                }
            }
        }
    }

    /// rten's decoder would look for the end of the number for ever.
    #[test]
    fn a_number_without_an_end_is_refused() {
        let [n, three] = dims();
        let dims: [&[u8]; 2] = [&n, &three];
        let edges = [value(11, "x", &dims), value(12, "y", &dims)].concat();
        let endless = [0xff; 11];
        for data in [5, 7, 11] {
            let weights = field(5, &[&[0x08, 11], &[0x10, 7], &field(data, &[&endless]), &field(8, &[b"w"])]);
            let says = refusal(&model(&[&node("x", "y", "Relu", &[]), &edges, &weights]));
            assert!(says.contains("more than ten bytes"), "field {data}: {says}");
        }
        let attribute = field(5, &[&field(1, &[b"axes"]), &field(8, &[&endless])]);
        let says = refusal(&model(&[&node("x", "y", "Relu", &attribute), &edges]));
        assert!(says.contains("more than ten bytes"), "{says}");
    }

    #[test]
    fn a_long_chain_of_nodes_is_served_and_one_too_long_refused() {
        let [n, three] = dims();
        let dims: [&[u8]; 2] = [&n, &three];
        let model = NeuralLoader.load(&chain(20_000, &dims)).expect("every operator is known");
        let x = Tensor::new(vec![1, 3], Data::Fp32(vec![-1.0, 0.0, 2.0])).expect("one row");
        let y = model.infer(&[x]).expect("the chain runs");
        assert_eq!(y[0].as_f32(), Some(&[0.0, 0.0, 2.0][..]));
        assert!(refusal(&chain(20_001, &dims)).contains("more than 20000 nodes"));
    }

    fn chain(length: usize, dims: &[&[u8]]) -> Vec<u8> {
        let name = |i| {
            if i == 0 {
                "x".to_owned()
            } else if i == length {
                "y".to_owned()
            } else {
                format!("v{i}")
            }
        };
        let nodes: Vec<u8> = (0..length).flat_map(|i| node(&name(i), &name(i + 1), "Relu", &[])).collect();
        model(&[&nodes, &value(11, "x", dims), &value(12, "y", dims)])
    }

    #[test]
    fn a_subgraph_is_short() {
        let [n, three] = dims();
        let dims: [&[u8]; 2] = [&n, &three];
        let body: Vec<u8> = (0..501).flat_map(|i| node("x", &format!("v{i}"), "Relu", &[])).collect();
        let attribute = field(5, &[&field(1, &[b"then_branch"]), &field(6, &[&body])]);
        let bytes = model(&[&node("x", "y", "If", &attribute), &value(11, "x", &dims), &value(12, "y", &dims)]);
        assert!(refusal(&bytes).contains("more than 500 nodes in a subgraph"), "{}", refusal(&bytes));
    }

    #[test]
    fn a_cycle_and_a_missing_input_are_refused() {
        let [n, three] = dims();
        let dims: [&[u8]; 2] = [&n, &three];
        for nodes in [
            [node("a", "b", "Relu", &[]), node("b", "a", "Relu", &[]), node("a", "y", "Relu", &[])].concat(),
            node("nowhere", "y", "Relu", &[]),
            node("y", "y", "Relu", &[]),
            Vec::new(),
        ] {
            let bytes = model(&[&nodes, &value(11, "x", &dims), &value(12, "y", &dims)]);
            let refused = NeuralLoader.load(&bytes);
            assert!(matches!(refused, Err(LoadError::Malformed { .. } | LoadError::Unsupported { .. })));
        }
    }

    #[test]
    fn functions_and_strange_domains_are_refused_by_name() {
        let [n, three] = dims();
        let dims: [&[u8]; 2] = [&n, &three];
        let strange = node("x", "y", "Relu", &field(7, &[b"ai.onnx.ml"]));
        let bytes = model(&[&strange, &value(11, "x", &dims), &value(12, "y", &dims)]);
        assert!(refusal(&bytes).contains("the operator ai.onnx.ml.Relu"), "{}", refusal(&bytes));
        let plain = node("x", "y", "Relu", &[]);
        let bytes = model(&[&plain, &value(11, "x", &dims), &value(12, "y", &dims)]);
        assert_eq!(refusal(&bytes), "it is served");
        let bytes = [bytes, field(25, &[b""])].concat();
        assert!(refusal(&bytes).contains("functions"), "{}", refusal(&bytes));
    }
}
