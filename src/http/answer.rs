//! The answer of a prediction: tensors to bytes in one pass.

use hotserve_models::{Data, Signature, Tensor};
use serde::Serialize;

use super::body::each;

/// Writes `{"predictions":[…]` and the tail. With one output a row's prediction is its bare value, with several an
/// object by output name. A number that is not finite becomes null: JSON has no word for it.
///
/// The tensors have passed [`Signature::check_outputs`], with this number of rows.
pub(super) fn write(outputs: &[Tensor], signature: &Signature, rows: usize, tail: &[u8]) -> Vec<u8> {
    let elements: usize = outputs.iter().map(|output| output.data().len()).sum();
    // A float takes 8 to 18 bytes with its comma; the names come again in every row.
    let names: usize = signature.outputs.iter().map(|spec| spec.name.len() + 4).sum();
    let mut out = Vec::with_capacity(elements * 12 + rows * names + tail.len() + 20);
    out.extend_from_slice(b"{\"predictions\":[");
    match outputs {
        [output] => separated(&mut out, 0..rows, |out, row| value(out, output, row)),
        _ => {
            let keys: Vec<Vec<u8>> = signature.outputs.iter().map(|spec| key(&spec.name)).collect();
            separated(&mut out, 0..rows, |out, row| {
                out.push(b'{');
                separated(out, keys.iter().zip(outputs), |out, (key, output)| {
                    out.extend_from_slice(key);
                    value(out, output, row);
                });
                out.push(b'}');
            });
        }
    }
    out.push(b']');
    out.extend_from_slice(tail);
    out
}

/// A name as the key of an object, colon included.
fn key(name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len() + 3);
    element(&mut key, &name);
    key.push(b':');
    key
}

/// One row of an output: a bare value, or a list nested as deep as the shape is.
fn value(out: &mut Vec<u8>, output: &Tensor, row: usize) {
    let inner = output.shape().get(1..).unwrap_or_default();
    // The shape multiplies up to the number of elements, so this cannot overflow.
    let length: usize = inner.iter().product();
    each!(output.data(), values => {
        nested(out, values.get(row * length..(row + 1) * length).unwrap_or_default(), inner);
    });
}

fn nested<T: Serialize>(out: &mut Vec<u8>, values: &[T], shape: &[usize]) {
    let Some((length, inner)) = shape.split_first() else {
        values.iter().for_each(|value| element(out, value));
        return;
    };
    out.push(b'[');
    if inner.is_empty() {
        separated(out, values, element);
    } else {
        let step: usize = inner.iter().product();
        separated(out, 0..*length, |out, at| {
            nested(out, values.get(at * step..(at + 1) * step).unwrap_or_default(), inner);
        });
    }
    out.push(b']');
}

fn element<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("numbers, booleans and text are JSON, and a Vec takes every write");
}

fn separated<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

#[cfg(test)]
mod tests {
    use hotserve_models::{DataType, Dim, TensorSpec};

    use super::*;

    fn check(outputs: &[Tensor], rows: usize, expected: &str) {
        let spec = |(index, tensor): (usize, &Tensor)| TensorSpec {
            name: ["score", "la\"bel"][index].to_owned(),
            datatype: tensor.datatype(),
            shape: vec![Dim::Any; tensor.shape().len()],
            features: Vec::new(),
        };
        let signature = Signature { inputs: vec![], outputs: outputs.iter().enumerate().map(spec).collect() };
        let text = String::from_utf8(write(outputs, &signature, rows, b",\"model\":{}}")).expect("UTF-8");
        assert_eq!(text, format!("{{\"predictions\":{expected},\"model\":{{}}}}"));
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    }

    fn tensor(shape: &[usize], data: Data) -> Tensor {
        Tensor::new(shape.to_vec(), data).expect("the shape fits")
    }

    #[test]
    fn one_output_is_bare_values_and_nested_lists() {
        check(&[tensor(&[2], Data::Fp32(vec![0.1, -2.0]))], 2, "[0.1,-2.0]");
        check(&[tensor(&[2, 2], Data::Int64(vec![1, 2, 3, i64::MIN]))], 2, "[[1,2],[3,-9223372036854775808]]");
        check(&[tensor(&[1, 2, 2], Data::Bool(vec![true, false, false, true]))], 1, "[[[true,false],[false,true]]]");
        check(&[tensor(&[2, 0], Data::Int32(vec![]))], 2, "[[],[]]");
        check(&[tensor(&[1, 2, 0], Data::Int32(vec![]))], 1, "[[[],[]]]");
        check(&[tensor(&[0], Data::with_capacity(DataType::Fp64, 0))], 0, "[]");
        check(&[tensor(&[2], Data::Bytes(vec!["a\"b\n".to_owned(), "ü".to_owned()]))], 2, r#"["a\"b\n","ü"]"#);
    }

    #[test]
    fn several_outputs_are_an_object_by_name() {
        let score = tensor(&[2], Data::Fp64(vec![0.25, 1e300]));
        let label = tensor(&[2, 1], Data::Int32(vec![7, 8]));
        check(&[score, label], 2, r#"[{"score":0.25,"la\"bel":[7]},{"score":1e+300,"la\"bel":[8]}]"#);
    }

    #[test]
    fn what_is_not_finite_is_null() {
        let values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
        check(&[tensor(&[4], Data::Fp32(values))], 4, "[null,null,null,-0.0]");
    }
}
