//! The programs under test, found beside the test's own executable and built if need be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// `target/<profile>` of the running test.
#[must_use]
pub fn target_dir() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its executable");
    own.ancestors().nth(2).expect("tests run from target/<profile>/deps").to_owned()
}

/// The `croupier` program, as fresh as its sources.
#[must_use]
pub fn croupier() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| build(&["-p", "croupier", "-p", "croupier-preload"]));
    target_dir().join("croupier")
}

/// The benchmark's program, with its worker and `croupier` beside it.
#[must_use]
pub fn bench() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    drop(croupier());
    BUILT.get_or_init(|| build(&["-p", "croupier-bench"]));
    target_dir().join("croupier-bench")
}

/// The preload library, as fresh as its sources.
#[must_use]
pub fn preload() -> PathBuf {
    drop(croupier());
    target_dir().join("libcroupier_preload.so")
}

/// The shared library with the C API.
#[must_use]
pub fn rust_library() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| build(&["-p", "croupier-worker", "--lib", "--features", "capi"]));
    target_dir().join("libcroupier_worker.so")
}

/// An example of `croupier-worker`, built with `features`.
#[must_use]
pub fn example(name: &str, features: &str) -> PathBuf {
    build(&["-p", "croupier-worker", "--example", name, "--features", features]);
    target_dir().join("examples").join(name)
}

/// A C program of `tests/fixtures` or of `source`, compiled into `to`.
///
/// # Panics
/// When it does not compile; the message is the compiler's.
#[must_use]
pub fn fixture(source: &Path, to: &Path, flags: &[&str]) -> PathBuf {
    let output = Command::new("cc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(to)
        .arg(source)
        .args(flags)
        .output()
        .expect("cc runs: `make deps` installs it");
    assert!(
        output.status.success(),
        "cc {}: {}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    to.to_owned()
}

/// Builds with the cargo, the profile and the target folder of the running test. Cheap when nothing
/// changed, and it keeps `cargo test` from testing yesterday's program.
fn build(what: &[&str]) {
    let target = target_dir();
    let folder = target.parent().expect("target/<profile> has a parent");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.arg("build").arg("--quiet").args(what).arg("--target-dir").arg(folder);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if target.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    // What cargo says about the test package must not be taken for the packages built here.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_")) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo build {what:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
