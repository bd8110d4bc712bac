//! Tensors: a shape and a flat, row-major buffer of one datatype.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The element type of a tensor, named as the Open Inference Protocol names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DataType {
    /// `bool`
    Bool,
    /// `i32`
    Int32,
    /// `i64`
    Int64,
    /// `f32`
    Fp32,
    /// `f64`
    Fp64,
    /// Text. The protocol calls it BYTES; here it is UTF-8.
    Bytes,
}

impl DataType {
    /// The protocol's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DataType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Bool, Self::Int32, Self::Int64, Self::Fp32, Self::Fp64, Self::Bytes]
            .into_iter()
            .find(|datatype| datatype.as_str() == s)
            .ok_or_else(|| format!("{s:?} is no datatype: BOOL, INT32, INT64, FP32, FP64 and BYTES are"))
    }
}

/// The elements of a tensor, flat and row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// BOOL
    Bool(Vec<bool>),
    /// INT32
    Int32(Vec<i32>),
    /// INT64
    Int64(Vec<i64>),
    /// FP32
    Fp32(Vec<f32>),
    /// FP64
    Fp64(Vec<f64>),
    /// BYTES, as text
    Bytes(Vec<String>),
}

impl Data {
    /// An empty buffer of a datatype.
    pub fn with_capacity(datatype: DataType, capacity: usize) -> Self {
        match datatype {
            DataType::Bool => Self::Bool(Vec::with_capacity(capacity)),
            DataType::Int32 => Self::Int32(Vec::with_capacity(capacity)),
            DataType::Int64 => Self::Int64(Vec::with_capacity(capacity)),
            DataType::Fp32 => Self::Fp32(Vec::with_capacity(capacity)),
            DataType::Fp64 => Self::Fp64(Vec::with_capacity(capacity)),
            DataType::Bytes => Self::Bytes(Vec::with_capacity(capacity)),
        }
    }

    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::Int32(v) => v.len(),
            Self::Int64(v) => v.len(),
            Self::Fp32(v) => v.len(),
            Self::Fp64(v) => v.len(),
            Self::Bytes(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first element that is NaN or an infinity, and where it is.
    pub fn first_non_finite(&self) -> Option<(usize, f64)> {
        match self {
            Self::Fp32(v) => v.iter().position(|x| !x.is_finite()).and_then(|at| Some((at, f64::from(*v.get(at)?)))),
            Self::Fp64(v) => v.iter().position(|x| !x.is_finite()).and_then(|at| Some((at, *v.get(at)?))),
            _ => None,
        }
    }

    /// The element type.
    pub fn datatype(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Bool,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
        }
    }
}

/// A tensor. Its shape always multiplies up to its number of elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// A shape that does not multiply up to the number of elements.
#[derive(Debug, thiserror::Error)]
#[error("shape {shape:?} does not hold {elements} elements")]
pub struct ShapeError {
    /// The shape that was claimed.
    pub shape: Vec<usize>,
    /// The number of elements that came.
    pub elements: usize,
}

impl Tensor {
    /// Pairs a shape with its elements.
    pub fn new(shape: Vec<usize>, data: Data) -> Result<Self, ShapeError> {
        let elements = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim));
        if elements == Some(data.len()) {
            Ok(Self { shape, data })
        } else {
            Err(ShapeError { shape, elements: data.len() })
        }
    }

    /// The length of each axis; the first is the row.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Its shape and its elements.
    pub fn into_parts(self) -> (Vec<usize>, Data) {
        (self.shape, self.data)
    }

    /// The element type.
    pub fn datatype(&self) -> DataType {
        self.data.datatype()
    }

    /// The length of the first axis; 0 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// The elements as `f32`, if that is what they are.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Fp32(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as `f64`, if that is what they are.
    pub fn as_f64(&self) -> Option<&[f64]> {
        match &self.data {
            Data::Fp64(v) => Some(v),
            _ => None,
        }
    }
}
