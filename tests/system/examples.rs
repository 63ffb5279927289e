//! The files of `examples/` that are read by others' programs: what they say to croupier is parsed by
//! croupier, so that they cannot rot.

use std::path::PathBuf;

use croupier_tests::Guard;

fn example(name: &str) -> String {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).join(name);
    std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display())).unwrap()
}

/// The first list of words in a line: JSON in a Dockerfile, a flow sequence in YAML, which is the same.
fn words(line: &str) -> Vec<String> {
    let (_, rest) = line.split_once('[').unwrap();
    let (inside, _) = rest.rsplit_once(']').unwrap();
    serde_json::from_str(&format!("[{inside}]"))
        .map_err(|error| format!("{line}: {error}"))
        .unwrap()
}

/// The words of every line that begins like this, comments aside.
fn lists(text: &str, begin: &str) -> Vec<Vec<String>> {
    let lines = text.lines().map(str::trim_start).filter(|line| line.starts_with(begin));
    lines.filter(|line| line.contains('[')).map(words).collect()
}

/// What `run` gets is judged by `check`, with a program that is on every machine in the place of npm.
fn judge_run(guard: &Guard, args: &[String]) -> serde_json::Value {
    let flags = args.strip_suffix(&["npm".to_owned(), "start".to_owned()]).unwrap();
    let mut words = vec!["check", "--json"];
    words.extend(flags.iter().map(String::as_str).chain(["true"]));
    let checked = guard.croupier(words);
    checked.expect_code(0);
    serde_json::from_str(&checked.stdout).unwrap()
}

/// `status --check` and the like: no such primary is 3, a word that is not understood 2.
fn judge_command(guard: &Guard, command: &[String]) {
    let (program, args) = command.split_first().unwrap();
    assert_eq!(program, "croupier", "{command:?}");
    // By name: root sees every primary of the machine, whoever else's.
    let args = args.iter().map(String::as_str).chain(["-n", "examples-nobody"]);
    guard.croupier(args).expect_code(3);
}

#[test]
fn the_dockerfile_says_what_croupier_understands() {
    let guard = Guard::new("examples-docker");
    let text = example("Dockerfile");
    let entry = lists(&text, "ENTRYPOINT").remove(0);
    assert_eq!(entry, ["croupier", "run"], "without a shell: it is PID 1 itself");
    judge_run(&guard, &lists(&text, "CMD").remove(0));
    let health = text.lines().find(|line| line.starts_with("HEALTHCHECK")).unwrap();
    judge_command(&guard, &words(health));
    let users: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("USER ")).collect();
    assert_eq!(users, ["node"], "not root");
    // `docker stop` kills after 10 s.
    let last_stage = text.rsplit("FROM ").next().unwrap();
    assert!(last_stage.find("USER ") < last_stage.find("ENTRYPOINT"), "{last_stage}");
}

#[test]
fn the_kubernetes_manifest_says_what_croupier_understands() {
    let guard = Guard::new("examples-kubernetes");
    let text = example("kubernetes.yaml");
    let report = judge_run(&guard, &lists(&text, "args:").remove(0));
    let probes = lists(&text, "exec:");
    assert_eq!(probes.len(), 2, "{probes:?}");
    for probe in probes {
        judge_command(&guard, &probe);
    }
    let value = |name: &str| -> u64 {
        let settings = report["settings"].as_array().unwrap();
        let one = settings.iter().find(|one| one["name"] == name).unwrap();
        one["value"].as_str().unwrap().trim_end_matches('s').parse().unwrap()
    };
    let grace =
        text.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "));
    let grace: u64 = grace.unwrap().parse().unwrap();
    let needed = value("stop-delay") + value("graceful-timeout") + value("kill-after");
    assert!(needed < grace, "{needed}s of croupier's own in {grace}s");
}
