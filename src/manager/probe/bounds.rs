//! What a probe takes from itself before it touches a byte of an artifact. Nothing here can fail the probe: where the
//! system does not know a bound, the others hold.
//!
//! A probe inherits the priority of the thread that starts it: the lowest of all, or a low one where that gets nowhere.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Enough for a socket, an artifact and what the system's libraries open.
const MAX_FILES: u64 = 64;

/// What needs no request: no more rights than now, the first one to go when memory is short, and no longer here than the
/// server.
pub fn on_start() {
    #[cfg(target_os = "linux")]
    {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        let _ = rustix::thread::set_no_new_privs(true);
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    }
    bound(Resource::Core, 0);
    bound(Resource::Fsize, 0);
    bound(Resource::Nofile, MAX_FILES);
}

/// What `ps` and `top` show of it.
pub fn name(name: &str) {
    let _ = std::fs::write("/proc/self/comm", name);
}

/// Time on a processor: beside the server's clock, for a server that does not look at it any more.
pub fn time(time: Duration) {
    bound(Resource::Cpu, time.as_secs() + 2);
}

/// Memory, on top of what the program has taken already.
pub fn memory(bytes: u64, taken: u64) {
    // Not the address space: stacks and arenas are reserved there that nobody uses.
    bound(Resource::Data, taken.saturating_add(bytes));
}

fn bound(resource: Resource, most: u64) {
    let most = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
    let _ = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
}

/// From now on this thread, and those that it starts, open no file but the system's libraries, connect to nobody and signal
/// nobody: the environment of the server, its credentials and its cache are out of reach. Where the system has no
/// Landlock, the other bounds hold.
#[cfg(target_os = "linux")]
pub fn seal() {
    use landlock::{
        ABI, Access as _, AccessFs, AccessNet, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, Scope,
        path_beneath_rules,
    };
    let abi = ABI::V6;
    let libraries = path_beneath_rules(["/usr", "/lib", "/lib64"], AccessFs::ReadFile | AccessFs::ReadDir);
    let sealed = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rules(libraries))
        .and_then(landlock::RulesetCreated::restrict_self);
    drop(sealed);
}

/// There is nothing like it.
#[cfg(not(target_os = "linux"))]
pub fn seal() {}

/// What the system says of this process's memory.
pub struct Usage(Option<File>);

impl Usage {
    /// From now on the peak is counted anew.
    pub fn from_now() -> Self {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        // Kept open: the probe may not open files later.
        Self(File::open(Path::new("/proc/self/status")).ok())
    }

    /// `VmData`: private and writable.
    pub fn data(&mut self) -> Option<u64> {
        self.field("VmData:")
    }

    /// `VmRSS`: in memory now.
    pub fn resident(&mut self) -> Option<u64> {
        self.field("VmRSS:")
    }

    /// `VmHWM`: in memory at the peak.
    pub fn peak(&mut self) -> Option<u64> {
        self.field("VmHWM:")
    }

    fn field(&mut self, name: &str) -> Option<u64> {
        let file = self.0.as_mut()?;
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).ok()?;
        file.read_to_string(&mut text).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }
}
