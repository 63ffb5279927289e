//! What a readiness event of the loop's poll is about.

use mio::Token;

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A signal arrived.
    Signals,
    /// The rescue thread has results.
    Rescue,
    /// A worker's process connected to ask.
    Questions,
    /// A connected process asks; the key of its connection.
    Question(usize),
    /// Clients connect to a listener; its key.
    Listener(usize),
    /// A worker rings. Which one does not matter: the pages say.
    Bell,
    /// A worker without a page may have claimed; the worker id.
    Room(u32),
    /// A worker's sd_notify(3) message; the worker id.
    Notify(u32),
    /// A worker answers its ready-probe; the worker id.
    Check(u32),
    /// A process of a worker sent a message, or is gone; the post's number.
    Post(u32),
    /// A deadline has come.
    Alarm,
    /// A worker's main process ended, says its pidfd. Which one does not matter: waitid(2) says.
    Ended,
    /// A child's program runs, or cannot be run; the worker id.
    Exec(u32),
    /// The control socket, or one of its clients; the token is the server's own.
    Control(Token),
}

const KIND_SHIFT: u32 = 40;
const INDEX: usize = (1 << KIND_SHIFT) - 1;
/// First token of the control server.
pub(crate) const CONTROL_BASE: usize = 9 << KIND_SHIFT;

impl Source {
    /// The token to register with.
    pub(crate) const fn token(self) -> Token {
        let (kind, index) = match self {
            Self::Signals => (1, 0),
            Self::Rescue => (2, 0),
            Self::Questions => (3, 0),
            Self::Question(key) => (4, key),
            Self::Listener(key) => (5, key),
            Self::Bell => (6, 0),
            Self::Notify(worker) => (7, worker as usize),
            Self::Alarm => (10, 0),
            Self::Check(worker) => (11, worker as usize),
            Self::Post(number) => (12, number as usize),
            Self::Ended => (13, 0),
            Self::Room(worker) => (14, worker as usize),
            Self::Exec(worker) => (15, worker as usize),
            Self::Control(token) => return token,
        };
        Token((kind << KIND_SHIFT) | (index & INDEX))
    }

    /// The source that `token` was made from.
    pub(crate) fn from(token: Token) -> Self {
        let index = token.0 & INDEX;
        match token.0 >> KIND_SHIFT {
            1 => Self::Signals,
            2 => Self::Rescue,
            3 => Self::Questions,
            4 => Self::Question(index),
            5 => Self::Listener(index),
            6 => Self::Bell,
            7 => Self::Notify(u32::try_from(index).unwrap_or(0)),
            10 => Self::Alarm,
            11 => Self::Check(u32::try_from(index).unwrap_or(0)),
            12 => Self::Post(u32::try_from(index).unwrap_or(0)),
            13 => Self::Ended,
            14 => Self::Room(u32::try_from(index).unwrap_or(0)),
            15 => Self::Exec(u32::try_from(index).unwrap_or(0)),
            _ => Self::Control(token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for source in [
            Source::Signals,
            Source::Rescue,
            Source::Questions,
            Source::Question(77),
            Source::Listener(3),
            Source::Bell,
            Source::Notify(u32::MAX),
            Source::Room(u32::MAX),
            Source::Check(u32::MAX),
            Source::Post(7),
            Source::Alarm,
            Source::Ended,
            Source::Exec(u32::MAX),
            Source::Control(Token(CONTROL_BASE + 64)),
        ] {
            assert_eq!(Source::from(source.token()), source);
        }
    }
}
