//! A web API of one's own, whose prices follow a stream while it answers: `cargo run --example custom_api`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use hotserve::embedded::Sandbox;
use hotserve::{Builder, Live};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[derive(Serialize, Deserialize)]
struct Prices {
    currency: String,
    cents: BTreeMap<String, u32>,
}

#[derive(Clone)]
struct Shop {
    prices: Live<Prices>,
    stream: Arc<Sandbox>,
}

/// Everything of an answer comes from one read; a message that is no `Prices` never gets here.
async fn price(State(shop): State<Shop>, Path(item): Path<String>) -> Result<Json<Value>, StatusCode> {
    let prices = shop.prices.get();
    let cents = prices.cents.get(&item).ok_or(StatusCode::NOT_FOUND)?;
    Ok(Json(json!({"item": item, "cents": cents, "currency": prices.currency})))
}

/// Puts a message on the stream, as it came. In production somebody else does that.
async fn publish(State(shop): State<Shop>, Json(state): Json<Value>) -> StatusCode {
    let sent = shop.stream.publish_state("prices", None, state).await;
    sent.map_or(StatusCode::BAD_GATEWAY, |()| StatusCode::ACCEPTED)
}

pub(crate) async fn run(listener: TcpListener, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let stream = Arc::new(Sandbox::start().await?);
    let mut builder = Builder::new(stream.settings()).endpoints(stream.endpoints());
    let prices = builder.state("prices", json!({"currency": "EUR", "cents": {"tea": 250}}))?;
    let hotserve = builder.build().await?;
    let own = Router::new().route("/price/{item}", get(price)).route("/prices", put(publish));
    let app = own.merge(hotserve.router()).with_state(Shop { prices, stream });
    let (running, at) = (hotserve.start(), listener.local_addr()?);
    running.ready_within(Duration::from_secs(60)).await?;
    println!("curl {at}/price/tea\ncurl {at}/state/prices\ncurl {at}/history");
    println!(r#"curl -X PUT {at}/prices --json '{{"currency": "EUR", "cents": {{"tea": 260}}}}'"#);
    Ok(running.serve(listener, app, shutdown).await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    run(TcpListener::bind("127.0.0.1:3000").await?, async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await
}
