//! Whether most clients come from one address, as they do behind a proxy.
//!
//! Counts with Misra and Gries: [`COUNTED_ADDRESSES_MAX`] counters find whoever makes over half of
//! [`LOOKED_AT`] connections, and a counter is never too high, so nobody is named who does not. Promises:
//! a few comparisons a connection, and no memory but this. Used under `ip` only.

use croupier_core::event::Client;

/// Addresses that are counted at a time.
const COUNTED_ADDRESSES_MAX: usize = 8;
/// Connections of one look.
pub(super) const LOOKED_AT: u32 = 1024;

#[derive(Debug)]
pub(super) struct Crowd {
    counters: [(Client, u32); COUNTED_ADDRESSES_MAX],
    seen: u32,
    found: Option<Client>,
}

impl Crowd {
    pub(super) const fn new() -> Self {
        Self { counters: [(Client::Local, 0); COUNTED_ADDRESSES_MAX], seen: 0, found: None }
    }

    /// One connection. Clients of Unix sockets have no address.
    pub(super) fn count(&mut self, client: Client) {
        if self.found.is_some() || client == Client::Local {
            return;
        }
        let client = network(client);
        let own = self.counters.iter_mut().find(|(who, count)| *count > 0 && *who == client);
        if let Some((_, count)) = own {
            *count += 1;
        } else if let Some(free) = self.counters.iter_mut().find(|(_, count)| *count == 0) {
            *free = (client, 1);
        } else {
            self.counters.iter_mut().for_each(|(_, count)| *count -= 1);
        }
        self.seen += 1;
        if self.seen == LOOKED_AT {
            self.found = self.majority();
            self.seen = 0;
            self.counters.iter_mut().for_each(|(_, count)| *count = 0);
        }
    }

    fn majority(&self) -> Option<Client> {
        let most = self.counters.iter().max_by_key(|(_, count)| *count)?;
        (most.1 > LOOKED_AT / 2).then_some(most.0)
    }

    /// Who made over half of some [`LOOKED_AT`] connections in a row.
    pub(super) const fn found(&self) -> Option<Client> {
        self.found
    }
}

/// What `ip` takes for one client: IPv4 whole, IPv6 by /64.
fn network(client: Client) -> Client {
    match client {
        Client::V6(mut bytes) => {
            bytes.iter_mut().skip(8).for_each(|byte| *byte = 0);
            Client::V6(bytes)
        }
        Client::V4(_) | Client::Local => client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: u32) -> Client {
        Client::V4(number.to_be_bytes())
    }

    /// So many of each thousand are from one address, all others from an address of their own.
    fn found(of_thousand: u32) -> Option<Client> {
        let mut crowd = Crowd::new();
        for number in 0..10 * LOOKED_AT {
            // A fixed order in which no address comes in a row.
            let own = number.wrapping_mul(2_654_435_761) % 1000 < of_thousand;
            crowd.count(if own { of(7) } else { of(1000 + number) });
        }
        crowd.found()
    }

    #[test]
    fn more_than_half_is_found_and_less_never() {
        assert_eq!(found(1000), Some(of(7)));
        assert_eq!(found(650), Some(of(7)));
        assert_eq!(found(450), None);
        assert_eq!(found(0), None);
        // Two that share all: neither has more than half.
        let mut crowd = Crowd::new();
        (0..10 * LOOKED_AT).for_each(|number| crowd.count(of(number % 2)));
        assert_eq!(crowd.found(), None);
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_unix_sockets_are_none() {
        let mut crowd = Crowd::new();
        for number in 0..LOOKED_AT {
            let mut bytes = [0x20; 16];
            bytes[12..].copy_from_slice(&number.to_be_bytes());
            crowd.count(Client::V6(bytes));
        }
        assert!(matches!(crowd.found(), Some(Client::V6(bytes)) if bytes[8..] == [0; 8]));
        let mut crowd = Crowd::new();
        (0..10 * LOOKED_AT).for_each(|_| crowd.count(Client::Local));
        assert_eq!(crowd.found(), None);
    }

    /// Figures for the curious: `cargo test --release -p croupier --lib crowd -- --nocapture`.
    #[test]
    fn counting_is_cheap() {
        let mut crowd = Crowd::new();
        let begun = crate::sys::monotonic_ns();
        for number in 0..1_000_000_u32 {
            crowd.count(of(number % 1000));
        }
        let each = (crate::sys::monotonic_ns() - begun) / 1_000_000;
        println!("{each} ns a connection, 1000 addresses");
        // Far above what it takes, also without optimisation, and far below a system call.
        assert!(each < 2000, "{each} ns");
    }
}
