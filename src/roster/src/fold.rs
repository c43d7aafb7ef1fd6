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

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use flatlan_types::{MemberId, Name, NetworkId, NodeKeys, Prefix, SessionKey, UnixTime, VirtualIp};

use crate::{
    claim::{ClaimSet, CountersignedClaim},
    owner::MemberIndex,
    record::{MemberRecord, Stock},
    records::Records,
};

/// A member with keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What the admin signed.
    pub record: Arc<MemberRecord>,
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

    /// The prefixes of its site that it carries, and those moved to it.
    pub fn routes(&self) -> impl Iterator<Item = Prefix> {
        self.record.routes.iter().chain(&self.record.moved).copied()
    }

    pub(crate) fn new(network: &NetworkId, record: &Arc<MemberRecord>, keys: NodeKeys, origin: KeyOrigin) -> Self {
        let mut ips = addresses(network, record, Some(&keys));
        ips.sort_by_key(|ip| ip.ip().is_ipv6());
        Self { record: Arc::clone(record), keys, ips, origin }
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

/// What claims bring to records: few members, beside the many whose records have their keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folded {
    claimed: BTreeMap<MemberIndex, Member>,
    ids: BTreeMap<MemberId, MemberIndex>,
    sessions: BTreeMap<SessionKey, MemberIndex>,
    ips: BTreeMap<VirtualIp, MemberIndex>,
    pub(crate) refused: Vec<RefusedClaim>,
}

impl Folded {
    pub(crate) fn new(network: &NetworkId, records: &Records, claims: &ClaimSet) -> Self {
        let mut folded = Self::default();
        let mut single = Vec::new();
        for (invite, claims) in claims.by_invite() {
            let Some(at) = records.by_invite(invite) else { continue };
            let Some(record) = records.shared(at) else { continue };
            match claims {
                [] => {}
                [claim] => single.push((at, record, claim)),
                several => folded.refused.extend(several.iter().map(|claim| RefusedClaim {
                    member: record.name.clone(),
                    claim: claim.clone(),
                    reason: ClaimRefusal::DoubleClaim,
                })),
            }
        }
        for (at, record, claim) in single {
            match folded.refusal(network, records, record, claim.keys()) {
                Some(reason) => {
                    folded.refused.push(RefusedClaim { member: record.name.clone(), claim: claim.clone(), reason })
                }
                None => {
                    let keys = *claim.keys();
                    folded.ids.insert(keys.id, at);
                    folded.sessions.insert(keys.session, at);
                    for ip in addresses(network, record, Some(&keys)) {
                        folded.ips.entry(ip).or_insert(at);
                    }
                    folded.claimed.insert(at, Member::new(network, record, keys, KeyOrigin::Claim(claim.time())));
                }
            }
        }
        folded
    }

    /// Why keys may not become those of `record`, if they may not.
    pub(crate) fn refusal(
        &self,
        network: &NetworkId,
        records: &Records,
        record: &MemberRecord,
        keys: &NodeKeys,
    ) -> Option<ClaimRefusal> {
        let name = |at: MemberIndex| records.record(at).map(|record| record.name.clone());
        let of_id = || records.by_id(&keys.id).or_else(|| self.ids.get(&keys.id).copied());
        let of_session = || records.by_session(&keys.session).or_else(|| self.sessions.get(&keys.session).copied());
        if let Some(by) = of_id().or_else(of_session).and_then(name) {
            return Some(ClaimRefusal::KeyTaken { by });
        }
        let ips = addresses(network, record, Some(keys));
        let of_ip = |ip: &VirtualIp| records.by_ip(*ip).or_else(|| self.ips.get(ip).copied()).and_then(name);
        let by = ips.iter().find_map(|ip| of_ip(ip).filter(|by| *by != record.name));
        by.map(|by| ClaimRefusal::AddressTaken { by })
    }

    pub(crate) fn member<'a>(&'a self, records: &'a Records, at: MemberIndex) -> Option<&'a Member> {
        self.claimed.get(&at).or_else(|| records.with_keys(at))
    }

    pub(crate) fn by_id(&self, records: &Records, id: &MemberId) -> Option<MemberIndex> {
        self.ids.get(id).copied().or_else(|| records.by_id(id).filter(|at| !self.claimed.contains_key(at)))
    }

    pub(crate) fn by_session(&self, records: &Records, session: &SessionKey) -> Option<MemberIndex> {
        let by_record = || records.by_session(session).filter(|at| !self.claimed.contains_key(at));
        self.sessions.get(session).copied().or_else(by_record)
    }

    /// The members to whom claims give other keys than in `old`.
    pub(crate) fn changed_since(&self, old: &Self) -> impl Iterator<Item = MemberIndex> {
        let of = |claimed: &BTreeMap<MemberIndex, Member>| claimed.keys().copied().collect::<BTreeSet<_>>();
        let differs = |at: &MemberIndex| self.claimed.get(at) != old.claimed.get(at);
        of(&self.claimed).union(&of(&old.claimed)).copied().filter(differs).collect::<Vec<_>>().into_iter()
    }
}

/// What these members own, and who owns it with them, as seen by `me`: by address and length, and then by
/// name. A stock peer's addresses lead to the member that terminates its tunnel, except at that member
/// itself; of an HA group, whoever carries a wider prefix owns what lies in it, too.
pub(crate) fn owned(
    records: &Records,
    folded: &Folded,
    members: impl Iterator<Item = MemberIndex>,
    me: Option<MemberIndex>,
) -> Vec<(Prefix, MemberIndex)> {
    let mut owners = Owners { records, folded, me, prefixes: Vec::new() };
    for at in members {
        let Some(owner) = folded.member(records, at) else { continue };
        let leads_to = owners.leads_to(at);
        owners.prefixes.extend(owner.ips.iter().map(|ip| (Prefix::host(*ip), leads_to)));
        owner.routes().for_each(|prefix| owners.add_route(prefix, at));
    }
    owners.sorted()
}

/// The same of all members. Only what they carry is sorted: an address of a member is nobody else's.
pub(crate) fn owned_by_all(records: &Records, folded: &Folded, me: Option<MemberIndex>) -> Vec<(Prefix, MemberIndex)> {
    let mut owners = Owners { records, folded, me, prefixes: Vec::new() };
    let members = || records.order().iter().filter_map(|at| Some((*at, folded.member(records, *at)?)));
    for (at, member) in members() {
        member.routes().for_each(|prefix| owners.add_route(prefix, at));
    }
    let mut prefixes = owners.sorted();
    // as a rule one of IPv4 and one of IPv6
    prefixes.reserve(2 * records.order().len());
    let owners = Owners { records, folded, me, prefixes: Vec::new() };
    for (at, member) in members() {
        let leads_to = owners.leads_to(at);
        prefixes.extend(member.ips.iter().map(|ip| (Prefix::host(*ip), leads_to)));
    }
    prefixes
}

/// The same of all members, but only what holds more than one address.
pub(crate) fn owned_wide(records: &Records, folded: &Folded, me: Option<MemberIndex>) -> Vec<(Prefix, MemberIndex)> {
    let mut owners = Owners { records, folded, me, prefixes: Vec::new() };
    let carried = records.carried().filter(|(prefix, at)| !prefix.is_host() && folded.member(records, *at).is_some());
    carried.for_each(|(prefix, at)| owners.add_route(prefix, at));
    owners.sorted()
}

/// Prefixes with their owners, as they are found.
struct Owners<'a> {
    records: &'a Records,
    folded: &'a Folded,
    me: Option<MemberIndex>,
    prefixes: Vec<(Prefix, MemberIndex)>,
}

impl Owners<'_> {
    /// What a member carries.
    fn add_route(&mut self, prefix: Prefix, at: MemberIndex) {
        self.prefixes.push((prefix, self.leads_to(at)));
        let Some(ha) = self.member(at).and_then(|owner| owner.record.ha.as_ref()) else { return };
        let carries = |other: &MemberIndex| {
            let routes = self.member(*other).into_iter().flat_map(Member::routes);
            let mut wider = routes.filter(|r| r.contains(prefix.ip()) && r.length() < prefix.length());
            *other != at && wider.next().is_some()
        };
        let others = self.records.group(ha).filter(carries);
        let others: Vec<_> = others.map(|other| (prefix, self.leads_to(other))).collect();
        self.prefixes.extend(others);
    }

    /// Who has a member's addresses.
    fn leads_to(&self, at: MemberIndex) -> MemberIndex {
        let stock = self.member(at).and_then(|member| member.record.stock.as_ref());
        let via = stock.and_then(|Stock { via }| self.records.place(via)).filter(|via| self.member(*via).is_some());
        via.filter(|via| self.me != Some(*via)).unwrap_or(at)
    }

    fn sorted(mut self) -> Vec<(Prefix, MemberIndex)> {
        let name = |at: MemberIndex| self.records.record(at).map(|record| &record.name);
        self.prefixes.sort_by(|(a, of_a), (b, of_b)| {
            let place = |prefix: &Prefix| (prefix.ip(), prefix.length());
            place(a).cmp(&place(b)).then_with(|| name(*of_a).cmp(&name(*of_b)))
        });
        self.prefixes.dedup();
        self.prefixes
    }

    fn member(&self, at: MemberIndex) -> Option<&Member> {
        self.folded.member(self.records, at)
    }
}

/// These members, and all others of whom what they own, and who owns it with them, may depend on them.
pub(crate) fn kin(records: &Records, of: &BTreeSet<MemberIndex>) -> BTreeSet<MemberIndex> {
    let mut kin = of.clone();
    for (at, stock) in records.stock() {
        if records.place(&stock.via).is_some_and(|via| of.contains(&via)) {
            kin.insert(at);
        }
    }
    let groups: BTreeSet<&Name> = kin.iter().filter_map(|at| records.record(*at)?.ha.as_ref()).collect();
    kin.extend(groups.into_iter().flat_map(|ha| records.group(ha)));
    kin
}

/// A member's addresses: the record's, and the one that belongs to its key unless the record has an
/// IPv6 address.
pub(crate) fn addresses(network: &NetworkId, record: &MemberRecord, keys: Option<&NodeKeys>) -> Vec<VirtualIp> {
    let mut ips = Vec::with_capacity(record.ips.len() + 1);
    ips.extend_from_slice(&record.ips);
    if !ips.iter().any(|ip| ip.ip().is_ipv6()) {
        ips.extend(keys.map(|keys| VirtualIp::of_key(network, &keys.session)));
    }
    ips
}
