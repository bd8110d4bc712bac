//! The ceiling: reads the body and answers a constant, `bare PORT`. Nobody who uses axum is faster.

use std::error::Error;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use tokio::net::TcpListener;

const STATE: &str = r#"{"state":0}"#;
const ANSWER: &str = r#"{"predictions":[0.5123456],"model":{"name":"trees","version":1}}"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::args().nth(1).ok_or("bare PORT")?.parse()?;
    let json = [(CONTENT_TYPE, "application/json")];
    let router = Router::new().route("/state", get(move || async move { (json.clone(), STATE) })).route(
        "/predict/{model}",
        post(|body: Bytes| async move { ([("x-length", body.len())].map(|(k, v)| (k, v.to_string())), ANSWER) }),
    );
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    Ok(axum::serve(axum::serve::ListenerExt::tap_io(listener, |io| drop(io.set_nodelay(true))), router).await?)
}
