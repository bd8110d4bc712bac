//! A source fed by hand: for embedding, and for tests that need no stream.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Outlet, Record, Running, Source, SourceEvent, aggregate};
use crate::id::ShardId;

/// Delivers what its [`Feeder`] is given.
pub struct MemorySource {
    records: mpsc::Receiver<bytes::Bytes>,
}

/// The other end of a [`MemorySource`].
#[derive(Clone)]
pub struct Feeder {
    records: mpsc::Sender<bytes::Bytes>,
}

impl MemorySource {
    /// An empty source and its feeder.
    pub fn new() -> (Self, Feeder) {
        let (sender, records) = mpsc::channel(64);
        (Self { records }, Feeder { records: sender })
    }
}

impl Feeder {
    /// Gives the source a message; waits while it is full. Answers whether somebody still listens.
    pub async fn put(&self, message: impl Into<bytes::Bytes>) -> bool {
        self.records.send(message.into()).await.is_ok()
    }
}

impl Source for MemorySource {
    fn run(mut self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Running {
        Box::pin(async move {
            let shard: ShardId = "memory".parse().expect("a valid shard id");
            if outlet.send(SourceEvent::CaughtUp).await.is_err() {
                return;
            }
            let mut number = 0_u64;
            loop {
                let data = tokio::select! {
                    () = shutdown.cancelled() => return,
                    data = self.records.recv() => match data {
                        Some(data) => data,
                        // Nobody feeds it any more, and it goes on as a quiet stream does.
                        None => return shutdown.cancelled().await,
                    },
                };
                number += 1;
                let Record { position, data } = Record::numbered(&shard, number, data);
                let records = aggregate::expand(position, data).collect();
                if outlet.send(SourceEvent::Records(records)).await.is_err() {
                    return;
                }
            }
        })
    }
}
