//! Several hubs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use flatlan_hub::{Allow, ForwardDrop, HubEvent, StreamId};
use flatlan_relay::{Control, PathOpen, PathReason, Presence, Proof, RefusedCode, Role};
use flatlan_types::{BootEpoch, InviteSecret, Label};

use crate::world::{
    Admin, DELAY, Who, World, allow, fatten, hub_key, hubs, lan, line, open_invites, redeem_invites, tenant,
};

/// Hubs 0 and 2, which reach each other over hub 1 and over hub 3 only.
fn two_ways() -> (World, Admin) {
    let mut admin = lan(&[0, 1, 2, 3], 2);
    let mut world = World::new(4, allow(&[admin.id]));
    world.cut(Who::Hub(0), Who::Hub(2));
    world.cut(Who::Hub(1), Who::Hub(3));
    world.node(1);
    world.node(2);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(6));
    (world, admin)
}

#[test]
fn a_roster_published_to_one_hub_reaches_all_and_all_become_neighbours() {
    let (world, admin) = hubs(3, 2);
    for at in 0..3 {
        assert_eq!(world.up(at).len(), 2, "hub {at}");
        let status = world.hubs[at].hub.networks().next().unwrap();
        assert_eq!(status.roster.unwrap().1, admin.last.as_ref().unwrap().version());
        assert!(world.hubs[at].disk.contains_key(&admin.id));
        assert!(world.hubs[at].hub.neighbours().all(|neighbour| neighbour.udp), "hub {at}");
    }
}

#[test]
fn many_long_rosters_reach_a_hub_that_missed_them_all_over_one_stream() {
    let mut admins = [9, 10, 11].map(|seed| tenant(seed, &[0, 1], 1));
    let mut world = World::new(2, allow(&admins.each_ref().map(|admin| admin.id)));
    world.node(1);
    for admin in &mut admins {
        fatten(admin);
        world.publish(0, admin);
        assert!(world.hubs[0].disk[&admin.id].bundle.len() > flatlan_relay::MAX_PART);
    }
    world.run(Duration::from_secs(4));
    let version = |world: &World, admin: &Admin| {
        let status = world.hubs[1].hub.networks().find(|status| status.network == admin.id).unwrap();
        status.roster.map(|(_, version)| version)
    };
    for admin in &admins {
        assert_eq!(version(&world, admin), admin.last.as_ref().map(flatlan_roster::VerifiedRoster::version));
    }
    // And when all are published again, one after the other in one moment.
    for admin in &mut admins {
        world.publish(0, admin);
    }
    world.run(Duration::from_secs(1));
    for admin in &admins {
        assert_eq!(version(&world, admin), admin.last.as_ref().map(flatlan_roster::VerifiedRoster::version));
    }
}

#[test]
fn more_claims_than_one_message_carries_reach_a_hub_that_missed_them() {
    let mut admin = lan(&[0, 1], 1);
    open_invites(&mut admin, 0, 400);
    let mut world = World::new(2, allow(&[admin.id]));
    world.node(1);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(2));
    let redeemed = redeem_invites(&admin, 0, 400);
    world.cut(Who::Hub(0), Who::Hub(1));
    world.run(Duration::from_secs(4));
    let with = admin.last.as_ref().unwrap().with_claims(redeemed).unwrap();
    world.upload(0, admin.id, &with.encode());
    world.heal();
    world.run(Duration::from_secs(10));
    let stored = &world.hubs[1].disk[&admin.id].bundle;
    let there = flatlan_roster::VerifiedRoster::verify(stored, &flatlan_roster::Ratchet::new(admin.id), None).unwrap();
    assert_eq!(there.claims().len(), 400);
}

#[test]
fn a_claim_is_checked_once_and_only_if_its_invite_is_open() {
    let mut admin = lan(&[0, 1], 1);
    open_invites(&mut admin, 1, 2);
    let mut world = World::new(2, allow(&[admin.id]));
    world.node(1);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(2));
    let redeemed = redeem_invites(&admin, 1, 2);
    let [first, second] = [0, 1].map(|n: usize| redeemed[n].encode());
    let network = admin.id;
    let mut checked = |claim: &Vec<u8>| {
        let claims = vec![claim.clone().into()];
        world.say_as_hub(1, 0, Control::Claims { network, from: 1, total: 1, claims });
        world.run(DELAY * 3);
        (world.hubs[0].hub.stats().claims_checked, world.up(0).len())
    };
    assert_eq!(checked(&first), (1, 1));
    assert_eq!(checked(&first), (1, 1));
    // Of an invite that nobody opened: its key is the first thing in a claim.
    let mut strange = second.clone();
    let key = strange.windows(2).position(|bytes| bytes == [0x58, 32]).unwrap() + 2;
    strange[key] ^= 1;
    assert_eq!(checked(&strange), (1, 1));
    // Forged: its bringer is not heard again.
    let mut forged = second;
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(checked(&forged), (2, 0));
}

#[test]
fn a_roster_whose_transfer_was_cut_short_is_asked_for_again() {
    let mut admin = lan(&[0, 1], 1);
    let mut world = World::new(2, allow(&[admin.id]));
    world.node(1);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(2));
    fatten(&mut admin);
    world.publish(0, &mut admin);
    // Every answer of hub 0 vanishes for less time than an adjacency's stream needs to be given up.
    world.cut.insert((Who::Hub(0), Who::Hub(1)));
    world.run(Duration::from_millis(2_500));
    world.heal();
    world.run(Duration::from_secs(25));
    let status = world.hubs[1].hub.networks().next().unwrap();
    assert_eq!(status.roster.unwrap().1, admin.last.as_ref().unwrap().version());
}

#[test]
fn nodes_on_two_hubs_are_relayed_over_both() {
    let (mut world, admin) = hubs(2, 2);
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let (to_b, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    assert_eq!(via, [hub_key(0), hub_key(1)]);
    let to_a = world.open(1, b, admin.id, world.id(0)).unwrap();
    assert!(world.passes(0, 0, to_b, 1));
    assert!(world.passes(1, 1, to_a, 0));
    assert!(world.hubs[1].forwarder.stats().forwarded.packets >= 2);
}

/// Node 0 at hub 0, with its control stream, and node 1 at hub 1.
fn one_node_each() -> (World, Admin, StreamId) {
    let (mut world, admin) = hubs(2, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    (world, admin, a)
}

#[test]
fn a_path_over_two_hubs_needs_one_as_soon_as_the_receiver_attaches_there() {
    let (mut world, admin, a) = one_node_each();
    let to_b = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.join(1, 0, admin.id);
    world.run(DELAY * 5);
    assert_passes_hub_0_alone(&mut world, to_b);
    world.kill(1);
    assert!(world.passes(0, 0, to_b, 1), "the other hub's end is no end of it");
    world.run(Duration::from_secs(8));
    assert!(world.passes(0, 0, to_b, 1));
    assert!(!world.heard(a).iter().any(|message| matches!(message, Control::PathLost { .. })));
}

#[test]
fn a_path_over_two_hubs_needs_one_as_soon_as_a_receiver_without_udp_attaches_there() {
    let (mut world, admin, a) = one_node_each();
    let to_b = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.attach(1, 0, admin.id);
    world.attach_data(1, 0, admin.id);
    world.run(DELAY * 5);
    assert_passes_hub_0_alone(&mut world, to_b);
}

#[test]
fn a_path_that_was_asked_for_before_the_receiver_attached_here_needs_one_hub_too() {
    let (mut world, admin, a) = one_node_each();
    ask_for_node_1(&mut world, a, &admin);
    world.attach(1, 0, admin.id);
    world.attach_data(1, 0, admin.id);
    let label = answered(&mut world, a);
    assert_passes_hub_0_alone(&mut world, label);
}

#[test]
fn a_path_stays_over_two_hubs_until_the_receiver_can_be_sent_to_here() {
    let (mut world, admin, a) = one_node_each();
    ask_for_node_1(&mut world, a, &admin);
    world.attach(1, 0, admin.id);
    let label = answered(&mut world, a);
    let forwarded = world.hubs[1].forwarder.stats().forwarded.packets;
    assert!(world.passes(0, 0, label, 1));
    assert!(world.hubs[1].forwarder.stats().forwarded.packets > forwarded, "there is no other way yet");
    world.attach_data(1, 0, admin.id);
    world.run(DELAY * 5);
    assert_passes_hub_0_alone(&mut world, label);
}

/// Node 0 asks its hub for the way to node 1, which does not answer yet.
fn ask_for_node_1(world: &mut World, control: StreamId, admin: &Admin) {
    world.hold_answers();
    let (from, to) = (world.id(0), world.id(1));
    let (via, avoid) = (Vec::new(), Vec::new());
    world.say(control, Control::PathOpen(PathOpen { request: 77, network: admin.id, from, to, hops: 8, via, avoid }));
    world.run(DELAY * 5);
}

/// It does: the label.
fn answered(world: &mut World, control: StreamId) -> Label {
    assert_eq!(world.release_answers(), 1, "another hub was asked");
    world.run(DELAY * 8);
    let opened = world.heard(control).into_iter().find_map(|message| match message {
        Control::PathOpened { request: 77, label, .. } => Some(label),
        _ => None,
    });
    opened.expect("the path was opened")
}

/// The way from hub 0 to node 1 by hub 2 is being led around a hub that drains when the node attaches to hub 0.
fn attached_amid_a_repair(before: impl Fn(&mut World)) -> (World, Label) {
    let (mut world, admin) = two_ways();
    let a = world.join(0, 0, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    before(&mut world);
    let left = if via[1] == hub_key(1) { 1 } else { 3 };
    world.hubs[left].hub.drain();
    world.run(DELAY * 10);
    world.attach(1, 0, admin.id);
    world.attach_data(1, 0, admin.id);
    (world, label)
}

#[test]
fn a_path_that_is_led_elsewhere_while_the_receiver_attaches_here_needs_one_hub_then() {
    let (mut world, label) = attached_amid_a_repair(World::hold_answers);
    assert_eq!(world.release_answers(), 1, "another way was asked for");
    world.run(DELAY * 20);
    assert_passes_hub_0_alone(&mut world, label);
}

#[test]
fn a_path_that_could_not_be_led_elsewhere_while_the_receiver_attached_here_needs_one_hub_then() {
    let (mut world, label) = attached_amid_a_repair(|world| world.cut(Who::Node(1), Who::Hub(2)));
    world.run(Duration::from_secs(4));
    assert_passes_hub_0_alone(&mut world, label);
}

/// What node 0 sends node 1 by this label of hub 0 crosses hub 0 and no other.
fn assert_passes_hub_0_alone(world: &mut World, label: Label) {
    let elsewhere =
        |world: &World| -> u64 { world.hubs.iter().skip(1).map(|site| site.forwarder.stats().forwarded.packets).sum() };
    let before = elsewhere(world);
    assert!(world.passes(0, 0, label, 1));
    assert_eq!(elsewhere(world), before, "it goes by the nearer hub");
}

#[test]
fn where_udp_between_hubs_is_blocked_their_data_goes_over_the_stream() {
    let all = [0, 1];
    let mut admin = lan(&all, 2);
    let mut world = World::new(2, allow(&[admin.id]));
    world.udp_cut.extend([(Who::Hub(0), Who::Hub(1)), (Who::Hub(1), Who::Hub(0))]);
    world.node(1);
    world.node(2);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(3));
    assert!(world.hubs[0].hub.neighbours().all(|neighbour| neighbour.up && !neighbour.udp));
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 1, admin.id);
    let to_b = world.open(0, a, admin.id, world.id(1)).unwrap();
    let to_a = world.open(1, b, admin.id, world.id(0)).unwrap();
    assert!(world.passes(0, 0, to_b, 1) && world.passes(1, 1, to_a, 0));
    // And over UDP once it works.
    world.heal();
    world.run(Duration::from_secs(8));
    assert!(world.hubs[0].hub.neighbours().all(|neighbour| neighbour.udp));
    assert!(world.passes(0, 0, to_b, 1) && world.passes(1, 1, to_a, 0));
}

#[test]
fn a_watcher_hears_of_a_peer_at_another_hub_within_moments() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    let peer = world.id(1);
    world.say(a, Control::Watch { peers: vec![peer] });
    world.run(DELAY * 3);
    assert!(world.heard(a).contains(&Control::Absent { peer, hub: None }));
    let b = world.attach(1, 2, admin.id);
    world.run(DELAY * 4);
    let told: Vec<_> = world.heard(a);
    assert!(told.iter().any(|message| matches!(message, Control::Presence { presence }
        if Presence::verify(presence).unwrap().hub() == hub_key(2))));
    world.close(b);
    world.run(DELAY * 5);
    assert!(world.heard(a).contains(&Control::Absent { peer, hub: Some(hub_key(2)) }));
}

#[test]
fn that_a_hubs_last_node_left_is_found_by_a_hub_that_missed_it() {
    let (mut world, admin) = hubs(2, 2);
    let b = world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let present = |world: &World| world.hubs[0].hub.networks().next().unwrap().present;
    assert_eq!(present(&world), 1);
    world.cut(Who::Hub(0), Who::Hub(1));
    world.close(b);
    world.run(Duration::from_millis(1_500));
    world.heal();
    world.run(Duration::from_secs(6));
    assert_eq!(present(&world), 0);
}

#[test]
fn a_path_is_found_where_one_of_the_hubs_said_to_hold_the_receiver_does_not() {
    for (holder, other) in [(1, 2), (2, 1)] {
        let (mut world, admin) = hubs(3, 2);
        // The other one cannot mend it.
        world.cut(Who::Hub(1), Who::Hub(2));
        world.run(Duration::from_secs(2));
        let a = world.join(0, 0, admin.id);
        world.join(1, holder, admin.id);
        world.run(DELAY * 5);
        // Signed by the node, which then did not attach there.
        let mut order = world.nodes[1].order;
        order.counter += 1;
        let presence = Presence::sign(&world.nodes[1].secret, admin.id, hub_key(other), order).encode();
        let presences = vec![presence.into()];
        world.say_as_hub(holder, 0, Control::PresenceFlood { network: admin.id, presences });
        world.run(DELAY * 5);
        let label = world.open(0, a, admin.id, world.id(1)).unwrap();
        assert!(world.passes(0, 0, label, 1));
        assert_eq!(world.hubs[0].hub.stats().requests, 0);
    }
}

#[test]
fn paths_of_a_network_leave_a_hub_that_left_its_roster_and_serves_another() {
    let (mut red, mut blue) = (lan(&[0, 1], 2), tenant(10, &[0, 1], 2));
    let mut world = World::new(2, allow(&[red.id, blue.id]));
    world.node(1);
    world.node(2);
    world.publish(0, &mut red);
    world.publish(0, &mut blue);
    world.run(Duration::from_secs(2));
    let a = world.join(0, 0, red.id);
    let b = world.join(1, 1, red.id);
    world.run(DELAY * 5);
    let there = world.open(0, a, red.id, world.id(1)).unwrap();
    let back = world.open(1, b, red.id, world.id(0)).unwrap();
    assert!(world.passes(0, 0, there, 1) && world.passes(1, 1, back, 0));
    red.hubs = vec![0];
    world.publish(0, &mut red);
    assert_eq!(world.up(0), [hub_key(1)]);
    assert!(!world.passes(0, 0, there, 1) && !world.passes(1, 1, back, 0));
    assert!(world.heard(a).contains(&Control::PathLost { label: there, reason: PathReason::HubLost }));
    assert_eq!((world.hubs[0].hub.stats().labels, world.hubs[0].forwarder.labels()), (0, 0));
}

#[test]
fn a_request_that_waits_during_a_revocation_becomes_no_label() {
    let (mut world, mut admin) = hubs(2, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    let upload = world.attach_with(1, 1, admin.id, Role::Admin, Proof::Nothing);
    let (network, from, to) = (admin.id, world.id(0), world.id(1));
    world.say(a, Control::PathOpen(PathOpen { request: 1, network, from, to, hops: 8, via: vec![], avoid: vec![] }));
    world.run(DELAY * 2);
    assert_eq!(world.hubs[1].hub.stats().requests, 1);
    admin.revoke("n0");
    let bytes = admin.sign();
    world.say(upload, Control::PutRoster { network, total: bytes.len() as u32, offset: 0, bytes });
    world.run(DELAY * 2);
    assert!(world.nodes[1].log.iter().any(|(_, message)| matches!(message, Control::PathOpen(_))));
    assert_eq!((world.hubs[1].hub.stats().labels, world.hubs[1].hub.stats().requests), (0, 0));
}

#[test]
fn a_line_of_five_hubs_carries_traffic_from_end_to_end() {
    let (mut world, admin) = line(5, 2);
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 4, admin.id);
    world.run(DELAY * 10);
    let (to_b, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    assert_eq!(via, [0, 1, 2, 3, 4].map(hub_key));
    let to_a = world.open(1, b, admin.id, world.id(0)).unwrap();
    assert!(world.passes(0, 0, to_b, 1) && world.passes(1, 4, to_a, 0));
}

#[test]
fn the_sender_is_told_of_a_way_that_moved_behind_its_own_hub() {
    // 0 - 1 - 2 - 3, and 1 - 4 - 3.
    let mut admin = lan(&[0, 1, 2, 3, 4], 2);
    let mut world = World::new(5, allow(&[admin.id]));
    for (a, b) in [(0, 2), (0, 3), (0, 4), (1, 3), (2, 4)] {
        world.cut(Who::Hub(a), Who::Hub(b));
    }
    world.node(1);
    world.node(2);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(6));
    let a = world.join(0, 0, admin.id);
    world.join(1, 3, admin.id);
    world.run(DELAY * 10);
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    let (dead, other) = if via[2] == hub_key(2) { (2, 4) } else { (4, 2) };
    assert_eq!(via, [0, 1, dead, 3].map(hub_key));
    for end in [1, 3] {
        world.cut(Who::Hub(dead), Who::Hub(end));
    }
    world.run(Duration::from_secs(1));
    assert!(world.passes(0, 0, label, 1));
    let via = [0, 1, other, 3].map(hub_key).to_vec();
    let heard = world.heard(a);
    assert!(heard.contains(&Control::PathMoved { label, via }), "{heard:?}");
}

#[test]
fn a_hub_that_dies_silently_on_the_way_is_gone_around_within_700_ms_under_the_same_label() {
    // At any moment between two hellos.
    for phase in 0..8 {
        // 0 - 1 - 2, and 0 - 3 - 2; 0 and 2 do not reach each other.
        let mut admin = lan(&[0, 1, 2, 3], 2);
        let mut world = World::new(4, allow(&[admin.id]));
        world.cut(Who::Hub(0), Who::Hub(2));
        world.cut(Who::Hub(1), Who::Hub(3));
        world.node(1);
        world.node(2);
        world.publish(0, &mut admin);
        world.run(Duration::from_secs(6));
        let a = world.join(0, 0, admin.id);
        world.join(1, 2, admin.id);
        world.run(DELAY * 5 + Duration::from_millis(25) * phase);
        let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
        assert!(world.passes(0, 0, label, 1));
        let dead = if via[1] == hub_key(1) { 1 } else { 3 };
        // No stream ends.
        for other in [0, 2] {
            world.cut(Who::Hub(dead), Who::Hub(other));
        }
        assert!(!world.passes(0, 0, label, 1), "it did not carry the traffic");
        world.run(Duration::from_millis(700));
        assert!(world.passes(0, 0, label, 1), "phase {phase}, via {via:?}");
        let heard = world.heard(a);
        assert!(!heard.iter().any(|message| matches!(message, Control::PathLost { .. })));
        assert!(world.hubs[0].events.contains(&HubEvent::NeighbourDown { hub: hub_key(dead) }));
        let via = [0, if dead == 1 { 3 } else { 1 }, 2].map(hub_key).to_vec();
        assert!(heard.contains(&Control::PathMoved { label, via }), "{heard:?}");
    }
}

#[test]
fn a_hub_that_dies_silently_under_traffic_is_gone_around_within_300_ms() {
    for phase in 0..8 {
        let (mut world, admin) = two_ways();
        let a = world.join(0, 0, admin.id);
        world.join(1, 2, admin.id);
        world.run(DELAY * 5);
        let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
        let dead = if via[1] == hub_key(1) { 1 } else { 3 };
        world.stream(0, 0, label, Duration::from_millis(1000 + 7 * phase));
        world.hubs[0].events.clear();
        for other in [0, 2] {
            world.cut(Who::Hub(dead), Who::Hub(other));
        }
        assert!(!world.passes(0, 0, label, 1), "it did not carry the traffic");
        world.stream(0, 0, label, Duration::from_millis(300));
        assert!(world.passes(0, 0, label, 1), "phase {phase}, via {via:?}");
        // Its death is found out later.
        assert_eq!(world.hubs[0].events, [HubEvent::NeighbourLate { hub: hub_key(dead) }], "phase {phase}");
        assert!(!world.heard(a).iter().any(|message| matches!(message, Control::PathLost { .. })));
    }
}

#[test]
fn ten_percent_of_loss_makes_no_hub_late() {
    let (mut world, admin) = two_ways();
    let a = world.join(0, 0, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.hubs.iter_mut().for_each(|site| site.events.clear());
    world.lost = 10;
    world.stream(0, 0, label, Duration::from_secs(30));
    let late = |event: &HubEvent| matches!(event, HubEvent::NeighbourLate { .. } | HubEvent::NeighbourDown { .. });
    assert!(world.hubs.iter().all(|site| !site.events.iter().any(late)));
}

#[test]
fn a_hub_that_was_late_without_cause_gets_twice_the_time_until_it_was_on_time_for_long() {
    let (mut world, admin) = two_ways();
    let a = world.join(0, 0, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let late = |world: &mut World, label| {
        world.stream(0, 0, label, Duration::from_secs(1));
        world.hubs[0].events.clear();
        for dumb in [1, 3] {
            world.cut(Who::Hub(0), Who::Hub(dumb));
        }
        world.stream(0, 0, label, Duration::from_millis(180));
        world.heal();
        world.cut(Who::Hub(0), Who::Hub(2));
        world.cut(Who::Hub(1), Who::Hub(3));
        world.stream(0, 0, label, Duration::from_millis(100));
        assert!(world.passes(0, 0, label, 1));
        world.hubs[0].events.len()
    };
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    assert_eq!([0; 3].map(|_| late(&mut world, label)), [1, 0, 0]);
    world.run(Duration::from_secs(350));
    // nodes that said nothing are gone, hubs speak
    let a = world.join(0, 0, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    assert_eq!(late(&mut world, label), 1);
}

/// Hubs 0 - 1 - 2, and the longer way 0 - 3 - 4 - 2.
fn part_near_and_far(world: &mut World) {
    for (a, b) in [(0, 2), (0, 4), (1, 3), (1, 4), (2, 3)] {
        world.cut(Who::Hub(a), Who::Hub(b));
    }
}

fn near_and_far() -> (World, Admin) {
    let mut admin = lan(&[0, 1, 2, 3, 4], 2);
    let mut world = World::new(5, allow(&[admin.id]));
    part_near_and_far(&mut world);
    world.node(1);
    world.node(2);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(6));
    (world, admin)
}

/// Hub 1 says nothing to hub 0 for so long that it is late, and is on time again.
fn make_late(world: &mut World, label: Label) {
    world.cut(Who::Hub(0), Who::Hub(1));
    world.stream(0, 0, label, Duration::from_millis(190));
    world.heal();
    part_near_and_far(world);
}

#[test]
fn what_was_led_around_a_hub_that_was_late_without_cause_is_led_back_when_it_is_on_time_again() {
    let (mut world, admin) = near_and_far();
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    assert_eq!(via, [0, 1, 2].map(hub_key));
    world.stream(0, 0, label, Duration::from_secs(1));
    world.heard(a);
    make_late(&mut world, label);
    let moved = |via: &[usize]| Control::PathMoved { label, via: via.iter().map(|hub| hub_key(*hub)).collect() };
    world.stream(0, 0, label, Duration::from_secs(2));
    assert!(world.hubs[0].events.contains(&HubEvent::NeighbourLate { hub: hub_key(1) }));
    let heard = world.heard(a);
    assert!(heard.contains(&moved(&[0, 3, 4, 2])), "{heard:?}");
    assert!(!heard.contains(&moved(&[0, 1, 2])), "it is not trusted at once");
    for _ in 0..4 {
        [a, b].into_iter().for_each(|stream| world.say(stream, Control::Ping { time: 1 }));
        world.stream(0, 0, label, Duration::from_secs(1));
    }
    let heard = world.heard(a);
    assert!(heard.contains(&moved(&[0, 1, 2])), "{heard:?}");
    assert!(world.passes(0, 0, label, 1));
}

#[test]
fn of_thousands_of_ways_that_were_led_around_a_late_hub_every_one_is_led_back() {
    let (mut world, admin) = near_and_far();
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    // far more than are led back in one turn
    let labels: BTreeSet<Label> = (0..2500).map(|_| world.open(0, a, admin.id, world.id(1)).unwrap()).collect();
    let last = labels.last().copied().unwrap();
    world.stream(0, 0, last, Duration::from_secs(1));
    world.heard(a);
    make_late(&mut world, last);
    let mut ways = BTreeMap::new();
    for _ in 0..6 {
        // so that the nodes are not taken for dead
        [a, b].into_iter().for_each(|stream| world.say(stream, Control::Ping { time: 1 }));
        world.stream(0, 0, last, Duration::from_secs(1));
        for message in world.heard(a) {
            if let Control::PathMoved { label, via } = message {
                ways.entry(label).or_insert_with(Vec::new).push(via);
            }
        }
    }
    assert_eq!(ways.len(), labels.len());
    for (label, ways) in ways {
        assert_eq!(
            ways,
            [&[0, 3, 4, 2][..], &[0, 1, 2]].map(|way| way.iter().map(|hub| hub_key(*hub)).collect::<Vec<_>>()),
            "{label:?}"
        );
    }
}

#[test]
fn a_way_that_crosses_a_hub_to_avoid_leaves_it_as_soon_as_the_receiver_is_elsewhere_too() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[1]).unwrap();
    assert_eq!(via, [hub_key(0), hub_key(1)]);
    world.join(1, 2, admin.id);
    world.run(DELAY * 20);
    // Nobody knows yet that hub 1 is gone.
    for other in [0, 2] {
        world.cut(Who::Hub(1), Who::Hub(other));
    }
    assert!(world.passes(0, 0, label, 1));
}

#[test]
fn a_way_leaves_a_hub_as_soon_as_its_sender_is_there_too() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    // The sender is nowhere else yet.
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    assert_eq!(via, [hub_key(0), hub_key(1)]);
    world.join(1, 2, admin.id);
    world.join(0, 1, admin.id);
    world.run(DELAY * 20);
    // Nobody knows yet that hub 1 is gone.
    for other in [0, 2] {
        world.cut(Who::Hub(1), Who::Hub(other));
    }
    assert!(world.passes(0, 0, label, 1));
}

#[test]
fn a_request_to_a_hub_that_died_in_silence_goes_around_it_once_that_is_known() {
    let (mut world, admin) = two_ways();
    let a = world.join(0, 0, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let (_, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    let (dead, other) = if via[1] == hub_key(1) { (1, 3) } else { (3, 1) };
    for beside in [0, 2] {
        world.cut(Who::Hub(dead), Who::Hub(beside));
    }
    let began = world.now;
    let (_, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    assert_eq!(via, [0, other, 2].map(hub_key));
    assert!(world.now - began < Duration::from_millis(800), "{:?}", world.now - began);
}

#[test]
fn a_way_that_breaks_while_another_is_asked_for_is_lost_when_the_answer_does_not_come() {
    let (mut world, admin) = two_ways();
    let a = world.join(0, 0, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    let left = if via[1] == hub_key(1) { 1 } else { 3 };
    // The receiver answers nothing more.
    world.cut(Who::Node(1), Who::Hub(2));
    world.hubs[left].hub.drain();
    world.run(DELAY * 10);
    for beside in [0, 2] {
        world.cut(Who::Hub(left), Who::Hub(beside));
    }
    world.run(Duration::from_secs(4));
    assert!(
        world.heard(a).iter().any(|message| matches!(message, Control::PathLost { label: of, .. } if *of == label))
    );
}

#[test]
fn turns_that_come_a_little_late_put_off_no_neighbours_death() {
    for phase in 0..16 {
        let (mut world, _) = hubs(2, 1);
        world.late = Duration::from_millis(40);
        world.run(Duration::from_secs(1) + Duration::from_millis(13) * phase);
        world.cut(Who::Hub(0), Who::Hub(1));
        world.run(Duration::from_millis(700));
        assert!(world.up(0).is_empty() && world.up(1).is_empty(), "phase {phase}");
    }
}

#[test]
fn hubs_that_stood_still_take_no_neighbour_for_dead() {
    let (mut world, _) = hubs(3, 1);
    for _ in 0..3 {
        world.now += Duration::from_secs(1);
        world.run(Duration::from_secs(1));
    }
    for site in &world.hubs {
        assert!(!site.events.iter().any(|event| matches!(event, HubEvent::NeighbourDown { .. })), "{:?}", site.events);
    }
}

#[test]
fn a_killed_hub_costs_moments_and_the_one_beside_it_takes_over() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    // B is at hubs 1 and 2.
    world.join(1, 1, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[1]).unwrap();
    assert_eq!(via, [hub_key(0), hub_key(2)]);
    world.kill(2);
    world.run(Duration::from_millis(50));
    assert!(world.passes(0, 0, label, 1));
}

#[test]
fn where_there_is_no_other_way_the_sender_is_told_at_once() {
    let (mut world, admin) = hubs(2, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.kill(1);
    world.run(DELAY * 5);
    assert!(world.heard(a).contains(&Control::PathLost { label, reason: PathReason::HubLost }));
    assert_eq!(world.hubs[0].hub.stats().labels, 0);
}

#[test]
fn a_way_avoids_the_hubs_that_the_node_uses_otherwise_if_it_can() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    for (avoid, expected) in [(1, 2), (2, 1)] {
        let (_, via) = world.open_around(0, a, admin.id, world.id(1), &[avoid]).unwrap();
        assert_eq!(via, [hub_key(0), hub_key(expected)]);
    }
    assert!(world.open_around(0, a, admin.id, world.id(1), &[1, 2]).is_ok());
}

#[test]
fn a_draining_hub_is_left_by_what_only_passes_through_it_without_losing_a_packet() {
    // 0 - 1 - 2 and 0 - 3 - 2.
    let mut admin = lan(&[0, 1, 2, 3], 2);
    let mut world = World::new(4, allow(&[admin.id]));
    world.cut(Who::Hub(0), Who::Hub(2));
    world.cut(Who::Hub(1), Who::Hub(3));
    world.node(1);
    world.node(2);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(6));
    let a = world.join(0, 0, admin.id);
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let (label, via) = world.open_around(0, a, admin.id, world.id(1), &[]).unwrap();
    let drained = if via[1] == hub_key(1) { 1 } else { 3 };
    let before = world.nodes[1].frames.len();
    world.hubs[drained].hub.drain();
    for n in 0..40u8 {
        world.send(0, 0, label, &[n]);
        world.run(DELAY);
    }
    world.run(DELAY * 10);
    assert_eq!(world.nodes[1].frames.len() - before, 40);
    let carried = world.hubs[drained].forwarder.stats().forwarded.packets;
    assert!(world.passes(0, 0, label, 1));
    assert_eq!(world.hubs[drained].forwarder.stats().forwarded.packets, carried);
    // The old way is freed after a while.
    world.run(Duration::from_secs(6));
    assert_eq!(world.hubs[drained].hub.stats().labels, 0);
}

#[test]
fn a_hub_that_the_receiver_is_about_to_leave_for_another_is_left_without_losing_a_packet() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.join(1, 2, admin.id);
    world.run(DELAY * 5);
    let out = *world.nodes[1].given.keys().next().unwrap();
    let before = world.nodes[1].frames.len();
    world.say(b, Control::PathLost { label: out, reason: PathReason::Leaving });
    for n in 0..60u8 {
        if n == 40 {
            world.close(b);
        }
        world.send(0, 0, label, &[n]);
        world.run(DELAY);
    }
    world.run(DELAY * 10);
    assert_eq!(world.nodes[1].frames.len() - before, 60);
    assert!(!world.heard(a).iter().any(|message| matches!(message, Control::PathLost { .. })));
}

#[test]
fn a_draining_hub_carries_to_its_own_nodes_until_they_leave() {
    let (mut world, admin) = hubs(2, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.hubs[1].hub.drain();
    world.run(Duration::from_secs(1));
    assert!(world.passes(0, 0, label, 1));
    let another = world.open(0, a, admin.id, world.id(1)).unwrap();
    assert!(world.passes(0, 0, another, 1));
    world.join(1, 0, admin.id);
    assert!(world.open(0, a, admin.id, world.id(1)).is_ok());
}

#[test]
fn a_node_that_starts_elsewhere_ends_its_older_self_everywhere() {
    let (mut world, admin) = hubs(2, 2);
    let old = world.join(0, 0, admin.id);
    world.nodes[0].order.epoch = BootEpoch(world.nodes[0].order.epoch.0 + 7);
    world.join(0, 1, admin.id);
    world.run(DELAY * 5);
    assert_eq!(world.refusal(0, old), Some(RefusedCode::StaleEpoch));
    // And the older self is refused at the hub that never held the newer one.
    world.nodes[0].order.epoch = BootEpoch(world.nodes[0].order.epoch.0 - 7);
    let stream = world.attach(0, 0, admin.id);
    assert_eq!(world.refusal(0, stream), Some(RefusedCode::StaleEpoch));
}

#[test]
fn a_revocation_published_to_one_hub_is_in_force_at_all_within_moments() {
    let (mut world, mut admin) = hubs(3, 2);
    let victim = world.join(1, 2, admin.id);
    admin.revoke("n1");
    world.publish(0, &mut admin);
    world.run(DELAY * 10);
    assert_eq!(world.refusal(1, victim), Some(RefusedCode::NotMember));
}

#[test]
fn a_claim_redeemed_at_one_hub_lets_its_node_in_at_another() {
    let mut admin = lan(&[0, 1], 1);
    let invite = InviteSecret::from_bytes(&[42; 32]);
    admin.invite("new", "10.77.0.9", &invite, 1);
    let mut world = World::new(2, allow(&[admin.id]));
    world.node(1);
    let new = world.node(50);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(2));
    let answer = world.redeem(new, 1, admin.id, &invite);
    assert!(matches!(answer.last(), Some(Control::Redeemed { .. })), "{answer:?}");
    world.run(DELAY * 5);
    let stream = world.attach(new, 0, admin.id);
    assert_eq!(world.refusal(new, stream), None);
}

#[test]
fn what_a_partition_hid_is_found_when_it_heals() {
    let (mut world, mut admin) = hubs(2, 3);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    world.cut(Who::Hub(0), Who::Hub(1));
    world.run(Duration::from_secs(15));
    // Forgotten while it cannot be reached.
    assert_eq!(world.hubs[0].hub.networks().next().unwrap().present, 0);
    let _ = a;
    admin.revoke("n2");
    world.publish(1, &mut admin);
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 1, admin.id);
    world.heal();
    world.run(Duration::from_secs(8));
    let version = |world: &World, hub: usize| world.hubs[hub].hub.networks().next().unwrap().roster.unwrap().1;
    assert_eq!(version(&world, 0), version(&world, 1));
    let (a, b) = (rejoin(&mut world, 0, 0, a, &admin), rejoin(&mut world, 1, 1, b, &admin));
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    assert!(world.passes(0, 0, label, 1));
    assert!(world.open(1, b, admin.id, world.id(0)).is_ok());
}

#[test]
fn a_restarted_hub_is_a_neighbour_again_and_holds_nobody() {
    let (mut world, admin) = hubs(2, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    world.kill(1);
    world.restart(1);
    world.run(Duration::from_millis(900));
    assert_eq!(world.up(0), [hub_key(1)]);
    assert_eq!(world.open(0, a, admin.id, world.id(1)), Err(PathReason::NotAttached));
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    assert!(world.passes(0, 0, label, 1));
}

#[test]
fn among_hubs_that_all_reach_each_other_a_word_is_told_to_each_of_them_once() {
    let (mut world, admin) = hubs(8, 2);
    let counted = |world: &mut World, lsas, floods, what| {
        assert_eq!((world.lsas, world.floods), (lsas, floods), "{what}");
        (world.lsas, world.floods) = (0, 0);
    };
    (world.lsas, world.floods) = (0, 0);
    let control = world.join(0, 3, admin.id);
    world.run(Duration::from_millis(100));
    counted(&mut world, 0, 7, "a node is there");
    world.close(control);
    world.run(Duration::from_millis(100));
    counted(&mut world, 0, 7, "it left");
    world.kill(3);
    world.run(Duration::from_millis(100));
    counted(&mut world, 7 * 6, 0, "each other hub says that one is gone");
}

#[test]
fn hubs_that_all_meet_at_once_state_their_links_a_few_times_and_not_each_link_to_all() {
    const HUBS: usize = 12;
    let (world, _) = hubs(HUBS, 2);
    assert!((0..HUBS).all(|hub| world.up(hub).len() == HUBS - 1));
    let statements = world.lsas / (HUBS * (HUBS - 1));
    assert!(statements < 10, "{} link states: {statements} of each hub to each other", world.lsas);
}

#[test]
fn what_a_hub_said_to_one_that_heard_it_no_more_comes_by_another_soon_after_that_is_noticed() {
    let (mut world, admin) = hubs(3, 2);
    let (watched, watcher) = (world.id(0), world.join(1, 2, admin.id));
    world.say(watcher, Control::Watch { peers: vec![watched] });
    // Hub 1 takes it that hub 2 heard hub 0 itself.
    world.cut.insert((Who::Hub(0), Who::Hub(2)));
    world.run(Duration::from_millis(100));
    world.attach(0, 0, admin.id);
    world.heard(watcher);
    world.run(Duration::from_millis(2_500));
    let told = world.heard(watcher).into_iter().any(|message| matches!(message, Control::Presence { .. }));
    assert!(told, "hub 2 knows that the node is at hub 0");
}

#[test]
fn a_hub_that_serves_any_network_dials_nobody() {
    let mut admin = lan(&[0, 1], 1);
    let mut world = World::new(2, Allow::Any);
    world.node(1);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(3));
    assert!(world.up(0).is_empty());
    assert_eq!(world.hubs[1].hub.networks().count(), 0);
}

#[test]
fn an_adjacency_lives_on_udp_alone_while_its_stream_is_late() {
    let (mut world, _) = hubs(2, 1);
    world.run(Duration::from_secs(1));
    // Nothing but datagrams passes for two seconds.
    world.hubs[0].events.clear();
    let hold = world.hold_streams(Duration::from_secs(2));
    assert!(hold > 0);
    assert!(world.hubs[0].events.is_empty(), "{:?}", world.hubs[0].events);
    assert_eq!(world.dropped(0, ForwardDrop::BindForged), 0);
}

fn rejoin(world: &mut World, node: usize, hub: usize, stream: StreamId, admin: &Admin) -> StreamId {
    // A node that said nothing for long was let go.
    if world.refusal(node, stream).is_some() { world.join(node, hub, admin.id) } else { stream }
}
