//! Why something is not as it should be, from /proc, in sentences that say what to do.
//!
//! Promises: every answer is what /proc showed; what it does not show is not guessed. Never does:
//! change anything, or run on the path of a connection (it reads much of /proc).

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Uid;
use procfs::net::{TcpState, UnixNetEntry, UnixState};
use procfs::process::{FDTarget, MMapPath, Process, all_processes};

use crate::adapter::program::{Kind, Obstacle, kind_of};
use crate::config::{ListenAddress, user_name};

/// Why a worker did not become ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The whole family is gone.
    Exited,
    /// The main process is gone, and these live on.
    Background(Vec<Named>),
    /// A process listens for itself, and the preload library cannot reach it.
    Unservable {
        /// Which.
        who: Named,
        /// Why not.
        obstacle: Obstacle,
        /// Where it listens; empty: nowhere yet.
        listens: Vec<String>,
    },
    /// A process could have loaded the preload library and has not.
    NotPreloaded {
        /// Which.
        who: Named,
        /// Where it listens; empty: nowhere yet.
        listens: Vec<String>,
    },
    /// It listens, and not where croupier was told to deal.
    ListensElsewhere {
        /// Which.
        who: Named,
        /// Where.
        listens: Vec<String>,
    },
    /// It lives and does not listen.
    NeverListens,
}

/// A process, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its number.
    pub pid: u32,
    /// Its command line, shortened.
    pub command: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited => write!(f, "it exited"),
            Self::Background(left) => {
                let left: Vec<String> = left.iter().map(Named::to_string).collect();
                write!(
                    f,
                    "it went into the background: the started process exited and left {}; tell the \
                     program to stay in the foreground",
                    left.join(", ")
                )
            }
            Self::Unservable { who, obstacle, listens } => write!(
                f,
                "{who}{}: {obstacle}; if it takes a socket by LISTEN_FDS, use --adapter listen-fds \
                 with -l and -p shared or -p reuseport",
                itself(listens)
            ),
            Self::NotPreloaded { who, listens } => write!(
                f,
                "{who}{} and has not loaded croupier's preload library: something between has \
                 removed LD_PRELOAD (sudo, su, env -i, a sandbox), or it is forbidden; start the \
                 program without that, or use croupier run --user",
                itself(listens)
            ),
            Self::ListensElsewhere { who, listens } => {
                let at = listens.first().map(String::as_str).unwrap_or_default();
                let port = at.rsplit(':').next().unwrap_or(at);
                write!(
                    f,
                    "{who}{}, which no -l names; leave -l out to deal whatever it listens on, or \
                     say -l ADDRESS={port}",
                    itself(listens)
                )
            }
            Self::NeverListens => write!(
                f,
                "it runs and never listens; give it more time with --ready-timeout, or, if its \
                 workers are not meant to listen, use --ready start"
            ),
        }
    }
}

fn itself(listens: &[String]) -> String {
    if listens.is_empty() {
        String::new()
    } else {
        format!(" listens by itself on {}", listens.join(", "))
    }
}

/// Looks at a worker that is not ready: its main process and its family (the main process may be
/// in it).
#[must_use]
pub fn why_not_ready(main: u32, family: &[u32]) -> Why {
    let mut living: Vec<Process> = Vec::new();
    for pid in std::iter::once(main).chain(family.iter().copied().filter(|pid| *pid != main)) {
        living.extend(open(pid).filter(lives));
    }
    if !living.iter().any(|process| number(process) == main) {
        return if living.is_empty() {
            Why::Exited
        } else {
            Why::Background(living.iter().map(named).collect())
        };
    }
    let mut not_listening = None;
    for process in &living {
        let listens = listening_of(process);
        let reached = reach(process);
        match (listens.is_empty(), reached) {
            (false, Reach::Loaded) => {
                return Why::ListensElsewhere { who: named(process), listens };
            }
            (false, Reach::Unservable(obstacle)) => {
                return Why::Unservable { who: named(process), obstacle, listens };
            }
            (false, Reach::Missing) => return Why::NotPreloaded { who: named(process), listens },
            (true, Reach::Unservable(obstacle)) => {
                not_listening = Some(Why::Unservable { who: named(process), obstacle, listens });
            }
            (true, Reach::Missing) => {
                let why = Why::NotPreloaded { who: named(process), listens };
                not_listening.get_or_insert(why);
            }
            (_, Reach::Unknown) | (true, Reach::Loaded) => {}
        }
    }
    not_listening.unwrap_or(Why::NeverListens)
}

/// Whether the preload library is in a process.
enum Reach {
    Loaded,
    Missing,
    Unservable(Obstacle),
    /// /proc does not say (another user's process).
    Unknown,
}

fn reach(process: &Process) -> Reach {
    let Ok(maps) = process.maps() else { return Reach::Unknown };
    let ours = maps.iter().any(|map| match &map.pathname {
        MMapPath::Path(path) => path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"libcroupier_preload")),
        MMapPath::Heap
        | MMapPath::Stack
        | MMapPath::TStack(_)
        | MMapPath::Vdso
        | MMapPath::Vvar
        | MMapPath::Vsyscall
        | MMapPath::Rollup
        | MMapPath::Anonymous
        | MMapPath::Vsys(_)
        | MMapPath::Other(_) => false,
    });
    let kind = kind_of(&PathBuf::from(format!("/proc/{}/exe", process.pid())));
    match (ours, kind) {
        // A dynamic Go program loads the library and never calls it.
        (_, Ok(Kind::Go)) => Reach::Unservable(Obstacle::Go),
        (true, _) => Reach::Loaded,
        (false, Ok(Kind::Static)) => Reach::Unservable(Obstacle::Static),
        (false, Ok(Kind::Musl)) => Reach::Unservable(Obstacle::Musl),
        (false, Ok(Kind::Foreign)) => Reach::Unservable(Obstacle::Foreign),
        (false, Ok(Kind::Dynamic)) => Reach::Missing,
        (false, Err(_)) => Reach::Unknown,
    }
}

fn open(pid: u32) -> Option<Process> {
    i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok())
}

fn lives(process: &Process) -> bool {
    process.stat().is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

fn number(process: &Process) -> u32 {
    u32::try_from(process.pid()).unwrap_or(0)
}

fn named(process: &Process) -> Named {
    /// Enough to recognise it.
    const SHOWN: usize = 60;
    let words = process.cmdline().unwrap_or_default().join(" ");
    // One line, whatever the arguments are.
    let printable = words.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut command: String = printable.take(SHOWN).collect();
    if command.len() < words.len() {
        command.push('…');
    }
    if command.is_empty() {
        command = process.stat().map_or_else(|_| "a process".into(), |stat| stat.comm);
    }
    Named { pid: number(process), command }
}

fn socket_inodes(process: &Process) -> Vec<u64> {
    let fds = process.fd().into_iter().flatten().flatten();
    fds.filter_map(|fd| match fd.target {
        FDTarget::Socket(inode) => Some(inode),
        FDTarget::Path(_)
        | FDTarget::Net(_)
        | FDTarget::Pipe(_)
        | FDTarget::AnonInode(_)
        | FDTarget::MemFD(_)
        | FDTarget::Other(_, _)
        | FDTarget::Unknown(_, _) => None,
    })
    .collect()
}

/// The addresses that a process listens on with sockets of its own.
fn listening_of(process: &Process) -> Vec<String> {
    let own = socket_inodes(process);
    if own.is_empty() {
        return Vec::new();
    }
    // Its own /proc/PID/net: it may live in another network namespace.
    let tcp = process.tcp().into_iter().chain(process.tcp6()).flatten();
    let mut found: Vec<String> = tcp
        .filter(|entry| entry.state == TcpState::Listen && own.contains(&entry.inode))
        .map(|entry| entry.local_address.to_string())
        .collect();
    let unix = process.unix().into_iter().flatten();
    found.extend(
        unix.filter(|entry| holds_path(entry) && own.contains(&entry.inode))
            .filter_map(|entry| entry.path)
            .map(|path| format!("unix:{}", path.display())),
    );
    found.sort();
    found.dedup();
    found
}

/// A stream socket with a path and without a peer: bound there, and nearly always listening
/// (accepted ones show the same path, and have a peer).
fn holds_path(entry: &UnixNetEntry) -> bool {
    entry.state == UnixState::UNCONNECTED
        && i32::from(entry.socket_type) == libc::SOCK_STREAM
        && entry.path.as_deref().is_some_and(|path| !path.starts_with("@"))
}

/// Who holds an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process that we may look at.
    Process(Named),
    /// Some process of this user.
    User(String),
}

/// Who listens on `address`, where /proc shows it.
#[must_use]
pub fn holder_of(address: &ListenAddress) -> Option<Holder> {
    let (inode, uid) = match address {
        ListenAddress::Tcp { address, .. } => {
            let entries = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
            entries
                .filter(|entry| entry.state == TcpState::Listen)
                .find(|entry| overlap(entry.local_address, *address))
                .map(|entry| (entry.inode, Some(entry.uid)))?
        }
        ListenAddress::Unix(path) => {
            let entries = procfs::net::unix().into_iter().flatten();
            let mut named = entries.filter(|entry| entry.path.as_deref() == Some(path.as_path()));
            named.find(holds_path).map(|entry| (entry.inode, None))?
        }
    };
    let mut processes = all_processes().into_iter().flatten().flatten();
    match processes.find(|process| socket_inodes(process).contains(&inode)) {
        Some(process) => Some(Holder::Process(named(&process))),
        None => uid.map(|uid| Holder::User(user_name(Uid::from_raw(uid)))),
    }
}

fn overlap(held: SocketAddr, wanted: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified();
    held.port() == wanted.port()
        && (any(held.ip())
            || any(wanted.ip())
            || held.ip().to_canonical() == wanted.ip().to_canonical())
}

/// Why an address cannot be bound or listened on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Somebody has it.
    #[error("cannot listen on {address}: it is in use{}", held_by(holder.as_ref()))]
    InUse {
        /// The address.
        address: ListenAddress,
        /// By whom.
        holder: Option<Holder>,
    },
    /// A port below the limit for ordinary users.
    #[error(
        "cannot listen on {address}: ports below {limit} are for root; start croupier as root with \
         --user {user}, give it the right (setcap cap_net_bind_service=+ep {program}), or choose a \
         higher port",
        program = program.display()
    )]
    LowPort {
        /// The address.
        address: ListenAddress,
        /// The first port for everybody.
        limit: u16,
        /// Who asks.
        user: String,
        /// This program.
        program: PathBuf,
    },
    /// Not an address of this machine.
    #[error(
        "cannot listen on {address}: this machine has no such address; ip addr shows those it has"
    )]
    NotHere {
        /// The address.
        address: ListenAddress,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {}", .errno.desc())]
    Other {
        /// The address.
        address: ListenAddress,
        /// What the kernel said.
        errno: Errno,
    },
}

fn held_by(holder: Option<&Holder>) -> String {
    match holder {
        Some(Holder::Process(who)) if who.command.contains("croupier run") => {
            format!(" by another croupier, {who}; croupier ls shows it, croupier stop ends it")
        }
        Some(Holder::Process(who)) => format!(" by {who}; stop it or choose another port"),
        Some(Holder::User(user)) => format!(
            " by a process of user {user}; stop it or choose another port (as root, croupier names \
             the process)"
        ),
        None => "; choose another port".into(),
    }
}

/// Makes a sentence of what bind(2) or listen(2) said.
#[must_use]
pub fn bind_error(address: &ListenAddress, error: io::Error) -> BindError {
    let address = address.clone();
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    let port = match &address {
        ListenAddress::Tcp { address, .. } => address.port(),
        ListenAddress::Unix(_) => 0,
    };
    let limit = first_free_port();
    if errno == Errno::EADDRINUSE {
        BindError::InUse { holder: holder_of(&address), address }
    } else if errno == Errno::EADDRNOTAVAIL {
        BindError::NotHere { address }
    } else if errno == Errno::EACCES && (1..limit).contains(&port) {
        let user = user_name(nix::unistd::geteuid());
        let program = std::env::current_exe().unwrap_or_else(|_| "croupier".into());
        BindError::LowPort { address, limit, user, program }
    } else {
        BindError::Other { address, errno }
    }
}

/// The first port that everybody may bind.
#[must_use]
pub fn first_free_port() -> u16 {
    let file = Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::testing::wait_for;

    /// A process that has printed its first line.
    struct Victim {
        child: Child,
        line: String,
    }

    impl Victim {
        fn start(program: &str, arguments: &[&str]) -> Self {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            Self { child, line: line.trim().to_owned() }
        }
    }

    impl Drop for Victim {
        fn drop(&mut self) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }

    #[test]
    fn without_the_library_and_silent() {
        let victim = Victim::start("sh", &["-c", "echo up; read x"]);
        let why = why_not_ready(victim.child.id(), &[victim.child.id()]);
        assert!(
            matches!(why, Why::NotPreloaded { ref listens, .. } if listens.is_empty()),
            "{why}"
        );
        assert!(why.to_string().contains("removed LD_PRELOAD"), "{why}");
    }

    #[test]
    fn listens_by_itself() {
        let code = "import socket\ns = socket.create_server(('127.0.0.1', 0))\n\
                    print(s.getsockname()[1], flush=True)\ninput()";
        let victim = Victim::start("python3", &["-c", code]);
        let why = why_not_ready(victim.child.id(), &[]);
        let wanted = format!("127.0.0.1:{}", victim.line);
        let Why::NotPreloaded { who, listens } = &why else { panic!("{why}") };
        assert_eq!((who.pid, listens.as_slice()), (victim.child.id(), [wanted.clone()].as_slice()));
        assert!(why.to_string().contains(&format!("listens by itself on {wanted}")), "{why}");
        let address = ListenAddress::Tcp { address: wanted.parse().unwrap(), dual_stack: false };
        let error = bind_error(&address, io::Error::from_raw_os_error(libc::EADDRINUSE));
        let text = error.to_string();
        assert!(text.contains(&format!("(pid {})", victim.child.id())), "{text}");
        assert!(text.contains("python3 -c import socket s"), "{text}");
    }

    #[test]
    fn in_the_background() {
        let victim = Victim::start("sh", &["-c", "echo up; read x"]);
        let mut gone = Command::new("true").spawn().unwrap();
        let main = gone.id();
        gone.wait().unwrap();
        let why = why_not_ready(main, &[victim.child.id()]);
        let text = why.to_string();
        assert!(matches!(why, Why::Background(_)), "{text}");
        assert!(text.contains(&format!("(pid {})", victim.child.id())), "{text}");
        assert!(text.contains("it went into the background: the started process exited and left"));
        assert_eq!(why_not_ready(main, &[]), Why::Exited);
    }

    #[test]
    fn statically_linked() {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("s.c"), folder.path().join("s"));
        let code = "#include <stdio.h>\nint main(void) { puts(\"up\"); fflush(stdout); return getchar(); }";
        std::fs::write(&source, code).unwrap();
        let built = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).status();
        assert!(built.unwrap().success());
        let victim = Victim::start(program.to_str().unwrap(), &[]);
        // Behind a wrapper that has no library either: the wrapper is not the one to blame.
        let wrapper = Victim::start("sh", &["-c", "echo up; read x"]);
        let why = why_not_ready(wrapper.child.id(), &[wrapper.child.id(), victim.child.id()]);
        let Why::Unservable { who, obstacle, .. } = &why else { panic!("{why}") };
        assert_eq!((who.pid, *obstacle), (victim.child.id(), Obstacle::Static));
        let way =
            "; if it takes a socket by LISTEN_FDS, use --adapter listen-fds with -l and -p shared";
        assert!(why.to_string().contains(way), "{why}");
    }

    /// At last: a child that another test is just starting may still have a copy of the socket,
    /// until it executes its program.
    fn nobody_holds(address: &ListenAddress) {
        wait_for("nobody to hold it", || holder_of(address).is_none().then_some(()));
    }

    #[test]
    fn who_holds_an_address() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let on =
            |text: String| ListenAddress::Tcp { address: text.parse().unwrap(), dual_stack: false };
        let own = |holder| match holder {
            Some(Holder::Process(named)) => named.pid == std::process::id(),
            Some(Holder::User(_)) | None => false,
        };
        assert!(own(holder_of(&on(format!("127.0.0.1:{port}")))), "a wildcard holds every address");
        drop(listener);
        nobody_holds(&on(format!("127.0.0.1:{port}")));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(own(holder_of(&ListenAddress::Unix(path.clone()))));
        drop(unix);
        nobody_holds(&ListenAddress::Unix(path));
    }

    #[test]
    fn binding_fails_in_sentences() {
        let on =
            |text: &str| ListenAddress::Tcp { address: text.parse().unwrap(), dual_stack: false };
        let text = |address: &ListenAddress, errno| {
            bind_error(address, io::Error::from_raw_os_error(errno)).to_string()
        };
        let low = text(&on("0.0.0.0:1"), libc::EACCES);
        if first_free_port() > 1 {
            assert!(low.contains("ports below") && low.contains("--user"), "{low}");
        }
        let absent = text(&on("203.0.113.1:80"), libc::EADDRNOTAVAIL);
        assert!(absent.contains("this machine has no such address"), "{absent}");
        let missing = text(&ListenAddress::Unix("/no/x".into()), libc::ENOENT);
        assert_eq!(missing, "cannot listen on unix:/no/x: No such file or directory");
        assert_eq!(held_by(None), "; choose another port");
    }
}
