//! A running server, as who gives it commands sees it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use crate::cli::running::Running;
use crate::config::{self, Token};
use crate::notification::Control;

/// Longer than a server takes to answer by default.
const PATIENCE: Duration = Duration::from_secs(40);
/// Far above any answer.
const ANSWER: usize = 64 << 10;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Server {
    /// The server, or its address for commands: http://host:8000
    #[arg(long, env = "HOTSERVE_SERVER", value_name = "URL")]
    server: Option<String>,
    /// File with the server's admin token; HOTSERVE_ADMIN_TOKEN may hold it instead
    #[arg(long, env = "HOTSERVE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Mean the running `hotserve dev`: the one of this HTTP port, or the last one started
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0")]
    dev: Option<u16>,
}

/// A problem document, as far as it is told.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: String,
    detail: String,
}

impl Server {
    /// The server's base address and its token.
    fn locate(self) -> anyhow::Result<(String, Token)> {
        // What the environment says must not keep anybody from --dev.
        if let Some(port) = self.dev {
            let running = Running::find(Some(port).filter(|port| *port != 0))?;
            return Ok((format!("http://{}", running.http), Token::parse(&running.admin_token)?));
        }
        let server = self.server.filter(|server| !server.is_empty()).ok_or_else(|| {
            let problem = "missing: say http://host:8000, or mean a hotserve dev with --dev";
            config::Error::new("--server (HOTSERVE_SERVER)", problem)
        })?;
        let token = Token::from_settings(self.admin_token_file.as_deref())?.ok_or_else(|| {
            config::Error::new(config::ADMIN_TOKEN, "missing: commands need the token that the server was started with")
        })?;
        Ok((server, token))
    }

    /// Gives a command, and answers what the server says of it.
    pub(super) async fn tell(self, control: &Control) -> anyhow::Result<Bytes> {
        let (server, token) = self.locate()?;
        let uri = control_uri(&server)?;
        let request = Request::post(uri)
            .header(header::AUTHORIZATION, format!("Bearer {}", token.secret()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(serde_json::to_vec(control)?))?;
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .context("read this machine's certificates")?
            .https_or_http()
            .enable_http1()
            .build();
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
        let exchange = async {
            let answer = client.request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER).collect().await.map_err(|error| anyhow!(error))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| anyhow!("{server} does not answer within {PATIENCE:?}"))?
            .with_context(|| format!("{server} does not answer"))?;
        if status.is_success() {
            return Ok(body);
        }
        let Problem { code, detail } = serde_json::from_slice(&body).unwrap_or_default();
        match (status, code.as_str()) {
            (StatusCode::UNAUTHORIZED, _) => {
                bail!("{server} does not take this token: it must be the one that the server was started with")
            }
            (StatusCode::NOT_FOUND, "not_found") => bail!(
                "{server} takes no commands here: start it with --admin-token-file, or, if it has --admin-listen or \
                 --ops-listen, name that address with --server"
            ),
            (_, "") => bail!("{server} answers {status}, and is perhaps no hotserve"),
            (_, code) => bail!("{server} says no ({code}): {detail}"),
        }
    }
}

fn control_uri(server: &str) -> Result<Uri, config::Error> {
    let bad = || {
        let problem = format!("{server:?} is no address of a server: write http://host:8000");
        config::Error::new("--server (HOTSERVE_SERVER)", problem)
    };
    let uri: Uri = format!("{}/admin/control", server.trim_end_matches('/')).parse().map_err(|_| bad())?;
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@')) && uri.query().is_none();
    if plain && matches!(uri.scheme_str(), Some("http" | "https")) { Ok(uri) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_its_address() {
        let path = |server: &str| control_uri(server).map(|uri| uri.to_string()).map_err(|error| error.to_string());
        for server in ["http://localhost:8000", "http://localhost:8000/"] {
            assert_eq!(path(server), Ok("http://localhost:8000/admin/control".to_owned()));
        }
        assert_eq!(path("https://x/hotserve/"), Ok("https://x/hotserve/admin/control".to_owned()));
        for bad in ["", "localhost", "localhost:8000", "ftp://x", "http://", "http://u:p@x", "http://x/?a", "/x"] {
            assert!(path(bad).is_err_and(|error| error.contains("--server")), "{bad:?}");
        }
    }
}
