use std::time::Duration;

use hotserve::config::HumanDuration;
use prost::bytes::Bytes;
use tonic::{Code, Request};

use super::proto::inference as pb;
use super::{INFER, LIMIT, input, put, refused, rows, start};
use crate::support::{constant_model, until};

/// Two rows of two of each datatype, as typed contents.
fn typed() -> pb::ModelInferRequest {
    let contents = |fill: fn(&mut pb::InferTensorContents)| {
        let mut contents = pb::InferTensorContents::default();
        fill(&mut contents);
        Some(contents)
    };
    let all = [
        ("bool", "BOOL", contents(|c| c.bool_contents = vec![true, false, false, true])),
        ("int32", "INT32", contents(|c| c.int_contents = vec![i32::MIN, -1, 0, i32::MAX])),
        ("int64", "INT64", contents(|c| c.int64_contents = vec![i64::MIN, -1, 0, i64::MAX])),
        ("fp32", "FP32", contents(|c| c.fp32_contents = vec![0.1, -0.0, f32::MIN_POSITIVE, f32::INFINITY])),
        ("fp64", "FP64", contents(|c| c.fp64_contents = vec![0.1, -0.0, f64::MIN_POSITIVE, f64::MAX])),
        ("text", "BYTES", contents(|c| c.bytes_contents = ["", "ä", "a\0b", "two words"].map(Vec::from).to_vec())),
    ];
    let inputs = all.into_iter().map(|(name, datatype, contents)| pb::model_infer_request::InferInputTensor {
        contents,
        ..input(name, datatype, &[2, 2])
    });
    pb::ModelInferRequest {
        model_name: "echo".to_owned(),
        id: "question 7".to_owned(),
        // They may come in any order.
        inputs: inputs.rev().collect(),
        ..Default::default()
    }
}

/// The same as bytes.
fn raw() -> pb::ModelInferRequest {
    let mut request = typed();
    for input in &mut request.inputs {
        let c = input.contents.take().unwrap();
        let mut bytes: Vec<u8> = c.bool_contents.iter().map(|value| u8::from(*value)).collect();
        bytes.extend(c.int_contents.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(c.int64_contents.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(c.fp32_contents.iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(c.fp64_contents.iter().flat_map(|value| value.to_le_bytes()));
        for text in &c.bytes_contents {
            bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
            bytes.extend(text);
        }
        request.raw_input_contents.push(bytes.into());
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_datatype_comes_back_as_it_went_typed_or_as_bytes() {
    let (server, _feeder, client) = start(|_| {}).await;
    let question = typed();
    let answer = client.infer(question.clone()).await.unwrap();
    assert_eq!(
        (answer.model_name.as_str(), answer.model_version.as_str(), answer.id.as_str()),
        ("echo", "1", "question 7")
    );
    assert!(answer.raw_output_contents.is_empty());
    let expected = question.inputs.iter().rev();
    assert_eq!(answer.outputs.len(), 6);
    for (output, input) in answer.outputs.iter().zip(expected) {
        assert_eq!((&output.name, &output.datatype, &output.shape), (&input.name, &input.datatype, &input.shape));
        assert_eq!(output.contents, input.contents, "{}", input.name);
    }

    let question = raw();
    let answer = client.infer(question.clone()).await.unwrap();
    let sent: Vec<Bytes> = question.raw_input_contents.into_iter().rev().collect();
    assert_eq!(answer.raw_output_contents, sent);
    assert!(answer.outputs.iter().all(|output| output.contents.is_none()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outputs_that_are_asked_for_are_answered_in_that_order() {
    let (server, _feeder, client) = start(|_| {}).await;
    let wanted = |names: &[&str]| {
        let output = |name: &&str| pb::model_infer_request::InferRequestedOutputTensor {
            name: (*name).to_owned(),
            ..Default::default()
        };
        pb::ModelInferRequest { outputs: names.iter().map(output).collect(), ..raw() }
    };
    let answer = client.infer(wanted(&["text", "bool"])).await.unwrap();
    let names: Vec<_> = answer.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["text", "bool"]);
    assert_eq!(answer.raw_output_contents[1], &[1, 0, 0, 1][..]);
    refused(client.infer(wanted(&["text", "nope"])).await, Code::InvalidArgument, "no output \"nope\"");
    refused(client.infer(wanted(&["text", "text"])).await, Code::InvalidArgument, "twice");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_rows_are_answered_by_no_rows() {
    let (server, _feeder, client) = start(|_| {}).await;
    let answer = client.infer(rows(0)).await.unwrap();
    assert_eq!((answer.outputs[0].shape.as_slice(), answer.raw_output_contents[0].len()), (&[0][..], 0));
    let mut typed = rows(0);
    typed.raw_input_contents.clear();
    let answer = client.infer(typed).await.unwrap();
    assert_eq!(answer.outputs[0].contents, Some(pb::InferTensorContents::default()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_does_not_fit_is_refused_in_words_that_help() {
    let (server, _feeder, client) = start(|_| {}).await;
    let floats = |values: &[f32]| {
        let mut request = rows(1);
        request.raw_input_contents.clear();
        request.inputs[0].contents =
            Some(pb::InferTensorContents { fp32_contents: values.to_vec(), ..Default::default() });
        request
    };
    let with = |change: &dyn Fn(&mut pb::ModelInferRequest)| {
        let mut request = rows(1);
        change(&mut request);
        request
    };
    let parameter = |value: i64| pb::InferParameter {
        parameter_choice: Some(pb::infer_parameter::ParameterChoice::Int64Param(value)),
    };
    for (request, code, says) in [
        (with(&|r| r.model_name = "nope".to_owned()), Code::NotFound, "there is no model \"nope\""),
        (with(&|r| r.model_name.clear()), Code::NotFound, "there is no model \"\""),
        (with(&|r| r.model_version = "2".to_owned()), Code::NotFound, "version"),
        (with(&|r| r.inputs.clear()), Code::InvalidArgument, "1 raw_input_contents for 0 inputs"),
        (
            with(&|r| r.raw_input_contents.push(Bytes::new())),
            Code::InvalidArgument,
            "2 raw_input_contents for 1 inputs",
        ),
        (with(&|r| r.raw_input_contents = vec![vec![0; 7].into()]), Code::InvalidArgument, "takes 4 bytes, not 7"),
        (with(&|r| r.inputs[0].shape = vec![1 << 32, 1 << 32]), Code::InvalidArgument, "input \"input\""),
        (with(&|r| r.inputs[0].shape = vec![-1, 1]), Code::InvalidArgument, "negative"),
        (with(&|r| r.inputs[0].shape = vec![1]), Code::InvalidArgument, "has 2 axes"),
        (with(&|r| r.inputs[0].datatype = "FLOAT".to_owned()), Code::InvalidArgument, "\"FLOAT\" is no datatype"),
        (with(&|r| r.inputs[0].datatype = "BYTES".to_owned()), Code::InvalidArgument, "takes FP32, not BYTES"),
        (with(&|r| r.inputs[0].name = "x".to_owned()), Code::InvalidArgument, "no input \"x\""),
        (
            with(&|r| r.inputs[0].contents = floats(&[1.0]).inputs[0].contents.clone()),
            Code::InvalidArgument,
            "has contents",
        ),
        (
            with(&|r| {
                r.inputs.push(r.inputs[0].clone());
                r.raw_input_contents.push(r.raw_input_contents[0].clone());
            }),
            Code::InvalidArgument,
            "twice",
        ),
        (
            with(&|r| drop(r.inputs[0].parameters.insert("shared_memory_region".to_owned(), parameter(1)))),
            Code::Unimplemented,
            "shared_memory_region",
        ),
        (
            with(&|r| drop(r.parameters.insert("sequence_id".to_owned(), parameter(1)))),
            Code::Unimplemented,
            "sequence_id",
        ),
        (floats(&[1.0, 2.0]), Code::InvalidArgument, "takes 1 elements, not 2"),
        (floats(&[]), Code::InvalidArgument, "takes 1 elements, not 0"),
        (
            {
                let mut request = floats(&[1.0]);
                request.inputs[0].datatype = "FP64".to_owned();
                request
            },
            Code::InvalidArgument,
            "FP64 belongs into fp64_contents, not into fp32_contents",
        ),
        (
            {
                let mut request = floats(&[1.0]);
                request.inputs[0].datatype = "FP16".to_owned();
                request
            },
            Code::InvalidArgument,
            "FP16 has no typed contents",
        ),
    ] {
        refused(client.infer(request).await, code, says);
    }
    // A hint that says nothing is none.
    assert!(client.infer(with(&|r| drop(r.parameters.insert("sequence_id".to_owned(), parameter(0))))).await.is_ok());
    assert!(client.infer(with(&|r| drop(r.parameters.insert("priority".to_owned(), parameter(7))))).await.is_ok());
    assert!(client.infer(floats(&[1.0])).await.is_ok());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_up_to_the_limit_is_answered_and_one_over_it_is_not() {
    let (server, _feeder, client) = start(|_| {}).await;
    let (most, over) = (LIMIT / 4 - 16, LIMIT / 4 + 1);
    let answer = client.infer(rows(most)).await.unwrap();
    assert_eq!(answer.outputs[0].shape, [i64::try_from(most).unwrap()]);
    let limit = format!("over the limit of {LIMIT} bytes");
    refused(client.infer(rows(over)).await, Code::ResourceExhausted, &limit);
    // Far over it, so that much is still on its way when it is refused.
    refused(client.infer(rows(8 * over)).await, Code::ResourceExhausted, &limit);
    assert!(client.infer(rows(1)).await.is_ok());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_deadline_ends_a_call_where_it_is_nearer() {
    let (server, _feeder, client) = start(|settings| {
        settings.request_timeout = Some(HumanDuration(Duration::from_secs(20)));
    })
    .await;
    // The version never comes: without the deadline it would wait for ten seconds.
    let waiting = |timeout: Option<&str>| {
        let mut request = Request::new(rows(1));
        request.metadata_mut().insert("x-min-version", "99".parse().unwrap());
        request.metadata_mut().insert("x-min-version-wait", "10s".parse().unwrap());
        if let Some(timeout) = timeout {
            request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        request
    };
    let begun = std::time::Instant::now();
    let status = client.ask::<pb::ModelInferResponse>(INFER, waiting(Some("50m"))).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // Whichever of the two deadlines was seen first.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::FailedPrecondition), "{status:?}");
    refused(
        client.ask::<pb::ModelInferResponse>(INFER, waiting(Some("soon"))).await,
        Code::InvalidArgument,
        "grpc-timeout",
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_published_reads_it_by_the_least_version() {
    let (server, feeder, client) = start(|_| {}).await;
    let asked = tokio::spawn({
        let client = client.clone();
        async move {
            let mut request = Request::new(rows(1));
            request.metadata_mut().insert("x-min-version", "2".parse().unwrap());
            request.metadata_mut().insert("x-min-version-wait", "20s".parse().unwrap());
            client.ask::<pb::ModelInferResponse>(INFER, request).await
        }
    });
    put(&feeder, "m", 2, "linear", &constant_model(2)).await;
    let answer = asked.await.unwrap().unwrap();
    assert_eq!(answer.metadata().get("x-model-version").unwrap(), "2");
    assert_eq!(answer.get_ref().raw_output_contents[0], 2.0_f32.to_le_bytes()[..]);
    let mut impatient = Request::new(rows(1));
    impatient.metadata_mut().insert("x-min-version", "3".parse().unwrap());
    impatient.metadata_mut().insert("x-min-version-wait", "0s".parse().unwrap());
    let answer = client.ask::<pb::ModelInferResponse>(INFER, impatient).await;
    refused(answer, Code::FailedPrecondition, "version 3 was asked for");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_answered_by_one_version_each_while_models_are_swapped() {
    let (server, feeder, client) = start(|_| {}).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.is_cancelled() {
                    let answer = client.infer(rows(3)).await.unwrap();
                    let version: f32 = answer.model_version.parse().unwrap();
                    assert_eq!(answer.raw_output_contents[0], [version.to_le_bytes(); 3].concat());
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    for version in 2..=20 {
        put(&feeder, "m", version, "linear", &constant_model(version)).await;
        until("the version", async || (server.model().await == version.to_string()).then_some(())).await;
    }
    stop.cancel();
    let mut calls = 0;
    for reader in readers {
        calls += reader.await.unwrap();
    }
    assert!(calls > 10, "{calls} calls are no load");
    println!("{calls} calls over 19 swaps");
    server.stop().await;
}
