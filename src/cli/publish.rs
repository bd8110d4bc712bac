//! `hotserve publish`: put a state, a model or a command into the stream.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use hotserve_models::{Golden, Loaders};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::value::RawValue;

use super::check::read;
use super::control;
use super::target::Target;
use crate::config;
use crate::id::{Format, ModelName, StateKey, Version};
use crate::publisher::{self, Draft, Place, Published, Step};
use crate::telemetry::TraceContext;
use crate::trust::SigningKey;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Publish a state
    State(State),
    /// Publish a model: hash it, upload it, announce it
    Model(Model),
    /// Publish a command about a slot, to every server that follows the stream
    Control {
        #[command(subcommand)]
        command: control::Command<To>,
    },
}

#[derive(Debug, clap::Args)]
struct State {
    /// The state, as JSON: 42, '{"eur":1.08}', '"text"'
    #[arg(required_unless_present = "random", conflicts_with = "random", allow_negative_numbers = true)]
    value: Option<String>,
    /// Publish a random number from 0 to 100
    #[arg(long)]
    random: bool,
    /// Which state
    #[arg(long, default_value = StateKey::DEFAULT)]
    key: StateKey,
    /// Its version; without one the next after the manifest's, or, without --manifest, the stream's order decides
    #[arg(long)]
    version: Option<Version>,
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Model {
    /// The model's file
    file: PathBuf,
    /// Which model
    #[arg(long)]
    name: ModelName,
    /// Its version; without one the next after the manifest's, or, without --manifest, the stream's order decides
    #[arg(long)]
    version: Option<Version>,
    /// A name for the version, for people
    #[arg(long)]
    label: Option<String>,
    /// Its format [default: told from its first bytes]
    #[arg(long)]
    format: Option<Format>,
    /// Put the model itself into the message: for models under about 700 kB, or 500 kB if it is signed
    #[arg(long)]
    inline: bool,
    /// Where to upload it
    #[arg(long, env = "HOTSERVE_PUBLISH_TO", value_name = "s3://BUCKET/PREFIX")]
    to: Option<String>,
    /// Golden cases that every server holds it to before it serves it: {"cases":[{"inputs":{…},"outputs":{…}}]}
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    target: Target,
}

/// Where a command goes, and who signs it.
#[derive(Debug, clap::Args)]
struct To {
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
struct Signing {
    /// Sign it with the key in this file, which hotserve keygen makes; repeatable
    #[arg(long, env = "HOTSERVE_SIGNING_KEY_FILE", value_name = "FILE", value_delimiter = ',')]
    sign: Vec<PathBuf>,
}

impl Signing {
    fn keys(&self) -> Result<Vec<SigningKey>, config::Error> {
        let read = |path: &PathBuf| SigningKey::read(path).map_err(|error| error.to_string());
        let keys = self.sign.iter().map(read).collect::<Result<Vec<_>, _>>();
        keys.map_err(|problem| config::Error::new("--sign (HOTSERVE_SIGNING_KEY_FILE)", problem))
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::State(state) => publish_state(state).await,
        What::Model(model) => publish_model(model).await,
        What::Control { command } => publish_control(command).await,
    }
}

async fn publish_state(args: State) -> anyhow::Result<()> {
    let value = args.value.unwrap_or_else(|| fastrand::u8(0..=100).to_string());
    let value = RawValue::from_string(value.clone()).map_err(|error| {
        config::Error::new("VALUE", format!("{value:?} is not JSON ({error}); text is written '\"text\"'"))
    })?;
    let keys = args.signing.keys()?;
    let publisher = args.target.resolve().await?.publisher()?.with_signing_keys(keys);
    let published = publisher.publish(traced(Draft::state(args.key.clone(), args.version, value))).await?;
    report(&format!("state {}", args.key), &published);
    Ok(())
}

async fn publish_model(args: Model) -> anyhow::Result<()> {
    let format = match args.format {
        Some(format) => format,
        None => recognize(&args.file)?,
    };
    // Before anything is uploaded.
    let keys = args.signing.keys()?;
    let golden = args.golden.as_deref().map(golden).transpose()?;
    let target = args.target.resolve().await?;
    let publisher = target.publisher()?.with_signing_keys(keys);
    let place = if args.inline {
        Place::inline(&args.file)?
    } else {
        let to = args.to.or(target.bucket.map(|bucket| format!("s3://{bucket}/models"))).ok_or_else(|| {
            config::Error::new(
                "--to (HOTSERVE_PUBLISH_TO)",
                "missing: say s3://bucket/prefix, or --inline for a small model",
            )
        })?;
        let bar = progress_bar();
        let listener = bar.clone();
        let stored = publisher.store(&args.file, &args.name, &to, move |step| show(&listener, step)).await;
        bar.finish_and_clear();
        let place = stored.map_err(|error| match error {
            publisher::Error::Place { uri, detail } => {
                anyhow::Error::from(config::Error::new("--to", format!("{uri}: {detail}")))
            }
            error => error.into(),
        })?;
        if let Some((size, uri)) = place.uri() {
            println!("uploaded {size} bytes to {uri}");
        }
        place
    };
    let (name, version, label) = (args.name.clone(), args.version, args.label);
    let model = publisher::Model { name, version, label, format: format.clone(), place, golden };
    let published = publisher.publish(traced(Draft::model(model))).await?;
    report(&format!("model {} ({format})", args.name), &published);
    Ok(())
}

async fn publish_control(command: control::Command<To>) -> anyhow::Result<()> {
    let (control, To { signing, target }) = command.into_parts()?;
    let keys = signing.keys()?;
    let what = format!("{} of {}", control.action.code(), control.slot);
    let publisher = target.resolve().await?.publisher()?.with_signing_keys(keys);
    let published = publisher.publish(traced(Draft::control(control))).await?;
    report(&what, &published);
    Ok(())
}

/// As a part of the trace that the environment names: CI systems do.
fn traced(draft: Draft) -> Draft {
    let named = std::env::var_os("TRACEPARENT");
    draft.with_trace(named.and_then(|text| TraceContext::parse(text.as_encoded_bytes())))
}

fn report(what: &str, published: &Published) {
    let Published { version, assigned, receipt } = published;
    let version = match version {
        Some(version) if *assigned => format!(" version {version}, the next after the manifest's"),
        Some(version) => format!(" version {version}"),
        None => String::new(),
    };
    println!("published {what}{version}: sequence number {} in {}", receipt.sequence_number, receipt.shard);
}

/// Golden cases as they stand in the file; none that a server would not understand.
fn golden(path: &Path) -> Result<serde_json::Value, config::Error> {
    let _: Golden = read("--golden", path)?;
    read("--golden", path)
}

/// The format that a file looks like.
pub(super) fn recognize(path: &Path) -> anyhow::Result<Format> {
    // The first bytes tell; a model can have gigabytes, and is read once more to be hashed.
    let mut bytes = Vec::new();
    let head = std::fs::File::open(path).and_then(|file| file.take(64 << 10).read_to_end(&mut bytes));
    head.with_context(|| format!("read {}", path.display()))?;
    let loaders = Loaders::bundled();
    let format = loaders.recognize(&bytes).ok_or_else(|| {
        let problem = format!(
            "missing, and {} does not look like just one of them: {}",
            path.display(),
            loaders.formats().join(", ")
        );
        config::Error::new("--format", problem)
    })?;
    Ok(format.parse()?)
}

/// A bar where a terminal looks on, nothing elsewhere.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// Hashing first, then the upload: each from its beginning.
fn show(bar: &ProgressBar, step: Step) {
    let begin = |what, size| {
        bar.set_message(what);
        bar.set_length(size);
        bar.reset();
    };
    match step {
        Step::Hash(size) => begin("hash", size),
        Step::Upload(size) => begin("upload", size),
        Step::Bytes(bytes) => bar.inc(bytes),
    }
}
