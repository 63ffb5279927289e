//! What croupier needs of the kernel, each tried by using it: by feature, not by version.
//!
//! Owns nothing. Promises: what is tried leaves nothing behind.

use std::io;

use croupier_core::event::WorkerId;
use nix::unistd::getpid;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{alarm, channel, page, worker};

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// What it is for, as in "this kernel cannot …".
    pub what: &'static str,
    /// Tries it.
    pub try_it: fn() -> io::Result<()>,
}

/// What [`subreaper`] is for.
pub(super) const ADOPT: &str = "adopt orphans (PR_SET_CHILD_SUBREAPER)";

/// What a start tries before it begins.
pub(super) const AT_START: &[Feature] = &[
    Feature {
        what: "count descriptors queued on a Unix socket (SIOCOUTQ)",
        try_it: channel::calibrate,
    },
    Feature { what: "seal shared memory (memfd_create)", try_it: seal },
    Feature { what: "make an eventfd", try_it: || worker::doorbell().map(drop) },
];

/// What a start needs as well and finds out as it goes.
const ON_THE_WAY: &[Feature] = &[
    Feature { what: "watch a process (pidfd_open)", try_it: pidfd },
    Feature { what: ADOPT, try_it: subreaper },
    Feature { what: "make a timer (timerfd_create)", try_it: || alarm::Alarm::new().map(drop) },
    Feature { what: "make an epoll", try_it: || mio::Poll::new().map(drop) },
];

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Feature> {
    AT_START.iter().chain(ON_THE_WAY)
}

fn seal() -> io::Result<()> {
    page::SharedPage::new(WorkerId(0)).map(drop)
}

fn pidfd() -> io::Result<()> {
    let own = Pid::from_raw(getpid().as_raw()).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(own, PidfdFlags::empty()).map(drop)?)
}

/// Makes this process the one that inherits the orphans of its descendants.
pub(super) fn subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}
