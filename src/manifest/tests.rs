use proptest::prelude::*;
use serde_json::json;

use super::*;

fn raw(text: impl Into<String>) -> Box<RawValue> {
    RawValue::from_string(text.into()).expect("JSON")
}

fn entry(message: impl std::fmt::Display) -> Entry {
    Entry::new(raw(format!("{message}")), None, &Limits::default().message).expect("an entry")
}

fn state(key: &str, version: u64, state: impl Into<serde_json::Value>) -> Entry {
    entry(json!({"key": key, "version": version, "state": state.into()}))
}

fn model(version: u64) -> serde_json::Value {
    json!({"name": "m", "version": version, "format": "linear", "uri": format!("s3://bucket/{version}"),
        "sha256": Digest::of(&version.to_le_bytes()), "size": 1})
}

fn place(sequence: u64) -> Position {
    serde_json::from_value(json!({"era": 1, "arrival_ms": 5, "shard": "s", "sequence": sequence.to_string()}))
        .expect("a position")
}

fn manifest(entries: impl IntoIterator<Item = Entry>) -> Manifest {
    let mut manifest = Manifest::new(Limits::default());
    for entry in entries {
        manifest.fold(entry).expect("no conflict");
    }
    manifest
}

/// The newest messages, each once.
fn messages(manifest: &Manifest) -> Vec<&str> {
    let mut messages: Vec<_> = manifest.slots().map(|(_, held)| held.entry.message()).collect();
    messages.dedup();
    messages
}

fn decode(text: &str) -> Result<Manifest, Error> {
    Manifest::decode(text.as_bytes(), &Limits::default())
}

#[test]
fn a_slot_holds_its_highest_version_byte_for_byte() {
    let newest = r#"{ "key":"a","version":3, "state": 1.50,"later":{"x":1} }"#;
    let mut manifest = manifest([state("a", 2, 2), entry(newest), state("b", 1, 1)]);
    assert!(manifest.fold(state("a", 1, 1)).expect("older"), "what is older is kept, for a way back");
    assert!(!manifest.fold(entry(newest)).expect("known"), "what is there changes nothing");
    assert_eq!(messages(&manifest), [newest, state("b", 1, 1).message()]);
    let again = Manifest::decode(&manifest.encode().expect("small"), &Limits::default()).expect("what it wrote");
    assert_eq!(messages(&again), messages(&manifest));
}

#[test]
fn a_message_of_two_slots_stays_while_one_of_them_has_nothing_newer() {
    let pair = json!({"key": "a", "version": 1, "state": 1, "model": model(7)});
    let mut manifest = manifest([entry(&pair)]);
    assert_eq!(manifest.slots().count(), 2);
    assert_eq!(messages(&manifest).len(), 1, "one entry");
    manifest.fold(state("a", 2, 2)).expect("newer");
    assert_eq!(messages(&manifest).len(), 2, "the model is still the newest");
    manifest.fold(entry(json!({"model": model(8)}))).expect("newer");
    assert!(!messages(&manifest).contains(&pair.to_string().as_str()));
    assert_eq!(messages(&manifest).len(), 2);
}

#[test]
fn another_content_of_the_same_version_is_a_conflict_and_changes_nothing() {
    let mut manifest = manifest([state("a", 2, "first")]);
    let pair = json!({"key": "a", "version": 2, "state": "other", "model": model(1)});
    let error = manifest.fold(entry(&pair)).expect_err("a conflict");
    assert!(matches!(&error, Error::Conflict { slot, .. } if slot.to_string() == "state a"), "{error}");
    assert_eq!(messages(&manifest), [state("a", 2, "first").message()]);
    assert!(!manifest.fold(state("a", 2, "first")).expect("the same"));
}

#[test]
fn of_one_content_announced_twice_the_later_announcement_is_kept() {
    let announced = |at: &str, uri: &str| {
        let mut model = model(1);
        model["uri"] = uri.into();
        entry(json!({"model": model, "published_at": at}))
    };
    let wrong = announced("2026-11-23T18:00:00Z", "s3://bucket/wrong");
    let right = announced("2026-11-23T19:00:00Z", "s3://bucket/right");
    for order in [[wrong.clone(), right.clone()], [right.clone(), wrong]] {
        assert_eq!(messages(&manifest(order)), [right.message()]);
    }
}

#[test]
fn without_a_version_a_position_orders_and_any_version_is_above_it() {
    let limits = Limits::default().message;
    let at = |sequence, value: u64| {
        Entry::new(raw(json!({ "state": value }).to_string()), Some(place(sequence)), &limits).expect("an entry")
    };
    let error = Entry::new(raw(r#"{"state":1}"#), None, &limits).expect_err("no order");
    assert!(error.contains("neither a version nor a position"), "{error}");
    let mut manifest = manifest([at(10, 10), at(9, 9)]);
    assert_eq!(messages(&manifest), [r#"{"state":10}"#]);
    let again = Manifest::decode(&manifest.encode().expect("small"), &Limits::default()).expect("what it wrote");
    assert_eq!(again.entries().next().and_then(Entry::position), Some(&place(10)), "a position is written");
    manifest.fold(state("default", 1, 1)).expect("newer");
    manifest.fold(at(11, 11)).expect("stale");
    assert_eq!(messages(&manifest), [state("default", 1, 1).message()]);
    let versioned = Entry::new(raw(r#"{"version":1,"state":1}"#), Some(place(1)), &limits).expect("an entry");
    assert_eq!(versioned.position(), None, "a position that orders nothing is not kept");
}

#[test]
fn a_broken_entry_is_kept_aside_with_its_reason_and_hides_no_other() {
    let broken = [
        r#"17"#,
        r#"{"position":{}}"#,
        r#"{"message":{"state":1}}"#,
        r#"{"message":{"key":"../x","version":1,"state":1}}"#,
        r#"{"message":{"version":1,"state":1,"must_understand":["tomorrow"]}}"#,
        r#"{"message":{"version":1,"state":{"a":1,"a":2}}}"#,
        r#"{"message":{"key":"good","version":5,"state":"in conflict"}}"#,
        r#"{"message":{"version":1,"state":1},"position":{"era":-1}}"#,
    ];
    let good = r#"{"message":{"key":"good","version":5,"state":1}}"#;
    let text = format!(r#"{{"manifest":1,"entries":[{good},{}],"later":[]}}"#, broken.join(","));
    let manifest = decode(&text).expect("readable");
    assert_eq!(messages(&manifest), [r#"{"key":"good","version":5,"state":1}"#]);
    assert_eq!(manifest.unreadable().len(), broken.len(), "{:?}", manifest.unreadable());
    assert!(manifest.unreadable().iter().all(|unreadable| !unreadable.reason.is_empty()));
    let written = String::from_utf8(manifest.encode().expect("small")).expect("text");
    for entry in broken {
        assert!(written.contains(entry), "{entry} is lost in {written}");
    }
}

#[test]
fn what_is_no_manifest_is_told_from_what_is_too_new() {
    for text in ["", "{", "[]", "null", "{}", r#"{"manifest":"1"}"#, r#"{"manifest":0}"#, r#"{"manifest":-1}"#] {
        assert!(matches!(decode(text), Err(Error::Broken(_))), "{text:?}");
    }
    for text in [
        r#"{"manifest":1,"entries":{}}"#,
        r#"{"manifest":1,"stream":5}"#,
        r#"{"manifest":1,"updated_at":"soon"}"#,
        r#"{"manifest":1,"manifest":1}"#,
        r#"{"manifest":1} {}"#,
    ] {
        assert!(matches!(decode(text), Err(Error::Broken(_))), "{text:?}");
    }
    let error = decode(r#"{"manifest":2,"entries":"elsewhere"}"#).expect_err("too new");
    assert!(matches!(error, Error::Newer(2)) && error.to_string().contains("upgrade hotserve"), "{error}");
    assert_eq!(decode(r#"{"manifest":1}"#).expect("empty").slots().count(), 0);
}

#[test]
fn a_slot_keeps_the_few_before_and_lets_them_go_for_want_of_room() {
    let kept = |manifest: &Manifest| {
        let slot = Slot::State("a".parse().expect("a key"));
        manifest.kept(&slot).map(|held| held.rank.to_string()).collect::<Vec<_>>()
    };
    let versions = [3, 1, 5, 2, 4].map(|version| state("a", version, version));
    let manifest = manifest(versions);
    assert_eq!(kept(&manifest), ["5", "4", "3"]);
    let again = Manifest::decode(&manifest.encode().expect("small"), &Limits::default()).expect("what it wrote");
    assert_eq!(kept(&again), kept(&manifest));
    let tight = Limits { bytes: 110, ..Limits::default() };
    let small = Manifest { limits: tight.clone(), ..manifest };
    let again = Manifest::decode(&small.encode().expect("the newest fits"), &tight).expect("what it wrote");
    assert_eq!(kept(&again), ["5"]);
}

#[test]
fn what_a_slot_is_pinned_to_and_what_is_good_stay_however_many_follow() {
    let versions = |manifest: &Manifest| {
        let slot = Slot::Model("m".parse().expect("a name"));
        manifest.kept(&slot).filter_map(|held| held.rank.version()).map(Version::get).collect::<Vec<_>>()
    };
    let announce = |version: u64| entry(json!({"model": model(version)}));
    let mut pinned =
        manifest([announce(11), entry(json!({"control": {"action": "pin", "model": "m", "version": 11}}))]);
    for version in 12..20 {
        pinned.fold(announce(version)).expect("newer");
    }
    assert_eq!(versions(&pinned), [19, 18, 17, 11]);
    let mut bad = manifest([announce(10), announce(11), announce(12)]);
    for version in 13..20 {
        bad.fold(announce(version)).expect("newer");
        let control = json!({"action": "rollback", "model": "m", "version": 12, "from": version});
        bad.fold(entry(json!({ "control": control }))).expect("room");
    }
    assert_eq!(versions(&bad), [19, 12, 11]);
    assert!(bad.is_barred(&Slot::Model("m".parse().expect("a name")), &Rank::Version(13.try_into().expect("valid"))));
}

#[test]
fn the_commands_about_a_slot_are_kept_and_of_its_pins_the_latest() {
    let told = |second: u32, control: serde_json::Value| {
        entry(json!({"control": control, "published_at": format!("2026-11-23T18:00:{second:02}Z")}))
    };
    let mut entries = vec![
        told(1, json!({"action": "pin", "model": "m", "version": 1})),
        told(2, json!({"action": "unpin", "model": "m"})),
        told(3, json!({"action": "rollback", "model": "m", "version": 1, "from": 2})),
        told(4, json!({"action": "revoke", "model": "m", "version": 2})),
    ];
    for _ in 0..4 {
        entries.rotate_left(1);
        let manifest = manifest(entries.clone());
        let again = Manifest::decode(&manifest.encode().expect("small"), &Limits::default()).expect("what it wrote");
        let slot = Slot::Model("m".parse().expect("a name"));
        let codes: Vec<_> = again.controls(&slot).map(|control| control.action.code()).collect();
        assert_eq!(codes, ["revoke", "rollback", "unpin"]);
        assert_eq!(again.entries().count(), 3);
        assert_eq!(again.slots().count(), 0, "nothing is to be served");
    }
    let vague = raw(r#"{"control":{"action":"rollback","model":"m"}}"#);
    assert!(Entry::new(vague, None, &Limits::default().message).expect_err("vague").contains("name its versions"));
}

#[test]
fn bytes_slots_and_entries_are_bounded() {
    let limits = Limits { bytes: 500, slots: 3, ..Limits::default() };
    let mut manifest = Manifest::new(limits.clone());
    for key in ["a", "b", "c"] {
        manifest.fold(state(key, 1, 1)).expect("room");
    }
    assert!(matches!(manifest.fold(state("d", 1, 1)), Err(Error::Full { limit: 3 })));
    manifest.fold(state("c", 2, 2)).expect("no new slot");
    manifest.encode().expect("small");
    manifest.fold(state("a", 2, "x".repeat(500))).expect("folded");
    assert!(matches!(manifest.encode(), Err(Error::TooLarge { limit: 500, .. })));
    assert!(matches!(Manifest::decode(&[b' '; 501], &limits), Err(Error::TooLarge { bytes: 501, .. })));
    let many = format!(r#"{{"manifest":1,"entries":[{}0]}}"#, "0,".repeat(3 * (KEEP + 1)));
    assert!(matches!(Manifest::decode(many.as_bytes(), &limits), Err(Error::Broken(_))));
    // The real limits: a list of millions must not fill the memory.
    let millions = format!(r#"{{"manifest":1,"entries":[{}0]}}"#, "0,".repeat(2_000_000));
    assert!(matches!(decode(&millions), Err(Error::Broken(_))));
}

#[test]
fn a_manifest_belongs_to_one_stream() {
    let mut manifest = Manifest::new(Limits::default());
    manifest.belongs_to("a").expect("nobody's yet");
    manifest.belongs_to("a").expect("its own");
    assert!(matches!(manifest.belongs_to("b"), Err(Error::OtherStream { .. })));
}

/// A few keys and versions, alone or in pairs, so that they meet often; content and announcement follow from the rank.
fn any_entry() -> impl Strategy<Value = Entry> {
    let slot = || proptest::option::of((0_u64..3, 1_u64..4));
    let sequence = proptest::option::of(1_u64..6);
    (slot(), slot(), sequence).prop_map(|(state, model, sequence)| {
        let state = state.or(model.is_none().then_some((0, 1)));
        let mut message = serde_json::Map::new();
        if let Some((key, version)) = state {
            message.insert("key".to_owned(), format!("k{key}").into());
            message.insert("state".to_owned(), sequence.unwrap_or(version).into());
            if sequence.is_none() {
                message.insert("version".to_owned(), version.into());
            }
        }
        if let Some((_, version)) = model {
            message.insert("model".to_owned(), self::model(version));
        }
        let text = raw(serde_json::Value::from(message).to_string());
        Entry::new(text, Some(place(sequence.unwrap_or(1))), &Limits::default().message).expect("an entry")
    })
}

proptest! {
    #[test]
    fn the_order_of_folding_makes_no_difference(
        (entries, shuffled) in proptest::collection::vec(any_entry(), 0..25)
            .prop_flat_map(|entries| (Just(entries.clone()), Just(entries).prop_shuffle())),
    ) {
        let (mut one, other) = (manifest(entries.clone()), manifest(shuffled));
        prop_assert_eq!(one.encode().expect("small"), other.encode().expect("small"));
        for entry in entries {
            prop_assert!(!one.fold(entry).expect("no conflict"), "folding again changes nothing");
        }
        let again = Manifest::decode(&one.encode().expect("small"), &Limits::default()).expect("what it wrote");
        prop_assert!(again.unreadable().is_empty());
        prop_assert_eq!(again.encode().expect("small"), one.encode().expect("small"));
    }

    #[test]
    fn no_bytes_make_decoding_panic(
        entries in proptest::collection::vec(any_entry(), 0..4),
        at in any::<prop::sample::Index>(),
        noise in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = manifest(entries).encode().expect("small");
        let at = at.index(bytes.len());
        let end = (at + noise.len()).min(bytes.len());
        bytes.splice(at..end, noise.iter().copied());
        for bytes in [&bytes[..], &bytes[..at], &noise] {
            if let Ok(manifest) = Manifest::decode(bytes, &Limits::default()) {
                manifest.encode().expect("what was read can be written");
            }
        }
    }
}
