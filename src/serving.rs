//! What is served now, and its one swap.
//!
//! A request takes one [`Snapshot`] and answers everything from it: state, model and version headers belong together.
//! Everything that can fail or take time happened before: bodies and headers are prepared, models are warm.
#![expect(clippy::disallowed_types, reason = "the one swap")]

pub mod batch;
pub mod compute;
pub mod layout;
pub mod live;
pub mod statistics;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hotserve_models::{DataType, Dim, InferError, Model, Signature, Tensor};
use http::HeaderValue;
use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::sync::watch;

use crate::id::{Digest, Format, ModelName, Rank, Slot, StateKey};
use batch::Batches;
use layout::Layout;
use live::Typed;
use statistics::Statistics;

/// Requests that cost less are computed where they are answered: moving one to another thread costs some tens of µs.
pub const INLINE_COST: Duration = Duration::from_micros(200);

/// The immutable whole of what is served.
#[derive(Default)]
pub struct Snapshot {
    /// Counts the swaps since the start of the process.
    pub generation: u64,
    /// Every state, by key.
    pub states: HashMap<StateKey, Arc<ServedState>>,
    /// Every model, by name.
    pub models: HashMap<ModelName, Arc<ServedModel>>,
    /// The models that are not there for a moment, because their next version does not fit beside them.
    pub reloading: HashSet<ModelName>,
    /// What each model replaced, for as long as it is kept warm: this does not keep it.
    previous: HashMap<ModelName, Weak<ServedModel>>,
}

impl Snapshot {
    /// The next generation, with some contents replaced. Cheap: the maps hold pointers.
    pub fn with(&self, states: Vec<ServedState>, models: Vec<ServedModel>) -> Self {
        let mut next = self.next();
        next.reloading.retain(|name| models.iter().all(|model| model.facts.name != *name));
        next.states.extend(states.into_iter().map(|state| (state.key.clone(), Arc::new(state))));
        models.into_iter().for_each(|model| next.put(Arc::new(model)));
        next
    }

    /// The next generation, with a model that was served before, and may be still.
    pub fn with_again(&self, model: Arc<ServedModel>) -> Self {
        let mut next = self.next();
        next.reloading.remove(&model.facts.name);
        next.put(model);
        next
    }

    fn put(&mut self, model: Arc<ServedModel>) {
        let name = &model.facts.name;
        if let Some(before) = self.models.get(name).filter(|before| !Arc::ptr_eq(before, &model)) {
            self.previous.insert(name.clone(), Arc::downgrade(before));
        }
        self.models.insert(name.clone(), model);
    }

    /// The next generation, with nothing in a slot.
    pub fn without(&self, slot: &Slot) -> Self {
        let mut next = self.next();
        match slot {
            Slot::State(key) => drop(next.states.remove(key)),
            Slot::Model(name) => {
                next.models.remove(name);
                next.reloading.remove(name);
                next.previous.remove(name);
            }
        }
        next
    }

    /// The next generation, without a model, which is to come back.
    pub fn reloading(&self, name: &ModelName) -> Self {
        let mut next = self.next();
        if next.models.remove(name).is_some() {
            next.reloading.insert(name.clone());
        }
        next
    }

    fn next(&self) -> Self {
        Self {
            generation: self.generation + 1,
            states: self.states.clone(),
            models: self.models.clone(),
            reloading: self.reloading.clone(),
            previous: self.previous.clone(),
        }
    }

    /// The state of a key.
    pub fn state(&self, key: &str) -> Option<&Arc<ServedState>> {
        self.states.get(key)
    }

    /// The model of a name.
    pub fn model(&self, name: &str) -> Option<&Arc<ServedModel>> {
        self.models.get(name)
    }

    /// The model that the one of this name replaced, while it is kept warm.
    pub fn previous(&self, name: &str) -> Option<Arc<ServedModel>> {
        self.previous.get(name)?.upgrade().filter(|model| !model.retired.load(Ordering::Relaxed))
    }
}

/// A state, with its answer prepared.
pub struct ServedState {
    /// Its slot.
    pub key: StateKey,
    /// What put it there.
    pub rank: Rank,
    /// The body of the answer: `{"state":…}`.
    pub body: Bytes,
    /// A strong entity tag of the body, quotes included.
    pub etag: HeaderValue,
    /// The value of `x-state-version`.
    pub version: HeaderValue,
    /// When its producer published it.
    pub published_at: Option<Timestamp>,
    /// When it was prepared for serving here.
    pub applied_at: SystemTime,
    /// The state as the type that a host wants of its key, if it does.
    pub typed: Option<Typed>,
}

impl ServedState {
    /// Prepares a state's answer.
    pub fn new(key: StateKey, rank: Rank, json: &RawValue, published_at: Option<Timestamp>) -> Self {
        let body: Bytes = [b"{\"state\":", json.get().as_bytes(), b"}"].concat().into();
        let etag = header(&format!("\"{}\"", &Digest::of(&body).to_string()[..32]));
        let (version, applied_at) = (header(&rank.to_string()), SystemTime::now());
        Self { key, version, rank, body, etag, published_at, applied_at, typed: None }
    }

    /// The same, and what it is to its host.
    #[must_use]
    pub fn with_typed(self, typed: Option<Typed>) -> Self {
        Self { typed, ..self }
    }
}

/// A model, with everything about its answers prepared.
pub struct ServedModel {
    /// What it is.
    pub facts: ModelFacts,
    /// The model itself.
    pub model: Box<dyn Model>,
    /// What one row costs, measured at warm-up: decides where a request is computed.
    pub row_cost: Duration,
    /// When it was prepared for serving here.
    pub applied_at: SystemTime,
    /// The values of `x-model-name`, `x-model-version` and `x-model-digest`.
    pub headers: ModelHeaders,
    /// What follows the predictions in an answer: `,"model":{…}}`.
    pub answer_tail: Bytes,
    /// Whether the signature [is plain](is_plain).
    pub plain: bool,
    /// Where the names in a body belong.
    pub layout: Layout,
    /// The requests for it that wait to be answered together, where that is cheaper.
    pub batches: Batches,
    /// What it has answered since it was made ready.
    pub statistics: Statistics,
    /// Whether it is to be freed as soon as nobody holds it.
    retired: AtomicBool,
}

/// A model's headers, ready to be sent.
pub struct ModelHeaders {
    /// `x-model-name`
    pub name: HeaderValue,
    /// `x-model-version`
    pub version: HeaderValue,
    /// `x-model-digest`
    pub digest: HeaderValue,
}

/// What is known of a model besides the model.
#[derive(Clone)]
pub struct ModelFacts {
    /// Its slot.
    pub name: ModelName,
    /// What put it there.
    pub rank: Rank,
    /// A person's name for the version.
    pub label: Option<String>,
    /// Which kind of model.
    pub format: Format,
    /// The digest of the artifact, as it lay in the store.
    pub digest: Digest,
    /// The size of the artifact in bytes, as it lay in the store.
    pub size: u64,
    /// When its producer published it.
    pub published_at: Option<Timestamp>,
}

impl ServedModel {
    /// Prepares a warm model's answers.
    pub fn new(facts: ModelFacts, model: Box<dyn Model>, row_cost: Duration) -> Self {
        let ModelFacts { name, rank, digest, .. } = &facts;
        let version = match rank.version() {
            Some(version) => version.to_string(),
            // A sequence number is no JSON number.
            None => format!("\"{rank}\""),
        };
        let answer_tail = format!(",\"model\":{{\"name\":\"{name}\",\"version\":{version}}}}}").into();
        let headers = ModelHeaders {
            name: header(name.as_str()),
            version: header(&rank.to_string()),
            digest: header(&format!("sha256:{digest}")),
        };
        let (plain, layout) = (is_plain(model.signature()), Layout::of(model.signature()));
        Self {
            facts,
            model,
            row_cost,
            applied_at: SystemTime::now(),
            headers,
            answer_tail,
            plain,
            layout,
            batches: Batches::of(1),
            statistics: Statistics::default(),
            retired: AtomicBool::new(false),
        }
    }

    /// The same, with so many rows answered together at most.
    #[must_use]
    pub fn with_batches(self, rows: usize) -> Self {
        Self { batches: Batches::of(rows), ..self }
    }

    /// Asks the model on this thread. The outputs have passed its signature, a row for each that was asked.
    pub fn ask(&self, inputs: &[Tensor], rows: usize) -> Result<Vec<Tensor>, ModelFault> {
        // A model holds no state between calls, so that a panic leaves nothing half done.
        let outputs = catch_unwind(AssertUnwindSafe(|| self.model.infer(inputs)))
            .map_err(|_| ModelFault::Failed("the model panicked".to_owned()))?
            .map_err(|error| match error {
                InferError::BadInput(detail) => ModelFault::BadInput(detail),
                error => ModelFault::Failed(error.to_string()),
            })?;
        match self.model.signature().check_outputs(&outputs) {
            Ok(answered) if answered == rows => Ok(outputs),
            Ok(answered) => Err(ModelFault::Failed(format!("{answered} rows came out of {rows}"))),
            Err(error) => Err(ModelFault::Failed(error.to_string())),
        }
    }

    /// Nobody gets hold of it anew, but who has it from a snapshot goes on.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

/// Why a model gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelFault {
    /// The input does not fit: the caller's mistake.
    #[error("{0}")]
    BadInput(String),
    /// The model failed on an input that fits.
    #[error("{0}")]
    Failed(String),
}

/// Whether a model takes rows of floats and nothing else, by names, if any, that differ and stand in JSON as they are.
pub fn is_plain(signature: &Signature) -> bool {
    let [spec] = signature.inputs.as_slice() else { return false };
    let names = &spec.features;
    let fits = match spec.shape.as_slice() {
        [_, Dim::Fixed(width)] => names.is_empty() || names.len() == *width,
        [_, Dim::Any] => true,
        _ => false,
    };
    let unescaped = |name: &String| name.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\');
    let mut seen = HashSet::new();
    fits && matches!(spec.datatype, DataType::Fp32 | DataType::Fp64)
        && names.iter().all(|name| unescaped(name) && seen.insert(name))
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("names, versions, digests and tags are visible ASCII")
}

/// The readers' side: one load a request.
pub struct Serving {
    current: Arc<ArcSwap<Snapshot>>,
    swaps: watch::Receiver<u64>,
}

/// The writer's side. There is one, and it cannot be cloned: one writer.
pub struct Swapper {
    current: Arc<ArcSwap<Snapshot>>,
    swaps: watch::Sender<u64>,
}

impl Serving {
    /// Begins with this snapshot.
    pub fn new(initial: Snapshot) -> (Arc<Self>, Swapper) {
        let (sender, swaps) = watch::channel(initial.generation);
        let current = Arc::new(ArcSwap::from_pointee(initial));
        (Arc::new(Self { current: Arc::clone(&current), swaps }), Swapper { current, swaps: sender })
    }

    /// What is served now. Take it once a request and pass it down.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Changes after each swap, to its generation: for who waits for one. Mark it as seen, then take the snapshot, then
    /// wait, and no swap is missed.
    pub fn swaps(&self) -> watch::Receiver<u64> {
        self.swaps.clone()
    }
}

impl Swapper {
    /// What is served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Serves this from now on, and answers what was served before. Cannot fail.
    pub fn swap(&self, next: Snapshot) -> Arc<Snapshot> {
        let generation = next.generation;
        let before = self.current.swap(Arc::new(next));
        self.swaps.send_replace(generation);
        before
    }
}
