//! `/v2/repository`: what there is, and commands to serve a model no more, or again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::problem::Problem;
use super::super::{Admin, Http, admin};
use super::infer::body_in_time;
use super::models::{Named, answer};
use crate::id::{ModelName, Slot};
use crate::manager::{Denied, Done, Progress};
use crate::notification::{Action, Control};
use crate::status::Absence;

/// The largest body, in bytes: a few parameters.
const BODY: usize = 16 << 10;
/// How often who waits for a model looks whether it is still being loaded.
const LOOK: Duration = Duration::from_millis(250);

/// One version of a model, as the index has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    pub name: String,
    /// The version, where there is one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    pub state: &'static str,
    /// Why it is not ready, for a person.
    pub reason: String,
}

/// What there is, sorted by name; or only what is ready.
pub fn rows(http: &Http, only_ready: bool) -> Vec<Row> {
    let (snapshot, absent) = (http.serving.snapshot(), http.status.absent());
    let mut rows: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for (name, model) in &snapshot.models {
        let previous = snapshot.previous(name.as_str());
        let row = |version: String| Row { name: name.to_string(), version, state: "READY", reason: String::new() };
        let versions = [Some(model), previous.as_ref()].into_iter().flatten();
        rows.insert(name.to_string(), versions.map(|model| row(model.facts.rank.to_string())).collect());
    }
    let row = |name: &ModelName, state: &'static str, reason: &str| Row {
        name: name.to_string(),
        version: String::new(),
        state,
        reason: reason.to_owned(),
    };
    for name in &snapshot.reloading {
        let reason = "it is being replaced by a version that does not fit beside it";
        rows.entry(name.to_string()).or_insert_with(|| vec![row(name, "LOADING", reason)]);
    }
    for (slot, absence) in &absent {
        let Slot::Model(name) = slot else { continue };
        let row = match absence {
            Absence::Loading => row(name, "LOADING", "it is being made ready"),
            Absence::Unloaded => row(name, "UNAVAILABLE", "unloaded by an operator; load serves the newest again"),
        };
        rows.entry(name.to_string()).or_insert_with(|| vec![row]);
    }
    rows.into_values().flatten().filter(|row| !only_ready || row.state == "READY").collect()
}

/// A body that may be empty.
#[derive(Default, Deserialize)]
struct Query {
    ready: Option<bool>,
    parameters: Option<BTreeMap<String, Box<RawValue>>>,
}

async fn query(http: &Http, request: Request) -> Result<Query, Problem> {
    let deadline = Instant::now() + http.config.request_timeout;
    let body = body_in_time(http, deadline, request.into_body(), BODY).await?;
    if body.is_empty() {
        return Ok(Query::default());
    }
    serde_json::from_slice(&body).map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, "bad_json", format!("the body is empty or an object: {error}"))
    })
}

/// Which models and versions there are.
pub(super) async fn index(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let query = query(&http, request).await?;
    Ok(answer(rows(&http, query.ready == Some(true))))
}

/// Serves the newest of a model again.
pub(super) async fn load(State(http): State<Arc<Http>>, named: Named, request: Request) -> Response {
    command(&http, &named, Action::Load, request).await
}

/// Serves a model no more.
pub(super) async fn unload(State(http): State<Arc<Http>>, named: Named, request: Request) -> Response {
    command(&http, &named, Action::Unload, request).await
}

/// Commands are taken at another port.
pub(super) async fn elsewhere() -> Problem {
    let detail = "loading and unloading are taken at the address of --admin-listen or --ops-listen";
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

async fn command(http: &Http, named: &Named, action: Action, request: Request) -> Response {
    use axum::response::IntoResponse as _;
    match may(http, request.headers(), request.extensions()) {
        Err(refused) => *refused,
        Ok(admin) => {
            let told = async {
                let query = query(http, request).await?;
                if matches!(action, Action::Load) && query.parameters.is_some_and(|given| !given.is_empty()) {
                    let detail = "a model is loaded as it was published: load takes no parameters";
                    return Err(Problem::new(StatusCode::BAD_REQUEST, "unsupported", detail));
                }
                tell(http, admin, &named.model, action).await
            };
            told.await.map(|()| answer(BTreeMap::<(), ()>::new())).into_response()
        }
    }
}

/// Who may tell the manager: whoever presents the token, or has shown a certificate.
pub fn may<'h>(
    http: &'h Http,
    headers: &http::HeaderMap,
    extensions: &http::Extensions,
) -> Result<&'h Admin, Box<Response>> {
    use axum::response::IntoResponse as _;
    let Some(admin) = &http.admin else {
        let detail = "loading and unloading are off: start the server with --admin-token-file or \
                      HOTSERVE_ADMIN_TOKEN, and send Authorization: Bearer TOKEN";
        return Err(Box::new(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).into_response()));
    };
    if admin.may(headers, extensions) { Ok(admin) } else { Err(Box::new(admin.unauthorized(headers))) }
}

/// Tells the manager, and waits until it is so. What will not be so is refused as soon as that is known.
pub async fn tell(http: &Http, admin: &Admin, model: &str, action: Action) -> Result<(), Problem> {
    let deadline = Instant::now() + http.config.request_timeout;
    let name: ModelName = model.parse().map_err(|_| {
        let model: String = model.chars().take(64).collect();
        Problem::new(StatusCode::NOT_FOUND, "no_slot", format!("there is no model {model:?}"))
    })?;
    let slot = Slot::Model(name);
    let command = || async {
        let told = admin.handle.control(Control { slot: slot.clone(), action }).await;
        told.map_err(|denied| admin::problem(&denied))
    };
    let told = async {
        match action {
            Action::Load => served(http, &slot, command).await,
            _ => command().await.map(drop),
        }
    };
    timeout_at(deadline, told).await.map_err(|_| {
        let detail = "the command was given, and what becomes of it is not known yet: look at the index";
        Problem::unavailable("timeout", detail)
    })?
}

/// Gives the command to load, and waits until the model is served, or it is known that it will not be.
pub(in crate::http) async fn served<F>(http: &Http, slot: &Slot, command: impl Fn() -> F) -> Result<(), Problem>
where
    F: Future<Output = Result<Done, Problem>>,
{
    let refused = |code, detail: String| Problem::new(StatusCode::CONFLICT, code, detail);
    let is_served = || matches!(slot, Slot::Model(name) if http.serving.snapshot().model(name.as_str()).is_some());
    let (mut swaps, mut news) = (http.serving.swaps(), http.status.news());
    loop {
        swaps.borrow_and_update();
        news.borrow_and_update();
        // Given again it changes nothing, and the answer says what has become of it: the board alone does not, between
        // one candidate and the next. Who unloads the model at this very moment came before.
        let done = command().await?;
        let nothing = done.serving.is_none();
        match done.progress {
            _ if is_served() => return Ok(()),
            Progress::Waiting if nothing => {
                let detail = format!("{slot} is pinned to a version that is not here: it is served when that comes");
                return Err(refused("not_here", detail));
            }
            Progress::Done if nothing => {
                let detail = format!("there is nothing that can be served as {slot}: /history tells why");
                return Err(refused("nothing_to_serve", detail));
            }
            Progress::Waiting | Progress::Done => return Ok(()),
            Progress::Loading => {}
        }
        loop {
            let goes_on = tokio::select! {
                changed = swaps.changed() => changed.is_ok(),
                changed = news.changed() => changed.is_ok(),
                // Not everything is news: what fails again for the same reason is told once.
                () = sleep(LOOK) => true,
            };
            if is_served() {
                return Ok(());
            }
            if !goes_on {
                return Err(admin::problem(&Denied::Stopping));
            }
            match http.status.absent().get(slot) {
                Some(Absence::Loading) => {}
                Some(Absence::Unloaded) => {
                    return Err(refused("unloaded", format!("{slot} was unloaded while it was being loaded")));
                }
                None => break,
            }
        }
    }
}
