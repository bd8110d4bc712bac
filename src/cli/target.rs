//! Which stream and which manifest a command means.

use super::running::Running;
use crate::aws::{Aws, Retries};
use crate::config::{self, ManifestUri};
use crate::manifest::Limits;
use crate::manifest::object::ManifestObject;
use crate::publisher::Publisher;

#[derive(Debug, Default, clap::Args)]
pub(super) struct Target {
    /// Kinesis stream
    #[arg(long, env = "KINESIS_STREAM", value_name = "NAME")]
    pub(super) stream: Option<String>,
    /// Object in S3 with the newest message of every slot
    #[arg(long, env = "HOTSERVE_MANIFEST", value_name = "s3://BUCKET/KEY")]
    manifest: Option<String>,
    /// Mean the running `hotserve dev`: the one of this HTTP port, or the last one started
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0")]
    dev: Option<u16>,
}

/// A target that can be spoken to.
pub(super) struct Resolved {
    pub(super) aws: Aws,
    stream: Option<String>,
    pub(super) manifest: Option<ManifestUri>,
    /// The bucket of a `hotserve dev`.
    pub(super) bucket: Option<String>,
}

impl Target {
    /// The target, after a look whether there are a region and credentials to ask with.
    pub(super) async fn resolve(self) -> anyhow::Result<Resolved> {
        let resolved = self.locate().await?;
        resolved.aws.check().await?;
        Ok(resolved)
    }

    /// The target, with no question asked.
    pub(super) async fn locate(self) -> anyhow::Result<Resolved> {
        // What the environment says must not keep anybody from --dev.
        if let Some(port) = self.dev {
            let running = Running::find(Some(port).filter(|port| *port != 0))?;
            let aws = Aws::at(running.endpoints()).await;
            let manifest = ManifestUri::from_setting(running.manifest)?;
            return Ok(Resolved { aws, stream: Some(running.stream), manifest, bucket: Some(running.bucket) });
        }
        let stream = self.stream.filter(|stream| !stream.is_empty());
        let manifest = ManifestUri::from_setting(self.manifest)?;
        if stream.is_none() && manifest.is_none() {
            return Err(no_stream().into());
        }
        Ok(Resolved { aws: Aws::from_env().await, stream, manifest, bucket: None })
    }
}

impl Target {
    /// The manifest at this place, or the one that the flags mean.
    pub(super) async fn manifest(self, uri: Option<ManifestUri>) -> anyhow::Result<ManifestObject> {
        let Some(uri) = uri else {
            // Without a stream too: it is the manifest that is missing.
            let nothing = self.dev.is_none() && ManifestUri::from_setting(self.manifest.clone())?.is_none();
            return if nothing { Err(no_manifest().into()) } else { Ok(self.resolve().await?.manifest()?) };
        };
        let resolved = Self { manifest: Some(uri.to_string()), ..self }.resolve().await?;
        Ok(resolved.object(uri))
    }
}

impl Resolved {
    pub(super) fn stream(&self) -> Result<&str, config::Error> {
        self.stream.as_deref().ok_or_else(no_stream)
    }

    pub(super) fn manifest(&self) -> Result<ManifestObject, config::Error> {
        self.manifest.clone().map(|uri| self.object(uri)).ok_or_else(no_manifest)
    }

    fn object(&self, uri: ManifestUri) -> ManifestObject {
        ManifestObject::new(&self.aws, Retries::Standard, uri, Limits::default().bytes)
    }

    /// A publisher to the stream, through the manifest if there is one.
    pub(super) fn publisher(&self) -> Result<Publisher, config::Error> {
        let manifest = self.manifest.clone().map(|uri| self.object(uri));
        Ok(Publisher::new(&self.aws, self.stream()?.to_owned()).with_manifest(manifest))
    }
}

fn no_stream() -> config::Error {
    let problem = "missing: name the stream, or mean a hotserve dev with --dev";
    config::Error::new("--stream (KINESIS_STREAM)", problem)
}

fn no_manifest() -> config::Error {
    let problem = "missing: say s3://bucket/prefix/manifest.json, or start hotserve dev with --manifest";
    config::Error::new("--manifest (HOTSERVE_MANIFEST)", problem)
}
