//! One connection, from its first byte to its end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::response::Response;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

use super::super::tls::Shown;
use super::Door;
use super::activity::{Activity, Noted, Overdue, Tracked, Watch};

/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);
/// How long a connection without a request is kept when it is to end: a request that is on its way already is answered,
/// and its answer says that it is the last.
const GRACE: Duration = Duration::from_millis(100);
/// How long a client over HTTP/2 may take to confirm that it knows of the end, and how long a handshake goes on that the
/// end finds under way.
const FAREWELL: Duration = Duration::from_secs(2);
/// A client that takes as many bytes as this in that time is being answered; less are answers to its pings.
const ANSWERED: u32 = 1 << 10;
/// The largest head over HTTP/1, in bytes: what a connection buffers, for reading and for writing.
const BUFFER: usize = 64 << 10;
/// The largest headers over HTTP/2, in bytes, inflated.
const HEADER_LIST: u32 = 32 << 10;
/// How many requests a client may have under way on one connection over HTTP/2.
const STREAMS: u32 = 200;
/// How many streams a client may open and take back before they were looked at (CVE-2023-44487), and how many may be
/// reset because of what it sent (CVE-2025-8671).
const RESETS: (usize, usize) = (20, 128);

/// The certificate that the client of a connection has shown, and that was proved: by its SHA-256.
#[derive(Debug, Clone)]
pub struct ClientCertificate(pub Arc<str>);

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// By the client, or after a last answer.
    Closed,
    /// No request came.
    Idle,
    /// A head was not finished in time.
    HeadTimeout,
    /// It was no HTTP: answered 400.
    Malformed,
    /// A head was too large: answered 431, or 414.
    HeadTooLarge,
    /// The client took nothing of an answer.
    Stalled,
    /// There was no agreement about TLS, or none in time.
    Handshake,
    /// It made room for another.
    Evicted,
    /// It broke off, or did not keep to HTTP/2.
    Broken,
    /// It was cut off when the server stopped.
    Drained,
}

impl End {
    /// The label of the metric.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::HeadTimeout => "head_timeout",
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head_too_large",
            Self::Stalled => "stalled",
            Self::Handshake => "handshake",
            Self::Evicted => "evicted",
            Self::Broken => "broken",
            Self::Drained => "drained",
        }
    }
}

/// A connection that was accepted.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) door: Door,
    pub(super) activity: Arc<Activity>,
    /// Whether the server is about to stop: answers say that the connection closes.
    pub(super) leaving: Arc<AtomicBool>,
    /// Tells it to end: at once where it does nothing, else after its answer.
    pub(super) stop: CancellationToken,
}

impl Connection {
    pub(super) async fn run<S>(self, stream: TcpStream, service: S) -> End
    where
        S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        // Without it small answers wait for the client's acknowledgement. A socket that refuses works all the same.
        let _ = stream.set_nodelay(true);
        let Some(tls) = self.door.tls.clone() else { return self.serve(stream, service, None).await };
        let mut handshake = pin!(timeout(self.door.head_timeout, tls.accept(stream)));
        let accepted = tokio::select! {
            accepted = &mut handshake => accepted,
            // Who has been let in may have a request for the end of it.
            () = self.stop.cancelled() => match timeout(FAREWELL, handshake).await {
                Ok(accepted) => accepted,
                Err(_) => return End::Closed,
            },
        };
        match accepted {
            Ok(Ok((stream, shown))) => {
                // Large, and of no use any more where no TLS is spoken.
                Box::pin(self.serve(stream, service, shown)).await
            }
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.peer, %error, "no agreement about TLS");
                End::Handshake
            }
            Err(_) => End::Handshake,
        }
    }

    async fn serve<T, S>(self, stream: T, service: S, shown: Option<Shown>) -> End
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
    {
        let Self { peer, door, activity, leaving, stop } = self;
        // One for this connection: to count its users is no business of the others.
        let shared = Arc::new((Arc::clone(&activity), leaving));
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (underway, shared) = (shared.0.begin(), Arc::clone(&shared));
            match shown.as_ref().map(Shown::certificate) {
                None => {}
                Some(Some(certificate)) => drop(request.extensions_mut().insert(certificate.clone())),
                // It is worth nothing any more: the client is to show another, on another connection.
                Some(None) => shared.0.set_closing(),
            }
            let http1 = request.version() <= Version::HTTP_11;
            service.clone().oneshot(request).map(move |answer| {
                answer.map(|mut response| {
                    if http1 && (underway.is_last() || shared.1.load(Ordering::Relaxed)) {
                        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    response.map(|body| Tracked::new(body, underway))
                })
            })
        });

        let mut builder = auto::Builder::new(TokioExecutor::new());
        // The watch has the deadlines: those of the builder would cost an allocation a request.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_header_list_size(HEADER_LIST)
            .max_concurrent_streams(STREAMS)
            .max_pending_accept_reset_streams(RESETS.0)
            .max_local_error_reset_streams(RESETS.1);
        let transport = TokioIo::new(Noted::new(stream, Arc::clone(&activity)));
        let mut served = pin!(builder.serve_connection(transport, service));
        let mut watch = Watch::new(Arc::clone(&activity), door.head_timeout, door.idle_timeout);
        let mut stopped = pin!(stop.cancelled());
        let mut grace = pin!(sleep(GRACE));
        let (mut told, mut went) = (false, 0);

        poll_fn(|context| {
            if !activity.is_closing() && stopped.as_mut().poll(context).is_ready() {
                activity.set_closing();
                grace.as_mut().reset(Instant::now() + GRACE);
            }
            if let Poll::Ready(result) = served.as_mut().poll(context) {
                return Poll::Ready(end(peer, result));
            }
            if activity.is_closing() && !told && grace.as_mut().poll(context).is_ready() {
                told = true;
                went = activity.went();
                grace.as_mut().reset(Instant::now() + FAREWELL);
                served.as_mut().graceful_shutdown();
                if let Poll::Ready(result) = served.as_mut().poll(context) {
                    return Poll::Ready(end(peer, result));
                }
            }
            // Half a head is no request, and who makes room or stops does not wait for the rest.
            if told && activity.is_closing() && !activity.is_http2() && activity.idle_since().is_some() {
                return Poll::Ready(End::Closed);
            }
            // Over HTTP/2 the client is asked whether it knows, and may never say so.
            while told && activity.is_closing() && grace.as_mut().poll(context).is_ready() {
                let now = activity.went();
                if activity.idle_since().is_some() && now.wrapping_sub(went) < ANSWERED {
                    return Poll::Ready(End::Closed);
                }
                went = now;
                grace.as_mut().reset(Instant::now() + FAREWELL);
            }
            match watch.poll(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Overdue::Idle) if activity.is_http2() && !told => {
                    // Its client may be about to ask: it is told which requests will not be answered.
                    told = true;
                    served.as_mut().graceful_shutdown();
                    watch.again();
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(Overdue::Idle) => Poll::Ready(End::Idle),
                Poll::Ready(Overdue::Head) => Poll::Ready(End::HeadTimeout),
                Poll::Ready(Overdue::Stalled) => Poll::Ready(End::Stalled),
            }
        })
        .await
    }
}

fn end(peer: SocketAddr, result: Result<(), Box<dyn std::error::Error + Send + Sync>>) -> End {
    let Err(error) = result else { return End::Closed };
    // Clients come and go as they like; it is of interest only to who looks for it.
    tracing::debug!(%peer, error, "a connection ended early");
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_parse_too_large() => End::HeadTooLarge,
        Some(error) if error.is_parse() => End::Malformed,
        // Told to end before its first bytes.
        None if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::Interrupted) =>
        {
            End::Closed
        }
        _ => End::Broken,
    }
}
