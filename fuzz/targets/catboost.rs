//! Any bytes are a CatBoost model or an error, and a model answers any row.
#![no_main]

use hotserve_models::{CatboostLoader, Data, Loader, Tensor};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(model) = CatboostLoader.load(data) else { return };
    assert!(model.memory_bytes() <= data.len() * 64 + (1 << 20));
    let width = model.signature().inputs[0].features.len();
    let values = [0.0, 1.0, -0.5, 2.5, 33.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX];
    for rows in [3, 66] {
        let cells: Vec<f32> = (0..rows * width).map(|at| values[at % values.len()]).collect();
        let input = Tensor::new(vec![rows, width], Data::Fp32(cells)).expect("the rows are full");
        let outputs = model.infer(&[input]).expect("the rows fit");
        assert_eq!(model.signature().check_outputs(&outputs).expect("the answer fits"), rows);
    }
});
