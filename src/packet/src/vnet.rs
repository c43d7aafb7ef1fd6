//! The header that Linux puts before each packet of a TUN with offloads, and the super-packet behind it.
//!
//! `struct virtio_net_hdr` of `linux/virtio_net.h`, ten bytes. A TUN uses the machine's own byte order
//! unless told otherwise, and we do not tell it.

use crate::Malformed;

/// What the kernel has left to us (reading), or we leave to the kernel (writing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`], [`VnetHeader::DATA_VALID`].
    pub flags: u8,
    /// Which kind of super-packet this is.
    pub gso_type: GsoType,
    /// The flow uses ECN (RFC 3168): CWR belongs to the first segment only.
    pub ecn: bool,
    /// Bytes of all headers. A hint; what the kernel writes here is not to be trusted.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksum starts to cover.
    pub csum_start: u16,
    /// Where the checksum field is, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The checksum field holds the pseudo-header's sum; the rest is to be added and complemented.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified.
    pub const DATA_VALID: u8 = 2;

    /// Reads the header at the start of `bytes`.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let &[flags, kind, h0, h1, g0, g1, s0, s1, o0, o1] =
            bytes.first_chunk::<VNET_LEN>().ok_or(Malformed::Truncated)?;
        Ok(Self {
            flags,
            gso_type: GsoType::from_wire(kind & !GSO_ECN).ok_or(Malformed::Offload)?,
            ecn: kind & GSO_ECN != 0,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// How many packets stand behind this header in `packet`; an estimate where the headers' length is wrong.
    pub fn packets(&self, packet: &[u8]) -> u64 {
        let data = packet.len().saturating_sub(usize::from(self.hdr_len));
        match (self.gso_type, self.gso_size) {
            (GsoType::None, _) | (_, 0) => 1,
            (_, size) => data.div_ceil(usize::from(size)).max(1) as u64,
        }
    }

    /// The header as the kernel reads it.
    #[inline]
    pub fn to_bytes(&self) -> [u8; VNET_LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        let kind = self.gso_type.to_wire() | if self.ecn { GSO_ECN } else { 0 };
        [self.flags, kind, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Writes the header to `out`.
    #[inline]
    pub fn write(&self, out: &mut [u8; VNET_LEN]) {
        *out = self.to_bytes();
    }

    /// Whether the checksum of the packet is unfinished.
    pub fn needs_checksum(&self) -> bool {
        self.flags & Self::NEEDS_CSUM != 0
    }
}

/// The kind of a super-packet (`VIRTIO_NET_HDR_GSO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum GsoType {
    /// A plain packet.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// One UDP datagram to be fragmented (UFO). We never ask for it.
    UdpFragments,
    /// UDP datagrams of equal size (USO), over IPv4 or IPv6.
    Udp,
}

impl GsoType {
    fn from_wire(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(Self::None),
            1 => Some(Self::TcpV4),
            3 => Some(Self::UdpFragments),
            4 => Some(Self::TcpV6),
            5 => Some(Self::Udp),
            _ => None,
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Self::None => 0,
            Self::TcpV4 => 1,
            Self::UdpFragments => 3,
            Self::TcpV6 => 4,
            Self::Udp => 5,
        }
    }
}

/// One read from a TUN: a plain packet, or many packets of one flow under one header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuperPacket<'a> {
    /// How the packet is to be cut or completed.
    pub header: VnetHeader,
    /// The IP packet.
    pub packet: &'a [u8],
}

impl<'a> SuperPacket<'a> {
    /// Splits what a TUN read gave into header and packet.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = VnetHeader::parse(bytes)?;
        Ok(Self { header, packet: bytes.get(VNET_LEN..).ok_or(Malformed::Truncated)? })
    }

    /// A complete packet, of which nothing is left to do.
    pub fn plain(packet: &'a [u8]) -> Self {
        Self { header: VnetHeader::default(), packet }
    }
}

/// Length of a [`VnetHeader`] on the wire.
pub const VNET_LEN: usize = 10;

/// `VIRTIO_NET_HDR_GSO_ECN`.
const GSO_ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_header_is_truncated() {
        assert_eq!(VnetHeader::parse(&[0; 9]), Err(Malformed::Truncated));
        assert_eq!(SuperPacket::parse(&[0; 10]).map(|s| s.packet.len()), Ok(0));
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert_eq!(VnetHeader::parse(&[0, 2, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed::Offload));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_alike(bytes in any::<[u8; VNET_LEN]>()) {
            if let Ok(header) = VnetHeader::parse(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }
    }
}
