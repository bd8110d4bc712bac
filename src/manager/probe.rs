//! A new model is tried in a child process, where what crashes, hangs or eats memory hurts nobody.
//!
//! ```text
//!   server                                     probe: this very program, without environment
//!   ── spawn, a socket pair as its input ────►  bounds itself ── Hello
//!   ── Request: file, digest, gates, bounds ─►  load ► contract ► warm up ► golden cases ► measure
//!   ◄─ Passed(Facts) or Refused ─────────────   ends
//!      or: it ends without a word, or does not end ──► the signal, the clock and its last words say why
//! ```
//!
//! Everything that is read from a probe is bounded. It is killed and reaped by who started it, on every path.

mod bounds;
mod child;
mod clock;
mod protocol;
mod spare;

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use self::child::child;
use self::clock::Clock;
pub(super) use self::protocol::{Facts, Request};
use self::protocol::{MARKER, MAX_SAID, Said, VERSION};
use self::spare::Spare;
use super::memory::{Lease, human};
use super::stages::Refusal;
use crate::config::{Isolation, IsolationConfig, Program};
use crate::metrics::{Metrics, REJECTIONS};

/// How often to look whether time is up, or nobody waits any more.
const TICK: Duration = Duration::from_millis(20);
/// How long a program may take to say that it is a probe.
const HELLO: Duration = Duration::from_secs(20);
/// How long a probe that has said its last word may take to end: much memory is not given back at once.
const END: Duration = Duration::from_secs(5);
/// How long after one that starved the next ones are not asked to wait.
const HURRY: Duration = Duration::from_secs(60);
/// How much of a probe's last words is kept.
const TAIL: usize = 4 << 10;

/// Starts probes.
#[derive(Clone)]
pub(super) struct Prober {
    program: Program,
    timeout: Duration,
    metrics: Arc<Metrics>,
    /// When a probe starved last.
    starved: Arc<Mutex<Option<Instant>>>,
    spare: Spare,
}

/// Decides where models are tried: none means in a thread of the server.
pub(super) fn settle(
    config: &IsolationConfig,
    timeout: Duration,
    metrics: &Arc<Metrics>,
) -> std::io::Result<Option<Prober>> {
    if config.mode == Isolation::Thread {
        return Ok(None);
    }
    let program = match &config.program {
        Some(program) => Ok(program.clone()),
        None if child::this_program_asks() => this_program(),
        None => Err(std::io::Error::other("this program does not call hotserve::probe::child at its start")),
    };
    let answers = program.and_then(|program| {
        Running::start(&program)?
            .hello(HELLO, &|| false)
            .map_err(|silence| std::io::Error::other(silence.to_string()))?;
        Ok(program)
    });
    match (answers, config.mode) {
        (Ok(program), _) => {
            let spare = Spare::keep(program.clone())?;
            Ok(Some(Prober { program, timeout, metrics: Arc::clone(metrics), starved: Arc::default(), spare }))
        }
        (Err(error), Isolation::Process) => Err(std::io::Error::other(format!(
            "--isolation process (HOTSERVE_ISOLATION): no probe can be had: {error}"
        ))),
        (Err(error), _) => {
            tracing::warn!(%error, "new models are tried in a thread, where one that crashes takes the server with it");
            Ok(None)
        }
    }
}

/// The file that runs, even when another was put in its place since.
fn this_program() -> std::io::Result<Program> {
    let link = PathBuf::from("/proc/self/exe");
    let path = if link.exists() { link } else { std::env::current_exe()? };
    Ok(Program { path, args: Vec::new() })
}

impl Prober {
    /// Tries one model. Dropping the future kills the probe; its memory is taken until it is dead.
    pub(super) async fn run(&self, request: Request, lease: Lease) -> Result<Facts, Refusal> {
        let (answer, outcome) = oneshot::channel();
        let Self { program, timeout, metrics, starved, spare } = self.clone();
        let work = move || {
            crate::priority::low();
            let result = patiently(&program, &request, timeout, &starved, &spare, &|| answer.is_closed());
            drop(lease);
            metrics.probes.get(&[result.as_ref().map_or_else(Failure::outcome, |_| "passed")]).increment(1);
            // Superseded meanwhile: nobody listens.
            let _ = answer.send(result);
        };
        let thread = std::thread::Builder::new().name("probe".to_owned()).spawn(work);
        thread.map_err(|error| cannot_start(&error))?;
        match outcome.await {
            Ok(result) => result.map_err(Failure::into_refusal),
            Err(_) => Err(Refusal::new("unavailable", "the thread of the probe is gone")),
        }
    }
}

fn cannot_start(error: &std::io::Error) -> Refusal {
    Refusal::new("unavailable", format!("a probe cannot be started: {error}"))
}

/// Why a probe did not pass a model.
enum Failure {
    /// The model is not fit, says the probe.
    Refused(Refusal),
    /// The probe did not survive it.
    Died(Refusal),
    /// There was no probe.
    Unavailable(Refusal),
    /// Others kept the processor.
    Starved,
    /// Nobody wants to know any more.
    Superseded,
}

impl Failure {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Died(refusal) => refusal.reason,
            Self::Unavailable(_) | Self::Starved => "unavailable",
            Self::Superseded => "superseded",
        }
    }

    fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) | Self::Died(refusal) | Self::Unavailable(refusal) => refusal,
            Self::Starved => Refusal::new("unavailable", "the probe got no processor"),
            Self::Superseded => Refusal::new("unavailable", "superseded"),
        }
    }
}

/// How a probe gets the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// When nobody else wants it.
    Idle,
    /// Its small share of it.
    Share,
}

/// Without hurry first. A machine that never rests would let the probe wait for ever: then, and for a while, with a share of
/// its own. Nobody may raise what was lowered, so that is another probe.
fn patiently(
    program: &Program,
    request: &Request,
    timeout: Duration,
    starved: &Mutex<Option<Instant>>,
    spare: &Spare,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Facts, Failure> {
    let last = || starved.lock().unwrap_or_else(PoisonError::into_inner);
    let anew = |pace| attempt(start(program, pace, cancelled)?, request, timeout, pace, cancelled);
    if last().is_some_and(|last| last.elapsed() < HURRY) {
        return anew(Pace::Share);
    }
    let idle = std::thread::scope(|scope| {
        if let Some(probe) = spare.take() {
            return attempt(probe, request, timeout, Pace::Idle, cancelled);
        }
        // The probe is not to outlive the thread that starts it: this one waits for it.
        let work = || {
            crate::priority::idle();
            anew(Pace::Idle)
        };
        let thread = std::thread::Builder::new().name("probe-idle".to_owned()).spawn_scoped(scope, work);
        thread.map_or(Err(Failure::Starved), |thread| thread.join().unwrap_or(Err(Failure::Starved)))
    });
    match idle {
        Err(Failure::Starved) => {
            *last() = Some(Instant::now());
            anew(Pace::Share)
        }
        done => done,
    }
}

/// A probe that has said that it is one.
fn start(program: &Program, pace: Pace, cancelled: &dyn Fn() -> bool) -> Result<Running, Failure> {
    let mut probe = Running::start(program).map_err(|error| unavailable(&error))?;
    let patience = if pace == Pace::Idle { clock::PATIENCE } else { HELLO };
    match probe.hello(patience, cancelled) {
        Ok(()) => Ok(probe),
        Err(Silence::Late) if pace == Pace::Idle => Err(Failure::Starved),
        Err(Silence::Cancelled) => Err(Failure::Superseded),
        Err(silence) => Err(unavailable(&std::io::Error::other(silence.to_string()))),
    }
}

fn unavailable(error: &std::io::Error) -> Failure {
    Failure::Unavailable(cannot_start(error))
}

fn attempt(
    mut probe: Running,
    request: &Request,
    timeout: Duration,
    pace: Pace,
    cancelled: &dyn Fn() -> bool,
) -> Result<Facts, Failure> {
    let mut clock = Clock::start(probe.child.id(), timeout);
    let asked = serde_json::to_vec(request).map_err(std::io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        probe.socket.write_all(&line)
    });
    asked.map_err(|error| unavailable(&error))?;
    let mut doing = None;
    let silence = loop {
        match probe.hear(&mut || clock.is_over() || pace == Pace::Idle && clock.is_starved(), cancelled) {
            Ok(Said::Passed(facts)) => return Ok(facts),
            Ok(Said::Refused { reason, detail }) => {
                let known = REJECTIONS.iter().find(|known| **known == reason).copied();
                return Err(Failure::Refused(Refusal::new(known.unwrap_or("crash"), detail)));
            }
            Ok(Said::Doing(now)) => doing = Some(now),
            Ok(Said::Hello(_)) => {}
            Err(silence) => break silence,
        }
    };
    let during = doing.map_or("before it was loaded", protocol::Doing::phrase);
    let died = |reason, detail: String| Err(Failure::Died(Refusal::new(reason, detail)));
    match silence {
        Silence::Cancelled => Err(Failure::Superseded),
        Silence::Late if !clock.is_over() => Err(Failure::Starved),
        Silence::Late => {
            let detail =
                format!("the model was not done after {timeout:?}, {during}: raise --load-timeout if it is only slow");
            died("timeout", detail)
        }
        Silence::Babbles => died("crash", format!("the model wrote to the probe's socket {during}")),
        Silence::Ended => match probe.end() {
            Ok(status) => {
                let (reason, detail) = cause(status, &String::from_utf8_lossy(&probe.tail), request.memory);
                died(reason, format!("{detail} {during}"))
            }
            Err(error) => Err(unavailable(&error)),
        },
    }
}

/// What a probe died of.
fn cause(status: ExitStatus, last_words: &str, memory: u64) -> (&'static str, String) {
    const OUT_OF_MEMORY: [&str; 2] = ["memory allocation of ", "std::bad_alloc"];
    let words = last_words.trim();
    let quoted =
        if words.is_empty() { String::new() } else { format!(" ({})", crate::error::shorten(words.to_owned())) };
    if OUT_OF_MEMORY.iter().any(|sign| words.contains(sign)) {
        return ("memory", format!("the model wanted more than the {} it may take{quoted}", human(memory)));
    }
    match status.signal() {
        Some(24) => {
            ("timeout", "the model used up its processor time: raise --load-timeout if it is only slow,".to_owned())
        }
        Some(9) => ("crash", "the probe was killed with SIGKILL: for want of memory, or by somebody,".to_owned()),
        Some(signal) => {
            let why = if words.contains("overflowed its stack") { "overflowed its stack" } else { "crashed" };
            ("crash", format!("the model {why} with {}{quoted}", signal_name(signal)))
        }
        None => {
            let code = status.code().unwrap_or(-1);
            ("crash", format!("the model ended the probe with exit code {code}{quoted}"))
        }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

/// Why a probe says nothing more.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("it ended without a word: it does not call hotserve::probe::child at its start")]
    Ended,
    #[error("it said nothing in time")]
    Late,
    #[error("it said what no probe says: it does not call hotserve::probe::child at its start")]
    Babbles,
    #[error("nobody waits for it any more")]
    Cancelled,
}

/// A probe that runs. Dropped, it is dead and reaped.
struct Running {
    child: Child,
    socket: UnixStream,
    heard: Vec<u8>,
    said: usize,
    stderr: UnixStream,
    /// The end of what it wrote to its standard error.
    tail: Vec<u8>,
}

impl Running {
    fn start(program: &Program) -> std::io::Result<Self> {
        let (socket, input) = UnixStream::pair()?;
        let (stderr, error) = UnixStream::pair()?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_write_timeout(Some(HELLO))?;
        stderr.set_nonblocking(true)?;
        let mut command = Command::new(&program.path);
        command
            .arg0("hotserve-probe")
            .args(&program.args)
            .env_clear()
            .env(MARKER, VERSION.to_string())
            .current_dir(Path::new("/"))
            .stdin(Stdio::from(OwnedFd::from(input)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(OwnedFd::from(error)));
        // Where shared libraries are is nobody's secret.
        if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let child = command.spawn()?;
        Ok(Self { child, socket, heard: Vec::new(), said: 0, stderr, tail: Vec::new() })
    }

    fn hello(&mut self, patience: Duration, cancelled: &dyn Fn() -> bool) -> Result<(), Silence> {
        let deadline = Instant::now() + patience;
        match self.hear(&mut || Instant::now() > deadline, cancelled)? {
            Said::Hello(VERSION) => Ok(()),
            _ => Err(Silence::Babbles),
        }
    }

    /// The next line.
    fn hear(&mut self, is_over: &mut dyn FnMut() -> bool, cancelled: &dyn Fn() -> bool) -> Result<Said, Silence> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|_| Silence::Babbles);
            }
            if self.said > MAX_SAID {
                return Err(Silence::Babbles);
            }
            if cancelled() {
                return Err(Silence::Cancelled);
            }
            if is_over() {
                return Err(Silence::Late);
            }
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(Silence::Ended),
                Ok(read) => {
                    self.said += read;
                    self.heard.extend(chunk.iter().take(read));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => return Err(Silence::Ended),
            }
            self.listen();
        }
    }

    /// Takes in what was written to the standard error, so that nobody waits to write, and keeps its end.
    fn listen(&mut self) {
        let mut chunk = [0; 4096];
        // A probe that writes without end has to wait for the next look.
        for _ in 0..256 {
            match self.stderr.read(&mut chunk) {
                Ok(read) if read > 0 => self.tail.extend(chunk.iter().take(read)),
                _ => break,
            }
            let surplus = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..surplus);
        }
    }

    /// How it ended, once it has said its last word.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                self.listen();
                return Ok(status);
            }
            self.listen();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be dead already; after this it is, and is no zombie.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_has_its_cause() {
        let status = ExitStatus::from_raw;
        for (status, words, reason, says) in [
            (
                status(6),
                "memory allocation of 99 bytes failed\n",
                "memory",
                "more than the 1.0 MiB it may take (memory",
            ),
            (status(6), "terminate called … 'std::bad_alloc'", "memory", "std::bad_alloc"),
            (status(6), "thread 'x' has overflowed its stack", "crash", "overflowed its stack with SIGABRT"),
            (status(6), "", "crash", "crashed with SIGABRT"),
            (status(11), "", "crash", "crashed with SIGSEGV"),
            (status(9), "", "crash", "SIGKILL"),
            (status(24), "", "timeout", "processor time"),
            (status(33), "", "crash", "signal 33"),
            (status(3 << 8), "bye", "crash", "exit code 3 (bye)"),
        ] {
            let (found, detail) = cause(status, words, 1 << 20);
            assert_eq!(found, reason, "{status:?} {words}");
            assert!(detail.contains(says), "{detail:?} does not say {says:?}");
        }
    }

    /// A program that is no probe must not hold anybody up, or be taken for one.
    #[test]
    fn what_is_no_probe_is_not_taken_for_one() {
        let program = |path: &str, args: &[&str]| Program {
            path: path.into(),
            args: args.iter().map(ToString::to_string).collect(),
        };
        let hello = |program: &Program| Running::start(program).expect("it starts").hello(HELLO, &|| false);
        assert!(matches!(hello(&program("/bin/true", &[])), Err(Silence::Ended)));
        assert!(matches!(hello(&program("/bin/sh", &["-c", "echo hello >&0"])), Err(Silence::Babbles)));
        let flood = program("/bin/sh", &["-c", "cat /dev/zero >&0"]);
        assert!(matches!(hello(&flood), Err(Silence::Babbles)));
        let config = |mode| IsolationConfig { mode, program: Some(program("/bin/true", &[])) };
        let metrics = Metrics::new();
        let settled = |mode| settle(&config(mode), Duration::from_secs(1), &metrics);
        assert!(matches!(settled(Isolation::Auto), Ok(None)));
        assert!(matches!(settled(Isolation::Thread), Ok(None)));
        assert!(settled(Isolation::Process).is_err());
    }

    #[test]
    fn who_does_not_wait_any_more_is_left_alone() {
        let program = Program { path: "/bin/sleep".into(), args: vec!["1000".to_owned()] };
        let mut running = Running::start(&program).expect("it starts");
        assert!(matches!(running.hello(HELLO, &|| true), Err(Silence::Cancelled)));
        let id = running.child.id();
        drop(running);
        assert!(!Path::new(&format!("/proc/{id}")).exists(), "it is neither there nor a zombie");
    }
}
