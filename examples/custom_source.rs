//! A source of one's own, a file to which lines are appended: `cargo run --example custom_source`.

use std::path::PathBuf;
use std::time::Duration;

use hotserve::Builder;
use hotserve::source::{Outlet, Record, Running, Source, SourceEvent};
use hotserve::store::memory::MemoryStore;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Reads one message a line, and looks for more ten times a second. Faults are a source's own affair.
struct Lines(PathBuf);

impl Source for Lines {
    fn run(self: Box<Self>, outlet: Outlet, shutdown: CancellationToken) -> Running {
        Box::pin(async move {
            if let Err(error) = self.follow(outlet, &shutdown).await {
                eprintln!("{} cannot be followed: {error}", self.0.display());
                shutdown.cancelled().await;
            }
        })
    }
}

impl Lines {
    async fn follow(&self, outlet: Outlet, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut file = BufReader::new(File::open(&self.0).await?);
        let (mut line, mut place, mut caught_up) = (Vec::new(), 0, false);
        while !shutdown.is_cancelled() {
            file.read_until(b'\n', &mut line).await?;
            if line.ends_with(b"\n") {
                // The place in the file orders messages without a version, after a restart too.
                place += u64::try_from(line.len())?;
                let record = Record::numbered(&"file".parse()?, place, std::mem::take(&mut line));
                outlet.send(SourceEvent::Records(vec![record])).await?;
            } else if !std::mem::replace(&mut caught_up, true) {
                outlet.send(SourceEvent::CaughtUp).await?; // Ready: what was there has been read.
            } else {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }
}

pub(crate) async fn run(path: PathBuf, at: TcpListener, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    println!("echo '{{\"state\": 42}}' >> {}\ncurl {}/state", path.display(), at.local_addr()?);
    let hotserve = Builder::default().source(Lines(path)).store(MemoryStore::default()).build().await?;
    Ok(hotserve.serve(at, shutdown).await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    run(file.path().to_owned(), TcpListener::bind("127.0.0.1:3000").await?, stop).await
}
