use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::id::{KeyId, Version};
use crate::notification::{Limits, Location, Notification, Signers, decode, decode_at};
use crate::trust::{Keyring, Required, Trust};

fn key() -> SigningKey {
    SigningKey::generate().expect("random bytes")
}

fn trust(keys: &[&SigningKey], more: &str, required: Required) -> Limits {
    let entries: String = keys.iter().map(|key| format!("[[keys]]\npublic = \"{}\"\n{more}\n", key.public())).collect();
    let keyring = Keyring::parse(&entries).expect("a keyring");
    Limits { trust: Some(Arc::new(Trust::new(keyring, required))), ..Limits::default() }
}

fn read(data: impl AsRef<[u8]>, limits: &Limits) -> Result<Notification, Rejection> {
    decode(&Bytes::copy_from_slice(data.as_ref()), limits)
}

fn reason(data: impl AsRef<[u8]>, limits: &Limits) -> Reason {
    let data = data.as_ref();
    read(data, limits).expect_err(&String::from_utf8_lossy(data)).reason
}

fn sealed(message: &str, key: SigningKey) -> Vec<u8> {
    seal(message.as_bytes(), &[key]).expect("to memory")
}

fn id(key: &SigningKey) -> KeyId {
    key.public().id()
}

const STATE: &str = r#"{"key":"pricing","version":7,"state":{"eur": 1.080}}"#;

fn model(fields: &str) -> String {
    format!(r#"{{"model":{{"name":"fraud","version":3,"format":"linear",{fields}}}}}"#)
}

#[test]
fn what_was_sealed_is_read_as_it_was_and_says_who_signed() {
    let (one, two) = (key(), key());
    let limits = trust(&[&one, &two], "", Required::All);
    let ids = vec![id(&one), id(&two)];
    let sealed = seal(STATE.as_bytes(), &[one, two]).expect("to memory");
    let notification = read(&sealed, &limits).expect("good");
    assert_eq!(notification.signers, Signers::Verified(ids.clone()));
    let state = notification.state.expect("a state");
    assert_eq!((state.json.get(), state.version.map(Version::get)), (r#"{"eur": 1.080}"#, Some(7)));
    // Without keys nobody can check, and the keys are what the message says.
    let unchecked = read(&sealed, &Limits::default()).expect("well-formed");
    assert!(unchecked.signers.verified().is_empty());
    assert_eq!(unchecked.signers, Signers::Claimed(ids));
}

#[test]
fn a_signed_message_may_be_compressed_within_and_around_its_signature() {
    let key = key();
    let limits = trust(&[&key], "", Required::All);
    let packed = zstd::encode_all(STATE.as_bytes(), 3).expect("to memory");
    let sealed = seal(&packed, &[key]).expect("to memory");
    let around = zstd::encode_all(&sealed[..], 3).expect("to memory");
    for data in [&sealed, &around] {
        assert!(read(data, &limits).expect("good").state.is_some());
    }
    // The bounds hold within as they do without.
    let bomb = zstd::encode_all(&vec![b' '; 8 << 20][..], 19).expect("to memory");
    let sealed = seal(&bomb, &[SigningKey::generate().expect("random bytes")]).expect("to memory");
    assert_eq!(reason(sealed, &Limits::default()), Reason::TooLarge);
}

#[test]
fn both_alphabets_and_lost_padding_are_read() {
    let key = key();
    let limits = trust(&[&key], "", Required::All);
    // With bytes that the two alphabets write differently.
    let message = r#"{"version":1,"state":"~~~???>>>ÿÿÿ"}"#;
    let id = id(&key);
    let envelope: serde_json::Value = serde_json::from_slice(&sealed(message, key)).expect("JSON");
    let signature = &envelope["signatures"][0]["sig"];
    let (payload, sig) = (envelope["payload"].as_str().expect("text"), signature.as_str().expect("text"));
    assert!(payload.contains(['+', '/']), "{payload}");
    let url_safe = |text: &str| text.replace('+', "-").replace('/', "_");
    for (payload, sig) in [
        (url_safe(payload), url_safe(sig)),
        (payload.trim_end_matches('=').to_owned(), sig.trim_end_matches('=').to_owned()),
        (url_safe(payload).trim_end_matches('=').to_owned(), sig.to_owned()),
    ] {
        let text = serde_json::json!({
            "payloadType": PAYLOAD_TYPE, "payload": payload, "later": true,
            "signatures": [{"keyid": id, "sig": sig, "cert": null}],
        });
        assert!(read(text.to_string(), &limits).is_ok(), "{text}");
    }
    let mixed = serde_json::json!({"payloadType": PAYLOAD_TYPE, "payload": "+-", "signatures": []});
    assert_eq!(reason(mixed.to_string(), &limits), Reason::Schema);
}

#[test]
fn what_must_be_signed_is_refused_without_and_the_rest_is_not() {
    let (ours, stranger) = (key(), key());
    let limits = |required| trust(&[&ours], "", required);
    let inline = model(r#""inline":"YQ==""#);
    let both = STATE.replace('}', "").replace(r#""state":{"eur": 1.080"#, r#""state":1,"#) + &inline[1..];
    for (message, off, model, all) in [
        (STATE, None, None, Some(Reason::Unsigned)),
        (&inline, None, Some(Reason::Unsigned), Some(Reason::Unsigned)),
        (&both, None, Some(Reason::Unsigned), Some(Reason::Unsigned)),
        // Before anything of it is looked at, where everything must be signed.
        (r#"{"model":1}"#, Some(Reason::Schema), Some(Reason::Schema), Some(Reason::Unsigned)),
        ("{'a'", Some(Reason::NotJson), Some(Reason::NotJson), Some(Reason::NotJson)),
    ] {
        for (required, expected) in [(Required::Off, off), (Required::Model, model), (Required::All, all)] {
            let found = read(message, &limits(required)).map_err(|rejection| rejection.reason).err();
            assert_eq!(found, expected, "{required}: {message}");
        }
    }
    let nobody = serde_json::json!({"payloadType": PAYLOAD_TYPE, "payload": STANDARD.encode(STATE), "signatures": []});
    assert_eq!(reason(nobody.to_string(), &limits(Required::Off)), Reason::Unsigned);
    // A signature that is there must be good in any case.
    let sealed = sealed(STATE, stranger);
    for required in [Required::Off, Required::Model, Required::All] {
        assert_eq!(reason(&sealed, &limits(required)), Reason::UnknownKey);
    }
}

#[test]
fn a_key_signs_for_its_slots_and_in_its_time() {
    let ours = key();
    let limits = trust(&[&ours], "slots = [\"model/fraud\"]\nnot_after = \"2026-11-01T00:00:00Z\"", Required::All);
    let at = |text: &str| text.parse::<Timestamp>().expect("a time");
    let judge = |message: &str, time: &str| {
        let sealed = seal(message.as_bytes(), [&ours]).expect("to memory");
        decode_at(&sealed.into(), &limits, at(time)).map(|_| ()).map_err(|rejection| rejection.reason)
    };
    let inline = model(r#""inline":"YQ==""#);
    assert_eq!(judge(&inline, "2026-10-31T00:00:00Z"), Ok(()));
    assert_eq!(judge(&inline, "2026-11-02T00:00:00Z"), Err(Reason::KeyExpired));
    assert_eq!(judge(&inline.replace("fraud", "iris"), "2026-10-31T00:00:00Z"), Err(Reason::KeyScope));
    assert_eq!(judge(STATE, "2026-10-31T00:00:00Z"), Err(Reason::KeyScope));
}

#[test]
fn where_signatures_are_required_nothing_that_binds_may_be_left_out() {
    let ours = key();
    let sealed = |message: &str| seal(message.as_bytes(), [&ours]).expect("to memory");
    let (at_uri, unversioned) = (model(r#""uri":"s3://bucket/key""#), r#"{"state":1}"#);
    for required in [Required::Off, Required::Model, Required::All] {
        // Waived by --allow-unverified, which cannot stand beside a requirement.
        let limits = Limits { require_digest: false, ..trust(&[&ours], "", required) };
        let judge = |message: &str| read(sealed(message), &limits).map(|_| ()).map_err(|rejection| rejection.reason);
        let is_off = required == Required::Off;
        assert_eq!(judge(&at_uri), if is_off { Ok(()) } else { Err(Reason::Schema) }, "{required}");
        let expected = if required == Required::All { Err(Reason::Unversioned) } else { Ok(()) };
        assert_eq!(judge(unversioned), expected, "{required}");
        let expected = if is_off { Ok(()) } else { Err(Reason::Unversioned) };
        let inline = model(r#""inline":"YQ==""#).replace(r#""version":3,"#, "");
        assert_eq!(judge(&inline), expected, "{required}");
    }
}

#[test]
fn an_envelope_that_is_none_has_its_reason() {
    let envelope = |payload_type: &str, payload: &str, signatures: &str| {
        format!(r#"{{"payloadType":"{payload_type}","payload":"{payload}","signatures":{signatures}}}"#)
    };
    let one = r#"[{"sig":"YQ=="}]"#;
    let many = |count: usize| format!("[{}]", vec![r#"{"sig":"YQ=="}"#; count].join(","));
    let nested = STANDARD.encode(sealed(STATE, key()));
    let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"payloadType":1}}"#;
    let twice = format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","data":{event}}}"#);
    for (text, expected) in [
        (envelope(PAYLOAD_TYPE, "!!!", one), Reason::Schema),
        (envelope(PAYLOAD_TYPE, "YR==", one), Reason::Schema),
        (envelope(PAYLOAD_TYPE, "YQ==", r#"[{"sig":"!"}]"#), Reason::Schema),
        (envelope(PAYLOAD_TYPE, "YQ==", "{}"), Reason::Schema),
        (envelope(PAYLOAD_TYPE, "YQ==", "[{}]"), Reason::Schema),
        (envelope(PAYLOAD_TYPE, "YQ==", &many(MAX_SIGNATURES + 1)), Reason::Schema),
        (envelope(PAYLOAD_TYPE, "YQ==", &many(MAX_SIGNATURES)), Reason::NotJson),
        (envelope("application/vnd.in-toto+json", "YQ==", one), Reason::UnknownKind),
        (r#"{"payloadType":null}"#.to_owned(), Reason::Schema),
        (r#"{"payloadType":"x","specversion":"1.0"}"#.to_owned(), Reason::Schema),
        (envelope(PAYLOAD_TYPE, &nested, one), Reason::Schema),
        (event.to_owned(), Reason::Schema),
        (twice, Reason::Schema),
        // A kind that is not known is no less unknown for being signed.
        (envelope(PAYLOAD_TYPE, &STANDARD.encode(r#"{"hello":1}"#), one), Reason::UnknownKind),
        (envelope(PAYLOAD_TYPE, &STANDARD.encode("\u{1f}"), one), Reason::NotJson),
        (envelope(PAYLOAD_TYPE, &STANDARD.encode(r#"{"state":1,"state":2}"#), one), Reason::DuplicateKey),
    ] {
        assert_eq!(reason(&text, &Limits::default()), expected, "{text}");
    }
}

#[test]
fn a_cloud_event_lends_its_id_and_time_to_a_message_that_has_none() {
    let event = |fields: &str, data: &str| {
        format!(r#"{{"specversion":"1.0","id":"e-1","source":"/ci","type":"com.example.state"{fields},"data":{data}}}"#)
    };
    let time = r#","time":"2026-11-23T18:00:00Z","version":"an extension","datacontenttype":"application/json; charset=utf-8""#;
    let read = |text: String| read(text, &Limits::default()).expect("good");
    let facts = |notification: Notification| {
        let id = notification.id.map(String::from);
        (id.expect("an id"), notification.published_at.map(|at| at.to_string()), notification.state.is_some())
    };
    let moment = Some("2026-11-23T18:00:00Z".to_owned());
    assert_eq!(facts(read(event(time, STATE))), ("e-1".to_owned(), moment.clone(), true));
    assert_eq!(facts(read(event("", STATE))), ("e-1".to_owned(), None, true));
    let own = r#"{"message_id":"m-1","published_at":"2026-11-23T19:00:00Z","state":1}"#;
    assert_eq!(facts(read(event(time, own))), ("m-1".to_owned(), Some("2026-11-23T19:00:00Z".to_owned()), true));
    let minor = event("", STATE).replace("1.0", "1.1");
    assert_eq!(facts(read(minor)).0, "e-1");
    let inline = read(event("", &model(r#""inline":"YQ==""#)));
    assert!(matches!(inline.model.expect("a model").location, Location::Inline(_)));

    // Signed as any other message.
    let ours = key();
    let limits = trust(&[&ours], "", Required::All);
    let id = id(&ours);
    let notification = decode(&sealed(&event(time, STATE), ours).into(), &limits).expect("good");
    assert_eq!(notification.signers, Signers::Verified(vec![id]));
    assert_eq!(facts(notification), ("e-1".to_owned(), moment, true));
    assert_eq!(reason(event("", STATE), &limits), Reason::Unsigned);

    for (text, expected) in [
        (event("", STATE).replace("1.0", "2.0"), Reason::UnknownKind),
        (event("", STATE).replace("1.0", "0.3"), Reason::UnknownKind),
        (event("", STATE).replace(r#""1.0""#, "1"), Reason::Schema),
        (event("", STATE).replace("e-1", ""), Reason::Schema),
        (event("", STATE).replace("/ci", ""), Reason::Schema),
        (event("", STATE).replace("com.example.state", ""), Reason::Schema),
        (event(r#","time":"yesterday""#, STATE), Reason::Schema),
        (event(r#","datacontenttype":"application/xml""#, STATE), Reason::Schema),
        (event("", STATE).replace(r#""data":"#, r#""data_base64":"#), Reason::Schema),
        (event("", "[1]"), Reason::UnknownKind),
        (event("", "{}"), Reason::UnknownKind),
        (event("", r#"{"state":1,"version":0}"#), Reason::Schema),
    ] {
        assert_eq!(reason(&text, &Limits::default()), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn a_flipped_bit_anywhere_is_refused(at in any::<prop::sample::Index>(), bit in 0..8_u32, in_signature: bool) {
        let ours = SigningKey::generate().expect("random bytes");
        let limits = trust(&[&ours], "", Required::All);
        let signature = ours.sign(&trust::pre_authentication_encoding(PAYLOAD_TYPE, STATE.as_bytes()));
        let (mut payload, mut signature) = (STATE.as_bytes().to_vec(), signature);
        let envelope = |payload: &[u8], signature: &[u8]| serde_json::json!({
            "payloadType": PAYLOAD_TYPE, "payload": STANDARD.encode(payload),
            "signatures": [{"keyid": id(&ours), "sig": STANDARD.encode(signature)}],
        }).to_string();
        prop_assert!(read(envelope(&payload, &signature), &limits).is_ok());
        let bytes = if in_signature { &mut signature } else { &mut payload };
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(reason(envelope(&payload, &signature), &limits), Reason::BadSignature);
    }

    #[test]
    fn no_change_of_the_text_lets_other_bytes_through(at in any::<prop::sample::Index>(), byte: u8) {
        let ours = SigningKey::generate().expect("random bytes");
        let limits = trust(&[&ours], "", Required::All);
        let mut text = sealed(STATE, ours);
        let at = at.index(text.len());
        text[at] = byte;
        // What is still good says what was signed: a key id, a space or a case of no meaning was changed.
        if let Ok(notification) = read(&text, &limits) {
            let state = notification.state.expect("a state");
            prop_assert_eq!(state.json.get(), r#"{"eur": 1.080}"#);
        }
    }
}
