//! What systemd is told of a unit with `Type=notify` or `notify-reload`: sd_notify(3).
//!
//! `READY=1` comes when `/readyz` turns 200, so that `systemctl restart` returns when the server serves, and whoever
//! restarts one after the other waits for each. That depends on AWS, which must not end the process: till then the time
//! for the start is extended again and again, and `STATUS=` says what is waited for.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep, timeout};

use crate::http::Http;
use crate::status::Readiness;

/// How often the line of the status is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a start may stay silent, and how often it speaks.
const EXTENSION: Duration = Duration::from_secs(60);
const EXTENDED: Duration = Duration::from_secs(15);
/// The longest time for a word: it lands in a queue of the kernel.
const WORD: Duration = Duration::from_secs(1);

/// Where systemd listens, and how often it wants to hear.
pub(super) struct Systemd {
    to: SocketAddr,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// As the environment says; none where nobody listens.
    pub(super) fn from_env() -> Option<Self> {
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let to = match address(path.as_bytes()) {
            Ok(to) => to,
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET is no address of a socket: systemd is told nothing");
                return None;
            }
        };
        let number = |name| std::env::var_os(name)?.to_str()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| for_us && *usec > 0).map(Duration::from_micros);
        Some(Self { to, watchdog })
    }

    /// Sends lines. What cannot be sent is no reason to stop serving: the next may get through.
    pub(super) async fn tell(&self, lines: &str) {
        let send = async {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&self.to)?;
            socket.set_nonblocking(true)?;
            tokio::net::UnixDatagram::from_std(socket)?.send(lines.as_bytes()).await
        };
        match timeout(WORD, send).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "systemd cannot be told {lines:?}"),
            Err(_) => tracing::debug!("systemd does not take {lines:?}"),
        }
    }

    /// A reload begins; `READY=1` ends it.
    pub(super) async fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={usec}")).await;
    }
}

/// A path, or with an `@` the name of a socket that lies in no folder.
fn address(path: &[u8]) -> std::io::Result<SocketAddr> {
    match path.split_first() {
        #[cfg(target_os = "linux")]
        Some((b'@', name)) => {
            use std::os::linux::net::SocketAddrExt as _;
            SocketAddr::from_abstract_name(name)
        }
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    }
}

/// Tells how the server does, till it is dropped. It runs where requests are answered: what keeps these from being
/// answered keeps the watchdog silent.
pub(super) async fn follow(systemd: Arc<Systemd>, http: Arc<Http>) {
    let mut news = http.status.news();
    let (mut ready, mut said) = (false, String::new());
    let (mut extended, mut alive) = (None::<Instant>, None::<Instant>);
    // Half of the time that systemd waits, as it asks for.
    let pulse = systemd.watchdog.map(|watchdog| watchdog / 2);
    loop {
        news.borrow_and_update();
        let (state, line) = describe(&http);
        let mut words = Vec::new();
        if state == Readiness::Ready && !ready {
            ready = true;
            words.push("READY=1".to_owned());
        }
        let is_starting = matches!(state, Readiness::Starting(_));
        if is_starting && extended.is_none_or(|at| at.elapsed() >= EXTENDED) {
            extended = Some(Instant::now());
            words.push(format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
        }
        if let Some(pulse) = pulse
            && alive.is_none_or(|at| at.elapsed() >= pulse)
        {
            alive = Some(Instant::now());
            words.push("WATCHDOG=1".to_owned());
        }
        if line != said {
            if state == Readiness::Draining {
                words.push("STOPPING=1".to_owned());
            }
            words.push(format!("STATUS={line}"));
            said = line;
        }
        if !words.is_empty() {
            systemd.tell(&words.join("\n")).await;
        }
        let wait = pulse.map_or(LOOK, |pulse| LOOK.min(pulse.saturating_sub(alive.map_or(pulse, |at| at.elapsed()))));
        // The end is told at once, everything else at its time: swaps may come faster than anybody reads.
        tokio::select! {
            () = sleep(wait) => {}
            () = draining(&http, &mut news), if state != Readiness::Draining => {}
        }
    }
}

/// Waits until the server drains or becomes ready.
async fn draining(http: &Http, news: &mut tokio::sync::watch::Receiver<()>) {
    let before = http.status.readiness();
    while news.changed().await.is_ok() {
        let now = http.status.readiness();
        if std::mem::discriminant(&now) != std::mem::discriminant(&before) {
            return;
        }
    }
}

/// How the server does, in one line.
fn describe(http: &Http) -> (Readiness, String) {
    let state = http.status.readiness();
    let line = match &state {
        Readiness::Starting(reason) => format!("not ready yet: {reason}"),
        Readiness::Draining => "shutting down: finishing the requests that are under way".to_owned(),
        Readiness::Ready => {
            let snapshot = http.serving.snapshot();
            let (models, states) = (snapshot.models.len(), snapshot.states.len());
            let trouble = http.status.stream().trouble.map(|trouble| format!("; the stream: {}", trouble.message));
            format!("serving {models} models and {states} states{}", trouble.unwrap_or_default())
        }
    };
    (state, line.replace(['\n', '\r'], " "))
}
