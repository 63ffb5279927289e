//! What a run shows: a page, tables, files for other programs.
//!
//! Owns: everything between `results.json` and a reader. Promises: every sentence, table and chart is
//! computed from the file alone, also when cells are missing, have one round or failed throughout.
//! Never does: measure, or change `results.json`.

mod advice;
mod chart;
mod export;
mod goals;
mod markdown;
mod names;
mod page;
mod pictures;
mod soak;
mod table;
mod units;
mod view;
mod words;

#[cfg(test)]
#[path = "../../tests/synthetic/mod.rs"]
mod synthetic;

use std::path::{Path, PathBuf};

use crate::data::{Results, ResultsError};
use markdown::Part;
use view::View;

pub use advice::advice;
pub use chart::ChartError;
pub use soak::{Soak, SoakError};

/// A report that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No results, or none that can be read.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// A chart.
    #[error(transparent)]
    Chart(#[from] ChartError),
    /// A table or a log for other programs.
    #[error("cannot write a table of the results: {0}")]
    Export(String),
    /// The system refused.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A document without a place for what is generated.
    #[error(
        "{path}: no `<!-- {part}: generated -->` line with an `<!-- end {part} -->` after it; add both where the text is to stand"
    )]
    NoMarkers {
        /// The document.
        path: PathBuf,
        /// Which part.
        part: &'static str,
    },
    /// A chart was asked for, and the run has none.
    #[error("the run has nothing to draw; run a workload with latencies or rates")]
    NothingToDraw,
}

fn export_error(error: impl std::fmt::Display) -> ReportError {
    ReportError::Export(error.to_string())
}

/// What `write` made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// The three lines of conclusion.
    pub conclusion: String,
}

/// Writes `report.html`, `rounds.csv`, `percentiles.csv` and `latency.hlog` beside `results.json`.
///
/// # Errors
/// If the results cannot be read, or the folder cannot be written.
pub fn write(folder: &Path, soak: Option<&Soak>) -> Result<Written, ReportError> {
    let results = Results::read(folder)?;
    let view = View::new(&results).beside(soak);
    let page = folder.join("report.html");
    put(&folder.join("rounds.csv"), export::rounds(&view)?.as_bytes())?;
    put(&folder.join("percentiles.csv"), export::percentiles(&view)?.as_bytes())?;
    put(&folder.join("latency.hlog"), &export::hdr_log(&view)?)?;
    put(&page, page::page(&view)?.as_bytes())?;
    Ok(Written { page, conclusion: markdown::conclusion(&view).trim().to_owned() })
}

/// Goals, summary and all tables as Markdown.
///
/// # Errors
/// If the results cannot be read.
pub fn markdown(folder: &Path, soak: Option<&Soak>) -> Result<String, ReportError> {
    let results = Results::read(folder)?;
    let view = View::new(&results).beside(soak);
    Ok(format!("{}\n{}", markdown::results(&view), markdown::everything(&view)))
}

/// Writes a run into the project's documents: its goals and main tables into `<bench>/README.md` and its
/// conclusion into `readme`, each between its markers; all of its tables as `<bench>/tables.md`, its chart
/// as `<bench>/chart.svg`.
///
/// # Errors
/// If the results cannot be read, a document has no markers, or cannot be written. Nothing is written
/// then, as long as the documents can be read.
pub fn publish(
    folder: &Path,
    bench: &Path,
    readme: &Path,
    soak: Option<&Soak>,
) -> Result<(), ReportError> {
    let results = Results::read(folder)?;
    let view = View::new(&results).beside(soak);
    let chart = pictures::emblem(&view)?.ok_or(ReportError::NothingToDraw)?;
    let tables = bench.join("README.md");
    let with_tables = inserted(&tables, Part::Results, &markdown::results(&view))?;
    let shown = format!(
        "\n![{0}](bench/chart.svg)\n\n{0}.\n{1}",
        markdown::cell(&chart.caption),
        markdown::conclusion(&view)
    );
    let with_conclusion = inserted(readme, Part::Conclusion, &shown)?;
    put(&bench.join("chart.svg"), chart.figure.standalone().as_bytes())?;
    put(&bench.join("tables.md"), markdown::tables_file(&view).as_bytes())?;
    put(&tables, with_tables.as_bytes())?;
    put(readme, with_conclusion.as_bytes())
}

fn inserted(path: &Path, part: Part, text: &str) -> Result<String, ReportError> {
    let document = std::fs::read_to_string(path)
        .map_err(|error| ReportError::Io { path: path.to_owned(), error })?;
    markdown::replaced(&document, part, text)
        .ok_or_else(|| ReportError::NoMarkers { path: path.to_owned(), part: part.name() })
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    std::fs::write(path, bytes).map_err(|error| ReportError::Io { path: path.to_owned(), error })
}
