//! Inbound: packets that arrived one behind the other become one super-packet for the TUN.
//!
//! What Linux does in `tcp_gro_receive` and `udp_gro_receive`, without a copy: each datagram is opened directly
//! behind the payload before it, so that its header lands on that payload's last bytes. If it belongs there, those
//! bytes are put back over its header and the super-packet has grown by its payload. If not, the super-packet is
//! handed out and the newcomer starts the next one where it lies.
//!
//! ```text
//! buffer  | room | vnet | headers | payload 1 | payload 2 |
//!                                       slot: | headers | payload 3 ...    headers over the tail of payload 2
//! ```
//!
//! Order: [`Coalescer::slot`], open a datagram into it, check what came out, then [`Coalescer::commit`] or
//! [`Coalescer::discard`]; [`Coalescer::flush`] at the end of the batch, and nothing is kept back longer.
//!
//! The kernel believes the checksums of a super-packet, so each packet's is verified before it is joined; a
//! packet with a wrong one is handed out alone and untouched, for the kernel to drop and count. Packets never
//! overtake each other.

use crate::bytes::{array_at, put, put_u16, u8_at, u16_at, u32_at};
use crate::segment::{UDP_LEN, tcp_flag};
use crate::view::V6_LEN;
use crate::{GsoType, IpVersion, MAX_PACKET, VNET_LEN, VnetHeader, checksum, protocol};

/// Joins packets of one flow. One per worker: it owns the buffer into which datagrams are opened.
#[derive(Debug)]
pub struct Coalescer {
    tape: Tape,
    gro: Gro,
    current: Option<Current>,
    slot: Option<Slot>,
}

impl Coalescer {
    /// A coalescer that makes only what the TUN takes.
    pub fn new(gro: Gro) -> Self {
        Self { tape: Tape::new(), gro, current: None, slot: None }
    }

    /// Where the next datagram is to be opened: `max` bytes, at most [`Coalescer::MAX_SLOT`].
    ///
    /// A slot that was neither committed nor discarded is discarded.
    #[inline]
    pub fn slot(&mut self, max: usize) -> &mut [u8] {
        self.discard();
        let (start, covered) = match &self.current {
            Some(current) => (current.start + current.len - current.headers, current.headers),
            None => (VNET_LEN, 0),
        };
        let slot = Slot { start, len: max.min(Self::MAX_SLOT), covered };
        self.tape.save(&slot);
        self.slot = Some(slot);
        let place = self.tape.buffer.get_mut(slot.start..slot.start + slot.len);
        place.expect("CAPACITY holds a slot behind the longest packet at LATEST_START")
    }

    /// Takes in the packet that now fills the first `len` bytes of the slot.
    ///
    /// The caller has parsed it, and `len` is the length that its header tells; zero discards the slot. Whatever
    /// is complete is handed to `flush`: the header, and one slice that holds the same header and the packet,
    /// ready for one write.
    #[inline]
    pub fn commit(&mut self, len: usize, flush: &mut impl FnMut(&VnetHeader, &mut [u8])) {
        let Some(slot) = self.slot.take() else { return };
        let len = len.min(slot.len);
        if len == 0 {
            self.tape.restore(&slot);
            return;
        }
        if let Some(current) = &mut self.current {
            if let Some(joint) = current.judge(&mut self.tape, &slot, len) {
                self.tape.restore(&slot);
                current.grow(&joint);
                if joint.closes {
                    self.emit(flush);
                }
                return;
            }
            self.tape.swap(&slot);
            self.emit(flush);
            self.tape.swap(&slot);
        }
        self.begin(&slot, len, flush);
    }

    /// Takes the slot back: nothing of what was written there stays.
    #[inline]
    pub fn discard(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.tape.restore(&slot);
        }
    }

    /// Hands out what is left. At the end of each batch.
    #[inline]
    pub fn flush(&mut self, flush: &mut impl FnMut(&VnetHeader, &mut [u8])) {
        self.discard();
        self.emit(flush);
    }

    /// Changes what the TUN takes, from the next packet on: for a kernel that refuses super-packets.
    pub fn set_gro(&mut self, gro: Gro) {
        self.gro = gro;
    }

    /// Longest slot there is: any UDP datagram fits.
    pub const MAX_SLOT: usize = 65_600;

    /// Makes the packet in the slot the current one, or hands it out where nothing could join it.
    #[inline]
    fn begin(&mut self, slot: &Slot, len: usize, flush: &mut impl FnMut(&VnetHeader, &mut [u8])) {
        self.current = Current::of(self.tape.packet(slot.start, len), slot.start, self.gro);
        match &mut self.current {
            None => self.tape.hand_out(&VnetHeader::default(), slot.start, len, flush),
            Some(current) if slot.start > LATEST_START => {
                self.tape.buffer.copy_within(slot.start..slot.start + len, VNET_LEN);
                current.start = VNET_LEN;
            }
            Some(_) => {}
        }
    }

    /// Hands out the current super-packet, if there is one.
    #[inline]
    fn emit(&mut self, flush: &mut impl FnMut(&VnetHeader, &mut [u8])) {
        if let Some(current) = &self.current {
            let header = current.complete(self.tape.packet(current.start, current.len));
            self.tape.hand_out(&header, current.start, current.len, flush);
            self.current = None;
        }
    }
}

/// The buffer, and the bytes of the current super-packet on which the slot lies.
#[derive(Debug)]
struct Tape {
    buffer: Box<[u8]>,
    saved: [u8; MAX_HEADERS],
}

impl Tape {
    fn new() -> Self {
        Self { buffer: vec![0; CAPACITY].into(), saved: [0; MAX_HEADERS] }
    }

    #[inline]
    fn packet(&mut self, start: usize, len: usize) -> &mut [u8] {
        self.buffer.get_mut(start..start + len).unwrap_or_default()
    }

    /// Writes the header before the packet and hands out both.
    #[inline]
    fn hand_out(
        &mut self,
        header: &VnetHeader,
        start: usize,
        len: usize,
        flush: &mut impl FnMut(&VnetHeader, &mut [u8]),
    ) {
        let whole = self.packet(start - VNET_LEN, VNET_LEN + len);
        put(whole, 0, header.to_bytes());
        flush(header, whole);
    }

    /// Keeps the bytes under the slot; a fixed number, of which those that are covered count.
    #[inline]
    fn save(&mut self, slot: &Slot) {
        if let Some(bytes) = array_at(&self.buffer, slot.start) {
            self.saved = bytes;
        }
    }

    #[inline]
    fn restore(&mut self, slot: &Slot) {
        let (saved, covered) = self.covered(slot);
        covered.copy_from_slice(saved);
    }

    #[inline]
    fn swap(&mut self, slot: &Slot) {
        let (saved, covered) = self.covered(slot);
        covered.swap_with_slice(saved);
    }

    /// Where the covered bytes are kept, and where they belong.
    #[inline]
    #[expect(
        clippy::indexing_slicing,
        reason = "`covered` is the headers' length of a `Current`, and lies inside of it"
    )]
    fn covered(&mut self, slot: &Slot) -> (&mut [u8], &mut [u8]) {
        (&mut self.saved[..slot.covered], &mut self.buffer[slot.start..slot.start + slot.covered])
    }
}

/// What the TUN takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gro {
    /// TCP super-packets.
    pub tcp: Offload,
    /// UDP super-packets (USO).
    pub udp: Offload,
}

impl Gro {
    /// Every packet is handed out alone.
    pub const NONE: Self = Self { tcp: Offload::Off, udp: Offload::Off };
    /// TCP and UDP.
    pub const ALL: Self = Self { tcp: Offload::On, udp: Offload::On };
}

/// Whether an offload is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Not used.
    Off,
    /// Used.
    On,
}

/// A place in the buffer that was handed out.
#[derive(Debug, Clone, Copy)]
struct Slot {
    start: usize,
    len: usize,
    /// Bytes at its start that belong to the current super-packet and are kept in `saved`.
    covered: usize,
}

/// The super-packet in the making. It is open: a closed one is handed out at once.
#[derive(Debug, Clone)]
struct Current {
    start: usize,
    len: usize,
    version: IpVersion,
    transport: Transport,
    /// Where the transport header starts.
    l4: usize,
    headers: usize,
    /// The headers of the first packet; those in the buffer may lie under the slot.
    template: [u8; MAX_HEADERS],
    /// Payload of each packet.
    size: usize,
    /// Packets joined so far.
    count: usize,
    first: First,
    ids: Ids,
    /// The TCP sequence number to follow.
    sequence: u32,
    /// The last packet had PSH set.
    pushed: bool,
    /// Sum of the addresses and the protocol.
    pseudo: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// What is known about the checksums of the first packet; looked at when a second one could join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Broken,
    Intact,
    Unchecked,
}

/// How the IPv4 identification goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ids {
    /// One packet only, or IPv6.
    Any,
    /// Each is one more than the last, as the kernel will count when it cuts the super-packet.
    Counting,
    /// All alike, which may be joined under "don't fragment": there the field has no meaning (RFC 6864).
    Fixed,
}

/// How a packet continues the current one.
#[derive(Debug, Clone, Copy)]
struct Joint {
    payload: usize,
    ids: Ids,
    pushed: bool,
    /// Nothing may follow it.
    closes: bool,
}

impl Current {
    /// The packet at `start` as the first of a super-packet, if it can be.
    #[inline]
    fn of(packet: &[u8], start: usize, gro: Gro) -> Option<Self> {
        let (version, l4, protocol) = match u8_at(packet, 0)? {
            // No options, not fragmented.
            0x45 => {
                let is_whole =
                    u16_at(packet, 6)? & !DONT_FRAGMENT == 0 && length(IpVersion::V4, packet)? == packet.len();
                (IpVersion::V4, is_whole.then_some(20)?, u8_at(packet, 9)?)
            }
            0x60..=0x6f => {
                let is_whole = length(IpVersion::V6, packet)? == packet.len();
                (IpVersion::V6, is_whole.then_some(V6_LEN)?, u8_at(packet, 6)?)
            }
            _ => return None,
        };
        let (transport, headers) = match protocol {
            protocol::TCP if gro.tcp == Offload::On => {
                let words = u8_at(packet, l4 + 12)?;
                let is_plain = words & 15 == 0 && words >= 0x50 && u8_at(packet, l4 + 13)? == tcp_flag::ACK;
                (is_plain.then_some(Transport::Tcp)?, l4 + usize::from(words >> 4) * 4)
            }
            protocol::UDP if gro.udp == Offload::On => {
                let is_plain = is_plain_udp(packet, l4);
                (is_plain.then_some(Transport::Udp)?, l4 + UDP_LEN)
            }
            _ => return None,
        };
        let size = packet.len().checked_sub(headers).filter(|size| *size > 0)?;
        let mut template = [0; MAX_HEADERS];
        template.get_mut(..headers)?.copy_from_slice(packet.get(..headers)?);
        let addresses = match version {
            IpVersion::V4 => packet.get(12..20)?,
            IpVersion::V6 => packet.get(8..40)?,
        };
        Some(Self {
            start,
            len: packet.len(),
            version,
            transport,
            l4,
            headers,
            template,
            size,
            count: 1,
            first: First::Unchecked,
            ids: Ids::Any,
            sequence: match transport {
                Transport::Tcp => u32_at(packet, l4 + 4)?.wrapping_add(size as u32),
                Transport::Udp => 0,
            },
            pushed: false,
            pseudo: u32::from(checksum::sum(addresses)) + u32::from(protocol),
        })
    }

    /// How the packet in the slot continues this one, if it does. The tape is left as it was.
    #[inline]
    fn judge(&mut self, tape: &mut Tape, slot: &Slot, len: usize) -> Option<Joint> {
        let packet = tape.packet(slot.start, len);
        let joint = self.joint(packet)?;
        if !self.is_intact(packet) {
            return None;
        }
        if self.first == First::Unchecked {
            tape.swap(slot);
            let is_intact = self.is_intact(tape.packet(self.start, self.len));
            tape.swap(slot);
            self.first = if is_intact { First::Intact } else { First::Broken };
        }
        (self.first == First::Intact).then_some(joint)
    }

    /// How `packet` continues this one, if its headers allow. Checksums are not looked at.
    #[inline]
    fn joint(&self, packet: &[u8]) -> Option<Joint> {
        let payload = packet.len().checked_sub(self.headers).filter(|len| *len > 0 && *len <= self.size)?;
        let (old, new) = (self.template.get(..self.headers)?, packet.get(..self.headers)?);
        if self.len + payload > MAX_PACKET || length(self.version, new)? != packet.len() {
            return None;
        }
        let (ids, is_same_ip) = match self.version {
            IpVersion::V4 => (
                self.next_ids(old, new)?,
                (alike::<2>(old, new, 0) && alike::<4>(old, new, 6) && alike::<8>(old, new, 12)),
            ),
            IpVersion::V6 => (Ids::Any, (alike::<4>(old, new, 0) && alike::<34>(old, new, 6))),
        };
        if !is_same_ip {
            return None;
        }
        let (old, new) = (old.get(self.l4..)?, new.get(self.l4..)?);
        let mut pushed = false;
        match self.transport {
            Transport::Tcp => {
                let flags = u8_at(new, 13)?;
                pushed = flags & tcp_flag::PSH != 0;
                if flags & !tcp_flag::PSH != tcp_flag::ACK
                    || u32_at(new, 4)? != self.sequence
                    || !(alike::<4>(old, new, 0) && alike::<5>(old, new, 8) && alike::<2>(old, new, 14))
                    || old.get(18..)? != new.get(18..)?
                {
                    return None;
                }
            }
            Transport::Udp => {
                if self.count >= MAX_DATAGRAMS || old.get(..4)? != new.get(..4)? || !is_plain_udp(packet, self.l4) {
                    return None;
                }
            }
        }
        Some(Joint { payload, ids, pushed, closes: pushed || payload < self.size })
    }

    /// How the IPv4 identification goes on with `new`.
    #[inline]
    fn next_ids(&self, old: &[u8], new: &[u8]) -> Option<Ids> {
        let (first, id) = (u16_at(old, 4)?, u16_at(new, 4)?);
        let counts = id == first.wrapping_add(self.count as u16);
        let is_fixed = id == first && u16_at(old, 6)? & DONT_FRAGMENT != 0;
        match self.ids {
            Ids::Any | Ids::Counting if counts => Some(Ids::Counting),
            Ids::Any | Ids::Fixed if is_fixed => Some(Ids::Fixed),
            Ids::Any | Ids::Counting | Ids::Fixed => None,
        }
    }

    /// Whether the checksums of a packet of this flow are right.
    #[inline]
    fn is_intact(&self, packet: &[u8]) -> bool {
        let Some((ip, l4)) = packet.split_at_checked(self.l4) else { return false };
        let is_ip_intact = match self.version {
            IpVersion::V4 => checksum::sum(ip) == 0xffff,
            IpVersion::V6 => true,
        };
        is_ip_intact && checksum::fold(self.pseudo + l4.len() as u32 + u32::from(checksum::sum(l4))) == 0xffff
    }

    fn grow(&mut self, joint: &Joint) {
        self.len += joint.payload;
        self.count += 1;
        self.ids = joint.ids;
        self.pushed = joint.pushed;
        self.sequence = self.sequence.wrapping_add(joint.payload as u32);
    }

    /// Makes the headers those of the super-packet. A packet that stayed alone is not touched.
    #[inline]
    fn complete(&self, packet: &mut [u8]) -> VnetHeader {
        if self.count == 1 {
            return VnetHeader::default();
        }
        let l4_len = self.len - self.l4;
        match self.version {
            IpVersion::V4 => {
                put_u16(packet, 2, self.len as u16);
                put_u16(packet, 10, 0);
                let sum = checksum::sum(packet.get(..self.l4).unwrap_or_default());
                put_u16(packet, 10, checksum::finish(sum.into()));
            }
            IpVersion::V6 => put_u16(packet, 4, l4_len as u16),
        }
        let csum_offset = match self.transport {
            Transport::Tcp => {
                if self.pushed {
                    put(packet, self.l4 + 13, [tcp_flag::ACK | tcp_flag::PSH]);
                }
                16
            }
            Transport::Udp => {
                put_u16(packet, self.l4 + 4, l4_len as u16);
                6
            }
        };
        // The kernel adds the rest and complements.
        put_u16(packet, self.l4 + csum_offset, checksum::fold(self.pseudo + l4_len as u32));
        VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: match (self.transport, self.version) {
                (Transport::Tcp, IpVersion::V4) => GsoType::TcpV4,
                (Transport::Tcp, IpVersion::V6) => GsoType::TcpV6,
                (Transport::Udp, _) => GsoType::Udp,
            },
            ecn: false,
            hdr_len: self.headers as u16,
            gso_size: self.size as u16,
            csum_start: self.l4 as u16,
            csum_offset: csum_offset as u16,
        }
    }
}

/// The length that an IP header tells.
#[inline]
fn length(version: IpVersion, packet: &[u8]) -> Option<usize> {
    match version {
        IpVersion::V4 => u16_at(packet, 2).map(usize::from),
        IpVersion::V6 => u16_at(packet, 4).map(|len| usize::from(len) + V6_LEN),
    }
}

/// Whether a UDP header tells the length there is, and has a checksum: a super-packet cannot say "none".
#[inline]
fn is_plain_udp(packet: &[u8], l4: usize) -> bool {
    let has_length = u16_at(packet, l4 + 4).is_some_and(|len| l4 + usize::from(len) == packet.len());
    has_length && u16_at(packet, l4 + 6).is_some_and(|sum| sum != 0)
}

/// Whether two headers have the same `N` bytes at `at`.
#[inline]
fn alike<const N: usize>(old: &[u8], new: &[u8], at: usize) -> bool {
    array_at::<N>(old, at).is_some_and(|old| array_at(new, at) == Some(old))
}

/// Longest headers that can be joined: IPv6 without extensions, and TCP with all its options.
const MAX_HEADERS: usize = V6_LEN + 60;

/// Datagrams in one UDP super-packet, as in the kernel's own (`UDP_GRO_CNT_MAX`).
const MAX_DATAGRAMS: usize = 64;

/// "Don't fragment" in the field of flags and fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;

/// Behind here a packet is moved to the front of the buffer before others join it.
const LATEST_START: usize = 65_536;

const CAPACITY: usize = LATEST_START + MAX_PACKET + Coalescer::MAX_SLOT;

#[cfg(test)]
mod tests;
