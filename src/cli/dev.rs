//! `hotserve dev`: everything in one process, and nothing else needed.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hotserve_models::samples::{self, Sample};

use super::running::Running;
use super::serve::as_setting;
use crate::app::{Adapters, App, Boards};
use crate::aws::{Aws, Retries};
use crate::config::{self, HumanDuration, Settings, Token};
use crate::embedded::{self, Embedded, faults};
use crate::http::limits;
use crate::id::{Digest, ModelName, Version};
use crate::manifest::Limits;
use crate::manifest::object::ManifestObject;
use crate::publisher::{self, Draft, Model, Publisher};
use crate::shutdown;

const STREAM: &str = "hotserve-dev";
const BUCKET: &str = "hotserve-dev";
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Port of the server; 0 takes any free one
    #[arg(long, env = "PORT", default_value_t = 8000)]
    port: u16,
    /// Port of the Kinesis endpoint; 0 takes any free one
    #[arg(long, default_value_t = 4567)]
    kinesis_port: u16,
    /// Port of the S3 endpoint; 0 takes any free one
    #[arg(long, default_value_t = 4569)]
    s3_port: u16,
    /// Shards of the stream, when it is made
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=50))]
    shards: i32,
    /// Folder that keeps stream, bucket and last known good between runs [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Rules of what goes wrong around the stream and the bucket, as TOML; read again when the file changes
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Keep a manifest, as production should: then every message to a slot needs a version, which publish --dev assigns
    #[arg(long)]
    manifest: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let faults = match &args.faults {
        Some(path) => Some(faults::follow(path)?),
        None => None,
    };
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("hotserve-dev-").tempdir().context("make a temporary folder")?),
    };
    let folder = args.data_dir.clone().or(temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
    let options = embedded::Options {
        kinesis: SocketAddr::new(LOCALHOST, args.kinesis_port),
        s3: SocketAddr::new(LOCALHOST, args.s3_port),
        folder: folder.clone(),
        durable: args.data_dir.is_some(),
        faults,
    };
    let embedded = Embedded::start(options).await.map_err(|error| match error {
        embedded::Error::Listen { service, addr, source } => {
            let flag = if service == "S3" { "--s3-port" } else { "--kinesis-port" };
            let problem =
                format!("the {service} endpoint cannot listen on {addr} ({source}): choose another, 0 for any");
            config::Error::new(flag, problem).into()
        }
        error => anyhow::Error::from(error),
    })?;
    let aws = Aws::at(embedded.endpoints()).await;

    limits::raise_open_files();
    let admin_token = random_token().context("make a token for commands")?;
    let settings = Settings {
        admin_token: Some(Token::parse(&admin_token)?),
        stream: Some(STREAM.to_owned()),
        host: Some(LOCALHOST),
        port: Some(args.port),
        cache_dir: args.data_dir.as_ref().map(|dir| dir.join("cache")),
        poll_interval: Some(HumanDuration(std::time::Duration::from_millis(200))),
        lookback: Some(HumanDuration(std::time::Duration::from_secs(24 * 3600))),
        allow: vec![format!("s3://{BUCKET}")],
        manifest: args.manifest.then(|| format!("s3://{BUCKET}/manifest.json")),
        default_model: samples::all().first().map(|sample| sample.name.parse()).transpose()?,
        ..Settings::default()
    };
    let config = settings.validate()?;
    let manifest = config.manifest.as_ref().map(|manifest| manifest.uri.clone());
    let boards = Boards::default();
    let adapters = Adapters::aws(&aws, &config, &boards);
    let app = App::bind(config, adapters, boards).await.map_err(|error| match error {
        crate::app::Error::Listen { addr, source } => config::Error::new(
            "--port (PORT)",
            format!("cannot listen on {addr} ({source}): choose another, 0 for any"),
        )
        .into(),
        error => as_setting(error),
    })?;

    let object = |uri| ManifestObject::new(&aws, Retries::Standard, uri, Limits::default().bytes);
    let publisher = Publisher::new(&aws, STREAM.to_owned()).with_manifest(manifest.clone().map(object));
    publisher.ensure_bucket(BUCKET).await?;
    if publisher.ensure_stream(args.shards).await? {
        for sample in samples::all() {
            announce(&publisher, sample, &folder)
                .await
                .with_context(|| format!("publish the sample {}", sample.name))?;
        }
    }
    let retrained = write_retrained(&folder)?;

    let endpoints = embedded.endpoints();
    let running = Running {
        http: app.addr(),
        kinesis: embedded.kinesis.addr(),
        s3: embedded.s3.addr(),
        region: endpoints.region,
        access_key_id: endpoints.access_key_id,
        secret_access_key: endpoints.secret_access_key,
        stream: STREAM.to_owned(),
        bucket: BUCKET.to_owned(),
        manifest: manifest.map(|uri| uri.to_string()),
        admin_token,
    };
    let _announced = running.announce().context("leave a note for publish --dev")?;
    let shutdown = shutdown::on_signal()?;
    let http = app.http();
    let server = tokio::spawn(app.run(shutdown.clone()));
    tokio::select! {
        () = until_ready(&http.status) => println!("{}", welcome(&running, retrained.as_deref(), args.data_dir.is_none())),
        () = shutdown.cancelled() => {}
    }
    server.await.context("the server panicked")??;
    Ok(())
}

/// A token that nobody guesses, for this run.
fn random_token() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Digest::of(&bytes).to_string())
}

async fn until_ready(status: &crate::status::Status) {
    while status.readiness() != crate::status::Readiness::Ready {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Publishes a sample, as `hotserve publish model` does.
async fn announce(publisher: &Publisher, sample: &Sample, folder: &Path) -> anyhow::Result<()> {
    let name: ModelName = sample.name.parse()?;
    let file = folder.join(sample.file_name);
    std::fs::write(&file, sample.bytes)?;
    let place = publisher.store(&file, &name, &format!("s3://{BUCKET}/models"), |_| {}).await?;
    std::fs::remove_file(&file)?;
    let model = Model {
        name,
        version: Some(Version::try_from(1)?),
        label: Some("sample".to_owned()),
        format: sample.format.parse()?,
        place,
        golden: Some(serde_json::from_str(sample.golden)?),
    };
    match publisher.publish(Draft::model(model)).await {
        // A manifest that outlived its stream knows a later one.
        Ok(_) | Err(publisher::Error::Outdated { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lays the retrained sample where the printed command can name it, wherever the program was started.
fn write_retrained(folder: &Path) -> anyhow::Result<Option<String>> {
    let Some((sample, bytes)) = samples::all().iter().find_map(|sample| Some((sample, sample.retrained?))) else {
        return Ok(None);
    };
    let in_tree = format!("models/samples/{}/retrained.json", sample.name);
    if Path::new(&in_tree).exists() {
        return Ok(Some(in_tree));
    }
    let path = folder.join(format!("{}-retrained.json", sample.name));
    std::fs::write(&path, bytes).context("write the retrained sample")?;
    Ok(Some(path.display().to_string()))
}

fn welcome(running: &Running, retrained: Option<&str>, temporary: bool) -> String {
    use std::fmt::Write as _;
    let program = std::env::args().next().unwrap_or_else(|| "hotserve".to_owned());
    let Running { http, kinesis, s3, region, access_key_id, secret_access_key, stream, bucket, manifest, .. } = running;
    let port = http.port();
    let dev = if port == 8000 { "--dev".to_owned() } else { format!("--dev {port}") };
    let mut text = format!("\nhotserve is ready: http://localhost:{port}/\n\nAsk it:\n  curl localhost:{port}/state\n");
    for sample in samples::all() {
        let _ = writeln!(text, "  curl localhost:{port}/predict/{} -d '{}'", sample.name, sample.example.trim());
    }
    let _ = writeln!(text, "\nChange what it serves, from another terminal:\n  {program} publish state 42 {dev}");
    if let (Some(path), Some(sample)) = (retrained, samples::all().first()) {
        let _ = writeln!(text, "  {program} publish model {path} --name {} --version 2 {dev}", sample.name);
        let _ = writeln!(text, "  {program} rollback --model {} {dev}", sample.name);
    }
    let _ = write!(
        text,
        "
Reach the stream {stream:?} and the bucket {bucket:?} with any AWS tool:
  export AWS_ENDPOINT_URL_KINESIS=http://{kinesis} AWS_ENDPOINT_URL_S3=http://{s3}
  export AWS_REGION={region} AWS_DEFAULT_REGION={region}
  export AWS_ACCESS_KEY_ID={access_key_id} AWS_SECRET_ACCESS_KEY={secret_access_key}
  export KINESIS_STREAM={stream}
"
    );
    if let Some(manifest) = manifest {
        let _ = writeln!(text, "  export HOTSERVE_MANIFEST={manifest}");
    }
    if temporary {
        text.push_str("\nAll of it is gone when this ends (Ctrl-C); --data-dir DIR keeps it.\n");
    }
    text
}
