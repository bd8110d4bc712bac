//! The graph as a list of steps over numbered slots. Names are gone, constants are folded, and every operator has been
//! built for the types and widths that it meets: each is tried, as it is built, on a few made-up rows.

use std::collections::HashMap;

use super::proto::{Node, element, tensor_value};
use super::value::{Buf, Fault, Shape, Slice, Text, Value, malformed, unsupported};
use super::{glue, ml, proto};
use crate::{DataType, Dim, TensorSpec};

/// Rows of the trial: no axis of a graph is likely to be as long by chance, and the batch must not matter.
pub(super) const TRIAL_ROWS: usize = 7;

/// How many elements all tensors of the trial may have: a short file must not unfold into gigabytes.
const TRIAL_ELEMENTS: usize = 1 << 22;

/// How many elements a tensor may have: rows are answered by blocks, so that a batch unfolds into no more. What a row
/// unfolds into is found out in the trial; only shapes that are data could ask for more.
pub(super) const BLOCK_ELEMENTS: usize = 1 << 22;

/// How many elements the operators of the trial may read, all together: nor may it take minutes.
const TRIAL_READS: usize = 1 << 27;

/// An operator, built for what it meets in its graph.
pub(super) trait Op: Send + Sync {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault>;

    /// Bytes of memory that it holds.
    fn memory_bytes(&self) -> usize {
        size_of_val(self)
    }
}

/// What an operator answers: classifiers a label and scores, all others one tensor.
pub(super) enum Outputs<'a> {
    One(Value<'a>),
    Two(Value<'a>, Value<'a>),
}

impl<'a> From<Value<'a>> for Outputs<'a> {
    fn from(value: Value<'a>) -> Self {
        Self::One(value)
    }
}

/// Where an input comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// It is left out.
    None,
    Constant(usize),
    /// A slot, and whether nobody reads it later.
    Slot(usize, bool),
}

/// The inputs of one step.
pub(super) struct Args<'r, 'a> {
    sources: &'a [Source],
    slots: &'r mut [Option<Value<'a>>],
    constants: &'a [Value<'static>],
    /// How many elements a tensor may have.
    pub(super) limit: usize,
    /// Made-up values are no fault of theirs.
    pub(super) trial: bool,
}

impl<'a> Args<'_, 'a> {
    pub(super) fn opt(&self, at: usize) -> Option<&Value<'a>> {
        match *self.sources.get(at)? {
            Source::None => None,
            Source::Constant(constant) => self.constants.get(constant),
            Source::Slot(slot, _) => self.slots.get(slot)?.as_ref(),
        }
    }

    pub(super) fn get(&self, at: usize) -> Result<&Value<'a>, Fault> {
        self.opt(at).ok_or_else(|| malformed(format!("input {at} is missing")))
    }

    /// The input itself where nobody else reads it, a copy otherwise.
    pub(super) fn take(&mut self, at: usize) -> Result<Value<'a>, Fault> {
        if let Some(Source::Slot(slot, true)) = self.sources.get(at)
            && let Some(value) = self.slots.get_mut(*slot).and_then(Option::take)
        {
            return Ok(value);
        }
        match self.sources.get(at) {
            Some(Source::Constant(constant)) => self.constants.get(*constant).map(Value::borrow),
            _ => self.opt(at).cloned(),
        }
        .ok_or_else(|| malformed(format!("input {at} is missing")))
    }

    /// Whether the input is the file's, and no caller's.
    pub(super) fn is_constant(&self, at: usize) -> bool {
        matches!(self.sources.get(at), Some(Source::Constant(_)))
    }

    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }
}

/// What is known of an input when its operator is built.
#[derive(Clone, Copy)]
pub(super) struct Known<'v> {
    /// A made-up value of the right type and shape, or the constant itself.
    pub(super) value: &'v Value<'static>,
    constant: bool,
}

/// A node with what is known of its inputs.
pub(super) struct Site<'n, 'v> {
    pub(super) node: &'n Node<'n>,
    /// The version of the node's domain.
    pub(super) version: i64,
    pub(super) inputs: Vec<Option<Known<'v>>>,
}

impl<'v> Site<'_, 'v> {
    pub(super) fn input(&self, at: usize) -> Result<&'v Value<'static>, Fault> {
        let input = self.inputs.get(at).copied().flatten();
        Ok(input.ok_or_else(|| malformed(format!("input {at} is missing")))?.value)
    }

    /// The input, if it is there: it must be a constant.
    pub(super) fn constant(&self, at: usize) -> Result<Option<&'v Value<'static>>, Fault> {
        match self.inputs.get(at).copied().flatten() {
            None => Ok(None),
            Some(Known { value, constant: true }) => Ok(Some(value)),
            Some(_) => Err(unsupported(format!("input {at} that is no constant"))),
        }
    }

    /// A constant list of integers, if it is there.
    pub(super) fn ints(&self, at: usize) -> Result<Option<Vec<i64>>, Fault> {
        match self.constant(at)?.map(|value| &value.buf) {
            None => Ok(None),
            Some(Buf::I64(ints)) => Ok(Some(ints.to_vec())),
            Some(Buf::I32(ints)) => Ok(Some(ints.iter().map(|int| i64::from(*int)).collect())),
            Some(other) => Err(malformed(format!("input {at} is {}, not int64", other.type_name()))),
        }
    }
}

struct Step {
    op: Box<dyn Op>,
    sources: Vec<Source>,
    /// The slots of the outputs that somebody reads.
    outputs: [Option<usize>; 2],
    /// For messages.
    name: String,
}

/// A graph, ready to run.
pub(super) struct Plan {
    steps: Vec<Step>,
    constants: Vec<Value<'static>>,
    slots: usize,
    /// Where the outputs are.
    outputs: Vec<Source>,
    /// Elements a row of the widest tensor.
    widest: usize,
}

/// A plan with what it takes and gives.
pub(super) struct Planned {
    pub(super) plan: Plan,
    pub(super) inputs: Vec<TensorSpec>,
    pub(super) outputs: Vec<TensorSpec>,
}

/// The nodes' operators that are not served, each with the name of its node, once per operator.
///
/// Another engine may serve them; what else is refused, [`plan`] says.
pub(crate) fn lacking(model: &proto::Model<'_>) -> Vec<String> {
    let mut seen = Vec::new();
    let mut lacking = Vec::new();
    for node in &model.graph.nodes {
        let operator = (node.domain, node.op_type);
        let known = match node.domain {
            "" => glue::OPERATORS.contains(&node.op_type),
            "ai.onnx.ml" => node.op_type == "ZipMap" || ml::OPERATORS.contains(&node.op_type),
            _ => false,
        };
        if !known && !seen.contains(&operator) {
            seen.push(operator);
            lacking.push(node.describe());
        }
    }
    lacking
}

#[derive(Default)]
struct Planner<'f> {
    steps: Vec<Step>,
    constants: Vec<Value<'static>>,
    /// The made-up value in each slot.
    samples: Vec<Value<'static>>,
    names: HashMap<&'f str, Source>,
    /// What ZipMap would have made a map of: the value's name, and its keys.
    zipped: HashMap<&'f str, (Source, Vec<String>)>,
    elements: usize,
    reads: usize,
}

pub(super) fn plan(model: &proto::Model<'_>) -> Result<Planned, Fault> {
    let mut planner = Planner::default();
    let graph = &model.graph;
    for bytes in &graph.initializers {
        let (name, value) = tensor_value(bytes)?;
        let constant = planner.constant(value);
        planner.define(name, constant)?;
    }
    let mut inputs = Vec::new();
    for info in graph.inputs.iter().filter(|info| !info.name.is_empty()) {
        // Older files list the initializers among the inputs.
        if planner.names.contains_key(info.name) {
            continue;
        }
        let spec = input_spec(info)?;
        let sample = made_up(&spec, TRIAL_ROWS)?;
        let slot = planner.slot(sample)?;
        planner.define(info.name, slot)?;
        inputs.push(spec);
    }
    if inputs.is_empty() {
        return Err(malformed("the graph has no inputs"));
    }

    // Exporters write the nodes in an order in which they can run; others are put into one.
    let mut waiting: Vec<&Node<'_>> = graph.nodes.iter().collect();
    let mut rounds = 0;
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut later = Vec::new();
        for node in waiting {
            let ready =
                |name: &&str| name.is_empty() || planner.names.contains_key(name) || planner.zipped.contains_key(name);
            if node.inputs.iter().all(ready) {
                planner.node(node, &model.opsets).map_err(|fault| fault.at(&node.describe()))?;
            } else {
                later.push(node);
            }
        }
        if later.len() == before {
            let node = later.first().map(|node| node.describe()).unwrap_or_default();
            return Err(malformed(format!("{node} has an input that comes from nowhere, or a cycle")));
        }
        rounds += 1;
        if rounds > 64 {
            return Err(unsupported("nodes in an order so far from one in which they can run"));
        }
        waiting = later;
    }

    let mut outputs = Vec::new();
    let mut specs = Vec::new();
    for info in &graph.outputs {
        let (source, features) = match (planner.names.get(info.name), planner.zipped.get(info.name)) {
            (Some(source), _) => (*source, Vec::new()),
            (None, Some((source, keys))) => (*source, keys.clone()),
            (None, None) => return Err(malformed(format!("the output {:?} comes from nowhere", info.name))),
        };
        let sample =
            planner.sample(source).ok_or_else(|| malformed(format!("the output {:?} has no value", info.name)))?;
        if info.name.is_empty() || specs.iter().any(|spec: &TensorSpec| spec.name == info.name) {
            return Err(malformed(format!("the output {:?} is listed twice, or has no name", info.name)));
        }
        specs.push(output_spec(info.name, sample, features)?);
        outputs.push(source);
    }
    if outputs.is_empty() {
        return Err(malformed("the graph has no outputs"));
    }
    let slots = planner.samples.len();
    let mut plan = Plan { steps: planner.steps, constants: planner.constants, slots, outputs, widest: 0 };
    let needed = plan.keep_needed();
    let kept = planner.samples.iter().zip(needed).filter(|(_, needed)| *needed);
    plan.widest = kept.map(|(sample, _)| sample.shape.extent().div_ceil(TRIAL_ROWS)).max().unwrap_or_default();
    check_rows(&plan, &inputs)?;
    Ok(Planned { plan, inputs, outputs: specs })
}

impl<'f> Planner<'f> {
    fn constant(&mut self, value: Value<'static>) -> Source {
        self.constants.push(value);
        Source::Constant(self.constants.len() - 1)
    }

    fn slot(&mut self, sample: Value<'static>) -> Result<Source, Fault> {
        self.count(&sample)?;
        self.samples.push(sample);
        Ok(Source::Slot(self.samples.len() - 1, false))
    }

    fn count(&mut self, made: &Value<'_>) -> Result<(), Fault> {
        self.elements = self.elements.saturating_add(made.shape.extent());
        if self.elements > TRIAL_ELEMENTS {
            return Err(unsupported(format!("more than {} elements a row", TRIAL_ELEMENTS / TRIAL_ROWS)));
        }
        Ok(())
    }

    fn define(&mut self, name: &'f str, source: Source) -> Result<(), Fault> {
        match self.names.insert(name, source) {
            Some(_) => Err(malformed(format!("the value {name:?} is made twice"))),
            None => Ok(()),
        }
    }

    fn sample(&self, source: Source) -> Option<&Value<'static>> {
        match source {
            Source::None => None,
            Source::Constant(constant) => self.constants.get(constant),
            Source::Slot(slot, _) => self.samples.get(slot),
        }
    }

    fn node(&mut self, node: &Node<'f>, opsets: &[(&str, i64)]) -> Result<(), Fault> {
        let known = |name: &&str| match self.names.get(name) {
            Some(source) => Ok(*source),
            None if name.is_empty() => Ok(Source::None),
            None => Err(unsupported(format!("an operator on the maps of ZipMap ({name:?})"))),
        };
        let sources = node.inputs.iter().map(known).collect::<Result<Vec<_>, _>>()?;
        if node.domain == "ai.onnx.ml" && node.op_type == "ZipMap" {
            return self.zip_map(node, &sources);
        }
        let domain = if node.domain.is_empty() { "ai.onnx" } else { node.domain };
        let version = opsets.iter().find(|(name, _)| *name == node.domain || *name == domain);
        let version = version.ok_or_else(|| malformed(format!("no version of {domain} is imported")))?.1;
        let inputs = sources.iter().map(|source| {
            let constant = matches!(source, Source::Constant(_));
            self.sample(*source).map(|value| Known { value, constant })
        });
        let site = Site { node, version, inputs: inputs.collect() };
        let op = if node.domain.is_empty() { glue::build(&site)? } else { ml::build(&site)? };

        let reads = site.inputs.iter().flatten().map(|input| input.value.buf.len());
        self.reads = reads.fold(self.reads, usize::saturating_add);
        if self.reads > TRIAL_READS {
            return Err(unsupported(format!("more than {TRIAL_READS} elements to read")));
        }
        let fold = sources.iter().all(|source| !matches!(source, Source::Slot(..)));
        // Its inputs alone, in slots of their own.
        let mut slots: Vec<_> = sources.iter().map(|source| self.sample(*source).map(Value::borrow)).collect();
        let own = sources.iter().enumerate().map(|(at, source)| match source {
            Source::Slot(..) => Source::Slot(at, false),
            constant => *constant,
        });
        let own: Vec<_> = own.collect();
        let constants = &self.constants;
        let mut args = Args { sources: &own, slots: &mut slots, constants, limit: TRIAL_ELEMENTS, trial: true };
        let (first, second) = match op.run(&mut args)? {
            Outputs::One(value) => (value.into_static(), None),
            Outputs::Two(first, second) => (first.into_static(), Some(second.into_static())),
        };
        drop(slots);
        let mut outputs = [None, None];
        let values = std::iter::once(Some(first)).chain(std::iter::once(second));
        if node.outputs.len() > 2 || node.outputs.is_empty() {
            return Err(unsupported(format!("{} outputs", node.outputs.len())));
        }
        for ((name, value), output) in node.outputs.iter().zip(values).zip(&mut outputs) {
            if name.is_empty() {
                continue;
            }
            let value = value.ok_or_else(|| unsupported(format!("the output {name:?}")))?;
            let source = if fold {
                self.count(&value)?;
                self.constant(value)
            } else {
                self.slot(value)?
            };
            if let Source::Slot(slot, _) = source {
                *output = Some(slot);
            }
            self.define(name, source)?;
        }
        if !fold {
            self.steps.push(Step { op, sources, outputs, name: node.describe() });
        }
        Ok(())
    }

    /// The scores stay a tensor; the keys become the names of its columns.
    fn zip_map(&mut self, node: &Node<'f>, sources: &[Source]) -> Result<(), Fault> {
        let source = *sources.first().ok_or_else(|| malformed("input 0 is missing"))?;
        let name = *node.outputs.first().ok_or_else(|| malformed("it has no output"))?;
        let mut keys: Vec<String> = node.texts("classlabels_strings")?.into_iter().map(str::to_owned).collect();
        if keys.is_empty() {
            keys = node.ints("classlabels_int64s")?.into_iter().map(|key| key.to_string()).collect();
        }
        match self.zipped.insert(name, (source, keys)) {
            Some(_) => Err(malformed(format!("the value {name:?} is made twice"))),
            None => Ok(()),
        }
    }
}

fn input_spec(info: &proto::ValueInfo<'_>) -> Result<TensorSpec, Fault> {
    let name = info.name;
    let datatype = match info.element {
        element::FLOAT => DataType::Fp32,
        element::DOUBLE => DataType::Fp64,
        element::INT64 => DataType::Int64,
        element::INT32 => DataType::Int32,
        element::BOOL => DataType::Bool,
        element::STRING => DataType::Bytes,
        other => return Err(unsupported(format!("the element type {other} of the input {name:?}"))),
    };
    let dims = info.shape.as_deref().ok_or_else(|| unsupported(format!("the input {name:?} without a shape")))?;
    let (first, rest) = dims.split_first().ok_or_else(|| unsupported(format!("the input {name:?}, a scalar")))?;
    if let Some(rows) = first {
        return Err(unsupported(format!("the input {name:?} of just {rows} rows (leave its first axis open)")));
    }
    let rest = rest.iter().map(|dim| dim.map(Dim::Fixed)).collect::<Option<Vec<_>>>();
    let rest =
        rest.ok_or_else(|| unsupported(format!("the input {name:?} of any width (export it with a fixed one)")))?;
    let shape = std::iter::once(Dim::Any).chain(rest).collect();
    Ok(TensorSpec { name: name.to_owned(), datatype, shape, features: Vec::new() })
}

/// Rows that differ from one another, so that one which sees another shows it.
fn made_up(spec: &TensorSpec, rows: usize) -> Result<Value<'static>, Fault> {
    let dims = spec.shape.iter().map(|dim| match dim {
        Dim::Any => rows,
        Dim::Fixed(length) => *length,
    });
    let shape = Shape::within(&dims.collect::<Vec<_>>(), TRIAL_ELEMENTS)?;
    let width = (shape.len() / rows.max(1)).max(1);
    let elements = (0..shape.len()).map(|at| (at / width * 3 + at % width) % 8);
    let buf = match spec.datatype {
        DataType::Bool => Buf::Bool(Slice::Owned(elements.map(|x| x % 2 == 0).collect())),
        DataType::Int32 => Buf::I32(Slice::Owned(elements.map(|x| i32::from(x as u8)).collect())),
        DataType::Int64 => Buf::I64(Slice::Owned(elements.map(|x| x as u32).map(i64::from).collect())),
        DataType::Fp32 => Buf::F32(Slice::Owned(elements.map(|x| x as f32 / 4.0).collect())),
        DataType::Fp64 => Buf::F64(Slice::Owned(elements.map(|x| x as f64 / 4.0).collect())),
        DataType::Bytes => Buf::Text(Slice::Owned(elements.map(|x| Text::Owned(x.to_string())).collect())),
    };
    Ok(Value { shape, buf })
}

fn output_spec(name: &str, sample: &Value<'_>, features: Vec<String>) -> Result<TensorSpec, Fault> {
    let datatype = match &sample.buf {
        Buf::Bool(_) => DataType::Bool,
        Buf::I32(_) => DataType::Int32,
        Buf::I64(_) => DataType::Int64,
        Buf::F32(_) => DataType::Fp32,
        Buf::F64(_) => DataType::Fp64,
        Buf::Text(_) => DataType::Bytes,
    };
    let dims = sample.shape.dims();
    let Some((TRIAL_ROWS, rest)) = dims.split_first().map(|(first, rest)| (*first, rest)) else {
        return Err(unsupported(format!("the output {name:?}, whose first axis is not the row")));
    };
    let shape = std::iter::once(Dim::Any).chain(rest.iter().map(|length| Dim::Fixed(*length))).collect();
    // Names that are no names of columns are left away: the numbers are the same without.
    let mut seen = std::collections::BTreeSet::new();
    let fits = rest == [features.len()] && features.iter().all(|name| !name.is_empty() && seen.insert(name));
    let features = if fits { features } else { Vec::new() };
    Ok(TensorSpec { name: name.to_owned(), datatype, shape, features })
}

/// Runs the made-up rows, and some of them again: a row's answer must have the same shape, and be the same.
fn check_rows(plan: &Plan, inputs: &[TensorSpec]) -> Result<(), Fault> {
    let run = |rows: usize| -> Result<Vec<Value<'static>>, Fault> {
        let inputs = inputs.iter().map(|spec| made_up(spec, rows)).collect::<Result<Vec<_>, _>>()?;
        let outputs = plan.run(inputs.iter().map(Value::borrow).collect(), TRIAL_ELEMENTS, true)?;
        Ok(outputs.into_iter().map(Value::into_static).collect())
    };
    let fewer = TRIAL_ROWS - 2;
    for (all, some) in run(TRIAL_ROWS)?.iter().zip(run(fewer)?) {
        let depends = || unsupported("rows whose answers depend on the other rows of the batch");
        let (all_dims, some_dims) = (all.shape.dims(), some.shape.dims());
        if some_dims.first() != Some(&fewer)
            || all_dims.get(1..) != some_dims.get(1..)
            || !begins_with(&all.buf, &some.buf)
        {
            return Err(depends());
        }
    }
    Ok(())
}

fn begins_with(all: &Buf<'_>, some: &Buf<'_>) -> bool {
    fn close(all: &[f64], some: &[f64]) -> bool {
        all.iter()
            .zip(some)
            .all(|(a, b)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-5 * a.abs().max(1.0))
    }
    let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    match (all, some) {
        (Buf::F32(a), Buf::F32(b)) => close(&wide(a), &wide(b)),
        (Buf::F64(a), Buf::F64(b)) => close(a, b),
        (Buf::Bool(a), Buf::Bool(b)) => a.starts_with(b),
        (Buf::I32(a), Buf::I32(b)) => a.starts_with(b),
        (Buf::I64(a), Buf::I64(b)) => a.starts_with(b),
        (Buf::Text(a), Buf::Text(b)) => a.starts_with(b),
        _ => false,
    }
}

impl Plan {
    /// Drops the steps that no output needs, and marks the last use of each slot, so that an operator may take what is
    /// not needed again, and memory is freed early. The slots that are needed are the answer.
    fn keep_needed(&mut self) -> Vec<bool> {
        let mut needed = vec![false; self.slots];
        for source in &self.outputs {
            if let Source::Slot(slot, _) = source
                && let Some(needed) = needed.get_mut(*slot)
            {
                *needed = true;
            }
        }
        let mut kept = Vec::with_capacity(self.steps.len());
        for mut step in std::mem::take(&mut self.steps).into_iter().rev() {
            if !step.outputs.iter().flatten().any(|slot| needed.get(*slot) == Some(&true)) {
                continue;
            }
            for source in step.sources.iter_mut().rev() {
                if let Source::Slot(slot, last) = source
                    && let Some(needed) = needed.get_mut(*slot)
                {
                    *last = !std::mem::replace(needed, true);
                }
            }
            kept.push(step);
        }
        kept.reverse();
        self.steps = kept;
        needed
    }

    /// The most rows that are to be run at once.
    pub(super) fn block_rows(&self) -> usize {
        (BLOCK_ELEMENTS / self.widest.max(1)).max(1)
    }

    /// Runs the graph on its inputs, in their order.
    pub(super) fn run<'a>(
        &'a self,
        inputs: Vec<Value<'a>>,
        limit: usize,
        trial: bool,
    ) -> Result<Vec<Value<'a>>, Fault> {
        let mut slots: Vec<Option<Value<'a>>> = inputs.into_iter().map(Some).collect();
        slots.resize_with(self.slots, || None);
        for step in &self.steps {
            let mut args = Args { sources: &step.sources, slots: &mut slots, constants: &self.constants, limit, trial };
            let outputs = step.op.run(&mut args).map_err(|fault| fault.at(&step.name))?;
            let (first, second) = match outputs {
                Outputs::One(first) => (first, None),
                Outputs::Two(first, second) => (first, Some(second)),
            };
            for source in &step.sources {
                if let Source::Slot(slot, true) = source
                    && let Some(slot) = slots.get_mut(*slot)
                {
                    *slot = None;
                }
            }
            let [first_slot, second_slot] = step.outputs;
            for (slot, value) in [(first_slot, Some(first)), (second_slot, second)] {
                if let Some(slot) = slot.and_then(|slot| slots.get_mut(slot)) {
                    *slot = value;
                }
            }
        }
        let answer = |source: &Source| match *source {
            Source::Constant(constant) => self.constants.get(constant).map(Value::borrow),
            Source::Slot(slot, _) => slots.get(slot).and_then(Clone::clone),
            Source::None => None,
        };
        let answers = self.outputs.iter().map(answer).collect::<Option<Vec<_>>>();
        answers.ok_or_else(|| malformed("an output has no value"))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let steps = self.steps.iter().map(|step| {
            size_of::<Step>() + step.op.memory_bytes() + size_of_val(step.sources.as_slice()) + step.name.len()
        });
        let constants = self.constants.iter().map(|value| size_of::<Value<'_>>() + value.buf.memory_bytes());
        steps.sum::<usize>() + constants.sum::<usize>()
    }
}
