//! The accept loop: HTTP/1.1 and HTTP/2 with prior knowledge on one port, ended gracefully.
//!
//! `axum::serve` has no time limits and no deadline for its drain, hence this one.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};

/// The longest time from a connection to the head of its first request: a client that dawdles holds a socket.
const FIRST_HEAD: Duration = Duration::from_secs(30);
/// The longest time from an answer to the head of the next request. Longer than the 60 s for which load balancers keep
/// an idle connection: who closes first must be the side that sends the requests, else one is lost in the closing.
const NEXT_HEAD: Duration = Duration::from_secs(75);
/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);
/// The pause when no connection can be accepted: the process is out of descriptors, and trying at once is no help.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How many connections may wait to be accepted, where the system allows as many (`net.core.somaxconn`). The default of
/// 128 is one burst of clients: those beyond it try again after a second.
const BACKLOG: u32 = 4096;

/// Listens on an address. The port may be one that has just been let go.
pub fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // On Windows it would allow two to listen.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Answers requests until the shutdown, then lets those under way end, for as long as `drain` at most.
///
/// Connections that are idle at the shutdown are closed at once, the others after their answer.
pub async fn serve<S>(listener: TcpListener, service: S, drain: Duration, shutdown: CancellationToken) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    // A token of its own: each look at one takes its lock, and all connections would share it.
                    connections.spawn(connection(stream, peer, service.clone(), shutdown.child_token()));
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

async fn connection<S>(stream: TcpStream, peer: SocketAddr, service: S, shutdown: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    // Without it small answers wait for the client's acknowledgement. A socket that refuses works all the same.
    let _ = stream.set_nodelay(true);
    let begun = Arc::new(Notify::new());
    let noted = Arc::clone(&begun);
    let service = service.map_request(move |request| {
        noted.notify_one();
        request
    });

    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));

    // The builder waits for the first bytes without a limit of its own.
    let first = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        result = served.as_mut() => Some(result),
        () = begun.notified() => None,
        () = sleep(FIRST_HEAD) => Some(Ok(())),
    };
    let result = match first {
        Some(result) => result,
        None => tokio::select! {
            // The shutdown first: an answer after it says that the connection closes.
            biased;
            () = shutdown.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
            result = served.as_mut() => result,
        },
    };
    if let Err(error) = result {
        // Clients come and go as they like; it is of interest only to who looks for it.
        tracing::debug!(%peer, error, "a connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    use super::*;

    /// A server with a route that answers when it is told to.
    struct Server {
        address: SocketAddr,
        begun: mpsc::Receiver<()>,
        finish: Arc<Notify>,
        shutdown: CancellationToken,
        served: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl Server {
        async fn start(drain: Duration) -> Self {
            let (begin, begun) = mpsc::channel(1);
            let finish = Arc::new(Notify::new());
            let wait = Arc::clone(&finish);
            let slow = move || async move {
                begin.send(()).await.expect("the test listens");
                wait.notified().await;
                "slow"
            };
            let router = Router::new().route("/fast", get(|| async { "fast" })).route("/slow", get(slow));
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let shutdown = CancellationToken::new();
            let served = tokio::spawn(serve(listener, router, drain, shutdown.clone()));
            Self { address, begun, finish, shutdown, served }
        }

        async fn send(&self, path: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.expect("accepted");
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("written");
            stream
        }

        async fn ended(self) {
            self.served.await.expect("no panic").expect("a clean end");
        }
    }

    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            assert_ne!(stream.read_buf(&mut text).await.expect("read"), 0, "closed early");
        }
        String::from_utf8(text).expect("ASCII")
    }

    async fn read_to_end(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("a clean end");
        text
    }

    #[tokio::test]
    async fn a_burst_of_connections_waits_for_nobody_to_accept_it() {
        let listener = bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = listener.local_addr().expect("an address");
        let most =
            std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
        let burst = most.unwrap_or(128).min(400);
        let mut streams = Vec::new();
        // Nobody accepts. What does not fit is tried again after a second, and again after two more.
        for number in 0..burst {
            let connected = timeout(Duration::from_secs(20), TcpStream::connect(address)).await;
            streams
                .push(connected.unwrap_or_else(|_| panic!("connection {number} of {burst} waits")).expect("accepted"));
        }
    }

    #[tokio::test]
    async fn a_request_under_way_survives_the_shutdown() {
        let mut server = Server::start(Duration::from_secs(600)).await;
        let mut stream = server.send("/slow").await;
        server.begun.recv().await.expect("the request is under way");
        server.shutdown.cancel();
        server.finish.notify_one();
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("slow"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        server.ended().await;
    }

    #[tokio::test]
    async fn an_idle_connection_is_kept_until_the_shutdown_closes_it() {
        let server = Server::start(Duration::from_secs(600)).await;
        let mut silent = TcpStream::connect(server.address).await.expect("accepted");
        let mut stream = server.send("/fast").await;
        read_until(&mut stream, "fast").await;
        stream.write_all(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        read_until(&mut stream, "fast").await;
        server.shutdown.cancel();
        assert_eq!(read_to_end(&mut stream).await, "");
        assert_eq!(read_to_end(&mut silent).await, "");
        server.ended().await;
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_cut_off_after_the_drain() {
        let mut server = Server::start(Duration::ZERO).await;
        let mut stream = server.send("/slow").await;
        server.begun.recv().await.expect("the request is under way");
        server.shutdown.cancel();
        assert_eq!(read_to_end(&mut stream).await, "");
        server.ended().await;
    }

    #[tokio::test]
    async fn what_is_no_http_is_refused_and_the_next_is_answered() {
        let server = Server::start(Duration::from_secs(600)).await;
        let mut stream = TcpStream::connect(server.address).await.expect("accepted");
        stream.write_all(b"\x16\x03\x01 this is TLS or nonsense\r\n\r\n").await.expect("written");
        assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 400"));
        let mut stream = server.send("/fast").await;
        read_until(&mut stream, "fast").await;
        server.shutdown.cancel();
        server.ended().await;
    }

    #[tokio::test]
    async fn http2_is_spoken_with_who_begins_with_it() {
        let server = Server::start(Duration::from_secs(600)).await;
        let mut stream = TcpStream::connect(server.address).await.expect("accepted");
        // The preface and an empty SETTINGS frame; a SETTINGS frame is the answer.
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("written");
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        assert_eq!(head[3], 4);
        server.shutdown.cancel();
        drop(stream);
        server.ended().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_no_whole_head_is_let_go() {
        let server = Server::start(Duration::from_secs(600)).await;
        for beginning in [&b""[..], b"PRI * HT", b"GET /fast HTTP/1.1\r\nhost:"] {
            let mut stream = TcpStream::connect(server.address).await.expect("accepted");
            stream.write_all(beginning).await.expect("written");
            // The clock is paused: it runs on to whichever limit comes first.
            let end = timeout(2 * NEXT_HEAD, read_to_end(&mut stream)).await;
            assert_eq!(end.as_deref(), Ok(""), "{beginning:?}");
        }
        server.shutdown.cancel();
        server.ended().await;
    }
}
