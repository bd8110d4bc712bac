//! The sockets: TLS, the port of operators, pages of other origins, and what a server under load does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hotserve::app::{Adapters, App, Boards};
use hotserve::config::{Settings, Token};
use hotserve::http::tls::Tls;
use hotserve::source::memory::{Feeder, MemorySource};
use hotserve::store::memory::MemoryStore;
use hotserve_models::Loaders;
use http::StatusCode;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cli::{hotserve, run};
use crate::support::{Client, Server, probe, until};

const TOKEN: &str = "0123456789abcdef-secret";
const ANY: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

/// An authority and what it has signed, in files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority of tests");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate that ends in this year, as `NAME.crt` and `NAME.key`.
    fn sign(&self, name: &str, until_year: i32) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn settings(&self, settings: &mut Settings) {
        settings.tls_cert = Some(self.path("server.crt"));
        settings.tls_key = Some(self.path("server.key"));
    }

    /// A client that trusts it, and may show a certificate of its own.
    fn connector(&self, shows: Option<&Path>, protocol: &[u8]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let chain = vec![CertificateDer::from_pem_file(path.with_extension("crt")).unwrap()];
                let key = PrivateKeyDer::from_pem_file(path.with_extension("key")).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// One request over TLS: the answer, and when the server's certificate said it ends, as the bytes of it.
    async fn ask(
        &self,
        addr: SocketAddr,
        shows: Option<&str>,
        request: &str,
    ) -> Result<(String, Vec<u8>), std::io::Error> {
        let connector = self.connector(shows.map(|name| self.path(name)).as_deref(), b"http/1.1");
        let stream = TcpStream::connect(addr).await?;
        let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok((answer, certificate))
    }

    async fn get(&self, addr: SocketAddr, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        self.ask(addr, None, &request).await.unwrap().0
    }
}

/// A server that is fed by hand, and the ports that it has.
struct Ports {
    server: Server,
    _feeder: Feeder,
    ops: Option<SocketAddr>,
    tls: Option<Arc<Tls>>,
}

async fn serve(change: impl FnOnce(&mut Settings)) -> Ports {
    let mut settings = Settings {
        stream: Some("memory".to_owned()),
        host: Some([127, 0, 0, 1].into()),
        port: Some(0),
        ..Settings::default()
    };
    change(&mut settings);
    let mut config = settings.validate().unwrap();
    config.gates.isolation.program = Some(probe());
    let (source, feeder) = MemorySource::new();
    let adapters =
        Adapters { source: Box::new(source), s3: Arc::new(MemoryStore::default()), loaders: Loaders::bundled() };
    let app = App::bind(config, adapters, Boards::default()).await.unwrap();
    let (ops, tls) = (app.ops_addr(), app.tls());
    Ports { server: Server::run(app), _feeder: feeder, ops, tls }
}

fn with_token(settings: &mut Settings) {
    settings.admin_token = Some(Token::parse(TOKEN).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_both_protocols_and_with_nobody_who_speaks_something_else() {
    let authority = Authority::new();
    authority.sign("server", 2090);
    let ports = serve(|settings| authority.settings(settings)).await;
    let addr = ports.server.addr;
    assert!(authority.get(addr, "/state").await.starts_with("HTTP/1.1 200"));
    // HTTP/2, by what the handshake agrees on: the server's SETTINGS come first.
    let connector = authority.connector(None, b"h2");
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, TcpStream::connect(addr).await.unwrap()).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4);
    // Without TLS there is no answer, and the next is served.
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"GET /state HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let metrics = authority.get(addr, "/metrics").await;
    // 2090-01-01T00:00:00Z.
    assert!(metrics.contains("hotserve_tls_certificate_expiry_timestamp_seconds 3786912000\n"), "{metrics}");
    assert!(metrics.contains(r#"hotserve_connections_ended_total{how="handshake"} 1"#), "{metrics}");
    ports.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_used_without_a_restart_and_a_bad_one_is_not() {
    let authority = Authority::new();
    authority.sign("server", 2090);
    let ports = serve(|settings| authority.settings(settings)).await;
    let (addr, tls) = (ports.server.addr, ports.tls.clone().unwrap());
    let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let certificate = async || authority.ask(addr, None, request).await.unwrap().1;
    let first = certificate().await;

    // Seen within a few seconds, by itself.
    authority.sign("server", 2091);
    let second = until("the new certificate", async || Some(certificate().await).filter(|now| *now != first)).await;
    // Told to look, at once. One that has expired, a key of another, and no key at all are said, and not used.
    authority.sign("old", 2001);
    authority.sign("other", 2092);
    for (cert, key, says) in [
        ("old.crt", "old.key", "has expired"),
        ("server.crt", "other.key", "is not the key of the certificate"),
        ("server.crt", "ca.crt", "no private key"),
        ("server.key", "server.key", "no certificate"),
    ] {
        let (cert, key) = (std::fs::read(authority.path(cert)), std::fs::read(authority.path(key)));
        let (good_cert, good_key) = (
            std::fs::read(authority.path("server.crt")).unwrap(),
            std::fs::read(authority.path("server.key")).unwrap(),
        );
        std::fs::write(authority.path("server.crt"), cert.unwrap()).unwrap();
        std::fs::write(authority.path("server.key"), key.unwrap()).unwrap();
        let error = tls.reload().unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("--tls-"), "{error}");
        assert_eq!(certificate().await, second, "{says}");
        std::fs::write(authority.path("server.crt"), good_cert).unwrap();
        std::fs::write(authority.path("server.key"), good_key).unwrap();
        tls.reload().unwrap();
        assert_eq!(certificate().await, second);
    }
    std::fs::copy(authority.path("other.crt"), authority.path("server.crt")).unwrap();
    std::fs::copy(authority.path("other.key"), authority.path("server.key")).unwrap();
    tls.reload().unwrap();
    assert_ne!(certificate().await, second);
    let metrics = authority.get(addr, "/metrics").await;
    assert!(metrics.contains(r#"hotserve_tls_reloads_total{outcome="failed"} 4"#), "{metrics}");
    ports.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_taken_from_who_shows_a_certificate_of_the_authority_or_has_the_token() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.sign("server", 2090);
    authority.sign("operator", 2090);
    stranger.sign("operator", 2090);
    let body = json!({"action": "rollback", "model": "nope"}).to_string();
    let command = |token: bool| {
        let bearer = if token { format!("authorization: Bearer {TOKEN}\r\n") } else { String::new() };
        format!(
            "POST /admin/control HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{bearer}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let (told, refused) = ("HTTP/1.1 404", "HTTP/1.1 401");
    for (has_token, own_port) in [(true, true), (true, false), (false, true), (false, false)] {
        let ports = serve(|settings| {
            authority.settings(settings);
            settings.tls_client_ca = Some(authority.path("ca.crt"));
            if own_port {
                settings.admin_listen = Some(ANY.into())
            } else {
                settings.ops_listen = Some(ANY.into())
            }
            if has_token {
                with_token(settings);
            }
        })
        .await;
        let addr = ports.server.admin.unwrap();
        let answer = authority.ask(addr, Some("operator"), &command(false)).await.unwrap().0;
        assert!(answer.starts_with(told) && answer.contains("no_slot"), "{answer}");
        let without = authority.ask(addr, None, &command(false)).await;
        match (has_token, own_port) {
            // Nobody has any business there without one.
            (false, true) => assert!(without.is_err(), "{without:?}"),
            _ => assert!(without.unwrap().0.starts_with(refused)),
        }
        if has_token {
            assert!(authority.ask(addr, None, &command(true)).await.unwrap().0.starts_with(told));
        }
        if has_token {
            let server = format!("https://localhost:{}", addr.port());
            let mut command = hotserve(&["rollback", "--model", "nope", "--server", &server]);
            command.env("HOTSERVE_ADMIN_TOKEN", TOKEN).env("SSL_CERT_FILE", authority.path("ca.crt"));
            let (code, text) = tokio::task::spawn_blocking(move || run(command)).await.unwrap();
            assert!(code == 1 && text.contains("there is no model nope"), "{text}");
        }
        // A certificate of somebody else's is worse than none.
        let name = stranger.path("operator");
        let connector = authority.connector(Some(&name), b"http/1.1");
        let stream = TcpStream::connect(addr).await.unwrap();
        let mut text = Vec::new();
        if let Ok(mut stream) = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await {
            let _ = stream.write_all(command(true).as_bytes()).await;
            let _ = stream.read_to_end(&mut text).await;
        }
        assert!(text.is_empty(), "{}", String::from_utf8_lossy(&text));
        // Clients are not asked for one, and are not commanders by one.
        let answer = authority.ask(ports.server.addr, Some("operator"), &command(false)).await.unwrap().0;
        assert!(answer.starts_with(told) && answer.contains("not_found"), "{answer}");
        ports.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_connected_with_a_certificate_gives_no_commands_any_more_when_its_authority_is_taken_away() {
    let (authority, next) = (Authority::new(), Authority::new());
    authority.sign("server", 2090);
    authority.sign("operator", 2090);
    let ports = serve(|settings| {
        authority.settings(settings);
        settings.tls_client_ca = Some(authority.path("ca.crt"));
        settings.ops_listen = Some(ANY.into());
    })
    .await;
    let (addr, tls) = (ports.ops.unwrap(), ports.tls.clone().unwrap());
    let body = json!({"action": "rollback", "model": "nope"}).to_string();
    let command = format!("POST /admin/control HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let connector = authority.connector(Some(&authority.path("operator")), b"http/1.1");
    let stream = TcpStream::connect(addr).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    // Another certificate of the server is no reason to refuse its clients.
    authority.sign("server", 2091);
    assert!(tls.reload().unwrap());
    let mut answer = vec![0; 4096];
    stream.write_all(command.as_bytes()).await.unwrap();
    let read = stream.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
    std::fs::copy(next.path("ca.crt"), authority.path("ca.crt")).unwrap();
    assert!(tls.reload().unwrap());
    stream.write_all(command.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("connection: close"), "{answer}");
    ports.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_in_the_handshake_makes_room_after_who_idles_and_is_answered_at_the_end() {
    let authority = Authority::new();
    authority.sign("server", 2090);
    let ports = serve(|settings| {
        authority.settings(settings);
        settings.max_connections = Some(2);
    })
    .await;
    let addr = ports.server.addr;
    let name = || ServerName::try_from("localhost").unwrap();
    let request = b"GET /state HTTP/1.1\r\nhost: x\r\n\r\n";
    let connector = authority.connector(None, b"http/1.1");
    let mut idle = connector.connect(name(), TcpStream::connect(addr).await.unwrap()).await.unwrap();
    idle.write_all(request).await.unwrap();
    assert_ne!(idle.read(&mut [0; 4096]).await.unwrap(), 0);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let shaking = TcpStream::connect(addr).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let newcomer = TcpStream::connect(addr).await.unwrap();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(5), idle.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "who idles makes room");
    let mut shaken = connector.connect(name(), shaking).await.unwrap();
    shaken.write_all(request).await.unwrap();
    assert_ne!(shaken.read(&mut [0; 4096]).await.unwrap(), 0);
    // The end finds the other one in its handshake.
    let stopped = tokio::spawn(ports.server.stop());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut newcomer = connector.connect(name(), newcomer).await.unwrap();
    newcomer.write_all(request).await.unwrap();
    let mut answer = String::new();
    newcomer.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    stopped.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_something_else_takes_nobodys_place() {
    let ports = serve(|settings| settings.max_in_flight = Some(1)).await;
    let server = ports.server.ready().await;
    let mut held = Vec::new();
    for header in ["if-none-match: *", "x-min-version: 99999\r\nx-min-version-wait: 20s"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        let request = format!("GET /state?wait=20s HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        held.push(stream);
        let under_way = held.len() as f64;
        let count = async || server.metric("hotserve_http_requests_in_flight").await;
        until("another", async || (count().await == under_way).then_some(())).await;
        until("room", async || (server.client.get("/state").await.status == StatusCode::OK).then_some(())).await;
    }
    drop(held);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_operators_is_at_their_port_and_nowhere_else() {
    let unload = "/v2/repository/models/m/unload";
    for admin_apart in [false, true] {
        let ports = serve(|settings| {
            with_token(settings);
            settings.ops_listen = Some(ANY.into());
            settings.admin_listen = admin_apart.then(|| ANY.into());
        })
        .await;
        let (clients, ops) = (&ports.server.client, Client::to(ports.ops.unwrap()));
        let admin = ports.server.admin.unwrap();
        assert_eq!(Some(admin) == ports.ops, !admin_apart);
        for path in ["/", "/metrics", "/history", "/models", "/docs", "/openapi.json"] {
            assert_eq!(clients.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
            assert_eq!(ops.get(path).await.status, StatusCode::OK, "{path}");
        }
        assert_eq!(clients.get("/events").await.status, StatusCode::NOT_FOUND);
        for path in ["/livez", "/healthz", "/state", "/v2", "/v2/health/live"] {
            assert_eq!(clients.get(path).await.status, StatusCode::OK, "{path}");
            assert_eq!(ops.get(path).await.status, StatusCode::OK, "{path}");
        }
        assert_eq!(clients.post("/admin/control", "{}").await.status, StatusCode::NOT_FOUND);
        assert_eq!(clients.post(unload, "").await.status, StatusCode::FORBIDDEN);
        let (there, told) = (Client::to(admin), StatusCode::UNAUTHORIZED);
        assert_eq!(there.post("/admin/control", "{}").await.status, told);
        assert_eq!(there.post(unload, "").await.status, told);
        if admin_apart {
            assert_eq!(ops.post("/admin/control", "{}").await.status, StatusCode::NOT_FOUND);
            assert_eq!(ops.post(unload, "").await.status, StatusCode::FORBIDDEN);
            assert_eq!(there.get("/metrics").await.status, StatusCode::NOT_FOUND);
        }
        ports.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_the_named_origins_may_ask_and_no_others() {
    let origin = "https://app.example.com";
    let ports = serve(|settings| {
        with_token(settings);
        settings.cors_origins = vec![origin.to_owned()];
    })
    .await;
    let client = &ports.server.client;
    let allowed = "access-control-allow-origin";
    let reply = client.ask("/state", &[("origin", origin)], None).await;
    assert_eq!((reply.status, reply.header(allowed), reply.header("vary")), (StatusCode::OK, origin, "origin"));
    assert!(reply.header("access-control-expose-headers").contains("x-state-version"));
    // Failures can be read too, or a page would not know why.
    assert_eq!(client.ask("/nothing", &[("origin", origin)], None).await.header(allowed), origin);
    for other in ["https://app.example.com.evil.example", "http://app.example.com", "null"] {
        let reply = client.ask("/state", &[("origin", other)], None).await;
        assert!(reply.headers.get(allowed).is_none() && reply.header("vary") == "origin", "{other}");
    }
    assert!(client.get("/state").await.headers.get(allowed).is_none());
    let preflight = async |origin: &str, path: &str| {
        let text = format!(
            "OPTIONS {path} HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: content-type, x-request-id\r\nconnection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(ports.server.addr).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = preflight(origin, "/predict").await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    for line in [
        "access-control-allow-origin: https://app.example.com\r\n",
        "access-control-allow-methods: GET, HEAD, POST\r\n",
        "access-control-allow-headers: content-type, x-request-id\r\n",
        "access-control-max-age: 7200\r\n",
    ] {
        assert!(answer.contains(line), "{line} {answer}");
    }
    // Over gRPC too there are commands.
    let answer = preflight(origin, "/inference.GRPCInferenceService/RepositoryModelUnload").await;
    assert!(!answer.starts_with("HTTP/1.1 204") && !answer.contains("access-control"), "{answer}");
    for (origin, path) in [("https://other.example", "/predict"), (origin, "/admin/control")] {
        let answer = preflight(origin, path).await;
        assert!(answer.starts_with("HTTP/1.1 405") && !answer.contains("access-control"), "{answer}");
    }
    ports.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_be_under_way_is_shed_and_the_server_can_be_looked_after() {
    let ports = serve(|settings| settings.max_in_flight = Some(2)).await;
    let server = ports.server.ready().await;
    // Two requests whose bodies do not come.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"POST /predict/m HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
        held.push(stream);
    }
    until("two requests", async || (server.metric("hotserve_http_requests_in_flight").await == 2.0).then_some(()))
        .await;
    for path in ["/state", "/models", "/v2/models", "/nothing"] {
        let reply = server.client.get(path).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(reply.header("retry-after"), "1");
        if !path.starts_with("/v2") {
            assert_eq!(reply.json()["code"], "overloaded");
        }
    }
    for path in ["/livez", "/readyz", "/metrics", "/v2/health/live", "/"] {
        assert_eq!(server.client.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(server.metric("hotserve_requests_shed_total").await, 4.0);
    drop(held);
    until("room again", async || (server.client.get("/state").await.status == StatusCode::OK).then_some(())).await;
    server.stop().await;
}

#[test]
fn settings_that_cannot_be_are_named_before_anything_starts() {
    let authority = Authority::new();
    authority.sign("server", 2090);
    authority.sign("other", 2090);
    let path = |name: &str| authority.path(name).display().to_string();
    let (cert, key, other, ca) = (path("server.crt"), path("server.key"), path("other.key"), path("ca.crt"));
    for (arguments, named) in [
        (&["--tls-key", key.as_str()][..], &["--tls-key (HOTSERVE_TLS_KEY)", "--tls-cert (HOTSERVE_TLS_CERT)"][..]),
        (&["--tls-cert", &cert], &["--tls-cert (HOTSERVE_TLS_CERT)", "--tls-key (HOTSERVE_TLS_KEY)"]),
        (&["--tls-cert", &cert, "--tls-key", "/nonexistent"], &["--tls-key", "/nonexistent: cannot be read"]),
        (&["--tls-cert", &cert, "--tls-key", &other], &["--tls-key", "is not the key of the certificate"]),
        (&["--tls-cert", &key, "--tls-key", &key], &["--tls-cert", "no certificate in PEM"]),
        (&["--tls-client-ca", &ca, "--admin-listen", "127.0.0.1:0"], &["--tls-client-ca", "over TLS only"]),
        (&["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca], &["--tls-client-ca", "--ops-listen"]),
        (&["--admin-listen", "127.0.0.1:0"], &["--admin-listen", "--tls-client-ca"]),
        (&["--max-connections", "0"], &["--max-connections (HOTSERVE_MAX_CONNECTIONS)"]),
        (&["--max-connections", "999999999999"], &["--max-connections (HOTSERVE_MAX_CONNECTIONS)", "LimitNOFILE"]),
        (&["--cors-origin", "app.example.com"], &["--cors-origin (HOTSERVE_CORS_ORIGINS)", "https://"]),
    ] {
        let mut command = hotserve(&[&["serve", "--stream", "s", "--port", "0"], arguments].concat());
        command.envs([("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_REGION", "us-east-1")]);
        let (code, text) = run(command);
        assert_eq!(code, 64, "{arguments:?}: {text}");
        for word in named {
            assert!(text.contains(word), "{arguments:?} does not say {word:?}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_end_is_cut_off_when_the_setting_says() {
    let ports = serve(|settings| settings.head_timeout = Some("2s".parse().unwrap())).await;
    let mut stream = TcpStream::connect(ports.server.addr).await.unwrap();
    let begun = std::time::Instant::now();
    stream.write_all(b"GET /state HTTP/1.1\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    ports.server.stop().await;
}
