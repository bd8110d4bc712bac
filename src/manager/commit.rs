//! The swap: persist, replace the snapshot, retire what was served. All that can fail comes before.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Manager;
use super::pipeline::Stages;
use super::policy::{Book, Mark};
use super::stages::{Refusal, Warm};
use super::update::{Update, saved};
use crate::id::{Digest, ModelName, Slot};
use crate::metrics::unix_seconds;
use crate::notification::Location;
use crate::serving::{ModelFacts, ServedModel, ServedState, Snapshot};
use crate::status::Entry;
use crate::store::Artifact;

impl Manager {
    /// Persists, swaps, retires. All that can fail is over when the snapshot is replaced.
    pub(super) fn commit(&mut self, update: &Arc<Update>, model: Option<(Artifact, Warm)>, mut stages: Stages) {
        // A slot may have moved on while the other half of a pair was being loaded.
        let news = |slot: &Slot, mark: &Mark| self.books.get(slot).is_none_or(|book| book.is_news(&mark.rank));
        let parts: Vec<_> = update.parts.iter().filter(|(slot, mark)| news(slot, mark)).cloned().collect();
        let saved = parts.iter().filter_map(|(slot, mark)| saved(slot, mark, update, model.as_ref())).collect();
        let begun = Instant::now();
        if let Err(error) = self.journal.write(saved) {
            let detail = format!("the journal cannot be written, so what readers see would not survive: {error}");
            self.refuse(update, &Refusal::new("disk", detail), stages);
            return;
        }
        stages.insert("persist", begun.elapsed().as_secs_f64());

        let begun = Instant::now();
        let (mut states, mut models) = (Vec::new(), Vec::new());
        let mut digest = None;
        let mut model = model;
        for (slot, mark) in &parts {
            let published_at = update.notification.published_at;
            match slot {
                Slot::State(key) => states.extend(
                    update
                        .notification
                        .state
                        .as_ref()
                        .map(|state| ServedState::new(key.clone(), mark.rank.clone(), &state.json, published_at)),
                ),
                Slot::Model(name) => {
                    if let (Some((artifact, warm)), Some(announced)) = (model.take(), &update.notification.model) {
                        digest = Some(artifact.digest());
                        let facts = ModelFacts {
                            name: name.clone(),
                            rank: mark.rank.clone(),
                            label: announced.label.clone(),
                            format: announced.format.clone(),
                            digest: artifact.digest(),
                            size: artifact.size(),
                            published_at,
                        };
                        models.push(ServedModel::new(facts, warm.model, warm.row_cost));
                    }
                }
            }
        }
        self.swap(states, models);
        stages.insert("swap", begun.elapsed().as_secs_f64());

        for (slot, mark) in &parts {
            for superseded in self.books.entry(slot.clone()).or_default().serve(mark.clone()) {
                self.supersede(&superseded);
            }
            self.count(slot, "applied");
        }
        for (slot, _) in update.parts.iter().filter(|part| !parts.contains(part)) {
            self.count(slot, "superseded");
        }
        self.deferred.remove(&update.id);
        let leader = update.leader();
        if let Some(book) = self.books.get_mut(leader) {
            // Already taken out where the leader was served.
            book.refuse(|candidate| candidate.id == update.id);
        }
        self.note_applied(update, parts, digest, stages);
        if digest.is_some() {
            self.collect_cache();
        }
    }

    pub(super) fn swap(&self, states: Vec<ServedState>, models: Vec<ServedModel>) {
        let next = self.swapper.snapshot().with(states, models);
        self.replace(next);
    }

    /// Serves a snapshot from now on. What it has no more goes to the reaper.
    pub(super) fn replace(&self, next: Snapshot) {
        #[expect(clippy::cast_precision_loss, reason = "a count of swaps")]
        self.metrics.generation.set(next.generation as f64);
        let before = self.swapper.swap(next);
        let now = self.swapper.snapshot();
        let is_gone = |(name, model): &(&ModelName, &Arc<ServedModel>)| {
            now.models.get(*name).is_none_or(|served| !Arc::ptr_eq(served, model))
        };
        let gone = before.models.iter().filter(is_gone).map(|(_, model)| Arc::clone(model)).collect();
        self.reaper.retire(before, gone);
        self.metrics.swaps.increment(1);
        self.metrics.last_swap_timestamp.set(unix_seconds(SystemTime::now()));
    }

    pub(super) fn note_applied(
        &self,
        update: &Update,
        parts: Vec<(Slot, Mark)>,
        digest: Option<Digest>,
        mut stages: Stages,
    ) {
        let now = SystemTime::now();
        let since = |then| now.duration_since(then).unwrap_or(Duration::ZERO).as_secs_f64();
        let fresh = since(update.published());
        if update.live {
            stages.insert("stream", (fresh - update.taken_in.elapsed().as_secs_f64()).max(0.0));
        }
        for (stage, seconds) in &stages {
            self.metrics.swap_stage_duration.get(stage).record(*seconds);
        }
        for (slot, _) in parts.iter().filter(|_| update.live) {
            self.metrics.publish_to_serving.get(slot.kind()).record(fresh);
        }
        let served = parts.into_iter().map(|(slot, mark)| (slot, mark.rank.to_string()));
        let entry = Entry {
            digest: digest.map(|digest| digest.to_string()),
            sequence_number: Some(update.record.position.sequence.to_string()),
            publish_to_serving_seconds: update.live.then_some(fresh),
            stages,
            ..Entry::new("applied", served)
        };
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds for a person")]
        let publish_to_serving_ms = update.live.then_some((fresh * 1e3) as i64);
        tracing::info!(
            slots = %entry.slots.join(" and "),
            versions = %entry.versions.join(" and "),
            digest = digest.map(|digest| digest.short()),
            publish_to_serving_ms,
            "swapped in"
        );
        self.status.record(entry);
    }

    pub(super) fn collect_cache(&self) {
        let live = self.journal.live().filter_map(|saved| saved.model.as_ref().map(|model| model.digest));
        let candidates = self.books.values().filter_map(Book::aspired);
        let wanted = candidates.filter_map(|update| match update.notification.model.as_ref()?.location {
            Location::Uri { sha256, .. } => sha256,
            Location::Inline(ref bytes) => Some(Digest::of(bytes)),
        });
        let in_use: HashSet<Digest> = live.chain(wanted).collect();
        if let Err(error) = self.cache.collect(&in_use) {
            tracing::warn!(error = %error, "old artifacts cannot be removed from the cache folder");
        }
    }
}
