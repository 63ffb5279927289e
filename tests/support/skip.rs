//! What this machine does not have: found, named, and never passed over in silence.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Says that a test is skipped, and writes its name and the reason to the file `CROUPIER_SKIPS`:
/// `make test` and `make soak` compare the names with `tests/expected-skips`.
pub fn record_skip(name: &str, reason: &str) {
    eprintln!("skipped {name}: {reason}");
    let Some(path) = std::env::var_os("CROUPIER_SKIPS") else { return };
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    let reason = reason.replace(['\t', '\n'], " ");
    writeln!(file, "{name}\t{reason}").unwrap();
}

/// A program on this machine: by path, or found in PATH and in the folders where Debian keeps
/// servers.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Where `make deps` puts what the test programs need, if `path` is there.
#[must_use]
pub fn deps(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deps").join(path);
    path.exists().then_some(path)
}
