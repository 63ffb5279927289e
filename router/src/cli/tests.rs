//! The command line as a whole: every flag has a group and a test of its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Arg, Command, FromArgMatches};

use super::run::RunArgs;
use crate::config::{RunConfig, Surroundings, changes_at_reload};

/// One line a flag: `COMMAND --FLAG FILE.rs::TEST`, FILE being in tests/system or a path from the root.
const TABLE: &str = include_str!("../../../tests/flags");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `(run, --workers)` and so on, with the parser's definition.
fn flags() -> BTreeMap<(String, String), Arg> {
    let command = super::command();
    let run = command.find_subcommand("run").unwrap();
    // `check` and `unit` take what `run` takes, by the same definition.
    let again = |one: &str, arg: &Arg| {
        (one == "check" || one == "unit")
            && run.get_arguments().any(|own| own.get_long() == arg.get_long())
    };
    command
        .get_subcommands()
        .flat_map(|one| one.get_arguments().map(|arg| (one.get_name().to_owned(), arg.clone())))
        .filter(|(one, arg)| !arg.is_positional() && !again(one, arg))
        .filter_map(|(one, arg)| Some(((one, format!("--{}", arg.get_long()?)), arg)))
        .collect()
}

fn table() -> BTreeMap<(String, String), String> {
    let mut table = BTreeMap::new();
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [command, flag, test] = words.as_slice() else {
            panic!("tests/flags: a line is COMMAND --FLAG FILE.rs::TEST, not {line:?}")
        };
        let key = ((*command).to_owned(), (*flag).to_owned());
        assert!(table.insert(key, (*test).to_owned()).is_none(), "tests/flags: twice: {line}");
    }
    table
}

#[test]
fn the_parser_is_sound() {
    super::command().debug_assert();
}

#[test]
fn every_flag_has_a_test_of_its_effect() {
    let table = table();
    let flags = flags();
    for (command, flag) in flags.keys() {
        assert!(
            table.contains_key(&(command.clone(), flag.clone())),
            "{command} {flag} has no line in tests/flags. Write a test that fails when the flag is \
             ignored (a test of --help does not count), and add a line in the order of the alphabet:\n\
             {command} {flag} FILE.rs::TEST"
        );
    }
    for (command, flag) in table.keys() {
        assert!(
            flags.contains_key(&(command.clone(), flag.clone())),
            "tests/flags has a line for {command} {flag}, which is no flag any more: remove it"
        );
    }
}

/// The test must exist, and the file that it stands in must use the flag.
#[test]
fn the_tests_of_effects_exist() {
    let flags = flags();
    for ((command, flag), test) in table() {
        let who = format!("tests/flags: {command} {flag} {test}");
        let Some((file, function)) = test.split_once("::") else {
            panic!("{who}: say FILE.rs::TEST")
        };
        let path = if file.contains('/') {
            root().join(file)
        } else {
            root().join("tests/system").join(file)
        };
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{who}: {}: {error}", path.display()));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let head = format!("fn {function}(");
        let at = lines.iter().position(|line| line.starts_with(&head));
        let is_test = at.is_some_and(|at| {
            let before = lines.iter().take(at).rev();
            before.take_while(|line| line.starts_with("#[")).any(|line| *line == "#[test]")
        });
        assert!(is_test, "{who}: {file} has no #[test] fn {function}");
        let short = flags.get(&(command, flag.clone())).and_then(Arg::get_short);
        let named = [
            format!("\"{flag}\""),
            format!("\"{flag}="),
            format!("{flag} "),
            short.map_or_else(|| flag.clone(), |short| format!("\"-{short}\"")),
            // The core knows no flags.
            flag.trim_start_matches('-').replace('-', "_"),
        ];
        assert!(named.iter().any(|name| text.contains(name)), "{who}: {file} does not use {flag}");
    }
}

#[test]
fn the_table_of_effects_is_in_order() {
    let lines: Vec<&str> =
        TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(lines.is_sorted(), "tests/flags: keep the lines in the order of `LC_ALL=C sort`");
}

#[test]
fn every_flag_of_run_stands_in_a_group() {
    use super::run::heading::ALL;

    let command = super::command();
    let run = command.find_subcommand("run").unwrap();
    let groups: BTreeSet<&str> = ALL.into_iter().collect();
    let own = |arg: &&Arg| !arg.is_positional() && !matches!(arg.get_long(), None | Some("help"));
    for arg in run.get_arguments().filter(own) {
        let heading = arg.get_help_heading();
        assert!(
            heading.is_some_and(|heading| groups.contains(heading)),
            "--{}: say help_heading = heading::…, as the other flags of router/src/cli/run.rs do",
            arg.get_long().unwrap_or_default()
        );
    }
}

#[test]
fn every_command_has_examples_in_its_help() {
    for command in super::command().get_subcommands().filter(|one| one.get_name() != "help") {
        let no_flags = command.get_arguments().next().is_none();
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(
            no_flags || after.contains("Examples:\n"),
            "croupier {} --help has no examples: say #[command(after_help = …)]",
            command.get_name()
        );
    }
}

/// Whoever reads a flag in a message can look for it in the environment: names follow the flags.
#[test]
fn variables_are_named_like_their_flags() {
    let command: Command = super::command();
    let run = command.find_subcommand("run").unwrap();
    for arg in run.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| long != "help")) {
        let long = arg.get_long().unwrap_or_default();
        let wanted = match long {
            // CROUPIER_CONTROL is how a worker finds its croupier.
            "control" => "CROUPIER_CONTROL_PATH".to_owned(),
            _ => format!("CROUPIER_{}", long.to_uppercase().replace('-', "_")),
        };
        let env = arg.get_env().map(|env| env.to_string_lossy().into_owned());
        assert_eq!(env, Some(wanted), "--{long}: every flag of run has a variable of its name");
    }
}

/// The default of what the parser leaves open and the configuration then chooses.
fn default_by_choice(long: &str) -> Option<String> {
    let config = |flags: &[&str]| {
        let words = [&["croupier", "run"], flags, &["true"]].concat();
        let matches = super::command().try_get_matches_from(words).unwrap();
        let args = RunArgs::from_arg_matches(matches.subcommand_matches("run").unwrap()).unwrap();
        let around = Surroundings {
            workers: None,
            web_concurrency: None,
            node_sched_policy: None,
            inherited: Ok(Vec::new()),
            ..Surroundings::of_this_process()
        };
        RunConfig::new(args, &around).unwrap()
    };
    let chosen = |flags: &[&str]| format!("`{}`", config(flags).chosen(long).unwrap());
    match long {
        "workers" => {
            assert_eq!(config(&[]).workers, config(&["-w", "auto"]).workers);
            Some("`auto`".into())
        }
        "policy" => Some(chosen(&[])),
        "ready" => {
            let static_program = ["--adapter", "listen-fds", "-p", "shared", "-l", ":80"];
            Some(format!("{}; {} with listen-fds", chosen(&[]), chosen(&static_program)))
        }
        "max-draining" => {
            assert_eq!(chosen(&["-w", "7"]), "`14`");
            Some("twice the workers".into())
        }
        _ => None,
    }
}

/// The README's table of flags, from the parser.
fn table_of_flags() -> String {
    let command = super::command();
    let run = command.find_subcommand("run").unwrap();
    let mut table = String::new();
    for group in super::run::heading::ALL {
        table.push_str(&format!("| **{group}** | | |\n"));
        for arg in run.get_arguments().filter(|arg| arg.get_help_heading() == Some(group)) {
            let long = arg.get_long().unwrap_or_default();
            let short = arg.get_short().map_or_else(String::new, |short| format!("`-{short}`, "));
            let mut defaults = arg.get_default_values().iter().map(|one| one.to_string_lossy());
            let default = defaults.next().map(|one| format!("`{one}`"));
            let default = default.or_else(|| default_by_choice(long)).unwrap_or_default();
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let help = help.replace('|', "\\|");
            table.push_str(&format!("| {short}`--{long}` | {default} | {help} |\n"));
        }
    }
    table
}

/// `make docs` writes it.
#[test]
fn the_readme_has_every_flag_and_its_default() {
    const BEGIN: &str = "<!-- flags: made by make docs -->\n";
    const END: &str = "<!-- end of flags -->\n";

    let path = root().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let table = format!("\n| flag | default | |\n|---|---|---|\n{}\n", table_of_flags());
    let wanted = format!("{before}{BEGIN}{table}{END}{after}");
    if std::env::var_os("CROUPIER_DOCS").is_some_and(|what| what == "write") {
        std::fs::write(&path, &wanted).unwrap();
    } else {
        assert!(readme == wanted, "README.md does not have the flags as they are: run make docs");
    }
}

#[test]
fn the_readme_names_all_that_a_reload_cannot_change() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("what cannot change while croupier runs").unwrap();
    let (named, _) = rest.split_once("All else is in force").unwrap();
    let named: BTreeSet<&str> = named.split('`').skip(1).step_by(2).collect();
    let command = super::command();
    let run = command.find_subcommand("run").unwrap();
    let mut wanted: BTreeSet<&str> = run.get_arguments().filter_map(Arg::get_long).collect();
    // These say what is read, and variables are settings one by one.
    let no_settings = ["help", "config", "profile", "env"];
    wanted.retain(|long| !no_settings.contains(long) && !changes_at_reload(long));
    wanted.extend(["no", "croupier check"]);
    assert_eq!(named, wanted);
}
