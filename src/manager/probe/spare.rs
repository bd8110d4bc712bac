//! A probe that is started ahead: to start a program costs more than to try a small model in it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{HELLO, Running};
use crate::config::Program;

/// After one is taken, the next is started when the swap is over, as a rule.
const RESPITE: Duration = Duration::from_millis(50);
/// Where none can be started, it is tried again after this; until then each model starts its own, and says why it cannot.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// At most one probe that has said that it is one, and waits. Dropped, it is dead.
#[derive(Clone)]
pub(super) struct Spare(Arc<Mutex<Receiver<Running>>>);

impl Spare {
    /// Starts the thread that keeps it; probes do not outlive the thread that starts them.
    pub(super) fn keep(program: Program) -> std::io::Result<Self> {
        let (give, take) = sync_channel(0);
        let work = move || keep(&program, &give);
        std::thread::Builder::new().name("probe-spare".to_owned()).spawn(work)?;
        Ok(Self(Arc::new(Mutex::new(take))))
    }

    /// The probe, if there is one and it lives.
    pub(super) fn take(&self) -> Option<Running> {
        let mut probe = self.0.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok()?;
        matches!(probe.child.try_wait(), Ok(None)).then_some(probe)
    }
}

fn keep(program: &Program, give: &SyncSender<Running>) {
    // What it starts has this priority too.
    crate::priority::idle();
    let start = || {
        let mut probe = Running::start(program).ok()?;
        probe.hello(HELLO, &|| false).ok().map(|()| probe)
    };
    loop {
        std::thread::sleep(RESPITE);
        match start() {
            // It waits here until it is taken, or nobody is there any more to take it.
            Some(probe) => {
                if give.send(probe).is_err() {
                    return;
                }
            }
            None => std::thread::sleep(TRY_AGAIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::*;

    /// A program that says what a probe says, and no more.
    fn greeter() -> Program {
        let hello = format!("echo '{{\"hello\":{}}}' >&0; exec sleep 1000", super::super::VERSION);
        Program { path: "/bin/sh".into(), args: vec!["-c".to_owned(), hello] }
    }

    fn taken(spare: &Spare) -> Running {
        let begun = Instant::now();
        loop {
            if let Some(probe) = spare.take() {
                return probe;
            }
            assert!(begun.elapsed() < HELLO, "there is none");
            std::thread::sleep(RESPITE);
        }
    }

    #[test]
    fn there_is_another_after_one_is_taken_and_none_is_left_behind() {
        let spare = Spare::keep(greeter()).expect("a thread");
        let (one, other) = (taken(&spare), taken(&spare));
        let ids = [one.child.id(), other.child.id()];
        assert_ne!(ids[0], ids[1]);
        drop((one, other, spare));
        assert!(ids.iter().all(|id| !Path::new(&format!("/proc/{id}")).exists()), "they are neither there nor zombies");
    }

    #[test]
    fn one_that_has_died_meanwhile_is_not_given() {
        let spare = Spare::keep(greeter()).expect("a thread");
        // The one that waits is known to nobody but its thread: take one, and kill it as something else might have.
        let mut probe = taken(&spare);
        probe.child.kill().expect("it lives");
        probe.child.wait().expect("it is ours");
        let (give, take) = sync_channel(1);
        give.send(probe).expect("room for one");
        assert!(Spare(Arc::new(Mutex::new(take))).take().is_none());
    }
}
