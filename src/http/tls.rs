//! TLS: who speaks it, and a certificate that is replaced while connections are made.

mod expiry;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_util::sync::CancellationToken;

use super::listener::ClientCertificate;
use crate::config::{self, TlsBytes, TlsConfigs, TlsFiles};
use crate::id::Digest;
use crate::metrics::Metrics;

/// How often the files are looked at. A change is taken when two looks have seen the same: who replaces a certificate
/// and its key one after the other is not caught in between.
const LOOK: Duration = Duration::from_secs(3);
/// After how many looks in a row that could not read them it is said: before, they may be on their way.
const UNREAD_LOOKS: u32 = 20;

/// The certificate of a server, as it is now.
pub struct Tls {
    files: TlsFiles,
    now: watch::Sender<Now>,
    seen: Mutex<Seen>,
    metrics: Arc<Metrics>,
}

/// What connections get.
struct Now {
    configs: TlsConfigs,
    /// Which authorities clients are asked for: each time they are others, another number.
    authority: u64,
}

struct Seen {
    used: TlsBytes,
    refused: Option<TlsBytes>,
    /// What the last look found, if it was something else.
    changed: Option<TlsBytes>,
    /// How many looks in a row could not read the files.
    unread: u32,
}

/// What a client must show at one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Nothing.
    Anybody,
    /// A certificate, if it has one.
    MayShow,
    /// A certificate.
    MustShow,
}

/// Who speaks TLS at one port.
#[derive(Clone)]
pub struct Acceptor {
    now: watch::Receiver<Now>,
    clients: Clients,
}

/// What the client of a connection has shown.
pub(super) struct Shown {
    certificate: ClientCertificate,
    authority: u64,
    now: watch::Receiver<Now>,
}

impl Shown {
    /// Its certificate, as long as those who gave it are asked for: a connection may be kept for days after that.
    pub(super) fn certificate(&self) -> Option<&ClientCertificate> {
        (self.now.borrow().authority == self.authority).then_some(&self.certificate)
    }
}

impl Tls {
    /// With what the files hold now.
    pub fn open(files: TlsFiles, metrics: Arc<Metrics>) -> Result<Arc<Self>, config::Error> {
        let bytes = files.read()?;
        let configs = files.prove(&bytes)?;
        if is_expired(&configs) {
            tracing::warn!(cert = %files.cert.display(), "the certificate has expired: clients will refuse it");
        }
        let seen = Mutex::new(Seen { used: bytes, refused: None, changed: None, unread: 0 });
        let tls = Self { files, now: watch::Sender::new(Now { configs, authority: 0 }), seen, metrics };
        tls.show();
        Ok(Arc::new(tls))
    }

    /// Who speaks it at a port.
    pub fn acceptor(&self, clients: Clients) -> Acceptor {
        Acceptor { now: self.now.subscribe(), clients }
    }

    /// Reads the files now. New connections get what they hold; where that is no certificate with its key, they get
    /// what they got before, and the answer says why; else it says whether it is another. It reads files: not for a thread that answers requests.
    pub fn reload(&self) -> Result<bool, config::Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.files.read().inspect_err(|_| self.count("failed"))?;
        self.judge(&mut seen, bytes)
    }

    /// Looks at the files until the end.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let tls = Arc::clone(&self);
            // A file may be on a disk that does not answer.
            if let Err(error) = tokio::task::spawn_blocking(move || tls.look()).await {
                tracing::error!(%error, "the look at the certificate ended badly");
            }
        }
    }

    fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match self.files.read() {
            Ok(bytes) => bytes,
            // A file that is away is being replaced, and one that stays away is not.
            Err(error) => {
                seen.unread = seen.unread.saturating_add(1);
                if seen.unread == UNREAD_LOOKS {
                    self.count("failed");
                    tracing::error!(%error, "no new certificate will be seen; the one before is used on");
                }
                return;
            }
        };
        if std::mem::take(&mut seen.unread) >= UNREAD_LOOKS {
            tracing::info!(cert = %self.files.cert.display(), "the certificate can be read again");
        }
        if seen.used == bytes {
            (seen.refused, seen.changed) = (None, None);
        } else if seen.refused.as_ref() == Some(&bytes) {
            seen.changed = None;
            // One that has expired is no worse than another.
            if is_expired(&self.now.borrow().configs)
                && let Ok(configs) = self.files.prove(&bytes)
            {
                self.take(&mut seen, bytes, configs);
            }
        } else if seen.changed.as_ref() == Some(&bytes) {
            if let Err(error) = self.judge(&mut seen, bytes) {
                tracing::error!(%error, "the new certificate cannot be used; the one before is used on");
            }
        } else {
            seen.changed = Some(bytes);
        }
    }

    fn judge(&self, seen: &mut Seen, bytes: TlsBytes) -> Result<bool, config::Error> {
        (seen.changed, seen.unread) = (None, 0);
        if seen.used == bytes {
            return Ok(false);
        }
        match self.files.prove(&bytes).and_then(|configs| self.is_no_step_back(configs)) {
            Ok(configs) => {
                self.take(seen, bytes, configs);
                Ok(true)
            }
            Err(error) => {
                seen.refused = Some(bytes);
                self.count("failed");
                Err(error)
            }
        }
    }

    fn take(&self, seen: &mut Seen, bytes: TlsBytes, configs: TlsConfigs) {
        self.now.send_modify(|now| {
            now.configs = configs;
            now.authority += u64::from(!bytes.has_authority_of(&seen.used));
        });
        (seen.used, seen.refused) = (bytes, None);
        self.count("applied");
        self.show();
        tracing::info!(cert = %self.files.cert.display(), "the new certificate is used for new connections");
    }

    fn is_no_step_back(&self, new: TlsConfigs) -> Result<TlsConfigs, config::Error> {
        if is_expired(&new) && !is_expired(&self.now.borrow().configs) {
            let setting = format!("--tls-cert (HOTSERVE_TLS_CERT) {}", self.files.cert.display());
            return Err(config::Error::new(setting, "has expired, and the certificate in use has not"));
        }
        Ok(new)
    }

    fn show(&self) {
        let expiry = expiry::of(&self.now.borrow().configs.certificate);
        self.metrics.tls_certificate_expiry.set(expiry.map_or(0.0, |seconds| seconds as f64));
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.tls_reloads.get(&[outcome]).increment(1);
    }
}

fn is_expired(configs: &TlsConfigs) -> bool {
    expiry::of(&configs.certificate).is_some_and(|expiry| expiry <= jiff::Timestamp::now().as_second())
}

impl Acceptor {
    /// Agrees with a client on TLS. The certificate that it has shown was proved.
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, Option<Shown>)> {
        let (config, authority): (Arc<rustls::ServerConfig>, u64) = {
            let now = self.now.borrow();
            let config = match self.clients {
                Clients::Anybody => &now.configs.open,
                Clients::MayShow => &now.configs.asking,
                Clients::MustShow => &now.configs.demanding,
            };
            (Arc::clone(config), now.authority)
        };
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let shown = shown.map(|shown| Shown {
            certificate: ClientCertificate(Digest::of(shown).to_string().into()),
            authority,
            now: self.now.clone(),
        });
        Ok((stream, shown))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::metrics::Scraped;

    struct Files(tempfile::TempDir);

    impl Files {
        /// A certificate that ends in this year.
        fn write(&self, until_year: i32) {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
            let key = KeyPair::generate().unwrap();
            std::fs::write(self.0.path().join("cert"), params.self_signed(&key).unwrap().pem()).unwrap();
            std::fs::write(self.0.path().join("key"), key.serialize_pem()).unwrap();
        }

        fn open(&self) -> Arc<Tls> {
            let path = |name| self.0.path().join(name);
            Tls::open(TlsFiles { cert: path("cert"), key: path("key"), client_ca: None }, Metrics::new()).unwrap()
        }
    }

    fn reloads(tls: &Tls, outcome: &str) -> String {
        let text = tls.metrics.render(&Scraped::default());
        let series = format!("hotserve_tls_reloads_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().to_owned()
    }

    #[test]
    fn what_was_refused_is_refused_again_and_taken_when_the_one_in_use_is_no_better() {
        let files = Files(tempfile::tempdir().unwrap());
        files.write(2090);
        let tls = files.open();
        assert!(!tls.reload().unwrap(), "it is as it was");
        files.write(2002);
        for _ in 0..2 {
            assert!(tls.reload().unwrap_err().to_string().contains("has expired"));
        }
        tls.look();
        assert_eq!((reloads(&tls, "applied"), reloads(&tls, "failed")), ("0".to_owned(), "2".to_owned()));
        // The clock cannot be turned: the one in use is one that has expired.
        let expired = Files(tempfile::tempdir().unwrap());
        expired.write(2001);
        let configs = expired.open().now.borrow().configs.clone();
        tls.now.send_modify(|now| now.configs = configs);
        tls.look();
        assert_eq!((reloads(&tls, "applied"), reloads(&tls, "failed")), ("1".to_owned(), "2".to_owned()));
    }

    #[test]
    fn files_that_cannot_be_read_for_long_are_counted_once() {
        let files = Files(tempfile::tempdir().unwrap());
        files.write(2090);
        let tls = files.open();
        std::fs::remove_file(files.0.path().join("key")).unwrap();
        for _ in 1..UNREAD_LOOKS {
            tls.look();
        }
        assert_eq!(reloads(&tls, "failed"), "0", "it may be on its way");
        for _ in 0..UNREAD_LOOKS {
            tls.look();
        }
        assert_eq!(reloads(&tls, "failed"), "1");
        files.write(2091);
        tls.look();
        tls.look();
        assert_eq!(reloads(&tls, "applied"), "1");
    }
}
