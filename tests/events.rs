//! What clients hear of swaps, and how they wait for one.

use std::net::SocketAddr;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Cloud, Server, constant_model, until};

/// A client of `/events`, down to the bytes.
struct Listener {
    stream: TcpStream,
    text: String,
}

impl Listener {
    async fn to(addr: SocketAddr, last_event_id: Option<u64>) -> Self {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let resume = last_event_id.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let request = format!("GET /events HTTP/1.1\r\nhost: x\r\n{resume}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut listener = Self { stream, text: String::new() };
        listener.until("retry: 2000\n\n").await;
        assert!(listener.text.starts_with("HTTP/1.1 200 OK\r\n"), "{}", listener.text);
        listener
    }

    /// Reads until something was said.
    async fn until(&mut self, said: &str) {
        until(said, async || {
            if self.text.contains(said) {
                return Some(());
            }
            let mut more = [0; 4096];
            let read = self.stream.read(&mut more).await.unwrap();
            assert_ne!(read, 0, "it ended before it said {said:?}: {}", self.text);
            self.text.push_str(std::str::from_utf8(&more[..read]).unwrap());
            self.text.contains(said).then_some(())
        })
        .await;
    }

    async fn end(mut self) -> String {
        self.stream.read_to_string(&mut self.text).await.unwrap();
        self.text
    }

    fn entries(text: &str) -> Vec<Value> {
        text.lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_heard_and_a_restart_loses_none_of_it() {
    let cloud = Cloud::start(1).await;
    let cache_dir = cloud.path("cache");
    let with_cache = |settings: &mut hotserve::config::Settings| settings.cache_dir = Some(cache_dir.clone());
    let server = cloud.server_with(with_cache).await.ready().await;
    let mut listener = Listener::to(server.addr, None).await;
    cloud.put(r#"{"key":"pricing","version":7,"state":1}"#).await;
    listener.until("event: applied\n").await;
    cloud.put("rubbish").await;
    listener.until("event: rejected\n").await;
    let before = server.client.get("/history").await.json();
    // It holds nothing up, and ends as an answer does: with the empty chunk.
    server.stop().await;
    let text = listener.end().await;
    assert!(text.ends_with("\r\n0\r\n\r\n"), "{text}");
    let heard = Listener::entries(&text);
    assert_eq!(json!([heard[1], heard[0]]), before["entries"]);
    assert_eq!((&heard[0]["slots"][0], &heard[1]["reason"]), (&json!("state pricing"), &json!("not_json")));

    let server = cloud.server_with(with_cache).await.ready().await;
    let mut listener = Listener::to(server.addr, Some(1)).await;
    cloud.put(r#"{"key":"pricing","version":8,"state":2}"#).await;
    listener.until(r#""versions":["8"]"#).await;
    listener.until("\n\n\r\n").await;
    let heard = Listener::entries(&listener.text);
    assert_eq!(heard[0], before["entries"][0], "from before the restart");
    let ids: Vec<_> = heard.iter().map(|entry| entry["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (2..2 + ids.len() as u64).collect::<Vec<_>>());
    let history = server.client.get("/history").await.json();
    let (kept, all) = (before["entries"].as_array().unwrap(), history["entries"].as_array().unwrap());
    assert!(all.ends_with(kept), "{history}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_cache_folder_the_history_begins_anew() {
    let cloud = Cloud::start(1).await;
    let server = cloud.server().await.ready().await;
    cloud.put(r#"{"version":7,"state":1}"#).await;
    server.until_state(1).await;
    server.stop().await;
    let server = cloud.server().await.ready().await;
    let mut listener = Listener::to(server.addr, Some(700)).await;
    listener.until("event: gap\ndata: {\"after\":700}\n\n").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_publishes_reads_what_it_published() {
    let (server, feeder) = Server::fed().await;
    let server = server.ready().await;
    let ask = |path: &'static str, version: u64, body: Option<&'static str>| {
        let client = server.client.clone();
        tokio::spawn(async move {
            let headers = [("x-min-version", &*version.to_string()), ("x-min-version-wait", "30s")];
            client.ask(path, &headers, body).await
        })
    };
    let predict = || Some(r#"{"instances":[[0]]}"#);
    for version in 1..=50 {
        // Asked before it is published; nothing of that name is served at first.
        let state = ask("/state/pricing", version, None);
        let model = ask("/predict/m", version, predict());
        let inline = {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(constant_model(version))
        };
        let message = json!({
            "key": "pricing", "version": version, "state": version,
            "model": {"name": "m", "version": version, "format": "linear", "inline": inline},
        });
        feeder.put(message.to_string()).await;
        let (state, model) = (state.await.unwrap(), model.await.unwrap());
        assert_eq!((state.status, state.text()), (StatusCode::OK, format!("{{\"state\":{version}}}")));
        assert_eq!((model.status, model.header("x-model-version")), (StatusCode::OK, &*version.to_string()));
    }
    let late =
        server.client.ask("/state/pricing", &[("x-min-version", "51"), ("x-min-version-wait", "0s")], None).await;
    assert_eq!((late.status, late.json()["served"].clone()), (StatusCode::PRECONDITION_FAILED, json!(50)));
    server.stop().await;
}
