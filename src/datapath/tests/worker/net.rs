//! Workers and hubs in memory: a virtual clock, wires with delay and loss, and a hub that rewrites labels.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test's own network")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{
    Command, DropReason, Event, Handed, HubUdp, Owner, PeerInfo, PeerKeys, Sink, Snapshot, Transmit, Worker,
    WorkerConfig,
};
use flatlan_packet::Gro;
use flatlan_path::Spread;
use flatlan_relay::{
    BindKey, BindSecret,
    bind::{Bind, Bound, Verdict},
    frame::{self, Header},
    steer::worker_of,
};
use flatlan_roster::OwnerTable;
use flatlan_types::{
    BootEpoch, Endpoint, HubSlot, Label, NetworkId, NodeSecret, NodeSeed, PeerSlot, Prefix, SenderHint, Share,
    VirtualIp, WorkerId, Workers,
};
use flatlan_wg::{Boringtun, Engine, Plain, Sessions, Tunnel};

/// A worker over the stand-in engine, whose time is the network's.
pub(crate) type PlainNet = Net<Engine<Plain>>;
/// A worker over boringtun: for what takes little time.
pub(crate) type BoringNet = Net<Engine<Boringtun>>;

/// Nodes, hubs, and what is on its way between them.
pub(crate) struct Net<S> {
    pub now: Instant,
    pub nodes: Vec<Node<S>>,
    pub hubs: Vec<Hub>,
    /// Nodes reach each other without a hub.
    pub direct: bool,
    /// One in this many datagrams is lost; zero: none.
    pub loss: u64,
    /// What the wires mark every datagram with, where its sender understands marks.
    pub congested: bool,
    /// How long a datagram is on its way.
    pub delay: Duration,
    /// Longest datagram that the direct wires carry.
    pub mtu: usize,
    /// Datagrams on their way, in the order of their arrival.
    wires: BTreeMap<(Instant, u64), (Place, Arrival)>,
    /// All that ever arrived at a node.
    pub tape: Vec<(usize, Arrival)>,
    /// Every UDP send: where to, and what.
    pub captured: Vec<(Endpoint, Vec<u8>)>,
    sequence: u64,
    random: u64,
}

pub(crate) struct Node<S> {
    /// The first worker, or the only one.
    pub worker: Worker<S>,
    /// The others.
    pub others: Vec<Worker<S>>,
    /// What its workers were given.
    pub snapshot: Arc<Snapshot>,
    pub at: Endpoint,
    pub events: Vec<Event>,
    /// Packets written to the TUN, with when.
    pub tun: Vec<(Instant, Vec<u8>)>,
    /// Sends on the UDP socket: where to, datagrams, bytes of each, ECN.
    pub sends: Vec<(Endpoint, usize, usize, u8)>,
    pub epoch: u64,
    pub mute: bool,
    /// Its control machine takes no events.
    pub held: bool,
}

pub(crate) struct Hub {
    pub at: Endpoint,
    pub slot: HubSlot,
    /// (label to the hub) -> (receiver, label to it).
    labels: BTreeMap<Label, (usize, Label)>,
    /// Where each node is bound.
    bound: BTreeMap<usize, Endpoint>,
    /// It forwards nothing.
    pub dead: bool,
    /// It does not hear UDP.
    pub deaf: bool,
    /// It passes what is sealed, and drops data.
    pub swallows_data: bool,
}

/// Where a datagram arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Node(usize),
    Hub(usize),
}

/// What arrives.
#[derive(Clone, Debug)]
pub(crate) enum Arrival {
    Udp { from: Endpoint, contents: Vec<u8>, stride: usize, ecn: u8 },
    Stream { hub: HubSlot, packed: Vec<u8> },
}

/// What a worker says, until it is put on the wires.
#[derive(Default)]
pub(crate) struct Out {
    udp: Vec<(Endpoint, Vec<u8>, usize, u8)>,
    streams: Vec<(HubSlot, Vec<u8>)>,
    tun: Vec<Vec<u8>>,
    handed: Vec<(WorkerId, Belongs)>,
}

/// What belongs to another worker.
enum Belongs {
    Datagrams(Arrival),
    Packet(PeerSlot, Vec<u8>),
}

impl Sink for Out {
    fn send_udp(&mut self, t: &Transmit<'_>) -> Result<(), DropReason> {
        self.udp.push((t.to, t.contents.to_vec(), t.segment, t.traffic_class));
        Ok(())
    }

    fn send_stream(&mut self, hub: HubSlot, packed: &[u8]) -> Result<(), DropReason> {
        self.streams.push((hub, packed.to_vec()));
        Ok(())
    }

    fn write_tun(&mut self, packet: &mut [u8]) -> Result<(), DropReason> {
        self.tun.push(packet.to_vec());
        Ok(())
    }

    fn hand_over(&mut self, to: WorkerId, what: &Handed<'_>) -> Result<(), DropReason> {
        let belongs = match what {
            Handed::Datagrams { from, contents, stride, ecn } => Belongs::Datagrams(Arrival::Udp {
                from: *from,
                contents: contents.to_vec(),
                stride: *stride,
                ecn: *ecn,
            }),
            Handed::Packet { peer, header_and_packet } => Belongs::Packet(*peer, header_and_packet.to_vec()),
        };
        self.handed.push((to, belongs));
        Ok(())
    }
}

pub(crate) fn network() -> NetworkId {
    NetworkId::from_bytes([7; 32])
}

pub(crate) fn secret(n: usize) -> NodeSecret {
    NodeSeed::from_bytes([n as u8 + 1; 32]).derive()
}

pub(crate) fn ip(n: usize) -> [u8; 4] {
    [10, 0, 0, n as u8 + 1]
}

pub(crate) fn slot(n: usize) -> PeerSlot {
    PeerSlot(n as u32)
}

/// The snapshot of node `me` where these nodes are members; each owns 10.0.0.N/32, fd00::N/128 and
/// 10.N.0.0/16, and all but node 0 together own [`SHARED`].
pub(crate) fn snapshot(generation: u64, me: usize, members: &[usize], stock: &[usize]) -> Arc<Snapshot> {
    snapshot_but(generation, me, members, stock, "")
}

/// The same, where nobody owns this prefix.
pub(crate) fn snapshot_but(
    generation: u64,
    me: usize,
    members: &[usize],
    stock: &[usize],
    unowned: &str,
) -> Arc<Snapshot> {
    let mut owners: Vec<(Prefix, Owner)> = Vec::new();
    let mut peers = Vec::new();
    for n in members.iter().copied() {
        let owner = if n == me { Owner::Me } else { Owner::Peer(slot(n)) };
        for prefix in [format!("10.0.0.{}/32", n + 1), format!("fd00::{}/128", n + 1), format!("10.{}.0.0/16", n + 1)] {
            owners.push((prefix.parse().unwrap(), owner));
        }
        if n > 0 {
            owners.push((SHARED.parse().unwrap(), owner));
        }
        if n != me {
            let keys = secret(n).public();
            let keys = if stock.contains(&n) { PeerKeys::Stock(keys.session) } else { PeerKeys::Node(keys) };
            peers.push((slot(n), PeerInfo { name: format!("n{n}").parse().unwrap(), keys, psk: None, priority: 0 }));
        }
    }
    owners.retain(|(prefix, _)| prefix.to_string() != unowned);
    let owners = OwnerTable::new(owners);
    Arc::new(Snapshot::new(generation, &network(), peers, owners, vec![VirtualIp::new(ip(me).into())]))
}

impl<T: Tunnel> Net<Engine<T>> {
    /// `count` nodes that know each other, at 192.0.2.N.
    pub(crate) fn new(count: usize) -> Self {
        #[expect(clippy::disallowed_methods, reason = "virtual time needs a beginning")]
        let now = Instant::now();
        let mut net = Self {
            now,
            nodes: Vec::new(),
            hubs: Vec::new(),
            direct: true,
            loss: 0,
            congested: false,
            delay: Duration::from_millis(2),
            mtu: 65_535,
            wires: BTreeMap::new(),
            tape: Vec::new(),
            captured: Vec::new(),
            sequence: 0,
            random: 42,
        };
        for n in 0..count {
            let at = Endpoint::new(([192, 0, 2, n as u8 + 1], 51820).into());
            let worker = Self::worker(n, 1, Share::default());
            net.nodes.push(Node {
                worker,
                snapshot: Arc::default(),
                others: vec![],
                at,
                events: vec![],
                tun: vec![],
                sends: vec![],
                epoch: 1,
                mute: false,
                held: false,
            });
        }
        let all: Vec<usize> = (0..count).collect();
        net.set_members(1, &all, &[]);
        net
    }

    /// Node `n` has so many workers; before anything else is done with it.
    pub(crate) fn share(&mut self, n: usize, count: usize) {
        let of = Workers::new(count).unwrap();
        let mut workers = of.all().map(|worker| Self::worker(n, 1, Share { worker, of }));
        self.nodes[n].worker = workers.next().unwrap();
        self.nodes[n].others = workers.collect();
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.set_members(1, &all, &[]);
    }

    /// Node `n` spreads its flows; before anything else is done with it.
    pub(crate) fn spread(&mut self, n: usize) {
        let of = self.nodes[n].count();
        let config = |worker| WorkerConfig { spread: Spread::On, ..Self::config(n, 1, Share { worker, of }) };
        let make = |worker| Worker::new(config(worker), Self::engine(n, 1, Share { worker, of }));
        let mut workers = of.all().map(make);
        self.nodes[n].worker = workers.next().unwrap();
        self.nodes[n].others = workers.collect();
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        self.set_members(1, &all, &[]);
    }

    fn worker(n: usize, epoch: u64, share: Share) -> Worker<Engine<T>> {
        Worker::new(Self::config(n, epoch, share), Self::engine(n, epoch, share))
    }

    fn engine(n: usize, epoch: u64, share: Share) -> Engine<T> {
        Engine::shared(&secret(n), Self::config(n, epoch, share).seed, share)
    }

    fn config(n: usize, epoch: u64, share: Share) -> WorkerConfig {
        let seed = 1000 * epoch + n as u64 + 100_000 * u64::from(share.worker.0);
        WorkerConfig {
            network: network(),
            secret: Arc::new(secret(n)),
            epoch: BootEpoch(epoch),
            mtu: 1400,
            gro: Gro::ALL,
            class_mask: 0xff,
            spread: Spread::Off,
            seed,
            share,
        }
    }

    /// The node starts again, one epoch on, knowing nothing but the roster.
    pub(crate) fn restart(&mut self, n: usize) {
        let members: Vec<usize> = (0..self.nodes.len()).collect();
        self.nodes[n].epoch += 1;
        self.nodes[n].worker = Self::worker(n, self.nodes[n].epoch, Share::default());
        self.nodes[n].worker.set_snapshot(snapshot(2, n, &members, &[]), self.now);
    }
}

impl<S: Sessions> Net<S> {
    pub(crate) fn set_members(&mut self, generation: u64, members: &[usize], stock: &[usize]) {
        for n in 0..self.nodes.len() {
            let snapshot = snapshot(generation, n, members, stock);
            self.nodes[n].snapshot = snapshot.clone();
            for worker in self.nodes[n].workers() {
                worker.set_snapshot(snapshot.clone(), self.now);
            }
        }
    }

    pub(crate) fn command(&mut self, n: usize, command: Command) {
        let of = self.nodes[n].count();
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        let audience = command.audience(&snapshot(1, n, &all, &[]), of);
        for worker in of.all().filter(|worker| audience.includes(*worker)) {
            let command = command.clone();
            self.with_one(n, worker, |worker, now, out| worker.handle_command(command, now, out));
        }
    }

    /// Tells two nodes where the other is.
    pub(crate) fn introduce(&mut self, a: usize, b: usize) {
        for (me, other) in [(a, b), (b, a)] {
            let endpoints = vec![self.nodes[other].at];
            self.command(me, Command::SetDirect { peer: slot(other), endpoints });
        }
    }

    /// A hub to which all nodes are attached, by UDP and by a stream.
    pub(crate) fn add_hub(&mut self) -> usize {
        let h = self.hubs.len();
        let at = Endpoint::new(([198, 51, 100, h as u8 + 1], 443).into());
        self.hubs.push(Hub {
            at,
            slot: HubSlot(h as u8),
            labels: BTreeMap::new(),
            bound: BTreeMap::new(),
            dead: false,
            deaf: false,
            swallows_data: false,
        });
        (0..self.nodes.len()).for_each(|n| self.attach(n, h));
        h
    }

    pub(crate) fn attach(&mut self, n: usize, h: usize) {
        let udp = Some(HubUdp { endpoint: self.hubs[h].at, bind: bind_key(n) });
        self.command(n, Command::SetHub { hub: self.hubs[h].slot, udp, stream: true });
    }

    /// Labels both ways between two nodes at a hub.
    pub(crate) fn relay(&mut self, a: usize, b: usize, h: usize) {
        let hub = self.hubs[h].slot;
        for (from, to) in [(a, b), (b, a)] {
            let to_hub = Label::new((from * 16 + to) as u32, 1);
            let to_node = in_label(h, from, to);
            self.hubs[h].labels.insert(to_hub, (to, to_node));
            self.command(to, Command::AddInLabel { label: to_node, hub, peer: slot(from) });
            self.command(from, Command::SetLabel { peer: slot(to), hub, label: Some(to_hub) });
        }
    }

    /// One packet read from the TUN of node `n`.
    pub(crate) fn send(&mut self, n: usize, packet: &[u8]) {
        let mut frame = vec![0; flatlan_packet::VNET_LEN];
        frame.extend_from_slice(packet);
        self.send_super(n, &mut frame);
    }

    /// One super-packet, behind its header.
    pub(crate) fn send_super(&mut self, n: usize, frame: &mut [u8]) {
        // of several queues the kernel takes any for a flow that it has not seen yet
        self.sequence += 1;
        let queue = self.nodes[n].count().of_byte(self.sequence as u8);
        self.with_one(n, queue, |worker, now, out| {
            worker.handle_tun(frame, now, out);
            worker.flush_outbound(out);
        });
    }

    /// One datagram, batch or message comes in.
    pub(crate) fn arrive(&mut self, n: usize, arrival: &Arrival) {
        let of = self.nodes[n].count();
        match arrival {
            // as the kernel does: whole, by the first of them
            Arrival::Udp { from, contents, stride, ecn } => {
                self.with_one(n, worker_of(contents, of), |worker, now, out| {
                    worker.handle_network(*from, contents, *stride, *ecn, now, out);
                    worker.flush_inbound(now, out);
                });
            }
            Arrival::Stream { hub, packed, .. } => {
                for (to, message) in frame::share_out(packed, of) {
                    self.with_one(n, to, |worker, now, out| {
                        worker.handle_stream(*hub, &message, now, out);
                        worker.flush_inbound(now, out);
                    });
                }
            }
        }
    }

    /// Runs one call on the first worker of a node, and puts what it says on the wires.
    pub(crate) fn with(&mut self, n: usize, call: impl FnOnce(&mut Worker<S>, Instant, &mut Out)) {
        self.with_one(n, WorkerId::FIRST, call);
    }

    /// The same for one of several workers.
    pub(crate) fn with_one(&mut self, n: usize, which: WorkerId, call: impl FnOnce(&mut Worker<S>, Instant, &mut Out)) {
        let mut call = Some(call);
        self.call(n, which, &mut |worker, now, out| call.take().expect("called once")(worker, now, out));
    }

    /// What a worker hands over arrives.
    fn call(&mut self, n: usize, which: WorkerId, call: &mut dyn FnMut(&mut Worker<S>, Instant, &mut Out)) {
        let mut out = Out::default();
        let node = &mut self.nodes[n];
        let worker = node.workers().nth(usize::from(which.0)).unwrap();
        call(worker, self.now, &mut out);
        let mut events = Vec::new();
        if !node.held {
            let worker = node.workers().nth(usize::from(which.0)).unwrap();
            events.extend(std::iter::from_fn(|| worker.poll_event()));
        }
        let echoes: Vec<Command> = events.iter().filter_map(Event::echo).collect();
        node.events.extend(events);
        let at = node.at;
        node.tun.extend(out.tun.into_iter().map(|packet| (self.now, packet)));
        let mute = node.mute;
        for (to, contents, stride, traffic_class) in out.udp {
            self.nodes[n].sends.push((to, contents.len().div_ceil(stride), stride, traffic_class));
            self.captured.push((to, contents.clone()));
            let place = self.place(to);
            let fits = stride <= self.mtu || matches!(place, Some(Place::Hub(_)));
            let Some(place) = place.filter(|_| !mute && fits) else { continue };
            if matches!(place, Place::Node(_)) && !self.direct {
                continue;
            }
            self.put(place, Arrival::Udp { from: at, contents, stride, ecn: traffic_class & 3 });
        }
        for (hub, packed) in out.streams {
            let place = Place::Hub(usize::from(hub.0));
            self.put(place, Arrival::Stream { hub, packed });
        }
        for (to, belongs) in out.handed {
            assert_ne!(to, which, "handed over to itself");
            self.call(n, to, &mut |worker, now, out| match &belongs {
                Belongs::Datagrams(Arrival::Udp { from, contents, stride, ecn }) => {
                    worker.handle_network(*from, contents, *stride, *ecn, now, out);
                    worker.flush_inbound(now, out);
                }
                Belongs::Datagrams(Arrival::Stream { .. }) => {}
                Belongs::Packet(peer, packet) => {
                    worker.handle_packet(*peer, &mut packet.clone(), now, out);
                    worker.flush_outbound(out);
                }
            });
        }
        echoes.into_iter().for_each(|command| self.command(n, command));
    }

    /// Runs until `until` says so, or for at most `limit`; how long it took.
    pub(crate) fn run_until(&mut self, limit: Duration, until: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        let end = start + limit;
        while !until(self) {
            let arrival = self.wires.first_key_value().map(|((at, _), _)| *at);
            let timers = self.nodes.iter_mut().flat_map(|node| node.workers().map(|worker| worker.poll_timeout()));
            let timer = timers.flatten().min();
            let next = [arrival, timer].into_iter().flatten().min().unwrap_or(end + self.delay);
            if next > end {
                self.now = end;
                return until(self).then_some(limit);
            }
            self.now = self.now.max(next);
            if arrival.is_some_and(|at| at <= self.now) {
                let Some((_, (place, arrival))) = self.wires.pop_first() else { break };
                self.deliver(place, arrival);
            } else {
                for n in 0..self.nodes.len() {
                    for which in self.nodes[n].count().all() {
                        let now = self.now;
                        let next = |net: &mut Self| net.nodes[n].workers().nth(usize::from(which.0))?.poll_timeout();
                        if next(self).is_some_and(|at| at <= now) {
                            self.with_one(n, which, |worker, now, out| worker.handle_timeout(now, out));
                            assert!(next(self).is_none_or(|at| at > now), "a timer that is always due");
                        }
                    }
                }
            }
        }
        Some(self.now - start)
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Sends a small packet each `pause` both ways for some time; the longest gap at node `b`.
    pub(crate) fn chat(&mut self, a: usize, b: usize, pause: Duration, time: Duration) -> Duration {
        let (from, start) = (self.nodes[b].tun.len(), self.now);
        while self.now < start + time {
            self.send(a, &crate::packet::udp(ip(a), ip(b), 100));
            self.send(b, &crate::packet::udp(ip(b), ip(a), 100));
            self.run_for(pause);
        }
        let times = self.nodes[b].tun[from..].iter().map(|(at, _)| *at);
        let mut last = start;
        let mut gap = Duration::ZERO;
        for at in times.chain([self.now]) {
            gap = gap.max(at - last);
            last = at;
        }
        gap
    }

    /// The datagram that was sent last, marked on its way.
    pub(crate) fn marked(&self, ecn: u8) -> Arrival {
        let arrivals = self.wires.values().rev().map(|(_, arrival)| arrival.clone());
        let mark = |arrival| match arrival {
            Arrival::Udp { from, contents, stride, .. } => Some(Arrival::Udp { from, contents, stride, ecn }),
            Arrival::Stream { .. } => None,
        };
        arrivals.filter_map(mark).next().unwrap()
    }

    /// Takes the datagrams to a node off the wires.
    pub(crate) fn intercept(&mut self, n: usize) -> Vec<Vec<u8>> {
        let to_node = self.wires.extract_if(.., |_, (place, _)| *place == Place::Node(n));
        let udp = to_node.filter_map(|(_, (_, arrival))| match arrival {
            Arrival::Udp { contents, stride, .. } => Some((contents, stride)),
            Arrival::Stream { .. } => None,
        });
        udp.flat_map(|(contents, stride)| contents.chunks(stride).map(<[u8]>::to_vec).collect::<Vec<_>>()).collect()
    }

    pub(crate) fn drops(&self, n: usize, reason: DropReason) -> u64 {
        self.nodes[n].worker.stats().drops.of(reason)
    }

    /// All drops at a node, by reason.
    pub(crate) fn all_drops(&self, n: usize) -> Vec<(DropReason, u64)> {
        self.nodes[n].worker.stats().drops.iter().filter(|(_, count)| *count > 0).collect()
    }

    pub(crate) fn has(&self, n: usize, event: impl Fn(&Event) -> bool) -> bool {
        self.nodes[n].events.iter().any(event)
    }

    /// Packets at the TUN of node `n`, without headers.
    pub(crate) fn packets(&self, n: usize) -> Vec<&[u8]> {
        self.nodes[n].tun.iter().map(|(_, packet)| &packet[flatlan_packet::VNET_LEN..]).collect()
    }

    fn place(&self, to: Endpoint) -> Option<Place> {
        let node = self.nodes.iter().position(|node| node.at == to).map(Place::Node);
        node.or_else(|| self.hubs.iter().position(|hub| hub.at == to).map(Place::Hub))
    }

    fn put(&mut self, place: Place, arrival: Arrival) {
        self.sequence += 1;
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let reliable = matches!(arrival, Arrival::Stream { .. });
        if !reliable && self.loss > 0 && (self.random >> 33).is_multiple_of(self.loss) {
            return;
        }
        let arrival = match arrival {
            Arrival::Udp { from, contents, stride, ecn } if self.congested && ecn != 0 => {
                Arrival::Udp { from, contents, stride, ecn: 3 }
            }
            other @ (Arrival::Udp { .. } | Arrival::Stream { .. }) => other,
        };
        self.wires.insert((self.now + self.delay, self.sequence), (place, arrival));
    }

    fn deliver(&mut self, place: Place, arrival: Arrival) {
        match place {
            Place::Node(n) => {
                self.tape.push((n, arrival.clone()));
                self.arrive(n, &arrival);
            }
            Place::Hub(h) => self.forward(h, arrival),
        }
    }

    /// What a hub does with what comes in.
    fn forward(&mut self, h: usize, arrival: Arrival) {
        let hub = &mut self.hubs[h];
        if hub.dead {
            return;
        }
        let mut frames: Vec<(Vec<u8>, u8)> = Vec::new();
        match arrival {
            Arrival::Udp { from, contents, stride, ecn } => {
                let node = self.nodes.iter().position(|node| node.at == from);
                if hub.deaf {
                    return;
                }
                for datagram in contents.chunks(stride) {
                    if let Some(node) = node
                        && let Some(bind) = Bind::open(datagram, &bind_key(node).key)
                    {
                        // a new source must answer a challenge
                        let known = hub.bound.get(&node) == Some(&from);
                        let verdict = if known || bind.nonce == 77 {
                            hub.bound.insert(node, from);
                            Verdict::Bound
                        } else {
                            Verdict::Challenge(77)
                        };
                        let bound =
                            Bound { id: bind.id, counter: bind.counter, time: bind.time, reflexive: from, verdict };
                        let contents = bound.encode(&bind_key(node).key).to_vec();
                        let (at, stride) = (hub.at, contents.len());
                        self.put(Place::Node(node), Arrival::Udp { from: at, contents, stride, ecn: 0 });
                        return;
                    }
                    frames.push((datagram.to_vec(), ecn));
                }
            }
            Arrival::Stream { packed, .. } => {
                frames.extend(frame::unpack(&packed).map(|frame| (frame.to_vec(), 0)));
            }
        }
        let mut runs: Vec<(usize, Vec<u8>, usize, u8)> = Vec::new();
        for (mut frame, ecn) in frames {
            let hub = &self.hubs[h];
            let Some(header) = Header::parse(&frame) else { continue };
            let Some((to, label)) = hub.labels.get(&header.label).copied() else { continue };
            if hub.swallows_data && frame.get(frame::HEADER_LEN) == Some(&4) {
                continue;
            }
            Header { hops: header.hops - 1, label }.write(&mut frame);
            match runs.last_mut() {
                Some((n, run, stride, e))
                    if *n == to && *e == ecn && frame.len() <= *stride && run.len().is_multiple_of(*stride) =>
                {
                    run.extend_from_slice(&frame);
                }
                _ => {
                    let stride = frame.len();
                    runs.push((to, frame, stride, ecn));
                }
            }
        }
        for (to, contents, stride, ecn) in runs {
            let hub = &self.hubs[h];
            if !hub.deaf && hub.bound.contains_key(&to) {
                self.put(Place::Node(to), Arrival::Udp { from: hub.at, contents, stride, ecn });
                continue;
            }
            let slot = hub.slot;
            let mut packed = Vec::new();
            contents.chunks(stride).for_each(|frame| frame::pack(&mut packed, frame).unwrap());
            self.put(Place::Node(to), Arrival::Stream { hub: slot, packed });
        }
    }
}

impl<S> Node<S> {
    pub(crate) fn workers(&mut self) -> impl Iterator<Item = &mut Worker<S>> {
        std::iter::once(&mut self.worker).chain(&mut self.others)
    }

    fn count(&self) -> Workers {
        Workers::new(1 + self.others.len()).unwrap()
    }
}

/// The label that `to` gave to hub `h` for what comes from `from`: it names the worker of `from`, however many
/// there are.
pub(crate) fn in_label(h: usize, from: usize, to: usize) -> Label {
    let most = Workers::new(Workers::MOST).unwrap();
    let worker = most.of_hint(SenderHint::of(&network(), &secret(from).public().id));
    Label::new((1000 + h * 256 + from * 16 + to) as u32, most.generation(worker, 0x20))
}

fn bind_key(n: usize) -> BindKey {
    BindKey { id: n as u32 + 1, key: BindSecret::from_bytes([n as u8; 32]) }
}

/// What node 0 believes if it cheats: all that is not node 1's is its own, or to be found at node 1.
pub(crate) fn cheat_snapshot() -> Arc<Snapshot> {
    let prefixes =
        [("10.0.0.0/8", Owner::Me), ("10.0.0.2/32", Owner::Peer(slot(1))), ("0.0.0.0/0", Owner::Peer(slot(1)))];
    let owners = OwnerTable::new(prefixes.map(|(prefix, owner)| (prefix.parse().unwrap(), owner)));
    let keys = PeerKeys::Node(secret(1).public());
    let peer = PeerInfo { name: "n1".parse().unwrap(), keys, psk: None, priority: 0 };
    Arc::new(Snapshot::new(9, &network(), [(slot(1), peer)], owners, vec![VirtualIp::new(ip(0).into())]))
}

/// The members of a set of three, but one.
pub(crate) fn without(n: usize) -> Vec<usize> {
    BTreeSet::from([0, 1, 2]).into_iter().filter(|m| *m != n).collect()
}

/// The LAN behind all nodes but node 0.
pub(crate) const SHARED: &str = "10.200.0.0/16";
