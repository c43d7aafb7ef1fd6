//! What an IP packet says about itself, read once and fail-closed.
//!
//! Every decision of the data path (who owns the source, where the destination is, which rule, which lane)
//! is taken on an [`IpView`], never on raw bytes. A packet that a receiver could read in a second way (a
//! transport header cut off by a fragment, an endless chain of extension headers) has no view at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::bytes::{array_at, u8_at};

/// The fields of one IP packet that decide its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpView {
    /// IPv4 or IPv6.
    pub version: IpVersion,
    /// The source address.
    pub source: IpAddr,
    /// The destination address; under a routing header that still has stops, only the next of them.
    pub destination: IpAddr,
    /// The length that the header tells; what lies behind in the buffer is no part of the packet.
    pub len: usize,
    /// The transport protocol, behind any extension headers (see [`protocol`]).
    pub protocol: u8,
    /// Where the transport header (or the fragment's data) starts.
    pub l4_offset: usize,
    /// Whether this is a whole packet.
    pub fragment: Fragment,
    /// The type of service or traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Time to live or hop limit.
    pub hop_limit: u8,
    /// A router may not fragment this packet. Always so for IPv6.
    pub dont_fragment: bool,
    /// The sender chose the route (IPv4 source route option, IPv6 routing header): to be dropped.
    pub source_routed: bool,
    /// Source and destination port of TCP and UDP; absent in fragments after the first.
    pub ports: Option<(u16, u16)>,
}

impl IpView {
    /// Reads the packet at the start of `bytes`.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match u8_at(bytes, 0).ok_or(Malformed::Truncated)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(Malformed::Version),
        }
    }

    /// The differentiated services code point.
    pub fn dscp(&self) -> u8 {
        self.traffic_class >> 2
    }

    /// The congestion bits (RFC 3168).
    pub fn ecn(&self) -> u8 {
        self.traffic_class & 3
    }

    #[inline]
    fn parse_v4(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<20>().ok_or(Malformed::Truncated)?;
        let &[b0, traffic_class, l0, l1, _, _, f0, f1, hop_limit, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            header;
        let l4_offset = usize::from(b0 & 15) * 4;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if l4_offset < 20 || len < l4_offset {
            return Err(Malformed::Length);
        }
        let packet = bytes.get(..len).ok_or(Malformed::Truncated)?;
        let source_routed = l4_offset > 20 && has_source_route(packet.get(20..l4_offset).unwrap_or_default())?;
        let fragment = Fragment::of(u16::from_be_bytes([f0, f1]) & 0x1fff, f0 & 0x20 != 0);
        let mut view = Self {
            version: IpVersion::V4,
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            len,
            protocol,
            l4_offset,
            fragment,
            traffic_class,
            hop_limit,
            dont_fragment: f0 & 0x40 != 0,
            source_routed,
            ports: None,
        };
        view.read_transport(packet)?;
        Ok(view)
    }

    #[inline]
    fn parse_v6(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = bytes.first_chunk::<V6_LEN>().ok_or(Malformed::Truncated)?;
        let &[b0, b1, _, _, l0, l1, next, hop_limit, ..] = header;
        let len = V6_LEN + usize::from(u16::from_be_bytes([l0, l1]));
        let packet = bytes.get(..len).ok_or(Malformed::Truncated)?;
        let address = |at| array_at::<16>(header, at).map(Ipv6Addr::from).ok_or(Malformed::Truncated);
        let mut view = Self {
            version: IpVersion::V6,
            source: address(8)?.into(),
            destination: address(24)?.into(),
            len,
            protocol: next,
            l4_offset: V6_LEN,
            fragment: Fragment::Whole,
            traffic_class: (b0 << 4) | (b1 >> 4),
            hop_limit,
            dont_fragment: true,
            source_routed: false,
            ports: None,
        };
        if is_extension(next) {
            view.walk_extensions(packet)?;
        }
        view.read_transport(packet)?;
        Ok(view)
    }

    /// Follows the IPv6 extension headers to the transport header (RFC 8200 section 4).
    fn walk_extensions(&mut self, packet: &[u8]) -> Result<(), Malformed> {
        for step in 0..MAX_EXTENSIONS {
            let at = self.l4_offset;
            let [next, len, b2, b3] = array_at(packet, at).ok_or(Malformed::Extensions)?;
            let len = match self.protocol {
                protocol::HOP_BY_HOP if step > 0 => return Err(Malformed::Extensions),
                protocol::ROUTING => {
                    // Type 0 is forbidden (RFC 5095); any other routes only while stops are left.
                    self.source_routed |= b2 == 0 || b3 != 0;
                    (usize::from(len) + 1) * 8
                }
                protocol::FRAGMENT => {
                    if self.fragment != Fragment::Whole {
                        return Err(Malformed::Fragment);
                    }
                    let offset = u16::from_be_bytes([b2, b3]);
                    self.fragment = Fragment::of(offset >> 3, offset & 1 != 0);
                    8
                }
                protocol::AUTHENTICATION => (usize::from(len) + 2) * 4,
                _ => (usize::from(len) + 1) * 8,
            };
            self.protocol = next;
            self.l4_offset = at + len;
            if self.l4_offset > packet.len() {
                return Err(Malformed::Extensions);
            }
            if !is_extension(next) || self.fragment.is_later() {
                return Ok(());
            }
        }
        Err(Malformed::Extensions)
    }

    /// Reads the ports, and refuses what could be read differently once reassembled (RFC 1858, RFC 3128, RFC 7112).
    #[inline]
    fn read_transport(&mut self, packet: &[u8]) -> Result<(), Malformed> {
        let rest = packet.len().saturating_sub(self.l4_offset);
        if self.fragment != Fragment::Whole {
            self.check_fragment(rest)?;
        }
        let shortest = match self.protocol {
            protocol::TCP => 20,
            protocol::UDP => 8,
            _ => return Ok(()),
        };
        if self.fragment.is_later() {
            return Ok(());
        }
        if rest < shortest {
            return Err(Malformed::Transport);
        }
        let [s0, s1, d0, d1] = array_at(packet, self.l4_offset).ok_or(Malformed::Transport)?;
        self.ports = Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])));
        Ok(())
    }

    fn check_fragment(&self, data: usize) -> Result<(), Malformed> {
        let (offset, more) = match self.fragment {
            Fragment::Whole => return Ok(()),
            Fragment::First => (0, true),
            Fragment::Later { offset, more } => (usize::from(offset) * 8, more),
        };
        let overlaps_header = offset != 0 && offset < 60 && self.protocol == protocol::TCP;
        if (more && !data.is_multiple_of(8)) || data == 0 || offset + data > crate::MAX_PACKET || overlaps_header {
            return Err(Malformed::Fragment);
        }
        Ok(())
    }
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Which part of a fragmented packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// Any other.
    Later {
        /// Where its data belongs, in units of eight bytes.
        offset: u16,
        /// Whether others follow behind it.
        more: bool,
    },
}

impl Fragment {
    fn of(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            (offset, more) => Self::Later { offset, more },
        }
    }

    /// Whether the transport header is in another fragment.
    pub fn is_later(&self) -> bool {
        matches!(self, Self::Later { .. })
    }
}

/// Why bytes are not a packet that we carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Malformed {
    /// An IPv6 extension header is cut off, misplaced, or one too many.
    #[error("broken chain of extension headers")]
    Extensions,
    /// Not a fragment that any sender makes.
    #[error("broken fragment")]
    Fragment,
    /// A length or an option contradicts another.
    #[error("lengths contradict each other")]
    Length,
    /// The headers alone fill the largest packet.
    #[error("headers leave no room for payload")]
    NoRoom,
    /// The offload header does not fit the packet.
    #[error("offload header does not fit the packet")]
    Offload,
    /// The transport header is cut off or its length is impossible.
    #[error("broken transport header")]
    Transport,
    /// The packet is longer than the bytes there are.
    #[error("cut off")]
    Truncated,
    /// Neither IPv4 nor IPv6.
    #[error("neither IPv4 nor IPv6")]
    Version,
}

/// Protocol numbers as IANA assigned them.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// A number that is equal for all packets of one flow, and spreads flows evenly.
///
/// Fragments of a datagram are one flow even where only the first of them has ports.
#[inline]
pub fn flow_hash(view: &IpView) -> u32 {
    let ports = match (view.fragment, view.ports) {
        (Fragment::Whole, Some((source, destination))) => (u64::from(source) << 16) | u64::from(destination),
        (Fragment::Whole | Fragment::First | Fragment::Later { .. }, _) => 0,
    };
    let mut hash = mix((ports << 8) | u64::from(view.protocol));
    for address in [view.source, view.destination] {
        hash = match address {
            IpAddr::V4(address) => mix(hash ^ u64::from(address.to_bits())),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                mix(mix(hash ^ (bits >> 64) as u64) ^ bits as u64)
            }
        };
    }
    (hash >> 32) as u32
}

/// The finaliser of SplitMix64.
#[inline]
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Looks for a loose or strict source route among IPv4 options.
fn has_source_route(options: &[u8]) -> Result<bool, Malformed> {
    let mut rest = options;
    loop {
        rest = match *rest {
            [] | [0, ..] => return Ok(false),
            [1, ref rest @ ..] => rest,
            [131 | 137, ..] => return Ok(true),
            [_, len, ..] if len >= 2 => rest.get(usize::from(len)..).ok_or(Malformed::Length)?,
            _ => return Err(Malformed::Length),
        };
    }
}

fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

/// Length of an IPv6 header without extensions.
pub(crate) const V6_LEN: usize = 40;

/// Extension headers followed before giving up.
const MAX_EXTENSIONS: usize = 8;

#[cfg(test)]
mod tests;
