//! Outbound: one super-packet from the TUN becomes the packets that travel.
//!
//! What Linux does in `tcp_gso_segment`, `__udp_gso_segment` and `inet_gso_segment`, done after the routing
//! decision instead of before it: one parse, one look-up and one policy verdict for up to 64 KiB.
//!
//! For each packet: the header of the super-packet, with lengths, IPv4 id (counting up), TCP sequence number,
//! TCP flags (FIN and PSH on the last, CWR on the first) and checksums stamped; then its share of the payload.
//! All packets but the last are of equal length. TCP is cut smaller than the sender asked where the path needs
//! it; UDP never is, since each piece is a datagram of its own: compare [`Segments::longest`] with the path.
//!
//! The checksums in the super-packet are never used: they are computed from the bytes that are sent. A plain
//! packet passes unchanged but for an unfinished checksum. Nothing here fragments ([`crate::Fragments`]).

use crate::bytes::{put, put_u16, u8_at, u16_at, u32_at};
use crate::view::V6_LEN;
use crate::{Fragment, GsoType, IpVersion, IpView, Malformed, SuperPacket, VnetHeader, checksum, protocol};

/// The packets of one super-packet, each written to another buffer.
#[derive(Debug, Clone)]
pub struct Segments<'a> {
    packet: &'a [u8],
    cut: Cut,
}

impl<'a> Segments<'a> {
    /// Plans how to cut `batch` so that no TCP packet is longer than `max_packet`.
    #[inline]
    pub fn new(batch: SuperPacket<'a>, max_packet: usize) -> Result<Self, Malformed> {
        let view = IpView::parse(batch.packet)?;
        Self::of_view(batch, &view, max_packet)
    }

    /// The same, for a packet that is already parsed: `view` is of `batch.packet`.
    #[inline]
    pub fn of_view(batch: SuperPacket<'a>, view: &IpView, max_packet: usize) -> Result<Self, Malformed> {
        let packet = batch.packet.get(..view.len).ok_or(Malformed::Truncated)?;
        let cut = Cut::plan(&batch.header, packet, view, max_packet)?;
        Ok(Self { packet, cut })
    }

    /// Writes the next packet at the start of `out` and returns its length.
    ///
    /// `None` at the end, or where `out` is shorter than [`Segments::next_len`].
    #[inline]
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        let out = out.get_mut(..len)?;
        let (headers, payload) = out.split_at_mut_checked(self.cut.headers)?;
        let start = self.cut.headers + self.cut.next * self.cut.size;
        headers.copy_from_slice(self.packet.get(..self.cut.headers)?);
        payload.copy_from_slice(self.packet.get(start..start + payload.len())?);
        self.cut.stamp(headers, payload);
        self.cut.next += 1;
        Some(len)
    }

    /// How many packets are left.
    pub fn len(&self) -> usize {
        self.cut.count - self.cut.next
    }

    /// Whether all packets were written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the packet that [`Segments::write_next`] writes next.
    #[inline]
    pub fn next_len(&self) -> Option<usize> {
        self.cut.packet_len(self.cut.next)
    }

    /// Length of packet `index`, counted from the first of the super-packet.
    pub fn packet_len(&self, index: usize) -> Option<usize> {
        self.cut.packet_len(index)
    }

    /// Length of the longest packet; above `max_packet` where it could not be cut smaller.
    pub fn longest(&self) -> usize {
        self.cut.longest()
    }
}

/// The packets of one super-packet, each made in place: no copy, but the super-packet is consumed.
///
/// A packet's header is stamped on the bytes before its payload, which are the tail of the packet before
/// it. Each is therefore to be sealed before the next is asked for.
#[derive(Debug)]
pub struct SegmentsMut<'a> {
    packet: &'a mut [u8],
    template: [u8; MAX_HEADERS],
    /// The bytes on which the zeros behind the last packet lie, and where they belong.
    under: [u8; PAD_TO],
    under_at: usize,
    padded: usize,
    cut: Cut,
}

impl<'a> SegmentsMut<'a> {
    /// Plans how to cut `packet` so that no TCP packet is longer than `max_packet`.
    #[inline]
    pub fn new(header: &VnetHeader, packet: &'a mut [u8], max_packet: usize) -> Result<Self, Malformed> {
        let view = IpView::parse(packet)?;
        Self::of_view(header, packet, &view, max_packet)
    }

    /// The same, for a packet that is already parsed: `view` is of `packet`.
    #[inline]
    pub fn of_view(
        header: &VnetHeader,
        packet: &'a mut [u8],
        view: &IpView,
        max_packet: usize,
    ) -> Result<Self, Malformed> {
        let packet = packet.get_mut(..view.len).ok_or(Malformed::Truncated)?;
        let cut = Cut::plan(header, packet, view, max_packet)?;
        let mut template = [0; MAX_HEADERS];
        if cut.count > 1 {
            let headers = packet.get(..cut.headers).ok_or(Malformed::Truncated)?;
            template.get_mut(..cut.headers).ok_or(Malformed::NoRoom)?.copy_from_slice(headers);
        }
        Ok(Self { packet, template, under: [0; PAD_TO], under_at: 0, padded: 0, cut })
    }

    /// Makes the next packet; `None` at the end.
    #[inline]
    pub fn next_packet(&mut self) -> Option<&mut [u8]> {
        let len = self.cut.packet_len(self.cut.next)?;
        let start = self.cut.next * self.cut.size;
        self.lift_padding();
        let packet = self.packet.get_mut(start..start + len)?;
        let (headers, payload) = packet.split_at_mut_checked(self.cut.headers)?;
        if self.cut.next > 0 {
            headers.copy_from_slice(self.template.get(..self.cut.headers)?);
        }
        self.cut.stamp(headers, payload);
        self.cut.next += 1;
        Some(packet)
    }

    /// As [`SegmentsMut::next_packet`], followed by zeros up to the next multiple of 16 bytes where there is room for
    /// them; and the packet's own length. What lay under the zeros comes back with the next packet.
    #[inline]
    pub fn next_padded(&mut self) -> Option<(&mut [u8], usize)> {
        let len = self.next_packet()?.len();
        let start = (self.cut.next - 1) * self.cut.size;
        let (end, padded) = (start + len, start + len.next_multiple_of(PAD_TO));
        if let Some(rest) = self.packet.get_mut(end..padded) {
            for (kept, byte) in self.under.iter_mut().zip(rest) {
                *kept = std::mem::take(byte);
            }
            self.under_at = end;
            self.padded = padded - end;
        }
        let packet = self.packet.get_mut(start..end + self.padded)?;
        Some((packet, len))
    }

    #[inline]
    fn lift_padding(&mut self) {
        let covered = self.packet.get_mut(self.under_at..self.under_at + self.padded).unwrap_or_default();
        for (byte, kept) in covered.iter_mut().zip(self.under) {
            *byte = kept;
        }
        self.padded = 0;
    }

    /// How many packets are left.
    pub fn len(&self) -> usize {
        self.cut.count - self.cut.next
    }

    /// Whether all packets were made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of the packet that [`SegmentsMut::next_packet`] makes next.
    #[inline]
    pub fn next_len(&self) -> Option<usize> {
        self.cut.packet_len(self.cut.next)
    }

    /// Length of packet `index`, counted from the first of the super-packet.
    pub fn packet_len(&self, index: usize) -> Option<usize> {
        self.cut.packet_len(index)
    }

    /// Length of the longest packet; above `max_packet` where it could not be cut smaller.
    pub fn longest(&self) -> usize {
        self.cut.longest()
    }
}

/// How a super-packet is cut, and everything about its headers that is the same for each packet.
#[derive(Debug, Clone)]
struct Cut {
    kind: Kind,
    version: IpVersion,
    /// Where the transport header starts.
    l4: usize,
    /// Bytes copied to the front of each packet. None for a plain packet, which is all payload.
    headers: usize,
    /// Payload bytes of all packets.
    payload: usize,
    /// Payload bytes of each packet but the last.
    size: usize,
    count: usize,
    /// The packet to be made next.
    next: usize,
    /// IPv4 identification of the first packet.
    id: u16,
    /// TCP sequence number of the first packet.
    sequence: u32,
    /// TCP flags of the super-packet.
    flags: u8,
    /// Sum of the IPv4 header without length, id and checksum.
    ip_sum: u32,
    /// Sum of pseudo-header and transport header without lengths, sequence number, flags and checksum.
    l4_sum: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    /// A packet with its checksum to be finished: it covers all from `start`, and belongs at `field`.
    Unfinished {
        start: usize,
        field: usize,
    },
    Whole,
}

impl Cut {
    #[inline]
    fn plan(header: &VnetHeader, packet: &[u8], view: &IpView, max_packet: usize) -> Result<Self, Malformed> {
        match (header.gso_type, view.version, view.protocol) {
            (GsoType::None, ..) => Self::plan_plain(header, packet, view),
            (GsoType::TcpV4, IpVersion::V4, protocol::TCP) | (GsoType::TcpV6, IpVersion::V6, protocol::TCP) => {
                Self::plan_tcp(header, packet, view, max_packet)
            }
            (GsoType::Udp, _, protocol::UDP) => Self::plan_udp(header, packet, view),
            (GsoType::TcpV4 | GsoType::TcpV6 | GsoType::UdpFragments | GsoType::Udp, ..) => Err(Malformed::Offload),
        }
    }

    fn plan_plain(header: &VnetHeader, packet: &[u8], view: &IpView) -> Result<Self, Malformed> {
        let kind = if header.needs_checksum() {
            let start = usize::from(header.csum_start);
            let field = start + usize::from(header.csum_offset);
            if start < view.l4_offset || field + 2 > packet.len() {
                return Err(Malformed::Offload);
            }
            Kind::Unfinished { start, field }
        } else {
            Kind::Whole
        };
        Ok(Self {
            kind,
            version: view.version,
            l4: view.l4_offset,
            headers: 0,
            payload: packet.len(),
            size: packet.len(),
            count: 1,
            next: 0,
            id: 0,
            sequence: 0,
            flags: 0,
            ip_sum: 0,
            l4_sum: 0,
        })
    }

    fn plan_tcp(header: &VnetHeader, packet: &[u8], view: &IpView, max_packet: usize) -> Result<Self, Malformed> {
        let l4 = view.l4_offset;
        let words = u8_at(packet, l4 + 12).ok_or(Malformed::Transport)?;
        let headers = l4 + usize::from(words >> 4) * 4;
        let tcp = packet.get(l4..headers).filter(|tcp| tcp.len() >= 20).ok_or(Malformed::Transport)?;
        let room = max_packet.checked_sub(headers).filter(|room| *room > 0).ok_or(Malformed::NoRoom)?;
        let l4_sum = u32::from(checksum::sum(tcp.get(..4).unwrap_or_default()))
            + u32::from(checksum::sum(tcp.get(8..12).unwrap_or_default()))
            + (u32::from(words) << 8)
            + u32::from(checksum::sum(tcp.get(14..16).unwrap_or_default()))
            + u32::from(checksum::sum(tcp.get(18..).unwrap_or_default()));
        let mut cut = Self::plan_cut(Kind::Tcp, header, packet, view, headers, l4_sum)?;
        cut.shrink(room);
        cut.sequence = u32_at(tcp, 4).ok_or(Malformed::Transport)?;
        cut.flags = u8_at(tcp, 13).ok_or(Malformed::Transport)?;
        Ok(cut)
    }

    fn plan_udp(header: &VnetHeader, packet: &[u8], view: &IpView) -> Result<Self, Malformed> {
        let l4 = view.l4_offset;
        let headers = l4 + UDP_LEN;
        let ports = packet.get(l4..l4 + 4).ok_or(Malformed::Transport)?;
        Self::plan_cut(Kind::Udp, header, packet, view, headers, checksum::sum(ports).into())
    }

    /// What TCP and UDP have in common. `l4_sum` is the sum of the fixed fields of the transport header.
    fn plan_cut(
        kind: Kind,
        header: &VnetHeader,
        packet: &[u8],
        view: &IpView,
        headers: usize,
        l4_sum: u32,
    ) -> Result<Self, Malformed> {
        let payload = packet.len().checked_sub(headers).ok_or(Malformed::Transport)?;
        let size = usize::from(header.gso_size);
        if size == 0 || view.fragment != Fragment::Whole {
            return Err(Malformed::Offload);
        }
        if headers > MAX_HEADERS {
            return Err(Malformed::NoRoom);
        }
        let (id, ip_sum) = match view.version {
            IpVersion::V4 => {
                let sum = |from, to| u32::from(checksum::sum(packet.get(from..to).unwrap_or_default()));
                let id = u16_at(packet, 4).ok_or(Malformed::Truncated)?;
                (id, sum(0, 2) + sum(6, 10) + sum(12, view.l4_offset))
            }
            IpVersion::V6 => (0, 0),
        };
        let mut cut = Self {
            kind,
            version: view.version,
            l4: view.l4_offset,
            headers,
            payload,
            size,
            count: 0,
            next: 0,
            id,
            sequence: 0,
            flags: 0,
            ip_sum,
            l4_sum: l4_sum + checksum::pseudo(view.source, view.destination, view.protocol, 0),
        };
        cut.shrink(size);
        Ok(cut)
    }

    /// Makes no piece larger than `room`.
    fn shrink(&mut self, room: usize) {
        self.size = self.size.min(room);
        self.count = self.payload.div_ceil(self.size).max(1);
    }

    #[inline]
    fn packet_len(&self, index: usize) -> Option<usize> {
        if index >= self.count {
            return None;
        }
        Some(self.headers + self.size.min(self.payload - index * self.size))
    }

    fn longest(&self) -> usize {
        self.headers + self.size.min(self.payload)
    }

    /// Completes the headers of the packet `next`, which are a copy of the super-packet's.
    #[inline]
    fn stamp(&self, headers: &mut [u8], payload: &mut [u8]) {
        let l4_len = headers.len() - self.l4.min(headers.len()) + payload.len();
        match self.kind {
            Kind::Tcp => {
                self.stamp_ip(headers, payload.len());
                let sequence = self.sequence.wrapping_add((self.next * self.size) as u32);
                let flags = self.flags_of_next();
                let sum = self.l4_sum
                    + l4_len as u32
                    + (sequence >> 16)
                    + (sequence & 0xffff)
                    + u32::from(flags)
                    + u32::from(checksum::sum(payload));
                put(headers, self.l4 + 4, sequence.to_be_bytes());
                put(headers, self.l4 + 13, [flags]);
                put_u16(headers, self.l4 + 16, checksum::finish(sum));
            }
            Kind::Udp => {
                self.stamp_ip(headers, payload.len());
                // Once in the pseudo-header, once in the header.
                let sum = self.l4_sum + 2 * l4_len as u32 + u32::from(checksum::sum(payload));
                put_u16(headers, self.l4 + 4, l4_len as u16);
                put_u16(headers, self.l4 + 6, checksum::finish_nonzero(sum));
            }
            Kind::Unfinished { start, field } => {
                let sum = checksum::sum(payload.get(start..).unwrap_or_default());
                put_u16(payload, field, checksum::finish_nonzero(sum.into()));
            }
            Kind::Whole => {}
        }
    }

    #[inline]
    fn stamp_ip(&self, headers: &mut [u8], payload: usize) {
        let len = headers.len() + payload;
        match self.version {
            IpVersion::V4 => {
                let id = self.id.wrapping_add(self.next as u16);
                put_u16(headers, 2, len as u16);
                put_u16(headers, 4, id);
                put_u16(headers, 10, checksum::finish(self.ip_sum + len as u32 + u32::from(id)));
            }
            IpVersion::V6 => put_u16(headers, 4, (len - V6_LEN) as u16),
        }
    }

    #[inline]
    fn flags_of_next(&self) -> u8 {
        let mut flags = self.flags;
        if self.next > 0 {
            flags &= !tcp_flag::CWR;
        }
        if self.next + 1 < self.count {
            flags &= !(tcp_flag::FIN | tcp_flag::PSH);
        }
        flags
    }
}

/// Bits of the TCP flags byte (RFC 9293 3.1).
pub(crate) mod tcp_flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const CWR: u8 = 0x80;
}

/// Length of a UDP header.
pub(crate) const UDP_LEN: usize = 8;

/// Longest headers of a super-packet: IPv4 or IPv6 with all of TCP's options, and some extension headers.
const MAX_HEADERS: usize = 256;
/// WireGuard pads packets to this many bytes (section 5.4.6 of its paper).
const PAD_TO: usize = 16;

#[cfg(test)]
mod tests;
