//! SIGHUP: what comes from files is read anew. What is bad is said, and the old kept.

use std::sync::Arc;

use tokio::signal::unix::Signal;

use super::systemd::Systemd;
use crate::app::Boards;
use crate::config::{Reloaded, Reloads};
use crate::error::chain;
use crate::status::{Entry, Readiness};

/// Reads anew at each SIGHUP, for as long as the process lives.
pub(super) async fn follow(mut hangups: Signal, reloads: Reloads, boards: Boards, systemd: Option<Arc<Systemd>>) {
    while hangups.recv().await.is_some() {
        // It waits to hear of the end of a reload, and would take it for that of the start.
        let systemd = systemd.as_ref().filter(|_| boards.status.readiness() == Readiness::Ready);
        if let Some(systemd) = systemd {
            systemd.reloading().await;
        }
        let reading = reloads.clone();
        match tokio::task::spawn_blocking(move || reading.run()).await {
            Ok(all) if all.is_empty() => {
                tracing::info!(
                    "SIGHUP: there is nothing to read anew; keys and the admin token are, where they come from files"
                );
            }
            Ok(all) => all.iter().for_each(|reloaded| note(reloaded, &boards)),
            Err(error) => tracing::error!(%error, "SIGHUP: reading anew panicked; what was read before is in force"),
        }
        if let Some(systemd) = systemd {
            systemd.tell("READY=1").await;
        }
    }
}

fn note(Reloaded { what, outcome }: &Reloaded, boards: &Boards) {
    let (code, entry) = match outcome {
        Ok(None) => {
            tracing::info!(what, "SIGHUP: read anew, and as it was");
            ("unchanged", None)
        }
        Ok(Some(now)) => {
            tracing::info!(what, now, "SIGHUP: read anew");
            ("changed", Some(("reloaded", now.clone())))
        }
        Err(error) => {
            let error = chain(error);
            tracing::error!(
                what,
                error,
                "SIGHUP: cannot be read anew; the old is kept: mend the file and send SIGHUP again"
            );
            ("failed", Some(("reload_failed", format!("{error}; the old is kept"))))
        }
    };
    boards.metrics.reloads.get(&[what, code]).increment(1);
    if let Some((outcome, detail)) = entry {
        boards.status.record(Entry { reason: Some(what), detail: Some(detail), ..Entry::new(outcome, []) });
    }
}
