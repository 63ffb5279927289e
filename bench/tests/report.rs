//! `croupier-bench report` on made-up results: every cell and every warning is in the page, and
//! nothing that a name contains gets out of its place.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod synthetic;

use std::path::Path;
use std::process::{Command, Output};

use croupier_bench::data::{
    Absent, Errors, Histogram, Reason, Results, Sample, Warning, WorkerCount,
};

fn bench(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_croupier-bench"))
        .args(arguments)
        .arg(folder)
        .output()
        .expect("croupier-bench runs")
}

fn report(results: &Results) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    results.write(folder.path()).unwrap();
    let output = bench(&["report"], folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    (folder, page)
}

/// As it stands in a page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The part of a page that is about one workload.
fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let open = format!("<section id=\"w-{id}\">");
    let (_, rest) = page.split_once(&open).unwrap_or_else(|| panic!("no section {id}"));
    rest.split_once("</section>").expect("a section ends").0
}

/// A row, each warning, and wrk's own words.
fn holds_cell(section: &str, results: &Results, engine: &str, name: &str, workload: &str) {
    let planned = |absent: &&Absent| {
        absent.engine == engine
            && absent.workload.as_deref() == Some(workload)
            && matches!(absent.why, Reason::NotApplicable { .. })
    };
    if results.absent.iter().any(|absent| planned(&absent)) {
        assert!(section.contains("Not compared under this workload: "), "{engine} {workload}");
        assert!(section.contains(&escaped(name)), "{engine} {workload}");
        return;
    }
    let row = format!("<th scope=\"row\">{}</th>", escaped(name));
    assert!(section.contains(&row), "{workload} has no row for {engine}");
    for warning in results.warnings_of(engine, workload) {
        let text = escaped(&warning.to_string());
        assert!(section.contains(&text), "{engine} {workload}: {text}");
    }
    for run in results.cell(engine, workload).filter_map(|sample| sample.wrk.as_ref()) {
        assert!(section.contains(&escaped(&run.output)), "{engine} {workload}: wrk's own words");
    }
}

#[test]
fn every_cell_and_every_warning_is_in_the_page() {
    let mut results = synthetic::whole(7, 5);
    results.samples[0].warnings.push(Warning::GeneratorBusy { share: 0.93 });
    let (_folder, page) = report(&results);
    assert!(page.contains("Synthetic."), "made-up results say so");
    for workload in &results.workloads {
        let section = section(&page, &workload.id);
        let method = workload.method.trim_end_matches('.');
        assert!(section.contains(&escaped(method)), "{}: its method", workload.id);
        for engine in &results.engines {
            holds_cell(section, &results, &engine.id, &engine.name, &workload.id);
        }
    }
    for warning in &results.warnings {
        assert!(page.contains(&escaped(&warning.to_string())));
    }
    for absent in &results.absent {
        assert!(page.contains(&escaped(&absent.why.to_string())), "{absent:?}");
    }
    for fact in ["Synthetic 1.0", "An imagined CPU", "0.0 synthetic", "not installed"] {
        assert!(page.contains(fact), "{fact}");
    }
    for outside in ["src=\"http", "href=\"http", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "{outside}: the page reads nothing from elsewhere");
    }
}

#[test]
fn nothing_gets_out_of_its_place() {
    let rude = "</pre><script>alert('x')</script><!-- & \" | \n=1+1";
    let mut results = synthetic::whole(3, 2);
    results.engines[0].name = rude.into();
    results.workloads[0].name = rude.into();
    results.workloads[0].method = rude.into();
    results.environment.cpu = rude.into();
    results.environment.pinning.note = rude.into();
    results.plan.name = rude.into();
    results.samples[0].wrk.as_mut().unwrap().output = rude.into();
    results.samples[0].wrk.as_mut().unwrap().command = vec![rude.into()];
    let error = rude.into();
    results.absent.push(Absent {
        engine: rude.into(),
        workload: Some(rude.into()),
        round: None,
        why: Reason::Failed { error },
    });
    // An id too: it stands in links, in CSV and in the log's tags.
    let id = "=short\",<x>";
    results.workloads[0].id = id.into();
    for sample in results.samples.iter_mut().filter(|sample| sample.workload == "short") {
        sample.workload = id.into();
    }
    let (folder, page) = report(&results);
    assert!(!page.contains("<script"), "escaped everywhere");
    assert_eq!(page.matches("<style>").count(), 1);
    assert!(page.contains("&lt;script&gt;"));
    let csv = std::fs::read_to_string(folder.path().join("rounds.csv")).unwrap();
    assert!(csv.contains("\"'=short\"\",<x>\""), "quoted, and no formula");
    let log = std::fs::read_to_string(folder.path().join("latency.hlog")).unwrap();
    for line in log.lines().filter(|line| line.starts_with("Tag=")) {
        assert_eq!(line.split(',').count(), 5, "a tag does not split its line: {line}");
    }
    let output = bench(&["report", "--markdown"], folder.path());
    let markdown = String::from_utf8(output.stdout).unwrap();
    assert!(!markdown.contains("<script") && !markdown.contains("<!--"), "{markdown}");
}

#[test]
fn a_report_stands_on_little() {
    // Nothing at all.
    let mut results = synthetic::empty(5);
    results.plan.took_seconds = None;
    let (_folder, page) = report(&results);
    assert!(page.contains("No sample was measured"));
    assert!(page.contains("the run ended before"));

    // One round, and not of every engine; not finished.
    let mut results = synthetic::whole(5, 1);
    results.samples.retain(|sample| sample.engine != "haproxy");
    results.plan.took_seconds = None;
    let (_folder, page) = report(&results);
    assert!(page.contains("Not finished."));
    assert!(page.contains("one round"));
    assert!(section(&page, "short").contains("not run: no sample"));

    // One cell in which all failed, and one whose histogram is cut short.
    let mut results = synthetic::whole(5, 3);
    for sample in &mut results.samples {
        if sample.engine == "haproxy" && sample.workload == "short-paced" {
            let errors = Errors { refused: 8000, ..Errors::default() };
            *sample = Sample {
                engine: sample.engine.clone(),
                workload: sample.workload.clone(),
                round: sample.round,
                workers: 8,
                seconds: 4.0,
                intended: 8000,
                errors,
                per_worker: vec![WorkerCount::default(); 8],
                ..Sample::default()
            };
        }
        if sample.engine == "rr" && sample.workload == "cpu" && sample.round == 1 {
            let broken = Histogram { n: 12, hdr: "AAAA".into() };
            sample.latency.as_mut().unwrap().total = broken;
        }
    }
    let (folder, page) = report(&results);
    assert!(section(&page, "short-paced").contains("no request was answered: 24000 refused"));
    assert!(page.contains("answered nothing"), "the summary says who failed");
    assert!(page.contains("croupier rr under Expensive short connections"), "named at the head");
    assert!(page.contains("not an HDR histogram"));
    let csv = std::fs::read_to_string(folder.path().join("rounds.csv")).unwrap();
    assert_eq!(csv.lines().count(), results.samples.len() + 1, "a line for every sample");
}

#[test]
fn other_programs_can_read_the_files() {
    let results = synthetic::whole(11, 2);
    let (folder, _) = report(&results);
    let log = std::fs::read(folder.path().join("latency.hlog")).unwrap();
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let lines = IntervalLogIterator::new(&log);
    let mut seen = 0;
    for entry in lines {
        if let LogEntry::Interval(one) = entry.unwrap() {
            let tag = one.tag().unwrap().as_str().to_owned();
            let mut names = tag.split('/');
            let (engine, workload) = (names.next().unwrap(), names.next().unwrap());
            let round: u32 = names.next().unwrap().parse().unwrap();
            let mut cell = results.cell(engine, workload);
            let sample = cell.find(|sample| sample.round + 1 == round).unwrap();
            assert_eq!(one.encoded_histogram(), sample.latency.as_ref().unwrap().total.hdr);
            seen += 1;
        }
    }
    let expected = results.samples.iter().filter(|sample| sample.latency.is_some()).count();
    assert_eq!(seen, expected);
    let csv = std::fs::read_to_string(folder.path().join("percentiles.csv")).unwrap();
    for line in csv.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let percentile: f64 = fields[2].parse().unwrap();
        assert!((0.0..=100.0).contains(&percentile), "{line}");
    }
}

/// Of many workloads only some stand in the README; the file beside it has all, with every column.
fn holds_every_table(folder: &Path, readme: &str) {
    assert!(!readme.contains("### Keep-alive") && !readme.contains("naive p99"));
    let all = std::fs::read_to_string(folder.join("tables.md")).unwrap();
    for workload in &synthetic::empty(5).workloads {
        assert!(all.contains(&format!("\n## {}\n", workload.name)), "{}", workload.name);
    }
    assert!(
        all.contains("naive p99") && all.contains("Synthetic") && all.contains("Not told apart")
    );
}

#[test]
fn documents_get_their_parts_and_nothing_else_changes() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::whole(2, 5).write(folder.path()).unwrap();
    let bench_readme = folder.path().join("README.md");
    let readme = folder.path().join("ROOT.md");
    let body = |part: &str| {
        format!(
            "# Title\n\n<!-- {part}: generated -->\nreplace me\n<!-- end {part} -->\n\nThe end.\n"
        )
    };
    std::fs::write(&bench_readme, body("results")).unwrap();
    std::fs::write(&readme, "no markers\n").unwrap();
    let place = folder.path().to_str().unwrap();
    let publish = ["report", "--publish", place, "--readme", readme.to_str().unwrap()];
    let output = bench(&publish, folder.path());
    assert!(!output.status.success(), "a document without markers is refused");
    assert!(String::from_utf8_lossy(&output.stderr).contains("<!-- conclusion: generated -->"));
    assert_eq!(std::fs::read_to_string(&bench_readme).unwrap(), body("results"), "untouched");

    std::fs::write(&readme, body("conclusion")).unwrap();
    let output = bench(&publish, folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tables = std::fs::read_to_string(&bench_readme).unwrap();
    let conclusion = std::fs::read_to_string(&readme).unwrap();
    for text in [&tables, &conclusion] {
        assert!(text.starts_with("# Title\n\n<!-- ") && text.ends_with("-->\n\nThe end.\n"));
        assert!(!text.contains("replace me"));
        assert!(text.contains("Synthetic"), "made-up figures say so wherever they go");
    }
    for line in [
        "| idle primary |",
        "| primary memory |",
        "### Heavy tail, load 0.7",
        "measured elsewhere",
        "### At a glance: croupier least beside the others",
        "### Against the number of workers",
        "[tables.md](tables.md)",
    ] {
        assert!(tables.contains(line), "{line}");
    }
    holds_every_table(folder.path(), &tables);
    for word in ["**Ahead.**", "**Behind.**", "**Cost.**", "](bench/chart.svg)"] {
        assert!(conclusion.contains(word), "{word}");
    }
    let chart = std::fs::read_to_string(folder.path().join("chart.svg")).unwrap();
    assert!(chart.starts_with("<svg ") && chart.contains("prefers-color-scheme:dark"));
}

#[test]
fn what_is_no_results_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = bench(&["report"], folder.path());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("results.json") && said.contains("croupier-bench run --out"), "{said}");
    std::fs::write(folder.path().join("results.json"), "{").unwrap();
    assert!(
        String::from_utf8_lossy(&bench(&["report"], folder.path()).stderr)
            .contains("not a results file")
    );
    let mut results = synthetic::empty(5);
    results.schema += 1;
    results.write(folder.path()).unwrap();
    let said = String::from_utf8(bench(&["report"], folder.path()).stderr).unwrap();
    let wanted = format!("schema {}, this program reads {}", results.schema, results.schema - 1);
    assert!(said.contains(&wanted), "{said}");
    assert!(said.contains("; use the program that wrote it"), "{said}");
}

/// A run that was interrupted before anything was measured: the documents stay as they are.
#[test]
fn a_run_without_figures_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::empty(5).write(folder.path()).unwrap();
    let readme = folder.path().join("README.md");
    std::fs::write(&readme, "as it was").unwrap();
    let (place, document) = (folder.path().to_str().unwrap(), readme.to_str().unwrap());
    let output = bench(&["report", "--publish", place, "--readme", document], folder.path());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the run has nothing to draw; run a workload with"), "{said}");
    assert_eq!(std::fs::read_to_string(&readme).unwrap(), "as it was");
    assert!(!folder.path().join("chart.svg").exists());
}

#[test]
fn a_name_that_nobody_has_is_told_those_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    for (flag, what, one) in
        [("--engines", "engine", "least"), ("--workloads", "workload", "keepalive")]
    {
        let output = bench(&["run", flag, "nobody", "--out"], &out);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let (_, known) = said
            .split_once(&format!("no {what} is called \"nobody\": there are "))
            .unwrap_or_else(|| panic!("{said}"));
        assert!(known.contains(one), "{said}");
        assert!(!out.exists(), "nothing is begun");
    }
}

#[test]
fn figures_of_a_soak_fill_their_goals() {
    let folder = tempfile::tempdir().unwrap();
    synthetic::whole(2, 5).write(folder.path()).unwrap();
    let figures = folder.path().join("figures");
    let told = |arguments: &[&str]| {
        let output = bench(arguments, folder.path());
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
    };
    let with = ["report", "--markdown", "--figures", figures.to_str().unwrap()];
    let (done, said) = told(&with);
    let wanted = "; name the file that `make soak` wrote its figures into";
    assert!(!done && said.contains(wanted), "no such file: {said}");
    std::fs::write(&figures, "idle wake-ups\t0 in 5s | all\t0\tpass\nrubbish\n").unwrap();
    let (done, said) = told(&with);
    assert!(!done && said.contains("line 2: not a row of a soak (item, measured,"), "{said}");
    std::fs::write(&figures, "idle wake-ups\t0\t0\tpass\n".repeat(50_000)).unwrap();
    let (done, said) = told(&with);
    let wanted = "figures: longer than 1048576 bytes: not the figures of a soak";
    assert!(!done && said.contains(wanted), "{said}");
    std::fs::write(&figures, "commit\tabc\t-\t-\nidle wake-ups\t0 in 5s | all\t0\tpass\n").unwrap();
    let (done, said) = told(&with);
    let row = "idle wake-ups: 0 in 5s \\| all (a soak of commit abc) | met |";
    assert!(done && said.contains(row), "{said}");
}
