//! The last lines of every worker, for error messages and `croupier logs`.
//!
//! Promises: at most [`KEPT_LINES_MAX`] lines and a fair share of [`KEPT_BYTES_MAX`] bytes for each worker,
//! so that one that talks without end displaces nobody else's; lines are numbered as they came, over all
//! workers. Never does: I/O.

use std::collections::VecDeque;
use std::time::SystemTime;

use super::line::{End, Line, Source, cut_at};

/// Lines that are kept of one worker.
pub const KEPT_LINES_MAX: usize = 500;
/// Bytes that are kept of all workers together.
const KEPT_BYTES_MAX: usize = 2 << 20;
/// Bytes that are kept of one worker, when there are few.
const KEPT_OF_ONE_MAX: usize = 64 << 10;
/// Bytes that are kept of one line.
const KEPT_LINE_MAX: usize = 4096;
/// Ended workers whose last lines are kept.
const ENDED_TAILS_MAX: usize = 32;
/// How much of a line error messages repeat.
const TAIL_LINE_MAX: usize = 2048;

/// A line that is kept.
#[derive(Debug)]
pub(super) struct Kept {
    number: u64,
    source: Source,
    time: SystemTime,
    end: End,
    /// The log showed its generation.
    pub(super) show_generation: bool,
    text: Box<[u8]>,
}

impl Kept {
    pub(super) fn line(&self) -> Line<'_> {
        Line { source: self.source, time: self.time, text: &self.text, end: self.end }
    }
}

/// A worker's last lines.
#[derive(Debug)]
struct Tail {
    worker: u32,
    slot: u16,
    open_pipes: u8,
    lines: VecDeque<Kept>,
    bytes: usize,
}

impl Tail {
    fn trim(&mut self, share: usize) {
        while self.lines.len() > KEPT_LINES_MAX || self.bytes > share {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes = self.bytes.saturating_sub(oldest.text.len());
        }
    }
}

/// Of every worker that lives, and of the last that ended.
#[derive(Debug, Default)]
pub(super) struct Tails {
    all: Vec<Tail>,
    next: u64,
}

impl Tails {
    /// One more pipe of a worker.
    pub(super) fn opened(&mut self, worker: u32, slot: u16) {
        match self.all.iter_mut().find(|tail| tail.worker == worker) {
            Some(tail) => tail.open_pipes = tail.open_pipes.saturating_add(1),
            None => {
                let lines = VecDeque::new();
                self.all.push(Tail { worker, slot, open_pipes: 1, lines, bytes: 0 });
                let share = self.share();
                self.all.iter_mut().for_each(|tail| tail.trim(share));
            }
        }
    }

    /// One pipe of a worker is at its end.
    pub(super) fn closed(&mut self, worker: u32) {
        if let Some(tail) = self.all.iter_mut().find(|tail| tail.worker == worker) {
            tail.open_pipes = tail.open_pipes.saturating_sub(1);
        }
        let ended = self.all.iter().filter(|tail| tail.open_pipes == 0).count();
        if ended > ENDED_TAILS_MAX
            && let Some(oldest) = self.all.iter().position(|tail| tail.open_pipes == 0)
        {
            self.all.remove(oldest);
        }
    }

    pub(super) fn push(&mut self, line: Line<'_>, show_generation: bool) {
        let share = self.share();
        let worker = line.source.worker;
        let Some(tail) = self.all.iter_mut().find(|tail| tail.worker == worker) else { return };
        let most = KEPT_LINE_MAX.min(share);
        let (text, end) = if line.text.len() > most {
            (line.text.get(..cut_at(line.text, most)).unwrap_or_default(), End::Cut)
        } else {
            (line.text, line.end)
        };
        tail.bytes += text.len();
        tail.lines.push_back(Kept {
            number: self.next,
            source: line.source,
            time: line.time,
            end,
            show_generation,
            text: text.into(),
        });
        self.next += 1;
        tail.trim(share);
    }

    /// What error messages repeat of a worker: at most `most` lines.
    pub(super) fn texts(&self, worker: u32, most: usize) -> Vec<String> {
        let tail = self.all.iter().find(|tail| tail.worker == worker);
        let lines = tail.map(|tail| &tail.lines).into_iter().flatten();
        let shown = |kept: &Kept| {
            let text = kept.text.get(..TAIL_LINE_MAX).unwrap_or(&kept.text);
            String::from_utf8_lossy(text).trim_end().to_owned()
        };
        let skip = tail.map_or(0, |tail| tail.lines.len().saturating_sub(most));
        lines.skip(skip).map(shown).collect()
    }

    /// The last `most` lines of each worker of this slot, or of all, in the order in which they came.
    pub(super) fn last(&self, slot: Option<u16>, most: usize) -> Vec<&Kept> {
        let wanted = self.all.iter().filter(|tail| slot.is_none_or(|slot| tail.slot == slot));
        let mut lines: Vec<&Kept> = wanted
            .flat_map(|tail| tail.lines.iter().skip(tail.lines.len().saturating_sub(most)))
            .collect();
        lines.sort_unstable_by_key(|kept| kept.number);
        lines
    }

    /// Bytes that one worker may have kept now.
    fn share(&self) -> usize {
        (KEPT_BYTES_MAX / self.all.len().max(1)).min(KEPT_OF_ONE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::{Stream, wall_clock};
    use super::*;

    fn push(tails: &mut Tails, worker: u32, text: &str) {
        let slot = u16::try_from(worker).unwrap();
        let source = Source { worker, slot, generation: 1, stream: Stream::Stdout };
        let line = Line { source, time: wall_clock(), text: text.as_bytes(), end: End::Whole };
        tails.push(line, false);
    }

    fn shown(tails: &Tails, slot: Option<u16>, most: usize) -> Vec<String> {
        let text = |kept: &&Kept| String::from_utf8(kept.text.to_vec()).unwrap();
        tails.last(slot, most).iter().map(text).collect()
    }

    #[test]
    fn lines_of_all_come_in_order_and_each_worker_has_its_own() {
        let mut tails = Tails::default();
        (1..=3).for_each(|worker| tails.opened(worker, u16::try_from(worker).unwrap()));
        push(&mut tails, 1, "quiet");
        for number in 0..2000 {
            push(&mut tails, 2, &format!("loud {number}"));
        }
        push(&mut tails, 3, "last");
        assert_eq!(shown(&tails, None, 2), ["quiet", "loud 1998", "loud 1999", "last"]);
        assert_eq!(shown(&tails, Some(2), 1), ["loud 1999"]);
        assert_eq!(shown(&tails, Some(2), usize::MAX).len(), KEPT_LINES_MAX);
        assert!(shown(&tails, Some(9), 5).is_empty() && shown(&tails, None, 0).is_empty());
        assert_eq!(tails.texts(2, 2), ["loud 1998", "loud 1999"]);
        // Workers that nobody knows are nobody's.
        push(&mut tails, 7, "stray");
        assert!(tails.texts(7, 1).is_empty());
    }

    #[test]
    fn bytes_are_bounded_and_shared() {
        let mut tails = Tails::default();
        tails.opened(1, 1);
        let long = "é".repeat(KEPT_LINE_MAX);
        for _ in 0..40 {
            push(&mut tails, 1, &long);
        }
        let kept = tails.last(None, usize::MAX);
        assert!(kept.iter().all(|kept| kept.text.len() == KEPT_LINE_MAX && kept.end == End::Cut));
        assert_eq!(tails.all[0].bytes, KEPT_OF_ONE_MAX);
        for worker in 2..=1024 {
            tails.opened(worker, u16::try_from(worker).unwrap());
            push(&mut tails, worker, &long);
        }
        let bytes: usize = tails.all.iter().map(|tail| tail.bytes).sum();
        assert!(bytes <= KEPT_BYTES_MAX, "{bytes}");
        let counted: usize = tails.last(None, usize::MAX).iter().map(|k| k.text.len()).sum();
        assert_eq!(bytes, counted);
    }

    #[test]
    fn the_last_that_ended_are_kept() {
        let mut tails = Tails::default();
        for worker in 1..=100 {
            tails.opened(worker, 0);
            push(&mut tails, worker, &worker.to_string());
            tails.closed(worker);
        }
        assert_eq!(tails.all.len(), ENDED_TAILS_MAX);
        assert_eq!(shown(&tails, Some(0), 1).first().unwrap(), "69");
    }
}
