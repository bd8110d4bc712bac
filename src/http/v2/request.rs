//! An inference as it is asked for: JSON, then the bytes of the tensors that are not in it. Pure.
//!
//! ```text
//!   {"id", "parameters", "inputs": [{"name", "datatype", "shape", "parameters", "data"}], "outputs": [{"name", …}]}
//!   ++ the tensors that have a binary_data_size, in the order of "inputs"
//! ```
//!
//! The header `inference-header-content-length` says where the JSON ends; where it is 0 there is none, and the body is
//! the one tensor that the model takes. Fields that are not known are ignored, and null is as good as absent.

mod json;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use hotserve_models::{Dim, Signature, Tensor, TensorSpec};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use self::json::{List, OrNull, put, skip};
use super::data::{Read, Values};
use super::wire::{WireType, elements, from_raw, shown};
use crate::serving::layout::{Layout, Lookup};

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// The client's name for it.
    pub id: Option<String>,
    /// One tensor for each input of the model, in the signature's order.
    pub tensors: Vec<Tensor>,
    /// The length of their first axis.
    pub rows: usize,
    /// What is to be answered, in this order.
    pub outputs: Vec<Output>,
}

/// An output that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Which one of the signature.
    pub index: usize,
    /// Whether as bytes behind the JSON.
    pub binary: bool,
}

/// Why a body is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// A mistake of the client's.
    Bad(String),
    /// Something of the protocol that is not served here.
    Unsupported(String),
}

impl From<String> for Error {
    fn from(detail: String) -> Self {
        Self::Bad(detail)
    }
}

/// Reads a body for a model of this signature, which has this layout; `header` is the length of its JSON as the header
/// has it.
pub fn parse(body: &[u8], header: Option<&str>, signature: &Signature, layout: &Layout) -> Result<Request, Error> {
    let length = match header {
        None => body.len(),
        Some(text) => {
            let length = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<usize>().ok()).flatten();
            length.ok_or_else(|| format!("the header inference-header-content-length is {}, no length", shown(text)))?
        }
    };
    if length == 0 && header.is_some() {
        return raw(body, signature);
    }
    let size = body.len();
    let cut = || format!("the header inference-header-content-length says {length}, and the body has {size} bytes");
    let (json, mut rest) = body.split_at_checked(length).ok_or_else(cut)?;
    let context = Context::new(signature, layout, length);
    let mut reader = serde_json::Deserializer::from_slice(json);
    let read = Whole(&context).deserialize(&mut reader).and_then(|asked| reader.end().map(|()| asked));
    if let Some(what) = context.unsupported.take() {
        return Err(Error::Unsupported(format!("{what} is not supported")));
    }
    let asked = read.map_err(|error| match error.classify() {
        Category::Data => short(&error),
        Category::Io | Category::Syntax | Category::Eof => format!("the request is no JSON: {error}"),
    })?;

    let mut tensors: Vec<Option<Tensor>> = signature.inputs.iter().map(|_| None).collect();
    for Given { index, spec, datatype, shape, content } in
        asked.inputs.ok_or_else(|| "there are no inputs".to_owned())?
    {
        let name = &spec.name;
        let tensor = match content {
            Content::Values(values) => {
                elements(&shape, spec)?;
                values.fit(&shape, spec)?;
                Tensor::new(shape, values.data).map_err(|error| format!("input {name:?}: {error}"))?
            }
            Content::Binary(size) => {
                let left = rest.len();
                let cut =
                    || format!("input {name:?}: binary_data_size is {size}, and {left} bytes are left of the body");
                let part = usize::try_from(size).ok().and_then(|size| rest.split_at_checked(size)).ok_or_else(cut)?;
                rest = part.1;
                from_raw(datatype, &shape, part.0, spec)?
            }
        };
        if let Some(place) = tensors.get_mut(index) {
            *place = Some(tensor);
        }
    }
    if !rest.is_empty() {
        return Err(Error::Bad(format!("{} bytes are left behind the last tensor", rest.len())));
    }
    let (tensors, rows) = assemble(tensors, signature)?;
    let default = asked.binary.unwrap_or(false);
    let outputs = match asked.outputs.filter(|wanted| !wanted.is_empty()) {
        None => (0..signature.outputs.len()).map(|index| Output { index, binary: default }).collect(),
        Some(wanted) => {
            wanted.into_iter().map(|(index, own)| Output { index, binary: own.unwrap_or(default) }).collect()
        }
    };
    Ok(Request { id: asked.id, tensors, rows, outputs })
}

/// An error without all of a long text that it repeats.
fn short(error: &serde_json::Error) -> String {
    const SHOWN: usize = 400;
    let text = error.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => {
            let begun = text.get(..end).unwrap_or_default();
            format!("{begun}… at line {} column {}", error.line(), error.column())
        }
        None => text,
    }
}

/// A body that is nothing but the tensor of a model's only input. Text is one element, without a length before it.
fn raw(body: &[u8], signature: &Signature) -> Result<Request, Error> {
    let [spec] = signature.inputs.as_slice() else {
        let inputs = signature.inputs.len();
        return Err(Error::Bad(format!("a body without JSON is for models of one input, and this one has {inputs}")));
    };
    let name = &spec.name;
    let datatype: WireType = spec.datatype.as_str().parse()?;
    let tensor = match datatype.size() {
        None => {
            let shape = vec![1; spec.shape.len()];
            let length = u32::try_from(body.len()).map_err(|_| "the text is too long".to_owned())?;
            from_raw(datatype, &shape, &[&length.to_le_bytes(), body].concat(), spec)?
        }
        Some(size) => {
            let open = spec.shape.iter().skip(1).filter(|dim| matches!(dim, Dim::Any)).count();
            if open > 1 {
                let detail = format!("input {name:?} has several axes of any length: send JSON with its shape");
                return Err(Error::Bad(detail));
            }
            // The one length that is not fixed is what the body's size makes it: the row's, else the number of rows.
            let fixed = |dim: &Dim| if let Dim::Fixed(length) = dim { Some(*length) } else { None };
            let step = spec.shape.iter().filter_map(fixed).try_fold(size, |step, length| step.checked_mul(length));
            let length =
                step.filter(|step| *step > 0 && body.len().is_multiple_of(*step)).map(|step| body.len() / step);
            let length = length.ok_or_else(|| {
                format!("input {name:?}: {} bytes are no whole number of its {datatype} rows", body.len())
            })?;
            let first = if open == 1 { 1 } else { length };
            let inner = spec.shape.iter().skip(1).map(|dim| fixed(dim).unwrap_or(length));
            let shape: Vec<usize> = std::iter::once(first).chain(inner).collect();
            from_raw(datatype, &shape, body, spec)?
        }
    };
    let (tensors, rows) = assemble(vec![Some(tensor)], signature)?;
    let outputs = (0..signature.outputs.len()).map(|index| Output { index, binary: true }).collect();
    Ok(Request { id: None, tensors, rows, outputs })
}

/// All inputs of a model, and their number of rows; there is a place for each, in the signature's order.
pub fn assemble(tensors: Vec<Option<Tensor>>, signature: &Signature) -> Result<(Vec<Tensor>, usize), Error> {
    let named = tensors.into_iter().zip(&signature.inputs);
    let there = |(tensor, spec): (Option<Tensor>, &TensorSpec)| {
        tensor.ok_or_else(|| format!("input {:?} is missing ({})", spec.name, spec.datatype))
    };
    let tensors = named.map(there).collect::<Result<Vec<_>, _>>()?;
    let rows = signature.check_inputs(&tensors).map_err(|error| error.to_string())?;
    Ok((tensors, rows))
}

/// The place of an input or output, which is called `what`, by its name.
pub fn place<'s>(
    what: &str,
    name: &str,
    specs: &'s [TensorSpec],
    names: &Lookup,
) -> Result<(usize, &'s TensorSpec), String> {
    const SHOWN: usize = 20;
    names.exact(name).and_then(|index| Some((index, specs.get(index)?))).ok_or_else(|| {
        let known: Vec<_> = specs.iter().take(SHOWN).map(|spec| format!("{:?}", spec.name)).collect();
        let more = if specs.len() > SHOWN { ", …" } else { "" };
        format!("the model has no {what} {}; it has {}{more}", shown(name), known.join(", "))
    })
}

/// What every part of the JSON is read with.
struct Context<'s> {
    signature: &'s Signature,
    layout: &'s Layout,
    /// For how many elements room may still be made, in all inputs together: the text has no room for more.
    room: Cell<usize>,
    /// Which inputs have come.
    seen: RefCell<Vec<bool>>,
    /// What was asked for and is not served, if that is why reading ended.
    unsupported: RefCell<Option<String>>,
}

impl<'s> Context<'s> {
    /// For a text of so many bytes.
    fn new(signature: &'s Signature, layout: &'s Layout, length: usize) -> Self {
        Self {
            signature,
            layout,
            // An element takes two bytes at least.
            room: Cell::new(length / 2),
            seen: RefCell::new(vec![false; signature.inputs.len()]),
            unsupported: RefCell::new(None),
        }
    }

    /// For how many of so many elements room is made before they come. What a shape claims costs nothing by itself:
    /// all that is made in one text is bounded by its length.
    fn room(&self, claimed: usize) -> usize {
        let room = claimed.min(self.room.get());
        self.room.set(self.room.get() - room);
        room
    }

    /// The input of a name, which comes once.
    fn input(&self, name: &str) -> Result<(usize, &'s TensorSpec), String> {
        let (index, spec) = place("input", name, &self.signature.inputs, &self.layout.inputs)?;
        match self.seen.borrow_mut().get_mut(index).map(|seen| std::mem::replace(seen, true)) {
            Some(true) => Err(format!("input {:?} is there twice", spec.name)),
            _ => Ok((index, spec)),
        }
    }
}

/// The whole of the JSON.
#[derive(Default)]
struct Asked<'s> {
    id: Option<String>,
    binary: Option<bool>,
    inputs: Option<Vec<Given<'s>>>,
    outputs: Option<Vec<(usize, Option<bool>)>>,
}

struct Given<'s> {
    index: usize,
    spec: &'s TensorSpec,
    datatype: WireType,
    shape: Vec<usize>,
    content: Content,
}

enum Content {
    Values(Values),
    Binary(u64),
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Id,
    Parameters,
    Inputs,
    Outputs,
    Name,
    Datatype,
    Shape,
    Data,
    #[serde(other)]
    Other,
}

/// Declares what reads an object: as a seed, for a visitor of the same name.
macro_rules! object {
    ($seed:ident: $value:ty, $expecting:literal) => {
        impl<'de, 's> DeserializeSeed<'de> for $seed<'_, 's> {
            type Value = $value;

            fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<$value, D::Error> {
                json.deserialize_any(self)
            }
        }

        impl<'de, 's> Visitor<'de> for $seed<'_, 's> {
            type Value = $value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expecting)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$value, A::Error> {
                self.read(map)
            }
        }
    };
}

/// Reads the whole.
struct Whole<'c, 's>(&'c Context<'s>);
object!(Whole: Asked<'s>, "a request, {\"inputs\": […]}");

impl<'s> Whole<'_, 's> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Asked<'s>, A::Error> {
        let mut asked = Asked::default();
        while let Some(field) = map.next_key()? {
            match field {
                Field::Id => put(&mut asked.id, map.next_value()?, "id")?,
                Field::Parameters => {
                    let parameters = map.next_value_seed(OrNull(Parameters(self.0)))?.unwrap_or_default();
                    put(&mut asked.binary, parameters.binary_output, "binary_data_output")?;
                }
                Field::Inputs => put(&mut asked.inputs, map.next_value_seed(List("inputs", Input(self.0)))?, "inputs")?,
                Field::Outputs => {
                    put(&mut asked.outputs, map.next_value_seed(List("outputs", Wanted(self.0)))?, "outputs")?;
                }
                Field::Name | Field::Datatype | Field::Shape | Field::Data | Field::Other => skip(&mut map)?,
            }
        }
        if let Some(outputs) = &asked.outputs {
            let mut seen = HashSet::new();
            if let Some((index, _)) = outputs.iter().find(|(index, _)| !seen.insert(*index)) {
                let name = self.0.signature.outputs.get(*index).map(|spec| spec.name.as_str()).unwrap_or_default();
                return Err(A::Error::custom(format_args!("output {name:?} is asked for twice")));
            }
        }
        Ok(asked)
    }
}

/// Reads an input.
#[derive(Clone, Copy)]
struct Input<'c, 's>(&'c Context<'s>);
object!(Input: Given<'s>, "an input, {\"name\", \"datatype\", \"shape\", \"data\"}");

impl<'s> Input<'_, 's> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Given<'s>, A::Error> {
        let (mut found, mut datatype, mut shape, mut values, mut size) = (None, None, None, None, None);
        // Data that come before it is known what they are.
        let mut early: Option<&RawValue> = None;
        while let Some(field) = map.next_key()? {
            match field {
                Field::Name => {
                    let name: String = map.next_value()?;
                    put(&mut found, Some(self.0.input(&name).map_err(A::Error::custom)?), "name")?;
                }
                Field::Datatype => {
                    let text: String = map.next_value()?;
                    put(&mut datatype, Some(text.parse::<WireType>().map_err(A::Error::custom)?), "datatype")?;
                }
                Field::Shape => put(&mut shape, map.next_value()?, "shape")?,
                Field::Parameters => {
                    let parameters = map.next_value_seed(OrNull(Parameters(self.0)))?.unwrap_or_default();
                    put(&mut size, parameters.size, "binary_data_size")?;
                }
                Field::Data => match (found, datatype) {
                    (Some((_, spec)), Some(datatype)) if early.is_none() => {
                        let read = self.elements(spec, datatype, shape.as_ref())?;
                        put(&mut values, map.next_value_seed(OrNull(read))?, "data")?;
                    }
                    _ => put(&mut early, map.next_value()?, "data")?,
                },
                Field::Id | Field::Inputs | Field::Outputs | Field::Other => skip(&mut map)?,
            }
        }
        let lacks = |what: &str| match found {
            Some((_, spec)) => A::Error::custom(format_args!("input {:?} has no {what}", spec.name)),
            None => A::Error::custom(format_args!("an input has no {what}")),
        };
        let (index, spec) = found.ok_or_else(|| lacks("name"))?;
        let datatype = datatype.ok_or_else(|| lacks("datatype"))?;
        let shape = shape.ok_or_else(|| lacks("shape"))?;
        if let Some(early) = early.filter(|early| early.get() != "null") {
            let read = self.elements(spec, datatype, Some(&shape))?;
            let late = read.deserialize(&mut serde_json::Deserializer::from_str(early.get()));
            put(&mut values, Some(late.map_err(A::Error::custom)?), "data")?;
        }
        let content = match (values, size) {
            (Some(values), None) => Content::Values(values),
            (None, Some(size)) => Content::Binary(size),
            (Some(_), Some(_)) => {
                let detail = format_args!("input {:?} has both data and a binary_data_size", spec.name);
                return Err(A::Error::custom(detail));
            }
            (None, None) => return Err(lacks("data, and no binary_data_size")),
        };
        Ok(Given { index, spec, datatype, shape, content })
    }

    /// What reads its elements, for which there is room as far as the text can hold them.
    fn elements<E: serde::de::Error>(
        &self,
        spec: &'s TensorSpec,
        datatype: WireType,
        shape: Option<&Vec<usize>>,
    ) -> Result<Read<'s>, E> {
        datatype.fits(spec).map_err(E::custom)?;
        let claimed = shape.map_or(Ok(0), |shape| elements(shape, spec)).map_err(E::custom)?;
        Ok(Read { spec, datatype, room: self.0.room(claimed) })
    }
}

/// Reads which output is asked for.
#[derive(Clone, Copy)]
struct Wanted<'c, 's>(&'c Context<'s>);
object!(Wanted: (usize, Option<bool>), "an output, {\"name\"}");

impl Wanted<'_, '_> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<(usize, Option<bool>), A::Error> {
        let (mut index, mut binary) = (None, None);
        while let Some(field) = map.next_key()? {
            match field {
                Field::Name => {
                    let name: String = map.next_value()?;
                    let Context { signature, layout, .. } = self.0;
                    let found = place("output", &name, &signature.outputs, &layout.outputs);
                    let (at, _) = found.map_err(A::Error::custom)?;
                    put(&mut index, Some(at), "name")?;
                }
                Field::Parameters => {
                    let parameters = map.next_value_seed(OrNull(Parameters(self.0)))?.unwrap_or_default();
                    put(&mut binary, parameters.binary, "binary_data")?;
                }
                _ => skip(&mut map)?,
            }
        }
        Ok((index.ok_or_else(|| A::Error::custom("an output has no name"))?, binary))
    }
}

/// The parameters that say something here.
#[derive(Default)]
struct Said {
    size: Option<u64>,
    binary: Option<bool>,
    binary_output: Option<bool>,
}

/// Reads parameters, of which most are nobody's business here.
struct Parameters<'c, 's>(&'c Context<'s>);
object!(Parameters: Said, "parameters, {\"name\": value}");

impl Parameters<'_, '_> {
    fn read<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<Said, A::Error> {
        let mut said = Said::default();
        while let Some(Name(name)) = map.next_key()? {
            match name {
                Some("binary_data_size") => said.size = map.next_value()?,
                Some("binary_data") => said.binary = map.next_value()?,
                Some("binary_data_output") => said.binary_output = map.next_value()?,
                Some(reserved) => {
                    let value: &RawValue = map.next_value()?;
                    if !matches!(value.get(), "null" | "false" | "0" | "\"\"") {
                        *self.0.unsupported.borrow_mut() = Some(format!("the parameter {reserved:?}"));
                        return Err(A::Error::custom("it is not supported"));
                    }
                }
                None => skip(&mut map)?,
            }
        }
        Ok(said)
    }
}

/// What parameters may not ask for: answers would be wrong in silence.
pub const UNSUPPORTED: [&str; 5] =
    ["sequence_id", "sequence_start", "sequence_end", "shared_memory_region", "classification"];

/// The name of a parameter, if it says something.
struct Name(Option<&'static str>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Known;

        impl Visitor<'_> for Known {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a parameter")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Name, E> {
                let known = ["binary_data_size", "binary_data", "binary_data_output"].into_iter().chain(UNSUPPORTED);
                Ok(Name(known.into_iter().find(|known| *known == name)))
            }
        }

        json.deserialize_str(Known)
    }
}

#[cfg(test)]
mod tests;
