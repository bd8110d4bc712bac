//! The frames of an event stream: length, headers, payload, and a checksum of each half.

use axum::body::Bytes;

/// The first frame of a subscription.
pub(super) fn initial_response() -> Bytes {
    encode(&[(":message-type", "event"), (":event-type", "initial-response")], b"")
}

/// An event of a subscription.
pub(super) fn event(payload: &[u8]) -> Bytes {
    let headers =
        [(":message-type", "event"), (":event-type", "SubscribeToShardEvent"), (":content-type", "application/json")];
    encode(&headers, payload)
}

/// An error that ends a subscription.
pub(super) fn exception(code: &str, message: &str) -> Bytes {
    let headers = [(":message-type", "exception"), (":exception-type", code), (":content-type", "application/json")];
    encode(&headers, serde_json::json!({"message": message}).to_string().as_bytes())
}

/// <https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html> describes the frame.
fn encode(headers: &[(&str, &str)], payload: &[u8]) -> Bytes {
    /// Of a header's value.
    const STRING: u8 = 7;
    /// Two lengths and two checksums.
    const AROUND: usize = 16;
    let length = |length: usize| u32::try_from(length).expect("events are far below 4 GiB").to_be_bytes();
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(u8::try_from(name.len()).expect("names are short"));
        head.extend_from_slice(name.as_bytes());
        head.push(STRING);
        head.extend_from_slice(&u16::try_from(value.len()).expect("values are short").to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let mut frame = Vec::with_capacity(AROUND + head.len() + payload.len());
    frame.extend_from_slice(&length(AROUND + head.len() + payload.len()));
    frame.extend_from_slice(&length(head.len()));
    frame.extend_from_slice(&checksum(&frame));
    frame.extend_from_slice(&head);
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&checksum(&frame));
    frame.into()
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_be_bytes()
}
