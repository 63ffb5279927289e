//! Signals and the command line's control socket: what the operator wants.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::path::Path;

use croupier_core::event::{Event, Generation, Scale};
use mio::{Registry, Token};
use signal_hook::consts::signal::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH,
};

use super::run::{EXHAUSTED_WAIT, Primary};
use crate::config::LogFormat;
use crate::control::messages::{Awaited, Happening, Reply, Request};
use crate::control::place::{Place, PlaceError};
use crate::control::server::{Backlog, ClientId, ControlServer};
use crate::output::Wanted;

/// Statuses that are made up in one turn of the loop: with many workers each is work.
const STATUSES_PER_TURN_MAX: usize = 4;

/// The control socket, if there is one, and who waits on it.
#[derive(Debug)]
pub(super) struct Commands {
    place: Result<Place, String>,
    server: Option<ControlServer>,
    /// Who waits for a status: at most every client of the server.
    curious: VecDeque<ClientId>,
    waiting: Vec<ClientId>,
    reloads: Vec<Reloader>,
    interrupts: u32,
    pub(super) ending: Ending,
    terminal: Terminal,
}

/// Whether the operator wants an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Not yet.
    No,
    /// A graceful one.
    Asked,
    /// `stop --now`: a success, unlike a second Ctrl-C.
    Killed,
}

/// Who waits for a reload.
#[derive(Debug)]
struct Reloader {
    client: ClientId,
    /// For which one; `None` while it queues.
    generation: Option<Generation>,
    /// Why it failed.
    failed: Option<String>,
}

/// The terminal that the primary was started from.
#[derive(Debug)]
enum Terminal {
    /// Its end is ours.
    Ours,
    /// There was none, or stderr went elsewhere.
    None,
}

impl Terminal {
    fn at_start() -> Self {
        if io::stderr().is_terminal() { Self::Ours } else { Self::None }
    }

    /// It was there, and is no more.
    fn is_gone(&self) -> bool {
        match self {
            Self::Ours => !io::stderr().is_terminal(),
            Self::None => false,
        }
    }
}

impl Commands {
    /// Opens the control socket. No writable place is a warning, not a failure: dealing works
    /// without it.
    pub(super) fn new(
        place: Result<Place, PlaceError>,
        bind: impl FnOnce(&Path) -> io::Result<ControlServer>,
    ) -> Self {
        let place = place.map_err(|error| error.to_string());
        let bound = |place: &Place| {
            let socket = place.socket();
            bind(socket).map_err(|error| format!("{}: {error}", socket.display()))
        };
        let server = place.as_ref().map_err(Clone::clone).and_then(bound).inspect_err(|why| {
            log::warn!(
                "no control socket: {why}; status, stop and wait will not find this croupier"
            );
        });
        let server = server.ok();
        Self {
            place,
            server,
            curious: VecDeque::new(),
            waiting: Vec::new(),
            reloads: Vec::new(),
            interrupts: 0,
            ending: Ending::No,
            terminal: Terminal::at_start(),
        }
    }

    /// The name it got: the wanted one, or with a number when that was taken.
    pub(super) fn name<'a>(&'a self, wanted: &'a str) -> &'a str {
        self.place.as_ref().map_or(wanted, Place::name)
    }

    pub(super) fn announce(&self, say: impl Fn(&str)) {
        if let (Ok(place), Some(_)) = (&self.place, &self.server) {
            say(&format!("this croupier is called {}: croupier status -n {0}", place.name()));
        }
    }

    /// Whether somebody waits for everybody to be ready.
    pub(super) const fn awaits_ready(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Everybody is ready, or it is known why that will not be: tell those who wait for it.
    pub(super) fn end_wait(&mut self, reply: &Reply, registry: &Registry) {
        if let Some(server) = &mut self.server {
            for client in self.waiting.drain(..) {
                server.reply(client, reply, registry);
            }
        }
    }

    /// Whether a client is still there.
    pub(super) fn has(&self, client: ClientId) -> bool {
        self.server.as_ref().is_some_and(|server| server.has(client))
    }

    /// Tells one client how far its request is.
    pub(super) fn say_to(&mut self, client: ClientId, text: &str, registry: &Registry) {
        if let Some(server) = &mut self.server {
            server.say(client, text, registry);
        }
    }

    /// From now on a client hears what happens. False: too many do already.
    pub(super) fn follow(&mut self, client: ClientId) -> bool {
        self.server.as_mut().is_some_and(|server| server.follow(client))
    }

    pub(super) fn is_followed(&self) -> bool {
        self.server.as_ref().is_some_and(ControlServer::is_followed)
    }

    /// Tells one who follows.
    pub(super) fn tell_one(&mut self, client: ClientId, event: Happening, registry: &Registry) {
        if let Some(server) = &mut self.server {
            server.tell_one(client, event, registry);
        }
    }

    /// Tells everybody who follows.
    pub(super) fn tell_followers(&mut self, event: Happening, registry: &Registry) {
        if let Some(server) = &mut self.server {
            server.tell_followers(event, registry);
        }
    }

    /// Answers one client.
    pub(super) fn reply_to(&mut self, client: ClientId, reply: &Reply, registry: &Registry) {
        if let Some(server) = &mut self.server {
            server.reply(client, reply, registry);
        }
    }

    /// A reload begins: it is what those who queued wait for.
    pub(super) fn reload_began(&mut self, generation: Generation) {
        for waiter in &mut self.reloads {
            waiter.generation.get_or_insert(generation);
        }
    }

    /// Tells those who wait for a reload that has begun how far it is.
    pub(super) fn reload_says(&mut self, text: &str, registry: &Registry) {
        let Some(server) = &mut self.server else { return };
        for waiter in self.reloads.iter().filter(|waiter| waiter.generation.is_some()) {
            server.say(waiter.client, text, registry);
        }
    }

    /// Tells those whose reload has not begun.
    pub(super) fn queue_says(&mut self, text: &str, registry: &Registry) {
        let Some(server) = &mut self.server else { return };
        for waiter in self.reloads.iter().filter(|waiter| waiter.generation.is_none()) {
            server.say(waiter.client, text, registry);
        }
    }

    /// A reload failed; who waits hears it when nobody of it is left.
    pub(super) fn reload_failed(&mut self, generation: Generation, why: &str) {
        for waiter in self.reloads.iter_mut().filter(|w| w.generation == Some(generation)) {
            waiter.failed = Some(why.to_owned());
        }
    }

    /// Reloads up to this generation are over: who waited for them, and why they failed.
    pub(super) fn reload_over(
        &mut self,
        generation: Generation,
    ) -> Vec<(ClientId, Option<String>)> {
        let is_over = |waiter: &mut Reloader| waiter.generation.is_some_and(|g| g <= generation);
        let over = self.reloads.extract_if(.., is_over);
        over.map(|waiter| (waiter.client, waiter.failed)).collect()
    }

    /// The reloads that queue will not come.
    pub(super) fn reload_refused(&mut self, why: &str, registry: &Registry) {
        let queues = |waiter: &mut Reloader| waiter.generation.is_none();
        let refused: Vec<Reloader> = self.reloads.extract_if(.., queues).collect();
        let Some(server) = &mut self.server else { return };
        for Reloader { client, .. } in refused {
            server.reply(client, &Reply::Failed { why: why.to_owned() }, registry);
        }
    }
}

impl Primary {
    pub(super) fn take_signals(&mut self) {
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending {
            match signal {
                SIGCHLD => self.take_ended(),
                SIGINT => self.interrupt(),
                SIGTERM | SIGQUIT => self.stop("asked by a signal", "again"),
                SIGHUP => self.hang_up(),
                SIGUSR1 => self.reopen_log(),
                SIGUSR2 => self.reload("USR2"),
                SIGTTIN => self.scale_by_signal(Scale::Up(1), "TTIN"),
                SIGTTOU => self.scale_by_signal(Scale::Down(1), "TTOU"),
                SIGWINCH => self.pause_by_signal(),
                _ => log::debug!("signal {signal} means nothing here"),
            }
        }
    }

    /// A graceful stop: after `--stop-delay`, or at once when it is asked for in that time.
    fn stop(&mut self, why: &str, again: &str) {
        if self.delay_stop(why, again) {
            return;
        }
        log::info!("stopping ({why}): {} connections to finish", self.connections_held());
        self.begin_to_stop();
    }

    pub(super) fn begin_to_stop(&mut self) {
        self.health.end_delay();
        self.commands.ending = Ending::Asked;
        let stands = self.stands();
        self.service.stopping(&stands);
        self.tell(Event::StopAsked { now: false });
    }

    /// Ctrl-C: the first one drains (after a delay, if there is one to be: then the second), the next
    /// one kills.
    fn interrupt(&mut self) {
        if self.commands.interrupts == 0 {
            if self.delay_stop("Ctrl-C", "Ctrl-C again to drain now") {
                return;
            }
            let held = self.connections_held();
            let plural = if held == 1 { "connection" } else { "connections" };
            self.say(&format!("draining {held} {plural}, Ctrl-C again to stop at once"));
            self.begin_to_stop();
        } else {
            self.tell(Event::StopAsked { now: true });
        }
        self.commands.interrupts += 1;
    }

    pub(super) fn reload(&mut self, asked_by: &str) {
        log::info!("reload (asked by {asked_by})");
        match self.read_again() {
            Ok(()) => self.tell(Event::ReloadAsked { rolling: false }),
            Err(why) => log::error!("{why}"),
        }
    }

    fn reopen_log(&self) {
        match &self.output {
            Some(output) if self.config.log_file.is_some() => output.reopen(),
            _ => log::info!("USR1 opens the log file again, and there is none (--log-file)"),
        }
    }

    /// A client of `croupier logs` is the collector's from now on.
    fn show_logs(&mut self, client: ClientId, wanted: Wanted) -> Option<Reply> {
        if self.config.raw_output {
            let why = "with --raw-output its workers write to stdout and stderr by themselves, so \
                       croupier has none of their lines; look where its stdout goes";
            return Some(Reply::Failed { why: why.into() });
        }
        if let Some(why) = wanted.slot.and_then(|slot| self.no_such_slot(&[slot])) {
            return Some(Reply::Failed { why });
        }
        let server = self.commands.server.as_mut()?;
        let stream = server.release(client, self.poll.registry())?;
        self.output.as_ref()?.show(stream, wanted);
        None
    }

    /// A terminal that went away takes its programs with it; a daemon has none to lose: to it HUP means
    /// what it means to all daemons.
    fn hang_up(&mut self) {
        if self.commands.terminal.is_gone() {
            self.stop("the terminal is gone", "again");
        } else {
            self.resume_by_signal();
            self.reload("HUP");
        }
    }

    pub(super) fn connections_held(&self) -> u64 {
        let queued: u64 = self.workers.iter().filter_map(|w| w.queued_exact()).map(u64::from).sum();
        let active: u64 =
            self.workers.iter().filter_map(|w| w.page.load().active).map(u64::from).sum();
        queued + active
    }

    pub(super) fn take_commands(&mut self, token: Token) {
        let mut requests = Vec::new();
        let registry = self.poll.registry();
        match &mut self.commands.server {
            Some(server) if server.owns(token) => server.ready(token, registry, &mut requests),
            Some(_) | None => return,
        }
        self.obey_all(requests);
    }

    /// What a turn left over of the control socket's.
    pub(super) fn go_on_with_commands(&mut self) {
        let Some(server) = &mut self.commands.server else { return };
        let mut requests = Vec::new();
        if server.backlog() != Backlog::Empty {
            server.go_on(self.poll.registry(), &mut requests);
        }
        self.obey_all(requests);
    }

    fn obey_all(&mut self, requests: Vec<(ClientId, Request)>) {
        for (client, request) in requests {
            if let Some(reply) = self.obey(client, request) {
                self.reply(client, &reply);
            }
        }
        self.show_statuses();
        self.settle();
        let Some(server) = &self.commands.server else { return };
        let at = match server.backlog() {
            Backlog::Exhausted => Some(self.later(EXHAUSTED_WAIT)),
            Backlog::More => Some(self.now + 1),
            Backlog::Empty => (!self.commands.curious.is_empty()).then_some(self.now + 1),
        };
        self.look_again_by(at);
    }

    fn show_statuses(&mut self) {
        let Some(server) = &self.commands.server else { return };
        // Who does not wait any more need not be told.
        self.commands.curious.retain(|client| server.has(*client));
        for _ in 0..STATUSES_PER_TURN_MAX {
            let Some(client) = self.commands.curious.pop_front() else { return };
            let status = Reply::Status(Box::new(self.status()));
            self.reply(client, &status);
        }
    }

    fn reply(&mut self, client: ClientId, reply: &Reply) {
        if let Some(server) = &mut self.commands.server {
            server.reply(client, reply, self.poll.registry());
        }
    }

    fn obey(&mut self, client: ClientId, request: Request) -> Option<Reply> {
        match request {
            Request::Ping => Some(Reply::Done),
            Request::Status => {
                self.commands.curious.push_back(client);
                None
            }
            Request::Stop { now: true } => {
                self.commands.ending = Ending::Killed;
                log::info!("stopping at once (asked by croupier stop)");
                self.service.stopping("stopping at once");
                self.tell(Event::StopAsked { now: true });
                Some(Reply::Done)
            }
            Request::Stop { now: false } => {
                self.stop("asked by croupier stop", "croupier stop again");
                Some(Reply::Done)
            }
            Request::Reload { rolling, wait } => {
                log::info!("reload (asked by croupier reload)");
                if let Err(why) = self.read_again() {
                    log::error!("{why}");
                    return Some(Reply::Failed { why });
                }
                if wait {
                    self.commands.reloads.push(Reloader { client, generation: None, failed: None });
                }
                self.tell(Event::ReloadAsked { rolling });
                (!wait).then_some(Reply::Done)
            }
            Request::Start { slots, wait } => self.start_slots(client, &slots, wait),
            Request::StopSlots { slots, wait } => self.stop_slots(client, &slots, wait),
            Request::Scale { by, wait } => self.scale(client, by, wait),
            Request::Pause { slots } => Some(self.pause(client, &slots)),
            Request::Resume { slots } => Some(self.resume(client, &slots)),
            Request::Restart { slots, wait } => self.restart(client, &slots, wait),
            Request::Kill { slot, signal } => Some(self.kill(client, slot, signal)),
            Request::Events => self.follow(client),
            Request::Logs { slot, lines, follow, json } => {
                let lines = usize::try_from(lines).unwrap_or(usize::MAX);
                let format = if json { LogFormat::Json } else { LogFormat::Text };
                self.show_logs(client, Wanted { slot, lines, follow, format })
            }
            Request::Wait { r#for: Awaited::Ready } => {
                let answer = self.is_ready();
                if answer.is_none() {
                    let commands = &mut self.commands;
                    let gone = |client: &ClientId| {
                        commands.server.as_ref().is_some_and(|server| !server.has(*client))
                    };
                    commands.waiting.retain(|client| !gone(client));
                    commands.waiting.push(client);
                }
                answer
            }
            // The end of the connection is the answer.
            Request::Wait { r#for: Awaited::Stopped } => None,
        }
    }
}
