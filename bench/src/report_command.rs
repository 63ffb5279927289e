//! `croupier-bench report`: from results to what people read.
//!
//! Owns: its flags. Never does: compute or draw (`croupier_bench::report`).

use std::path::PathBuf;

use clap::Args;
use croupier_bench::report;

/// Makes report.html, CSV and HDR logs of results.json, beside it.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The folder that `run --out` wrote.
    folder: PathBuf,

    /// Prints all tables as Markdown, and writes no file.
    #[arg(long, conflicts_with = "publish")]
    markdown: bool,

    /// Writes the tables into DIR/README.md and the chart to DIR/chart.svg, and the conclusion into the
    /// --readme, each between its markers.
    #[arg(long, value_name = "DIR")]
    publish: Option<PathBuf>,

    /// The document that gets the conclusion.
    #[arg(long, value_name = "FILE", default_value = "README.md", requires = "publish")]
    readme: PathBuf,
}

#[expect(clippy::print_stdout, reason = "the answer of the command")]
pub(crate) fn run(arguments: &ReportArgs) -> Result<(), Box<dyn std::error::Error>> {
    let folder = &arguments.folder;
    if arguments.markdown {
        print!("{}", report::markdown(folder)?);
        return Ok(());
    }
    if let Some(bench) = &arguments.publish {
        return Ok(report::publish(folder, bench, &arguments.readme)?);
    }
    let written = report::write(folder)?;
    println!("{}\n\n{}", written.conclusion, written.page.display());
    Ok(())
}
