//! Linear, logistic and softmax regression, as one small JSON document: the format `linear`.
//!
//! ```json
//! {"kind": "softmax", "features": ["length", "width"],
//!  "coefficients": [[0.4, -1.0], [0.1, 0.7]], "intercepts": [0.2, -0.2],
//!  "classes": ["short", "wide"], "input": "input"}
//! ```
//!
//! | field | meaning |
//! |---|---|
//! | `kind` | `linear`, `logistic` or `softmax` |
//! | `features` | the names of the columns, in order |
//! | `coefficients` | one list per score, each with one number per feature (scikit-learn's `coef_`) |
//! | `intercepts` | one number per score (scikit-learn's `intercept_`) |
//! | `classes` | optional: the labels, two for `logistic` (negative, positive), one per score for `softmax` |
//! | `input` | optional: the name of the input, `input` by default |
//!
//! The one input is FP32 of shape `[-1, features]`. What comes out:
//!
//! | kind | outputs |
//! |---|---|
//! | `linear` | `prediction`, FP32: `[-1]` for one score, `[-1, k]` for k of them |
//! | `logistic` | `probability` of the positive class, FP32 `[-1]`; `label`, BYTES `[-1]`, when `classes` are given |
//! | `softmax` | `probabilities`, FP32 `[-1, k]`; `label`, BYTES `[-1]`, when `classes` are given |
//!
//! Sums are made in `f64`. A NaN among the features makes the row's numbers NaN, and its label the first class, as
//! scikit-learn's `argmax` has it.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::{Data, DataType, Dim, InferError, LoadError, Loader, Model, Signature, Tensor, TensorSpec};

const FORMAT: &str = "linear";

/// The loader of the format `linear`: linear, logistic and softmax regression from a JSON document.
///
/// The document has `kind`, `features`, `coefficients` (one list per score), `intercepts`, and optionally `classes`
/// and `input`:
///
/// ```
/// use hotserve_models::{Data, LinearLoader, Loader, Tensor};
///
/// let file = br#"{"kind": "linear", "features": ["x", "y"], "coefficients": [[2.0, 3.0]], "intercepts": [1.0]}"#;
/// let model = LinearLoader.load(file)?;
/// let rows = Tensor::new(vec![2, 2], Data::Fp32(vec![1.0, 1.0, 0.0, 5.0]))?;
/// assert_eq!(model.infer(&[rows])?[0].as_f32(), Some(&[6.0, 16.0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct LinearLoader;

impl Loader for LinearLoader {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn recognizes(&self, bytes: &[u8]) -> bool {
        let Some(rest) = bytes.trim_ascii_start().strip_prefix(b"{") else { return false };
        let Some(rest) = rest.trim_ascii_start().strip_prefix(b"\"") else { return false };
        let key = rest.split(|byte| *byte == b'"').next().unwrap_or_default();
        [&b"kind"[..], b"features", b"coefficients", b"intercepts", b"classes", b"input"].contains(&key)
    }

    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        let document: Document = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        Ok(Box::new(Linear::new(document)?))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Linear,
    Logistic,
    Softmax,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    kind: Kind,
    features: Vec<String>,
    coefficients: Vec<Vec<f64>>,
    intercepts: Vec<f64>,
    classes: Option<Vec<String>>,
    #[serde(default = "default_input")]
    input: String,
}

fn default_input() -> String {
    "input".to_owned()
}

struct Linear {
    kind: Kind,
    signature: Signature,
    features: usize,
    /// Row-major, one row of `features` numbers per score.
    coefficients: Vec<f64>,
    intercepts: Vec<f64>,
    classes: Option<Vec<String>>,
}

impl Linear {
    fn new(document: Document) -> Result<Self, LoadError> {
        let Document { kind, features, coefficients, intercepts, classes, input } = document;
        let (width, scores) = (features.len(), coefficients.len());
        check_names("feature", &features)?;
        if width == 0 {
            return Err(malformed("there are no features"));
        }
        if input.is_empty() {
            return Err(malformed("the name of the input is empty"));
        }
        match kind {
            Kind::Linear if scores == 0 => return Err(malformed("there are no coefficients")),
            Kind::Logistic if scores != 1 => {
                return Err(malformed(format!("logistic has 1 list of coefficients, not {scores}")));
            }
            Kind::Softmax if scores < 2 => {
                return Err(malformed(format!("softmax has 2 lists of coefficients or more, not {scores}")));
            }
            _ => {}
        }
        if let Some((at, row)) = coefficients.iter().enumerate().find(|(_, row)| row.len() != width) {
            return Err(malformed(format!("coefficients[{at}] has {} numbers for {width} features", row.len())));
        }
        if intercepts.len() != scores {
            return Err(malformed(format!("there are {} intercepts for {scores} scores", intercepts.len())));
        }
        if coefficients.iter().flatten().chain(&intercepts).any(|number| !number.is_finite()) {
            return Err(malformed("a coefficient or intercept is not finite"));
        }
        if let Some(classes) = &classes {
            check_names("class", classes)?;
            let wanted = match kind {
                Kind::Linear => return Err(malformed("linear has no classes")),
                Kind::Logistic => 2,
                Kind::Softmax => scores,
            };
            if classes.len() != wanted {
                return Err(malformed(format!("there are {} classes, not {wanted}", classes.len())));
            }
        }
        let signature = signature(kind, input, features, scores, classes.is_some());
        let coefficients = coefficients.concat();
        Ok(Self { kind, signature, features: width, coefficients, intercepts, classes })
    }

    fn scores(&self, row: &[f32], scores: &mut [f64]) {
        let weights = self.coefficients.chunks_exact(self.features);
        for ((score, weights), intercept) in scores.iter_mut().zip(weights).zip(&self.intercepts) {
            let sum: f64 = row.iter().zip(weights).map(|(x, weight)| f64::from(*x) * weight).sum();
            *score = sum + intercept;
        }
    }
}

impl Model for Linear {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let rows = self.signature.check_inputs(inputs)?;
        let data = inputs.first().and_then(Tensor::as_f32).unwrap_or_default();
        let outputs = self.intercepts.len();
        let mut numbers = Vec::with_capacity(rows.saturating_mul(outputs));
        let mut labels = self.classes.as_ref().map(|_| Vec::with_capacity(rows));
        let mut scores = vec![0.0; outputs];
        for row in data.chunks_exact(self.features) {
            self.scores(row, &mut scores);
            let winner = match self.kind {
                Kind::Linear => None,
                Kind::Logistic => Some(usize::from(scores.first().is_some_and(|score| *score > 0.0))),
                Kind::Softmax => Some(argmax(&scores)),
            };
            match self.kind {
                Kind::Linear => {}
                Kind::Logistic => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
                Kind::Softmax => softmax(&mut scores),
            }
            numbers.extend(scores.iter().map(|score| *score as f32));
            if let (Some(labels), Some(classes), Some(winner)) = (&mut labels, &self.classes, winner) {
                labels.extend(classes.get(winner).cloned());
            }
        }
        let shape = match self.kind {
            Kind::Softmax => vec![rows, outputs],
            Kind::Linear if outputs > 1 => vec![rows, outputs],
            _ => vec![rows],
        };
        let mut answers = vec![tensor(shape, Data::Fp32(numbers))?];
        if let Some(labels) = labels {
            answers.push(tensor(vec![rows], Data::Bytes(labels))?);
        }
        Ok(answers)
    }

    fn memory_bytes(&self) -> usize {
        let classes = self.classes.iter().flatten();
        size_of::<Self>()
            + size_of_val(self.coefficients.as_slice())
            + size_of_val(self.intercepts.as_slice())
            + classes.map(|class| size_of::<String>() + class.capacity()).sum::<usize>()
            + self.signature.memory_bytes()
    }

    fn engine(&self) -> &'static str {
        "linear"
    }
}

fn signature(kind: Kind, input: String, features: Vec<String>, scores: usize, labelled: bool) -> Signature {
    let number = |name: &str, shape: Vec<Dim>| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape,
        features: Vec::new(),
    };
    let mut outputs = vec![match kind {
        Kind::Linear if scores == 1 => number("prediction", vec![Dim::Any]),
        Kind::Linear => number("prediction", vec![Dim::Any, Dim::Fixed(scores)]),
        Kind::Logistic => number("probability", vec![Dim::Any]),
        Kind::Softmax => number("probabilities", vec![Dim::Any, Dim::Fixed(scores)]),
    }];
    if labelled {
        outputs.push(TensorSpec { datatype: DataType::Bytes, ..number("label", vec![Dim::Any]) });
    }
    let shape = vec![Dim::Any, Dim::Fixed(features.len())];
    Signature { inputs: vec![TensorSpec { name: input, datatype: DataType::Fp32, shape, features }], outputs }
}

fn check_names(what: &str, names: &[String]) -> Result<(), LoadError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if name.is_empty() {
            return Err(malformed(format!("the name of a {what} is empty")));
        }
        if !seen.insert(name) {
            return Err(malformed(format!("{what} {name:?} is named twice")));
        }
    }
    Ok(())
}

/// The first of the greatest, as numpy's `argmax` has it; 0 when all are NaN.
fn argmax(scores: &[f64]) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (at, score) in scores.iter().enumerate() {
        if *score > best.1 {
            best = (at, *score);
        }
    }
    best.0
}

// Either branch raises e to a number that is not positive, so that nothing overflows.
fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

fn softmax(scores: &mut [f64]) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
    }
    let sum: f64 = scores.iter().sum();
    for score in scores.iter_mut() {
        *score /= sum;
    }
}

fn tensor(shape: Vec<usize>, data: Data) -> Result<Tensor, InferError> {
    Tensor::new(shape, data).map_err(|error| InferError::Failed(error.to_string()))
}

fn malformed(detail: impl Into<String>) -> LoadError {
    LoadError::Malformed { format: FORMAT, detail: detail.into() }
}
