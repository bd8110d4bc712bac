//! One message of the stream: bytes → [`Notification`], pure and total.
//!
//! ```text
//!   record ─► payload::inflate ─► strict::check ─► decode ─► Notification
//!               ▲  │                   │              │
//!               │  └───────────────────┴──────────────┴────► Rejection { reason, detail }
//!               └── envelope::open, and the signatures, once
//! ```
//!
//! The bytes are hostile. Every step is bounded (size, ratio, depth) and ends in a typed [`Rejection`], never a panic.

mod control;
mod decode;
pub mod envelope;
mod payload;
mod strict;
pub mod uri;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hotserve_models::{Golden, Signature};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{one_line, shorten};
use crate::id::{Digest, Format, KeyId, MessageId, ModelName, Slot, StateKey, Version};
use crate::telemetry::TraceContext;
use crate::trust::{Fault, FaultKind, Required, Trust};

pub use control::{Action, Control};
pub(crate) use decode::KPL_MAGIC;
pub use decode::{decode, decode_at};
pub use payload::{inflate, plain};
pub use uri::ArtifactUri;

/// A decoded and validated message: a new state, a new model, or both at once.
#[derive(Debug, Clone)]
pub struct Notification {
    /// The producer's id: removes duplicates, never orders.
    pub id: Option<MessageId>,
    /// When the producer published it: for lag, never for order.
    pub published_at: Option<Timestamp>,
    /// After this moment it may not be newly applied.
    pub expires_at: Option<Timestamp>,
    /// The trace that its publication belongs to: for spans and logs, never for a decision.
    pub trace: Option<TraceContext>,
    /// A state to serve.
    pub state: Option<StateUpdate>,
    /// A model to serve.
    pub model: Option<ModelUpdate>,
    /// A command about a slot; it comes alone.
    pub control: Option<Control>,
    /// Who signed it.
    pub signers: Signers,
}

/// Who signed a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Signers {
    /// Nobody.
    #[default]
    None,
    /// These, as the message says: whoever decoded it had no keys to check that.
    Claimed(Vec<KeyId>),
    /// These: their keys are trusted, and their signatures are good.
    Verified(Vec<KeyId>),
}

impl Signers {
    /// Whose signatures were found good.
    pub fn verified(&self) -> &[KeyId] {
        match self {
            Self::Verified(keys) => keys,
            Self::None | Self::Claimed(_) => &[],
        }
    }

    /// The metric's label.
    pub fn code(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Claimed(_) => "unchecked",
            Self::Verified(_) => "good",
        }
    }
}

impl Notification {
    /// The slots that it means to replace, with the versions it gives them.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, Option<Version>)> + '_ {
        let state = self.state.iter().map(|state| (Slot::State(state.key.clone()), state.version));
        let model = self.model.iter().map(|model| (Slot::Model(model.name.clone()), model.version));
        state.chain(model)
    }

    /// What tells a slot's content from another of the same rank.
    pub fn content(&self, slot: &Slot) -> Digest {
        match (slot, &self.state, &self.model) {
            (Slot::State(_), Some(state), _) => Digest::of(state.json.get().as_bytes()),
            (Slot::Model(_), _, Some(model)) => match &model.location {
                Location::Uri { sha256: Some(sha256), .. } => *sha256,
                Location::Uri { uri, version_id, .. } => Digest::of(format!("{uri} {version_id:?}").as_bytes()),
                Location::Inline(bytes) => Digest::of(bytes),
            },
            _ => Digest::of(b""),
        }
    }
}

/// A new content for a state slot.
#[derive(Debug, Clone)]
pub struct StateUpdate {
    /// Which slot.
    pub key: StateKey,
    /// Its rank, if the producer gives one.
    pub version: Option<Version>,
    /// The state, byte for byte as published.
    pub json: Box<RawValue>,
}

/// A new content for a model slot.
#[derive(Debug, Clone)]
pub struct ModelUpdate {
    /// Which slot.
    pub name: ModelName,
    /// Its rank, if the producer gives one.
    pub version: Option<Version>,
    /// A person's name for the version.
    pub label: Option<String>,
    /// Which kind of model.
    pub format: Format,
    /// Where the bytes are.
    pub location: Location,
    /// How the bytes are compressed.
    pub encoding: Encoding,
    /// What the producer says goes in and comes out.
    pub signature: Option<Signature>,
    /// Cases that the model must get right before it is served.
    pub golden: Option<Golden>,
    /// What it may take; may only tighten what the server allows.
    pub limits: ModelLimits,
}

/// What a model may take, as its producer says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelLimits {
    /// The longest time for one row.
    pub row_time: Option<Duration>,
    /// The most memory that it may hold, in bytes.
    pub memory_bytes: Option<u64>,
}

/// Where a model's bytes are. Digest and size are of the bytes as they lie there, still encoded.
#[derive(Debug, Clone)]
pub enum Location {
    /// In a store.
    Uri {
        /// The object.
        uri: ArtifactUri,
        /// The version of the object, where the bucket keeps versions.
        version_id: Option<String>,
        /// What the bytes must hash to.
        sha256: Option<Digest>,
        /// How many bytes there must be.
        size: Option<u64>,
    },
    /// In the message itself.
    Inline(Bytes),
}

/// How an artifact's bytes are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// The bounds that a message must keep.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest payload, before and after it is inflated, in bytes.
    pub payload_bytes: usize,
    /// The largest inflated : deflated ratio.
    pub inflate_ratio: usize,
    /// The deepest nesting of arrays and objects.
    pub depth: usize,
    /// Whether a model at a URI must carry its digest and size. Where signatures are required, it must in any case.
    pub require_digest: bool,
    /// The keys that signatures are checked with. Without keys they are not, and nothing need be signed.
    pub trust: Option<Arc<Trust>>,
}

impl Limits {
    /// What must be signed.
    pub fn requires_signatures(&self) -> Required {
        self.trust.as_ref().map_or(Required::Off, |trust| trust.required())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { payload_bytes: 10 << 20, inflate_ratio: 200, depth: 32, require_digest: true, trust: None }
    }
}

/// Why a message is no [`Notification`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Rejection {
    /// The kind of fault: the metric's label.
    pub reason: Reason,
    /// What is wrong and what to do, for a person.
    pub detail: String,
}

impl Rejection {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: shorten(one_line(&shorten(detail.into()))) }
    }
}

impl From<Fault> for Rejection {
    fn from(fault: Fault) -> Self {
        let reason = match fault.kind {
            FaultKind::BadSignature => Reason::BadSignature,
            FaultKind::UnknownKey => Reason::UnknownKey,
            FaultKind::KeyExpired => Reason::KeyExpired,
            FaultKind::KeyScope => Reason::KeyScope,
            FaultKind::Threshold => Reason::Threshold,
        };
        Self::new(reason, fault.detail)
    }
}

/// The kinds of fault in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not JSON, not UTF-8, or empty.
    NotJson,
    /// Larger than the limit, before or after it is inflated, or inflating beyond the ratio.
    TooLarge,
    /// Compressed, and the compression is broken.
    Inflate,
    /// Nested deeper than the limit.
    Depth,
    /// The same key twice in one object.
    DuplicateKey,
    /// JSON of the wrong shape: a type, a name, a version, a digest, a missing field.
    Schema,
    /// A kind of message that this server does not know (yet).
    UnknownKind,
    /// `must_understand` names a field that this server does not know.
    MustUnderstand,
    /// The artifact's URI is malformed.
    Uri,
    /// Not signed, where it must be.
    Unsigned,
    /// A trusted key is named, and did not sign these bytes.
    BadSignature,
    /// Signed, but by no key that is trusted.
    UnknownKey,
    /// Signed with a key whose time is over.
    KeyExpired,
    /// Signed with a key that may not sign for this slot.
    KeyScope,
    /// Signed by fewer keys than are needed.
    Threshold,
    /// Signed as required, but without a version: anybody could play it again.
    Unversioned,
}

impl Reason {
    /// Every kind, for the metrics.
    pub const ALL: [Self; 16] = [
        Self::NotJson,
        Self::TooLarge,
        Self::Inflate,
        Self::Depth,
        Self::DuplicateKey,
        Self::Schema,
        Self::UnknownKind,
        Self::MustUnderstand,
        Self::Uri,
        Self::Unsigned,
        Self::BadSignature,
        Self::UnknownKey,
        Self::KeyExpired,
        Self::KeyScope,
        Self::Threshold,
        Self::Unversioned,
    ];

    /// The metric's label.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::TooLarge => "too_large",
            Self::Inflate => "inflate",
            Self::Depth => "depth",
            Self::DuplicateKey => "duplicate_key",
            Self::Schema => "schema",
            Self::UnknownKind => "unknown_kind",
            Self::MustUnderstand => "must_understand",
            Self::Uri => "uri",
            Self::Unsigned => "unsigned",
            Self::BadSignature => "bad_signature",
            Self::UnknownKey => "unknown_key",
            Self::KeyExpired => "key_expired",
            Self::KeyScope => "key_scope",
            Self::Threshold => "threshold",
            Self::Unversioned => "unversioned",
        }
    }
}
