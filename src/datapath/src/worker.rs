//! The worker: its state, its commands, its timers and what it reports.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_packet::{Coalescer, Gro};
use flatlan_path::{PathConfig, PathKind, PathStatus, PeerPaths};
use flatlan_types::{BootEpoch, HubSlot, Label, LaneId, LaneKey, MemberId, NetworkId, NodeSecret, PairKey, PeerSlot};
use flatlan_wg::{
    PeerSession, Sessions, Stock,
    sealed::{FrameCounter, PairKeys},
};

use crate::{
    Command, Drops, Event, PeerKeys, Sink, Snapshot,
    batch::Batch,
    hub_leg::Hubs,
    inbound::Evidence,
    outbound::send_by,
    peer::{Link, Peer},
};

/// What a worker is made with.
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
    /// Seed of everything that is random here.
    pub seed: u64,
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
    pub(crate) batch: Batch,
    pub(crate) coalescer: Coalescer,
    /// One segment, before it is sealed.
    pub(crate) plain: Box<[u8]>,
    pub(crate) evidence: Option<Evidence>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) stats: WorkerStats,
    /// State of the generator behind [`Worker::random`].
    random: u64,
    timeout: Option<Instant>,
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
    /// Packets dropped, by reason.
    pub drops: Drops,
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
    /// Every path that is known, with its measurements.
    pub paths: Vec<PathStatus>,
    /// Age of the primary lane's session.
    pub last_handshake: Option<Duration>,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
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
            hubs: Hubs::new(config.seed),
            in_labels: BTreeMap::new(),
            batch: Batch::new(),
            coalescer: Coalescer::new(config.gro),
            plain: vec![0; MAX_PACKET].into_boxed_slice(),
            evidence: None,
            events: VecDeque::new(),
            stats: WorkerStats::default(),
            random: config.seed,
            timeout: None,
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
        for bind in self.hubs.handle_timeout(now) {
            crate::batch::send_now(bind.to, &bind.datagram, &mut self.stats.drops, out);
        }
        self.after_hubs(now);
        for slot in self.peers.slots() {
            self.handle_peer_timeout(slot, now, out);
        }
        self.reschedule();
    }

    /// The roster changed: who is no member any more loses its sessions at once.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        let before = std::mem::replace(&mut self.snapshot, snapshot);
        for slot in self.peers.slots() {
            let same = match (before.peer(slot), self.snapshot.peer(slot)) {
                (Some(was), Some(is)) => was.keys == is.keys && was.psk == is.psk,
                (None, _) | (Some(_), None) => false,
            };
            if !same {
                self.remove_peer(slot);
            }
        }
        let stock: Vec<PeerSlot> =
            self.snapshot.peers().filter(|(_, info)| info.keys.member().is_none()).map(|(slot, _)| slot).collect();
        for slot in stock {
            // a stock peer may speak first, and the engine must know its key then
            if self.peers.get(slot).is_none() {
                self.pending_stock(slot);
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
            Command::RemoveHub { hub } => {
                self.hubs.remove(hub);
                self.in_labels.retain(|_, (of, _)| *of != hub);
                for slot in self.peers.slots() {
                    if let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut) {
                        link.labels.remove(&hub);
                    }
                }
                self.refresh_relays(hub, now);
            }
            Command::SetLabel { peer, hub, label } => {
                let Some(link) = self.ensure_peer(peer, now).and_then(Peer::node_link_mut) else { return };
                match label {
                    Some(label) => link.labels.insert(hub, label),
                    None => link.labels.remove(&hub),
                };
                self.refresh_peer(peer, now);
            }
            Command::AddInLabel { label, hub, peer } => {
                self.in_labels.insert(label, (hub, peer));
            }
            Command::RemoveInLabel { label } => {
                self.in_labels.remove(&label);
            }
            Command::SetDirect { peer, endpoints } => match self.ensure_peer(peer, now).map(|peer| &mut peer.link) {
                Some(Link::Node(link)) => link.paths.set_direct(&endpoints, now),
                Some(Link::Stock { endpoint }) if endpoint.is_none() => *endpoint = endpoints.first().copied(),
                Some(Link::Stock { .. }) | None => {}
            },
            Command::SendMessage { peer, bytes, path } => self.send_message(peer, &bytes, path, now, out),
            Command::Connect { peer } => {
                if self.ensure_peer(peer, now).is_some() {
                    self.want_session(peer, LaneId::PRIMARY, now, out);
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
                    }
                }
            }
        }
        self.drain_paths(now, out);
        self.reschedule();
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Worker::handle_timeout`] wants to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
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
            PeerReport {
                peer: peer.slot,
                path: link.map_or(stock, |link| link.paths.active(LaneId::PRIMARY)),
                standby: link.and_then(|link| link.paths.standby(LaneId::PRIMARY)),
                paths: link.map(|link| link.paths.paths().collect()).unwrap_or_default(),
                last_handshake: self.sessions.last_handshake(peer.lane_key(LaneId::PRIMARY), now),
                tx_bytes: peer.tx_bytes,
                rx_bytes: peer.rx_bytes,
            }
        };
        self.peers.iter().map(report).collect()
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
                    let seed = self.config.seed ^ (u64::from(slot.0) << 20);
                    let pair = PairKeys::new(&pair, &self.config.network, &self.me, &keys.id);
                    Peer::node(
                        slot,
                        pair,
                        FrameCounter::new(self.random()),
                        PeerPaths::new(PathConfig::default(), seed, now),
                    )
                }
                PeerKeys::Stock(_) => Peer::stock(slot),
            };
            let stock = matches!(peer.link, Link::Stock { .. });
            self.peers.insert(peer);
            if stock {
                self.open_lane(slot, LaneId::PRIMARY, now);
            }
        }
        self.peers.get_mut(slot)
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
        let session = PeerSession { key: info.keys.session(), psk: info.psk, stock, keepalive: None };
        self.sessions.open_lane(LaneKey { peer: slot, lane }, session, now);
    }

    pub(crate) fn remove_peer(&mut self, slot: PeerSlot) {
        self.sessions.close_peer(slot);
        self.in_labels.retain(|_, (_, peer)| *peer != slot);
        self.peers.remove(slot);
    }

    /// Something about a peer changed that may have brought its timeout forward.
    pub(crate) fn touch(&mut self, slot: PeerSlot) {
        let next = self.peers.get(slot).and_then(peer_timeout);
        self.timeout = earliest(self.timeout, next);
    }

    pub(crate) fn reschedule(&mut self) {
        let peers = self.peers.iter().filter_map(peer_timeout).min();
        let hubs = self.hubs.poll_timeout();
        self.timeout = [peers, hubs, self.sessions.poll_timeout()].into_iter().flatten().min();
    }

    pub(crate) fn event(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        }
    }

    /// Hub legs may have changed: what depends on them follows.
    pub(crate) fn after_hubs(&mut self, now: Instant) {
        while let Some(event) = self.hubs.poll_event() {
            let (Event::LegUp { hub, .. } | Event::LegDown { hub }) = event else { continue };
            self.event(event);
            self.refresh_relays(hub, now);
        }
    }

    fn refresh_relays(&mut self, hub: HubSlot, now: Instant) {
        tracing::trace!(hub = hub.0, "relayed paths are set anew");
        for slot in self.peers.slots() {
            self.refresh_peer(slot, now);
        }
    }

    fn refresh_peer(&mut self, slot: PeerSlot, now: Instant) {
        let Self { peers, hubs, .. } = self;
        if let Some(link) = peers.get_mut(slot).and_then(Peer::node_link_mut) {
            let relays = link.relays(hubs);
            link.paths.set_relays(&relays, now);
        }
    }

    /// 64 bits from the seed (SplitMix64): for what must differ between two lives, not for keys.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pending_stock(&mut self, slot: PeerSlot) {
        self.peers.insert(Peer::stock(slot));
    }

    fn handle_peer_timeout(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let dropped = peer.queue.expire(now);
        self.stats.drops.add(crate::DropReason::NoSession, dropped);
        if let Some(link) = peer.node_link_mut()
            && link.paths.poll_timeout().is_some_and(|at| at <= now)
        {
            link.paths.handle_timeout(now);
        }
        self.drain_peer(slot, now, out);
        for lane in (0..LaneId::COUNT as u8).filter_map(LaneId::new) {
            let Some(peer) = self.peers.get_mut(slot) else { return };
            let state = peer.lane_mut(lane);
            if state.wanted && state.next_try.is_some_and(|at| at <= now) {
                state.next_try = None;
                self.want_session(slot, lane, now, out);
            }
        }
    }

    /// Sends the probes that are due to any peer and tells of path changes.
    pub(crate) fn drain_paths(&mut self, now: Instant, out: &mut impl Sink) {
        for slot in self.peers.slots() {
            self.drain_peer(slot, now, out);
        }
    }

    pub(crate) fn send_wireguard(&mut self, lane: LaneKey, message: &[u8], now: Instant, out: &mut impl Sink) {
        let handshake = message.first().is_some_and(|kind| *kind != WIREGUARD_DATA);
        let Some(peer) = self.peers.get_mut(lane.peer) else { return };
        let route = peer.lane_route(lane.lane, &self.hubs);
        let (Some(route), true) = (route, handshake && peer.node_link().is_some()) else {
            if let Some(route) = route {
                send_by(route, message, &mut self.stats.drops, out);
            }
            return;
        };
        self.send_handshake(lane, message, route, out);
        self.touch(lane.peer);
        let _ = now;
    }
}

/// The peers, dense by slot; those that exist are listed apart, so that timers touch only them.
#[derive(Default)]
pub(crate) struct Peers {
    table: Vec<Option<Box<Peer>>>,
    live: BTreeSet<PeerSlot>,
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

    fn remove(&mut self, slot: PeerSlot) {
        if let Some(place) = self.table.get_mut(slot.0 as usize) {
            *place = None;
        }
        self.live.remove(&slot);
    }

    /// A copy of the slots that exist: the loop over it may change them.
    pub(crate) fn slots(&self) -> Vec<PeerSlot> {
        self.live.iter().copied().collect()
    }

    fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.live.iter().filter_map(|slot| self.get(*slot))
    }
}

fn peer_timeout(peer: &Peer) -> Option<Instant> {
    let paths = peer.node_link().and_then(|link| link.paths.poll_timeout());
    let lanes = peer.lanes.iter().filter(|lane| lane.wanted).filter_map(|lane| lane.next_try).min();
    [paths, lanes, peer.queue.deadline()].into_iter().flatten().min()
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// First byte of a WireGuard transport message (WireGuard whitepaper, section 5.4.6).
pub(crate) const WIREGUARD_DATA: u8 = 4;
/// The longest IP packet.
pub(crate) const MAX_PACKET: usize = 65_535 + 64;
/// Events that wait for the control machine at the most; what exceeds them is told again by a timer.
const MAX_EVENTS: usize = 4096;
