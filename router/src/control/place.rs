//! Where control sockets lie, and how a primary takes a name.
//!
//! Owns: the choice of the directory, the lock beside each socket. Promises: two primaries never
//! have one name in one directory, whoever starts first and however the other died; what a dead
//! primary left behind is replaced; both files go when the [`Place`] is dropped. Never does: trust
//! a directory of somebody else's.
//!
//! Directories, the first that is usable: `$XDG_RUNTIME_DIR/croupier`; `/run/croupier` for root;
//! `/run/user/UID/croupier`; `/tmp/croupier-UID`.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, access, geteuid};

/// How many primaries of one name find a place: `web`, `web-2`, … `web-99`.
const SAME_NAMES_MAX: u32 = 99;

/// Why there is no control socket. The primary can run without one.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No directory can be used.
    #[error("no directory for the control socket: {0}; set XDG_RUNTIME_DIR or --control PATH")]
    NoDirectory(String),
    /// All names are taken.
    #[error("{SAME_NAMES_MAX} primaries named {0} run already; choose another --name")]
    AllTaken(String),
    /// `--control PATH` is in use.
    #[error("{} is the control socket of another primary; choose another --control", .0.display())]
    InUse(PathBuf),
    /// The lock could not be made.
    #[error("cannot make {}: {error}; choose another place with --control PATH", path.display())]
    Lock {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file of somebody's is where the lock belongs.
    #[error(
        "{} is there and is no lock of croupier's, which is an empty file; remove it or choose another place with --control PATH",
        .0.display()
    )]
    NoLock(PathBuf),
}

/// A name that this process has taken, and the path of its control socket.
#[derive(Debug)]
pub struct Place {
    name: String,
    socket: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes `name`, or `name-2` and so on when it is taken; at `control`, if that is given.
    ///
    /// # Errors
    /// [`PlaceError`]: to be a warning, unless `control` was given.
    pub fn take(name: &str, control: Option<&Path>) -> Result<Self, PlaceError> {
        match control {
            Some(path) => Self::lock(name.to_owned(), path.to_path_buf())?
                .ok_or_else(|| PlaceError::InUse(path.to_path_buf())),
            None => Self::take_in(&usable_directory()?, name),
        }
    }

    fn take_in(directory: &Path, name: &str) -> Result<Self, PlaceError> {
        for number in 1..=SAME_NAMES_MAX {
            let candidate = if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
            let socket = directory.join(format!("{candidate}.sock"));
            if let Some(place) = Self::lock(candidate, socket)? {
                return Ok(place);
            }
        }
        Err(PlaceError::AllTaken(name.to_owned()))
    }

    /// `None`: another primary holds the lock.
    fn lock(name: String, socket: PathBuf) -> Result<Option<Self>, PlaceError> {
        // The whole name and more: `app.ctl` and `app.sock` are two places, and `yarn.lock` is somebody's.
        let mut lock_path = socket.clone().into_os_string();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let failed = |error| PlaceError::Lock { path: lock_path.clone(), error };
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(&lock_path)
                .map_err(failed)?;
            let found = file.metadata().map_err(failed)?;
            if !found.is_file() || found.len() > 0 {
                return Err(PlaceError::NoLock(lock_path));
            }
            // Its end is the file's: to unlock it is one call more that could fail, after all is over.
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => {
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            let lock = file;
            // The holder before us unlinks the file as it leaves: a lock on a file that is no
            // longer at this path guards nothing.
            if std::fs::metadata(&lock_path).is_ok_and(|there| there.ino() == found.ino()) {
                return Ok(Some(Self { name, socket, lock_path, _lock: lock }));
            }
        }
    }

    /// The name that was taken.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the control socket belongs.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the lock is released, so that it is ours that goes. A failure leaves a file that
        // the next primary of this name takes over.
        drop(std::fs::remove_file(&self.lock_path));
    }
}

/// The directories that may hold sockets of this user, the preferred first.
#[must_use]
pub fn own_directories() -> Vec<PathBuf> {
    let uid = geteuid();
    let mut all = Vec::new();
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        all.push(PathBuf::from(runtime).join("croupier"));
    }
    all.extend(directories_of(uid));
    all.dedup();
    all
}

/// Those of a user whose environment is not known.
#[must_use]
pub fn directories_of(uid: Uid) -> Vec<PathBuf> {
    let system = uid.is_root().then(|| PathBuf::from("/run/croupier"));
    let own = [format!("/run/user/{uid}/croupier"), format!("/tmp/croupier-{uid}")];
    system.into_iter().chain(own.map(PathBuf::from)).collect()
}

/// The directories of every user, for root.
#[must_use]
pub fn all_directories() -> Vec<PathBuf> {
    let mut all = own_directories();
    let entries = |path: &str| {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    all.extend(entries("/run/user").map(|user| user.join("croupier")));
    all.extend(entries("/tmp").filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix("croupier-").is_some_and(|uid| uid.parse::<u32>().is_ok())
    }));
    let mut seen = Vec::new();
    all.retain(|path| {
        let first = !seen.contains(path);
        seen.push(path.clone());
        first
    });
    all
}

/// The first of [`own_directories`] in which sockets can be made; it is made where it is missing.
///
/// # Errors
/// None can be used, and why not each.
pub fn usable_directory() -> Result<PathBuf, PlaceError> {
    first_that(make_private)
}

/// The directory that [`usable_directory`] would return, with nothing made.
///
/// # Errors
/// None could be used, and why not each.
pub fn directory_to_be() -> Result<PathBuf, PlaceError> {
    first_that(|directory| {
        if std::fs::symlink_metadata(directory).is_ok() {
            return check_private(directory);
        }
        let parent = directory.parent().unwrap_or_else(|| Path::new("/"));
        access(parent, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
    })
}

fn first_that(usable: impl Fn(&Path) -> io::Result<()>) -> Result<PathBuf, PlaceError> {
    let mut refusals = Vec::new();
    for directory in own_directories() {
        match usable(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => refusals.push(format!("{}: {error}", directory.display())),
        }
    }
    Err(PlaceError::NoDirectory(refusals.join(", ")))
}

fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    check_private(directory)
}

fn check_private(directory: &Path) -> io::Result<()> {
    if !is_private(directory, geteuid()) {
        return Err(io::Error::other("belongs to somebody else, or others may write in it"));
    }
    access(directory, AccessFlags::W_OK | AccessFlags::X_OK).map_err(io::Error::from)
}

/// A real directory of `uid`'s in which nobody else can put anything.
#[must_use]
pub fn is_private(directory: &Path, uid: Uid) -> bool {
    std::fs::symlink_metadata(directory).is_ok_and(|found| {
        found.is_dir() && found.uid() == uid.as_raw() && found.mode() & 0o022 == 0
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_taken_name_gets_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let first = Place::take_in(folder.path(), "web").unwrap();
        let second = Place::take_in(folder.path(), "web").unwrap();
        let third = Place::take_in(folder.path(), "web").unwrap();
        assert_eq!([first.name(), second.name(), third.name()], ["web", "web-2", "web-3"]);
        assert_eq!(second.socket(), folder.path().join("web-2.sock"));
        drop(second);
        assert_eq!(Place::take_in(folder.path(), "web").unwrap().name(), "web-2");
        drop((first, third));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn the_hundredth_of_a_name_is_told_to_take_another() {
        let folder = tempfile::tempdir().unwrap();
        let take = || Place::take_in(folder.path(), "web");
        let all: Vec<Place> = (0..SAME_NAMES_MAX).map(|_| take().unwrap()).collect();
        let error = take().unwrap_err().to_string();
        assert_eq!(error, "99 primaries named web run already; choose another --name");
        drop(all);
        assert_eq!(take().unwrap().name(), "web");
    }

    #[test]
    fn what_a_dead_primary_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("web.sock.lock"), "").unwrap();
        std::fs::write(folder.path().join("web.sock"), "").unwrap();
        assert_eq!(Place::take_in(folder.path(), "web").unwrap().name(), "web");
    }

    /// A holder unlinks its lock file as it leaves, between another's open and lock: the other then
    /// has a lock that guards nothing.
    #[test]
    fn nobody_shares_a_name_however_they_come_and_go() {
        const ROUNDS: usize = 20_000;
        let folder = tempfile::tempdir().unwrap();
        let holders = std::sync::atomic::AtomicUsize::new(0);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let socket = folder.path().join("web.sock");
                        if let Some(place) = Place::lock("web".into(), socket).unwrap() {
                            assert_eq!(holders.fetch_add(1, order), 0, "two have the name");
                            std::thread::yield_now();
                            holders.fetch_sub(1, order);
                            drop(place);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_given_path_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("my.sock");
        let first = Place::take("web", Some(&path)).unwrap();
        assert_eq!((first.name(), first.socket()), ("web", path.as_path()));
        let error = Place::take("web", Some(&path)).unwrap_err();
        assert!(error.to_string().contains("choose another --control"), "{error}");
        let error = Place::take("web", Some(Path::new("/no/such/folder/x.sock"))).unwrap_err();
        assert!(matches!(error, PlaceError::Lock { .. }), "{error}");
    }

    #[test]
    fn what_is_no_lock_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        std::fs::write(at("yarn.lock"), "precious").unwrap();
        std::fs::write(at("taken.sock.lock"), "precious").unwrap();
        nix::unistd::mkfifo(&at("fifo.sock.lock"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(at("fifo.sock.lock"))
            .unwrap();
        let beside = Place::take("a", Some(&at("yarn.sock"))).unwrap();
        let other = Place::take("b", Some(&at("yarn.ctl"))).unwrap();
        drop((beside, other));
        for name in ["taken.sock", "fifo.sock"] {
            let error = Place::take("c", Some(&at(name))).unwrap_err();
            assert!(error.to_string().contains("is no lock of croupier's"), "{error}");
        }
        assert_eq!(std::fs::read(at("yarn.lock")).unwrap(), b"precious");
        assert_eq!(std::fs::read(at("taken.sock.lock")).unwrap(), b"precious");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn only_private_folders_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        make_private(&own).unwrap();
        assert_eq!(std::fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        make_private(&own).unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(make_private(&own).is_err(), "others may write in it");
        let link = folder.path().join("link");
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        assert!(make_private(&link).is_err(), "whoever made the link can turn it");
        assert!(!is_private(&own, Uid::from_raw(54321)));
    }
}
