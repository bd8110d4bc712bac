//! A message before it is published: its version may yet be assigned.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::id::{Digest, Format, ModelName, Slot, StateKey, Version};
use crate::notification::{ArtifactUri, Control, Encoding};
use crate::telemetry::TraceContext;

/// A new state, a new model or a command, and how it is announced.
#[derive(Debug, Clone, Serialize)]
pub struct Draft {
    message_id: String,
    #[serde(flatten)]
    content: Content,
    published_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum Content {
    State {
        key: StateKey,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<Version>,
        /// As it was given, digit for digit.
        state: Box<RawValue>,
    },
    Model {
        model: Box<Model>,
    },
    Control {
        control: Control,
    },
}

/// A model and where its bytes are.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// Which model.
    pub name: ModelName,
    /// Its version, if it is the caller who says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// A person's name for the version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its format.
    pub format: Format,
    /// Where its bytes are.
    #[serde(flatten)]
    pub place: Place,
    /// Cases that it must get right before it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub golden: Option<serde_json::Value>,
}

/// Where a model's bytes are, with their digest and size as they lie there.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    #[serde(flatten)]
    pub(super) bytes: Bytes,
    pub(super) sha256: Digest,
    pub(super) size: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Bytes {
    Uploaded { uri: String },
    Inline { inline: String, encoding: Encoding },
}

impl Place {
    pub(super) fn uploaded(uri: &ArtifactUri, sha256: Digest, size: u64) -> Self {
        Self { bytes: Bytes::Uploaded { uri: uri.to_string() }, sha256, size }
    }
}

impl Draft {
    /// A state.
    pub fn state(key: StateKey, version: Option<Version>, state: Box<RawValue>) -> Self {
        Self::new(Content::State { key, version, state })
    }

    /// A model.
    pub fn model(model: Model) -> Self {
        Self::new(Content::Model { model: Box::new(model) })
    }

    /// A command about a slot.
    pub fn control(control: Control) -> Self {
        Self::new(Content::Control { control })
    }

    /// What it tells, if it is a command, which brings nothing to serve.
    pub fn told(&self) -> Option<&Control> {
        match &self.content {
            Content::Control { control } => Some(control),
            Content::State { .. } | Content::Model { .. } => None,
        }
    }

    /// The same with another command.
    #[must_use]
    pub fn with_control(self, control: Control) -> Self {
        Self { content: Content::Control { control }, ..self }
    }

    fn new(content: Content) -> Self {
        let message_id = format!("{:032x}", fastrand::u128(..));
        Self { message_id, content, published_at: Timestamp::now(), traceparent: None }
    }

    /// The same as a part of this trace, which goes on where it is served.
    #[must_use]
    pub fn with_trace(self, trace: Option<TraceContext>) -> Self {
        Self { traceparent: trace.map(|trace| trace.to_string()), ..self }
    }

    /// The slot that it means.
    pub fn slot(&self) -> Slot {
        match &self.content {
            Content::State { key, .. } => Slot::State(key.clone()),
            Content::Model { model } => Slot::Model(model.name.clone()),
            Content::Control { control } => control.slot.clone(),
        }
    }

    /// Its version, if it has one.
    pub fn version(&self) -> Option<Version> {
        match &self.content {
            Content::State { version, .. } => *version,
            Content::Model { model } => model.version,
            // The version that it names is not its own.
            Content::Control { .. } => None,
        }
    }

    /// The same with this version.
    #[must_use]
    pub fn with_version(mut self, assigned: Version) -> Self {
        match &mut self.content {
            Content::State { version, .. } => *version = Some(assigned),
            Content::Model { model } => model.version = Some(assigned),
            Content::Control { .. } => {}
        }
        self
    }

    /// Messages of one slot have one key, so that they keep their order.
    pub(super) fn partition_key(&self) -> String {
        match self.slot() {
            Slot::State(key) => format!("state:{key}"),
            Slot::Model(name) => format!("model:{name}"),
        }
    }
}
