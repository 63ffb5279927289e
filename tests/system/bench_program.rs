//! `croupier bench`: it finds the program that measures, says what to do when there is none, and that
//! program compares policies for a real server and leaves nothing.

use std::path::{Path, PathBuf};

use croupier_tests::{Guard, PATIENCE, bench, croupier};

use crate::programs::one_at_a_time;

/// croupier in a folder of its own, so that only what the test puts there is beside it.
fn alone(guard: &Guard) -> PathBuf {
    let place = guard.path("bin/croupier");
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::copy(croupier(), &place).unwrap();
    place
}

fn executable(guard: &Guard, name: &str, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = guard.write(name, script);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

const WORDS: [&str; 7] = ["bench", "--url", "/a?b", "--rounds", "2", "--", "node"];
/// Says its words, one a line.
const SAYS: &str = "#!/bin/sh\necho \"$WHO\"\nfor word; do echo \"[$word]\"; done\nexit 7\n";

fn said(guard: &Guard, croupier: &Path, who: &str, path: &Path) -> String {
    let mut command = guard.command(croupier);
    command.args(WORDS).args(["--help", "-p", "x"]);
    command.env("WHO", who).env("PATH", format!("{}:/usr/bin:/bin", path.display()));
    let finished = guard.finish(command);
    // It has become that program: its exit status is the command's.
    finished.expect_code(7);
    finished.stdout.trim_end().to_owned()
}

#[test]
fn the_program_that_measures_is_found_and_gets_every_word() {
    let guard = Guard::new("bench-found");
    let croupier = alone(&guard);
    let expected = |who: &str| {
        let own = croupier.display();
        format!(
            "{who}\n[program]\n[--croupier]\n[{own}]\n[--url]\n[/a?b]\n[--rounds]\n[2]\n[--]\n[node]\n\
             [--help]\n[-p]\n[x]"
        )
    };
    // In PATH, and, before that, beside croupier.
    let in_path = executable(&guard, "elsewhere/croupier-bench", SAYS);
    let folder = in_path.parent().unwrap();
    assert_eq!(said(&guard, &croupier, "path", folder), expected("path"));
    let loud = SAYS.replace("$WHO", "beside");
    executable(&guard, "bin/croupier-bench", &loud);
    assert_eq!(said(&guard, &croupier, "path", folder), expected("beside"));
}

#[test]
fn without_it_the_error_says_what_to_install() {
    let guard = Guard::new("bench-missing");
    let mut command = guard.command(alone(&guard));
    command.args(WORDS).env("PATH", "/nowhere");
    let finished = guard.finish(command);
    finished.expect_code(127).expect_error(&[
        "croupier-bench, which measures, is neither beside croupier nor in PATH: `make install` of",
        "`cargo build --release -p croupier-bench` builds it",
    ]);
}

#[test]
fn a_real_server_gets_a_table_and_a_recommendation() {
    let guard = Guard::new("bench-program");
    let out = guard.path("out");
    let mut command = guard.command(bench());
    command.args(["program", "--policies", "least,reuseport,single", "-w", "2"]);
    command.args(["--rounds", "1", "--seconds", "0.3", "--rate", "50", "--out"]).arg(&out);
    command.arg("--").args(one_at_a_time(guard.port()));
    let finished = guard.start(command).finished(3 * PATIENCE);
    finished.expect_code(0);
    let text = &finished.stdout;
    for name in ["croupier least", "croupier reuseport", "one process"] {
        let row = text.lines().find(|line| line.starts_with(name));
        let row = row.unwrap_or_else(|| panic!("a row for {name}: {text}"));
        // Half a second of 50/s: everybody was answered, so there is a median and nobody failed.
        assert!(row.ends_with(" 0") && (row.contains(" ms") || row.contains(" µs")), "{row}");
    }
    assert!(text.lines().any(|line| line.starts_with("Recommended: -p ")), "{text}");
    let doubtful = text.contains("debug build");
    assert_eq!(doubtful, cfg!(debug_assertions), "what makes it doubtful is said: {text}");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("croupier least") && page.contains("as much as it can take"));
}

#[test]
fn a_program_that_does_not_serve_is_an_error_with_its_own_words() {
    let guard = Guard::new("bench-broken");
    let mut command = guard.command(bench());
    command.args(["program", "--policies", "least", "--rounds", "1", "--seconds", "0.3", "--"]);
    command.args(["sh", "-c", "echo no database >&2; exit 3"]);
    let finished = guard.start(command).finished(3 * PATIENCE);
    finished.expect_code(1).expect_error(&["no database"]);
}
