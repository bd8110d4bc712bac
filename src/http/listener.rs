//! The accept loop: HTTP/1.1 and HTTP/2 with prior knowledge on one port, ended gracefully.
//!
//! `axum::serve` has no time limits and no deadline for its drain, hence this one.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// The longest time from a connection to the head of its first request: a client that dawdles holds a socket.
const FIRST_HEAD: Duration = Duration::from_secs(30);
/// The longest time from an answer to the head of the next request. Longer than the 60 s for which load balancers keep
/// an idle connection: who closes first must be the side that sends the requests, else one is lost in the closing.
const NEXT_HEAD: Duration = Duration::from_secs(75);
/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);
/// The pause when no connection can be accepted: the process is out of descriptors, and trying at once is no help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers requests until the shutdown, then lets those under way end, for as long as `drain` at most.
///
/// Connections that are idle at the shutdown are closed at once, the others after their answer.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    drain: Duration,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection(stream, peer, router.clone(), shutdown.clone()));
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    tokio::select! {
                        () = shutdown.cancelled() => break,
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            },
        }
    }
    // New connections are refused from here on, so that clients go elsewhere.
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    if timeout(drain, ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            drain_seconds = drain.as_secs_f64(),
            "requests cut off: they did not end in time"
        );
        connections.shutdown().await;
    }
    Ok(())
}

/// The client gave up before it was accepted; the listener is fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: CancellationToken) {
    // Without it small answers wait for the client's acknowledgement. A socket that refuses works all the same.
    let _ = stream.set_nodelay(true);
    let begun = Arc::new(Notify::new());
    let noted = Arc::clone(&begun);
    let service = router.map_request(move |request: Request<_>| {
        noted.notify_one();
        request.map(Body::new)
    });

    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));

    // The builder waits for the first bytes without a limit of its own.
    let first = tokio::select! {
        result = served.as_mut() => Some(result),
        () = begun.notified() => None,
        () = shutdown.cancelled() => None,
        () = sleep(FIRST_HEAD) => Some(Ok(())),
    };
    let result = match first {
        Some(result) => result,
        None => tokio::select! {
            result = served.as_mut() => result,
            () = shutdown.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        },
    };
    if let Err(error) = result {
        // Clients come and go as they like; it is of interest only to who looks for it.
        tracing::debug!(%peer, error, "a connection ended early");
    }
}
