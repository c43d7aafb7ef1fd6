//! The error that tells a sender how large its packets may be.
//!
//! IPv4: destination unreachable, fragmentation needed, with the next hop's MTU (RFC 792, RFC 1191).
//! IPv6: packet too big (RFC 4443 3.2). Both quote as much of the packet as their limit allows. How often an
//! error may be sent is the caller's to limit.

use std::net::IpAddr;

use crate::bytes::{put, put_u16, u8_at};
use crate::view::V6_LEN;
use crate::{Fragment, IpVersion, IpView, checksum, protocol};

/// The error about `packet`, from `own` to the packet's source: it was longer than `mtu`.
///
/// `None` where an error must not be sent (RFC 1122 3.2.2, RFC 4443 2.4 e): about an ICMP error, a fragment but
/// the first, to a source that is not one host, about an IPv4 packet to many. Nor where `own` is of the other
/// family.
pub fn icmp_too_big(packet: &[u8], mtu: usize, own: IpAddr) -> Option<Vec<u8>> {
    let view = IpView::parse(packet).ok()?;
    let packet = packet.get(..view.len)?;
    if view.fragment.is_later() || !is_one_host(view.source) || is_icmp_error(&view, packet) {
        return None;
    }
    match (own, view.source) {
        (IpAddr::V4(own), IpAddr::V4(source)) => {
            if !is_one_host(view.destination) {
                return None;
            }
            let quote = packet.get(..packet.len().min(V4_LIMIT - 28))?;
            let mut out = vec![0; 28 + quote.len()];
            put(&mut out, 0, [0x45, V4_TOS]);
            put_u16(&mut out, 2, u16::try_from(28 + quote.len()).ok()?);
            put(&mut out, 6, [0x40, 0, HOP_LIMIT, protocol::ICMP]);
            put(&mut out, 12, own.octets());
            put(&mut out, 16, source.octets());
            let sum = checksum::sum(out.get(..20)?);
            put_u16(&mut out, 10, checksum::finish(sum.into()));
            put(&mut out, 20, [3, 4]);
            put_u16(&mut out, 26, u16::try_from(mtu).unwrap_or(u16::MAX));
            out.get_mut(28..)?.copy_from_slice(quote);
            let sum = checksum::sum(out.get(20..)?);
            put_u16(&mut out, 22, checksum::finish(sum.into()));
            Some(out)
        }
        (IpAddr::V6(own), IpAddr::V6(source)) => {
            let quote = packet.get(..packet.len().min(V6_LIMIT - V6_LEN - 8))?;
            let len = 8 + quote.len();
            let mut out = vec![0; V6_LEN + len];
            put(&mut out, 0, [0x60]);
            put_u16(&mut out, 4, u16::try_from(len).ok()?);
            put(&mut out, 6, [protocol::ICMPV6, HOP_LIMIT]);
            put(&mut out, 8, own.octets());
            put(&mut out, 24, source.octets());
            put(&mut out, V6_LEN, [2, 0]);
            put(&mut out, V6_LEN + 4, u32::try_from(mtu).unwrap_or(u32::MAX).to_be_bytes());
            out.get_mut(V6_LEN + 8..)?.copy_from_slice(quote);
            let sum = u32::from(checksum::sum(out.get(V6_LEN..)?))
                + checksum::pseudo(own.into(), source.into(), protocol::ICMPV6, len);
            put_u16(&mut out, V6_LEN + 2, checksum::finish(sum));
            Some(out)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

fn is_one_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast)
}

fn is_icmp_error(view: &IpView, packet: &[u8]) -> bool {
    let Some(kind) = u8_at(packet, view.l4_offset) else {
        return matches!(view.protocol, protocol::ICMP | protocol::ICMPV6);
    };
    match (view.version, view.protocol) {
        // All but echo, timestamp and router discovery, which are questions and answers.
        (IpVersion::V4, protocol::ICMP) => !matches!(kind, 0 | 8 | 9 | 10 | 13 | 14),
        // Errors have the high bit clear; a redirect counts as one.
        (IpVersion::V6, protocol::ICMPV6) => kind < 128 || kind == 137,
        (IpVersion::V4 | IpVersion::V6, _) => {
            debug_assert!(matches!(view.fragment, Fragment::Whole | Fragment::First));
            false
        }
    }
}

/// Precedence of an error (RFC 1812 4.3.2.5): internetwork control.
const V4_TOS: u8 = 0xc0;

const HOP_LIMIT: u8 = 64;

/// Longest IPv4 error (RFC 1812 4.3.2.3).
const V4_LIMIT: usize = 576;

/// Longest IPv6 error: the smallest MTU (RFC 4443 3.2).
const V6_LIMIT: usize = 1280;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Sample, is_sound};

    #[test]
    fn an_ipv4_error_quotes_the_packet_and_names_the_mtu() {
        let packet = Sample::udp(IpVersion::V4).packet(&[7; 1300]);
        let error = icmp_too_big(&packet, 1200, "10.9.9.9".parse().unwrap()).unwrap();
        let view = IpView::parse(&error).unwrap();
        assert_eq!(error.len(), V4_LIMIT);
        assert_eq!(view.len, V4_LIMIT);
        assert_eq!(view.source, "10.9.9.9".parse::<IpAddr>().unwrap());
        assert_eq!(view.destination, IpView::parse(&packet).unwrap().source);
        assert_eq!(error[20..22], [3, 4]);
        assert_eq!(error[26..28], 1200_u16.to_be_bytes());
        assert_eq!(error[28..], packet[..V4_LIMIT - 28]);
        assert!(is_sound(&error));
    }

    #[test]
    fn an_ipv6_error_quotes_the_packet_and_names_the_mtu() {
        let packet = Sample::udp(IpVersion::V6).packet(&[7; 1300]);
        let error = icmp_too_big(&packet, 1290, "fd00::9".parse().unwrap()).unwrap();
        assert_eq!(error.len(), V6_LIMIT);
        assert_eq!(error[40..42], [2, 0]);
        assert_eq!(error[44..48], 1290_u32.to_be_bytes());
        assert_eq!(error[48..], packet[..V6_LIMIT - 48]);
        assert!(is_sound(&error));
    }

    #[test]
    fn a_short_packet_is_quoted_whole() {
        let packet = Sample::tcp(IpVersion::V4).packet(b"x");
        let error = icmp_too_big(&packet, 576, "10.9.9.9".parse().unwrap()).unwrap();
        assert_eq!(error[28..], packet);
    }

    #[test]
    fn no_error_is_sent_about_an_error() {
        for (version, own) in [(IpVersion::V4, "10.9.9.9"), (IpVersion::V6, "fd00::9")] {
            let own = own.parse().unwrap();
            let packet = Sample::udp(version).packet(&[7; 1300]);
            let mut error = icmp_too_big(&packet, 1200, own).unwrap();
            assert_eq!(icmp_too_big(&error, 1200, own), None);
            let at = IpView::parse(&error).unwrap().l4_offset;
            error[at] = if version == IpVersion::V4 { 8 } else { 128 };
            assert!(icmp_too_big(&error, 1200, own).is_some(), "an echo request is answered");
        }
    }

    #[test]
    fn no_error_is_sent_about_later_fragments_or_to_many() {
        let own = "10.9.9.9".parse().unwrap();
        let mut packet = Sample::udp(IpVersion::V4).packet(&[7; 1304]);
        packet[7] = 100;
        assert_eq!(icmp_too_big(&packet, 1200, own), None);
        for (at, address) in
            [(16, [224, 0, 0, 1]), (16, [255; 4]), (12, [0; 4]), (12, [127, 0, 0, 1]), (12, [239, 1, 1, 1])]
        {
            let mut packet = Sample::udp(IpVersion::V4).packet(&[7; 1300]);
            packet[at..at + 4].copy_from_slice(&address);
            assert_eq!(icmp_too_big(&packet, 1200, own), None, "{address:?}");
        }
        let packet = Sample::udp(IpVersion::V4).packet(&[7; 1300]);
        assert_eq!(icmp_too_big(&packet, 1200, "fd00::1".parse().unwrap()), None);
    }

    #[test]
    fn packet_too_big_is_sent_about_multicast_in_ipv6() {
        let mut packet = Sample::udp(IpVersion::V6).packet(&[7; 1300]);
        packet[24] = 0xff;
        assert!(icmp_too_big(&packet, 1280, "fd00::9".parse().unwrap()).is_some());
    }
}
