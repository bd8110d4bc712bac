//! A reader as fast as can be: HTTP/1.1 over a plain socket, one connection, requests that are bytes made once.

use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

/// How long an answer may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that is kept alive.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What has come and was not answered with yet.
    unread: Range<usize>,
}

/// What a reader looks at.
pub struct Answer<'a> {
    pub status: u16,
    pub state_version: Option<u64>,
    pub model_version: Option<u64>,
    /// As the header has it: `sha256:…`
    pub model_digest: Option<&'a str>,
    pub body: &'a [u8],
}

impl std::fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, state_version, model_version, model_digest, body } = self;
        let body = String::from_utf8_lossy(body);
        write!(f, "{status}, state {state_version:?}, model {model_version:?}, digest {model_digest:?}: {body}")
    }
}

/// A request of this path.
pub fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").into_bytes()
}

/// A request with a body.
pub fn post(path: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

impl Wire {
    pub fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: vec![0; 64 << 10], unread: 0..0 })
    }

    /// Sends requests, one or several at once.
    pub fn send(&mut self, requests: &[u8]) -> Result<()> {
        self.stream.write_all(requests)
    }

    /// The next answer, once it is here to its last byte.
    pub fn receive(&mut self) -> Result<Answer<'_>> {
        let (head, body) = loop {
            let unread = &self.buffer[self.unread.clone()];
            if let Some(head) = Head::parse(unread)?
                && let Some(end) = head.end.checked_add(head.length).filter(|end| *end <= unread.len())
            {
                let begin = self.unread.start;
                self.unread.start += end;
                break (head, begin..begin + end);
            }
            self.fill()?;
        };
        let bytes = &self.buffer[body];
        Ok(Answer {
            status: head.status,
            state_version: head.state_version,
            model_version: head.model_version,
            model_digest: head.model_digest.map(|range| std::str::from_utf8(&bytes[range]).unwrap()),
            body: &bytes[head.end..],
        })
    }

    fn fill(&mut self) -> Result<()> {
        if self.unread.end == self.buffer.len() {
            if self.unread.start == 0 {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        match self.stream.read(&mut self.buffer[self.unread.end..])? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            read => {
                self.unread.end += read;
                Ok(())
            }
        }
    }
}

/// The start of an answer; the range is one of its bytes.
struct Head {
    status: u16,
    length: usize,
    state_version: Option<u64>,
    model_version: Option<u64>,
    model_digest: Option<Range<usize>>,
    end: usize,
}

impl Head {
    /// The head if all of it is there.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let strange = || Error::new(ErrorKind::InvalidData, "no HTTP/1.1 answer");
        let mut head =
            Self { status: 0, length: 0, state_version: None, model_version: None, model_digest: None, end: 0 };
        loop {
            let Some(length) = bytes[head.end..].iter().position(|byte| *byte == b'\n') else { return Ok(None) };
            let begin = head.end;
            head.end += length + 1;
            let line = bytes[begin..head.end].strip_suffix(b"\r\n").ok_or_else(strange)?;
            let line = std::str::from_utf8(line).map_err(|_| strange())?;
            if line.is_empty() {
                return Ok(Some(head));
            }
            if begin == 0 {
                let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
                head.status = status.ok_or_else(strange)?;
                continue;
            }
            let (name, value) = line.split_once(": ").ok_or_else(strange)?;
            match name {
                "content-length" => head.length = value.parse().map_err(|_| strange())?,
                // A body without a length would be taken for none.
                "transfer-encoding" => return Err(strange()),
                "x-state-version" => head.state_version = value.parse().ok(),
                "x-model-version" => head.model_version = value.parse().ok(),
                "x-model-digest" => head.model_digest = Some(begin + line.len() - value.len()..begin + line.len()),
                _ => {}
            }
        }
    }
}
