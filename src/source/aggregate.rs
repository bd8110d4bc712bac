//! A record of the Kinesis Producer Library → the messages that it was packed from, pure.
//!
//! ```text
//!   F3 89 9A C2 │ AggregatedRecord (protobuf) │ MD5 of the protobuf, 16 bytes
//!
//!   AggregatedRecord { 1: partition keys, 2: explicit hash keys, 3: records }
//!   Record           { 1: index of its partition key, 2: of its hash key, 3: data, 4: tags }
//! ```
//!
//! What is not such a record is *plain*, and goes on whole, as it does in the Kinesis Client Library: bytes that only
//! begin like one, a wrong MD5, and a right one around a protobuf that is broken. `notification::decode` then refuses
//! what has the magic, by name. The format is described in `aggregation-format.md` of amazon-kinesis-producer.

use bytes::{Buf as _, Bytes};
use md5::{Digest as _, Md5};

use super::Record;
use crate::id::Position;
use crate::notification::KPL_MAGIC;

/// The bytes of an MD5.
const DIGEST: usize = 16;
/// The most messages in one record. The KPL makes records of up to 1 MiB, in which the smallest message there is,
/// `{"state":1}`, takes 17 bytes: 61,680 of them. More are meant to cost memory: each becomes a [`Record`] that is
/// much larger than the 6 bytes it may take here.
const MAX_RECORDS: usize = 100_000;

/// The records that a record of the stream is: itself, or those that a producer packed into it, in their order.
///
/// A message whose hash key lies outside of the shard is kept. The KCL drops it, as a split may show it twice; here a
/// message may come twice, but none may be lost.
pub fn expand(position: Position, data: Bytes) -> impl Iterator<Item = Record> {
    let parts = split(&data).unwrap_or_else(|| vec![data]);
    (0..)
        .zip(parts)
        .map(move |(subsequence, data)| Record { position: Position { subsequence, ..position.clone() }, data })
}

/// The messages in an aggregate, as slices of it; none of what is plain. They are not taken apart further.
pub fn split(data: &Bytes) -> Option<Vec<Bytes>> {
    let body = data.strip_prefix(KPL_MAGIC)?;
    let (message, digest) = body.split_at_checked(body.len().checked_sub(DIGEST)?)?;
    if message.is_empty() || Md5::digest(message).as_slice() != digest {
        return None;
    }
    records(data.slice_ref(message))
}

fn records(mut message: Bytes) -> Option<Vec<Bytes>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        if let (3, Value::Bytes(record)) = field(&mut message)? {
            if found.len() >= MAX_RECORDS {
                return None;
            }
            found.push(payload(record)?);
        }
    }
    Some(found)
}

/// The data of a record. The format requires it, and an index of a partition key; the last of several counts.
fn payload(mut record: Bytes) -> Option<Bytes> {
    let (mut has_key, mut payload) = (false, None);
    while !record.is_empty() {
        match field(&mut record)? {
            (1, Value::Number) => has_key = true,
            (3, Value::Bytes(data)) => payload = Some(data),
            _ => {}
        }
    }
    payload.filter(|_| has_key)
}

/// What a field holds, as far as it matters here.
enum Value {
    Number,
    Bytes(Bytes),
    Fixed,
}

/// Takes the next field: its number and its value. None if it is broken, or a group: that is no part of the format.
fn field(rest: &mut Bytes) -> Option<(u64, Value)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => varint(rest).map(|_| Value::Number),
        1 => take(rest, 8).map(|_| Value::Fixed),
        2 => varint(rest).and_then(|length| take(rest, length)).map(Value::Bytes),
        5 => take(rest, 4).map(|_| Value::Fixed),
        _ => None,
    }?;
    let number = tag >> 3;
    (1..1 << 29).contains(&number).then_some((number, value))
}

fn take(rest: &mut Bytes, length: u64) -> Option<Bytes> {
    let length = usize::try_from(length).ok().filter(|length| *length <= rest.len())?;
    Some(rest.split_to(length))
}

/// Up to ten bytes of seven bits, the lowest first. What is above 64 bits is dropped, as generated decoders do.
fn varint(rest: &mut Bytes) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = rest.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What AWS's own encoder made; tests/kpl/make.py says how.
    macro_rules! vector {
        ($name:literal) => {
            Bytes::from_static(include_bytes!(concat!("../../tests/kpl/", $name)))
        };
    }

    fn bytes(parts: &[&str]) -> Option<Vec<Bytes>> {
        Some(parts.iter().map(|part| Bytes::copy_from_slice(part.as_bytes())).collect())
    }

    fn put_varint(out: &mut Vec<u8>, mut value: usize) {
        while value >= 0x80 {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }

    fn put_bytes(out: &mut Vec<u8>, number: usize, value: &[u8]) {
        put_varint(out, number << 3 | 2);
        put_varint(out, value.len());
        out.extend(value);
    }

    fn put_number(out: &mut Vec<u8>, number: usize, value: usize) {
        put_varint(out, number << 3);
        put_varint(out, value);
    }

    fn record(key: usize, data: &[u8]) -> Vec<u8> {
        let mut record = vec![];
        put_number(&mut record, 1, key);
        put_bytes(&mut record, 3, data);
        record
    }

    fn seal(message: &[u8]) -> Bytes {
        [KPL_MAGIC, message, &Md5::digest(message)].concat().into()
    }

    fn position() -> Position {
        Position {
            era: 1,
            arrival_ms: 2,
            shard: "s-0".parse().expect("a shard id"),
            sequence: "7".parse().expect("digits"),
            subsequence: 0,
        }
    }

    #[test]
    fn what_another_encoder_packed_comes_out() {
        let states = [r#"{"key":"one","state":1}"#, r#"{"key":"two","state":2}"#];
        assert_eq!(split(&vector!("one.bin")), bytes(&[r#"{"state":1}"#]));
        assert_eq!(split(&vector!("two.bin")), bytes(&states));
        assert_eq!(split(&vector!("tags.bin")), bytes(&states));
        let numbered: Vec<_> = (0..6).map(|number| format!(r#"{{"state":{number}}}"#).into()).collect();
        assert_eq!(split(&vector!("hash_keys.bin")), Some(numbered));
        let mut lengths: Vec<Bytes> = (0..140).map(|length| "x".repeat(length).into()).collect();
        lengths.push("y".repeat(16_500).into());
        assert_eq!(split(&vector!("varints.bin")), Some(lengths));
        let parts = split(&vector!("bytes.bin")).expect("an aggregate");
        assert_eq!(parts[0], "");
        assert!(parts[1].starts_with(&[0x1f, 0x8b]));
        assert_eq!(parts[2], &b"\xf3\x89\x9a\xc2\x00\xff"[..]);
    }

    #[test]
    fn each_message_of_an_aggregate_has_its_place_and_a_plain_record_the_first() {
        let seen: Vec<_> = expand(position(), vector!("two.bin")).collect();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].position, position());
        assert_eq!(seen[1].position, Position { subsequence: 1, ..position() });
        assert_eq!(seen[1].data, r#"{"key":"two","state":2}"#);
        for plain in [&b""[..], br#"{"state":1}"#, KPL_MAGIC] {
            let seen: Vec<_> = expand(position(), Bytes::from_static(plain)).collect();
            assert_eq!(seen.len(), 1);
            assert_eq!((&seen[0].position, &seen[0].data[..]), (&position(), plain));
        }
    }

    #[test]
    fn a_message_is_a_slice_of_its_record_and_no_copy() {
        let whole = vector!("two.bin");
        let range = whole.as_ptr_range();
        for part in split(&whole).expect("an aggregate") {
            assert!(range.contains(&part.as_ptr()));
        }
    }

    #[test]
    fn an_aggregate_within_an_aggregate_stays_as_it_is() {
        let inner = vector!("two.bin");
        let mut message = vec![];
        put_bytes(&mut message, 3, &record(0, &inner));
        assert_eq!(split(&seal(&message)), Some(vec![inner]));
    }

    #[test]
    fn fields_that_are_not_known_are_passed_over() {
        let mut inner = record(0, b"first");
        put_number(&mut inner, 9, usize::MAX);
        put_bytes(&mut inner, 1000, b"later");
        // Known numbers of another type, and the data once more: the last one counts.
        put_number(&mut inner, 3, 1);
        put_bytes(&mut inner, 3, b"last");
        let mut message = vec![];
        put_bytes(&mut message, 17, b"a field to come");
        put_varint(&mut message, 5 << 3 | 1);
        message.extend([0; 8]);
        put_varint(&mut message, 6 << 3 | 5);
        message.extend([0; 4]);
        put_number(&mut message, 3, 1);
        put_bytes(&mut message, 3, &inner);
        assert_eq!(split(&seal(&message)), bytes(&["last"]));
    }

    #[test]
    fn a_right_digest_around_a_broken_message_is_plain() {
        let wrap = |record: &[u8]| {
            let mut message = vec![];
            put_bytes(&mut message, 3, record);
            message
        };
        assert_eq!(split(&seal(&wrap(&record(0, b"x")))), bytes(&["x"]), "the test's own encoder");
        let (mut without_key, mut without_data) = (vec![], vec![]);
        put_bytes(&mut without_key, 3, b"x");
        put_number(&mut without_data, 1, 0);
        for (what, message) in [
            ("nothing", vec![]),
            ("a record without a partition key", wrap(&without_key)),
            ("a record without data", wrap(&without_data)),
            ("an empty record", wrap(b"")),
            ("a length beyond the end", vec![3 << 3 | 2, 1]),
            ("a length of 2^64 - 1", [&[3 << 3 | 2], &[0xff; 9][..], &[1]].concat()),
            ("a varint without an end", vec![1 << 3, 0x80]),
            ("a varint of 11 bytes", [&[1 << 3], &[0x80; 10][..], &[0]].concat()),
            ("a fixed number cut short", vec![5 << 3 | 1, 0, 0]),
            ("field 0", vec![0, 0]),
            ("a field beyond 2^29 - 1", vec![0x80, 0x80, 0x80, 0x80, 0x10, 0]),
            ("a group", vec![4 << 3 | 3, 4 << 3 | 4]),
            ("a type that does not exist", vec![4 << 3 | 6]),
        ] {
            assert_eq!(split(&seal(&message)), None, "{what}");
        }
    }

    #[test]
    fn more_messages_than_a_producer_packs_are_refused_whole() {
        let mut message = vec![];
        for _ in 0..MAX_RECORDS {
            put_bytes(&mut message, 3, &record(0, b""));
        }
        assert_eq!(split(&seal(&message)).map(|parts| parts.len()), Some(MAX_RECORDS));
        put_bytes(&mut message, 3, &record(0, b""));
        assert_eq!(split(&seal(&message)), None);
    }

    #[test]
    fn whatever_is_cut_or_changed_is_plain() {
        for whole in [vector!("two.bin"), vector!("tags.bin"), vector!("hash_keys.bin"), vector!("bytes.bin")] {
            for end in 0..whole.len() {
                assert_eq!(split(&whole.slice(..end)), None, "cut at {end}");
            }
            for at in 0..whole.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut changed = whole.to_vec();
                    changed[at] ^= flip;
                    assert_eq!(split(&changed.into()), None, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn a_message_changed_before_it_was_sealed_is_plain_or_sound() {
        for whole in [vector!("two.bin"), vector!("tags.bin"), vector!("hash_keys.bin"), vector!("bytes.bin")] {
            let message = &whole[KPL_MAGIC.len()..whole.len() - DIGEST];
            for end in 0..message.len() {
                check(&seal(&message[..end]));
            }
            for at in 0..message.len() {
                for byte in 0..=u8::MAX {
                    let mut changed = message.to_vec();
                    changed[at] = byte;
                    check(&seal(&changed));
                }
            }
        }
    }

    /// What comes out lies within what went in, and fits into it.
    fn check(whole: &Bytes) {
        let parts = split(whole).unwrap_or_default();
        assert!(parts.iter().map(Bytes::len).sum::<usize>() <= whole.len());
        for part in &parts {
            // Panics if it is no slice of the whole.
            assert_eq!(whole.slice_ref(part), part);
        }
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out(
            keys in proptest::collection::vec("[a-z]{0,200}", 0..10),
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..20),
        ) {
            let mut message = vec![];
            for key in &keys {
                put_bytes(&mut message, 1, key.as_bytes());
            }
            for (number, part) in parts.iter().enumerate() {
                put_bytes(&mut message, 3, &record(number * 7, part));
            }
            let parts: Vec<_> = parts.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(split(&seal(&message)), Some(parts));
        }

        #[test]
        fn no_bytes_panic(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            check(&seal(&message));
            check(&message.into());
        }

        #[test]
        fn no_near_miss_panics(message in proptest::collection::vec(
            prop_oneof![Just(0x08), Just(0x0a), Just(0x1a), Just(0x1b), Just(0x80), 0_u8..20], 0..64,
        )) {
            check(&seal(&message));
        }
    }
}
