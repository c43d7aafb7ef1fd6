//! Two nodes and the hubs between them: delay, loss and faults by direction, under a virtual clock.

use std::collections::BTreeMap;

use super::*;
use crate::{Spread, random::Random};

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// What a path does to datagrams of one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    None,
    Cut,
    /// Probes pass, whatever their size; data does not.
    Data,
    /// Larger datagrams do not pass.
    Larger(usize),
}

/// Data that one side sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) every: Duration,
    pub(super) packets: u32,
    pub(super) size: u64,
}

/// The direct path to this side, as the other one sees it.
pub(super) fn direct(to: Side) -> PathKind {
    PathKind::Direct(Endpoint::new(([192, 0, 2, to as u8 + 1], 51820).into()))
}

pub(super) fn relay(hub: u8) -> PathKind {
    PathKind::Relay { hub: HubSlot(hub), leg: Leg::Udp }
}

pub(super) fn tls(hub: u8) -> PathKind {
    PathKind::Relay { hub: HubSlot(hub), leg: Leg::Tls }
}

/// A node.
pub(super) struct End {
    pub(super) paths: PeerPaths,
    /// Where it appears when it sends directly.
    seen_as: PathKind,
    flows: Vec<(Flow, Instant)>,
    events: Vec<PathEvent>,
    probes: BTreeMap<PathKind, usize>,
    probe_bytes: usize,
    last_data: Option<Instant>,
    longest_gap: Duration,
    /// Bytes of data by flow and path.
    sent: BTreeMap<(u32, PathKind), u64>,
    silent: bool,
    now: Instant,
}

impl End {
    fn new(side: Side, seed: u64, now: Instant) -> Self {
        Self {
            paths: PeerPaths::new(PathConfig::default(), seed, now),
            seen_as: direct(side),
            flows: Vec::new(),
            events: Vec::new(),
            probes: BTreeMap::new(),
            probe_bytes: 0,
            last_data: None,
            longest_gap: Duration::ZERO,
            sent: BTreeMap::new(),
            silent: false,
            now,
        }
    }

    /// The paths that a flow took since [`Net::reset_gaps`].
    pub(super) fn ways(&self, flow: u32) -> Vec<PathKind> {
        self.sent.keys().filter(|(of, _)| *of == flow).map(|(_, path)| *path).collect()
    }

    /// The share of all data that went by a path since then.
    pub(super) fn share(&self, path: PathKind) -> f64 {
        let of = |wanted: &dyn Fn(PathKind) -> bool| -> u64 {
            self.sent.iter().filter(|((_, by), _)| wanted(*by)).map(|(_, bytes)| *bytes).sum()
        };
        of(&|by| by == path) as f64 / of(&|_| true) as f64
    }

    /// Hubs that were told to be silent, in order.
    pub(super) fn silent(&self) -> Vec<HubSlot> {
        let silent = |event: &PathEvent| if let PathEvent::Silent { hub } = event { Some(*hub) } else { None };
        self.events.iter().filter_map(silent).collect()
    }

    /// How many lanes carry flows.
    pub(super) fn carriers(&self) -> usize {
        LaneId::all().filter(|lane| self.paths.carries(*lane)).count()
    }

    /// The path that flows take.
    pub(super) fn active(&self) -> Option<PathKind> {
        self.paths.active(self.paths.primary())
    }

    pub(super) fn offer(&mut self, path: PathKind) {
        let PathKind::Direct(endpoint) = path else { panic!("{path} is not direct") };
        self.paths.set_direct(&[endpoint], self.now);
    }
}

enum Datagram {
    Data { lane: LaneId, packets: u32, size: u64 },
    Probe(Probe),
    Reply(ProbeReply),
}

struct Delivery {
    to: Side,
    ingress: PathKind,
    datagram: Datagram,
}

/// The world.
pub(super) struct Net {
    pub(super) now: Instant,
    random: Random,
    ends: [End; 2],
    relays: Vec<Relay>,
    delays: BTreeMap<(Side, PathKind), Duration>,
    faults: BTreeMap<(Side, PathKind), Fault>,
    jitter: Duration,
    loss: f64,
    queue: BTreeMap<(Instant, u64), Delivery>,
    count: u64,
}

impl Net {
    pub(super) fn seeded(seed: u64) -> Self {
        let now = Instant::now() + Duration::from_secs(10);
        let mut random = Random::new(seed);
        let ends = [Side::A, Side::B].map(|side| End::new(side, random.next_u64(), now));
        Self {
            now,
            random,
            ends,
            relays: Vec::new(),
            delays: BTreeMap::new(),
            faults: BTreeMap::new(),
            jitter: Duration::ZERO,
            loss: 0.0,
            queue: BTreeMap::new(),
            count: 0,
        }
    }

    /// Hubs with these one-way delays from node to node.
    pub(super) fn hubs(mut self, delays: &[Duration]) -> Self {
        for (slot, delay) in delays.iter().enumerate() {
            let hub = HubSlot(u8::try_from(slot).unwrap());
            self.relays.push(Relay { hub, leg: Leg::Udp, rtt: *delay });
            self.set_delay(relay(hub.0), *delay);
        }
        self.list();
        self
    }

    /// Both nodes spread their flows.
    pub(super) fn spread(mut self) -> Self {
        for side in [Side::A, Side::B] {
            let config = PathConfig { spread: Spread::On, ..PathConfig::default() };
            self.ends[side as usize].paths = PeerPaths::new(config, self.random.next_u64(), self.now);
        }
        self.list();
        self
    }

    /// TLS streams to the same hubs.
    pub(super) fn streams(mut self) -> Self {
        for Relay { hub, leg: _, rtt } in self.relays.clone() {
            self.relays.push(Relay { hub, leg: Leg::Tls, rtt });
            self.set_delay(tls(hub.0), rtt);
        }
        self.list();
        self
    }

    pub(super) fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    pub(super) fn relays(&self) -> Vec<Relay> {
        self.relays.clone()
    }

    fn list(&mut self) {
        for end in &mut self.ends {
            end.paths.set_relays(&self.relays, self.now);
            while end.paths.poll_event().is_some() {}
        }
    }

    pub(super) fn end(&self, side: Side) -> &End {
        &self.ends[side as usize]
    }

    pub(super) fn end_mut(&mut self, side: Side) -> &mut End {
        let end = &mut self.ends[side as usize];
        end.now = self.now;
        end
    }

    pub(super) fn flow(&mut self, side: Side, flow: Flow) {
        let now = self.now;
        self.end_mut(side).flows.push((flow, now));
    }

    pub(super) fn stop_flows(&mut self) {
        self.ends.iter_mut().for_each(|end| end.flows.clear());
    }

    pub(super) fn lose(&mut self, loss: f64) {
        self.loss = loss;
    }

    pub(super) fn fault(&mut self, from: Side, path: PathKind, fault: Fault) {
        self.faults.insert((from, path), fault);
    }

    pub(super) fn set_delay(&mut self, path: PathKind, delay: Duration) {
        self.set_delay_from(Side::A, path, delay);
        self.set_delay_from(Side::B, path, delay);
    }

    pub(super) fn set_delay_from(&mut self, from: Side, path: PathKind, delay: Duration) {
        self.delays.insert((from, path), delay);
    }

    /// Both sides learn each other's endpoint.
    pub(super) fn offer_direct(&mut self) {
        for side in [Side::A, Side::B] {
            let path = direct(side.other());
            self.end_mut(side).offer(path);
        }
    }

    /// The NAT of this side forgets: it appears elsewhere, and its old endpoint leads nowhere.
    pub(super) fn rebind_nat(&mut self, side: Side) {
        let PathKind::Direct(old) = self.end(side).seen_as else { panic!("always direct") };
        self.fault(side.other(), PathKind::Direct(old), Fault::Cut);
        let mut address = old.socket_addr();
        address.set_port(address.port() + 1);
        self.end_mut(side).seen_as = PathKind::Direct(Endpoint::new(address));
    }

    /// The node forgets everything, and starts again with the same hubs.
    pub(super) fn restart(&mut self, side: Side) {
        let (seed, relays, now) = (self.random.next_u64(), self.relays(), self.now);
        let end = self.end_mut(side);
        end.paths = PeerPaths::new(end.paths.config, seed, now);
        end.paths.set_relays(&relays, now);
        end.silent = false;
    }

    /// The node neither sends nor hears.
    pub(super) fn silence(&mut self, side: Side) {
        self.end_mut(side).silent = true;
    }

    pub(super) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs until the condition holds, for at most this long.
    pub(super) fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) {
        let end = self.now + time;
        self.drain();
        while !done(self) {
            let timers = self.ends.iter().filter(|e| !e.silent).filter_map(|e| e.paths.poll_timeout());
            let flows = self.ends.iter().filter(|e| !e.silent).flat_map(|e| e.flows.iter().map(|(_, at)| *at));
            let queue = self.queue.first_key_value().map(|((at, _), _)| *at);
            let next = timers.chain(flows).chain(queue).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            self.step();
            self.drain();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= now) {
            let delivery = entry.remove();
            self.deliver(delivery);
            self.drain();
        }
        for side in [Side::A, Side::B] {
            let end = &mut self.ends[side as usize];
            if end.silent {
                continue;
            }
            if end.paths.poll_timeout().is_some_and(|at| at <= now) {
                end.paths.handle_timeout(now);
                assert!(end.paths.poll_timeout().is_none_or(|at| at > now), "a timer in the past spins");
            }
            let mtu = end.paths.mtu() as u64;
            let mut due = Vec::new();
            for (hash, (flow, at)) in (0..).zip(&mut end.flows).filter(|(_, (_, at))| *at <= now) {
                *at = now + flow.every;
                due.push((hash, *flow));
            }
            for (hash, Flow { every: _, packets, size }) in due {
                let end = &mut self.ends[side as usize];
                end.paths.on_flow(hash, now);
                let lane = end.paths.lanes_of(hash).find(|lane| end.paths.active(*lane).is_some());
                let Some((lane, path)) = lane.and_then(|lane| Some((lane, end.paths.active(lane)?))) else { continue };
                let size = size.min(mtu);
                *end.sent.entry((hash, path)).or_default() += size * u64::from(packets);
                end.paths.on_sent(lane, packets, size * u64::from(packets), now);
                let arrive = (0..packets).filter(|_| self.loss == 0.0 || self.chance() >= self.loss).count();
                if arrive > 0 {
                    let packets = u32::try_from(arrive).unwrap();
                    self.send(side, path, Datagram::Data { lane, packets, size });
                }
            }
        }
    }

    fn deliver(&mut self, Delivery { to, ingress, datagram }: Delivery) {
        let now = self.now;
        let end = &mut self.ends[to as usize];
        if end.silent {
            return;
        }
        match datagram {
            Datagram::Data { lane, packets, size } => {
                let gap = end.last_data.map_or(Duration::ZERO, |last| now - last);
                end.longest_gap = end.longest_gap.max(gap);
                end.last_data = Some(now);
                end.paths.on_received(ingress, lane, packets, size * u64::from(packets), now);
            }
            Datagram::Probe(probe) => {
                let probe = Probe::decode(&probe.encode()).unwrap();
                let reply = end.paths.handle_probe(probe, ingress, now);
                let active = end.active();
                self.send(to, ingress, Datagram::Reply(reply));
                if let Some(active) = active.filter(|active| *active != ingress) {
                    self.send(to, active, Datagram::Reply(reply));
                }
            }
            Datagram::Reply(reply) => {
                let reply = ProbeReply::decode(&reply.encode()).unwrap();
                end.paths.handle_reply(reply, ingress, now);
            }
        }
    }

    fn drain(&mut self) {
        for side in [Side::A, Side::B] {
            while let Some(out) = self.ends[side as usize].paths.poll_transmit() {
                if self.ends[side as usize].silent {
                    continue;
                }
                let end = &mut self.ends[side as usize];
                *end.probes.entry(out.path).or_default() += 1;
                end.probe_bytes += out.size;
                self.transmit(side, out.path, Datagram::Probe(out.probe), out.size);
            }
            let end = &mut self.ends[side as usize];
            while let Some(event) = end.paths.poll_event() {
                end.events.push(event);
            }
        }
    }

    fn send(&mut self, from: Side, path: PathKind, datagram: Datagram) {
        let size = match datagram {
            Datagram::Data { size, .. } => usize::try_from(size).unwrap(),
            Datagram::Probe(_) | Datagram::Reply(_) => 64,
        };
        self.transmit(from, path, datagram, size);
    }

    fn transmit(&mut self, from: Side, path: PathKind, datagram: Datagram, size: usize) {
        let lost = match self.faults.get(&(from, path)).copied().unwrap_or(Fault::None) {
            Fault::None => false,
            Fault::Cut => true,
            Fault::Data => matches!(datagram, Datagram::Data { .. }),
            Fault::Larger(limit) => size > limit,
        };
        let data = matches!(datagram, Datagram::Data { .. });
        if lost || (!data && self.chance() < self.loss) {
            return;
        }
        let to = from.other();
        let ingress = match path {
            PathKind::Direct(_) => self.end(from).seen_as,
            // The receiver has its streams for when it is not reachable by UDP; here always the UDP leg.
            PathKind::Relay { hub, leg: _ } => PathKind::Relay { hub, leg: Leg::Udp },
        };
        let delay = self.delays.get(&(from, path)).copied().unwrap_or(Duration::from_micros(500));
        let jitter = self.jitter.as_micros() as u64;
        let jitter = Duration::from_micros(if jitter == 0 { 0 } else { self.random.next_u64() % jitter });
        self.count += 1;
        self.queue.insert((self.now + delay + jitter, self.count), Delivery { to, ingress, datagram });
    }

    /// From 0 to 1.
    fn chance(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn reset_gaps(&mut self) {
        for end in &mut self.ends {
            (end.last_data, end.longest_gap) = (Some(self.now), Duration::ZERO);
            end.sent.clear();
        }
        self.settle_events();
    }

    /// Forgets the events until here.
    pub(super) fn settle_events(&mut self) {
        self.ends.iter_mut().for_each(|end| end.events.clear());
    }

    /// The longest time without data at any side to which data flows, until now.
    pub(super) fn longest_gap(&self) -> Duration {
        let gap = |side: Side| {
            let end = self.end(side);
            if self.end(side.other()).flows.is_empty() {
                return Duration::ZERO;
            }
            end.longest_gap.max(end.last_data.map_or(Duration::ZERO, |last| self.now - last))
        };
        gap(Side::A).max(gap(Side::B))
    }

    pub(super) fn events(&self, side: Side) -> &[PathEvent] {
        &self.end(side).events
    }

    /// How often the flows changed their path.
    pub(super) fn moves(&self, side: Side) -> usize {
        let flows = |event: &&PathEvent| match event {
            PathEvent::Moved { lane, .. } => *lane == LaneId::PRIMARY,
            PathEvent::Primary { .. } => true,
            PathEvent::Idle | PathEvent::Silent { .. } => false,
        };
        self.events(side).iter().filter(flows).count()
    }

    /// How often any lane changed its path.
    pub(super) fn changes(&self, side: Side) -> usize {
        self.events(side).iter().filter(|event| matches!(event, PathEvent::Moved { .. })).count()
    }

    pub(super) fn probes(&self, side: Side) -> usize {
        self.end(side).probes.values().sum()
    }

    pub(super) fn probes_by(&self, side: Side, path: PathKind) -> usize {
        self.end(side).probes.get(&path).copied().unwrap_or_default()
    }

    pub(super) fn probe_bytes(&self, side: Side) -> usize {
        self.end(side).probe_bytes
    }
}
