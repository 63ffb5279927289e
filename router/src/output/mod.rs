//! What workers and the primary say, line by line, without ever stopping the primary.
//!
//! Owns: the read ends of the workers' pipes, one thread that reads them, one that writes (two when
//! stdout and stderr lead to different files). Promises: lines are never torn or mixed; a stdout or
//! stderr that nobody reads costs lines, which are counted and reported where they are missing, but
//! neither the loop nor a worker ever waits for it longer than [`PATIENCE`]; nobody wakes up while
//! nothing is said. Never does: set `O_NONBLOCK` on inherited stdio, which others share.
//!
//! ```text
//! worker ─pipe─▶ collect (epoll) ─bounded channel─▶ sink ─write(2)─▶ stdout
//! log::info!, say() ────────────────try_send────────▶ sink ─write(2)─▶ stderr
//! ```

mod collect;
mod line;
mod sink;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use mio::Waker;

use crate::config::LogFormat;
use collect::{Collector, Command, Pipe};
use line::Stream;
use sink::{Batch, Feed, Sink};

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
    /// Starts the threads on the process's stdout and stderr, and makes `log` write to the latter.
    ///
    /// # Errors
    /// No descriptors, no threads.
    pub fn start(format: LogFormat) -> io::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let output = Self::start_on(format, stdout, stderr)?;
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
        let (err_sink, log) = Sink::new(stderr, format);
        threads.push(spawn("croupier-stderr", &alive, move || err_sink.run())?);
        // Two writers on one terminal or file could tear each other's lines.
        let out = if same {
            log.clone()
        } else {
            let (out_sink, out) = Sink::new(stdout, format);
            threads.push(spawn("croupier-stdout", &alive, move || out_sink.run())?);
            out
        };
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

    /// Lines that were dropped because nobody read stdout or stderr.
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
