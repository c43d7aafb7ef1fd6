//! The machine: its state, its inputs and outputs, its timers, and the boot epoch.
//!
//! The other halves of `impl Node` are about one thing each: `membership` makes a roster's consequences, `reach` makes ways
//! to peers, `share` says which of several owners of a prefix are to be used and `returns` when one is to be used again,
//! `lan` withdraws prefixes of a LAN that is lost, `talk` speaks with peers and hubs about rosters and candidates.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{Command, Event, Owner, Snapshot};
use flatlan_relay::{ClaimsSummary, Control, PathReason, RefusedCode, auth::Exporter};
use flatlan_roster::{Freshness, MemberIndex, OwnerTable, VerifiedRoster};
use flatlan_types::{BootEpoch, Endpoint, HostPort, HubSlot, PeerSlot, UnixTime};

use crate::{
    Alarm, NetworkStatus, NodeConfig, NodeStatus, Output, PeerStatus, PersistToken, Persisted, SelfStatus, StreamId,
    Transport, Waiting,
    candidates::Forbidden,
    fetch::{HubFetch, PeerFetch, Told},
    hubs::{Context, HubEvent, Hubs},
    identity::Identity,
    lan::OwnLan,
    output::{Interface, Outbox},
    peers::Peers,
    persist,
    reach::FAR_EVERY,
    relays::{Asked, Relays},
    returns::Returns,
    rng::Rng,
    roster::{Keeper, Offered, Persisted as Written, Useless},
};

/// What `hubs` needs beside itself, from the fields that it does not borrow.
macro_rules! context {
    ($node:expr, $now:expr) => {
        Context { me: &mut $node.me, rng: &mut $node.rng, out: &mut $node.out, now: $now }
    };
}
pub(crate) use context;

/// The control machine of one node. *Mutate, drain, mutate*: after every input, [`Node::poll_output`]
/// until `None`.
pub struct Node {
    pub(crate) me: Identity,
    pub(crate) transport: Transport,
    pub(crate) rng: Rng,
    pub(crate) out: Outbox,
    pub(crate) hubs: Hubs,
    pub(crate) keeper: Keeper,
    pub(crate) relays: Relays,
    pub(crate) peers: Peers,
    /// What the overlay owns, as candidates are judged by it.
    pub(crate) overlay: Overlay,
    /// Local addresses with our port.
    pub(crate) hosts: Vec<Endpoint>,
    /// Where peers may try us.
    pub(crate) candidates: Vec<Endpoint>,
    /// The newest head that each hub told of, while it is not ours.
    pub(crate) announced: BTreeMap<HubSlot, Told>,
    pub(crate) hub_fetches: BTreeMap<HubSlot, HubFetch>,
    pub(crate) peer_fetches: BTreeMap<PeerSlot, PeerFetch>,
    /// Head and claims for which that peer's roster brought nothing new.
    pub(crate) fruitless: Vec<(PeerSlot, [u8; 32], [u8; 32])>,
    pub(crate) interface: Option<Interface>,
    pub(crate) generation: u64,
    /// What the workers were given last.
    pub(crate) snapshot: Arc<Snapshot>,
    /// The roster that this was made of, and this node's own place in it.
    pub(crate) applied: Option<(Arc<VerifiedRoster>, MemberIndex)>,
    /// The workers' name of whoever stands at each place of that roster, where there is one.
    pub(crate) named: Vec<Option<Owner>>,
    /// Owners of parts of what this node carries, and when they are to be kept warm again.
    pub(crate) wards: BTreeSet<PeerSlot>,
    pub(crate) wards_at: Option<Instant>,
    /// Gateways that come and go.
    pub(crate) returns: Returns,
    /// What this node says of its own LAN.
    pub(crate) lan: OwnLan,
    /// Messages of peers that are none, or say what nobody may say.
    pub(crate) refused_messages: u64,
    pub(crate) names: BTreeMap<HostPort, Instant>,
    epoch: Epoch,
    disk: BTreeMap<PersistToken, &'static str>,
    pub(crate) alarms: Vec<Alarm>,
    refused: Option<RefusedCode>,
    /// When this node is to be called usable, although more hubs may come.
    up_at: Option<Instant>,
    /// That time has passed.
    up_waited: bool,
    life: Life,
    /// Peers changed since they were written, and when that is to be done.
    remember_at: Option<Instant>,
    remembered: Option<Instant>,
    fresh_at: Instant,
    /// When to look for hubs of peers with which there is none in common.
    pub(crate) far_at: Option<Instant>,
    pub(crate) freshness: Freshness,
}

/// How far this life has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Waiting,
    Usable,
    /// Removed from the network.
    Dead,
}

/// The rises of the boot epoch.
struct Epoch {
    started: Instant,
    rising: Option<Rising>,
    rises: u32,
    last: Option<Instant>,
}

/// An epoch on its way to disk: it is used only when it is there.
struct Rising {
    epoch: BootEpoch,
    write: Write,
}

enum Write {
    /// Under way.
    Sent(PersistToken),
    /// It failed; again at this time.
    Again(Instant),
}

/// Who owns what inside the overlay.
#[derive(Default)]
pub(crate) struct Overlay {
    pub(crate) ranges: Vec<flatlan_types::Prefix>,
    pub(crate) owners: OwnerTable<Owner>,
    /// Owners of prefixes in which this machine itself has an address: there, it is a neighbour.
    pub(crate) near: Vec<Owner>,
}

impl Node {
    /// A node with what the disk held. Nothing is dialled before the first drain.
    pub fn new(config: NodeConfig, persisted: Persisted, seed: u64, now: Instant, unix: UnixTime) -> Self {
        let NodeConfig { network, secret, epoch, bootstrap, transport, workers } = config;
        let me = Identity::new(secret, network, epoch);
        let Persisted { roster, ratchet, peers } = persisted;
        let roster = roster.map(Arc::new);
        let (keeper, wrong) = Keeper::load(network, roster.clone(), ratchet.as_deref());
        let remembered = peers.as_deref().map(persist::decode_peers);
        let remembered = match remembered {
            Some(Ok(peers)) => peers,
            Some(Err(error)) => {
                tracing::warn!(reason = %error, "remembered peers are of no use");
                Vec::new()
            }
            None => Vec::new(),
        };
        let relays = Relays::new(network, me.keys.id, workers);
        let mut node = Self {
            me,
            transport,
            rng: Rng::new(seed),
            out: Outbox::default(),
            hubs: Hubs::new(transport, &bootstrap, now),
            keeper,
            relays,
            peers: Peers::new(remembered),
            overlay: Overlay::default(),
            hosts: Vec::new(),
            candidates: Vec::new(),
            announced: BTreeMap::new(),
            hub_fetches: BTreeMap::new(),
            peer_fetches: BTreeMap::new(),
            fruitless: Vec::new(),
            interface: None,
            generation: 0,
            snapshot: Arc::default(),
            applied: None,
            named: Vec::new(),
            wards: BTreeSet::new(),
            wards_at: None,
            returns: Returns::default(),
            lan: OwnLan::default(),
            refused_messages: 0,
            names: BTreeMap::new(),
            epoch: Epoch { started: now, rising: None, rises: 0, last: None },
            disk: BTreeMap::new(),
            alarms: Vec::new(),
            refused: None,
            up_at: None,
            up_waited: false,
            life: Life::Waiting,
            remember_at: None,
            remembered: None,
            fresh_at: now,
            far_at: None,
            freshness: Freshness::Fresh,
        };
        if let Some(serial) = node.keeper.fork().map(|proof| proof.second().version().serial) {
            node.alarm(Alarm::Fork { serial });
        }
        node.keep_useless(&wrong, roster, ratchet);
        node.apply_roster(now, unix);
        node.reach_remembered(now);
        node.handle_timeout(now, unix);
        node
    }

    /// A dialled stream is up: TCP, TLS and WebSocket. The hub's hello comes as the first message.
    /// `remote` is the address that was reached; `None` behind a proxy.
    pub fn handle_opened(&mut self, stream: StreamId, exporter: [u8; 32], remote: Option<Endpoint>, now: Instant) {
        self.hubs.handle_opened(stream, Exporter(exporter), remote, now);
    }

    /// A message on a stream.
    pub fn handle_message(&mut self, stream: StreamId, bytes: &[u8], now: Instant, unix: UnixTime) {
        self.hubs.handle_message(stream, bytes, &mut context!(self, now));
        self.after_hubs(now, unix);
    }

    /// A stream ended, or could not be dialled.
    pub fn handle_closed(&mut self, stream: StreamId, now: Instant, unix: UnixTime) {
        self.hubs.handle_closed(stream, &mut context!(self, now));
        self.after_hubs(now, unix);
    }

    /// The addresses of a name; none where it has none or the question failed.
    pub fn handle_resolved(&mut self, place: &HostPort, endpoints: &[Endpoint], now: Instant) {
        self.hubs.handle_resolved(place, endpoints, &mut context!(self, now));
        self.resolved_peers(place, endpoints);
    }

    /// A worker's event. Where there are several workers, their events come here one after the other.
    pub fn handle_event(&mut self, event: Event, now: Instant, unix: UnixTime) {
        match event {
            Event::NeedPath { peer } => self.need_path(peer, now),
            Event::HubSilent { peer, hub } => {
                self.relays.renew(peer, |at| at == hub, &self.hubs, now, &mut self.out);
            }
            Event::Idle { peer } => self.idle(peer, now),
            Event::SessionUp { peer, .. } => self.session_up(peer, now),
            Event::PathChanged { peer, lane, path, was, reason } => {
                if let Some(peer) = self.peers.get_mut(peer) {
                    let direct = peer.is_direct();
                    peer.set_path(lane, path);
                    if direct && !peer.is_direct() {
                        self.far_at.get_or_insert(now + FAR_EVERY);
                    }
                }
                let name = self.peers.get(peer).map(|peer| peer.name.as_str()).unwrap_or_default();
                tracing::debug!(peer = name, %lane, path = show(path), was = show(was), ?reason, "path changed");
            }
            Event::LaneChanged { peer, lane, path, was, reason } => {
                let name = self.peers.get(peer).map(|peer| peer.name.as_str()).unwrap_or_default();
                tracing::debug!(peer = name, %lane, path = show(path), was = show(was), ?reason, "flows changed lane");
            }
            Event::LegUp { hub, reflexive, rtt } => {
                if self.hubs.handle_leg_up(hub, reflexive, rtt, &mut self.out) {
                    self.refresh_candidates(now);
                }
            }
            // a matter between workers
            Event::HubUsed { .. } => {}
            Event::LegDown { hub } => self.hubs.handle_leg_down(hub, &mut context!(self, now)),
            Event::PeerMessage { peer, ingress, bytes } => self.handle_peer_message(peer, ingress, &bytes, now, unix),
            Event::PeerEpoch { peer, epoch } => {
                if let Some(of) = self.peers.get_mut(peer).filter(|peer| peer.epoch < epoch) {
                    of.epoch = epoch;
                    self.remember_soon(now);
                    self.forget_lan(peer);
                }
            }
            Event::PeerSilent { peer } => self.peer_silent(peer, now),
            Event::PeerAnswers { peer } => self.peer_answers(peer, now),
            Event::SharedUsed { peer } => self.shared_used(peer),
            Event::StaleEpoch { peer } => self.tell_stale(peer, now),
            Event::DirectUp { peer, endpoint } => {
                if self.peers.get_mut(peer).is_some_and(|peer| peer.answered_at(endpoint)) {
                    self.remember_soon(now);
                }
            }
        }
        self.after_hubs(now, unix);
    }

    /// The local addresses at which our UDP port can be reached: at start and whenever they change.
    /// Whether every path starts over for that, as by [`Node::handle_network_changed`].
    pub fn handle_host_candidates(&mut self, hosts: Vec<Endpoint>, now: Instant, unix: UnixTime) -> bool {
        if hosts == self.hosts {
            return false;
        }
        let changed = !self.hosts.is_empty();
        self.hosts = hosts;
        self.overlay.find_near(&self.hosts);
        self.refresh_candidates(now);
        if changed {
            self.handle_network_changed(now, unix);
        }
        changed
    }

    /// The underlay changed (address, route, link): whatever is dead is to be found out now.
    pub fn handle_network_changed(&mut self, now: Instant, unix: UnixTime) {
        self.out.worker(Command::NetworkChanged);
        self.hubs.network_changed(&mut context!(self, now));
        self.after_hubs(now, unix);
    }

    /// A file was written, or could not be.
    pub fn handle_persisted(&mut self, token: PersistToken, result: PersistResult, now: Instant, unix: UnixTime) {
        if result == PersistResult::Failed {
            let file = self.disk.get(&token).copied().unwrap_or("roster");
            tracing::error!(reason = file, "the state directory cannot be written");
            self.alarm(Alarm::Disk { file: file.to_owned() });
        }
        self.disk.remove(&token);
        match self.keeper.handle_persisted(token) {
            Written::Applied => self.apply_roster(now, unix),
            Written::Nothing => {}
        }
        if let Some(rising) = self.epoch.rising.as_mut().filter(|rising| rising.write.is(token)) {
            let epoch = rising.epoch;
            match result {
                PersistResult::Written => {
                    self.epoch.rising = None;
                    self.use_epoch(epoch, now);
                }
                // used and then forgotten, it would be used again by the next life
                PersistResult::Failed => rising.write = Write::Again(now + WRITE_AGAIN),
            }
        }
        self.after_hubs(now, unix);
    }

    /// Time has come to what [`Node::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Instant, unix: UnixTime) {
        if self.life == Life::Dead {
            return;
        }
        if self.far_at.is_some_and(|at| at <= now) {
            self.find_far(now);
        }
        if self.hubs.is_surplus_due(now) {
            self.hubs.set_sole(self.sole_hubs());
            self.far_at.get_or_insert(now + FAR_EVERY);
        }
        self.hubs.handle_timeout(&mut context!(self, now));
        self.relays.handle_timeout(&self.hubs, now, &mut self.out);
        self.peers_timeout(now);
        self.wards_timeout(now);
        self.returns_timeout(now);
        self.lan_timeout(now);
        self.fetch_timeout(now);
        if self.remember_at.is_some_and(|at| at <= now) {
            self.remember(now);
        }
        if let Some(rising) = self.epoch.rising.as_ref().filter(|rising| rising.again().is_some_and(|at| at <= now)) {
            self.write_epoch(rising.epoch);
        }
        if self.up_at.is_some_and(|at| at <= now) {
            self.up_at = None;
            self.up_waited = true;
        }
        if self.fresh_at <= now {
            self.fresh_at = now + FRESH_EVERY;
            self.check_freshness(unix);
        }
        self.after_hubs(now, unix);
    }

    /// The node stops: what is worth keeping is written, and every hub is left.
    pub fn handle_shutdown(&mut self, now: Instant) {
        self.remember(now);
        self.hubs.detach_all(&mut context!(self, now));
        self.life = Life::Dead;
    }

    /// What is to be done, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop()
    }

    /// When [`Node::handle_timeout`] wants to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.life == Life::Dead {
            return None;
        }
        let epoch = self.epoch.rising.as_ref().and_then(Rising::again);
        let rest = [self.remember_at, self.up_at, self.far_at, Some(self.fresh_at), epoch, self.wards_at];
        let parts = [self.hubs.poll_timeout(), self.relays.poll_timeout(), self.returns.poll_timeout()];
        let all = parts.into_iter().chain(rest);
        all.flatten().chain(self.peers_next()).chain(self.lan_next()).chain(self.fetch_next()).min()
    }

    /// Everything at this moment.
    pub fn status(&self) -> NodeStatus {
        let roster = self.keeper.current().map(|held| &*held.roster);
        let mine = roster.and_then(|roster| roster.member(roster.by_id(&self.me.keys.id)?));
        let peer = |record: &flatlan_roster::MemberRecord| {
            let roster = roster?;
            if mine.is_some_and(|mine| *mine.name() == record.name) {
                return None;
            }
            let member = roster.by_name(&record.name).and_then(|index| roster.member(index));
            let slot = member.and_then(|member| self.peers.slot(&member.keys.id));
            let labels = slot.into_iter().flat_map(|slot| self.relays.labels(slot));
            Some(PeerStatus {
                slot,
                id: member.map(|member| member.keys.id),
                name: record.name.clone(),
                ips: member.map_or_else(|| record.ips.clone(), |member| member.ips.clone()),
                routes: record.routes.iter().chain(&record.moved).copied().collect(),
                withdrawn: slot
                    .and_then(|slot| self.peers.get(slot))
                    .map_or_else(Vec::new, |peer| peer.lan.prefixes().to_vec()),
                via: record.stock.as_ref().map(|stock| stock.via.clone()),
                relays: labels.map(|(hub, via)| (hub, via.to_vec())).collect(),
            })
        };
        let records = roster.into_iter().flat_map(|roster| roster.records().members());
        let mut alarms = self.alarms.clone();
        let refused = roster.into_iter().flat_map(|roster| roster.refused_claims());
        alarms.extend(refused.map(|claim| Alarm::Claim(Box::new(claim.clone()))));
        alarms.extend(self.lan_alarms());
        alarms.extend(self.away_alarms());
        if !matches!(self.freshness, Freshness::Fresh) {
            alarms.push(Alarm::Roster(self.freshness));
        }
        let (withdrawn, withdrawals) = self.lan_status();
        NodeStatus {
            network: NetworkStatus {
                id: self.me.network,
                name: roster.map(|roster| roster.network().name.clone()),
                roster: roster.map(|roster| roster.version()),
                expires: roster.map(|roster| roster.head().expires),
                claims: self.keeper.current().map_or(0, |held| held.summary.claims),
            },
            me: SelfStatus {
                id: self.me.keys.id,
                name: mine.map(|mine| mine.name().clone()),
                ips: mine.map(|mine| mine.ips.clone()).unwrap_or_default(),
                routes: mine.map(|mine| mine.routes().collect()).unwrap_or_default(),
                withdrawn,
                withdrawals,
                epoch: self.me.epoch,
                candidates: self.candidates.clone(),
            },
            hubs: self.hubs.status(),
            peers: records.filter_map(peer).collect(),
            alarms,
            refused_messages: self.refused_messages,
            waiting: self.waiting(),
        }
    }

    /// Why this node is of no use yet; `None`: it is.
    pub fn waiting(&self) -> Option<Waiting> {
        let Some(held) = self.keeper.current() else {
            return Some(match self.refused {
                Some(code) => Waiting::Refused(refusal(code)),
                None if self.hubs.attached_count() == 0 => Waiting::NoHub,
                None => Waiting::NoRoster,
            });
        };
        if held.roster.by_id(&self.me.keys.id).is_none() {
            return Some(Waiting::NotMember { serial: held.summary.serial });
        }
        match self.life {
            Life::Usable => None,
            Life::Waiting | Life::Dead => Some(match self.refused {
                Some(code) => Waiting::Refused(refusal(code)),
                None => Waiting::NoHub,
            }),
        }
    }

    // ---- private

    /// Acts on what the hubs' machine found, until there is nothing left.
    pub(crate) fn after_hubs(&mut self, now: Instant, unix: UnixTime) {
        while let Some(event) = self.hubs.poll_event() {
            match event {
                HubEvent::Attached { hub, head, claims } => self.on_attached(hub, head.as_deref(), claims, now),
                HubEvent::Leaving { hub } => self.relays.leave_hub(hub, &self.hubs, &mut self.out),
                HubEvent::Detached { hub } => self.on_detached(hub, now),
                HubEvent::Message { hub, message } => self.on_hub_message(hub, message, now),
                HubEvent::Read { bundle, stream } => {
                    let bundle = Arc::new(bundle);
                    let offered = self.keeper.offer(Arc::clone(&bundle), &mut self.out);
                    let ours = match (&offered, self.keeper.current()) {
                        // they do not know us, and what we hold is as new: they lack our claim, or the roster
                        (Offered::Nothing, Some(held)) if *held.bytes != *bundle => {
                            held.roster.by_id(&self.me.keys.id).map(|_| held.bytes.clone())
                        }
                        _ => None,
                    };
                    self.on_offered(offered);
                    match ours {
                        Some(bundle) => self.hubs.give_roster(stream, &bundle, &mut context!(self, now)),
                        None => self.hubs.end_reading(stream, &mut context!(self, now)),
                    }
                }
                HubEvent::Refused { code, presence } => self.on_refused(code, presence.as_deref(), now),
            }
        }
        self.check_up(unix);
    }

    fn on_attached(&mut self, hub: HubSlot, head: Option<&[u8]>, claims: ClaimsSummary, now: Instant) {
        self.refused = None;
        self.watch_at(hub);
        match head {
            Some(head) => self.on_head(hub, head, claims, now),
            None => self.tell_head(hub),
        }
        for slot in self.peers.active() {
            self.want_relays(slot, now);
        }
        if !self.up_waited {
            self.up_at.get_or_insert(now + UP_PATIENCE);
        }
    }

    fn on_detached(&mut self, hub: HubSlot, now: Instant) {
        self.relays.remove_hub(hub);
        self.announced.remove(&hub);
        self.hub_fetches.remove(&hub);
        // a peer that lost one of three hubs may have another in common with us
        for slot in self.peers.active() {
            self.want_relays(slot, now);
        }
        self.refresh_candidates(now);
    }

    fn on_hub_message(&mut self, hub: HubSlot, message: Control, now: Instant) {
        let Self { relays, hubs, peers, rng, out, .. } = self;
        #[expect(clippy::wildcard_enum_match_arm, reason = "what remains is said by nodes, or between hubs")]
        match message {
            Control::Head { network, head, claims } if network == self.me.network => {
                self.on_head(hub, &head, claims, now);
            }
            Control::GetRoster { network, offset } if network == self.me.network => self.serve_hub(hub, offset),
            Control::RosterPart { network, version, total, offset, bytes } if network == self.me.network => {
                self.on_part(hub, version, total, offset, &bytes, now);
            }
            Control::GetClaims { network, from } if network == self.me.network => self.serve_claims(hub, from),
            Control::Claims { network, claims, .. } if network == self.me.network => {
                let offered = self.keeper.offer_claims(claims.iter().map(|claim| claim.as_slice()), out);
                self.on_offered(offered);
            }
            Control::Presence { presence } => self.on_presence(&presence, now),
            Control::PathOpen(open) => {
                let peer = peers.member_slot(&open.from);
                relays.handle_open(&Asked { hub, open: &open, peer }, hubs, rng, now, out);
                if let Some(peer) = peer {
                    self.take_interest(peer, now);
                }
            }
            Control::PathOpened { request, label, via, .. } => {
                let opened = relays.handle_opened(hub, request, (label, via), hubs, now, out);
                relays.ask_next(hub, hubs, now, out);
                if let Some(peer) = opened {
                    self.offer(peer, now);
                }
            }
            Control::PathFailed { request, reason } => relays.handle_failed(hub, request, reason, hubs, now, out),
            Control::PathMoved { label, via } => relays.handle_moved(hub, label, via, hubs, out),
            Control::PathClose { label } => relays.handle_close(hub, label, out),
            Control::PathLost { label, reason } => relays.handle_lost(hub, label, reason, now, out),
            Control::LabelUnknown { label } => relays.handle_lost(hub, label, PathReason::NoRoute, now, out),
            Control::Absent { peer, hub: gone } => {
                let peer = peers.member_slot(&peer).and_then(|slot| peers.get_mut(slot));
                if let (Some(peer), Some(gone)) = (peer, gone) {
                    peer.absent(&gone);
                    self.far_at.get_or_insert(now + FAR_EVERY);
                }
            }
            _ => tracing::debug!(hub = %self.hubs.label(hub), "a hub says what is not for a node"),
        }
    }

    fn on_refused(&mut self, code: RefusedCode, presence: Option<&[u8]>, now: Instant) {
        self.refused = Some(code);
        if let Some(greater) = presence.and_then(|presence| self.me.greater_epoch(presence)) {
            self.refused = None;
            self.raise_epoch(greater, now);
        } else if code == RefusedCode::Replaced {
            self.refused = None;
        }
    }

    /// A greater epoch of this node's own key exists: this state was set back, or the key has a twin.
    pub(crate) fn raise_epoch(&mut self, greater: BootEpoch, now: Instant) {
        if self.epoch.rising.is_some() || greater < self.me.epoch {
            return;
        }
        let settled = |since: Instant| now.duration_since(since) >= SETTLED;
        let young = !settled(self.epoch.started);
        let in_use = settled(self.epoch.last.unwrap_or(self.epoch.started)) || (self.epoch.rises > 0 && !young);
        // somebody answers each rise with one of its own
        if in_use || self.epoch.rises + 1 >= FREE_RISES {
            tracing::error!("another machine uses this node's key: a clone?");
            self.alarm(Alarm::Clone);
        }
        let recent = self.epoch.last.is_some_and(|last| now.duration_since(last) < RISE_EVERY);
        if recent && self.epoch.rises >= FREE_RISES {
            // the other one has it for now
            let until = self.epoch.last.unwrap_or(now) + RISE_EVERY;
            self.hubs.hold_until(until);
            return;
        }
        let Some(next) = greater.0.checked_add(1).map(BootEpoch) else { return };
        self.epoch.rises += 1;
        self.epoch.last = Some(now);
        self.write_epoch(next);
    }

    fn write_epoch(&mut self, epoch: BootEpoch) {
        let token = self.out.persist(persist::EPOCH, persist::encode_epoch(epoch));
        self.disk.insert(token, persist::EPOCH);
        self.epoch.rising = Some(Rising { epoch, write: Write::Sent(token) });
    }

    fn use_epoch(&mut self, epoch: BootEpoch, now: Instant) {
        tracing::warn!(version = epoch.0, "this node's state was set back: it goes on under a greater boot epoch");
        self.me.set_epoch(epoch);
        self.out.worker(Command::SetEpoch { epoch });
        self.hubs.detach_all(&mut context!(self, now));
        self.hubs.dial_now(now);
        self.hubs.handle_timeout(&mut context!(self, now));
        for slot in self.peers.active() {
            self.offer(slot, now);
        }
    }

    /// Files that are of no use are set aside, before they are written anew.
    fn keep_useless(&mut self, wrong: &[Useless], roster: Option<Arc<Vec<u8>>>, ratchet: Option<Vec<u8>>) {
        let ratchet = ratchet.map(Arc::new);
        for useless @ Useless { file, .. } in wrong {
            tracing::warn!(reason = %useless, "a file of the state directory is of no use: it is set aside");
            let bytes = if *file == persist::RATCHET { &ratchet } else { &roster };
            let bytes = bytes.clone().unwrap_or_default();
            let aside = persist::set_aside(file, &bytes);
            self.out.note(&aside, bytes);
            self.alarm(Alarm::Damaged { file: (*file).to_owned(), aside });
            if *file == persist::RATCHET {
                self.keeper.renew_ratchet(&mut self.out);
            }
        }
    }

    /// No roster lists this node any more.
    pub(crate) fn die(&mut self, now: Instant) {
        self.hubs.detach_all(&mut context!(self, now));
        self.life = Life::Dead;
    }

    pub(crate) fn alarm(&mut self, alarm: Alarm) {
        if !self.alarms.contains(&alarm) {
            self.alarms.push(alarm);
        }
    }

    fn check_up(&mut self, unix: UnixTime) {
        let member = self.interface.is_some();
        if self.life != Life::Waiting || !member {
            return;
        }
        let hubs = self.hubs.attached_count();
        let enough = hubs > 0 && (hubs >= self.hubs.wanted() || self.up_waited);
        let direct = self.peers.active().into_iter().any(|slot| self.peers.get(slot).is_some_and(|peer| peer.session));
        if enough || direct {
            self.life = Life::Usable;
            self.check_freshness(unix);
            self.out.push(Output::Up { hubs });
        }
    }

    /// Something about peers is worth writing, but not each time.
    pub(crate) fn remember_soon(&mut self, now: Instant) {
        let first = now + REMEMBER_SOON;
        let at = self.remembered.map_or(first, |last| first.max(last + REMEMBER_EVERY));
        self.remember_at.get_or_insert(at);
    }

    fn remember(&mut self, now: Instant) {
        self.remember_at = None;
        self.remembered = Some(now);
        self.out.note(persist::PEERS, persist::encode_peers(&self.peers.to_remember()));
    }
}

impl Rising {
    fn again(&self) -> Option<Instant> {
        match self.write {
            Write::Sent(_) => None,
            Write::Again(at) => Some(at),
        }
    }
}

impl Write {
    fn is(&self, token: PersistToken) -> bool {
        matches!(self, Self::Sent(of) if *of == token)
    }
}

impl Overlay {
    /// Finds whose prefixes this machine has an address in.
    pub(crate) fn find_near(&mut self, hosts: &[Endpoint]) {
        self.near = hosts.iter().filter_map(|host| self.owners.owner(host.socket_addr().ip())).collect();
    }

    fn is_inside(&self, ip: IpAddr) -> bool {
        if self.ranges.iter().any(|range| range.contains(ip)) {
            return true;
        }
        // A site's LAN is an overlay address to everybody but who is in that LAN himself.
        self.owners.owner(ip).is_some_and(|owner| owner != Owner::Me && !self.near.contains(&owner))
    }
}

/// Judges candidates by roster and hubs.
pub(crate) struct Rules<'a> {
    pub(crate) overlay: &'a Overlay,
    pub(crate) hubs: &'a Hubs,
}

impl Forbidden for Rules<'_> {
    fn is_overlay(&self, ip: IpAddr) -> bool {
        self.overlay.is_inside(ip)
    }

    fn is_hub(&self, endpoint: Endpoint) -> bool {
        self.hubs.is_place(endpoint)
    }
}

/// Whether a file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PersistResult {
    /// It was not: what it held is lost at the next start.
    Failed,
    /// It is on the disk.
    Written,
}

fn show(path: Option<flatlan_path::PathKind>) -> String {
    path.map_or_else(|| "none".to_owned(), |path| path.to_string())
}

fn refusal(code: RefusedCode) -> &'static str {
    match code {
        RefusedCode::BadProof => "the proof of its key does not hold",
        RefusedCode::NetworkRefused => "they do not serve this network (flatlan hub run --allow)",
        RefusedCode::NoRoster => "they have no roster of this network yet (flatlan network publish)",
        RefusedCode::NotMember => {
            "it is no member: removed by the admin, or joined through a hub that they cannot reach"
        }
        RefusedCode::StaleEpoch => "another machine uses its key",
        RefusedCode::Quota => "too many at once",
        RefusedCode::Version => "another version of the protocol",
        RefusedCode::Draining => "they are about to stop",
        RefusedCode::BadMessage
        | RefusedCode::Replaced
        | RefusedCode::NoControl
        | RefusedCode::BadRoster
        | RefusedCode::OldRoster
        | RefusedCode::BadClaim
        | RefusedCode::WrongRedeemer
        | RefusedCode::StoreFailed
        | RefusedCode::Silent
        | RefusedCode::Other(_) => "for a reason that this version does not know",
    }
}

/// After the first hub, so long for the others before this node is called usable.
const UP_PATIENCE: Duration = Duration::from_millis(250);
/// The boot epoch rises at most once in this time.
pub(crate) const RISE_EVERY: Duration = Duration::from_secs(60);
/// Except for the first of a life: each hub may know a greater one than the last; and of two machines with one key each is
/// told by the other's rises, so that both raise the alarm at once and not after [`RISE_EVERY`].
const FREE_RISES: u32 = 3;
/// An epoch that could not be written is written again after this.
const WRITE_AGAIN: Duration = Duration::from_secs(2);
/// An epoch that was in use for so long was not set back: a greater one is another machine's.
const SETTLED: Duration = Duration::from_secs(10);
/// Peers are written so soon after the first change, and then no more often than the second.
const REMEMBER_SOON: Duration = Duration::from_secs(1);
const REMEMBER_EVERY: Duration = Duration::from_secs(30);
/// How often the roster's age is looked at.
const FRESH_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
