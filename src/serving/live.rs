//! States as the host's own types: parsed once, at the gate, and read by its handlers without a copy.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::panic::catch_unwind;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::{ServedState, Serving, Snapshot};
use crate::id::{Rank, StateKey};

/// A state as its host's type.
pub type Typed = Arc<dyn Any + Send + Sync>;

/// What the states of some keys must be. A state of any other key may be anything.
#[derive(Clone, Default)]
pub struct StateTypes(HashMap<StateKey, StateType>);

#[derive(Clone, Copy)]
struct StateType {
    id: TypeId,
    name: &'static str,
    parse: fn(&RawValue) -> Result<Typed, String>,
}

impl StateTypes {
    /// Wants states of this key to be a `T`. Answers the name of the type that they must be already, if it is another.
    pub fn want<T: DeserializeOwned + Send + Sync + 'static>(&mut self, key: &StateKey) -> Result<(), &'static str> {
        let wanted = StateType { id: TypeId::of::<T>(), name: std::any::type_name::<T>(), parse: parse::<T> };
        let found = *self.0.entry(key.clone()).or_insert(wanted);
        if found.id == wanted.id { Ok(()) } else { Err(found.name) }
    }

    /// The state as the type that is wanted of its key, if one is; else what is wrong, and where in it.
    pub fn parse(&self, key: &StateKey, json: &RawValue) -> Result<Option<Typed>, String> {
        let Some(wanted) = self.0.get(key) else { return Ok(None) };
        let parsed = catch_unwind(|| (wanted.parse)(json)).unwrap_or_else(|_| Err("reading it panicked".to_owned()));
        parsed.map(Some).map_err(|error| format!("state {key} is no {}: {error}", wanted.name))
    }
}

fn parse<T: DeserializeOwned + Send + Sync + 'static>(json: &RawValue) -> Result<Typed, String> {
    let mut reader = serde_json::Deserializer::from_str(json.get());
    let value: T = serde_path_to_error::deserialize(&mut reader).map_err(|error| match error.path().to_string() {
        path if path == "." => error.inner().to_string(),
        path => format!("at {path}: {}", error.inner()),
    })?;
    Ok(Arc::new(value))
}

/// A state slot, read as a `T`.
///
/// A message that is no `T` is refused (`state_type`, in `/history` with the place of the fault), as if it had failed
/// any other gate: a handler never sees it. What is more than a type should be held to is told by serde too, for example
/// with `#[serde(try_from = "…")]`.
///
/// A read costs a few atomic operations and the look-up of the key; the state was parsed when its message came. Cheap to
/// clone, and to be kept in the host's own axum state.
pub struct Live<T> {
    serving: Arc<Serving>,
    key: StateKey,
    /// What is read where the slot is empty: all that it had was revoked.
    initial: Current<T>,
}

/// One content of a state slot: the value with its version. It stays what it is when the slot is replaced.
pub struct Current<T> {
    state: Arc<ServedState>,
    value: Arc<T>,
}

/// Waits for the next content of a state slot.
pub struct Watch<T> {
    live: Live<T>,
    swaps: watch::Receiver<u64>,
    seen: Current<T>,
}

impl<T: Send + Sync + 'static> Live<T> {
    /// The slot of this key, whose states have the type `T`; nothing if this one has not.
    pub(crate) fn new(serving: Arc<Serving>, initial: Arc<ServedState>) -> Option<Self> {
        let value = typed(&initial)?;
        Some(Self { serving, key: initial.key.clone(), initial: Current { state: initial, value } })
    }

    /// What is served now.
    pub fn get(&self) -> Current<T> {
        self.of(&self.serving.snapshot())
    }

    /// What a snapshot holds: several states and models of one request belong together if they are read from one.
    ///
    /// The snapshot is one of the same server's; of another one's the answer is the initial state.
    pub fn of(&self, snapshot: &Snapshot) -> Current<T> {
        let state = snapshot.states.get(&self.key);
        let current = state.and_then(|state| Some(Current { value: typed(state)?, state: Arc::clone(state) }));
        current.unwrap_or_else(|| self.initial.clone())
    }

    /// Follows the slot from here on.
    pub fn watch(&self) -> Watch<T> {
        // First the mark, then the look: no swap is missed.
        let mut swaps = self.serving.swaps();
        swaps.mark_unchanged();
        Watch { swaps, seen: self.get(), live: self.clone() }
    }

    /// The slot's key.
    pub fn key(&self) -> &StateKey {
        &self.key
    }
}

fn typed<T: Send + Sync + 'static>(state: &ServedState) -> Option<Arc<T>> {
    Arc::clone(state.typed.as_ref()?).downcast().ok()
}

impl<T: Send + Sync + 'static> Watch<T> {
    /// The next content that is served; nothing once the server has stopped. Of several that came meanwhile it is the
    /// newest. May be dropped before it is done, and nothing is missed.
    pub async fn changed(&mut self) -> Option<Current<T>> {
        loop {
            let now = self.live.get();
            if !Arc::ptr_eq(&now.state, &self.seen.state) {
                self.seen = now.clone();
                return Some(now);
            }
            self.swaps.changed().await.ok()?;
        }
    }
}

impl<T> Current<T> {
    /// What put it there: the producer's version, or a place in the stream. `to_string` says it as `x-state-version` does.
    pub fn rank(&self) -> &Rank {
        &self.state.rank
    }

    /// The producer's version; nothing where the message had none, and for the initial state.
    pub fn version(&self) -> Option<u64> {
        self.state.rank.version().map(crate::id::Version::get)
    }

    /// The state as it is served at `/state/{key}`.
    pub fn state(&self) -> &ServedState {
        &self.state
    }

    /// The value alone.
    pub fn into_value(self) -> Arc<T> {
        self.value
    }
}

impl<T> Deref for Current<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), value: Arc::clone(&self.value) }
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self { serving: Arc::clone(&self.serving), key: self.key.clone(), initial: self.initial.clone() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("rank", &self.state.rank).field("value", &self.value).finish()
    }
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Version;
    use crate::serving::Swapper;

    #[derive(serde::Deserialize)]
    struct Prices {
        eur: f64,
    }

    fn state(types: &StateTypes, version: Option<u64>, json: &str) -> Result<ServedState, String> {
        let key: StateKey = "prices".parse().expect("a key");
        let json = RawValue::from_string(json.to_owned()).expect("JSON");
        let rank = version.map_or(Rank::Initial, |version| Rank::Version(Version::try_from(version).expect("small")));
        let typed = types.parse(&key, &json)?;
        Ok(ServedState::new(key, rank, &json, None).with_typed(typed))
    }

    fn live(types: &mut StateTypes) -> (Live<Prices>, Swapper) {
        let (serving, swapper) = Serving::new(Snapshot::default());
        types.want::<Prices>(&"prices".parse().expect("a key")).expect("the first");
        let initial = Arc::new(state(types, None, r#"{"eur": 1}"#).expect("it fits"));
        (Live::new(serving, initial).expect("of its type"), swapper)
    }

    #[tokio::test]
    async fn a_live_state_is_the_one_that_is_served_and_a_watch_meets_the_newest() {
        let mut types = StateTypes::default();
        let (live, swapper) = live(&mut types);
        assert_eq!((live.get().eur, live.get().version()), (1.0, None));
        let mut watch = live.watch();
        let before = live.get();
        for version in [2, 3] {
            let next = state(&types, Some(version), &format!(r#"{{"eur": {version}}}"#)).expect("it fits");
            swapper.swap(swapper.snapshot().with(vec![next], vec![]));
        }
        assert_eq!((live.get().eur, live.get().version()), (3.0, Some(3)));
        assert_eq!(before.eur, 1.0, "what was read stays what it was");
        assert_eq!(watch.changed().await.map(|prices| prices.eur), Some(3.0));
        // A swap of another slot is no news.
        swapper.swap(swapper.snapshot().with(vec![], vec![]));
        let gone = tokio::spawn(async move { watch.changed().await.is_none() });
        drop(swapper);
        assert!(gone.await.expect("no panic"));
    }

    #[test]
    fn what_is_no_t_is_told_with_its_place_and_a_reader_that_panics_is_too() {
        #[derive(Debug)]
        struct Panics;
        impl<'de> serde::Deserialize<'de> for Panics {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                panic!("on purpose")
            }
        }
        let key: StateKey = "prices".parse().expect("a key");
        let mut types = StateTypes::default();
        types.want::<HashMap<String, Vec<u8>>>(&key).expect("the first");
        assert!(types.want::<HashMap<String, Vec<u8>>>(&key).is_ok(), "the same again");
        assert!(types.want::<u8>(&key).is_err_and(|name| name.contains("HashMap")));
        let fault = state(&types, None, r#"{"eur": [1, 256]}"#).err().expect("too large");
        assert!(fault.contains("at eur[1]: ") && fault.contains("256"), "{fault}");
        let fault = state(&types, None, "7").err().expect("no map");
        assert!(fault.contains(">: invalid type: integer `7`"), "{fault}");

        let mut types = StateTypes::default();
        types.want::<Panics>(&key).expect("the first");
        assert!(state(&types, None, "7").err().expect("a panic").contains("panicked"));
    }

    #[test]
    fn where_a_slot_is_empty_the_initial_state_is_read() {
        let (live, swapper) = live(&mut StateTypes::default());
        swapper.swap(Snapshot::default());
        assert_eq!(live.get().eur, 1.0);
    }
}
