//! Any bytes are a model of the format that the program is called after, or an error; loading takes no more memory than
//! the bytes justify, and what is loaded answers.
#![no_main]

use hotserve_models::{Data, DataType, Dim, Loaders, Signature, Tensor};
use libfuzzer_sys::fuzz_target;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// A byte of a file may become so many in memory: `[1,1,…` is the densest text, and a node has some 60 bytes on its way.
const TIMES: usize = 40;
/// Names of features that a short file implies, and what an error says.
const BESIDES: usize = 4 << 20;
/// Wider rows take the fuzzer's time and find nothing.
const WIDEST: usize = 1 << 12;

fuzz_target!(|data: &[u8]| {
    let loaders = Loaders::bundled();
    let loader = loaders.get(env!("CARGO_BIN_NAME")).expect("the format is bundled");
    let _ = loader.recognizes(data);
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let loaded = loader.load(data);
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(taken <= TIMES * data.len() + BESIDES, "{taken} bytes for a file of {}", data.len());
    let Ok(model) = loaded else { return };
    let signature = model.signature();
    if signature.inputs.iter().chain(&signature.outputs).any(|spec| spec.row_len().unwrap_or(1) > WIDEST) {
        return;
    }
    for (rows, number) in [(1, 0.0), (3, f64::NAN), (2, f64::INFINITY), (1, -1.5)] {
        if let Ok(outputs) = model.infer(&filled(signature, rows, number)) {
            assert_eq!(signature.check_outputs(&outputs).ok(), Some(rows), "the answer does not fit the signature");
        }
    }
});

fn filled(signature: &Signature, rows: usize, number: f64) -> Vec<Tensor> {
    let fill = |spec: &hotserve_models::TensorSpec| {
        let length = |dim: &Dim| if let Dim::Fixed(length) = dim { *length } else { 1 };
        let shape: Vec<usize> = std::iter::once(rows).chain(spec.shape.iter().skip(1).map(length)).collect();
        let len = shape.iter().product();
        let data = match spec.datatype {
            DataType::Bool => Data::Bool(vec![number > 0.0; len]),
            DataType::Int32 => Data::Int32(vec![number as i32; len]),
            DataType::Int64 => Data::Int64(vec![number as i64; len]),
            DataType::Fp32 => Data::Fp32(vec![number as f32; len]),
            DataType::Fp64 => Data::Fp64(vec![number; len]),
            DataType::Bytes => Data::Bytes(vec![number.to_string(); len]),
        };
        Tensor::new(shape, data).expect("the buffer was made for the shape")
    };
    signature.inputs.iter().map(fill).collect()
}
