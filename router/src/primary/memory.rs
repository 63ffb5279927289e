//! Who was killed for lack of memory: the kernel says so only by counting.
//!
//! Owns what was seen of the counters of the primary's cgroup, which its workers are born into, and
//! of cgroups that workers have moved to. A SIGKILL that nobody here sent is an OOM kill if such a
//! counter has risen since it was last looked at: the kernel counts before it kills. Looked at when
//! a worker starts, when it becomes ready, and when one is killed; never by a timer. cgroup v2
//! (`memory.events`, which counts what is below as well) and v1 (`memory.oom_control`).
//!
//! What it cannot tell: a counter that rose because of a worker's *child*, a moment before somebody
//! else sent SIGKILL to the worker itself.

use std::fs;
use std::path::{Path, PathBuf};

use croupier_core::event::{ExitStatus, WorkerId};
use procfs::process::Process;

use super::run::Primary;
use super::worker::Worker;

/// cgroups whose kills are counted: the primary's own, and those that workers moved to last.
const CGROUPS_MAX: usize = 64;
/// So long a kill that was counted may be waited for: of several that are killed at once each end
/// is heard of by itself.
const CREDIT_NS: u64 = 2_000_000_000;
/// v1 says "no limit" by a number of about 2⁶³.
const NO_LIMIT: u64 = 1 << 60;

/// Which files a cgroup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    const fn kills(self) -> &'static str {
        match self {
            Self::One => "memory.oom_control",
            Self::Two => "memory.events",
        }
    }

    const fn limit(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }
}

/// A cgroup, as the file system shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    version: Version,
    /// Where its hierarchy is mounted.
    mount: PathBuf,
    folder: PathBuf,
}

/// A cgroup's kills.
#[derive(Debug)]
struct Group {
    place: Place,
    /// The counter when it was last looked at.
    seen: u64,
    /// Of what it rose by: not yet known whose end it was.
    credit: u64,
    /// When it last rose.
    rose_at: u64,
}

impl Group {
    fn new(place: Place) -> Option<Self> {
        let seen = kills(&place)?;
        Some(Self { place, seen, credit: 0, rose_at: 0 })
    }

    fn look(&mut self, now: u64) {
        if now.saturating_sub(self.rose_at) > CREDIT_NS {
            self.credit = 0;
        }
        let Some(count) = kills(&self.place) else { return };
        if count > self.seen {
            self.credit += count - self.seen;
            self.rose_at = now;
        }
        self.seen = count;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    /// The primary's own first.
    groups: Vec<Group>,
    own: usize,
    /// What the last one that was killed might have used, if that is known.
    limit: Option<u64>,
}

impl Memory {
    /// The counters of the cgroups that this process, and so its children, are in.
    pub(super) fn of_this_process(now: u64) -> Self {
        let places = Process::myself().map(|own| places_of(&own)).unwrap_or_default();
        let groups: Vec<Group> = places.into_iter().filter_map(Group::new).collect();
        let mut memory = Self { own: groups.len(), groups, limit: None };
        memory.look(now);
        memory
    }

    /// Sees what has happened so far: an end that comes much later has another reason.
    pub(super) fn look(&mut self, now: u64) {
        for group in &mut self.groups {
            group.look(now);
        }
    }

    /// Learns in which cgroups of its own a worker is. Returns their folders.
    fn know(&mut self, pid: u32) -> Vec<PathBuf> {
        let process = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok());
        let places = process.map(|process| places_of(&process)).unwrap_or_default();
        let mut folders = Vec::new();
        for place in places {
            let folder = place.folder.clone();
            match self.groups.iter().position(|group| group.place == place) {
                Some(at) if at < self.own => continue,
                Some(_) => {}
                None => {
                    if self.groups.len() >= CGROUPS_MAX && self.own < CGROUPS_MAX {
                        self.groups.remove(self.own);
                    }
                    let Some(group) = Group::new(place) else { continue };
                    self.groups.push(group);
                }
            }
            folders.push(folder);
        }
        folders
    }

    /// How a main process really ended.
    pub(super) fn judge(&mut self, worker: &Worker, status: ExitStatus, now: u64) -> ExitStatus {
        let by_us = worker.burying.is_some();
        if status != ExitStatus::Signal(libc::SIGKILL)
            || by_us
            || !self.killed(&worker.cgroups, now)
        {
            return status;
        }
        ExitStatus::OutOfMemory
    }

    /// Whether the kernel killed somebody in the primary's cgroups or in these.
    fn killed(&mut self, folders: &[PathBuf], now: u64) -> bool {
        let (own, mut found) = (self.own, None);
        // From the outermost: the innermost that counted it has the limit that matters.
        for (at, group) in self.groups.iter_mut().enumerate() {
            if at >= own && !folders.contains(&group.place.folder) {
                continue;
            }
            group.look(now);
            if group.credit > 0 {
                group.credit -= 1;
                found = Some(&group.place);
            }
        }
        if let Some(place) = found {
            self.limit = limit(place);
        }
        found.is_some()
    }

    /// What to do about the last kill, to follow a sentence that says it.
    pub(super) fn advice(&self) -> String {
        let what = match self.limit {
            Some(limit) => format!("its cgroup may use {}", size(limit)),
            None => "the machine had none left".to_owned(),
        };
        format!("; {what}: give it more, run fewer workers (-w), or find out what they need it for")
    }
}

impl Primary {
    /// A worker is ready: it is now where it will stay.
    pub(super) fn note_cgroup(&mut self, worker: WorkerId) {
        self.memory.look(self.now);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.cgroups = self.memory.know(worker.pid);
        }
    }
}

/// The memory cgroups of a process that count kills.
fn places_of(process: &Process) -> Vec<Place> {
    let (Ok(cgroups), Ok(mounts)) =
        (process.cgroups(), Process::myself().and_then(|p| p.mountinfo()))
    else {
        return Vec::new();
    };
    let mut places = Vec::new();
    for cgroup in cgroups {
        let has_memory = cgroup.controllers.iter().any(|name| name == "memory");
        let version = match cgroup.hierarchy {
            0 => Version::Two,
            _ if has_memory => Version::One,
            _ => continue,
        };
        let is_its = |mount: &&procfs::process::MountInfo| match version {
            Version::Two => mount.fs_type == "cgroup2",
            Version::One => mount.fs_type == "cgroup" && mount.super_options.contains_key("memory"),
        };
        let found = mounts.iter().filter(is_its).map(|mount| Place {
            version,
            mount: mount.mount_point.clone(),
            folder: folder(&cgroup.pathname, &mount.root, &mount.mount_point),
        });
        // Where the path does not lead (another namespace's), there is nothing to count.
        places.extend(found.filter(|place| kills(place).is_some()).take(1));
    }
    places
}

/// Where a cgroup's folder is: a mount may show a part of the hierarchy only.
fn folder(pathname: &str, root: &str, mount: &Path) -> PathBuf {
    let below = Path::new(pathname).strip_prefix(root);
    let below = below.or_else(|_| Path::new(pathname).strip_prefix("/"));
    below.map_or_else(|_| mount.to_owned(), |below| mount.join(below))
}

fn kills(place: &Place) -> Option<u64> {
    count(&fs::read_to_string(place.folder.join(place.version.kills())).ok()?)
}

/// The line `oom_kill N`.
fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok())
}

/// The lowest limit from a cgroup up to the root of its hierarchy.
fn limit(place: &Place) -> Option<u64> {
    let name = place.version.limit();
    let folders = place.folder.ancestors().take_while(|folder| folder.starts_with(&place.mount));
    let limits = folders.filter_map(|folder| fs::read_to_string(folder.join(name)).ok());
    limits.filter_map(|text| text.trim().parse().ok()).filter(|limit| *limit < NO_LIMIT).min()
}

/// `512 MiB`, `1.5 GiB`.
fn size(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    match bytes {
        GIB.. if bytes.is_multiple_of(GIB) => format!("{} GiB", bytes / GIB),
        GIB.. => format!("{}.{} GiB", bytes / GIB, bytes % GIB * 10 / GIB),
        MIB..GIB => format!("{} MiB", bytes / MIB),
        _ => format!("{} KiB", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_versions() {
        let v2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        assert_eq!((count(v2), count(v1)), (Some(2), Some(7)));
        assert_eq!(count("low 0\nhigh 0\nmax 0\noom 0\n"), None, "before Linux 4.13");
    }

    #[test]
    fn folders_below_mounts() {
        let at = |pathname, root| folder(pathname, root, Path::new("/sys/fs/cgroup"));
        assert_eq!(at("/", "/"), Path::new("/sys/fs/cgroup"));
        assert_eq!(at("/system.slice/a", "/"), Path::new("/sys/fs/cgroup/system.slice/a"));
        // A container without a cgroup namespace of its own.
        assert_eq!(at("/docker/1f/b", "/docker/1f"), Path::new("/sys/fs/cgroup/b"));
    }

    /// A hierarchy of ordinary files.
    fn place(version: Version, mount: &Path, folder: &str) -> Place {
        let folder = mount.join(folder);
        fs::create_dir_all(&folder).unwrap();
        Place { version, mount: mount.to_owned(), folder }
    }

    fn set(place: &Place, kills: u64) {
        fs::write(place.folder.join(place.version.kills()), format!("oom 9\noom_kill {kills}\n"))
            .unwrap();
    }

    #[test]
    fn each_kill_explains_one_end_and_not_for_long() {
        let mount = tempfile::tempdir().unwrap();
        let own = place(Version::Two, mount.path(), "own");
        set(&own, 5);
        let group = Group::new(own.clone()).unwrap();
        let mut memory = Memory { groups: vec![group], own: 1, limit: None };
        let second = 1_000_000_000;
        assert!(!memory.killed(&[], second), "what was before does not count");
        set(&own, 7);
        assert!(memory.killed(&[], 2 * second));
        assert!(memory.killed(&[], 3 * second), "two were killed at once");
        assert!(!memory.killed(&[], 3 * second), "a third was killed by somebody else");
        set(&own, 8);
        memory.look(10 * second);
        assert!(!memory.killed(&[], 13 * second), "long ago, it was a child");
        set(&own, 9);
        assert!(memory.killed(&[], 14 * second));
    }

    #[test]
    fn a_cgroup_inside_and_the_limit_that_matters() {
        let mount = tempfile::tempdir().unwrap();
        let (own, inner) = (
            place(Version::Two, mount.path(), "own"),
            place(Version::Two, mount.path(), "own/a/b"),
        );
        let other = place(Version::One, mount.path(), "other");
        for place in [&own, &inner, &other] {
            set(place, 0);
        }
        let groups = [&own, &other, &inner].map(|place| Group::new(place.clone()).unwrap()).into();
        let mut memory = Memory { groups, own: 1, limit: None };
        let text = |folder: &str, text: &str| {
            fs::write(mount.path().join(folder).join("memory.max"), text).unwrap();
        };
        text("own", "max\n");
        text("own/a", "67108864\n");
        text("own/a/b", "1073741824\n");
        // v2 counts on every level.
        set(&own, 1);
        set(&inner, 1);
        set(&other, 1);
        assert!(memory.killed(std::slice::from_ref(&inner.folder), 1));
        assert!(memory.advice().contains("its cgroup may use 64 MiB"), "{}", memory.advice());
        assert!(!memory.killed(std::slice::from_ref(&inner.folder), 2), "it was counted once");
        assert!(memory.killed(std::slice::from_ref(&other.folder), 3));
        assert!(memory.advice().contains("the machine had none left"), "{}", memory.advice());
    }

    #[test]
    fn sizes_for_people() {
        let sizes = [64 << 10, 64 << 20, 1 << 30, 3 << 29].map(size);
        assert_eq!(sizes, ["64 KiB", "64 MiB", "1 GiB", "1.5 GiB"]);
    }
}
