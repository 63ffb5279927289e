//! What the configuration takes from the process and the machine.
//!
//! Promises: one look, at the start; tests bring their own. Never does: judge what it sees.

use super::Inherited;

/// What the configuration takes from the world, so that tests can bring their own.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// CPUs that this process may use, by affinity and cgroup quota.
    pub cpus: u16,
    /// CPUs that the machine has online, to explain the number above.
    pub cpus_online: u16,
    /// `WORKERS`.
    pub workers: Option<String>,
    /// `WEB_CONCURRENCY`.
    pub web_concurrency: Option<String>,
    /// `NODE_CLUSTER_SCHED_POLICY`.
    pub node_sched_policy: Option<String>,
    /// The kernel's largest backlog.
    pub somaxconn: u32,
    /// Bytes of memory, by control group and machine.
    pub memory: Option<u64>,
    /// Listening sockets that a service manager opened, or a sentence on why they cannot be used.
    pub inherited: Result<Vec<Inherited>, String>,
}

impl Surroundings {
    /// Looks at the process and the machine.
    #[must_use]
    pub fn of_this_process() -> Self {
        let narrow = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).max(1);
        // std counts the affinity mask and cuts it to the cgroup's CPU quota, v1 and v2.
        let cpus = std::thread::available_parallelism().map_or(1, |count| narrow(count.get()));
        let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
            .ok()
            .flatten()
            .and_then(|count| usize::try_from(count).ok())
            .map_or(cpus, narrow);
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            cpus,
            cpus_online: online,
            workers: var("WORKERS"),
            web_concurrency: var("WEB_CONCURRENCY"),
            node_sched_policy: var("NODE_CLUSTER_SCHED_POLICY"),
            somaxconn: std::fs::read_to_string("/proc/sys/net/core/somaxconn")
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .unwrap_or(4096),
            memory: crate::memory::available(),
            inherited: super::inherited::of_this_process(),
        }
    }
}
