//! Binding: how an attachment proves its UDP address to a hub, and keeps it.
//!
//! One layout for both directions, always [`LEN`] bytes, so that an answer is never longer than what
//! asked for it:
//!
//! ```text
//!  0       1       2      4      8           16        24        32           48
//! [kind]  [flags] [port] [id]   [counter]   [time]    [nonce]   [address]    [mac 16]
//! ```
//!
//! * `BIND` (0x21), to the hub: `id` names the key, `counter` rises, `time` is the sender's own and comes
//!   back unread. `nonce` is zero, or echoes a challenge.
//! * `BOUND` (0x22), from the hub: counter and time echoed, with the address and port that the hub saw
//!   (the reflexive endpoint). With [`Verdict::Challenge`] the binding is *not* made yet: the sender
//!   repeats its `BIND` with the nonce, and thereby proves that it receives at this address.
//!
//! The MAC is a keyed BLAKE2s over everything before it, under the key of [`BindKey`](crate::BindKey); it covers the kind
//! byte, so one direction's frame means nothing in the other. Unused fields are zero and checked.
//!
//! A `BIND` is also the node-hub probe: `time` gives the round trip, and the packet keeps a NAT's mapping.

use std::net::{IpAddr, SocketAddr};

use flatlan_types::{Endpoint, PairKey};

use crate::BindSecret;

/// First byte of a `BIND`.
pub const BIND: u8 = 0x21;

/// First byte of a `BOUND`.
pub const BOUND: u8 = 0x22;

/// Length of either frame.
pub const LEN: usize = 64;

/// To the hub: "this is where I am".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Names the key.
    pub id: u32,
    /// Rises with every frame under this key.
    pub counter: u64,
    /// The sender's clock, in its own unit: echoed, never read.
    pub time: u64,
    /// The challenge that this answers; zero where it answers none.
    pub nonce: u64,
}

/// From the hub: "this is where I see you".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Names the key.
    pub id: u32,
    /// Of the `BIND` that this answers.
    pub counter: u64,
    /// Of the `BIND` that this answers.
    pub time: u64,
    /// The source of that `BIND`, as the hub saw it.
    pub reflexive: Endpoint,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a `BIND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Data for this attachment goes to that address.
    Bound,
    /// Repeat with this nonce, to prove that you receive there.
    Challenge(u64),
}

impl Bind {
    /// The id in a `BIND`, before the MAC is checked: which key to check with.
    pub fn peek_id(frame: &[u8]) -> Option<u32> {
        peek(frame, BIND)
    }

    /// The frame.
    pub fn encode(&self, key: &BindSecret) -> [u8; LEN] {
        let fields = Fields {
            kind: BIND,
            flags: 0,
            port: 0,
            id: self.id,
            counter: self.counter,
            time: self.time,
            nonce: self.nonce,
            address: [0; 16],
        };
        fields.seal(key)
    }

    /// Reads a frame. `None` where the length, a spare field or the MAC is wrong.
    pub fn open(frame: &[u8], key: &BindSecret) -> Option<Self> {
        let fields = Fields::open(frame, BIND, key)?;
        if fields.flags != 0 || fields.port != 0 || fields.address != [0; 16] {
            return None;
        }
        Some(Self { id: fields.id, counter: fields.counter, time: fields.time, nonce: fields.nonce })
    }
}

impl Bound {
    /// The id in a `BOUND`, before the MAC is checked: which key to check with.
    pub fn peek_id(frame: &[u8]) -> Option<u32> {
        peek(frame, BOUND)
    }

    /// The frame.
    pub fn encode(&self, key: &BindSecret) -> [u8; LEN] {
        let address = self.reflexive.socket_addr();
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let (flags, nonce) = match self.verdict {
            Verdict::Bound => (0, 0),
            Verdict::Challenge(nonce) => (CHALLENGE, nonce),
        };
        let fields = Fields {
            kind: BOUND,
            flags,
            port: address.port(),
            id: self.id,
            counter: self.counter,
            time: self.time,
            nonce,
            address: ip.octets(),
        };
        fields.seal(key)
    }

    /// Reads a frame. `None` where the length, a flag, a spare field or the MAC is wrong.
    pub fn open(frame: &[u8], key: &BindSecret) -> Option<Self> {
        let fields = Fields::open(frame, BOUND, key)?;
        let verdict = match (fields.flags, fields.nonce) {
            (0, 0) => Verdict::Bound,
            (CHALLENGE, nonce) => Verdict::Challenge(nonce),
            _ => return None,
        };
        let reflexive = Endpoint::new(SocketAddr::new(IpAddr::from(fields.address), fields.port));
        Some(Self { id: fields.id, counter: fields.counter, time: fields.time, reflexive, verdict })
    }
}

struct Fields {
    kind: u8,
    flags: u8,
    port: u16,
    id: u32,
    counter: u64,
    time: u64,
    nonce: u64,
    address: [u8; 16],
}

impl Fields {
    fn seal(&self, key: &BindSecret) -> [u8; LEN] {
        let mut frame = [0; LEN];
        let (body, mac) = frame.split_at_mut(BODY);
        let fields: [&[u8]; 8] = [
            &[self.kind],
            &[self.flags],
            &self.port.to_be_bytes(),
            &self.id.to_be_bytes(),
            &self.counter.to_be_bytes(),
            &self.time.to_be_bytes(),
            &self.nonce.to_be_bytes(),
            &self.address,
        ];
        for (byte, field) in body.iter_mut().zip(fields.into_iter().flatten()) {
            *byte = *field;
        }
        mac.copy_from_slice(&PairKey::tag(key.as_bytes(), &[body]));
        frame
    }

    fn open(frame: &[u8], kind: u8, key: &BindSecret) -> Option<Self> {
        let frame: &[u8; LEN] = frame.try_into().ok()?;
        let (body, mac) = frame.split_at(BODY);
        let ([got, flags], rest) = body.split_first_chunk()?;
        if *got != kind || !key.matches(&[body], mac) {
            return None;
        }
        let (port, rest) = rest.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (counter, rest) = rest.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        Some(Self {
            kind,
            flags: *flags,
            port: u16::from_be_bytes(*port),
            id: u32::from_be_bytes(*id),
            counter: u64::from_be_bytes(*counter),
            time: u64::from_be_bytes(*time),
            nonce: u64::from_be_bytes(*nonce),
            address: rest.try_into().ok()?,
        })
    }
}

/// Bytes under the MAC.
const BODY: usize = 48;

const CHALLENGE: u8 = 1;

fn peek(frame: &[u8], kind: u8) -> Option<u32> {
    if frame.len() != LEN || frame.first() != Some(&kind) {
        return None;
    }
    Some(u32::from_be_bytes(frame.get(4..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> BindSecret {
        BindSecret::from_bytes([9; 32])
    }

    fn bound(verdict: Verdict) -> Bound {
        let reflexive = Endpoint::new("192.0.2.1:4500".parse().unwrap());
        Bound { id: 1, counter: 2, time: 3, reflexive, verdict }
    }

    #[test]
    fn both_frames_survive_the_wire_and_have_one_size() {
        let bind = Bind { id: 1, counter: 2, time: 3, nonce: 4 };
        assert_eq!(Bind::open(&bind.encode(&key()), &key()), Some(bind));
        assert_eq!(Bind::peek_id(&bind.encode(&key())), Some(1));
        for verdict in [Verdict::Bound, Verdict::Challenge(7)] {
            assert_eq!(Bound::open(&bound(verdict).encode(&key()), &key()), Some(bound(verdict)));
        }
    }

    #[test]
    fn a_flipped_bit_another_key_or_the_other_direction_is_refused() {
        let frame = bound(Verdict::Bound).encode(&key());
        for at in 0..frame.len() {
            let mut bad = frame;
            bad[at] ^= 1;
            assert_eq!(Bound::open(&bad, &key()), None);
        }
        assert_eq!(Bound::open(&frame, &BindSecret::from_bytes([8; 32])), None);
        assert_eq!(Bind::open(&frame, &key()), None);
        assert_eq!(Bound::open(&frame[..63], &key()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(Bind::open(&bytes, &key()), None);
            prop_assert_eq!(Bound::open(&bytes, &key()), None);
        }
    }
}
