//! Sessions come up, start anew, and end.

use std::{sync::Arc, time::Duration};

use flatlan_datapath::{Command, DropReason, Event, NewSessions};
use flatlan_packet::VnetHeader;
use flatlan_types::{BootEpoch, Endpoint};
use flatlan_wg::{Engine, Tunnel};

use crate::{
    net::{Arrival, BoringNet, Net, PlainNet, in_label, ip, slot, snapshot, without},
    packet::{is_sound, super_packet, udp},
};

/// The first packet waits for the session and arrives; the answer too.
fn ping<T: Tunnel>(mut net: Net<Engine<T>>) {
    net.introduce(0, 1);
    net.send(0, &udp(ip(0), ip(1), 56));
    let took = net.run_until(Duration::from_secs(2), |net| !net.nodes[1].tun.is_empty()).expect("ping arrives");
    assert!(took < Duration::from_millis(50), "{took:?}");
    assert_eq!(net.packets(1), [udp(ip(0), ip(1), 56)]);
    net.send(1, &udp(ip(1), ip(0), 56));
    net.run_for(Duration::from_millis(20));
    assert_eq!(net.packets(0), [udp(ip(1), ip(0), 56)]);
    assert_eq!((net.all_drops(0), net.all_drops(1)), (vec![], vec![]));
}

#[test]
fn the_first_packet_waits_for_its_session_and_arrives() {
    ping(PlainNet::new(2));
}

#[test]
fn the_first_packet_waits_for_its_session_and_arrives_under_boringtun() {
    ping(BoringNet::new(2));
}

/// One super-packet goes in, one comes out.
fn super_packets<T: Tunnel>(mut net: Net<Engine<T>>) {
    net.introduce(0, 1);
    net.send(0, &udp(ip(0), ip(1), 56));
    net.run_for(Duration::from_millis(100));
    net.nodes[1].tun.clear();
    let before = net.nodes[0].sends.len();
    let mut frame = super_packet(ip(0), ip(1), 40_000, 1340);
    let original = frame.clone();
    net.send_super(0, &mut frame);
    net.run_for(Duration::from_millis(20));
    let data: Vec<usize> =
        net.nodes[0].sends[before..].iter().map(|(_, count, ..)| *count).filter(|c| *c > 1).collect();
    assert_eq!(data, [30], "all segments leave in one send");
    assert_eq!(net.nodes[1].tun.len(), 1, "and reach the TUN in one write");
    let written = &net.nodes[1].tun[0].1;
    let header = VnetHeader::parse(written).unwrap();
    assert_eq!((header.gso_size, header.needs_checksum()), (1340, true));
    assert_eq!(written.len(), original.len());
    assert_eq!(written[10 + 40..], original[10 + 40..]);
    assert_eq!(net.nodes[1].worker.stats().rx_packets, 31);
}

#[test]
fn a_super_packet_crosses_both_workers_in_one_piece() {
    super_packets(PlainNet::new(2));
}

#[test]
fn a_super_packet_crosses_both_workers_in_one_piece_under_boringtun() {
    super_packets(BoringNet::new(2));
}

/// Both ends begin at the same moment.
fn simultaneous<T: Tunnel>(mut net: Net<Engine<T>>) {
    net.introduce(0, 1);
    net.run_for(Duration::from_millis(50));
    net.send(0, &udp(ip(0), ip(1), 56));
    net.send(1, &udp(ip(1), ip(0), 56));
    net.run_for(Duration::from_millis(400));
    assert_eq!((net.nodes[0].tun.len(), net.nodes[1].tun.len()), (1, 1));
    let gap = net.chat(0, 1, Duration::from_millis(10), Duration::from_secs(1));
    assert!(gap < Duration::from_millis(30), "{gap:?}");
}

#[test]
fn both_ends_may_begin_at_the_same_moment() {
    simultaneous(PlainNet::new(2));
}

#[test]
fn both_ends_may_begin_at_the_same_moment_under_boringtun() {
    simultaneous(BoringNet::new(2));
}

#[test]
fn a_session_comes_up_with_a_third_of_all_datagrams_lost() {
    let mut net = PlainNet::new(2);
    net.loss = 3;
    net.introduce(0, 1);
    for _ in 0..50 {
        net.send(0, &udp(ip(0), ip(1), 56));
        net.run_for(Duration::from_millis(100));
    }
    assert!(net.nodes[1].tun.len() > 15, "{} of 50", net.nodes[1].tun.len());
}

/// A node that starts again is recovered by its greater epoch, in the middle of traffic.
fn restart<T: Tunnel>(mut net: Net<Engine<T>>) {
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(500));
    net.restart(1);
    net.introduce(0, 1);
    net.nodes[1].tun.clear();
    let end = net.now + Duration::from_secs(2);
    let start = net.now;
    while net.nodes[1].tun.is_empty() && net.now < end {
        net.send(0, &udp(ip(0), ip(1), 100));
        net.run_for(Duration::from_millis(10));
    }
    let took = net.now - start;
    assert!(took < Duration::from_millis(100), "{took:?}");
    assert!(net.has(0, |e| *e == Event::PeerEpoch { peer: slot(1), epoch: BootEpoch(2) }));
}

#[test]
fn a_peer_that_starts_again_is_recovered_at_once() {
    restart(PlainNet::new(2));
}

#[test]
fn a_peer_that_starts_again_is_recovered_at_once_under_boringtun() {
    restart(BoringNet::new(2));
}

#[test]
fn our_own_greater_epoch_starts_every_session_anew() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    net.command(0, Command::SetEpoch { epoch: BootEpoch(9) });
    let gap = net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(500));
    assert!(gap < Duration::from_millis(100), "{gap:?}");
    assert!(net.has(1, |e| *e == Event::PeerEpoch { peer: slot(0), epoch: BootEpoch(9) }));
}

#[test]
fn what_an_earlier_life_says_is_dropped_and_told() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    let old: Vec<Arrival> = net.tape.iter().filter(|(n, _)| *n == 0).map(|(_, arrival)| arrival.clone()).collect();
    net.restart(1);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    let before = net.nodes[0].tun.len();
    net.nodes[0].events.clear();
    old.iter().for_each(|arrival| net.arrive(0, arrival));
    assert!(net.drops(0, DropReason::StaleEpoch) > 0);
    assert_eq!(net.nodes[0].tun.len(), before);
    assert!(net.has(0, |e| *e == Event::StaleEpoch { peer: slot(1) }));
    let gap = net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    assert!(gap < Duration::from_millis(50), "{gap:?}");
}

/// Both start again, and somebody replays what the other said in its earlier life: with what it remembers, a
/// node knows it for what it is before the other has spoken.
#[test]
fn what_an_earlier_life_said_is_dropped_by_a_node_that_started_again_and_remembers_it() {
    let replay = |remembers: bool| {
        let mut net = PlainNet::new(2);
        net.introduce(0, 1);
        net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
        let old: Vec<Arrival> = net.tape.iter().filter(|(n, _)| *n == 0).map(|(_, arrival)| arrival.clone()).collect();
        net.restart(0);
        net.nodes[0].events.clear();
        if remembers {
            net.command(0, Command::SetPeerEpoch { peer: slot(1), epoch: BootEpoch(2) });
        }
        old.iter().for_each(|arrival| net.arrive(0, arrival));
        let believed = net.has(0, |e| *e == Event::PeerEpoch { peer: slot(1), epoch: BootEpoch(1) });
        net.restart(1);
        net.introduce(0, 1);
        let gap = net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
        assert!(gap < Duration::from_millis(100), "{gap:?}");
        believed
    };
    assert!(!replay(true));
    assert!(replay(false), "the test cannot fail");
}

#[test]
fn replayed_datagrams_change_nothing() {
    let mut net = PlainNet::new(2);
    let hub = net.add_hub();
    net.introduce(0, 1);
    net.relay(0, 1, hub);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(500));
    net.run_for(Duration::from_millis(20));
    let tape: Vec<(usize, Arrival)> = net.tape.clone();
    let (tun, events) = ([0, 1].map(|n| net.nodes[n].tun.len()), [0, 1].map(|n| net.nodes[n].events.len()));
    let sent = [0, 1].map(|n| net.nodes[n].sends.len());
    for (n, arrival) in tape.iter().chain(tape.iter().rev()) {
        // from its own source, and from somebody else's
        net.arrive(*n, arrival);
        if let Arrival::Udp { contents, stride, ecn, .. } = arrival {
            let from = Endpoint::new(([203, 0, 113, 9], 4000).into());
            net.arrive(*n, &Arrival::Udp { from, contents: contents.clone(), stride: *stride, ecn: *ecn });
        }
    }
    assert_eq!([0, 1].map(|n| net.nodes[n].tun.len()), tun);
    assert_eq!([0, 1].map(|n| net.nodes[n].events.len()), events);
    assert_eq!([0, 1].map(|n| net.nodes[n].sends.len()), sent, "nobody is answered");
    for n in [0, 1] {
        assert!(net.drops(n, DropReason::Replayed) > 50);
        assert_eq!(net.nodes[n].worker.report(net.now)[0].paths.len(), 3, "no path was learned");
    }
}

#[test]
fn a_revoked_member_neither_sends_nor_receives_from_that_moment() {
    let mut net = PlainNet::new(3);
    net.introduce(0, 1);
    net.introduce(1, 2);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(200));
    net.chat(2, 1, Duration::from_millis(10), Duration::from_millis(200));
    // sealed before, arrives after
    net.send(0, &udp(ip(0), ip(1), 300));
    net.nodes[1].tun.clear();
    net.nodes[1].worker.set_snapshot(snapshot(2, 1, &without(0), &[]), net.now);
    net.run_for(Duration::from_secs(3));
    assert!(net.nodes[1].tun.is_empty());
    net.nodes[0].tun.clear();
    net.send(1, &udp(ip(1), ip(0), 300));
    net.run_for(Duration::from_secs(1));
    assert!(net.nodes[0].tun.is_empty());
    assert_eq!(net.drops(1, DropReason::NoMember), 1);
    assert!(net.drops(1, DropReason::Unknown) > 0);
    let gap = net.chat(2, 1, Duration::from_millis(10), Duration::from_millis(500));
    assert!(gap < Duration::from_millis(50), "the others are not disturbed: {gap:?}");
    // back again: everything is made anew
    net.nodes[1].worker.set_snapshot(snapshot(3, 1, &[0, 1, 2], &[]), net.now);
    net.introduce(0, 1);
    net.nodes[1].tun.clear();
    let gap = net.chat(0, 1, Duration::from_millis(10), Duration::from_secs(1));
    assert!(gap < Duration::from_millis(300), "met again: {gap:?}");
}

#[test]
fn a_labelled_datagram_finds_its_way_over_a_hub_and_an_unknown_label_is_counted() {
    let mut net = PlainNet::new(2);
    net.direct = false;
    let hub = net.add_hub();
    net.relay(0, 1, hub);
    net.send(0, &udp(ip(0), ip(1), 56));
    net.run_until(Duration::from_secs(1), |net| !net.nodes[1].tun.is_empty()).expect("relayed");
    assert!(net.has(0, |e| matches!(e, Event::LegUp { .. })));
    let mut frame = super_packet(ip(0), ip(1), 40_000, 1340);
    net.nodes[1].tun.clear();
    net.send_super(0, &mut frame);
    net.run_for(Duration::from_millis(20));
    assert_eq!(net.nodes[1].tun.len(), 1, "a relayed batch is written in one piece too");
    net.command(1, Command::RemoveInLabel { label: in_label(hub, 0, 1) });
    net.nodes[1].tun.clear();
    net.send(0, &udp(ip(0), ip(1), 56));
    net.run_for(Duration::from_millis(20));
    assert!(net.nodes[1].tun.is_empty());
    assert!(net.drops(1, DropReason::Unknown) > 0);
}

#[test]
fn a_label_serves_only_the_hub_that_it_was_given_to() {
    let mut net = PlainNet::new(2);
    net.direct = false;
    let (one, _two) = (net.add_hub(), net.add_hub());
    net.relay(0, 1, one);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    let other = net.hubs[1].at;
    let data = net.tape.iter().rev().find_map(|(n, arrival)| match arrival {
        Arrival::Udp { contents, stride, .. } if *n == 1 && contents[0] == 0x20 => Some((contents.clone(), *stride)),
        Arrival::Udp { .. } | Arrival::Stream { .. } => None,
    });
    let (contents, stride) = data.unwrap();
    let before = net.drops(1, DropReason::Unknown);
    for from in [other, net.nodes[0].at] {
        net.arrive(1, &Arrival::Udp { from, contents: contents.clone(), stride, ecn: 0 });
    }
    assert!(net.drops(1, DropReason::Unknown) >= before + 2);
}

#[test]
fn a_lost_session_is_made_anew_where_the_sender_is_known() {
    for relayed in [false, true] {
        let mut net = PlainNet::new(2);
        let hub = net.add_hub();
        if relayed {
            net.direct = false;
            net.relay(0, 1, hub);
        } else {
            net.introduce(0, 1);
        }
        net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(500));
        // node 1 forgets, node 0 does not know
        net.nodes[1].worker.set_snapshot(snapshot(2, 1, &[1], &[]), net.now);
        net.nodes[1].worker.set_snapshot(snapshot(3, 1, &[0, 1], &[]), net.now);
        if relayed {
            net.relay(0, 1, hub);
        } else {
            net.introduce(0, 1);
        }
        net.nodes[1].tun.clear();
        let start = net.now;
        while net.nodes[1].tun.is_empty() {
            assert!(net.now - start < Duration::from_millis(300), "relayed {relayed}");
            net.send(0, &udp(ip(0), ip(1), 100));
            net.run_for(Duration::from_millis(10));
        }
    }
}

#[test]
fn packets_for_nobody_wait_shortly_and_few() {
    let mut net = PlainNet::new(3);
    for _ in 0..100 {
        net.send(0, &udp(ip(0), ip(1), 1000));
    }
    assert_eq!(net.drops(0, DropReason::NoSession), 68);
    assert!(net.has(0, |e| *e == Event::NeedPath { peer: slot(1) }));
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.drops(0, DropReason::NoSession), 100);
    net.introduce(0, 1);
    net.run_for(Duration::from_secs(1));
    assert!(net.nodes[1].tun.is_empty(), "nothing old is delivered");
}

#[test]
fn a_peer_that_is_away_is_asked_less_and_less() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    net.nodes[1].mute = true;
    net.command(0, Command::SetEpoch { epoch: BootEpoch(2) });
    let before = net.nodes[0].sends.len();
    for _ in 0..300 {
        net.send(0, &udp(ip(0), ip(1), 100));
        net.run_for(Duration::from_millis(100));
    }
    let sealed = flatlan_wg::sealed::SEALED_HANDSHAKE_MAX;
    let initiations = net.nodes[0].sends[before..].iter().filter(|(_, _, size, _)| *size == sealed).count();
    assert!((5..16).contains(&initiations), "{initiations} in 30 s");
    assert!(net.has(0, |e| *e == Event::NeedPath { peer: slot(1) }));
}

#[test]
fn an_idle_pair_drops_its_sessions_and_comes_back_with_the_first_packet() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    net.run_for(Duration::from_secs(220));
    assert!(net.has(0, |e| *e == Event::Idle { peer: slot(1) }));
    let sends = net.nodes[0].sends.len();
    net.run_for(Duration::from_secs(60));
    assert_eq!(net.nodes[0].sends.len(), sends, "nothing is sent for an idle pair");
    net.nodes[1].tun.clear();
    net.send(0, &udp(ip(0), ip(1), 100));
    let took = net.run_until(Duration::from_secs(2), |net| !net.nodes[1].tun.is_empty()).expect("back");
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn a_peer_that_floods_messages_crowds_nobody_out() {
    let mut net = PlainNet::new(3);
    net.introduce(0, 1);
    net.introduce(0, 2);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(100));
    net.chat(0, 2, Duration::from_millis(10), Duration::from_millis(100));
    let message = |bytes: &[u8]| Command::SendMessage { peer: slot(0), bytes: bytes.to_vec(), path: None };
    // the control machine of 0 does not take its events meanwhile
    net.nodes[0].held = true;
    for _ in 0..500 {
        net.command(1, message(&[7; 500]));
    }
    net.command(2, message(b"hello"));
    net.run_for(Duration::from_millis(50));
    net.nodes[0].held = false;
    net.with(0, |_, _, _| {});
    let of = |peer| {
        net.nodes[0].events.iter().filter(move |e| matches!(e, Event::PeerMessage { peer: of, .. } if *of == peer))
    };
    assert_eq!(of(slot(1)).count(), 64);
    assert_eq!(of(slot(2)).count(), 1);
    assert_eq!(net.drops(0, DropReason::RateLimited), 500 - 64);
}

#[test]
fn a_recorded_initiation_is_a_replay_after_an_idle_time_too() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(10), Duration::from_millis(300));
    let sealed = |arrival: &Arrival| matches!(arrival, Arrival::Udp { contents, .. } if contents[0] == 0x11);
    let recorded: Vec<(usize, Arrival)> = net.tape.iter().filter(|(_, arrival)| sealed(arrival)).cloned().collect();
    assert!(recorded.len() >= 4, "two lanes, there and back");
    net.run_for(Duration::from_secs(220));
    for n in [0, 1] {
        assert!(net.has(n, |e| matches!(e, Event::Idle { .. })));
        net.nodes[n].events.clear();
    }
    let sends = |net: &PlainNet| net.nodes.iter().map(|node| node.sends.len()).sum::<usize>();
    let replays = |net: &PlainNet| net.drops(0, DropReason::Replayed) + net.drops(1, DropReason::Replayed);
    let before = (sends(&net), replays(&net));
    for (n, arrival) in &recorded {
        net.arrive(*n, arrival);
    }
    net.run_for(Duration::from_secs(10));
    assert_eq!(sends(&net), before.0, "nothing is answered");
    assert_eq!(replays(&net), before.1 + 2, "of each lane one initiation");
    assert!((0..2).all(|n| !net.has(n, |e| matches!(e, Event::SessionUp { .. }))));
}

#[test]
fn a_message_to_a_peer_arrives_and_one_too_long_is_refused() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.run_for(Duration::from_millis(50));
    let message = |len: usize| Command::SendMessage { peer: slot(1), bytes: vec![5; len], path: None };
    net.command(0, message(flatlan_datapath::MAX_MESSAGE));
    net.command(0, message(flatlan_datapath::MAX_MESSAGE + 1));
    net.run_for(Duration::from_millis(20));
    let of = |event: &Event| if let Event::PeerMessage { bytes, .. } = event { Some(bytes.len()) } else { None };
    let lengths: Vec<usize> = net.nodes[1].events.iter().filter_map(of).collect();
    assert_eq!(lengths, [flatlan_datapath::MAX_MESSAGE]);
}

#[test]
fn a_packet_is_delivered_as_it_was_sent() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    for len in [0, 1, 15, 16, 17, 100, 1000, 1372] {
        net.send(0, &udp(ip(0), ip(1), len));
        net.run_for(Duration::from_millis(50));
        let packets = net.packets(1);
        let last = packets.last().unwrap();
        assert_eq!(*last, udp(ip(0), ip(1), len));
        assert!(is_sound(last));
    }
}

/// Where the roster expired and its network wants no new sessions.
fn refuse_new(net: &mut PlainNet, n: usize) {
    let members: Vec<usize> = (0..net.nodes.len()).collect();
    let mut refusing = (*snapshot(7, n, &members, &[])).clone();
    refusing.new_sessions = NewSessions::Refused;
    net.nodes[n].worker.set_snapshot(Arc::new(refusing), net.now);
}

#[test]
fn where_new_sessions_are_refused_none_is_begun() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.run_for(Duration::from_millis(100));
    refuse_new(&mut net, 0);
    net.send(0, &udp(ip(0), ip(1), 56));
    net.run_for(Duration::from_secs(5));
    assert!(net.nodes[1].tun.is_empty());
    assert_eq!(net.drops(0, DropReason::NoSession), 1);
    // it begins as soon as it may
    net.nodes[0].worker.set_snapshot(snapshot(8, 0, &[0, 1], &[]), net.now);
    net.send(0, &udp(ip(0), ip(1), 56));
    net.run_until(Duration::from_secs(1), |net| !net.nodes[1].tun.is_empty()).expect("it arrives");
}

#[test]
fn where_new_sessions_are_refused_no_initiation_is_answered() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.run_for(Duration::from_millis(100));
    refuse_new(&mut net, 1);
    net.send(0, &udp(ip(0), ip(1), 56));
    net.run_for(Duration::from_secs(5));
    assert!(net.nodes[1].tun.is_empty());
    assert!(net.drops(1, DropReason::NewSessionRefused) > 0);
    assert!(net.nodes[1].events.iter().all(|event| !matches!(event, Event::SessionUp { .. })));
}

#[test]
fn where_new_sessions_are_refused_those_that_are_up_go_on_for_many_rekeys() {
    let mut net = PlainNet::new(2);
    net.introduce(0, 1);
    net.chat(0, 1, Duration::from_millis(100), Duration::from_secs(2));
    refuse_new(&mut net, 0);
    refuse_new(&mut net, 1);
    let gap = net.chat(0, 1, Duration::from_secs(1), Duration::from_secs(300));
    assert!(gap < Duration::from_millis(1_500), "{gap:?}");
    // but a peer that starts again is a new session
    net.restart(1);
    refuse_new(&mut net, 1);
    net.introduce(0, 1);
    net.nodes[1].tun.clear();
    net.chat(0, 1, Duration::from_millis(500), Duration::from_secs(5));
    assert!(net.nodes[1].tun.is_empty());
}
