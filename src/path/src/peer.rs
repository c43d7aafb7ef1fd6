//! All paths to one peer, and which of them its lanes use.

mod group;
mod pardon;
mod place;
mod schedule;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use flatlan_types::{Endpoint, HubSlot, LaneId};

use self::{
    group::{GROUPS, Group},
    pardon::Pardon,
};
use crate::{
    budget::Budget,
    config::PathConfig,
    event::{MoveReason, PathEvent},
    evidence::{Inbox, Restarted, Tally, Verdict},
    frame::{Probe, ProbeReply},
    kind::{Leg, PathId, PathKind},
    path::{Path, Phase, Reverse},
    random::Random,
    size::Urgency,
};

/// The paths to one peer. *Mutate, drain, mutate*: after every input or command drain
/// [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), then ask
/// [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct PeerPaths {
    config: PathConfig,
    random: Random,
    /// Names this machine's counters and path numbers.
    instance: u16,
    /// Whose reports the ledgers compare with.
    peer_instance: Option<u16>,
    seq: u32,
    next_id: u16,
    paths: BTreeMap<PathId, Path>,
    lanes: [Lane; LaneId::COUNT],
    groups: [Group; GROUPS],
    primary: LaneId,
    arrivals: u64,
    told_primary: LaneId,
    primary_reason: MoveReason,
    /// A path that looks better than a lane's own, and since when.
    better: Option<Better>,
    /// No graceful move between relays before, and the pause after the next one.
    dwell: Option<Instant>,
    dwell_next: Duration,
    pardon: Pardon,
    inbox: Inbox,
    budget: Budget,
    draining: BTreeSet<HubSlot>,
    /// The hubs that datagrams by a hub cross after it.
    over: BTreeMap<HubSlot, Vec<HubSlot>>,
    stretch: u32,
    last_traffic: Instant,
    /// The latest probe of the peer's, which may keep us warm, or the latest way to it that is new.
    asked: Option<Instant>,
    /// The last `Idle` was told after this traffic.
    told_idle: Option<Instant>,
    last_arrival: Option<(PathKind, Instant)>,
    /// Hubs that were told to be silent, and when.
    silent: BTreeMap<HubSlot, Instant>,
    /// The size of data datagrams of late, and when it was seen.
    data_size: (usize, Instant),
    transmits: VecDeque<ProbeOut>,
    events: VecDeque<PathEvent>,
    timeout: Option<Instant>,
    /// The largest datagram that every path carries to which flows may go.
    mtu: usize,
    /// Whatever the traffic, the peer counts as active at least so long.
    warm_until: Option<Instant>,
    /// The latest time at which something sent, by any path, is known to have arrived.
    delivered: Option<Instant>,
    silent_since: Option<Instant>,
}

impl PeerPaths {
    /// No paths; the peer counts as active from now. `seed` makes the instance number and the jitter.
    pub fn new(config: PathConfig, seed: u64, now: Instant) -> Self {
        let mut random = Random::new(seed);
        Self {
            config,
            instance: random.next_u16(),
            random,
            peer_instance: None,
            seq: 0,
            next_id: 0,
            paths: BTreeMap::new(),
            lanes: [Lane::default(); LaneId::COUNT],
            groups: group::first(now),
            primary: LaneId::PRIMARY,
            arrivals: 0,
            told_primary: LaneId::PRIMARY,
            primary_reason: MoveReason::First,
            better: None,
            dwell: None,
            dwell_next: place::DWELL,
            pardon: Pardon::default(),
            inbox: Inbox::default(),
            budget: Budget::new(now),
            draining: BTreeSet::new(),
            over: BTreeMap::new(),
            stretch: 1,
            last_traffic: now,
            asked: None,
            told_idle: None,
            last_arrival: None,
            silent: BTreeMap::new(),
            data_size: (0, now),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            timeout: Some(now),
            mtu: config.max_datagram,
            warm_until: None,
            delivered: None,
            silent_since: None,
        }
    }

    /// Replaces the peer's candidates (at most [`MAX_CANDIDATES`] are taken). An endpoint that answers
    /// stays even if it is not listed; one that did not answer gets a new chance. The caller keeps
    /// overlay addresses and hubs out; loopback, unspecified, multicast and port 0 are skipped here.
    pub fn set_direct(&mut self, candidates: &[Endpoint], now: Instant) {
        for path in self.paths.values_mut() {
            path.listed = false;
        }
        for endpoint in candidates.iter().copied().filter(|e| is_sendable(*e)).take(MAX_CANDIDATES) {
            let Some(path) = self.direct(endpoint, now) else { continue };
            path.listed = true;
            match path.phase {
                Phase::Untested | Phase::Dead => (path.tries, path.due) = (0, Some(now)),
                Phase::Valid => {}
            }
        }
        let gone = |path: &Path| path.kind.is_direct() && !path.listed && path.phase != Phase::Valid;
        let gone: Vec<PathId> = self.paths.values().filter(|path| gone(path)).map(|path| path.id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
        self.settle(now);
    }

    /// An authentic packet came from this source: it is probed, and is a candidate once it answers.
    /// `handle_probe`, `handle_reply` and `on_received` do this by themselves.
    pub fn add_direct(&mut self, endpoint: Endpoint, now: Instant) {
        self.arrive(PathKind::Direct(endpoint), now);
        self.settle(now);
    }

    /// Replaces the relayed paths: those whose label exists. One that is not listed is gone at once;
    /// the state of those that stay is kept.
    pub fn set_relays(&mut self, relays: &[Relay], now: Instant) {
        let listed = |kind: PathKind| relays.iter().any(|relay| relay.kind() == kind);
        let relayed = self.paths.values().filter(|path| !path.kind.is_direct());
        let gone: Vec<PathId> = relayed.filter(|path| !listed(path.kind)).map(|path| path.id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
        self.draining.retain(|hub| relays.iter().any(|relay| relay.hub == *hub));
        self.silent.retain(|hub, _| relays.iter().any(|relay| relay.hub == *hub));
        if relays.iter().any(|relay| self.paths.values().all(|path| path.kind != relay.kind())) {
            self.wake(now);
        }
        for relay in relays.iter().take(MAX_RELAYS) {
            let draining = self.draining.contains(&relay.hub);
            if let Some(path) = self.insert(relay.kind(), now) {
                (path.hint, path.draining) = (relay.rtt, draining);
            }
        }
        self.settle(now);
    }

    /// A hub relays to the peer under another label from here on: its paths may lead elsewhere than before, and are asked
    /// anew. What they were known for is not forgotten.
    pub fn renew_relay(&mut self, hub: HubSlot, now: Instant) {
        for path in self.paths.values_mut().filter(|path| path.kind.hub() == Some(hub)) {
            path.renew(now);
        }
        self.settle(now);
    }

    /// Which hubs datagrams to the peer cross behind this one, as hubs say: a standby shares none of them with the path in use
    /// where there is such a one. It lasts until it is said anew, whether a path by the hub is listed or not.
    pub fn set_over(&mut self, hub: HubSlot, over: &[HubSlot], now: Instant) {
        if over.is_empty() {
            self.over.remove(&hub);
        } else {
            self.over.insert(hub, over.to_vec());
        }
        self.settle(now);
    }

    /// Known dead: the hub's stream closed, its label was revoked, the socket refused. Lanes leave it at
    /// once where another path is usable; it must answer probes before it is used again.
    pub fn fail(&mut self, path: PathKind, now: Instant) {
        if let Some(path) = self.paths.values_mut().find(|p| p.kind == path && p.phase != Phase::Dead) {
            let id = path.id;
            path.die(now);
            self.excuse(id, MoveReason::Failed);
            self.settle(now);
        }
    }

    /// The hub asked to be left: lanes leave it gracefully and do not come back to it
    /// until it is listed by [`set_relays`](Self::set_relays) after having been absent.
    pub fn drain(&mut self, hub: HubSlot, now: Instant) {
        if !self.draining.insert(hub) {
            return;
        }
        for path in self.paths.values_mut().filter(|path| path.kind.hub() == Some(hub)) {
            path.draining = true;
        }
        // Whoever takes over must be known to work.
        self.kick(now);
        self.settle(now);
    }

    /// This node's own network changed: every path is asked again at once.
    pub fn reprobe(&mut self, now: Instant) {
        for path in self.paths.values_mut() {
            path.renew(now);
            path.size.restart();
        }
        self.settle(now);
    }

    /// Traffic may turn to this peer at any moment: until then its paths are asked as if there had been some not long
    /// ago, and the first miss is settled at once.
    pub fn keep_warm(&mut self, until: Instant, now: Instant) {
        let was = self.activity(now);
        self.warm_until = self.warm_until.max(Some(until));
        self.told_idle = None;
        match was {
            schedule::Activity::Hot | schedule::Activity::Warm => {}
            schedule::Activity::Idle | schedule::Activity::Gone => self.kick(now),
        }
        self.settle(now);
    }

    /// Probes of this many times the interval: for a node with very many active peers.
    pub fn set_stretch(&mut self, stretch: NonZeroU32) {
        self.stretch = stretch.get();
    }

    /// Data datagrams that were sent on the lane's path. `bytes` without labels. Only data counts: what the
    /// receiver will hand to `on_received`.
    pub fn on_sent(&mut self, lane: LaneId, packets: u32, bytes: u64, now: Instant) {
        if let Some(path) = self.lane(lane).and_then(|lane| lane.path).and_then(|id| self.paths.get_mut(&id)) {
            path.ledger.add(packets, bytes);
        }
        let mean = usize::try_from(bytes / u64::from(packets.max(1))).unwrap_or(usize::MAX);
        if mean >= self.data_size.0 || now.saturating_duration_since(self.data_size.1) > DATA_SIZE_LASTS {
            self.data_size = (mean, now);
        }
        self.traffic(now);
    }

    /// Data datagrams that came in by `ingress` and opened, whatever policy then says to them; not
    /// keepalives. `bytes` without labels.
    /// Which lane they came on does not matter: all lanes of a path share its fate.
    pub fn on_received(&mut self, ingress: PathKind, _lane: LaneId, packets: u32, bytes: u64, now: Instant) {
        self.inbox.count(ingress, packets, bytes, now);
        if self.last_arrival.is_none_or(|(kind, at)| kind != ingress || now >= at + ARRIVAL_PAUSE) {
            self.arrive(ingress, now);
            self.settle(now);
        }
        self.traffic(now);
    }

    /// The peer's probe. Send the reply by the reverse of `ingress` and, where different, by the primary's path.
    pub fn handle_probe(&mut self, probe: Probe, ingress: PathKind, now: Instant) -> ProbeReply {
        if self.inbox.hear(probe.path, probe.seq, probe.instance, ingress, now) == Restarted::Yes {
            self.peer_restarted(now);
        }
        self.wake(now);
        self.arrive(ingress, now);
        self.settle(now);
        let Probe { path, seq, instance: _, about } = probe;
        ProbeReply { path, seq, instance: self.instance, about, received: self.inbox.report(about) }
    }

    /// The peer's reply to a probe of ours, by whatever path it came.
    pub fn handle_reply(&mut self, reply: ProbeReply, ingress: PathKind, now: Instant) {
        if self.peer_instance.replace(reply.instance).is_some_and(|before| before != reply.instance) {
            self.peer_restarted(now);
        }
        self.arrive(ingress, now);
        if let Some(path) = self.paths.get_mut(&reply.path) {
            let asked = path.answer(reply.seq, reverse(path.kind, ingress), now);
            if let Some(asked) = asked.filter(|asked| asked.about == reply.about) {
                self.weigh(reply, asked.tally, asked.at, now);
            }
        }
        self.settle(now);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.settle(now);
    }

    /// A probe to send now.
    pub fn poll_transmit(&mut self) -> Option<ProbeOut> {
        self.transmits.pop_front()
    }

    /// What changed.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
    }

    /// The lane that carries flows, or the first of those that do.
    pub fn primary(&self) -> LaneId {
        self.primary
    }

    /// Where the lane's datagrams go. `None`: nothing is usable (yet).
    pub fn active(&self, lane: LaneId) -> Option<PathKind> {
        self.kind(self.lane(lane)?.path?)
    }

    /// Where the lane would go if its path died now.
    pub fn standby(&self, lane: LaneId) -> Option<PathKind> {
        if self.carries(lane) {
            return self.kind(self.lane(lane)?.standby?);
        }
        self.active(self.primary).filter(|primary| self.active(lane) != Some(*primary))
    }

    /// Every path, best first.
    pub fn paths(&self) -> impl Iterator<Item = PathStatus> {
        let mut paths: Vec<&Path> = self.paths.values().collect();
        paths.sort_by_key(|path| (place::class(path.kind), path.cost(), path.id));
        paths.into_iter().map(|path| PathStatus {
            kind: path.kind,
            state: match path.phase {
                Phase::Dead => PathState::Dead,
                Phase::Untested => PathState::Untested,
                Phase::Valid if path.missed() > 0 => PathState::Suspect,
                Phase::Valid => PathState::Valid,
            },
            lane: self.carriers().chain(LaneId::all()).find(|lane| self.uses(*lane, path.id)),
            rtt: path.rtt(),
            loss: path.loss(),
            mtu: path.size.current(),
        })
    }

    /// Since when nothing is known to arrive at the peer by any path although it was asked again and again: the first
    /// question without an answer. `None`: it answers, or that is not known yet.
    pub fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    /// The latest time at which something was sent of which it is known that it arrived.
    pub fn delivered(&self) -> Option<Instant> {
        self.delivered
    }

    /// The longest round trip of all that may be used, as far as it is known or supposed.
    pub fn slowest(&self) -> Duration {
        self.paths.values().map(Path::cost).max().unwrap_or_default()
    }

    /// The largest datagram (without label) that each path carries by which flows go, and its standby.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// What a reply says about the path that its probe asked about: `tally` is what had been sent by it.
    fn weigh(&mut self, reply: ProbeReply, tally: Tally, asked: Instant, now: Instant) {
        let (Some(received), span) = (reply.received, self.config.evidence_span) else { return };
        let Some(about) = self.paths.get_mut(&reply.about) else { return };
        about.heard(received.heard, now);
        if let Some(at) = about.ledger.hear(received.into(), asked) {
            about.deliver(at);
        }
        if reply.about != reply.path {
            return;
        }
        match about.ledger.judge(tally, received.into(), asked, span) {
            // Until it is known which sizes pass, the size may be all that is wrong.
            Verdict::Lossy if about.size.urgency() > Urgency::Low => {}
            Verdict::BlackHole | Verdict::Lossy => {
                self.condemn(reply.about, Need::Life, now);
            }
            Verdict::Doubt => {
                about.size.doubt(now);
                about.due = Some(now);
            }
            Verdict::Delivers => self.pardon.delivered(about.kind, asked),
            Verdict::Unclear => {}
        }
    }

    /// An authentic packet came in this way: worth a probe the same way back, unless that is known to work.
    fn arrive(&mut self, ingress: PathKind, now: Instant) {
        self.last_arrival = Some((ingress, now));
        if let PathKind::Direct(endpoint) = ingress
            && !self.paths.values().any(|path| path.kind == ingress)
        {
            // The peer may have left the endpoint that is in use.
            if is_sendable(endpoint) && self.direct(endpoint, now).is_some() {
                self.kick(now);
            }
            return;
        }
        let same = |path: &&mut Path| path.kind == ingress || path.kind.hub().is_some_and(|h| Some(h) == ingress.hub());
        for path in self.paths.values_mut().filter(same) {
            let unsure = path.phase != Phase::Valid || path.missed() > 0;
            if unsure && path.last_sent().is_none_or(|at| now >= at + ARRIVAL_PAUSE) {
                path.tries = path.tries.min(schedule::MAX_TRIES - 1);
                path.due = Some(now);
            }
        }
    }

    /// The peer's counters start again, and it may be somewhere else.
    fn peer_restarted(&mut self, now: Instant) {
        for path in self.paths.values_mut() {
            path.ledger.restart();
        }
        self.kick(now);
    }

    /// The peer, or who gives ways to it, expects it to be at hand: that it is at rest is told anew, somewhat later.
    fn wake(&mut self, now: Instant) {
        (self.asked, self.told_idle) = (Some(now), None);
    }

    fn traffic(&mut self, now: Instant) {
        let was = self.activity(now);
        self.last_traffic = self.last_traffic.max(now);
        match was {
            schedule::Activity::Hot => {}
            schedule::Activity::Warm | schedule::Activity::Idle | schedule::Activity::Gone => {
                self.kick(now);
                self.settle(now);
            }
        }
    }

    /// Everything that may be used is asked now.
    fn kick(&mut self, now: Instant) {
        for path in self.paths.values_mut() {
            let hopeless = path.kind.is_direct() && path.phase == Phase::Untested && path.tries >= schedule::MAX_TRIES;
            if !hopeless {
                path.due = Some(path.due.map_or(now, |due| due.min(now)));
            }
        }
    }

    /// Brings everything up to date after any change.
    fn settle(&mut self, now: Instant) {
        self.expire(now);
        self.place(now);
        self.tell(now);
        self.schedule(now);
        let lanes = self.carriers().filter_map(|lane| self.lane(lane));
        let used = lanes.flat_map(|lane| [lane.path, lane.standby]).flatten();
        let sizes = used.filter_map(|id| self.paths.get(&id)).map(|path| path.size.current());
        self.mtu = sizes.min().unwrap_or(self.config.max_datagram);
        self.delivered = self.paths.values().filter_map(Path::alive).max().max(self.delivered);
        let primary = self.carried(self.primary).filter(|path| path.missed() >= place::MISSES);
        let since = primary.and_then(Path::missed_since);
        self.silent_since = since.filter(|since| self.delivered < Some(*since));
    }

    /// Turns what changed into events.
    fn tell(&mut self, now: Instant) {
        for lane in LaneId::all() {
            let path = self.active(lane);
            let Some(state) = self.lanes.get_mut(lane.index()) else { continue };
            if path != state.told {
                self.events.push_back(PathEvent::Moved { lane, path, was: state.told, reason: state.reason });
                state.told = path;
            }
        }
        if self.primary != self.told_primary {
            let (lane, was, reason) = (self.primary, self.told_primary, self.primary_reason);
            self.events.push_back(PathEvent::Primary { lane, was, reason });
            self.told_primary = self.primary;
        }
        if self.idle_at().is_some_and(|at| at <= now) {
            self.told_idle = Some(self.last_traffic);
            self.events.push_back(PathEvent::Idle);
        }
    }

    /// The direct path to an endpoint, made if there is room.
    fn direct(&mut self, endpoint: Endpoint, now: Instant) -> Option<&mut Path> {
        let kind = PathKind::Direct(endpoint);
        let direct = || self.paths.values().filter(|path| path.kind.is_direct());
        if direct().count() >= MAX_DIRECT && !direct().any(|path| path.kind == kind) {
            let useless = direct().filter(|path| !path.listed && path.phase != Phase::Valid).map(|path| path.id).min();
            self.remove(useless?);
        }
        self.insert(kind, now)
    }

    /// The path of this kind, made if there is none.
    fn insert(&mut self, kind: PathKind, now: Instant) -> Option<&mut Path> {
        let id = match self.paths.values().find(|path| path.kind == kind) {
            Some(path) => path.id,
            None => {
                let free = (0..=u16::MAX).map(|i| PathId(self.next_id.wrapping_add(i)));
                let id = free.into_iter().find(|id| !self.paths.contains_key(id))?;
                self.next_id = id.0.wrapping_add(1);
                self.paths.insert(id, Path::new(id, kind, Duration::ZERO, self.config.max_datagram, now));
                id
            }
        };
        self.paths.get_mut(&id)
    }

    fn remove(&mut self, id: PathId) {
        self.paths.remove(&id);
        self.excuse(id, MoveReason::Failed);
        for lane in self.lanes.iter_mut().filter(|lane| lane.path == Some(id)) {
            lane.path = None;
        }
    }

    /// Why lanes on this path will move, if they do.
    fn excuse(&mut self, id: PathId, reason: MoveReason) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.path == Some(id)) {
            lane.reason = reason;
        }
    }

    fn kind(&self, id: PathId) -> Option<PathKind> {
        Some(self.paths.get(&id)?.kind)
    }

    fn lane(&self, lane: LaneId) -> Option<&Lane> {
        self.lanes.get(lane.index())
    }

    fn uses(&self, lane: LaneId, id: PathId) -> bool {
        self.lane(lane).is_some_and(|lane| lane.path == Some(id))
    }
}

/// Where a lane is.
#[derive(Clone, Copy, Debug)]
struct Lane {
    path: Option<PathId>,
    /// Where it would go, while it carries flows.
    standby: Option<PathId>,
    /// What the owner was told.
    told: Option<PathKind>,
    /// Why it went there, or will leave.
    reason: MoveReason,
    /// Greater than that of every lane which came to its path earlier.
    arrival: u64,
    /// It carried flows until recently: it stays where it is until then.
    quiet_until: Option<Instant>,
}

impl Default for Lane {
    fn default() -> Self {
        Self { path: None, standby: None, told: None, reason: MoveReason::First, arrival: 0, quiet_until: None }
    }
}

impl Lane {
    /// What it carried may still be under way.
    fn is_quiet(&self, now: Instant) -> bool {
        self.quiet_until.is_some_and(|until| now < until)
    }
}

/// A path that looks better than the one of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Better {
    lane: LaneId,
    path: PathId,
    since: Instant,
}

/// What another path must offer to be moved to from one that swallows data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It answers.
    Life,
    /// It carries datagrams of this size.
    Size(usize),
}

impl Relay {
    fn kind(&self) -> PathKind {
        PathKind::Relay { hub: self.hub, leg: self.leg }
    }
}

/// Whether the reply came back by the path of its probe. The legs of a hub are one: which of them it uses
/// toward this node does not depend on the probe.
fn reverse(path: PathKind, ingress: PathKind) -> Reverse {
    let same = match (path, ingress) {
        (PathKind::Direct(a), PathKind::Direct(b)) => a == b,
        (PathKind::Relay { hub: a, leg: _ }, PathKind::Relay { hub: b, leg: _ }) => a == b,
        (PathKind::Direct(_), PathKind::Relay { .. }) | (PathKind::Relay { .. }, PathKind::Direct(_)) => false,
    };
    if same { Reverse::Same } else { Reverse::Other }
}

/// Whether a datagram may be sent there at all.
fn is_sendable(endpoint: Endpoint) -> bool {
    let address = endpoint.socket_addr();
    let ip = address.ip();
    let broadcast = matches!(ip, std::net::IpAddr::V4(v4) if v4.is_broadcast());
    address.port() != 0 && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// A relayed path that can be used: its label exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The first hub.
    pub hub: HubSlot,
    /// How to get there.
    pub leg: Leg,
    /// Round trip to the hub: ranks the path until its own is known.
    pub rtt: Duration,
}

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeOut {
    /// By which path.
    pub path: PathKind,
    /// What to seal.
    pub probe: Probe,
    /// Pad the sealed datagram (without label) to this many bytes.
    pub size: usize,
}

/// A path as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathStatus {
    /// Which.
    pub kind: PathKind,
    /// How it does.
    pub state: PathState,
    /// The lanes' use of it.
    pub lane: Option<LaneId>,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Share of probes that were not answered, smoothed, 0 to 1.
    pub loss: f32,
    /// Largest datagram (without label) that it carries, as far as known.
    pub mtu: usize,
}

/// How a path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathState {
    /// Not answered yet.
    Untested,
    /// Answers.
    Valid,
    /// A probe was missed.
    Suspect,
    /// Does not answer.
    Dead,
}

/// How many candidates a peer may name.
pub const MAX_CANDIDATES: usize = 8;

/// Candidates and sources that were learned, together.
const MAX_DIRECT: usize = 12;
/// Two legs of each of more hubs than a node attaches to.
const MAX_RELAYS: usize = 32;
/// A packet from an unsure path brings one probe in this time.
const ARRIVAL_PAUSE: Duration = Duration::from_millis(50);
/// The size of data is remembered so long.
const DATA_SIZE_LASTS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
