//! The keys that may sign messages, and what must be signed.

use std::path::PathBuf;
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

/// Reads the keyring's file anew.
pub(super) fn reload(trust: Arc<Trust>, file: PathBuf) -> impl Fn() -> Result<Option<String>, Error> {
    move || {
        let keyring = Keyring::read(&file).map_err(|error| Error::new(KEYS, error.to_string()))?;
        if keyring == *trust.keyring() {
            return Ok(None);
        }
        let ids: Vec<_> = keyring.keys().iter().map(|key| key.id().as_str()).collect();
        let said = format!("{}: {} of the keys {} must sign", file.display(), keyring.threshold(), ids.join(", "));
        trust.replace(keyring);
        Ok(Some(said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::SigningKey;

    #[test]
    fn keys_are_held_against_everything_unless_the_operator_says_otherwise() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let key = SigningKey::generate().expect("random bytes");
        std::fs::write(file.path(), format!("[[keys]]\npublic = \"{}\"", key.public())).expect("writable");
        let keys = Some(file.path().to_owned());
        let judge = |trusted_keys: &Option<_>, require_signature, allow_unverified| {
            let trusted_keys = trusted_keys.clone();
            let settings = Settings { trusted_keys, require_signature, allow_unverified, ..Settings::default() };
            from_settings(&settings).map(|trust| trust.map(|trust| trust.required())).map_err(|error| error.setting)
        };
        assert_eq!(judge(&None, None, Some(true)), Ok(None));
        assert_eq!(judge(&None, Some(Required::Off), None), Ok(None));
        assert_eq!(judge(&None, Some(Required::Model), None), Err(KEYS.to_owned()));
        assert_eq!(judge(&keys, None, None), Ok(Some(Required::All)));
        assert_eq!(judge(&keys, Some(Required::Model), None), Ok(Some(Required::Model)));
        assert_eq!(judge(&keys, Some(Required::Off), Some(true)), Ok(Some(Required::Off)));
        let waived = judge(&keys, None, Some(true)).expect_err("contradictory");
        assert!(waived.contains("--allow-unverified"), "{waived}");
        assert_eq!(judge(&Some("/nonexistent".into()), Some(Required::Off), None), Err(KEYS.to_owned()));
        std::fs::write(file.path(), "").expect("writable");
        assert_eq!(judge(&keys, None, None), Err(KEYS.to_owned()), "an empty keyring is no keyring");
    }

    #[test]
    fn keys_are_read_anew_and_bad_ones_change_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let write = |key: &SigningKey| {
            std::fs::write(file.path(), format!("[[keys]]\npublic = \"{}\"", key.public())).expect("writable");
        };
        let [old, new] = [(); 2].map(|()| SigningKey::generate().expect("random bytes"));
        write(&old);
        let settings = Settings {
            stream: Some("updates".to_owned()),
            trusted_keys: Some(file.path().to_owned()),
            ..Settings::default()
        };
        let config = settings.validate().expect("valid");
        let trust = config.message.trust.expect("keys");
        let read = || config.reloads.run().pop().expect("one").outcome.map_err(|error| error.to_string());
        assert_eq!(read(), Ok(None), "they are as they were");
        write(&new);
        assert!(read().expect("good").expect("news").contains(new.public().id().as_str()));
        assert_eq!(trust.keyring().keys()[0].public(), new.public());
        std::fs::write(file.path(), "threshold = 3").expect("writable");
        assert!(read().expect_err("no keys").contains("hotserve keygen"));
        assert_eq!(trust.keyring().keys()[0].public(), new.public(), "the old ones are kept");
    }
}
