//! What crosses between primary and worker, byte for byte.
//!
//! Two protocols, both over `AF_UNIX` `SOCK_SEQPACKET`, all integers little-endian, all messages of
//! one fixed size so that nothing has to allocate to read or write them:
//!
//! * the **channel** carries one [`Handoff`] and exactly one descriptor per connection;
//! * the **control socket for workers** carries one [`Request`] up and one [`Answer`] down per
//!   connection: a process connects, asks, reads, closes, and keeps nothing open.
//!
//! Socket addresses travel as the kernel's own `struct sockaddr` bytes: hooks copy, never convert.
//!
//! This module never touches a socket and never panics: `decode` is total over all byte strings.

/// Version of both protocols. Primary and shim of different builds refuse each other by name.
pub const VERSION: u8 = 1;
/// Bytes of a [`Handoff`]. Below 192, so that one queued message costs 768 bytes of send buffer.
pub const HANDOFF_LEN: usize = 48;
/// Bytes of a [`Request`].
pub const REQUEST_LEN: usize = 448;
/// Bytes of an [`Answer`].
pub const ANSWER_LEN: usize = 160;
/// Longest socket address: `sizeof(struct sockaddr_un)`.
pub const ADDRESS_MAX: usize = 110;
/// Bytes of a peer address in a [`Handoff`]: `sizeof(struct sockaddr_in6)`.
pub const PEER_MAX: usize = 28;
/// Socket options that one [`Request`] may carry.
pub const OPTIONS_MAX: usize = 16;
/// Descriptors that one [`Answer`] may carry.
pub const ANSWER_FDS_MAX: usize = 4;
/// What the abstract name of every channel's receive end starts with, after the leading NUL:
/// `croupier/<pid of the primary>/<a random number>/<worker id>/<channel>`.
pub const CHANNEL_PREFIX: &[u8] = b"croupier/";
/// Environment variable: `<32 hex digits of the token>@<abstract name of the control socket>`.
pub const CONTROL_VAR: &str = "CROUPIER_CONTROL";
/// Environment variables that tell a worker who it is (decimal numbers).
pub const WORKER_VAR: &str = "CROUPIER_WORKER_ID";
/// See [`WORKER_VAR`].
pub const SLOT_VAR: &str = "CROUPIER_SLOT";
/// See [`WORKER_VAR`].
pub const GENERATION_VAR: &str = "CROUPIER_GENERATION";

/// Why bytes are not a message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireError {
    /// Fewer or more bytes than the message has.
    Length,
    /// Another magic number or version.
    Version(u8),
    /// A kind that does not exist.
    Kind(u8),
    /// A length field that points past its array.
    Bound,
}

/// A `struct sockaddr` with room for `N` bytes. `len` never exceeds `N`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawAddress<const N: usize> {
    len: u8,
    bytes: [u8; N],
}

impl<const N: usize> RawAddress<N> {
    /// No address: length 0.
    pub const NONE: Self = Self { len: 0, bytes: [0; N] };

    /// Copies `bytes`; what does not fit is cut off, as accept(2) does.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut address = Self::NONE;
        let mut len = 0;
        for (to, from) in address.bytes.iter_mut().zip(bytes) {
            *to = *from;
            len += 1;
        }
        address.len = len;
        address
    }

    /// The bytes of the `struct sockaddr`.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// `sa_family`, or 0 (`AF_UNSPEC`) when there is none.
    #[must_use]
    pub fn family(&self) -> u16 {
        match self.bytes() {
            [low, high, ..] => u16::from_ne_bytes([*low, *high]),
            _ => 0,
        }
    }
}

impl<const N: usize> core::fmt::Debug for RawAddress<N> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "RawAddress({:?})", self.bytes())
    }
}

/// One connection, dealt. Exactly one descriptor travels with it.
///
/// ```text
/// 0 'c'  1 version  2 flags  3 peer length  4..6 mark  6..8 zero  8..16 accepted at (ns)  16..44 peer  44..48 zero
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handoff {
    /// The descriptor already has `O_NONBLOCK` (the flag travels with the open file).
    pub nonblocking: bool,
    /// Where to note that this client has a connection open ([`crate::page::Page::note_open`]); 0:
    /// nowhere.
    pub mark: u16,
    /// `CLOCK_MONOTONIC` at the start of the primary's turn that handed it to this worker, in nanoseconds.
    pub handed_off_at: u64,
    /// The peer's address.
    pub peer: RawAddress<PEER_MAX>,
}

const HANDOFF_MAGIC: u8 = b'c';
const FLAG_NONBLOCKING: u8 = 1;

impl Handoff {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HANDOFF_LEN] {
        let mut to = Writer::<HANDOFF_LEN>::new();
        to.put(&[HANDOFF_MAGIC, VERSION]);
        to.put(&[if self.nonblocking { FLAG_NONBLOCKING } else { 0 }, self.peer.len]);
        to.put(&self.mark.to_le_bytes());
        to.put(&[0; 2]);
        to.put(&self.handed_off_at.to_le_bytes());
        to.put(&self.peer.bytes);
        to.bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`WireError`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes, HANDOFF_LEN)?;
        from.magic(HANDOFF_MAGIC)?;
        let [flags, peer_len] = from.take()?;
        let mark = u16::from_le_bytes(from.take()?);
        let _zero: [u8; 2] = from.take()?;
        let handed_off_at = u64::from_le_bytes(from.take()?);
        let peer = from.address(peer_len)?;
        Ok(Self { nonblocking: flags & FLAG_NONBLOCKING != 0, mark, handed_off_at, peer })
    }
}

/// What a process of a worker asks the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// bind(2): may this address be dealt? The socket stays unbound if so. `options` carries
    /// `SO_REUSEADDR`, `SO_REUSEPORT` and `IPV6_V6ONLY` where they are set, and the socket's `SO_COOKIE`.
    /// Without an address: bound as this worker bound the socket of that cookie before, which the answer
    /// says; [`Verdict::Pass`] if it did not. So asks a process that got the socket over exec(2) or from
    /// another process, and has the memory of neither.
    Bind = 1,
    /// listen(2) on an address reserved by [`Kind::Bind`]; `backlog` and `options` are the socket's.
    Listen = 2,
    /// A process that found a channel by its name (after exec) wants page, doorbell and address.
    /// `channel` says which; 0 asks for page and doorbell only.
    Attach = 3,
    /// The program closed its listening descriptor `channel`: deal nothing more there.
    Close = 4,
    /// The program says that it is ready.
    Ready = 5,
    /// setsockopt(2) on a listening descriptor, after listen: `options` has the one option.
    SetOption = 6,
    /// The program closed a socket that was reserved and never listened on.
    Unbind = 7,
    /// A process wants messages of the primary: [`Verdict::Done`] and a socket ([`crate::post`]).
    Post = 8,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Bind,
        Self::Listen,
        Self::Attach,
        Self::Close,
        Self::Ready,
        Self::SetOption,
        Self::Unbind,
        Self::Post,
    ];
}

/// One integer socket option, as getsockopt(2) returned it. `SO_LINGER` and `SO_COOKIE` have their
/// second word in `extra`; every other option leaves it 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SocketOption {
    /// `SOL_SOCKET`, `IPPROTO_TCP`, `IPPROTO_IPV6`, …
    pub level: i32,
    /// The option's number at that level.
    pub name: i32,
    /// Its value.
    pub value: i32,
    /// Second word of `struct linger`.
    pub extra: i32,
}

/// A question of a worker's process to the primary.
///
/// ```text
/// 0 'q'  1 version  2 kind  3 address length  4 number of options  5..8 zero  8..24 token
/// 24..28 backlog  28..32 channel  32..142 address  142..144 zero  144..400 options  400..448 zero
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub kind: Kind,
    /// The secret from [`CONTROL_VAR`]: it says which worker asks.
    pub token: [u8; 16],
    /// listen(2)'s backlog.
    pub backlog: i32,
    /// A channel's number (the last part of its name), where the kind names one.
    pub channel: u32,
    /// The address, where the kind names one.
    pub address: RawAddress<ADDRESS_MAX>,
    options: [SocketOption; OPTIONS_MAX],
    options_len: u8,
}

const REQUEST_MAGIC: u8 = b'q';

impl Request {
    /// A request with nothing but its kind and token.
    #[must_use]
    pub const fn new(kind: Kind, token: [u8; 16]) -> Self {
        Self {
            kind,
            token,
            backlog: 0,
            channel: 0,
            address: RawAddress::NONE,
            options: [SocketOption { level: 0, name: 0, value: 0, extra: 0 }; OPTIONS_MAX],
            options_len: 0,
        }
    }

    /// Adds an option; returns whether there was room.
    pub fn push_option(&mut self, option: SocketOption) -> bool {
        match self.options.get_mut(usize::from(self.options_len)) {
            Some(free) => {
                *free = option;
                self.options_len += 1;
                true
            }
            None => false,
        }
    }

    /// Adds the `SO_COOKIE` of the socket that this is about; returns whether there was room.
    pub fn push_cookie(&mut self, cookie: u64) -> bool {
        let [a, b, c, d, e, f, g, h] = cookie.to_le_bytes();
        self.push_option(SocketOption {
            level: libc::SOL_SOCKET,
            name: libc::SO_COOKIE,
            value: i32::from_le_bytes([a, b, c, d]),
            extra: i32::from_le_bytes([e, f, g, h]),
        })
    }

    /// What [`Self::push_cookie`] added.
    #[must_use]
    pub fn cookie(&self) -> Option<u64> {
        let is_it = |o: &&SocketOption| (o.level, o.name) == (libc::SOL_SOCKET, libc::SO_COOKIE);
        let option = self.options().iter().find(is_it)?;
        let [a, b, c, d] = option.value.to_le_bytes();
        let [e, f, g, h] = option.extra.to_le_bytes();
        Some(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// The options, in the order in which they were added.
    #[must_use]
    pub fn options(&self) -> &[SocketOption] {
        self.options.get(..usize::from(self.options_len)).unwrap_or(&[])
    }

    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut to = Writer::<REQUEST_LEN>::new();
        to.put(&[REQUEST_MAGIC, VERSION, self.kind as u8, self.address.len, self.options_len]);
        to.put(&[0; 3]);
        to.put(&self.token);
        to.put(&self.backlog.to_le_bytes());
        to.put(&self.channel.to_le_bytes());
        to.put(&self.address.bytes);
        to.put(&[0; 2]);
        for option in &self.options {
            for word in [option.level, option.name, option.value, option.extra] {
                to.put(&word.to_le_bytes());
            }
        }
        to.bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`WireError`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes, REQUEST_LEN)?;
        from.magic(REQUEST_MAGIC)?;
        let [kind, address_len, options_len] = from.take()?;
        let kind = Kind::ALL.into_iter().find(|k| *k as u8 == kind).ok_or(WireError::Kind(kind))?;
        if usize::from(options_len) > OPTIONS_MAX {
            return Err(WireError::Bound);
        }
        let _zero: [u8; 3] = from.take()?;
        let mut request = Self::new(kind, from.take()?);
        request.backlog = i32::from_le_bytes(from.take()?);
        request.channel = u32::from_le_bytes(from.take()?);
        request.address = from.address(address_len)?;
        let _zero: [u8; 2] = from.take()?;
        for option in &mut request.options {
            option.level = i32::from_le_bytes(from.take()?);
            option.name = i32::from_le_bytes(from.take()?);
            option.value = i32::from_le_bytes(from.take()?);
            option.extra = i32::from_le_bytes(from.take()?);
        }
        request.options_len = options_len;
        Ok(request)
    }
}

/// What the primary decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Not croupier's: do what libc does.
    Pass = 0,
    /// Bind: the address is reserved; leave the socket unbound. Also "done" for Close, Ready, …
    Done = 1,
    /// Listen, Attach: connections are dealt. Descriptors: page, doorbell, and for Listen the
    /// channel's receive end.
    Dealt = 2,
    /// Listen: the worker accepts by itself (policies `shared` and `reuseport`). Descriptors: page,
    /// doorbell, the listening socket; and with `reuseport` a channel, on which the primary deals what
    /// waits at a slot that is down, announced by [`crate::page::BellWords::mail`].
    Socket = 3,
    /// Refused; `errno` says why.
    Refused = 4,
}

impl Verdict {
    const ALL: [Self; 5] = [Self::Pass, Self::Done, Self::Dealt, Self::Socket, Self::Refused];
}

/// The primary's answer.
///
/// ```text
/// 0 'a'  1 version  2 verdict  3 address length  4..8 errno  8..12 channel  12..122 address  122..160 zero
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What was decided.
    pub verdict: Verdict,
    /// With [`Verdict::Refused`]: the errno for the program. 0 otherwise.
    pub errno: i32,
    /// The channel's number, for Listen and Attach.
    pub channel: u32,
    /// What getsockname(2) is to answer: the listener's address.
    pub address: RawAddress<ADDRESS_MAX>,
}

const ANSWER_MAGIC: u8 = b'a';

impl Answer {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        let mut to = Writer::<ANSWER_LEN>::new();
        to.put(&[ANSWER_MAGIC, VERSION, self.verdict as u8, self.address.len]);
        to.put(&self.errno.to_le_bytes());
        to.put(&self.channel.to_le_bytes());
        to.put(&self.address.bytes);
        to.bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`WireError`] for any other bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(bytes, ANSWER_LEN)?;
        from.magic(ANSWER_MAGIC)?;
        let [verdict, address_len] = from.take()?;
        let verdict = Verdict::ALL
            .into_iter()
            .find(|v| *v as u8 == verdict)
            .ok_or(WireError::Kind(verdict))?;
        let errno = i32::from_le_bytes(from.take()?);
        let channel = u32::from_le_bytes(from.take()?);
        Ok(Self { verdict, errno, channel, address: from.address(address_len)? })
    }
}

/// Fills a message from the front. What would not fit is dropped; `const` asserts keep it from happening.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(&mut self, part: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.at).zip(part) {
            *to = *from;
        }
        self.at += part.len();
        debug_assert!(self.at <= N, "a message is longer than its constant says");
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], len: usize) -> Result<Self, WireError> {
        if bytes.len() == len { Ok(Self { rest: bytes }) } else { Err(WireError::Length) }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::Length)?;
        self.rest = rest;
        Ok(*head)
    }

    fn magic(&mut self, magic: u8) -> Result<(), WireError> {
        match self.take()? {
            [found, VERSION] if found == magic => Ok(()),
            [_, version] => Err(WireError::Version(version)),
        }
    }

    fn address<const N: usize>(&mut self, len: u8) -> Result<RawAddress<N>, WireError> {
        if usize::from(len) > N {
            return Err(WireError::Bound);
        }
        Ok(RawAddress { len, bytes: self.take()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handoff_round_trip() {
        let sent = Handoff {
            nonblocking: true,
            mark: 0xabcd,
            handed_off_at: u64::MAX - 7,
            peer: RawAddress::new(&[2, 0, 0x1f, 0x90, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        };
        assert_eq!(Handoff::decode(&sent.encode()), Ok(sent));
        assert_eq!(sent.peer.bytes().len(), 16);
    }

    #[test]
    fn request_round_trip_with_options() {
        let mut sent = Request::new(Kind::Listen, [9; 16]);
        sent.backlog = -1;
        sent.channel = 77;
        sent.address = RawAddress::new(b"\x01\x00/run/x.sock");
        for value in 0..16 {
            assert!(sent.push_option(SocketOption { level: 1, name: 2, value, extra: -value }));
        }
        assert!(!sent.push_option(SocketOption::default()), "the seventeenth has no room");
        assert_eq!(sent.cookie(), None);
        assert_eq!(Request::decode(&sent.encode()), Ok(sent));
    }

    #[test]
    fn a_cookie_is_an_option_among_others() {
        for cookie in [0, 1, u64::MAX, 0x8000_0001_8000_0000] {
            let mut sent = Request::new(Kind::Bind, [9; 16]);
            sent.push_option(SocketOption { level: 1, name: 2, value: 1, extra: 0 });
            assert!(sent.push_cookie(cookie));
            assert_eq!(Request::decode(&sent.encode()).unwrap().cookie(), Some(cookie));
        }
    }

    #[test]
    fn answer_round_trip() {
        let sent = Answer {
            verdict: Verdict::Refused,
            errno: 98,
            channel: u32::MAX,
            address: RawAddress::NONE,
        };
        assert_eq!(Answer::decode(&sent.encode()), Ok(sent));
    }

    #[test]
    fn bad_bytes_are_refused_by_name() {
        let good = Request::new(Kind::Ready, [0; 16]).encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Request::decode(&bytes)
        };
        assert_eq!(Request::decode(&good[1..]), Err(WireError::Length));
        assert_eq!(with(1, 2), Err(WireError::Version(2)));
        assert_eq!(with(2, 0), Err(WireError::Kind(0)));
        assert_eq!(with(3, 111), Err(WireError::Bound));
        assert_eq!(with(4, 17), Err(WireError::Bound));
    }
}
