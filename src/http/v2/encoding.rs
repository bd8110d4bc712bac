//! Bodies that were compressed on their way, and answers that may be.

use std::io::{self, Read, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{GzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::super::problem::Problem;

/// Smaller answers fit into one packet as they are.
const LEAST: usize = 1 << 10;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Gzip,
    /// In the frame of zlib, as HTTP has it.
    Deflate,
}

impl Encoding {
    /// How the body of a request is compressed, if it is.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let unknown = |text: &str| {
            let text: String = text.chars().take(64).collect();
            let detail = format!("the content-encoding {text:?} is not known here: send gzip, deflate or none");
            Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_encoding", detail)
        };
        let mut found = None;
        for encoding in listed(headers, &header::CONTENT_ENCODING) {
            let encoding = encoding.map_err(|()| unknown("?"))?;
            let is = |name: &str| encoding.eq_ignore_ascii_case(name);
            let one = if is("gzip") || is("x-gzip") {
                Self::Gzip
            } else if is("deflate") {
                Self::Deflate
            } else if is("identity") || encoding.is_empty() {
                continue;
            } else {
                return Err(unknown(encoding));
            };
            if found.replace(one).is_some() {
                return Err(unknown("of several layers"));
            }
        }
        Ok(found)
    }

    /// How an answer may be compressed: as the client likes best, and gzip where it likes both as well.
    pub fn accepted(headers: &HeaderMap) -> Option<Self> {
        let (mut gzip, mut deflate, mut any, mut identity) = (None, None, None, None);
        for item in listed(headers, &header::ACCEPT_ENCODING).flatten() {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            // A weight that is none says no.
            let weight = weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0));
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            let place = match () {
                () if is("gzip") || is("x-gzip") => &mut gzip,
                () if is("deflate") => &mut deflate,
                () if is("identity") => &mut identity,
                () if name == "*" => &mut any,
                () => continue,
            };
            *place = Some(weight);
        }
        let gzip = gzip.or(any).unwrap_or(0.0);
        let deflate = deflate.or(any).unwrap_or(0.0);
        let best = if gzip >= deflate { (Self::Gzip, gzip) } else { (Self::Deflate, deflate) };
        (best.1 > 0.0 && best.1 >= identity.unwrap_or(0.0)).then_some(best.0)
    }

    /// The name in a header.
    pub fn name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        })
    }

    /// What was compressed, if it is no longer than the limit of a body.
    pub fn inflate(self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, Problem> {
        let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad_encoding", detail);
        let (read, rest) = match self {
            Self::Gzip => {
                let mut reader = GzDecoder::new(bytes).take(limit as u64 + 1);
                (to_end(&mut reader), reader.into_inner().into_inner())
            }
            Self::Deflate => {
                let mut reader = ZlibDecoder::new(bytes).take(limit as u64 + 1);
                (to_end(&mut reader), reader.into_inner().into_inner())
            }
        };
        let inflated = read.map_err(|error| bad(format!("the body cannot be inflated: {error}")))?;
        if inflated.len() > limit {
            let detail = format!("the body inflates to more than the limit of {limit} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail));
        }
        if !rest.is_empty() {
            return Err(bad(format!("{} bytes are left behind the compressed body", rest.len())));
        }
        Ok(inflated)
    }

    /// Compresses an answer, unless it is small or would not become smaller.
    pub fn deflate(self, bytes: &[u8]) -> Option<Vec<u8>> {
        if bytes.len() < LEAST {
            return None;
        }
        let room = Vec::with_capacity(bytes.len() / 2);
        // Writing into memory does not fail.
        let written = match self {
            Self::Gzip => {
                let mut writer = GzEncoder::new(room, Compression::fast());
                writer.write_all(bytes).and_then(|()| writer.finish())
            }
            Self::Deflate => {
                let mut writer = ZlibEncoder::new(room, Compression::fast());
                writer.write_all(bytes).and_then(|()| writer.finish())
            }
        };
        written.ok().filter(|smaller| smaller.len() < bytes.len())
    }
}

/// The body of a request as it was before it was compressed.
pub fn plain(encoding: Option<Encoding>, body: Bytes, limit: usize) -> Result<Bytes, Problem> {
    match encoding {
        None => Ok(body),
        Some(encoding) => encoding.inflate(&body, limit).map(Bytes::from),
    }
}

fn to_end(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The items of a header that is a list, be it on several lines.
fn listed<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = Result<&'h str, ()>> {
    headers.get_all(name).iter().flat_map(|value| {
        let text = value.to_str();
        let failed = text.is_err().then_some(Err(()));
        text.unwrap_or_default().split(',').map(str::trim).map(Ok).chain(failed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).expect("ASCII"))).collect()
    }

    #[test]
    fn the_client_says_how_an_answer_is_compressed() {
        use Encoding::{Deflate, Gzip};
        for (accepts, expected) in [
            (&[][..], None),
            (&["gzip, deflate"], Some(Gzip)),
            (&["deflate"], Some(Deflate)),
            (&["gzip;q=0, deflate;q=0.5"], Some(Deflate)),
            (&["GZIP ; q=0.2", "deflate;q=0.3"], Some(Deflate)),
            (&["*"], Some(Gzip)),
            (&["*;q=0"], None),
            (&["gzip;q=0, *"], Some(Deflate)),
            (&["gzip;q=0"], None),
            (&["gzip;q=much"], None),
            (&["identity, gzip;q=0.5"], None),
            (&["br, zstd"], None),
            (&["identity"], None),
        ] {
            assert_eq!(Encoding::accepted(&headers(&header::ACCEPT_ENCODING, accepts)), expected, "{accepts:?}");
        }
    }

    #[test]
    fn what_a_body_is_compressed_with_must_be_known() {
        let of = |values: &[&str]| Encoding::of(&headers(&header::CONTENT_ENCODING, values)).ok();
        assert_eq!(of(&[]), Some(None));
        assert_eq!(of(&["identity"]), Some(None));
        assert_eq!(of(&["x-GZIP"]), Some(Some(Encoding::Gzip)));
        assert_eq!(of(&["identity, deflate"]), Some(Some(Encoding::Deflate)));
        for unknown in [&["br"][..], &["gzip, gzip"], &["gzip", "deflate"], &["gzip;q=1"]] {
            assert_eq!(of(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn what_is_compressed_comes_back_and_nothing_else_does() {
        let text = "what is said again and again, ".repeat(1000).into_bytes();
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let small = encoding.deflate(&text).expect("large enough");
            assert!(small.len() < text.len() / 10);
            let inflate = |bytes: &[u8], limit| encoding.inflate(bytes, limit);
            assert_eq!(inflate(&small, text.len()).expect("within the limit"), text);
            let status = |bytes: &[u8], limit| inflate(bytes, limit).expect_err("not within it").status.as_u16();
            assert_eq!(status(&small, text.len() - 1), 413);
            assert_eq!(status(&[&small[..], b"x"].concat(), text.len()), 400);
            assert_eq!(status(&small[..small.len() - 1], text.len()), 400);
            assert_eq!(status(b"", text.len()), 400);
            assert_eq!(status(&text, text.len()), 400);
            assert_eq!(encoding.deflate(&text[..LEAST - 1]), None, "it is small");
        }
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(4096).collect();
        assert_eq!(Encoding::Gzip.deflate(&noise), None, "it would not become smaller");
    }
}
