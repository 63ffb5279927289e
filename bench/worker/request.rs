//! Requests, and the work that they ask for.
//!
//! Owns: `/` (nothing), `/cpu/MICROSECONDS`, `/wait/MILLISECONDS` and `/echo/MICROSECONDS` (from then on
//! every line comes back, each after so much CPU). Promises: numbers are bounded; a request is read
//! only when its head is whole. Never does: anything else of HTTP.

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

const PARAMETER_MAX: u64 = 60_000_000;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Trivial,
    Cpu(u64),
    Wait(u64),
    Echo(u64),
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) work: Work,
    pub(crate) keep_alive: bool,
    /// Bytes that it took.
    pub(crate) length: usize,
}

impl Request {
    /// `None` until the head is whole.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let length = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = bytes.get(..length)?;
        let mut words = head.split(|byte| *byte == b' ');
        let path = words.nth(1).unwrap_or_default();
        let close = head.windows(7).any(|seven| seven.eq_ignore_ascii_case(b": close"));
        Some(Self { work: Work::of(path), keep_alive: !close, length })
    }
}

impl Work {
    fn of(path: &[u8]) -> Self {
        if path == b"/" {
            return Self::Trivial;
        }
        let parts = str::from_utf8(path).ok().and_then(|path| path.get(1..)?.split_once('/'));
        let Some((kind, number)) = parts else { return Self::Unknown };
        let Some(number) = number.parse().ok().filter(|n| *n <= PARAMETER_MAX) else {
            return Self::Unknown;
        };
        match kind {
            "cpu" => Self::Cpu(number),
            "wait" => Self::Wait(number),
            "echo" => Self::Echo(number),
            _ => Self::Unknown,
        }
    }

    /// Does it, on this thread.
    pub(crate) fn perform(self) -> io::Result<()> {
        match self {
            Self::Cpu(microseconds) => burn(Duration::from_micros(microseconds)),
            Self::Wait(milliseconds) => {
                std::thread::sleep(Duration::from_millis(milliseconds));
                Ok(())
            }
            Self::Trivial | Self::Echo(_) | Self::Unknown => Ok(()),
        }
    }
}

/// Uses up CPU time of its own: by the wall's clock, workers that share a core would do less the more
/// they are.
pub(crate) fn burn(time: Duration) -> io::Result<()> {
    let now =
        || Ok::<_, io::Error>(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?));
    let end = now()? + time;
    while now()? < end {}
    Ok(())
}

/// The answers of this process, which name it.
#[derive(Debug)]
pub(crate) struct Replies {
    pub(crate) close: Vec<u8>,
    pub(crate) keep: Vec<u8>,
    pub(crate) upgrade: Vec<u8>,
    pub(crate) unknown: &'static [u8],
}

impl Replies {
    pub(crate) fn new() -> Self {
        let pid = format!("{}\n", std::process::id());
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", pid.len());
        let upgrade =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n";
        Self {
            close: format!("{head}Connection: close\r\n\r\n{pid}").into_bytes(),
            keep: format!("{head}\r\n{pid}").into_bytes(),
            upgrade: format!("{upgrade}X-Worker: {}\r\n\r\n", pid.trim_end()).into_bytes(),
            unknown: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        }
    }

    pub(crate) fn of(&self, request: &Request) -> &[u8] {
        match (request.work, request.keep_alive) {
            (Work::Unknown, _) => self.unknown,
            (Work::Echo(_), _) => &self.upgrade,
            (_, true) => &self.keep,
            (_, false) => &self.close,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Request> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn a_request_is_read_when_its_head_is_whole() {
        let whole = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(parsed(&whole[..cut]), None, "{cut}");
        }
        let two = format!("{whole}{whole}");
        let length = whole.len();
        let expected = Request { work: Work::Trivial, keep_alive: true, length };
        assert_eq!(parsed(&two), Some(expected));
    }

    #[test]
    fn paths_are_work_and_numbers_are_bounded() {
        let of = |path: &str| parsed(&format!("GET {path} HTTP/1.1\r\n\r\n")).unwrap().work;
        assert_eq!(of("/cpu/1000"), Work::Cpu(1000));
        assert_eq!(of("/wait/50"), Work::Wait(50));
        assert_eq!(of("/echo/0"), Work::Echo(0));
        for unknown in ["/x", "/cpu/", "/cpu/-1", "/wait/99999999999", "cpu/1", "/cpu/1/2"] {
            assert_eq!(of(unknown), Work::Unknown, "{unknown}");
        }
    }

    #[test]
    fn a_client_may_ask_for_a_close() {
        let close =
            |line: &str| !parsed(&format!("GET / HTTP/1.1\r\n{line}\r\n\r\n")).unwrap().keep_alive;
        assert!(close("Connection: close") && close("connection: Close"));
        assert!(!close("Connection: keep-alive"));
    }

    #[test]
    fn answers_name_this_process_and_have_its_length() {
        let replies = Replies::new();
        let pid = format!("{}\n", std::process::id());
        for reply in [&replies.close, &replies.keep] {
            let text = str::from_utf8(reply).unwrap();
            assert!(text.ends_with(&format!("\r\n\r\n{pid}")), "{text}");
            assert!(text.contains(&format!("Content-Length: {}\r\n", pid.len())), "{text}");
        }
        let upgrade = str::from_utf8(&replies.upgrade).unwrap();
        assert!(upgrade.ends_with(&format!("X-Worker: {}\r\n\r\n", pid.trim_end())), "{upgrade}");
    }
}
