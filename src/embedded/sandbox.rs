//! A stream and a bucket to try things on, with somebody who publishes: for examples, and tests of programs that embed
//! hotserve.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use tempfile::TempDir;

use super::{Embedded, Error, Options};
use crate::aws::{Aws, Endpoints};
use crate::config::{HumanDuration, Settings};
use crate::id::Version;
use crate::publisher::{Draft, Model, Publisher};

const STREAM: &str = "sandbox";
const BUCKET: &str = "sandbox";

/// A Kinesis stream and an S3 bucket in this process, on free ports. They are gone when it is dropped.
///
/// ```no_run
/// # async fn try_it() -> Result<(), Box<dyn std::error::Error>> {
/// let sandbox = hotserve::embedded::Sandbox::start().await?;
/// let builder = hotserve::Builder::new(sandbox.settings()).endpoints(sandbox.endpoints());
/// let running = builder.build().await?.start();
/// sandbox.publish_state("prices", Some(1), [1.0, 1.08]).await?;
/// # Ok(())
/// # }
/// ```
pub struct Sandbox {
    embedded: Embedded,
    publisher: Publisher,
    folder: TempDir,
}

impl Sandbox {
    /// Starts the endpoints, and makes the stream and the bucket.
    pub async fn start() -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("hotserve-sandbox-").tempdir();
        let folder =
            folder.map_err(|error| Error::Folder { folder: "(temporary)".to_owned(), detail: error.to_string() })?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = Options { kinesis: any, s3: any, folder: folder.path().to_owned(), durable: false, faults: None };
        let embedded = Embedded::start(options).await?;
        let publisher = Publisher::new(&Box::pin(Aws::at(embedded.endpoints())).await, STREAM.to_owned());
        Box::pin(publisher.ensure_bucket(BUCKET)).await.map_err(|error| publish(&error))?;
        Box::pin(publisher.ensure_stream(1)).await.map_err(|error| publish(&error))?;
        Ok(Self { embedded, publisher, folder })
    }

    /// Where they are.
    pub fn endpoints(&self) -> Endpoints {
        self.embedded.endpoints()
    }

    /// Settings of a server that follows the stream, on a free port of this machine.
    pub fn settings(&self) -> Settings {
        Settings {
            stream: Some(STREAM.to_owned()),
            host: Some(Ipv4Addr::LOCALHOST.into()),
            port: Some(0),
            poll_interval: Some(HumanDuration(Duration::from_millis(200))),
            lookback: Some(HumanDuration(Duration::from_secs(24 * 3600))),
            allow: vec![format!("s3://{BUCKET}")],
            ..Settings::default()
        }
    }

    /// Publishes a state; without a version the stream's own order counts.
    pub async fn publish_state(&self, key: &str, version: Option<u64>, state: impl Serialize) -> Result<(), Error> {
        let state = serde_json::value::to_raw_value(&state).map_err(|error| publish(&error))?;
        let key = key.parse().map_err(|error| publish::<crate::id::Invalid>(&error))?;
        self.announce(Draft::state(key, parse(version)?, state)).await
    }

    /// Uploads a model and publishes it.
    pub async fn publish_model(
        &self,
        name: &str,
        version: Option<u64>,
        format: &str,
        artifact: &[u8],
    ) -> Result<(), Error> {
        let invalid = |error| publish::<crate::id::Invalid>(&error);
        let (name, format) = (name.parse().map_err(invalid)?, format.parse().map_err(invalid)?);
        let version = parse(version)?;
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).map_err(|error| publish(&error))?;
        tokio::fs::write(file.path(), artifact).await.map_err(|error| publish(&error))?;
        let to = format!("s3://{BUCKET}/models");
        let place =
            Box::pin(self.publisher.store(file.path(), &name, &to, |_| {})).await.map_err(|error| publish(&error))?;
        self.announce(Draft::model(Model { name, version, label: None, format, place, golden: None })).await
    }

    /// Publishes a message as it is.
    pub async fn publish_message(&self, message: impl AsRef<[u8]>) -> Result<(), Error> {
        let published = self.publisher.announce("sandbox", message.as_ref()).await;
        published.map(drop).map_err(|error| publish(&error))
    }

    async fn announce(&self, draft: Draft) -> Result<(), Error> {
        Box::pin(self.publisher.publish(draft)).await.map(drop).map_err(|error| publish(&error))
    }
}

fn parse(version: Option<u64>) -> Result<Option<Version>, Error> {
    version.map(Version::try_from).transpose().map_err(|error| publish(&error))
}

fn publish<E: std::error::Error + 'static>(error: &E) -> Error {
    Error::Publish { detail: crate::error::chain(error) }
}
