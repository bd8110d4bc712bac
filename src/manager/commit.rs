//! The swap: persist, replace the snapshot, retire what was served. All that can fail comes before.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Manager;
use super::policy::{Book, Mark};
use super::stages::{Refusal, Warm};
use super::timing::Stages;
use super::update::{Update, saved};
use crate::failpoint;
use crate::id::{Digest, ModelName, Slot};
use crate::metrics::unix_seconds;
use crate::notification::Location;
use crate::serving::{ModelFacts, ServedModel, ServedState, Snapshot};
use crate::status::Entry;
use crate::store::Artifact;
use crate::telemetry::{self, TraceContext};

impl Manager {
    /// Persists, swaps, retires. All that can fail is over when the snapshot is replaced.
    pub(super) fn commit(&mut self, update: &Arc<Update>, model: Option<(Artifact, Warm)>, mut stages: Stages) {
        // A slot may have moved on, or be held, while the other half of a pair was being loaded.
        let taken = |slot: &Slot, mark: &Mark| self.books.get(slot).is_none_or(|book| book.takes(mark));
        let parts: Vec<_> = update.parts.iter().filter(|(slot, mark)| taken(slot, mark)).cloned().collect();
        if parts.is_empty() {
            if let Some(book) = self.books.get_mut(update.leader()) {
                book.refuse(|candidate| candidate.id == update.id);
            }
            self.supersede(update);
            return;
        }
        let saved = parts
            .iter()
            .filter_map(|(slot, mark)| saved(slot, mark, update, &self.options.limits, model.as_ref()))
            .collect();
        let begun = Instant::now();
        if let Err(error) = self.journal.serve(saved) {
            let detail = format!("the journal cannot be written, so what readers see would not survive: {error}");
            self.refuse(update, &Refusal::new("disk", detail), stages);
            return;
        }
        stages.end("persist", begun);

        let begun = Instant::now();
        let (mut states, mut models) = (Vec::new(), Vec::new());
        let mut digest = None;
        let mut model = model;
        for (slot, mark) in &parts {
            let published_at = update.notification.published_at;
            match slot {
                Slot::State(key) => states.extend(update.notification.state.as_ref().map(|state| {
                    ServedState::new(key.clone(), mark.rank.clone(), &state.json, published_at)
                        .with_typed(update.typed.clone())
                })),
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
                        models.push(warm.served(facts));
                    }
                }
            }
        }
        failpoint::hit("swap.before");
        self.swap(states, models);
        failpoint::hit("swap.after");
        stages.end("swap", begun);

        for (slot, mark) in &parts {
            for superseded in self.books.entry(slot.clone()).or_default().serve(mark.clone()) {
                self.supersede(&superseded);
            }
            self.count(slot, "applied");
        }
        for (slot, mark) in update.parts.iter().filter(|part| !parts.contains(part)) {
            self.count(slot, "superseded");
            // What is only held back is remembered until it is not.
            let newer =
                self.books.get(slot).and_then(|book| book.served()).is_none_or(|at| mark.rank.is_above(&at.rank));
            if let Some(half) = update.without(update.leader()).filter(|_| newer && slot != update.leader()) {
                self.admit_half(half);
            }
        }
        self.deferred.remove(&update.id);
        let leader = update.leader();
        if let Some(book) = self.books.get_mut(leader) {
            // Already taken out where the leader was served.
            book.refuse(|candidate| candidate.id == update.id);
        }
        failpoint::hit("swap.after_books");
        self.note_applied(update, parts, digest, stages);
        self.drop_warm();
        if digest.is_some() {
            self.collect_cache();
        }
    }

    /// Serves these from now on, beside the rest.
    pub(super) fn swap(&mut self, states: Vec<ServedState>, models: Vec<ServedModel>) {
        let next = self.swapper.snapshot().with(states, models);
        self.swap_snapshot(next);
    }

    pub(super) fn swap_snapshot(&mut self, next: Snapshot) {
        #[expect(clippy::cast_precision_loss, reason = "a count of swaps")]
        self.metrics.generation.set(next.generation as f64);
        let before = self.swapper.swap(next);
        let now = self.swapper.snapshot();
        let gone = before
            .models
            .iter()
            .filter(|(name, model)| now.models.get(*name).is_none_or(|serving| !Arc::ptr_eq(serving, model)));
        let gone: Vec<_> = gone.map(|(name, model)| (name.clone(), Arc::clone(model))).collect();
        self.reaper.retire(before, vec![]);
        for (name, model) in gone {
            if !self.options.gates.warm_previous {
                self.reaper.retire_model(model);
                continue;
            }
            let serving = now.models.get(&name).cloned();
            // The one before the one before goes, unless it is served again.
            if let Some(older) = self.warm.insert(name, model)
                && serving.is_none_or(|serving| !Arc::ptr_eq(&serving, &older))
            {
                self.reaper.retire_model(older);
            }
        }
        self.metrics.swaps.increment(1);
        self.metrics.last_swap_timestamp.set(unix_seconds(SystemTime::now()));
    }

    /// Lets go of the warm models that are no way back any more.
    pub(super) fn drop_warm(&mut self) {
        let keeps = |name: &ModelName, model: &ServedModel| {
            self.books.get(&Slot::Model(name.clone())).is_some_and(|book| book.keeps(&model.facts.rank))
        };
        for model in self.warm.extract_if(|name, model| !keeps(name, model)).map(|(_, model)| model) {
            self.reaper.retire_model(model);
        }
    }

    pub(super) fn note_applied(
        &self,
        update: &Update,
        parts: Vec<(Slot, Mark)>,
        digest: Option<Digest>,
        mut stages: Stages,
    ) {
        let now = SystemTime::try_from(self.status.stream_now()).unwrap_or_else(|_| SystemTime::now());
        let since = |then| now.duration_since(then).unwrap_or(Duration::ZERO).as_secs_f64();
        let fresh = since(update.published());
        if update.live {
            let waited = fresh - update.taken_in.elapsed().as_secs_f64();
            stages.seconds.insert("stream", waited.max(0.0));
        }
        stages.record(&self.metrics);
        for (slot, _) in parts.iter().filter(|_| update.live) {
            self.metrics.publish_to_serving.get(slot.kind()).record(fresh);
        }
        let served = parts.into_iter().map(|(slot, mark)| (slot, mark.rank.to_string()));
        let entry = Entry {
            digest: digest.map(|digest| digest.to_string()),
            sequence_number: Some(update.record.position.sequence.to_string()),
            publish_to_serving_seconds: update.live.then_some(fresh),
            stages: stages.seconds.clone(),
            signers: update.notification.signers.verified().to_vec(),
            ..Entry::new("applied", served)
        };
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds for a person")]
        let publish_to_serving_ms = update.live.then_some((fresh * 1e3) as i64);
        tracing::info!(
            slot = %entry.slots.join(" and "),
            version = %entry.versions.join(" and "),
            digest = telemetry::shown(digest.map(|digest| digest.short())),
            publish_to_serving_ms,
            stream_ms = stages.ms("stream"),
            fetch_ms = stages.ms("fetch"),
            probe_ms = stages.ms("probe"),
            verify_ms = stages.ms("verify"),
            load_ms = stages.ms("load"),
            warm_ms = stages.ms("warm"),
            persist_ms = stages.ms("persist"),
            swap_ms = stages.ms("swap"),
            sequence_number = %update.record.position.sequence,
            trace_id = telemetry::shown(update.trace.context().map(TraceContext::trace_id)),
            signers = (!entry.signers.is_empty()).then(|| tracing::field::debug(&entry.signers)),
            "swapped in"
        );
        update.trace.end("applied", &entry.slots, &entry.versions, None);
        self.status.record(entry);
    }

    pub(super) fn collect_cache(&self) {
        let kept = self.journal.live().flat_map(|(_, kept)| kept.served.iter().chain(&kept.before));
        let live = kept.filter_map(|saved| saved.model.as_ref().map(|model| model.digest));
        let candidates = self.books.values().flat_map(Book::candidates);
        let wanted = candidates.filter_map(|update| match update.notification.model.as_ref()?.location {
            Location::Uri { sha256, .. } => sha256,
            Location::Inline(ref bytes) => Some(Digest::of(bytes)),
        });
        let in_use: HashSet<Digest> = live.chain(wanted).collect();
        if let Err(error) = self.cache.collect(&in_use) {
            tracing::warn!(%error, "old artifacts cannot be removed from the cache folder");
        }
    }
}
