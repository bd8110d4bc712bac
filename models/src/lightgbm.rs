//! LightGBM's models, from its text files: the format `lightgbm`.
//!
//! | what | served | refused by name |
//! |---|---|---|
//! | file | versions `v3` and `v4`, as `Booster.save_model` writes them | other versions |
//! | boosting | `gbdt`, `dart`, `goss`, `rf` (`average_output`) | |
//! | trees | numeric and categorical splits, every missing type, linear trees | codes of categories from 2^24 up |
//! | objective | each of LightGBM's documentation, `custom` and none | any other |
//!
//! The one input is `input`, FP64 of shape `[-1, features]`; NaN is a missing value. A categorical feature is the
//! category's code: of a pandas column that is its place in the list of categories at training, which the file keeps as
//! `pandas_categorical`, and which is not looked at here. The one output is `prediction`, FP64: `[-1]`, or `[-1, k]` for
//! models of several classes. It is what `Booster(model_file=…).predict` answers with all trees of the file:
//! probabilities for `binary`, `multiclass` and `multiclassova`, raw scores for ranking and for custom objectives. After
//! early stopping, `save_model` writes the trees up to `best_iteration` only, so that the two agree.
//!
//! The format has no description but the code that writes it, `gbdt_model_text.cpp` and `tree.cpp` of LightGBM.

mod linear;
mod text;

use std::borrow::Cow;
use std::collections::BTreeSet;

use self::linear::LinearTrees;
use self::text::{Field, Header, Lines, TreeFields, TreeText};
use crate::forest::{self, Forest};
use crate::{Data, DataType, Dim, InferError, LoadError, Loader, Model, Signature, Tensor, TensorSpec};

const FORMAT: &str = "lightgbm";

/// Wider rows belong to sparse matrices, which cannot be sent here.
const MAX_FEATURES: usize = 1 << 20;

/// What lies within this of 0 is 0 to LightGBM (`kZeroThreshold`): the FP32 number, in FP64.
const ZERO: f64 = 1e-35_f32 as f64;

/// About how many bytes of trees are read before they become lanes: it bounds what loading takes beyond the file and the
/// model, and is so much that most models are one part.
const PART_BYTES: usize = 24 << 20;

/// The loader of the format `lightgbm`: gradient-boosted trees as LightGBM saves them, in text (`.txt`).
///
/// The answers are those of LightGBM's own CPU predictor to the last digit or so. What cannot be answered so is refused by
/// name.
#[derive(Debug, Clone, Copy, Default)]
pub struct LightgbmLoader;

impl Loader for LightgbmLoader {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, bytes: &[u8]) -> bool {
        let mut lines = Lines::new(bytes);
        lines.next().is_some_and(|line| line.text == b"tree")
            && lines.next().is_some_and(|line| line.text.starts_with(b"version="))
    }

    /// A node takes some 50 bytes of text and 16 as it is kept; no more than a part (24 MiB) is in between.
    fn memory_estimate(&self, artifact_bytes: u64) -> u64 {
        artifact_bytes.saturating_add(artifact_bytes / 2).saturating_add(artifact_bytes.min(PART_BYTES as u64) * 3)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        Ok(Box::new(Lightgbm::read(bytes)?))
    }
}

/// What is done to a feature before the trees see it.
///
/// A split says itself how it treats missing values, but all splits of a feature must agree on what is missing: one
/// comparison per row and feature then stands for one in every node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Use {
    /// Split on by a threshold, with zero for a missing value.
    zero: bool,
    /// Split on by a threshold, with just NaN for a missing value.
    nan: bool,
    /// Split on by a threshold, without missing values: NaN is 0.
    none: bool,
    /// Split on by a set of categories.
    category: bool,
}

impl Use {
    fn contradicts(self) -> Option<&'static str> {
        match self {
            Self { category: true, zero, nan, none } if zero || nan || none => Some("numeric and categorical"),
            Self { zero: true, nan: true, .. } => Some("split on with missing type Zero and with NaN"),
            _ => None,
        }
    }
}

/// How the sums of the leaves become the prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Transform {
    Identity,
    /// Of the objectives that were trained on the square root of the label.
    Square,
    Exp,
    Sigmoid(f64),
    Log1pExp,
    Softmax,
}

/// `CreateObjectiveFunction` of LightGBM, which reads the objective's name and its parameters, and `ConvertOutput`.
fn transform(objective: Field<'_>, classes: usize) -> Result<Transform, LoadError> {
    let text = objective.utf8()?;
    let mut words = text.split(' ').filter(|word| !word.is_empty());
    let name = words.next().unwrap_or_default();
    let parameters: Vec<&str> = words.collect();
    let parameter = |name: &str| {
        let mut values = parameters.iter().filter_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
        values.next_back().unwrap_or_default()
    };
    let sigmoid = || {
        let sigmoid = parameter("sigmoid").parse().ok().filter(|sigmoid: &f64| *sigmoid > 0.0 && sigmoid.is_finite());
        sigmoid.map(Transform::Sigmoid).ok_or_else(|| objective.malformed("its sigmoid is not a number above 0"))
    };
    let single = || match classes {
        1 => Ok(()),
        _ => Err(objective.malformed(format!("{name} has one output, not {classes}"))),
    };
    let several = || match parameter("num_class").parse::<usize>() {
        Ok(claimed) if claimed == classes && classes > 1 => Ok(()),
        _ => Err(objective.malformed(format!("its num_class does not fit {classes} trees per iteration"))),
    };
    match name {
        "custom" | "none" => return Ok(Transform::Identity),
        "multiclass" | "multiclassova" => several()?,
        _ => single()?,
    }
    Ok(match name {
        "regression" | "regression_l1" | "quantile" | "fair" | "mape" if parameters.contains(&"sqrt") => {
            Transform::Square
        }
        "regression" | "regression_l1" | "quantile" | "fair" | "mape" | "huber" | "lambdarank" | "rank_xendcg" => {
            Transform::Identity
        }
        "poisson" | "gamma" | "tweedie" => Transform::Exp,
        "binary" | "multiclassova" => sigmoid()?,
        "cross_entropy" => Transform::Sigmoid(1.0),
        "cross_entropy_lambda" => Transform::Log1pExp,
        "multiclass" => Transform::Softmax,
        _ => return Err(unsupported(format!("the objective {:?}", text::short(name.as_bytes())))),
    })
}

/// Trees that follow each other in the file, laid out together.
#[derive(Debug)]
enum Part {
    Plain(Forest<f64>),
    Linear(LinearTrees),
}

#[derive(Debug)]
struct Lightgbm {
    signature: Signature,
    classes: usize,
    parts: Vec<Part>,
    uses: Vec<Use>,
    /// By how much the sums are divided: the number of iterations of a random forest, else 1.
    divisor: f64,
    transform: Transform,
}

impl Lightgbm {
    fn read(bytes: &[u8]) -> Result<Self, LoadError> {
        let mut lines = Lines::new(bytes);
        let header = Header::read(&mut lines)?;
        match header.version.utf8()? {
            "v3" | "v4" => {}
            version => {
                return Err(unsupported(format!("version {:?} (v3 and v4 are)", text::short(version.as_bytes()))));
            }
        }
        let features = feature_names(&header)?;
        let classes = header.num_class.count()?;
        if let Some(field) = header.num_tree_per_iteration
            && field.count()? != classes
        {
            return Err(field.malformed(format!("it is not num_class, {classes}")));
        }
        if classes == 0 {
            return Err(header.num_class.malformed("it is 0"));
        }
        let transform = header.objective.map_or(Ok(Transform::Identity), |objective| transform(objective, classes))?;

        let mut builder = Builder::new(features.len(), classes);
        let mut trees = 0;
        while let Some(start) = text::next_tree(&mut lines, trees)? {
            builder.push(&TreeFields::read(&mut lines, start)?, trees)?;
            trees += 1;
        }
        // Each iteration makes a tree for each class: a count far beyond them is made up, and would cost memory with every
        // request.
        if trees % classes != 0 || classes > trees.max(256) {
            return Err(header.num_class.malformed(format!("{trees} trees cannot have {classes} outputs")));
        }
        if let Some(sizes) = header.tree_sizes
            && sizes.entries().count() != trees
        {
            return Err(sizes.malformed(format!("{} entries for {trees} trees", sizes.entries().count())));
        }
        if header.average_output && trees == 0 {
            return Err(malformed("average_output without trees"));
        }
        let divisor = if header.average_output { (trees / classes) as f64 } else { 1.0 };
        let (parts, uses) = builder.finish();
        Ok(Self { signature: signature(features, classes), classes, parts, uses, divisor, transform })
    }

    /// The rows as the trees compare them.
    fn prepare<'a>(&self, rows: &'a [f64]) -> Cow<'a, [f64]> {
        if self.uses.iter().all(|kind| !kind.zero && !kind.category) {
            return Cow::Borrowed(rows);
        }
        let mut rows = rows.to_vec();
        for row in rows.chunks_exact_mut(self.uses.len().max(1)) {
            for (x, kind) in row.iter_mut().zip(&self.uses) {
                if kind.zero && x.abs() <= ZERO {
                    *x = f64::NAN;
                } else if kind.category && *x < 0.0 && *x > -1.0 {
                    // The fraction is cut off before the sign is looked at.
                    *x = 0.0;
                }
            }
        }
        Cow::Owned(rows)
    }

    fn convert(&self, margins: &mut [f64]) {
        if self.divisor != 1.0 {
            margins.iter_mut().for_each(|x| *x /= self.divisor);
        }
        match self.transform {
            Transform::Identity => {}
            Transform::Square => margins.iter_mut().for_each(|x| *x = sign(*x) * *x * *x),
            Transform::Exp => margins.iter_mut().for_each(|x| *x = x.exp()),
            Transform::Sigmoid(factor) => margins.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-factor * *x).exp())),
            Transform::Log1pExp => margins.iter_mut().for_each(|x| *x = x.exp().ln_1p()),
            Transform::Softmax => margins.chunks_exact_mut(self.classes).for_each(softmax),
        }
    }
}

impl Model for Lightgbm {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = self.signature.check_inputs(inputs)?;
        let data = inputs.first().and_then(Tensor::as_f64).unwrap_or_default();
        let prepared = self.prepare(data);
        let mut margins = vec![0.0; rows * self.classes];
        for part in &self.parts {
            match part {
                Part::Plain(forest) => forest.add_margins(&prepared, &mut margins),
                Part::Linear(trees) => trees.add_margins(&prepared, data, &mut margins),
            }
        }
        self.convert(&mut margins);
        let shape = if self.classes == 1 { vec![rows] } else { vec![rows, self.classes] };
        let prediction = Tensor::new(shape, Data::Fp64(margins));
        Ok(vec![prediction.map_err(|error| InferError::Failed(error.to_string()))?])
    }

    fn memory_bytes(&self) -> usize {
        let part = |part: &Part| {
            let held = match part {
                Part::Plain(forest) => forest.memory_bytes(),
                Part::Linear(trees) => trees.memory_bytes(),
            };
            size_of::<Part>() + held
        };
        size_of::<Self>()
            + self.parts.iter().map(part).sum::<usize>()
            + self.uses.capacity() * size_of::<Use>()
            + self.signature.memory_bytes()
    }

    fn engine(&self) -> &'static str {
        "forest"
    }
}

/// Lays trees out as they are read, part by part.
struct Builder {
    classes: usize,
    parts: Vec<Part>,
    uses: Vec<Use>,
    /// The part that is being read.
    forest: forest::Builder<f64>,
    trees: usize,
    bytes: usize,
    /// The leaves of its trees, if they are linear.
    linear: Option<LinearTrees>,
}

impl Builder {
    fn new(features: usize, classes: usize) -> Self {
        Self {
            classes,
            parts: Vec::new(),
            uses: vec![Use::default(); features],
            forest: forest::Builder::new(features, classes),
            trees: 0,
            bytes: 0,
            linear: None,
        }
    }

    fn push(&mut self, fields: &TreeFields<'_>, at: usize) -> Result<(), LoadError> {
        let TreeText { mut tree, leaves, bytes } = fields.parse(&mut self.uses)?;
        let full = self.bytes.saturating_add(bytes) > PART_BYTES
            || self.linear.as_ref().is_some_and(LinearTrees::is_full)
            || self.linear.is_some() != leaves.is_some();
        if full {
            self.lay(leaves.is_some());
        }
        tree.group = at % self.classes;
        if let Some(leaves) = leaves {
            let linear = self.linear.get_or_insert_with(|| LinearTrees::new(self.uses.len(), self.classes));
            linear.push(tree.group, leaves)?;
            // The forest finds each tree's leaf, in a column of its own.
            tree.group = self.trees;
            self.forest.add_group();
        }
        self.bytes += bytes;
        self.trees += 1;
        let pushed = self.forest.push(&tree);
        pushed.map_err(|error| malformed(format!("line {}, Tree={at}: {}", fields.line(), error.in_tree())))
    }

    /// Ends a part, and begins one of trees that are linear, or not.
    fn lay(&mut self, linear: bool) {
        let groups = if linear { 0 } else { self.classes };
        let forest = std::mem::replace(&mut self.forest, forest::Builder::new(self.uses.len(), groups));
        if self.trees > 0 {
            let forest = forest.build();
            self.parts.push(match self.linear.take() {
                Some(linear) => Part::Linear(linear.with(forest)),
                None => Part::Plain(forest),
            });
        }
        (self.trees, self.bytes) = (0, 0);
    }

    fn finish(mut self) -> (Vec<Part>, Vec<Use>) {
        self.lay(false);
        (self.parts, self.uses)
    }
}

fn feature_names(header: &Header<'_>) -> Result<Vec<String>, LoadError> {
    let field = header.feature_names;
    let last = header.max_feature_idx.count()?;
    if last >= MAX_FEATURES {
        return Err(unsupported(format!("{last} features and more (up to {MAX_FEATURES} are)")));
    }
    let names: Vec<String> = field.utf8()?.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.len() != last + 1 {
        return Err(field.malformed(format!("{} names for max_feature_idx {last}", names.len())));
    }
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(field.malformed(format!("the name {:?} is there twice", text::short(name.as_bytes())))),
        None => Ok(names),
    }
}

fn signature(names: Vec<String>, classes: usize) -> Signature {
    let spec = |name: &str, columns: Option<usize>, features| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp64,
        shape: std::iter::once(Dim::Any).chain(columns.map(Dim::Fixed)).collect(),
        features,
    };
    Signature {
        inputs: vec![spec("input", Some(names.len()), names)],
        outputs: vec![spec("prediction", (classes > 1).then_some(classes), Vec::new())],
    }
}

/// 0 for 0 and NaN.
fn sign(x: f64) -> f64 {
    f64::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

fn softmax(margins: &mut [f64]) {
    let max = margins.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for margin in margins.iter_mut() {
        *margin = (*margin - max).exp();
        sum += *margin;
    }
    for margin in margins.iter_mut() {
        *margin /= sum;
    }
}

fn malformed(detail: impl Into<String>) -> LoadError {
    LoadError::Malformed { format: FORMAT, detail: detail.into() }
}

fn unsupported(feature: impl Into<String>) -> LoadError {
    LoadError::Unsupported { format: FORMAT, feature: feature.into() }
}
