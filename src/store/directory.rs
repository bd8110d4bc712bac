//! Files of this machine, where the configuration allows them.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use futures_util::{StreamExt as _, stream};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::{Body, Error, Opening, Request, Store};
use crate::notification::ArtifactUri;

const CHUNK: usize = 256 << 10;

/// Serves `file:///…`. What may be read is decided by the allow-list before it is asked, and symbolic links may not
/// lead out of the allowed folders.
pub struct DirectoryStore {
    roots: Vec<PathBuf>,
}

impl DirectoryStore {
    /// A store of these folders.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots }
    }

    fn resolve(&self, path: &Path, uri: &str) -> Result<PathBuf, Error> {
        let real = path.canonicalize().map_err(|error| not_found(uri, &error))?;
        let inside = self.roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| real.starts_with(root));
        if inside { Ok(real) } else { Err(Error::Forbidden { uri: uri.to_owned() }) }
    }
}

impl Store for DirectoryStore {
    fn open<'a>(&'a self, request: Request<'a>) -> Opening<'a> {
        Box::pin(async move {
            let text = request.uri.to_string();
            let ArtifactUri::File { path } = request.uri else { return Err(Error::Forbidden { uri: text }) };
            let real = self.resolve(Path::new(path), &text)?;
            let mut file = File::open(&real).await.map_err(|error| not_found(&text, &error))?;
            let data = file.metadata().await.map_err(|error| not_found(&text, &error))?;
            let (length, tag) =
                (data.len(), format!("{} {} {} {}", data.ino(), data.len(), data.mtime(), data.mtime_nsec()));
            if request.resume.is_some_and(|resume| resume.tag != tag) {
                return Err(Error::Changed { uri: text });
            }
            let from = request.resume.map_or(0, |resume| resume.from);
            file.seek(SeekFrom::Start(from)).await.map_err(|error| not_found(&text, &error))?;
            let chunks = stream::try_unfold(file, |mut file| async move {
                let mut chunk = BytesMut::with_capacity(CHUNK);
                let read = file
                    .read_buf(&mut chunk)
                    .await
                    .map_err(|error| Error::Unavailable { detail: error.to_string() })?;
                Ok(if read == 0 { None } else { Some((chunk.freeze(), file)) })
            });
            Ok(Body { from, length: Some(length), tag: Some(tag), chunks: chunks.boxed() })
        })
    }
}

fn not_found(uri: &str, error: &std::io::Error) -> Error {
    Error::NotFound { uri: uri.to_owned(), detail: error.to_string() }
}
