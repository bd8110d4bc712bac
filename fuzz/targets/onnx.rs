//! Any bytes are an ONNX model or an error, and a model answers what it is asked or says why not.
#![no_main]

use hotserve_models::{Data, DataType, Dim, Loader, OnnxLoader, Tensor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    OnnxLoader.recognizes(data);
    let Ok(model) = OnnxLoader.load(data) else { return };
    assert!(model.memory_bytes() <= 64 * data.len() + (1 << 20));
    let inputs = model.signature().inputs.iter().map(|spec| {
        let width = spec.row_len().unwrap_or(1);
        let data = match spec.datatype {
            DataType::Bool => Data::Bool(vec![true; width]),
            DataType::Int32 => Data::Int32(vec![-1; width]),
            DataType::Int64 => Data::Int64(vec![2; width]),
            DataType::Fp32 => Data::Fp32(vec![f32::NAN; width]),
            DataType::Fp64 => Data::Fp64(vec![f64::NEG_INFINITY; width]),
            DataType::Bytes => Data::Bytes(vec!["a".to_owned(); width]),
        };
        let length = |dim: &Dim| if let Dim::Fixed(length) = dim { *length } else { 1 };
        Tensor::new(spec.shape.iter().map(length).collect(), data).expect("a row is as wide as its shape")
    });
    let inputs: Vec<_> = inputs.collect();
    if let Ok(outputs) = model.infer(&inputs) {
        model.signature().check_outputs(&outputs).expect("the answer is what the signature says");
    }
});
