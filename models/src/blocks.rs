//! Large batches, answered a block of rows at a time: rows are independent of each other, and what an engine unfolds
//! them into need not be in memory for all of them at once.
//!
//! The answer is: one that no memory has room for is refused.

use std::ops::Range;

use crate::{Data, InferError, Tensor};

/// Elements of an output of more than one block: 1 GB of FP32.
const MAX_ANSWERED: usize = 1 << 28;

/// Answers so many rows by blocks of them; a batch of one block is passed on as it is.
pub(crate) fn run(
    inputs: &[Tensor],
    rows: usize,
    block: usize,
    answer: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, InferError>,
) -> Result<Vec<Tensor>, InferError> {
    if rows <= block {
        return answer(inputs);
    }
    let mut whole: Vec<(Vec<usize>, Data)> = Vec::new();
    for from in (0..rows).step_by(block.max(1)) {
        let part = answer(&rows_of(inputs, from..rows.min(from.saturating_add(block.max(1))))?)?;
        if from == 0 {
            whole = part.iter().map(|tensor| begun(tensor, rows)).collect::<Result<_, _>>()?;
        }
        if part.len() != whole.len() {
            return Err(InferError::Failed("an output is missing".to_owned()));
        }
        whole.iter_mut().zip(part).try_for_each(|((shape, data), part)| append(shape, data, part))?;
    }
    let whole = whole.into_iter().map(|(shape, data)| Tensor::new(shape, data));
    whole.collect::<Result<_, _>>().map_err(|error| InferError::Failed(error.to_string()))
}

/// The output of all rows, of those of the first block.
fn begun(tensor: &Tensor, rows: usize) -> Result<(Vec<usize>, Data), InferError> {
    let inner = tensor.shape().iter().skip(1);
    let elements = inner.clone().fold(rows, |product, length| product.saturating_mul(*length));
    if elements > MAX_ANSWERED {
        let width = elements / rows.max(1);
        return Err(InferError::BadInput(format!(
            "{rows} rows of {width} answered elements are too many at once: {MAX_ANSWERED} elements are the most"
        )));
    }
    let shape = std::iter::once(rows).chain(inner.copied()).collect();
    Ok((shape, Data::with_capacity(tensor.datatype(), elements)))
}

fn append(shape: &[usize], data: &mut Data, part: Tensor) -> Result<(), InferError> {
    let (part_shape, part) = part.into_parts();
    if shape.get(1..) != part_shape.get(1..) {
        return Err(InferError::Failed("two rows are answered in two shapes".to_owned()));
    }
    match (data, part) {
        (Data::Bool(all), Data::Bool(v)) => all.extend(v),
        (Data::Int32(all), Data::Int32(v)) => all.extend(v),
        (Data::Int64(all), Data::Int64(v)) => all.extend(v),
        (Data::Fp32(all), Data::Fp32(v)) => all.extend(v),
        (Data::Fp64(all), Data::Fp64(v)) => all.extend(v),
        (Data::Bytes(all), Data::Bytes(v)) => all.extend(v),
        _ => return Err(InferError::Failed("two rows are answered in two datatypes".to_owned())),
    }
    Ok(())
}

/// The rows of several batches, one batch after the other, as one.
pub fn joined(batches: &[&[Tensor]]) -> Result<Vec<Tensor>, InferError> {
    let tensors = batches.first().map_or(0, |first| first.len());
    let join = |at: usize| {
        let parts = || batches.iter().map(|batch| batch.get(at));
        let rows = parts().flatten().map(|part| part.shape().first().copied().unwrap_or(0)).sum();
        let missing = || InferError::Failed("a tensor is missing".to_owned());
        let (shape, mut data) = begun(parts().next().flatten().ok_or_else(missing)?, rows)?;
        parts().try_for_each(|part| append(&shape, &mut data, part.ok_or_else(missing)?.clone()))?;
        Tensor::new(shape, data).map_err(|error| InferError::Failed(error.to_string()))
    };
    (0..tensors).map(join).collect()
}

/// Some rows of each tensor.
pub fn rows_of(tensors: &[Tensor], rows: Range<usize>) -> Result<Vec<Tensor>, InferError> {
    let some = |tensor: &Tensor| {
        let inner = tensor.shape().iter().skip(1);
        let length: usize = inner.clone().product();
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(inner.copied()).collect();
        let range = rows.start.saturating_mul(length)..rows.end.saturating_mul(length);
        let data = match tensor.data() {
            Data::Bool(v) => Data::Bool(v.get(range).unwrap_or_default().to_vec()),
            Data::Int32(v) => Data::Int32(v.get(range).unwrap_or_default().to_vec()),
            Data::Int64(v) => Data::Int64(v.get(range).unwrap_or_default().to_vec()),
            Data::Fp32(v) => Data::Fp32(v.get(range).unwrap_or_default().to_vec()),
            Data::Fp64(v) => Data::Fp64(v.get(range).unwrap_or_default().to_vec()),
            Data::Bytes(v) => Data::Bytes(v.get(range).unwrap_or_default().to_vec()),
        };
        Tensor::new(shape, data).map_err(|error| InferError::Failed(error.to_string()))
    };
    tensors.iter().map(some).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_no_memory_has_room_for_is_refused_before_it_is_made() {
        let x = Tensor::new(vec![300], Data::Fp32(vec![0.0; 300])).expect("numbers");
        let blocks = std::cell::Cell::new(0);
        let wide = |inputs: &[Tensor]| {
            blocks.set(blocks.get() + 1);
            let rows = inputs[0].rows();
            Ok(vec![Tensor::new(vec![rows, 1 << 20], Data::Bool(vec![false; rows << 20])).expect("it fits")])
        };
        assert!(matches!(run(std::slice::from_ref(&x), 300, 1, wide), Err(InferError::BadInput(_))));
        assert_eq!(blocks.get(), 1);
    }
}
