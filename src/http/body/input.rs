//! One input on its way to a tensor: whatever form its rows have, the values end in one flat buffer.

use std::fmt;
use std::marker::PhantomData;

use hotserve_models::{Data, Dim, TensorSpec};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::element::{Element, Scalar, append, count, each, expected, quoted};
use super::names::{Key, Names, Path};
use crate::serving::layout::Lookup;

/// How a row came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A list, or a bare value.
    Bare,
    /// An object by feature name.
    Features,
    /// An object by the input's name.
    Named,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "without names",
            Self::Features => "by feature name",
            Self::Named => "by input name",
        })
    }
}

/// One input on its way to a tensor.
pub(super) struct Input<'s> {
    pub(super) spec: &'s TensorSpec,
    /// The names of the columns, where each column has one.
    pub(super) features: Names<'s>,
    /// The model has no other input.
    sole: bool,
    pub(super) data: Data,
    pub(super) rows: usize,
    /// The length of each axis, as far as the signature or the rows so far fix it.
    pub(super) lengths: Vec<Option<usize>>,
    /// The form of the rows so far.
    form: Option<Form>,
    /// For each column the last object, counted from 1, that had it.
    seen: Vec<usize>,
    objects: usize,
}

impl<'s> Input<'s> {
    pub(super) fn new(spec: &'s TensorSpec, features: &'s Lookup, sole: bool, capacity: usize) -> Self {
        let fixed = |dim: &Dim| match dim {
            Dim::Fixed(length) => Some(*length),
            Dim::Any => None,
        };
        Self {
            spec,
            features: Names::new(features),
            sole,
            data: Data::with_capacity(spec.datatype, capacity),
            rows: 0,
            lengths: spec.shape.iter().map(fixed).collect(),
            form: None,
            seen: Vec::new(),
            objects: 0,
        }
    }

    pub(super) fn is_scalar(&self, axis: usize) -> bool {
        axis >= self.spec.shape.len()
    }

    fn is_leaf(&self, axis: usize) -> bool {
        axis + 1 >= self.spec.shape.len()
    }

    /// Whether a bare value may stand at an axis: behind the last one, or for a list of one. That is a column of its own,
    /// as pipelines that were trained on a DataFrame have them.
    fn takes_scalar(&self, axis: usize) -> bool {
        self.is_scalar(axis) || (axis > 0 && self.is_leaf(axis) && self.spec.shape.get(axis) == Some(&Dim::Fixed(1)))
    }

    /// Whether a row is one value.
    pub(super) fn is_column(&self) -> bool {
        self.takes_scalar(1)
    }

    /// Notes the length of a list along an axis; all lists along it are of one length.
    pub(super) fn settle<E: serde::de::Error>(&mut self, axis: usize, length: usize) -> Result<(), E> {
        if axis == 0 {
            self.rows = length;
            return Ok(());
        }
        match self.lengths.get_mut(axis) {
            Some(Some(expected)) if *expected != length => {
                Err(E::custom(format_args!("expected {}, got {length}", count(*expected, "value"))))
            }
            Some(known) => {
                *known = Some(length);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn take_form<E: serde::de::Error>(&mut self, form: Form) -> Result<(), E> {
        match self.form.replace(form) {
            Some(before) if before != form => {
                Err(E::custom(format_args!("the rows are mixed: this one is {form}, those before it are {before}")))
            }
            _ => Ok(()),
        }
    }

    /// What belongs at an axis, for a person.
    fn expected(&self, axis: usize) -> String {
        if self.is_scalar(axis) {
            return expected(self.spec.datatype).to_owned();
        }
        let length = match self.lengths.get(axis) {
            Some(Some(length)) if axis > 0 => format!(" of {length}"),
            _ => String::new(),
        };
        let of = match (self.is_leaf(axis), axis) {
            (true, _) => format!("{} values", self.spec.datatype),
            (false, 0) => "rows".to_owned(),
            (false, _) => "lists".to_owned(),
        };
        let or = if axis == 1 && self.features.are_named() { " or an object by feature name" } else { "" };
        let of = if length.is_empty() { format!(" of {of}") } else { format!("{length} {of}") };
        format!("a list{of}{or}")
    }

    fn mismatch<E: serde::de::Error>(&self, axis: usize, got: impl fmt::Display) -> E {
        E::custom(format_args!("expected {}, got {got}", self.expected(axis)))
    }
}

/// What lies at one axis of one input: a list along it, an object by name, or behind the last axis a value.
pub(super) struct Value<'p, 's> {
    pub(super) input: &'p mut Input<'s>,
    pub(super) path: &'p mut Path,
    pub(super) axis: usize,
    /// Not within a list of the same row: the place where the row's form shows.
    pub(super) outer: bool,
}

impl Value<'_, '_> {
    fn bare<E: serde::de::Error>(&mut self) -> Result<(), E> {
        if self.outer && self.axis == 1 { self.input.take_form(Form::Bare) } else { Ok(()) }
    }
}

/// Appends a value that the text had where a list may be, or not.
macro_rules! scalar {
    ($self:ident, $got:expr, $convert:expr) => {{
        $self.bare()?;
        if !$self.input.takes_scalar($self.axis) {
            return Err($self.input.mismatch($self.axis, $got));
        }
        each!(&mut $self.input.data, values => values.push(Element::read($convert, $got)?));
        Ok(())
    }};
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.input.expected(self.axis))
    }

    fn visit_bool<E: serde::de::Error>(mut self, value: bool) -> Result<(), E> {
        scalar!(self, value, Element::from_bool(value))
    }

    fn visit_u64<E: serde::de::Error>(mut self, value: u64) -> Result<(), E> {
        scalar!(self, value, Element::from_u64(value))
    }

    fn visit_i64<E: serde::de::Error>(mut self, value: i64) -> Result<(), E> {
        scalar!(self, value, Element::from_i64(value))
    }

    fn visit_f64<E: serde::de::Error>(mut self, value: f64) -> Result<(), E> {
        scalar!(self, format_args!("{value:?}"), Element::from_f64(value))
    }

    fn visit_str<E: serde::de::Error>(mut self, value: &str) -> Result<(), E> {
        scalar!(self, format_args!("the string {}", quoted(value)), Element::from_text(value))
    }

    fn visit_unit<E: serde::de::Error>(mut self) -> Result<(), E> {
        scalar!(self, "null", Element::from_null())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.bare()?;
        let Self { input, path, axis, outer } = self;
        if input.is_scalar(axis) {
            return Err(input.mismatch(axis, "a list"));
        }
        let length = if input.is_leaf(axis) {
            let read = each!(&mut input.data, values => append(seq, values));
            read.map_err(|(index, error)| path.column(index, input.features.get(index), error))?
        } else {
            let mut length = 0;
            // The rows of a bare nested list begin at its second axis.
            let outer = outer && axis == 0;
            loop {
                match seq.next_element_seed(Value { input, path, axis: axis + 1, outer }) {
                    Ok(Some(())) => length += 1,
                    Ok(None) => break length,
                    Err(error) => return Err(path.index(length, error)),
                }
            }
        };
        input.settle(axis, length)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { input, path, axis, outer } = self;
        let whole = (outer && input.sole && axis <= 1).then_some(input.spec.name.as_str());
        let by_feature = axis <= 1 && input.features.width() > 0;
        if whole.is_none() && !by_feature {
            return Err(input.mismatch(axis, "an object"));
        }
        let what = if input.features.are_named() { "feature" } else { "input" };
        let first = map.next_key_seed(Key { names: &mut input.features, place: 0, whole, what })?;
        match first {
            Some(None) => {
                if outer && axis == 1 {
                    input.take_form(Form::Named)?;
                }
                let name = input.spec.name.as_str();
                map.next_value_seed(Value { input, path, axis, outer: false })
                    .map_err(|error| path.name(name, error))?;
                match map.next_key::<IgnoredAny>()? {
                    Some(_) => Err(A::Error::custom(format_args!("the model takes no input besides {name:?}"))),
                    None => Ok(()),
                }
            }
            None if !input.features.are_named() => {
                Err(A::Error::custom(format_args!("input {:?} is missing", input.spec.name)))
            }
            first if axis == 1 => {
                if outer {
                    input.take_form(Form::Features)?;
                }
                feature_row(input, path, first.flatten(), map)
            }
            first => feature_columns(input, path, first.flatten(), map),
        }
    }
}

/// A row by feature name; its first key is read.
fn feature_row<'de, A: MapAccess<'de>>(
    input: &mut Input<'_>,
    path: &mut Path,
    first: Option<usize>,
    mut map: A,
) -> Result<(), A::Error> {
    let (width, base) = (input.features.width(), input.data.len());
    each!(&mut input.data, values => values.resize(base + width, Element::EMPTY));
    input.seen.resize(width, 0);
    input.objects += 1;
    let mut place = 0;
    let mut next = first;
    while let Some(column) = next {
        if let Some(seen) = input.seen.get_mut(column)
            && std::mem::replace(seen, input.objects) == input.objects
        {
            return Err(A::Error::custom(format_args!("feature {:?} is there twice", input.features.label(column))));
        }
        each!(&mut input.data, values => {
            let value = map
                .next_value_seed(Scalar(PhantomData))
                .map_err(|error| path.name(&input.features.label(column), error))?;
            if let Some(target) = values.get_mut(base + column) {
                *target = value;
            }
        });
        place += 1;
        next = map.next_key_seed(Key { names: &mut input.features, place, whole: None, what: "feature" })?.flatten();
    }
    if place < width {
        let missing = input.seen.iter().position(|seen| *seen != input.objects).unwrap_or(0);
        return Err(A::Error::custom(format_args!("feature {:?} is missing", input.features.label(missing))));
    }
    input.settle(1, width)
}

/// Columns by feature name; the first key is read.
fn feature_columns<'de, A: MapAccess<'de>>(
    input: &mut Input<'_>,
    path: &mut Path,
    first: Option<usize>,
    mut map: A,
) -> Result<(), A::Error> {
    let width = input.features.width();
    let mut columns: Vec<Option<Data>> = (0..width).map(|_| None).collect();
    let mut rows = None;
    let mut place = 0;
    let mut next = first;
    while let Some(index) = next {
        let name = input.features.label(index);
        let mut column = Data::with_capacity(input.spec.datatype, rows.unwrap_or(0));
        let length =
            map.next_value_seed(Column { data: &mut column, path }).map_err(|error| path.name(&name, error))?;
        if *rows.get_or_insert(length) != length {
            let expected = count(rows.unwrap_or(0), "value");
            let message = format!("feature {name:?} has {}, those before it have {expected}", count(length, "value"));
            return Err(A::Error::custom(message));
        }
        if let Some(target) = columns.get_mut(index)
            && target.replace(column).is_some()
        {
            return Err(A::Error::custom(format_args!("feature {name:?} is there twice")));
        }
        place += 1;
        next = map.next_key_seed(Key { names: &mut input.features, place, whole: None, what: "feature" })?.flatten();
    }
    if let Some(missing) = columns.iter().position(Option::is_none) {
        let name = input.features.label(missing);
        return Err(A::Error::custom(format_args!("feature {name:?} is missing")));
    }
    let rows = rows.unwrap_or(0);
    each!(&mut input.data, values => interleave(values, columns.into_iter().flatten(), rows));
    input.settle(1, width)?;
    input.settle(0, rows)
}

/// Columns, each of one value a row, to rows.
fn interleave<T: Element>(rows: &mut Vec<T>, columns: impl Iterator<Item = Data>, length: usize) {
    let mut columns: Vec<_> = columns.filter_map(T::buffer).map(Vec::into_iter).collect();
    for _ in 0..length {
        rows.extend(columns.iter_mut().filter_map(Iterator::next));
    }
}

/// One column by feature name: a list of values.
struct Column<'p> {
    data: &'p mut Data,
    path: &'p mut Path,
}

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {} values, one a row", self.data.datatype())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<usize, A::Error> {
        let read = each!(self.data, values => append(seq, values));
        read.map_err(|(index, error)| self.path.index(index, error))
    }
}
