//! Questions about what nodes and hubs think of each other.

use std::time::Instant;

use flatlan_path::PathKind;
use flatlan_types::PeerSlot;

use crate::{admin::hub_secret, node_site::Move, sim::Sim};

impl Sim {
    /// The path that carries the packets of one node to another.
    pub fn path(&self, from: &str, to: &str) -> Option<PathKind> {
        let (run, slot) = self.run_and_slot(from, to)?;
        run.worker.report(self.now()).into_iter().find(|report| report.peer == slot)?.path
    }

    /// The first hub on that path.
    pub fn hub_in_use(&self, from: &str, to: &str) -> Option<String> {
        let slot = self.path(from, to)?.hub()?;
        let (run, _) = self.run_and_slot(from, to)?;
        let key = run.node.status().hubs.into_iter().find(|hub| hub.slot == slot)?.key;
        let number = (0..self.hubs.len()).find(|n| hub_secret(*n).public() == key)?;
        Some(self.name(crate::party::Party::Hub(number)))
    }

    /// How often a lane to a peer took another path since then.
    pub fn moves(&self, from: &str, to: &str, since: Instant) -> Vec<Move> {
        let Some((_, slot)) = self.run_and_slot(from, to) else { return Vec::new() };
        let site = &self.nodes[self.node_number(from)];
        site.moves.iter().filter(|moved| moved.peer == slot && moved.at >= since).copied().collect()
    }

    /// Serial of the roster that a node uses; zero where it has none.
    pub fn serial(&self, node: &str) -> u64 {
        self.nodes[self.node_number(node)].run.as_ref().map_or(0, |run| run.serial)
    }

    /// Whether a node is attached to a hub, or has a direct path, and is a member.
    pub fn is_up(&self, node: &str) -> bool {
        self.nodes[self.node_number(node)].run.as_ref().is_some_and(|run| run.up)
    }

    /// Claims that a node holds beside its roster.
    pub fn claims(&self, node: &str) -> u32 {
        let run = self.nodes[self.node_number(node)].run.as_ref();
        run.map_or(0, |run| run.node.status().network.claims)
    }

    /// Serial of the first network's newest roster.
    pub fn newest(&self) -> u64 {
        self.admins.first().map_or(0, crate::admin::Admin::serial)
    }

    fn run_and_slot(&self, of: &str, peer: &str) -> Option<(&crate::node_site::Run, PeerSlot)> {
        let run = self.nodes[self.node_number(of)].run.as_ref()?;
        let name = format!("n{}", self.nodes[self.node_number(peer)].number);
        let status = run.node.status();
        let slot = status.peers.iter().find(|peer| peer.name.as_str() == name)?.slot?;
        Some((run, slot))
    }
}
