//! hotserve within another program: its parts chosen, its states typed, its models dressed.

use std::process::ExitCode;
use std::sync::Arc;

use hotserve_models::{InferError, Loader, Loaders, Processing, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Adapters, Boards, Error, Hotserve, States};
use crate::aws::{Aws, Endpoints};
use crate::config::{self, Program, Settings};
use crate::id::StateKey;
use crate::manager::probe;
use crate::serving::live::Live;
use crate::source::Source;
use crate::store::Store;

/// What the settings call the stream of a source that is the host's own.
const OWN_STREAM: &str = "own-source";

/// Makes a [`Hotserve`] for a program that embeds it.
///
/// ```no_run
/// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// let mut builder = hotserve::Builder::from_env()?;
/// let prices = builder.state::<Vec<f64>>("prices", [1.0, 1.08])?;
/// let hotserve = builder.build().await?;
///
/// let first = axum::routing::get(async move || prices.get()[0].to_string());
/// let app = axum::Router::new().route("/first", first).merge(hotserve.router());
/// let running = hotserve.start();
/// running.ready_within(std::time::Duration::from_secs(60)).await?;
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
/// running.serve(listener, app, async { tokio::signal::ctrl_c().await.unwrap_or_default() }).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
#[must_use = "it makes nothing before it is built"]
pub struct Builder {
    settings: Settings,
    loaders: Option<Loaders>,
    states: States,
    source: Option<Box<dyn Source>>,
    store: Option<Arc<dyn Store>>,
    endpoints: Option<Endpoints>,
    program: Option<Program>,
}

impl Builder {
    /// With these settings, and nothing from the environment but what AWS clients read there.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// With the settings that the environment and its file (`HOTSERVE_CONFIG`) give to `hotserve serve`.
    pub fn from_env() -> Result<Self, Error> {
        Ok(Self::new(Settings::from_env()?))
    }

    /// With these settings where there are none yet: what was given before wins, as the environment over the code.
    pub fn or(mut self, settings: Settings) -> Self {
        self.settings = self.settings.or(settings);
        self
    }

    /// Adds a kind of model to those that there are; one of the same format is replaced.
    pub fn loader(mut self, loader: impl Loader + 'static) -> Self {
        self.loaders_mut().register(loader);
        self
    }

    /// Does this with the inputs of the model of this name, before they meet it. The model is warmed, checked against its
    /// golden cases and measured with it. See [`Processing`].
    pub fn before(
        self,
        model: &str,
        step: impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>, InferError> + Send + Sync + 'static,
    ) -> Self {
        self.process(Some(model), Processing::default().before(step))
    }

    /// Does this with the outputs of the model of this name; else as [`before`](Self::before).
    pub fn after(
        self,
        model: &str,
        step: impl Fn(Vec<Tensor>) -> Result<Vec<Tensor>, InferError> + Send + Sync + 'static,
    ) -> Self {
        self.process(Some(model), Processing::default().after(step))
    }

    /// Steps around the model of this name, or around all models, that may take other inputs and give other outputs than
    /// the model itself.
    pub fn process(mut self, model: Option<&str>, processing: Processing) -> Self {
        self.loaders_mut().process(model, processing);
        self
    }

    /// Follows this instead of a Kinesis stream.
    pub fn source(self, source: impl Source + 'static) -> Self {
        Self { source: Some(Box::new(source)), ..self }
    }

    /// Gets what lies at `s3://` from this instead of S3.
    pub fn store(self, store: impl Store + 'static) -> Self {
        Self { store: Some(Arc::new(store)), ..self }
    }

    /// Uses Kinesis and S3 at these endpoints, and not those that the environment says.
    pub fn endpoints(self, endpoints: Endpoints) -> Self {
        Self { endpoints: Some(endpoints), ..self }
    }

    /// Tries new models in this program instead of the one that runs. It calls [`probe_child`](Self::probe_child) too.
    pub fn probe_program(self, program: Program) -> Self {
        Self { program: Some(program), ..self }
    }

    /// Wants every state of this key to be a `T`, and begins with the given one. It is served at `/state/{key}` too, with
    /// the version 0, and any message replaces it.
    ///
    /// A message that is no `T` is refused (`state_type`). For a state that may be missing at first, `T` is an `Option`,
    /// and the initial one `()`, which is `null`. The default key begins with `--initial-state` where that is set.
    pub fn state<T>(&mut self, key: &str, initial: impl Serialize) -> Result<Live<T>, Error>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        let fault = |problem| Error::State { key: key.to_owned(), problem };
        let name: StateKey = key.parse().map_err(|error: crate::id::Invalid| fault(error.to_string()))?;
        let set = self.settings.initial_state.as_ref().filter(|_| name == StateKey::default());
        let initial = match set {
            Some(text) => serde_json::from_str(text),
            None => serde_json::value::to_raw_value(&initial),
        };
        let initial = initial.map_err(|error| fault(format!("its initial value: {error}")))?;
        self.states.live(&name, &initial)
    }

    /// Does a probe's work, if this process was started as one: then `main` returns the exit code and does nothing else.
    /// To be called first in `main`, when the loaders and the steps around models are known to the builder.
    ///
    /// Who calls it has new models tried in a child process; without it they are tried in a thread, where one that
    /// crashes takes the program with it, which is said in the log. See [`probe::child`].
    #[must_use = "a probe returns the exit code from main, and does nothing else"]
    pub fn probe_child(&self) -> Option<ExitCode> {
        probe::child(self.loaders.as_ref().unwrap_or(&Loaders::bundled()))
    }

    /// Makes all parts; nothing runs yet.
    pub async fn build(self) -> Result<Hotserve, Error> {
        let Self { mut settings, loaders, mut states, source, store, endpoints, program } = self;
        if source.is_some() {
            settings.stream.get_or_insert_with(|| OWN_STREAM.to_owned());
        }
        let mut config = settings.validate()?;
        config.gates.isolation.program = program;
        if source.is_some() && config.manifest.is_some() {
            let problem = "the manifest is of a Kinesis stream, and this program has a source of its own";
            return Err(config::Error::new("--manifest (HOTSERVE_MANIFEST)", problem).into());
        }
        let default = StateKey::default();
        if !states.initial.contains_key(&default) {
            states.begin_with(&default, &config.initial_state)?;
        }

        let boards = Boards::default();
        let loaders = loaders.unwrap_or_else(Loaders::bundled);
        let adapters = match (source, store) {
            (Some(source), Some(s3)) => Adapters { source, s3, loaders },
            (source, store) => {
                let aws = match endpoints {
                    // Large futures, once, and the host's own are not to grow by them.
                    Some(endpoints) => Box::pin(Aws::at(endpoints)).await,
                    None => Box::pin(Aws::from_env()).await,
                };
                let source = source.unwrap_or_else(|| Adapters::stream(&aws, &config, &boards));
                Adapters { source, s3: store.unwrap_or_else(|| Adapters::s3(&aws)), loaders }
            }
        };
        // It waits for disks and for a child process; the host's threads may have requests to answer.
        tokio::task::spawn_blocking(move || Hotserve::new(config, adapters, boards, states))
            .await
            .map_err(std::io::Error::other)?
    }

    fn loaders_mut(&mut self) -> &mut Loaders {
        self.loaders.get_or_insert_with(Loaders::bundled)
    }
}
