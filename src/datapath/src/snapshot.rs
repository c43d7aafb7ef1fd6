//! Who is a member and who owns which address, at one moment: immutable, and swapped whole.
//!
//! A snapshot that differs from another in a few peers shares the rest with it.
//!
//! Revocation is a level, not a message: a worker compares the generation at each batch and drops the
//! sessions of whoever is no member any more.

use std::net::IpAddr;

use flatlan_roster::{
    OwnerTable,
    shared::{Few, SharedMap, SharedVec},
};
use flatlan_types::{
    MemberId, Name, NetworkId, NodeKeys, PeerSlot, SenderHint, SessionKey, VirtualIp, WorkerId, Workers,
};

/// The roster as the data path needs it.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// Rises with each change.
    pub generation: u64,
    /// Whether sessions may be begun with peers that have none.
    pub new_sessions: NewSessions,
    peers: SharedVec<Option<Listed>>,
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
        let mut snapshot = Self { generation, owners, own, ..Self::default() };
        let peers: Vec<_> = peers.into_iter().collect();
        snapshot.hints = SharedMap::with_capacity(peers.len());
        for (slot, info) in peers {
            snapshot.set_peer(network, slot, Some(info));
        }
        snapshot
    }

    /// Lists a peer, or strikes it off. Which addresses are whose is for [`Snapshot::set_owners`].
    pub fn set_peer(&mut self, network: &NetworkId, slot: PeerSlot, info: Option<PeerInfo>) {
        let at = slot.0 as usize;
        let node = |info: &PeerInfo| info.keys.member().map(|id| SenderHint::of(network, &id));
        if let Some(hint) = self.peer(slot).and_then(node) {
            let others: Vec<PeerSlot> = self.hinted(hint).iter().copied().filter(|other| *other != slot).collect();
            if others.is_empty() {
                self.hints.remove(&hint);
            } else {
                self.hints.insert(hint, Few::from(&*others));
            }
        }
        let Some(info) = info else { return self.peers.set(at, None) };
        let hint = node(&info);
        if let Some(hint) = hint {
            let all: Vec<PeerSlot> = self.hinted(hint).iter().copied().chain([slot]).collect();
            self.hints.insert(hint, Few::from(&*all));
        }
        self.peers.set(at, Some(Listed { info, hint: hint.unwrap_or(SenderHint(0)) }));
    }

    /// Replaces what says whose which address is, and this node's own.
    pub fn set_owners(&mut self, owners: OwnerTable<Owner>, own: Vec<VirtualIp>) {
        self.owners = owners;
        self.own = own;
    }

    /// What says whose which address is.
    pub fn owners(&self) -> &OwnerTable<Owner> {
        &self.owners
    }

    /// The peer at a slot, while it is a member.
    pub fn peer(&self, slot: PeerSlot) -> Option<&PeerInfo> {
        self.listed(slot).map(|listed| &listed.info)
    }

    /// Every peer with its slot.
    pub fn peers(&self) -> impl Iterator<Item = (PeerSlot, &PeerInfo)> {
        (0u32..).zip(self.peers.iter()).filter_map(|(n, peer)| Some((PeerSlot(n), &peer.as_ref()?.info)))
    }

    /// The worker to which all of a peer belongs; stock peers, and who is no member, to the first.
    #[inline]
    pub fn worker(&self, slot: PeerSlot, workers: Workers) -> WorkerId {
        self.listed(slot).map_or(WorkerId::FIRST, |listed| workers.of_hint(listed.hint))
    }

    /// The peers which a hint may name: one, but for collisions.
    pub fn hinted(&self, hint: SenderHint) -> &[PeerSlot] {
        self.hints.get(&hint).map_or(&[], Few::as_slice)
    }

    /// To whom a packet for this address goes (longest prefix): to nobody else where this node is one of
    /// the owners, else to the preferred of them.
    pub fn owner(&self, ip: IpAddr) -> Option<Owner> {
        let owners = self.owners.owners(ip);
        if owners.contains(&Owner::Me) { Some(Owner::Me) } else { owners.first().copied() }
    }

    /// Whether a packet from this address may come from there: from any member of the HA group that
    /// carries it.
    pub fn owns(&self, owner: Owner, ip: IpAddr) -> bool {
        self.owners.owns(owner, ip)
    }

    /// This node's own virtual IP of the same family as `ip`.
    pub fn own_ip(&self, ip: IpAddr) -> Option<VirtualIp> {
        self.own.iter().copied().find(|own| own.ip().is_ipv4() == ip.is_ipv4())
    }

    #[inline]
    fn listed(&self, slot: PeerSlot) -> Option<&Listed> {
        self.peers.get(slot.0 as usize)?.as_ref()
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
    pub psk: Option<[u8; 32]>,
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
        assert_eq!((snapshot.owner(shared), snapshot.owner(ours)), (Some(peer(1)), Some(Owner::Me)));
        assert!(snapshot.owns(peer(1), shared) && snapshot.owns(peer(2), shared));
        assert!(snapshot.owns(peer(1), ours) && snapshot.owns(Owner::Me, ours));
        assert!(!snapshot.owns(peer(3), shared) && !snapshot.owns(Owner::Me, shared) && !snapshot.owns(peer(2), ours));
    }
}
