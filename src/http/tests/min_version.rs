//! `x-min-version`: the answer is new enough, or says that it is not.

use tokio::time::Instant;

use super::*;
use crate::http::min_version::WAITERS;

const BODY: &str = r#"{"instances":[[1,2]]}"#;

fn served(version: u64) -> Server {
    let models = vec![model("iris", version, Does::Sum, CHEAP)];
    Server::with(states(version), models, |config| config.default_model = Some("iris".parse().expect("a name")))
}

fn served_by(version: u64) -> Snapshot {
    Snapshot::default().with(states(version), vec![model("iris", version, Does::Sum, CHEAP)])
}

fn states(version: u64) -> Vec<ServedState> {
    vec![state("default", version, "1"), state("pricing", version, "1")]
}

/// The three ways to ask, each with the header of its answer.
fn requests(headers: &[(&str, &str)]) -> Vec<(Request<Body>, &'static str)> {
    let with = |request: http::request::Builder, body: &str| {
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(Body::from(body.to_owned())).expect("a request")
    };
    vec![
        (with(Request::get("/state"), ""), "x-state-version"),
        (with(Request::get("/state/pricing"), ""), "x-state-version"),
        (with(Request::post("/predict"), BODY), "x-model-version"),
        (with(Request::post("/predict/iris"), BODY), "x-model-version"),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_is_new_enough_is_answered_at_once() {
    let server = served(7);
    let begun = Instant::now();
    for least in ["1", "7"] {
        for (request, header) in requests(&[("x-min-version", least)]) {
            let answer = server.send(request).await;
            assert_eq!((answer.status, answer.header(header)), (200, "7"));
        }
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "the clock stands still while nobody waits");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_come_in_time_is_told_with_what_is_served() {
    let server = served(7);
    // What the request says, else the setting, and never longer than a request may take.
    for (wait, seconds) in [(None, 10), (Some("2s"), 2), (Some("0s"), 0), (Some("100000000000d"), 60)] {
        let mut headers = vec![("x-min-version", "8")];
        headers.extend(wait.map(|wait| ("x-min-version-wait", wait)));
        for (request, _) in requests(&headers) {
            let begun = Instant::now();
            let answer = server.send(request).await;
            let detail = answer.problem(412, "version_not_served");
            assert!(detail.ends_with("is served in version 7, and version 8 was asked for"), "{detail}");
            assert_eq!(answer.json()["served"], 7);
            assert_eq!(begun.elapsed().as_secs(), seconds, "{wait:?}, by a clock that only this test moves");
        }
    }
    assert_eq!(server.metric("hotserve_predict_errors_total{code=\"no_model\"}"), 8.0);
    assert_eq!(server.metric("hotserve_http_requests_total{route=\"/state\",status=\"412\"}"), 4.0);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_swap_that_brings_its_version() {
    let server = served(7);
    for (number, (request, header)) in requests(&[("x-min-version", "9")]).into_iter().enumerate() {
        let begun = Instant::now();
        let router = server.router.clone();
        let asked = tokio::spawn(async move { send(&router, request).await });
        // Other slots, and a version that is not enough, change nothing.
        for (name, version) in [("other", 9), ("iris", 8)] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let next = server.swapper.snapshot().with(states(8), vec![model(name, version, Does::Sum, CHEAP)]);
            server.swapper.swap(next);
            tokio::task::yield_now().await;
            assert!(!asked.is_finished(), "{number}");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.swapper.swap(served_by(9));
        let answer = asked.await.expect("no panic");
        assert_eq!((answer.status, answer.header(header)), (200, "9"), "{}", answer.text());
        assert_eq!(begun.elapsed().as_secs(), 3, "no later than the swap, by a clock that only this test moves");
        server.swapper.swap(served_by(7));
    }
    assert_eq!(server.http.waiters.available_permits(), WAITERS);
}

#[tokio::test(start_paused = true)]
async fn a_slot_without_a_version_is_told_apart_and_a_missing_one_is_not_found() {
    let rank = Rank::Stream(crate::id::Position {
        era: 0,
        arrival_ms: 0,
        shard: "s-0".parse().expect("a shard"),
        sequence: "4963".parse().expect("digits"),
        subsequence: 0,
    });
    let raw = serde_json::value::RawValue::from_string("1".to_owned()).expect("JSON");
    let initial = ServedState::new("default".parse().expect("a key"), Rank::Initial, &raw, None);
    let unversioned = ServedState::new("pricing".parse().expect("a key"), rank, &raw, None);
    let server = Server::new(vec![initial, unversioned], vec![]);
    let ask = async |path: &str| {
        let request = Request::get(path).header("x-min-version", "1").body(Body::empty());
        server.send(request.expect("a request")).await
    };
    for (path, served) in [("/state", "0"), ("/state/pricing", "4963")] {
        let answer = ask(path).await;
        let detail = answer.problem(412, "version_not_served");
        assert!(detail.ends_with("is served without a version, and version 1 was asked for"), "{detail}");
        assert_eq!(answer.json()["served"], served);
    }
    ask("/state/nope").await.problem(404, "state_not_found");
}

#[tokio::test(start_paused = true)]
async fn a_header_that_says_nothing_is_refused_at_once() {
    let server = served(7);
    let begun = Instant::now();
    for headers in [
        &[("x-min-version", "0")][..],
        &[("x-min-version", "-1")],
        &[("x-min-version", "")],
        &[("x-min-version", "7, 7")],
        &[("x-min-version", "9007199254740992")],
        &[("x-min-version", "\u{fc}")],
        &[("x-min-version", "7"), ("x-min-version", "7")],
        &[("x-min-version", "7"), ("x-min-version-wait", "1")],
        &[("x-min-version", "7"), ("x-min-version-wait", "long")],
    ] {
        for (request, _) in requests(headers) {
            let detail = server.send(request).await.problem(400, "bad_min_version");
            assert!(detail.starts_with("x-min-version"), "{detail}");
        }
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_bounded() {
    let server = served(7);
    let all = server.http.waiters.try_acquire_many(WAITERS as u32).expect("nobody waits");
    for (request, _) in requests(&[("x-min-version", "8")]) {
        let answer = server.send(request).await;
        answer.problem(503, "overloaded");
        assert_eq!(answer.header("retry-after"), "1");
    }
    for (request, _) in requests(&[("x-min-version", "7")]) {
        assert_eq!(server.send(request).await.status, 200, "who need not wait needs no place");
    }
    drop(all);
    let (request, _) = requests(&[("x-min-version", "8")]).swap_remove(0);
    server.send(request).await.problem(412, "version_not_served");
    assert_eq!(server.http.waiters.available_permits(), WAITERS);
}

#[tokio::test(start_paused = true)]
async fn the_open_inference_protocol_obeys_it_too() {
    let server = served(7);
    let body = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#;
    for path in ["/v2/models/iris/infer", "/v2/models/iris/versions/7/infer"] {
        let ask = async |least: &str| {
            let request = Request::post(path).header("x-min-version", least).header("x-min-version-wait", "2s");
            server.send(request.body(Body::from(body)).expect("a request")).await
        };
        let begun = Instant::now();
        let answer = ask("7").await;
        assert_eq!((answer.status, answer.header("x-model-version")), (200, "7"), "{}", answer.text());
        let answer = ask("0").await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let answer = ask("8").await;
        assert_eq!((answer.status, begun.elapsed().as_secs()), (412, 2));
        assert!(answer.json()["error"].as_str().is_some_and(|told| told.contains("version 8 was asked for")));
    }
    assert_eq!(server.metric("hotserve_predict_errors_total{code=\"no_model\"}"), 2.0);
}
