//! Any bytes are an aggregate or plain. Each input is tried as it is, and as the protobuf of an aggregate with the right
//! MD5: no fuzzer guesses one.
#![no_main]

use bytes::Bytes;
use hotserve_fuzz::source::aggregate::split;
use libfuzzer_sys::fuzz_target;
use md5::{Digest as _, Md5};

const MAGIC: &[u8] = &[0xf3, 0x89, 0x9a, 0xc2];

fuzz_target!(|data: &[u8]| {
    check(Bytes::copy_from_slice(data));
    check(seal(data));
});

fn seal(message: &[u8]) -> Bytes {
    [MAGIC, message, &Md5::digest(message)].concat().into()
}

fn check(data: Bytes) {
    let Some(parts) = split(&data) else { return };
    assert!(data.starts_with(MAGIC));
    // Each takes at least a tag, a length, a key and its own tag and length.
    let most = parts.iter().map(|part| part.len() + 6).sum::<usize>();
    assert!(most <= data.len(), "{most} bytes came out of {}", data.len());
    let mut from = 0;
    let mut message = vec![];
    for part in &parts {
        // They are slices, in their order.
        let at = part.as_ptr().addr() - data.as_ptr().addr();
        assert!(part.is_empty() || at >= from && data[at..].starts_with(part));
        from = at.max(from) + part.len();
        let mut record = vec![1 << 3, 0];
        put(&mut record, part);
        put(&mut message, &record);
    }
    if !parts.is_empty() {
        assert_eq!(split(&seal(&message)), Some(parts), "packed again, the same comes out");
    }
}

/// A field 3 of bytes.
fn put(out: &mut Vec<u8>, value: &[u8]) {
    out.push(3 << 3 | 2);
    let mut length = value.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(value);
}
