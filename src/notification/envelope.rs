//! What may stand around a message: a DSSE envelope with signatures, and within it (or alone) a CloudEvent.
//!
//! ```json
//! {"payloadType":"application/vnd.hotserve.notification+json","payload":"<base64>","signatures":[{"keyid":"…","sig":"<base64>"}]}
//! {"specversion":"1.0","id":"4143","source":"/ci/fraud","type":"com.example.model","time":"…","data":{…}}
//! ```
//!
//! <https://github.com/secure-systems-lab/dsse/blob/master/envelope.md>,
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md>

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::Bytes;
use jiff::Timestamp;
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{Reason, Rejection};
use crate::id::MessageId;
use crate::telemetry::TraceContext;
use crate::trust::{self, MAX_SIGNATURES, Signature, SigningKey};

/// The type of what is signed.
pub const PAYLOAD_TYPE: &str = "application/vnd.hotserve.notification+json";

/// DSSE leaves the choice of the alphabet to the producer, and padding is sometimes lost on the way.
const CONFIG: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const PLAIN: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);

/// What an object is, by the field that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Neither of the two.
    Message,
    /// A DSSE envelope.
    Signed,
    /// A CloudEvent.
    Event,
}

#[derive(Deserialize)]
struct Marks {
    #[serde(rename = "payloadType", default, deserialize_with = "is_there")]
    is_signed: bool,
    #[serde(rename = "specversion", default, deserialize_with = "is_there")]
    is_event: bool,
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// Looks what a text is, which `strict::check` has passed.
pub(super) fn kind(text: &[u8]) -> Result<Kind, Rejection> {
    if !text.trim_ascii_start().starts_with(b"{") {
        return Ok(Kind::Message);
    }
    let marks: Marks = serde_json::from_slice(text).map_err(|error| schema(format!("not a message: {error}")))?;
    match marks {
        Marks { is_signed: true, is_event: true } => Err(schema("both a DSSE envelope and a CloudEvent")),
        Marks { is_signed: true, .. } => Ok(Kind::Signed),
        Marks { is_event: true, .. } => Ok(Kind::Event),
        Marks { .. } => Ok(Kind::Message),
    }
}

/// The content of a DSSE envelope, whose signatures nobody has looked at yet.
pub(super) struct Sealed {
    /// What is signed.
    pub payload: Bytes,
    /// By whom, as they say.
    pub signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, rename = "payloadType")]
    payload_type: Cow<'a, str>,
    #[serde(borrow)]
    payload: Cow<'a, str>,
    signatures: AtMost<SignatureIn>,
}

#[derive(Deserialize)]
struct SignatureIn {
    keyid: Option<String>,
    sig: String,
}

/// Opens a DSSE envelope.
pub(super) fn open(text: &[u8]) -> Result<Sealed, Rejection> {
    let envelope: Envelope<'_> =
        serde_json::from_slice(text).map_err(|error| schema(format!("not a DSSE envelope: {error}")))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        let detail = format!("a DSSE envelope of {:?}, not of {PAYLOAD_TYPE}", envelope.payload_type);
        return Err(Rejection::new(Reason::UnknownKind, detail));
    }
    let payload = base64(&envelope.payload).map_err(|error| schema(format!("\"payload\" is not base64: {error}")))?;
    let signature = |SignatureIn { keyid, sig }| {
        let bytes = base64(&sig).map_err(|error| schema(format!("\"sig\" is not base64: {error}")))?;
        Ok(Signature { key_id: keyid, bytes })
    };
    let signatures = envelope.signatures.0.into_iter().map(signature).collect::<Result<_, Rejection>>()?;
    Ok(Sealed { payload: payload.into(), signatures })
}

impl Sealed {
    /// What the signatures are over.
    pub fn signed(&self) -> Vec<u8> {
        trust::pre_authentication_encoding(PAYLOAD_TYPE, &self.payload)
    }
}

fn base64(text: &str) -> Result<Vec<u8>, base64::DecodeError> {
    if text.contains(['-', '_']) { URL_SAFE.decode(text) } else { PLAIN.decode(text) }
}

/// Puts a message into a DSSE envelope, signed with each of the keys, byte for byte as it is.
pub fn seal<'a>(message: &[u8], keys: impl IntoIterator<Item = &'a SigningKey>) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Out {
        #[serde(rename = "payloadType")]
        payload_type: &'static str,
        payload: String,
        signatures: Vec<SignatureOut>,
    }
    #[derive(Serialize)]
    struct SignatureOut {
        keyid: crate::id::KeyId,
        sig: String,
    }
    let signed = trust::pre_authentication_encoding(PAYLOAD_TYPE, message);
    let signature =
        |key: &SigningKey| SignatureOut { keyid: key.public().id(), sig: STANDARD.encode(key.sign(&signed)) };
    serde_json::to_vec(&Out {
        payload_type: PAYLOAD_TYPE,
        payload: STANDARD.encode(message),
        signatures: keys.into_iter().map(signature).collect(),
    })
}

/// A list that may not be long: a hostile one of millions must not fill the memory.
struct AtMost<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for AtMost<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = AtMost<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX_SIGNATURES} signatures")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    if items.len() == MAX_SIGNATURES {
                        return Err(A::Error::custom(format_args!("more than {MAX_SIGNATURES} signatures")));
                    }
                    items.push(item);
                }
                Ok(AtMost(items))
            }
        }
        deserializer.deserialize_seq(List(std::marker::PhantomData))
    }
}

/// A CloudEvent, opened.
pub(super) struct Event<'a> {
    /// Its id, for a message that has none of its own.
    pub id: MessageId,
    /// Its time, for a message that has none of its own.
    pub time: Option<Timestamp>,
    /// Its trace (the extension for distributed tracing), for a message that names none of its own.
    pub trace: Option<TraceContext>,
    /// The message.
    pub data: &'a RawValue,
}

#[derive(Deserialize)]
struct CloudEvent<'a> {
    specversion: String,
    id: String,
    source: String,
    r#type: String,
    time: Option<Timestamp>,
    datacontenttype: Option<String>,
    #[serde(default, borrow)]
    traceparent: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// Opens a CloudEvent in the structured JSON format.
pub(super) fn event(text: &[u8]) -> Result<Event<'_>, Rejection> {
    let event: CloudEvent<'_> =
        serde_json::from_slice(text).map_err(|error| schema(format!("not a CloudEvent: {error}")))?;
    let major = event.specversion.split('.').next();
    if major != Some("1") {
        let detail = format!("a CloudEvent of specversion {:?}, and this program knows 1.0", event.specversion);
        return Err(Rejection::new(Reason::UnknownKind, detail));
    }
    if event.source.is_empty() || event.r#type.is_empty() {
        return Err(schema("a CloudEvent has a source and a type"));
    }
    let is_json = |content_type: &str| {
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        media_type.ends_with("/json") || media_type.ends_with("+json")
    };
    if let Some(other) = event.datacontenttype.as_deref().filter(|it| !is_json(it)) {
        return Err(schema(format!("a CloudEvent with data of type {other:?}: the data of a message is JSON")));
    }
    let data = event.data.ok_or_else(|| schema("a CloudEvent without \"data\" (as JSON, not as data_base64)"))?;
    let id = event.id.parse().map_err(|error: crate::id::Invalid| schema(error.to_string()))?;
    Ok(Event { id, time: event.time, trace: event.traceparent.and_then(trace), data })
}

/// A `traceparent`. One that is none is left out: how something is watched is no reason to refuse it.
pub(super) fn trace(json: &RawValue) -> Option<TraceContext> {
    TraceContext::parse(json.get().strip_prefix('"')?.strip_suffix('"')?.as_bytes())
}

fn schema(detail: impl Into<String>) -> Rejection {
    Rejection::new(Reason::Schema, detail)
}

#[cfg(test)]
mod tests;
