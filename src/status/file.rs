//! The history on disk, so that it survives a restart: a file of lines, each an entry as JSON.
//!
//! It is for people: nothing decides by it, and a swap never waits for it. The task that keeps it reads the board as any
//! other reader does, and writes what is new off the runtime's threads. What cannot be written is said once and written
//! later.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use super::Status;
use super::history::{KEPT, Line};

/// The file is written anew when it has this many lines.
const MOST_LINES: usize = 2 * KEPT;
/// How much of a file is read at its end: many times what it ever holds.
const MOST_BYTES: u64 = 16 << 20;
/// The pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// The file, and the task that keeps it.
pub struct HistoryFile {
    status: Arc<Status>,
    file: Lines,
    written: u64,
}

impl HistoryFile {
    /// Opens the file of a folder and shows what an earlier run wrote.
    pub fn open(folder: &Path, status: &Arc<Status>) -> io::Result<Self> {
        let (file, lines) = Lines::open(folder)?;
        status.remember(lines);
        Ok(Self { status: Arc::clone(status), file, written: status.newest() })
    }

    /// Writes what comes, until it is told to stop; then what is there.
    pub async fn run(self, stop: CancellationToken) {
        let Self { status, mut file, mut written } = self;
        let mut news = status.news();
        let mut failing = false;
        loop {
            let stopping = stop.is_cancelled();
            news.borrow_and_update();
            let lines = status.after(written, KEPT);
            if let Some(last) = lines.last().map(|line| line.id) {
                let full = file.is_full(lines.len());
                let lines = if full { status.after(0, KEPT) } else { lines };
                let job = tokio::task::spawn_blocking(move || {
                    let result = if full { file.write_anew(&lines) } else { file.append(&lines) };
                    (file, result)
                });
                let Ok((back, result)) = job.await else { return };
                file = back;
                match result {
                    Ok(()) => {
                        written = last;
                        if std::mem::take(&mut failing) {
                            tracing::info!("the history is kept on disk again");
                        }
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            let path = file.path.display();
                            tracing::warn!(%error, %path, "the history cannot be kept on disk; trying again");
                        }
                        if stopping {
                            return;
                        }
                        let _ = tokio::time::timeout(PAUSE, stop.cancelled()).await;
                        continue;
                    }
                }
            }
            if stopping {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                _ = news.changed() => {}
            }
        }
    }
}

/// A file of lines.
struct Lines {
    path: PathBuf,
    file: File,
    count: usize,
    /// Whether its end is not to be trusted: it is written anew before anything is appended.
    torn: bool,
}

impl Lines {
    /// Opens it, made if it is missing, and answers the lines that can be read.
    fn open(folder: &Path) -> io::Result<(Self, Vec<Line>)> {
        let path = folder.join("history");
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST_BYTES)))?;
        let mut text = Vec::new();
        (&file).take(MOST_BYTES).read_to_end(&mut text)?;
        let all: Vec<&[u8]> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let lines: Vec<Line> = all.iter().filter_map(|line| Line::parse(line)).collect();
        let torn = lines.len() < all.len() || text.last().is_some_and(|byte| *byte != b'\n');
        Ok((Self { path, file, count: all.len(), torn }, lines))
    }

    /// Whether it must be written anew, and not appended to.
    fn is_full(&self, more: usize) -> bool {
        self.torn || self.count + more > MOST_LINES
    }

    fn append(&mut self, lines: &[Arc<Line>]) -> io::Result<()> {
        // Until it is known that all of it is there.
        self.torn = true;
        self.file.write_all(&render(lines))?;
        self.torn = false;
        self.count += lines.len();
        Ok(())
    }

    fn write_anew(&mut self, kept: &[Arc<Line>]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut fresh = NamedTempFile::new_in(folder)?;
        fresh.write_all(&render(kept))?;
        // Else a loss of power could leave an empty file in the old one's place.
        fresh.as_file().sync_all()?;
        fresh.persist(&self.path).map_err(|error| error.error)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.count = kept.len();
        self.torn = false;
        Ok(())
    }
}

fn render(lines: &[Arc<Line>]) -> Vec<u8> {
    let mut text = Vec::new();
    for line in lines {
        text.extend_from_slice(line.json.get().as_bytes());
        text.push(b'\n');
    }
    text
}
