//! Whether this machine lets croupier do its work, and what to do where it does not.
//!
//! Owns nothing. Promises: what can be tried is tried, and undone; every finding that is not good says
//! what to do; what is seen ([`Seen`]) and what is thought of it are apart, so that tests can bring their
//! own machine. Never does: change anything that lasts, or print.

mod confined;

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, access};
use procfs::process::Process;
use serde::Serialize;

use crate::adapter::preload;
use crate::adapter::program::{Kind, kind_of};
use crate::config::{ListenAddress, ListenSpec, Surroundings, bytes_text};
use crate::control::place;
use crate::diagnose;
use crate::primary::features;

pub use confined::Module;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good.
    Ok,
    /// croupier runs, and could do better.
    Warn,
    /// croupier does not run, or not as asked.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub check: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do; null when all is well.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { check: check.into(), level: Level::Ok, found: found.into(), advice: None }
    }

    fn warn(check: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { check: check.into(), level: Level::Warn, found: found.into(), advice }
    }

    fn fail(check: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Fail, ..Self::warn(check, found, advice) }
    }
}

/// What can be seen without trying anything.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `RLIMIT_NOFILE`, soft and hard.
    pub open_files: (u64, u64),
    /// `net.core.wmem_max`, where this network namespace shows it.
    pub wmem_max: Option<u64>,
    /// `CAP_NET_ADMIN` and `CAP_NET_BIND_SERVICE`.
    pub may_force_buffers: Right,
    /// The other one.
    pub may_bind_low: Right,
    /// The first port for everybody.
    pub first_free_port: u16,
    /// CPUs, backlog, memory.
    pub around: Surroundings,
    /// CPUs by cgroup quota.
    pub cpu_quota: Option<f64>,
    /// Processes and threads that there is still room for, and by which limit; `None`: as many as wanted.
    pub tasks: Option<(u64, &'static str)>,
    /// What else says what processes may do.
    pub module: Option<Module>,
    /// Seccomp filters are on.
    pub seccomp: Right,
    /// `docker`, `kubernetes`, …
    pub container: Option<String>,
    /// This is process 1.
    pub pid: u32,
}

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// It is.
    Yes,
    /// It is not.
    No,
}

impl From<bool> for Right {
    fn from(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }
}

/// linux/capability.h
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
/// Processes and threads of a worker, generously: Node has about 11.
const TASKS_OF_A_WORKER: u64 = 16;
/// The same of croupier itself.
const TASKS_OF_CROUPIER: u64 = 8;
/// `--queue-limit` where it is not given.
const QUEUE_LIMIT: u64 = 64;
/// Bytes of a channel's buffer for each queued connection, generously.
const BYTES_OF_A_CONNECTION: u64 = 2 * 1024;
/// Memory below which a worker is cramped: an idle interpreter has 10 to 60 MB.
const LITTLE_MEMORY: u64 = 64 << 20;

impl Seen {
    /// Looks.
    #[must_use]
    pub fn now() -> Self {
        let status = Process::myself().and_then(|process| process.status()).ok();
        let capable = |number: u32| status.as_ref().is_some_and(|s| s.capeff >> number & 1 == 1);
        Self {
            open_files: getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default(),
            wmem_max: fs::read_to_string("/proc/sys/net/core/wmem_max")
                .ok()
                .and_then(|text| text.trim().parse().ok()),
            may_force_buffers: capable(CAP_NET_ADMIN).into(),
            may_bind_low: capable(CAP_NET_BIND_SERVICE).into(),
            first_free_port: diagnose::first_free_port(),
            around: Surroundings::of_this_process(),
            cpu_quota: crate::memory::cpu_quota(),
            // Of root with --user it binds the workers as soon as they are that user's. Whose they will be
            // is not known here.
            tasks: confined::tasks(
                crate::memory::tasks_left(),
                getrlimit(Resource::RLIMIT_NPROC).map_or(u64::MAX, |(soft, _)| soft),
                || confined::tasks_of(nix::unistd::getuid().as_raw()),
                (nix::unistd::getuid().is_root()
                    || capable(CAP_SYS_RESOURCE)
                    || capable(CAP_SYS_ADMIN))
                .into(),
            ),
            module: confined::module(Path::new("/")),
            seccomp: status.as_ref().is_some_and(|s| s.seccomp == Some(2)).into(),
            container: confined::container(),
            pid: std::process::id(),
        }
    }

    /// What is thought of it.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        vec![
            self.open_files(),
            self.buffers(),
            self.somaxconn(),
            self.low_ports(),
            self.cpus(),
            self.memory(),
            self.tasks(),
            self.confinement(),
            self.module(),
        ]
    }

    fn open_files(&self) -> Finding {
        let (soft, hard) = self.open_files;
        let workers = u64::from(self.around.cpus);
        let need = crate::primary::open_files_needed(workers, QUEUE_LIMIT);
        let found = format!(
            "limit {hard} (soft {soft}, which workers keep); {workers} workers and what is in flight \
             to them may need {need}"
        );
        let advice = "raise it: ulimit -Hn, LimitNOFILE= of systemd, --ulimit nofile= of Docker; until \
                      then clients wait in the backlog where it is reached";
        if hard < need {
            Finding::warn("open files", found, advice)
        } else {
            Finding::ok("open files", found)
        }
    }

    fn buffers(&self) -> Finding {
        let need = QUEUE_LIMIT * BYTES_OF_A_CONNECTION;
        match (self.may_force_buffers, self.wmem_max) {
            (Right::Yes, _) => Finding::ok("socket buffers", "as large as wanted (CAP_NET_ADMIN)"),
            (Right::No, None) => {
                Finding::ok("socket buffers", "net.core.wmem_max is not shown in this namespace")
            }
            (Right::No, Some(most)) if most < need => Finding::warn(
                "socket buffers",
                format!("net.core.wmem_max is {most}"),
                format!(
                    "sysctl net.core.wmem_max={need}; until then fewer than --queue-limit {QUEUE_LIMIT} \
                     connections fit a worker's queue, and clients wait in the backlog instead"
                ),
            ),
            (Right::No, Some(most)) => {
                Finding::ok("socket buffers", format!("net.core.wmem_max is {most}"))
            }
        }
    }

    fn somaxconn(&self) -> Finding {
        let most = self.around.somaxconn;
        let found = format!("a backlog has at most {most} clients (net.core.somaxconn)");
        if most < 1024 {
            let advice = "sysctl net.core.somaxconn=4096; until then a burst of more clients has to try \
                          again, a second later";
            Finding::warn("backlog", found, advice)
        } else {
            Finding::ok("backlog", found)
        }
    }

    fn low_ports(&self) -> Finding {
        let first = self.first_free_port;
        let found = match self.may_bind_low {
            Right::Yes => "all may be bound".to_owned(),
            Right::No if first <= 1 => "all may be bound".to_owned(),
            Right::No => format!(
                "from {first} on; for those below start croupier as root with --user, or give it the \
                 right: setcap cap_net_bind_service=+ep croupier"
            ),
        };
        Finding::ok("ports", found)
    }

    fn cpus(&self) -> Finding {
        let Surroundings { cpus, cpus_online, .. } = self.around;
        let quota = self.cpu_quota.map_or_else(String::new, |q| format!(", quota {q:.2} CPUs"));
        let found = format!("{cpus} of {cpus_online} CPUs{quota}: -w auto starts {cpus}");
        match self.cpu_quota {
            Some(quota) if quota < 1.0 => Finding::warn(
                "CPUs",
                found,
                "the cgroup stops everything for a part of each 100 ms, and clients wait that long: \
                 give it a whole CPU (cpu.max, --cpus of Docker, limits.cpu of Kubernetes)",
            ),
            Some(_) | None => Finding::ok("CPUs", found),
        }
    }

    fn memory(&self) -> Finding {
        let Some(bytes) = self.around.memory else {
            return Finding::ok("memory", "neither the cgroup nor the machine says how much");
        };
        let each = bytes / u64::from(self.around.cpus.max(1));
        let found = format!(
            "{}, {} for each of {} workers",
            bytes_text(bytes),
            bytes_text(each),
            self.around.cpus
        );
        if each < LITTLE_MEMORY {
            let advice = "few programs fit into that: raise the limit (memory.max) or start fewer \
                          workers with -w";
            Finding::warn("memory", found, advice)
        } else {
            Finding::ok("memory", found)
        }
    }

    fn tasks(&self) -> Finding {
        let workers = u64::from(self.around.cpus);
        // At a reload there are twice as many.
        let need = TASKS_OF_CROUPIER + 2 * workers * TASKS_OF_A_WORKER;
        match self.tasks {
            None => Finding::ok("processes", "no limit"),
            Some((room, by)) if room < need => Finding::warn(
                "processes",
                format!(
                    "room for {room} processes and threads by {by}; {workers} workers, and as many more \
                     at a reload, may need {need}"
                ),
                "raise it: TasksMax= and LimitNPROC= of systemd, --pids-limit of Docker, ulimit -u; beyond \
                 it no worker starts, and programs fail to start a thread",
            ),
            Some((room, by)) => {
                Finding::ok("processes", format!("room for {room} processes and threads by {by}"))
            }
        }
    }

    fn module(&self) -> Finding {
        const CHECK: &str = "security module";
        let Some(Module { name, label }) = &self.module else {
            return Finding::ok(CHECK, "none confines this process");
        };
        let found = if label.is_empty() {
            format!("{name} is on, and as what it confines this process cannot be read")
        } else {
            format!("{name} confines this process as {label}")
        };
        if confined::KNOWN_LABELS.iter().any(|known| label.contains(known)) {
            return Finding::ok(CHECK, format!("{found}, as is usual in a container"));
        }
        let advice = match *name {
            "SELinux" => {
                "where the program runs in another domain LD_PRELOAD is taken away, and sockets that are \
                 passed to it may be refused: if workers never become ready look for denials (ausearch \
                 -m avc -ts recent) and run both in one domain"
            }
            _ => {
                "a profile whose rule for the program is Px or Cx takes LD_PRELOAD away, and sockets that \
                 are passed to it may be refused: if workers never become ready look for \
                 apparmor=\"DENIED\" in the kernel's log and use ix or pix"
            }
        };
        Finding::warn(CHECK, found, advice)
    }

    /// Never more than a hint: what a filter forbids shows where the kernel is tried.
    fn confinement(&self) -> Finding {
        let filter = match self.seccomp {
            Right::Yes => "a seccomp filter is on",
            Right::No => "no seccomp filter",
        };
        let container = self.container.as_deref();
        let place = container
            .map_or_else(|| "no container".to_owned(), |name| format!("in a container ({name})"));
        let first =
            if self.pid == 1 { "; this is process 1, and reaps what others leave" } else { "" };
        Finding::ok("confinement", format!("{filter}, {place}{first}"))
    }
}

/// Tries everything that a start needs of the kernel.
#[must_use]
pub fn kernel() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let failed: Vec<String> = features::all()
        .filter_map(|feature| Some((feature.what, (feature.try_it)().err()?)))
        .map(|(what, error)| format!("cannot {what}: {error}"))
        .collect();
    if failed.is_empty() {
        return Finding::ok("kernel", format!("Linux {release} has all that is needed"));
    }
    Finding::fail(
        "kernel",
        format!("Linux {release} {}", failed.join("; ")),
        "Linux 5.10 or later can; in a container look at its seccomp profile (Docker: \
         --security-opt seccomp=…)",
    )
}

/// Finds the preload library and loads it into a process.
#[must_use]
pub fn preload(path: Option<&Path>) -> Finding {
    const CHECK: &str = "preload";
    let library = match preload::library(path, None) {
        Ok(library) => library,
        Err(error) => {
            let advice = "without it only --adapter shim, fd and listen-fds work; make install puts it \
                          beside croupier";
            return Finding::fail(CHECK, error.to_string(), advice);
        }
    };
    let shown = library.display();
    let dynamic = |program: &&str| matches!(kind_of(Path::new(program)), Ok(Kind::Dynamic));
    let Some(cat) = ["/bin/cat", "/usr/bin/cat"].iter().copied().find(dynamic) else {
        return Finding::warn(
            CHECK,
            format!(
                "{shown} is there; no program here can load it: cat is static or of another libc"
            ),
            "a program linked with glibc loads it; for others croupier run says what to do",
        );
    };
    let loaded = Command::new(cat)
        .arg("/proc/self/maps")
        .env_clear()
        .env("LD_PRELOAD", &library)
        .stdin(Stdio::null())
        .output();
    let found = match loaded {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains(preload::FILE) => {
            return Finding::ok(CHECK, format!("{shown} loads"));
        }
        // ld.so says why, and goes on without it.
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("cannot start {cat}: {error}"),
    };
    Finding::fail(
        CHECK,
        format!("{shown} does not load: {found}"),
        "it must be built for this machine's libc, and lie where the mount is not noexec",
    )
}

/// Whether there is a place for the control socket.
#[must_use]
pub fn control() -> Finding {
    const CHECK: &str = "control socket";
    match place::directory_to_be() {
        Ok(directory) => Finding::ok(CHECK, format!("in {}", directory.display())),
        Err(error) => Finding::warn(
            CHECK,
            error.to_string(),
            "croupier runs without it, but status, stop, reload and logs will not find it",
        ),
    }
}

/// Whether an address can be listened on, now and by this user.
#[must_use]
pub fn address(spec: &ListenSpec) -> Finding {
    let public = &spec.public;
    let check = format!("-l {public}");
    match try_address(public) {
        Ok(()) => Finding::ok(check, "free"),
        Err(error) => Finding::fail(
            check,
            diagnose::bind_error(public, error).to_string(),
            "croupier run will end with this message",
        ),
    }
}

fn try_address(address: &ListenAddress) -> io::Result<()> {
    match address {
        ListenAddress::Tcp { address, .. } => std::net::TcpListener::bind(address).map(drop),
        ListenAddress::Unix(path) => try_path(path),
    }
}

/// Without making it: a socket file that is nobody's is replaced by a start, and must not be by this.
fn try_path(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => match UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        },
        Ok(_) => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder: PathBuf = folder.map_or_else(|| ".".into(), Path::to_path_buf);
    Ok(access(&folder, AccessFlags::W_OK | AccessFlags::X_OK)?)
}

/// Everything, in the order in which a start meets it.
#[must_use]
pub fn examine(listen: &[ListenSpec], preload_path: Option<&Path>) -> Vec<Finding> {
    let mut all = vec![kernel(), preload(preload_path), control()];
    all.extend(Seen::now().findings());
    all.extend(listen.iter().map(address));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::wait_for;

    /// A machine on which all is well.
    fn well() -> Seen {
        Seen {
            open_files: (1024, 524_288),
            wmem_max: Some(212_992),
            may_force_buffers: Right::No,
            may_bind_low: Right::No,
            first_free_port: 1024,
            around: Surroundings {
                cpus: 4,
                cpus_online: 4,
                somaxconn: 4096,
                memory: Some(8 << 30),
                ..Surroundings::of_this_process()
            },
            cpu_quota: None,
            tasks: Some((1000, "RLIMIT_NPROC of the user")),
            module: None,
            seccomp: Right::No,
            container: None,
            pid: 4711,
        }
    }

    /// What is not good, by name.
    fn troubles(seen: &Seen) -> Vec<String> {
        let findings = seen.findings();
        for finding in &findings {
            assert_eq!(finding.level == Level::Ok, finding.advice.is_none(), "{finding:?}");
        }
        findings.into_iter().filter(|f| f.level != Level::Ok).map(|f| f.check).collect()
    }

    #[test]
    fn each_trouble_is_found_and_alone() {
        assert_eq!(troubles(&well()), [""; 0]);
        let few = Seen { open_files: (256, 256), ..well() };
        assert_eq!(troubles(&few), ["open files"]);
        let small = Seen { wmem_max: Some(65_536), ..well() };
        assert_eq!(troubles(&small), ["socket buffers"]);
        assert_eq!(troubles(&Seen { may_force_buffers: Right::Yes, ..small }), [""; 0]);
        assert_eq!(troubles(&Seen { wmem_max: None, ..well() }), [""; 0]);
        let around = |change: fn(&mut Surroundings)| {
            let mut seen = well();
            change(&mut seen.around);
            troubles(&seen)
        };
        assert_eq!(around(|around| around.somaxconn = 128), ["backlog"]);
        assert_eq!(around(|around| around.memory = Some(128 << 20)), ["memory"]);
        assert_eq!(around(|around| around.memory = None), [""; 0]);
        assert_eq!(troubles(&Seen { cpu_quota: Some(0.5), ..well() }), ["CPUs"]);
        assert_eq!(troubles(&Seen { cpu_quota: Some(2.0), ..well() }), [""; 0]);
    }

    /// Each says what was found and what to do about it.
    #[test]
    fn findings_are_sentences() {
        let mut all = Vec::new();
        let mut look = |seen: Seen| all.extend(seen.findings());
        look(well());
        let small = Seen { wmem_max: Some(65_536), ..well() };
        look(Seen { may_force_buffers: Right::Yes, ..well() });
        look(small);
        look(Seen { wmem_max: None, container: Some("docker".into()), pid: 1, ..well() });
        look(Seen { open_files: (256, 256), cpu_quota: Some(0.5), ..well() });
        let mut poor = well();
        (poor.around.somaxconn, poor.around.memory) = (128, Some(128 << 20));
        look(poor);
        let by = "pids.max of the cgroup";
        let module =
            |name: &'static str, label: &str| Some(Module { name, label: label.to_owned() });
        look(Seen {
            tasks: Some((135, by)),
            module: module("SELinux", "u:r:httpd_t:s0"),
            ..well()
        });
        look(Seen {
            tasks: Some((500, by)),
            module: module("AppArmor", "mine (enforce)"),
            ..well()
        });
        look(Seen { module: module("AppArmor", "docker-default (enforce)"), ..well() });
        look(Seen { module: module("SELinux", ""), ..well() });
        let mut blind = well();
        blind.around.memory = None;
        look(blind);
        let said = |part: &str| {
            let here = |text: &str| text.contains(part);
            let one = all.iter().any(|f| here(&f.found) || f.advice.as_deref().is_some_and(here));
            assert!(one, "{part:?}: {all:#?}");
        };
        said("limit 256 (soft 256, which workers keep); 4 workers and what is in flight");
        said("raise it: ulimit -Hn, LimitNOFILE= of systemd");
        said("as large as wanted (CAP_NET_ADMIN)");
        said("net.core.wmem_max is not shown in this namespace");
        said("net.core.wmem_max is 65536");
        said("; until then fewer than --queue-limit 64 connections fit a worker's queue");
        said("a backlog has at most 4096 clients (net.core.somaxconn)");
        said("sysctl net.core.somaxconn=4096; until then a burst of more clients has to try again");
        said(
            "from 1024 on; for those below start croupier as root with --user, or give it the right",
        );
        said("4 of 4 CPUs: -w auto starts 4");
        said("the cgroup stops everything for a part of each 100 ms");
        said("neither the cgroup nor the machine says how much");
        said("for each of 4 workers");
        said(
            "few programs fit into that: raise the limit (memory.max) or start fewer workers with -w",
        );
        said("in a container (docker)");
        said(
            "room for 135 processes and threads by pids.max of the cgroup; 4 workers, and as many",
        );
        said("raise it: TasksMax= and LimitNPROC= of systemd");
        said("room for 500 processes and threads by pids.max of the cgroup");
        said("none confines this process");
        said("SELinux confines this process as u:r:httpd_t:s0");
        said("SELinux is on, and as what it confines this process cannot be read");
        assert!(!all.iter().any(|finding| finding.found.ends_with("as ")), "{all:#?}");
        said("where the program runs in another domain LD_PRELOAD is taken away");
        said("a profile whose rule for the program is Px or Cx takes LD_PRELOAD away");
        said("docker-default (enforce), as is usual in a container");
        said("; this is process 1, and reaps what others leave");
    }

    #[test]
    fn what_may_keep_workers_from_starting_is_found() {
        // Of 4 workers: 8 + 2 * 4 * 16.
        let by = "pids.max of the cgroup";
        assert_eq!(troubles(&Seen { tasks: Some((135, by)), ..well() }), ["processes"]);
        assert_eq!(troubles(&Seen { tasks: Some((136, by)), ..well() }), [""; 0]);
        assert_eq!(troubles(&Seen { tasks: None, ..well() }), [""; 0]);
        for (name, label, trouble) in [
            ("SELinux", "system_u:system_r:httpd_t:s0", ["security module"].as_slice()),
            ("SELinux", "system_u:system_r:container_t:s0:c1,c2", &[]),
            ("SELinux", "system_u:system_r:spc_t:s0", &[]),
            ("SELinux", "", &["security module"]),
            ("AppArmor", "/usr/sbin/croupier (enforce)", &["security module"]),
            ("AppArmor", "docker-default (enforce)", &[]),
        ] {
            let module = Some(Module { name, label: label.to_owned() });
            assert_eq!(troubles(&Seen { module, ..well() }), trouble, "{label}");
        }
    }

    #[test]
    fn what_is_only_to_be_known_is_said() {
        let found = |seen: &Seen, check: &str| {
            seen.findings().into_iter().find(|f| f.check == check).unwrap().found
        };
        assert!(found(&well(), "ports").contains("from 1024 on"));
        let root = Seen { may_bind_low: Right::Yes, ..well() };
        assert_eq!(found(&root, "ports"), "all may be bound");
        let all_free = Seen { first_free_port: 0, ..well() };
        assert_eq!(found(&all_free, "ports"), "all may be bound");
        assert_eq!(found(&well(), "confinement"), "no seccomp filter, no container");
        let inside =
            Seen { seccomp: Right::Yes, container: Some("docker".into()), pid: 1, ..well() };
        let text = found(&inside, "confinement");
        assert!(text.contains("filter is on") && text.contains("(docker)"), "{text}");
        assert!(text.contains("process 1"), "{text}");
        let quota = Seen { cpu_quota: Some(1.5), ..well() };
        assert!(found(&quota, "CPUs").contains("quota 1.50"), "{}", found(&quota, "CPUs"));
    }

    #[test]
    fn addresses_are_tried_and_left_as_they_were() {
        let spec = |text: &str| crate::config::parse_listen(text).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let text = path.to_str().unwrap();
        assert_eq!(address(&spec(text)).level, Level::Ok);
        assert!(!path.exists(), "it is only tried");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(address(&spec(text)).level, Level::Fail);
        drop(listener);
        // A child that another test is just starting may still have a copy, until it executes.
        wait_for("it to be nobody's", || (address(&spec(text)).level == Level::Ok).then_some(()));
        assert!(path.exists());
        let missing = address(&spec(folder.path().join("no/a.sock").to_str().unwrap()));
        assert!(missing.found.contains("No such file"), "{missing:?}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let held = address(&spec(&format!("127.0.0.1:{port}")));
        assert!(held.level == Level::Fail && held.found.contains("in use by"), "{held:?}");
    }

    #[test]
    fn the_library_must_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(preload::FILE);
        let missing = preload(Some(&path));
        assert!(missing.level == Level::Fail && missing.found.contains("missing"), "{missing:?}");
        fs::write(&path, "no library").unwrap();
        let damaged = preload(Some(&path));
        assert!(damaged.level == Level::Fail, "{damaged:?}");
        assert!(damaged.found.contains("does not load: ERROR: ld.so"), "{damaged:?}");
        let advice = damaged.advice.unwrap();
        assert!(
            advice.starts_with("it must be built for this machine's libc, and lie where"),
            "{advice}"
        );
    }

    #[test]
    fn this_kernel_has_it_all() {
        let kernel = kernel();
        let well = kernel.level == Level::Ok && kernel.found.ends_with(" has all that is needed");
        assert!(well, "{kernel:?}");
    }
}
