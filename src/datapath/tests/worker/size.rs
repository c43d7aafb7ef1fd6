//! Packets that are longer than the path.

use std::time::Duration;

use flatlan_datapath::DropReason;
use flatlan_packet::{Fragment, IpView, protocol};

use crate::{
    net::{PlainNet, ip},
    packet::{dont_fragment, super_packet, udp, udp_v6},
};

/// A pair whose direct path carries datagrams of 1300 bytes, and knows it.
fn narrow() -> PlainNet {
    let mut net = PlainNet::new(2);
    net.mtu = 1300;
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_secs(3));
    net.run_for(Duration::from_millis(20));
    for n in [0, 1] {
        net.nodes[n].tun.clear();
    }
    net
}

#[test]
fn a_packet_that_may_be_fragmented_arrives_in_fragments() {
    let mut net = narrow();
    net.send(0, &udp(ip(0), ip(1), 1372));
    net.run_for(Duration::from_millis(20));
    let views: Vec<IpView> = net.packets(1).iter().map(|packet| IpView::parse(packet).unwrap()).collect();
    assert_eq!(views.len(), 2);
    assert!(matches!(views[0].fragment, Fragment::First));
    assert!(matches!(views[1].fragment, Fragment::Later { more: false, .. }));
    assert_eq!(views.iter().map(|view| view.len - 20).sum::<usize>(), 1380);
    assert!(views.iter().all(|view| view.len + 32 <= 1300));
}

#[test]
fn a_packet_that_may_not_be_fragmented_is_answered_with_an_error() {
    let mut net = narrow();
    net.send(0, &dont_fragment(udp(ip(0), ip(1), 1372)));
    net.run_for(Duration::from_millis(20));
    assert!(net.nodes[1].tun.is_empty());
    assert_eq!(net.drops(0, DropReason::TooBig), 1);
    let packets = net.packets(0);
    let view = IpView::parse(packets[0]).unwrap();
    assert_eq!((view.protocol, packets[0][20], packets[0][21]), (protocol::ICMP, 3, 4));
    assert_eq!(view.destination, std::net::IpAddr::from(ip(0)));
    let mtu = usize::from(u16::from_be_bytes([packets[0][26], packets[0][27]]));
    assert!((1100..=1300 - 32).contains(&mtu), "{mtu}");
    net.nodes[0].tun.clear();
    net.send(0, &dont_fragment(udp(ip(0), ip(1), mtu - 28)));
    net.run_for(Duration::from_millis(20));
    assert_eq!(net.nodes[1].tun.len(), 1, "what the error promised is carried");
    (0..1000).for_each(|_| net.send(0, &dont_fragment(udp(ip(0), ip(1), 1372))));
    assert!(net.nodes[0].tun.len() < 100, "errors are few: {}", net.nodes[0].tun.len());
}

#[test]
fn tcp_is_cut_to_what_the_path_carries() {
    let mut net = narrow();
    let mut frame = super_packet(ip(0), ip(1), 20_000, 1340);
    net.send_super(0, &mut frame);
    net.run_for(Duration::from_millis(20));
    let bytes: usize = net.packets(1).iter().map(|packet| packet.len() - 40).sum();
    assert_eq!(bytes, 20_000);
    assert_eq!(net.drops(0, DropReason::TooBig), 0);
    let header = flatlan_packet::VnetHeader::parse(&net.nodes[1].tun[0].1).unwrap();
    assert!(usize::from(header.gso_size) + 40 + 32 <= 1300);
}

#[test]
fn what_ipv6_may_expect_of_any_path_is_carried_in_fragments_where_one_carries_less() {
    let mut net = PlainNet::new(2);
    net.mtu = 1250;
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_secs(4));
    net.run_for(Duration::from_millis(20));
    net.nodes[1].tun.clear();
    let whole = udp_v6(1, 2, 1280 - 48);
    net.send(0, &whole);
    net.run_for(Duration::from_millis(50));
    let (fragments, mut data) = (net.packets(1), Vec::new());
    for fragment in &fragments {
        assert_eq!((&fragment[8..40], fragment[6], fragment[40]), (&whole[8..40], 44, protocol::UDP));
        assert_eq!(fragments[0][44..48], fragment[44..48], "one identification");
        data.extend_from_slice(&fragment[48..]);
    }
    assert_eq!((fragments.len(), &data[..]), (2, &whole[40..]));
    assert_eq!(net.all_drops(0), []);
    net.nodes[0].tun.clear();
    net.send(0, &udp_v6(1, 2, 1352));
    let error = net.packets(0)[0];
    assert_eq!((error[6], error[40], &error[44..48]), (protocol::ICMPV6, 2, &1280u32.to_be_bytes()[..]));
}
