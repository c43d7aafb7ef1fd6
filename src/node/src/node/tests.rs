//! What the machine does, against scripted hubs and under a virtual clock.

mod gateways;
mod net;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use flatlan_datapath::{Chosen, Event, NewSessions, Owner};
use flatlan_relay::{Control, Presence, PresenceOrder};
use flatlan_roster::{CountersignedClaim, Expiry};
use flatlan_types::{BootEpoch, Endpoint, PeerSlot, UnixTime};

use self::net::{Disk, LATENCY, Net, UNIX, address, claim, hub_secret, member, seed};
use crate::{
    Alarm, Fatal, HubState, Waiting,
    peer_message::{Part, PeerMessage, Summary},
    persist,
};

const SOON: Duration = Duration::from_millis(500);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Nodes that are attached everywhere and use the roster.
fn ready(hubs: &[u8], nodes: &[u8]) -> Net {
    let mut net = Net::new(hubs, nodes);
    let (hubs, nodes) = (hubs.len(), nodes.to_vec());
    net.until(SOON, |net| nodes.iter().all(|n| net.nodes[n].hubs.len() == hubs && net.nodes[n].interface.is_some()));
    net
}

#[test]
fn a_node_with_nothing_but_a_token_is_up_within_a_fifth_of_a_second() {
    let mut net = Net::new(&[1, 2], &[1, 2]);
    assert_eq!(net.nodes[&1].node.waiting(), Some(Waiting::NoHub));
    let took = net.until(SOON, |net| net.nodes.values().all(|node| node.up.is_some()));
    assert!(took < ms(200), "{took:?}");
    let node = &net.nodes[&1];
    assert_eq!(node.up.map(|(_, hubs)| hubs), Some(2));
    assert_eq!(node.node.waiting(), None);
    let interface = node.interface.clone().unwrap();
    assert_eq!(interface.name.as_str(), "n1");
    assert_eq!(interface.ips.len(), 2);
    assert_eq!(interface.mtu, 1400);
    assert!(net.knows(1, 2) && !net.knows(1, 1));
    net.run(ms(200));
    let node = &net.nodes[&1];
    assert_eq!(node.data.len(), 2, "a data stream to each hub");
    assert!(node.hubs.values().all(|(udp, stream)| *udp && *stream));
    assert!(node.node.status().hubs.iter().all(|hub| hub.state == HubState::Attached && hub.name.is_some()));
    assert!(node.files.contains_key(persist::ROSTER) && node.files.contains_key(persist::RATCHET));
}

/// The hubs to which a node is attached and which it means to keep.
fn kept(net: &Net, n: u8) -> Vec<String> {
    let hubs = net.nodes[&n].node.status().hubs;
    let kept = hubs.iter().filter(|hub| hub.state == HubState::Attached);
    kept.filter_map(|hub| hub.name.as_ref()).map(ToString::to_string).collect()
}

#[test]
fn the_nearest_hubs_are_found_attached_beside_those_in_use_and_kept() {
    let mut net = Net::new(&[1, 2, 3, 4, 5, 6], &[1]);
    net.until(SOON, |net| kept(net, 1).len() == 3);
    // what the hash chose turns out to be far away but for one
    let chosen = kept(&net, 1);
    let number = |name: &str| name.strip_prefix("hub").unwrap().parse::<u8>().unwrap();
    for name in &chosen[1..] {
        net.hubs.get_mut(&number(name)).unwrap().far = ms(60);
    }
    let near = |net: &Net| kept(net, 1).iter().all(|name| net.hubs[&number(name)].far.is_zero());
    let mut fewest = usize::MAX;
    net.until(Duration::from_secs(300), |net| {
        fewest = fewest.min(kept(net, 1).len());
        near(net) && kept(net, 1).len() == 3
    });
    assert!(near(&net) && fewest == 3, "{:?}, {fewest} at the least", kept(&net, 1));
    net.run(Duration::from_secs(100));
    let settled = kept(&net, 1);
    assert_eq!((settled.len(), settled.contains(&chosen[0])), (3, true));

    // those that are equally near are left where they are, and asking after the others costs little
    let dials = net.nodes[&1].dials.len();
    net.run(Duration::from_secs(3600));
    assert_eq!(kept(&net, 1), settled);
    let dials = net.nodes[&1].dials.len() - dials;
    assert!((12..=21).contains(&dials), "three hubs measured each ten minutes: {dials}");
}

#[test]
fn what_peers_send_to_a_node_leaves_a_hub_before_the_node_does() {
    let mut net = Net::walled(&[1, 2, 3, 4], &[(1, &[1]), (2, &[1])]);
    net.beyond = false;
    net.until(SOON, |net| kept(net, 1).len() == 3 && kept(net, 2).len() == 3);
    net.session(1, 2);
    net.need(1, 2);
    net.need(2, 1);
    net.until(SOON, |net| net.ways(1, 2) == 3 && net.ways(2, 1) == 3);
    // the hub that could not be reached turns out to be the nearest
    net.nodes.get_mut(&1).unwrap().walled.clear();
    for n in 2..=4 {
        net.hubs.get_mut(&n).unwrap().far = ms(60);
    }
    let leaving = |net: &Net| net.nodes[&1].node.status().hubs.iter().any(|hub| hub.state == HubState::Draining);
    net.until(Duration::from_secs(300), leaving);
    let (mut sent, mut lost) = (0, 0);
    for _ in 0..4000 {
        net.run(ms(1));
        let labels = net.nodes[&2].labels.len();
        (sent, lost) = (sent + labels, lost + labels - net.ways(2, 1));
    }
    assert_eq!((kept(&net, 1).len(), net.nodes[&1].hubs.len()), (3, 3), "one is left");
    assert!(sent >= 8000 && lost == 0, "{lost} of {sent} datagrams");
}

#[test]
fn a_hub_of_a_peer_with_which_there_is_none_in_common_is_attached_to_while_it_is_needed() {
    let mut net = Net::walled(&[1, 2, 3, 4, 5, 6], &[(1, &[4, 5, 6]), (2, &[1, 2, 3])]);
    net.until(SOON, |net| kept(net, 1).len() == 3 && kept(net, 2).len() == 3);
    net.nodes.get_mut(&1).unwrap().walled.clear();
    net.run(Duration::from_secs(60));
    let own = kept(&net, 1);
    net.session(1, 2);
    net.need(1, 2);
    let in_common = |net: &Net| kept(net, 1).iter().filter(|hub| kept(net, 2).contains(hub)).count();
    net.until(Duration::from_secs(20), |net| in_common(net) > 0);
    assert_eq!((in_common(&net), kept(&net, 1).len()), (1, 4), "{:?}", kept(&net, 1));
    assert!(own.iter().all(|hub| kept(&net, 1).contains(hub)), "{:?}", kept(&net, 1));
    net.run(Duration::from_secs(50));
    assert_eq!((in_common(&net), kept(&net, 1).len()), (1, 4), "and kept");

    let peer = net.slot(1, 2);
    net.event(1, Event::Idle { peer });
    net.run(Duration::from_secs(200));
    assert_eq!(kept(&net, 1).len(), 3, "nobody is spoken to any more");
}

#[test]
fn no_hub_is_attached_to_for_a_peer_to_which_there_is_a_direct_path() {
    let mut net = Net::walled(&[1, 2, 3, 4, 5, 6], &[(1, &[4, 5, 6]), (2, &[1, 2, 3])]);
    net.until(SOON, |net| kept(net, 1).len() == 3 && kept(net, 2).len() == 3);
    net.nodes.get_mut(&1).unwrap().walled.clear();
    let (peer, path) = (net.slot(1, 2), Some(flatlan_path::PathKind::Direct(address(2))));
    let (lane, reason) = (flatlan_types::LaneId::PRIMARY, flatlan_path::MoveReason::First);
    net.event(1, Event::PathChanged { peer, lane, path, was: None, reason });
    net.session(1, 2);
    net.need(1, 2);
    net.run(Duration::from_secs(60));
    assert_eq!(kept(&net, 1).len(), 3);

    let reason = flatlan_path::MoveReason::Dead;
    net.event(1, Event::PathChanged { peer, lane, path: None, was: path, reason });
    net.until(Duration::from_secs(20), |net| kept(net, 1).len() == 4);
}

#[test]
fn no_hub_is_attached_to_for_a_peer_that_came_to_one_in_common_after_a_way_to_it_was_found() {
    let mut net = Net::walled(&[1, 2, 3, 4, 5, 6], &[(1, &[4, 5, 6]), (2, &[1, 2, 3, 4, 5, 6])]);
    net.until(SOON, |net| kept(net, 1).len() == 3);
    let files = net.kill_node(2);
    net.start_node(2, files);
    net.nodes.get_mut(&2).unwrap().walled = [1, 2, 3, 5, 6].into();
    net.until(SOON, |net| kept(net, 2) == ["hub4"]);
    net.session(1, 2);
    net.need(1, 2);
    net.until(SOON, |net| net.nodes[&1].labels.len() == 3);
    assert_eq!(kept(&net, 2), ["hub4"], "ways were found before");
    net.nodes.get_mut(&2).unwrap().walled.remove(&1);
    net.until(SOON, |net| kept(net, 2).len() == 2);
    net.nodes.get_mut(&1).unwrap().walled.clear();
    net.run(Duration::from_secs(60));
    assert_eq!(kept(&net, 1), ["hub1", "hub2", "hub3"]);
}

#[test]
fn the_only_hub_in_common_with_a_peer_is_not_left_for_one_that_is_nearer() {
    for only in 2..=4 {
        let mut net = Net::walled(&[1, 2, 3, 4], &[(1, &[1]), (2, &[1, 2, 3, 4])]);
        net.nodes.get_mut(&2).unwrap().walled.remove(&only);
        net.until(SOON, |net| kept(net, 1).len() == 3 && kept(net, 2).len() == 1);
        net.session(1, 2);
        net.need(1, 2);
        net.nodes.get_mut(&1).unwrap().walled.clear();
        net.hubs.get_mut(&only).unwrap().far = ms(60);
        net.until(Duration::from_secs(300), |net| kept(net, 1).len() == 4);
        let end = net.now + Duration::from_secs(300);
        while net.now < end {
            net.run(ms(100));
            assert!(kept(&net, 1).contains(&kept(&net, 2)[0]), "{:?}", kept(&net, 1));
        }
    }
}

#[test]
fn how_far_a_hub_is_that_is_not_attached_is_found_out_anew_and_at_once_after_a_change_of_the_underlay() {
    for changed in [false, true] {
        let mut net = Net::new(&[1, 2, 3, 4, 5], &[1]);
        net.run(Duration::from_secs(60));
        let used = kept(&net, 1);
        let free: Vec<u8> = (1..=5).filter(|n| !used.contains(&format!("hub{n}"))).collect();
        let first: u8 = used[0].strip_prefix("hub").unwrap().parse().unwrap();
        let replaced = |net: &Net| kept(net, 1).len() == 3 && !kept(net, 1).contains(&used[0]);
        net.kill_hub(first);
        net.until(SOON, replaced);
        let next = *free.iter().find(|n| kept(&net, 1).contains(&format!("hub{n}"))).unwrap();
        net.revive_hub(first);
        net.until(Duration::from_secs(120), |net| kept(net, 1) == used);
        net.hubs.get_mut(&next).unwrap().far = ms(25);
        if changed {
            let (now, unix) = (net.now, net.unix);
            net.nodes.get_mut(&1).unwrap().node.handle_network_changed(now, unix);
            net.drain(1);
            net.run(Duration::from_secs(30));
        } else {
            net.run(Duration::from_secs(700));
        }
        net.kill_hub(first);
        net.until(SOON, replaced);
        assert!(!kept(&net, 1).contains(&format!("hub{next}")), "{changed}: {:?}", kept(&net, 1));
    }
}

#[test]
fn a_hub_that_answers_before_it_is_asked_is_no_nearer_for_that() {
    let mut net = Net::new(&[1, 2, 3, 4], &[1]);
    net.until(SOON, |net| kept(net, 1).len() == 3);
    let used = kept(&net, 1);
    for (n, hub) in &mut net.hubs {
        hub.lies = !used.contains(&format!("hub{n}"));
        hub.far = if hub.lies { ms(40) } else { ms(30) };
    }
    let end = net.now + Duration::from_secs(900);
    while net.now < end {
        net.run(ms(1000));
        assert_eq!(kept(&net, 1), used);
    }
}

#[test]
fn where_there_is_no_choice_nothing_is_measured() {
    let mut net = ready(&[1, 2, 3], &[1]);
    net.hubs.get_mut(&1).unwrap().far = ms(60);
    net.run(Duration::from_secs(5));
    let dials = net.nodes[&1].dials.len();
    net.run(Duration::from_secs(3600));
    assert_eq!((kept(&net, 1).len(), net.nodes[&1].dials.len()), (3, dials));
}

#[test]
fn an_idle_node_says_nothing_but_pings() {
    let mut net = ready(&[1, 2], &[1]);
    net.run(Duration::from_secs(5));
    for hub in net.hubs.values_mut() {
        hub.heard.clear();
    }
    net.run(Duration::from_secs(10));
    for hub in net.hubs.values() {
        assert!(hub.heard.iter().all(|(_, message)| matches!(message, Control::Ping { .. })));
        assert!((9..=11).contains(&hub.heard.len()), "{}", hub.heard.len());
    }
}

#[test]
fn one_side_that_needs_a_path_brings_labels_both_ways_at_every_hub() {
    let mut net = ready(&[1, 2], &[1, 2]);
    net.need(1, 2);
    let took = net.until(SOON, |net| net.ways(1, 2) == 2 && net.ways(2, 1) == 2);
    // there, the other's request there and back, and back: nobody waits for a timer
    assert!(took <= LATENCY * 8, "{took:?}");
}

#[test]
fn both_sides_that_open_at_once_do_not_wait_for_each_other() {
    let mut net = ready(&[1, 2], &[1, 2]);
    net.need(1, 2);
    net.need(2, 1);
    let took = net.until(SOON, |net| net.ways(1, 2) == 2 && net.ways(2, 1) == 2);
    assert!(took <= LATENCY * 4, "{took:?}");
}

#[test]
fn a_label_is_answered_even_when_the_way_back_cannot_be_had() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    // the hub loses what 2 asks, so 2 answers after a while all the same
    net.until(SOON, |net| net.hubs[&1].heard.iter().any(|(n, m)| *n == 1 && matches!(m, Control::PathOpen(_))));
    net.run(LATENCY);
    let before = net.now;
    net.until(SOON, |net| net.ways(1, 2) == 1);
    assert!(net.now - before < ms(300));
}

#[test]
fn candidates_are_exchanged_once_a_label_is_there_and_lead_to_direct_paths() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    let (at1, at2) = (net.slot(1, 2), net.slot(2, 1));
    let told = move |net: &Net| {
        let direct = |n, slot| net.nodes[&n].direct.get(&slot).cloned().unwrap_or_default();
        direct(1u8, at1) == [address(2)] && direct(2u8, at2) == [address(1)]
    };
    net.until(SOON, told);
}

#[test]
fn what_no_candidate_can_be_is_not_passed_to_the_workers() {
    let mut net = ready(&[1], &[1, 2]);
    let slot = net.slot(1, 2);
    let bad = ["127.0.0.1:1", "10.77.0.9:51820", "198.51.100.1:51820", "192.0.2.7:0", "[fe80::1]:9"];
    let mut candidates: Vec<Endpoint> = bad.iter().map(|s| Endpoint::new(s.parse().unwrap())).collect();
    candidates.extend((1..20).map(|port| Endpoint::new(([203, 0, 113, 5], port).into())));
    let message = PeerMessage { candidates: Some(candidates), ..PeerMessage::new() };
    let ingress = flatlan_path::PathKind::Direct(address(2));
    net.event(1, Event::PeerMessage { peer: slot, ingress, bytes: message.encode() });
    let direct = &net.nodes[&1].direct[&slot];
    assert_eq!(direct.len(), crate::MAX_CANDIDATES);
    assert!(direct.iter().all(|endpoint| endpoint.socket_addr().ip().to_string() == "203.0.113.5"), "{direct:?}");
}

#[test]
fn garbage_from_a_peer_or_a_hub_changes_nothing() {
    let mut net = ready(&[1], &[1, 2]);
    let slot = net.slot(1, 2);
    for bytes in [&b""[..], b"\xff", b"\xa1\x02\x9b\xff\xff\xff\xff\xff\xff\xff\xff", &[0xa1; 1000]] {
        let ingress = flatlan_path::PathKind::Direct(address(2));
        net.event(1, Event::PeerMessage { peer: slot, ingress, bytes: bytes.to_vec() });
    }
    assert!(net.nodes[&1].direct.is_empty());
    assert_eq!(net.serial(1), 1);
}

#[test]
fn a_lost_hub_is_dialled_again_within_a_tenth_of_a_second_and_then_ever_later() {
    let mut net = ready(&[1, 2], &[1]);
    net.run(ms(300));
    net.nodes.get_mut(&1).unwrap().dials.clear();
    net.kill_hub(1);
    let lost = net.now + LATENCY;
    net.run(Duration::from_secs(20));
    let dials: Vec<Duration> = net.nodes[&1].dials.iter().map(|at| *at - lost).collect();
    assert!(dials[0] <= ms(100), "{dials:?}");
    let gaps: Vec<Duration> = dials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps[0] >= ms(150) && gaps[1] > gaps[0]);
    assert!(gaps.iter().all(|gap| *gap <= ms(1_600)), "a restarted hub is back soon: {gaps:?}");
    assert!(gaps.last().unwrap() >= &ms(1_100));
    net.run(Duration::from_secs(200));
    let dials = &net.nodes[&1].dials;
    let last = dials[dials.len() - 1] - dials[dials.len() - 2];
    assert!(last > Duration::from_secs(3) && last <= Duration::from_secs(6), "{last:?}");
}

#[test]
fn a_hub_that_restarts_has_its_node_and_the_labels_back_within_two_seconds() {
    let mut net = ready(&[1, 2], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 2 && net.ways(2, 1) == 2);
    net.session(1, 2);
    net.kill_hub(1);
    net.run(Duration::from_secs(3));
    assert_eq!(net.ways(1, 2), 1);
    net.revive_hub(1);
    net.until(Duration::from_secs(2), |net| net.ways(1, 2) == 2 && net.ways(2, 1) == 2);
}

#[test]
fn a_frozen_hub_is_left_after_three_seconds_of_silence_and_one_that_answers_datagrams_after_eight() {
    for (answers, least, most) in [(false, 1_900, 3_100), (true, 6_900, 8_100)] {
        let mut net = ready(&[1, 2], &[1]);
        net.run(ms(300));
        let key = net.hubs[&1].key();
        let hub = net.nodes[&1].node.status().hubs.iter().find(|hub| hub.key == key).unwrap().slot;
        net.hubs.get_mut(&1).unwrap().frozen = true;
        if !answers {
            net.event(1, Event::LegDown { hub });
        }
        let took = net.until(Duration::from_secs(10), |net| net.nodes[&1].hubs.len() == 1);
        assert!(took <= ms(most) && took >= ms(least), "datagrams answered: {answers}: {took:?}");
    }
}

#[test]
fn only_three_of_many_hubs_are_used_and_the_next_best_steps_in() {
    let hubs: Vec<u8> = (1..=6).collect();
    let mut net = Net::new(&hubs, &[1]);
    net.until(SOON, |net| net.nodes[&1].hubs.len() == 3);
    net.run(Duration::from_secs(2));
    assert_eq!(net.nodes[&1].hubs.len(), 3);
    let used = net.nodes[&1].node.status().hubs.into_iter().find(|hub| hub.state == HubState::Attached).unwrap();
    let number = *net.hubs.iter().find(|(_, hub)| hub.key() == used.key).unwrap().0;
    net.kill_hub(number);
    net.run(ms(50));
    assert_eq!(net.nodes[&1].hubs.len(), 2);
    net.until(Duration::from_secs(2), |net| net.nodes[&1].hubs.len() == 3);
}

#[test]
fn hubs_that_say_nothing_at_all_do_not_keep_the_next_best_waiting() {
    for reachable in 1..=6 {
        let others: Vec<u8> = (1..=6).filter(|hub| *hub != reachable).collect();
        let mut net = Net::walled(&[1, 2, 3, 4, 5, 6], &[(1, &others)]);
        net.nodes.get_mut(&1).unwrap().silence = true;
        let took = net.until(Duration::from_secs(5), |net| net.nodes[&1].hubs.len() == 1);
        assert!(took <= ms(2_500), "{reachable}: {took:?}");
    }
}

#[test]
fn a_hub_with_another_key_is_not_spoken_to() {
    let mut net = ready(&[1, 2], &[1]);
    net.kill_hub(2);
    let files = net.kill_node(1);
    // somebody else answers at the place of hub 2
    let mut other = Net::new(&[9], &[]);
    let mut impostor = other.hubs.remove(&9).unwrap();
    impostor.roster = net.hubs[&1].roster.clone();
    net.hubs.insert(2, impostor);
    net.start_node(1, files);
    net.run(Duration::from_secs(3));
    assert_eq!(net.nodes[&1].hubs.len(), 1);
    assert!(net.hubs[&2].heard.is_empty(), "it was told nothing, not even who asks");
}

#[test]
fn a_newer_roster_is_used_only_after_it_is_on_disk() {
    let mut net = ready(&[1], &[1, 2]);
    let newer = net.admin.sign(&[1], &[1, 2, 3], net.hubs[&1].roster.as_ref());
    net.nodes.get_mut(&1).unwrap().disk = Disk::Hangs;
    net.publish(1, &newer);
    net.run(SOON);
    assert_eq!((net.serial(1), net.serial(2)), (1, 2));
    assert!(!net.knows(1, 3) && net.knows(2, 3));
}

#[test]
fn a_disk_that_fails_does_not_delay_a_roster_but_raises_an_alarm() {
    let mut net = ready(&[1], &[1, 2]);
    let newer = net.admin.sign(&[1], &[1], net.hubs[&1].roster.as_ref());
    net.nodes.get_mut(&1).unwrap().disk = Disk::Fails;
    net.publish(1, &newer);
    net.until(SOON, |net| net.serial(1) == 2);
    assert!(!net.knows(1, 2));
    assert!(matches!(net.nodes[&1].node.status().alarms[..], [Alarm::Disk { .. }, ..]));
}

#[test]
fn an_older_roster_is_refused_also_after_a_restart() {
    let mut net = ready(&[1], &[1, 2]);
    let old = net.hubs[&1].roster.clone().unwrap();
    let newer = net.admin.sign(&[1], &[1], Some(&old));
    net.publish(1, &newer);
    net.until(SOON, |net| net.serial(1) == 2);
    net.hubs.get_mut(&1).unwrap().refuses_news = true;
    net.hubs.get_mut(&1).unwrap().roster = Some(old);
    let files = net.kill_node(1);
    net.start_node(1, files.clone());
    net.run(Duration::from_secs(2));
    assert_eq!(net.serial(1), 2);
    assert!(!net.knows(1, 2));
    // and with the roster lost, but not the ratchet
    net.kill_node(1);
    let without = files.into_iter().filter(|(name, _)| name != persist::ROSTER).collect();
    net.start_node(1, without);
    net.run(Duration::from_secs(2));
    assert_eq!(net.serial(1), 0);
}

#[test]
fn a_damaged_ratchet_is_set_aside_and_the_roster_beside_it_still_forbids_going_back() {
    let mut net = ready(&[1], &[1, 2]);
    let old = net.hubs[&1].roster.clone().unwrap();
    let newer = net.admin.sign(&[1], &[1], Some(&old));
    net.publish(1, &newer);
    net.until(SOON, |net| net.serial(1) == 2);
    net.hubs.get_mut(&1).unwrap().refuses_news = true;
    net.hubs.get_mut(&1).unwrap().roster = Some(old);
    let mut files = net.kill_node(1);
    files.insert(persist::RATCHET.to_owned(), b"garbage".to_vec());
    net.start_node(1, files);
    net.run(Duration::from_secs(2));
    assert_eq!(net.serial(1), 2);
    let aside = persist::set_aside(persist::RATCHET, b"garbage");
    let files = &net.nodes[&1].files;
    assert_eq!(files[&aside], b"garbage");
    let ratchet = flatlan_roster::Ratchet::decode(&files[persist::RATCHET], &net.admin.network).unwrap();
    assert_eq!(ratchet.head().unwrap().version(), newer.version());
    let alarm = Alarm::Damaged { file: persist::RATCHET.to_owned(), aside };
    assert_eq!(net.nodes[&1].node.status().alarms, [alarm]);
    // with both lost, the alarm is all that is left; and no start makes another copy of the same
    let mut files = net.kill_node(1);
    files.insert(persist::RATCHET.to_owned(), b"garbage".to_vec());
    files.insert(persist::ROSTER.to_owned(), b"more garbage".to_vec());
    net.start_node(1, files);
    assert_eq!(net.nodes[&1].node.status().alarms.len(), 2);
    let asides = net.nodes[&1].files.iter().filter(|(name, _)| name.contains(".damaged-")).map(|(_, bytes)| bytes);
    assert_eq!(asides.collect::<Vec<_>>(), [b"garbage", &b"more garbage"[..]]);
}

#[test]
fn a_roster_that_holds_what_a_later_version_may_not_ignore_is_not_called_damaged() {
    use minicbor::{Decoder, Encoder};
    let net = Net::new(&[1], &[1]);
    let roster = net.hubs[&1].roster.as_ref().unwrap();
    let whole = roster.encode();
    assert!(persist::check(persist::ROSTER, &whole).is_ok());
    let mut decoder = Decoder::new(&whole);
    decoder.array().unwrap();
    decoder.u64().unwrap();
    let start = decoder.position();
    decoder.skip().unwrap();
    let lineage = &whole[start..decoder.position()];
    // a record with field 40, and one of an unknown kind; field 0 says which may not be ignored
    for record in [&b"\x82\x02\xa1\x00\x81\x18\x28"[..], b"\x82\x18\x28\xa0"] {
        let mut bytes = [b"\x84\x01", lineage].concat();
        Encoder::new(&mut bytes).array(1).unwrap().bytes(record).unwrap().array(0).unwrap();
        let refused = persist::check(persist::ROSTER, &bytes).unwrap_err();
        assert!(refused.to_string().contains("field 40"), "{refused}");
    }
    // and the same in the head, which the ratchet has as well
    let mut decoder = Decoder::new(lineage);
    decoder.array().unwrap();
    decoder.array().unwrap();
    let start = decoder.position();
    decoder.skip().unwrap();
    let authority = &lineage[start..decoder.position()];
    let mut head = [b"\x82\x83", authority].concat();
    Encoder::new(&mut head).bytes(b"\xa1\x00\x81\x18\x28").unwrap();
    decoder.skip().unwrap();
    head.extend_from_slice(&lineage[decoder.position()..]);
    let files = [(persist::ROSTER, b"\x84\x01", &b"\x80\x80"[..]), (persist::RATCHET, b"\x83\x01", b"\xf6")];
    for (file, before, behind) in files {
        let refused = persist::check(file, &[before, &head[..], behind].concat()).unwrap_err();
        assert!(refused.to_string().contains("field 40"), "{refused}");
    }
}

#[test]
fn claims_that_refuse_each_other_raise_an_alarm_until_the_invite_is_gone() {
    let mut net = ready(&[1], &[1, 2]);
    net.admin.invited = vec![3];
    let open = net.admin.sign(&[1], &[1, 2, 3], net.hubs[&1].roster.as_ref());
    let one = open.with_claims([claim(&open, 3, 3)]).unwrap();
    net.publish(1, &one);
    net.until(SOON, |net| net.knows(1, 3));
    assert_eq!(net.nodes[&1].node.status().alarms, []);
    let two = one.with_claims([claim(&open, 3, 4)]).unwrap();
    net.publish(1, &two);
    net.until(SOON, |net| !net.knows(1, 3));
    let alarms = net.nodes[&1].node.status().alarms;
    assert!(alarms.len() == 2 && alarms.iter().all(|alarm| alarm.to_string().contains("two machines redeemed")));
    net.admin.invited.clear();
    let closed = net.admin.sign(&[1], &[1, 2], Some(&two));
    net.publish(1, &closed);
    net.until(SOON, |net| net.serial(1) == 3);
    assert_eq!(net.nodes[&1].node.status().alarms, []);
}

#[test]
fn a_revoked_peer_leaves_the_snapshot_and_its_labels_go() {
    let mut net = ready(&[1], &[1, 2, 3]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1);
    net.session(1, 2);
    let slot = net.slot(1, 3);
    let newer = net.admin.sign(&[1], &[1, 3], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| !net.knows(1, 2));
    assert!(net.nodes[&1].labels.is_empty() && net.nodes[&1].given.is_empty());
    assert_eq!(net.slot(1, 3), slot, "slots do not move");
}

#[test]
fn all_members_of_an_ha_group_own_what_they_carry() {
    let mut net = ready(&[1], &[1, 2, 3]);
    net.admin.carriers = vec![2, 3];
    let newer = net.admin.sign(&[1], &[1, 2, 3], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| [1, 2, 3].iter().all(|n| net.serial(*n) == 2));
    let shared = "10.200.0.9".parse().unwrap();
    let owners = |of: u8| {
        [1, 2, 3].map(|n| {
            let owner = if n == of { Owner::Me } else { Owner::Peer(net.slot(of, n)) };
            net.nodes[&of].snapshot.owns(owner, shared)
        })
    };
    assert_eq!([1, 2, 3].map(owners), [[false, true, true]; 3]);
    let chosen = |n: u8| net.nodes[&n].snapshot.owner(shared, || 7);
    let both = [2, 3].map(|n| Some(Chosen::OneOf(Owner::Peer(net.slot(1, n)))));
    assert!(both.contains(&chosen(1)));
    assert_eq!(chosen(3), Some(Chosen::Sole(Owner::Me)));
}

#[test]
fn a_gateway_that_falls_silent_is_passed_over_until_it_answers_and_the_others_are_kept_ready() {
    let mut net = ready(&[1], &[1, 2, 3, 4]);
    net.admin.carriers = vec![2, 3];
    let newer = net.admin.sign(&[1], &[1, 2, 3, 4], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| net.serial(1) == 2);
    let [a, b, sole] = [2, 3, 4].map(|n| net.slot(1, n));
    let owners = |net: &Net| -> BTreeSet<Option<Chosen>> {
        (0..100).map(|flow| net.nodes[&1].snapshot.owner("10.200.0.9".parse().unwrap(), || flow * 7919)).collect()
    };
    let of = |slots: &[PeerSlot]| slots.iter().map(|slot| Some(Chosen::OneOf(Owner::Peer(*slot)))).collect();
    assert_eq!(owners(&net), of(&[a, b]));

    net.event(1, Event::SharedUsed { peer: a });
    assert_eq!(BTreeSet::from_iter(net.nodes[&1].kept_warm.iter().copied()), BTreeSet::from([a, b]));

    let generation = net.nodes[&1].snapshot.generation;
    net.event(1, Event::PeerSilent { peer: sole });
    assert_eq!(net.nodes[&1].snapshot.generation, generation, "nobody can take its place");
    net.event(1, Event::PeerSilent { peer: a });
    assert_eq!(owners(&net), of(&[b]));
    assert!(net.nodes[&1].snapshot.generation > generation);
    let alarms = net.nodes[&1].node.status().alarms;
    assert!(matches!(alarms.as_slice(), [Alarm::Silent { .. }]), "{alarms:?}");

    // a new roster does not make it answer
    let newer = net.admin.sign(&[1], &[1, 2, 3, 4], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| net.serial(1) == 3);
    assert_eq!(owners(&net), of(&[b]));
    net.event(1, Event::PeerAnswers { peer: a });
    assert_eq!(owners(&net), of(&[a, b]));
    assert_eq!(net.nodes[&1].node.status().alarms, []);
}

#[test]
fn a_roster_that_expires_where_new_sessions_are_refused_says_so_to_the_workers_until_it_is_renewed() {
    let mut net = ready(&[1], &[1, 2]);
    net.admin.expiry = Expiry::RefuseNew;
    let strict = net.admin.sign(&[1], &[1, 2], net.hubs[&1].roster.as_ref());
    net.publish(1, &strict);
    net.until(SOON, |net| net.serial(1) == 2);
    assert_eq!(net.nodes[&1].snapshot.new_sessions, NewSessions::Allowed);
    net.unix = UnixTime(strict.head().expires.0 + 1);
    net.until(Duration::from_secs(61), |net| net.nodes[&1].snapshot.new_sessions == NewSessions::Refused);
    assert!(net.knows(1, 2), "nobody is lost");
    // also at a start, before anybody is spoken to
    net.session(1, 2);
    net.run(Duration::from_secs(40));
    let files = net.kill_node(1);
    net.start_node(1, files);
    assert_eq!(net.nodes[&1].snapshot.new_sessions, NewSessions::Refused);
    assert_eq!(net.nodes[&1].connects, []);
    net.admin.now = net.unix;
    let renewed = net.admin.sign(&[1], &[1, 2], Some(&strict));
    net.run(SOON);
    net.publish(1, &renewed);
    net.until(SOON, |net| net.nodes[&1].snapshot.new_sessions == NewSessions::Allowed);
}

#[test]
fn a_node_that_was_removed_says_so_and_stops() {
    let mut net = ready(&[1, 2], &[1, 2]);
    let newer = net.admin.sign(&[1, 2], &[1], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| net.nodes[&2].fatal.is_some());
    assert_eq!(net.nodes[&2].fatal, Some(Fatal::Removed { serial: 2 }));
    assert_eq!(net.nodes[&2].snapshot.peers().count(), 0);
    assert!(net.nodes[&2].hubs.is_empty());
    assert_eq!(net.nodes[&2].node.poll_timeout(), None);
}

#[test]
fn a_head_that_all_hubs_withhold_is_learned_from_a_peer() {
    let mut net = ready(&[1, 2], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) > 0 && net.ways(2, 1) > 0);
    net.session(1, 2);
    for hub in net.hubs.values_mut() {
        hub.refuses_news = true;
    }
    let newer = net.admin.sign(&[1, 2], &[1, 2, 3], net.hubs[&1].roster.as_ref());
    net.learn(2, &newer);
    let took = net.until(Duration::from_secs(10), |net| net.knows(1, 3));
    assert!(took < Duration::from_secs(7), "{took:?}");
    assert_eq!(net.serial(1), 2);
}

#[test]
fn a_hub_that_tells_of_claims_and_gives_none_hides_no_other_hubs_roster() {
    for liar in [1, 2] {
        let mut net = ready(&[1, 2], &[1]);
        net.hubs.get_mut(&liar).unwrap().withholds = true;
        net.hubs.get_mut(&liar).unwrap().refuses_news = true;
        for n in 0..20 {
            net.lie_of_claims(liar, [n; 32]);
            net.run(ms(20));
        }
        let newer = net.admin.sign(&[1, 2], &[1, 3], net.hubs[&1].roster.as_ref());
        net.publish(3 - liar, &newer);
        for n in 20..40 {
            net.lie_of_claims(liar, [n; 32]);
            net.run(ms(20));
        }
        assert_eq!(net.serial(1), 2, "hub {liar} lies");
    }
}

#[test]
fn a_removed_node_learns_so_from_any_hub_that_gives_the_roster() {
    for liar in [1, 2] {
        let mut net = ready(&[1, 2], &[1, 2]);
        let files = net.kill_node(2);
        net.run(ms(100));
        let newer = net.admin.sign(&[1, 2], &[1], net.hubs[&1].roster.as_ref());
        net.publish(1, &newer);
        net.publish(2, &newer);
        net.hubs.get_mut(&liar).unwrap().withholds = true;
        net.start_node(2, files);
        net.until(ms(1_500), |net| net.nodes[&2].fatal.is_some());
    }
}

fn asked_for_rosters(net: &Net) -> usize {
    let heard = net.hubs.values().flat_map(|hub| &hub.heard);
    heard.filter(|(_, message)| matches!(message, Control::GetRoster { offset: 0, .. })).count()
}

#[test]
fn of_hubs_that_tell_of_the_same_roster_one_is_asked_for_it() {
    let mut net = ready(&[1, 2, 3], &[1]);
    net.run(Duration::from_secs(5));
    net.hubs.values_mut().for_each(|hub| hub.heard.clear());
    let newer = net.admin.sign(&[1, 2, 3], &[1, 2], net.hubs[&1].roster.as_ref());
    for hub in 1..=3 {
        net.publish(hub, &newer);
    }
    net.until(SOON, |net| net.serial(1) == 2);
    net.run(Duration::from_secs(20));
    assert_eq!(asked_for_rosters(&net), 1);
}

#[test]
fn a_roster_that_came_from_elsewhere_is_no_longer_asked_for() {
    let mut net = ready(&[1, 2], &[1]);
    net.hubs.values_mut().for_each(|hub| hub.withholds = true);
    let newer = net.admin.sign(&[1, 2], &[1, 2], net.hubs[&1].roster.as_ref());
    for hub in [1, 2] {
        net.publish(hub, &newer);
    }
    net.run(Duration::from_secs(2));
    assert!(!net.nodes[&1].node.hub_fetches.is_empty());
    net.learn(1, &newer);
    let node = &net.nodes[&1].node;
    assert!(node.hub_fetches.is_empty() && node.announced.is_empty());
}

#[test]
fn a_hub_that_gave_nothing_is_asked_again_without_telling_anew() {
    let mut net = ready(&[1], &[1]);
    net.hubs.get_mut(&1).unwrap().withholds = true;
    let newer = net.admin.sign(&[1], &[1, 2], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.run(Duration::from_secs(100));
    let hub = net.hubs.get_mut(&1).unwrap();
    hub.withholds = false;
    let before = asked_for_rosters(&net);
    assert!((3..8).contains(&before), "{before}");
    net.until(Duration::from_secs(60), |net| net.serial(1) == 2);
}

/// Node 1, to which node 3 could bring what all hubs withhold, and node 2, which only says what a test
/// makes it say.
fn with_a_bad_peer() -> Net {
    let mut net = ready(&[1, 2], &[1, 2, 3]);
    for peer in [2, 3] {
        net.need(1, peer);
        net.until(SOON, |net| net.ways(1, peer) > 0 && net.ways(peer, 1) > 0);
        net.session(1, peer);
    }
    for hub in net.hubs.values_mut() {
        hub.refuses_news = true;
    }
    net.kill_node(2);
    net
}

fn summary(order: (u64, u64), head: [u8; 32]) -> PeerMessage {
    let (key_epoch, serial) = order;
    let summary = Summary { key_epoch, serial, head, claims: 0, claims_hash: [0; 32] };
    PeerMessage { summary: Some(summary), ..PeerMessage::new() }
}

fn one_byte(of: &PeerMessage, total: u32, offset: u32) -> PeerMessage {
    let of = of.summary.unwrap();
    let part = Part { head: of.head, claims_hash: of.claims_hash, total, offset, bytes: vec![0].into() };
    PeerMessage { part: Some(part), ..PeerMessage::new() }
}

#[test]
fn a_peer_that_gives_rubbish_for_the_newest_head_keeps_nobody_from_learning_it_elsewhere() {
    let mut net = with_a_bad_peer();
    let newer = net.admin.sign(&[1, 2], &[1, 3, 4], net.hubs[&1].roster.as_ref());
    let claims = newer.claims_summary();
    let mut genuine = summary((0, 2), *newer.signed_head().id().as_bytes());
    genuine.summary.as_mut().unwrap().claims_hash = claims.hash;
    net.peer_says(1, 2, &genuine);
    net.run(ms(600));
    net.peer_says(1, 2, &one_byte(&genuine, 1, 0));
    net.learn(3, &newer);
    let took = net.until(Duration::from_secs(10), |net| net.knows(1, 4));
    assert!(took < Duration::from_secs(7), "{took:?}");
}

#[test]
fn a_peer_that_promises_the_greatest_serial_and_drips_keeps_nobody_from_learning_elsewhere() {
    let mut net = with_a_bad_peer();
    let newer = net.admin.sign(&[1, 2], &[1, 3, 4], net.hubs[&1].roster.as_ref());
    let promise = summary((u64::MAX, u64::MAX), [9; 32]);
    net.peer_says(1, 2, &promise);
    net.run(ms(600));
    net.learn(3, &newer);
    for n in 0..70 {
        if net.knows(1, 4) {
            break;
        }
        net.peer_says(1, 2, &promise);
        net.peer_says(1, 2, &one_byte(&promise, 1_000_000, n));
        net.run(ms(100));
    }
    assert!(net.knows(1, 4));
}

#[test]
fn peers_that_promise_much_and_give_nothing_are_asked_last() {
    let members: Vec<u8> = (1..=20).collect();
    let mut net = ready(&[1], &[1, 2, 20]);
    net.hubs.get_mut(&1).unwrap().refuses_news = false;
    let all = net.admin.sign(&[1], &members, net.hubs[&1].roster.as_ref());
    net.publish(1, &all);
    net.until(SOON, |net| net.knows(1, 19) && net.knows(20, 1));
    net.need(1, 20);
    net.until(SOON, |net| net.ways(1, 20) > 0 && net.ways(20, 1) > 0);
    net.session(1, 20);
    net.hubs.get_mut(&1).unwrap().refuses_news = true;
    let newer = net.admin.sign(&[1], &[1, 20, 21], Some(&all));
    let mut promises = 0;
    let mut promise = |net: &mut Net| {
        for peer in 2..20 {
            promises += 1;
            net.peer_says(1, peer, &summary((u64::MAX, promises), [peer; 32]));
        }
        net.run(ms(100));
    };
    for _ in 0..150 {
        promise(&mut net);
    }
    net.learn(20, &newer);
    for _ in 0..100 {
        if net.knows(1, 21) {
            break;
        }
        promise(&mut net);
    }
    assert!(net.knows(1, 21));
}

#[test]
fn a_hub_that_lacks_claims_gets_them_from_a_node_page_by_page() {
    let mut net = ready(&[1], &[1]);
    net.admin.invited = vec![3, 4, 5];
    let open = net.admin.sign(&[1], &[1, 3, 4, 5], net.hubs[&1].roster.as_ref());
    let claimed = open.with_claims([3, 4, 5].map(|n| claim(&open, n, n))).unwrap();
    net.publish(1, &claimed);
    net.until(SOON, |net| net.knows(1, 5));
    let all: Vec<Vec<u8>> = claimed.claims().iter().map(CountersignedClaim::encode).collect();
    for from in [0, 2, 3, u32::MAX] {
        net.hubs.get_mut(&1).unwrap().heard.clear();
        net.hub_says(1, &Control::GetClaims { network: net.admin.network, from });
        net.run(ms(30));
        let answer = net.hubs[&1].heard.iter().find_map(|(_, message)| {
            let Control::Claims { from: of, total: 3, claims, .. } = message else { return None };
            (*of == from).then_some(claims)
        });
        let page: Vec<Vec<u8>> = answer.expect("an answer").iter().map(|claim| claim.to_vec()).collect();
        assert_eq!(page, all.get(from as usize..).unwrap_or_default());
    }
}

/// Whom hub 1 was asked for.
fn asked(net: &Net) -> Vec<flatlan_types::MemberId> {
    let heard = net.hubs[&1].heard.iter().filter_map(|(_, message)| {
        let Control::PathOpen(open) = message else { return None };
        Some(open.to)
    });
    heard.collect()
}

#[test]
fn paths_that_nobody_wants_any_more_make_room_for_others_at_once() {
    let mut net = ready(&[1], &[1]);
    let members: Vec<u8> = (1..=220).collect();
    let all = net.admin.sign(&[1], &members, net.hubs[&1].roster.as_ref());
    net.publish(1, &all);
    net.until(Duration::from_secs(5), |net| net.knows(1, 220));
    for n in 2..=220 {
        net.need(1, n);
    }
    net.until(SOON, |net| !asked(net).is_empty());
    net.run(ms(1));
    let first = asked(&net);
    assert_eq!(first.len(), 128);
    for n in (2..=220).filter(|n| first.contains(&member(*n))) {
        let peer = net.slot(1, n);
        net.event(1, Event::Idle { peer });
    }
    net.run(LATENCY + ms(1));
    assert_eq!(asked(&net).len(), 219);
}

#[test]
fn of_very_many_paths_some_are_asked_for_at_a_time_and_all_in_the_end() {
    let mut net = ready(&[1], &[1]);
    let members: Vec<u8> = (1..=220).collect();
    let all = net.admin.sign(&[1], &members, net.hubs[&1].roster.as_ref());
    net.publish(1, &all);
    net.until(Duration::from_secs(5), |net| net.knows(1, 220));
    let files = net.kill_node(1);
    net.start_node(1, files);
    members.iter().skip(1).for_each(|n| net.need(1, *n));
    net.until(SOON, |net| !asked(net).is_empty());
    net.run(ms(1));
    assert_eq!(asked(&net).len(), 128);
    net.run(ms(100));
    assert_eq!(asked(&net).into_iter().collect::<BTreeSet<_>>().len(), 219);
}

#[test]
fn a_hub_that_is_behind_gets_the_roster_from_a_node() {
    let mut net = ready(&[1, 2], &[1]);
    let newer = net.admin.sign(&[1, 2], &[1, 3], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(Duration::from_secs(1), |net| {
        net.hubs[&2].roster.as_ref().is_some_and(|r| r.version() == newer.version())
    });
}

#[test]
fn a_fork_keeps_the_first_head_and_both_as_proof() {
    let mut net = ready(&[1, 2], &[1]);
    let base = net.hubs[&1].roster.clone();
    let first = net.admin.sign(&[1, 2], &[1, 3], base.as_ref());
    let second = net.admin.sign(&[1, 2], &[1, 4], base.as_ref());
    for hub in net.hubs.values_mut() {
        hub.refuses_news = true;
    }
    net.hubs.get_mut(&1).unwrap().refuses_news = false;
    net.publish(1, &first);
    net.until(SOON, |net| net.knows(1, 3));
    net.hubs.get_mut(&2).unwrap().refuses_news = false;
    net.publish(2, &second);
    net.run(SOON);
    let node = &net.nodes[&1];
    assert!(net.knows(1, 3) && !net.knows(1, 4));
    assert_eq!(node.node.status().alarms, [Alarm::Fork { serial: 2 }]);
    let proof = flatlan_roster::ForkProof::decode(&node.files["fork-2"], &net.admin.network).unwrap();
    assert_ne!(proof.first().id(), proof.second().id());
    let files = net.kill_node(1);
    net.start_node(1, files);
    assert_eq!(net.nodes[&1].node.status().alarms, [Alarm::Fork { serial: 2 }], "it is not forgotten");
}

#[test]
fn a_state_that_was_set_back_goes_on_under_a_greater_epoch() {
    let mut net = ready(&[1, 2], &[1]);
    net.kill_node(1);
    let order = PresenceOrder { epoch: BootEpoch(UNIX.0 + 50_000), counter: 3 };
    let greater = Presence::sign(&seed(1).derive(), net.admin.network, hub_secret(2).public(), order);
    net.hubs.get_mut(&2).unwrap().remember(greater);
    net.start_node(1, BTreeMap::new());
    net.until(Duration::from_secs(2), |net| net.nodes[&1].hubs.len() == 2);
    let node = &net.nodes[&1];
    assert_eq!(node.epoch, BootEpoch(UNIX.0 + 50_001));
    let (next, _) = persist::next_epoch(node.files.get(persist::EPOCH).map(Vec::as_slice), UnixTime(0));
    assert_eq!(next, BootEpoch(UNIX.0 + 50_002), "it is on disk");
    assert_eq!(node.node.status().alarms, []);
}

#[test]
fn a_greater_epoch_is_not_used_before_it_is_on_disk() {
    let mut net = ready(&[1, 2], &[1]);
    net.kill_node(1);
    let order = PresenceOrder { epoch: BootEpoch(UNIX.0 + 50_000), counter: 3 };
    let greater = Presence::sign(&seed(1).derive(), net.admin.network, hub_secret(2).public(), order);
    net.hubs.get_mut(&2).unwrap().remember(greater);
    net.start_node(1, BTreeMap::new());
    let before = net.nodes[&1].epoch;
    net.nodes.get_mut(&1).unwrap().disk = Disk::Fails;
    net.run(Duration::from_secs(10));
    assert_eq!(net.nodes[&1].epoch, before);
    assert!(net.nodes[&1].node.status().alarms.contains(&Alarm::Disk { file: persist::EPOCH.to_owned() }));
    net.nodes.get_mut(&1).unwrap().disk = Disk::Good;
    net.until(Duration::from_secs(5), |net| net.nodes[&1].epoch == BootEpoch(UNIX.0 + 50_001));
    net.until(Duration::from_secs(5), |net| net.nodes[&1].hubs.len() == 2);
}

#[test]
fn a_stale_epoch_is_told_by_a_peer_as_well() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1 && net.ways(2, 1) == 1);
    net.run(ms(200));
    let before = net.nodes[&1].epoch;
    net.kill_node(1);
    net.run(ms(100));
    // its clock and its files are a year back, and the hub has forgotten everybody
    net.kill_hub(1);
    net.run(ms(100));
    net.revive_hub(1);
    net.start_node_as(1, 1, &mut BTreeMap::new(), UnixTime(UNIX.0 - 31_000_000));
    net.until(Duration::from_secs(3), |net| net.ways(2, 1) == 1 && net.ways(1, 2) == 1);
    assert!(net.nodes[&1].epoch < before);
    let slot = net.slot(2, 1);
    net.event(2, Event::StaleEpoch { peer: slot });
    net.until(SOON, |net| net.nodes[&1].epoch > before);
}

#[test]
fn a_node_and_its_clone_both_alarm_within_five_seconds_and_then_take_turns_at_most_once_a_minute() {
    let mut net = ready(&[1], &[1, 2]);
    net.run(Duration::from_secs(20));
    let mut files = net.nodes[&1].files.clone();
    net.start_node_as(TWIN, 1, &mut files, UnixTime(UNIX.0 + 20));
    net.until(Duration::from_secs(5), both_alarm);
    net.run(Duration::from_secs(240));
    let epochs = [net.nodes[&1].epoch, net.nodes[&TWIN].epoch];
    let rises: u64 = epochs.iter().map(|epoch| epoch.0.saturating_sub(UNIX.0 + 20)).max().unwrap();
    assert!(rises <= 14, "{epochs:?}");
}

#[test]
fn two_machines_that_start_with_one_key_both_alarm_whatever_time_hubs_take() {
    for hubs in [&[1][..], &[1, 2]] {
        for (later, far) in [0, 300, 900, 1_500].into_iter().flat_map(|later| FAR.map(|far| (ms(later), ms(far)))) {
            let mut net = Net::new(hubs, &[1, 2]);
            for hub in net.hubs.values_mut() {
                hub.far = far;
            }
            net.run(later);
            // within the same second, it has the same epoch
            net.start_node_as(TWIN, 1, &mut BTreeMap::new(), UnixTime(UNIX.0 + later.as_secs()));
            net.until(Duration::from_secs(5) + 40 * far, both_alarm);
        }
    }
}

/// Milliseconds by which hubs are further away, one way.
const FAR: [u64; 4] = [0, 150, 600, 1_000];
/// A second machine with the key of the first.
const TWIN: u8 = 7;

fn both_alarm(net: &Net) -> bool {
    [1, TWIN].iter().all(|n| net.nodes[n].node.status().alarms.contains(&Alarm::Clone))
}

#[test]
fn with_all_hubs_dead_a_restarted_node_tries_the_peers_it_remembers() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1);
    net.session(1, 2);
    let slot = net.slot(1, 2);
    net.event(1, Event::DirectUp { peer: slot, endpoint: address(2) });
    net.event(1, Event::PeerEpoch { peer: slot, epoch: BootEpoch(UNIX.0) });
    net.run(Duration::from_secs(2));
    net.kill_hub(1);
    net.run(ms(100));
    let files = net.kill_node(1);
    net.start_node(1, files);
    let slot = net.slot(1, 2);
    assert_eq!(net.nodes[&1].direct[&slot], [address(2)]);
    assert_eq!(net.nodes[&1].connects, [slot]);
    assert_eq!(net.nodes[&1].known, [(slot, BootEpoch(UNIX.0))]);
    assert!(net.nodes[&1].interface.is_some(), "the roster of the last life holds");
    // the peer answers straight away, and is told where this node is
    let back = net.slot(2, 1);
    net.until(SOON, |net| net.nodes[&2].direct.get(&back).is_some_and(|direct| direct.contains(&address(1))));
    net.session(1, 2);
    assert!(net.nodes[&1].up.is_some(), "usable with no hub at all");
}

#[test]
fn an_idle_peer_gives_its_labels_back_and_is_not_watched() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1 && net.ways(2, 1) == 1);
    net.session(1, 2);
    let peer = net.slot(1, 2);
    net.event(1, Event::Idle { peer });
    net.run(ms(100));
    assert!(net.nodes[&1].labels.is_empty() && net.nodes[&1].given.is_empty());
    assert!(net.hubs[&1].heard.iter().any(|(n, m)| *n == 1 && *m == Control::Unwatch { peers: vec![member(2)] }));
}

#[test]
fn a_peer_that_nobody_reached_is_of_interest_for_a_minute_only() {
    let mut net = ready(&[1], &[1, 2]);
    net.kill_node(2);
    net.need(1, 2);
    net.run(Duration::from_secs(70));
    net.hubs.get_mut(&1).unwrap().heard.clear();
    net.run(Duration::from_secs(20));
    assert!(net.hubs[&1].heard.iter().all(|(_, message)| matches!(message, Control::Ping { .. })));
}

#[test]
fn a_peer_that_attaches_later_is_reached_as_soon_as_it_is_present() {
    let mut net = ready(&[1], &[1, 2]);
    let files = net.kill_node(2);
    net.run(ms(100));
    net.need(1, 2);
    net.run(Duration::from_secs(20));
    assert_eq!(net.ways(1, 2), 0);
    net.start_node(2, files);
    let took = net.until(SOON, |net| net.ways(1, 2) == 1 && net.ways(2, 1) == 1);
    assert!(took < ms(250), "{took:?}");
}

#[test]
fn a_label_that_a_hub_does_not_know_is_asked_for_again() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1);
    let label = *net.nodes[&1].labels.values().next().unwrap();
    let (stream, now) = (net.nodes[&1].node.status().hubs[0].slot, net.now);
    let node = &mut net.nodes.get_mut(&1).unwrap().node;
    node.relays.handle_lost(stream, label, flatlan_relay::PathReason::NoRoute, now, &mut node.out);
    net.drain(1);
    assert!(!net.nodes[&1].labels.values().any(|of| *of == label));
    net.until(SOON, |net| net.ways(1, 2) == 1);
}

#[test]
fn a_label_by_which_nothing_is_answered_is_used_until_another_one_is_there() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1 && net.ways(2, 1) == 1);
    let (peer, hub) = (net.slot(1, 2), net.nodes[&1].node.status().hubs[0].slot);
    let label = |net: &Net| net.nodes[&1].labels[&(peer, hub)];
    let before = label(&net);
    net.event(1, Event::HubSilent { peer, hub });
    net.run(ms(500));
    assert_eq!(label(&net), before, "it is fresh");
    net.run(Duration::from_secs(5));
    net.event(1, Event::HubSilent { peer, hub });
    // where it is not answered, the old one stays
    net.hubs.get_mut(&1).unwrap().frozen = true;
    net.run(ms(1500));
    net.hubs.get_mut(&1).unwrap().frozen = false;
    net.run(Duration::from_secs(5));
    assert_eq!(label(&net), before);
    net.event(1, Event::HubSilent { peer, hub });
    while label(&net) == before {
        assert_eq!(net.ways(1, 2), 1);
        net.run(ms(1));
    }
    net.until(SOON, |net| net.ways(1, 2) == 1 && net.ways(2, 1) == 1);
    let closed = |of| move |(n, message): &(u8, Control)| *n == 1 && *message == Control::PathClose { label: of };
    net.until(SOON, |net| net.hubs[&1].heard.iter().any(closed(before)));
    assert!(!net.hubs[&1].heard.iter().any(closed(label(&net))));
    net.until(SOON, |net| net.nodes[&2].given.len() == 1);
}

#[test]
fn a_label_that_leads_nowhere_is_renewed_while_a_path_is_needed() {
    let mut net = ready(&[1, 2], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 2);
    let before = net.nodes[&1].labels.clone();
    net.run(Duration::from_secs(6));
    net.need(1, 2);
    net.until(SOON, |net| net.nodes[&1].labels.iter().all(|(of, label)| before[of] != *label));
    assert_eq!(net.ways(1, 2), 2);
}

#[test]
fn a_label_that_another_direction_has_is_not_used_and_not_given_back() {
    let mut net = ready(&[1], &[1, 2, 3]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1);
    let hub = net.nodes[&1].node.status().hubs[0].slot;
    let label = net.nodes[&1].labels[&(net.slot(1, 2), hub)];
    net.hubs.get_mut(&1).unwrap().repeats = true;
    net.need(1, 3);
    net.run(Duration::from_secs(3));
    let of = |net: &Net, peer| net.nodes[&1].labels.get(&(net.slot(1, peer), hub)).copied();
    assert_eq!((of(&net, 2), of(&net, 3)), (Some(label), None));
    assert!(!net.hubs[&1].heard.iter().any(|(_, message)| *message == Control::PathClose { label }));
    net.hubs.get_mut(&1).unwrap().repeats = false;
    net.until(Duration::from_secs(10), |net| net.ways(1, 3) == 1);
    assert_eq!((of(&net, 2), net.ways(1, 2)), (Some(label), 1));
}

#[test]
fn the_status_says_by_which_hubs_a_way_goes_that_has_moved() {
    let mut net = ready(&[1], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 1);
    let hub = net.nodes[&1].node.status().hubs[0].slot;
    let label = net.nodes[&1].labels[&(net.slot(1, 2), hub)];
    let via = |net: &Net| net.nodes[&1].node.status().peers[0].relays.clone();
    let key = net.hubs[&1].key();
    assert_eq!(via(&net), [(hub, vec![key])]);
    let conn = net.hubs[&1].control_of(&member(1)).unwrap();
    let ways = [vec![key, hub_secret(2).public()], vec![key]];
    for way in ways {
        net.tell(conn, &Control::PathMoved { label, via: way.clone() });
        net.run(ms(100));
        assert_eq!(via(&net), [(hub, way)]);
    }
}

#[test]
fn the_workers_are_told_which_hubs_a_way_crosses_behind_the_first() {
    let mut net = ready(&[1, 2], &[1, 2]);
    net.need(1, 2);
    net.until(SOON, |net| net.ways(1, 2) == 2);
    let keys = [1, 2].map(|hub| net.hubs[&hub].key());
    let hubs = net.nodes[&1].node.status().hubs;
    let [first, second] = keys.map(|key| hubs.iter().find(|hub| hub.key == key).unwrap().slot);
    let slot = net.slot(1, 2);
    let over = |net: &Net| net.nodes[&1].over[&(slot, first)].clone();
    assert_eq!(over(&net), []);
    let label = net.nodes[&1].labels[&(slot, first)];
    let conn = net.hubs[&1].control_of(&member(1)).unwrap();
    for (via, expected) in [(keys.to_vec(), vec![second]), (vec![keys[0]], vec![])] {
        net.tell(conn, &Control::PathMoved { label, via });
        net.run(ms(100));
        assert_eq!(over(&net), expected);
    }
}

#[test]
fn shutting_down_writes_what_is_worth_keeping_and_leaves_the_hubs() {
    let mut net = ready(&[1, 2], &[1, 2]);
    let peer = net.slot(1, 2);
    net.event(1, Event::DirectUp { peer, endpoint: address(2) });
    let now = net.now;
    net.nodes.get_mut(&1).unwrap().node.handle_shutdown(now);
    net.drain(1);
    let peers = persist::decode_peers(&net.nodes[&1].files[persist::PEERS]).unwrap();
    assert_eq!(peers[0].endpoints, [address(2)]);
    assert!(net.nodes[&1].hubs.is_empty());
    assert_eq!(net.nodes[&1].node.poll_timeout(), None);
}
