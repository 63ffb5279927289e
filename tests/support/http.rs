//! A small HTTP client that tells *how* a request failed.
//!
//! One request per connection, as connections are what is dealt. An answer is read to the end of
//! the stream, so a copy of the connection that somebody forgot to close shows as a hang.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, connect,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::{PATIENCE, now};

/// Why there is no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// connect(2) failed.
    Connect(ErrorKind),
    /// The connection was reset.
    Reset,
    /// The stream ended before the first byte: whoever had the connection is gone.
    Empty,
    /// The stream ended, or was reset, inside the answer.
    Torn(String),
    /// Nothing more came within the client's patience.
    Hung(String),
    /// Anything else.
    Other(ErrorKind),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body as it came (chunked bodies with their chunk sizes).
    pub body: String,
}

impl Reply {
    /// Which process answered, where the body says `pid=N`.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.value("pid=")
    }

    /// The number behind `name` in the body.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<i32> {
        let rest = self.body.get(self.body.find(name)? + name.len()..)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let whole = match (header("content-length"), header("transfer-encoding")) {
            (Some(length), _) => body.len() == length.parse::<usize>().ok()?,
            (None, Some(_)) => body.ends_with("0\r\n\r\n"),
            (None, None) => true,
        };
        whole.then(|| Self { status, head: head.to_owned(), body: body.to_owned() })
    }
}

#[derive(Debug, Clone)]
enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Where and how to ask.
#[derive(Debug, Clone)]
pub struct Client {
    to: Target,
    from: Option<Ipv4Addr>,
    patience: Duration,
}

impl Client {
    /// A client of a port on 127.0.0.1.
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self::to(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// A client of an address.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self { to: Target::Tcp(address), from: None, patience: PATIENCE }
    }

    /// A client of a Unix socket.
    #[must_use]
    pub fn unix(path: PathBuf) -> Self {
        Self { to: Target::Unix(path), from: None, patience: PATIENCE }
    }

    /// The same from another source address: all of 127.0.0.0/8 is this machine's own.
    #[must_use]
    pub fn from(mut self, address: Ipv4Addr) -> Self {
        self.from = Some(address);
        self
    }

    /// The same with another patience.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Asks and waits for the whole answer.
    ///
    /// # Errors
    /// [`Failure`] says how far it came.
    pub fn get(&self, path: &str) -> Result<Reply, Failure> {
        self.send(path)?.reply()
    }

    /// Connects and asks; the answer is read later.
    ///
    /// # Errors
    /// [`Failure`] when there is no connection.
    pub fn send(&self, path: &str) -> Result<Pending, Failure> {
        let mut pending = self.open()?;
        pending.ask(path)?;
        Ok(pending)
    }

    /// Connects and says nothing yet.
    ///
    /// # Errors
    /// [`Failure::Connect`].
    pub fn open(&self) -> Result<Pending, Failure> {
        let failed =
            |error: nix::errno::Errno| Failure::Connect(std::io::Error::from(error).kind());
        let fd = self.connect().map_err(failed)?;
        Ok(Pending { stream: File::from(fd), read: Vec::new() })
    }

    fn connect(&self) -> nix::Result<OwnedFd> {
        let family = match &self.to {
            Target::Tcp(SocketAddr::V4(_)) => AddressFamily::Inet,
            Target::Tcp(SocketAddr::V6(_)) => AddressFamily::Inet6,
            Target::Unix(_) => AddressFamily::Unix,
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let seconds = i64::try_from(self.patience.as_secs()).expect("a patience of seconds");
        let micros = self.patience.subsec_micros().into();
        let patience = TimeVal::new(seconds, micros);
        setsockopt(&fd, sockopt::SendTimeout, &patience)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &patience)?;
        if let Some(from) = self.from {
            bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((from, 0))))?;
        }
        match &self.to {
            Target::Tcp(address) => dial(&fd, &SockaddrStorage::from(*address))?,
            Target::Unix(path) => dial(&fd, &UnixAddr::new(path)?)?,
        }
        Ok(fd)
    }
}

fn dial(fd: &OwnedFd, address: &dyn SockaddrLike) -> nix::Result<()> {
    connect(fd.as_raw_fd(), address)
}

/// A connection whose answer is still to come.
#[derive(Debug)]
pub struct Pending {
    stream: File,
    read: Vec<u8>,
}

impl Pending {
    /// Sends the request.
    ///
    /// # Errors
    /// [`Failure`] when the other side is gone.
    pub fn ask(&mut self, path: &str) -> Result<(), Failure> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.stream.write_all(request.as_bytes()).map_err(|error| self.failed(error.kind()))
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// [`Failure`] when the other side is gone.
    pub fn say(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes).map_err(|error| self.failed(error.kind()))
    }

    /// Whether the answer, or the end of the stream, has begun to arrive.
    #[must_use]
    pub fn answered(&self) -> bool {
        use std::os::fd::AsFd;
        let flags = nix::poll::PollFlags::POLLIN;
        let mut fds = [nix::poll::PollFd::new(self.stream.as_fd(), flags)];
        matches!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO), Ok(1..))
    }

    /// Reads to the end of the stream.
    ///
    /// # Errors
    /// [`Failure`] when the answer is not whole.
    pub fn reply(mut self) -> Result<Reply, Failure> {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) if self.read.is_empty() => return Err(Failure::Empty),
                Ok(0) => return Reply::parse(&self.read).ok_or_else(|| Failure::Torn(self.text())),
                Ok(count) => self.read.extend_from_slice(chunk.get(..count).unwrap_or(&[])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error.kind())),
            }
        }
    }

    fn failed(&self, kind: ErrorKind) -> Failure {
        if kind == ErrorKind::WouldBlock || kind == ErrorKind::TimedOut {
            Failure::Hung(self.text())
        } else if !self.read.is_empty() {
            Failure::Torn(self.text())
        } else if kind == ErrorKind::ConnectionReset || kind == ErrorKind::BrokenPipe {
            Failure::Reset
        } else {
            Failure::Other(kind)
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// What became of many requests.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The whole answers.
    pub replies: Vec<Reply>,
    /// The others.
    pub failures: Vec<Failure>,
    /// Their numbers, as `path` was asked for them.
    pub failed: Vec<usize>,
    /// The longest wait for an answer.
    pub slowest: Duration,
    /// How long each answer took.
    pub times: Vec<Duration>,
}

impl Outcome {
    /// The time within which `share` of the answers came; zero without answers.
    #[must_use]
    pub fn within(&self, share: f64) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among fewer answers than 2^52"
        )]
        let rank = (times.len() as f64 * share) as usize;
        times.get(rank.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Asks `total` times from `clients` threads, each as fast as it is answered. `path` gives the path
/// of the n-th request; `None` ends the run early.
#[must_use]
pub fn hammer(
    client: &Client,
    clients: usize,
    total: usize,
    path: impl Fn(usize) -> Option<String> + Sync,
) -> Outcome {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut own = Outcome::default();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let path = if number < total { path(number) } else { None };
            let Some(path) = path else { return own };
            let asked = now();
            match client.get(&path) {
                Ok(reply) => {
                    own.replies.push(reply);
                    own.times.push(asked.elapsed());
                }
                Err(failure) => {
                    let refused = matches!(failure, Failure::Connect(_));
                    own.failures.push(failure);
                    own.failed.push(number);
                    if refused {
                        return own;
                    }
                }
            }
            own.slowest = own.slowest.max(asked.elapsed());
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(run)).collect();
        let mut all = Outcome::default();
        for thread in threads {
            let own = thread.join().expect("a client does not panic");
            all.replies.extend(own.replies);
            all.failures.extend(own.failures);
            all.failed.extend(own.failed);
            all.times.extend(own.times);
            all.slowest = all.slowest.max(own.slowest);
        }
        all
    })
}
