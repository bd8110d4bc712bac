//! Places on the way of a swap at which a process can be made to die, for the test that no such death loses anything.
//!
//! `HOTSERVE_FAILPOINT=NAME[:NTH[:PAUSE_MS]]` kills the process with SIGKILL when it comes to that place for the nth
//! time: nothing is flushed, and nothing is told to anybody. The pause before it gives readers the time to see what is
//! visible there. Builds without debug assertions, that is releases, have none of this.

/// Every place, in the order of the way.
pub const NAMES: &[&str] = &[
    "cache.fetch.half_written",
    "cache.persist.before_sync",
    "cache.persist.before_rename",
    "cache.persist.after_rename",
    "cache.persist.after_folder_sync",
    "load.begun",
    "load.ended",
    "journal.write.before",
    "journal.write.half_written",
    "journal.write.before_sync",
    "journal.write.after_sync",
    "journal.compact.half_written",
    "journal.compact.before_rename",
    "journal.compact.after_rename",
    "journal.compact.after_folder_sync",
    "swap.before",
    "swap.after",
    "swap.after_books",
    "cache.collect.before",
    "cache.collect.between",
    "cache.collect.after",
    "restore.before",
    "restore.between",
    "restore.before_swap",
    "restore.after_swap",
];

/// `HOTSERVE_FAILPOINT` names no place.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not NAME[:NTH[:PAUSE_MS]] with one of the names {names}", names = NAMES.join(", "))]
pub struct Unknown(String);

#[cfg(not(debug_assertions))]
pub use self::absent::{arm, hit, hit_in_the_middle_of};
#[cfg(debug_assertions)]
pub use self::armed::{arm, hit, hit_in_the_middle_of};

#[cfg(debug_assertions)]
mod armed {
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::{NAMES, Unknown};

    /// The place to die at.
    #[derive(Debug)]
    pub(super) struct Failpoint {
        pub(super) name: &'static str,
        /// How many times it is still to be passed, this one included.
        pub(super) left: AtomicU32,
        pub(super) pause: Duration,
    }

    static ARMED: OnceLock<Failpoint> = OnceLock::new();

    /// Takes the failpoint of the environment, once; without this call there is none.
    pub fn arm() -> Result<(), Unknown> {
        #[expect(clippy::disallowed_methods, reason = "no setting: a release does not know it")]
        let text = std::env::var("HOTSERVE_FAILPOINT").unwrap_or_default();
        if !text.is_empty() {
            let failpoint = parse(&text).ok_or_else(|| Unknown(text.clone()))?;
            // Armed before: the first one holds.
            let _ = ARMED.set(failpoint);
        }
        Ok(())
    }

    pub(super) fn parse(text: &str) -> Option<Failpoint> {
        let mut fields = text.split(':');
        let name = fields.next()?;
        let name = NAMES.iter().find(|known| **known == name)?;
        let nth = fields.next().map_or(Some(1), |nth| nth.parse().ok().filter(|nth| *nth > 0))?;
        let pause = fields.next().map_or(Some(0), |pause| pause.parse().ok())?;
        let failpoint = Failpoint { name, left: AtomicU32::new(nth), pause: Duration::from_millis(pause) };
        fields.next().is_none().then_some(failpoint)
    }

    fn is_due(name: &str) -> Option<&'static Failpoint> {
        let armed = ARMED.get().filter(|armed| armed.name == name)?;
        (armed.left.fetch_sub(1, Ordering::Relaxed) == 1).then_some(armed)
    }

    /// Dies here if this is the place.
    pub fn hit(name: &'static str) {
        if let Some(armed) = is_due(name) {
            die(armed);
        }
    }

    /// Writes half of the bytes and dies if this is the place.
    pub fn hit_in_the_middle_of(name: &'static str, to: &mut impl Write, bytes: &[u8]) {
        if let Some(armed) = is_due(name) {
            let (half, _) = bytes.split_at(bytes.len() / 2);
            // What does not get there is a smaller half.
            let _ = to.write_all(half);
            die(armed);
        }
    }

    fn die(armed: &Failpoint) -> ! {
        std::thread::sleep(armed.pause);
        eprintln!("killed at the failpoint {}", armed.name);
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Not a step further, whatever the system does first.
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
mod absent {
    use std::io::Write;

    use super::Unknown;

    /// There is nothing to take.
    pub fn arm() -> Result<(), Unknown> {
        Ok(())
    }

    /// Nothing.
    #[inline(always)]
    pub fn hit(_: &'static str) {}

    /// Nothing.
    #[inline(always)]
    pub fn hit_in_the_middle_of(_: &'static str, _: &mut impl Write, _: &[u8]) {}
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::armed::parse;
    use super::*;

    #[test]
    fn a_place_may_say_which_time_and_how_long_before() {
        for (text, nth, pause) in [("swap.after", 1, 0), ("swap.after:3", 3, 0), ("swap.after:2:50", 2, 50)] {
            let failpoint = parse(text).expect(text);
            assert_eq!(failpoint.name, "swap.after", "{text}");
            assert_eq!(failpoint.left.load(Ordering::Relaxed), nth, "{text}");
            assert_eq!(failpoint.pause, Duration::from_millis(pause), "{text}");
        }
        for text in ["", "swap", "swap.after:", "swap.after:0", "swap.after:x", "swap.after:1:x", "swap.after:1:2:3"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_not_armed_is_passed() {
        for name in NAMES {
            hit(name);
            hit_in_the_middle_of(name, &mut Vec::new(), b"text");
        }
        let said = Unknown("swap.aftr".to_owned()).to_string();
        assert!(said.contains("\"swap.aftr\"") && said.contains("swap.after,"), "{said}");
    }
}
