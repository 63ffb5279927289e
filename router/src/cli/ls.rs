//! `croupier ls`: the primaries that run.

use std::collections::BTreeSet;

use clap::Args;

use super::status::state;
use super::table::{Align, Table, age};
use super::{Exit, code};
use crate::control::client::{ANSWER_WAIT, Found, discover};
use crate::control::messages::{Reply, Request, Status, WorkerState, WorkerStatus};

/// List running primaries: your own, or as root everybody's.
#[derive(Debug, Clone, Args)]
pub(super) struct LsArgs {}

pub(super) fn execute(_args: &LsArgs) -> Exit {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("OWNER", Align::Left),
        ("PID", Align::Right),
        ("READY", Align::Left),
        ("STATE", Align::Left),
        ("POLICY", Align::Left),
        ("UP", Align::Left),
        ("LISTENS ON", Align::Left),
    ]);
    let mut found = discover();
    for one in &mut found {
        table.row(row(one));
    }
    if found.is_empty() {
        // For people; a script reads stdout, which is empty.
        let mut exit = Exit::code(code::DONE);
        exit.stderr = "no croupier is running\n".into();
        return exit;
    }
    Exit::with(code::DONE, table.render(""))
}

fn row(found: &mut Found) -> Vec<String> {
    let head = [found.name.clone(), found.owner_name(), found.pid.to_string()];
    let tail = match found.ask(Request::Status, Some(ANSWER_WAIT)) {
        Ok(Reply::Status(status)) => {
            let listens: Vec<&str> =
                status.listeners.iter().map(|listener| listener.address.as_str()).collect();
            let state = match state(&status) {
                words if words.is_empty() => "running".to_owned(),
                words => words.join(", "),
            };
            let (policy, up) = (status.policy.clone(), age(status.uptime_s));
            [ready(&status), state, policy, up, listens.join(" ")]
        }
        Ok(Reply::Failed { why }) => unknown(why),
        Ok(Reply::Done | Reply::Said { .. } | Reply::Event(_)) => {
            unknown("another version?".into())
        }
        Err(error) => unknown(error.to_string()),
    };
    head.into_iter().chain(tail).collect()
}

fn unknown(why: String) -> [String; 5] {
    let dash = || "-".to_owned();
    [dash(), dash(), dash(), dash(), why]
}

/// `3 of 4`: slots with a ready worker, of the wanted.
pub(super) fn ready(status: &Status) -> String {
    let (ready, wanted) = count_ready(status);
    format!("{ready} of {wanted}")
}

/// Slots with a ready worker, and slots that want one.
pub(super) fn count_ready(status: &Status) -> (usize, usize) {
    let slots = |which: &dyn Fn(WorkerState) -> bool| -> BTreeSet<u16> {
        // What drains in slots that a scale took away belongs to nobody's number.
        let there = |worker: &&WorkerStatus| worker.slot < status.slots;
        let workers = status.workers.iter().filter(there).filter(|worker| which(worker.state));
        workers.map(|worker| worker.slot).collect()
    };
    // A slot that is down may still have a worker that drains.
    let down = slots(&|state| state == WorkerState::Down);
    let wanted = slots(&|_| true).difference(&down).count();
    (slots(&|state| state == WorkerState::Ready).len(), wanted)
}

/// Slots that nobody wants up.
pub(super) fn count_down(status: &Status) -> usize {
    status.workers.iter().filter(|worker| worker.state == WorkerState::Down).count()
}
