//! What confines this process from outside: containers, security modules, limits of processes.
//!
//! Owns nothing. Never does: judge what it sees (`doctor`).

use std::fs;
use std::path::Path;

use procfs::process::all_processes;

use super::Right;

/// A security module that confines this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// `SELinux` or `AppArmor`.
    pub name: &'static str,
    /// The context or profile; empty where it cannot be read.
    pub label: String,
}

/// Contexts and profiles in which croupier is known to run: those of container engines.
/// `spc_t`: privileged ones.
pub(super) const KNOWN_LABELS: [&str; 5] = [
    "docker-default",
    "cri-containerd.apparmor.d",
    "containers-default",
    ":container_t:",
    ":spc_t:",
];

/// Processes that are looked at to count those of a user.
const COUNTED_MAX: usize = 65_536;

/// The narrower limit of two, and what it leaves room for. That of the user does not bind root, nor who
/// may exceed it.
pub(super) fn tasks(
    by_cgroup: Option<u64>,
    of_user: u64,
    has: impl FnOnce() -> u64,
    exempt: Right,
) -> Option<(u64, &'static str)> {
    let binds = exempt == Right::No && of_user != libc::RLIM_INFINITY;
    let by_user = binds.then(|| of_user.saturating_sub(has()));
    let both = [(by_cgroup, "pids.max of the cgroup"), (by_user, "RLIMIT_NPROC of the user")];
    both.into_iter().filter_map(|(room, by)| Some((room?, by))).min()
}

/// Processes and threads that `RLIMIT_NPROC` counts of a user: all of the same real user. Those in other
/// PID namespaces count as well, and do not show here.
pub(super) fn tasks_of(uid: u32) -> u64 {
    let all = all_processes().into_iter().flatten().take(COUNTED_MAX);
    let statuses = all.filter_map(|process| process.and_then(|process| process.status()).ok());
    statuses.filter(|status| status.ruid == uid).map(|status| status.threads).sum()
}

/// What confines this process, by the files below `root`.
pub(super) fn module(root: &Path) -> Option<Module> {
    let read = |path: &str| {
        let text = fs::read_to_string(root.join(path)).ok()?;
        Some(text.trim_end_matches(['\n', '\0']).to_owned())
    };
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text == value);
    if is("sys/fs/selinux/enforce", "1") {
        let label = read("proc/self/attr/current").unwrap_or_default();
        return (!label.contains("unconfined")).then_some(Module { name: "SELinux", label });
    }
    if is("sys/module/apparmor/parameters/enabled", "Y") {
        // The first since Linux 5.8, where several modules may be on.
        let label =
            read("proc/self/attr/apparmor/current").or_else(|| read("proc/self/attr/current"));
        let label = label.filter(|label| label.ends_with("(enforce)"))?;
        return Some(Module { name: "AppArmor", label });
    }
    None
}

pub(super) fn container() -> Option<String> {
    let there = |path: &str| Path::new(path).exists();
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Some("kubernetes".into());
    }
    if there("/.dockerenv") {
        return Some("docker".into());
    }
    if there("/run/.containerenv") {
        return Some("podman".into());
    }
    // systemd's convention; readable by root.
    let environment = fs::read("/proc/1/environ").unwrap_or_default();
    let variables = environment.split(|byte| *byte == 0);
    let mut named = variables.filter_map(|variable| variable.strip_prefix(b"container="));
    named.next().map(|name| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_limit_of_processes_counts_and_roots_own_does_not() {
        let (user, cgroup) = ("RLIMIT_NPROC of the user", "pids.max of the cgroup");
        let none = || 0;
        assert_eq!(tasks(Some(70), 50, none, Right::No), Some((50, user)));
        assert_eq!(tasks(Some(30), 50, none, Right::No), Some((30, cgroup)));
        assert_eq!(tasks(Some(70), 50, none, Right::Yes), Some((70, cgroup)));
        // What the user has already is taken from it, and may be more than it: nobody has to count it
        // where it binds nobody.
        assert_eq!(tasks(Some(30), 50, || 21, Right::No), Some((29, user)));
        assert_eq!(tasks(None, 50, || 60, Right::No), Some((0, user)));
        let unasked = || -> u64 { panic!("it is not to be counted") };
        assert_eq!(tasks(None, 50, unasked, Right::Yes), None);
        assert_eq!(tasks(None, libc::RLIM_INFINITY, unasked, Right::No), None);
    }

    #[test]
    fn a_security_module_is_seen_where_it_confines() {
        const ENFORCE: (&str, &str) = ("sys/fs/selinux/enforce", "1");
        const ARMOUR: (&str, &str) = ("sys/module/apparmor/parameters/enabled", "Y\n");
        const OWN: &str = "proc/self/attr/current";
        const NEW: &str = "proc/self/attr/apparmor/current";
        for (files, expected) in [
            (vec![], None),
            (vec![ENFORCE, (OWN, "u:r:httpd_t:s0\0")], Some(("SELinux", "u:r:httpd_t:s0"))),
            (vec![ENFORCE], Some(("SELinux", ""))),
            (vec![ENFORCE, (OWN, "u:r:unconfined_service_t:s0\0")], None),
            (vec![("sys/fs/selinux/enforce", "0"), (OWN, "u:r:httpd_t:s0\0")], None),
            (vec![ARMOUR, (OWN, "web (enforce)\n")], Some(("AppArmor", "web (enforce)"))),
            (
                vec![ARMOUR, (NEW, "web (enforce)\n"), (OWN, "x")],
                Some(("AppArmor", "web (enforce)")),
            ),
            (vec![ARMOUR, (OWN, "web (complain)\n")], None),
            (vec![ARMOUR, (OWN, "unconfined\n")], None),
            (vec![("sys/module/apparmor/parameters/enabled", "N\n"), (OWN, "web (enforce)")], None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for (path, text) in &files {
                let path = folder.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            let expected = expected.map(|(name, label)| Module { name, label: label.to_owned() });
            assert_eq!(module(folder.path()), expected, "{files:?}");
        }
    }
}
