//! What members, hubs and strangers gone bad may say.

use std::time::Duration;

use flatlan_hub::{Allow, Limits, Output, StreamId};
use flatlan_relay::{
    ByteVec, Control, Leg, PathOpen, PathReason, Presence, PresenceOrder, PresenceSummary, Proof, RefusedCode, Role,
    SignedLsa,
};
use flatlan_types::{BootEpoch, Label, MemberId, NetworkId};
use proptest::prelude::*;

use crate::world::{DELAY, START, World, allow, fatten, hub_key, hub_secret, hubs, lan, line, node_secret, tenant};

/// Any message, with fields that sometimes fit the world.
fn message(network: NetworkId) -> impl Strategy<Value = Control> {
    let member = (0u8..6).prop_map(|n| match n {
        0..4 => node_secret(n + 1).public().id,
        n => MemberId::from_bytes([n; 32]),
    });
    let members = prop::collection::vec(member.clone(), 0..4);
    let label = (0u32..6, 0u16..3).prop_map(|(slot, generation)| Label::new(slot, generation));
    let network = prop_oneof![4 => Just(network), 1 => Just(NetworkId::from_bytes([1; 32]))];
    let hub = (0usize..4).prop_map(hub_key);
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let order =
        (0u64..3, 0u64..9).prop_map(|(epoch, counter)| PresenceOrder { epoch: BootEpoch(START.0 + epoch), counter });
    let presence = (0u8..5, network.clone(), hub.clone(), order.clone())
        .prop_map(|(n, network, hub, order)| Presence::sign(&node_secret(n + 1), network, hub, order).encode());
    let hubs = prop::collection::vec(hub.clone(), 0..10);
    let open = (any::<u32>(), network.clone(), member.clone(), member.clone(), any::<u8>(), hubs.clone(), hubs.clone())
        .prop_map(|(request, network, from, to, hops, via, avoid)| {
            Control::PathOpen(PathOpen { request, network, from, to, hops, via, avoid })
        });
    let lsa =
        (0usize..4, any::<u64>(), any::<u64>(), hubs.clone()).prop_map(|(origin, incarnation, sequence, links)| {
            let links = links.into_iter().map(|to| flatlan_relay::LsaLink { to, rtt_us: 5 }).collect();
            let version = flatlan_relay::LsaVersion { incarnation, sequence };
            let lsa = flatlan_relay::Lsa { origin: hub_key(0), version, links, serves: vec![] };
            Control::Lsa { lsa: SignedLsa::sign(&hub_secret(origin + 1), lsa).bytes().to_vec() }
        });
    let flood = (network.clone(), prop::collection::vec(presence, 0..4)).prop_map(|(network, presences)| {
        Control::PresenceFlood { network, presences: presences.into_iter().map(ByteVec::from).collect() }
    });
    let routing =
        prop_oneof![
            open,
            lsa,
            flood,
            (network.clone(), member, hub.clone(), order)
                .prop_map(|(network, member, hub, order)| Control::PresenceGone { network, member, hub, order }),
            (network.clone(), hub.clone()).prop_map(|(network, hub)| Control::PresencePull { network, hub }),
            (network.clone(), hub, any::<u32>()).prop_map(|(network, hub, count)| {
                let entries = vec![PresenceSummary { hub, count, hash: [0; 16] }];
                Control::PresenceDigest { network, entries }
            }),
            (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(time, echo, held_us)| Control::Hello {
                time,
                echo: Some(flatlan_relay::Echo { time: echo, held_us }),
            }),
            Just(Control::Serves { networks: vec![NetworkId::from_bytes([1; 32])] }),
            Just(Control::LsaDigest { entries: vec![] }),
        ];
    let paths = prop_oneof![
        (0u32..20, label.clone(), hubs).prop_map(|(request, label, via)| Control::PathOpened {
            request,
            label,
            via,
            rtt_us: u32::MAX,
        }),
        (0u32..20).prop_map(|request| Control::PathFailed { request, reason: PathReason::Timeout }),
        label.clone().prop_map(|label| Control::PathClose { label }),
        label.clone().prop_map(|label| Control::PathLost { label, reason: PathReason::HubLost }),
        label.clone().prop_map(|label| Control::LabelUnknown { label }),
        label.prop_map(|label| Control::PathMoved { label, via: vec![hub_key(2); 20] }),
        Just(Control::Downlink { leg: Leg::Tls }),
    ];
    let rest = prop_oneof![
        members.clone().prop_map(|peers| Control::Watch { peers }),
        members.prop_map(|peers| Control::Unwatch { peers }),
        (network.clone(), any::<u32>()).prop_map(|(network, offset)| Control::GetRoster { network, offset }),
        (network.clone(), any::<u32>()).prop_map(|(network, from)| Control::GetClaims { network, from }),
        (network.clone(), 0u32..300, 0u32..300, bytes.clone())
            .prop_map(|(network, total, offset, bytes)| Control::PutRoster { network, total, offset, bytes }),
        (network.clone(), 0u32..300, 0u32..300, bytes.clone()).prop_map(|(network, total, offset, bytes)| {
            Control::RosterPart { network, version: 1, total, offset, bytes }
        }),
        (network.clone(), bytes.clone()).prop_map(|(network, head)| Control::Head {
            network,
            head,
            claims: flatlan_relay::ClaimsSummary::default(),
        }),
        (network.clone(), bytes.clone()).prop_map(|(network, claim)| Control::Redeem { network, claim }),
        (network, bytes).prop_map(|(network, claim)| Control::Claims {
            network,
            from: 0,
            total: 1,
            claims: vec![ByteVec::from(claim)],
        }),
        Just(Control::Attached(flatlan_relay::Attached {
            version: 1,
            attachment: 0,
            observed: flatlan_types::Endpoint::new("192.0.2.1:1".parse().unwrap()),
            udp: vec![],
            bind: None,
            head: None,
            claims: flatlan_relay::ClaimsSummary::default(),
        })),
    ];
    prop_oneof![3 => routing, 3 => paths, 2 => rest]
}

/// Says something to hub 0 as node, hub or admin; with a new stream where the old one was closed.
fn speak(world: &mut World, network: NetworkId, who: u8, message: Control) {
    let stream = match who {
        0 | 1 => world.attach(usize::from(who), 0, network),
        2 => {
            // A hub of the roster.
            let exporter = world.next_exporter();
            let (key, role) = (hub_key(0), Role::HubControl);
            let scope = flatlan_relay::auth::AttachScope { exporter: &exporter, hub: &key, network: &network, role };
            let proof = Proof::Hub { key: hub_key(3), signature: scope.sign_hub(&hub_secret(3)) };
            world.attach_with(0, 0, network, role, proof)
        }
        _ => world.attach_with(0, 0, network, Role::Admin, Proof::Nothing),
    };
    if world.refusal(0, stream).is_none() && world.refusal(1, stream).is_none() {
        world.say(stream, message);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_words_of_members_or_hubs_break_a_hub_or_cut_off_those_who_said_nothing(
        words in prop::collection::vec((0u8..4, message(lan(&[0, 1, 2, 3], 4).id)), 1..60)
    ) {
        let mut admin = lan(&[0, 1, 2, 3], 4);
        let mut world = World::new(1, allow(&[admin.id]));
        (1..=4).for_each(|seed| { world.node(seed); });
        world.publish(0, &mut admin);
        let (c, _) = (world.join(2, 0, admin.id), world.join(3, 0, admin.id));
        let label = world.open(2, c, admin.id, world.id(3)).unwrap();
        for (who, message) in words {
            // What a member's own greater epoch ends is its own; theirs is not in the words.
            let theirs = |n: usize| world.id(n);
            let (c, d) = (theirs(2), theirs(3));
            let about = |bytes: &[u8]| Presence::peek(bytes).is_some_and(|(_, member, _, _)| member == c || member == d);
            if let Control::PresenceFlood { presences, .. } = &message && presences.iter().any(|bytes| about(bytes)) {
                continue;
            }
            speak(&mut world, admin.id, who, message);
            world.run(DELAY * 3);
        }
        prop_assert!(world.passes(2, 0, label, 3));
        let stats = world.hubs[0].hub.stats();
        prop_assert!(stats.labels <= 1 + 60 && stats.hubs <= 4, "{stats:?}");
    }
}

#[test]
fn a_foreign_answer_ends_no_request_of_another_tenant() {
    let (mut red, mut blue) = (lan(&[0], 2), tenant(10, &[0], 3));
    let mut world = World::new(1, allow(&[red.id, blue.id]));
    (1..=3).for_each(|seed| {
        world.node(seed);
    });
    world.publish(0, &mut red);
    world.publish(0, &mut blue);
    let a = world.join(0, 0, red.id);
    world.join(1, 0, red.id);
    let foe = world.join(2, 0, blue.id);
    let (from, to) = (world.id(0), world.id(1));
    let open = PathOpen { request: 7, network: red.id, from, to, hops: 8, via: vec![], avoid: vec![] };
    world.say(a, Control::PathOpen(open));
    world.run(DELAY);
    // Before the receiver answers.
    for request in 0..9 {
        let label = Label::new(1 + request, 0);
        world.say(foe, Control::PathOpened { request, label, via: vec![], rtt_us: 0 });
        world.say(foe, Control::PathFailed { request, reason: PathReason::Timeout });
    }
    world.run(DELAY * 10);
    let told = world.heard(a);
    let opened = |message: &Control| matches!(message, Control::PathOpened { request: 7, .. });
    assert!(told.iter().any(opened), "{told:?}");
    assert_eq!(world.hubs[0].hub.stats().requests, 0);
}

#[test]
fn strangers_that_begin_uploads_and_never_end_them_stop_no_other_upload() {
    let mut admin = lan(&[0], 1);
    let mut world = World::with_limits(1, allow(&[admin.id]), Limits { uploads: 200_000, ..Limits::default() });
    let (node, stranger) = (world.node(1), world.node(77));
    let network = admin.id;
    let begin = |world: &mut World, bytes: usize| {
        let stream = world.attach_with(stranger, 0, network, Role::Admin, Proof::Nothing);
        world.say(stream, Control::PutRoster { network, total: 100_000, offset: 0, bytes: vec![0; bytes] });
        stream
    };
    // Announced, and all but sent.
    let mut streams: Vec<_> = (0..40).map(|_| begin(&mut world, 1)).collect();
    streams.extend((0..4).map(|_| begin(&mut world, 49_000)));
    fatten(&mut admin);
    let heard = world.publish(0, &mut admin);
    assert!(matches!(heard[..], [Control::Stored { .. }]), "{heard:?}");
    // Whoever stands still is told; a sign of life alone is none.
    for _ in 0..3 {
        world.run(Duration::from_secs(5));
        streams.iter().for_each(|stream| world.say(*stream, Control::Ping { time: 1 }));
    }
    world.run(DELAY * 3);
    let refused = streams
        .iter()
        .filter(|stream| matches!(world.refusal(stranger, **stream), Some(RefusedCode::Quota | RefusedCode::Silent)));
    assert_eq!(refused.count(), streams.len());
    assert_eq!(world.refusal(node, streams[0]), None);
}

#[test]
fn strangers_uploads_do_not_keep_hubs_from_exchanging_rosters() {
    let mut admin = lan(&[0, 1], 1);
    let network = admin.id;
    let mut world = World::with_limits(2, allow(&[network]), Limits { uploads: 200_000, ..Limits::default() });
    let stranger = world.node(77);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(2));
    for _ in 0..20 {
        let stream = world.attach_with(stranger, 1, network, Role::Admin, Proof::Nothing);
        let put = |total| Control::PutRoster { network, total, offset: 0, bytes: vec![0; 9_000] };
        world.say(stream, put(100_000));
    }
    fatten(&mut admin);
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(1));
    let status = world.hubs[1].hub.networks().next().unwrap();
    assert_eq!(status.roster.unwrap().1, admin.last.as_ref().unwrap().version());
}

#[test]
fn a_hub_cannot_claim_a_node_that_it_does_not_hold() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.attach(0, 0, admin.id);
    let b = world.id(1);
    // Hub 1 forges: another's signature, another hub's presence as its own, another network's.
    let order = PresenceOrder { epoch: BootEpoch(START.0 + 9), counter: 1 };
    let mut forged = Presence::sign(&node_secret(7), admin.id, hub_key(1), order).encode();
    forged[..32].copy_from_slice(b.as_bytes());
    let mut moved = Presence::sign(&node_secret(2), admin.id, hub_key(2), order).encode();
    moved[64..96].copy_from_slice(hub_key(1).as_bytes());
    let foreign = Presence::sign(&node_secret(2), NetworkId::from_bytes([4; 32]), hub_key(1), order).encode();
    let presences = [forged, moved, foreign].map(ByteVec::from).to_vec();
    world.say_as_hub(1, 0, Control::PresenceFlood { network: admin.id, presences });
    world.run(DELAY * 3);
    assert_eq!(world.open(0, a, admin.id, b), Err(PathReason::NotAttached));
}

#[test]
fn a_hub_cannot_withdraw_a_node_from_the_hub_that_holds_it() {
    let (mut world, admin) = hubs(2, 2);
    let a = world.join(0, 0, admin.id);
    world.join(1, 0, admin.id);
    let (network, member, order) = (admin.id, world.id(1), PresenceOrder { epoch: BootEpoch(u64::MAX), counter: 0 });
    world.say_as_hub(1, 0, Control::PresenceGone { network, member, hub: hub_key(0), order });
    world.run(DELAY * 3);
    assert!(world.open(0, a, admin.id, world.id(1)).is_ok());
}

#[test]
fn a_presence_that_ended_long_ago_is_not_brought_back_by_another_hub() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    let left = world.join(1, 1, admin.id);
    let (network, member, old) = (admin.id, world.id(1), world.nodes[1].order);
    let old = Presence::sign(&world.nodes[1].secret, network, hub_key(1), old).encode();
    world.close(left);
    let b = world.join(1, 2, network);
    for _ in 0..25 {
        world.run(Duration::from_secs(5));
        [a, b].into_iter().for_each(|stream| world.say(stream, Control::Ping { time: 1 }));
    }
    world.heard(a);
    world.say_as_hub(2, 0, Control::PresenceFlood { network, presences: vec![old.into()] });
    world.run(DELAY * 3);
    world.say(a, Control::Watch { peers: vec![member] });
    world.run(DELAY * 3);
    let told = world.heard(a);
    let hubs = told.iter().filter_map(|message| match message {
        Control::Presence { presence } => Some(Presence::verify(presence).unwrap().hub()),
        _ => None,
    });
    assert_eq!(hubs.collect::<Vec<_>>(), [hub_key(2)]);
}

#[test]
fn a_hub_cannot_withdraw_a_node_from_another_hub_that_says_it_holds_it() {
    let (mut world, admin) = hubs(3, 2);
    let a = world.join(0, 0, admin.id);
    let b = world.join(1, 1, admin.id);
    let (network, member, order) = (admin.id, world.id(1), PresenceOrder { epoch: BootEpoch(u64::MAX), counter: 0 });
    world.say_as_hub(2, 0, Control::PresenceGone { network, member, hub: hub_key(1), order });
    world.run(DELAY * 3);
    for _ in 0..2 {
        [a, b].into_iter().for_each(|stream| world.say(stream, Control::Ping { time: 1 }));
        world.run(Duration::from_secs(3));
    }
    assert!(world.open(0, a, network, member).is_ok());
}

#[test]
fn a_hub_cannot_withdraw_a_node_from_a_hub_that_is_reached_over_others() {
    let (mut world, admin) = line(4, 2);
    let a = world.join(0, 1, admin.id);
    let b = world.join(1, 3, admin.id);
    let (network, member, order) = (admin.id, world.id(1), PresenceOrder { epoch: BootEpoch(u64::MAX), counter: 0 });
    world.say_as_hub(0, 1, Control::PresenceGone { network, member, hub: hub_key(3), order });
    world.run(DELAY * 8);
    for _ in 0..2 {
        [a, b].into_iter().for_each(|stream| world.say(stream, Control::Ping { time: 1 }));
        world.run(Duration::from_secs(3));
    }
    assert!(world.open(0, a, network, member).is_ok());
}

#[test]
fn a_replayed_link_state_of_an_earlier_life_does_not_silence_its_hub() {
    let (mut world, admin) = hubs(2, 2);
    // Hub 1 once had a clock far ahead.
    let version = flatlan_relay::LsaVersion { incarnation: u64::MAX - 9, sequence: 4 };
    let lsa = flatlan_relay::Lsa { origin: hub_key(1), version, links: vec![], serves: vec![] };
    let signed = SignedLsa::sign(&hub_secret(1), lsa);
    world.say_as_hub(1, 0, Control::Lsa { lsa: signed.bytes().to_vec() });
    world.run(Duration::from_secs(11));
    let a = world.join(0, 0, admin.id);
    world.join(1, 1, admin.id);
    world.run(DELAY * 5);
    let label = world.open(0, a, admin.id, world.id(1)).unwrap();
    assert!(world.passes(0, 0, label, 1));
}

#[test]
fn hubs_that_no_roster_lists_take_no_room_from_others_and_keep_none_for_good() {
    let mut admin = lan(&[0, 1], 1);
    let mut world = World::new(1, Allow::Any);
    world.node(1);
    world.publish(0, &mut admin);
    let unknown = NetworkId::from_bytes([3; 32]);
    let strangers: Vec<_> = (2..40).map(|hub| attach_as_hub(&mut world, hub, unknown)).collect();
    assert!(world.hubs[0].hub.neighbours().count() < 20);
    let listed = attach_as_hub(&mut world, 1, admin.id);
    assert_eq!(world.refusal(0, listed), None);
    for _ in 0..31 {
        world.run(Duration::from_secs(2));
        let still: Vec<_> = strangers.iter().filter(|stream| world.refusal(0, **stream).is_none()).collect();
        still.into_iter().for_each(|stream| world.say(*stream, Control::Ping { time: 1 }));
        world.say(listed, Control::Ping { time: 1 });
    }
    // Whoever came to bring a roster has had the time for it.
    let count = world.hubs[0].hub.neighbours().count();
    let late = attach_as_hub(&mut world, 41, unknown);
    assert_eq!(world.refusal(0, late), None);
    assert_eq!(world.hubs[0].hub.neighbours().count(), count);
    assert!(world.refusal(0, listed).is_none());
}

#[test]
fn hubs_that_no_roster_lists_gain_no_time_by_attaching_again() {
    let mut world = World::new(1, Allow::Any);
    world.node(1);
    let unknown = NetworkId::from_bytes([3; 32]);
    let all = |world: &mut World| (2..18).map(|hub| attach_as_hub(world, hub, unknown)).collect::<Vec<_>>();
    let mut strangers = all(&mut world);
    for second in 0..65 {
        if second == 50 {
            strangers = all(&mut world);
        }
        world.run(Duration::from_secs(1));
        strangers.iter().for_each(|stream| world.say(*stream, Control::Ping { time: 1 }));
    }
    assert_eq!(world.hubs[0].hub.neighbours().count(), strangers.len());
    let late = attach_as_hub(&mut world, 41, unknown);
    assert_eq!(world.refusal(0, late), None);
    assert_eq!(world.hubs[0].hub.neighbours().count(), strangers.len());
}

#[test]
fn an_unknown_network_costs_a_hub_nothing() {
    let mut world = World::new(1, Allow::Any);
    world.node(1);
    for n in 0..200u8 {
        let network = NetworkId::from_bytes([n; 32]);
        let stream = world.attach_with(0, 0, network, Role::Admin, Proof::Nothing);
        world.say(stream, Control::GetRoster { network, offset: 0 });
        world.say(stream, Control::PutRoster { network, total: 9, offset: 0, bytes: vec![n; 9] });
        world.run(DELAY * 3);
        world.close(stream);
    }
    world.run(DELAY * 3);
    assert_eq!(world.hubs[0].hub.networks().count(), 0);
    assert_eq!(world.hubs[0].hub.stats().streams, 0);
    assert!(!matches!(world.hubs[0].hub.poll_output(), Some(Output::Store { .. })));
}

/// The control stream of a hub that is played by node 0.
fn attach_as_hub(world: &mut World, hub: usize, network: NetworkId) -> StreamId {
    let exporter = world.next_exporter();
    let (key, role) = (hub_key(0), Role::HubControl);
    let scope = flatlan_relay::auth::AttachScope { exporter: &exporter, hub: &key, network: &network, role };
    let proof = Proof::Hub { key: hub_key(hub), signature: scope.sign_hub(&hub_secret(hub)) };
    world.attach_with(0, 0, network, role, proof)
}
