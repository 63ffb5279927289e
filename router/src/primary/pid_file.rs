//! `--pid-file`: the file that says which process the primary is.
//!
//! Owns the file and a lock on it for as long as the primary lives. Promises: the lock says who lives,
//! not the number in it, so a stale file whose number is somebody else's by now stands in nobody's
//! way, and a live one is never taken over; the file is never seen empty; at the end it goes only if
//! it is still this one. Never does: write over a file that is not a PID file, or follow a link.

use std::fs::{File, OpenOptions, TryLockError, symlink_metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of a PID file that are read: more is none.
const PID_TEXT_MAX: u64 = 32;

/// Why the file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Its primary runs.
    #[error(
        "--pid-file {}: croupier (pid {pid}) runs with it; stop that one first, or choose another path",
        path.display()
    )]
    Live {
        /// The file.
        path: PathBuf,
        /// What it says.
        pid: String,
    },
    /// It holds something else.
    #[error(
        "--pid-file {}: it is no PID file and is left alone; choose another path, or remove it",
        .0.display()
    )]
    Foreign(PathBuf),
    /// It cannot be made or read.
    #[error("--pid-file {}: {error}; its folder must exist, and croupier may write there", path.display())]
    System {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A PID file of this process. Removed when it is dropped.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Writes this process's number. A file that a dead primary left is taken over.
    ///
    /// # Errors
    /// [`PidFileError`].
    pub(super) fn write(path: &Path) -> Result<Self, PidFileError> {
        let failed = |error| PidFileError::System { path: path.to_owned(), error };
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                // Whatever a FIFO or a device does at open must not stop the start.
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path)
                .map_err(failed)?;
            if !file.metadata().map_err(failed)?.is_file() {
                return Err(PidFileError::Foreign(path.to_owned()));
            }
            let mut text = String::new();
            let read = (&mut file).take(PID_TEXT_MAX).read_to_string(&mut text);
            let number = text.trim();
            let is_pid_file = read.is_ok() && number.bytes().all(|byte| byte.is_ascii_digit());
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let pid = if is_pid_file { number.to_owned() } else { "unknown".to_owned() };
                    return Err(PidFileError::Live { path: path.to_owned(), pid });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            if !is_pid_file {
                return Err(PidFileError::Foreign(path.to_owned()));
            }
            let found = Self { path: path.to_owned(), file };
            // The one before may have removed it as it left.
            if !found.is_there() {
                continue;
            }
            if !number.is_empty() {
                log::info!("{}: process {number} left it behind; taken over", path.display());
            }
            found.fill().map_err(failed)?;
            return Ok(found);
        }
    }

    fn fill(&self) -> io::Result<()> {
        let text = format!("{}\n", std::process::id());
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(u64::try_from(text.len()).unwrap_or(0))
    }

    /// Whether the path still means this file.
    fn is_there(&self) -> bool {
        let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
        match (symlink_metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(ours)) => identity(there) == identity(ours),
            (Err(_), _) | (_, Err(_)) => false,
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Before the lock goes, so that it is not a successor's. Should it fail, a stale file is left,
        // which is in nobody's way.
        if self.is_there() {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_stale_file_is_taken_over_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        let own = format!("{}\n", std::process::id());
        // Longer than what is written, and of a process that lives: only the lock counts.
        fs::write(&path, "0000000000001\n").unwrap();
        let first = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        let refused = PidFile::write(&path).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("croupier (pid {}) runs with it", own.trim())),
            "{refused}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), own, "nothing was changed");
        drop(first);
        assert!(!path.exists());
        drop(PidFile::write(&path).unwrap());
    }

    #[test]
    fn only_its_own_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.pid");
        let first = PidFile::write(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = PidFile::write(&path).unwrap();
        drop(first);
        assert!(path.exists(), "it is the second one's");
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_pid_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        let refused = |path: &Path| PidFile::write(path).unwrap_err();
        for text in ["buy milk\n", "12 13\n", "\0"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(refused(&path), PidFileError::Foreign(_)));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(refused(&fifo), PidFileError::Foreign(_)));
        fs::write(&path, "").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(refused(&link), PidFileError::System { .. }));
        assert!(matches!(refused(&folder.path().join("no/x")), PidFileError::System { .. }));
    }
}
