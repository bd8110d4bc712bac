//! A table: its columns are named once, and its rows are values only.
//!
//! The columns may come in any order. They are those of the model's one input, or, where it has several, one for each
//! input. Whose columns have no names takes them by their position, whatever they are called, for there is nothing else
//! to go by; columns that are numbered, as pandas does where nobody names them, are taken by their numbers.

use std::fmt;
use std::marker::PhantomData;

use hotserve_models::{Data, Dim, TensorSpec};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use super::element::{Element, Scalar, append, count, each, quoted};
use super::input::{Input, Value};
use super::names::{Path, instead, label};
use crate::serving::layout::{Layout, Lookup, number};

/// Where the columns of a table belong.
pub(super) struct Table {
    /// For each column as it comes: the column of the one input, or the input.
    targets: Vec<usize>,
    /// The targets are inputs: a value is a row of its input.
    pub(super) whole: bool,
    /// The columns come in the order of the model's.
    in_order: bool,
}

impl Table {
    /// The columns in the model's order.
    pub(super) fn in_order(width: usize, whole: bool) -> Self {
        Self { targets: (0..width).collect(), whole, in_order: true }
    }

    pub(super) fn width(&self) -> usize {
        self.targets.len()
    }

    pub(super) fn targets(&self) -> &[usize] {
        &self.targets
    }

    /// A step into a row: the name of a column, as the model calls it.
    pub(super) fn step<E>(&self, inputs: &[Input<'_>], at: usize, path: &mut Path, error: E) -> E {
        let target = self.targets.get(at).copied().unwrap_or(at);
        let name = match inputs {
            [input] if !self.whole => input.features.get(target),
            _ => inputs.get(target).map(|input| input.spec.name.as_str()),
        };
        match name {
            Some(name) => path.name(name, error),
            None => path.index(at, error),
        }
    }
}

/// The columns on their way to a table.
pub(super) struct Header<'s> {
    /// The names that they may have.
    names: &'s Lookup,
    /// The model's only input.
    sole: Option<&'s TensorSpec>,
    targets: Vec<usize>,
    /// Which of the names have come.
    seen: Vec<bool>,
    whole: bool,
}

impl<'s> Header<'s> {
    pub(super) fn new(layout: &'s Layout, sole: Option<&'s TensorSpec>) -> Self {
        let names = match (sole, layout.features.first()) {
            (Some(_), Some(features)) => features,
            _ => &layout.inputs,
        };
        Self { names, sole, targets: Vec::new(), seen: vec![false; names.names().len()], whole: sole.is_none() }
    }

    pub(super) fn add(&mut self, column: &str) -> Result<(), String> {
        if let Some(spec) = self.sole.filter(|_| self.names.names().is_empty()) {
            return self.add_to_nameless(spec, column);
        }
        let Some(target) = self.names.find(column) else {
            return Err(format!("unknown column {}, {}", quoted(column), instead(self.names.names(), column)));
        };
        if self.seen.get_mut(target).is_some_and(|seen| std::mem::replace(seen, true)) {
            return Err(format!("column {:?} is there twice", label(self.names, target)));
        }
        self.targets.push(target);
        Ok(())
    }

    /// The same, where the first line may be one of values too: there numbers are columns only if they count up from 0.
    pub(super) fn add_in_text(&mut self, column: &str) -> Result<(), String> {
        let counts_up = number(column).is_none_or(|number| number == self.targets.len());
        let is_name = || self.names.exact(column).is_some() || self.sole.is_some_and(|spec| spec.name == column);
        if counts_up || is_name() {
            return self.add(column);
        }
        Err(format!("expected the name of a column, got the number {}", quoted(column)))
    }

    /// A column for an input whose columns have no names.
    fn add_to_nameless(&mut self, spec: &TensorSpec, column: &str) -> Result<(), String> {
        let several = spec.shape.len() > 1 && spec.shape.get(1) != Some(&Dim::Fixed(1));
        if several && column == spec.name && self.targets.is_empty() {
            self.whole = true;
        } else if self.whole {
            return Err(format!("the model takes one column, {:?}, not {} too", spec.name, quoted(column)));
        } else if number(column).is_none() && column.parse::<f64>().is_ok_and(f64::is_finite) {
            return Err(format!("expected the name of a column, got the number {}", quoted(column)));
        }
        self.targets.push(number(column).unwrap_or(self.targets.len()));
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Table, String> {
        let (names, width) = (self.names, self.targets.len());
        match self.sole.filter(|_| names.names().is_empty()) {
            None => {
                if let Some(missing) = self.seen.iter().position(|seen| !seen) {
                    return Err(format!("column {:?} is missing", label(names, missing)));
                }
            }
            Some(_) if self.whole => self.targets = vec![0],
            Some(spec) => {
                let expected = match spec.shape.as_slice() {
                    [_] => Some(1),
                    [_, Dim::Any] => None,
                    [_, Dim::Fixed(width)] => Some(*width),
                    _ => {
                        return Err(format!(
                            "the model takes one column, {:?}, with a nested list in a row",
                            spec.name
                        ));
                    }
                };
                if let Some(expected) = expected.filter(|expected| *expected != width) {
                    return Err(format!("the model takes {}, not {width}", count(expected, "column")));
                }
                let mut seen = vec![false; width];
                for target in &self.targets {
                    match seen.get_mut(*target).map(|seen| std::mem::replace(seen, true)) {
                        Some(false) => {}
                        Some(true) => return Err(format!("column {target} is there twice")),
                        None => return Err(format!("there is no column {target} among {}", count(width, "column"))),
                    }
                }
            }
        }
        let in_order = self.targets.iter().enumerate().all(|(at, target)| at == *target);
        Ok(Table { targets: self.targets, whole: self.whole, in_order })
    }
}

/// A field of a table.
#[derive(Clone, Copy)]
pub(super) enum Split {
    Columns,
    Data,
    /// What pandas numbers or calls its rows, and what it calls those names.
    Ignored,
}

pub(super) struct SplitName;

impl<'de> DeserializeSeed<'de> for SplitName {
    type Value = Split;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Split, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for SplitName {
    type Value = Split;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"columns\" or \"data\"")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Split, E> {
        match name {
            "columns" => Ok(Split::Columns),
            "data" => Ok(Split::Data),
            "index" | "index_names" | "column_names" => Ok(Split::Ignored),
            _ => Err(E::custom(format_args!("unknown field {}, expected \"columns\" and \"data\"", quoted(name)))),
        }
    }
}

/// `"columns"`: the list of names.
pub(super) struct Columns<'p, 's> {
    pub(super) header: Header<'s>,
    pub(super) path: &'p mut Path,
}

impl<'de> DeserializeSeed<'de> for Columns<'_, '_> {
    type Value = Table;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Table, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Columns<'_, '_> {
    type Value = Table;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of the names of columns")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Table, A::Error> {
        let Self { mut header, path } = self;
        let mut at = 0;
        while seq.next_element_seed(Column(&mut header)).map_err(|error| path.index(at, error))?.is_some() {
            at += 1;
        }
        header.finish().map_err(A::Error::custom)
    }
}

/// One name, or the number that pandas gives where there is none.
struct Column<'h, 's>(&'h mut Header<'s>);

impl<'de> DeserializeSeed<'de> for Column<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Column<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a column")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<(), E> {
        self.0.add(name).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.visit_str(&number.to_string())
    }
}

/// `"data"`: the list of rows.
pub(super) struct Rows<'p, 's> {
    table: &'p Table,
    inputs: &'p mut [Input<'s>],
    path: &'p mut Path,
}

impl<'p, 's> Rows<'p, 's> {
    pub(super) fn new(table: &'p Table, inputs: &'p mut [Input<'s>], path: &'p mut Path) -> Self {
        Self { table, inputs, path }
    }
}

impl<'de> DeserializeSeed<'de> for Rows<'_, '_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_, '_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<usize, A::Error> {
        let Self { table, inputs, path } = self;
        let mut rows = 0;
        while seq
            .next_element_seed(Row { table, inputs: &mut *inputs, path: &mut *path })
            .map_err(|error| path.index(rows, error))?
            .is_some()
        {
            rows += 1;
        }
        settle(table, inputs, rows)?;
        Ok(rows)
    }
}

/// Notes how many rows there were, and how wide they are.
pub(super) fn settle<E: serde::de::Error>(table: &Table, inputs: &mut [Input<'_>], rows: usize) -> Result<(), E> {
    for input in inputs {
        input.rows = rows;
        if !table.whole && !input.is_scalar(1) {
            input.settle(1, table.width())?;
        }
    }
    Ok(())
}

/// One row: a list of values, one a column.
struct Row<'p, 's> {
    table: &'p Table,
    inputs: &'p mut [Input<'s>],
    path: &'p mut Path,
}

impl<'de> DeserializeSeed<'de> for Row<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}, one a column", count(self.table.width(), "value"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { table, inputs, path } = self;
        let read = match &mut *inputs {
            [input] if !table.whole => {
                each!(&mut input.data, values => {
                    if table.in_order { append(&mut seq, values) } else { scatter(&mut seq, values, &table.targets) }
                })
            }
            inputs => deal(&mut seq, inputs, path, table),
        };
        let mut length = read.map_err(|(at, error)| table.step(inputs, at, path, error))?;
        if length == table.width() {
            while seq.next_element::<IgnoredAny>()?.is_some() {
                length += 1;
            }
        }
        if length == table.width() { Ok(()) } else { Err(A::Error::custom(wrong_length(table.width(), length))) }
    }
}

pub(super) fn wrong_length(expected: usize, got: usize) -> String {
    format!("expected {}, one a column, got {got}", count(expected, "value"))
}

/// Reads values to their places in a new row, and answers how many; an error comes with its index.
fn scatter<'de, T: Element, A: SeqAccess<'de>>(
    seq: &mut A,
    values: &mut Vec<T>,
    targets: &[usize],
) -> Result<usize, (usize, A::Error)> {
    let base = values.len();
    values.resize(base + targets.len(), T::EMPTY);
    for (at, target) in targets.iter().enumerate() {
        match seq.next_element_seed(Scalar(PhantomData)) {
            Ok(Some(value)) => {
                if let Some(slot) = values.get_mut(base + target) {
                    *slot = value;
                }
            }
            Ok(None) => return Ok(at),
            Err(error) => return Err((at, error)),
        }
    }
    Ok(targets.len())
}

/// Deals values out to the inputs.
fn deal<'de, A: SeqAccess<'de>>(
    seq: &mut A,
    inputs: &mut [Input<'_>],
    path: &mut Path,
    table: &Table,
) -> Result<usize, (usize, A::Error)> {
    for (at, target) in table.targets.iter().enumerate() {
        let Some(input) = inputs.get_mut(*target) else { continue };
        match seq.next_element_seed(Value { input, path: &mut *path, axis: 1, outer: false }) {
            Ok(Some(())) => {}
            Ok(None) => return Ok(at),
            Err(error) => return Err((at, error)),
        }
    }
    Ok(table.width())
}

/// Values that are texts have one place each.
pub(super) fn holds_texts(table: &Table, inputs: &[Input<'_>]) -> Result<(), String> {
    match inputs.iter().find(|input| table.whole && !input.is_column()) {
        Some(input) => Err(format!("input {:?} takes a list in a row, and a text has no lists", input.spec.name)),
        None => Ok(()),
    }
}
