//! Asking the primary: one question, one answer, one connection.
//!
//! **Owns** nothing between questions: no descriptor stays open, so programs that fork, exec or close
//! everything they find cannot break it. **Promises** an answer or an error within
//! [`ASK_SECONDS_MAX`] for each step. **Never** allocates.

use crate::fdpass::{self, Received, check};
use crate::message::{
    ADDRESS_MAX, ANSWER_FDS_MAX, ANSWER_LEN, Answer, CONTROL_VAR, RawAddress, Request,
};
use libc::{AF_UNIX, SOL_SOCKET, socklen_t};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// Longest wait for each of connecting, sending and the answer. A primary that is well answers within
/// one turn of its loop; this long only if it is stopped or the machine swaps.
pub const ASK_SECONDS_MAX: i64 = 10;

/// Where the primary is asked, and the secret that says which worker asks.
#[derive(Debug, Clone, Copy)]
pub struct Contact {
    /// To be put into every [`Request`].
    pub token: [u8; 16],
    address: RawAddress<ADDRESS_MAX>,
}

impl Contact {
    /// Reads `CROUPIER_CONTROL`. `None`: not under croupier.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let mut name = [0_u8; 32];
        name.iter_mut().zip(CONTROL_VAR.bytes()).for_each(|(to, from)| *to = from);
        // SAFETY: `name` is longer than the variable's name, so it ends with a NUL.
        let value = unsafe { libc::getenv(name.as_ptr().cast()) };
        if value.is_null() {
            return None;
        }
        // SAFETY: a string of the environment; it is copied before anything can change it.
        Self::parse(unsafe { CStr::from_ptr(value) }.to_bytes())
    }

    /// Reads `CROUPIER_CONTROL`, which has to be there.
    ///
    /// # Errors
    /// `NotFound`: not under croupier.
    pub fn required() -> io::Result<Self> {
        let missing = "CROUPIER_CONTROL is not set: there is no primary to ask";
        Self::from_environment().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, missing))
    }

    /// Reads `<32 hex digits of the token>@<abstract name>`.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (hex, rest) = value.split_first_chunk::<32>()?;
        let mut token = [0; 16];
        for (byte, digits) in token.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let name = rest.strip_prefix(b"@").filter(|n| (1..ADDRESS_MAX - 2).contains(&n.len()))?;
        let mut address = [0; ADDRESS_MAX];
        // `struct sockaddr_un`: the family, then a NUL that makes the name abstract (unix(7)).
        let family = u16::try_from(AF_UNIX).ok()?.to_ne_bytes();
        let bytes = family.iter().chain(&[0]).chain(name);
        address.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Some(Self { token, address: RawAddress::new(address.get(..name.len() + 3)?) })
    }

    /// Asks, and waits for the answer and the descriptors that come with it.
    ///
    /// # Errors
    /// The errno of the step that failed; `ECONNRESET` when the primary hung up (it does on a wrong
    /// token), `EAGAIN` when it did not answer in time, `EPROTO` when it speaks another version.
    pub fn ask(
        &self,
        request: &Request,
    ) -> io::Result<(Answer, [Option<OwnedFd>; ANSWER_FDS_MAX])> {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: makes a socket.
        let number = check(unsafe { libc::socket(AF_UNIX, kind, 0) })?;
        // SAFETY: made in the line above, ours alone.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        let limit = libc::timeval { tv_sec: ASK_SECONDS_MAX, tv_usec: 0 };
        let size = socklen_t::try_from(size_of_val(&limit)).unwrap_or(0);
        for name in [libc::SO_SNDTIMEO, libc::SO_RCVTIMEO] {
            let value = (&raw const limit).cast();
            // SAFETY: `value` points at `size` bytes.
            check(unsafe { libc::setsockopt(number, SOL_SOCKET, name, value, size) })?;
        }
        let to = self.address.bytes();
        let len = socklen_t::try_from(to.len()).unwrap_or(0);
        // SAFETY: the kernel reads `len` bytes of `to`; it does not ask for alignment.
        retry(|| check(unsafe { libc::connect(number, to.as_ptr().cast(), len) }))?;
        retry(|| fdpass::send(socket.as_fd(), &request.encode(), &[]))?;
        let mut bytes = [0; ANSWER_LEN];
        let mut fds = [const { None }; ANSWER_FDS_MAX];
        let flags = libc::MSG_CMSG_CLOEXEC;
        match retry(|| fdpass::recv(socket.as_fd(), &mut bytes, &mut fds, flags))? {
            Received::Ended => Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
            Received::Message(len) => match Answer::decode(bytes.get(..len).unwrap_or(&[])) {
                Ok(answer) => Ok((answer, fds)),
                Err(_) => Err(io::Error::from_raw_os_error(libc::EPROTO)),
            },
        }
    }
}

/// Repeats `step` while a signal interrupts it; the program's handler has run by then.
fn retry<T>(mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match step() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Kind, REQUEST_LEN, Verdict};
    use std::os::fd::AsRawFd;

    /// A primary that answers one question as `serve` says.
    fn primary(name: &str, serve: impl FnOnce(OwnedFd) + Send + 'static) -> Contact {
        let value = format!("{}@croupier-test/{}/{name}", "0f".repeat(16), std::process::id());
        let contact = Contact::parse(value.as_bytes()).unwrap();
        // SAFETY: makes a socket.
        let number = check(unsafe { libc::socket(AF_UNIX, libc::SOCK_SEQPACKET, 0) }).unwrap();
        // SAFETY: ours alone.
        let listener = unsafe { OwnedFd::from_raw_fd(number) };
        let (at, len) = (contact.address.bytes(), contact.address.bytes().len());
        // SAFETY: `at` has `len` bytes.
        check(unsafe { libc::bind(number, at.as_ptr().cast(), socklen_t::try_from(len).unwrap()) })
            .unwrap();
        // SAFETY: our socket.
        check(unsafe { libc::listen(number, 5) }).unwrap();
        std::thread::spawn(move || {
            let none = std::ptr::null_mut();
            // SAFETY: no address is asked for.
            let client = check(unsafe { libc::accept(listener.as_raw_fd(), none, none.cast()) });
            // SAFETY: fresh, ours.
            serve(unsafe { OwnedFd::from_raw_fd(client.unwrap()) });
        });
        contact
    }

    fn question(client: &OwnedFd) -> Request {
        let mut bytes = [0; REQUEST_LEN];
        let got = fdpass::recv::<0>(client.as_fd(), &mut bytes, &mut [], 0).unwrap();
        assert_eq!(got, Received::Message(REQUEST_LEN));
        Request::decode(&bytes).unwrap()
    }

    #[test]
    fn asks_and_gets_the_answer_with_its_descriptors() {
        let contact = primary("dealt", |client| {
            let request = question(&client);
            assert_eq!((request.kind, request.token), (Kind::Attach, [0x0f; 16]));
            let answer =
                Answer { verdict: Verdict::Dealt, errno: 0, channel: 7, address: RawAddress::NONE };
            fdpass::send(client.as_fd(), &answer.encode(), &[client.as_fd(); 2]).unwrap();
        });
        let (answer, fds) = contact.ask(&Request::new(Kind::Attach, contact.token)).unwrap();
        assert_eq!((answer.verdict, answer.channel), (Verdict::Dealt, 7));
        assert!(fds[0].is_some() && fds[1].is_some() && fds[2].is_none());
    }

    #[test]
    fn a_primary_that_hangs_up_or_talks_nonsense_is_an_error() {
        let ask = |contact: Contact| {
            contact.ask(&Request::new(Kind::Ready, contact.token)).unwrap_err().raw_os_error()
        };
        assert_eq!(
            ask(primary("hangs-up", |c| assert_eq!(question(&c).kind, Kind::Ready))),
            Some(libc::ECONNRESET)
        );
        let nonsense = primary("nonsense", |client| {
            question(&client);
            fdpass::send(client.as_fd(), b"nonsense", &[]).unwrap();
        });
        assert_eq!(ask(nonsense), Some(libc::EPROTO));
        let nobody = format!("{}@croupier-test/{}/nobody", "00".repeat(16), std::process::id());
        assert_eq!(ask(Contact::parse(nobody.as_bytes()).unwrap()), Some(libc::ECONNREFUSED));
    }

    #[test]
    fn a_malformed_variable_is_no_contact() {
        let good = format!("{}@x", "aB".repeat(16));
        assert_eq!(Contact::parse(good.as_bytes()).unwrap().token, [0xab; 16]);
        let hex = "0".repeat(32);
        for bad in ["", "x", &hex, &format!("{hex}@"), &format!("{hex}x"), &good.replace('a', "g")]
        {
            assert!(Contact::parse(bad.as_bytes()).is_none(), "{bad}");
        }
        assert!(Contact::parse(format!("{hex}@{}", "n".repeat(107)).as_bytes()).is_some());
        assert!(Contact::parse(format!("{hex}@{}", "n".repeat(108)).as_bytes()).is_none());
    }
}
