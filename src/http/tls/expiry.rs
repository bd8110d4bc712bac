//! When a certificate expires: RFC 5280, section 4.1, as far as the end of its validity.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of a certificate's validity in Unix seconds; none where the bytes are no certificate.
pub(super) fn of(certificate: &[u8]) -> Option<i64> {
    let (signed, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(signed, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    // The serial number, the algorithm of the signature, and the issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        fields = element(fields, tag)?.1;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let (_, after) = time(validity)?;
    time(after).map(|(seconds, _)| seconds)
}

/// The content of the element with this tag at the beginning, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, mut rest) = rest.split_first()?;
    let length = match length {
        0..=0x7f => usize::from(length),
        // So many bytes of length follow.
        0x81..=0x84 => {
            let (digits, after) = rest.split_at_checked(usize::from(length - 0x80))?;
            rest = after;
            digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit))
        }
        _ => return None,
    };
    (first == tag).then(|| rest.split_at_checked(length))?
}

fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (text, rest, short) = match element(bytes, UTC_TIME) {
        Some((text, rest)) => (text, rest, true),
        None => element(bytes, GENERALIZED_TIME).map(|(text, rest)| (text, rest, false))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    // Two digits of a year are of 1950 to 2049.
    let century = match text.bytes().next() {
        _ if !short => "",
        Some(b'0'..=b'4') => "20",
        _ => "19",
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", format!("{century}{text}")).ok()?;
    Some((TimeZone::UTC.to_timestamp(time).ok()?.as_second(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beginning of a certificate, to the end of its validity.
    fn certificate(not_after: &[u8], version: bool) -> Vec<u8> {
        let wrap = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).expect("short");
            let length = if length < 0x80 { vec![length] } else { vec![0x81, length] };
            [&[tag][..], &length, content].concat()
        };
        let tag = if not_after.len() == 13 { UTC_TIME } else { GENERALIZED_TIME };
        let validity = wrap(SEQUENCE, &[wrap(UTC_TIME, b"260101000000Z"), wrap(tag, not_after)].concat());
        let issuer = wrap(SEQUENCE, &[b'x'; 100]);
        let version = if version { wrap(VERSION, &wrap(INTEGER, &[2])) } else { Vec::new() };
        let fields = [version, wrap(INTEGER, &[1; 20]), wrap(SEQUENCE, &[]), issuer, validity].concat();
        wrap(SEQUENCE, &wrap(SEQUENCE, &fields))
    }

    #[test]
    fn the_end_of_the_validity_is_found_however_it_is_written() {
        for version in [false, true] {
            assert_eq!(of(&certificate(b"300102030405Z", version)), Some(1_893_553_445));
            assert_eq!(of(&certificate(b"20500102030405Z", version)), Some(2_524_705_445));
            assert_eq!(of(&certificate(b"700101000000Z", version)), Some(0));
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let good = certificate(b"300102030405Z", true);
        for length in 0..good.len() {
            assert_eq!(of(&good[..length]), None, "{length}");
        }
        for bad in [&b"300102030405"[..], b"30010203040506", b"301302030405Z"] {
            assert_eq!(of(&certificate(bad, true)), None, "{bad:?}");
        }
        assert_eq!(of(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
