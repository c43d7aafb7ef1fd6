//! Gateways that lost their LAN, and prefixes whose owner is away.

use std::collections::{BTreeMap, BTreeSet};

use flatlan_datapath::{Chosen, Event, Owner};
use flatlan_path::PathKind;
use flatlan_types::{BootEpoch, PeerSlot, Prefix};

use super::{
    SOON, ms,
    net::{MOVED, Net, SHARED, address},
    ready,
};
use crate::{
    Absence, Alarm, LanLack, LanLoss, Listed,
    lan::BACK_AFTER,
    peer_message::{MAX_WITHDRAWN, PeerMessage, Withdrawn},
    returns::{FORGOTTEN, HOLD},
};

/// Nodes of which some carry [`SHARED`] together, and to one of which [`MOVED`] moved; node 1 has sessions with all.
fn gateways(nodes: &[u8], carriers: &[u8], moved: Option<u8>) -> Net {
    let mut net = ready(&[1], nodes);
    (net.admin.carriers, net.admin.moved) = (carriers.to_vec(), moved);
    let newer = net.admin.sign(&[1], nodes, net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| nodes.iter().all(|n| net.serial(*n) == 2));
    for other in nodes.iter().copied().filter(|n| *n != 1) {
        net.need(1, other);
        net.session(1, other);
    }
    net.run(SOON);
    net
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// To whom node 1 sends what goes to this address.
fn chosen(net: &Net, ip: &str) -> BTreeSet<Owner> {
    let flows = (0..100_u32).map(|flow| flow * 7919);
    flows.filter_map(|flow| net.nodes[&1].snapshot.owner(ip.parse().unwrap(), || flow)).map(Chosen::owner).collect()
}

fn peers<const N: usize>(slots: [PeerSlot; N]) -> BTreeSet<Owner> {
    slots.map(Owner::Peer).into()
}

fn alarms(net: &Net, n: u8) -> Vec<Alarm> {
    net.nodes[&n].node.status().alarms
}

fn no_link() -> BTreeMap<Prefix, LanLoss> {
    BTreeMap::from([(prefix(SHARED), LanLoss::NoLink { device: "eth1".to_owned() })])
}

const HOST: &str = "10.200.0.9";
const MOVED_HOST: &str = "10.200.0.5";

#[test]
fn a_gateway_that_lost_its_lan_is_passed_over_until_it_has_had_it_back_for_a_while() {
    let mut net = gateways(&[1, 2, 3], &[2, 3], None);
    let [a, b] = [2, 3].map(|n| net.slot(1, n));
    assert_eq!(chosen(&net, HOST), peers([a, b]));

    net.lan(2, no_link());
    net.until(ms(100), |net| chosen(net, HOST) == peers([b]));
    let gateway = "n2".parse().unwrap();
    assert_eq!(alarms(&net, 1), [Alarm::Withdrawn { gateway, lack: LanLack::Link }]);
    assert!(matches!(alarms(&net, 2).as_slice(), [Alarm::LanLost { .. }]), "{:?}", alarms(&net, 2));
    let status = net.nodes[&2].node.status().me;
    assert_eq!((status.withdrawn, status.withdrawals), (no_link().into_iter().collect(), 1));
    let told = net.nodes[&1].node.status().peers;
    assert!(told.iter().any(|peer| peer.name.as_str() == "n2" && peer.withdrawn == [prefix(SHARED)]));

    // a link that comes and goes moves flows once
    net.lan(2, BTreeMap::new());
    net.run(BACK_AFTER / 2);
    net.lan(2, no_link());
    net.run(BACK_AFTER * 2);
    assert_eq!(chosen(&net, HOST), peers([b]));
    assert_eq!(net.nodes[&2].node.status().me.withdrawals, 1);

    net.lan(2, BTreeMap::new());
    net.run(BACK_AFTER / 2);
    assert_eq!(chosen(&net, HOST), peers([b]));
    net.until(BACK_AFTER, |net| chosen(net, HOST) == peers([a, b]));
    assert_eq!((alarms(&net, 1), alarms(&net, 2)), (vec![], vec![]));
}

/// A gateway falls silent and answers again.
fn flap(net: &mut Net, peer: PeerSlot) {
    net.event(1, Event::PeerSilent { peer });
    net.event(1, Event::PeerAnswers { peer });
}

#[test]
fn a_gateway_that_comes_and_goes_gets_its_flows_back_ever_later_but_whenever_they_need_it() {
    let mut net = gateways(&[1, 2, 3], &[2, 3], None);
    let [a, b] = [2, 3].map(|n| net.slot(1, n));
    flap(&mut net, a);
    assert_eq!(chosen(&net, HOST), peers([a, b]));

    flap(&mut net, a);
    assert_eq!(chosen(&net, HOST), peers([b]));
    assert_eq!(alarms(&net, 1), [Alarm::Unsteady { gateway: "n2".parse().unwrap() }]);
    net.run(HOLD / 2);
    assert_eq!(chosen(&net, HOST), peers([b]));
    net.until(HOLD, |net| chosen(net, HOST) == peers([a, b]));
    assert_eq!(alarms(&net, 1), []);

    flap(&mut net, a);
    net.run(HOLD * 3 / 2);
    assert_eq!(chosen(&net, HOST), peers([b]), "longer than the last time");
    net.event(1, Event::PeerSilent { peer: b });
    assert_eq!(chosen(&net, HOST), peers([a]), "nobody else is there");
    net.event(1, Event::PeerAnswers { peer: b });
    assert_eq!(chosen(&net, HOST), peers([b]));
    net.until(HOLD, |net| chosen(net, HOST) == peers([a, b]));

    net.run(FORGOTTEN);
    flap(&mut net, a);
    assert_eq!(chosen(&net, HOST), peers([a, b]));
}

#[test]
fn an_address_that_moved_is_not_held_back_for_the_site_that_it_left() {
    let mut net = gateways(&[1, 2, 3], &[2], Some(3));
    let dr = net.slot(1, 3);
    for _ in 0..5 {
        flap(&mut net, dr);
        assert_eq!(chosen(&net, MOVED_HOST), peers([dr]));
    }

    // and what moved to a gateway of a group is the group's
    let net = gateways(&[1, 2, 3], &[2, 3], Some(2));
    assert_eq!(chosen(&net, MOVED_HOST), peers([2, 3].map(|n| net.slot(1, n))));
}

#[test]
fn a_silent_gateway_that_nobody_wanted_for_long_is_tried_again() {
    let mut net = gateways(&[1, 2, 3], &[2, 3], None);
    let [a, b] = [2, 3].map(|n| net.slot(1, n));
    net.event(1, Event::PeerSilent { peer: a });
    assert_eq!(chosen(&net, HOST), peers([b]));
    // the workers have forgotten it: they will not say that it answers
    net.event(1, Event::Idle { peer: a });
    assert_eq!(chosen(&net, HOST), peers([a, b]));
}

#[test]
fn whoever_was_not_there_when_a_lan_was_lost_is_told_with_the_session() {
    let mut net = ready(&[1], &[1, 2, 3]);
    net.admin.carriers = vec![2, 3];
    let newer = net.admin.sign(&[1], &[1, 2, 3], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| [1, 2, 3].iter().all(|n| net.serial(*n) == 2));
    net.lan(2, no_link());
    net.run(SOON * 20);
    let [a, b] = [2, 3].map(|n| net.slot(1, n));
    assert_eq!(chosen(&net, HOST), peers([a, b]), "nobody spoke with it");
    net.need(1, 2);
    net.session(1, 2);
    net.until(SOON, |net| chosen(net, HOST) == peers([b]));
}

#[test]
fn what_is_lost_on_the_way_is_said_again_and_what_comes_late_does_not_count() {
    let mut net = gateways(&[1, 2, 3], &[2, 3], None);
    let [a, b] = [2, 3].map(|n| net.slot(1, n));
    let epoch = net.nodes[&2].epoch.0;
    let say = |count: u32, prefixes: Vec<Prefix>| PeerMessage {
        withdrawn: Some(Withdrawn { epoch, count, prefixes, reason: 3 }),
        ..PeerMessage::new()
    };
    net.peer_says(1, 2, &say(7, vec![prefix(SHARED)]));
    assert_eq!(chosen(&net, HOST), peers([b]));
    for late in [6, 7] {
        net.peer_says(1, 2, &say(late, Vec::new()));
        assert_eq!(chosen(&net, HOST), peers([b]), "{late}");
    }
    net.peer_says(1, 2, &say(8, Vec::new()));
    assert_eq!(chosen(&net, HOST), peers([a, b]));

    // a life that ended says nothing any more
    net.peer_says(1, 2, &say(9, vec![prefix(SHARED)]));
    net.event(1, Event::PeerEpoch { peer: a, epoch: BootEpoch(epoch + 1) });
    assert_eq!(chosen(&net, HOST), peers([a, b]));

    // nothing of the first three messages arrives
    let mut net = gateways(&[1, 2, 3], &[2, 3], None);
    net.nodes.get_mut(&2).unwrap().udp = false;
    net.hubs.get_mut(&1).unwrap().frozen = true;
    net.lan(2, no_link());
    net.run(ms(100));
    assert_eq!(chosen(&net, HOST), peers([a, b]));
    net.nodes.get_mut(&2).unwrap().udp = true;
    net.hubs.get_mut(&1).unwrap().frozen = false;
    net.until(SOON, |net| chosen(net, HOST) == peers([b]));
}

#[test]
fn a_member_withdraws_what_is_its_own_only_and_nonsense_is_counted() {
    let mut net = gateways(&[1, 2, 3, 4], &[2, 3], None);
    let [a, b, stranger] = [2, 3, 4].map(|n| net.slot(1, n));
    let generation = net.nodes[&1].snapshot.generation;
    let say = |epoch: u64, prefixes: Vec<Prefix>| PeerMessage {
        withdrawn: Some(Withdrawn { epoch, count: 0, prefixes, reason: 200 }),
        ..PeerMessage::new()
    };
    net.peer_says(1, 4, &say(u64::MAX, vec![prefix("0.0.0.0/0")]));
    assert_eq!(net.nodes[&1].snapshot.generation, generation);
    assert_eq!((chosen(&net, HOST), chosen(&net, "10.77.0.4")), (peers([a, b]), peers([stranger])));

    let refused = |net: &Net| net.nodes[&1].node.status().refused_messages;
    assert_eq!(refused(&net), 0);
    net.peer_says(1, 2, &say(u64::MAX, vec![prefix(SHARED); MAX_WITHDRAWN + 1]));
    let ingress = PathKind::Direct(address(2));
    net.event(1, Event::PeerMessage { peer: a, ingress, bytes: vec![0xff; 9] });
    assert_eq!((refused(&net), chosen(&net, HOST)), (2, peers([a, b])));

    // whoever carries something alone keeps it, and everything of a gateway can be withdrawn at once
    net.peer_says(1, 2, &say(u64::MAX, vec![prefix("0.0.0.0/0")]));
    assert_eq!((chosen(&net, HOST), chosen(&net, "10.77.0.2")), (peers([b]), peers([a])));
    net.peer_says(1, 3, &say(u64::MAX, vec![prefix(SHARED)]));
    assert_eq!(chosen(&net, HOST), peers([a, b]), "there is nobody else");
}

#[test]
fn a_lan_that_nobody_else_carries_is_lost_with_an_alarm() {
    let mut net = gateways(&[1, 2], &[2], None);
    let sole = net.slot(1, 2);
    net.lan(2, no_link());
    net.run(SOON);
    assert_eq!(chosen(&net, HOST), peers([sole]));
    assert!(matches!(alarms(&net, 2).as_slice(), [Alarm::LanLostAlone { .. }]), "{:?}", alarms(&net, 2));
    assert_eq!(alarms(&net, 1), []);
}

#[test]
fn a_prefix_whose_owner_is_silent_or_lost_its_lan_falls_back_to_the_one_around_it_until_it_is_back() {
    let mut net = gateways(&[1, 2, 3], &[2], Some(3));
    let [home, dr] = [2, 3].map(|n| net.slot(1, n));
    assert_eq!((chosen(&net, MOVED_HOST), chosen(&net, HOST)), (peers([dr]), peers([home])));
    let fallback = |why| Alarm::Fallback {
        prefixes: Listed(vec![prefix(MOVED)]),
        gateway: "n3".parse().unwrap(),
        why,
        to: Listed(vec!["n2".parse().unwrap()]),
    };

    net.event(1, Event::PeerSilent { peer: dr });
    assert_eq!((chosen(&net, MOVED_HOST), chosen(&net, HOST)), (peers([home]), peers([home])));
    assert_eq!(chosen(&net, "10.77.0.3"), peers([dr]), "its own address is nobody else's");
    assert_eq!(alarms(&net, 1), [fallback(Absence::Silent)]);
    // to know when it is back
    net.nodes.get_mut(&1).unwrap().kept_warm.clear();
    net.event(1, Event::SharedUsed { peer: home });
    assert_eq!(BTreeSet::from_iter(net.nodes[&1].kept_warm.iter().copied()), BTreeSet::from([home, dr]));
    net.event(1, Event::PeerAnswers { peer: dr });
    assert_eq!(chosen(&net, MOVED_HOST), peers([dr]));

    net.lan(3, BTreeMap::from([(prefix(MOVED), LanLoss::NoDevice { device: "eth1".to_owned() })]));
    net.until(ms(100), |net| chosen(net, MOVED_HOST) == peers([home]));
    assert_eq!(alarms(&net, 1), [fallback(Absence::Lan(LanLack::Device))]);
    net.lan(3, BTreeMap::new());
    net.until(BACK_AFTER * 2, |net| chosen(net, MOVED_HOST) == peers([dr]));
    assert_eq!(alarms(&net, 1), []);
}

#[test]
fn a_gateway_knows_what_others_of_its_group_carry_without_it() {
    let net = gateways(&[1, 2, 3], &[2, 3], Some(3));
    let beside = |n: u8| net.nodes[&n].interface.as_ref().unwrap().beside.clone();
    assert_eq!([beside(1), beside(2), beside(3)], [vec![], vec![prefix(MOVED)], vec![]]);
}

#[test]
fn who_carries_the_prefix_around_watches_the_owner_of_a_part_and_leads_it_to_its_own_lan_while_that_is_silent() {
    let mut net = gateways(&[1, 2, 3], &[2], Some(3));
    let dr = net.slot(2, 3);
    let leads = |net: &Net| net.nodes[&2].interface.as_ref().unwrap().routes.contains(&prefix(MOVED));
    let owner = |net: &Net| net.nodes[&2].snapshot.owner(MOVED_HOST.parse().unwrap(), || 7);
    assert!(leads(&net));
    net.run(SOON * 100);
    let warm = net.nodes[&2].kept_warm.iter().filter(|slot| **slot == dr).count();
    assert!(warm >= 4, "kept warm {warm} times in 50 s");
    assert!(net.nodes[&1].kept_warm.is_empty(), "it is no business of others");

    net.event(2, Event::PeerSilent { peer: dr });
    assert_eq!((leads(&net), owner(&net)), (false, Some(Chosen::Sole(Owner::Me))));
    assert!(matches!(alarms(&net, 2).as_slice(), [Alarm::Fallback { .. }]), "{:?}", alarms(&net, 2));
    // a new roster does not make it answer
    let newer = net.admin.sign(&[1], &[1, 2, 3], net.hubs[&1].roster.as_ref());
    net.publish(1, &newer);
    net.until(SOON, |net| net.serial(2) == 3);
    assert!(!leads(&net));
    net.event(2, Event::PeerAnswers { peer: dr });
    assert_eq!((leads(&net), owner(&net)), (true, Some(Chosen::Sole(Owner::Peer(dr)))));
    assert_eq!(alarms(&net, 2), []);
}
