//! Who may tell a server what to serve.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Error, Settings};
use crate::id::Digest;

/// The settings that a token comes from.
pub const TOKEN: &str = "--admin-token-file (HOTSERVE_ADMIN_TOKEN_FILE), HOTSERVE_ADMIN_TOKEN";
/// A shorter token could be guessed.
const SHORTEST: usize = 16;
const LONGEST: usize = 1024;

/// A bearer token. It is shown nowhere: neither in a log nor in an error. Who replaces it replaces it for all who have it.
#[derive(Clone)]
pub struct Token(Arc<RwLock<String>>);

impl Token {
    /// Reads a token from a file, else from the environment; none where there is neither. It is no flag: every user of a
    /// machine sees the flags of its processes.
    pub fn from_settings(file: Option<&Path>) -> Result<Option<Self>, Error> {
        match file.filter(|file| !file.as_os_str().is_empty()) {
            Some(file) => {
                let unread = |error| Error::new(TOKEN, format!("read {}: {error}", file.display()));
                Self::parse(&std::fs::read_to_string(file).map_err(unread)?).map(Some)
            }
            None => {
                #[expect(clippy::disallowed_methods, reason = "a secret is no flag, which clap would make of it")]
                let text = std::env::var("HOTSERVE_ADMIN_TOKEN").unwrap_or_default();
                if text.is_empty() { Ok(None) } else { Self::parse(&text).map(Some) }
            }
        }
    }

    /// A token that is fit for a header; white space around it is not part of it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let length = text.chars().count();
        let problem = if !(SHORTEST..=LONGEST).contains(&length) {
            format!("the token has {length} characters, and must have {SHORTEST} to {LONGEST}")
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            "the token has a character that is neither a letter, a digit nor a sign of ASCII".to_owned()
        } else {
            return Ok(Self(Arc::new(RwLock::new(text.to_owned()))));
        };
        Err(Error::new(TOKEN, format!("{problem}: make one with openssl rand -hex 32")))
    }

    /// The token itself, to be sent.
    pub fn secret(&self) -> String {
        // A text is replaced as a whole: it is sound even if a writer panicked.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another from now on, for all who have this one. Answers whether it is another.
    pub fn replace(&self, other: &Self) -> bool {
        let other = other.secret();
        let mut token = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *token != other;
        *token = other;
        changed
    }

    /// Whether this is the token. Digests are compared: how long that takes says nothing about the token.
    pub fn is(&self, presented: &str) -> bool {
        Digest::of(self.secret().as_bytes()) == Digest::of(presented.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The commands at `/admin`.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// What whoever gives them must present; without one, a client certificate.
    pub token: Option<Token>,
    /// Where they are taken, and nowhere else; without one, where the operators' paths are.
    pub listen: Option<SocketAddr>,
}

/// Reads the token's file anew, for who has the token.
pub(super) fn reload(token: Token, file: PathBuf) -> impl Fn() -> Result<Option<String>, Error> {
    move || {
        let read = Token::from_settings(Some(&file))?;
        let changed = read.is_some_and(|read| token.replace(&read));
        Ok(changed.then(|| format!("{}: another token", file.display())))
    }
}

impl AdminConfig {
    pub(super) fn from_settings(settings: &Settings) -> Result<Option<Self>, Error> {
        let token = match &settings.admin_token {
            Some(token) => Some(token.clone()),
            None => Token::from_settings(settings.admin_token_file.as_deref())?,
        };
        let certificates = settings.tls_client_ca.as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        match (token, settings.admin_listen) {
            (None, None) if !certificates => Ok(None),
            (token, listen) if token.is_some() || certificates => Ok(Some(Self { token, listen })),
            _ => {
                let problem = "nobody could give a command there: set --admin-token-file or HOTSERVE_ADMIN_TOKEN too, \
                               or --tls-client-ca";
                Err(Error::new("--admin-listen (HOTSERVE_ADMIN_LISTEN)", problem))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "0123456789abcdef";

    #[test]
    fn a_token_is_long_enough_fit_for_a_header_and_never_shown() {
        assert_eq!(Token::parse(&format!(" {GOOD}\n")).expect("valid").secret(), GOOD);
        for bad in ["", "short", &GOOD[1..], "0123456789 abcdef", "0123456789abcdeé", &"x".repeat(LONGEST + 1)] {
            let error = Token::parse(bad).expect_err(bad);
            assert_eq!(error.setting, TOKEN);
            assert!(bad.is_empty() || !format!("{error} {error:?}").contains(bad), "{error}");
            assert!(error.problem.contains("openssl"), "{error}");
        }
        let settings = Settings { admin_token: Token::parse(GOOD).ok(), ..Settings::default() };
        assert!(!format!("{settings:?}").contains(GOOD));
    }

    #[test]
    fn only_the_very_token_is_the_token() {
        let token = Token::parse(GOOD).expect("valid");
        assert!(token.is(GOOD));
        for other in ["", "0", &GOOD[1..], "0123456789abcdeF", "0123456789abcdef ", "0123456789abcdef0"] {
            assert!(!token.is(other), "{other:?}");
        }
    }

    #[test]
    fn a_token_that_is_read_anew_is_that_of_all_who_have_it() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), GOOD).expect("writable");
        let settings = Settings {
            stream: Some("updates".to_owned()),
            admin_token_file: Some(file.path().to_owned()),
            ..Settings::default()
        };
        let config = settings.validate().expect("valid");
        let token = config.http.admin.and_then(|admin| admin.token).expect("a token");
        let read = || config.reloads.run().pop().expect("one").outcome.map_err(|error| error.to_string());
        assert_eq!(read(), Ok(None), "it is as it was");
        std::fs::write(file.path(), "fedcba9876543210\n").expect("writable");
        let said = read().expect("a good one").expect("news");
        assert!(!said.contains("fedcba"), "{said}");
        assert!(token.is("fedcba9876543210") && !token.is(GOOD));
        std::fs::write(file.path(), "short").expect("writable");
        assert!(read().expect_err("too short").contains("openssl rand"));
        assert!(token.is("fedcba9876543210"), "the old one is kept");
    }

    #[test]
    fn a_file_wins_over_nothing_and_a_port_needs_a_token() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("{GOOD}\n")).expect("writable");
        let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let settings =
            Settings { admin_token_file: Some(file.path().to_owned()), admin_listen: listen, ..Settings::default() };
        let admin = AdminConfig::from_settings(&settings).expect("valid").expect("a token");
        assert!(admin.token.is_some_and(|token| token.is(GOOD)) && admin.listen == listen);
        let settings = Settings { admin_token_file: Some("/nonexistent".into()), ..Settings::default() };
        assert!(AdminConfig::from_settings(&settings).expect_err("no file").problem.contains("/nonexistent"));
        let settings = Settings { admin_listen: listen, ..Settings::default() };
        assert!(AdminConfig::from_settings(&settings).expect_err("no token").setting.contains("--admin-listen"));
    }
}
