//! Driving a running primary: `croupier scale`, `pause`, `resume`, `restart`, `kill`, and the signals
//! that mean the same.
//!
//! Owns the words; the core decides. A client waits as with slots by hand (`hands`).

use std::fs::File;

use croupier_core::Want;
use croupier_core::event::{Event, PauseFault, Scale, ScaleFault, SlotId, WorkerId};
use nix::sys::signal::Signal;

use super::announce::{plural, plural_of};
use super::hands::Goal;
use super::process;
use super::run::Primary;
use crate::config::WORKERS_MAX;
use crate::control::messages::{Reply, ScaleBy};
use crate::control::server::ClientId;

/// Why what was asked for last does not happen, and who paused.
#[derive(Debug, Default)]
pub(super) struct Driving {
    asked: Asked,
    /// All are paused because of a WINCH: a HUP ends that.
    by_signal: bool,
}

/// What was asked for last.
#[derive(Debug, Default)]
enum Asked {
    /// Nothing, or nobody waits for the answer any more.
    #[default]
    Nothing,
    /// Another number of slots. As far as is known it happens.
    Scale,
    /// Something else. As far as is known it happens.
    Something,
    /// It does not, and why.
    Refused(String),
}

impl Primary {
    /// Why what `event` asks for does not happen, if it does not.
    fn ask_for(&mut self, event: Event) -> Option<String> {
        let scale = matches!(event, Event::ScaleAsked(_));
        self.driving.asked = if scale { Asked::Scale } else { Asked::Something };
        self.tell(event);
        self.settle();
        match std::mem::take(&mut self.driving.asked) {
            Asked::Refused(why) => Some(why),
            Asked::Nothing | Asked::Scale | Asked::Something => None,
        }
    }

    /// `croupier scale`.
    pub(super) fn scale(&mut self, client: ClientId, by: ScaleBy, wait: bool) -> Option<Reply> {
        self.settle();
        let from = self.core.slot_count();
        log::info!("scale {} (asked by croupier scale)", words_of_scale(by.into()));
        if let Some(why) = self.ask_for(Event::ScaleAsked(by.into())) {
            return Some(Reply::Failed { why });
        }
        let to = self.core.slot_count();
        let text = if from == to {
            format!("there are {} already", plural(to.into(), "slot"))
        } else {
            format!("{} instead of {from}", plural(to.into(), "slot"))
        };
        self.commands.say_to(client, &text, self.poll.registry());
        let slots = |range: std::ops::Range<u16>| range.map(SlotId).collect::<Vec<_>>();
        let (goal, slots) =
            if to < from { (Goal::Removed, slots(to..from)) } else { (Goal::Up, slots(from..to)) };
        if to < from && wait {
            for slot in &slots {
                for text in self.leaving_of(*slot) {
                    self.commands.say_to(client, &text, self.poll.registry());
                }
            }
        }
        self.wait_for(client, goal, slots, wait)
    }

    /// TTIN and TTOU.
    pub(super) fn scale_by_signal(&mut self, scale: Scale, signal: &str) {
        log::info!("scale {} (asked by {signal})", words_of_scale(scale));
        if let Some(why) = self.ask_for(Event::ScaleAsked(scale)) {
            log::warn!("no scale: {why}");
        }
    }

    /// `croupier pause`.
    pub(super) fn pause(&mut self, client: ClientId, slots: &[u16]) -> Reply {
        if let Some(why) = self.refusal(slots) {
            return Reply::Failed { why };
        }
        for slot in which(slots) {
            if let Some(why) = self.ask_for(Event::PauseAsked { slot }) {
                return Reply::Failed { why };
            }
        }
        self.driving.by_signal = false;
        let held = match slots {
            [] => plural_of(self.connections_held(), "connection"),
            _ => {
                let views: Vec<_> = self.core.slots().collect();
                let there = slots.iter().filter_map(|slot| views.get(usize::from(*slot))?.worker);
                let held: Vec<String> = there.map(|worker| self.held_by(worker)).collect();
                held.join(", ")
            }
        };
        let text = match slots {
            [] => format!("paused: new clients wait in the backlog; {held} not yet closed"),
            _ => format!("paused: new clients go to the other slots; not yet closed here: {held}"),
        };
        self.commands.say_to(client, &text, self.poll.registry());
        Reply::Done
    }

    /// `croupier resume`.
    pub(super) fn resume(&mut self, client: ClientId, slots: &[u16]) -> Reply {
        if let Some(why) = self.refusal(slots) {
            return Reply::Failed { why };
        }
        for slot in which(slots) {
            self.tell(Event::ResumeAsked { slot });
        }
        self.settle();
        if slots.is_empty() {
            self.driving.by_signal = false;
        } else if self.core.is_paused() {
            let text = "all are paused still: croupier resume, without a slot, ends that";
            self.commands.say_to(client, text, self.poll.registry());
        }
        Reply::Done
    }

    /// WINCH: also what the kernel sends when the window of a terminal changes its size, to the
    /// foreground of that terminal and nobody else.
    pub(super) fn pause_by_signal(&mut self) {
        if is_in_foreground() {
            return log::debug!("WINCH is ignored in the foreground of a terminal: it was resized");
        }
        let was_paused = self.core.is_paused();
        log::info!("pause (asked by WINCH)");
        match self.ask_for(Event::PauseAsked { slot: None }) {
            Some(why) => log::warn!("no pause: {why}"),
            None => self.driving.by_signal |= !was_paused,
        }
    }

    /// HUP: the end of a pause that WINCH began.
    pub(super) fn resume_by_signal(&mut self) {
        if std::mem::take(&mut self.driving.by_signal) {
            log::info!("resume (asked by HUP, after WINCH)");
            self.tell(Event::ResumeAsked { slot: None });
        }
    }

    /// `croupier restart`.
    pub(super) fn restart(&mut self, client: ClientId, slots: &[u16], wait: bool) -> Option<Reply> {
        if let Some(why) = self.refusal(slots) {
            return Some(Reply::Failed { why });
        }
        let views: Vec<_> = self.core.slots().collect();
        let named = |slot: &SlotId| slots.is_empty() || slots.contains(&slot.0);
        let views: Vec<_> = views.into_iter().filter(|view| named(&view.slot)).collect();
        let down = views.iter().find(|view| view.want != Want::Up && !slots.is_empty());
        if let Some(down) = down {
            let why = format!("slot {0} is stopped; croupier start {0} starts it", down.slot.0);
            return Some(Reply::Failed { why });
        }
        let views: Vec<_> = views.into_iter().filter(|view| view.want == Want::Up).collect();
        if views.is_empty() {
            let why =
                "every slot is stopped: there is nobody to restart; croupier start SLOT starts one";
            return Some(Reply::Failed { why: why.into() });
        }
        for view in &views {
            log::info!("slot {}: restart (asked by croupier restart)", view.slot.0);
            self.tell(Event::RestartAsked { slot: view.slot });
        }
        if !wait {
            return Some(Reply::Done);
        }
        for view in views {
            // One that starts is waited for as it is.
            let goal = match (view.state, view.worker) {
                ("up", Some(worker)) => Goal::Restarted(worker),
                _ => Goal::Up,
            };
            let answer = self.wait_for(client, goal, vec![view.slot], true);
            debug_assert!(answer.is_none(), "it waits for a slot");
        }
        self.settle();
        None
    }

    /// `croupier kill`.
    pub(super) fn kill(&mut self, client: ClientId, slot: u16, signal: i32) -> Reply {
        if let Some(why) = self.refusal(&[slot]) {
            return Reply::Failed { why };
        }
        let Ok(signal) = Signal::try_from(signal) else {
            return Reply::Failed { why: format!("there is no signal {signal}") };
        };
        let view = self.core.slots().nth(usize::from(slot));
        let worker = view.and_then(|view| view.worker).and_then(|id| self.workers.get(id));
        let Some(worker) = worker.filter(|worker| worker.is_running()) else {
            return Reply::Failed { why: format!("slot {slot} has no worker now") };
        };
        process::signal_group(worker, signal);
        let (id, pid) = (worker.id.0, worker.pid);
        let text = format!("slot {slot}: {signal} to worker {id} (process group {pid})");
        log::info!("{text} (asked by croupier kill)");
        self.commands.say_to(client, &text, self.poll.registry());
        Reply::Done
    }

    pub(super) fn scale_refused(&mut self, why: ScaleFault) {
        let why = words_of_fault(why);
        if self.is_scaled_by_hand() {
            self.driving.asked = Asked::Refused(why);
        } else {
            self.step(&format!("the number of workers stays as it is: {why}"));
        }
    }

    pub(super) fn pause_refused(&mut self, why: PauseFault) {
        self.driving.asked = Asked::Refused(match why {
            PauseFault::Stopping => "it is stopping".to_owned(),
            PauseFault::ByThemselves => format!(
                "under policy {} workers accept by themselves; croupier stop SLOT… makes clients wait",
                self.policy()
            ),
        });
    }

    pub(super) fn scaled(&mut self, from: u16, to: u16) {
        self.note_scale(from, to);
        self.hands.resize(to);
        if self.is_scaled_by_hand() {
            for slot in to..from {
                self.slot_stopped(SlotId(slot));
            }
        } else {
            self.note_slots_of_reload(from, to);
        }
        self.note_max_rss();
    }

    /// Whether the number of slots that the core speaks of is an operator's; else it is the file's.
    const fn is_scaled_by_hand(&self) -> bool {
        matches!(self.driving.asked, Asked::Scale)
    }

    /// A restart did not hold: whoever waits for it hears that.
    pub(super) fn restart_failed(&mut self, slot: SlotId, why: &str) {
        self.hands.fail_restart(slot, why);
    }

    /// Whether a slot has been given another worker than `old`, and that has gone; in words, how far.
    pub(super) fn has_replaced(&self, slot: SlotId, old: WorkerId) -> Option<String> {
        let view = self.core.slots().nth(usize::from(slot.0))?;
        let new = view.worker.filter(|new| view.state == "up" && *new != old)?;
        let there =
            self.workers.get(old).is_some_and(|old| old.is_running() || old.burying.is_some());
        (!there).then(|| format!("slot {}: worker {} instead of worker {}", slot.0, new.0, old.0))
    }
}

/// For the log.
pub(super) fn words_of_pause(slot: Option<SlotId>) -> String {
    match slot {
        None => "paused: clients wait in the backlog until croupier resume".to_owned(),
        Some(slot) => format!("slot {} is paused until croupier resume {0}", slot.0),
    }
}

/// For the log.
pub(super) fn words_of_resume(slot: Option<SlotId>) -> String {
    slot.map_or_else(|| "resumed".to_owned(), |slot| format!("slot {} is resumed", slot.0))
}

/// `None` for all.
fn which(slots: &[u16]) -> Vec<Option<SlotId>> {
    match slots {
        [] => vec![None],
        some => some.iter().map(|slot| Some(SlotId(*slot))).collect(),
    }
}

fn words_of_scale(scale: Scale) -> String {
    match scale {
        Scale::To(count) => format!("to {count}"),
        Scale::Up(count) => format!("by +{count}"),
        Scale::Down(count) => format!("by -{count}"),
    }
}

fn words_of_fault(why: ScaleFault) -> String {
    match why {
        ScaleFault::Zero => {
            "that leaves no slot: croupier pause lets clients wait, croupier stop ends \
                             everything"
                .to_owned()
        }
        ScaleFault::TooMany => format!("a croupier has at most {WORKERS_MAX} slots"),
        ScaleFault::NobodyLeft => {
            "none of the slots that would stay is up, so nobody would serve; \
                                   croupier status shows why, croupier start SLOT starts one"
                .to_owned()
        }
        ScaleFault::Stopping => "it is stopping".to_owned(),
    }
}

/// Whether this process is in the foreground of a terminal.
fn is_in_foreground() -> bool {
    let Ok(terminal) = File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}
