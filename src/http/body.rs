//! The body of a prediction: bytes to typed tensors in one pass, directed by the model's signature.
//!
//! ```text
//!   {"instances": [ROW, …]}     ROW     a list by position, an object by feature name, a bare value for a shape of
//!                                       [-1]; an object by input name where the model has several inputs
//!   {"inputs": COLUMNS}         COLUMNS an object by input name, each with the row as its first axis; an object of
//!                                       lists by feature name; the bare nested list of a single input
//! ```
//!
//! No value tree is built: each number goes from the text to its tensor. An error says where it is as a path into the
//! body, counted from 0 as the client's own arrays are, and where it is in the text.

use std::fmt::{self, Write as _};
use std::marker::PhantomData;

use hotserve_models::{Data, DataType, Dim, Signature, Tensor, TensorSpec};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

/// The inputs of a model, checked against its signature.
#[derive(Debug)]
pub(super) struct Inputs {
    /// One tensor for each input, in the signature's order.
    pub(super) tensors: Vec<Tensor>,
    /// The length of their first axis.
    pub(super) rows: usize,
}

/// Why a body is no input of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Error {
    /// It is not JSON.
    Syntax(String),
    /// It is JSON, and does not fit the model.
    Mismatch(String),
}

/// Reads a body for a model of this signature.
pub(super) fn parse(body: &[u8], signature: &Signature) -> Result<Inputs, Error> {
    if body.is_empty() {
        return Err(Error::Syntax("the body is empty".to_owned()));
    }
    // A number in a list takes some 8 bytes of text; a wrong guess costs a few reallocations.
    let guess = if signature.inputs.len() == 1 { body.len() / 8 } else { 0 };
    let sole = signature.inputs.len() == 1;
    let mut parser = Parser {
        inputs: signature.inputs.iter().map(|spec| Input::new(spec, sole, guess)).collect(),
        names: None,
        path: Path::default(),
        rows: 0,
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    json.deserialize_any(&mut parser).and_then(|()| json.end()).map_err(|error| match error.classify() {
        Category::Data => Error::Mismatch(format!("{}{error}", parser.place())),
        Category::Io | Category::Syntax | Category::Eof => Error::Syntax(error.to_string()),
    })?;
    parser.finish(signature).map_err(Error::Mismatch)
}

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
struct Input<'s> {
    spec: &'s TensorSpec,
    /// The names of the columns, where each column has one.
    features: Names<'s>,
    /// The model has no other input.
    sole: bool,
    data: Data,
    rows: usize,
    /// The length of each axis, as far as the signature or the rows so far fix it.
    lengths: Vec<Option<usize>>,
    /// The form of the rows so far.
    form: Option<Form>,
    /// For each column the last object, counted from 1, that had it.
    seen: Vec<usize>,
    objects: usize,
}

impl<'s> Input<'s> {
    fn new(spec: &'s TensorSpec, sole: bool, capacity: usize) -> Self {
        let width = match spec.shape.as_slice() {
            [_, Dim::Fixed(width)] => *width == spec.features.len(),
            [_, Dim::Any] => true,
            _ => false,
        };
        let features: &[String] = if width { &spec.features } else { &[] };
        let fixed = |dim: &Dim| match dim {
            Dim::Fixed(length) => Some(*length),
            Dim::Any => None,
        };
        Self {
            spec,
            features: Names::new(features.iter().map(String::as_str)),
            sole,
            data: Data::with_capacity(spec.datatype, capacity),
            rows: 0,
            lengths: spec.shape.iter().map(fixed).collect(),
            form: None,
            seen: Vec::new(),
            objects: 0,
        }
    }

    fn is_scalar(&self, axis: usize) -> bool {
        axis >= self.spec.shape.len()
    }

    fn is_leaf(&self, axis: usize) -> bool {
        axis + 1 >= self.spec.shape.len()
    }

    /// Notes the length of a list along an axis; all lists along it are of one length.
    fn settle<E: serde::de::Error>(&mut self, axis: usize, length: usize) -> Result<(), E> {
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
        let or = if axis == 1 && !self.features.is_empty() { " or an object by feature name" } else { "" };
        let of = if length.is_empty() { format!(" of {of}") } else { format!("{length} {of}") };
        format!("a list{of}{or}")
    }

    fn mismatch<E: serde::de::Error>(&self, axis: usize, got: impl fmt::Display) -> E {
        E::custom(format_args!("expected {}, got {got}", self.expected(axis)))
    }
}

/// Names by position, and positions by name.
struct Names<'s> {
    names: Vec<&'s str>,
    /// By name; made when the guess first fails.
    sorted: Vec<(&'s str, usize)>,
    /// Which name came at which place of the last object: clients write every row in the same order.
    order: Vec<usize>,
}

impl<'s> Names<'s> {
    fn new(names: impl Iterator<Item = &'s str>) -> Self {
        let names: Vec<_> = names.collect();
        Self { order: (0..names.len()).collect(), names, sorted: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    fn len(&self) -> usize {
        self.names.len()
    }

    fn get(&self, index: usize) -> Option<&'s str> {
        self.names.get(index).copied()
    }

    fn find(&mut self, place: usize, name: &str) -> Option<usize> {
        if let Some(guess) = self.order.get(place).copied()
            && self.get(guess) == Some(name)
        {
            return Some(guess);
        }
        if self.sorted.is_empty() {
            self.sorted = self.names.iter().enumerate().map(|(index, name)| (*name, index)).collect();
            self.sorted.sort_unstable();
        }
        let at = self.sorted.binary_search_by(|(candidate, _)| (*candidate).cmp(name)).ok()?;
        let found = self.sorted.get(at).map(|(_, index)| *index)?;
        if let Some(guess) = self.order.get_mut(place) {
            *guess = found;
        }
        Some(found)
    }

    /// The names for a person, not all of very many.
    fn list(&self) -> String {
        list(&self.names)
    }
}

/// Names for a person, not all of very many.
pub(super) fn list(names: &[&str]) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more", names.len() - SHOWN);
    }
    text
}

/// Where an error happened, innermost step first: filled as it passes outwards, so that it costs nothing otherwise.
#[derive(Default)]
struct Path {
    root: Option<&'static str>,
    steps: Vec<String>,
}

impl Path {
    fn index<E>(&mut self, index: usize, error: E) -> E {
        self.steps.push(format!("[{index}]"));
        error
    }

    /// A column of a row: its position, and its name if it has one.
    fn column<E>(&mut self, index: usize, name: Option<&str>, error: E) -> E {
        match name {
            Some(name) => self.steps.push(format!("[{index}] ({name:?})")),
            None => self.steps.push(format!("[{index}]")),
        }
        error
    }

    fn name<E>(&mut self, name: Option<&str>, error: E) -> E {
        self.steps.push(format!("[{:?}]", name.unwrap_or_default()));
        error
    }
}

struct Parser<'s> {
    inputs: Vec<Input<'s>>,
    /// The names of the inputs; made when an object by input name is first met.
    names: Option<Names<'s>>,
    path: Path,
    rows: usize,
}

impl<'s> Parser<'s> {
    /// Where the error is, as a prefix of its message.
    fn place(&self) -> String {
        let Some(root) = self.path.root else { return String::new() };
        let steps: String = self.path.steps.iter().rev().map(String::as_str).collect();
        format!("{root}{steps}: ")
    }

    fn finish(self, signature: &Signature) -> Result<Inputs, String> {
        let root = self.path.root.unwrap_or_default();
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for input in self.inputs {
            if input.rows != self.rows {
                let (name, rows) = (&input.spec.name, count(self.rows, "row"));
                return Err(format!("{root}[{name:?}]: has {}, the others have {rows}", count(input.rows, "row")));
            }
            let mut shape: Vec<usize> = input.lengths.iter().map(|length| length.unwrap_or(0)).collect();
            if let Some(first) = shape.first_mut() {
                *first = input.rows;
            }
            tensors.push(Tensor::new(shape, input.data).map_err(|error| format!("{root}: {error}"))?);
        }
        signature.check_inputs(&tensors).map_err(|error| format!("{root}: {error}"))?;
        Ok(Inputs { tensors, rows: self.rows })
    }

    fn begin<E: serde::de::Error>(&mut self, root: &'static str) -> Result<(), E> {
        if let Some(before) = self.path.root {
            self.path.root = None;
            return Err(E::custom(format_args!(
                "{}: give the rows once, as \"instances\" or as \"inputs\"",
                if before == root { "the field is there twice" } else { "both fields are there" }
            )));
        }
        self.path.root = Some(root);
        Ok(())
    }

    fn split(&mut self) -> (&mut [Input<'s>], &mut Names<'s>, &mut Path) {
        let names = self.inputs.iter().map(|input| input.spec.name.as_str());
        let names = self.names.get_or_insert_with(|| Names::new(names));
        (&mut self.inputs, names, &mut self.path)
    }
}

/// The whole body.
impl<'de> Visitor<'de> for &mut Parser<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with \"instances\" or \"inputs\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key_seed(FieldName)? {
            match field {
                Field::Instances => {
                    self.begin("instances")?;
                    map.next_value_seed(Instances(self))?;
                }
                Field::Inputs => {
                    self.begin("inputs")?;
                    map.next_value_seed(Batch(self))?;
                }
                Field::Ignored => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match self.path.root {
            Some(_) => Ok(()),
            None => Err(A::Error::custom("there is neither \"instances\" nor \"inputs\"")),
        }
    }
}

enum Field {
    Instances,
    Inputs,
    Ignored,
}

struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Field;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Field, E> {
        match name {
            "instances" => Ok(Field::Instances),
            "inputs" => Ok(Field::Inputs),
            // What other servers' clients send along; nothing here depends on them.
            "signature_name" | "id" | "parameters" => Ok(Field::Ignored),
            _ => Err(E::custom(format_args!("unknown field {}, expected \"instances\" or \"inputs\"", quoted(name)))),
        }
    }
}

/// `"instances"`: the list of rows.
struct Instances<'p, 's>(&'p mut Parser<'s>);

impl<'de> DeserializeSeed<'de> for Instances<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Instances<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let parser = self.0;
        let mut row = 0;
        loop {
            let next = match parser.inputs.as_mut_slice() {
                [input] => seq.next_element_seed(Value { input, path: &mut parser.path, axis: 1, outer: true }),
                _ => seq.next_element_seed(NamedRow { parser, row }),
            };
            match next {
                Ok(Some(())) => row += 1,
                Ok(None) => break,
                Err(error) => return Err(parser.path.index(row, error)),
            }
        }
        parser.rows = row;
        parser.inputs.iter_mut().for_each(|input| input.rows = row);
        Ok(())
    }
}

/// A row of a model with several inputs: an object by input name.
struct NamedRow<'p, 's> {
    parser: &'p mut Parser<'s>,
    row: usize,
}

impl<'de> DeserializeSeed<'de> for NamedRow<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NamedRow<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object by input name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (inputs, names, path) = self.parser.split();
        let mut place = 0;
        while let Some(index) = map.next_key_seed(Key { names, place, whole: None, what: "input" })? {
            let Some(input) = index.and_then(|index| inputs.get_mut(index)) else { continue };
            let name = input.spec.name.as_str();
            if input.rows > self.row {
                return Err(A::Error::custom(format_args!("input {name:?} is there twice")));
            }
            map.next_value_seed(Value { input, path, axis: 1, outer: true })
                .map_err(|error| path.name(Some(name), error))?;
            input.rows += 1;
            place += 1;
        }
        match inputs.iter().find(|input| input.rows == self.row) {
            Some(input) => Err(A::Error::custom(format_args!("input {:?} is missing", input.spec.name))),
            None => Ok(()),
        }
    }
}

/// `"inputs"`: everything with the row as its first axis.
struct Batch<'p, 's>(&'p mut Parser<'s>);

impl<'de> DeserializeSeed<'de> for Batch<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let parser = self.0;
        match parser.inputs.as_mut_slice() {
            [input] => {
                Value { input, path: &mut parser.path, axis: 0, outer: true }.deserialize(deserializer)?;
            }
            _ => deserializer.deserialize_any(NamedBatch(parser))?,
        }
        parser.rows = parser.inputs.first().map_or(0, |input| input.rows);
        Ok(())
    }
}

/// The columns of a model with several inputs: an object by input name.
struct NamedBatch<'p, 's>(&'p mut Parser<'s>);

impl<'de> Visitor<'de> for NamedBatch<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object by input name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (inputs, names, path) = self.0.split();
        let mut given = vec![false; inputs.len()];
        let mut place = 0;
        while let Some(index) = map.next_key_seed(Key { names, place, whole: None, what: "input" })? {
            let Some(index) = index else { continue };
            let (Some(input), Some(given)) = (inputs.get_mut(index), given.get_mut(index)) else { continue };
            let name = input.spec.name.as_str();
            if std::mem::replace(given, true) {
                return Err(A::Error::custom(format_args!("input {name:?} is there twice")));
            }
            map.next_value_seed(Value { input, path, axis: 0, outer: true })
                .map_err(|error| path.name(Some(name), error))?;
            place += 1;
        }
        match given.iter().position(|given| !given) {
            Some(index) => {
                Err(A::Error::custom(format_args!("input {:?} is missing", names.get(index).unwrap_or_default())))
            }
            None => Ok(()),
        }
    }
}

/// A key of an object by name: the index of its name, or nothing for the name of the whole input.
struct Key<'a, 's> {
    names: &'a mut Names<'s>,
    place: usize,
    whole: Option<&'s str>,
    what: &'static str,
}

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name of an {}", self.what)
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Option<usize>, E> {
        if let Some(index) = self.names.find(self.place, name) {
            return Ok(Some(index));
        }
        if self.whole == Some(name) {
            return Ok(None);
        }
        let known = match self.whole {
            Some(whole) if self.names.is_empty() => list(&[whole]),
            _ => self.names.list(),
        };
        Err(E::custom(format_args!("unknown {} {}, the model takes {known}", self.what, quoted(name))))
    }
}

/// What lies at one axis of one input: a list along it, an object by name, or behind the last axis a value.
struct Value<'p, 's> {
    input: &'p mut Input<'s>,
    path: &'p mut Path,
    axis: usize,
    /// Not within a list of the same row: the place where the row's form shows.
    outer: bool,
}

impl Value<'_, '_> {
    fn bare<E: serde::de::Error>(&mut self) -> Result<(), E> {
        if self.outer && self.axis == 1 { self.input.take_form(Form::Bare) } else { Ok(()) }
    }
}

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
pub(super) use each;

/// Appends a value that the text had where a list may be, or not.
macro_rules! scalar {
    ($self:ident, $got:expr, $convert:expr) => {{
        $self.bare()?;
        if !$self.input.is_scalar($self.axis) {
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
        let by_feature = axis <= 1 && !input.features.is_empty();
        if whole.is_none() && !by_feature {
            return Err(input.mismatch(axis, "an object"));
        }
        let what = if by_feature { "feature" } else { "input" };
        let first = map.next_key_seed(Key { names: &mut input.features, place: 0, whole, what })?;
        match first {
            Some(None) => {
                if outer && axis == 1 {
                    input.take_form(Form::Named)?;
                }
                let name = input.spec.name.as_str();
                map.next_value_seed(Value { input, path, axis, outer: false })
                    .map_err(|error| path.name(Some(name), error))?;
                match map.next_key::<IgnoredAny>()? {
                    Some(_) => Err(A::Error::custom(format_args!("the model takes no input besides {name:?}"))),
                    None => Ok(()),
                }
            }
            None if !by_feature => Err(A::Error::custom(format_args!("input {:?} is missing", input.spec.name))),
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
    let (width, base) = (input.features.len(), input.data.len());
    each!(&mut input.data, values => values.resize(base + width, Element::EMPTY));
    input.seen.resize(width, 0);
    input.objects += 1;
    let mut place = 0;
    let mut next = first;
    while let Some(column) = next {
        let name = input.features.get(column);
        if let Some(seen) = input.seen.get_mut(column)
            && std::mem::replace(seen, input.objects) == input.objects
        {
            return Err(A::Error::custom(format_args!("feature {:?} is there twice", name.unwrap_or_default())));
        }
        each!(&mut input.data, values => {
            let value = map.next_value_seed(Scalar(PhantomData)).map_err(|error| path.name(name, error))?;
            if let Some(target) = values.get_mut(base + column) {
                *target = value;
            }
        });
        place += 1;
        next = map.next_key_seed(Key { names: &mut input.features, place, whole: None, what: "feature" })?.flatten();
    }
    if place < width {
        let missing = input.seen.iter().position(|seen| *seen != input.objects).and_then(|at| input.features.get(at));
        return Err(A::Error::custom(format_args!("feature {:?} is missing", missing.unwrap_or_default())));
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
    let width = input.features.len();
    let mut columns: Vec<Option<Data>> = (0..width).map(|_| None).collect();
    let mut rows = None;
    let mut place = 0;
    let mut next = first;
    while let Some(index) = next {
        let name = input.features.get(index);
        let mut column = Data::with_capacity(input.spec.datatype, rows.unwrap_or(0));
        let length = map.next_value_seed(Column { data: &mut column, path }).map_err(|error| path.name(name, error))?;
        if *rows.get_or_insert(length) != length {
            let (expected, name) = (count(rows.unwrap_or(0), "value"), name.unwrap_or_default());
            let message = format!("feature {name:?} has {}, those before it have {expected}", count(length, "value"));
            return Err(A::Error::custom(message));
        }
        if let Some(target) = columns.get_mut(index)
            && target.replace(column).is_some()
        {
            return Err(A::Error::custom(format_args!("feature {:?} is there twice", name.unwrap_or_default())));
        }
        place += 1;
        next = map.next_key_seed(Key { names: &mut input.features, place, whole: None, what: "feature" })?.flatten();
    }
    if let Some(missing) = columns.iter().position(Option::is_none) {
        let name = input.features.get(missing).unwrap_or_default();
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

/// Appends a list of values, and answers how many; an error comes with its index.
fn append<'de, T: Element, A: SeqAccess<'de>>(mut seq: A, values: &mut Vec<T>) -> Result<usize, (usize, A::Error)> {
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
struct Scalar<T>(PhantomData<T>);

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
trait Element: Sized + Clone {
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

    fn read<E: serde::de::Error>(value: Option<Self>, got: impl fmt::Display) -> Result<Self, E> {
        value.ok_or_else(|| E::custom(format_args!("expected {}, got {got}", expected(Self::DATATYPE))))
    }
}

/// Declares an element: its datatype, its buffer, its placeholder, and its conversions.
macro_rules! element {
    ($type:ty, $datatype:ident, $empty:expr, $($conversion:item),* $(,)?) => {
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

element!(
    bool,
    Bool,
    false,
    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
);
element!(
    i32,
    Int32,
    0,
    fn from_u64(value: u64) -> Option<Self> {
        value.try_into().ok()
    },
    fn from_i64(value: i64) -> Option<Self> {
        value.try_into().ok()
    }
);
element!(
    i64,
    Int64,
    0,
    fn from_u64(value: u64) -> Option<Self> {
        value.try_into().ok()
    },
    fn from_i64(value: i64) -> Option<Self> {
        Some(value)
    }
);
element!(
    f32,
    Fp32,
    f32::NAN,
    fn from_u64(value: u64) -> Option<Self> {
        Some(value as f32)
    },
    fn from_i64(value: i64) -> Option<Self> {
        Some(value as f32)
    },
    fn from_f64(value: f64) -> Option<Self> {
        // JSON has no infinity: one that arises here is a number too large, and would be answered wrongly.
        Some(value as f32).filter(|value| value.is_finite())
    },
    fn from_null() -> Option<Self> {
        Some(f32::NAN)
    }
);
element!(
    f64,
    Fp64,
    f64::NAN,
    fn from_u64(value: u64) -> Option<Self> {
        Some(value as f64)
    },
    fn from_i64(value: i64) -> Option<Self> {
        Some(value as f64)
    },
    fn from_f64(value: f64) -> Option<Self> {
        Some(value)
    },
    fn from_null() -> Option<Self> {
        Some(f64::NAN)
    }
);
element!(
    String,
    Bytes,
    String::new(),
    fn from_text(value: &str) -> Option<Self> {
        Some(value.to_owned())
    }
);

fn expected(datatype: DataType) -> &'static str {
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
fn quoted(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
