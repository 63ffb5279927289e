//! What it was measured on.
//!
//! Owns: the facts about machine, programs and source tree, and who gets which CPUs. Promises: what
//! cannot be found out is said to be unknown. Never does: change the machine.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::Pid;

use crate::data::{Environment, Pinning, ProgramVersion};
use crate::engine::Programs;
use crate::process::Guarded;

/// With fewer CPUs than this, nobody can have some of his own.
const PIN_FROM: usize = 4;
/// It gets one CPU in so many: a client of a short connection costs more than its server.
const GENERATOR_SHARE: usize = 2;

/// Looks.
#[must_use]
pub fn look(programs: &Programs, pinning: Pinning) -> Environment {
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    let changes = output("git", &["status", "--porcelain", "--untracked-files=no"]);
    Environment {
        began: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        kernel: output("uname", &["-sr"]).unwrap_or_default(),
        cpu: of_cpuinfo("model name").unwrap_or_else(|| "unknown".to_owned()),
        cpus: u32::try_from(all_cpus(&pinning)).unwrap_or(0),
        governor: text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        virtual_machine: of_cpuinfo("flags")
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor")),
        memory_bytes: memory_bytes(),
        nofile: getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0)),
        somaxconn: number_of("/proc/sys/net/core/somaxconn"),
        port_range: port_range(),
        tcp_tw_reuse: number_of("/proc/sys/net/ipv4/tcp_tw_reuse"),
        load_average: text_of("/proc/loadavg")
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .unwrap_or(0.0),
        commit,
        dirty: changes.is_some_and(|changes| !changes.is_empty()),
        debug_build: programs.is_debug(),
        versions: versions(programs),
        pinning,
    }
}

/// The CPUs that this process may use.
#[must_use]
pub fn own_cpus() -> Vec<u32> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .filter_map(|cpu| u32::try_from(cpu).ok())
        .collect()
}

/// How many CPUs the engines have; asked before anybody is pinned.
#[must_use]
pub fn subject_cpus() -> u32 {
    u32::try_from(subject_of(&own_cpus())).unwrap_or(1)
}

fn subject_of(cpus: &[u32]) -> usize {
    match divide(cpus).subject.len() {
        0 => cpus.len(),
        divided => divided,
    }
}

/// How many CPUs the run has: once pinned, this thread itself may use only some of them.
fn all_cpus(pinning: &Pinning) -> usize {
    match pinning.generator.len() + pinning.subject.len() {
        0 => own_cpus().len(),
        divided => divided,
    }
}

/// Divides the CPUs, and puts this thread (and those that it starts) on the generator's.
#[must_use]
pub fn pin() -> Pinning {
    let cpus = own_cpus();
    let mut pinning = divide(&cpus);
    if pinning.generator.is_empty() {
        return pinning;
    }
    let mut set = CpuSet::new();
    let chosen = pinning.generator.iter().filter_map(|cpu| usize::try_from(*cpu).ok());
    let done = chosen
        .into_iter()
        .try_for_each(|cpu| set.set(cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = done {
        pinning = Pinning { note: format!("not pinned: {error}"), ..Pinning::default() };
    }
    pinning
}

fn divide(cpus: &[u32]) -> Pinning {
    if cpus.len() < PIN_FROM {
        let note = format!(
            "not pinned: with {} CPUs, generator, primary and workers take turns on all of them, so \
             each figure is of all three together",
            cpus.len()
        );
        return Pinning { note, ..Pinning::default() };
    }
    let (subject, generator) = cpus.split_at(cpus.len() - (cpus.len() / GENERATOR_SHARE).max(1));
    Pinning {
        generator: generator.to_vec(),
        subject: subject.to_vec(),
        note: format!(
            "the generator has {} CPUs for itself, engine and workers share the other {}",
            generator.len(),
            subject.len()
        ),
    }
}

fn versions(programs: &Programs) -> Vec<ProgramVersion> {
    let croupier = programs.croupier.display().to_string();
    let found: [(&str, &str, &[&str]); 6] = [
        ("croupier", &croupier, &["--version"]),
        ("wrk", "wrk", &["-v"]),
        ("haproxy", "haproxy", &["-v"]),
        ("nginx", "nginx", &["-v"]),
        ("node", "node", &["--version"]),
        ("setpriv", "setpriv", &["--version"]),
    ];
    found
        .into_iter()
        .map(|(program, path, arguments)| ProgramVersion {
            program: program.to_owned(),
            version: version(path, arguments),
        })
        .collect()
}

/// The first line that a program says, wherever it says it.
fn version(program: &str, arguments: &[&str]) -> Option<String> {
    let found = crate::process::find(program.as_ref())?;
    let output = Command::new(found).args(arguments).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = Guarded::piped(&command, &[]).ok()?.output().ok()?;
    Some(output.trim().to_owned())
}

fn text_of(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number_of(path: &str) -> u32 {
    text_of(path).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn port_range() -> (u16, u16) {
    let text = text_of("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn of_cpuinfo(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.split(':').next().map(str::trim) == Some(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_bytes() -> u64 {
    use procfs::Current;
    procfs::Meminfo::current().map_or(0, |memory| memory.mem_total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_cpus_are_not_divided_and_that_is_said() {
        let pinning = divide(&[0, 1]);
        assert!(pinning.generator.is_empty() && pinning.subject.is_empty());
        assert!(pinning.note.contains("with 2 CPUs"), "{}", pinning.note);
    }

    #[test]
    fn many_cpus_are_divided_without_overlap() {
        let pinning = divide(&[0, 1, 2, 3, 8, 9, 10, 11]);
        assert_eq!(pinning.subject, [0, 1, 2, 3]);
        assert_eq!(pinning.generator, [8, 9, 10, 11]);
        assert_eq!(divide(&[0, 1, 2, 3, 4]).generator, [3, 4]);
        assert_eq!((subject_of(&[0, 1, 2, 3, 4]), subject_of(&[0, 1])), (3, 2));
        assert_eq!(all_cpus(&pinning), 8, "not only those of the generator");
        assert_eq!(all_cpus(&divide(&[0])), own_cpus().len());
    }
}
