//! The folder of proved artifacts, each under its digest, and of what must survive a restart.
//!
//! No path is ever made from a message: an artifact's file is named by its digest. A file appears under its name only
//! when its bytes are proved and, where the folder is to outlive the process, on the disk.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tempfile::{NamedTempFile, TempDir};

use super::{Artifact, Error};
use crate::failpoint;
use crate::id::Digest;

/// How many artifacts that nothing refers to are kept, for a quick way back.
const KEEP_UNUSED: usize = 3;

/// The folder. One process at a time.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    /// Whether it outlives the process, and writes must reach the disk.
    durable: bool,
    /// What nothing referred to when that was last looked at, and nobody has asked for since.
    spare: Mutex<HashSet<Digest>>,
    _lock: Lock,
    _temporary: Option<TempDir>,
}

/// The folder is this process's, and within it one cache's.
///
/// A record lock, for it belongs to the process alone. That of `flock` goes along into every child until that runs its own
/// program: a probe that was just being started when the server was killed would keep the next server out.
#[derive(Debug)]
struct Lock {
    file: Option<File>,
    folder: PathBuf,
}

/// The folders that this process has, for a process is never in its own way.
static TAKEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

impl Lock {
    fn take(root: &Path) -> Result<Self, OpenError> {
        let folder = root.canonicalize()?;
        if !TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.clone()) {
            return Err(OpenError::InUse);
        }
        let mut lock = Self { file: None, folder };
        let file = lock.file.insert(File::create(root.join("lock"))?);
        match rustix::fs::fcntl_lock(&*file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(OpenError::InUse),
            Err(error) => Err(OpenError::Io(error.into())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closed first: closing it later would let go of the lock of who comes next.
        drop(self.file.take());
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.folder);
    }
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
        let lock = Lock::take(&root)?;
        // What a crash left behind is of no use to anybody.
        for entry in std::fs::read_dir(root.join("incoming"))?.flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        let spare = Mutex::default();
        Ok(Self { durable: temporary.is_none(), root, spare, _lock: lock, _temporary: temporary })
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
        // Before it is looked for: from now on nobody takes it away to make room.
        self.spare().remove(&digest);
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

    pub(super) fn incoming(&self) -> Result<NamedTempFile, Error> {
        NamedTempFile::new_in(self.root.join("incoming")).map_err(Error::disk("make a file in the cache folder"))
    }

    pub(super) fn keep(&self, file: NamedTempFile, digest: Digest, size: u64) -> Result<Artifact, Error> {
        let path = self.path(digest);
        self.spare().remove(&digest);
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

    fn spare(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the disk: of the artifacts that are not in use, only the newest few stay.
    pub fn collect(&self, in_use: &HashSet<Digest>) -> std::io::Result<()> {
        failpoint::hit("cache.collect.before");
        let mut spare = self.spare();
        let mut unused: Vec<(SystemTime, Option<Digest>, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(self.root.join("artifacts"))?.flatten() {
            let digest = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if digest.is_none_or(|digest| !in_use.contains(&digest)) {
                let modified = entry.metadata().and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                unused.push((modified, digest, entry.path()));
            }
        }
        unused.sort_by_key(|(modified, ..)| *modified);
        let kept = unused.split_off(unused.len().saturating_sub(KEEP_UNUSED));
        *spare = kept.into_iter().filter_map(|(_, digest, _)| digest).collect();
        for (_, _, path) in unused {
            failpoint::hit("cache.collect.between");
            std::fs::remove_file(path)?;
        }
        failpoint::hit("cache.collect.after");
        Ok(())
    }

    /// Gives up what is kept only for a quick way back: the disk is full. What is served stays. Answers whether
    /// anything went.
    pub fn make_room(&self) -> bool {
        // Held while they go, so that nobody is given one of them meanwhile.
        let mut spare = self.spare();
        let paths = spare.drain().map(|digest| self.root.join("artifacts").join(digest.to_string()));
        paths.filter(|path| std::fs::remove_file(path).is_ok()).count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = Cache::open(Some(folder.path())).expect("free");
        assert!(matches!(Cache::open(Some(folder.path())), Err(OpenError::InUse)));
        drop(first);
        let again = Cache::open(Some(folder.path())).expect("free");
        assert!(
            matches!(Cache::open(Some(folder.path())), Err(OpenError::InUse)),
            "who was refused has let nothing go"
        );
        drop(again);
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

    #[test]
    fn a_full_disk_takes_what_nobody_asked_for_and_nothing_else() {
        let cache = Cache::open(None).expect("a temporary folder");
        let keep = |name: &str| cache.insert(name.as_bytes()).expect("room").digest();
        let (served, asked, unused) = (keep("served"), keep("asked for"), keep("unused"));
        assert!(!cache.make_room(), "nobody has said yet what is in use");
        cache.collect(&HashSet::from([served])).expect("collectable");
        let fresh = keep("came since");
        assert!(cache.get(asked, None).is_some());
        assert!(cache.make_room());
        assert!(cache.get(unused, None).is_none());
        for digest in [served, asked, fresh] {
            assert!(cache.get(digest, None).is_some());
        }
        assert!(!cache.make_room());
    }
}
