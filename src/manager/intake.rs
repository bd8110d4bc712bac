//! What comes in: decoded, judged slot by slot, and made a candidate or refused.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::policy::{Mark, Verdict};
use super::update::{Update, announcement};
use super::{MAX_SLOTS, Manager};
use crate::id::{Rank, Slot, Version};
use crate::notification::{self, Location, ModelUpdate, Notification};
use crate::source::Record;
use crate::status::Entry;
use crate::telemetry::{self, Origin, Trace, TraceContext};

impl Manager {
    /// Decodes and judges a record.
    pub(super) fn take_in(&mut self, record: Record) {
        let begun = Instant::now();
        let notification = match notification::decode(&record.data, &self.options.limits) {
            Ok(notification) => notification,
            Err(rejection) => {
                let trace = self.trace(None, &record, begun);
                self.reject_message(&record, &trace, [], rejection.reason.code(), rejection.detail);
                return;
            }
        };
        let decoded = begun.elapsed();
        self.metrics.signatures.get(&[notification.signers.code()]).increment(1);
        if notification.id.is_some() && !self.recent.insert(&record.data) {
            self.count_slots(&notification, "duplicate");
            return;
        }
        if notification.expires_at.is_some_and(|at| at < self.status.stream_now()) {
            let trace = self.trace(notification.trace, &record, begun);
            self.reject_message(&record, &trace, named(&notification, &record), "expired", "its expires_at has passed");
            return;
        }
        if let Some(control) = &notification.control {
            let trace = Trace::silent(notification.trace);
            self.take_in_control(control, notification.published_at, &record, &trace);
            return;
        }
        let mut parts = Vec::new();
        let mut older = Vec::new();
        for (slot, version) in notification.slots() {
            let rank = version.map_or_else(|| Rank::Stream(record.position.clone()), Rank::Version);
            let mark =
                Mark { rank, content: notification.content(&slot), announcement: announcement(&slot, &notification) };
            match self.judge(&slot, &mark, &notification, &record) {
                Ok(Judged::Taken) => parts.push((slot, mark)),
                Ok(Judged::Known) => {
                    // A pair that is on its way already is not taken apart.
                    self.count_slots(&notification, "duplicate");
                    return;
                }
                Ok(Judged::Stale) => {
                    self.count(&slot, "stale");
                    older.push((slot, mark));
                }
                Ok(Judged::Duplicate) => self.count(&slot, "duplicate"),
                Err((reason, detail)) => {
                    let trace = self.trace(notification.trace, &record, begun);
                    self.reject_message(&record, &trace, named(&notification, &record), reason, detail);
                    return;
                }
            }
        }
        if parts.is_empty() {
            // It may come again, when it is wanted.
            self.recent.forget(&record.data);
            // At the start that is most of a stream.
            for (slot, mark) in older.iter().filter(|_| self.caught_up) {
                let served = self.books.get(slot).and_then(|book| book.served()).map(|at| &at.rank);
                tracing::info!(
                    %slot,
                    version = %mark.rank,
                    served_version = telemetry::shown(served),
                    sequence_number = %record.position.sequence,
                    "older than what is served: not applied"
                );
            }
            // For a way back it is enough to know where it is.
            let remembers = |slot: &Slot, mark: &Mark| self.books.get(slot).is_some_and(|book| book.remembers(mark));
            parts = older.into_iter().filter(|(slot, mark)| remembers(slot, mark)).collect();
        }
        if parts.is_empty() {
            return;
        }
        if let Some(ModelUpdate { location: Location::Uri { uri, .. }, .. }) = &notification.model
            && let Err(error) = self.fetcher.check_allowed(uri)
        {
            let trace = self.trace(notification.trace, &record, begun);
            self.reject_message(&record, &trace, named(&notification, &record), error.code(), error.to_string());
            return;
        }
        let trace = self.trace(notification.trace, &record, begun);
        trace.stage("decode", begun, decoded);
        let typed = match parts.iter().find(|(slot, _)| matches!(slot, Slot::State(_))).zip(notification.state.as_ref())
        {
            Some((_, state)) => self.typed(&state.key, &state.json),
            None => Ok(None),
        };
        let typed = match typed {
            Ok(typed) => typed,
            Err(refusal) => {
                let versions = parts.iter().map(|(slot, mark)| (slot.clone(), mark.rank.to_string()));
                let entry = Entry::new("rejected", versions.collect::<Vec<_>>());
                parts.iter().for_each(|(slot, _)| self.count(slot, "rejected"));
                self.recent.forget(&record.data);
                self.note_rejected(&record, &trace, entry, refusal.reason, refusal.detail);
                return;
            }
        };
        self.next_update += 1;
        let arrived = SystemTime::UNIX_EPOCH + Duration::from_millis(record.position.arrival_ms);
        let update = Arc::new(Update {
            id: self.next_update,
            notification,
            parts,
            typed,
            record,
            trace,
            taken_in: begun,
            arrived,
            live: self.caught_up,
        });
        let leader = update.leader().clone();
        let mark = update.parts.iter().find(|(slot, _)| *slot == leader).map(|(_, mark)| mark.clone());
        let mark = mark.expect("the leader is a part");
        if let Some(ousted) = self.books.entry(leader).or_default().admit(mark, update) {
            self.supersede(&ousted);
        }
    }

    /// The trace of a message that was read at `begun`: a part of the one that it names. What was there before the start
    /// has none of its own: of a long stream that would be a flood, and say nothing of the time it took.
    fn trace(&self, parent: Option<TraceContext>, record: &Record, begun: Instant) -> Trace {
        if !self.caught_up {
            return Trace::silent(parent);
        }
        let (shard, sequence_number) = (record.position.shard.as_str(), record.position.sequence.as_str());
        Trace::begin(parent, Origin { stream: &self.options.stream, shard, sequence_number }, begun)
    }

    /// Admits what a message brings besides what is kept out by a hold.
    pub(super) fn admit_half(&mut self, update: Update) {
        self.next_update += 1;
        let update = Arc::new(Update { id: self.next_update, ..update });
        let (slot, mark) = update.parts.first().expect("an update has a part").clone();
        let book = self.books.entry(slot).or_default();
        if matches!(book.judge(&mark), Verdict::Admit | Verdict::Correction)
            && let Some(ousted) = book.admit(mark, update)
        {
            self.supersede(&ousted);
        }
    }

    /// What becomes of one part of a message; else why the whole message is refused.
    fn judge(
        &self,
        slot: &Slot,
        mark: &Mark,
        notification: &Notification,
        record: &Record,
    ) -> Result<Judged, (&'static str, String)> {
        let Some(book) = self.books.get(slot) else {
            let full = self.books.len() >= MAX_SLOTS;
            let refusal = || ("too_many_slots", format!("there are {MAX_SLOTS} slots already"));
            return if full { Err(refusal()) } else { Ok(Judged::Taken) };
        };
        let verdict = book.judge(mark);
        // A candidate of the same content gives way to one that brings as much, announced anew, or more.
        if let Some(known) = book.candidate(&mark.rank).filter(|_| verdict != Verdict::Conflict) {
            let slots = |notification: &Notification| notification.slots().map(|(slot, _)| slot).collect::<Vec<_>>();
            let (ours, theirs) = (slots(notification), slots(&known.notification));
            let covers = theirs.iter().all(|slot| ours.contains(slot));
            if matches!(verdict, Verdict::Duplicate | Verdict::Correction) {
                let takes = covers && (verdict == Verdict::Correction || ours.len() > theirs.len());
                return Ok(if takes { Judged::Taken } else { Judged::Known });
            }
        }
        match verdict {
            Verdict::Admit | Verdict::Correction => {
                self.check_jump(slot, book.newest_ever(), mark).map(|()| Judged::Taken)
            }
            Verdict::Duplicate => Ok(Judged::Duplicate),
            Verdict::Stale => Ok(Judged::Stale),
            Verdict::Barred(why) => Self::barred(slot, &mark.rank, why, record).map_or(Ok(Judged::Stale), Err),
            Verdict::Conflict => {
                let detail = format!("{slot} {} is another content already: publish a higher version", mark.rank);
                Err(("conflict", detail))
            }
            Verdict::Unversioned => {
                let detail = format!("{slot} has had versions: a message without one cannot be ordered");
                Err(("unversioned", detail))
            }
        }
    }

    /// A version far ahead would leave no room for those after it.
    fn check_jump(&self, slot: &Slot, served: Option<&Mark>, mark: &Mark) -> Result<(), (&'static str, String)> {
        let served = served.and_then(|served| served.rank.version()).map(Version::get);
        let (Some(most), Some(served), Some(version)) = (self.options.max_version_jump, served, mark.rank.version())
        else {
            return Ok(());
        };
        let jump = version.get().saturating_sub(served);
        if jump <= most {
            return Ok(());
        }
        let detail =
            format!("{slot} {version} is {jump} above {served}, which is or was served (--max-version-jump {most})");
        Err(("version_jump", detail))
    }
}

/// What a message means to replace, for those who are told that it does not.
fn named(notification: &Notification, record: &Record) -> Vec<(Slot, String)> {
    let rank = |version: Option<Version>| version.map_or_else(|| Rank::Stream(record.position.clone()), Rank::Version);
    notification.slots().map(|(slot, version)| (slot, rank(version).to_string())).collect()
}

/// What becomes of one part of a message.
enum Judged {
    /// The slot takes it.
    Taken,
    /// It is on its way already, and all that came with it.
    Known,
    /// It is served, or kept.
    Duplicate,
    /// Something newer is served.
    Stale,
}
