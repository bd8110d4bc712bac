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

pub use manager::probe;
