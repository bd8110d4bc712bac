//! The id of a request and its trace: in the answer, and in the log of what failed.

use std::sync::{Mutex, PoisonError};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn traceparent() -> String {
    format!("00-{TRACE}-00f067aa0ba902b7-01")
}

/// What this thread logs, as JSON.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    fn start(filter: &str) -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(log.clone());
        let guard = tracing::subscriber::set_default(subscriber.with_env_filter(filter).finish());
        (log, guard)
    }

    fn lines(&self) -> Vec<Value> {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect()
    }
}

fn asked(path: &str, body: &'static str) -> Request<Body> {
    let request = Request::post(path).header("traceparent", traceparent()).header("x-request-id", "mine");
    request.body(Body::from(body)).expect("a request")
}

#[tokio::test]
async fn a_problem_names_the_trace_of_its_request_and_invents_none() {
    let server = iris();
    let body = server.send(asked("/predict/none", "{}")).await.json();
    assert_eq!((&body["trace_id"], &body["request_id"]), (&json!(TRACE), &json!("mine")));
    for other in ["", "00", &traceparent().to_uppercase(), &traceparent().replace(TRACE, &"0".repeat(32))] {
        let request = Request::get("/nowhere").header("traceparent", other).body(Body::empty()).expect("a request");
        assert_eq!(server.send(request).await.json().get("trace_id"), None, "{other}");
    }
    assert_eq!(server.get("/nowhere").await.json().get("trace_id"), None);
}

#[tokio::test]
async fn a_request_that_the_server_could_not_answer_is_one_line_with_its_ids() {
    let server = Server::new(vec![], vec![model("cheap", 3, Does::Sum, CHEAP)]);
    let (log, _guard) = Log::start("hotserve=info");
    server.send(asked("/predict/cheap", r#"{"instances":[[7,7]]}"#)).await.problem(500, "inference_failed");
    let v2 = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[7,7]}]}"#;
    assert_eq!(server.send(asked("/v2/models/cheap/infer", v2)).await.status, 500);
    // What is the client's mistake is not for the log.
    server.send(asked("/predict/cheap", r#"{"instances":[[1]]}"#)).await.problem(422, "bad_input");
    let lines = log.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for (line, route) in lines.iter().zip(["/predict/{model}", "/v2/models/{model}/infer"]) {
        assert_eq!((&line["level"], &line["message"]), (&json!("ERROR"), &json!("a request failed")));
        assert_eq!((&line["slot"], &line["version"]), (&json!("model cheap"), &json!("3")));
        assert_eq!((&line["request_id"], &line["trace_id"]), (&json!("mine"), &json!(TRACE)));
        assert_eq!(line["route"], route);
        assert!(line["error"].as_str().expect("what is wrong").contains("the secret of the model"), "{line}");
    }
}

#[tokio::test]
async fn requests_are_logged_where_somebody_wants_that() {
    let server = iris();
    let (log, guard) = Log::start("hotserve=info,hotserve::access=debug");
    server.send(asked("/predict/iris", r#"{"instances":[[1,2]]}"#)).await;
    let lines = log.lines();
    let [line] = &lines[..] else { panic!("one line, not {lines:?}") };
    assert_eq!((&line["method"], &line["route"]), (&json!("POST"), &json!("/predict/{model}")));
    assert_eq!((&line["status"], &line["version"]), (&json!(200), &json!("3")));
    assert_eq!((&line["request_id"], &line["trace_id"]), (&json!("mine"), &json!(TRACE)));
    assert!(line["duration_ms"].as_f64().expect("a number") > 0.0);
    drop(guard);
    let (log, _guard) = Log::start("hotserve=info");
    server.send(asked("/predict/iris", r#"{"instances":[[1,2]]}"#)).await;
    assert!(log.lines().is_empty(), "{:?}", log.lines());
}
