//! The worker: its state, its commands, its timers and what it reports.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_packet::{Coalescer, Gro};
use flatlan_path::{PathConfig, PathKind, PathStatus, PeerPaths, Spread};
use flatlan_types::{
    BootEpoch, Endpoint, HubSlot, Label, LaneId, LaneKey, MemberId, NetworkId, NodeSecret, PairKey, PeerSlot, Share,
    WorkerId,
};
use flatlan_wg::{
    PeerSession, Sessions, Stock,
    sealed::{FrameCounter, PairKeys},
};

use crate::{
    Command, DropReason, Drops, Event, PeerKeys, Sink, Snapshot,
    batch::{Batch, send_now},
    hub_leg::Hubs,
    inbound::{Accepted, Evidence},
    outbound::{Budget, Sent, send_by},
    peer::{Link, Peer},
};

/// What a worker is made with.
#[derive(Clone)]
pub struct WorkerConfig {
    /// The network.
    pub network: NetworkId,
    /// This node's keys.
    pub secret: Arc<NodeSecret>,
    /// This node's boot epoch, persisted already.
    pub epoch: BootEpoch,
    /// The overlay's MTU, in bytes: no packet longer than this is sealed.
    pub mtu: usize,
    /// Which packets may be joined before they are written to the TUN.
    pub gro: Gro,
    /// Which bits of a packet's traffic class its datagram has: the lower two are ECN and stay (RFC 6040).
    pub class_mask: u8,
    /// Whether the flows of a pair are shared out over several hubs.
    pub spread: Spread,
    /// Seed of everything that is random here.
    pub seed: u64,
    /// Which of the node's workers this is. The first binds at hubs and has the stock peers.
    pub share: Share,
}

/// The packet engine of one worker thread. *Mutate, drain, mutate*: after every input or command,
/// [`Worker::poll_event`] until `None`, and wait no longer than [`Worker::poll_timeout`].
pub struct Worker<S> {
    pub(crate) config: WorkerConfig,
    pub(crate) me: MemberId,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) sessions: S,
    pub(crate) peers: Peers,
    pub(crate) hubs: Hubs,
    /// Labels of ours: which hub may use each, and who sends by it.
    pub(crate) in_labels: BTreeMap<Label, (HubSlot, PeerSlot)>,
    /// Endpoints where a peer was found, or is said to be: who is meant where a datagram names nobody.
    pub(crate) endpoints: BTreeMap<Endpoint, PeerSlot>,
    pub(crate) batch: Batch,
    pub(crate) coalescer: Coalescer,
    /// A fragment or a frame's payload, before it is sealed.
    pub(crate) plain: Box<[u8]>,
    /// A sealed frame, behind room for a label.
    pub(crate) sealed: Box<[u8]>,
    /// What was in a frame.
    pub(crate) opened: Box<[u8]>,
    /// Bytes that wait for a session, over all peers.
    pub(crate) queued: usize,
    pub(crate) errors: Budget,
    /// What comes is read late.
    pub(crate) late: bool,
    /// Plain handshakes without a cookie that are looked at all the same.
    pub(crate) strangers: Budget,
    /// The last identification given to an IPv6 packet that was fragmented.
    pub(crate) fragments: u32,
    pub(crate) evidence: Option<Evidence>,
    pub(crate) accepted: Option<Accepted>,
    pub(crate) sent: Option<Sent>,
    /// Of which peers that share prefixes it was told that they are used, and when.
    pub(crate) shared_told: BTreeMap<PeerSlot, Instant>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) stats: WorkerStats,
    /// Peers whose paths were given something to do by a command.
    touched: Vec<PeerSlot>,
    /// When this worker began: frame counters go on from here.
    born: Option<Instant>,
}

/// Counters of one worker. Plain numbers; the shell shows them.
#[derive(Debug, Clone, Default)]
pub struct WorkerStats {
    /// Inner packets sealed and handed to the underlay.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Inner packets opened and accepted.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets and datagrams that came here and belong to another worker.
    pub handed: u64,
    /// Packets dropped, by reason.
    pub drops: Drops,
}

impl std::ops::AddAssign<&Self> for WorkerStats {
    fn add_assign(&mut self, other: &Self) {
        let Self { tx_packets, tx_bytes, rx_packets, rx_bytes, handed, drops } = other;
        self.tx_packets += tx_packets;
        self.tx_bytes += tx_bytes;
        self.rx_packets += rx_packets;
        self.rx_bytes += rx_bytes;
        self.handed += handed;
        for (reason, count) in drops.iter() {
            self.drops.add(reason, count);
        }
    }
}

/// One peer, as `status` shows it.
#[derive(Debug, Clone)]
pub struct PeerReport {
    /// Which peer.
    pub peer: PeerSlot,
    /// The path in use.
    pub path: Option<PathKind>,
    /// The path to which the traffic moves when that one dies.
    pub standby: Option<PathKind>,
    /// Its lanes that have a path, those that carry flows first.
    pub lanes: Vec<LaneReport>,
    /// Every path that is known, with its measurements.
    pub paths: Vec<PathStatus>,
    /// Age of the session that carries the flows.
    pub last_handshake: Option<Duration>,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
}

/// One lane of a peer, as `status` shows it.
#[derive(Debug, Clone, Copy)]
pub struct LaneReport {
    /// Which.
    pub lane: LaneId,
    /// Whether flows go by it.
    pub carries: bool,
    /// Its path.
    pub path: PathKind,
    /// Where it moves when that one dies.
    pub standby: Option<PathKind>,
    /// Age of its session.
    pub last_handshake: Option<Duration>,
}

/// One hub's UDP leg, as `status` shows it.
#[derive(Debug, Clone, Copy)]
pub struct LegReport {
    /// Which hub.
    pub hub: HubSlot,
    /// Round trip over UDP, while the leg is up.
    pub udp_rtt: Option<Duration>,
    /// Whether a data stream is open.
    pub stream: bool,
}

impl<S: Sessions> Worker<S> {
    /// A worker that knows nobody yet.
    pub fn new(config: WorkerConfig, sessions: S) -> Self {
        let me = config.secret.public().id;
        Self {
            me,
            snapshot: Arc::default(),
            sessions,
            peers: Peers::default(),
            hubs: Hubs::new(config.seed, config.share.worker),
            in_labels: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            batch: Batch::new(),
            coalescer: Coalescer::new(config.gro),
            plain: vec![0; MAX_PACKET].into_boxed_slice(),
            sealed: vec![0; MAX_PACKET].into_boxed_slice(),
            opened: vec![0; MAX_PACKET].into_boxed_slice(),
            queued: 0,
            errors: Budget::default(),
            late: false,
            strangers: Budget::default(),
            fragments: mix(config.seed ^ FRAGMENTS) as u32,
            evidence: None,
            accepted: None,
            sent: None,
            shared_told: BTreeMap::new(),
            events: VecDeque::new(),
            stats: WorkerStats::default(),
            touched: Vec::new(),
            born: None,
            config,
        }
    }

    /// Time has come to what [`Worker::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Sink) {
        let mut due: Vec<(LaneKey, Vec<u8>)> = Vec::new();
        self.sessions.handle_timeout(now, &mut |lane, message| due.push((lane, message.to_vec())));
        for (lane, message) in due {
            self.send_wireguard(lane, &message, now, out);
        }
        self.hubs.handle_timeout(now);
        self.drain_hubs(now, out);
        while let Some(slot) = self.peers.pop_due(now) {
            self.handle_peer_timeout(slot, now, out);
        }
    }

    /// Which packets may be joined before they are written to the TUN, from here on.
    pub fn set_gro(&mut self, gro: Gro) {
        self.coalescer.set_gro(gro);
    }

    /// How long what is handed in next lay in the socket; zero where nobody knows.
    pub fn set_waited(&mut self, waited: Duration) {
        self.late = waited >= LATE;
    }

    /// The roster changed: who is no member any more loses its sessions at once.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>, now: Instant) {
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        (self.accepted, self.sent) = (None, None);
        if before.same_members(&self.snapshot) {
            return;
        }
        self.shared_told.clear();
        for slot in self.peers.slots() {
            let same = match (before.peer(slot), self.snapshot.peer(slot)) {
                (Some(was), Some(is)) => was.keys == is.keys && was.psk == is.psk,
                (None, _) | (Some(_), None) => false,
            };
            if !same {
                self.remove_peer(slot);
            }
        }
        let snapshot = Arc::clone(&self.snapshot);
        self.in_labels.retain(|_, (_, peer)| snapshot.peer(*peer).is_some());
        if self.config.share.worker == WorkerId::FIRST {
            // a stock peer may speak first, and the engine must know its key then
            for slot in snapshot.stock() {
                self.ensure_peer(slot, now);
            }
        }
    }

    /// What the node's control machine wants.
    pub fn handle_command(&mut self, command: Command, now: Instant, out: &mut impl Sink) {
        match command {
            Command::SetHub { hub, udp, stream } => {
                self.hubs.set(hub, udp, stream, now);
                self.refresh_relays(hub, now);
            }
            Command::SetHubLeg { hub, rtt } => {
                if self.hubs.set_leg(hub, rtt) {
                    self.refresh_relays(hub, now);
                }
            }
            Command::TouchHub { hub } => self.hubs.touch(hub, now),
            Command::DrainHub { hub } => {
                self.hubs.drain(hub);
                self.refresh_relays(hub, now);
            }
            Command::RemoveHub { hub } => {
                self.hubs.remove(hub);
                self.in_labels.retain(|_, (of, _)| *of != hub);
                self.refresh_relays(hub, now);
                for slot in self.peers.slots() {
                    if let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut)
                        && link.labels.remove(&hub).is_some()
                    {
                        link.paths.set_over(hub, &[], now);
                        self.touched.push(slot);
                    }
                }
            }
            Command::SetLabel { peer, hub, label } => {
                let Some(link) = self.ensure_peer(peer, now).and_then(Peer::node_link_mut) else { return };
                let before = match label {
                    Some(label) => link.labels.insert(hub, label),
                    None => link.labels.remove(&hub),
                };
                if label.is_some() && before.is_some_and(|before| Some(before) != label) {
                    link.paths.renew_relay(hub, now);
                }
                self.refresh_peer(peer, now);
            }
            Command::SetWay { peer, hub, over } => {
                if let Some(link) = self.ensure_peer(peer, now).and_then(Peer::node_link_mut) {
                    link.paths.set_over(hub, &over, now);
                    self.touched.push(peer);
                }
            }
            Command::AddInLabel { label, hub, peer } => {
                self.in_labels.insert(label, (hub, peer));
            }
            Command::RemoveInLabel { label } => {
                self.in_labels.remove(&label);
            }
            Command::SetDirect { peer, endpoints } => self.set_direct(peer, &endpoints, now),
            Command::SendMessage { peer, bytes, path } => self.send_message(peer, &bytes, path, now, out),
            Command::Connect { peer } => {
                if self.ensure_peer(peer, now).is_some() {
                    self.want_session(peer, LaneId::PRIMARY, now, out);
                }
            }
            Command::KeepWarm { peer } => {
                if let Some(link) = self.ensure_peer(peer, now).and_then(Peer::node_link_mut) {
                    link.paths.keep_warm(now + KEPT_WARM, now);
                    let lane = self.primary_lane(peer);
                    self.want_session(peer, lane, now, out);
                    self.renew_session(LaneKey { peer, lane }, now, out);
                    self.touched.push(peer);
                }
            }
            Command::SetPeerEpoch { peer, epoch } => {
                if let Some(link) = self.ensure_peer(peer, now).and_then(Peer::node_link_mut)
                    && link.epoch < epoch
                {
                    link.epoch = epoch;
                    link.replay.set_epoch(epoch);
                }
            }
            Command::SetEpoch { epoch } => {
                self.config.epoch = epoch;
                for slot in self.peers.slots() {
                    self.restart_sessions(slot, now, out);
                }
            }
            Command::NetworkChanged => {
                self.hubs.network_changed(now);
                for slot in self.peers.slots() {
                    if let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut) {
                        link.paths.reprobe(now);
                        self.touched.push(slot);
                    }
                }
            }
        }
        self.drain_hubs(now, out);
        self.drain_touched(now, out);
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::PeerMessage { peer, .. } = &event
            && let Some(peer) = self.peers.get_mut(*peer)
        {
            peer.messages = peer.messages.saturating_sub(1);
        }
        Some(event)
    }

    /// When [`Worker::handle_timeout`] wants to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let peers = self.peers.next_due();
        [peers, self.hubs.poll_timeout(), self.sessions.poll_timeout()].into_iter().flatten().min()
    }

    /// The counters.
    pub fn stats(&self) -> &WorkerStats {
        &self.stats
    }

    /// The generation of the snapshot in force.
    pub fn generation(&self) -> u64 {
        self.snapshot.generation
    }

    /// Every peer with which there is something, for `status`.
    pub fn report(&self, now: Instant) -> Vec<PeerReport> {
        let report = |peer: &Peer| {
            let link = peer.node_link();
            let stock = match &peer.link {
                Link::Stock { endpoint } => endpoint.map(PathKind::Direct),
                Link::Node(_) => None,
            };
            let lane = link.map_or(LaneId::PRIMARY, |link| link.paths.primary());
            PeerReport {
                peer: peer.slot,
                path: link.map_or(stock, |link| link.paths.active(lane)),
                standby: link.and_then(|link| link.paths.standby(lane)),
                lanes: self.lanes(peer, now),
                paths: link.map(|link| link.paths.paths().collect()).unwrap_or_default(),
                last_handshake: self.sessions.last_handshake(peer.lane_key(lane), now),
                tx_bytes: peer.tx_bytes,
                rx_bytes: peer.rx_bytes,
            }
        };
        self.peers.iter().map(report).collect()
    }

    fn lanes(&self, peer: &Peer, now: Instant) -> Vec<LaneReport> {
        let Some(link) = peer.node_link() else { return Vec::new() };
        let report = |lane| {
            let last_handshake = self.sessions.last_handshake(peer.lane_key(lane), now);
            let (carries, standby) = (link.paths.carries(lane), link.paths.standby(lane));
            Some(LaneReport { lane, carries, path: link.paths.active(lane)?, standby, last_handshake })
        };
        let mut lanes: Vec<LaneReport> = LaneId::all().filter_map(report).collect();
        lanes.sort_by_key(|lane| (!lane.carries, lane.lane));
        lanes
    }

    /// Every hub's legs, for `status`.
    pub fn legs(&self) -> Vec<LegReport> {
        self.hubs.report()
    }

    pub(crate) fn peer(&self, slot: PeerSlot) -> Option<&Peer> {
        self.peers.get(slot)
    }

    /// The peer's state, made now if there was none. `None` where the slot holds no member.
    pub(crate) fn ensure_peer(&mut self, slot: PeerSlot, now: Instant) -> Option<&mut Peer> {
        if self.peers.get(slot).is_none() {
            let peer = match self.snapshot.peer(slot)?.keys {
                PeerKeys::Node(keys) => {
                    let pair = PairKey::derive(&self.config.secret, &keys.session, &self.config.network)?;
                    let uptime = now.saturating_duration_since(*self.born.get_or_insert(now));
                    let counter = FrameCounter::resumed(self.config.seed, uptime);
                    let pair = PairKeys::new(&pair, &self.config.network, &self.me, &keys.id);
                    let (max_datagram, spread) = (flatlan_wg::sealed_len(self.config.mtu), self.config.spread);
                    let config = PathConfig { max_datagram, spread, ..PathConfig::default() };
                    // one seed a life: the peer tells by it that counters start again
                    let seed = mix(self.config.seed ^ mix(u64::from(slot.0) ^ uptime.as_nanos() as u64));
                    Peer::node(slot, pair, counter, PeerPaths::new(config, seed, now))
                }
                PeerKeys::Stock(_) => Peer::stock(slot),
            };
            let stock = matches!(peer.link, Link::Stock { .. });
            self.peers.insert(peer);
            if stock {
                self.open_lane(slot, LaneId::PRIMARY, now);
            }
            self.arm(slot, now);
        }
        self.peers.get_mut(slot)
    }

    /// Tells when a peer falls silent, and when it answers again.
    pub(crate) fn judge_silence(&mut self, slot: PeerSlot, now: Instant) {
        if self.peers.get(slot).is_some_and(|peer| peer.waiting.is_some())
            && self.has_way(slot)
            && let Some(peer) = self.peers.get_mut(slot)
        {
            peer.waiting = None;
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if let Some(since) = peer.silent {
            let heard = peer.node_link().is_some_and(|link| link.paths.delivered() > Some(since));
            if heard
                && self.has_way(slot)
                && let Some(peer) = self.peers.get_mut(slot)
            {
                (peer.silent, peer.waiting) = (None, None);
                self.event(Event::PeerAnswers { peer: slot });
            }
        } else if peer.silent_at().is_some_and(|at| at <= now) {
            peer.silent = Some(now);
            self.event(Event::PeerSilent { peer: slot });
        }
    }

    /// Whether a packet for the peer could leave now: a lane has a session and a path.
    pub(crate) fn has_way(&self, slot: PeerSlot) -> bool {
        let Some(peer) = self.peers.get(slot) else { return false };
        let ready = |lane: LaneId| {
            self.sessions.is_established(peer.lane_key(lane)) && peer.lane_route(lane, &self.hubs).is_some()
        };
        LaneId::all().any(ready)
    }

    /// Makes sure that the engine has state for a lane.
    pub(crate) fn open_lane(&mut self, slot: PeerSlot, lane: LaneId, now: Instant) {
        let (Some(info), Some(peer)) = (self.snapshot.peer(slot), self.peers.get_mut(slot)) else { return };
        if peer.lane_mut(lane).open {
            return;
        }
        peer.lane_mut(lane).open = true;
        let stock = match peer.link {
            Link::Stock { .. } => Stock::Yes,
            Link::Node(_) => Stock::No,
        };
        let session =
            PeerSession { key: info.keys.session(), psk: info.psk.as_deref().copied(), stock, keepalive: None };
        self.sessions.open_lane(LaneKey { peer: slot, lane }, session, now);
    }

    pub(crate) fn remove_peer(&mut self, slot: PeerSlot) {
        self.sessions.close_peer(slot);
        self.in_labels.retain(|_, (_, peer)| *peer != slot);
        self.endpoints.retain(|_, peer| *peer != slot);
        if let Some(peer) = self.peers.remove(slot) {
            self.queued = self.queued.saturating_sub(peer.queue.bytes());
        }
    }

    /// Something about a peer changed that may have brought its timeout forward.
    pub(crate) fn arm(&mut self, slot: PeerSlot, now: Instant) {
        self.peers.arm(slot, now);
    }

    /// What comes as often as others like must not crowd out what is told only once.
    pub(crate) fn event(&mut self, event: Event) {
        let repeated = matches!(
            event,
            Event::PeerMessage { .. }
                | Event::NeedPath { .. }
                | Event::HubSilent { .. }
                | Event::StaleEpoch { .. }
                | Event::SharedUsed { .. }
                | Event::DirectUp { .. }
                | Event::HubUsed { .. }
        );
        let most = if repeated { MAX_REPEATED } else { MAX_EVENTS };
        let mut room = self.events.len() < most;
        if let Event::PeerMessage { peer, .. } = &event {
            match self.peers.get_mut(*peer).filter(|peer| room && peer.messages < MAX_MESSAGES) {
                Some(peer) => peer.messages += 1,
                None => {
                    room = false;
                    self.stats.drops.add(DropReason::RateLimited, 1);
                }
            }
        }
        if room {
            self.events.push_back(event);
        }
    }

    /// Sends the BIND frames that are due; what depends on a leg that went up or down follows.
    pub(crate) fn drain_hubs(&mut self, now: Instant, out: &mut impl Sink) {
        while let Some(bind) = self.hubs.poll_transmit(now) {
            send_now(bind.to, &bind.datagram, &mut self.stats.drops, out);
        }
        while let Some(event) = self.hubs.poll_event() {
            if let Event::LegUp { hub, .. } | Event::LegDown { hub } = event {
                self.refresh_relays(hub, now);
            }
            self.event(event);
        }
        self.drain_touched(now, out);
    }

    /// Sends the probes that a command made due, and acts on what the paths say.
    pub(crate) fn drain_touched(&mut self, now: Instant, out: &mut impl Sink) {
        while let Some(slot) = self.touched.pop() {
            self.drain_peer(slot, now, out);
        }
    }

    fn set_direct(&mut self, slot: PeerSlot, endpoints: &[Endpoint], now: Instant) {
        let Some(peer) = self.ensure_peer(slot, now) else { return };
        match &mut peer.link {
            Link::Node(link) => link.paths.set_direct(endpoints, now),
            Link::Stock { endpoint } => {
                *endpoint = endpoint.or_else(|| endpoints.first().copied());
                return;
            }
        }
        for endpoint in endpoints.iter().take(flatlan_path::MAX_CANDIDATES) {
            self.endpoints.entry(*endpoint).or_insert(slot);
        }
        self.touched.push(slot);
    }

    /// The relayed paths of all peers that have a label of this hub are set anew.
    fn refresh_relays(&mut self, hub: HubSlot, now: Instant) {
        let labelled = |peer: &&Peer| peer.node_link().is_some_and(|link| link.labels.contains_key(&hub));
        let slots: Vec<PeerSlot> = self.peers.iter().filter(labelled).map(|peer| peer.slot).collect();
        for slot in slots {
            self.refresh_peer(slot, now);
        }
    }

    fn refresh_peer(&mut self, slot: PeerSlot, now: Instant) {
        let Self { peers, hubs, touched, .. } = self;
        if let Some(link) = peers.get_mut(slot).and_then(Peer::node_link_mut) {
            let relays = link.relays(hubs);
            link.paths.set_relays(&relays, now);
            for hub in hubs.draining().filter(|hub| link.labels.contains_key(hub)) {
                link.paths.drain(hub, now);
            }
            touched.push(slot);
        }
    }

    fn handle_peer_timeout(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        self.expire_queue(slot, now);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if let Some(link) = peer.node_link_mut()
            && link.paths.poll_timeout().is_some_and(|at| at <= now)
        {
            link.paths.handle_timeout(now);
        }
        self.drain_peer(slot, now, out);
        self.retry_due(slot, now, out);
        self.warm(slot, now, out);
        // whatever else is due is due a moment later: a timer never keeps the loop
        self.peers.arm(slot, now + TIMER_STEP);
    }

    pub(crate) fn send_wireguard(&mut self, lane: LaneKey, message: &[u8], now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get(lane.peer) else { return };
        // a lane that only the peer uses has no path here
        let route = peer.lane_route(lane.lane, &self.hubs);
        let primary = || peer.lane_route(peer.node_link()?.paths.primary(), &self.hubs);
        let Some(route) = route.or_else(primary) else { return };
        if message.first() == Some(&WIREGUARD_DATA) {
            send_by(route, message, &mut self.stats.drops, out);
        } else {
            self.send_handshake(lane, message, route, out);
        }
        self.arm(lane.peer, now);
    }
}

/// The peers, dense by slot; those that exist and those that have a timer are listed apart, so that only
/// they are touched.
#[derive(Default)]
pub(crate) struct Peers {
    table: Vec<Option<Box<Peer>>>,
    live: BTreeSet<PeerSlot>,
    /// Each peer at most once, at the time that it holds in `armed`.
    timers: BTreeSet<(Instant, PeerSlot)>,
}

impl Peers {
    pub(crate) fn get(&self, slot: PeerSlot) -> Option<&Peer> {
        self.table.get(slot.0 as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: PeerSlot) -> Option<&mut Peer> {
        self.table.get_mut(slot.0 as usize)?.as_deref_mut()
    }

    fn insert(&mut self, peer: Peer) {
        let slot = peer.slot;
        let index = slot.0 as usize;
        if self.table.len() <= index {
            self.table.resize_with(index + 1, || None);
        }
        if let Some(place) = self.table.get_mut(index) {
            *place = Some(Box::new(peer));
            self.live.insert(slot);
        }
    }

    fn remove(&mut self, slot: PeerSlot) -> Option<Box<Peer>> {
        let peer = self.table.get_mut(slot.0 as usize)?.take()?;
        self.live.remove(&slot);
        if let Some(armed) = peer.armed {
            self.timers.remove(&(armed, slot));
        }
        Some(peer)
    }

    /// Brings the peer's timer forward to what the peer wants, and not before `least`. A timer that is too
    /// early stays: it costs less to look at a peer in vain than to move its timer with every packet.
    fn arm(&mut self, slot: PeerSlot, least: Instant) {
        let Some(peer) = self.table.get_mut(slot.0 as usize).and_then(Option::as_deref_mut) else { return };
        let Some(next) = peer.timeout().map(|next| next.max(least)) else { return };
        if peer.armed.is_some_and(|armed| armed <= next) {
            return;
        }
        if let Some(armed) = peer.armed.replace(next) {
            self.timers.remove(&(armed, slot));
        }
        self.timers.insert((next, slot));
    }

    fn pop_due(&mut self, now: Instant) -> Option<PeerSlot> {
        let (at, slot) = self.timers.first().copied().filter(|(at, _)| *at <= now)?;
        self.timers.remove(&(at, slot));
        self.get_mut(slot)?.armed = None;
        Some(slot)
    }

    fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// A copy of the slots that exist: the loop over it may change them.
    fn slots(&self) -> Vec<PeerSlot> {
        self.live.iter().copied().collect()
    }

    fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.live.iter().filter_map(|slot| self.get(*slot))
    }
}

/// The finaliser of SplitMix64: for what must differ between two lives, not for keys.
pub(crate) fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// First byte of a WireGuard transport message (WireGuard whitepaper, section 5.4.6).
pub(crate) const WIREGUARD_DATA: u8 = 4;
/// The longest IP packet.
pub(crate) const MAX_PACKET: usize = 65_535 + 64;
/// Where identifications of fragments begin.
const FRAGMENTS: u64 = 0x6672_6167;
/// How long a peer is kept ready after [`Command::KeepWarm`].
pub const KEPT_WARM: Duration = Duration::from_secs(15);
/// A wait in the socket from which on those who have sessions go first. Shorter than what makes a bulk flow slow down: a
/// flood must not do that.
const LATE: Duration = Duration::from_millis(1);
/// A peer's timers are looked at no more often than this.
const TIMER_STEP: Duration = Duration::from_millis(1);
/// Events that wait for the control machine at the most.
const MAX_EVENTS: usize = 65_536;
/// The same for those that are told again, or asked again, by a timer.
const MAX_REPEATED: usize = 4096;
/// Control messages of one peer that wait.
const MAX_MESSAGES: u32 = 64;
