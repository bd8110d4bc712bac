//! Memory for a new model: who has to go for it, and how the slot that went gets its model back.
//!
//! The pipeline asks, for it knows what a model takes; the manager decides, for it alone swaps.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::memory::{Admission, Held, human};
use super::pipeline::Served;
use super::stages::{Refusal, Warm};
use super::timing::Stages;
use super::{Goal, Manager, RETRY, Work};
use crate::id::{ModelName, Slot};
use crate::serving::{ModelFacts, ServedModel};

/// What the pipeline asks, and what comes of it.
pub enum RoomEvent {
    /// A model does not fit.
    Needed(NeedsRoom),
    /// A probe died of the little that there was: whatever is kept to go back to may go.
    PreviousUnwanted(
        /// Whether anything went.
        oneshot::Sender<bool>,
    ),
    /// A model that was unloaded is there again, or not.
    Reloaded(ModelName, Result<Warm, Refusal>),
}

/// A model that does not fit.
pub struct NeedsRoom {
    /// Its slot.
    pub name: ModelName,
    /// What loading it takes, in bytes.
    pub need: u64,
    /// Whether there is room, or will be in a moment; else why not.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// The manager's part of it.
pub(super) struct Room {
    sender: mpsc::UnboundedSender<RoomEvent>,
    pub(super) events: mpsc::UnboundedReceiver<RoomEvent>,
    /// What was unloaded for a newer version that is not served yet.
    unloaded: HashMap<ModelName, ModelFacts>,
}

impl Room {
    /// The room, and the way to ask for it.
    pub(super) fn new() -> (Self, mpsc::UnboundedSender<RoomEvent>) {
        let (sender, events) = mpsc::unbounded_channel();
        (Self { sender: sender.clone(), events, unloaded: HashMap::new() }, sender)
    }
}

impl Manager {
    pub(super) fn on_room(&mut self, event: RoomEvent) {
        match event {
            RoomEvent::Needed(NeedsRoom { name, need, answer }) => {
                let made = self.make_room(&name, need);
                // Who does not wait any more was superseded; what went for it comes back by `bring_back`.
                let _ = answer.send(made);
            }
            RoomEvent::PreviousUnwanted(answer) => {
                let _ = answer.send(self.let_previous_go());
            }
            RoomEvent::Reloaded(name, result) => self.on_reloaded(name, result),
        }
    }

    fn make_room(&mut self, name: &ModelName, need: u64) -> Result<(), String> {
        let Some(budget) = self.pipeline.budget() else { return Ok(()) };
        let snapshot = self.swapper.snapshot();
        let bytes = |model: &Arc<ServedModel>| model.model.memory_bytes() as u64;
        let previous = self.previous_bytes();
        let all = snapshot.models.values().map(bytes).sum::<u64>() + previous;
        let held = Held { all, previous, replaced: snapshot.model(name.as_str()).map_or(0, bytes) };
        match budget.admit(held, need) {
            Admission::Fits => Ok(()),
            Admission::LetPreviousGo if self.let_previous_go() => Ok(()),
            Admission::UnloadFirst => {
                self.let_previous_go();
                self.make_way(name);
                Ok(())
            }
            Admission::LetPreviousGo | Admission::Refuse => Err(format!(
                "it takes {} to load, and other models take {} of the {} that all may take (--memory-budget)",
                human(need),
                human(held.all),
                human(budget.bytes)
            )),
        }
    }

    /// Bytes of the versions that are kept warm only to go back to, of all slots.
    fn previous_bytes(&self) -> u64 {
        self.warm.values().map(|model| model.model.memory_bytes() as u64).sum()
    }

    /// Gives the versions that are kept warm to the reaper. Answers whether there were any. The way back to them is by
    /// the disk then.
    fn let_previous_go(&mut self) -> bool {
        let any = !self.warm.is_empty();
        for (name, model) in self.warm.drain() {
            tracing::info!(slot = %Slot::Model(name.clone()), version = %model.facts.rank, "not kept warm any more, for want of memory");
            self.reaper.retire_model(model);
        }
        any
    }

    /// Takes a model out of what is served: its slot says that it comes back, until it does.
    fn make_way(&mut self, name: &ModelName) {
        let snapshot = self.swapper.snapshot();
        let Some(model) = snapshot.models.get(name) else { return };
        tracing::warn!(slot = %Slot::Model(name.clone()), version = %model.facts.rank,
            "unloaded, for a newer version does not fit beside it: 503 until that is served, or this one again");
        self.room.unloaded.insert(name.clone(), model.facts.clone());
        self.swap_snapshot(snapshot.reloading(name));
        // It goes for the room that it takes.
        self.let_previous_go();
    }

    /// What a new model is measured against, if it is.
    pub(super) fn served_beside(&self, slot: &Slot) -> Option<Served> {
        if self.pipeline.compares() { self.saved(slot) } else { None }
    }

    /// What the journal says that a model's slot serves.
    fn saved(&self, slot: &Slot) -> Option<Served> {
        let saved = self.journal.of(slot)?.served.as_ref()?.model.as_ref()?;
        Some(Served { artifact: self.cache.get(saved.digest, Some(saved.size))?, announced: saved.announced(slot) })
    }

    /// Loads what was unloaded again, where nothing newer is on its way any more. To be called whenever that may be.
    pub(super) fn bring_back(&mut self) {
        let served = self.swapper.snapshot();
        // The newer version came.
        self.room.unloaded.retain(|name, _| !served.models.contains_key(name));
        let idle = |name: &&ModelName| !self.work.contains_key(&Slot::Model((*name).clone()));
        let idle: Vec<ModelName> = self.room.unloaded.keys().filter(idle).cloned().collect();
        for name in idle {
            self.reload(name, std::time::Duration::ZERO);
        }
    }

    /// What was unloaded is not to come back.
    pub(super) fn forget_unloaded(&mut self, name: &ModelName) {
        self.room.unloaded.remove(name);
        let slot = Slot::Model(name.clone());
        if let Some(work) = self.work.remove(&slot) {
            work.abort.abort();
        }
    }

    fn reload(&mut self, name: ModelName, pause: std::time::Duration) {
        let slot = Slot::Model(name.clone());
        let (pipeline, sender, saved) = (self.pipeline.clone(), self.room.sender.clone(), self.saved(&slot));
        let task = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let result = match saved {
                Some(Served { artifact, announced }) => pipeline.load(artifact, announced, &mut Stages::new()).await,
                None => Err(Refusal::new("not_found", "the artifact is not in the cache folder")),
            };
            // The manager that does not listen any more is shutting down.
            let _ = sender.send(RoomEvent::Reloaded(name, result));
        });
        self.work.insert(slot, Work { goal: Goal::Reload, abort: task.abort_handle() });
    }

    fn on_reloaded(&mut self, name: ModelName, result: Result<Warm, Refusal>) {
        let slot = Slot::Model(name.clone());
        if self.work.get(&slot).is_none_or(|work| work.goal != Goal::Reload) {
            // Something newer came meanwhile.
            return;
        }
        self.work.remove(&slot);
        match result {
            Ok(warm) => {
                let Some(facts) = self.room.unloaded.remove(&name) else { return };
                self.said.remove(&slot);
                tracing::info!(%slot, version = %facts.rank, "served again, for the newer version was not fit");
                self.swap(vec![], vec![warm.served(facts)]);
            }
            Err(refusal) => {
                if self.said.insert(slot.clone()) {
                    tracing::error!(%slot, reason = %refusal.reason,
                        "what was unloaded cannot be loaded again; trying until something newer comes: {refusal}");
                }
                self.reload(name, RETRY);
            }
        }
    }
}
