//! The accept loop: HTTP/1.1 and HTTP/2 on one port, over TLS or without, ended gracefully.
//!
//! `axum::serve` has neither limits nor deadlines, nor an end to its drain, hence this one. A client may be slow, silent
//! or hostile: what it can hold is a connection, for a time, and when there are as many connections as may be, those that
//! do nothing make room.

mod activity;
mod connection;
mod crowd;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::Service;

use self::activity::Activity;
use self::connection::{Connection, End};
use self::crowd::Crowd;
use super::limits;
use super::tls::Acceptor;
use crate::config::ListenConfig;
use crate::metrics::Metrics;

pub use self::connection::ClientCertificate;

/// The pause when no connection can be accepted: the process is out of descriptors, and trying at once is no help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How many connections may wait to be accepted, where the system allows as many (`net.core.somaxconn`). The default of
/// 128 is one burst of clients: those beyond it try again after a second.
const BACKLOG: u32 = 4096;

/// What is said to who cannot be let in.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n\
                      content-type: application/problem+json\r\ncontent-length: 135\r\n\r\n\
                      {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
                      \"code\":\"overloaded\",\"detail\":\"as many connections as may be are open\"}";

/// What the connections of one port must keep to.
#[derive(Clone)]
pub struct Door {
    /// How many may be open.
    pub connections: usize,
    /// The longest time from the first byte of a head to its last, and for a handshake.
    pub head_timeout: Duration,
    /// The longest time without a request.
    pub idle_timeout: Duration,
    /// Who speaks TLS, where it is spoken.
    pub tls: Option<Acceptor>,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
}

impl Door {
    /// The usual limits, without TLS.
    pub fn usual(metrics: Arc<Metrics>) -> Self {
        let ListenConfig { head_timeout, idle_timeout, .. } = ListenConfig::default();
        Self { connections: limits::CONNECTIONS, head_timeout, idle_timeout, tls: None, metrics }
    }
}

/// Listens on an address. The port may be one that has just been let go.
pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // On Windows it would allow two to listen.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// How a listener ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// How long everything is still answered, new connections too, once the shutdown has begun.
    pub delay: Duration,
    /// The longest time from the beginning of the shutdown to its end.
    pub limit: Duration,
}

/// Answers requests until the shutdown, then ends in three steps, each of which a client that keeps to HTTP comes through
/// without a failed request.
///
/// 1. For `drain.delay` all goes on, but each answer over HTTP/1 says `connection: close`: clients leave at a moment of
///    their own, between two requests.
/// 2. New connections are refused, and those that waited to be accepted are answered. Connections that are idle are closed
///    a moment later, the others after their answer.
/// 3. Requests under way end, till `drain.limit` is over.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    door: Door,
    drain: Drain,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    let mut crowd = Crowd::default();
    let metrics = Arc::clone(&door.metrics);
    let left = |crowd: &mut Crowd, ended: Result<(tokio::task::Id, End), tokio::task::JoinError>| {
        let (id, end) = ended.unwrap_or_else(|error| (error.id(), End::Broken));
        let end = if crowd.remove(id) && end == End::Closed { End::Evicted } else { end };
        metrics.connections.decrement(1.0);
        metrics.connections_ended.get(&[end.code()]).increment(1);
    };
    let (leaving, close) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let mut delayed = pin!(async {
        shutdown.cancelled().await;
        leaving.store(true, Ordering::Relaxed);
        sleep(drain.delay).await;
    });
    let let_in = |connections: &mut JoinSet<End>, crowd: &mut Crowd, stream: TcpStream, peer: SocketAddr| {
        let activity = Arc::new(Activity::now());
        // A token of its own: each look at one takes its lock, and all connections would share it.
        let stop = close.child_token();
        let connection = Connection {
            peer,
            door: door.clone(),
            activity: Arc::clone(&activity),
            leaving: Arc::clone(&leaving),
            stop: stop.clone(),
        };
        let task = connections.spawn(connection.run(stream, service.clone()));
        crowd.add(task.id(), activity, stop);
        metrics.connections.increment(1.0);
        metrics.connections_opened.increment(1);
    };
    loop {
        tokio::select! {
            biased;
            () = delayed.as_mut() => break,
            Some(ended) = connections.join_next_with_id() => left(&mut crowd, ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    // Who is asked to go needs a moment: there may be a few more than there may be, for as long.
                    if connections.len() >= door.connections {
                        let room = crowd.evict();
                        if !room || connections.len() >= door.connections + door.connections / 8 + 8 {
                            metrics.connections_refused.increment(1);
                            refuse(stream, door.tls.is_none());
                            continue;
                        }
                    }
                    let_in(&mut connections, &mut crowd, stream, peer);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let made_room = crowd.evict();
                    tracing::warn!(%error, made_room, "cannot accept connections; trying again");
                    tokio::select! {
                        () = delayed.as_mut() => break,
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            },
        }
    }
    let deadline = Instant::now() + drain.limit.saturating_sub(drain.delay);
    // Whoever waits to be accepted believes to be connected, and may have sent a request. The system is asked, not tokio,
    // which would only know what it has been told of. Then new connections are refused, so that clients go elsewhere.
    let waiting = listener.into_std()?;
    while connections.len() < door.connections {
        match waiting.accept() {
            Ok((stream, peer)) => {
                let made = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                made.map_or_else(drop, |stream| let_in(&mut connections, &mut crowd, stream, peer));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => break,
        }
    }
    drop(waiting);
    close.cancel();
    let ended = async {
        while let Some(ended) = connections.join_next_with_id().await {
            left(&mut crowd, ended);
        }
    };
    if timeout_at(deadline, ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            drain_seconds = drain.limit.as_secs_f64(),
            "requests cut off: they did not end in time"
        );
        metrics.connections.decrement(connections.len() as f64);
        metrics.connections_ended.get(&[End::Drained.code()]).increment(connections.len() as u64);
        connections.shutdown().await;
    }
    Ok(())
}

/// The client gave up before it was accepted; the listener is fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Lets nobody in, and says so where that can be said without a handshake. Nothing waits for who does not read it.
fn refuse(stream: TcpStream, plain: bool) {
    if plain && let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(FULL);
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
}
