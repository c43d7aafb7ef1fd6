//! What a roster means: who is a peer, which hubs there are, what the interface is like.
//!
//! Where the roster shares members with the one before, only what differs is looked at: the others' slots, rows of
//! the snapshot and addresses stay as they are.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use flatlan_datapath::{NewSessions, Owner, PeerInfo, PeerKeys, Snapshot};
use flatlan_relay::PathReason;
use flatlan_roster::{Expiry, Freshness, Member, MemberIndex, VerifiedRoster, site_prefix};
use flatlan_types::{PeerSlot, Prefix, UnixTime};

use crate::{
    Fatal, Output,
    hubs::{Context, ListedHub},
    node::{Node, context},
    output::Interface,
    peers::PeerKind,
};

impl Node {
    /// Takes the keeper's current roster into use.
    pub(crate) fn apply_roster(&mut self, now: Instant, unix: UnixTime) {
        let Some(held) = self.keeper.current().cloned() else { return };
        let roster = &*held.roster;
        let was_member = self.interface.is_some();
        let me = roster.by_id(&self.me.keys.id);
        self.note_freshness(unix);
        self.fruitless.clear();
        let before = self.applied.take();
        self.applied = me.map(|me| (Arc::clone(&held.roster), me));
        let before = before.filter(|(_, place)| Some(*place) == me);
        let changed = before.and_then(|(before, _)| Some((roster.changed_since(&before)?, before)));
        let places = match &changed {
            Some((changed, before)) => Places::Changed { changed, before },
            None => Places::All,
        };
        let (peers, gone) = self.list_peers(roster, me, places);
        for slot in gone.iter().copied() {
            self.relays.remove_peer(slot, PathReason::NotMember, &self.hubs, &mut self.out);
            self.peers.forget(slot);
        }
        self.relays.ask_waiting(&self.hubs, now, &mut self.out);
        let named = |at: MemberIndex| self.named.get(at.index()).copied().flatten();
        let owners = match &changed {
            Some((changed, before)) => {
                let mut owners = self.overlay.owners.clone();
                roster.update_owners(&mut owners, before, changed, me, named);
                owners
            }
            None => roster.owners(me, named),
        };
        self.overlay.ranges = vec![roster.network().range, site_prefix(&self.me.network)];
        self.overlay.owners = owners.clone();
        self.overlay.find_near(&self.hosts);
        let mine = me.and_then(|me| Some((me, roster.member(me)?)));
        let away = self.away();
        let interface = mine.map(|(me, mine)| interface(roster, me, mine));
        self.set_wards(interface.as_ref(), now);
        let interface = interface.map(|interface| self.without_fallen(interface, &away));
        let mine = mine.map(|(_, mine)| mine);
        if let Some(interface) = interface.clone().filter(|interface| Some(interface) != self.interface.as_ref()) {
            self.out.push(Output::Interface(interface));
        }
        self.interface = interface;
        self.generation += 1;
        let own = mine.map(|mine| mine.ips.clone()).unwrap_or_default();
        let mut snapshot = match &changed {
            Some(_) => {
                let mut snapshot = (*self.snapshot).clone();
                for slot in gone {
                    snapshot.set_peer(&self.me.network, slot, None);
                }
                for (slot, info) in peers {
                    snapshot.set_peer(&self.me.network, slot, Some(info));
                }
                snapshot.generation = self.generation;
                snapshot.set_owners(owners, own);
                snapshot
            }
            None => {
                let peers = if mine.is_some() { peers } else { Vec::new() };
                Snapshot::new(self.generation, &self.me.network, peers, owners, own)
            }
        };
        snapshot.new_sessions = self.new_sessions();
        snapshot.away = away;
        self.publish(snapshot);
        tracing::debug!(roster = held.summary.serial, "roster applied");
        let hubs: Vec<ListedHub> = roster
            .hubs()
            .iter()
            .map(|hub| ListedHub {
                key: hub.key,
                name: hub.name.clone(),
                tls: hub.tls.clone(),
                udp: hub.udp.clone(),
                region: hub.region.clone(),
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

    /// How old the roster is, and what follows for new sessions.
    pub(crate) fn check_freshness(&mut self, unix: UnixTime) {
        self.note_freshness(unix);
        let verdict = self.new_sessions();
        if self.snapshot.generation > 0 && self.snapshot.new_sessions != verdict {
            self.generation += 1;
            let mut snapshot = (*self.snapshot).clone();
            snapshot.generation = self.generation;
            snapshot.new_sessions = verdict;
            self.publish(snapshot);
        }
    }

    /// Whether sessions may be begun under this roster at its age.
    pub(crate) fn new_sessions(&self) -> NewSessions {
        let expiry = self.keeper.current().map(|held| held.roster.network().expiry);
        match (self.freshness, expiry) {
            (Freshness::Expired { .. }, Some(Expiry::RefuseNew)) => NewSessions::Refused,
            (Freshness::Expired { .. }, Some(Expiry::Warn) | None) => NewSessions::Allowed,
            (Freshness::Fresh | Freshness::Aging { .. }, _) => NewSessions::Allowed,
        }
    }

    fn note_freshness(&mut self, unix: UnixTime) {
        let Some(held) = self.keeper.current() else { return };
        let fresh = held.roster.freshness(unix);
        if std::mem::discriminant(&fresh) != std::mem::discriminant(&self.freshness) {
            match fresh {
                Freshness::Aging { .. } => {
                    tracing::warn!(roster = held.summary.serial, reason = %fresh, "the roster ages")
                }
                Freshness::Expired { .. } => {
                    tracing::error!(roster = held.summary.serial, reason = %fresh, "the roster expired")
                }
                Freshness::Fresh => {}
            }
        }
        self.freshness = fresh;
    }

    pub(crate) fn publish(&mut self, snapshot: Snapshot) {
        self.snapshot = Arc::new(snapshot);
        self.out.push(Output::Snapshot(Arc::clone(&self.snapshot)));
    }

    /// Gives the members at these places their slots; those, and who is a member no more.
    fn list_peers(
        &mut self,
        roster: &VerifiedRoster,
        me: Option<MemberIndex>,
        places: Places<'_>,
    ) -> (Vec<(PeerSlot, PeerInfo)>, Vec<PeerSlot>) {
        let left: Vec<PeerSlot> = match &places {
            Places::All => self.peers.iter().map(|(slot, _)| slot).collect(),
            Places::Changed { changed, before } => {
                let ids = changed.iter().filter_map(|at| Some(before.member(*at)?.keys.id));
                ids.filter_map(|id| self.peers.slot(&id)).collect()
            }
        };
        for slot in &left {
            if let Some(peer) = self.peers.get_mut(*slot) {
                peer.member = false;
            }
        }
        match &places {
            Places::All => {
                self.peers.expect(roster.records().len());
                self.named.clear();
            }
            Places::Changed { changed, .. } => changed.iter().for_each(|at| self.set_named(*at, None)),
        }
        let mut listed = Vec::new();
        let members: Box<dyn Iterator<Item = (MemberIndex, &Member)>> = match places {
            Places::All => Box::new(roster.members_with_places()),
            Places::Changed { changed, .. } => {
                Box::new(changed.iter().filter_map(|at| Some((*at, roster.member(*at)?))))
            }
        };
        for (index, member) in members {
            let kind = match &member.record.stock {
                Some(stock) if terminated_here(roster, me, &stock.via) => PeerKind::Stock,
                Some(_) => continue,
                None => PeerKind::Node,
            };
            if Some(index) == me {
                self.set_named(index, Some(Owner::Me));
                continue;
            }
            let slot = self.peers.ensure(member.keys.id, member.name(), kind);
            self.set_named(index, Some(Owner::Peer(slot)));
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
            let priority = member.record.priority.unwrap_or(0);
            listed.push((slot, PeerInfo { name: member.name().clone(), keys, psk: None, priority }));
        }
        let gone = left.into_iter().filter(|slot| self.peers.get(*slot).is_some_and(|peer| !peer.member)).collect();
        (listed, gone)
    }

    /// The interface as the roster in use wants it.
    pub(crate) fn roster_interface(&self) -> Option<Interface> {
        let (roster, me) = self.applied.as_ref()?;
        Some(interface(roster, *me, roster.member(*me)?))
    }

    fn set_named(&mut self, at: MemberIndex, name: Option<Owner>) {
        if self.named.len() <= at.index() {
            self.named.resize(at.index() + 1, None);
        }
        if let Some(place) = self.named.get_mut(at.index()) {
            *place = name;
        }
    }
}

/// Whose slots are to be looked at.
enum Places<'a> {
    All,
    /// Of a roster that shares the others with this one.
    Changed {
        changed: &'a BTreeSet<MemberIndex>,
        before: &'a VerifiedRoster,
    },
}

fn terminated_here(roster: &VerifiedRoster, me: Option<MemberIndex>, via: &flatlan_types::Name) -> bool {
    me.is_some() && roster.by_name(via) == me
}

fn interface(roster: &VerifiedRoster, me: MemberIndex, mine: &Member) -> Interface {
    let network = roster.network();
    let wide = [network.range, site_prefix(roster.network_id())];
    let served: Vec<Prefix> = mine.routes().collect();
    let others = roster.carried().filter(|(_, at)| *at != me && roster.member(*at).is_some());
    let mut routes: Vec<Prefix> = others.map(|(prefix, _)| prefix).filter(|prefix| !served.contains(prefix)).collect();
    routes.extend(wide);
    routes.sort();
    routes.dedup();
    let beside = match &mine.record.ha {
        None => Vec::new(),
        Some(_) => {
            let of_group = |at: MemberIndex| roster.member(at).is_some_and(|other| other.record.ha == mine.record.ha);
            let others = roster.carried().filter(|(_, at)| *at != me && of_group(*at));
            others.map(|(prefix, _)| prefix).filter(|prefix| !served.contains(prefix)).collect()
        }
    };
    Interface {
        network: network.name.clone(),
        name: mine.name().clone(),
        ips: mine.ips.clone(),
        range: network.range,
        routes,
        served,
        beside,
        moved: mine.record.moved.clone(),
        mtu: network.mtu,
    }
}
