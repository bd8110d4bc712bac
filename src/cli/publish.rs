//! `hotserve publish`: put a state or a model into the stream.

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use clap::Subcommand;
use hotserve_models::Loaders;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::target::{Resolved, Target};
use crate::config;
use crate::id::{Digest, Format, ModelName, StateKey, Version};
use crate::notification::ArtifactUri;
use crate::publisher::{Publisher, Receipt};

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
    /// Its version; without one the stream's order decides
    #[arg(long)]
    version: Option<Version>,
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
    /// Its version; without one the stream's order decides
    #[arg(long)]
    version: Option<Version>,
    /// A name for the version, for people
    #[arg(long)]
    label: Option<String>,
    /// Its format [default: told from its first bytes]
    #[arg(long)]
    format: Option<Format>,
    /// Put the model itself into the message: for models under about 700 kB
    #[arg(long)]
    inline: bool,
    /// Where to upload it
    #[arg(long, env = "HOTSERVE_PUBLISH_TO", value_name = "s3://BUCKET/PREFIX")]
    to: Option<String>,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::State(state) => publish_state(state).await,
        What::Model(model) => publish_model(model).await,
    }
}

async fn publish_state(args: State) -> anyhow::Result<()> {
    let value = args.value.unwrap_or_else(|| fastrand::u8(0..=100).to_string());
    let value = RawValue::from_string(value.clone()).map_err(|error| {
        config::Error::new("VALUE", format!("{value:?} is not JSON ({error}); text is written '\"text\"'"))
    })?;
    let publisher = args.target.resolve().await?.publisher();
    let message = json!({
        "message_id": message_id(),
        "key": args.key,
        "version": args.version,
        "state": value,
        "published_at": Timestamp::now(),
    });
    let receipt = publisher.announce(&format!("state:{}", args.key), &render(message)?).await?;
    report(&format!("state {}", args.key), args.version, &receipt);
    Ok(())
}

async fn publish_model(args: Model) -> anyhow::Result<()> {
    let path = args.file.display().to_string();
    let format = match args.format {
        Some(format) => format,
        None => recognize(&args.file)?,
    };
    let target = args.target.resolve().await?;
    let publisher = target.publisher();
    let mut model = json!({
        "name": args.name,
        "version": args.version,
        "label": args.label,
        "format": format,
    });
    let place = if args.inline {
        let bytes = std::fs::read(&args.file).with_context(|| format!("read {path}"))?;
        let packed = zstd::encode_all(&bytes[..], 19).context("compress the model")?;
        let (bytes, encoding) = if packed.len() < bytes.len() { (packed, "zstd") } else { (bytes, "none") };
        json!({
            "inline": base64::engine::general_purpose::STANDARD.encode(&bytes),
            "encoding": encoding,
            "sha256": Digest::of(&bytes),
            "size": bytes.len(),
        })
    } else {
        let to = args.to.or(target.bucket.map(|bucket| format!("s3://{bucket}/models"))).ok_or_else(|| {
            config::Error::new(
                "--to (HOTSERVE_PUBLISH_TO)",
                "missing: say s3://bucket/prefix, or --inline for a small model",
            )
        })?;
        let (digest, size) = hash(&args.file).with_context(|| format!("read {path}"))?;
        let file_name = args.file.file_name().and_then(|name| name.to_str()).unwrap_or("model");
        let uri = format!("{}/{}/{digest}/{file_name}", to.trim_end_matches('/'), args.name);
        let uri: ArtifactUri = uri.parse().map_err(|error| config::Error::new("--to", format!("{uri}: {error}")))?;
        let ArtifactUri::S3 { bucket, key } = &uri else { bail!("--to takes s3://bucket/prefix, not {uri}") };
        let bar = progress_bar(size, "upload");
        let counter = bar.clone();
        publisher.upload(bucket, key, &args.file, size, &digest, move |bytes| counter.inc(bytes)).await?;
        bar.finish_and_clear();
        println!("uploaded {size} bytes to {uri}");
        json!({ "uri": uri.to_string(), "sha256": digest, "size": size })
    };
    if let (Some(model), Some(place)) = (model.as_object_mut(), place.as_object()) {
        model.extend(place.clone());
    }
    let message = json!({ "message_id": message_id(), "model": model, "published_at": Timestamp::now() });
    let receipt = publisher.announce(&format!("model:{}", args.name), &render(message)?).await?;
    report(&format!("model {} ({format})", args.name), args.version, &receipt);
    Ok(())
}

impl Resolved {
    fn publisher(&self) -> Publisher {
        Publisher::new(&self.aws, self.stream.clone())
    }
}

fn report(what: &str, version: Option<Version>, receipt: &Receipt) {
    let version = version.map(|version| format!(" version {version}")).unwrap_or_default();
    println!("published {what}{version}: sequence number {} in {}", receipt.sequence_number, receipt.shard);
}

/// The text of a message; what is not given is left out.
fn render(mut message: serde_json::Value) -> anyhow::Result<Vec<u8>> {
    if let Some(fields) = message.as_object_mut() {
        // A state of null is a state.
        fields.retain(|name, value| name == "state" || !value.is_null());
        if let Some(model) = fields.get_mut("model").and_then(serde_json::Value::as_object_mut) {
            model.retain(|_, value| !value.is_null());
        }
    }
    Ok(serde_json::to_vec(&message)?)
}

fn message_id() -> String {
    format!("{:032x}", fastrand::u128(..))
}

fn recognize(path: &Path) -> anyhow::Result<Format> {
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

fn hash(path: &Path) -> std::io::Result<(Digest, u64)> {
    let mut file = std::fs::File::open(path)?;
    let bar = progress_bar(file.metadata()?.len(), "hash");
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            bar.finish_and_clear();
            return Ok((Digest::finish(hasher), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
        bar.inc(read as u64);
    }
}

/// A bar where a terminal looks on, nothing elsewhere.
fn progress_bar(size: u64, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(size).with_style(style).with_message(what)
}
