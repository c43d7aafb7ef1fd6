//! Ways to peers: who is of interest, labels at the hubs, direct candidates.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use flatlan_datapath::{Command, NewSessions};
use flatlan_relay::{Control, PathReason, Presence};
use flatlan_types::{Endpoint, HostPort, HubKey, HubSlot, MemberId, PeerSlot};

use crate::{
    Output, Transport,
    candidates::admissible,
    node::{Node, Rules},
    peers::PeerKind,
};

impl Node {
    /// Packets wait for a peer, and there is no way to it or only a bad one.
    pub(crate) fn need_path(&mut self, slot: PeerSlot, now: Instant) {
        let Some(peer) = self.peers.get(slot).filter(|peer| peer.member) else { return };
        if self.new_sessions() == NewSessions::Refused && !peer.session {
            tracing::debug!(peer = %peer.name, "no new session: the roster expired");
            return;
        }
        self.take_interest(slot, now);
        self.relays.renew(slot, |_| true, &self.hubs, now, &mut self.out);
        self.resolve_configured(slot, now);
        self.tell_direct(slot);
        self.offer(slot, now);
    }

    /// A peer is spoken to, or speaks: from now on the hubs tell where it is, and relay to it.
    pub(crate) fn take_interest(&mut self, slot: PeerSlot, now: Instant) {
        let new = self.peers.interest(slot, now);
        let Some(peer) = self.peers.get(slot).filter(|peer| peer.is_node()) else { return };
        if new {
            let message = Control::Watch { peers: vec![peer.id] };
            for hub in self.hubs.attached().collect::<Vec<_>>() {
                self.hubs.send(hub, &message, &mut self.out);
            }
        }
        self.want_relays(slot, now);
    }

    pub(crate) fn want_relays(&mut self, slot: PeerSlot, now: Instant) {
        if let Some(id) = self.peers.get(slot).filter(|peer| peer.is_node()).map(|peer| peer.id) {
            self.relays.want(slot, id, &self.hubs, now, &mut self.out);
        }
    }

    /// Nothing was said to or by a peer for minutes.
    pub(crate) fn idle(&mut self, slot: PeerSlot, now: Instant) {
        self.relays.remove_peer(slot, PathReason::Idle, &self.hubs, &mut self.out);
        self.relays.ask_waiting(&self.hubs, now, &mut self.out);
        let id = self.peers.get(slot).map(|peer| peer.id);
        if self.peers.forget(slot)
            && let Some(id) = id
        {
            let message = Control::Unwatch { peers: vec![id] };
            for hub in self.hubs.attached().collect::<Vec<_>>() {
                self.hubs.send(hub, &message, &mut self.out);
            }
        }
        // the workers have forgotten that it did not answer, and say nothing when it does
        self.refresh_away(slot);
    }

    pub(crate) fn session_up(&mut self, slot: PeerSlot, now: Instant) {
        self.take_interest(slot, now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !peer.session {
            peer.session = true;
            peer.open = true;
            peer.summarized = None;
            self.far_at.get_or_insert(now + FAR_EVERY);
            self.remember_soon(now);
            self.tell_lan_to(slot);
        }
    }

    /// Tells a hub whom to tell us of.
    pub(crate) fn watch_at(&mut self, hub: HubSlot) {
        let ids: Vec<MemberId> = self.peers.active_ids();
        for some in ids.chunks(WATCH_AT_ONCE) {
            self.hubs.send(hub, &Control::Watch { peers: some.to_vec() }, &mut self.out);
        }
    }

    /// A watched peer is attached to a hub.
    pub(crate) fn on_presence(&mut self, bytes: &[u8], now: Instant) {
        let Some((network, id, hub, order)) = Presence::peek(bytes) else { return };
        let Some(slot) = self.peers.member_slot(&id).filter(|_| network == self.me.network) else { return };
        let wanted = self.peers.get(slot).is_some_and(|peer| peer.interest.is_some());
        if !wanted || Presence::verify(bytes).is_err() {
            return;
        }
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.present(hub, order);
        }
        self.far_at.get_or_insert(now + FAR_EVERY);
        self.relays.retry(slot, &self.hubs, now, &mut self.out);
    }

    /// Finds the hubs at which peers are that this node speaks to, with which it has no hub in common and no direct path:
    /// a hub less on the way, and one less that can fail. Where a peer is, it says itself: no hub can make one of another.
    pub(crate) fn find_far(&mut self, now: Instant) {
        let mut needed = BTreeSet::new();
        for slot in self.peers.active() {
            let Some(peer) = self.peers.get(slot).filter(|peer| peer.session && !peer.is_direct()) else { continue };
            if let Some(hub) = self.hubs.far_of(peer.hubs()) {
                tracing::trace!(peer = %peer.name, %hub, "no hub in common");
                needed.insert(hub);
            }
        }
        self.hubs.set_far(&needed, now);
        let again = !needed.is_empty() || self.hubs.has_far();
        self.far_at = again.then(|| now + FAR_EVERY);
    }

    /// The hubs each of which is the only one in common with some peer.
    pub(crate) fn sole_hubs(&self) -> BTreeSet<HubKey> {
        let active = self.peers.active().into_iter().filter_map(|slot| self.peers.get(slot));
        let relayed = active.filter(|peer| peer.session && !peer.is_direct());
        relayed.filter_map(|peer| self.hubs.sole_of(peer.hubs())).collect()
    }

    /// At start: peers with which a session was up, or that answered directly, are tried at once.
    pub(crate) fn reach_remembered(&mut self, now: Instant) {
        if self.new_sessions() == NewSessions::Refused {
            return;
        }
        let known: Vec<PeerSlot> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_node() && (peer.open || !peer.good.is_empty()))
            .map(|(slot, _)| slot)
            .take(MAX_REMEMBERED)
            .collect();
        for slot in known {
            self.take_interest(slot, now);
            self.resolve_configured(slot, now);
            self.tell_direct(slot);
            if let Some(epoch) = self.peers.get(slot).and_then(|peer| peer.stated_epoch()) {
                self.out.worker(Command::SetPeerEpoch { peer: slot, epoch });
            }
            self.out.worker(Command::Connect { peer: slot });
            self.offer(slot, now);
        }
    }

    /// What this node's own addresses are to peers; told anew to those of interest when that changed.
    pub(crate) fn refresh_candidates(&mut self, now: Instant) {
        let rules = Rules { overlay: &self.overlay, hubs: &self.hubs };
        let reflexive = self.hubs.reflexive();
        let candidates = match self.transport {
            Transport::Auto | Transport::Udp => {
                admissible(reflexive.iter().take(MAX_REFLEXIVE).chain(&self.hosts).copied(), &rules)
            }
            Transport::Tcp => Vec::new(),
        };
        if candidates == self.candidates {
            return;
        }
        self.candidates = candidates;
        for slot in self.peers.active() {
            self.offer(slot, now);
        }
    }

    /// Tells the workers where a peer may be tried directly, where that is news.
    pub(crate) fn tell_direct(&mut self, slot: PeerSlot) {
        let rules = Rules { overlay: &self.overlay, hubs: &self.hubs };
        let Some(peer) = self.peers.get(slot) else { return };
        let endpoints = match (self.transport, peer.kind) {
            (Transport::Tcp, PeerKind::Node) => return,
            (Transport::Auto | Transport::Udp | Transport::Tcp, _) => admissible(peer.direct(), &rules),
        };
        if endpoints == peer.told {
            return;
        }
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.told.clone_from(&endpoints);
        }
        self.out.worker(Command::SetDirect { peer: slot, endpoints });
    }

    /// Resolves the roster's hint for a peer, where it is a name.
    fn resolve_configured(&mut self, slot: PeerSlot, now: Instant) {
        let Some(place) = self.peers.get(slot).and_then(|peer| peer.configured.clone()) else { return };
        if place.literal().is_some() {
            return;
        }
        let due = self.names.get(&place).is_none_or(|asked| now.duration_since(*asked) >= RESOLVE_EVERY);
        if due {
            self.names.insert(place.clone(), now);
            self.out.push(Output::Resolve { place });
        }
    }

    /// The addresses of a name that may be a peer's.
    pub(crate) fn resolved_peers(&mut self, place: &HostPort, endpoints: &[Endpoint]) {
        let slots: Vec<PeerSlot> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.configured.as_ref() == Some(place) && !endpoints.is_empty())
            .map(|(slot, _)| slot)
            .collect();
        for slot in slots {
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.configured_at = endpoints.iter().copied().take(MAX_CONFIGURED).collect();
            }
            self.tell_direct(slot);
        }
    }
}

/// Members in one `Watch`: far below the longest message.
const WATCH_AT_ONCE: usize = 1000;
/// Peers that are tried at start.
const MAX_REMEMBERED: usize = 64;
/// Reflexive candidates that are told: more tell of a NAT that gives every hub another.
const MAX_REFLEXIVE: usize = 3;
/// Addresses of one name that are tried.
const MAX_CONFIGURED: usize = 4;
/// A name is resolved again no sooner.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// How often hubs of peers are looked for, while there is such a peer; and how long after something that may have made one.
pub(crate) const FAR_EVERY: Duration = Duration::from_secs(5);
