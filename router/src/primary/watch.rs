//! `--watch`: hears of files that change, and says so once they have settled. For development.
//!
//! Owns a thread and its inotify; without the flag there is neither. Promises: every folder is found
//! again when it is replaced; nothing below a skipped name is looked at; the number of watches is
//! bounded, and what stands in the way is named. Never does: reload.
//!
//! Not with the usual crate, notify: that watches a folder with all that is below it, and has no filter,
//! so that `node_modules` would cost a watch for each of its folders.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::run::Primary;
use super::wake::wake;
use crate::sys;

/// Nothing must have changed for so long before it is said: editors write in several steps.
const QUIET: Duration = Duration::from_millis(200);
/// Where something changes all the time, it is said after this.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// Folders that are watched.
const FOLDERS_MAX: usize = 8192;

/// Names that are never looked at, nor what is below them.
const SKIPPED: [&str; 9] = [
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "__pycache__",
    "node_modules",
    "target",
    "venv",
    // What vim makes to see whether it could.
    "4913",
];

const INTEREST: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// Why files cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A path that was named.
    #[error("--watch={}: {source}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The kernel counts watches for each user.
    #[error(
        "--watch={}: the user's inotify watches are used up: raise fs.inotify.max_user_watches, as in \
         sysctl fs.inotify.max_user_watches=524288, or watch less",
        path.display()
    )]
    Watches {
        /// The folder that could not be watched any more.
        path: PathBuf,
    },
    /// Our own bound.
    #[error(
        "--watch: {} is one folder more than the {FOLDERS_MAX} that can be watched; name those that \
         matter, as in --watch=src",
        path.display()
    )]
    Folders {
        /// The folder that was one too many.
        path: PathBuf,
    },
    /// No inotify to be had.
    #[error(
        "--watch: no inotify: {0}; too many of them: raise fs.inotify.max_user_instances, or end others"
    )]
    Inotify(io::Error),
    /// No thread to be had.
    #[error("--watch: no thread: {0}")]
    Thread(io::Error),
}

/// The loop's side of the thread.
#[derive(Debug)]
pub(super) struct Watcher {
    changes: Receiver<Result<String, WatchError>>,
}

impl Watcher {
    /// Starts the thread. It lives as long as the process.
    ///
    /// # Errors
    /// [`WatchError`]: a path is not there, or the kernel has no more watches.
    pub(super) fn start(paths: &[PathBuf], waker: Arc<mio::Waker>) -> Result<Self, WatchError> {
        let absolute = |path: &PathBuf| {
            std::fs::metadata(path)
                .and_then(|_| std::path::absolute(path))
                .map_err(|source| WatchError::Path { path: path.clone(), source })
        };
        let roots = paths.iter().map(absolute).collect::<Result<Vec<PathBuf>, _>>()?;
        let tree = Tree::plant(&roots)?;
        let (tell, changes) = unbounded();
        let thread = std::thread::Builder::new().name("croupier-watch".into());
        thread.spawn(move || listen(&roots, tree, &tell, &waker)).map_err(WatchError::Thread)?;
        Ok(Self { changes })
    }
}

impl Primary {
    /// Something has changed.
    pub(super) fn take_changes(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        let Some(last) = watcher.changes.try_iter().last() else { return };
        match last {
            Ok(path) => self.reload(&format!("--watch: {path}")),
            Err(error) => log::error!("{error}; what was watched before is watched on"),
        }
    }
}

/// The thread.
fn listen(
    roots: &[PathBuf],
    mut tree: Tree,
    tell: &Sender<Result<String, WatchError>>,
    waker: &mio::Waker,
) {
    loop {
        let mut seen = Seen::default();
        tree.hear(PollTimeout::NONE, &mut seen);
        if seen.path.is_none() {
            continue;
        }
        let begun = sys::monotonic_ns();
        let mut last = begun;
        while let Some(left) = QUIET.checked_sub(since(last)).filter(|left| !left.is_zero())
            && since(begun) < SETTLE_MAX
        {
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if tree.hear(timeout, &mut seen) {
                last = sys::monotonic_ns();
            }
        }
        // Before it is said: what changes after this is heard of.
        let planted = if seen.folders { Tree::plant(roots).map(Some) } else { Ok(None) };
        let said = planted.map(|new| {
            if let Some(new) = new {
                tree = new;
            }
            shown(&seen.path.unwrap_or_default())
        });
        if tell.send(said).is_err() {
            return;
        }
        wake(waker);
    }
}

fn since(at: u64) -> Duration {
    Duration::from_nanos(sys::monotonic_ns().saturating_sub(at))
}

/// As the user would name it.
fn shown(path: &Path) -> String {
    let own = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(own).unwrap_or(path).display().to_string()
}

/// What was heard since the last word.
#[derive(Debug, Default)]
struct Seen {
    /// The first that changed.
    path: Option<PathBuf>,
    /// Folders came or went.
    folders: bool,
}

/// One watched folder.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Only these names in it matter; `None`: all.
    only: Option<BTreeSet<OsString>>,
}

/// Every folder that is watched.
#[derive(Debug)]
struct Tree {
    inotify: Inotify,
    folders: BTreeMap<WatchDescriptor, Folder>,
}

impl Tree {
    /// Watches the roots, what is below those that are folders, and in their parents their names: so
    /// one that is replaced is found again. One that is not there now may come.
    fn plant(roots: &[PathBuf]) -> Result<Self, WatchError> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).map_err(|error| WatchError::Inotify(error.into()))?;
        let mut tree = Self { inotify, folders: BTreeMap::new() };
        for root in roots {
            if let (Some(parent), Some(name)) = (root.parent(), root.file_name()) {
                tree.add(parent, Some(name))?;
            }
            if root.is_dir() {
                tree.walk(root)?;
            }
        }
        Ok(tree)
    }

    /// A folder and all below it. Links on the way are not followed.
    fn walk(&mut self, root: &Path) -> Result<(), WatchError> {
        let mut open = vec![root.to_owned()];
        while let Some(folder) = open.pop() {
            // First the watch, then the look: what comes in between is seen twice, not never.
            self.add(&folder, None)?;
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_folder && !is_skipped(&entry.file_name()) {
                    open.push(entry.path());
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, only: Option<&OsStr>) -> Result<(), WatchError> {
        if self.folders.len() >= FOLDERS_MAX {
            return Err(WatchError::Folders { path: path.to_owned() });
        }
        let watch = match self.inotify.add_watch(path, INTEREST) {
            Ok(watch) => watch,
            Err(Errno::ENOSPC) => return Err(WatchError::Watches { path: path.to_owned() }),
            // It has just gone, or is not ours to see.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(()),
            Err(error) => {
                return Err(WatchError::Path { path: path.to_owned(), source: error.into() });
            }
        };
        let only = only.map(|name| BTreeSet::from([name.to_owned()]));
        let known = self
            .folders
            .entry(watch)
            .or_insert_with(|| Folder { path: path.to_owned(), only: Some(BTreeSet::new()) });
        known.only = match (known.only.take(), only) {
            (Some(known), Some(more)) => Some(known.into_iter().chain(more).collect()),
            (None, _) | (_, None) => None,
        };
        Ok(())
    }

    /// Waits, and takes what there is. True: something that matters.
    fn hear(&self, timeout: PollTimeout, seen: &mut Seen) -> bool {
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, timeout), Ok(1..)) {
            return false;
        }
        let Ok(events) = self.inotify.read_events() else { return false };
        let mut matters = false;
        for event in events {
            let Some((path, folders)) = self.judge(&event) else { continue };
            matters = true;
            seen.folders |= folders;
            seen.path.get_or_insert(path);
        }
        matters
    }

    /// What an event is about, and whether folders have come or gone.
    fn judge(&self, event: &InotifyEvent) -> Option<(PathBuf, bool)> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some((PathBuf::from("many files"), true));
        }
        let folder = self.folders.get(&event.wd)?;
        let gone = AddWatchFlags::IN_IGNORED
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_UNMOUNT;
        let Some(name) = &event.name else {
            return event.mask.intersects(gone).then(|| (folder.path.clone(), true));
        };
        let meant = folder.only.as_ref().is_none_or(|only| only.contains(name));
        // What was named itself is looked at whatever it is called.
        if !meant || (folder.only.is_none() && is_skipped(name)) {
            return None;
        }
        let path = folder.path.join(name);
        // A link to a folder may be what was named.
        let folders = event.mask.contains(AddWatchFlags::IN_ISDIR) || folder.only.is_some();
        if event.mask.contains(AddWatchFlags::IN_CREATE) && !folders {
            // A file is heard of again when it has been written; a link is not.
            let found = std::fs::symlink_metadata(&path).ok()?;
            let linked = found.is_symlink() || found.nlink() > 1;
            return linked.then_some((path, false));
        }
        Some((path, folders))
    }
}

/// Names of tools' own folders and of editors' temporary files.
fn is_skipped(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let swap = [".swp", ".swx", ".swo", "~", ".tmp"].iter().any(|end| name.ends_with(end));
    let temporary = [".#", "#", ".goutputstream-"].iter().any(|start| name.starts_with(start));
    SKIPPED.contains(&name) || swap || temporary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_and_editors_are_not_heard() {
        for name in [".git", "node_modules", "target", "__pycache__", ".app.py.swp", "app.py~"] {
            assert!(is_skipped(OsStr::new(name)), "{name}");
        }
        for name in [".#app.py", "#app.py#", "4913", ".goutputstream-X1"] {
            assert!(is_skipped(OsStr::new(name)), "{name}");
        }
        for name in ["app.py", ".env", "targets", "git"] {
            assert!(!is_skipped(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_is_below_a_skipped_name_costs_no_watch() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["src/deep", "node_modules/a/b", ".git/objects"] {
            std::fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        let tree = Tree::plant(&[folder.path().to_owned()]).unwrap();
        let mut watched: Vec<_> = tree.folders.values().map(|one| one.path.clone()).collect();
        watched.sort();
        let wanted = ["", "src", "src/deep"].map(|path| folder.path().join(path));
        let below: Vec<_> =
            watched.iter().filter(|path| path.starts_with(folder.path())).cloned().collect();
        assert_eq!(below.len(), 3, "{watched:?}");
        assert!(below.iter().zip(&wanted).all(|(a, b)| a.components().eq(b.components())));
        assert_eq!(watched.len(), 4, "and its parent, for its name: {watched:?}");
    }
}
