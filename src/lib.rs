//! hotserve serves state and models, and replaces them while it serves.
//!
//! ```text
//!   Kinesis ─► source ─► notification ─► manager ──────────────► serving ◄── http ◄── requests
//!              Record    decode          policy, stages, journal  Snapshot    one Snapshot per request
//!                                          │ ▲                       │
//!              S3 ────────────────────────► store                    └─► reaper
//!                                           Artifact
//! ```
//!
//! It is a program, `hotserve`, and a library for web APIs of one's own, with [`Builder`] for its door:
//!
//! ```no_run
//! #[derive(serde::Deserialize)]
//! struct Prices { eur: f64 }
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let mut builder = hotserve::Builder::from_env()?;                                    // as the program reads it
//! let prices = builder.state::<Prices>("prices", serde_json::json!({"eur": 1.0}))?;    // Live<Prices>
//! let hotserve = builder.build().await?;
//! let price = axum::routing::get(async move || prices.get().eur.to_string());          // always the newest that fits
//! let app = axum::Router::new().route("/price", price).merge(hotserve.router());       // /state, /predict, /metrics, …
//! let running = hotserve.start();
//! running.ready_within(std::time::Duration::from_secs(60)).await?;
//! axum::serve(tokio::net::TcpListener::bind("0.0.0.0:8000").await?, app).await?;
//! running.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! `docs/embedding.md` goes on from there: own kinds of model, sources, steps around models, a graceful end.
//!
//! The modules stand in the order in which the data flows; each imports only from those above it. ARCHITECTURE.md
//! explains the words, the invariants, and the way of one record.

pub mod id;
pub mod trust;
pub mod config;
pub mod metrics;
pub mod status;
pub mod shutdown;
pub mod failpoint;
mod priority;
pub mod error;
pub mod telemetry;
pub mod aws;
pub mod notification;
pub mod manifest;
pub mod source;
pub mod store;
pub mod publisher;
pub mod serving;
pub mod manager;
pub mod http;
pub mod app;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod cli;

pub use app::{Builder, Hotserve, Running};
pub use hotserve_models as models;
pub use manager::probe;
pub use serving::live::{Current, Live, Watch};
