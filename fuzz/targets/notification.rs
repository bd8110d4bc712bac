//! Any bytes are a notification or a rejection, and what is a notification keeps its promises. What is trusted is only
//! what the one key signed: the two messages of the corpus.
#![no_main]

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use hotserve_fuzz::notification::{ArtifactUri, Limits, Location, Signers, decode};
use hotserve_fuzz::trust::{Keyring, Required, Trust, TrustedKey};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

/// Trusts the key that the corpus was signed with; its secret was 32 bytes of 7.
static TRUSTING: LazyLock<Limits> = LazyLock::new(|| {
    let key = TrustedKey::new("6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=".parse().expect("a key"));
    let keyring = Keyring::new(vec![key], 1).expect("a keyring");
    Limits { trust: Some(Arc::new(Trust::new(keyring, Required::All))), ..Limits::default() }
});

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let data = Bytes::copy_from_slice(data);
    if let Ok(notification) = decode(&data, &TRUSTING) {
        assert!(matches!(notification.signers, Signers::Verified(_)));
        let state = notification.state.map(|state| state.json.get().to_owned());
        let model = notification.model.map(|model| model.name.to_string());
        assert!(matches!((state.as_deref(), model.as_deref()), (Some(r#"{"eur":1.08}"#), None) | (None, Some("iris"))));
    }
    match decode(&data, &limits) {
        Err(rejection) => assert!((1..=1024).contains(&rejection.detail.len()), "{rejection}"),
        Ok(notification) => {
            let slots: Vec<_> = notification.slots().map(|(slot, version)| (slot.to_string(), version)).collect();
            let parts = [notification.state.is_some(), notification.model.is_some()];
            assert_eq!(slots.len(), parts.into_iter().filter(|is| *is).count());
            assert!(!slots.is_empty());
            if let Some(state) = &notification.state {
                serde_json::from_str::<&RawValue>(state.json.get()).expect("a state is JSON");
            }
            match notification.model.map(|model| model.location) {
                Some(Location::Uri { uri, sha256, size, .. }) => {
                    assert!(sha256.is_some() && size.is_some(), "the default limits require both");
                    assert_eq!(uri.to_string().parse::<ArtifactUri>().expect("what was parsed"), uri);
                }
                Some(Location::Inline(bytes)) => assert!(bytes.len() <= limits.payload_bytes),
                None => {}
            }
        }
    }
});
