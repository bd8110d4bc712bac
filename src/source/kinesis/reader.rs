//! The task that reads one shard: asks what its cursor wants asked, at its pace.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;

use super::cursor::{Ask, Cursor, Page};
use super::pace::Pace;
use super::{Context, Places};
use crate::aws::{Fault, FaultKind};
use crate::id::ShardId;
use crate::source::{Outlet, SourceEvent};

/// So many refusals in a row, each met with another place to begin, and the stream is not what it was.
const REFUSALS: u32 = 8;

/// Reads one shard.
pub(super) struct Reader {
    pub(super) context: Context,
    pub(super) cursor: Cursor,
    pub(super) shard: ShardId,
    pub(super) outlet: Outlet,
    pub(super) reports: mpsc::UnboundedSender<Report>,
    pub(super) places: Places,
    pub(super) closing: Arc<AtomicBool>,
}

/// The seek in a shard is over.
pub(super) struct Report {
    pub(super) shard: ShardId,
    pub(super) found: bool,
}

/// How a reader ends.
pub(super) enum Outcome {
    /// At the end of the shard.
    Ended,
    /// The stream is not there any more, or not the one it was.
    Lost(Fault),
    /// Nobody wants the records.
    NobodyListens,
}

impl Reader {
    pub(super) async fn run(mut self) -> Outcome {
        let mut pace = Pace::new(self.context.config.poll_interval);
        let interval_ms = u64::try_from(self.context.config.poll_interval.as_millis()).unwrap_or(u64::MAX);
        let mut refusals = 0;
        loop {
            let result = match self.cursor.ask() {
                Ask::Done => return Outcome::Ended,
                Ask::Iterator(anchor) => {
                    let iterator = self.context.api.iterator(&self.shard, &anchor).await;
                    iterator.map(|iterator| self.cursor.on_iterator(iterator))
                }
                Ask::Records(iterator) => {
                    // Read before the call: what the shard was given before it closed is in this answer or was in one
                    // before it.
                    if self.closing.load(Ordering::Relaxed) {
                        self.cursor.close();
                    }
                    match self.context.api.records(&iterator).await {
                        Ok(page) => {
                            refusals = 0;
                            pace.on_success();
                            self.context.metrics.stream_polls.get(&["ok"]).increment(1);
                            self.context.metrics.stream_poll_interval.set(pace.interval().as_secs_f64());
                            match self.on_page(page).await {
                                Some(outcome) => return outcome,
                                None => tokio::time::sleep(pace.pause(self.cursor.is_behind(interval_ms))).await,
                            }
                            Ok(())
                        }
                        Err(fault) => Err(fault),
                    }
                }
            };
            let Err(fault) = result else { continue };
            if !matches!(fault.kind, FaultKind::NotFound) {
                // A lost stream is counted once, by the session.
                self.context.count(fault.kind);
            }
            match fault.kind {
                FaultKind::ExpiredIterator => {
                    self.cursor.on_expired();
                    // A stream whose iterators do not live is no reason to spin.
                    tokio::time::sleep(pace.pause(true)).await;
                }
                FaultKind::InvalidArgument if refusals < REFUSALS => {
                    refusals += 1;
                    if self.cursor.on_invalid() {
                        self.context.metrics.stream_gaps.increment(1);
                        tracing::warn!(shard = %self.shard, "records were trimmed before they were read; going on with the oldest");
                    }
                    tokio::time::sleep(pace.pause(true)).await;
                }
                FaultKind::NotFound | FaultKind::InvalidArgument => {
                    return Outcome::Lost(fault);
                }
                FaultKind::Throttled => {
                    pace.on_throttle();
                    tokio::time::sleep(pace.pause(self.cursor.is_behind(interval_ms))).await;
                }
                kind => {
                    let pause = pace.on_fault(self.context.longest_pause(kind));
                    self.context.trouble(&fault);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn on_page(&mut self, page: Page) -> Option<Outcome> {
        self.context.contact();
        let metrics = &self.context.metrics;
        metrics.stream_records.increment(page.records.len() as u64);
        metrics.stream_bytes.increment(page.records.iter().map(|(_, _, data)| data.len() as u64).sum());
        if let Some((_, arrival_ms, _)) = page.records.last() {
            #[expect(clippy::cast_precision_loss, reason = "a double holds milliseconds since 1970")]
            metrics.stream_last_record_timestamp.set(*arrival_ms as f64 / 1e3);
        }
        self.context.status.stream_lag(&self.shard, page.behind_ms);

        let step = self.cursor.on_page(page, self.context.api.now_ms());
        if !step.records.is_empty() && self.outlet.send(SourceEvent::Records(step.records)).await.is_err() {
            return Some(Outcome::NobodyListens);
        }
        let (last, arrival_ms) = self.cursor.progress();
        self.places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.shard.clone(), (last.cloned(), arrival_ms));
        if let Some(found) = step.sought {
            // The session that does not listen any more has dropped this task.
            let _ = self.reports.send(Report { shard: self.shard.clone(), found });
        }
        (step.ended || self.cursor.ask() == Ask::Done).then_some(Outcome::Ended)
    }
}
