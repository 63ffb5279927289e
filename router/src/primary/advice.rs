//! Advice: what the operator could do better, once each, in the log and in the status.
//!
//! Owns what was said. Promises: nothing is looked at while the primary sleeps, and then at most every
//! [`LOOK_EVERY`] and when a status is asked for; a connection costs nothing more (under `ip` a few
//! comparisons, `crowd`). Never does: change anything, or guess; each piece names what was seen.

use std::fmt::Write as _;
use std::time::Duration;

use croupier_core::event::Client;

use super::crowd::{Crowd, LOOKED_AT};
use super::run::Primary;
use crate::config::RunConfig;
use crate::control::messages::Advice;

/// How often counters are looked at, while the primary is awake anyway.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often windows would have had to grow beyond `--queue-limit`: each time stands for 8 turns in which
/// they were full.
const CAPPED: u64 = 64;
/// Queued times from here on, a power of two of microseconds: 1.05 s.
const LAG_BUCKET: usize = 20;
/// Descriptors of the primary for each worker, with the one that replaces it: process, pipes, page, bell,
/// channels of a few listeners.
const DESCRIPTORS_OF_A_WORKER: u64 = 2 * 12;
/// And for everything else.
const DESCRIPTORS_OF_ITS_OWN: u64 = 128;

/// What a piece of advice is about: none is given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Proxy,
    Backlog,
    OpenFiles,
    Somaxconn,
    QueueLimit,
    QueueWait,
    Workers,
    Lag,
}

impl About {
    const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Backlog => "backlog",
            Self::OpenFiles => "open-files",
            Self::Somaxconn => "somaxconn",
            Self::QueueLimit => "queue-limit",
            Self::QueueWait => "queue-wait",
            Self::Workers => "workers",
            Self::Lag => "lag",
        }
    }
}

/// What was said, and what it takes to say more.
#[derive(Debug)]
pub(super) struct Adviser {
    given: Vec<(About, String)>,
    look_at: u64,
    pub(super) crowd: Crowd,
    /// `ListenOverflows` of the network namespace when it was last read, and the drops of all listeners.
    overflows: u64,
    drops: u32,
    /// The hard limit of open files.
    open_files: u64,
}

impl Adviser {
    pub(super) fn new(now: u64, open_files: u64) -> Self {
        Self {
            given: Vec::new(),
            look_at: now,
            crowd: Crowd::new(),
            overflows: listen_overflows().unwrap_or(0),
            drops: 0,
            open_files,
        }
    }

    fn said(&self, about: About) -> bool {
        self.given.iter().any(|(given, _)| *given == about)
    }

    /// For the status.
    pub(super) fn given(&self) -> Vec<Advice> {
        let advice = |(about, text): &(About, String)| Advice {
            about: about.name().to_owned(),
            text: text.clone(),
        };
        self.given.iter().map(advice).collect()
    }

    fn give(&mut self, about: About, text: String) {
        if !self.said(about) {
            log::warn!("advice: {text}");
            self.given.push((about, text));
        }
    }
}

impl Primary {
    /// At the end of a turn: one comparison, and now and then a look.
    pub(super) fn advise_if_due(&mut self) {
        if self.now >= self.adviser.look_at {
            self.advise();
        }
    }

    /// Looks at everything that there is advice for.
    pub(super) fn advise(&mut self) {
        self.adviser.look_at = self.later(LOOK_EVERY);
        let slots = u16::try_from(self.core.slots().count()).unwrap_or(u16::MAX);
        let found = [
            (About::Workers, too_many_workers(&self.config, slots)),
            (About::QueueWait, self.config.uncounted_wait()),
            (About::Somaxconn, backlog_is_cut(&self.config)),
            (About::OpenFiles, self.too_few_descriptors(slots)),
            (About::Proxy, self.adviser.crowd.found().map(behind_a_proxy)),
            (About::Backlog, self.overflowing_backlog()),
            (About::QueueLimit, self.low_queue_limit()),
            (About::Lag, self.lagging_worker()),
        ];
        for (about, text) in found {
            if let Some(text) = text {
                self.adviser.give(about, text);
            }
        }
    }

    fn too_few_descriptors(&self, slots: u16) -> Option<String> {
        let have = self.adviser.open_files;
        if self.meters.ran_out() {
            return Some(format!(
                "accept found no descriptor left: the limit of open files is {have} (ulimit -Hn, \
                 LimitNOFILE= of systemd); until it is raised clients wait in the backlog"
            ));
        }
        let need = open_files_needed(slots.into(), self.config.core.queue_limit.into());
        (have < need).then(|| {
            format!(
                "the limit of open files is {have} (ulimit -Hn, LimitNOFILE= of systemd), and {slots} \
                 workers with --queue-limit {} may need {need}; where it is reached clients wait in the \
                 backlog",
                self.config.core.queue_limit
            )
        })
    }

    /// Clients that did not get into a backlog: the socket counts them, and the kernel counts why.
    fn overflowing_backlog(&mut self) -> Option<String> {
        if self.adviser.said(About::Backlog) || self.core.is_stopping() {
            return None;
        }
        let dropping = |listener: &&super::listener::Listener| {
            listener.backlog_depth().is_some() && listener.drops() > 0
        };
        let listeners = self.listeners.iter().map(|(_, listener)| listener);
        let drops = listeners.clone().map(super::listener::Listener::drops).sum();
        if drops <= self.adviser.drops {
            return None;
        }
        // Only now: it is a file to read and to search.
        let before = std::mem::replace(&mut self.adviser.drops, drops);
        let overflows = listen_overflows()?;
        if std::mem::replace(&mut self.adviser.overflows, overflows) >= overflows {
            return None;
        }
        let listener = listeners.clone().find(dropping)?;
        let (_, limit) = listener.backlog_depth()?;
        let mut text = format!(
            "the backlog of {listener} overflows: {} connects had to be tried again. Its limit is {limit}",
            drops - before
        );
        let somaxconn = self.config.machine.somaxconn;
        let written = if limit >= somaxconn {
            write!(text, ", the kernel's (net.core.somaxconn); more workers would empty it sooner")
        } else {
            write!(text, " (--backlog, at most {somaxconn}); more workers would empty it sooner")
        };
        debug_assert!(written.is_ok(), "a String takes everything");
        Some(text)
    }

    fn low_queue_limit(&self) -> Option<String> {
        let limit = self.config.core.queue_limit;
        (self.core.totals().capped >= CAPPED).then(|| {
            format!(
                "--queue-limit {limit} is reached again and again: clients wait in the backlog while \
                 quick workers run dry. A larger one (the default is 64) costs fewer wake-ups"
            )
        })
    }

    fn lagging_worker(&self) -> Option<String> {
        if self.adviser.said(About::Lag) {
            return None;
        }
        let lagged = |worker: &&super::worker::Worker| {
            let waited = worker.page.waited();
            waited.iter().skip(LAG_BUCKET).any(|count| *count > 0)
        };
        self.workers.iter().find(lagged).map(|worker| {
            format!(
                "worker {} let a connection that was handed to it wait for over 1s: something blocks \
                 its event loop, or, if it serves one client at a time, there are too few workers (-w)",
                worker.id.0
            )
        })
    }
}

/// Descriptors that a primary of so many workers may need: those of each, and the queued ones, which count
/// against the same limit while they are in flight (unix(7), `ETOOMANYREFS`).
#[must_use]
pub fn open_files_needed(workers: u64, queue_limit: u64) -> u64 {
    DESCRIPTORS_OF_ITS_OWN + workers * (DESCRIPTORS_OF_A_WORKER + queue_limit)
}

fn too_many_workers(config: &RunConfig, slots: u16) -> Option<String> {
    let cpus = config.machine.cpus;
    (slots > cpus.saturating_mul(2)).then(|| {
        let plural = if cpus == 1 { "CPU" } else { "CPUs" };
        format!(
            "{slots} workers are more than twice the {cpus} {plural}: that helps programs that serve one \
             client at a time and wait for something else meanwhile; all others only take turns \
             (-w auto is one for each CPU)"
        )
    })
}

/// listen(2) cuts a larger backlog silently.
fn backlog_is_cut(config: &RunConfig) -> Option<String> {
    let (asked, most) = (config.backlog, config.machine.somaxconn);
    (asked > most).then(|| {
        format!(
            "--backlog {asked} is more than the kernel allows: it is {most}, until \
             sysctl net.core.somaxconn={asked}"
        )
    })
}

fn behind_a_proxy(client: Client) -> String {
    let who = match client {
        Client::V4(bytes) => std::net::Ipv4Addr::from(bytes).to_string(),
        Client::V6(bytes) => format!("{}/64", std::net::Ipv6Addr::from(bytes)),
        Client::Local => "one client".into(),
    };
    format!(
        "over half of {LOOKED_AT} connections came from {who}: clients seem to be behind a proxy, and \
         -p ip gives all of them to one worker. Use -p least, or let the proxy choose among several \
         croupiers by what it knows of its clients"
    )
}

/// How often a client found a backlog full, in this network namespace: `TcpExt: ListenOverflows`.
fn listen_overflows() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/net/netstat").ok()?;
    overflows_in(&text)
}

fn overflows_in(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(name, _)| *name == "ListenOverflows")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netstat_is_read() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 333\nIpExt: A\nIpExt: 4\n";
        assert_eq!(overflows_in(text), Some(22));
        assert_eq!(overflows_in("TcpExt: A B\nTcpExt: 1 2\n"), None);
        assert_eq!(overflows_in(""), None);
        assert!(listen_overflows().is_some(), "this kernel counts them");
    }

    #[test]
    fn a_client_has_a_name() {
        let text = behind_a_proxy(Client::Local);
        assert!(text.contains(" connections came from one client: clients seem to be"), "{text}");
        let text =
            behind_a_proxy(Client::V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert!(text.contains("from 2001:db8::/64"), "{text}");
    }

    #[test]
    fn each_about_has_a_name_of_its_own() {
        let all = [
            About::Proxy,
            About::Backlog,
            About::OpenFiles,
            About::Somaxconn,
            About::QueueLimit,
            About::QueueWait,
            About::Workers,
            About::Lag,
        ];
        let mut names = all.map(About::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn advice_is_given_once() {
        let mut adviser = Adviser::new(0, 1024);
        adviser.give(About::Lag, "one".into());
        adviser.give(About::Lag, "two".into());
        let given = adviser.given();
        assert_eq!(given.len(), 1);
        assert_eq!((given[0].about.as_str(), given[0].text.as_str()), ("lag", "one"));
    }
}
