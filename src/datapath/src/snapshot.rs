//! Who is a member and who owns which address, at one moment: immutable, and swapped whole.
//!
//! Revocation is a level, not a message: a worker compares the generation at each batch and drops the
//! sessions of whoever is no member any more.

use std::{collections::HashMap, net::IpAddr};

use flatlan_types::{MemberId, Name, NetworkId, NodeKeys, PeerSlot, Prefix, SenderHint, SessionKey, VirtualIp};

/// The roster as the data path needs it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Rises with each change.
    pub generation: u64,
    peers: Vec<Option<PeerInfo>>,
    hints: HashMap<SenderHint, Vec<PeerSlot>>,
    owners: Owners,
    own: Vec<VirtualIp>,
}

impl Snapshot {
    /// The snapshot of these peers, each with its slot; `owners` says who owns what, `own` are this
    /// node's own virtual IPs.
    pub fn new(
        generation: u64,
        network: &NetworkId,
        peers: impl IntoIterator<Item = (PeerSlot, PeerInfo)>,
        owners: Owners,
        own: Vec<VirtualIp>,
    ) -> Self {
        let mut table: Vec<Option<PeerInfo>> = Vec::new();
        let mut hints: HashMap<SenderHint, Vec<PeerSlot>> = HashMap::new();
        for (slot, info) in peers {
            let index = slot.0 as usize;
            if table.len() <= index {
                table.resize_with(index + 1, || None);
            }
            if let PeerKeys::Node(keys) = &info.keys {
                hints.entry(SenderHint::of(network, &keys.id)).or_default().push(slot);
            }
            if let Some(place) = table.get_mut(index) {
                *place = Some(info);
            }
        }
        Self { generation, peers: table, hints, owners, own }
    }

    /// The peer at a slot, while it is a member.
    pub fn peer(&self, slot: PeerSlot) -> Option<&PeerInfo> {
        self.peers.get(slot.0 as usize)?.as_ref()
    }

    /// Every peer with its slot.
    pub fn peers(&self) -> impl Iterator<Item = (PeerSlot, &PeerInfo)> {
        (0u32..).zip(&self.peers).filter_map(|(n, peer)| Some((PeerSlot(n), peer.as_ref()?)))
    }

    /// The peers which a hint may name: one, but for collisions.
    pub fn hinted(&self, hint: SenderHint) -> &[PeerSlot] {
        self.hints.get(&hint).map_or(&[], Vec::as_slice)
    }

    /// Who owns an address (longest prefix).
    pub fn owner(&self, ip: IpAddr) -> Option<Owner> {
        self.owners.of(ip)
    }

    /// This node's own virtual IP of the same family as `ip`.
    pub fn own_ip(&self, ip: IpAddr) -> Option<VirtualIp> {
        self.own.iter().copied().find(|own| own.ip().is_ipv4() == ip.is_ipv4())
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

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This node's own, or of a LAN behind it.
    Me,
    /// A peer's.
    Peer(PeerSlot),
}

/// Which prefix belongs to whom. Exact addresses in one hash map; shorter prefixes in one map a length,
/// longest first, so that a look-up costs as many probes as there are lengths in use.
#[derive(Debug, Default)]
pub struct Owners {
    hosts: HashMap<IpAddr, Owner>,
    v4: Vec<(u8, HashMap<IpAddr, Owner>)>,
    v6: Vec<(u8, HashMap<IpAddr, Owner>)>,
}

impl Owners {
    /// Gives a prefix to an owner.
    pub fn insert(&mut self, prefix: Prefix, owner: Owner) {
        let (bits, lengths) = match prefix.ip() {
            IpAddr::V4(_) => (32, &mut self.v4),
            IpAddr::V6(_) => (128, &mut self.v6),
        };
        if prefix.length() == bits {
            self.hosts.insert(prefix.ip(), owner);
            return;
        }
        let place = match lengths.binary_search_by(|(length, _)| prefix.length().cmp(length)) {
            Ok(place) => place,
            Err(place) => {
                lengths.insert(place, (prefix.length(), HashMap::new()));
                place
            }
        };
        if let Some((_, map)) = lengths.get_mut(place) {
            map.insert(prefix.ip(), owner);
        }
    }

    /// Who owns an address.
    pub fn of(&self, ip: IpAddr) -> Option<Owner> {
        if let Some(owner) = self.hosts.get(&ip) {
            return Some(*owner);
        }
        let lengths = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().find_map(|(length, map)| map.get(&mask(ip, *length)).copied())
    }
}

fn mask(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or_default();
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or_default();
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_owns_an_address() {
        let mut owners = Owners::default();
        let peer = |n| Owner::Peer(PeerSlot(n));
        for (prefix, owner) in [
            ("10.0.0.0/8", peer(1)),
            ("10.1.0.0/16", peer(2)),
            ("10.1.2.3/32", Owner::Me),
            ("0.0.0.0/0", peer(9)),
            ("fd00::/8", peer(3)),
            ("fd00::1/128", peer(4)),
        ] {
            owners.insert(prefix.parse().unwrap(), owner);
        }
        let of = |ip: &str| owners.of(ip.parse().unwrap());
        assert_eq!(of("10.1.2.3"), Some(Owner::Me));
        assert_eq!(of("10.1.2.4"), Some(peer(2)));
        assert_eq!(of("10.2.0.0"), Some(peer(1)));
        assert_eq!(of("11.0.0.0"), Some(peer(9)));
        assert_eq!(of("fd00::1"), Some(peer(4)));
        assert_eq!(of("fd00::2"), Some(peer(3)));
        assert_eq!(of("fe80::2"), None);
    }
}
