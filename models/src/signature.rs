//! What a model takes and gives.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{DataType, InferError, Tensor};

/// The length of one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Any length; -1 on the wire. The first axis of every tensor is this: the row.
    Any,
    /// Just this length.
    Fixed(usize),
}

impl Serialize for Dim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_i64(-1),
            Self::Fixed(length) => serializer.serialize_u64(*length as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match i64::deserialize(deserializer)? {
            -1 => Ok(Self::Any),
            length => usize::try_from(length)
                .map(Self::Fixed)
                .map_err(|_| serde::de::Error::custom("an axis is -1 (any length) or its length")),
        }
    }
}

/// One input or output: its name, datatype and shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The name by which requests and answers call it.
    pub name: String,
    /// The element type.
    pub datatype: DataType,
    /// The axes; the first is [`Dim::Any`], the row.
    pub shape: Vec<Dim>,
    /// Names of the columns of a two-dimensional tensor, if they have any: rows may then come as objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

impl TensorSpec {
    /// How many elements a row has, where the shape fixes it.
    pub fn row_len(&self) -> Option<usize> {
        self.shape.iter().skip(1).try_fold(1_usize, |product, dim| match dim {
            Dim::Fixed(length) => product.checked_mul(*length),
            Dim::Any => None,
        })
    }

    fn accepts(&self, shape: &[usize]) -> bool {
        self.shape.len() == shape.len()
            && self.shape.iter().zip(shape).all(|(dim, length)| match dim {
                Dim::Any => true,
                Dim::Fixed(fixed) => fixed == length,
            })
    }
}

/// The inputs and outputs of a model, in the order in which tensors are passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// What goes in.
    pub inputs: Vec<TensorSpec>,
    /// What comes out.
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// Checks that tensors fit the inputs, and answers their common number of rows.
    pub fn check_inputs(&self, inputs: &[Tensor]) -> Result<usize, InferError> {
        check("input", &self.inputs, inputs)
    }

    /// Checks that tensors fit the outputs, and answers their common number of rows.
    pub fn check_outputs(&self, outputs: &[Tensor]) -> Result<usize, InferError> {
        check("output", &self.outputs, outputs)
    }

    /// Bytes of memory that the signature holds: wide models have many names.
    pub fn memory_bytes(&self) -> usize {
        let specs = self.inputs.iter().chain(&self.outputs);
        specs
            .map(|spec| {
                let features = spec.features.iter().map(|name| size_of::<String>() + name.capacity());
                size_of::<TensorSpec>()
                    + spec.name.capacity()
                    + size_of_val(spec.shape.as_slice())
                    + features.sum::<usize>()
            })
            .sum()
    }
}

fn check(what: &str, specs: &[TensorSpec], tensors: &[Tensor]) -> Result<usize, InferError> {
    if specs.len() != tensors.len() {
        return Err(InferError::BadInput(format!("the model has {} {what}s, not {}", specs.len(), tensors.len())));
    }
    let mut rows = None;
    for (spec, tensor) in specs.iter().zip(tensors) {
        let name = &spec.name;
        if tensor.datatype() != spec.datatype {
            return Err(InferError::BadInput(format!(
                "{what} {name:?} is {}, not {}",
                spec.datatype,
                tensor.datatype()
            )));
        }
        if !spec.accepts(tensor.shape()) {
            let shape = serde_json::to_string(&spec.shape).unwrap_or_default();
            return Err(InferError::BadInput(format!(
                "{what} {name:?} has shape {shape}, not {:?} (-1 is any length)",
                tensor.shape()
            )));
        }
        if *rows.get_or_insert(tensor.rows()) != tensor.rows() {
            return Err(InferError::BadInput(format!(
                "{what} {name:?} has another number of rows than the one before"
            )));
        }
    }
    Ok(rows.unwrap_or(0))
}
