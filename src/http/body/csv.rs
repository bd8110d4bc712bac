//! CSV as RFC 4180 has it: a line of names, then a line a row; `header=absent` where there are no names.
//!
//! An empty value, `NaN`, `NA` or `null` is a missing number. A first column without a name is the index that pandas
//! writes, and is passed over. Lines end in LF or CRLF, and empty ones are none.

use std::borrow::Cow;

use hotserve_models::{Data, Signature, TensorSpec};
use http::{HeaderMap, header};

use super::element::{Element, each, in_text, quoted};
use super::input::Input;
use super::names::Path;
use super::table::{Header, Table, holds_texts, settle, wrong_length};
use super::{Error, Inputs, Parser};
use crate::serving::layout::Layout;

/// Whether there is a line of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Names {
    Present,
    Absent,
}

/// How a body is CSV, if its content type says that it is.
pub(in crate::http) fn announced(headers: &HeaderMap) -> Option<Names> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let mut parts = value.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("text/csv") {
        return None;
    }
    let absent = parts.any(|part| part.eq_ignore_ascii_case("header=absent"));
    Some(if absent { Names::Absent } else { Names::Present })
}

/// Reads a body for a model of this signature, which has this layout.
pub(in crate::http) fn parse(
    body: &[u8],
    names: Names,
    signature: &Signature,
    layout: &Layout,
) -> Result<Inputs, Error> {
    let text = std::str::from_utf8(body).map_err(|error| Error::Syntax(error.to_string()))?;
    let mut parser = Parser::new(signature, layout, body.len());
    parser.began = Some("csv");
    let mut lines = Lines::new(text.strip_prefix('\u{feff}').unwrap_or(text));
    let (table, index) = match names {
        Names::Present => named(&mut lines, Header::new(layout, sole(&signature.inputs)))?,
        Names::Absent => (positions(&lines, signature, layout)?, false),
    };
    holds_texts(&table, &parser.inputs).map_err(|why| Error::Mismatch(format!("csv: {why}")))?;
    while lines.more() {
        let (row, line) = (parser.rows, lines.line);
        let read = Row { lines: &mut lines, table: &table, index }.read(&mut parser.inputs);
        parser.rows += 1;
        read.map_err(|fault| fault.told(&table, &parser.inputs, row, line))?;
    }
    settle::<serde_json::Error>(&table, &mut parser.inputs, parser.rows)
        .map_err(|error| Error::Mismatch(format!("csv: {error}")))?;
    parser.finish(signature).map_err(Error::Mismatch)
}

fn sole(inputs: &[TensorSpec]) -> Option<&TensorSpec> {
    match inputs {
        [input] => Some(input),
        _ => None,
    }
}

/// The columns by the first line's names, and whether the first of them is an index.
fn named(lines: &mut Lines<'_>, mut header: Header<'_>) -> Result<(Table, bool), Error> {
    if !lines.more() {
        return Err(Error::Syntax("there is no line of names".to_owned()));
    }
    let line = lines.line;
    let wrong = |why: String| {
        let hint = "; a text without a line of names is text/csv; header=absent";
        Error::Mismatch(format!("csv: {why} at line {line}{hint}"))
    };
    let (mut at, mut index) = (0, false);
    loop {
        let (name, end) = lines.value()?;
        if at == 0 && name.is_empty() && end == End::Value {
            index = true;
        } else {
            header.add_in_text(&name).map_err(wrong)?;
        }
        at += 1;
        if end == End::Line {
            return Ok((header.finish().map_err(wrong)?, index));
        }
    }
}

/// The columns by their positions.
fn positions(lines: &Lines<'_>, signature: &Signature, layout: &Layout) -> Result<Table, Error> {
    let [spec] = signature.inputs.as_slice() else { return Ok(Table::in_order(layout.inputs.width(), true)) };
    let width = match (spec.shape.len(), layout.features.first().map_or(0, |features| features.width())) {
        (..=1, _) => 1,
        (2, 0) => lines.clone().width()?,
        (2, width) => width,
        _ => return Ok(Table::in_order(1, true)),
    };
    Ok(Table::in_order(width, false))
}

/// One row on its way into the inputs.
struct Row<'r, 'b> {
    lines: &'r mut Lines<'b>,
    table: &'r Table,
    /// The first value is no column of the model's.
    index: bool,
}

/// What is wrong with a row.
enum Fault {
    Syntax(Error),
    /// So many values.
    Length(usize),
    /// A value that does not fit, and which it is.
    Value(usize, String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Syntax(error)
    }
}

impl Fault {
    fn told(self, table: &Table, inputs: &[Input<'_>], row: usize, line: usize) -> Error {
        let mut path = Path { root: Some("csv"), ..Path::default() };
        let why = match self {
            Self::Syntax(error) => return error,
            Self::Length(got) => wrong_length(table.width(), got),
            Self::Value(at, why) => table.step(inputs, at, &mut path, why),
        };
        let why = path.index(row, why);
        Error::Mismatch(format!("{path}{why} at line {line}"))
    }
}

impl Row<'_, '_> {
    fn read(mut self, inputs: &mut [Input<'_>]) -> Result<(), Fault> {
        let length = match inputs {
            [input] if !self.table.whole => each!(&mut input.data, values => self.scatter(values))?,
            inputs => self.deal(inputs)?,
        };
        if length == self.table.width() { Ok(()) } else { Err(Fault::Length(length)) }
    }

    /// Reads values to their places in a new row, and answers how many.
    fn scatter<T: Element>(&mut self, values: &mut Vec<T>) -> Result<usize, Fault> {
        let base = values.len();
        values.resize(base + self.table.width(), T::EMPTY);
        let targets = self.table.targets();
        self.each(|at, text| {
            if let Some(slot) = targets.get(at).and_then(|target| values.get_mut(base + target)) {
                *slot = in_text(text)?;
            }
            Ok(())
        })
    }

    /// Deals values out to the inputs.
    fn deal(&mut self, inputs: &mut [Input<'_>]) -> Result<usize, Fault> {
        let targets = self.table.targets();
        self.each(|at, text| {
            if let Some(input) = targets.get(at).and_then(|target| inputs.get_mut(*target)) {
                each!(&mut input.data, values => values.push(in_text(text)?));
            }
            Ok(())
        })
    }

    /// Takes the values of a row, and answers how many there are.
    fn each(&mut self, mut take: impl FnMut(usize, &str) -> Result<(), String>) -> Result<usize, Fault> {
        let mut at = 0;
        let mut index = self.index;
        loop {
            let (value, end) = self.lines.value()?;
            if std::mem::take(&mut index) {
                if end == End::Line {
                    return Ok(0);
                }
                continue;
            }
            take(at, &value).map_err(|why| Fault::Value(at, why))?;
            at += 1;
            if end == End::Line {
                return Ok(at);
            }
        }
    }
}

/// What ends a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// A comma.
    Value,
    /// The end of the line, or of everything.
    Line,
}

/// What is left of the text.
#[derive(Clone)]
struct Lines<'b> {
    rest: &'b str,
    /// The line that comes next, counted from 1.
    line: usize,
}

impl<'b> Lines<'b> {
    fn new(text: &'b str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// Whether another line with something in it comes; empty ones are passed over.
    fn more(&mut self) -> bool {
        while let Some(rest) = self.rest.strip_prefix('\n').or_else(|| self.rest.strip_prefix("\r\n")) {
            self.rest = rest;
            self.line += 1;
        }
        !self.rest.is_empty()
    }

    /// How many values the next line has.
    fn width(mut self) -> Result<usize, Error> {
        let mut width = 0;
        if self.more() {
            loop {
                width += 1;
                if self.value()?.1 == End::Line {
                    break;
                }
            }
        }
        Ok(width)
    }

    fn value(&mut self) -> Result<(Cow<'b, str>, End), Error> {
        if let Some(rest) = self.rest.strip_prefix('"') {
            self.rest = rest;
            return self.quoted();
        }
        let end = self.rest.bytes().position(|byte| matches!(byte, b',' | b'\n' | b'"')).unwrap_or(self.rest.len());
        let (value, rest) = self.rest.split_at(end);
        if rest.starts_with('"') {
            let (line, value) = (self.line, quoted(value));
            return Err(Error::Syntax(format!("a quote stands within the value that begins {value}, line {line}")));
        }
        self.rest = rest;
        let value = if rest.starts_with('\n') { value.strip_suffix('\r').unwrap_or(value) } else { value };
        Ok((Cow::Borrowed(value), self.end().unwrap_or(End::Line)))
    }

    /// A value in quotes; the first is read.
    fn quoted(&mut self) -> Result<(Cow<'b, str>, End), Error> {
        let begin = self.line;
        let mut value = Cow::Borrowed("");
        loop {
            let Some((part, rest)) = self.rest.split_once('"') else {
                return Err(Error::Syntax(format!("the quote is not closed that is opened in line {begin}")));
            };
            self.line += part.bytes().filter(|byte| *byte == b'\n').count();
            self.rest = rest;
            if value.is_empty() {
                value = Cow::Borrowed(part);
            } else {
                value.to_mut().push_str(part);
            }
            // Two of them are one that is meant.
            match self.rest.strip_prefix('"') {
                Some(rest) => {
                    self.rest = rest;
                    value.to_mut().push('"');
                }
                None => break,
            }
        }
        match self.end() {
            Some(end) => Ok((value, end)),
            None => Err(Error::Syntax(format!("there is text behind a closing quote, line {}", self.line))),
        }
    }

    /// Steps over what ends a value.
    fn end(&mut self) -> Option<End> {
        let (rest, end) = if let Some(rest) = self.rest.strip_prefix(',') {
            (rest, End::Value)
        } else if let Some(rest) = self.rest.strip_prefix('\n').or_else(|| self.rest.strip_prefix("\r\n")) {
            self.line += 1;
            (rest, End::Line)
        } else if self.rest.is_empty() {
            ("", End::Line)
        } else {
            return None;
        };
        self.rest = rest;
        Some(end)
    }
}
