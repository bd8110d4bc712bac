//! The operators of ai.onnx.ml. They answer as ONNX Runtime's own do, also where the specification is vague.

use std::borrow::Cow;

use super::glue::{indices, product, to_i64};
use super::plan::{Args, Op, Outputs, Site};
use super::value::{Buf, Fault, Shape, Slice, Text, Value, each, malformed, unsupported};
use super::{svm, trees};

/// What [`build`] knows.
pub(super) const OPERATORS: &[&str] = &[
    "ArrayFeatureExtractor",
    "Binarizer",
    "FeatureVectorizer",
    "Imputer",
    "LabelEncoder",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
];

/// Builds an operator of ai.onnx.ml.
pub(super) fn build(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let node = site.node;
    Ok(match node.op_type {
        "ArrayFeatureExtractor" => Box::new(Pick),
        "Binarizer" => Box::new(Binarizer { threshold: node.float("threshold", 0.0)? }),
        "FeatureVectorizer" => Box::new(FeatureVectorizer { widths: node.ints("inputdimensions")? }),
        "Imputer" => imputer(site)?,
        "LabelEncoder" => label_encoder(site)?,
        "LinearClassifier" => Box::new(Linear::classifier(site)?),
        "LinearRegressor" => Box::new(Linear::regressor(site)?),
        "Normalizer" => Box::new(match node.text("norm", "MAX")? {
            "MAX" => Normalizer::Max,
            "L1" => Normalizer::L1,
            "L2" => Normalizer::L2,
            other => return Err(malformed(format!("there is no norm {other:?}"))),
        }),
        "OneHotEncoder" => one_hot(site)?,
        "SVMClassifier" => svm::classifier(site)?,
        "SVMRegressor" => svm::regressor(site)?,
        "Scaler" => {
            let (offset, scale) = (node.floats("offset")?, node.floats("scale")?);
            if scale.is_empty() || offset.len() != scale.len() {
                return Err(malformed(format!("{} offsets and {} scales", offset.len(), scale.len())));
            }
            Box::new(Scaler { offset, scale })
        }
        "TreeEnsembleClassifier" => trees::classifier(site)?,
        "TreeEnsembleRegressor" => trees::regressor(site)?,
        other => return Err(unsupported(format!("the operator {other}"))),
    })
}

/// How scores become what is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transform {
    None,
    Logistic,
    Softmax,
    SoftmaxZero,
    Probit,
}

impl Transform {
    pub(super) fn of(site: &Site<'_, '_>) -> Result<Self, Fault> {
        Ok(match site.node.text("post_transform", "NONE")? {
            "NONE" => Self::None,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX" => Self::Softmax,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            other => return Err(malformed(format!("there is no post_transform {other:?}"))),
        })
    }

    /// Of a row of two scores or more.
    pub(super) fn apply(self, scores: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Logistic => scores.iter_mut().for_each(|x| *x = logistic(*x)),
            Self::Probit => scores.iter_mut().for_each(|x| *x = probit(*x)),
            Self::Softmax => softmax(scores, |x, max| (x - max).exp()),
            // What is about 0 stays 0, almost.
            Self::SoftmaxZero => {
                let max = greatest(scores);
                let mut sum = 0.0;
                for x in scores.iter_mut() {
                    if x.abs() > 1e-7 {
                        *x = (*x - max).exp();
                        sum += *x;
                    } else {
                        *x *= (-max).exp();
                    }
                }
                scores.iter_mut().for_each(|x| *x /= sum);
            }
        }
    }

    /// Of a row of one score: only one transform touches it.
    pub(super) fn apply_alone(self, score: f32) -> f32 {
        if self == Self::Probit { probit(score) } else { score }
    }
}

fn greatest(scores: &[f32]) -> f32 {
    scores.iter().fold(f32::MIN, |max, x| if *x > max { *x } else { max })
}

fn softmax(scores: &mut [f32], exp: impl Fn(f32, f32) -> f32) {
    let max = greatest(scores);
    let mut sum = 0.0;
    for x in scores.iter_mut() {
        *x = exp(*x, max);
        sum += *x;
    }
    scores.iter_mut().for_each(|x| *x /= sum);
}

pub(super) fn logistic(x: f32) -> f32 {
    let positive = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - positive } else { positive }
}

/// Winitzki's approximation with the constants of ONNX Runtime.
#[expect(clippy::approx_constant, reason = "that is its pi")]
fn probit(x: f32) -> f32 {
    let y = 2.0 * x - 1.0;
    let log = ((1.0 - y) * (1.0 + y)).ln();
    let v = 2.0 / (3.141_59 * 0.147) + 0.5 * log;
    let root = (-v + (v * v - 1.0 / 0.147 * log).sqrt()).sqrt();
    std::f32::consts::SQRT_2 * if y < 0.0 { -root } else { root }
}

/// The classes of a classifier.
pub(super) enum Labels {
    Ints(Vec<i64>),
    Texts(Vec<Text<'static>>),
}

impl Labels {
    pub(super) fn of(site: &Site<'_, '_>, ints: &str) -> Result<Self, Fault> {
        let texts = site.node.texts("classlabels_strings")?;
        let labels = if texts.is_empty() {
            Self::Ints(site.node.ints(ints)?)
        } else {
            Self::Texts(texts.into_iter().map(|text| Cow::Owned(text.to_owned())).collect())
        };
        if labels.len() < 2 {
            return Err(unsupported(format!("{} classes", labels.len())));
        }
        Ok(labels)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ints(labels) => labels.len(),
            Self::Texts(labels) => labels.len(),
        }
    }

    /// The labels of rows by the indices of their classes.
    pub(super) fn pick(&self, classes: &[usize]) -> Result<Value<'_>, Fault> {
        let buf = match self {
            Self::Ints(labels) => {
                Buf::I64(Slice::Owned(classes.iter().filter_map(|class| labels.get(*class).copied()).collect()))
            }
            Self::Texts(labels) => {
                let label = |class: &usize| labels.get(*class).map(|label| Cow::Borrowed(&**label));
                Buf::Text(Slice::Owned(classes.iter().filter_map(label).collect()))
            }
        };
        if buf.len() != classes.len() {
            return Err(malformed("there are fewer labels than classes"));
        }
        Ok(Value { shape: Shape::new(&[classes.len()])?, buf })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Ints(labels) => size_of_val(labels.as_slice()),
            Self::Texts(labels) => labels.iter().map(|label| size_of::<Text<'_>>() + label.len()).sum(),
        }
    }
}

/// The first greatest score; a NaN in front wins.
pub(super) fn argmax(scores: &[f32]) -> usize {
    let mut best = 0;
    let mut most = scores.first().copied().unwrap_or_default();
    for (at, score) in scores.iter().enumerate().skip(1) {
        if *score > most {
            (best, most) = (at, *score);
        }
    }
    best
}

/// Columns, by their numbers.
struct Pick;

impl Op for Pick {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let dims = value.shape.dims();
        let (width, outer) = dims.split_last().ok_or_else(|| malformed("its input is a scalar"))?;
        let columns = indices(args, 1, *width)?;
        let rows: usize = outer.iter().product();
        let outer = if outer.is_empty() { &[1][..] } else { outer };
        let shape = Shape::within(&[outer, &[columns.len()]].concat(), args.limit)?;
        let buf = each!(&value.buf, v => {
            let mut picked = Vec::with_capacity(shape.len());
            for row in 0..rows {
                picked.extend(columns.iter().filter_map(|column| v.get(row * width + column).cloned()));
            }
            Slice::Owned(picked)
        });
        Ok(Value { shape, buf }.into())
    }
}

struct Binarizer {
    threshold: f32,
}

impl Op for Binarizer {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let bits = value.buf.to_f32()?.iter().map(|x| if *x > self.threshold { 1.0 } else { 0.0 }).collect();
        Ok(Value::f32(value.shape, bits).into())
    }
}

struct FeatureVectorizer {
    widths: Vec<i64>,
}

impl Op for FeatureVectorizer {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let mut parts = Vec::with_capacity(args.len());
        let mut total = 0_usize;
        let rows = args.get(0)?.shape.matrix()?.0;
        for at in 0..args.len() {
            let value = args.get(at)?;
            let (own_rows, width) = value.shape.matrix()?;
            if own_rows != rows || self.widths.get(at).copied() != i64::try_from(width).ok() {
                return Err(malformed(format!("input {at} has the shape {:?}", value.shape.dims())));
            }
            total = total.saturating_add(width);
            parts.push((value.buf.to_f32()?, width));
        }
        let shape = Shape::within(&[rows, total], args.limit)?;
        let mut joined = Vec::with_capacity(shape.len());
        for row in 0..rows {
            for (part, width) in &parts {
                joined.extend_from_slice(part.get(row * width..(row + 1) * width).unwrap_or_default());
            }
        }
        Ok(Value::f32(shape, joined).into())
    }
}

struct Imputer<T> {
    missing: T,
    values: Vec<T>,
}

fn imputer(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let node = site.node;
    let width = site.input(0)?.shape.matrix()?.1;
    let (floats, ints) = (node.floats("imputed_value_floats")?, node.ints("imputed_value_int64s")?);
    let count = floats.len().max(ints.len());
    if floats.is_empty() == ints.is_empty() || (count != 1 && count != width) {
        return Err(malformed(format!("{} and {} imputed values for {width} columns", floats.len(), ints.len())));
    }
    Ok(if ints.is_empty() {
        Box::new(Imputer { missing: node.float("replaced_value_float", 0.0)?, values: floats })
    } else {
        Box::new(Imputer { missing: node.int("replaced_value_int64", 0)?, values: ints })
    })
}

impl<T: Copy + PartialEq> Imputer<T> {
    fn fill<'a>(&self, slice: Slice<'a, T>) -> Slice<'a, T> {
        // NaN is what does not equal itself.
        #[expect(clippy::eq_op, reason = "just NaN differs from itself")]
        let nan = self.missing != self.missing;
        #[expect(clippy::eq_op, reason = "just NaN differs from itself")]
        let missing = |x: T| x == self.missing || (nan && x != x);
        if !slice.iter().any(|x| missing(*x)) {
            return slice;
        }
        let mut filled = slice.into_vec();
        for (x, value) in filled.iter_mut().zip(self.values.iter().cycle()) {
            if missing(*x) {
                *x = *value;
            }
        }
        Slice::Owned(filled)
    }
}

impl Op for Imputer<f32> {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        match args.take(0)? {
            Value { shape, buf: Buf::F32(v) } => Ok(Value { shape, buf: Buf::F32(self.fill(v)) }.into()),
            other => Err(unsupported(format!("an Imputer of {}", other.buf.type_name()))),
        }
    }
}

impl Op for Imputer<i64> {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        match args.take(0)? {
            Value { shape, buf: Buf::I64(v) } => Ok(Value { shape, buf: Buf::I64(self.fill(v)) }.into()),
            other => Err(unsupported(format!("an Imputer of {}", other.buf.type_name()))),
        }
    }
}

enum Normalizer {
    Max,
    L1,
    L2,
}

impl Op for Normalizer {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let (_, width) = value.shape.matrix()?;
        let mut rows = value.buf.to_f32()?.into_owned();
        for row in rows.chunks_mut(width.max(1)) {
            let norm = match self {
                Self::Max => greatest(row),
                Self::L1 => row.iter().map(|x| x.abs()).sum(),
                Self::L2 => row.iter().map(|x| x * x).sum(),
            };
            if norm == 0.0 {
                continue;
            }
            for x in row {
                *x = match self {
                    Self::Max | Self::L1 => *x / norm,
                    Self::L2 if *x < 0.0 => -(*x * *x / norm).sqrt(),
                    Self::L2 => (*x * *x / norm).sqrt(),
                };
            }
        }
        Ok(Value::f32(value.shape, rows).into())
    }
}

struct Scaler {
    offset: Vec<f32>,
    scale: Vec<f32>,
}

impl Op for Scaler {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        let (_, width) = shape.matrix()?;
        if self.scale.len() != 1 && self.scale.len() != width {
            return Err(malformed(format!("{} scales for {width} columns", self.scale.len())));
        }
        let factors = || self.offset.iter().zip(&self.scale).cycle();
        let scaled = match buf {
            Buf::F32(Slice::Owned(mut v)) => {
                v.iter_mut().zip(factors()).for_each(|(x, (offset, scale))| *x = (*x - offset) * scale);
                v
            }
            Buf::F64(v) => {
                let wide = v.iter().zip(factors());
                wide.map(|(x, (offset, scale))| ((x - f64::from(*offset)) * f64::from(*scale)) as f32).collect()
            }
            other => other.to_f32()?.iter().zip(factors()).map(|(x, (offset, scale))| (x - offset) * scale).collect(),
        };
        Ok(Value::f32(shape, scaled).into())
    }
}

/// From keys to their places in a list.
enum Keys {
    /// Sorted by length, then by bytes: most comparisons end with the length.
    Texts(Vec<(Box<str>, u32)>),
    Ints(Vec<(i64, u32)>),
    /// By the bits of an `f64`, with one zero and one NaN.
    Floats(Vec<(u64, u32)>),
}

/// Which of two equal keys counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubles {
    First,
    Last,
}

fn bits(x: f64) -> u64 {
    if x == 0.0 {
        0
    } else if x.is_nan() {
        f64::NAN.to_bits()
    } else {
        x.to_bits()
    }
}

impl Keys {
    fn new(keys: &Buf<'_>, doubles: Doubles) -> Result<Self, Fault> {
        fn sorted<K: Ord>(keys: impl Iterator<Item = K>, doubles: Doubles) -> Vec<(K, u32)> {
            let mut sorted: Vec<_> = keys.zip(0_u32..).collect();
            if doubles == Doubles::Last {
                sorted.reverse();
            }
            // Stable: of equal keys the first stays.
            sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
            sorted.dedup_by(|(a, _), (b, _)| a == b);
            sorted
        }
        Ok(match keys {
            Buf::Text(keys) => {
                let keys = sorted(keys.iter().map(|key| (key.len(), Box::from(&**key))), doubles);
                Self::Texts(keys.into_iter().map(|((_, key), at)| (key, at)).collect())
            }
            Buf::I64(keys) => Self::Ints(sorted(keys.iter().copied(), doubles)),
            Buf::I32(keys) => Self::Ints(sorted(keys.iter().map(|key| i64::from(*key)), doubles)),
            Buf::F32(keys) => Self::Floats(sorted(keys.iter().map(|key| bits(f64::from(*key))), doubles)),
            Buf::F64(keys) => Self::Floats(sorted(keys.iter().map(|key| bits(*key)), doubles)),
            Buf::Bool(_) => return Err(unsupported("keys of type bool")),
        })
    }

    fn text(&self, text: &str) -> Option<u32> {
        let Self::Texts(keys) = self else { return None };
        let order = |key: &str| key.len().cmp(&text.len()).then_with(|| key.cmp(text));
        keys.binary_search_by(|(key, _)| order(key)).ok().and_then(|at| keys.get(at)).map(|(_, place)| *place)
    }

    fn int(&self, int: i64) -> Option<u32> {
        let Self::Ints(keys) = self else { return None };
        keys.binary_search_by_key(&int, |(key, _)| *key).ok().and_then(|at| keys.get(at)).map(|(_, place)| *place)
    }

    fn float(&self, float: f64) -> Option<u32> {
        let Self::Floats(keys) = self else { return None };
        let float = bits(float);
        keys.binary_search_by_key(&float, |(key, _)| *key).ok().and_then(|at| keys.get(at)).map(|(_, place)| *place)
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Texts(keys) => keys.iter().map(|(key, _)| 24 + key.len()).sum(),
            Self::Ints(keys) => size_of_val(keys.as_slice()),
            Self::Floats(keys) => size_of_val(keys.as_slice()),
        }
    }
}

struct OneHot {
    keys: Keys,
    width: usize,
    /// What is no category gets a row of zeros.
    zeros: bool,
}

fn one_hot(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let (texts, ints) = (site.node.texts("cats_strings")?, site.node.ints("cats_int64s")?);
    let width = texts.len().max(ints.len());
    if texts.is_empty() == ints.is_empty() {
        return Err(malformed("it has no categories, or those of two types"));
    }
    let keys = if ints.is_empty() {
        Buf::Text(Slice::Owned(texts.into_iter().map(Cow::Borrowed).collect()))
    } else {
        Buf::I64(Slice::Owned(ints))
    };
    if matches!(site.input(0)?.buf, Buf::Text(_)) != matches!(keys, Buf::Text(_)) {
        return Err(malformed(format!(
            "its input is {}, its categories are {}",
            site.input(0)?.buf.type_name(),
            keys.type_name()
        )));
    }
    Ok(Box::new(OneHot { keys: Keys::new(&keys, Doubles::Last)?, width, zeros: site.node.int("zeros", 1)? != 0 }))
}

impl Op for OneHot {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let shape = Shape::within(&[value.shape.dims(), &[self.width]].concat(), args.limit)?;
        let mut hot = vec![0.0; shape.len()];
        let strict = !self.zeros && !args.trial;
        let mut fill = |places: &mut dyn Iterator<Item = Option<u32>>| -> Result<(), Fault> {
            for (row, place) in hot.chunks_exact_mut(self.width).zip(places) {
                match place.and_then(|place| row.get_mut(place as usize)) {
                    Some(one) => *one = 1.0,
                    None if strict => return Err(Fault::Input("a value is no category of the model".to_owned())),
                    None => {}
                }
            }
            Ok(())
        };
        match &value.buf {
            Buf::Text(v) => fill(&mut v.iter().map(|text| self.keys.text(text)))?,
            Buf::I64(v) => fill(&mut v.iter().map(|int| self.keys.int(*int)))?,
            Buf::I32(v) => fill(&mut v.iter().map(|int| self.keys.int(i64::from(*int))))?,
            Buf::F32(v) => fill(&mut v.iter().map(|x| self.keys.int(to_i64(f64::from(*x)))))?,
            Buf::F64(v) => fill(&mut v.iter().map(|x| self.keys.int(to_i64(*x))))?,
            Buf::Bool(_) => return Err(malformed("its input is bool")),
        }
        Ok(Value::f32(shape, hot).into())
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self) + self.keys.memory_bytes()
    }
}

struct LabelEncoder {
    keys: Keys,
    /// One for each key, and the one for what is no key.
    values: Buf<'static>,
    default: u32,
}

fn label_encoder(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    fn list<T>(vec: Vec<T>) -> Slice<'static, T> {
        Slice::Owned(vec)
    }
    let node = site.node;
    let texts = |name: &str| -> Result<Buf<'static>, Fault> {
        Ok(Buf::Text(list(node.texts(name)?.into_iter().map(|text| Cow::Owned(text.to_owned())).collect())))
    };
    let default_text = || Ok::<_, Fault>(Cow::Owned(node.text("default_string", "_Unused")?.to_owned()));
    let default_int = || node.int("default_int64", -1);
    if site.version < 2 {
        let classes = texts("classes_strings")?;
        let numbers = Buf::I64(list((0_i64..).take(classes.len()).collect()));
        let from_text = matches!(site.input(0)?.buf, Buf::Text(_));
        let (keys, values) = if from_text { (classes, numbers) } else { (numbers, classes) };
        let values =
            with_default(values, Buf::I64(list(vec![default_int()?])), Buf::Text(list(vec![default_text()?])))?;
        return encoder(site, &keys, values, Doubles::Last);
    }
    let side = |prefix: &str| -> Result<Buf<'static>, Fault> {
        let [tensor, strings, ints, floats] =
            ["tensor", "strings", "int64s", "floats"].map(|kind| format!("{prefix}_{kind}"));
        if let Some(value) = node.tensor(&tensor)? {
            return Ok(value.buf);
        }
        if node.has(&strings) {
            texts(&strings)
        } else if node.has(&ints) {
            Ok(Buf::I64(list(node.ints(&ints)?)))
        } else {
            Ok(Buf::F32(list(node.floats(&floats)?)))
        }
    };
    let values = side("values")?;
    let default = match (node.tensor("default_tensor")?, &values) {
        (Some(value), _) => value.buf,
        (None, Buf::Text(_)) => Buf::Text(list(vec![default_text()?])),
        (None, Buf::I64(_)) => Buf::I64(list(vec![default_int()?])),
        (None, Buf::F32(_)) => Buf::F32(list(vec![node.float("default_float", -0.0)?])),
        (None, other) => return Err(unsupported(format!("values of type {} without a default", other.type_name()))),
    };
    let values = with_default(values, default.clone(), default)?;
    encoder(site, &side("keys")?, values, Doubles::First)
}

/// Appends the default of the values' type to them.
fn with_default(values: Buf<'static>, a: Buf<'static>, b: Buf<'static>) -> Result<Buf<'static>, Fault> {
    fn joined<T: Clone>(values: Slice<'static, T>, default: &[T]) -> Result<Slice<'static, T>, Fault> {
        let mut values = values.into_vec();
        values.push(default.first().cloned().ok_or_else(|| malformed("its default is empty"))?);
        Ok(Slice::Owned(values))
    }
    Ok(match (values, a, b) {
        (Buf::Text(v), Buf::Text(d), _) | (Buf::Text(v), _, Buf::Text(d)) => Buf::Text(joined(v, &d)?),
        (Buf::I64(v), Buf::I64(d), _) | (Buf::I64(v), _, Buf::I64(d)) => Buf::I64(joined(v, &d)?),
        (Buf::F32(v), Buf::F32(d), _) => Buf::F32(joined(v, &d)?),
        (Buf::F64(v), Buf::F64(d), _) => Buf::F64(joined(v, &d)?),
        (v, d, _) => {
            return Err(malformed(format!("its values are {}, its default is {}", v.type_name(), d.type_name())));
        }
    })
}

fn encoder(site: &Site<'_, '_>, keys: &Buf<'_>, values: Buf<'static>, doubles: Doubles) -> Result<Box<dyn Op>, Fault> {
    let input = site.input(0)?;
    if keys.len() + 1 != values.len() {
        return Err(malformed(format!("{} keys and {} values", keys.len(), values.len().saturating_sub(1))));
    }
    if input.buf.type_name() != keys.type_name() {
        return Err(malformed(format!("its input is {}, its keys are {}", input.buf.type_name(), keys.type_name())));
    }
    let default = u32::try_from(keys.len()).map_err(|_| malformed("there are too many keys"))?;
    let mut keys = Keys::new(keys, doubles)?;
    if let Keys::Floats(keys) = &mut keys
        && site.version < 4
    {
        // Until version 4 nothing equals NaN, not even the key NaN.
        keys.retain(|(key, _)| *key != f64::NAN.to_bits());
    }
    Ok(Box::new(LabelEncoder { keys, values, default }))
}

impl Op for LabelEncoder {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let places: Vec<Option<u32>> = match &value.buf {
            Buf::Text(v) => v.iter().map(|text| self.keys.text(text)).collect(),
            Buf::I64(v) => v.iter().map(|int| self.keys.int(*int)).collect(),
            Buf::F32(v) => v.iter().map(|x| self.keys.float(f64::from(*x))).collect(),
            Buf::F64(v) => v.iter().map(|x| self.keys.float(*x)).collect(),
            other => return Err(malformed(format!("its input is {}", other.type_name()))),
        };
        let places = places.into_iter().map(|place| place.unwrap_or(self.default) as usize);
        let buf = match &self.values {
            Buf::Text(v) => {
                Buf::Text(Slice::Owned(places.filter_map(|at| v.get(at).map(|text| Cow::Borrowed(&**text))).collect()))
            }
            other => {
                let places: Vec<_> = places.collect();
                each!(other, v => Slice::Owned(places.iter().filter_map(|at| v.get(*at).cloned()).collect()))
            }
        };
        Ok(Value { shape: value.shape, buf }.into())
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self) + self.keys.memory_bytes() + self.values.memory_bytes()
    }
}

/// LinearClassifier and LinearRegressor.
struct Linear {
    /// One row of as many numbers as there are features for each target.
    coefficients: Vec<f32>,
    intercepts: Vec<f32>,
    features: usize,
    transform: Transform,
    /// Of a classifier.
    labels: Option<Labels>,
}

impl Linear {
    fn classifier(site: &Site<'_, '_>) -> Result<Self, Fault> {
        let labels = Labels::of(site, "classlabels_ints")?;
        let intercepts = site.node.floats("intercepts")?;
        if intercepts.len() != labels.len() && !(intercepts.len() == 1 && labels.len() == 2) {
            return Err(malformed(format!("{} intercepts for {} classes", intercepts.len(), labels.len())));
        }
        let linear = Self::new(site, intercepts, Some(labels))?;
        if linear.intercepts.len() == 1 && linear.transform == Transform::Probit {
            return Err(unsupported("PROBIT of two classes"));
        }
        Ok(linear)
    }

    fn regressor(site: &Site<'_, '_>) -> Result<Self, Fault> {
        let targets = site.node.int("targets", 1)?;
        let mut intercepts = site.node.floats("intercepts")?;
        let coefficients = site.node.floats("coefficients")?.len();
        let targets = usize::try_from(targets).ok().filter(|targets| (1..=coefficients).contains(targets));
        let targets =
            targets.ok_or_else(|| malformed(format!("{coefficients} coefficients do not fit its targets")))?;
        if intercepts.is_empty() {
            intercepts = vec![0.0; targets];
        }
        if intercepts.len() != targets {
            return Err(malformed(format!("{} intercepts for {targets} targets", intercepts.len())));
        }
        Self::new(site, intercepts, None)
    }

    fn new(site: &Site<'_, '_>, intercepts: Vec<f32>, labels: Option<Labels>) -> Result<Self, Fault> {
        let coefficients = site.node.floats("coefficients")?;
        let features = site.input(0)?.shape.matrix()?.1;
        if coefficients.len() != features.saturating_mul(intercepts.len()) {
            let count = coefficients.len();
            return Err(malformed(format!(
                "{count} coefficients for {features} features and {} targets",
                intercepts.len()
            )));
        }
        Ok(Self { coefficients, intercepts, features, transform: Transform::of(site)?, labels })
    }
}

impl Op for Linear {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let (rows, width) = value.shape.matrix()?;
        if width != self.features {
            return Err(malformed(format!("{width} columns for {} features", self.features)));
        }
        let targets = self.intercepts.len();
        let shape = Shape::within(&[rows, targets], args.limit)?;
        let mut scores = product(&value.buf.to_f32()?, &self.coefficients, (rows, width, targets), true);
        scores.iter_mut().zip(self.intercepts.iter().cycle()).for_each(|(score, intercept)| *score += intercept);
        let Some(labels) = &self.labels else {
            if targets == 1 {
                scores.iter_mut().for_each(|score| *score = self.transform.apply_alone(*score));
            } else {
                scores.chunks_mut(targets).for_each(|row| self.transform.apply(row));
            }
            return Ok(Value::f32(shape, scores).into());
        };
        if targets == 1 {
            let classes: Vec<_> = scores.iter().map(|score| usize::from(*score > 0.0)).collect();
            let both = |score: &f32| match self.transform {
                Transform::Logistic => [logistic(-score), logistic(*score)],
                _ => [1.0 - score, *score],
            };
            let scores = scores.iter().flat_map(both).collect();
            return Ok(Outputs::Two(labels.pick(&classes)?, Value::f32(Shape::new(&[rows, 2])?, scores)));
        }
        let classes: Vec<_> = scores.chunks(targets).map(argmax).collect();
        scores.chunks_mut(targets).for_each(|row| self.transform.apply(row));
        Ok(Outputs::Two(labels.pick(&classes)?, Value::f32(shape, scores)))
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self)
            + size_of_val(self.coefficients.as_slice())
            + size_of_val(self.intercepts.as_slice())
            + self.labels.as_ref().map_or(0, Labels::memory_bytes)
    }
}
