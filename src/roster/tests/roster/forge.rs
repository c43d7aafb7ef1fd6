//! Encodes and signs by hand, whatever the crate thinks of it.

use flatlan_roster::{Authority, Claim, Head, HubRecord, MemberRecord, NetworkRecord, Source};
use flatlan_types::{AdminSecret, HubSecret, UnixTime};
use minicbor::{Encode, Encoder};
use sha2::{Digest, Sha256};

pub(crate) fn record(kind: u16, body: &impl Encode<()>) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    e.array(2).unwrap().u16(kind).unwrap().encode(body).unwrap();
    e.into_writer()
}

/// Records in order, from their parts.
pub(crate) fn records(network: &NetworkRecord, hubs: &[HubRecord], members: &[MemberRecord]) -> Vec<Vec<u8>> {
    let (mut hubs, mut members) = (hubs.to_vec(), members.to_vec());
    hubs.sort_by(|a, b| a.name.cmp(&b.name));
    members.sort_by(|a, b| a.name.cmp(&b.name));
    std::iter::once(record(1, network))
        .chain(hubs.iter().map(|hub| record(2, hub)))
        .chain(members.iter().map(|member| record(3, member)))
        .collect()
}

pub(crate) fn digest(records: &[Vec<u8>]) -> [u8; 32] {
    let hashes: Vec<u8> = records.iter().flat_map(|record| Sha256::digest(record).to_vec()).collect();
    Sha256::digest(hashes).into()
}

/// The records of a network.toml.
pub(crate) fn of_source(source: &Source) -> Vec<Vec<u8>> {
    let members: Vec<MemberRecord> = source.records().members().cloned().collect();
    records(source.network(), source.records().hubs(), &members)
}

/// A head over these records, serial 1.
pub(crate) fn head(authority: &Authority, records: &[Vec<u8>]) -> Head {
    Head {
        network: authority.network(),
        key_epoch: authority.key_epoch(),
        serial: 1,
        records: records.len() as u32,
        digest: digest(records),
        previous: None,
        issued: UnixTime(1_770_000_000),
        expires: UnixTime(1_780_000_000),
    }
}

/// The head as it travels alone.
pub(crate) fn signed_head(authority: &Authority, head: &Head, admin: &AdminSecret) -> Vec<u8> {
    let payload = minicbor::to_vec(head).unwrap();
    let signature = admin.sign("head", &payload);
    let mut e = Encoder::new(Vec::new());
    e.array(3).unwrap().encode(authority).unwrap().bytes(&payload).unwrap().encode(signature).unwrap();
    e.into_writer()
}

pub(crate) fn bundle(signed_head: &[u8], history: &[Vec<u8>], records: &[Vec<u8>], claims: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0x84, 0x01, 0x82];
    bytes.extend_from_slice(signed_head);
    for list in [history, records, claims] {
        let mut e = Encoder::new(Vec::new());
        e.array(list.len() as u64).unwrap();
        for item in list {
            e.bytes(item).unwrap();
        }
        bytes.extend(e.into_writer());
    }
    bytes
}

/// A whole bundle of these records, signed.
pub(crate) fn signed(authority: &Authority, admin: &AdminSecret, records: &[Vec<u8>], claims: &[Vec<u8>]) -> Vec<u8> {
    bundle(&signed_head(authority, &head(authority, records), admin), &[], records, claims)
}

/// A countersigned claim, whatever the roster says.
pub(crate) fn countersign(claim: &Claim, hub: &HubSecret, time: UnixTime) -> Vec<u8> {
    let claim = claim.encode();
    let signature = hub.sign("claim-hub", &[&claim[..], &time.0.to_be_bytes()].concat());
    let mut bytes = vec![0x84];
    bytes.extend_from_slice(&claim);
    let mut e = Encoder::new(bytes);
    e.encode(hub.public()).unwrap().encode(time).unwrap().encode(signature).unwrap();
    e.into_writer()
}
