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

/// The certificate of a server, as it is now.
pub struct Tls {
    files: TlsFiles,
    now: watch::Sender<TlsConfigs>,
    seen: Mutex<Seen>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Seen {
    /// What is used, or was refused.
    judged: Option<TlsBytes>,
    /// What the last look found, if it was something else.
    changed: Option<TlsBytes>,
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
    now: watch::Receiver<TlsConfigs>,
    clients: Clients,
}

impl Tls {
    /// With what the files hold now.
    pub fn open(files: TlsFiles, metrics: Arc<Metrics>) -> Result<Arc<Self>, config::Error> {
        let bytes = files.read()?;
        let configs = files.prove(&bytes)?;
        if expiry::of(&configs.certificate).is_some_and(|expiry| expiry <= now()) {
            tracing::warn!(cert = %files.cert.display(), "the certificate has expired: clients will refuse it");
        }
        let seen = Mutex::new(Seen { judged: Some(bytes), changed: None });
        let tls = Self { files, now: watch::Sender::new(configs), seen, metrics };
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
        seen.changed = None;
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
        // A file that is away is being replaced; what is wrong with it for long is said when it is there.
        let Ok(bytes) = self.files.read() else { return };
        if seen.judged.as_ref() == Some(&bytes) {
            seen.changed = None;
        } else if seen.changed.as_ref() == Some(&bytes) {
            seen.changed = None;
            if let Err(error) = self.judge(&mut seen, bytes) {
                tracing::error!(%error, "the new certificate cannot be used; the one before is used on");
            }
        } else {
            seen.changed = Some(bytes);
        }
    }

    fn judge(&self, seen: &mut Seen, bytes: TlsBytes) -> Result<bool, config::Error> {
        if seen.judged.as_ref() == Some(&bytes) && self.files.prove(&bytes).is_ok() {
            return Ok(false);
        }
        let proved = self.files.prove(&bytes).and_then(|configs| self.is_no_step_back(configs));
        seen.judged = Some(bytes);
        let configs = proved.inspect_err(|_| self.count("failed"))?;
        self.now.send_replace(configs);
        self.count("applied");
        self.show();
        tracing::info!(cert = %self.files.cert.display(), "the new certificate is used for new connections");
        Ok(true)
    }

    fn is_no_step_back(&self, new: TlsConfigs) -> Result<TlsConfigs, config::Error> {
        let is_expired = |configs: &TlsConfigs| expiry::of(&configs.certificate).is_some_and(|expiry| expiry <= now());
        if is_expired(&new) && !is_expired(&self.now.borrow()) {
            let setting = format!("--tls-cert (HOTSERVE_TLS_CERT) {}", self.files.cert.display());
            return Err(config::Error::new(setting, "has expired, and the certificate in use has not"));
        }
        Ok(new)
    }

    fn show(&self) {
        let expiry = expiry::of(&self.now.borrow().certificate);
        self.metrics.tls_certificate_expiry.set(expiry.map_or(0.0, |seconds| seconds as f64));
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.tls_reloads.get(&[outcome]).increment(1);
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

impl Acceptor {
    /// Agrees with a client on TLS. The certificate that it has shown was proved.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> std::io::Result<(TlsStream<TcpStream>, Option<ClientCertificate>)> {
        let config: Arc<rustls::ServerConfig> = {
            let now = self.now.borrow();
            Arc::clone(match self.clients {
                Clients::Anybody => &now.open,
                Clients::MayShow => &now.asking,
                Clients::MustShow => &now.demanding,
            })
        };
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.map(|shown| ClientCertificate(Digest::of(shown).to_string().into()));
        Ok((stream, certificate))
    }
}
