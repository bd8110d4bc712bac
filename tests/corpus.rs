//! What fuzzing has found (`scripts/fuzz`) goes through the decoders once more: none panics, and each keeps its promises.

use std::sync::Arc;

use bytes::Bytes;
use hotserve::manifest::{self, Manifest};
use hotserve::notification::{Limits, decode};
use hotserve::source::aggregate::split;
use hotserve::trust::{Keyring, Required, Trust, TrustedKey};
use md5::{Digest as _, Md5};

use crate::support::repository;

/// The inputs of a target, with their names.
fn corpus(target: &str) -> Vec<(String, Bytes)> {
    let folder = repository("fuzz/corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
    let inputs: Vec<_> = files.map(|path| (path.display().to_string(), std::fs::read(path).unwrap().into())).collect();
    assert!(inputs.len() >= 20, "{} has {} files", folder.display(), inputs.len());
    inputs
}

#[test]
fn every_input_is_a_notification_or_a_short_rejection() {
    let (mut accepted, mut reasons) = (0, std::collections::HashSet::new());
    for (name, data) in corpus("notification") {
        match decode(&data, &Limits::default()) {
            Ok(notification) => {
                accepted += 1;
                assert!(notification.slots().count() > 0, "{name}");
            }
            Err(rejection) => {
                assert!((1..=1024).contains(&rejection.detail.len()), "{name}: {rejection}");
                reasons.insert(rejection.reason);
            }
        }
    }
    assert!(accepted > 20 && reasons.len() > 6, "{accepted} and {reasons:?}: the corpus reaches too little");
}

#[test]
fn of_the_inputs_only_what_the_one_key_signed_is_trusted() {
    // The key's secret was 32 bytes of 7, and OpenSSL made the signatures.
    let key = TrustedKey::new("6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=".parse().unwrap());
    let trust = Trust::new(Keyring::new(vec![key], 1).unwrap(), Required::All);
    let limits = Limits { trust: Some(Arc::new(trust)), ..Limits::default() };
    let mut trusted = std::collections::BTreeMap::<_, usize>::new();
    for (name, data) in corpus("notification") {
        if let Ok(notification) = decode(&data, &limits) {
            assert_eq!(notification.signers.verified().len(), 1, "{name}");
            let slots: Vec<_> = notification.slots().map(|(slot, _)| slot.to_string()).collect();
            *trusted.entry(slots.join(", ")).or_default() += 1;
        }
    }
    assert_eq!(trusted.keys().collect::<Vec<_>>(), ["model iris", "state pricing"], "{trusted:?}");
    assert!(trusted.values().all(|count| *count >= 2), "{trusted:?}");
}

#[test]
fn every_input_is_an_aggregate_or_plain() {
    let mut found = 0;
    for (name, data) in corpus("aggregate") {
        // As the target does: as it is, and with the digest that no fuzzer guesses.
        let sealed = [&b"\xf3\x89\x9a\xc2"[..], &data, &Md5::digest(&data)].concat().into();
        for data in [data, sealed] {
            let parts = split(&data).unwrap_or_default();
            found += parts.len();
            assert!(parts.iter().map(Bytes::len).sum::<usize>() <= data.len(), "{name}");
        }
    }
    assert!(found > 5, "{found} messages: the corpus reaches too little");
}

#[test]
fn every_input_is_a_manifest_that_reads_back_as_written_or_an_error() {
    let (limits, mut decoded) = (manifest::Limits::default(), 0);
    for (name, data) in corpus("manifest") {
        let Ok(manifest) = Manifest::decode(&data, &limits) else { continue };
        let written = manifest.encode().unwrap();
        let again = Manifest::decode(&written, &limits).unwrap();
        assert_eq!(again.encode().unwrap(), written, "{name}");
        decoded += 1;
    }
    assert!(decoded > 20, "{decoded} manifests: the corpus reaches too little");
}
