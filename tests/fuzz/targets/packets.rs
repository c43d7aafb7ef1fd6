//! What comes from the TUN and out of a peer's session: IP packets of any kind.

use std::net::{IpAddr, Ipv4Addr};

use flatlan_fuzz::{Fuzz, outcome, refusal, steps};
use flatlan_packet::{
    Coalescer, Fragments, Gro, IpView, MAX_PACKET, Segments, SegmentsMut, SuperPacket, VNET_LEN, VnetHeader, flow_hash,
    icmp_too_big, merge_ecn, mss_clamp,
};

#[test]
fn ip_view() {
    Fuzz::new("ip-view").seeds(packets()).run(|input| match IpView::parse(input) {
        Ok(view) => {
            let _ = flow_hash(&view);
            let mut copy = input.to_vec();
            let _ = merge_ecn(&mut copy, input.first().copied().unwrap_or_default());
            mss_clamp(&mut copy, 1200);
            // what was changed in place is as sound as before
            assert!(IpView::parse(&copy).is_ok());
            if let Some(error) = icmp_too_big(input, 1280, IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1))) {
                assert!(error.len() <= 1280 && IpView::parse(&error).is_ok());
            }
            outcome(&(view.dscp(), view.ecn(), view.source.is_ipv4(), view.protocol))
        }
        Err(error) => refusal(&error),
    });
}

#[test]
fn segments() {
    Fuzz::new("segments").seeds(super_packets()).longest(16_384).run(|input| {
        let [knob, rest @ ..] = input else { return 0 };
        let max = usize::from(*knob) * 8 + 68;
        let batch = match SuperPacket::parse(rest) {
            Ok(batch) => batch,
            Err(error) => return refusal(&error),
        };
        let mut out = vec![0; MAX_PACKET];
        let mut in_place = batch.packet.to_vec();
        let mut copied = Vec::new();
        match Segments::new(batch, max) {
            Ok(mut segments) => {
                let (count, longest) = (segments.len(), segments.longest());
                while let Some(len) = segments.write_next(&mut out) {
                    assert!(len <= longest && IpView::parse(&out[..len]).is_ok());
                    copied.push(out[..len].to_vec());
                }
                assert_eq!(copied.len(), count);
                // cutting in place gives the same packets
                let mut same = SegmentsMut::new(&batch.header, &mut in_place, max).unwrap();
                for packet in &copied {
                    assert_eq!(same.next_packet().as_deref(), Some(&packet[..]));
                }
                assert!(same.next_packet().is_none());
                outcome(&(batch.header.gso_type as u8, count.min(9)))
            }
            Err(error) => {
                assert!(SegmentsMut::new(&batch.header, &mut in_place, max).is_err());
                refusal(&error)
            }
        }
    });
}

#[test]
fn fragments() {
    Fuzz::new("fragments").seeds(packets()).run(|input| {
        let Some(mut fragments) = Fragments::new(input, 576, 1) else { return 0 };
        let mut out = vec![0; MAX_PACKET];
        let mut count = 0_u32;
        while let Some(len) = fragments.write_next(&mut out) {
            assert!(len <= 576);
            count += 1;
            assert!(count < 200, "fragments without end");
        }
        u64::from(count)
    });
}

#[test]
fn coalescer() {
    let seeds: Vec<Vec<u8>> =
        packets().map(|packet| [vec![0, packet.len() as u8], packet].concat().repeat(3)).collect();
    let mut coalescer = Coalescer::new(Gro::ALL);
    Fuzz::new("coalescer").seeds(seeds).run(|input| {
        let (mut given, mut written, mut joined) = (0, 0, 0_u64);
        let mut flush = |header: &VnetHeader, whole: &mut [u8]| {
            let packet = SuperPacket::parse(whole).expect("what is written can be read");
            assert_eq!(packet.header, *header);
            assert_eq!(whole.len(), VNET_LEN + packet.packet.len());
            written += packet.packet.len();
            joined += 1;
        };
        let mut packets = 0_u64;
        for (operation, bytes) in steps(input, 1) {
            let slot = coalescer.slot(bytes.len() + 16);
            if bytes.is_empty() || IpView::parse(bytes).is_err() || operation == 0xff {
                slot.fill(operation);
                coalescer.discard();
                continue;
            }
            slot[..bytes.len()].copy_from_slice(bytes);
            coalescer.commit(bytes.len(), &mut flush);
            given += bytes.len();
            packets += 1;
        }
        coalescer.flush(&mut flush);
        // headers are saved, bytes are never made
        assert!(written <= given, "{written} bytes of {given}");
        assert!(joined <= packets && (packets == 0) == (joined == 0));
        outcome(&(packets.min(9), joined.min(9)))
    });
}

#[test]
fn vnet_header() {
    Fuzz::new("vnet-header").seeds([vec![0; VNET_LEN]]).run(|input| match VnetHeader::parse(input) {
        Ok(header) => {
            assert_eq!(VnetHeader::parse(&header.to_bytes()).unwrap(), header);
            outcome(&(header.flags, header.gso_type as u8))
        }
        Err(error) => refusal(&error),
    });
}

/// Small packets of the usual kinds.
fn packets() -> impl Iterator<Item = Vec<u8>> {
    let (tcp, udp) = (tcp_header(), [0x9c, 0x40, 0, 53, 0, 24, 0, 0].to_vec());
    let bodies =
        [(6, [tcp, b"payload of a flow".to_vec()].concat()), (17, [udp, vec![7; 16]].concat()), (1, vec![8; 24])];
    let more = [(58, [vec![128, 0], vec![0; 6]].concat()), (44, [vec![6, 0, 0, 1], vec![0; 40]].concat())];
    bodies.into_iter().chain(more).flat_map(|(protocol, body)| [v4(protocol, &body), v6(protocol, &body)])
}

fn super_packets() -> impl Iterator<Item = Vec<u8>> {
    let payload = vec![9; 600];
    let tcp = [tcp_header(), payload.clone()].concat();
    let udp = [vec![0x9c, 0x40, 0, 53, (608_u16 >> 8) as u8, 608_u16 as u8, 0, 0], payload].concat();
    // flags, type, hdr_len, gso_size, csum_start, csum_offset
    let header = |kind: u8, headers: u8, start: u8, offset: u8| vec![1, kind, headers, 0, 200, 0, start, 0, offset, 0];
    [
        (header(1, 40, 20, 16), v4(6, &tcp)),
        (header(4, 60, 40, 16), v6(6, &tcp)),
        (header(5, 28, 20, 6), v4(17, &udp)),
        (header(5, 48, 40, 6), v6(17, &udp)),
        (vec![0; 10], v4(6, &tcp)),
    ]
    .into_iter()
    .map(|(header, packet)| [vec![180], header, packet].concat())
}

fn tcp_header() -> Vec<u8> {
    vec![0x9c, 0x40, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 1, 0xf5, 0, 0, 0, 0]
}

fn v4(protocol: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = (20 + body.len() as u16).to_be_bytes();
    let header = [0x45, 0, high, low, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    [&header[..], body].concat()
}

fn v6(protocol: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = (body.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, high, low, protocol, 64];
    for last in [1, 2] {
        packet.extend([0xfd; 15]);
        packet.push(last);
    }
    packet.extend_from_slice(body);
    packet
}
