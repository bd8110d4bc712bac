//! Requests that wait for the same dear model.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

/// Adds one to each number. It counts how often it is asked, and fails with all rows if one of them is 13, 14 or 15 as
/// [`Does::Sum`] does.
struct Counting {
    inner: Box<dyn Model>,
    asked: Arc<AtomicUsize>,
}

impl Model for Counting {
    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.inner.infer(inputs)
    }

    fn memory_bytes(&self) -> usize {
        0
    }

    fn engine(&self) -> &'static str {
        "counting"
    }
}

/// A server with a dear model of which so many rows are answered together, whose one thread is busy until `release` is
/// dropped.
struct Busy {
    server: Arc<Server>,
    asked: Arc<AtomicUsize>,
    release: mpsc::Sender<()>,
}

impl Busy {
    async fn with(rows: usize) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let mut served = model("dear", 1, Does::Sum, DEAR).with_batches(rows);
        served.model = Box::new(Counting { inner: served.model, asked: Arc::clone(&asked) });
        let server = Arc::new(Server::with_queue(vec![], vec![served], 64, |_| {}));
        let (release, released) = mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        let job = move || {
            begin.send(()).expect("the test waits");
            assert!(released.recv().is_err(), "it is dropped");
        };
        server.http.compute.submit(job).expect("there is room");
        begun.await.expect("the thread is busy");
        Self { server, asked, release }
    }

    /// Sends these rows in a request each, lets the thread go once all of them wait, and answers with what they got.
    async fn ask(self, bodies: &[&str]) -> (Vec<Answer>, Arc<Server>, usize) {
        let ask = |body: &&str| {
            let (server, body) = (Arc::clone(&self.server), (*body).to_owned());
            tokio::spawn(async move { server.post("/predict", body).await })
        };
        let mut asked = Vec::new();
        for (at, body) in bodies.iter().enumerate() {
            asked.push(ask(body));
            // In their order: one waits before the next is sent.
            while self.server.metric("hotserve_predict_queue_depth") < (at + 1) as f64 {
                tokio::task::yield_now().await;
            }
        }
        drop(self.release);
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await.expect("no panic here"));
        }
        (answers, self.server, self.asked.load(Ordering::Relaxed))
    }
}

fn predictions(answers: &[Answer]) -> Vec<Value> {
    answers.iter().map(|answer| answer.json()["predictions"].clone()).collect()
}

const FOUR: [&str; 4] = [
    r#"{"instances":[[1,1]]}"#,
    r#"{"instances":[[2,2],[3,3]]}"#,
    r#"{"instances":[{"a":4,"b":4}]}"#,
    r#"{"instances":[[5,5]]}"#,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_dear_model_is_answered_together() {
    let (answers, server, asked) = Busy::with(32).await.ask(&FOUR).await;
    assert_eq!(predictions(&answers), [json!([2.0]), json!([4.0, 6.0]), json!([8.0]), json!([10.0])]);
    assert_eq!(asked, 1);
    assert_eq!(server.metric("hotserve_predict_batches_total"), 1.0);
    assert_eq!(server.metric("hotserve_predict_batched_total"), 4.0);
    assert_eq!(server.metric("hotserve_predict_rows_total"), 5.0);
    assert_eq!(server.metric("hotserve_predict_queue_depth"), 0.0);
    let counted = server.http.serving.snapshot().model("dear").expect("it is served").statistics.counted();
    assert_eq!((counted.success.count, counted.rows), (4, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_rows_are_put_together_than_are_worth_it() {
    let (answers, server, asked) = Busy::with(3).await.ask(&FOUR).await;
    assert_eq!(predictions(&answers), [json!([2.0]), json!([4.0, 6.0]), json!([8.0]), json!([10.0])]);
    assert_eq!(asked, 2);
    assert_eq!(server.metric("hotserve_predict_batched_total"), 4.0);
    let (answers, server, asked) = Busy::with(1).await.ask(&FOUR).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!((asked, server.metric("hotserve_predict_batches_total")), (4, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_spoils_the_answer_of_all_spoils_its_own() {
    for (bad, status, code) in
        [("[6,7]", 422, "bad_input"), ("[7,7]", 500, "inference_failed"), ("[7,8]", 500, "inference_failed")]
    {
        let bad = format!("{{\"instances\":[{bad}]}}");
        let (mut answers, server, asked) = Busy::with(32).await.ask(&[FOUR[0], &bad, FOUR[3]]).await;
        answers.remove(1).problem(status, code);
        assert_eq!(predictions(&answers), [json!([2.0]), json!([10.0])]);
        assert_eq!(asked, 4, "once together, and once each");
        assert_eq!(server.metric("hotserve_predict_batches_total"), 0.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_gone_is_not_answered_and_a_full_queue_refuses() {
    let busy = Busy::with(32).await;
    let (server, asked) = (Arc::clone(&busy.server), Arc::clone(&busy.asked));
    let waits = |depth: f64| {
        let server = Arc::clone(&server);
        async move {
            while server.metric("hotserve_predict_queue_depth") < depth {
                tokio::task::yield_now().await;
            }
        }
    };
    let send = |body: &'static str| {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.post("/predict", body).await })
    };
    let gone = send(FOUR[0]);
    waits(1.0).await;
    gone.abort();
    assert!(gone.await.is_err_and(|error| error.is_cancelled()));
    let mut others: Vec<_> = (1..64).map(|_| send(FOUR[3])).collect();
    waits(64.0).await;
    server.post("/predict", FOUR[0]).await.problem(503, "overloaded");
    let waiting = || server.http.serving.snapshot().model("dear").expect("it is served").batches.waiting();
    assert_eq!(waiting(), 64, "nothing is kept of who was refused");
    drop(busy.release);
    for answer in others.drain(..) {
        assert_eq!(answer.await.expect("no panic here").json()["predictions"], json!([10.0]));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "31 rows and who has gone, then 32");
    assert_eq!(server.metric("hotserve_predict_rows_total"), 63.0);
    assert_eq!(waiting(), 0);
}
