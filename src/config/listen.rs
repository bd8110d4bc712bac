//! The sockets: who may connect, how long they may take, by which protocol, and where the operators' paths are.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::HeaderValue;

use super::tls::TlsFiles;
use super::{Error, Settings, at_least};

/// How clients are let in.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// How many connections may be open to the server's port; none means as many as the process has room for.
    pub max_connections: Option<usize>,
    /// How many requests may be under way; none means any number.
    pub max_in_flight: Option<usize>,
    /// The longest time from the first byte of a request's head to its last one.
    pub head_timeout: Duration,
    /// The longest time that a connection is kept without a request.
    pub idle_timeout: Duration,
    /// The certificate, where TLS is spoken.
    pub tls: Option<TlsFiles>,
    /// Where everything is that is not for clients; none means where they are.
    pub ops: Option<SocketAddr>,
    /// The pages that may ask, by their origin.
    pub cors: Option<Origins>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_in_flight: None,
            head_timeout: Duration::from_secs(10),
            // Longer than the 60 s for which load balancers keep an idle connection: who closes first must be the side
            // that sends the requests, else one is lost in the closing.
            idle_timeout: Duration::from_secs(75),
            tls: None,
            ops: None,
            cors: None,
        }
    }
}

impl ListenConfig {
    pub(super) fn from_settings(settings: &Settings) -> Result<Self, Error> {
        let defaults = Self::default();
        let least = Duration::from_millis(100);
        let time = |setting: &str, value, default| at_least(setting, value, default, least);
        Ok(Self {
            max_connections: some_but_zero("--max-connections (HOTSERVE_MAX_CONNECTIONS)", settings.max_connections)?,
            max_in_flight: some_but_zero("--max-in-flight (HOTSERVE_MAX_IN_FLIGHT)", settings.max_in_flight)?,
            head_timeout: time("--head-timeout (HOTSERVE_HEAD_TIMEOUT)", settings.head_timeout, defaults.head_timeout)?,
            idle_timeout: time("--idle-timeout (HOTSERVE_IDLE_TIMEOUT)", settings.idle_timeout, defaults.idle_timeout)?,
            tls: tls(settings)?,
            ops: settings.ops_listen,
            cors: Origins::from_settings(&settings.cors_origins)?,
        })
    }
}

fn some_but_zero(setting: &str, value: Option<usize>) -> Result<Option<usize>, Error> {
    match value {
        Some(0) => Err(Error::new(setting, "0 would let nobody in: 1 or more")),
        value => Ok(value),
    }
}

fn tls(settings: &Settings) -> Result<Option<TlsFiles>, Error> {
    const CERT: &str = "--tls-cert (HOTSERVE_TLS_CERT)";
    const KEY: &str = "--tls-key (HOTSERVE_TLS_KEY)";
    const CLIENT_CA: &str = "--tls-client-ca (HOTSERVE_TLS_CLIENT_CA)";
    // A setting of a file that is empty is one that is not there.
    fn given(path: Option<&Path>) -> Option<&Path> {
        path.filter(|path| !path.as_os_str().is_empty())
    }
    let (cert, key) = (given(settings.tls_cert.as_deref()), given(settings.tls_key.as_deref()));
    let client_ca = given(settings.tls_client_ca.as_deref());
    let (cert, key) = match (cert, key, client_ca) {
        (Some(cert), Some(key), _) => (cert.to_owned(), key.to_owned()),
        (Some(_), None, _) => return Err(Error::new(CERT, format!("it needs its private key: set {KEY} too"))),
        (None, Some(_), _) => return Err(Error::new(KEY, format!("it needs its certificate: set {CERT} too"))),
        (None, None, Some(_)) => {
            let problem = format!("clients show certificates over TLS only: set {CERT} and {KEY} too");
            return Err(Error::new(CLIENT_CA, problem));
        }
        (None, None, None) => return Ok(None),
    };
    if client_ca.is_some() && settings.admin_listen.is_none() && settings.ops_listen.is_none() {
        let problem = "it is asked for where commands are taken, and clients are not to be asked: set --admin-listen \
                       (HOTSERVE_ADMIN_LISTEN) or --ops-listen (HOTSERVE_OPS_LISTEN) too";
        return Err(Error::new(CLIENT_CA, problem));
    }
    let files = TlsFiles { cert, key, client_ca: client_ca.map(Path::to_owned) };
    // What cannot be read or does not fit is said before anything starts.
    files.load()?;
    Ok(Some(files))
}

/// Origins of pages that may read what is answered, as browsers tell them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Any page.
    Any,
    /// Pages of these, `https://app.example.com`.
    Only(Vec<HeaderValue>),
}

impl Origins {
    const SETTING: &str = "--cors-origin (HOTSERVE_CORS_ORIGINS)";

    fn from_settings(origins: &[String]) -> Result<Option<Self>, Error> {
        let origins: Vec<&str> =
            origins.iter().map(|origin| origin.trim()).filter(|origin| !origin.is_empty()).collect();
        match origins.as_slice() {
            [] => Ok(None),
            ["*"] => Ok(Some(Self::Any)),
            origins if origins.contains(&"*") => {
                Err(Error::new(Self::SETTING, "* is every origin: give it alone, or the origins without it"))
            }
            origins => {
                origins.iter().map(|origin| Self::parse(origin)).collect::<Result<_, _>>().map(Self::Only).map(Some)
            }
        }
    }

    /// An origin as a browser writes it: one that differs in a letter would never match.
    fn parse(origin: &str) -> Result<HeaderValue, Error> {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let host = rest.is_some_and(|rest| {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte);
            !rest.is_empty() && rest.bytes().all(plain)
        });
        let default_port = (origin.starts_with("https://") && origin.ends_with(":443"))
            || (origin.starts_with("http://") && origin.ends_with(":80"));
        let value = HeaderValue::from_str(origin).ok().filter(|_| host && !default_port);
        value.ok_or_else(|| {
            let problem = format!(
                "{origin:?} is no origin: write https://app.example.com or http://localhost:3000, in lower case, \
                 without a path and without the port that the scheme means anyway, or *"
            );
            Error::new(Self::SETTING, problem)
        })
    }

    /// Whether a page of this origin may read what is answered.
    pub fn allow(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Only(origins) => origins.contains(origin),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::HumanDuration;
    use super::*;

    fn refused(settings: &Settings, setting: &str, says: &str) {
        let error = ListenConfig::from_settings(settings).expect_err(setting);
        assert!(error.setting.starts_with(setting) && error.to_string().contains(says), "{error}");
    }

    #[test]
    fn halves_of_tls_are_named_with_the_half_that_is_missing() {
        let (cert, key) = (Some("/nonexistent/tls.crt".into()), Some("/nonexistent/tls.key".into()));
        let ca = Some("/nonexistent/ca.crt".into());
        refused(
            &Settings { tls_cert: cert.clone(), ..Settings::default() },
            "--tls-cert",
            "--tls-key (HOTSERVE_TLS_KEY)",
        );
        refused(
            &Settings { tls_key: key.clone(), ..Settings::default() },
            "--tls-key",
            "--tls-cert (HOTSERVE_TLS_CERT)",
        );
        refused(&Settings { tls_client_ca: ca.clone(), ..Settings::default() }, "--tls-client-ca", "--tls-cert");
        let all = Settings { tls_cert: cert, tls_key: key, ..Settings::default() };
        refused(&Settings { tls_client_ca: ca, ..all.clone() }, "--tls-client-ca", "--ops-listen");
        refused(&all, "--tls-cert", "/nonexistent/tls.crt");
        let empty = Settings { tls_cert: Some("".into()), tls_key: Some("".into()), ..Settings::default() };
        assert!(ListenConfig::from_settings(&empty).expect("valid").tls.is_none());
    }

    #[test]
    fn a_limit_of_nothing_is_refused() {
        refused(&Settings { max_connections: Some(0), ..Settings::default() }, "--max-connections", "1 or more");
        refused(&Settings { max_in_flight: Some(0), ..Settings::default() }, "--max-in-flight", "1 or more");
        let short = Some(HumanDuration(Duration::ZERO));
        refused(&Settings { head_timeout: short, ..Settings::default() }, "--head-timeout", "too short");
        refused(&Settings { idle_timeout: short, ..Settings::default() }, "--idle-timeout", "too short");
    }

    #[test]
    fn origins_are_as_browsers_write_them() {
        let origins =
            |texts: &[&str]| Origins::from_settings(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        assert_eq!(origins(&[]).expect("valid"), None);
        assert_eq!(origins(&["*"]).expect("valid"), Some(Origins::Any));
        let some = origins(&["https://a.example", " http://localhost:3000", "http://[::1]:80"]);
        assert!(some.is_err(), "port 80 is what http means");
        let some = origins(&["https://a.example", " http://localhost:3000"]).expect("valid").expect("some");
        assert!(some.allow(&HeaderValue::from_static("http://localhost:3000")));
        for other in ["http://a.example", "https://a.example:8443", "https://b.a.example", "null"] {
            assert!(!some.allow(&HeaderValue::from_static(other)), "{other}");
        }
        for bad in [
            "null",
            "a.example",
            "https://",
            "https://A.example",
            "https://a.example/",
            "https://a.example/x",
            "ftp://a.example",
            "https://a.example:443",
            "https://user@a.example",
        ] {
            let error = origins(&[bad]).expect_err(bad);
            assert!(error.to_string().contains("--cors-origin (HOTSERVE_CORS_ORIGINS)"), "{error}");
        }
        assert!(origins(&["*", "https://a.example"]).is_err());
    }
}
