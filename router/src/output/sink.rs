//! One place where lines go, and the bounded channel to it.
//!
//! Owns: a descriptor, written by one thread, so that lines from many sources stay whole. Promises:
//! [`Feed::offer`] never waits, [`Feed::send`] never waits long; what does not fit is counted, and
//! reported in the stream itself as soon as something fits again. Never does: change the flags of
//! the descriptor; if somebody else made it non-blocking, it polls.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TrySendError, bounded};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
        let mut lines = 0;
        for byte in &bytes {
            lines += u64::from(*byte == b'\n');
        }
        Self { bytes, lines }
    }
}

#[derive(Debug)]
enum Message {
    Write(Batch),
    End,
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
}

/// Writes to a sink. Clones write to the same one.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    messages: Sender<Message>,
    counts: Arc<Counts>,
    format: LogFormat,
}

/// The writing end: [`Sink::run`] is its thread.
#[derive(Debug)]
pub(super) struct Sink {
    fd: OwnedFd,
    messages: Receiver<Message>,
    counts: Arc<Counts>,
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
        // Only to wake it: when there is no room it is awake, and looks at `closing` by itself.
        drop(self.messages.try_send(Message::End));
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
                let mut bytes = line::gap(self.format, missing);
                bytes.extend_from_slice(&batch.bytes);
                (Batch { bytes, lines: batch.lines }, missing)
            }
        }
    }

    /// `reported`: lines of an earlier gap whose note was dropped together with this batch.
    fn count_dropped(&self, message: &Message, reported: u64) {
        let lines = match message {
            Message::Write(batch) => batch.lines,
            Message::End => 0,
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
    pub(super) fn new(fd: OwnedFd, format: LogFormat) -> (Self, Feed) {
        let (sender, receiver) = bounded(BATCHES_MAX);
        let counts = Arc::new(Counts::default());
        let feed = Feed { messages: sender, counts: Arc::clone(&counts), format };
        (Self { fd, messages: receiver, counts }, feed)
    }

    /// Writes until it is closed and empty, or all feeds are gone.
    pub(super) fn run(self) {
        loop {
            let closing = self.counts.closing.load(Ordering::Acquire);
            let message = if closing {
                self.messages.try_recv().unwrap_or(Message::End)
            } else {
                self.messages.recv().unwrap_or(Message::End)
            };
            match message {
                Message::Write(batch) => {
                    if write_all(&self.fd, &batch.bytes).is_err() {
                        // The reader is gone or the disk is full: count, and try the next ones,
                        // as the disk may have room again.
                        self.counts.count(batch.lines);
                    }
                }
                Message::End => return,
            }
        }
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut wanted = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut wanted, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
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
