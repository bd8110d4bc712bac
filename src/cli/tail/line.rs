//! A message in one line, for people and for programs.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::json;
use serde_json::value::RawValue;

use crate::cli::paint::{Colour, Paint, printable};
use crate::id::{Digest, KeyId, Position, Slot};
use crate::notification::{Encoding, Limits, Location, Notification, Rejection, Signers, inflate};
use crate::source::Record;

type Decoded = Result<Notification, Rejection>;

/// How much of a state a person sees.
const PREVIEW: usize = 60;

/// When, where, how large, and what.
pub(super) fn human(record: &Record, decoded: &Decoded, paint: Paint) -> String {
    let Position { shard, .. } = &record.position;
    let shard = shard.as_str().trim_start_matches("shardId-").trim_start_matches('0');
    let shard = format!("#{}", if shard.is_empty() { "0" } else { shard });
    let head = format!("{:.3}  {shard:<3}  {:>8}", arrival(record), size(record.data.len()));
    let what = match decoded {
        Ok(notification) => contents(notification).join("; "),
        Err(Rejection { reason, detail }) => {
            paint.paint(Colour::Red, &format!("refused ({}): {}", reason.code(), printable(detail)))
        }
    };
    format!("{}  {what}", paint.paint(Colour::Dim, &head))
}

fn contents(notification: &Notification) -> Vec<String> {
    let mut contents = Vec::new();
    let ranked = |slot: String, version: Option<_>| match version {
        Some(version) => format!("{slot} v{version}"),
        None => slot,
    };
    if let Some(state) = &notification.state {
        let slot = ranked(format!("state {}", state.key), state.version);
        contents.push(format!("{slot} = {}", short(state.json.get())));
    }
    if let Some(model) = &notification.model {
        let slot = ranked(format!("model {}", model.name), model.version);
        let label = model.label.as_ref().map(|label| format!(" \"{}\"", printable(label))).unwrap_or_default();
        let place = match &model.location {
            Location::Uri { uri, .. } => abridged(&uri.to_string()),
            Location::Inline(bytes) => format!("inline, {}", size(bytes.len())),
        };
        contents.push(format!("{slot}{label} ({}, {place})", model.format));
    }
    if let Some(control) = &notification.control {
        contents.push(format!("control {}", serde_json::to_string(control).unwrap_or_default()));
    }
    let list = |keys: &[KeyId]| keys.iter().map(KeyId::as_str).collect::<Vec<_>>().join(", ");
    match &notification.signers {
        Signers::None => {}
        Signers::Claimed(keys) => contents.push(format!("signed by {}, which was not checked", list(keys))),
        Signers::Verified(keys) => contents.push(format!("signed by {}", list(keys))),
    }
    contents
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(PREVIEW).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    printable(&short)
}

/// A location, its digests cut short: twelve digits tell one from another.
fn abridged(uri: &str) -> String {
    let short = |segment: &str| match segment.parse::<Digest>() {
        Ok(digest) => format!("{}…", digest.short()),
        Err(_) => printable(segment),
    };
    uri.split('/').map(short).collect::<Vec<_>>().join("/")
}

fn size(bytes: usize) -> String {
    let tenths = |unit: usize| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", tenths(1_000)),
        _ => format!("{} MB", tenths(1_000_000)),
    }
}

fn arrival(record: &Record) -> Timestamp {
    let ms = i64::try_from(record.position.arrival_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Everything, the message as published included: `message` if it is JSON, else `text`, else `base64`.
pub(super) fn json(record: &Record, decoded: &Decoded) -> String {
    let Position { shard, sequence, .. } = &record.position;
    let mut line = json!({
        "position": { "shard": shard, "sequence": sequence, "arrival": arrival(record) },
        "bytes": record.data.len(),
    });
    let fields = match decoded {
        Ok(notification) => {
            let slots: Vec<_> = notification
                .slots()
                .map(|(slot, version)| json!({ "kind": slot.kind(), "name": name(&slot), "version": version }))
                .collect();
            let mut fields = json!({ "outcome": "notification", "slots": slots });
            match &notification.signers {
                Signers::None => {}
                Signers::Claimed(keys) => fields["signed"] = json!({ "checked": false, "by": keys }),
                Signers::Verified(keys) => fields["signed"] = json!({ "checked": true, "by": keys }),
            }
            fields
        }
        Err(Rejection { reason, detail }) => {
            json!({ "outcome": "rejection", "reason": reason.code(), "detail": detail, "slots": [] })
        }
    };
    if let (Some(line), serde_json::Value::Object(fields)) = (line.as_object_mut(), fields) {
        line.extend(fields);
    }
    let mut line = line.to_string();
    line.truncate(line.len() - 1);
    let (field, message) = message(record);
    format!("{line},\"{field}\":{message}}}")
}

fn name(slot: &Slot) -> String {
    match slot {
        Slot::State(key) => key.to_string(),
        Slot::Model(name) => name.to_string(),
    }
}

/// The message, inflated, and the field that it goes into.
fn message(record: &Record) -> (&'static str, String) {
    let limits = Limits::default();
    let inflated = inflate(&record.data, Encoding::sniff(&record.data), limits.payload_bytes, limits.inflate_ratio);
    let bytes = inflated.as_ref().unwrap_or(&record.data);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return ("base64", json!(base64::engine::general_purpose::STANDARD.encode(&record.data)).to_string());
    };
    match serde_json::from_str::<&RawValue>(text) {
        // A line end is white space between tokens: within a text it would be escaped.
        Ok(json) => ("message", json.get().replace(['\n', '\r'], " ")),
        Err(_) => ("text", json!(text).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notification::decode;
    use crate::notification::envelope::seal;
    use crate::trust::SigningKey;

    fn lines(data: &[u8]) -> (String, serde_json::Value) {
        let position = Position {
            era: 1,
            arrival_ms: 1_795_456_800_123,
            shard: "shardId-000000000012".parse().expect("a shard"),
            sequence: "4".parse().expect("digits"),
            subsequence: 0,
        };
        let record = Record { position, data: data.to_vec().into() };
        let decoded = decode(&record.data, &Limits::default());
        let json = json(&record, &decoded);
        assert!(!json.contains('\n'), "{json}");
        (human(&record, &decoded, Paint::plain()), serde_json::from_str(&json).expect(&json))
    }

    #[test]
    fn a_message_is_one_line_with_its_slots() {
        let (human, json) = lines(b"{\"key\":\"pricing\",\"version\":7,\n\"state\":{\"eur\": 1.080}}");
        assert_eq!(human, "2026-11-23T18:00:00.123Z  #12      53 B  state pricing v7 = {\"eur\": 1.080}");
        assert_eq!(json["slots"], json!([{"kind": "state", "name": "pricing", "version": 7}]));
        assert_eq!(json["position"]["arrival"], "2026-11-23T18:00:00.123Z");
        assert_eq!(json["message"]["version"], 7);
    }

    #[test]
    fn what_is_refused_says_why_and_is_shown_all_the_same() {
        let (human, json) = lines(b"no \x1b[2J json");
        assert!(human.contains("refused (not_json): "), "{human}");
        assert_eq!((&json["outcome"], &json["reason"]), (&json!("rejection"), &json!("not_json")));
        assert_eq!(json["text"], "no \u{1b}[2J json");
        assert_eq!(lines(&[0xff, 0xfe]).1["base64"], "//4=");
    }

    #[test]
    fn a_signed_message_says_by_whom_and_that_nobody_checked() {
        let key = SigningKey::generate().expect("random bytes");
        let (id, sealed) = (key.public().id(), seal(br#"{"state":1}"#, &[key]).expect("to memory"));
        let (human, json) = lines(&sealed);
        assert!(human.ends_with(&format!("state default = 1; signed by {id}, which was not checked")), "{human}");
        assert_eq!(json["signed"], json!({"checked": false, "by": [id]}));
    }

    #[test]
    fn nothing_in_a_message_moves_the_cursor() {
        for data in ["no \u{1b}[2J json", "{\"state\":\"\u{9b}2J\"}", "{\"\u{9b}2J\":1,\"\u{9b}2J\":1}"] {
            assert!(!lines(data.as_bytes()).0.contains(['\u{1b}', '\u{9b}', '\n']), "{data:?}");
        }
    }
}
