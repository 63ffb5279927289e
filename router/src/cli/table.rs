//! Text for people: tables, numbers, times, sizes.
//!
//! Promises: columns line up for any content. Never does: colours, I/O.

use std::fmt::Write as _;

/// How a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table with a head; two spaces between columns.
#[derive(Debug)]
pub(super) struct Table {
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&str, Align)]) -> Self {
        Self {
            aligns: columns.iter().map(|(_, align)| *align).collect(),
            rows: vec![columns.iter().map(|(name, _)| (*name).to_owned()).collect()],
        }
    }

    /// One cell for each column.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.aligns.len(), "a row has every column");
        self.rows.push(cells);
    }

    /// The text, each line indented and ended by a newline.
    pub(super) fn render(&self, indent: &str) -> String {
        let mut widths = vec![0; self.aligns.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for ((cell, width), align) in row.iter().zip(&widths).zip(&self.aligns) {
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                match align {
                    Align::Left => line.extend([cell.as_str(), &pad, "  "]),
                    Align::Right => line.extend([pad.as_str(), cell, "  "]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `1,234,567`.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number, or `-` for what is not known.
pub(super) fn known<T: Into<u64>>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| number(value.into()))
}

/// `17s`, `4m 2s`, `3h 12m`, `9d 4h`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m {}s", seconds % 60),
        3_600..86_400 => format!("{hours}h {}m", minutes % 60),
        86_400.. => format!("{days}d {}h", hours % 24),
    }
}

/// `850µs`, `12.3ms`, `4.20s`.
pub(super) fn micros(value: Option<u64>) -> String {
    let mut text = String::new();
    let written = match value {
        None => write!(text, "-"),
        Some(us @ 0..1_000) => write!(text, "{us}µs"),
        Some(us @ 1_000..1_000_000) => write!(text, "{}.{}ms", us / 1_000, us % 1_000 / 100),
        Some(us) => write!(text, "{}.{:02}s", us / 1_000_000, us % 1_000_000 / 10_000),
    };
    debug_assert!(written.is_ok(), "a String takes everything");
    text
}

/// `22.4M`.
pub(super) fn bytes(value: Option<u64>) -> String {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let tenths = |value: u64, unit: u64| format!("{}.{}", value / unit, value % unit * 10 / unit);
    match value {
        None => "-".into(),
        Some(bytes @ 0..MIB) => format!("{}K", bytes / KIB),
        Some(bytes @ MIB..GIB) => format!("{}M", tenths(bytes, MIB)),
        Some(bytes) => format!("{}G", tenths(bytes, GIB)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_times_and_sizes() {
        let numbers = [0, 999, 1_000, 1_234_567].map(number);
        assert_eq!(numbers, ["0", "999", "1,000", "1,234,567"]);
        let ages = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 900_000].map(age);
        assert_eq!(ages, ["0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m", "1d 0h", "10d 10h"]);
        let waits =
            [Some(0), Some(999), Some(1_000), Some(999_999), Some(1_050_000), None].map(micros);
        assert_eq!(waits, ["0µs", "999µs", "1.0ms", "999.9ms", "1.05s", "-"]);
        let sizes = [None, Some(1_023), Some(2_048), Some(3 << 19), Some(5 << 29)].map(bytes);
        assert_eq!(sizes, ["-", "0K", "2K", "1.5M", "2.5G"]);
    }
}
