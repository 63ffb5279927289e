//! The control socket for workers: where their processes ask to bind, to listen and to attach.
//!
//! Owns the abstract socket and the connections that have not been answered. Promises: bounded
//! ([`CLIENTS_MAX`]), never blocks, and takes no descriptor from a worker: a request is only
//! *peeked* at, and whatever was attached to it dies on the rescue thread, because closing a socket
//! that a worker prepared can block (measured: 3 s).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use croupier_wire::fdpass;
use croupier_wire::message::{Answer, REQUEST_LEN, Request};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt,
    listen, recv, socket, sockopt,
};
use slab::Slab;

/// Questions that may be open at once; beyond it the oldest is dropped.
pub(crate) const CLIENTS_MAX: usize = 256;
/// Processes that ask nonsense and are looked up in /proc in one turn: some 50 µs of the loop's time each.
const BLAMED_PER_TURN_MAX: usize = 16;

/// A question that arrived whole.
#[derive(Debug)]
pub(crate) struct Question {
    /// The connection, to be answered.
    pub(crate) client: OwnedFd,
    /// The asking process, as the kernel says (in the primary's PID namespace; 0 outside it).
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// What it asks; `None` for bytes that are no request.
    pub(crate) request: Option<Request>,
    /// It left without a word: it died, or thought better of it.
    pub(crate) silent: bool,
}

/// The socket and its open connections.
#[derive(Debug)]
pub(crate) struct Questions {
    socket: OwnedFd,
    name: String,
    clients: Slab<(OwnedFd, u64)>,
    arrivals: u64,
    /// Clients that could not be watched, for want of memory.
    unwatched: Vec<usize>,
    blamed: Blamed,
}

/// The processes that were looked up in this turn. Who goes on with it is found in the next one.
#[derive(Debug, Default)]
struct Blamed {
    turn: u64,
    pids: Vec<u32>,
}

impl Blamed {
    fn looks_up(&mut self, pid: u32, turn: u64) -> bool {
        if self.turn != turn {
            self.turn = turn;
            self.pids.clear();
        }
        let looks = self.pids.len() < BLAMED_PER_TURN_MAX && !self.pids.contains(&pid);
        if looks {
            self.pids.push(pid);
        }
        looks
    }
}

impl Questions {
    /// Listens on a fresh abstract name.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub(crate) fn open(secret: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let name = format!("croupier-ask/{}/{secret}", std::process::id());
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        listen(&socket, Backlog::MAXALLOWABLE)?;
        let (clients, unwatched, blamed) = (Slab::new(), Vec::new(), Blamed::default());
        Ok(Self { socket, name, clients, arrivals: 0, unwatched, blamed })
    }

    /// What stands after the `@` in `CROUPIER_CONTROL`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether a process that asked nonsense is to be looked up, in the turn that began at `turn`: once, and
    /// not one after another while hundreds ask.
    pub(crate) fn looks_up(&mut self, pid: u32, turn: u64) -> bool {
        self.blamed.looks_up(pid, turn)
    }

    /// Takes one new connection; `Ok(None)` when none waits. `evicted` gets what had to go for it.
    ///
    /// # Errors
    /// EMFILE: the question waits in the backlog.
    pub(crate) fn accept(&mut self, evicted: &mut Vec<Arc<OwnedFd>>) -> io::Result<Option<usize>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = match accept4(self.socket.as_raw_fd(), flags) {
            // nix returns the bare number; it is owned here, before anything can fail.
            Ok(number) => crate::sys::own(number),
            Err(nix::errno::Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if self.clients.len() >= CLIENTS_MAX {
            let oldest = self.clients.iter().min_by_key(|(_, (_, age))| *age).map(|(key, _)| key);
            evicted.extend(oldest.map(|key| Arc::new(self.clients.remove(key).0)));
        }
        self.arrivals += 1;
        Ok(Some(self.clients.insert((client, self.arrivals))))
    }

    pub(crate) fn client(&self, key: usize) -> Option<BorrowedFd<'_>> {
        self.clients.get(key).map(|(client, _)| client.as_fd())
    }

    /// To be watched later: no event will come of it before.
    pub(crate) fn put_off(&mut self, key: usize) {
        self.unwatched.push(key);
    }

    /// Those that were put off. One of them may have gone since.
    pub(crate) fn take_put_off(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.unwatched)
    }

    /// Reads the question of a readable connection; `None` while it is not there yet.
    pub(crate) fn read(&mut self, key: usize) -> Option<Question> {
        let (client, _) = self.clients.get(key)?;
        let mut bytes = [0; REQUEST_LEN + 1];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let (silent, request) = match recv(client.as_raw_fd(), &mut bytes, flags) {
            Ok(len) => (len == 0, bytes.get(..len).and_then(|bytes| Request::decode(bytes).ok())),
            Err(nix::errno::Errno::EAGAIN) => return None,
            Err(_) => (true, None),
        };
        let peer = getsockopt(client, sockopt::PeerCredentials).ok();
        let (client, _) = self.clients.remove(key);
        let pid = peer.and_then(|peer| u32::try_from(peer.pid()).ok()).unwrap_or(0);
        Some(Question {
            client,
            pid,
            uid: peer.map_or(u32::MAX, |peer| peer.uid()),
            request,
            silent,
        })
    }
}

impl Question {
    /// Answers with words only.
    pub(crate) fn tell(&self, answer: &Answer) {
        self.answer(answer, &[]);
    }

    /// Answers. A client that is gone or full is not worth a retry, but what was made for it is to be
    /// undone: returns whether the answer is on its way.
    pub(crate) fn answer(&self, answer: &Answer, descriptors: &[BorrowedFd<'_>]) -> bool {
        let sent = fdpass::send(self.client.as_fd(), &answer.encode(), descriptors);
        if let Err(error) = &sent {
            log::debug!("process {} did not wait for its answer: {error}", self.pid);
        }
        sent.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_nonsense_is_looked_up_once_a_turn_and_process() {
        let mut blamed = Blamed::default();
        assert!(blamed.looks_up(7, 1));
        assert!(!blamed.looks_up(7, 1), "it was, in this turn");
        let others = (100..200).filter(|pid| blamed.looks_up(*pid, 1)).count();
        assert_eq!(others, BLAMED_PER_TURN_MAX - 1);
        assert!(blamed.looks_up(7, 2) && blamed.looks_up(199, 2));
    }
}
