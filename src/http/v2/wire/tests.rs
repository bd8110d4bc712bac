use hotserve_models::Dim;
use proptest::prelude::*;

use super::*;

fn spec(datatype: DataType) -> TensorSpec {
    of_rank(datatype, 1)
}

fn of_rank(datatype: DataType, rank: usize) -> TensorSpec {
    TensorSpec { name: "x".to_owned(), datatype, shape: vec![Dim::Any; rank], features: Vec::new() }
}

fn raw(datatype: WireType, shape: &[usize], bytes: &[u8], takes: DataType) -> Result<Data, String> {
    from_raw(datatype, shape, bytes, &of_rank(takes, shape.len())).map(|tensor| tensor.data().clone())
}

fn refused(datatype: WireType, shape: &[usize], bytes: &[u8], takes: DataType, expected: &str) {
    let error = raw(datatype, shape, bytes, takes).expect_err(expected);
    assert!(error.contains("\"x\"") && error.contains(expected), "{error}");
}

#[test]
fn every_numeric_datatype_widens_to_what_the_model_takes() {
    use WireType as W;
    let cases: [(W, Vec<u8>); 12] = [
        (W::Uint8, vec![7, 100]),
        (W::Uint16, [7_u16, 100].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Uint32, [7_u32, 100].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Uint64, [7_u64, 100].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Int8, vec![7, 100]),
        (W::Int16, [7_i16, 100].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Int32, [7_i32, 100].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Int64, [7_i64, 100].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Fp16, [0x4700_u16, 0x5640].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Bf16, [0x40e0_u16, 0x42c8].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Fp32, [7.0_f32, 100.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (W::Fp64, [7.0_f64, 100.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
    ];
    for (datatype, bytes) in cases {
        let to = |takes| raw(datatype, &[2], &bytes, takes);
        assert_eq!(to(DataType::Int32), Ok(Data::Int32(vec![7, 100])), "{datatype}");
        assert_eq!(to(DataType::Int64), Ok(Data::Int64(vec![7, 100])), "{datatype}");
        assert_eq!(to(DataType::Fp32), Ok(Data::Fp32(vec![7.0, 100.0])), "{datatype}");
        assert_eq!(to(DataType::Fp64), Ok(Data::Fp64(vec![7.0, 100.0])), "{datatype}");
        assert!(to(DataType::Bool).is_err() && to(DataType::Bytes).is_err(), "{datatype}");
    }
}

#[test]
fn a_value_that_the_model_cannot_hold_is_refused_by_element() {
    let int64 = [1, 3_000_000_000_i64].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    refused(WireType::Int64, &[2], &int64, DataType::Int32, "element 1: expected a whole number that INT32 can hold");
    assert_eq!(raw(WireType::Int64, &[2], &int64, DataType::Fp32), Ok(Data::Fp32(vec![1.0, 3e9])));
    refused(WireType::Uint64, &[1], &u64::MAX.to_le_bytes(), DataType::Int64, "got 18446744073709551615");
    refused(WireType::Uint64, &[1], &u64::MAX.to_le_bytes(), DataType::Fp64, "a number that FP64 can hold");
    refused(WireType::Int32, &[1], &16_777_217_i32.to_le_bytes(), DataType::Fp32, "a number that FP32 can hold");
    refused(WireType::Fp32, &[1], &1.5_f32.to_le_bytes(), DataType::Int64, "got 1.5");
    refused(WireType::Fp32, &[1], &f32::NAN.to_le_bytes(), DataType::Int64, "got NaN");
    refused(WireType::Fp64, &[1], &f64::INFINITY.to_le_bytes(), DataType::Int64, "got inf");
    refused(WireType::Fp64, &[1], &1e300_f64.to_le_bytes(), DataType::Fp32, "FP32");
    assert_eq!(raw(WireType::Fp64, &[1], &0.1_f64.to_le_bytes(), DataType::Fp32), Ok(Data::Fp32(vec![0.1])));
    let infinite = raw(WireType::Fp64, &[1], &f64::INFINITY.to_le_bytes(), DataType::Fp32);
    assert_eq!(infinite, Ok(Data::Fp32(vec![f32::INFINITY])), "it was one before");
}

#[test]
fn booleans_and_text_are_nothing_else() {
    assert_eq!(raw(WireType::Bool, &[3], &[0, 1, 1], DataType::Bool), Ok(Data::Bool(vec![false, true, true])));
    refused(WireType::Bool, &[1], &[2], DataType::Bool, "element 0: expected a BOOL, 0 or 1, got 2");
    refused(WireType::Bool, &[1], &[1], DataType::Fp32, "takes FP32, not BOOL");
    refused(WireType::Uint8, &[1], &[1], DataType::Bool, "takes BOOL, not UINT8");
    let bytes = b"\x02\0\0\0hi\0\0\0\0\x02\0\0\0\xc3\xbc";
    let texts = Data::Bytes(vec!["hi".to_owned(), String::new(), "ü".to_owned()]);
    assert_eq!(raw(WireType::Bytes, &[3], bytes, DataType::Bytes), Ok(texts));
    refused(WireType::Bytes, &[4], bytes, DataType::Bytes, "the length of element 3 of 4");
    refused(WireType::Bytes, &[2], bytes, DataType::Bytes, "6 bytes are left");
    refused(WireType::Bytes, &[1], b"\xff\xff\xff\xffhi", DataType::Bytes, "within the text of element 0");
    refused(WireType::Bytes, &[1], b"\x02\0\0", DataType::Bytes, "within the length of element 0");
    refused(WireType::Bytes, &[1], b"\x01\0\0\0\xff", DataType::Bytes, "text in UTF-8");
    refused(WireType::Bytes, &[usize::MAX / 2], b"", DataType::Bytes, "the length of element 0");
}

#[test]
fn a_size_that_overflows_or_does_not_fit_is_refused_before_anything_is_allocated() {
    let half = usize::MAX / 2 + 1;
    refused(WireType::Fp32, &[half, 2], &[], DataType::Fp32, "more elements than can be counted");
    refused(WireType::Fp32, &[half / 2], &[], DataType::Fp32, "more than can be counted");
    refused(WireType::Fp32, &[2], &[0; 7], DataType::Fp32, "takes 8 bytes, not 7");
    refused(WireType::Fp32, &[2], &[0; 12], DataType::Fp32, "takes 8 bytes, not 12");
    refused(WireType::Fp32, &[half, 0], &[], DataType::Fp32, "rows without elements");
    assert_eq!(raw(WireType::Fp32, &[0, 28], &[], DataType::Fp32), Ok(Data::Fp32(vec![])));
}

#[test]
fn a_shape_is_one_that_the_model_takes() {
    let spec = TensorSpec { shape: vec![Dim::Any, Dim::Fixed(3)], ..spec(DataType::Fp32) };
    assert_eq!(elements(&[2, 3], &spec), Ok(6));
    let told = "input \"x\" has shape [-1, 3], not [3, 2] (-1 is any length)";
    assert_eq!(elements(&[3, 2], &spec), Err(told.to_owned()));
    assert_eq!(elements(&[3], &spec), Err("input \"x\" has 2 axes ([-1, 3]), not 1".to_owned()));
    assert!(elements(&vec![1; 100_000], &spec).expect_err("too many").len() < 100);
}

#[test]
fn halves_are_the_numbers_that_they_say() {
    let cases = [
        (0x0000, 0.0),
        (0x8000, -0.0),
        (0x3c00, 1.0),
        (0xc000, -2.0),
        (0x7bff, 65504.0),
        (0x0400, 6.103_515_6e-5),
        (0x0001, 5.960_464_5e-8),
        (0x83ff, -6.097_555e-5),
        (0x7c00, f32::INFINITY),
        (0x3555, 0.333_251_95),
    ];
    for (bits, value) in cases {
        assert_eq!(from_half(bits).to_bits(), f32::to_bits(value), "{bits:#x}");
    }
    assert!(from_half(0x7e00).is_nan());
    assert_eq!(from_brain(0x3f80).to_bits(), 1_f32.to_bits());
    assert_eq!(from_brain(0xc049), -3.140_625);
}

#[test]
fn typed_elements_keep_the_range_of_their_datatype_and_their_number() {
    let spec = spec(DataType::Fp64);
    let made = from_elements(WireType::Int8, &[2], Elements::Int(vec![-128, 127]), &spec).expect("in range");
    assert_eq!(made.data(), &Data::Fp64(vec![-128.0, 127.0]));
    let error = from_elements(WireType::Int8, &[2], Elements::Int(vec![0, 128]), &spec).expect_err("too large");
    assert!(error.contains("element 1: expected INT8, got 128"), "{error}");
    let error = from_elements(WireType::Fp64, &[3], Elements::Fp64(vec![0.0]), &spec).expect_err("too few");
    assert!(error.contains("takes 3 elements, not 1"), "{error}");
    let error = from_elements(WireType::Fp32, &[1], Elements::Fp64(vec![0.0]), &spec).expect_err("in another place");
    assert!(error.contains("not where those of FP32 belong"), "{error}");
}

#[test]
fn a_datatype_that_is_none_is_told_the_known_ones() {
    assert_eq!("BF16".parse(), Ok(WireType::Bf16));
    let error = "fp32".parse::<WireType>().expect_err("lower case");
    assert!(error.contains("\"fp32\" is no datatype") && error.contains("BF16"), "{error}");
    assert!("x".repeat(10_000).parse::<WireType>().expect_err("long").len() < 300);
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(floats: Vec<f32>, doubles: Vec<f64>, ints: Vec<i32>, longs: Vec<i64>,
                                     flags: Vec<bool>, texts: Vec<String>) {
        let tensors = [Data::Fp32(floats), Data::Fp64(doubles), Data::Int32(ints), Data::Int64(longs),
                       Data::Bool(flags), Data::Bytes(texts)];
        for data in tensors {
            let tensor = Tensor::new(vec![data.len()], data).expect("flat");
            let bytes = to_raw(&tensor);
            prop_assert_eq!(bytes.len(), raw_len(&tensor));
            let datatype: WireType = tensor.datatype().as_str().parse().expect("a subset");
            let again = from_raw(datatype, tensor.shape(), &bytes, &spec(tensor.datatype())).expect("just written");
            prop_assert_eq!(to_raw(&again), bytes);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(kind in 0..14_usize, takes in 0..6_usize, bytes: Vec<u8>,
                              shape in proptest::collection::vec(any::<usize>(), 0..4)) {
        let types = [DataType::Bool, DataType::Int32, DataType::Int64, DataType::Fp32, DataType::Fp64, DataType::Bytes];
        let spec = of_rank(types[takes], shape.len());
        if let Ok(tensor) = from_raw(WireType::ALL[kind], &shape, &bytes, &spec) {
            prop_assert_eq!(tensor.datatype(), spec.datatype);
        }
    }
}
