//! IPv4 fragmentation (RFC 791 3.2), for a packet whose sender allows it.
//!
//! The answer to a packet that is too long for its path: [`Fragments`] where IPv4 lets a router fragment,
//! [`crate::icmp_too_big`] else. A sender that allows fragments learns nothing from the error, and would be cut
//! off for ever.

use crate::bytes::{put_u16, u16_at};
use crate::{IpVersion, IpView, checksum};

/// The fragments of one packet, each written to another buffer.
#[derive(Debug, Clone)]
pub struct Fragments<'a> {
    header: &'a [u8],
    data: &'a [u8],
    /// Data bytes of each fragment but the last.
    size: usize,
    /// Data bytes already written.
    done: usize,
    /// The field of the packet itself: it may be a fragment already.
    field: u16,
}

impl<'a> Fragments<'a> {
    /// Plans how to cut a complete `packet` into fragments no longer than `max_packet`.
    ///
    /// `None` for IPv6, under "don't fragment", and with IPv4 options (some belong to the first fragment only).
    pub fn new(packet: &'a [u8], max_packet: usize) -> Option<Self> {
        let view = IpView::parse(packet).ok()?;
        if view.version != IpVersion::V4 || view.dont_fragment || view.l4_offset != HEADER {
            return None;
        }
        let (header, data) = packet.get(..view.len)?.split_at_checked(HEADER)?;
        let size = max_packet.checked_sub(HEADER)? & !7;
        if size == 0 || data.is_empty() {
            return None;
        }
        Some(Self { header, data, size, done: 0, field: u16_at(header, 6)? })
    }

    /// Writes the next fragment at the start of `out` and returns its length.
    ///
    /// `None` at the end, or where `out` is too short.
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let rest = self.data.get(self.done..).filter(|rest| !rest.is_empty())?;
        let (data, after) = rest.split_at(self.size.min(rest.len()));
        let len = HEADER + data.len();
        let (header, body) = out.get_mut(..len)?.split_at_mut_checked(HEADER)?;
        header.copy_from_slice(self.header);
        body.copy_from_slice(data);
        put_u16(header, 2, u16::try_from(len).ok()?);
        let more = if after.is_empty() { 0 } else { MORE };
        put_u16(header, 6, (self.field | more) + u16::try_from(self.done / 8).ok()?);
        put_u16(header, 10, 0);
        put_u16(header, 10, checksum::finish(checksum::sum(header).into()));
        self.done += data.len();
        Some(len)
    }
}

/// Length of an IPv4 header without options.
const HEADER: usize = 20;

/// "More fragments" in the field that also holds the offset.
const MORE: u16 = 0x2000;

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
        let mut fragments = Fragments::new(packet, max).unwrap();
        let mut out = [0; 2000];
        std::iter::from_fn(|| fragments.write_next(&mut out).map(|len| out[..len].to_vec())).collect()
    }

    #[test]
    fn what_must_not_be_fragmented_is_not() {
        assert!(Fragments::new(&Sample::udp(IpVersion::V4).packet(&[7; 1300]), 600).is_none());
        assert!(Fragments::new(&Sample::udp(IpVersion::V6).packet(&[7; 1300]), 600).is_none());
        assert!(Fragments::new(&packet(1300), 27).is_none());
    }

    proptest! {
        #[test]
        fn fragments_join_to_the_packet(len in 1_usize..4000, max in 68_usize..1500, again in 68_usize..1500) {
            let packet = packet(len);
            let fragments: Vec<_> = cut(&packet, max).iter().flat_map(|f| cut(f, again)).collect();
            let mut data = Vec::new();
            for (index, fragment) in fragments.iter().enumerate() {
                prop_assert!(fragment.len() <= max.min(again));
                prop_assert_eq!(checksum::sum(&fragment[..20]), 0xffff);
                let view = IpView::parse(fragment).unwrap();
                prop_assert_eq!(view.len, fragment.len());
                let last = index + 1 == fragments.len();
                match view.fragment {
                    Fragment::Whole => prop_assert_eq!(fragments.len(), 1),
                    Fragment::First => prop_assert!(index == 0 && !last),
                    Fragment::Later { offset, more } => {
                        prop_assert_eq!(usize::from(offset) * 8, data.len());
                        prop_assert_eq!(more, !last);
                    }
                }
                data.extend_from_slice(&fragment[20..]);
            }
            prop_assert_eq!(&data[..], &packet[20..]);
        }
    }
}
