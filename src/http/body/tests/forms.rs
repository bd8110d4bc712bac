//! Tables and CSV, and that every form of a table is the same input.

use hotserve_models::{Data, DataType};
use proptest::prelude::*;
use serde_json::Value;

use super::*;

#[test]
fn a_table_that_does_not_fit_is_told_where() {
    let abc = abc(DataType::Fp32);
    for (split, expected) in [
        (r#""columns":["a","b"],"data":[]"#, r#"dataframe_split.columns: column "c" is missing"#),
        (r#""columns":["a","b","a","c"],"data":[]"#, r#"dataframe_split.columns[2]: column "a" is there twice"#),
        (
            r#""columns":["a","bb","c"],"data":[]"#,
            r#"dataframe_split.columns[1]: unknown column "bb", the model takes "a", "b", "c""#,
        ),
        (
            r#""columns":["a","b","c",["d"]],"data":[]"#,
            "dataframe_split.columns[3]: invalid type: sequence, expected the name",
        ),
        (r#""columns":["a","b","c",3],"data":[]"#, r#"dataframe_split.columns[3]: unknown column "3""#),
        (r#""columns":{},"data":[]"#, "dataframe_split.columns: invalid type: map, expected a list of the names"),
        (
            r#""columns":["c","b","a"],"data":[[1,2,3],[1,"x",3]]"#,
            r#"dataframe_split.data[1]["b"]: expected a number up to 3.4e38 or null (FP32), got the string "x" at line 1"#,
        ),
        (r#""columns":["a","b","c"],"data":[[1,2,3],[1,2,"x"]]"#, r#"dataframe_split.data[1]["c"]: expected a number"#),
        (
            r#""columns":["a","b","c"],"data":[[1,2]]"#,
            "dataframe_split.data[0]: expected 3 values, one a column, got 2",
        ),
        (
            r#""columns":["c","b","a"],"data":[[1,2]]"#,
            "dataframe_split.data[0]: expected 3 values, one a column, got 2",
        ),
        (
            r#""columns":["c","b","a"],"data":[[1,2,3,4,5]]"#,
            "dataframe_split.data[0]: expected 3 values, one a column, got 5",
        ),
        (
            r#""columns":["a","b","c"],"data":[[1,2,3,4,5]]"#,
            "dataframe_split.data[0]: expected 3 values, one a column, got 5",
        ),
        (
            r#""columns":["a","b","c"],"data":[7]"#,
            "dataframe_split.data[0]: invalid type: integer `7`, expected a list of 3 values",
        ),
        (r#""columns":["a","b","c"],"data":{}"#, "dataframe_split.data: invalid type: map, expected a list of rows"),
        (r#""columns":["a","b","c"]"#, r#"dataframe_split: there is no "data" beside "columns""#),
        (r#""data":[[1,2,3]]"#, r#"dataframe_split: there is no "columns" beside "data""#),
        (r#""columns":[],"columns":[]"#, "dataframe_split.columns: column \"a\" is missing"),
        (r#""columns":["a","b","c"],"columns":[]"#, r#"dataframe_split: "columns" is there twice"#),
        (r#""columns":["a","b","c"],"data":[],"data":[]"#, "dataframe_split: there is the same field twice"),
        (r#""data":[["x",2,3]],"columns":["a","b","c"]"#, r#"dataframe_split.data[0]["a"]: expected a number"#),
        (r#""rows":[]"#, r#"dataframe_split: unknown field "rows""#),
    ] {
        bad(&abc, &format!("{{\"dataframe_split\":{{{split}}}}}"), expected);
    }
    bad(
        &abc,
        r#"{"dataframe_split":[]}"#,
        "dataframe_split: invalid type: sequence, expected an object with \"columns\"",
    );
    bad(&abc, r#"{"columns":["a","b","c"]}"#, r#"there is no "data" beside "columns""#);
    bad(&abc, r#"{"columns":["a","b","c"],"instances":[[1,2,3]]}"#, r#"there is no "data" beside "columns""#);
    assert_eq!(good(&abc, r#"{"index":[0],"instances":[[1,2,3]]}"#), "1 rows: [1, 3] Fp32([1.0, 2.0, 3.0])");
    bad(&abc, r#"{"data":[]}"#, r#"there is no "columns" beside "data""#);
    bad(&abc, r#"{"columns":["a","b","d"],"data":[]}"#, r#"columns[2]: unknown column "d""#);
    bad(&abc, r#"{"columns":["a","b","c"],"data":[[1,2,"x"]]}"#, r#"data[0]["c"]: expected a number"#);
    bad(&abc, r#"{"dataframe_records":[{"a":1}]}"#, r#"dataframe_records[0]: feature "b" is missing"#);
}

#[test]
fn what_has_no_names_takes_columns_by_position_or_number() {
    let nameless = signature(vec![spec("x", DataType::Fp32, &[-1, 2], &[])]);
    let open = signature(vec![spec("x", DataType::Fp32, &[-1, -1], &[])]);
    let split = |columns: &str, data: &str| format!("{{\"columns\":[{columns}],\"data\":[{data}]}}");
    for signature in [&nameless, &open] {
        let expected = "2 rows: [2, 2] Fp32([1.0, 2.0, 3.0, 4.0])";
        assert_eq!(good(signature, &split(r#""q","p""#, "[1,2],[3,4]")), expected);
        assert_eq!(good(signature, &split("0,1", "[1,2],[3,4]")), expected);
        assert_eq!(good(signature, &split("1,0", "[2,1],[4,3]")), expected);
        assert_eq!(good(signature, &split(r#""x""#, "[[1,2]],[[3,4]]")), expected);
        bad(signature, &split("0,0", ""), "columns: column 0 is there twice");
        bad(signature, &split("0,7", ""), "columns: there is no column 7 among 2 columns");
        bad(signature, &split(r#""x","y""#, ""), r#"columns[1]: the model takes one column, "x", not "y" too"#);
        bad(signature, &split(r#""p","q""#, r#"[1,"y"]"#), "data[0][1]: expected a number");
        bad(
            signature,
            &split(r#""5.1","1""#, ""),
            r#"columns[0]: expected the name of a column, got the number "5.1""#,
        );
    }
    bad(&nameless, &split(r#""p""#, ""), "columns: the model takes 2 columns, not 1");
    bad(&nameless, r#"[{"p":1,"q":2}]"#, r#"[0]: unknown input "p", the model takes "x""#);
    assert_eq!(good(&nameless, r#"[{"0":1,"1":2}]"#), "1 rows: [1, 2] Fp32([1.0, 2.0])");
    bad(&nameless, r#"[{"0":1}]"#, r#"[0]: feature "1" is missing"#);
    assert_eq!(good(&open, &split(r#""p","q","r""#, "[1,2,3]")), "1 rows: [1, 3] Fp32([1.0, 2.0, 3.0])");

    let deep = signature(vec![spec("x", DataType::Int64, &[-1, 2, 1], &[])]);
    assert_eq!(good(&deep, &split(r#""x""#, "[[[1],[2]]]")), "1 rows: [1, 2, 1] Int64([1, 2])");
    bad(&deep, &split(r#""p","q""#, ""), r#"columns: the model takes one column, "x", with a nested list in a row"#);
}

/// A pipeline that was trained on a DataFrame.
fn frame() -> Signature {
    let column = |name, datatype| spec(name, datatype, &[-1, 1], &[]);
    signature(vec![
        column("age", DataType::Fp32),
        column("town", DataType::Bytes),
        spec("n", DataType::Int64, &[-1], &[]),
    ])
}

#[test]
fn columns_are_the_inputs_where_there_are_several() {
    let expected = r#"2 rows: [2, 1] Fp32([1.5, NaN]), [2, 1] Bytes(["ü", ""]), [2] Int64([3, 4])"#;
    for body in [
        r#"{"instances":[{"age":1.5,"town":"ü","n":3},{"n":4,"age":null,"town":""}]}"#,
        r#"{"instances":[{"age":[1.5],"town":["ü"],"n":3},{"n":4,"age":[null],"town":""}]}"#,
        r#"{"dataframe_records":[{"age":1.5,"town":"ü","n":3},{"n":4,"age":NaN,"town":""}]}"#,
        r#"{"inputs":{"age":[1.5,null],"town":["ü",""],"n":[3,4]}}"#,
        r#"{"inputs":{"age":[[1.5],[null]],"town":["ü",""],"n":[3,4]}}"#,
        r#"{"dataframe_split":{"columns":["n","town","age"],"data":[[3,"ü",1.5],[4,"",NaN]]}}"#,
        r#"{"dataframe_split":{"columns":[0,1,2],"data":[[1.5,"ü",3],[[null],"",4]]}}"#,
        r#"{"data":[[1.5,"ü",3],[null,"",4]],"columns":["age","town","n"]}"#,
    ] {
        assert_eq!(good(&frame(), body), expected, "{body}");
    }
    let split = |columns: &str, data: &str| format!("{{\"columns\":[{columns}],\"data\":[{data}]}}");
    bad(
        &frame(),
        &split(r#""age","twon","n""#, ""),
        r#"columns[1]: unknown column "twon", did you mean "town"? The model"#,
    );
    bad(&frame(), &split(r#""age","n""#, ""), r#"columns: column "town" is missing"#);
    bad(&frame(), &split(r#""age","n","age""#, ""), r#"columns[2]: column "age" is there twice"#);
    let all = r#""age","town","n""#;
    bad(&frame(), &split(all, r#"[1,"a",2],[1,2,3]"#), r#"data[1]["town"]: expected a string (BYTES), got 2"#);
    bad(&frame(), &split(all, r#"[1,"a"]"#), "data[0]: expected 3 values, one a column, got 2");
    bad(&frame(), &split(all, r#"[1,"a",2,3]"#), "data[0]: expected 3 values, one a column, got 4");
    bad(&frame(), &split(all, r#"[1,"a",[2]]"#), r#"data[0]["n"]: expected an integer of 64 bits (INT64), got a list"#);
}

fn csv_of(signature: &Signature, body: impl AsRef<[u8]>, names: csv::Names) -> Result<String, Error> {
    let inputs = csv::parse(body.as_ref(), names, signature, &Layout::of(signature))?;
    let tensors = inputs.tensors.iter().map(|tensor| format!("{:?} {:?}", tensor.shape(), tensor.data()));
    Ok(format!("{} rows: {}", inputs.rows, tensors.collect::<Vec<_>>().join(", ")))
}

#[test]
fn csv_is_the_same_table() {
    let expected = "2 rows: [2, 3] Fp32([1.0, 2.5, NaN, 4.0, 5.0, -6.0])";
    let abc = abc(DataType::Fp32);
    for body in [
        "a,b,c\n1,2.5,\n4,5,-6\n",
        "a,b,c\r\n1,2.5,NaN\r\n4,5,-6",
        "\u{feff}\"c\",\"a\",b\n\n,\"1\", 2.5 \n\n\n-6,+4,5.\n\r\n",
        ",a,b,c\n0,1,2.5,NA\nlast,4,5,-6e0\n",
        "0,1,2\n1,2.5,null\n4,5,-6\n",
    ] {
        assert_eq!(csv_of(&abc, body, csv::Names::Present).as_deref(), Ok(expected), "{body}");
    }
    assert_eq!(csv_of(&abc, "1,2.5,\n4,5,-6\n", csv::Names::Absent).as_deref(), Ok(expected));
    assert_eq!(csv_of(&abc, "a,b,c\n", csv::Names::Present).as_deref(), Ok("0 rows: [0, 3] Fp32([])"));
    let open = signature(vec![spec("x", DataType::Fp64, &[-1, -1], &[])]);
    assert_eq!(csv_of(&open, "p,q\n1,2\n", csv::Names::Present).as_deref(), Ok("1 rows: [1, 2] Fp64([1.0, 2.0])"));
    assert_eq!(csv_of(&open, "1,2\n", csv::Names::Absent).as_deref(), Ok("1 rows: [1, 2] Fp64([1.0, 2.0])"));
    let expected = "2 rows: [2, 1] Fp32([1.5, NaN]), [2, 1] Bytes([\"a \\\"b\\\",\\n\", \"\"]), [2] Int64([3, 4])";
    let body = "town,n,age\n\"a \"\"b\"\",\n\",3,1.5\n,4,\n";
    assert_eq!(csv_of(&frame(), body, csv::Names::Present).as_deref(), Ok(expected));
    let truth = signature(vec![spec("x", DataType::Bool, &[-1], &[])]);
    assert_eq!(csv_of(&truth, "x\nTrue\nfalse", csv::Names::Present).as_deref(), Ok("2 rows: [2] Bool([true, false])"));
}

#[test]
fn csv_that_does_not_fit_is_told_where() {
    let hint = "; a text without a line of names is text/csv; header=absent";
    let check = |signature: &Signature, body: &str, expected: &str| {
        let read = csv_of(signature, body, csv::Names::Present);
        assert_eq!(read, Err(Error::Mismatch(expected.to_owned())), "{body}");
    };
    let integers = abc(DataType::Int32);
    let expected = "expected an integer from -2147483648 to 2147483647 (INT32), got";
    check(&integers, "a,b,c\n1,2,3\n\n1,x,3\n", &format!("csv[1][\"b\"]: {expected} \"x\" at line 4"));
    check(&integers, "c,b,a\n1,2,\n", &format!("csv[0][\"a\"]: {expected} nothing at line 2"));
    check(&integers, "a,b,c\n1,2.0,3\n", &format!("csv[0][\"b\"]: {expected} \"2.0\" at line 2"));
    check(&integers, "a,b,c\n1,2\n", "csv[0]: expected 3 values, one a column, got 2 at line 2");
    check(&integers, "a,b,c\n1,2,3,4\n", "csv[0]: expected 3 values, one a column, got 4 at line 2");
    check(&integers, ",a,b,c\n1,2,3\n", "csv[0]: expected 3 values, one a column, got 2 at line 2");
    check(&integers, "a,b\n", &format!("csv: column \"c\" is missing at line 1{hint}"));
    check(&integers, "a,b,a\n", &format!("csv: column \"a\" is there twice at line 1{hint}"));
    let known = "the model takes \"a\", \"b\", \"c\" at line 2";
    check(&integers, "\na,b,d\n", &format!("csv: unknown column \"d\", {known}{hint}"));
    let floats = abc(DataType::Fp32);
    for word in ["inf", "-Infinity", "1e39", "1e999", "0x1", "1_0", "1 0", "-"] {
        let expected = format!("expected a number up to 3.4e38 or nothing (FP32), got {word:?} at line 2");
        check(&floats, &format!("a,b,c\n1,2,{word}\n"), &format!("csv[0][\"c\"]: {expected}"));
    }
    let nameless = signature(vec![spec("x", DataType::Fp32, &[-1, 2], &[])]);
    let expected = format!("csv: expected the name of a column, got the number \"5.1\" at line 1{hint}");
    check(&nameless, "5.1,2\n1,2\n", &expected);
    // Values, most likely: columns that are numbered count up.
    for (body, number) in [("1,0\n2,3\n", 1), ("1\n", 1), ("0,0\n", 0), ("0,2\n1,2\n", 2), (",1,0\n0,1,2\n", 1)] {
        let expected = format!("csv: expected the name of a column, got the number \"{number}\" at line 1{hint}");
        check(&nameless, body, &expected);
        if !body.starts_with("0,0") {
            check(&abc(DataType::Fp32), body, &expected);
        }
    }
    let numbered = signature(vec![spec("x", DataType::Fp32, &[-1, 2], &["1", "0"])]);
    let read = csv_of(&numbered, "0,1\n2,3\n", csv::Names::Present);
    assert_eq!(read.as_deref(), Ok("1 rows: [1, 2] Fp32([3.0, 2.0])"), "here they are names");
    check(&two(), "x,word\n", "csv: input \"x\" takes a list in a row, and a text has no lists");

    for (body, expected) in [
        ("", "there is no line of names"),
        ("\n\n", "there is no line of names"),
        ("a,b,c\n1,\"2\n3,4", "the quote is not closed that is opened in line 2"),
        ("a,b,c\n\"1\n2\"x,3,4", "there is text behind a closing quote, line 3"),
        ("a,b,c\n1,2\"3,4", "a quote stands within the value that begins \"2\", line 2"),
    ] {
        assert_eq!(csv_of(&floats, body, csv::Names::Present), Err(Error::Syntax(expected.to_owned())), "{body}");
    }
    assert!(matches!(csv_of(&floats, b"a,b,c\n\xff", csv::Names::Present), Err(Error::Syntax(_))));
}

#[test]
fn csv_is_what_the_content_type_calls_so() {
    let of = |value: &'static str| {
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(value));
        csv::announced(&headers)
    };
    assert_eq!(of("text/csv"), Some(csv::Names::Present));
    assert_eq!(of("Text/CSV ; charset=utf-8; header=present"), Some(csv::Names::Present));
    assert_eq!(of("text/csv;charset=utf-8;Header=Absent"), Some(csv::Names::Absent));
    assert_eq!(["application/json", "text/csvx", "application/x-www-form-urlencoded", ""].map(of), [None; 4]);
    assert_eq!(csv::announced(&http::HeaderMap::new()), None);
}

/// A table of numbers, texts and truths in every form; each must be read as the first.
fn forms(
    signature: &Signature,
    names: &[&str],
    order: &[usize],
    rows: &[Vec<Value>],
) -> Vec<(String, Option<csv::Names>)> {
    let object = |row: &Vec<Value>, order: &[usize]| {
        let fields = order.iter().map(|at| format!("{}:{}", json(names[*at]), row[*at]));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    };
    let list = |row: &Vec<Value>, order: &[usize]| {
        format!("[{}]", order.iter().map(|at| row[*at].to_string()).collect::<Vec<_>>().join(","))
    };
    let all = |row: &dyn Fn(&Vec<Value>) -> String| rows.iter().map(row).collect::<Vec<_>>().join(",");
    let in_order: Vec<usize> = (0..names.len()).collect();
    let (records, lists) = (all(&|row| object(row, order)), all(&|row| list(row, order)));
    let columns = order.iter().map(|at| json(names[*at])).collect::<Vec<_>>().join(",");
    let by_column = order.iter().map(|at| {
        let column = rows.iter().map(|row| row[*at].to_string()).collect::<Vec<_>>().join(",");
        format!("{}:[{column}]", json(names[*at]))
    });
    let by_column = by_column.collect::<Vec<_>>().join(",");
    let csv = |header: bool, order: &[usize]| {
        let field = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
            other => other.to_string(),
        };
        let names = order.iter().map(|at| field(&Value::from(names[*at]))).collect::<Vec<_>>().join(",");
        let row = |row: &Vec<Value>| order.iter().map(|at| field(&row[*at])).collect::<Vec<_>>().join(",") + "\n";
        let text: String = rows.iter().map(row).collect();
        if header { format!("{names}\n{text}") } else { text }
    };
    let mut forms = vec![
        (format!("{{\"instances\":[{}]}}", all(&|row| object(row, &in_order))), None),
        (format!("{{\"instances\":[{records}]}}"), None),
        (format!("{{\"inputs\":{{{by_column}}}}}"), None),
        (format!("{{\"dataframe_records\":[{records}]}}"), None),
        (format!("{{\"dataframe_split\":{{\"columns\":[{columns}],\"data\":[{lists}]}}}}"), None),
        (format!("{{\"data\":[{lists}],\"index\":[],\"columns\":[{columns}]}}"), None),
        (format!("[{records}]"), None),
        (csv(true, order), Some(csv::Names::Present)),
        (csv(false, &in_order), Some(csv::Names::Absent)),
    ];
    if signature.inputs.len() == 1 {
        forms.push((format!("{{\"instances\":[{}]}}", all(&|row| list(row, &in_order))), None));
        forms.push((format!("{{\"inputs\":[{}]}}", all(&|row| list(row, &in_order))), None));
    }
    forms
}

fn json(text: &str) -> String {
    Value::from(text).to_string()
}

/// The bits: NaN and −0 are told apart by them only.
fn bits(inputs: &Inputs) -> String {
    let bits = inputs.tensors.iter().map(|tensor| match tensor.data() {
        Data::Fp32(values) => format!("{:?}", values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()),
        Data::Fp64(values) => format!("{:?}", values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()),
        other => format!("{other:?}"),
    });
    format!("{} rows, {}", inputs.rows, bits.collect::<Vec<_>>().join(", "))
}

fn all_agree(signature: &Signature, forms: &[(String, Option<csv::Names>)]) {
    let layout = Layout::of(signature);
    let read = |(body, names): &(String, Option<csv::Names>)| {
        let read = match names {
            Some(names) => csv::parse(body.as_bytes(), *names, signature, &layout),
            None => parse(body.as_bytes(), signature, &layout),
        };
        bits(&read.unwrap_or_else(|error| panic!("{body}: {error:?}")))
    };
    let expected = read(&forms[0]);
    for form in forms {
        assert_eq!(read(form), expected, "{}", form.0);
        if let Some(short) = plain::parse(form.0.as_bytes(), signature, &layout) {
            assert_eq!(bits(&short), expected, "{}", form.0);
        }
    }
}

/// Numbers as JSON has them.
fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        (-1e38..1e38).prop_map(Value::from),
        Just(Value::from(-0.0)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_table_of_numbers_is_the_same_in_every_form(
        rows in prop::collection::vec(prop::collection::vec(number(), 4), 0..5),
        order in Just(vec![0, 1, 2, 3]).prop_shuffle(),
    ) {
        let names = ["a", "b,\"b\"", "ü", "long name"];
        for datatype in [DataType::Fp32, DataType::Fp64] {
            let signature = signature(vec![spec("x", datatype, &[-1, 4], &names)]);
            all_agree(&signature, &forms(&signature, &names, &order, &rows));
        }
    }

    #[test]
    fn a_table_of_columns_that_differ_is_the_same_in_every_form(
        rows in prop::collection::vec((number(), any::<String>(), any::<i64>(), any::<bool>()), 0..5),
        order in Just(vec![0, 1, 2, 3]).prop_shuffle(),
    ) {
        let column = |name, datatype| spec(name, datatype, &[-1, 1], &[]);
        let columns = [DataType::Fp32, DataType::Bytes, DataType::Int64, DataType::Bool];
        let names = ["age", "town", "n", "is it?"];
        let inputs = names.iter().zip(columns).map(|(name, datatype)| column(name, datatype)).collect();
        let rows: Vec<Vec<Value>> = rows
            .into_iter()
            .map(|(number, text, integer, truth)| vec![number, text.into(), integer.into(), truth.into()])
            .collect();
        let signature = signature(inputs);
        all_agree(&signature, &forms(&signature, &names, &order, &rows));
    }

    #[test]
    fn no_text_panics_as_csv(body in "[ab,\\r\\n\"01.\\-e]{0,24}") {
        for signature in signatures().iter().chain([&frame()]) {
            for names in [csv::Names::Present, csv::Names::Absent] {
                if let Ok(inputs) = csv::parse(body.as_bytes(), names, signature, &Layout::of(signature)) {
                    prop_assert!(signature.check_inputs(&inputs.tensors).is_ok());
                }
            }
        }
    }
}
