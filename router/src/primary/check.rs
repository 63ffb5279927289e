//! `--ready-probe`: asks a new worker, and reads how it answers.
//!
//! Owns the client's ends of the requests under way, at most one for each worker that starts. Each goes
//! through a loopback pair that is dealt to that very worker: a request to the port would be answered
//! by whoever serves it now. Promises: never blocks; reads at most [`ANSWER_MAX`] bytes of an answer,
//! and of those only up to the status; a worker that never answers, floods or resets is not ready,
//! and nobody else notices. Never does: decide when to ask again, or when it is too late.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use croupier_core::event::{Event, ListenerId, WorkerId};
use croupier_wire::message::Handoff;

use super::accept::raw_peer;
use super::probe;
use super::run::Primary;
use super::tokens::Source;
use crate::config::ReadyProbe;

/// Bytes of an answer that are read.
pub(crate) const ANSWER_MAX: usize = 4096;

/// A request under way.
#[derive(Debug)]
struct Asked {
    client: TcpStream,
    read: Vec<u8>,
}

/// Requests under way, and what came of the last one of each worker.
#[derive(Debug, Default)]
pub(super) struct Checks {
    asked: BTreeMap<u32, Asked>,
    /// How it was not as it should be, as the end of a sentence that begins with "it".
    faults: BTreeMap<u32, String>,
}

/// What is known of an answer so far.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    NotYet,
    Good,
    /// The end of a sentence that begins with "it".
    Bad(String),
}

impl Primary {
    /// Asks, and tells the core whether that could be done.
    pub(super) fn check(&mut self, worker: WorkerId, listener: ListenerId) {
        match self.try_check(worker, listener) {
            Ok(()) => self.tell(Event::CheckSent { worker }),
            Err(error) => {
                let what = self.config.ready_probe.as_ref().map(ToString::to_string);
                let fault = format!("could not be sent {}: {error}", what.unwrap_or_default());
                self.note_fault(worker, fault);
                self.tell(Event::Checked { worker, passed: false });
            }
        }
    }

    fn try_check(&mut self, worker: WorkerId, listener: ListenerId) -> io::Result<()> {
        let wanted = self.config.ready_probe.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let probe = match wanted {
            ReadyProbe::Http(path) => {
                let probe = probe::connected()?;
                probe.client.set_nonblocking(true)?;
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                     User-Agent: croupier\r\n\r\n"
                );
                // It is shorter than any send buffer: all or an error.
                if (&probe.client).write(request.as_bytes())? != request.len() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                probe
            }
            ReadyProbe::Tcp => {
                let probe = probe::make()?;
                probe.client.set_nonblocking(true)?;
                probe
            }
        };
        self.end_check(worker);
        // Everything that can fail on our side comes first: what was sent cannot be taken back.
        self.watch(&probe.client, Source::Check(worker.0))?;
        let header = Handoff {
            nonblocking: false,
            mark: 0,
            handed_off_at: self.now,
            peer: raw_peer(probe.peer),
        };
        let found = self.workers.get_mut(worker).ok_or(io::ErrorKind::NotFound)?;
        if let Err(error) = found.send(listener, &header.encode(), probe.conn.as_fd()) {
            self.unwatch(&probe.client);
            return Err(error);
        }
        self.checks.asked.insert(worker.0, Asked { client: probe.client, read: Vec::new() });
        Ok(())
    }

    /// There is something to read of an answer.
    pub(super) fn take_answer(&mut self, number: u32) {
        let (Some(wanted), Some(asked)) =
            (&self.config.ready_probe, self.checks.asked.get_mut(&number))
        else {
            return;
        };
        let heard = asked.hear(wanted);
        let worker = WorkerId(number);
        let passed = match heard {
            Heard::NotYet => return,
            Heard::Good => true,
            Heard::Bad(fault) => {
                self.note_fault(worker, fault);
                false
            }
        };
        if let Some(asked) = self.checks.asked.remove(&number) {
            self.unwatch(&asked.client);
            // Closed now, with more of the answer to come, it would be a reset in the worker's face.
            if let Some(found) = self.workers.get_mut(worker) {
                found.keep_probe(asked.client);
            }
        }
        self.tell(Event::Checked { worker, passed });
        self.settle();
    }

    fn note_fault(&mut self, worker: WorkerId, fault: String) {
        // It is asked again and again, and mostly answers the same.
        if self.checks.faults.get(&worker.0) != Some(&fault) {
            log::info!("worker {} is not ready yet: it {fault}", worker.0);
        }
        self.checks.faults.insert(worker.0, fault);
    }

    fn end_check(&mut self, worker: WorkerId) {
        if let Some(asked) = self.checks.asked.remove(&worker.0) {
            self.unwatch(&asked.client);
        }
    }

    /// A worker is no more.
    pub(super) fn forget_check(&mut self, worker: WorkerId) {
        self.end_check(worker);
        self.checks.faults.remove(&worker.0);
    }

    /// How a worker has failed its ready-probe, as a sentence; `None`: it was not asked.
    pub(super) fn fault_of(&self, worker: WorkerId) -> Option<String> {
        let fault = self.checks.faults.get(&worker.0).map(|fault| format!("it {fault}"));
        let silent = || {
            self.checks.asked.get(&worker.0)?;
            self.config.ready_probe.as_ref().map(|wanted| format!("it has not answered {wanted}"))
        };
        fault.or_else(silent)
    }
}

impl Asked {
    /// Reads what there is.
    fn hear(&mut self, wanted: &ReadyProbe) -> Heard {
        let mut part = [0; 1024];
        loop {
            let left = ANSWER_MAX.saturating_sub(self.read.len()).min(part.len());
            let Some(room) = part.get_mut(..left).filter(|room| !room.is_empty()) else {
                return Heard::Bad(format!(
                    "answered {wanted} with {ANSWER_MAX} bytes and no status"
                ));
            };
            let ended = match self.client.read(room) {
                Ok(count) => {
                    self.read.extend_from_slice(room.get(..count).unwrap_or(&[]));
                    count == 0
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::NotYet,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Heard::Bad(format!("reset {wanted}"));
                }
                Err(error) => return Heard::Bad(format!("did not answer {wanted}: {error}")),
            };
            match judge(wanted, &self.read, ended) {
                Heard::NotYet => {}
                decided @ (Heard::Good | Heard::Bad(_)) => return decided,
            }
        }
    }
}

/// What the bytes of an answer mean. `ended`: no more will come, or are wanted.
fn judge(wanted: &ReadyProbe, read: &[u8], ended: bool) -> Heard {
    let path = match wanted {
        // Whatever it says, and an end in good order, too: it has taken the connection.
        ReadyProbe::Tcp => return Heard::Good,
        ReadyProbe::Http(path) => path,
    };
    match status(read) {
        Status::Of(200..=399) => Heard::Good,
        Status::Of(code) => Heard::Bad(format!("answered {code} to GET {path}")),
        Status::None => Heard::Bad(format!("answered GET {path} with something that is no HTTP")),
        Status::Unfinished if ended && read.is_empty() => {
            Heard::Bad(format!("closed the connection without an answer to GET {path}"))
        }
        Status::Unfinished if ended => {
            Heard::Bad(format!("closed the connection inside its answer to GET {path}"))
        }
        Status::Unfinished => Heard::NotYet,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Status {
    Of(u16),
    None,
    Unfinished,
}

/// The status of an answer: the first one that is not 1xx, which only announce it.
fn status(mut read: &[u8]) -> Status {
    loop {
        let begins = b"HTTP/1.";
        let known = read.len().min(begins.len());
        if read.get(..known) != begins.get(..known) {
            return Status::None;
        }
        // "HTTP/1.1 200", and the character that ends the number.
        let Some(line) = read.get(..13) else { return Status::Unfinished };
        let code = line.get(9..12).and_then(|code| std::str::from_utf8(code).ok());
        let code = code.filter(|_| line.get(8) == Some(&b' ')).and_then(|code| code.parse().ok());
        match code {
            Some(100..=199) => {}
            Some(code @ 200..=999) => return Status::Of(code),
            Some(_) | None => return Status::None,
        }
        let Some(end) = read.windows(4).position(|end| end == b"\r\n\r\n") else {
            return Status::Unfinished;
        };
        read = read.get(end + 4..).unwrap_or(&[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn statuses_are_read_and_everything_else_is_told_apart() {
        let table: [(&[u8], Status); 14] = [
            (b"", Status::Unfinished),
            (b"HTT", Status::Unfinished),
            (b"HTTP/1.1 20", Status::Unfinished),
            (b"HTTP/1.1 200", Status::Unfinished),
            (b"HTTP/1.1 200 OK\r\n", Status::Of(200)),
            (b"HTTP/1.0 503\r\n", Status::Of(503)),
            (b"HTTP/1.1 999 x", Status::Of(999)),
            (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n", Status::Unfinished),
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n", Status::Of(204)),
            (b"HTTP/2 200 OK\r\n\r\n", Status::None),
            (b"HTTP/1.1x200 OK\r\n", Status::None),
            (b"HTTP/1.1 abc \r\n", Status::None),
            (b"SSH-2.0-OpenSSH", Status::None),
            (b"\0", Status::None),
        ];
        for (read, expected) in table {
            assert_eq!(status(read), expected, "{:?}", String::from_utf8_lossy(read));
        }
    }

    fn heard(wanted: &ReadyProbe, say: impl FnOnce(TcpStream) -> Option<TcpStream>) -> Heard {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _kept = say(listener.accept().unwrap().0);
        Asked { client, read: Vec::new() }.hear(wanted)
    }

    #[test]
    fn an_answer_is_judged_by_its_status_and_no_more_of_it_is_read() {
        let get = ReadyProbe::Http("/up".to_owned());
        let bad = |why: &str| Heard::Bad(why.to_owned());
        let says = |text: &'static str| {
            heard(&get, move |mut server| {
                server.write_all(text.as_bytes()).unwrap();
                None
            })
        };
        assert_eq!(says("HTTP/1.1 302 Found\r\n"), Heard::Good);
        assert_eq!(says("HTTP/1.1 503 x\r\n"), bad("answered 503 to GET /up"));
        assert_eq!(says("HTTP/1"), bad("closed the connection inside its answer to GET /up"));
        assert_eq!(says(""), bad("closed the connection without an answer to GET /up"));
        assert_eq!(says("220 smtp\r\n"), bad("answered GET /up with something that is no HTTP"));
        // A flood of headers that announce an answer and never give it.
        let flood = heard(&get, |mut server| {
            server.write_all(b"HTTP/1.1 100 x\r\n").unwrap();
            server.write_all(&[b'a'; 3 * ANSWER_MAX]).unwrap();
            // Kept open: only the bound ends the reading.
            Some(server)
        });
        assert_eq!(flood, bad("answered GET /up with 4096 bytes and no status"));
    }

    #[test]
    fn a_connection_that_is_closed_well_is_enough_for_tcp_and_a_reset_is_not() {
        assert_eq!(heard(&ReadyProbe::Tcp, |_| None), Heard::Good);
        let reset = heard(&ReadyProbe::Tcp, |server| {
            crate::sys::set_option(server.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &[1, 0])
                .unwrap();
            None
        });
        assert_eq!(reset, Heard::Bad("reset a connection".to_owned()));
    }
}
