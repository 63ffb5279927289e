//! What the primary answers to workers' processes: bind, listen, attach, close, ready.
//!
//! Everything here comes from a worker: a request that does not decode, or a flood of them, costs
//! that worker its life; a token that nobody has is ignored. Listeners are made here, by the primary
//! itself: a worker's own socket could make accept(2), or even close(2), block.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use croupier_core::config::Policy;
use croupier_core::event::{Event, ListenerId, SlotId, Whose, WorkerId};
use croupier_wire::message::{Answer, Kind, RawAddress, Request, Verdict};
use slab::Slab;

use super::address;
use super::commands::Ending;
use super::listener::{Listener, Origin, Phase};
use super::questions::Question;
use super::run::{EXHAUSTED_WAIT, Primary};
use super::socket_file::Rights;
use super::status::Complaint;
use super::tokens::Source;
use crate::config::{ListenAddress, ListenSpec, ProgramAddress};
use crate::sys;

/// Addresses that are dealt at once.
pub(crate) const LISTENERS_MAX: usize = 256;
/// Connections taken back at once from a listener that its program closed.
const TAKE_BACK_MAX: u32 = 4096;
/// Questions taken in one turn; the rest of a flood waits in the socket's backlog for the alarm.
pub(crate) const QUESTIONS_PER_TURN_MAX: usize = 16;
/// Questions that one worker may ask in a second.
pub(crate) const QUESTIONS_PER_SECOND_MAX: u32 = 1_000;

pub(super) const fn verdict(verdict: Verdict) -> Answer {
    Answer { verdict, errno: 0, channel: 0, address: RawAddress::NONE }
}

pub(super) fn refused(error: &io::Error) -> Answer {
    Answer { errno: error.raw_os_error().unwrap_or(libc::EIO), ..verdict(Verdict::Refused) }
}

/// How a worker's address relates to what is dealt.
enum Target {
    /// Not croupier's.
    Theirs,
    /// This listener, which exists.
    Known(ListenerId),
    /// To be made.
    New(ListenAddress),
}

impl Primary {
    pub(super) fn take_questions(&mut self) {
        let mut evicted = Vec::new();
        // Should there be more than a turn takes, the alarm goes on with them.
        let mut again = Some(self.now + 1);
        for _ in 0..QUESTIONS_PER_TURN_MAX {
            match self.questions.accept(&mut evicted) {
                Ok(Some(key)) => self.await_question(key),
                Ok(None) => {
                    again = None;
                    break;
                }
                Err(error) => {
                    log::warn!("a worker's question must wait: {error}");
                    // No edge will announce those that wait already.
                    again = Some(self.later(EXHAUSTED_WAIT));
                    break;
                }
            }
        }
        self.look_again_by(again);
        if !evicted.is_empty() {
            self.rescue.close(evicted);
        }
    }

    fn await_question(&mut self, key: usize) {
        let watched = match self.questions.client(key).map(|fd| fd.as_raw_fd()) {
            Some(fd) => self.watch(&fd, Source::Question(key)),
            None => return,
        };
        if let Err(error) = watched {
            log::warn!("a worker's question must wait, it cannot be watched: {error}");
            self.questions.put_off(key);
            self.look_again_by(Some(self.later(EXHAUSTED_WAIT)));
        }
    }

    /// Questions that could not be watched when they came.
    pub(super) fn watch_put_off(&mut self) {
        for key in self.questions.take_put_off() {
            self.await_question(key);
        }
    }

    pub(super) fn take_question(&mut self, key: usize) {
        let Some(question) = self.questions.read(key) else { return };
        self.unwatch(&question.client);
        self.judge(&question);
        self.rescue.dismiss(question.client);
        self.settle();
    }

    fn judge(&mut self, question: &Question) {
        let Some(request) = &question.request else {
            if question.silent {
                return;
            }
            self.complain(format_args!(
                "process {} sent something that is no question",
                question.pid
            ));
            return self.blame(question.pid);
        };
        let Some(worker) = self.workers.by_token(&request.token) else {
            self.complain(format_args!(
                "process {} (uid {}) asked with a token that no worker has",
                question.pid, question.uid
            ));
            self.blame(question.pid);
            return question.tell(&refused(&io::Error::from_raw_os_error(libc::EACCES)));
        };
        if !self.launcher.may_ask(question.uid) {
            self.complain(format_args!(
                "process {} asked for worker {} as uid {}, which is refused; a program that changes its \
                 user by itself is to be started as that one, with --user",
                question.pid, worker.0, question.uid
            ));
            return question.tell(&refused(&io::Error::from_raw_os_error(libc::EACCES)));
        }
        if self.meters.too_many_questions(worker, self.now, QUESTIONS_PER_SECOND_MAX) {
            log::warn!("worker {} floods the control socket; it will be replaced", worker.0);
            return self.tell(Event::Misbehaved { worker });
        }
        // Who asks runs; but the question may be heard before that.
        self.hear_exec(worker);
        match request.kind {
            Kind::Bind => self.answer_bind(question, request, worker),
            Kind::Listen => self.answer_listen(question, request, worker),
            Kind::Attach => self.answer_attach(question, request, worker),
            Kind::Close => self.note_close(question, request, worker),
            Kind::Ready => {
                self.tell(Event::SaidReady { worker });
                question.tell(&verdict(Verdict::Done));
            }
            Kind::Post => self.answer_post(question, worker),
            Kind::SetOption => {
                self.set_options(request, worker);
                question.tell(&verdict(Verdict::Done));
            }
            Kind::Unbind => {
                self.note_unbind(request, worker);
                question.tell(&verdict(Verdict::Done));
            }
        }
    }

    /// Garbage has no token, and a forged one says nothing; the process that sent it may still be known:
    /// as a main process, by its line in a page, by what it carries in its environment. Not by its
    /// process group: it may have joined another worker's.
    fn blame(&mut self, pid: u32) {
        let known = |worker: &&super::worker::Worker| {
            worker.pid == pid || worker.page.pids().any(|known| known == pid)
        };
        let found = self.workers.iter().find(known).map(|worker| worker.id);
        let found = found.or_else(|| {
            if !self.questions.looks_up(pid, self.now) {
                return None;
            }
            let carried = super::process::carried_token(pid)?;
            self.workers.iter().find(|one| super::process::hex(&one.token) == carried).map(|w| w.id)
        });
        if let Some(worker) = found {
            self.tell(Event::Misbehaved { worker });
        }
    }

    /// A line of log about a question that is none. A flood of them must not become a flood of lines.
    pub(super) fn complain(&mut self, what: std::fmt::Arguments<'_>) {
        match self.meters.complaint(self.now) {
            Complaint::Said { unsaid: 0 } => log::warn!("{what}"),
            Complaint::Said { unsaid } => log::warn!("{what} ({unsaid} such lines were left out)"),
            Complaint::LeftOut => {}
        }
    }

    fn answer_bind(&mut self, question: &Question, request: &Request, worker: WorkerId) {
        // Another program of the worker got the socket, and does not know what it was bound to.
        let again = request.address.bytes().is_empty();
        let known = self.workers.get(worker).zip(request.cookie());
        let bound = known.filter(|_| again).and_then(|(one, cookie)| one.bound_to(cookie));
        let mut request = *request;
        request.address = bound.unwrap_or(request.address);
        let request = &request;
        let answer = match self.target(request) {
            Target::Theirs => verdict(Verdict::Pass),
            Target::Known(_) if !again && self.bound_twice(question, request, worker) => {
                refused(&io::Error::from_raw_os_error(libc::EADDRINUSE))
            }
            Target::Known(listener) => {
                self.reserve_for(worker, usize::from(listener.0));
                Answer { address: request.address, ..verdict(Verdict::Done) }
            }
            Target::New(address) => {
                match self.make_listener(
                    address.clone(),
                    self.own_policy(),
                    self.rights_of_workers(),
                ) {
                    Ok(key) => {
                        self.as_program_would(key, &address, question.pid);
                        self.reserve_for(worker, key);
                        Answer { address: request.address, ..verdict(Verdict::Done) }
                    }
                    Err(error) => {
                        self.announcer.bind_failed(worker, &address, &error);
                        refused(&error)
                    }
                }
            }
        };
        if answer.verdict == Verdict::Done
            && let (Some(found), Some(cookie)) = (self.workers.get_mut(worker), request.cookie())
        {
            found.note_bound(cookie, request.address);
        }
        question.tell(&answer);
    }

    /// What bind(2) takes from the process that calls it, and would have taken from the program.
    fn as_program_would(&self, key: usize, address: &ListenAddress, pid: u32) {
        if let ListenAddress::Unix(_) = address
            && let Some(listener) = self.listeners.get(key)
            && let Some(umask) = super::process::umask_of(pid)
        {
            listener.apply_umask(umask);
        }
    }

    /// One process binds one address twice without `SO_REUSEPORT`: it shall hear what bind(2) says.
    fn bound_twice(&self, q: &Question, request: &Request, worker: WorkerId) -> bool {
        !has_option(request, libc::SOL_SOCKET, libc::SO_REUSEPORT)
            && self
                .workers
                .get(worker)
                .is_some_and(|w| w.process_listens_on(&request.address, q.pid))
    }

    fn reserve_for(&mut self, worker: WorkerId, key: usize) {
        if let Some(listener) = self.listeners.get_mut(key) {
            listener.restore_path();
            if !listener.reserved.contains(&worker) {
                listener.reserved.push(worker);
            }
        }
    }

    /// The program gave an address back that it never listened on: others may have it.
    fn note_unbind(&mut self, request: &Request, worker: WorkerId) {
        if let Target::Known(listener) = self.target(request) {
            let key = usize::from(listener.0);
            if let Some(listener) = self.listeners.get_mut(key) {
                listener.reserved.retain(|known| *known != worker);
            }
            self.drop_unreserved(key);
        }
    }

    /// A bound address that nobody means to listen on any more.
    pub(super) fn drop_unreserved(&mut self, key: usize) {
        let unwanted = |listener: &Listener| {
            listener.phase == Phase::Bound
                && listener.origin == Origin::Asked
                && listener.reserved.is_empty()
        };
        if self.listeners.get(key).is_some_and(unwanted) {
            self.listeners.remove(key);
        }
    }

    fn target(&self, request: &Request) -> Target {
        let v6only = has_option(request, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        let Some(asked) = address::parse(&request.address, v6only) else { return Target::Theirs };
        if self.config.listen.is_empty() {
            if matches!(&asked, ListenAddress::Tcp { address, .. } if address.port() == 0) {
                return Target::Theirs;
            }
            let known = self.listeners.iter().find(|(_, listener)| listener.address == asked);
            return known.map_or(Target::New(asked), |(_, listener)| Target::Known(listener.id));
        }
        self.claimed_by(&asked).first().map_or(Target::Theirs, |id| Target::Known(*id))
    }

    fn claimed_by(&self, asked: &ListenAddress) -> Vec<ListenerId> {
        claimed_of(&self.config.listen, &self.listeners, asked)
    }

    /// The other listeners whose clients are dealt to who asks for `first`.
    fn dealt_with(&self, request: &Request, first: ListenerId) -> Vec<ListenerId> {
        let v6only = has_option(request, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        let asked = address::parse(&request.address, v6only);
        // Either all listeners deal, or none does.
        let by_hand = self.config.core.policy.by_hand();
        let asked = asked.filter(|_| by_hand && !self.config.listen.is_empty());
        let all = asked.map(|asked| self.claimed_by(&asked)).unwrap_or_default();
        all.into_iter().filter(|listener| *listener != first).collect()
    }

    /// How clients of an address are dealt that only the program names.
    const fn own_policy(&self) -> Policy {
        self.config.core.policy
    }

    /// Binds an address that a worker or `-l` names.
    ///
    /// # Errors
    /// bind(2)'s errno; `ENOSPC` beyond [`LISTENERS_MAX`].
    pub(super) fn make_listener(
        &mut self,
        address: ListenAddress,
        policy: Policy,
        rights: Rights,
    ) -> io::Result<usize> {
        if self.listeners.len() >= LISTENERS_MAX || self.commands.ending != Ending::No {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let entry = self.listeners.vacant_entry();
        let key = entry.key();
        let id = id_of(key);
        entry.insert(Listener::bind(id, address, policy, rights)?);
        Ok(key)
    }

    /// As [`Self::make_listener`], of a socket that this process was started with.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub(super) fn take_listener(
        &mut self,
        address: ListenAddress,
        policy: Policy,
        number: i32,
    ) -> io::Result<usize> {
        let socket = sys::duplicate_inherited(number)?;
        let entry = self.listeners.vacant_entry();
        let key = entry.key();
        let id = id_of(key);
        entry.insert(Listener::inherited(id, address, policy, socket)?);
        Ok(key)
    }

    fn rights_of_workers(&self) -> Rights {
        self.config.ids.clone().map_or(Rights::Own, |ids| Rights::Workers(Arc::new(ids)))
    }

    fn answer_listen(&mut self, question: &Question, request: &Request, worker: WorkerId) {
        let answer = match self.target(request) {
            Target::Theirs => return question.tell(&verdict(Verdict::Pass)),
            Target::Known(listener) => self.listen(question, request, worker, listener),
            Target::New(address) => self
                .make_listener(address, self.own_policy(), self.rights_of_workers())
                .and_then(|key| self.listen(question, request, worker, id_of(key))),
        };
        if let Err(error) = answer {
            self.listen_failed(worker, request, &error);
            question.tell(&refused(&error));
        }
    }

    /// bind(2) was granted, and listen(2) fails: another socket was bound there as well, with
    /// `SO_REUSEADDR`, and listened first.
    fn listen_failed(&mut self, worker: WorkerId, request: &Request, error: &io::Error) {
        let v6only = has_option(request, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
        if let Some(address) = address::parse(&request.address, v6only) {
            self.announcer.bind_failed(worker, &address, error);
        }
    }

    fn listen(
        &mut self,
        question: &Question,
        request: &Request,
        worker: WorkerId,
        id: ListenerId,
    ) -> io::Result<()> {
        let key = usize::from(id.0);
        let gone = || io::Error::from_raw_os_error(libc::EBADF);
        let backlog = request.backlog.max(i32::try_from(self.config.backlog).unwrap_or(i32::MAX));
        let listener = self.listeners.get_mut(key).ok_or_else(gone)?;
        for option in request.options() {
            listener.set_option(*option);
        }
        let slot = self.workers.get(worker).ok_or_else(gone)?.slot;
        let was_bound = listener.phase == Phase::Bound;
        let policy = listener.policy;
        let dealt = match policy {
            Policy::Least | Policy::Rr | Policy::Ip => {
                listener.listen(backlog)?;
                None
            }
            Policy::Shared => {
                listener.listen(backlog)?;
                Some(listener.shared_socket()?)
            }
            Policy::Reuseport => {
                self.adoption.end(|owner, of| owner == slot && of == id);
                Some(slot_socket(listener, slot, backlog)?)
            }
        };
        if was_bound && listener.origin == Origin::Asked {
            self.tell(Event::ListenerOpened { listener: id, declared: false, policy });
        }
        let also = self.dealt_with(request, id);
        for other in &also {
            let Some(other) = self.listeners.get_mut(usize::from(other.0)) else { continue };
            for option in request.options() {
                other.set_option(*option);
            }
            other.listen(backlog)?;
        }
        self.hand_out(question, request, worker, (id, also.clone()), dealt)?;
        for listener in std::iter::once(id).chain(also) {
            self.arm(usize::from(listener.0));
        }
        Ok(())
    }

    /// Answers a listen with a channel, or with the socket itself.
    fn hand_out(
        &mut self,
        question: &Question,
        request: &Request,
        worker: WorkerId,
        (listener, also): (ListenerId, Vec<ListenerId>),
        socket: Option<OwnedFd>,
    ) -> io::Result<()> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let depth = self.launcher.queue_depth();
        let by_mark = by_mark(listener, &also, |id| {
            let known = self.listeners.get(usize::from(id.0));
            known.is_some_and(|listener| listener.policy == Policy::Ip)
        });
        let found = self.workers.get_mut(worker).ok_or_else(gone)?;
        let mut new: Vec<ListenerId> = std::iter::once(listener).chain(also.clone()).collect();
        new.retain(|listener| !found.listens_on(*listener));
        let mut answer = Answer { address: request.address, ..verdict(Verdict::Socket) };
        if self.config.core.policy != Policy::Shared {
            answer.channel = found.open_channel(listener, question.pid, depth, request.address)?;
            found.share_channel(answer.channel, also, by_mark);
        }
        if socket.is_some() {
            found.note_socket(listener);
        } else {
            answer.verdict = Verdict::Dealt;
            found.page.attached = true;
        }
        let found = self.workers.get(worker).ok_or_else(gone)?;
        let channel = found.channel(answer.channel).map(|(channel, _)| channel.receive_end());
        let seat = self.seat_of(worker).ok_or_else(gone)?;
        let rest = socket.as_ref().map(AsFd::as_fd).into_iter().chain(channel);
        let descriptors: Vec<BorrowedFd<'_>> = seat.into_iter().chain(rest).collect();
        if !question.answer(&answer, &descriptors) {
            // Nobody has the other end: nothing may be sent there.
            if let Some(found) = self.workers.get_mut(worker) {
                found.close_channel(answer.channel);
            }
            return Ok(());
        }
        for listener in new {
            self.tell(Event::Listening { worker, listener });
        }
        Ok(())
    }

    fn answer_attach(&mut self, question: &Question, request: &Request, worker: WorkerId) {
        let Some(found) = self.workers.get_mut(worker) else { return };
        found.page.attached = true;
        let mut answer = verdict(Verdict::Dealt);
        if request.channel != 0 {
            match found.channel(request.channel) {
                Some((channel, address)) => {
                    answer.channel = channel.number;
                    answer.address = *address;
                }
                None => return question.tell(&refused(&io::ErrorKind::NotFound.into())),
            }
        }
        if let Some(seat) = self.seat_of(worker) {
            question.answer(&answer, &seat);
        }
    }

    fn note_close(&mut self, question: &Question, request: &Request, worker: WorkerId) {
        self.close_channel(worker, request.channel);
        question.tell(&verdict(Verdict::Done));
    }

    /// Nobody of the worker listens there any more: others get what waits.
    pub(super) fn close_channel(&mut self, worker: WorkerId, number: u32) {
        let Some(found) = self.workers.get_mut(worker) else { return };
        let last = found.close_channel(number);
        let queue = found.queue_of(number);
        for listener in last {
            self.tell(Event::Unlistened { worker, listener });
        }
        if let Some(queue) = queue
            && !self.rescue.take_back(worker, vec![queue], (TAKE_BACK_MAX, Whose::All), self.now)
        {
            log::warn!("connections wait at a closed listener of worker {}", worker.0);
        }
    }

    fn set_options(&mut self, request: &Request, worker: WorkerId) {
        let Some(found) = self.workers.get(worker) else { return };
        let Some((channel, _)) = found.channel(request.channel) else { return };
        let dealt: Vec<ListenerId> =
            std::iter::once(channel.listener).chain(channel.also.clone()).collect();
        for listener in dealt {
            let Some(listener) = self.listeners.get_mut(usize::from(listener.0)) else { continue };
            for option in request.options() {
                listener.set_option(*option);
            }
        }
    }
}

/// The listeners whose `-l` are about the address that a program binds: all that name it with `=`,
/// and of the others the one that is this very address, or else those with its port.
fn claimed_of(
    specs: &[ListenSpec],
    listeners: &Slab<Listener>,
    asked: &ListenAddress,
) -> Vec<ListenerId> {
    // The place of a `-l` is its listener's key. One that broke, or was closed by a stop, is not there.
    let of = |key: usize| listeners.get(key).filter(|one| one.origin == Origin::Declared);
    let pairs = specs.iter().enumerate().filter_map(|(key, spec)| Some((spec, of(key)?)));
    let all = pairs.filter(|(spec, listener)| claims(spec, &listener.bound(), asked));
    let is_it = |(spec, listener): &(&ListenSpec, &Listener)| {
        spec.program.is_none() && listener.bound() == *asked
    };
    let exact = all.clone().any(|pair| is_it(&pair));
    let all = all.filter(|pair| !exact || pair.0.program.is_some() || is_it(pair));
    all.map(|(_, listener)| listener.id).collect()
}

/// Of the listener with this key.
fn id_of(key: usize) -> ListenerId {
    ListenerId(u16::try_from(key).unwrap_or(u16::MAX))
}

fn slot_socket(listener: &mut Listener, slot: SlotId, backlog: i32) -> io::Result<OwnedFd> {
    sys::duplicate(listener.slot_socket(slot, backlog)?)
}

fn has_option(request: &Request, level: i32, name: i32) -> bool {
    request.options().iter().any(|o| o.level == level && o.name == name && o.value != 0)
}

/// Whether this `-l` is about the address that a program binds.
fn claims(spec: &ListenSpec, public: &ListenAddress, asked: &ListenAddress) -> bool {
    let same_port =
        |port: u16| matches!(asked, ListenAddress::Tcp { address, .. } if address.port() == port);
    match (&spec.program, public) {
        (Some(ProgramAddress::Port(port)), _) => same_port(*port),
        (Some(ProgramAddress::Tcp(wanted)), _) => {
            matches!(asked, ListenAddress::Tcp { address, .. } if address == wanted)
        }
        (Some(ProgramAddress::Unix(wanted)), _) => {
            matches!(asked, ListenAddress::Unix(path) if path == wanted)
        }
        // Without `=`: the port decides; which of the machine's addresses it is open on is for `-l`.
        (None, ListenAddress::Tcp { address, .. }) => same_port(SocketAddr::port(address)),
        (None, ListenAddress::Unix(wanted)) => {
            matches!(asked, ListenAddress::Unix(path) if path == wanted)
        }
    }
}

/// Whose connections those are that come back out of one queue for all these listeners, which all
/// workers share: without a mark, and with one.
fn by_mark(
    first: ListenerId,
    also: &[ListenerId],
    sticks: impl Fn(&ListenerId) -> bool,
) -> [ListenerId; 2] {
    let mut all = std::iter::once(first).chain(also.iter().copied());
    let loose = all.clone().find(|id| !sticks(id)).unwrap_or(first);
    [loose, all.find(sticks).unwrap_or(first)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_whose_a_connection_of_a_shared_queue_is() {
        let ids = |numbers: &[u16]| numbers.iter().copied().map(ListenerId).collect::<Vec<_>>();
        // By load are the odd ones.
        #[rustfmt::skip]
        let table: [(u16, &[u16], [u16; 2]); 6] = [
            (1, &[],        [1, 1]),
            (2, &[],        [2, 2]),
            (1, &[2],       [1, 2]),
            (2, &[1],       [1, 2]),
            (4, &[2, 3, 5], [3, 4]),
            (5, &[3, 2, 4], [5, 2]),
        ];
        for (first, also, expected) in table {
            let found = by_mark(ListenerId(first), &ids(also), |id| id.0 % 2 == 0);
            assert_eq!(found, expected.map(ListenerId), "{first} and {also:?}");
        }
    }

    #[test]
    fn a_listener_that_is_gone_gives_its_place_to_no_other() {
        let at = |port: u16| ListenAddress::Tcp {
            address: ([127, 0, 0, 1], port).into(),
            dual_stack: false,
        };
        let spec = |port| ListenSpec {
            public: at(0),
            program: Some(ProgramAddress::Port(port)),
            policy: None,
            inherited: None,
        };
        let (specs, mut listeners) = ([spec(8001), spec(8002)], Slab::new());
        for id in 0..2 {
            let mut declared =
                Listener::bind(ListenerId(id), at(0), Policy::Least, Rights::Own).unwrap();
            declared.origin = Origin::Declared;
            listeners.insert(declared);
        }
        assert_eq!(claimed_of(&specs, &listeners, &at(8001)), [ListenerId(0)]);
        listeners.remove(0);
        assert_eq!(claimed_of(&specs, &listeners, &at(8001)), []);
        assert_eq!(claimed_of(&specs, &listeners, &at(8002)), [ListenerId(1)]);
    }
}
