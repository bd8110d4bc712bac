//! The datatypes of the protocol, and what becomes of them: a request in another numeric datatype than the model's is
//! converted where each value is kept, and refused by element where one is not. Answers are in the model's own.

use std::fmt::{self, Display};
use std::str::FromStr;

use hotserve_models::{Data, DataType, Dim, Tensor, TensorSpec};

/// How much of a client's text an error repeats.
const SHOWN: usize = 64;

/// An element type on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl WireType {
    const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Bytes of an element; none where each has its own length.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }

    /// Whether elements are floats.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Fp16 | Self::Bf16 | Self::Fp32 | Self::Fp64)
    }

    /// Whether a whole number is in its range.
    pub fn holds(self, value: i128) -> bool {
        let within = |least: i128, most: i128| (least..=most).contains(&value);
        match self {
            Self::Uint8 => within(0, u8::MAX.into()),
            Self::Uint16 => within(0, u16::MAX.into()),
            Self::Uint32 => within(0, u32::MAX.into()),
            Self::Uint64 => within(0, u64::MAX.into()),
            Self::Int8 => within(i8::MIN.into(), i8::MAX.into()),
            Self::Int16 => within(i16::MIN.into(), i16::MAX.into()),
            Self::Int32 => within(i32::MIN.into(), i32::MAX.into()),
            Self::Int64 => within(i64::MIN.into(), i64::MAX.into()),
            Self::Bool | Self::Fp16 | Self::Bf16 | Self::Fp32 | Self::Fp64 | Self::Bytes => false,
        }
    }

    /// Whether tensors of it can be given where the model takes this; whether each of their values can shows later.
    pub fn fits(self, spec: &TensorSpec) -> Result<(), String> {
        let fits = match spec.datatype {
            DataType::Bool => self == Self::Bool,
            DataType::Bytes => self == Self::Bytes,
            DataType::Int32 | DataType::Int64 | DataType::Fp32 | DataType::Fp64 => {
                !matches!(self, Self::Bool | Self::Bytes)
            }
        };
        if fits { Ok(()) } else { Err(format!("input {:?} takes {}, not {self}", spec.name, spec.datatype)) }
    }
}

impl Display for WireType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for WireType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|datatype| datatype.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|datatype| datatype.as_str()).collect();
            format!("{} is no datatype; there are {}", shown(text), known.join(", "))
        })
    }
}

/// A client's text, quoted, and not all of a long one.
pub fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

/// How many elements a shape has, which must be one that the model takes. Rows without elements are refused: their
/// number would be whatever somebody writes, and an answer has as many.
pub fn elements(shape: &[usize], spec: &TensorSpec) -> Result<usize, String> {
    let name = &spec.name;
    if shape.len() != spec.shape.len() {
        let (takes, given) = (spec.shape.len(), shape.len());
        return Err(format!("input {name:?} has {} ({}), not {given}", axes(takes), pattern(spec)));
    }
    let fits = |(dim, length): (&Dim, &usize)| matches!(dim, Dim::Any) || *dim == Dim::Fixed(*length);
    if !spec.shape.iter().zip(shape).all(fits) {
        return Err(format!("input {name:?} has shape {}, not {shape:?} (-1 is any length)", pattern(spec)));
    }
    let product = shape.iter().try_fold(1_usize, |product, length| product.checked_mul(*length));
    match product.ok_or_else(|| format!("input {name:?}: shape {shape:?} has more elements than can be counted"))? {
        0 if shape.first() != Some(&0) => Err(format!("input {name:?}: shape {shape:?} has rows without elements")),
        elements => Ok(elements),
    }
}

fn axes(count: usize) -> String {
    if count == 1 { "1 axis".to_owned() } else { format!("{count} axes") }
}

/// A shape as metadata have it.
fn pattern(spec: &TensorSpec) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Any => "-1".to_owned(),
        Dim::Fixed(length) => length.to_string(),
    };
    format!("[{}]", spec.shape.iter().map(dim).collect::<Vec<_>>().join(", "))
}

/// A tensor from its little-endian, row-major bytes: a BOOL is one byte, 0 or 1; each element of BYTES is UTF-8 behind
/// its length, a `u32`. An error says which input and which element.
pub fn from_raw(datatype: WireType, shape: &[usize], bytes: &[u8], spec: &TensorSpec) -> Result<Tensor, String> {
    datatype.fits(spec)?;
    let (count, name) = (elements(shape, spec)?, &spec.name);
    if let Some(size) = datatype.size()
        && count.checked_mul(size) != Some(bytes.len())
    {
        let expected = count.checked_mul(size).map_or("more than can be counted".to_owned(), |size| size.to_string());
        let given = bytes.len();
        return Err(format!("input {name:?}: {datatype} of shape {shape:?} takes {expected} bytes, not {given}"));
    }
    let data = match (datatype, spec.datatype) {
        (WireType::Bool, _) => Data::Bool(booleans(bytes, name)?),
        (WireType::Bytes, _) => Data::Bytes(texts(bytes, count, name)?),
        // The usual ones, which need no look at each value.
        (WireType::Fp32, DataType::Fp32) => Data::Fp32(read(bytes, f32::from_le_bytes).collect()),
        (WireType::Fp64, DataType::Fp64) => Data::Fp64(read(bytes, f64::from_le_bytes).collect()),
        (WireType::Int32, DataType::Int32) => Data::Int32(read(bytes, i32::from_le_bytes).collect()),
        (WireType::Int64, DataType::Int64) => Data::Int64(read(bytes, i64::from_le_bytes).collect()),
        (WireType::Uint8, _) => convert(read(bytes, u8::from_le_bytes), spec)?,
        (WireType::Uint16, _) => convert(read(bytes, u16::from_le_bytes), spec)?,
        (WireType::Uint32, _) => convert(read(bytes, u32::from_le_bytes), spec)?,
        (WireType::Uint64, _) => convert(read(bytes, u64::from_le_bytes), spec)?,
        (WireType::Int8, _) => convert(read(bytes, i8::from_le_bytes), spec)?,
        (WireType::Int16, _) => convert(read(bytes, i16::from_le_bytes), spec)?,
        (WireType::Int32, _) => convert(read(bytes, i32::from_le_bytes), spec)?,
        (WireType::Int64, _) => convert(read(bytes, i64::from_le_bytes), spec)?,
        (WireType::Fp16, _) => convert(read(bytes, |half| from_half(u16::from_le_bytes(half))), spec)?,
        (WireType::Bf16, _) => convert(read(bytes, |half| from_brain(u16::from_le_bytes(half))), spec)?,
        (WireType::Fp32, _) => convert(read(bytes, f32::from_le_bytes), spec)?,
        (WireType::Fp64, _) => convert(read(bytes, f64::from_le_bytes), spec)?,
    };
    Tensor::new(shape.to_vec(), data).map_err(|error| format!("input {name:?}: {error}"))
}

/// Elements as a message has them, wider than their datatype.
#[derive(Debug)]
pub enum Elements {
    Bool(Vec<bool>),
    /// INT8, INT16 and INT32.
    Int(Vec<i32>),
    Int64(Vec<i64>),
    /// UINT8, UINT16 and UINT32.
    Uint(Vec<u32>),
    Uint64(Vec<u64>),
    Fp32(Vec<f32>),
    Fp64(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

impl Elements {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Int(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Uint(values) => values.len(),
            Self::Uint64(values) => values.len(),
            Self::Fp32(values) => values.len(),
            Self::Fp64(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }
}

/// A tensor from typed elements. FP16 and BF16 have none: they only come as bytes.
pub fn from_elements(
    datatype: WireType,
    shape: &[usize],
    values: Elements,
    spec: &TensorSpec,
) -> Result<Tensor, String> {
    datatype.fits(spec)?;
    let (count, name) = (elements(shape, spec)?, &spec.name);
    if values.len() != count {
        let given = values.len();
        return Err(format!("input {name:?}: shape {shape:?} takes {count} elements, not {given}"));
    }
    let ranged = |values: &mut dyn Iterator<Item = i128>| match values.enumerate().find(|(_, v)| !datatype.holds(*v)) {
        Some((index, value)) => Err(misfit(name, index, datatype.as_str(), value)),
        None => Ok(()),
    };
    let data = match (datatype, values) {
        (WireType::Bool, Elements::Bool(values)) => Data::Bool(values),
        (WireType::Int8 | WireType::Int16 | WireType::Int32, Elements::Int(values)) => {
            ranged(&mut values.iter().map(|value| i128::from(*value)))?;
            convert(values.into_iter(), spec)?
        }
        (WireType::Uint8 | WireType::Uint16 | WireType::Uint32, Elements::Uint(values)) => {
            ranged(&mut values.iter().map(|value| i128::from(*value)))?;
            convert(values.into_iter(), spec)?
        }
        (WireType::Int64, Elements::Int64(values)) => convert(values.into_iter(), spec)?,
        (WireType::Uint64, Elements::Uint64(values)) => convert(values.into_iter(), spec)?,
        (WireType::Fp32, Elements::Fp32(values)) => convert(values.into_iter(), spec)?,
        (WireType::Fp64, Elements::Fp64(values)) => convert(values.into_iter(), spec)?,
        (WireType::Bytes, Elements::Bytes(values)) => {
            let texts = values.into_iter().enumerate();
            let texts = texts.map(|(index, bytes)| String::from_utf8(bytes).map_err(|_| no_text(name, index)));
            Data::Bytes(texts.collect::<Result<_, _>>()?)
        }
        _ => return Err(format!("input {name:?}: the elements are not where those of {datatype} belong")),
    };
    Tensor::new(shape.to_vec(), data).map_err(|error| format!("input {name:?}: {error}"))
}

/// The bytes of a tensor, as [`from_raw`] takes them, in the tensor's own datatype.
pub fn to_raw(tensor: &Tensor) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw_len(tensor));
    write_raw(tensor, &mut out);
    out
}

/// How many bytes [`to_raw`] gives.
pub fn raw_len(tensor: &Tensor) -> usize {
    match tensor.data() {
        Data::Bool(values) => values.len(),
        Data::Int32(values) => values.len() * 4,
        Data::Fp32(values) => values.len() * 4,
        Data::Int64(values) => values.len() * 8,
        Data::Fp64(values) => values.len() * 8,
        Data::Bytes(values) => values.iter().map(|text| 4 + text.len()).sum(),
    }
}

/// Appends what [`to_raw`] gives.
pub fn write_raw(tensor: &Tensor, out: &mut Vec<u8>) {
    match tensor.data() {
        Data::Bool(values) => out.extend(values.iter().map(|value| u8::from(*value))),
        Data::Int32(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Data::Int64(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Data::Fp32(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Data::Fp64(values) => values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
        Data::Bytes(values) => {
            for text in values {
                // A model's text of 4 GiB does not fit into memory beside everything else.
                out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

fn read<const N: usize, S>(bytes: &[u8], from: impl Fn([u8; N]) -> S) -> impl Iterator<Item = S> {
    bytes.as_chunks::<N>().0.iter().map(move |chunk| from(*chunk))
}

fn booleans(bytes: &[u8], name: &str) -> Result<Vec<bool>, String> {
    let boolean = |(index, byte): (usize, &u8)| match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(misfit(name, index, "a BOOL, 0 or 1", other)),
    };
    bytes.iter().enumerate().map(boolean).collect()
}

fn texts(mut bytes: &[u8], count: usize, name: &str) -> Result<Vec<String>, String> {
    // Each takes four bytes at least: no claim makes the buffer much larger than what came.
    let mut texts = Vec::with_capacity(count.min(bytes.len() / 4));
    for index in 0..count {
        let cut = |what: &str| format!("input {name:?}: the bytes end within {what} of element {index} of {count}");
        let (length, rest) = bytes.split_first_chunk().ok_or_else(|| cut("the length"))?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok();
        let (text, rest) = length.and_then(|length| rest.split_at_checked(length)).ok_or_else(|| cut("the text"))?;
        texts.push(str::from_utf8(text).map_err(|_| no_text(name, index))?.to_owned());
        bytes = rest;
    }
    match bytes.len() {
        0 => Ok(texts),
        more => Err(format!("input {name:?}: {more} bytes are left behind the last of {count} elements")),
    }
}

fn no_text(name: &str, index: usize) -> String {
    format!("input {name:?}: element {index}: expected text in UTF-8, got other bytes")
}

/// That a value cannot be kept.
pub fn misfit(name: &str, index: usize, expected: &str, got: impl Display) -> String {
    format!("input {name:?}: element {index}: expected {expected}, got {got}")
}

/// Numbers to the model's datatype, each kept.
fn convert<S: Number>(values: impl Iterator<Item = S>, spec: &TensorSpec) -> Result<Data, String> {
    fn all<S: Number, T: Target>(values: impl Iterator<Item = S>, spec: &TensorSpec) -> Result<Vec<T>, String> {
        let kept = |(index, value): (usize, S)| {
            value.to::<T>().ok_or_else(|| misfit(&spec.name, index, &kept_by(spec.datatype), value))
        };
        values.enumerate().map(kept).collect()
    }
    match spec.datatype {
        DataType::Int32 => all(values, spec).map(Data::Int32),
        DataType::Int64 => all(values, spec).map(Data::Int64),
        DataType::Fp32 => all(values, spec).map(Data::Fp32),
        DataType::Fp64 => all(values, spec).map(Data::Fp64),
        // `fits` came before.
        other @ (DataType::Bool | DataType::Bytes) => {
            Err(format!("input {:?} takes {other}, and got numbers", spec.name))
        }
    }
}

/// What a datatype takes without a loss, for a person.
pub fn kept_by(datatype: DataType) -> String {
    match datatype {
        DataType::Int32 | DataType::Int64 => format!("a whole number that {datatype} can hold"),
        _ => format!("a number that {datatype} can hold"),
    }
}

/// A number as it comes.
trait Number: Copy + Display {
    /// As the model takes it, if it is the same number there.
    fn to<T: Target>(self) -> Option<T>;
}

/// A number as the model takes it.
pub trait Target: Copy {
    /// If it is just this number.
    fn of_whole(value: i128) -> Option<Self>;
    /// If it is this number: rounded where it is a float too, and never made an infinity.
    fn of_float(value: f64) -> Option<Self>;
}

macro_rules! whole {
    ($($type:ty),*) => { $(
        impl Number for $type {
            fn to<T: Target>(self) -> Option<T> {
                T::of_whole(self.into())
            }
        }
    )* };
}
whole!(u8, u16, u32, u64, i8, i16, i32, i64);

impl Number for f32 {
    fn to<T: Target>(self) -> Option<T> {
        T::of_float(self.into())
    }
}

impl Number for f64 {
    fn to<T: Target>(self) -> Option<T> {
        T::of_float(self)
    }
}

macro_rules! whole_target {
    ($($type:ty),*) => { $(
        impl Target for $type {
            fn of_whole(value: i128) -> Option<Self> {
                value.try_into().ok()
            }

            #[expect(clippy::cast_possible_truncation, reason = "a saturated one fails the conversion that follows")]
            fn of_float(value: f64) -> Option<Self> {
                // Neither a fraction nor NaN; the infinities are out of range.
                (value.trunc() == value).then_some(value as i128).and_then(Self::of_whole)
            }
        }
    )* };
}
whole_target!(i32, i64);

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "it is looked at whether it is exact")]
impl Target for f32 {
    fn of_whole(value: i128) -> Option<Self> {
        let float = value as Self;
        (float as i128 == value).then_some(float)
    }

    fn of_float(value: f64) -> Option<Self> {
        let float = value as Self;
        (float.is_finite() || !value.is_finite()).then_some(float)
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "it is looked at whether it is exact")]
impl Target for f64 {
    fn of_whole(value: i128) -> Option<Self> {
        let float = value as Self;
        (float as i128 == value).then_some(float)
    }

    fn of_float(value: f64) -> Option<Self> {
        Some(value)
    }
}

/// IEEE 754 binary16.
fn from_half(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, (bits >> 10) & 0x1f, u32::from(bits & 0x3ff));
    match exponent {
        // Subnormal: whole multiples of 2^-24, exact in a float.
        0 => f32::from_bits(sign | ((bits & 0x3ff) as f32 / 16_777_216.0).to_bits()),
        0x1f => f32::from_bits(sign | 0x7f80_0000 | (fraction << 13)),
        exponent => f32::from_bits(sign | ((u32::from(exponent) + 112) << 23) | (fraction << 13)),
    }
}

/// The upper half of a float.
fn from_brain(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests;
