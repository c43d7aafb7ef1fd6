//! What is never delivered, whoever sealed it.

use std::time::Duration;

use flatlan_datapath::DropReason;
use flatlan_packet::{IpView, VNET_LEN, protocol};

use crate::{
    net::{BoringNet, PlainNet, cheat_snapshot, ip, snapshot_but},
    packet::{dont_fragment, tcp, udp, v4, with_class},
};

fn pair() -> PlainNet {
    let mut net = PlainNet::new(3);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(200));
    for n in [0, 1] {
        net.nodes[n].tun.clear();
    }
    net
}

/// Node 0 believes that it owns everything that it sends from: a member that cheats.
fn cheat(net: &mut PlainNet) {
    net.nodes[0].worker.set_snapshot(cheat_snapshot(), net.now);
}

#[test]
fn a_source_that_is_not_ours_does_not_leave() {
    let mut net = pair();
    net.send(0, &udp(ip(2), ip(1), 20));
    net.send(0, &udp([172, 16, 0, 1], ip(1), 20));
    net.run_for(Duration::from_millis(50));
    assert_eq!(net.drops(0, DropReason::SourceNotOwned), 2);
    assert!(net.nodes[1].tun.is_empty());
}

#[test]
fn a_source_that_is_not_the_senders_is_not_delivered() {
    let mut net = pair();
    cheat(&mut net);
    net.send(0, &udp(ip(2), ip(1), 20));
    net.send(0, &udp([10, 3, 0, 9], ip(1), 20));
    net.run_for(Duration::from_millis(50));
    assert_eq!(net.drops(1, DropReason::SourceNotOwned), 2);
    assert!(net.nodes[1].tun.is_empty());
    assert_eq!(net.drops(0, DropReason::SourceNotOwned), 0);
}

#[test]
fn an_address_that_is_taken_from_a_member_is_refused_from_its_next_packet_on() {
    let mut net = pair();
    for (n, way) in [(1, "in"), (0, "out")] {
        for _ in 0..2 {
            net.send(0, &udp([10, 1, 0, 9], ip(1), 20));
            net.run_for(Duration::from_millis(20));
        }
        assert_eq!(net.nodes[1].tun.len(), 2, "{way}");
        net.nodes[n].worker.set_snapshot(snapshot_but(2, n, &[0, 1, 2], &[], "10.1.0.0/16"), net.now);
        net.send(0, &udp([10, 1, 0, 9], ip(1), 20));
        net.run_for(Duration::from_millis(20));
        assert_eq!((net.drops(n, DropReason::SourceNotOwned), net.nodes[1].tun.len()), (1, 2), "{way}");
        net.nodes[n].worker.set_snapshot(snapshot_but(3, n, &[0, 1, 2], &[], ""), net.now);
        net.nodes[1].tun.clear();
    }
}

#[test]
fn a_destination_that_is_not_the_receivers_is_not_delivered() {
    let mut net = pair();
    cheat(&mut net);
    for destination in [[192, 168, 1, 1], [8, 8, 8, 8]] {
        net.send(0, &udp(ip(0), destination, 20));
    }
    net.run_for(Duration::from_millis(50));
    assert_eq!(net.drops(1, DropReason::NotForUs), 2);
    assert!(net.nodes[1].tun.is_empty());
}

#[test]
fn addresses_of_one_machine_or_link_are_never_carried() {
    let never = [[127, 0, 0, 1], [169, 254, 169, 254], [224, 0, 0, 1], [255, 255, 255, 255], [0, 0, 0, 0]];
    let mut net = pair();
    never.iter().for_each(|destination| net.send(0, &udp(ip(0), *destination, 20)));
    assert_eq!(net.drops(0, DropReason::BadDestination), 5);
    // also where a prefix holds them
    cheat(&mut net);
    never.iter().for_each(|destination| net.send(0, &udp(ip(0), *destination, 20)));
    assert_eq!(net.drops(0, DropReason::BadDestination), 10);
    net.send(0, &udp([127, 0, 0, 1], ip(1), 20));
    assert_eq!(net.drops(0, DropReason::SourceNotOwned), 1);
    net.run_for(Duration::from_millis(50));
    assert!(net.nodes[1].tun.is_empty());
}

#[test]
fn our_own_address_nobodys_and_a_source_route_are_refused() {
    let mut net = pair();
    net.send(0, &udp(ip(0), ip(0), 20));
    assert_eq!(net.drops(0, DropReason::BadDestination), 1);
    net.send(0, &udp(ip(0), [10, 99, 0, 1], 20));
    assert_eq!(net.drops(0, DropReason::NoMember), 1);
    let mut routed = v4(ip(0), ip(1), protocol::ICMP, &[0; 12]);
    routed[0] = 0x47;
    routed[20..23].copy_from_slice(&[131, 7, 4]);
    assert!(IpView::parse(&routed).unwrap().source_routed);
    net.send(0, &routed);
    assert_eq!(net.drops(0, DropReason::Malformed), 1);
}

#[test]
fn a_prefix_behind_a_peer_is_reached_and_answers() {
    let mut net = pair();
    net.send(0, &udp(ip(0), [10, 2, 7, 7], 20));
    net.send(1, &udp([10, 2, 7, 7], ip(0), 20));
    net.run_for(Duration::from_millis(50));
    assert_eq!((net.nodes[0].tun.len(), net.nodes[1].tun.len()), (1, 1));
}

#[test]
fn every_carrier_of_a_shared_prefix_may_send_from_it_and_the_first_gets_what_is_for_it() {
    let mut net = PlainNet::new(3);
    net.introduce(0, 1);
    net.introduce(0, 2);
    for carrier in [1, 2] {
        net.send(carrier, &udp([10, 200, 0, 7], ip(0), 20));
    }
    net.run_for(Duration::from_secs(1));
    assert_eq!((net.drops(0, DropReason::SourceNotOwned), net.nodes[0].tun.len()), (0, 2));
    net.send(0, &udp(ip(0), [10, 200, 0, 7], 20));
    net.run_for(Duration::from_millis(50));
    assert_eq!((net.nodes[1].tun.len(), net.nodes[2].tun.len()), (1, 0));
}

#[test]
fn congestion_marks_travel_outside_and_come_back_in() {
    let mut net = pair();
    let before = net.nodes[0].sends.len();
    net.send(0, &with_class(udp(ip(0), ip(1), 20), 2));
    assert!(net.nodes[0].sends[before..].iter().any(|(.., ecn)| *ecn == 2));
    net.run_for(Duration::from_millis(20));
    net.congested = true;
    net.send(0, &with_class(udp(ip(0), ip(1), 21), 2));
    net.send(0, &udp(ip(0), ip(1), 22));
    net.run_for(Duration::from_millis(20));
    let seen: Vec<u8> = net.packets(1).iter().map(|packet| IpView::parse(packet).unwrap().ecn()).collect();
    assert_eq!(seen, [2, 3, 0]);
    assert!(net.packets(1).iter().all(|packet| crate::packet::is_sound(packet)));
}

#[test]
fn the_datagram_has_the_traffic_class_of_its_packet_and_the_packet_keeps_its_own() {
    const VOICE: u8 = 0xb8;
    let mut net = pair();
    let before = net.nodes[0].sends.len();
    net.send(0, &with_class(udp(ip(0), ip(1), 20), VOICE | 2));
    net.send(0, &with_class(dont_fragment(udp(ip(0), ip(1), 20)), 0));
    let long = with_class(udp(ip(0), ip(1), 1372), VOICE);
    net.send(0, &long);
    let classes: Vec<u8> = net.nodes[0].sends[before..].iter().map(|(.., class)| *class).collect();
    assert_eq!(classes, [VOICE | 2, 0, VOICE]);
    net.run_for(Duration::from_millis(20));
    net.congested = true;
    net.send(0, &with_class(udp(ip(0), ip(1), 20), VOICE | 1));
    net.run_for(Duration::from_millis(20));
    let seen: Vec<u8> = net.packets(1).iter().map(|packet| IpView::parse(packet).unwrap().traffic_class).collect();
    assert_eq!(seen, [VOICE | 2, 0, VOICE, VOICE | 3]);
}

#[test]
fn a_mark_that_the_sender_does_not_understand_is_a_loss() {
    let mut net = pair();
    net.send(0, &udp(ip(0), ip(1), 22));
    net.run_until(Duration::from_millis(20), |net| !net.nodes[1].tun.is_empty());
    let before = net.drops(1, DropReason::Congestion);
    net.send(0, &udp(ip(0), ip(1), 23));
    let arrival = net.marked(3);
    net.arrive(1, &arrival);
    assert_eq!(net.drops(1, DropReason::Congestion), before + 1);
}

#[test]
fn syns_are_clamped_in_both_directions_when_a_path_is_narrow() {
    let mut net = PlainNet::new(2);
    net.mtu = 1300;
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_secs(3));
    net.run_for(Duration::from_millis(20));
    net.nodes[1].tun.clear();
    net.send(0, &tcp(ip(0), ip(1), 2, &[2, 4, 0x05, 0xb4], &[]));
    net.run_for(Duration::from_millis(20));
    let packets = net.packets(1);
    let mss = u16::from_be_bytes([packets[0][42], packets[0][43]]);
    assert!((1100..1300 - 32 - 40).contains(&mss), "{mss}");
    assert!(crate::packet::is_sound(packets[0]));
}

#[test]
fn a_tunnel_of_boringtun_judges_alike() {
    let mut net = BoringNet::new(2);
    net.introduce(0, 1);
    net.send(0, &udp(ip(0), ip(1), 20));
    net.run_for(Duration::from_millis(50));
    net.nodes[0].worker.set_snapshot(cheat_snapshot(), net.now);
    net.nodes[1].tun.clear();
    net.send(0, &udp([10, 3, 0, 9], ip(1), 20));
    net.run_for(Duration::from_millis(50));
    assert_eq!(net.drops(1, DropReason::SourceNotOwned), 1);
    assert!(net.nodes[1].tun.iter().all(|(_, packet)| packet.len() < VNET_LEN));
}
