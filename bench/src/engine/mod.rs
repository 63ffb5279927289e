//! Engines: the ways to bring connections to workers that are compared.
//!
//! Owns: the catalogue and what each engine needs. Promises: the same worker program behind all of one
//! kind; each is started afresh, in its defaults where it has any. Never does: start one (`running`).

mod command;
mod floor;
mod proxy;
mod running;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use floor::{FloorArgs, run_floor};
pub use running::{EngineError, Running, Serving, Setup};

use crate::data::{EngineInfo, EngineKind, Reason, WorkerKind};
use crate::process;

/// Where Debian puts nginx's stream module.
pub const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// What ratios of workers in Rust are made against.
pub const BASELINE: &str = "plain-reuseport";
/// What ratios of Node workers are made against.
pub const NODE_BASELINE: &str = "node-rr";

/// How an engine is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// `croupier run` with these flags.
    Croupier(&'static [&'static str]),
    /// The same before the Node program.
    CroupierNode(&'static [&'static str]),
    /// Workers with `SO_REUSEPORT` sockets of their own.
    Reuseport,
    /// Workers that inherit one listening socket.
    Shared,
    /// One worker.
    Single,
    /// accept4 + sendmsg + close.
    Floor,
    /// haproxy before workers on ports of their own.
    Haproxy,
    /// nginx's stream module, likewise.
    Nginx,
    /// `node:cluster` with this policy.
    NodeCluster(&'static str),
    /// One Node process.
    NodeSingle,
}

/// One engine of the catalogue.
#[derive(Debug, Clone)]
pub struct Engine {
    /// For `results.json`.
    pub info: EngineInfo,
    /// How it is started.
    pub launch: Launch,
}

const fn about(launch: Launch) -> (EngineKind, WorkerKind, bool) {
    match launch {
        Launch::Croupier(_) => (EngineKind::Croupier, WorkerKind::Rust, true),
        Launch::CroupierNode(_) => (EngineKind::Croupier, WorkerKind::Node, true),
        Launch::Reuseport | Launch::Shared => (EngineKind::Kernel, WorkerKind::Rust, false),
        Launch::Single => (EngineKind::Single, WorkerKind::Rust, false),
        Launch::Floor => (EngineKind::Floor, WorkerKind::Rust, true),
        Launch::Haproxy | Launch::Nginx => (EngineKind::Proxy, WorkerKind::Rust, true),
        Launch::NodeCluster(_) => (EngineKind::NodeCluster, WorkerKind::Node, true),
        Launch::NodeSingle => (EngineKind::Single, WorkerKind::Node, false),
    }
}

/// Id, name, what it does, how it is started; in the order in which they are shown.
const CATALOGUE: [(&str, &str, &str, Launch); 16] = [
    (
        "least",
        "croupier least",
        "croupier's default: each connection to the worker with the least load",
        Launch::Croupier(&["-p", "least"]),
    ),
    (
        "least-1",
        "croupier least, --max-active 1",
        "the same, and never more than one connection at a worker; the others wait in the backlog",
        Launch::Croupier(&["-p", "least", "--max-active", "1"]),
    ),
    (
        "rr",
        "croupier rr",
        "croupier, the next worker in turn, as Node's SCHED_RR",
        Launch::Croupier(&["-p", "rr"]),
    ),
    (
        "ip",
        "croupier ip",
        "croupier, the client's address chooses the worker",
        Launch::Croupier(&["-p", "ip"]),
    ),
    (
        "shared",
        "croupier shared",
        "croupier's workers share the listening socket; nobody deals",
        Launch::Croupier(&["-p", "shared"]),
    ),
    (
        "reuseport",
        "croupier reuseport",
        "croupier's workers each have an SO_REUSEPORT socket that croupier keeps; nobody deals",
        Launch::Croupier(&["-p", "reuseport"]),
    ),
    (
        BASELINE,
        "SO_REUSEPORT",
        "the workers alone, each with an SO_REUSEPORT socket of its own: the baseline",
        Launch::Reuseport,
    ),
    (
        "plain-shared",
        "shared socket",
        "the workers alone, on one listening socket that they inherit",
        Launch::Shared,
    ),
    ("single", "one process", "one worker alone, no balancing", Launch::Single),
    (
        "floor",
        "hand-off floor",
        "accept4, sendmsg (passfd), close, in turn, and nothing else: the least a hand-off can do",
        Launch::Floor,
    ),
    (
        "haproxy",
        "haproxy",
        "haproxy in TCP mode, leastconn, before workers on ports of their own",
        Launch::Haproxy,
    ),
    (
        "nginx",
        "nginx stream",
        "nginx's stream module, least_conn, before workers on ports of their own",
        Launch::Nginx,
    ),
    (
        NODE_BASELINE,
        "node:cluster rr",
        "Node's cluster module with SCHED_RR: its primary accepts and passes descriptors",
        Launch::NodeCluster("rr"),
    ),
    (
        "node-none",
        "node:cluster none",
        "Node's cluster module with SCHED_NONE: its workers share the socket",
        Launch::NodeCluster("none"),
    ),
    ("node-single", "one Node process", "the Node program alone", Launch::NodeSingle),
    (
        "node-croupier",
        "croupier least, Node",
        "croupier before the same Node program, without the cluster module",
        Launch::CroupierNode(&["-p", "least"]),
    ),
];

/// All engines, in the order in which they are shown.
#[must_use]
pub fn catalogue() -> Vec<Engine> {
    CATALOGUE
        .iter()
        .map(|(id, name, does, launch)| {
            let (kind, worker, has_primary) = about(*launch);
            let info = EngineInfo {
                id: (*id).to_owned(),
                name: (*name).to_owned(),
                about: (*does).to_owned(),
                kind,
                worker,
                has_primary,
            };
            Engine { info, launch: *launch }
        })
        .collect()
}

/// Programs of this package and croupier's, as files.
#[derive(Debug, Clone)]
pub struct Programs {
    /// croupier.
    pub croupier: PathBuf,
    /// The worker.
    pub worker: PathBuf,
    /// This program, which has the floor's loop.
    pub bench: PathBuf,
}

impl Programs {
    /// Those that lie beside this program, unless another croupier is named.
    ///
    /// # Errors
    /// If it is not known where this program lies.
    pub fn beside(croupier: Option<PathBuf>) -> std::io::Result<Self> {
        let bench = std::env::current_exe()?;
        let beside = |name: &str| bench.with_file_name(name);
        Ok(Self {
            croupier: croupier.unwrap_or_else(|| beside("croupier")),
            worker: beside("croupier-bench-worker"),
            bench: bench.clone(),
        })
    }

    /// Whether croupier is a build with debug assertions: cargo says so by the folder.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.croupier.components().any(|part| part.as_os_str() == "debug")
    }
}

impl Engine {
    /// Whether it is started by croupier.
    #[must_use]
    pub const fn is_croupier(&self) -> bool {
        matches!(self.launch, Launch::Croupier(_) | Launch::CroupierNode(_))
    }

    /// What is missing for it on this machine.
    #[must_use]
    pub fn missing(&self, programs: &Programs) -> Option<Reason> {
        let file = |path: &Path| {
            let program = path.display().to_string();
            (!path.is_file()).then_some(Reason::NotInstalled { program })
        };
        let program = |name: &str| {
            let program = name.to_owned();
            process::find(OsStr::new(name)).is_none().then_some(Reason::NotInstalled { program })
        };
        match self.launch {
            Launch::Croupier(_) => file(&programs.croupier).or_else(|| file(&programs.worker)),
            Launch::CroupierNode(_) => file(&programs.croupier).or_else(|| program("node")),
            Launch::Reuseport | Launch::Shared | Launch::Single | Launch::Floor => {
                file(&programs.worker)
            }
            Launch::Haproxy => program("haproxy").or_else(|| file(&programs.worker)),
            Launch::Nginx => program("nginx")
                .or_else(|| file(Path::new(NGINX_STREAM)))
                .or_else(|| file(&programs.worker)),
            Launch::NodeCluster(_) | Launch::NodeSingle => program("node"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_distinct_and_the_baselines_exist() {
        let all = catalogue();
        let ids: std::collections::BTreeSet<&str> =
            all.iter().map(|engine| engine.info.id.as_str()).collect();
        assert_eq!(ids.len(), all.len());
        assert!(ids.contains(BASELINE) && ids.contains(NODE_BASELINE));
    }

    #[test]
    fn what_is_missing_is_named() {
        let nowhere = PathBuf::from("/nowhere/croupier");
        let programs =
            Programs { croupier: nowhere.clone(), worker: nowhere.clone(), bench: nowhere };
        let engines = catalogue();
        let reason = engines[0].missing(&programs).unwrap();
        assert!(reason.to_string().starts_with("/nowhere/croupier is not installed"), "{reason}");
    }
}
