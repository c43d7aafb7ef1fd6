use proptest::prelude::*;

use super::*;
use crate::sample::{Sample, is_sound};

fn cut(header: &VnetHeader, packet: &[u8], max_packet: usize) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(SuperPacket { header: *header, packet }, max_packet).unwrap();
    let mut out = Vec::new();
    let mut buffer = vec![0xee; crate::MAX_PACKET];
    let planned: Vec<_> = (0..segments.len()).map(|index| segments.packet_len(index).unwrap()).collect();
    assert_eq!(planned.iter().max(), Some(&segments.longest()));
    while let Some(next) = segments.next_len() {
        let left = segments.len();
        assert_eq!(segments.write_next(&mut buffer[..next - 1]), None, "too short a buffer is refused");
        assert_eq!(segments.write_next(&mut buffer), Some(next));
        assert_eq!(segments.len(), left - 1);
        out.push(buffer[..next].to_vec());
    }
    assert!(segments.is_empty());
    assert_eq!(segments.write_next(&mut buffer), None);
    assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), planned);
    out
}

fn cut_in_place(header: &VnetHeader, packet: &[u8], max_packet: usize) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    let mut segments = SegmentsMut::new(header, &mut packet, max_packet).unwrap();
    let mut out = Vec::new();
    while let Some(next) = segments.next_len() {
        let packet = segments.next_packet().unwrap();
        assert_eq!(packet.len(), next);
        out.push(packet.to_vec());
    }
    assert!(segments.is_empty());
    assert!(segments.next_packet().is_none());
    out
}

fn version() -> impl Strategy<Value = IpVersion> {
    prop_oneof![Just(IpVersion::V4), Just(IpVersion::V6)]
}

fn tcp() -> impl Strategy<Value = Sample> {
    let flags = prop_oneof![Just(0x10), Just(0x18), Just(0x19), Just(0x90), Just(0xd9), Just(0x50), any::<u8>()];
    let options = prop_oneof![Just(0_usize), Just(12), Just(20), Just(40)];
    (version(), flags, options, any::<u16>(), any::<u32>(), any::<u32>(), any::<(u8, u16)>()).prop_map(
        |(version, flags, options, id, sequence, ack, (traffic_class, window))| Sample {
            flags,
            options: (0..options).map(|i| (i * 37) as u8).collect(),
            id,
            sequence,
            ack,
            traffic_class,
            window,
            ..Sample::tcp(version)
        },
    )
}

fn payload(len: usize, seed: u8) -> Vec<u8> {
    // Long runs of equal bytes too: a checksum of zero must come up.
    (0..len).map(|i| if seed < 32 { seed } else { (i as u8).wrapping_mul(seed).wrapping_add((i >> 8) as u8) }).collect()
}

proptest! {
    #[test]
    fn a_tcp_super_packet_becomes_the_packets_its_sender_would_make(
        sample in tcp(), len in 1_usize..20_000, size in 1_u16..9000, seed in any::<u8>(),
    ) {
        let len = len.min(usize::from(size) * 50);
        let payload = payload(len, seed);
        let (header, packet) = sample.super_packet(&payload, size);
        let expected = sample.pieces(&payload, size.into());
        prop_assert_eq!(&cut(&header, &packet, 65_535), &expected);
        prop_assert_eq!(&cut_in_place(&header, &packet, 65_535), &expected);
        prop_assert!(expected.iter().all(|packet| is_sound(packet)));
    }

    #[test]
    fn a_smaller_path_gets_smaller_tcp_packets(sample in tcp(), len in 1_usize..9000, max in 200_usize..1500) {
        let payload = payload(len, 77);
        let (header, packet) = sample.super_packet(&payload, 1360);
        let expected = sample.pieces(&payload, 1360.min(max - sample.headers()));
        prop_assert_eq!(&cut(&header, &packet, max), &expected);
        prop_assert_eq!(&cut_in_place(&header, &packet, max), &expected);
        prop_assert!(expected.iter().all(|packet| packet.len() <= max));
    }

    #[test]
    fn a_udp_super_packet_becomes_its_datagrams(
        version in version(), id in any::<u16>(), len in 1_usize..20_000, size in 1_u16..9000, seed in any::<u8>(),
    ) {
        let len = len.min(usize::from(size) * 50);
        let sample = Sample { id, ..Sample::udp(version) };
        let payload = payload(len, seed);
        let (header, packet) = sample.super_packet(&payload, size);
        let expected = sample.pieces(&payload, size.into());
        prop_assert_eq!(&cut(&header, &packet, 100), &expected, "datagrams keep their length on any path");
        prop_assert_eq!(&cut_in_place(&header, &packet, 100), &expected);
    }

    #[test]
    fn an_unfinished_checksum_is_finished(
        version in version(), is_tcp in any::<bool>(), len in 0_usize..3000, seed in any::<u8>(), source_port in any::<u16>(),
    ) {
        let sample = Sample { source_port, ..if is_tcp { Sample::tcp(version) } else { Sample::udp(version) } };
        let payload = payload(len, seed);
        let (header, packet) = sample.super_packet(&payload, 0);
        let expected = vec![sample.packet(&payload)];
        prop_assert_eq!(&cut(&header, &packet, 1400), &expected);
        prop_assert_eq!(&cut_in_place(&header, &packet, 1400), &expected);
    }

    #[test]
    fn any_bytes_are_cut_or_refused(
        vnet in any::<[u8; 10]>(), mut packet in proptest::collection::vec(any::<u8>(), 0..200), max in 0_usize..2000,
    ) {
        let _ = VnetHeader::parse(&vnet).map(|header| drive(&header, &mut packet, max));
    }

    #[test]
    fn a_damaged_super_packet_is_cut_or_refused(
        sample in tcp(), is_udp in any::<bool>(), gso in any::<(u8, u16, u16, u16)>(), max in 0_usize..2000,
        damage in proptest::collection::vec((0_usize..90, any::<u8>()), 0..6), cut_off in 0_usize..90,
    ) {
        let sample = if is_udp { Sample::udp(sample.version) } else { sample };
        let (mut header, mut packet) = sample.super_packet(&payload(3000, 99), 1000);
        for (at, value) in damage {
            packet[at] = value;
        }
        packet.truncate(packet.len() - if cut_off > 45 { cut_off * 33 } else { 0 });
        if gso.0 % 4 == 0 {
            (header.gso_size, header.csum_start, header.csum_offset) = (gso.1 % 70, gso.2 % 80, gso.3 % 80);
            header.gso_type = if gso.0 % 8 == 0 { GsoType::None } else { header.gso_type };
        }
        drive(&header, &mut packet, max);
    }
}

/// Cuts in both ways, where at all; the packets are the same, and no longer than the plan says.
fn drive(header: &VnetHeader, packet: &mut [u8], max_packet: usize) {
    let copy = packet.to_vec();
    let copied = Segments::new(SuperPacket { header: *header, packet: &copy }, max_packet);
    let in_place = SegmentsMut::new(header, packet, max_packet);
    let (Ok(mut copied), Ok(mut in_place)) = (copied.clone(), in_place) else {
        assert!(copied.is_err() && SegmentsMut::new(header, &mut copy.clone(), max_packet).is_err());
        return;
    };
    let mut again = copy.clone();
    let mut padded = SegmentsMut::new(header, &mut again, max_packet).unwrap();
    let mut out = vec![0; 70_000];
    while let Some(len) = copied.write_next(&mut out) {
        assert!(len <= copied.longest());
        assert_eq!(in_place.next_packet().map(|packet| &packet[..]), out.get(..len));
        let (packet, own) = padded.next_padded().unwrap();
        assert_eq!((own, packet.get(..own)), (len, out.get(..len)));
        assert!(packet.len() == len || packet.len() == len.next_multiple_of(16));
        assert!(packet[len..].iter().all(|zero| *zero == 0));
    }
    assert!(copied.is_empty() && in_place.is_empty() && padded.next_padded().is_none());
}

#[test]
fn packets_with_others_behind_them_are_padded_in_place() {
    let (header, mut packet) = Sample::tcp(IpVersion::V4).super_packet(&payload(4000, 1), 1348);
    let mut segments = SegmentsMut::new(&header, &mut packet, 1400).unwrap();
    let mut lengths = Vec::new();
    while let Some((padded, len)) = segments.next_padded() {
        lengths.push((padded.len(), len));
    }
    let (full, last) = (1388, 40 + 4000 - 2 * 1348);
    assert_eq!(lengths, [(full + 4, full), (full + 4, full), (last, last)]);
}

#[test]
fn a_complete_packet_passes_unchanged() {
    for packet in [Sample::tcp(IpVersion::V4).packet(b"hello"), Sample::udp(IpVersion::V6).packet(b"hello")] {
        assert_eq!(cut(&VnetHeader::default(), &packet, 1400), std::slice::from_ref(&packet));
        assert_eq!(cut_in_place(&VnetHeader::default(), &packet, 1400), std::slice::from_ref(&packet));
    }
}

#[test]
fn what_lies_behind_the_packet_is_left_out() {
    let mut packet = Sample::udp(IpVersion::V4).packet(b"hello");
    let len = packet.len();
    packet.extend([0; 11]);
    assert_eq!(cut(&VnetHeader::default(), &packet, 1400), [packet[..len].to_vec()]);
}

#[test]
fn a_plain_packet_that_is_too_long_is_seen_by_its_length() {
    let packet = Sample::tcp(IpVersion::V4).packet(&[1; 1500]);
    let segments = Segments::new(SuperPacket::plain(&packet), 1400).unwrap();
    assert_eq!((segments.len(), segments.longest()), (1, 1540));
    let (header, packet) = Sample::udp(IpVersion::V4).super_packet(&[1; 5000], 1450);
    let segments = Segments::new(SuperPacket { header, packet: &packet }, 1400).unwrap();
    assert_eq!((segments.len(), segments.longest()), (4, 1478));
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
    // The word that makes the sum come out as all ones.
    let zero = Sample::udp(IpVersion::V4).packet(&[0, 0]);
    let sum = u16_at(&zero, 26).unwrap();
    let packet = Sample::udp(IpVersion::V4).packet(&sum.to_be_bytes());
    assert_eq!(packet[26..28], [0xff, 0xff]);
    let (header, unfinished) = Sample::udp(IpVersion::V4).super_packet(&sum.to_be_bytes(), 0);
    assert_eq!(cut(&header, &unfinished, 1400), std::slice::from_ref(&packet));
    let (header, batch) = Sample::udp(IpVersion::V4).super_packet(&[sum.to_be_bytes(), [1, 2]].concat(), 2);
    assert_eq!(cut(&header, &batch, 1400)[0], packet);
}

#[test]
fn an_offload_header_of_another_packet_is_refused() {
    let (tcp4, packet4) = Sample::tcp(IpVersion::V4).super_packet(&[1; 3000], 1000);
    let (udp, udp_packet) = Sample::udp(IpVersion::V4).super_packet(&[1; 3000], 1000);
    let (tcp6, _) = Sample::tcp(IpVersion::V6).super_packet(&[1; 3000], 1000);
    let refused = |header: VnetHeader, packet: &[u8]| {
        Segments::new(SuperPacket { header, packet }, 1400).err() == Some(Malformed::Offload)
    };
    assert!(refused(tcp6, &packet4));
    assert!(refused(udp, &packet4));
    assert!(refused(tcp4, &udp_packet));
    assert!(refused(VnetHeader { gso_size: 0, ..tcp4 }, &packet4));
    assert!(refused(VnetHeader { gso_type: GsoType::UdpFragments, ..udp }, &udp_packet));
    assert!(refused(VnetHeader { gso_type: GsoType::None, csum_start: 12, ..tcp4 }, &packet4));
    assert!(refused(VnetHeader { gso_type: GsoType::None, csum_offset: 3020, ..tcp4 }, &packet4));
}

#[test]
fn a_path_without_room_for_payload_is_refused() {
    let (header, packet) = Sample::tcp(IpVersion::V4).super_packet(&[1; 3000], 1000);
    let segments = Segments::new(SuperPacket { header, packet: &packet }, 40);
    assert_eq!(segments.err(), Some(Malformed::NoRoom));
}

#[test]
fn options_of_the_ip_header_go_with_each_packet() {
    let (mut header, mut packet) = Sample::tcp(IpVersion::V4).super_packet(&[1; 3000], 1000);
    packet.splice(20..20, [1, 1, 1, 0]);
    packet[0] = 0x46;
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    header.csum_start = 24;
    for segment in cut(&header, &packet, 1400) {
        assert_eq!(segment[20..24], [1, 1, 1, 0]);
        assert_eq!(checksum::sum(&segment[..24]), 0xffff);
        let view = IpView::parse(&segment).unwrap();
        let l4 = &segment[24..];
        let sum = checksum::pseudo(view.source, view.destination, view.protocol, l4.len());
        assert_eq!(checksum::fold(sum + u32::from(checksum::sum(l4))), 0xffff);
    }
}
