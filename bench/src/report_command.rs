//! `croupier-bench report`: from results to what people read.
//!
//! Owns: its flags. Never does: compute or draw (`croupier_bench::report`).

use std::path::PathBuf;

use clap::Args;
use croupier_bench::report::{self, Soak};

/// Makes report.html, CSV and HDR logs of results.json, beside it.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The folder that `run --out` wrote.
    folder: PathBuf,

    /// Prints all tables as Markdown, and writes no file.
    #[arg(long, conflicts_with = "publish")]
    markdown: bool,

    /// Writes goals and main tables into DIR/README.md and the conclusion into the --readme, each between
    /// its markers; all tables to DIR/tables.md and the chart to DIR/chart.svg.
    #[arg(long, value_name = "DIR")]
    publish: Option<PathBuf>,

    /// The document that gets the conclusion.
    #[arg(long, value_name = "FILE", default_value = "README.md", requires = "publish")]
    readme: PathBuf,

    /// The figures of a `make soak`, for the goals that only it measures.
    #[arg(long, value_name = "FILE")]
    figures: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn run(arguments: &ReportArgs) -> Result<(), Box<dyn std::error::Error>> {
    let folder = &arguments.folder;
    let soak = arguments.figures.as_deref().map(Soak::read).transpose()?;
    let soak = soak.as_ref();
    if arguments.markdown {
        print!("{}", report::markdown(folder, soak)?);
        return Ok(());
    }
    if let Some(bench) = &arguments.publish {
        return Ok(report::publish(folder, bench, &arguments.readme, soak)?);
    }
    let written = report::write(folder, soak)?;
    println!("{}\n\n{}", written.conclusion, written.page.display());
    Ok(())
}
