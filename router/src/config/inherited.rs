//! Listening sockets that a service manager opened for this process (sd_listen_fds(3)), and which `-l`
//! each of them is.
//!
//! Promises: a socket that nobody would serve is an error that names it, not one whose clients wait for
//! ever. Never does: accept, close, or change one.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};

use super::{ConfigError, ListenAddress, ListenSpec};
use crate::sys;

/// Sockets that are taken: as many as addresses are dealt.
const INHERITED_MAX: usize = 256;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// Its descriptor.
    pub number: i32,
    /// From `LISTEN_FDNAMES`: the name of its unit, if nothing else was said there.
    pub name: String,
    /// Where clients connect.
    pub address: ListenAddress,
}

/// All that this process was given.
///
/// # Errors
/// A sentence: the variables are damaged, or one of the descriptors cannot be dealt from.
pub(super) fn of_this_process() -> Result<Vec<Inherited>, String> {
    let given = sd_notify::listen_fds_with_names()
        .map_err(|error| format!("LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES: {error}"))?;
    if given.len() > INHERITED_MAX {
        return Err(format!("LISTEN_FDS: more than {INHERITED_MAX} sockets"));
    }
    given
        .map(|(number, name)| {
            let socket = sys::duplicate_inherited(number);
            match socket.map_err(|error| error.to_string()).and_then(|socket| address_of(&socket)) {
                Ok(address) => Ok(Inherited { number, name, address }),
                Err(why) => Err(format!(
                    "LISTEN_FDS: descriptor {number} ({name}) {why}; croupier takes stream sockets that \
                     listen: ListenStream= with Accept=no"
                )),
            }
        })
        .collect()
}

fn address_of(socket: &OwnedFd) -> Result<ListenAddress, String> {
    let errno = |error: nix::Error| format!("is no socket: {error}");
    let kind = getsockopt(&socket.as_fd(), sockopt::SockType).map_err(errno)?;
    if kind != SockType::Stream {
        return Err("is a socket for messages, not for connections".into());
    }
    if !getsockopt(&socket.as_fd(), sockopt::AcceptConn).map_err(errno)? {
        return Err("does not listen".into());
    }
    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd()).map_err(errno)?;
    if let Some(v4) = name.as_sockaddr_in() {
        let address = std::net::SocketAddrV4::from(*v4).into();
        return Ok(ListenAddress::Tcp { address, dual_stack: false });
    }
    if let Some(v6) = name.as_sockaddr_in6() {
        let address = std::net::SocketAddrV6::from(*v6);
        let only = getsockopt(&socket.as_fd(), sockopt::Ipv6V6Only).map_err(errno)?;
        let dual_stack = address.ip().is_unspecified() && !only;
        return Ok(ListenAddress::Tcp { address: address.into(), dual_stack });
    }
    let path = name.as_unix_addr().and_then(|unix| unix.path());
    match (path, name.family()) {
        (Some(path), _) => Ok(ListenAddress::Unix(path.to_owned())),
        (None, Some(AddressFamily::Unix)) => Err("has an abstract name, not a path".into()),
        (None, _) => Err("is neither TCP nor a Unix socket".into()),
    }
}

/// Gives each `-l` its socket; without any `-l` the sockets are what is listened on.
pub(super) fn assign(
    listen: &mut Vec<ListenSpec>,
    given: &Result<Vec<Inherited>, String>,
) -> Result<(), ConfigError> {
    let given = given.as_ref().map_err(|why| ConfigError::Conflict(why.clone()))?;
    let named = !listen.is_empty();
    for Inherited { number, name, address } in given {
        let free = |spec: &&mut ListenSpec| spec.public == *address && spec.inherited.is_none();
        if let Some(spec) = listen.iter_mut().find(free) {
            spec.inherited = Some(*number);
        } else if !named {
            let inherited = Some(*number);
            let (public, program, policy) = (address.clone(), None, None);
            listen.push(ListenSpec { public, program, policy, inherited });
        } else {
            return Err(ConfigError::Conflict(format!(
                "LISTEN_FDS brings {name} ({address}), which no -l names: its clients would wait for \
                 ever. Add -l {address}, or take it out of the .socket unit"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;
    use crate::config::parse_listen;

    fn seen(socket: impl Into<OwnedFd>) -> Result<ListenAddress, String> {
        address_of(&socket.into())
    }

    #[test]
    fn addresses_are_those_that_flags_would_have() {
        let same = |address: &str| {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let text = address.replace(":0", &format!(":{port}"));
            assert_eq!(seen(listener), Ok(parse_listen(&text).unwrap().public), "{text}");
        };
        same("127.0.0.1:0");
        same("0.0.0.0:0");
        same("[::1]:0");
        // Dual-stack, as with ListenStream=PORT.
        same("[::]:0");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        assert_eq!(seen(UnixListener::bind(&path).unwrap()), Ok(ListenAddress::Unix(path)));
    }

    #[test]
    fn what_cannot_be_dealt_from_says_why() {
        assert!(seen(UnixDatagram::unbound().unwrap()).unwrap_err().contains("for messages"));
        assert!(seen(UnixStream::pair().unwrap().0).unwrap_err().contains("does not listen"));
        assert!(seen(std::fs::File::open("/dev/null").unwrap()).unwrap_err().contains("no socket"));
    }

    #[test]
    fn each_goes_to_its_flag_or_is_named() {
        let one = |number, name: &str, address: &str| Inherited {
            number,
            name: name.into(),
            address: parse_listen(address).unwrap().public,
        };
        let given = Ok(vec![one(3, "web.socket", ":80"), one(4, "api.socket", "/run/api.sock")]);
        let assigned = |flags: &[&str]| {
            let mut listen = flags.iter().map(|text| parse_listen(text).unwrap()).collect();
            assign(&mut listen, &given).map_err(|error| error.to_string())?;
            Ok::<_, String>(listen)
        };
        let numbers = |flags: &[&str]| -> Vec<Option<i32>> {
            assigned(flags).unwrap().iter().map(|spec| spec.inherited).collect()
        };
        assert_eq!(numbers(&[]), [Some(3), Some(4)]);
        assert_eq!(numbers(&["/run/api.sock", ":81", ":80=3000"]), [Some(4), None, Some(3)]);
        let error = assigned(&[":80", ":81"]).unwrap_err();
        assert!(
            error.contains("brings api.socket (unix:/run/api.sock), which no -l names"),
            "{error}"
        );
        // A socket for IPv4 alone is not the one that `:80` means.
        let v4 = Ok(vec![one(3, "web.socket", "0.0.0.0:80")]);
        assert!(assign(&mut vec![parse_listen(":80").unwrap()], &v4).is_err());
        let damaged = Err("LISTEN_FDS: damaged".to_owned());
        assert!(assign(&mut Vec::new(), &damaged).is_err());
    }
}
