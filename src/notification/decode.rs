//! JSON text → [`Notification`].

use base64::Engine as _;
use bytes::Bytes;
use hotserve_models::{Golden, Signature};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::envelope::{self, Event, Kind};
use super::{
    Control, Encoding, Limits, Location, ModelLimits, ModelUpdate, Notification, Reason, Rejection, Signers,
    StateUpdate, plain, strict,
};
use crate::config::HumanDuration;
use crate::id::{Digest, Format, Invalid, MessageId, ModelName, StateKey, Version};
use crate::trust::Required;

/// The fields that `must_understand` may name: what this server acts on.
const UNDERSTOOD: [&str; 31] = [
    "message_id",
    "text",
    "key",
    "version",
    "state",
    "model",
    "published_at",
    "expires_at",
    "must_understand",
    "model.name",
    "model.version",
    "model.label",
    "model.format",
    "model.uri",
    "model.version_id",
    "model.sha256",
    "model.size",
    "model.inline",
    "model.encoding",
    "model.signature",
    "model.golden",
    "model.must_understand",
    "control",
    "control.action",
    "control.model",
    "control.key",
    "control.version",
    "control.from",
    "control.sha256",
    "model.limits",
    "traceparent",
];

/// The first four bytes of a record that the Kinesis Producer Library aggregated.
pub(crate) const KPL_MAGIC: &[u8] = &[0xf3, 0x89, 0x9a, 0xc2];

/// Decodes the data of one record, and checks its signatures.
pub fn decode(data: &Bytes, limits: &Limits) -> Result<Notification, Rejection> {
    decode_at(data, limits, Timestamp::now())
}

/// The same for a record that was taken in at this time: what was signed with a key whose time was not over then stays
/// good.
pub fn decode_at(data: &Bytes, limits: &Limits, at: Timestamp) -> Result<Notification, Rejection> {
    let text = checked(data, limits)?;
    let required = limits.requires_signatures();
    let notification = match envelope::kind(&text)? {
        Kind::Signed => signed(&text, limits, at)?,
        // Before anything of it is looked at.
        Kind::Message | Kind::Event if required == Required::All => return Err(unsigned(required)),
        kind => message(&text, kind, limits)?,
    };
    let brings_only_a_state = notification.state.is_some() && notification.model.is_none();
    if required == Required::All || (required == Required::Model && !brings_only_a_state) {
        if notification.signers == Signers::None {
            return Err(unsigned(required));
        }
        if let Some((slot, _)) = notification.slots().find(|(_, version)| version.is_none()) {
            let detail =
                format!("{slot} is signed without a version: whoever writes to the stream could play it again");
            return Err(Rejection::new(Reason::Unversioned, detail));
        }
        let dated = notification.published_at.is_some();
        if let Some(control) = notification.control.as_ref().filter(|control| !control.may_be_played_again(dated)) {
            let detail = format!(
                "a signed {} could be played again by whoever writes to the stream: give a pin its \"version\", a \
                 rollback its \"version\" and \"from\", and each a \"published_at\"",
                control.action.code()
            );
            return Err(Rejection::new(Reason::Unversioned, detail));
        }
    }
    Ok(notification)
}

/// A message in a DSSE envelope: first the signatures, then what they are over, then whether its keys may.
fn signed(text: &[u8], limits: &Limits, at: Timestamp) -> Result<Notification, Rejection> {
    let sealed = envelope::open(text)?;
    if sealed.signatures.is_empty() {
        return Err(Rejection::new(Reason::Unsigned, "a DSSE envelope without signatures"));
    }
    let vouched = match &limits.trust {
        Some(trust) => Some(trust.verify(&sealed.signed(), &sealed.signatures, at)?),
        None => None,
    };
    let text = checked(&sealed.payload, limits)?;
    let notification = message(&text, envelope::kind(&text)?, limits)?;
    let signers = match vouched {
        Some(vouched) => {
            let commanded = notification.control.iter().map(|control| control.slot.clone());
            vouched.check_scope(notification.slots().map(|(slot, _)| slot).chain(commanded))?;
            Signers::Verified(vouched.signers())
        }
        None => Signers::Claimed(sealed.signatures.iter().filter_map(|it| it.key_id.as_ref()?.parse().ok()).collect()),
    };
    Ok(Notification { signers, ..notification })
}

/// A message, or a CloudEvent with one; without signatures, or from within them.
fn message(text: &[u8], kind: Kind, limits: &Limits) -> Result<Notification, Rejection> {
    match kind {
        Kind::Message => parse(text, limits),
        Kind::Event => {
            let Event { id, time, trace, data } = envelope::event(text)?;
            if envelope::kind(data.get().as_bytes())? != Kind::Message {
                let detail = "an envelope within a CloudEvent: put the CloudEvent into the DSSE envelope";
                return Err(Rejection::new(Reason::Schema, detail));
            }
            let notification = parse(data.get().as_bytes(), limits)?;
            let (id, published_at) = (notification.id.or(Some(id)), notification.published_at.or(time));
            Ok(Notification { id, published_at, trace: notification.trace.or(trace), ..notification })
        }
        Kind::Signed => Err(Rejection::new(Reason::Schema, "a DSSE envelope within another one")),
    }
}

fn unsigned(required: Required) -> Rejection {
    let detail = format!("not signed, and --require-signature is {required}: publish it with --sign");
    Rejection::new(Reason::Unsigned, detail)
}

fn parse(text: &[u8], limits: &Limits) -> Result<Notification, Rejection> {
    let message: Message<'_> = serde_json::from_slice(text).map_err(|error| {
        let kind = if text.trim_ascii_start().starts_with(b"{") { Reason::Schema } else { Reason::UnknownKind };
        Rejection::new(kind, format!("not a message: {error}"))
    })?;
    message.validate(limits)
}

/// The text of a record whose structure is sound.
fn checked(data: &Bytes, limits: &Limits) -> Result<Bytes, Rejection> {
    // The source took apart what is sound (`source::aggregate`).
    if data.starts_with(KPL_MAGIC) {
        let detail = "a KPL-aggregated record that is broken or cut, within another one, or of too many messages";
        return Err(Rejection::new(Reason::UnknownKind, detail));
    }
    if data.len() > limits.payload_bytes {
        let detail = format!("{} bytes are over the limit of {}", data.len(), limits.payload_bytes);
        return Err(Rejection::new(Reason::TooLarge, detail));
    }
    let text = plain(data, limits)?;
    strict::check(&text, limits.depth)?;
    Ok(text)
}

#[derive(Deserialize)]
struct Message<'a> {
    message_id: Option<String>,
    key: Option<String>,
    version: Option<u64>,
    // A state of null is a state.
    #[serde(default, borrow, deserialize_with = "present")]
    state: Option<&'a RawValue>,
    model: Option<Model>,
    published_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    #[serde(default, borrow)]
    traceparent: Option<&'a RawValue>,
    #[serde(default)]
    must_understand: Vec<String>,
    #[serde(default, borrow, deserialize_with = "present")]
    control: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    version: Option<u64>,
    label: Option<String>,
    format: String,
    uri: Option<String>,
    version_id: Option<String>,
    sha256: Option<String>,
    size: Option<u64>,
    inline: Option<String>,
    #[serde(default)]
    encoding: Encoding,
    signature: Option<Signature>,
    golden: Option<Golden>,
    limits: Option<ModelLimitsField>,
}

#[derive(Deserialize)]
struct ModelLimitsField {
    row_time: Option<HumanDuration>,
    memory_bytes: Option<u64>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Message<'_> {
    fn validate(self, limits: &Limits) -> Result<Notification, Rejection> {
        if let Some(field) = self.must_understand.iter().find(|field| !UNDERSTOOD.contains(&field.as_str())) {
            let detail = format!("must_understand names {field:?}, which this version does not know: upgrade hotserve");
            return Err(Rejection::new(Reason::MustUnderstand, detail));
        }
        let version = self.version.map(Version::try_from).transpose().map_err(schema)?;
        let state = match self.state {
            None => None,
            Some(json) => Some(StateUpdate {
                key: self.key.as_deref().map_or_else(|| Ok(StateKey::default()), str::parse).map_err(schema)?,
                version,
                json: json.to_owned(),
            }),
        };
        let model = self.model.map(|model| model.validate(limits)).transpose()?;
        let control = self.control.map(|json| Control::parse(json.get())).transpose()?;
        match (control.is_some(), state.is_some() || model.is_some()) {
            (false, false) => {
                let detail = "neither \"state\" nor \"model\" nor \"control\" is in the message";
                return Err(Rejection::new(Reason::UnknownKind, detail));
            }
            (true, true) => {
                let detail = "a control comes alone: put the state or the model into a message of its own";
                return Err(Rejection::new(Reason::Schema, detail));
            }
            _ => {}
        }
        Ok(Notification {
            id: self.message_id.as_deref().map(str::parse::<MessageId>).transpose().map_err(schema)?,
            published_at: self.published_at,
            expires_at: self.expires_at,
            trace: self.traceparent.and_then(envelope::trace),
            state,
            model,
            control,
            signers: Signers::None,
        })
    }
}

impl Model {
    fn validate(self, limits: &Limits) -> Result<ModelUpdate, Rejection> {
        let sha256 = self.sha256.as_deref().map(str::parse::<Digest>).transpose().map_err(schema)?;
        let location = match (self.uri, self.inline) {
            (Some(uri), None) => {
                // A signature over a message without them would say nothing of the bytes.
                let required = limits.require_digest || limits.requires_signatures() != Required::Off;
                if required && (sha256.is_none() || self.size.is_none()) {
                    let detail = "a model at a uri needs \"sha256\" and \"size\" (hotserve publish adds them)";
                    return Err(Rejection::new(Reason::Schema, detail));
                }
                let uri = uri.parse().map_err(|error| Rejection::new(Reason::Uri, format!("uri {uri:?}: {error}")))?;
                Location::Uri { uri, version_id: self.version_id, sha256, size: self.size }
            }
            (None, Some(inline)) => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(inline.as_bytes())
                    .map_err(|error| Rejection::new(Reason::Schema, format!("\"inline\" is not base64: {error}")))?;
                check_inline(&bytes, sha256, self.size)?;
                Location::Inline(bytes.into())
            }
            _ => return Err(Rejection::new(Reason::Schema, "a model has either \"uri\" or \"inline\"")),
        };
        if self.label.as_ref().is_some_and(|label| label.len() > 128 || label.chars().any(char::is_control)) {
            return Err(Rejection::new(Reason::Schema, "a label has at most 128 bytes and no control characters"));
        }
        Ok(ModelUpdate {
            name: self.name.parse::<ModelName>().map_err(schema)?,
            version: self.version.map(Version::try_from).transpose().map_err(schema)?,
            label: self.label,
            format: self.format.parse::<Format>().map_err(schema)?,
            location,
            encoding: self.encoding,
            signature: self.signature,
            golden: self.golden,
            limits: self.limits.map_or_else(ModelLimits::default, |limits| ModelLimits {
                row_time: limits.row_time.map(|time| time.0),
                memory_bytes: limits.memory_bytes,
            }),
        })
    }
}

/// An inline model proves itself on the spot, where it carries a digest or a size.
fn check_inline(bytes: &[u8], sha256: Option<Digest>, size: Option<u64>) -> Result<(), Rejection> {
    if size.is_some_and(|size| size != bytes.len() as u64) {
        return Err(Rejection::new(Reason::Schema, "\"inline\" has another length than \"size\" says"));
    }
    if sha256.is_some_and(|sha256| sha256 != Digest::of(bytes)) {
        return Err(Rejection::new(Reason::Schema, "\"inline\" has another digest than \"sha256\" says"));
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "its shape is what map_err wants")]
pub(super) fn schema(invalid: Invalid) -> Rejection {
    Rejection::new(Reason::Schema, invalid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use proptest::prelude::*;

    fn read(text: &str) -> Result<Notification, Rejection> {
        decode(&Bytes::copy_from_slice(text.as_bytes()), &Limits::default())
    }

    fn reason(text: &str) -> Reason {
        read(text).expect_err(text).reason
    }

    #[test]
    fn the_form_that_the_project_began_with_is_a_state() {
        let notification = read(r#"{"message_id":"4142","text":"some text","state":96}"#).expect("valid");
        let state = notification.state.expect("a state");
        assert_eq!(state.key.as_str(), "default");
        assert_eq!(state.json.get(), "96");
        assert_eq!(notification.id.map(String::from).as_deref(), Some("4142"));
        assert!(notification.model.is_none());
    }

    #[test]
    fn a_state_may_be_any_json_and_stays_as_published() {
        for json in ["null", "0", "1.50", "\"x\"", "[1, 2]", r#"{"eur": 1.080}"#, "123456789012345678901234567890"] {
            let notification = read(&format!(r#"{{"key":"pricing","version":7,"state":{json}}}"#)).expect(json);
            assert_eq!(notification.state.expect("a state").json.get(), json);
        }
    }

    #[test]
    fn both_at_once_name_two_slots() {
        let sha = "a".repeat(64);
        let notification = read(&format!(
            r#"{{"key":"pricing","version":8,"state":1,"later":true,
                "model":{{"name":"fraud","version":12,"format":"xgboost","uri":"s3://bucket/k","sha256":"{sha}","size":3}}}}"#
        ))
        .expect("valid");
        let slots: Vec<_> =
            notification.slots().map(|(slot, version)| (slot.to_string(), version.map(Version::get))).collect();
        assert_eq!(slots, [("state pricing".to_owned(), Some(8)), ("model fraud".to_owned(), Some(12))]);
    }

    #[test]
    fn every_fault_has_its_reason() {
        let model = |fields: &str| format!(r#"{{"model":{{"name":"m","format":"linear",{fields}}}}}"#);
        for (text, expected) in [
            ("", Reason::NotJson),
            ("garbage", Reason::NotJson),
            ("{'state': 1}", Reason::NotJson),
            (r#"{"state":1} {"state":2}"#, Reason::NotJson),
            (r#"{"state":1e999}"#, Reason::NotJson),
            (&"[".repeat(1 << 20), Reason::Depth),
            (&format!(r#"{{"state":{}{}}}"#, "[".repeat(32), "]".repeat(32)), Reason::Depth),
            (r#"{"state":1,"state":2}"#, Reason::DuplicateKey),
            (r#"{"state":{"a":1,"\u0061":2}}"#, Reason::DuplicateKey),
            ("96", Reason::UnknownKind),
            ("[1]", Reason::UnknownKind),
            ("{}", Reason::UnknownKind),
            (r#"{"text":"hello"}"#, Reason::UnknownKind),
            (r#"{"control":{"action":"pin"}}"#, Reason::Schema),
            (r#"{"control":{"action":"promote","model":"m"}}"#, Reason::UnknownKind),
            (r#"{"control":{"action":"pin","model":"m","key":"k"}}"#, Reason::Schema),
            (r#"{"control":{"action":"revoke","model":"m"}}"#, Reason::Schema),
            (r#"{"control":{"action":"unpin","model":"m","version":1}}"#, Reason::Schema),
            (r#"{"control":{"action":"rollback","model":"m","version":2,"from":2}}"#, Reason::Schema),
            (r#"{"control":{"action":"pin","model":"m","version":2,"from":3}}"#, Reason::Schema),
            (r#"{"control":{"action":"pin","model":"m"},"state":1}"#, Reason::Schema),
            (r#"{"specversion":"1.0","data":{}}"#, Reason::Schema),
            (r#"{"state":1,"must_understand":["rollout"]}"#, Reason::MustUnderstand),
            (r#"{"state":1,"version":0}"#, Reason::Schema),
            (r#"{"state":1,"version":-3}"#, Reason::Schema),
            (r#"{"state":1,"version":"7"}"#, Reason::Schema),
            (r#"{"state":1,"version":9007199254740992}"#, Reason::Schema),
            (r#"{"state":1,"key":"../../etc"}"#, Reason::Schema),
            (r#"{"state":1,"message_id":4142}"#, Reason::Schema),
            (r#"{"state":1,"published_at":"yesterday"}"#, Reason::Schema),
            (r#"{"model":"fraud"}"#, Reason::Schema),
            (&model(r#""size":1"#), Reason::Schema),
            (&model(r#""inline":"!!!""#), Reason::Schema),
            (&model(r#""inline":"YQ==","size":2"#), Reason::Schema),
            (&model(r#""inline":"YQ==","uri":"s3://bucket/k""#), Reason::Schema),
            (&model(r#""uri":"s3://bucket/k""#), Reason::Schema),
            (&model(&format!(r#""uri":"s3://bucket/k","size":1,"sha256":"{}""#, "g".repeat(64))), Reason::Schema),
            (&model(&format!(r#""uri":"s3://bucket/../k","size":1,"sha256":"{}""#, "a".repeat(64))), Reason::Uri),
        ] {
            let short: String = text.chars().take(80).collect();
            assert_eq!(reason(text), expected, "{short}");
        }
    }

    #[test]
    fn a_model_may_bring_limits() {
        let model =
            |limits: &str| format!(r#"{{"model":{{"name":"m","format":"linear","inline":"","limits":{limits}}}}}"#);
        let limits = |text: &str| read(&model(text)).expect(text).model.expect("a model").limits;
        assert_eq!(limits("{}"), ModelLimits::default());
        let both = ModelLimits { row_time: Some(Duration::from_millis(5)), memory_bytes: Some(1000) };
        assert_eq!(limits(r#"{"row_time":"5ms","memory_bytes":1000}"#), both);
        for wrong in ["1", r#"{"row_time":5}"#, r#"{"row_time":"soon"}"#, r#"{"memory_bytes":-1}"#] {
            assert_eq!(reason(&model(wrong)), Reason::Schema, "{wrong}");
        }
    }

    #[test]
    fn a_traceparent_is_taken_where_it_is_one_and_never_a_reason_to_refuse() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let other = trace.replace("4bf9", "5bf9");
        let event = |fields: &str, data: &str| {
            format!(r#"{{"specversion":"1.0","id":"1","source":"/ci","type":"t",{fields}"data":{{"state":1{data}}}}}"#)
        };
        for (text, expected) in [
            (r#"{"state":1}"#.to_owned(), None),
            (format!(r#"{{"state":1,"traceparent":"{trace}"}}"#), Some(trace)),
            (format!(r#"{{"state":1,"must_understand":["traceparent"],"traceparent":"{trace}"}}"#), Some(trace)),
            (r#"{"state":1,"traceparent":null}"#.to_owned(), None),
            (r#"{"state":1,"traceparent":{"a":[1]}}"#.to_owned(), None),
            (format!(r#"{{"state":1,"traceparent":"{}"}}"#, trace.to_uppercase()), None),
            (event(&format!(r#""traceparent":"{trace}","#), ""), Some(trace)),
            (event(r#""traceparent":7,"#, ""), None),
            (event(&format!(r#""traceparent":"{trace}","#), &format!(r#","traceparent":"{other}""#)), Some(&*other)),
        ] {
            let found = read(&text).expect(&text).trace.map(|trace| trace.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_rejection_is_short_whatever_it_quotes() {
        let long = r"\u0001".repeat(1 << 18);
        for text in [
            format!(r#"{{"state":1,"must_understand":["{long}"]}}"#),
            format!(r#"{{"{long}":1,"{long}":2}}"#),
            format!(r#"{{"model":{{"name":"m","format":"linear","inline":"","encoding":"{long}"}}}}"#),
            format!(
                r#"{{"model":{{"name":"m","format":"linear","size":1,"sha256":"{}","uri":"{long}"}}}}"#,
                "a".repeat(64)
            ),
        ] {
            let detail = read(&text).expect_err("refused").detail;
            let begin: String = detail.chars().take(80).collect();
            assert!(detail.len() <= 1024, "{} bytes: {begin}", detail.len());
        }
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_before_it_is_read() {
        let limits = Limits { payload_bytes: 10, ..Limits::default() };
        let rejection = decode(&Bytes::from_static(br#"{"state":"0123456789"}"#), &limits).expect_err("too large");
        assert_eq!(rejection.reason, Reason::TooLarge);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode(&data.into(), &Limits::default());
        }

        #[test]
        fn no_json_like_text_panics(text in r#"[\[\]{}:,"\\0-9a-z\-. estmodlikvruy]{0,200}"#) {
            let _ = read(&text);
        }
    }
}
