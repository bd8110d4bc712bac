//! The states that there are before any message, and what states must be.

use std::any::type_name;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Error;
use crate::id::{Rank, StateKey};
use crate::serving::live::{Live, StateTypes};
use crate::serving::{ServedState, Serving, Snapshot, Swapper};

/// What is served before anything runs. It can be read from the beginning.
pub(super) struct States {
    pub(super) serving: Arc<Serving>,
    pub(super) swapper: Swapper,
    pub(super) types: StateTypes,
    pub(super) initial: BTreeMap<StateKey, Box<RawValue>>,
}

impl Default for States {
    fn default() -> Self {
        let (serving, swapper) = Serving::new(Snapshot::default());
        Self { serving, swapper, types: StateTypes::default(), initial: BTreeMap::new() }
    }
}

impl States {
    /// The slot of this key, whose states are to be a `T`, as the first one is.
    pub(super) fn live<T>(&mut self, key: &StateKey, initial: &RawValue) -> Result<Live<T>, Error>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let fault = |problem| Error::State { key: key.to_string(), problem };
        self.types.want::<T>(key).map_err(|other| fault(format!("it is a {other} already")))?;
        // Asked for twice, it began already.
        let initial = match self.serving.snapshot().states.get(key) {
            Some(begun) => Arc::clone(begun),
            None => self.begin_with(key, initial)?,
        };
        let is_none = || fault(format!("it was there before it was to be a {}", type_name::<T>()));
        Live::new(Arc::clone(&self.serving), initial).ok_or_else(is_none)
    }

    /// The slot of this key begins with this state.
    pub(super) fn begin_with(&mut self, key: &StateKey, json: &RawValue) -> Result<Arc<ServedState>, Error> {
        let fault = |problem| Error::State { key: key.to_string(), problem };
        let typed = self.types.parse(key, json).map_err(|problem| fault(format!("its initial value: {problem}")))?;
        let state = ServedState::new(key.clone(), Rank::Initial, json, None).with_typed(typed);
        self.swapper.swap(self.swapper.snapshot().with(vec![state], vec![]));
        self.initial.insert(key.clone(), json.to_owned());
        let state = self.swapper.snapshot().states.get(key).cloned();
        Ok(state.expect("it was swapped in by the one writer"))
    }
}
