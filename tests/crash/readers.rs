//! Readers of a process that is about to die, and what they were answered with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hotserve::id::Digest;
use serde_json::{Value, json};

use crate::support::constant_model;
use crate::wire::{Answer, Wire, get, post};

/// What moves together: a state alone, a model alone, and a state with a model in one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    State,
    Model,
    Pair,
}

pub const SLOTS: [Slot; 3] = [Slot::State, Slot::Model, Slot::Pair];

/// What one instance is sent. No bytes are anybody else's, or of another slot.
#[derive(Debug, Clone, Copy)]
pub struct Contents {
    /// The number of the instance.
    pub instance: u64,
}

impl Contents {
    pub fn state(self, version: u64) -> Value {
        json!({"solo": self.predicted(version)})
    }

    pub fn state_of_the_pair(self, version: u64) -> Value {
        json!({"pair": self.predicted(version)})
    }

    pub fn model(self, version: u64) -> Vec<u8> {
        constant_model(self.predicted(version))
    }

    pub fn model_of_the_pair(self, version: u64) -> Vec<u8> {
        constant_model(self.predicted_by_the_pair(version))
    }

    fn predicted(self, version: u64) -> u64 {
        self.instance * 10_000 + version
    }

    fn predicted_by_the_pair(self, version: u64) -> u64 {
        1_000_000 + self.predicted(version)
    }
}

/// The highest version of each slot that anybody was answered with.
#[derive(Debug, Default)]
pub struct Highs([AtomicU64; 3]);

impl Highs {
    pub fn get(&self, slot: Slot) -> u64 {
        self.0[slot as usize].load(Ordering::SeqCst)
    }

    pub fn raise(&self, slot: Slot, version: u64) {
        self.0[slot as usize].fetch_max(version, Ordering::SeqCst);
    }
}

/// Why a look ended early.
#[derive(Debug)]
pub enum Fault {
    /// The process is gone.
    Gone,
    /// An answer contradicts itself, or one before it.
    Wrong(String),
}

impl From<std::io::Error> for Fault {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// Reads every slot once and tells each version as soon as its answer is here. What is not served yet is left out.
pub fn look(
    wire: &mut Wire,
    contents: Contents,
    mut see: impl FnMut(Slot, u64) -> Result<(), String>,
) -> Result<(), Fault> {
    let one = r#"{"instances":[[0]]}"#;
    wire.send(&[get("/state/solo"), post("/predict/solo", one), get("/state"), post("/predict/pair", one)].concat())?;
    for (part, slot) in [Slot::State, Slot::Model, Slot::Pair, Slot::Pair].into_iter().enumerate() {
        let answer = wire.receive()?;
        // The initial state, with which an instance begins, has the version 0.
        if answer.status == 200 && answer.model_version.or(answer.state_version) != Some(0) {
            let version = match part {
                0 => is_state(&answer, |version| contents.state(version)),
                1 => is_model(&answer, |version| contents.model(version), contents.predicted(0)),
                2 => is_state(&answer, |version| contents.state_of_the_pair(version)),
                _ => is_pair(&answer, contents),
            };
            let version = version.map_err(|wrong| Fault::Wrong(format!("{slot:?}: {wrong}: {answer}")))?;
            see(slot, version).map_err(Fault::Wrong)?;
        }
    }
    Ok(())
}

fn is_state(answer: &Answer<'_>, state: impl Fn(u64) -> Value) -> Result<u64, String> {
    let version = answer.state_version.ok_or("no version")?;
    let expected = json!({"state": state(version)}).to_string();
    if answer.body == expected.as_bytes() { Ok(version) } else { Err(format!("not {expected}")) }
}

fn is_pair(answer: &Answer<'_>, contents: Contents) -> Result<u64, String> {
    let zero = contents.predicted_by_the_pair(0);
    let version = is_model(answer, |version| contents.model_of_the_pair(version), zero)?;
    if answer.state_version == Some(version) { Ok(version) } else { Err("a torn pair".to_owned()) }
}

fn is_model(answer: &Answer<'_>, model: impl Fn(u64) -> Vec<u8>, zero: u64) -> Result<u64, String> {
    let version = answer.model_version.ok_or("no version")?;
    let digest = format!("sha256:{}", Digest::of(&model(version)));
    if answer.model_digest != Some(&digest) {
        return Err(format!("not {digest}"));
    }
    let body: Value = serde_json::from_slice(answer.body).map_err(|error| error.to_string())?;
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let expected = (zero + version) as f64;
    let whole = body["predictions"] == json!([expected]) && body["model"]["version"] == json!(version);
    if whole { Ok(version) } else { Err(format!("not the prediction {expected}")) }
}

/// Readers that look all the time, until the process is gone.
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Readers {
    pub fn start(addr: SocketAddr, connections: usize, contents: Contents, highs: &Arc<Highs>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..connections)
            .map(|_| {
                let (stop, highs) = (Arc::clone(&stop), Arc::clone(highs));
                std::thread::spawn(move || read(addr, contents, &highs, &stop))
            })
            .collect();
        Self { stop, threads }
    }

    /// Ends them; what one of them saw may have been wrong.
    pub fn finish(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    }
}

fn read(addr: SocketAddr, contents: Contents, highs: &Highs, stop: &AtomicBool) -> Result<(), String> {
    let Ok(mut wire) = Wire::connect(addr) else { return Ok(()) };
    while !stop.load(Ordering::Relaxed) {
        let before = SLOTS.map(|slot| highs.get(slot));
        let looked = look(&mut wire, contents, |slot, version| {
            highs.raise(slot, version);
            let known = before[slot as usize];
            if version < known { Err(format!("{slot:?} went back from {known} to {version}")) } else { Ok(()) }
        });
        match looked {
            Ok(()) => std::thread::sleep(Duration::from_millis(3)),
            Err(Fault::Gone) => return Ok(()),
            Err(Fault::Wrong(wrong)) => return Err(wrong),
        }
    }
    Ok(())
}
