//! What is not served, and why: counted, logged once, shown in the history.

use std::sync::Arc;

use super::Manager;
use super::stages::Refusal;
use super::timing::Stages;
use super::update::Update;
use crate::id::Slot;
use crate::notification::Notification;
use crate::source::Record;
use crate::status::Entry;
use crate::telemetry::{self, Trace, TraceContext};

impl Manager {
    /// A gate says no: the slot keeps what it serves, and its next candidate gets its turn.
    pub(super) fn refuse(&mut self, update: &Arc<Update>, refusal: &Refusal, stages: Stages) {
        if let Some(book) = self.books.get_mut(update.leader()) {
            if refusal.is_of_the_moment() {
                book.defer(|candidate| candidate.id == update.id);
                if !self.deferred.insert(update.id) {
                    tracing::debug!(reason = refusal.reason, "still not to be had; trying again: {refusal}");
                    return;
                }
            } else {
                book.refuse(|candidate| candidate.id == update.id);
                self.deferred.remove(&update.id);
                if book.is_blank() {
                    self.books.remove(update.leader());
                }
            }
        }
        // The same bytes may be sent again when what they name is mended.
        self.recent.forget(&update.record.data);
        for (slot, _) in &update.parts {
            self.count(slot, "rejected");
        }
        let entry = Entry { stages: stages.seconds, ..Entry::new("rejected", update.versions()) };
        let again = if refusal.is_of_the_moment() { "; it is tried again until something newer is served" } else { "" };
        self.note_rejected(&update.record, &update.trace, entry, refusal.reason, format!("{}{again}", refusal.detail));
    }

    /// A message that is refused as a whole, and what it means to replace, as far as that is known.
    pub(super) fn reject_message(
        &mut self,
        record: &Record,
        trace: &Trace,
        slots: impl IntoIterator<Item = (Slot, String)>,
        reason: &'static str,
        detail: impl Into<String>,
    ) {
        self.recent.forget(&record.data);
        self.note_rejected(record, trace, Entry::new("rejected", slots), reason, detail.into());
    }

    pub(super) fn note_rejected(
        &self,
        record: &Record,
        trace: &Trace,
        mut entry: Entry,
        reason: &'static str,
        detail: String,
    ) {
        self.metrics.rejections.get(&[reason]).increment(1);
        tracing::warn!(
            slot = telemetry::shown((!entry.slots.is_empty()).then(|| entry.slots.join(" and "))),
            version = telemetry::shown(Some(entry.versions.join(" and ")).filter(|versions| !versions.is_empty())),
            %reason,
            sequence_number = %record.position.sequence,
            trace_id = telemetry::shown(trace.context().map(TraceContext::trace_id)),
            "refused, serving what was served before: {detail}"
        );
        trace.end("rejected", &entry.slots, &entry.versions, Some((reason, &detail)));
        entry.reason = Some(reason);
        entry.detail = Some(detail);
        entry.sequence_number = Some(record.position.sequence.to_string());
        self.status.record(entry);
    }

    pub(super) fn supersede(&mut self, update: &Update) {
        let (slots, versions): (Vec<_>, Vec<_>) =
            update.parts.iter().map(|(slot, mark)| (slot.to_string(), mark.rank.to_string())).unzip();
        update.trace.end("superseded", &slots, &versions, None);
        self.deferred.remove(&update.id);
        self.recent.forget(&update.record.data);
        for (slot, _) in &update.parts {
            self.count(slot, "superseded");
        }
    }

    pub(super) fn count(&self, slot: &Slot, outcome: &'static str) {
        self.metrics.updates.get(&[slot.kind(), outcome]).increment(1);
    }

    pub(super) fn count_slots(&self, notification: &Notification, outcome: &'static str) {
        for (slot, _) in notification.slots() {
            self.count(&slot, outcome);
        }
    }
}
