//! An artifact on its way: what came of it so far, and what it must be in the end.

use std::io::Write as _;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{Artifact, Body, Cache, Error};
use crate::failpoint;
use crate::id::Digest;

/// What a fetched artifact must be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Its digest, if announced.
    pub sha256: Option<Digest>,
    /// Its size, if announced.
    pub size: Option<u64>,
    /// The largest size allowed.
    pub max: u64,
}

/// How fast bytes must come.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The time in which there must be enough of them.
    pub window: Duration,
    /// How many there must be a second; 0 asks for one byte in the window.
    pub bytes_per_second: u64,
}

/// The bytes that are here already, hashed as they came. Dropping it leaves nothing behind.
pub struct Download<'a> {
    cache: &'a Cache,
    expected: Expected,
    file: NamedTempFile,
    hasher: Sha256,
    got: u64,
    tag: Option<String>,
    length: Option<u64>,
}

impl<'a> Download<'a> {
    /// Begins one.
    pub fn begin(cache: &'a Cache, expected: Expected) -> Result<Self, Error> {
        let file = cache.incoming()?;
        Ok(Self { cache, expected, file, hasher: Sha256::new(), got: 0, tag: None, length: None })
    }

    /// How many bytes are here.
    pub fn got(&self) -> u64 {
        self.got
    }

    /// The tag of the content whose bytes are here, if it can be gone on with.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref().filter(|_| self.got > 0)
    }

    /// Whether all bytes are here that the store promised: to ask for more is no use.
    pub fn is_complete(&self) -> bool {
        self.length == Some(self.got)
    }

    /// Takes in a body to its end. What came before an error stays, to go on behind it.
    pub async fn append(&mut self, mut body: Body, pace: Pace, mut progress: impl FnMut(usize)) -> Result<(), Error> {
        if body.from != self.got {
            let (from, got) = (body.from, self.got);
            return Err(Error::Unavailable { detail: format!("asked for what is behind byte {got}, given {from}") });
        }
        let Expected { size, max, .. } = self.expected;
        let most = size.unwrap_or(max).min(max);
        if let Some(length) = body.length
            && (length > most || size.is_some_and(|size| size != length))
        {
            return Err(Error::Size { expected: most, got: length });
        }
        (self.tag, self.length) = (body.tag.take(), body.length);
        let (mut begun, mut recent) = (Instant::now(), 0_u64);
        loop {
            if begun.elapsed() >= pace.window {
                pace.check(recent, begun.elapsed())?;
                (begun, recent) = (Instant::now(), 0);
            }
            let rest = pace.window.saturating_sub(begun.elapsed());
            let chunk = match tokio::time::timeout(rest, body.chunks.next()).await {
                Ok(Some(chunk)) => chunk?,
                Ok(None) => break,
                Err(_) => continue,
            };
            if self.got + chunk.len() as u64 > most {
                return Err(Error::Size { expected: most, got: self.got + chunk.len() as u64 });
            }
            self.hasher.update(&chunk);
            failpoint::hit_in_the_middle_of("cache.fetch.half_written", &mut self.file, &chunk);
            self.file.write_all(&chunk).map_err(Error::disk("write an artifact"))?;
            self.got += chunk.len() as u64;
            recent += chunk.len() as u64;
            progress(chunk.len());
        }
        match self.length {
            Some(length) if self.got < length => {
                Err(Error::Unavailable { detail: format!("the object ended after {} bytes", self.got) })
            }
            _ => Ok(()),
        }
    }

    /// Keeps it if it is what it must be.
    pub fn finish(self) -> Result<Artifact, Error> {
        if let Some(size) = self.expected.size.filter(|size| *size != self.got) {
            return Err(Error::Size { expected: size, got: self.got });
        }
        let digest = Digest::finish(self.hasher);
        match self.expected.sha256 {
            Some(expected) if expected != digest => Err(Error::Digest { expected, got: digest }),
            _ => self.cache.keep(self.file, digest, self.got),
        }
    }
}

impl Pace {
    fn check(self, bytes: u64, time: Duration) -> Result<(), Error> {
        let least = u128::from(self.bytes_per_second) * self.window.as_millis() / 1000;
        match bytes {
            0 => Err(Error::Unavailable { detail: format!("no byte came for {time:.0?}") }),
            _ if u128::from(bytes) < least => Err(Error::Slow { bytes, seconds: time.as_secs() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::stream;

    const PACE: Pace = Pace { window: Duration::from_secs(30), bytes_per_second: 100 };

    fn body(from: u64, chunks: &[&'static str], length: Option<u64>) -> Body {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes()))).collect();
        Body { from, length, tag: Some("a tag".to_owned()), chunks: stream::iter(chunks).boxed() }
    }

    fn expect(sha256: Option<Digest>, size: Option<u64>) -> Expected {
        Expected { sha256, size, max: 100 }
    }

    async fn whole(cache: &Cache, body: Body, expected: Expected) -> Result<Artifact, Error> {
        let mut download = Download::begin(cache, expected)?;
        download.append(body, PACE, |_| {}).await?;
        download.finish()
    }

    #[tokio::test]
    async fn only_the_announced_bytes_are_kept() {
        let cache = Cache::open(None).expect("a temporary folder");
        let abc = Digest::of(b"abc");
        let artifact = whole(&cache, body(0, &["a", "bc"], Some(3)), expect(Some(abc), Some(3))).await.expect("good");
        assert_eq!((artifact.digest(), artifact.size()), (abc, 3));
        assert_eq!(artifact.read().expect("readable"), &b"abc"[..]);
        assert!(cache.get(abc, Some(3)).is_some());
        assert!(cache.get(abc, Some(4)).is_none());

        for (chunks, length, expected, code) in [
            (&["abd"][..], None, expect(Some(abc), Some(3)), "digest"),
            (&["abcd"], None, expect(Some(abc), Some(3)), "size"),
            (&["ab"], None, expect(Some(abc), Some(3)), "size"),
            (&["abc"], Some(4), expect(Some(abc), Some(3)), "size"),
            (&["ab"], Some(3), expect(Some(abc), Some(3)), "unavailable"),
            (&["0123456789"; 11], None, expect(None, None), "size"),
        ] {
            let error = whole(&cache, body(0, chunks, length), expected).await.expect_err(code);
            assert_eq!(error.code(), code, "{chunks:?} {length:?} {expected:?}: {error}");
        }
        let left = std::fs::read_dir(cache.root().join("incoming")).expect("readable").count();
        assert_eq!(left, 0, "what was refused leaves no file");
    }

    #[tokio::test]
    async fn a_torn_body_is_gone_on_with_behind_what_came() {
        let cache = Cache::open(None).expect("a temporary folder");
        let expected = expect(Some(Digest::of(b"abcdef")), Some(6));
        let mut download = Download::begin(&cache, expected).expect("room");
        assert_eq!(download.tag(), None, "nothing is here to go on with");
        let torn = download.append(body(0, &["ab", "c"], Some(6)), PACE, |_| {}).await;
        assert_eq!(torn.map_err(|error| error.code()), Err("unavailable"));
        assert_eq!((download.got(), download.tag()), (3, Some("a tag")));
        let elsewhere = download.append(body(2, &["cdef"], Some(6)), PACE, |_| {}).await;
        assert_eq!(elsewhere.map_err(|error| error.code()), Err("unavailable"), "a gap or an overlap is no rest");
        download.append(body(3, &["def"], Some(6)), PACE, |_| {}).await.expect("the rest");
        assert_eq!(download.finish().expect("good").read().expect("readable"), &b"abcdef"[..]);
    }

    #[tokio::test]
    async fn a_trickle_and_a_silence_are_told_apart_and_both_end() {
        let cache = Cache::open(None).expect("a temporary folder");
        let trickle = |piece: &'static [u8]| {
            let chunks = stream::unfold((), move |()| async move {
                std::thread::sleep(Duration::from_millis(2));
                Some((Ok(Bytes::from_static(piece)), ()))
            });
            Body { from: 0, length: None, tag: None, chunks: chunks.boxed() }
        };
        let silence = Body { from: 0, length: None, tag: None, chunks: stream::pending().boxed() };
        let pace = Pace { window: Duration::from_millis(50), bytes_per_second: 1_000_000 };
        for (body, expected) in [(trickle(b"a"), "slow"), (trickle(&[b'a'; 50]), "slow"), (silence, "unavailable")] {
            let limits = Expected { sha256: None, size: None, max: u64::MAX };
            let mut download = Download::begin(&cache, limits).expect("room");
            let error = download.append(body, pace, |_| {}).await.expect_err(expected);
            assert_eq!(error.code(), expected, "{error}");
        }
    }
}
