//! The accept loop: HTTP/1.1 and HTTP/2 with prior knowledge on one port, ended gracefully.
//!
//! `axum::serve` has no time limits and no deadline for its drain, hence this one.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::Response;
use http::{HeaderValue, Request, Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
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

/// How long an idle connection is still listened to, once no new one is accepted: a request that is on its way then is
/// answered, and takes the word with it that the connection closes. Longer than a way through a region and back.
const LAST_WORD: Duration = Duration::from_millis(100);

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
/// 2. New connections are refused, those that waited to be accepted are answered, and after a last word idle ones close.
/// 3. Requests under way end, till `drain.limit` is over.
pub async fn serve<S>(listener: TcpListener, service: S, drain: Drain, shutdown: CancellationToken) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    let (leaving, close) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let delayed = async {
        shutdown.cancelled().await;
        leaving.store(true, Ordering::Relaxed);
        sleep(drain.delay).await;
    };
    let mut delayed = pin!(delayed);
    // A token for each connection: a look at one takes its lock, and all connections would share it.
    let connection =
        |stream, peer| connection(stream, peer, service.clone(), Arc::clone(&leaving), close.child_token());
    loop {
        tokio::select! {
            biased;
            () = delayed.as_mut() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => drop(connections.spawn(connection(stream, peer))),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections; trying again");
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
    for _ in 0..BACKLOG {
        match waiting.accept() {
            Ok((stream, peer)) => {
                let made = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                made.map_or_else(drop, |stream| drop(connections.spawn(connection(stream, peer))));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => break,
        }
    }
    drop(waiting);
    let ended = async {
        let mut last_word = pin!(sleep(LAST_WORD));
        loop {
            tokio::select! {
                ended = connections.join_next() => if ended.is_none() { return },
                () = last_word.as_mut(), if !close.is_cancelled() => close.cancel(),
            }
        }
    };
    if timeout_at(deadline, ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            drain_seconds = drain.limit.as_secs_f64(),
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

/// Answers on one connection till its client goes, or it is told to close. Once the server is `leaving`, answers say so.
async fn connection<S>(
    stream: TcpStream,
    peer: SocketAddr,
    service: S,
    leaving: Arc<AtomicBool>,
    close: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    // Without it small answers wait for the client's acknowledgement. A socket that refuses works all the same.
    let _ = stream.set_nodelay(true);
    let begun = Arc::new(Notify::new());
    // One for this connection: to count its users is no business of the others.
    let shared = Arc::new((Arc::clone(&begun), leaving));
    let service = service_fn(move |request: Request<Incoming>| {
        shared.0.notify_one();
        // HTTP/2 has a message of its own for it, which loses no request.
        let says = request.version() < Version::HTTP_2;
        let (answer, shared) = (service.clone().oneshot(request), Arc::clone(&shared));
        async move {
            let mut answer = answer.await?;
            if says && shared.1.load(Ordering::Relaxed) {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });

    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));

    // The builder waits for the first bytes without a limit of its own.
    let first = tokio::select! {
        biased;
        result = served.as_mut() => Some(result),
        () = close.cancelled() => None,
        () = begun.notified() => None,
        () = sleep(FIRST_HEAD) => Some(Ok(())),
    };
    let result = match first {
        Some(result) => result,
        None => tokio::select! {
            // What has arrived is read first: the connection is not idle then.
            biased;
            result = served.as_mut() => result,
            () = close.cancelled() => {
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

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;
    use tokio::time::timeout;

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
        async fn start(limit: Duration) -> Self {
            Self::ending(Drain { delay: Duration::ZERO, limit }).await
        }

        async fn ending(drain: Drain) -> Self {
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
    async fn a_request_that_was_on_its_way_at_the_shutdown_is_answered() {
        let server = Server::start(Duration::from_secs(600)).await;
        let mut stream = server.send("/fast").await;
        read_until(&mut stream, "fast").await;
        server.shutdown.cancel();
        // It has seen that it is to end, and waits for the last word.
        sleep(LAST_WORD / 10).await;
        stream.write_all(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        let answer = read_to_end(&mut stream).await;
        assert!(answer.contains("connection: close") && answer.ends_with("fast"), "{answer}");
        server.ended().await;
    }

    #[tokio::test]
    async fn who_waits_to_be_accepted_at_the_shutdown_is_answered() {
        let router = Router::new().route("/fast", get(|| async { "fast" }));
        let listener = bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut streams = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(address).await.expect("the system takes it");
            stream.write_all(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
            streams.push(stream);
        }
        // Shut down before it has accepted anything.
        let (shutdown, limit) = (CancellationToken::new(), Duration::from_secs(600));
        shutdown.cancel();
        let served = tokio::spawn(serve(listener, router, Drain { delay: Duration::ZERO, limit }, shutdown));
        for mut stream in streams {
            let answer = read_to_end(&mut stream).await;
            assert!(answer.contains("connection: close") && answer.ends_with("fast"), "{answer}");
        }
        served.await.expect("no panic").expect("a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn during_the_delay_all_are_answered_and_told_to_leave() {
        let delay = Duration::from_secs(60);
        let server = Server::ending(Drain { delay, limit: Duration::from_secs(600) }).await;
        let mut old = server.send("/fast").await;
        let answer = read_until(&mut old, "fast").await;
        assert!(!answer.contains("connection: close"), "{answer}");
        let begun = Instant::now();
        server.shutdown.cancel();
        sleep(delay / 2).await;
        old.write_all(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        let mut new = server.send("/fast").await;
        for stream in [&mut old, &mut new] {
            let answer = read_to_end(stream).await;
            assert!(answer.contains("connection: close") && answer.ends_with("fast"), "{answer}");
        }
        let address = server.address;
        server.ended().await;
        assert_eq!(begun.elapsed().as_secs(), delay.as_secs());
        assert!(TcpStream::connect(address).await.is_err(), "nobody is accepted any more");
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
