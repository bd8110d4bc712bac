//! The start: what the last run served last, proved again, and when that makes the server ready.

use serde_json::value::RawValue;

use super::Manager;
use super::journal::{Saved, SavedModel};
use super::pipeline::Stages;
use super::policy::Mark;
use super::stages::{Announced, Refusal, Warm};
use crate::id::Slot;
use crate::notification::ModelLimits;
use crate::serving::{ModelFacts, ServedModel, ServedState};
use crate::status::Bootstrapped;

impl Manager {
    /// Where what is served at the start came from.
    pub(super) fn begun_from(&self) -> Bootstrapped {
        match self.status.manifest() {
            Some(manifest) if manifest.last_contact.is_some() => Bootstrapped::Manifest,
            _ if self.found => Bootstrapped::Lookback,
            _ => Bootstrapped::None,
        }
    }

    pub(super) fn become_ready(&mut self, how: &str, from: Bootstrapped) {
        self.ready = true;
        if self.status.set_ready() {
            self.status.set_bootstrapped(from);
            let (snapshot, from) = (self.swapper.snapshot(), from.code());
            tracing::info!(states = snapshot.states.len(), models = snapshot.models.len(), from, "ready: {how}");
        }
    }

    /// Serves what the last run served last, each model proved and warmed again. Answers whether there was anything.
    pub(super) async fn restore(&mut self) -> bool {
        let kept: Vec<Saved> = self.journal.live().cloned().collect();
        if kept.is_empty() {
            return false;
        }
        self.status.waiting_for("the last known good is being loaded");
        let (mut states, mut models) = (Vec::new(), Vec::new());
        for saved in kept {
            let Saved { slot, rank, content, published_at, state, model } = saved;
            match (&slot, state, model) {
                (Slot::State(key), Some(json), _) => {
                    let Ok(json) = RawValue::from_string(json) else { continue };
                    states.push(ServedState::new(key.clone(), rank.clone(), &json, published_at));
                    self.books.entry(slot).or_default().serve(Mark { rank, content, announcement: content });
                }
                (Slot::Model(name), _, Some(model)) => match self.restore_model(&model).await {
                    Ok(warm) => {
                        let SavedModel { label, format, digest, size, .. } = model;
                        let (name, version) = (name.clone(), rank.clone());
                        let facts = ModelFacts { name, rank: version, label, format, digest, size, published_at };
                        models.push(ServedModel::new(facts, warm.model, warm.row_cost));
                        self.books.entry(slot).or_default().serve(Mark { rank, content, announcement: content });
                    }
                    Err(refusal) => {
                        self.metrics.rejections.get(&[refusal.reason]).increment(1);
                        self.books.entry(slot.clone()).or_default().raise_floor(rank.clone());
                        tracing::warn!(%slot, version = %rank, reason = refusal.reason,
                            "the last known good cannot be served; waiting for the stream: {refusal}");
                    }
                },
                _ => {}
            }
        }
        let restored = !states.is_empty() || !models.is_empty();
        if restored {
            tracing::info!(states = states.len(), models = models.len(), "serving the last known good");
            self.swap(states, models);
        }
        restored
    }

    pub(super) async fn restore_model(&self, saved: &SavedModel) -> Result<Warm, Refusal> {
        let artifact = self.cache.get(saved.digest, Some(saved.size)).ok_or_else(|| {
            Refusal::new("not_found", format!("artifact {} is not in the cache folder", saved.digest.short()))
        })?;
        let announced = Announced {
            format: saved.format.clone(),
            encoding: saved.encoding,
            signature: saved.signature.clone(),
            golden: saved.golden.clone(),
            limits: ModelLimits::default(),
            contract: None,
        };
        self.pipeline.load(artifact, announced, &mut Stages::new()).await
    }
}
