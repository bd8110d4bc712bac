//! `GET /events`: the history as it happens, as server-sent events.
//!
//! ```text
//! id: 42
//! event: applied
//! data: {"id":42,"at":"…","outcome":"applied","slots":["model fraud"],"versions":["12"],…}
//! ```
//!
//! With `?pulse` it also says, once a second, how the server does: see [`pulse`](super::pulse).
//!
//! A client has no queue here: its stream remembers what it has sent, and takes what came after from the history when
//! the client has read so far. One that was too slow, or away for too long, is told so by an event `gap`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::sleep;

use super::Http;
use super::problem::Problem;
use crate::status::{Line, Readiness};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How many clients may listen: each is a connection for as long as it likes.
pub(super) const CLIENTS: usize = 256;
/// How often a client hears something, so that no proxy between takes the connection for dead.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How many entries are written at once.
const BATCH: usize = 32;

/// Everything that happens from now on, or since the entry whose id the client names.
pub(super) async fn events(State(http): State<Arc<Http>>, request: Request) -> Result<Response, Problem> {
    let seen = last_event_id(request.headers())?;
    let place = Arc::clone(&http.listeners).try_acquire_owned().map_err(|_| {
        let detail = format!("{CLIENTS} clients listen already: ask /history, or another instance");
        Problem::unavailable("too_many_listeners", detail)
    })?;
    let query = request.uri().query().unwrap_or_default();
    let pulse = query.split('&').any(|field| field.split('=').next() == Some("pulse"));
    let client = Client::new(Arc::clone(&http), seen, pulse, place);
    let frames = stream::unfold(client, |mut client| async move {
        let frame = client.next().await?;
        Some((Ok::<_, Infallible>(frame), client))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Nginx would keep events until it has a buffer full.
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let given = headers.get(LAST_EVENT_ID).map(HeaderValue::as_bytes).filter(|id| !id.is_empty());
    let Some(given) = given else { return Ok(None) };
    let id = std::str::from_utf8(given).ok().and_then(|id| id.parse().ok());
    id.map(Some).ok_or_else(|| {
        let detail = "Last-Event-ID is the id of an entry of /history: a number, 0 for all that is kept";
        Problem::new(StatusCode::BAD_REQUEST, "bad_last_event_id", detail)
    })
}

/// One listener.
struct Client {
    http: Arc<Http>,
    news: watch::Receiver<()>,
    /// The seconds as they end, for one that wants them.
    pulse: Option<watch::Receiver<Bytes>>,
    /// The newest entry that was sent.
    seen: u64,
    /// What is said before the first entry.
    first: VecDeque<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Client {
    fn new(http: Arc<Http>, seen: Option<u64>, pulse: bool, place: OwnedSemaphorePermit) -> Self {
        let (news, newest) = (http.status.news(), http.status.newest());
        // A client that was cut comes back after two seconds.
        let mut first = VecDeque::from([Bytes::from_static(b"retry: 2000\n\n")]);
        // Listened to before the seconds until now are read: none is missed.
        let pulse = pulse.then(|| http.pulse.listen());
        if pulse.is_some() {
            first.extend(http.pulses_before());
        }
        let seen = seen.unwrap_or(newest);
        let seen = if seen <= newest {
            seen
        } else {
            // The ids have begun anew: without a cache folder they do at every start.
            first.push_back(gap(seen).into());
            0
        };
        Self { http, news, pulse, seen, first, _place: place }
    }

    /// What is to be sent next; nothing when the server shuts down.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        loop {
            self.news.borrow_and_update();
            // Asked first: what was noted before the draining is still sent.
            let draining = self.http.status.readiness() == Readiness::Draining;
            let lines = self.http.status.after(self.seen, BATCH);
            if let Some(last) = lines.last() {
                let text = render(self.seen, &lines);
                self.seen = last.id;
                return Some(text.into());
            }
            if draining {
                // Whoever listens to the pulse hears why it ends.
                return self.pulse.take().map(|_| self.http.pulse_now());
            }
            let (news, pulse) = (&mut self.news, &mut self.pulse);
            let second = async {
                let Some(pulse) = pulse else { return pending().await };
                match pulse.changed().await {
                    Ok(()) => pulse.borrow_and_update().clone(),
                    Err(_) => pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = news.changed() => changed.ok()?,
                second = second => return Some(second),
                () = sleep(HEARTBEAT) => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }
}

fn render(mut seen: u64, lines: &[Arc<Line>]) -> String {
    let mut text = String::new();
    for line in lines {
        if line.id > seen.saturating_add(1) {
            text.push_str(&gap(seen));
        }
        seen = line.id;
        // Writing to a String cannot fail.
        let _ = write!(text, "id: {}\nevent: {}\ndata: {}\n\n", line.id, line.outcome, line.json);
    }
    text
}

/// Something after this id is not known here any more; `/models` says what is served.
fn gap(after: u64) -> String {
    format!("event: gap\ndata: {{\"after\":{after}}}\n\n")
}
