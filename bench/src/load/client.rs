//! One connection of the open loop, from connect to close.
//!
//! Owns: how an answer is read. Promises: an answer is whole by its Content-Length, else by the end of
//! the connection; the worker is who the body names. Never does: follow, decode or keep bodies.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;

const HEAD_MAX: usize = 16 * 1024;
/// A pid and its newline.
const NAME_MAX: usize = 12;

#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) intended: Duration,
    pub(super) started: Duration,
    pub(super) connected: Option<Duration>,
    pub(super) first_byte: Option<Duration>,
    pub(super) kind: usize,
    pub(super) source: u32,
    pub(super) serial: u64,
    pub(super) answered: bool,
    sent: usize,
    answer: Answer,
}

#[derive(Debug, Default)]
pub(super) struct Answer {
    head: Vec<u8>,
    /// Known once the head is whole.
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    /// `None`: until the end of the connection.
    length: Option<u64>,
    seen: u64,
    start: Vec<u8>,
}

/// What a look at a connection found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing that matters yet.
    Waits,
    /// The whole answer has come, by this worker; the connection is not closed yet.
    Answered(Option<u32>),
    /// The same, and it is closed.
    AnsweredAndClosed(Option<u32>),
    /// Closed after the answer.
    Closed,
}

impl Client {
    pub(super) fn new(stream: TcpStream, intended: Duration, started: Duration) -> Self {
        Self {
            stream,
            intended,
            started,
            connected: None,
            first_byte: None,
            kind: 0,
            source: 0,
            serial: 0,
            answered: false,
            sent: 0,
            answer: Answer::default(),
        }
    }

    /// Writes what is left of the request. False: not connected yet, or no room.
    pub(super) fn send(&mut self, request: &[u8]) -> io::Result<bool> {
        while let Some(rest) = request.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if waits(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    pub(super) fn receive(&mut self, now: Duration) -> io::Result<Progress> {
        let mut buffer = [0; 4096];
        let mut progress = Progress::Waits;
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.end(progress),
                Ok(n) => {
                    self.first_byte.get_or_insert(now);
                    let bytes = buffer.get(..n).unwrap_or_default();
                    if !self.answered && self.answer.take(bytes)? {
                        self.answered = true;
                        progress = Progress::Answered(self.answer.worker());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if waits(&error) => return Ok(progress),
                // What comes after the whole answer is the way in which servers close.
                Err(_) if self.answered => return self.end(progress),
                Err(error) => return Err(error),
            }
        }
    }

    fn end(&mut self, progress: Progress) -> io::Result<Progress> {
        match progress {
            Progress::Answered(worker) => Ok(Progress::AnsweredAndClosed(worker)),
            _ if self.answered => Ok(Progress::Closed),
            _ if self.answer.ends_by_close() => {
                self.answered = true;
                Ok(Progress::AnsweredAndClosed(self.answer.worker()))
            }
            Progress::Waits | Progress::AnsweredAndClosed(_) | Progress::Closed => {
                Err(ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}

impl Answer {
    /// True once the answer is whole.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if let Some(body) = &mut self.body {
            body.take(bytes);
            return Ok(body.is_whole());
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
            if self.head.len() > HEAD_MAX {
                return Err(io::Error::new(ErrorKind::InvalidData, "a head without end"));
            }
            return Ok(false);
        };
        let rest = self.head.split_off(end + 4);
        let mut body = Body { length: length_of(&self.head)?, seen: 0, start: Vec::new() };
        body.take(&rest);
        let whole = body.is_whole();
        self.body = Some(body);
        Ok(whole)
    }

    fn ends_by_close(&self) -> bool {
        self.body.as_ref().is_some_and(|body| body.length.is_none())
    }

    /// Who answered, if the body is a number and nothing else.
    pub(super) fn worker(&self) -> Option<u32> {
        str::from_utf8(&self.body.as_ref()?.start).ok()?.trim_end().parse().ok()
    }
}

impl Body {
    fn take(&mut self, bytes: &[u8]) {
        self.seen += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let room = NAME_MAX.saturating_sub(self.start.len());
        self.start.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    fn is_whole(&self) -> bool {
        self.length.is_some_and(|length| self.seen >= length)
    }
}

/// The Content-Length of an answer with a status of 200 to 399.
fn length_of(head: &[u8]) -> io::Result<Option<u64>> {
    let bad = |what| Err(io::Error::new(ErrorKind::InvalidData, what));
    let Ok(head) = str::from_utf8(head) else { return bad("a head that is not text") };
    let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    if !status.is_some_and(|status| (200..400).contains(&status)) {
        return bad("not a status of 200 to 399");
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<u64>())
    });
    match length {
        None => Ok(None),
        Some(Ok(length)) => Ok(Some(length)),
        Some(Err(_)) => bad("a Content-Length that is no number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_any_pieces_is_the_same_answer() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n4711\n";
        for cut in 1..whole.len() {
            let mut answer = Answer::default();
            assert!(!answer.take(&whole[..cut]).unwrap(), "{cut}");
            assert!(answer.take(&whole[cut..]).unwrap(), "{cut}");
            assert_eq!(answer.worker(), Some(4711));
        }
    }

    #[test]
    fn bad_answers_are_errors() {
        for bad in [
            "HTTP/1.1 503 No\r\n\r\n",
            "nothing\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        ] {
            assert!(Answer::default().take(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Answer::default().take(&[b'x'; HEAD_MAX + 1]).is_err());
    }

    #[test]
    fn without_a_length_the_end_is_the_end() {
        let mut answer = Answer::default();
        assert!(!answer.take(b"HTTP/1.1 200 OK\r\n\r\nhello").unwrap());
        assert!(answer.ends_by_close());
        assert_eq!(answer.worker(), None);
    }
}
