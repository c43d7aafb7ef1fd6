//! Payloads of sealed probe frames.
//!
//! They travel inside the sealed frame (first byte `0x10` on the wire), so whoever decodes one knows that
//! the peer wrote it. Both have [`LEN`] bytes, big endian; what follows in the frame is padding, which
//! gives a probe the size that it is to test.
//!
//! | offset | probe                          | reply                                            |
//! |-------:|--------------------------------|--------------------------------------------------|
//! |      0 | kind [`KIND_PROBE`]            | kind [`KIND_REPLY`]                              |
//! |      1 | flags, zero                    | flags: bit 0 = `about` is known                  |
//! |    2-3 | path that the probe travels    | the same, echoed                                 |
//! |    4-7 | sequence number                | the same, echoed                                 |
//! |    8-9 | instance of the prober         | instance of the replier                          |
//! |  10-11 | path that it asks about        | the same, echoed                                 |
//! |  12-15 | zero                           | data packets received on that path, modulo 2^32  |
//! |  16-19 | zero                           | their bytes divided by 16, modulo 2^32           |
//! |  20-23 | zero                           | greatest probe sequence number heard on that path|
//!
//! Path numbers are the prober's own. An instance is a random number of one
//! [`PeerPaths`](crate::PeerPaths): counters of different instances are never compared.
//!
//! Unknown flags and non-zero spare bytes are ignored: a later version may use them. A wrong kind or too
//! few bytes is no frame.

use crate::kind::PathId;

/// Length of either payload.
pub const LEN: usize = 24;
/// First byte of a probe's payload.
pub const KIND_PROBE: u8 = 1;
/// First byte of a reply's payload.
pub const KIND_REPLY: u8 = 2;
/// First byte of any other message from node to node; the rest is not this crate's.
pub const KIND_MESSAGE: u8 = 3;
/// The longest such message, without the kind byte: sealed and labelled it fits IPv6's least MTU.
pub const MAX_MESSAGE: usize = 1152;

const FLAG_KNOWN: u8 = 1;

/// A question: does this path deliver, and what did you receive on that one?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The path that it travels, in the prober's numbers.
    pub path: PathId,
    /// Counts up over all probes of a prober.
    pub seq: u32,
    /// Who counts.
    pub instance: u16,
    /// The path whose counters are wanted.
    pub about: PathId,
}

impl Probe {
    /// The payload.
    pub fn encode(&self) -> [u8; LEN] {
        let mut writer = Writer::new(KIND_PROBE, 0);
        writer.put(&self.path.0.to_be_bytes());
        writer.put(&self.seq.to_be_bytes());
        writer.put(&self.instance.to_be_bytes());
        writer.put(&self.about.0.to_be_bytes());
        writer.bytes
    }

    /// Reads a payload; padding may follow.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload, KIND_PROBE)?;
        reader.take_u8();
        Some(Self {
            path: PathId(reader.take_u16()),
            seq: reader.take_u32(),
            instance: reader.take_u16(),
            about: PathId(reader.take_u16()),
        })
    }
}

/// The answer to a [`Probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReply {
    /// As in the probe.
    pub path: PathId,
    /// As in the probe.
    pub seq: u32,
    /// Who counted. Counters of another instance start again.
    pub instance: u16,
    /// As in the probe.
    pub about: PathId,
    /// What was received on that path; `None` where no probe came by it yet.
    pub received: Option<Received>,
}

/// What arrived on one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Data packets, modulo 2^32.
    pub packets: u32,
    /// Their bytes in units of 16, modulo 2^32.
    pub units: u32,
    /// The greatest sequence number of a probe heard.
    pub heard: u32,
}

/// Bytes in one unit of [`Received::units`].
pub const UNIT: u64 = 16;

impl ProbeReply {
    /// The payload.
    pub fn encode(&self) -> [u8; LEN] {
        let mut writer = Writer::new(KIND_REPLY, if self.received.is_some() { FLAG_KNOWN } else { 0 });
        writer.put(&self.path.0.to_be_bytes());
        writer.put(&self.seq.to_be_bytes());
        writer.put(&self.instance.to_be_bytes());
        writer.put(&self.about.0.to_be_bytes());
        let received = self.received.unwrap_or_default();
        writer.put(&received.packets.to_be_bytes());
        writer.put(&received.units.to_be_bytes());
        writer.put(&received.heard.to_be_bytes());
        writer.bytes
    }

    /// Reads a payload; padding may follow.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload, KIND_REPLY)?;
        let known = reader.take_u8() & FLAG_KNOWN != 0;
        let (path, seq) = (PathId(reader.take_u16()), reader.take_u32());
        let (instance, about) = (reader.take_u16(), PathId(reader.take_u16()));
        let received = Received { packets: reader.take_u32(), units: reader.take_u32(), heard: reader.take_u32() };
        Some(Self { path, seq, instance, about, received: known.then_some(received) })
    }
}

/// Fills a payload from the front.
struct Writer {
    bytes: [u8; LEN],
    at: usize,
}

impl Writer {
    fn new(kind: u8, flags: u8) -> Self {
        let mut writer = Self { bytes: [0; LEN], at: 0 };
        writer.put(&[kind, flags]);
        writer
    }

    fn put(&mut self, field: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + field.len()) {
            place.copy_from_slice(field);
        }
        self.at += field.len();
    }
}

/// Reads a payload from the front; its length was checked once.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Behind the kind byte of a payload that is long enough.
    fn new(payload: &'a [u8], kind: u8) -> Option<Self> {
        let (&first, rest) = payload.get(..LEN)?.split_first()?;
        (first == kind).then_some(Self { rest })
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.rest.split_first_chunk::<N>() else { return [0; N] };
        self.rest = rest;
        *field
    }

    fn take_u8(&mut self) -> u8 {
        u8::from_be_bytes(self.take())
    }

    fn take_u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }
}

#[cfg(test)]
mod tests;
