//! Processes: starts workers, hears of their ends, finds and kills what they left behind.
//!
//! Owns no worker. Promises: a process number is used only while it is certain to be the process's
//! own, that is, until it is reaped; the primary is a child subreaper, so every orphan of a worker
//! becomes the primary's child and can be found.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use croupier_core::event::ExitStatus;
use croupier_wire::message::CONTROL_VAR;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use procfs::process::Process as Proc;

use super::worker::{Process, Worker};
use crate::adapter::OWN_VARS;
use crate::sys::{ChildSetup, prepare_child};

/// Whether a process's main thread is runnable (on a CPU, or waiting for one), and what CPU time it
/// has had, in nanoseconds (proc(5), `stat` and `schedstat`). `None`: it is gone, or cannot be read.
pub(crate) fn cpu_of(pid: u32) -> Option<(bool, u64)> {
    let process = Proc::new(i32::try_from(pid).ok()?).ok()?;
    let runnable = process.stat().ok()?.state == 'R';
    Some((runnable, process.schedstat().ok()?.sum_exec_runtime))
}

/// A started process.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: u32,
    /// Read ends of its output; `None` with `--raw-output`.
    pub(crate) output: Option<(OwnedFd, OwnedFd)>,
}

/// Starts `program` in a process group of its own, stdin from /dev/null.
///
/// # Errors
/// fork(2)'s or execve(2)'s errno.
pub(crate) fn start(
    program: &PathBuf,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
    setup: ChildSetup,
    raw_output: bool,
) -> io::Result<Started> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).args(rest);
    }
    for name in OWN_VARS {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null());
    let mut ends = None;
    if !raw_output {
        let (out_read, out_write) = io::pipe()?;
        let (err_read, err_write) = io::pipe()?;
        command.stdout(out_write).stderr(err_write);
        ends = Some((out_read.into(), err_read.into()));
    }
    prepare_child(&mut command, setup);
    let child = command.spawn()?;
    Ok(Started { pid: child.id(), output: ends })
}

/// A child of the primary that ended and is not reaped yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) pid: u32,
    pub(crate) status: ExitStatus,
}

/// The next child that ended, without reaping it: its number stays its own.
pub(crate) fn next_ended() -> Option<Ended> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let (pid, status) = match waitid(Id::All, flags) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _core)) => {
                (pid, ExitStatus::Signal(signal as i32))
            }
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => return None,
        };
        return Some(Ended { pid: u32::try_from(pid.as_raw()).unwrap_or(0), status });
    }
}

/// Takes an ended child off the process table.
pub(crate) fn reap(pid: u32) {
    if let Err(error) = waitpid(to_pid(pid), Some(WaitPidFlag::WNOHANG)) {
        log::debug!("process {pid} was reaped by somebody else: {error}");
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

/// KILLs the worker's process group, its descendants and its orphans, and returns how many
/// processes beside the main one were found. To be called again until it returns 0: what a killed
/// process had started becomes the primary's child only then.
pub(crate) fn kill_family(worker: &Worker, mains: &[u32]) -> usize {
    // Descendants are read before anything dies: their parents' deaths would hide them.
    let found = family(worker, mains);
    signal_group(worker, Signal::SIGKILL);
    for pid in &found {
        if let Err(error) = kill(to_pid(*pid), Signal::SIGKILL)
            && error != Errno::ESRCH
        {
            log::debug!("cannot kill process {pid} of worker {}: {error}", worker.id.0);
        }
    }
    found.len()
}

/// The living processes of a worker, its main process not among them: everything below the main
/// process, and every child of the primary that carries the worker's token, is in its process group,
/// or claimed connections for it.
pub(crate) fn family(worker: &Worker, mains: &[u32]) -> Vec<u32> {
    let mut found = Vec::new();
    let Ok(myself) = Proc::myself() else { return found };
    for child in children(&myself) {
        let is_main = child == worker.pid;
        if !is_main && (mains.contains(&child) || !belongs(child, worker)) {
            continue;
        }
        if !is_main {
            found.push(child);
        }
        descend(child, &mut found);
    }
    found
}

/// Whether the worker's main process or one of its family has the socket with this inode open.
pub(crate) fn family_holds(worker: &Worker, mains: &[u32], inode: u64) -> bool {
    let mut pids = family(worker, mains);
    pids.push(worker.pid);
    pids.into_iter().any(|pid| {
        let fds = Proc::new(i32::try_from(pid).unwrap_or(0)).and_then(|process| process.fd());
        let is_it = |fd: &procfs::process::FDInfo| {
            matches!(fd.target, procfs::process::FDTarget::Socket(found) if found == inode)
        };
        // One that cannot be looked into may hold it.
        fds.map_or(pid == worker.pid, |fds| fds.flatten().any(|fd| is_it(&fd)))
    })
}

/// Processes of one worker that are looked for below one another; deeper ones surface when their
/// parents have died.
const DEPTH_MAX: usize = 4096;

/// Adds everything below a process.
pub(crate) fn descend(root: u32, found: &mut Vec<u32>) {
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        let Ok(process) = Proc::new(i32::try_from(pid).unwrap_or(0)) else { continue };
        for child in children(&process) {
            if found.len() < DEPTH_MAX {
                found.push(child);
                open.push(child);
            }
        }
    }
}

/// The children of all threads of a process.
pub(crate) fn children(process: &Proc) -> Vec<u32> {
    let Ok(tasks) = process.tasks() else { return Vec::new() };
    tasks.flatten().filter_map(|task| task.children().ok()).flatten().collect()
}

fn belongs(pid: u32, worker: &Worker) -> bool {
    let Ok(process) = Proc::new(i32::try_from(pid).unwrap_or(0)) else { return false };
    let Ok(stat) = process.stat() else { return false };
    if stat.state == 'Z' {
        return false;
    }
    if u32::try_from(stat.pgrp) == Ok(worker.pid) || worker.page.pids().any(|known| known == pid) {
        return true;
    }
    let token = hex(&worker.token);
    process.environ().is_ok_and(|variables| {
        let control = variables.get(&OsString::from(CONTROL_VAR));
        control.is_some_and(|value| value.to_string_lossy().starts_with(&token))
    })
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_pid(pid: u32) -> Pid {
    // 0 and negative numbers mean groups to kill(2); a worker never has one.
    Pid::from_raw(i32::try_from(pid).ok().filter(|pid| *pid > 1).unwrap_or(i32::MAX))
}
