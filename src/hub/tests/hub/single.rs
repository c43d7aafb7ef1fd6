//! One hub.

use std::time::Duration;

use flatlan_hub::{Allow, ForwardDrop, HubEvent, Limits, Quota, StoredNetwork};
use flatlan_relay::{Control, Leg, PathReason, Presence, Proof, RefusedCode, Role};
use flatlan_roster::{Ratchet, VerifiedRoster};
use flatlan_types::{BootEpoch, InviteSecret, Label, MemberId, NetworkId};

use crate::world::{Admin, DELAY, World, allow, hub_key, lan, node_secret, tenant};

/// A hub with a network of three, all attached and bound.
fn three() -> (World, Admin, [flatlan_hub::StreamId; 3]) {
    let mut admin = lan(&[0], 3);
    let mut world = World::new(1, allow(&[admin.id]));
    for n in 0..3 {
        world.node(n + 1);
    }
    world.publish(0, &mut admin);
    let streams = [0, 1, 2].map(|node| world.join(node, 0, admin.id));
    (world, admin, streams)
}

#[test]
fn two_nodes_are_relayed_and_the_label_names_the_sender() {
    let (mut world, admin, [a, b, _]) = three();
    let to_b = world.open(0, a, admin.id, world.id(1)).unwrap();
    let to_a = world.open(1, b, admin.id, world.id(0)).unwrap();
    assert!(world.passes(0, 0, to_b, 1));
    assert!(world.passes(1, 0, to_a, 0));
    assert!(!world.passes(2, 0, to_b, 1));
    assert_eq!(world.dropped(0, ForwardDrop::NotUpstream), 1);
    assert!(world.nodes[0].reflexive == Some(world.nodes[0].endpoint));
}

#[test]
fn a_node_without_udp_is_relayed_over_its_data_stream_both_ways() {
    let (mut world, admin, [a, _, _]) = three();
    let c = world.node(4);
    let mut admin = admin;
    admin.member("n3", "10.77.0.4", Some(&node_secret(4)));
    world.publish(0, &mut admin);
    let control = world.attach(c, 0, admin.id);
    let data = world.attach_data(c, 0, admin.id);
    let to_c = world.open(0, a, admin.id, world.id(c)).unwrap();
    let to_a = world.open(c, control, admin.id, world.id(0)).unwrap();
    assert!(world.passes(0, 0, to_c, c));
    world.send_packed(data, to_a, b"over tls");
    world.run(DELAY * 4);
    assert!(world.nodes[0].frames.iter().any(|(_, payload)| payload == b"over tls"));
    // Bound, it still asks for the stream.
    world.bind(c, 0, control);
    world.say(control, Control::Downlink { leg: Leg::Tls });
    world.run(DELAY * 2);
    world.close(data);
    world.run(DELAY * 2);
    assert!(!world.passes(0, 0, to_c, c));
    world.say(control, Control::Downlink { leg: Leg::Udp });
    world.run(DELAY * 2);
    assert!(world.passes(0, 0, to_c, c));
}

#[test]
fn a_data_stream_without_a_control_stream_is_refused() {
    let (mut world, admin, [a, ..]) = three();
    world.close(a);
    world.run(DELAY * 2);
    let data = world.attach_data(0, 0, admin.id);
    assert_eq!(world.refusal(0, data), Some(RefusedCode::NoControl));
}

#[test]
fn strangers_other_networks_and_captured_proofs_are_refused() {
    let (mut world, admin, _) = three();
    let stranger = world.node(77);
    let stream = world.attach(stranger, 0, admin.id);
    assert_eq!(world.refusal(stranger, stream), Some(RefusedCode::NotMember));
    let stream = world.attach(0, 0, NetworkId::from_bytes([1; 32]));
    assert_eq!(world.refusal(0, stream), Some(RefusedCode::NetworkRefused));
    // A proof made for one channel, used on the next.
    let proof = world.proof(0, 0, admin.id, Role::Control);
    world.dial(0, 0, Role::Control);
    let stream = world.attach_with(0, 0, admin.id, Role::Control, proof);
    assert_eq!(world.refusal(0, stream), Some(RefusedCode::BadProof));
    // A member's presence under another member's proof.
    let theirs = Presence::sign(&world.nodes[1].secret, admin.id, hub_key(0), world.nodes[1].order).encode();
    let mut proof = world.proof(0, 0, admin.id, Role::Control);
    if let Proof::Node { presence, .. } = &mut proof {
        *presence = theirs;
    }
    let stream = world.attach_with(0, 0, admin.id, Role::Control, proof);
    assert_eq!(world.refusal(0, stream), Some(RefusedCode::BadProof));
}

#[test]
fn a_node_with_a_smaller_epoch_is_refused_with_the_greater_presence() {
    let (mut world, admin, [a, ..]) = three();
    let now = world.nodes[0].order;
    world.close(a);
    world.run(Duration::from_secs(90));
    world.nodes[0].order.epoch = BootEpoch(now.epoch.0 - 1000);
    let stream = world.attach(0, 0, admin.id);
    let Some(Control::Refused { code: RefusedCode::StaleEpoch, presence: Some(presence), .. }) =
        world.heard_by(0, stream).pop()
    else {
        panic!("refused with the presence")
    };
    let greater = Presence::verify(&presence).unwrap();
    assert_eq!((greater.member(), greater.order()), (world.id(0), now));
    world.nodes[0].order.epoch = BootEpoch(now.epoch.0 + 1);
    let stream = world.attach(0, 0, admin.id);
    assert_eq!(world.refusal(0, stream), None);
}

#[test]
fn whoever_another_attachment_replaces_is_told_by_which_presence() {
    let (mut world, admin, [a, ..]) = three();
    // a machine that started with the same key in the same second
    world.nodes[0].order.counter += 2;
    let order = world.nodes[0].order;
    world.attach(0, 0, admin.id);
    let told = world.heard_by(0, a).into_iter().find_map(|message| match message {
        Control::Refused { code: RefusedCode::Replaced, presence, .. } => presence,
        _ => None,
    });
    let presence = Presence::verify(&told.unwrap()).unwrap();
    assert_eq!((presence.member(), presence.order().epoch), (world.id(0), order.epoch));
    assert!(presence.order() >= order);
}

#[test]
fn a_node_that_starts_again_takes_its_own_place_and_old_labels_are_dead() {
    let (mut world, admin, [a, b, _]) = three();
    let old = world.open(1, b, admin.id, world.id(0)).unwrap();
    world.nodes[0].order.epoch = BootEpoch(world.nodes[0].order.epoch.0 + 5);
    world.join(0, 0, admin.id);
    assert_eq!(world.refusal(0, a), Some(RefusedCode::Replaced));
    assert!(world.heard(b).contains(&Control::PathLost { label: old, reason: PathReason::Detached }));
    assert!(!world.passes(1, 0, old, 0));
    let new = world.open(1, b, admin.id, world.id(0)).unwrap();
    assert!(world.passes(1, 0, new, 0));
    assert_eq!(world.hubs[0].hub.networks().next().unwrap().attached, 3);
}

#[test]
fn a_node_that_says_it_is_about_to_detach_is_sent_to_until_it_does_and_its_senders_know_before() {
    let (mut world, admin, [a, b, _]) = three();
    let label = world.open(1, b, admin.id, world.id(0)).unwrap();
    world.heard(b);
    let out = *world.nodes[0].given.keys().next().unwrap();
    let leaving = |label| Control::PathLost { label, reason: PathReason::Leaving };
    for _ in 0..3 {
        world.say(a, leaving(out));
    }
    for _ in 0..40 {
        assert!(world.passes(1, 0, label, 0));
    }
    let told = world.heard(b).into_iter().filter(|message| *message == leaving(label)).count();
    assert_eq!(told, 1, "once, however often it is said");
    // one that says so and stays keeps no label by it
    world.run(Duration::from_secs(6));
    assert!(world.heard(b).contains(&Control::PathLost { label, reason: PathReason::Detached }));
    assert_eq!(world.hubs[0].forwarder.labels(), 0);
}

#[test]
fn a_revoked_node_is_cut_off_at_once_with_all_its_labels() {
    let (mut world, mut admin, [a, b, _]) = three();
    let to_b = world.open(0, a, admin.id, world.id(1)).unwrap();
    let to_a = world.open(1, b, admin.id, world.id(0)).unwrap();
    world.heard(b);
    admin.revoke("n0");
    let heard = world.publish(0, &mut admin);
    assert!(matches!(heard[..], [Control::Stored { serial: 2, .. }]), "{heard:?}");
    assert_eq!(world.refusal(0, a), Some(RefusedCode::NotMember));
    assert!(!world.passes(0, 0, to_b, 1));
    assert!(!world.passes(1, 0, to_a, 0));
    assert_eq!(world.hubs[0].forwarder.labels(), 0);
    let told = world.heard(b);
    assert!(told.iter().any(|message| matches!(message, Control::Head { .. })), "{told:?}");
    assert!(told.contains(&Control::PathLost { label: to_a, reason: PathReason::Detached }), "{told:?}");
    let stream = world.attach(0, 0, admin.id);
    assert_eq!(world.refusal(0, stream), Some(RefusedCode::NotMember));
}

#[test]
fn the_roster_is_fetched_in_parts_and_verifies() {
    let mut admin = lan(&[0], 3);
    for n in 0..1500u32 {
        let name = format!("extra-{n}");
        admin.member(&name, &format!("10.77.{}.{}", 1 + n / 200, 1 + n % 200), None);
        let invite = InviteSecret::from_bytes(&[n as u8; 32].map(|b| b ^ (n >> 8) as u8 ^ 0x55));
        let invite = if n < 250 { Some(invite) } else { None };
        if let Some(invite) = invite {
            admin.members.last_mut().unwrap().invite = Some(flatlan_roster::Invite {
                key: invite.public(),
                expires: crate::world::START.after(10),
                redeemer: hub_key(0),
            });
        }
    }
    let mut world = World::new(1, Allow::Any);
    world.node(1);
    let heard = world.publish(0, &mut admin);
    assert!(matches!(heard[..], [Control::Stored { serial: 1, .. }]), "{heard:?}");
    let stream = world.attach(0, 0, admin.id);
    let bundle = world.fetch(stream, admin.id);
    assert!(bundle.len() > 60_000);
    let roster = VerifiedRoster::verify(&bundle, &Ratchet::new(admin.id), None).unwrap();
    assert_eq!(roster.version(), admin.last.as_ref().unwrap().version());
}

#[test]
fn older_forked_and_damaged_rosters_are_refused_and_the_first_stays() {
    let mut admin = lan(&[0], 3);
    let mut world = World::new(1, allow(&[admin.id]));
    world.node(1);
    let first = admin.sign();
    let base = admin.last.clone();
    admin.revoke("n2");
    let second = admin.sign();
    admin.last = base;
    admin.revoke("n1");
    let fork = admin.sign();
    let code = |heard: Vec<Control>| match &heard[..] {
        [Control::Refused { code, .. }] => Some(*code),
        [Control::Stored { .. }] => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(world.upload(0, admin.id, &second)), None);
    assert_eq!(code(world.upload(0, admin.id, &second)), None);
    assert_eq!(code(world.upload(0, admin.id, &first)), Some(RefusedCode::OldRoster));
    assert_eq!(code(world.upload(0, admin.id, &fork)), Some(RefusedCode::OldRoster));
    assert!(world.hubs[0].events.contains(&HubEvent::Forked { network: admin.id }));
    let mut damaged = second.clone();
    damaged[200] ^= 1;
    assert_eq!(code(world.upload(0, admin.id, &damaged)), Some(RefusedCode::BadRoster));
    let version = world.hubs[0].hub.networks().next().unwrap().roster.unwrap().1;
    assert_eq!(version.serial, 2);
}

#[test]
fn a_roster_whose_part_was_not_taken_is_asked_for_again_later() {
    let mut admin = lan(&[0], 1);
    let mut world = World::new(1, allow(&[admin.id]));
    world.node(1);
    world.publish(0, &mut admin);
    let (stream, network) = (world.attach(0, 0, admin.id), admin.id);
    let bundle = admin.sign();
    let (next, total) = (admin.last.as_ref().unwrap(), bundle.len() as u32);
    world.heard(stream);
    let claims = flatlan_relay::ClaimsSummary::default();
    world.say(stream, Control::Head { network, head: next.signed_head().encode(), claims });
    world.run(DELAY * 3);
    let asked = Control::GetRoster { network, offset: 0 };
    assert_eq!(world.heard(stream), std::slice::from_ref(&asked));
    world.say(stream, Control::RosterPart { network, version: 1, total, offset: 0, bytes: vec![] });
    for _ in 0..3 {
        world.run(Duration::from_secs(4));
        world.say(stream, Control::Ping { time: 1 });
    }
    assert!(world.heard(stream).contains(&asked));
    world.say(stream, Control::RosterPart { network, version: 1, total, offset: 0, bytes: bundle });
    world.run(DELAY * 3);
    assert_eq!(world.hubs[0].hub.networks().next().unwrap().roster.unwrap().1, next.version());
}

#[test]
fn a_full_disk_is_said_and_what_is_in_force_is_written_later() {
    let mut admin = lan(&[0], 3);
    let mut world = World::new(1, allow(&[admin.id]));
    world.node(1);
    world.hubs[0].disk_full = true;
    let bundle = admin.sign();
    let heard = world.upload(0, admin.id, &bundle);
    assert!(matches!(heard[..], [Control::Refused { code: RefusedCode::StoreFailed, .. }]), "{heard:?}");
    assert!(world.hubs[0].events.contains(&HubEvent::StoreFailed { network: admin.id }));
    world.hubs[0].disk_full = false;
    let heard = world.upload(0, admin.id, &bundle);
    assert!(matches!(heard[..], [Control::Stored { .. }]), "{heard:?}");
    assert!(world.hubs[0].disk.contains_key(&admin.id));
}

#[test]
fn a_restarted_hub_goes_on_with_what_it_had_stored() {
    let (mut world, admin, _) = three();
    world.kill(0);
    world.restart(0);
    let a = world.join(0, 0, admin.id);
    world.join(1, 0, admin.id);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    assert!(world.passes(0, 0, label, 1));
}

#[test]
fn what_is_damaged_of_one_tenant_is_set_aside_and_the_others_are_served() {
    let (mut red, mut blue) = (lan(&[0], 1), tenant(10, &[0], 1));
    for damage in
        [|disk: &mut StoredNetwork| disk.ratchet[9] ^= 1, |disk: &mut StoredNetwork| disk.bundle.truncate(100)]
    {
        let mut world = World::new(1, allow(&[red.id, blue.id]));
        world.node(1);
        world.publish(0, &mut red);
        world.publish(0, &mut blue);
        world.kill(0);
        damage(world.hubs[0].disk.get_mut(&red.id).unwrap());
        world.restart(0);
        world.run(DELAY);
        assert_eq!(world.hubs[0].aside, [red.id]);
        let stream = world.attach(0, 0, blue.id);
        assert_eq!(world.refusal(0, stream), None);
        // It comes again from whoever has it.
        let bundle = red.last.as_ref().unwrap().encode();
        let heard = world.upload(0, red.id, &bundle);
        assert!(matches!(heard[..], [Control::Stored { .. }]), "{heard:?}");
        let stream = world.attach(0, 0, red.id);
        assert_eq!(world.refusal(0, stream), None);
        assert!(world.hubs[0].disk.contains_key(&red.id));
    }
}

#[test]
fn a_damaged_roster_does_not_let_an_older_one_back_in() {
    let mut admin = lan(&[0], 3);
    let mut world = World::new(1, allow(&[admin.id]));
    world.node(1);
    let first = admin.sign();
    world.publish(0, &mut admin);
    world.kill(0);
    world.hubs[0].disk.get_mut(&admin.id).unwrap().bundle.truncate(100);
    world.restart(0);
    let heard = world.upload(0, admin.id, &first);
    assert!(matches!(heard[..], [Control::Refused { code: RefusedCode::OldRoster, .. }]), "{heard:?}");
}

#[test]
fn what_a_later_version_stored_is_left_alone_and_its_network_is_not_served() {
    let (mut red, mut blue) = (lan(&[0], 1), tenant(10, &[0], 1));
    let mut world = World::new(1, allow(&[red.id, blue.id]));
    world.node(1);
    world.publish(0, &mut red);
    world.publish(0, &mut blue);
    world.kill(0);
    // The format's number follows the array's head.
    world.hubs[0].disk.get_mut(&red.id).unwrap().ratchet[1] = 2;
    let stored = world.hubs[0].disk[&red.id].clone();
    world.restart(0);
    world.run(DELAY);
    assert!(matches!(world.hubs[0].events[..], [HubEvent::Withheld { .. }]), "{:?}", world.hubs[0].events);
    let stream = world.attach_with(0, 0, red.id, Role::Admin, Proof::Nothing);
    assert_eq!(world.refusal(0, stream), Some(RefusedCode::NetworkRefused));
    assert_eq!(world.hubs[0].disk[&red.id], stored);
    assert!(world.hubs[0].aside.is_empty());
    let stream = world.attach(0, 0, blue.id);
    assert_eq!(world.refusal(0, stream), None);
}

#[test]
fn one_invite_admits_one_machine_and_the_same_machine_again() {
    let mut admin = lan(&[0], 1);
    let invite = InviteSecret::from_bytes(&[42; 32]);
    admin.invite("new", "10.77.0.9", &invite, 0);
    let mut world = World::new(1, allow(&[admin.id]));
    let (old, first, second) = (world.node(1), world.node(50), world.node(51));
    world.publish(0, &mut admin);
    let watching = world.attach(old, 0, admin.id);
    world.heard(watching);
    let answer = world.redeem(first, 0, admin.id, &invite);
    assert!(matches!(answer.last(), Some(Control::Redeemed { .. })), "{answer:?}");
    let again = world.redeem(first, 0, admin.id, &invite);
    assert_eq!(again.last(), answer.last());
    let other = world.redeem(second, 0, admin.id, &invite);
    assert!(matches!(other.last(), Some(Control::Refused { code: RefusedCode::BadClaim, .. })), "{other:?}");
    let told = world.heard(watching);
    assert!(told.iter().any(|message| matches!(message, Control::Claims { claims, .. } if claims.len() == 1)));
    let stream = world.attach(first, 0, admin.id);
    assert_eq!(world.refusal(first, stream), None);
    // Durable: a hub that starts again knows it.
    world.kill(0);
    world.restart(0);
    let other = world.redeem(second, 0, admin.id, &invite);
    assert!(matches!(other.last(), Some(Control::Refused { code: RefusedCode::BadClaim, .. })), "{other:?}");
}

#[test]
fn a_claim_is_answered_only_after_it_is_on_disk() {
    let mut admin = lan(&[0], 1);
    let invite = InviteSecret::from_bytes(&[42; 32]);
    admin.invite("new", "10.77.0.9", &invite, 0);
    let mut world = World::new(1, allow(&[admin.id]));
    let (first, second) = (world.node(50), world.node(51));
    world.publish(0, &mut admin);
    world.hubs[0].disk_slow = true;
    let one = world.begin_redeem(first, 0, admin.id, &invite);
    let two = world.begin_redeem(second, 0, admin.id, &invite);
    world.run(Duration::from_secs(1));
    let redeemed = |message: &Control| matches!(message, Control::Redeemed { .. });
    assert!(!world.heard_by(first, one).iter().any(redeemed));
    assert_eq!(world.refusal(second, two), Some(RefusedCode::BadClaim));
    let token = world.hubs[0].writes.pop().unwrap();
    let now = world.now;
    world.hubs[0].hub.handle_stored(token, flatlan_hub::StoreOutcome::Stored, now);
    world.run(DELAY * 3);
    assert!(world.heard_by(first, one).iter().any(redeemed));
}

#[test]
fn a_claim_whose_invite_is_cancelled_while_it_is_written_is_not_said_to_count() {
    let mut admin = lan(&[0], 1);
    let invite = InviteSecret::from_bytes(&[42; 32]);
    admin.invite("new", "10.77.0.9", &invite, 0);
    let mut world = World::new(1, allow(&[admin.id]));
    let new = world.node(50);
    world.publish(0, &mut admin);
    world.hubs[0].disk_slow = true;
    let stream = world.begin_redeem(new, 0, admin.id, &invite);
    world.run(DELAY * 3);
    let token = world.hubs[0].writes.pop().unwrap();
    admin.revoke("new");
    world.publish(0, &mut admin);
    let now = world.now;
    world.hubs[0].hub.handle_stored(token, flatlan_hub::StoreOutcome::Stored, now);
    world.run(DELAY * 3);
    assert_eq!(world.refusal(new, stream), Some(RefusedCode::BadClaim));
    assert!(!world.hubs[0].events.iter().any(|event| matches!(event, HubEvent::ClaimRedeemed { .. })));
}

#[test]
fn a_crash_before_the_claim_is_on_disk_forgets_it_and_nobody_was_told() {
    let mut admin = lan(&[0], 1);
    let invite = InviteSecret::from_bytes(&[42; 32]);
    admin.invite("new", "10.77.0.9", &invite, 0);
    let mut world = World::new(1, allow(&[admin.id]));
    let (old, first, second) = (world.node(1), world.node(50), world.node(51));
    world.publish(0, &mut admin);
    let watching = world.attach(old, 0, admin.id);
    world.hubs[0].disk_slow = true;
    world.begin_redeem(first, 0, admin.id, &invite);
    world.run(Duration::from_secs(1));
    let told = world.heard(watching);
    assert!(!told.iter().any(|message| matches!(message, Control::Claims { .. })));
    world.kill(0);
    world.restart(0);
    let answer = world.redeem(second, 0, admin.id, &invite);
    assert!(matches!(answer.last(), Some(Control::Redeemed { .. })), "{answer:?}");
}

#[test]
fn an_expired_invite_another_hubs_and_a_cancelled_one_are_refused() {
    let mut admin = lan(&[0], 1);
    admin.hubs = vec![0, 1];
    let [late, elsewhere, cancelled] = [42, 43, 44].map(|n| InviteSecret::from_bytes(&[n; 32]));
    admin.invite("late", "10.77.0.9", &late, 0);
    admin.invite("elsewhere", "10.77.0.10", &elsewhere, 1);
    let mut world = World::new(1, Allow::Any);
    let node = world.node(50);
    world.publish(0, &mut admin);
    let answer = world.redeem(node, 0, admin.id, &elsewhere);
    assert!(
        matches!(answer.last(), Some(Control::Refused { code: RefusedCode::WrongRedeemer, text, .. })
        if text.contains("hub hub-1")),
        "{answer:?}"
    );
    let answer = world.redeem(node, 0, admin.id, &cancelled);
    assert!(
        matches!(answer.last(), Some(Control::Refused { code: RefusedCode::BadClaim, text, .. })
        if text.contains("not known")),
        "{answer:?}"
    );
    world.run(Duration::from_secs(3601));
    let answer = world.redeem(node, 0, admin.id, &late);
    assert!(
        matches!(answer.last(), Some(Control::Refused { code: RefusedCode::BadClaim, text, .. })
        if text.contains("expired")),
        "{answer:?}"
    );
}

#[test]
fn a_watcher_hears_where_a_peer_is_at_once_and_on_change() {
    let (mut world, admin, [a, b, _]) = three();
    world.heard(a);
    let (peer, ghost) = (world.id(1), MemberId::from_bytes([3; 32]));
    world.say(a, Control::Watch { peers: vec![peer, ghost] });
    world.run(DELAY * 3);
    let [Control::Presence { presence }] = &world.heard(a)[..] else { panic!() };
    assert_eq!(Presence::verify(presence).unwrap().hub(), hub_key(0));
    world.close(b);
    world.run(DELAY * 3);
    assert_eq!(world.heard(a), [Control::Absent { peer, hub: Some(hub_key(0)) }]);
    world.attach(1, 0, admin.id);
    assert!(matches!(world.heard(a)[..], [Control::Presence { .. }]));
    world.say(a, Control::Unwatch { peers: vec![peer] });
    world.run(DELAY * 3);
    world.attach(1, 0, admin.id);
    assert!(world.heard(a).is_empty());
}

#[test]
fn a_label_is_closed_by_its_sender_or_by_silence() {
    let (mut world, admin, [a, b, c]) = three();
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.heard(b);
    world.say(a, Control::PathClose { label });
    world.run(DELAY * 3);
    assert!(matches!(world.heard(b)[..], [Control::PathClose { .. }]));
    assert!(!world.passes(0, 0, label, 1));
    assert!(world.heard(a).contains(&Control::LabelUnknown { label }));
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    world.heard(b);
    for _ in 0..8 {
        world.run(Duration::from_secs(9));
        for (node, stream) in [(0, a), (1, b), (2, c)] {
            world.say(stream, Control::Ping { time: 1 });
            world.send_binds(node);
        }
    }
    assert!(world.heard(a).contains(&Control::PathLost { label, reason: PathReason::Idle }));
    assert!(world.heard(b).iter().any(|message| matches!(message, Control::PathClose { .. })));
    assert_eq!(world.hubs[0].hub.stats().labels, 0);
}

#[test]
fn a_path_to_nobody_oneself_or_a_stranger_fails_and_says_why() {
    let (mut world, admin, [a, b, _]) = three();
    world.close(b);
    world.run(DELAY * 2);
    assert_eq!(world.open(0, a, admin.id, world.id(1)), Err(PathReason::NotAttached));
    assert_eq!(world.open(0, a, admin.id, world.id(0)), Err(PathReason::NotMember));
    assert_eq!(world.open(0, a, admin.id, MemberId::from_bytes([3; 32])), Err(PathReason::NotMember));
}

#[test]
fn a_node_may_not_ask_in_anothers_name() {
    let (mut world, admin, [a, ..]) = three();
    let (from, to) = (world.id(1), world.id(2));
    let open = flatlan_relay::PathOpen { request: 1, network: admin.id, from, to, hops: 8, via: vec![], avoid: vec![] };
    world.say(a, Control::PathOpen(open));
    world.run(DELAY * 3);
    assert_eq!(world.refusal(0, a), Some(RefusedCode::BadMessage));
}

#[test]
fn too_many_labels_requests_and_attachments_are_refused() {
    let mut admin = lan(&[0], 3);
    let limits = Limits { labels_per_node: 2, ..Limits::default() };
    let mut world = World::with_limits(1, allow(&[admin.id]), limits);
    for n in 0..3 {
        world.node(n + 1);
    }
    world.publish(0, &mut admin);
    let a = world.join(0, 0, admin.id);
    world.join(1, 0, admin.id);
    world.open(0, a, admin.id, world.id(1)).unwrap();
    world.open(0, a, admin.id, world.id(1)).unwrap();
    assert_eq!(world.open(0, a, admin.id, world.id(1)), Err(PathReason::Quota));
    let refused = (0..30).filter(|_| {
        let stream = world.attach(2, 0, admin.id);
        world.refusal(2, stream) == Some(RefusedCode::Quota)
    });
    assert_eq!(refused.count(), 10);
}

#[test]
fn one_tenant_takes_its_share_of_the_labels_and_no_more() {
    let (mut red, mut blue) = (lan(&[0], 3), tenant(10, &[0], 3));
    let limits = Limits { labels_per_network: 3, attachments_per_network: 3, ..Limits::default() };
    let mut world = World::with_limits(1, allow(&[red.id, blue.id]), limits);
    for seed in [1, 2, 1, 2] {
        world.node(seed);
    }
    world.publish(0, &mut red);
    world.publish(0, &mut blue);
    let (a, b) = (world.join(0, 0, red.id), world.join(1, 0, red.id));
    let c = world.join(2, 0, blue.id);
    world.join(3, 0, blue.id);
    let first = world.open(0, a, red.id, world.id(1)).unwrap();
    world.open(0, a, red.id, world.id(1)).unwrap();
    world.open(1, b, red.id, world.id(0)).unwrap();
    assert_eq!(world.open(0, a, red.id, world.id(1)), Err(PathReason::Quota));
    assert_eq!(world.open(1, b, red.id, world.id(0)), Err(PathReason::Quota));
    assert!(world.open(2, c, blue.id, world.id(3)).is_ok());
    world.say(a, Control::PathClose { label: first });
    world.run(DELAY * 3);
    assert!(world.open(1, b, red.id, world.id(0)).is_ok());
}

#[test]
fn no_more_members_of_a_network_attach_than_may() {
    let mut admin = lan(&[0], 3);
    let limits = Limits { attachments_per_network: 2, ..Limits::default() };
    let mut world = World::with_limits(1, allow(&[admin.id]), limits);
    (1..=3).for_each(|seed| {
        world.node(seed);
    });
    world.publish(0, &mut admin);
    let streams = [0, 1, 2].map(|node| world.attach(node, 0, admin.id));
    assert_eq!(world.refusal(2, streams[2]), Some(RefusedCode::Quota));
    // Whoever is attached may attach again.
    let again = world.attach(0, 0, admin.id);
    assert_eq!(world.refusal(0, again), None);
}

#[test]
fn a_hub_that_serves_any_network_keeps_a_bounded_number_and_size_of_them() {
    let size = tenant(9, &[0], 1).sign().len();
    let few = Limits { networks: 2, ..Limits::default() };
    let small = Limits { rosters: size * 5 / 2, ..Limits::default() };
    for limits in [few, small] {
        let mut world = World::with_limits(1, Allow::Any, limits);
        let mut admins = [9, 10, 11, 12].map(|seed| tenant(seed, &[0], 1));
        let stored = |heard: &[Control]| matches!(heard, [Control::Stored { .. }]);
        let kept = admins.each_mut().map(|admin| stored(&world.publish(0, admin)));
        assert_eq!(kept, [true, true, false, false]);
        assert_eq!(world.hubs[0].hub.networks().count(), 2);
        // A network that is here goes on.
        assert!(stored(&world.publish(0, &mut admins[0])));
    }
}

#[test]
fn a_network_that_is_kept_publishes_on_when_the_share_of_all_is_spent() {
    let size = tenant(9, &[0], 1).sign().len();
    let limits = Limits { networks: 4, rosters: size * 2 + 8, ..Limits::default() };
    let mut world = World::with_limits(1, Allow::Any, limits);
    let mut admins = [9, 10, 11].map(|seed| tenant(seed, &[0], 1));
    let stored = |heard: &[Control]| matches!(heard, [Control::Stored { .. }]);
    let kept = admins.each_mut().map(|admin| stored(&world.publish(0, admin)));
    assert_eq!(kept, [true, true, false]);
    let [admin, ..] = &mut admins;
    admin.member("new", "10.77.0.8", None);
    assert!(stored(&world.publish(0, admin)));
    // Fewer networks are allowed than there are.
    world.limits.networks = 1;
    world.kill(0);
    world.restart(0);
    admin.revoke("new");
    assert!(stored(&world.publish(0, admin)));
    let heard = world.publish(0, &mut admins[2]);
    assert!(matches!(heard[..], [Control::Refused { code: RefusedCode::Quota, .. }]), "{heard:?}");
}

#[test]
fn a_kept_network_does_not_grow_step_by_step_beyond_what_the_hub_gives() {
    let size = tenant(9, &[0], 1).sign().len();
    let limits = Limits { networks: 4, rosters: size * 2 + 8, ..Limits::default() };
    let mut world = World::with_limits(1, Allow::Any, limits);
    let mut admins = [9, 10].map(|seed| tenant(seed, &[0], 1));
    for admin in &mut admins {
        world.publish(0, admin);
    }
    let [admin, _] = &mut admins;
    let heard = (1..100u8).map(|n| {
        admin.member(&format!("m{n}"), &format!("10.77.1.{n}"), None);
        world.publish(0, admin)
    });
    let taken = heard.take_while(|heard| matches!(heard[..], [Control::Stored { .. }])).count();
    assert!((1..50).contains(&taken), "{taken}");
}

#[test]
fn a_stream_that_says_nothing_is_closed() {
    let (mut world, _, [a, ..]) = three();
    let silent = world.dial(0, 0, Role::Control);
    world.run(Duration::from_secs(7));
    assert_eq!(world.refusal(0, silent), Some(RefusedCode::Silent));
    assert!(world.heard(a).iter().any(|message| matches!(message, Control::Ping { .. })));
    world.run(Duration::from_secs(5));
    assert_eq!(world.refusal(0, a), Some(RefusedCode::Silent));
    assert_eq!(world.hubs[0].hub.stats().attachments, 0);
}

#[test]
fn garbage_closes_its_own_stream_and_no_other() {
    let (mut world, admin, [a, b, _]) = three();
    world.hubs[0].hub.handle_message(flatlan_hub::StreamId(2), b"junk", world.now);
    world.hubs[0].hub.handle_message(flatlan_hub::StreamId(999), b"junk", world.now);
    let silent = world.dial(0, 0, Role::Control);
    world.say(silent, Control::Watch { peers: vec![] });
    world.run(DELAY * 3);
    assert_eq!(world.refusal(0, silent), Some(RefusedCode::BadMessage));
    world.say(b, Control::Redeem { network: admin.id, claim: vec![] });
    world.run(DELAY * 3);
    assert_eq!(world.refusal(1, b), Some(RefusedCode::BadMessage));
    assert_eq!(world.refusal(0, a), None);
    assert_eq!(world.hubs[0].hub.stats().attachments, 2);
}

#[test]
fn a_draining_hub_says_so_and_takes_no_one_in() {
    let (mut world, admin, [a, ..]) = three();
    world.heard(a);
    world.hubs[0].hub.drain();
    world.run(DELAY * 3);
    assert_eq!(world.heard(a), [Control::Draining]);
    let stream = world.attach(1, 0, admin.id);
    assert_eq!(world.refusal(1, stream), Some(RefusedCode::Draining));
}

#[test]
fn tenants_with_equal_names_addresses_and_even_node_keys_never_mix() {
    let mut red = lan(&[0], 3);
    let mut blue = lan(&[0], 3);
    blue.secret = flatlan_types::AdminSecret::from_bytes(&[10; 32]);
    let recovery = flatlan_types::RecoveryKey::of(&flatlan_types::AdminSecret::from_bytes(&[11; 32]));
    blue.authority = flatlan_roster::Authority::new(blue.secret.public(), recovery);
    blue.id = blue.authority.network();
    let limits = Limits { node: Quota::default(), ..Limits::default() };
    let mut world = World::with_limits(1, allow(&[red.id, blue.id]), limits);
    // The same key twice: node 0 in red, node 1 in blue; the same receiver key, node 2 in red, 3 in blue.
    for seed in [1, 1, 2, 2] {
        world.node(seed);
    }
    world.publish(0, &mut red);
    world.publish(0, &mut blue);
    let red_a = world.join(0, 0, red.id);
    let blue_a = world.join(1, 0, blue.id);
    world.join(2, 0, red.id);
    let blue_b = world.join(3, 0, blue.id);
    for stream in [red_a, blue_a] {
        assert!(!world.heard(stream).iter().any(|message| matches!(message, Control::Refused { .. })));
    }
    let peer = world.id(2);
    let in_red = world.open(0, red_a, red.id, peer).unwrap();
    let in_blue = world.open(1, blue_a, blue.id, peer).unwrap();
    assert!(world.passes(0, 0, in_red, 2) && world.passes(1, 0, in_blue, 3));
    assert!(world.nodes[2].frames.len() == 1 && world.nodes[3].frames.len() == 1);
    // Neither may use the other's label, ask in the other's network, or read its roster.
    assert!(!world.passes(0, 0, in_blue, 3) && !world.passes(1, 0, in_red, 2));
    assert_eq!(world.dropped(0, ForwardDrop::NotUpstream), 2);
    world.say(red_a, Control::Watch { peers: vec![peer] });
    world.run(DELAY * 3);
    let told = world.heard(red_a);
    let presences: Vec<_> = told
        .iter()
        .filter_map(|message| match message {
            Control::Presence { presence } => Some(Presence::verify(presence).unwrap().network()),
            _ => None,
        })
        .collect();
    assert_eq!(presences, [red.id]);
    world.close(blue_b);
    world.run(DELAY * 3);
    assert!(!world.heard(red_a).iter().any(|message| matches!(message, Control::Absent { .. })));
    world.say(red_a, Control::GetRoster { network: blue.id, offset: 0 });
    world.run(DELAY * 3);
    assert_eq!(world.refusal(0, red_a), Some(RefusedCode::NetworkRefused));
    // Revoked in red, a member in blue goes on.
    red.revoke("n1");
    world.publish(0, &mut red);
    let attached: Vec<_> = world.hubs[0].hub.networks().map(|network| network.attached).collect();
    assert_eq!(attached.iter().sum::<usize>(), 1, "{attached:?}");
    assert_eq!(Label::new(0, 0).slot(), 0);
}
