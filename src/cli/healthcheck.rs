//! `hotserve healthcheck`: what a container's health check runs where there is no curl.
//!
//! It exits with 0 or 1 and nothing else: Docker gives no other code a meaning.

mod tls;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;

use crate::config::{HumanDuration, Settings};

/// Far above any answer.
const ANSWER: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ask whether the process answers at all (/livez), and not whether it is ready (/readyz)
    #[arg(long)]
    live: bool,
    /// Longest time for the answer
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    timeout: HumanDuration,
    /// The server's settings
    #[arg(long, env = "HOTSERVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address that the server listens on [default: 0.0.0.0, which is asked at 127.0.0.1]
    #[arg(long, env = "HOTSERVE_HOST", value_name = "IP")]
    host: Option<IpAddr>,
    /// Port that the server listens on [default: 8000]
    #[arg(long, env = "PORT")]
    port: Option<u16>,
    /// The server's certificate: where it has one, it is asked over TLS
    #[arg(long, env = "HOTSERVE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
}

/// What an answer comes from.
trait Transport: Read + Write {}
impl<T: Read + Write> Transport for T {}

pub(super) fn run(args: Args) -> ExitCode {
    match check(args) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(args: Args) -> anyhow::Result<String> {
    let Args { live, timeout: HumanDuration(timeout), config, host, port, tls_cert } = args;
    let file = config.as_deref().map(Settings::from_file).transpose()?.unwrap_or_default();
    let settings = Settings { host, port, tls_cert, ..Settings::default() }.or(file);
    let server = place(&settings)?;
    // A server at :: is at both, and a machine may have the older protocol alone.
    let both = settings.host == Some(Ipv6Addr::UNSPECIFIED.into());
    let other = both.then(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), server.port()));
    // As the server takes it, which speaks no TLS with an empty one.
    let secure = settings.tls_cert.is_some_and(|cert| !cert.as_os_str().is_empty());
    let (path, word) = if live { ("/livez", "live") } else { ("/readyz", "ready") };
    let url = format!("{}://{server}{path}", if secure { "https" } else { "http" });
    let (status, body) = ask((server, other), secure, path, timeout).with_context(|| {
        format!("{url} does not answer: is the server there, and on this port (--port, PORT, --config)")
    })?;
    if status == 200 {
        return Ok(word.to_owned());
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Answer {
        reason: String,
    }
    let Answer { reason } = serde_json::from_slice(&body).unwrap_or_default();
    if reason.is_empty() {
        bail!("{url} answers {status}, and is perhaps no hotserve");
    }
    bail!("not {word}: {reason}")
}

/// Where a server of these settings can be asked from its own machine.
fn place(settings: &Settings) -> anyhow::Result<SocketAddr> {
    let host = match settings.host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    match settings.port.unwrap_or(8000) {
        0 => {
            Err(anyhow!("--port (PORT) is 0, which is any free one: give the server a port of its own to be asked at"))
        }
        port => Ok(SocketAddr::new(host, port)),
    }
}

/// Asks once, on a connection of its own, and answers the status and the body. The other place is for where nobody is at
/// the first.
fn ask(
    (server, other): (SocketAddr, Option<SocketAddr>),
    secure: bool,
    path: &str,
    patience: Duration,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let deadline = Instant::now() + patience;
    // Zero would mean for ever.
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let socket = TcpStream::connect_timeout(&server, left())
        .or_else(|error| other.and_then(|other| TcpStream::connect_timeout(&other, left()).ok()).ok_or(error))?;
    socket.set_write_timeout(Some(left()))?;
    socket.set_read_timeout(Some(left()))?;
    let stream = socket.try_clone()?;
    let mut stream: Box<dyn Transport> =
        if secure { Box::new(tls::over(stream, server.ip())?) } else { Box::new(stream) };
    let head = format!("GET {path} HTTP/1.1\r\nhost: {server}\r\nuser-agent: hotserve\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).map_err(|error| late(error, patience))?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    let mut stream = stream.take(ANSWER);
    loop {
        socket.set_read_timeout(Some(left()))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            // TLS that ends without a farewell.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && !answer.is_empty() => break,
            Err(error) => return Err(late(error, patience)),
        }
        if Instant::now() >= deadline {
            bail!("no whole answer within {patience:?}");
        }
    }
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("its answer is no HTTP")?;
    let (head, body) = answer.split_at(end + 4);
    let status = std::str::from_utf8(head).ok().and_then(|head| head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    Ok((status.context("its answer is no HTTP")?, body.to_vec()))
}

fn late(error: std::io::Error, patience: Duration) -> anyhow::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => anyhow!("no answer within {patience:?}"),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_where_it_listens() {
        let at = |host: Option<&str>, port| {
            let host = host.map(|host| host.parse().expect("an address"));
            place(&Settings { host, port, ..Settings::default() }).map(|place| place.to_string()).ok()
        };
        assert_eq!(at(None, None).as_deref(), Some("127.0.0.1:8000"));
        assert_eq!(at(Some("::"), Some(9)).as_deref(), Some("[::1]:9"));
        assert_eq!(at(Some("10.0.0.7"), Some(9)).as_deref(), Some("10.0.0.7:9"));
        assert_eq!(at(None, Some(0)), None);
    }

    #[test]
    fn a_server_at_any_address_is_found_where_there_is_the_older_protocol_alone_and_an_empty_certificate_is_none() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let read = stream.read(&mut request).expect("a request");
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("written");
        });
        let args = |host: IpAddr| Args {
            live: false,
            timeout: HumanDuration(Duration::from_secs(5)),
            config: None,
            host: Some(host),
            port: Some(port),
            tls_cert: Some(PathBuf::new()),
        };
        // Who named an address is not told of another.
        assert!(check(args(Ipv6Addr::LOCALHOST.into())).is_err());
        assert_eq!(check(args(Ipv6Addr::UNSPECIFIED.into())).expect("an answer"), "ready");
        answers.join().expect("no panic");
    }
}
