//! The service manager: says by sd_notify(3) how the primary stands, when it was asked to.
//!
//! Owns the address in `NOTIFY_SOCKET`, which workers never see. Promises: nothing here waits (a manager
//! that does not read loses messages, not the loop); without the variable nothing is done at all, and
//! without `WATCHDOG_USEC` nobody wakes up for it. Never does: decide anything.
//!
//! The words are `sd_notify`'s; its own sending blocks and knows no abstract names.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use croupier_core::event::Report;
use sd_notify::NotifyState;

use super::run::Primary;
use super::start::addresses;

/// How much more time is asked for while workers are still starting.
const MORE_TIME: Duration = Duration::from_secs(30);

/// Where to, and what is known there.
#[derive(Debug)]
pub(super) struct Service {
    manager: Option<Manager>,
    /// `WATCHDOG_USEC`, halved, in nanoseconds; and when the next sign of life is due.
    watchdog: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Manager {
    address: SocketAddr,
    /// The last `STATUS=`.
    status: String,
    said: Said,
    failed_before: bool,
}

/// What it takes the primary to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Starting,
    Ready,
    Reloading,
    Stopping,
}

impl Service {
    /// What this process's environment asks for.
    pub(super) fn of_this_process(now: u64) -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|value| !value.is_empty());
        let manager = socket.and_then(|socket| match address_of(&socket) {
            Ok(address) => Some(Manager::new(address)),
            Err(error) => {
                log::warn!("NOTIFY_SOCKET {}: {error}; nobody is notified", socket.display());
                None
            }
        });
        let halved = |limit: Duration| u64::try_from(limit.as_nanos() / 2).ok();
        let every = sd_notify::watchdog_enabled().and_then(halved).filter(|every| *every > 0);
        let watchdog = every.filter(|_| manager.is_some()).map(|every| (every, now + every));
        Self { manager, watchdog }
    }

    /// When the next sign of life is due; `None` without a watchdog.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.watchdog.map(|(_, at)| at)
    }

    /// The loop turns.
    pub(super) fn live(&mut self, now: u64) {
        if let Some((every, at)) = &mut self.watchdog
            && *at <= now
        {
            *at = now + *every;
            self.send(&[NotifyState::Watchdog]);
        }
    }

    /// Whether anybody wants to hear.
    pub(super) const fn listens(&self) -> bool {
        self.manager.is_some()
    }

    /// Still starting: more time is needed, as long as the workers' own limits give it to them.
    pub(super) fn starting(&mut self, status: &str) {
        let Some(manager) = &self.manager else { return };
        if manager.said != Said::Starting {
            return self.status(status);
        }
        let more = u32::try_from(MORE_TIME.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(more), NotifyState::Status(status)]);
    }

    /// Everybody was ready for the first time.
    pub(super) fn ready(&mut self, status: &str) {
        let Some(manager) = &mut self.manager else { return };
        if manager.said != Said::Starting {
            return self.status(status);
        }
        status.clone_into(&mut manager.status);
        manager.said = Said::Ready;
        // The manager may have started a wrapper (`sh -c`, env) that is still there.
        let pid = NotifyState::MainPid(std::process::id());
        self.send(&[NotifyState::Ready, pid, NotifyState::Status(status)]);
    }

    /// How things stand, if that is news.
    pub(super) fn status(&mut self, status: &str) {
        let Some(manager) = &mut self.manager else { return };
        if manager.status != status {
            status.clone_into(&mut manager.status);
            self.send(&[NotifyState::Status(status)]);
        }
    }

    /// A reload begins.
    pub(super) fn reloading(&mut self, status: &str) {
        let Some(manager) = &mut self.manager else { return };
        if manager.said != Said::Ready {
            return self.status(status);
        }
        manager.said = Said::Reloading;
        status.clone_into(&mut manager.status);
        // Since systemd 253 the time is what tells this reload from one before.
        match NotifyState::monotonic_usec_now() {
            Ok(time) => self.send(&[NotifyState::Reloading, time, NotifyState::Status(status)]),
            Err(_) => self.send(&[NotifyState::Reloading, NotifyState::Status(status)]),
        }
    }

    /// A reload has ended, one way or the other: it serves.
    pub(super) fn reloaded(&mut self, status: &str) {
        let Some(manager) = &mut self.manager else { return };
        if manager.said != Said::Reloading {
            return self.status(status);
        }
        manager.said = Said::Ready;
        status.clone_into(&mut manager.status);
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The end begins.
    pub(super) fn stopping(&mut self, status: &str) {
        let Some(manager) = &mut self.manager else { return };
        if manager.said == Said::Stopping {
            return self.status(status);
        }
        manager.said = Said::Stopping;
        status.clone_into(&mut manager.status);
        self.send(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    fn send(&mut self, states: &[NotifyState<'_>]) {
        let Some(manager) = &mut self.manager else { return };
        let mut text = String::new();
        for state in states {
            // A line each; a status of more than one would be read as something else.
            let line = state.to_string().replace('\n', " ");
            let written = writeln!(text, "{line}");
            debug_assert!(written.is_ok(), "a String takes everything");
        }
        match manager.send(text.as_bytes()) {
            Ok(()) => manager.failed_before = false,
            Err(error) if manager.failed_before => {
                log::debug!("the service manager was not notified: {error}");
            }
            Err(error) => {
                manager.failed_before = true;
                log::warn!("the service manager was not notified (NOTIFY_SOCKET): {error}");
            }
        }
    }
}

impl Manager {
    const fn new(address: SocketAddr) -> Self {
        Self { address, status: String::new(), said: Said::Starting, failed_before: false }
    }

    fn send(&self, text: &[u8]) -> io::Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&self.address)?;
        socket.send(text).map(|_| ())
    }
}

/// `NOTIFY_SOCKET`: a path, or an abstract name after `@`.
fn address_of(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        Some((b'/', _)) => SocketAddr::from_pathname(socket),
        Some(_) | None => Err(io::Error::other("neither a path nor an abstract name")),
    }
}

impl Primary {
    /// How things stand, in a line.
    pub(super) fn stands(&self) -> String {
        let (ready, all) = (self.core.ready_count(), self.core.wanted_count());
        let held = if self.is_ending() { ", stopping" } else { "" };
        format!(
            "{ready} of {all} ready on {}, policy {}{held}",
            addresses(&self.listeners),
            self.policy()
        )
    }

    /// What of a report the service manager is to know.
    pub(super) fn tell_service(&mut self, report: Report) {
        if !self.service.listens() {
            return;
        }
        // What is said of single connections, or of nobody's coming and going, is no news there.
        if matches!(report, Report::Stole { .. } | Report::Late { .. } | Report::Recovered { .. }) {
            return;
        }
        let stands = self.stands();
        if report == Report::AllReady {
            self.service.ready(&stands);
        } else if let Report::ReloadBegan { generation, .. } = report {
            self.service.reloading(&format!("{stands}; reload {} is under way", generation.0));
        } else if matches!(report, Report::ReloadDone { .. }) {
            self.service.reloaded(&stands);
        } else if matches!(report, Report::ReloadFailed { .. }) {
            self.service.reloaded(&format!("{stands}; the last reload failed"));
        } else {
            self.service.status(&stands);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A manager at an abstract name, and a service that knows it.
    fn pair(watchdog: Option<u64>) -> (UnixDatagram, Service) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("croupier-service-{}-{number}", std::process::id());
        let address = address_of(format!("@{name}").as_ref()).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        let watchdog = watchdog.map(|every| (every, every));
        (manager, Service { manager: Some(Manager::new(address)), watchdog })
    }

    fn heard(manager: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 512];
        let mut all = Vec::new();
        while let Ok(len) = manager.recv(&mut buffer) {
            all.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
        all
    }

    #[test]
    fn a_life_in_order() {
        let (manager, mut service) = pair(None);
        service.starting("0 of 2 ready");
        service.reloading("too early");
        service.ready("2 ready");
        service.ready("2 ready");
        service.status("2 ready");
        service.status("1 of 2\nready");
        service.reloading("reload 2");
        service.reloaded("reload failed");
        service.stopping("stopping");
        service.stopping("stopping");
        service.reloading("too late");
        let heard = heard(&manager);
        let pid = std::process::id();
        assert_eq!(heard[0], "EXTEND_TIMEOUT_USEC=30000000\nSTATUS=0 of 2 ready\n");
        assert_eq!(heard[1], "STATUS=too early\n");
        assert_eq!(heard[2], format!("READY=1\nMAINPID={pid}\nSTATUS=2 ready\n"));
        assert_eq!(heard[3], "STATUS=1 of 2 ready\n");
        assert!(heard[4].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
        assert!(heard[4].ends_with("\nSTATUS=reload 2\n"), "{heard:?}");
        assert_eq!(heard[5], "READY=1\nSTATUS=reload failed\n");
        assert_eq!(heard[6], "STOPPING=1\nSTATUS=stopping\n");
        assert_eq!(heard[7..], ["STATUS=too late\n"]);
    }

    #[test]
    fn signs_of_life_come_at_half_the_time_and_only_with_a_watchdog() {
        let (manager, mut service) = pair(Some(50));
        assert_eq!(service.deadline(), Some(50));
        service.live(49);
        assert_eq!(heard(&manager), Vec::<String>::new());
        service.live(70);
        assert_eq!((heard(&manager), service.deadline()), (vec!["WATCHDOG=1\n".into()], Some(120)));
        let (manager, mut service) = pair(None);
        service.live(70);
        assert_eq!((heard(&manager), service.deadline()), (Vec::new(), None));
    }

    #[test]
    fn a_manager_that_does_not_read_costs_messages_and_no_time() {
        let (manager, mut service) = pair(Some(1));
        // Far more than any queue of datagrams holds.
        for now in 1..20_000 {
            service.live(now);
        }
        assert!(!heard(&manager).is_empty());
        drop(manager);
        service.status("nobody is there");
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        assert!(address_of(OsStr::new("run/notify")).is_err());
        assert!(address_of(OsStr::new("vsock:2:1234")).is_err());
        assert!(address_of(OsStr::new("")).is_err());
        assert!(address_of(OsStr::new("/run/systemd/notify")).is_ok());
    }
}
