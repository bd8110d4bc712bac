//! CatBoost's models, from its JSON files: the format `catboost`.
//!
//! | what | served | refused by name |
//! |---|---|---|
//! | features | numeric, missing values of every `nan_mode` | categorical, text and embedding features |
//! | trees | symmetric (oblivious) ones, CatBoost's default | `grow_policy` `Depthwise` and `Lossguide` |
//! | loss | those of CatBoost's documentation | `RMSEWithUncertainty`, any other |
//!
//! The one input is `input`, FP32 of shape `[-1, features]`, as CatBoost itself compares; NaN is a missing value. The one
//! output is `prediction`, FP64: `[-1]`, or `[-1, k]` for models of several classes or targets. It is what `predict_proba`
//! answers for classifiers (for `Logloss` and `CrossEntropy`: the probability of the second class) and `predict` for all
//! others: `exp` of the raw value for `Poisson` and `Tweedie`, the raw value for the rest.
//!
//! The file is described by CatBoost's JSON model tutorial,
//! <https://github.com/catboost/catboost/blob/master/catboost/tutorials/model_analysis/model_export_as_json_tutorial.ipynb>.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::{Data, DataType, Dim, InferError, LoadError, Loader, Model, Signature, Tensor, TensorSpec};

const FORMAT: &str = "catboost";

/// Wider rows belong to sparse matrices, which cannot be sent here.
const MAX_FEATURES: usize = 1 << 20;

/// CatBoost's own limit is 16.
const MAX_DEPTH: usize = 16;

/// How many rows are asked at a time: one bit of each row's leaf is found in one pass over a column of them.
const BLOCK: usize = 64;

/// Fewer rows than this are asked one by one.
const FEW: usize = 8;

/// The loader of the format `catboost`: oblivious trees as CatBoost saves them with `save_model(…, format="json")`.
///
/// The answers are those of CatBoost's own CPU predictor to within 1e-12. What cannot be answered so is refused by name.
#[derive(Debug, Clone, Copy, Default)]
pub struct CatboostLoader;

impl Loader for CatboostLoader {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, bytes: &[u8]) -> bool {
        let Some(rest) = bytes.trim_ascii_start().strip_prefix(b"{") else { return false };
        let key = rest.trim_ascii_start();
        [&b"\"features_info\""[..], b"\"oblivious_trees\"", b"\"model_info\"", b"\"ctr_data\""]
            .iter()
            .any(|first| key.starts_with(first))
    }

    /// A leaf takes some 25 bytes in the file with its weight, and 8 as it is read and again as it is kept.
    fn memory_estimate(&self, artifact_bytes: u64) -> u64 {
        artifact_bytes.saturating_mul(3)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        Ok(Box::new(Catboost::new(file)?))
    }
}

// The file, as far as it is needed. Everything that an unsupported model may lack has a default, so that it can be
// refused for what it is.

#[derive(Deserialize)]
struct File {
    features_info: FeaturesInfo,
    #[serde(default)]
    model_info: ModelInfo,
    #[serde(default)]
    oblivious_trees: Option<Vec<TreeText>>,
    /// Of other shapes.
    #[serde(default)]
    trees: Option<IgnoredAny>,
    scale_and_bias: (f64, Vec<f64>),
}

#[derive(Deserialize)]
struct FeaturesInfo {
    #[serde(default)]
    float_features: Vec<FloatFeature>,
    #[serde(default)]
    categorical_features: Vec<IgnoredAny>,
    #[serde(default)]
    text_features: Vec<IgnoredAny>,
    #[serde(default)]
    embedding_features: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct FloatFeature {
    #[serde(default)]
    feature_id: String,
    flat_feature_index: usize,
    #[serde(default)]
    nan_value_treatment: NanTreatment,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
enum NanTreatment {
    /// There were none at training; they are above no border.
    #[default]
    #[serde(rename = "AsIs")]
    Unforeseen,
    /// They are below every border.
    #[serde(rename = "AsFalse")]
    Below,
    /// They are above every border.
    #[serde(rename = "AsTrue")]
    Above,
}

#[derive(Deserialize, Default)]
struct ModelInfo {
    #[serde(default)]
    params: Parameters,
    /// Of sums of models, which have no `params` of their own.
    #[serde(default)]
    loss_function: Option<Loss>,
}

#[derive(Deserialize, Default)]
struct Parameters {
    #[serde(default)]
    loss_function: Option<Loss>,
}

#[derive(Deserialize)]
struct PlainLoss {
    #[serde(rename = "type")]
    name: String,
}

/// An object, or (in sums of models) a string that holds one.
struct Loss(PlainLoss);

impl<'de> Deserialize<'de> for Loss {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Loss;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a loss function")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Loss, E> {
                serde_json::from_str(text).map(Loss).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Loss, A::Error> {
                PlainLoss::deserialize(MapAccessDeserializer::new(map)).map(Loss)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
struct TreeText {
    leaf_values: Vec<f64>,
    #[serde(default)]
    splits: Option<Vec<SplitText>>,
}

#[derive(Deserialize)]
struct SplitText {
    split_type: SplitType,
    #[serde(default)]
    border: Option<f64>,
    #[serde(default)]
    float_feature_index: Option<usize>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
enum SplitType {
    FloatFeature,
    OneHotFeature,
    #[serde(other)]
    Other,
}

/// How the sums of the leaves become the prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transform {
    Identity,
    Exp,
    Sigmoid,
    Softmax,
}

/// What CatBoost answers by default, by the name of the loss.
fn transform(loss: &str) -> Option<Transform> {
    Some(match loss {
        "Logloss" | "CrossEntropy" | "MultiClassOneVsAll" | "MultiLogloss" | "MultiCrossEntropy" => Transform::Sigmoid,
        "MultiClass" => Transform::Softmax,
        "Poisson" | "Tweedie" => Transform::Exp,
        "RMSE" | "MAE" | "Quantile" | "MultiQuantile" | "MultiRMSE" | "LogLinQuantile" | "LogCosh" | "Huber"
        | "Expectile" | "MAPE" | "Lq" | "YetiRank" | "YetiRankPairwise" | "PairLogit" | "PairLogitPairwise"
        | "QueryRMSE" | "QuerySoftMax" | "LambdaMart" => Transform::Identity,
        _ => return None,
    })
}

#[derive(Debug, Clone, Copy)]
struct Split {
    feature: u32,
    border: f32,
}

#[derive(Debug, Clone, Copy)]
struct Tree {
    /// Where its splits start, and how many there are.
    splits: usize,
    depth: usize,
    /// Where its leaves start, each with a value for each output.
    leaves: usize,
}

#[derive(Debug)]
struct Catboost {
    signature: Signature,
    outputs: usize,
    /// Whether a missing value of the feature lies above every border.
    missing_above: Vec<bool>,
    trees: Vec<Tree>,
    splits: Vec<Split>,
    leaves: Vec<f64>,
    scale: f64,
    bias: Vec<f64>,
    transform: Transform,
}

impl Catboost {
    fn new(file: File) -> Result<Self, LoadError> {
        let FeaturesInfo { float_features, categorical_features, text_features, embedding_features } =
            file.features_info;
        for (what, there) in [
            ("categorical features", !categorical_features.is_empty()),
            ("text features", !text_features.is_empty()),
            ("embedding features", !embedding_features.is_empty()),
            ("trees that are not symmetric (grow_policy)", file.trees.is_some()),
        ] {
            if there {
                return Err(unsupported(what));
            }
        }
        let (scale, bias) = file.scale_and_bias;
        if !scale.is_finite() || bias.iter().any(|bias| !bias.is_finite()) {
            return Err(malformed("scale_and_bias is not of finite numbers"));
        }
        let outputs = bias.len();
        let loss = file.model_info.params.loss_function.or(file.model_info.loss_function);
        let loss = loss.ok_or_else(|| malformed("model_info names no loss_function"))?.0.name;
        let transform = transform(&loss).ok_or_else(|| unsupported(format!("the loss {loss:?}")))?;
        if transform == Transform::Softmax && outputs < 2 {
            return Err(malformed(format!("{loss} has {outputs} outputs")));
        }
        let trees = file.oblivious_trees.ok_or_else(|| malformed("there are no oblivious_trees"))?;
        if outputs == 0 {
            return Err(malformed("scale_and_bias has no bias"));
        }

        let missing_above = float_features.iter().map(|feature| feature.nan_value_treatment == NanTreatment::Above);
        let missing_above: Vec<bool> = missing_above.collect();
        let features = missing_above.len();
        let mut model = Self {
            signature: signature(feature_names(float_features)?, outputs),
            outputs,
            missing_above,
            trees: Vec::with_capacity(trees.len()),
            splits: Vec::new(),
            leaves: Vec::new(),
            scale,
            bias,
            transform,
        };
        for (at, tree) in trees.into_iter().enumerate() {
            model.push(tree, features).map_err(|error| match error {
                LoadError::Malformed { detail, .. } => malformed(format!("tree {at}: {detail}")),
                other => other,
            })?;
        }
        model.splits.shrink_to_fit();
        model.leaves.shrink_to_fit();
        Ok(model)
    }

    fn push(&mut self, tree: TreeText, features: usize) -> Result<(), LoadError> {
        let splits = tree.splits.unwrap_or_default();
        let depth = splits.len();
        if depth > MAX_DEPTH {
            return Err(malformed(format!("it has {depth} splits, more than {MAX_DEPTH}")));
        }
        if Some(tree.leaf_values.len()) != self.outputs.checked_mul(1 << depth) {
            let (leaves, outputs) = (tree.leaf_values.len(), self.outputs);
            return Err(malformed(format!("{leaves} leaf_values are not 2^{depth} times {outputs}")));
        }
        if let Some(at) = tree.leaf_values.iter().position(|value| !value.is_finite()) {
            return Err(malformed(format!("leaf_values {at} is not a finite number")));
        }
        self.trees.push(Tree { splits: self.splits.len(), depth, leaves: self.leaves.len() });
        for (at, split) in splits.into_iter().enumerate() {
            match split.split_type {
                SplitType::FloatFeature => {}
                SplitType::OneHotFeature => return Err(unsupported("one-hot splits on categorical features")),
                SplitType::Other => return Err(unsupported("splits on statistics of categorical features (CTRs)")),
            }
            let feature = split.float_feature_index.filter(|feature| *feature < features);
            let feature = feature.and_then(|feature| u32::try_from(feature).ok());
            let feature = feature
                .ok_or_else(|| malformed(format!("splits {at}, float_feature_index is none of {features} features")))?;
            let border = split.border.map(|border| border as f32).filter(|border| border.is_finite());
            let border = border.ok_or_else(|| malformed(format!("splits {at}, border is not a number in FP32")))?;
            self.splits.push(Split { feature, border });
        }
        self.leaves.extend(tree.leaf_values);
        Ok(())
    }

    /// Adds the leaves of one row to its sums.
    fn add_row(&self, row: &[f32], sums: &mut [f64]) {
        for tree in &self.trees {
            let mut leaf = 0;
            for (bit, split) in self.splits_of(tree).iter().enumerate() {
                let x = row.get(split.feature as usize).copied().unwrap_or(f32::NAN);
                leaf |= u32::from(x > split.border) << bit;
            }
            self.add_leaf(tree, leaf, sums);
        }
    }

    /// Adds the leaves of up to [`BLOCK`] rows, whose features lie in `columns`, to their sums.
    fn add_block(&self, columns: &[f32], sums: &mut [f64]) {
        for tree in &self.trees {
            let mut leaves = [0_u32; BLOCK];
            for (bit, split) in self.splits_of(tree).iter().enumerate() {
                let column = split.feature as usize * BLOCK;
                let column = columns.get(column..column + BLOCK).unwrap_or_default();
                for (leaf, x) in leaves.iter_mut().zip(column) {
                    *leaf |= u32::from(*x > split.border) << bit;
                }
            }
            for (sums, leaf) in sums.chunks_exact_mut(self.outputs).zip(leaves) {
                self.add_leaf(tree, leaf, sums);
            }
        }
    }

    fn splits_of(&self, tree: &Tree) -> &[Split] {
        self.splits.get(tree.splits..tree.splits + tree.depth).unwrap_or_default()
    }

    fn add_leaf(&self, tree: &Tree, leaf: u32, sums: &mut [f64]) {
        let from = tree.leaves + leaf as usize * self.outputs;
        let values = self.leaves.get(from..from + self.outputs).unwrap_or_default();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }

    /// A feature as it is compared.
    fn prepare(x: f32, missing_above: bool) -> f32 {
        if missing_above && x.is_nan() { f32::INFINITY } else { x }
    }
}

impl Model for Catboost {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = self.signature.check_inputs(inputs)?;
        let data = inputs.first().and_then(Tensor::as_f32).unwrap_or_default();
        let width = self.missing_above.len();
        let mut sums = vec![0.0; rows * self.outputs];
        let mut columns = vec![0.0; width];
        for (rows, sums) in data.chunks(width.max(1) * BLOCK).zip(sums.chunks_mut(self.outputs * BLOCK)) {
            let rows = rows.chunks_exact(width.max(1));
            if rows.len() < FEW {
                for (row, sums) in rows.zip(sums.chunks_exact_mut(self.outputs)) {
                    let row_of = row.iter().zip(&self.missing_above).zip(columns.iter_mut());
                    row_of.for_each(|((x, above), place)| *place = Self::prepare(*x, *above));
                    self.add_row(&columns, sums);
                }
                continue;
            }
            columns.resize(width * BLOCK, 0.0);
            for (at, row) in rows.enumerate() {
                let column_of = row.iter().zip(&self.missing_above).zip(columns.iter_mut().skip(at).step_by(BLOCK));
                column_of.for_each(|((x, above), place)| *place = Self::prepare(*x, *above));
            }
            self.add_block(&columns, sums);
        }
        for sums in sums.chunks_exact_mut(self.outputs) {
            for (sum, bias) in sums.iter_mut().zip(&self.bias) {
                *sum = *sum * self.scale + bias;
            }
            match self.transform {
                Transform::Identity => {}
                Transform::Exp => sums.iter_mut().for_each(|x| *x = x.exp()),
                Transform::Sigmoid => sums.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp())),
                Transform::Softmax => softmax(sums),
            }
        }
        let shape = if self.outputs == 1 { vec![rows] } else { vec![rows, self.outputs] };
        let prediction = Tensor::new(shape, Data::Fp64(sums));
        Ok(vec![prediction.map_err(|error| InferError::Failed(error.to_string()))?])
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.trees.capacity() * size_of::<Tree>()
            + self.splits.capacity() * size_of::<Split>()
            + (self.leaves.capacity() + self.bias.capacity()) * size_of::<f64>()
            + self.missing_above.capacity()
            + self.signature.memory_bytes()
    }

    fn engine(&self) -> &'static str {
        "oblivious"
    }
}

/// The features' ids, or their places where they have none.
fn feature_names(features: Vec<FloatFeature>) -> Result<Vec<String>, LoadError> {
    if features.is_empty() {
        return Err(malformed("there are no float_features"));
    }
    if features.len() > MAX_FEATURES {
        return Err(unsupported(format!("{} features (up to {MAX_FEATURES} are)", features.len())));
    }
    let mut names = Vec::with_capacity(features.len());
    for (at, feature) in features.into_iter().enumerate() {
        if feature.flat_feature_index != at {
            let index = feature.flat_feature_index;
            return Err(malformed(format!("float_features {at}: flat_feature_index is {index}")));
        }
        names.push(if feature.feature_id.is_empty() { at.to_string() } else { feature.feature_id });
    }
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(malformed(format!("the feature_id {name:?} is there twice"))),
        None => Ok(names),
    }
}

fn signature(names: Vec<String>, outputs: usize) -> Signature {
    let spec = |name: &str, datatype, columns: Option<usize>, features| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: std::iter::once(Dim::Any).chain(columns.map(Dim::Fixed)).collect(),
        features,
    };
    Signature {
        inputs: vec![spec("input", DataType::Fp32, Some(names.len()), names)],
        outputs: vec![spec("prediction", DataType::Fp64, (outputs > 1).then_some(outputs), Vec::new())],
    }
}

fn softmax(sums: &mut [f64]) {
    let max = sums.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut total = 0.0;
    for sum in sums.iter_mut() {
        *sum = (*sum - max).exp();
        total += *sum;
    }
    for sum in sums.iter_mut() {
        *sum /= total;
    }
}

fn malformed(detail: impl Into<String>) -> LoadError {
    LoadError::Malformed { format: FORMAT, detail: detail.into() }
}

fn unsupported(feature: impl Into<String>) -> LoadError {
    LoadError::Unsupported { format: FORMAT, feature: feature.into() }
}
