//! From records and claims to members: who is in the network, under which keys.
//!
//! A claim counts when its invite is open in the current head, was countersigned by the hub that the
//! invite names, in time; nothing else can be in the set. It then gives the member its keys, unless
//!
//! * another claim for the same invite names other keys: both are refused and kept as proof;
//! * one of its keys, or the address that belongs to it, is already in use. Claims are taken in the
//!   order of their invites, so all members come to the same verdict whichever copies they hold.
//!
//! It fills that one record's keys and nothing else. Where the record had keys, they are replaced.

use std::{collections::BTreeMap, fmt};

use flatlan_types::{InviteKey, MemberId, Name, NetworkId, NodeKeys, Prefix, SessionKey, UnixTime, VirtualIp};

use crate::{
    claim::{ClaimSet, CountersignedClaim},
    owner::{MemberIndex, OwnerTable},
    record::{MemberRecord, Stock},
    records::Records,
};

/// A member with keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What the admin signed.
    pub record: MemberRecord,
    /// The keys that count: the record's, or those of the claim that replaced them.
    pub keys: NodeKeys,
    /// All its addresses, IPv4 first: the record's, and the IPv6 that belongs to its key unless the
    /// record has one.
    pub ips: Vec<VirtualIp>,
    /// Where the keys come from.
    pub origin: KeyOrigin,
}

impl Member {
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.record.name
    }

    /// Every prefix that it owns: its addresses, its routes, and what was moved to it.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        let hosts = self.ips.iter().map(|ip| Prefix::host(*ip));
        hosts.chain(self.routes())
    }

    /// The prefixes of its site that it carries, and those moved to it.
    pub fn routes(&self) -> impl Iterator<Item = Prefix> {
        self.record.routes.iter().chain(&self.record.moved).copied()
    }

    fn new(network: &NetworkId, record: &MemberRecord, keys: NodeKeys, origin: KeyOrigin) -> Self {
        let mut ips = addresses(network, record, Some(&keys));
        ips.sort_by_key(|ip| ip.ip().is_ipv6());
        Self { record: record.clone(), keys, ips, origin }
    }
}

/// Where a member's keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyOrigin {
    /// A claim, countersigned at this time, not yet folded into the record.
    Claim(UnixTime),
    /// The record.
    Record,
}

/// A claim that does not count, with its proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedClaim {
    /// Whose invite it is for.
    pub member: Name,
    /// The claim.
    pub claim: CountersignedClaim,
    /// Why.
    pub reason: ClaimRefusal,
}

impl fmt::Display for RefusedClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the claim of {} for member {} is refused: {}", self.claim.keys().id, self.member, self.reason)
    }
}

/// Why a claim does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimRefusal {
    /// The address that belongs to its key is in use.
    AddressTaken {
        /// By whom.
        by: Name,
    },
    /// Another claim for the same invite names other keys.
    DoubleClaim,
    /// One of its keys is in use.
    KeyTaken {
        /// By whom.
        by: Name,
    },
}

impl fmt::Display for ClaimRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressTaken { by } => write!(f, "its IPv6 address is already that of member {by}"),
            Self::DoubleClaim => f.write_str(
                "two machines redeemed this one invite, so neither counts: the token leaked, or its hub cheats; issue a new one with `flatlan invite NAME --replace`",
            ),
            Self::KeyTaken { by } => write!(f, "its key is already that of member {by}"),
        }
    }
}

/// What records and claims come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folded {
    /// Sorted by name.
    pub(crate) members: Vec<Member>,
    pub(crate) refused: Vec<RefusedClaim>,
}

impl Folded {
    pub(crate) fn new(network: &NetworkId, records: &Records, claims: &ClaimSet) -> Self {
        let mut taken = Taken::default();
        for record in records.members() {
            taken.add(network, record, record.keys.as_ref());
        }
        let mut refused = Vec::new();
        let mut counted: BTreeMap<&Name, &CountersignedClaim> = BTreeMap::new();
        for (record, claim) in single_claims(records, claims, &mut refused) {
            match taken.refusal(network, record, claim.keys()) {
                Some(reason) => {
                    refused.push(RefusedClaim { member: record.name.clone(), claim: claim.clone(), reason })
                }
                None => {
                    taken.add(network, record, Some(claim.keys()));
                    counted.insert(&record.name, claim);
                }
            }
        }
        let member = |record: &MemberRecord| match (counted.get(&record.name), record.keys) {
            (Some(claim), _) => Some(Member::new(network, record, *claim.keys(), KeyOrigin::Claim(claim.time()))),
            (None, Some(keys)) => Some(Member::new(network, record, keys, KeyOrigin::Record)),
            (None, None) => None,
        };
        Self { members: records.members().iter().filter_map(member).collect(), refused }
    }
}

/// The open invites of these records.
pub(crate) fn invites(records: &Records) -> BTreeMap<InviteKey, &MemberRecord> {
    records.members().iter().filter_map(|record| Some((record.invite?.key, record))).collect()
}

/// Why keys may not become those of `record`, if they may not.
pub(crate) fn key_refusal(
    network: &NetworkId,
    members: &[Member],
    records: &Records,
    record: &MemberRecord,
    keys: &NodeKeys,
) -> Option<ClaimRefusal> {
    let mut taken = Taken::default();
    for other in records.members() {
        taken.add(network, other, other.keys.as_ref());
    }
    for member in members {
        taken.add(network, &member.record, Some(&member.keys));
    }
    taken.refusal(network, record, keys)
}

/// Who owns which address, as seen by `me`: a stock peer's addresses lead to the member that
/// terminates its tunnel, except at that member itself.
pub(crate) fn owner_table(members: &[Member], me: Option<MemberIndex>) -> OwnerTable {
    let by_name: BTreeMap<&Name, MemberIndex> =
        members.iter().enumerate().map(|(at, member)| (member.name(), MemberIndex::at(at))).collect();
    let mut groups: BTreeMap<&Name, Vec<MemberIndex>> = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        if let Some(ha) = &member.record.ha {
            groups.entry(ha).or_default().push(MemberIndex::at(at));
        }
    }
    let leads_to = |at: MemberIndex| {
        let stock = members.get(at.index()).and_then(|member| member.record.stock.as_ref());
        let via = stock.and_then(|Stock { via }| by_name.get(via).copied());
        via.filter(|via| me != Some(*via)).unwrap_or(at)
    };
    let mut prefixes: Vec<(Prefix, MemberIndex)> = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let this = MemberIndex::at(at);
        prefixes.extend(member.prefixes().map(|prefix| (prefix, leads_to(this))));
        let Some(group) = member.record.ha.as_ref().and_then(|ha| groups.get(ha)) else { continue };
        for prefix in member.routes() {
            let carries = |other: &&MemberIndex| {
                let routes = members.get(other.index()).into_iter().flat_map(Member::routes);
                let mut wider = routes.filter(|r| r.contains(prefix.ip()) && r.length() < prefix.length());
                **other != this && wider.next().is_some()
            };
            prefixes.extend(group.iter().filter(carries).map(|other| (prefix, leads_to(*other))));
        }
    }
    prefixes.sort_by_key(|(prefix, owner)| (prefix.ip(), prefix.length(), *owner));
    prefixes.dedup();
    OwnerTable::new(prefixes)
}

/// A member's addresses: the record's, and the one that belongs to its key unless the record has an
/// IPv6 address.
pub(crate) fn addresses(network: &NetworkId, record: &MemberRecord, keys: Option<&NodeKeys>) -> Vec<VirtualIp> {
    let mut ips = record.ips.clone();
    if !ips.iter().any(|ip| ip.ip().is_ipv6()) {
        ips.extend(keys.map(|keys| VirtualIp::of_key(network, &keys.session)));
    }
    ips
}

/// The invites that exactly one claim redeems, in the order of their keys; claims for the others are
/// refused.
fn single_claims<'a>(
    records: &'a Records,
    claims: &'a ClaimSet,
    refused: &mut Vec<RefusedClaim>,
) -> Vec<(&'a MemberRecord, &'a CountersignedClaim)> {
    let mut single = Vec::new();
    for (invite, record) in invites(records) {
        match claims.of(&invite) {
            [] => {}
            [claim] => single.push((record, claim)),
            several => refused.extend(several.iter().map(|claim| RefusedClaim {
                member: record.name.clone(),
                claim: claim.clone(),
                reason: ClaimRefusal::DoubleClaim,
            })),
        }
    }
    single
}

/// Keys and key-derived addresses in use, by whom.
#[derive(Default)]
struct Taken<'a> {
    ids: BTreeMap<MemberId, &'a Name>,
    sessions: BTreeMap<SessionKey, &'a Name>,
    ips: BTreeMap<VirtualIp, &'a Name>,
}

impl<'a> Taken<'a> {
    fn add(&mut self, network: &NetworkId, record: &'a MemberRecord, keys: Option<&NodeKeys>) {
        for ip in addresses(network, record, keys) {
            self.ips.entry(ip).or_insert(&record.name);
        }
        if let Some(keys) = keys {
            self.ids.entry(keys.id).or_insert(&record.name);
            self.sessions.entry(keys.session).or_insert(&record.name);
        }
    }

    fn refusal(&self, network: &NetworkId, record: &MemberRecord, keys: &NodeKeys) -> Option<ClaimRefusal> {
        if let Some(by) = self.ids.get(&keys.id).or_else(|| self.sessions.get(&keys.session)) {
            return Some(ClaimRefusal::KeyTaken { by: (*by).clone() });
        }
        let ips = addresses(network, record, Some(keys));
        let by_ip = ips.iter().find_map(|ip| self.ips.get(ip).filter(|by| ***by != record.name));
        by_ip.map(|by| ClaimRefusal::AddressTaken { by: (*by).clone() })
    }
}
