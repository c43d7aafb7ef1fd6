//! What a roster means: who is a peer, which hubs there are, what the interface is like.

use std::{sync::Arc, time::Instant};

use flatlan_datapath::{Owner, Owners, PeerInfo, PeerKeys, Snapshot};
use flatlan_relay::PathReason;
use flatlan_roster::{Member, MemberIndex, VerifiedRoster, site_prefix};
use flatlan_types::{PeerSlot, Prefix};

use crate::{
    Fatal, Output,
    hubs::{Context, ListedHub},
    node::{Node, context},
    output::Interface,
    peers::PeerKind,
};

impl Node {
    /// Takes the keeper's current roster into use.
    pub(crate) fn apply_roster(&mut self, now: Instant) {
        let Some(held) = self.keeper.current().cloned() else { return };
        let roster = &*held.roster;
        let was_member = self.interface.is_some();
        let me = roster.by_id(&self.me.keys.id);
        self.expiry = roster.network().expiry;
        self.fruitless.clear();
        let peers = self.list_peers(roster, me);
        let gone: Vec<PeerSlot> = self.peers.iter().filter(|(_, peer)| !peer.member).map(|(slot, _)| slot).collect();
        for slot in gone {
            self.relays.remove_peer(slot, PathReason::NotMember, &self.hubs, &mut self.out);
            self.peers.forget(slot);
        }
        let table = roster.owner_table(me);
        let owners = self.owners(roster, me);
        self.overlay.ranges = vec![roster.network().range, site_prefix(&self.me.network)];
        self.overlay.owners = table;
        self.overlay.me = me;
        self.overlay.find_near(&self.hosts);
        let mine = me.and_then(|me| roster.member(me));
        let interface = mine.map(|mine| interface(roster, mine));
        if let Some(interface) = interface.clone().filter(|interface| Some(interface) != self.interface.as_ref()) {
            self.out.push(Output::Interface(interface));
        }
        self.interface = interface;
        self.generation += 1;
        let own = mine.map(|mine| mine.ips.clone()).unwrap_or_default();
        let peers = if mine.is_some() { peers } else { Vec::new() };
        let snapshot = Snapshot::new(self.generation, &self.me.network, peers, owners, own);
        self.out.push(Output::Snapshot(Arc::new(snapshot)));
        tracing::debug!(roster = held.summary.serial, "roster applied");
        let hubs: Vec<ListedHub> = roster
            .hubs()
            .iter()
            .map(|hub| ListedHub {
                key: hub.key,
                name: hub.name.clone(),
                tls: hub.tls.clone(),
                udp: hub.udp.clone(),
                weight: hub.weight,
            })
            .collect();
        self.hubs.set_listed(&hubs, &mut context!(self, now));
        if mine.is_none() && was_member {
            let serial = held.summary.serial;
            tracing::error!(roster = serial, "this node was removed from the network");
            self.out.push(Output::Fatal(Fatal::Removed { serial }));
            self.die(now);
            return;
        }
        self.tell_everybody(now);
        self.refresh_candidates(now);
        self.hubs.handle_timeout(&mut context!(self, now));
    }

    /// Gives every member its slot, and notes who is none any more.
    fn list_peers(&mut self, roster: &VerifiedRoster, me: Option<MemberIndex>) -> Vec<(PeerSlot, PeerInfo)> {
        for (_, peer) in self.peers.iter_mut() {
            peer.member = false;
        }
        let mut listed = Vec::new();
        for (index, member) in (0..).map(MemberIndex).zip(roster.members()) {
            let kind = match &member.record.stock {
                Some(stock) if terminated_here(roster, me, &stock.via) => PeerKind::Stock,
                Some(_) => continue,
                None => PeerKind::Node,
            };
            if Some(index) == me {
                continue;
            }
            let slot = self.peers.ensure(member.keys.id, member.name(), kind);
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.member = true;
                peer.kind = kind;
                peer.name = member.name().clone();
                if peer.configured != member.record.endpoint {
                    peer.configured = member.record.endpoint.clone();
                    peer.configured_at =
                        peer.configured.as_ref().and_then(|place| place.literal()).into_iter().collect();
                }
            }
            let keys = match kind {
                PeerKind::Node => PeerKeys::Node(member.keys),
                PeerKind::Stock => PeerKeys::Stock(member.keys.session),
            };
            listed.push((slot, PeerInfo { name: member.name().clone(), keys, psk: None }));
        }
        listed
    }

    /// Who owns what, as the workers look it up.
    fn owners(&self, roster: &VerifiedRoster, me: Option<MemberIndex>) -> Owners {
        let mut owners = Owners::default();
        let owner = |index: MemberIndex| {
            if Some(index) == me {
                return Some(Owner::Me);
            }
            Some(Owner::Peer(self.peers.slot(&roster.member(index)?.keys.id)?))
        };
        // the last to be inserted owns a prefix that several have: the first of them, or this node
        for (index, member) in roster.members().iter().enumerate().rev().filter_map(indexed) {
            let via = member.record.stock.as_ref().and_then(|stock| roster.by_name(&stock.via));
            let by = via.filter(|_| via != me).unwrap_or(index);
            let Some(owner) = owner(by) else { continue };
            for prefix in member.prefixes() {
                owners.insert(prefix, owner);
            }
        }
        for prefix in me.and_then(|me| roster.member(me)).into_iter().flat_map(Member::prefixes) {
            owners.insert(prefix, Owner::Me);
        }
        owners
    }
}

fn indexed((at, member): (usize, &Member)) -> Option<(MemberIndex, &Member)> {
    Some((MemberIndex(u32::try_from(at).ok()?), member))
}

fn terminated_here(roster: &VerifiedRoster, me: Option<MemberIndex>, via: &flatlan_types::Name) -> bool {
    me.is_some() && roster.by_name(via) == me
}

fn interface(roster: &VerifiedRoster, mine: &Member) -> Interface {
    let network = roster.network();
    let wide = [network.range, site_prefix(roster.network_id())];
    let served: Vec<Prefix> = mine.routes().collect();
    let others = roster.members().iter().filter(|member| member.keys != mine.keys);
    let mut routes: Vec<Prefix> = others
        .flat_map(Member::prefixes)
        .filter(|prefix| !wide.iter().any(|wide| wide.contains(prefix.ip()) && wide.length() <= prefix.length()))
        .filter(|prefix| !served.contains(prefix))
        .collect();
    routes.extend(wide);
    routes.sort();
    routes.dedup();
    Interface {
        network: network.name.clone(),
        name: mine.name().clone(),
        ips: mine.ips.clone(),
        range: network.range,
        routes,
        served,
        mtu: network.mtu,
    }
}
