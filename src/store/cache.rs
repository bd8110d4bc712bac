//! The folder of proved artifacts, each under its digest, and of what must survive a restart.
//!
//! No path is ever made from a message: an artifact's file is named by its digest. A file appears under its name only
//! when its bytes are proved and, where the folder is to outlive the process, on the disk.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir};

use super::{Artifact, Body, Error};
use crate::failpoint;
use crate::id::Digest;

/// The longest silence in the middle of an object.
const IDLE: Duration = Duration::from_secs(30);
/// How many artifacts that nothing refers to are kept, for a quick way back.
const KEEP_UNUSED: usize = 3;

/// What a fetched artifact must be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Its digest, if announced.
    pub sha256: Option<Digest>,
    /// Its size, if announced.
    pub size: Option<u64>,
    /// The largest size allowed.
    pub max: u64,
}

/// The folder. One process at a time.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    /// Whether it outlives the process, and writes must reach the disk.
    durable: bool,
    _lock: File,
    _temporary: Option<TempDir>,
}

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("another hotserve uses it: give each instance a folder of its own")]
    InUse,
    /// The system says no.
    #[error("cannot be used")]
    Io(#[from] std::io::Error),
}

impl Cache {
    /// Opens the folder, made if it is missing; without one, a temporary folder that goes with the process.
    pub fn open(dir: Option<&Path>) -> Result<Self, OpenError> {
        let temporary =
            if dir.is_none() { Some(tempfile::Builder::new().prefix("hotserve-").tempdir()?) } else { None };
        let root = dir.or(temporary.as_ref().map(TempDir::path)).expect("one of the two is there").to_owned();
        for folder in ["artifacts", "incoming"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        let lock = File::create(root.join("lock"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse),
            Err(error) => return Err(OpenError::Io(error.into())),
        }
        // What a crash left behind is of no use to anybody.
        for entry in std::fs::read_dir(root.join("incoming"))?.flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        Ok(Self { durable: temporary.is_none(), root, _lock: lock, _temporary: temporary })
    }

    /// Whether its content is there after a restart.
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// The folder, for what else must survive a restart.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.root.join("artifacts").join(digest.to_string())
    }

    /// An artifact that is already here.
    pub fn get(&self, digest: Digest, size: Option<u64>) -> Option<Artifact> {
        let path = self.path(digest);
        let found = std::fs::metadata(&path).ok()?.len();
        // Bytes that rotted are noticed when they are read.
        (size.is_none_or(|size| size == found)).then_some(Artifact { digest, size: found, path })
    }

    /// Keeps bytes that came in a message.
    pub fn insert(&self, bytes: &[u8]) -> Result<Artifact, Error> {
        let digest = Digest::of(bytes);
        if let Some(artifact) = self.get(digest, Some(bytes.len() as u64)) {
            return Ok(artifact);
        }
        let mut file = self.incoming()?;
        file.write_all(bytes).map_err(Error::disk("write an artifact"))?;
        self.keep(file, digest, bytes.len() as u64)
    }

    /// Reads an object to its end and keeps it if it is what it must be.
    pub async fn fetch(
        &self,
        mut body: Body,
        expected: Expected,
        mut progress: impl FnMut(usize),
    ) -> Result<Artifact, Error> {
        let most = expected.size.unwrap_or(expected.max).min(expected.max);
        let size_error = |got| Error::Size { expected: most, got };
        if expected.size.is_some_and(|size| size > expected.max) {
            return Err(Error::Size { expected: expected.max, got: expected.size.unwrap_or(u64::MAX) });
        }
        if let Some(length) = body.length
            && (length > most || expected.size.is_some_and(|size| size != length))
        {
            return Err(size_error(length));
        }
        let mut file = self.incoming()?;
        let mut hasher = Sha256::new();
        let mut got = 0_u64;
        loop {
            let chunk = match tokio::time::timeout(IDLE, body.chunks.next()).await {
                Ok(Some(chunk)) => chunk?,
                Ok(None) => break,
                Err(_) => return Err(Error::Unavailable { detail: format!("no byte came for {IDLE:?}") }),
            };
            got += chunk.len() as u64;
            if got > most {
                return Err(size_error(got));
            }
            hasher.update(&chunk);
            failpoint::hit_in_the_middle_of("cache.fetch.half_written", &mut file, &chunk);
            file.write_all(&chunk).map_err(Error::disk("write an artifact"))?;
            progress(chunk.len());
        }
        if body.length.is_some_and(|length| got < length) {
            return Err(Error::Unavailable { detail: format!("the object ended after {got} bytes") });
        }
        if expected.size.is_some_and(|size| got != size) {
            return Err(size_error(got));
        }
        let digest = Digest::finish(hasher);
        match expected.sha256 {
            Some(expected) if expected != digest => Err(Error::Digest { expected, got: digest }),
            _ => self.keep(file, digest, got),
        }
    }

    fn incoming(&self) -> Result<NamedTempFile, Error> {
        NamedTempFile::new_in(self.root.join("incoming")).map_err(Error::disk("make a file in the cache folder"))
    }

    fn keep(&self, file: NamedTempFile, digest: Digest, size: u64) -> Result<Artifact, Error> {
        let path = self.path(digest);
        self.persist(file, &path).map_err(Error::disk("keep an artifact"))?;
        Ok(Artifact { digest, size, path })
    }

    /// Puts a file in its place, whole or not at all, and on the disk if that is to outlive the process.
    fn persist(&self, file: NamedTempFile, path: &Path) -> std::io::Result<()> {
        failpoint::hit("cache.persist.before_sync");
        if self.durable {
            file.as_file().sync_all()?;
        }
        failpoint::hit("cache.persist.before_rename");
        file.persist(path).map_err(|error| error.error)?;
        failpoint::hit("cache.persist.after_rename");
        if self.durable
            && let Some(folder) = path.parent()
        {
            File::open(folder)?.sync_all()?;
        }
        failpoint::hit("cache.persist.after_folder_sync");
        Ok(())
    }

    /// Frees the disk: of the artifacts that are not in use, only the newest few stay.
    pub fn collect(&self, in_use: &HashSet<Digest>) -> std::io::Result<()> {
        failpoint::hit("cache.collect.before");
        let mut unused: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(self.root.join("artifacts"))?.flatten() {
            let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if digest.is_none_or(|digest| !in_use.contains(&digest)) {
                let modified = entry.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                unused.push((modified, entry.path()));
            }
        }
        unused.sort();
        let surplus = unused.len().saturating_sub(KEEP_UNUSED);
        for (_, path) in unused.into_iter().take(surplus) {
            failpoint::hit("cache.collect.between");
            std::fs::remove_file(path)?;
        }
        failpoint::hit("cache.collect.after");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::stream;

    fn body(chunks: &[&'static str], length: Option<u64>) -> Body {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
        Body { length, chunks: stream::iter(chunks).boxed() }
    }

    fn expect(sha256: Option<Digest>, size: Option<u64>) -> Expected {
        Expected { sha256, size, max: 100 }
    }

    #[tokio::test]
    async fn only_the_announced_bytes_are_kept() {
        let cache = Cache::open(None).expect("a temporary folder");
        let abc = Digest::of(b"abc");
        let artifact =
            cache.fetch(body(&["a", "bc"], Some(3)), expect(Some(abc), Some(3)), |_| {}).await.expect("good");
        assert_eq!((artifact.digest(), artifact.size()), (abc, 3));
        assert_eq!(artifact.read().expect("readable"), &b"abc"[..]);
        assert!(cache.get(abc, Some(3)).is_some());
        assert!(cache.get(abc, Some(4)).is_none());

        for (chunks, length, expected, code) in [
            (&["abd"][..], None, expect(Some(abc), Some(3)), "digest"),
            (&["abcd"], None, expect(Some(abc), Some(3)), "size"),
            (&["ab"], None, expect(Some(abc), Some(3)), "size"),
            (&["abc"], Some(4), expect(Some(abc), Some(3)), "size"),
            (&["ab"], Some(3), expect(Some(abc), Some(3)), "unavailable"),
            (&["abc"], None, expect(Some(abc), Some(101)), "size"),
            (&["0123456789"; 11], None, expect(None, None), "size"),
        ] {
            let error = cache.fetch(body(chunks, length), expected, |_| {}).await.expect_err(code);
            assert_eq!(error.code(), code, "{chunks:?} {length:?} {expected:?}: {error}");
        }
        let left = std::fs::read_dir(cache.root.join("incoming")).expect("readable").count();
        assert_eq!(left, 0, "what was refused leaves no file");
    }

    #[test]
    fn a_folder_has_one_owner() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = Cache::open(Some(folder.path())).expect("free");
        assert!(matches!(Cache::open(Some(folder.path())), Err(OpenError::InUse)));
        drop(first);
        assert!(Cache::open(Some(folder.path())).is_ok());
    }

    #[test]
    fn rotten_bytes_are_not_read() {
        let cache = Cache::open(None).expect("a temporary folder");
        let artifact = cache.insert(b"abc").expect("room");
        std::fs::write(cache.path(artifact.digest()), b"abd").expect("writable");
        assert_eq!(artifact.read().map_err(|error| error.code()), Err("digest"));
    }

    #[test]
    fn what_is_in_use_stays_and_the_rest_is_bounded() {
        let cache = Cache::open(None).expect("a temporary folder");
        let used = cache.insert(b"used").expect("room").digest();
        for number in 0..10 {
            cache.insert(format!("unused {number}").as_bytes()).expect("room");
        }
        cache.collect(&HashSet::from([used])).expect("collectable");
        assert!(cache.get(used, None).is_some());
        assert_eq!(std::fs::read_dir(cache.root.join("artifacts")).expect("readable").count(), 1 + KEEP_UNUSED);
    }
}
