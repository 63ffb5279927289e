//! A running `croupier`, and what its `status --json` says.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::lines::Lines;
use crate::{Guard, PATIENCE, croupier, now, wait_until};

/// Lines of output that a failed test shows.
const SHOWN_MAX: usize = 80;

/// `croupier status --json`; null is `None`.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the README's table of the status says what each means")]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub struct Status {
    pub schema: u32,
    pub pid: i32,
    pub name: String,
    pub version: String,
    pub policy: String,
    pub uptime_s: f64,
    pub slots: usize,
    pub paused: bool,
    pub stopping: bool,
    pub listeners: Vec<ListenerStatus>,
    pub workers: Vec<WorkerStatus>,
    pub advice: Vec<Advice>,
    pub totals: Totals,
}

/// A piece of advice.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the README's table of the status says what each means")]
pub struct Advice {
    pub about: String,
    pub text: String,
}

/// One listener.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the README's table of the status says what each means")]
pub struct ListenerStatus {
    pub address: String,
    pub policy: String,
    pub accepted: u64,
    pub backlog: Option<u64>,
    pub queue_depth: Option<u64>,
}

/// One worker.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the README's table of the status says what each means")]
pub struct WorkerStatus {
    pub slot: u16,
    pub id: Option<u32>,
    pub generation: Option<u32>,
    pub pid: Option<i32>,
    pub state: String,
    pub handed_off: Option<u64>,
    pub claimed: Option<u64>,
    pub closed: Option<u64>,
    pub queued: Option<u64>,
    pub active: Option<u64>,
    pub window: Option<u64>,
    pub paused: bool,
    pub late: Option<bool>,
    pub recycle: Option<String>,
    pub restarts: Option<u64>,
    pub last_exit: Option<String>,
    pub uptime_s: Option<f64>,
    pub rss_bytes: Option<u64>,
    pub queued_p50_us: Option<f64>,
    pub queued_p99_us: Option<f64>,
}

/// Sums over the primary's life.
#[derive(Debug, Clone, Copy, Deserialize)]
#[expect(missing_docs, reason = "the README's table of the status says what each means")]
pub struct Totals {
    pub accepted: u64,
    pub handed_off: u64,
    pub salvaged: u64,
    pub stolen: u64,
    pub refused: u64,
    pub shed: u64,
    pub waits: u64,
    pub messages_dropped: u64,
    pub lines_dropped: u64,
    pub longest_turn_us: u64,
    pub longest_wait_us: u64,
    pub hung: u64,
    pub recycled: u64,
}

impl Status {
    /// The ready workers.
    pub fn ready(&self) -> impl Iterator<Item = &WorkerStatus> {
        self.workers.iter().filter(|worker| worker.state == "ready")
    }

    /// The worker of a slot that is ready.
    #[must_use]
    pub fn slot(&self, slot: u16) -> Option<&WorkerStatus> {
        self.ready().find(|worker| worker.slot == slot)
    }

    /// Connections handed off, by slot.
    #[must_use]
    pub fn dealt(&self) -> BTreeMap<u16, u64> {
        let mut dealt = BTreeMap::new();
        for worker in &self.workers {
            *dealt.entry(worker.slot).or_default() += worker.handed_off.unwrap_or(0);
        }
        dealt
    }

    /// Queued and active connections of all workers.
    #[must_use]
    pub fn open(&self) -> (u64, u64) {
        let sum = |of: fn(&WorkerStatus) -> Option<u64>| self.workers.iter().filter_map(of).sum();
        (sum(|worker| worker.queued), sum(|worker| worker.active))
    }
}

/// A process that has ended, and all it printed.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its output.
    pub stdout: String,
    /// Its error output.
    pub stderr: String,
}

impl Finished {
    /// Fails unless it ended with this status.
    ///
    /// # Panics
    /// With all that it printed.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "exit status; {self:#?}");
        self
    }

    /// Fails unless the error output contains every part.
    ///
    /// # Panics
    /// With all that it printed.
    #[track_caller]
    pub fn expect_error(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.stderr.contains(part), "stderr lacks {part:?}; {self:#?}");
        }
        self
    }
}

/// A started `croupier`. Dropped while it runs, it and its family are killed, by id.
#[derive(Debug)]
pub struct Croupier<'guard> {
    guard: &'guard Guard,
    child: Child,
    name: String,
    stdout: Lines,
    stderr: Lines,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl<'guard> Croupier<'guard> {
    pub(crate) fn start(mut command: Command, name: String, guard: &'guard Guard) -> Self {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, stderr) = (Lines::default(), Lines::default());
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|pipe| stdout.follow(pipe)));
        readers.extend(child.stderr.take().map(|pipe| stderr.follow(pipe)));
        Self { guard, child, name, stdout, stderr, readers, ended: None }
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits an i32")
    }

    /// Its name on the control socket.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it printed on stdout so far.
    #[must_use]
    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    /// What it printed on stderr so far.
    #[must_use]
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// Waits for a line on stdout or stderr.
    ///
    /// # Panics
    /// When it does not come.
    #[track_caller]
    pub fn wait_for_line(&self, part: &str) -> String {
        wait_until(PATIENCE, &format!("a line with {part:?}"), || {
            [&self.stdout, &self.stderr]
                .into_iter()
                .find_map(|lines| lines.wait_for(part, Duration::from_millis(5)))
                .ok_or_else(|| self.shown())
        })
    }

    /// Waits until every slot is ready, by `croupier wait ready`.
    ///
    /// # Panics
    /// When it ends first, or does not become ready.
    #[track_caller]
    pub fn ready(mut self) -> Self {
        wait_until(PATIENCE * 2, "croupier wait ready", || {
            if let Some(status) = self.exited() {
                panic!("the primary ended with {status:?} before it was ready:\n{}", self.shown());
            }
            let waited = self.ask(&["wait", "ready", "--timeout", "30s"]);
            if waited.code == Some(0) { Ok(()) } else { Err((waited.code, waited.stderr)) }
        });
        self
    }

    /// Runs another `croupier` subcommand against this one.
    #[must_use]
    pub fn ask(&self, args: &[&str]) -> Finished {
        let mut command = self.guard.command(croupier());
        command.args(args).args(["-n", &self.name]);
        self.guard.finish(command)
    }

    /// `croupier status --json`, read.
    ///
    /// # Panics
    /// When there is none, or it is not what the README says.
    #[track_caller]
    pub fn status(&self) -> Status {
        let answer = self.ask(&["status", "--json"]);
        answer.expect_code(0);
        serde_json::from_str(&answer.stdout)
            .unwrap_or_else(|error| panic!("status --json: {error}: {}", answer.stdout))
    }

    /// Waits until the status satisfies `look`.
    ///
    /// # Panics
    /// When it never does; the message has the last status.
    #[track_caller]
    pub fn wait_status<T>(&self, what: &str, look: impl Fn(&Status) -> Option<T>) -> T {
        wait_until(PATIENCE, what, || {
            let status = self.status();
            look(&status).ok_or_else(|| Box::new(status))
        })
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// TERM, and waits for the end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop(self) -> Finished {
        self.signal(Signal::SIGTERM);
        self.finished(PATIENCE)
    }

    /// TERM, and fails unless it ends with status 0.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn stop_well(self) {
        self.stop().expect_code(0);
    }

    /// Whether it has ended, and how.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn finished(mut self, patience: Duration) -> Finished {
        let status = wait_until(patience, "the process to end", || {
            self.exited().ok_or_else(|| self.shown())
        });
        // Whoever else holds the pipes is a leak, which the guard reports: do not hang on it here.
        wait_until(patience, "the end of its output", || {
            let open = self.readers.iter().any(|reader| !reader.is_finished());
            if open { Err(self.guard.processes()) } else { Ok(()) }
        });
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }

    /// Waits for the end of the process alone, whoever else may still hold its output; returns when
    /// it was seen.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn finished_alone(mut self) -> std::time::Instant {
        wait_until(PATIENCE, "the process to end", || self.exited().ok_or("still running"));
        now()
    }

    fn shown(&self) -> String {
        let tail = |lines: &Lines| {
            let all = lines.all();
            all.get(all.len().saturating_sub(SHOWN_MAX)..).unwrap_or(&[]).join("\n")
        };
        format!("--- stdout\n{}\n--- stderr\n{}", tail(&self.stdout), tail(&self.stderr))
    }
}

impl Drop for Croupier<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.shown());
        }
        if self.exited().is_none() {
            // Ending it here is the failure path of a test: nothing more can be learned from errors.
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if std::thread::panicking() {
            self.guard.sweep();
        }
        for reader in self.readers.drain(..) {
            if reader.is_finished() {
                drop(reader.join());
            }
        }
    }
}
