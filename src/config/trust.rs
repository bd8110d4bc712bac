//! The keys that may sign messages, and what must be signed.

use std::sync::Arc;

use super::{Error, Settings};
use crate::trust::{Keyring, Required, Trust};

const KEYS: &str = "--trusted-keys (HOTSERVE_TRUSTED_KEYS)";

/// With keys, everything must be signed unless the operator says otherwise: keys that nothing is held against would
/// look like protection. `--require-signature off` is for the time in which publishers learn to sign.
pub(super) fn from_settings(settings: &Settings) -> Result<Option<Arc<Trust>>, Error> {
    let Some(path) = &settings.trusted_keys else {
        return match settings.require_signature {
            None | Some(Required::Off) => Ok(None),
            Some(required) => {
                let problem = format!(
                    "missing, and --require-signature {required} needs it: name a file with the keys that hotserve \
                     keygen prints"
                );
                Err(Error::new(KEYS, problem))
            }
        };
    };
    let keyring = Keyring::read(path).map_err(|error| Error::new(KEYS, error.to_string()))?;
    let required = settings.require_signature.unwrap_or(Required::All);
    if required != Required::Off && settings.allow_unverified == Some(true) {
        let problem = "signatures are required, and over a message without digest they would say nothing of the \
                       model's bytes: leave it out, or set --require-signature off";
        return Err(Error::new("--allow-unverified (HOTSERVE_ALLOW_UNVERIFIED)", problem));
    }
    Ok(Some(Arc::new(Trust::new(keyring, required))))
}
