//! One worker of four turns on its croupier, in every way that is known: the three others go on
//! serving, the loop does not stop, and the offender is replaced where it harms, and nobody else.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use croupier_tests::{
    Client, Croupier, Figure, Guard, Outcome, PATIENCE, Status, field_of_status, figure, fixture,
    hammer, observe, skip, soak, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Connections that the other workers serve at least while one attacks.
const SERVED: usize = 100;
/// How long an attack goes on that nobody ends.
const LASTS: Duration = Duration::from_millis(500);
/// The longest turn of the loop that a soak allows, in microseconds, waiting for a CPU aside.
const TURN_MAX_US: u64 = 10_000;

/// What becomes of the offender.
enum Fate {
    /// croupier replaces it, and says this.
    Replaced(&'static str),
    /// It harms nobody, so it stays; what happens instead.
    Stays(&'static str),
}

struct Attack {
    /// The fixture's name for it.
    how: &'static str,
    /// Connections that may be lost with it: what it had taken, or destroyed in its own channel.
    lost_max: usize,
    fate: Fate,
    /// What the offender says of it itself.
    says: Option<&'static str>,
    /// Clients that ask at the same time meanwhile.
    clients: usize,
}

impl Attack {
    const fn replaced(how: &'static str, line: &'static str) -> Self {
        Self { how, lost_max: 1, fate: Fate::Replaced(line), says: None, clients: 8 }
    }

    const fn stays(how: &'static str, instead: &'static str) -> Self {
        Self { how, lost_max: 0, fate: Fate::Stays(instead), says: None, clients: 8 }
    }

    const fn says(mut self, line: &'static str) -> Self {
        self.says = Some(line);
        self
    }

    /// So many that queues form, and nobody is ever idle.
    const fn saturated(mut self) -> Self {
        self.clients = 64;
        self
    }

    const fn loses(mut self, most: usize) -> Self {
        self.lost_max = most;
        self
    }
}

struct Scene<'guard> {
    guard: &'guard Guard,
    croupier: Croupier<'guard>,
    port: u16,
    before: Status,
}

impl<'guard> Scene<'guard> {
    fn new(guard: &'guard Guard) -> Self {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/hostile.c").as_ref();
        let program = fixture(source, &guard.path("hostile"), &["-pthread"]);
        let port = guard.port();
        let socket: PathBuf = guard.path(format!("run/croupier/{}-0.sock", guard.name()));
        let port_word = port.to_string();
        let flags = ["-w", "4", "--slow-start", "0", "--"];
        let mut args: Vec<std::ffi::OsString> = flags.map(Into::into).into();
        args.extend([program.into(), port_word.into(), guard.path("counts").into(), socket.into()]);
        let croupier = guard.run(args).ready();
        let before = croupier.status();
        Self { guard, croupier, port, before }
    }

    /// The ids of the workers that serve, by slot.
    fn ids(status: &Status) -> Vec<Option<u32>> {
        (0..4).map(|slot| status.slot(slot).and_then(|worker| worker.id)).collect()
    }

    /// Load until the offender's fate is reached and the others have served enough.
    fn under_load(&self, attack: &Attack, offender: u32) -> Outcome {
        let over = AtomicUsize::new(usize::MAX);
        let asked = AtomicUsize::new(0);
        let client = Client::port(self.port);
        let path = |number: usize| {
            asked.store(number, Ordering::Relaxed);
            (number < over.load(Ordering::Relaxed)).then(|| "/".to_owned())
        };
        std::thread::scope(|scope| {
            let load = scope.spawn(|| hammer(&client, attack.clients, usize::MAX, path));
            let ended = Ended(&over);
            if let Some(line) = attack.says {
                self.croupier.wait_for_line(line);
            }
            match attack.fate {
                Fate::Replaced(_) => self.croupier.wait_status("its replacement", |status| {
                    let ids = Self::ids(status);
                    (!ids.contains(&Some(offender)) && !ids.contains(&None)).then_some(())
                }),
                Fate::Stays(_) => observe(LASTS),
            }
            wait_until(PATIENCE, "enough requests of the others", || {
                let asked = asked.load(Ordering::Relaxed);
                if asked > 2 * SERVED { Ok(()) } else { Err(asked) }
            });
            drop(ended);
            load.join().unwrap()
        })
    }
}

/// Ends the load, also when an assertion fails.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

fn run(name: &'static str, attack: &Attack) {
    let guard = Guard::new(name);
    let scene = Scene::new(&guard);
    let table = || field_of_status(scene.croupier.pid(), "FDSize");
    let table_before = table();
    let before = Scene::ids(&scene.before);
    let turn_before = scene.before.totals.longest_turn_us;
    let how = format!("/attack?how={}", attack.how);
    let pid = Client::port(scene.port).get(&how).unwrap().pid().unwrap();
    let offender = scene.before.ready().find(|worker| worker.pid == Some(pid)).unwrap();
    let (offender, slot) = (offender.id.unwrap(), usize::from(offender.slot));
    let outcome = scene.under_load(attack, offender);

    let mut served = [0_usize; 4];
    for reply in &outcome.replies {
        let by = scene.before.ready().find(|worker| worker.pid == reply.pid());
        if let Some(count) = by.and_then(|by| served.get_mut(usize::from(by.slot))) {
            *count += 1;
        }
    }
    if let Some(own) = served.get_mut(slot) {
        *own = 0;
    }
    let others: usize = served.iter().sum();
    let lost = outcome.failures.len();
    let instead = match attack.fate {
        Fate::Replaced(line) => {
            scene.croupier.wait_for_line(line);
            "replaced"
        }
        Fate::Stays(instead) => {
            // Ended by its parent's death, it leaves its queue and nothing else.
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            instead
        }
    };
    let after = scene.croupier.wait_status("four workers", |status| {
        let ids = Scene::ids(status);
        (!ids.contains(&None) && !ids.contains(&Some(offender))).then(|| status.clone())
    });
    wait_until(PATIENCE, "the end of its family", || match scene.guard.family(offender) {
        left if left.is_empty() => Ok(()),
        left => Err(left),
    });
    let others_of = |mut ids: Vec<Option<u32>>| {
        ids.remove(slot);
        ids
    };
    assert_eq!(others_of(Scene::ids(&after)), others_of(before), "nobody else is replaced");
    let others_left = served.iter().filter(|count| **count > 0).count();
    let turn = after.totals.longest_turn_us;
    let wait = after.totals.longest_wait_us;
    assert_eq!(table(), table_before, "a table of descriptors that grows stops the loop");
    let last = hammer(&Client::port(scene.port), 4, 40, |_| Some("/".to_owned()));
    assert_eq!(last.failures, []);
    scene.croupier.stop_well();
    let at_most = if turn == turn_before { "at most " } else { "" };
    figure(&Figure {
        item: &format!("replace 4 attack {}", attack.how),
        measured: format!(
            "{instead}; others served {others}, lost {lost}, longest turn {at_most}{turn} us (and \
             {wait} us of waiting for a CPU in one)",
        ),
        goal: &format!("others >= {SERVED}, lost <= {}, turn < 10 ms", attack.lost_max),
        met: others >= SERVED
            && others_left == 3
            && lost <= attack.lost_max
            && (!soak() || turn < TURN_MAX_US),
    });
}

#[test]
fn shuts_its_channel_down() {
    run("attack-shutdown", &Attack::replaced("shutdown", "broke its channel"));
}

/// A copy cannot be taken from it. What waits in its channel is served by the others; a server that
/// closes without shutdown(2) leaves its client without an end of file as long as the copy lives.
#[test]
fn peeks_at_its_channel() {
    run("attack-peek", &Attack::stays("peek", "what it looks at is served by others"));
}

#[test]
fn makes_its_channel_block() {
    run("attack-blocking", &Attack::stays("blocking", "nobody relies on O_NONBLOCK"));
}

#[test]
fn drops_what_comes_through_its_channel() {
    // What its filter drops is gone: a window full, until its count is found not to grow.
    let attack = Attack::replaced("filter", "does not fit what it was given").loses(64);
    run("attack-filter", &attack);
}

#[test]
fn sends_rubbish_from_its_children() {
    run("attack-rubbish", &Attack::replaced("rubbish", "sent something that is no question"));
}

#[test]
fn asks_without_end() {
    run("attack-flood", &Attack::replaced("flood", "floods the control socket"));
}

#[test]
fn forges_tokens() {
    run("attack-token", &Attack::replaced("token", "asked with a token that no worker has"));
}

/// A process that nothing connects with a worker floods the workers' control socket.
#[test]
fn lets_a_stranger_flood() {
    run("attack-stranger", &Attack::stays("stranger", "nobody can be blamed"));
}

#[test]
fn floods_the_operators_socket() {
    run("attack-control", &Attack::stays("control", "anybody of this user may command"));
}

#[test]
fn forges_its_counters() {
    run("attack-forged", &Attack::replaced("forged", "does not fit what it was given"));
}

#[test]
fn zeroes_its_counters() {
    run("attack-zeroed", &Attack::replaced("zeroed", "does not fit what it was given"));
}

/// One connection that really waits in its channel must not make the others look as if they did.
#[test]
fn hides_its_claims_behind_one_that_waits() {
    let attack = Attack::replaced("hides", "does not fit what it was given");
    let attack = attack.saturated().says("hides what it claims");
    run("attack-hides", &attack);
}

/// It looks idle, so everybody is dealt to it, and would wait there for ever.
#[test]
fn says_that_it_has_claimed_everything() {
    run("attack-boasts", &Attack::replaced("boasts", "does not fit what it was given"));
}

#[test]
fn truncates_its_page() {
    let attack = Attack::replaced("truncate", "does not fit what it was given");
    run("attack-truncate", &attack.says("truncation: 4 of 4 refused, hole 0"));
}

#[test]
fn rings_without_end() {
    run("attack-bell", &Attack::stays("bell", "each ring is a look"));
}

#[test]
fn holds_the_lock_of_its_channel() {
    const NAME: &str = "holds_the_lock_of_its_channel";
    let unprivileged = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    if !nix::unistd::geteuid().is_root() && unprivileged.is_ok_and(|value| value.trim() != "1") {
        skip!(NAME, "needs root or vm.unprivileged_userfaultfd");
    }
    let attack = Attack::replaced("userfaultfd", "holds the lock of its channel");
    run("attack-userfaultfd", &attack.says("userfaultfd stands"));
}

#[test]
fn sends_descriptors_up() {
    let attack = Attack::stays("descriptors", "they are closed where it holds up nobody");
    run("attack-descriptors", &attack.says("up the channel: Broken pipe"));
}

#[test]
fn starts_two_hundred_processes() {
    let attack = Attack::stays("bomb", "its family ends with it");
    run("attack-bomb", &attack.says("200 processes"));
}
