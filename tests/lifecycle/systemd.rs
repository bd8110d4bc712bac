//! What systemd hears, on a socket of the test's own.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use super::Process;
use crate::support::{Cloud, until};

/// Everything that was said so far, a word a line.
struct Ear {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Ear {
    fn new(socket: UnixDatagram) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, heard: Vec::new() }
    }

    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(count) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..count].to_vec()).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }

    fn count(&self, word: &str) -> usize {
        self.heard.iter().filter(|line| line.starts_with(word)).count()
    }

    async fn hears(&mut self, word: &str, times: usize) {
        until(&format!("systemd to hear {word} {times} times"), async || {
            self.listen();
            (self.count(word) >= times).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_of_the_start_a_reload_and_the_end() {
    let cloud = Cloud::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let mut ear = Ear::new(UnixDatagram::bind(&path).unwrap());
    let mut server = Process::start(Some(&cloud), |command, _| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000").args(["--drain-delay", "1s"]);
    })
    .await;
    ear.hears("READY=1", 1).await;
    assert_eq!(server.client.get("/readyz").await.status, 200, "ready is what /readyz says");
    ear.hears("STATUS=serving 0 models and 1 states", 1).await;
    ear.hears("WATCHDOG=1", 3).await;
    server.signal(Signal::HUP);
    ear.hears("READY=1", 2).await;
    let at = |word: &str| ear.heard.iter().rposition(|line| line.starts_with(word)).unwrap();
    assert!(at("RELOADING=1") < at("READY=1") && at("MONOTONIC_USEC=") == at("RELOADING=1") + 1, "{:?}", ear.heard);
    server.signal(Signal::TERM);
    ear.hears("STOPPING=1", 1).await;
    let before = ear.count("WATCHDOG=1");
    assert_eq!(server.ended().await.code(), Some(0));
    ear.listen();
    assert!(ear.count("WATCHDOG=1") > before, "it is alive while it drains: {:?}", ear.heard);
    assert_eq!((ear.count("READY=1"), ear.count("STOPPING=1")), (2, 1), "{:?}", ear.heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg(target_os = "linux")]
async fn a_start_without_aws_is_extended_and_says_what_it_waits_for() {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("hotserve-test-{}-{}", std::process::id(), fastrand::u64(..));
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let mut ear = Ear::new(UnixDatagram::bind_addr(&address).unwrap());
    let server = Process::start(None, |command, _| {
        command.env("NOTIFY_SOCKET", format!("@{name}"));
    })
    .await;
    ear.hears("EXTEND_TIMEOUT_USEC=60000000", 1).await;
    ear.hears("STATUS=not ready yet: ", 1).await;
    server.signal(Signal::HUP);
    server.says("there is nothing to read anew", 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ear.listen();
    assert_eq!(ear.count("READY=1") + ear.count("RELOADING=1"), 0, "it is not ready: {:?}", ear.heard);
    server.stop().await;
    ear.hears("STOPPING=1", 1).await;
}
