//! Who is a member and who owns which address, at one moment: immutable, and swapped whole.
//!
//! A snapshot that differs from another in a few peers shares the rest with it.
//!
//! Revocation is a level, not a message: a worker compares the generation at each batch and drops the
//! sessions of whoever is no member any more.
//!
//! Where members of an HA group own an address together, each flow goes to one of them that is not away, of those with
//! the greatest priority: the one with the greatest hash of flow and member (rendezvous hashing, Thaler and Ravishankar 1998). So the flows of one that
//! goes away are shared out to the others, nobody else's move, and its own come back with it. Where all of them are away,
//! the owners of the prefix around it stand in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use flatlan_packet::IpView;
use flatlan_roster::{
    OwnerTable,
    shared::{Few, SharedMap, SharedVec},
};
use flatlan_types::{
    MemberId, Name, NetworkId, NodeKeys, PeerSlot, Prefix, SenderHint, SessionKey, VirtualIp, WorkerId, Workers,
};

/// The roster as the data path needs it.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// Rises with each change.
    pub generation: u64,
    /// Whether sessions may be begun with peers that have none.
    pub new_sessions: NewSessions,
    /// Peers to which no flow goes that another owner can take.
    pub away: Away,
    table: Arc<Table>,
}

/// Who is not to have flows that others can take.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Away {
    /// Peers that do not answer.
    pub silent: BTreeSet<PeerSlot>,
    /// Peers that said so themselves, of all that they own in these prefixes.
    pub withdrawn: BTreeMap<PeerSlot, Arc<[Prefix]>>,
}

impl Away {
    /// Whether this owner of an address can have its flows.
    #[inline]
    pub fn can(&self, owner: Owner, ip: IpAddr) -> bool {
        match owner {
            Owner::Me => true,
            Owner::Peer(slot) => !self.silent.contains(&slot) && !self.has_withdrawn(slot, ip),
        }
    }

    /// Whether nobody is away.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.silent.is_empty() && self.withdrawn.is_empty()
    }

    fn has_withdrawn(&self, slot: PeerSlot, ip: IpAddr) -> bool {
        self.withdrawn.get(&slot).is_some_and(|prefixes| prefixes.iter().any(|prefix| prefix.contains(ip)))
    }
}

/// What changes with the roster only.
#[derive(Debug, Default, Clone)]
struct Table {
    peers: SharedVec<Option<Listed>>,
    /// Those of them that are plain WireGuard devices: few, and looked for with each snapshot.
    stock: BTreeSet<PeerSlot>,
    hints: SharedMap<SenderHint, Few<PeerSlot>>,
    owners: OwnerTable<Owner>,
    own: Vec<VirtualIp>,
}

/// A peer, and what names its worker.
#[derive(Debug, Clone)]
struct Listed {
    info: PeerInfo,
    hint: SenderHint,
}

impl Snapshot {
    /// The snapshot of these peers, each with its slot; `owners` says who owns what, `own` are this
    /// node's own virtual IPs.
    pub fn new(
        generation: u64,
        network: &NetworkId,
        peers: impl IntoIterator<Item = (PeerSlot, PeerInfo)>,
        owners: OwnerTable<Owner>,
        own: Vec<VirtualIp>,
    ) -> Self {
        let peers: Vec<_> = peers.into_iter().collect();
        let hints = SharedMap::with_capacity(peers.len());
        let table = Table { hints, owners, own, ..Table::default() };
        let mut snapshot = Self { generation, table: Arc::new(table), ..Self::default() };
        for (slot, info) in peers {
            snapshot.set_peer(network, slot, Some(info));
        }
        snapshot
    }

    /// Lists a peer, or strikes it off. Which addresses are whose is for [`Snapshot::set_owners`].
    pub fn set_peer(&mut self, network: &NetworkId, slot: PeerSlot, info: Option<PeerInfo>) {
        let at = slot.0 as usize;
        let node = |info: &PeerInfo| info.keys.member().map(|id| SenderHint::of(network, &id));
        let before = self.peer(slot).and_then(node);
        let after = info.as_ref().and_then(node);
        let table = Arc::make_mut(&mut self.table);
        if let Some(hint) = before {
            let all = table.hints.get(&hint).map_or(&[][..], Few::as_slice);
            let others: Vec<PeerSlot> = all.iter().copied().filter(|other| *other != slot).collect();
            if others.is_empty() {
                table.hints.remove(&hint);
            } else {
                table.hints.insert(hint, Few::from(&*others));
            }
        }
        if let Some(hint) = after {
            let all = table.hints.get(&hint).map_or(&[][..], Few::as_slice);
            let all: Vec<PeerSlot> = all.iter().copied().chain([slot]).collect();
            table.hints.insert(hint, Few::from(&*all));
        }
        if info.is_some() && after.is_none() {
            table.stock.insert(slot);
        } else {
            table.stock.remove(&slot);
        }
        table.peers.set(at, info.map(|info| Listed { info, hint: after.unwrap_or(SenderHint(0)) }));
    }

    /// Replaces what says whose which address is, and this node's own.
    pub fn set_owners(&mut self, owners: OwnerTable<Owner>, own: Vec<VirtualIp>) {
        let table = Arc::make_mut(&mut self.table);
        table.owners = owners;
        table.own = own;
    }

    /// The peer at a slot, while it is a member.
    pub fn peer(&self, slot: PeerSlot) -> Option<&PeerInfo> {
        self.listed(slot).map(|listed| &listed.info)
    }

    /// Every peer with its slot.
    pub fn peers(&self) -> impl Iterator<Item = (PeerSlot, &PeerInfo)> {
        (0u32..).zip(self.table.peers.iter()).filter_map(|(n, peer)| Some((PeerSlot(n), &peer.as_ref()?.info)))
    }

    /// The peers that are plain WireGuard devices.
    pub fn stock(&self) -> impl Iterator<Item = PeerSlot> {
        self.table.stock.iter().copied()
    }

    /// The worker to which all of a peer belongs; stock peers, and who is no member, to the first.
    #[inline]
    pub fn worker(&self, slot: PeerSlot, workers: Workers) -> WorkerId {
        self.listed(slot).map_or(WorkerId::FIRST, |listed| workers.of_hint(listed.hint))
    }

    /// The peers which a hint may name: one, but for collisions.
    pub fn hinted(&self, hint: SenderHint) -> &[PeerSlot] {
        self.table.hints.get(&hint).map_or(&[], Few::as_slice)
    }

    /// Whether the members are the same as in another one, with all that they own.
    pub fn same_members(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.table, &other.table)
    }

    /// To whom a packet for this address goes (longest prefix of which an owner is not away): to nobody else where
    /// this node is one of the owners, else to that one of them who has its flow, whose hash `flow` tells.
    #[inline]
    pub fn owner(&self, ip: IpAddr, flow: impl FnOnce() -> u32) -> Option<Chosen> {
        let owners = self.table.owners.owners(ip);
        let able = match owners {
            [] => return None,
            [only] if self.away.can(*only, ip) => return Some(Chosen::Sole(*only)),
            several => self.able(ip).unwrap_or(several),
        };
        match able {
            several if several.contains(&Owner::Me) => Some(Chosen::Sole(Owner::Me)),
            // nobody can take its place
            [only] if owners == [*only] => Some(Chosen::Sole(*only)),
            several => self.choose(several, ip, flow()).map(Chosen::OneOf),
        }
    }

    /// The peers that own addresses together with this one; without it.
    pub fn sharing(&self, slot: PeerSlot) -> BTreeSet<PeerSlot> {
        let groups = self.table.owners.shared().filter(|owners| owners.contains(&Owner::Peer(slot)));
        let others = groups.flatten().filter_map(|owner| match owner {
            Owner::Peer(peer) if *peer != slot => Some(*peer),
            Owner::Peer(_) | Owner::Me => None,
        });
        others.collect()
    }

    /// Whether a packet from this address may come from there: from any member of the HA group that
    /// carries it, and from who stands in for them.
    pub fn owns(&self, owner: Owner, ip: IpAddr) -> bool {
        self.table.owners.owns(owner, ip) || !self.away.is_empty() && self.stands_in(owner, ip)
    }

    /// The peer in whose place another one sends this packet: an owner of its source, where that other one owns the
    /// prefix around it.
    pub(crate) fn in_place_of(&self, sender: PeerSlot, packet: &[u8]) -> Option<PeerSlot> {
        let source = IpView::parse(packet).ok()?.source;
        let mut levels = self.table.owners.levels(source);
        let owners = levels.next()?;
        if !levels.any(|owners| owners.contains(&Owner::Peer(sender))) {
            return None;
        }
        owners.iter().find_map(|owner| match owner {
            Owner::Peer(slot) => Some(*slot),
            Owner::Me => None,
        })
    }

    /// The owners of the longest prefix around an address of whom one can have its flows.
    fn able(&self, ip: IpAddr) -> Option<&[Owner]> {
        self.table.owners.levels(ip).find(|owners| owners.iter().any(|owner| self.away.can(*owner, ip)))
    }

    /// Whether this is an owner of that prefix, or of one within it.
    fn stands_in(&self, owner: Owner, ip: IpAddr) -> bool {
        for owners in self.table.owners.levels(ip) {
            if owners.contains(&owner) {
                return self.able(ip).is_some();
            }
            if owners.iter().any(|owner| self.away.can(*owner, ip)) {
                return false;
            }
        }
        false
    }

    /// The owner that has a flow: of those that are not away, where there are such.
    fn choose(&self, owners: &[Owner], ip: IpAddr, flow: u32) -> Option<Owner> {
        let live = |owner: &&Owner| self.away.can(**owner, ip);
        let rank = |owner: &&Owner| match owner {
            Owner::Peer(slot) => (self.priority(*slot), self.rank(*slot, flow), *slot),
            Owner::Me => (0, 0, PeerSlot(0)),
        };
        owners.iter().filter(live).max_by_key(rank).or_else(|| owners.iter().max_by_key(rank)).copied()
    }

    fn priority(&self, slot: PeerSlot) -> u16 {
        self.peer(slot).map_or(0, |peer| peer.priority)
    }

    /// How much a flow is a peer's: the same with every sender, and after every restart.
    fn rank(&self, slot: PeerSlot, flow: u32) -> u64 {
        let id = self.peer(slot).and_then(|peer| peer.keys.member());
        let salt =
            id.and_then(|id| id.as_bytes().first_chunk().copied()).map_or_else(|| slot.0.into(), u64::from_le_bytes);
        crate::worker::mix(salt ^ u64::from(flow))
    }

    /// This node's own virtual IP of the same family as `ip`.
    pub fn own_ip(&self, ip: IpAddr) -> Option<VirtualIp> {
        self.table.own.iter().copied().find(|own| own.ip().is_ipv4() == ip.is_ipv4())
    }

    #[inline]
    fn listed(&self, slot: PeerSlot) -> Option<&Listed> {
        self.table.peers.get(slot.0 as usize)?.as_ref()
    }
}

/// What a worker must know of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its name, for logs and status.
    pub name: Name,
    /// Its keys.
    pub keys: PeerKeys,
    /// Its pre-shared key with this node, where there is one.
    pub psk: Option<Box<[u8; 32]>>,
    /// How much it is preferred among those who own the same; more is better.
    pub priority: u16,
}

/// The keys of a peer: a node's two, or the one of a plain WireGuard device that this node terminates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerKeys {
    /// A node of ours.
    Node(NodeKeys),
    /// A stock WireGuard peer.
    Stock(SessionKey),
}

impl PeerKeys {
    /// Its WireGuard static key.
    pub fn session(&self) -> SessionKey {
        match self {
            Self::Node(keys) => keys.session,
            Self::Stock(key) => *key,
        }
    }

    /// Its member id, where it is a node of ours.
    pub fn member(&self) -> Option<MemberId> {
        match self {
            Self::Node(keys) => Some(keys.id),
            Self::Stock(_) => None,
        }
    }
}

/// Whether sessions may be begun.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NewSessions {
    /// With every member.
    #[default]
    Allowed,
    /// With nobody: the roster expired, and its network wants it so. Peers with a session keep it, rekey
    /// it, and warm their other lanes.
    Refused,
}

/// To whom a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chosen {
    /// To the only one that may have it.
    Sole(Owner),
    /// To this one of several, for this flow and for now.
    OneOf(Owner),
}

impl Chosen {
    /// Who it is.
    pub fn owner(self) -> Owner {
        match self {
            Self::Sole(owner) | Self::OneOf(owner) => owner,
        }
    }
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// This node's own, or of a LAN behind it.
    Me,
    /// A peer's.
    Peer(PeerSlot),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_member_of_an_ha_group_owns_what_they_carry_and_this_node_before_the_others() {
        let peer = |n| Owner::Peer(PeerSlot(n));
        let prefixes =
            [("10.1.0.0/16", peer(1)), ("10.1.0.0/16", peer(2)), ("10.2.0.0/16", peer(1)), ("10.2.0.0/16", Owner::Me)];
        let owners = OwnerTable::new(prefixes.map(|(prefix, owner)| (prefix.parse().unwrap(), owner)));
        let snapshot = Snapshot::new(1, &NetworkId::from_bytes([7; 32]), [], owners, Vec::new());
        let (shared, ours) = ([10, 1, 0, 9].into(), [10, 2, 0, 9].into());
        assert!(matches!(snapshot.owner(shared, || 7), Some(Chosen::OneOf(one)) if one == peer(1) || one == peer(2)));
        assert_eq!(snapshot.owner(ours, || 7), Some(Chosen::Sole(Owner::Me)));
        assert_eq!(snapshot.sharing(PeerSlot(1)), BTreeSet::from([PeerSlot(2)]));
        assert!(snapshot.owns(peer(1), shared) && snapshot.owns(peer(2), shared));
        assert!(snapshot.owns(peer(1), ours) && snapshot.owns(Owner::Me, ours));
        assert!(!snapshot.owns(peer(3), shared) && !snapshot.owns(Owner::Me, shared) && !snapshot.owns(peer(2), ours));
    }

    #[test]
    fn a_plain_device_is_found_among_all_members_until_it_is_struck_off_or_becomes_a_node() {
        let network = NetworkId::from_bytes([7; 32]);
        let key = |n: u32| SessionKey::from_bytes([n as u8; 32]);
        let node = |n: u32| PeerKeys::Node(NodeKeys { id: MemberId::from_bytes([n as u8; 32]), session: key(n) });
        let info = |keys| PeerInfo { name: "x".parse().unwrap(), keys, psk: None, priority: 0 };
        let peers = (0..6).map(|n| (PeerSlot(n), info(if n % 2 == 1 { PeerKeys::Stock(key(n)) } else { node(n) })));
        let before = Snapshot::new(1, &network, peers, OwnerTable::default(), Vec::new());
        let mut after = before.clone();
        after.set_peer(&network, PeerSlot(1), None);
        after.set_peer(&network, PeerSlot(3), Some(info(node(3))));
        after.set_peer(&network, PeerSlot(4), Some(info(PeerKeys::Stock(key(4)))));
        let stock = |snapshot: &Snapshot| snapshot.stock().map(|slot| slot.0).collect::<Vec<_>>();
        assert_eq!((stock(&before), stock(&after)), (vec![1, 3, 5], vec![4, 5]));
    }

    #[test]
    fn flows_are_shared_out_evenly_and_only_those_of_an_owner_that_goes_away_move() {
        const FLOWS: u32 = 3000;
        let peer = |n| Owner::Peer(PeerSlot(n));
        let prefix = "10.1.0.0/16".parse().unwrap();
        let owners = OwnerTable::new([(prefix, peer(1)), (prefix, peer(2)), (prefix, peer(3))]);
        let snapshot = Snapshot::new(1, &NetworkId::from_bytes([7; 32]), [], owners, Vec::new());
        let choice = |snapshot: &Snapshot, flow: u32| {
            snapshot.owner([10, 1, 0, 9].into(), || flow.wrapping_mul(0x9e37_79b9)).unwrap().owner()
        };
        let all: Vec<Owner> = (0..FLOWS).map(|flow| choice(&snapshot, flow)).collect();
        for n in 1..=3 {
            let part = all.iter().filter(|owner| **owner == peer(n)).count();
            assert!((900..1100).contains(&part), "{n}: {part}");
        }
        let away = |slots: &[u32]| {
            let silent = slots.iter().map(|n| PeerSlot(*n)).collect();
            Snapshot { away: Away { silent, ..Away::default() }, ..snapshot.clone() }
        };
        let without = away(&[2]);
        assert!(without.same_members(&snapshot));
        let now: Vec<Owner> = (0..FLOWS).map(|flow| choice(&without, flow)).collect();
        assert!(all.iter().zip(&now).all(|(was, is)| if *was == peer(2) { *is != peer(2) } else { is == was }));
        for n in [1, 3] {
            let part = now.iter().filter(|owner| **owner == peer(n)).count();
            assert!((1400..1600).contains(&part), "{n}: {part}");
        }
        let nobody = away(&[1, 2, 3]);
        assert!((0..FLOWS).all(|flow| choice(&nobody, flow) == all[flow as usize]), "somebody may have come back");
    }

    #[test]
    fn only_owners_of_the_greatest_priority_that_are_not_away_have_flows() {
        let prefix: Prefix = "10.1.0.0/16".parse().unwrap();
        let slots = [1, 2, 3].map(PeerSlot);
        let owners = OwnerTable::new(slots.map(|slot| (prefix, Owner::Peer(slot))));
        let info = |slot: PeerSlot| PeerInfo {
            name: format!("n{}", slot.0).parse().unwrap(),
            keys: PeerKeys::Stock(SessionKey::from_bytes([slot.0 as u8; 32])),
            psk: None,
            priority: if slot.0 == 3 { 0 } else { 7 },
        };
        let peers = slots.map(|slot| (slot, info(slot)));
        let mut snapshot = Snapshot::new(1, &NetworkId::from_bytes([7; 32]), peers, owners, Vec::new());
        let chosen = |snapshot: &Snapshot| -> BTreeSet<u32> {
            let flows = (0..64_u32).map(|flow| flow.wrapping_mul(0x9e37_79b9));
            let owner = |flow| snapshot.owner([10, 1, 0, 9].into(), || flow).unwrap().owner();
            let slot = |owner| match owner {
                Owner::Peer(slot) => Some(slot.0),
                Owner::Me => None,
            };
            flows.map(owner).filter_map(slot).collect()
        };
        assert_eq!(chosen(&snapshot), BTreeSet::from([1, 2]));
        snapshot.away.silent.insert(PeerSlot(1));
        assert_eq!(chosen(&snapshot), BTreeSet::from([2]));
        snapshot.away.silent.insert(PeerSlot(2));
        assert_eq!(chosen(&snapshot), BTreeSet::from([3]));
        snapshot.away.silent.remove(&PeerSlot(1));
        assert_eq!(chosen(&snapshot), BTreeSet::from([1]), "it has its flows back");
    }

    #[test]
    fn what_an_owner_withdrew_goes_to_the_others_and_the_rest_of_its_own_stays_with_it() {
        let peer = |n| Owner::Peer(PeerSlot(n));
        let shared = ["10.1.0.0/16", "10.2.0.0/16"].map(|text| text.parse::<Prefix>().unwrap());
        let owners = OwnerTable::new(shared.into_iter().flat_map(|prefix| [(prefix, peer(1)), (prefix, peer(2))]));
        let mut snapshot = Snapshot::new(1, &NetworkId::from_bytes([7; 32]), [], owners, Vec::new());
        let chosen = |snapshot: &Snapshot, ip: [u8; 4]| -> BTreeSet<Owner> {
            let flows = (0..64_u32).map(|flow| flow.wrapping_mul(0x9e37_79b9));
            flows.map(|flow| snapshot.owner(ip.into(), || flow).unwrap().owner()).collect()
        };
        snapshot.away.withdrawn.insert(PeerSlot(1), [shared[0]].into());
        assert_eq!(chosen(&snapshot, [10, 1, 0, 9]), BTreeSet::from([peer(2)]));
        assert_eq!(chosen(&snapshot, [10, 2, 0, 9]), BTreeSet::from([peer(1), peer(2)]));
        assert!(snapshot.owns(peer(1), [10, 1, 0, 9].into()), "what it sends is its own all the same");
        snapshot.away.withdrawn.insert(PeerSlot(2), [shared[0]].into());
        assert_eq!(chosen(&snapshot, [10, 1, 0, 9]).len(), 2, "nobody is better than the others");
    }

    #[test]
    fn the_owner_of_the_prefix_around_stands_in_for_one_that_is_away_and_for_nobody_else() {
        let peer = |n| Owner::Peer(PeerSlot(n));
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let all = [
            (prefix("10.1.0.0/16"), peer(1)),
            (prefix("10.1.0.5/32"), peer(2)),
            (prefix("10.2.0.0/16"), Owner::Me),
            (prefix("10.2.0.5/32"), peer(2)),
            (prefix("10.77.0.2/32"), peer(2)),
        ];
        let mut snapshot = Snapshot::new(1, &NetworkId::from_bytes([7; 32]), [], OwnerTable::new(all), Vec::new());
        let [moved, beside, from_us, vip] =
            [[10, 1, 0, 5], [10, 1, 0, 6], [10, 2, 0, 5], [10, 77, 0, 2]].map(IpAddr::from);
        let owner = |snapshot: &Snapshot, ip| snapshot.owner(ip, || 7);
        assert_eq!(owner(&snapshot, moved), Some(Chosen::Sole(peer(2))));
        assert!(!snapshot.owns(peer(1), moved) && !snapshot.owns(Owner::Me, from_us));

        snapshot.away.silent.insert(PeerSlot(2));
        assert_eq!(owner(&snapshot, moved), Some(Chosen::OneOf(peer(1))));
        assert_eq!(owner(&snapshot, from_us), Some(Chosen::Sole(Owner::Me)));
        assert_eq!(owner(&snapshot, vip), Some(Chosen::Sole(peer(2))), "its own address is nobody else's");
        assert!(snapshot.owns(peer(1), moved) && snapshot.owns(peer(2), moved) && !snapshot.owns(peer(3), moved));
        assert!(snapshot.owns(Owner::Me, from_us) && !snapshot.owns(peer(1), from_us));
        assert!(!snapshot.owns(peer(2), beside) && !snapshot.owns(peer(1), vip));

        snapshot.away.silent.insert(PeerSlot(1));
        assert_eq!(owner(&snapshot, moved), Some(Chosen::Sole(peer(2))), "both are away: it is its owner's");
        assert!(!snapshot.owns(peer(1), moved));
        snapshot.away.silent.clear();
        snapshot.away.withdrawn.insert(PeerSlot(2), [prefix("0.0.0.0/0")].into());
        assert_eq!(owner(&snapshot, moved), Some(Chosen::OneOf(peer(1))));
    }
}
