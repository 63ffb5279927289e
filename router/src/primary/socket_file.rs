//! The file of a Unix listener, and the second name that keeps it alive.
//!
//! Owns two names of one socket: the path that clients connect to, and a private one beside it
//! (`PATH.croupier-<pid>`). Why two: many programs unlink their path before they bind (asyncio,
//! gunicorn, uvicorn), and a second worker would take the file from under the listener; a socket
//! cannot be bound twice and a file without a name cannot be linked again. connect(2) goes by inode,
//! so any hard link reaches the listener. Promises: only sockets that nobody owns are ever removed
//! to make room or as what a killed primary left (its private name), and at the end only names that are
//! the listener's own; nothing here blocks. A path
//! that a worker asked for is handled with the worker's rights ([`Rights`]), and belongs to its user.

use std::ffi::OsString;
use std::fs::{Permissions, hard_link, remove_file, set_permissions, symlink_metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};

use crate::config::Ids;
use crate::sys;

/// Files of a folder that are looked at for private names of dead primaries.
const SIBLINGS_MAX: usize = 4096;

/// Device and inode: which file a name means.
type Identity = (u64, u64);

/// With whose rights files are made, linked and removed.
#[derive(Debug, Clone)]
pub(super) enum Rights {
    /// The primary's: the path was named by the operator, or workers are the same user.
    Own,
    /// Those of the workers' user.
    Workers(Arc<Ids>),
}

impl Rights {
    fn with<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Own => work(),
            Self::Workers(ids) => {
                let groups: Vec<libc::gid_t> = ids.groups.iter().map(|gid| gid.as_raw()).collect();
                sys::with_file_rights(ids.uid.as_raw(), ids.gid.as_raw(), &groups, work)?
            }
        }
    }
}

/// The names of one bound Unix socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    rights: Rights,
    path: PathBuf,
    private: PathBuf,
    identity: Identity,
    /// The path is a service manager's, and stays when the listener ends.
    lent: bool,
}

impl SocketFile {
    /// Binds `socket` to `path` and gives it its second name. A stale socket file is replaced.
    ///
    /// # Errors
    /// bind(2)'s errno: `EADDRINUSE` when something is there that is not a socket without an owner.
    pub(super) fn bind(socket: BorrowedFd<'_>, path: &Path, rights: Rights) -> io::Result<Self> {
        rights.clone().with(|| Self::bind_with(socket, path, rights))
    }

    fn bind_with(socket: BorrowedFd<'_>, path: &Path, rights: Rights) -> io::Result<Self> {
        let name = UnixAddr::new(path)?;
        if let Err(error) = bind(socket.as_raw_fd(), &name) {
            if error != Errno::EADDRINUSE || !is_stale(path) {
                return Err(error.into());
            }
            remove_file(path)?;
            bind(socket.as_raw_fd(), &name)?;
        }
        let identity = identity_of(path).ok_or(io::ErrorKind::NotFound)?;
        let mut private = OsString::from(path);
        private.push(format!(".croupier-{}", std::process::id()));
        remove_leftovers(path);
        let (path, private) = (path.into(), private.into());
        let file = Self { rights, path, private, identity, lent: false };
        file.keep();
        Ok(file)
    }

    /// The file of a socket that a service manager bound: its workers may remove it as any other. `None`
    /// if it is gone already.
    pub(super) fn lent(path: &Path) -> Option<Self> {
        let identity = identity_of(path)?;
        let mut private = OsString::from(path);
        private.push(format!(".croupier-{}", std::process::id()));
        let (path, private) = (path.into(), private.into());
        let file = Self { rights: Rights::Own, path, private, identity, lent: true };
        file.keep();
        Some(file)
    }

    /// Sets the file's mode, before the listener listens: nobody could connect yet.
    pub(super) fn set_mode(&self, mode: u32) {
        let set = || set_permissions(&self.path, Permissions::from_mode(mode));
        if let Err(error) = self.rights.with(set) {
            log::warn!("cannot set the mode of {} to {mode:o}: {error}", self.path.display());
        }
    }

    /// Makes the path reach the listener again, if it does not.
    pub(super) fn restore(&self) {
        let done = self.rights.with(|| {
            self.put_back();
            Ok(())
        });
        if let Err(error) = done {
            log::error!("cannot look after {} as its user: {error}", self.path.display());
        }
    }

    fn put_back(&self) {
        if identity_of(&self.path) == Some(self.identity) {
            return self.keep();
        }
        let (path, private) = (self.path.display(), self.private.display());
        if identity_of(&self.private) != Some(self.identity) {
            log::error!("{path} was removed, and so was {private}: restart to be reachable there");
        } else if let Err(error) = place(&self.private, &self.path) {
            log::error!("{path} was removed and cannot be put back: {error}; link {private} to it");
        } else {
            log::debug!("{path} was removed and is back");
        }
    }

    /// Gives the socket its private name, if it has none.
    fn keep(&self) {
        if identity_of(&self.private) == Some(self.identity) {
            return;
        }
        if let Err(error) = place(&self.path, &self.private) {
            let (path, private) = (self.path.display(), self.private.display());
            log::warn!(
                "cannot link {private} to {path}: {error}; a program that removes {path} before it binds will make it unreachable"
            );
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.lent {
            self.restore();
        }
        let path = (!self.lent).then_some(&self.path);
        for name in path.into_iter().chain([&self.private]) {
            // Gone already, or somebody else's by now: not ours to remove.
            if identity_of(name) == Some(self.identity)
                && let Err(error) = self.rights.with(|| remove_file(name))
            {
                log::warn!("cannot remove the socket file {}: {error}", name.display());
            }
        }
    }
}

/// Removes the private names that killed primaries left beside `path`: stale sockets of its owner. What
/// cannot be removed stays, as it would have.
fn remove_leftovers(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(owner) = symlink_metadata(path).map(|found| found.uid()) else { return };
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(SIBLINGS_MAX).flatten();
    for entry in entries {
        let sibling = entry.file_name();
        let number = sibling
            .as_encoded_bytes()
            .strip_prefix(name.as_encoded_bytes())
            .and_then(|rest| rest.strip_prefix(b".croupier-"));
        let private = number.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit));
        let left = folder.join(&sibling);
        if private
            && symlink_metadata(&left).is_ok_and(|found| found.uid() == owner)
            && is_stale(&left)
        {
            drop(remove_file(&left));
        }
    }
}

/// Hard-links `from` to `to`; a stale socket file makes room.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    match hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_stale(to) => {
            remove_file(to)?;
            hard_link(from, to)
        }
        done => done,
    }
}

fn identity_of(path: &Path) -> Option<Identity> {
    symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Whether this is a socket file that no socket is bound to any more. bind(2) says `EADDRINUSE` for
/// any file, and connect(2) says `ECONNREFUSED` for a regular one too, so the type is asked first.
///
/// The probe is a datagram socket: it cannot wait for a full backlog, no owner sees a client that is
/// none, and one that has bound but does not listen yet answers `EPROTOTYPE`, where a stream socket
/// would read `ECONNREFUSED` (unix(7)). Only that one errno proves that nobody is there.
fn is_stale(path: &Path) -> bool {
    if !symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        return false;
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None);
    let (Ok(probe), Ok(name)) = (probe, UnixAddr::new(path)) else { return false };
    connect(probe.as_fd().as_raw_fd(), &name) == Err(Errno::ECONNREFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use nix::sys::socket::{Backlog, listen};

    fn stream() -> OwnedFd {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap()
    }

    fn listening(path: &Path) -> (OwnedFd, SocketFile) {
        let socket = stream();
        let file = SocketFile::bind(socket.as_fd(), path, Rights::Own).unwrap();
        listen(&socket, Backlog::new(8).unwrap()).unwrap();
        (socket, file)
    }

    fn errno_at(path: &Path) -> Option<i32> {
        SocketFile::bind(stream().as_fd(), path, Rights::Own).unwrap_err().raw_os_error()
    }

    fn names(folder: &tempfile::TempDir) -> usize {
        std::fs::read_dir(folder.path()).unwrap().count()
    }

    #[test]
    fn what_is_not_a_stale_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        std::fs::write(at("data"), "precious").unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        drop(UnixListener::bind(at("stale")).unwrap());
        std::os::unix::fs::symlink(at("stale"), at("link")).unwrap();
        let datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
        let bound = stream();
        bind(bound.as_raw_fd(), &UnixAddr::new(&at("bound")).unwrap()).unwrap();
        for name in ["data", "folder", "link", "datagrams", "bound"] {
            assert_eq!(errno_at(&at(name)), Some(libc::EADDRINUSE), "{name}");
            assert!(symlink_metadata(at(name)).is_ok(), "{name}");
        }
        assert_eq!(std::fs::read(at("data")).unwrap(), b"precious");
        drop((datagrams, bound));
        for name in ["stale", "datagrams", "bound"] {
            drop(SocketFile::bind(stream().as_fd(), &at(name), Rights::Own).unwrap());
            assert!(symlink_metadata(at(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_full_backlog_is_somebody_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("full");
        let owner = stream();
        let name = UnixAddr::new(&path).unwrap();
        bind(owner.as_raw_fd(), &name).unwrap();
        listen(&owner, Backlog::new(1).unwrap()).unwrap();
        let mut clients = Vec::new();
        let full = loop {
            clients.push(stream());
            if let Err(error) = connect(clients.last().unwrap().as_raw_fd(), &name) {
                break error;
            }
        };
        assert_eq!(full, Errno::EAGAIN);
        assert_eq!(errno_at(&path), Some(libc::EADDRINUSE));
        assert!(path.exists());
    }

    #[test]
    fn a_removed_path_comes_back_and_reaches_the_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let (socket, file) = listening(&path);
        assert_eq!(names(&folder), 2);
        remove_file(&path).unwrap();
        assert!(UnixStream::connect(&path).is_err());
        file.restore();
        let client = UnixStream::connect(&path).unwrap();
        let (_conn, _peer) = sys::accept4(socket.as_fd(), 0).unwrap();
        // What clients and programs see is the path, not the private name.
        let seen = client.peer_addr().unwrap();
        assert_eq!(seen.as_pathname(), Some(path.as_path()));
        // The private name comes back too.
        remove_file(&file.private).unwrap();
        file.restore();
        assert_eq!(names(&folder), 2);
        drop(file);
        assert_eq!(names(&folder), 0);
    }

    #[test]
    fn what_a_killed_primary_left_goes_at_the_next_bind() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        // The first died: both of its names are there, and nobody has the socket.
        let left = at("app.sock.croupier-4000000");
        let died = UnixListener::bind(at("app.sock")).unwrap();
        hard_link(at("app.sock"), &left).unwrap();
        drop(died);
        let kept =
            ["app.sock.croupier-", "app.sock.croupier-1x", "app.sock.croupier-12", "b.croupier-3"];
        let stale = |name: &str| drop(UnixListener::bind(at(name)).unwrap());
        kept.iter().filter(|name| !name.ends_with("-12")).for_each(|name| stale(name));
        let living = UnixListener::bind(at("app.sock.croupier-12")).unwrap();
        std::fs::write(at("app.sock.croupier-13"), "precious").unwrap();
        let (_socket, file) = listening(&at("app.sock"));
        assert!(symlink_metadata(&left).is_err());
        drop(file);
        for name in kept {
            assert!(symlink_metadata(at(name)).is_ok(), "{name}");
        }
        assert_eq!(names(&folder), kept.len() + 1);
        drop(living);
    }

    #[test]
    fn a_stale_socket_in_the_way_goes_and_what_others_own_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let (_socket, file) = listening(&path);
        remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        file.restore();
        assert_eq!(identity_of(&path), Some(file.identity));
        remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        file.restore();
        assert_ne!(identity_of(&path), Some(file.identity));
        drop(file);
        assert!(path.exists(), "the other's file");
        assert_eq!(names(&folder), 1);
        drop(other);
    }

    #[test]
    fn a_workers_path_is_bound_with_the_workers_rights() {
        if !nix::unistd::geteuid().is_root() {
            return; // nothing to give up
        }
        let (uid, gid) = (nix::unistd::Uid::from_raw(54321), nix::unistd::Gid::from_raw(54321));
        let ids = Ids { uid, gid, groups: vec![gid], user_name: None, home: None };
        let rights = Rights::Workers(Arc::new(ids));
        let root_only = tempfile::tempdir().unwrap();
        let theirs = tempfile::tempdir().unwrap();
        nix::unistd::chown(theirs.path(), Some(uid), Some(gid)).unwrap();

        let path = root_only.path().join("s");
        let refused = SocketFile::bind(stream().as_fd(), &path, rights.clone()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        assert!(!path.exists());

        let path = theirs.path().join("s");
        let file = SocketFile::bind(stream().as_fd(), &path, rights).unwrap();
        let found = symlink_metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (54321, 54321));
        remove_file(&path).unwrap();
        file.restore();
        assert_eq!(identity_of(&path), Some(file.identity));
        drop(file);
        assert_eq!(std::fs::read_dir(theirs.path()).unwrap().count(), 0);

        // The primary has its own rights again.
        drop(SocketFile::bind(stream().as_fd(), &root_only.path().join("s"), Rights::Own).unwrap());
    }
}
