//! A message on its way to being served, and what tells one from another.

use std::time::{Instant, SystemTime};

use jiff::Timestamp;

use super::journal::{Saved, SavedModel};
use super::policy::Mark;
use super::stages::Warm;
use crate::id::{Digest, Slot};
use crate::notification::{self, Limits, Location, ModelUpdate, Notification, Signers};
use crate::serving::live::Typed;
use crate::source::Record;
use crate::store::Artifact;
use crate::telemetry::Trace;

/// A message on its way.
pub struct Update {
    /// Counts up.
    pub id: u64,
    /// What it says.
    pub notification: Notification,
    /// The slots that it may replace, each with its place in the slot's order.
    pub parts: Vec<(Slot, Mark)>,
    /// Its state as the type that is wanted of it, if one is.
    pub typed: Option<Typed>,
    /// Where it came from.
    pub record: Record,
    /// Its trace.
    pub trace: Trace,
    /// When it was read.
    pub taken_in: Instant,
    /// When it arrived in the stream.
    pub arrived: SystemTime,
    /// Whether it came after the start was caught up with: how long it took to be served says something.
    pub live: bool,
}

impl Update {
    /// The slot whose turn makes this update happen: the model's if it brings one, for that takes time.
    pub fn leader(&self) -> &Slot {
        let model = self.parts.iter().find(|(slot, _)| matches!(slot, Slot::Model(_)));
        &model.or(self.parts.first()).expect("an update has a part").0
    }

    /// What it brings besides the model of this slot, as an update of its own. The model waits for nothing but its turn;
    /// a state that came with it is ready.
    pub fn without(&self, slot: &Slot) -> Option<Self> {
        let parts: Vec<_> = self.parts.iter().filter(|(other, _)| other != slot).cloned().collect();
        let brings_model = parts.iter().any(|(slot, _)| matches!(slot, Slot::Model(_)));
        if parts.is_empty() || brings_model {
            return None;
        }
        let notification = Notification { model: None, ..self.notification.clone() };
        let (record, typed, trace) = (self.record.clone(), self.typed.clone(), self.trace.clone());
        Some(Self { parts, notification, typed, record, trace, ..*self })
    }

    /// Its slots, each with the version it gives.
    pub fn versions(&self) -> Vec<(Slot, String)> {
        self.parts.iter().map(|(slot, mark)| (slot.clone(), mark.rank.to_string())).collect()
    }

    /// When it was published, as far as is known.
    pub fn published(&self) -> SystemTime {
        self.notification.published_at.and_then(|at| SystemTime::try_from(at).ok()).unwrap_or(self.arrived)
    }
}

/// What tells how a slot's content was announced from another announcement of the same content.
pub fn announcement(slot: &Slot, notification: &Notification) -> Digest {
    match (slot, &notification.model) {
        (Slot::Model(_), Some(ModelUpdate { format, location, encoding, signature, golden, limits, .. })) => {
            let place = match location {
                Location::Uri { uri, version_id, size, .. } => format!("{uri} {version_id:?} {size:?}"),
                Location::Inline(_) => "inline".to_owned(),
            };
            Digest::of(format!("{format} {encoding:?} {place} {signature:?} {golden:?} {limits:?}").as_bytes())
        }
        _ => Digest::of(b""),
    }
}

/// What the journal keeps of one part of an update.
pub fn saved(
    slot: &Slot,
    mark: &Mark,
    update: &Update,
    limits: &Limits,
    model: Option<&(Artifact, Warm)>,
) -> Option<Saved> {
    let Notification { published_at, state, model: announced, .. } = &update.notification;
    let (state, model) = match slot {
        Slot::State(_) => (state.as_ref().map(|state| state.json.get().to_owned()), None),
        Slot::Model(_) => {
            let (announced, (artifact, _)) = (announced.as_ref()?, model?);
            let model = SavedModel {
                label: announced.label.clone(),
                format: announced.format.clone(),
                digest: artifact.digest(),
                size: artifact.size(),
                encoding: announced.encoding,
                signature: announced.signature.clone(),
                golden: announced.golden.clone(),
            };
            (None, Some(model))
        }
    };
    let signed = update.notification.signers != Signers::None;
    let text = signed.then(|| notification::plain(&update.record.data, limits).ok()).flatten();
    Some(Saved {
        slot: slot.clone(),
        rank: mark.rank.clone(),
        content: mark.content,
        published_at: *published_at,
        taken_in: Some(Timestamp::now()),
        envelope: text.and_then(|text| String::from_utf8(text.to_vec()).ok()),
        state,
        model,
    })
}
