//! Congestion marks of the outer header, brought into the packet that was inside (RFC 6040 section 4.2).

use crate::bytes::{put, put_u16, u8_at, u16_at};
use crate::checksum;

/// Merges the ECN bits of the datagram into the `packet` that it carried.
///
/// The IPv4 header checksum is adjusted (RFC 1624): a wrong one stays wrong.
pub fn merge_ecn(packet: &mut [u8], outer: u8) -> Marked {
    let (Some(b0), Some(b1)) = (u8_at(packet, 0), u8_at(packet, 1)) else { return Marked::Deliver };
    let is_v4 = b0 >> 4 == 4;
    let shift = if is_v4 { 0 } else { 4 };
    let inner = (b1 >> shift) & CE;
    let merged = match (inner, outer & CE) {
        (NOT_ECT, CE) => return Marked::Drop,
        (NOT_ECT, _) => NOT_ECT,
        (CE, _) | (_, CE) => CE,
        (ECT_1, _) | (_, ECT_1) => ECT_1,
        (inner, _) => inner,
    };
    if merged != inner {
        let marked = (b1 & !(CE << shift)) | (merged << shift);
        put(packet, 1, [marked]);
        if let Some(sum) = u16_at(packet, SUM).filter(|_| is_v4) {
            put_u16(packet, SUM, checksum::finish(u32::from(!sum) + u32::from(!u16::from(b1)) + u32::from(marked)));
        }
    }
    Marked::Deliver
}

/// What becomes of a packet after [`merge_ecn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a packet that cannot carry the mark is to be dropped"]
pub enum Marked {
    /// It goes on.
    Deliver,
    /// Its sender does not understand marks: the loss is the mark.
    Drop,
}

const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const CE: u8 = 3;

/// Where the checksum is in an IPv4 header.
const SUM: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Sample, is_sound};
    use crate::{IpVersion, IpView};

    #[test]
    fn marks_merge_as_in_the_table_of_rfc_6040() {
        const ECT_0: u8 = 2;
        // By inner, then by outer: Not-ECT, ECT(1), ECT(0), CE.
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (ECT_0, [Some(ECT_0), Some(ECT_1), Some(ECT_0), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for version in [IpVersion::V4, IpVersion::V6] {
            for (inner, row) in table {
                for (outer, expected) in row.into_iter().enumerate() {
                    let sample = Sample { traffic_class: 0xb8 | inner, ..Sample::tcp(version) };
                    let mut packet = sample.packet(b"x");
                    let marked = merge_ecn(&mut packet, outer as u8);
                    assert_eq!(marked == Marked::Drop, expected.is_none());
                    let merged = Sample { traffic_class: 0xb8 | expected.unwrap_or(inner), ..sample }.packet(b"x");
                    assert_eq!(packet, merged);
                    assert!(is_sound(&packet));
                    assert_eq!(IpView::parse(&packet).unwrap().dscp(), 46);
                }
            }
        }
    }

    #[test]
    fn short_bytes_are_left_alone() {
        for len in 0..12 {
            let mut packet = vec![0x46; len];
            assert_eq!(merge_ecn(&mut packet, 0), Marked::Deliver);
        }
    }
}
