//! One guard per test: what the test may use, and the count of what it must not leave.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tempfile::TempDir;

use crate::primary::{Croupier, Finished};
use crate::process::{Process, children, descriptors, marked};
use crate::{PATIENCE, croupier, wait_until};

/// The variable that every process of a test inherits.
const MARK: &str = "CROUPIER_TEST";

/// Tests that count processes and descriptors run one after another.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Ports that tests use lie below the range from which the kernel takes clients' ports.
const PORTS: std::ops::Range<u16> = 10_000..32_000;
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);

/// Everything a test may start, write and listen on. When it is dropped, all of it must be gone:
/// processes, zombies, descriptors of the test process, abstract sockets, files outside its folder.
#[derive(Debug)]
pub struct Guard {
    name: &'static str,
    mark: String,
    folder: TempDir,
    before: BTreeSet<String>,
    started: AtomicU32,
    _alone: MutexGuard<'static, ()>,
}

impl Guard {
    /// Begins a test.
    ///
    /// # Panics
    /// When there is no temporary folder.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let alone = ONE_AT_A_TIME.lock();
        // Other users read what is written here, whatever the caller's shell keeps from them.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let folder = tempfile::Builder::new().prefix("croupier-test-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("run")).unwrap();
        let random = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mark = format!("{MARK}={name}-{random}");
        let before = countable();
        Self { name, mark, folder, before, started: AtomicU32::new(0), _alone: alone }
    }

    /// The test's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A path in the test's own folder.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the test's own folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Makes a FIFO: a handler that opens it for reading blocks until the test opens it for writing.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        path
    }

    /// A copy of a program or library of ours that any user may read and execute: the checkout may lie
    /// where only its owner may go. Opens the test's folder for it.
    pub fn open_copy(&self, of: &Path) -> PathBuf {
        let copy = self.path(of.file_name().unwrap());
        std::fs::copy(of, &copy).unwrap();
        for path in [self.folder.path(), &copy] {
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }

    /// A port that nobody uses now.
    ///
    /// # Panics
    /// When none is free.
    pub fn port(&self) -> u16 {
        let span = u32::from(PORTS.end - PORTS.start);
        for _ in 0..1000 {
            let step = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
            // Different test processes begin at different places.
            let offset = (std::process::id() * 97 + step) % span;
            let port = PORTS.start + u16::try_from(offset).expect("the span fits");
            // A machine may be without IPv6, and then nobody has the port there.
            let taken = TcpListener::bind(("::", port))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
            if !taken && TcpListener::bind(("0.0.0.0", port)).is_ok() {
                return port;
            }
        }
        panic!("no free port in {PORTS:?}");
    }

    /// A command with this test's mark and folder, and without what the caller's shell has set.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CROUPIER_") || name.starts_with("CARGO") {
                command.env_remove(name.as_ref());
            }
        }
        for name in ["WORKERS", "WEB_CONCURRENCY", "PORT", "LD_PRELOAD", "RUST_LOG"] {
            command.env_remove(name);
        }
        let (name, value) = self.mark.split_once('=').expect("the mark is an assignment");
        command
            .env(name, value)
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    /// `croupier run` with these arguments, under a name of its own.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Croupier<'_> {
        self.run_with(args, |_| {})
    }

    /// The same, with a last change to the command (environment, limits, stdio).
    pub fn run_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        change: impl FnOnce(&mut Command),
    ) -> Croupier<'_> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.name);
        let mut command = self.command(croupier());
        command.args(["run", "--name", &name]).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        change(&mut command);
        Croupier::start(command, name, self)
    }

    /// `croupier` with these arguments, to its end.
    pub fn croupier<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        let mut command = self.command(croupier());
        command.args(args);
        self.finish(command)
    }

    /// Any command to its end, within the tests' patience.
    pub fn finish(&self, mut command: Command) -> Finished {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Croupier::start(command, String::new(), self).finished(PATIENCE)
    }

    /// Any command, running.
    pub fn start(&self, mut command: Command) -> Croupier<'_> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Croupier::start(command, String::new(), self)
    }

    /// All living processes that this test started, and theirs.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        marked(&self.mark)
    }

    /// The living processes of one worker: its main process and all that descend from it.
    #[must_use]
    pub fn family(&self, worker: u32) -> Vec<Process> {
        let mark = format!("CROUPIER_WORKER_ID={worker}\0");
        let of_worker = |process: &Process| {
            let Ok(environment) = std::fs::read(format!("/proc/{}/environ", process.pid)) else {
                return false;
            };
            environment.windows(mark.len()).any(|part| part == mark.as_bytes())
        };
        self.processes().into_iter().filter(of_worker).collect()
    }

    /// Ends what is left of this test, by id.
    pub(crate) fn sweep(&self) {
        for process in self.processes() {
            let pid = nix::unistd::Pid::from_raw(process.pid);
            // It may have ended since it was seen.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.sweep();
            return;
        }
        let left = || {
            let processes: Vec<Process> = self.processes().into_iter().chain(children()).collect();
            if processes.is_empty() { Ok(()) } else { Err(processes) }
        };
        // A process that was told to go is given the time that the kernel needs.
        wait_until(PATIENCE, "every process of the test to be gone", left);
        wait_until(PATIENCE, "descriptors and files as before the test", || {
            let now = countable();
            let new: Vec<&String> = now.difference(&self.before).collect();
            if new.is_empty() { Ok(()) } else { Err(format!("new: {new:?}")) }
        });
    }
}

/// Everything that is counted before and after: descriptors of this process, and croupier's names
/// among abstract sockets, shared memory and temporary files.
fn countable() -> BTreeSet<String> {
    let mut all: BTreeSet<String> = descriptors(std::process::id())
        .into_iter()
        .map(|(number, what)| format!("descriptor {number} {}", what.display()))
        .collect();
    for folder in [std::env::temp_dir(), "/dev/shm".into()] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("croupier") && !name.starts_with("croupier-test-") {
                all.insert(format!("file {name}"));
            }
        }
    }
    all
}
