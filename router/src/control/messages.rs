//! What a client asks a primary and what it answers: one JSON object a line, one request and one
//! reply per connection; before the reply there may be lines that say how far it is.
//!
//! Promises: [`Status`] is what `status --json` prints; `schema` grows when a field changes its
//! meaning or goes, not when one is added. Unknown is null. Never does: I/O.

use croupier_core::event::Scale;
use serde::{Deserialize, Serialize};

/// Longest request, with its newline.
pub const REQUEST_MAX: usize = 4096;
/// Longest reply that a client reads: 1024 workers need about 512 KiB.
pub const REPLY_MAX: usize = 4 << 20;
/// [`Status::schema`] of this version.
pub const SCHEMA: u32 = 1;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who is there? Answered [`Reply::Done`].
    Ping,
    /// Answered [`Reply::Status`].
    Status,
    /// Answered [`Reply::Done`] at once; the connection ends when the primary has ended.
    Stop {
        /// Kill the workers instead of draining them.
        now: bool,
    },
    /// These slots are to be up. [`Reply::Said`] for each, then, when all are, [`Reply::Done`], or
    /// [`Reply::Failed`].
    Start {
        /// By number.
        slots: Vec<u16>,
        /// If not: answered [`Reply::Done`] at once.
        wait: bool,
    },
    /// These slots are to be down. [`Reply::Said`] for each, then, when nobody is there any more,
    /// [`Reply::Done`], or [`Reply::Failed`].
    StopSlots {
        /// By number.
        slots: Vec<u16>,
        /// If not: answered [`Reply::Done`] at once.
        wait: bool,
    },
    /// New workers instead of the old. [`Reply::Said`] for each step, then, when all that leave have
    /// left, [`Reply::Done`] or [`Reply::Failed`].
    Reload {
        /// Drain the old workers as they are replaced.
        rolling: bool,
        /// If not: answered [`Reply::Done`] at once.
        wait: bool,
    },
    /// Another number of slots. [`Reply::Said`] for each step, then, when those that come are up and those
    /// that go have gone, [`Reply::Done`] or [`Reply::Failed`].
    Scale {
        /// How many, or how many more or fewer.
        by: ScaleBy,
        /// If not: answered [`Reply::Done`] at once.
        wait: bool,
    },
    /// These slots, or all if none is named, get no connections from now on.
    Pause {
        /// By number.
        slots: Vec<u16>,
    },
    /// These slots get connections again; if none is named every pause ends.
    Resume {
        /// By number.
        slots: Vec<u16>,
    },
    /// New workers in these slots, or in all if none is named, one after the other. [`Reply::Said`] for
    /// each step, then [`Reply::Done`] or [`Reply::Failed`].
    Restart {
        /// By number.
        slots: Vec<u16>,
        /// If not: answered [`Reply::Done`] at once.
        wait: bool,
    },
    /// A signal to the worker of a slot.
    Kill {
        /// By number.
        slot: u16,
        /// By number.
        signal: i32,
    },
    /// What happens from now on: [`Reply::Event`] for each, until the primary ends.
    Events,
    /// What workers printed: [`Reply::Said`] for each line, then [`Reply::Done`].
    Logs {
        /// Only of this slot.
        slot: Option<u16>,
        /// So many of the last lines of each worker.
        lines: u32,
        /// And those that follow, until the primary ends.
        follow: bool,
        /// Each line as a JSON object, instead of `[w2] text`.
        json: bool,
    },
    /// Answered when it is so.
    Wait {
        /// When what?
        r#for: Awaited,
    },
}

/// What `croupier scale` is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleBy {
    /// So many.
    To(u16),
    /// So many more.
    Up(u16),
    /// So many fewer.
    Down(u16),
}

impl From<Scale> for ScaleBy {
    fn from(scale: Scale) -> Self {
        match scale {
            Scale::To(count) => Self::To(count),
            Scale::Up(count) => Self::Up(count),
            Scale::Down(count) => Self::Down(count),
        }
    }
}

impl From<ScaleBy> for Scale {
    fn from(by: ScaleBy) -> Self {
        match by {
            ScaleBy::To(count) => Self::To(count),
            ScaleBy::Up(count) => Self::Up(count),
            ScaleBy::Down(count) => Self::Down(count),
        }
    }
}

/// What `croupier wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Awaited {
    /// Every wanted slot has a ready worker: [`Reply::Done`]. Will never be so: [`Reply::Failed`].
    Ready,
    /// The primary has ended: the connection ends, with or without a reply before.
    Stopped,
}

/// What a primary answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase")]
pub enum Reply {
    /// Not the reply yet: how far it is.
    Said {
        /// A sentence.
        text: String,
    },
    /// Something happened.
    Event(Box<Happening>),
    /// It is so.
    Done,
    /// How things stand.
    Status(Box<Status>),
    /// It is not so, and why.
    Failed {
        /// A sentence.
        why: String,
    },
}

impl Reply {
    /// The reply as its line, newline included.
    #[must_use]
    pub fn to_line(&self) -> String {
        line(self)
    }
}

impl Request {
    /// The request as its line, newline included.
    #[must_use]
    pub fn to_line(&self) -> String {
        line(self)
    }
}

fn line(message: &impl Serialize) -> String {
    // These types have string keys and no failing parts; should that change, an empty line is
    // refused by the other end.
    let mut text = serde_json::to_string(message).unwrap_or_default();
    text.push('\n');
    text
}

/// Something that happened: a line of `croupier events --json`. What belongs to a worker is null where
/// there is none; what belongs to one kind of event is there only with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Happening {
    /// Counts up by one with each event since the primary started; of `missed` it is null.
    pub seq: Option<u64>,
    /// When, in UTC.
    pub time: String,
    /// What: README, "Events".
    pub event: String,
    /// The id of the worker.
    pub worker: Option<u32>,
    /// The slot.
    pub slot: Option<u16>,
    /// The generation: of the worker, or of the reload.
    pub generation: Option<u32>,
    /// The main process of the worker; of `following` the primary.
    pub pid: Option<u32>,
    /// `listening`: on what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `ready`: how long after its start, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// `stolen`: how many connections; `missed`: how many events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// `exit`: `exit 1`, `SIGKILL`, `OOM kill`; `fork-failed`, `reload-failed`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// `reload-started`: it drains as it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling: Option<bool>,
    /// `scaled`: so many slots there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u16>,
    /// `scaled`: so many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u16>,
    /// `stop`: without waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<bool>,
}

impl Happening {
    /// What a reader that is slow is told where events are missing.
    #[must_use]
    pub fn missed(count: u64, time: String) -> Self {
        Self { time, event: "missed".into(), count: Some(count), ..Self::default() }
    }
}

/// Everything about one primary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The primary.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `-p`.
    pub policy: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// How many slots there are.
    #[serde(default = "all")]
    pub slots: u16,
    /// Nobody gets connections until `croupier resume`.
    #[serde(default)]
    pub paused: bool,
    /// It was asked to stop; with `--stop-delay` it still serves all that comes.
    #[serde(default)]
    pub stopping: bool,
    /// A reload is under way.
    #[serde(default)]
    pub reloading: bool,
    /// Every listener.
    pub listeners: Vec<ListenerStatus>,
    /// Every worker, and for each slot without one a line of its own; by slot, then by id.
    pub workers: Vec<WorkerStatus>,
    /// What the operator could do better: each piece once, for as long as the primary runs.
    #[serde(default)]
    pub advice: Vec<Advice>,
    /// Sums since the start.
    pub totals: Totals,
}

/// A piece of advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// `proxy`, `backlog`, `open-files`, `somaxconn`, `queue-limit`, `workers` or `lag`.
    pub about: String,
    /// What was seen and what to do.
    pub text: String,
}

/// Of a version that does not say it: none is beyond.
const fn all() -> u16 {
    u16::MAX
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `127.0.0.1:8000`, `[::]:80`, `unix:/run/app.sock`.
    pub address: String,
    /// How its connections are dealt.
    pub policy: String,
    /// Connections accepted here by the primary.
    pub accepted: u64,
    /// The listen(2) backlog.
    pub backlog: u32,
    /// Clients in the backlog now.
    pub queue_depth: Option<u32>,
}

/// What a worker, or a slot without one, is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Not ready yet.
    Starting,
    /// Gets connections.
    Ready,
    /// Gets none, and stays.
    Parked,
    /// Finishes its connections, then ends.
    Draining,
    /// Is being killed.
    Killing,
    /// The slot waits before the next start.
    Backoff,
    /// The slot used up its crash budget.
    Failed,
    /// The slot is not wanted.
    Down,
}

impl WorkerState {
    /// The word in JSON and in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Parked => "parked",
            Self::Draining => "draining",
            Self::Killing => "killing",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Down => "down",
        }
    }
}

/// One worker, or a slot that has none now (then `id` and what belongs to a worker is null).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "facts beside the state, each by itself")]
pub struct WorkerStatus {
    /// Its slot.
    pub slot: u16,
    /// Its id.
    pub id: Option<u32>,
    /// Its generation.
    pub generation: Option<u32>,
    /// Its main process.
    pub pid: Option<u32>,
    /// What it is doing.
    pub state: WorkerState,
    /// Connections sent to it, those taken back not counted.
    pub handed_off: Option<u64>,
    /// Connections that it took.
    pub claimed: Option<u64>,
    /// Of these: closed.
    pub closed: Option<u64>,
    /// Handed off, not yet claimed.
    pub queued: Option<u32>,
    /// Claimed, not yet closed (an estimate).
    pub active: Option<u32>,
    /// How many queued connections it may have now.
    pub window: Option<u16>,
    /// It gets no connections until `croupier resume`.
    #[serde(default)]
    pub paused: bool,
    /// Its oldest queued connection waits longer than `--stall-after`.
    pub late: bool,
    /// Why it is to be replaced, or drains: `connections`, `lifetime` or `memory`.
    #[serde(default)]
    pub recycle: Option<String>,
    /// How often this slot's worker was replaced because it ended by itself.
    pub restarts: u32,
    /// How the last worker of this slot ended that was not asked to: `exit 1`, `SIGSEGV (core
    /// dumped)`, `OOM kill`.
    #[serde(default)]
    pub last_exit: Option<String>,
    /// Seconds since it was started.
    pub uptime_s: Option<u64>,
    /// Resident memory of its main process.
    pub rss_bytes: Option<u64>,
    /// Median time from hand-off to claim, in microseconds.
    pub queued_p50_us: Option<u64>,
    /// 99th percentile of the same.
    pub queued_p99_us: Option<u64>,
}

/// Sums over all workers and listeners since the primary started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Accepted connections.
    pub accepted: u64,
    /// Handed-off connections.
    pub handed_off: u64,
    /// Taken back from dead workers.
    pub salvaged: u64,
    /// Taken back from late workers.
    pub stolen: u64,
    /// Closed by the primary, served by nobody.
    pub refused: u64,
    /// Reset because others had waited for longer than `--max-queue-wait`.
    #[serde(default)]
    pub shed: u64,
    /// How often nobody had room and clients were left in the backlog.
    pub waits: u64,
    /// Messages to workers' processes that had no room for them.
    pub messages_dropped: u64,
    /// Lines of output and log that nobody read in time, or that the log file did not take.
    #[serde(default)]
    pub lines_dropped: u64,
    /// Workers ended because they hung for `--hung-timeout`.
    #[serde(default)]
    pub hung: u64,
    /// Workers replaced because they had had their time.
    #[serde(default)]
    pub recycled: u64,
    /// Median time from accept to hand-off, in microseconds; 0 is in the turn of the loop that accepted it.
    pub accept_to_handoff_p50_us: Option<u64>,
    /// 99th percentile of the same.
    pub accept_to_handoff_p99_us: Option<u64>,
    /// The longest time that the loop was at work in one turn, waiting for a CPU aside, in microseconds.
    pub longest_turn_us: u64,
    /// The longest time that it waited for a CPU in one turn, in microseconds.
    pub longest_wait_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_lines_of_json() {
        for (request, line) in [
            (Request::Ping, "{\"request\":\"ping\"}\n"),
            (Request::Status, "{\"request\":\"status\"}\n"),
            (Request::Stop { now: true }, "{\"request\":\"stop\",\"now\":true}\n"),
            (
                Request::Reload { rolling: false, wait: true },
                "{\"request\":\"reload\",\"rolling\":false,\"wait\":true}\n",
            ),
            (
                Request::Start { slots: vec![2], wait: true },
                "{\"request\":\"start\",\"slots\":[2],\"wait\":true}\n",
            ),
            (
                Request::StopSlots { slots: vec![0, 3], wait: false },
                "{\"request\":\"stop-slots\",\"slots\":[0,3],\"wait\":false}\n",
            ),
            (
                Request::Scale { by: ScaleBy::Up(2), wait: true },
                "{\"request\":\"scale\",\"by\":{\"up\":2},\"wait\":true}\n",
            ),
            (Request::Pause { slots: vec![] }, "{\"request\":\"pause\",\"slots\":[]}\n"),
            (
                Request::Kill { slot: 1, signal: 15 },
                "{\"request\":\"kill\",\"slot\":1,\"signal\":15}\n",
            ),
            (Request::Events, "{\"request\":\"events\"}\n"),
            (
                Request::Logs { slot: Some(2), lines: 20, follow: true, json: false },
                "{\"request\":\"logs\",\"slot\":2,\"lines\":20,\"follow\":true,\"json\":false}\n",
            ),
            (Request::Wait { r#for: Awaited::Ready }, "{\"request\":\"wait\",\"for\":\"ready\"}\n"),
        ] {
            assert_eq!(request.to_line(), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
        for bad in ["{}", "{\"request\":\"stop\"}", "{\"request\":\"reboot\"}", "[]", "1"] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn events_say_what_belongs_to_them_and_null_for_what_is_not_there() {
        let stop = Happening {
            seq: Some(7),
            time: "2026-01-02T03:04:05.678Z".into(),
            event: "stop".into(),
            now: Some(false),
            ..Happening::default()
        };
        let line = Reply::Event(Box::new(stop.clone())).to_line();
        assert_eq!(
            line,
            "{\"reply\":\"event\",\"seq\":7,\"time\":\"2026-01-02T03:04:05.678Z\",\"event\":\"stop\",\
             \"worker\":null,\"slot\":null,\"generation\":null,\"pid\":null,\"now\":false}\n"
        );
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), Reply::Event(Box::new(stop)));
    }

    #[test]
    fn every_slot_fits_a_request() {
        let slots: Vec<u16> = (0..crate::config::WORKERS_MAX).collect();
        let line = Request::StopSlots { slots, wait: false }.to_line();
        assert!(line.len() <= REQUEST_MAX, "{}", line.len());
    }

    #[test]
    fn unknown_is_null() {
        let slot = WorkerStatus {
            slot: 1,
            id: None,
            generation: None,
            pid: None,
            state: WorkerState::Backoff,
            handed_off: None,
            claimed: None,
            closed: None,
            queued: None,
            active: None,
            window: None,
            paused: false,
            late: false,
            recycle: None,
            restarts: 3,
            last_exit: None,
            uptime_s: None,
            rss_bytes: None,
            queued_p50_us: None,
            queued_p99_us: None,
        };
        let text = serde_json::to_string(&slot).unwrap();
        assert_eq!(
            text,
            "{\"slot\":1,\"id\":null,\"generation\":null,\"pid\":null,\"state\":\"backoff\",\
             \"handed_off\":null,\"claimed\":null,\"closed\":null,\"queued\":null,\"active\":null,\
             \"window\":null,\"paused\":false,\"late\":false,\"recycle\":null,\"restarts\":3,\"last_exit\":null,\"uptime_s\":null,\"rss_bytes\":null,\
             \"queued_p50_us\":null,\"queued_p99_us\":null}"
        );
        assert_eq!(serde_json::from_str::<WorkerStatus>(&text).unwrap(), slot);
    }

    #[test]
    fn a_status_of_every_worker_fits_a_reply() {
        let worker = WorkerStatus {
            slot: u16::MAX,
            id: Some(u32::MAX),
            generation: Some(u32::MAX),
            pid: Some(u32::MAX),
            state: WorkerState::Starting,
            handed_off: Some(u64::MAX),
            claimed: Some(u64::MAX),
            closed: Some(u64::MAX),
            queued: Some(u32::MAX),
            active: Some(u32::MAX),
            window: Some(u16::MAX),
            paused: false,
            late: false,
            recycle: Some("connections".into()),
            restarts: u32::MAX,
            last_exit: Some("SIGVTALRM (core dumped)".into()),
            uptime_s: Some(u64::MAX),
            rss_bytes: Some(u64::MAX),
            queued_p50_us: Some(u64::MAX),
            queued_p99_us: Some(u64::MAX),
        };
        let line = serde_json::to_string(&worker).unwrap();
        // Twice as many as slots: at a reload both generations are there.
        let most = line.len() * 2 * usize::from(crate::config::WORKERS_MAX);
        assert!(most < REPLY_MAX / 2, "{most}");
    }
}
