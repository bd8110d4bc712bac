//! The body of a prediction: bytes to typed tensors in one pass, directed by the model's signature.
//!
//! ```text
//!   {"instances": [ROW, …]}      ROW     a list by position, an object by feature name, a bare value for a shape of
//!                                        [-1] or [-1, 1]; an object by input name where the model has several inputs
//!   {"inputs": COLUMNS}          COLUMNS an object by input name, each with the row as its first axis; an object of
//!                                        lists by feature name; the bare nested list of a single input
//!   {"dataframe_split": TABLE}   TABLE   {"columns": [NAME, …], "data": [[VALUE, …], …]}, with an "index" or without
//!   {"dataframe_records": [ROW, …]}
//!   TABLE, [ROW, …]              what pandas writes, and nothing around it
//! ```
//!
//! and CSV, which [`csv`] reads. In a table, the columns are found [by their names](table).
//!
//! No value tree is built: each number goes from the text to its tensor. An error says where it is as a path into the
//! body, counted from 0 as the client's own arrays are, and where it is in the text.

pub(super) mod csv;
mod element;
mod input;
mod names;
mod nan;
pub(super) mod plain;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;

use hotserve_models::{Signature, Tensor};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;

use crate::serving::layout::Layout;
pub(super) use element::each;
use element::{count, quoted};
use input::{Input, Value};
pub(super) use names::list;
use names::{Key, Names, Path};
use table::{Header, Rows, Split, Table};

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
    /// It is not JSON, or not CSV where it should be.
    Syntax(String),
    /// It can be read, and does not fit the model.
    Mismatch(String),
}

/// Reads a body for a model of this signature, which has this layout.
pub(super) fn parse(body: &[u8], signature: &Signature, layout: &Layout) -> Result<Inputs, Error> {
    if body.is_empty() {
        return Err(Error::Syntax("the body is empty".to_owned()));
    }
    let read = |body: &[u8]| {
        let mut parser = Parser::new(signature, layout, body.len());
        parser.read(body)?;
        if parser.data_first {
            // Now that the columns are known, the rows can be read.
            parser = Parser { table: parser.table, ..Parser::new(signature, layout, body.len()) };
            parser.read(body)?;
        }
        parser.finish(signature).map_err(Error::Mismatch)
    };
    match read(body) {
        Err(Error::Syntax(why)) => match nan::to_null(body) {
            Some(text) => read(&text.body).map_err(|error| text.mend(error)),
            None => Err(Error::Syntax(why)),
        },
        done => done,
    }
}

struct Parser<'s> {
    layout: &'s Layout,
    inputs: Vec<Input<'s>>,
    /// The names of the inputs.
    names: Names<'s>,
    path: Path,
    /// The field that has the rows.
    began: Option<&'static str>,
    rows: usize,
    /// Where the columns belong, once they are known.
    table: Option<Table>,
    /// There were columns in this pass.
    columns: bool,
    /// Rows came before their columns, and were passed over.
    data_first: bool,
}

impl<'s> Parser<'s> {
    fn new(signature: &'s Signature, layout: &'s Layout, size: usize) -> Self {
        // A number in a list takes some 8 bytes of text; a wrong guess costs a few reallocations.
        let (guess, sole) = if signature.inputs.len() == 1 { (size / 8, true) } else { (0, false) };
        let inputs = signature.inputs.iter().zip(&layout.features);
        Self {
            layout,
            inputs: inputs.map(|(spec, features)| Input::new(spec, features, sole, guess)).collect(),
            names: Names::new(&layout.inputs),
            path: Path::default(),
            began: None,
            rows: 0,
            table: None,
            columns: false,
            data_first: false,
        }
    }

    fn read(&mut self, body: &[u8]) -> Result<(), Error> {
        let mut json = serde_json::Deserializer::from_slice(body);
        json.deserialize_any(&mut *self).and_then(|()| json.end()).map_err(|error| match error.classify() {
            Category::Data => Error::Mismatch(format!("{}{error}", self.path)),
            Category::Io | Category::Syntax | Category::Eof => Error::Syntax(error.to_string()),
        })
    }

    fn finish(self, signature: &Signature) -> Result<Inputs, String> {
        let root = self.began.unwrap_or_default();
        let place = Path { root: Some(root), ..Path::default() };
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
            tensors.push(Tensor::new(shape, input.data).map_err(|error| format!("{place}{error}"))?);
        }
        let rows = signature.check_inputs(&tensors).map_err(|error| format!("{place}{error}"))?;
        if rows != self.rows {
            return Err(format!("{place}the model takes {}, not {}", count(rows, "row"), self.rows));
        }
        Ok(Inputs { tensors, rows })
    }

    /// Begins with the rows; what fails from now on fails there.
    fn begin<E: serde::de::Error>(&mut self, root: &'static str) -> Result<(), E> {
        if let Some(before) = self.began {
            let what = if before == root { "there is the same field twice" } else { "there are two fields of rows" };
            return Err(E::custom(format_args!("{what}: give the rows once")));
        }
        self.began = Some(root);
        self.path.root = Some(root);
        Ok(())
    }

    /// One field of a table.
    fn split_field<'de, A: MapAccess<'de>>(&mut self, field: Split, map: &mut A, bare: bool) -> Result<(), A::Error> {
        match field {
            Split::Columns => {
                if std::mem::replace(&mut self.columns, true) {
                    return Err(A::Error::custom("\"columns\" is there twice"));
                }
                if self.table.is_some() {
                    return map.next_value::<IgnoredAny>().map(drop);
                }
                self.path.root = Some(if bare { "columns" } else { "dataframe_split.columns" });
                let spec = match self.inputs.as_slice() {
                    [input] => Some(input.spec),
                    _ => None,
                };
                let header = Header::new(self.layout, spec);
                self.table = Some(map.next_value_seed(table::Columns { header, path: &mut self.path })?);
            }
            Split::Data => {
                self.begin(if bare { "data" } else { "dataframe_split.data" })?;
                match &self.table {
                    None => {
                        self.data_first = true;
                        map.next_value::<IgnoredAny>()?;
                    }
                    Some(table) => {
                        self.rows = map.next_value_seed(Rows::new(table, &mut self.inputs, &mut self.path))?;
                    }
                }
            }
            Split::Ignored => {
                map.next_value::<IgnoredAny>()?;
            }
        }
        self.path.root = None;
        Ok(())
    }

    /// Both fields of a table are there.
    fn end_split<E: serde::de::Error>(&self) -> Result<(), E> {
        match (self.columns, self.began) {
            (true, Some("data" | "dataframe_split.data")) => Ok(()),
            (false, _) => Err(E::custom("there is no \"columns\" beside \"data\"")),
            (true, _) => Err(E::custom("there is no \"data\" beside \"columns\"")),
        }
    }
}

const EXPECTED: &str = "an object with \"instances\", \"inputs\", \"dataframe_split\" or \"dataframe_records\"";

/// The whole body.
impl<'de> Visitor<'de> for &mut Parser<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        self.begin("")?;
        Instances(self).visit_seq(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut bare = false;
        while let Some(field) = map.next_key_seed(FieldName)? {
            match field {
                Field::Rows(name) => {
                    self.begin(name)?;
                    map.next_value_seed(Instances(self))?;
                }
                Field::Inputs => {
                    self.begin("inputs")?;
                    map.next_value_seed(Batch(self))?;
                }
                Field::Split => map.next_value_seed(SplitObject(self))?,
                Field::Bare(field) => {
                    bare |= !matches!(field, Split::Ignored);
                    self.split_field(field, &mut map, true)?;
                }
                Field::Params => {
                    self.path.root = Some("params");
                    map.next_value_seed(NoParams)?;
                }
                Field::Ignored => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            self.path.root = None;
        }
        match self.began {
            _ if bare => self.end_split(),
            Some(_) => Ok(()),
            None => Err(A::Error::custom(format_args!("there are no rows, expected {EXPECTED}"))),
        }
    }
}

enum Field {
    /// A list of rows, under this name.
    Rows(&'static str),
    Inputs,
    Split,
    /// A field of a table that has nothing around it.
    Bare(Split),
    Params,
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
            "instances" => Ok(Field::Rows("instances")),
            "dataframe_records" => Ok(Field::Rows("dataframe_records")),
            "inputs" => Ok(Field::Inputs),
            "dataframe_split" => Ok(Field::Split),
            "columns" => Ok(Field::Bare(Split::Columns)),
            "data" => Ok(Field::Bare(Split::Data)),
            "index" => Ok(Field::Bare(Split::Ignored)),
            "params" => Ok(Field::Params),
            // What other servers' clients send along; nothing here depends on them.
            "signature_name" | "id" | "parameters" => Ok(Field::Ignored),
            _ => Err(E::custom(format_args!("unknown field {}, expected {EXPECTED}", quoted(name)))),
        }
    }
}

/// MLflow's `"params"`. To predict without what was asked for would be to answer something else, so none is passed over.
struct NoParams;

impl<'de> DeserializeSeed<'de> for NoParams {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NoParams {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no parameters: the model takes none")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match map.next_key::<String>()? {
            None => Ok(()),
            Some(name) => Err(A::Error::custom(format_args!("{}: the model takes no parameters", quoted(&name)))),
        }
    }
}

/// `"dataframe_split"`: a table.
struct SplitObject<'p, 's>(&'p mut Parser<'s>);

impl<'de> DeserializeSeed<'de> for SplitObject<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.0.path.root = Some("dataframe_split");
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SplitObject<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with \"columns\" and \"data\"")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let parser = self.0;
        while let Some(field) = map.next_key_seed(table::SplitName)? {
            parser.split_field(field, &mut map, false)?;
            parser.path.root = Some("dataframe_split");
        }
        parser.end_split()
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
        let Parser { inputs, names, path, .. } = self.parser;
        let mut place = 0;
        while let Some(index) = map.next_key_seed(Key { names, place, whole: None, what: "input" })? {
            let Some(input) = index.and_then(|index| inputs.get_mut(index)) else { continue };
            let name = input.spec.name.as_str();
            if input.rows > self.row {
                return Err(A::Error::custom(format_args!("input {name:?} is there twice")));
            }
            map.next_value_seed(Value { input, path, axis: 1, outer: true }).map_err(|error| path.name(name, error))?;
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
        let Parser { inputs, names, path, .. } = self.0;
        let mut given = vec![false; inputs.len()];
        let mut place = 0;
        while let Some(index) = map.next_key_seed(Key { names, place, whole: None, what: "input" })? {
            let Some(index) = index else { continue };
            let (Some(input), Some(given)) = (inputs.get_mut(index), given.get_mut(index)) else { continue };
            let name = input.spec.name.as_str();
            if std::mem::replace(given, true) {
                return Err(A::Error::custom(format_args!("input {name:?} is there twice")));
            }
            map.next_value_seed(Value { input, path, axis: 0, outer: true }).map_err(|error| path.name(name, error))?;
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
