//! Everything but inferences: what is there, how it does, health, reflection, and the end.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use futures_util::{StreamExt, stream};
use hotserve::config::{Settings, Token};
use hotserve::http::listener::{self, Door};
use hotserve::metrics::Metrics;
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::proto::health::health_check_response::ServingStatus;
use super::proto::health::{HealthCheckRequest, HealthCheckResponse};
use super::proto::inference as pb;
use super::{Client, INFER, is_refused_connection, put, refused, rows, start};
use crate::support::{Server, constant_model, unreachable};

const TOKEN: &str = "0123456789abcdef-secret";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

fn asked(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn checked(client: &Client, service: &str) -> Result<ServingStatus, tonic::Status> {
    let answer = client.ask::<HealthCheckResponse>(CHECK, Request::new(asked(service))).await?;
    Ok(answer.get_ref().status())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_and_its_models_say_what_they_are() {
    let (server, _feeder, client) = start(|_| {}).await;
    let live: pb::ServerLiveResponse = client.call("ServerLive", pb::ServerLiveRequest {}).await.unwrap();
    let ready: pb::ServerReadyResponse = client.call("ServerReady", pb::ServerReadyRequest {}).await.unwrap();
    assert!(live.live && ready.ready);
    let about: pb::ServerMetadataResponse = client.call("ServerMetadata", pb::ServerMetadataRequest {}).await.unwrap();
    assert_eq!((about.name.as_str(), about.version.as_str()), ("hotserve", env!("CARGO_PKG_VERSION")));
    assert!(about.extensions.contains(&"statistics".to_owned()), "{about:?}");

    let of =
        |name: &str, version: &str| pb::ModelMetadataRequest { name: name.to_owned(), version: version.to_owned() };
    for version in ["", "1"] {
        let about: pb::ModelMetadataResponse = client.call("ModelMetadata", of("m", version)).await.unwrap();
        assert_eq!((about.name.as_str(), about.versions.as_slice()), ("m", &["1".to_owned()][..]));
        let input = &about.inputs[0];
        assert_eq!(
            (input.name.as_str(), input.datatype.as_str(), input.shape.as_slice()),
            ("input", "FP32", &[-1, 1][..])
        );
        assert_eq!(about.outputs[0].shape, [-1]);
    }
    let unknown = client.call::<pb::ModelMetadataResponse>("ModelMetadata", of("nope", "")).await;
    refused(unknown, Code::NotFound, "there is no model \"nope\"");
    let unknown = client.call::<pb::ModelMetadataResponse>("ModelMetadata", of("m", "7")).await;
    refused(unknown, Code::NotFound, "7");
    for (name, version, expected) in [("m", "", true), ("m", "1", true), ("m", "2", false), ("nope", "", false)] {
        let request = pb::ModelReadyRequest { name: name.to_owned(), version: version.to_owned() };
        let answer: pb::ModelReadyResponse = client.call("ModelReady", request).await.unwrap();
        assert_eq!(answer.ready, expected, "{name} {version}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_inferred_is_counted_by_model_and_on_the_metrics() {
    let (server, _feeder, client) = start(|_| {}).await;
    for count in [3, 4] {
        client.infer(rows(count)).await.unwrap();
    }
    let mut wrong = rows(1);
    wrong.inputs[0].datatype = "BYTES".to_owned();
    refused(client.infer(wrong).await, Code::InvalidArgument, "BYTES");
    let of = |name: &str| pb::ModelStatisticsRequest { name: name.to_owned(), version: String::new() };
    let one: pb::ModelStatisticsResponse = client.call("ModelStatistics", of("m")).await.unwrap();
    let [counted] = one.model_stats.as_slice() else { panic!("{one:?}") };
    let parts = counted.inference_stats.unwrap();
    assert_eq!((counted.inference_count, counted.execution_count), (7, 2));
    assert_eq!((parts.success.unwrap().count, parts.fail.unwrap().count), (2, 1));
    assert!(counted.last_inference > 1_700_000_000_000, "{counted:?}");
    let all: pb::ModelStatisticsResponse = client.call("ModelStatistics", of("")).await.unwrap();
    let names: Vec<_> = all.model_stats.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["echo", "m"]);
    refused(client.call::<pb::ModelStatisticsResponse>("ModelStatistics", of("nope")).await, Code::NotFound, "nope");

    for (method, code, count) in [
        (INFER, "OK", 2.0),
        (INFER, "INVALID_ARGUMENT", 1.0),
        ("/inference.GRPCInferenceService/ModelStatistics", "NOT_FOUND", 1.0),
    ] {
        let series = format!("hotserve_grpc_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        assert_eq!(server.metric(&series).await, count, "{series}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_is_unimplemented_and_says_what_is() {
    let (server, _feeder, client) = start(|_| {}).await;
    for path in ["/inference.GRPCInferenceService/ModelConfig", "/nothing.Here/AtAll"] {
        let answer = client.ask::<pb::ServerLiveResponse>(path, Request::new(pb::ServerLiveRequest {})).await;
        refused(answer, Code::Unimplemented, "reflection tells which are");
    }
    let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
    let questions = Request::new(stream::iter([rows(1)]));
    let codec = ProstCodec::<pb::ModelInferRequest, pb::ModelInferResponse>::default();
    let status = client.grpc().streaming(questions, path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("ModelInfer"), "{status:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_follows_readiness_until_the_end() {
    let aws = unreachable().await;
    let settings = Settings {
        stream: Some("updates".to_owned()),
        host: Some([127, 0, 0, 1].into()),
        port: Some(0),
        ..Settings::default()
    };
    let server = Server::start(&aws, settings).await;
    let client = Client::to(server.addr);
    let service = "inference.GRPCInferenceService";
    assert_eq!(checked(&client, "").await.unwrap(), ServingStatus::NotServing);
    refused(checked(&client, "no.Such").await, Code::NotFound, "no service \"no.Such\"");
    let watch = async |service| {
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let request = Request::new(asked(service));
        client.grpc().server_streaming(request, PathAndQuery::from_static(WATCH), codec).await.unwrap().into_inner()
    };
    let (mut known, mut unknown) = (watch(service).await, watch("no.Such").await);
    let status = async |stream: &mut tonic::Streaming<HealthCheckResponse>| {
        stream.message().await.unwrap().map(|answer| answer.status())
    };
    assert_eq!(status(&mut known).await, Some(ServingStatus::NotServing));
    assert_eq!(status(&mut unknown).await, Some(ServingStatus::ServiceUnknown));
    server.http.status.set_ready();
    assert_eq!(status(&mut known).await, Some(ServingStatus::Serving));
    assert_eq!(checked(&client, service).await.unwrap(), ServingStatus::Serving);
    // The streams end with the server, which waits for none of them.
    let (ended, ()) = tokio::join!(
        async { (status(&mut known).await, status(&mut known).await, status(&mut unknown).await) },
        server.stop()
    );
    assert_eq!(ended, (Some(ServingStatus::NotServing), None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_shows_every_service_and_lets_the_server_end() {
    let (server, _feeder, client) = start(|_| {}).await;
    let ask =
        |question: MessageRequest| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    // A client that never says that it is done.
    let questions = stream::iter([
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("inference.GRPCInferenceService".to_owned())),
    ])
    .chain(stream::pending());
    let path = PathAndQuery::from_static("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
    let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
    let mut answers = client.grpc().streaming(Request::new(questions), path, codec).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(services)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no services")
    };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let Some(MessageResponse::FileDescriptorResponse(files)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no file")
    };
    assert!(files.file_descriptor_proto[0].windows(10).any(|name| name == b"ModelInfer"));
    let (end, ()) = tokio::join!(answers.message(), server.stop());
    assert!(end.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_under_load_costs_no_call_that_was_begun() {
    let (server, _feeder, client) = start(|_| {}).await;
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut answered = 0;
                loop {
                    match client.infer(rows(64)).await {
                        Ok(answer) => {
                            assert_eq!(answer.raw_output_contents[0].len(), 256);
                            answered += 1;
                        }
                        Err(status) => {
                            assert!(is_refused_connection(&status), "after {answered} calls: {status:?}");
                            return answered;
                        }
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.stop().await;
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.unwrap();
    }
    assert!(answered > 10, "{answered} calls are no load");
    println!("{answered} calls until the shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_unload_and_load_a_model_and_nobody_else_does() {
    let (server, _feeder, client) = start(|settings| settings.admin_token = Some(Token::parse(TOKEN).unwrap())).await;
    let path = |method: &str| format!("/inference.GRPCInferenceService/RepositoryModel{method}");
    let load = async |authorization: Option<&str>| {
        let mut request =
            Request::new(pb::RepositoryModelLoadRequest { model_name: "m".to_owned(), ..Default::default() });
        if let Some(authorization) = authorization {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        client.ask::<pb::RepositoryModelLoadResponse>(&path("Load"), request).await
    };
    let unload = async |authorization: Option<&str>, name: &str| {
        let mut request =
            Request::new(pb::RepositoryModelUnloadRequest { model_name: name.to_owned(), ..Default::default() });
        if let Some(authorization) = authorization {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        client.ask::<pb::RepositoryModelUnloadResponse>(&path("Unload"), request).await
    };
    let index = async |ready| -> Vec<(String, String)> {
        let asked = pb::RepositoryIndexRequest { ready, ..Default::default() };
        let answer: pb::RepositoryIndexResponse = client.call("RepositoryIndex", asked).await.unwrap();
        answer.models.into_iter().map(|model| (model.name, model.state)).collect()
    };
    let row = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    assert_eq!(index(false).await, [row("echo", "READY"), row("m", "READY")]);
    for authorization in [None, Some("Bearer not-the-token-of-this-server"), Some(TOKEN)] {
        refused(unload(authorization, "m").await, Code::Unauthenticated, "token");
        refused(load(authorization).await, Code::Unauthenticated, "token");
    }
    let right = format!("Bearer {TOKEN}");
    refused(unload(Some(&right), "nope").await, Code::NotFound, "nope");
    unload(Some(&right), "m").await.unwrap();
    refused(client.infer(rows(1)).await, Code::NotFound, "there is no model \"m\"");
    assert_eq!(index(false).await, [row("echo", "READY"), row("m", "UNAVAILABLE")]);
    assert_eq!(index(true).await, [row("echo", "READY")]);
    load(Some(&right)).await.unwrap();
    assert!(client.infer(rows(1)).await.is_ok());
    server.stop().await;

    let (server, _feeder, client) = start(|_| {}).await;
    let asked = pb::RepositoryModelLoadRequest { model_name: "m".to_owned(), ..Default::default() };
    let off = client.call::<pb::RepositoryModelLoadResponse>("RepositoryModelLoad", asked).await;
    refused(off, Code::PermissionDenied, "--admin-token-file");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_before_is_answered_by_its_number_while_it_is_warm() {
    let (server, feeder, client) = start(|_| {}).await;
    put(&feeder, "m", 2, "linear", &constant_model(2)).await;
    server.until_model(2).await;
    for (version, answer) in [("", "2"), ("2", "2"), ("1", "1")] {
        let asked = pb::ModelInferRequest { model_version: version.to_owned(), ..rows(1) };
        let answered = client.infer(asked).await.unwrap();
        let value: f32 = answer.parse().unwrap();
        assert_eq!(
            (answered.model_version.as_str(), &answered.raw_output_contents[0][..]),
            (answer, &value.to_le_bytes()[..])
        );
    }
    let of = pb::ModelMetadataRequest { name: "m".to_owned(), version: String::new() };
    let about: pb::ModelMetadataResponse = client.call("ModelMetadata", of).await.unwrap();
    assert_eq!(about.versions, ["2", "1"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_merges_the_routes_speaks_grpc_too() {
    let (server, _feeder, _) = start(|_| {}).await;
    let host = Router::new().route("/own", get("own")).merge(hotserve::http::router(&server.http));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, shutdown) = (Client::to(listener.local_addr().unwrap()), CancellationToken::new());
    let door = Door::usual(Metrics::new());
    let drain = listener::Drain { delay: Duration::ZERO, limit: Duration::from_secs(10) };
    let serving = tokio::spawn(listener::serve(listener, host, door, drain, shutdown.clone()));
    assert!(client.infer(rows(2)).await.is_ok());
    assert_eq!(checked(&client, "").await.unwrap(), ServingStatus::Serving);
    shutdown.cancel();
    serving.await.unwrap().unwrap();
    server.stop().await;
}
