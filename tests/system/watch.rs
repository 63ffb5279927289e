//! `--watch`: a file that is saved is a reload that can only succeed or change nothing.

use std::path::Path;
use std::time::Duration;

use croupier_tests::{
    Client, Guard, Lines, PATIENCE, descriptors, find_program, observe, skip, wait_until,
};

use crate::programs::one_at_a_time;

/// A server that says its version, and does not start with a bad one.
fn script(port: u16) -> String {
    let server: Vec<String> =
        one_at_a_time(port).into_iter().map(|word| word.into_string().unwrap()).collect();
    format!(
        "v=$(cat src/version); [ $v != bad ] || exit 9; echo version $v; exec {}",
        server.join(" ")
    )
}

/// As an editor does it: beside, then over.
fn save(guard: &Guard, path: &str, text: &str) {
    let beside = guard.write(&format!("{path}~"), text);
    std::fs::rename(beside, guard.path(path)).unwrap();
}

fn has_inotify(pid: i32) -> bool {
    let pid = u32::try_from(pid).unwrap();
    descriptors(pid).values().any(|what| what == Path::new("anon_inode:inotify"))
}

#[test]
fn a_saved_file_is_a_reload_and_tools_are_not_heard() {
    let guard = Guard::new("watch-save");
    let port = guard.port();
    guard.write("src/version", "one");
    guard.write("src/node_modules/x", "");
    let script = script(port);
    let flags = ["-w", "1", "--watch=src", "--soak", "0", "--", "sh", "-c", &script];
    let croupier = guard.run(flags).ready();
    assert!(has_inotify(croupier.pid()));
    let ends = |lines: &Lines| lines.count("nobody is left to drain");
    let reloaded = |count: usize| {
        wait_until(PATIENCE, "the end of the reload", || {
            let seen = ends(croupier.stderr());
            if seen == count { Ok(()) } else { Err(seen) }
        });
    };
    save(&guard, "src/version", "two");
    croupier.wait_for_line("reload (asked by --watch: src/version)");
    croupier.wait_for_line("version two");
    reloaded(1);

    // One that does not hold changes nothing.
    save(&guard, "src/version", "bad");
    croupier.wait_for_line("the reload failed");
    reloaded(2);
    assert_eq!(croupier.status().slot(0).and_then(|worker| worker.generation), Some(2));
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);

    // What tools and editors keep for themselves.
    for path in ["src/node_modules/y", "src/.version.swp", "src/__pycache__/v.pyc", "other"] {
        guard.write(path, "new");
    }
    observe(Duration::from_millis(500));
    assert_eq!(croupier.stderr().count("asked by --watch"), 2);

    // The folder is replaced, and heard of under its name afterwards; folders that are new, too.
    guard.write("next/version", "three");
    std::fs::rename(guard.path("src"), guard.path("old")).unwrap();
    std::fs::rename(guard.path("next"), guard.path("src")).unwrap();
    croupier.wait_for_line("version three");
    wait_until(PATIENCE, "quiet", || {
        let (begun, ended) = (croupier.stderr().count("generation"), ends(croupier.stderr()));
        if begun > 0 && ended >= 3 { Ok(()) } else { Err((begun, ended)) }
    });
    guard.write("old/version", "elsewhere");
    save(&guard, "src/version", "four");
    croupier.wait_for_line("version four");
    guard.write("src/deep/file", "five");
    croupier.wait_for_line("asked by --watch: src/deep");
    croupier.stop_well();
}

#[test]
fn what_cannot_be_watched_is_said_and_without_the_flag_nothing_is() {
    let guard = Guard::new("watch-trouble");
    let port = guard.port();
    guard.write("src/version", "one");
    let script = script(port);
    let croupier = guard.run(["-w", "1", "--", "sh", "-c", &script]).ready();
    assert!(!has_inotify(croupier.pid()));
    croupier.stop_well();
    guard
        .croupier(["run", "--watch=none", "--", "sh", "-c", &script])
        .expect_code(1)
        .expect_error(&["--watch=none: No such file"]);
    for number in 0..=8192 {
        std::fs::create_dir_all(guard.path(format!("many/{number}"))).unwrap();
    }
    guard.croupier(["run", "--watch=many", "--", "sh", "-c", &script]).expect_code(1).expect_error(
        &["/many/", " is one folder more than the 8192 that can be watched; name those"],
    );
    // While it runs: what was watched goes on being watched.
    let flags = ["-w", "1", "--watch=src", "--soak", "0", "--", "sh", "-c", &script];
    let croupier = guard.run(flags).ready();
    std::fs::rename(guard.path("many"), guard.path("src/many")).unwrap();
    let said = croupier.wait_for_line("; what was watched before is watched on");
    assert!(said.contains("/many/") && said.contains("is one folder more than the 8192"), "{said}");
    std::fs::rename(guard.path("src/many"), guard.path("many")).unwrap();
    save(&guard, "src/version", "two");
    croupier.wait_for_line("version two");
    croupier.stop_well();
    let Some(strace) = find_program("strace") else {
        skip!("what_cannot_be_watched_is_said_and_without_the_flag_nothing_is", "needs strace");
    };
    let mut command = guard.command(strace);
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=inotify_add_watch", "-e"]);
    command.arg("inject=inotify_add_watch:error=ENOSPC").arg(croupier_tests::croupier());
    command.args(["run", "--watch", "--", "sh", "-c", &script]);
    guard
        .finish(command)
        .expect_code(1)
        .expect_error(&["used up: raise fs.inotify.max_user_watches", "sysctl"]);
}
