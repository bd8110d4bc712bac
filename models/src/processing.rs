//! A host's own steps around a model: what a request brings becomes what the model takes, and what the model answers
//! becomes what the request gets.
//!
//! They are part of the model that is served: it is warmed, checked against its golden cases and measured with them.

use std::sync::Arc;

use crate::{InferError, Model, Signature, Tensor, TensorSpec};

/// What is done with tensors. It has the duties of [`Model::infer`]: no panic, no blocking, no state between calls, and
/// a row's answer does not depend on the other rows. An [`InferError::BadInput`] is told to who asked.
type Step = Arc<dyn Fn(Vec<Tensor>) -> Result<Vec<Tensor>, InferError> + Send + Sync>;

/// Steps around one model, or around all.
///
/// Of several, the inputs meet what is done before the model in the order in which it was added, and so do the outputs
/// with what is done after it. A new model is warmed with a row of zeros and empty texts: a step must take that.
///
/// ```
/// use hotserve_models::{Data, InferError, Processing, Tensor};
///
/// // A model that answers logarithms, and clients who want what they are of.
/// let exponential = Processing::default().after(|mut outputs| {
///     let answer = outputs.pop().ok_or_else(|| InferError::Failed("no output".to_owned()))?;
///     let numbers = answer.as_f32().unwrap_or_default().iter().map(|number| number.exp()).collect();
///     let answer = Tensor::new(answer.shape().to_vec(), Data::Fp32(numbers));
///     Ok(vec![answer.map_err(|error| InferError::Failed(error.to_string()))?])
/// });
/// # let _ = exponential;
/// ```
#[derive(Clone, Default)]
pub struct Processing {
    before: Vec<Step>,
    after: Vec<Step>,
    takes: Option<Vec<TensorSpec>>,
    gives: Option<Vec<TensorSpec>>,
}

impl Processing {
    /// Does this with the inputs. It gets and gives tensors in the order of the signature's inputs.
    #[must_use]
    pub fn before(
        mut self,
        step: impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>, InferError> + Send + Sync + 'static,
    ) -> Self {
        self.before.push(Arc::new(step));
        self
    }

    /// Does this with the outputs. It gets and gives tensors in the order of the signature's outputs.
    #[must_use]
    pub fn after(
        mut self,
        step: impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>, InferError> + Send + Sync + 'static,
    ) -> Self {
        self.after.push(Arc::new(step));
        self
    }

    /// What requests bring, where that is not what the model takes.
    #[must_use]
    pub fn takes(self, inputs: Vec<TensorSpec>) -> Self {
        Self { takes: Some(inputs), ..self }
    }

    /// What requests get, where that is not what the model gives.
    #[must_use]
    pub fn gives(self, outputs: Vec<TensorSpec>) -> Self {
        Self { gives: Some(outputs), ..self }
    }

    /// These steps, and those behind them.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.before.extend(other.before.iter().cloned());
        self.after.extend(other.after.iter().cloned());
        // The first to see the inputs says what they are, the last to see the outputs what those are.
        Self { takes: self.takes.or_else(|| other.takes.clone()), gives: other.gives.clone().or(self.gives), ..self }
    }

    /// The model with these steps around it; itself, if there are none.
    pub(crate) fn around(self, model: Box<dyn Model>) -> Box<dyn Model> {
        let Self { before, after, takes, gives } = self;
        if before.is_empty() && after.is_empty() && takes.is_none() && gives.is_none() {
            return model;
        }
        let Signature { inputs, outputs } = model.signature().clone();
        let signature = Signature { inputs: takes.unwrap_or(inputs), outputs: gives.unwrap_or(outputs) };
        Box::new(Processed { model, before, after, signature })
    }
}

/// A model and the steps around it.
struct Processed {
    model: Box<dyn Model>,
    before: Vec<Step>,
    after: Vec<Step>,
    signature: Signature,
}

/// Every method of the trait is passed on: one with a default must be written here too.
impl Model for Processed {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let outputs = if self.before.is_empty() {
            self.model.infer(inputs)?
        } else {
            let inputs = self.before.iter().try_fold(inputs.to_vec(), |tensors, step| step(tensors))?;
            // The model counts on its caller, which here is the host's own code.
            self.model.signature().check_inputs(&inputs).map_err(|error| {
                InferError::Failed(format!("what is done before the model gives what it does not take: {error}"))
            })?;
            self.model.infer(&inputs)?
        };
        self.after.iter().try_fold(outputs, |tensors, step| step(tensors))
    }

    fn memory_bytes(&self) -> usize {
        self.model.memory_bytes().saturating_add(self.signature.memory_bytes())
    }

    fn engine(&self) -> &'static str {
        self.model.engine()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Data, DataType, Dim, Loader as _, Loaders};

    const SUM: &[u8] = br#"{"kind": "linear", "features": ["a", "b"], "coefficients": [[1, 1]], "intercepts": [0]}"#;

    fn map(tensors: &[Tensor], change: impl Fn(f32) -> f32) -> Vec<Tensor> {
        let one = |tensor: &Tensor| {
            let numbers = tensor.as_f32().expect("floats").iter().copied().map(&change).collect();
            Tensor::new(tensor.shape().to_vec(), Data::Fp32(numbers)).expect("the same shape")
        };
        tensors.iter().map(one).collect()
    }

    fn answer(loaders: &Loaders, name: &str, row: &[f32]) -> Result<f32, InferError> {
        let model = crate::LinearLoader.load(SUM).expect("a sound model");
        let model = loaders.dress(Some(name), model);
        let row = Tensor::new(vec![1, row.len()], Data::Fp32(row.to_vec())).expect("a row");
        assert!(model.signature().check_inputs(std::slice::from_ref(&row)).is_ok(), "{:?}", model.signature());
        let outputs = model.infer(&[row])?;
        Ok(outputs[0].as_f32().expect("floats")[0])
    }

    #[test]
    fn steps_are_done_in_the_order_in_which_they_were_added_and_only_around_their_model() {
        let mut loaders = Loaders::bundled();
        let step = |change: fn(f32) -> f32| move |tensors: Vec<Tensor>| Ok(map(&tensors, change));
        loaders.process(Some("sum"), Processing::default().before(step(|x| x + 1.0)).after(step(|y| y * 10.0)));
        loaders.process(None, Processing::default().before(step(|x| x * 2.0)).after(step(|y| y + 0.5)));
        assert!((answer(&loaders, "sum", &[1.0, 2.0]).expect("answered") - 100.5).abs() < 1e-6);
        assert!((answer(&loaders, "other", &[1.0, 2.0]).expect("answered") - 6.5).abs() < 1e-6);
        assert!((answer(&Loaders::bundled(), "sum", &[1.0, 2.0]).expect("answered") - 3.0).abs() < 1e-6);
    }

    #[test]
    fn a_step_may_take_other_inputs_than_the_model_and_a_wrong_one_is_the_servers_fault() {
        let wide = TensorSpec {
            name: "x".to_owned(),
            datatype: DataType::Fp32,
            shape: vec![Dim::Any, Dim::Fixed(1)],
            features: vec![],
        };
        let twice = |tensors: Vec<Tensor>| {
            let numbers = tensors[0].as_f32().expect("floats").iter().flat_map(|x| [*x, *x]).collect();
            Ok(vec![Tensor::new(vec![tensors[0].rows(), 2], Data::Fp32(numbers)).expect("two columns")])
        };
        let mut loaders = Loaders::bundled();
        loaders.process(Some("sum"), Processing::default().takes(vec![wide.clone()]).before(twice));
        assert!((answer(&loaders, "sum", &[4.0]).expect("answered") - 8.0).abs() < 1e-6);

        let mut loaders = Loaders::bundled();
        loaders.process(Some("sum"), Processing::default().takes(vec![wide]).before(Ok));
        assert!(matches!(answer(&loaders, "sum", &[4.0]), Err(InferError::Failed(_))));
        let mut loaders = Loaders::bundled();
        let refuse = |_| Err(InferError::BadInput("not on Sundays".to_owned()));
        loaders.process(None, Processing::default().before(refuse));
        assert!(matches!(answer(&loaders, "sum", &[1.0, 2.0]), Err(InferError::BadInput(_))));
    }
}
