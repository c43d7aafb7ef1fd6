//! The wire, byte for byte. Each file under `golden/` is one message of a version that was released or
//! is about to be: this version must write the same and must read all of them. A new message's file is
//! made with `FLATLAN_GOLDEN=write`; the files of released ones never change.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::{fs, path::Path};

use data_encoding::HEXLOWER;
use flatlan_relay::{
    Attach, Attached, BindKey, BindSecret, ByteVec, ClaimsSummary, Control, DecodeError, Echo, Leg, Lsa, LsaEntry,
    LsaLink, LsaVersion, NetworkTag, PathOpen, PathReason, Presence, PresenceOrder, PresenceSummary, Proof,
    RefusedCode, Role, SignedLsa, VERSION,
    auth::{AttachScope, Exporter, sign_hello},
    bind::{Bind, Bound, Verdict},
    frame,
};
use flatlan_types::{BootEpoch, Endpoint, HubSecret, InviteSecret, Label, MemberId, NetworkId, NodeSeed};
use proptest::prelude::*;

#[test]
fn every_control_message_is_written_and_read_as_in_the_golden_file() {
    for (name, message) in messages() {
        let bytes = message.encode();
        check(name, &bytes);
        assert_eq!(Control::decode(&bytes).unwrap(), Some(message), "{name}");
    }
}

#[test]
fn every_datagram_is_written_as_in_the_golden_file() {
    let key = BindSecret::from_bytes([9; 32]);
    let bind = Bind { id: 1, counter: 2, time: 3, nonce: 4 };
    check("bind", &bind.encode(&key));
    for (name, at, verdict) in [
        ("bound", "192.0.2.1:4500", Verdict::Bound),
        ("bound-challenge", "[2001:db8::1]:4500", Verdict::Challenge(0x0102_0304_0506_0708)),
    ] {
        let reflexive = Endpoint::new(at.parse().unwrap());
        check(name, &Bound { id: 1, counter: 2, time: 3, reflexive, verdict }.encode(&key));
    }
    let mut frame = [&[0; 8][..], b"inner"].concat();
    frame::Header::new(Label::new(5, 6)).write(&mut frame);
    check("frame", &frame);
    let mut packed = Vec::new();
    frame::pack(&mut packed, &frame).unwrap();
    frame::pack(&mut packed, &frame).unwrap();
    check("frames-packed", &packed);
    check("presence", &presence().encode());
    check("lsa", lsa().bytes());
}

#[test]
fn an_unknown_message_is_skipped_or_refused_by_its_tag() {
    // [0x8001, {}] and [36, {}]
    assert_eq!(Control::decode(&[0x82, 0x19, 0x80, 0x01, 0xa0]).unwrap(), None);
    let refused = Control::decode(&[0x82, 0x18, 36, 0xa0]);
    assert!(matches!(refused, Err(DecodeError::UnknownCritical { tag: 36 })), "{refused:?}");
}

#[test]
fn an_unknown_field_of_a_known_message_is_skipped() {
    // Ping { 0: 7, 99: [1, {2: "x"}] }
    let bytes = [0x82, 0x18, 25, 0xa2, 0x00, 0x07, 0x18, 99, 0x82, 0x01, 0xa1, 0x02, 0x61, b'x'];
    assert_eq!(Control::decode(&bytes).unwrap(), Some(Control::Ping { time: 7 }));
}

#[test]
fn a_message_with_anything_behind_it_is_refused() {
    let mut bytes = Control::Ping { time: 7 }.encode();
    bytes.push(0);
    assert!(matches!(Control::decode(&bytes), Err(DecodeError::Trailing)));
}

proptest! {
    #[test]
    fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Control::decode(&bytes);
        let _ = SignedLsa::verify(&bytes);
        let _ = Presence::verify(&bytes);
    }

    #[test]
    fn a_cut_or_changed_message_decodes_without_panic(which in 0usize..100, at in any::<u16>(), byte in any::<u8>(), cut in any::<bool>()) {
        let all = messages();
        let mut bytes = all[which % all.len()].1.encode();
        let at = usize::from(at) % bytes.len();
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        let _ = Control::decode(&bytes);
    }
}

fn check(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    let lines = bytes.chunks(32).map(|line| HEXLOWER.encode(line) + "\n").collect::<String>();
    if std::env::var_os("FLATLAN_GOLDEN").is_some_and(|v| v == "write") {
        fs::write(&path, &lines).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(golden, lines, "{name} differs from its golden file");
}

fn hub() -> HubSecret {
    HubSecret::from_bytes(&[1; 32])
}

fn network() -> NetworkId {
    NetworkId::from_bytes([5; 32])
}

fn member(n: u8) -> MemberId {
    NodeSeed::from_bytes([n; 32]).derive().public().id
}

fn presence() -> Presence {
    let order = PresenceOrder { epoch: BootEpoch(1_700_000_000), counter: 3 };
    Presence::sign(&NodeSeed::from_bytes([7; 32]).derive(), network(), hub().public(), order)
}

fn lsa() -> SignedLsa {
    let link = LsaLink { to: HubSecret::from_bytes(&[2; 32]).public(), rtt_us: 900 };
    let version = LsaVersion { incarnation: 1, sequence: 2 };
    let origin = hub().public();
    SignedLsa::sign(&hub(), Lsa { origin, version, links: vec![link], serves: vec![NetworkTag::of(&network())] })
}

fn messages() -> Vec<(&'static str, Control)> {
    let (key, network) = (hub().public(), network());
    let exporter = Exporter([3; 32]);
    let scope = |role| AttachScope { exporter: &exporter, hub: &key, network: &network, role };
    let attach = |role, proof| Control::Attach(Attach { version: VERSION, network, role, proof });
    let invite = InviteSecret::from_bytes(&[8; 32]);
    let other = HubSecret::from_bytes(&[2; 32]);
    let node = NodeSeed::from_bytes([7; 32]).derive();
    let presence = presence().encode();
    let order = PresenceOrder { epoch: BootEpoch(1_700_000_000), counter: 3 };
    let claims = ClaimsSummary { count: 2, hash: [4; 32] };
    let version = LsaVersion { incarnation: 1, sequence: 2 };
    let at = Endpoint::new("192.0.2.1:4500".parse().unwrap());
    let label = Label::new(5, 6);
    let node_proof = |role, presence| Proof::Node { id: member(7), presence, signature: scope(role).sign_node(&node) };
    vec![
        ("hub-hello", Control::HubHello { version: VERSION, key, signature: sign_hello(&hub(), &exporter) }),
        ("attach-control", attach(Role::Control, node_proof(Role::Control, presence.clone()))),
        ("attach-data", attach(Role::Data, node_proof(Role::Data, Vec::new()))),
        (
            "attach-join",
            attach(
                Role::Join,
                Proof::Invite { key: invite.public(), signature: scope(Role::Join).sign_invite(&invite) },
            ),
        ),
        ("attach-admin", attach(Role::Admin, Proof::Nothing)),
        (
            "attach-hub",
            attach(
                Role::HubControl,
                Proof::Hub { key: other.public(), signature: scope(Role::HubControl).sign_hub(&other) },
            ),
        ),
        (
            "attached",
            Control::Attached(Attached {
                version: VERSION,
                attachment: 17,
                observed: at,
                udp: vec!["hub.example:51820".parse().unwrap()],
                bind: Some(BindKey { id: 17, key: BindSecret::from_bytes([9; 32]) }),
                head: Some(b"head".to_vec()),
                claims,
            }),
        ),
        (
            "refused",
            Control::Refused { code: RefusedCode::StaleEpoch, text: "stale".into(), presence: Some(presence.clone()) },
        ),
        ("head", Control::Head { network, head: b"head".to_vec(), claims }),
        ("get-roster", Control::GetRoster { network, offset: 60_000 }),
        ("roster-part", Control::RosterPart { network, version: 7, total: 5, offset: 0, bytes: b"bytes".to_vec() }),
        ("put-roster", Control::PutRoster { network, total: 5, offset: 0, bytes: b"bytes".to_vec() }),
        ("stored", Control::Stored { network, key_epoch: 1, serial: 42 }),
        ("redeem", Control::Redeem { network, claim: b"claim".to_vec() }),
        ("redeemed", Control::Redeemed { network, claim: b"claim".to_vec() }),
        ("get-claims", Control::GetClaims { network, from: 0 }),
        ("claims", Control::Claims { network, from: 0, total: 1, claims: vec![ByteVec::from(b"claim".to_vec())] }),
        ("watch", Control::Watch { peers: vec![member(7), member(8)] }),
        ("unwatch", Control::Unwatch { peers: vec![member(7)] }),
        ("presence-told", Control::Presence { presence: presence.clone() }),
        ("absent", Control::Absent { peer: member(7), hub: Some(key) }),
        (
            "path-open",
            Control::PathOpen(PathOpen {
                request: 3,
                network,
                from: member(7),
                to: member(8),
                hops: 8,
                via: vec![key],
                avoid: vec![other.public()],
            }),
        ),
        ("path-opened", Control::PathOpened { request: 3, label, via: vec![key], rtt_us: 900 }),
        ("path-failed", Control::PathFailed { request: 3, reason: PathReason::NotAttached }),
        ("path-close", Control::PathClose { label }),
        ("path-lost", Control::PathLost { label, reason: PathReason::HubLost }),
        ("label-unknown", Control::LabelUnknown { label }),
        ("downlink", Control::Downlink { leg: Leg::Tls }),
        ("ping", Control::Ping { time: 1_000_000 }),
        ("pong", Control::Pong { time: 1_000_000 }),
        ("draining", Control::Draining),
        ("hello", Control::Hello { time: 5, echo: Some(Echo { time: 4, held_us: 100 }) }),
        ("serves", Control::Serves { networks: vec![network] }),
        ("lsa-told", Control::Lsa { lsa: lsa().bytes().to_vec() }),
        ("lsa-digest", Control::LsaDigest { entries: vec![LsaEntry { origin: key, version }] }),
        ("presence-flood", Control::PresenceFlood { network, presences: vec![ByteVec::from(presence)] }),
        ("presence-gone", Control::PresenceGone { network, member: member(7), hub: key, order }),
        (
            "presence-digest",
            Control::PresenceDigest { network, entries: vec![PresenceSummary { hub: key, count: 1, hash: [6; 16] }] },
        ),
        ("presence-pull", Control::PresencePull { network, hub: key }),
        ("path-moved", Control::PathMoved { label, via: vec![key, other.public()] }),
    ]
}
