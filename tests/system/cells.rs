//! Control groups of tests, where this machine lets one make them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use croupier_tests::{Guard, PATIENCE, wait_until};

/// A cgroup with a CPU quota, removed when it is dropped.
pub(crate) struct CpuCell {
    folder: PathBuf,
}

impl CpuCell {
    /// So many hundredths of a CPU. In the hierarchy of v1, or below the cgroup of this process (v2).
    pub(crate) fn new(guard: &Guard, percent: u32) -> Result<Self, String> {
        let text = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let own = |which: &dyn Fn(&str) -> bool| {
            text.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                which(controllers).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let mount = Path::new("/sys/fs/cgroup");
        let v1 = own(&|controllers| controllers.split(',').any(|name| name == "cpu"))
            .map(|path| mount.join("cpu").join(path))
            .filter(|folder| {
                folder.join("cpu.cfs_quota_us").exists() || folder == &mount.join("cpu")
            });
        let (parent, files) = match (v1, own(&str::is_empty)) {
            (Some(folder), _) => {
                let quota = (percent * 1000).to_string();
                (
                    folder,
                    vec![("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", quota)],
                )
            }
            (None, Some(path)) => {
                let folder = mount.join(path);
                let control = folder.join("cgroup.subtree_control");
                // Never made: in a folder that is no cgroup it would be an ordinary file.
                let file = fs::OpenOptions::new().write(true).open(&control);
                file.and_then(|mut file| file.write_all(b"+cpu")).map_err(|error| {
                    format!("{} passes no cpu controller on: {error}", folder.display())
                })?;
                (folder, vec![("cpu.max", format!("{} 100000", percent * 1000))])
            }
            (None, None) => return Err("no cgroup with a cpu controller".into()),
        };
        let folder = parent.join(format!("croupier-test-{}-{}", guard.name(), std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let cell = Self { folder };
        for (file, value) in files {
            let path = cell.folder.join(file);
            fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(cell)
    }

    /// The command of a shell that enters it.
    pub(crate) fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.folder.display())
    }
}

impl Drop for CpuCell {
    fn drop(&mut self) {
        wait_until(PATIENCE, "the cgroup to be empty", || {
            fs::remove_dir(&self.folder).map_err(|error| error.to_string())
        });
    }
}
