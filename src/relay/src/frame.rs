//! Labelled frames: one relayed datagram behind an eight-byte header.
//!
//! ```text
//!  0         1      2        4            8
//! [0x20]    [hops] [0  0]   [label u32]  [the relayed datagram ...
//! ```
//!
//! On UDP a frame is a datagram. On a data stream a message is a row of `[length u16][frame]`. A hub
//! replaces the header, [`HEADER_LEN`] bytes, in place, and sends the rest on as it came.
//!
//! This module knows nothing of what a label means; the relayed datagram is opaque.

use flatlan_types::{Label, WorkerId, Workers};

/// First byte of a labelled frame.
pub const KIND: u8 = 0x20;

/// Bytes before the relayed datagram.
pub const HEADER_LEN: usize = 8;

/// Bytes before each frame in a stream's message.
pub const LENGTH_LEN: usize = 2;

/// The header of a labelled frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How many more hubs the frame may cross.
    pub hops: u8,
    /// The handle that the receiver gave for this direction.
    pub label: Label,
}

impl Header {
    /// A header as a node writes it.
    pub fn new(label: Label) -> Self {
        Self { hops: crate::MAX_HOPS, label }
    }

    /// Reads the header of a frame. `None` where it is no labelled frame; spare bytes must be zero.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_LEN] = frame.first_chunk()?;
        Self::from_bytes(*header)
    }

    /// From the eight bytes of the wire.
    #[inline]
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Option<Self> {
        let [KIND, hops, 0, 0, a, b, c, d] = bytes else {
            return None;
        };
        Some(Self { hops, label: Label(u32::from_be_bytes([a, b, c, d])) })
    }

    /// The eight bytes of the wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = self.label.0.to_be_bytes();
        [KIND, self.hops, 0, 0, a, b, c, d]
    }

    /// Writes the header over the first bytes of `frame`; nothing where it is too short.
    #[inline]
    pub fn write(self, frame: &mut [u8]) {
        if let Some(header) = frame.first_chunk_mut() {
            *header = self.to_bytes();
        }
    }
}

/// The relayed datagram of a frame.
#[inline]
pub fn inner(frame: &[u8]) -> Option<&[u8]> {
    frame.get(HEADER_LEN..)
}

/// Appends one frame to a stream's message under construction.
///
/// # Errors
/// The message would exceed [`MAX_MESSAGE`](crate::MAX_MESSAGE): send it and begin another.
pub fn pack(message: &mut Vec<u8>, frame: &[u8]) -> Result<(), Full> {
    let Ok(length) = u16::try_from(frame.len()) else {
        return Err(Full);
    };
    if message.len() + LENGTH_LEN + frame.len() > crate::MAX_MESSAGE {
        return Err(Full);
    }
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(frame);
    Ok(())
}

/// The frames of a stream's message, in order. A cut-off last frame ends the row.
pub fn unpack(message: &[u8]) -> Frames<'_> {
    Frames { rest: message }
}

/// See [`unpack`].
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk()?;
        let (frame, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.rest = rest;
        Some(frame)
    }
}

/// A stream's message, cut into one for each worker that has labels in it. The order of one worker's frames stays;
/// what is cut off, or no frame, goes to the first.
pub fn share_out(message: &[u8], workers: Workers) -> Vec<(WorkerId, Vec<u8>)> {
    let mut shares: Vec<(WorkerId, Vec<u8>)> = Vec::new();
    for frame in unpack(message) {
        let owner = crate::steer::worker_of(frame, workers);
        let at = shares.iter().position(|(worker, _)| *worker == owner).unwrap_or(shares.len());
        if at == shares.len() {
            shares.push((owner, Vec::with_capacity(message.len())));
        }
        if let Some((_, share)) = shares.get_mut(at) {
            // a part of a message that had room
            let _ = pack(share, frame);
        }
    }
    shares
}

/// The message has no room for this frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message has no room for this frame")]
pub struct Full;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_with_spare_bits_set_is_refused() {
        let header = Header::new(Label::new(5, 6));
        assert_eq!(Header::from_bytes(header.to_bytes()), Some(header));
        assert_eq!(Header::parse(&[0x20, 8, 0, 1, 0, 0, 0, 0]), None);
        assert_eq!(Header::parse(&[0x20, 8, 0, 0, 0, 0, 0]), None);
        assert_eq!(Header::parse(&[4, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    proptest! {
        #[test]
        fn packed_frames_come_out_as_they_went_in(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..30)) {
            let mut message = Vec::new();
            for frame in &frames {
                prop_assert_eq!(pack(&mut message, frame), Ok(()));
            }
            let back: Vec<_> = unpack(&message).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(back, frames);
        }

        #[test]
        fn any_bytes_unpack_without_panic_and_within_them(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(unpack(&bytes).map(|f| f.len() + 2).sum::<usize>() <= bytes.len());
        }
    }
}
