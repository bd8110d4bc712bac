//! What comes in: decoded, judged slot by slot, and made a candidate or refused.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::policy::{Mark, Verdict};
use super::update::{Update, announcement};
use super::{MAX_SLOTS, Manager};
use crate::id::Rank;
use crate::notification::{self, Location, ModelUpdate};
use crate::source::Record;

impl Manager {
    /// Decodes and judges a record.
    pub(super) fn take_in(&mut self, record: Record) {
        let notification = match notification::decode(&record.data, &self.options.limits) {
            Ok(notification) => notification,
            Err(rejection) => {
                self.reject_message(&record, rejection.reason.code(), rejection.detail);
                return;
            }
        };
        self.metrics.signatures.get(&[notification.signers.code()]).increment(1);
        if notification.id.is_some() && !self.recent.insert(&record.data) {
            self.count_slots(&notification, "duplicate");
            return;
        }
        if notification.expires_at.is_some_and(|at| at < self.status.stream_now()) {
            self.reject_message(&record, "expired", "its expires_at has passed");
            return;
        }
        if let Some(control) = &notification.control {
            self.take_in_control(control, notification.published_at, &record);
            return;
        }
        let mut parts = Vec::new();
        for (slot, version) in notification.slots() {
            let rank = version.map_or_else(|| Rank::Stream(record.position.clone()), Rank::Version);
            let mark =
                Mark { rank, content: notification.content(&slot), announcement: announcement(&slot, &notification) };
            let verdict = match self.books.get(&slot) {
                Some(book) => book.judge(&mark),
                None if self.books.len() >= MAX_SLOTS => {
                    self.reject_message(&record, "too_many_slots", format!("there are {MAX_SLOTS} slots already"));
                    return;
                }
                None => Verdict::Admit,
            };
            match verdict {
                Verdict::Admit | Verdict::Correction => parts.push((slot, mark)),
                Verdict::Duplicate => self.count(&slot, "duplicate"),
                Verdict::Stale => self.count(&slot, "stale"),
                Verdict::Barred(why) => match Self::barred(&slot, &mark.rank, why, &record) {
                    Some((reason, detail)) => {
                        self.reject_message(&record, reason, detail);
                        return;
                    }
                    None => self.count(&slot, "stale"),
                },
                Verdict::Conflict => {
                    let detail = format!("{slot} {} is another content already: publish a higher version", mark.rank);
                    self.reject_message(&record, "conflict", detail);
                    return;
                }
                Verdict::Unversioned => {
                    let detail = format!("{slot} has had versions: a message without one cannot be ordered");
                    self.reject_message(&record, "unversioned", detail);
                    return;
                }
            }
        }
        if parts.is_empty() {
            return;
        }
        if let Some(ModelUpdate { location: Location::Uri { uri, .. }, .. }) = &notification.model
            && let Err(error) = self.fetcher.check_allowed(uri)
        {
            self.reject_message(&record, error.code(), error.to_string());
            return;
        }
        self.next_update += 1;
        let arrived = SystemTime::UNIX_EPOCH + Duration::from_millis(record.position.arrival_ms);
        let update = Arc::new(Update {
            id: self.next_update,
            notification,
            parts,
            record,
            taken_in: Instant::now(),
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
}
