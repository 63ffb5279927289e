//! The command line's end of the control socket.
//!
//! Owns: finding primaries, asking one. Promises: nothing is sent to a found socket whose listener
//! is neither this user nor root (for root: nor the owner of the directory); every wait that the
//! user did not ask for has an end. Never does: print.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Uid, User, geteuid};

use super::messages::{Happening, REPLY_MAX, Reply, Request};
use super::place;
use crate::config::user_name;

/// How long a primary may take to answer what it answers at once.
pub const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Bytes that are read of the kernel's list of Unix sockets.
const SOCKETS_TEXT_MAX: u64 = 16 << 20;

/// Which primary is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// `-n`: a name, or `owner/name`.
    pub name: Option<String>,
    /// `--control`: the path of its socket.
    pub control: Option<PathBuf>,
}

/// A running primary.
#[derive(Debug)]
pub struct Found {
    /// Its name: the file's.
    pub name: String,
    /// Its socket.
    pub socket: PathBuf,
    /// Whose it is.
    pub owner: Uid,
    /// Its process.
    pub pid: i32,
    /// The connection.
    pub stream: UnixStream,
}

/// Why no primary was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None runs.
    #[error("no croupier is running; start one with croupier run COMMAND")]
    NoneRunning,
    /// None has this name.
    #[error("no croupier named {name} is running{}", running(.others))]
    NoSuch {
        /// The wanted name.
        name: String,
        /// Those that run.
        others: Vec<String>,
    },
    /// Nobody answers at `--control`.
    #[error("no croupier listens on {}: {error}", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// More than one.
    #[error("which one? say -n {}", .0.join(", -n "))]
    Ambiguous(Vec<String>),
}

fn running(others: &[String]) -> String {
    if others.is_empty() { String::new() } else { format!("; there is {}", others.join(", ")) }
}

/// What comes before the reply.
enum Progress<'a> {
    Said(&'a str),
    Event(&'a Happening),
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection ended first: the primary has ended.
    #[error("it ended before it answered")]
    Gone,
    /// Not in time.
    #[error("no answer in time; is it stopped, or the machine overloaded?")]
    TimedOut,
    /// The system refused.
    #[error("cannot ask: {0}")]
    Io(#[from] io::Error),
    /// It is there, and will not.
    #[error("{0}")]
    Refused(String),
    /// Not this protocol; another version of croupier.
    #[error("its answer is not understood ({0}); is it another version of croupier?")]
    Malformed(String),
}

impl Found {
    fn at(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
        let owner = Uid::from_raw(peer.uid());
        let name = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, socket: socket.to_path_buf(), owner, pid: peer.pid(), stream })
    }

    /// The owner's name, or number.
    #[must_use]
    pub fn owner_name(&self) -> String {
        user_name(self.owner)
    }

    /// How to name it with `-n`, from here.
    #[must_use]
    pub fn selector(&self) -> String {
        if self.owner == geteuid() {
            self.name.clone()
        } else {
            format!("{}/{}", self.owner_name(), self.name)
        }
    }

    /// Another connection to the same socket.
    ///
    /// # Errors
    /// Nobody listens there any more.
    pub fn again(&self) -> io::Result<Self> {
        Self::at(&self.socket)
    }

    /// Sends the request and waits for the reply, for ever if there is no `within`.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn ask(&mut self, request: Request, within: Option<Duration>) -> Result<Reply, AskError> {
        self.converse(request, within, |_| {})
    }

    /// Sends the request and waits for the reply, for ever; `say` hears how far it is.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn follow(&mut self, request: Request, say: impl FnMut(&str)) -> Result<Reply, AskError> {
        self.converse(request, None, say)
    }

    /// Asks for what happens, for ever; `tell` hears each.
    ///
    /// # Errors
    /// [`AskError`]; the end of the primary is [`AskError::Gone`].
    pub fn listen(&mut self, mut tell: impl FnMut(&Happening)) -> Result<Reply, AskError> {
        self.talk(Request::Events, None, |progress| match progress {
            Progress::Said(_) => {}
            Progress::Event(event) => tell(event),
        })
    }

    /// Sends the request and waits for the reply, for ever if there is no `within`; `say` hears how
    /// far it is.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn converse(
        &mut self,
        request: Request,
        within: Option<Duration>,
        mut say: impl FnMut(&str),
    ) -> Result<Reply, AskError> {
        self.talk(request, within, |progress| match progress {
            Progress::Said(text) => say(text),
            Progress::Event(_) => {}
        })
    }

    fn talk(
        &mut self,
        request: Request,
        within: Option<Duration>,
        mut say: impl FnMut(Progress<'_>),
    ) -> Result<Reply, AskError> {
        let deadline = within.map(|within| now() + within);
        self.stream.set_write_timeout(Some(within.unwrap_or(ANSWER_WAIT)))?;
        match self.stream.write_all(request.to_line().as_bytes()).map_err(of_io) {
            // Whoever refuses to listen says why first: that is to be read.
            Ok(()) | Err(AskError::Gone) => {}
            Err(error) => return Err(error),
        }
        let mut line = Vec::new();
        let mut chunk = [0; 16 << 10];
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(AskError::TimedOut);
            }
            self.stream.set_read_timeout(left)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(AskError::Gone),
                Ok(got) => line.extend_from_slice(chunk.get(..got).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(of_io(error)),
            }
            while let Some(at) = line.iter().position(|byte| *byte == b'\n') {
                let rest = line.split_off(at + 1);
                let reply = serde_json::from_slice(&line)
                    .map_err(|error| AskError::Malformed(error.to_string()))?;
                line = rest;
                match reply {
                    Reply::Said { text } => say(Progress::Said(&text)),
                    Reply::Event(event) => say(Progress::Event(&event)),
                    Reply::Done | Reply::Status(_) | Reply::Failed { .. } => return Ok(reply),
                }
            }
            if line.len() > REPLY_MAX {
                return Err(AskError::Malformed("it does not end".into()));
            }
        }
    }

    /// Waits until the primary has closed this connection, which it does by ending.
    ///
    /// # Errors
    /// [`AskError::TimedOut`], [`AskError::Refused`] and what the system says.
    pub fn wait_for_end(&mut self, within: Option<Duration>) -> Result<(), AskError> {
        match self.ask(Request::Wait { r#for: super::messages::Awaited::Stopped }, within) {
            // `Done` is its last word.
            Err(AskError::Gone) | Ok(Reply::Done) => Ok(()),
            Ok(Reply::Failed { why }) => Err(AskError::Refused(why)),
            Ok(Reply::Status(_) | Reply::Said { .. } | Reply::Event(_)) => {
                Err(AskError::Malformed("a status".into()))
            }
            Err(error) => Err(error),
        }
    }
}

fn of_io(error: io::Error) -> AskError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
    if matches!(error.kind(), WouldBlock | TimedOut) {
        AskError::TimedOut
    } else if matches!(error.kind(), BrokenPipe | ConnectionReset) {
        AskError::Gone
    } else {
        AskError::Io(error)
    }
}

/// Every running primary that this user may drive: root, everybody's; others, their own.
#[must_use]
pub fn discover() -> Vec<Found> {
    let root = geteuid().is_root();
    let directories = if root { place::all_directories() } else { place::own_directories() };
    let mut all: Vec<Found> = Vec::new();
    for directory in directories {
        let Ok(owner) = std::fs::symlink_metadata(&directory).map(|found| found.uid()) else {
            continue;
        };
        for socket in sockets_in(&directory) {
            // Refused: its primary is dead. A stranger's: somebody plays tricks in a shared
            // directory.
            let Ok(found) = Found::at(&socket) else { continue };
            let known = found.owner.is_root() || found.owner == geteuid();
            if known || (root && found.owner.as_raw() == owner) {
                all.push(found);
            }
        }
    }
    all.sort_by(|one, other| {
        (one.owner.as_raw(), &one.name).cmp(&(other.owner.as_raw(), &other.name))
    });
    all
}

fn sockets_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect()
}

/// As `OWNER/NAME`: the one that runs, and that this user cannot ask, of the name that `-n` says. Where
/// that says no owner it is root's: whoever has started it with sudo may have forgotten it now.
#[must_use]
pub fn of_another_user(selector: &Selector) -> Option<String> {
    let own = geteuid();
    if own.is_root() || selector.control.is_some() {
        return None;
    }
    let wanted = selector.name.as_deref()?;
    let (owner, name) = match wanted.split_once('/') {
        Some((owner, name)) => (user_named(owner)?, name),
        None => (Uid::from_raw(0), wanted),
    };
    let directories = if owner == own { Vec::new() } else { place::directories_of(owner) };
    // The folder may be closed to us. If it is not, and has no such file, the socket is of another tree
    // of files: a container's.
    let is_there = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    let file = format!("{name}.sock");
    let paths: Vec<PathBuf> = directories.iter().map(|directory| directory.join(&file)).collect();
    let there = listening_paths().iter().any(|path| paths.contains(path) && is_there(path));
    there.then(|| format!("{}/{name}", user_name(owner)))
}

/// Of all sockets that listen in this network namespace, whatever their files' modes (`proc_net`(5)).
fn listening_paths() -> Vec<PathBuf> {
    let mut text = Vec::new();
    let list = std::fs::File::open("/proc/net/unix");
    // What was read before an error is as good as the rest.
    drop(list.and_then(|list| list.take(SOCKETS_TEXT_MAX).read_to_end(&mut text)));
    text.split(|byte| *byte == b'\n').filter_map(listening_path).collect()
}

/// Of a line `Num RefCount Protocol Flags Type St Inode Path`.
fn listening_path(line: &[u8]) -> Option<PathBuf> {
    const ACCEPTS: &[u8] = b"00010000";
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let (flags, path) = (words.nth(3)?, words.nth(3)?);
    (flags == ACCEPTS && path.starts_with(b"/")).then(|| PathBuf::from(OsStr::from_bytes(path)))
}

fn user_named(name: &str) -> Option<Uid> {
    match User::from_name(name) {
        Ok(Some(user)) => Some(user.uid),
        Ok(None) | Err(_) => name.parse().ok().map(Uid::from_raw),
    }
}

/// The one primary that is meant.
///
/// # Errors
/// [`FindError`].
pub fn find(selector: &Selector) -> Result<Found, FindError> {
    if let Some(path) = &selector.control {
        return Found::at(path).map_err(|error| FindError::NoSocket { path: path.clone(), error });
    }
    let all = discover();
    let Some(wanted) = &selector.name else { return only(all, FindError::NoneRunning) };
    let none = FindError::NoSuch {
        name: wanted.clone(),
        others: all.iter().map(Found::selector).collect(),
    };
    let (owner, name) = match wanted.split_once('/') {
        Some((owner, name)) => (Some(owner), name),
        None => (None, wanted.as_str()),
    };
    let mut matching: Vec<Found> = all
        .into_iter()
        .filter(|found| {
            found.name == name
                && owner.is_none_or(|owner| {
                    found.owner_name() == owner || found.owner.to_string() == owner
                })
        })
        .collect();
    // Without an owner, one's own goes before others'.
    let own = geteuid();
    if owner.is_none() && matching.iter().filter(|found| found.owner == own).count() == 1 {
        matching.retain(|found| found.owner == own);
    }
    only(matching, none)
}

fn only(mut found: Vec<Found>, none: FindError) -> Result<Found, FindError> {
    if found.len() > 1 {
        return Err(FindError::Ambiguous(found.iter().map(Found::selector).collect()));
    }
    found.pop().ok_or(none)
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.selector(), self.pid)
    }
}

#[expect(clippy::disallowed_methods, reason = "the command line has no loop; it waits by itself")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a machine of many users somebody else's may run, so no command says it reliably.
    #[test]
    fn where_none_runs_it_is_said_how_to_start_one() {
        let error = only(Vec::new(), FindError::NoneRunning).unwrap_err();
        let said = "no croupier is running; start one with croupier run COMMAND";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn sockets_that_listen_are_seen_by_the_kernels_list() {
        let path = |line: &str| listening_path(line.as_bytes());
        let listens =
            "0000000098d0e0a1: 00000002 00000000 00010000 0001 01 20763 /run/croupier/web.sock";
        assert_eq!(path(listens), Some("/run/croupier/web.sock".into()));
        for other in [
            "0000000098d0e0a1: 00000003 00000000 00000000 0001 03 20763 /run/croupier/web.sock",
            "0000000098d0e0a1: 00000002 00000000 00010000 0001 01   763 @/run/croupier/web.sock",
            "0000000098d0e0a1: 00000002 00000000 00010000 0001 01 20763",
            "Num       RefCount Protocol Flags    Type St Inode Path",
            "",
        ] {
            assert_eq!(path(other), None, "{other}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(listening_paths().contains(&path));
        drop(listener);
    }

    /// The primary has closed before the request was written.
    #[test]
    fn a_refusal_that_comes_before_the_request_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut found = Found::at(&path).unwrap();
        let refusal = Reply::Failed { why: "not you".into() };
        let mut peer = listener.accept().unwrap().0;
        peer.write_all(refusal.to_line().as_bytes()).unwrap();
        drop(peer);
        assert_eq!(found.ask(Request::Status, None).unwrap(), refusal);
        assert!(matches!(found.ask(Request::Status, None), Err(AskError::Gone)));
    }

    #[test]
    fn whoever_does_not_answer_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut found = Found::at(&path).unwrap();
        let error = found.ask(Request::Status, Some(Duration::from_millis(20))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no answer in time; is it stopped, or the machine overloaded?"
        );
        drop(listener);
    }
}
