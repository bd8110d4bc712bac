//! What comes from files, and is read anew while the server runs when its operator says so (SIGHUP).

use std::fmt;
use std::sync::Arc;

use super::Error;

/// What can be read anew: the label of `hotserve_reloads_total`.
pub const RELOADS: &[&str] = &["trusted_keys", "admin_token", "certificate"];

/// Everything that this server can read anew. Whoever has a file registers how with [`add`](Self::add).
#[derive(Clone, Default)]
pub struct Reloads(Vec<Reload>);

#[derive(Clone)]
struct Reload {
    what: &'static str,
    read: Arc<dyn Fn() -> Result<Option<String>, Error> + Send + Sync>,
}

/// What became of one of them.
#[derive(Debug)]
pub struct Reloaded {
    /// One of [`RELOADS`].
    pub what: &'static str,
    /// What is in force now, for a person; nothing where it is as it was; or why the old is kept.
    pub outcome: Result<Option<String>, Error>,
}

impl Reloads {
    /// Registers something: one of [`RELOADS`], and how it is read anew. That answers what is in force now, without any
    /// secret, or nothing where it is as it was; and changes nothing where it fails. It may wait for a disk.
    pub fn add(
        &mut self,
        what: &'static str,
        read: impl Fn() -> Result<Option<String>, Error> + Send + Sync + 'static,
    ) {
        debug_assert!(RELOADS.contains(&what), "{what} is no label of the metric");
        self.0.push(Reload { what, read: Arc::new(read) });
    }

    /// What can be read anew here.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|reload| reload.what).collect()
    }

    /// Reads all of it anew.
    pub fn run(&self) -> Vec<Reloaded> {
        self.0.iter().map(|Reload { what, read }| Reloaded { what, outcome: read() }).collect()
    }
}

impl fmt::Debug for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
