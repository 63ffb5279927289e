//! `croupier doctor`: whether this machine lets croupier do its work.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Exit, code};
use crate::config::{ListenSpec, parse_listen};
use crate::doctor::{Finding, Level, examine};

const AFTER_HELP: &str = "\
It looks at what a start needs: features of the kernel, the preload library, limits, the place of the
control socket, CPUs and memory, and each -l. Nothing that it tries stays.

Exit status: 0 croupier can run here (warnings do not count), 1 something fails.

Examples:
  croupier doctor
  croupier doctor -l :80 -l /run/app.sock
  croupier doctor --json | jq '.findings[] | select(.level != \"ok\")'";

/// Check whether this machine lets croupier do its work, and say what to do.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct DoctorArgs {
    /// Also whether this address can be listened on, as for `croupier run`. Repeatable.
    #[arg(short, long, value_name = "ADDR", value_parser = parse_listen)]
    listen: Vec<ListenSpec>,

    /// Where libcroupier_preload.so is, as for `croupier run`.
    #[arg(long, value_name = "PATH", env = "CROUPIER_PRELOAD_PATH")]
    preload_path: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    ok: bool,
    findings: &'a [Finding],
}

pub(super) fn execute(args: &DoctorArgs) -> Exit {
    let findings = examine(&args.listen, args.preload_path.as_deref());
    let ok = findings.iter().all(|finding| finding.level != Level::Fail);
    let code = if ok { code::DONE } else { code::FAILED };
    if !args.json {
        return Exit::with(code, render(&findings));
    }
    match serde_json::to_string_pretty(&Report { schema: 1, ok, findings: &findings }) {
        Ok(text) => Exit::with(code, text + "\n"),
        Err(error) => Exit::error(code::FAILED, error),
    }
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { check, level, found, advice } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        let written = writeln!(text, "{level:4}  {check:width$}  {found}").and_then(|()| {
            advice.iter().try_for_each(|advice| {
                writeln!(text, "{:width$}  → {advice}", "", width = width + 6)
            })
        });
        debug_assert!(written.is_ok(), "a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_a_table() {
        let finding = |check: &str, level, advice: Option<&str>| Finding {
            check: check.into(),
            level,
            found: "found".into(),
            advice: advice.map(Into::into),
        };
        let text = render(&[
            finding("kernel", Level::Ok, None),
            finding("open files", Level::Warn, Some("do this")),
            finding("-l :80", Level::Fail, Some("or that")),
        ]);
        let wanted = "\
ok    kernel      found
warn  open files  found
                  → do this
fail  -l :80      found
                  → or that
";
        assert_eq!(text, wanted, "\n{text}");
    }
}
