//! Ten thousand members.

use std::time::Instant;

use flatlan_roster::{Draft, MemberRecord, Record, Records, VerifiedRoster};
use flatlan_types::{MemberId, NodeKeys, Prefix, SessionKey, VirtualIp};
use sha2::{Digest, Sha256};

use crate::world::{NOW, World, name};

#[test]
fn ten_thousand_members_are_compiled_signed_and_verified() {
    let world = World::new();
    let network =
        flatlan_roster::NetworkRecord { range: "10.64.0.0/10".parse().unwrap(), ..world.source.network().clone() };
    let mut records = vec![Record::Network(network), Record::Hub(world.source.records().hubs()[0].clone())];
    for n in 0..10_000_u32 {
        let key = |kind: u8| -> [u8; 32] { Sha256::digest([&[kind][..], &n.to_be_bytes()].concat()).into() };
        let keys = NodeKeys { id: MemberId::from_bytes(key(1)), session: SessionKey::from_bytes(key(2)) };
        records.push(Record::Member(MemberRecord {
            ips: vec![VirtualIp::new((0x0a40_0001 + n).to_be_bytes().into())],
            keys: Some(keys),
            routes: vec![Prefix::of((0xac10_0000 + (n << 4)).to_be_bytes().into(), 28).unwrap()],
            ..MemberRecord::new(name(&format!("m{n:05}")))
        }));
    }
    let id = world.id();
    let clock = Instant::now();
    let records = Records::compile(records, &id).unwrap();
    let compiled = clock.elapsed();
    let (authority, life) = (world.authority(), world.source.life());
    let draft = Draft { authority, records: &records, base: None, now: NOW, life };
    let bytes = VerifiedRoster::sign(draft, &world.admin).unwrap().encode();
    let signed = clock.elapsed();
    let roster = world.verify(&bytes).unwrap();
    let verified = clock.elapsed();
    let table = roster.owner_table(None);
    println!(
        "{} bytes; compiled {compiled:?}, signed {:?}, verified {:?}, owner table {:?}",
        bytes.len(),
        signed - compiled,
        verified - signed,
        clock.elapsed() - verified
    );
    assert_eq!(roster.members().count(), 10_000);
    for n in (0..10_000_u32).step_by(97) {
        let member = roster.by_name(&name(&format!("m{n:05}"))).unwrap();
        assert_eq!(table.owner((0x0a40_0001 + n).to_be_bytes().into()), Some(member));
        assert_eq!(table.owner((0xac10_0007 + (n << 4)).to_be_bytes().into()), Some(member));
    }
}
