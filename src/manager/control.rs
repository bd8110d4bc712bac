//! What an operator or a message tells a slot: judged, written down, obeyed.

use std::time::SystemTime;

use jiff::Timestamp;

use super::policy::{Book, By, Hold, NoWayBack, Why, Wish};
use super::{Denied, Done, MAX_SLOTS, Manager, Progress};
use crate::id::{Rank, Slot};
use crate::metrics::unix_seconds;
use crate::notification::{Action, Control};
use crate::source::Record;
use crate::status::{Entry, Held};
use crate::telemetry::{self, Trace};

impl Manager {
    /// An operator's command.
    pub(super) fn command(&mut self, control: &Control) -> Result<Done, Denied> {
        let now_ms = unix_seconds(SystemTime::now()) * 1e3;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds since 1970")]
        let now_ms = now_ms as u64;
        self.control(control, By::Admin, None, now_ms)
    }

    /// A message's command. Told twice, it is obeyed once.
    pub(super) fn take_in_control(
        &mut self,
        control: &Control,
        published_at: Option<Timestamp>,
        record: &Record,
        trace: &Trace,
    ) {
        let published_ms = published_at.and_then(|at| u64::try_from(at.as_millisecond()).ok());
        let at_ms = published_ms.unwrap_or(record.position.arrival_ms);
        if let Err(denied) = self.control(control, By::Stream, Some(record), at_ms) {
            let named = [(control.slot.clone(), String::new())];
            self.reject_message(record, trace, named, "control", denied.to_string());
            if self.books.get(&control.slot).is_some_and(Book::is_blank) {
                self.books.remove(&control.slot);
            }
        }
    }

    /// Judges a command and obeys it; what it changes is on the disk before.
    fn control(&mut self, control: &Control, by: By, record: Option<&Record>, at_ms: u64) -> Result<Done, Denied> {
        let Control { slot, action } = control;
        if !self.books.contains_key(slot) && (by == By::Admin || self.books.len() >= MAX_SLOTS) {
            return Err(Denied::NoSlot(slot.to_string()));
        }
        let book = self.books.entry(slot.clone()).or_default();
        let before = book.served().map(|mark| mark.rank.clone());
        let mut hold = book.hold().clone();
        let since_ms = record.map_or(at_ms, |record| record.position.arrival_ms);
        let pinned = hold.pin().map(|(rank, whose)| (rank.clone(), whose)).filter(|_| by == By::Admin);
        // What is named: a version, or what is served; shown in the history.
        let named = match action {
            Action::Pin(version) => {
                if let Some((pin, whose)) = pinned.filter(|(_, whose)| *whose < by) {
                    return Err(Denied::Overruled(format!("{slot} is pinned to {pin} by {}", told(whose))));
                }
                let nothing = || Denied::NothingToGoBackTo(format!("nothing is served as {slot}: name a version"));
                let rank = version.map(Rank::Version).or_else(|| before.clone()).ok_or_else(nothing)?;
                if book.is_revoked(&rank) {
                    return Err(Denied::Barred(format!("{slot} {rank} was revoked: publish a higher version")));
                }
                hold.set_pin(by, Some(rank.clone()), at_ms);
                Some(rank)
            }
            Action::Unpin => {
                // An operator here cannot lift what holds elsewhere too.
                if let Some((pin, whose)) = pinned.filter(|(_, whose)| *whose != by) {
                    return Err(Denied::Overruled(format!("{slot} is pinned to {pin} by {}", told(whose))));
                }
                hold.set_pin(by, None, at_ms);
                None
            }
            Action::Rollback { to, from } => {
                if let Some((pin, whose)) = pinned {
                    let detail = format!("{slot} is pinned to {pin} by {}: unpin it, or pin another", told(whose));
                    return Err(Denied::Overruled(detail));
                }
                let place = record.map(|record| Rank::Stream(record.position.clone()));
                let (above, up_to) = match (to.map(Rank::Version), from.map(Rank::Version), place) {
                    (Some(to), Some(from), Some(_)) => (to, from),
                    // What it takes back depends on when it is read: that is once.
                    (to, _, Some(place)) if hold.has_obeyed(&place) => (to.unwrap_or(Rank::Initial), Rank::Initial),
                    (to, from, place) => {
                        if let Some(place) = place {
                            hold.obey(place);
                        }
                        match book.way_back(to, by == By::Admin) {
                            Ok((above, newest)) => (above, from.unwrap_or(newest)),
                            // Another instance may have what is above it.
                            Err(NoWayBack::NothingAbove(rank)) if by == By::Stream => (rank, Rank::Initial),
                            Err(error) => return Err(Denied::NothingToGoBackTo(format!("{slot}: {error}"))),
                        }
                    }
                };
                if up_to.is_above(&above) {
                    hold.take_back(above.clone(), up_to, since_ms);
                }
                Some(above)
            }
            Action::Revoke(version) => {
                hold.revoke(Rank::Version(*version), since_ms);
                Some(Rank::Version(*version))
            }
            Action::Unload => {
                hold.set_unloaded(true);
                before.clone()
            }
            Action::Load => {
                hold.set_unloaded(false);
                None
            }
            Action::RevokeDigest(digest) => {
                hold.revoke_digest(*digest, since_ms);
                // Where a message carried no digest, only the journal knows which ranks it came as.
                let kept = self.journal.of(slot).into_iter().flat_map(|kept| kept.served.iter().chain(&kept.before));
                let same = kept.filter(|kept| kept.model.as_ref().is_some_and(|model| model.digest == *digest));
                same.for_each(|kept| hold.revoke(kept.rank.clone(), since_ms));
                None
            }
        };
        if hold == *book.hold() {
            self.count(slot, "duplicate");
            return Ok(self.done(control, before));
        }
        match self.journal.hold(slot, &hold) {
            Ok(()) => {}
            Err(error) if by == By::Admin => return Err(Denied::Disk(error.to_string())),
            // It is obeyed all the same, and written when there is room.
            Err(error) => {
                if self.unwritten.insert(slot.clone()) {
                    tracing::warn!(%slot, %error, "the journal cannot be written: this is obeyed, but not kept yet");
                }
            }
        }
        self.obey(control, by, hold, named.as_ref(), record);
        Ok(self.done(control, before))
    }

    fn done(&self, control: &Control, before: Option<Rank>) -> Done {
        let Control { slot, action } = control;
        let book = self.books.get(slot);
        let progress = match book.map(Book::wish) {
            Some(Wish::Await) => Progress::Waiting,
            Some(Wish::Bring(_) | Wish::GoBack(_)) => Progress::Loading,
            _ => Progress::Done,
        };
        let serving = book.and_then(|book| book.served()).map(|mark| mark.rank.to_string());
        let before = before.map(|rank| rank.to_string());
        Done { slot: slot.to_string(), action: action.code(), before, serving, progress }
    }

    /// From here on the slot is held so: said, and done at once if nothing has to be loaded.
    fn obey(&mut self, control: &Control, by: By, hold: Hold, named: Option<&Rank>, record: Option<&Record>) {
        let Control { slot, action } = control;
        let outcome = match action {
            Action::Pin(_) => "pinned",
            Action::Unpin => "unpinned",
            Action::Rollback { .. } => "rolled_back",
            Action::Revoke(_) | Action::RevokeDigest(_) => "revoked",
            Action::Unload => "unloaded",
            Action::Load => "loaded",
        };
        let digest = if let Action::RevokeDigest(digest) = action { Some(digest.to_string()) } else { None };
        let version = named.map(ToString::to_string).unwrap_or_default();
        tracing::info!(
            %slot,
            version = telemetry::shown((!version.is_empty()).then_some(&version)),
            digest = telemetry::shown(digest.as_ref().map(|digest: &String| &digest[..12])),
            by = %by.code(),
            sequence_number = telemetry::shown(record.map(|record| &record.position.sequence)),
            "{}",
            outcome.replace('_', " ")
        );
        self.metrics.controls.get(&[action.code(), by.code()]).increment(1);
        self.status.record(Entry { digest, by: Some(by), ..Entry::new(outcome, [(slot.clone(), version)]) });
        let book = self.books.entry(slot.clone()).or_default();
        let revoked = book.set_hold(hold);
        // A command names one slot: what else a message brings that is kept out by it is served for itself.
        let halves: Vec<_> = book.barred().chain(&revoked).filter_map(|update| update.without(slot)).collect();
        for half in halves {
            self.admit_half(half);
        }
        for revoked in revoked {
            self.supersede(&revoked);
        }
        self.show_hold(slot);
        self.drop_warm();
        self.advance();
    }

    /// Writes the holds for which there was no room.
    pub(super) fn write_holds(&mut self) {
        for slot in self.unwritten.clone() {
            let Some(book) = self.books.get(&slot) else { continue };
            if self.journal.hold(&slot, book.hold()).is_ok() {
                self.unwritten.remove(&slot);
                tracing::info!(%slot, "what was obeyed is kept now: the journal can be written again");
            }
        }
    }

    /// Shows on the board whether a slot is pinned.
    pub(super) fn show_hold(&self, slot: &Slot) {
        let pin = self.books.get(slot).and_then(|book| book.hold().pin());
        let held = pin.map(|(rank, by)| Held { by, rank: rank.clone() });
        self.status.set_held(slot, held);
        let unloaded = self.books.get(slot).is_some_and(|book| book.hold().is_unloaded());
        self.status.set_unloaded(slot, unloaded);
    }

    /// Shows on the board what is being made ready.
    pub(super) fn show_loading(&self) {
        self.status.set_loading(self.work.keys());
    }

    /// Why a newcomer is refused that was taken back or revoked; nothing if it is no news.
    pub(super) fn barred(slot: &Slot, rank: &Rank, why: Why, record: &Record) -> Option<(&'static str, String)> {
        let (reason, since_ms, what) = match why {
            Why::TakenBack { since_ms } => ("rolled_back", since_ms, "was taken back"),
            Why::Revoked { since_ms } => ("revoked", since_ms, "was revoked"),
        };
        (record.position.arrival_ms > since_ms)
            .then(|| (reason, format!("{slot} {rank} {what}: publish a higher version")))
    }
}

fn told(by: By) -> &'static str {
    match by {
        By::Setting => "a setting of this instance (--pin)",
        By::Admin => "an operator",
        By::Stream => "a message to every instance (publish control unpin lifts it)",
    }
}
