//! Where artifacts come from, and the proof that they are what the message announced.
//!
//! ```text
//!   Location ─► Fetcher ─► Store::open ─► Body ─► Download ─► Cache: size and SHA-256 proved ─► Artifact
//!                  │            └──── torn: once more, from where it ended ───┘                      │
//!                  └──────────────── already in the cache ───────────────────────────────────────────┘
//! ```

pub mod cache;
pub mod directory;
pub mod download;
pub mod fetch;
pub mod memory;
mod retry;
pub mod s3;

use std::future::Future;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::id::Digest;
use crate::notification::ArtifactUri;

pub use cache::Cache;
pub use fetch::Fetcher;

/// What is asked of a store.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The object.
    pub uri: &'a ArtifactUri,
    /// One of its versions, where the place keeps several.
    pub version_id: Option<&'a str>,
    /// What is here of it already, if anything.
    pub resume: Option<Resume<'a>>,
}

/// The place at which to go on.
#[derive(Debug, Clone, Copy)]
pub struct Resume<'a> {
    /// How many bytes are here.
    pub from: u64,
    /// The tag of the content that they are of.
    pub tag: &'a str,
}

/// The bytes of an object on their way.
pub struct Body {
    /// How many bytes of the object come before the first of these.
    pub from: u64,
    /// How many bytes the whole object has, if the store says so.
    pub length: Option<u64>,
    /// What tells this content of the object from any other, if the store says so.
    pub tag: Option<String>,
    /// The bytes.
    pub chunks: BoxStream<'static, Result<Bytes, Error>>,
}

/// What `open` answers.
pub type Opening<'a> = Pin<Box<dyn Future<Output = Result<Body, Error>> + Send + 'a>>;

/// A place with objects.
///
/// # Contract
/// - `open` answers the whole object as it is now, or an error that says whether trying again may help.
/// - Asked to go on, it answers what comes behind those bytes; [`Error::Changed`] if the object has another content now.
///   A place that cannot go on answers the whole object, and `from` says so.
/// - It tries once: the [`Fetcher`] retries, and decides when to give up.
/// - It proves nothing: the bytes are hostile until the [`Cache`] has hashed them.
pub trait Store: Send + Sync {
    /// Begins to read an object, or goes on.
    fn open<'a>(&'a self, request: Request<'a>) -> Opening<'a>;
}

/// The bytes of a model, proved: their digest and size are the announced ones. Made only by the [`Cache`].
#[derive(Debug, Clone)]
pub struct Artifact {
    digest: Digest,
    size: u64,
    path: PathBuf,
}

impl Artifact {
    /// The identity of the bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads the bytes, and proves them again: a disk can rot. What has rotted is removed, to be fetched anew.
    pub fn read(&self) -> Result<Bytes, Error> {
        let file = std::fs::File::open(&self.path).map_err(Error::disk("read the cached artifact"))?;
        read_proved(file, self.digest).inspect_err(|error| {
            if matches!(error, Error::Digest { .. }) {
                // If it cannot be removed, it is found out again.
                let _ = std::fs::remove_file(&self.path);
            }
        })
    }

    /// Where the bytes are, for another process of this program.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The bytes of a file, if they are the ones of this digest.
pub(crate) fn read_proved(mut file: std::fs::File, expected: Digest) -> Result<Bytes, Error> {
    let size = file.metadata().map_or(0, |data| usize::try_from(data.len()).unwrap_or(0));
    let mut bytes = Vec::with_capacity(size);
    file.read_to_end(&mut bytes).map_err(Error::disk("read the cached artifact"))?;
    let got = Digest::of(&bytes);
    if got == expected { Ok(bytes.into()) } else { Err(Error::Digest { expected, got }) }
}

/// Why an artifact could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The place is not on the list of allowed ones.
    #[error("{uri} is not in an allowed place: add it with --allow (HOTSERVE_ALLOW)")]
    Forbidden {
        /// The place.
        uri: String,
    },
    /// There is no such object.
    #[error("{uri} is not there: {detail}")]
    NotFound {
        /// The object.
        uri: String,
        /// What the store said.
        detail: String,
    },
    /// The store says no.
    #[error("{uri} may not be read: {detail} (s3:GetObject is needed)")]
    Denied {
        /// The object.
        uri: String,
        /// What the store said.
        detail: String,
    },
    /// The store did not answer, or stopped in the middle.
    #[error("fetch artifact: {detail}")]
    Unavailable {
        /// What happened.
        detail: String,
    },
    /// The bytes trickle.
    #[error("fetch artifact: {bytes} bytes in {seconds} s are too few (--min-fetch-rate, HOTSERVE_MIN_FETCH_RATE)")]
    Slow {
        /// How many came.
        bytes: u64,
        /// In what time.
        seconds: u64,
    },
    /// The object is not where it is asked for. No redirect is followed: it would take the request to a host that
    /// nobody chose.
    #[error("{uri} is not here: {detail}. Set AWS_REGION to the region of the bucket; no redirect is followed")]
    Redirected {
        /// The object.
        uri: String,
        /// What the store said.
        detail: String,
    },
    /// The object was overwritten while it was read.
    #[error("{uri} was overwritten while it was fetched: upload every version to a key of its own")]
    Changed {
        /// The object.
        uri: String,
    },
    /// More or fewer bytes than announced, or more than allowed.
    #[error("{got} bytes instead of {expected}")]
    Size {
        /// What was announced or allowed.
        expected: u64,
        /// What came, as far as it was read.
        got: u64,
    },
    /// Other bytes than announced.
    #[error("SHA-256 is {got} instead of {expected}")]
    Digest {
        /// What was announced.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// The disk does not do its part.
    #[error("{action}")]
    Disk {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Wraps what the disk said.
    pub(crate) fn disk(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Disk { action, source }
    }

    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Slow { .. })
    }

    /// The label of `hotserve_rejections_total`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Forbidden { .. } => "forbidden_uri",
            Self::NotFound { .. } => "not_found",
            Self::Denied { .. } => "access_denied",
            Self::Unavailable { .. } => "unavailable",
            Self::Slow { .. } => "slow",
            Self::Redirected { .. } => "redirect",
            Self::Changed { .. } => "changed",
            Self::Size { .. } => "size",
            Self::Digest { .. } => "digest",
            Self::Disk { .. } => "disk",
        }
    }
}
