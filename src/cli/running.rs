//! How commands with `--dev` find a running `hotserve dev`: a file in the user's runtime folder, one for each HTTP port.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::aws::Endpoints;

/// What a running `hotserve dev` says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Running {
    /// Where its HTTP interface is.
    pub(super) http: SocketAddr,
    pub(super) kinesis: SocketAddr,
    pub(super) s3: SocketAddr,
    pub(super) region: String,
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) stream: String,
    pub(super) bucket: String,
    /// Its manifest, if it has one.
    pub(super) manifest: Option<String>,
    /// What whoever gives it commands must present.
    #[serde(default)]
    pub(super) admin_token: String,
}

impl Running {
    pub(super) fn endpoints(&self) -> Endpoints {
        Endpoints {
            kinesis: format!("http://{}", self.kinesis),
            s3: format!("http://{}", self.s3),
            region: self.region.clone(),
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
        }
    }

    /// Writes the file; it goes when the answer is dropped.
    #[cfg(feature = "embedded")]
    pub(super) fn announce(&self) -> anyhow::Result<Announced> {
        use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
        let folder = folder();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let path = folder.join(format!("{}.json", self.http.port()));
        let mut file = tempfile::NamedTempFile::new_in(&folder)?;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600))?;
        serde_json::to_writer(&mut file, self)?;
        file.persist(&path)?;
        Ok(Announced { path })
    }

    /// The running `hotserve dev`: that of this HTTP port, or the one that was started last.
    pub(super) fn find(port: Option<u16>) -> anyhow::Result<Self> {
        let start = "start one with: hotserve dev";
        let mut files: Vec<_> = std::fs::read_dir(folder())
            .with_context(|| format!("no hotserve dev is running; {start}"))?
            .flatten()
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(_, path)| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        files.sort();
        files
            .into_iter()
            .rev()
            .filter_map(|(_, path)| serde_json::from_slice::<Self>(&std::fs::read(path).ok()?).ok())
            .filter(|running| port.is_none_or(|port| running.http.port() == port))
            // A process that was killed leaves its file behind.
            .find(|running| TcpStream::connect_timeout(&running.kinesis, Duration::from_secs(1)).is_ok())
            .with_context(|| match port {
                Some(port) => format!("no hotserve dev is running on port {port}; {start} --port {port}"),
                None => format!("no hotserve dev is running; {start}"),
            })
    }
}

/// Removes the file when dropped.
#[cfg(feature = "embedded")]
pub(super) struct Announced {
    path: PathBuf,
}

#[cfg(feature = "embedded")]
impl Drop for Announced {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
    match runtime {
        Some(runtime) => runtime.join("hotserve-dev"),
        None => std::env::temp_dir().join(format!("hotserve-dev-{}", rustix::process::getuid().as_raw())),
    }
}
