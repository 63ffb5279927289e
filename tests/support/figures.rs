//! The measured figures of a long run, one line per promise.

use std::io::Write;

/// One measured figure and what it is held against.
#[derive(Debug)]
pub struct Figure<'a> {
    /// Which promise: the number of the acceptance list, then a word.
    pub item: &'a str,
    /// What was done and measured.
    pub measured: String,
    /// What it must be.
    pub goal: &'a str,
    /// Whether it is.
    pub met: bool,
}

/// Whether the full counts are asked for (`make soak`).
#[must_use]
pub fn soak() -> bool {
    std::env::var_os("CROUPIER_SOAK").is_some_and(|value| value == "1")
}

/// The full count in a soak, the small one otherwise.
#[must_use]
pub fn soak_or<T>(full: T, small: T) -> T {
    if soak() { full } else { small }
}

/// Appends a figure to the table that `make soak` prints, and fails the test if it is not met.
///
/// # Panics
/// When the figure is not met.
#[track_caller]
pub fn figure(figure: &Figure<'_>) {
    record(figure);
    let Figure { item, measured, goal, met } = figure;
    assert!(met, "{item}: measured {measured}, goal {goal}");
}

/// Appends a figure to the table; the test goes on, and fails later if one is not met.
///
/// # Panics
/// When the table cannot be written.
pub fn record(figure: &Figure<'_>) {
    let Figure { item, measured, goal, met } = figure;
    let verdict = if *met { "pass" } else { "FAIL" };
    if let Some(path) = std::env::var_os("CROUPIER_FIGURES") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{item}\t{measured}\t{goal}\t{verdict}").unwrap();
    }
    eprintln!("{item}: {measured} (goal: {goal}): {verdict}");
}
