//! A second verifier, written from the rules and not from the crate: it decodes CBOR into a tree, compares
//! everything with everything, and knows no shortcut. On random rosters, most of them wrong in some way, both
//! must come to the same verdict, the same members and the same owners.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ed25519_dalek::{Signature, VerifyingKey};
use flatlan_roster::{
    Head, HubRecord, Invite, MemberRecord, NetworkRecord, OwnerTable, Stock, VerifiedRoster, stock_keys,
};
use flatlan_types::{MemberId, Name, NodeKeys, Prefix, UnixTime, VirtualIp};
use minicbor::{Decoder, data::Type};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    forge,
    world::{NOW, World, hub, invite, ip, name, node, prefix},
};

#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Number(u64),
    Bytes(Vec<u8>),
    Text(String),
    List(Vec<Self>),
    Map(BTreeMap<u64, Self>),
}

impl Tree {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other types are refused, also those to come")]
    fn read(d: &mut Decoder<'_>) -> Option<Self> {
        Some(match d.datatype().ok()? {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => Self::Number(d.u64().ok()?),
            Type::Bytes => Self::Bytes(d.bytes().ok()?.to_vec()),
            Type::String => Self::Text(d.str().ok()?.to_owned()),
            Type::Array => Self::List((0..d.array().ok()??).map(|_| Self::read(d)).collect::<Option<_>>()?),
            Type::Map => {
                Self::Map((0..d.map().ok()??).map(|_| Some((d.u64().ok()?, Self::read(d)?))).collect::<Option<_>>()?)
            }
            _ => return None,
        })
    }

    fn whole(bytes: &[u8]) -> Option<Self> {
        let mut d = Decoder::new(bytes);
        let tree = Self::read(&mut d)?;
        (d.position() == bytes.len()).then_some(tree)
    }

    fn list(&self) -> Option<&[Self]> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    fn bytes(&self) -> Option<&[u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    fn number(&self) -> Option<u64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn get(&self, key: u64) -> Option<&Self> {
        if let Self::Map(map) = self { map.get(&key) } else { None }
    }

    fn all(&self, key: u64) -> &[Self] {
        self.get(key).and_then(Self::list).unwrap_or_default()
    }
}

fn signed(key: &[u8], domain: &str, payload: &[u8], signature: &[u8]) -> Option<()> {
    let key = VerifyingKey::from_bytes(key.try_into().ok()?).ok()?;
    let bytes = [b"flatlan-", domain.as_bytes(), b"-v1\0", payload].concat();
    key.verify_strict(&bytes, &Signature::from_slice(signature).ok()?).ok()
}

#[derive(Clone, Debug)]
struct NaiveMember {
    name: String,
    ips: Vec<IpAddr>,
    own_v6: bool,
    keys: Option<(Vec<u8>, Vec<u8>)>,
    invite: Option<(Vec<u8>, u64, Vec<u8>)>,
    routes: Vec<(IpAddr, u8)>,
    moved: Vec<(IpAddr, u8)>,
    ha: Option<String>,
    via: Option<String>,
}

#[derive(Debug, PartialEq)]
struct Verdict {
    /// Name, id, session key.
    members: Vec<(String, Vec<u8>, Vec<u8>)>,
    /// Owners of the addresses asked for, by name.
    owners: Vec<BTreeSet<String>>,
}

fn address(tree: &Tree) -> Option<IpAddr> {
    let bytes = tree.bytes()?;
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

fn route(tree: &Tree) -> Option<(IpAddr, u8)> {
    Some((address(tree.list()?.first()?)?, tree.list()?.get(1)?.number()? as u8))
}

/// Whether the address is in the prefix.
fn within(ip: IpAddr, (base, length): (IpAddr, u8)) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    };
    let shift = 128 - u32::from(length);
    ip.is_ipv4() == base.is_ipv4() && (length == 0 || bits(ip) >> shift == bits(base) >> shift)
}

fn overlap(a: (IpAddr, u8), b: (IpAddr, u8)) -> bool {
    within(a.0, b) || within(b.0, a)
}

fn host(ip: IpAddr) -> (IpAddr, u8) {
    (ip, if ip.is_ipv4() { 32 } else { 128 })
}

fn own_v6(network: &[u8], session: &[u8]) -> IpAddr {
    let site = Sha256::digest([b"flatlan vip site v1", network].concat());
    let host = Sha256::digest([b"flatlan vip host v1", network, session].concat());
    let octets: Vec<u8> = [&[0xfd][..], &site[..5], &host[..10]].concat();
    <[u8; 16]>::try_from(octets).unwrap().into()
}

fn special(prefix: (IpAddr, u8)) -> bool {
    let list = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/96",
        "::ffff:0:0/96",
        "fe80::/10",
        "ff00::/8",
    ];
    prefix.1 == 0
        || list.iter().any(|special| {
            let (ip, length) = special.split_once('/').unwrap();
            overlap((ip.parse().unwrap(), length.parse().unwrap()), prefix)
        })
}

fn member(body: &Tree, network: &[u8]) -> Option<NaiveMember> {
    let keys = body.get(3).map(|keys| {
        let keys = keys.list().unwrap();
        (keys[0].bytes().unwrap().to_vec(), keys[1].bytes().unwrap().to_vec())
    });
    let mut ips: Vec<IpAddr> = body.all(2).iter().map(address).collect::<Option<_>>()?;
    let own = ips.iter().all(|ip| ip.is_ipv4());
    if let (true, Some((_, session))) = (own, &keys) {
        ips.push(own_v6(network, session));
    }
    Some(NaiveMember {
        name: body.get(1)?.text()?.to_owned(),
        ips,
        own_v6: own,
        keys,
        invite: body.get(4).map(|invite| {
            let bytes = |key| invite.get(key).unwrap().bytes().unwrap().to_vec();
            (bytes(1), invite.get(2).unwrap().number().unwrap(), bytes(3))
        }),
        routes: body.all(5).iter().map(route).collect::<Option<_>>()?,
        moved: body.all(6).iter().map(route).collect::<Option<_>>()?,
        ha: body.get(9).map(|ha| ha.text().unwrap().to_owned()),
        via: body.get(10).map(|stock| stock.get(1).unwrap().text().unwrap().to_owned()),
    })
}

/// The verdict on a bundle that follows nothing; `None` is a refusal.
fn verify(bundle: &[u8], network: &[u8], ask: &[IpAddr]) -> Option<Verdict> {
    let bundle = Tree::whole(bundle)?;
    let [format, lineage, records, claims] = bundle.list()? else { return None };
    let [head, history] = lineage.list()? else { return None };
    let [authority, payload, signature] = head.list()? else { return None };
    let [admin, recovery, certificates] = authority.list()? else { return None };
    if format.number()? != 1 || !history.list()?.is_empty() || !certificates.list()?.is_empty() {
        return None; // None of the rosters made here has any.
    }
    let id = Sha256::digest([b"flatlan-network-v1\0", admin.bytes()?, recovery.bytes()?].concat());
    let head = Tree::whole(payload.bytes()?)?;
    signed(admin.bytes()?, "head", payload.bytes()?, signature.bytes()?)?;
    if *id != *network || head.get(1)?.bytes()? != network || head.get(2)?.number()? != 0 || head.get(6).is_some() {
        return None;
    }
    let records: Vec<&[u8]> = records.list()?.iter().map(Tree::bytes).collect::<Option<_>>()?;
    let hashes: Vec<u8> = records.iter().flat_map(|record| Sha256::digest(record).to_vec()).collect();
    if head.get(5)?.bytes()? != &Sha256::digest(hashes)[..] || head.get(4)?.number()? != records.len() as u64 {
        return None;
    }
    let records: Vec<(u64, Tree)> = records
        .into_iter()
        .map(|record| {
            let tree = Tree::whole(record)?;
            Some((tree.list()?[0].number()?, tree.list()?[1].clone()))
        })
        .collect::<Option<_>>()?;
    let order: Vec<(u64, &str)> =
        records.iter().map(|(kind, body)| Some((*kind, body.get(1)?.text()?))).collect::<Option<_>>()?;
    if order.windows(2).any(|pair| pair[0] >= pair[1]) || order.iter().filter(|(kind, _)| *kind == 1).count() != 1 {
        return None;
    }
    let range = route(records.iter().find(|(kind, _)| *kind == 1)?.1.get(2)?)?;
    let hubs: Vec<&Tree> = records.iter().filter(|(kind, _)| *kind == 2).map(|(_, body)| body).collect();
    let mut members: Vec<NaiveMember> =
        records.iter().filter(|(kind, _)| *kind == 3).map(|(_, body)| member(body, network)).collect::<Option<_>>()?;
    rules(range, network, &hubs, &members)?;
    fold(claims, network, &mut members)?;
    let joined: Vec<&NaiveMember> = members.iter().filter(|member| member.keys.is_some()).collect();
    Some(Verdict {
        members: joined
            .iter()
            .map(|m| {
                let (id, session) = m.keys.clone().unwrap();
                (m.name.clone(), id, session)
            })
            .collect(),
        owners: ask.iter().map(|ip| owners(&joined, *ip)).collect(),
    })
}

fn rules(range: (IpAddr, u8), network: &[u8], hubs: &[&Tree], members: &[NaiveMember]) -> Option<()> {
    let hub_ips: Vec<IpAddr> = hubs
        .iter()
        .flat_map(|hub| [hub.get(3), hub.get(4)])
        .flatten()
        .filter_map(|place| Some(place.text()?.parse::<std::net::SocketAddr>().ok()?.ip()))
        .collect();
    if hub_ips.iter().any(|ip| within(*ip, range)) {
        return None;
    }
    for (at, hub) in hubs.iter().enumerate() {
        if hubs[..at].iter().any(|other| other.get(2) == hub.get(2)) {
            return None;
        }
    }
    let site = (own_v6(network, &[0; 32]), 48);
    let edge = |ip: IpAddr| {
        let IpAddr::V4(ip) = ip else { return false };
        let ones = u32::MAX.checked_shr(range.1.into()).unwrap_or(0);
        u32::from(ip) & ones == 0 || u32::from(ip) & ones == ones
    };
    for (at, m) in members.iter().enumerate() {
        let v4: Vec<&IpAddr> = m.ips.iter().filter(|ip| ip.is_ipv4()).collect();
        let explicit_v6 = m.ips.iter().filter(|ip| ip.is_ipv6() && !m.own_v6);
        if v4.is_empty() || v4.iter().any(|ip| !within(**ip, range) || edge(**ip)) {
            return None;
        }
        if explicit_v6.into_iter().any(|ip| special(host(*ip))) {
            return None;
        }
        for prefix in m.routes.iter().chain(&m.moved) {
            let narrow = if prefix.0.is_ipv4() { 8 } else { 16 };
            let bad = special(*prefix) || prefix.1 < narrow || overlap(*prefix, range) || overlap(*prefix, site);
            if bad || hub_ips.iter().any(|ip| within(*ip, *prefix)) {
                return None;
            }
        }
        if let Some((_, _, redeemer)) = &m.invite {
            hubs.iter().find(|hub| hub.get(2).unwrap().bytes() == Some(redeemer))?;
        }
        if let Some(via) = &m.via {
            members.iter().find(|other| other.name == *via && other.via.is_none())?;
            let (id, session) = m.keys.as_ref()?;
            let hash = Sha256::digest([b"flatlan stock member v1\0", &session[..]].concat());
            if m.invite.is_some() || **id != *hash {
                return None;
            }
        }
        for other in &members[..at] {
            if let (Some((id, session)), Some((other_id, other_session))) = (&m.keys, &other.keys)
                && (id == other_id || session == other_session)
            {
                return None;
            }
            if let (Some((invite, ..)), Some((other_invite, ..))) = (&m.invite, &other.invite)
                && invite == other_invite
            {
                return None;
            }
        }
    }
    let owned: Vec<(usize, (IpAddr, u8), char)> = members
        .iter()
        .enumerate()
        .flat_map(|(at, m)| {
            let ips = m.ips.iter().map(move |ip| (at, host(*ip), 'a'));
            let routes = m.routes.iter().map(move |p| (at, *p, 'r'));
            ips.chain(routes).chain(m.moved.iter().map(move |p| (at, *p, 'm')))
        })
        .collect();
    for (i, (a, p, kind)) in owned.iter().enumerate() {
        for (j, (b, q, other_kind)) in owned.iter().enumerate() {
            // p lies within q; equal ones are looked at from both sides.
            if i == j || !overlap(*p, *q) || p.1 < q.1 {
                continue;
            }
            let narrower = p.1 > q.1;
            let same_ha = members[*a].ha.is_some() && members[*a].ha == members[*b].ha;
            let fine = (a == b && narrower)
                || (a != b && same_ha && *kind != 'a' && *other_kind != 'a')
                || (*kind == 'm' && narrower);
            if !fine {
                return None;
            }
        }
    }
    Some(())
}

fn fold(claims: &Tree, network: &[u8], members: &mut [NaiveMember]) -> Option<()> {
    struct Naive {
        invite: Vec<u8>,
        keys: (Vec<u8>, Vec<u8>),
        time: u64,
        hash: Vec<u8>,
    }
    let mut list: Vec<Naive> = Vec::new();
    for bytes in claims.list()? {
        let tree = Tree::whole(bytes.bytes()?)?;
        let [claim, hub, time, by_hub] = tree.list()? else { return None };
        let [invite, id, session, by_invite, by_node] = claim.list()? else { return None };
        let payload = [network, invite.bytes()?, id.bytes()?, session.bytes()?].concat();
        signed(invite.bytes()?, "claim-invite", &payload, by_invite.bytes()?)?;
        signed(id.bytes()?, "claim-node", &payload, by_node.bytes()?)?;
        let claim_length = 1 + 3 * 34 + 2 * 66;
        let encoded = &bytes.bytes()?[1..=claim_length];
        signed(hub.bytes()?, "claim-hub", &[encoded, &time.number()?.to_be_bytes()].concat(), by_hub.bytes()?)?;
        let fits = members.iter().filter_map(|m| m.invite.as_ref()).any(|(key, expires, redeemer)| {
            key == invite.bytes().unwrap() && time.number().unwrap() <= *expires && redeemer == hub.bytes().unwrap()
        });
        if !fits {
            return None;
        }
        list.push(Naive {
            invite: invite.bytes()?.to_vec(),
            keys: (id.bytes()?.to_vec(), session.bytes()?.to_vec()),
            time: time.number()?,
            hash: Sha256::digest(bytes.bytes()?).to_vec(),
        });
    }
    let order = |c: &Naive| (c.invite.clone(), c.time, c.hash.clone());
    if list.windows(2).any(|pair| order(&pair[0]) >= order(&pair[1])) {
        return None;
    }
    for (at, claim) in list.iter().enumerate() {
        let rivals: Vec<&Naive> = list[..at].iter().filter(|other| other.invite == claim.invite).collect();
        if rivals.len() > 1 || rivals.iter().any(|other| other.keys == claim.keys) {
            return None;
        }
    }
    let single: Vec<&Naive> =
        list.iter().filter(|c| list.iter().filter(|other| other.invite == c.invite).count() == 1).collect();
    let mut used: Vec<(Vec<u8>, Vec<u8>)> = members.iter().filter_map(|m| m.keys.clone()).collect();
    let mut ips: Vec<(String, IpAddr)> =
        members.iter().flat_map(|m| m.ips.iter().map(|ip| (m.name.clone(), *ip))).collect();
    for claim in single {
        let taken = used.iter().any(|(id, session)| *id == claim.keys.0 || *session == claim.keys.1);
        let m = members.iter_mut().find(|m| m.invite.as_ref().is_some_and(|(key, ..)| *key == claim.invite))?;
        let v6 = own_v6(network, &claim.keys.1);
        if taken || (m.own_v6 && ips.iter().any(|(name, ip)| *ip == v6 && *name != m.name)) {
            continue;
        }
        if m.own_v6 {
            m.ips.retain(|ip| ip.is_ipv4());
            m.ips.push(v6);
            ips.push((m.name.clone(), v6));
        }
        used.push(claim.keys.clone());
        m.keys = Some(claim.keys.clone());
    }
    Some(())
}

fn owners(members: &[&NaiveMember], ip: IpAddr) -> BTreeSet<String> {
    let prefixes = |m: &NaiveMember| -> Vec<(IpAddr, u8)> {
        m.ips.iter().map(|ip| host(*ip)).chain(m.routes.iter().copied()).chain(m.moved.iter().copied()).collect()
    };
    let holds = |m: &NaiveMember, longest: u8| prefixes(m).iter().any(|p| within(ip, *p) && p.1 == longest);
    let Some(longest) = members.iter().flat_map(|m| prefixes(m)).filter(|p| within(ip, *p)).map(|p| p.1).max() else {
        return BTreeSet::new();
    };
    let mut names = BTreeSet::new();
    let leads_to = |m: &NaiveMember| {
        let via = m.via.as_ref().filter(|via| members.iter().any(|other| other.name == **via));
        via.unwrap_or(&m.name).clone()
    };
    for m in members.iter().filter(|m| holds(m, longest)) {
        names.insert(leads_to(m));
        let routed = m.routes.iter().chain(&m.moved).any(|p| within(ip, *p) && p.1 == longest);
        for other in members.iter().filter(|other| routed && m.ha.is_some() && other.ha == m.ha) {
            if other.routes.iter().chain(&other.moved).any(|p| within(ip, *p)) {
                names.insert(leads_to(other));
            }
        }
    }
    names
}

const IPS: [&str; 8] =
    ["10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.4", "10.77.0.5", "10.77.0.6", "10.77.0.255", "10.78.0.1"];
const V6: [&str; 4] = ["fd00::1", "fd00::2", "2001:db8:1::1", "ff02::1"];
const PREFIXES: [&str; 16] = [
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "10.2.0.0/16",
    "10.3.0.0/16",
    "10.4.0.0/16",
    "192.168.7.0/24",
    "2001:db8:1::/48",
    "2001:db8:2::/48",
    "10.5.0.0/16",
    "10.77.0.0/16",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "192.0.2.0/24",
    "10.0.0.0/8",
    "224.0.0.0/4",
];

/// Mostly the first choices, which can be legal together, and now and then any.
fn pick(count: usize, legal: usize) -> impl Strategy<Value = usize> {
    prop_oneof![25 => 0..legal, 1 => 0..count]
}

#[derive(Debug, Clone)]
struct Shape {
    ip: Option<usize>,
    v6: Option<usize>,
    key: Option<u8>,
    invite: Option<u8>,
    routes: Vec<usize>,
    moved: Option<usize>,
    ha: bool,
    via: Option<u8>,
    redeemer: u8,
}

fn shape(at: usize) -> impl Strategy<Value = Shape> {
    let nth = at as u8;
    let own_ip = prop_oneof![40 => Just(Some(at)), 1 => (0..IPS.len()).prop_map(Some), 1 => Just(None)];
    let own_key = prop_oneof![16 => Just(Some(nth)), 12 => Just(None), 1 => (0_u8..6).prop_map(Some)];
    let own_invite = prop_oneof![8 => Just(None), 20 => Just(Some(nth)), 1 => (0_u8..6).prop_map(Some)];
    let routes = prop_oneof![
        3 => Just(Vec::new()),
        6 => Just(vec![3 + at]),
        2 => proptest::collection::vec(pick(PREFIXES.len(), 10), 1..3),
    ];
    (
        own_ip,
        proptest::option::weighted(0.1, pick(V6.len(), 3)),
        own_key,
        own_invite,
        routes,
        proptest::option::weighted(0.1, pick(PREFIXES.len(), 3)),
        proptest::bool::weighted(0.3),
        proptest::option::weighted(0.1, 0_u8..6),
        prop_oneof![60 => Just(1_u8), 1 => Just(2_u8)],
    )
        .prop_map(|(ip, v6, key, invite, routes, moved, ha, via, redeemer)| Shape {
            ip,
            v6,
            key,
            invite,
            routes,
            moved,
            ha,
            via,
            redeemer,
        })
}

fn record(at: usize, shape: &Shape) -> MemberRecord {
    let names: [Name; 6] = ["a", "b", "c", "d", "e", "f"].map(name);
    let ips = shape.ip.map(|n| ip(IPS[n])).into_iter().chain(shape.v6.map(|n| ip(V6[n])));
    let via = shape.via.map(|via| Stock { via: names[via as usize].clone() });
    let keys = shape.key.map(|seed| match via {
        Some(_) if seed != 5 => stock_keys(node(seed).public().session),
        Some(_) | None => node(seed).public(),
    });
    MemberRecord {
        ips: ips.collect(),
        keys,
        invite: shape.invite.map(|seed| Invite {
            key: invite(seed).public(),
            expires: NOW.after(10),
            redeemer: hub(shape.redeemer).public(),
        }),
        routes: shape.routes.iter().map(|n| prefix(PREFIXES[*n])).collect(),
        moved: shape.moved.iter().map(|n| prefix(PREFIXES[*n])).collect(),
        ha: shape.ha.then(|| name("pair")),
        stock: via,
        ..MemberRecord::new(names[at].clone())
    }
}

#[derive(Debug, Clone)]
enum Wrong {
    Nothing,
    Omit(usize),
    Double(usize),
    Swap(usize),
    Flip(usize),
    ClaimSwap,
}

fn wrong() -> impl Strategy<Value = Wrong> {
    prop_oneof![
        20 => Just(Wrong::Nothing),
        1 => (0..8_usize).prop_map(Wrong::Omit),
        1 => (0..8_usize).prop_map(Wrong::Double),
        1 => (0..8_usize).prop_map(Wrong::Swap),
        1 => any::<usize>().prop_map(Wrong::Flip),
        1 => Just(Wrong::ClaimSwap),
    ]
}

/// Bundles of up to six members and six claims.
fn bundle() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let members = (0..=5_usize).prop_flat_map(|count| (0..count).map(shape).collect::<Vec<_>>());
    let claim =
        (0_u8..6, prop_oneof![6 => 6_u8..12, 1 => 0_u8..12], 0_u64..12, prop_oneof![20 => Just(1_u8), 1 => Just(2_u8)]);
    let claims = proptest::collection::vec(claim, 0..9);
    (members, claims, wrong(), proptest::bool::weighted(0.9)).prop_map(|(shapes, claims, wrong, only_open)| {
        let world = World::new();
        let members: Vec<MemberRecord> = shapes.iter().enumerate().map(|(at, shape)| record(at, shape)).collect();
        let open: Vec<u8> = shapes.iter().filter_map(|shape| shape.invite).collect();
        let network: NetworkRecord = world.source.network().clone();
        let hubs: Vec<HubRecord> = world.source.records().hubs().to_vec();
        let records = forge::records(&network, &hubs, &members);
        let mut claims: Vec<_> = claims
            .into_iter()
            .filter(|(seed, _, after, _)| !only_open || (open.contains(seed) && *after <= 10))
            .map(|(seed, node, after, by)| {
                let time = UnixTime(NOW.0 + after);
                let bytes = forge::countersign(&world.claim(seed, node), &hub(by), time);
                let hash: [u8; 32] = Sha256::digest(&bytes).into();
                ((*invite(seed).public().as_bytes(), time, hash), (seed, node), bytes)
            })
            .collect();
        claims.sort();
        let mut seen = Vec::new();
        claims.retain(|(_, (seed, node), _)| {
            let rivals = seen.iter().filter(|(other, _)| other == seed).count();
            let keep = !only_open || (rivals < 2 && !seen.contains(&(*seed, *node)));
            seen.push((*seed, *node));
            keep
        });
        let mut claims: Vec<Vec<u8>> = claims.into_iter().map(|(_, _, bytes)| bytes).collect();
        let head: Head = forge::head(world.authority(), &records);
        let head = forge::signed_head(world.authority(), &head, &world.admin);
        let mut records = records;
        let count = records.len();
        let mut flip = None;
        match wrong {
            Wrong::Nothing => {}
            Wrong::Omit(at) => drop(records.remove(at % count)),
            Wrong::Double(at) => records.push(records[at % count].clone()),
            Wrong::Swap(at) => records.swap(at % count, (at + 1) % count),
            Wrong::Flip(at) => flip = Some(at),
            Wrong::ClaimSwap => claims.reverse(),
        }
        let mut bytes = forge::bundle(&head, &[], &records, &claims);
        if let Some(at) = flip {
            let at = at % bytes.len();
            bytes[at] ^= 0x01;
        }
        (bytes, flip.is_some())
    })
}

fn asked(id: &[u8]) -> Vec<IpAddr> {
    let fixed = IPS.iter().chain(&V6).map(|ip| ip.parse().unwrap());
    let routed =
        ["10.1.0.1", "10.1.2.1", "10.1.2.3", "10.3.9.9", "10.5.0.0", "192.168.7.255", "2001:db8:1::9", "8.8.8.8"];
    let own = (0..12).map(|seed| own_v6(id, node(seed).public().session.as_bytes()));
    fixed.chain(routed.iter().map(|ip| ip.parse().unwrap())).chain(own).collect()
}

fn by_the_crate(world: &World, bytes: &[u8], ask: &[IpAddr]) -> Option<Verdict> {
    let roster: VerifiedRoster = world.verify(bytes).ok()?;
    Some(verdict(&roster, &roster.owner_table(None), ask))
}

fn verdict(roster: &VerifiedRoster, table: &OwnerTable, ask: &[IpAddr]) -> Verdict {
    let name_of = |at| roster.member(at).unwrap().name().to_string();
    let keys = |keys: &NodeKeys| (keys.id.as_bytes().to_vec(), keys.session.as_bytes().to_vec());
    Verdict {
        members: roster
            .members()
            .map(|m| {
                let (id, session) = keys(&m.keys);
                (m.name().to_string(), id, session)
            })
            .collect(),
        owners: ask.iter().map(|ip| table.owners(*ip).iter().map(|at| name_of(*at)).collect()).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_verifiers_agree_on_random_rosters((bytes, flipped) in bundle()) {
        let world = World::new();
        let id = world.id();
        let ask = asked(id.as_bytes());
        let naive = verify(&bytes, id.as_bytes(), &ask);
        let ours = by_the_crate(&world, &bytes, &ask);
        if flipped {
            prop_assert_eq!(ours, None);
        } else {
            prop_assert_eq!(ours, naive);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let world = World::new();
        prop_assert!(world.verify(&bytes).is_err());
        prop_assert!(flatlan_roster::VerifiedHead::decode(&bytes, &world.id()).is_err());
        prop_assert!(flatlan_roster::Claim::decode(&bytes, &world.id()).is_err());
        prop_assert!(flatlan_roster::ForkProof::decode(&bytes, &world.id()).is_err());
        prop_assert!(flatlan_roster::Ratchet::decode(&bytes, &world.id()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// The naive verifier knows no older roster, and ours knows one of which some records are the same.
    #[test]
    fn a_roster_that_follows_another_is_the_same_as_one_read_from_nothing(
        bundles in proptest::collection::vec(bundle(), 2..6),
    ) {
        let world = World::new();
        let id = world.id();
        let ask = asked(id.as_bytes());
        let mut known: Option<(VerifiedRoster, OwnerTable)> = None;
        for (bytes, flipped) in bundles {
            let naive = verify(&bytes, id.as_bytes(), &ask).filter(|_| !flipped);
            let before = known.as_ref().map(|(roster, _)| roster);
            let followed = VerifiedRoster::verify(&bytes, &world.ratchet(), before);
            prop_assert_eq!(followed.is_ok(), naive.is_some());
            let Some((roster, naive)) = followed.ok().zip(naive) else { continue };
            let fresh = world.verify(&bytes).unwrap();
            prop_assert!(roster.members().eq(fresh.members()));
            prop_assert_eq!(roster.refused_claims(), fresh.refused_claims());
            prop_assert_eq!(roster.encode(), bytes);
            let table = match &known {
                Some((old, table)) => match roster.changed_since(old) {
                    Some(changed) => {
                        let mut table = table.clone();
                        roster.update_owners(&mut table, old, &changed, None, Some);
                        table
                    }
                    None => roster.owner_table(None),
                },
                None => roster.owner_table(None),
            };
            prop_assert_eq!(verdict(&roster, &table, &ask), naive);
            for (at, member) in roster.members_with_places() {
                prop_assert_eq!(roster.by_id(&member.keys.id), Some(at));
                prop_assert_eq!(roster.by_session(&member.keys.session), Some(at));
                prop_assert_eq!(roster.by_name(member.name()), Some(at));
            }
            let gone = known.iter().flat_map(|(old, _)| old.members()).filter(|member| fresh.by_id(&member.keys.id).is_none());
            for member in gone {
                prop_assert_eq!(roster.by_id(&member.keys.id), None);
            }
            known = Some((roster, table));
        }
    }
}

#[test]
fn the_random_rosters_are_neither_all_good_nor_all_bad() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let (world, mut runner) = (World::new(), TestRunner::deterministic());
    let mut accepted = 0;
    let mut joined_by_claim = 0;
    for _ in 0..300 {
        let (bytes, _) = bundle().new_tree(&mut runner).unwrap().current();
        if let Ok(roster) = world.verify(&bytes) {
            accepted += 1;
            joined_by_claim += usize::from(!roster.claims().is_empty());
        }
    }
    assert!((60..240).contains(&accepted), "{accepted} of 300 accepted");
    assert!(joined_by_claim >= 20, "{joined_by_claim} of 300 with claims");
}

#[test]
fn a_stock_members_id_is_of_its_key() {
    let keys = stock_keys(node(1).public().session);
    assert_ne!(keys.id, node(1).public().id);
    assert_ne!(keys.id, MemberId::from_bytes([0; 32]));
    assert_eq!(
        VirtualIp::of_key(&World::new().id(), &keys.session).ip(),
        own_v6(World::new().id().as_bytes(), keys.session.as_bytes())
    );
    assert_eq!(Prefix::of("10.1.2.3".parse().unwrap(), 16), Some(prefix("10.1.0.0/16")));
}
