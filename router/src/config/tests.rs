//! Command lines and what they come to: values, and settings held against each other.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use clap::Parser;
use croupier_core::config::{ExitCodes, Limits, Policy, ProbeRule, ReadyRule};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, geteuid};

use super::ids::resolve_ids;
use super::run::sticky_key;
use super::values::PROBE_PATH_MAX;
use super::*;
use crate::cli::run::RunArgs;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: RunArgs,
}

pub(super) fn around() -> Surroundings {
    Surroundings {
        cpus: 4,
        cpus_online: 4,
        workers: None,
        web_concurrency: None,
        node_sched_policy: None,
        somaxconn: 4096,
        memory: Some(8 << 30),
        inherited: Ok(Vec::new()),
    }
}

fn config_in(around: &Surroundings, words: &[&str]) -> Result<RunConfig, String> {
    let line = Line::try_parse_from([&["run"], words].concat()).map_err(|e| e.to_string())?;
    RunConfig::new(line.args, around).map_err(|error| error.to_string())
}

fn config(words: &[&str]) -> RunConfig {
    config_in(&around(), words).unwrap()
}

fn refusal(words: &[&str]) -> String {
    config_in(&around(), words).unwrap_err()
}

fn tcp(address: &str, dual_stack: bool) -> ListenAddress {
    ListenAddress::Tcp { address: address.parse().unwrap(), dual_stack }
}

#[test]
fn listen_addresses() {
    let public = |text| parse_listen(text).unwrap().public;
    assert_eq!(public(":80"), tcp("[::]:80", true));
    assert_eq!(public("8080"), tcp("[::]:8080", true));
    assert_eq!(public("*:80"), tcp("[::]:80", true));
    assert_eq!(public("[::]:80"), tcp("[::]:80", true));
    assert_eq!(public("[::1]:80"), tcp("[::1]:80", false));
    assert_eq!(public("0.0.0.0:80"), tcp("0.0.0.0:80", false));
    assert_eq!(public("localhost:80"), tcp("127.0.0.1:80", false));
    assert_eq!(public(":0"), tcp("[::]:0", true));
    assert_eq!(public("unix:a.sock"), ListenAddress::Unix("a.sock".into()));
    assert_eq!(public("/run/a.sock"), ListenAddress::Unix("/run/a.sock".into()));
}

#[test]
fn programs_behind_addresses() {
    let program = |text| parse_listen(text).unwrap().program;
    assert_eq!(program(":80"), None);
    assert_eq!(program(":80=3000"), Some(ProgramAddress::Port(3000)));
    assert_eq!(program(":80=:3000"), Some(ProgramAddress::Port(3000)));
    let address = ProgramAddress::Tcp("127.0.0.1:3000".parse().unwrap());
    assert_eq!(program(":80=127.0.0.1:3000"), Some(address));
    let path = ProgramAddress::Unix("/run/a.sock".into());
    assert_eq!(program(":80=/run/a.sock"), Some(path));
    assert!(parse_listen(":80=0").is_err());
    for text in [":80=3000", "127.0.0.1:80", "unix:/run/a=unix:/run/b", "[::1]:80=[::1]:81"] {
        let spec = parse_listen(text).unwrap();
        assert_eq!(parse_listen(&spec.to_string()).unwrap(), spec, "{spec}");
    }
}

#[test]
fn bad_addresses_say_what_is_wrong() {
    for (text, part) in [
        ("99999", "largest is 65535"),
        (":65536", "largest is 65535"),
        ("127.0.0.1", "the port is missing, as in 127.0.0.1:8080"),
        ("::1", "the port is missing, as in [::1]:8080"),
        ("example.org:80", "names are not looked up"),
        ("", "an address is"),
        (":", "an address is"),
        ("unix:", "path of the Unix socket is missing"),
    ] {
        let why = parse_listen(text).unwrap_err();
        assert!(why.contains(part), "{text}: {why}");
    }
    let long = format!("/{}", "x".repeat(107));
    assert!(parse_listen(&long).unwrap_err().contains("too long"));
    assert!(refusal(&["-l", ":80", "-l", "80", "x"]).contains("given twice"));
}

/// Where the program has the socket itself, it cannot be two.
#[test]
fn several_addresses_for_one_of_the_program_need_somebody_who_deals() {
    for (one, other) in [
        ("127.0.0.1:80=3000", "127.0.0.2:80=3000"),
        ("127.0.0.1:80=3000", "127.0.0.2:80=[::1]:3000"),
        ("127.0.0.1:3000", "127.0.0.1:80=3000"),
        ("/a=/b", "/b"),
    ] {
        config(&["-l", one, "-l", other, "x"]);
        let why = refusal(&["-p", "shared", "-l", one, "-l", other, "x"]);
        assert!(why.contains("are for one listener of the program"), "{why}");
    }
    for (one, other) in [
        // It may listen on both.
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("127.0.0.1:80=3000", "127.0.0.2:80=3001"),
    ] {
        config(&["-p", "shared", "-l", one, "-l", other, "x"]);
    }
}

#[test]
fn probes() {
    let http = |path: &str| Ok(ReadyProbe::Http(path.to_owned()));
    assert_eq!(parse_probe("tcp"), Ok(ReadyProbe::Tcp));
    assert_eq!(parse_probe("http:/healthz"), http("/healthz"));
    assert_eq!(parse_probe("http:///healthz?deep=1"), http("/healthz?deep=1"));
    assert_eq!(parse_probe("http:/"), http("/"));
    for (text, part) in [
        ("/healthz", "http:PATH"),
        ("https:/x", "http:PATH"),
        ("http:", "there is no host"),
        ("http://", "there is no host"),
        ("http://example.org/up", "there is no host"),
        ("http:/a b", "visible ASCII"),
        ("http:/a\r\nX: y", "visible ASCII"),
        ("http:/ä", "visible ASCII"),
    ] {
        let why = parse_probe(text).unwrap_err();
        assert!(why.contains(part), "{text}: {why}");
    }
    let long = format!("http:/{}", "x".repeat(PROBE_PATH_MAX));
    assert!(parse_probe(&long).is_err());
    assert!(config(&["--ready-probe", "tcp", "x"]).core.ready_probe == ProbeRule::Answer);
    for policy in ["shared", "reuseport"] {
        let why = refusal(&["--ready-probe", "tcp", "-p", policy, "-l", ":80", "x"]);
        assert!(why.contains("--ready-probe") && why.contains("accept by themselves"), "{why}");
    }
    let why = refusal(&["--ready-probe", "tcp", "--adapter", "listen-fds", "-l", ":80", "x"]);
    assert!(why.contains("-p shared"), "{why}");
}

#[test]
fn a_replaced_worker_has_more_time_than_one_that_stops() {
    let times = |words: &[&str]| {
        let core = config(words).core;
        (core.drain_timeout.as_secs(), core.graceful_timeout.as_secs())
    };
    assert_eq!(times(&["x"]), (30, 8));
    assert_eq!(times(&["--graceful-timeout", "5m", "x"]), (300, 300));
    assert_eq!(times(&["--drain-timeout", "3s", "x"]), (3, 8));
    assert_eq!(times(&["--drain-timeout", "1h", "--graceful-timeout", "2s", "x"]), (3600, 2));
}

#[test]
fn a_port_is_not_a_policy() {
    for (value, hint) in [
        ("8080", "that is --policy; a port is -l :8080"),
        (":8080", "that is --policy; a port is -l :8080"),
        ("127.0.0.1:80", "that is --policy; an address is -l 127.0.0.1:80"),
        ("fair", "the policies are least, rr, ip, shared and reuseport"),
    ] {
        let why = refusal(&["-p", value, "x"]);
        assert!(why.contains(hint), "{why}");
    }
    assert_eq!(config(&["-p", "ip", "x"]).core.policy, Policy::Ip);
    assert_eq!(config(&["x"]).core.policy, Policy::Least);
}

#[test]
fn numbers_of_workers() {
    let count = |text: &str| config(&["-w", text, "x"]).workers.count;
    assert_eq!((count("3"), count("auto"), count("-1"), count("-9"), count("2x")), (3, 4, 3, 1, 8));
    assert_eq!(config(&["-i", "3", "x"]).workers.count, 3);
    assert_eq!(config(&["--instances", "max", "x"]).workers.count, 4);
    for bad in ["0", "-0", "0x", "x", "many", "65536", "1025", ""] {
        assert!(config_in(&around(), &["-w", bad, "x"]).is_err(), "{bad}");
    }
    assert_eq!(config(&["x"]).workers.why, "auto: 4 CPUs");
    let narrow = Surroundings { cpus: 1, ..around() };
    let workers = config_in(&narrow, &["x"]).unwrap().workers;
    assert_eq!(
        (workers.count, workers.why.as_str()),
        (1, "auto: 1 of 4 CPUs, by affinity or CPU quota")
    );
}

#[test]
fn platform_variables_set_the_number_of_workers() {
    let both =
        Surroundings { workers: Some("3".into()), web_concurrency: Some("7".into()), ..around() };
    let workers = config_in(&both, &["x"]).unwrap().workers;
    assert_eq!((workers.count, workers.from_platform), (3, Some("WORKERS")));
    assert_eq!(workers.why, "WORKERS=3");
    let flag = config_in(&both, &["-w", "2", "x"]).unwrap().workers;
    assert_eq!((flag.count, flag.from_platform), (2, None));
    let bad = Surroundings { web_concurrency: Some("two".into()), ..around() };
    let why = config_in(&bad, &["x"]).unwrap_err();
    assert!(why.starts_with("WEB_CONCURRENCY two: "), "{why}");
    let node = Surroundings { node_sched_policy: Some("none".into()), ..around() };
    assert_eq!(config_in(&node, &["x"]).unwrap().core.policy, Policy::Shared);
    assert_eq!(config_in(&node, &["-p", "rr", "x"]).unwrap().core.policy, Policy::Rr);
}

#[test]
fn the_first_positional_starts_the_command() {
    let command = |words: &[&str]| config(words).command;
    assert_eq!(command(&["-w", "2", "node", "-w", "9", "--", "x"]), ["node", "-w", "9", "--", "x"]);
    assert_eq!(command(&["-w", "2", "--", "node", "--help"]), ["node", "--help"]);
    assert!(refusal(&["--bogus", "node"]).contains("--bogus"));
    assert!(refusal(&["-w", "2"]).contains("COMMAND"));
}

#[test]
fn listen_fds_needs_an_address_and_no_dealing() {
    let listen_fds = &["--adapter", "listen-fds"];
    let with = |more: &[&'static str]| [listen_fds.as_slice(), more].concat();
    assert!(refusal(&with(&["x"])).contains("add -l"));
    assert!(refusal(&with(&["-l", ":80", "-p", "rr", "x"])).contains("-p shared"));
    let config = config(&with(&["-l", ":80", "x"]));
    assert_eq!((config.core.policy, config.core.ready), (Policy::Shared, ReadyRule::Start));
    assert!(refusal(&["-p", "reuseport", "-l", "/a", "x"]).contains("-p shared"));
    assert!(refusal(&["--sticky-bound", "1.5", "x"]).contains("use ip there"));
}

#[test]
fn a_limit_of_memory_that_has_lost_its_unit() {
    for (small, said) in [
        ("300", "300 bytes is less than any program needs; 300M?"),
        ("1048575", "1048575 bytes is less than any program needs; 1048575M?"),
        ("512K", "512K is less than any program needs; 512M?"),
        ("512kib", "512kib is less than any program needs; 512M?"),
    ] {
        assert_eq!(parse_max_rss(small).unwrap_err(), said);
    }
}

#[test]
fn memory_of_a_worker() {
    for (text, bytes) in [
        ("1048576", 1 << 20),
        ("1024K", 1 << 20),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("1GiB", 1 << 30),
        ("3MB", 3 << 20),
    ] {
        assert_eq!(parse_max_rss(text), Ok(MaxRssArg::Bytes(bytes)), "{text}");
    }
    for bad in ["0", "", "M", "-1M", "1.5G", "lots", "99999999999T"] {
        assert!(parse_max_rss(bad).unwrap_err().contains("as in 512M"), "{bad}");
    }
    let max = |words: &[&str]| config(words).max_rss;
    assert_eq!(max(&["x"]), None);
    assert_eq!(max(&["--max-rss", "1M", "x"]).unwrap().bytes, 1 << 20);
    let auto = max(&["-w", "3", "--max-rss", "auto", "x"]).unwrap();
    // 80 % of 8 GiB, for 3 workers and the one that starts beside.
    assert_eq!(auto.bytes, (8 << 30) / 100 * 80 / 4);
    assert!(auto.why.contains("1.5G for each worker: 80% of 8.0G"), "{}", auto.why);
    let more = auto.with_workers(7);
    assert_eq!(more.bytes, (8 << 30) / 100 * 80 / 8);
    assert!(more.why.contains("by 7 workers"), "{}", more.why);
    assert_eq!(max(&["--max-rss", "1M", "x"]).unwrap().with_workers(7).bytes, 1 << 20);
    let blind = Surroundings { memory: None, ..around() };
    assert!(
        config_in(&blind, &["--max-rss", "auto", "x"])
            .unwrap_err()
            .contains("cannot be read; say how much, as in 512M")
    );
    for (bytes, text) in [(512, "512 bytes"), (1536, "1.5K"), (5 << 30, "5.0G")] {
        assert_eq!(bytes_text(bytes), text);
    }
}

#[test]
fn as_many_workers_as_the_memory_has_room_for() {
    let small = Surroundings { memory: Some(512 << 20), ..around() };
    let workers = |around: &Surroundings, words: &[&str]| {
        let words = [&["--worker-memory", "150M"], words, &["x"]].concat();
        let workers = config_in(around, &words).unwrap().workers;
        (workers.count, workers.why)
    };
    let why = "auto: room for 2 of 150.0M in 80% of 512.0M";
    assert_eq!(workers(&small, &[]), (2, why.to_owned()));
    assert_eq!(workers(&small, &["-w", "2x"]).0, 4);
    assert_eq!(workers(&small, &["-w", "-1"]).0, 1);
    assert_eq!(workers(&small, &["-w", "4"]), (4, String::new()), "a plain number stays");
    assert_eq!(workers(&around(), &[]), (4, "auto: 4 CPUs".to_owned()), "more room than CPUs");
    // There is always one.
    let tiny = Surroundings { memory: Some(64 << 20), ..around() };
    assert_eq!(workers(&tiny, &[]).0, 1);
    let blind = Surroundings { memory: None, ..around() };
    let why = config_in(&blind, &["--worker-memory", "1G", "x"]).unwrap_err();
    assert!(why.contains("say how many workers with -w"), "{why}");
    assert!(refusal(&["--worker-memory", "auto", "x"]).contains("as in 512M"));
}

#[test]
fn care_for_processes() {
    let care = |words: &[&str]| config(&[words, &["x"]].concat()).care;
    let plain = care(&[]);
    assert_eq!((plain.folder, plain.umask, plain.report), (None, None, None));
    assert_eq!((plain.stop_delay, plain.pid_file), (Duration::ZERO, None));
    let here = std::env::current_dir().unwrap();
    assert_eq!(care(&["--chdir", "src"]).folder, Some(here.join("src")));
    assert_eq!(care(&["--umask", "027"]).umask, Some(0o27));
    assert_eq!(care(&["--report", "0"]).report, None);
    assert_eq!(care(&["--report", "1m"]).report, Some(Duration::from_secs(60)));
    for (words, part) in [
        (["--report", "10ms"], "--report 10ms: at least 1s"),
        (["--chdir", "/no/such"], "--chdir /no/such: No such file"),
        (["--chdir", "/dev/null"], "--chdir /dev/null: it is no folder"),
        (["--env-file", "/no/such"], "--env-file /no/such: No such file"),
        (["--umask", "u=rw"], "a mask is an octal number"),
    ] {
        let why = refusal(&[words.as_slice(), &["x"]].concat());
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn sockets_that_were_brought_along() {
    let socket = |address: &str| Inherited {
        number: 3,
        name: "web.socket".into(),
        address: parse_listen(address).unwrap().public,
    };
    let with = |address: &str| Surroundings { inherited: Ok(vec![socket(address)]), ..around() };
    let spec = &config_in(&with(":80"), &["x"]).unwrap().listen[0];
    assert_eq!((spec.inherited, spec.public.to_string()), (Some(3), ":80".into()));
    // They are addresses like any other to what needs one.
    config_in(&with(":80"), &["--adapter", "listen-fds", "x"]).unwrap();
    let why = config_in(&with(":80"), &["-p", "reuseport", "x"]).unwrap_err();
    assert!(why.contains("LISTEN_FDS brings one for all"), "{why}");
    let why = config_in(&with(":80"), &["-l", ":81", "x"]).unwrap_err();
    assert!(why.contains("web.socket (:80), which no -l names"), "{why}");
}

#[test]
fn limits_need_what_they_count() {
    for flag in [
        "--hung-timeout=1s",
        "--max-active=5",
        "--max-connections=5",
        "--max-total=5",
        "--max-queue-wait=1s",
    ] {
        let why = refusal(&["-p", "shared", flag, "x"]);
        let name = flag.split('=').next().unwrap();
        assert!(why.contains(name) && why.contains("least, rr or ip"), "{why}");
        config(&[flag, "x"]);
    }
    config(&["-p", "shared", "--max-lifetime", "1h", "--max-rss", "1G", "x"]);
    for flag in ["--max-total", "--max-active"] {
        let why = refusal(&["--adapter", "fd", "-l", ":0", flag, "5", "x"]);
        assert!(why.starts_with(flag) && why.contains("--adapter fd does not tell"), "{why}");
    }
    assert!(refusal(&["--max-lifetime", "0", "x"]).contains("leave it away"));
    assert!(refusal(&["--max-queue-wait", "0", "x"]).contains("leave it away"));
    assert!(refusal(&["--shed", "reset", "x"]).contains("--max-queue-wait"));
    assert!(refusal(&["--max-queue-wait", "1s", "--shed", "503", "x"]).contains("by reset"));
    let limits = config(&["--max-queue-wait", "1s", "--shed", "reset", "x"]).core.limits;
    assert_eq!(limits.max_queue_wait, Some(Duration::from_secs(1)));
    assert_eq!(config(&["x"]).core.limits, Limits::NONE);
}

#[test]
fn times_bounds_and_signals() {
    assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
    assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
    assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
    assert!(parse_duration("10").unwrap_err().contains("10s or 10ms"));
    assert!(parse_duration("-1s").is_err());
    assert_eq!(parse_bound("1.25"), Ok(1250));
    assert_eq!(parse_bound("2"), Ok(2000));
    for bad in ["0.9", "1.2345", "x", "", ".", "1e3", "1001", "-1", "1.-5"] {
        assert!(parse_bound(bad).is_err(), "{bad}");
    }
    for text in ["QUIT", "SIGQUIT", "quit", "3"] {
        assert_eq!(parse_signal(text), Ok(Signal::SIGQUIT), "{text}");
    }
    assert!(parse_signal("KILL").unwrap_err().contains("--kill-after"));
    assert!(parse_signal("WHAT").is_err());
}

#[test]
fn exit_codes_and_slots() {
    let codes = config(&["--stop-exit-codes", "0,3, 255", "x"]).core.stop_exit_codes;
    let all: Vec<i32> = (-1..300).filter(|code| codes.contains(*code)).collect();
    assert_eq!(all, [0, 3, 255]);
    assert_eq!(config(&["x"]).core.stop_exit_codes, ExitCodes::default());
    for bad in ["256", "-1", "KILL", "", "1,,2"] {
        let why = refusal(&[&format!("--stop-exit-codes={bad}"), "x"]);
        assert!(why.contains("from 0 to 255"), "{bad}: {why}");
    }
    assert_eq!((parse_slot("7"), parse_slot("w0")), (Ok(7), Ok(0)));
    for bad in ["web", "w", "-1", "65536", "ww1"] {
        assert!(parse_slot(bad).unwrap_err().contains("-n web"), "{bad}");
    }
}

#[test]
fn another_number_of_workers() {
    use croupier_core::event::Scale;
    for (text, expected) in [
        ("4", Scale::To(4)),
        ("0", Scale::To(0)),
        ("+1", Scale::Up(1)),
        ("-2", Scale::Down(2)),
        ("1024", Scale::To(1024)),
    ] {
        assert_eq!(parse_scale(text), Ok(expected), "{text}");
    }
    for bad in ["", "+", "-", "--1", "+-1", "four", "1.5", "99999", "1 "] {
        assert!(parse_scale(bad).unwrap_err().contains("as in +1 or -1"), "{bad}");
    }
    assert_eq!(parse_any_signal("kill"), Ok(Signal::SIGKILL));
    assert_eq!(parse_any_signal("10"), Ok(Signal::SIGUSR1));
    assert!(parse_any_signal("0").is_err() && parse_any_signal("boo").is_err());
}

#[test]
fn how_many_a_reload_starts_at_a_time() {
    for (text, workers, expected) in
        [("25%", 4, 1), ("25%", 5, 2), ("1%", 1, 1), ("100%", 1024, 1024), ("3", 8, 3), ("3", 1, 3)]
    {
        assert_eq!(parse_surge(text).unwrap().of(workers), expected, "{text} of {workers}");
    }
    for bad in ["0", "0%", "101%", "-1", "all", "%", "2.5"] {
        assert!(parse_surge(bad).unwrap_err().contains("as in 2"), "{bad}");
    }
    let core = config(&["-w", "8", "--stay", "x"]).core;
    let expected = (Surge::Percent(25), None, true);
    assert_eq!((core.max_surge, core.max_draining, core.restart.stay), expected);
}

#[test]
fn templates_and_variables() {
    let expanded = |text: &str| expand(OsStr::new(text), 3, 17);
    assert_eq!(expanded("port-{slot}-{id}-{slot}"), "port-3-17-3");
    assert_eq!(expanded("{{slot}} {x} {slot"), "{3} {x} {slot");
    let raw = OsStr::from_bytes(b"\xff{id}\xfe");
    assert_eq!(expand(raw, 0, 1).as_bytes(), b"\xff1\xfe");
    let config = config(&["-e", "A=b=c", "--env", "D=", "x"]);
    let pairs = [("A", "b=c"), ("D", "")].map(|(a, b)| (OsString::from(a), OsString::from(b)));
    assert_eq!(config.env, pairs);
    for bad in ["A", "=b", ""] {
        assert!(refusal(&["-e", bad, "x"]).contains("NAME=VALUE"), "{bad}");
    }
}

#[test]
fn the_sticky_key_depends_on_seed_or_name_only() {
    let key = |words: &[&str]| config(words).core.sticky_key;
    assert_eq!(key(&["a.py"]), key(&["-w", "2", "a.py"]));
    assert_ne!(key(&["a.py"]), key(&["b.py"]));
    assert_eq!(key(&["--sticky-seed", "s", "a"]), key(&["--sticky-seed", "s", "b"]));
    // FNV-1a's published value for no bytes: the constants are right, and stay.
    assert_eq!(sticky_key(""), [0x6c62_272e_07bb_0142, 0x62b8_2175_6295_c58d]);
    assert_eq!(sticky_key("a"), [0xd228_cb69_6f1a_8caf, 0x7891_2b70_4e4a_8964]);
}

#[test]
fn users_and_groups() {
    let ids = |user, group| resolve_ids(user, group);
    assert_eq!(ids(None, None).unwrap(), None);
    assert!(ids(Some("no-such-user"), None).unwrap_err().to_string().contains("no such user"));
    assert!(ids(None, Some("no-such-group")).unwrap_err().to_string().contains("no such group"));
    let own = nix::unistd::getuid().to_string();
    let found = ids(Some(&own), None).unwrap().unwrap();
    assert_eq!(found.uid, nix::unistd::getuid());
    if geteuid().is_root() {
        let strange = ids(Some("54321"), Some("7")).unwrap().unwrap();
        assert_eq!((strange.uid.as_raw(), strange.gid.as_raw()), (54321, 7));
        assert_eq!(
            (strange.groups.as_slice(), strange.user_name),
            ([Gid::from_raw(7)].as_slice(), None)
        );
    } else {
        assert!(ids(Some("root"), None).unwrap_err().to_string().contains("only root"));
    }
}

#[test]
fn ports_for_programs() {
    let port = |text: &str| program_port(&parse_listen(text).unwrap());
    assert_eq!(port(":80"), Some(80));
    assert_eq!(port(":80=3000"), Some(3000));
    assert_eq!(port("/a"), None);
    assert_eq!(port(":80=/a"), None);
    assert_eq!(port("/a=81"), Some(81));
}
