//! What an operator or a message tells a slot: judged, written down, obeyed.

use std::time::SystemTime;

use super::policy::{By, NoWayBack, Why, Wish};
use super::{Denied, Done, MAX_SLOTS, Manager, Progress};
use crate::id::{Rank, Slot};
use crate::metrics::unix_seconds;
use crate::notification::{Action, Control};
use crate::source::Record;
use crate::status::{Entry, Held};

impl Manager {
    /// An operator's command.
    pub(super) fn command(&mut self, control: &Control) -> Result<Done, Denied> {
        self.control(control, By::Admin, None)
    }

    /// A message's command. One that is read again is not obeyed again.
    pub(super) fn take_in_control(&mut self, control: &Control, record: &Record) {
        let place = Rank::Stream(record.position.clone());
        if self.books.get(&control.slot).is_some_and(|book| book.hold().has_obeyed(&place)) {
            self.count(&control.slot, "duplicate");
        } else if let Err(denied) = self.control(control, By::Stream, Some(record)) {
            self.reject_message(record, "control", denied.to_string());
        }
    }

    /// Judges a command and obeys it; what it changes is on the disk before.
    fn control(&mut self, control: &Control, by: By, record: Option<&Record>) -> Result<Done, Denied> {
        let Control { slot, action } = control;
        if !self.books.contains_key(slot) && (by == By::Admin || self.books.len() >= MAX_SLOTS) {
            return Err(Denied::NoSlot(slot.to_string()));
        }
        let book = self.books.entry(slot.clone()).or_default();
        let served = book.served().map(|mark| mark.rank.clone());
        let mut hold = book.hold().clone();
        let now_ms = || (unix_seconds(SystemTime::now()) * 1e3) as u64;
        let since_ms = record.map_or_else(now_ms, |record| record.position.arrival_ms);
        let pinned = hold.pin().map(|(rank, whose)| (rank.clone(), whose)).filter(|_| by == By::Admin);
        // What is named: a version, or what is served; shown in the history.
        let named = match action {
            Action::Pin(version) => {
                if let Some((pin, whose)) = pinned.filter(|(_, whose)| *whose < by) {
                    return Err(Denied::Overruled(format!("{slot} is pinned to {pin} by {}", told(whose))));
                }
                let nothing = || Denied::NothingToGoBackTo(format!("nothing is served as {slot}: name a version"));
                let rank = version.map(Rank::Version).or_else(|| served.clone()).ok_or_else(nothing)?;
                if book.is_revoked(&rank) {
                    return Err(Denied::Barred(format!("{slot} {rank} was revoked: publish a higher version")));
                }
                hold.set_pin(by, Some(rank.clone()));
                Some(rank)
            }
            Action::Unpin => {
                // An operator here cannot lift what holds elsewhere too.
                if let Some((pin, whose)) = pinned.filter(|(_, whose)| *whose != by) {
                    return Err(Denied::Overruled(format!("{slot} is pinned to {pin} by {}", told(whose))));
                }
                hold.set_pin(by, None);
                None
            }
            Action::Rollback(to) => {
                if let Some((pin, whose)) = pinned {
                    let detail = format!("{slot} is pinned to {pin} by {}: unpin it, or pin another", told(whose));
                    return Err(Denied::Overruled(detail));
                }
                let way_back = book.way_back(to.map(Rank::Version), by == By::Admin);
                let (above, up_to) = match way_back {
                    Ok(range) => range,
                    // Another instance may have it: nothing is to be done here.
                    Err(NoWayBack::NothingAbove(rank)) if by == By::Stream => (rank.clone(), rank),
                    Err(error) => return Err(Denied::NothingToGoBackTo(format!("{slot}: {error}"))),
                };
                hold.take_back(above.clone(), up_to, since_ms);
                Some(above)
            }
            Action::Revoke(version) => {
                hold.revoke(Rank::Version(*version), since_ms);
                Some(Rank::Version(*version))
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
        if let Some(record) = record {
            hold.obey(Rank::Stream(record.position.clone()));
        }
        match self.journal.hold(slot, &hold) {
            Ok(()) => {}
            Err(error) if by == By::Admin => return Err(Denied::Disk(error.to_string())),
            // It is obeyed all the same; after a restart, it is read from the stream again.
            Err(error) => tracing::warn!(%slot, %error, "the journal cannot be written: this is obeyed, but not kept"),
        }
        self.obey(control, by, hold, named.as_ref());
        let book = self.books.get(slot);
        let progress = match book.map(super::policy::Book::wish) {
            Some(Wish::Await) => Progress::Waiting,
            Some(Wish::Bring(_) | Wish::GoBack(_)) => Progress::Loading,
            _ => Progress::Done,
        };
        let text = |rank: Rank| rank.to_string();
        let serving = book.and_then(|book| book.served()).map(|mark| text(mark.rank.clone()));
        Ok(Done { slot: slot.to_string(), action: action.code(), before: served.map(text), serving, progress })
    }

    /// From here on the slot is held so: said, and done at once if nothing has to be loaded.
    fn obey(&mut self, control: &Control, by: By, hold: super::policy::Hold, named: Option<&Rank>) {
        let Control { slot, action } = control;
        let outcome = match action {
            Action::Pin(_) => "pinned",
            Action::Unpin => "unpinned",
            Action::Rollback(_) => "rolled_back",
            Action::Revoke(_) | Action::RevokeDigest(_) => "revoked",
        };
        let digest = if let Action::RevokeDigest(digest) = action { Some(digest.to_string()) } else { None };
        let version = named.map(ToString::to_string).unwrap_or_default();
        tracing::info!(%slot, version, digest, by = by.code(), "{}", outcome.replace('_', " "));
        self.metrics.controls.get(&[action.code(), by.code()]).increment(1);
        self.status.record(Entry { digest, by: Some(by.code()), ..Entry::new(outcome, [(slot.clone(), version)]) });
        for revoked in self.books.entry(slot.clone()).or_default().set_hold(hold) {
            self.supersede(&revoked);
        }
        self.show_hold(slot);
        self.drop_warm();
        self.advance();
    }

    /// Shows on the board whether a slot is pinned.
    pub(super) fn show_hold(&self, slot: &Slot) {
        let pin = self.books.get(slot).and_then(|book| book.hold().pin());
        let held = pin.map(|(version, by)| Held { by: by.code(), version: version.to_string() });
        self.status.set_held(slot, held);
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
