//! `croupier check`: what `croupier run` would do with these flags, and who says so.
//!
//! Promises: judges exactly as `run` does, by the same code; starts nothing, opens nothing. Values of
//! the workers' variables are not shown.

use std::ffi::OsString;

use clap::Args;
use serde::Serialize;

use super::run::RunArgs;
use super::table::{Align, Table};
use super::{Exit, code, subcommand};
use crate::adapter::{self, Resolved};
use crate::config::{
    LoadError, Loaded, RunConfig, Setting, Source, Surroundings, changes_at_reload, load,
};

const AFTER_HELP: &str = "\
Takes what `croupier run` takes: put check in its place. Nothing is started. RELOAD says what may change
in the file at a reload; the rest needs a restart. Exit status: 0 it would start, 2 it would not, and why.

Examples:
  croupier check
  croupier check --config deploy/croupier.toml --profile staging
  croupier check -w 4 -- node server.js
  croupier check --json | jq -r '.settings[] | select(.from != \"default\") | .name'";

/// Check flags, environment and file, and show what would run and why.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    run: RunArgs,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// `croupier check --json`.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    file: Option<String>,
    name: String,
    command: Vec<String>,
    program: String,
    adapter: String,
    workers: u16,
    /// What could be done better, as far as the settings show it.
    advice: Vec<String>,
    settings: Vec<Line>,
}

/// One setting.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// Null: it was not given, or is not shown.
    value: Option<String>,
    /// `flag`, `environment`, `profile`, `file` or `default`.
    from: &'static str,
    /// The variable, or file and line.
    at: Option<String>,
    /// Whether it may be another one after a reload.
    reload: bool,
}

pub(super) fn execute(args: &CheckArgs, words: Vec<OsString>) -> Result<Exit, LoadError> {
    let loaded = load(|| subcommand("check"), words, &Surroundings::of_this_process())?;
    let resolved = match adapter::resolve(&loaded.config) {
        Ok(resolved) => resolved,
        Err(error) => return Ok(Exit::error(code::USAGE, error)),
    };
    let text = if args.json { json(&loaded, &resolved) } else { text(&loaded, &resolved) };
    Ok(Exit::with(code::DONE, text))
}

fn json(loaded: &Loaded, resolved: &Resolved) -> String {
    let config = &loaded.config;
    let report = Report {
        schema: 1,
        file: loaded.origin.file().map(|file| file.display().to_string()),
        name: config.name.clone(),
        command: config.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        program: resolved.program.display().to_string(),
        adapter: resolved.adapter.to_string(),
        workers: config.workers.count,
        advice: config.uncounted_wait().into_iter().collect(),
        settings: loaded.settings.iter().map(|setting| line(setting, config)).collect(),
    };
    let mut text = serde_json::to_string(&report).unwrap_or_default();
    text.push('\n');
    text
}

fn line(setting: &Setting, config: &RunConfig) -> Line {
    let (from, at) = match &setting.source {
        Source::Flag => ("flag", None),
        Source::Variable(name) => ("environment", Some(name.clone())),
        Source::File(place) if place.profile.is_some() => ("profile", Some(place.to_string())),
        Source::File(place) => ("file", Some(place.to_string())),
        Source::Default => ("default", None),
    };
    let value = if setting.is_secret() { None } else { value(setting, config) };
    Line { name: setting.name.clone(), value, from, at, reload: changes_at_reload(&setting.name) }
}

fn text(loaded: &Loaded, resolved: &Resolved) -> String {
    let config = &loaded.config;
    let words: Vec<_> = config.command.iter().map(|word| word.to_string_lossy()).collect();
    let workers = config.workers.count;
    let plural = if workers == 1 { "worker" } else { "workers" };
    let by = if config.file.is_empty() { String::new() } else { format!(", by {}", config.file) };
    let mut text = format!(
        "good{by}: {workers} {plural} of {} ({}, adapter {})\n",
        words.join(" "),
        resolved.program.display(),
        resolved.adapter
    );
    for note in &resolved.notes {
        text.push_str(note);
        text.push('\n');
    }
    if let Some(advice) = config.uncounted_wait() {
        text.push_str("advice: ");
        text.push_str(&advice);
        text.push('\n');
    }
    text.push('\n');
    let columns = ["SETTING", "VALUE", "RELOAD", "FROM"].map(|name| (name, Align::Left));
    let mut table = Table::new(&columns);
    for setting in &loaded.settings {
        let value = match (setting.is_secret() && !setting.values.is_empty(), setting) {
            (true, _) => "(not shown)".into(),
            (false, setting) => value(setting, config).unwrap_or_else(|| "-".into()),
        };
        let reload = if changes_at_reload(&setting.name) { "yes" } else { "no" };
        table.row(vec![setting.name.clone(), value, reload.into(), setting.source.to_string()]);
    }
    text.push_str(&table.render(""));
    text
}

/// As it was written; where it was not, what was chosen.
fn value(setting: &Setting, config: &RunConfig) -> Option<String> {
    let explained = setting.name == "workers" && !config.workers.why.is_empty();
    if !setting.values.is_empty() && !explained {
        return Some(setting.values.join(if setting.name == "command" { " " } else { ", " }));
    }
    config.chosen(&setting.name)
}
