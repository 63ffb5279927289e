//! Facts about the source that drift silently. Each message names what to do instead.

use std::path::PathBuf;
use std::process::Command;

use croupier_tests::Guard;

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Tracked and new files, without what git ignores, and their text.
fn files(ending: &str) -> Vec<(String, String)> {
    let output = Command::new("git")
        // Also of a checkout that is somebody else's, as in many a container.
        .args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "git ls-files: {output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter(|path| path.ends_with(ending))
        .filter_map(|path| {
            std::fs::read_to_string(root().join(path)).ok().map(|text| (path.to_owned(), text))
        })
        .collect()
}

/// The part of a source before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn unsafe_stands_only_behind_its_walls() {
    const ALLOWED: [&str; 10] = [
        "router/src/sys.rs",
        "router/src/sys/child.rs",
        "worker-shim/wire/src/fdpass.rs",
        "worker-shim/wire/src/control.rs",
        "worker-shim/wire/src/memory.rs",
        "worker-shim/wire/src/room.rs",
        "worker-shim/src/claim.rs",
        "worker-shim/src/ffi.rs",
        "worker-shim/src/tokio.rs",
        "bench/src/adopt.rs",
    ];
    let _guard = Guard::new("tidy");
    for (path, text) in files(".rs") {
        let allowed = ALLOWED.contains(&path.as_str())
            || path.starts_with("worker-shim/preload/")
            || path.starts_with("worker-shim/examples/")
            || path.starts_with("worker-shim/tests/")
            || path.starts_with("scripts/");
        for (number, line) in code(without_tests(&text)) {
            let uses = line.contains("unsafe {")
                || line.contains("unsafe fn")
                || line.contains("unsafe impl");
            assert!(
                allowed || !uses || path == "tests/system/tidy.rs",
                "{path}:{}: unsafe belongs into router/src/sys.rs or the shim's walls: {line}",
                number + 1
            );
        }
    }
}

#[test]
fn no_test_sleeps() {
    let _guard = Guard::new("tidy");
    for (path, text) in files(".rs") {
        let tests = path.starts_with("tests/") || path.contains("/tests/");
        if !tests || path == "tests/system/tidy.rs" {
            continue;
        }
        for (number, line) in code(&text) {
            assert!(
                !line.contains("sleep("),
                "{path}:{}: wait for an event with wait_until, or observe a window: {line}",
                number + 1
            );
        }
    }
}

#[test]
fn transitions_decide_every_pair() {
    let _guard = Guard::new("tidy");
    let mut seen = 0;
    for (path, text) in files(".rs") {
        if path != "router/core/src/slot.rs" && path != "router/core/src/worker.rs" {
            continue;
        }
        seen += 1;
        for (number, line) in code(without_tests(&text)) {
            let line = line.trim_start();
            assert!(
                !line.starts_with("_ =>") && !line.starts_with("(_, _)"),
                "{path}:{}: write the ignored pairs out, so that a new state does not compile \
                 until each is decided: {line}",
                number + 1
            );
        }
    }
    assert_eq!(seen, 2, "slot.rs and worker.rs of the core");
}

#[test]
fn every_command_of_the_readme_is_a_target() {
    let _guard = Guard::new("tidy");
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    let readmes = files("README.md");
    let mut seen = 0;
    for (path, text) in &readmes {
        for (before, rest) in text.match_indices("make ").map(|(at, _)| text.split_at(at)) {
            // Only commands: in code, or at the start of a line of a block.
            if !(before.ends_with('`') || before.ends_with("    ") || before.ends_with('\n')) {
                continue;
            }
            let word = rest.trim_start_matches("make ");
            let target: String =
                word.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
            if target.is_empty() {
                continue;
            }
            seen += 1;
            let is_target = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            assert!(is_target, "{path}: `make {target}` is not a target of the Makefile");
        }
    }
    assert!(seen > 0, "the README names make targets");
}

#[test]
fn every_limit_stands_in_the_documents() {
    let _guard = Guard::new("tidy");
    let documents = ["README.md", "docs/bounds.md"]
        .map(|path| std::fs::read_to_string(root().join(path)).unwrap());
    let mut missing = Vec::new();
    for (path, text) in files(".rs") {
        let product = path.starts_with("router/") || path.starts_with("worker-shim/");
        if !product || path.contains("/tests/") {
            continue;
        }
        for (number, line) in code(without_tests(&text)) {
            let Some((before, _)) = line.split_once("_MAX:") else { continue };
            if !before.contains("const ") {
                continue;
            }
            let name = before.rsplit(' ').next().unwrap_or(before).to_owned() + "_MAX";
            if !documents.iter().any(|text| text.contains(&format!("`{name}`"))) {
                missing.push(format!("{path}:{}: {name}", number + 1));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "each bounds something; say so in README.md, Limits, or docs/bounds.md: {missing:#?}"
    );
}

#[test]
fn no_marker_is_left() {
    let _guard = Guard::new("tidy");
    // Written apart, so that this file does not find itself.
    let markers = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("Under ", "construction"),
    ];
    for (path, text) in files(".rs") {
        for (number, line) in text.lines().enumerate() {
            for marker in markers {
                assert!(
                    !line.contains(marker),
                    "{path}:{}: do it, or say why not: {line}",
                    number + 1
                );
            }
        }
    }
}
