//! `croupier.toml`: found, obeyed, checked; and what is made from the one definition of the flags.

use std::os::unix::fs::PermissionsExt;

use croupier_tests::{Client, Guard, PATIENCE, example, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::programs::one_at_a_time;

/// `command = […]` of the usual server.
fn command(port: u16) -> String {
    let words: Vec<String> =
        one_at_a_time(port).into_iter().map(|word| format!("{word:?}")).collect();
    format!("command = [{}]\n", words.join(", "))
}

#[test]
fn a_file_alone_is_enough_and_the_first_line_names_it() {
    let guard = Guard::new("config-file");
    let port = guard.port();
    let text = format!(
        "{}workers = 1\npolicy = \"rr\"\n[env]\nMODE = \"file\"\n[profile.two]\nworkers = 2\n",
        command(port)
    );
    guard.write("croupier.toml", &text);
    let croupier = guard.run::<&str>([]).ready();
    assert!(croupier.wait_for_line("starting 1 worker").ends_with(", by croupier.toml"));
    assert_eq!(croupier.status().policy, "rr");
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.stop_well();
    let other = guard.path("other.toml");
    std::fs::rename(guard.path("croupier.toml"), &other).unwrap();
    let other = other.to_str().unwrap();
    let croupier = guard.run(["--config", other, "--profile", "two", "-p", "least"]).ready();
    let line = croupier.wait_for_line("starting 2 workers");
    assert!(line.ends_with("other.toml, profile two"), "{line}");
    assert_eq!(croupier.status().policy, "least");
    croupier.stop_well();
    guard.croupier(["run"]).expect_code(2).expect_error(&["COMMAND is missing", "croupier.toml"]);
    guard
        .croupier(["run", "--profile", "two", "true"])
        .expect_code(2)
        .expect_error(&["there is no croupier.toml here; say --config"]);
}

#[test]
fn a_mistake_is_exit_2_with_its_line_and_the_nearest_name() {
    let guard = Guard::new("config-mistake");
    guard.write("croupier.toml", "command = [\"true\"]\n\npolcy = \"rr\"\n");
    for verb in ["run", "check"] {
        guard
            .croupier([verb])
            .expect_code(2)
            .expect_error(&["croupier.toml:3: polcy is no setting; did you mean policy?"]);
    }
    guard.croupier(["run", "--config", "none.toml"]).expect_code(2).expect_error(&["none.toml"]);
    // What anybody could have written is not obeyed unasked.
    let path = guard.write("croupier.toml", "command = [\"true\"]\n");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    guard
        .croupier(["check"])
        .expect_code(2)
        .expect_error(&["could have been written by somebody else", "--config croupier.toml"]);
    guard.croupier(["check", "--config", "croupier.toml"]).expect_code(0);
}

#[test]
fn check_says_what_would_run_and_who_says_so() {
    let guard = Guard::new("config-check");
    let text = "command = [\"tail\", \"-f\", \"/dev/null\"]\nworkers = 3\nsoak = \"2s\"\n\
                [env]\nTOKEN = \"secret\"\n[profile.dev]\nsoak = \"0\"\n";
    guard.write("croupier.toml", text);
    let mut command = guard.command(croupier_tests::croupier());
    command.args(["check", "--profile", "dev", "-p", "rr"]).env("CROUPIER_MAX_RSS", "1G");
    let checked = guard.finish(command);
    checked.expect_code(0);
    let lines: Vec<Vec<&str>> =
        checked.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    for wanted in [
        ["policy", "rr", "no", "flag"].as_slice(),
        &["workers", "3", "yes", "croupier.toml:2"],
        &["soak", "0", "yes", "croupier.toml:7,", "profile", "dev"],
        &["max-rss", "1G", "yes", "CROUPIER_MAX_RSS"],
        &["kill-after", "2s", "yes", "default"],
        &["env.TOKEN", "(not", "shown)", "yes", "croupier.toml:5"],
    ] {
        assert!(lines.iter().any(|line| line == wanted), "{wanted:?} in {}", checked.stdout);
    }
    assert!(
        checked.stdout.starts_with("good, by croupier.toml, profile dev: 3 workers of tail -f")
    );
    assert!(!checked.stdout.contains("secret"), "{}", checked.stdout);

    let json = guard.croupier(["check", "--json"]);
    let report: Value = serde_json::from_str(&json.expect_code(0).stdout).unwrap();
    assert_eq!((&report["workers"], &report["adapter"]), (&3.into(), &"preload".into()));
    let settings = report["settings"].as_array().unwrap();
    let of = |name: &str| settings.iter().find(|one| one["name"] == name).unwrap();
    let soak = of("soak");
    assert_eq!((&soak["value"], &soak["from"]), (&"2s".into(), &"file".into()));
    assert_eq!((&soak["at"], &soak["reload"]), (&"croupier.toml:3".into(), &true.into()));
    assert_eq!(of("listen")["reload"], false);
    assert_eq!(of("env.TOKEN")["value"], Value::Null);
    assert_eq!(of("policy")["from"], "default");

    // What `run` would refuse, check refuses.
    guard.croupier(["check", "--", "no-such-program-here"]).expect_code(2);
    guard.croupier(["check", "--shed", "reset"]).expect_code(2).expect_error(&["--max-queue-wait"]);
}

#[test]
fn every_command_has_a_man_page_and_a_completion() {
    let guard = Guard::new("config-made");
    std::fs::create_dir(guard.path("man")).unwrap();
    guard.croupier(["man", "man"]).expect_code(0);
    let help = guard.croupier(["--help"]).stdout;
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.contains(&"run") && commands.contains(&"check"), "{help}");
    for name in &commands {
        let page = std::fs::read_to_string(guard.path(format!("man/croupier-{name}.1"))).unwrap();
        assert!(
            page.contains(".SH NAME") && page.contains(&format!("croupier\\-{name}")),
            "{page}"
        );
    }
    let run = std::fs::read_to_string(guard.path("man/croupier-run.1")).unwrap();
    assert!(run.contains("\\-\\-graceful\\-timeout") && run.contains(".SH DEALING"), "{run}");
    guard.croupier(["man", "no/such"]).expect_code(1).expect_error(&["cannot write no/such"]);
    for shell in ["bash", "zsh", "fish"] {
        let script = guard.croupier(["completions", shell]);
        let text = &script.expect_code(0).stdout;
        assert!(text.contains("graceful-timeout"), "{shell}");
        commands.iter().for_each(|name| assert!(text.contains(name), "{shell}: {name}"));
    }
    // The shell itself is asked what it would complete.
    let script = guard.write("complete.bash", &guard.croupier(["completions", "bash"]).stdout);
    let ask = format!(
        "source {}; COMP_WORDS=(croupier run --grace); COMP_CWORD=2; _croupier croupier --grace run; \
         echo \"${{COMPREPLY[*]}}\"",
        script.display()
    );
    let mut bash = guard.command("bash");
    bash.args(["-c", &ask]);
    let answer = guard.finish(bash);
    assert_eq!(answer.expect_code(0).stdout.trim(), "--graceful-timeout", "{answer:?}");
}

/// A program that says which version it is, and the file that makes it so.
fn version(guard: &Guard, port: u16, mode: &str, more: &str) {
    let server: Vec<String> =
        one_at_a_time(port).into_iter().map(|word| word.into_string().unwrap()).collect();
    let script = format!("echo mode $MODE of $CROUPIER_GENERATION; exec {}", server.join(" "));
    let text = format!(
        "command = ['sh', '-c', '{script}']\nworkers = 2\nsoak = \"100ms\"\n{more}\n[env]\nMODE = \"{mode}\"\n"
    );
    guard.write("croupier.toml", &text);
}

#[test]
fn a_reload_reads_the_file_again_and_a_wrong_one_changes_nothing() {
    let guard = Guard::new("config-reload");
    let port = guard.port();
    version(&guard, port, "one", "");
    let croupier = guard.run::<&str>([]).ready();
    let generations = || -> Vec<Option<u32>> {
        croupier.status().workers.iter().map(|worker| worker.generation).collect()
    };
    version(&guard, port, "two", "graceful-timeout = \"5s\"");
    let reload = croupier.ask(&["reload"]);
    let said = &reload.expect_code(0).stdout;
    assert!(said.contains("croupier.toml changes env.MODE, graceful-timeout"), "{said}");
    croupier.wait_for_line("mode two of 2");
    assert_eq!(generations(), [Some(2); 2]);

    // A line that is wrong, and one that is right but cannot be obeyed now.
    for (line, wanted) in [
        ("sok = \"1s\"", "croupier.toml:4: sok is no setting; did you mean soak?"),
        ("policy = \"rr\"", "croupier.toml:4: policy cannot change while croupier runs"),
    ] {
        version(&guard, port, "three", line);
        croupier
            .ask(&["reload"])
            .expect_code(1)
            .expect_error(&["no reload, and nothing is changed", wanted]);
        croupier.signal(Signal::SIGHUP);
        wait_until(PATIENCE, "it is in the log, twice", || {
            let count = croupier.stderr().count(wanted);
            if count == 2 { Ok(()) } else { Err(count) }
        });
        assert_eq!(generations(), [Some(2); 2]);
        assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    }
    std::fs::remove_file(guard.path("croupier.toml")).unwrap();
    croupier.ask(&["reload"]).expect_code(1).expect_error(&["croupier.toml: cannot be read"]);

    // What is read well but does not hold: the old go on, also those that crash, as what they were.
    guard.write("croupier.toml", "command = [\"false\"]\nworkers = 2\nsoak = \"100ms\"\n");
    croupier.ask(&["reload"]).expect_code(1).expect_error(&["exited with status 1"]);
    assert_eq!(generations(), [Some(2); 2]);
    let before = croupier.stdout().count("mode two of 2");
    let victim = croupier.status().slot(1).cloned().unwrap();
    kill(Pid::from_raw(victim.pid.unwrap()), Signal::SIGKILL).unwrap();
    croupier.wait_status("the next", |status| {
        status.slot(1).filter(|worker| worker.id > victim.id).map(|_| ())
    });
    wait_until(PATIENCE, "the old command", || {
        let count = croupier.stdout().count("mode two of 2");
        if count == before + 1 { Ok(()) } else { Err(count) }
    });

    version(&guard, port, "four", "");
    croupier.signal(Signal::SIGUSR2);
    croupier.wait_for_line("mode four of 4");
    croupier.wait_for_line("nobody is left to drain");
    croupier.stop_well();
}

/// What seeds the choice of workers is nobody's business, and cannot change while croupier runs.
#[test]
fn a_secret_that_cannot_change_is_refused_and_not_shown() {
    let guard = Guard::new("config-secret");
    let port = guard.port();
    let says = |seed: &str| {
        let text = format!("{}workers = 1\nsticky-seed = \"{seed}\"\n", command(port));
        guard.write("croupier.toml", &text);
    };
    says("hush-one");
    let croupier = guard.run::<&str>([]).ready();
    says("hush-two");
    let refused = croupier.ask(&["reload"]);
    let wanted = "sticky-seed cannot change while croupier runs: it was (not shown), and is (not \
                  shown); take that back";
    refused.expect_code(1).expect_error(&["croupier.toml:3: ", wanted]);
    croupier.wait_for_line(wanted);
    let said = [refused.stdout, refused.stderr, croupier.stdout().text(), croupier.stderr().text()];
    assert!(said.iter().all(|text| !text.contains("hush")), "{said:#?}");
    croupier.stop_well();
}

#[test]
fn the_number_of_workers_follows_the_file() {
    let guard = Guard::new("config-workers");
    let port = guard.port();
    let says = |workers: &str| {
        let text = format!("{}soak = \"50ms\"\nworkers = {workers}\n", command(port));
        guard.write("croupier.toml", &text);
    };
    says("2");
    let croupier = guard.run::<&str>([]).ready();
    let ready = || -> Vec<(u16, Option<u32>)> {
        croupier.status().ready().map(|worker| (worker.slot, worker.generation)).collect()
    };
    says("4");
    let reload = croupier.ask(&["reload"]);
    let said = &reload.expect_code(0).stdout;
    assert!(said.contains("croupier.toml changes workers"), "{said}");
    let order = "every slot has a worker of generation 2\nnow 4 slots instead of 2\n";
    assert!(said.contains(order), "{said}");
    assert_eq!(ready(), [0, 1, 2, 3].map(|slot| (slot, Some(2))), "all there when it has ended");
    // By hand, and the file does not say anything new.
    croupier.ask(&["scale", "3"]).expect_code(0);
    croupier.ask(&["reload"]).expect_code(0);
    assert_eq!(ready(), [0, 1, 2].map(|slot| (slot, Some(3))));
    // What is wrong, and what does not hold, changes no number.
    says("0");
    let wanted = "croupier.toml:3: workers 0: there must be at least 1 worker";
    croupier.ask(&["reload"]).expect_code(1).expect_error(&["nothing is changed", wanted]);
    guard.write("croupier.toml", "command = [\"false\"]\nsoak = \"50ms\"\nworkers = 1\n");
    croupier.ask(&["reload"]).expect_code(1).expect_error(&["exited with status 1"]);
    assert_eq!(ready(), [0, 1, 2].map(|slot| (slot, Some(3))));
    says("1");
    croupier.signal(Signal::SIGHUP);
    croupier.wait_for_line("1 slot instead of 3");
    croupier.wait_status("one worker", |status| (status.workers.len() == 1).then_some(()));
    assert_eq!(ready(), [(0, Some(5))]);
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    // A number that would leave nobody who serves.
    croupier.ask(&["scale", "2"]).expect_code(0);
    croupier.ask(&["stop", "0"]).expect_code(0);
    says("3");
    croupier.ask(&["reload"]).expect_code(0);
    croupier.ask(&["stop", "2"]).expect_code(0);
    says("1");
    let said = croupier.ask(&["reload"]).expect_code(0).stdout.clone();
    assert!(said.contains("the number of workers stays as it is"), "{said}");
    assert_eq!(ready().len(), 1, "slot 1 serves");
    assert_eq!(Client::port(port).get("/").unwrap().status, 200);
    croupier.stop_well();
}

/// What could not be kept at the start cannot be kept after a reload.
#[test]
fn a_limit_that_the_adapter_cannot_keep_is_refused_at_a_reload() {
    let guard = Guard::new("config-adapter");
    let bare = example("bare", "");
    let text = format!(
        "command = [{bare:?}]\nworkers = 1\nadapter = \"fd\"\nlisten = [\"127.0.0.1:{}\"]\n",
        guard.port()
    );
    guard.write("croupier.toml", &text);
    let croupier = guard.run::<&str>([]).ready();
    guard.write("croupier.toml", &format!("{text}max-active = 1\n"));
    croupier.ask(&["reload"]).expect_code(1).expect_error(&[
        "no reload, and nothing is changed: --max-active needs to know what is closed, ",
        "; use --queue-limit",
    ]);
    croupier.stop_well();
}

#[test]
fn who_leaves_because_the_file_has_fewer_workers_is_told_of_and_counted() {
    let guard = Guard::new("config-fewer");
    let port = guard.port();
    let says = |workers: u16| {
        let more = "soak = \"50ms\"\npolicy = \"rr\"\ndrain-timeout = \"300ms\"";
        let text = format!("{}{more}\nworkers = {workers}\n", command(port));
        guard.write("croupier.toml", &text);
    };
    says(2);
    let croupier = guard.run::<&str>([]).ready();
    let (client, fifo) = (Client::port(port), guard.fifo("never"));
    let path = format!("/block?fifo={}", fifo.display());
    let held = [client.send(&path).unwrap(), client.send(&path).unwrap()];
    let leaver = croupier.wait_status("one for each", |status| {
        let each = status.ready().filter(|worker| worker.active == Some(1)).count() == 2;
        status.slot(1).filter(|_| each).and_then(|worker| worker.id)
    });
    says(1);
    let reload = croupier.ask(&["reload"]);
    for line in [
        format!("slot 1: worker {leaver} drains and holds 1 connection"),
        format!("worker {leaver} still holds 1 connection and has no more time"),
        format!("worker {leaver} has ended"),
        "nobody is left to drain; 2 connections cut at the drain-timeout".to_owned(),
    ] {
        let said = reload.expect_code(0).stdout.lines().filter(|said| *said == line).count();
        assert_eq!(said, 1, "{line:?} in {}", reload.stdout);
    }
    assert!(held.map(|pending| pending.reply().is_err()).iter().all(|cut| *cut));
    croupier.stop_well();
}

#[test]
fn a_reload_does_not_answer_for_a_slot_that_comes_by_hand_meanwhile() {
    let guard = Guard::new("config-by-hand");
    let port = guard.port();
    let server: Vec<String> =
        one_at_a_time(port).into_iter().map(|word| word.into_string().unwrap()).collect();
    let text = format!(
        "command = ['sh', '-c', '[ $CROUPIER_SLOT = 1 ] && exit 3; exec {}']\n\
         workers = 1\nsoak = \"50ms\"\ndrain-timeout = \"1h\"\n",
        server.join(" ")
    );
    guard.write("croupier.toml", &text);
    let croupier = guard.run::<&str>([]).ready();
    let fifo = guard.fifo("go");
    let held = Client::port(port).send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the blocker", |status| (status.open() == (0, 1)).then_some(()));
    let (reload, scale) = std::thread::scope(|scope| {
        let reload = scope.spawn(|| croupier.ask(&["reload"]));
        croupier.wait_status("the drain", |status| {
            status.workers.iter().any(|worker| worker.state == "draining").then_some(())
        });
        let scale = croupier.ask(&["scale", "+1"]);
        std::fs::write(&fifo, "").unwrap();
        (reload.join().unwrap(), scale)
    });
    scale.expect_code(1).expect_error(&["slot 1", "exited with status 3"]);
    reload.expect_code(0);
    assert_eq!(held.reply().unwrap().status, 200);
    croupier.stop_well();
}

#[test]
fn limits_follow_the_file() {
    let guard = Guard::new("config-limits");
    let port = guard.port();
    let says = |more: &str| {
        let text = format!("{}soak = \"50ms\"\nworkers = 2\n{more}\n", command(port));
        guard.write("croupier.toml", &text);
    };
    says("max-total = 1");
    let croupier = guard.run::<&str>([]).ready();
    let client = Client::port(port);
    let fifo = guard.fifo("first");
    let first = client.send(&format!("/block?fifo={}", fifo.display())).unwrap();
    croupier.wait_status("the first", |status| (status.open() == (0, 1)).then_some(()));
    let second = client.send("/").unwrap();
    croupier.wait_status("the second waits", |status| (status.totals.waits > 0).then_some(()));
    assert!(!second.answered());
    // The first is still being served when the second has its answer.
    says("max-total = 2\nreport = \"1s\"");
    croupier.signal(Signal::SIGHUP);
    assert_eq!(second.reply().unwrap().status, 200);
    croupier.wait_for_line("health: 2 of 2 workers ready");
    std::fs::write(&fifo, "").unwrap();
    assert_eq!(first.reply().unwrap().status, 200);
    croupier.wait_for_line("nobody is left to drain");
    // A limit that there was not at all at the start.
    says("max-rss = \"1M\"");
    croupier.ask(&["reload"]).expect_code(0);
    croupier
        .wait_status("one that was replaced", |status| (status.totals.recycled > 0).then_some(()));
    says("");
    croupier.ask(&["reload"]).expect_code(0);
    croupier.stop_well();
}
