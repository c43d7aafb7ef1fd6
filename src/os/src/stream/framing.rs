//! WebSocket frames (RFC 6455, section 5) in a buffer: what a stream that nothing waits for is made of.
//!
//! A message leaves as one binary frame. What came in is looked at where it lies: a whole message is a range of the
//! buffer, unmasked in place. Only one that its sender cut in pieces, which none of ours does, is put together
//! elsewhere. Nothing here reads or writes, and no length that is only promised costs memory.

use std::ops::Range;

/// Which end of a stream this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Dialled: what it sends is masked.
    Client,
    /// Accepted: what it sends is not.
    Server,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A later part of a message.
    Continuation = 0,
    /// A text message, or its first part.
    Text = 1,
    /// A binary message, or its first part.
    Binary = 2,
    /// Goodbye.
    Close = 8,
    /// To be answered.
    Ping = 9,
    /// The answer.
    Pong = 10,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    last: bool,
    kind: Kind,
    mask: Option<[u8; 4]>,
    /// Bytes of the header.
    pub(super) header: usize,
    /// Bytes behind it.
    pub(super) payload: u64,
}

/// A header, written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    bytes: [u8; MOST_HEADER],
    len: usize,
}

/// Finds the messages in what came.
#[derive(Debug)]
pub(super) struct Unframer {
    side: Side,
    /// The longest message.
    most: usize,
    /// The parts of a message that was cut, so far.
    parts: Option<Vec<u8>>,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Goodbye.
    Close,
    /// A message, here in the buffer.
    Message(Range<usize>),
    /// A part of a message, or an answer that nobody asked for.
    Nothing,
    /// To be answered with the same bytes.
    Ping(Range<usize>),
    /// A message that came in parts.
    Whole(Vec<u8>),
}

/// What is no WebSocket, or not for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FramingError {
    /// A control frame in parts, or too long.
    #[error("a control frame is too long")]
    Control,
    /// Masked, or not, and should be the other.
    #[error("a frame is masked the wrong way")]
    Mask,
    /// Parts of a message without the first, or a message within another.
    #[error("the parts of a message are out of order")]
    Order,
    /// Bits or kinds that nobody agreed on.
    #[error("a frame of a kind that nobody agreed on")]
    Reserved,
    /// A text message.
    #[error("a text message")]
    Text,
    /// Longer than any message may be.
    #[error("a message is too long")]
    TooLong,
}

impl Header {
    /// Reads the header at the beginning of `bytes`; `None` where it is not all there.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>, FramingError> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        let kind = match first & 0x7f {
            0 => Kind::Continuation,
            1 => Kind::Text,
            2 => Kind::Binary,
            8 => Kind::Close,
            9 => Kind::Ping,
            10 => Kind::Pong,
            _ => return Err(FramingError::Reserved),
        };
        let (payload, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        let (mask, rest) = if second & MASKED == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk() {
                Some((mask, rest)) => (Some(*mask), rest),
                None => return Ok(None),
            }
        };
        Ok(Some(Self { last: first & LAST != 0, kind, mask, header: bytes.len() - rest.len(), payload }))
    }

    fn is_control(&self) -> bool {
        match self.kind {
            Kind::Close | Kind::Ping | Kind::Pong => true,
            Kind::Continuation | Kind::Text | Kind::Binary => false,
        }
    }
}

impl Written {
    /// The header of an unfragmented frame.
    ///
    /// A client masks with zeros, which changes nothing and costs nothing. RFC 6455, section 5.3, asks for a key
    /// that nobody can guess, so that whoever chooses the payload does not choose the bytes on the wire, and with them
    /// fools a proxy that takes them for HTTP (section 10.3). On our wire are TLS records, which nobody chooses and
    /// no proxy can read: one that decrypts them has another exporter, and is refused.
    pub(super) fn new(kind: Kind, payload: usize, side: Side) -> Self {
        let mut bytes = [0; MOST_HEADER];
        let masked = if side == Side::Client { MASKED } else { 0 };
        let mut put = |at: usize, what: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + what.len()) {
                place.copy_from_slice(what);
            }
            at + what.len()
        };
        let after = put(0, &[LAST | kind as u8]);
        let after = match u16::try_from(payload) {
            Ok(length) if length < 126 => put(after, &[masked | length as u8]),
            Ok(length) => {
                let after = put(after, &[masked | 126]);
                put(after, &length.to_be_bytes())
            }
            Err(_) => {
                let after = put(after, &[masked | 127]);
                put(after, &(payload as u64).to_be_bytes())
            }
        };
        Self { bytes, len: if side == Side::Client { after + 4 } else { after } }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Unframer {
    /// For what comes to this end; messages are at most `most` bytes.
    pub(super) fn new(side: Side, most: usize) -> Self {
        Self { side, most, parts: None }
    }

    /// The frame that begins at `at`, which is set behind it; `None` where it is not all there.
    pub(super) fn next(&mut self, bytes: &mut [u8], at: &mut usize) -> Result<Option<Piece>, FramingError> {
        let Some(header) = Header::parse(bytes.get(*at..).unwrap_or_default())? else { return Ok(None) };
        if header.mask.is_some() != (self.side == Side::Server) {
            return Err(FramingError::Mask);
        }
        if header.is_control() && (header.payload > MOST_CONTROL || !header.last) {
            return Err(FramingError::Control);
        }
        let before = self.parts.as_ref().map_or(0, Vec::len);
        let room = if header.is_control() { self.most } else { self.most.saturating_sub(before) };
        let length = usize::try_from(header.payload).ok().filter(|length| *length <= room);
        let length = length.ok_or(FramingError::TooLong)?;
        let range = *at + header.header..*at + header.header + length;
        let Some(payload) = bytes.get_mut(range.clone()) else { return Ok(None) };
        *at = range.end;
        if let Some(mask) = header.mask {
            unmask(payload, mask);
        }
        self.take(header, payload, range).map(Some)
    }

    fn take(&mut self, header: Header, payload: &[u8], range: Range<usize>) -> Result<Piece, FramingError> {
        match (header.kind, self.parts.take()) {
            (Kind::Text, _) => Err(FramingError::Text),
            (Kind::Binary, Some(_)) | (Kind::Continuation, None) => Err(FramingError::Order),
            (Kind::Binary, None) if header.last => Ok(Piece::Message(range)),
            (Kind::Binary, None) => {
                self.parts = Some(payload.to_vec());
                Ok(Piece::Nothing)
            }
            (Kind::Continuation, Some(mut parts)) => {
                parts.extend_from_slice(payload);
                if header.last {
                    return Ok(Piece::Whole(parts));
                }
                self.parts = Some(parts);
                Ok(Piece::Nothing)
            }
            (kind @ (Kind::Close | Kind::Ping | Kind::Pong), parts) => {
                self.parts = parts;
                Ok(match kind {
                    Kind::Close => Piece::Close,
                    Kind::Ping => Piece::Ping(range),
                    Kind::Pong | Kind::Continuation | Kind::Text | Kind::Binary => Piece::Nothing,
                })
            }
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    if mask == [0; 4] {
        return;
    }
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

const LAST: u8 = 0x80;
const MASKED: u8 = 0x80;
const MOST_HEADER: usize = 14;
const MOST_CONTROL: u64 = 125;

#[cfg(test)]
#[path = "framing/tests.rs"]
mod tests;
