//! How many connections a process has room for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Error;

/// How many there may be unless a setting says otherwise: some 20 KiB each when idle, 330 MiB together.
pub const CONNECTIONS: usize = 16_384;
/// Descriptors for everything else: the stream, the store, files, threads, and the ports of operators.
const RESERVED: usize = 512;
/// How many connections there may be to a port of operators.
pub const OPERATORS: usize = 256;

/// Allows the process as many open files as the system lets it have. The usual limit of 1024 is there for programs that
/// use `select`, which this one is none of. For the start of a program: a library should not do it.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// How many connections there may be: what the setting says, if the process may have as many.
pub fn connections(setting: Option<usize>) -> Result<usize, Error> {
    let files = getrlimit(Resource::Nofile).current.map(|files| usize::try_from(files).unwrap_or(usize::MAX));
    within(setting, files)
}

fn within(setting: Option<usize>, files: Option<usize>) -> Result<usize, Error> {
    let files = files.unwrap_or(usize::MAX);
    // A process with very few is to serve all the same.
    let room = files.saturating_sub(RESERVED).max(files / 2).max(1);
    match setting {
        None => Ok(room.min(CONNECTIONS)),
        Some(connections) if connections <= room => Ok(connections),
        Some(connections) => {
            let problem = format!(
                "{connections} connections need {} open files, and the process may have {files}: raise that limit \
                 (ulimit -n, LimitNOFILE of systemd), or take {room}",
                connections.saturating_add(RESERVED)
            );
            Err(Error::new("--max-connections (HOTSERVE_MAX_CONNECTIONS)", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        let within = |setting, files| within(setting, files).ok();
        assert_eq!(within(None, None), Some(CONNECTIONS));
        assert_eq!(within(None, Some(1 << 20)), Some(CONNECTIONS));
        assert_eq!(within(None, Some(1024)), Some(512));
        assert_eq!(within(None, Some(64)), Some(32));
        assert_eq!(within(Some(100_000), Some(1 << 20)), Some(100_000));
        assert_eq!(within(Some(512), Some(1024)), Some(512));
        assert_eq!(within(Some(513), Some(1024)), None);
    }
}
