//! When to stop: SIGTERM or Ctrl-C, and nothing else. SIGHUP means something else to a server.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT; a second one ends the process at once.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = token.clone();
    tokio::spawn(async move {
        for attempt in 0.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if attempt > 0 {
                // The owner of the process insists; 128 + SIGINT, as shells count it.
                #[expect(clippy::exit, reason = "a second signal means now")]
                std::process::exit(130);
            }
            tracing::info!("shutting down: finishing the requests that are under way (again to stop at once)");
            stop.cancel();
        }
    });
    Ok(token)
}

/// Every SIGHUP from now on; none of them ends the process any more, for as long as it lives.
pub fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Takes what the system sends when a file would pass a limit (`ulimit -f`): without that it would end the process. The
/// write fails then, as on a full disk. Holds for as long as the process.
pub fn survive_file_size_limit() -> std::io::Result<()> {
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)
}
