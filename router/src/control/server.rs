//! The primary's end of the control socket: in its loop, never blocking, bounded.
//!
//! Owns: the listening socket, its clients and their buffers. Promises: only the same user and root
//! are heard; at most [`CLIENTS_MAX`] clients, [`REQUEST_MAX`] bytes of request, [`SAID_MAX`] bytes of
//! progress that nobody reads, and one reply each; at most [`FOLLOWERS_MAX`] of them follow what happens,
//! and one that reads too slowly hears how much it missed;
//! a client that neither sends its request nor reads its reply loses its place when another needs
//! it, so no timer is wanted. Never does: wait for a client, or decide anything.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use slab::Slab;

use super::messages::{Happening, REQUEST_MAX, Reply, Request};
use super::outbox::{Outbox, Sent};
use crate::output::{wall_clock, written};

/// Most clients at a time.
pub const CLIENTS_MAX: usize = 64;
/// Clients that follow what happens.
pub const FOLLOWERS_MAX: usize = 16;
/// Progress, or events, that wait for a client that does not read; what comes beyond is not sent.
pub const SAID_MAX: usize = 64 << 10;
/// Clients admitted in one turn of the loop.
pub const ADMITTED_MAX: usize = 16;
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
    backlog: Backlog,
}

/// Whether clients wait that no edge will announce again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backlog {
    /// None.
    Empty,
    /// More than a turn admits.
    More,
    /// There was no descriptor or no memory for one.
    Exhausted,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    phase: Phase,
    outbox: Outbox,
}

/// A client asks once and is answered once.
#[derive(Debug)]
enum Phase {
    /// Its request is not complete: what came so far.
    Asking(Vec<u8>),
    /// Its request is with the primary.
    Waiting,
    /// It hears what happens, until it goes or the primary does.
    Following,
    /// Its reply is on the way. It stays until it goes, or until the primary goes, which is what
    /// `stop` and `wait stopped` wait for.
    Answered,
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
            backlog: Backlog::Empty,
        })
    }

    /// Whether an event with this token is to go to [`Self::ready`].
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        (self.token_base..self.token_base + TOKENS).contains(&token.0)
    }

    /// Whether [`Self::go_on`] is to be called, though no event will say so.
    #[must_use]
    pub const fn backlog(&self) -> Backlog {
        self.backlog
    }

    /// Whether this client is still there to be answered.
    #[must_use]
    pub fn has(&self, client: ClientId) -> bool {
        self.clients.iter().any(|(_, one)| one.id == client)
    }

    /// Admits who waits.
    pub fn go_on(&mut self, registry: &Registry, requests: &mut Vec<(ClientId, Request)>) {
        self.accept(registry, requests);
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
        one.phase = Phase::Answered;
        one.outbox.end(reply.to_line().as_bytes(), missed);
        match one.write() {
            Fate::Stays => {}
            Fate::Goes => self.remove(key, registry),
        }
    }

    /// Tells a client that waits how far its request is. One that is gone, or does not read, is no
    /// error.
    pub fn say(&mut self, client: ClientId, text: &str, registry: &Registry) {
        let found = self.clients.iter_mut().find(|(_, one)| one.id == client);
        let Some((key, one)) = found else { return };
        if one.outbox.waiting() > SAID_MAX {
            return;
        }
        one.outbox.end(Reply::Said { text: text.to_owned() }.to_line().as_bytes(), missed);
        match one.write() {
            Fate::Stays => {}
            Fate::Goes => self.remove(key, registry),
        }
    }

    /// From now on a client hears what happens. False: it is gone, or too many do already.
    pub fn follow(&mut self, client: ClientId) -> bool {
        let follows = |(_, one): &(usize, &Client)| matches!(one.phase, Phase::Following);
        if self.clients.iter().filter(follows).count() >= FOLLOWERS_MAX {
            return false;
        }
        let found = self.clients.iter_mut().find(|(_, one)| one.id == client);
        found.map(|(_, one)| one.phase = Phase::Following).is_some()
    }

    /// Whether anybody follows.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.clients.iter().any(|(_, one)| matches!(one.phase, Phase::Following))
    }

    /// Tells one client that follows.
    pub fn tell_one(&mut self, client: ClientId, event: Happening, registry: &Registry) {
        let line = Reply::Event(Box::new(event)).to_line();
        let found = self.clients.iter_mut().find(|(_, one)| one.id == client);
        if let Some((key, one)) = found
            && let Fate::Goes = one.hear(line.as_bytes())
        {
            self.remove(key, registry);
        }
    }

    /// Tells everybody who follows. Whoever has not read what came before misses it, and hears that
    /// when it has.
    pub fn tell_followers(&mut self, event: Happening, registry: &Registry) {
        let line = Reply::Event(Box::new(event)).to_line();
        let mut gone = Vec::new();
        for (key, one) in &mut self.clients {
            if let Fate::Goes = one.hear(line.as_bytes()) {
                gone.push(key);
            }
        }
        for key in gone {
            self.remove(key, registry);
        }
    }

    /// Gives a client up, to be answered by somebody else: its connection, if it is still there.
    pub fn release(
        &mut self,
        client: ClientId,
        registry: &Registry,
    ) -> Option<std::os::unix::net::UnixStream> {
        let key = self.clients.iter().find(|(_, one)| one.id == client).map(|(key, _)| key)?;
        let mut stream = self.clients.try_remove(key)?.stream;
        registry.deregister(&mut stream).ok()?;
        Some(OwnedFd::from(stream).into())
    }

    /// Edge-triggered: accepts until there is nobody, or the turn has had its share. (Every client beyond
    /// [`CLIENTS_MAX`] ends one, but a flood brings them as fast as they are taken.)
    fn accept(&mut self, registry: &Registry, requests: &mut Vec<(ClientId, Request)>) {
        self.backlog = Backlog::More;
        for _ in 0..ADMITTED_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, registry, requests),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.backlog = Backlog::Empty;
                    return;
                }
                // A client that left early.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    log::debug!("control socket: accept: {error}");
                    self.backlog = Backlog::Exhausted;
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
            return refuse(
                stream,
                "this primary belongs to another user; only that one and root may ask it",
            );
        }
        if self.clients.len() >= CLIENTS_MAX && !self.evict(registry) {
            return refuse(stream, "too many clients of the control socket; try again");
        }
        let id = ClientId(self.next_id);
        self.next_id += 1;
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let phase = Phase::Asking(Vec::new());
        let client = entry.insert(Client { id, stream, phase, outbox: Outbox::new(SAID_MAX) });
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
                Phase::Asking(_) | Phase::Answered => true,
                Phase::Waiting | Phase::Following => false,
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
        self.outbox.end(Reply::Failed { why: why.to_owned() }.to_line().as_bytes(), missed);
        self.phase = Phase::Answered;
    }

    /// A line for one that follows.
    fn hear(&mut self, line: &[u8]) -> Fate {
        if !matches!(self.phase, Phase::Following) {
            return Fate::Stays;
        }
        self.outbox.offer(line, missed);
        self.write()
    }

    /// Writes what there is to write, and what has been missed when all of it is.
    fn write(&mut self) -> Fate {
        match self.outbox.send_and_note(&mut self.stream, missed) {
            Sent::All | Sent::Some => Fate::Stays,
            Sent::Gone => Fate::Goes,
        }
    }
}

/// What a follower is told where events are missing.
fn missed(count: u64) -> Vec<u8> {
    let event = Happening::missed(count, written(wall_clock()));
    Reply::Event(Box::new(event)).to_line().into_bytes()
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

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::os::unix::net::UnixStream as Client;
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::super::client::Found;
    use super::super::messages::{Awaited, SCHEMA, Status, Totals};
    use super::*;

    const BASE: usize = 100;

    struct Bench {
        _folder: tempfile::TempDir,
        path: PathBuf,
        poll: Poll,
        server: ControlServer,
        requests: Vec<(ClientId, Request)>,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("t.sock");
            let poll = Poll::new().unwrap();
            let server = ControlServer::bind(&path, poll.registry(), BASE).unwrap();
            Self { _folder: folder, path, poll, server, requests: Vec::new() }
        }

        fn connect(&self) -> Client {
            let client = Client::connect(&self.path).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            client
        }

        fn ask(&self, text: &str) -> Client {
            let mut client = self.connect();
            client.write_all(text.as_bytes()).unwrap();
            client
        }

        /// Turns of the loop until there is nothing to do.
        fn turn(&mut self) {
            let mut events = Events::with_capacity(8);
            loop {
                self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
                if self.server.backlog() != Backlog::Empty {
                    self.server.go_on(self.poll.registry(), &mut self.requests);
                } else if events.is_empty() {
                    return;
                }
                for event in &events {
                    assert!(self.server.owns(event.token()));
                    self.server.ready(event.token(), self.poll.registry(), &mut self.requests);
                }
            }
        }

        fn reply(&mut self, client: ClientId, reply: &Reply) {
            self.server.reply(client, reply, self.poll.registry());
        }
    }

    fn line(client: &Client) -> String {
        let mut line = String::new();
        io::BufReader::new(client).read_line(&mut line).unwrap();
        line
    }

    fn ended(client: &mut Client) -> bool {
        // A reset is an end, too: the server closed with our bytes unread.
        matches!(client.read(&mut [0; 64]), Ok(0))
            || client.take_error().is_ok_and(|error| error.is_some())
    }

    fn big_status() -> Reply {
        Reply::Status(Box::new(Status {
            schema: SCHEMA,
            pid: 1,
            name: "x".repeat(1 << 20),
            version: "0".into(),
            policy: "least".into(),
            uptime_s: 1,
            slots: 0,
            paused: false,
            stopping: false,
            reloading: false,
            listeners: Vec::new(),
            workers: Vec::new(),
            advice: Vec::new(),
            totals: Totals::default(),
        }))
    }

    fn happened(seq: u64) -> Happening {
        Happening { seq: Some(seq), event: "late".into(), ..Happening::default() }
    }

    /// What a reader finds in its socket now.
    fn read_all(bench: &mut Bench, client: &mut Client) -> Vec<Happening> {
        client.set_nonblocking(true).unwrap();
        let mut text = Vec::new();
        loop {
            bench.turn();
            match client.read_to_end(&mut text) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let before = text.len();
                    bench.turn();
                    drop(client.read_to_end(&mut text));
                    if text.len() == before {
                        break;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let event = |line: &[u8]| {
            let Reply::Event(event) = serde_json::from_slice::<Reply>(line).unwrap() else {
                panic!("{:?} is no event", String::from_utf8_lossy(line));
            };
            *event
        };
        lines.map(event).collect()
    }

    #[test]
    fn a_slow_follower_hears_how_much_it_missed_and_then_goes_on() {
        let mut bench = Bench::new();
        let (mut slow, mut quick) = (bench.ask("{\"request\":\"events\"}\n"), bench.connect());
        quick.write_all(b"{\"request\":\"events\"}\n").unwrap();
        bench.turn();
        assert!(!bench.server.is_followed());
        for (client, _) in std::mem::take(&mut bench.requests) {
            assert!(bench.server.follow(client));
        }
        assert!(bench.server.is_followed());
        let (mut seen, mut last) = (0, 0);
        for round in 0..20 {
            for seq in round * 500..(round + 1) * 500 {
                bench.server.tell_followers(happened(seq), bench.poll.registry());
            }
            let news = read_all(&mut bench, &mut quick);
            assert!(news.iter().all(|event| event.event == "late"), "it reads all in time");
            seen += news.len();
            last = news.last().unwrap().seq.unwrap();
        }
        assert_eq!((seen, last), (10_000, 9_999));
        let held: usize = bench.server.clients.iter().map(|(_, one)| one.outbox.waiting()).sum();
        assert!(held <= 4 * SAID_MAX, "{held} bytes wait");
        let late = read_all(&mut bench, &mut slow);
        let (note, before) = late.split_last().unwrap();
        assert_eq!((note.event.as_str(), note.seq), ("missed", None));
        assert_eq!(before.len() as u64 + note.count.unwrap(), 10_000, "each is told or counted");
        assert!(before.iter().zip(0..).all(|(event, seq)| event.seq == Some(seq)), "in order");
        // Up to date again.
        bench.server.tell_followers(happened(10_000), bench.poll.registry());
        assert_eq!(read_all(&mut bench, &mut slow), [happened(10_000)]);
        drop((slow, quick));
        bench.turn();
        assert!(!bench.server.is_followed());
        bench.server.tell_followers(happened(10_001), bench.poll.registry());
    }

    #[test]
    fn followers_have_a_bound_and_keep_their_place() {
        let mut bench = Bench::new();
        let ask = "{\"request\":\"events\"}\n";
        let mut all: Vec<Client> = (0..=FOLLOWERS_MAX).map(|_| bench.ask(ask)).collect();
        bench.turn();
        let asked = std::mem::take(&mut bench.requests);
        let follows: Vec<bool> =
            asked.iter().map(|(client, _)| bench.server.follow(*client)).collect();
        assert_eq!(follows.iter().filter(|follows| **follows).count(), FOLLOWERS_MAX);
        // Others come and go, more than there is room for.
        let others: Vec<Client> = (0..CLIENTS_MAX + 4).map(|_| bench.connect()).collect();
        bench.turn();
        drop(others);
        bench.server.tell_followers(happened(1), bench.poll.registry());
        assert_eq!(read_all(&mut bench, &mut all[0]), [happened(1)]);
    }

    #[test]
    fn asked_and_answered_later() {
        let mut bench = Bench::new();
        let mode = std::fs::metadata(&bench.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let first = bench.ask("{\"request\":\"ping\"}\n");
        let second = bench.ask("{\"request\":\"wait\",\"for\":\"ready\"}\n");
        bench.turn();
        let asked: Vec<Request> =
            bench.requests.iter().map(|(_, request)| request.clone()).collect();
        assert_eq!(asked, [Request::Ping, Request::Wait { r#for: Awaited::Ready }]);
        let (ping, wait) = (bench.requests[0].0, bench.requests[1].0);
        bench.reply(wait, &Reply::Done);
        bench.reply(ping, &Reply::Failed { why: "no".into() });
        assert_eq!(line(&first), "{\"reply\":\"failed\",\"why\":\"no\"}\n");
        assert_eq!(line(&second), "{\"reply\":\"done\"}\n");
    }

    #[test]
    fn requests_come_in_pieces() {
        let mut bench = Bench::new();
        let mut client = bench.ask("{\"request\":");
        bench.turn();
        assert!(bench.requests.is_empty());
        client.write_all(b"\"status\"}\n").unwrap();
        bench.turn();
        assert_eq!(bench.requests.len(), 1);
    }

    #[test]
    fn nonsense_is_answered_and_costs_nobody_else_anything() {
        let mut bench = Bench::new();
        let nonsense = bench.ask("hello\n");
        let endless = bench.ask(&"x".repeat(REQUEST_MAX));
        let mut silent = bench.connect();
        let mut greedy = bench.ask("{\"request\":\"ping\"}\n{\"request\":\"ping\"}\n");
        bench.turn();
        assert!(line(&nonsense).contains("not a request"));
        assert!(line(&endless).contains("at most 4096 bytes"));
        // The rest of its first message is ignored; another one ends it.
        assert_eq!(bench.requests.len(), 1);
        greedy.write_all(b"more\n").unwrap();
        bench.turn();
        assert!(ended(&mut greedy));
        silent.write_all(b"{\"request\":\"ping\"}\n").unwrap();
        bench.turn();
        assert_eq!(bench.requests.len(), 2, "the silent one is still there");
    }

    #[test]
    fn a_client_that_left_is_ignored() {
        let mut bench = Bench::new();
        drop(bench.ask("{\"request\":\"status\"}\n"));
        bench.turn();
        let (gone, _) = bench.requests[0];
        let next = bench.ask("{\"request\":\"ping\"}\n");
        bench.turn();
        bench.reply(gone, &Reply::Done);
        next.set_nonblocking(true).unwrap();
        let nothing = (&next).read(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock, "it got the other's reply");
        assert_eq!(bench.server.clients.len(), 1);
    }

    #[test]
    fn a_reply_larger_than_the_socket_arrives_whole() {
        let mut bench = Bench::new();
        let client = bench.ask("{\"request\":\"status\"}\n");
        bench.turn();
        let (id, _) = bench.requests[0];
        let status = big_status();
        bench.reply(id, &status);
        let reader = std::thread::spawn(move || line(&client));
        while !reader.is_finished() {
            let mut events = Events::with_capacity(8);
            bench.poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            for event in &events {
                bench.server.ready(event.token(), bench.poll.registry(), &mut bench.requests);
            }
        }
        assert_eq!(serde_json::from_str::<Reply>(&reader.join().unwrap()).unwrap(), status);
    }

    #[test]
    fn progress_that_nobody_reads_is_bounded_and_the_reply_comes_all_the_same() {
        let mut bench = Bench::new();
        let client = bench.ask("{\"request\":\"reload\",\"rolling\":false,\"wait\":true}\n");
        bench.turn();
        let (id, _) = bench.requests[0];
        let text = "x".repeat(1000);
        for _ in 0..5000 {
            bench.server.say(id, &text, bench.poll.registry());
        }
        let (_, one) = bench.server.clients.iter().next().unwrap();
        let unsent = one.outbox.waiting();
        assert!((SAID_MAX..SAID_MAX + 2000).contains(&unsent), "{unsent}");
        bench.reply(id, &Reply::Done);
        let reader = std::thread::spawn(move || {
            io::BufReader::new(client)
                .lines()
                .map_while(Result::ok)
                .find(|line| !line.contains("said"))
        });
        while !reader.is_finished() {
            let mut events = Events::with_capacity(8);
            bench.poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            for event in &events {
                bench.server.ready(event.token(), bench.poll.registry(), &mut bench.requests);
            }
        }
        assert_eq!(reader.join().unwrap().unwrap(), Reply::Done.to_line().trim_end());
    }

    #[test]
    fn the_idle_make_room_and_the_waiting_stay() {
        let mut bench = Bench::new();
        let mut waiting = bench.ask("{\"request\":\"wait\",\"for\":\"stopped\"}\n");
        bench.turn();
        let mut reader = bench.ask("{\"request\":\"status\"}\n");
        bench.turn();
        let (slow, _) = bench.requests[1];
        // It never reads, so its reply does not go out.
        bench.reply(slow, &big_status());
        let mut idle: Vec<Client> = (0..CLIENTS_MAX - 2).map(|_| bench.connect()).collect();
        bench.turn();
        assert_eq!(bench.server.clients.len(), CLIENTS_MAX);
        let more: Vec<Client> = (0..2).map(|_| bench.ask("{\"request\":\"ping\"}\n")).collect();
        bench.turn();
        assert_eq!((bench.server.clients.len(), bench.requests.len()), (CLIENTS_MAX, 4));
        assert!(ended(&mut idle[0]), "the oldest idle one went");
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert!(!rest.ends_with(b"\n"), "the slow one was cut off");
        let (first, _) = bench.requests[0];
        bench.reply(first, &Reply::Done);
        let mut buffer = [0; 64];
        assert!(waiting.read(&mut buffer).unwrap() > 0, "the waiting one stayed");
        drop(more);
    }

    #[test]
    fn all_waiting_means_no_room() {
        let mut bench = Bench::new();
        let waiting: Vec<Client> = (0..CLIENTS_MAX)
            .map(|_| {
                let client = bench.ask("{\"request\":\"wait\",\"for\":\"stopped\"}\n");
                bench.turn();
                client
            })
            .collect();
        let refused = bench.connect();
        bench.turn();
        assert!(line(&refused).contains("too many clients of the control socket; try again"));
        assert_eq!(bench.requests.len(), waiting.len());
    }

    #[test]
    fn a_dead_primarys_socket_is_replaced_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let poll = Poll::new().unwrap();
        let path = folder.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        // A child that another test is just starting may still have a copy, until it executes.
        while Client::connect(&path).is_ok() {
            std::thread::yield_now();
        }
        let server = ControlServer::bind(&path, poll.registry(), BASE).unwrap();
        let error = ControlServer::bind(&path, poll.registry(), BASE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(server);
        assert!(!path.exists(), "it goes with its primary");
        std::fs::write(&path, "precious").unwrap();
        let error = ControlServer::bind(&path, poll.registry(), BASE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_turn_admits_its_share_and_the_rest_are_not_forgotten() {
        let mut bench = Bench::new();
        let all = ADMITTED_MAX * 2 + 3;
        let clients: Vec<Client> =
            (0..all).map(|_| bench.ask("{\"request\":\"ping\"}\n")).collect();
        bench.server.ready(Token(BASE), bench.poll.registry(), &mut bench.requests);
        assert_eq!((bench.requests.len(), bench.server.backlog()), (ADMITTED_MAX, Backlog::More));
        for (admitted, backlog) in [(ADMITTED_MAX * 2, Backlog::More), (all, Backlog::Empty)] {
            bench.server.go_on(bench.poll.registry(), &mut bench.requests);
            assert_eq!((bench.requests.len(), bench.server.backlog()), (admitted, backlog));
        }
        let first = bench.requests.first().map(|(client, _)| *client).unwrap();
        assert!(bench.server.has(first));
        drop(clients);
        bench.turn();
        assert!(!bench.server.has(first));
    }

    #[test]
    fn the_client_and_the_server_understand_each_other() {
        let mut bench = Bench::new();
        let path = bench.path.clone();
        let client = std::thread::spawn(move || {
            let selector =
                super::super::client::Selector { name: None, control: Some(path.clone()) };
            let mut found: Found = super::super::client::find(&selector).unwrap();
            let status = found.ask(Request::Status, Some(Duration::from_secs(30))).unwrap();
            let mut again = found.again().unwrap();
            let timed_out = again.ask(Request::Ping, Some(Duration::from_millis(30)));
            let mut again = found.again().unwrap();
            let mut said = Vec::new();
            let reload = Request::Reload { rolling: true, wait: true };
            let told = again.follow(reload, |text| said.push(text.to_owned()));
            assert_eq!((told.unwrap(), said), (Reply::Done, vec!["one".into(), "two".into()]));
            let mut again = found.again().unwrap();
            (found.pid, found.name.clone(), status, timed_out, again.wait_for_end(None))
        });
        let mut answered = false;
        while !client.is_finished() {
            let mut events = Events::with_capacity(8);
            bench.poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            for event in &events {
                bench.server.ready(event.token(), bench.poll.registry(), &mut bench.requests);
            }
            for (id, request) in std::mem::take(&mut bench.requests) {
                match request {
                    Request::Status => {
                        bench.reply(id, &big_status());
                        answered = true;
                    }
                    Request::Ping | Request::Logs { .. } => {}
                    Request::Reload { .. } | Request::Start { .. } | Request::StopSlots { .. } => {
                        bench.server.say(id, "one", bench.poll.registry());
                        bench.server.say(id, "two", bench.poll.registry());
                        bench.reply(id, &Reply::Done);
                    }
                    Request::Scale { .. }
                    | Request::Pause { .. }
                    | Request::Resume { .. }
                    | Request::Restart { .. }
                    | Request::Kill { .. }
                    | Request::Events => panic!("not asked here"),
                    Request::Wait { .. } | Request::Stop { .. } => {
                        let key = bench.server.clients.iter().find(|(_, one)| one.id == id);
                        let key = key.unwrap().0;
                        bench.server.remove(key, bench.poll.registry());
                    }
                }
            }
        }
        let (pid, name, status, timed_out, end) = client.join().unwrap();
        assert!(answered);
        assert_eq!((u32::try_from(pid).unwrap(), name.as_str()), (std::process::id(), "t"));
        assert_eq!(status, big_status());
        assert!(timed_out.unwrap_err().to_string().contains("in time"));
        end.unwrap();
    }
}
