//! The AWS clients: endpoints, credentials and timeouts in one place, and one reading of everything that AWS answers
//! instead of what was asked.
#![expect(clippy::disallowed_types, reason = "an adapter")]

mod identity;

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextMut,
};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::service_config::ServiceConfigKey;

use crate::error::chain;
use crate::telemetry::{self, TraceContext};

pub use identity::Credentials;

/// Endpoints and dummy credentials of stand-ins, given instead of the environment's.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// `http://127.0.0.1:4567`
    pub kinesis: String,
    /// `http://127.0.0.1:4569`
    pub s3: String,
    /// The region to sign for.
    pub region: String,
    /// The access key id.
    pub access_key_id: String,
    /// The secret access key.
    pub secret_access_key: String,
}

/// Whether a client tries again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// A command that a person waits for: the SDK's standard retries.
    Standard,
    /// A loop of ours decides: the SDK's would burn the shard's five reads a second, and hide throttling.
    Ours,
}

/// What the AWS clients are made from.
#[derive(Debug, Clone)]
pub struct Aws {
    config: SdkConfig,
    endpoints: Option<Endpoints>,
}

impl Aws {
    /// Reads the environment, the profile files and so on, as every AWS tool does.
    pub async fn from_env() -> Self {
        let config = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts()).load().await;
        Self { config, endpoints: None }
    }

    /// Uses these endpoints and nothing from the environment.
    pub async fn at(endpoints: Endpoints) -> Self {
        let credentials = aws_sdk_kinesis::config::Credentials::new(
            &endpoints.access_key_id,
            &endpoints.secret_access_key,
            None,
            None,
            "endpoints",
        );
        let config = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(timeouts())
            .region(Region::new(endpoints.region.clone()))
            .credentials_provider(credentials)
            .load()
            .await;
        Self { config, endpoints: Some(endpoints) }
    }

    /// A Kinesis client; `clock` follows the service's clock.
    pub fn kinesis(&self, retries: Retries, clock: &Arc<ServerClock>) -> aws_sdk_kinesis::Client {
        let mut builder = aws_sdk_kinesis::config::Builder::from(&self.config)
            .retry_config(retry_config(retries))
            .interceptor(TraceCarrier)
            .interceptor(ClockReader(Arc::clone(clock)));
        if let Some(endpoints) = &self.endpoints {
            builder = builder.endpoint_url(&endpoints.kinesis);
        }
        aws_sdk_kinesis::Client::from_conf(builder.build())
    }

    /// An S3 client. Stand-ins have no host name for each bucket: with an endpoint set, the bucket goes into the path.
    pub fn s3(&self, retries: Retries) -> aws_sdk_s3::Client {
        let mut builder = aws_sdk_s3::config::Builder::from(&self.config)
            .retry_config(retry_config(retries))
            .interceptor(TraceCarrier)
            .force_path_style(self.has_s3_endpoint());
        if let Some(endpoints) = &self.endpoints {
            builder = builder.endpoint_url(&endpoints.s3);
        }
        if retries == Retries::Standard {
            // An attempt includes the upload, which takes what it takes; a stalled one is found by its throughput.
            let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT);
            builder = builder
                .timeout_config(timeouts.disable_operation_attempt_timeout().disable_operation_timeout().build());
        }
        aws_sdk_s3::Client::from_conf(builder.build())
    }

    fn has_s3_endpoint(&self) -> bool {
        self.endpoint_override("s3").is_some()
    }

    /// The endpoint that is configured for a service instead of AWS' own: `kinesis`, `s3`, `sts`.
    pub fn endpoint_override(&self, service: &str) -> Option<String> {
        match (&self.endpoints, service) {
            (Some(endpoints), "kinesis") => return Some(endpoints.kinesis.clone()),
            (Some(endpoints), "s3") => return Some(endpoints.s3.clone()),
            _ => {}
        }
        let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url");
        let configured = key.build().ok().and_then(|key| self.config.service_config()?.load_config(key));
        configured.or_else(|| self.config.endpoint_url().map(str::to_owned))
    }

    /// The region, if there is one.
    pub fn region(&self) -> Option<&str> {
        self.config.region().map(Region::as_ref)
    }

    /// The same with credentials that nobody accepts: an endpoint that refuses them is there.
    pub fn without_credentials(&self) -> Self {
        let nobody = aws_sdk_kinesis::config::Credentials::new("nobody", "nothing", None, None, "placeholder");
        let provider = aws_sdk_kinesis::config::SharedCredentialsProvider::new(nobody);
        Self {
            config: self.config.to_builder().credentials_provider(provider).build(),
            endpoints: self.endpoints.clone(),
        }
    }

    /// Whether there are a region and credentials at all; asks the chain of providers, which can take seconds.
    pub async fn check(&self) -> Result<(), Fault> {
        if self.config.region().is_none() {
            let message = "no AWS region: set AWS_REGION, or a region in the profile (~/.aws/config)";
            return Err(Fault { kind: FaultKind::Config, message: message.to_owned() });
        }
        self.credentials().await.map(drop).map_err(|Fault { kind, message }| {
            let cure = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the instance, task or \
                        service account a role";
            Fault { kind, message: format!("{message}: {cure}") }
        })
    }
}

const CONNECT: Duration = Duration::from_secs(3);

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT)
        .operation_attempt_timeout(Duration::from_secs(10))
        .operation_timeout(Duration::from_secs(30))
        .build()
}

fn retry_config(retries: Retries) -> RetryConfig {
    match retries {
        Retries::Standard => RetryConfig::standard(),
        Retries::Ours => RetryConfig::disabled(),
    }
}

/// The service's clock, read from the `Date` header of its answers: a time sent to Kinesis may not be in its future,
/// and the clock of a container can be ahead.
#[derive(Debug, Default)]
pub struct ServerClock {
    offset_ms: AtomicI64,
}

impl ServerClock {
    /// Now, in milliseconds since 1970, as the service tells it (to the second), or as this machine does before the
    /// service has answered.
    pub fn now_ms(&self) -> u64 {
        local_ms().saturating_add_signed(self.offset_ms())
    }

    /// How far the service's clock is ahead of this machine's, in milliseconds, exact to the second.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }
}

fn local_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct ClockReader(Arc<ServerClock>);

impl Intercept for ClockReader {
    fn name(&self) -> &'static str {
        "ClockReader"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(server) = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok()) {
            let local = i64::try_from(local_ms()).unwrap_or(i64::MAX);
            self.0.offset_ms.store(server.secs().saturating_mul(1000).saturating_sub(local), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Tells which trace a call belongs to. The header is not signed: what stands between may write another one.
#[derive(Debug)]
struct TraceCarrier;

impl Intercept for TraceCarrier {
    fn name(&self) -> &'static str {
        "TraceCarrier"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(trace) = telemetry::current() {
            context.request_mut().headers_mut().insert(TraceContext::NAME, trace.to_string());
        }
        Ok(())
    }
}

/// What AWS answered instead of what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What to do about it.
    pub kind: FaultKind,
    /// What it is, for a person.
    pub message: String,
}

/// The kinds of fault, by what to do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Too many calls: slow down.
    Throttled,
    /// The iterator is too old: take a new one from the last record.
    ExpiredIterator,
    /// The service does not like what was sent: an iterator, a sequence number, a time.
    InvalidArgument,
    /// The stream, shard, bucket or object is not there.
    NotFound,
    /// The resource is being created or changed: wait.
    NotReady,
    /// The service says no: a policy has to be changed, which can happen any time.
    Denied,
    /// There are no credentials to ask with.
    Credentials,
    /// The client cannot be made: a setting is missing.
    Config,
    /// Anything else: the network, a 5xx, an answer that makes no sense. Try again.
    Unavailable,
}

impl FaultKind {
    /// A bounded name for logs, metrics and the status page.
    pub fn code(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::ExpiredIterator => "expired_iterator",
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::NotReady => "not_ready",
            Self::Denied => "access_denied",
            Self::Credentials => "no_credentials",
            Self::Config => "configuration",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Fault {
    /// A fault that passes by itself.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { kind: FaultKind::Unavailable, message: message.into() }
    }

    /// Something that is still being made.
    pub(crate) fn not_ready(message: impl Into<String>) -> Self {
        Self { kind: FaultKind::NotReady, message: message.into() }
    }

    /// Reads an error of any operation.
    pub fn of<E, R>(error: &SdkError<E, R>) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let code = error.code().unwrap_or_default();
        let kind = match code {
            "ProvisionedThroughputExceededException"
            | "LimitExceededException"
            | "KMSThrottlingException"
            | "ThrottlingException"
            | "Throttling"
            | "SlowDown"
            | "RequestLimitExceeded" => FaultKind::Throttled,
            "ExpiredIteratorException" => FaultKind::ExpiredIterator,
            "InvalidArgumentException" | "ValidationException" | "SerializationException" => FaultKind::InvalidArgument,
            "ResourceNotFoundException" | "NoSuchKey" | "NoSuchBucket" | "NotFound" | "NoSuchVersion" => {
                FaultKind::NotFound
            }
            "ResourceInUseException" => FaultKind::NotReady,
            "AccessDeniedException"
            | "AccessDenied"
            | "KMSAccessDeniedException"
            | "KMSDisabledException"
            | "KMSInvalidStateException"
            | "KMSNotFoundException"
            | "KMSOptInRequired"
            | "AllAccessDisabled"
            | "PermanentRedirect"
            | "InvalidObjectState" => FaultKind::Denied,
            "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "SignatureDoesNotMatch"
            | "InvalidSignatureException"
            | "MissingAuthenticationTokenException"
            | "IncompleteSignatureException" => FaultKind::Credentials,
            _ => Self::kind_without_code(error),
        };
        let message = match (code, error.message()) {
            ("", _) => chain(error),
            (code, Some(message)) => format!("{code}: {message}"),
            (code, None) => code.to_owned(),
        };
        Self { kind, message: message.chars().take(400).collect() }
    }

    fn kind_without_code<E, R>(error: &SdkError<E, R>) -> FaultKind
    where
        E: StdError + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let mut source: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(error) = source {
            if error.is::<CredentialsError>() {
                return FaultKind::Credentials;
            }
            source = error.source();
        }
        match error {
            SdkError::ConstructionFailure(_) => FaultKind::Config,
            _ => FaultKind::Unavailable,
        }
    }
}
