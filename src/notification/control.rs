//! A command about one slot: what it may serve, whatever is announced.

use serde::{Deserialize, Serialize};

use super::decode::schema;
use super::{Reason, Rejection};
use crate::id::{Digest, ModelName, Slot, StateKey, Version};

/// What a slot is told to do.
///
/// ```json
/// {"action": "pin", "model": "fraud", "version": 11}
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Control {
    /// Which slot.
    pub slot: Slot,
    /// What to do.
    pub action: Action,
}

/// What may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Serve this version and no other, or go on serving what is served now.
    Pin(Option<Version>),
    /// Serve the newest again.
    Unpin,
    /// Take back what is above one version, or what is served now: the one before is served until something newer than
    /// what was taken back is announced.
    Rollback {
        /// What is to be served.
        to: Option<Version>,
        /// The newest that is taken back; else it is the newest announced before.
        from: Option<Version>,
    },
    /// Never serve this version again.
    Revoke(Version),
    /// Never serve this artifact again, whatever version it comes as.
    RevokeDigest(Digest),
    /// Serve nothing until told to load. It concerns one instance: no message says it.
    Unload,
    /// Serve the newest again after an unload.
    Load,
}

impl Control {
    /// Whether it does no harm to read it again later, given whether it says when it was published.
    pub fn may_be_played_again(&self, dated: bool) -> bool {
        match self.action {
            Action::Revoke(_) | Action::RevokeDigest(_) => true,
            Action::Rollback { to, from } => to.is_some() && from.is_some(),
            // The latest counts.
            Action::Pin(version) => dated && version.is_some(),
            Action::Unpin => dated,
            Action::Unload | Action::Load => false,
        }
    }

    pub(super) fn parse(json: &str) -> Result<Self, Rejection> {
        let raw: Raw = serde_json::from_str(json)
            .map_err(|error| Rejection::new(Reason::Schema, format!("not a control: {error}")))?;
        raw.try_into()
    }
}

impl Action {
    /// Its name in a message.
    pub fn code(self) -> &'static str {
        match self {
            Self::Pin(_) => "pin",
            Self::Unpin => "unpin",
            Self::Rollback { .. } => "rollback",
            Self::Revoke(_) | Self::RevokeDigest(_) => "revoke",
            Self::Unload => "unload",
            Self::Load => "load",
        }
    }
}

/// The JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Raw {
    action: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl From<Control> for Raw {
    fn from(Control { slot, action }: Control) -> Self {
        let (model, key) = match slot {
            Slot::Model(name) => (Some(name.into()), None),
            Slot::State(key) => (None, Some(key.into())),
        };
        let (version, from, sha256) = match action {
            Action::Pin(version) => (version, None, None),
            Action::Rollback { to, from } => (to, from, None),
            Action::Revoke(version) => (Some(version), None, None),
            Action::RevokeDigest(digest) => (None, None, Some(digest.to_string())),
            Action::Unpin | Action::Unload | Action::Load => (None, None, None),
        };
        let (version, from) = (version.map(Version::get), from.map(Version::get));
        Self { action: action.code().to_owned(), model, key, version, from, sha256 }
    }
}

impl TryFrom<Raw> for Control {
    type Error = Rejection;

    fn try_from(raw: Raw) -> Result<Self, Rejection> {
        let malformed = |detail: String| Rejection::new(Reason::Schema, detail);
        let slot = match (&raw.model, &raw.key) {
            (Some(name), None) => Slot::Model(name.parse::<ModelName>().map_err(schema)?),
            (None, Some(key)) => Slot::State(key.parse::<StateKey>().map_err(schema)?),
            _ => return Err(malformed("a control names either a \"model\" or the \"key\" of a state".to_owned())),
        };
        let version = raw.version.map(Version::try_from).transpose().map_err(schema)?;
        let from = raw.from.map(Version::try_from).transpose().map_err(schema)?;
        let digest = raw.sha256.as_deref().map(str::parse::<Digest>).transpose().map_err(schema)?;
        if from.is_some_and(|from| raw.action != "rollback" || version.is_none_or(|to| to >= from)) {
            return Err(malformed("\"from\" belongs to a rollback, and is above its \"version\"".to_owned()));
        }
        let action = match (raw.action.as_str(), version, digest) {
            ("pin", version, None) => Action::Pin(version),
            ("unpin", None, None) => Action::Unpin,
            ("rollback", to, None) => Action::Rollback { to, from },
            ("revoke", Some(version), None) => Action::Revoke(version),
            ("revoke", None, Some(digest)) => Action::RevokeDigest(digest),
            ("revoke", ..) => return Err(malformed("revoke takes either a \"version\" or a \"sha256\"".to_owned())),
            ("pin" | "unpin" | "rollback", ..) => {
                let detail = format!("{} takes a \"version\" at most, and unpin none", raw.action);
                return Err(malformed(detail));
            }
            (action, ..) => {
                let detail = format!("no action {action:?}: there are pin, unpin, rollback and revoke");
                return Err(Rejection::new(Reason::UnknownKind, detail));
            }
        };
        Ok(Self { slot, action })
    }
}
