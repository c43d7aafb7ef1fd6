//! Bytes that are out in the world: hubs, nodes and tokens of version 1 hold them, so later versions read
//! them. `FLATLAN_BLESS=1` writes files that are missing; it never changes one.

use std::path::PathBuf;

use flatlan_roster::{
    Claim, CountersignedClaim, Expiry, ForkProof, Ratchet, RosterVersion, Source, Token, VerifiedHead, VerifiedRoster,
    source::{NewKeys, NewMember, Replace},
};
use flatlan_types::{AdminSecret, HostPort};

use crate::world::{NOW, World, hub, invite, ip, name, node, prefix, with_key};

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The golden file holds these bytes.
fn same(file: &str, bytes: &[u8]) {
    if !path(file).exists() && std::env::var_os("FLATLAN_BLESS").is_some() {
        std::fs::write(path(file), bytes).unwrap();
    }
    assert!(read(file) == bytes, "this version writes {file} otherwise: bump its format and keep reading the old one");
}

struct Written {
    source: Source,
    bundle: VerifiedRoster,
    claim: Claim,
    ratchet: Ratchet,
    fork: ForkProof,
}

/// A network that uses every field there is.
fn written() -> Written {
    let mut world = World::with_two();
    let mut rome = flatlan_roster::source::new_hub(name("rome"), hub(2).public(), "[2001:db8::2]:443".parse().unwrap());
    rome.udp = Some("rome.example.net:51820".parse().unwrap());
    rome.region = Some(name("south"));
    rome.weight = 7;
    world.source.add_hub(&rome).unwrap();
    let (c, phone, a) = (name("c"), name("phone"), name("a"));
    let (ips, groups) = ([ip("10.77.0.9"), ip("fd00::9")], [name("staff")]);
    let endpoint: HostPort = "c.example.net:51820".parse().unwrap();
    world.add(&NewMember { ips: &ips, groups: &groups, endpoint: Some(&endpoint), ..with_key(&c, 3) });
    let stock = NewKeys::Stock { session: node(4).public().session, via: &a };
    world.add(&NewMember { keys: stock, ..NewMember::named(&phone) });
    let text = world.source.to_string().replace("# expiry = \"warn\"", "expiry = \"refuse-new\"");
    let text = format!(
        "{text}\n[member.d]\nip = \"10.77.0.20\"\nha = \"pair\"\nroutes = [\"10.2.0.0/16\"]\n\
         \n[member.e]\nip = \"10.77.0.21\"\nha = \"pair\"\nroutes = [\"10.2.0.0/16\"]\nmoved = [\"192.168.7.9/32\"]\n"
    );
    world.source = Source::parse(&text).unwrap();
    let first = world.sign(None);
    world.admin = AdminSecret::from_bytes(&[9; 32]);
    let authority = world.authority().recover(world.admin.public(), &world.recovery).unwrap();
    world.source.set_authority(&authority).unwrap();
    let second = world.sign(Some(&first));
    let bundle = world.sign(Some(&second)).with_claims([world.countersigned(1, 2, NOW)]).unwrap();
    let mut ratchet = world.ratchet();
    ratchet.advance(&bundle).unwrap();
    let source = world.source.clone();
    world.invite("f", 5, Replace::No);
    let Err(flatlan_roster::RatchetError::Fork(fork)) = ratchet.advance(&world.sign(Some(&second))) else { panic!() };
    Written { source, bundle, claim: world.claim(1, 2), ratchet, fork: *fork }
}

#[test]
fn this_version_writes_the_golden_bytes() {
    let written = written();
    same("network-v1.toml", written.source.to_string().as_bytes());
    same("bundle-v1", &written.bundle.encode());
    same("head-v1", &written.bundle.signed_head().encode());
    same("claim-v1", &written.claim.encode());
    same("countersigned-v1", &written.bundle.claims().iter().next().unwrap().encode());
    same("ratchet-v1", &written.ratchet.encode());
    same("fork-v1", &written.fork.encode());
    let token = written.source.token(&name("b"), invite(1)).unwrap().to_text().unwrap();
    same("token-v1", token.as_bytes());
}

#[test]
fn the_golden_bytes_are_read() {
    let source = Source::parse(&String::from_utf8(read("network-v1.toml")).unwrap()).unwrap();
    let id = source.network_id();
    let bundle = VerifiedRoster::verify(&read("bundle-v1"), &Ratchet::new(id), None).unwrap();
    assert_eq!(bundle.version(), RosterVersion { key_epoch: 1, serial: 2 });
    assert_eq!(bundle.records(), source.records());
    assert_eq!(bundle.network().expiry, Expiry::RefuseNew);
    assert_eq!(bundle.hubs().iter().map(|hub| hub.weight).collect::<Vec<_>>(), [1, 7]);
    let names: Vec<_> = bundle.members().map(|member| member.name().to_string()).collect();
    assert_eq!(names, ["a", "b", "c", "phone"]);
    assert_eq!(bundle.members().nth(1).unwrap().keys, node(2).public());
    let phone = bundle.by_name(&name("phone")).unwrap();
    let a = bundle.by_name(&name("a")).unwrap();
    assert_eq!(bundle.owner_table(Some(a)).owner(bundle.member(phone).unwrap().ips[0].ip()), Some(phone));
    assert_eq!(bundle.records().member(&name("e")).unwrap().moved, [prefix("192.168.7.9/32")]);

    let head = VerifiedHead::decode(&read("head-v1"), &id).unwrap();
    assert_eq!(&head, bundle.signed_head());
    let claim = Claim::decode(&read("claim-v1"), &id).unwrap();
    let countersigned = CountersignedClaim::decode(&read("countersigned-v1"), &id).unwrap();
    assert_eq!((claim.invite(), claim.keys()), (countersigned.invite(), countersigned.keys()));
    assert_eq!((*countersigned.hub(), countersigned.time()), (hub(1).public(), NOW));
    let ratchet = Ratchet::decode(&read("ratchet-v1"), &id).unwrap();
    assert_eq!(ratchet.head(), Some(&head));
    let fork = ForkProof::decode(&read("fork-v1"), &id).unwrap();
    assert_eq!((ratchet.fork(), fork.first()), (Some(&fork), &head));
    let token: Token = String::from_utf8(read("token-v1")).unwrap().parse().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((token.network(), token.secret.public()), (id, invite(1).public()));
}
