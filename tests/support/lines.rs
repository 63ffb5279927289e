//! The output of a process, line by line, while it runs.

use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::now;

/// Lines kept of one process; what comes beyond is counted only.
const LINES_MAX: usize = 200_000;

#[derive(Debug, Default)]
struct Text {
    lines: Vec<String>,
    open: u32,
}

/// What a process printed so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    shared: Arc<(Mutex<Text>, Condvar)>,
}

impl Lines {
    /// Reads `from` to its end in a thread of its own.
    pub(crate) fn follow(&self, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = self.clone();
        lines.shared.0.lock().open += 1;
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while matches!(from.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                let mut to = lines.shared.0.lock();
                if to.lines.len() < LINES_MAX {
                    to.lines.push(text);
                }
                lines.shared.1.notify_all();
            }
            lines.shared.0.lock().open -= 1;
            lines.shared.1.notify_all();
        })
    }

    /// All lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.shared.0.lock().lines.clone()
    }

    /// All lines so far as one text.
    #[must_use]
    pub fn text(&self) -> String {
        self.all().join("\n")
    }

    /// How many lines contain `part`.
    #[must_use]
    pub fn count(&self, part: &str) -> usize {
        self.shared.0.lock().lines.iter().filter(|line| line.contains(part)).count()
    }

    /// Waits for the first line that contains `part`; `None` when the output ends, or patience
    /// does, before it came.
    #[must_use]
    pub fn wait_for(&self, part: &str, patience: Duration) -> Option<String> {
        let deadline = now() + patience;
        let mut text = self.shared.0.lock();
        loop {
            if let Some(line) = text.lines.iter().find(|line| line.contains(part)) {
                return Some(line.clone());
            }
            if text.open == 0 || self.shared.1.wait_until(&mut text, deadline).timed_out() {
                return text.lines.iter().find(|line| line.contains(part)).cloned();
            }
        }
    }
}
