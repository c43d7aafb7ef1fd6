//! `0x11`: a WireGuard handshake message between two members.
//!
//! ```text
//!  0        1        2        3        4                                7
//! +--------+--------+-----------------+----------------------------------+
//! |  0x11  |  lane  |        0        |           sender hint            |
//! +--------+--------+-----------------+----------------------------------+
//! |                          sender epoch (8)                            |
//! +----------------------------------------------------------------------+
//! |                         receiver epoch (8)                           |
//! +----------------------------------------------------------------------+
//! |    WireGuard message of type 1, 2 or 3, then the 16-byte tag         |
//! ```
//!
//! The tag is keyed BLAKE2s over all before it, under a key that names the direction. Integers of the
//! header are big endian. The two epochs and the lane are what stop a recorded handshake from meaning
//! anything on another lane or in another life of either end.

use flatlan_types::{BootEpoch, LaneId, PairKey, SenderHint};
use subtle::ConstantTimeEq as _;

use super::{Fields, PairKeys};
use crate::message::{INITIATION_LEN, MessageKind};

/// A handshake whose lengths are right and of which nothing has been verified.
#[derive(Clone, Copy)]
pub struct SealedHandshake<'a> {
    /// Who says to have sent it.
    pub hint: SenderHint,
    /// What else the header says.
    pub header: SealedHandshakeHeader,
    kind: MessageKind,
    signed: &'a [u8],
    message: &'a [u8],
    tag: &'a [u8; TAG_LEN],
}

impl<'a> SealedHandshake<'a> {
    /// Reads a sealed handshake; `None` where it is none.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (signed, tag) = datagram.split_last_chunk::<TAG_LEN>()?;
        let mut fields = Fields(signed);
        let [HANDSHAKE_TYPE, lane, 0, 0] = fields.take()? else { return None };
        let lane = LaneId::new(lane)?;
        let hint = SenderHint(u32::from_be_bytes(fields.take()?));
        let sender_epoch = BootEpoch(u64::from_be_bytes(fields.take()?));
        let receiver_epoch = BootEpoch(u64::from_be_bytes(fields.take()?));
        let message = fields.rest();
        let kind = MessageKind::of(message).filter(|kind| *kind != MessageKind::Data)?;
        let header = SealedHandshakeHeader { lane, sender_epoch, receiver_epoch };
        Some(Self { hint, header, kind, signed, message, tag })
    }

    /// Whether the peer that `keys` are shared with sealed it; if so the message may be used, once
    /// [`VerifiedHandshake::judge`] has spoken on its epochs.
    pub fn verify(&self, keys: &PairKeys) -> Option<VerifiedHandshake<'a>> {
        let tag = PairKey::tag(&keys.handshake_receive, &[self.signed]);
        if !bool::from(tag.ct_eq(self.tag)) {
            return None;
        }
        Some(VerifiedHandshake { header: self.header, kind: self.kind, message: self.message })
    }
}

/// A handshake that its sender sealed.
#[derive(Clone, Copy)]
pub struct VerifiedHandshake<'a> {
    /// Lane and epochs.
    pub header: SealedHandshakeHeader,
    /// What the message is: never data.
    pub kind: MessageKind,
    /// The WireGuard message.
    pub message: &'a [u8],
}

impl VerifiedHandshake<'_> {
    /// What its epochs mean, where `own` is our epoch and `seen` the greatest of the sender so far.
    pub fn judge(&self, own: BootEpoch, seen: BootEpoch) -> HandshakeVerdict {
        let SealedHandshakeHeader { sender_epoch, receiver_epoch, .. } = self.header;
        if sender_epoch < seen {
            HandshakeVerdict::OldSender
        } else if receiver_epoch > own {
            HandshakeVerdict::WeAreOld
        } else if receiver_epoch != own {
            HandshakeVerdict::NotForThisLife
        } else if sender_epoch > seen {
            HandshakeVerdict::NewSender
        } else {
            HandshakeVerdict::Current
        }
    }
}

/// What the epochs of a verified handshake mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HandshakeVerdict {
    /// For the sessions that there are: handle it.
    Current,
    /// The sender has started again: remember its epoch, open its lanes anew, then handle it.
    NewSender,
    /// It does not name our epoch: drop it. The sender learns ours from a sealed frame.
    NotForThisLife,
    /// From an earlier life of the sender: drop it.
    OldSender,
    /// The sender has seen a greater epoch of ours than we use: drop it, and take a greater one.
    WeAreOld,
}

/// The readable part of a sealed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedHandshakeHeader {
    /// Which lane the message is for.
    pub lane: LaneId,
    /// The sender's epoch.
    pub sender_epoch: BootEpoch,
    /// The receiver's epoch, as the sender knows it.
    pub receiver_epoch: BootEpoch,
}

/// Writes `message`, a WireGuard type 1, 2 or 3, sealed, at `out[0..]` and returns the length, which is
/// [`HANDSHAKE_OVERHEAD`] more than the message's; `None` where it is no such message or `out` is too short.
pub fn seal_handshake(keys: &PairKeys, header: SealedHandshakeHeader, message: &[u8], out: &mut [u8]) -> Option<usize> {
    MessageKind::of(message).filter(|kind| *kind != MessageKind::Data)?;
    let mut head = [0; HEADER_LEN];
    let (kind, fields) = head.split_at_mut(4);
    kind.copy_from_slice(&[HANDSHAKE_TYPE, header.lane.number(), 0, 0]);
    let (hint, epochs) = fields.split_at_mut(4);
    hint.copy_from_slice(&keys.hint.0.to_be_bytes());
    let (sender, receiver) = epochs.split_at_mut(8);
    sender.copy_from_slice(&header.sender_epoch.0.to_be_bytes());
    receiver.copy_from_slice(&header.receiver_epoch.0.to_be_bytes());

    let len = message.len() + HANDSHAKE_OVERHEAD;
    let (signed, tag) = out.get_mut(..len)?.split_last_chunk_mut::<TAG_LEN>()?;
    let (head_out, message_out) = signed.split_first_chunk_mut::<HEADER_LEN>()?;
    *head_out = head;
    message_out.copy_from_slice(message);
    *tag = PairKey::tag(&keys.handshake_send, &[signed]);
    Some(len)
}

/// The first byte.
pub const HANDSHAKE_TYPE: u8 = 0x11;
/// How much longer a sealed handshake is than its message.
pub const HANDSHAKE_OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// The longest sealed handshake.
pub const SEALED_HANDSHAKE_MAX: usize = INITIATION_LEN + HANDSHAKE_OVERHEAD;

const HEADER_LEN: usize = 24;
const TAG_LEN: usize = 16;
