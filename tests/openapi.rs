//! What the interface says of itself, and waiting for a state, over real sockets.

use hotserve_models::samples;
use http::StatusCode;
use serde_json::json;

use crate::support::{Cloud, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_of_every_sample_are_predicted_as_they_stand() {
    let cloud = Cloud::start(1).await;
    for sample in samples::all() {
        let model = cloud.upload(sample.name, 1, sample.format, sample.bytes).await;
        cloud.put(json!({ "model": model }).to_string()).await;
    }
    let server = cloud.server().await;
    let document = until("every sample to be described", async || {
        let document = server.client.get("/openapi.json").await.json();
        let described = |name: &str| document["paths"].get(format!("/predict/{name}")).is_some();
        samples::all().iter().all(|sample| described(sample.name)).then_some(document)
    })
    .await;
    let mut asked = 0;
    for sample in samples::all() {
        for path in [format!("/predict/{}", sample.name), format!("/v2/models/{}/infer", sample.name)] {
            let body = &document["paths"][&path]["post"]["requestBody"]["content"]["application/json"];
            for example in body["examples"].as_object().unwrap().values() {
                let reply = server.client.post(&path, example["value"].to_string()).await;
                assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.text());
                asked += 1;
            }
        }
    }
    assert!(asked >= 4 * samples::all().len(), "{asked}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_state_hears_of_the_next_one_and_of_the_end() {
    let cloud = Cloud::start(1).await;
    cloud.put(json!({ "state": 1 }).to_string()).await;
    let server = cloud.server().await;
    server.until_state(1).await;
    let etag = server.client.get("/state").await.header("etag").to_owned();
    let wait = |etag: String| {
        let client = server.client.clone();
        tokio::spawn(async move { client.ask("/state?wait=60s", &[("if-none-match", &etag)], None).await })
    };
    let waiting = wait(etag.clone());
    cloud.put(json!({ "state": 2 }).to_string()).await;
    let reply = waiting.await.unwrap();
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, json!({ "state": 2 })));

    let waiting = wait(reply.header("etag").to_owned());
    until("the request to be under way", async || {
        let in_flight = server.metric("hotserve_http_requests_in_flight").await;
        (in_flight >= 1.0).then_some(())
    })
    .await;
    // It ends long before the minute, or the drain would.
    let begun = std::time::Instant::now();
    server.stop().await;
    assert_eq!(waiting.await.unwrap().status, StatusCode::NOT_MODIFIED);
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}
