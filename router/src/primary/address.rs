//! Socket addresses between the kernel's bytes, std's types and the reader's eye.
//!
//! Owns no socket. Promises: bytes from a worker are only ever compared and parsed, never trusted
//! to have a length or a family that makes sense.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use croupier_core::event::Client;
use croupier_wire::message::RawAddress;

use crate::config::ListenAddress;

// sa_family_t is narrower than the constants' type.
const FAMILY_UNIX: libc::sa_family_t = 1;
const FAMILY_V4: libc::sa_family_t = 2;
const FAMILY_V6: libc::sa_family_t = 10;
const _: () = assert!(libc::AF_UNIX == 1 && libc::AF_INET == 2 && libc::AF_INET6 == 10);

/// What a worker's bind(2) names. `None`: not an address that can be dealt.
pub(crate) fn parse<const N: usize>(raw: &RawAddress<N>, v6only: bool) -> Option<ListenAddress> {
    match raw.family() {
        FAMILY_V4 | FAMILY_V6 => {
            // A bind of a mapped address with IPV6_V6ONLY is EINVAL; it means the IPv4 address.
            let mut address = inet(raw)?;
            address.set_ip(address.ip().to_canonical());
            let any6 = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            Some(ListenAddress::Tcp { address, dual_stack: any6 && !v6only })
        }
        FAMILY_UNIX => {
            let path = raw.bytes().get(2..)?;
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            let path = path.get(..end).filter(|path| !path.is_empty())?;
            Some(ListenAddress::Unix(PathBuf::from(std::ffi::OsStr::from_bytes(path))))
        }
        _ => None,
    }
}

/// An IPv4 or IPv6 socket address; `None` for every other family or a short one.
pub(crate) fn inet<const N: usize>(raw: &RawAddress<N>) -> Option<SocketAddr> {
    let (_family, rest) = raw.bytes().split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match raw.family() {
        FAMILY_V4 => {
            let (ip, _) = rest.split_first_chunk::<4>()?;
            Some(SocketAddr::new(Ipv4Addr::from(*ip).into(), port))
        }
        FAMILY_V6 => {
            let (flow, rest) = rest.split_first_chunk::<4>()?;
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            let (scope, _) = rest.split_first_chunk::<4>()?;
            let scope = u32::from_ne_bytes(*scope);
            let flow = u32::from_ne_bytes(*flow);
            Some(SocketAddrV6::new(Ipv6Addr::from(*ip), port, flow, scope).into())
        }
        _ => None,
    }
}

/// Who connects, for the core.
pub(crate) fn client<const N: usize>(raw: &RawAddress<N>) -> Client {
    let rest = raw.bytes();
    match raw.family() {
        FAMILY_V4 => {
            rest.get(4..8).and_then(|ip| ip.try_into().ok()).map_or(Client::Local, Client::V4)
        }
        FAMILY_V6 => {
            rest.get(8..24).and_then(|ip| ip.try_into().ok()).map_or(Client::Local, Client::V6)
        }
        _ => Client::Local,
    }
}

/// The kernel's bytes for an address, as getsockname(2) gives them.
pub(crate) fn raw<const N: usize>(address: &ListenAddress) -> RawAddress<N> {
    let mut bytes = Vec::with_capacity(N);
    match address {
        ListenAddress::Tcp { address: SocketAddr::V4(v4), .. } => {
            bytes.extend(FAMILY_V4.to_ne_bytes());
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        ListenAddress::Tcp { address: SocketAddr::V6(v6), .. } => {
            bytes.extend(FAMILY_V6.to_ne_bytes());
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_ne_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
        ListenAddress::Unix(path) => {
            bytes.extend(FAMILY_UNIX.to_ne_bytes());
            bytes.extend(path.as_os_str().as_bytes());
            bytes.push(0);
        }
    }
    RawAddress::new(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for text in ["127.0.0.1:80", "[::1]:8080", "[::]:9", "0.0.0.0:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let dual_stack = text == "[::]:9";
            let listen = ListenAddress::Tcp { address, dual_stack };
            assert_eq!(parse(&raw::<110>(&listen), false), Some(listen));
        }
        let unix = ListenAddress::Unix("/run/x.sock".into());
        assert_eq!(parse(&raw::<110>(&unix), false), Some(unix));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().unwrap();
        let raw = raw::<110>(&ListenAddress::Tcp { address: mapped, dual_stack: false });
        let address = "127.0.0.1:80".parse().unwrap();
        assert_eq!(parse(&raw, true), Some(ListenAddress::Tcp { address, dual_stack: false }));
    }

    #[test]
    fn nonsense_is_not_an_address() {
        for bytes in
            [&[][..], &[2], &[2, 0, 0], &[10, 0, 0, 80, 1], &[1, 0], &[1, 0, 0], &[99, 0, 1]]
        {
            assert_eq!(parse(&RawAddress::<110>::new(bytes), false), None, "{bytes:?}");
            assert_eq!(client(&RawAddress::<28>::new(bytes)), Client::Local);
        }
    }
}
