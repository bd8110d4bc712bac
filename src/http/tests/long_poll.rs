//! `GET /state?wait=…`: who has the newest state already hears of the next one.

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::http::state::POLLERS;

fn server() -> Server {
    Server::new(vec![state("default", 1, "1"), state("pricing", 1, "1")], vec![])
}

fn states(default: &str, pricing: &str) -> Snapshot {
    Snapshot::default().with(vec![state("default", 2, default), state("pricing", 2, pricing)], vec![])
}

/// Asks in another task, and has let it come as far as it can.
async fn asked(server: &Server, path: &str, tag: &str) -> JoinHandle<Answer> {
    let router = server.router.clone();
    let request = Request::get(path).header("if-none-match", tag).body(Body::empty()).expect("a request");
    let task = tokio::spawn(async move { send(&router, request).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    task
}

async fn tag(server: &Server, path: &str) -> String {
    server.get(path).await.header("etag").to_owned()
}

#[tokio::test(start_paused = true)]
async fn who_has_another_state_or_none_is_answered_at_once() {
    let server = server();
    let begun = Instant::now();
    for path in ["/state?wait=30s", "/state/pricing?wait=30s"] {
        assert_eq!(server.get(path).await.status, 200);
        assert_eq!(server.get_if(path, "\"other\"").await.status, 200);
    }
    server.get_if("/state/nope?wait=30s", "*").await.problem(404, "state_not_found");
    assert_eq!(begun.elapsed(), Duration::ZERO, "the clock stands still while nobody waits");
}

#[tokio::test(start_paused = true)]
async fn the_next_state_ends_the_wait_and_other_slots_do_not() {
    for (path, key) in [("/state", 0), ("/state/pricing", 1)] {
        let server = server();
        let tag = tag(&server, path).await;
        let begun = Instant::now();
        let task = asked(&server, &format!("{path}?x=y&wait=30s"), &tag).await;
        // The other key, and the same content under a higher version.
        server.swapper.swap(if key == 0 { states("1", "7") } else { states("7", "1") });
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!task.is_finished(), "{path}");
        server.swapper.swap(states("42", "42"));
        let answer = task.await.expect("no panic");
        assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"state":42}"#), "{path}");
        assert_ne!(answer.header("etag"), tag);
        assert_eq!(begun.elapsed().as_secs(), 2, "by a clock that only this test moves");
        assert_eq!(server.http.pollers.available_permits(), POLLERS);
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_wait_there_is_nothing_new() {
    let server = server();
    let tag = tag(&server, "/state").await;
    for (wait, seconds) in [("0s", 0), ("2s", 2), ("1.5m", 60), ("100000000d", 60)] {
        let begun = Instant::now();
        let answer = server.get_if(&format!("/state?wait={wait}"), &tag).await;
        assert_eq!((answer.status, answer.body.len(), answer.header("etag")), (304, 0, tag.as_str()), "{wait}");
        assert_eq!(begun.elapsed().as_secs(), seconds, "{wait}, by a clock that only this test moves");
    }
}

#[tokio::test]
async fn what_a_client_waits_at_its_own_wish_is_no_slowness_of_the_server() {
    let server = server();
    let tag = tag(&server, "/state").await;
    let begun = Instant::now();
    assert_eq!(server.get_if("/state?wait=1500ms", &tag).await.status, 304);
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    let took = server.metric("hotserve_http_request_duration_seconds_sum{route=\"/state\"}");
    assert!(took < 1.0, "{took} s");
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_taken_away_ends_the_wait() {
    let server = server();
    let tag = tag(&server, "/state").await;
    let task = asked(&server, "/state?wait=30s", &tag).await;
    let gone = server.swapper.snapshot().without(&Slot::State("default".parse().expect("a key")));
    server.swapper.swap(gone);
    task.await.expect("no panic").problem(404, "state_not_found");
}

#[tokio::test(start_paused = true)]
async fn who_drains_lets_nobody_wait() {
    let server = server();
    let tag = tag(&server, "/state").await;
    let begun = Instant::now();
    let task = asked(&server, "/state?wait=30s", &tag).await;
    server.http.status.set_draining();
    assert_eq!(task.await.expect("no panic").status, 304);
    assert_eq!(server.get_if("/state?wait=30s", &tag).await.status, 304);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_another_state_are_bounded() {
    let server = server();
    let tag = tag(&server, "/state").await;
    let all = server.http.pollers.try_acquire_many(POLLERS as u32).expect("nobody waits");
    let answer = server.get_if("/state?wait=30s", &tag).await;
    answer.problem(503, "overloaded");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(server.get("/state?wait=30s").await.status, 200, "who need not wait needs no place");
    drop(all);
    assert_eq!(server.get_if("/state?wait=1s", &tag).await.status, 304);
    assert_eq!(server.http.pollers.available_permits(), POLLERS);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_says_nothing_is_refused_at_once() {
    let server = server();
    let begun = Instant::now();
    for query in ["wait=", "wait", "wait=30", "wait=long", "wait=-1s", "wait=1e400s", "wait=1s&wait=1s", "a=b&wait=s"] {
        for path in ["/state", "/state/pricing"] {
            let detail = server.get_if(&format!("{path}?{query}"), "*").await.problem(400, "bad_wait");
            assert!(detail.starts_with("wait"), "{detail}");
        }
    }
    for query in ["", "waiter=x", "a=wait"] {
        assert_eq!(server.get(&format!("/state?{query}")).await.status, 200, "{query}");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_wait_that_ends_in_a_failure_does_not_count_as_slow_either() {
    let server = server();
    let tag = tag(&server, "/state").await;
    let task = asked(&server, "/state?wait=30s", &tag).await;
    // By the clock of the metrics, which no test can stop.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let gone = server.swapper.snapshot().without(&Slot::State("default".parse().expect("a key")));
    server.swapper.swap(gone);
    task.await.expect("no panic").problem(404, "state_not_found");
    let took = server.metric("hotserve_http_request_duration_seconds_sum{route=\"/state\"}");
    assert!(took < 1.0, "{took} s");
}
