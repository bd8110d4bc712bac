//! Any bytes are a manifest or an error, and a manifest that is written reads back as it was.
#![no_main]

use hotserve_fuzz::manifest::{Limits, Manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let Ok(manifest) = Manifest::decode(data, &limits) else { return };
    let written = manifest.encode().expect("it was no larger when it was read");
    let again = Manifest::decode(&written, &limits).expect("what is written can be read");
    assert_eq!(again.entries().count(), manifest.entries().count());
    assert_eq!(again.unreadable().len(), manifest.unreadable().len());
    assert_eq!(again.encode().expect("as large as before"), written);
});
