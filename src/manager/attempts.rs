//! Which artifact is being loaded into this process, on disk: one that took the process down twice is not tried again.
//!
//! A note is written before a load and removed after it. One that is found at the start is a strike: the process ended
//! in the middle, be it by the model, by the system for want of memory, or by chance. A load that ends well forgives.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;

use crate::id::Digest;

/// How often an artifact may take the process down.
const STRIKES: u32 = 2;
/// How many artifacts are remembered.
const REMEMBERED: usize = 1000;

/// The notes of one folder.
pub struct Attempts {
    folder: PathBuf,
    durable: bool,
    strikes: Mutex<BTreeMap<Digest, u32>>,
}

impl Attempts {
    /// Reads the notes. A note that is torn says nothing.
    pub fn open(folder: &Path, durable: bool) -> Self {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let mut strikes: BTreeMap<Digest, u32> = serde_json::from_str(&read("strikes")).unwrap_or_default();
        let attempts = |strikes| Self { folder: folder.to_owned(), durable, strikes: Mutex::new(strikes) };
        let Ok(struck) = read("loading").parse::<Digest>() else { return attempts(strikes) };
        let count = strikes.entry(struck).or_default();
        *count += 1;
        tracing::warn!(
            digest = %struck.short(),
            strikes = *count,
            "the process ended while this artifact was being loaded"
        );
        if strikes.len() > REMEMBERED {
            strikes.retain(|digest, _| *digest == struck);
        }
        let attempts = attempts(strikes);
        match attempts.save() {
            Ok(()) => attempts.end_note(),
            // The note stays, and counts at the next start.
            Err(error) => tracing::warn!(%error, "the strikes against artifacts cannot be written"),
        }
        attempts
    }

    /// Whether an artifact is not to be tried any more.
    pub fn is_quarantined(&self, digest: Digest) -> bool {
        self.lock().get(&digest).is_some_and(|strikes| *strikes >= STRIKES)
    }

    /// How many artifacts are not to be tried any more.
    pub fn quarantined(&self) -> usize {
        self.lock().values().filter(|strikes| **strikes >= STRIKES).count()
    }

    /// An artifact is about to be loaded.
    pub fn begin(&self, digest: Digest) -> std::io::Result<()> {
        if self.durable { self.write("loading", digest.to_string().as_bytes()) } else { Ok(()) }
    }

    /// The load is over, and the process is there still. What is quarantined was not loaded, and stays so.
    pub fn end(&self, digest: Digest) {
        if !self.durable || self.is_quarantined(digest) {
            return;
        }
        if self.lock().remove(&digest).is_some()
            && let Err(error) = self.save()
        {
            tracing::warn!(%error, "the strikes against artifacts cannot be written");
        }
        self.end_note();
    }

    /// The process is ending as it should: a load that is abandoned was not the reason.
    pub fn abandon(&self) {
        if self.durable {
            self.end_note();
        }
    }

    fn end_note(&self) {
        // A note that stays is one strike too many, against an artifact that has none.
        let _ = std::fs::remove_file(self.folder.join("loading"));
    }

    fn save(&self) -> std::io::Result<()> {
        let text = serde_json::to_vec(&*self.lock())?;
        self.write("strikes", &text)
    }

    fn write(&self, name: &str, text: &[u8]) -> std::io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(text)?;
        file.as_file().sync_all()?;
        file.persist(self.folder.join(name)).map_err(|error| error.error)?;
        std::fs::File::open(&self.folder)?.sync_all()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, u32>> {
        // Each change is one insertion or removal.
        self.strikes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_the_process_down_twice_is_quarantined_and_a_good_end_forgives() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = || Attempts::open(folder.path(), true);
        let (bad, good) = (Digest::of(b"bad"), Digest::of(b"good"));
        for strikes in 0..4 {
            let attempts = open();
            assert_eq!(attempts.is_quarantined(bad), strikes >= 2, "after {strikes} strikes");
            attempts.begin(good).expect("room");
            attempts.end(good);
            if strikes < 2 {
                attempts.begin(bad).expect("room");
            }
            // The process ends here.
        }
        open().end(bad);
        assert!(open().is_quarantined(bad), "for good");
        let once = Digest::of(b"once");
        for _ in 0..3 {
            open().begin(once).expect("room");
            open().end(once);
        }
        assert_eq!(open().quarantined(), 1, "a load that ended well forgives");
    }

    #[test]
    fn a_torn_note_is_no_strike_and_stops_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["loading", "strikes"] {
            std::fs::write(folder.path().join(name), "{\"ab").expect("writable");
        }
        assert_eq!(Attempts::open(folder.path(), true).quarantined(), 0);
    }
}
