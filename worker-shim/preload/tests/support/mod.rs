//! A primary in the test's own process, and victims: programs that know nothing of croupier.
//!
//! The primary speaks the control protocol over an abstract socket, makes channels, and deals
//! connections when the test says so. Nothing here waits without a deadline.

use croupier_wire::fdpass::{self, Received};
use croupier_wire::message::{
    Answer, CONTROL_VAR, Handoff, Kind, REQUEST_LEN, RawAddress, Request, Verdict,
};
use croupier_wire::page::{PAGE_LEN, PAGE_MAGIC, Page};
use libc::{AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, c_int, socklen_t};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Longest wait for anything a victim does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Turns `-1` into a panic that names errno.
pub(crate) fn check(returned: c_int) -> c_int {
    assert!(returned >= 0, "{}", std::io::Error::last_os_error());
    returned
}

fn own(returned: c_int) -> OwnedFd {
    // SAFETY: callers pass what a system call has just made.
    unsafe { OwnedFd::from_raw_fd(check(returned)) }
}

/// What the primary says to bind and listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Everything is dealt.
    Deal,
    /// bind: not croupier's.
    Pass,
    /// bind: refused with this errno.
    Refuse(i32),
    /// bind is granted, and refused with this errno to who asks for what was bound before.
    RefuseAgain(i32),
    /// bind is granted, listen is not croupier's after all.
    PassAtListen,
    /// listen: the worker accepts by itself.
    Share,
}

/// A channel, as the primary has it.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Its number.
    pub(crate) number: u32,
    /// The primary's end.
    pub(crate) send: OwnedFd,
    /// The duplicate of the worker's end, which keeps what is queued alive.
    _receive: OwnedFd,
}

/// A question that was asked and answered.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The question.
    pub(crate) request: Request,
    /// The process that asked.
    pub(crate) pid: i32,
    /// The channel, if one was made.
    pub(crate) channel: Option<Channel>,
}

/// The primary.
#[derive(Debug)]
pub(crate) struct Primary {
    listener: Arc<OwnedFd>,
    asked: Receiver<Asked>,
    page: &'static Page,
    bell: Arc<OwnedFd>,
    variable: String,
}

const TOKEN: [u8; 16] = [0x5a; 16];

impl Primary {
    pub(crate) fn new(policy: Policy) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let serial = COUNT.fetch_add(1, SeqCst);
        let name = format!("croupier-test/{}/{serial}", std::process::id());
        let listener = seqpacket(&name);
        // SAFETY: our socket.
        check(unsafe { libc::listen(listener.as_raw_fd(), 64) });
        let (page_fd, page) = page();
        // SAFETY: makes a descriptor.
        let bell = own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) });
        let (listener, bell) = (Arc::new(listener), Arc::new(bell));
        let (tell, asked) = channel();
        let desk = Desk {
            listener: Arc::clone(&listener),
            page: page_fd,
            bell: Arc::clone(&bell),
            prefix: format!("croupier/{}/{serial}", std::process::id()),
            policy,
            channels: Vec::new(),
            bound: Vec::new(),
        };
        std::thread::spawn(move || desk.serve(&tell));
        Self { listener, asked, page, bell, variable: format!("{}@{name}", "5a".repeat(16)) }
    }

    pub(crate) fn page(&self) -> &'static Page {
        self.page
    }

    /// The next question, which must be of this kind.
    pub(crate) fn asked(&self, kind: Kind) -> Asked {
        let asked = self.asked.recv_timeout(PATIENCE).expect("the worker asked nothing more");
        assert_eq!(asked.request.kind, kind, "{asked:?}");
        asked
    }

    /// The channel of a worker that binds and listens as its next two questions.
    pub(crate) fn listening(&self) -> Channel {
        self.asked(Kind::Bind);
        self.asked(Kind::Listen).channel.expect("a channel")
    }

    /// Asserts that there are no more questions.
    pub(crate) fn nothing_asked(&self) {
        let left: Vec<_> = self.asked.try_iter().map(|asked| asked.request.kind).collect();
        assert!(left.is_empty(), "asked as well: {left:?}");
    }

    /// Waits for the counters, woken by the doorbell.
    pub(crate) fn until(&self, claimed: u64, closed: u64) {
        let totals = &self.page.totals;
        let now = || (totals.claimed.load(SeqCst), totals.closed.load(SeqCst));
        loop {
            self.page.bell.ring_at.store(now().0 + 1, SeqCst);
            self.page.bell.ring_on_close.store(1, SeqCst);
            if now() == (claimed, closed) {
                return;
            }
            assert!(
                now().0 <= claimed && now().1 <= closed && self.rung(PATIENCE),
                "claimed and closed are {:?}, not {:?}",
                now(),
                (claimed, closed)
            );
        }
    }

    /// Whether the doorbell rings within `patience`.
    pub(crate) fn rung(&self, patience: Duration) -> bool {
        let millis = c_int::try_from(patience.as_millis()).unwrap();
        let mut fd = libc::pollfd { fd: self.bell.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd.
        let ready = check(unsafe { libc::poll(&raw mut fd, 1, millis) });
        let mut count = [0_u8; 8];
        // SAFETY: eight bytes.
        ready == 1 && unsafe { libc::read(fd.fd, count.as_mut_ptr().cast(), 8) } == 8
    }

    /// Whether a client with this mark has something open.
    pub(crate) fn holds(&self, mark: u16) -> bool {
        self.page.holds(mark)
    }

    /// Processes that have a line.
    pub(crate) fn lines(&self) -> Vec<(u32, u64, u64)> {
        let line = |l: &croupier_wire::page::Line| {
            (l.pid.load(SeqCst), l.claimed.load(SeqCst), l.closed.load(SeqCst))
        };
        self.page.lines.iter().map(line).filter(|(pid, ..)| *pid != 0).collect()
    }

    /// A program under croupier.
    pub(crate) fn run(&self, program: &mut Command) -> Victim {
        Victim::start(program.env(CONTROL_VAR, &self.variable))
    }

    /// The end of the primary, as far as control goes; drop the channels as well.
    pub(crate) fn stop(&self) {
        // SAFETY: our socket; it makes the thread's accept fail.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Channel {
    /// Deals a new connection; returns the client's end.
    pub(crate) fn deal(&self) -> Client {
        self.deal_of(0)
    }

    /// … of a client with this mark.
    pub(crate) fn deal_of(&self, mark: u16) -> Client {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let handoff =
            Handoff { nonblocking: false, mark, handed_off_at: monotonic(), peer: raw(peer) };
        fdpass::send(self.send.as_fd(), &handoff.encode(), &[server.as_fd()]).unwrap();
        Client(client)
    }

    /// Connections that nobody has claimed.
    pub(crate) fn queued(&self) -> c_int {
        let mut bytes = 0;
        // SAFETY: `bytes` is ours.
        check(unsafe { libc::ioctl(self.send.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) });
        bytes / 768
    }
}

/// A client's end.
#[derive(Debug)]
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    /// Says something, and gets everything that the worker answers until it closes.
    pub(crate) fn exchange(self, say: &str) -> String {
        self.say(say);
        self.rest()
    }

    /// Says something.
    pub(crate) fn say(&self, say: &str) {
        (&self.0).write_all(say.as_bytes()).unwrap();
    }

    /// What the worker still says.
    pub(crate) fn rest(mut self) -> String {
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).unwrap_or_else(|e| panic!("after {answer:?}: {e}"));
        answer
    }
}

/// A program under test; killed with its process group at the end.
#[derive(Debug)]
pub(crate) struct Victim {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Victim {
    /// Starts it with the library preloaded.
    pub(crate) fn start(program: &mut Command) -> Self {
        let program = program.env("LD_PRELOAD", library()).stdin(Stdio::null());
        let mut child = program.stdout(Stdio::piped()).process_group(0).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut fd =
            libc::pollfd { fd: self.lines.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        if self.lines.buffer().is_empty() {
            let millis = c_int::try_from(PATIENCE.as_millis()).unwrap();
            // SAFETY: one pollfd.
            assert_eq!(check(unsafe { libc::poll(&raw mut fd, 1, millis) }), 1, "it said nothing");
        }
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// All it prints until its end, and how it ended.
    pub(crate) fn finish(mut self) -> (String, ExitStatus) {
        let status = self.wait();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (rest, status)
    }

    /// Asserts that it ends with exit code 0; returns what it printed.
    pub(crate) fn succeed(self) -> String {
        let (output, status) = self.finish();
        assert!(status.success(), "{status}; it said {output:?}");
        output
    }

    /// Asserts that it is ended by `signal`.
    pub(crate) fn ended_by(self, signal: c_int) {
        let (output, status) = self.finish();
        assert_eq!(status.signal(), Some(signal), "{status}; it said {output:?}");
    }

    fn wait(&mut self) -> ExitStatus {
        let pid = c_int::try_from(self.child.id()).unwrap();
        // SAFETY: makes a descriptor; there is no wrapper for pidfd_open(2) in libc.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let pidfd = own(c_int::try_from(raw).unwrap());
        let mut fd = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = c_int::try_from(PATIENCE.as_millis()).unwrap();
        // SAFETY: one pollfd.
        assert_eq!(check(unsafe { libc::poll(&raw mut fd, 1, millis) }), 1, "it does not end");
        self.child.wait().unwrap()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let group = -c_int::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to the group that `start` made.
        unsafe { libc::kill(group, libc::SIGKILL) };
        drop(self.child.wait());
    }
}

/// Compiles a C program; `name` must differ between tests.
pub(crate) fn compile(name: &str, source: &str) -> Command {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(folder).unwrap();
    let stem = format!("{name}-{}", std::process::id());
    let (text, program) = (folder.join(format!("{stem}.c")), folder.join(&stem));
    std::fs::write(&text, [include_str!("victim.h"), source].concat()).unwrap();
    let mut cc = Command::new("cc");
    let status = cc.args(["-Wall", "-Werror", "-pthread", "-o"]).arg(&program).arg(&text).status();
    assert!(status.unwrap().success(), "cc failed on {}", text.display());
    Command::new(program)
}

/// The library, built with the same profile as this test.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let built = test.parent().and_then(Path::parent).unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "croupier-preload"]);
        if built.ends_with("release") {
            cargo.arg("--release");
        }
        let target = cargo.arg("--target-dir").arg(built.parent().unwrap());
        assert!(target.status().unwrap().success(), "the library does not build");
        built.join("libcroupier_preload.so")
    })
}

/// The primary's thread.
struct Desk {
    listener: Arc<OwnedFd>,
    page: OwnedFd,
    bell: Arc<OwnedFd>,
    prefix: String,
    policy: Policy,
    /// The address of each channel made.
    channels: Vec<Request>,
    /// What was bound, by cookie.
    bound: Vec<(u64, Request)>,
}

impl Desk {
    fn serve(mut self, tell: &Sender<Asked>) {
        let null = std::ptr::null_mut::<libc::sockaddr>();
        loop {
            // SAFETY: no address is asked for.
            let client = unsafe {
                libc::accept4(self.listener.as_raw_fd(), null, null.cast(), SOCK_CLOEXEC)
            };
            if client < 0 {
                return;
            }
            let client = own(client);
            let mut bytes = [0; REQUEST_LEN];
            let got = fdpass::recv::<0>(client.as_fd(), &mut bytes, &mut [], 0).unwrap();
            assert_eq!(got, Received::Message(REQUEST_LEN));
            let request = Request::decode(&bytes).unwrap();
            assert_eq!(request.token, TOKEN);
            let pid = peer_pid(&client);
            let channel = self.answer(&client, &request);
            if tell.send(Asked { request, pid, channel }).is_err() {
                return;
            }
        }
    }

    fn answer(&mut self, client: &OwnedFd, request: &Request) -> Option<Channel> {
        let mut answer = Answer {
            verdict: Verdict::Done,
            errno: 0,
            channel: request.channel,
            address: request.address,
        };
        let (page, bell) = (self.page.as_fd(), self.bell.as_fd());
        let send = |answer: Answer, fds: &[_]| {
            fdpass::send(client.as_fd(), &answer.encode(), fds).unwrap();
        };
        match (request.kind, self.policy) {
            (Kind::Bind, Policy::Pass) | (Kind::Listen, Policy::PassAtListen) => {
                answer.verdict = Verdict::Pass;
            }
            (Kind::Bind, Policy::RefuseAgain(errno)) if request.address.bytes().is_empty() => {
                answer.verdict = Verdict::Refused;
                answer.errno = errno;
            }
            (Kind::Bind, _) if request.address.bytes().is_empty() => {
                let known = self.bound.iter().find(|(known, _)| Some(*known) == request.cookie());
                answer.verdict = known.map_or(Verdict::Pass, |_| Verdict::Done);
                answer.address = known.map_or(RawAddress::NONE, |(_, bind)| bind.address);
            }
            (Kind::Bind, Policy::Refuse(errno)) => {
                answer.verdict = Verdict::Refused;
                answer.errno = errno;
            }
            (Kind::Listen, Policy::Share) => {
                answer.verdict = Verdict::Socket;
                let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                let (_no_mail, receive) = make_channel(&self.prefix, 0);
                send(answer, &[page, bell, socket.as_fd(), receive.as_fd()]);
                return None;
            }
            (Kind::Listen, _) => {
                self.channels.push(*request);
                answer.verdict = Verdict::Dealt;
                answer.channel = u32::try_from(self.channels.len()).unwrap();
                let (channel, receive) = make_channel(&self.prefix, answer.channel);
                send(answer, &[page, bell, receive.as_fd()]);
                return Some(channel);
            }
            (Kind::Attach, _) => {
                let index = usize::try_from(request.channel).unwrap();
                if let Some(listen) = index.checked_sub(1).and_then(|i| self.channels.get(i)) {
                    answer.address = listen.address;
                }
                answer.verdict = Verdict::Dealt;
                send(answer, &[page, bell]);
                return None;
            }
            (Kind::Bind, _) => self.bound.extend(request.cookie().map(|cookie| (cookie, *request))),
            (Kind::Close | Kind::Ready | Kind::SetOption | Kind::Unbind | Kind::Post, _) => {}
        }
        send(answer, &[]);
        None
    }
}

fn make_channel(prefix: &str, number: u32) -> (Channel, OwnedFd) {
    let mut ends = [0; 2];
    let kind = SOCK_SEQPACKET | SOCK_CLOEXEC;
    // SAFETY: `ends` has room for two.
    check(unsafe { libc::socketpair(AF_UNIX, kind, 0, ends.as_mut_ptr()) });
    let [send, receive] = ends.map(own);
    let (name, len) = abstract_name(&format!("{prefix}/{number}"));
    // SAFETY: `name` has `len` bytes.
    check(unsafe { libc::bind(receive.as_raw_fd(), (&raw const name).cast(), len) });
    let copy = receive.try_clone().unwrap();
    (Channel { number, send, _receive: copy }, receive)
}

fn seqpacket(name: &str) -> OwnedFd {
    // SAFETY: makes a socket.
    let socket = own(unsafe { libc::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0) });
    let (name, len) = abstract_name(name);
    // SAFETY: `name` has `len` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), len) });
    socket
}

fn abstract_name(name: &str) -> (libc::sockaddr_un, socklen_t) {
    // SAFETY: plain integers.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = u16::try_from(AF_UNIX).unwrap();
    for (to, from) in address.sun_path.iter_mut().skip(1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    (address, socklen_t::try_from(3 + name.len()).unwrap())
}

fn peer_pid(client: &OwnedFd) -> i32 {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = socklen_t::try_from(size_of_val(&peer)).unwrap();
    let (fd, level, to) = (client.as_raw_fd(), libc::SOL_SOCKET, (&raw mut peer).cast());
    // SAFETY: `peer` has `len` bytes.
    check(unsafe { libc::getsockopt(fd, level, libc::SO_PEERCRED, to, &raw mut len) });
    peer.pid
}

fn page() -> (OwnedFd, &'static Page) {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = own(unsafe { libc::memfd_create(c"page".as_ptr(), flags) });
    // SAFETY: our own file.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), i64::try_from(PAGE_LEN).unwrap()) });
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: our own file.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) });
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let null = std::ptr::null_mut();
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(null, PAGE_LEN, access, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: mapped above, never unmapped, valid for every bit pattern.
    let page = unsafe { &*at.cast::<Page>() };
    page.head.magic.store(PAGE_MAGIC, SeqCst);
    (fd, page)
}

/// `struct sockaddr_in`.
fn raw<const N: usize>(address: SocketAddr) -> RawAddress<N> {
    let SocketAddr::V4(v4) = address else { panic!("{address}") };
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&u16::try_from(libc::AF_INET).unwrap().to_ne_bytes());
    bytes[2..4].copy_from_slice(&v4.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&v4.ip().octets());
    RawAddress::new(&bytes)
}

fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) });
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}
