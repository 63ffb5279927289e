//! Which policy suits a program: a table and a recommendation in words, with its reasons.
//!
//! Owns: the rule. Promises: the default is recommended unless another is ahead by the rule of the
//! whole report; a policy that lost clients is not recommended; what makes the advice doubtful is said
//! with it. Never does: measure.

use std::fmt::Write as _;

use super::units;
use super::view::{Cell, Measure, View};
use super::words::{Standing, finding, lost, spoils};
use crate::data::{EngineKind, Results};
use crate::program::{PACED, PEAK};

/// Failures beyond this share make a policy unfit.
const FAILED: f64 = 0.001;

/// What `croupier bench` prints.
#[must_use]
pub fn advice(results: &Results) -> String {
    let view = View::new(results);
    let mut text = table(&view);
    text.push('\n');
    for line in words(&view) {
        text += &line;
        text.push('\n');
    }
    text
}

const HEAD: [&str; 8] =
    ["policy", "peak conn/s", "p50", "p99", "p99.9", "CV", "CPU/conn of croupier", "failed"];

fn table(view: &View<'_>) -> String {
    let mut rows: Vec<Vec<String>> = vec![HEAD.map(str::to_owned).to_vec()];
    for engine in &view.results.engines {
        let peak = view.cell(&engine.id, PEAK);
        let paced = view.cell(&engine.id, PACED);
        let show = |cell: Option<&Cell<'_>>, measure: Measure| {
            let spread = cell.and_then(|cell| cell.spread(measure));
            spread.map_or_else(|| "–".to_owned(), |spread| measure.show(spread.median))
        };
        let total = paced.and_then(|cell| cell.pooled.as_ref()).map(|pooled| pooled.total);
        let at = |of: fn(&super::view::Tally) -> f64| {
            total.as_ref().map_or_else(|| "–".to_owned(), |total| units::nanos(of(total)))
        };
        let ran = paced.is_some_and(|cell| !cell.rounds.is_empty());
        let failed = match paced.and_then(lost) {
            Some(words) => words,
            None if ran => "0".to_owned(),
            None => "did not run".to_owned(),
        };
        rows.push(vec![
            engine.name.clone(),
            show(peak, Measure::ConnectionRate),
            at(|total| total.p50),
            at(|total| total.p99),
            at(|total| total.p999),
            show(paced, Measure::Unevenness),
            show(paced, Measure::PrimaryCpu),
            failed,
        ]);
    }
    aligned(&rows)
}

/// The first column to the left, the others to the right, two spaces between.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) = if at == 0 { ("", &*pad) } else { (&*pad, "") };
            let written = write!(line, "{before}{cell}{after}  ");
            debug_assert!(written.is_ok(), "a String takes everything");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn is_fit(view: &View<'_>, id: &str) -> bool {
    let fits = |cell: &Cell<'_>| {
        !cell.rounds.is_empty()
            && !cell.all_failed()
            && cell.spread(Measure::FailedShare).is_none_or(|share| share.median <= FAILED)
    };
    view.cell(id, PACED).is_some_and(fits)
        && view.cell(id, PEAK).is_none_or(|cell| cell.rounds.is_empty() || fits(cell))
}

/// How one policy stands to another where clients feel it, and in what it can take at most.
fn stands(view: &View<'_>, first: &str, second: &str) -> (Standing, Standing) {
    let of = |load: &str, measure: Measure| {
        let found = view.cell(first, load).zip(view.cell(second, load));
        let found = found.and_then(|(a, b)| finding(a, b, measure));
        found.map_or(Standing::Even, |finding| finding.standing)
    };
    (of(PACED, Measure::P99), of(PEAK, Measure::ConnectionRate))
}

/// The default, unless another is ahead in one of both and behind in neither. Among several such the
/// one with the smallest p99.
fn choose<'a>(view: &View<'a>) -> Option<&'a str> {
    let fit: Vec<&str> = view
        .results
        .engines
        .iter()
        .filter(|engine| engine.kind == EngineKind::Croupier)
        .map(|engine| engine.id.as_str())
        .filter(|id| is_fit(view, id))
        .collect();
    let p99 = |id: &str| {
        let cell = view.cell(id, PACED);
        cell.and_then(|cell| cell.spread(Measure::P99)).map_or(f64::INFINITY, |s| s.median)
    };
    let by_tail = |a: &&&str, b: &&&str| p99(a).total_cmp(&p99(b));
    let default = fit.iter().find(|id| **id == super::names::engine::LEAST);
    let Some(default) = default else { return fit.iter().min_by(by_tail).copied() };
    let better = fit.iter().filter(|id| match stands(view, id, default) {
        (Standing::Ahead, Standing::Ahead | Standing::Even) | (Standing::Even, Standing::Ahead) => {
            true
        }
        (Standing::Behind, _) | (_, Standing::Behind) | (Standing::Even, Standing::Even) => false,
    });
    better.min_by(by_tail).or(Some(default)).copied()
}

fn words(view: &View<'_>) -> Vec<String> {
    let Some(chosen) = choose(view) else {
        return vec![
            "No recommendation: under every policy of croupier clients were lost or nothing ran."
                .into(),
            absences(view),
        ];
    };
    let mut lines = vec![format!("Recommended: -p {chosen}")];
    if chosen == super::names::engine::LEAST {
        lines.push("- The default: no other policy was ahead in the tail or the peak without being behind in the other.".into());
    }
    for engine in &view.results.engines {
        if engine.id != chosen {
            lines.extend(reasons(view, chosen, &engine.id));
        }
    }
    lines.extend(general(view, chosen));
    lines.push(absences(view));
    lines.extend(doubts(view));
    lines.retain(|line| !line.is_empty());
    lines
}

/// What speaks for the chosen one and against, beside one other.
fn reasons(view: &View<'_>, chosen: &str, other: &str) -> Option<String> {
    let cells = |load| view.cell(chosen, load).zip(view.cell(other, load));
    let mut said = Vec::new();
    for (load, measure) in [(PACED, Measure::P99), (PEAK, Measure::ConnectionRate)] {
        let Some((a, b)) = cells(load) else { continue };
        let Some(found) = finding(a, b, measure) else { continue };
        let Some(value) = a.spread(measure) else { continue };
        let stands = match found.standing {
            Standing::Ahead => "ahead of",
            Standing::Behind => "behind",
            Standing::Even => continue,
        };
        said.push(format!(
            "{} ({}) {stands} {}",
            measure.name(),
            measure.show(value.median),
            found.words
        ));
    }
    let failed = view.cell(other, PACED).filter(|cell| !cell.rounds.is_empty()).and_then(lost);
    if let Some(failed) = failed {
        said.push(format!("{other} lost clients: {failed}"));
    }
    (!said.is_empty()).then(|| format!("- {}.", said.join("; ")))
}

/// What no measurement of one kind of request can show.
fn general(view: &View<'_>, chosen: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let ran = |id: &str| view.cell(id, PACED).is_some_and(|cell| !cell.rounds.is_empty());
    if ran("single") {
        let (tail, peak) = stands(view, chosen, "single");
        if tail != Standing::Ahead && peak != Standing::Ahead {
            lines.push(
                "- One process did as well: for this request on this machine, more workers bring nothing but \
                 that they can be replaced."
                    .into(),
            );
        }
    }
    if chosen != "ip" {
        lines.push(
            "- Clients that must come back to the same worker (sessions in memory, long-polling) need \
             -p ip, whatever the figures."
                .into(),
        );
    }
    if matches!(chosen, "shared" | "reuseport") {
        lines.push(
            "- With it nobody deals: a worker that blocks keeps what came to it, and --max-active, \
             --max-total and --max-queue-wait are refused. For a server that does one thing at a time, \
             -p least --max-active 1 does as well and still deals: try it with --run-flag=--max-active=1."
                .into(),
        );
    }
    lines
}

fn absences(view: &View<'_>) -> String {
    let said: Vec<String> = view
        .results
        .absent
        .iter()
        .map(|absent| format!("- {}: {}", absent.engine, absent.why))
        .fold(Vec::new(), |mut all, line| {
            if !all.contains(&line) {
                all.push(line);
            }
            all
        });
    if said.is_empty() { String::new() } else { format!("Not run:\n{}", said.join("\n")) }
}

/// Warnings, each once with those whom it is about.
fn doubts(view: &View<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    let rounds = view.results.plan.rounds;
    if rounds < 3 {
        lines.push(format!(
            "- {rounds} rounds: only what is ahead by 10 % was believed; --rounds 5 says more."
        ));
    }
    for warning in &view.results.warnings {
        lines.push(format!("- {warning}."));
    }
    let mut named: Vec<(&str, Vec<&str>)> = Vec::new();
    for cell in view.all() {
        for name in spoils(cell) {
            match named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, engines)) if engines.contains(&cell.engine.id.as_str()) => {}
                Some((_, engines)) => engines.push(&cell.engine.id),
                None => named.push((name, vec![&cell.engine.id])),
            }
        }
    }
    for (name, engines) in named {
        lines.push(format!("- Doubtful ({name}): {}.", engines.join(", ")));
    }
    if !lines.is_empty() {
        lines.insert(0, "What makes this doubtful:".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made-up engines as policies of a program: `shared` has the best tail and the best rate.
    fn own() -> Results {
        let mut results = super::super::synthetic::whole(1, 3);
        let name = |id: &str| match id {
            "short" => Some(PEAK),
            "short-paced" => Some(PACED),
            _ => None,
        };
        results.engines.retain(|one| ["least", "rr", "shared", "single"].contains(&&*one.id));
        for engine in &mut results.engines {
            engine.worker = crate::data::WorkerKind::Own;
        }
        results.workloads.retain(|one| name(&one.id).is_some());
        results.samples.retain(|one| name(&one.workload).is_some());
        for workload in &mut results.workloads {
            name(&workload.id).unwrap().clone_into(&mut workload.id);
        }
        for sample in &mut results.samples {
            name(&sample.workload).unwrap().clone_into(&mut sample.workload);
        }
        results.absent.clear();
        results
    }

    #[test]
    fn what_is_ahead_is_recommended_unless_it_loses_clients() {
        let mut results = own();
        let text = advice(&results);
        assert!(text.contains("Recommended: -p shared\n"), "{text}");
        assert!(text.contains("ahead of croupier least ("), "its reason: {text}");
        for sample in results.samples.iter_mut().filter(|one| one.engine == "shared") {
            sample.errors.reset = 100;
        }
        let text = advice(&results);
        assert!(text.contains("Recommended: -p least\n"), "{text}");
        assert!(text.contains("shared lost clients: 300 reset"), "{text}");
        assert!(text.contains("need -p ip"), "what no figure shows is said: {text}");
        for sample in &mut results.samples {
            sample.errors.reset = 100;
        }
        assert!(advice(&results).contains("No recommendation"), "all lose clients");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "1"], ["long", "22 µs"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows), "a         1\nlong  22 µs\n");
    }
}
