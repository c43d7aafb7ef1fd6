//! The packets of ARP and of neighbour discovery: written, and read from anybody on the LAN, so that the fuzz targets read this
//! file too.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum;

/// A request of ARP for Ethernet and IPv4: whom it looks for, and who asks. The frame may be padded.
pub(super) fn parse_request(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let frame: &[u8; 28] = frame.first_chunk()?;
    let (kind, addresses) = frame.split_first_chunk()?;
    let ([_, _, _, _, _, _, asker @ ..], rest) = addresses.split_first_chunk::<10>()?;
    let ([_, _, _, _, _, _, target @ ..], _) = rest.split_first_chunk::<10>()?;
    (*kind == kinds(REQUEST)).then(|| (Ipv4Addr::from(*target), Ipv4Addr::from(*asker)))
}

/// A packet of ARP for Ethernet and IPv4 (RFC 826).
pub(super) fn arp(operation: u8, (from, from_ip): ([u8; 6], Ipv4Addr), (to, to_ip): ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    [&kinds(operation)[..], &from, &from_ip.octets(), &to, &to_ip.octets()].concat()
}

/// Ethernet, IPv4, addresses of 6 and 4 bytes, and what is to be done.
const fn kinds(operation: u8) -> [u8; 8] {
    [0, 1, 8, 0, 6, 4, 0, operation]
}

/// A neighbour solicitation that is valid (RFC 4861, section 7.1.1) but for its options, which nobody looks at here: whom it
/// looks for, and who asks. The frame may be padded.
pub(super) fn parse_solicitation(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let (header, rest) = packet.split_first_chunk::<8>()?;
    let [version, _, _, _, high, low, ICMPV6, OF_THIS_LINK] = *header else { return None };
    let (from, rest) = rest.split_first_chunk::<16>()?;
    let (to, rest) = rest.split_first_chunk::<16>()?;
    let (from, to) = (Ipv6Addr::from(*from), Ipv6Addr::from(*to));
    let message = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let ([SOLICITATION, 0, ..], body) = message.split_first_chunk::<8>()? else { return None };
    let target = Ipv6Addr::from(*body.first_chunk::<16>()?);
    let valid = version >> 4 == 6 && !target.is_multicast() && sum(from, to, message) == u16::MAX;
    valid.then_some((target, from))
}

/// A neighbour advertisement with its IPv6 header: `target` is at `ethernet`.
pub(super) fn advertisement(
    (from, to): (Ipv6Addr, Ipv6Addr),
    target: Ipv6Addr,
    ethernet: [u8; 6],
    flags: u8,
) -> Vec<u8> {
    // the option says what the target's link-layer address is: one unit of eight bytes
    let (target, option) = (target.octets(), [2, 1]);
    let message = |[high, low]: [u8; 2]| {
        [&[ADVERTISEMENT, 0, high, low, flags, 0, 0, 0][..], &target, &option, &ethernet].concat()
    };
    let checksum = !sum(from, to, &message([0, 0]));
    let message = message(checksum.to_be_bytes());
    let header = [0x60, 0, 0, 0, 0, message.len() as u8, ICMPV6, OF_THIS_LINK];
    [&header[..], &from.octets(), &to.octets(), &message].concat()
}

/// The ones' complement sum over an ICMPv6 message and its pseudo-header (RFC 8200, section 8.1).
fn sum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    // no longer than a packet
    let [high, low] = (message.len() as u16).to_be_bytes();
    checksum::sum([&from.octets(), &to.octets(), &[0, 0, high, low, 0, 0, 0, ICMPV6], message])
}

pub(super) const REQUEST: u8 = 1;
pub(super) const REPLY: u8 = 2;
pub(super) const ICMPV6: u8 = 58;
/// The hop limit of what no router has passed on.
pub(super) const OF_THIS_LINK: u8 = 255;
pub(super) const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Flags of an advertisement: it answers, and it counts for more than what was known.
pub(super) const SOLICITED: u8 = 0x40;
pub(super) const OVERRIDE: u8 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const US: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// As a Linux host asks for fd77:1::b from fd77:2::b; its checksum is of another program.
    fn solicitation() -> Vec<u8> {
        let (from, to): (Ipv6Addr, Ipv6Addr) = ("fd77:2::b".parse().unwrap(), "ff02::1:ff00:b".parse().unwrap());
        let target: Ipv6Addr = "fd77:1::b".parse().unwrap();
        let message = [&[135, 0, 0x7c, 0x8a, 0, 0, 0, 0][..], &target.octets(), &[1, 1], &ASKER].concat();
        let header = [0x60, 0, 0, 0, 0, 32, 58, 255];
        [&header[..], &from.octets(), &to.octets(), &message].concat()
    }

    #[test]
    fn a_request_says_who_is_looked_for_and_by_whom_and_nothing_else_is_one() {
        let (target, asker) = (Ipv4Addr::new(192, 0, 2, 5), Ipv4Addr::new(192, 0, 2, 9));
        let frame = |operation| arp(operation, (ASKER, asker), ([0; 6], target));
        let padded = [frame(REQUEST), vec![0; 18]].concat();
        assert_eq!(parse_request(&padded), Some((target, asker)));
        assert_eq!(parse_request(&frame(REPLY)), None);
        for len in 0..28 {
            assert_eq!(parse_request(&frame(REQUEST)[..len]), None);
        }
        for place in 0..8 {
            let mut other = frame(REQUEST);
            other[place] ^= 0x40;
            assert_eq!(parse_request(&other), None);
        }
    }

    #[test]
    fn a_solicitation_says_who_is_looked_for_and_by_whom() {
        let padded = [solicitation(), vec![7; 4]].concat();
        assert_eq!(parse_solicitation(&padded), Some(("fd77:1::b".parse().unwrap(), "fd77:2::b".parse().unwrap())));
    }

    #[test]
    fn a_solicitation_that_is_cut_or_damaged_is_none() {
        for len in 0..72 {
            assert_eq!(parse_solicitation(&solicitation()[..len]), None, "{len}");
        }
        // nothing vouches for the traffic class and the flow label
        for place in (0..72).filter(|place| !(1..4).contains(place)) {
            let mut other = solicitation();
            other[place] ^= 0x40;
            assert_eq!(parse_solicitation(&other), None, "{place}");
        }
    }

    #[test]
    fn an_advertisement_is_one_by_its_own_checksum() {
        let (from, to): (Ipv6Addr, Ipv6Addr) = ("fe80::2".parse().unwrap(), "fd77:2::b".parse().unwrap());
        let target: Ipv6Addr = "fd77:1::b".parse().unwrap();
        let packet = advertisement((from, to), target, US, SOLICITED);
        let message = &packet[40..];
        assert_eq!((packet.len(), sum(from, to, message)), (72, u16::MAX));
        assert_eq!(
            (message[0], message[4], &message[8..24], &message[26..]),
            (136, 0x40, &target.octets()[..], &US[..])
        );
    }
}
