//! What records must hold together: the same rules where they are signed and where they are verified.
//!
//! Keys and addresses are unique; a prefix has one owner, unless its carriers are of one HA group or it
//! is a more specific part that was moved; nobody may carry the default route, loopback, multicast,
//! the overlay itself or a hub's own address. The verdict depends on the records alone, never on their
//! order of arrival, so that all members given the same bytes compute the same table.
//!
//! A violation names the entries, and says what to do: operators read it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use flatlan_types::{HostPort, HubKey, InviteKey, MemberId, Name, NetworkId, Prefix, SessionKey, VirtualIp};

use crate::{
    calendar::Span,
    fold,
    record::{HubRecord, MemberRecord, NetworkRecord, Stock, stock_keys},
};

/// Checks everything, and compares everything with everything: what it finds is what an operator is told. Members and
/// hubs are sorted by name.
pub(crate) fn check(
    id: &NetworkId,
    network: &NetworkRecord,
    hubs: &[HubRecord],
    members: &[Arc<MemberRecord>],
) -> Result<(), Violation> {
    check_network(network)?;
    check_hubs(network, hubs)?;
    check_keys(members)?;
    for member in members {
        check_member(network, hubs, &|name| named(members, name), member)?;
    }
    check_overlaps(id, network, hubs, members)
}

/// Whether [`check`] finds nothing, given that no key and no address is there twice; `carried` is what
/// [`Carriable::of`] says of all members, sorted by address and length.
pub(crate) fn hold<'a>(
    carriable: &Carriable<'_>,
    hubs: &[HubRecord],
    members: &[Arc<MemberRecord>],
    carried: impl Iterator<Item = (Prefix, Kind, &'a MemberRecord)>,
) -> bool {
    let network = carriable.network;
    let holds = |member: &Arc<MemberRecord>| {
        let alone = check_member(network, hubs, &|name| named(members, name), member);
        alone.and_then(|()| carriable.check(member)).is_ok()
    };
    check_network(network).and_then(|()| check_hubs(network, hubs)).is_ok()
        && members.iter().all(holds)
        && check_nesting(carried).is_ok()
}

fn named<'a>(members: &'a [Arc<MemberRecord>], name: &Name) -> Option<&'a MemberRecord> {
    let at = members.binary_search_by(|member| member.name.cmp(name)).ok()?;
    members.get(at).map(|member| &**member)
}

/// The rules between what members carry and all addresses that something carried could hold: those outside the
/// overlay's own. Whoever keeps addresses unique, and each record by [`check_member`] and [`Carriable::check`],
/// needs to look at no others.
pub(crate) struct Carriable<'a> {
    site: Prefix,
    network: &'a NetworkRecord,
    hub_ips: Vec<(IpAddr, &'a Name)>,
}

impl<'a> Carriable<'a> {
    pub(crate) fn new(id: &NetworkId, network: &'a NetworkRecord, hubs: &'a [HubRecord]) -> Self {
        let hub_ips = hubs.iter().flat_map(|hub| hub_addresses(hub).map(move |ip| (ip, &hub.name))).collect();
        Self { site: site_prefix(id), network, hub_ips }
    }

    /// Everything of a member that takes part.
    pub(crate) fn of<'m>(&'m self, member: &'m MemberRecord) -> impl Iterator<Item = (Prefix, Kind)> + 'm {
        let outside = |ip: &&VirtualIp| ![self.network.range, self.site].iter().any(|range| range.contains(ip.ip()));
        let addresses = member.ips.iter().filter(outside).map(|ip| (Prefix::host(*ip), Kind::Address));
        let routes = member.routes.iter().map(|prefix| (*prefix, Kind::Route));
        addresses.chain(routes).chain(member.moved.iter().map(|prefix| (*prefix, Kind::Moved)))
    }

    /// Whether a member may carry what it does, whatever the others do.
    pub(crate) fn check(&self, member: &MemberRecord) -> Result<(), Violation> {
        let mut carried = member.routes.iter().chain(&member.moved);
        carried.try_for_each(|prefix| check_route(&self.site, self.network, &self.hub_ips, member, *prefix))
    }
}

/// Whether prefixes, sorted by address and length, may lie within each other as they do.
pub(crate) fn check_nesting<'a>(
    sorted: impl Iterator<Item = (Prefix, Kind, &'a MemberRecord)>,
) -> Result<(), Violation> {
    // A prefix sorts behind every wider one that holds it, so its ancestors are what is left on the stack.
    let mut ancestors: Vec<Owned<'_>> = Vec::new();
    for (prefix, kind, member) in sorted {
        let this = Owned { prefix, kind, member };
        while ancestors.last().is_some_and(|wider| !wider.prefix.contains(this.prefix.ip())) {
            ancestors.pop();
        }
        for wider in &ancestors {
            this.check_within(wider)?;
        }
        ancestors.push(this);
    }
    Ok(())
}

/// The IPv6 /48 that the members' own addresses come from.
pub fn site_prefix(id: &NetworkId) -> Prefix {
    let any = VirtualIp::of_key(id, &SessionKey::from_bytes([0; 32]));
    Prefix::of(any.ip(), 48).expect("48 is a length of an IPv6 prefix")
}

/// The addresses of `range` that a member may have: all but the first and the last.
pub(crate) fn host_range(range: Prefix) -> Option<(u32, u32)> {
    let IpAddr::V4(first) = range.ip() else { return None };
    let size = 1_u64 << 32_u8.checked_sub(range.length())?;
    let first = u32::from(first);
    let last = u32::try_from(u64::from(first) + size - 1).ok()?;
    (size > 2).then(|| (first + 1, last - 1))
}

fn check_network(network: &NetworkRecord) -> Result<(), Violation> {
    let range = network.range;
    if !range.ip().is_ipv4() || !(8..=30).contains(&range.length()) || special(range).is_some() {
        return Err(Violation::RangeUnusable { range });
    }
    if !(MIN_MTU..=MAX_MTU).contains(&network.mtu) {
        return Err(Violation::Mtu { got: network.mtu });
    }
    Ok(())
}

fn check_hubs(network: &NetworkRecord, hubs: &[HubRecord]) -> Result<(), Violation> {
    let mut keys: BTreeMap<HubKey, &Name> = BTreeMap::new();
    for hub in hubs {
        if let Some(other) = keys.insert(hub.key, &hub.name) {
            return Err(Violation::HubKeyTaken { hub: hub.name.clone(), other: other.clone() });
        }
        for ip in hub_addresses(hub) {
            if network.range.contains(ip) {
                return Err(Violation::HubInRange { hub: hub.name.clone(), ip, range: network.range });
            }
        }
    }
    if hubs.len() > MAX_HUBS {
        return Err(Violation::TooManyHubs { got: hubs.len() });
    }
    Ok(())
}

fn check_keys(members: &[Arc<MemberRecord>]) -> Result<(), Violation> {
    let mut ids: BTreeMap<MemberId, &Name> = BTreeMap::new();
    let mut sessions: BTreeMap<SessionKey, &Name> = BTreeMap::new();
    let mut invites: BTreeMap<InviteKey, &Name> = BTreeMap::new();
    for member in members {
        let mut other = None;
        if let Some(keys) = &member.keys {
            other = ids.insert(keys.id, &member.name).or_else(|| sessions.insert(keys.session, &member.name));
        }
        if let Some(invite) = &member.invite {
            other = other.or_else(|| invites.insert(invite.key, &member.name));
        }
        if let Some(other) = other {
            return Err(Violation::KeyTaken { member: member.name.clone(), other: other.clone() });
        }
    }
    Ok(())
}

/// The rules of one record. `named` finds a record by its member's name.
pub(crate) fn check_member<'a>(
    network: &NetworkRecord,
    hubs: &[HubRecord],
    named: &dyn Fn(&Name) -> Option<&'a MemberRecord>,
    record: &MemberRecord,
) -> Result<(), Violation> {
    let member = || record.name.clone();
    for ip in &record.ips {
        check_address(network, record, *ip)?;
    }
    if record.ips.iter().all(|ip| ip.ip().is_ipv6()) {
        return Err(Violation::NoAddress { member: member(), range: network.range });
    }
    if record.ips.len() + record.routes.len() + record.moved.len() > MAX_PREFIXES || record.groups.len() > MAX_GROUPS {
        return Err(Violation::TooManyPrefixes { member: member() });
    }
    if let Some(invite) = &record.invite
        && !hubs.iter().any(|hub| hub.key == invite.redeemer)
    {
        return Err(Violation::RedeemerUnknown { member: member() });
    }
    if let Some(endpoint) = record.endpoint.as_ref().and_then(HostPort::literal)
        && network.range.contains(endpoint.socket_addr().ip())
    {
        return Err(Violation::EndpointInRange { member: member(), range: network.range });
    }
    let Some(Stock { via }) = &record.stock else { return Ok(()) };
    if named(via).is_none_or(|via| via.stock.is_some()) {
        return Err(Violation::StockVia { member: member(), via: via.clone() });
    }
    let keys_fit = record.keys.is_some_and(|keys| keys == stock_keys(keys.session));
    if !keys_fit || record.invite.is_some() {
        return Err(Violation::StockKeys { member: member() });
    }
    Ok(())
}

fn check_address(network: &NetworkRecord, record: &MemberRecord, ip: VirtualIp) -> Result<(), Violation> {
    let member = || record.name.clone();
    match ip.ip() {
        IpAddr::V4(v4) => {
            if !network.range.contains(ip.ip()) {
                return Err(Violation::AddressOutside { member: member(), ip, range: network.range });
            }
            let hosts = host_range(network.range).map(|(first, last)| first..=last);
            if !hosts.is_some_and(|hosts| hosts.contains(&u32::from(v4))) {
                return Err(Violation::AddressUnusable { member: member(), ip });
            }
        }
        IpAddr::V6(_) => {
            if special(Prefix::host(ip)).is_some() {
                return Err(Violation::AddressUnusable { member: member(), ip });
            }
        }
    }
    Ok(())
}

fn check_overlaps(
    id: &NetworkId,
    network: &NetworkRecord,
    hubs: &[HubRecord],
    members: &[Arc<MemberRecord>],
) -> Result<(), Violation> {
    let carriable = Carriable::new(id, network, hubs);
    let mut owned = Vec::new();
    for member in members.iter().map(|member| &**member) {
        for ip in fold::addresses(id, member, member.keys.as_ref()) {
            owned.push((Prefix::host(ip), Kind::Address, member));
        }
        carriable.check(member)?;
        owned.extend(member.routes.iter().map(|prefix| (*prefix, Kind::Route, member)));
        owned.extend(member.moved.iter().map(|prefix| (*prefix, Kind::Moved, member)));
    }
    owned.sort_by_key(|(prefix, _, member)| (prefix.ip(), prefix.length(), &member.name));
    check_nesting(owned.into_iter())
}

fn check_route(
    site: &Prefix,
    network: &NetworkRecord,
    hub_ips: &[(IpAddr, &Name)],
    member: &MemberRecord,
    prefix: Prefix,
) -> Result<(), Violation> {
    let member = || member.name.clone();
    if let Some(what) = special(prefix) {
        return Err(Violation::PrefixSpecial { member: member(), prefix, what });
    }
    let shortest = if prefix.ip().is_ipv4() { MIN_LENGTH_V4 } else { MIN_LENGTH_V6 };
    if prefix.length() < shortest {
        return Err(Violation::PrefixTooWide { member: member(), prefix, shortest });
    }
    for range in [network.range, *site] {
        if prefix.overlaps(range) {
            return Err(Violation::PrefixInOverlay { member: member(), prefix, range });
        }
    }
    if let Some((ip, hub)) = hub_ips.iter().find(|(ip, _)| prefix.contains(*ip)) {
        return Err(Violation::PrefixHoldsHub { member: member(), prefix, hub: (*hub).clone(), ip: *ip });
    }
    Ok(())
}

struct Owned<'a> {
    prefix: Prefix,
    kind: Kind,
    member: &'a MemberRecord,
}

impl Owned<'_> {
    /// Whether this may lie within (or be equal to) `wider`.
    fn check_within(&self, wider: &Self) -> Result<(), Violation> {
        let more_specific = self.prefix.length() > wider.prefix.length();
        let same_member = self.member.name == wider.member.name;
        let same_ha = self.member.ha.is_some() && self.member.ha == wider.member.ha;
        let routes = self.kind != Kind::Address && wider.kind != Kind::Address;
        let allowed = (same_member && more_specific)
            || (same_ha && !same_member && routes)
            || (self.kind == Kind::Moved && more_specific);
        if allowed {
            return Ok(());
        }
        let (member, other) = (self.member.name.clone(), wider.member.name.clone());
        if self.kind == Kind::Address && wider.kind == Kind::Address {
            return Err(Violation::AddressTaken { member, other, ip: VirtualIp::new(self.prefix.ip()) });
        }
        Err(Violation::PrefixOverlap { member, prefix: self.prefix, other, other_prefix: wider.prefix })
    }
}

/// What a prefix is to who owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Address,
    Route,
    Moved,
}

fn hub_addresses(hub: &HubRecord) -> impl Iterator<Item = IpAddr> {
    let places = [Some(&hub.tls), hub.udp.as_ref()];
    places.into_iter().flatten().filter_map(|place| Some(place.literal()?.socket_addr().ip()))
}

/// What a prefix touches that no member may have (RFC 6890), if anything.
fn special(prefix: Prefix) -> Option<&'static str> {
    if prefix.length() == 0 {
        return Some("the default route");
    }
    let v4 = |a, b, length, what| (IpAddr::from(Ipv4Addr::new(a, b, 0, 0)), length, what);
    let v6 = |a, length, what| (IpAddr::from(Ipv6Addr::new(a, 0, 0, 0, 0, 0, 0, 0)), length, what);
    let reserved = [
        v4(0, 0, 8, "the unspecified addresses"),
        v4(127, 0, 8, "loopback"),
        v4(169, 254, 16, "the link-local addresses"),
        v4(224, 0, 4, "multicast"),
        v4(240, 0, 4, "the reserved and broadcast addresses"),
        v6(0, 96, "the unspecified address and loopback"),
        (IpAddr::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0)), 96, "the IPv4-mapped addresses"),
        v6(0xfe80, 10, "the link-local addresses"),
        v6(0xff00, 8, "multicast"),
    ];
    reserved.into_iter().find_map(|(ip, length, what)| Prefix::of(ip, length)?.overlaps(prefix).then_some(what))
}

/// A rule that the records break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the entries that the message names")]
pub enum Violation {
    /// An IPv4 address is not of the network's range.
    #[error("{ip} is outside the network's range {range}: choose one inside, or leave it out to get the next free one")]
    AddressOutside { member: Name, ip: VirtualIp, range: Prefix },
    /// Two members have one address.
    #[error("{ip} is already the address of member {other}: choose another")]
    AddressTaken { member: Name, other: Name, ip: VirtualIp },
    /// An address that no member may have.
    #[error("{ip} cannot be a member's address: choose another")]
    AddressUnusable { member: Name, ip: VirtualIp },
    /// A member's endpoint is an overlay address.
    #[error("its endpoint lies inside the overlay ({range}): give its address outside the overlay")]
    EndpointInRange { member: Name, range: Prefix },
    /// A hub's address is an overlay address.
    #[error("its address {ip} lies inside the network's range {range}: give the hub's address outside the overlay")]
    HubInRange { hub: Name, ip: IpAddr, range: Prefix },
    /// Two hubs have one key.
    #[error("its key is already that of hub {other}: run `flatlan hub init` on each hub's own machine")]
    HubKeyTaken { hub: Name, other: Name },
    /// Two members have one key.
    #[error("its key is already that of member {other}: every member needs a key of its own")]
    KeyTaken { member: Name, other: Name },
    /// The MTU is out of range.
    #[error("mtu {got} is not from {MIN_MTU} to {MAX_MTU}")]
    Mtu { got: u16 },
    /// Not exactly one network record.
    #[error("there must be exactly one network record")]
    NetworkCount,
    /// A member without an IPv4 address.
    #[error("it has no IPv4 address: give it an ip of {range}")]
    NoAddress { member: Name, range: Prefix },
    /// A prefix would take a hub's own traffic into the overlay.
    #[error(
        "{prefix} holds {ip}, the address of hub {hub}: traffic to the hub would run in circles; carry a narrower prefix"
    )]
    PrefixHoldsHub { member: Name, prefix: Prefix, hub: Name, ip: IpAddr },
    /// A prefix overlaps the overlay's own addresses.
    #[error("{prefix} overlaps the overlay's own addresses {range}: only prefixes outside it can be routed")]
    PrefixInOverlay { member: Name, prefix: Prefix, range: Prefix },
    /// A prefix has two owners.
    #[error(
        "{prefix} overlaps {other_prefix} of member {other}: one owner per prefix; give both the same `ha` group, or list the narrower one under `moved`"
    )]
    PrefixOverlap { member: Name, prefix: Prefix, other: Name, other_prefix: Prefix },
    /// A prefix that nobody may carry.
    #[error("{prefix} touches {what}, which no member may carry: choose the prefix of the site's LAN")]
    PrefixSpecial { member: Name, prefix: Prefix, what: &'static str },
    /// A prefix wider than any site.
    #[error("{prefix} is too wide: /{shortest} is the widest that a member may carry")]
    PrefixTooWide { member: Name, prefix: Prefix, shortest: u8 },
    /// The range cannot be used.
    #[error(
        "{range} cannot be the network's range: choose an IPv4 prefix from /8 to /30 of private addresses, such as 10.77.0.0/16"
    )]
    RangeUnusable { range: Prefix },
    /// An invite names a hub that is not listed.
    #[error(
        "its invite names a hub that is not in the network: add the hub back, or `flatlan invite --cancel {member}`"
    )]
    RedeemerUnknown { member: Name },
    /// A stock peer's keys are not those of one.
    #[error("a stock member has a WireGuard public key and no invite")]
    StockKeys { member: Name },
    /// A stock peer's terminating member is missing.
    #[error("`via` names {via}, which is no member that runs flatlan")]
    StockVia { member: Name, via: Name },
    /// More hubs than a network can have.
    #[error("{got} hubs are more than the {MAX_HUBS} that a network may have")]
    TooManyHubs { got: usize },
    /// More than a record can hold.
    #[error("it has more than {MAX_PREFIXES} addresses and prefixes, or more than {MAX_GROUPS} groups")]
    TooManyPrefixes { member: Name },
}

impl Violation {
    /// The entry that is to be changed.
    pub fn entry(&self) -> Entry<'_> {
        match self {
            Self::HubInRange { hub, .. } | Self::HubKeyTaken { hub, .. } => Entry::Hub(hub),
            Self::Mtu { .. } | Self::NetworkCount | Self::RangeUnusable { .. } | Self::TooManyHubs { .. } => {
                Entry::Network
            }
            Self::AddressOutside { member, .. }
            | Self::AddressTaken { member, .. }
            | Self::AddressUnusable { member, .. }
            | Self::EndpointInRange { member, .. }
            | Self::KeyTaken { member, .. }
            | Self::NoAddress { member, .. }
            | Self::PrefixHoldsHub { member, .. }
            | Self::PrefixInOverlay { member, .. }
            | Self::PrefixOverlap { member, .. }
            | Self::PrefixSpecial { member, .. }
            | Self::PrefixTooWide { member, .. }
            | Self::RedeemerUnknown { member }
            | Self::StockKeys { member }
            | Self::StockVia { member, .. }
            | Self::TooManyPrefixes { member } => Entry::Member(member),
        }
    }
}

/// An entry of the roster, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A hub.
    Hub(&'a Name),
    /// A member.
    Member(&'a Name),
    /// The network itself.
    Network,
}

/// The smallest MTU of the overlay: what IPv6 demands of every link (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;
/// The greatest MTU of the overlay.
pub const MAX_MTU: u16 = 9000;
/// How long a head lives unless network.toml says otherwise.
pub const DEFAULT_LIFE: Span = Span::days(180);
const MAX_HUBS: usize = 250;
const MAX_PREFIXES: usize = 512;
const MAX_GROUPS: usize = 64;
const MIN_LENGTH_V4: u8 = 8;
const MIN_LENGTH_V6: u8 = 16;
