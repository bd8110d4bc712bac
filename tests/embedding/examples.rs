//! The examples, as they are.

use hotserve::Builder;
use hotserve::config::{Isolation, Settings};
use hotserve::models::conformance;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::{listener, probe};
use crate::support::{Client, until};

#[expect(dead_code, reason = "its main is for people")]
#[path = "../../examples/custom_api.rs"]
mod custom_api;
#[expect(dead_code, reason = "its main is for people")]
#[path = "../../examples/custom_kind.rs"]
pub mod custom_kind;
#[expect(dead_code, reason = "its main is for people")]
#[path = "../../examples/custom_source.rs"]
mod custom_source;

/// Runs an example on a free port, until what is done with it is done.
async fn example<E: Future<Output = anyhow::Result<()>> + Send + 'static>(
    run: impl FnOnce(TcpListener, std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> E,
    with: impl AsyncFnOnce(&Client),
) {
    let (listener, client, _) = listener().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(run(listener, Box::pin(async { drop(stopped.await) })));
    with(&client).await;
    stop.send(()).unwrap();
    task.await.unwrap().unwrap();
}

async fn until_answered(client: &Client, path: &str, body: Option<&str>, is_it: impl Fn(&Value) -> bool) {
    until(path, async || {
        let reply = client.ask(path, &[], body).await;
        (reply.status == StatusCode::OK && is_it(&reply.json())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_an_api_sells_at_the_published_price() {
    example(custom_api::run, async |client| {
        until_answered(client, "/price/tea", None, |answer| answer["cents"] == 250).await;
        let json = ("content-type", "application/json");
        let publish = async |state: Value| client.put("/prices", &[json], state.to_string()).await.status;
        assert_eq!(publish(json!({"currency": "EUR", "cents": {"tea": "dear"}})).await, StatusCode::ACCEPTED);
        until_answered(client, "/history", None, |history| history["entries"][0]["reason"] == "state_type").await;
        until_answered(client, "/price/tea", None, |answer| answer["cents"] == 250).await;
        assert_eq!(publish(json!({"currency": "EUR", "cents": {"tea": 260}})).await, StatusCode::ACCEPTED);
        until_answered(client, "/price/tea", None, |answer| answer["cents"] == 260).await;
        until_answered(client, "/state/prices", None, |answer| answer["state"]["cents"]["tea"] == 260).await;
        assert_eq!(client.get("/price/gold").await.status, StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_a_kind_conforms_and_is_served_from_a_probe() {
    conformance::check(&custom_kind::StepLoader, b"step 0.5", None).unwrap();
    let settings = Settings { isolation: Some(Isolation::Process), ..Settings::default() };
    let builder = Builder::new(settings).loader(custom_kind::StepLoader).probe_program(probe());
    example(
        |listener, shutdown| custom_kind::run(builder, listener, shutdown),
        async |client| {
            let rows = r#"{"instances": [[0.4], [0.6]]}"#;
            until_answered(client, "/predict/gate", Some(rows), |answer| {
                answer["predictions"] == json!([[0.0], [1.0]])
            })
            .await;
            until_answered(client, "/models", None, |models| models.to_string().contains(r#""engine":"step""#)).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_of_a_source_serves_what_is_appended_to_its_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let append = |text: &str| {
        use std::io::Write as _;
        file.as_file().write_all(text.as_bytes()).unwrap();
    };
    append("{\"state\": 1}\n");
    let path = file.path().to_owned();
    example(
        |listener, shutdown| custom_source::run(path, listener, shutdown),
        async |client| {
            until_answered(client, "/state", None, |answer| answer["state"] == 1).await;
            append("no message\n{\"state\": 2}\n{\"state\"");
            until_answered(client, "/state", None, |answer| answer["state"] == 2).await;
            append(": 3}\n");
            until_answered(client, "/state", None, |answer| answer["state"] == 3).await;
        },
    )
    .await;
}

#[test]
fn the_examples_are_short_and_name_no_cloud() {
    for example in ["custom_api", "custom_kind", "custom_source"] {
        let text = std::fs::read_to_string(crate::support::repository(&format!("examples/{example}.rs"))).unwrap();
        assert!(text.lines().count() <= 60, "{example} has {} lines", text.lines().count());
        for word in ["aws", "Aws", "kinesis::", "s3::"] {
            assert!(!text.contains(word), "{example} names {word}");
        }
    }
}
