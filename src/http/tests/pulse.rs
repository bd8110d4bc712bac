//! The pulse: what a listener hears of how the server does.

use axum::body::BodyDataStream;
use futures_util::StreamExt as _;

use super::*;
use crate::metrics::{Asked, Ended};

struct Listener(BodyDataStream);

impl Listener {
    async fn start(server: &Server) -> Self {
        let request = Request::get("/events?pulse").body(Body::empty()).expect("a request");
        let response = server.router.clone().oneshot(request).await.expect("infallible");
        let mut listener = Self(response.into_body().into_data_stream());
        assert_eq!(listener.read().await.as_deref(), Some("retry: 2000\n\n"));
        listener
    }

    async fn read(&mut self) -> Option<String> {
        let piece = self.0.next().await?.expect("no error");
        Some(String::from_utf8(piece.to_vec()).expect("UTF-8"))
    }

    /// The next event, which has this name and no id: an id would be sent back as the last entry seen.
    async fn event(&mut self, name: &str) -> Value {
        let text = self.read().await.expect("it goes on");
        let data = text.strip_prefix(&format!("event: {name}\ndata: ")).unwrap_or_else(|| panic!("no {name}: {text}"));
        serde_json::from_str(data).expect("JSON")
    }
}

fn column<'a>(pulses: &'a Value, row: usize, name: &str) -> &'a Value {
    let columns = pulses["columns"].as_array().expect("columns");
    let place = columns.iter().position(|column| column == name).expect("the column");
    assert_eq!(pulses["rows"][row].as_array().expect("a row").len(), columns.len());
    &pulses["rows"][row][place]
}

#[tokio::test]
async fn who_comes_late_hears_of_the_seconds_before_and_then_of_each() {
    let server = iris();
    server.http.sample();
    for _ in 0..3 {
        assert_eq!(server.post("/predict/iris", r#"{"instances":[[1,2]]}"#).await.status, 200);
    }
    server.get("/state/none").await.problem(404, "state_not_found");
    // What nobody is there for does not count.
    server.get("/models").await;
    server.http.sample();

    let mut listener = Listener::start(&server).await;
    let facts = listener.event("server").await;
    assert_eq!(facts["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(facts["admin"], Value::Null);
    let pulses = listener.event("pulses").await;
    assert_eq!(pulses["rows"].as_array().map(Vec::len), Some(2));
    assert_eq!(column(&pulses, 0, "all.per_second"), 0.0);
    assert_eq!(column(&pulses, 0, "all.p99_ms"), &Value::Null);
    let of = |name: &str| column(&pulses, 1, name).as_f64().expect("a number");
    assert!(of("predictions.per_second") > 0.0 && of("predictions.p50_ms") > 0.0);
    assert!((of("predictions.per_second") / of("states.per_second") - 3.0).abs() < 0.5);
    assert!((of("all.refused_per_second") - of("states.per_second")).abs() < 1e-9);
    let pulse = listener.event("pulse").await;
    assert_eq!(pulse["minute"]["all"]["requests"], 4);
    assert_eq!(pulse["requests"]["all"]["per_second"], of("all.per_second"));

    server.http.metrics.traffic.record(Asked::State, Duration::from_millis(80), Ended::Failed);
    server.http.sample();
    let pulse = listener.event("pulse").await;
    assert!(pulse["requests"]["states"]["failed_per_second"].as_f64() > Some(0.0));
    let p99 = pulse["requests"]["states"]["p99_ms"].as_f64().expect("a time");
    assert!((75.0..85.0).contains(&p99), "{p99}");
}

#[tokio::test]
async fn the_pulse_says_what_the_stream_and_the_store_do() {
    let server = iris();
    server.http.status.stream_trouble(Trouble { code: "unavailable", message: "no answer".to_owned() });
    server.http.metrics.artifact_store.made();
    server.http.metrics.artifact_store.lost("unavailable", "S3 is away".to_owned());
    let mut listener = Listener::start(&server).await;
    listener.event("server").await;
    listener.event("pulses").await;
    let pulse = listener.event("pulse").await;
    assert_eq!(pulse["stream"]["trouble"]["message"], "no answer");
    assert_eq!(pulse["artifacts"]["trouble"], json!({ "code": "unavailable", "message": "S3 is away" }));
    assert!(pulse["artifacts"]["last_contact"].is_string());
    assert!(pulse["memory"]["resident"].as_u64() > Some(1 << 20), "{}", pulse["memory"]);
}

#[tokio::test]
async fn who_listens_to_the_pulse_hears_that_the_server_drains_before_the_end() {
    let server = iris();
    let mut listener = Listener::start(&server).await;
    for event in ["server", "pulses", "pulse"] {
        listener.event(event).await;
    }
    server.http.status.set_draining();
    assert_eq!(listener.event("pulse").await["draining"], true);
    assert_eq!(listener.read().await, None);
}

#[tokio::test]
async fn nothing_is_written_out_when_nobody_listens_and_the_seconds_kept_are_bounded() {
    let server = iris();
    for _ in 0..700 {
        server.http.sample();
    }
    let mut listener = Listener::start(&server).await;
    listener.event("server").await;
    let pulses = listener.event("pulses").await;
    assert_eq!(pulses["rows"].as_array().map(Vec::len), Some(600));
    // Bounded in bytes too, when every number is there.
    assert!(pulses.to_string().len() < 60_000, "{}", pulses.to_string().len());
}
