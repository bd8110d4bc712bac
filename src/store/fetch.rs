//! From a location to an artifact: allowed? cached? else fetched, as often as it takes within a deadline.
//!
//! What came of a torn transfer is gone on with, on the condition that the object is still the same one. The deadline is
//! for time in which nothing comes of it: bytes that are here extend it by what they may take at the least rate.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, Semaphore};

use super::directory::DirectoryStore;
use super::download::{Download, Expected, Pace};
use super::retry::{Backoff, Budget};
use super::{Artifact, Cache, Error, Request, Resume, Store};
use crate::config::{AllowedPrefix, StoreConfig};
use crate::id::Digest;
use crate::metrics::Metrics;
use crate::notification::{ArtifactUri, Location};

/// How long an object may be missing: S3 is consistent, but a replica in another region lags.
const MISSING: Duration = Duration::from_secs(30);
/// How long an object may be denied, or said to be elsewhere: a policy takes seconds to spread, a new bucket's name too.
const DENIED: Duration = Duration::from_secs(5);
/// The time in which enough bytes must come, and the longest one without an answer.
const WINDOW: Duration = Duration::from_secs(30);

/// How many artifacts are on their way at the same time.
const FETCHES: usize = 4;

/// Gets artifacts.
pub struct Fetcher {
    s3: Arc<dyn Store>,
    files: DirectoryStore,
    cache: Arc<Cache>,
    config: StoreConfig,
    metrics: Arc<Metrics>,
    fetches: Semaphore,
    /// Who fetches a digest holds its lock: whoever wants it too waits, and finds it in the cache.
    flights: Mutex<HashMap<Digest, Arc<AsyncMutex<()>>>>,
    budget: Budget,
}

/// What is to be fetched.
#[derive(Clone, Copy)]
struct Goal<'a> {
    uri: &'a ArtifactUri,
    version_id: Option<&'a str>,
    expected: Expected,
}

impl Fetcher {
    /// A fetcher that reads `s3://` from this store, and `file://` where the configuration allows it.
    pub fn new(s3: Arc<dyn Store>, cache: Arc<Cache>, config: StoreConfig, metrics: Arc<Metrics>) -> Self {
        let roots = config.allow.iter().filter_map(AllowedPrefix::folder).map(PathBuf::from).collect();
        Self {
            s3,
            files: DirectoryStore::new(roots),
            cache,
            config,
            metrics,
            fetches: Semaphore::new(FETCHES),
            flights: Mutex::default(),
            budget: Budget::default(),
        }
    }

    /// Whether an artifact may come from there.
    pub fn check_allowed(&self, uri: &ArtifactUri) -> Result<(), Error> {
        let text = uri.to_string();
        let unrestricted = self.config.allow.is_empty() && matches!(uri, ArtifactUri::S3 { .. });
        if unrestricted || self.config.allow.iter().any(|prefix| prefix.covers(&text)) {
            Ok(())
        } else {
            Err(Error::Forbidden { uri: text })
        }
    }

    /// Gets the artifact at a location. Dropping the future abandons it, and leaves nothing behind.
    pub async fn fetch(&self, location: &Location) -> Result<Artifact, Error> {
        let (uri, version_id, sha256, size) = match location {
            Location::Inline(bytes) => return self.insert(bytes),
            Location::Uri { uri, version_id, sha256, size } => (uri, version_id.as_deref(), *sha256, *size),
        };
        self.check_allowed(uri)?;
        let flight = sha256.map(|digest| self.flight(digest));
        let _alone = match &flight {
            Some(flight) => Some(flight.lock().await),
            None => None,
        };
        if let Some(artifact) = sha256.and_then(|digest| self.cache.get(digest, size)) {
            self.metrics.artifact_cache.get(&["hit"]).increment(1);
            return Ok(artifact);
        }
        self.metrics.artifact_cache.get(&["miss"]).increment(1);
        let expected = Expected { sha256, size, max: self.config.max_artifact };
        self.pursue(Goal { uri, version_id, expected }).await
    }

    fn insert(&self, bytes: &[u8]) -> Result<Artifact, Error> {
        if bytes.len() as u64 > self.config.max_artifact {
            return Err(Error::Size { expected: self.config.max_artifact, got: bytes.len() as u64 });
        }
        match self.cache.insert(bytes) {
            Err(Error::Disk { .. }) if self.cache.make_room() => self.cache.insert(bytes),
            done => done,
        }
    }

    fn flight(&self, digest: Digest) -> Arc<AsyncMutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody but the map has those that ended.
        flights.retain(|_, flight| Arc::strong_count(flight) > 1);
        Arc::clone(flights.entry(digest).or_default())
    }

    /// Tries until it is here, or there is no use in trying, or the deadline has passed.
    async fn pursue(&self, goal: Goal<'_>) -> Result<Artifact, Error> {
        if let Some(size) = goal.expected.size.filter(|size| *size > goal.expected.max) {
            return Err(Error::Size { expected: goal.expected.max, got: size });
        }
        let mut download = None;
        let mut backoff = Backoff::default();
        let mut begun = Instant::now();
        let (mut changed, mut wrong) = (false, false);
        loop {
            let torn = self.attempt(goal, &mut download).await.err();
            // With all bytes here, whatever else went wrong: the digest says whether they are the right ones.
            let is_whole = |download: &mut Download<'_>| match &torn {
                None => true,
                Some(error) => error.is_transient() && download.is_complete(),
            };
            let error = match (download.take_if(is_whole), torn) {
                (Some(whole), _) => match whole.finish() {
                    Ok(artifact) => return Ok(artifact),
                    Err(error) => error,
                },
                (None, Some(error)) => error,
                (None, None) => Error::Unavailable { detail: "nothing came".to_owned() },
            };
            let from_the_start = match &error {
                Error::Changed { .. } if !changed => {
                    changed = true;
                    true
                }
                // Not garbled on the way: the object is another one now.
                Error::Digest { .. } | Error::Size { .. } if changed => {
                    return Err(Error::Changed { uri: goal.uri.to_string() });
                }
                // Once more: a transfer can garble, and a proxy can answer with a page of its own. An object with other
                // bytes stays what it is.
                Error::Digest { .. } | Error::Size { .. } if !wrong => {
                    wrong = true;
                    true
                }
                Error::Disk { .. } => self.cache.make_room(),
                _ => false,
            };
            let pause = backoff.pause().max(self.budget.take(Instant::now()));
            if from_the_start {
                download = None;
                begun = Instant::now();
            }
            let got = download.as_ref().map_or(0, Download::got);
            if !from_the_start && begun.elapsed() + pause > self.patience(&error, got) {
                return Err(error);
            }
            self.metrics.artifact_fetch_retries.increment(1);
            tracing::debug!(uri = %goal.uri, error = %error, got, "artifact not fetched; trying again");
            tokio::time::sleep(pause).await;
        }
    }

    /// How long an error may last, with so many bytes here.
    fn patience(&self, error: &Error, got: u64) -> Duration {
        let deadline = self.config.fetch_deadline;
        match error {
            Error::NotFound { .. } => MISSING.min(deadline),
            Error::Denied { .. } | Error::Redirected { .. } => DENIED.min(deadline),
            error if error.is_transient() => {
                let earned = got.checked_div(self.config.min_fetch_rate).unwrap_or_default();
                deadline.saturating_add(Duration::from_secs(earned))
            }
            _ => Duration::ZERO,
        }
    }

    /// Gets what is missing of a download, or all of a new one.
    async fn attempt<'a>(&'a self, goal: Goal<'_>, download: &mut Option<Download<'a>>) -> Result<(), Error> {
        // For this attempt alone: one that cannot be had and is waited for keeps nobody else waiting.
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let store: &dyn Store = match goal.uri {
            ArtifactUri::S3 { .. } => &*self.s3,
            ArtifactUri::File { .. } => &self.files,
        };
        let resume = download.as_ref().and_then(|here| Some(Resume { from: here.got(), tag: here.tag()? }));
        let request = Request { uri: goal.uri, version_id: goal.version_id, resume };
        let opened = tokio::time::timeout(WINDOW, store.open(request)).await;
        let opened = opened.map_err(|_| Error::Unavailable { detail: format!("no answer came for {WINDOW:?}") });
        let opened = opened.and_then(|opened| opened);
        if matches!(goal.uri, ArtifactUri::S3 { .. }) {
            match &opened {
                Err(error) if error.is_transient() || matches!(error, Error::Denied { .. }) => {
                    self.metrics.artifact_store.lost(error.code(), error.to_string());
                }
                _ => self.metrics.artifact_store.made(),
            }
        }
        let body = opened?;
        if resume.is_some_and(|resume| body.tag.as_deref().is_some_and(|tag| tag != resume.tag)) {
            return Err(Error::Changed { uri: goal.uri.to_string() });
        }
        if body.from > 0 {
            self.metrics.artifact_fetch_resumes.increment(1);
        } else {
            // The first bytes, or once more those of an object that cannot be gone on with.
            *download = None;
        }
        let download = match download {
            Some(download) => download,
            None => download.insert(Download::begin(&self.cache, goal.expected)?),
        };
        let window = WINDOW.min(self.config.fetch_deadline).max(Duration::from_secs(1));
        let pace = Pace { window, bytes_per_second: self.config.min_fetch_rate };
        download.append(body, pace, |bytes| self.metrics.artifact_fetch_bytes.increment(bytes as u64)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn fetcher(allow: &[&str], objects: &[(&str, &'static [u8])]) -> Fetcher {
        let store = MemoryStore::default();
        for (uri, bytes) in objects {
            store.put(&uri.parse().expect("a uri"), *bytes);
        }
        let config = StoreConfig {
            cache_dir: None,
            allow: allow.iter().map(|prefix| prefix.parse().expect("a prefix")).collect(),
            max_artifact: 1000,
            fetch_deadline: Duration::from_millis(250),
            min_fetch_rate: 1,
        };
        let cache = Arc::new(Cache::open(None).expect("a temporary folder"));
        Fetcher::new(Arc::new(store), cache, config, Metrics::new())
    }

    fn at(uri: &str, bytes: &[u8]) -> Location {
        Location::Uri {
            uri: uri.parse().expect("a uri"),
            version_id: None,
            sha256: Some(Digest::of(bytes)),
            size: Some(bytes.len() as u64),
        }
    }

    #[tokio::test]
    async fn places_that_are_not_allowed_are_not_asked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("in")).expect("writable");
        for (name, bytes) in [("in/model", "abc"), ("secret", "xyz")] {
            std::fs::write(folder.path().join(name), bytes).expect("writable");
        }
        std::os::unix::fs::symlink(folder.path().join("secret"), folder.path().join("in/link")).expect("writable");
        let inside = format!("file://{}/in", folder.path().display());
        let objects: &[(&str, &'static [u8])] = &[("s3://models/a", b"abc"), ("s3://others/a", b"abc")];
        let code = async |allow: &[&str], location: Location| {
            fetcher(allow, objects).fetch(&location).await.map(|_| "ok").unwrap_or_else(|error| error.code())
        };
        assert_eq!(code(&[], at("s3://others/a", b"abc")).await, "ok");
        assert_eq!(code(&["s3://models"], at("s3://models/a", b"abc")).await, "ok");
        assert_eq!(code(&["s3://models"], at("s3://others/a", b"abc")).await, "forbidden_uri");
        assert_eq!(code(&[], at(&format!("{inside}/model"), b"abc")).await, "forbidden_uri");
        assert_eq!(code(&[&inside], at(&format!("{inside}/model"), b"abc")).await, "ok");
        assert_eq!(code(&[&inside], at(&format!("{inside}/link"), b"xyz")).await, "forbidden_uri");
    }

    #[tokio::test]
    async fn a_digest_that_is_here_already_is_not_fetched_again() {
        let fetcher = fetcher(&[], &[("s3://models/a", b"abc")]);
        fetcher.fetch(&at("s3://models/a", b"abc")).await.expect("there");
        fetcher.fetch(&at("s3://models/gone", b"abc")).await.expect("in the cache");
        assert_eq!(
            fetcher.fetch(&at("s3://models/gone", b"abd")).await.map_err(|error| error.code()).err(),
            Some("not_found")
        );
    }
}
