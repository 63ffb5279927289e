//! One place where lines go, and the bounded channel to it.
//!
//! Owns: a descriptor or a log file, written by one thread, so that lines from many sources stay
//! whole. Promises: [`Feed::offer`] never waits, [`Feed::send`] never waits long; what does not fit is
//! counted, and reported in the stream itself as soon as something fits again; a file is opened again
//! when that is asked for, between two batches. Never does: change the flags of an inherited
//! descriptor; if somebody else made it non-blocking, it polls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::file::LogFile;
use super::{PATIENCE, line};
use crate::config::LogFormat;

/// Batches that wait for a sink; one is usually a line or a read of 16 KiB.
const BATCHES_MAX: usize = 128;

/// Whole lines.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

impl Batch {
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let lines = lines_in(&bytes);
        Self { bytes, lines }
    }
}

fn lines_in(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

#[derive(Debug)]
enum Message {
    Write(Batch),
    /// Only to wake the sink: `closing` or `reopen` has been set.
    Look,
}

/// Where a sink writes.
#[derive(Debug)]
pub(super) enum Place {
    /// The process's own stdout or stderr.
    Inherited(OwnedFd),
    /// `--log-file`.
    File(LogFile),
}

impl Place {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Inherited(fd) => fd.as_fd(),
            Self::File(file) => file.fd(),
        }
    }
}

/// What feeds and sink both know.
#[derive(Debug, Default)]
struct Counts {
    /// All lines that were ever dropped.
    dropped: AtomicU64,
    /// Of them, those that no note in the stream tells about yet.
    unreported: AtomicU64,
    /// The last batch found no room even with patience: have none until there is room again.
    stalled: AtomicBool,
    /// The sink ends as soon as its channel is empty.
    closing: AtomicBool,
    /// The log file is to be opened again, before anything else is written.
    reopen: AtomicBool,
    /// What the last write(2) that failed said; 0: none has, or a later one has not.
    errno: AtomicI32,
}

/// Writes to a sink. Clones write to the same one.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    messages: Sender<Message>,
    counts: Arc<Counts>,
    format: LogFormat,
    /// It leads to `--log-file`.
    to_file: bool,
}

/// The writing end: [`Sink::run`] is its thread.
#[derive(Debug)]
pub(super) struct Sink {
    place: Place,
    format: LogFormat,
    messages: Receiver<Message>,
    counts: Arc<Counts>,
    /// The last line that was written lacks its end.
    torn: bool,
}

impl Feed {
    /// Hands over, or drops and counts.
    pub(super) fn offer(&self, batch: Batch) {
        let (batch, reported) = self.with_gap(batch);
        match self.messages.try_send(Message::Write(batch)) {
            Ok(()) => self.counts.stalled.store(false, Ordering::Relaxed),
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                self.count_dropped(&message, reported);
            }
        }
    }

    /// As [`Self::offer`], but a sink that is only slow gets [`PATIENCE`] to make room. For the
    /// collector: the worker's pipe holds up the worker meanwhile.
    pub(super) fn send(&self, batch: Batch) {
        if self.counts.stalled.load(Ordering::Relaxed) {
            return self.offer(batch);
        }
        let (batch, reported) = self.with_gap(batch);
        match self.messages.send_timeout(Message::Write(batch), PATIENCE) {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(message) | SendTimeoutError::Disconnected(message)) => {
                self.counts.stalled.store(true, Ordering::Relaxed);
                self.count_dropped(&message, reported);
            }
        }
    }

    /// Lets the sink end after what it has been given.
    pub(super) fn close(&self) {
        self.counts.closing.store(true, Ordering::Release);
        // When there is no room it is awake, and looks by itself.
        drop(self.messages.try_send(Message::Look));
    }

    /// Has a log file opened again: what is given from now on goes to the file that is then at its
    /// path.
    pub(super) fn reopen(&self) {
        self.counts.reopen.store(true, Ordering::Release);
        drop(self.messages.try_send(Message::Look));
    }

    fn why_dropped(&self) -> String {
        match (self.to_file, self.counts.errno.load(Ordering::Relaxed)) {
            (false, _) => "nobody read this output".into(),
            (true, 0) => "the log file took too long".into(),
            (true, errno) => {
                format!("the log file could not be written: {}", Errno::from_raw(errno).desc())
            }
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.counts, &other.counts)
    }

    /// Puts the note about dropped lines in front, at the very place where they are missing.
    fn with_gap(&self, batch: Batch) -> (Batch, u64) {
        match self.counts.unreported.swap(0, Ordering::Relaxed) {
            0 => (batch, 0),
            missing => {
                let mut bytes = line::gap(self.format, missing, &self.why_dropped());
                bytes.extend_from_slice(&batch.bytes);
                (Batch { bytes, lines: batch.lines }, missing)
            }
        }
    }

    /// `reported`: lines of an earlier gap whose note was dropped together with this batch.
    fn count_dropped(&self, message: &Message, reported: u64) {
        let lines = match message {
            Message::Write(batch) => batch.lines,
            Message::Look => 0,
        };
        self.counts.count(lines);
        self.counts.unreported.fetch_add(reported, Ordering::Relaxed);
    }
}

impl Counts {
    fn count(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
        self.unreported.fetch_add(lines, Ordering::Relaxed);
    }
}

impl Sink {
    pub(super) fn new(place: Place, format: LogFormat) -> (Self, Feed) {
        let (sender, receiver) = bounded(BATCHES_MAX);
        let counts = Arc::new(Counts::default());
        let to_file = matches!(place, Place::File(_));
        let feed = Feed { messages: sender, counts: Arc::clone(&counts), format, to_file };
        (Self { place, format, messages: receiver, counts, torn: false }, feed)
    }

    /// Writes until it is closed and empty, or all feeds are gone.
    pub(super) fn run(mut self) {
        loop {
            let closing = self.counts.closing.load(Ordering::Acquire);
            let message =
                if closing { self.messages.try_recv().ok() } else { self.messages.recv().ok() };
            if self.counts.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            match message {
                Some(Message::Write(batch)) => self.write(&batch),
                Some(Message::Look) => {}
                None => return,
            }
        }
    }

    fn write(&mut self, batch: &Batch) {
        // The rest of a torn line is lost; what follows shall not hang on to what is there of it.
        let mended = !self.torn || write_all(self.place.fd(), b"\n").is_ok();
        let outcome =
            if mended { write_all(self.place.fd(), &batch.bytes) } else { Err((0, None)) };
        let Err((written, errno)) = outcome else {
            self.torn = false;
            return self.counts.errno.store(0, Ordering::Relaxed);
        };
        // The reader is gone or the disk is full: count, and try the next ones, as the disk may have
        // room again.
        let (whole, rest) = batch.bytes.split_at_checked(written).unwrap_or((&batch.bytes, &[]));
        if written > 0 {
            self.torn = whole.last() != Some(&b'\n');
        } else if mended {
            self.torn = false;
        }
        if let Some(errno) = errno {
            self.counts.errno.store(errno as i32, Ordering::Relaxed);
        }
        // A note about an earlier gap in front of the batch is none of its lines.
        self.counts.count(lines_in(rest).min(batch.lines));
    }

    /// If that fails, what is open stays. What became of it is said in the file itself.
    fn reopen(&mut self) {
        let Place::File(file) = &mut self.place else { return };
        let outcome = file.reopen();
        let path = file.path().display();
        let (level, text) = match outcome {
            Ok(()) => {
                self.torn = false;
                (log::Level::Info, format!("opened {path} again (asked by USR1)"))
            }
            Err(error) => (
                log::Level::Warn,
                format!(
                    "cannot open the log file {path} again: {error}; lines go on to the file that was open"
                ),
            ),
        };
        if level == log::Level::Warn || log::log_enabled!(level) {
            let line = line::own_of_level(self.format, level, &text);
            self.write(&Batch::of(line));
        }
    }
}

/// # Errors
/// How many bytes were written before, and what the next write said.
fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), (usize, Option<Errno>)> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match nix::unistd::write(fd, rest) {
            Ok(written) => done += written,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut wanted = [PollFd::new(fd, PollFlags::POLLOUT)];
                match poll(&mut wanted, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err((done, Some(error))),
                }
            }
            Err(error) => return Err((done, Some(error))),
        }
    }
    Ok(())
}

/// Whether both lead to one file, pipe or terminal.
pub(super) fn same_file(one: &OwnedFd, other: &OwnedFd) -> bool {
    match (nix::sys::stat::fstat(one), nix::sys::stat::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        (Err(_), _) | (_, Err(_)) => false,
    }
}
