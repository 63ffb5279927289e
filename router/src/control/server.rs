//! The primary's end of the control socket: in its loop, never blocking, bounded.
//!
//! Owns: the listening socket, its clients and their buffers. Promises: only the same user and root
//! are heard; at most [`CLIENTS_MAX`] clients, [`REQUEST_MAX`] bytes of request and one reply each;
//! a client that neither sends its request nor reads its reply loses its place when another needs
//! it, so no timer is wanted. Never does: wait for a client, or decide anything.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use slab::Slab;

use super::messages::{REQUEST_MAX, Reply, Request};

/// Most clients at a time.
pub const CLIENTS_MAX: usize = 64;
/// Tokens that a server uses, from its `token_base` on.
pub const TOKENS: usize = CLIENTS_MAX + 1;

/// A client that asked something. Never reused for another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

/// The control socket.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    token_base: usize,
    clients: Slab<Client>,
    next_id: u64,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    phase: Phase,
}

/// A client asks once and is answered once.
#[derive(Debug)]
enum Phase {
    /// Its request is not complete: what came so far.
    Asking(Vec<u8>),
    /// Its request is with the primary.
    Waiting,
    /// Its reply, and how much of it is written. It stays until it goes, or until the primary goes,
    /// which is what `stop` and `wait stopped` wait for.
    Answered { reply: Vec<u8>, written: usize },
}

enum Fate {
    Stays,
    Goes,
}

impl ControlServer {
    /// Listens at `path`, with mode 0600. The caller holds the lock of this path
    /// ([`super::place::Place`]), so a socket that is there is a dead primary's.
    ///
    /// # Errors
    /// Whatever stands in the way: something that is no socket, a missing permission, a long path.
    pub fn bind(path: &Path, registry: &Registry, token_base: usize) -> io::Result<Self> {
        remove_stale(path)?;
        let mut listener = UnixListener::bind(path)?;
        let server_side = |error: io::Error| {
            drop(std::fs::remove_file(path));
            error
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(server_side)?;
        registry
            .register(&mut listener, Token(token_base), Interest::READABLE)
            .map_err(server_side)?;
        Ok(Self {
            listener,
            path: path.to_path_buf(),
            token_base,
            clients: Slab::new(),
            next_id: 0,
        })
    }

    /// Whether an event with this token is to go to [`Self::ready`].
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        (self.token_base..self.token_base + TOKENS).contains(&token.0)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something happened on `token`: accepts, reads, writes what it can without waiting. Complete
    /// requests are appended to `requests`; each wants one [`Self::reply`], now or later.
    pub fn ready(
        &mut self,
        token: Token,
        registry: &Registry,
        requests: &mut Vec<(ClientId, Request)>,
    ) {
        match token.0.checked_sub(self.token_base) {
            Some(0) => self.accept(registry, requests),
            Some(place) => self.serve(place - 1, registry, requests),
            None => debug_assert!(false, "{token:?} is not the control socket's"),
        }
    }

    /// Answers a client. One that is gone is no error.
    pub fn reply(&mut self, client: ClientId, reply: &Reply, registry: &Registry) {
        let found = self.clients.iter_mut().find(|(_, one)| one.id == client);
        let Some((key, one)) = found else { return };
        one.phase = Phase::Answered { reply: reply.to_line().into_bytes(), written: 0 };
        match one.write() {
            Fate::Stays => {}
            Fate::Goes => self.remove(key, registry),
        }
    }

    /// Edge-triggered: accepts until there is nobody. The number of clients bounds the turn, as
    /// every client beyond it ends one.
    fn accept(&mut self, registry: &Registry, requests: &mut Vec<(ClientId, Request)>) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, registry, requests),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A client that left early, or no descriptors: its next attempt is another edge.
                Err(error) => {
                    log::debug!("control socket: accept: {error}");
                    return;
                }
            }
        }
    }

    fn admit(
        &mut self,
        stream: UnixStream,
        registry: &Registry,
        requests: &mut Vec<(ClientId, Request)>,
    ) {
        let allowed = getsockopt(&stream, sockopt::PeerCredentials)
            .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw());
        if !allowed {
            return refuse(stream, "this primary belongs to another user");
        }
        if self.clients.len() >= CLIENTS_MAX && !self.evict(registry) {
            return refuse(stream, "too many clients of the control socket; try again");
        }
        let id = ClientId(self.next_id);
        self.next_id += 1;
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let client = entry.insert(Client { id, stream, phase: Phase::Asking(Vec::new()) });
        let registered = registry.register(
            &mut client.stream,
            Token(self.token_base + 1 + key),
            Interest::READABLE | Interest::WRITABLE,
        );
        match registered {
            // The request is often there already.
            Ok(()) => self.serve(key, registry, requests),
            Err(error) => {
                log::debug!("control socket: cannot watch a client: {error}");
                self.clients.remove(key);
            }
        }
    }

    /// Makes room by dropping the oldest client that the primary owes nothing.
    fn evict(&mut self, registry: &Registry) -> bool {
        let oldest = self
            .clients
            .iter()
            .filter(|(_, one)| match one.phase {
                Phase::Asking(_) | Phase::Answered { .. } => true,
                Phase::Waiting => false,
            })
            .min_by_key(|(_, one)| one.id)
            .map(|(key, _)| key);
        match oldest {
            Some(key) => {
                self.remove(key, registry);
                true
            }
            None => false,
        }
    }

    fn serve(&mut self, key: usize, registry: &Registry, requests: &mut Vec<(ClientId, Request)>) {
        // Events of a client that was removed in this same turn are normal.
        let Some(client) = self.clients.get_mut(key) else { return };
        let fate = match client.read(requests) {
            Fate::Stays => client.write(),
            Fate::Goes => Fate::Goes,
        };
        match fate {
            Fate::Stays => {}
            Fate::Goes => self.remove(key, registry),
        }
    }

    fn remove(&mut self, key: usize, registry: &Registry) {
        if let Some(mut client) = self.clients.try_remove(key) {
            // Closing it takes it out of epoll as well.
            drop(registry.deregister(&mut client.stream));
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

impl Client {
    /// Reads until nothing comes. Whoever ends its stream, or sends more than one request, goes.
    fn read(&mut self, requests: &mut Vec<(ClientId, Request)>) -> Fate {
        let mut chunk = [0; REQUEST_MAX];
        loop {
            let got = match self.stream.read(&mut chunk) {
                Ok(0) => return Fate::Goes,
                Ok(got) => chunk.get(..got).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Stays,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Fate::Goes,
            };
            let Phase::Asking(so_far) = &mut self.phase else { return Fate::Goes };
            so_far.extend_from_slice(got);
            if let Some(at) = so_far.iter().position(|byte| *byte == b'\n') {
                let (line, _) = so_far.split_at(at);
                match serde_json::from_slice::<Request>(line) {
                    Ok(request) => {
                        requests.push((self.id, request));
                        self.phase = Phase::Waiting;
                    }
                    Err(error) => self.answer_failure(&format!("not a request: {error}")),
                }
            } else if so_far.len() >= REQUEST_MAX {
                self.answer_failure("a request has at most 4096 bytes");
            }
        }
    }

    fn answer_failure(&mut self, why: &str) {
        let reply = Reply::Failed { why: why.to_owned() }.to_line().into_bytes();
        self.phase = Phase::Answered { reply, written: 0 };
    }

    fn write(&mut self) -> Fate {
        let Phase::Answered { reply, written } = &mut self.phase else { return Fate::Stays };
        while let Some(rest) = reply.get(*written..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Fate::Goes,
                Ok(count) => *written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Stays,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Goes,
            }
        }
        // Written: the memory is not needed while the client stays.
        if !reply.is_empty() {
            *reply = Vec::new();
            *written = 0;
        }
        Fate::Stays
    }
}

/// Says why, if the socket takes it at once, and closes.
fn refuse(mut stream: UnixStream, why: &str) {
    let line = Reply::Failed { why: why.to_owned() }.to_line();
    if let Err(error) = stream.write_all(line.as_bytes()) {
        log::debug!("control socket: a refused client did not hear why: {error}");
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            // The lock says that no croupier has it; with --control it may be anybody's.
            // Not blocking: somebody whose backlog is full answers EAGAIN.
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)
                }
                Ok(_) | Err(_) => {
                    Err(io::Error::new(io::ErrorKind::AddrInUse, "another program listens on it"))
                }
            }
        }
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is no socket; remove it or choose another path",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
