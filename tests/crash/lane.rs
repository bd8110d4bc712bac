//! One instance that dies again and again: its stream, its cache folder, and what was seen of it.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use hotserve::publisher::Publisher;
use serde_json::{Value, json};

use super::process::{Failpoint, Network, Process};
use super::readers::{Contents, Fault, Highs, Readers, SLOTS, Slot, look};
use crate::support::{Cloud, until};
use crate::wire::{Wire, get};

/// How many versions are published at most until the failpoint is come to.
const PUBLICATIONS: u32 = 15;
/// A state this large, a few times, makes the journal be written anew.
const PAD: usize = 300_000;

pub struct Lane<'a> {
    cloud: &'a Cloud,
    folder: PathBuf,
    stream: String,
    publisher: Publisher,
    contents: Contents,
    highs: Arc<Highs>,
    /// The version that was published last.
    newest: u64,
    /// Of the large state, which only some rounds publish: the version that is served, and what was published since.
    pad: (u64, Vec<u64>),
}

/// What a death left to be served.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Slots in which the start from disk found something newer than any reader had been answered with.
    pub newer: usize,
    /// Slots whose newest version a reader was answered with before the death.
    pub read: usize,
}

impl<'a> Lane<'a> {
    pub async fn new(number: u64, cloud: &'a Cloud) -> Self {
        let stream = format!("lane-{number}");
        let folder = cloud.path(&stream);
        std::fs::create_dir_all(&folder).unwrap();
        let publisher = Publisher::new(&cloud.aws, stream.clone());
        publisher.ensure_stream(1).await.unwrap();
        let mut lane = Self {
            cloud,
            folder,
            stream,
            publisher,
            contents: Contents { instance: number },
            highs: Arc::default(),
            newest: 0,
            pad: (0, vec![]),
        };
        lane.begin().await;
        lane
    }

    /// Has something served, so that there is something to fall back on.
    async fn begin(&mut self) {
        self.publish(false).await;
        let mut process = self.start(None);
        let readers = Readers::start(process.addr().await.unwrap(), 1, self.contents, &self.highs);
        until("the first versions", async || self.is_served().then_some(())).await;
        readers.finish().unwrap();
        process.stop().await;
    }

    /// One death at a failpoint, and the start from disk after it.
    pub async fn round(&mut self, failpoint: Failpoint) -> Outcome {
        // Always something new: a model that was being loaded at the last death is not the newest now.
        self.publish(failpoint.needs_pad()).await;
        self.die(failpoint).await;
        let outcome = self.start_from_disk().await;
        outcome.unwrap_or_else(|wrong| panic!("{} after {failpoint:?}: {wrong}", self.stream))
    }

    async fn die(&mut self, failpoint: Failpoint) {
        let mut process = self.start(Some(failpoint));
        if let Some(addr) = process.addr().await {
            let readers = Readers::start(addr, 2, self.contents, &self.highs);
            let mut publications = 1;
            while until("the newest version, or death", async || {
                let ended = process.ended().is_some();
                (ended || self.is_served()).then_some(!ended)
            })
            .await
            {
                assert!(publications < PUBLICATIONS, "never comes to {failpoint:?}: {}", process.log());
                self.publish(failpoint.needs_pad()).await;
                publications += 1;
            }
            let read = readers.finish();
            read.unwrap_or_else(|wrong| panic!("{} before {failpoint:?}: {wrong}", self.stream));
        }
        process.died_at(failpoint);
    }

    /// With no endpoint within reach: each slot is what it was or what was on its way, and nothing that was read is lost.
    async fn start_from_disk(&mut self) -> Result<Outcome, String> {
        let mut process = Process::start(&self.folder, &self.stream, Network::Down, None);
        let addr = process.addr().await.ok_or_else(|| format!("it ended: {}", process.log()))?;
        let mut wire = Wire::connect(addr).unwrap();
        until("the start from disk", async || {
            wire.send(&get("/readyz")).unwrap();
            (wire.receive().unwrap().status == 200).then_some(())
        })
        .await;
        let before = SLOTS.map(|slot| self.highs.get(slot));
        let mut outcome = Outcome { newer: 0, read: before.iter().filter(|high| **high == self.newest).count() };
        let mut answers = vec![];
        look(&mut wire, self.contents, |slot, version| {
            answers.push(slot);
            let known = before[slot as usize];
            if version != known && version != self.newest {
                return Err(format!("{slot:?} is {version}, neither {known}, read before, nor {}", self.newest));
            }
            outcome.newer += usize::from(version > known);
            self.highs.raise(slot, version);
            Ok(())
        })
        .map_err(|fault| match fault {
            Fault::Gone => format!("it ended: {}", process.log()),
            Fault::Wrong(wrong) => wrong,
        })?;
        if answers != [Slot::State, Slot::Model, Slot::Pair, Slot::Pair] {
            return Err(format!("only {answers:?} answered: {}", process.log()));
        }
        self.check_pad(&mut wire)?;
        drop(wire);
        process.stop().await;
        Ok(outcome)
    }

    fn check_pad(&mut self, wire: &mut Wire) -> Result<(), String> {
        let (known, published) = &mut self.pad;
        wire.send(&get("/state/pad")).unwrap();
        let answer = wire.receive().unwrap();
        let version = answer.state_version.unwrap_or(0);
        if version != *known && !published.contains(&version) {
            return Err(format!("the large state is {version}, neither {known} nor of {published:?}"));
        }
        if version > 0 && answer.body != json!({"state": pad(version)}).to_string().as_bytes() {
            return Err(format!("the large state is not that of the version {version}"));
        }
        published.retain(|published| *published > version);
        *known = version;
        Ok(())
    }

    fn start(&self, failpoint: Option<Failpoint>) -> Process {
        let endpoints = self.cloud.embedded.endpoints();
        Process::start(&self.folder, &self.stream, Network::Up(&endpoints), failpoint)
    }

    /// Whether readers were answered with the newest version of everything.
    fn is_served(&self) -> bool {
        SLOTS.iter().all(|slot| self.highs.get(*slot) == self.newest)
    }

    /// The next version of everything.
    async fn publish(&mut self, with_pad: bool) {
        self.newest += 1;
        let version = self.newest;
        if with_pad {
            self.pad.1.push(version);
            self.announce(&json!({"key": "pad", "version": version, "state": pad(version)})).await;
        }
        let contents = self.contents;
        self.announce(&json!({"key": "solo", "version": version, "state": contents.state(version)})).await;
        let inline = base64::engine::general_purpose::STANDARD.encode(contents.model_of_the_pair(version));
        let model = json!({"name": "pair", "version": version, "format": "linear", "inline": inline});
        let state = contents.state_of_the_pair(version);
        self.announce(&json!({"version": version, "state": state, "model": model})).await;
        let model = self.cloud.upload("solo", version, "linear", &contents.model(version)).await;
        self.announce(&json!({"model": model})).await;
    }

    async fn announce(&self, message: &Value) {
        self.publisher.announce("test", message.to_string().as_bytes()).await.unwrap();
    }
}

fn pad(version: u64) -> Value {
    json!({"pad": version, "x": "x".repeat(PAD)})
}
