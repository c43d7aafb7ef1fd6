//! Invites and claims: who gets in, and who does not.

use flatlan_roster::{
    Claim, ClaimRefusal, CountersignError, CountersignedClaim, KeyOrigin, VerifiedRoster,
    source::{NewInvite, NewMember, Replace, new_hub},
};
use flatlan_types::{UnixTime, VirtualIp};

use crate::{
    forge,
    world::{NOW, World, hub, invite, ip, name, node, with_key},
};

#[test]
fn a_claim_fills_its_own_record_and_nothing_else() {
    let world = World::with_two();
    let before = world.sign(None);
    assert_eq!(before.members().count(), 1);
    let claim = before.countersign(&world.claim(1, 2), &hub(1), NOW).unwrap();
    let after = before.with_claims([claim]).unwrap();
    assert_eq!(after.members().next(), before.members().next());
    let b = after.members().nth(1).unwrap();
    assert_eq!(b.keys, node(2).public());
    assert_eq!(b.ips, [ip("10.77.0.2"), VirtualIp::of_key(&world.id(), &b.keys.session)]);
    assert_eq!(b.origin, KeyOrigin::Claim(NOW));
    assert_eq!(after.by_id(&b.keys.id), after.by_name(&name("b")));
    assert_eq!(after.by_session(&b.keys.session), after.by_name(&name("b")));
    assert_eq!(after.owner_table(None).owner(ip("10.77.0.2").ip()), after.by_name(&name("b")));
    assert_eq!(after.head(), before.head());
}

#[test]
fn the_same_node_asking_again_gets_the_same_answer_and_another_is_refused() {
    let world = World::with_two();
    let roster = world.sign(None);
    let claim = roster.countersign(&world.claim(1, 2), &hub(1), NOW).unwrap();
    let roster = roster.with_claims([claim.clone()]).unwrap();
    assert_eq!(roster.countersign(&world.claim(1, 2), &hub(1), NOW.after(5)), Ok(claim));
    let refused = roster.countersign(&world.claim(1, 3), &hub(1), NOW).unwrap_err();
    assert_eq!(refused, CountersignError::Redeemed { member: name("b") });
    assert_eq!(
        refused.to_string(),
        "the token was already redeemed by another machine: if that was not you, tell the admin; a new one: flatlan invite b --replace"
    );
}

#[test]
fn two_claims_for_one_invite_are_both_refused_and_kept_as_proof() {
    let world = World::with_two();
    let roster = world.sign(None);
    let (one, two) = (world.countersigned(1, 2, NOW), world.countersigned(1, 3, NOW.after(1)));
    let forwards = roster.with_claims([one.clone()]).unwrap().with_claims([two.clone()]).unwrap();
    let backwards = roster.with_claims([two, one]).unwrap();
    assert_eq!(forwards, backwards);
    assert_eq!(forwards.by_name(&name("b")), None);
    let reasons: Vec<_> = forwards.refused_claims().iter().map(|refused| refused.reason.clone()).collect();
    assert_eq!(reasons, [ClaimRefusal::DoubleClaim, ClaimRefusal::DoubleClaim]);
    assert_eq!(world.verify(&forwards.encode()).unwrap(), forwards);
    assert_eq!(
        roster.countersign(&world.claim(1, 2), &hub(1), NOW).map(|claim| forwards.with_claims([claim])),
        Ok(None)
    );
}

#[test]
fn of_many_claims_for_one_invite_everyone_keeps_two_and_says_the_same_of_them() {
    let world = World::with_two();
    let roster = world.sign(None);
    let claims: Vec<_> = (2..7).map(|node| world.countersigned(1, node, NOW.after(u64::from(node % 3)))).collect();
    let forwards = roster.with_claims(claims.iter().cloned()).unwrap();
    let backwards = claims.iter().rev().fold(roster, |r, claim| r.with_claims([claim.clone()]).unwrap_or(r));
    assert_eq!(forwards.claims().len(), 2);
    assert!(forwards.members().eq(backwards.members()));
    assert_eq!(forwards.claims_summary(), backwards.claims_summary());
    assert_eq!(forwards.with_claims(claims), None, "no further claim is news");
    let one = world.sign(None).with_claims([world.countersigned(1, 2, NOW)]).unwrap();
    assert_ne!(one.claims_summary(), forwards.claims_summary());
}

#[test]
fn the_one_claim_countersigned_again_and_again_is_no_news() {
    let world = World::with_two();
    let at = |seconds| world.countersigned(1, 2, NOW.after(seconds));
    let roster = world.sign(None).with_claims([at(100)]).unwrap();
    for seconds in (0..100).rev().chain([101]) {
        assert_eq!(roster.with_claims([at(seconds)]), None);
    }
    // whoever holds another copy says and means the same
    let other = world.sign(None).with_claims([at(7)]).unwrap();
    assert_eq!(roster.claims_summary(), other.claims_summary());
    let keys = |of: &VerifiedRoster| of.members().map(|member| member.keys).collect::<Vec<_>>();
    assert_eq!(keys(&roster), keys(&other));
}

#[test]
fn a_key_that_is_in_use_is_refused() {
    let mut world = World::with_two();
    world.invite("c", 2, Replace::No);
    let roster = world.sign(None);
    let refused = roster.countersign(&world.claim(1, 1), &hub(1), NOW).unwrap_err();
    assert_eq!(refused, CountersignError::KeyTaken { by: name("a") });
    assert_eq!(refused.to_string(), "this node's key is already that of member a: join with a fresh --state directory");
    // A hub that countersigns it nevertheless changes nothing.
    let cheated = roster.with_claims([world.countersigned(1, 1, NOW)]).unwrap();
    assert!(cheated.members().eq(roster.members()));
    assert_eq!(cheated.refused_claims()[0].reason, ClaimRefusal::KeyTaken { by: name("a") });
    // One node, two invites: everybody takes the same claim, whenever it was countersigned.
    for (first, second) in [(0, 9), (9, 0)] {
        let claims = [world.countersigned(2, 4, NOW.after(first)), world.countersigned(1, 4, NOW.after(second))];
        let both = roster.with_claims(claims).unwrap();
        assert_eq!(both.members().map(|m| m.name().as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(both.refused_claims()[0].reason, ClaimRefusal::KeyTaken { by: name("c") });
    }
}

#[test]
fn expiry_limits_redemption_but_not_the_claims_life() {
    let world = World::with_two();
    let roster = world.sign(None);
    let expires = NOW.after(86_400);
    let refused = roster.countersign(&world.claim(1, 2), &hub(1), expires.after(1)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the token expired at 2026-02-03T02:40:00Z: ask the admin for a new one: flatlan invite b --replace"
    );
    let claim = roster.countersign(&world.claim(1, 2), &hub(1), expires).unwrap();
    let roster = roster.with_claims([claim.clone()]).unwrap();
    assert_eq!(roster.countersign(&world.claim(1, 2), &hub(1), expires.after(1_000_000)), Ok(claim));
    assert_eq!(roster.members().count(), 2);
    assert_eq!(roster.with_claims([world.countersigned(1, 2, expires.after(1))]), None);
}

#[test]
fn a_hub_whose_clock_was_set_back_takes_the_rosters_time_for_its_own() {
    let world = World::with_two();
    let claim = world.sign(None).countersign(&world.claim(1, 2), &hub(1), UnixTime(0)).unwrap();
    assert_eq!(claim.time(), NOW);
    let late = world.source.sign(None, &world.admin, NOW.after(86_401)).unwrap();
    let refused = late.countersign(&world.claim(1, 2), &hub(1), NOW);
    assert!(matches!(refused, Err(CountersignError::Expired { .. })));
}

#[test]
fn only_the_hub_that_the_invite_names_may_redeem_it() {
    let mut world = World::with_two();
    world.source.add_hub(&new_hub(name("rome"), hub(2).public(), "192.0.2.2:443".parse().unwrap())).unwrap();
    let roster = world.sign(None);
    let refused = roster.countersign(&world.claim(1, 2), &hub(2), NOW).unwrap_err();
    assert_eq!(refused, CountersignError::OtherHub { hub: Some(name("paris")) });
    let bytes = forge::countersign(&world.claim(1, 2), &hub(2), NOW);
    assert_eq!(roster.with_claims([CountersignedClaim::decode(&bytes, &world.id()).unwrap()]), None);
}

#[test]
fn a_claim_counts_only_while_the_head_holds_its_invite() {
    let mut world = World::with_two();
    let with_claim = world.sign(None).with_claims([world.countersigned(1, 2, NOW)]).unwrap();
    world.source.cancel_invite(&name("b")).unwrap();
    let cancelled = world.sign(Some(&with_claim));
    assert!(cancelled.claims().is_empty());
    assert_eq!(cancelled.members().count(), 1);
    let refused = cancelled.countersign(&world.claim(1, 2), &hub(1), NOW).unwrap_err();
    assert_eq!(refused, CountersignError::UnknownInvite);
}

#[test]
fn a_replaced_member_keeps_its_addresses_and_loses_its_old_key_when_the_claim_lands() {
    let mut world = World::with_two();
    world.invite("a", 7, Replace::Yes);
    let before = world.sign(None);
    let a = name("a");
    assert_eq!(before.member(before.by_name(&a).unwrap()).unwrap().keys, node(1).public());
    let refused = before.countersign(&world.claim(7, 1), &hub(1), NOW).unwrap_err();
    assert_eq!(refused, CountersignError::KeyTaken { by: a.clone() });
    let claim = before.countersign(&world.claim(7, 8), &hub(1), NOW).unwrap();
    let after = before.with_claims([claim]).unwrap();
    let index = after.by_name(&a).unwrap();
    assert_eq!(after.member(index).unwrap().keys, node(8).public());
    assert_eq!(after.by_id(&node(1).public().id), None);
    assert_eq!(after.by_session(&node(1).public().session), None);
    let table = after.owner_table(None);
    assert_eq!(table.owner("192.168.7.9".parse().unwrap()), Some(index));
    assert_eq!(table.owner(ip("10.77.0.1").ip()), Some(index));
    assert_eq!(table.owner(VirtualIp::of_key(&world.id(), &node(1).public().session).ip()), None);
    let joined = world.source.fold(&after).unwrap();
    assert_eq!(joined, std::slice::from_ref(&a));
    assert_eq!(world.source.member(&a).unwrap().keys, Some(node(8).public()));
    assert_eq!(world.source.member(&a).unwrap().invite, None);
}

#[test]
fn pulling_folds_the_claim_and_retires_the_invite() {
    let mut world = World::with_two();
    let claimed = world.sign(None).with_claims([world.countersigned(1, 2, NOW)]).unwrap();
    assert_eq!(world.source.fold(&claimed).unwrap(), [name("b")]);
    assert_eq!(world.source.fold(&claimed).unwrap(), []);
    let folded = world.sign(Some(&claimed));
    assert!(folded.claims().is_empty());
    assert_eq!(folded.members().nth(1).unwrap().keys, claimed.members().nth(1).unwrap().keys);
    assert_eq!(folded.members().nth(1).unwrap().origin, KeyOrigin::Record);
    assert_eq!(folded.with_claims([world.countersigned(1, 3, NOW)]), None);
}

#[test]
fn a_double_claim_is_not_folded() {
    let mut world = World::with_two();
    let claims = [world.countersigned(1, 2, NOW), world.countersigned(1, 3, NOW)];
    let doubled = world.sign(None).with_claims(claims).unwrap();
    assert_eq!(world.source.fold(&doubled).unwrap(), []);
    assert!(world.source.member(&name("b")).unwrap().invite.is_some());
}

#[test]
fn an_invite_reopened_since_is_not_folded_over() {
    let mut world = World::with_two();
    let claimed = world.sign(None).with_claims([world.countersigned(1, 2, NOW)]).unwrap();
    world.invite("b", 9, Replace::Yes);
    assert_eq!(world.source.fold(&claimed).unwrap(), []);
    assert_eq!(world.source.member(&name("b")).unwrap().invite.unwrap().key, invite(9).public());
}

#[test]
fn no_flipped_claim_is_read() {
    let world = World::with_two();
    let claim = world.claim(1, 2).encode();
    let countersigned = world.countersigned(1, 2, NOW).encode();
    for at in 0..countersigned.len() {
        let mut flipped = countersigned.clone();
        flipped[at] ^= 0x01;
        assert!(CountersignedClaim::decode(&flipped, &world.id()).is_err());
        if let Some(byte) = claim.get(at) {
            let mut flipped = claim.clone();
            flipped[at] = byte ^ 0x01;
            assert!(Claim::decode(&flipped, &world.id()).is_err());
        }
    }
    assert!(Claim::decode(&claim, &World::seeded(5).id()).is_err());
    assert!(CountersignedClaim::decode(&countersigned, &World::seeded(5).id()).is_err());
}

#[test]
fn an_invite_may_go_to_a_chosen_hub_and_name_addresses() {
    let mut world = World::new();
    world.source.add_hub(&new_hub(name("rome"), hub(2).public(), "192.0.2.2:443".parse().unwrap())).unwrap();
    let (b, rome, ips) = (name("b"), name("rome"), [ip("10.77.0.9"), ip("fd00::9")]);
    let member = NewMember { ips: &ips, ..NewMember::named(&b) };
    let key = invite(1).public();
    let new = NewInvite { member, key, expires: NOW, hub: Some(&rome), replace: Replace::No };
    let record = world.source.invite(&new).unwrap();
    assert_eq!(record.ips, ips);
    assert_eq!(record.invite.unwrap().redeemer, hub(2).public());
    world.add(&with_key(&name("c"), 5));
    assert_eq!(world.source.member(&name("c")).unwrap().ips, [ip("10.77.0.1")]);
}
