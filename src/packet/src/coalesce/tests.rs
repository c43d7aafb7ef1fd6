use proptest::prelude::*;

use super::*;
use crate::sample::{Sample, is_sound};
use crate::{Segments, SuperPacket};

type Written = Vec<(VnetHeader, Vec<u8>)>;

/// Opens each packet into a slot, as a cipher would: all of the slot may be written.
fn join(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Written {
    let mut written = Vec::new();
    let mut flush = |header: &VnetHeader, whole: &mut [u8]| {
        assert_eq!(SuperPacket::parse(whole).unwrap().header, *header);
        written.push((*header, whole[VNET_LEN..].to_vec()));
    };
    for packet in packets {
        let slot = coalescer.slot(packet.len() + 32);
        assert_eq!(slot.len(), packet.len() + 32);
        slot.fill(0xee);
        slot[..packet.len()].copy_from_slice(packet);
        coalescer.commit(packet.len(), &mut flush);
    }
    coalescer.flush(&mut flush);
    written
}

fn cut(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(SuperPacket { header: *header, packet }, 65_535).unwrap();
    let mut out = vec![0; 70_000];
    std::iter::from_fn(|| segments.write_next(&mut out).map(|len| out[..len].to_vec())).collect()
}

/// What the kernel makes of all that was written.
fn unjoin(written: &Written) -> Vec<Vec<u8>> {
    written.iter().flat_map(|(header, packet)| cut(header, packet)).collect()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + (i >> 8)) as u8).collect()
}

fn samples() -> [Sample; 4] {
    [
        Sample { options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], ..Sample::tcp(IpVersion::V4) },
        Sample { options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], ..Sample::tcp(IpVersion::V6) },
        Sample::udp(IpVersion::V4),
        Sample::udp(IpVersion::V6),
    ]
}

#[test]
fn one_flow_becomes_the_super_packet_it_was() {
    for sample in samples() {
        for len in [2001, 30_000, 40_500] {
            let (header, packet) = sample.super_packet(&payload(len), 1000);
            let written = join(&mut Coalescer::new(Gro::ALL), &cut(&header, &packet));
            assert_eq!(written, [(header, packet)]);
        }
    }
}

#[test]
fn a_push_ends_a_super_packet_and_is_kept() {
    let sample = Sample { flags: 0x18, ..Sample::tcp(IpVersion::V4) };
    let (header, packet) = sample.super_packet(&payload(3000), 1000);
    let next = Sample { sequence: sample.sequence + 3000, id: sample.id + 3, ..Sample::tcp(IpVersion::V4) };
    let packets = [cut(&header, &packet), vec![next.packet(&[1; 1000])]].concat();
    let written = join(&mut Coalescer::new(Gro::ALL), &packets);
    assert_eq!(written.len(), 2);
    assert_eq!(written[0], (header, packet));
    assert_eq!(written[1], (VnetHeader::default(), packets[3].clone()));
}

#[test]
fn without_offloads_each_packet_is_handed_out_as_it_came() {
    for sample in samples() {
        let packets = sample.pieces(&payload(5000), 1000);
        let written = join(&mut Coalescer::new(Gro::NONE), &packets);
        let expected: Written = packets.into_iter().map(|packet| (VnetHeader::default(), packet)).collect();
        assert_eq!(written, expected);
    }
}

#[test]
fn each_offload_is_used_by_itself() {
    for (gro, expected) in [
        (Gro { tcp: Offload::On, udp: Offload::Off }, [1, 1, 5, 5]),
        (Gro { tcp: Offload::Off, udp: Offload::On }, [5, 5, 1, 1]),
    ] {
        let counts = samples().map(|sample| join(&mut Coalescer::new(gro), &sample.pieces(&payload(5000), 1000)).len());
        assert_eq!(counts, expected);
    }
}

#[test]
fn an_offload_taken_back_is_not_used_again() {
    let mut coalescer = Coalescer::new(Gro::ALL);
    let packets = Sample::udp(IpVersion::V4).pieces(&payload(5000), 1000);
    assert_eq!(join(&mut coalescer, &packets).len(), 1);
    coalescer.set_gro(Gro::NONE);
    assert_eq!(join(&mut coalescer, &packets).len(), 5);
}

#[test]
fn no_super_packet_is_longer_than_an_ip_packet_can_be() {
    for sample in samples() {
        let mut coalescer = Coalescer::new(Gro::ALL);
        let mut packets = Vec::new();
        for round in 0..4_u32 {
            let sample = Sample {
                sequence: sample.sequence.wrapping_add(round * 44 * 1360),
                id: sample.id.wrapping_add(round as u16 * 44),
                ..sample.clone()
            };
            packets.extend(sample.pieces(&payload(44 * 1360), 1360));
        }
        let written = join(&mut coalescer, &packets);
        assert!(written.len() <= 5, "{} writes", written.len());
        assert!(written.iter().all(|(_, packet)| packet.len() <= MAX_PACKET));
        assert_eq!(unjoin(&written), packets);
    }
}

#[test]
fn a_wrong_checksum_is_never_hidden() {
    for sample in samples() {
        let good = sample.pieces(&payload(6000), 1000);
        for broken in 0..6 {
            for at in [sample.headers() + 500, sample.l4() + 1] {
                let mut packets = good.clone();
                packets[broken][at] ^= 0x40;
                let written = join(&mut Coalescer::new(Gro::ALL), &packets);
                let alone = (VnetHeader::default(), packets[broken].clone());
                assert!(written.contains(&alone), "packet {broken} is handed out untouched");
                assert_eq!(unjoin(&written), packets);
            }
        }
    }
}

#[test]
fn a_wrong_ip_checksum_is_never_hidden() {
    let mut packets = Sample::tcp(IpVersion::V4).pieces(&payload(3000), 1000);
    packets[1][10] ^= 1;
    assert_eq!(join(&mut Coalescer::new(Gro::ALL), &packets).len(), 3);
}

#[test]
fn a_shorter_datagram_ends_a_super_packet_and_a_longer_one_starts_the_next() {
    let sample = |id| Sample { id, ..Sample::udp(IpVersion::V4) };
    let packets: Vec<_> =
        [100, 100, 50, 50, 100].iter().zip(1..).map(|(len, id)| sample(id).packet(&payload(*len))).collect();
    let written = join(&mut Coalescer::new(Gro::ALL), &packets);
    assert_eq!(written.iter().map(|(header, _)| header.gso_size).collect::<Vec<_>>(), [100, 0, 0]);
    assert_eq!(unjoin(&written), packets);
}

#[test]
fn a_udp_packet_without_checksum_stays_alone() {
    let mut packets = Sample::udp(IpVersion::V4).pieces(&payload(3000), 1000);
    for packet in &mut packets {
        packet[26..28].copy_from_slice(&[0, 0]);
    }
    assert_eq!(unjoin(&join(&mut Coalescer::new(Gro::ALL), &packets)), packets);
    assert_eq!(join(&mut Coalescer::new(Gro::ALL), &packets).len(), 3);
}

#[test]
fn tiny_datagrams_whose_slot_covers_the_headers_of_the_first_are_joined() {
    for sample in [Sample::udp(IpVersion::V4), Sample::udp(IpVersion::V6), Sample::tcp(IpVersion::V6)] {
        for size in 1..5 {
            let (header, packet) = sample.super_packet(&payload(40), size);
            assert_eq!(join(&mut Coalescer::new(Gro::ALL), &cut(&header, &packet)), [(header, packet)]);
        }
    }
}

#[test]
fn equal_ids_are_joined_only_where_they_mean_nothing() {
    let packets = |field: u8| -> Vec<Vec<u8>> {
        let packet = |mut packet: Vec<u8>| {
            packet[4..8].copy_from_slice(&[0, 0, field, 0]);
            packet[10..12].copy_from_slice(&[0, 0]);
            let sum = checksum::finish(checksum::sum(&packet[..20]).into());
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet
        };
        Sample::udp(IpVersion::V4).pieces(&payload(3000), 1000).into_iter().map(packet).collect()
    };
    assert!(packets(0).iter().all(|packet| is_sound(packet)));
    assert_eq!(join(&mut Coalescer::new(Gro::ALL), &packets(0x40)).len(), 1);
    assert_eq!(join(&mut Coalescer::new(Gro::ALL), &packets(0)).len(), 3);
}

#[test]
fn a_change_of_any_header_field_keeps_packets_apart() {
    for sample in samples() {
        // No id that differs from the next in one bit: equal ids would be joined too.
        let packets = Sample { id: 0x00ff, ..sample.clone() }.pieces(&payload(2000), 1000);
        let headers = sample.headers();
        for bit in 0..headers * 8 {
            let (at, mask) = (bit / 8, 1 << (bit % 8));
            let mut changed = packets.clone();
            changed[1][at] ^= mask;
            repair(&mut changed[1], sample.l4());
            let written = join(&mut Coalescer::new(Gro::ALL), &changed);
            let is_push = sample.protocol == protocol::TCP && at == sample.l4() + 13 && mask == tcp_flag::PSH;
            if !is_push && changed != packets {
                assert_eq!(written.len(), 2, "bit {bit}");
            }
            let out: Vec<_> = written
                .iter()
                .flat_map(
                    |(header, packet)| {
                        if header.gso_type == GsoType::None { vec![packet.clone()] } else { cut(header, packet) }
                    },
                )
                .collect();
            assert_eq!(out, changed, "bit {bit}");
        }
    }
}

/// Makes the checksums of a changed packet right again, where that is still possible.
fn repair(packet: &mut [u8], l4: usize) {
    if l4 == 20 {
        put_u16(packet, 10, 0);
        let sum = checksum::finish(checksum::sum(&packet[..20]).into());
        put_u16(packet, 10, sum);
    }
    let (protocol, addresses) = if l4 == 20 { (packet[9], 12..20) } else { (packet[6], 8..40) };
    let at = if protocol == protocol::TCP { l4 + 16 } else { l4 + 6 };
    put_u16(packet, at, 0);
    let sum = u32::from(checksum::sum(&packet[addresses]))
        + u32::from(protocol)
        + (packet.len() - l4) as u32
        + u32::from(checksum::sum(&packet[l4..]));
    put_u16(packet, at, checksum::finish(sum));
}

#[test]
fn a_discarded_slot_leaves_no_trace() {
    let mut coalescer = Coalescer::new(Gro::ALL);
    let packets = Sample::tcp(IpVersion::V4).pieces(&payload(3000), 1000);
    let mut written = Vec::new();
    let mut flush = |header: &VnetHeader, whole: &mut [u8]| written.push((*header, whole[VNET_LEN..].to_vec()));
    for packet in &packets {
        coalescer.slot(2000).fill(0xdd);
        coalescer.discard();
        coalescer.slot(1500).fill(0xcc);
        coalescer.slot(2000)[..packet.len()].copy_from_slice(packet);
        coalescer.commit(packet.len(), &mut flush);
        coalescer.slot(65).fill(0xbb);
        coalescer.commit(0, &mut flush);
        coalescer.slot(0);
        coalescer.commit(7, &mut flush);
    }
    coalescer.slot(9).fill(0xaa);
    coalescer.flush(&mut flush);
    coalescer.flush(&mut flush);
    coalescer.commit(100, &mut flush);
    assert_eq!(written.len(), 1);
    assert_eq!(unjoin(&written), packets);
}

#[test]
fn flows_that_alternate_for_ever_stay_inside_the_buffer() {
    let mut coalescer = Coalescer::new(Gro::ALL);
    let packets: Vec<_> = (0..500_u16)
        .map(|index| Sample { source_port: index, ..Sample::tcp(IpVersion::V4) }.packet(&payload(1360)))
        .collect();
    let written = join(&mut coalescer, &packets);
    assert_eq!(unjoin(&written), packets);
    let slot = coalescer.slot(usize::MAX).len();
    assert_eq!(slot, Coalescer::MAX_SLOT);
}

#[derive(Debug, Clone)]
enum Step {
    /// Packets of a flow, as many as `count`, of `size` bytes, from `flow`'s place on.
    Packets { flow: usize, count: usize, size: usize, push: bool },
    /// One packet, with a bit flipped anywhere.
    Damaged { flow: usize, size: usize, bit: usize },
    /// Any bytes.
    Noise(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1_usize..60, Just(1000_usize), 1..1500_usize];
    prop_oneof![
        6 => (0_usize..4, 1_usize..70, size.clone(), any::<bool>())
            .prop_map(|(flow, count, size, push)| Step::Packets { flow, count, size, push }),
        1 => (0_usize..4, size, any::<usize>()).prop_map(|(flow, size, bit)| Step::Damaged { flow, size, bit }),
        1 => proptest::collection::vec(any::<u8>(), 1..200).prop_map(Step::Noise),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_joined_comes_apart_as_it_was(steps in proptest::collection::vec(step(), 1..30), gro in 0_u8..4) {
        let on = |bit| if gro & bit == 0 { Offload::Off } else { Offload::On };
        let mut flows = samples();
        let mut packets = Vec::new();
        for step in steps {
            match step {
                Step::Packets { flow, count, size, push } => {
                    let sample = &mut flows[flow];
                    sample.flags = if push { 0x18 } else { 0x10 };
                    packets.extend(sample.pieces(&payload(count * size), size));
                    sample.sequence = sample.sequence.wrapping_add((count * size) as u32);
                    sample.id = sample.id.wrapping_add(count as u16);
                }
                Step::Damaged { flow, size, bit } => {
                    let mut packet = flows[flow].packet(&payload(size));
                    let bit = bit % (packet.len() * 8);
                    packet[bit / 8] ^= 1 << (bit % 8);
                    packets.push(packet);
                }
                Step::Noise(bytes) => packets.push(bytes),
            }
        }
        let written = join(&mut Coalescer::new(Gro { tcp: on(1), udp: on(2) }), &packets);
        let out: Vec<_> = written.iter().flat_map(|(header, packet)| {
            if header.gso_type == GsoType::None { vec![packet.clone()] } else { cut(header, packet) }
        }).collect();
        prop_assert_eq!(out, packets);
    }
}
