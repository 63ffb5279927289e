//! Every server of `programs`: dealt evenly one by one, and without an error under load.

use std::collections::BTreeMap;

use croupier_tests::{
    Client, Croupier, Figure, Guard, Status, figure, skip, soak_or, wait_until, wrk,
};

use crate::programs::{self, Program, Recipe};

const WORKERS: u16 = 3;
const REQUESTS: u64 = 12;
const CLIENTS: u32 = 64;

macro_rules! servers {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            serves_evenly(stringify!($name), programs::$name);
        })+
    };
}

servers!(
    python_http_server,
    python_blocking,
    python_asyncio,
    flask_debug,
    gunicorn_sync,
    gunicorn_gthread,
    uvicorn,
    uvicorn_workers,
    node_http,
    npm_start_express,
    nginx_single,
    nginx_two_workers,
    java_httpserver,
    java_serversocket,
    php,
    ruby,
    rust_std,
    epoll_before_listen,
    shim_echo,
    shim_pool,
    shim_axum,
    shim_bare,
    shim_c,
);

fn serves_evenly(name: &'static str, recipe: Recipe) {
    let guard = Guard::new(name);
    let port = guard.port();
    let program = match recipe(&guard, port) {
        Ok(program) => program,
        Err(missing) => skip!(name, "{missing}"),
    };
    let under_rr = start(&guard, &program, "rr");
    let dealt = one_by_one(&under_rr, port, |_| {});
    let loaded = under_load(&guard, &under_rr, port);
    under_rr.stop_well();

    let under_least = start(&guard, &program, "least");
    // With nothing open between two requests, least is exact round robin too.
    let least = one_by_one(&under_least, port, |croupier| {
        croupier.wait_status("nothing open", |status| (status.open() == (0, 0)).then_some(()));
    });
    under_least.stop_well();

    let even: BTreeMap<u16, u64> = (0..WORKERS).map(|slot| (slot, 4)).collect();
    figure(&Figure {
        item: &format!("2 {name}"),
        measured: format!("rr {dealt:?} least {least:?}; {loaded}"),
        goal: "4 each; 0 errors, every worker used",
        met: dealt == even && least == even,
    });
}

fn start<'guard>(guard: &'guard Guard, program: &Program, policy: &str) -> Croupier<'guard> {
    let workers = WORKERS.to_string();
    let mut args: Vec<std::ffi::OsString> =
        // A worker that a busy machine holds up for 100 ms would be stolen from and probed, which is
        // right and counts as a hand-off; here only the order matters.
        ["-w", &workers, "-p", policy, "--stall-after", "10s"].iter().map(Into::into).collect();
    args.extend(program.flags.iter().map(Into::into));
    args.push("--".into());
    args.extend(program.command.iter().cloned());
    let started = guard.run_with(args, |command| {
        command.envs(program.env.iter().map(|(name, value)| (name, value)));
    });
    started.ready()
}

/// Twelve requests, one after another; what each slot was dealt.
fn one_by_one(
    croupier: &Croupier<'_>,
    port: u16,
    between: impl Fn(&Croupier<'_>),
) -> BTreeMap<u16, u64> {
    let client = Client::port(port);
    let before = settled(croupier, 0);
    for _ in 0..REQUESTS {
        between(croupier);
        let reply = client.get("/").unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let after = settled(croupier, before.totals.handed_off + REQUESTS);
    assert!(after.workers.iter().all(|worker| worker.restarts == Some(0)), "{after:?}");
    let before = before.dealt();
    after.dealt().into_iter().map(|(slot, n)| (slot, n - before.get(&slot).unwrap_or(&0))).collect()
}

/// The status once at least this many were handed off and all of them claimed.
fn settled(croupier: &Croupier<'_>, handed_off: u64) -> Status {
    croupier.wait_status("everything claimed", |status| {
        (status.totals.handed_off >= handed_off && status.open().0 == 0).then(|| status.clone())
    })
}

/// Many clients at once: no errors, and no worker left out.
fn under_load(guard: &Guard, croupier: &Croupier<'_>, port: u16) -> String {
    let before = croupier.status().dealt();
    let Some(run) = wrk(guard, port, "/", CLIENTS, &["-d", soak_or("3s", "1s")]) else {
        return "wrk is not installed".to_owned();
    };
    assert_eq!(run.failed(), 0, "{}", run.text);
    assert!(run.requests > 0, "{}", run.text);
    let after = croupier.status();
    let used = after.dealt().into_iter().filter(|(slot, n)| n > before.get(slot).unwrap_or(&0));
    assert_eq!(used.count(), usize::from(WORKERS), "a worker was left out: {after:?}");
    // wrk has gone: whoever is still busy must come to an end, or a connection was lost.
    wait_until(croupier_tests::PATIENCE, "all connections of wrk to end", || {
        let status = croupier.status();
        if status.open() == (0, 0) { Ok(()) } else { Err(status.workers) }
    });
    format!("wrk {} answers, {:.0}/s", run.requests, run.rate)
}
