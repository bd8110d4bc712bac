//! Events: what a listener hears, in which order, and what it is told that it missed.

use axum::body::BodyDataStream;
use futures_util::StreamExt as _;

use super::*;
use crate::http::events::CLIENTS;
use crate::status::KEPT;

/// A listener, by what it reads.
struct Listener(BodyDataStream);

impl Listener {
    async fn start(server: &Server, last_event_id: Option<&str>) -> Self {
        let mut request = Request::get("/events");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = server.router.clone().oneshot(request.body(Body::empty()).expect("a request")).await;
        let response = response.expect("infallible");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        let mut listener = Self(response.into_body().into_data_stream());
        assert_eq!(listener.read().await.as_deref(), Some("retry: 2000\n\n"));
        listener
    }

    /// The next piece; none at the end.
    async fn read(&mut self) -> Option<String> {
        let piece = self.0.next().await?.expect("no error");
        Some(String::from_utf8(piece.to_vec()).expect("UTF-8"))
    }

    /// Reads as far as the entry of this id, and answers everything as pairs of event and data.
    async fn read_to(&mut self, id: u64) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        loop {
            for block in self.read().await.expect("it goes on").split_terminator("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                let data: Value = serde_json::from_str(field("data").expect("data")).expect("JSON");
                assert_eq!(field("id").map(str::to_owned), data.get("id").map(Value::to_string));
                let last = data["id"] == id;
                events.push((field("event").expect("an event").to_owned(), data));
                if last {
                    return events;
                }
            }
        }
    }
}

fn note(server: &Server, outcome: &'static str) {
    let slot = (Slot::Model("iris".parse().expect("a name")), "3".to_owned());
    server.http.status.record(Entry::new(outcome, [slot]));
}

fn ids(events: &[(String, Value)]) -> Vec<u64> {
    events.iter().filter_map(|(_, data)| data["id"].as_u64()).collect()
}

#[tokio::test]
async fn a_listener_hears_what_happens_from_now_on() {
    let server = iris();
    note(&server, "applied");
    let mut listener = Listener::start(&server, None).await;
    note(&server, "rejected");
    note(&server, "rolled_back");
    let events = listener.read_to(3).await;
    assert_eq!(events.iter().map(|(event, _)| event.as_str()).collect::<Vec<_>>(), ["rejected", "rolled_back"]);
    let history = server.get("/history?limit=1").await.json();
    assert_eq!(events[1].1, history["entries"][0]);
    // Asleep by now: it is woken.
    let woken = tokio::spawn(async move { listener.read_to(4).await });
    tokio::task::yield_now().await;
    note(&server, "pinned");
    assert_eq!(woken.await.expect("no panic")[0].0, "pinned");
}

#[tokio::test]
async fn who_comes_back_hears_what_it_missed() {
    let server = iris();
    (0..5).for_each(|_| note(&server, "applied"));
    for (last, expected) in [("2", vec![3, 4, 5]), ("0", vec![1, 2, 3, 4, 5]), ("4", vec![5])] {
        let mut listener = Listener::start(&server, Some(last)).await;
        assert_eq!(ids(&listener.read_to(5).await), expected, "{last}");
    }
    for bad in ["-1", "x", "1.5", "ü"] {
        let request = Request::get("/events").header("last-event-id", bad.as_bytes()).body(Body::empty());
        server.send(request.expect("a request")).await.problem(400, "bad_last_event_id");
    }
}

#[tokio::test]
async fn what_is_gone_from_the_history_is_a_gap() {
    let server = iris();
    (0..KEPT + 10).for_each(|_| note(&server, "applied"));
    let last = KEPT as u64 + 10;
    let mut listener = Listener::start(&server, Some("3")).await;
    let events = listener.read_to(last).await;
    assert_eq!(events[0], ("gap".to_owned(), json!({"after": 3})));
    assert_eq!(ids(&events), (11..=last).collect::<Vec<_>>());

    // A client that does not read misses as much, and is told when it reads again.
    (0..KEPT + 5).for_each(|_| note(&server, "applied"));
    let events = listener.read_to(2 * KEPT as u64 + 15).await;
    assert_eq!(events[0], ("gap".to_owned(), json!({"after": last})));
    assert_eq!(ids(&events).len(), KEPT);

    // One from before a restart without a cache folder.
    let server = iris();
    note(&server, "applied");
    let mut listener = Listener::start(&server, Some("700")).await;
    assert_eq!(listener.read().await.as_deref(), Some("event: gap\ndata: {\"after\":700}\n\n"));
    assert_eq!(ids(&listener.read_to(1).await), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_nothing_happens_for_hears_a_heartbeat() {
    let server = iris();
    let mut listener = Listener::start(&server, None).await;
    for _ in 0..2 {
        let begun = tokio::time::Instant::now();
        assert_eq!(listener.read().await.as_deref(), Some(":\n\n"));
        assert_eq!(begun.elapsed().as_secs(), 15, "by a clock that only this test moves");
    }
}

#[tokio::test]
async fn listeners_are_bounded_and_a_place_comes_free_again() {
    let server = iris();
    let mut listeners = Vec::new();
    for _ in 0..CLIENTS {
        listeners.push(Listener::start(&server, None).await);
    }
    let answer = server.get("/events").await;
    answer.problem(503, "too_many_listeners");
    assert_eq!(answer.header("retry-after"), "1");
    listeners.pop();
    Listener::start(&server, None).await;
    assert_eq!(server.metric("hotserve_http_requests_in_flight"), 0.0, "a listener is no request under way");
}

#[tokio::test]
async fn a_listener_is_let_go_when_the_server_drains() {
    let server = iris();
    let mut listener = Listener::start(&server, None).await;
    note(&server, "applied");
    server.http.status.set_draining();
    assert_eq!(ids(&listener.read_to(1).await), [1], "what was noted before is still sent");
    assert_eq!(listener.read().await, None);
}
