//! The probe's side: bounds itself, tries one artifact, says what became of it, and ends.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use hotserve_models::Loaders;

use super::bounds::{self, Usage};
use super::protocol::{Doing, Facts, MARKER, MAX_REQUEST, Request, Said, VERSION};
use crate::manager::stages::{INFER_STACK, LOAD_STACK, Loaded, Refusal, Verified, Warm, on_a_stack};

/// Whether this program asks, at its start, if it is to be a probe.
static ASKS: AtomicBool = AtomicBool::new(false);

pub(super) fn this_program_asks() -> bool {
    ASKS.load(Ordering::Relaxed)
}

/// Does a probe's work, if this process was started as one. To be called first in `main`, with the same loaders that the
/// server gets; with an exit code in the answer, `main` returns it and does nothing else:
///
/// ```
/// use std::process::ExitCode;
///
/// use hotserve_models::Loaders;
///
/// fn main() -> ExitCode {
///     let loaders = Loaders::bundled(); // and those of your own
///     if let Some(code) = hotserve::probe::child(&loaders) {
///         return code;
///     }
///     // … start the server
///     ExitCode::SUCCESS
/// }
/// ```
///
/// A program that does not call it tries new models in a thread, where one that crashes takes the server with it.
#[must_use = "a probe returns the exit code from main, and does nothing else"]
pub fn child(loaders: &Loaders) -> Option<ExitCode> {
    ASKS.store(true, Ordering::Relaxed);
    std::env::var_os(MARKER).filter(|version| *version == *VERSION.to_string())?;
    // The variable alone may be there by mistake; nobody's input is a socket by mistake.
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().ok()?);
    socket.local_addr().ok()?;
    bounds::on_start();
    bounds::name("probe-spare");
    Some(if serve(&socket, loaders).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn serve(socket: &UnixStream, loaders: &Loaders) -> std::io::Result<()> {
    say(socket, &Said::Hello(VERSION))?;
    let mut line = Vec::new();
    BufReader::new(socket.take(MAX_REQUEST)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        // Only asked for its name.
        return Ok(());
    }
    let request: Request = serde_json::from_slice(&line)?;
    drop(line);
    bounds::name("probe-busy");
    let said = match attempt(socket, &request, loaders) {
        Ok(facts) => Said::Passed(facts),
        Err(Refusal { reason, detail }) => Said::Refused { reason: reason.to_owned(), detail },
    };
    say(socket, &said)
}

fn attempt(socket: &UnixStream, request: &Request, loaders: &Loaders) -> Result<Facts, Refusal> {
    let Request { path, digest, announced, gates, memory, time } = request;
    let file = File::open(path).map_err(|error| Refusal::new("disk", format!("read the cached artifact: {error}")))?;
    let mut usage = Usage::from_now();
    let before = usage.resident();
    bounds::time(*time);
    let stacks = (LOAD_STACK / 2 + INFER_STACK / 2) as u64;
    if let Some(taken) = usage.data() {
        bounds::memory(*memory, taken + stacks);
    }
    bounds::seal();
    let doing = |doing| say(socket, &Said::Doing(doing)).map_err(|error| broken(&error));

    doing(Doing::Load)?;
    let loaded = on_a_stack(LOAD_STACK / 2, || {
        let verified = Verified::read_file(file, *digest)?;
        Loaded::load(verified, announced, loaders, gates.max_bytes)
    })?;
    let model_bytes = loaded.model.memory_bytes() as u64;
    doing(Doing::Infer)?;
    let warm = on_a_stack(INFER_STACK / 2, || loaded.warm_up(announced, gates.allow_non_finite))?;
    let peak_bytes = usage.peak().zip(before).map(|(peak, before)| peak.saturating_sub(before));
    let Warm { row_cost, row_p50, row_p99, .. } = warm;
    Ok(Facts { model_bytes, peak_bytes, row_cost, row_p50, row_p99 })
}

fn broken(error: &std::io::Error) -> Refusal {
    Refusal::new("unavailable", format!("the probe cannot work: {error}"))
}

fn say(mut socket: &UnixStream, said: &Said) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    socket.write_all(&line)
}
