//! Prefixes with several owners: who of them is to be used, and who is kept ready.
//!
//! The workers say when a peer falls silent and when it answers again. Where that peer shares a prefix, the workers
//! are given a snapshot in which it is away: flows go to the others, at once. While flows go to one owner, all of them
//! are kept warm: whoever takes over has a session, and whoever is gone is found out before it is needed.

use std::collections::BTreeSet;

use flatlan_datapath::{Command, Snapshot};
use flatlan_types::PeerSlot;

use crate::{Alarm, node::Node};

impl Node {
    /// Nothing arrives at a peer.
    pub(crate) fn peer_silent(&mut self, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.silent = true;
        if !self.snapshot.sharing(slot).is_empty() {
            tracing::warn!(peer = %peer.name, "a gateway does not answer: its flows go to the others of its prefixes");
        }
        self.refresh_away();
    }

    /// It answers again.
    pub(crate) fn peer_answers(&mut self, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.silent = false;
        if self.snapshot.away.contains(&slot) {
            tracing::info!(peer = %peer.name, "a gateway answers again: it has its flows back");
        }
        self.refresh_away();
    }

    /// Packets go to a peer that shares a prefix: every one of its owners must be ready for them.
    pub(crate) fn shared_used(&mut self, slot: PeerSlot) {
        let owners = self.snapshot.sharing(slot);
        for peer in owners.into_iter().chain([slot]) {
            self.out.worker(Command::KeepWarm { peer });
        }
    }

    /// Peers whose flows other owners of their prefixes are to take.
    pub(crate) fn away(&self, snapshot: &Snapshot) -> BTreeSet<PeerSlot> {
        let silent = self.peers.iter().filter(|(_, peer)| peer.member && peer.silent);
        silent.map(|(slot, _)| slot).filter(|slot| !snapshot.sharing(*slot).is_empty()).collect()
    }

    /// What `status` says of them.
    pub(crate) fn away_alarms(&self) -> impl Iterator<Item = Alarm> {
        let away = self.snapshot.away.iter().filter_map(|slot| self.peers.get(*slot));
        away.map(|peer| Alarm::Silent { gateway: peer.name.clone() })
    }

    fn refresh_away(&mut self) {
        let away = self.away(&self.snapshot);
        if away == self.snapshot.away {
            return;
        }
        self.generation += 1;
        let mut snapshot = (*self.snapshot).clone();
        (snapshot.generation, snapshot.away) = (self.generation, away);
        self.publish(snapshot);
    }
}
