//! The elements of tensors, and which JSON values they take.

use std::fmt;
use std::marker::PhantomData;

use hotserve_models::{Data, DataType};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::plain;

/// Runs the same code for the buffer of any datatype.
macro_rules! each {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            Data::Bool($values) => $body,
            Data::Int32($values) => $body,
            Data::Int64($values) => $body,
            Data::Fp32($values) => $body,
            Data::Fp64($values) => $body,
            Data::Bytes($values) => $body,
        }
    };
}
pub(in crate::http) use each;

/// Appends a list of values, and answers how many; an error comes with its index.
pub(super) fn append<'de, T: Element, A: SeqAccess<'de>>(
    mut seq: A,
    values: &mut Vec<T>,
) -> Result<usize, (usize, A::Error)> {
    let mut length = 0;
    loop {
        match seq.next_element_seed(Scalar(PhantomData)) {
            Ok(Some(value)) => values.push(value),
            Ok(None) => return Ok(length),
            Err(error) => return Err((length, error)),
        }
        length += 1;
    }
}

/// One value.
pub(super) struct Scalar<T>(pub(super) PhantomData<T>);

impl<'de, T: Element> DeserializeSeed<'de> for Scalar<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Element> Visitor<'de> for Scalar<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(expected(T::DATATYPE))
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<T, E> {
        T::read(T::from_bool(value), value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<T, E> {
        T::read(T::from_u64(value), value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<T, E> {
        T::read(T::from_i64(value), value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<T, E> {
        T::read(T::from_f64(value), format_args!("{value:?}"))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<T, E> {
        T::read(T::from_text(value), format_args!("the string {}", quoted(value)))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<T, E> {
        T::read(T::from_null(), "null")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        T::read(None, "a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<T, A::Error> {
        T::read(None, "an object")
    }
}

/// An element of a tensor, and which JSON values it takes.
pub(super) trait Element: Sized + Clone {
    const DATATYPE: DataType;
    /// What stands in a row until its value is read.
    const EMPTY: Self;

    /// The buffer, if it is of this element.
    fn buffer(data: Data) -> Option<Vec<Self>>;

    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    fn from_u64(_: u64) -> Option<Self> {
        None
    }
    fn from_i64(_: i64) -> Option<Self> {
        None
    }
    fn from_f64(_: f64) -> Option<Self> {
        None
    }
    fn from_text(_: &str) -> Option<Self> {
        None
    }
    fn from_null() -> Option<Self> {
        None
    }
    /// A value of a text file.
    fn from_field(text: &str) -> Option<Self> {
        number(text.trim_matches([' ', '\t']))
    }

    fn read<E: serde::de::Error>(value: Option<Self>, got: impl fmt::Display) -> Result<Self, E> {
        value.ok_or_else(|| E::custom(format_args!("expected {}, got {got}", expected(Self::DATATYPE))))
    }
}

/// Declares an element: its datatype, its buffer, its placeholder, and its conversions.
macro_rules! element {
    { $type:ident: $datatype:ident, EMPTY = $empty:expr; $($conversion:item)* } => {
        impl Element for $type {
            const DATATYPE: DataType = DataType::$datatype;
            const EMPTY: Self = $empty;

            fn buffer(data: Data) -> Option<Vec<Self>> {
                match data {
                    Data::$datatype(values) => Some(values),
                    _ => None,
                }
            }

            $($conversion)*
        }
    };
}

element! { bool: Bool, EMPTY = false;
    fn from_field(text: &str) -> Option<Self> {
        // Python writes them large, others small.
        let is = |word: &str| text.trim_matches([' ', '\t']).eq_ignore_ascii_case(word);
        if is("true") { Some(true) } else { is("false").then_some(false) }
    }
    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

element! { i32: Int32, EMPTY = 0;
    fn from_u64(value: u64) -> Option<Self> {
        value.try_into().ok()
    }
    fn from_i64(value: i64) -> Option<Self> {
        value.try_into().ok()
    }
}

element! { i64: Int64, EMPTY = 0;
    fn from_u64(value: u64) -> Option<Self> {
        value.try_into().ok()
    }
    fn from_i64(value: i64) -> Option<Self> {
        Some(value)
    }
}

element! { f32: Fp32, EMPTY = f32::NAN;
    fn from_u64(value: u64) -> Option<Self> {
        Some(value as f32)
    }
    fn from_i64(value: i64) -> Option<Self> {
        Some(value as f32)
    }
    fn from_f64(value: f64) -> Option<Self> {
        // JSON has no infinity: one that arises here is a number too large, and would be answered wrongly.
        Some(value as f32).filter(|value| value.is_finite())
    }
    fn from_null() -> Option<Self> {
        Some(f32::NAN)
    }
}

element! { f64: Fp64, EMPTY = f64::NAN;
    fn from_u64(value: u64) -> Option<Self> {
        Some(value as f64)
    }
    fn from_i64(value: i64) -> Option<Self> {
        Some(value as f64)
    }
    fn from_f64(value: f64) -> Option<Self> {
        Some(value)
    }
    fn from_null() -> Option<Self> {
        Some(f64::NAN)
    }
}

element! { String: Bytes, EMPTY = String::new();
    fn from_text(value: &str) -> Option<Self> {
        Some(value.to_owned())
    }
    fn from_field(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

/// A value of a text file; the error is why it does not fit.
pub(super) fn in_text<T: Element>(text: &str) -> Result<T, String> {
    T::from_field(text).ok_or_else(|| {
        let expected = match T::DATATYPE {
            DataType::Fp32 => "a number up to 3.4e38 or nothing (FP32)",
            DataType::Fp64 => "a number or nothing (FP64)",
            other => expected(other),
        };
        let got = if text.is_empty() { "nothing".to_owned() } else { quoted(text) };
        format!("expected {expected}, got {got}")
    })
}

/// A number of a text file, to the element that the same number of a JSON text becomes.
fn number<T: Element>(text: &str) -> Option<T> {
    if let Some(value) = plain::number(text) {
        return Some(value);
    }
    if text.is_empty() || text.eq_ignore_ascii_case("nan") || text == "NA" || text == "null" {
        return T::from_null();
    }
    if let Ok(value) = text.parse() {
        return T::from_u64(value);
    }
    if let Ok(value) = text.parse() {
        return T::from_i64(value);
    }
    // Rust would read words too, such as "infinity".
    let plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    let value = if plain { text.parse::<f64>().ok()? } else { return None };
    if value.is_finite() { T::from_f64(value) } else { None }
}

pub(super) fn expected(datatype: DataType) -> &'static str {
    match datatype {
        DataType::Bool => "true or false (BOOL)",
        DataType::Int32 => "an integer from -2147483648 to 2147483647 (INT32)",
        DataType::Int64 => "an integer of 64 bits (INT64)",
        DataType::Fp32 => "a number up to 3.4e38 or null (FP32)",
        DataType::Fp64 => "a number or null (FP64)",
        DataType::Bytes => "a string (BYTES)",
    }
}

/// A client's text, cut short and escaped.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

pub(super) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
