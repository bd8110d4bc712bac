//! `hotserve manifest`: look at a manifest, or make one from what the stream still has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::target::Target;
use crate::app::Boards;
use crate::aws::Aws;
use crate::config::{ManifestUri, StreamConfig};
use crate::id::{Rank, Slot};
use crate::manifest::object::Condition;
use crate::manifest::update::{self, Change};
use crate::manifest::{Entry, Error, Held, Limits, Manifest, Unreadable};
use crate::notification::{self, Control, Location};
use crate::source::kinesis::KinesisSource;
use crate::source::{Record, Source as _, SourceEvent};

/// How many reasons to leave out records are shown.
const REASONS: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show what a manifest holds
    Show(Show),
    /// Read the whole stream, as far back as it reaches, and enter the newest message of every slot
    Rebuild(Rebuild),
}

#[derive(Debug, clap::Args)]
struct Show {
    /// The manifest [default: that of --manifest or --dev]
    #[arg(value_name = "s3://BUCKET/KEY")]
    uri: Option<ManifestUri>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Rebuild {
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Drop the entries of the manifest that cannot be read
    #[arg(long)]
    drop_unreadable: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::Show(args) => show(args).await,
        What::Rebuild(args) => rebuild(args).await,
    }
}

/// A manifest for people and scripts.
#[derive(Serialize)]
struct Shown {
    uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<String>,
    slots: Vec<Row>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    slot: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    published_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// The versions before, for a way back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    before: Vec<String>,
    /// The commands that hold it, the latest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controls: Vec<Control>,
}

async fn show(args: Show) -> anyhow::Result<()> {
    let Show { uri, json, target } = args;
    let object = target.manifest(uri).await?;
    let (manifest, condition) = update::read(&object, &Limits::default()).await?;
    anyhow::ensure!(condition != Condition::Absent, "there is no manifest at {}", object.uri());
    let shown = Shown {
        uri: object.uri().to_string(),
        stream: manifest.stream.clone(),
        updated_at: manifest.updated_at.map(|at| at.to_string()),
        slots: manifest.slots().map(|(slot, held)| row(&manifest, slot, held)).collect(),
        problems: manifest.unreadable().iter().map(|entry| entry.reason.clone()).collect(),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        print!("{}", table(&shown));
    }
    Ok(())
}

fn row(manifest: &Manifest, slot: &Slot, held: Held<'_>) -> Row {
    let notification = held.entry.notification();
    let (digest, size) = match (slot, &notification.state, &notification.model) {
        (Slot::State(_), Some(state), _) => (None, Some(state.json.get().len() as u64)),
        (Slot::Model(_), _, Some(model)) => match &model.location {
            Location::Uri { sha256, size, .. } => (*sha256, *size),
            Location::Inline(bytes) => (Some(held.content), Some(bytes.len() as u64)),
        },
        _ => (None, None),
    };
    // Where there is no version, the place in the stream orders the slot.
    let version = |rank: &Rank| match rank.version() {
        Some(version) => version.to_string(),
        None => format!("@{rank}"),
    };
    let before = manifest.kept(slot).skip(1).map(|held| version(held.rank)).collect();
    let controls = manifest.controls(slot).cloned().collect();
    let published_at = notification.published_at.map(|at| at.to_string());
    let (version, digest) = (version(held.rank), digest.map(|digest| digest.to_string()));
    Row { slot: slot.to_string(), version, published_at, digest, size, before, controls }
}

fn table(shown: &Shown) -> String {
    use std::fmt::Write as _;
    let stream = shown.stream.as_deref().unwrap_or("(no stream)");
    let updated = shown.updated_at.as_deref().unwrap_or("(unknown)");
    let mut text = format!("{}: stream {stream}, written {updated}\n", shown.uri);
    let none = || "-".to_owned();
    let head = ["slot", "version", "published", "size", "digest"].map(str::to_owned);
    let rows = shown.slots.iter().map(|row| {
        let digest = row.digest.as_ref().map_or_else(none, |digest| digest.chars().take(12).collect());
        let (published, size) = (row.published_at.clone(), row.size.map(|size| size.to_string()));
        [row.slot.clone(), row.version.clone(), published.unwrap_or_else(none), size.unwrap_or_else(none), digest]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let widths = [0, 1, 2, 3].map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    for [slot, version, published, size, digest] in &rows {
        let [a, b, c, d] = widths;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{slot:a$}  {version:b$}  {published:c$}  {size:>d$}  {digest}");
    }
    for Row { slot, before, controls, .. } in &shown.slots {
        if !before.is_empty() {
            let _ = writeln!(text, "{slot}: before it {}", before.join(", "));
        }
        for control in controls {
            let _ = writeln!(text, "{slot}: told {}", serde_json::to_string(control).unwrap_or_default());
        }
    }
    for problem in &shown.problems {
        let _ = writeln!(text, "unreadable, and kept as it is: {problem}");
    }
    text
}

async fn rebuild(args: Rebuild) -> anyhow::Result<()> {
    let target = args.target.resolve().await?;
    let (stream, object) = (target.stream()?.to_owned(), target.manifest()?);
    // Before the stream is read, which takes its time.
    update::read(&object, &Limits::default()).await?.0.belongs_to(&stream)?;
    eprintln!("reading all that stream {stream:?} has");
    let found = read_all(&target.aws, &stream).await?;
    println!("read {} records: the newest of {} slots", found.records, found.manifest.slots().count());
    for (reason, count) in found.left_out.iter().take(REASONS) {
        println!("left out {count}: {reason}");
    }
    if found.left_out.len() > REASONS {
        println!("left out more for {} other reasons", found.left_out.len() - REASONS);
    }

    let limits = Limits::default();
    let (news, refused, unreadable, change) = update::update(&object, &limits, |manifest| {
        manifest.belongs_to(&stream)?;
        let unreadable = manifest.unreadable().to_vec();
        let dropped = args.drop_unreadable && manifest.forget_unreadable() > 0;
        let (mut news, mut refused) = (0, Vec::new());
        for entry in found.manifest.entries() {
            match manifest.fold(entry.clone()) {
                Ok(folded) => news += usize::from(folded),
                Err(error) => refused.push(error.to_string()),
            }
        }
        let change = if !args.dry_run && (dropped || news > 0) { Change::Write } else { Change::Leave };
        Ok::<_, Error>(((news, refused, unreadable, change), change))
    })
    .await?;
    println!("{news} messages are news to the manifest");
    for reason in &refused {
        println!("left as the manifest has it: {reason}");
    }
    for Unreadable { reason, .. } in &unreadable {
        let what = if args.drop_unreadable { "dropped" } else { "kept, though it cannot be read (--drop-unreadable)" };
        println!("{what}: {reason}");
    }
    match change {
        _ if args.dry_run => println!("wrote nothing (--dry-run)"),
        Change::Write => println!("wrote {}", object.uri()),
        Change::Leave => println!("{} is up to date", object.uri()),
    }
    Ok(())
}

/// What a stream has.
struct Found {
    records: usize,
    manifest: Manifest,
    /// Why a record is not in the manifest, and how many are not for this reason.
    left_out: BTreeMap<String, usize>,
}

/// Folds every record that the stream still has, read as a server reads it.
async fn read_all(aws: &Aws, stream: &str) -> anyhow::Result<Found> {
    // More than any stream keeps; the source goes back no further than the stream does.
    let lookback = Duration::from_secs(366 * 24 * 3600);
    let config = StreamConfig { lookback, ..StreamConfig::named(stream) };
    let Boards { metrics, status } = Boards::default();
    let source = KinesisSource::new(aws.clone(), config, metrics, Arc::clone(&status));
    let (outlet, mut events) = mpsc::channel(4);
    // Dropped at the end of this function, which ends the source.
    let shutdown = CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    tokio::spawn(Box::new(source).run(outlet, shutdown));

    let mut found = Found { records: 0, manifest: Manifest::new(Limits::default()), left_out: BTreeMap::new() };
    loop {
        match tokio::time::timeout(Duration::from_secs(1), events.recv()).await {
            Ok(Some(SourceEvent::Records(records))) => records.iter().for_each(|record| found.take_in(record)),
            Ok(Some(SourceEvent::CaughtUp)) => return Ok(found),
            Ok(None) => anyhow::bail!("the stream's reader ended before it had read everything"),
            // A server would wait until somebody mends it; a command says so and ends.
            Err(_) => match status.stream().trouble {
                Some(trouble) if trouble.code != "throttled" => anyhow::bail!(trouble.message),
                _ => {}
            },
        }
    }
}

impl Found {
    fn take_in(&mut self, record: &Record) {
        self.records += 1;
        let folded = entry(record, &self.manifest.limits().message)
            .and_then(|entry| self.manifest.fold(entry).map_err(|error| error.to_string()));
        if let Err(reason) = folded {
            *self.left_out.entry(reason).or_insert(0) += 1;
        }
    }
}

/// A record as an entry: its text as it was before it was compressed, and its place where it has no version.
fn entry(record: &Record, limits: &notification::Limits) -> Result<Entry, String> {
    let text = notification::plain(&record.data, limits).map_err(|rejection| rejection.detail)?;
    let text = std::str::from_utf8(&text).map_err(|error| format!("not JSON: {error}"))?;
    let message = RawValue::from_string(text.to_owned()).map_err(|error| format!("not JSON: {error}"))?;
    Entry::new(message, Some(record.position.clone()), limits)
}
