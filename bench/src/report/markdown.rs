//! The results as Markdown, for `bench/README.md` and the three lines in the README.
//!
//! Owns: the part of a document between its two markers. Promises: what comes from data cannot leave
//! its cell; a document without markers is not touched. Never does: write files.

use super::goals::{self, Line};
use super::page::{generator_line, grouped, unplanned};
use super::table::{Content, Table};
use super::units;
use super::view::View;
use super::words::{Sentence, Summary};

/// Which generated part of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All tables.
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

/// Everything between the markers of `bench/README.md`.
pub(crate) fn results(view: &View<'_>) -> String {
    let run = view.results;
    let environment = &run.environment;
    let commit = environment.commit.as_deref().unwrap_or("none");
    let mut text = String::from("\n");
    if run.synthetic {
        text += "**Synthetic: made up by a test; nothing was measured.**\n\n";
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
    text += "\n### Goals\n\n";
    text += &goal_table(&goals::design(view));
    text += "\nBeyond the design:\n\n";
    text += &goal_table(&goals::beyond(view));
    let summary = Summary::of(view);
    text += "\n### In words\n\n";
    text += &sentences("Ahead", &summary.ahead);
    text += &sentences("Behind", &summary.behind);
    text += &sentences("Another policy of croupier is better than the default", &summary.policies);
    text += &sentences("Not told apart", &summary.even);
    for cost in &summary.costs {
        text += &format!("- {}\n", cell(cost));
    }
    for workload in &run.workloads {
        text += &format!("\n### {}\n\n", cell(&workload.name));
        text += &table(&Table::of_workload(view, workload));
        text += &format!(
            "\n*{}.* {}\n",
            cell(workload.method.trim_end_matches('.')),
            cell(&generator_line(workload))
        );
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
        text += "**Synthetic: made up by a test; nothing was measured.**\n\n";
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
