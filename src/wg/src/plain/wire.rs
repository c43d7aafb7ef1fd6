//! The messages of the plain tunnel: WireGuard's lengths and clear fields, a digest for the rest.

use flatlan_types::SessionKey;

use crate::message::{COOKIE_LEN, DATA_HEADER, DATA_OVERHEAD, INITIATION_LEN, RESPONSE_LEN};

/// Who of two a session belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Sent the type 1.
    Initiator,
    /// Sent the type 2.
    Responder,
}

/// A type 1.
pub(super) struct Initiation {
    pub(super) sender: u32,
    pub(super) key: SessionKey,
    pub(super) stamp: u64,
    pub(super) nonce: u64,
}

impl Initiation {
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        Some(Self {
            sender: read_u32(message, 4)?,
            key: SessionKey::from_bytes(*message.get(8..)?.first_chunk()?),
            stamp: read_u64(message, 40)?,
            nonce: read_u64(message, 48)?,
        })
    }

    /// Writes it for `to`; its length and MAC.
    pub(super) fn write(&self, to: &SessionKey, cookie: Option<u64>, out: &mut [u8]) -> Option<(usize, u64)> {
        let out = out.get_mut(..INITIATION_LEN)?;
        out.fill(0);
        put(out, 0, &1_u32.to_le_bytes())?;
        put(out, 4, &self.sender.to_le_bytes())?;
        put(out, 8, self.key.as_bytes())?;
        put(out, 40, &self.stamp.to_le_bytes())?;
        put(out, 48, &self.nonce.to_le_bytes())?;
        Some((INITIATION_LEN, put_macs(out, to, cookie)?))
    }
}

/// A type 2.
pub(super) struct Response {
    pub(super) sender: u32,
    pub(super) receiver: u32,
    pub(super) nonce: u64,
}

impl Response {
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        Some(Self { sender: read_u32(message, 4)?, receiver: read_u32(message, 8)?, nonce: read_u64(message, 12)? })
    }

    /// Writes it for `to`, proving knowledge of `secret`; its length and MAC.
    pub(super) fn write(
        &self,
        to: &SessionKey,
        secret: u64,
        cookie: Option<u64>,
        out: &mut [u8],
    ) -> Option<(usize, u64)> {
        let out = out.get_mut(..RESPONSE_LEN)?;
        out.fill(0);
        put(out, 0, &2_u32.to_le_bytes())?;
        put(out, 4, &self.sender.to_le_bytes())?;
        put(out, 8, &self.receiver.to_le_bytes())?;
        put(out, 12, &self.nonce.to_le_bytes())?;
        put(out, 20, &self.proof(secret).to_le_bytes())?;
        Some((RESPONSE_LEN, put_macs(out, to, cookie)?))
    }

    pub(super) fn proves(&self, message: &[u8], secret: u64) -> bool {
        read_u64(message, 20) == Some(self.proof(secret))
    }

    fn proof(&self, secret: u64) -> u64 {
        Digest::new("proof").number(secret).number(self.sender.into()).number(self.receiver.into()).end()
    }
}

/// The MAC and the cookie MAC of a type 1 or 2, where the first is for `own`.
pub(super) fn macs(message: &[u8], own: &SessionKey) -> Option<(u64, u64)> {
    let at = message.len().checked_sub(32)?;
    let mac = read_u64(message, at)?;
    (mac == mac_for(own, message.get(..at)?)).then_some((mac, read_u64(message, at + 16)?))
}

fn put_macs(out: &mut [u8], to: &SessionKey, cookie: Option<u64>) -> Option<u64> {
    let at = out.len().checked_sub(32)?;
    let mac = mac_for(to, out.get(..at)?);
    put(out, at, &mac.to_le_bytes())?;
    put(out, at + 16, &cookie.unwrap_or(0).to_le_bytes())?;
    Some(mac)
}

fn mac_for(receiver: &SessionKey, body: &[u8]) -> u64 {
    Digest::new("mac").bytes(receiver.as_bytes()).bytes(body).end()
}

/// Writes a type 3 that gives `cookie` to the sender of the message with this MAC.
pub(super) fn write_cookie(receiver: u32, cookie: u64, mac: u64, out: &mut [u8]) -> Option<usize> {
    let out = out.get_mut(..COOKIE_LEN)?;
    out.fill(0);
    put(out, 0, &3_u32.to_le_bytes())?;
    put(out, 4, &receiver.to_le_bytes())?;
    put(out, 32, &cookie.to_le_bytes())?;
    put(out, 48, &Digest::new("reply").number(cookie).number(mac).end().to_le_bytes())?;
    Some(COOKIE_LEN)
}

pub(super) fn read_cookie(message: &[u8], mac: u64) -> Option<u64> {
    let cookie = read_u64(message, 32)?;
    (read_u64(message, 48)? == Digest::new("reply").number(cookie).number(mac).end()).then_some(cookie)
}

pub(super) fn write_data(receiver: u32, counter: u64, packet: &[u8], secret: u64, out: &mut [u8]) -> Option<usize> {
    let len = packet.len() + DATA_OVERHEAD;
    let out = out.get_mut(..len)?;
    put(out, 0, &4_u32.to_le_bytes())?;
    put(out, 4, &receiver.to_le_bytes())?;
    put(out, 8, &counter.to_le_bytes())?;
    put(out, DATA_HEADER, packet)?;
    let tag = data_tag(secret, counter, packet);
    put(out, len - 16, &tag.to_le_bytes())?;
    put(out, len - 8, &tag.to_le_bytes())?;
    Some(len)
}

/// Checks the tag and copies the packet to the front of `out`.
pub(super) fn read_data(message: &[u8], secret: u64, out: &mut [u8]) -> Option<usize> {
    let end = message.len().checked_sub(16)?;
    let packet = message.get(DATA_HEADER..end)?;
    let tag = data_tag(secret, read_u64(message, 8)?, packet);
    if read_u64(message, end) != Some(tag) || read_u64(message, end + 8) != Some(tag) {
        return None;
    }
    put(out, 0, packet)?;
    Some(packet.len())
}

fn data_tag(secret: u64, counter: u64, packet: &[u8]) -> u64 {
    Digest::new("data").number(secret).number(counter).bytes(packet).end()
}

/// The length that an IP packet gives itself, as boringtun reads it.
pub(super) fn inner_len(packet: &[u8]) -> Option<usize> {
    let be_u16 = |at: usize| packet.get(at..)?.first_chunk().map(|b| usize::from(u16::from_be_bytes(*b)));
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => be_u16(2),
        6 if packet.len() >= 40 => be_u16(4).map(|payload| payload + 40),
        _ => None,
    }
}

/// A hash that everybody can compute: it tells bytes apart, and is as fast as a simulator needs.
pub(super) struct Digest(u64);

impl Digest {
    pub(super) fn new(purpose: &str) -> Self {
        Self(0x243f_6a88_85a3_08d3).bytes(purpose.as_bytes())
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            self = self.number(u64::from_le_bytes(*word));
        }
        for byte in tail {
            self = self.number(u64::from(*byte));
        }
        self.number(bytes.len() as u64)
    }

    pub(super) fn end(self) -> u64 {
        self.number(0).0
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    out.get_mut(at..)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(())
}

fn read_u32(message: &[u8], at: usize) -> Option<u32> {
    message.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn read_u64(message: &[u8], at: usize) -> Option<u64> {
    message.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}
