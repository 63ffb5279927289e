//! The results as Markdown: for `bench/README.md`, `bench/tables.md` and the three lines in the README.
//!
//! Owns: the part of a document between its two markers. Promises: what comes from data cannot leave
//! its cell; a document without markers is not touched. Never does: write files.

use super::goals::{self, Line};
use super::names::{self, workload as id};
use super::page::{generator_line, grouped, standing_words, unplanned};
use super::table::{Content, Table};
use super::units;
use super::view::{Cell, Measure, View};
use super::words::{Sentence, Summary, overview};
use crate::data::{Generator, WorkerKind, WorkloadInfo};

const SYNTHETIC: &str = "**Synthetic: made up by a test; nothing was measured.**\n\n";
/// Workloads whose tables stand in the README, of a run that has more.
const MAIN: [&str; 7] =
    [id::SHORT, id::SHORT_PACED, id::ONE_BY_ONE, id::CPU, id::TAIL_70, id::LONG_MANY, id::STALL];
/// Columns of those tables, beside the ratio.
const COLUMNS: [&str; 12] = [
    "conn/s",
    "req/s",
    "p50",
    "p99",
    "p99.9",
    "cheap p99",
    "max",
    "CV",
    "CPU/conn",
    "CPU/req",
    "RSS",
    "failed",
];

/// Which generated part of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Goals, who is ahead, main tables.
    Results,
    /// The three lines.
    Conclusion,
}

impl Part {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Results => "results",
            Self::Conclusion => "conclusion",
        }
    }
}

/// What stands between the markers of a document is replaced; `None` if it has no such markers.
pub(crate) fn replaced(document: &str, part: Part, text: &str) -> Option<String> {
    let name = part.name();
    let (open, close) = (format!("<!-- {name}: generated -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = document.split_once(&open)?;
    let (_, after) = rest.split_once(&close)?;
    Some(format!("{before}{open}{}\n{close}{after}", text.trim_end()))
}

/// A text that stays in its cell, and is no markup.
pub(crate) fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => safe.push(' '),
            '|' | '\\' | '[' | ']' | '*' | '_' => safe.extend(['\\', c]),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            other => safe.push(other),
        }
    }
    safe
}

fn line(cells: impl IntoIterator<Item = String>) -> String {
    let mut text = String::from("|");
    for one in cells {
        text.extend([" ", &one, " |"]);
    }
    text.push('\n');
    text
}

fn goal_table(lines: &[Line]) -> String {
    let mut text = String::from("| figure | goal | measured | verdict |\n|---|---|---|---|\n");
    for one in lines {
        let verdict = one.verdict.words().to_owned();
        // Figure and goal are this program's own words, with code in them.
        text += &line([one.figure.into(), one.goal.into(), cell(&one.measured), verdict]);
    }
    text
}

fn table(of: &Table) -> String {
    let heads = of.columns.iter().map(|(head, _)| cell(head));
    let mut text = line(std::iter::once("engine".to_owned()).chain(heads));
    text += "|---|";
    text += &"---:|".repeat(of.columns.len());
    text.push('\n');
    for row in &of.rows {
        let name = cell(&row.name);
        let figures: Vec<String> = match &row.content {
            Content::Figures(figures) => figures.iter().map(|figure| cell(figure)).collect(),
            Content::Absent(why) => {
                let mut cells = vec![format!("not run: {}", cell(why))];
                cells.resize(of.columns.len().max(1), String::new());
                cells
            }
        };
        text += &line(std::iter::once(name).chain(figures));
    }
    text
}

fn sentences(title: &str, all: &[Sentence]) -> String {
    let mut text = format!("**{title}.**\n\n");
    if all.is_empty() {
        text += "- Nowhere that these rounds can tell.\n";
    }
    for one in all {
        text += &format!("- {}\n", cell(&one.whole()));
    }
    text + "\n"
}

/// What every document says first: whose figures these are.
fn opening(view: &View<'_>) -> String {
    let run = view.results;
    let environment = &run.environment;
    let commit = environment.commit.as_deref().unwrap_or("none");
    let mut text = String::from("\n");
    if run.synthetic {
        text += SYNTHETIC;
    }
    text += &format!(
        "Measured {} at commit `{}`{}: {}, {} CPUs, {}; `{}`, {} rounds of {} s.\n\n",
        cell(&environment.began),
        cell(commit.get(..12).unwrap_or(commit)),
        if environment.dirty { " with changes" } else { "" },
        cell(&environment.cpu),
        environment.cpus,
        cell(&environment.kernel),
        cell(&run.plan.name),
        run.plan.rounds,
        units::plain(run.plan.seconds),
    );
    for warning in &run.warnings {
        text += &format!("- *{}:* {}\n", cell(warning.name()), cell(&warning.to_string()));
    }
    text
}

/// Everything between the markers of `bench/README.md`: goals, who is ahead, and the tables that most
/// readers want. The rest is in the other document.
pub(crate) fn results(view: &View<'_>) -> String {
    let mut text = opening(view);
    text += "\n### Goals\n\n";
    text += &goal_table(&goals::design(view));
    text += "\nBeyond the design:\n\n";
    text += &goal_table(&goals::beyond(view));
    text += &format!("\n{}\n", goals::METHOD);
    for worker in [WorkerKind::Rust, WorkerKind::Node, WorkerKind::Own] {
        text += &glance(view, worker);
    }
    let summary = Summary::of(view);
    let leading = |all: &[Sentence]| -> Vec<Sentence> {
        all.iter().filter(|one| one.leading).cloned().collect()
    };
    text += "\n### In words\n\n";
    text += &sentences("Ahead", &leading(&summary.ahead));
    text += &sentences("Behind", &summary.behind);
    let better = "Another policy of croupier is better than the default";
    text += &sentences(better, &leading(&summary.policies));
    if let Some(cost) = summary.costs.first() {
        text += &format!("{}\n\n", cell(cost));
    }
    text += "Comparisons in other figures, what the rounds cannot tell apart, every workload with all of its columns and \
             what spoils each of them: [tables.md](tables.md).\n";
    for workload in view.results.workloads.iter().filter(|workload| is_main(view, workload)) {
        text += &brief(view, workload);
    }
    text + &against_workers(view)
}

/// Few workloads are all shown.
fn is_main(view: &View<'_>, workload: &WorkloadInfo) -> bool {
    view.results.workloads.len() <= MAIN.len() || MAIN.contains(&workload.id.as_str())
}

/// How many times better or worse the default is, in the figure that each workload is most about.
fn glance(view: &View<'_>, worker: WorkerKind) -> String {
    let Some((names, rows)) = overview(view, worker) else { return String::new() };
    let own = view.croupier(worker).map_or("croupier", |engine| engine.name.as_str());
    let mut text = format!("\n### At a glance: {} beside the others\n\n", cell(own));
    let heads = ["workload", "figure", own].into_iter().chain(names.iter().copied());
    text += &line(heads.map(cell));
    text += &format!("|---|---|{}\n", "---:|".repeat(names.len() + 1));
    for row in &rows {
        let own = if row.engine == own {
            cell(&row.own)
        } else {
            format!("{} ({})", cell(&row.own), cell(row.engine))
        };
        let first = [cell(&row.workload.name), cell(row.measure.name()), own];
        let rivals = row.rivals.iter().map(|one| match one {
            Some(finding) => cell(&standing_words(finding)),
            None => "–".to_owned(),
        });
        text += &line(first.into_iter().chain(rivals));
    }
    text + "\nHow many times better (▲) or worse (▼) croupier is; ≈ where these rounds cannot tell.\n"
}

/// A workload's table with the columns that most readers want.
fn brief(view: &View<'_>, workload: &WorkloadInfo) -> String {
    let mut text = format!("\n### {}\n\n", cell(&workload.name));
    let mut heads = COLUMNS.to_vec();
    if workload.generator != Generator::ClosedWrk {
        // A schedule gives everybody the same rate.
        heads.retain(|head| !head.ends_with("/s"));
    }
    text += &table(&Table::of_workload(view, workload).only(&heads));
    text += &method(workload);
    let spoils = spoiled(view.of_workload(&workload.id));
    if !spoils.is_empty() {
        text += &format!("\nSpoiled by: {spoils}.\n");
    }
    text
}

/// Each kind of warning once, with the engines that it is about.
fn spoiled(cells: &[Cell<'_>]) -> String {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for one in cells {
        for warning in &one.warnings {
            let (name, engine) = (warning.name(), one.engine.name.as_str());
            match found.iter_mut().find(|(known, _)| *known == name) {
                Some((_, engines)) => engines.push(engine),
                None => found.push((name, vec![engine])),
            }
        }
    }
    let words = found.iter().map(|(name, engines)| {
        let everybody = cells.iter().filter(|one| !one.rounds.is_empty()).count() == engines.len();
        let engines = if everybody { "all".to_owned() } else { engines.join(", ") };
        format!("{} ({})", cell(name), cell(&engines))
    });
    words.collect::<Vec<_>>().join("; ")
}

fn method(workload: &WorkloadInfo) -> String {
    let method = cell(workload.method.trim_end_matches('.'));
    format!("\n*{method}.* {}\n", cell(&generator_line(workload)))
}

/// Rate and cost of each engine by the number of workers.
fn against_workers(view: &View<'_>) -> String {
    let of_family = |one: &&WorkloadInfo| one.family == names::workload::WORKERS;
    let members: Vec<&WorkloadInfo> = view.results.workloads.iter().filter(of_family).collect();
    if members.len() < 2 {
        return String::new();
    }
    let mut text = "\n### Against the number of workers\n".to_owned();
    for measure in [Measure::ConnectionRate, Measure::PrimaryCpu] {
        let heads = members.iter().map(|one| cell(&one.name));
        let first = format!("{}, median round", measure.name());
        text += &format!("\n{}", line(std::iter::once(cell(&first)).chain(heads)));
        text += &format!("|---|{}\n", "---:|".repeat(members.len()));
        for engine in &view.results.engines {
            let figure = |one: &&WorkloadInfo| {
                let spread = view.cell(&engine.id, &one.id)?.spread(measure)?;
                Some(measure.show(spread.median))
            };
            let figures: Vec<Option<String>> = members.iter().map(figure).collect();
            if figures.iter().any(Option::is_some) {
                let shown = figures
                    .into_iter()
                    .map(|one| one.map_or_else(|| "–".to_owned(), |one| cell(&one)));
                text += &line(std::iter::once(cell(&engine.name)).chain(shown));
            }
        }
    }
    text
}

/// `bench/tables.md`.
pub(crate) fn tables_file(view: &View<'_>) -> String {
    format!(
        "# Every table of the run\n\n<!-- generated by `make bench-publish`; README.md says how it was \
         measured and how it could mislead -->\n{}\n{}",
        opening(view),
        everything(view)
    )
}

/// All comparisons in words and all tables, with what spoils each.
pub(crate) fn everything(view: &View<'_>) -> String {
    let summary = Summary::of(view);
    let mut text = String::from("## In words\n\n");
    text += &sentences("Ahead", &summary.ahead);
    text += &sentences("Behind", &summary.behind);
    text += &sentences("Another policy of croupier is better than the default", &summary.policies);
    text += &sentences("Not told apart", &summary.even);
    text += "**What dealing costs.**\n\n";
    for cost in &summary.costs {
        text += &format!("- {}\n", cell(cost));
    }
    for workload in &view.results.workloads {
        text += &format!("\n## {}\n\n", cell(&workload.name));
        text += &table(&Table::of_workload(view, workload));
        text += &method(workload);
        let unplanned = unplanned(view.of_workload(&workload.id));
        if !unplanned.is_empty() {
            let names = cell(&unplanned.join(", "));
            text += &format!("\nNot compared under this workload: {names}.\n");
        }
        let warnings = grouped(view.of_workload(&workload.id));
        if !warnings.is_empty() {
            text += "\nWhat spoils this table:\n\n";
        }
        for (warning, engines) in warnings {
            text += &format!("- {}: {}\n", cell(&engines.join(", ")), cell(&warning));
        }
    }
    text
}

/// The three lines for a README.
pub(crate) fn conclusion(view: &View<'_>) -> String {
    let mut text = String::from("\n");
    if view.results.synthetic {
        text += SYNTHETIC;
    }
    for one in Summary::of(view).conclusion() {
        // The first word is this program's own and is bold.
        let (head, rest) = one.split_once(' ').unwrap_or((&one, ""));
        text += &format!("- {head} {}\n", cell(rest));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let document = "# A\n\n<!-- results: generated -->\nold\n<!-- end results -->\n\n## B\n";
        let new = replaced(document, Part::Results, "\nnew\n").unwrap();
        assert_eq!(
            new,
            "# A\n\n<!-- results: generated -->\n\nnew\n<!-- end results -->\n\n## B\n"
        );
        assert_eq!(replaced(&new, Part::Results, "\nnew\n").unwrap(), new, "again: the same");
        assert_eq!(replaced(document, Part::Conclusion, "x"), None);
        assert_eq!(replaced("<!-- results: generated -->\n no end", Part::Results, "x"), None);
    }

    #[test]
    fn data_stays_in_its_cell() {
        assert_eq!(cell("a|b\nc"), "a\\|b c");
        assert_eq!(cell("<img src=x> & *"), "&lt;img src=x&gt; &amp; \\*");
        assert_eq!(cell("[x](http://e)"), "\\[x\\](http://e)");
    }
}
