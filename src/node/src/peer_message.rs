//! What two nodes' control machines say to each other, inside sealed frames.
//!
//! One CBOR map with integer keys and optional parts, so that one datagram can carry several of them.
//! The datapath seals it under the pair's key; whoever decodes one knows which member wrote it. A later
//! version adds keys, which this one skips; a message that must not be half understood raises
//! [`PeerMessage::version`], and is refused.
//!
//! | key | part | meaning |
//! |----:|------|---------|
//! | 0 | version | the least version whose reader understands it |
//! | 1 | presence | the sender's own signed statement: proof of its boot epoch |
//! | 2 | candidates | where the sender may be reached directly |
//! | 3 | answer | the sender would like the receiver's candidates back |
//! | 4 | summary | which head and claims the sender holds |
//! | 5 | request | a piece of the receiver's roster is wanted |
//! | 6 | part | a piece of the sender's roster |
//! | 7 | stale | a statement signed by the *receiver's* key under a greater epoch than it uses |
//! | 8 | withdrawn | which of its prefixes the sender cannot reach |
//!
//! This module decides nothing and keeps no state.

use flatlan_types::{Endpoint, Prefix};
use minicbor::{Decode, Encode, bytes::ByteVec};

/// A message between two nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PeerMessage {
    /// The least version whose reader understands this message.
    #[n(0)]
    pub version: u8,
    /// The sender's own signed presence, encoded.
    #[n(1)]
    pub presence: Option<ByteVec>,
    /// Where the sender may be reached directly.
    #[n(2)]
    pub candidates: Option<Vec<Endpoint>>,
    /// Whether the sender would like the receiver's candidates.
    #[n(3)]
    pub answer: Option<bool>,
    /// Which roster the sender holds.
    #[n(4)]
    pub summary: Option<Summary>,
    /// A piece of the receiver's roster is wanted.
    #[n(5)]
    pub request: Option<PartRequest>,
    /// A piece of the sender's roster.
    #[n(6)]
    pub part: Option<Part>,
    /// A presence signed by the receiver's own key under a greater epoch than it uses.
    #[n(7)]
    pub stale: Option<ByteVec>,
    /// Which of its prefixes the sender cannot reach: all of them, each time.
    #[n(8)]
    pub withdrawn: Option<Withdrawn>,
}

impl PeerMessage {
    /// A message of this version, empty so far.
    pub fn new() -> Self {
        Self { version: VERSION, ..Self::default() }
    }

    /// The bytes to seal.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("a Vec takes every byte")
    }

    /// Reads what a peer sealed.
    ///
    /// # Errors
    /// It is no such message, something follows it, or it is of a later version.
    pub fn decode(bytes: &[u8]) -> Result<Self, PeerMessageError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let message: Self = decoder.decode().map_err(PeerMessageError::Malformed)?;
        if decoder.position() != bytes.len() {
            return Err(PeerMessageError::Trailing);
        }
        if message.version > VERSION {
            return Err(PeerMessageError::Version { got: message.version });
        }
        Ok(message)
    }
}

/// Which roster a node holds: enough to see who is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Summary {
    /// The key epoch of the head.
    #[n(0)]
    pub key_epoch: u64,
    /// The serial of the head.
    #[n(1)]
    pub serial: u64,
    /// The id of the head.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub head: [u8; 32],
    /// How many claims.
    #[n(3)]
    pub claims: u32,
    /// The hash over the claims.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub claims_hash: [u8; 32],
}

impl Summary {
    /// Whether the rosters are the same to the byte.
    pub fn same_contents(&self, other: &Self) -> bool {
        self == other
    }

    /// The head's place in the order.
    pub fn order(&self) -> (u64, u64) {
        (self.key_epoch, self.serial)
    }
}

/// Asks for pieces of the roster that has this head and these claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PartRequest {
    /// The id of the head.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub head: [u8; 32],
    /// The hash over the claims.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub claims_hash: [u8; 32],
    /// Where the first piece begins; at most [`WINDOW`] pieces come.
    #[n(2)]
    pub offset: u32,
}

/// A piece of a roster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Part {
    /// The id of the head.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub head: [u8; 32],
    /// The hash over the claims.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub claims_hash: [u8; 32],
    /// Bytes of the whole.
    #[n(2)]
    pub total: u32,
    /// Where this piece begins.
    #[n(3)]
    pub offset: u32,
    /// The piece.
    #[n(4)]
    pub bytes: ByteVec,
}

/// What a gateway cannot reach of what it carries: flows into it go to the others that carry it too.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Withdrawn {
    /// The sender's boot epoch.
    #[n(0)]
    pub epoch: u64,
    /// How many statements of that epoch came before it: the greatest counts, whichever arrives last.
    #[n(1)]
    pub count: u32,
    /// Each prefix of the sender that lies in one of these is withdrawn; at most [`MAX_WITHDRAWN`].
    #[n(2)]
    pub prefixes: Vec<Prefix>,
    /// Why: 1 the device is gone, 2 it has no link, 3 the probe target does not answer. For people only.
    #[n(3)]
    pub reason: u8,
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum PeerMessageError {
    /// No such CBOR.
    #[error("the peer's message is malformed")]
    Malformed(#[source] minicbor::decode::Error),
    /// Bytes behind the end.
    #[error("the peer's message has bytes behind its end")]
    Trailing,
    /// Of a later version.
    #[error("the peer's message needs version {got} of this software's peer protocol, which has {VERSION}")]
    Version {
        /// Which.
        got: u8,
    },
}

/// The version of this protocol.
pub const VERSION: u8 = 1;

/// The most bytes of a roster in one message: with everything around them they fit one sealed datagram
/// on any path.
pub const PART_LEN: usize = 900;

/// The most prefixes in [`Withdrawn`].
pub const MAX_WITHDRAWN: usize = 24;

/// How many pieces one request brings.
pub const WINDOW: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full() -> PeerMessage {
        let candidates = (1..9).map(|n| Endpoint::new(([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 51820).into())).collect();
        PeerMessage {
            presence: Some(vec![1; 176].into()),
            candidates: Some(candidates),
            answer: Some(true),
            summary: Some(Summary {
                key_epoch: u64::MAX,
                serial: u64::MAX,
                head: [9; 32],
                claims: u32::MAX,
                claims_hash: [8; 32],
            }),
            ..PeerMessage::new()
        }
    }

    fn every_part() -> PeerMessage {
        let mut message = full();
        message.request = Some(PartRequest { head: [1; 32], claims_hash: [2; 32], offset: 7 });
        message.part =
            Some(Part { head: [1; 32], claims_hash: [2; 32], total: 9, offset: 3, bytes: vec![4; 5].into() });
        message.stale = Some(vec![3; 176].into());
        message
    }

    #[test]
    fn every_part_survives_the_wire() {
        let message = every_part();
        assert_eq!(PeerMessage::decode(&message.encode()).unwrap(), message);
    }

    #[test]
    fn what_is_withdrawn_is_written_and_read_as_in_the_golden_file() {
        let prefixes = ["192.168.2.0/24", "fd77:2::/64"].map(|text| text.parse().unwrap()).into();
        let withdrawn = Withdrawn { epoch: 1_700_000_000, count: 3, prefixes, reason: 2 };
        let message = PeerMessage { withdrawn: Some(withdrawn), ..PeerMessage::new() };
        let golden = crate::golden(include_str!("../tests/golden/peer-message-withdrawn-v1.hex"));
        assert_eq!(message.encode(), golden);
        assert_eq!(PeerMessage::decode(&golden).unwrap(), message);
    }

    #[test]
    fn a_message_is_written_and_read_as_in_the_golden_file() {
        let golden = crate::golden(include_str!("../tests/golden/peer-message-v1.hex"));
        assert_eq!(every_part().encode(), golden);
        assert_eq!(PeerMessage::decode(&golden).unwrap(), every_part());
    }

    #[test]
    fn whatever_is_sent_fits_one_sealed_datagram_on_any_path() {
        let part = Part {
            head: [1; 32],
            claims_hash: [2; 32],
            total: u32::MAX,
            offset: u32::MAX,
            bytes: vec![4; PART_LEN].into(),
        };
        let message = PeerMessage { part: Some(part), ..PeerMessage::new() };
        let prefix = |n: usize| Prefix::of([0x2001, 0xdb8, n as u16, 0, 0, 0, 0, 0].into(), 64).unwrap();
        let prefixes = (0..MAX_WITHDRAWN).map(prefix).collect();
        let withdrawn = Some(Withdrawn { epoch: u64::MAX, count: u32::MAX, prefixes, reason: u8::MAX });
        for message in [PeerMessage { withdrawn, ..full() }, message] {
            assert!(message.encode().len() <= 1100, "{}", message.encode().len());
        }
    }

    #[test]
    fn unknown_keys_are_skipped_and_a_later_version_is_refused() {
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        encoder.map(3).unwrap().u8(0).unwrap().u8(VERSION).unwrap();
        encoder.u8(3).unwrap().bool(true).unwrap().u8(99).unwrap().str("later").unwrap();
        assert_eq!(PeerMessage::decode(&bytes).unwrap().answer, Some(true));
        let later = PeerMessage { version: VERSION + 1, ..PeerMessage::new() };
        assert!(matches!(PeerMessage::decode(&later.encode()), Err(PeerMessageError::Version { got: 2 })));
        bytes.push(0);
        assert!(matches!(PeerMessage::decode(&bytes), Err(PeerMessageError::Trailing)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = PeerMessage::decode(&bytes);
        }
    }
}
