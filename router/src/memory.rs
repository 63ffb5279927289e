//! How much memory and CPU there is, and room for processes: what the control groups leave of the machine's.
//!
//! Owns nothing. Promises: the smallest limit from the process's own control group up to the root,
//! v2 or v1, and never more than the machine has. Never does: fail; where nothing can be read, the
//! answer is `None`.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::Process;
use procfs::{Current, Meminfo, ProcessCGroup};

/// Where control groups are mounted (systemd, Docker, Kubernetes).
const MOUNT: &str = "/sys/fs/cgroup";

/// Bytes that this process and its descendants may use together.
#[must_use]
pub fn available() -> Option<u64> {
    let machine = Meminfo::current().ok().map(|memory| memory.mem_total);
    let groups = Process::myself().and_then(|process| process.cgroups());
    let groups = groups.map(|groups| groups.0).unwrap_or_default();
    let limits = groups.iter().filter_map(|group| limit_of(Path::new(MOUNT), group));
    limits.chain(machine).min()
}

/// The smallest limit of a group and those above it.
fn limit_of(mount: &Path, group: &ProcessCGroup) -> Option<u64> {
    // "max" is no limit.
    let texts = texts_of(mount, group, "memory", ["memory.max", "memory.limit_in_bytes"]);
    texts.iter().filter_map(|text| text.trim().parse().ok()).min()
}

/// CPUs that the control groups let this process and its descendants have together, by quota.
#[must_use]
pub fn cpu_quota() -> Option<f64> {
    let groups = Process::myself().and_then(|process| process.cgroups());
    let groups = groups.map(|groups| groups.0).unwrap_or_default();
    let quotas = groups.iter().filter_map(|group| quota_of(Path::new(MOUNT), group));
    quotas.reduce(f64::min)
}

fn quota_of(mount: &Path, group: &ProcessCGroup) -> Option<f64> {
    let quotas = texts_of(mount, group, "cpu", ["cpu.max", "cpu.cfs_quota_us"]);
    let periods = texts_of(mount, group, "cpu", ["cpu.max", "cpu.cfs_period_us"]);
    // "50000 100000" in v2; -1 or "max" is no quota.
    let first = |text: &str| text.split_whitespace().next().and_then(|word| word.parse().ok());
    let last = |text: &str| text.split_whitespace().next_back().and_then(|word| word.parse().ok());
    let share = |(quota, period): (&String, &String)| {
        let (quota, period): (f64, f64) = (first(quota)?, last(period)?);
        (quota > 0.0 && period > 0.0).then_some(quota / period)
    };
    quotas.iter().zip(&periods).filter_map(share).reduce(f64::min)
}

/// Processes and threads that the control groups still have room for.
#[must_use]
pub fn tasks_left() -> Option<u64> {
    let groups = Process::myself().and_then(|process| process.cgroups());
    let groups = groups.map(|groups| groups.0).unwrap_or_default();
    groups.iter().filter_map(|group| tasks_of(Path::new(MOUNT), group)).min()
}

fn tasks_of(mount: &Path, group: &ProcessCGroup) -> Option<u64> {
    let [most, now] =
        ["pids.max", "pids.current"].map(|file| texts_of(mount, group, "pids", [file; 2]));
    let number = |text: &String| text.trim().parse::<u64>().ok();
    let left = |(most, now)| Some(number(most)?.saturating_sub(number(now)?));
    most.iter().zip(&now).filter_map(left).min()
}

/// What a file says in a group and in those above it: the first name in v2, the second in v1, where
/// it is of that controller. A group that is not mounted here has no file.
fn texts_of(
    mount: &Path,
    group: &ProcessCGroup,
    controller: &str,
    [v2, v1]: [&str; 2],
) -> Vec<String> {
    let (root, file) = if group.hierarchy == 0 {
        (mount.to_owned(), v2)
    } else if group.controllers.iter().any(|name| name == controller) {
        (mount.join(controller), v1)
    } else {
        return Vec::new();
    };
    let path: PathBuf = root.join(group.pathname.trim_start_matches('/'));
    let groups = path.ancestors().take_while(|path| path.starts_with(&root));
    groups.filter_map(|path| fs::read_to_string(path.join(file)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(hierarchy: u32, controllers: &[&str], pathname: &str) -> ProcessCGroup {
        let controllers = controllers.iter().map(ToString::to_string).collect();
        ProcessCGroup { hierarchy, controllers, pathname: pathname.to_owned() }
    }

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_smallest_limit_up_to_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path();
        write(mount, "memory.max", "max\n");
        write(mount, "a/memory.max", "5000\n");
        write(mount, "a/b/memory.max", "9000\n");
        write(mount, "a/c/memory.max", "max\n");
        write(mount, "memory/d/memory.limit_in_bytes", "700\n");
        for (hierarchy, controllers, path, expected) in [
            (0, [].as_slice(), "/a/b", Some(5000)),
            (0, &[], "/a/c", Some(5000)),
            (0, &[], "/", None),
            (0, &[], "/elsewhere/deep", None),
            (4, &["memory"], "/d", Some(700)),
            (4, &["memory"], "/d/unknown", Some(700)),
            (5, &["cpu", "cpuacct"], "/d", None),
        ] {
            let found = limit_of(mount, &group(hierarchy, controllers, path));
            assert_eq!(found, expected, "{hierarchy} {path}");
        }
    }

    #[test]
    fn the_smallest_quota_up_to_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path();
        write(mount, "cpu.max", "max 100000\n");
        write(mount, "a/cpu.max", "50000 100000\n");
        write(mount, "a/b/cpu.max", "max 100000\n");
        write(mount, "cpu/d/cpu.cfs_quota_us", "150000\n");
        write(mount, "cpu/d/cpu.cfs_period_us", "100000\n");
        write(mount, "cpu/e/cpu.cfs_quota_us", "-1\n");
        write(mount, "cpu/e/cpu.cfs_period_us", "100000\n");
        for (hierarchy, controllers, path, expected) in [
            (0, [].as_slice(), "/a/b", Some(0.5)),
            (0, &[], "/", None),
            (2, &["cpu", "cpuacct"], "/d", Some(1.5)),
            (2, &["cpu"], "/e", None),
            (4, &["memory"], "/d", None),
        ] {
            let found = quota_of(mount, &group(hierarchy, controllers, path));
            assert_eq!(found, expected, "{hierarchy} {path}");
        }
    }

    #[test]
    fn the_least_room_for_processes_up_to_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path();
        for (path, most, now) in [
            ("a", "100", "40"),
            ("a/b", "max", "7"),
            ("a/c", "20", "25"),
            ("pids/d", "50", "10"),
            ("e", "max", "3"),
        ] {
            write(mount, &format!("{path}/pids.max"), &format!("{most}\n"));
            write(mount, &format!("{path}/pids.current"), &format!("{now}\n"));
        }
        for (hierarchy, controllers, path, expected) in [
            (0, [].as_slice(), "/a/b", Some(60)),
            (0, &[], "/a/c", Some(0)),
            (0, &[], "/e", None),
            (0, &[], "/", None),
            (8, &["pids"], "/d", Some(40)),
            (4, &["memory"], "/d", None),
        ] {
            let found = tasks_of(mount, &group(hierarchy, controllers, path));
            assert_eq!(found, expected, "{hierarchy} {path}");
        }
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
