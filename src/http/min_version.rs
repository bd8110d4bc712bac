//! `x-min-version`: an answer from a version that is new enough, so that who has published something reads it.
//!
//! A request that has the header waits, if it must, for the swap that brings the version; others pay nothing.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::Http;
use super::problem::Problem;
use crate::config::HumanDuration;
use crate::id::{Invalid, Rank, Slot, Version};
use crate::serving::Snapshot;

/// The least version that the answer may come from.
pub(super) const MIN_VERSION: HeaderName = HeaderName::from_static("x-min-version");
/// How long to wait for it: `500ms`, `0s`.
pub(super) const WAIT: HeaderName = HeaderName::from_static("x-min-version-wait");

/// How many requests may wait: each wakes at every swap, and holds a connection and a body.
pub(super) const WAITERS: usize = 1024;

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct MinVersion {
    version: Version,
    wait: Duration,
}

impl MinVersion {
    /// Reads the headers; most requests have none.
    pub(super) fn is_asked(headers: &HeaderMap) -> bool {
        headers.contains_key(&MIN_VERSION)
    }

    pub(super) fn of(headers: &HeaderMap, http: &Http) -> Result<Option<Self>, Problem> {
        let Some(version) = only(headers, &MIN_VERSION)? else { return Ok(None) };
        let version = version.parse().map_err(|error: Invalid| bad(format!("{MIN_VERSION}: {error}")))?;
        let wait = match only(headers, &WAIT)? {
            None => http.config.min_version_wait,
            Some(text) => text.parse::<HumanDuration>().map_err(|error| bad(format!("{WAIT}: {error}")))?.0,
        };
        Ok(Some(Self { version, wait }))
    }

    /// Takes the first snapshot in which the slot has the version. `find` looks the slot up. A snapshot without it is
    /// for the caller to answer, once there is no more time to wait.
    pub(super) async fn snapshot(
        self,
        http: &Http,
        deadline: Instant,
        find: impl Fn(&Snapshot) -> Option<(Slot, Rank)>,
    ) -> Result<Arc<Snapshot>, Problem> {
        // A wait that no clock can hold is one until the deadline.
        let until = Instant::now().checked_add(self.wait).map_or(deadline, |until| until.min(deadline));
        let mut over = until <= Instant::now();
        let mut swaps = http.serving.swaps();
        let mut place = None;
        loop {
            swaps.borrow_and_update();
            let snapshot = http.serving.snapshot();
            match find(&snapshot) {
                Some((_, rank)) if rank.version().is_some_and(|version| version >= self.version) => {
                    return Ok(snapshot);
                }
                Some((slot, rank)) if over => return Err(self.not_served(&slot, &rank)),
                None if over => return Ok(snapshot),
                _ => {}
            }
            // Nothing that is replaced meanwhile is held while it waits.
            drop(snapshot);
            if place.is_none() {
                let waits = http.waiters.try_acquire().map_err(|_| {
                    let detail = format!("{WAITERS} requests wait for a version already: send the request again");
                    Problem::unavailable("overloaded", detail)
                })?;
                // It takes no place of those that have something to do.
                place = Some((waits, http.metrics.in_flight.wait()));
            }
            // Over too when nobody swaps any more.
            over = !matches!(timeout_at(until, swaps.changed()).await, Ok(Ok(())));
        }
    }

    fn not_served(self, slot: &Slot, served: &Rank) -> Problem {
        let wanted = self.version;
        let detail = match served.version() {
            Some(version) => format!("{slot} is served in version {version}, and version {wanted} was asked for"),
            None => format!("{slot} is served without a version, and version {wanted} was asked for"),
        };
        let problem = Problem::new(StatusCode::PRECONDITION_FAILED, "version_not_served", detail);
        Problem { served: Some(served.into()), ..problem }
    }
}

/// The value of a header that comes once, if at all.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| bad(format!("{name} is no text"))),
        (Some(_), Some(_)) => Err(bad(format!("{name} comes more than once"))),
    }
}

fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_min_version", detail)
}
