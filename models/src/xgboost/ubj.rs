//! Universal Binary JSON (draft 12, <https://ubjson.org>) as XGBoost writes it, for serde.
//!
//! Nothing is allocated on the word of the file: a count is compared with the bytes that are left before anything is
//! made room for, and nesting has a limit.

use std::fmt;

use serde::de::value::SeqDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// XGBoost's own files are eight deep.
const MAX_DEPTH: u32 = 64;

/// Reads one value, which must be all of the bytes.
pub(super) fn from_slice<'de, T: de::Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    let mut decoder = Decoder { bytes, at: 0, depth: 0 };
    let value = T::deserialize(&mut decoder).map_err(|error| error.or_at(decoder.at))?;
    if decoder.at == bytes.len() { Ok(value) } else { Err(decoder.error("more bytes follow the end")) }
}

/// What is wrong, and at which byte.
#[derive(Debug)]
pub(super) struct Error {
    at: Option<usize>,
    detail: String,
}

impl Error {
    fn or_at(mut self, at: usize) -> Self {
        self.at.get_or_insert(at);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.detail, self.at.unwrap_or(0))
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { at: None, detail: message.to_string() }
    }
}

struct Decoder<'de> {
    bytes: &'de [u8],
    at: usize,
    depth: u32,
}

/// How an array or object says where it ends.
#[derive(Clone, Copy)]
enum Extent {
    /// At its closing bracket.
    Closed,
    /// After so many elements, each with its marker.
    Counted(usize),
    /// After so many numbers of one type, without markers.
    Typed(u8, usize),
}

impl<'de> Decoder<'de> {
    fn error(&self, detail: impl Into<String>) -> Error {
        Error { at: Some(self.at), detail: detail.into() }
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn take(&mut self, length: usize) -> Result<&'de [u8], Error> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| self.error("the file ends early"))?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.error("the file ends early"))
    }

    /// The next marker, without taking it. No-ops may stand before any.
    fn peek(&mut self) -> Result<u8, Error> {
        loop {
            match self.bytes.get(self.at) {
                Some(b'N') => self.at += 1,
                Some(marker) => return Ok(*marker),
                None => return Err(self.error("the file ends early")),
            }
        }
    }

    fn marker(&mut self) -> Result<u8, Error> {
        let marker = self.peek()?;
        self.at += 1;
        Ok(marker)
    }

    /// A number of bytes, or of elements that take a byte or more each.
    fn length(&mut self) -> Result<usize, Error> {
        let length = match self.marker()? {
            b'i' => i64::from(i8::from_be_bytes(self.array()?)),
            b'U' => i64::from(u8::from_be_bytes(self.array()?)),
            b'I' => i64::from(i16::from_be_bytes(self.array()?)),
            b'l' => i64::from(i32::from_be_bytes(self.array()?)),
            b'L' => i64::from_be_bytes(self.array()?),
            marker => return Err(self.error(format!("a length is expected, not {}", marker.escape_ascii()))),
        };
        match usize::try_from(length) {
            Ok(length) if length <= self.left() => Ok(length),
            _ => Err(self.error(format!("a length of {length} is more than the {} bytes that are left", self.left()))),
        }
    }

    /// Goes into an array or object, whose bracket is already taken.
    fn open(&mut self) -> Result<Extent, Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("it is nested deeper than {MAX_DEPTH}")));
        }
        match self.peek()? {
            b'#' => {
                self.at += 1;
                Ok(Extent::Counted(self.length()?))
            }
            b'$' => {
                self.at += 1;
                let marker = self.marker()?;
                // Types of no width would let a few bytes stand for any number of elements.
                let Some(width) = width(marker) else {
                    return Err(self.error(format!("an array of type {} is not served", marker.escape_ascii())));
                };
                if self.marker()? != b'#' {
                    return Err(self.error("an array with a type has no count"));
                }
                let count = self.length()?;
                if count.checked_mul(width).is_none_or(|bytes| bytes > self.left()) {
                    return Err(self.error(format!("{count} elements are more than the bytes that are left")));
                }
                Ok(Extent::Typed(marker, count))
            }
            _ => Ok(Extent::Closed),
        }
    }

    fn scalar<V: Visitor<'de>>(&mut self, marker: u8, visitor: V) -> Result<V::Value, Error> {
        match marker {
            b'Z' => visitor.visit_unit(),
            b'T' => visitor.visit_bool(true),
            b'F' => visitor.visit_bool(false),
            b'i' => visitor.visit_i8(i8::from_be_bytes(self.array()?)),
            b'U' => visitor.visit_u8(u8::from_be_bytes(self.array()?)),
            b'I' => visitor.visit_i16(i16::from_be_bytes(self.array()?)),
            b'l' => visitor.visit_i32(i32::from_be_bytes(self.array()?)),
            b'L' => visitor.visit_i64(i64::from_be_bytes(self.array()?)),
            b'd' => visitor.visit_f32(f32::from_be_bytes(self.array()?)),
            b'D' => visitor.visit_f64(f64::from_be_bytes(self.array()?)),
            b'C' => visitor.visit_char(char::from(u8::from_be_bytes(self.array()?))),
            b'S' => visitor.visit_borrowed_str(self.text()?),
            _ => {
                self.at -= 1;
                Err(self.error(format!("no value starts with {}", marker.escape_ascii())))
            }
        }
    }

    /// An array with a type: nearly all of a file, so that each type has a loop of its own.
    fn numbers<V: Visitor<'de>>(&mut self, marker: u8, count: usize, visitor: V) -> Result<V::Value, Error> {
        fn read<'de, V: Visitor<'de>, N: IntoDeserializer<'de, Error>, const WIDTH: usize>(
            bytes: &'de [u8],
            number: impl Fn([u8; WIDTH]) -> N,
            visitor: V,
        ) -> Result<V::Value, Error> {
            let mut numbers = SeqDeserializer::new(bytes.as_chunks().0.iter().map(|bytes| number(*bytes)));
            let value = visitor.visit_seq(&mut numbers)?;
            numbers.end()?;
            Ok(value)
        }
        let bytes = self.take(count.saturating_mul(width(marker).unwrap_or(0)))?;
        match marker {
            b'i' => read(bytes, i8::from_be_bytes, visitor),
            b'U' => read(bytes, u8::from_be_bytes, visitor),
            b'I' => read(bytes, i16::from_be_bytes, visitor),
            b'l' => read(bytes, i32::from_be_bytes, visitor),
            b'L' => read(bytes, i64::from_be_bytes, visitor),
            b'd' => read(bytes, f32::from_be_bytes, visitor),
            _ => read(bytes, f64::from_be_bytes, visitor),
        }
    }

    fn text(&mut self) -> Result<&'de str, Error> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.error("a text is not UTF-8"))
    }

    fn skip(&mut self) -> Result<(), Error> {
        match self.marker()? {
            bracket @ (b'[' | b'{') => {
                let mut items = Items { extent: self.open()?, closing: bracket + 2, decoder: self };
                while items.more()? {
                    if bracket == b'{' {
                        let length = items.decoder.length()?;
                        items.decoder.take(length)?;
                    }
                    match items.extent {
                        Extent::Typed(marker, rest) => {
                            let bytes = (rest + 1).saturating_mul(width(marker).unwrap_or(0));
                            items.decoder.take(bytes)?;
                            items.extent = Extent::Typed(marker, 0);
                        }
                        _ => items.decoder.skip()?,
                    }
                }
                self.depth -= 1;
            }
            b'S' => {
                let length = self.length()?;
                self.take(length)?;
            }
            marker => self.scalar(marker, de::IgnoredAny).map(drop)?,
        }
        Ok(())
    }
}

/// The bytes of a number, if the marker is one of a number.
fn width(marker: u8) -> Option<usize> {
    match marker {
        b'i' | b'U' => Some(1),
        b'I' => Some(2),
        b'l' | b'd' => Some(4),
        b'L' | b'D' => Some(8),
        _ => None,
    }
}

impl<'de> Deserializer<'de> for &mut Decoder<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let marker = self.marker()?;
        if marker != b'[' && marker != b'{' {
            return self.scalar(marker, visitor);
        }
        let extent = self.open()?;
        if let Extent::Typed(kind, count) = extent {
            if marker == b'{' {
                return Err(self.error("an object with a type is not served"));
            }
            self.depth -= 1;
            return self.numbers(kind, count, visitor);
        }
        // In ASCII both closing brackets stand two after the opening ones.
        let mut items = Items { extent, closing: marker + 2, decoder: self };
        let value = if marker == b'[' { visitor.visit_seq(&mut items)? } else { visitor.visit_map(&mut items)? };
        items.end()?;
        self.depth -= 1;
        Ok(value)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.peek()? == b'Z' {
            self.at += 1;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.skip()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

/// What is left of an array or object.
struct Items<'a, 'de> {
    extent: Extent,
    closing: u8,
    decoder: &'a mut Decoder<'de>,
}

impl Items<'_, '_> {
    /// Whether there is another element; a closing bracket is taken when there is none.
    fn more(&mut self) -> Result<bool, Error> {
        match &mut self.extent {
            Extent::Counted(rest) | Extent::Typed(_, rest) => {
                let more = *rest > 0;
                *rest = rest.saturating_sub(1);
                Ok(more)
            }
            Extent::Closed if self.decoder.peek()? == self.closing => {
                self.decoder.at += 1;
                self.extent = Extent::Counted(0);
                Ok(false)
            }
            Extent::Closed => Ok(true),
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        if self.more()? { Err(self.decoder.error("more elements follow than are expected")) } else { Ok(()) }
    }

    fn size_hint(&self) -> Option<usize> {
        match self.extent {
            Extent::Counted(rest) | Extent::Typed(_, rest) => Some(rest),
            Extent::Closed => None,
        }
    }
}

impl<'de> SeqAccess<'de> for &mut Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if !self.more()? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.decoder).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Items::size_hint(self)
    }
}

impl<'de> MapAccess<'de> for &mut Items<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if !self.more()? {
            return Ok(None);
        }
        let key = self.decoder.text()?;
        seed.deserialize(de::value::BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(&mut *self.decoder)
    }

    fn size_hint(&self) -> Option<usize> {
        Items::size_hint(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn decode(bytes: &[u8]) -> Result<Value, String> {
        from_slice::<Value>(bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_value_is_read() {
        for (bytes, value) in [
            (&b"Z"[..], json!(null)),
            (b"T", json!(true)),
            (b"NNi\xff", json!(-1)),
            (b"U\xff", json!(255)),
            (b"I\xff\xfe", json!(-2)),
            (b"l\0\x01\0\0", json!(65536)),
            (b"L\0\0\0\0\0\0\0\x05", json!(5)),
            (b"d\x3f\0\0\0", json!(0.5)),
            (b"D\x3f\xe0\0\0\0\0\0\0", json!(0.5)),
            (b"Cx", json!("x")),
            (b"SL\0\0\0\0\0\0\0\x02hi", json!("hi")),
            (b"[]", json!([])),
            (b"[i\x01TN]", json!([1, true])),
            (b"[#i\x02i\x01Z", json!([1, null])),
            (b"[$d#L\0\0\0\0\0\0\0\x02\x3f\0\0\0\0\0\0\0", json!([0.5, 0.0])),
            (b"[$U#i\x00", json!([])),
            (b"[$i#i\x02\xff\x01", json!([-1, 1])),
            (b"[$U#i\x02\xff\x01", json!([255, 1])),
            (b"[$I#i\x01\xff\xfe", json!([-2])),
            (b"[$l#i\x01\0\x01\0\0", json!([65536])),
            (b"[$L#i\x01\0\0\0\0\0\0\0\x05", json!([5])),
            (b"[$D#i\x01\x3f\xe0\0\0\0\0\0\0", json!([0.5])),
            (b"{i\x01ai\x01U\x01b[[]]}", json!({"a": 1, "b": [[]]})),
            (b"{#i\x01i\x01aF", json!({"a": false})),
        ] {
            assert_eq!(decode(bytes), Ok(value), "{}", bytes.escape_ascii());
            let skipped = from_slice::<de::IgnoredAny>(bytes);
            assert!(skipped.is_ok(), "{}: {skipped:?}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_file_that_lies_is_refused_at_the_place_where_it_does() {
        let deep = [b"[".repeat(70), b"]".repeat(70)].concat();
        let huge = "a length of 9223372036854775807 is more than";
        for (bytes, says) in [
            (&b""[..], "the file ends early at byte 0"),
            (b"i", "the file ends early at byte 1"),
            (b"[i\x01", "the file ends early at byte 3"),
            (b"i\x01i", "more bytes follow the end at byte 2"),
            (b"x", "no value starts with x at byte 0"),
            (b"[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff", huge),
            (b"[#L\x7f\xff\xff\xff\xff\xff\xff\xff", huge),
            (b"SL\x7f\xff\xff\xff\xff\xff\xff\xff", huge),
            (b"{L\x7f\xff\xff\xff\xff\xff\xff\xff", huge),
            (b"[#i\xff", "a length of -1"),
            (b"[$D#i\x02abcdefghijk", "2 elements are more than the bytes"),
            (b"[$Z#i\x01\x01", "an array of type Z"),
            (b"[$[#i\x01\x01", "an array of type ["),
            (b"[$di\x01", "no count"),
            (b"Si\x01\xff", "not UTF-8"),
            (b"{$i#i\x01i\x01a\x01", "an object with a type"),
            (&deep, "nested deeper than 64 at byte 65"),
        ] {
            let error = decode(bytes).expect_err(says);
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        assert!(from_slice::<de::IgnoredAny>(&deep).is_err());
        assert!(from_slice::<[u8; 1]>(b"[$U#i\x02\x01\x02").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = from_slice::<de::IgnoredAny>(&bytes);
        }

        #[test]
        fn what_looks_like_the_format_never_panics(
            bytes in proptest::collection::vec(proptest::sample::select(&b"[]{}$#NZTFiUIlLdDCSHx\x00\x01\x02\x7f\xff"[..]), 0..80)
        ) {
            let read = decode(&bytes);
            // Reading and skipping agree on what is well-formed, save that skipping looks into no text.
            if read.is_ok() {
                prop_assert!(from_slice::<de::IgnoredAny>(&bytes).is_ok());
            }
        }
    }
}
