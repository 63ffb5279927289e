//! `--log-file`: the file at a path, opened again on demand.
//!
//! Owns its descriptor. Promises: whole lines are appended, whoever else appends or truncates
//! (`O_APPEND`); to open it again either gives the file that is at the path now, made if there is none,
//! or leaves the one that was open. Never does: write, or wait for a FIFO's reader.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log may say more than everybody should read.
const MODE: u32 = 0o640;

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    fd: OwnedFd,
}

impl LogFile {
    /// Opens it, or makes it (mode 0640).
    ///
    /// # Errors
    /// What open(2) says; ENXIO for a FIFO that nobody reads.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A relative path is of where croupier was started, also when it is opened again.
        let path = std::path::absolute(path)?;
        let fd = open(&path)?;
        Ok(Self { path, fd })
    }

    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.fd = open(&self.path)?;
        Ok(())
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(MODE)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::Output;
    use super::*;
    use crate::config::LogFormat;
    use crate::testing::wait_for;

    fn output(path: &Path, format: LogFormat) -> Output {
        Output::start_in(format, LogFile::open(path).unwrap()).unwrap()
    }

    #[test]
    fn lines_of_all_go_to_the_file_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        std::fs::write(&path, "from before\n").unwrap();
        let output = output(&path, LogFormat::Text);
        let (read, mut worker) = io::pipe().unwrap();
        output.attach(1, 2, 1, read.into(), io::pipe().unwrap().0.into());
        writeln!(worker, "one").unwrap();
        assert_eq!(output.last_lines(1), ["one"]);
        std::fs::rename(&path, &old).unwrap();
        output.say("still the old one");
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let wanted = "from before\n[w2] one\nstill the old one\n";
        wait_for("the line", || (read(&old) == wanted).then_some(()));
        output.reopen();
        output.say("the new one");
        writeln!(worker, "two").unwrap();
        assert_eq!(output.last_lines(1), ["one", "two"]);
        output.finish();
        assert_eq!(read(&old), wanted);
        let mut lines: Vec<String> = read(&path).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["[w2] two", "the new one"]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_says_so_in_the_one_that_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let output = output(&path, LogFormat::Json);
        std::fs::rename(&path, &old).unwrap();
        std::fs::create_dir(&path).unwrap();
        output.reopen();
        output.say("after");
        output.finish();
        let text = std::fs::read_to_string(&old).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [warning, after] = lines.as_slice() else { panic!("{text}") };
        assert_eq!((&warning["level"], &after["msg"]), (&"warn".into(), &"after".into()));
        let msg = warning["msg"].as_str().unwrap();
        assert!(msg.contains("Is a directory") && msg.contains(path.to_str().unwrap()), "{msg}");
    }

    #[test]
    fn a_full_disk_costs_lines_which_are_counted() {
        let output = output(Path::new("/dev/full"), LogFormat::Text);
        for _ in 0..10 {
            output.say("one\ntwo");
        }
        wait_for("each line to be counted", || (output.dropped() >= 20).then_some(()));
        output.finish();
    }

    /// Room for a part of a line: the next that finds room begins a line of its own.
    #[test]
    fn a_torn_line_is_ended_before_the_next() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        // The limit is the process's: a child has it for itself.
        if std::env::var_os("CROUPIER_TORN").is_none() {
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "output::file::tests::a_torn_line_is_ended_before_the_next"])
                .env("CROUPIER_TORN", "1")
                .stdout(std::process::Stdio::null())
                .status();
            assert!(status.unwrap().success());
            return;
        }
        // What write(2) brings besides EFBIG would end this process; threads inherit the mask.
        let xfsz = nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGXFSZ);
        xfsz.thread_block().unwrap();
        let output = output(&path, LogFormat::Text);
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 10, hard).unwrap();
        output.say("whole");
        output.say("torn here");
        output.say("lost");
        wait_for("two to be lost", || (output.dropped() == 2).then_some(()));
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        output.say("there is room again");
        output.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        let note = "croupier: warning: 2 lines were dropped here: the log file could not be written: \
                    File too large";
        assert_eq!(text, format!("whole\ntorn\n{note}\nthere is room again\n"));
    }
}
