//! CBOR read strictly.
//!
//! Bytes are signed, hashed and forwarded as they are, never encoded again. What wraps them must
//! therefore have exactly one encoding: [`canonical`] decodes, encodes again and compares, so that no
//! byte of a message can change without changing what it says. [`Envelope`] is the part of every
//! signed map that lets a later version add to it: unknown keys are skipped, except those that the
//! writer lists as critical (key 0), which refuse the map.

use std::{error::Error, ops::Range};

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

/// Decodes one value and refuses bytes behind it.
pub(crate) fn whole<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, DecodeError> {
    let mut d = Decoder::new(bytes);
    let value = d.decode()?;
    if d.position() != bytes.len() {
        return Err(DecodeError::Trailing);
    }
    Ok(value)
}

/// Decodes one value whose encoding must be the one that this crate writes.
pub(crate) fn canonical<'b, T: Decode<'b, ()> + Encode<()>>(bytes: &'b [u8], limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { got: bytes.len(), limit });
    }
    let value: T = whole(bytes)?;
    if to_bytes(&value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}

/// The same, for what begins with a format number: another number is told apart from damage.
pub(crate) fn versioned<'b, T: Decode<'b, ()> + Encode<()>>(
    bytes: &'b [u8],
    limit: usize,
    format: u64,
) -> Result<T, DecodeError> {
    let mut d = Decoder::new(bytes);
    d.array()?;
    match d.u64()? {
        got if got == format => canonical(bytes, limit),
        got => Err(DecodeError::Version { got }),
    }
}

/// Decodes a signed map, refusing one that has a critical key beyond `known`.
pub(crate) fn map<'b, T: Decode<'b, ()>>(bytes: &'b [u8], known: u32) -> Result<T, DecodeError> {
    critical(bytes, known)?;
    whole(bytes)
}

/// Refuses a signed map that has a critical key beyond `known`. What else it says is not read.
pub(crate) fn critical(bytes: &[u8], known: u32) -> Result<(), DecodeError> {
    let envelope: Envelope = whole(bytes)?;
    let critical = envelope.critical.unwrap_or_default();
    match critical.into_iter().find(|key| *key > known) {
        Some(key) => Err(DecodeError::Critical { key }),
        None => Ok(()),
    }
}

/// Encodes into memory.
pub(crate) fn to_bytes<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to memory does not fail")
}

/// Expects an array of exactly `length` items.
pub(crate) fn tuple(d: &mut Decoder<'_>, length: u64) -> Result<(), decode::Error> {
    if d.array()? == Some(length) { Ok(()) } else { Err(decode::Error::message("array of another length")) }
}

/// Expects the format version that this crate writes.
pub(crate) fn format(d: &mut Decoder<'_>, expected: u64) -> Result<(), decode::Error> {
    match d.u64()? {
        got if got == expected => Ok(()),
        _ => Err(decode::Error::message("another format")),
    }
}

/// Byte strings, as an array.
pub(crate) fn encode_blobs<'a, W: encode::Write>(
    blobs: impl ExactSizeIterator<Item = &'a [u8]>,
    e: &mut Encoder<W>,
) -> Result<(), encode::Error<W::Error>> {
    e.array(blobs.len() as u64)?;
    for blob in blobs {
        e.bytes(blob)?;
    }
    Ok(())
}

/// Byte strings, at most `limit` of them. Memory is bounded by the input: each costs at least a byte.
pub(crate) fn decode_blobs(d: &mut Decoder<'_>, limit: usize) -> Result<Vec<Vec<u8>>, decode::Error> {
    let count = d.array()?.ok_or_else(|| decode::Error::message("array of indefinite length"))?;
    if count > limit as u64 {
        return Err(decode::Error::message("too many entries"));
    }
    (0..count).map(|_| Ok(d.bytes()?.to_vec())).collect()
}

/// The places of byte strings, at most `limit` of them, each with the shortest header.
///
/// # Panics
/// The input is as long as 4 GiB.
pub(crate) fn blobs(d: &mut Decoder<'_>, limit: usize) -> Result<Vec<Range<u32>>, DecodeError> {
    let start = d.position();
    let count = d.array()?.ok_or(DecodeError::NotCanonical)?;
    if count > limit as u64 {
        return Err(DecodeError::Cbor(decode::Error::message("too many entries")));
    }
    if d.position() - start != header(count) {
        return Err(DecodeError::NotCanonical);
    }
    // each takes a byte at the least
    let mut places = Vec::with_capacity((count as usize).min(d.input().len() - d.position()));
    for _ in 0..count {
        let start = d.position();
        let place = match short_blob(d.input(), start) {
            Some(place) => place,
            None => {
                let length = d.bytes()?.len();
                let end = d.position();
                if end - start - length != header(length as u64) {
                    return Err(DecodeError::NotCanonical);
                }
                end - length..end
            }
        };
        d.set_position(place.end);
        let narrow = |at: usize| u32::try_from(at).expect("no roster is as long as 4 GiB");
        places.push(narrow(place.start)..narrow(place.end));
    }
    Ok(places)
}

/// The place of a byte string that has one byte for its length, as almost every record has: there are many.
fn short_blob(input: &[u8], at: usize) -> Option<Range<usize>> {
    let [BYTES_OF_ONE_BYTE_LENGTH, length] = *input.get(at..)?.first_chunk()? else { return None };
    let (start, length) = (at + 2, usize::from(length));
    (header(length as u64) == 2 && start + length <= input.len()).then_some(start..start + length)
}

/// Major type 2, additional information 24 (RFC 8949 section 3).
const BYTES_OF_ONE_BYTE_LENGTH: u8 = 0x58;

/// Bytes of the shortest header that holds this number (RFC 8949 section 3).
fn header(number: u64) -> usize {
    match number {
        0..=23 => 1,
        24..=0xff => 2,
        0x100..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

#[derive(Decode)]
#[cbor(map)]
struct Envelope {
    #[n(0)]
    critical: Option<Vec<u32>>,
}

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the CBOR that was expected.
    #[error("damaged, or cut off")]
    Cbor(#[from] decode::Error),
    /// The writer demands that a key is understood which this version does not know.
    #[error("it holds field {key}, which this version does not know and may not ignore: upgrade flatlan")]
    Critical {
        /// The key.
        key: u32,
    },
    /// A second way to write the same thing.
    #[error("not in the one encoding that is allowed")]
    NotCanonical,
    /// Longer than anything legitimate.
    #[error("{got} bytes are more than the {limit} allowed")]
    TooLong {
        /// Bytes given.
        got: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Bytes behind the end.
    #[error("bytes behind the end")]
    Trailing,
    /// Written by a later version.
    #[error("written by a later version of flatlan (format {got}): upgrade flatlan")]
    Version {
        /// The version named in the bytes.
        got: u64,
    },
}

impl DecodeError {
    /// What of this error, or of its cause, is no damage but a version's that is later than this `format`.
    pub(crate) fn later(self, format: u64) -> Option<Self> {
        match self {
            Self::Critical { .. } => Some(self),
            Self::Version { got } => (got > format).then_some(self),
            Self::Cbor(error) => {
                let cause = error.source()?.downcast_ref::<Self>()?;
                if let Self::Critical { key } = cause { Some(Self::Critical { key: *key }) } else { None }
            }
            Self::NotCanonical | Self::TooLong { .. } | Self::Trailing => None,
        }
    }
}
