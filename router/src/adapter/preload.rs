//! Where the preload library is, and whether a worker can load it.
//!
//! Promises: a library that ld.so would skip with a warning, and let the program run on without
//! dealing, is refused here instead. Never does: load it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid};

use crate::config::Ids;

/// The library's file name.
pub const FILE: &str = "libcroupier_preload.so";

/// Why the library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PreloadError {
    /// It is nowhere.
    #[error("{FILE} is missing: looked at {}; {advice}", list(looked_at))]
    Missing {
        /// Where it was looked for.
        looked_at: Vec<PathBuf>,
        /// The line to run.
        advice: &'static str,
    },
    /// The worker's user cannot read it.
    #[error(
        "user {user} cannot read {library}: {} is closed to it. Copy it to where everybody can, and \
         say so:\n  install -D -m 755 {library} {PUBLIC}\n  croupier run --preload-path {PUBLIC} …",
        barrier.display(),
        library = library.display()
    )]
    Closed {
        /// The library.
        library: PathBuf,
        /// The file or folder that refuses.
        barrier: PathBuf,
        /// The worker's user.
        user: String,
    },
    /// `LD_PRELOAD` is a list separated by spaces and colons.
    #[error(
        "{0} has a space or colon in its path, at which LD_PRELOAD splits; copy it and say so:\n  \
         install -D -m 755 '{0}' {PUBLIC}\n  croupier run --preload-path {PUBLIC} …"
    )]
    Unlistable(String),
}

/// Where everybody can read it; for advice.
const PUBLIC: &str = "/usr/local/lib/croupier/libcroupier_preload.so";

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The library for this run: `--preload-path` (a file or its folder), beside the executable, or in
/// `../lib/croupier` from there.
pub fn library(path: Option<&Path>, ids: Option<&Ids>) -> Result<PathBuf, PreloadError> {
    let executable = std::env::current_exe().unwrap_or_default();
    let (candidates, advice) = match path {
        Some(given) => {
            let file = if given.is_dir() { given.join(FILE) } else { given.to_path_buf() };
            (vec![file], "give its path with --preload-path")
        }
        None => beside(&executable),
    };
    let Some(found) = candidates.iter().find(|path| path.is_file()) else {
        return Err(PreloadError::Missing { looked_at: candidates, advice });
    };
    // ld.so takes a name without a slash as one to search for.
    let library = std::fs::canonicalize(found).unwrap_or_else(|_| found.clone());
    if library.as_os_str().as_bytes().iter().any(|byte| b" :".contains(byte)) {
        return Err(PreloadError::Unlistable(library.display().to_string()));
    }
    match barrier(&library, ids) {
        None => Ok(library),
        Some(barrier) => {
            let user = match ids {
                Some(Ids { user_name: Some(name), .. }) => name.clone(),
                Some(ids) => ids.uid.to_string(),
                None => nix::unistd::geteuid().to_string(),
            };
            Err(PreloadError::Closed { library, barrier, user })
        }
    }
}

fn beside(executable: &Path) -> (Vec<PathBuf>, &'static str) {
    let folder = executable.parent().unwrap_or_else(|| Path::new("/"));
    let candidates =
        vec![folder.join(FILE), folder.parent().unwrap_or(folder).join("lib/croupier").join(FILE)];
    let built = |profile: &str| folder.file_name() == Some(OsStr::new(profile));
    let advice = if built("debug") {
        "build it: cargo build -p croupier-preload"
    } else if built("release") {
        "build it: cargo build --release -p croupier-preload"
    } else {
        "install it with make install, or give its path with --preload-path"
    };
    (candidates, advice)
}

/// The first file or folder on the way to the library that this user may not pass.
fn barrier(library: &Path, ids: Option<&Ids>) -> Option<PathBuf> {
    barrier_on_the_way(library, 0o4, ids)
}

/// The first file or folder on the way to `path` that this user may not pass, by the mode bits: folders
/// are passed, and of the file itself `wanted` is wanted.
pub(super) fn barrier_on_the_way(path: &Path, wanted: u32, ids: Option<&Ids>) -> Option<PathBuf> {
    let (uid, groups) = match ids {
        Some(ids) => {
            let mut groups = ids.groups.clone();
            groups.push(ids.gid);
            (ids.uid, groups)
        }
        None => {
            let mut groups = nix::unistd::getgroups().unwrap_or_default();
            groups.push(nix::unistd::getegid());
            (nix::unistd::geteuid(), groups)
        }
    };
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    way.into_iter()
        .find(|step| {
            let wanted = if *step == path { wanted } else { 0o1 };
            !may(step, wanted, uid, &groups)
        })
        .map(Path::to_path_buf)
}

fn may(path: &Path, wanted: u32, uid: Uid, groups: &[Gid]) -> bool {
    let Ok(found) = std::fs::metadata(path) else { return false };
    let mode = if uid.is_root() {
        return true;
    } else if found.uid() == uid.as_raw() {
        found.mode() >> 6
    } else if groups.iter().any(|group| group.as_raw() == found.gid()) {
        found.mode() >> 3
    } else {
        found.mode()
    };
    mode & wanted == wanted
}

/// `LD_PRELOAD`: ours first, so that our accept is called first; what was there stays.
pub(super) fn value(library: &OsStr, kept: Option<&OsStr>) -> OsString {
    let mut value = library.to_owned();
    let others = kept.map(OsStr::as_bytes).unwrap_or_default();
    for other in others.split(|byte| b" :".contains(byte)) {
        // A croupier under a croupier has ours in it already.
        if !other.is_empty() && other != library.as_bytes() {
            value.push(":");
            value.push(OsStr::from_bytes(other));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn ours_comes_first_and_once() {
        let value = |kept: &str| value(OsStr::new("/o.so"), Some(OsStr::new(kept)));
        assert_eq!(value(""), "/o.so");
        assert_eq!(value("/je.so"), "/o.so:/je.so");
        assert_eq!(value("/o.so:/je.so /x.so"), "/o.so:/je.so:/x.so");
    }

    #[test]
    fn names_the_folder_that_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().join("closed");
        let library = closed.join(FILE);
        std::fs::create_dir(&closed).unwrap();
        std::fs::write(&library, "").unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let stranger = Ids {
            uid: Uid::from_raw(54321),
            gid: Gid::from_raw(54321),
            groups: Vec::new(),
            user_name: Some("somebody".into()),
            home: None,
        };
        mode(folder.path(), 0o755);
        mode(&closed, 0o750);
        mode(&library, 0o644);
        assert_eq!(barrier(&library, Some(&stranger)).as_deref(), Some(closed.as_path()));
        mode(&closed, 0o711);
        assert_eq!(barrier(&library, Some(&stranger)), None);
        mode(&library, 0o640);
        assert_eq!(barrier(&library, Some(&stranger)).as_deref(), Some(library.as_path()));
        let group = Ids { gid: nix::unistd::getgid(), ..stranger };
        assert_eq!(barrier(&library, Some(&group)), None);
    }

    #[test]
    fn looks_beside_and_in_the_installation() {
        let (places, advice) = beside(Path::new("/opt/c/bin/croupier"));
        let wanted = ["/opt/c/bin", "/opt/c/lib/croupier"].map(|at| Path::new(at).join(FILE));
        assert_eq!(places, wanted);
        assert_eq!(advice, "install it with make install, or give its path with --preload-path");
        let (_, advice) = beside(Path::new("/home/me/croupier/target/debug/croupier"));
        assert_eq!(advice, "build it: cargo build -p croupier-preload");
        let (_, advice) = beside(Path::new("/home/me/croupier/target/release/croupier"));
        assert!(advice.contains("cargo build --release -p croupier-preload"), "{advice}");
    }
}
