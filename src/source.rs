//! Where notifications come from.

pub mod aggregate;
pub mod kinesis;
pub mod manifest;
pub mod memory;

use std::future::Future;
use std::pin::Pin;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::id::Position;

/// One message as it lies in the stream, not yet looked into.
#[derive(Debug, Clone)]
pub struct Record {
    /// Where it stands.
    pub position: Position,
    /// What it says.
    pub data: Bytes,
}

/// What a source tells the manager.
#[derive(Debug)]
pub enum SourceEvent {
    /// Records, in the order of their shard.
    Records(Vec<Record>),
    /// Everything that was in the stream when the source began to look has been delivered, as far back as it looks.
    /// Sent once.
    CaughtUp,
}

/// What the manifest has brought so far: a source that knows of a manifest need not look back for what is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bootstrap {
    /// It has not answered yet.
    #[default]
    Pending,
    /// All that it held at this moment is on the outlet. The moment of the last successful check.
    Folded {
        /// When.
        at: SystemTime,
    },
    /// There is none.
    Absent,
    /// It cannot be read for now.
    Unavailable,
}

/// The way from a source to the manager; bounded, so that a source that is ahead waits.
pub type Outlet = mpsc::Sender<SourceEvent>;

/// What `run` answers.
pub type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A stream of notifications that every instance reads for itself.
///
/// # Contract
/// - Records of one shard come in order; a record may come twice, and is lost only when the stream itself lost it.
/// - `CaughtUp` comes once, after the last record that was there at the start.
/// - Faults of the stream are the source's own affair: it says them on the status board, waits, and goes on. `run`
///   ends only when `shutdown` is cancelled or the outlet is closed.
pub trait Source: Send {
    /// Reads until shut down.
    fn run(self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Running;
}
