//! The way back: a slot serves again what it served before, without a download.

use std::time::Instant;

use serde_json::value::RawValue;

use super::journal::{Saved, SavedModel};
use super::policy::Mark;
use super::stages::{Announced, Refusal, Warm};
use super::timing::Stages;
use super::{Errand, Manager};
use crate::id::{Rank, Slot, StateKey};
use crate::notification::ModelLimits;
use crate::serving::live::Typed;
use crate::serving::{ModelFacts, ServedModel, ServedState, Snapshot};
use crate::status::Entry;
use crate::telemetry;

impl Saved {
    /// A model, ready to be served.
    pub(super) fn served_model(&self, warm: Warm) -> Option<ServedModel> {
        let (Slot::Model(name), Some(model)) = (&self.slot, &self.model) else { return None };
        let SavedModel { label, format, digest, size, .. } = model.clone();
        let (name, rank, published_at) = (name.clone(), self.rank.clone(), self.published_at);
        let facts = ModelFacts { name, rank, label, format, digest, size, published_at };
        Some(warm.served(facts))
    }
}

impl SavedModel {
    /// What was said of it, of the model in this slot.
    pub(super) fn announced(&self, slot: &Slot) -> Announced {
        let name = if let Slot::Model(name) = slot { Some(name.clone()) } else { None };
        let Self { format, encoding, signature, golden, .. } = self.clone();
        // It kept the limits when it came.
        Announced { name, format, encoding, signature, golden, limits: ModelLimits::default(), contract: None }
    }
}

impl Manager {
    /// The state as what is wanted of its key.
    pub(super) fn typed(&self, key: &StateKey, json: &RawValue) -> Result<Option<Typed>, Refusal> {
        self.options.types.parse(key, json).map_err(|detail| Refusal::new("state_type", detail))
    }

    /// A state that was served before, ready to be served again: by another program, perhaps, that wanted another type.
    pub(super) fn served_state(&self, key: &StateKey, saved: &Saved) -> Result<ServedState, Refusal> {
        let json = saved.state.clone().and_then(|text| RawValue::from_string(text).ok());
        let json = json.ok_or_else(|| Refusal::new("malformed", "the journal's line makes no sense"))?;
        let typed = self.typed(key, &json)?;
        Ok(ServedState::new(key.clone(), saved.rank.clone(), &json, saved.published_at).with_typed(typed))
    }

    /// Serves again what was served before: at once if it is a state or a warm model, else when it is loaded.
    pub(super) fn go_back(&mut self, slot: &Slot, rank: &Rank) {
        let saved = self.journal.of(slot).and_then(|kept| kept.before.iter().find(|saved| saved.rank == *rank));
        let saved = saved.cloned();
        if let Some(saved) = &saved
            && let Err(refusal) = self.vouch(saved)
        {
            return self.lose(saved, &refusal);
        }
        match (slot, saved) {
            (Slot::Model(name), Some(saved)) => {
                if let Some(warm) = self.warm.get(name).filter(|warm| warm.facts.rank == *rank).cloned() {
                    self.commit_again(slot, saved, |snapshot| snapshot.with_again(warm), Stages::new());
                } else {
                    self.load_again(slot.clone(), saved);
                }
            }
            (Slot::State(key), Some(saved)) => {
                let state = match self.served_state(key, &saved) {
                    Ok(state) => state,
                    Err(refusal) => return self.lose(&saved, &refusal),
                };
                self.commit_again(slot, saved, |snapshot| snapshot.with(vec![state], vec![]), Stages::new());
            }
            (Slot::State(_), None) if *rank == Rank::Initial => self.begin_again(slot),
            _ => self.lose_rank(slot, rank),
        }
    }

    /// A model that was loaded again from the disk.
    pub(super) fn commit_model_again(&mut self, saved: Saved, warm: Warm, stages: Stages) {
        let Some(model) = saved.served_model(warm) else { return };
        let slot = saved.slot.clone();
        self.commit_again(&slot, saved, |snapshot| snapshot.with(vec![], vec![model]), stages);
    }

    fn commit_again(
        &mut self,
        slot: &Slot,
        saved: Saved,
        next: impl FnOnce(&Snapshot) -> Snapshot,
        mut stages: Stages,
    ) {
        let mark = saved.mark();
        let digest = saved.model.as_ref().map(|model| model.digest.to_string());
        let begun = Instant::now();
        if let Err(error) = self.journal.serve(vec![saved]) {
            // What was revoked does not stay for want of room; the hold decides at the next start too.
            let served = self.books.get(slot).and_then(|book| book.served().map(|mark| book.hold().is_revoked(mark)));
            if served != Some(true) {
                self.note_full_disk(slot, &error);
                return;
            }
            tracing::warn!(%slot, %error, "the journal cannot be written: going back from what was revoked all the same");
        }
        stages.end("persist", begun);
        let begun = Instant::now();
        let next = next(&self.swapper.snapshot());
        self.swap_snapshot(next);
        stages.end("swap", begun);
        self.served_again(slot, mark, digest, stages);
    }

    /// The state that there was before any message.
    fn begin_again(&mut self, slot: &Slot) {
        let Slot::State(key) = slot else { return };
        let Some(json) = self.options.initial.get(key) else { return };
        let typed = match self.typed(key, json) {
            Ok(typed) => typed,
            Err(refusal) => {
                tracing::warn!(%slot, reason = %refusal.reason, "the initial state is not what is wanted: {refusal}");
                return self.lose_rank(slot, &Rank::Initial);
            }
        };
        if let Err(error) = self.journal.withdraw(slot) {
            self.note_full_disk(slot, &error);
            return;
        }
        let state = ServedState::new(key.clone(), Rank::Initial, json, None).with_typed(typed);
        self.swap(vec![state], vec![]);
        self.served_again(slot, super::initial_mark(), None, Stages::new());
    }

    fn served_again(&mut self, slot: &Slot, mark: Mark, digest: Option<String>, stages: Stages) {
        let rank = mark.rank.to_string();
        for superseded in self.books.entry(slot.clone()).or_default().serve(mark) {
            self.supersede(&superseded);
        }
        self.drop_warm();
        stages.record(&self.metrics);
        self.said.remove(slot);
        self.count(slot, "applied");
        tracing::info!(
            %slot,
            version = %rank,
            digest = telemetry::shown(digest.as_ref().map(|digest| &digest[..12])),
            load_ms = stages.ms("load"),
            persist_ms = stages.ms("persist"),
            swap_ms = stages.ms("swap"),
            "swapped back in"
        );
        self.status.record(Entry { digest, stages: stages.seconds, ..Entry::new("applied", [(slot.clone(), rank)]) });
    }

    /// An operator wants nothing to be served: what is goes to what is kept, and comes back from there.
    pub(super) fn unload(&mut self, slot: &Slot) {
        if let Err(error) = self.journal.withdraw(slot) {
            tracing::warn!(%slot, %error, "the journal cannot be written: what was unloaded is loaded at a start, and unloaded again");
        }
        if let Slot::Model(name) = slot {
            self.forget_unloaded(name);
        }
        let next = self.swapper.snapshot().without(slot);
        self.swap_snapshot(next);
        self.books.entry(slot.clone()).or_default().unload();
        // It is unloaded for its memory too.
        if let Slot::Model(name) = slot
            && let Some(model) = self.warm.remove(name)
        {
            self.reaper.retire_model(model);
        }
    }

    /// What is served was revoked, and there is nothing else: nothing is served.
    pub(super) fn withdraw(&mut self, slot: &Slot) {
        if let Err(error) = self.journal.withdraw(slot) {
            tracing::warn!(%slot, %error, "the journal cannot be written: what was revoked is withdrawn, but not for good");
        }
        if let Slot::Model(name) = slot {
            self.forget_unloaded(name);
        }
        let next = self.swapper.snapshot().without(slot);
        self.swap_snapshot(next);
        self.books.entry(slot.clone()).or_default().withdraw();
        self.drop_warm();
        tracing::warn!(%slot, "what was served was revoked, and nothing older is kept: nothing is served");
    }

    /// Loads a kept model from the disk, off this task.
    fn load_again(&mut self, slot: Slot, saved: Saved) {
        let Some(model) = saved.model.clone() else { return self.lose_rank(&slot, &saved.rank) };
        let (pipeline, artifact) = (self.pipeline.clone(), self.cache.get(model.digest, Some(model.size)));
        let announced = model.announced(&slot);
        let empty = self.books.get(&slot).is_none_or(|book| book.served().is_none());
        let name = if let Slot::Model(name) = &slot { Some(name.clone()) } else { None }.filter(|_| empty);
        self.send(slot, Errand::GoBack(Box::new(saved)), async move {
            let mut stages = Stages::new();
            let Some(artifact) = artifact else { return (Err(missing(&model)), stages) };
            let warm = match name {
                Some(name) => pipeline.load_into_room(&name, artifact.clone(), announced, &mut stages).await,
                None => pipeline.load(artifact.clone(), announced, &mut stages).await,
            };
            (warm.map(|warm| (artifact, warm)), stages)
        });
    }

    /// What was kept cannot be served: the next best gets its turn.
    pub(super) fn lose(&mut self, saved: &Saved, refusal: &Refusal) {
        self.metrics.rejections.get(&[refusal.reason]).increment(1);
        let (slot, version) = (&saved.slot, &saved.rank);
        tracing::warn!(%slot, %version, reason = %refusal.reason, "what was kept cannot be served again: {refusal}");
        let entry = Entry { reason: Some(refusal.reason), detail: Some(refusal.detail.clone()), ..lost(saved) };
        self.status.record(entry);
        self.lose_rank(slot, version);
    }

    fn lose_rank(&mut self, slot: &Slot, rank: &Rank) {
        if let Some(book) = self.books.get_mut(slot) {
            book.lose(rank);
        }
        self.drop_warm();
    }

    fn note_full_disk(&mut self, slot: &Slot, error: &std::io::Error) {
        self.waiting.insert(slot.clone());
        if !self.said.insert(slot.clone()) {
            return;
        }
        tracing::warn!(%slot, %error, "the journal cannot be written: the way back waits for room on the disk");
    }
}

fn lost(saved: &Saved) -> Entry {
    let digest = saved.model.as_ref().map(|model| model.digest.to_string());
    Entry { digest, ..Entry::new("rejected", [(saved.slot.clone(), saved.rank.to_string())]) }
}

pub(super) fn missing(model: &SavedModel) -> Refusal {
    Refusal::new("not_found", format!("artifact {} is not in the cache folder", model.digest.short()))
}
