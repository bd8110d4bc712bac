//! The way in for what is asked most: states and predictions pass the router by.
//!
//! The router answers everything, these too. Here are the same handlers under the same observation; what is saved is
//! the search for the route, a box for the body and one for each layer.

use std::convert::Infallible;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::BoxError;
use axum::Router;
use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request};
use tower::Service;

use super::min_version::MinVersion;
use super::observe::Observe;
use super::trace::Caller;
use super::v2::grpc::{Grpc, is_grpc};
use super::{Http, cors, predict, router, state};
use crate::config::Origins;
use crate::id::StateKey;

/// Every route, and a short way to some.
#[derive(Clone)]
pub struct Front(Arc<Routes>);

struct Routes {
    http: Arc<Http>,
    router: Router,
    grpc: Grpc,
    state: Observe,
    state_by_key: Observe,
    predict: Observe,
    predict_by_name: Observe,
}

impl Front {
    /// For this interface.
    pub fn new(http: Arc<Http>) -> Self {
        let route = |name| Observe::route(name, &http.metrics);
        Self(Arc::new(Routes {
            state: route("/state"),
            state_by_key: route("/state/{key}"),
            predict: route("/predict"),
            predict_by_name: route("/predict/{model}"),
            router: router(&http),
            grpc: Grpc::new(Arc::clone(&http)),
            http,
        }))
    }
}

impl<B> Service<Request<B>> for Front
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError> + Display> + Send + Unpin + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if let Some(origins) = &self.0.http.config.connections.cors {
            return self.cross_origin(origins, request);
        }
        self.answer(request)
    }
}

/// An answer that is there, or is waited for.
pub enum Answer {
    /// It is taken once.
    Now(Option<Response>),
    /// Anything but a state that is there.
    Later(Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>),
}

impl Answer {
    fn now(response: Response) -> Self {
        Self::Now(Some(response))
    }

    fn later(future: impl Future<Output = Result<Response, Infallible>> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }
}

impl Future for Answer {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Now(response) => Poll::Ready(Ok(response.take().expect("a future is not polled after its end"))),
            Self::Later(future) => future.as_mut().poll(context),
        }
    }
}

impl Front {
    /// An answer that pages of other origins may read, or that no browser gives to them.
    fn cross_origin<B>(&self, origins: &Origins, request: Request<B>) -> Answer
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError> + Display> + Send + Unpin + 'static,
    {
        let granted = cors::granted(origins, &request);
        if let Some(answer) = granted.as_ref().and_then(|granted| cors::preflight(granted, &request)) {
            return Answer::now(answer);
        }
        let answer = self.answer(request);
        Answer::later(async move {
            let mut answer = answer.await?;
            match granted {
                Some(granted) => granted.write(answer.headers_mut()),
                None => cors::vary(answer.headers_mut()),
            }
            Ok(answer)
        })
    }

    fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError> + Display> + Send + Unpin + 'static,
    {
        if is_grpc(&request) {
            return Answer::later(self.0.grpc.clone().call(request).map(Ok));
        }
        let path = request.uri().path();
        let (is_state, is_predict) = match *request.method() {
            Method::GET => (is_short(path, "/state"), false),
            Method::POST => (false, is_short(path, "/predict")),
            _ => (false, false),
        };
        if !is_state && !is_predict {
            return Answer::later(self.0.router.clone().call(request.map(Body::new)));
        }
        let (head, body) = request.into_parts();
        let caller = Caller::of_head(&head);
        let routes = Arc::clone(&self.0);
        if is_predict {
            return Answer::later(async move {
                let name = head.uri.path().strip_prefix("/predict/");
                let route = if name.is_none() { &routes.predict } else { &routes.predict_by_name };
                Ok(route.answer(caller, predict::answer(&routes.http, name, &head.headers, body)).await)
            });
        }
        let key = head.uri.path().strip_prefix("/state/");
        let route = if key.is_none() { &routes.state } else { &routes.state_by_key };
        if head.uri.query().is_none() && !MinVersion::is_asked(&head.headers) {
            let key = key.unwrap_or(StateKey::DEFAULT);
            return Answer::now(route.answer_now(caller, || state::get_now(&routes.http, key, &head.headers)));
        }
        let route = route.clone();
        Answer::later(async move {
            let key = head.uri.path().strip_prefix("/state/").unwrap_or(StateKey::DEFAULT);
            Ok(route.answer(caller, state::get(&routes.http, key, head.uri.query(), &head.headers)).await)
        })
    }
}

/// Whether a path is this one, or one step below it by a name that nothing has to be decoded in.
fn is_short(path: &str, route: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match path.strip_prefix(route).map(|rest| rest.strip_prefix('/').ok_or(rest)) {
        Some(Err(rest)) => rest.is_empty(),
        Some(Ok(name)) => !name.is_empty() && name.bytes().all(plain),
        None => false,
    }
}
