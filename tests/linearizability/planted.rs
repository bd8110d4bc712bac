//! Servers over the same snapshots that make the mistakes which the checks are there to find.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hotserve::id::StateKey;
use hotserve::serving::{Serving, Snapshot};
use tokio::net::TcpListener;

/// How an answer is made wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Two snapshots for one answer: the version of one, the content of the other.
    TwoLoads,
    /// Every other answer is made from a snapshot that is kept for a while.
    KeptSnapshot,
}

/// Runs such a server; it ends with the test's runtime.
pub async fn start(mistake: Mistake, serving: Arc<Serving>) -> std::net::SocketAddr {
    let loads = Arc::new(Loads { mistake, kept: Mutex::default(), serving });
    let (default, keyed, predict) = (Arc::clone(&loads), Arc::clone(&loads), loads);
    let router = Router::new()
        .route("/state", get(async move || state(&default.two().await, StateKey::DEFAULT)))
        .route("/state/{key}", get(async move |Path(key): Path<String>| state(&keyed.two().await, &key)))
        .route("/predict/pair", post(async move || prediction(&predict.two().await)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    addr
}

struct Loads {
    mistake: Mistake,
    serving: Arc<Serving>,
    /// The snapshot, and how many answers were given.
    kept: Mutex<(Option<Arc<Snapshot>>, u32)>,
}

impl Loads {
    /// The snapshots that one answer is made from.
    async fn two(&self) -> [Arc<Snapshot>; 2] {
        let first = match self.mistake {
            Mistake::TwoLoads => {
                let first = self.serving.snapshot();
                // As any wait between the two would.
                tokio::task::yield_now().await;
                return [first, self.serving.snapshot()];
            }
            Mistake::KeptSnapshot => {
                let mut kept = self.kept.lock().unwrap();
                let (snapshot, answers) = &mut *kept;
                *answers += 1;
                if answers.is_multiple_of(500) {
                    *snapshot = None;
                }
                let kept = snapshot.get_or_insert_with(|| self.serving.snapshot());
                if answers.is_multiple_of(2) { Arc::clone(kept) } else { self.serving.snapshot() }
            }
        };
        [Arc::clone(&first), first]
    }
}

fn state([first, second]: &[Arc<Snapshot>; 2], key: &str) -> Response {
    let version = first.state(key).unwrap().version.clone();
    ([("x-state-version", version)], second.state(key).unwrap().body.clone()).into_response()
}

fn prediction([first, second]: &[Arc<Snapshot>; 2]) -> Response {
    let model = second.model("pair").unwrap();
    let headers = [
        ("x-state-version", first.state(StateKey::DEFAULT).unwrap().version.clone()),
        ("x-model-version", model.headers.version.clone()),
        ("x-model-digest", model.headers.digest.clone()),
    ];
    let body = [format!("{{\"predictions\":[{}.0]", model.facts.rank).as_bytes(), &model.answer_tail].concat();
    (headers, body).into_response()
}
