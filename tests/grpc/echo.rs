//! A kind of model that answers its inputs, one of each datatype: for tests only.

use hotserve_models::{DataType, Dim, InferError, LoadError, Loader, Loaders, Model, Signature, Tensor, TensorSpec};

pub const FORMAT: &str = "echo";
/// Each input, and its output of the same name.
pub const TENSORS: [(&str, DataType); 6] = [
    ("bool", DataType::Bool),
    ("int32", DataType::Int32),
    ("int64", DataType::Int64),
    ("fp32", DataType::Fp32),
    ("fp64", DataType::Fp64),
    ("text", DataType::Bytes),
];

pub fn loaders() -> Loaders {
    let mut loaders = Loaders::bundled();
    loaders.register(Echo);
    loaders
}

/// Loads anything.
struct Echo;

impl Loader for Echo {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, _: &[u8]) -> bool {
        false
    }

    fn load(&self, _: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        let spec = |(name, datatype): &(&str, DataType)| TensorSpec {
            name: (*name).to_owned(),
            datatype: *datatype,
            shape: vec![Dim::Any, Dim::Fixed(2)],
            features: vec![],
        };
        let specs: Vec<_> = TENSORS.iter().map(spec).collect();
        Ok(Box::new(Echoes(Signature { inputs: specs.clone(), outputs: specs })))
    }
}

struct Echoes(Signature);

impl Model for Echoes {
    fn signature(&self) -> &Signature {
        &self.0
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        self.0.check_inputs(inputs)?;
        Ok(inputs.to_vec())
    }

    fn memory_bytes(&self) -> usize {
        1024
    }

    fn engine(&self) -> &'static str {
        FORMAT
    }
}
