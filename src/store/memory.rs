//! A store in memory: for embedding, and for tests that need no socket.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::{Body, Error, Opening, Request, Store};
use crate::id::Digest;
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
    fn open<'a>(&'a self, request: Request<'a>) -> Opening<'a> {
        let uri = request.uri.to_string();
        let object = self.objects.lock().unwrap_or_else(PoisonError::into_inner).get(&uri).cloned();
        Box::pin(async move {
            let Some(mut bytes) = object else {
                return Err(Error::NotFound { uri, detail: "no such object in memory".to_owned() });
            };
            let (length, tag) = (bytes.len() as u64, Digest::of(&bytes).to_string());
            if request.resume.is_some_and(|resume| resume.tag != tag) {
                return Err(Error::Changed { uri });
            }
            let from = request.resume.map_or(0, |resume| resume.from).min(length);
            let rest = bytes.split_off(usize::try_from(from).unwrap_or(bytes.len()));
            Ok(Body { from, length: Some(length), tag: Some(tag), chunks: stream::iter([Ok(rest)]).boxed() })
        })
    }
}
