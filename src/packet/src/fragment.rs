//! Fragmentation: IPv4 (RFC 791 3.2) for a packet whose sender allows it, IPv6 (RFC 8200 4.5) below what every path of
//! IPv6 must carry.
//!
//! The answer to a packet that is too long for its path: [`Fragments`] where the sender learns nothing from an error,
//! [`crate::icmp_too_big`] else. A sender that allows fragments would be cut off for ever. So would one of IPv6 whose
//! path carries less than 1280 bytes: it is never told of less, and a link below must then see to it (RFC 8200 5).

use crate::bytes::{put_u16, u16_at};
use crate::{IpVersion, IpView, checksum};

/// The fragments of one packet, each written to another buffer.
#[derive(Debug, Clone)]
pub struct Fragments<'a> {
    /// What begins each of them; of IPv6 with the fragment header.
    header: [u8; HEADER_V6 + HEADER_FRAGMENT],
    header_len: usize,
    version: IpVersion,
    data: &'a [u8],
    /// Data bytes of each fragment but the last.
    size: usize,
    /// Data bytes already written.
    done: usize,
    /// The packet itself may be a fragment already: of IPv4 its field of flags and offset; of IPv6 the same field, in
    /// which the offset is shifted by three.
    field: u16,
}

impl<'a> Fragments<'a> {
    /// Plans how to cut a complete `packet` into fragments no longer than `max_packet`. `identification` must not come
    /// again soon; a packet of IPv4, or one that is a fragment already, has its own.
    ///
    /// `None` for IPv4 under "don't fragment", with IPv4 options (some belong to the first fragment only), for IPv6 of
    /// more than 1280 bytes (its sender is told), and for IPv6 with a hop-by-hop or routing header.
    pub fn new(packet: &'a [u8], max_packet: usize, identification: u32) -> Option<Self> {
        let view = IpView::parse(packet).ok()?;
        let packet = packet.get(..view.len)?;
        match view.version {
            IpVersion::V4 if view.dont_fragment || view.l4_offset != HEADER_V4 => None,
            IpVersion::V4 => {
                let (header, data) = packet.split_at_checked(HEADER_V4)?;
                Self::plan(view.version, header, data, u16_at(header, 6)?, max_packet)
            }
            IpVersion::V6 if packet.len() > V6_LEAST => None,
            IpVersion::V6 => {
                let (base, data) = packet.split_at_checked(HEADER_V6)?;
                let mut header = [0; HEADER_V6 + HEADER_FRAGMENT];
                let (own, fragment) = header.split_at_mut(HEADER_V6);
                own.copy_from_slice(base);
                let next = own.get_mut(NEXT_HEADER)?;
                match *next {
                    HOP_BY_HOP | ROUTING => None,
                    FRAGMENT => {
                        let (before, data) = data.split_at_checked(HEADER_FRAGMENT)?;
                        fragment.copy_from_slice(before);
                        let field = u16_at(before, 2)?;
                        // one that ends behind the longest packet is none
                        u16::try_from(usize::from(field & !7) + data.len()).ok()?;
                        Self::plan(view.version, &header, data, field, max_packet)
                    }
                    upper => {
                        *next = FRAGMENT;
                        *fragment.first_mut()? = upper;
                        fragment.get_mut(4..)?.copy_from_slice(&identification.to_be_bytes());
                        Self::plan(view.version, &header, data, 0, max_packet)
                    }
                }
            }
        }
    }

    fn plan(version: IpVersion, header: &[u8], data: &'a [u8], field: u16, max_packet: usize) -> Option<Self> {
        let size = max_packet.checked_sub(header.len())? & !7;
        if size == 0 || data.is_empty() {
            return None;
        }
        let mut all = [0; HEADER_V6 + HEADER_FRAGMENT];
        all.get_mut(..header.len())?.copy_from_slice(header);
        Some(Self { header: all, header_len: header.len(), version, data, size, done: 0, field })
    }

    /// Writes the next fragment at the start of `out` and returns its length.
    ///
    /// `None` at the end, or where `out` is too short.
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let rest = self.data.get(self.done..).filter(|rest| !rest.is_empty())?;
        let (data, after) = rest.split_at(self.size.min(rest.len()));
        let len = self.header_len + data.len();
        let (header, body) = out.get_mut(..len)?.split_at_mut_checked(self.header_len)?;
        header.copy_from_slice(self.header.get(..self.header_len)?);
        body.copy_from_slice(data);
        match self.version {
            IpVersion::V4 => {
                put_u16(header, 2, u16::try_from(len).ok()?);
                let more = if after.is_empty() { 0 } else { MORE_V4 };
                put_u16(header, 6, (self.field | more) + u16::try_from(self.done / 8).ok()?);
                put_u16(header, 10, 0);
                put_u16(header, 10, checksum::finish(checksum::sum(header).into()));
            }
            IpVersion::V6 => {
                put_u16(header, 4, u16::try_from(len - HEADER_V6).ok()?);
                let more = if after.is_empty() { 0 } else { MORE_V6 };
                // the offset counts eights and stands three bits up: bytes, as they are
                put_u16(header, HEADER_V6 + 2, (self.field | more) + u16::try_from(self.done).ok()?);
            }
        }
        self.done += data.len();
        Some(len)
    }
}

/// Length of an IPv4 header without options.
const HEADER_V4: usize = 20;
/// Length of an IPv6 header.
const HEADER_V6: usize = 40;
/// Length of a fragment header.
const HEADER_FRAGMENT: usize = 8;
/// Where an IPv6 header tells what follows.
const NEXT_HEADER: usize = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
/// What every path of IPv6 carries.
const V6_LEAST: usize = 1280;
/// "More fragments" in the field that also holds the offset.
const MORE_V4: u16 = 0x2000;
const MORE_V6: u16 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Fragment;
    use crate::sample::Sample;

    fn packet(len: usize) -> Vec<u8> {
        let mut packet = Sample::udp(IpVersion::V4).packet(&vec![7; len]);
        packet[6] = 0;
        packet
    }

    fn cut(packet: &[u8], max: usize) -> Vec<Vec<u8>> {
        let mut fragments = Fragments::new(packet, max, 0x0102_0304).unwrap();
        let mut out = [0; 2000];
        std::iter::from_fn(|| fragments.write_next(&mut out).map(|len| out[..len].to_vec())).collect()
    }

    #[test]
    fn what_must_not_be_fragmented_is_not() {
        assert!(Fragments::new(&Sample::udp(IpVersion::V4).packet(&[7; 1300]), 600, 1).is_none());
        assert!(Fragments::new(&Sample::udp(IpVersion::V6).packet(&[7; 1233]), 600, 1).is_none());
        assert!(Fragments::new(&packet(1300), 27, 1).is_none());
        let mut options = Sample::udp(IpVersion::V6).packet(&[7; 600]);
        options[6] = HOP_BY_HOP;
        assert!(Fragments::new(&options, 300, 1).is_none());
    }

    proptest! {
        #[test]
        fn fragments_join_to_the_packet(len in 1_usize..4000, max in 68_usize..1500, again in 68_usize..1500) {
            let packet = packet(len);
            let fragments: Vec<_> = cut(&packet, max).iter().flat_map(|f| cut(f, again)).collect();
            for fragment in &fragments {
                prop_assert_eq!(checksum::sum(&fragment[..20]), 0xffff);
            }
            join(&fragments, max.min(again), 20, &packet[20..]);
        }

        #[test]
        fn fragments_of_ipv6_join_to_the_packet(len in 1_usize..1232, max in 80_usize..1279, again in 80_usize..1279) {
            let packet = Sample::udp(IpVersion::V6).packet(&vec![7; len]);
            let fragments: Vec<_> = cut(&packet, max).iter().flat_map(|f| cut(f, again)).collect();
            for fragment in &fragments {
                prop_assert_eq!(fragment[6], FRAGMENT);
                prop_assert_eq!(fragment[40], packet[6]);
                prop_assert_eq!(&fragment[44..48], &[1, 2, 3, 4]);
                prop_assert_eq!((&fragment[..4], &fragment[8..40]), (&packet[..4], &packet[8..40]));
            }
            join(&fragments, max.min(again), 48, &packet[40..]);
        }
    }

    fn join(fragments: &[Vec<u8>], max: usize, header: usize, whole: &[u8]) {
        let mut data = Vec::new();
        for (index, fragment) in fragments.iter().enumerate() {
            assert!(fragment.len() <= max);
            let view = IpView::parse(fragment).unwrap();
            assert_eq!(view.len, fragment.len());
            let last = index + 1 == fragments.len();
            match view.fragment {
                Fragment::Whole => assert_eq!(fragments.len(), 1),
                Fragment::First => assert!(index == 0 && !last),
                Fragment::Later { offset, more } => {
                    assert_eq!(usize::from(offset) * 8, data.len());
                    assert_eq!(more, !last);
                }
            }
            data.extend_from_slice(&fragment[header..]);
        }
        assert_eq!(&data[..], whole);
    }
}
