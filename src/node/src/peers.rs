//! The peer table: one entry a member, at a slot that is never given to another.
//!
//! A peer is *of interest* while somebody speaks to it or it speaks to this node; only those are watched,
//! labelled, told candidates and compared heads with. The others cost a row in this table.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use flatlan_path::PathKind;
use flatlan_relay::PresenceOrder;
use flatlan_roster::shared::SharedMap;
use flatlan_types::{BootEpoch, Endpoint, HostPort, HubKey, LaneId, MemberId, Name, PeerSlot};

use crate::{candidates::MAX_CANDIDATES, lan::PeerLan, persist::RememberedPeer};

/// Every member that this process has known.
#[derive(Default)]
pub(crate) struct Peers {
    table: Vec<Peer>,
    slots: SharedMap<MemberId, PeerSlot>,
    active: BTreeSet<PeerSlot>,
    /// Those that do not answer or have lost their LAN.
    absent: BTreeSet<PeerSlot>,
    /// What the file says of members that are in no roster seen yet.
    remembered: BTreeMap<MemberId, RememberedPeer>,
}

/// One member: a row for each of a roster, of which there are many.
pub(crate) struct Peer {
    pub(crate) id: MemberId,
    pub(crate) name: Name,
    /// In the roster in use.
    pub(crate) member: bool,
    /// A plain WireGuard device, or a node of ours.
    pub(crate) kind: PeerKind,
    /// Of the few of whom anything is known.
    contact: Option<Box<Contact>>,
}

/// What is known of a peer beside its name and key: nothing of most. A [`Peer`] stands for it.
pub(crate) struct Contact {
    /// The roster's hint where it is.
    pub(crate) configured: Option<HostPort>,
    /// What that resolves to.
    pub(crate) configured_at: Vec<Endpoint>,
    /// Where it answered, the last one first.
    pub(crate) good: Vec<Endpoint>,
    /// What it said itself, as far as that may be probed.
    pub(crate) offered: Vec<Endpoint>,
    /// What the workers were told.
    pub(crate) told: Vec<Endpoint>,
    /// The greatest epoch that it spoke under.
    pub(crate) epoch: BootEpoch,
    /// Its statement of that epoch, or of one before.
    pub(crate) statement: Option<(BootEpoch, Vec<u8>)>,
    /// A session is up.
    pub(crate) session: bool,
    /// A session was up when it was last of interest, perhaps in a life before this one.
    pub(crate) open: bool,
    /// It does not answer, as the workers found.
    pub(crate) silent: bool,
    /// What it says of its LAN.
    pub(crate) lan: PeerLan,
    /// Somebody last wanted it at this time.
    pub(crate) interest: Option<Instant>,
    /// Candidates that were sent and not answered: when to send again, and how often it was done.
    pub(crate) offer: Option<Offer>,
    /// Candidates were last sent.
    pub(crate) sent: Option<Instant>,
    /// A summary was last sent.
    pub(crate) summarized: Option<Instant>,
    /// It was last told that its epoch is stale.
    pub(crate) stale_told: Option<Instant>,
    /// It promised a newer roster last time, and brought none.
    pub(crate) misled: bool,
    /// Its lanes that go straight to it, as bits.
    pub(crate) direct_lanes: u8,
    /// Hubs to which it said it is attached, and by which statement.
    hubs: BTreeMap<HubKey, PresenceOrder>,
    /// Pieces of the roster that it may still have, and since when.
    pub(crate) pieces: (usize, Option<Instant>),
}

/// What speaks there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerKind {
    Node,
    Stock,
}

/// An offer of candidates that has no answer yet.
#[derive(Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) next: Instant,
    pub(crate) tries: u32,
}

impl Peers {
    pub(crate) fn new(remembered: Vec<RememberedPeer>) -> Self {
        let remembered = remembered.into_iter().map(|peer| (peer.id, peer)).collect();
        Self { remembered, ..Self::default() }
    }

    /// So many members are about to be given slots.
    pub(crate) fn expect(&mut self, members: usize) {
        if self.table.is_empty() {
            self.table.reserve_exact(members);
            self.slots = SharedMap::with_capacity(members);
        }
    }

    /// The slot of a member, given now if it has none.
    pub(crate) fn ensure(&mut self, id: MemberId, name: &Name, kind: PeerKind) -> PeerSlot {
        if let Some(slot) = self.slots.get(&id) {
            return *slot;
        }
        let slot = PeerSlot(u32::try_from(self.table.len()).expect("rosters hold far fewer than 2^32 members"));
        let old = self.remembered.remove(&id);
        let mut peer = Peer::new(id, name.clone(), kind);
        if let Some(old) = old {
            peer.epoch = old.epoch;
            peer.statement = old.statement.map(|bytes| (old.epoch, bytes.into()));
            peer.good = old.endpoints;
            peer.good.truncate(MAX_GOOD);
            peer.open = old.open;
        }
        self.table.push(peer);
        self.slots.insert(id, slot);
        slot
    }

    pub(crate) fn slot(&self, id: &MemberId) -> Option<PeerSlot> {
        self.slots.get(id).copied()
    }

    /// The slot of a node that is a member.
    pub(crate) fn member_slot(&self, id: &MemberId) -> Option<PeerSlot> {
        let slot = self.slot(id)?;
        self.get(slot).filter(|peer| peer.is_node()).map(|_| slot)
    }

    pub(crate) fn get(&self, slot: PeerSlot) -> Option<&Peer> {
        self.table.get(slot.0 as usize)
    }

    pub(crate) fn get_mut(&mut self, slot: PeerSlot) -> Option<&mut Peer> {
        self.table.get_mut(slot.0 as usize)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerSlot, &Peer)> {
        (0..).map(PeerSlot).zip(&self.table)
    }

    /// Somebody wants this peer. Whether nobody did before.
    pub(crate) fn interest(&mut self, slot: PeerSlot, now: Instant) -> bool {
        let Some(peer) = self.get_mut(slot).filter(|peer| peer.member) else { return false };
        peer.interest = Some(now);
        self.active.insert(slot)
    }

    /// Nobody wants it any more.
    pub(crate) fn forget(&mut self, slot: PeerSlot) -> bool {
        if let Some(contact) = self.get_mut(slot).and_then(|peer| peer.contact.as_deref_mut()) {
            contact.interest = None;
            contact.offer = None;
            contact.session = false;
            contact.open = false;
            // the workers have forgotten it too
            contact.silent = false;
            contact.summarized = None;
            contact.direct_lanes = 0;
            contact.hubs.clear();
            // the workers may have dropped what they knew of it
            contact.told.clear();
        }
        self.note_absence(slot);
        self.active.remove(&slot)
    }

    /// Whether it is absent may have changed.
    pub(crate) fn note_absence(&mut self, slot: PeerSlot) {
        if self.get(slot).is_some_and(|peer| peer.is_absent()) {
            self.absent.insert(slot);
        } else {
            self.absent.remove(&slot);
        }
    }

    /// Those that do not answer or have lost their LAN; some may be no members any more.
    pub(crate) fn absent(&self) -> impl Iterator<Item = PeerSlot> {
        self.absent.iter().copied()
    }

    /// The peers of interest.
    pub(crate) fn active(&self) -> Vec<PeerSlot> {
        self.active.iter().copied().collect()
    }

    /// The ids of the nodes of interest.
    pub(crate) fn active_ids(&self) -> Vec<MemberId> {
        let nodes = self.active.iter().filter_map(|slot| self.get(*slot)).filter(|peer| peer.is_node());
        nodes.map(|peer| peer.id).collect()
    }

    /// What is worth a place in the file.
    pub(crate) fn to_remember(&self) -> Vec<RememberedPeer> {
        let worth =
            |peer: &&Peer| peer.member && (!peer.good.is_empty() || peer.open || peer.epoch != BootEpoch::default());
        let remember = |peer: &Peer| RememberedPeer {
            id: peer.id,
            epoch: peer.epoch,
            statement: peer.current_statement().map(|bytes| bytes.to_vec().into()),
            endpoints: peer.good.clone(),
            open: peer.open,
        };
        self.table.iter().filter(worth).map(remember).chain(self.remembered.values().cloned()).collect()
    }
}

impl Peer {
    fn new(id: MemberId, name: Name, kind: PeerKind) -> Self {
        Self { id, name, member: true, kind, contact: None }
    }

    /// Whether it is a node of ours, and a member.
    pub(crate) fn is_node(&self) -> bool {
        self.member && self.kind == PeerKind::Node
    }
}

impl Deref for Peer {
    type Target = Contact;

    fn deref(&self) -> &Contact {
        self.contact.as_deref().unwrap_or(&NO_CONTACT)
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Contact {
        self.contact.get_or_insert_with(|| Box::new(Contact::new()))
    }
}

impl Contact {
    const fn new() -> Self {
        Self {
            configured: None,
            configured_at: Vec::new(),
            good: Vec::new(),
            offered: Vec::new(),
            told: Vec::new(),
            epoch: BootEpoch(0),
            statement: None,
            session: false,
            open: false,
            silent: false,
            lan: PeerLan::new(),
            interest: None,
            offer: None,
            sent: None,
            summarized: None,
            stale_told: None,
            misled: false,
            direct_lanes: 0,
            hubs: BTreeMap::new(),
            pieces: (0, None),
        }
    }

    /// Whether it does not answer, or has lost its LAN.
    pub(crate) fn is_absent(&self) -> bool {
        self.silent || self.lan.is_lost()
    }

    /// A lane's datagrams go this way.
    pub(crate) fn set_path(&mut self, lane: LaneId, path: Option<PathKind>) {
        let bit = 1 << lane.number();
        self.direct_lanes &= !bit;
        if path.is_some_and(PathKind::is_direct) {
            self.direct_lanes |= bit;
        }
    }

    /// Whether anything goes straight to it.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct_lanes != 0
    }

    /// It is attached to this hub.
    pub(crate) fn present(&mut self, hub: HubKey, order: PresenceOrder) {
        let epoch = self.hubs.values().map(|order| order.epoch).max();
        if epoch > Some(order.epoch) || self.hubs.get(&hub) > Some(&order) {
            return;
        }
        self.hubs.retain(|_, before| before.epoch == order.epoch);
        self.hubs.insert(hub, order);
        // the latest tell where it is
        if self.hubs.len() > MAX_PRESENT
            && let Some(oldest) = self.hubs.iter().min_by_key(|(_, order)| **order).map(|(hub, _)| *hub)
        {
            self.hubs.remove(&oldest);
        }
    }

    /// It is not.
    pub(crate) fn absent(&mut self, hub: &HubKey) {
        self.hubs.remove(hub);
    }

    /// The hubs to which it is attached, by its own word.
    pub(crate) fn hubs(&self) -> impl Iterator<Item = HubKey> + Clone {
        self.hubs.keys().copied()
    }

    /// Its own statement of the epoch that it uses.
    pub(crate) fn current_statement(&self) -> Option<&[u8]> {
        self.statement.as_ref().filter(|(of, _)| *of == self.epoch).map(|(_, bytes)| bytes.as_slice())
    }

    /// The epoch that it uses, where it can be proven.
    pub(crate) fn stated_epoch(&self) -> Option<BootEpoch> {
        self.current_statement().map(|_| self.epoch)
    }

    /// Where to try it directly: the last good places, what the admin wrote, what it says itself.
    pub(crate) fn direct(&self) -> Vec<Endpoint> {
        let mut all: Vec<Endpoint> = Vec::with_capacity(MAX_CANDIDATES);
        for endpoint in self.good.iter().chain(&self.configured_at).chain(&self.offered) {
            if all.len() < MAX_CANDIDATES && !all.contains(endpoint) {
                all.push(*endpoint);
            }
        }
        all
    }

    /// It answered there. Whether that is news.
    pub(crate) fn answered_at(&mut self, endpoint: Endpoint) -> bool {
        if self.good.first() == Some(&endpoint) {
            return false;
        }
        self.good.retain(|other| *other != endpoint);
        self.good.insert(0, endpoint);
        self.good.truncate(MAX_GOOD);
        true
    }

    /// Whether it may have `count` more pieces of the roster.
    pub(crate) fn may_have(&mut self, count: usize, now: Instant) -> bool {
        let (left, since) = self.pieces;
        let fresh = since.is_none_or(|since| now.duration_since(since) >= PIECES_TIME);
        let (left, since) = if fresh { (PIECES, Some(now)) } else { (left, since) };
        let enough = left >= count;
        self.pieces = (if enough { left - count } else { left }, since);
        enough
    }
}

static NO_CONTACT: Contact = Contact::new();
/// Good endpoints that are remembered.
const MAX_GOOD: usize = 3;
/// Hubs to which one peer is attached, as far as that is remembered.
const MAX_PRESENT: usize = 8;
/// Pieces of the roster that one peer gets in each [`PIECES_TIME`].
const PIECES: usize = 800;
const PIECES_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> MemberId {
        MemberId::from_bytes([n; 32])
    }

    #[test]
    fn a_slot_is_never_given_to_another_member() {
        let mut peers = Peers::default();
        let name: Name = "a".parse().unwrap();
        let first = peers.ensure(id(1), &name, PeerKind::Node);
        peers.get_mut(first).unwrap().member = false;
        let second = peers.ensure(id(2), &name, PeerKind::Node);
        assert_ne!(first, second);
        assert_eq!(peers.ensure(id(1), &name, PeerKind::Node), first);
        assert_eq!(peers.member_slot(&id(1)), None);
        assert_eq!(peers.member_slot(&id(2)), Some(second));
    }

    #[test]
    fn what_is_remembered_of_a_member_not_seen_yet_stays_in_the_file() {
        let remembered =
            RememberedPeer { id: id(9), epoch: BootEpoch(3), statement: None, endpoints: Vec::new(), open: true };
        let mut peers = Peers::new(vec![remembered.clone()]);
        assert_eq!(peers.to_remember(), vec![remembered.clone()]);
        let slot = peers.ensure(id(9), &"a".parse().unwrap(), PeerKind::Node);
        assert_eq!(peers.get(slot).unwrap().epoch, BootEpoch(3));
        assert_eq!(peers.to_remember(), vec![remembered]);
    }
}
