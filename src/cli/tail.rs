//! `hotserve tail`: the messages of a stream as they come, decoded as a server decodes them.

mod line;

use std::collections::HashMap;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::line::{human, json};
use super::paint::Paint;
use super::target::Target;
use crate::app::Boards;
use crate::config::{self, HumanDuration, StreamConfig};
use crate::id::{SequenceNumber, ShardId};
use crate::notification::{Limits, decode};
use crate::source::kinesis::KinesisSource;
use crate::source::{Record, Source as _, SourceEvent};
use crate::status::{Status, Trouble};
use crate::trust::{Keyring, Required, Trust};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Begin with what arrived within this time [default: the last message, then only new ones]
    #[arg(long, value_name = "DURATION")]
    since: Option<HumanDuration>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// End after this many messages
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// File with the keys that may sign: a message whose signatures a server would refuse is shown as refused
    #[arg(long, env = "HOTSERVE_TRUSTED_KEYS", value_name = "FILE")]
    trusted_keys: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// How often to look whether the reader has met trouble.
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    // What is unsigned is shown: whether it may be is the server's setting.
    let keyring = args.trusted_keys.as_deref().map(Keyring::read).transpose();
    let keyring =
        keyring.map_err(|error| config::Error::new("--trusted-keys (HOTSERVE_TRUSTED_KEYS)", error.to_string()))?;
    let trust = keyring.map(|keyring| Arc::new(Trust::new(keyring, Required::Off)));
    let target = args.target.resolve().await?;
    let config = StreamConfig {
        // As a server: a shard answers five reads a second to all its readers together.
        poll_interval: target.bucket.is_some().then_some(LOOK),
        lookback: args.since.map_or(Duration::ZERO, |since| since.0),
        ..StreamConfig::named(target.stream()?)
    };
    let boards = Boards::default();
    let status = Arc::clone(&boards.status);
    let source = Box::new(KinesisSource::new(target.aws, config, boards.metrics, boards.status));
    let shutdown = CancellationToken::new();
    let (outlet, events) = mpsc::channel(16);
    let reader = tokio::spawn(source.run(outlet, shutdown.clone()));
    let tail = Tail {
        json: args.json,
        paint: Paint::stdout(),
        limits: Limits { trust, ..Limits::default() },
        left: args.count,
        since_ms: args.since.map(|since| now_ms().saturating_sub(millis(since.0))),
        shown: HashMap::new(),
        newest: None,
    };
    let result = tokio::select! {
        result = tail.follow(events) => result,
        result = watch(&status) => result,
        // The way to end it: no failure.
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    shutdown.cancel();
    // It ends at once, and has nothing to give back.
    let _ = reader.await;
    match result {
        // `tail | head` is done when head is.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(())
        }
        result => result,
    }
}

/// Says what keeps the reader from the stream. What was wrong from the first call on, and is for a person to mend, ends
/// it; what comes later may pass.
async fn watch(status: &Status) -> anyhow::Result<()> {
    let mut said: Option<Trouble> = None;
    loop {
        let stream = status.stream();
        if let Some(trouble) = stream.trouble.as_ref().filter(|trouble| said.as_ref() != Some(trouble)) {
            let passes = matches!(trouble.code, "throttled" | "unavailable" | "not_ready");
            if stream.last_contact.is_none() && !passes {
                bail!("{}; hotserve doctor tells more", trouble.message);
            }
            eprintln!("{}; trying again", trouble.message);
        }
        said = stream.trouble;
        tokio::time::sleep(LOOK).await;
    }
}

/// What is shown, and what was.
struct Tail {
    json: bool,
    paint: Paint,
    limits: Limits,
    left: Option<u64>,
    /// What arrived before is not shown; without it, of what was there at the start only the newest is.
    since_ms: Option<u64>,
    /// The last record shown of each shard: a record may come twice.
    shown: HashMap<ShardId, SequenceNumber>,
    newest: Option<Record>,
}

impl Tail {
    async fn follow(mut self, mut events: mpsc::Receiver<SourceEvent>) -> anyhow::Result<()> {
        let mut caught_up = self.since_ms.is_some();
        while let Some(event) = events.recv().await {
            match event {
                SourceEvent::Records(records) => {
                    for record in records {
                        if caught_up {
                            self.show(&record)?;
                        } else if self.newest.as_ref().is_none_or(|newest| record.position.is_after(&newest.position)) {
                            self.newest = Some(record);
                        }
                        if self.left == Some(0) {
                            return Ok(());
                        }
                    }
                }
                SourceEvent::CaughtUp => {
                    caught_up = true;
                    if let Some(record) = self.newest.take() {
                        self.show(&record)?;
                    }
                    if self.left == Some(0) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn show(&mut self, record: &Record) -> std::io::Result<()> {
        let position = &record.position;
        let repeated = self.shown.get(&position.shard).is_some_and(|shown| *shown >= position.sequence);
        if repeated || self.since_ms.is_some_and(|since_ms| position.arrival_ms < since_ms) {
            return Ok(());
        }
        self.shown.insert(position.shard.clone(), position.sequence.clone());
        let decoded = decode(&record.data, &self.limits);
        let line = if self.json { json(record, &decoded) } else { human(record, &decoded, self.paint) };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()?;
        self.left = self.left.map(|left| left - 1);
        Ok(())
    }
}

fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
