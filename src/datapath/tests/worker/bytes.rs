//! Bytes that nobody of ours made.

use std::time::Duration;

use flatlan_types::HubSlot;
use proptest::prelude::*;

use crate::net::{Arrival, PlainNet, in_label, ip};

/// Two nodes with sessions, and a hub.
fn pair() -> PlainNet {
    let mut net = PlainNet::new(2);
    let hub = net.add_hub();
    net.introduce(0, 1);
    net.relay(0, 1, hub);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(200));
    net
}

/// Random bytes, often behind a first byte and a header that lead further in.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    let kind = prop::sample::select(vec![1u8, 2, 3, 4, 0x10, 0x11, 0x20, 0x21, 0x22]);
    let plain = (kind, bytes()).prop_map(|(kind, bytes)| [vec![kind, 0, 0, 0], bytes].concat());
    let labelled = plain.clone().prop_map(|inner| {
        let header = flatlan_relay::frame::Header::new(in_label(0, 0, 1)).to_bytes();
        [header.to_vec(), inner].concat()
    });
    prop_oneof![bytes(), plain, labelled]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_from_the_network_do_any_harm(datagrams in prop::collection::vec((datagram(), 1usize..200), 1..60)) {
        let mut net = pair();
        let before = (net.nodes[1].tun.len(), net.nodes[1].events.len());
        let sources = [net.nodes[0].at, net.hubs[0].at, "203.0.113.1:9".parse::<std::net::SocketAddr>().unwrap().into()];
        for (n, (contents, stride)) in datagrams.iter().enumerate() {
            let from = sources[n % 3];
            net.arrive(1, &Arrival::Udp { from, contents: contents.clone(), stride: *stride, ecn: n as u8 });
            let mut packed = Vec::new();
            flatlan_relay::frame::pack(&mut packed, contents).unwrap();
            net.arrive(1, &Arrival::Stream { hub: HubSlot(0), packed });
            net.arrive(1, &Arrival::Stream { hub: HubSlot(9), packed: contents.clone() });
        }
        prop_assert_eq!((net.nodes[1].tun.len(), net.nodes[1].events.len()), before);
        let gap = net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(200));
        prop_assert!(gap < Duration::from_millis(50), "{:?}", gap);
    }

    #[test]
    fn a_bit_flipped_on_the_way_is_a_loss_and_nothing_else(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut net = pair();
        let tape: Vec<Arrival> = net.tape.iter().filter(|(n, _)| *n == 1).map(|(_, arrival)| arrival.clone()).collect();
        let before = net.nodes[1].tun.len();
        for arrival in tape.iter().rev().take(30) {
            if let Arrival::Udp { from, contents, stride, ecn } = arrival {
                let mut contents = contents.clone();
                let at = at.index(contents.len());
                contents[at] ^= 1 << bit;
                net.arrive(1, &Arrival::Udp { from: *from, contents, stride: *stride, ecn: *ecn });
            }
        }
        prop_assert_eq!(net.nodes[1].tun.len(), before);
    }

    #[test]
    fn no_bytes_from_the_tun_do_any_harm(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 1..60)) {
        let mut net = pair();
        for frame in &frames {
            net.send_super(0, &mut frame.clone());
            // and some that pass for packets of ours
            let mut frame = frame.clone();
            if frame.len() >= 40 {
                frame[1] &= 7;
                frame[10] = 0x45;
                let len = (frame.len() - 10) as u16;
                frame[12..14].copy_from_slice(&len.to_be_bytes());
                frame[22..26].copy_from_slice(&ip(0));
                frame[26..30].copy_from_slice(&ip(1));
                net.send_super(0, &mut frame);
            }
        }
        net.run_for(Duration::from_millis(50));
        let gap = net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(200));
        prop_assert!(gap < Duration::from_millis(50), "{:?}", gap);
    }
}
