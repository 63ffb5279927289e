//! What goes on while a call fails.

use std::sync::atomic::{AtomicBool, Ordering};

use croupier_tests::{Croupier, Failure, PATIENCE, Status, hammer, stop_process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{During, Seen, Stage, soaked_in};

/// Requests that nobody comes to the end of: their load ends when it is told to.
const ENDLESS: usize = 1_000_000;

/// How often a command is given.
const TRIES_MAX: usize = 3;

impl During {
    /// What a primary needs for it beyond the flags that all have.
    pub(super) const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Requests
            | Self::Commands
            | Self::Restart
            | Self::Reload
            | Self::Slots
            | Self::Stop
            | Self::Start => &["--stall-after", "10s"],
            Self::Hung => &["--stall-after", "10s", "--hung-timeout", "1s", "--min-uptime", "0"],
            // Late only after what is queued at a worker was seen and the worker killed. Its successor is
            // ready by what the disposal thread reads.
            Self::Salvage => &["--stall-after", "500ms", "--min-uptime", "0", "--ready", "notify"],
        }
    }

    /// Whether a worker is lost, and replaced.
    pub(super) const fn kills(self) -> bool {
        match self {
            Self::Restart | Self::Salvage | Self::Hung => true,
            Self::Requests
            | Self::Commands
            | Self::Reload
            | Self::Slots
            | Self::Stop
            | Self::Start => false,
        }
    }
}

impl Stage<'_> {
    /// What goes on while a call fails, with everybody settled before and after. By the failed call so many
    /// workers' channels seem `broken`.
    pub(super) fn stimulate(&self, during: During, broken: usize) -> Seen {
        let croupier = self.croupier.as_ref().unwrap();
        match during {
            During::Requests => self.ask(12, 48, 3),
            During::Commands => {
                let mut seen = self.ask(2, 8, 0);
                for words in [&["status", "--json"][..], &["wait", "ready", "--timeout", "3s"]] {
                    let answer = croupier.ask(words);
                    if answer.code != Some(0) {
                        let why = answer.stderr.trim();
                        seen.note = format!("{words:?} {:?}: {why}", answer.code);
                    }
                    if !matches!(answer.code, Some(0 | 1 | 3)) || answer.stderr.contains("panicked")
                    {
                        seen.faults.push(format!("{words:?} ended with {answer:?}"));
                    }
                }
                seen
            }
            During::Restart => {
                let program = self.program.display().to_string();
                let all = self.guard.processes();
                let victim = all.iter().find(|one| one.command.starts_with(&program)).unwrap();
                kill(Pid::from_raw(victim.pid), Signal::SIGKILL).unwrap();
                self.ask(4, 40, 3)
            }
            During::Reload => std::thread::scope(|scope| {
                let load = scope.spawn(|| self.ask(4, 60, 3));
                let reload = croupier.ask(&["reload"]);
                let mut seen = load.join().unwrap();
                if reload.code != Some(0) {
                    seen.note = format!("reload: {}", reload.stderr.lines().last().unwrap_or(""));
                }
                if !matches!(reload.code, Some(0 | 1)) {
                    seen.faults
                        .push(format!("reload ended with {:?}: {}", reload.code, reload.stderr));
                }
                seen
            }),
            During::Salvage => self.salvage(broken),
            During::Slots => self.slots(broken),
            During::Hung => self.hung(broken),
            During::Stop | During::Start => Seen::default(),
        }
    }

    /// Clients, twelve at a time, until `act` is over, which ends so many workers. What it says is a fault.
    fn under_load(
        &self,
        ends: usize,
        act: impl FnOnce(&Croupier<'_>) -> Result<(), String>,
    ) -> Seen {
        let croupier = self.croupier.as_ref().unwrap();
        let first = self.next.fetch_add(ENDLESS, Ordering::Relaxed);
        let (over, client) = (AtomicBool::new(false), self.client());
        let path = |number| {
            let asks = !over.load(Ordering::Relaxed);
            asks.then(|| format!("/count?n={}&ms=2", first + number))
        };
        let (said, outcome) = std::thread::scope(|scope| {
            let load = scope.spawn(|| hammer(&client, 12, ENDLESS, path));
            let ended = Ended(&over);
            let said = act(croupier);
            drop(ended);
            (said, load.join().unwrap())
        });
        let mut seen = self.judge(&outcome, first, ENDLESS);
        seen.faults.extend(said.err());
        // Only what it had claimed ends with a worker, one connection; what is lost silently hangs.
        if outcome.failures.len() > ends
            || outcome.failures.iter().any(|one| matches!(one, Failure::Hung(_)))
        {
            seen.faults.push(format!("these failed: {:?}", outcome.failures));
        }
        seen
    }

    /// A stopped worker is killed with connections queued at it; then another is stopped until it is late
    /// and was stolen from, and killed too, with the probe that it has not taken.
    fn salvage(&self, broken: usize) -> Seen {
        self.under_load(2 + broken, |croupier| {
            let (before, first, second) = see(croupier, "two ready workers", |status| {
                let pid = |slot| status.slot(slot)?.pid;
                Some((status.totals, pid(0)?, pid(1)?))
            })?;
            let end = |pid| match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) => Ok(()),
                Err(error) => Err(format!(
                    "{pid} was ended by somebody else: {error}; {}",
                    croupier.stderr().text()
                )),
            };
            stop_process(first);
            see(croupier, "connections queued at the stopped worker", |status| {
                (status.slot(0)?.queued > Some(0)).then_some(())
            })?;
            end(first)?;
            see(croupier, "them back, and a successor", |status| {
                let salvaged = status.totals.salvaged > before.salvaged;
                (salvaged && status.slot(0)?.pid != Some(first)).then_some(())
            })?;
            stop_process(second);
            let stolen = see(croupier, "a late worker's connections elsewhere", |status| {
                (status.totals.stolen > before.stolen).then_some(())
            });
            let ended = end(second);
            stolen.and(ended)?;
            see(croupier, "its successor", |status| {
                (status.slot(1)?.pid != Some(second)).then_some(())
            })
        })
    }

    /// What an operator does with slots. A command whose call failed is given again, as he would.
    fn slots(&self, broken: usize) -> Seen {
        let mut again = String::new();
        let mut seen = self.under_load(1 + broken, |croupier| {
            let all = ["stop 0", "start 0", "scale 3", "scale 2", "pause", "resume"];
            all.into_iter().try_for_each(|words| {
                let args: Vec<&str> = words.split(' ').collect();
                let mut answer = croupier.ask(&args);
                for _ in 1..TRIES_MAX {
                    if answer.code == Some(0) {
                        break;
                    }
                    again = format!("{words} {:?}: {}", answer.code, answer.stderr.trim());
                    answer = croupier.ask(&args);
                }
                let done = answer.code == Some(0) && !answer.stderr.contains("panicked");
                if done { Ok(()) } else { Err(format!("{words}: {answer:?}")) }
            })
        });
        if !again.is_empty() {
            seen.note = again;
        }
        seen
    }

    /// A stopped worker is taken for one that hangs.
    fn hung(&self, broken: usize) -> Seen {
        self.under_load(1 + broken, |croupier| {
            let (hung, pid) = see(croupier, "a ready worker", |status| {
                Some((status.totals.hung, status.slot(0)?.pid?))
            })?;
            stop_process(pid);
            see(croupier, "the stopped worker replaced", |status| {
                let next = status.slot(0)?.pid != Some(pid);
                // It may be its own channel that seems broken.
                (next && (status.totals.hung > hung || broken > 0)).then_some(())
            })
        })
    }
}

/// Ends the load also when an assertion fails, so that the test reports it and does not hang.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for a status like this. It is asked for again where the question itself was what failed.
fn see<T>(
    croupier: &Croupier<'_>,
    what: &str,
    look: impl Fn(&Status) -> Option<T>,
) -> Result<T, String> {
    let (mut last, mut found) = (String::new(), None);
    soaked_in(PATIENCE, || {
        let answer = croupier.ask(&["status", "--json"]);
        found = serde_json::from_str(&answer.stdout).ok().as_ref().and_then(&look);
        last = format!("{} {}", answer.stdout, answer.stderr);
        found.is_some()
    });
    found.ok_or_else(|| format!("never {what}: {last}"))
}
