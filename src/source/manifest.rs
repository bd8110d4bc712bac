//! The manifest beside a stream: what it holds at the start, and what changes in it, comes out as records do.
//!
//! ```text
//!   inner source ─► records as they come ───────────────────────────┐
//!               └─► CaughtUp, held until the manifest has answered ─┼─► Outlet
//!   S3 ─► Reader ─► records of the entries that are new ────────────┘
//!               └─► Bootstrap, for an inner source that knows of it
//! ```
//!
//! Both may say the same: the manager takes what is newer, and a record that comes twice once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Bootstrap, Outlet, Record, Running, Source, SourceEvent};
use crate::aws::FaultKind;
use crate::id::{Digest, Position};
use crate::manifest::object::{ManifestObject, Read};
use crate::manifest::{Entry, Error, Limits, Manifest};
use crate::metrics::{Metrics, unix_seconds};
use crate::status::{Status, Trouble};

/// How long the first answer of the manifest may keep the server from becoming ready.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// The first pause after a fault; each next one is twice as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after a fault.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a manifest is read as.
#[derive(Debug, Clone)]
pub struct ManifestOptions {
    /// The stream that it must belong to.
    pub stream: String,
    /// Time between reads, give or take a fifth.
    pub interval: Duration,
    /// How large it may be.
    pub limits: Limits,
}

/// A source with a manifest beside it.
///
/// It says `CaughtUp` when the inner source has said it and the manifest has been read, or is known not to be there, or
/// has not answered for ten seconds. What `bootstrap` says is true of the outlet: after `Folded` the entries are on it.
pub struct ManifestSource {
    inner: Box<dyn Source>,
    reader: Reader,
}

impl ManifestSource {
    /// This manifest beside that source.
    pub fn new(
        object: ManifestObject,
        options: ManifestOptions,
        inner: Box<dyn Source>,
        bootstrap: watch::Sender<Bootstrap>,
        metrics: Arc<Metrics>,
        status: Arc<Status>,
    ) -> Self {
        let reader =
            Reader { object, options, bootstrap, metrics, status, etag: None, known: HashSet::new(), unreadable: None };
        Self { inner, reader }
    }
}

impl Source for ManifestSource {
    fn run(self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Running {
        let Self { inner, reader } = *self;
        Box::pin(async move {
            let bootstrap = reader.bootstrap.subscribe();
            // No queue of its own: what the manager does not take yet waits in the inner source.
            let (inner_outlet, events) = mpsc::channel(1);
            tokio::select! {
                () = inner.run(inner_outlet, shutdown.clone()) => {}
                () = forward(events, outlet.clone(), bootstrap) => {}
                // It ends only when nobody listens any more.
                () = reader.follow(outlet) => {}
                () = shutdown.cancelled() => {}
            }
        })
    }
}

/// Hands the inner source's events on; its `CaughtUp` waits for the manifest's first answer.
async fn forward(mut events: mpsc::Receiver<SourceEvent>, outlet: Outlet, mut bootstrap: watch::Receiver<Bootstrap>) {
    let answered = async {
        // The reader that is gone does not answer any more.
        let answer = bootstrap.wait_for(|bootstrap| *bootstrap != Bootstrap::Pending);
        let _ = tokio::time::timeout(FIRST_ANSWER, answer).await;
    };
    tokio::pin!(answered);
    let (mut has_answered, mut held) = (false, false);
    loop {
        let event = tokio::select! {
            () = &mut answered, if !has_answered => {
                has_answered = true;
                if !held {
                    continue;
                }
                SourceEvent::CaughtUp
            }
            event = events.recv() => match event {
                Some(SourceEvent::CaughtUp) if !has_answered => {
                    held = true;
                    continue;
                }
                Some(event) => event,
                None => return,
            },
        };
        if outlet.send(event).await.is_err() {
            return;
        }
    }
}

/// Reads the manifest again and again.
struct Reader {
    object: ManifestObject,
    options: ManifestOptions,
    bootstrap: watch::Sender<Bootstrap>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    /// The content read last.
    etag: Option<String>,
    /// The entries of the content read last.
    known: HashSet<Digest>,
    /// What could not be read in it.
    unreadable: Option<Trouble>,
}

impl Reader {
    /// Ends when nobody listens any more.
    async fn follow(mut self, outlet: Outlet) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            let wait = match self.check(&outlet).await {
                Ok(listened) if !listened => return,
                Ok(_) => {
                    pause = SHORTEST_PAUSE;
                    self.options.interval
                }
                Err(error) => {
                    self.failed(&error);
                    let wait = pause.min(self.options.interval);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::time::sleep(wait.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        }
    }

    /// Reads the manifest once. Answers whether somebody still listens.
    async fn check(&mut self, outlet: &Outlet) -> Result<bool, Error> {
        let outcome = match self.object.read(self.etag.as_deref()).await? {
            Read::NotModified => {
                self.folded();
                "unchanged"
            }
            Read::Absent => {
                self.is_absent();
                "absent"
            }
            Read::Found { etag, bytes } => {
                let manifest = self.decode(bytes).await?;
                let records = self.news(&manifest);
                tracing::debug!(records = records.len(), "the manifest has changed");
                if !records.is_empty() && outlet.send(SourceEvent::Records(records)).await.is_err() {
                    return Ok(false);
                }
                // From here on the entries are on their way: a fault before would have them sent again.
                self.known = manifest.entries().map(Entry::digest).collect();
                self.etag = Some(etag);
                self.unreadable = self.unreadable_in(&manifest);
                self.folded();
                "changed"
            }
        };
        self.metrics.manifest_reads.get(&[outcome]).increment(1);
        Ok(!outlet.is_closed())
    }

    /// Tens of megabytes take a while: not on a thread that others wait for.
    async fn decode(&self, bytes: Bytes) -> Result<Manifest, Error> {
        let limits = self.options.limits.clone();
        let decoded = tokio::task::spawn_blocking(move || Manifest::decode(&bytes, &limits)).await;
        let mut manifest = decoded.map_err(|error| Error::Broken(format!("reading it ended badly: {error}")))??;
        manifest.belongs_to(&self.options.stream)?;
        Ok(manifest)
    }

    /// The entries that were not in the content read before, as records.
    fn news(&self, manifest: &Manifest) -> Vec<Record> {
        let now = Timestamp::now();
        let written_ms = manifest.updated_at.unwrap_or(now).as_millisecond();
        // For an entry whose versions order it: the place says only when it came.
        let place = Position {
            era: Position::UNKNOWN_ERA,
            arrival_ms: u64::try_from(written_ms).unwrap_or(0),
            shard: "manifest".parse().expect("a valid shard id"),
            sequence: "0".parse().expect("digits"),
            subsequence: 0,
        };
        let news = manifest.entries().filter(|entry| !self.known.contains(&entry.digest()));
        news.map(|entry| Record {
            position: entry.position().unwrap_or(&place).clone(),
            data: Bytes::copy_from_slice(entry.message().as_bytes()),
        })
        .collect()
    }

    /// All that it holds is on the outlet.
    fn folded(&self) {
        let (now, entries, unreadable) = (SystemTime::now(), self.known.len(), self.unreadable.clone());
        self.metrics.manifest_last_read_timestamp.set(unix_seconds(now));
        if self.status.manifest_contact(entries, unreadable) {
            tracing::info!(uri = %self.object.uri(), entries, "the manifest is read");
            if let Some(Trouble { code, message }) = &self.unreadable {
                tracing::warn!(code, "{message}");
            }
        }
        self.bootstrap.send_replace(Bootstrap::Folded { at: now });
    }

    fn unreadable_in(&self, manifest: &Manifest) -> Option<Trouble> {
        let first = manifest.unreadable().first()?;
        let (uri, entries) = (self.object.uri(), manifest.unreadable().len());
        let message = format!("{uri}: {entries} entries cannot be read, the first: {}", first.reason);
        Some(Trouble { code: "unreadable_entries", message })
    }

    fn is_absent(&mut self) {
        // What was deleted and comes again is read anew; what it had said stays served.
        self.etag = None;
        let message = format!(
            "no manifest at {}: starting from what a look-back finds in the stream; hotserve publish --manifest makes \
             one, or hotserve manifest rebuild",
            self.object.uri()
        );
        self.trouble("absent", &message);
        self.bootstrap.send_replace(Bootstrap::Absent);
    }

    fn failed(&self, error: &Error) {
        let cure = match error {
            Error::Storage { fault, .. } => match fault.kind {
                FaultKind::Denied => ": s3:GetObject is needed (and s3:ListBucket, to tell that there is none)",
                FaultKind::NotFound => ": is the bucket the right one?",
                _ => "",
            },
            _ => ": hotserve manifest show says more",
        };
        self.metrics.manifest_reads.get(&["failed"]).increment(1);
        let what = match error {
            Error::Storage { .. } => error.to_string(),
            _ => format!("{}: {error}", self.object.uri()),
        };
        self.trouble(error.code(), &format!("{what}{cure}"));
        self.bootstrap.send_if_modified(|bootstrap| {
            // What was folded stays folded: a source that waits for it need not wait again.
            let news = matches!(bootstrap, Bootstrap::Pending | Bootstrap::Absent);
            if news {
                *bootstrap = Bootstrap::Unavailable;
            }
            news
        });
    }

    /// Says what is wrong: on the board, and once in the log for each change of kind.
    fn trouble(&self, code: &'static str, message: &str) {
        if self.status.manifest_trouble(Trouble { code, message: message.to_owned() }) {
            self.status.waiting_for(format!("the manifest: {message}"));
            tracing::warn!(code, "{message}");
        }
    }
}
