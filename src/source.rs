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

use crate::id::{Position, SequenceNumber, ShardId};

/// One message as it lies in the stream, not yet looked into.
#[derive(Debug, Clone)]
pub struct Record {
    /// Where it stands.
    pub position: Position,
    /// What it says.
    pub data: Bytes,
}

impl Record {
    /// A message with this number, which has just come: for sources that count, or know an offset. It comes after every
    /// message of the same shard with a smaller one, in this run and in the next.
    pub fn numbered(shard: &ShardId, number: u64, data: impl Into<Bytes>) -> Self {
        let arrival_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
        let sequence: SequenceNumber = number.to_string().parse().expect("digits are a sequence number");
        let position = Position { era: 0, arrival_ms, shard: shard.clone(), sequence, subsequence: 0 };
        Self { position, data: data.into() }
    }
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
/// - [`Record::numbered`] makes a record of a message and its place. A source that packs messages as the Kinesis Producer
///   Library does takes them apart with [`aggregate::expand`].
/// - Faults of the stream are the source's own affair: it says them on the status board, waits, and goes on. `run`
///   ends only when `shutdown` is cancelled or the outlet is closed.
pub trait Source: Send {
    /// Reads until shut down.
    fn run(self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Running;
}
