//! The engines and workloads that sentences and goals speak of by name.
//!
//! Promises: each is one that `croupier-bench run` knows (a test asks it). Never does: decide what runs.

/// Engines.
pub(crate) mod engine {
    pub(crate) const LEAST: &str = "least";
    pub(crate) const LEAST_ONE: &str = "least-1";
    pub(crate) const RR: &str = "rr";
    pub(crate) const IP: &str = "ip";
    pub(crate) const SHARED: &str = "shared";
    pub(crate) const PLAIN_SHARED: &str = "plain-shared";
    pub(crate) const PLAIN_REUSEPORT: &str = "plain-reuseport";
    pub(crate) const FLOOR: &str = "floor";
    pub(crate) const HAPROXY: &str = "haproxy";
    pub(crate) const NGINX: &str = "nginx";
    pub(crate) const NODE_CROUPIER: &str = "node-croupier";
    pub(crate) const NODE_RR: &str = "node-rr";
    pub(crate) const NODE_NONE: &str = "node-none";
}

/// Workloads.
pub(crate) mod workload {
    pub(crate) const SHORT: &str = "short";
    pub(crate) const SHORT_FULL: &str = "short-full";
    pub(crate) const SHORT_PACED: &str = "short-paced";
    pub(crate) const CPU: &str = "cpu";
    pub(crate) const ONE_BY_ONE: &str = "one-by-one";
    pub(crate) const TAIL_70: &str = "tail-70";
    pub(crate) const LONG_FEW: &str = "long-few";
    pub(crate) const LONG_MANY: &str = "long-many";
    pub(crate) const STALL: &str = "stall";
    pub(crate) const KILL: &str = "kill";
    pub(crate) const RELOAD: &str = "reload";
    pub(crate) const STICKY: &str = "sticky";
    /// A family.
    pub(crate) const WORKERS: &str = "workers";
}

#[cfg(test)]
mod tests {
    use super::{engine, workload};

    #[test]
    fn the_harness_knows_each_name() {
        let engines = crate::engine::catalogue();
        for id in [
            engine::LEAST,
            engine::LEAST_ONE,
            engine::RR,
            engine::IP,
            engine::SHARED,
            engine::PLAIN_SHARED,
            engine::PLAIN_REUSEPORT,
            engine::FLOOR,
            engine::HAPROXY,
            engine::NGINX,
            engine::NODE_CROUPIER,
            engine::NODE_RR,
            engine::NODE_NONE,
        ] {
            assert!(engines.iter().any(|engine| engine.info.id == id), "{id}");
        }
        let workloads = crate::workload::catalogue(2);
        for id in [
            workload::SHORT,
            workload::SHORT_FULL,
            workload::SHORT_PACED,
            workload::CPU,
            workload::ONE_BY_ONE,
            workload::TAIL_70,
            workload::LONG_FEW,
            workload::LONG_MANY,
            workload::STALL,
            workload::KILL,
            workload::RELOAD,
            workload::STICKY,
        ] {
            assert!(workloads.iter().any(|workload| workload.info.id == id), "{id}");
        }
        let many = |one: &crate::workload::Workload| {
            one.info.family == workload::WORKERS && one.info.workers == 256
        };
        assert!(workloads.iter().any(many));
    }
}
