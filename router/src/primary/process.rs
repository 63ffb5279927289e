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
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use procfs::process::Process as Proc;

use super::worker::{Process, Worker};
use crate::adapter::OWN_VARS;
use crate::sys::{ChildSetup, EndedChild, next_ended_child, prepare_child};

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
