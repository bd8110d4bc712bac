//! Rules that follow their file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use super::{Faults, Rules};
use crate::config;

/// A layer with the rules of a file, now and whenever it changes. A broken file keeps the rules that hold.
///
/// Must be called on a runtime. The file is followed for as long as anybody holds the layer.
pub fn follow(path: &Path) -> Result<Arc<Faults>, config::Error> {
    let rules = Rules::from_file(path)?;
    tracing::info!(file = %path.display(), "faults: these rules hold: {}", summary(&rules));
    let faults = Faults::new(rules);
    tokio::spawn(watch(Arc::downgrade(&faults), path.to_owned()));
    Ok(faults)
}

async fn watch(faults: Weak<Faults>, path: PathBuf) {
    let mut seen = modified(&path).await;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(faults) = faults.upgrade() else {
            return;
        };
        let now = modified(&path).await;
        if now == seen {
            continue;
        }
        seen = now;
        let file = path.display();
        match Rules::from_file(&path) {
            Ok(rules) if rules == faults.rules() => {}
            Ok(rules) => {
                tracing::info!(%file, "faults: other rules hold now: {}", summary(&rules));
                faults.set(rules);
            }
            Err(error) => tracing::warn!(%file, "faults: the old rules still hold: {error}"),
        }
    }
}

async fn modified(path: &Path) -> Option<SystemTime> {
    tokio::fs::metadata(path).await.ok()?.modified().ok()
}

/// The rules in a line.
fn summary(rules: &Rules) -> String {
    let mut parts = Vec::new();
    parts.extend(rules.deny.iter().map(|action| format!("deny {action}")));
    for fault in &rules.faults {
        let on: Vec<_> = fault.on.iter().map(ToString::to_string).collect();
        parts.push(format!("{:?} on {} at a rate of {}", fault.answer, on.join(", "), fault.rate));
    }
    for latency in &rules.latency {
        let on: Vec<_> = latency.on.iter().map(ToString::to_string).collect();
        parts.push(format!("{:?} to {:?} on {}", latency.min, latency.max, on.join(", ")));
    }
    let default = Rules::default();
    if rules.kinesis != default.kinesis {
        parts.push(format!("{:?}", rules.kinesis));
    }
    if rules.fan_out != default.fan_out {
        parts.push(format!("{:?}", rules.fan_out));
    }
    if rules.s3 != default.s3 {
        parts.push(format!("{:?}", rules.s3));
    }
    if parts.is_empty() { "nothing goes wrong".to_owned() } else { parts.join("; ") }
}
