//! Changing a manifest that others change too: read, change, write if nobody has written since, else from the start.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::object::{Condition, ManifestObject, Read, Write};
use super::{Error, Limits, Manifest};

/// How often to try.
const TRIES: u32 = 20;
/// How long to try.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to do with a changed manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Write it.
    Write,
    /// Leave the object as it is: there is nothing new.
    Leave,
}

/// Reads a manifest, an empty one where there is none.
pub async fn read(object: &ManifestObject, limits: &Limits) -> Result<(Manifest, Condition), Error> {
    match object.read(None).await? {
        Read::Found { etag, bytes } => Ok((Manifest::decode(&bytes, limits)?, Condition::Is(etag))),
        Read::Absent | Read::NotModified => Ok((Manifest::new(limits.clone()), Condition::Absent)),
    }
}

/// Changes the manifest. `change` is called again, on what is there then, each time that somebody else was faster. One
/// that cannot be read is never overwritten.
pub async fn update<T, E: From<Error>>(
    object: &ManifestObject,
    limits: &Limits,
    mut change: impl FnMut(&mut Manifest) -> Result<(T, Change), E>,
) -> Result<T, E> {
    let deadline = Instant::now() + PATIENCE;
    let mut tries = 0;
    loop {
        let (mut manifest, condition) = read(object, limits).await?;
        let (outcome, change) = change(&mut manifest)?;
        if change == Change::Leave {
            return Ok(outcome);
        }
        manifest.updated_at = Some(Timestamp::now());
        tries += 1;
        match object.write(manifest.encode()?, &condition).await? {
            Write::Written => return Ok(outcome),
            Write::Conflict if tries == TRIES || Instant::now() > deadline => {
                return Err(Error::Busy { uri: object.uri().to_string(), tries }.into());
            }
            // Full jitter: of those that met once, few meet again.
            Write::Conflict => {
                let longest = Duration::from_millis(25 << tries.min(6));
                tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
            }
        }
    }
}
