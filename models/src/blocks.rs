//! Large batches, answered a block of rows at a time: rows are independent of each other, and what an engine unfolds
//! them into need not be in memory for all of them at once.

use std::ops::Range;

use crate::{Data, InferError, Tensor};

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
            let begun = |tensor: &Tensor| {
                let inner = tensor.shape().iter().skip(1);
                let elements = inner.clone().fold(rows, |product, length| product.saturating_mul(*length));
                let shape = std::iter::once(rows).chain(inner.copied()).collect();
                (shape, Data::with_capacity(tensor.datatype(), elements))
            };
            whole = part.iter().map(begun).collect();
        }
        if part.len() != whole.len() {
            return Err(InferError::Failed("an output is missing".to_owned()));
        }
        whole.iter_mut().zip(part).try_for_each(|((shape, data), part)| append(shape, data, part))?;
    }
    let whole = whole.into_iter().map(|(shape, data)| Tensor::new(shape, data));
    whole.collect::<Result<_, _>>().map_err(|error| InferError::Failed(error.to_string()))
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

/// Some rows of each tensor.
pub(crate) fn rows_of(tensors: &[Tensor], rows: Range<usize>) -> Result<Vec<Tensor>, InferError> {
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
