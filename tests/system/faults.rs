//! Every system call of the primary's loop fails in turn, with every errno that its man page names.
//!
//! strace(1) lets a call fail without making it. It is attached to one thread of the primary, the loop,
//! the rescue thread or the disposal thread, and to nobody else: to no worker. What must hold, whatever
//! failed: the primary lives (or, before it is ready, ends with a message), every request is served at most
//! once, every one that is not served has failed at its client, all workers are ready in the end, no
//! descriptor is left over. Where connections are taken back nobody but the one in the dead worker's hands
//! may fail, and nobody hang.
//!
//! Not in the table: errnos that only a bug of the caller's can bring (EBADF, EFAULT, ENOTSOCK, EINVAL),
//! but where the program claims an answer to them; EAGAIN where it is the kernel's word that there is
//! nothing (accept4, epoll_wait, waitid): a kernel that says so and is wrong is not a fault, but a lie;
//! calls that cannot fail, and those by which the allocator gets memory. close(2) closes on Linux even when
//! it fails, which strace cannot do: its rows are only where a descriptor that stays open harms nobody.

mod stimuli;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Figure, Guard, Outcome, PATIENCE, Pending, Status, WorkerStatus, croupier,
    descriptors, figure, find_program, fixture, hammer, record, skip, soak, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What each call may fail with, as its man page says.
const ERRNOS: &[(&str, &[&str])] = &[
    (
        "accept4",
        &["ECONNABORTED", "EINTR", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM", "EPROTO"],
    ),
    ("bind", &["EACCES", "EADDRINUSE", "EADDRNOTAVAIL", "ENOMEM"]),
    ("chmod", &["EPERM", "EROFS", "EIO"]),
    ("clone", &["EAGAIN", "ENOMEM", "EPERM"]),
    ("clone3", &["EAGAIN", "ENOMEM", "EPERM"]),
    ("close", &["EINTR", "EIO"]),
    ("connect", &["EADDRNOTAVAIL", "ECONNREFUSED", "ETIMEDOUT", "EINTR"]),
    ("dup", &["EMFILE"]),
    ("epoll_create1", &["EMFILE", "ENFILE", "ENOMEM"]),
    ("epoll_ctl", &["ENOMEM", "ENOSPC", "EEXIST", "ENOENT"]),
    ("epoll_wait", &["EINTR"]),
    ("eventfd2", &["EMFILE", "ENFILE", "ENOMEM", "ENODEV"]),
    ("fcntl", &["EMFILE", "EAGAIN", "EPERM"]),
    ("flock", &["EINTR", "ENOLCK"]),
    ("fork", &["EAGAIN", "ENOMEM"]),
    ("fstat", &["ENOMEM", "EOVERFLOW"]),
    ("ftruncate", &["EINTR", "EIO", "EPERM"]),
    ("getdents64", &["ENOENT"]),
    ("getgroups", &["EPERM"]),
    ("getxattr", &["ENODATA", "EOPNOTSUPP", "EACCES"]),
    ("getrandom", &["EINTR", "ENOSYS"]),
    ("getsockname", &["ENOBUFS"]),
    ("getsockopt", &["ENOPROTOOPT"]),
    ("ioctl", &["ENOTTY", "EINVAL"]),
    ("kill", &["EPERM", "ESRCH"]),
    ("listen", &["EADDRINUSE", "EOPNOTSUPP"]),
    ("lseek", &["ENXIO"]),
    ("memfd_create", &["EMFILE", "ENFILE", "ENOMEM", "EPERM"]),
    ("mkdir", &["EACCES", "ENOSPC", "EROFS"]),
    ("openat", &["EMFILE", "ENFILE", "ENOMEM", "EACCES", "EINTR", "ENOENT"]),
    ("pidfd_open", &["EMFILE", "ENFILE", "ENOMEM", "ENOSYS"]),
    ("pidfd_send_signal", &["EPERM", "ESRCH"]),
    ("pipe2", &["EMFILE", "ENFILE"]),
    ("poll", &["EINTR", "ENOMEM"]),
    ("ppoll", &["EINTR", "ENOMEM"]),
    ("prctl", &["EINVAL", "EPERM"]),
    ("prlimit64", &["EPERM"]),
    ("read", &["EINTR", "EIO"]),
    ("readlink", &["EACCES", "ENOENT"]),
    ("readlinkat", &["EACCES", "ENOENT"]),
    ("recvfrom", &["ECONNRESET", "EINTR", "ENOMEM"]),
    ("recvmsg", &["EINTR", "ENOMEM", "EMFILE"]),
    ("sendmsg", &["EAGAIN", "ECONNRESET", "EINTR", "ENOBUFS", "ENOMEM", "EPIPE", "ETOOMANYREFS"]),
    ("sendto", &["ECONNRESET", "EINTR", "ENOBUFS", "ENOMEM", "EPIPE"]),
    ("setpgid", &["EACCES", "EPERM", "ESRCH"]),
    ("setsockopt", &["ENOPROTOOPT", "ENOMEM", "EPERM"]),
    ("shutdown", &["ENOTCONN"]),
    ("socket", &["EACCES", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]),
    ("socketpair", &["EMFILE", "ENFILE", "ENOMEM"]),
    ("stat", &["EACCES", "ENOMEM"]),
    ("statx", &["EACCES", "ENOMEM", "ENOENT"]),
    ("newfstatat", &["EACCES", "ENOMEM", "ENOENT"]),
    ("timerfd_create", &["EMFILE", "ENFILE", "ENOMEM"]),
    ("timerfd_settime", &["ECANCELED", "EINVAL"]),
    ("unlink", &["EACCES", "EBUSY", "EROFS"]),
    ("vfork", &["EAGAIN", "ENOMEM"]),
    ("wait4", &["EINTR", "ECHILD"]),
    ("waitid", &["EINTR", "ECHILD"]),
    ("write", &["EINTR", "EIO", "ENOSPC", "EPIPE"]),
    ("writev", &["EINTR", "EIO", "ENOSPC", "EPIPE"]),
];

/// Calls that have no row: they cannot fail, or only as the module says.
const WITHOUT: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "execve",
    "exit_group",
    "exit",
    "futex",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "gettid",
    "getuid",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "pread64",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "umask",
    "uname",
    "clock_gettime",
    "getcwd",
    "clock_nanosleep",
];

/// What goes on while a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum During {
    /// More requests at once than workers: accept, deal, wait for room.
    Requests,
    /// `status`, `wait`.
    Commands,
    /// A worker is killed and replaced, under load.
    Restart,
    /// A reload under load.
    Reload,
    /// A worker is killed with connections queued at it, another is late with some: all of those change hands.
    Salvage,
    /// A slot is stopped and started, another added and taken away; a pause. Under load.
    Slots,
    /// A worker that hangs is replaced, under load.
    Hung,
    /// TERM under load. The primary ends.
    Stop,
    /// From exec to ready. The primary ends, or serves.
    Start,
}

/// Whose calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// The loop's.
    Main,
    Rescue,
    Disposal,
}

impl Thread {
    /// Its number in a primary.
    fn id(self, primary: i32) -> i32 {
        let name = match self {
            Self::Main => return primary,
            Self::Rescue => "rescue",
            Self::Disposal => "disposal",
        };
        let found = std::fs::read_dir(format!("/proc/{primary}/task")).unwrap().find_map(|task| {
            let task = task.unwrap();
            let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            (comm.trim_end() == name).then(|| task.file_name().to_str()?.parse().ok())?
        });
        found.unwrap()
    }
}

#[derive(Debug, Clone)]
struct Row {
    call: String,
    errno: String,
    /// strace's `when=`: `3`, `2+`, `1..5`.
    when: String,
    during: During,
    thread: Thread,
}

impl Row {
    fn new(call: &str, errno: &str, when: &str, during: During) -> Self {
        let owned = str::to_owned;
        let (call, errno, when) = (owned(call), owned(errno), owned(when));
        Self { call, errno, when, during, thread: Thread::Main }
    }

    fn of(self, thread: Thread) -> Self {
        Self { thread, ..self }
    }

    fn name(&self) -> String {
        let Self { call, errno, when, during, thread } = self;
        let thread = match thread {
            Thread::Main => String::new(),
            Thread::Rescue | Thread::Disposal => format!(" {thread:?}"),
        };
        format!("replace 8 fault {during:?}{thread} {call} {errno} {when}").to_lowercase()
    }

    /// By this the kernel says that a worker has shut its channel down: it is replaced, with the connection in
    /// its hands.
    fn breaks_a_channel(&self) -> bool {
        self.call == "sendmsg" && matches!(self.errno.as_str(), "EPIPE" | "ECONNRESET")
    }

    fn arguments(&self) -> [String; 4] {
        let Self { call, errno, when, .. } = self;
        [
            "-e".into(),
            format!("trace={call}"),
            "-e".into(),
            format!("inject={call}:error={errno}:when={when}"),
        ]
    }
}

/// Why there is none.
const NO_TRACER: &str = "strace is not installed, or may not attach to a process of ours";

/// strace at work on one thread.
struct Tracer<'guard> {
    strace: Croupier<'guard>,
    log: PathBuf,
}

impl<'guard> Tracer<'guard> {
    /// `None`: it may not, or is not installed.
    fn attach(guard: &'guard Guard, thread: i32, arguments: &[String]) -> Option<Self> {
        find_program("strace")?;
        let log = guard.path("trace");
        drop(std::fs::remove_file(&log));
        let mut command = guard.command("strace");
        command.arg("-o").arg(&log).args(arguments).arg("-p").arg(thread.to_string());
        let mut strace = guard.start(command);
        wait_until(PATIENCE, "strace to be attached", || {
            let text = strace.stderr().text();
            if text.contains("attached") || strace.exited().is_some() { Ok(()) } else { Err(text) }
        });
        let attached = strace.stderr().text().contains("attached");
        attached.then_some(Self { strace, log })
    }

    /// Detaches; returns how many calls were made to fail.
    fn detach(self) -> usize {
        self.strace.signal(Signal::SIGINT);
        self.strace.finished(PATIENCE);
        injected(&self.log)
    }
}

fn injected(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().matches("(INJECTED)").count()
}

/// Calls and how often each was made.
fn calls(log: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap_or_default().lines() {
        let name: String =
            line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if line.get(name.len()..).is_some_and(|rest| rest.starts_with('(')) {
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

/// What the clients saw while a call failed.
#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    failed: usize,
    /// Requests that were served more than once, or answered and not served.
    wrong: Vec<String>,
    /// What else is not as it must be.
    faults: Vec<String>,
    /// What is worth a word.
    note: String,
}

/// A primary with two workers, and everything that a row does to it.
struct Stage<'guard> {
    guard: &'guard Guard,
    program: PathBuf,
    counts: PathBuf,
    port: u16,
    croupier: Option<Croupier<'guard>>,
    /// The number of the next request: never used twice.
    next: AtomicUsize,
    /// Its flags beyond those that all have.
    own_flags: &'static [&'static str],
    /// Workers of this primary that were killed. It takes each for a crash, and waits longer each time.
    killed: u32,
    /// Descriptors of a primary whose two workers have all that they should have. A worker may lack one
    /// after a call failed (its pidfd), and its successor has it again.
    whole: usize,
}

/// Workers that one primary loses before the next takes its place.
const KILLED_MAX: u32 = 3;

impl<'guard> Stage<'guard> {
    fn new(guard: &'guard Guard) -> Self {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/hostile.c").as_ref();
        let program = fixture(source, &guard.path("server"), &["-pthread"]);
        let (counts, port) = (guard.path("counts"), guard.port());
        let next = AtomicUsize::new(0);
        let own_flags = During::Requests.flags();
        Self { guard, program, counts, port, croupier: None, next, own_flags, killed: 0, whole: 0 }
    }

    fn flags(&self, workers: &str) -> Vec<std::ffi::OsString> {
        let flags = ["-w", workers, "--slow-start", "0", "--soak", "0"];
        let all = flags.iter().chain(self.own_flags);
        let mut args: Vec<std::ffi::OsString> = all.map(Into::into).collect();
        args.extend(["--graceful-timeout".into(), "4s".into(), "--".into()]);
        args.extend([self.program.clone().into(), self.port.to_string().into()]);
        args.push(self.counts.clone().into());
        args
    }

    /// The next row has a new primary.
    fn renew(&mut self) {
        if let Some(mut croupier) = self.croupier.take()
            && croupier.exited().is_none()
        {
            croupier.stop_well();
        }
    }

    /// The primary; a new one if the last row ended it, or needed another.
    fn primary(&mut self, during: During) -> &Croupier<'guard> {
        if self.own_flags != during.flags() {
            self.own_flags = during.flags();
            self.renew();
        }
        if self.croupier.as_mut().is_none_or(|croupier| croupier.exited().is_some()) {
            let croupier = self.guard.run(self.flags("2")).ready();
            croupier.wait_status("two idle workers", Self::settled);
            self.whole = descriptors(u32::try_from(croupier.pid()).unwrap()).len();
            self.croupier = Some(croupier);
            self.killed = 0;
        }
        self.croupier.as_ref().unwrap()
    }

    fn client(&self) -> Client {
        Client::port(self.port).patience(Duration::from_secs(5))
    }

    /// `total` requests, `clients` at a time, each of `ms` milliseconds. Appends to `seen`.
    fn ask(&self, clients: usize, total: usize, ms: u32) -> Seen {
        let first = self.next.fetch_add(total, Ordering::Relaxed);
        let outcome: Outcome = hammer(&self.client(), clients, total, |number| {
            Some(format!("/count?n={}&ms={ms}", first + number))
        });
        self.judge(&outcome, first, total)
    }

    /// What the clients of requests `first` and on say, and what the servers wrote down.
    fn judge(&self, outcome: &Outcome, first: usize, total: usize) -> Seen {
        let mut seen = Seen {
            answered: outcome.replies.len(),
            failed: outcome.failures.len(),
            ..Seen::default()
        };
        let text = std::fs::read_to_string(&self.counts).unwrap_or_default();
        let mut served: BTreeMap<usize, usize> = BTreeMap::new();
        for number in text.lines().filter_map(|line| line.parse().ok()) {
            *served.entry(number).or_default() += 1;
        }
        let mine = served.range(first..first + total);
        seen.wrong
            .extend(mine.clone().filter(|(_, times)| **times > 1).map(|one| format!("{one:?}")));
        if mine.count() < seen.answered {
            seen.wrong.push("answered by nobody".into());
        }
        if let Some(failure) = outcome.failures.first() {
            seen.note = format!("{failure:?}");
        }
        seen
    }

    fn settled(status: &Status) -> Option<()> {
        let workers = status.ready().count() == 2 && status.workers.len() == 2;
        (workers && status.open() == (0, 0)).then_some(())
    }

    /// One row on the running primary.
    fn row(&mut self, row: &Row) -> Option<(usize, Seen)> {
        if row.during == During::Restart {
            self.killed += 1;
            if self.killed > KILLED_MAX {
                self.renew();
            }
        }
        let croupier = self.primary(row.during);
        let pid = croupier.pid();
        croupier.wait_status("two idle workers", Self::settled);
        let before = descriptors(u32::try_from(pid).unwrap());
        let tracer = Tracer::attach(self.guard, row.thread.id(pid), &row.arguments())?;
        let mut seen = self.stimulate(row.during, usize::from(row.breaks_a_channel()));
        let croupier = self.croupier.as_mut().unwrap();
        // A worker may still be on its way: what fails then fails as well.
        if row.during.kills() && croupier.exited().is_none() {
            self.settle(&mut seen);
        }
        let injected = tracer.detach();
        let croupier = self.croupier.as_mut().unwrap();
        if let Some(status) = croupier.exited() {
            let text = croupier.stderr().text();
            let end = text.lines().rev().take(3).collect::<Vec<_>>().join(" | ");
            seen.faults.push(format!("the primary ended with {status}: {end}"));
            return Some((injected, seen));
        }
        self.settle(&mut seen);
        let after = self.ask(4, 12, 0);
        seen.wrong.extend(after.wrong);
        if after.failed > 0 {
            seen.faults.push(format!("{} of 12 requests failed afterwards", after.failed));
        }
        // A call that strace did not make is a descriptor that was not closed.
        let allowed = before.len().max(self.whole) + if row.call == "close" { injected } else { 0 };
        let mut left = String::new();
        let kept = soaked_in(PATIENCE, || {
            let now = descriptors(u32::try_from(pid).unwrap());
            left = format!("{:?}, before {:?}", kinds(&now), kinds(&before));
            now.len() <= allowed
        });
        if !kept {
            seen.faults.push(format!("descriptors left: {left}"));
        }
        Some((injected, seen))
    }

    fn settle(&self, seen: &mut Seen) {
        let croupier = self.croupier.as_ref().unwrap();
        let mut last = String::new();
        let well = soaked_in(PATIENCE, || {
            let answer = croupier.ask(&["status", "--json"]);
            let status = serde_json::from_str::<Status>(&answer.stdout);
            last = format!("{status:?} {}", answer.stderr);
            status.is_ok_and(|status| Self::settled(&status).is_some())
        });
        if !well {
            seen.faults.push(format!("two idle workers never again: {last}"));
        }
    }

    /// One row on a primary that ends by it.
    fn stop_row(&mut self, row: &Row) -> Option<(usize, Seen)> {
        let croupier = self.primary(row.during);
        let pid = croupier.pid();
        croupier.wait_status("two idle workers", Self::settled);
        let tracer = Tracer::attach(self.guard, pid, &row.arguments())?;
        let mut croupier = self.croupier.take().unwrap();
        let first = self.next.fetch_add(8, Ordering::Relaxed);
        let client = self.client();
        let ask = |number| client.send(&format!("/count?n={number}&ms=50"));
        let pending: Vec<_> = (first..first + 8).map(ask).collect();
        croupier.signal(Signal::SIGTERM);
        // The handler's own call may be the one that failed: then it was lost, and is sent again.
        let heard = soaked_in(PATIENCE / 2, || croupier.exited().is_some());
        let ended = if heard { croupier.finished(PATIENCE) } else { croupier.stop() };
        let mut outcome = Outcome::default();
        for answer in pending.into_iter().map(|sent| sent.and_then(Pending::reply)) {
            match answer {
                Ok(reply) => outcome.replies.push(reply),
                Err(failure) => outcome.failures.push(failure),
            }
        }
        let mut seen = self.judge(&outcome, first, 8);
        let injected = tracer.detach();
        if !heard {
            seen.note = format!("TERM was sent twice {}", seen.note);
        }
        if ended.code != Some(0) {
            seen.faults.push(format!(
                "it ended with {:?} {:?}: {}",
                ended.code, ended.signal, ended.stderr
            ));
        }
        self.nobody_left(&mut seen);
        Some((injected, seen))
    }

    fn nobody_left(&self, seen: &mut Seen) {
        let gone = soaked_in(PATIENCE, || self.guard.processes().is_empty());
        if !gone {
            seen.faults.push(format!("left: {:?}", self.guard.processes()));
        }
    }

    /// One row of the start: the process is strace's child from its exec on.
    fn start_row(&self, arguments: &[String]) -> (usize, Seen) {
        let mut seen = Seen::default();
        let log = self.guard.path("trace");
        drop(std::fs::remove_file(&log));
        let name = format!("{}-start", self.guard.name());
        let mut command = self.guard.command("strace");
        command.arg("-o").arg(&log).args(arguments).arg(croupier());
        command.args(["run", "--name", &name]).args(self.flags("1"));
        let mut traced = self.guard.start(command);
        let ready = Client::port(self.port).patience(Duration::from_secs(2));
        let mut served = false;
        let decided = soaked_in(PATIENCE, || {
            served = ready.get("/").is_ok();
            served || traced.exited().is_some()
        });
        if !decided {
            seen.faults.push(format!("neither ready nor ended: {}", traced.stderr().text()));
        }
        if served {
            let after = self.ask(2, 4, 0);
            seen = Seen { note: "serves".into(), ..after };
        }
        let mut over = false;
        // Twice, should the handler's own call be the one that failed: then TERM was lost.
        for tries in 1..=2 {
            if !over {
                self.end_started(&name);
                let patience = if tries == 1 { PATIENCE / 2 } else { PATIENCE };
                over = soaked_in(patience, || traced.exited().is_some());
                seen.note.push_str(if over && tries == 2 { ", TERM was sent twice" } else { "" });
            }
        }
        if !over {
            seen.faults.push(format!("it does not end: {}", traced.stderr().text()));
            for process in self.guard.processes() {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
        let ended = traced.finished(PATIENCE);
        if !served {
            let said = ended.stderr.lines().rev().find(|line| line.contains("croupier"));
            seen.note = format!("exit {:?}: {}", ended.code, said.unwrap_or(&ended.stderr).trim());
            if matches!(ended.code, Some(0) | None) || ended.stderr.trim().is_empty() {
                seen.faults.push(format!("no clear end: {ended:?}"));
            }
        }
        if ended.stderr.contains("panicked") {
            seen.faults.push(format!("a panic: {}", ended.stderr));
        }
        self.nobody_left(&mut seen);
        (injected(&log), seen)
    }

    /// The primary, not strace, is told to end.
    fn end_started(&self, name: &str) {
        let wanted = format!("run --name {name}");
        for process in self.guard.processes() {
            if process.command.contains(&wanted) && !process.command.starts_with("strace") {
                // It may have ended by itself.
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGTERM);
            }
        }
    }

    fn run(&mut self, row: &Row) -> Option<(usize, Seen)> {
        match row.during {
            During::Requests
            | During::Commands
            | During::Restart
            | During::Reload
            | During::Salvage
            | During::Slots
            | During::Hung => self.row(row),
            During::Stop => self.stop_row(row),
            During::Start => {
                // Nothing of another primary is to be taken for a leftover of this one.
                self.renew();
                Some(self.start_row(&row.arguments()))
            }
        }
    }

    /// The calls that the primary makes during something, with nothing failing.
    fn survey(&mut self, during: During, thread: Thread) -> Option<BTreeMap<String, usize>> {
        let log = self.guard.path("trace");
        match during {
            During::Start => {
                let (_, seen) = self.start_row(&[]);
                assert!(seen.faults.is_empty(), "{seen:?}");
            }
            During::Stop => {
                let pid = self.primary(during).pid();
                let tracer = Tracer::attach(self.guard, pid, &[])?;
                self.croupier.take().unwrap().stop().expect_code(0);
                tracer.detach();
            }
            During::Requests
            | During::Commands
            | During::Restart
            | During::Reload
            | During::Salvage
            | During::Slots
            | During::Hung => {
                let pid = self.primary(during).pid();
                let tracer = Tracer::attach(self.guard, thread.id(pid), &[])?;
                let mut seen = self.stimulate(during, 0);
                // Looked at only as long as in a row.
                if during.kills() {
                    self.settle(&mut seen);
                }
                tracer.detach();
                self.settle(&mut seen);
                assert!(seen.faults.is_empty() && seen.wrong.is_empty(), "{seen:?}");
            }
        }
        Some(calls(&log))
    }
}

/// How many descriptors there are of each kind.
fn kinds(all: &BTreeMap<i32, PathBuf>) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for what in all.values() {
        let what = what.display().to_string();
        let kind = what.split(":[").next().unwrap_or(&what);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// Whether `look` says yes within `patience`.
fn soaked_in(patience: Duration, mut look: impl FnMut() -> bool) -> bool {
    let end = croupier_tests::now() + patience;
    loop {
        if look() {
            return true;
        }
        if croupier_tests::now() >= end {
            return false;
        }
        croupier_tests::observe(Duration::from_millis(10));
    }
}

/// The execs of a primary's children begin ten minutes after they are called.
fn hold_execs<'guard>(guard: &'guard Guard, croupier: &Croupier<'_>) -> Option<Tracer<'guard>> {
    let held = ["-f", "-e", "trace=execve", "-e", "inject=execve:delay_enter=600000000"];
    Tracer::attach(guard, croupier.pid(), &held.map(str::to_owned))
}

/// Kills the worker of a slot, and returns its successor's process, which is not executed yet.
fn replace_by_held(croupier: &Croupier<'_>, slot: u16) -> i32 {
    let first = croupier.wait_status("its worker", |status| status.slot(slot).cloned());
    kill(Pid::from_raw(first.pid.unwrap()), Signal::SIGKILL).unwrap();
    let next = croupier.wait_status("its successor's process", |status| {
        let next = |worker: &&WorkerStatus| worker.slot == slot && worker.id > first.id;
        status.workers.iter().find(next)?.pid
    });
    assert_eq!(executes(next), executes(croupier.pid()), "its exec is held");
    next
}

fn executes(pid: i32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).unwrap()
}

/// A program on a slow disk, or a machine without a free CPU: clients are dealt meanwhile.
#[test]
fn an_exec_that_takes_long_holds_up_nobody() {
    const NAME: &str = "an_exec_that_takes_long_holds_up_nobody";
    let guard = Guard::new("faults-exec");
    let mut stage = Stage::new(&guard);
    let croupier = stage.primary(During::Restart);
    let Some(tracer) = hold_execs(&guard, croupier) else {
        skip!(NAME, "{NO_TRACER}");
    };
    let next = replace_by_held(croupier, 0);
    let own = executes(croupier.pid());
    let seen = stage.ask(2, 20, 0);
    assert_eq!((seen.answered, seen.failed, executes(next)), (20, 0, own), "{seen:?}");
    tracer.detach();
    let croupier = stage.primary(During::Restart);
    let ready = croupier
        .wait_status("two idle workers", |status| Stage::settled(status).map(|()| status.clone()));
    assert_eq!(ready.slot(0).unwrap().pid, Some(next), "that one serves now");
    stage.croupier.take().unwrap().stop_well();
}

#[test]
fn whoever_is_not_executed_yet_is_judged_stopped_and_ended_as_any_other() {
    const NAME: &str = "whoever_is_not_executed_yet_is_judged_stopped_and_ended_as_any_other";
    let guard = Guard::new("faults-held");
    let stage = Stage::new(&guard);
    let limit = ["--ready-timeout".into(), "5s".into()];
    let croupier = guard.run(limit.into_iter().chain(stage.flags("2"))).ready();
    let Some(tracer) = hold_execs(&guard, &croupier) else {
        skip!(NAME, "{NO_TRACER}");
    };
    replace_by_held(&croupier, 0);
    let text = croupier.wait_for_line("is not ready in time: ");
    assert!(text.contains(" is not even executed yet: the disk that it is on, or"), "{text}");
    let stopped = croupier.ask(&["stop", "0"]);
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    replace_by_held(&croupier, 1);
    croupier.stop_well();
    tracer.detach();
}

/// Whoever watches a thread holds it up. The worker whose queue it empties has no part in that.
#[test]
fn a_rescue_thread_that_is_traced_blames_no_worker() {
    const NAME: &str = "a_rescue_thread_that_is_traced_blames_no_worker";
    let guard = Guard::new("faults-traced");
    let mut stage = Stage::new(&guard);
    let thread = Thread::Rescue.id(stage.primary(During::Salvage).pid());
    // Three times as long as a take-back may last.
    let held = ["-e", "trace=recvmsg", "-e", "inject=recvmsg:delay_enter=300000"];
    let Some(tracer) = Tracer::attach(&guard, thread, &held.map(str::to_owned)) else {
        skip!(NAME, "{NO_TRACER}");
    };
    let seen = stage.stimulate(During::Salvage, 0);
    tracer.detach();
    assert!(seen.faults.is_empty() && seen.wrong.is_empty(), "{seen:?}");
    let croupier = stage.croupier.take().unwrap();
    let said = croupier.stderr().text();
    assert!(!said.contains("holds the lock"), "{said}");
    assert_eq!(Thread::Rescue.id(croupier.pid()), thread, "it was given up for another one");
    croupier.stop_well();
}

/// The small choice: a row for each kind of answer that the primary has to a failure.
fn choice() -> Vec<Row> {
    use During::{Commands, Reload, Requests, Restart, Salvage, Start, Stop};
    let mut rows: Vec<Row> = [
        ("accept4", "EMFILE", "1", Requests),
        ("accept4", "ENOBUFS", "2..6", Requests),
        ("accept4", "ECONNABORTED", "3", Requests),
        ("sendmsg", "EAGAIN", "1..3", Requests),
        ("sendmsg", "ETOOMANYREFS", "2", Requests),
        ("sendmsg", "EINTR", "1", Requests),
        ("sendmsg", "EPIPE", "1", Requests),
        ("close", "EINTR", "1", Requests),
        ("epoll_wait", "EINTR", "1..4", Requests),
        ("epoll_ctl", "ENOMEM", "1..3", Requests),
        ("timerfd_settime", "EINVAL", "1+", Requests),
        ("recvfrom", "EINTR", "1", Commands),
        ("sendto", "EPIPE", "1", Commands),
        ("waitid", "ECHILD", "1", Restart),
        ("wait4", "EINTR", "1", Restart),
        ("memfd_create", "EMFILE", "1", Restart),
        ("pipe2", "EMFILE", "1", Restart),
        ("clone", "EAGAIN", "1", Restart),
        ("setpgid", "EACCES", "1", Restart),
        ("socketpair", "ENFILE", "1", Restart),
        ("epoll_ctl", "ENOSPC", "1..3", Restart),
        ("timerfd_settime", "ECANCELED", "1", Restart),
        ("eventfd2", "ENFILE", "1", Reload),
        ("setsockopt", "ENOMEM", "1", Stop),
        ("epoll_create1", "EMFILE", "1", Start),
        ("bind", "EADDRINUSE", "1", Start),
        ("memfd_create", "ENOMEM", "1", Start),
    ]
    .map(|(call, errno, when, during)| Row::new(call, errno, when, during))
    .into();
    let threads = [
        // The peek, and the call that takes.
        ("recvmsg", "EINTR", "1", Thread::Rescue),
        ("recvmsg", "ENOMEM", "2", Thread::Rescue),
        ("fcntl", "EMFILE", "1", Thread::Rescue),
        ("write", "EIO", "1", Thread::Rescue),
        ("write", "EIO", "1", Thread::Disposal),
    ];
    let row = |(call, errno, when, thread)| Row::new(call, errno, when, Salvage).of(thread);
    rows.extend(threads.map(row));
    rows
}

/// Every call that is made during something, with every errno: first, then later, then for a while.
fn everything(stage: &mut Stage<'_>) -> Option<Vec<Row>> {
    use During::{Commands, Hung, Reload, Requests, Restart, Salvage, Slots, Start, Stop};
    let (mut rows, mut unknown) = (Vec::new(), Vec::new());
    let all = [Requests, Commands, Restart, Reload, Slots, Hung, Stop, Start];
    let loops = all.map(|during| (during, Thread::Main));
    let threads = [(Salvage, Thread::Rescue), (Salvage, Thread::Disposal)];
    for (during, thread) in loops.into_iter().chain(threads) {
        for (call, count) in stage.survey(during, thread)? {
            let idle = match call.as_str() {
                "close" => !matches!(during, Requests | Commands | Salvage),
                call => WITHOUT.contains(&call),
            };
            if idle {
                continue;
            }
            let Some((_, errnos)) = ERRNOS.iter().find(|(name, _)| *name == call) else {
                unknown.push((call, during));
                continue;
            };
            for errno in *errnos {
                let row = |when: &str| Row::new(&call, errno, when, during).of(thread);
                rows.push(row("1"));
                if count > 2 && during != Start {
                    rows.push(row(&(count / 2 + 1).to_string()));
                }
            }
            // At the start each call is another one.
            let last = if during == Start { count.min(40) } else { 0 };
            for number in 2..=last {
                let errno = errnos.get(number % errnos.len()).unwrap();
                rows.push(Row::new(&call, errno, &number.to_string(), during));
            }
        }
    }
    assert!(unknown.is_empty(), "calls without errnos, see ERRNOS: {unknown:?}");
    Some(rows)
}

#[test]
fn each_system_call_may_fail() {
    const NAME: &str = "each_system_call_may_fail";
    let guard = Guard::new("faults");
    if find_program("strace").is_none() {
        skip!(NAME, "strace is not installed");
    }
    let mut stage = Stage::new(&guard);
    let rows = if soak() { everything(&mut stage) } else { Some(choice()) };
    let Some(mut rows) = rows else { skip!(NAME, "{NO_TRACER}") };
    // A failure prints the row's name; `FAULT="restart waitid"` runs those again alone.
    if let Ok(part) = std::env::var("FAULT") {
        rows.retain(|row| row.name().contains(&part));
    }
    let mut failed = Vec::new();
    let mut unreached = 0;
    for row in &rows {
        // A call that the survey saw once is reached, as is what was chosen; a later one may not be. The alarm is
        // only set where nothing earlier is due, which while commands are asked is chance.
        let by_chance = row.call == "timerfd_settime" && row.during == During::Commands;
        let must = row.when == "1" && !by_chance || !soak();
        let outcome = match stage.run(row) {
            // Some calls are made once in a primary's life.
            Some((0, seen)) if must && seen.faults.is_empty() && seen.wrong.is_empty() => {
                stage.renew();
                stage.run(row)
            }
            outcome => outcome,
        };
        let Some((injected, mut seen)) = outcome else {
            skip!(NAME, "{NO_TRACER}");
        };
        if injected == 0 {
            unreached += 1;
            seen.note.insert_str(0, "not reached ");
            if must {
                seen.faults.push("a call that is made did not come".into());
            }
        }
        let Seen { answered, failed: unanswered, wrong, faults, note } = &seen;
        let met = wrong.is_empty() && faults.is_empty();
        if !met {
            // The next row is not to suffer from this one.
            drop(stage.croupier.take());
            failed.push(format!("{}: {seen:?}", row.name()));
        }
        record(&Figure {
            item: &row.name(),
            measured: format!(
                "{injected} failed calls; answered {answered}, failed {unanswered} {note}{}",
                if met { String::new() } else { format!(" {wrong:?} {faults:?}") }
            )
            .replace(['\n', '\t'], " "),
            goal: "lives or ends with a message; once or visibly not; nothing left",
            met,
        });
    }
    stage.renew();
    figure(&Figure {
        item: "replace 8 fault rows",
        measured: format!("{} rows, {unreached} not reached, {} not met", rows.len(), failed.len()),
        goal: "0 not met",
        met: failed.is_empty(),
    });
}
