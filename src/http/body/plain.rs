//! The short way for the most usual bodies: `{"instances":[ROW,…]}` for one input of floats, each row a list of numbers
//! or an object by the model's names; `dataframe_records` and a list of rows as `inputs` are the same. And the table that
//! MLflow's clients make of a DataFrame, if its columns have names.
//!
//! It answers what the general parser answers, or nothing: then that one reads the body from its beginning, and finds
//! the error, or the form that is unusual.

mod decimals;

use hotserve_models::{Data, DataType, Signature, Tensor};

use self::decimals::Float;
use super::Inputs;
use super::element::Element;
use crate::serving::layout::{Layout, Lookup};

/// How many rows in turn may not be of short decimals before it is no more looked whether they are.
const TRIES: u32 = 4;

/// Reads a body for a model whose signature is [plain](crate::serving::is_plain).
pub(in crate::http) fn parse(body: &[u8], signature: &Signature, layout: &Layout) -> Option<Inputs> {
    let ([spec], [names]) = (signature.inputs.as_slice(), &*layout.features) else { return None };
    let (data, rows, width) = match spec.datatype {
        DataType::Fp32 => rows(body, names).map(|(values, rows, width)| (Data::Fp32(values), rows, width))?,
        DataType::Fp64 => rows(body, names).map(|(values, rows, width)| (Data::Fp64(values), rows, width))?,
        _ => return None,
    };
    let tensors = vec![Tensor::new(vec![rows, width], data).ok()?];
    // The width of the rows is judged here.
    (signature.check_inputs(&tensors).ok()? == rows).then_some(Inputs { tensors, rows })
}

/// The values of all rows, how many rows, and how long each.
fn rows<T: Float>(body: &[u8], names: &Lookup) -> Option<(Vec<T>, usize, usize)> {
    let mut text = Text(body);
    text.token(b'{')?;
    text.space();
    let table = text.literal(b"\"dataframe_split\"").is_some();
    if !table {
        text.literal(b"\"instances\"")
            .or_else(|| text.literal(b"\"inputs\""))
            .or_else(|| text.literal(b"\"dataframe_records\""))?;
    }
    text.token(b':')?;
    let mut order = Vec::new();
    if table {
        text.columns(names, &mut order)?;
    } else {
        text.token(b'[')?;
    }
    text.space();
    let named = !table && text.peek() == Some(b'{');
    // A number takes some 8 bytes of text, as the general parser guesses.
    let mut values = Vec::with_capacity(body.len() / 8 + 1);
    let (mut rows, mut width) = (0, if table { names.width() } else { 0 });
    let mut tries = if named || !order.is_empty() { 0 } else { TRIES };
    loop {
        // Of the first row it is not known how long it is.
        if tries > 0 && rows > 0 {
            tries -= 1;
            if let Some((more, end)) = decimals::rows(body, body.len() - text.0.len(), width, &mut values) {
                tries = TRIES;
                rows += more;
                text.0 = body.get(end..)?;
                if text.end(b']')? {
                    break;
                }
                text.space();
            }
        }
        let before = values.len();
        if named {
            text.object(names, &mut order, &mut values)?;
        } else if !order.is_empty() {
            text.list_in_order(&order, &mut values)?;
        } else {
            text.list(&mut values)?;
        }
        let length = values.len() - before;
        if rows == 0 && !table {
            width = length;
        } else if length != width {
            return None;
        }
        rows += 1;
        if text.end(b']')? {
            break;
        }
        text.space();
    }
    if table {
        text.token(b'}')?;
    }
    text.token(b'}')?;
    text.space();
    text.0.is_empty().then_some((values, rows, width))
}

/// A number that is all of a text, to the element that the general parser makes of it; nothing where the text is
/// unusual.
pub(super) fn number<T: Element>(text: &str) -> Option<T> {
    let mut text = Text(text.as_bytes());
    text.number().filter(|_| text.0.is_empty())
}

/// What is left of the body.
struct Text<'b>(&'b [u8]);

impl<'b> Text<'b> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn space(&mut self) {
        while let Some((b' ' | b'\n' | b'\r' | b'\t', rest)) = self.0.split_first() {
            self.0 = rest;
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(literal)?;
        Some(())
    }

    /// One character of the structure, and the space before it.
    fn token(&mut self, token: u8) -> Option<()> {
        self.space();
        self.literal(&[token])
    }

    /// Behind an element: whether the end comes, or a comma.
    fn end(&mut self, end: u8) -> Option<bool> {
        self.space();
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        (*first == end || *first == b',').then_some(*first == end)
    }

    fn list<T: Element>(&mut self, values: &mut Vec<T>) -> Option<()> {
        self.literal(b"[")?;
        loop {
            self.space();
            values.push(self.value()?);
            if self.end(b']')? {
                return Some(());
            }
        }
    }

    /// A table as far as its first row: the index, which is passed over, and the columns, whose order is kept if it is
    /// not the model's.
    fn columns(&mut self, names: &Lookup, order: &mut Vec<usize>) -> Option<()> {
        self.token(b'{')?;
        loop {
            match self.any_name()? {
                "index" => self.numbers()?,
                "columns" if order.is_empty() => self.column_names(names, order)?,
                "data" if !order.is_empty() => {
                    if order.iter().enumerate().all(|(place, index)| place == *index) {
                        order.clear();
                    }
                    return self.literal(b"[");
                }
                _ => return None,
            }
            self.token(b',')?;
        }
    }

    /// The names of all columns, as their positions.
    fn column_names(&mut self, names: &Lookup, order: &mut Vec<usize>) -> Option<()> {
        let mut seen = vec![false; names.names().len()];
        self.literal(b"[")?;
        loop {
            let index = names.find(self.any_text()?)?;
            if std::mem::replace(seen.get_mut(index)?, true) {
                return None;
            }
            order.push(index);
            if self.end(b']')? {
                break;
            }
        }
        (order.len() == seen.len()).then_some(())
    }

    /// A list of numbers that nobody asks for.
    fn numbers(&mut self) -> Option<()> {
        self.literal(b"[")?;
        self.space();
        if self.literal(b"]").is_some() {
            return Some(());
        }
        loop {
            self.space();
            self.number::<f64>()?;
            if self.end(b']')? {
                return Some(());
            }
        }
    }

    /// A row whose values come in the order of a table's columns.
    fn list_in_order<T: Element>(&mut self, order: &[usize], values: &mut Vec<T>) -> Option<()> {
        self.literal(b"[")?;
        let base = values.len();
        values.resize(base + order.len(), T::EMPTY);
        let row = values.get_mut(base..)?;
        for (place, index) in order.iter().enumerate() {
            if place > 0 {
                self.token(b',')?;
            }
            self.space();
            *row.get_mut(*index)? = self.value()?;
        }
        self.token(b']')
    }

    /// A row by names. The order of a row is that of the one before, or else it is found out.
    fn object<T: Element>(&mut self, names: &Lookup, order: &mut Vec<usize>, values: &mut Vec<T>) -> Option<()> {
        if names.names().is_empty() {
            return None;
        }
        let (start, base) = (self.0, values.len());
        let as_before =
            if order.is_empty() { self.in_order(names, values) } else { self.in_this_order(names, order, values) };
        if as_before.is_none() {
            self.0 = start;
            values.truncate(base);
            self.in_any_order(names, order, values)?;
        }
        Some(())
    }

    /// A row whose names come as the model has them.
    fn in_order<T: Element>(&mut self, names: &Lookup, values: &mut Vec<T>) -> Option<()> {
        self.literal(b"{")?;
        let (last, others) = names.names().split_last()?;
        for name in others {
            self.name(name)?;
            values.push(self.value()?);
            self.token(b',')?;
        }
        self.name(last)?;
        values.push(self.value()?);
        self.token(b'}')
    }

    /// A row whose names come in an order that was found out before.
    fn in_this_order<T: Element>(&mut self, names: &Lookup, order: &[usize], values: &mut Vec<T>) -> Option<()> {
        self.literal(b"{")?;
        let base = values.len();
        values.resize(base + order.len(), T::EMPTY);
        let row = values.get_mut(base..)?;
        for (place, index) in order.iter().enumerate() {
            if place > 0 {
                self.token(b',')?;
            }
            self.name(names.get(*index)?)?;
            *row.get_mut(*index)? = self.value()?;
        }
        self.token(b'}')
    }

    /// A row whose names come in any order, which is kept.
    fn in_any_order<T: Element>(&mut self, names: &Lookup, order: &mut Vec<usize>, values: &mut Vec<T>) -> Option<()> {
        self.literal(b"{")?;
        let (base, width) = (values.len(), names.width());
        values.resize(base + width, T::EMPTY);
        let row = values.get_mut(base..)?;
        let mut seen = vec![false; width];
        order.clear();
        loop {
            let index = names.find(self.any_name()?)?;
            if std::mem::replace(seen.get_mut(index)?, true) {
                return None;
            }
            *row.get_mut(index)? = self.value()?;
            order.push(index);
            if self.end(b'}')? {
                break;
            }
        }
        (order.len() == width).then_some(())
    }

    /// This name, and the colon behind it.
    fn name(&mut self, name: &str) -> Option<()> {
        self.token(b'"')?;
        self.literal(name.as_bytes())?;
        self.literal(b"\"")?;
        self.token(b':')?;
        self.space();
        Some(())
    }

    /// Whatever name comes, and the colon behind it.
    fn any_name(&mut self) -> Option<&'b str> {
        let name = self.any_text()?;
        self.token(b':')?;
        self.space();
        Some(name)
    }

    /// Whatever text comes, if it stands there as it is.
    fn any_text(&mut self) -> Option<&'b str> {
        self.token(b'"')?;
        let length = self.0.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '))?;
        let (name, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        self.literal(b"\"")?;
        std::str::from_utf8(name).ok()
    }

    fn value<T: Element>(&mut self) -> Option<T> {
        let missing: &[u8] = match self.peek()? {
            b'n' => b"null",
            // As Python writes it.
            b'N' => b"NaN",
            _ => return self.number(),
        };
        self.literal(missing)?;
        T::from_null()
    }

    /// A number as JSON writes it, to the element that the general parser makes of it.
    fn number<T: Element>(&mut self) -> Option<T> {
        if let Some(value) = self.short_decimal() {
            return T::from_f64(value);
        }
        let whole = self.0;
        let negative = self.literal(b"-").is_some();
        let before = self.0.len();
        let leads_with_zero = self.peek() == Some(b'0');
        let mut mantissa = self.digits(0);
        let integer = before - self.0.len();
        if integer == 0 || (leads_with_zero && integer > 1) {
            return None;
        }
        let mut fraction = 0;
        if self.literal(b".").is_some() {
            let before = self.0.len();
            mantissa = self.digits(mantissa);
            fraction = before - self.0.len();
            if fraction == 0 {
                return None;
            }
        } else if !matches!(self.peek(), Some(b'e' | b'E')) {
            // Up to 18 digits fit both kinds of integer.
            return match (integer, negative, i64::try_from(mantissa)) {
                (..=18, false, _) => T::from_u64(mantissa),
                (..=18, true, Ok(1..)) => T::from_i64(-i64::try_from(mantissa).ok()?),
                (..=18, true, _) => T::from_f64(-0.0),
                _ => None,
            };
        }
        let mut exact = integer + fraction <= 19 && mantissa <= 1 << 53 && fraction < TENS.len();
        if let Some((b'e' | b'E', rest)) = self.0.split_first() {
            exact = false;
            self.0 = rest;
            if let Some((b'+' | b'-', rest)) = self.0.split_first() {
                self.0 = rest;
            }
            let before = self.0.len();
            self.digits(0);
            if before == self.0.len() {
                return None;
            }
        }
        let value = if exact {
            // Both are exact, so that the quotient is the double nearest to the text.
            let value = mantissa as f64 / TENS.get(fraction)?;
            if negative { -value } else { value }
        } else {
            let text = whole.get(..whole.len() - self.0.len())?;
            std::str::from_utf8(text).ok()?.parse().ok()?
        };
        // What is too large for a double is no number to the general parser.
        if value.is_finite() { T::from_f64(value) } else { None }
    }

    /// A number of one digit, a point, and one to seven digits; others are left as they are. Most features are such
    /// numbers. Nothing branches on the sign, which no processor foresees; it does on the length, which is often the same.
    fn short_decimal(&mut self) -> Option<f64> {
        let negative = self.peek()? == b'-';
        let [digit, b'.', decimals @ ..] = self.0.get(usize::from(negative)..)? else { return None };
        let integer = u64::from(digit.wrapping_sub(b'0'));
        if integer > 9 {
            return None;
        }
        let (word, length) = leading_digits(*decimals.first_chunk()?);
        let value = match length {
            1 => self.with_decimals::<1>(integer, word, decimals),
            2 => self.with_decimals::<2>(integer, word, decimals),
            3 => self.with_decimals::<3>(integer, word, decimals),
            4 => self.with_decimals::<4>(integer, word, decimals),
            5 => self.with_decimals::<5>(integer, word, decimals),
            6 => self.with_decimals::<6>(integer, word, decimals),
            7 => self.with_decimals::<7>(integer, word, decimals),
            _ => None,
        }?;
        Some(f64::from_bits(value.to_bits() | u64::from(negative) << 63))
    }

    /// The number whose integer and `N` decimals these are. Constants, so that where the next number begins is known
    /// before this one is: 20 % faster than by a length that is computed.
    #[inline(always)]
    fn with_decimals<const N: usize>(&mut self, integer: u64, word: u64, decimals: &'b [u8]) -> Option<f64> {
        let rest = decimals.get(N..)?;
        if matches!(rest.first(), Some(b'e' | b'E')) {
            return None;
        }
        self.0 = rest;
        let scale = const { 10_u64.pow(N as u32) };
        // Both are exact, so that the quotient is the double nearest to the text.
        Some((integer * scale + of_eight_digits(word << (64 - 8 * N))) as f64 / scale as f64)
    }

    /// Goes on with a number by the digits that come; over 19 of them in all, it means nothing.
    fn digits(&mut self, mut number: u64) -> u64 {
        while let Some((digit @ b'0'..=b'9', rest)) = self.0.split_first() {
            number = number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.0 = rest;
        }
        number
    }
}

/// What eight bytes mean as digits, the first in the lowest byte, and with how many digits they begin.
fn leading_digits(bytes: [u8; 8]) -> (u64, u32) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // A digit's byte is 0 to 9 then, and any other is more: with 0x76 on top it has the highest bit, or had it before.
    // What is carried over reaches the bytes behind it only.
    let word = u64::from_le_bytes(bytes) ^ (0x30 * EACH);
    let others = (word.wrapping_add(0x76 * EACH) | word) & (0x80 * EACH);
    (word, others.trailing_zeros() / 8)
}

/// The number of eight digits, the first in the lowest byte: the sum by twos, by fours, and of all.
fn of_eight_digits(digits: u64) -> u64 {
    let twos = digits.wrapping_mul(10).wrapping_add(digits >> 8) & 0x00FF_00FF_00FF_00FF;
    let fours = twos.wrapping_mul(100).wrapping_add(twos >> 16) & 0x0000_FFFF_0000_FFFF;
    fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xFFFF_FFFF
}

/// The powers of ten that a double holds exactly.
const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

#[cfg(test)]
mod tests {
    use hotserve_models::{Dim, TensorSpec};
    use proptest::prelude::*;

    use super::*;
    use crate::serving::is_plain;

    fn signature(datatype: DataType, width: Dim) -> Signature {
        let features = ["a", "b", "c"].map(str::to_owned).to_vec();
        let spec = TensorSpec { name: "x".to_owned(), datatype, shape: vec![Dim::Any, width], features };
        Signature { inputs: vec![spec], outputs: Vec::new() }
    }

    fn signatures() -> Vec<Signature> {
        let types = [DataType::Fp32, DataType::Fp64];
        types.into_iter().flat_map(|datatype| [Dim::Fixed(3), Dim::Any].map(|dim| signature(datatype, dim))).collect()
    }

    /// Shapes and bits, for NaN and −0 are told apart by them only.
    fn bits(inputs: &Inputs) -> (usize, Vec<usize>, Vec<u64>) {
        let tensor = &inputs.tensors[0];
        let bits = match tensor.data() {
            Data::Fp32(values) => values.iter().map(|value| u64::from(value.to_bits())).collect(),
            Data::Fp64(values) => values.iter().map(|value| value.to_bits()).collect(),
            _ => Vec::new(),
        };
        (inputs.rows, tensor.shape().to_vec(), bits)
    }

    /// The short way answers as the general one, or not at all; and whether it answered.
    fn agrees(body: &str) -> bool {
        let mut answered = false;
        for signature in signatures() {
            assert!(is_plain(&signature));
            let layout = Layout::of(&signature);
            if let Some(short) = parse(body.as_bytes(), &signature, &layout) {
                let general = super::super::parse(body.as_bytes(), &signature, &layout);
                let general = general.unwrap_or_else(|error| panic!("{body}: {error:?}"));
                assert_eq!(bits(&short), bits(&general), "{body}");
                answered = true;
            }
        }
        answered
    }

    #[test]
    fn the_usual_bodies_take_the_short_way() {
        for body in [
            r#"{"instances":[[1,2.5,null],[4,5,-6]]}"#,
            " {\t\"instances\" :\r\n[ [ 1 , 2 , 3 ] , [ -0 , -0.0 , 0 ] ] } \n",
            r#"{"instances":[{"a":1,"b":2.5,"c":null},{"a":4,"b":5,"c":-6}]}"#,
            r#"{"instances":[[1e3,1E-3,1.5e+300],[999999999999999999,-999999999999999999,9007199254740993.5]]}"#,
            r#"{"instances":[{"b":1,"a":2.5,"c":null},{"b":4,"a":5,"c":-6},{"a":4,"b":5,"c":-6},{"c":4,"1":5,"0":-6}]}"#,
            r#"{"instances":[{"a":1,"b":2.5,"c":null},{"b":4,"c":5,"a":NaN},{"b":4,"c":5,"a":6}]}"#,
            r#"{"dataframe_records":[{"c":1,"b":2.5,"a":NaN}]}"#,
            r#"{"inputs":[[1,2,NaN]]}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2,NaN],[4,5,6]]}}"#,
            r#"{"dataframe_split": {"index": [0, 1], "columns": ["c", "a", "b"], "data": [[1, 2, NaN], [4, 5, 6]]}} "#,
            r#"{ "dataframe_split" : { "columns" : [ "c" , "b" , "a" ] , "index" : [ ] , "data" : [ [ 1 , 2 , 3 ] ] } } "#,
            r#"{"instances":[[0.1,16777217,9007199791611905],[1e-400,-1e-400,0.00000000000000000000000000001]]}"#,
        ] {
            assert!(agrees(body), "{body}");
        }
    }

    #[test]
    fn what_is_unusual_or_wrong_is_left_to_the_general_parser() {
        for body in [
            "",
            r#"{"instances":[]}"#,
            r#"{"instances":[[]]}"#,
            r#"{"instances":[[1,2,3],[1,2]]}"#,
            r#"{"instances":[[1,2,3],{"a":1,"b":2,"c":3}]}"#,
            r#"{"instances":[{"b":2,"a":1,"b":3}]}"#,
            r#"{"instances":[{"b":2,"a":1}]}"#,
            r#"{"instances":[{"b":2,"a":1,"x":3}]}"#,
            r#"{"instances":[{"b":2,"a":1,"\u0063":3}]}"#,
            r#"{"instances":[{}]}"#,
            r#"{"instances":[{"a":1,"b":2,"c":3,"d":4}]}"#,
            r#"{"instances":[{"a":1,"b":2,}]}"#,
            r#"{"instances":[[1,2,3],]}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"data":[]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2]]}}"#,
            r#"{"dataframe_split":{"columns":["c","b","a"],"data":[[1,2]]}}"#,
            r#"{"dataframe_split":{"columns":["c","b","a"],"data":[[1,2,3,4]]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"data":[{"a":1,"b":2,"c":3}]}}"#,
            r#"{"dataframe_split":{"columns":["a","b"],"data":[[1,2,3]]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","b"],"data":[[1,2,3]]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","c","a"],"data":[[1,2,3]]}}"#,
            r#"{"dataframe_split":{"data":[[1,2,3]],"columns":["a","b","c"]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"columns":["a","b","c"],"data":[[1,2,3]]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"index":["u"],"data":[[1,2,3]]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2,3]]},"id":1}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2,3]],"index":[0]}}"#,
            r#"{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2,3]]}"#,
            r#"{"instances":[[1,2,3]]}}"#,
            r#"{"instances":[[1,2,3]]},"#,
            r#"{"instances":[[1,2,3]],"id":1}"#,
            r#"{"instances":[[01,2,3]]}"#,
            r#"{"instances":[[1.,2,3]]}"#,
            r#"{"instances":[[.5,2,3]]}"#,
            r#"{"instances":[[1e,2,3]]}"#,
            r#"{"instances":[[+1,2,3]]}"#,
            r#"{"instances":[[-,2,3]]}"#,
            r#"{"instances":[[1e999,2,3]]}"#,
            r#"{"instances":[["1",2,3]]}"#,
            r#"{"instances":[[Nan,2,3]]}"#,
        ] {
            assert!(!agrees(body), "{body}");
        }
        let (body, signature) = (r#"{"instances":[[1e39,2,3]]}"#, signature(DataType::Fp32, Dim::Any));
        assert!(parse(body.as_bytes(), &signature, &Layout::of(&signature)).is_none());
    }

    /// A body of these rows.
    fn body_of(rows: &[Vec<String>], separator: &str) -> String {
        let rows: Vec<String> = rows.iter().map(|row| format!("[{}]", row.join(separator))).collect();
        format!("{{\"instances\":[{}]}}", rows.join(separator))
    }

    /// Rows of one width, of numbers that mostly are short.
    fn table() -> impl Strategy<Value = Vec<Vec<String>>> {
        let number = prop_oneof![
            12 => r"-?(0|[1-9][0-9]{0,2})(\.[0-9]{1,4})?",
            3 => r"-?(0|[1-9][0-9]{0,6})(\.[0-9]{1,6})?",
        ];
        let odd = prop_oneof![60 => Just(None), 1 => r"-?[0-9]{0,9}\.?[0-9]{0,9}(e-?[0-9])?|null|NaN".prop_map(Some)];
        (1_usize..40, 1_usize..60).prop_flat_map(move |(width, height)| {
            let cell = (number.clone(), odd.clone()).prop_map(|(number, odd)| odd.unwrap_or(number));
            prop::collection::vec(prop::collection::vec(cell, width), height)
        })
    }

    #[test]
    fn rows_of_short_decimals_are_read_side_by_side() {
        for (width, height) in
            [(1, 1), (1, 700), (3, 2), (7, 9), (8, 64), (28, 64), (63, 5), (64, 5), (448, 3), (28, 1500)]
        {
            let number =
                |at: usize| format!("{}{}.{}", if at.is_multiple_of(3) { "-" } else { "" }, at * 7 % 97, at % 1000);
            let rows: Vec<Vec<String>> =
                (0..height).map(|row| (0..width).map(|at| number(row * 31 + at)).collect()).collect();
            for separator in [",", ", "] {
                let body = body_of(&rows, separator);
                let start = r#"{"instances":["#.len();
                let mut values = vec![0.5_f64];
                let read = decimals::rows(body.as_bytes(), start, width, &mut values);
                assert_eq!(read, decimals::available().then_some((height, body.len() - 2)), "{width} {height}");
                if read.is_some() {
                    let expected = rows.iter().flatten().map(|number| number.parse().expect("a number"));
                    assert_eq!(values, [0.5].into_iter().chain(expected).collect::<Vec<f64>>());
                }
                assert!(agrees(&body));
            }
        }
    }

    #[test]
    fn rows_before_one_of_another_width_are_read_rightly() {
        let body = "[[1],[1],[1],[1],[2],[3,4]]";
        let mut values = Vec::<f64>::new();
        let read = decimals::rows(body.as_bytes(), 1, 1, &mut values);
        if decimals::available() {
            assert_eq!((read, values), (Some((5, 20)), vec![1.0, 1.0, 1.0, 1.0, 2.0]));
        }
    }

    #[test]
    fn a_row_that_is_none_of_short_decimals_ends_what_is_read_side_by_side() {
        let row = |number: &str| vec!["1.5".to_owned(), number.to_owned(), "-2".to_owned()];
        for (odd, read) in [
            ("0.1234567", None),
            ("12345678", None),
            ("1e3", None),
            ("null", None),
            ("NaN", None),
            ("1 ", None),
            ("01", None),
            ("-01.5", None),
            ("1.", None),
            (".5", None),
            ("-", None),
            (".", None),
            ("1.2.3", None),
            ("1-2", None),
            ("--1", None),
            ("1/2", None),
            ("", None),
            ("[1]", None),
            ("1,2", None),
            ("1]", None),
            ("\"1\"", None),
            (" 1", Some(1)),
            ("0.12345", Some(1)),
            ("-0", Some(1)),
            ("-0.0", Some(1)),
            ("1234567", Some(1)),
            ("-123456", Some(1)),
        ] {
            let rows: Vec<Vec<String>> = (0..60).map(|at| row(if at == 30 { odd } else { "0.25" })).collect();
            let body = body_of(&rows, ",");
            let start = body.find("[1.5").expect("the first row");
            let mut values = Vec::<f32>::new();
            let found = decimals::rows(body.as_bytes(), start, 3, &mut values);
            if decimals::available() {
                let (rows, _) = found.expect("there are some before");
                assert_eq!(rows == 60, read.is_some(), "{odd:?}: {rows}");
                assert!(rows == 60 || rows <= 30, "{odd:?}: {rows}");
                assert_eq!(values.len(), 3 * rows);
            }
            agrees(&body);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn any_number_is_what_the_general_parser_reads(
            numbers in prop::collection::vec(r"-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?", 3)
        ) {
            agrees(&format!("{{\"instances\":[[{}]]}}", numbers.join(",")));
        }

        #[test]
        fn any_short_decimal_is_what_the_general_parser_reads(
            numbers in prop::collection::vec(r"-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?(e2)?", 3)
        ) {
            let body = format!("{{\"instances\":[[{}]]}}", numbers.join(","));
            prop_assert!(agrees(&body));
        }

        #[test]
        fn any_double_takes_the_short_way(row in prop::array::uniform3(any::<f64>())) {
            prop_assume!(row.iter().all(|value| value.is_finite()));
            let body = format!("{{\"instances\":[{}]}}", serde_json::to_string(&row).expect("JSON"));
            prop_assert!(agrees(&body));
        }

        #[test]
        fn nearly_right_bodies_are_never_read_otherwise(
            parts in prop::collection::vec(
                prop::sample::select(vec!["[", "]", "{", "}", ",", ":", "\"a\"", "\"b\"", "\"c\"", "1", "-0", "2.5", "null", "NaN", " ", "\\"]),
                0..16,
            )
        ) {
            agrees(&format!("{{\"instances\":[{}", parts.concat()));
            agrees(&format!("{{\"instances\":[[1,2,3]{}", parts.concat()));
            agrees(&format!("{{\"dataframe_split\":{{\"columns\":[\"b\",\"c\",\"a\"],\"data\":[[1,2{}", parts.concat()));
            agrees(&format!("{{\"dataframe_split\":{{\"columns\":[{}", parts.concat()));
            agrees(&format!("{{\"instances\":[{{\"b\":1,\"a\":2,\"c\":3}}{}", parts.concat()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(250))]

        #[test]
        fn any_table_is_what_the_general_parser_reads(rows in table(), spaced in any::<bool>()) {
            let odd = |cell: &String| cell.parse::<f64>().is_err() || cell.contains('.') && cell.ends_with('.');
            let usual = !rows.iter().flatten().any(odd);
            let answered = agrees(&body_of(&rows, if spaced { ", " } else { "," }));
            // A zero that leads is an error too.
            prop_assert!(answered || !usual || rows.iter().flatten().any(|cell| cell.trim_start_matches('-').len() > 1));
        }

        #[test]
        fn any_table_with_some_other_bytes_is_what_the_general_parser_reads(
            rows in table(),
            spaced in any::<bool>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b",[]{}-./0159 eE\n\"N:\x7f".to_vec()), 0..3_u8), 1..4),
        ) {
            let mut body = body_of(&rows, if spaced { ", " } else { "," }).into_bytes();
            for (at, byte, how) in changes {
                let at = at.index(body.len());
                match how {
                    0 => body[at] = byte,
                    1 => body.insert(at, byte),
                    _ => drop(body.remove(at)),
                }
            }
            agrees(&String::from_utf8(body).expect("all of it is ASCII"));
        }
    }
}
