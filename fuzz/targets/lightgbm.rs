//! Any bytes are a LightGBM model or an error, and a model answers any row.
#![no_main]

use hotserve_models::{Data, LightgbmLoader, Loader, Tensor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(model) = LightgbmLoader.load(data) else { return };
    assert!(model.memory_bytes() <= data.len() * 64 + (1 << 20));
    let width = model.signature().inputs[0].features.len();
    let values = [0.0, 1.0, -0.5, 2.5, 33.0, 1e-35, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 3e9];
    let rows: Vec<f64> = (0..3 * width).map(|at| values[at % values.len()]).collect();
    let input = Tensor::new(vec![3, width], Data::Fp64(rows)).expect("the rows are full");
    let outputs = model.infer(&[input]).expect("the rows fit");
    assert_eq!(model.signature().check_outputs(&outputs).expect("the answer fits"), 3);
});
