//! The way to tell the manager something, for who is not the stream: an operator at `/admin`.

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::notification::Control;

/// How many commands may wait.
const QUEUE: usize = 16;

/// Tells the manager. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

/// A command, and where its answer goes.
pub(super) struct Command {
    pub(super) control: Control,
    pub(super) answer: oneshot::Sender<Result<Done, Denied>>,
}

/// What became of a command. It survives a restart (with a cache folder).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Done {
    /// Which slot, as `model fraud`.
    pub slot: String,
    /// What was told.
    pub action: &'static str,
    /// The version that was served before, if any.
    pub before: Option<String>,
    /// The version that is served now, if any.
    pub serving: Option<String>,
    /// Whether that is all.
    pub progress: Progress,
}

/// How far a command has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// What is served is what was asked for.
    Done,
    /// What was asked for is being made ready; what was served is served meanwhile.
    Loading,
    /// What was asked for is not here: it is served when it is announced again.
    Waiting,
}

/// Why a command changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// Nothing was ever announced for the slot.
    #[error("there is no {0}")]
    NoSlot(String),
    /// There is no older version to go back to.
    #[error("{0}")]
    NothingToGoBackTo(String),
    /// The version was revoked, or took the process down.
    #[error("{0}")]
    Barred(String),
    /// A setting of this instance says otherwise, and wins.
    #[error("{0}")]
    Overruled(String),
    /// It would not survive a restart.
    #[error("the journal cannot be written: {0}")]
    Disk(String),
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
}

impl Denied {
    /// The `code` of the problem document.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSlot(_) => "no_slot",
            Self::NothingToGoBackTo(_) => "nothing_to_go_back_to",
            Self::Barred(_) => "barred",
            Self::Overruled(_) => "overruled",
            Self::Disk(_) => "disk",
            Self::Stopping => "stopping",
        }
    }
}

impl Handle {
    pub(super) fn new() -> (Self, mpsc::Receiver<Command>) {
        let (commands, inbox) = mpsc::channel(QUEUE);
        (Self { commands }, inbox)
    }

    /// A handle that nobody listens to, for tests of what stands above the manager.
    pub fn detached() -> Self {
        Self::new().0
    }

    /// Tells it, and waits for what becomes of it.
    pub async fn control(&self, control: Control) -> Result<Done, Denied> {
        let (answer, outcome) = oneshot::channel();
        self.commands.send(Command { control, answer }).await.map_err(|_| Denied::Stopping)?;
        outcome.await.map_err(|_| Denied::Stopping)?
    }
}
