//! How much memory there is: what the control groups leave of the machine's.
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
    let (root, file) = if group.hierarchy == 0 {
        (mount.to_owned(), "memory.max")
    } else if group.controllers.iter().any(|name| name == "memory") {
        (mount.join("memory"), "memory.limit_in_bytes")
    } else {
        return None;
    };
    let path: PathBuf = root.join(group.pathname.trim_start_matches('/'));
    let groups = path.ancestors().take_while(|path| path.starts_with(&root));
    // "max" is no limit; a group that is not mounted here has no file.
    groups.filter_map(|path| fs::read_to_string(path.join(file)).ok()?.trim().parse().ok()).min()
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
    fn this_machine_has_memory() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
