//! croupier-preload: makes an unmodified program a worker, by LD_PRELOAD.
//!
//! **Owns** what a process knows of its descriptors ([`table`]), the listeners it asked for
//! ([`place`]) and its seat at the worker's page. **Promises**: without `CROUPIER_CONTROL` in the
//! environment every hook is exactly libc; with it, a bind(2) and listen(2) that the primary deals
//! become a channel over the program's own descriptor, accept(2) becomes a claim, and closes are
//! counted. **Never** allocates, locks or panics in a hook, says nothing but the one line of [`version`],
//! and never changes errno on success:
//! hooks run in signal handlers, in forked children and (Python) in vforked ones.
//!
//! | file | has |
//! |---|---|
//! | `hooks` | the exported symbols, and nothing else is exported |
//! | `real` | the libc functions behind them |
//! | `table`, `place`, `identify` | what a descriptor is |
//! | `listen`, `options`, `epoll`, `fds` | bind, listen, and what the program did to its socket before |
//! | `accept`, `close` | claims and counted closes |
//! | `passed` | what the primary need not be asked again |
//! | `version` | what a program hears when the primary is of another version |
//!
//! One way of doing without state: a descriptor that the table does not know (after fork, exec, dup)
//! is recognised by its own name, since a channel is bound to one that starts with `croupier/`.

#![cfg(target_os = "linux")]

mod accept;
mod close;
mod epoll;
mod fds;
pub mod hooks;
mod identify;
mod listen;
mod mail;
mod options;
mod passed;
mod place;
mod real;
mod table;
mod version;

use croupier_wire::control::Contact;
use croupier_worker::claim::Seat;
use std::sync::OnceLock;

/// What the process has when it runs under croupier.
pub(crate) struct State {
    contact: Contact,
    table: table::Table,
}

static STATE: OnceLock<State> = OnceLock::new();
/// This process's place at its worker's page; taken with the first listener.
pub(crate) static SEAT: Seat = Seat::vacant();

/// `None`: not under croupier, or too early in the life of the process.
pub(crate) fn state() -> Option<&'static State> {
    STATE.get()
}

/// Runs before main(), with one thread: here libc may still allocate.
extern "C" fn start() {
    real::resolve();
    line_buffer();
    let Some(contact) = Contact::from_environment() else { return };
    let Ok(table) = table::Table::new() else { return };
    SEAT.know_libc();
    // A start twice is not possible; were it, the first would count.
    drop(STATE.set(State { contact, table }));
}

/// Workers' stdout is a pipe, where C stdio keeps lines back until 4 KiB are full: a log that shows
/// up at exit is no log. What stdbuf(1) does, by the same means; only where the primary asked for it.
fn line_buffer() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // SAFETY: the name is a C string; nobody changes the environment before main.
    if unsafe { libc::getenv(c"CROUPIER_LINE_BUFFERED".as_ptr()) }.is_null() {
        return;
    }
    // SAFETY: libc's own stream, which is set up before any constructor runs.
    let stream = unsafe { stdout };
    // SAFETY: nothing was written yet, and a null buffer lets stdio choose its own.
    unsafe { libc::setvbuf(stream, std::ptr::null_mut(), libc::_IOLBF, 0) };
}

#[used]
// SAFETY: the section holds pointers to functions without arguments, which is what `start` is.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
