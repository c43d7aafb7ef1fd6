use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::sample::Sample;
use crate::{Fragments, Segments, SuperPacket, icmp_too_big, mss_clamp};

/// An IPv6 packet whose payload is a chain of extension headers and what follows it.
fn v6(first: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = Sample::udp(IpVersion::V6).packet(&[]);
    packet.truncate(40);
    packet[6] = first;
    packet[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    packet.extend(rest);
    packet
}

/// An IPv4 packet with these options and eight bytes of UDP.
fn v4(options: &[u8]) -> Vec<u8> {
    let mut packet = Sample::udp(IpVersion::V4).packet(&[]);
    packet.splice(20..20, options.iter().copied());
    packet[0] = 0x45 + (options.len() / 4) as u8;
    packet[3] = packet.len() as u8;
    packet
}

const UDP: [u8; 8] = [0x9c, 0x40, 1, 187, 0, 8, 0, 0];

#[test]
fn a_view_tells_the_fields_of_the_packet() {
    let sample = Sample { traffic_class: 0xb9, hop_limit: 7, ..Sample::tcp(IpVersion::V4) };
    let mut packet = sample.packet(b"hello");
    packet.extend([0; 9]);
    let view = IpView::parse(&packet).unwrap();
    assert_eq!(
        view,
        IpView {
            version: IpVersion::V4,
            source: "10.1.2.3".parse().unwrap(),
            destination: "10.200.201.202".parse().unwrap(),
            len: 45,
            protocol: protocol::TCP,
            l4_offset: 20,
            fragment: Fragment::Whole,
            traffic_class: 0xb9,
            hop_limit: 7,
            dont_fragment: true,
            source_routed: false,
            ports: Some((40_000, 443)),
        }
    );
    assert_eq!((view.dscp(), view.ecn()), (46, 1));
    let view = IpView::parse(&Sample { version: IpVersion::V6, ..sample }.packet(b"hello")).unwrap();
    assert_eq!(view.source, "fd07:e15:1c23:2a31:383f:464d:545b:6269".parse::<IpAddr>().unwrap());
    assert_eq!((view.len, view.l4_offset, view.traffic_class, view.hop_limit), (65, 40, 0xb9, 7));
    assert_eq!(view.ports, Some((40_000, 443)));
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    let packet = Sample::udp(IpVersion::V4).packet(b"hello");
    let with = |at: usize, value: u8| {
        let mut packet = packet.clone();
        packet[at] = value;
        IpView::parse(&packet)
    };
    assert_eq!(IpView::parse(&[]), Err(Malformed::Truncated));
    assert_eq!(IpView::parse(&packet[..19]), Err(Malformed::Truncated));
    assert_eq!(IpView::parse(&packet[..32]), Err(Malformed::Truncated));
    assert_eq!(with(0, 0x44), Err(Malformed::Length));
    assert_eq!(with(0, 0x55), Err(Malformed::Version));
    assert_eq!(with(0, 0x4f), Err(Malformed::Length));
    assert_eq!(with(3, 19), Err(Malformed::Length));
    assert_eq!(with(3, 27), Err(Malformed::Transport));
    assert_eq!(with(3, 34), Err(Malformed::Truncated));
    assert_eq!(IpView::parse(&v6(17, &UDP)[..47]), Err(Malformed::Truncated));
    assert_eq!(IpView::parse(&v6(17, &UDP[..7])), Err(Malformed::Transport));
    assert_eq!(IpView::parse(&v6(6, &UDP)), Err(Malformed::Transport));
}

#[test]
fn options_are_skipped_and_a_source_route_is_seen() {
    assert_eq!(IpView::parse(&v4(&[1, 1, 1, 0])).map(|v| (v.source_routed, v.ports)), Ok((false, Some((40_000, 443)))));
    assert_eq!(IpView::parse(&v4(&[148, 4, 0, 0])).map(|v| v.source_routed), Ok(false));
    assert_eq!(IpView::parse(&v4(&[148, 4, 0, 0, 131, 3, 4, 0])).map(|v| v.source_routed), Ok(true));
    assert_eq!(IpView::parse(&v4(&[137, 3, 4, 0])).map(|v| v.source_routed), Ok(true));
    assert_eq!(IpView::parse(&v4(&[7, 9, 0, 0])), Err(Malformed::Length));
    assert_eq!(IpView::parse(&v4(&[7, 1, 0, 0])), Err(Malformed::Length));
    assert_eq!(IpView::parse(&v4(&[1, 1, 1, 7])), Err(Malformed::Length));
}

#[test]
fn extension_headers_are_followed_to_the_transport() {
    let chain = [&[43, 0, 1, 4, 0, 0, 0, 0][..], &[60, 0, 2, 0, 0, 0, 0, 0], &[17, 1, 0, 0], &[0; 12], &UDP].concat();
    let view = IpView::parse(&v6(protocol::HOP_BY_HOP, &chain)).unwrap();
    assert_eq!((view.protocol, view.l4_offset, view.ports), (17, 40 + 32, Some((40_000, 443))));
    assert!(!view.source_routed, "type 2 without a stop left");
    let view = IpView::parse(&v6(protocol::AUTHENTICATION, &[&[17, 4, 0, 0][..], &[0; 20], &UDP].concat())).unwrap();
    assert_eq!(view.l4_offset, 40 + 24);
}

#[test]
fn a_routing_header_that_routes_is_seen() {
    for (kind, left, expected) in [(0, 0, true), (0, 1, true), (2, 1, true), (4, 0, false), (4, 3, true)] {
        let packet = v6(protocol::ROUTING, &[&[17, 0, kind, left, 0, 0, 0, 0][..], &UDP].concat());
        assert_eq!(IpView::parse(&packet).map(|view| view.source_routed), Ok(expected), "type {kind}, {left} left");
    }
}

#[test]
fn a_chain_without_end_is_refused() {
    let link = [60, 0, 1, 4, 0, 0, 0, 0];
    let chain = |links: usize| [link.repeat(links), vec![17, 0, 1, 4, 0, 0, 0, 0], UDP.to_vec()].concat();
    assert!(IpView::parse(&v6(60, &chain(7))).is_ok());
    assert_eq!(IpView::parse(&v6(60, &chain(8))), Err(Malformed::Extensions));
    assert_eq!(IpView::parse(&v6(60, &[17, 9, 0, 0, 0, 0, 0, 0])), Err(Malformed::Extensions));
    assert_eq!(IpView::parse(&v6(60, &[17, 0, 0])), Err(Malformed::Extensions));
    assert_eq!(
        IpView::parse(&v6(60, &[&[0, 0, 1, 4, 0, 0, 0, 0][..], &[17, 0, 1, 4, 0, 0, 0, 0], &UDP].concat())),
        Err(Malformed::Extensions)
    );
}

#[test]
fn fragments_have_ports_only_in_the_first() {
    let packet = |offset: u16, more: bool, len: usize| {
        let mut packet = Sample::udp(IpVersion::V4).packet(&vec![0; len - 8]);
        packet[6..8].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        IpView::parse(&packet)
    };
    let first = packet(0, true, 800).unwrap();
    assert_eq!((first.fragment, first.ports), (Fragment::First, Some((40_000, 443))));
    let later = packet(100, true, 800).unwrap();
    assert_eq!((later.fragment, later.ports), (Fragment::Later { offset: 100, more: true }, None));
    assert_eq!(flow_hash(&first), flow_hash(&later));
    assert_eq!(packet(100, false, 801).map(|view| view.fragment), Ok(Fragment::Later { offset: 100, more: false }));
    assert_eq!(packet(100, true, 801), Err(Malformed::Fragment));
    assert_eq!(packet(8191, false, 100), Err(Malformed::Fragment), "would end behind the longest packet");
}

#[test]
fn a_fragment_that_splits_or_overwrites_a_tcp_header_is_refused() {
    let packet = |offset: u8, more: u8, len: usize| {
        let mut packet = Sample::tcp(IpVersion::V4).packet(&[0; 100]);
        (packet[3], packet[6], packet[7]) = (20 + len as u8, more, offset);
        IpView::parse(&packet).map(|view| view.fragment)
    };
    assert_eq!(packet(0, 0x20, 16), Err(Malformed::Transport));
    assert_eq!(packet(1, 0, 16), Err(Malformed::Fragment));
    assert_eq!(packet(8, 0, 16), Ok(Fragment::Later { offset: 8, more: false }));
}

#[test]
fn ipv6_fragments_are_seen() {
    let packet = |bits: u16, rest: &[u8]| {
        let [b2, b3] = bits.to_be_bytes();
        IpView::parse(&v6(protocol::FRAGMENT, &[&[17, 0, b2, b3, 0, 0, 0, 1][..], rest].concat()))
    };
    assert_eq!(packet(0, &UDP).map(|view| view.fragment), Ok(Fragment::Whole));
    assert_eq!(packet(1, &UDP).map(|view| (view.fragment, view.ports)), Ok((Fragment::First, Some((40_000, 443)))));
    assert_eq!(
        packet(8 * 5, &UDP).map(|v| (v.fragment, v.ports)),
        Ok((Fragment::Later { offset: 5, more: false }, None))
    );
    assert_eq!(packet(1, &UDP[..4]), Err(Malformed::Fragment));
    assert_eq!(packet(8, &[]), Err(Malformed::Fragment));
}

#[test]
fn flows_spread_over_lanes() {
    let mut counts = [0; 4];
    let mut seen = BTreeSet::new();
    for source_port in 0..4096 {
        let packet = Sample { source_port, ..Sample::tcp(IpVersion::V6) }.packet(&[]);
        let hash = flow_hash(&IpView::parse(&packet).unwrap());
        counts[hash as usize % 4] += 1;
        seen.insert(hash);
    }
    assert!(counts.iter().all(|count| (900..1150).contains(count)), "{counts:?}");
    assert!(seen.len() > 4090);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), version in 0_u8..3) {
        if let Some(first) = bytes.first_mut() {
            *first = match version { 0 => *first, 1 => 0x45 | (*first & 1), _ => 0x60 | (*first & 15) };
        }
        drive(bytes);
    }

    #[test]
    fn a_damaged_packet_is_read_or_refused(
        is_v4 in any::<bool>(), is_tcp in any::<bool>(), len in 0_usize..200,
        damage in proptest::collection::vec((0_usize..100, any::<u8>()), 0..8), cut_off in 0_usize..100,
    ) {
        let version = if is_v4 { IpVersion::V4 } else { IpVersion::V6 };
        let sample = if is_tcp { Sample::tcp(version) } else { Sample::udp(version) };
        let mut packet = sample.packet(&vec![3; len]);
        for (at, value) in damage {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
        }
        packet.truncate(packet.len() - cut_off.min(packet.len()) / 3);
        drive(packet);
    }
}

/// Hands the bytes to everything that takes bytes from outside.
fn drive(mut bytes: Vec<u8>) {
    if let Ok(view) = IpView::parse(&bytes) {
        assert!(view.len <= bytes.len() && view.l4_offset <= view.len);
        flow_hash(&view);
    }
    let _ = Segments::new(SuperPacket::plain(&bytes), 1400);
    for own in ["10.0.0.1", "fd00::1"] {
        if let Some(error) = icmp_too_big(&bytes, 1280, own.parse().unwrap()) {
            assert!(IpView::parse(&error).is_ok());
        }
    }
    if let Some(mut fragments) = Fragments::new(&bytes, 68, 1) {
        let mut out = [0; 68];
        while fragments.write_next(&mut out).is_some() {}
    }
    mss_clamp(&mut bytes, 1000);
}
