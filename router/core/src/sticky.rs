//! Which slot a client belongs to: rendezvous hashing over slots.
//!
//! Every slot has a score for every client; the client goes to the slot with the highest score among
//! those that are up. So a slot that goes down moves only its own clients, and gets them back. The
//! hash is keyed (SipHash-2-4): without the key nobody can pick addresses that all meet in one slot.

use crate::event::{Client, SlotId};

/// A client's place in the hash. Equal for all clients that must stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sticky(u64);

impl Sticky {
    /// IPv4 whole, IPv6 by /64 (a host owns its /64 and changes the rest at will), IPv4-mapped as
    /// IPv4. `None`: a local client has no address and sticks to nothing.
    pub(crate) fn of(client: Client, key: [u64; 2]) -> Option<Self> {
        match client {
            Client::V4(octets) => Some(Self(siphash(key, &octets))),
            Client::V6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]) => {
                Some(Self(siphash(key, &[a, b, c, d])))
            }
            Client::V6([a, b, c, d, e, f, g, h, ..]) => {
                Some(Self(siphash(key, &[a, b, c, d, e, f, g, h])))
            }
            Client::Local => None,
        }
    }

    /// The client's place in a worker's table of open connections.
    pub(crate) fn mark(self) -> u16 {
        // Not the bits that decide between slots, or a slot's clients would crowd.
        let place = mix(self.0.rotate_left(32)) % u64::from(MARKS - 1);
        u16::try_from(place + 1).unwrap_or(MARKS - 1)
    }

    /// The client's score for the slot with this salt. The address was hashed with the key once;
    /// spreading that over the slots needs no key of its own.
    pub(crate) fn score(self, salt: u64) -> u64 {
        mix(self.0 ^ salt)
    }
}

/// Marks that clients have: 1 to one less than this. 0 is nobody's.
pub const MARKS: u16 = 16_384;

/// What a worker notes of a client while it serves it, so that the primary can ask whether it has
/// something open there ([`crate::event::Loads::holds`]). Of the keyed hash, so that it tells the
/// worker nothing and nobody can pick addresses that meet. 0: a local client.
#[must_use]
pub fn mark(client: Client, key: [u64; 2]) -> u16 {
    Sticky::of(client, key).map_or(0, Sticky::mark)
}

/// A slot's part in the scores.
pub(crate) fn salt(slot: SlotId) -> u64 {
    mix((u64::from(slot.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The finalizer of splitmix64: a bijection in which every bit in changes half of the bits out.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SipHash-2-4 (Aumasson, Bernstein 2012).
fn siphash(key: [u64; 2], bytes: &[u8]) -> u64 {
    let [k0, k1] = key;
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        absorb(&mut state, little_endian(word));
    }
    let length = (u64::try_from(bytes.len()).unwrap_or(0) & 0xff) << 56;
    absorb(&mut state, little_endian(words.remainder()) | length);
    let [_, _, v2, _] = &mut state;
    *v2 ^= 0xff;
    for _ in 0..4 {
        round(&mut state);
    }
    let [v0, v1, v2, v3] = state;
    v0 ^ v1 ^ v2 ^ v3
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

fn absorb(state: &mut [u64; 4], word: u64) {
    let [_, _, _, v3] = state;
    *v3 ^= word;
    round(state);
    round(state);
    let [v0, ..] = state;
    *v0 ^= word;
}

fn round(state: &mut [u64; 4]) {
    let [v0, v1, v2, v3] = state;
    *v0 = v0.wrapping_add(*v1);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v3);
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.wrapping_add(*v3);
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v2 = v2.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    #[test]
    fn siphash_gives_the_published_vectors() {
        let input: [u8; 16] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        let vectors = [
            (0, 0x726f_db47_dd0e_0e31_u64),
            (1, 0x74f8_39c5_93dc_67fd),
            (4, 0xcf27_94e0_2771_87b7),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ];
        for (len, expected) in vectors {
            assert_eq!(siphash(KEY, &input[..len]), expected, "{len} bytes");
        }
    }

    #[test]
    fn who_stays_together() {
        let v6 = |tail: [u8; 8]| {
            let mut octets = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
            octets[8..].copy_from_slice(&tail);
            Sticky::of(Client::V6(octets), KEY)
        };
        assert_eq!(v6([1; 8]), v6([2; 8]), "one /64");
        let next_net = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 8, 1, 1, 1, 1, 1, 1, 1, 1];
        assert_ne!(Sticky::of(Client::V6(next_net), KEY), v6([1; 8]), "the next /64");
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
        let v4 = Sticky::of(Client::V4([10, 1, 2, 3]), KEY);
        assert_eq!(Sticky::of(Client::V6(mapped), KEY), v4, "IPv4-mapped");
        assert_ne!(Sticky::of(Client::V4([10, 1, 2, 4]), KEY), v4);
        assert_ne!(Sticky::of(Client::V4([10, 1, 2, 3]), [1, 2]), v4, "another key");
        assert_eq!(Sticky::of(Client::Local, KEY), None);
    }

    #[test]
    fn marks_spread_within_a_slot_too() {
        assert_eq!(mark(Client::Local, KEY), 0);
        let (mut seen, mut clients) = (std::collections::BTreeSet::new(), 0);
        for last in 0..=255 {
            for third in 0..16 {
                let client = Client::V4([10, 0, third, last]);
                let sticky = Sticky::of(client, KEY).unwrap();
                assert_eq!(sticky.mark(), mark(client, KEY));
                assert!((1..MARKS).contains(&sticky.mark()));
                let best = (0..8).max_by_key(|slot| sticky.score(salt(SlotId(*slot)))).unwrap();
                if best == 3 {
                    clients += 1;
                    seen.insert(sticky.mark());
                }
            }
        }
        // About 512 clients in 16,383 places: 8 meet by chance.
        assert!(clients - seen.len() < 24, "{} marks for {clients} clients", seen.len());
    }

    #[test]
    fn a_slot_gets_its_share() {
        let mut counts = [0_u32; 8];
        for last in 0..=255 {
            for third in 0..16 {
                let sticky = Sticky::of(Client::V4([10, 0, third, last]), KEY).unwrap();
                let best = (0..8).max_by_key(|slot| sticky.score(salt(SlotId(*slot)))).unwrap();
                counts[usize::from(best)] += 1;
            }
        }
        assert!(counts.iter().all(|count| (430..=594).contains(count)), "512 each: {counts:?}");
    }
}
