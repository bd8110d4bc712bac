//! From a location to an artifact: allowed? cached? else fetched, as often as it takes within a deadline.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::cache::Expected;
use super::directory::DirectoryStore;
use super::{Artifact, Cache, Error, Store};
use crate::config::{AllowedPrefix, StoreConfig};
use crate::metrics::Metrics;
use crate::notification::{ArtifactUri, Location};

/// How long an object may be missing: S3 is consistent, but a replica in another region lags.
const MISSING: Duration = Duration::from_secs(30);
/// How long an object may be denied: a policy takes seconds to spread.
const DENIED: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

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
}

impl Fetcher {
    /// A fetcher that reads `s3://` from this store, and `file://` where the configuration allows it.
    pub fn new(s3: Arc<dyn Store>, cache: Arc<Cache>, config: StoreConfig, metrics: Arc<Metrics>) -> Self {
        let roots = config.allow.iter().filter_map(AllowedPrefix::folder).map(PathBuf::from).collect();
        Self { s3, files: DirectoryStore::new(roots), cache, config, metrics, fetches: Semaphore::new(FETCHES) }
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
            Location::Inline(bytes) if bytes.len() as u64 > self.config.max_artifact => {
                return Err(Error::Size { expected: self.config.max_artifact, got: bytes.len() as u64 });
            }
            Location::Inline(bytes) => return self.cache.insert(bytes),
            Location::Uri { uri, version_id, sha256, size } => (uri, version_id.as_deref(), *sha256, *size),
        };
        self.check_allowed(uri)?;
        if let Some(artifact) = sha256.and_then(|digest| self.cache.get(digest, size)) {
            self.metrics.artifact_cache.get(&["hit"]).increment(1);
            return Ok(artifact);
        }
        self.metrics.artifact_cache.get(&["miss"]).increment(1);
        let expected = Expected { sha256, size, max: self.config.max_artifact };
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut wrong_bytes = 0;
        loop {
            let error = match self.attempt(uri, version_id, expected).await {
                Ok(artifact) => return Ok(artifact),
                Err(error) => error,
            };
            let patience = match &error {
                Error::NotFound { .. } => MISSING.min(self.config.fetch_deadline),
                Error::Denied { .. } => DENIED.min(self.config.fetch_deadline),
                // Once more: a transfer can garble, but an object with other bytes stays what it is.
                Error::Digest { .. } if wrong_bytes == 0 => {
                    wrong_bytes += 1;
                    self.config.fetch_deadline
                }
                error if error.is_transient() => self.config.fetch_deadline,
                _ => Duration::ZERO,
            };
            if begun.elapsed() + pause > patience {
                return Err(error);
            }
            self.metrics.artifact_fetch_retries.increment(1);
            tracing::debug!(%uri, error = %error, "artifact not fetched; trying again");
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(
        &self,
        uri: &ArtifactUri,
        version_id: Option<&str>,
        expected: Expected,
    ) -> Result<Artifact, Error> {
        // For this attempt alone: one that cannot be had and is waited for keeps nobody else waiting.
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let store: &dyn Store = match uri {
            ArtifactUri::S3 { .. } => &*self.s3,
            ArtifactUri::File { .. } => &self.files,
        };
        let body = store.open(uri, version_id).await?;
        self.cache.fetch(body, expected, |bytes| self.metrics.artifact_fetch_bytes.increment(bytes as u64)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Digest;
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
