//! A client over raw sockets that keeps its connection, and counts exactly what it sees.

use std::io;
use std::net::SocketAddr;
use std::ops::AddAssign;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What became of the requests, each of which is counted once.
#[derive(Debug, Default, Clone, Copy)]
pub struct Load {
    /// Answered in full with 200.
    pub answered: u64,
    /// Of these, told `connection: close`: the client goes on with a new connection.
    pub told_to_leave: u64,
    /// Sent on a connection that had answered before, which ended without a byte of an answer: the server closed it while
    /// it was idle and the request was on its way. HTTP lets a client send it again.
    pub closed_before_an_answer: u64,
    /// Sent on a new connection that ended without a byte: it waited to be accepted when the port was closed.
    pub never_accepted: u64,
    /// Everything else: another status, a torn answer.
    pub failed: u64,
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.told_to_leave += other.told_to_leave;
        self.closed_before_an_answer += other.closed_before_an_answer;
        self.never_accepted += other.never_accepted;
        self.failed += other.failed;
    }
}

enum Answer {
    Whole {
        close: bool,
    },
    /// The connection ended before the first byte.
    Nothing,
    Bad,
}

/// Asks one thing after the other, without a pause, until no connection is taken any more.
pub async fn client(addr: SocketAddr) -> Load {
    let mut load = Load::default();
    while let Ok(mut stream) = TcpStream::connect(addr).await {
        let mut before = 0_u64;
        loop {
            match ask(&mut stream).await {
                Answer::Whole { close } => {
                    load.answered += 1;
                    before += 1;
                    if close {
                        load.told_to_leave += 1;
                        break;
                    }
                }
                Answer::Nothing if before > 0 => {
                    load.closed_before_an_answer += 1;
                    break;
                }
                Answer::Nothing => {
                    load.never_accepted += 1;
                    break;
                }
                Answer::Bad => {
                    load.failed += 1;
                    break;
                }
            }
        }
    }
    load
}

async fn ask(stream: &mut TcpStream) -> Answer {
    let mut got = Vec::new();
    let answer: io::Result<Option<bool>> = async {
        stream.write_all(b"GET /state HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        loop {
            if stream.read_buf(&mut got).await? == 0 {
                return Ok(None);
            }
            if let Some(close) = whole(&got) {
                return Ok(Some(close));
            }
        }
    }
    .await;
    match answer {
        Ok(Some(close)) if got.starts_with(b"HTTP/1.1 200 ") => Answer::Whole { close },
        Ok(None) | Err(_) if got.is_empty() => Answer::Nothing,
        _ => Answer::Bad,
    }
}

/// Whether the connection closes, once an answer is there with its body.
fn whole(got: &[u8]) -> Option<bool> {
    let text = std::str::from_utf8(got).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
    (body.len() == length).then(|| head.contains("connection: close"))
}
