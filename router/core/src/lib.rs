//! The decisions of croupier: who gets the next connection, and which workers live.
//!
//! A pure state machine. No clock, no socket, no thread can get in: `no_std`, no dependencies, no
//! unsafe code. The shell tells it facts and does what it asks:
//!
//! ```text
//!   sockets, pidfds,        Event (a fact)      ┌──────┐   Action (a request)     accept4, sendmsg,
//!   timers, doorbells  ───────────────────────▶ │ Core │ ─────────────────────▶   fork, kill, …
//!                        handle(event, now,     └──────┘   poll_action()             │
//!        ▲               &loads)                   │                                 │
//!        │                                         └─ poll_timeout(): sleep          │
//!        │                                            until then, at the latest      │
//!        └───────────────────── the outcome, as the next event ◀─────────────────────┘
//! ```
//!
//! Four kinds of method on [`Core`]:
//!
//! | | | |
//! |---|---|---|
//! | in | [`Core::handle`] | the only way in which anything changes, apart from … |
//! | ask | [`Core::wants_accept`] | … this: may a connection be taken from this listener? It chooses who would get it, and sets doorbells if the answer is no |
//! | out | [`Core::poll_action`], [`Core::poll_timeout`] | what to do now, and when to come back |
//! | look | [`Core::workers`], [`Core::slots`], [`Core::totals`], … | for the status; they change nothing |
//!
//! Rules of the seam:
//!
//! - **One mutation, then drain.** After each `handle` and each `wants_accept` the shell drains
//!   `poll_action` and feeds the outcome of each action back as an event.
//! - **Actions are requests, events are facts.** A hand-off counts when [`event::Event::HandedOff`]
//!   says so.
//! - **Stale is normal.** An event about a worker, connection or listener that the core does not
//!   know (any more) is dropped; it never panics. Only a connection is never dropped: one that was
//!   taken back from anybody is dealt again.
//! - **Loads are a word, not a fact.** A worker writes its own page; what the core concludes from it
//!   is clamped, and confirmed with the kernel's count before anything that cannot be undone.
//! - **Everything is bounded**: actions per event, held connections ([`HELD_MAX`]), listeners
//!   ([`LISTENERS_MAX`]), timers (none while nothing is under way).

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod config;
pub mod event;
pub mod time;

mod admission;
mod audit;
mod bells;
mod by_id;
mod check;
mod dealer;
mod hung;
mod keep;
mod late;
mod ledger;
mod life;
mod names;
mod pause;
mod policies;
mod primary;
mod recycle;
mod reload;
mod restart;
mod salvage;
mod scale;
mod scheduler;
mod seat;
mod slot;
mod sticky;
mod stop;
mod views;
mod wants;
mod window;
mod worker;

pub use by_id::find_by_id;
pub use ledger::HELD_MAX;
pub use primary::Core;
pub use seat::LISTENERS_MAX;
pub use slot::Want;
pub use sticky::{MARKS, mark};
pub use views::{SlotView, Totals, WorkerView};
