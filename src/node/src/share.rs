//! Prefixes for which others can take an owner's place: who of them is to be used, and who is kept ready.
//!
//! ```text
//!   beside: the owners of 192.168.2.0/24, an HA group       around: 192.168.1.5/32 moved from the owner of 192.168.1.0/24
//!     b  away --> its flows go to b2                          dr  away --> home, until dr answers again
//! ```
//!
//! The workers say when a peer falls silent and when it answers again; it says itself when it lost its LAN (`lan`). Where
//! others can take the place of such a peer, the workers are given a snapshot in which it is away: flows go to the
//! others, at once. While flows go to one owner, all of them are kept warm: whoever takes over has a session, and whoever
//! is gone is found out before it is needed. So does the owner of a prefix keep those warm to whom a part of it moved,
//! for it must know when that falls back to it: no route leads there then. A gateway that comes and goes is held back
//! while others of its prefix can have its flows (`returns`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use flatlan_datapath::{Away, Command, KEPT_WARM, Owner};
use flatlan_types::{Name, PeerSlot, Prefix};

use crate::{Absence, Alarm, Interface, Listed, node::Node, output::Output};

/// Who can take the place of a peer, for one of its prefixes.
struct StandIn {
    prefix: Prefix,
    place: Place,
    owners: Vec<Owner>,
}

/// How they come to own it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// They own the same prefix, as an HA group.
    Beside,
    /// They own the one around it.
    Around,
}

impl Node {
    /// Nothing arrives at a peer.
    pub(crate) fn peer_silent(&mut self, slot: PeerSlot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.silent = true;
        if self.is_replaceable(slot) {
            self.returns.handle_silence(slot, now);
        }
        self.log_away(slot, "it does not answer");
        self.refresh_away(slot);
    }

    /// It answers again.
    pub(crate) fn peer_answers(&mut self, slot: PeerSlot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.silent = false;
        let was = self.snapshot.away.silent.contains(&slot);
        self.returns.handle_answer(slot, now);
        self.refresh_away(slot);
        if was {
            self.log_return(slot);
        }
    }

    /// Gateways that have answered for long enough have their flows back.
    pub(crate) fn returns_timeout(&mut self, now: Instant) {
        for slot in self.returns.handle_timeout(now) {
            let was = self.snapshot.away.withdrawn.contains_key(&slot);
            self.refresh_away(slot);
            if was {
                self.log_return(slot);
            }
        }
    }

    /// Packets go to a peer that is not the only one who may have them: all of those must be ready.
    pub(crate) fn shared_used(&mut self, slot: PeerSlot) {
        let mut owners = self.snapshot.sharing(slot);
        owners.insert(slot);
        let away = &self.snapshot.away;
        let replaced = away.silent.iter().chain(away.withdrawn.keys()).filter(|other| {
            let by = |stand_in: &StandIn| stand_in.owners.contains(&Owner::Peer(slot));
            self.stand_ins(**other).iter().any(by)
        });
        owners.extend(replaced.copied().collect::<Vec<_>>());
        for peer in owners {
            self.out.worker(Command::KeepWarm { peer });
        }
    }

    /// Peers whose flows others are to take.
    pub(crate) fn away(&self) -> Away {
        let mut away = Away::default();
        for slot in self.peers.absent() {
            self.place_away(slot, &mut away);
        }
        self.hold_back(&mut away);
        away
    }

    /// What `status` says of them.
    pub(crate) fn away_alarms(&self) -> Vec<Alarm> {
        let away = &self.snapshot.away;
        let mut alarms = Vec::new();
        for slot in away.silent.iter().chain(away.withdrawn.keys()).copied().collect::<BTreeSet<_>>() {
            let Some(peer) = self.peers.get(slot) else { continue };
            let why = match (peer.silent, peer.lan.is_lost()) {
                (true, _) => Absence::Silent,
                (false, true) => Absence::Lan(peer.lan.lack()),
                (false, false) => Absence::Unsteady,
            };
            let mut fallen: BTreeMap<Vec<Owner>, Vec<Prefix>> = BTreeMap::new();
            let mut beside = false;
            for stand_in in self.stand_ins(slot) {
                if away.can(Owner::Peer(slot), stand_in.prefix.ip()) {
                    continue;
                }
                match stand_in.place {
                    Place::Beside => beside = true,
                    Place::Around => fallen.entry(stand_in.owners).or_default().push(stand_in.prefix),
                }
            }
            if beside {
                alarms.push(match why {
                    Absence::Silent => Alarm::Silent { gateway: peer.name.clone() },
                    Absence::Lan(lack) => Alarm::Withdrawn { gateway: peer.name.clone(), lack },
                    Absence::Unsteady => Alarm::Unsteady { gateway: peer.name.clone() },
                });
            }
            alarms.extend(fallen.into_iter().map(|(owners, prefixes)| Alarm::Fallback {
                prefixes: Listed(prefixes),
                gateway: peer.name.clone(),
                why,
                to: Listed(owners.iter().filter_map(|owner| self.name_of(*owner)).collect()),
            }));
        }
        alarms
    }

    /// Whether others can take a peer's place, for anything that it owns.
    pub(crate) fn is_replaceable(&self, slot: PeerSlot) -> bool {
        !self.stand_ins(slot).is_empty()
    }

    /// Whether somebody else carries a prefix of this node too, or the one around it.
    pub(crate) fn is_carried_by_others(&self, prefix: Prefix) -> bool {
        self.overlay.owners.levels_of(prefix).flatten().any(|owner| *owner != Owner::Me)
    }

    /// Logs that a peer is away, where that means something.
    pub(crate) fn log_away(&self, slot: PeerSlot, reason: &'static str) {
        let Some(peer) = self.peers.get(slot) else { return };
        let stand_ins = self.stand_ins(slot);
        if stand_ins.iter().any(|stand_in| stand_in.place == Place::Beside) {
            tracing::warn!(peer = %peer.name, reason, "a gateway is passed over: its flows go to the others of its prefixes");
        }
        let fallen = stand_ins.iter().filter(|stand_in| stand_in.place == Place::Around);
        let fallen: Vec<Prefix> = fallen.map(|stand_in| stand_in.prefix).collect();
        if !fallen.is_empty() {
            let vip = Listed(fallen);
            tracing::warn!(peer = %peer.name, %vip, reason, "prefixes fall back to the owner of those around them");
        }
    }

    /// Gives the workers another snapshot where this peer is away and was not, or the other way round.
    pub(crate) fn refresh_away(&mut self, slot: PeerSlot) {
        self.peers.note_absence(slot);
        let mut away = self.snapshot.away.clone();
        // who is held back depends on the others
        for slot in self.returns.held().chain([slot]) {
            self.place_away(slot, &mut away);
        }
        self.hold_back(&mut away);
        if away == self.snapshot.away {
            return;
        }
        if !self.wards.is_empty() {
            self.refresh_interface(&away);
        }
        self.generation += 1;
        let mut snapshot = (*self.snapshot).clone();
        (snapshot.generation, snapshot.away) = (self.generation, away);
        self.publish(snapshot);
    }

    /// An interface without routes to what is on this node's own LAN while its owners are away.
    pub(crate) fn without_fallen(&self, mut interface: Interface, away: &Away) -> Interface {
        let Interface { routes, served, .. } = &mut interface;
        routes.retain(|prefix| !moved_from(*prefix, served) || !self.falls_to_me(*prefix, away));
        interface
    }

    /// Whose silence this node must notice by itself: owners of parts of what it carries.
    pub(crate) fn set_wards(&mut self, interface: Option<&Interface>, now: Instant) {
        let moved = interface.into_iter().flat_map(|interface| {
            interface.routes.iter().filter(move |prefix| moved_from(**prefix, &interface.served))
        });
        let owners = moved.filter_map(|prefix| self.overlay.owners.levels_of(*prefix).next()).flatten();
        let wards = owners.filter_map(|owner| match owner {
            Owner::Peer(slot) => Some(*slot),
            Owner::Me => None,
        });
        self.wards = wards.collect();
        self.wards_at = (!self.wards.is_empty()).then_some(now);
    }

    /// Keeps them warm.
    pub(crate) fn wards_timeout(&mut self, now: Instant) {
        if self.wards_at.is_some_and(|at| at <= now) {
            self.wards_at = Some(now + WARM_EVERY);
            for peer in self.wards.iter().copied() {
                self.out.worker(Command::KeepWarm { peer });
            }
        }
    }

    /// Says of a peer whether others are to take its flows.
    fn place_away(&self, slot: PeerSlot, away: &mut Away) {
        away.silent.remove(&slot);
        away.withdrawn.remove(&slot);
        let Some(peer) = self.peers.get(slot).filter(|peer| peer.member && peer.is_absent()) else { return };
        if !self.is_replaceable(slot) {
            return;
        }
        if peer.silent {
            away.silent.insert(slot);
        }
        if peer.lan.is_lost() {
            away.withdrawn.insert(slot, peer.lan.prefixes());
        }
    }

    /// Keeps from those that come and go what another one beside them can have.
    fn hold_back(&self, away: &mut Away) {
        for slot in self.returns.held() {
            let Some(peer) = self.peers.get(slot).filter(|peer| peer.member && !peer.silent) else { continue };
            let able = |stand_in: &StandIn| {
                stand_in.place == Place::Beside
                    && stand_in.owners.iter().any(|owner| away.can(*owner, stand_in.prefix.ip()))
            };
            let held = self.stand_ins(slot).into_iter().filter(able).map(|stand_in| stand_in.prefix);
            // of these the whole group has every part: nothing in them is this one's alone
            let held: Vec<Prefix> = held.collect();
            if !held.is_empty() {
                let lost = peer.lan.prefixes();
                away.withdrawn.insert(slot, held.iter().chain(&*lost).copied().collect());
            }
        }
    }

    fn log_return(&self, slot: PeerSlot) {
        let Some(peer) = self.peers.get(slot).filter(|peer| !peer.lan.is_lost()) else { return };
        if self.snapshot.away.withdrawn.contains_key(&slot) {
            tracing::info!(peer = %peer.name, "a gateway that comes and goes answers again: its flows stay away for a while");
        } else {
            tracing::info!(peer = %peer.name, "a gateway answers again: it has its flows back");
        }
    }

    fn falls_to_me(&self, prefix: Prefix, away: &Away) -> bool {
        let mut levels = self.overlay.owners.levels_of(prefix);
        let able = levels.find(|owners| owners.iter().any(|owner| away.can(*owner, prefix.ip())));
        able.is_some_and(|owners| owners.contains(&Owner::Me))
    }

    fn refresh_interface(&mut self, away: &Away) {
        let Some(interface) = self.roster_interface() else { return };
        let interface = self.without_fallen(interface, away);
        if Some(&interface) != self.interface.as_ref() {
            self.out.push(Output::Interface(interface.clone()));
            self.interface = Some(interface);
        }
    }

    /// Who can take a peer's place, for each of its prefixes for which somebody can.
    fn stand_ins(&self, slot: PeerSlot) -> Vec<StandIn> {
        let id = self.peers.get(slot).filter(|peer| peer.is_node()).map(|peer| peer.id);
        let roster = self.applied.as_ref().map(|(roster, _)| roster);
        let member = roster.zip(id).and_then(|(roster, id)| roster.member(roster.by_id(&id)?));
        let stand_in = |prefix: Prefix| {
            let levels = self.overlay.owners.levels_of(prefix);
            let others = |owners: &[Owner]| -> Vec<Owner> {
                owners.iter().copied().filter(|owner| *owner != Owner::Peer(slot)).collect()
            };
            let mut levels = levels.map(others).enumerate().filter(|(_, owners)| !owners.is_empty());
            let (level, owners) = levels.next()?;
            Some(StandIn { prefix, place: if level == 0 { Place::Beside } else { Place::Around }, owners })
        };
        member.into_iter().flat_map(|member| member.routes()).filter_map(stand_in).collect()
    }

    fn name_of(&self, owner: Owner) -> Option<Name> {
        match owner {
            Owner::Me => self.interface.as_ref().map(|interface| interface.name.clone()),
            Owner::Peer(slot) => self.peers.get(slot).map(|peer| peer.name.clone()),
        }
    }
}

/// Whether a prefix is a part of what is served here, and not all of it.
fn moved_from(prefix: Prefix, served: &[Prefix]) -> bool {
    served.iter().any(|served| prefix.lies_in(*served) && prefix.length() > served.length())
}

/// How often those are kept warm of whom this node must know.
const WARM_EVERY: Duration = Duration::from_secs(KEPT_WARM.as_secs() / 3);
