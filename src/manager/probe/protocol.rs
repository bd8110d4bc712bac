//! What the server and a probe say to each other: lines of JSON over a socket pair, the request first.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::manager::stages::{Announced, Gates};

/// The environment variable that makes a program a probe, with the version of the protocol.
pub const MARKER: &str = "HOTSERVE_PROBE";
/// Server and probe are the same program in all but tests: a change of the protocol needs no compatibility.
pub const VERSION: u32 = 1;
/// The longest request: golden cases come in it, which a message bounds.
pub const MAX_REQUEST: u64 = 64 << 20;
/// The most that a probe may say.
pub const MAX_SAID: usize = 64 << 10;

/// What to try.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// The artifact's file.
    pub path: PathBuf,
    /// What it must hash to.
    pub digest: Digest,
    /// What is said of it.
    pub announced: Announced,
    /// What it must pass.
    pub gates: Gates,
    /// The memory that it may take, in bytes.
    pub memory: u64,
    /// The processor time that it may take.
    pub time: Duration,
}

/// What a probe says, in this order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// It is a probe, and has bounded itself.
    Hello(u32),
    /// It begins to do this: if it says nothing more, this is what it died of.
    Doing(Doing),
    /// The model is fit to serve.
    Passed(Facts),
    /// It is not.
    Refused {
        /// The label of `hotserve_rejections_total`.
        reason: String,
        /// What is wrong.
        detail: String,
    },
}

/// What a model is put through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// The bytes are read and made a model.
    Load,
    /// The model answers.
    Infer,
}

impl Doing {
    /// As it goes into a sentence about a model.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Load => "while it was loaded",
            Self::Infer => "while it answered",
        }
    }
}

/// What was measured of a model that passed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Facts {
    /// What it says that it holds, in bytes.
    pub model_bytes: u64,
    /// What loading it and asking it took at the peak, in bytes; none where the system does not tell.
    pub peak_bytes: Option<u64>,
    /// The fastest run of one row.
    pub row_cost: Duration,
    /// The middle one.
    pub row_p50: Duration,
    /// The slowest but for a hundredth.
    pub row_p99: Duration,
}
