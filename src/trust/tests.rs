use super::*;
use crate::id::Digest;

/// A key whose secret is 32 times this byte: the same in each run.
fn key(seed: u8) -> SigningKey {
    let der = [
        &[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20][..],
        &[seed; 32],
    ]
    .concat();
    use base64::Engine as _;
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    SigningKey::from_pem(&format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n")).expect("a key")
}

fn sign(key: &SigningKey, message: &[u8]) -> Signature {
    Signature { key_id: Some(key.public().id().to_string()), bytes: key.sign(message) }
}

fn entry(seed: u8, more: &str) -> String {
    format!("[[keys]]\npublic = \"{}\"\n{more}\n", key(seed).public())
}

fn trust(threshold: usize, entries: &[(u8, &str)]) -> Trust {
    let entries: String = entries.iter().map(|(seed, more)| entry(*seed, more)).collect();
    let keyring = Keyring::parse(&format!("threshold = {threshold}\n{entries}")).expect("a keyring");
    Trust::new(keyring, Required::All)
}

fn slot(text: &str) -> Slot {
    match text.split_once('/').expect("kind/name") {
        ("state", key) => Slot::State(key.parse().expect("a key")),
        (_, name) => Slot::Model(name.parse().expect("a name")),
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

const NOW: &str = "2026-11-23T18:00:00Z";
const MESSAGE: &[u8] = b"a message";

/// Who vouches for the message for this slot, or why nobody does.
fn judge(trust: &Trust, signatures: &[Signature], slots: &[&str]) -> Result<usize, FaultKind> {
    let vouched = trust.verify(MESSAGE, signatures, at(NOW)).map_err(|fault| fault.kind)?;
    vouched.check_scope(slots.iter().map(|text| slot(text))).map_err(|fault| fault.kind)?;
    Ok(vouched.signers().len())
}

#[test]
fn the_encoding_is_that_of_the_dsse_specification() {
    // https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, test vectors.
    let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
    assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    // Lengths are of bytes, and nothing is escaped.
    assert_eq!(pre_authentication_encoding("\u{fc}", b"\n "), "DSSEv1 2 \u{fc} 2 \n ".as_bytes());
    assert_eq!(pre_authentication_encoding("", b""), b"DSSEv1 0  0 ");
}

#[test]
fn keys_and_signatures_are_those_of_rfc_8032() {
    use base64::Engine as _;
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
    };
    // Section 7.1, test 2.
    let secret = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
    let der = [&hex("302e020100300506032b657004220420")[..], &secret].concat();
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
    let key = SigningKey::from_pem(&pem).expect("a key");
    let public = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
    assert_eq!(key.public().to_string(), base64::engine::general_purpose::STANDARD.encode(public));
    let signature = hex("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00");
    assert_eq!(key.sign(&[0x72]), signature);
    assert!(key.public().verify(&[0x72], &signature));
    assert_eq!(key.to_pem().expect("a key"), pem, "as OpenSSL writes it");
}

#[test]
fn a_public_key_is_read_as_base64_der_and_pem_and_has_one_id() {
    use base64::Engine as _;
    let public = *key(1).public();
    let raw = public.to_string();
    let bytes = base64::engine::general_purpose::STANDARD.decode(&raw).expect("base64");
    let head = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let der = base64::engine::general_purpose::STANDARD.encode([&head[..], &bytes].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
    for text in [&raw, &der, &pem] {
        assert_eq!(text.parse::<PublicKey>(), Ok(public));
    }
    assert_eq!(public.id().as_str(), &Digest::of(&bytes).to_string()[..16]);
    for (text, says) in [
        ("", "32 bytes"),
        ("AAAA", "3 bytes"),
        ("not base64", "base64"),
        (&key(1).to_pem().expect("a key"), "stays with the publisher"),
        ("-----BEGIN PUBLIC KEY-----\nMCow", "cut off"),
        ("-----BEGIN RSA PUBLIC KEY-----\n", "RSA PUBLIC KEY"),
        ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "small order"),
        ("7P///////////////////////////////////////38=", "small order"),
    ] {
        let said = text.parse::<PublicKey>().expect_err(text).to_string();
        assert!(said.contains(says), "{text:?}: {said}");
    }
}

#[test]
fn a_private_key_of_another_kind_is_refused_with_its_cure() {
    for (text, says) in [
        ("", "BEGIN PRIVATE KEY"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----", "hotserve keygen"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----", "decrypt"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "not an Ed25519 key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "takes the private key"),
    ] {
        let said = SigningKey::from_pem(text).expect_err(text).to_string();
        assert!(said.contains(says), "{text:?}: {said}");
    }
    assert!(!format!("{:?}", key(1)).contains("AQEB"), "the secret is not shown");
}

#[cfg(unix)]
#[test]
fn a_key_file_that_others_can_open_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), key(1).to_pem().expect("a key")).expect("writable");
    for (mode, fine) in [(0o600, true), (0o400, true), (0o440, true), (0o644, false), (0o620, false), (0o604, false)] {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("ours");
        let read = SigningKey::read(file.path());
        assert_eq!(read.is_ok(), fine, "{mode:o}: {read:?}");
        if let Err(error) = read {
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
}

#[test]
fn a_keyring_is_read_as_toml_and_as_json_and_its_faults_are_said() {
    let (one, two) = (key(1).public().to_string(), key(2).public().to_string());
    let toml = format!(
        "threshold = 2\n[[keys]]\npublic = \"{one}\"\nslots = [\"model/fraud\"]\ncomment = \"c\"\n\
         [[keys]]\npublic = \"{two}\"\nid = \"kms:arn/1\"\nnot_after = \"2027-01-01T00:00:00Z\"\n"
    );
    let json = serde_json::json!({"threshold": 2, "keys": [
        {"public": one, "slots": ["model/fraud"]},
        {"public": two, "id": "kms:arn/1", "not_after": "2027-01-01T00:00:00Z"},
    ]});
    let (toml, json) = (Keyring::parse(&toml).expect("valid"), Keyring::parse(&json.to_string()).expect("valid"));
    assert_eq!((toml.keys(), toml.threshold()), (json.keys(), json.threshold()));
    assert_eq!(toml.keys()[1].id().as_str(), "kms:arn/1");

    let one = |more: &str| entry(1, more);
    for (text, says) in [
        (String::new(), "no keys"),
        ("keys = []".to_owned(), "no keys"),
        (format!("threshold = 0\n{}", one("")), "threshold of 0"),
        (format!("threshold = 2\n{}", one("")), "threshold of 2 of 1"),
        (one("") + &one(""), "one key"),
        (one("id = \"a\"") + &entry(2, "id = \"a\""), "one id"),
        (one("") + &entry(2, &format!("id = \"{}\"", key(1).public().id())), "one id"),
        (one("slots = []"), "slots is empty"),
        (one("slots = [\"fraud\"]"), "model/NAME"),
        (one("slots = [\"models/fraud\"]"), "model/NAME"),
        (one("slots = [\"model/*fraud\"]"), "model/NAME"),
        (one("slots = [\"model/\"]"), "model/NAME"),
        (one("not_after = \"soon\""), "not_after"),
        (one("scope = \"all\""), "scope"),
        (one("id = \"a b\""), "key id"),
        ("[[keys]]\npublic = \"AAAA\"".to_owned(), "key 1: "),
        ("{".to_owned(), "EOF"),
        ((0..=32).map(|seed| entry(seed, "")).collect(), "more than 32"),
    ] {
        let said = Keyring::parse(&text).expect_err(&text).to_string();
        assert!(said.contains(says), "{text}: {said}");
    }
}

#[test]
fn each_fault_of_a_signature_has_its_kind() {
    let trust = trust(
        1,
        &[(1, ""), (2, "slots = [\"model/fraud\", \"state/eu-*\"]"), (3, "not_after = \"2026-11-01T00:00:00Z\"")],
    );
    let (one, two, three, stranger) = (key(1), key(2), key(3), key(9));
    let good = sign(&one, MESSAGE);
    assert_eq!(judge(&trust, std::slice::from_ref(&good), &["model/iris"]), Ok(1));
    let broken = Signature { bytes: one.sign(b"another message"), ..good.clone() };
    let not_its_own = Signature { bytes: stranger.sign(MESSAGE), ..good.clone() };
    let cut = Signature { bytes: good.bytes[..63].to_vec(), ..good.clone() };
    for signature in [broken.clone(), not_its_own, cut] {
        assert_eq!(judge(&trust, &[signature], &[]), Err(FaultKind::BadSignature));
    }
    assert_eq!(judge(&trust, &[sign(&stranger, MESSAGE)], &[]), Err(FaultKind::UnknownKey));
    assert_eq!(judge(&trust, &[], &[]), Err(FaultKind::UnknownKey));
    assert_eq!(judge(&trust, &[sign(&three, MESSAGE)], &[]), Err(FaultKind::KeyExpired));
    let before = trust.verify(MESSAGE, &[sign(&three, MESSAGE)], at("2026-10-31T00:00:00Z"));
    assert_eq!(before.expect("in its time").signers(), [three.public().id()]);

    // A signature that names no key is tried with all of them.
    let nameless = |key: &SigningKey| Signature { key_id: None, bytes: key.sign(MESSAGE) };
    assert_eq!(judge(&trust, &[nameless(&one)], &[]), Ok(1));
    assert_eq!(judge(&trust, &[nameless(&stranger)], &[]), Err(FaultKind::UnknownKey));
    // Others' signatures, and broken ones, beside a good one are no fault: DSSE counts the good ones.
    assert_eq!(judge(&trust, &[sign(&stranger, MESSAGE), broken, good], &["state/x"]), Ok(1));

    let scoped = [sign(&two, MESSAGE)];
    for covered in ["model/fraud", "state/eu-", "state/eu-west"] {
        assert_eq!(judge(&trust, &scoped, &[covered]), Ok(1), "{covered}");
    }
    for outside in ["model/fraudulent", "model/eu-west", "state/fraud", "state/us"] {
        assert_eq!(judge(&trust, &scoped, &[outside]), Err(FaultKind::KeyScope), "{outside}");
    }
    assert_eq!(judge(&trust, &scoped, &["model/fraud", "state/us"]), Err(FaultKind::KeyScope), "each slot counts");
    assert_eq!(judge(&trust, &scoped, &[]), Err(FaultKind::KeyScope), "what names no slot may mean any");
}

#[test]
fn a_threshold_counts_distinct_keys_that_may() {
    let trust = trust(2, &[(1, ""), (2, "slots = [\"model/fraud\"]"), (3, "")]);
    let (one, two, three) = (sign(&key(1), MESSAGE), sign(&key(2), MESSAGE), sign(&key(3), MESSAGE));
    assert_eq!(judge(&trust, &[one.clone(), three.clone()], &["model/iris"]), Ok(2));
    assert_eq!(judge(&trust, &[one.clone(), two.clone()], &["model/fraud"]), Ok(2));
    assert_eq!(judge(&trust, &[one.clone(), two.clone()], &["model/iris"]), Err(FaultKind::KeyScope));
    assert_eq!(judge(&trust, &[one.clone(), two, three], &["model/iris"]), Ok(3));
    assert_eq!(judge(&trust, std::slice::from_ref(&one), &["model/iris"]), Err(FaultKind::Threshold));
    let again = Signature { key_id: None, ..one.clone() };
    assert_eq!(judge(&trust, &[one.clone(), one.clone(), again], &["model/iris"]), Err(FaultKind::Threshold));
    let stranger = sign(&key(9), MESSAGE);
    assert_eq!(judge(&trust, &[one, stranger], &["model/iris"]), Err(FaultKind::Threshold));
}

#[test]
fn what_must_be_signed_reads_as_it_is_written() {
    for required in [Required::Off, Required::Model, Required::All] {
        assert_eq!(required.to_string().parse(), Ok(required));
    }
    assert_eq!("true".parse(), Ok(Required::All));
    assert!("models".parse::<Required>().is_err());
}
