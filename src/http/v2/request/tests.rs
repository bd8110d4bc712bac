use hotserve_models::{Data, DataType};

use super::*;

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    let dim = |dim: &i64| usize::try_from(*dim).map_or(Dim::Any, Dim::Fixed);
    TensorSpec { name: name.to_owned(), datatype, shape: shape.iter().map(dim).collect(), features: Vec::new() }
}

fn sole(datatype: DataType, shape: &[i64]) -> Signature {
    let outputs = vec![spec("y", DataType::Fp32, &[-1]), spec("z", DataType::Bytes, &[-1, 1])];
    Signature { inputs: vec![spec("x", datatype, shape)], outputs }
}

fn pair() -> Signature {
    Signature { inputs: vec![spec("a", DataType::Fp32, &[-1, 2]), spec("b", DataType::Bytes, &[-1])], outputs: vec![] }
}

/// As the server reads it, with the model's own layout.
fn parse(body: &[u8], header: Option<&str>, signature: &Signature) -> Result<Request, Error> {
    super::parse(body, header, signature, &Layout::of(signature))
}

fn ask(json: &str, signature: &Signature) -> Request {
    parse(json.as_bytes(), None, signature).unwrap_or_else(|error| panic!("{json}: {error:?}"))
}

fn refused(json: &str, signature: &Signature, expected: &str) {
    match parse(json.as_bytes(), None, signature) {
        Err(Error::Bad(detail)) => assert!(detail.contains(expected), "{json}: {detail}"),
        other => panic!("{json}: {other:?}"),
    }
}

fn floats(request: &Request) -> (&[usize], &[f32]) {
    (request.tensors[0].shape(), request.tensors[0].as_f32().expect("FP32"))
}

#[test]
fn data_are_flat_or_nested_in_any_order_of_fields() {
    let signature = sole(DataType::Fp32, &[-1, 2]);
    for json in [
        r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2.5,3,-4e0]}]}"#,
        r#"{"inputs":[{"data":[[1,2.5],[3,-4]],"datatype":"FP32","shape":[2,2],"name":"x"}],"outputs":null,"id":null}"#,
        r#"{"model_name":"m","inputs":[{"shape":[2,2],"data":[[1,2.5],[3,-4]],"name":"x","datatype":"FP64","more":[{}]}]}"#,
        r#"{"parameters":{"priority":3,"sequence_id":0},"inputs":[{"name":"x","parameters":null,"datatype":"FP32","data":[[1,2.5],[3,-4]],"shape":[2,2]}]}"#,
    ] {
        let request = ask(json, &signature);
        assert_eq!(floats(&request), (&[2, 2][..], &[1.0, 2.5, 3.0, -4.0][..]), "{json}");
        assert_eq!((request.rows, request.outputs.len()), (2, 2));
        assert!(request.outputs.iter().all(|output| !output.binary) && request.id.is_none());
    }
}

#[test]
fn each_element_is_read_as_its_datatype_says() {
    let one = |datatype: &str, value: &str, takes: DataType| {
        let json = format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"{datatype}","data":[{value}]}}]}}"#);
        let signature = sole(takes, &[-1]);
        parse(json.as_bytes(), None, &signature).map(|request| request.tensors[0].data().clone())
    };
    assert_eq!(one("UINT8", "255", DataType::Int64), Ok(Data::Int64(vec![255])));
    assert_eq!(one("INT64", "7.0", DataType::Int32), Ok(Data::Int32(vec![7])));
    assert_eq!(one("BOOL", "true", DataType::Bool), Ok(Data::Bool(vec![true])));
    assert_eq!(one("BOOL", "1.0", DataType::Bool), Ok(Data::Bool(vec![true])), "a client without booleans");
    assert_eq!(one("BYTES", "\"\\u00fc\"", DataType::Bytes), Ok(Data::Bytes(vec!["ü".to_owned()])));
    assert_eq!(one("FP32", "16777217", DataType::Fp32), Ok(Data::Fp32(vec![16_777_216.0])), "it is a float's text");
    assert!(matches!(one("FP32", "null", DataType::Fp32), Ok(Data::Fp32(values)) if values[0].is_nan()));
    for (datatype, value, takes, told) in [
        ("UINT8", "256", DataType::Int64, "element 0: expected UINT8, and a whole number that INT64 can hold, got 256"),
        ("INT8", "-129", DataType::Fp32, "got -129"),
        ("INT64", "3000000000", DataType::Int32, "a whole number that INT32 can hold, got 3000000000"),
        ("INT64", "1.5", DataType::Int64, "got 1.5"),
        ("INT64", "1e300", DataType::Int64, "got 1e300"),
        ("INT64", "null", DataType::Int64, "got null"),
        ("INT32", "16777217", DataType::Fp32, "a number that FP32 can hold"),
        ("FP64", "1e39", DataType::Fp32, "a number that FP32 can hold"),
        ("FP32", "\"1\"", DataType::Fp32, "got \"1\""),
        ("FP32", "true", DataType::Fp32, "got true"),
        ("FP32", "{}", DataType::Fp32, "got an object"),
        ("BOOL", "2", DataType::Bool, "expected true or false, got 2"),
        ("BOOL", "0.5", DataType::Bool, "expected true or false, got 0.5"),
        ("BYTES", "1", DataType::Bytes, "expected a string, got 1"),
        ("BOOL", "true", DataType::Fp32, "input \"x\" takes FP32, not BOOL"),
        ("FP33", "1", DataType::Fp32, "\"FP33\" is no datatype"),
    ] {
        match one(datatype, value, takes) {
            Err(Error::Bad(detail)) => assert!(detail.contains(told), "{detail}"),
            other => panic!("{datatype} {value}: {other:?}"),
        }
    }
}

#[test]
fn what_does_not_fit_is_told_by_name() {
    let signature = sole(DataType::Fp32, &[-1, 2]);
    let input = |fields: &str| format!(r#"{{"inputs":[{{{fields}}}]}}"#);
    let whole = r#""name":"x","datatype":"FP32","shape":[2,2]"#;
    for (fields, told) in [
        (format!(r#"{whole},"data":[1,2,3]"#), "takes 4 elements, not 3"),
        (format!(r#"{whole},"data":[[1,2,3],[4]]"#), "a list of 1 beside one of 3, before element 4"),
        (format!(r#"{whole},"data":[[1],[2],[3],[4]]"#), "nested as [4, 1], the shape is [2, 2]"),
        (format!(r#"{whole},"data":[1,[2],3,4]"#), "element 1: lists and values are mixed"),
        (format!(r#"{whole},"data":[[1,2],3]"#), "element 2: lists and values are mixed"),
        (format!(r#"{whole},"data":7"#), "data is a list, not 7"),
        (format!(r#"{whole},"data":null"#), "input \"x\" has no data"),
        (format!(r#"{whole},"data":[1,2,3,4],"parameters":{{"binary_data_size":16}}"#), "both data and"),
        (format!(r#"{whole},"data":[1,2,3,4],"data":[1,2,3,4]"#), "\"data\" is there twice"),
        (r#""name":"x","datatype":"FP32","shape":[2,3],"data":[]"#.to_owned(), "has shape [-1, 2], not [2, 3]"),
        (r#""name":"x","datatype":"FP32","shape":[4],"data":[]"#.to_owned(), "has 2 axes ([-1, 2]), not 1"),
        (r#""name":"x","datatype":"FP32","shape":[-1,2],"data":[]"#.to_owned(), "-1"),
        (r#""name":"x","datatype":"FP32","shape":[1.0,2],"data":[]"#.to_owned(), "1.0"),
        (r#""name":"x","datatype":"FP32","data":[]"#.to_owned(), "input \"x\" has no shape"),
        (r#""name":"x","shape":[1,2],"data":[]"#.to_owned(), "input \"x\" has no datatype"),
        (r#""datatype":"FP32","shape":[1,2],"data":[]"#.to_owned(), "an input has no name"),
        (r#""name":"w","datatype":"FP32","shape":[1,2],"data":[]"#.to_owned(), "no input \"w\"; it has \"x\""),
    ] {
        refused(&input(&fields), &signature, told);
    }
    let x = format!(r#"{{{whole},"data":[1,2,3,4]}}"#);
    for (json, told) in [
        (format!(r#"{{"inputs":[{x},{x}]}}"#), "input \"x\" is there twice"),
        (format!(r#"{{"inputs":[{x}],"inputs":[]}}"#), "\"inputs\" is there twice"),
        (format!(r#"{{"inputs":[{x}],"outputs":[{{"name":"w"}}]}}"#), "no output \"w\"; it has \"y\", \"z\""),
        (format!(r#"{{"inputs":[{x}],"outputs":[{{}}]}}"#), "an output has no name"),
        (format!(r#"{{"inputs":[{x}],"outputs":[{{"name":"z"}},{{"name":"z"}}]}}"#), "output \"z\" is asked for twice"),
        (format!(r#"{{"id":7,"inputs":[{x}]}}"#), "expected a string"),
        (format!(r#"{{"inputs":[{x}]}} more"#), "no JSON: trailing"),
        (r#"{"inputs":[]}"#.to_owned(), "input \"x\" is missing (FP32)"),
        ("{}".to_owned(), "there are no inputs"),
        ("[]".to_owned(), "expected a request"),
        (String::new(), "no JSON: EOF"),
    ] {
        refused(&json, &signature, told);
    }
}

#[test]
fn what_would_be_answered_wrongly_is_refused_by_name() {
    let signature = sole(DataType::Fp32, &[-1]);
    for (parameters, named) in
        [(r#""sequence_id":1"#, "sequence_id"), (r#""x":1,"sequence_start":true"#, "sequence_start")]
    {
        let json = format!(r#"{{"parameters":{{{parameters}}},"inputs":[]}}"#);
        let told = Err(Error::Unsupported(format!("the parameter {named:?} is not supported")));
        assert_eq!(parse(json.as_bytes(), None, &signature).map(|_| ()), told);
    }
    let shared = r#"{"inputs":[{"name":"x","parameters":{"shared_memory_region":"r"}}]}"#;
    assert!(matches!(parse(shared.as_bytes(), None, &signature), Err(Error::Unsupported(_))));
}

#[test]
fn tensors_behind_the_json_are_taken_in_the_order_of_the_inputs() {
    let signature = pair();
    let json = r#"{"id":"i","inputs":[{"name":"b","shape":[2],"datatype":"BYTES","parameters":{"binary_data_size":9}},
        {"name":"a","shape":[2,2],"datatype":"UINT8","parameters":{"binary_data_size":4}}]}"#;
    let tail = b"\x01\0\0\0b\0\0\0\0\x01\x02\x03\x04";
    let body = [json.as_bytes(), tail].concat();
    let header = json.len().to_string();
    let request = parse(&body, Some(&header), &signature).expect("valid");
    assert_eq!(floats(&request), (&[2, 2][..], &[1.0, 2.0, 3.0, 4.0][..]));
    assert_eq!(request.tensors[1].data(), &Data::Bytes(vec!["b".to_owned(), String::new()]));
    assert_eq!(request.id.as_deref(), Some("i"));
    let told = |body: &[u8], header: &str, expected: &str| match parse(body, Some(header), &signature) {
        Err(Error::Bad(detail)) => assert!(detail.contains(expected), "{detail}"),
        other => panic!("{other:?}"),
    };
    told(&body[..body.len() - 1], &header, "binary_data_size is 4, and 3 bytes are left");
    told(&[&body[..], b"x"].concat(), &header, "1 bytes are left behind the last tensor");
    told(&body, &(body.len() + 1).to_string(), "the body has");
    for bad in ["-1", "+5", "1e2", "", " 5", "99999999999999999999999"] {
        told(&body, bad, "no length");
    }
    told(&body, &(json.len() - 1).to_string(), "no JSON: EOF");
    told(&body, &(json.len() + 1).to_string(), "no JSON: trailing");
    let huge = json.replace(":9}", ":18446744073709551615}");
    told(huge.as_bytes(), &huge.len().to_string(), "binary_data_size is 18446744073709551615, and 0 bytes");
    let wrong = json.replace(":9}", ":8}").replace(":4}", ":5}");
    told(&[wrong.as_bytes(), tail].concat(), &wrong.len().to_string(), "within the length of element 1 of 2");
}

#[test]
fn outputs_are_binary_as_each_or_all_of_them_say() {
    let signature = sole(DataType::Fp32, &[-1]);
    let ask = |rest: &str| {
        let json = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":[1]}}]{rest}}}"#);
        ask(&json, &signature).outputs.iter().map(|output| (output.index, output.binary)).collect::<Vec<_>>()
    };
    assert_eq!(ask(r#","parameters":{"binary_data_output":true}"#), [(0, true), (1, true)]);
    assert_eq!(ask(r#","outputs":[{"name":"z","parameters":{"binary_data":true}}]"#), [(1, true)]);
    let both = r#","outputs":[{"name":"z","parameters":{"binary_data":false}},{"name":"y"}],"parameters":{"binary_data_output":true}"#;
    assert_eq!(ask(both), [(1, false), (0, true)]);
    assert_eq!(ask(r#","outputs":[]"#), [(0, false), (1, false)]);
}

#[test]
fn a_body_without_json_is_the_only_input() {
    let raw = |body: &[u8], signature: &Signature| parse(body, Some("0"), signature);
    let rows = raw(&[0; 24], &sole(DataType::Fp32, &[-1, 3])).expect("two rows");
    assert_eq!((rows.tensors[0].shape(), rows.rows), (&[2, 3][..], 2));
    assert!(rows.outputs.iter().all(|output| output.binary) && rows.outputs.len() == 2);
    let row = raw(&[0; 24], &sole(DataType::Fp64, &[-1, -1])).expect("one row");
    assert_eq!(row.tensors[0].shape(), [1, 3]);
    let text = raw(b"some text", &sole(DataType::Bytes, &[-1])).expect("one element");
    assert_eq!(text.tensors[0].data(), &Data::Bytes(vec!["some text".to_owned()]));
    for (body, signature, expected) in [
        (&[0_u8; 25][..], sole(DataType::Fp32, &[-1, 3]), "25 bytes are no whole number"),
        (&[0; 24], sole(DataType::Fp32, &[-1, -1, -1]), "several axes of any length"),
        (&[0; 24], pair(), "this one has 2"),
        (&[0xff], sole(DataType::Bytes, &[-1]), "UTF-8"),
        (b"ab", sole(DataType::Bytes, &[-1, 2]), "has shape [-1, 2], not [1, 1]"),
    ] {
        match raw(body, &signature) {
            Err(Error::Bad(detail)) => assert!(detail.contains(expected), "{detail}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_error_repeats_no_more_than_the_start_of_a_text() {
    let json = format!(r#"{{"inputs":"{}"}}"#, "ü".repeat(5000));
    match parse(json.as_bytes(), None, &sole(DataType::Fp32, &[-1])) {
        Err(Error::Bad(detail)) => assert!(detail.len() < 1000 && detail.contains("üü… at line 1"), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn deep_json_is_refused_wherever_it_is() {
    let signature = sole(DataType::Fp32, &[-1]);
    let deep = "[".repeat(100_000);
    for json in [deep.clone(), format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1],"data":{deep}"#)] {
        refused(&json, &signature, "");
    }
    refused(&format!(r#"{{"other":{deep}"#), &signature, "no JSON");
    refused(&format!(r#"{{"inputs":[{{"data":{deep}"#), &signature, "no JSON");
}

#[test]
fn an_input_that_is_there_twice_is_refused_before_its_data_are_read() {
    let signature = sole(DataType::Fp32, &[-1]);
    let input = |fields: &str| format!(r#"{{"name":"x","datatype":"FP32","shape":[1],{fields}}}"#);
    for data in ["[true]", "[1", "7"] {
        let (first, again) = (input(r#""data":[1]"#), input(&format!(r#""data":{data}"#)));
        refused(&format!(r#"{{"inputs":[{first},{again}]}}"#), &signature, "input \"x\" is there twice");
    }
    let binary = input(r#""parameters":{"binary_data_size":4}"#);
    refused(&format!(r#"{{"inputs":[{binary},{binary}]}}"#), &signature, "input \"x\" is there twice");
}

#[test]
fn all_shapes_of_a_text_together_claim_no_more_room_than_the_text_has() {
    let signature = pair();
    let layout = Layout::of(&signature);
    let context = Context::new(&signature, &layout, 100);
    assert_eq!([20, usize::MAX, usize::MAX, 1].map(|claimed| context.room(claimed)), [20, 30, 0, 0]);
    // What has no room made for it is read all the same.
    let json = r#"{"inputs":[{"name":"a","datatype":"FP32","shape":[1,2],"data":[1,2]},
        {"name":"b","datatype":"BYTES","shape":[1],"data":["b"]}]}"#;
    let claims = json.replace("[1,2],\"data\"", "[4000000000,2],\"data\"");
    assert_eq!(ask(json, &signature).rows, 1);
    refused(&claims, &signature, "takes 8000000000 elements, not 2");
}
