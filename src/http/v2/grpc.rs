//! The Open Inference Protocol over gRPC, on the port of everything else: a request whose content type is
//! `application/grpc` comes here. With it come the standard health service and reflection.

mod frame;
mod health;
mod infer;
mod proto;
mod repository;
mod scan;
mod status;

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use axum::routing::any;
use axum::{BoxError, Router};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Version, header};
use http_body_util::BodyExt;
use metrics::{Counter, Histogram};
use prost::Message;
use tokio::time::timeout_at;
use tonic::{Code, Status};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use self::frame::Deadline;
use self::proto::inference as pb;
use super::models::Named;
use super::wire::shown;
use crate::http::observe::{Observe, overloaded};
use crate::http::predict;
use crate::http::problem::Problem;
use crate::http::trace::{Caller, Fault, REQUEST_ID};
use crate::http::{Http, not_found};
use crate::metrics::{Asked, Ended, Flight, GRPC_CODES, GRPC_METHODS, Metrics};

/// The largest message of what is no inference, in bytes: names, and a few parameters. It is read where it is answered.
const SMALL: usize = 16 << 10;

/// How many streams may last: each is one for as long as its client likes.
pub(in crate::http) const STREAMS: usize = 256;

type Reflection = BoxCloneSyncService<Request<Body>, http::Response<tonic::body::Body>, Infallible>;

/// The services.
#[derive(Clone)]
pub(in crate::http) struct Grpc(Arc<Services>);

struct Services {
    http: Arc<Http>,
    methods: Vec<Series>,
    /// The two versions of the protocol: the old one is what most tools still begin with.
    reflection: [Reflection; 2],
}

/// The handles of one method, resolved once.
struct Series {
    path: &'static str,
    answers: Vec<(&'static str, Counter)>,
    duration: Histogram,
}

/// Whether a request is one of gRPC: of the protocol's own encoding, and of no other.
pub(in crate::http) fn is_grpc<B>(request: &Request<B>) -> bool {
    if request.version() != Version::HTTP_2 || *request.method() != Method::POST {
        return false;
    }
    let given = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = given.and_then(|given| given.strip_prefix(frame::CONTENT_TYPE.as_bytes()));
    rest.is_some_and(|rest| matches!(rest, [] | [b';', ..]) || rest == b"+proto")
}

/// The services as routes, for a host that merges them into its own; the front needs none.
pub(in crate::http) fn router(http: &Arc<Http>) -> Router<Arc<Http>> {
    let (grpc, other) = (Grpc::new(Arc::clone(http)), Observe::route("unmatched", &http.metrics));
    let answer = async move |request: Request<Body>| {
        if is_grpc(&request) {
            return grpc.call(request).await;
        }
        other.answer(Caller::of(request.method(), request.headers()), not_found()).await
    };
    let paths = [
        "/inference.GRPCInferenceService/{method}",
        "/grpc.health.v1.Health/{method}",
        "/grpc.reflection.v1.ServerReflection/{method}",
        "/grpc.reflection.v1alpha.ServerReflection/{method}",
    ];
    paths.into_iter().fold(Router::new(), |router, path| router.route(path, any(answer.clone())))
}

impl Grpc {
    /// For this interface.
    pub(in crate::http) fn new(http: Arc<Http>) -> Self {
        let methods = GRPC_METHODS.iter().map(|path| Series::new(path, &http.metrics)).collect();
        Self(Arc::new(Services { methods, reflection: reflection(), http }))
    }

    /// Answers a call, and counts it.
    pub(in crate::http) async fn call<B>(self, request: Request<B>) -> Response
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError> + Display> + Send + Unpin + 'static,
    {
        let services = &*self.0;
        let (head, body) = request.into_parts();
        let caller = Caller::of_head(&head);
        let metrics = &services.http.metrics;
        let flight = head.uri.path().ends_with("/ModelInfer").then(|| metrics.in_flight.enter());
        let answer = if flight.as_ref().is_none_or(Flight::fits) {
            AssertUnwindSafe(services.answer(&head, body)).catch_unwind().await
        } else {
            metrics.requests_shed.increment(1);
            Ok(Err(overloaded().into()))
        };
        let answer = answer.unwrap_or_else(|_| {
            let fault = Some(Arc::new(Fault::panicked()));
            Err(Problem { fault, ..Problem::internal() }.into())
        });
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let fault = answer
            .as_ref()
            .err()
            .and_then(|status| status.source())
            .and_then(|source| source.downcast_ref::<Fault>().cloned());
        let mut response = answer.unwrap_or_else(frame::refuse);
        let route = services.route(head.uri.path());
        let trace = caller.answered(route, &response, Some(code.into()));
        if let Some(fault) = fault {
            caller.failed(route, trace, &fault);
        }
        services.count(route, code, caller.begun);
        response.headers_mut().insert(REQUEST_ID, caller.id);
        response
    }
}

impl Services {
    async fn answer<B>(&self, head: &Parts, body: B) -> Result<Response, Status>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError> + Display> + Send + Unpin + 'static,
    {
        let path = head.uri.path();
        match path {
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" => self.reflect(0, head, body).await,
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => self.reflect(1, head, body).await,
            "/inference.GRPCInferenceService/ModelStreamInfer" => {
                Err(Status::unimplemented("streams of inferences are not served: call ModelInfer, over one connection"))
            }
            path if GRPC_METHODS.contains(&path) => {
                let deadline = Deadline::of(&head.headers, self.http.config.request_timeout)?;
                let answer = timeout_at(deadline.at, self.unary(path, head, body, deadline)).await;
                answer.unwrap_or_else(|_| Err(deadline.exceeded()))
            }
            path => {
                Err(Status::unimplemented(format!("there is no method {}; reflection tells which are", shown(path))))
            }
        }
    }

    /// The methods that are asked by one message.
    async fn unary<B>(&self, path: &str, head: &Parts, body: B, deadline: Deadline) -> Result<Response, Status>
    where
        B: HttpBody<Data = Bytes, Error: Display> + Unpin,
    {
        let (http, headers) = (&self.http, &head.headers);
        let method = path.strip_prefix("/inference.GRPCInferenceService/").unwrap_or(path);
        let limit = http.config.body_limit;
        let limit = if method == "ModelInfer" { limit } else { limit.min(SMALL) };
        let message = timeout_at(deadline.at, frame::read(http, headers, body, limit)).await;
        let message = message.unwrap_or_else(|_| Err(deadline.exceeded()));
        let message = if method == "ModelInfer" { infer::counted(http, message) } else { message }?;
        Ok(match method {
            "ModelInfer" => {
                let infer::Inferred { model, frame } = infer::infer(http, headers, deadline, message).await?;
                let mut response = frame::answer(frame);
                let headers = response.headers_mut();
                headers.insert(predict::MODEL_NAME, model.headers.name.clone());
                headers.insert(predict::MODEL_VERSION, model.headers.version.clone());
                headers.insert(predict::MODEL_DIGEST, model.headers.digest.clone());
                response
            }
            "ServerLive" => {
                frame::decode::<pb::ServerLiveRequest>(message)?;
                answer(&pb::ServerLiveResponse { live: true })
            }
            "ServerReady" => answer(&repository::server_ready(http, frame::decode(message)?)),
            "ModelReady" => answer(&repository::model_ready(http, &frame::decode(message)?)),
            "ServerMetadata" => answer(&repository::server_metadata(frame::decode(message)?)),
            "ModelMetadata" => answer(&repository::model_metadata(http, &frame::decode(message)?)?),
            "ModelStatistics" => answer(&repository::statistics(http, &frame::decode(message)?)?),
            "RepositoryIndex" => answer(&repository::index(http, &frame::decode(message)?)?),
            "RepositoryModelLoad" => answer(&repository::load(http, headers, frame::decode(message)?).await?),
            "RepositoryModelUnload" => answer(&repository::unload(http, headers, frame::decode(message)?).await?),
            "/grpc.health.v1.Health/Check" => answer(&health::check(http, &frame::decode(message)?)?),
            "/grpc.health.v1.Health/Watch" => health::watch(http, &frame::decode(message)?)?,
            _ => return Err(Status::unimplemented("the method is not served")),
        })
    }

    /// What the services are. A client may ask for as long as it likes, and the server's shutdown ends it.
    async fn reflect<B>(&self, version: usize, head: &Parts, body: B) -> Result<Response, Status>
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let place = health::place(&self.http)?;
        let questions = body.into_data_stream().take_until(health::drained(Arc::clone(&self.http)));
        let questions = questions.map(move |question| {
            let _held = &place;
            question
        });
        let mut request = Request::new(Body::from_stream(questions));
        request.headers_mut().clone_from(&head.headers);
        request.uri_mut().clone_from(&head.uri);
        *request.method_mut() = head.method.clone();
        let Some(service) = self.reflection.get(version).cloned() else { return Err(Problem::internal().into()) };
        match service.oneshot(request).await {
            Ok(response) => Ok(response.map(Body::new)),
            Err(never) => match never {},
        }
    }

    /// The method as the metrics have it.
    fn route(&self, path: &str) -> &'static str {
        let found = self.methods.iter().find(|series| series.path == path);
        found.or_else(|| self.methods.last()).map_or("other", |series| series.path)
    }

    fn count(&self, path: &str, code: Code, start: Instant) {
        let found = self.methods.iter().find(|series| series.path == path);
        let Some(series) = found.or_else(|| self.methods.last()) else { return };
        let name = status::name(code);
        if let Some((_, answers)) = series.answers.iter().find(|(code, _)| *code == name) {
            answers.increment(1);
        }
        let duration = start.elapsed();
        series.duration.record(duration);
        if series.path == "/inference.GRPCInferenceService/ModelInfer" {
            let ended = match code {
                Code::Ok => Ended::Well,
                Code::Internal | Code::Unavailable | Code::DeadlineExceeded | Code::Unknown => Ended::Failed,
                _ => Ended::Refused,
            };
            self.http.metrics.traffic.record(Asked::Prediction, duration, ended);
        }
    }
}

/// The names of a message, in which an empty version is none.
fn named(model: &str, version: &str) -> Named {
    Named { model: model.to_owned(), version: (!version.is_empty()).then(|| version.to_owned()) }
}

fn answer(message: &impl Message) -> Response {
    frame::answer(frame::encode(message))
}

impl Series {
    fn new(path: &'static str, metrics: &Metrics) -> Self {
        let answers = GRPC_CODES.iter().map(|code| (*code, metrics.grpc_requests.get(&[path, code]).clone()));
        Self { path, answers: answers.collect(), duration: metrics.grpc_request_duration.get(path).clone() }
    }
}

fn reflection() -> [Reflection; 2] {
    let builder =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(proto::DESCRIPTORS);
    let whole = "the descriptors are those that the code was generated from";
    [
        BoxCloneSyncService::new(builder().build_v1().expect(whole)),
        BoxCloneSyncService::new(builder().build_v1alpha().expect(whole)),
    ]
}
