//! Inflating gzip and zstd with a cap on size and ratio.

use std::io::Read;

use bytes::Bytes;

use super::{Encoding, Limits, Reason, Rejection};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

impl Encoding {
    /// What the first bytes say.
    pub(crate) fn sniff(bytes: &[u8]) -> Self {
        if bytes.starts_with(GZIP_MAGIC) {
            Self::Gzip
        } else if bytes.starts_with(ZSTD_MAGIC) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// The text of a record: what it was before its producer compressed it.
pub fn plain(data: &Bytes, limits: &Limits) -> Result<Bytes, Rejection> {
    inflate(data, Encoding::sniff(data), limits.payload_bytes, limits.inflate_ratio)
}

/// Undoes an encoding; stops as soon as the output passes `max_bytes` or `max_ratio` times the input.
pub fn inflate(bytes: &Bytes, encoding: Encoding, max_bytes: usize, max_ratio: usize) -> Result<Bytes, Rejection> {
    match encoding {
        Encoding::None => Ok(bytes.clone()),
        Encoding::Gzip => read_capped(flate2::read::MultiGzDecoder::new(&bytes[..]), bytes.len(), max_bytes, max_ratio),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(&bytes[..]).map_err(broken)?;
            // The window is allocated before the first byte is out: a frame may not ask for more than the cap allows.
            let window_log = max_bytes.max(1 << 17).ilog2().clamp(17, 27);
            decoder.window_log_max(window_log).map_err(broken)?;
            read_capped(decoder, bytes.len(), max_bytes, max_ratio)
        }
    }
}

fn read_capped(reader: impl Read, input: usize, max_bytes: usize, max_ratio: usize) -> Result<Bytes, Rejection> {
    // Small inputs may have any ratio: a page of zeros is no bomb.
    let cap = max_bytes.min(input.saturating_mul(max_ratio).max(64 << 10));
    let mut inflated = Vec::new();
    reader.take(cap as u64 + 1).read_to_end(&mut inflated).map_err(broken)?;
    if inflated.len() > cap {
        let detail = format!("inflates beyond {cap} bytes (from {input}): raise the limit, or send less");
        return Err(Rejection::new(Reason::TooLarge, detail));
    }
    Ok(inflated.into())
}

#[expect(clippy::needless_pass_by_value, reason = "its shape is what map_err wants")]
fn broken(error: std::io::Error) -> Rejection {
    // zstd says so when a frame asks for a larger window than it may have.
    if error.to_string().contains("too much memory") {
        return Rejection::new(Reason::TooLarge, "asks for more memory to inflate than is allowed");
    }
    Rejection::new(Reason::Inflate, format!("compressed data is broken: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("to memory");
        encoder.finish().expect("to memory").into()
    }

    fn zstd(bytes: &[u8]) -> Bytes {
        zstd::encode_all(bytes, 3).expect("to memory").into()
    }

    #[test]
    fn what_was_deflated_comes_back() {
        let text = Bytes::from_static(b"{\"state\":96}");
        for (encoding, packed) in
            [(Encoding::Gzip, gzip(&text)), (Encoding::Zstd, zstd(&text)), (Encoding::None, text.clone())]
        {
            assert_eq!(Encoding::sniff(&packed), encoding);
            assert_eq!(inflate(&packed, encoding, 1 << 20, 200), Ok(text.clone()));
        }
    }

    #[test]
    fn a_bomb_is_stopped_by_the_ratio_and_by_the_size() {
        let zeros = vec![0; 8 << 20];
        for (encoding, packed) in [(Encoding::Gzip, gzip(&zeros)), (Encoding::Zstd, zstd(&zeros))] {
            for (bytes, ratio) in [(64 << 20, 200), (1 << 20, usize::MAX)] {
                let rejection = inflate(&packed, encoding, bytes, ratio).expect_err("a bomb");
                assert_eq!(rejection.reason, Reason::TooLarge, "{encoding:?}: {rejection}");
            }
        }
    }

    #[test]
    fn torn_data_is_refused() {
        for (encoding, packed) in [(Encoding::Gzip, gzip(b"hello, world")), (Encoding::Zstd, zstd(b"hello, world"))] {
            let torn = packed.slice(..packed.len() - 3);
            assert_eq!(inflate(&torn, encoding, 1 << 20, 200).map_err(|r| r.reason), Err(Reason::Inflate));
        }
    }
}
