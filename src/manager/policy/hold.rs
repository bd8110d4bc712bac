//! What holds a slot, whatever is announced: pins, and what was taken back or revoked. Pure.

use serde::{Deserialize, Serialize};

use super::Mark;
use crate::id::{Digest, Rank};
pub use crate::status::By;

/// How many bars a slot remembers; the oldest of what was only taken back goes first.
const BARS: usize = 256;

/// What holds one slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Not kept: a setting is read at each start.
    #[serde(skip)]
    setting: Option<Rank>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin: Option<Rank>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream: Option<StreamPin>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bars: Vec<Bar>,
    /// Nothing is served, whatever is announced or pinned.
    #[serde(default, skip_serializing_if = "is_false")]
    unloaded: bool,
    /// The place of the last rollback by message that was obeyed: one that is read again is not obeyed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    obeyed: Option<Rank>,
}

/// What a message said last, be it that nothing is pinned; the latest counts, in whatever order they are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StreamPin {
    rank: Option<Rank>,
    at_ms: u64,
}

/// Contents that are not to be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bar {
    what: Barred,
    /// Since when, in milliseconds since 1970: what was announced before is not news.
    since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Barred {
    /// Taken back: above the one, up to and with the other.
    TakenBack { above: Rank, up_to: Rank },
    /// Revoked for good.
    Rank(Rank),
    /// Revoked for good, whatever its rank.
    Digest(Digest),
}

/// Why a content is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was taken back: a pin may still bring it.
    TakenBack {
        /// Since when.
        since_ms: u64,
    },
    /// It was revoked.
    Revoked {
        /// Since when.
        since_ms: u64,
    },
}

impl Hold {
    /// The rank that is served and no other, and who says so.
    pub fn pin(&self) -> Option<(&Rank, By)> {
        let setting = self.setting.as_ref().map(|rank| (rank, By::Setting));
        let admin = self.admin.as_ref().map(|rank| (rank, By::Admin));
        let stream = self.stream.as_ref().and_then(|pin| Some((pin.rank.as_ref()?, By::Stream)));
        setting.or(admin).or(stream)
    }

    /// Sets or lifts the pin of one who tells, at a time in milliseconds since 1970.
    pub fn set_pin(&mut self, by: By, rank: Option<Rank>, at_ms: u64) {
        match by {
            By::Setting => self.setting = rank,
            By::Admin => self.admin = rank,
            By::Stream if self.stream.as_ref().is_some_and(|pin| pin.at_ms > at_ms) => {}
            By::Stream => self.stream = Some(StreamPin { rank, at_ms }),
        }
    }

    /// A setting is that of this start.
    pub(super) fn keep_setting_of(&mut self, other: &Self) {
        self.setting.clone_from(&other.setting);
    }

    /// What lies above one rank and not above the other is taken back.
    pub fn take_back(&mut self, above: Rank, up_to: Rank, since_ms: u64) {
        self.bar(Bar { what: Barred::TakenBack { above, up_to }, since_ms });
    }

    /// A rank is revoked.
    pub fn revoke(&mut self, rank: Rank, since_ms: u64) {
        self.bar(Bar { what: Barred::Rank(rank), since_ms });
    }

    /// An artifact is revoked.
    pub fn revoke_digest(&mut self, digest: Digest, since_ms: u64) {
        self.bar(Bar { what: Barred::Digest(digest), since_ms });
    }

    fn bar(&mut self, bar: Bar) {
        if self.bars.iter().any(|known| known.what == bar.what) {
            return;
        }
        if self.bars.len() == BARS {
            let taken_back = self.bars.iter().position(|bar| matches!(bar.what, Barred::TakenBack { .. }));
            self.bars.remove(taken_back.unwrap_or(0));
        }
        self.bars.push(bar);
    }

    /// Whether a message at this place in the stream was obeyed before, or a later one.
    pub fn has_obeyed(&self, place: &Rank) -> bool {
        self.obeyed.as_ref().is_some_and(|obeyed| !place.is_above(obeyed))
    }

    /// A message at this place in the stream is obeyed.
    pub fn obey(&mut self, place: Rank) {
        self.obeyed = Some(place);
    }

    /// Why a content is not to be served, if it is not; what was revoked first of all.
    pub fn why_not(&self, mark: &Mark) -> Option<Why> {
        let revoked = self.bars.iter().find(|bar| match &bar.what {
            Barred::Rank(rank) => *rank == mark.rank,
            Barred::Digest(digest) => *digest == mark.content,
            Barred::TakenBack { .. } => false,
        });
        let taken_back = || {
            self.bars.iter().rev().find(|bar| match &bar.what {
                Barred::TakenBack { above, up_to } => mark.rank.is_above(above) && !mark.rank.is_above(up_to),
                Barred::Rank(_) | Barred::Digest(_) => false,
            })
        };
        match revoked {
            Some(Bar { since_ms, .. }) => Some(Why::Revoked { since_ms: *since_ms }),
            None => taken_back().map(|Bar { since_ms, .. }| Why::TakenBack { since_ms: *since_ms }),
        }
    }

    /// Whether a content is revoked.
    pub fn is_revoked(&self, mark: &Mark) -> bool {
        matches!(self.why_not(mark), Some(Why::Revoked { .. }))
    }

    /// Whether a rank is revoked, whatever its content.
    pub fn is_rank_revoked(&self, rank: &Rank) -> bool {
        self.bars.iter().any(|bar| matches!(&bar.what, Barred::Rank(revoked) if revoked == rank))
    }

    /// Whether an artifact is revoked.
    pub fn is_digest_revoked(&self, digest: Digest) -> bool {
        self.bars.iter().any(|bar| bar.what == Barred::Digest(digest))
    }

    /// Nothing is served from now on, or the newest again.
    pub fn set_unloaded(&mut self, unloaded: bool) {
        self.unloaded = unloaded;
    }

    /// Whether nothing is to be served.
    pub fn is_unloaded(&self) -> bool {
        self.unloaded
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}
