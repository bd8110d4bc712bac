//! One port over real sockets: limits, deadlines, and the end.

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

use super::*;
use crate::metrics::Scraped;

/// A server with a route that answers when it is told to.
struct Server {
    address: SocketAddr,
    begun: mpsc::Receiver<()>,
    finish: Arc<Notify>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<io::Result<()>>,
    metrics: Arc<Metrics>,
}

const HEAD: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(75);

impl Server {
    async fn start(drain: Duration) -> Self {
        Self::with(drain, |_| {}).await
    }

    async fn with(limit: Duration, change: impl FnOnce(&mut Door)) -> Self {
        Self::ending(Drain { delay: Duration::ZERO, limit }, change).await
    }

    async fn ending(drain: Drain, change: impl FnOnce(&mut Door)) -> Self {
        let metrics = Metrics::new();
        let (head_timeout, idle_timeout) = (HEAD, IDLE);
        let mut door = Door { connections: 1000, head_timeout, idle_timeout, tls: None, metrics: Arc::clone(&metrics) };
        change(&mut door);
        let (begin, begun) = mpsc::channel(1);
        let finish = Arc::new(Notify::new());
        let wait = Arc::clone(&finish);
        let slow = move || async move {
            begin.send(()).await.expect("the test listens");
            wait.notified().await;
            "slow"
        };
        let large = || async { Body::from(vec![b'x'; 64 << 20]) };
        let router = Router::new()
            .route("/fast", get(|| async { "fast" }).post(|body: Bytes| async move { body.len().to_string() }))
            .route("/large", get(large))
            .route("/slow", get(slow));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = CancellationToken::new();
        let served = tokio::spawn(serve(listener, router, door, drain, shutdown.clone()));
        Self { address, begun, finish, shutdown, served, metrics }
    }

    async fn send(&self, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("accepted");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("written");
        stream
    }

    /// How many connections ended so.
    fn count(&self, how: &str) -> f64 {
        self.metric(&format!("hotserve_connections_ended_total{{how=\"{how}\"}}"))
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.render(&Scraped::default());
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.expect("a series").parse().expect("a number")
    }

    async fn until(&self, series: &str, value: f64) {
        for _ in 0..500 {
            if self.metric(series) == value {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{series} is {}, not {value}", self.metric(series));
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
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
    let burst = most.unwrap_or(128).min(400);
    let mut streams = Vec::new();
    // Nobody accepts. What does not fit is tried again after a second, and again after two more.
    for number in 0..burst {
        let connected = timeout(Duration::from_secs(20), TcpStream::connect(address)).await;
        streams.push(connected.unwrap_or_else(|_| panic!("connection {number} of {burst} waits")).expect("accepted"));
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

/// Sends the pieces one after the other, each after a pause, and answers how long it took until the server closed, and
/// what it had said.
async fn dribble(address: SocketAddr, pieces: &[&[u8]], pause: Duration) -> (Duration, String) {
    let mut stream = TcpStream::connect(address).await.expect("accepted");
    let (mut text, begun) = (Vec::new(), Instant::now());
    for piece in pieces.iter().chain(std::iter::repeat(&&b""[..])) {
        if !piece.is_empty() && stream.write_all(piece).await.is_err() {
            break;
        }
        // The clock is paused: it runs on to whichever comes first.
        match timeout(pause, stream.read_buf(&mut text)).await {
            Ok(Ok(0) | Err(_)) => break,
            _ => assert!(begun.elapsed() < 10 * IDLE, "not closed"),
        }
    }
    (begun.elapsed(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(start_paused = true)]
async fn a_head_has_a_deadline_as_a_whole_however_steadily_it_comes() {
    let server = Server::start(Duration::from_secs(600)).await;
    let pause = Duration::from_secs(3);
    let head: [&[u8]; 6] = [b"GET /fast HTTP/1.1\r\n", b"host:", b" x", b"\r\na: b", b"c", b"d"];
    let (took, said) = dribble(server.address, &head, pause).await;
    assert!((HEAD..HEAD + pause).contains(&took) && said.is_empty(), "{took:?} {said}");
    assert_eq!(server.count("head_timeout"), 1.0);
    // After an answer it is the same.
    let whole: &[u8] = b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n";
    let (took, said) = dribble(server.address, &[&[whole][..], &head].concat(), pause).await;
    assert!((HEAD..HEAD + pause).contains(&took) && said.ends_with("fast"), "{took:?} {said}");
    assert_eq!(server.count("head_timeout"), 2.0);
    // A body has the deadline of its handler, and the connection is kept.
    let post: &[u8] = b"POST /fast HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n";
    let body: &[u8] = b"x";
    let (took, said) = dribble(server.address, &[&[post][..], &[body; 6]].concat(), Duration::from_secs(9)).await;
    assert!(
        took >= Duration::from_secs(6 * 9) + IDLE - Duration::from_secs(9) && said.ends_with('6'),
        "{took:?} {said}"
    );
    assert_eq!((server.count("head_timeout"), server.count("idle")), (2.0, 1.0));
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test(start_paused = true)]
async fn who_sends_no_whole_head_is_let_go() {
    let server = Server::start(Duration::from_secs(600)).await;
    for (beginning, limit) in [
        (&b""[..], Duration::from_secs(30)),
        (b"P", HEAD),
        (b"PRI * HT", IDLE),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 2 * IDLE),
        (b"GET /fast HTTP/1.1\r\nhost:", HEAD),
    ] {
        let (took, said) = dribble(server.address, &[beginning], IDLE * 5).await;
        assert!(took <= limit + Duration::from_secs(1), "{beginning:?} {took:?} {said}");
    }
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_for_its_time_and_each_request_gives_it_more() {
    let server = Server::start(Duration::from_secs(600)).await;
    let mut stream = server.send("/fast").await;
    read_until(&mut stream, "fast").await;
    for _ in 0..3 {
        sleep(IDLE - Duration::from_secs(1)).await;
        stream.write_all(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        read_until(&mut stream, "fast").await;
    }
    let answered = Instant::now();
    assert_eq!(read_to_end(&mut stream).await, "");
    assert!((IDLE..IDLE + Duration::from_secs(1)).contains(&answered.elapsed()), "{:?}", answered.elapsed());
    assert_eq!(server.count("idle"), 1.0);
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_is_let_go_and_who_takes_it_slowly_is_not() {
    let mut server = Server::start(Duration::from_secs(600)).await;
    let mut slow = server.send("/large").await;
    let mut piece = vec![0; 8 << 20];
    let mut left = 64 << 20;
    while left > 0 {
        sleep(Duration::from_secs(20)).await;
        let mut read = 0;
        while read < piece.len() {
            let more = slow.read(&mut piece[read..]).await.expect("read");
            assert_ne!(more, 0, "closed early");
            read += more;
        }
        left -= read;
    }
    assert_eq!(server.count("stalled"), 0.0);
    drop(slow);
    let stuck = server.send("/large").await;
    server.until("hotserve_connections", 1.0).await;
    sleep(Duration::from_secs(40)).await;
    server.until("hotserve_connections_ended_total{how=\"stalled\"}", 1.0).await;
    drop(stuck);
    // A request that takes its time is no stall.
    let mut patient = server.send("/slow").await;
    server.begun.recv().await.expect("under way");
    sleep(3 * IDLE).await;
    server.finish.notify_one();
    read_until(&mut patient, "slow").await;
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test]
async fn what_hyper_refuses_before_any_route_is_counted() {
    let server = Server::start(Duration::from_secs(600)).await;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(101));
    let large = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(70 << 10));
    for (request, status, how, times) in [
        ("nonsense\r\n\r\n", "400", "malformed", 1.0),
        (many.as_str(), "431", "head_too_large", 1.0),
        (large.as_str(), "431", "head_too_large", 2.0),
    ] {
        let mut stream = TcpStream::connect(server.address).await.expect("accepted");
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(format!("HTTP/1.1 {status}").as_bytes()), "{}", String::from_utf8_lossy(&answer));
        server.until(&format!("hotserve_connections_ended_total{{how=\"{how}\"}}"), times).await;
    }
    server.until("hotserve_connections", 0.0).await;
    assert_eq!(server.metric("hotserve_connections_opened_total"), 3.0);
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test]
async fn at_the_limit_the_longest_idle_connection_makes_room_and_no_request_is_lost() {
    let mut server = Server::with(Duration::from_secs(600), |door| door.connections = 3).await;
    let mut slow = server.send("/slow").await;
    server.begun.recv().await.expect("under way");
    let mut oldest = server.send("/fast").await;
    read_until(&mut oldest, "fast").await;
    sleep(Duration::from_millis(20)).await;
    let mut younger = server.send("/fast").await;
    read_until(&mut younger, "fast").await;
    let mut newcomer = server.send("/fast").await;
    read_until(&mut newcomer, "fast").await;
    assert_eq!(read_to_end(&mut oldest).await, "");
    server.until("hotserve_connections_ended_total{how=\"evicted\"}", 1.0).await;
    younger.write_all(b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    read_until(&mut younger, "fast").await;
    server.finish.notify_one();
    read_until(&mut slow, "slow").await;
    assert_eq!(server.metric("hotserve_connections_refused_total"), 0.0);
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test]
async fn who_dawdles_over_a_head_makes_room_too_and_does_not_hold_up_the_end() {
    let server = Server::with(Duration::from_secs(600), |door| door.connections = 2).await;
    let mut dawdlers = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.expect("accepted");
        stream.write_all(b"GET /fast HTTP/1.1\r\nhost:").await.expect("written");
        dawdlers.push(stream);
    }
    server.until("hotserve_connections", 2.0).await;
    let mut newcomer = server.send("/fast").await;
    read_until(&mut newcomer, "fast").await;
    // Long before the head's time is over.
    server.until("hotserve_connections_ended_total{how=\"evicted\"}", 1.0).await;
    server.shutdown.cancel();
    timeout(HEAD / 2, server.ended()).await.expect("nobody is waited for");
}

#[tokio::test]
async fn when_all_connections_are_busy_who_comes_is_told_so() {
    let mut server = Server::with(Duration::from_secs(600), |door| door.connections = 1).await;
    let mut slow = server.send("/slow").await;
    server.begun.recv().await.expect("under way");
    let mut newcomer = TcpStream::connect(server.address).await.expect("accepted");
    let answer = read_to_end(&mut newcomer).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{} {answer}", body.len());
    let problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(problem["code"], "overloaded");
    assert_eq!(server.metric("hotserve_connections_refused_total"), 1.0);
    server.finish.notify_one();
    read_until(&mut slow, "slow").await;
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test]
async fn a_request_that_came_before_the_shutdown_was_seen_is_answered() {
    let mut server = Server::start(Duration::from_secs(600)).await;
    let mut idle = server.send("/fast").await;
    read_until(&mut idle, "fast").await;
    let mut slow = server.send("/slow").await;
    server.begun.recv().await.expect("under way");
    // Nothing of the server runs between these two.
    let request: &[u8] = b"GET /fast HTTP/1.1\r\nhost: x\r\n\r\n";
    assert_eq!(idle.try_write(request).expect("written"), request.len());
    server.shutdown.cancel();
    let answer = read_to_end(&mut idle).await;
    assert!(answer.ends_with("fast") && answer.contains("connection: close"), "{answer}");
    server.finish.notify_one();
    assert!(read_to_end(&mut slow).await.ends_with("slow"));
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
    let (shutdown, limit, metrics) = (CancellationToken::new(), Duration::from_secs(600), Metrics::new());
    shutdown.cancel();
    let door = Door { connections: 1000, head_timeout: HEAD, idle_timeout: IDLE, tls: None, metrics };
    let served = tokio::spawn(serve(listener, router, door, Drain { delay: Duration::ZERO, limit }, shutdown));
    for mut stream in streams {
        let answer = read_to_end(&mut stream).await;
        assert!(answer.contains("connection: close") && answer.ends_with("fast"), "{answer}");
    }
    served.await.expect("no panic").expect("a clean end");
}

#[tokio::test(start_paused = true)]
async fn during_the_delay_all_are_answered_and_told_to_leave() {
    let delay = Duration::from_secs(60);
    let server = Server::ending(Drain { delay, limit: Duration::from_secs(600) }, |_| {}).await;
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

/// A client over HTTP/2 that does what a test says, frame by frame.
struct Http2(TcpStream);

impl Http2 {
    /// Begins with a window of so many bytes for each answer.
    async fn connect(server: &Server, window: u32) -> Self {
        let mut stream = TcpStream::connect(server.address).await.expect("accepted");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
        let mut client = Self(stream);
        client.send(4, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat()).await.expect("written");
        client
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.0.write_all(&frame).await
    }

    async fn get(&mut self, stream: u32, path: &str) {
        // GET, http, the path, and an authority, none of them kept for later.
        let length = u8::try_from(path.len()).expect("short");
        let head = [&[0x82, 0x86, 0x04, length], path.as_bytes(), b"\x01\x01x"].concat();
        self.send(1, 0x5, stream, &head).await.expect("written");
    }

    /// The next frame: its kind, its flags and what it holds. None at the end.
    async fn next(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_no_room_for_an_answer_over_http2_is_let_go_however_lively_it_is() {
    let server = Server::start(Duration::from_secs(600)).await;
    let mut client = Http2::connect(&server, 0).await;
    client.get(1, "/fast").await;
    let begun = Instant::now();
    let mut stream = 3;
    while begun.elapsed() < 3 * IDLE {
        match timeout(Duration::from_secs(7), client.next()).await {
            Ok(None) => break,
            // It answers pings, and asks for more.
            Ok(Some((6, 0, payload))) => drop(client.send(6, 1, 0, &payload).await),
            Ok(Some(_)) => {}
            Err(_) => {
                client.get(stream, "/fast").await;
                stream += 2;
            }
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(61), "{:?}", begun.elapsed());
    server.until("hotserve_connections_ended_total{how=\"stalled\"}", 1.0).await;
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test(start_paused = true)]
async fn who_takes_an_answer_over_http2_piece_by_piece_is_not_let_go() {
    let server = Server::start(Duration::from_secs(600)).await;
    let mut client = Http2::connect(&server, 0).await;
    let mut stream = 1;
    let begun = Instant::now();
    client.get(stream, "/fast").await;
    while begun.elapsed() < 2 * IDLE {
        match timeout(Duration::from_secs(20), client.next()).await {
            Ok(frame) => match frame.expect("it is kept") {
                (6, 0, payload) => client.send(6, 1, 0, &payload).await.expect("written"),
                (0, _, _) => {
                    stream += 2;
                    client.get(stream, "/fast").await;
                }
                _ => {}
            },
            // Room for a whole answer.
            Err(_) => client.send(8, 0, stream, &4_u32.to_be_bytes()).await.expect("written"),
        }
    }
    assert!(stream > 9, "answers came: {stream}");
    server.shutdown.cancel();
    server.ended().await;
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_over_http2_does_not_hold_up_the_end_and_gets_its_answer() {
    let mut server = Server::start(Duration::from_secs(600)).await;
    let mut silent = Http2::connect(&server, 65535).await;
    assert_eq!(silent.next().await.expect("a frame").0, 4);
    let mut asking = Http2::connect(&server, 65535).await;
    asking.get(1, "/slow").await;
    server.begun.recv().await.expect("under way");
    let begun = Instant::now();
    server.shutdown.cancel();
    while silent.next().await.is_some() {}
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    sleep(Duration::from_secs(20)).await;
    server.finish.notify_one();
    let mut answer = Vec::new();
    while let Some((kind, _, payload)) = asking.next().await {
        if kind == 0 {
            answer.extend(payload);
        }
    }
    assert_eq!(answer, b"slow");
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    server.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_look_that_found_nobody_to_spare_is_believed_for_a_moment() {
    let mut crowd = Crowd::default();
    let activity = Arc::new(Activity::now());
    let underway = activity.begin();
    crowd.add(tokio::spawn(async {}).id(), activity, CancellationToken::new());
    assert!(!crowd.evict());
    drop(underway);
    assert!(!crowd.evict());
    sleep(Duration::from_millis(11)).await;
    assert!(crowd.evict());
}
