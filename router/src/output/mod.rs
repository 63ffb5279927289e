//! What workers and the primary say, line by line, without ever stopping the primary.
//!
//! Owns: the read ends of the workers' pipes, one thread that reads them, one that writes (two when
//! stdout and stderr lead to different files, and no `--log-file` takes both). Promises: lines are never torn or mixed; a stdout or
//! stderr that nobody reads costs lines, which are counted and reported where they are missing, but
//! neither the loop nor a worker ever waits for it longer than [`PATIENCE`]; nobody wakes up while
//! nothing is said. Never does: set `O_NONBLOCK` on inherited stdio, which others share.
//!
//! ```text
//! worker ─pipe─▶ collect (epoll) ─bounded channel─▶ sink ─write(2)─▶ stdout
//! log::info!, say() ────────────────try_send────────▶ sink ─write(2)─▶ stderr
//!                collect ─tails, readers─▶ croupier logs
//! ```

mod collect;
mod file;
mod line;
mod readers;
mod sink;
mod tails;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use mio::Waker;
use nix::sys::signal::{SigSet, Signal};

use crate::config::LogFormat;
use collect::{Collector, Command, Pipe};
pub use file::LogFile;
use line::Stream;
pub(crate) use line::{wall_clock, written};
pub use readers::{READERS_MAX, Wanted};
use sink::{Batch, Feed, Place, Sink};
pub use tails::KEPT_LINES_MAX;

/// How long a stdout that takes nothing holds up the lines of workers before they are dropped.
pub const PATIENCE: Duration = Duration::from_millis(100);
/// How many of a worker's last lines are kept for error messages.
pub const LAST_LINES: usize = 20;
/// Longest line; longer ones are cut into several.
pub const LINE_MAX: usize = 64 << 10;

/// How long [`Output::last_lines`] waits for the collector, which never waits long for anything.
const ANSWER_WAIT: Duration = Duration::from_millis(500);
/// How long [`Output::finish`] waits for a stdout that is slow.
const FINISH_WAIT: Duration = Duration::from_secs(1);

/// The workers' output and the primary's own lines.
#[derive(Debug)]
pub struct Output {
    format: LogFormat,
    commands: Sender<Command>,
    waker: Arc<Waker>,
    log: Feed,
    out: Feed,
    show_generation: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    ended: crossbeam_channel::Receiver<()>,
}

impl Output {
    /// Starts the threads on the log file, or on the process's stdout and stderr, and makes `log` write
    /// there.
    ///
    /// # Errors
    /// No descriptors, no threads.
    pub fn start(format: LogFormat, file: Option<LogFile>) -> io::Result<Self> {
        let output = match file {
            Some(file) => Self::start_in(format, file)?,
            None => {
                let stdout = io::stdout().as_fd().try_clone_to_owned()?;
                let stderr = io::stderr().as_fd().try_clone_to_owned()?;
                Self::start_on(format, stdout, stderr)?
            }
        };
        output.take_log();
        Ok(output)
    }

    /// As [`Self::start`], on any two descriptors, and without touching `log`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(format: LogFormat, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        let (alive, ended) = bounded(0);
        let mut threads = Vec::new();
        let same = sink::same_file(&stdout, &stderr);
        let (err_sink, log) = Sink::new(Place::Inherited(stderr), format);
        threads.push(spawn("croupier-stderr", &alive, move || err_sink.run())?);
        // Two writers on one terminal or file could tear each other's lines.
        let out = if same {
            log.clone()
        } else {
            let (out_sink, out) = Sink::new(Place::Inherited(stdout), format);
            threads.push(spawn("croupier-stdout", &alive, move || out_sink.run())?);
            out
        };
        Self::collect(format, out, log, threads, (alive, ended))
    }

    /// As [`Self::start_on`], with all lines in one file.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(format: LogFormat, file: LogFile) -> io::Result<Self> {
        let (alive, ended) = bounded(0);
        let (sink, feed) = Sink::new(Place::File(file), format);
        let threads = vec![spawn("croupier-log", &alive, move || sink.run())?];
        Self::collect(format, feed.clone(), feed, threads, (alive, ended))
    }

    fn collect(
        format: LogFormat,
        out: Feed,
        log: Feed,
        mut threads: Vec<JoinHandle<()>>,
        (alive, ended): (Sender<()>, crossbeam_channel::Receiver<()>),
    ) -> io::Result<Self> {
        let show_generation = Arc::new(AtomicBool::new(false));
        let (commands, inbox) = unbounded();
        let (collector, waker) =
            Collector::new(format, inbox, out.clone(), log.clone(), Arc::clone(&show_generation))?;
        threads.push(spawn("croupier-output", &alive, move || collector.run())?);
        Ok(Self { format, commands, waker, log, out, show_generation, threads, ended })
    }

    /// Makes the `log` macros write here. The level comes from `CROUPIER_LOG` (default info).
    fn take_log(&self) {
        let (feed, format) = (self.log.clone(), self.format);
        let env = env_logger::Env::default().filter_or("CROUPIER_LOG", "info");
        let result = env_logger::Builder::from_env(env)
            .format(move |to, record| line::write_record(to, format, record))
            .target(env_logger::Target::Pipe(Box::new(LogPipe { feed })))
            .try_init();
        if result.is_err() {
            // A second Output in one process (tests): the first keeps the log.
            log::debug!("log lines go to an earlier output");
        }
    }

    /// From now on everything that arrives on these pipes is this worker's.
    pub fn attach(
        &self,
        worker: u32,
        slot: u16,
        generation: u32,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) {
        for (stream, fd) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let pipe = Pipe::new(worker, slot, generation, stream, fd);
            self.command(Command::Attach(pipe));
        }
    }

    /// Whether lines of workers say the generation: while two of them live.
    pub fn set_show_generation(&self, show: bool) {
        self.show_generation.store(show, Ordering::Relaxed);
    }

    /// What this worker said last, also what is still in its pipes: at most [`LAST_LINES`] lines.
    #[must_use]
    pub fn last_lines(&self, worker: u32) -> Vec<String> {
        let (answer, lines) = bounded(1);
        self.command(Command::LastLines { worker, answer });
        lines.recv_timeout(ANSWER_WAIT).unwrap_or_default()
    }

    /// Shows a client of `croupier logs` what it wants; from now on it is the collector's.
    pub fn show(&self, client: UnixStream, wanted: Wanted) {
        self.command(Command::Show { client, wanted });
    }

    /// Opens the log file again, if there is one: what is said from now on goes to the file that is
    /// then at its path. Never waits.
    pub fn reopen(&self) {
        self.log.reopen();
    }

    /// Lines that were dropped because nobody read stdout or stderr, or the log file took none.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        if self.out.is_same(&self.log) {
            self.log.dropped()
        } else {
            self.out.dropped() + self.log.dropped()
        }
    }

    /// A line of the primary itself, to stderr, as it is (with JSON: as an object). Never waits.
    pub fn say(&self, text: &str) {
        self.log.offer(Batch::of(line::own(self.format, "info", text)));
    }

    /// Brings out what the pipes and the channels still hold, at most for a second, and ends the
    /// threads. One that is stuck in write(2) ends with the process.
    pub fn finish(self) {
        drop(self);
    }

    fn command(&self, command: Command) {
        // Both fail only when the collector has panicked; there is nobody left to tell.
        drop(self.commands.send(command));
        drop(self.waker.wake());
    }
}

impl Drop for Output {
    /// Also after an error that ends the primary early: what was said must come out before it.
    fn drop(&mut self) {
        self.command(Command::Finish);
        // No message ever comes: a disconnect says that all threads have ended.
        let ended = self.ended.recv_timeout(FINISH_WAIT);
        if ended.is_err_and(|error| error.is_disconnected()) {
            for thread in self.threads.drain(..) {
                // A panic was printed when it happened.
                drop(thread.join());
            }
        }
    }
}

/// `ended` of [`Output`] disconnects when the last thread has dropped its `alive`.
fn spawn(
    name: &str,
    alive: &Sender<()>,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let alive = alive.clone();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // TTOU means something to the primary. In the background of a shell that stops jobs which write
        // to its terminal (`stty tostop`) each write would bring it, and be begun anew for ever; where it
        // is blocked such a write is allowed (termios(3)).
        let mut terminal = SigSet::empty();
        terminal.add(Signal::SIGTTOU);
        if let Err(error) = terminal.thread_block() {
            log::debug!("TTOU cannot be blocked: {error}");
        }
        body();
        drop(alive);
    })
}

/// Where env_logger writes: each record is one write of whole lines. Never waits.
#[derive(Debug)]
struct LogPipe {
    feed: Feed,
}

impl io::Write for LogPipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.feed.offer(Batch::of(bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};

    use super::*;

    struct Bench {
        output: Option<Output>,
        stdout: PipeReader,
        stderr: PipeReader,
    }

    impl Bench {
        fn new(format: LogFormat) -> Self {
            let (stdout, out) = io::pipe().unwrap();
            let (stderr, err) = io::pipe().unwrap();
            let output = Output::start_on(format, out.into(), err.into()).unwrap();
            Self { output: Some(output), stdout, stderr }
        }

        fn output(&self) -> &Output {
            self.output.as_ref().unwrap()
        }

        /// The worker's ends.
        fn worker(&self, worker: u32, slot: u16) -> (PipeWriter, PipeWriter) {
            let (out_read, out) = io::pipe().unwrap();
            let (err_read, err) = io::pipe().unwrap();
            self.output().attach(worker, slot, 1, out_read.into(), err_read.into());
            (out, err)
        }

        /// What came out, after the end.
        fn end(mut self) -> (String, String) {
            self.output.take().unwrap().finish();
            let (mut out, mut err) = (String::new(), String::new());
            self.stdout.read_to_string(&mut out).unwrap();
            self.stderr.read_to_string(&mut err).unwrap();
            (out, err)
        }
    }

    #[test]
    fn lines_of_workers_get_their_slot() {
        let bench = Bench::new(LogFormat::Text);
        let (mut out, mut err) = bench.worker(5, 2);
        let (mut other, _err) = bench.worker(6, 11);
        out.write_all(b"one\ntw").unwrap();
        err.write_all(b"oops\n").unwrap();
        other.write_all(b"\xff\r\n\n").unwrap();
        assert_eq!(bench.output().last_lines(6), ["\u{fffd}", ""]);
        out.write_all(b"o\nlast").unwrap();
        drop(out);
        let mut last = bench.output().last_lines(5);
        // Two pipes have no common order.
        let oops = last.iter().position(|line| line == "oops").unwrap();
        last.remove(oops);
        assert_eq!(last, ["one", "two", "last"]);
        assert!(bench.output().last_lines(7).is_empty());
        bench.output().set_show_generation(true);
        err.write_all(b"new\n").unwrap();
        bench.output().say("croupier says");
        let mut stdout = Vec::new();
        let Bench { output, stdout: mut reader, mut stderr } = bench;
        output.unwrap().finish();
        reader.read_to_end(&mut stdout).unwrap();
        let mut lines: Vec<&[u8]> = stdout.split_inclusive(|byte| *byte == b'\n').collect();
        lines.sort_unstable();
        let wanted: [&[u8]; 5] =
            [b"[w11] \n", b"[w11] \xff\r\n", b"[w2] last\n", b"[w2] one\n", b"[w2] two\n"];
        assert_eq!(lines, wanted);
        let mut errors = String::new();
        stderr.read_to_string(&mut errors).unwrap();
        let mut errors: Vec<&str> = errors.lines().collect();
        errors.sort_unstable();
        assert_eq!(errors, ["[w2 g1] new", "[w2] oops", "croupier says"]);
    }

    #[test]
    fn json_has_one_object_a_line() {
        let bench = Bench::new(LogFormat::Json);
        let (mut out, _err) = bench.worker(5, 2);
        out.write_all(b"say \"hi\"\xff\n").unwrap();
        assert_eq!(bench.output().last_lines(5).len(), 1);
        bench.output().say("two\nlines");
        let (out, err) = bench.end();
        let line: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(
            (&line["slot"], &line["worker"], &line["generation"]),
            (&2.into(), &5.into(), &1.into())
        );
        assert_eq!(
            (&line["stream"], &line["msg"]),
            (&"stdout".into(), &"say \"hi\"\u{fffd}".into())
        );
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
        let line: serde_json::Value = serde_json::from_str(&err).unwrap();
        assert_eq!((&line["level"], &line["msg"]), (&"info".into(), &"two\nlines".into()));
    }

    #[test]
    fn long_lines_are_cut_and_nothing_is_torn() {
        let bench = Bench::new(LogFormat::Text);
        let mut stdout = BufReader::new(bench.stdout.try_clone().unwrap());
        let writers: Vec<_> = (0..4)
            .map(|slot| {
                let (mut out, err) = bench.worker(u32::from(slot) + 1, slot);
                std::thread::spawn(move || {
                    let letter = b'a' + u8::try_from(slot).unwrap();
                    for length in [10, LINE_MAX - 1, LINE_MAX, LINE_MAX + 1, 3] {
                        let mut line = vec![letter; length];
                        line.push(b'\n');
                        // In pieces that do not end where lines end.
                        for piece in line.chunks(4099) {
                            out.write_all(piece).unwrap();
                        }
                    }
                    drop(err);
                })
            })
            .collect();
        let mut counts = [(0, 0); 4];
        for _ in 0..4 * 6 {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            let (head, text) = line.trim_end().split_once(' ').unwrap();
            let slot: usize = head.trim_matches(['[', 'w', ']']).parse().unwrap();
            let letter = char::from(b'a' + u8::try_from(slot).unwrap());
            assert!(text.chars().all(|c| c == letter) && text.len() <= LINE_MAX, "{head}");
            counts[slot].0 += 1;
            counts[slot].1 += text.len();
        }
        assert_eq!(counts, [(6, 13 + 3 * LINE_MAX); 4]);
        for writer in writers {
            writer.join().unwrap();
        }
        assert_eq!(bench.output().dropped(), 0);
        drop(bench.end());
    }

    #[test]
    fn a_stdout_that_nobody_reads_costs_lines_and_nothing_else() {
        const LINES: usize = 60_000;
        let bench = Bench::new(LogFormat::Text);
        let (mut out, mut err) = bench.worker(1, 0);
        let line = [b'x'; 99];
        // Returns: the worker is not stopped, though nobody reads 6 MB.
        for _ in 0..LINES {
            out.write_all(&line).unwrap();
            out.write_all(b"\n").unwrap();
        }
        assert_eq!(bench.output().last_lines(1).len(), LAST_LINES);
        let dropped = bench.output().dropped();
        assert!(dropped > 0);
        // stderr is not held up by stdout.
        err.write_all(b"alive\n").unwrap();
        let mut stderr = BufReader::new(bench.stderr.try_clone().unwrap());
        let mut text = String::new();
        stderr.read_line(&mut text).unwrap();
        assert_eq!(text, "[w0] alive\n");
        // It flows again: the gap is told once, with the right number, and no line is torn.
        let reader = BufReader::new(bench.stdout.try_clone().unwrap());
        let reading = std::thread::spawn(move || {
            let (mut whole, mut told) = (0, 0);
            for line in reader.lines().map(Result::unwrap) {
                if let Some(gap) = line.strip_prefix("croupier: warning: ") {
                    told += gap.split(' ').next().unwrap().parse::<u64>().unwrap();
                } else {
                    assert!(line.starts_with("[w0] x") && line.len() == 104 || line == "[w0] end");
                    whole += 1;
                }
                if line == "[w0] end" {
                    break;
                }
            }
            (whole, told)
        });
        while !reading.is_finished() {
            // The channel may still be full at the first attempts.
            out.write_all(b"end\n").unwrap();
            drop(bench.output().last_lines(1));
        }
        let (whole, told) = reading.join().unwrap();
        assert!(told >= dropped, "{told} {dropped}");
        assert!(whole + usize::try_from(told).unwrap() > LINES, "{whole} {told}");
    }

    #[test]
    fn a_blocked_stderr_never_holds_up_the_primary() {
        let bench = Bench::new(LogFormat::Text);
        let line = "y".repeat(1000);
        for _ in 0..2_000 {
            bench.output().say(&line);
        }
        assert!(bench.output().dropped() > 1_000);
        let mut lines = LogPipe { feed: bench.output().log.clone() };
        lines.write_all(b"logged\n").unwrap();
        // The sink is stuck in write(2): the end does not wait for it for long.
        let Bench { output, .. } = bench;
        output.unwrap().finish();
    }

    #[test]
    fn a_stdout_that_somebody_made_non_blocking_is_waited_for() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (stdout, out) = io::pipe().unwrap();
        let (_stderr, err) = io::pipe().unwrap();
        fcntl(&out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let output = Output::start_on(LogFormat::Text, out.into(), err.into()).unwrap();
        let (read, mut worker) = io::pipe().unwrap();
        output.attach(1, 0, 1, read.into(), io::pipe().unwrap().0.into());
        let writer = std::thread::spawn(move || {
            for number in 0..20_000 {
                writeln!(worker, "{number}").unwrap();
            }
        });
        for (number, line) in BufReader::new(stdout).lines().take(20_000).enumerate() {
            assert_eq!(line.unwrap(), format!("[w0] {number}"));
        }
        writer.join().unwrap();
        output.finish();
    }

    #[test]
    fn one_file_for_both_has_one_writer() {
        let file = tempfile::tempfile().unwrap();
        let both: [OwnedFd; 2] =
            [file.try_clone().unwrap().into(), file.try_clone().unwrap().into()];
        let [out, err] = both;
        let output = Output::start_on(LogFormat::Text, out, err).unwrap();
        assert_eq!(output.threads.len(), 2);
        output.say("a");
        assert_eq!(output.dropped(), 0);
        output.finish();
        let mut text = String::new();
        let mut again = File::from(OwnedFd::from(file));
        io::Seek::rewind(&mut again).unwrap();
        again.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a\n");
    }

    #[test]
    fn a_reader_that_left_is_counted() {
        let Bench { output, stdout, stderr } = Bench::new(LogFormat::Text);
        let output = output.unwrap();
        drop(stderr);
        output.say("into the void");
        output.say("again");
        drop(output.last_lines(1));
        drop(stdout);
        output.finish();
    }
}
