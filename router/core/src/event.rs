//! What the shell tells the core, what the core asks of the shell, and the names both use.
//!
//! Events are facts (past participles), actions are requests (imperatives). The outcome of each
//! action comes back as an event; only events change what the core believes.

use core::time::Duration;

use crate::config::Policy;

/// A numbered place for a worker, from 0. It outlives the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotId(pub u16);

/// Counts up from 1 for every worker ever started, as Node's `worker.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId(pub u32);

/// Counts up with every reload, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u32);

/// A listening socket of the primary. Numbers are small and reused only after [`Event::ListenerClosed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerId(pub u16);

/// An accepted connection that the primary holds right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(pub u32);

/// Who connects, as far as choosing a worker needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// An IPv4 address.
    V4([u8; 4]),
    /// An IPv6 address (IPv4-mapped ones too: the core folds them).
    V6([u8; 16]),
    /// A Unix socket's client: no address, never sticky.
    Local,
}

/// One connection that the primary holds and the core must place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The shell's name for it.
    pub conn: ConnId,
    /// Where it came in.
    pub listener: ListenerId,
    /// Who it is.
    pub client: Client,
}

/// How many slots the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// So many.
    To(u16),
    /// So many more.
    Up(u16),
    /// So many fewer.
    Down(u16),
}

/// Why a scale does not happen. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFault {
    /// To no slot at all: that is a pause, or a stop.
    Zero,
    /// To more than [`crate::config::SLOTS_MAX`].
    TooMany,
    /// Everybody who serves would leave, and nobody of those who stay is ready.
    NobodyLeft,
    /// Everything stops.
    Stopping,
}

/// Why nobody is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseFault {
    /// Workers accept by themselves under this policy.
    ByThemselves,
    /// Everything stops.
    Stopping,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// exit(2) with this status.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
    /// Killed by this signal, and left a core dump.
    Dumped(i32),
    /// Killed by the kernel because its cgroup, or the machine, had no memory left.
    OutOfMemory,
}

/// Why a hand-off did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendFailure {
    /// EAGAIN, ENOBUFS, ENOMEM, ETOOMANYREFS: try another worker, or later.
    Full,
    /// EPIPE, ECONNRESET, ENOTCONN: this worker broke its channel. It is to be replaced.
    Broken,
}

/// Something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The loop woke up: a doorbell, a timer, a signal that meant nothing. Deadlines are looked at
    /// on *every* event; this one carries nothing else. Begins a new turn (a new snapshot of loads).
    Woke,
    /// A connection was accepted, after [`crate::Core::wants_accept`] said yes for that listener.
    Accepted(Arrival),
    /// [`Action::HandOff`] done: the kernel queued it for this worker.
    HandedOff {
        /// Which connection; its id is free again.
        conn: ConnId,
        /// To whom.
        worker: WorkerId,
    },
    /// [`Action::HandOff`] refused; the shell still holds the connection.
    HandOffFailed {
        /// Which connection.
        conn: ConnId,
        /// By whose channel.
        worker: WorkerId,
        /// Why.
        why: SendFailure,
    },
    /// [`Action::Refuse`] or [`Action::Shed`] done, or the shell had to close a connection that it held.
    Refused {
        /// Which connection.
        conn: ConnId,
    },
    /// accept(2) found the backlog of this listener empty.
    BacklogEmpty {
        /// Which listener.
        listener: ListenerId,
    },
    /// The primary listens on an address.
    ListenerOpened {
        /// Its id.
        listener: ListenerId,
        /// Named by `-l`: a worker is ready only when it listens on every such listener.
        declared: bool,
        /// How its clients are dealt, for as long as it is open.
        policy: Policy,
    },
    /// [`Action::CloseListener`] done, or the socket broke.
    ListenerClosed {
        /// Its id.
        listener: ListenerId,
    },
    /// [`Action::Spawn`] done: the program runs. Nothing else of the worker is told before.
    Spawned {
        /// The worker.
        worker: WorkerId,
    },
    /// [`Action::Spawn`] failed: there is no process, or its program could not be executed. It may have been
    /// told to leave, or killed, meanwhile.
    SpawnFailed {
        /// The worker.
        worker: WorkerId,
    },
    /// The worker listens: its first channel (or own socket) for this listener is open.
    Listening {
        /// The worker.
        worker: WorkerId,
        /// On what.
        listener: ListenerId,
    },
    /// The worker closed its last descriptor for this listener.
    Unlistened {
        /// The worker.
        worker: WorkerId,
        /// From what.
        listener: ListenerId,
    },
    /// The worker said that it is ready (shim, sd_notify).
    SaidReady {
        /// The worker.
        worker: WorkerId,
    },
    /// [`Action::Probe`] done: a half-closed loopback connection is queued for the worker; it counts
    /// as handed off.
    Probed {
        /// The worker.
        worker: WorkerId,
    },
    /// [`Action::Probe`] could not be done now.
    ProbeFailed {
        /// The worker.
        worker: WorkerId,
    },
    /// [`Action::Check`] done: the request is queued for the worker; it counts as handed off.
    CheckSent {
        /// The worker.
        worker: WorkerId,
    },
    /// [`Action::Check`] has its result, or could not be done.
    Checked {
        /// The worker.
        worker: WorkerId,
        /// It answered as it should.
        passed: bool,
    },
    /// One connection was taken back out of a worker's queue; the shell holds it.
    TakenBack {
        /// From whom (dead or alive).
        worker: WorkerId,
        /// The connection.
        arrival: Arrival,
    },
    /// [`Action::TakeBack`] ended, after all its [`Event::TakenBack`].
    TakeBackDone {
        /// From whom.
        worker: WorkerId,
        /// Messages removed from the queue by this request, including `lost` ones.
        removed: u32,
        /// Of them: removed without a usable connection (counted, never hidden).
        lost: u32,
        /// The queue was found empty: of a dead worker nothing is left to salvage.
        empty: bool,
    },
    /// [`Action::TakeBack`] missed its deadline: the worker holds the socket's lock. What it brings
    /// in the end comes as [`Event::TakenBack`], without another [`Event::TakeBackDone`].
    TakeBackStuck {
        /// By whom.
        worker: WorkerId,
    },
    /// The worker's main process ended. Its family may still live.
    Exited {
        /// The worker.
        worker: WorkerId,
        /// How.
        status: ExitStatus,
        /// Descendants live: with status 0, a program that went into the background.
        orphans: bool,
    },
    /// [`Action::KillFamily`] done: no process of this worker is left, so nobody but the primary
    /// can reach its queue.
    FamilyGone {
        /// The worker.
        worker: WorkerId,
    },
    /// The worker broke the protocol on the control socket: it is to be replaced.
    Misbehaved {
        /// The worker.
        worker: WorkerId,
    },
    /// The operator wants this slot up: at once, and with its crashes forgotten.
    StartAsked {
        /// Which.
        slot: SlotId,
    },
    /// The operator wants nobody in this slot, until he says otherwise.
    StopSlotAsked {
        /// Which.
        slot: SlotId,
    },
    /// The operator wants another number of slots: the highest ones go, or new ones come.
    ScaleAsked(Scale),
    /// The operator wants this slot, or all, to get no connections until he says otherwise.
    PauseAsked {
        /// Which; `None`: all, and those that are still to come.
        slot: Option<SlotId>,
    },
    /// The end of a pause.
    ResumeAsked {
        /// Of which slot; `None`: of all, however they were paused.
        slot: Option<SlotId>,
    },
    /// The operator wants a new worker in this slot: it starts beside the old one, which then drains.
    RestartAsked {
        /// Which.
        slot: SlotId,
    },
    /// The worker's family has more memory than it may have. Said again while it is so.
    Outgrew {
        /// The worker.
        worker: WorkerId,
        /// How much it has.
        bytes: u64,
    },
    /// The operator wants a new generation of workers. One reload at a time; another one queues.
    ReloadAsked {
        /// Drain the old workers as they are replaced, instead of parking them until all are.
        rolling: bool,
    },
    /// The operator wants everything to end. `now`: without waiting (a second Ctrl-C).
    StopAsked {
        /// Kill at once.
        now: bool,
    },
}

/// Which signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalKind {
    /// `--stop-signal`, to the process group.
    Stop,
    /// SIGABRT, to the main process, and SIGCONT, should it be stopped: a hung worker may leave a core.
    Abort,
}

/// Why connections are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeBackReason {
    /// The worker is dead: salvage.
    Death,
    /// The worker drains, or is parked.
    Drain,
    /// The worker is late and another is idle: steal.
    Steal,
}

/// Which queued connections are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// All.
    All,
    /// Not those of clients that stick to their worker (listeners under [`Policy::Ip`]): they wait for
    /// this one. Those count as left in the queue.
    Loose,
}

/// Something the shell must do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a worker. What came of it is told later.
    Spawn {
        /// Where.
        slot: SlotId,
        /// Its id.
        worker: WorkerId,
        /// Its generation.
        generation: Generation,
    },
    /// Send a held connection to a worker, on its channel for that connection's listener.
    HandOff {
        /// Which.
        conn: ConnId,
        /// To whom.
        worker: WorkerId,
    },
    /// Close a held connection with a reset: nobody will ever serve it.
    Refuse {
        /// Which.
        conn: ConnId,
    },
    /// Close a held connection with a reset: it came when others had waited for too long already.
    Shed {
        /// Which.
        conn: ConnId,
    },
    /// Write the worker's doorbell words (absolute values of its page; 0 / false = do not ring).
    Ring {
        /// Whose.
        worker: WorkerId,
        /// Ring when the page's `claimed` reaches this.
        at_claim: u64,
        /// Ring at the next close.
        on_close: bool,
    },
    /// Take back at most `max` queued connections, oldest first, from all channels of the worker.
    /// At most one such request per worker is in flight.
    TakeBack {
        /// From whom.
        worker: WorkerId,
        /// How many.
        max: u32,
        /// Which of them.
        whose: Whose,
        /// Why.
        why: TakeBackReason,
    },
    /// Queue a half-closed loopback connection for the worker on this listener.
    Probe {
        /// Whom.
        worker: WorkerId,
        /// Through which of its channels.
        listener: ListenerId,
    },
    /// `--ready-probe`: send a request to the worker through this listener, and say how it was answered.
    /// At most one per worker is under way; it has no deadline but the worker's own.
    Check {
        /// Whom.
        worker: WorkerId,
        /// Through which of its channels.
        listener: ListenerId,
    },
    /// Tell the worker's processes that it may leave: what waited for it is gone. Said once, after
    /// [`Action::TellDraining`]; no outcome is expected.
    Disconnect {
        /// Whom.
        worker: WorkerId,
    },
    /// Tell the worker that it drains (page flag).
    TellDraining {
        /// Whom.
        worker: WorkerId,
        /// It drains, or (unparked) no longer.
        draining: bool,
    },
    /// Send a signal.
    Signal {
        /// Whom.
        worker: WorkerId,
        /// Which.
        signal: SignalKind,
    },
    /// KILL the process group and every descendant; say [`Event::FamilyGone`] when none is left and
    /// the main process is reaped ([`Event::Exited`] comes too, before it, if it had not come yet).
    KillFamily {
        /// Whose.
        worker: WorkerId,
    },
    /// The worker is over and its queues are empty: close its channels, forget it.
    Forget {
        /// Whom.
        worker: WorkerId,
    },
    /// Attach a filter that drops new clients, then accept the rest (stop, step 1).
    QuietListener {
        /// Which.
        listener: ListenerId,
    },
    /// Close the listener.
    CloseListener {
        /// Which.
        listener: ListenerId,
    },
    /// `reuseport` only: the slot is down for long; accept from its sockets and deal.
    AdoptSockets {
        /// Which slot.
        slot: SlotId,
        /// Begin, or end because the slot is served again.
        adopt: bool,
    },
    /// Everything has ended: leave with this result.
    Finish(Outcome),
    /// Something worth a line of log; no outcome is expected.
    Report(Report),
}

/// How the primary ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stopped as asked.
    Stopped,
    /// Stopped by a second request, without waiting.
    Killed,
    /// No worker ever became ready and the first ones died: exit 1.
    NeverStarted,
    /// Every slot failed: exit 1.
    AllFailed,
}

/// What the log, the events and the status say. The shell adds names, addresses and words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A worker has a process.
    Forked {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: Generation,
    },
    /// The program of a worker runs.
    Online {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
    },
    /// A worker could not be started: there is no process, or its program cannot be executed.
    NotForked {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
        /// Its generation.
        generation: Generation,
    },
    /// A worker listens on one more address.
    Listens {
        /// Which.
        worker: WorkerId,
        /// On what.
        listener: ListenerId,
    },
    /// A worker gets no more connections, for good: it finishes what it has, and ends.
    Disconnected {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
    },
    /// The main process of a worker ended, whoever wanted that. Once for each that was forked.
    Exited {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
        /// How.
        status: ExitStatus,
    },
    /// There is another number of slots.
    Scaled {
        /// So many there were.
        from: u16,
        /// So many there are.
        to: u16,
    },
    /// A scale that was asked for does not happen.
    ScaleRefused {
        /// Why.
        why: ScaleFault,
    },
    /// A slot, or all, gets no connections.
    Paused {
        /// Which; `None`: all.
        slot: Option<SlotId>,
    },
    /// A pause that was asked for does not happen.
    PauseRefused {
        /// Why.
        why: PauseFault,
    },
    /// A slot, or all, gets connections again.
    Resumed {
        /// Which; `None`: all.
        slot: Option<SlotId>,
    },
    /// Everything ends.
    Stopping {
        /// Without waiting.
        now: bool,
    },
    /// A worker became ready.
    Ready {
        /// Which.
        worker: WorkerId,
        /// In which slot.
        slot: SlotId,
        /// After how long.
        after: Duration,
    },
    /// Every wanted slot is ready, for the first time.
    AllReady,
    /// Not ready within `--ready-timeout`: killed and tried again with backoff.
    NotReadyInTime {
        /// Which.
        worker: WorkerId,
    },
    /// Status 0 while descendants live: the program went into the background.
    WentToBackground {
        /// Which.
        worker: WorkerId,
    },
    /// A worker ended that was not asked to.
    Died {
        /// Which.
        worker: WorkerId,
        /// How.
        status: ExitStatus,
        /// How many connections were queued for it.
        queued: u32,
    },
    /// A slot will start its next worker after this wait.
    BackingOff {
        /// Which.
        slot: SlotId,
        /// How long.
        wait: Duration,
        /// Crashes in a row.
        crashes: u32,
    },
    /// A slot used up its crash budget.
    SlotFailed {
        /// Which.
        slot: SlotId,
    },
    /// A slot goes down because the operator wants it: who is there leaves.
    SlotStopped {
        /// Which.
        slot: SlotId,
    },
    /// A worker exited with a status that is meant: its slot stays down.
    SlotDone {
        /// Which worker.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
        /// Its exit status.
        code: i32,
        /// How many connections were queued for it.
        queued: u32,
    },
    /// The workers of all slots have exited with a status that is meant: everything ends.
    AllDone,
    /// A worker's oldest queued connection waits longer than `--stall-after`.
    Late {
        /// Which.
        worker: WorkerId,
    },
    /// A late worker claims again.
    Recovered {
        /// Which.
        worker: WorkerId,
    },
    /// Connections were taken back from a late worker for an idle one.
    Stole {
        /// From whom.
        worker: WorkerId,
        /// How many.
        count: u32,
    },
    /// Connections of a dead worker were taken back.
    Salvaged {
        /// From whom.
        worker: WorkerId,
        /// How many.
        count: u32,
    },
    /// A worker is hung: it gets SIGABRT, and its slot the next worker at once.
    Hung {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
        /// It has claimed and closed nothing for so long.
        silent: Duration,
        /// How many connections are queued for it; the others were stolen from it before.
        queued: u32,
    },
    /// A worker has had its time: the next one is started beside it.
    RecycleBegan {
        /// The old one.
        worker: WorkerId,
        /// The new one.
        by: WorkerId,
        /// Their slot.
        slot: SlotId,
        /// What has been reached.
        why: RecycleReason,
    },
    /// The new worker has taken over; the old one drains.
    Recycled {
        /// The old one.
        worker: WorkerId,
        /// The new one.
        by: WorkerId,
        /// Their slot.
        slot: SlotId,
    },
    /// The new worker did not hold: the old one stays, and it is tried again.
    RecycleFailed {
        /// The new one.
        by: WorkerId,
        /// The slot.
        slot: SlotId,
        /// What happened to the new one.
        fault: Fault,
        /// Not before this has passed; `None`: not at all, as the operator may ask again.
        wait: Option<Duration>,
    },
    /// A worker that took over has too much memory at once: so will the next one. Said once for each
    /// slot, until a reload.
    NeedsMore {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
        /// How much it has.
        bytes: u64,
        /// It is replaced ever more rarely, down to once in this time.
        longest: Duration,
    },
    /// Clients have waited for longer than `--max-queue-wait`: who comes now is reset.
    ShedBegan {
        /// Where.
        listener: ListenerId,
        /// How many wait in the primary's hands.
        waiting: u32,
    },
    /// Nobody was reset for a while.
    ShedEnded {
        /// How many were.
        shed: u64,
    },
    /// The numbers on a worker's page contradict what the primary knows; it will be replaced.
    NumbersDoNotFit {
        /// Which.
        worker: WorkerId,
    },
    /// A worker that drains is told to end with this many connections (`None`: unknown).
    DrainCut {
        /// Which.
        worker: WorkerId,
        /// How many.
        active: Option<u32>,
        /// Why now.
        why: CutReason,
    },
    /// A drained worker ended.
    Drained {
        /// Which.
        worker: WorkerId,
    },
    /// A worker begins to drain while others go on.
    Drains {
        /// Which.
        worker: WorkerId,
        /// Its slot.
        slot: SlotId,
    },
    /// A reload begins.
    ReloadBegan {
        /// Of the workers that it starts.
        generation: Generation,
        /// It drains as it goes.
        rolling: bool,
    },
    /// A reload was asked for while one is under way: it comes next.
    ReloadQueued,
    /// A reload was asked for while everything stops: it will not come.
    ReloadRefused,
    /// A new worker has taken over its slot; the old one is parked.
    Parked {
        /// The old one.
        worker: WorkerId,
        /// The new one.
        by: WorkerId,
        /// Their slot.
        slot: SlotId,
    },
    /// A reload failed: a parked worker serves again.
    Unparked {
        /// Which.
        worker: WorkerId,
        /// In which slot.
        slot: SlotId,
    },
    /// The new workers that are ready are being watched.
    Soaking {
        /// How many are ready.
        ready: u16,
        /// For how long.
        wait: Duration,
    },
    /// Every slot has a worker of this generation; the old ones drain.
    ReloadDone {
        /// Which.
        generation: Generation,
    },
    /// A reload failed.
    ReloadFailed {
        /// The generation that did not come to be.
        generation: Generation,
        /// Why.
        why: ReloadFault,
        /// Slots that keep a worker of the new generation: their old one is gone.
        kept: u16,
    },
    /// Nobody of the reloads up to this generation is leaving any more.
    ReloadOver {
        /// Which.
        generation: Generation,
    },
}

/// Why a reload failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadFault {
    /// A new worker did not hold.
    Worker {
        /// Which.
        worker: WorkerId,
        /// In which slot.
        slot: SlotId,
        /// It was ready already: it failed while it was watched.
        was_ready: bool,
        /// What happened to it.
        fault: Fault,
    },
    /// Everything stops.
    Stopped,
}

/// What is wrong with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is no process: it could not be started.
    NotStarted,
    /// Not ready within `--ready-timeout`.
    NotReady,
    /// It ended.
    Ended(ExitStatus),
    /// It broke the protocol, its channel or its numbers.
    Broken,
    /// It claimed and closed nothing for `--hung-timeout`.
    Hung,
}

/// Why a worker that drains is told to end although it has connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutReason {
    /// `--drain-timeout`, or `--graceful-timeout` while everything stops.
    Time,
    /// `--max-draining`: too many drain.
    Crowd,
}

/// Why a worker is recycled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecycleReason {
    /// The operator asked for it.
    Asked,
    /// `--max-connections`: it was given so many.
    Connections(u64),
    /// `--max-lifetime`: it has been ready for so long.
    Lifetime(Duration),
    /// `--max-rss`: it has so many bytes.
    Memory(u64),
}

/// What a page says right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Connections claimed since the worker started (without a page: what SIOCOUTQ implies).
    pub claimed: u64,
    /// Claimed and not closed; `None` = unknown (no page).
    pub active: Option<u32>,
}

/// A pure view of the workers' loads: pages in the shell, an array in the simulator.
pub trait Loads {
    /// The word of the worker itself: cheap (a memory read), not to be trusted.
    fn load(&self, worker: WorkerId) -> Load;
    /// Messages that are in the worker's queues, from SIOCOUTQ on the primary's own ends: exact,
    /// one system call per channel. `None` when it cannot be told.
    fn queued_exact(&self, worker: WorkerId) -> Option<u32>;
    /// Whether what keeps a worker from claiming is that it gets no CPU, not what it does with it.
    /// Asked of suspects only, again and again until they are late: it reads files of /proc.
    fn lacks_cpu(&self, worker: WorkerId) -> bool;
    /// Whether a client with this mark ([`crate::mark`]) has a connection open at the worker, as the
    /// worker says; somebody else's mark may be the same. Unknown is no.
    fn holds(&self, worker: WorkerId, mark: u16) -> bool {
        let _ = (worker, mark);
        false
    }
}
