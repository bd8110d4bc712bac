//! The clocks of this machine and of the stream disagree, or jump.

use hotserve::embedded::faults::{Faults, Rules};
use jiff::{SignedDuration, Timestamp};

use super::*;

const HOUR_MS: i64 = 3_600_000;
const YEAR_MS: i64 = 365 * 24 * HOUR_MS;
const OFFSET: &str = "hotserve_stream_clock_offset_seconds";

/// A lag beyond this is a difference of clocks, told as a lag.
const WILD: f64 = 600.0;

async fn lags(server: &crate::support::Server) -> (f64, f64) {
    let lag = server.metric(r#"hotserve_stream_lag_seconds{shard="shardId-000000000000"}"#).await;
    (lag, server.metric(r#"hotserve_publish_to_serving_seconds_sum{kind="state"}"#).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_clock_an_hour_or_a_year_off_everything_is_served_and_no_lag_goes_wild() {
    for offset_ms in [-YEAR_MS, -HOUR_MS, 0, HOUR_MS, YEAR_MS] {
        let faults = Faults::new(Rules::default());
        faults.set_clock_offset(offset_ms);
        let cloud = Cloud::faulty(1, &faults).await;
        cloud.put(json!({"version": 1, "state": 1}).to_string()).await;
        cloud.put(json!({"key": "plain", "state": 1}).to_string()).await;
        let server = cloud.server().await.ready().await;
        assert_eq!(server.state().await, 1, "found on start, {offset_ms} ms off");
        cloud.put(json!({"version": 2, "state": 2}).to_string()).await;
        cloud.put(json!({"key": "plain", "state": 2}).to_string()).await;
        server.until_state(2).await;
        until("the one without a version", async || {
            (server.client.get("/state/plain").await.json()["state"] == 2).then_some(())
        })
        .await;
        let (lag, fresh) = lags(&server).await;
        assert!(lag < WILD && fresh < WILD, "{lag} s and {fresh} s, {offset_ms} ms off");
        let told = server.metric(OFFSET).await;
        assert!((told - offset_ms as f64 / 1e3).abs() < 30.0, "{told} s, {offset_ms} ms off");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_takes_nothing_out_of_service_and_the_next_message_is_served() {
    let faults = Faults::new(Rules::default());
    let cloud = Cloud::faulty(1, &faults).await;
    let server = cloud.server().await.ready().await;
    cloud.put(json!({"key": "plain", "state": 0}).to_string()).await;
    let mut version = 0;
    // The stream's clock jumps here, and not this machine's; what one is to the other is the same.
    for offset_ms in [0, HOUR_MS, -HOUR_MS, 6 * HOUR_MS, 0] {
        faults.set_clock_offset(offset_ms);
        version += 1;
        cloud.put(json!({"version": version, "state": version}).to_string()).await;
        cloud.put(json!({"key": "plain", "state": version}).to_string()).await;
        server.until_state(version).await;
        until("the one without a version", async || {
            (server.client.get("/state/plain").await.json()["state"] == version).then_some(())
        })
        .await;
        let (lag, fresh) = lags(&server).await;
        assert!(lag < WILD && fresh < WILD, "{lag} s and {fresh} s, {offset_ms} ms off");
    }
    assert!(server.is_ready().await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_judged_by_the_clock_of_the_stream() {
    for (offset_ms, minutes, is_served) in [(0, 10, true), (0, -10, false), (HOUR_MS, -10, false), (-HOUR_MS, 10, true)]
    {
        let faults = Faults::new(Rules::default());
        faults.set_clock_offset(offset_ms);
        let cloud = Cloud::faulty(1, &faults).await;
        let server = cloud.server().await.ready().await;
        let now = Timestamp::from_millisecond(i64::try_from(faults.now_ms()).unwrap()).unwrap();
        let expires_at = now + SignedDuration::from_mins(minutes);
        cloud.put(json!({"version": 1, "state": 1, "expires_at": expires_at.to_string()}).to_string()).await;
        if is_served {
            server.until_state(1).await;
        } else {
            server.until_refused("expired", 1.0).await;
            assert_eq!(server.state().await, 0);
        }
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_stays_when_it_expires_a_restart_included() {
    let cloud = Cloud::start(1).await;
    let folder = cloud.path("cache");
    let with_cache = |settings: &mut hotserve::config::Settings| settings.cache_dir = Some(folder.clone());
    let server = cloud.server_with(with_cache).await.ready().await;
    let expires_at = Timestamp::now() + SignedDuration::from_secs(5);
    let mut model = json!({"model": cloud.upload("m", 1, "linear", &constant_model(1)).await});
    model["expires_at"] = json!(expires_at.to_string());
    cloud.put(json!({"version": 1, "state": 1, "expires_at": expires_at.to_string()}).to_string()).await;
    cloud.put(model.to_string()).await;
    server.until_state(1).await;
    server.until_model(1).await;
    until("it to expire", async || (Timestamp::now() > expires_at + SignedDuration::from_secs(1)).then_some(())).await;
    // A poll and a swap later.
    cloud.put(json!({"key": "other", "state": 1}).to_string()).await;
    until("the next one", async || (server.client.get("/state/other").await.status == StatusCode::OK).then_some(()))
        .await;
    assert_eq!((server.state().await, server.model().await), (json!(1), "1".to_owned()));
    server.stop().await;
    let server = cloud.server_with(with_cache).await.ready().await;
    assert_eq!((server.state().await, server.model().await), (json!(1), "1".to_owned()));
    server.stop().await;
}
