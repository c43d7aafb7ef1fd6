//! Sealed frames: what two members send each other outside WireGuard, under k_pair.
//!
//! They exist so that a stranger, a hub or a flood is refused by one cheap check, before boringtun does a
//! scalar multiplication, and so that an endpoint learns the other's boot epoch from the same frame. Two
//! kinds, told apart by the first byte:
//!
//! * `0x10`, [`SealedFrame`]: an encrypted payload (probes, peer messages).
//! * `0x11`, [`SealedHandshake`]: a WireGuard type 1-3 in clear with a tag.
//!
//! Receiving goes: parse (lengths only) → find the peer by [`SenderHint`] →
//! its [`PairKeys`] → open → epoch: drop what is below the greatest seen, and an initiation that does not
//! name our own. For `0x10` that and the replay check are [`ReplayWindow::accept`]; for `0x11` they are
//! [`VerifiedHandshake::judge`].
//!
//! It keeps no table of peers and knows nothing of what is inside a frame.

mod frame;
mod handshake;
mod replay;

use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305};
use flatlan_types::{MemberId, NetworkId, PairKey, SenderHint};
use zeroize::Zeroizing;

pub use frame::{FRAME_OVERHEAD, FRAME_TYPE, FrameCounter, SealedFrame, seal_frame};
pub use handshake::{
    HANDSHAKE_OVERHEAD, HANDSHAKE_TYPE, HandshakeVerdict, SEALED_HANDSHAKE_MAX, SealedHandshake, SealedHandshakeHeader,
    VerifiedHandshake, seal_handshake,
};
pub use replay::{Freshness, ReplayWindow};

/// The keys of one pair, by direction and purpose: made once per peer and kept. Zeroed on drop.
pub struct PairKeys {
    hint: SenderHint,
    handshake_send: Zeroizing<[u8; 32]>,
    handshake_receive: Zeroizing<[u8; 32]>,
    frame_send: XChaCha20Poly1305,
    frame_receive: XChaCha20Poly1305,
}

impl PairKeys {
    /// The keys that `own` uses with `peer`.
    pub fn new(pair: &PairKey, network: &NetworkId, own: &MemberId, peer: &MemberId) -> Self {
        let key = |purpose, sender: &MemberId| Zeroizing::new(pair.subkey(purpose, sender.as_bytes()));
        let cipher = |sender| XChaCha20Poly1305::new((&*key("probe", sender)).into());
        Self {
            hint: SenderHint::of(network, own),
            handshake_send: key("handshake", own),
            handshake_receive: key("handshake", peer),
            frame_send: cipher(own),
            frame_receive: cipher(peer),
        }
    }

    /// The hint that goes into what we send.
    pub fn hint(&self) -> SenderHint {
        self.hint
    }
}

/// Reads header fields; every read is checked.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests;
