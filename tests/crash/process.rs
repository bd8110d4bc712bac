//! The program as a process, started with one failpoint, and its end.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use hotserve::aws::Endpoints;

use crate::cli::hotserve;
use crate::support::until;

/// Where it dies, at which time that it comes there, and how long readers may look before.
#[derive(Debug, Clone, Copy)]
pub struct Failpoint {
    pub name: &'static str,
    pub nth: u32,
    pub pause_ms: u32,
}

/// What it can reach.
#[derive(Debug, Clone, Copy)]
pub enum Network<'a> {
    Up(&'a Endpoints),
    /// Every endpoint refuses.
    Down,
}

/// A server, killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub fn start(folder: &std::path::Path, stream: &str, network: Network<'_>, failpoint: Option<Failpoint>) -> Self {
        let log = folder.join("log");
        let cache = folder.join("cache");
        let mut command = hotserve(&["serve", "--stream", stream, "--port", "0", "--host", "127.0.0.1"]);
        command.args(["--poll-interval", "200ms", "--default-model", "solo", "--cache-dir"]).arg(&cache);
        endpoints(&mut command, network);
        if let Some(Failpoint { name, nth, pause_ms }) = failpoint {
            command.env("HOTSERVE_FAILPOINT", format!("{name}:{nth}:{pause_ms}"));
        }
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Self { child: command.spawn().unwrap(), log }
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Where it listens; none if it ended before it could say so.
    pub async fn addr(&mut self) -> Option<SocketAddr> {
        until("the server to listen", async || {
            let ended = self.ended().is_some();
            let log = self.log();
            let line = log.lines().find(|line| line.contains("listening"));
            let addr = line.and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            let addr = addr.and_then(|line| line["addr"].as_str()?.parse().ok());
            (ended || addr.is_some()).then_some(addr)
        })
        .await
    }

    /// Checks that it was this failpoint that ended it.
    pub fn died_at(&mut self, failpoint: Failpoint) {
        let status = self.ended().unwrap();
        let log = self.log();
        assert_eq!(status.signal(), Some(9), "{failpoint:?}: {status}: {log}");
        let said = format!("killed at the failpoint {}\n", failpoint.name);
        assert!(log.contains(&said), "{failpoint:?}: {log}");
    }

    /// Ends it as an orchestrator does. A death here would count against what it serves.
    pub async fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = until("the server to stop", async || self.ended()).await;
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn endpoints(command: &mut Command, network: Network<'_>) {
    match network {
        Network::Up(Endpoints { kinesis, s3, region, access_key_id, secret_access_key }) => command
            .env("AWS_ENDPOINT_URL_KINESIS", kinesis)
            .env("AWS_ENDPOINT_URL_S3", s3)
            .env("AWS_REGION", region)
            .env("AWS_ACCESS_KEY_ID", access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", secret_access_key),
        // Nobody listens on port 1.
        Network::Down => command
            .env("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "a")
            .env("AWS_SECRET_ACCESS_KEY", "b"),
    };
}
