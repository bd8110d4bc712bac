//! Giving a model's bytes a place: in a bucket, or in the message itself.

use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

use super::draft::{Bytes, Place};
use super::{Error, Publisher};
use crate::id::{Digest, ModelName};
use crate::notification::uri::UriError;
use crate::notification::{ArtifactUri, Encoding};

/// How far a model has come on its way, for a bar on a terminal.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// It is being hashed; so many bytes in all.
    Hash(u64),
    /// It is being uploaded; so many bytes in all.
    Upload(u64),
    /// So many bytes more.
    Bytes(u64),
}

impl Publisher {
    /// Hashes a file and uploads it below `to`, an `s3://bucket/prefix`, to a key that holds its digest.
    pub async fn store(
        &self,
        file: &Path,
        name: &ModelName,
        to: &str,
        progress: impl Fn(Step) + Clone + Send + Sync + 'static,
    ) -> Result<Place, Error> {
        let (digest, size) = hash(file, &progress).map_err(|source| read_error(file, source))?;
        let file_name = file.file_name().and_then(|name| name.to_str()).unwrap_or("model");
        let uri = format!("{}/{name}/{digest}/{file_name}", to.trim_end_matches('/'));
        let not_there = |detail: String| Error::Place { uri: uri.clone(), detail };
        let place: ArtifactUri = uri.parse().map_err(|error: UriError| not_there(error.to_string()))?;
        let ArtifactUri::S3 { bucket, key } = &place else {
            return Err(not_there("not s3://bucket/prefix".to_owned()));
        };
        progress(Step::Upload(size));
        self.upload(bucket, key, file, size, &digest, move |bytes| progress(Step::Bytes(bytes))).await?;
        Ok(Place::uploaded(&place, digest, size))
    }
}

impl Place {
    /// Puts a small file into the message itself, compressed where that helps.
    pub fn inline(file: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(file).map_err(|source| read_error(file, source))?;
        let packed = zstd::encode_all(&bytes[..], 19).map_err(|source| read_error(file, source))?;
        let (bytes, encoding) =
            if packed.len() < bytes.len() { (packed, Encoding::Zstd) } else { (bytes, Encoding::None) };
        let (sha256, size) = (Digest::of(&bytes), bytes.len() as u64);
        let inline = base64::engine::general_purpose::STANDARD.encode(&bytes);
        Ok(Self { bytes: Bytes::Inline { inline, encoding }, sha256, size })
    }

    /// How many bytes, and where they are.
    pub fn uri(&self) -> Option<(u64, &str)> {
        match &self.bytes {
            Bytes::Uploaded { uri } => Some((self.size, uri)),
            Bytes::Inline { .. } => None,
        }
    }
}

fn read_error(file: &Path, source: std::io::Error) -> Error {
    Error::Read { path: file.display().to_string(), source }
}

fn hash(file: &Path, progress: &impl Fn(Step)) -> std::io::Result<(Digest, u64)> {
    let mut file = std::fs::File::open(file)?;
    progress(Step::Hash(file.metadata()?.len()));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((Digest::finish(hasher), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
        progress(Step::Bytes(read as u64));
    }
}
