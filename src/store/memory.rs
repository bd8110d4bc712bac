//! A store in memory: for embedding, and for tests that need no socket.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::{Body, Error, Opening, Store};
use crate::notification::ArtifactUri;

/// Objects by URI.
#[derive(Default)]
pub struct MemoryStore {
    objects: Mutex<HashMap<String, Bytes>>,
}

impl MemoryStore {
    /// Puts an object in its place.
    pub fn put(&self, uri: &ArtifactUri, bytes: impl Into<Bytes>) {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).insert(uri.to_string(), bytes.into());
    }
}

impl Store for MemoryStore {
    fn open<'a>(&'a self, uri: &'a ArtifactUri, _version_id: Option<&'a str>) -> Opening<'a> {
        let uri = uri.to_string();
        let object = self.objects.lock().unwrap_or_else(PoisonError::into_inner).get(&uri).cloned();
        Box::pin(async move {
            let bytes = object.ok_or(Error::NotFound { uri, detail: "no such object in memory".to_owned() })?;
            Ok(Body { length: Some(bytes.len() as u64), chunks: stream::iter([Ok(bytes)]).boxed() })
        })
    }
}
