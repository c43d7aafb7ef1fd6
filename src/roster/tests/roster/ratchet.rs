//! Older, forked, pushed too far; and the recovery that undoes it.

use flatlan_roster::{
    Authority, AuthorityError, Draft, ForkProof, Freshness, HISTORY, Head, HeadError, Kept, KeyCertificate,
    MAX_SERIAL_JUMP, Ratchet, RatchetError, RosterVersion, SignError, Step, VerifiedHead, VerifiedRoster, VerifyError,
    source::NewMember,
};
use flatlan_types::{AdminSecret, UnixTime};

use crate::{
    forge,
    world::{NOW, World, name},
};

fn chain(world: &World, length: usize) -> Vec<VerifiedRoster> {
    let mut rosters: Vec<VerifiedRoster> = Vec::new();
    for _ in 0..length {
        rosters.push(world.sign(rosters.last()));
    }
    rosters
}

/// A roster of this serial that follows nothing, signed by whoever has the admin key.
fn with_serial(world: &World, serial: u64) -> Vec<u8> {
    let records = forge::of_source(&world.source);
    let head = Head { serial, ..forge::head(world.authority(), &records) };
    forge::bundle(&forge::signed_head(world.authority(), &head, &world.admin), &[], &records, &[])
}

#[test]
fn an_older_roster_is_refused_also_after_a_restart() {
    let world = World::with_two();
    let rosters = chain(&world, 3);
    let mut ratchet = world.ratchet();
    assert_eq!(ratchet.advance(&rosters[0]), Ok(Step::Newer));
    assert_eq!(ratchet.advance(&rosters[2]), Ok(Step::Newer));
    let restarted = Ratchet::decode(&ratchet.encode(), &world.id()).unwrap();
    let refused = VerifiedRoster::verify(&rosters[1].encode(), &restarted, None);
    let Err(VerifyError::Ratchet(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.to_string(), "roster 2 is older than 3, which was seen before");
    assert_eq!(ratchet.advance(&rosters[2]), Ok(Step::Same));
    assert_eq!(ratchet.head().map(VerifiedHead::version), Some(rosters[2].version()));
}

#[test]
fn a_fork_is_seen_proved_and_does_not_replace_the_first() {
    let mut world = World::with_two();
    let first = world.sign(None);
    let ours = world.sign(Some(&first));
    world.add(&NewMember::named(&name("intruder")));
    let theirs = world.sign(Some(&first));
    let mut ratchet = world.ratchet();
    ratchet.advance(&ours).unwrap();
    assert!(matches!(
        VerifiedRoster::verify(&theirs.encode(), &ratchet, None),
        Err(VerifyError::Ratchet(RatchetError::Fork(_)))
    ));
    let Err(RatchetError::Fork(proof)) = ratchet.advance(&theirs) else { panic!() };
    assert_eq!(ratchet.head(), Some(ours.signed_head()));
    assert_eq!(proof.first(), ours.signed_head());
    assert_eq!(proof.second(), theirs.signed_head());
    assert_eq!(ForkProof::decode(&proof.encode(), &world.id()).unwrap(), *proof);
    let restarted = Ratchet::decode(&ratchet.encode(), &world.id()).unwrap();
    assert_eq!(restarted.fork(), Some(&*proof));
    assert_eq!(ratchet.keep_proof(&proof), Kept::Already);
}

#[test]
fn a_fork_further_back_is_seen_in_the_history() {
    let mut world = World::with_two();
    let ours = chain(&world, 2);
    let mut ratchet = world.ratchet();
    ratchet.advance(&ours[1]).unwrap();
    world.add(&NewMember::named(&name("intruder")));
    let mut theirs = world.sign(Some(&ours[0]));
    for _ in 0..5 {
        theirs = world.sign(Some(&theirs));
    }
    assert!(matches!(ratchet.advance(&theirs), Err(RatchetError::Fork(_))));
    // And the other way round: the longer chain was first.
    let mut ratchet = world.ratchet();
    ratchet.advance(&theirs).unwrap();
    assert!(matches!(ratchet.compare(ours[1].signed_head()), Err(RatchetError::Fork(_))));
    assert!(matches!(ratchet.compare(ours[0].signed_head()), Err(RatchetError::Rollback { .. })));
}

#[test]
fn a_head_alone_tells_newer_from_older_from_forked() {
    let world = World::with_two();
    let rosters = chain(&world, 3);
    let mut ratchet = world.ratchet();
    ratchet.advance(&rosters[1]).unwrap();
    assert_eq!(ratchet.compare(rosters[1].signed_head()), Ok(Step::Same));
    assert_eq!(ratchet.compare(rosters[2].signed_head()), Ok(Step::Newer));
    assert!(matches!(ratchet.compare(rosters[0].signed_head()), Err(RatchetError::Rollback { .. })));
    let records = forge::records(world.source.network(), &[], &[]);
    let fork = Head { serial: 3, ..forge::head(world.authority(), &records) };
    let fork = forge::signed_head(world.authority(), &fork, &world.admin);
    let fork = VerifiedHead::decode(&fork, &world.id()).unwrap();
    assert!(matches!(ratchet.compare(&fork), Err(RatchetError::Fork(_))));
}

#[test]
fn a_long_chain_is_followed_and_carries_a_bounded_history() {
    let world = World::new();
    let rosters = chain(&world, HISTORY + 10);
    let mut ratchet = world.ratchet();
    ratchet.advance(&rosters[0]).unwrap();
    let last = rosters.last().unwrap();
    let bytes = last.encode();
    let verified = VerifiedRoster::verify(&bytes, &ratchet, None).unwrap();
    assert_eq!(ratchet.advance(&verified), Ok(Step::Newer));
    assert!(bytes.len() < rosters[HISTORY].encode().len() + 100);
    assert_eq!(Ratchet::decode(&ratchet.encode(), &world.id()).unwrap(), ratchet);
}

#[test]
fn a_serial_that_jumps_too_far_is_refused() {
    let world = World::with_two();
    let first = world.verify(&with_serial(&world, 1)).unwrap();
    let mut ratchet = world.ratchet();
    ratchet.advance(&first).unwrap();
    let records = forge::of_source(&world.source);
    let jump = |serial| {
        let previous = Some(first.signed_head().id());
        let head = Head { serial, previous, ..forge::head(world.authority(), &records) };
        let head = forge::signed_head(world.authority(), &head, &world.admin);
        let history = [minicbor::to_vec(first.head()).unwrap()];
        VerifiedRoster::verify(&forge::bundle(&head, &history, &records, &[]), &ratchet, None)
    };
    assert!(jump(1 + MAX_SERIAL_JUMP).is_ok());
    let refused = jump(2 + MAX_SERIAL_JUMP);
    assert!(matches!(refused, Err(VerifyError::Ratchet(RatchetError::SerialJump { .. }))), "{refused:?}");
}

#[test]
fn recovery_undoes_whatever_a_thief_signed() {
    let mut world = World::with_two();
    let base = world.sign(None);
    let thief = world.verify(&with_serial(&world, u64::MAX)).unwrap();
    let mut ratchet = world.ratchet();
    ratchet.advance(&thief).unwrap();
    let stuck = world.source.sign(Some(&thief), &world.admin, NOW);
    assert_eq!(stuck, Err(SignError::SerialExhausted));

    let new_admin = AdminSecret::from_bytes(&[77; 32]);
    let authority = world.authority().recover(new_admin.public(), &world.recovery).unwrap();
    world.source.set_authority(&authority).unwrap();
    let old = world.source.sign(Some(&base), &world.admin, NOW);
    assert_eq!(old, Err(SignError::NotAdminKey));
    world.admin = new_admin;
    let recovered = world.sign(Some(&base));
    assert_eq!(recovered.version(), RosterVersion { key_epoch: 1, serial: 1 });
    let verified = VerifiedRoster::verify(&recovered.encode(), &ratchet, None).unwrap();
    assert_eq!(ratchet.advance(&verified), Ok(Step::Newer));
    let again = VerifiedRoster::verify(&thief.encode(), &ratchet, None);
    assert!(matches!(again, Err(VerifyError::Ratchet(RatchetError::Rollback { .. }))));
    let next = world.sign(Some(&recovered));
    assert_eq!(ratchet.advance(&next), Ok(Step::Newer));
    assert_eq!(world.verify(&next.encode()).unwrap(), next);
}

#[test]
fn only_the_recovery_key_makes_a_certificate() {
    let world = World::new();
    let thief = AdminSecret::from_bytes(&[66; 32]);
    assert_eq!(world.authority().recover(thief.public(), &world.admin), Err(AuthorityError::NotRecoveryKey));
    let forged = KeyCertificate::issue(&world.id(), 1, thief.public(), &world.admin);
    assert_eq!(world.authority().clone().with(forged), Err(AuthorityError::BadCertificate));
    let elsewhere = KeyCertificate::issue(&World::seeded(5).id(), 1, thief.public(), &world.recovery);
    assert_eq!(world.authority().clone().with(elsewhere), Err(AuthorityError::BadCertificate));
    let again = KeyCertificate::issue(&world.id(), 0, thief.public(), &world.recovery);
    assert_eq!(world.authority().clone().with(again), Err(AuthorityError::EpochOrder));
    let good = KeyCertificate::issue(&world.id(), 3, thief.public(), &world.recovery);
    assert_eq!(KeyCertificate::from_text(&good.to_text()), Ok(good.clone()));
    assert_eq!(world.authority().clone().with(good).map(|authority| authority.key_epoch()), Ok(3));
}

#[test]
fn a_head_of_another_key_epoch_than_its_chain_is_refused() {
    let world = World::new();
    let head = Head { key_epoch: 1, ..forge::head(world.authority(), &[]) };
    let refused = VerifiedHead::decode(&forge::signed_head(world.authority(), &head, &world.admin), &world.id());
    assert!(matches!(refused, Err(HeadError::KeyEpoch { head: 1, chain: 0 })));
}

#[test]
fn the_admins_side_refuses_what_it_cannot_follow() {
    let mut world = World::with_two();
    let rosters = chain(&world, 3);
    assert_eq!(rosters[2].may_follow(rosters[0].signed_head()), Ok(Step::Newer));
    assert_eq!(rosters[2].may_follow(rosters[2].signed_head()), Ok(Step::Same));
    assert!(matches!(rosters[0].may_follow(rosters[2].signed_head()), Err(RatchetError::Rollback { .. })));
    world.add(&NewMember::named(&name("elsewhere")));
    let other = world.sign(Some(&rosters[1]));
    assert!(matches!(other.may_follow(rosters[2].signed_head()), Err(RatchetError::Fork(_))));

    let authority = world.authority().recover(AdminSecret::from_bytes(&[77; 32]).public(), &world.recovery).unwrap();
    let new_admin = AdminSecret::from_bytes(&[77; 32]);
    let (records, life) = (world.source.records(), world.source.life());
    let draft = Draft { authority: &authority, records, base: Some(&other), now: NOW, life };
    let recovered = VerifiedRoster::sign(draft, &new_admin).unwrap();
    let stale = world.source.sign(Some(&recovered), &world.admin, NOW);
    assert_eq!(stale, Err(SignError::KeyReplaced { epoch: 1 }));
    let foreign = World::seeded(5).sign(None);
    assert_eq!(world.source.sign(Some(&foreign), &world.admin, NOW), Err(SignError::OtherNetwork));
}

#[test]
fn a_damaged_ratchet_is_refused_and_never_read_as_empty() {
    let world = World::with_two();
    let mut ratchet = world.ratchet();
    ratchet.advance(&world.sign(None)).unwrap();
    let bytes = ratchet.encode();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x01;
        assert!(Ratchet::decode(&flipped, &world.id()).is_err(), "byte {at}");
        assert!(Ratchet::decode(&bytes[..at], &world.id()).is_err());
    }
    assert!(Ratchet::decode(&bytes, &World::seeded(5).id()).is_err());
    assert!(Ratchet::decode(&world.ratchet().encode(), &world.id()).is_ok());
}

#[test]
fn two_heads_of_one_chain_prove_no_fork() {
    let world = World::with_two();
    let rosters = chain(&world, 2);
    let mut bytes = vec![0x82];
    for roster in &rosters {
        bytes.push(0x82);
        bytes.extend(roster.signed_head().encode());
        bytes.push(0x80);
    }
    let refused = ForkProof::decode(&bytes, &world.id());
    assert_eq!(refused.unwrap_err().to_string(), "it proves no fork: the two heads are of one chain");
}

#[test]
fn age_is_told_early_and_a_clock_set_back_does_not_hide_it() {
    let roster = World::new().sign(None);
    let (issued, expires) = (roster.head().issued, roster.head().expires);
    assert_eq!(expires, issued.after(180 * 86_400));
    assert_eq!(roster.freshness(UnixTime(0)), Freshness::Fresh);
    assert_eq!(roster.freshness(issued.after(149 * 86_400)), Freshness::Fresh);
    assert_eq!(roster.freshness(issued.after(150 * 86_400)), Freshness::Aging { expires });
    assert_eq!(roster.freshness(expires), Freshness::Expired { since: expires });
}

#[test]
fn an_authority_of_another_network_cannot_be_written_into_the_file() {
    let mut world = World::new();
    let other: Authority = World::seeded(5).authority().clone();
    assert!(world.source.set_authority(&other).is_err());
}
