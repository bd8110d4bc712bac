//! `ModelInfer`: tensors by name → the model's tensors → tensors by name.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hotserve_models::{Data, Dim, Tensor, TensorSpec};
use http::HeaderMap;
use tonic::{Code, Status};

use super::frame::{self, Deadline};
use super::proto::inference as pb;
use super::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::inference::model_infer_response::InferOutputTensor;
use super::scan::scan;
use super::status::bad;
use crate::http::Http;
use crate::http::body::Inputs;
use crate::http::inference;
use crate::http::min_version::MinVersion;
use crate::http::predict;
use crate::http::problem::Problem;
use crate::http::v2::infer::problem;
use crate::http::v2::models::chosen;
use crate::http::v2::request::{Error, UNSUPPORTED, assemble, place};
use crate::http::v2::wire::{self, Elements, WireType};
use crate::serving::ServedModel;
use crate::serving::layout::Lookup;

/// An answer on its way: the model that gave it, and the message in its frame.
pub(super) struct Inferred {
    pub(super) model: Arc<ServedModel>,
    pub(super) frame: Bytes,
}

/// What an answer needs to know of its question.
struct Question {
    id: String,
    /// The inputs came as bytes, and so do the outputs go.
    raw: bool,
    /// Which outputs, by their places in the signature.
    outputs: Vec<usize>,
}

/// Infers from a message.
pub(super) async fn infer(
    http: &Http,
    headers: &HeaderMap,
    deadline: Deadline,
    message: Bytes,
) -> Result<Inferred, Status> {
    let model = match scan(&message) {
        Ok(asked) => match MinVersion::of(headers, http) {
            Ok(wanted) => chosen(http, wanted, deadline.at, &asked.named()).await,
            Err(problem) => Err(problem),
        },
        Err(problem) => Err(problem),
    };
    let model = predict::counted(http, model)?;
    let question = Arc::new(OnceLock::new());
    let answered = Arc::clone(&question);
    let size = message.len();
    let parse = move |model: &ServedModel| {
        let (inputs, asked) = parse(model, message)?;
        // It is set once: a question is read once.
        let _ = question.set(asked);
        Ok(inputs)
    };
    let write = move |model: &ServedModel, outputs: &[Tensor], rows: usize| {
        answered.get().map(|question| frame::encode(&write(model, question, outputs, rows)))
    };
    let done = predict::counted(http, inference::run(http, &model, deadline.at, size, parse, write).await);
    let done = done.map_err(|problem| match Status::from(problem) {
        status if status.code() == Code::DeadlineExceeded => deadline.exceeded(),
        status => status,
    })?;
    let frame = done.answer.ok_or_else(Problem::internal)?;
    Ok(Inferred { model, frame })
}

/// Counts a message that could not be read, by its cause.
pub(super) fn counted(http: &Http, message: Result<Bytes, Status>) -> Result<Bytes, Status> {
    message.inspect_err(|status| {
        let code = status.metadata().get("x-error-code").and_then(|code| code.to_str().ok());
        let busy = status.code() == Code::Unavailable;
        predict::count(http, code.unwrap_or(if busy { "overloaded" } else { "bad_request" }));
    })
}

fn parse(model: &ServedModel, message: Bytes) -> Result<(Inputs, Question), Problem> {
    let asked: pb::ModelInferRequest =
        prost::Message::decode(message).map_err(|error| bad(format!("the message cannot be read: {error}")))?;
    let signature = model.model.signature();
    let of_inputs = asked.inputs.iter().map(|input| &input.parameters);
    let of_outputs = asked.outputs.iter().map(|output| &output.parameters);
    std::iter::once(&asked.parameters).chain(of_inputs).chain(of_outputs).try_for_each(supported)?;
    let (buffers, inputs) = (asked.raw_input_contents.len(), asked.inputs.len());
    let raw = buffers > 0;
    if raw && buffers != inputs {
        return Err(bad(format!(
            "there are {buffers} raw_input_contents for {inputs} inputs: each has one, or none has"
        )));
    }
    let outputs = selected(&asked.outputs, &signature.outputs, &model.layout.outputs)?;

    let mut buffers = asked.raw_input_contents.into_iter();
    let mut tensors: Vec<Option<Tensor>> = signature.inputs.iter().map(|_| None).collect();
    for input in asked.inputs {
        let buffer = buffers.next();
        let (index, spec) = place("input", &input.name, &signature.inputs, &model.layout.inputs).map_err(bad)?;
        let Some(target) = tensors.get_mut(index).filter(|target| target.is_none()) else {
            return Err(bad(format!("input {:?} is there twice", spec.name)));
        };
        *target = Some(tensor(input, buffer, spec)?);
    }
    let (tensors, rows) = assemble(tensors, signature).map_err(problem)?;
    Ok((Inputs { tensors, rows }, Question { id: asked.id, raw, outputs }))
}

/// One input, from its buffer or from its contents.
fn tensor(input: InferInputTensor, buffer: Option<Bytes>, spec: &TensorSpec) -> Result<Tensor, Problem> {
    let name = &spec.name;
    let datatype: WireType = input.datatype.parse().map_err(|error| bad(format!("input {name:?}: {error}")))?;
    let length = |length: &i64| usize::try_from(*length);
    let shape: Result<Vec<usize>, _> = input.shape.iter().map(length).collect();
    let shape = shape.map_err(|_| bad(format!("input {name:?}: shape {:?} has a negative length", input.shape)))?;
    let contents = input.contents.unwrap_or_default();
    let tensor = match buffer {
        Some(bytes) if contents == pb::InferTensorContents::default() => wire::from_raw(datatype, &shape, &bytes, spec),
        Some(_) => return Err(bad(format!("input {name:?} has contents, and raw_input_contents are there too"))),
        None => wire::from_elements(datatype, &shape, elements(name, datatype, contents)?, spec),
    };
    tensor.map_err(bad)
}

/// The elements of an input, which lie in the field of its datatype and in no other.
fn elements(name: &str, datatype: WireType, contents: pb::InferTensorContents) -> Result<Elements, Problem> {
    let pb::InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let filled = [
        ("bool_contents", bool_contents.is_empty()),
        ("int_contents", int_contents.is_empty()),
        ("int64_contents", int64_contents.is_empty()),
        ("uint_contents", uint_contents.is_empty()),
        ("uint64_contents", uint64_contents.is_empty()),
        ("fp32_contents", fp32_contents.is_empty()),
        ("fp64_contents", fp64_contents.is_empty()),
        ("bytes_contents", bytes_contents.is_empty()),
    ];
    let (field, elements) = match datatype {
        WireType::Bool => ("bool_contents", Elements::Bool(bool_contents)),
        WireType::Int8 | WireType::Int16 | WireType::Int32 => ("int_contents", Elements::Int(int_contents)),
        WireType::Int64 => ("int64_contents", Elements::Int64(int64_contents)),
        WireType::Uint8 | WireType::Uint16 | WireType::Uint32 => ("uint_contents", Elements::Uint(uint_contents)),
        WireType::Uint64 => ("uint64_contents", Elements::Uint64(uint64_contents)),
        WireType::Fp32 => ("fp32_contents", Elements::Fp32(fp32_contents)),
        WireType::Fp64 => ("fp64_contents", Elements::Fp64(fp64_contents)),
        WireType::Bytes => ("bytes_contents", Elements::Bytes(bytes_contents)),
        WireType::Fp16 | WireType::Bf16 => {
            return Err(bad(format!("input {name:?}: {datatype} has no typed contents: send raw_input_contents")));
        }
    };
    match filled.iter().find(|(other, empty)| !empty && *other != field) {
        None => Ok(elements),
        Some((other, _)) => Err(bad(format!("input {name:?}: {datatype} belongs into {field}, not into {other}"))),
    }
}

/// The places of the outputs that are asked for; all, where none is.
fn selected(asked: &[InferRequestedOutputTensor], specs: &[TensorSpec], names: &Lookup) -> Result<Vec<usize>, Problem> {
    if asked.is_empty() {
        return Ok((0..specs.len()).collect());
    }
    let mut places = Vec::new();
    for output in asked {
        let (index, spec) = place("output", &output.name, specs, names).map_err(bad)?;
        if places.contains(&index) {
            return Err(bad(format!("output {:?} is asked for twice", spec.name)));
        }
        places.push(index);
    }
    Ok(places)
}

/// Parameters that would change the answer are obeyed or refused; the others are hints.
fn supported(parameters: &BTreeMap<String, pb::InferParameter>) -> Result<(), Problem> {
    use pb::infer_parameter::ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam, Uint64Param};
    let says = |parameter: &pb::InferParameter| match &parameter.parameter_choice {
        None | Some(BoolParam(false) | Int64Param(0) | Uint64Param(0)) => false,
        Some(StringParam(text)) => !text.is_empty(),
        Some(DoubleParam(number)) => *number != 0.0,
        Some(BoolParam(true) | Int64Param(_) | Uint64Param(_)) => true,
    };
    match UNSUPPORTED.iter().find(|name| parameters.get(**name).is_some_and(says)) {
        None => Ok(()),
        Some(name) => Err(problem(Error::Unsupported(format!("the parameter {name:?} is not supported")))),
    }
}

fn write(model: &ServedModel, question: &Question, tensors: &[Tensor], rows: usize) -> pb::ModelInferResponse {
    let specs = &model.model.signature().outputs;
    let mut response = pb::ModelInferResponse {
        model_name: model.facts.name.to_string(),
        model_version: model.facts.rank.to_string(),
        id: question.id.clone(),
        ..Default::default()
    };
    for place in &question.outputs {
        let Some(spec) = specs.get(*place) else { continue };
        // Without rows the model was not asked.
        let tensor = if rows == 0 { None } else { tensors.get(*place) };
        let shape = match tensor {
            Some(tensor) => tensor.shape().iter().map(|length| i64::try_from(*length).unwrap_or(i64::MAX)).collect(),
            None => empty(spec),
        };
        let contents = (!question.raw).then(|| tensor.map_or_else(Default::default, contents));
        if question.raw {
            response.raw_output_contents.push(tensor.map_or_else(Bytes::new, |tensor| wire::to_raw(tensor).into()));
        }
        response.outputs.push(InferOutputTensor {
            name: spec.name.clone(),
            datatype: spec.datatype.to_string(),
            shape,
            parameters: BTreeMap::new(),
            contents,
        });
    }
    response
}

/// The shape of an output of no rows.
fn empty(spec: &TensorSpec) -> Vec<i64> {
    let length = |dim: &Dim| match dim {
        Dim::Any => 0,
        Dim::Fixed(length) => i64::try_from(*length).unwrap_or(i64::MAX),
    };
    spec.shape.iter().map(length).collect()
}

fn contents(tensor: &Tensor) -> pb::InferTensorContents {
    let mut contents = pb::InferTensorContents::default();
    match tensor.data() {
        Data::Bool(values) => contents.bool_contents.clone_from(values),
        Data::Int32(values) => contents.int_contents.clone_from(values),
        Data::Int64(values) => contents.int64_contents.clone_from(values),
        Data::Fp32(values) => contents.fp32_contents.clone_from(values),
        Data::Fp64(values) => contents.fp64_contents.clone_from(values),
        Data::Bytes(values) => contents.bytes_contents = values.iter().map(|text| text.clone().into_bytes()).collect(),
    }
    contents
}
