//! The integration tests: one binary, a file a theme. Servers and endpoints listen on free ports of 127.0.0.1.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may")]
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "a test drives AWS and the environment")]

mod support;

mod admin;
mod cli;
mod consumers;
mod control;
mod corpus;
// Releases have no failpoints.
#[cfg(debug_assertions)]
mod crash;
mod dashboards;
mod doctor;
mod embedding;
mod events;
mod faults;
mod game_day;
mod grpc;
mod hostile;
mod isolation;
mod lifecycle;
mod linearizability;
mod manifest;
mod memory;
mod misbehaving;
mod net;
mod openapi;
mod predict_forms;
mod promises;
mod readers;
mod reference;
mod start;
mod stream;
mod swap;
mod telemetry;
mod tidy;
mod trust;
mod v2;
mod wire;
