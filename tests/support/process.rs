//! Processes, as /proc shows them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{PATIENCE, wait_until};

/// A process that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line, words separated by blanks.
    pub command: String,
    /// State letter of /proc/PID/stat: R, S, D, T, Z, …
    pub state: char,
}

/// All living processes whose environment contains the variable assignment `mark`.
#[must_use]
pub fn marked(mark: &str) -> Vec<Process> {
    pids()
        .filter_map(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable.starts_with(mark.as_bytes()))
                .then(|| describe(pid))?
        })
        .filter(|process| process.state != 'Z')
        .collect()
}

/// Direct children of this process, zombies included.
pub(crate) fn children() -> Vec<Process> {
    let own = i32::try_from(std::process::id()).expect("a pid fits an i32");
    pids().filter(|pid| parent_of(*pid) == Some(own)).filter_map(describe).collect()
}

/// The parent of a process.
#[must_use]
pub fn parent_of(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The state letter of a process; `None` when there is no such process.
#[must_use]
pub fn state_of(pid: i32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// The direct children of a process.
#[must_use]
pub fn children_of(pid: i32) -> Vec<i32> {
    pids().filter(|child| parent_of(*child) == Some(pid)).collect()
}

/// One line of /proc/PID/status, without its name and blanks.
#[must_use]
pub fn line_of_status(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// One field of /proc/PID/status, such as `VmRSS` or `voluntary_ctxt_switches`: its first number.
#[must_use]
pub fn field_of_status(pid: i32, name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Sends SIGSTOP and returns when the process has stopped: until then it may still take a connection.
///
/// # Panics
/// When it does not stop.
#[track_caller]
pub fn stop_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    wait_until(PATIENCE, "a process to stop", || match state_of(pid) {
        Some('T') => Ok(()),
        other => Err(other),
    });
}

/// Times that the threads of a process went to sleep by themselves or were put aside: 0 over a time
/// in which it did not run.
#[must_use]
pub fn wake_ups(pid: i32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok())
        .flat_map(|status| {
            let switches = |line: &str| line.split_once("ctxt_switches:")?.1.trim().parse().ok();
            status.lines().filter_map(switches).collect::<Vec<u64>>()
        })
        .sum()
}

/// Processor time that a process has used, all threads together.
#[must_use]
pub fn cpu_time(pid: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Duration::from_nanos(nanos)
}

/// The open descriptors of a process and what each is.
#[must_use]
pub fn descriptors(pid: u32) -> BTreeMap<i32, PathBuf> {
    let folder = format!("/proc/{pid}/fd");
    let Ok(entries) = fs::read_dir(&folder) else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            // The descriptor that lists the folder is not one that was there before.
            (!target.ends_with("fd")).then_some((number, target))
        })
        .collect()
}

/// The fields of /proc/PID/stat after the command's name, state first.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain blanks and parentheses: the last one ends it.
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn describe(pid: i32) -> Option<Process> {
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
    Some(Process { pid, command, state: state_of(pid)? })
}

fn pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
