//! Processes: starts workers, hears of their ends, finds and kills what they left behind.
//!
//! Owns no worker. Promises: a process number is used only while it is certain to be the process's
//! own, that is, until it is reaped; the primary is a child subreaper, so every orphan of a worker
//! becomes the primary's child and can be found.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use croupier_core::event::{ExitStatus, Generation};
use croupier_wire::message::CONTROL_VAR;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use procfs::process::Process as Proc;

use super::worker::{Process, Worker};
use crate::adapter::OWN_VARS;
use crate::sys::{
    ChildSetup, ERRNO_LEN, EndedChild, Program, fork_and_exec, next_ended_child, set_nonblocking,
};

/// Whether a process's main thread is runnable (on a CPU, or waiting for one), and what CPU time it
/// has had, in nanoseconds (proc(5), `stat` and `schedstat`). `None`: it is gone, or cannot be read.
pub(crate) fn cpu_of(pid: u32) -> Option<(bool, u64)> {
    let process = Proc::new(i32::try_from(pid).ok()?).ok()?;
    let runnable = process.stat().ok()?.state == 'R';
    Some((runnable, process.schedstat().ok()?.sum_exec_runtime))
}

/// The umask(2) of a process (proc(5), `status`). `None`: it is gone.
pub(crate) fn umask_of(pid: u32) -> Option<u32> {
    Proc::new(i32::try_from(pid).ok()?).ok()?.status().ok()?.umask
}

/// A child that was forked, of which is not known yet whether its program runs.
#[derive(Debug)]
pub(crate) struct Forked {
    /// What it is to execute, for messages.
    pub(crate) program: PathBuf,
    pub(crate) generation: Generation,
    /// Tells what came of it ([`fork_and_exec`]).
    report: PipeReader,
    /// Read ends of its output; `None` with `--raw-output`.
    pub(crate) output: Option<(OwnedFd, OwnedFd)>,
}

/// A pipe for what a child reports: the reader does not block.
///
/// # Errors
/// EMFILE and the like.
pub(crate) fn report_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    set_nonblocking(reader.as_fd())?;
    Ok((reader, writer))
}

/// What is to be started.
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) setup: ChildSetup,
    pub(crate) raw_output: bool,
    pub(crate) generation: Generation,
}

/// Starts a program in a process group of its own, stdin from /dev/null. Returns its number at once; what
/// came of it [`Forked::outcome`] says.
///
/// # Errors
/// fork(2)'s errno, EMFILE and the like; a word with a NUL in it.
pub(crate) fn start(
    start: Start,
    (report, writer): (PipeReader, PipeWriter),
) -> io::Result<(u32, Forked)> {
    let Start { program, arguments, environment, setup, raw_output, generation } = start;
    let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    variables.retain(|name, _| !OWN_VARS.iter().any(|own| name == own));
    variables.extend(environment);
    let pair = |(mut pair, value): (OsString, OsString)| {
        pair.push("=");
        pair.push(value);
        c_string(pair)
    };
    let (mut standard, mut ends) = ([const { None }; 3], None);
    standard[0] = Some(std::fs::File::open("/dev/null")?.into());
    if !raw_output {
        let (out_read, out_write) = io::pipe()?;
        let (err_read, err_write) = io::pipe()?;
        (standard[1], standard[2]) = (Some(out_write.into()), Some(err_write.into()));
        ends = Some((out_read.into(), err_read.into()));
    }
    let plan = Program {
        path: c_string(program.clone().into_os_string())?,
        arguments: arguments.into_iter().map(c_string).collect::<io::Result<_>>()?,
        environment: variables.into_iter().map(pair).collect::<io::Result<_>>()?,
        standard,
    };
    let pid = fork_and_exec(&plan, &setup, writer.as_fd())?;
    Ok((pid, Forked { program, generation, report, output: ends }))
}

impl Forked {
    /// Whether the program runs, or why not; `None`: the child has not come so far.
    pub(crate) fn outcome(&self) -> Option<io::Result<()>> {
        let mut errno = [0; ERRNO_LEN];
        match (&self.report).read(&mut errno) {
            Ok(ERRNO_LEN) => Some(Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            // Who reports nothing runs, or has ended: its end will be heard of.
            Ok(_) | Err(_) => Some(Ok(())),
        }
    }

    /// To be watched: readable once there is an outcome.
    pub(crate) fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }
}

fn c_string(word: OsString) -> io::Result<CString> {
    Ok(CString::new(word.into_vec())?)
}

/// A child of the primary that ended and is not reaped yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) pid: u32,
    pub(crate) status: ExitStatus,
}

/// The next child that ended, without reaping it: its number stays its own.
///
/// # Errors
/// The errno of waitid(2); ECHILD when there is no child at all.
pub(crate) fn next_ended() -> io::Result<Option<Ended>> {
    let Some(EndedChild { pid, how, status }) = next_ended_child()? else { return Ok(None) };
    let status = match how {
        libc::CLD_KILLED => ExitStatus::Signal(status),
        libc::CLD_DUMPED => ExitStatus::Dumped(status),
        // With WEXITED there is only one more.
        _ => ExitStatus::Code(status),
    };
    Ok(Some(Ended { pid, status }))
}

/// Takes an ended child off the process table.
pub(crate) fn reap(pid: u32) {
    loop {
        match waitpid(to_pid(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(_) => return,
            Err(Errno::EINTR) => {}
            Err(error) => {
                return log::debug!("process {pid} was reaped by somebody else: {error}");
            }
        }
    }
}

/// Sends `signal` to the worker's process group, if it is still certain to be its own.
pub(crate) fn signal_group(worker: &Worker, signal: Signal) {
    match worker.process {
        Process::Running | Process::Zombie(_) => match killpg(to_pid(worker.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => log::warn!("cannot send {signal} to worker {}: {error}", worker.id.0),
        },
        Process::Reaped(_) => {}
    }
}

/// Sends `signal` to the worker's main process alone.
pub(crate) fn signal_main(worker: &Worker, signal: Signal) {
    if worker.process == Process::Running
        && let Err(error) = kill(to_pid(worker.pid), signal)
    {
        log::warn!("cannot send {signal} to worker {}: {error}", worker.id.0);
    }
}

/// Whether a process of this number exists (kill(2) with signal 0).
pub(crate) fn exists(pid: u32) -> bool {
    kill(to_pid(pid), None) != Err(Errno::ESRCH)
}

/// Sends `signal` to a process whose number is certain to be its own.
pub(crate) fn send(pid: u32, signal: Signal) {
    match kill(to_pid(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => log::debug!("cannot send {signal} to process {pid}: {error}"),
    }
}

/// Processes that are looked at for anything but burying their family.
const FAMILY_SEEN_MAX: usize = 64;

/// What can be seen of a worker's family at a glance.
#[derive(Debug, Default)]
pub(crate) struct Family {
    /// Living processes, the main one not among them.
    pub(crate) pids: Vec<u32>,
    /// There are more than a glance shows.
    pub(crate) cut: bool,
}

/// The living processes of a worker, its main process not among them: everything below the main
/// process, and every child of the primary that carries the worker's token, is in its process group,
/// or claimed connections for it. The first [`FAMILY_SEEN_MAX`] of them.
pub(crate) fn family(worker: &Worker, mains: &[u32]) -> Family {
    let mut seen = Family::default();
    let mut looked_at = 0;
    let mut open = Vec::new();
    for child in own_children() {
        let is_main = child == worker.pid;
        if !is_main && mains.contains(&child) {
            continue;
        }
        looked_at += 1;
        if looked_at > FAMILY_SEEN_MAX {
            seen.cut = true;
            break;
        }
        if is_main || belongs(child, worker) {
            open.push(child);
            seen.pids.extend((!is_main).then_some(child));
        }
    }
    while let Some(pid) = open.pop() {
        looked_at += 1;
        if looked_at > FAMILY_SEEN_MAX {
            seen.cut = true;
            break;
        }
        for child in children_of(pid) {
            seen.pids.push(child);
            open.push(child);
        }
    }
    seen
}

/// Processes and descriptors of each that are looked through for the holder of a channel.
const HOLDERS_MAX: usize = 16;
/// See [`HOLDERS_MAX`].
const HELD_DESCRIPTORS_MAX: usize = 256;

/// Which of these sockets (a channel's number, its inode) nobody of the worker's family has open.
pub(crate) fn unheld(worker: &Worker, mains: &[u32], sockets: &[(u32, u64)]) -> Vec<u32> {
    let Family { mut pids, cut } = family(worker, mains);
    pids.push(worker.pid);
    // One that is not looked at may hold them.
    if cut || pids.len() > HOLDERS_MAX {
        return Vec::new();
    }
    let mut left = sockets.to_vec();
    for pid in pids {
        let fds = Proc::new(i32::try_from(pid).unwrap_or(0)).and_then(|process| process.fd());
        let Ok(fds) = fds else {
            // So may one that cannot be looked into, unless it has ended.
            if pid == worker.pid || exists(pid) {
                return Vec::new();
            }
            continue;
        };
        for (number, fd) in fds.enumerate() {
            if number >= HELD_DESCRIPTORS_MAX {
                return Vec::new();
            }
            if let Ok(procfs::process::FDTarget::Socket(found)) = fd.map(|fd| fd.target) {
                left.retain(|(_, inode)| *inode != found);
            }
        }
    }
    left.into_iter().map(|(number, _)| number).collect()
}

/// Children of the primary.
pub(crate) fn own_children() -> Vec<u32> {
    Proc::myself().map_or_else(|_| Vec::new(), |myself| children(&myself))
}

/// Children of a process.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let process = Proc::new(i32::try_from(pid).unwrap_or(0));
    process.map_or_else(|_| Vec::new(), |process| children(&process))
}

/// The children of all threads of a process.
fn children(process: &Proc) -> Vec<u32> {
    let Ok(tasks) = process.tasks() else { return Vec::new() };
    tasks.flatten().filter_map(|task| task.children().ok()).flatten().collect()
}

/// Whether a child of the primary, not a worker's main process, belongs to this worker.
pub(crate) fn belongs(pid: u32, worker: &Worker) -> bool {
    let Ok(process) = Proc::new(i32::try_from(pid).unwrap_or(0)) else { return false };
    let Ok(stat) = process.stat() else { return false };
    if stat.state == 'Z' {
        return false;
    }
    // A worker writes into its page what it likes: what another one's process carries says more.
    let listed = || worker.page.pids().any(|known| known == pid);
    u32::try_from(stat.pgrp) == Ok(worker.pid)
        || match token_in(&process) {
            Some(carried) => carried == hex(&worker.token),
            None => listed(),
        }
}

/// The digits of the token that a process was started with, if it still shows its environment.
pub(crate) fn carried_token(pid: u32) -> Option<String> {
    token_in(&Proc::new(i32::try_from(pid).ok().filter(|pid| *pid > 0)?).ok()?)
}

fn token_in(process: &Proc) -> Option<String> {
    let variables = process.environ().ok()?;
    let control = variables.get(&OsString::from(CONTROL_VAR))?.to_string_lossy();
    control.split_once('@').map(|(digits, _)| digits.to_owned())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_pid(pid: u32) -> Pid {
    // 0 and negative numbers mean groups to kill(2); a worker never has one.
    Pid::from_raw(i32::try_from(pid).ok().filter(|pid| *pid > 1).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::wait_for;
    use std::io::Write;

    fn begin(program: &str, arguments: &[&str], inherit: Vec<i32>) -> io::Result<(u32, Forked)> {
        let setup = ChildSetup {
            nofile: libc::rlimit { rlim_cur: 256, rlim_max: 1024 },
            ids: None,
            death_signal: None,
            inherit,
            umask: None,
            folder: None,
        };
        let start = Start {
            program: program.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            environment: vec![("GREETING".into(), "good day".into())],
            setup,
            raw_output: false,
            generation: Generation(1),
        };
        super::start(start, report_pipe()?)
    }

    fn output(forked: Forked) -> String {
        let (out, _) = forked.output.unwrap();
        io::read_to_string(std::fs::File::from(out)).unwrap()
    }

    #[test]
    fn a_child_reports_why_its_program_does_not_run_and_ends() {
        let (pid, forked) = begin("/nonexistent/program", &["program"], Vec::new()).unwrap();
        let outcome = wait_for("the outcome", || forked.outcome());
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let ended = waitpid(to_pid(pid), None).unwrap();
        assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(to_pid(pid), 127));
    }

    #[test]
    fn a_program_runs_with_its_environment_and_nothing_of_the_primarys() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"through 3").unwrap();
        drop(writer);
        let script = "echo $GREETING; cat <&3; echo; ls /proc/$$/fd; ulimit -n; \
                      grep -E 'Sig(Blk|Ign)' /proc/$$/status; cut -d' ' -f5 /proc/$$/stat";
        let inherit = vec![std::os::fd::AsRawFd::as_raw_fd(&reader)];
        let (pid, forked) = begin("/bin/sh", &["sh", "-c", script], inherit).unwrap();
        assert!(wait_for("the outcome", || forked.outcome()).is_ok());
        let text = output(forked);
        assert!(waitpid(to_pid(pid), None).is_ok());
        assert!(text.starts_with("good day\nthrough 3\n0\n1\n2\n3\n256\n"), "{text}");
        let mask = |name: &str| {
            let digits = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(digits.trim(), 16).unwrap()
        };
        // This process ignores PIPE, as all of Rust; 32 and 33 are libc's own.
        assert_eq!((mask("SigBlk:"), mask("SigIgn:") & 0x7fff_ffff), (0, 0), "{text}");
        assert!(text.trim_end().ends_with(&pid.to_string()), "a process group of its own: {text}");
    }

    #[test]
    fn a_word_that_no_program_could_get_is_refused() {
        let error = begin("/bin/true", &["true", "a\0b"], Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
