//! What was served last, and before, and what holds each slot, on disk: written before it happens, read at the start.
//!
//! One line a swap, with everything that it replaced, so that a crash leaves both halves of a pair or none. Each line
//! carries the digest of its text: a torn or rotten one is skipped, and the one before it holds. The file is written
//! anew when most of it is history.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use hotserve_models::{Golden, Signature};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::policy::{Hold, KEPT, Mark};
use crate::failpoint;
use crate::id::{Digest, Format, Rank, Slot};
use crate::notification::Encoding;

/// Below this size a journal is not worth writing anew.
const COMPACT_BYTES: u64 = 1 << 20;
/// A journal is written anew when it is this many times as large as what is live in it.
const COMPACT_RATIO: u64 = 4;

/// The content of a slot, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// The slot.
    pub slot: Slot,
    /// What put it there.
    pub rank: Rank,
    /// What tells it from other contents of the same rank.
    pub content: Digest,
    /// When its producer published it.
    pub published_at: Option<Timestamp>,
    /// When it was taken in.
    #[serde(default)]
    pub taken_in: Option<Timestamp>,
    /// The message, where it was signed: who vouches for the content is asked again at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<String>,
    /// A state's JSON, byte for byte; as a string, for it may have newlines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// A model, whose bytes are in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<SavedModel>,
}

impl Saved {
    /// Its place in the slot's order.
    pub fn mark(&self) -> Mark {
        Mark { rank: self.rank.clone(), content: self.content, announcement: self.content }
    }
}

/// A model, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedModel {
    /// A person's name for the version.
    pub label: Option<String>,
    /// Which kind of model.
    pub format: Format,
    /// The artifact.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How it is compressed.
    pub encoding: Encoding,
    /// What was announced to go in and come out.
    pub signature: Option<Signature>,
    /// Cases it must get right.
    pub golden: Option<Golden>,
}

/// What one line says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// This is served from now on.
    Served(Vec<Saved>),
    /// A slot is held in this way.
    Held {
        /// The slot.
        held: Slot,
        /// What holds it.
        hold: Box<Hold>,
    },
    /// Nothing is served in this slot any more.
    Withdrawn {
        /// The slot.
        withdrawn: Slot,
    },
}

/// What is kept of one slot.
#[derive(Debug, Default)]
pub struct Kept {
    /// What is served.
    pub served: Option<Saved>,
    /// What was served before, the last one first.
    pub before: Vec<Saved>,
    /// What holds it.
    pub hold: Hold,
}

impl Kept {
    fn serve(&mut self, saved: Saved) {
        self.withdraw();
        self.before.retain(|before| before.rank != saved.rank);
        self.served = Some(saved);
        self.before.truncate(KEPT);
    }

    /// What is served is kept, unless it was revoked.
    fn withdraw(&mut self) {
        let before = self.served.take().filter(|before| !self.hold.is_revoked(&before.mark()));
        self.before.splice(0..0, before);
    }

    /// The lines that say this anew.
    fn lines(&self, slot: &Slot) -> impl Iterator<Item = Line> {
        let hold =
            (!self.hold.is_empty()).then(|| Line::Held { held: slot.clone(), hold: Box::new(self.hold.clone()) });
        let served = self.before.iter().rev().chain(&self.served).map(|saved| Line::Served(vec![saved.clone()]));
        let withdrawn = self.served.is_none().then(|| Line::Withdrawn { withdrawn: slot.clone() });
        hold.into_iter().chain(served).chain(withdrawn)
    }
}

/// The file.
pub struct Journal {
    path: PathBuf,
    file: File,
    durable: bool,
    bytes: u64,
    /// How large the file was when it was last written anew: how large what is live was then.
    live_bytes: u64,
    live: BTreeMap<Slot, Kept>,
}

impl Journal {
    /// Opens the journal of a folder, made if it is missing. Lines that cannot be trusted are skipped, and counted in
    /// the answer.
    pub fn open(folder: &Path, durable: bool) -> std::io::Result<(Self, usize)> {
        let path = folder.join("journal");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut live = BTreeMap::new();
        let mut skipped = 0;
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match parse(line) {
                Some(line) => take(&mut live, line),
                None => skipped += 1,
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut journal = Self { path, file, durable, bytes: 0, live_bytes: 0, live };
        if let Err(error) = journal.compact() {
            // A full disk is no reason not to serve what is on it.
            tracing::warn!(%error, "the journal cannot be written anew: going on behind what it has");
            if journal.bytes == 0 {
                journal.end_line(&text)?;
                journal.live_bytes = journal.bytes;
            }
        }
        Ok((journal, skipped))
    }

    /// What is kept of every slot.
    pub fn live(&self) -> impl Iterator<Item = (&Slot, &Kept)> {
        self.live.iter()
    }

    /// What is kept of one slot.
    pub fn of(&self, slot: &Slot) -> Option<&Kept> {
        self.live.get(slot)
    }

    /// Writes what is about to be served, all of it or nothing.
    pub fn serve(&mut self, saved: Vec<Saved>) -> std::io::Result<()> {
        self.write(Line::Served(saved))
    }

    /// Writes what is about to hold a slot.
    pub fn hold(&mut self, slot: &Slot, hold: &Hold) -> std::io::Result<()> {
        self.write(Line::Held { held: slot.clone(), hold: Box::new(hold.clone()) })
    }

    /// Writes that nothing is about to be served in a slot.
    pub fn withdraw(&mut self, slot: &Slot) -> std::io::Result<()> {
        self.write(Line::Withdrawn { withdrawn: slot.clone() })
    }

    fn write(&mut self, said: Line) -> std::io::Result<()> {
        let line = render(&said)?;
        let before = self.bytes;
        failpoint::hit("journal.write.before");
        failpoint::hit_in_the_middle_of("journal.write.half_written", &mut self.file, &line);
        let written = self.file.write_all(&line).and_then(|()| {
            failpoint::hit("journal.write.before_sync");
            if self.durable { self.file.sync_data() } else { Ok(()) }
        });
        if let Err(error) = written {
            // Half a line must not swallow the next one.
            let _ = self.file.set_len(before);
            return Err(error);
        }
        failpoint::hit("journal.write.after_sync");
        self.bytes += line.len() as u64;
        take(&mut self.live, said);
        if self.bytes > COMPACT_BYTES.max(COMPACT_RATIO * self.live_bytes)
            && let Err(error) = self.compact()
        {
            // What is said is on the disk; the next try comes when it is as large again.
            tracing::warn!(%error, "the journal cannot be written anew: it grows on");
            self.live_bytes = self.bytes;
        }
        Ok(())
    }

    /// Half a line that a crash left must not swallow the next one.
    fn end_line(&mut self, text: &[u8]) -> std::io::Result<()> {
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.bytes = whole as u64;
        if whole < text.len() { self.file.set_len(whole as u64) } else { Ok(()) }
    }

    /// Writes the file anew with what is live, and puts it in the old one's place.
    fn compact(&mut self) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut fresh = NamedTempFile::new_in(folder)?;
        let mut bytes = 0;
        for line in self.live.iter().flat_map(|(slot, kept)| kept.lines(slot)) {
            let line = render(&line)?;
            failpoint::hit_in_the_middle_of("journal.compact.half_written", &mut fresh, &line);
            fresh.write_all(&line)?;
            bytes += line.len() as u64;
        }
        if self.durable {
            fresh.as_file().sync_all()?;
        }
        // Opened before it is in its place: from then on nothing may be written to the file that it replaced.
        let file = OpenOptions::new().append(true).open(fresh.path())?;
        failpoint::hit("journal.compact.before_rename");
        fresh.persist(&self.path).map_err(|error| error.error)?;
        (self.file, self.bytes, self.live_bytes) = (file, bytes, bytes);
        failpoint::hit("journal.compact.after_rename");
        if self.durable {
            File::open(folder)?.sync_all()?;
        }
        failpoint::hit("journal.compact.after_folder_sync");
        Ok(())
    }
}

fn take(live: &mut BTreeMap<Slot, Kept>, line: Line) {
    match line {
        Line::Served(saved) => {
            for saved in saved {
                live.entry(saved.slot.clone()).or_default().serve(saved);
            }
        }
        Line::Held { held, hold } => {
            let kept = live.entry(held).or_default();
            kept.before.retain(|before| !hold.is_revoked(&before.mark()));
            kept.hold = *hold;
        }
        Line::Withdrawn { withdrawn } => live.entry(withdrawn).or_default().withdraw(),
    }
}

fn render(line: &Line) -> std::io::Result<Vec<u8>> {
    let text = serde_json::to_vec(line)?;
    let mut line = Digest::of(&text).to_string().into_bytes();
    line.push(b' ');
    line.extend(text);
    line.push(b'\n');
    Ok(line)
}

fn parse(line: &[u8]) -> Option<Line> {
    let (digest, text) = line.split_at_checked(64)?;
    let text = text.strip_prefix(b" ")?;
    let digest: Digest = std::str::from_utf8(digest).ok()?.parse().ok()?;
    if Digest::of(text) == digest { serde_json::from_slice(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Version;

    fn state(key: &str, version: u64, json: &str) -> Saved {
        Saved {
            slot: Slot::State(key.parse().expect("a key")),
            rank: Rank::Version(Version::try_from(version).expect("a version")),
            content: Digest::of(json.as_bytes()),
            published_at: None,
            taken_in: None,
            envelope: None,
            state: Some(json.to_owned()),
            model: None,
        }
    }

    fn read(folder: &Path) -> (Vec<(String, String)>, usize) {
        let (journal, skipped) = Journal::open(folder, true).expect("readable");
        let served = |kept: &Kept| kept.served.as_ref().and_then(|saved| saved.state.clone()).expect("a state");
        (journal.live().map(|(slot, kept)| (slot.to_string(), served(kept))).collect(), skipped)
    }

    #[test]
    fn the_last_content_of_each_slot_comes_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        {
            let (mut journal, _) = Journal::open(folder.path(), true).expect("new");
            journal.serve(vec![state("a", 1, "1"), state("b", 1, "{\n  \"x\": 1.50\n}")]).expect("room");
            journal.serve(vec![state("a", 2, "2")]).expect("room");
        }
        let expected =
            vec![("state a".to_owned(), "2".to_owned()), ("state b".to_owned(), "{\n  \"x\": 1.50\n}".to_owned())];
        assert_eq!(read(folder.path()), (expected.clone(), 0));
        assert_eq!(read(folder.path()), (expected, 0), "reading writes it anew, and that is read too");
    }

    #[test]
    fn what_was_served_before_and_what_holds_a_slot_come_back_too() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (a, b) = (state("a", 1, "1").slot, state("b", 1, "1").slot);
        let mut hold = Hold::default();
        hold.set_pin(super::super::policy::By::Admin, Some(state("a", 3, "").rank), 0);
        {
            let (mut journal, _) = Journal::open(folder.path(), true).expect("new");
            for version in 1..7 {
                journal.serve(vec![state("a", version, &version.to_string())]).expect("room");
            }
            journal.serve(vec![state("a", 4, "4"), state("b", 1, "1")]).expect("room");
            journal.hold(&a, &hold).expect("room");
            journal.serve(vec![state("b", 2, "2")]).expect("room");
            journal.withdraw(&b).expect("room");
        }
        for _ in 0..2 {
            // Opening writes it anew, and that says the same.
            let (journal, _) = Journal::open(folder.path(), true).expect("readable");
            let ranks = |saved: &[Saved]| saved.iter().map(|saved| saved.rank.to_string()).collect::<Vec<_>>();
            let a = journal.of(&a).expect("kept");
            assert_eq!(a.served.as_ref().map(|saved| saved.rank.to_string()).as_deref(), Some("4"));
            assert_eq!((ranks(&a.before), &a.hold), (vec!["6".to_owned(), "5".to_owned(), "3".to_owned()], &hold));
            let b = journal.of(&b).expect("kept");
            assert!(b.served.is_none());
            assert_eq!(ranks(&b.before), ["2", "1"]);
        }
    }

    #[test]
    fn a_torn_or_rotten_line_is_skipped_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        {
            let (mut journal, _) = Journal::open(folder.path(), true).expect("new");
            journal.serve(vec![state("a", 1, "1")]).expect("room");
            journal.serve(vec![state("a", 2, "2"), state("b", 2, "2")]).expect("room");
        }
        let path = folder.path().join("journal");
        let text = std::fs::read(&path).expect("readable");
        let first = text.iter().position(|byte| *byte == b'\n').expect("two lines") + 1;
        for cut in first + 1..text.len() - 1 {
            std::fs::write(&path, &text[..cut]).expect("writable");
            assert_eq!(read(folder.path()).0, [("state a".to_owned(), "1".to_owned())], "cut at {cut}");
        }
        for flip in (first..text.len() - 1).step_by(7) {
            let mut rotten = text.clone();
            rotten[flip] ^= 1;
            std::fs::write(&path, &rotten).expect("writable");
            assert_eq!(read(folder.path()).0, [("state a".to_owned(), "1".to_owned())], "bit flipped at {flip}");
        }
    }

    #[test]
    fn where_it_cannot_be_written_anew_it_goes_on_behind_what_it_has() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("journal");
        {
            let (mut journal, _) = Journal::open(folder.path(), true).expect("new");
            journal.serve(vec![state("a", 1, "1")]).expect("room");
        }
        let mut text = std::fs::read(&path).expect("readable");
        text.extend_from_slice(b"half a li");
        std::fs::write(&path, &text).expect("writable");
        // A folder in its place keeps the new file from being put there, whoever runs this.
        let fail = |journal: &mut Journal| {
            let kept = std::mem::replace(&mut journal.path, folder.path().join("gone").join("journal"));
            assert!(journal.compact().is_err());
            journal.path = kept;
        };
        let (live, bytes) = (BTreeMap::new(), text.len() as u64);
        let file = OpenOptions::new().append(true).open(&path).expect("there");
        let mut journal = Journal { path, file, durable: true, bytes, live_bytes: bytes, live };
        fail(&mut journal);
        journal.end_line(&text).expect("writable");
        journal.serve(vec![state("b", 1, "2")]).expect("room");
        let expected = [("state a".to_owned(), "1".to_owned()), ("state b".to_owned(), "2".to_owned())];
        assert_eq!(read(folder.path()), (expected.to_vec(), 0), "no line is lost, and the half one is gone");
    }

    #[test]
    fn the_file_stays_in_proportion_to_what_is_live() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut journal, _) = Journal::open(folder.path(), false).expect("new");
        let big = format!("\"{}\"", "x".repeat(10_000));
        for version in 1..1000 {
            journal.serve(vec![state("a", version, &big)]).expect("room");
        }
        let size = std::fs::metadata(folder.path().join("journal")).expect("there").len();
        assert!(size < 2 * COMPACT_BYTES, "{size} bytes");
        drop(journal);
        assert_eq!(read(folder.path()).0, [("state a".to_owned(), big)]);
    }
}
