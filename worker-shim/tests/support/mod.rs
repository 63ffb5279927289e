//! A primary small enough to sit inside a test: it answers what workers ask, deals connections by
//! hand, and records everything. Workers are real processes.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers")]
#![expect(clippy::indexing_slicing, unreachable_pub, reason = "as above")]

use crossbeam_channel::{Receiver, Sender, unbounded};
use croupier_wire::message::{Answer, CONTROL_VAR, GENERATION_VAR, HANDOFF_LEN, Handoff, Kind};
use croupier_wire::message::{REQUEST_LEN, RawAddress, Request, SLOT_VAR, Verdict, WORKER_VAR};
use croupier_wire::page::{PAGE_LEN, PAGE_MAGIC, Page};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr,
    accept4, bind, listen, recv, sendmsg, socket, socketpair,
};
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longest wait for anything: a failed test ends, it does not hang.
pub const DEADLINE: Duration = Duration::from_secs(10);
pub const WORKER_ID: u32 = 7;
pub const SLOT: u32 = 3;
pub const GENERATION: u32 = 2;
const TOKEN: [u8; 16] = [0xa5; 16];

/// One channel that a worker asked for: the sending end and, as in the real primary, a duplicate of
/// the receiving end.
pub struct Channel {
    pub number: u32,
    send: OwnedFd,
    spare: OwnedFd,
}

/// What the worker did, in order.
pub enum Event {
    Asked(Box<Request>),
    Opened(Channel),
    /// It asked for its post: the primary's end.
    Posted(OwnedFd),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Deal,
    Share,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Blocking,
    Nonblocking,
}

pub struct Primary {
    /// Where clients connect, and the address that workers ask for.
    pub address: SocketAddr,
    public: TcpListener,
    events: Receiver<Event>,
    page: &'static Page,
    control: String,
    desk: OwnedFd,
}

impl Drop for Primary {
    fn drop(&mut self) {
        // Ends the desk's accept, and refuses whoever asks from now on.
        nix::sys::socket::shutdown(self.desk.as_raw_fd(), Shutdown::Both).ok();
    }
}

struct Desk {
    socket: OwnedFd,
    public: TcpListener,
    policy: Policy,
    page: OwnedFd,
    bell: OwnedFd,
    pid: String,
    events: Sender<Event>,
    /// A process may bind an address once, until it closes it: what bind(2) says, too.
    open: bool,
}

static PRIMARIES: AtomicU32 = AtomicU32::new(0);

impl Primary {
    pub fn start(policy: Policy) -> Self {
        let public = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = public.local_addr().unwrap();
        let number = PRIMARIES.fetch_add(1, Ordering::Relaxed);
        let name = format!("croupier-test/{}/{number}", std::process::id());
        let kind = SockType::SeqPacket;
        let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
        listen(&socket, Backlog::new(16).unwrap()).unwrap();
        let memory =
            memfd_create("page", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&memory, PAGE_LEN.try_into().unwrap()).unwrap();
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = PAGE_LEN.try_into().unwrap();
        // SAFETY: a fresh shared mapping at an address of the kernel's choice, never unmapped.
        let at =
            unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &memory, 0) }.unwrap();
        // SAFETY: PAGE_LEN bytes hold a Page, every bit pattern of which is valid.
        let page = unsafe { at.cast::<Page>().as_ref() };
        page.head.magic.store(PAGE_MAGIC, Ordering::SeqCst);
        page.head.worker.store(WORKER_ID, Ordering::SeqCst);
        let bell = nix::sys::eventfd::EventFd::new().unwrap();
        let (events, received) = unbounded();
        let control = socket.try_clone().unwrap();
        let mut desk = Desk {
            socket,
            public: public.try_clone().unwrap(),
            policy,
            page: memory,
            bell: bell.into(),
            pid: format!("{}000{number}", std::process::id()),
            events,
            open: false,
        };
        std::thread::spawn(move || desk.answer_for_ever());
        let token: String = TOKEN.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("{token}@{name}");
        Self { address, public, events: received, page, control: token, desk: control }
    }

    /// The environment of a worker.
    pub fn adopt<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env(CONTROL_VAR, &self.control)
            .env(WORKER_VAR, WORKER_ID.to_string())
            .env(SLOT_VAR, SLOT.to_string())
            .env(GENERATION_VAR, GENERATION.to_string())
    }

    pub fn page(&self) -> &'static Page {
        self.page
    }

    pub fn claimed(&self) -> u64 {
        self.page.totals.claimed.load(Ordering::SeqCst)
    }

    pub fn closed(&self) -> u64 {
        self.page.totals.closed.load(Ordering::SeqCst)
    }

    /// The next event, whatever it is.
    pub fn next(&self) -> Event {
        self.events.recv_timeout(DEADLINE).expect("the worker asks the primary for something")
    }

    /// The next channel; requests before it are dropped.
    pub fn channel(&self) -> Channel {
        loop {
            if let Event::Opened(channel) = self.next() {
                return channel;
            }
        }
    }

    /// The primary's end of the next post; requests before it are dropped.
    pub fn post(&self) -> OwnedFd {
        loop {
            if let Event::Posted(post) = self.next() {
                return post;
            }
        }
    }

    /// The next request of this kind; others before it are dropped.
    pub fn asked(&self, kind: Kind) -> Request {
        loop {
            if let Event::Asked(request) = self.next()
                && request.kind == kind
            {
                return *request;
            }
        }
    }

    /// Every kind that was asked up to now.
    pub fn kinds(&self) -> Vec<Kind> {
        let asked = |event| match event {
            Event::Asked(request) => Some(request.kind),
            Event::Opened(_) | Event::Posted(_) => None,
        };
        self.events.try_iter().filter_map(asked).collect()
    }

    /// A channel that no worker asked for.
    pub fn make_channel(&self) -> Channel {
        Channel::new(&format!("{}000{}", std::process::id(), self.address.port()), 0)
    }

    /// A client, connected and already dealt to `channel`.
    pub fn client(&self, channel: &Channel) -> TcpStream {
        self.deal(channel, Mode::Blocking)
    }

    /// As [`Self::client`]; the primary has set this mode and says so in the message.
    pub fn deal(&self, channel: &Channel, mode: Mode) -> TcpStream {
        let nonblocking = mode == Mode::Nonblocking;
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let (dealt, peer) = self.public.accept().unwrap();
        dealt.set_nonblocking(nonblocking).unwrap();
        let SocketAddr::V4(peer) = peer else { panic!("an IPv4 listener has IPv4 peers") };
        let mut raw = libc::AF_INET.to_ne_bytes().get(..2).unwrap().to_vec();
        raw.extend(peer.port().to_be_bytes());
        raw.extend(peer.ip().octets());
        raw.extend([0; 8]);
        let bytes = Handoff { nonblocking, mark: 0, handed_off_at: 0, peer: RawAddress::new(&raw) }
            .encode();
        channel.send(&bytes, &[dealt.as_raw_fd()]);
        client
    }

    /// Kills the primary, as far as its workers can tell.
    pub fn die(self, channels: Vec<Channel>) {
        drop(self);
        drop(channels);
    }
}

impl Channel {
    /// `primary` stands for its pid, and keeps the names of two tests apart.
    fn new(primary: &str, number: u32) -> Self {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (send, end) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let name = format!("croupier/{primary}/{WORKER_ID}/{number}");
        bind(end.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
        Self { number, send, spare: end }
    }

    pub fn send(&self, bytes: &[u8], fds: &[i32]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.send.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None).unwrap();
    }

    /// Connections that wait in the channel.
    pub fn queued(&self) -> usize {
        let mut bytes = 0;
        // SAFETY: FIONREAD writes one int. On a SOCK_SEQPACKET it counts the bytes of all messages.
        let done = unsafe { libc::ioctl(self.spare.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        assert_eq!(done, 0);
        usize::try_from(bytes).unwrap() / HANDOFF_LEN
    }

    /// A copy of the receiving end, for a worker that is to inherit it.
    pub fn receiving_end(&self) -> OwnedFd {
        self.spare.try_clone().unwrap()
    }
}

impl Desk {
    fn answer_for_ever(&mut self) {
        for number in 1.. {
            let Ok(fd) = accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) else { return };
            // SAFETY: accept4 has just made it.
            let client = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
            let mut bytes = [0; REQUEST_LEN];
            let len = recv(client.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
            let request = Request::decode(&bytes[..len]).expect("workers speak the protocol");
            assert_eq!(request.token, TOKEN);
            // The test may be over; a worker that is on its way out still gets its answer.
            self.events.send(Event::Asked(Box::new(request))).ok();
            self.answer(&client, &request, number);
        }
    }

    fn answer(&mut self, client: &OwnedFd, request: &Request, number: u32) {
        let shared = [self.page.as_raw_fd(), self.bell.as_raw_fd()];
        let port = self.public.local_addr().unwrap().port();
        let ours = request.address.bytes().get(2..4) == Some(&port.to_be_bytes()[..]);
        let reply = |verdict, channel, fds: &[i32]| {
            let address = RawAddress::new(&wildcard(port));
            let errno = if verdict == Verdict::Refused { libc::EADDRINUSE } else { 0 };
            let bytes = Answer { verdict, errno, channel, address }.encode();
            let rights = [ControlMessage::ScmRights(fds)];
            let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
            let flags = MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&bytes)], rights, flags, None).ok();
        };
        match request.kind {
            Kind::Bind | Kind::Listen if !ours => reply(Verdict::Pass, 0, &[]),
            Kind::Bind if self.open => reply(Verdict::Refused, 0, &[]),
            Kind::Close => {
                self.open = false;
                reply(Verdict::Done, 0, &[]);
            }
            Kind::Bind | Kind::Ready | Kind::SetOption | Kind::Unbind => {
                reply(Verdict::Done, 0, &[]);
            }
            Kind::Post => {
                let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
                let (ours, theirs) =
                    socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
                reply(Verdict::Done, 0, &[theirs.as_raw_fd()]);
                self.events.send(Event::Posted(ours)).ok();
            }
            Kind::Attach => reply(Verdict::Dealt, request.channel, &shared),
            Kind::Listen if self.policy == Policy::Share => {
                let [page, bell] = shared;
                reply(Verdict::Socket, number, &[page, bell, self.public.as_raw_fd()]);
            }
            Kind::Listen => {
                self.open = true;
                let channel = Channel::new(&self.pid, number);
                let [page, bell] = shared;
                reply(Verdict::Dealt, number, &[page, bell, channel.spare.as_raw_fd()]);
                self.events.send(Event::Opened(channel)).ok();
            }
        }
    }
}

/// `struct sockaddr_in` of 127.0.0.1.
fn wildcard(port: u16) -> [u8; 16] {
    let [family, ..] = libc::AF_INET.to_le_bytes();
    let [high, low] = port.to_be_bytes();
    [family, 0, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// A worker process, in a process group of its own as under a real primary. Killed when dropped.
pub struct Worker {
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = unbounded();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    pub fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("the worker prints a line")
    }

    /// Writes to the worker's stdin.
    pub fn tell(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end.
    pub fn ended(&mut self) -> ExitStatus {
        // The pipe closes when the process is gone: a wait with a deadline and without polling.
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(_) => {}
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => break,
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => panic!("the worker stays"),
            }
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until `true_now`; the only way to learn what another process wrote into shared memory.
#[track_caller]
pub fn eventually(what: &str, mut true_now: impl FnMut() -> bool) {
    for _ in 0..DEADLINE.as_millis() {
        if true_now() {
            return;
        }
        tick(Duration::from_millis(1));
    }
    panic!("not within {DEADLINE:?}: {what}");
}

fn tick(time: Duration) {
    crossbeam_channel::never::<()>().recv_timeout(time).ok();
}

/// The process uses no CPU to speak of; one that spins would use all it gets.
#[track_caller]
pub fn sleeps(pid: u32) {
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        // utime and stime are fields 14 and 15 (proc_pid_stat(5)); the rest starts with field 3.
        rest.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
    };
    let before = ticks();
    tick(Duration::from_millis(500));
    let used = ticks() - before;
    assert!(used <= 5, "{used} ticks of CPU in half a second with nothing to do");
}

/// Lets a child inherit `fd`.
pub fn inheritable(fd: &OwnedFd) {
    fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
}

/// Sends a request on `client` and reads the whole answer.
pub fn get(mut client: TcpStream) -> String {
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// Where cargo put this test's binary, and so what it builds beside it.
fn build_folder() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().to_owned()
}

/// Builds into the folder of this test, in the same way. The test cannot rely on what lies there:
/// `cargo test --test …` builds neither examples nor other packages.
fn build(arguments: &[&str]) -> PathBuf {
    let folder = build_folder();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet"]).args(arguments);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(folder.parent().unwrap());
    let status = cargo.status().unwrap();
    assert!(status.success(), "{cargo:?}: {status}");
    folder
}

/// This package with all its features: the examples and the C library.
pub fn everything() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let arguments = ["-p", "croupier-worker", "--lib", "--examples", "--features", "axum,capi"];
    BUILT.get_or_init(|| build(&arguments))
}

/// An example program of this package.
pub fn example(name: &str) -> Command {
    Command::new(everything().join("examples").join(name))
}

/// The preload library. Built by itself: in one build with the above it would get those features.
pub fn preload() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build(&["-p", "croupier-preload"]).join("libcroupier_preload.so"))
}
