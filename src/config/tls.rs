//! The certificate of a server, its key, and the authority of those who give it commands: files, read and proved.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, crypto};

use super::Error;

/// The files, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those that lead from it to one that clients know.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The certificates of those whose clients may give commands.
    pub client_ca: Option<PathBuf>,
}

/// What the files hold, as it is read: bytes that may change again.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsBytes {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// What the files hold, proved: the key is that of the certificate.
#[derive(Clone)]
pub struct TlsConfigs {
    /// The server's own certificate.
    pub certificate: CertificateDer<'static>,
    /// For who shows no certificate.
    pub open: Arc<ServerConfig>,
    /// For who may show one; the same as `open` where there is no authority.
    pub asking: Arc<ServerConfig>,
    /// For who must show one; the same as `open` where there is no authority.
    pub demanding: Arc<ServerConfig>,
}

impl TlsBytes {
    /// Whether clients that show a certificate show one of the same authorities.
    pub fn has_authority_of(&self, other: &Self) -> bool {
        self.client_ca == other.client_ca
    }
}

impl TlsFiles {
    /// Reads and proves them.
    pub fn load(&self) -> Result<TlsConfigs, Error> {
        self.prove(&self.read()?)
    }

    /// Reads them.
    pub fn read(&self) -> Result<TlsBytes, Error> {
        let read = |setting: fn(&Path) -> String, path: &Path| {
            std::fs::read(path).map_err(|error| Error::new(setting(path), format!("cannot be read: {error}")))
        };
        let client_ca = self.client_ca.as_deref().map(|path| read(client_ca_setting, path)).transpose()?;
        Ok(TlsBytes { cert: read(cert_setting, &self.cert)?, key: read(key_setting, &self.key)?, client_ca })
    }

    /// Whether these bytes are certificates and the key that belongs to them.
    pub fn prove(&self, bytes: &TlsBytes) -> Result<TlsConfigs, Error> {
        let chain = certificates(&bytes.cert, || cert_setting(&self.cert))?;
        let key = PrivateKeyDer::from_pem_slice(&bytes.key).map_err(|error| {
            let problem = format!("holds no private key in PEM that is not encrypted ({error})");
            Error::new(key_setting(&self.key), problem)
        })?;
        let certificate = chain.first().cloned().ok_or_else(|| Error::new(cert_setting(&self.cert), "is empty"))?;
        let roots = match (&bytes.client_ca, &self.client_ca) {
            (Some(bytes), Some(path)) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(bytes, || client_ca_setting(path))? {
                    roots.add(root).map_err(|error| Error::new(client_ca_setting(path), error.to_string()))?;
                }
                Some((Arc::new(roots), path))
            }
            _ => None,
        };
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let config = |clients: Clients| -> Result<Arc<ServerConfig>, Error> {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
            let builder = builder
                .with_safe_default_protocol_versions()
                .map_err(|error| Error::new(cert_setting(&self.cert), error.to_string()))?;
            let builder = match (&roots, clients) {
                (None, _) | (_, Clients::Anybody) => builder.with_no_client_auth(),
                (Some((roots, path)), clients) => {
                    let verifier =
                        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider));
                    let verifier = match clients {
                        Clients::MayShow => verifier.allow_unauthenticated(),
                        _ => verifier,
                    };
                    let verifier =
                        verifier.build().map_err(|error| Error::new(client_ca_setting(path), error.to_string()))?;
                    builder.with_client_cert_verifier(verifier)
                }
            };
            let mut config = builder.with_single_cert(chain.clone(), key.clone_key()).map_err(|error| {
                let problem = match error {
                    rustls::Error::InconsistentKeys(_) => {
                        format!("is not the key of the certificate {}", self.cert.display())
                    }
                    error => format!("does not go with {}: {error}", self.cert.display()),
                };
                Error::new(key_setting(&self.key), problem)
            })?;
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok(Arc::new(config))
        };
        Ok(TlsConfigs {
            certificate,
            open: config(Clients::Anybody)?,
            asking: config(Clients::MayShow)?,
            demanding: config(Clients::MustShow)?,
        })
    }
}

#[derive(Clone, Copy)]
enum Clients {
    Anybody,
    MayShow,
    MustShow,
}

fn cert_setting(path: &Path) -> String {
    format!("--tls-cert (HOTSERVE_TLS_CERT) {}", path.display())
}

fn key_setting(path: &Path) -> String {
    format!("--tls-key (HOTSERVE_TLS_KEY) {}", path.display())
}

fn client_ca_setting(path: &Path) -> String {
    format!("--tls-client-ca (HOTSERVE_TLS_CLIENT_CA) {}", path.display())
}

fn certificates(pem: &[u8], setting: impl Fn() -> String) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::new(setting(), "holds no certificate in PEM: it begins with -----BEGIN CERTIFICATE-----")),
        Err(error) => Err(Error::new(setting(), format!("is no PEM: {error}"))),
    }
}
