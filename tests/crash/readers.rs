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

pub fn state(version: u64) -> Value {
    json!({"solo": version})
}

pub fn pair_state(version: u64) -> Value {
    json!({"pair": version})
}

pub fn model(version: u64) -> Vec<u8> {
    constant_model(version)
}

/// Other bytes than those of the model alone, for the cache keeps one artifact of one digest.
pub fn pair_model(version: u64) -> Vec<u8> {
    constant_model(1_000_000 + version)
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
pub fn look(wire: &mut Wire, mut see: impl FnMut(Slot, u64) -> Result<(), String>) -> Result<(), Fault> {
    let one = r#"{"instances":[[0]]}"#;
    wire.send(&[get("/state/solo"), post("/predict/solo", one), get("/state"), post("/predict/pair", one)].concat())?;
    for (slot, check) in [
        (Slot::State, solo_state as fn(&Answer<'_>) -> Result<u64, String>),
        (Slot::Model, solo_model),
        (Slot::Pair, state_of_the_pair),
        (Slot::Pair, model_of_the_pair),
    ] {
        let answer = wire.receive()?;
        // The initial state, with which an instance begins, has the version 0.
        if answer.status == 200 && answer.state_version.or(answer.model_version) != Some(0) {
            let version = check(&answer).map_err(|wrong| {
                let body = String::from_utf8_lossy(answer.body);
                Fault::Wrong(format!("{slot:?}: {wrong}: {answer:?}: {body}"))
            })?;
            see(slot, version).map_err(Fault::Wrong)?;
        }
    }
    Ok(())
}

fn solo_state(answer: &Answer<'_>) -> Result<u64, String> {
    is_state(answer, state)
}

fn state_of_the_pair(answer: &Answer<'_>) -> Result<u64, String> {
    is_state(answer, pair_state)
}

fn is_state(answer: &Answer<'_>, state: fn(u64) -> Value) -> Result<u64, String> {
    let version = answer.state_version.ok_or("no version")?;
    let expected = json!({"state": state(version)}).to_string();
    if answer.body == expected.as_bytes() { Ok(version) } else { Err(format!("not {expected}")) }
}

fn solo_model(answer: &Answer<'_>) -> Result<u64, String> {
    is_model(answer, &model, 0)
}

fn model_of_the_pair(answer: &Answer<'_>) -> Result<u64, String> {
    let version = is_model(answer, &pair_model, 1_000_000)?;
    if answer.state_version == Some(version) { Ok(version) } else { Err("a torn pair".to_owned()) }
}

fn is_model(answer: &Answer<'_>, model: &dyn Fn(u64) -> Vec<u8>, offset: u64) -> Result<u64, String> {
    let version = answer.model_version.ok_or("no version")?;
    let digest = format!("sha256:{}", Digest::of(&model(version)));
    if answer.model_digest != Some(&digest) {
        return Err(format!("not {digest}"));
    }
    let body: Value = serde_json::from_slice(answer.body).map_err(|error| error.to_string())?;
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let expected = (version + offset) as f64;
    let whole = body["predictions"] == json!([expected]) && body["model"]["version"] == json!(version);
    if whole { Ok(version) } else { Err(format!("not the prediction {expected}")) }
}

/// Readers that look all the time, until the process is gone.
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Readers {
    pub fn start(addr: SocketAddr, connections: usize, highs: &Arc<Highs>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..connections)
            .map(|_| {
                let (stop, highs) = (Arc::clone(&stop), Arc::clone(highs));
                std::thread::spawn(move || read(addr, &highs, &stop))
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

fn read(addr: SocketAddr, highs: &Highs, stop: &AtomicBool) -> Result<(), String> {
    let Ok(mut wire) = Wire::connect(addr) else { return Ok(()) };
    while !stop.load(Ordering::Relaxed) {
        let before = SLOTS.map(|slot| highs.get(slot));
        let looked = look(&mut wire, |slot, version| {
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
