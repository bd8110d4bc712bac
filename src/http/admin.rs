//! `POST /admin/control`: an operator tells a slot what to serve.
//!
//! The body is a [`Control`], as a message has it. Without a token among the settings there is no such path.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::{Instant, timeout_at};

use super::Http;
use super::listener::ClientCertificate;
use super::problem::Problem;
use super::upload::read;
use crate::config::Token;
use crate::manager::{Denied, Done, Handle, Progress};
use crate::notification::Control;

/// The largest command, in bytes: a slot, an action and a digest.
const BODY: usize = 16 << 10;
/// What a command may have. Messages may have fields that an older server does not know; here a misspelt `version` would
/// roll back to another one.
const FIELDS: &[&str] = &["action", "model", "key", "version", "sha256"];

/// Who may give commands, and the way to the manager.
pub struct Admin {
    /// What must be presented, where no certificate is shown. Without one, a certificate is all that helps.
    pub token: Option<Token>,
    /// Whom to tell.
    pub handle: Handle,
}

/// Tells a slot what to serve, and answers what became of it.
pub(super) async fn control(State(http): State<Arc<Http>>, request: Request) -> Response {
    match &http.admin {
        // The route is there only with it.
        None => super::not_found().await.into_response(),
        Some(admin) if !admin.may(request.headers(), request.extensions()) => admin.unauthorized(request.headers()),
        Some(admin) => command(&http, admin, request).await.into_response(),
    }
}

async fn command(http: &Http, admin: &Admin, request: Request) -> Result<Response, Problem> {
    let deadline = Instant::now() + http.config.request_timeout;
    let body = timeout_at(deadline, read(&http.bodies, request.into_body(), BODY))
        .await
        .map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive in time"))??;
    let control = parse(&body)?;
    let outcome = timeout_at(deadline, admin.handle.control(control)).await.map_err(|_| {
        let detail = "the command was given, and what became of it is not known yet: look at /history";
        Problem::unavailable("timeout", detail)
    })?;
    outcome.map(answer).map_err(|denied| problem(&denied))
}

pub(super) fn answer(done: Done) -> Response {
    let status = match done.progress {
        Progress::Done => StatusCode::OK,
        Progress::Loading | Progress::Waiting => StatusCode::ACCEPTED,
    };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(done)).into_response()
}

fn parse(body: &[u8]) -> Result<Control, Problem> {
    let bad = |error: String| {
        let detail = format!("{error}; a command is {{\"action\":\"rollback\",\"model\":\"fraud\",\"version\":11}}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_control", detail)
    };
    // First as what it is, which also refuses a field that comes twice.
    let control: Control = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    let fields: serde_json::Map<_, _> = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    match fields.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        None => Ok(control),
        Some(field) => {
            let field: String = field.chars().take(64).collect();
            Err(bad(format!("no field {field:?}: there are {}", FIELDS.join(", "))))
        }
    }
}

pub(super) fn problem(denied: &Denied) -> Problem {
    let (code, detail) = (denied.code(), denied.to_string());
    match denied {
        Denied::NoSlot(_) => Problem::new(StatusCode::NOT_FOUND, code, detail),
        Denied::Disk(_) | Denied::Stopping => Problem { retry: false, ..Problem::unavailable(code, detail) },
        _ => Problem::new(StatusCode::CONFLICT, code, detail),
    }
}

/// Whether a browser sends the request for a page from elsewhere: Fetch Metadata says so, and where that is missing, the
/// origin does.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, host)| host) != text("host"),
        (None, None) => false,
    }
}

impl Admin {
    /// Whether a request presents the token, or its client has shown a certificate of who may. Either is enough.
    pub(super) fn may(&self, headers: &HeaderMap, extensions: &Extensions) -> bool {
        // A browser shows its certificate for every page that asks, a token it gives to none.
        if let Some(ClientCertificate(digest)) = extensions.get()
            && !is_of_another_site(headers)
        {
            tracing::info!(certificate = &**digest, "a command from who has shown a certificate");
            return true;
        }
        let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let presented = presented.and_then(|value| value.split_once(' '));
        self.token.as_ref().is_some_and(|token| {
            presented
                .is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && token.is(given.trim_start()))
        })
    }

    /// RFC 6750: which scheme, and whether there was a token that is wrong.
    pub(super) fn unauthorized(&self, headers: &HeaderMap) -> Response {
        let (challenge, detail) = match (&self.token, headers.get(header::AUTHORIZATION)) {
            // There is no scheme for it.
            (None, _) => (None, "commands need a client certificate of --tls-client-ca; this server has no token"),
            (_, None) => {
                (Some("Bearer realm=\"hotserve\""), "commands need the token: send Authorization: Bearer TOKEN")
            }
            (_, Some(_)) => {
                (Some("Bearer realm=\"hotserve\", error=\"invalid_token\""), "this is not the server's token")
            }
        };
        let mut response = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).into_response();
        if let Some(challenge) = challenge {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}
