//! `0x10`: an encrypted frame between two members.
//!
//! ```text
//!  0        1        2        3        4                                7
//! +--------+--------+-----------------+----------------------------------+
//! |  0x10  | flags 0|        0        |           sender hint            |
//! +--------+--------+-----------------+----------------------------------+
//! |                          sender epoch (8)                            |
//! +----------------------------------------------------------------------+
//! |                            counter (8)                               |
//! +----------------------------------------------------------------------+
//! |                 ciphertext, then its 16-byte tag                     |
//! ```
//!
//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03); the 24-byte header is the associated data, the nonce is
//! epoch, counter and eight zero bytes. The key names the direction, so the two ends never share a nonce.
//! Integers are big endian.

use std::time::Duration;

use blake2::{Blake2s256, Digest as _};
use chacha20poly1305::{AeadInPlace as _, Tag, XNonce};
use flatlan_types::{BootEpoch, SenderHint};

use super::{Fields, PairKeys};

/// A frame whose lengths are right and of which nothing has been verified.
#[derive(Clone, Copy)]
pub struct SealedFrame<'a> {
    /// Who says to have sent it.
    pub hint: SenderHint,
    /// In which of its lives.
    pub epoch: BootEpoch,
    /// Number of the frame in that life.
    pub counter: u64,
    header: &'a [u8; HEADER_LEN],
    sealed: &'a [u8],
}

impl<'a> SealedFrame<'a> {
    /// Reads a frame; `None` where it is no frame. Padding after a frame is part of its payload.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (header, sealed) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let mut fields = Fields(header);
        if fields.take()? != [FRAME_TYPE, 0, 0, 0] || sealed.len() < TAG_LEN {
            return None;
        }
        let hint = SenderHint(u32::from_be_bytes(fields.take()?));
        let epoch = BootEpoch(u64::from_be_bytes(fields.take()?));
        let counter = u64::from_be_bytes(fields.take()?);
        Some(Self { hint, epoch, counter, header, sealed })
    }

    /// Length of the payload.
    pub fn payload_len(&self) -> usize {
        self.sealed.len().saturating_sub(TAG_LEN)
    }

    /// Decrypts the payload to the front of `out` and returns it; `None` where it is not authentic or does
    /// not fit. Whether it is fresh is for [`super::ReplayWindow`] to say, after this.
    pub fn open<'b>(&self, keys: &PairKeys, out: &'b mut [u8]) -> Option<&'b [u8]> {
        let (ciphertext, tag) = self.sealed.split_at_checked(self.payload_len())?;
        let out = out.get_mut(..ciphertext.len())?;
        out.copy_from_slice(ciphertext);
        let nonce = nonce(self.epoch, self.counter);
        let opened = keys.frame_receive.decrypt_in_place_detached(&nonce, self.header, out, Tag::from_slice(tag));
        if opened.is_err() {
            // The cipher checks the tag first, but let no caller depend on what a refused frame held.
            out.fill(0);
            return None;
        }
        Some(out)
    }
}

/// Writes a frame with `payload` at `out[0..]` and returns its length, which is [`FRAME_OVERHEAD`] more
/// than the payload's; `None` where `out` is too short.
pub fn seal_frame(
    keys: &PairKeys,
    epoch: BootEpoch,
    counter: &mut FrameCounter,
    payload: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    let len = payload.len().checked_add(FRAME_OVERHEAD)?;
    let (header, rest) = out.get_mut(..len)?.split_first_chunk_mut::<HEADER_LEN>()?;
    let (text, tag_out) = rest.split_at_mut_checked(payload.len())?;
    let counter = counter.next();
    let (kind, fields) = header.split_at_mut(4);
    kind.copy_from_slice(&[FRAME_TYPE, 0, 0, 0]);
    let (hint, fields) = fields.split_at_mut(4);
    hint.copy_from_slice(&keys.hint.0.to_be_bytes());
    let (epoch_out, counter_out) = fields.split_at_mut(8);
    epoch_out.copy_from_slice(&epoch.0.to_be_bytes());
    counter_out.copy_from_slice(&counter.to_be_bytes());
    text.copy_from_slice(payload);
    let tag = keys.frame_send.encrypt_in_place_detached(&nonce(epoch, counter), header, text).ok()?;
    tag_out.copy_from_slice(&tag);
    Some(len)
}

/// Numbers the frames to one peer. A number must never come twice in one epoch: it is the nonce. One
/// owner per peer, therefore neither `Clone` nor `Copy`, and one only: the receiver has one window.
///
/// It starts at random, so that two clones of a machine that were given the same epoch do not use the same
/// nonces for different frames, and rises by one.
pub struct FrameCounter(u64);

impl FrameCounter {
    /// The first counter of a process that never makes a second one for this peer, from 64 random bits.
    pub fn new(seed: u64) -> Self {
        Self::resumed(seed, Duration::ZERO)
    }

    /// A counter for a peer that may have been forgotten and met again: greater than what an earlier one in
    /// this epoch has reached, or the peer would take every frame for a replay. `seed` is 64 random bits, the
    /// same for the life of the process, and `uptime` how long that has lasted.
    pub fn resumed(seed: u64, uptime: Duration) -> Self {
        // The start shows on the wire, and the seed may be in use elsewhere.
        let hash = Blake2s256::new().chain_update(b"flatlan counter v1").chain_update(seed.to_le_bytes()).finalize();
        let start = u64::from_le_bytes(hash.first_chunk().copied().unwrap_or_default());
        // Nobody sends a frame each microsecond. Two bits stay clear, so that it cannot wrap.
        let micros = u64::try_from(uptime.as_micros()).unwrap_or(u64::MAX);
        Self((start >> 2).saturating_add(micros.min(1 << 61)))
    }

    #[cfg(test)]
    pub(super) fn at(counter: u64) -> Self {
        Self(counter)
    }

    fn next(&mut self) -> u64 {
        let counter = self.0;
        self.0 += 1;
        counter
    }
}

fn nonce(epoch: BootEpoch, counter: u64) -> XNonce {
    let mut nonce = [0; 24];
    let (epoch_out, rest) = nonce.split_at_mut(8);
    epoch_out.copy_from_slice(&epoch.0.to_be_bytes());
    let (counter_out, _) = rest.split_at_mut(8);
    counter_out.copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

/// The first byte.
pub const FRAME_TYPE: u8 = 0x10;
/// How much longer a frame is than its payload.
pub const FRAME_OVERHEAD: usize = HEADER_LEN + TAG_LEN;

const HEADER_LEN: usize = 24;
const TAG_LEN: usize = 16;
