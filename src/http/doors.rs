//! The ports of a server: what each lets in, and who shows a certificate there.

use std::sync::Arc;

use super::listener::Door;
use super::tls::{Clients, Tls};
use super::{Http, limits};
use crate::config::Error;

/// The ports of a server.
#[derive(Clone)]
pub struct Doors {
    http: Arc<Http>,
    connections: usize,
    tls: Option<Arc<Tls>>,
}

impl Doors {
    /// As the settings say. It reads the certificate, and counts what descriptors there may be.
    pub fn open(http: Arc<Http>) -> Result<Self, Error> {
        let config = &http.config.connections;
        let connections = limits::connections(config.max_connections)?;
        http.metrics.connections_limit.set(connections as f64);
        let tls = config.tls.clone().map(|files| Tls::open(files, Arc::clone(&http.metrics))).transpose()?;
        Ok(Self { http, connections, tls })
    }

    /// The certificate, where TLS is spoken.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// The port for clients.
    pub fn clients(&self) -> Door {
        self.door(self.connections, Clients::Anybody)
    }

    /// The port for operators: who scrapes it needs no certificate, who gives commands may have one.
    pub fn ops(&self) -> Door {
        self.door(limits::OPERATORS, Clients::MayShow)
    }

    /// The port for commands alone. Where there is no token, nobody has any business there without a certificate.
    pub fn admin(&self) -> Door {
        let token = self.http.admin.as_ref().is_some_and(|admin| admin.token.is_some());
        self.door(limits::OPERATORS, if token { Clients::MayShow } else { Clients::MustShow })
    }

    fn door(&self, connections: usize, clients: Clients) -> Door {
        let config = &self.http.config.connections;
        Door {
            connections,
            head_timeout: config.head_timeout,
            idle_timeout: config.idle_timeout,
            tls: self.tls.as_ref().map(|tls| tls.acceptor(clients)),
            metrics: Arc::clone(&self.http.metrics),
        }
    }
}
