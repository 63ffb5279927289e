//! A server inside this process whose behaviour is known.
//!
//! Owns: the null server of the calibration (accept, answer, close) and subjects with a given law for
//! tests. Promises: answers after the time that the law says, or later by what the machine takes; never
//! earlier. Never does: stand in for an engine.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n0\n";

/// What happens to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Answered so much later.
    After(Duration),
    /// The whole server does nothing for so long, then answers.
    Stall(Duration),
    /// Reset without an answer.
    Reset,
    /// Closed in the midst of the answer.
    CutShort,
    /// Never answered, never closed.
    Silence,
}

/// A running server.
#[derive(Debug)]
pub struct Mock {
    address: SocketAddr,
    waker: Waker,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Mock {
    /// Starts a server on a free port; `law` says what happens to connection 0, 1, 2, …
    ///
    /// # Errors
    /// If the system refuses.
    pub fn start(law: impl Fn(u64) -> Fate + Send + 'static) -> io::Result<Self> {
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), STOP)?;
        let server = Server {
            poll,
            listener,
            law: Box::new(law),
            streams: Slab::new(),
            due: BinaryHeap::new(),
            number: 0,
        };
        let thread = thread::Builder::new().name("mock".to_owned()).spawn(move || server.run())?;
        Ok(Self { address, waker, thread: Some(thread) })
    }

    /// One that answers at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn null() -> io::Result<Self> {
        Self::start(|_| Fate::After(Duration::ZERO))
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        // A thread that has ended needs no waking.
        self.waker.wake().ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    law: Box<dyn Fn(u64) -> Fate + Send>,
    streams: Slab<TcpStream>,
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    number: u64,
}

impl Server {
    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            self.answer_due();
            let now = Instant::now();
            let wait = self.due.peek().map(|Reverse((at, _))| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, wait) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(()),
                    LISTENER => self.take_all()?,
                    Token(key) => self.read(key),
                }
            }
        }
    }

    fn take_all(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((mut stream, _)) => {
                    let entry = self.streams.vacant_entry();
                    let token = Token(entry.key());
                    self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    entry.insert(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The first bytes are the request.
    fn read(&mut self, key: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        match stream.read(&mut [0; 4096]) {
            Ok(n) if n > 0 => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {
                // Under a pending answer the key must not be given to another.
                if !self.due.iter().any(|Reverse((_, waiting))| *waiting == key) {
                    drop(self.streams.remove(key));
                }
                return;
            }
        }
        let fate = (self.law)(self.number);
        self.number += 1;
        match fate {
            Fate::After(delay) if delay.is_zero() => self.answer(key, ANSWER),
            Fate::After(delay) => self.due.push(Reverse((Instant::now() + delay, key))),
            Fate::Stall(time) => {
                thread::sleep(time);
                self.answer(key, ANSWER);
            }
            Fate::CutShort => self.answer(key, ANSWER.get(..ANSWER.len() - 1).unwrap_or_default()),
            Fate::Reset => {
                let stream = self.streams.remove(key);
                nix::sys::socket::setsockopt(
                    &stream,
                    nix::sys::socket::sockopt::Linger,
                    &nix::libc::linger { l_onoff: 1, l_linger: 0 },
                )
                .ok();
            }
            Fate::Silence => {}
        }
    }

    fn answer_due(&mut self) {
        while let Some(Reverse((at, key))) = self.due.peek().copied() {
            if at > Instant::now() {
                return;
            }
            self.due.pop();
            self.answer(key, ANSWER);
        }
    }

    /// A client that is gone is not this server's concern.
    fn answer(&mut self, key: usize, bytes: &[u8]) {
        if let Some(mut stream) = self.streams.try_remove(key) {
            stream.write_all(bytes).ok();
        }
    }
}
