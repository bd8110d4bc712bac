//! What flows between the operators: a shape and a buffer that is borrowed where it can be.

use std::borrow::Cow;
use std::ops::Deref;

/// More axes than a classical model has.
const MAX_RANK: usize = 6;

/// Why an operator was not built, or did not answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The operator's specification allows it, and it is not served.
    Unsupported(String),
    /// The graph contradicts itself or the specification.
    Malformed(String),
    /// The caller's values do not suit the graph.
    Input(String),
}

pub(super) fn unsupported(feature: impl Into<String>) -> Fault {
    Fault::Unsupported(feature.into())
}

pub(super) fn malformed(detail: impl Into<String>) -> Fault {
    Fault::Malformed(detail.into())
}

impl Fault {
    /// Says where it happened.
    pub(super) fn at(self, place: &str) -> Self {
        match self {
            Self::Unsupported(text) => Self::Unsupported(format!("{text}, in {place}")),
            Self::Malformed(text) => Self::Malformed(format!("{place}: {text}")),
            Self::Input(text) => Self::Input(format!("{place}: {text}")),
        }
    }
}

/// The length of each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    pub(super) fn new(dims: &[usize]) -> Result<Self, Fault> {
        // Also the axes beside one of no length, along which operators go.
        if dims.iter().try_fold(1_usize, |product, dim| product.checked_mul((*dim).max(1))).is_none() {
            return Err(malformed(format!("the shape {dims:?} is too large")));
        }
        let mut shape = Self { rank: dims.len() as u8, dims: [0; MAX_RANK] };
        match shape.dims.get_mut(..dims.len()) {
            Some(own) => own.copy_from_slice(dims),
            None => return Err(unsupported(format!("tensors of {} axes", dims.len()))),
        }
        Ok(shape)
    }

    /// As [`new`](Self::new), for at most so large an [`extent`](Self::extent).
    pub(super) fn within(dims: &[usize], limit: usize) -> Result<Self, Fault> {
        let shape = Self::new(dims)?;
        if shape.len() == 0 && shape.extent() > limit {
            // No other engine is to try it either.
            return Err(malformed(format!("a tensor of no elements of shape {dims:?}")));
        }
        if shape.extent() > limit {
            return Err(unsupported(format!("an intermediate tensor of shape {dims:?}")));
        }
        Ok(shape)
    }

    pub(super) fn dims(&self) -> &[usize] {
        self.dims.get(..usize::from(self.rank)).unwrap_or_default()
    }

    pub(super) fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    pub(super) fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// The elements, or those that there would be if axes of no length had one: no work on the tensor is for more.
    pub(super) fn extent(&self) -> usize {
        self.dims().iter().map(|dim| (*dim).max(1)).product()
    }

    /// An axis that may be counted from the end.
    pub(super) fn axis(&self, axis: i64) -> Result<usize, Fault> {
        let rank = self.rank();
        let at = if axis < 0 { axis + i64::from(self.rank) } else { axis };
        let at = usize::try_from(at).ok().filter(|at| *at < rank);
        at.ok_or_else(|| malformed(format!("there is no axis {axis} in the shape {:?}", self.dims())))
    }

    /// The elements before an axis, on it, and after it.
    pub(super) fn around(&self, axis: usize) -> (usize, usize, usize) {
        let dims = self.dims();
        let product = |dims: Option<&[usize]>| dims.unwrap_or_default().iter().product();
        (product(dims.get(..axis)), dims.get(axis).copied().unwrap_or(1), product(dims.get(axis + 1..)))
    }

    /// Rows and columns, as ai.onnx.ml has them: a list is one row.
    pub(super) fn matrix(&self) -> Result<(usize, usize), Fault> {
        match self.dims() {
            [columns] => Ok((1, *columns)),
            [rows, columns] => Ok((*rows, *columns)),
            other => Err(malformed(format!("a matrix is expected, and its shape is {other:?}"))),
        }
    }
}

/// A list that is borrowed or owned; unlike [`Cow`] it lives as short as one likes.
#[derive(Debug, Clone)]
pub(super) enum Slice<'a, T> {
    Borrowed(&'a [T]),
    Owned(Vec<T>),
}

impl<T> Deref for Slice<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Borrowed(slice) => slice,
            Self::Owned(vec) => vec,
        }
    }
}

impl<T: Clone> Slice<'_, T> {
    pub(super) fn into_vec(self) -> Vec<T> {
        match self {
            Self::Borrowed(slice) => slice.to_vec(),
            Self::Owned(vec) => vec,
        }
    }
}

pub(super) type Text<'a> = Cow<'a, str>;

/// The elements of a tensor, flat and row-major.
#[derive(Debug, Clone)]
pub(super) enum Buf<'a> {
    Bool(Slice<'a, bool>),
    I32(Slice<'a, i32>),
    I64(Slice<'a, i64>),
    F32(Slice<'a, f32>),
    F64(Slice<'a, f64>),
    Text(Slice<'a, Text<'a>>),
}

/// Does the same with the elements, whatever their type.
macro_rules! each {
    ($buf:expr, $elements:ident => $do:expr) => {
        match $buf {
            Buf::Bool($elements) => Buf::Bool($do),
            Buf::I32($elements) => Buf::I32($do),
            Buf::I64($elements) => Buf::I64($do),
            Buf::F32($elements) => Buf::F32($do),
            Buf::F64($elements) => Buf::F64($do),
            Buf::Text($elements) => Buf::Text($do),
        }
    };
}
pub(super) use each;

impl<'a> Buf<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Text(v) => v.len(),
        }
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::I32(_) => "int32",
            Self::I64(_) => "int64",
            Self::F32(_) => "float",
            Self::F64(_) => "double",
            Self::Text(_) => "string",
        }
    }

    pub(super) fn borrow<'b>(&'b self) -> Buf<'b>
    where
        'a: 'b,
    {
        each!(self, v => Slice::Borrowed(v))
    }

    fn into_static(self) -> Buf<'static> {
        match self {
            Self::Bool(v) => Buf::Bool(Slice::Owned(v.into_vec())),
            Self::I32(v) => Buf::I32(Slice::Owned(v.into_vec())),
            Self::I64(v) => Buf::I64(Slice::Owned(v.into_vec())),
            Self::F32(v) => Buf::F32(Slice::Owned(v.into_vec())),
            Self::F64(v) => Buf::F64(Slice::Owned(v.into_vec())),
            Self::Text(v) => {
                Buf::Text(Slice::Owned(v.iter().map(|text| Cow::Owned(text.clone().into_owned())).collect()))
            }
        }
    }

    /// Numbers of any type as FP32: what most operators of ai.onnx.ml turn their input into.
    pub(super) fn to_f32(&self) -> Result<Cow<'_, [f32]>, Fault> {
        Ok(match self {
            Self::F32(v) => Cow::Borrowed(&**v),
            Self::F64(v) => v.iter().map(|x| *x as f32).collect(),
            Self::I64(v) => v.iter().map(|x| *x as f32).collect(),
            Self::I32(v) => v.iter().map(|x| *x as f32).collect(),
            Self::Bool(_) | Self::Text(_) => {
                return Err(malformed(format!("numbers are expected, not {}", self.type_name())));
            }
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::I32(v) => 4 * v.len(),
            Self::I64(v) => 8 * v.len(),
            Self::F32(v) => 4 * v.len(),
            Self::F64(v) => 8 * v.len(),
            Self::Text(v) => v.iter().map(|text| size_of::<Text<'_>>() + text.len()).sum(),
        }
    }
}

/// A tensor between two operators.
#[derive(Debug, Clone)]
pub(super) struct Value<'a> {
    pub(super) shape: Shape,
    pub(super) buf: Buf<'a>,
}

impl<'a> Value<'a> {
    pub(super) fn f32(shape: Shape, elements: Vec<f32>) -> Self {
        Self { shape, buf: Buf::F32(Slice::Owned(elements)) }
    }

    pub(super) fn borrow<'b>(&'b self) -> Value<'b>
    where
        'a: 'b,
    {
        Value { shape: self.shape, buf: self.buf.borrow() }
    }

    pub(super) fn into_static(self) -> Value<'static> {
        Value { shape: self.shape, buf: self.buf.into_static() }
    }
}
