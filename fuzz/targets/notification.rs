//! Any bytes are a notification or a rejection, and what is a notification keeps its promises.
#![no_main]

use bytes::Bytes;
use hotserve_fuzz::notification::{ArtifactUri, Limits, Location, decode};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    match decode(&Bytes::copy_from_slice(data), &limits) {
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
