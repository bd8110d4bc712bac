//! Any bytes are an inference by the Open Inference Protocol or an error: JSON, tensors behind it, or one tensor alone.
//! The first byte chooses the model, two more say where the JSON ends.
#![no_main]

use std::sync::LazyLock;

use hotserve_fuzz::http::v2::request::parse;
use hotserve_fuzz::http::v2::wire::{from_raw, to_raw};
use hotserve_fuzz::serving::layout::Layout;
use hotserve_models::{DataType, Dim, Signature, TensorSpec};
use libfuzzer_sys::fuzz_target;

static SIGNATURES: LazyLock<Vec<(Signature, Layout)>> = LazyLock::new(|| {
    let spec = |name: &str, datatype, shape: &[Dim]| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.to_vec(),
        features: Vec::new(),
    };
    let sole = |datatype, shape: &[Dim]| vec![spec("x", datatype, shape)];
    let rows = [Dim::Any, Dim::Fixed(3)];
    let several = vec![
        spec("x", DataType::Bool, &[Dim::Any]),
        spec("y", DataType::Int32, &[Dim::Any, Dim::Any]),
        spec("z", DataType::Bytes, &[Dim::Any, Dim::Fixed(1)]),
    ];
    let inputs = [
        sole(DataType::Fp32, &rows),
        sole(DataType::Fp64, &[Dim::Any, Dim::Any]),
        sole(DataType::Int64, &rows),
        sole(DataType::Bytes, &[Dim::Any]),
        several,
    ];
    let outputs = || vec![spec("a", DataType::Fp32, &[Dim::Any]), spec("b", DataType::Bytes, &[Dim::Any])];
    let signatures = inputs.into_iter().map(|inputs| Signature { inputs, outputs: outputs() });
    let with_layout = |signature: Signature| {
        let layout = Layout::of(&signature);
        (signature, layout)
    };
    signatures.map(with_layout).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some(([which, low, high], body)) = data.split_first_chunk() else { return };
    let (signature, layout) = &SIGNATURES[usize::from(*which) % SIGNATURES.len()];
    let header = match u16::from_le_bytes([*low, *high]) {
        u16::MAX => None,
        length => Some(length.to_string()),
    };
    let Ok(request) = parse(body, header.as_deref(), signature, layout) else { return };
    assert_eq!(signature.check_inputs(&request.tensors).expect("they were checked"), request.rows);
    assert!(request.rows <= body.len().max(1), "an answer has as many");
    assert!(request.outputs.iter().all(|output| output.index < signature.outputs.len()));
    for (tensor, spec) in request.tensors.iter().zip(&signature.inputs) {
        let bytes = to_raw(tensor);
        let datatype = tensor.datatype().as_str().parse().expect("the model's are among them");
        let again = from_raw(datatype, tensor.shape(), &bytes, spec).expect("what is written can be read");
        assert_eq!(to_raw(&again), bytes);
    }
});
