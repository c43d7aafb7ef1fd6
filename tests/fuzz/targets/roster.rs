//! What hubs and peers hand on, and tokens: bundles, heads, claims, forks.

use std::{fs, path::Path, str::FromStr as _};

use flatlan_fuzz::{Fuzz, outcome, refusal};
use flatlan_roster::{
    Claim, CountersignedClaim, ForkProof, Ratchet, Record, Source, Token, VerifiedHead, VerifiedRoster,
    source::{NewInvite, NewKeys, NewMember, Replace, new_hub},
};
use flatlan_types::{AdminSecret, InviteSecret, Name, NetworkId, RecoveryKey, UnixTime};

use crate::{hub, node};

#[test]
fn bundle() {
    let (source, admin) = world();
    let first = source.sign(None, &admin, NOW).unwrap();
    let invite = InviteSecret::from_bytes(&[150; 32]);
    let claim = Claim::make(&source.network_id(), &invite, &node(9));
    let claim = first.countersign(&claim, &hub(1), NOW).unwrap();
    let roster = first.with_claims([claim]).unwrap();
    let second = source.sign(Some(&roster), &admin, NOW).unwrap();
    let ratchet = Ratchet::new(source.network_id());
    let seeds = [first.encode(), roster.encode(), second.encode()];
    Fuzz::new("bundle").golden("roster/tests/golden", "bundle").seeds(seeds.clone()).run(|input| {
        match VerifiedRoster::verify(input, &ratchet, None) {
            Ok(roster) => {
                // the admin signed what is in it: only claims may differ from what he published
                assert!(seeds.iter().any(|seed| {
                    let published = VerifiedRoster::verify(seed, &ratchet, None).unwrap();
                    published.head() == roster.head()
                }));
                let again = VerifiedRoster::verify(&roster.encode(), &ratchet, Some(&roster)).unwrap();
                assert!(again == roster);
                1
            }
            Err(error) => refusal(&error),
        }
    });
}

#[test]
fn head() {
    let (source, admin) = world();
    let network = source.network_id();
    let roster = source.sign(None, &admin, NOW).unwrap();
    let own = roster.signed_head().encode();
    Fuzz::new("head").golden("roster/tests/golden", "head").seeds([own.clone()]).run(
        |input| match VerifiedHead::decode(input, &network) {
            Ok(head) => {
                assert_eq!(head.encode(), input);
                assert_eq!(input, own, "nobody else signs");
                1
            }
            Err(error) => refusal(&error),
        },
    );
}

#[test]
fn record() {
    let (source, _) = world();
    let records = source.records();
    let network = Record::Network(records.network().clone());
    let hubs = records.hubs().iter().cloned().map(Record::Hub);
    let members = records.members().cloned().map(Record::Member);
    let seeds: Vec<Vec<u8>> = hubs.chain(members).chain([network]).map(|record| record.encode()).collect();
    Fuzz::new("record").seeds(seeds).run(|input| match Record::decode(input) {
        Ok(record) => {
            if !matches!(record, Record::Skipped { .. }) {
                let again = Record::decode(&record.encode()).unwrap();
                assert!(again == record, "it is read as it was written");
            }
            outcome(&(record.order().0, input.len()))
        }
        Err(error) => refusal(&error),
    });
}

#[test]
fn claim() {
    let (source, admin) = world();
    let network = source.network_id();
    let invite = InviteSecret::from_bytes(&[150; 32]);
    let claim = Claim::make(&network, &invite, &node(9));
    let signed = source.sign(None, &admin, NOW).unwrap().countersign(&claim, &hub(1), NOW).unwrap();
    let seeds = [claim.encode(), signed.encode()];
    Fuzz::new("claim")
        .golden("roster/tests/golden", "claim")
        .golden("roster/tests/golden", "countersigned")
        .seeds(seeds.clone())
        .run(|input| {
            if let Ok(claim) = CountersignedClaim::decode(input, &network) {
                assert_eq!(claim.encode(), input);
                assert_eq!(input, seeds[1], "nobody else countersigns");
                return 1;
            }
            match Claim::decode(input, &network) {
                Ok(claim) => {
                    assert_eq!(claim.encode(), input);
                    assert_eq!(input, seeds[0], "nobody else signs");
                    2
                }
                Err(error) => refusal(&error),
            }
        });
}

#[test]
fn token() {
    let (mut source, _) = world();
    let secret = InviteSecret::from_bytes(&[151; 32]);
    let name = name("d");
    let member = NewMember::named(&name);
    let invite =
        NewInvite { member, key: secret.public(), expires: NOW.after(86_400), hub: None, replace: Replace::No };
    source.invite(&invite).unwrap();
    let text = source.token(&name, secret).unwrap().to_text().unwrap().to_string();
    // a wrong check sum would hide all that is behind it: also bytes that the check sum is put on
    let (kind, bytes) = bech32::decode(&text).unwrap();
    let seeds = [text.into_bytes(), [vec![0xff], bytes].concat()];
    Fuzz::new("token").golden("roster/tests/golden", "token").seeds(seeds).run(|input| {
        let text = match input {
            [0xff, bytes @ ..] => bech32::encode::<bech32::Bech32m>(kind, bytes).unwrap_or_default(),
            text => String::from_utf8_lossy(text).into_owned(),
        };
        match Token::from_str(&text) {
            Ok(token) => {
                let again = Token::from_str(&token.to_text().unwrap()).unwrap();
                assert!(again.network() == token.network() && again.member == token.member);
                1
            }
            Err(error) => refusal(&error),
        }
    });
}

#[test]
fn fork() {
    let network = source_network();
    Fuzz::new("fork").golden("roster/tests/golden", "fork").run(|input| match ForkProof::decode(input, &network) {
        Ok(proof) => {
            assert_eq!(proof.encode(), input);
            1
        }
        Err(error) => refusal(&error),
    });
}

/// The network of the golden files.
pub(crate) fn source_network() -> NetworkId {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/roster/tests/golden/network-v1.toml");
    let text = fs::read_to_string(path).unwrap();
    Source::parse(&text).unwrap().network_id()
}

/// A hub, a member with a route, one with an invite.
pub(crate) fn world() -> (Source, AdminSecret) {
    let (admin, recovery) = (AdminSecret::from_bytes(&[31; 32]), AdminSecret::from_bytes(&[32; 32]));
    let range = "10.77.0.0/24".parse().unwrap();
    let mut source = Source::create(&name("lab"), range, &admin.public(), &RecoveryKey::of(&recovery)).unwrap();
    source.add_hub(&new_hub(name("paris"), hub(1).public(), "192.0.2.1:443".parse().unwrap())).unwrap();
    let (a, b) = (name("a"), name("b"));
    let routes = ["192.168.7.0/24".parse().unwrap()];
    let keys = NewKeys::Node(node(7).public());
    source.add_member(&NewMember { routes: &routes, keys, ..NewMember::named(&a) }).unwrap();
    let key = InviteSecret::from_bytes(&[150; 32]).public();
    let member = NewMember::named(&b);
    source.invite(&NewInvite { member, key, expires: NOW.after(86_400), hub: None, replace: Replace::No }).unwrap();
    (source, admin)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

const NOW: UnixTime = UnixTime(1_770_000_000);
