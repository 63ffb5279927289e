//! The figures of a soak: what this benchmark does not measure, and `make soak` does.
//!
//! Owns: reading the table that the end-to-end tests write (`tests/support/figures.rs`). Promises: a
//! file that is not such a table is an error that names the line. Never does: judge a figure anew.

use std::io::Read;
use std::path::{Path, PathBuf};

/// A table is a few dozen rows.
const BYTES_MAX: u64 = 1 << 20;
/// The row that says what was measured: `scripts/soak` writes it.
const COMMIT: &str = "commit";

/// All rows of a soak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soak {
    /// Of what source they are.
    commit: Option<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    item: String,
    measured: String,
    met: bool,
}

/// What some rows say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) words: String,
    /// Every row is met.
    pub(crate) met: bool,
    /// The largest count with which a row begins: `1000 kills, …`.
    pub(crate) count: u64,
}

/// A file of figures that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    /// The system refused.
    #[error("{path}: {error}; name the file that `make soak` wrote its figures into")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something else than such a table.
    #[error(
        "{path}, line {line}: not a row of a soak (item, measured, goal and verdict, with tabs between)"
    )]
    Row {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// Longer than any such table.
    #[error("{path}: longer than {BYTES_MAX} bytes: not the figures of a soak")]
    Long {
        /// The file.
        path: PathBuf,
    },
}

impl Soak {
    /// Reads a table.
    ///
    /// # Errors
    /// If it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, SoakError> {
        let path = path.to_owned();
        let mut text = String::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text));
        match read {
            Err(error) => return Err(SoakError::Io { path, error }),
            Ok(length) if u64::try_from(length).unwrap_or(u64::MAX) > BYTES_MAX => {
                return Err(SoakError::Long { path });
            }
            Ok(_) => {}
        }
        Self::parse(&text).map_err(|line| SoakError::Row { path, line })
    }

    /// The number of the line that is no row.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut soak = Self { commit: None, rows: Vec::new() };
        for (line, number) in text.lines().zip(1..) {
            let mut fields = line.split('\t');
            let mut next = || fields.next().filter(|field| !field.is_empty()).ok_or(number);
            let (item, measured, _goal, verdict) = (next()?, next()?, next()?, next()?);
            if fields.next().is_some() {
                return Err(number);
            }
            if item == COMMIT {
                soak.commit = Some(measured.to_owned());
                continue;
            }
            let met = verdict == "pass";
            soak.rows.push(Row { item: item.to_owned(), measured: measured.to_owned(), met });
        }
        Ok(soak)
    }

    /// What the rows say whose item begins with one of these; `None` if there is no such row.
    pub(crate) fn says(&self, items: &[&str]) -> Option<Said> {
        let of = |row: &&Row| items.iter().any(|item| row.item.starts_with(item));
        let rows: Vec<&Row> = self.rows.iter().filter(of).collect();
        if rows.is_empty() {
            return None;
        }
        let words: Vec<String> =
            rows.iter().map(|row| format!("{}: {}", row.item, row.measured)).collect();
        let source = self.commit.as_ref().map_or_else(
            || "a soak of a commit that its figures do not name".to_owned(),
            |commit| format!("a soak of commit {commit}"),
        );
        let leading = |row: &&Row| row.measured.split(' ').next()?.parse::<u64>().ok();
        Some(Said {
            words: format!("{} ({source})", words.join("; ")),
            met: rows.iter().all(|row| row.met),
            count: rows.iter().filter_map(leading).max().unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "commit\t0123abc\t-\t-\n\
        4 kill\t200 kills, 9 answers\tfailed <= kills\tpass\n\
        replace 3 kills 50ms apart, -w 2\t1000 kills, 90 answers\tfailed <= kills\tpass\n\
        idle wake-ups\t3 in 5s, all threads of the primary\t0\tFAIL\n";

    #[test]
    fn rows_say_what_was_measured_and_of_what() {
        let soak = Soak::parse(TABLE).unwrap();
        let said = soak.says(&["4 kill", "replace 3 kills"]).unwrap();
        assert!(said.met && said.count == 1000, "{said:?}");
        let words = "4 kill: 200 kills, 9 answers; replace 3 kills 50ms apart, -w 2: 1000 kills, \
                     90 answers (a soak of commit 0123abc)";
        assert_eq!(said.words, words);
        let idle = soak.says(&["idle wake-ups"]).unwrap();
        assert!(!idle.met && idle.count == 3, "{idle:?}");
        assert_eq!(soak.says(&["reload"]), None);
    }

    #[test]
    fn what_is_no_row_is_named_by_its_line() {
        assert_eq!(Soak::parse("a\tb\tc\tpass\nonly words\n"), Err(2));
        assert_eq!(Soak::parse("a\tb\tc\tpass\td\n"), Err(1));
        assert_eq!(Soak::parse("a\t\tc\tpass\n"), Err(1));
    }
}
