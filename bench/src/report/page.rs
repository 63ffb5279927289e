//! `report.html`: one file, readable without a network.
//!
//! Owns: the order of the page. Promises: whatever comes from data is escaped; a table's method and
//! what spoils it stand right under it; what did not run is named. Never does: compute a figure.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{ChartError, dark_rules};
use super::goals::{self, Line, Verdict};
use super::pictures::{self, Picture};
use super::table::{Content, Table};
use super::units;
use super::view::{Cell, View};
use super::words::{Finding, Sentence, Standing, Summary, overview};
use crate::data::{Environment, Generator, WorkerKind, WorkloadInfo};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(crate) fn page(view: &View<'_>) -> Result<String, ChartError> {
    let results = view.results;
    let summary = Summary::of(view);
    let title = format!("croupier benchmark, {}", results.environment.began);
    let mut sections = Vec::new();
    for workload in &results.workloads {
        sections.push(section(view, workload)?);
    }
    let scaling = pictures::scaling(view)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(dark_style())) }
            }
            body {
                header {
                    h1 { "croupier benchmark" }
                    p.sub { (run_line(view)) }
                    (banners(view))
                }
                (contents(view))
                main {
                    (summary_section(view, &summary))
                    @if has_goals(view) { (goals_section(view)) }
                    @for section in &sections { (section) }
                    @for family in &scaling {
                        section id=(format!("scaling-{}", anchor(&family.family))) {
                            h2 { "Against the number of workers: " (family.family) }
                            (figures(&family.pictures))
                        }
                    }
                    (calibration(view))
                    (not_run(view))
                    (environment(&results.environment))
                    (files())
                }
            }
        }
    };
    Ok(page.into_string())
}

/// Charts turn with the page.
fn dark_style() -> String {
    format!("@media (prefers-color-scheme: dark) {{{}}}", dark_rules(".chart"))
}

fn run_line(view: &View<'_>) -> String {
    let plan = &view.results.plan;
    let environment = &view.results.environment;
    let commit = environment.commit.as_deref().unwrap_or("none");
    let took = plan.took_seconds.map_or_else(|| "under way".to_owned(), units::span);
    format!(
        "{} · {} rounds of {} s · {} · {} CPUs · commit {}{} · {took}",
        plan.name,
        plan.rounds,
        units::plain(plan.seconds),
        environment.cpu,
        environment.cpus,
        commit.get(..12).unwrap_or(commit),
        if environment.dirty { " with changes" } else { "" },
    )
}

fn banners(view: &View<'_>) -> Markup {
    html! {
        @if view.results.synthetic {
            p.banner { strong { "Synthetic." } " These figures were made up by a test; nothing was measured." }
        }
        @if view.results.plan.took_seconds.is_none() {
            p.banner { strong { "Not finished." } " The run is under way, or was interrupted; cells may be missing." }
        }
        @if view.results.samples.is_empty() {
            p.banner { strong { "Empty." } " No sample was measured." }
        }
        @for broken in &view.broken {
            p.banner { strong { "Unreadable. " } (broken) }
        }
        @if !view.results.warnings.is_empty() {
            div.warnings {
                p { strong { "About the whole run:" } }
                ul { @for warning in &view.results.warnings { li { (warning) } } }
            }
        }
    }
}

fn contents(view: &View<'_>) -> Markup {
    html! {
        nav {
            a href="#summary" { "Summary" }
            @if has_goals(view) { a href="#goals" { "Goals" } }
            @for workload in &view.results.workloads {
                a href=(format!("#{}", anchor(&workload.id))) { (workload.name) }
            }
            a href="#calibration" { "Calibration" }
            a href="#not-run" { "Not run" }
            a href="#environment" { "Environment" }
        }
    }
}

/// An id that a link can name, of whatever the data calls a workload.
fn anchor(id: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' };
    format!("w-{}", id.chars().map(clean).collect::<String>())
}

const NOWHERE: &str = "Nowhere that these rounds can tell.";

fn summary_section(view: &View<'_>, summary: &Summary) -> Markup {
    let behind: Vec<&Sentence> = summary.behind.iter().collect();
    let (ahead, more): (Vec<_>, Vec<_>) = summary.ahead.iter().partition(|one| one.leading);
    let (policies, more_policies): (Vec<_>, Vec<_>) =
        summary.policies.iter().partition(|one| one.leading);
    let even: Vec<&Sentence> = summary.even.iter().collect();
    let (first, rest) = summary.costs.split_at(summary.costs.len().min(1));
    html! {
        section id="summary" {
            h2 { "Summary" }
            p.method {
                "Each sentence compares croupier as it is without flags with others under the same workers. "
                "Ahead or behind takes a median of 3 % or more and every round on that side (of five or more, all but one); with fewer "
                "than three rounds, 10 %. Ratios are made within rounds: median, smallest and largest."
            }
            @for worker in [WorkerKind::Rust, WorkerKind::Node, WorkerKind::Own] { (at_a_glance(view, worker)) }
            div.ahead {
                h3 { "Where croupier is ahead" }
                @if summary.ahead.is_empty() { p { (NOWHERE) } }
                (sentences(&ahead))
                (folded("in other figures", &more))
            }
            div.behind {
                h3 { "Where croupier is behind" }
                @if behind.is_empty() { p { (NOWHERE) } }
                (sentences(&behind))
            }
            div {
                h3 { "Where another policy of croupier is better than the default" }
                @if summary.policies.is_empty() { p { (NOWHERE) } }
                (sentences(&policies))
                (folded("in other figures", &more_policies))
            }
            div {
                h3 { "What these rounds cannot tell apart" }
                @if even.is_empty() { p { "Nothing." } }
                (folded("comparisons", &even))
            }
            div {
                h3 { "What dealing costs" }
                @if summary.costs.is_empty() { p { "Not measured in this run." } }
                (costs(first))
                @if !rest.is_empty() {
                    details { summary { (rest.len()) " more workloads" } (costs(rest)) }
                }
            }
        }
    }
}

/// How many times better or worse the default is, in the figure that each workload is most about.
fn at_a_glance(view: &View<'_>, worker: WorkerKind) -> Markup {
    let Some((names, rows)) = overview(view, worker) else { return html! {} };
    let own = view.croupier(worker).map_or("croupier", |engine| engine.name.as_str());
    html! {
        h3 { "At a glance: " (own) " beside the others" }
        div.scroll tabindex="0" {
            table.glance {
                thead {
                    tr {
                        th { "workload" }
                        th.figure { "figure" }
                        th { (own) }
                        @for name in &names { th { (name) } }
                    }
                }
                tbody {
                    @for row in &rows {
                        tr {
                            th scope="row" { a href=(format!("#{}", anchor(&row.workload.id))) { (row.workload.name) } }
                            td.figure { (row.measure.name()) }
                            td { (row.own) @if row.engine != own { small { (row.engine) } } }
                            @for finding in &row.rivals {
                                @match finding {
                                    Some(one) => { td class=(standing_class(one.standing)) { (standing_words(one)) } }
                                    None => { td.open { "–" } }
                                }
                            }
                        }
                    }
                }
            }
        }
        p.method { "How many times better (▲) or worse (▼) croupier is; ≈ where these rounds cannot tell." }
    }
}

const fn standing_class(standing: Standing) -> &'static str {
    match standing {
        Standing::Ahead => "met",
        Standing::Behind => "missed",
        Standing::Even => "open",
    }
}

/// `▲ 1.6 ×`.
pub(crate) fn standing_words(finding: &Finding) -> String {
    let factor = if finding.advantage >= 1.0 { finding.advantage } else { 1.0 / finding.advantage };
    let factor = if factor.is_finite() && factor < 1000.0 {
        format!(" {} ×", units::plain(factor))
    } else {
        " by far".to_owned()
    };
    match finding.standing {
        Standing::Ahead => format!("▲{factor}"),
        Standing::Behind => format!("▼{factor}"),
        Standing::Even => "≈".to_owned(),
    }
}

fn sentences(all: &[&Sentence]) -> Markup {
    html! {
        ul {
            @for one in all {
                li {
                    (one.text)
                    @if !one.spoiled.is_empty() {
                        span.spoiled { " Spoiled by: " (one.spoiled.join(", ")) "." }
                    }
                    " " a href=(format!("#{}", anchor(&one.workload))) { "figures" }
                }
            }
        }
    }
}

fn folded(what: &str, all: &[&Sentence]) -> Markup {
    html! {
        @if !all.is_empty() { details { summary { (all.len()) " " (what) } (sentences(all)) } }
    }
}

fn costs(all: &[String]) -> Markup {
    html! { ul { @for cost in all { li { (cost) } } } }
}

/// Goals are about the harness's own workers, not about a program of the user's.
fn has_goals(view: &View<'_>) -> bool {
    view.results.engines.iter().any(|engine| engine.worker != WorkerKind::Own)
}

fn goals_section(view: &View<'_>) -> Markup {
    html! {
        section id="goals" {
            h2 { "Goals" }
            (goal_table(&goals::design(view)))
            p.method { (goals::METHOD) }
            h3 { "Beyond the design" }
            (goal_table(&goals::beyond(view)))
        }
    }
}

fn goal_table(lines: &[Line]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table.goals {
                thead { tr { th { "figure" } th { "goal" } th { "measured" } th { "verdict" } } }
                tbody {
                    @for line in lines {
                        tr {
                            th scope="row" { (with_code(line.figure)) }
                            td { (with_code(line.goal)) }
                            td { (with_code(&line.measured)) }
                            td class=(verdict_class(line.verdict)) { (line.verdict.words()) }
                        }
                    }
                }
            }
        }
    }
}

const fn verdict_class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::Missed => "missed",
        Verdict::Partly | Verdict::Even | Verdict::NotMeasured | Verdict::Elsewhere => "open",
    }
}

fn section(view: &View<'_>, workload: &WorkloadInfo) -> Result<Markup, ChartError> {
    let cells = view.of_workload(&workload.id);
    let pictures = pictures::of_workload(view, workload)?;
    let table = Table::of_workload(view, workload);
    let unplanned = unplanned(cells);
    Ok(html! {
        section id=(anchor(&workload.id)) {
            h2 { (workload.name) }
            (figures(&pictures))
            (table_of(&table))
            @if !unplanned.is_empty() {
                p.method { "Not compared under this workload: " (unplanned.join(", ")) "." }
            }
            p.method { strong { "Method. " } (workload.method.trim_end_matches('.')) ". " (generator_line(workload)) }
            (warnings(cells))
            (raw(cells))
        }
    })
}

fn figures(pictures: &[Picture]) -> Markup {
    html! {
        @for picture in pictures {
            figure {
                figcaption { (picture.caption) }
                (picture.figure.inline())
            }
        }
    }
}

fn table_of(table: &Table) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                thead {
                    tr {
                        th { "engine" }
                        @for (head, about) in &table.columns { th title=(about) { (head) } }
                    }
                }
                tbody {
                    @for row in &table.rows {
                        tr {
                            th scope="row" { (row.name) }
                            @match &row.content {
                                Content::Figures(cells) => { @for cell in cells { td { (figure_cell(cell)) } } }
                                Content::Absent(why) => {
                                    td.absent colspan=(table.columns.len().max(1)) { "not run: " (why) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Engines that the plan does not compare here.
pub(crate) fn unplanned(cells: &[Cell<'_>]) -> Vec<String> {
    let named = |cell: &Cell<'_>| {
        let because = cell.unplanned.as_ref()?;
        Some(format!("{} ({because})", cell.engine.name))
    };
    cells.iter().filter_map(named).collect()
}

/// A figure, and its range in small type below it.
fn figure_cell(text: &str) -> Markup {
    html! {
        @match text.split_once(" (") {
            Some((figure, range)) => { (figure) small { (range.trim_end_matches(')')) } }
            None => { (text) }
        }
    }
}

/// Words in which `this` is code.
fn with_code(text: &str) -> Markup {
    html! {
        @for (at, part) in text.split('`').enumerate() {
            @if at % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// Who generated the load, and how much of it.
pub(crate) fn generator_line(workload: &WorkloadInfo) -> String {
    let mut words = vec![
        match workload.generator {
            Generator::ClosedWrk => "Closed loop by wrk",
            Generator::Open => "Open loop by schedule",
            Generator::LongLived => "Long-lived connections by schedule",
        }
        .to_owned(),
    ];
    words.push(format!("{} workers", workload.workers));
    words.extend(workload.clients.map(|clients| format!("{clients} connections at once")));
    words.extend(workload.rate.map(|rate| format!("{} intended per second", units::plain(rate))));
    words.extend(workload.load.map(|load| format!("load {}", units::plain(load))));
    words.join(", ") + "."
}

/// Each warning once, with the engines that it is about.
pub(crate) fn grouped(cells: &[Cell<'_>]) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut add =
        |text: String, engine: &str| match found.iter_mut().find(|(known, _)| *known == text) {
            Some((_, engines)) => engines.push(engine.to_owned()),
            None => found.push((text, vec![engine.to_owned()])),
        };
    for cell in cells {
        for warning in &cell.warnings {
            add(warning.to_string(), &cell.engine.name);
        }
        if cell.all_failed() {
            add(format!("no request was answered: {}", cell.errors()), &cell.engine.name);
        }
        if !cell.rounds.is_empty() {
            for absent in &cell.absent {
                add(format!("not every round ran: {absent}"), &cell.engine.name);
            }
        }
    }
    found
}

fn warnings(cells: &[Cell<'_>]) -> Markup {
    let grouped = grouped(cells);
    html! {
        @if !grouped.is_empty() {
            div.warnings {
                p { strong { "What spoils this table:" } }
                ul { @for (text, engines) in &grouped { li { strong { (engines.join(", ")) } ": " (text) } } }
            }
        }
    }
}

fn raw(cells: &[Cell<'_>]) -> Markup {
    let runs = |cell: &Cell<'_>| cell.rounds.iter().filter(|r| r.sample.wrk.is_some()).count();
    let all: usize = cells.iter().map(runs).sum();
    html! {
        @if all > 0 {
            details {
                summary { "wrk's own output, " (all) " runs" }
                @for cell in cells.iter().filter(|cell| runs(cell) > 0) {
                    details.raw {
                        summary { (cell.engine.name) }
                        @for round in &cell.rounds {
                            @if let Some(run) = &round.sample.wrk {
                                pre {
                                    "round " (round.sample.round.saturating_add(1)) ": "
                                    (run.command.join(" ")) "\n" (run.output)
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn calibration(view: &View<'_>) -> Markup {
    html! {
        section id="calibration" {
            h2 { "Calibration" }
            p.method { "What the load generators cost by themselves, against a server that accepts, answers and closes and does nothing else. No engine can show less." }
            @if view.results.calibrations.is_empty() { p { "Not measured in this run." } }
            @else {
                div.scroll tabindex="0" {
                    table {
                        thead { tr { th { "generator" } th { "conn/s" } th { "of a core" } th { "p50" } th { "p99" } th { "n" } th { "how" } } }
                        tbody {
                            @for one in &view.results.calibrations {
                                @let total = one.latency.as_ref().and_then(|l| l.total.decode().ok());
                                tr {
                                    th scope="row" { (generator_name(one.generator)) }
                                    td { (units::count(one.rate)) "/s" }
                                    td { (units::percent(one.generator_share)) }
                                    @for quantile in [0.5, 0.99] {
                                        td { (total.as_ref().map_or_else(|| "–".to_owned(), |h| units::nanos(super::view::as_f64(h.value_at_quantile(quantile))))) }
                                    }
                                    td { (one.latency.as_ref().map_or_else(|| "–".to_owned(), |l| units::exact(l.total.n))) }
                                    td.words { (one.method) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

const fn generator_name(generator: Generator) -> &'static str {
    match generator {
        Generator::ClosedWrk => "wrk",
        Generator::Open => "open loop",
        Generator::LongLived => "long-lived",
    }
}

fn not_run(view: &View<'_>) -> Markup {
    let results = view.results;
    let engine = |id: &str| {
        let known = results.engines.iter().find(|engine| engine.id == id);
        known.map_or_else(|| id.to_owned(), |engine| engine.name.clone())
    };
    let workload = |id: &str| {
        let known = results.workloads.iter().find(|workload| workload.id == id);
        known.map_or_else(|| id.to_owned(), |workload| workload.name.clone())
    };
    html! {
        section id="not-run" {
            h2 { "What was not run" }
            @if results.absent.is_empty() { p { "Everything of the plan was run." } }
            ul {
                @for absent in &results.absent {
                    li {
                        strong { (engine(&absent.engine)) }
                        ", "
                        @match &absent.workload { Some(id) => { (workload(id)) } None => { "all workloads" } }
                        @if let Some(round) = absent.round { ", round " (round.saturating_add(1)) }
                        ": " (absent.why)
                    }
                }
            }
        }
    }
}

fn environment(environment: &Environment) -> Markup {
    let list = |cpus: &[u32]| {
        if cpus.is_empty() {
            return "not pinned".to_owned();
        }
        cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
    };
    let governor = environment.governor.as_deref().unwrap_or("none that the kernel shows");
    let (soft, hard) = environment.nofile;
    let (first, last) = environment.port_range;
    let commit = environment.commit.as_deref().unwrap_or("none");
    let rows: Vec<(&str, String)> = vec![
        ("began", environment.began.clone()),
        ("kernel", environment.kernel.clone()),
        ("CPU", environment.cpu.clone()),
        ("CPUs to use", environment.cpus.to_string()),
        ("governor", governor.to_owned()),
        ("virtual machine", if environment.virtual_machine { "yes" } else { "no" }.to_owned()),
        ("memory", units::bytes(super::view::as_f64(environment.memory_bytes))),
        ("ulimit -n", format!("{soft} soft, {hard} hard")),
        ("net.core.somaxconn", environment.somaxconn.to_string()),
        ("net.ipv4.ip_local_port_range", format!("{first} to {last}")),
        ("net.ipv4.tcp_tw_reuse", environment.tcp_tw_reuse.to_string()),
        ("load average at the start", units::plain(environment.load_average)),
        ("commit", format!("{commit}{}", if environment.dirty { " with changes" } else { "" })),
        ("build", if environment.debug_build { "debug" } else { "release" }.to_owned()),
        ("CPUs of the generator", list(&environment.pinning.generator)),
        ("CPUs of the subject", list(&environment.pinning.subject)),
        ("what that means", environment.pinning.note.clone()),
    ];
    html! {
        section id="environment" {
            h2 { "Environment" }
            div.scroll tabindex="0" {
                table.facts {
                    tbody {
                        @for (name, value) in &rows { tr { th scope="row" { (name) } td.words { (value) } } }
                        @for program in &environment.versions {
                            tr {
                                th scope="row" { (program.program) }
                                td.words { (program.version.as_deref().unwrap_or("not installed")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn files() -> Markup {
    html! {
        section id="files" {
            h2 { "Files beside this one" }
            ul {
                li { a href="results.json" { "results.json" } ": every raw figure, histograms as HDR V2 in base64" }
                li { a href="rounds.csv" { "rounds.csv" } ": one line for each engine, workload and round" }
                li { a href="percentiles.csv" { "percentiles.csv" } ": latencies by percentile, all rounds of a cell together" }
                li { a href="latency.hlog" { "latency.hlog" } ": the histograms as an HDR log (version 1.3), one tagged line for each round, for HdrHistogram's own tools" }
            }
        }
    }
}
