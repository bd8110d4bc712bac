//! XGBoost's models, from its JSON and its UBJ files: the format `xgboost`.
//!
//! | what | served | refused by name |
//! |---|---|---|
//! | booster | `gbtree`, `dart` | `gblinear` |
//! | trees | numeric and categorical splits, missing values, pruned nodes | multi-output trees |
//! | objective | `reg:*`, `binary:*`, `count:poisson`, `multi:*`, `rank:*`, `survival:*` of XGBoost's documentation | any other |
//!
//! The one input is `input`, FP32 of shape `[-1, features]`; NaN is a missing value, and a categorical feature is the
//! category's code. The one output is `prediction`, FP32: `[-1]`, or `[-1, k]` for `multi:softprob` and for models with
//! several targets. It is what `Booster.predict` answers with all trees: probabilities for `binary:logistic`, the class's
//! index for `multi:softmax`, raw scores for `rank:*`. After early stopping, scikit-learn's wrappers answer with the trees
//! up to `best_iteration` only: slice the booster to them before saving it (`booster[: booster.best_iteration + 1]`).
//!
//! The layout of the file is described by XGBoost's model schema,
//! <https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html>.

mod ubj;

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use crate::forest::{Builder, Children, Forest, Split, Tree};
use crate::{Data, DataType, Dim, InferError, LoadError, Loader, Model, Signature, Tensor, TensorSpec};

const FORMAT: &str = "xgboost";

/// Wider rows belong to sparse matrices, which cannot be sent here.
const MAX_FEATURES: usize = 1 << 20;

/// Up to so many features get the names `f0`, `f1`, … when the model has none.
const MAX_UNNAMED: usize = 10_000;

/// The loader of the format `xgboost`: gradient-boosted trees as XGBoost saves them, in JSON (`.json`) and in Universal
/// Binary JSON (`.ubj`).
///
/// The answers are those of XGBoost's own CPU predictor to within 1e-6. What cannot be answered so is refused by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct XgboostLoader;

impl Loader for XgboostLoader {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, bytes: &[u8]) -> bool {
        let Some(rest) = bytes.trim_ascii_start().strip_prefix(b"{") else { return false };
        let key = match rest {
            [b'L', rest @ ..] => rest.get(8..).unwrap_or_default(),
            [b'l', rest @ ..] => rest.get(4..).unwrap_or_default(),
            [b'I', rest @ ..] => rest.get(2..).unwrap_or_default(),
            [b'i' | b'U', rest @ ..] => rest.get(1..).unwrap_or_default(),
            rest => rest.trim_ascii_start().strip_prefix(b"\"").unwrap_or_default(),
        };
        key.starts_with(b"learner") || key.starts_with(b"version")
    }

    /// A node takes some 34 bytes in a UBJ file, and 18 as it is read, 12 as it is checked and 8 as it is kept.
    fn memory_estimate(&self, artifact_bytes: u64) -> u64 {
        artifact_bytes.saturating_mul(4)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        if bytes.starts_with(b"binf") || bytes.starts_with(b"bs64") {
            return Err(unsupported("the binary format of old versions (save it as .json or .ubj)"));
        }
        let json = bytes
            .trim_ascii_start()
            .strip_prefix(b"{")
            .is_some_and(|rest| matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}')));
        let file: File = if json {
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?
        } else {
            ubj::from_slice(bytes).map_err(|error| malformed(error.to_string()))?
        };
        Ok(Box::new(Xgboost::new(file.learner)?))
    }
}

// The file, as far as it is needed. Everything that an unsupported model may lack has a default, so that it can be
// refused for what it is.

#[derive(Deserialize)]
struct File {
    learner: Learner,
}

#[derive(Deserialize)]
struct Learner {
    #[serde(default)]
    feature_names: Vec<String>,
    gradient_booster: Booster,
    learner_model_param: ModelParam,
    objective: ObjectiveName,
}

#[derive(Deserialize)]
struct ObjectiveName {
    name: String,
}

#[derive(Deserialize)]
struct ModelParam {
    base_score: Floats,
    num_feature: Integer,
    #[serde(default)]
    num_class: Integer,
    #[serde(default)]
    num_target: Integer,
}

#[derive(Deserialize)]
struct Booster {
    name: String,
    /// Of gbtree.
    #[serde(default)]
    model: Trees,
    /// Of dart, around a gbtree.
    #[serde(default)]
    gbtree: Option<Box<Booster>>,
    #[serde(default)]
    weight_drop: Vec<f32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Trees {
    tree_info: Vec<i64>,
    trees: Vec<TreeArrays>,
}

#[derive(Deserialize)]
struct TreeArrays {
    tree_param: TreeParam,
    left_children: Vec<i32>,
    right_children: Vec<i32>,
    split_indices: Vec<i32>,
    /// The thresholds of splits, the values of leaves.
    split_conditions: Vec<f32>,
    default_left: Vec<Flag>,
    #[serde(default)]
    split_type: Vec<Flag>,
    #[serde(default)]
    categories: Vec<i64>,
    #[serde(default)]
    categories_nodes: Vec<i64>,
    #[serde(default)]
    categories_segments: Vec<i64>,
    #[serde(default)]
    categories_sizes: Vec<i64>,
}

#[derive(Deserialize)]
struct TreeParam {
    num_nodes: Integer,
    #[serde(default)]
    num_deleted: Integer,
    #[serde(default)]
    size_leaf_vector: Integer,
}

/// A count that is written as a text.
#[derive(Default, Clone, Copy)]
struct Integer(usize);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl Visitor<'_> for Count {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a count, or a count in quotes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Integer, E> {
                text.parse().map(Integer).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Integer, E> {
                usize::try_from(count)
                    .map(Integer)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(count), &self))
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Integer, E> {
                usize::try_from(count).map(Integer).map_err(|_| E::invalid_value(de::Unexpected::Signed(count), &self))
            }
        }
        deserializer.deserialize_any(Count)
    }
}

/// A number or a list of numbers; either of them in quotes too.
struct Floats(Vec<f32>);

impl<'de> Deserialize<'de> for Floats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = Floats;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a list of numbers, in quotes or not")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Floats, E> {
                let list = text.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']'));
                let numbers = list.unwrap_or(text).split(',').map(|number| number.trim().parse());
                let numbers = numbers.collect::<Result<_, _>>();
                numbers.map(Floats).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Floats, E> {
                Ok(Floats(vec![number as f32]))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Floats, E> {
                Ok(Floats(vec![number as f32]))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Floats, E> {
                Ok(Floats(vec![number as f32]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Floats, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(Floats(numbers))
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

/// `true` and `false`, or 1 and 0, as the version of XGBoost has it.
#[derive(Clone, Copy)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bit;
        impl Visitor<'_> for Bit {
            type Value = Flag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, 1 or 0")
            }

            fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Flag, E> {
                Ok(Flag(flag))
            }

            fn visit_u64<E: de::Error>(self, flag: u64) -> Result<Flag, E> {
                match flag {
                    0 => Ok(Flag(false)),
                    1 => Ok(Flag(true)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(flag), &self)),
                }
            }

            fn visit_i64<E: de::Error>(self, flag: i64) -> Result<Flag, E> {
                u64::try_from(flag)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(flag), &self))
                    .and_then(|flag| self.visit_u64(flag))
            }
        }
        deserializer.deserialize_any(Bit)
    }
}

/// How the margins become the prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transform {
    Identity,
    Sigmoid,
    Exp,
    Hinge,
    Softmax,
    ArgMax,
}

/// How `base_score`, which is on the scale of the prediction, becomes a margin.
#[derive(Debug, Clone, Copy)]
enum Link {
    Identity,
    Logit,
    Log,
}

/// `ObjFunction::ProbToMargin` and `PredTransform` of XGBoost, by the objective's name.
fn objective(name: &str) -> Option<(Link, Transform)> {
    Some(match name {
        "reg:squarederror"
        | "reg:linear"
        | "reg:squaredlogerror"
        | "reg:pseudohubererror"
        | "reg:absoluteerror"
        | "reg:quantileerror"
        | "binary:logitraw"
        | "rank:pairwise"
        | "rank:ndcg"
        | "rank:map" => (Link::Identity, Transform::Identity),
        "reg:logistic" | "binary:logistic" => (Link::Logit, Transform::Sigmoid),
        "binary:hinge" => (Link::Identity, Transform::Hinge),
        "count:poisson" | "reg:gamma" | "reg:tweedie" | "survival:cox" | "survival:aft" => (Link::Log, Transform::Exp),
        "multi:softprob" => (Link::Identity, Transform::Softmax),
        "multi:softmax" => (Link::Identity, Transform::ArgMax),
        _ => return None,
    })
}

#[derive(Debug)]
struct Xgboost {
    signature: Signature,
    forest: Forest<f32>,
    /// The margin of each group before any tree.
    base: Vec<f32>,
    transform: Transform,
}

impl Xgboost {
    fn new(learner: Learner) -> Result<Self, LoadError> {
        let (trees, weights) = match (learner.gradient_booster.name.as_str(), learner.gradient_booster.gbtree) {
            ("gbtree", _) => (learner.gradient_booster.model, None),
            ("dart", Some(gbtree)) => (gbtree.model, Some(learner.gradient_booster.weight_drop)),
            ("dart", None) => return Err(malformed("dart has no gbtree")),
            (other, _) => return Err(unsupported(format!("the booster {other:?}"))),
        };
        let name = learner.objective.name;
        let (link, transform) = objective(&name).ok_or_else(|| unsupported(format!("the objective {name:?}")))?;

        let parameters = learner.learner_model_param;
        let features = parameters.num_feature.0;
        if features == 0 {
            return Err(malformed("num_feature is 0"));
        }
        if features > MAX_FEATURES {
            return Err(unsupported(format!("num_feature {features} (up to {MAX_FEATURES} are)")));
        }
        let base = parameters.base_score.0;
        let groups = match (transform, parameters.num_class.0, parameters.num_target.0) {
            (Transform::Softmax | Transform::ArgMax, 0, _) => {
                return Err(malformed(format!("{name} has no num_class")));
            }
            (Transform::Softmax | Transform::ArgMax, classes, 0 | 1) => classes,
            (Transform::Softmax | Transform::ArgMax, ..) => {
                return Err(unsupported(format!("{name} with several targets")));
            }
            (_, 0 | 1, targets) => targets.max(1),
            (_, classes, _) => return Err(malformed(format!("{name} has {classes} classes"))),
        };
        // Each round of training makes a tree for each group: a count far beyond them is made up, and would cost memory
        // with every request.
        if groups > trees.trees.len().max(base.len()).max(256) {
            return Err(malformed(format!("{} trees cannot have {groups} outputs", trees.trees.len())));
        }

        let base = margins(&base, link, groups)?;
        let forest = forest(features, groups, &trees, weights.as_deref())?;
        let signature = signature(feature_names(learner.feature_names, features)?, features, groups, transform);
        Ok(Self { signature, forest, base, transform })
    }
}

impl Model for Xgboost {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = self.signature.check_inputs(inputs)?;
        let data = inputs.first().and_then(Tensor::as_f32).unwrap_or_default();
        let groups = self.forest.groups();
        let mut margins = self.base.repeat(rows);
        self.forest.add_margins(data, &mut margins);

        match self.transform {
            Transform::Identity => {}
            Transform::Sigmoid => margins.iter_mut().for_each(|x| *x = sigmoid(*x)),
            Transform::Exp => margins.iter_mut().for_each(|x| *x = x.exp()),
            Transform::Hinge => margins.iter_mut().for_each(|x| *x = if *x > 0.0 { 1.0 } else { 0.0 }),
            Transform::Softmax => margins.chunks_exact_mut(groups).for_each(softmax),
            Transform::ArgMax => margins = margins.chunks_exact(groups).map(argmax).collect(),
        }
        let shape = if groups == 1 || self.transform == Transform::ArgMax { vec![rows] } else { vec![rows, groups] };
        let prediction = Tensor::new(shape, Data::Fp32(margins));
        Ok(vec![prediction.map_err(|error| InferError::Failed(error.to_string()))?])
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.forest.memory_bytes()
            + size_of_val(self.base.as_slice())
            + self.signature.memory_bytes()
    }

    fn engine(&self) -> &'static str {
        "forest"
    }
}

fn feature_names(names: Vec<String>, features: usize) -> Result<Vec<String>, LoadError> {
    if names.is_empty() {
        let named = if features <= MAX_UNNAMED { features } else { 0 };
        return Ok((0..named).map(|at| format!("f{at}")).collect());
    }
    if names.len() != features {
        return Err(malformed(format!("there are {} feature_names for num_feature {features}", names.len())));
    }
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| name.is_empty() || !seen.insert(*name)) {
        Some(name) => Err(malformed(format!("the feature name {name:?} is empty or used twice"))),
        None => Ok(names),
    }
}

fn signature(names: Vec<String>, features: usize, groups: usize, transform: Transform) -> Signature {
    let spec = |name: &str, columns: Option<usize>, features| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: std::iter::once(Dim::Any).chain(columns.map(Dim::Fixed)).collect(),
        features,
    };
    let columns = (groups > 1 && transform != Transform::ArgMax).then_some(groups);
    Signature {
        inputs: vec![spec("input", Some(features), names)],
        outputs: vec![spec("prediction", columns, Vec::new())],
    }
}

/// Puts `base_score` on the scale of the margins, one for each group.
fn margins(base_score: &[f32], link: Link, groups: usize) -> Result<Vec<f32>, LoadError> {
    let base = match base_score {
        [one] => vec![*one; groups],
        many if many.len() == groups => many.to_vec(),
        many => return Err(malformed(format!("base_score has {} numbers for {groups} outputs", many.len()))),
    };
    let link = |score: f32| match link {
        Link::Identity => score,
        Link::Logit => -(1.0 / score - 1.0).ln(),
        Link::Log => score.ln(),
    };
    let margins: Vec<f32> = base.into_iter().map(link).collect();
    match margins.iter().position(|margin| !margin.is_finite()) {
        Some(at) => Err(malformed(format!("base_score {at} does not fit the objective"))),
        None => Ok(margins),
    }
}

fn forest(features: usize, groups: usize, trees: &Trees, weights: Option<&[f32]>) -> Result<Forest<f32>, LoadError> {
    let count = trees.trees.len();
    if trees.tree_info.len() != count {
        return Err(malformed(format!("tree_info has {} entries for {count} trees", trees.tree_info.len())));
    }
    if let Some(weights) = weights
        && (weights.len() != count || weights.iter().any(|weight| !weight.is_finite()))
    {
        return Err(malformed(format!("weight_drop is not one number for each of {count} trees")));
    }
    let mut builder = Builder::new(features, groups);
    let mut plain = Tree::default();
    for (at, (tree, group)) in trees.trees.iter().zip(&trees.tree_info).enumerate() {
        let weight = weights.and_then(|weights| weights.get(at)).copied();
        plain.group = usize::try_from(*group).map_err(|_| malformed(format!("tree_info {at} is {group}")))?;
        tree.plain(weight.unwrap_or(1.0), &mut plain).map_err(|error| match error {
            LoadError::Malformed { detail, .. } => malformed(format!("tree {at}: {detail}")),
            other => other,
        })?;
        builder.push(&plain).map_err(|error| malformed(error.to_string()))?;
    }
    Ok(builder.build())
}

impl TreeArrays {
    /// Nodes from parallel arrays. What a node says is checked by [`Builder::push`], for the nodes that count: pruned ones
    /// may say anything.
    fn plain(&self, weight: f32, tree: &mut Tree) -> Result<(), LoadError> {
        if self.tree_param.size_leaf_vector.0 > 1 {
            return Err(unsupported("multi-output trees (size_leaf_vector above 1)"));
        }
        let count = self.tree_param.num_nodes.0;
        for (name, length) in [
            ("left_children", self.left_children.len()),
            ("right_children", self.right_children.len()),
            ("split_indices", self.split_indices.len()),
            ("split_conditions", self.split_conditions.len()),
            ("default_left", self.default_left.len()),
        ] {
            if length != count {
                return Err(malformed(format!("{name} has {length} entries for num_nodes {count}")));
            }
        }
        if !self.split_type.is_empty() && self.split_type.len() != count {
            return Err(malformed(format!("split_type has {} entries for num_nodes {count}", self.split_type.len())));
        }

        let mut categories = self.categories()?;
        let mut types = self.split_type.iter();
        let arrays = self.left_children.iter().zip(&self.right_children).zip(&self.split_indices);
        let arrays = arrays.zip(&self.split_conditions).zip(&self.default_left).enumerate();
        tree.unreachable = self.tree_param.num_deleted.0;
        tree.nodes.clear();
        tree.nodes.reserve(count);
        for (at, ((((left, right), feature), condition), default_left)) in arrays {
            let categorical = types.next().is_some_and(|flag| flag.0);
            if *left == -1 {
                tree.nodes.push(Split::Leaf(f64::from(condition * weight)));
                continue;
            }
            // Negative numbers lie out of every range.
            let index = |index: &i32| usize::try_from(*index).unwrap_or(usize::MAX);
            let children = Children { left: index(left), right: index(right), missing_left: default_left.0 };
            if !categorical {
                tree.nodes.push(Split::Below { feature: index(feature), threshold: f64::from(*condition), children });
                continue;
            }
            let set = categories.get_mut(at).and_then(Option::take);
            let categories = set.ok_or_else(|| malformed(format!("node {at} splits on categories, and lists none")))?;
            tree.nodes.push(Split::Among { feature: index(feature), categories, children });
        }
        Ok(())
    }

    /// The categories of each node that has some.
    fn categories(&self) -> Result<Vec<Option<Vec<u32>>>, LoadError> {
        let mut sets = Vec::new();
        if self.categories_nodes.is_empty() {
            return Ok(sets);
        }
        sets.resize(self.left_children.len(), None);
        let lengths = [self.categories_segments.len(), self.categories_sizes.len()];
        if lengths != [self.categories_nodes.len(); 2] {
            return Err(malformed("categories_nodes, categories_segments and categories_sizes differ in length"));
        }
        // A list may not be used twice, or a short file could unfold into a large one.
        let mut free = self.categories.len();
        let segments = self.categories_segments.iter().zip(&self.categories_sizes);
        for (node, (from, size)) in self.categories_nodes.iter().zip(segments) {
            let bad = || malformed(format!("the categories of node {node} lie out of range, or are there twice"));
            let (from, size) = (usize::try_from(*from).map_err(|_| bad())?, usize::try_from(*size).map_err(|_| bad())?);
            free = free.checked_sub(size).ok_or_else(bad)?;
            let end = from.checked_add(size).ok_or_else(bad)?;
            let categories = self.categories.get(from..end).ok_or_else(bad)?;
            let categories = categories.iter().map(|category| u32::try_from(*category)).collect::<Result<_, _>>();
            let set = usize::try_from(*node).ok().and_then(|node| sets.get_mut(node)).ok_or_else(bad)?;
            if set.replace(categories.map_err(|_| bad())?).is_some() {
                return Err(bad());
            }
        }
        Ok(sets)
    }
}

// The three functions below are in FP32 where XGBoost's are, so that the answers are the same to the last digit or so.

fn sigmoid(x: f32) -> f32 {
    1.0 / ((-x).min(88.7).exp() + 1.0)
}

fn softmax(margins: &mut [f32]) {
    let max = margins.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0_f64;
    for margin in margins.iter_mut() {
        *margin = (*margin - max).exp();
        sum += f64::from(*margin);
    }
    for margin in margins.iter_mut() {
        *margin /= sum as f32;
    }
}

/// The first of the greatest.
fn argmax(margins: &[f32]) -> f32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (at, margin) in margins.iter().enumerate() {
        if *margin > best.1 {
            best = (at, *margin);
        }
    }
    best.0 as f32
}

fn malformed(detail: impl Into<String>) -> LoadError {
    LoadError::Malformed { format: FORMAT, detail: detail.into() }
}

fn unsupported(feature: impl Into<String>) -> LoadError {
    LoadError::Unsupported { format: FORMAT, feature: feature.into() }
}
