//! Neural nets in ONNX files, run by rten.
//!
//! rten runs any graph that it can; this file makes it a [`Model`]. What it adds:
//!
//! - **The signature**, from the graph's inputs and outputs. rten itself knows INT64 and BOOL as INT32 only, so the file
//!   is looked at once more. FP32, INT32, INT64 and BOOL are served. The first axis is the row; where the graph fixes it
//!   to 1, rows are run one by one.
//! - **A trial**: three made-up rows together and one by one. A graph whose rows depend on each other, or that cannot
//!   run, is refused at load and not at the first request.
//! - **Limits on the file** that a recursive reader needs: how deep graphs, and types, lie within each other. External data, functions
//!   and operators of other domains are refused by name.
//!
//! Integers are 32 bits wide inside: an INT64 beyond them is refused as input, and a graph must not count on more.
//! Memory and time of a run are what the graph asks for: a hostile one is stopped by the child process in which models
//! are tried, not here.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rten::{LoadErrorKind, ModelOptions, NodeId, RunOptions, ThreadPool, Value};
use rten_tensor::prelude::*;

use crate::blocks::{self, rows_of};
use crate::{Data, DataType, Dim, InferError, LoadError, Loader, Model, Signature, Tensor, TensorSpec};

const FORMAT: &str = "onnx";

/// Graphs within graphs: bodies of `If` and `Loop`; and types within types. Readers are recursive.
const MAX_DEPTH: usize = 8;

/// Nodes of a graph; the largest nets have some thousands. rten plans a run by a recursion over them.
const MAX_NODES: usize = 20_000;

/// Nodes of the graphs within it, which are planned on a thread of the pool, as they are met.
const MAX_INNER_NODES: usize = 500;

/// Of the stack of the thread that loads: for a node, more than the recursion takes without optimisation, and for the
/// rest. A child process in which models are tried has so much less memory for them, so it is no more than is needed.
const STACK_PER_NODE: usize = 3200;
const STACK: usize = 2 << 20;

/// rten has operators of ONNX itself, and some of ONNX Runtime's.
const SCOPE: Scope = Scope { domains: &["", "ai.onnx", "com.microsoft"], fp64: false };

/// The lengths that are tried for axes of any length, until one runs: the shortest sequence that a convolution takes, or
/// the picture, is not written in the file.
const TRIAL_LENGTHS: [usize; 4] = [3, 16, 64, 224];

const TRIAL_ROWS: usize = 3;

/// Large batches are run by blocks. What a net makes of a row inside is not known, so these are elements that go in or
/// come out, and rows that are never too many: so many tokens of 3072 numbers inside are 400 MB.
const BLOCK_ELEMENTS: usize = 1 << 15;
const BLOCK_ROWS: usize = 32;

/// How far a row's answer may depend on its batch, relative: kernels for batches sum in another order.
const TRIAL_TOLERANCE: f64 = 1e-3;

/// The loader of the format `onnx` that runs every graph by rten, for programs that serve nothing but neural nets.
#[derive(Debug, Clone, Copy, Default)]
pub struct NeuralLoader;

impl Loader for NeuralLoader {
    fn format(&self) -> &'static str {
        FORMAT
    }

    /// The first field of the message is the version of its format, a small number.
    fn recognizes(&self, bytes: &[u8]) -> bool {
        matches!(bytes, [0x08, 1..=0x7f, ..])
    }

    /// The weights lie there as bytes, as they are read and as they are kept; the rest is for the stacks of threads.
    fn memory_estimate(&self, artifact_bytes: u64) -> u64 {
        artifact_bytes.saturating_mul(4).saturating_add(16 << 20)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        load(bytes)
    }
}

/// Makes a model of an ONNX file.
pub(crate) fn load(bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
    let described = Described::read(bytes, &SCOPE)?;
    let stack = STACK + described.graph.nodes.len() * STACK_PER_NODE;
    // The plan of the first run, that of the trial, is kept for all others: no request recurses.
    std::thread::scope(|scope| {
        let loading = std::thread::Builder::new().stack_size(stack);
        let loading = loading.spawn_scoped(scope, || load_described(bytes, described));
        let loading = loading.map_err(|error| unsupported(format!("a thread to load it on ({error})")))?;
        loading.join().map_err(|_| malformed("the reader gave up"))?
    })
}

fn load_described(bytes: &[u8], described: Described) -> Result<Box<dyn Model>, LoadError> {
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(false);
    let model = caught(|| options.load(bytes.to_vec()))
        .map_err(|panic| malformed(format!("the reader gave up: {panic}")))?
        .map_err(|error| refused(&error, &described.graph))?;
    let id = |name: &str| model.node_id(name).map_err(|error| malformed(error.to_string()));
    let inputs = described.input_names().map(id).collect::<Result<_, _>>()?;
    let outputs = described.output_names().map(id).collect::<Result<_, _>>()?;

    // A few kilobytes of operators can name constants of any size, which are made at load.
    let memory = model.total_params().saturating_mul(4);
    if memory > bytes.len().saturating_mul(16).saturating_add(1 << 19) {
        return Err(unsupported("constants that are far larger than the file"));
    }
    let datatypes = described.output_datatypes();
    described.tried(Box::new(Rten { model, inputs, outputs, datatypes, memory }))
}

/// Runs a graph's rows as they are; the rest of a [`Model`] is made around it.
pub(crate) trait Engine: Send + Sync {
    /// The engine's name, for [`Model::engine`].
    fn name(&self) -> &'static str;

    /// Runs one row or more; what comes out is checked by the caller.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError>;

    /// Bytes of memory beside the graph's description.
    fn memory_bytes(&self) -> usize;
}

/// What of ONNX an engine knows.
pub(crate) struct Scope {
    pub(crate) domains: &'static [&'static str],
    pub(crate) fp64: bool,
}

/// A file's description, with an engine yet to come.
pub(crate) struct Described {
    pub(crate) graph: Graph,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    one_by_one: bool,
}

impl Described {
    pub(crate) fn read(bytes: &[u8], scope: &Scope) -> Result<Self, LoadError> {
        let graph = Graph::read(bytes, scope.domains)?;
        let inputs = specs(&graph.inputs, "input", scope)?;
        let outputs = specs(&graph.outputs, "output", scope)?;
        let one_by_one = rows_one_by_one(&inputs)?;
        Ok(Self { graph, inputs, outputs, one_by_one })
    }

    pub(crate) fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|spec| spec.name.as_str())
    }

    pub(crate) fn output_names(&self) -> impl Iterator<Item = &str> {
        self.outputs.iter().map(|spec| spec.name.as_str())
    }

    pub(crate) fn output_datatypes(&self) -> Vec<DataType> {
        self.outputs.iter().map(|spec| spec.datatype).collect()
    }

    /// Tries the graph, and makes it a model.
    pub(crate) fn tried(self, engine: Box<dyn Engine>) -> Result<Box<dyn Model>, LoadError> {
        let mut net = Net { engine, one_by_one: self.one_by_one, answered: 0 };
        let outputs = trial(&net, &self.inputs, self.outputs, &self.graph)?;
        net.answered = outputs.iter().filter_map(TensorSpec::row_len).max().unwrap_or_default();
        let signature = Signature { inputs: self.inputs.into_iter().map(with_any_row).collect(), outputs };
        let memory = signature.memory_bytes() + self.graph.nodes.len().saturating_mul(256);
        Ok(Box::new(Neural { net, signature, memory }))
    }
}

struct Neural {
    net: Net,
    signature: Signature,
    memory: usize,
}

impl Model for Neural {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        if self.signature.check_inputs(inputs)? == 0 {
            return self.signature.outputs.iter().map(no_rows).collect();
        }
        self.net.run(inputs)
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.memory + self.net.engine.memory_bytes()
    }

    fn engine(&self) -> &'static str {
        self.net.engine.name()
    }
}

/// A graph that takes rows together, or one by one.
struct Net {
    engine: Box<dyn Engine>,
    one_by_one: bool,
    /// Elements a row of the widest output, as far as its axes are fixed.
    answered: usize,
}

impl Net {
    /// Answers one row or more.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = inputs.first().map_or(0, Tensor::rows);
        blocks::run(inputs, rows, self.block_rows(inputs, rows), |inputs| self.run_once(inputs))
    }

    fn block_rows(&self, inputs: &[Tensor], rows: usize) -> usize {
        if self.one_by_one {
            return 1;
        }
        let taken = inputs.iter().map(|input| input.data().len() / rows.max(1)).max().unwrap_or_default();
        (BLOCK_ELEMENTS / taken.max(self.answered).max(1)).max(BLOCK_ROWS)
    }

    fn run_once(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = inputs.first().map_or(0, Tensor::rows);
        let outputs = self.engine.run(inputs)?;
        match outputs.iter().find(|output| output.shape().is_empty() || output.rows() != rows) {
            Some(other) => {
                Err(InferError::Failed(format!("{rows} rows are answered by a tensor of shape {:?}", other.shape())))
            }
            None => Ok(outputs),
        }
    }
}

/// The graph as rten runs it.
struct Rten {
    model: rten::Model,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    /// Of the outputs.
    datatypes: Vec<DataType>,
    memory: usize,
}

impl Engine for Rten {
    fn name(&self) -> &'static str {
        "rten"
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let values = inputs.iter().map(value_of).collect::<Result<Vec<_>, _>>()?;
        let values = self.inputs.iter().zip(values).map(|(id, value)| (*id, value.into())).collect();
        let pool = Pool::least_used();
        let options = RunOptions::default().with_thread_pool(Some(Arc::clone(&pool.threads)));
        let answers = caught(|| self.model.run(values, &self.outputs, Some(options)))
            .map_err(|panic| InferError::Failed(format!("the engine gave up: {panic}")))?
            .map_err(|error| InferError::Failed(error.to_string()))?;
        if answers.len() != self.datatypes.len() {
            return Err(InferError::Failed("an output is missing".to_owned()));
        }
        answers.into_iter().zip(&self.datatypes).map(|(value, datatype)| tensor_of(value, *datatype)).collect()
    }

    fn memory_bytes(&self) -> usize {
        self.memory
    }
}

/// rten has no way to run on the calling thread, but on the one thread of a pool: as many of them as there are
/// processors, so that requests run beside each other, and each of them on one.
struct Pool {
    threads: Arc<ThreadPool>,
    users: AtomicUsize,
}

struct PoolUse(&'static Pool);

impl Pool {
    fn least_used() -> PoolUse {
        static POOLS: OnceLock<Vec<Pool>> = OnceLock::new();
        static SPARE: OnceLock<Pool> = OnceLock::new();
        let make = || Pool { threads: Arc::new(ThreadPool::with_num_threads(1)), users: AtomicUsize::new(0) };
        let pools = POOLS.get_or_init(|| {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            (0..processors).map(|_| make()).collect()
        });
        let least = pools.iter().min_by_key(|pool| pool.users.load(Ordering::Relaxed));
        let pool = least.unwrap_or_else(|| SPARE.get_or_init(make));
        pool.users.fetch_add(1, Ordering::Relaxed);
        PoolUse(pool)
    }
}

impl std::ops::Deref for PoolUse {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        self.0
    }
}

impl Drop for PoolUse {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs what may panic on a hostile graph; the error is the panic's message.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
    })
}

fn value_of(tensor: &Tensor) -> Result<Value, InferError> {
    let shape = tensor.shape();
    let integer = |x: &i64| {
        i32::try_from(*x)
            .map_err(|_| InferError::BadInput(format!("{x} is beyond the 32 bits that this model computes in")))
    };
    let value = match tensor.data() {
        Data::Fp32(numbers) => Value::from_shape(shape, numbers.clone()).ok(),
        Data::Int32(numbers) => Value::from_shape(shape, numbers.clone()).ok(),
        Data::Int64(numbers) => {
            Value::from_shape(shape, numbers.iter().map(integer).collect::<Result<Vec<_>, _>>()?).ok()
        }
        Data::Bool(flags) => Value::from_shape(shape, flags.iter().map(|flag| i32::from(*flag)).collect()).ok(),
        Data::Fp64(_) | Data::Bytes(_) => None,
    };
    value.ok_or_else(|| InferError::Failed(format!("a tensor of {} and shape {shape:?}", tensor.datatype())))
}

fn tensor_of(value: Value, datatype: DataType) -> Result<Tensor, InferError> {
    let wrong = |value: &Value| InferError::Failed(format!("an output is {}, not {datatype}", value.dtype()));
    let (shape, data) = match (value, datatype) {
        (Value::FloatTensor(tensor), DataType::Fp32) => (tensor.shape().to_vec(), Data::Fp32(tensor.into_data())),
        (Value::Int32Tensor(tensor), datatype) => {
            let shape = tensor.shape().to_vec();
            let numbers = tensor.into_data();
            let data = match datatype {
                DataType::Int32 => Data::Int32(numbers),
                DataType::Int64 => Data::Int64(numbers.into_iter().map(i64::from).collect()),
                DataType::Bool => Data::Bool(numbers.into_iter().map(|x| x != 0).collect()),
                _ => return Err(InferError::Failed(format!("an output is INT32, not {datatype}"))),
            };
            (shape, data)
        }
        (value, _) => return Err(wrong(&value)),
    };
    Tensor::new(shape, data).map_err(|error| InferError::Failed(error.to_string()))
}

fn no_rows(spec: &TensorSpec) -> Result<Tensor, InferError> {
    let inner = spec.shape.iter().skip(1).map(|dim| match dim {
        Dim::Fixed(length) => *length,
        Dim::Any => 0,
    });
    let shape = std::iter::once(0).chain(inner).collect();
    Tensor::new(shape, Data::with_capacity(spec.datatype, 0)).map_err(|error| InferError::Failed(error.to_string()))
}

/// Runs made-up rows, and answers the outputs' specs: the file may leave their shapes open.
fn trial(
    net: &Net,
    inputs: &[TensorSpec],
    declared: Vec<TensorSpec>,
    graph: &Graph,
) -> Result<Vec<TensorSpec>, LoadError> {
    let mut failure = None;
    for length in TRIAL_LENGTHS {
        let batch = made_up(inputs, length).ok_or_else(|| unsupported("inputs too large to be tried"))?;
        match net.run(&batch) {
            Ok(whole) => {
                check_rows(net, &batch, &whole, &declared)?;
                let open = inputs.iter().any(|spec| spec.shape.iter().skip(1).any(|dim| *dim == Dim::Any));
                let outputs = declared.into_iter().zip(&whole).map(|(spec, answer)| output_spec(spec, answer, open));
                return outputs.collect();
            }
            Err(error) => failure = failure.or(Some(error)),
        }
        if inputs.iter().all(|spec| spec.row_len().is_some()) {
            break;
        }
    }
    let error = failure.map(|error| error.to_string()).unwrap_or_default();
    let operator =
        graph.nodes.iter().find(|node| !node.name.is_empty() && error.contains(&format!("\"{}\"", node.name)));
    Err(match operator {
        Some(node) => unsupported(format!("the operator {} as it is used here ({error})", node.operator)),
        None => unsupported(format!("a graph that does not run ({error})")),
    })
}

fn check_rows(net: &Net, batch: &[Tensor], whole: &[Tensor], declared: &[TensorSpec]) -> Result<(), LoadError> {
    for row in 0..TRIAL_ROWS {
        let alone = rows_of(batch, row..row + 1).and_then(|inputs| net.run(&inputs));
        let alone = alone.map_err(|error| unsupported(format!("a graph that does not take one row ({error})")))?;
        let expected = rows_of(whole, row..row + 1).map_err(|error| malformed(error.to_string()))?;
        for ((expected, alone), spec) in expected.iter().zip(&alone).zip(declared) {
            if expected.shape() != alone.shape() || !close(expected.data(), alone.data()) {
                let name = &spec.name;
                return Err(unsupported(format!("the other rows of a batch for each row of the output {name:?}")));
            }
        }
    }
    Ok(())
}

fn close(a: &Data, b: &Data) -> bool {
    let near =
        |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= TRIAL_TOLERANCE * a.abs().max(1.0);
    match (a, b) {
        (Data::Fp32(a), Data::Fp32(b)) => a.iter().zip(b).all(|(a, b)| near(f64::from(*a), f64::from(*b))),
        (Data::Fp64(a), Data::Fp64(b)) => a.iter().zip(b).all(|(a, b)| near(*a, *b)),
        (a, b) => a == b,
    }
}

/// The output as declared, with what the trial has shown of axes that the file leaves open.
fn output_spec(mut spec: TensorSpec, answer: &Tensor, open: bool) -> Result<TensorSpec, LoadError> {
    let seen = answer.shape();
    // No shape at all is one whose axes are all open.
    if spec.shape.is_empty() {
        spec.shape = vec![Dim::Any; seen.len()];
    }
    let agree = spec.shape.len() == seen.len()
        && spec.shape.iter().zip(seen).skip(1).all(|(dim, seen)| *dim == Dim::Any || *dim == Dim::Fixed(*seen));
    if !agree {
        let name = &spec.name;
        return Err(malformed(format!("the output {name:?} has the shape {seen:?}, not the one that is declared")));
    }
    for (dim, seen) in spec.shape.iter_mut().zip(seen).skip(1) {
        if !open {
            *dim = Dim::Fixed(*seen);
        }
    }
    Ok(with_any_row(spec))
}

fn with_any_row(mut spec: TensorSpec) -> TensorSpec {
    if let Some(rows) = spec.shape.first_mut() {
        *rows = Dim::Any;
    }
    spec
}

/// Different rows of small numbers; integers are 0 or 1, which is in every vocabulary.
fn made_up(inputs: &[TensorSpec], length: usize) -> Option<Vec<Tensor>> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut one = |spec: &TensorSpec| {
        let inner = spec.shape.iter().skip(1).map(|dim| match dim {
            Dim::Fixed(fixed) => *fixed,
            Dim::Any => length,
        });
        let shape: Vec<usize> = std::iter::once(TRIAL_ROWS).chain(inner).collect();
        let elements = shape.iter().try_fold(1_usize, |product, length| product.checked_mul(*length))?;
        if elements > 1 << 26 {
            return None;
        }
        let data = match spec.datatype {
            DataType::Fp32 => Data::Fp32((0..elements).map(|_| next() as f32 / 8_388_608.0 - 1.0).collect()),
            DataType::Int32 => Data::Int32((0..elements).map(|_| i32::from(next() & 64 != 0)).collect()),
            DataType::Int64 => Data::Int64((0..elements).map(|_| i64::from(next() & 64 != 0)).collect()),
            DataType::Bool => Data::Bool((0..elements).map(|_| next() & 64 != 0).collect()),
            DataType::Fp64 => Data::Fp64((0..elements).map(|_| f64::from(next()) / 8_388_608.0 - 1.0).collect()),
            DataType::Bytes => return None,
        };
        Tensor::new(shape, data).ok()
    };
    inputs.iter().map(&mut one).collect()
}

/// Whether the graph takes one row at a time; any other number of rows that it fixes is refused.
fn rows_one_by_one(inputs: &[TensorSpec]) -> Result<bool, LoadError> {
    let mut rows = inputs.iter().filter_map(|spec| Some((spec, *spec.shape.first()?)));
    let (mut any, mut one) = (false, false);
    for (spec, dim) in &mut rows {
        match dim {
            Dim::Any => any = true,
            Dim::Fixed(1) => one = true,
            Dim::Fixed(rows) => {
                return Err(unsupported(format!("{rows} rows in every batch (the first axis of {:?})", spec.name)));
            }
        }
    }
    if any && one {
        return Err(unsupported("inputs of any number of rows beside inputs of one row"));
    }
    Ok(one)
}

fn specs(values: &[ValueInfo], what: &str, scope: &Scope) -> Result<Vec<TensorSpec>, LoadError> {
    if values.is_empty() {
        return Err(malformed(format!("the graph has no {what}")));
    }
    let mut seen = BTreeSet::new();
    values.iter().map(|value| spec(value, what, scope, seen.insert(&value.name))).collect()
}

fn spec(value: &ValueInfo, what: &str, scope: &Scope, first: bool) -> Result<TensorSpec, LoadError> {
    let name = &value.name;
    if name.is_empty() || !first {
        return Err(malformed(format!("an {what} has no name, or another one's ({name:?})")));
    }
    let datatype = match value.element {
        Some(1) => DataType::Fp32,
        Some(6) => DataType::Int32,
        Some(7) => DataType::Int64,
        Some(9) => DataType::Bool,
        Some(11) if scope.fp64 => DataType::Fp64,
        Some(other) => return Err(unsupported(format!("the {what} {name:?} of {}", element_name(other)))),
        None => return Err(unsupported(format!("the {what} {name:?}, which is no tensor"))),
    };
    let shape = match (&value.shape, what) {
        (Some(shape), _) if shape.is_empty() => {
            return Err(unsupported(format!("the {what} {name:?}, which has no axis for the rows")));
        }
        (Some(shape), _) => shape.clone(),
        (None, "output") => Vec::new(),
        (None, _) => return Err(unsupported(format!("the {what} {name:?} of any shape"))),
    };
    Ok(TensorSpec { name: name.clone(), datatype, shape, features: Vec::new() })
}

/// `TensorProto.DataType` of ONNX.
fn element_name(element: u64) -> String {
    let name = match element {
        2 => "UINT8",
        3 => "INT8",
        4 => "UINT16",
        5 => "INT16",
        8 => "STRING",
        10 => "FLOAT16",
        11 => "DOUBLE",
        12 => "UINT32",
        13 => "UINT64",
        16 => "BFLOAT16",
        _ => return format!("datatype {element}"),
    };
    format!("datatype {name}")
}

fn refused(error: &rten::LoadError, graph: &Graph) -> LoadError {
    let text = error.to_string();
    if error.kind() != LoadErrorKind::OperatorInvalid {
        return malformed(text);
    }
    let missing = |operator: &str| text.contains(&format!("{operator} operator not "));
    let named = error.node().and_then(|name| graph.nodes.iter().find(|node| node.name == name));
    match (graph.nodes.iter().find(|node| missing(&node.operator)), named) {
        (Some(node), _) => unsupported(format!("the operator {}", node.operator)),
        (None, Some(node)) => unsupported(format!("the operator {} as it is used here ({text})", node.operator)),
        (None, None) => unsupported(format!("an operator as it is used here ({text})")),
    }
}

pub(crate) fn malformed(detail: impl Into<String>) -> LoadError {
    LoadError::Malformed { format: FORMAT, detail: detail.into() }
}

pub(crate) fn unsupported(feature: impl Into<String>) -> LoadError {
    LoadError::Unsupported { format: FORMAT, feature: feature.into() }
}

/// What is needed of the file's graph: names and types at its edges, and its operators.
pub(crate) struct Graph {
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    /// Those of subgraphs too.
    nodes: Vec<Node>,
    domains: &'static [&'static str],
}

#[derive(Default)]
struct Node {
    name: String,
    operator: String,
}

#[derive(Default)]
struct ValueInfo {
    name: String,
    /// `TensorProto.DataType`; none for what is no tensor.
    element: Option<u64>,
    shape: Option<Vec<Dim>>,
}

impl Graph {
    /// Field numbers are those of <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3>.
    fn read(bytes: &[u8], domains: &'static [&'static str]) -> Result<Self, LoadError> {
        let mut graph = Self { inputs: Vec::new(), outputs: Vec::new(), nodes: Vec::new(), domains };
        let mut found = 0;
        let mut model = Fields(bytes);
        while let Some((number, field)) = model.next()? {
            match number {
                7 => {
                    found += 1;
                    graph.read_graph(field.message()?, 0)?;
                }
                25 => return Err(unsupported("functions in the file (inline them)")),
                _ => {}
            }
        }
        if found == 1 { Ok(graph) } else { Err(malformed(format!("the file has {found} graphs"))) }
    }

    fn read_graph(&mut self, bytes: &[u8], depth: usize) -> Result<(), LoadError> {
        if depth > MAX_DEPTH {
            return Err(unsupported(format!("graphs within graphs, more than {MAX_DEPTH} deep")));
        }
        let (mut inputs, mut outputs, mut nodes) = (Vec::new(), Vec::new(), 0_usize);
        let mut weights = BTreeSet::new();
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                1 => {
                    nodes += 1;
                    self.read_node(field.message()?, depth)?;
                    if depth > 0 && nodes > MAX_INNER_NODES {
                        return Err(unsupported(format!("more than {MAX_INNER_NODES} nodes in a subgraph")));
                    }
                }
                5 => {
                    weights.insert(read_tensor(field.message()?)?);
                }
                11 => inputs.push(read_value(field.message()?)?),
                12 => outputs.push(read_value(field.message()?)?),
                13 => check_value(field.message()?)?,
                15 => return Err(unsupported("sparse weights")),
                _ => {}
            }
        }
        if depth == 0 {
            // Old files list their weights among the inputs.
            inputs.retain(|value| !weights.contains(&value.name));
            (self.inputs, self.outputs) = (inputs, outputs);
        }
        Ok(())
    }

    fn read_node(&mut self, bytes: &[u8], depth: usize) -> Result<(), LoadError> {
        let mut node = Node::default();
        let mut domain = String::new();
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                3 => node.name = field.text()?,
                4 => node.operator = field.text()?,
                5 => self.read_attribute(field.message()?, depth)?,
                7 => domain = field.text()?,
                _ => {}
            }
        }
        if !self.domains.contains(&domain.as_str()) {
            return Err(unsupported(format!("the operator {domain}.{}", node.operator)));
        }
        self.nodes.push(node);
        // Subgraphs count too.
        if self.nodes.len() > MAX_NODES {
            return Err(unsupported(format!("more than {MAX_NODES} nodes")));
        }
        Ok(())
    }

    fn read_attribute(&mut self, bytes: &[u8], depth: usize) -> Result<(), LoadError> {
        let mut fields = Fields(bytes);
        while let Some((number, field)) = fields.next()? {
            match number {
                5 | 10 => drop(read_tensor(field.message()?)?),
                8 => check_numbers(&field)?,
                6 | 11 => self.read_graph(field.message()?, depth + 1)?,
                14 | 15 => check_type(field.message()?, 0)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Numbers one after the other, each whole: rten reads one that does not end for ever.
fn check_numbers(field: &Field<'_>) -> Result<(), LoadError> {
    let Field::Bytes(bytes) = field else { return Ok(()) };
    let mut numbers = Fields(bytes);
    while !numbers.0.is_empty() {
        numbers.varint()?;
    }
    Ok(())
}

/// The tensor's name.
fn read_tensor(bytes: &[u8]) -> Result<String, LoadError> {
    let mut name = String::new();
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match number {
            5 | 7 | 11 => check_numbers(&field)?,
            8 => name = field.text()?,
            13 => return Err(unsupported("external data (save the weights within the file)")),
            14 if field.number()? != 0 => return Err(unsupported("external data (save the weights within the file)")),
            _ => {}
        }
    }
    Ok(name)
}

fn read_value(bytes: &[u8]) -> Result<ValueInfo, LoadError> {
    let mut value = ValueInfo::default();
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => value.name = field.text()?,
            2 => {
                let kinds = field.message()?;
                check_type(kinds, 0)?;
                let mut kinds = Fields(kinds);
                while let Some((number, field)) = kinds.next()? {
                    if number == 1 {
                        read_tensor_type(field.message()?, &mut value)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(value)
}

/// A value inside the graph is of no interest, but rten reads its type.
fn check_value(bytes: &[u8]) -> Result<(), LoadError> {
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        if number == 2 {
            check_type(field.message()?, 0)?;
        }
    }
    Ok(())
}

/// Types within types (of a sequence's or optional's elements, of a map's values) lie no deeper than graphs may.
fn check_type(bytes: &[u8], depth: usize) -> Result<(), LoadError> {
    if depth > MAX_DEPTH {
        return Err(unsupported(format!("types within types, more than {MAX_DEPTH} deep")));
    }
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        let within = match number {
            4 | 9 => 1,
            5 => 2,
            _ => continue,
        };
        let mut container = Fields(field.message()?);
        while let Some((number, field)) = container.next()? {
            if number == within {
                check_type(field.message()?, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn read_tensor_type(bytes: &[u8], value: &mut ValueInfo) -> Result<(), LoadError> {
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match number {
            1 => value.element = Some(field.number()?),
            2 => {
                let mut shape = Vec::new();
                let mut dims = Fields(field.message()?);
                while let Some((number, field)) = dims.next()? {
                    if number == 1 {
                        shape.push(read_dim(field.message()?)?);
                    }
                }
                value.shape = Some(shape);
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_dim(bytes: &[u8]) -> Result<Dim, LoadError> {
    let mut dim = Dim::Any;
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match number {
            // Some exporters write -1 or 0 for any length.
            1 => {
                let length = field.number()?;
                let fixed = u32::try_from(length).ok().filter(|length| *length > 0);
                if fixed.is_none() && length != 0 && length.cast_signed() > 0 {
                    return Err(malformed(format!("an axis of length {length}")));
                }
                dim = fixed.map_or(Dim::Any, |length| Dim::Fixed(length as usize));
            }
            2 => dim = Dim::Any,
            _ => {}
        }
    }
    Ok(dim)
}

/// The fields of a Protocol Buffers message, one after the other.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, LoadError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => self.take(4).map(|_| Field::Other)?,
            kind => return Err(malformed(format!("a field of wire type {kind}"))),
        };
        Ok(Some((key >> 3, field)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], LoadError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or_else(|| malformed("a field is cut off"))?;
        self.0 = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, LoadError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.first().copied().unwrap_or_default();
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(malformed("a number of more than ten bytes"))
    }
}

impl<'a> Field<'a> {
    fn message(self) -> Result<&'a [u8], LoadError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(malformed("a number stands where a message should")),
        }
    }

    fn text(self) -> Result<String, LoadError> {
        let text = std::str::from_utf8(self.message()?).map_err(|_| malformed("a name is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn number(self) -> Result<u64, LoadError> {
        match self {
            Self::Number(number) => Ok(number),
            _ => Err(malformed("a message stands where a number should")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles numbers, and remembers the longest batch.
    struct Twice(Arc<AtomicUsize>);

    impl Engine for Twice {
        fn name(&self) -> &'static str {
            "twice"
        }

        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
            self.0.fetch_max(inputs[0].rows(), Ordering::Relaxed);
            let doubled = inputs[0].as_f32().expect("numbers").iter().map(|x| x * 2.0).collect();
            Ok(vec![Tensor::new(inputs[0].shape().to_vec(), Data::Fp32(doubled)).expect("as many")])
        }

        fn memory_bytes(&self) -> usize {
            0
        }
    }

    #[test]
    fn a_large_batch_is_run_by_blocks_and_a_small_one_at_once() {
        for (rows, width, answered, one_by_one, longest) in [
            (BLOCK_ROWS, 1 << 12, 0, false, BLOCK_ROWS),
            (100, 1 << 12, 0, false, BLOCK_ROWS),
            (BLOCK_ELEMENTS / 4 + 1, 4, 4, false, BLOCK_ELEMENTS / 4),
            (100, 1, BLOCK_ELEMENTS, false, BLOCK_ROWS),
            (3, 2, 2, true, 1),
        ] {
            let seen = Arc::new(AtomicUsize::new(0));
            let net = Net { engine: Box::new(Twice(Arc::clone(&seen))), one_by_one, answered };
            let numbers: Vec<f32> = (0..rows * width).map(|x| x as f32).collect();
            let doubled: Vec<f32> = numbers.iter().map(|x| x * 2.0).collect();
            let answer = net.run(&[Tensor::new(vec![rows, width], Data::Fp32(numbers)).expect("it fits")]);
            let answer = answer.expect("it runs");
            assert_eq!(answer[0].shape(), [rows, width]);
            assert!(answer[0].as_f32() == Some(&doubled), "rows are lost or out of order");
            assert_eq!(seen.load(Ordering::Relaxed), longest);
        }
    }
}
