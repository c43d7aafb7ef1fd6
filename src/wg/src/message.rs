//! WireGuard's message types, lengths and the fields that stand in clear (whitepaper section 5.4).
//!
//! Lengths and reserved bytes are checked here, before boringtun sees a byte. Integers are little endian,
//! as WireGuard has them.

/// The longest handshake message, and so the room that a reply or a timer's message needs.
pub const HANDSHAKE_MAX: usize = INITIATION_LEN;

/// What a datagram is, by its first four bytes and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageKind {
    /// Type 1.
    Initiation,
    /// Type 2.
    Response,
    /// Type 3.
    Cookie,
    /// Type 4.
    Data,
}

impl MessageKind {
    /// The kind of a well-formed message; reserved bytes must be zero and the length right.
    pub fn of(message: &[u8]) -> Option<Self> {
        let (kind, rest) = message.split_first_chunk::<4>()?;
        match (u32::from_le_bytes(*kind), rest.len() + 4) {
            (1, INITIATION_LEN) => Some(Self::Initiation),
            (2, RESPONSE_LEN) => Some(Self::Response),
            (3, COOKIE_LEN) => Some(Self::Cookie),
            (4, DATA_OVERHEAD..) => Some(Self::Data),
            _ => None,
        }
    }
}

/// Whether this is a type 1 or 2 without a second MAC: its sender has no cookie of ours (whitepaper section 5.4.7).
pub fn lacks_cookie(message: &[u8]) -> bool {
    match MessageKind::of(message) {
        Some(MessageKind::Initiation | MessageKind::Response) => message.last_chunk() == Some(&[0; MAC_LEN]),
        Some(MessageKind::Cookie | MessageKind::Data) | None => false,
    }
}

/// The sender index of a type 1 or 2.
pub(crate) fn sender_index(message: &[u8]) -> Option<u32> {
    le_u32(message, 4)
}

/// The receiver index of a type 2, 3 or 4.
pub(crate) fn receiver_index(message: &[u8], kind: MessageKind) -> Option<u32> {
    match kind {
        MessageKind::Initiation => None,
        MessageKind::Response => le_u32(message, 8),
        MessageKind::Cookie | MessageKind::Data => le_u32(message, 4),
    }
}

/// The counter of a type 4.
pub(crate) fn counter(message: &[u8]) -> Option<u64> {
    message.get(8..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

fn le_u32(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

pub(crate) const INITIATION_LEN: usize = 148;
pub(crate) const RESPONSE_LEN: usize = 92;
pub(crate) const COOKIE_LEN: usize = 64;
/// Each of the two at the end of a type 1 or 2.
const MAC_LEN: usize = 16;
/// Header and tag of a type 4.
pub(crate) const DATA_OVERHEAD: usize = 32;
/// The header of a type 4.
pub(crate) const DATA_HEADER: usize = 16;
/// What packets are padded to a multiple of (whitepaper section 5.4.6).
pub(crate) const PADDING: usize = 16;
/// Reject-After-Messages in the whitepaper is 2^64 - 2^13 - 1; no session of 180 s comes near 2^60, and
/// boringtun adds to the counter unchecked.
pub(crate) const COUNTER_MAX: u64 = 1 << 60;
