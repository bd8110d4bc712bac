//! The start: what the last run served last, proved again, and when that makes the server ready.

use bytes::Bytes;
use jiff::Timestamp;

use super::Manager;
use super::back::missing;
use super::journal::Saved;
use super::stages::Refusal;
use super::timing::Stages;
use crate::failpoint;
use crate::id::{Digest, Slot, Version};
use crate::notification;
use crate::serving::{ServedModel, ServedState};
use crate::status::{Bootstrapped, Entry};
use crate::trust::Required;

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
            tracing::info!(states = snapshot.states.len(), models = snapshot.models.len(), %from, "ready: {how}");
        }
    }

    /// Serves what the last run served last, each model proved and warmed again; where that is rotten or gone, what was
    /// served before it. Answers whether there was anything.
    pub(super) async fn restore(&mut self) -> bool {
        let slots: Vec<Slot> = self.journal.live().map(|(slot, _)| slot.clone()).collect();
        if slots.is_empty() {
            return false;
        }
        self.status.waiting_for("the last known good is being loaded");
        failpoint::hit("restore.before");
        let (mut states, mut models) = (Vec::new(), Vec::new());
        for slot in slots {
            failpoint::hit("restore.between");
            match self.restore_slot(&slot).await {
                Some(Content::State(state)) => states.push(*state),
                Some(Content::Model(model)) => models.push(*model),
                None => {}
            }
        }
        let restored = !states.is_empty() || !models.is_empty();
        if restored {
            tracing::info!(states = states.len(), models = models.len(), "serving the last known good");
            failpoint::hit("restore.before_swap");
            self.swap(states, models);
            failpoint::hit("restore.after_swap");
        }
        restored
    }

    async fn restore_slot(&mut self, slot: &Slot) -> Option<Content> {
        let kept = self.journal.of(slot)?;
        let hold = kept.hold.clone();
        let last = kept.served.as_ref().map(Saved::mark);
        let was_served = last.as_ref().map(|mark| mark.rank.clone());
        let mut choices: Vec<Saved> = kept.served.iter().chain(&kept.before).cloned().collect();
        let book = self.books.entry(slot.clone()).or_default();
        book.restore_hold(hold);
        // What holds the slot holds it from the first moment on: what is pinned comes first, what was taken back last.
        let (hold, pin) = (book.hold(), book.hold().pin().map(|(rank, _)| rank.clone()));
        choices.retain(|saved| !hold.is_revoked(&saved.mark()));
        choices.sort_by_key(|saved| (Some(&saved.rank) != pin.as_ref(), hold.why_not(&saved.mark()).is_some()));
        let wanted = choices.first().map(|saved| saved.rank.clone());
        let unloaded = hold.is_unloaded();
        if unloaded && was_served.is_some() {
            // The last run did not come to it.
            let _ = self.journal.withdraw(slot);
        }
        // Nothing is to be served in a slot that was withdrawn or unloaded.
        let mut content = None;
        while !unloaded && was_served.is_some() && content.is_none() && !choices.is_empty() {
            let saved = choices.remove(0);
            match self.restore_content(&saved).await {
                Ok(restored) => content = Some((saved, restored)),
                Err(refusal) => self.lose(&saved, &refusal),
            }
        }
        let fell_back = content.as_ref().filter(|(saved, _)| Some(&saved.rank) != wanted.as_ref());
        if let Some((saved, _)) = fell_back {
            self.metrics.fallbacks.increment(1);
            let rank = saved.rank.to_string();
            tracing::warn!(%slot, version = %rank, "serving what was served before the last known good");
            self.status.record(Entry::new("fell_back", [(slot.clone(), rank)]));
        }
        let has_initial = matches!(slot, Slot::State(key) if self.options.initial.contains_key(key));
        let initial = has_initial.then(super::initial_mark);
        let book = self.books.entry(slot.clone()).or_default();
        match (&content, last) {
            (Some((saved, _)), _) => drop(book.serve(saved.mark())),
            (None, Some(last)) if !unloaded => book.raise_floor(last),
            (None, _) => {}
        }
        book.keep(choices.iter().map(Saved::mark).chain(initial).collect());
        content.map(|(_, content)| content)
    }

    /// Whether a kept content is still vouched for, by keys that are trusted now: one whose time has passed since it was
    /// taken in counts still.
    pub(super) fn vouch(&self, saved: &Saved) -> Result<(), Refusal> {
        let limits = &self.options.limits;
        let Some(envelope) = &saved.envelope else {
            return match (limits.requires_signatures(), &saved.slot) {
                (Required::Off, _) | (Required::Model, Slot::State(_)) => Ok(()),
                _ => Err(Refusal::new("unsigned", format!("{} must be signed, and was not when it came", saved.slot))),
            };
        };
        let taken_in = saved.taken_in.unwrap_or_else(Timestamp::now);
        let notification = notification::decode_at(&Bytes::copy_from_slice(envelope.as_bytes()), limits, taken_in)
            .map_err(|rejection| Refusal::new(rejection.reason.code(), rejection.detail))?;
        let is_it = |(slot, version): (Slot, Option<Version>)| slot == saved.slot && version == saved.rank.version();
        // The signature is over the message, and that names the bytes: these must be they.
        let bytes = match (&saved.state, &saved.model) {
            (Some(state), _) => Digest::of(state.as_bytes()),
            (None, Some(model)) => model.digest,
            (None, None) => saved.content,
        };
        let content = notification.content(&saved.slot);
        if notification.slots().any(is_it) && content == saved.content && content == bytes {
            Ok(())
        } else {
            Err(Refusal::new("bad_signature", format!("the message is not that of {} {}", saved.slot, saved.rank)))
        }
    }

    async fn restore_content(&self, saved: &Saved) -> Result<Content, Refusal> {
        self.vouch(saved)?;
        let broken = || Refusal::new("malformed", "the journal's line makes no sense");
        match (&saved.slot, &saved.model) {
            (Slot::State(key), _) => self.served_state(key, saved).map(|state| Content::State(Box::new(state))),
            (Slot::Model(_), Some(model)) => {
                let artifact = self.cache.get(model.digest, Some(model.size)).ok_or_else(|| missing(model))?;
                let warm = self.pipeline.load(artifact, model.announced(&saved.slot), &mut Stages::new()).await?;
                saved.served_model(warm).map(|model| Content::Model(Box::new(model))).ok_or_else(broken)
            }
            (Slot::Model(_), None) => Err(broken()),
        }
    }
}

/// What a slot serves.
enum Content {
    State(Box<ServedState>),
    Model(Box<ServedModel>),
}
