//! Processes: started so that they cannot outlive the harness, and what /proc says of them.
//!
//! Owns: children, families, CPU time and memory. Promises: every child has a session of its own (so
//! that an interrupt at the terminal reaches only the harness, and the kernel's grouping of sessions
//! treats each the same) and gets TERM when the thread that started it is gone; only processes that
//! were started here are ended, by their pid and start time. Never does: guess what it cannot read.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

/// How long a child may take to end when it is told to.
const STOP: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(2);

/// A process could not be started or did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Not there.
    #[error("{0} is not installed: make bench-deps installs what is compared with")]
    NotInstalled(String),
    /// The system refused.
    #[error("{program}: {error}")]
    Io {
        /// Which.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// It ended badly.
    #[error("{program}: {how}: {said}")]
    Failed {
        /// Which.
        program: String,
        /// Its exit status.
        how: String,
        /// The end of what it said.
        said: String,
    },
}

/// A child that is ended, with all of its family that is known, when this is dropped.
#[derive(Debug)]
pub struct Guarded {
    program: String,
    child: Child,
    /// Processes that came of it, with their start times.
    family: BTreeSet<(i32, u64)>,
}

impl Guarded {
    /// Starts a program with its output into `log`.
    ///
    /// # Errors
    /// If it is not there, or the system refuses.
    pub fn logged(
        command: &Command,
        cpus: &[u32],
        input: Stdio,
        log: &File,
    ) -> Result<Self, ProcessError> {
        let program = name_of(command);
        let again = || log.try_clone().map_err(|error| io_error(&program, error));
        let mut wrapped = wrap(command, cpus)?;
        wrapped.stdin(input).stdout(again()?).stderr(again()?);
        Self::spawn(program, &mut wrapped)
    }

    /// Starts a program whose output is read at its end.
    ///
    /// # Errors
    /// If it is not there, or the system refuses.
    pub fn piped(command: &Command, cpus: &[u32]) -> Result<Self, ProcessError> {
        let mut wrapped = wrap(command, cpus)?;
        wrapped.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::spawn(name_of(command), &mut wrapped)
    }

    fn spawn(program: String, command: &mut Command) -> Result<Self, ProcessError> {
        let child = command.spawn().map_err(|error| io_error(&program, error))?;
        Ok(Self { program, child, family: BTreeSet::new() })
    }

    /// Its pid: the wrappers before it have become it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If that cannot be asked.
    pub fn ended(&mut self) -> Result<Option<String>, ProcessError> {
        let status = self.child.try_wait().map_err(|error| io_error(&self.program, error))?;
        Ok(status.map(|status| match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "gone".to_owned(),
        }))
    }

    /// Remembers its descendants as they are now, to be looked for at the end; gives their pids and its own.
    pub fn look_at_family(&mut self) -> Vec<u32> {
        let family = family_of(self.pid());
        self.family.extend(family.iter().filter_map(|pid| Some((signed(*pid)?, started(*pid)?))));
        family
    }

    /// What it said on its standard output, once it has ended well.
    ///
    /// # Errors
    /// If it ended otherwise.
    pub fn output(mut self) -> Result<String, ProcessError> {
        let mut text = String::new();
        let mut said = String::new();
        let read = |from: &mut dyn Read, to: &mut String| from.read_to_string(to).map(drop);
        let out = self.child.stdout.take();
        let err = self.child.stderr.take();
        // Programs run this way say little on their standard error: less than a pipe holds.
        let done = out.map_or(Ok(()), |mut out| read(&mut out, &mut text));
        done.and_then(|()| err.map_or(Ok(()), |mut err| read(&mut err, &mut said)))
            .map_err(|error| io_error(&self.program, error))?;
        let status = self.child.wait().map_err(|error| io_error(&self.program, error))?;
        if status.success() {
            return Ok(text);
        }
        let (program, how) = (self.program.clone(), status.to_string());
        Err(ProcessError::Failed { program, how, said: format!("{said}{text}") })
    }

    /// TERM, then, if it takes too long, KILL; then KILL to what is left of its family.
    pub fn stop(&mut self) {
        self.look_at_family();
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            let deadline = Instant::now() + STOP;
            while matches!(self.child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    // It may have ended between these lines.
                    self.child.kill().ok();
                    self.child.wait().ok();
                    break;
                }
                thread::sleep(LOOK);
            }
        }
        for (pid, start) in std::mem::take(&mut self.family) {
            let same = u32::try_from(pid).ok().and_then(started) == Some(start);
            if same && u32::try_from(pid).ok() != Some(self.pid()) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }

    /// Sends it a signal; it may be gone.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = signed(self.pid()) {
            kill(Pid::from_raw(pid), signal).ok();
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stop();
    }
}

fn signed(pid: u32) -> Option<i32> {
    i32::try_from(pid).ok()
}

fn io_error(program: &str, error: io::Error) -> ProcessError {
    ProcessError::Io { program: program.to_owned(), error }
}

fn name_of(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or_else(|| command.get_program()).to_string_lossy().into_owned()
}

/// Puts before it what gives it its CPUs, a session, and an end with this thread: each of these replaces
/// itself by the next, so the pid stays.
fn wrap(command: &Command, cpus: &[u32]) -> Result<Command, ProcessError> {
    let program =
        find(command.get_program()).ok_or_else(|| ProcessError::NotInstalled(name_of(command)))?;
    let mut words: Vec<OsString> =
        ["setpriv", "--pdeathsig", "TERM", "setsid"].map(OsString::from).to_vec();
    if !cpus.is_empty() {
        let list: Vec<String> = cpus.iter().map(u32::to_string).collect();
        words.extend(["taskset", "-c", &list.join(",")].map(OsString::from));
    }
    words.push(program);
    let mut words = words.into_iter();
    let mut wrapped = Command::new(words.next().unwrap_or_default());
    wrapped.args(words).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    Ok(wrapped)
}

/// A program by its path, or by its name in PATH and where Debian puts servers.
#[must_use]
pub fn find(program: &std::ffi::OsStr) -> Option<OsString> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.exists().then(|| program.to_owned());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain([Path::new("/usr/sbin").to_owned(), Path::new("/usr/local/sbin").to_owned()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .map(std::path::PathBuf::into_os_string)
}

/// When a process started, in ticks since the machine did: with the pid, its identity.
fn started(pid: u32) -> Option<u64> {
    Some(Process::new(signed(pid)?).ok()?.stat().ok()?.starttime)
}

/// A process and its descendants, as they are now.
#[must_use]
pub fn family_of(root: u32) -> Vec<u32> {
    let Ok(all) = procfs::process::all_processes() else { return vec![root] };
    let parents: Vec<(u32, u32)> = all
        .filter_map(|process| {
            let stat = process.ok()?.stat().ok()?;
            Some((u32::try_from(stat.pid).ok()?, u32::try_from(stat.ppid).ok()?))
        })
        .collect();
    let mut found = vec![root];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, ppid)| *ppid == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

/// CPU time of one process, all threads that it has now, from schedstat: to the nanosecond, where utime
/// counts ticks. 0 of one that is gone.
#[must_use]
pub fn cpu_ns(pid: u32) -> u64 {
    let tasks = signed(pid).and_then(|pid| Process::new(pid).ok()?.tasks().ok());
    tasks.map_or(0, |tasks| {
        tasks.filter_map(|task| Some(task.ok()?.schedstat().ok()?.sum_exec_runtime)).sum()
    })
}

/// CPU time of a process' main thread alone.
#[must_use]
pub fn main_thread_cpu_ns(pid: u32) -> u64 {
    let schedstat = signed(pid).and_then(|pid| Process::new(pid).ok()?.schedstat().ok());
    schedstat.map_or(0, |schedstat| schedstat.sum_exec_runtime)
}

/// How often the main thread of a process went to sleep.
#[must_use]
pub fn sleeps(pid: u32) -> u64 {
    let status = signed(pid).and_then(|pid| Process::new(pid).ok()?.status().ok());
    status.and_then(|status| status.voluntary_ctxt_switches).unwrap_or(0)
}

/// Resident memory of a process, in bytes; 0 of one that is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = signed(pid).and_then(|pid| Process::new(pid).ok()?.status().ok());
    status.and_then(|status| status.vmrss).unwrap_or(0) * 1024
}

/// CPU time of the calling thread.
///
/// # Errors
/// If the clock cannot be read.
pub fn thread_cpu_ns() -> io::Result<u64> {
    use nix::time::{ClockId, clock_gettime};
    let time = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// CPU time of this process and of its children that have ended.
///
/// # Errors
/// If it cannot be asked.
pub fn own_cpu() -> io::Result<(Duration, Duration)> {
    let of = |who| -> io::Result<Duration> {
        let usage = getrusage(who)?;
        let micros = |time: nix::sys::time::TimeVal| {
            use nix::sys::time::TimeValLike;
            Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0))
        };
        Ok(micros(usage.user_time()) + micros(usage.system_time()))
    };
    Ok((of(UsageWho::RUSAGE_SELF)?, of(UsageWho::RUSAGE_CHILDREN)?))
}

/// The whole machine's CPUs at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// How many are there, also those that this process may not use.
    pub cpus: u32,
    /// How long they have been idle, all together. Not "busy": that is counted by sampling at ticks, so work
    /// that keeps step with them counts many times or never; the length of a sleep is measured.
    pub idle: Duration,
}

impl Machine {
    /// Looks.
    ///
    /// # Errors
    /// If /proc/stat cannot be read.
    pub fn look() -> io::Result<Self> {
        use procfs::CurrentSI;
        let stats = procfs::KernelStats::current().map_err(io::Error::other)?;
        let ticks = stats.total.idle + stats.total.iowait.unwrap_or(0);
        Ok(Self {
            cpus: u32::try_from(stats.cpu_time.len()).unwrap_or(u32::MAX),
            idle: Duration::from_millis(ticks * 1000 / procfs::ticks_per_second()),
        })
    }

    /// The share of the machine that was used since an earlier look, `wall` ago, by others than who used
    /// `ours`.
    #[must_use]
    pub fn foreign_share(&self, before: &Self, wall: Duration, ours: Duration) -> f64 {
        let all = wall * self.cpus;
        let idle = self.idle.saturating_sub(before.idle);
        let foreign = all.saturating_sub(idle).saturating_sub(ours);
        if all.is_zero() { 0.0 } else { foreign.as_secs_f64() / all.as_secs_f64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_a_session_and_ends_with_its_guard() {
        let log = tempfile::tempfile().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & wait"]);
        let mut child = Guarded::logged(&command, &[], Stdio::null(), &log).unwrap();
        let pid = child.pid();
        let deadline = Instant::now() + Duration::from_secs(10);
        while child.look_at_family().len() < 2 {
            assert!(Instant::now() < deadline, "sh starts sleep");
            thread::yield_now();
        }
        let stat = Process::new(signed(pid).unwrap()).unwrap().stat().unwrap();
        assert_eq!(stat.session, signed(pid).unwrap());
        let family: Vec<u32> = child.look_at_family();
        drop(child);
        let gone = |pid: &u32| {
            let process = Process::new(signed(*pid).unwrap()).and_then(|p| p.stat());
            process.map_or(true, |stat| stat.state == 'Z')
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !family.iter().all(gone) {
            assert!(Instant::now() < deadline, "{family:?} are gone");
            thread::yield_now();
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let command = Command::new("croupier-has-no-such-program");
        let error = Guarded::piped(&command, &[]).unwrap_err();
        assert!(error.to_string().starts_with("croupier-has-no-such-program is not installed"));
    }

    #[test]
    fn a_failure_brings_its_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo oh; exit 3"]);
        let error = Guarded::piped(&command, &[]).unwrap().output().unwrap_err();
        assert!(error.to_string().contains("exit status: 3: oh"), "{error}");
    }

    #[test]
    fn what_is_neither_idle_nor_ours_is_foreign() {
        let seconds = Duration::from_secs;
        let before = Machine { cpus: 4, idle: seconds(100) };
        // Ten seconds of four CPUs: 30 s idle, 6 s ours.
        let after = Machine { cpus: 4, idle: seconds(130) };
        let share = after.foreign_share(&before, seconds(10), seconds(6));
        assert!((share - 0.1).abs() < 1e-9, "{share}");
        assert!(after.foreign_share(&before, seconds(10), seconds(11)).abs() < 1e-9, "never below");
        assert!(after.foreign_share(&before, Duration::ZERO, seconds(1)).abs() < 1e-9);
    }

    #[test]
    fn a_machine_idles_no_longer_than_it_has_cpus() {
        let (before, began) = (Machine::look().unwrap(), Instant::now());
        let own = thread_cpu_ns().unwrap();
        while thread_cpu_ns().unwrap() < own + 100_000_000 {}
        let (after, wall) = (Machine::look().unwrap(), began.elapsed());
        // To two ticks of each CPU.
        let room = Duration::from_millis(20) * (after.cpus + 1);
        assert!(after.idle >= before.idle);
        let most = wall * (after.cpus - 1) + room;
        assert!(after.idle - before.idle <= most, "{before:?} {after:?} {wall:?}");
    }

    #[test]
    fn cpu_time_is_of_this_thread() {
        let before = thread_cpu_ns().unwrap();
        let mut sum = 0_u64;
        while thread_cpu_ns().unwrap() < before + 2_000_000 {
            sum = sum.wrapping_add(1);
        }
        assert!(sum > 0 && cpu_ns(std::process::id()) >= 2_000_000);
    }
}
