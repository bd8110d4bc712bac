//! Which stream a command means: one by its name, or that of a running `hotserve dev`.

use super::running::Running;
use crate::aws::Aws;
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Kinesis stream
    #[arg(long, env = "KINESIS_STREAM", value_name = "NAME")]
    pub(super) stream: Option<String>,
    /// Use the running `hotserve dev`: the one of this HTTP port, or the last one started
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0")]
    dev: Option<u16>,
}

/// The stream, and the way there.
pub(super) struct Resolved {
    pub(super) aws: Aws,
    pub(super) stream: String,
    /// The bucket of a `hotserve dev`.
    pub(super) bucket: Option<String>,
}

impl Target {
    /// The stream, after a look whether there are a region and credentials to ask with.
    pub(super) async fn resolve(self) -> anyhow::Result<Resolved> {
        let resolved = self.locate().await?;
        resolved.aws.check().await?;
        Ok(resolved)
    }

    /// The stream, with no question asked.
    pub(super) async fn locate(self) -> anyhow::Result<Resolved> {
        // KINESIS_STREAM in the environment must not keep anybody from --dev.
        if let Some(port) = self.dev {
            let running = Running::find(Some(port).filter(|port| *port != 0))?;
            let aws = Aws::at(running.endpoints()).await;
            return Ok(Resolved { aws, stream: running.stream, bucket: Some(running.bucket) });
        }
        let stream = self.stream.filter(|stream| !stream.is_empty()).ok_or_else(|| {
            config::Error::new(
                "--stream (KINESIS_STREAM)",
                "missing: name the stream, or use a hotserve dev with --dev",
            )
        })?;
        Ok(Resolved { aws: Aws::from_env().await, stream, bucket: None })
    }
}
