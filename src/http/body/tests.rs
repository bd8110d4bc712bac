mod forms;

use hotserve_models::{Data, DataType, Dim, TensorSpec};
use proptest::prelude::*;

use super::element::expected;
use super::*;

fn spec(name: &str, datatype: DataType, shape: &[i64], features: &[&str]) -> TensorSpec {
    let dim = |length: &i64| usize::try_from(*length).map_or(Dim::Any, Dim::Fixed);
    TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: shape.iter().map(dim).collect(),
        features: features.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn signature(inputs: Vec<TensorSpec>) -> Signature {
    Signature { inputs, outputs: Vec::new() }
}

fn abc(datatype: DataType) -> Signature {
    signature(vec![spec("x", datatype, &[-1, 3], &["a", "b", "c"])])
}

fn two() -> Signature {
    signature(vec![spec("x", DataType::Fp32, &[-1, 2], &["a", "b"]), spec("word", DataType::Bytes, &[-1], &[])])
}

fn read(body: impl AsRef<[u8]>, signature: &Signature) -> Result<Inputs, Error> {
    parse(body.as_ref(), signature, &Layout::of(signature))
}

/// The shapes and the data, as text: NaN equals itself there.
fn good(signature: &Signature, body: &str) -> String {
    let inputs = read(body, signature).unwrap_or_else(|error| panic!("{body}: {error:?}"));
    let tensors = inputs.tensors.iter().map(|tensor| format!("{:?} {:?}", tensor.shape(), tensor.data()));
    format!("{} rows: {}", inputs.rows, tensors.collect::<Vec<_>>().join(", "))
}

fn bad(signature: &Signature, body: &str, expected: &str) {
    match read(body, signature) {
        Err(Error::Mismatch(message)) => {
            assert!(message.starts_with(expected), "{body}:\n  {message}\nis not\n  {expected}");
        }
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn rows_and_columns_of_every_form_are_the_same_input() {
    let expected = "2 rows: [2, 3] Fp32([1.0, 2.5, NaN, 4.0, 5.0, -6.0])";
    for body in [
        r#"{"instances":[[1,2.5,null],[4,5,-6]]}"#,
        r#"{"instances":[{"a":1,"b":2.5,"c":null},{"a":4,"b":5,"c":-6}]}"#,
        r#"{"instances":[{"c":null,"a":1,"b":2.5},{"b":5,"c":-6,"a":4}]}"#,
        r#"{"instances":[{"\u0061":1,"b":2.5,"c":null},{"a":4,"b":5,"c":-6}]}"#,
        r#"{"instances":[{"x":[1,2.5,null]},{"x":[4,5,-6]}]}"#,
        r#"{"inputs":[[1,2.5,null],[4,5,-6]]}"#,
        r#"{"inputs":{"x":[[1,2.5,null],[4,5,-6]]}}"#,
        r#"{"inputs":{"a":[1,4],"b":[2.5,5],"c":[null,-6]}}"#,
        r#"{"inputs":{"b":[2.5,5],"c":[null,-6],"a":[1,4]}}"#,
        r#"{"inputs":{"x":{"c":[null,-6],"b":[2.5,5],"a":[1,4]}}}"#,
        r#"{"inputs":[{"c":null,"b":2.5,"a":1},{"a":4,"c":-6,"b":5}]}"#,
        r#"{"instances":[[1,2.5,NaN],[4,5,-6]]}"#,
        r#"{"instances":[{"0":1,"1":2.5,"2":null},{"2":-6,"1":5,"0":4}]}"#,
        r#"{"dataframe_records":[{"a":1,"b":2.5,"c":null},{"b":5,"a":4,"c":-6}],"params":{}}"#,
        r#"{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2.5,null],[4,5,-6]]},"params":null}"#,
        r#"{"dataframe_split":{"index":["u",7],"columns":["c","a","b"],"data":[[NaN,1,2.5],[-6,4,5]]}}"#,
        r#"{"dataframe_split":{"data":[[null,1,2.5],[-6,4,5]],"index":[0,1],"columns":["c","a","b"]}}"#,
        r#"{"dataframe_split":{"columns":[2,0,1],"data":[[null,1,2.5],[-6,4,5]]}}"#,
        r#"{"columns":["c","a","b"],"index":[0,1],"data":[[null,1,2.5],[-6,4,5]]}"#,
        r#"{"data":[[null,1,2.5],[-6,4,5]],"columns":["c","a","b"]}"#,
        r#"[{"a":1,"b":2.5,"c":null},{"b":5,"a":4,"c":-6}]"#,
        r#"[[1,2.5,null],[4,5,-6]]"#,
        r#"{"id":"7","parameters":{"deep":[{}]},"signature_name":null,"instances":[[1,2.5,null],[4,5,-6]]}"#,
    ] {
        assert_eq!(good(&abc(DataType::Fp32), body), expected, "{body}");
    }
}

#[test]
fn several_inputs_come_by_name() {
    let expected = r#"2 rows: [2, 2] Fp32([1.0, 2.0, 3.0, 4.0]), [2] Bytes(["hi", "ho"])"#;
    for body in [
        r#"{"instances":[{"x":[1,2],"word":"hi"},{"word":"ho","x":[3,4]}]}"#,
        r#"{"instances":[{"x":{"b":2,"a":1},"word":"hi"},{"word":"ho","x":{"a":3,"b":4}}]}"#,
        r#"{"inputs":{"x":[[1,2],[3,4]],"word":["hi","ho"]}}"#,
        r#"{"inputs":{"word":["hi","ho"],"x":{"b":[2,4],"a":[1,3]}}}"#,
    ] {
        assert_eq!(good(&two(), body), expected, "{body}");
    }
    bad(&two(), r#"{"instances":[[1,2]]}"#, "instances[0]: invalid type: sequence, expected an object by input name");
    bad(&two(), r#"{"instances":[{"x":[1,2]}]}"#, "instances[0]: input \"word\" is missing");
    bad(&two(), r#"{"instances":[{"x":[1,2],"x":[1,2]}]}"#, "instances[0]: input \"x\" is there twice");
    bad(&two(), r#"{"instances":[{"y":1}]}"#, r#"instances[0]: unknown input "y", the model takes "x", "word""#);
    bad(&two(), r#"{"instances":[{"x":[1],"word":"a"}]}"#, r#"instances[0]["x"]: expected 2 values, got 1"#);
    bad(&two(), r#"{"inputs":{"x":[[1,2]]}}"#, "inputs: input \"word\" is missing");
    bad(&two(), r#"{"inputs":{"x":[],"x":[]}}"#, "inputs: input \"x\" is there twice");
    bad(&two(), r#"{"inputs":{"x":[[1,2]],"word":[]}}"#, r#"inputs["word"]: has 0 rows, the others have 1 row"#);
    bad(&two(), r#"{"inputs":[[1,2]]}"#, "inputs: invalid type: sequence, expected an object by input name");
}

#[test]
fn each_datatype_takes_its_values_and_no_others() {
    let one = |datatype| signature(vec![spec("x", datatype, &[-1], &[])]);
    let all = r#"{"instances":[true,false]}"#;
    assert_eq!(good(&one(DataType::Bool), all), "2 rows: [2] Bool([true, false])");
    let all = r#"{"instances":[-2147483648,0,2147483647]}"#;
    assert_eq!(good(&one(DataType::Int32), all), "3 rows: [3] Int32([-2147483648, 0, 2147483647])");
    let all = r#"{"instances":[-9223372036854775808,9223372036854775807]}"#;
    assert_eq!(good(&one(DataType::Int64), all), "2 rows: [2] Int64([-9223372036854775808, 9223372036854775807])");
    let all = r#"{"instances":[0.1,1,-1,18446744073709551616,null]}"#;
    assert_eq!(good(&one(DataType::Fp64), all), "5 rows: [5] Fp64([0.1, 1.0, -1.0, 1.8446744073709552e19, NaN])");
    let all = r#"{"inputs":["","ü\n"]}"#;
    assert_eq!(good(&one(DataType::Bytes), all), "2 rows: [2] Bytes([\"\", \"ü\\n\"])");
    let all = r#"{"instances":[{"x":1},{"x":null}]}"#;
    assert_eq!(good(&one(DataType::Fp32), all), "2 rows: [2] Fp32([1.0, NaN])");

    let refuses = |datatype, value: &str, got: &str| {
        let body = format!("{{\"instances\":[{value}]}}");
        bad(&one(datatype), &body, &format!("instances[0]: expected {}, got {got} at", expected(datatype)));
        let body = format!("{{\"inputs\":[{value}]}}");
        bad(&one(datatype), &body, &format!("inputs[0]: expected {}, got {got} at", expected(datatype)));
    };
    refuses(DataType::Bool, "1", "1");
    refuses(DataType::Bool, "null", "null");
    refuses(DataType::Int32, "2147483648", "2147483648");
    refuses(DataType::Int32, "-2147483649", "-2147483649");
    refuses(DataType::Int32, "1.0", "1.0");
    refuses(DataType::Int32, "null", "null");
    refuses(DataType::Int64, "9223372036854775808", "9223372036854775808");
    refuses(DataType::Int64, "\"1\"", "the string \"1\"");
    refuses(DataType::Fp32, "1e39", "1e39");
    refuses(DataType::Fp32, "\"NaN\"", "the string \"NaN\"");
    refuses(DataType::Fp64, "true", "true");
    refuses(DataType::Fp64, "[1]", "a list");
    refuses(DataType::Bytes, "1", "1");
    let long = format!("\"{}\"", "ü".repeat(100));
    refuses(DataType::Fp64, &long, &format!("the string \"{}\"…", "ü".repeat(40)));
}

#[test]
fn deeper_shapes_nest_and_open_axes_take_one_length() {
    let deep = signature(vec![spec("x", DataType::Int64, &[-1, 2, -1], &[])]);
    let expected = "1 rows: [1, 2, 3] Int64([1, 2, 3, 4, 5, 6])";
    assert_eq!(good(&deep, r#"{"instances":[[[1,2,3],[4,5,6]]]}"#), expected);
    assert_eq!(good(&deep, r#"{"inputs":{"x":[[[1,2,3],[4,5,6]]]}}"#), expected);
    assert_eq!(good(&deep, r#"{"instances":[[[],[]]]}"#), "1 rows: [1, 2, 0] Int64([])");
    bad(&deep, r#"{"instances":[[[1,2],[3]]]}"#, "instances[0][1]: expected 2 values, got 1");
    bad(&deep, r#"{"instances":[[[1],[2]],[[1],[2,3]]]}"#, "instances[1][1]: expected 1 value, got 2");
    bad(&deep, r#"{"instances":[[[1,2],[3,"x"]]]}"#, "instances[0][1][1]: expected an integer");
    bad(&deep, r#"{"instances":[[1,2]]}"#, "instances[0][0]: expected a list of INT64 values, got 1");
    bad(&deep, r#"{"instances":[{}]}"#, "instances[0]: input \"x\" is missing");
    bad(&deep, r#"{"instances":[{"x":[[1],[2]],"y":1}]}"#, "instances[0]: the model takes no input besides \"x\"");
    bad(&deep, r#"{"instances":[{"y":1}]}"#, r#"instances[0]: unknown input "y", the model takes "x""#);
}

#[test]
fn no_rows_are_an_input_too() {
    for body in [r#"{"instances":[]}"#, r#"{"inputs":[]}"#, r#"{"inputs":{"a":[],"b":[],"c":[]}}"#] {
        assert_eq!(good(&abc(DataType::Fp32), body), "0 rows: [0, 3] Fp32([])", "{body}");
    }
    assert_eq!(good(&two(), r#"{"instances":[]}"#), "0 rows: [0, 2] Fp32([]), [0] Bytes([])");
}

#[test]
fn an_error_names_the_row_and_the_feature() {
    let abc = abc(DataType::Fp32);
    for (body, expected) in [
        (
            r#"{"instances":[[1,2,3],[1,"x",3]]}"#,
            r#"instances[1][1] ("b"): expected a number up to 3.4e38 or null (FP32), got the string "x" at line 1 column 28"#,
        ),
        (r#"{"instances":[[1,2,3],[1,2]]}"#, "instances[1]: expected 3 values, got 2 at line 1"),
        (r#"{"instances":[[1,2,3,4]]}"#, "instances[0]: expected 3 values, got 4 at line 1"),
        (r#"{"instances":[7]}"#, "instances[0]: expected a list of 3 FP32 values or an object by feature name, got 7"),
        (
            r#"{"instances":[[[1,2,3]]]}"#,
            r#"instances[0][0] ("a"): expected a number up to 3.4e38 or null (FP32), got a list"#,
        ),
        (
            r#"{"instances":[{"a":1,"b":2,"c":true}]}"#,
            r#"instances[0]["c"]: expected a number up to 3.4e38 or null (FP32), got true"#,
        ),
        (
            r#"{"instances":[{"a":1,"b":2,"c":{}}]}"#,
            r#"instances[0]["c"]: expected a number up to 3.4e38 or null (FP32), got an object"#,
        ),
        (
            r#"{"instances":[[1,2,3],{"a":1,"b":2,"c":3}]}"#,
            "instances[1]: the rows are mixed: this one is by feature name, those before it are without names",
        ),
        (
            r#"{"instances":[{"x":[1,2,3]},[1,2,3]]}"#,
            "instances[1]: the rows are mixed: this one is without names, those before it are by input name",
        ),
        (r#"{"instances":[{"a":1,"b":2,"c":3},{"a":1,"c":3}]}"#, "instances[1]: feature \"b\" is missing"),
        (r#"{"instances":[{}]}"#, "instances[0]: feature \"a\" is missing"),
        (r#"{"instances":[{"a":1,"b":2,"b":3}]}"#, "instances[0]: feature \"b\" is there twice"),
        (
            r#"{"instances":[{"a":1,"b":2,"c":3,"d":4}]}"#,
            r#"instances[0]: unknown feature "d", the model takes "a", "b", "c""#,
        ),
        (
            r#"{"inputs":{"a":[1],"b":[2,3],"c":[4]}}"#,
            "inputs: feature \"b\" has 2 values, those before it have 1 value",
        ),
        (r#"{"inputs":{"a":[1],"b":[2]}}"#, "inputs: feature \"c\" is missing"),
        (r#"{"inputs":{"a":[1],"a":[2]}}"#, "inputs: feature \"a\" is there twice"),
        (r#"{"inputs":{"a":[1,"x"]}}"#, r#"inputs["a"][1]: expected a number"#),
        (
            r#"{"inputs":{"a":1}}"#,
            r#"inputs["a"]: invalid type: integer `1`, expected a list of FP32 values, one a row"#,
        ),
        (r#"{"inputs":7}"#, "inputs: expected a list of rows, got 7"),
        (r#"{"instances":{"a":1}}"#, "instances: invalid type: map, expected a list of rows"),
        (r#"{"instances":[],"inputs":[]}"#, "there are two fields of rows: give the rows once"),
        (r#"{"inputs":[],"inputs":[]}"#, "there is the same field twice: give the rows once"),
        (r#"{"instances":[],"data":[]}"#, "there are two fields of rows: give the rows once"),
        (r#"{"rows":[]}"#, r#"unknown field "rows", expected an object with "instances", "inputs", "dataframe_split""#),
        ("{}", "there are no rows, expected an object with \"instances\", \"inputs\", \"dataframe_split\""),
        (
            r#"{"instances":[{"a":1,"B":2,"c":3}]}"#,
            r#"instances[0]: unknown feature "B", did you mean "b"? The model takes"#,
        ),
        (r#"{"instances":[],"params":{"raw_score":true}}"#, r#"params: "raw_score": the model takes no parameters"#),
        (r#"{"params":[1],"instances":[]}"#, "params: invalid type: sequence, expected no parameters"),
        ("[1,2,3]", "[0]: expected a list of 3 FP32 values or an object by feature name, got 1"),
        (r#"[{"a":1,"b":2,"c":3},{"a":1,"b":2,"c":"x"}]"#, r#"[1]["c"]: expected a number"#),
        ("null", "invalid type: null, expected an object"),
    ] {
        bad(&abc, body, expected);
    }
}

#[test]
fn what_is_no_json_is_told_apart_from_what_does_not_fit() {
    let abc = abc(DataType::Fp32);
    // What is ignored may be as deep as it likes: it is skipped without recursion.
    let deep = format!("{{\"id\":{}1{},\"instances\":[]}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(good(&abc, &deep), "0 rows: [0, 3] Fp32([])");
    for body in [
        "",
        " ",
        "{",
        "nope",
        r#"{"instances":[[1,2,3]"#,
        r#"{"instances":[[1,2,3]]} x"#,
        r#"{"instances":[[1,,3]]}"#,
        r#"{"instances":[[Nan,2,3]]}"#,
        r#"{"instances":[[NaN,2,3}"#,
        r#"{"instances":[[Infinity,2,3]]}"#,
        r#"{"instances":[[1e999,2,3]]}"#,
        "{\"instances\":[[\"\u{1}\"",
    ] {
        assert!(matches!(read(body, &abc), Err(Error::Syntax(_))), "{body}");
    }
    assert!(matches!(read(b"{\"instances\":[[\"\xff\"]]}", &abc), Err(Error::Syntax(_))));
    let Err(Error::Syntax(message)) = read(b"{\"instances\":\n[[1,2,3],]}", &abc) else { panic!("no syntax error") };
    assert_eq!(message, "trailing comma at line 2 column 10");
}

#[test]
fn a_wide_row_in_any_order_is_found() {
    let names: Vec<String> = (0..1000).map(|index| format!("f{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let wide = signature(vec![spec("x", DataType::Int32, &[-1, 1000], &names)]);
    let row = |step: usize| {
        let fields = (0..1000).map(|at| at * step % 1000).map(|index| format!("\"f{index}\":{index}"));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    };
    let body = format!("{{\"instances\":[{},{},{}]}}", row(1), row(7), row(999));
    let inputs = read(&body, &wide).expect("the rows fit");
    let expected: Vec<i32> = (0..3).flat_map(|_| 0..1000).collect();
    assert_eq!(inputs.tensors[0].data(), &Data::Int32(expected));
}

/// Signatures that are odd or absurd: a faulty kind must not bring a worker down.
fn signatures() -> Vec<Signature> {
    vec![
        abc(DataType::Fp32),
        abc(DataType::Bytes),
        two(),
        signature(vec![spec("x", DataType::Bool, &[-1], &[])]),
        signature(vec![spec("x", DataType::Int64, &[-1, 2, -1], &["a"])]),
        signature(vec![spec("x", DataType::Fp64, &[-1, -1], &["a", "a"])]),
        signature(vec![spec("x", DataType::Fp64, &[-1, 0], &[])]),
        signature(vec![spec("x", DataType::Fp64, &[], &[])]),
        signature(vec![]),
    ]
}

/// Bodies that are nearly right, so that the search gets behind the first brace.
fn nearly() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("1".to_owned()),
        Just("-2.5".to_owned()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("\"a\"".to_owned()),
        Just("1e39".to_owned()),
        Just("9223372036854775808".to_owned()),
    ];
    let value = leaf.prop_recursive(4, 64, 4, |inner| {
        let key = prop::sample::select(vec!["a", "b", "c", "x", "word", "y", "columns", "data", "0"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((key, inner), 0..4).prop_map(|fields| {
                let fields = fields.iter().map(|(key, value)| format!("\"{key}\":{value}"));
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }),
        ]
    });
    let roots = ["instances", "inputs", "dataframe_split", "dataframe_records", "data"];
    (prop::sample::select(roots.to_vec()), value).prop_map(|(root, value)| format!("{{\"{root}\":{value}}}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
        for signature in signatures() {
            let _ = read(&body, &signature);
        }
    }

    #[test]
    fn what_is_read_fits_the_signature(body in nearly()) {
        for signature in signatures() {
            if let Ok(inputs) = read(&body, &signature) {
                prop_assert!(signature.check_inputs(&inputs.tensors).is_ok());
                prop_assert!(inputs.tensors.iter().all(|tensor| tensor.rows() == inputs.rows));
            }
        }
    }

    #[test]
    fn a_number_arrives_as_it_was_sent(rows in prop::collection::vec(prop::array::uniform3(any::<f32>()), 0..8)) {
        let finite: Vec<[f32; 3]> = rows.into_iter().filter(|row| row.iter().all(|x| x.is_finite())).collect();
        let lists = serde_json::to_string(&finite).expect("JSON");
        let body = format!("{{\"instances\":{lists}}}");
        let inputs = read(&body, &abc(DataType::Fp32)).expect("the rows fit");
        let sent = finite.concat();
        prop_assert_eq!(inputs.tensors[0].as_f32(), Some(sent.as_slice()));
    }
}
