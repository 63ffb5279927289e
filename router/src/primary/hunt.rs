//! The hunt for a family: every process of a worker is found, stopped, and when all stand still, killed.
//!
//! Owns what is known of a family that is being killed ([`Burial`]). Promises: a turn of the loop looks
//! at [`LOOKED_AT_PER_TURN_MAX`] processes at most, however many there are (each costs some 50 µs of
//! /proc); nobody starts another process, or reaps one, behind the hunt's back, because a process is
//! stopped before its children are read; a number is killed only while it is certain to be the
//! process's own, for its parent is stopped, or is the primary, which says what it reaps.
//! Never does: forget whoever was found once before it has ended.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;

use super::process;
use super::worker::{Process, Worker};

/// Processes that are looked at in one turn of the loop.
pub(crate) const LOOKED_AT_PER_TURN_MAX: usize = 16;
/// Processes of one family that are remembered; others surface when their parents have died.
const MEMBERS_MAX: usize = 4096;

/// A family that is being killed.
#[derive(Debug)]
pub(crate) struct Burial {
    /// When it began (nanoseconds, monotonic).
    pub(crate) since: u64,
    /// Found, and not seen to end yet; the main process is not among them.
    members: BTreeSet<u32>,
    /// What is still to be looked at.
    walk: Option<Walk>,
}

/// One way through the family.
#[derive(Debug)]
struct Walk {
    /// Children of the primary that may belong to it.
    roots: Vec<u32>,
    /// Members whose children are not known yet.
    open: Vec<u32>,
    /// Processes found beside the main one.
    found: usize,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Everybody was found and sent KILL: so many beside the main process.
    Killed(usize),
    /// There are more: another turn.
    Unfinished,
}

impl Burial {
    pub(crate) const fn new(since: u64) -> Self {
        Self { since, members: BTreeSet::new(), walk: None }
    }

    /// The number is nobody's now.
    pub(crate) fn reaped(&mut self, pid: u32) {
        self.members.remove(&pid);
    }

    fn go_on(&mut self, worker: &Worker, mains: &[u32], budget: &mut usize) -> Progress {
        let mut walk = self.walk.take().unwrap_or_else(|| Walk::begin(worker, mains));
        while *budget > 0 {
            if let Some(pid) = walk.open.pop() {
                *budget -= 1;
                process::send(pid, Signal::SIGSTOP);
                for child in process::children_of(pid) {
                    walk.found += 1;
                    if self.members.len() < MEMBERS_MAX && self.members.insert(child) {
                        walk.open.push(child);
                    }
                }
            } else if let Some(root) = walk.roots.pop() {
                if is_main(root, worker) {
                    walk.open.push(root);
                    continue;
                }
                *budget -= 1;
                if process::belongs(root, worker) {
                    walk.found += 1;
                    self.members.insert(root);
                    walk.open.push(root);
                }
            } else {
                process::signal_group(worker, Signal::SIGKILL);
                for pid in &self.members {
                    process::send(*pid, Signal::SIGKILL);
                }
                return Progress::Killed(walk.found);
            }
        }
        self.walk = Some(walk);
        Progress::Unfinished
    }
}

impl Walk {
    fn begin(worker: &Worker, mains: &[u32]) -> Self {
        let mut roots = process::own_children();
        roots.retain(|pid| is_main(*pid, worker) || !mains.contains(pid));
        Self { roots, open: Vec::new(), found: 0 }
    }
}

/// Once reaped, its number may be anybody's.
fn is_main(pid: u32, worker: &Worker) -> bool {
    match worker.process {
        Process::Running | Process::Zombie(_) => pid == worker.pid,
        Process::Reaped(_) => false,
    }
}

/// Goes on with a worker's burial. `due`: also if those who were sent KILL have not all ended yet.
/// `budget` is what the turn has left.
pub(crate) fn go_on(worker: &mut Worker, mains: &[u32], due: bool, budget: &mut usize) -> Progress {
    let Some(mut burial) = worker.burying.take() else { return Progress::Killed(0) };
    let progress = if *budget == 0 {
        Progress::Unfinished
    } else if burial.walk.is_none() && !burial.members.is_empty() && !due {
        Progress::Killed(burial.members.len())
    } else {
        if burial.walk.is_none() {
            // Those who are still there are found again.
            burial.members.clear();
        }
        burial.go_on(worker, mains, budget)
    };
    worker.burying = Some(burial);
    progress
}

#[cfg(test)]
mod tests {
    use super::super::page::SharedPage;
    use super::super::worker::doorbell;
    use super::*;
    use crate::testing::wait_for;
    use croupier_core::event::{SlotId, WorkerId};
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Command, Stdio};

    #[test]
    fn a_family_is_found_in_portions_and_killed_whole() {
        let script = "for i in 1 2 3; do sh -c 'tail -f /dev/null; :' & done; wait";
        let mut main = Command::new("sh")
            .args(["-c", script])
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (page, bell) = (SharedPage::new(WorkerId(1)).unwrap(), doorbell().unwrap());
        let mut worker = Worker::new(WorkerId(1), SlotId(0), [1; 16], page, bell, 0);
        worker.pid = main.id();
        let family = || {
            let children = process::children_of(main.id());
            let below: Vec<u32> =
                children.iter().flat_map(|child| process::children_of(*child)).collect();
            (below.len() == 3).then(|| [children, below].concat())
        };
        let family = wait_for("three children with a child each", family);
        worker.burying = Some(Burial::new(0));
        let (mut turns, mut budget) = (1, 1);
        // Children of other tests in this process are not looked at: they would be told apart only by /proc.
        let others: Vec<u32> =
            process::own_children().into_iter().filter(|pid| *pid != main.id()).collect();
        let left = loop {
            match go_on(&mut worker, &others, false, &mut budget) {
                Progress::Killed(left) => break left,
                Progress::Unfinished => (turns, budget) = (turns + 1, 1),
            }
        };
        assert!(turns > 6, "one process a turn: {turns}");
        assert_eq!(left, 6);
        assert_eq!(main.wait().unwrap().signal(), Some(libc::SIGKILL));
        for pid in family {
            // Somebody else reaps it, or nobody yet.
            wait_for("a member to end", || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
            });
        }
    }
}
