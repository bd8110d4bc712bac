//! An inference as it is answered: JSON, then the bytes of the tensors that were asked for as bytes. Pure.

use hotserve_models::{Data, Dim, Signature, Tensor, TensorSpec};
use serde::Serialize;

use super::super::body::each;
use super::request::Output;
use super::wire::{raw_len, write_raw};

/// The body of an answer.
#[derive(Debug)]
pub struct Written {
    pub bytes: Vec<u8>,
    /// The length of the JSON, where bytes follow it, be they none.
    pub json: Option<usize>,
}

/// What stands before the outputs.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub id: &'a str,
}

/// Writes the outputs that are wanted. A number that is not finite becomes null in JSON, which has no word for it.
pub fn write(head: Head<'_>, outputs: &[Tensor], signature: &Signature, wanted: &[Output]) -> Written {
    let chosen = || {
        wanted.iter().filter_map(|output| {
            Some((signature.outputs.get(output.index)?, outputs.get(output.index)?, output.binary))
        })
    };
    let size: usize = chosen().map(|(_, tensor, binary)| 100 + room(tensor, binary)).sum();
    let mut out = Vec::with_capacity(120 + head.id.len() + size);
    out.extend_from_slice(b"{\"model_name\":");
    json(&mut out, head.name);
    out.extend_from_slice(b",\"model_version\":");
    json(&mut out, head.version);
    out.extend_from_slice(b",\"id\":");
    json(&mut out, head.id);
    out.extend_from_slice(b",\"outputs\":[");
    for (place, (spec, tensor, binary)) in chosen().enumerate() {
        out.extend_from_slice(if place == 0 { b"{\"name\":" } else { b",{\"name\":" });
        json(&mut out, &spec.name);
        out.extend_from_slice(b",\"datatype\":\"");
        out.extend_from_slice(tensor.datatype().as_str().as_bytes());
        out.extend_from_slice(b"\",\"shape\":");
        json(&mut out, tensor.shape());
        if binary {
            out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
            json(&mut out, &raw_len(tensor));
            out.extend_from_slice(b"}}");
        } else {
            out.extend_from_slice(b",\"data\":[");
            each!(tensor.data(), values => flat(&mut out, values));
            out.extend_from_slice(b"]}");
        }
    }
    out.extend_from_slice(b"]}");
    let length = out.len();
    let mut any = false;
    for (_, tensor, _) in chosen().filter(|(_, _, binary)| *binary) {
        any = true;
        write_raw(tensor, &mut out);
    }
    Written { bytes: out, json: any.then_some(length) }
}

/// The outputs of no rows, for which no model is asked.
pub fn empty(signature: &Signature) -> Vec<Tensor> {
    let tensor = |spec: &TensorSpec| {
        let inner = spec.shape.iter().skip(1).map(|dim| if let Dim::Fixed(length) = dim { *length } else { 0 });
        let shape = std::iter::once(0).chain(inner).collect();
        Tensor::new(shape, Data::with_capacity(spec.datatype, 0)).expect("nothing fits into no rows")
    };
    signature.outputs.iter().map(tensor).collect()
}

fn room(tensor: &Tensor, binary: bool) -> usize {
    // A float takes 8 to 18 bytes with its comma.
    if binary { raw_len(tensor) } else { tensor.data().len() * 12 }
}

fn flat<T: Serialize>(out: &mut Vec<u8>, values: &[T]) {
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json(out, value);
    }
}

fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("numbers, booleans and text are JSON, and a Vec takes every write");
}

#[cfg(test)]
mod tests {
    use hotserve_models::DataType;

    use super::*;

    fn signature() -> Signature {
        let spec = |name: &str, datatype, shape: &[Dim]| TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
            features: Vec::new(),
        };
        let outputs =
            vec![spec("y", DataType::Fp32, &[Dim::Any, Dim::Fixed(2)]), spec("la\"bel", DataType::Bytes, &[Dim::Any])];
        Signature { inputs: vec![], outputs }
    }

    fn outputs() -> Vec<Tensor> {
        let y = Tensor::new(vec![1, 2], Data::Fp32(vec![0.1, f32::NAN])).expect("fits");
        let label = Tensor::new(vec![1], Data::Bytes(vec!["ü\n".to_owned()])).expect("fits");
        vec![y, label]
    }

    const HEAD: Head<'_> = Head { name: "m", version: "7", id: "a\"b" };
    const START: &str = r#"{"model_name":"m","model_version":"7","id":"a\"b","outputs":["#;

    #[test]
    fn outputs_are_json_in_the_order_in_which_they_are_wanted() {
        let wanted = [Output { index: 1, binary: false }, Output { index: 0, binary: false }];
        let written = write(HEAD, &outputs(), &signature(), &wanted);
        let expected = r#"{"name":"la\"bel","datatype":"BYTES","shape":[1],"data":["ü\n"]},{"name":"y","datatype":"FP32","shape":[1,2],"data":[0.1,null]}]}"#;
        assert_eq!(String::from_utf8(written.bytes).expect("UTF-8"), format!("{START}{expected}"));
        assert_eq!(written.json, None);
    }

    #[test]
    fn bytes_stand_behind_the_json_in_its_order() {
        let wanted = [Output { index: 1, binary: true }, Output { index: 0, binary: true }];
        let written = write(HEAD, &outputs(), &signature(), &wanted);
        let (json, bytes) = written.bytes.split_at(written.json.expect("there are bytes"));
        let json: serde_json::Value = serde_json::from_slice(json).expect("JSON");
        assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 7);
        assert_eq!(json["outputs"][1]["parameters"]["binary_data_size"], 8);
        assert_eq!(
            bytes,
            [b"\x03\0\0\0\xc3\xbc\n".as_slice(), &0.1_f32.to_le_bytes(), &f32::NAN.to_le_bytes()].concat()
        );
        let mixed = [Output { index: 0, binary: false }, Output { index: 1, binary: true }];
        let written = write(HEAD, &outputs(), &signature(), &mixed);
        assert_eq!(written.bytes.len() - written.json.expect("there are bytes"), 7);
    }

    #[test]
    fn no_rows_have_the_shape_of_none() {
        let none = empty(&signature());
        assert_eq!(none.iter().map(Tensor::shape).collect::<Vec<_>>(), [&[0, 2][..], &[0]]);
    }
}
