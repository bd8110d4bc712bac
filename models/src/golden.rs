//! Golden cases: inputs with the outputs that the model must give for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Data, Dim, InferError, Model, Signature, Tensor, TensorSpec};

/// Cases that a model must answer as its publisher says, or it is not served.
///
/// ```json
/// {"cases": [{"inputs": {"input": [[5.1, null]]}, "outputs": {"prediction": [0.25]}, "tolerance": 1e-6}]}
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Golden {
    /// The cases, each a batch of its own.
    pub cases: Vec<Case>,
}

/// One batch of inputs, and what must come out.
///
/// Tensors are nested JSON arrays. In a floating-point tensor `null` and `"NaN"` are NaN, and `"Infinity"` and
/// `"-Infinity"` are what they say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Every input of the model, by name.
    pub inputs: BTreeMap<String, Value>,
    /// The outputs to compare, by name; others are not looked at.
    pub outputs: BTreeMap<String, Value>,
    /// How far a number may be off: `|got - expected| <= tolerance * max(1, |expected|)`. 1e-6 by default.
    #[serde(default = "default_tolerance")]
    pub tolerance: f64,
}

fn default_tolerance() -> f64 {
    1e-6
}

/// Why a model did not pass its golden cases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GoldenError {
    /// The case does not fit the model's signature, or could not fail.
    #[error("golden case {case}: {detail}")]
    Unusable {
        /// Which case, from 0.
        case: usize,
        /// What does not fit.
        detail: String,
    },
    /// The model answered with an error.
    #[error("golden case {case}: infer")]
    Infer {
        /// Which case, from 0.
        case: usize,
        /// The model's error.
        #[source]
        source: InferError,
    },
    /// The model answers NaN or an infinity in an output that the case does not name.
    #[error("golden case {case}: output {output:?}, which it does not name, has {got}")]
    NonFinite {
        /// Which case, from 0.
        case: usize,
        /// The output's name.
        output: String,
        /// NaN, or which infinity.
        got: f64,
    },
    /// The model's answer is another one.
    #[error("golden case {case}: output {output:?}, row {row}, column {column}: expected {expected}, got {got}")]
    Differs {
        /// Which case, from 0.
        case: usize,
        /// The output's name.
        output: String,
        /// The row within the case, from 0.
        row: usize,
        /// The element within the row, from 0.
        column: usize,
        /// What the case says.
        expected: String,
        /// What the model said.
        got: String,
    },
}

impl Golden {
    /// Runs every case; the first that the model does not answer as expected is the error.
    pub fn check(&self, model: &dyn Model) -> Result<(), GoldenError> {
        self.cases.iter().enumerate().try_for_each(|(at, case)| case.check(at, model, false))
    }

    /// Runs every case, as [`check`](Self::check) does; what the cases do not expect must be a finite number besides.
    pub fn check_finite(&self, model: &dyn Model) -> Result<(), GoldenError> {
        self.cases.iter().enumerate().try_for_each(|(at, case)| case.check(at, model, true))
    }
}

impl Case {
    /// Its inputs, in the order and datatypes of the signature. What does not fit is said for a person.
    pub fn inputs(&self, signature: &Signature) -> Result<Vec<Tensor>, String> {
        check_names("input", &self.inputs, &signature.inputs)?;
        let inputs = signature.inputs.iter().map(|spec| {
            let value = self.inputs.get(&spec.name).ok_or_else(|| format!("it lacks input {:?}", spec.name))?;
            tensor(spec, value).map_err(|detail| format!("input {:?}: {detail}", spec.name))
        });
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        signature.check_inputs(&inputs).map_err(|error| error.to_string())?;
        Ok(inputs)
    }

    fn check(&self, case: usize, model: &dyn Model, finite: bool) -> Result<(), GoldenError> {
        let unusable = |detail: String| GoldenError::Unusable { case, detail };
        if !(self.tolerance.is_finite() && self.tolerance >= 0.0) {
            return Err(unusable(format!("tolerance {} is not a finite number from 0", self.tolerance)));
        }
        if self.outputs.is_empty() {
            return Err(unusable("it expects no outputs".to_owned()));
        }
        let signature = model.signature();
        check_names("output", &self.outputs, &signature.outputs).map_err(unusable)?;
        let inputs = self.inputs(signature).map_err(unusable)?;
        let answers = model.infer(&inputs).map_err(|source| GoldenError::Infer { case, source })?;
        for (spec, got) in signature.outputs.iter().zip(&answers) {
            let Some(value) = self.outputs.get(&spec.name) else {
                match got.data().first_non_finite().filter(|_| finite) {
                    Some((_, got)) => return Err(GoldenError::NonFinite { case, output: spec.name.clone(), got }),
                    None => continue,
                }
            };
            let expected =
                tensor(spec, value).map_err(|detail| unusable(format!("output {:?}: {detail}", spec.name)))?;
            if expected.shape() != got.shape() {
                return Err(unusable(format!(
                    "output {:?} is expected in shape {:?}, and came in shape {:?}",
                    spec.name,
                    expected.shape(),
                    got.shape()
                )));
            }
            let width = got.shape().iter().skip(1).product::<usize>().max(1);
            if let Some((at, expected, got)) = first_difference(expected.data(), got.data(), self.tolerance) {
                let (row, column) = (at / width, at % width);
                return Err(GoldenError::Differs { case, output: spec.name.clone(), row, column, expected, got });
            }
        }
        Ok(())
    }
}

fn check_names(what: &str, given: &BTreeMap<String, Value>, specs: &[TensorSpec]) -> Result<(), String> {
    match given.keys().find(|name| specs.iter().all(|spec| spec.name != **name)) {
        Some(name) => Err(format!("the model has no {what} {name:?}")),
        None => Ok(()),
    }
}

/// Where two buffers differ first, and both elements as text. The caller has compared the shapes.
fn first_difference(expected: &Data, got: &Data, tolerance: f64) -> Option<(usize, String, String)> {
    fn find<T: std::fmt::Debug>(a: &[T], b: &[T], same: impl Fn(&T, &T) -> bool) -> Option<(usize, String, String)> {
        let at = a.iter().zip(b).position(|(a, b)| !same(a, b))?;
        Some((at, format!("{:?}", a.get(at)?), format!("{:?}", b.get(at)?)))
    }
    match (expected, got) {
        (Data::Bool(a), Data::Bool(b)) => find(a, b, PartialEq::eq),
        (Data::Int32(a), Data::Int32(b)) => find(a, b, PartialEq::eq),
        (Data::Int64(a), Data::Int64(b)) => find(a, b, PartialEq::eq),
        (Data::Bytes(a), Data::Bytes(b)) => find(a, b, PartialEq::eq),
        (Data::Fp32(a), Data::Fp32(b)) => find(a, b, |a, b| close(f64::from(*a), f64::from(*b), tolerance)),
        (Data::Fp64(a), Data::Fp64(b)) => find(a, b, |a, b| close(*a, *b, tolerance)),
        _ => Some((0, expected.datatype().to_string(), got.datatype().to_string())),
    }
}

fn close(expected: f64, got: f64, tolerance: f64) -> bool {
    if expected.is_nan() || got.is_nan() {
        return expected.is_nan() && got.is_nan();
    }
    // An infinite allowance would let everything pass.
    if expected.is_infinite() || got.is_infinite() {
        return expected == got;
    }
    (got - expected).abs() <= tolerance * expected.abs().max(1.0)
}

/// Reads a nested JSON array as a tensor of the datatype and rank that a specification gives.
fn tensor(spec: &TensorSpec, value: &Value) -> Result<Tensor, String> {
    let mut reader = Reader { rank: spec.shape.len(), shape: Vec::new(), data: Data::with_capacity(spec.datatype, 0) };
    reader.read(value, 0)?;
    let mut shape = reader.shape;
    // An empty array says nothing about its inner axes: they are what the specification wants.
    for dim in spec.shape.iter().skip(shape.len()) {
        shape.push(match dim {
            Dim::Fixed(length) => *length,
            Dim::Any => 0,
        });
    }
    Tensor::new(shape, reader.data).map_err(|error| error.to_string())
}

struct Reader {
    rank: usize,
    /// The length of each axis met so far; every array on the same axis must have the same length.
    shape: Vec<usize>,
    data: Data,
}

impl Reader {
    fn read(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        if depth == self.rank {
            return self.push(value);
        }
        let Value::Array(elements) = value else {
            return Err(format!("an array of {} axes is expected, and {value} stands on axis {depth}", self.rank));
        };
        match self.shape.get(depth) {
            None => self.shape.push(elements.len()),
            Some(length) if *length == elements.len() => {}
            Some(length) => return Err(format!("axis {depth} has both {length} and {} elements", elements.len())),
        }
        elements.iter().try_for_each(|element| self.read(element, depth + 1))
    }

    fn push(&mut self, value: &Value) -> Result<(), String> {
        let datatype = self.data.datatype();
        let unfit = || format!("{value} is no {datatype}");
        match &mut self.data {
            Data::Bool(v) => v.push(value.as_bool().ok_or_else(unfit)?),
            Data::Int32(v) => v.push(value.as_i64().and_then(|x| i32::try_from(x).ok()).ok_or_else(unfit)?),
            Data::Int64(v) => v.push(value.as_i64().ok_or_else(unfit)?),
            Data::Fp64(v) => v.push(float(value).ok_or_else(unfit)?),
            Data::Fp32(v) => {
                let wide = float(value).ok_or_else(unfit)?;
                let narrow = wide as f32;
                if narrow.is_infinite() && wide.is_finite() {
                    return Err(unfit());
                }
                v.push(narrow);
            }
            Data::Bytes(v) => v.push(value.as_str().ok_or_else(unfit)?.to_owned()),
        }
        Ok(())
    }
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Null => Some(f64::NAN),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LinearLoader, Loader};

    /// A sum of two numbers, with what a case says of it: empty when it passes.
    fn check(inputs: &str, outputs: &str) -> String {
        let file =
            br#"{"kind": "linear", "features": ["x", "y"], "coefficients": [[1, 1]], "intercepts": [0], "input": "in"}"#;
        let model = LinearLoader.load(file).expect("the model is sound");
        let golden = format!(r#"{{"cases": [{{"inputs": {inputs}, "outputs": {outputs}}}]}}"#);
        let golden: Golden = serde_json::from_str(&golden).expect("the case is JSON");
        golden.check(&*model).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_right_answer_passes_and_a_wrong_one_is_named() {
        assert_eq!(check(r#"{"in": [[1, 2], [3, 4]]}"#, r#"{"prediction": [3, 7.000001]}"#), "");
        assert_eq!(
            check(r#"{"in": [[1, 2], [3, 4]]}"#, r#"{"prediction": [3, 7.1]}"#),
            r#"golden case 0: output "prediction", row 1, column 0: expected 7.1, got 7.0"#
        );
    }

    #[test]
    fn nan_is_only_equal_to_nan_and_infinity_only_to_itself() {
        assert_eq!(check(r#"{"in": [[1, null]]}"#, r#"{"prediction": [null]}"#), "");
        assert_eq!(check(r#"{"in": [["Infinity", 1]]}"#, r#"{"prediction": ["Infinity"]}"#), "");
        let nan = check(r#"{"in": [[1, null]]}"#, r#"{"prediction": [1]}"#);
        assert!(nan.ends_with("expected 1.0, got NaN"), "{nan}");
        let number = check(r#"{"in": [[1, 1]]}"#, r#"{"prediction": ["Infinity"]}"#);
        assert!(number.ends_with("expected inf, got 2.0"), "{number}");
    }

    #[test]
    fn a_case_that_does_not_fit_the_model_is_an_error_and_no_pass() {
        for (inputs, outputs, says) in [
            (r#"{"in": [[1, 2]]}"#, r#"{}"#, "expects no outputs"),
            (r#"{"in": [[1, 2]]}"#, r#"{"label": ["a"]}"#, r#"no output "label""#),
            (r#"{"out": [[1, 2]]}"#, r#"{"prediction": [3]}"#, r#"no input "out""#),
            (r#"{}"#, r#"{"prediction": [3]}"#, r#"lacks input "in""#),
            (r#"{"in": [[1, 2], [3]]}"#, r#"{"prediction": [3]}"#, "axis 1 has both 2 and 1"),
            (r#"{"in": [1, 2]}"#, r#"{"prediction": [3]}"#, "2 axes"),
            (r#"{"in": [[1, "2"]]}"#, r#"{"prediction": [3]}"#, r#""2" is no FP32"#),
            (r#"{"in": [[1, 1e300]]}"#, r#"{"prediction": [3]}"#, "is no FP32"),
            (r#"{"in": [[1, 2]]}"#, r#"{"prediction": [3, 3]}"#, "shape [2], and came in shape [1]"),
            (r#"{"in": [[1, 2, 3]]}"#, r#"{"prediction": [3]}"#, "shape [-1,2]"),
        ] {
            let error = check(inputs, outputs);
            assert!(error.contains(says), "{inputs} {outputs}: {error:?} does not say {says:?}");
        }
    }

    #[test]
    fn what_a_case_does_not_name_must_be_finite_where_that_is_asked_for() {
        let file = br#"{"kind": "logistic", "features": ["x"], "coefficients": [[1]], "intercepts": [0],
            "classes": ["no", "yes"]}"#;
        let model = LinearLoader.load(file).expect("the model is sound");
        let golden = |x: &str| -> Golden {
            let text = format!(r#"{{"cases": [{{"inputs": {{"input": [[{x}]]}}, "outputs": {{"label": ["no"]}}}}]}}"#);
            serde_json::from_str(&text).expect("the case is JSON")
        };
        assert!(golden("0").check_finite(&*model).is_ok());
        assert!(golden("null").check(&*model).is_ok());
        let error = golden("null").check_finite(&*model).expect_err("NaN").to_string();
        assert_eq!(error, r#"golden case 0: output "probability", which it does not name, has NaN"#);
    }

    #[test]
    fn no_rows_are_a_case_too() {
        assert_eq!(check(r#"{"in": []}"#, r#"{"prediction": []}"#), "");
    }
}
