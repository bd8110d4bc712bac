//! The Open Inference Protocol over gRPC, asked by tonic's own client over real sockets.

mod calls;
mod echo;
mod generate;
mod hostile;
mod infer;
#[path = "../src/http/v2/grpc/proto.rs"]
#[expect(dead_code, reason = "not all of it is asked for here")]
mod proto;

use std::net::SocketAddr;

use base64::Engine as _;
use hotserve::config::{Isolation, Settings};
use hotserve::source::memory::Feeder;
use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as HyperClient, Error};
use hyper_util::rt::TokioExecutor;
use prost::Message;
use serde_json::json;
use tonic::body::Body;
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::support::{Server, constant_model, probe, until};
use proto::inference as pb;

/// The longest message that the server here takes.
const LIMIT: usize = 1 << 20;
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// A client of one server.
#[derive(Clone)]
struct Client {
    http: HyperClient<HttpConnector, Body>,
    origin: Uri,
}

impl Client {
    fn to(addr: SocketAddr) -> Self {
        let http = HyperClient::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { http, origin: format!("http://{addr}").parse().unwrap() }
    }

    fn grpc(&self) -> tonic::client::Grpc<HyperClient<HttpConnector, Body>> {
        tonic::client::Grpc::with_origin(self.http.clone(), self.origin.clone())
    }

    /// Calls a method of the protocol's service.
    async fn call<A: Message + Default + 'static>(
        &self,
        method: &str,
        question: impl Message + Default + 'static,
    ) -> Result<A, Status> {
        let path = format!("/inference.GRPCInferenceService/{method}");
        self.ask(&path, Request::new(question)).await.map(Response::into_inner)
    }

    async fn ask<A: Message + Default + 'static>(
        &self,
        path: &str,
        request: Request<impl Message + Default + 'static>,
    ) -> Result<Response<A>, Status> {
        self.grpc().unary(request, PathAndQuery::try_from(path).unwrap(), ProstCodec::default()).await
    }

    async fn infer(&self, request: pb::ModelInferRequest) -> Result<pb::ModelInferResponse, Status> {
        self.call("ModelInfer", request).await
    }
}

/// A server with a model `echo`, and one `m` that answers its version for every row, both of version 1.
async fn start(change: impl FnOnce(&mut Settings)) -> (Server, Feeder, Client) {
    let settings = |settings: &mut Settings| {
        settings.isolation = Some(Isolation::Thread);
        settings.body_limit = Some(format!("{LIMIT}").parse().unwrap());
        change(settings);
    };
    let (server, feeder, _) = Server::fed_with(echo::loaders(), probe(), settings).await;
    let server = server.ready().await;
    put(&feeder, "echo", 1, echo::FORMAT, b"echo").await;
    put(&feeder, "m", 1, "linear", &constant_model(1)).await;
    let client = Client::to(server.addr);
    for name in ["echo", "m"] {
        until(&format!("model {name}"), async || ready(&client, name).await.then_some(())).await;
    }
    (server, feeder, client)
}

async fn put(feeder: &Feeder, name: &str, version: u64, format: &str, bytes: &[u8]) {
    let inline = base64::engine::general_purpose::STANDARD.encode(bytes);
    let model = json!({"name": name, "version": version, "format": format, "inline": inline});
    feeder.put(json!({ "model": model }).to_string()).await;
}

async fn ready(client: &Client, name: &str) -> bool {
    let request = pb::ModelReadyRequest { name: name.to_owned(), version: String::new() };
    client.call::<pb::ModelReadyResponse>("ModelReady", request).await.unwrap().ready
}

/// A question to the model `m`, of so many rows, as bytes.
fn rows(count: usize) -> pb::ModelInferRequest {
    pb::ModelInferRequest {
        model_name: "m".to_owned(),
        inputs: vec![input("input", "FP32", &[i64::try_from(count).unwrap(), 1])],
        raw_input_contents: vec![vec![0; 4 * count].into()],
        ..Default::default()
    }
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> pb::model_infer_request::InferInputTensor {
    pb::model_infer_request::InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..Default::default()
    }
}

/// That a call was refused with this code, in words that say this.
#[track_caller]
fn refused<A: std::fmt::Debug>(answer: Result<A, Status>, code: Code, says: &str) {
    let status = answer.expect_err(says);
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(says), "{:?} does not say {says:?}", status.message());
}

/// Whether a call never reached the server.
fn is_refused_connection(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.downcast_ref::<Error>().is_some_and(Error::is_connect) {
            return true;
        }
        // A call that the end of the connection did not let begin: a client fails those alone (RFC 9113, 6.8), and those
        // that were begun are answered. hyper does not tell in another way.
        if error.is::<hyper::Error>() && format!("{error:?}").contains("GoAway(b\"\", NO_ERROR, Remote)") {
            return true;
        }
        source = error.source();
    }
    false
}
