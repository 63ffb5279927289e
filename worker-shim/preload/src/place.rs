//! The listeners of this process: sockets that are reserved (bound, as far as the program knows) and
//! channels.
//!
//! **Owns** [`PLACES_MAX`] places in static memory, which a forked child inherits by copy.
//! **Promises** that reading a place while another thread gives it up yields old or new words, never
//! undefined behaviour. **Never** refers to a descriptor by number: the table does.
//!
//! ```text
//!          bind: Done            listen: Dealt            shutdown, primary closed it
//!   Free ─────────────▶ Reserved ─────────────▶ Channel ─────────────────────────────▶ Shut
//!    ▲                     │                        │                                    │
//!    └──── close, Pass ────┴──────── close ─────────┴────────────── close ───────────────┘
//! ```

use croupier_wire::message::{ADDRESS_MAX, RawAddress};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Listeners that one process may have at a time; the next bind(2) fails with `ENOBUFS`.
pub(crate) const PLACES_MAX: usize = 60;

static PLACES: [Place; PLACES_MAX] = [const { Place::free() }; PLACES_MAX];

/// Which place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlaceId(pub(crate) u8);

/// What a place is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// Nothing.
    Free = 0,
    /// Being filled by a thread; nobody else looks.
    Filling = 1,
    /// bind(2) was granted, listen(2) has not come.
    Reserved = 2,
    /// Connections are dealt.
    Channel = 3,
    /// Was a channel; accept(2) is `EINVAL`.
    Shut = 4,
}

impl Role {
    const ALL: [Self; 5] = [Self::Free, Self::Filling, Self::Reserved, Self::Channel, Self::Shut];
}

const WORDS: usize = ADDRESS_MAX.div_ceil(8);

/// One listener.
#[derive(Debug)]
pub(crate) struct Place {
    role: AtomicU8,
    /// The process that bound or listened: its close ends the listener. 0: we only found it.
    pid: AtomicU32,
    /// The channel's number.
    channel: AtomicU32,
    /// `SO_COOKIE` of the reserved socket: it stays the same over dup and fork.
    cookie: AtomicU64,
    len: AtomicU8,
    words: [AtomicU64; WORDS],
}

impl Place {
    const fn free() -> Self {
        Self {
            role: AtomicU8::new(Role::Free as u8),
            pid: AtomicU32::new(0),
            channel: AtomicU32::new(0),
            cookie: AtomicU64::new(0),
            len: AtomicU8::new(0),
            words: [const { AtomicU64::new(0) }; WORDS],
        }
    }

    pub(crate) fn role(&self) -> Role {
        let byte = self.role.load(SeqCst);
        Role::ALL.into_iter().find(|role| *role as u8 == byte).unwrap_or(Role::Free)
    }

    pub(crate) fn channel(&self) -> u32 {
        self.channel.load(SeqCst)
    }

    pub(crate) fn cookie(&self) -> u64 {
        self.cookie.load(SeqCst)
    }

    /// What getsockname(2) answers.
    pub(crate) fn address(&self) -> RawAddress<ADDRESS_MAX> {
        let mut bytes = [0; WORDS * 8];
        for (to, word) in bytes.chunks_exact_mut(8).zip(&self.words) {
            to.copy_from_slice(&word.load(SeqCst).to_ne_bytes());
        }
        RawAddress::new(bytes.get(..usize::from(self.len.load(SeqCst))).unwrap_or(&[]))
    }

    /// Whether this process bound or listened here, rather than its parent.
    pub(crate) fn is_ours(&self) -> bool {
        self.pid.load(SeqCst) == std::process::id()
    }

    /// A reserved socket has become channel number `channel`.
    pub(crate) fn listen(&self, channel: u32, address: &RawAddress<ADDRESS_MAX>) {
        self.channel.store(channel, SeqCst);
        self.pid.store(std::process::id(), SeqCst);
        self.remember(address);
        self.role.store(Role::Channel as u8, SeqCst);
    }

    pub(crate) fn shut(&self) {
        self.role.store(Role::Shut as u8, SeqCst);
    }

    pub(crate) fn give_up(&self) {
        self.role.store(Role::Free as u8, SeqCst);
    }

    fn remember(&self, address: &RawAddress<ADDRESS_MAX>) {
        let bytes = address.bytes();
        for (word, from) in self.words.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded.iter_mut().zip(from).for_each(|(to, byte)| *to = *byte);
            word.store(u64::from_ne_bytes(padded), SeqCst);
        }
        self.len.store(u8::try_from(bytes.len()).unwrap_or(0), SeqCst);
    }
}

impl PlaceId {
    /// A place for a socket whose bind(2) was granted. `None`: all are taken.
    pub(crate) fn reserve(cookie: u64, address: &RawAddress<ADDRESS_MAX>) -> Option<Self> {
        let (id, place) = Self::fill()?;
        place.cookie.store(cookie, SeqCst);
        place.pid.store(std::process::id(), SeqCst);
        place.remember(address);
        place.role.store(Role::Reserved as u8, SeqCst);
        Some(id)
    }

    /// A place for a socket that another program of the worker bound: its end is not ours to tell.
    pub(crate) fn recall(cookie: u64, address: &RawAddress<ADDRESS_MAX>) -> Option<Self> {
        let id = Self::reserve(cookie, address)?;
        id.place()?.pid.store(0, SeqCst);
        Some(id)
    }

    /// A place for a channel that another process listened on.
    pub(crate) fn attach(channel: u32, address: &RawAddress<ADDRESS_MAX>) -> Option<Self> {
        let (id, place) = Self::fill()?;
        place.listen(channel, address);
        place.pid.store(0, SeqCst);
        Some(id)
    }

    /// The first place that `wanted` says yes to.
    pub(crate) fn find(wanted: impl Fn(&Place) -> bool) -> Option<Self> {
        Self::all().find(|(_, place)| wanted(place)).map(|(id, _)| id)
    }

    /// The place; `None` for an index that a table's byte cannot mean.
    pub(crate) fn place(self) -> Option<&'static Place> {
        PLACES.get(usize::from(self.0))
    }

    fn fill() -> Option<(Self, &'static Place)> {
        let (free, filling) = (Role::Free as u8, Role::Filling as u8);
        Self::all().find(|(_, p)| p.role.compare_exchange(free, filling, SeqCst, SeqCst).is_ok())
    }

    fn all() -> impl Iterator<Item = (Self, &'static Place)> {
        (0..).map(Self).zip(&PLACES)
    }
}
