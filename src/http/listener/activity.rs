//! What a connection is doing: waiting for a request, reading its head, or answering it.
//!
//! The transport, the requests and the watch of one connection write it down for each other, without a lock and without
//! a clock on the way of a request. Each connection has a line of memory of its own for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// The longest time to the first byte of a connection, or to the preface of HTTP/2.
const SILENT: Duration = Duration::from_secs(30);
/// The longest time for which an answer waits for a client that reads nothing of it.
const STALLED: Duration = Duration::from_secs(30);
/// What is worth to be put together before it is written, in bytes.
const SMALL: usize = 1 << 10;
/// How HTTP/2 begins, as far as that tells it from every method of HTTP/1.
const PREFACE: &[u8; 5] = b"PRI *";

/// What one connection is doing.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU32,
    ended: AtomicU32,
    /// Bytes have come that are no whole head yet. Of HTTP/1 alone.
    head: AtomicBool,
    http2: AtomicBool,
    /// The socket takes no more of an answer.
    blocked: AtomicBool,
    /// How often it has taken some again.
    taken: AtomicU32,
    /// How many bytes it has taken since answers say that the connection closes.
    went: AtomicU32,
    /// How many answers wait for the client to take more of them. Of HTTP/2 alone, where the socket may be free and the
    /// client's window not.
    unread: AtomicU32,
    /// How many pieces of them it has taken.
    given: AtomicU32,
    /// Since when it does what it does, in ms after the first connection.
    idle_since: AtomicU64,
    /// Answers say from now on that the connection closes.
    closing: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There has been no byte yet.
    Silent,
    /// A part of a head is there.
    Head,
    /// A request is under way.
    Busy,
    /// Its answer is not taken.
    Blocked,
    /// The next request is waited for.
    Idle,
}

impl Activity {
    /// Of a connection that was accepted just now: it is younger than those that are there.
    pub(super) fn now() -> Self {
        Self { idle_since: AtomicU64::new(ms(Instant::now())), ..Self::default() }
    }

    /// Counts a request until its answer is sent, or given up.
    pub(super) fn begin(self: &Arc<Self>) -> Underway {
        self.begun.fetch_add(1, Relaxed);
        Underway(Arc::clone(self))
    }

    /// Since when nothing has been asked, as a number that only grows; none while an answer is made or sent.
    pub(super) fn idle_since(&self) -> Option<u64> {
        if self.is_busy() || self.blocked.load(Relaxed) { None } else { Some(self.idle_since.load(Relaxed)) }
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    pub(super) fn set_closing(&self) {
        self.closing.store(true, Relaxed);
    }

    /// How many bytes have gone since the connection closes. It wraps.
    pub(super) fn went(&self) -> u32 {
        self.went.load(Relaxed)
    }

    fn is_busy(&self) -> bool {
        self.begun.load(Relaxed) != self.ended.load(Relaxed)
    }

    fn phase(&self) -> Phase {
        // What is left of an answer may still lie here when its request has ended.
        if self.blocked.load(Relaxed) {
            Phase::Blocked
        } else if self.is_busy() {
            Phase::Busy
        } else if self.head.load(Relaxed) {
            Phase::Head
        } else if self.begun.load(Relaxed) == 0 && !self.is_http2() {
            Phase::Silent
        } else {
            Phase::Idle
        }
    }
}

/// A request under way; its answer's body takes it along.
pub(super) struct Underway(Arc<Activity>);

impl Underway {
    /// Whether its answer is to be the last one.
    pub(super) fn is_last(&self) -> bool {
        self.0.is_closing()
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Relaxed);
    }
}

/// The body of an answer, with which its request ends.
pub(super) struct Tracked {
    body: axum::body::Body,
    underway: Underway,
    /// Whether it waits for the client, and not for what it is made of.
    unread: bool,
    /// Whether a piece was given to the transport, which asks for no more until the client has room for it.
    gave: bool,
}

impl Tracked {
    pub(super) fn new(body: axum::body::Body, underway: Underway) -> Self {
        let mut tracked = Self { body, underway, unread: false, gave: false };
        if tracked.underway.0.is_http2() {
            tracked.set_unread(true);
        }
        tracked
    }

    fn set_unread(&mut self, unread: bool) {
        if unread != self.unread {
            self.unread = unread;
            let count = &self.underway.0.unread;
            if unread {
                count.fetch_add(1, Relaxed)
            } else {
                count.fetch_sub(1, Relaxed)
            };
        }
    }

    /// Notes that the piece which was given is taken. The first one is asked for in any case: that it was says nothing.
    fn was_taken(&mut self) {
        if std::mem::take(&mut self.gave) {
            self.underway.0.given.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.was_taken();
        self.set_unread(false);
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if self.underway.0.is_http2() {
            self.was_taken();
            self.set_unread(polled.is_ready());
            self.gave = polled.is_ready();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a connection is ended by this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    Head,
    Idle,
    Stalled,
}

/// The deadlines of a connection. Its timer is set anew only when it has run out, or must run out earlier than it would:
/// on a connection with many requests that is once in a while, not once a request.
pub(super) struct Watch {
    activity: Arc<Activity>,
    head_timeout: Duration,
    idle_timeout: Duration,
    phase: Phase,
    ended: u32,
    taken: u32,
    since: Instant,
    /// How many pieces were taken when answers began to wait for the client, and since when no other was.
    unread: Option<(u32, Instant)>,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    pub(super) fn new(activity: Arc<Activity>, head_timeout: Duration, idle_timeout: Duration) -> Self {
        let now = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(now + SILENT.min(idle_timeout)));
        Self {
            activity,
            head_timeout,
            idle_timeout,
            phase: Phase::Silent,
            ended: 0,
            taken: 0,
            since: now,
            unread: None,
            timer,
        }
    }

    /// Ready when something took too long. To be asked each time after the connection was polled.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Overdue> {
        let activity = &self.activity;
        let (phase, ended, taken) = (activity.phase(), activity.ended.load(Relaxed), activity.taken.load(Relaxed));
        let changed = (phase, ended, taken) != (self.phase, self.ended, self.taken);
        if changed {
            (self.phase, self.ended, self.taken) = (phase, ended, taken);
            self.since = Instant::now();
            self.note(self.since);
        }
        let (limit, mut overdue) = match phase {
            Phase::Silent => (SILENT.min(self.idle_timeout), Some(Overdue::Idle)),
            Phase::Head => (self.head_timeout, Some(Overdue::Head)),
            Phase::Idle => (self.idle_timeout, Some(Overdue::Idle)),
            Phase::Blocked => (STALLED, Some(Overdue::Stalled)),
            // Its handler has a deadline. A stream of HTTP/2 may end without a word to this task: it looks again.
            Phase::Busy => (self.idle_timeout.min(STALLED), None),
        };
        let mut deadline = self.since + limit;
        if let Some(since) = self.unread_since()
            && (overdue.is_none() || since + STALLED < deadline)
        {
            (deadline, overdue) = (since + STALLED, Some(Overdue::Stalled));
        }
        // A time that is over wakes this task at once. That is for a deadline, and not for each look at who is busy.
        if deadline < self.timer.deadline() && (changed || overdue.is_some()) {
            self.timer.as_mut().reset(deadline);
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            let now = Instant::now();
            match overdue {
                Some(overdue) if deadline <= now => return Poll::Ready(overdue),
                Some(_) => self.timer.as_mut().reset(deadline),
                None => self.timer.as_mut().reset(now + limit),
            }
        }
    }

    /// Since when the client takes nothing of its answers over HTTP/2. Whatever else it does, it may
    /// keep up for ever.
    fn unread_since(&mut self) -> Option<Instant> {
        if self.activity.unread.load(Relaxed) == 0 {
            self.unread = None;
            return None;
        }
        let given = self.activity.given.load(Relaxed);
        match self.unread {
            Some((before, since)) if before == given => Some(since),
            _ => {
                let now = Instant::now();
                self.unread = Some((given, now));
                Some(now)
            }
        }
    }

    /// Ready no more until something has changed again.
    pub(super) fn again(&mut self) {
        self.since = Instant::now();
        self.timer.as_mut().reset(self.since + self.idle_timeout);
    }

    /// For who looks for connections that do nothing.
    fn note(&self, now: Instant) {
        self.activity.idle_since.store(ms(now), Relaxed);
    }
}

/// A time, in ms after the first connection.
fn ms(now: Instant) -> u64 {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let epoch = *EPOCH.get_or_init(Instant::now);
    u64::try_from(now.duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
}

/// The transport of a connection, which notes what comes and what does not go.
pub(super) struct Noted<T> {
    inner: T,
    activity: Arc<Activity>,
    begun: u32,
    ended: u32,
    /// Bytes have come since a request began or ended.
    came: bool,
    /// How many bytes of the preface have come; none when it is none.
    preface: Option<usize>,
}

impl<T> Noted<T> {
    pub(super) fn new(inner: T, activity: Arc<Activity>) -> Self {
        Self { inner, activity, begun: 0, ended: 0, came: false, preface: Some(0) }
    }

    /// Who asks for more bytes without having made a request of those that came waits for the rest of a head.
    fn before_read(&mut self) {
        if self.activity.is_http2() {
            return;
        }
        let (begun, ended) = (self.activity.begun.load(Relaxed), self.activity.ended.load(Relaxed));
        if (begun, ended) != (self.begun, self.ended) {
            (self.begun, self.ended, self.came) = (begun, ended, false);
            self.activity.head.store(false, Relaxed);
        } else if self.came && begun == ended {
            self.activity.head.store(true, Relaxed);
        }
    }

    fn after_read(&mut self, new: &[u8]) {
        self.came |= !new.is_empty();
        let Some(before) = self.preface else { return };
        let rest = PREFACE.get(before..).unwrap_or_default();
        let common = rest.len().min(new.len());
        self.preface = (rest.get(..common) == new.get(..common)).then_some(before + common);
        if self.preface == Some(PREFACE.len()) {
            self.preface = None;
            self.activity.head.store(false, Relaxed);
            self.activity.http2.store(true, Relaxed);
        }
    }

    fn wrote<R>(&self, result: Poll<io::Result<R>>, bytes: impl FnOnce(&R) -> usize) -> Poll<io::Result<R>> {
        if let Poll::Ready(Ok(result)) = &result
            && self.activity.is_closing()
        {
            let bytes = u32::try_from(bytes(result)).unwrap_or(u32::MAX);
            self.activity.went.fetch_add(bytes, Relaxed);
        }
        let blocked = self.activity.blocked.load(Relaxed);
        if result.is_pending() != blocked {
            self.activity.blocked.store(!blocked, Relaxed);
            if blocked {
                self.activity.taken.fetch_add(1, Relaxed);
            }
        }
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Noted<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.before_read();
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buf))?;
        self.after_read(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

/// A head and a small body, which the system takes as one piece with less effort than as two: 2 % of a `GET /state`.
fn together<'w>(bufs: &[io::IoSlice<'_>], whole: &'w mut [u8; SMALL]) -> Option<&'w [u8]> {
    let [head, body] = bufs else { return None };
    let (first, rest) = whole.split_at_mut_checked(head.len())?;
    first.copy_from_slice(head);
    rest.get_mut(..body.len())?.copy_from_slice(body);
    whole.get(..head.len() + body.len())
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Noted<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(context, buf);
        self.wrote(result, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut whole = [0; SMALL];
        let inner = Pin::new(&mut self.inner);
        let result = match together(bufs, &mut whole) {
            Some(whole) => inner.poll_write(context, whole),
            None => inner.poll_write_vectored(context, bufs),
        };
        self.wrote(result, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS buffers what is written: there it shows that nothing goes.
        let result = Pin::new(&mut self.inner).poll_flush(context);
        self.wrote(result, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_and_a_small_body_go_out_as_one_piece() {
        let joined = |parts: &[usize]| {
            let parts: Vec<Vec<u8>> = (b'a'..).zip(parts).map(|(byte, length)| vec![byte; *length]).collect();
            let slices: Vec<io::IoSlice<'_>> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
            let mut whole = [0; SMALL];
            together(&slices, &mut whole).map(|whole| {
                assert_eq!(whole, parts.concat());
                whole.len()
            })
        };
        assert_eq!(joined(&[240, 11]), Some(251));
        assert_eq!(joined(&[SMALL - 11, 11]), Some(SMALL));
        assert_eq!(joined(&[SMALL, 0]), Some(SMALL));
        for parts in [&[SMALL - 11, 12][..], &[SMALL + 1, 0], &[1, SMALL], &[240], &[1, 2, 3], &[]] {
            assert_eq!(joined(parts), None, "{parts:?}");
        }
    }
}
