//! Every setting of a server: parsed and validated once, before any socket opens.
//!
//! A setting comes from its flag, else its environment variable, else the file, else its default. [`Settings`] is the
//! one list of them, read by the command line and the file alike; [`Config`] is what the rest of the program sees.

mod admin;
mod gates;
mod listen;
mod manifest_uri;
mod origin;
mod reload;
mod stream;
mod tls;
mod trust;
mod units;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, FromArgMatches as _};
use serde::Deserialize;
use serde_json::value::RawValue;

pub use self::admin::{AdminConfig, TOKEN as ADMIN_TOKEN, Token};
pub use self::gates::{GatesConfig, Isolation, IsolationConfig, MemoryBudget, MemoryPolicy, Program};
pub use self::listen::{ListenConfig, Origins};
pub use self::manifest_uri::ManifestUri;
pub use self::origin::{Origin, Setting};
pub use self::reload::{RELOADS, Reloaded, Reloads};
pub use self::stream::{ConsumerMode, StartAt, StreamConfig};
pub use self::tls::{TlsBytes, TlsConfigs, TlsFiles};
pub use self::units::{HumanDuration, Size};
use crate::id::{ModelName, Slot, Version};
use crate::trust::{Required, Trust};

/// A setting that is missing or wrong: which one, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct Error {
    /// The setting, by its flag and environment variable, or its place in the file.
    pub setting: String,
    /// What is wrong and what to do.
    pub problem: String,
}

impl Error {
    /// A fault of one setting.
    pub fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into() }
    }
}

/// The settings of a server, as the flags, the environment and the file give them.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Kinesis stream to follow
    #[arg(long, env = "KINESIS_STREAM", value_name = "NAME")]
    pub stream: Option<String>,
    /// Address to listen on [default: 0.0.0.0]
    #[arg(long, env = "HOTSERVE_HOST", value_name = "IP")]
    pub host: Option<IpAddr>,
    /// Port to listen on; 0 takes any free one [default: 8000]
    #[arg(long, env = "PORT")]
    pub port: Option<u16>,
    /// Folder that keeps artifacts and the last good version of everything between runs [default: a temporary one]
    #[arg(long, env = "HOTSERVE_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The default state until a message brings one, as JSON [default: 0]
    #[arg(long, env = "HOTSERVE_INITIAL_STATE", value_name = "JSON")]
    pub initial_state: Option<String>,
    /// Model that /predict means when the path names none [default: the only one]
    #[arg(long, env = "HOTSERVE_DEFAULT_MODEL", value_name = "NAME")]
    pub default_model: Option<ModelName>,
    /// Where to begin: last, trim-horizon, latest or at-timestamp=2026-11-24T12:00:00Z [default: last]
    #[arg(long, env = "HOTSERVE_START", value_name = "PLACE")]
    pub start: Option<StartAt>,
    /// How records come: poll, fan-out (a registered consumer), or auto (fan-out where there is room) [default: poll]
    #[arg(long, env = "HOTSERVE_CONSUMER", value_name = "MODE", hide_possible_values = true)]
    pub consumer: Option<ConsumerMode>,
    /// Name of the fan-out consumer, one for each instance [default: hotserve-HOST-RANDOM]
    #[arg(long, env = "HOTSERVE_CONSUMER_NAME", value_name = "NAME")]
    pub consumer_name: Option<String>,
    /// Time between polls of a shard, 200ms or more [default: 1s, or what --fleet-size says]
    #[arg(long, env = "HOTSERVE_POLL_INTERVAL", value_name = "DURATION")]
    pub poll_interval: Option<HumanDuration>,
    /// How many instances poll the stream: each takes its share of the five reads a second of a shard
    #[arg(long, env = "HOTSERVE_FLEET_SIZE", value_name = "N")]
    pub fleet_size: Option<u32>,
    /// How far back to read on start at least, so that slots written before the last message are found [default: 0s]
    #[arg(long, env = "HOTSERVE_LOOKBACK", value_name = "DURATION")]
    pub lookback: Option<HumanDuration>,
    /// Object in S3 with the newest message of every slot: start from it, and read it again and again
    #[arg(long, env = "HOTSERVE_MANIFEST", value_name = "s3://BUCKET/KEY")]
    pub manifest: Option<String>,
    /// Time between reads of the manifest, 200ms or more [default: 30s]
    #[arg(long, env = "HOTSERVE_MANIFEST_INTERVAL", value_name = "DURATION")]
    pub manifest_interval: Option<HumanDuration>,
    /// Where artifacts may come from: s3://bucket/prefix or file:///folder/, repeatable [default: any bucket, no file]
    #[arg(long, env = "HOTSERVE_ALLOW", value_name = "URI", value_delimiter = ',')]
    #[serde(default)]
    pub allow: Vec<String>,
    /// Serve models at a URI whose message has no digest and size [default: false]
    #[arg(long, env = "HOTSERVE_ALLOW_UNVERIFIED", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_unverified: Option<bool>,
    /// Largest artifact [default: 4GiB]
    #[arg(long, env = "HOTSERVE_MAX_ARTIFACT", value_name = "SIZE")]
    pub max_artifact: Option<Size>,
    /// Largest message, before and after it is inflated [default: 10MiB]
    #[arg(long, env = "HOTSERVE_MAX_MESSAGE", value_name = "SIZE")]
    pub max_message: Option<Size>,
    /// How long to keep trying to fetch an artifact before its slot's next best gets its turn [default: 1m]
    #[arg(long, env = "HOTSERVE_FETCH_DEADLINE", value_name = "DURATION")]
    pub fetch_deadline: Option<HumanDuration>,
    /// Bytes a second that an artifact must come at; bytes that have come extend the deadline by as much [default: 16KiB]
    #[arg(long, env = "HOTSERVE_MIN_FETCH_RATE", value_name = "SIZE")]
    pub min_fetch_rate: Option<Size>,
    /// Largest body of a request [default: 8MiB]
    #[arg(long, env = "HOTSERVE_BODY_LIMIT", value_name = "SIZE")]
    pub body_limit: Option<Size>,
    /// Hold a slot at a version whatever is announced: fraud=11, state/pricing=7; repeatable
    #[arg(long = "pin", env = "HOTSERVE_PINS", value_name = "SLOT=VERSION", value_delimiter = ',')]
    #[serde(default)]
    pub pins: Vec<String>,
    /// Longest time for a request, from its head to its answer [default: 30s]
    #[arg(long, env = "HOTSERVE_REQUEST_TIMEOUT", value_name = "DURATION")]
    pub request_timeout: Option<HumanDuration>,
    /// Longest time from SIGTERM to the end of the last request, --drain-delay included [default: 25s]
    #[arg(long, env = "HOTSERVE_DRAIN", value_name = "DURATION")]
    pub drain: Option<HumanDuration>,
    /// How long after SIGTERM requests and connections are still taken, while /readyz says 503 and clients are told to
    /// leave: what a load balancer that asks /readyz takes to see it [default: 0s]
    #[arg(long, env = "HOTSERVE_DRAIN_DELAY", value_name = "DURATION")]
    pub drain_delay: Option<HumanDuration>,
    /// Threads for predictions too dear for the threads that answer [default: one less than the cores]
    #[arg(long, env = "HOTSERVE_COMPUTE_THREADS", value_name = "N")]
    pub compute_threads: Option<usize>,
    /// Rows of a dear model that are answered together when requests wait for it, where that is cheaper: 1 answers each
    /// request alone [default: 32]
    #[arg(long, env = "HOTSERVE_MAX_BATCH_ROWS", value_name = "N")]
    pub max_batch_rows: Option<usize>,
    /// File with the keys that may sign messages, as hotserve keygen prints them
    #[arg(long, env = "HOTSERVE_TRUSTED_KEYS", value_name = "FILE")]
    pub trusted_keys: Option<PathBuf>,
    /// What must be signed: off, model (all but states) or all [default: all with --trusted-keys, else off]
    #[arg(long, env = "HOTSERVE_REQUIRE_SIGNATURE", num_args = 0..=1, default_missing_value = "all", value_name = "WHAT")]
    pub require_signature: Option<Required>,
    /// Longest time that a request with x-min-version waits for that version [default: 1s]
    #[arg(long, env = "HOTSERVE_MIN_VERSION_WAIT", value_name = "DURATION")]
    pub min_version_wait: Option<HumanDuration>,
    /// File with the token for commands at /admin; HOTSERVE_ADMIN_TOKEN may hold it instead [default: no commands]
    #[arg(long, env = "HOTSERVE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Address for /admin, where it is not to be on the server's port
    #[arg(long, env = "HOTSERVE_ADMIN_LISTEN", value_name = "IP:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// The token itself, for a host that has it already.
    #[arg(skip)]
    #[serde(skip)]
    pub admin_token: Option<Token>,
    /// Where a new model is tried: auto (a child process, where the program can be one), process or thread [default: auto]
    #[arg(long, env = "HOTSERVE_ISOLATION", value_name = "MODE", hide_possible_values = true)]
    pub isolation: Option<Isolation>,
    /// How long a model may take to be loaded, warmed up and checked in its child process [default: 1m]
    #[arg(long, env = "HOTSERVE_LOAD_TIMEOUT", value_name = "DURATION")]
    pub load_timeout: Option<HumanDuration>,
    /// Memory that models may take, new ones beside old: a size, none, or auto (80 % of the container's limit) [default: auto]
    #[arg(long, env = "HOTSERVE_MEMORY_BUDGET", value_name = "SIZE")]
    pub memory_budget: Option<MemoryBudget>,
    /// When a new model does not fit beside the old: availability (keep the old one) or resource (unload it first, and
    /// answer 503 meanwhile) [default: availability]
    #[arg(long, env = "HOTSERVE_MEMORY_POLICY", value_name = "POLICY", hide_possible_values = true)]
    pub memory_policy: Option<MemoryPolicy>,
    /// By how much a slot's version may grow at once: a slip, or somebody's 2^53-1, is refused [default: any]
    #[arg(long, env = "HOTSERVE_MAX_VERSION_JUMP", value_name = "N")]
    pub max_version_jump: Option<u64>,
    /// Keep the model before the served one in memory, for a way back at once [default: true, while the budget allows it]
    #[arg(long, env = "HOTSERVE_WARM_PREVIOUS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub warm_previous: Option<bool>,
    /// What a model must take and give: NAME=FILE with a signature as JSON, repeatable
    #[arg(long, env = "HOTSERVE_CONTRACT", value_name = "NAME=FILE", value_delimiter = ',')]
    #[serde(default)]
    pub contract: Vec<String>,
    /// Longest time that a model may take for one row
    #[arg(long, env = "HOTSERVE_MAX_ROW_TIME", value_name = "DURATION")]
    pub max_row_time: Option<HumanDuration>,
    /// How many times as long as the model it replaces a model may take for one row
    #[arg(long, env = "HOTSERVE_MAX_SLOWDOWN", value_name = "FACTOR")]
    pub max_slowdown: Option<f64>,
    /// Serve models that answer NaN or infinity where nothing expects it [default: false]
    #[arg(long, env = "HOTSERVE_ALLOW_NON_FINITE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_non_finite: Option<bool>,
    /// Connections that may be open; at the limit the longest idle one makes room [default: 16384, or what the limit of
    /// open files leaves]
    #[arg(long, env = "HOTSERVE_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,
    /// Requests that may be under way: more are answered 503 at once [default: any number]
    #[arg(long, env = "HOTSERVE_MAX_IN_FLIGHT", value_name = "N")]
    pub max_in_flight: Option<usize>,
    /// Longest time for the whole head of a request to come, and for a TLS handshake [default: 10s]
    #[arg(long, env = "HOTSERVE_HEAD_TIMEOUT", value_name = "DURATION")]
    pub head_timeout: Option<HumanDuration>,
    /// Longest time that a connection is kept without a request [default: 75s]
    #[arg(long, env = "HOTSERVE_IDLE_TIMEOUT", value_name = "DURATION")]
    pub idle_timeout: Option<HumanDuration>,
    /// Certificate of the server and those that lead to its authority, in PEM; read anew when it changes [default: no TLS]
    #[arg(long, env = "HOTSERVE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM
    #[arg(long, env = "HOTSERVE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Authorities, in PEM: who shows a certificate of one of them may give commands, without the token
    #[arg(long, env = "HOTSERVE_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Address for what is not for clients: the page, metrics, history, events, models, docs and /admin; nowhere else then
    #[arg(long, env = "HOTSERVE_OPS_LISTEN", value_name = "IP:PORT")]
    pub ops_listen: Option<SocketAddr>,
    /// Origin of pages that may ask from a browser.
    #[arg(
        long = "cors-origin",
        env = "HOTSERVE_CORS_ORIGINS",
        value_name = "ORIGIN",
        value_delimiter = ',',
        help = "Origin of pages that may ask from a browser: https://app.example.com, or * for any; repeatable [default: none]"
    )]
    #[serde(default)]
    pub cors_origins: Vec<String>,
}

impl Settings {
    /// Reads the settings of a TOML file.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let at = || format!("--config {}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| Error::new(at(), error.to_string()))?;
        toml::from_str(&text).map_err(|error| Error::new(at(), error.to_string()))
    }

    /// Reads the environment as `hotserve serve` does, with the file that `HOTSERVE_CONFIG` names behind it.
    pub fn from_env() -> Result<Self, Error> {
        #[derive(Args)]
        struct Environment {
            #[arg(long, env = "HOTSERVE_CONFIG")]
            config: Option<PathBuf>,
            #[command(flatten)]
            settings: Settings,
        }
        let wrong = |error: clap::Error| Error::new("the environment", error.to_string());
        let command = Environment::augment_args(clap::Command::new("hotserve"));
        let matches = command.try_get_matches_from(["hotserve"]).map_err(wrong)?;
        let found = Environment::from_arg_matches(&matches).map_err(wrong)?;
        let file = found.config.as_deref().map(Self::from_file).transpose()?.unwrap_or_default();
        Ok(found.settings.or(file))
    }

    /// These settings, and the others' where these have none.
    pub fn or(self, other: Self) -> Self {
        Self {
            stream: self.stream.or(other.stream),
            host: self.host.or(other.host),
            port: self.port.or(other.port),
            cache_dir: self.cache_dir.or(other.cache_dir),
            initial_state: self.initial_state.or(other.initial_state),
            default_model: self.default_model.or(other.default_model),
            start: self.start.or(other.start),
            consumer: self.consumer.or(other.consumer),
            consumer_name: self.consumer_name.or(other.consumer_name),
            poll_interval: self.poll_interval.or(other.poll_interval),
            fleet_size: self.fleet_size.or(other.fleet_size),
            lookback: self.lookback.or(other.lookback),
            manifest: self.manifest.or(other.manifest),
            manifest_interval: self.manifest_interval.or(other.manifest_interval),
            allow: if self.allow.is_empty() { other.allow } else { self.allow },
            allow_unverified: self.allow_unverified.or(other.allow_unverified),
            max_artifact: self.max_artifact.or(other.max_artifact),
            max_message: self.max_message.or(other.max_message),
            fetch_deadline: self.fetch_deadline.or(other.fetch_deadline),
            min_fetch_rate: self.min_fetch_rate.or(other.min_fetch_rate),
            body_limit: self.body_limit.or(other.body_limit),
            pins: if self.pins.is_empty() { other.pins } else { self.pins },
            request_timeout: self.request_timeout.or(other.request_timeout),
            drain: self.drain.or(other.drain),
            drain_delay: self.drain_delay.or(other.drain_delay),
            compute_threads: self.compute_threads.or(other.compute_threads),
            max_batch_rows: self.max_batch_rows.or(other.max_batch_rows),
            trusted_keys: self.trusted_keys.or(other.trusted_keys),
            require_signature: self.require_signature.or(other.require_signature),
            min_version_wait: self.min_version_wait.or(other.min_version_wait),
            admin_token_file: self.admin_token_file.or(other.admin_token_file),
            admin_listen: self.admin_listen.or(other.admin_listen),
            admin_token: self.admin_token.or(other.admin_token),
            isolation: self.isolation.or(other.isolation),
            load_timeout: self.load_timeout.or(other.load_timeout),
            memory_budget: self.memory_budget.or(other.memory_budget),
            memory_policy: self.memory_policy.or(other.memory_policy),
            max_version_jump: self.max_version_jump.or(other.max_version_jump),
            warm_previous: self.warm_previous.or(other.warm_previous),
            contract: if self.contract.is_empty() { other.contract } else { self.contract },
            max_row_time: self.max_row_time.or(other.max_row_time),
            max_slowdown: self.max_slowdown.or(other.max_slowdown),
            allow_non_finite: self.allow_non_finite.or(other.allow_non_finite),
            max_connections: self.max_connections.or(other.max_connections),
            max_in_flight: self.max_in_flight.or(other.max_in_flight),
            head_timeout: self.head_timeout.or(other.head_timeout),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            ops_listen: self.ops_listen.or(other.ops_listen),
            cors_origins: if self.cors_origins.is_empty() { other.cors_origins } else { self.cors_origins },
        }
    }

    /// Checks every setting and fills in the defaults.
    pub fn validate(self) -> Result<Config, Error> {
        let stream = StreamConfig::from_settings(&self)?;
        let trust = trust::from_settings(&self)?;
        let admin = AdminConfig::from_settings(&self)?;
        let gates = GatesConfig::from_settings(&self)?;
        let mut reloads = Reloads::default();
        if let (Some(trust), Some(file)) = (&trust, &self.trusted_keys) {
            reloads.add("trusted_keys", trust::reload(Arc::clone(trust), file.clone()));
        }
        let token = admin.as_ref().and_then(|admin| admin.token.clone());
        if let (Some(token), Some(file), None) = (token, &self.admin_token_file, &self.admin_token) {
            reloads.add("admin_token", admin::reload(token, file.clone()));
        }
        let connections = ListenConfig::from_settings(&self)?;
        let initial_state = self.initial_state.unwrap_or_else(|| "0".to_owned());
        let initial_state = RawValue::from_string(initial_state)
            .map_err(|error| Error::new("--initial-state (HOTSERVE_INITIAL_STATE)", format!("not JSON: {error}")))?;
        let manifest_interval = at_least(
            "--manifest-interval (HOTSERVE_MANIFEST_INTERVAL)",
            self.manifest_interval,
            Duration::from_secs(30),
            Duration::from_millis(200),
        )?;
        let manifest = ManifestUri::from_setting(self.manifest)?;
        // A probe reads artifacts too, and its folder is another one.
        let cache_dir = self
            .cache_dir
            .map(std::path::absolute)
            .transpose()
            .map_err(|error| Error::new("--cache-dir (HOTSERVE_CACHE_DIR)", format!("{error}: name a folder")))?;
        let request_timeout = at_least(
            "--request-timeout (HOTSERVE_REQUEST_TIMEOUT)",
            self.request_timeout,
            Duration::from_secs(30),
            Duration::from_millis(1),
        )?;
        let drain = self.drain.map_or(Duration::from_secs(25), |drain| drain.0);
        let drain_delay = self.drain_delay.map_or(Duration::ZERO, |delay| delay.0);
        if drain_delay > drain {
            let problem =
                format!("{drain_delay:?} is part of --drain, which is {drain:?}: choose less, or raise --drain");
            return Err(Error::new("--drain-delay (HOTSERVE_DRAIN_DELAY)", problem));
        }
        let allow = self.allow.iter().map(|text| text.parse()).collect::<Result<Vec<AllowedPrefix>, _>>()?;
        let pins = self.pins.iter().map(|text| pin(text)).collect::<Result<_, _>>()?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Config {
            stream,
            gates,
            manifest: manifest.map(|uri| ManifestConfig { uri, interval: manifest_interval }),
            store: StoreConfig {
                cache_dir,
                allow,
                max_artifact: self.max_artifact.map_or(4 << 30, |size| size.0),
                fetch_deadline: self.fetch_deadline.map_or(Duration::from_secs(60), |deadline| deadline.0),
                min_fetch_rate: self.min_fetch_rate.map_or(16 << 10, |rate| rate.0),
            },
            message: MessageConfig {
                max_bytes: usize::try_from(self.max_message.map_or(10 << 20, |size| size.0)).unwrap_or(usize::MAX),
                require_digest: !self.allow_unverified.unwrap_or(false),
                max_version_jump: self.max_version_jump,
                trust,
            },
            http: HttpConfig {
                listen: SocketAddr::new(self.host.unwrap_or(IpAddr::from([0, 0, 0, 0])), self.port.unwrap_or(8000)),
                body_limit: usize::try_from(self.body_limit.map_or(8 << 20, |size| size.0)).unwrap_or(usize::MAX),
                request_timeout,
                drain_delay,
                drain,
                default_model: self.default_model,
                // One processor is left to those who answer at once.
                compute_threads: self.compute_threads.unwrap_or(cores.saturating_sub(1)).max(1),
                min_version_wait: self.min_version_wait.map_or(Duration::from_secs(1), |wait| wait.0),
                admin,
                connections,
            },
            initial_state,
            pins,
            reloads,
        })
    }
}

/// `fraud=11`, `model/fraud=11` or `state/pricing=7`.
fn pin(text: &str) -> Result<(Slot, Version), Error> {
    let wrong = |why: String| Error::new("--pin (HOTSERVE_PINS)", format!("{text:?}: {why}"));
    let (slot, version) =
        text.split_once('=').ok_or_else(|| wrong("write MODEL=VERSION or state/KEY=VERSION".into()))?;
    let slot = match slot.split_once('/') {
        Some(("state", key)) => key.parse().map(Slot::State),
        Some(("model", name)) => name.parse().map(Slot::Model),
        _ => slot.parse().map(Slot::Model),
    };
    let version = version.parse::<u64>().map_err(|error| wrong(format!("the version: {error}")))?;
    let version = Version::try_from(version).map_err(|error| wrong(error.to_string()))?;
    Ok((slot.map_err(|error| wrong(error.to_string()))?, version))
}

fn at_least(
    setting: &str,
    value: Option<HumanDuration>,
    default: Duration,
    floor: Duration,
) -> Result<Duration, Error> {
    let value = value.map_or(default, |value| value.0);
    if value < floor {
        return Err(Error::new(setting, format!("{value:?} is too short: {floor:?} or more")));
    }
    Ok(value)
}

/// What a server is to be; valid.
#[derive(Debug)]
pub struct Config {
    /// The stream.
    pub stream: StreamConfig,
    /// The manifest, if there is one.
    pub manifest: Option<ManifestConfig>,
    /// Where artifacts come from and go.
    pub store: StoreConfig,
    /// What a message may be.
    pub message: MessageConfig,
    /// What a model must pass before it is served.
    pub gates: GatesConfig,
    /// The HTTP interface.
    pub http: HttpConfig,
    /// The default state until a message brings one.
    pub initial_state: Box<RawValue>,
    /// Slots that are held at a version.
    pub pins: BTreeMap<Slot, Version>,
    /// What can be read anew while it runs.
    pub reloads: Reloads,
}

/// The manifest.
#[derive(Debug, Clone)]
pub struct ManifestConfig {
    /// The object.
    pub uri: ManifestUri,
    /// Time between reads.
    pub interval: Duration,
}

/// Where artifacts come from and go.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The folder that survives a restart; none means a temporary one.
    pub cache_dir: Option<PathBuf>,
    /// Where artifacts may come from; empty means any bucket and no file.
    pub allow: Vec<AllowedPrefix>,
    /// The largest artifact, in bytes.
    pub max_artifact: u64,
    /// How long to keep trying to fetch one.
    pub fetch_deadline: Duration,
    /// The least bytes a second; 0 asks for no rate.
    pub min_fetch_rate: u64,
}

/// What a message may be.
#[derive(Debug, Clone)]
pub struct MessageConfig {
    /// The largest payload, before and after it is inflated.
    pub max_bytes: usize,
    /// Whether a model at a URI must carry its digest and size.
    pub require_digest: bool,
    /// By how much a slot's version may grow at once.
    pub max_version_jump: Option<u64>,
    /// The keys that may sign messages, and what must be signed.
    pub trust: Option<Arc<Trust>>,
}

/// The HTTP interface.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The largest body of a request, in bytes.
    pub body_limit: usize,
    /// The longest time from a request's head to its answer.
    pub request_timeout: Duration,
    /// How long requests and connections are still taken once the shutdown has begun.
    pub drain_delay: Duration,
    /// The longest time from the beginning of the shutdown to the end of the last request.
    pub drain: Duration,
    /// The model of a `/predict` that names none.
    pub default_model: Option<ModelName>,
    /// Threads of the compute pool.
    pub compute_threads: usize,
    /// The longest time that a request waits for the version that it asks for, unless it says itself.
    pub min_version_wait: Duration,
    /// Whether commands are taken, and from whom.
    pub admin: Option<AdminConfig>,
    /// How clients are let in.
    pub connections: ListenConfig,
}

/// A place where artifacts may come from: everything that begins with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedPrefix(String);

impl AllowedPrefix {
    /// Whether a location is in this place.
    pub fn covers(&self, uri: &str) -> bool {
        // "s3://models" must not cover "s3://models-of-others/…".
        uri.strip_prefix(&self.0).is_some_and(|rest| self.0.ends_with('/') || rest.starts_with('/') || rest.is_empty())
    }
}

impl AllowedPrefix {
    /// The folder, where the place is one of this machine.
    pub fn folder(&self) -> Option<&str> {
        self.0.strip_prefix("file://")
    }
}

impl FromStr for AllowedPrefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let rest = text.strip_prefix("s3://").or_else(|| text.strip_prefix("file:///"));
        let sound = rest.is_some_and(|rest| !rest.is_empty() && !rest.split('/').any(|s| matches!(s, "." | "..")));
        if sound {
            Ok(Self(text.to_owned()))
        } else {
            let problem = format!("{text:?} is neither s3://bucket/prefix nor file:///folder/");
            Err(Error::new("--allow (HOTSERVE_ALLOW)", problem))
        }
    }
}

/// Makes a setting that is written as text readable from the file.
macro_rules! deserialize_from_text {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
deserialize_from_text!(StartAt, Required, MemoryBudget);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_what_is_in_it_and_no_namesake() {
        let covers = |prefix: &str, uri: &str| prefix.parse::<AllowedPrefix>().expect("valid").covers(uri);
        assert!(covers("s3://models", "s3://models/a/b"));
        assert!(covers("s3://models/", "s3://models/a/b"));
        assert!(covers("s3://models/fraud", "s3://models/fraud/1"));
        assert!(!covers("s3://models", "s3://models-of-others/a"));
        assert!(!covers("s3://models/fraud", "s3://models/fraudulent/1"));
        assert!(!covers("s3://models", "file:///models/a"));
        for bad in ["", "models", "s3://", "http://x/", "s3://models/../x"] {
            assert!(bad.parse::<AllowedPrefix>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_relative_cache_folder_is_meant_from_where_the_server_starts() {
        let cache_dir = Some("cache".into());
        let settings = Settings { stream: Some("updates".to_owned()), cache_dir, ..Settings::default() };
        let cache_dir = settings.validate().expect("valid").store.cache_dir.expect("a folder");
        assert_eq!(cache_dir, std::env::current_dir().expect("a folder").join("cache"));
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let named = |settings: Settings| settings.validate().expect_err("invalid").setting;
        let good = Settings { stream: Some("updates".to_owned()), ..Settings::default() };
        assert!(good.clone().validate().is_ok());
        assert_eq!(named(Settings::default()), "--stream (KINESIS_STREAM)");
        assert_eq!(named(Settings { stream: Some("a/b".to_owned()), ..good.clone() }), "--stream (KINESIS_STREAM)");
        assert_eq!(
            named(Settings { initial_state: Some("{".to_owned()), ..good.clone() }),
            "--initial-state (HOTSERVE_INITIAL_STATE)"
        );
        let fast = Some(HumanDuration(Duration::from_millis(100)));
        assert_eq!(named(Settings { poll_interval: fast, ..good.clone() }), "--poll-interval (HOTSERVE_POLL_INTERVAL)");
        assert_eq!(named(Settings { allow: vec!["models".to_owned()], ..good.clone() }), "--allow (HOTSERVE_ALLOW)");
        let contract = vec!["m=/nowhere/contract.json".to_owned()];
        assert_eq!(named(Settings { contract, ..good.clone() }), "--contract (HOTSERVE_CONTRACT)");
        assert_eq!(
            named(Settings { max_slowdown: Some(0.5), ..good.clone() }),
            "--max-slowdown (HOTSERVE_MAX_SLOWDOWN)"
        );
        let long = Some(HumanDuration(Duration::from_secs(26)));
        assert_eq!(named(Settings { drain_delay: long, ..good.clone() }), "--drain-delay (HOTSERVE_DRAIN_DELAY)");
        let manifest = Some("manifest.json".to_owned());
        assert_eq!(named(Settings { manifest, ..good.clone() }), "--manifest (HOTSERVE_MANIFEST)");
        for pin in ["fraud", "fraud=x", "fraud=0", "a b=1", "=1"] {
            assert_eq!(
                named(Settings { pins: vec![pin.to_owned()], ..good.clone() }),
                "--pin (HOTSERVE_PINS)",
                "{pin}"
            );
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file: Settings = toml::from_str("stream = \"a\"\nport = 1\npoll-interval = \"2s\"").expect("valid");
        let flags = Settings { stream: Some("b".to_owned()), ..Settings::default() };
        let config = flags.or(file).validate().expect("valid");
        assert_eq!(config.stream.name, "b");
        assert_eq!(config.http.listen.port(), 1);
        assert_eq!(config.stream.poll_interval, Some(Duration::from_secs(2)));
        assert!(toml::from_str::<Settings>("strem = \"a\"").is_err(), "a misspelt setting is an error");
    }
}
