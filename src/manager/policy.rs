//! Which content a slot should have: pure, and the same whatever the order in which messages come.
//!
//! A slot remembers what it serves, what it served before, and the few newest candidates above it. The newest
//! candidate is worked on first; when it is served, the ones below are superseded; when it is refused, the next one
//! gets its turn; when it cannot be had for now, it is deferred: the next one gets its turn, and it comes back. So the
//! end is always the newest content that passes the gates, however the messages and the loads were timed. A [`Hold`]
//! bends that: a pin to one rank, and what was taken back or revoked to the next best below.

mod hold;

pub use self::hold::{By, Hold, Why};
use crate::id::{Digest, Rank};

/// How many candidates a slot remembers.
const CANDIDATES: usize = 8;
/// How many contents that were served before are kept, for a way back without a download; and of how many more that
/// were announced below them it is remembered where they are.
pub const KEPT: usize = 3;

/// What one slot serves and may come to serve.
#[derive(Debug)]
pub struct Book<T> {
    served: Option<Mark>,
    /// What readers have seen before, though it cannot be served now: nothing below it may be.
    floor: Option<Mark>,
    /// Whether a version has been seen: from then on, messages without one are refused.
    versioned: bool,
    /// Newest first; the last few may be older than what is served, and are only there for a way back.
    candidates: Vec<Candidate<T>>,
    /// What was served before and can be again, the last one first.
    kept: Vec<Mark>,
    hold: Hold,
}

#[derive(Debug)]
struct Candidate<T> {
    mark: Mark,
    deferred: bool,
    update: T,
}

/// A content, by its rank and identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its place in the slot's order.
    pub rank: Rank,
    /// What tells it from other contents of the same rank.
    pub content: Digest,
    /// How it was announced: where it is, in which format, and so on.
    pub announcement: Digest,
}

/// What to do with a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may come to be served.
    Admit,
    /// It is served, kept, or a candidate, already.
    Duplicate,
    /// It is a candidate already, announced in another way: the new announcement takes the old one's place.
    Correction,
    /// Something newer is served.
    Stale,
    /// Another content has the same rank: the first one stays.
    Conflict,
    /// It has no version, and the slot has seen versions.
    Unversioned,
    /// It was taken back or revoked.
    Barred(Why),
}

/// What a slot should do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish<'a, T> {
    /// Serve what it serves.
    Stay,
    /// Work on a candidate.
    Bring(&'a T),
    /// Serve again what was served before.
    GoBack(&'a Mark),
    /// Serve nothing: what is served was revoked, and there is nothing else.
    Withdraw,
    /// Serve nothing, and keep what is served for a way back: it is to be told to come back.
    Unload,
    /// What it is pinned to is not here: serve what is served until it comes.
    Await,
}

/// Why there is no way back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWayBack {
    /// Nothing is above the version that was named.
    #[error("nothing above {0} is served or announced")]
    NothingAbove(Rank),
    /// The version that was named is not kept.
    #[error("{wanted} is not here any more; kept: {}", list(kept))]
    NotKept {
        /// What was named.
        wanted: Rank,
        /// What there is.
        kept: Vec<Rank>,
    },
    /// There is nothing older.
    #[error("nothing older is kept")]
    NothingOlder,
}

fn list(ranks: &[Rank]) -> String {
    if ranks.is_empty() {
        return "nothing".to_owned();
    }
    ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        let (candidates, kept) = (Vec::new(), Vec::new());
        Self { served: None, floor: None, versioned: false, candidates, kept, hold: Hold::default() }
    }
}

impl<T: Clone> Book<T> {
    /// Judges a newcomer; changes nothing.
    pub fn judge(&self, mark: &Mark) -> Verdict {
        if let Some(why) = self.hold.why_not(mark).filter(|why| self.bars(mark, *why)) {
            return Verdict::Barred(why);
        }
        let here = self.served.iter().chain(&self.kept).find(|here| here.rank == mark.rank);
        if let Some(here) = here {
            return if here.content == mark.content { Verdict::Duplicate } else { Verdict::Conflict };
        }
        if let Some(known) = self.candidates.iter().map(|known| &known.mark).find(|known| known.rank == mark.rank) {
            return if known == mark {
                Verdict::Duplicate
            } else if known.content == mark.content {
                Verdict::Correction
            } else {
                Verdict::Conflict
            };
        }
        if self.versioned && matches!(mark.rank, Rank::Stream(_)) {
            return Verdict::Unversioned;
        }
        if self.is_pinned_to(&mark.rank) {
            return Verdict::Admit;
        }
        // What was taken back stands in nobody's way, though it may be served for lack of another.
        let served = self.served.as_ref().filter(|served| self.hold.why_not(served).is_none());
        let below_served = served.is_some_and(|served| !mark.rank.is_above(&served.rank));
        let floor = self.floor.as_ref().filter(|floor| self.hold.why_not(floor).is_none());
        let below_floor = floor.is_some_and(|floor| floor.rank.is_above(&mark.rank));
        if below_served || below_floor { Verdict::Stale } else { Verdict::Admit }
    }

    /// Whether a content that is older than what is served is to be remembered, for a way back to it.
    pub fn remembers(&self, mark: &Mark) -> bool {
        let below = || self.candidates.iter().filter(|candidate| self.is_below_served(&candidate.mark));
        self.is_below_served(mark)
            && (below().count() < KEPT || below().last().is_some_and(|lowest| mark.rank.is_above(&lowest.mark.rank)))
    }

    fn is_below_served(&self, mark: &Mark) -> bool {
        self.served.as_ref().is_some_and(|served| served.rank.is_above(&mark.rank))
    }

    /// The candidate of a rank.
    pub fn candidate(&self, rank: &Rank) -> Option<&T> {
        self.candidates.iter().find(|known| known.mark.rank == *rank).map(|known| &known.update)
    }

    /// The candidates that the hold keeps out.
    pub fn barred(&self) -> impl Iterator<Item = &T> {
        let barred =
            |known: &&Candidate<T>| self.hold.why_not(&known.mark).is_some_and(|why| self.bars(&known.mark, why));
        self.candidates.iter().filter(barred).map(|known| &known.update)
    }

    /// Whether this keeps a content out: a pin brings back what was taken back, but not what was revoked.
    fn bars(&self, mark: &Mark, why: Why) -> bool {
        matches!(why, Why::Revoked { .. }) || !self.is_pinned_to(&mark.rank)
    }

    fn is_pinned_to(&self, rank: &Rank) -> bool {
        self.hold.pin().is_some_and(|(pin, _)| pin == rank)
    }

    /// What holds it.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Holds it in another way. Answers the candidates that are revoked thereby.
    pub fn set_hold(&mut self, hold: Hold) -> Vec<T> {
        self.hold = hold;
        let hold = &self.hold;
        self.kept.retain(|mark| !hold.is_revoked(mark));
        let (revoked, candidates) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition::<Vec<_>, _>(|candidate| hold.is_revoked(&candidate.mark));
        self.candidates = candidates;
        revoked.into_iter().map(|candidate| candidate.update).collect()
    }

    /// What to take back so as to serve `to`, or else what comes before what is served: all above the first rank, up
    /// to and with the second. Where the one who tells does not see this instance, `to` need not be here.
    pub fn way_back(&self, to: Option<Rank>, must_be_here: bool) -> Result<(Rank, Rank), NoWayBack> {
        let marks = || self.served.iter().chain(&self.kept).chain(self.candidates.iter().map(|known| &known.mark));
        let usable = |mark: &&Mark| self.hold.why_not(mark).is_none();
        let newest = newest(marks()).map(|mark| mark.rank.clone());
        let Some(to) = to else {
            let taken_back = self.served.as_ref().map(|served| &served.rank).or(newest.as_ref());
            let below = |mark: &&Mark| taken_back.is_some_and(|rank| rank.is_above(&mark.rank));
            let target = self::newest(marks().filter(below).filter(usable)).map(|mark| mark.rank.clone());
            return match (target, newest) {
                (Some(target), Some(newest)) => Ok((target, newest)),
                // Elsewhere there may be. An instance that serves nothing yet does not begin with what was taken back.
                (None, Some(newest)) if !must_be_here => Ok((Rank::Initial, newest)),
                _ => Err(NoWayBack::NothingOlder),
            };
        };
        if must_be_here && !marks().any(|mark| mark.rank == to) {
            let kept = self.kept.iter().map(|mark| mark.rank.clone()).collect();
            return Err(NoWayBack::NotKept { wanted: to, kept });
        }
        match newest {
            Some(newest) if newest.is_above(&to) => Ok((to, newest)),
            _ => Err(NoWayBack::NothingAbove(to)),
        }
    }

    /// Holds it as before the restart; what a setting says stays.
    pub fn restore_hold(&mut self, mut kept: Hold) {
        kept.keep_setting_of(&self.hold);
        self.hold = kept;
    }

    /// What the slot should do next.
    pub fn wish(&self) -> Wish<'_, T> {
        if self.hold.is_unloaded() {
            return if self.served.is_some() { Wish::Unload } else { Wish::Stay };
        }
        let ready = || self.candidates.iter().filter(|candidate| !candidate.deferred);
        if let Some((pin, _)) = self.hold.pin().filter(|(pin, _)| !self.is_revoked(pin)) {
            let is_it = |mark: &Mark| mark.rank == *pin && !self.hold.is_revoked(mark);
            if self.served.as_ref().is_some_and(is_it) {
                return Wish::Stay;
            }
            if let Some(candidate) = ready().find(|candidate| is_it(&candidate.mark)) {
                return Wish::Bring(&candidate.update);
            }
            if let Some(mark) = self.kept.iter().find(|mark| is_it(mark)) {
                return Wish::GoBack(mark);
            }
            // No other is served in its place.
            let revoked = self.served.as_ref().is_some_and(|served| self.hold.is_revoked(served));
            return if revoked { Wish::Withdraw } else { Wish::Await };
        }
        let usable = |mark: &&Mark| self.hold.why_not(mark).is_none();
        let candidate = ready().find(|candidate| usable(&&candidate.mark));
        let here = newest(self.served.iter().chain(&self.kept).filter(usable));
        match (candidate, here) {
            // A candidate below what is here is only there for a way back.
            (Some(candidate), here) if here.is_none_or(|here| candidate.mark.rank.is_above(&here.rank)) => {
                Wish::Bring(&candidate.update)
            }
            (_, Some(here)) if self.served.as_ref() == Some(here) => Wish::Stay,
            (_, Some(here)) => Wish::GoBack(here),
            (_, None) if self.served.as_ref().is_some_and(|served| self.hold.is_revoked(served)) => Wish::Withdraw,
            (_, None) => Wish::Stay,
        }
    }

    /// The candidate to work on.
    #[cfg(test)]
    pub fn aspired(&self) -> Option<&T> {
        match self.wish() {
            Wish::Bring(update) => Some(update),
            _ => None,
        }
    }

    /// Every candidate that may yet be served.
    pub fn candidates(&self) -> impl Iterator<Item = &T> {
        self.candidates.iter().map(|candidate| &candidate.update)
    }

    /// What is served.
    pub fn served(&self) -> Option<&Mark> {
        self.served.as_ref()
    }

    /// Whether a rank is revoked, by itself or by the content that is known of it.
    pub fn is_revoked(&self, rank: &Rank) -> bool {
        let known = self.served.iter().chain(&self.kept).chain(self.candidates.iter().map(|known| &known.mark));
        self.hold.is_rank_revoked(rank)
            || known.filter(|mark| mark.rank == *rank).any(|mark| self.hold.is_revoked(mark))
    }

    /// Whether a rank was served before and can be again.
    pub fn keeps(&self, rank: &Rank) -> bool {
        self.kept.iter().any(|mark| mark.rank == *rank)
    }

    /// Remembers what was served before and is kept, the last one first.
    pub fn keep(&mut self, kept: Vec<Mark>) {
        self.kept = kept;
        self.kept.truncate(KEPT);
    }

    /// The newest that is served, kept, or was served before the slot was emptied.
    pub fn newest_ever(&self) -> Option<&Mark> {
        newest(self.served.iter().chain(&self.kept).chain(&self.floor))
    }

    /// A kept content cannot be served any more.
    pub fn lose(&mut self, rank: &Rank) {
        self.kept.retain(|mark| mark.rank != *rank);
    }

    /// Nothing is served any more: what was, was revoked.
    pub fn withdraw(&mut self) {
        self.floor = self.served.take().or(self.floor.take());
    }

    /// Nothing is served any more; what was is kept for a way back.
    pub fn unload(&mut self) {
        if let Some(before) = self.served.take() {
            self.kept.retain(|kept| kept.rank != before.rank);
            self.kept.insert(0, before);
            self.kept.truncate(KEPT);
        }
    }

    /// Readers have seen this rank: nothing below it comes any more.
    pub fn raise_floor(&mut self, mark: Mark) {
        self.versioned |= matches!(mark.rank, Rank::Version(_));
        self.floor = Some(mark);
    }

    /// Takes in a newcomer that was judged `Admit` or `Correction`. Answers the candidate that had to make room.
    pub fn admit(&mut self, mark: Mark, update: T) -> Option<T> {
        if let Some(known) = self.candidates.iter_mut().find(|known| known.mark.rank == mark.rank) {
            let old = std::mem::replace(known, Candidate { mark, deferred: false, update });
            return Some(old.update);
        }
        let place = self.candidates.iter().position(|other| mark.rank.is_above(&other.mark.rank));
        let place = place.unwrap_or(self.candidates.len());
        self.candidates.insert(place, Candidate { mark, deferred: false, update });
        let below = self.candidates.iter().filter(|candidate| self.is_below_served(&candidate.mark)).count();
        if self.candidates.len() <= CANDIDATES && below <= KEPT {
            return None;
        }
        // The oldest makes room, unless the slot waits for just that one.
        let pinned = |candidate: &Candidate<T>| self.hold.pin().is_some_and(|(pin, _)| *pin == candidate.mark.rank);
        let ousted = self.candidates.iter().rposition(|candidate| !pinned(candidate))?;
        let ousted = self.candidates.remove(ousted);
        // What is below what is served was superseded, or stale, before.
        (!self.is_below_served(&ousted.mark)).then_some(ousted.update)
    }

    /// A candidate cannot be had for now: the next one gets its turn meanwhile.
    pub fn defer(&mut self, is_it: impl Fn(&T) -> bool) {
        for candidate in self.candidates.iter_mut().filter(|candidate| is_it(&candidate.update)) {
            candidate.deferred = true;
        }
    }

    /// Deferred candidates get another turn.
    pub fn revive(&mut self) {
        for candidate in &mut self.candidates {
            candidate.deferred = false;
        }
    }

    /// Whether nothing is, was or may come to be served, and nothing is held.
    pub fn is_blank(&self) -> bool {
        self.served.is_none() && self.floor.is_none() && self.candidates.is_empty() && self.hold.is_empty()
    }

    /// Whether the slot would take this content now, as the other half of what is served elsewhere.
    pub fn takes(&self, mark: &Mark) -> bool {
        let pinned_elsewhere = self.hold.pin().is_some_and(|(pin, _)| *pin != mark.rank);
        let served = self.served.as_ref().filter(|served| self.hold.why_not(served).is_none());
        !pinned_elsewhere
            && !self.hold.is_unloaded()
            && self.hold.why_not(mark).is_none_or(|why| !self.bars(mark, why))
            && (served.is_none_or(|served| mark.rank.is_above(&served.rank)) || self.is_pinned_to(&mark.rank))
    }

    /// A content is served from now on, and the one before is kept. Answers the candidates that are thereby superseded:
    /// the newest few of them are remembered for a way back.
    pub fn serve(&mut self, mark: Mark) -> Vec<T> {
        self.versioned |= matches!(mark.rank, Rank::Version(_));
        self.candidates.retain(|candidate| candidate.mark.rank != mark.rank);
        let below = |candidate: &Candidate<T>| !candidate.mark.rank.is_above(&mark.rank);
        // What was below what is served already was superseded before.
        let news = |candidate: &Candidate<T>| {
            self.served.as_ref().is_none_or(|served| candidate.mark.rank.is_above(&served.rank))
        };
        let superseded = self.candidates.iter().filter(|candidate| below(candidate) && news(candidate));
        let superseded = superseded.map(|candidate| candidate.update.clone()).collect();
        let above = self.candidates.iter().position(below).unwrap_or(self.candidates.len());
        self.candidates.truncate(above + KEPT);
        self.kept.retain(|kept| kept.rank != mark.rank);
        if let Some(before) = self.served.replace(mark)
            && Some(&before.rank) != self.served.as_ref().map(|served| &served.rank)
            && !self.hold.is_revoked(&before)
        {
            self.kept.insert(0, before);
            self.kept.truncate(KEPT);
        }
        superseded
    }

    /// A candidate was refused by a gate: the next one gets its turn.
    pub fn refuse(&mut self, is_it: impl Fn(&T) -> bool) {
        self.candidates.retain(|candidate| !is_it(&candidate.update));
    }
}

fn newest<'a>(marks: impl Iterator<Item = &'a Mark>) -> Option<&'a Mark> {
    marks.reduce(|newest, mark| if mark.rank.is_above(&newest.rank) { mark } else { newest })
}

#[cfg(test)]
mod hold_tests;
#[cfg(test)]
mod tests;
