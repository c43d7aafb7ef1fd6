//! What is refused, byte by byte and record by record.

use flatlan_roster::{
    AuthorityError, CountersignedClaim, DecodeError, Head, HeadError, HistoryError, MAX_BUNDLE, RecordsError,
    VerifiedHead, VerifyError, Violation,
    source::{NewMember, Replace},
};
use flatlan_types::{AdminSecret, HubKey, Name};
use minicbor::Encode;

use crate::{
    forge,
    world::{NOW, World, hub, name, node, with_key},
};

/// A bundle with a history, a recovery certificate and a claim: every part that there is.
fn full_bundle() -> (World, Vec<u8>) {
    let mut world = World::with_two();
    let first = world.sign(None);
    world.admin = AdminSecret::from_bytes(&[9; 32]);
    let authority = world.authority().recover(world.admin.public(), &world.recovery).unwrap();
    world.source.set_authority(&authority).unwrap();
    let second = world.sign(Some(&first)).with_claims([world.countersigned(1, 2, NOW)]).unwrap();
    let bytes = second.encode();
    (world, bytes)
}

#[test]
fn a_bundle_survives_the_way_to_the_node() {
    let (world, bytes) = full_bundle();
    let roster = world.verify(&bytes).unwrap();
    assert_eq!(roster.encode(), bytes);
    assert_eq!(roster.members().map(|m| m.name().as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(roster.members().nth(1).unwrap().keys, node(2).public());
    assert_eq!(roster.hub(&hub(1).public()).map(|hub| hub.name.clone()), Some(name("paris")));
    let head = VerifiedHead::decode(&roster.signed_head().encode(), &world.id()).unwrap();
    assert_eq!(head.id(), roster.signed_head().id());
}

#[test]
fn every_flip_of_a_byte_is_refused() {
    let (world, bytes) = full_bundle();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x20, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            assert!(world.verify(&flipped).is_err(), "byte {at} flipped by {flip:#x} was accepted");
        }
    }
}

#[test]
fn every_truncation_and_every_byte_behind_the_end_is_refused() {
    let (world, mut bytes) = full_bundle();
    for end in 0..bytes.len() {
        assert!(world.verify(&bytes[..end]).is_err(), "{end} bytes were accepted");
    }
    bytes.push(0);
    assert!(matches!(world.verify(&bytes), Err(VerifyError::Decode(DecodeError::Trailing))));
    assert!(matches!(
        world.verify(&[&[0x84, 0x01][..], &vec![0; MAX_BUNDLE]].concat()),
        Err(VerifyError::Decode(DecodeError::TooLong { .. }))
    ));
}

#[test]
fn a_later_format_asks_for_an_upgrade() {
    let (world, mut bytes) = full_bundle();
    bytes[1] = 2;
    assert!(matches!(world.verify(&bytes), Err(VerifyError::Decode(DecodeError::Version { got: 2 }))));
}

#[test]
fn a_record_left_out_repeated_or_moved_is_refused() {
    let world = World::with_two();
    let records = forge::of_source(&world.source);
    let head = forge::head(world.authority(), &records);
    let head = forge::signed_head(world.authority(), &head, &world.admin);
    assert!(world.verify(&forge::bundle(&head, &[], &records, &[])).is_ok());
    for at in 0..records.len() {
        let mut omitted = records.clone();
        omitted.remove(at);
        let mut doubled = records.clone();
        doubled.insert(at, records[at].clone());
        let mut moved = records.clone();
        moved.swap(at, (at + 1) % records.len());
        let mut replaced = records.clone();
        replaced[at] = records[(at + 1) % records.len()].clone();
        for wrong in [omitted, doubled, moved, replaced] {
            let refused = world.verify(&forge::bundle(&head, &[], &wrong, &[]));
            assert!(matches!(refused, Err(VerifyError::RecordsMismatch)), "{refused:?}");
        }
    }
}

#[test]
fn records_that_were_signed_out_of_order_are_refused() {
    let world = World::with_two();
    let mut records = forge::of_source(&world.source);
    records.swap(2, 3);
    let bytes = forge::signed(world.authority(), &world.admin, &records, &[]);
    assert!(matches!(world.verify(&bytes), Err(VerifyError::Records(RecordsError::Order))));
    records.swap(2, 3);
    records.push(records[3].clone());
    let bytes = forge::signed(world.authority(), &world.admin, &records, &[]);
    assert!(matches!(world.verify(&bytes), Err(VerifyError::Records(RecordsError::Order))));
}

#[test]
fn another_admins_signature_is_refused() {
    let world = World::with_two();
    let records = forge::of_source(&world.source);
    let thief = AdminSecret::from_bytes(&[66; 32]);
    let bytes = forge::signed(world.authority(), &thief, &records, &[]);
    assert!(matches!(world.verify(&bytes), Err(VerifyError::Head(HeadError::BadSignature))));
}

#[test]
fn another_networks_roster_is_refused() {
    let (world, other) = (World::with_two(), World::seeded(5));
    let refused = world.verify(&other.sign(None).encode());
    assert!(matches!(refused, Err(VerifyError::Head(HeadError::Authority(AuthorityError::OtherNetwork { .. })))));
    // The same admin key in two networks: the head names its network.
    let records = forge::records(world.source.network(), world.source.records().hubs(), &[]);
    let head = Head { network: other.id(), ..forge::head(world.authority(), &records) };
    let bytes = forge::bundle(&forge::signed_head(world.authority(), &head, &world.admin), &[], &records, &[]);
    let refused = world.verify(&bytes);
    assert!(matches!(refused, Err(VerifyError::Head(HeadError::Authority(AuthorityError::OtherNetwork { .. })))));
}

#[test]
fn a_history_that_was_cut_or_changed_is_refused() {
    let world = World::with_two();
    let first = world.sign(None);
    let second = world.sign(Some(&first));
    let records = forge::of_source(&world.source);
    let head = second.signed_head().encode();
    let ancestor = minicbor::to_vec(first.head()).unwrap();
    assert!(world.verify(&forge::bundle(&head, std::slice::from_ref(&ancestor), &records, &[])).is_ok());
    let cut = world.verify(&forge::bundle(&head, &[], &records, &[]));
    assert!(matches!(cut, Err(VerifyError::History(HistoryError::Cut { got: 0 }))));
    let other = minicbor::to_vec(&Head { serial: 0, ..first.head().clone() }).unwrap();
    let changed = world.verify(&forge::bundle(&head, &[other], &records, &[]));
    assert!(matches!(changed, Err(VerifyError::History(HistoryError::Broken))));
    let longer = world.verify(&forge::bundle(&head, &[ancestor.clone(), ancestor], &records, &[]));
    assert!(matches!(longer, Err(VerifyError::History(HistoryError::Broken))));
}

#[test]
fn a_key_that_is_unknown_is_passed_on_and_one_that_is_critical_is_refused() {
    #[derive(Encode)]
    #[cbor(map)]
    struct LaterHub {
        #[n(0)]
        critical: Option<Vec<u32>>,
        #[n(1)]
        name: Name,
        #[n(2)]
        key: HubKey,
        #[n(3)]
        tls: flatlan_types::HostPort,
        #[n(6)]
        weight: u16,
        #[n(40)]
        colour: &'static str,
    }
    let world = World::new();
    let later = |critical| {
        let hub = &world.source.records().hubs()[0];
        let (name, key, tls) = (hub.name.clone(), hub.key, hub.tls.clone());
        let hub = forge::record(2, &LaterHub { critical, name, key, tls, weight: 1, colour: "red" });
        let records = [forge::record(1, world.source.network()), hub];
        forge::signed(world.authority(), &world.admin, &records, &[])
    };
    let bytes = later(None);
    let roster = world.verify(&bytes).unwrap();
    assert_eq!(roster.hubs(), world.source.records().hubs());
    assert_eq!(roster.encode(), bytes);
    assert!(world.verify(&later(Some(vec![1, 6]))).is_ok());
    let refused = world.verify(&later(Some(vec![40])));
    assert!(matches!(refused, Err(VerifyError::Records(RecordsError::Decode(DecodeError::Critical { key: 40 })))));
}

#[test]
fn a_kind_that_may_be_skipped_is_skipped_and_another_refused() {
    #[derive(Encode)]
    #[cbor(map)]
    struct Later {
        #[n(1)]
        name: Name,
    }
    let world = World::new();
    let with = |kind| {
        let mut records = forge::records(world.source.network(), world.source.records().hubs(), &[]);
        records.push(forge::record(kind, &Later { name: name("x") }));
        world.verify(&forge::signed(world.authority(), &world.admin, &records, &[]))
    };
    assert_eq!(with(0x8000).unwrap().records().len(), 3);
    assert!(matches!(with(4), Err(VerifyError::Records(RecordsError::Decode(DecodeError::Critical { key: 4 })))));
}

#[test]
fn what_no_admin_could_have_compiled_is_refused_when_verified_too() {
    let mut world = World::new();
    world.add(&with_key(&name("a"), 1));
    let mut members = world.source.records().members().cloned().collect::<Vec<_>>();
    let mut twin = members[0].clone();
    twin.name = name("b");
    members.push(twin);
    let records = forge::records(world.source.network(), world.source.records().hubs(), &members);
    let refused = world.verify(&forge::signed(world.authority(), &world.admin, &records, &[]));
    let Err(VerifyError::Records(RecordsError::Rule(Violation::KeyTaken { member, other }))) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((member, other), (name("b"), name("a")));
}

#[test]
fn claims_beside_the_roster_must_fit_and_be_in_order() {
    let mut world = World::with_two();
    world.invite("c", 2, Replace::No);
    let records = forge::of_source(&world.source);
    let with = |claims: &[&CountersignedClaim]| {
        let claims: Vec<_> = claims.iter().map(|claim| claim.encode()).collect();
        world.verify(&forge::signed(world.authority(), &world.admin, &records, &claims))
    };
    let (b, c) = (world.countersigned(1, 2, NOW), world.countersigned(2, 3, NOW));
    let (first, second) = if b.invite() < c.invite() { (&b, &c) } else { (&c, &b) };
    assert_eq!(with(&[first, second]).unwrap().members().count(), 3);
    for wrong in [&[second, first][..], &[first, first], &[&world.countersigned(9, 4, NOW)]] {
        assert!(matches!(with(wrong), Err(VerifyError::StrayClaim)));
    }
    let late = world.countersigned(1, 2, NOW.after(86_401));
    assert!(matches!(with(&[&late]), Err(VerifyError::StrayClaim)));
}

#[test]
fn a_roster_that_is_known_gives_the_same_verdict() {
    let mut world = World::with_two();
    let base = world.sign(None).with_claims([world.countersigned(1, 2, NOW)]).unwrap();
    world.add(&NewMember::named(&name("later")));
    let next = world.sign(Some(&base));
    let again = flatlan_roster::VerifiedRoster::verify(&next.encode(), &world.ratchet(), Some(&base)).unwrap();
    assert_eq!(again, next);
    assert_eq!(again.claims().len(), 1);
}
