//! A virtual underlay with hubs (both machines) and simple nodes, under a virtual clock.
//!
//! Every stream message and datagram takes [`DELAY`]; what is between two ends that are cut vanishes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_hub::{
    Allow, AttachmentId, Carried, DialId, ForwardConfig, ForwardDrop, ForwardSink, Forwarder, Hub, HubConfig, HubEvent,
    Limits, Loopback, Opened, Output, Quota, StoreOutcome, StoredNetwork, StreamId, StreamOrigin, TrafficClass,
    UdpBatch,
};
use flatlan_relay::{
    Attach, BindKey, Control, MAX_PART, PathOpen, PathReason, Presence, PresenceOrder, Proof, RefusedCode, Role,
    VERSION,
    auth::{AttachScope, Exporter, verify_hello},
    bind::{self, Bind, Bound, Verdict},
    frame,
};
use flatlan_roster::{
    Authority, Claim, CountersignedClaim, Draft, Expiry, HubRecord, Invite, MemberRecord, NetworkRecord, Record,
    Records, Span, VerifiedRoster,
};
use flatlan_types::{
    AdminSecret, BootEpoch, Endpoint, HubKey, HubSecret, InviteSecret, Label, MemberId, NetworkId, NodeSecret,
    NodeSeed, RecoveryKey, Share, UnixTime,
};

/// One way between any two ends.
pub const DELAY: Duration = Duration::from_millis(1);
pub const START: UnixTime = UnixTime(1_800_000_000);

/// A network's admin.
pub struct Admin {
    pub secret: AdminSecret,
    pub authority: Authority,
    pub id: NetworkId,
    pub name: &'static str,
    pub hubs: Vec<usize>,
    pub members: Vec<MemberRecord>,
    pub last: Option<VerifiedRoster>,
}

impl Admin {
    pub fn new(seed: u8, name: &'static str, hubs: &[usize]) -> Self {
        let secret = AdminSecret::from_bytes(&[seed; 32]);
        let recovery = AdminSecret::from_bytes(&[seed ^ 0x80; 32]);
        let authority = Authority::new(secret.public(), RecoveryKey::of(&recovery));
        let id = authority.network();
        Self { secret, authority, id, name, hubs: hubs.to_vec(), members: Vec::new(), last: None }
    }

    pub fn member(&mut self, name: &str, ip: &str, keys: Option<&NodeSecret>) -> &mut MemberRecord {
        let mut record = MemberRecord::new(name.parse().unwrap());
        record.ips.push(flatlan_types::VirtualIp::new(ip.parse().unwrap()));
        record.keys = keys.map(NodeSecret::public);
        self.members.push(record);
        self.members.last_mut().unwrap()
    }

    pub fn invite(&mut self, name: &str, ip: &str, secret: &InviteSecret, hub: usize) {
        let invite = Invite { key: secret.public(), expires: START.after(3600), redeemer: hub_secret(hub).public() };
        self.member(name, ip, None).invite = Some(invite);
    }

    pub fn revoke(&mut self, name: &str) {
        self.members.retain(|member| member.name.as_str() != name);
    }

    /// Signs what there is; the encoded bundle.
    pub fn sign(&mut self) -> Vec<u8> {
        let network = NetworkRecord {
            name: self.name.parse().unwrap(),
            range: "10.77.0.0/16".parse().unwrap(),
            mtu: 1400,
            expiry: Expiry::Warn,
        };
        let mut records = vec![Record::Network(network)];
        records.extend(self.hubs.iter().map(|hub| {
            Record::Hub(HubRecord {
                name: format!("hub-{hub}").parse().unwrap(),
                key: hub_secret(*hub).public(),
                tls: format!("192.0.2.{}:443", hub + 1).parse().unwrap(),
                udp: None,
                region: None,
                weight: 100,
            })
        }));
        records.extend(self.members.iter().cloned().map(Record::Member));
        let records = Records::compile(records, &self.id).unwrap();
        let draft = Draft {
            authority: &self.authority,
            records: &records,
            base: self.last.as_ref(),
            now: START,
            life: Span { seconds: 86_400 * 30 },
        };
        let signed = VerifiedRoster::sign(draft, &self.secret).unwrap();
        let bytes = signed.encode();
        self.last = Some(signed);
        bytes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Hub(usize),
    Node(usize),
}

pub struct HubSite {
    pub hub: Hub,
    pub forwarder: Forwarder,
    pub alive: bool,
    pub disk: BTreeMap<NetworkId, StoredNetwork>,
    pub disk_full: bool,
    /// Writes are begun and not finished.
    pub disk_slow: bool,
    pub writes: Vec<flatlan_hub::StoreToken>,
    pub events: Vec<HubEvent>,
    /// What was stored and does not hold.
    pub aside: Vec<NetworkId>,
    /// Data streams.
    data: BTreeMap<StreamId, AttachmentId>,
    sink: Sink,
}

#[derive(Default)]
struct Sink {
    udp: Vec<(Endpoint, Vec<u8>, usize, TrafficClass)>,
    streams: Vec<(StreamId, Vec<u8>, usize)>,
}

impl ForwardSink for Sink {
    fn udp(&mut self, to: Endpoint, batch: &[u8], stride: usize, class: TrafficClass) -> Carried {
        self.udp.push((to, batch.to_vec(), stride, class));
        Carried::default()
    }

    fn stream(&mut self, to: StreamId, batch: &[u8], stride: usize) -> Carried {
        self.streams.push((to, batch.to_vec(), stride));
        Carried::default()
    }
}

pub struct Node {
    pub secret: NodeSecret,
    pub order: PresenceOrder,
    pub endpoint: Endpoint,
    /// What came on each stream but frames.
    pub log: Vec<(StreamId, Control)>,
    /// Frames: label and datagram.
    pub frames: Vec<(Label, Vec<u8>)>,
    pub reflexive: Option<Endpoint>,
    /// Who asked for a label of ours, and which it got.
    pub given: BTreeMap<Label, MemberId>,
    counter: u64,
    next_label: u32,
    binds: BTreeMap<u32, (BindKey, Endpoint)>,
}

struct Wire {
    owner: Who,
    other: StreamId,
    exporter: Exporter,
    role: Role,
}

enum Event {
    Message { to: StreamId, message: Control },
    Packed { to: StreamId, message: Vec<u8> },
    Closed { to: StreamId },
    Udp { from: Endpoint, to: Endpoint, bytes: Vec<u8>, class: TrafficClass },
    DialFailed { hub: usize, dial: DialId },
}

pub struct World {
    pub now: Instant,
    /// How late every turn comes that is due by the clock.
    pub late: Duration,
    pub start: Instant,
    pub hubs: Vec<HubSite>,
    pub nodes: Vec<Node>,
    pub cut: BTreeSet<(Who, Who)>,
    /// Pairs between which no datagram passes.
    pub udp_cut: BTreeSet<(Who, Who)>,
    /// Of a hundred datagrams so many are lost, by chance.
    pub lost: u64,
    /// Link states that hubs sent.
    pub lsas: usize,
    /// Messages of presences that hubs sent each other.
    pub floods: usize,
    chance: u64,
    allow: Allow,
    /// Of hubs that start from here on.
    pub limits: Limits,
    wires: BTreeMap<StreamId, Wire>,
    events: BTreeMap<(Instant, u64), Event>,
    next: u64,
    held: Option<Vec<Event>>,
    /// What nodes would answer to path requests, while they do not.
    unanswered: Option<Vec<(StreamId, Control)>>,
}

/// Hubs, nodes, and a network that no hub has heard of.
fn unpublished(count: usize, nodes: u8) -> (World, Admin) {
    let all: Vec<_> = (0..count).collect();
    let admin = lan(&all, nodes);
    let mut world = World::new(count, allow(&[admin.id]));
    for n in 0..nodes {
        world.node(n + 1);
    }
    (world, admin)
}

/// Hubs that all dial each other, one network published to the first, and nodes.
pub fn hubs(count: usize, nodes: u8) -> (World, Admin) {
    let (mut world, mut admin) = unpublished(count, nodes);
    // The others learn of the network from the first, and it dials them.
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(2));
    (world, admin)
}

/// Hubs in a line: each reaches only its neighbours.
pub fn line(count: usize, nodes: u8) -> (World, Admin) {
    let (mut world, mut admin) = unpublished(count, nodes);
    for a in 0..count {
        for b in a + 2..count {
            world.cut(Who::Hub(a), Who::Hub(b));
        }
    }
    world.publish(0, &mut admin);
    world.run(Duration::from_secs(12));
    (world, admin)
}

impl World {
    pub fn new(hubs: usize, allow: Allow) -> Self {
        Self::with_limits(hubs, allow, Limits::default())
    }

    pub fn with_limits(hubs: usize, allow: Allow, limits: Limits) -> Self {
        let start = Instant::now();
        let mut world = Self {
            now: start,
            late: Duration::ZERO,
            start,
            hubs: Vec::new(),
            nodes: Vec::new(),
            cut: BTreeSet::new(),
            udp_cut: BTreeSet::new(),
            lost: 0,
            lsas: 0,
            floods: 0,
            chance: 1,
            allow,
            limits,
            wires: BTreeMap::new(),
            events: BTreeMap::new(),
            next: 1,
            held: None,
            unanswered: None,
        };
        for at in 0..hubs {
            let site = world.site(at, BTreeMap::new());
            world.hubs.push(site);
        }
        world
    }

    fn site(&self, at: usize, disk: BTreeMap<NetworkId, StoredNetwork>) -> HubSite {
        let elapsed = self.now - self.start;
        let config = HubConfig {
            secret: hub_secret(at),
            allow: self.allow.clone(),
            peers: Vec::new(),
            udp: vec!["0.0.0.0:51820".parse().unwrap()],
            limits: self.limits,
            incarnation: 1 + elapsed.as_micros() as u64,
            seed: [at as u8; 32],
        };
        let forward = ForwardConfig {
            own: vec![hub_udp(at)],
            loopback: Loopback::Refused,
            network_quota: Quota::default(),
            seed: [at as u8; 32],
            share: Share::default(),
            quotas: Arc::default(),
        };
        let unix = START.after(elapsed.as_secs());
        HubSite {
            hub: Hub::new(config, disk.values().cloned().collect(), self.now, unix),
            forwarder: Forwarder::new(forward, self.now),
            alive: true,
            disk,
            disk_full: false,
            disk_slow: false,
            writes: Vec::new(),
            events: Vec::new(),
            aside: Vec::new(),
            data: BTreeMap::new(),
            sink: Sink::default(),
        }
    }

    pub fn node(&mut self, seed: u8) -> usize {
        let at = self.nodes.len();
        self.nodes.push(Node {
            secret: node_secret(seed),
            order: PresenceOrder { epoch: BootEpoch(START.0), counter: 0 },
            endpoint: Endpoint::new(format!("198.51.100.{}:{}", at + 1, 4000 + at).parse().unwrap()),
            log: Vec::new(),
            frames: Vec::new(),
            reflexive: None,
            given: BTreeMap::new(),
            counter: 0,
            next_label: 100,
            binds: BTreeMap::new(),
        });
        at
    }

    pub fn id(&self, node: usize) -> MemberId {
        self.nodes[node].secret.public().id
    }

    // ---- streams -------------------------------------------------------------------------------

    /// A node dials a hub, and says hello; the stream's id at the node.
    pub fn dial(&mut self, node: usize, hub: usize, role: Role) -> StreamId {
        let exporter = Exporter([self.next as u8; 32]);
        let (ours, theirs) = self.wire(Who::Node(node), Who::Hub(hub), exporter, role);
        let remote = Endpoint::new(format!("198.51.100.{}:40000", node + 1).parse().unwrap());
        let opened = Opened { remote, exporter, origin: StreamOrigin::Accepted };
        self.hubs[hub].hub.handle_stream_opened(theirs, opened, self.now);
        self.drain(hub);
        ours
    }

    fn wire(&mut self, a: Who, b: Who, exporter: Exporter, role: Role) -> (StreamId, StreamId) {
        let (x, y) = (StreamId(self.next), StreamId(self.next + 1));
        self.next += 2;
        self.wires.insert(x, Wire { owner: a, other: y, exporter, role });
        self.wires.insert(y, Wire { owner: b, other: x, exporter, role });
        (x, y)
    }

    pub fn attach_with(&mut self, node: usize, hub: usize, network: NetworkId, role: Role, proof: Proof) -> StreamId {
        let stream = self.dial(node, hub, role);
        self.say(stream, Control::Attach(Attach { version: VERSION, network, role, proof }));
        self.run(DELAY * 4);
        stream
    }

    /// A proof by a node for the next stream that is dialled.
    pub fn proof(&mut self, node: usize, hub: usize, network: NetworkId, role: Role) -> Proof {
        let exporter = Exporter([self.next as u8; 32]);
        let key = hub_secret(hub).public();
        let node = &mut self.nodes[node];
        node.order.counter += 1;
        let presence = match role {
            Role::Control => Presence::sign(&node.secret, network, key, node.order).encode(),
            Role::Data | Role::Join | Role::Admin | Role::HubControl | Role::HubData => Vec::new(),
        };
        let scope = AttachScope { exporter: &exporter, hub: &key, network: &network, role };
        Proof::Node { id: node.secret.public().id, presence, signature: scope.sign_node(&node.secret) }
    }

    /// A node's control stream.
    pub fn attach(&mut self, node: usize, hub: usize, network: NetworkId) -> StreamId {
        let proof = self.proof(node, hub, network, Role::Control);
        self.attach_with(node, hub, network, Role::Control, proof)
    }

    /// A node's data stream.
    pub fn attach_data(&mut self, node: usize, hub: usize, network: NetworkId) -> StreamId {
        let proof = self.proof(node, hub, network, Role::Data);
        self.attach_with(node, hub, network, Role::Data, proof)
    }

    /// A control stream with a bound UDP address.
    pub fn join(&mut self, node: usize, hub: usize, network: NetworkId) -> StreamId {
        let stream = self.attach(node, hub, network);
        self.bind(node, hub, stream);
        stream
    }

    pub fn say(&mut self, stream: StreamId, message: Control) {
        // Through the wire's own encoding, as in life.
        let message = Control::decode(&message.encode()).unwrap().unwrap();
        let to = self.wires[&stream].other;
        self.later(Event::Message { to, message });
    }

    /// The channel of the next stream that is dialled.
    pub fn next_exporter(&self) -> Exporter {
        Exporter([self.next as u8; 32])
    }

    /// A hub gone bad says something to a neighbour on their own stream.
    pub fn say_as_hub(&mut self, from: usize, to: usize, message: Control) {
        let between = |wire: &&Wire| {
            let other = self.wires.get(&wire.other).map(|wire| wire.owner);
            wire.owner == Who::Hub(to) && other == Some(Who::Hub(from))
        };
        let streams: Vec<_> = self.wires.iter().filter(|(_, wire)| between(wire)).map(|(stream, _)| *stream).collect();
        let control = streams.into_iter().find(|stream| !self.hubs[to].data.contains_key(stream));
        let event = Event::Message { to: control.expect("the hubs are neighbours"), message };
        self.later(event);
    }

    pub fn close(&mut self, stream: StreamId) {
        let to = self.wires[&stream].other;
        self.wires.remove(&stream);
        self.later(Event::Closed { to });
    }

    /// What a hub said on a stream, taken.
    pub fn heard(&mut self, stream: StreamId) -> Vec<Control> {
        let Who::Node(node) = self.wires.get(&stream).map_or(Who::Node(0), |wire| wire.owner) else { panic!() };
        self.heard_by(node, stream)
    }

    pub fn heard_by(&mut self, node: usize, stream: StreamId) -> Vec<Control> {
        let taken = self.nodes[node].log.extract_if(.., |(at, _)| *at == stream);
        taken.map(|(_, message)| message).collect()
    }

    pub fn refusal(&mut self, node: usize, stream: StreamId) -> Option<RefusedCode> {
        let refused = |(at, message): &(StreamId, Control)| match message {
            Control::Refused { code, .. } if *at == stream => Some(*code),
            _ => None,
        };
        self.nodes[node].log.iter().find_map(refused)
    }

    // ---- the roster ----------------------------------------------------------------------------

    pub fn publish(&mut self, hub: usize, admin: &mut Admin) -> Vec<Control> {
        let bundle = admin.sign();
        self.upload(hub, admin.id, &bundle)
    }

    pub fn upload(&mut self, hub: usize, network: NetworkId, bundle: &[u8]) -> Vec<Control> {
        let node = if self.nodes.is_empty() { self.node(250) } else { 0 };
        let stream = self.attach_with(node, hub, network, Role::Admin, Proof::Nothing);
        self.heard(stream);
        let total = bundle.len() as u32;
        for (at, part) in bundle.chunks(MAX_PART).enumerate() {
            let offset = (at * MAX_PART) as u32;
            self.say(stream, Control::PutRoster { network, total, offset, bytes: part.to_vec() });
        }
        self.run(DELAY * 4);
        let heard = self.heard(stream);
        self.close(stream);
        heard
    }

    /// Fetches the roster part by part, as a node does.
    pub fn fetch(&mut self, stream: StreamId, network: NetworkId) -> Vec<u8> {
        let mut bundle = Vec::new();
        loop {
            self.heard(stream);
            self.say(stream, Control::GetRoster { network, offset: bundle.len() as u32 });
            self.run(DELAY * 3);
            let part = self.heard(stream).into_iter().find_map(|message| match message {
                Control::RosterPart { total, offset, bytes, .. } => Some((total, offset, bytes)),
                _ => None,
            });
            let (total, offset, bytes) = part.expect("a part of the roster");
            assert_eq!(offset as usize, bundle.len());
            bundle.extend_from_slice(&bytes);
            if bundle.len() == total as usize {
                return bundle;
            }
        }
    }

    /// Redeems an invite; what the hub answered.
    pub fn redeem(&mut self, node: usize, hub: usize, network: NetworkId, invite: &InviteSecret) -> Vec<Control> {
        let stream = self.begin_redeem(node, hub, network, invite);
        self.run(DELAY * 4);
        self.heard_by(node, stream)
    }

    pub fn begin_redeem(&mut self, node: usize, hub: usize, network: NetworkId, invite: &InviteSecret) -> StreamId {
        let exporter = Exporter([self.next as u8; 32]);
        let key = hub_secret(hub).public();
        let scope = AttachScope { exporter: &exporter, hub: &key, network: &network, role: Role::Join };
        let proof = Proof::Invite { key: invite.public(), signature: scope.sign_invite(invite) };
        let stream = self.attach_with(node, hub, network, Role::Join, proof);
        let claim = Claim::make(&network, invite, &self.nodes[node].secret).encode();
        if self.refusal(node, stream).is_none() {
            self.say(stream, Control::Redeem { network, claim });
        }
        stream
    }

    // ---- data ----------------------------------------------------------------------------------

    pub fn bind(&mut self, node: usize, hub: usize, stream: StreamId) {
        let attached = self.nodes[node].log.iter().find_map(|(at, message)| match message {
            Control::Attached(attached) if *at == stream => Some(attached.clone()),
            _ => None,
        });
        let bind = attached.expect("the node attached").bind.expect("a control stream gets a bind key");
        self.nodes[node].binds.insert(bind.id, (bind, hub_udp(hub)));
        self.send_binds(node);
        self.run(DELAY * 6);
    }

    pub fn send_binds(&mut self, node: usize) {
        let binds: Vec<_> = self.nodes[node].binds.values().cloned().collect();
        for (key, hub) in binds {
            self.send_bind(node, &key, hub, 0);
        }
    }

    fn send_bind(&mut self, node: usize, key: &BindKey, hub: Endpoint, nonce: u64) {
        let node = &mut self.nodes[node];
        node.counter += 1;
        let bind = Bind { id: key.id, counter: node.counter, time: 0, nonce };
        let (from, bytes) = (node.endpoint, bind.encode(&key.key).to_vec());
        self.later(Event::Udp { from, to: hub, bytes, class: TrafficClass(0) });
    }

    pub fn open(
        &mut self,
        node: usize,
        stream: StreamId,
        network: NetworkId,
        to: MemberId,
    ) -> Result<Label, PathReason> {
        self.open_around(node, stream, network, to, &[]).map(|(label, _)| label)
    }

    /// The label, and the hubs that frames will cross.
    pub fn open_around(
        &mut self,
        node: usize,
        stream: StreamId,
        network: NetworkId,
        to: MemberId,
        avoid: &[usize],
    ) -> Result<(Label, Vec<HubKey>), PathReason> {
        let request = self.next as u32;
        self.next += 1;
        let avoid = avoid.iter().map(|hub| hub_secret(*hub).public()).collect();
        let open = PathOpen { request, network, from: self.id(node), to, hops: 8, via: vec![], avoid };
        self.say(stream, Control::PathOpen(open));
        for _ in 0..400 {
            self.run(DELAY * 10);
            let answer = self.nodes[node].log.iter().find_map(|(at, message)| match message {
                Control::PathOpened { request: of, label, via, .. } if *at == stream && *of == request => {
                    Some(Ok((*label, via.clone())))
                }
                Control::PathFailed { request: of, reason } if *at == stream && *of == request => Some(Err(*reason)),
                _ => None,
            });
            if let Some(answer) = answer {
                return answer;
            }
        }
        panic!("no answer to a path request");
    }

    /// From here on nodes keep their answers to path requests to themselves.
    pub fn hold_answers(&mut self) {
        self.unanswered = Some(Vec::new());
    }

    /// They give them, and all later ones at once; how many there were.
    pub fn release_answers(&mut self) -> usize {
        let unanswered = self.unanswered.take().unwrap_or_default();
        let count = unanswered.len();
        unanswered.into_iter().for_each(|(stream, answer)| self.say(stream, answer));
        count
    }

    pub fn send(&mut self, node: usize, hub: usize, label: Label, payload: &[u8]) {
        let bytes = [&frame::Header::new(label).to_bytes()[..], payload].concat();
        let from = self.nodes[node].endpoint;
        self.later(Event::Udp { from, to: hub_udp(hub), bytes, class: TrafficClass(0) });
    }

    pub fn send_packed(&mut self, stream: StreamId, label: Label, payload: &[u8]) {
        let mut message = Vec::new();
        frame::pack(&mut message, &[&frame::Header::new(label).to_bytes()[..], payload].concat()).unwrap();
        let to = self.wires[&stream].other;
        self.later(Event::Packed { to, message });
    }

    /// By a generator of Knuth's (MMIX).
    fn is_lost(&mut self) -> bool {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % 100 < self.lost
    }

    /// A frame with this label each 10 ms.
    pub fn stream(&mut self, node: usize, hub: usize, label: Label, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.send(node, hub, label, b"one of many");
            self.run(Duration::from_millis(10).min(end - self.now));
        }
    }

    /// Whether a frame with this label arrives at a node, from `from`.
    pub fn passes(&mut self, node: usize, hub: usize, label: Label, to: usize) -> bool {
        let payload = format!("payload {}", self.next).into_bytes();
        self.next += 1;
        self.send(node, hub, label, &payload);
        self.run(DELAY * 20);
        let from = self.id(node);
        let there = &self.nodes[to];
        there.frames.iter().any(|(label, got)| *got == payload && there.given.get(label) == Some(&from))
    }

    // ---- faults --------------------------------------------------------------------------------

    pub fn kill(&mut self, hub: usize) {
        self.hubs[hub].alive = false;
        let ended: Vec<_> = self.wires.iter().filter(|(_, w)| w.owner == Who::Hub(hub)).map(|(s, _)| *s).collect();
        for stream in ended {
            self.close(stream);
        }
    }

    pub fn restart(&mut self, hub: usize) {
        let disk = self.hubs[hub].disk.clone();
        self.hubs[hub] = self.site(hub, disk);
    }

    pub fn cut(&mut self, a: Who, b: Who) {
        self.cut.extend([(a, b), (b, a)]);
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.udp_cut.clear();
    }

    pub fn up(&self, hub: usize) -> Vec<HubKey> {
        self.hubs[hub].hub.neighbours().filter(|neighbour| neighbour.up).map(|neighbour| neighbour.hub).collect()
    }

    pub fn dropped(&self, hub: usize, reason: ForwardDrop) -> u64 {
        self.hubs[hub].forwarder.stats().dropped.of(reason)
    }

    // ---- time ----------------------------------------------------------------------------------

    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.drain_all();
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timer = self.hubs.iter().filter(|site| site.alive);
            let timer = timer.map(|site| site.hub.poll_timeout().min(site.forwarder.poll_timeout()) + self.late).min();
            let next = [event, timer].into_iter().flatten().min().unwrap_or(end);
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if event == Some(next) {
                let (_, event) = self.events.pop_first().unwrap();
                self.deliver(event);
            } else {
                for at in 0..self.hubs.len() {
                    let site = &mut self.hubs[at];
                    if site.alive {
                        site.hub.handle_timeout(self.now);
                        site.forwarder.handle_timeout(self.now, &mut site.sink);
                    }
                }
            }
        }
        self.now = end;
    }

    /// Time passes, and what streams carry waits for its end; how much waited.
    pub fn hold_streams(&mut self, span: Duration) -> usize {
        self.held = Some(Vec::new());
        self.run(span);
        let held = self.held.take().unwrap();
        let count = held.len();
        held.into_iter().for_each(|event| self.later(event));
        self.run(DELAY * 2);
        count
    }

    fn later(&mut self, event: Event) {
        if let (Some(held), Event::Message { .. }) = (&mut self.held, &event) {
            return held.push(event);
        }
        self.next += 1;
        self.events.insert((self.now + DELAY, self.next), event);
    }

    fn deliver(&mut self, event: Event) {
        match event {
            Event::Message { to, message } => {
                let Some(Wire { owner, other, exporter, role }) = self.wires.get(&to) else { return };
                let (owner, other, exporter, role) = (*owner, *other, *exporter, *role);
                if self.is_cut(self.wires.get(&other).map(|wire| wire.owner), owner) {
                    return;
                }
                match owner {
                    Who::Hub(at) if self.hubs[at].alive => {
                        let bytes = message.encode();
                        self.hubs[at].hub.handle_message(to, &bytes, self.now);
                    }
                    Who::Hub(_) => {}
                    Who::Node(at) => self.node_hears(at, to, exporter, role, message),
                }
            }
            Event::Packed { to, mut message } => match self.wires.get(&to).map(|wire| wire.owner) {
                Some(Who::Hub(at)) if self.hubs[at].alive => {
                    let site = &mut self.hubs[at];
                    let attachment = site.data[&to];
                    site.forwarder.handle_stream(attachment, &mut message, self.now, &mut site.sink);
                }
                Some(Who::Node(at)) => {
                    for packed in frame::unpack(&message) {
                        self.nodes[at].take(packed);
                    }
                }
                Some(Who::Hub(_)) | None => {}
            },
            Event::Closed { to } => {
                if let Some(Wire { owner: Who::Hub(at), .. }) = self.wires.remove(&to)
                    && self.hubs[at].alive
                {
                    self.hubs[at].data.remove(&to);
                    self.hubs[at].hub.handle_stream_closed(to, self.now);
                }
            }
            Event::Udp { from, to, mut bytes, class } => {
                let (a, b) = (self.at(from), self.at(to));
                let (Some(a), Some(b)) = (a, b) else { return };
                if self.is_cut(Some(a), b) || self.udp_cut.contains(&(a, b)) || self.is_lost() {
                    return;
                }
                match b {
                    Who::Hub(at) if self.hubs[at].alive => {
                        let site = &mut self.hubs[at];
                        let batch = UdpBatch { from, contents: &mut bytes, stride: 0, class };
                        site.forwarder.handle_udp(batch, self.now, &mut site.sink);
                    }
                    Who::Hub(_) => {}
                    Who::Node(at) => self.node_receives(at, from, &bytes),
                }
            }
            Event::DialFailed { hub, dial } => self.hubs[hub].hub.handle_dial_failed(dial, self.now),
        }
    }

    fn node_hears(&mut self, at: usize, stream: StreamId, exporter: Exporter, role: Role, message: Control) {
        if let Control::HubHello { key, signature, .. } = &message {
            assert!(verify_hello(key, &exporter, signature).is_ok());
        }
        if let Control::PathOpen(open) = &message {
            assert_eq!(role, Role::Control);
            let node = &mut self.nodes[at];
            let label = Label::new(node.next_label, at as u16);
            node.next_label += 1;
            node.given.insert(label, open.from);
            let answer = Control::PathOpened { request: open.request, label, via: vec![], rtt_us: 0 };
            match &mut self.unanswered {
                Some(unanswered) => unanswered.push((stream, answer)),
                None => self.say(stream, answer),
            }
        }
        self.nodes[at].log.push((stream, message));
    }

    fn node_receives(&mut self, at: usize, from: Endpoint, bytes: &[u8]) {
        if bytes.first() == Some(&bind::BOUND) {
            let (key, hub) = self.nodes[at].binds[&Bound::peek_id(bytes).unwrap()].clone();
            assert_eq!(hub, from);
            let bound = Bound::open(bytes, &key.key).unwrap();
            match bound.verdict {
                Verdict::Bound => self.nodes[at].reflexive = Some(bound.reflexive),
                Verdict::Challenge(nonce) => self.send_bind(at, &key, hub, nonce),
            }
        } else {
            self.nodes[at].take(bytes);
        }
    }

    fn drain_all(&mut self) {
        for at in 0..self.hubs.len() {
            self.drain(at);
        }
    }

    fn drain(&mut self, at: usize) {
        loop {
            while let Some(event) = self.hubs[at].forwarder.poll_event() {
                self.hubs[at].hub.handle_forward(event, self.now);
            }
            let Some(output) = self.hubs[at].hub.poll_output() else { break };
            if self.hubs[at].alive {
                self.obey(at, output);
            }
        }
        let sink = std::mem::take(&mut self.hubs[at].sink);
        if !self.hubs[at].alive {
            return;
        }
        for (to, batch, stride, class) in sink.udp {
            for bytes in batch.chunks(stride) {
                self.later(Event::Udp { from: hub_udp(at), to, bytes: bytes.to_vec(), class });
            }
        }
        for (stream, batch, stride) in sink.streams {
            let mut message = Vec::new();
            batch.chunks(stride).for_each(|bytes| frame::pack(&mut message, bytes).unwrap());
            if let Some(to) = self.wires.get(&stream).map(|wire| wire.other) {
                self.later(Event::Packed { to, message });
            }
        }
    }

    fn obey(&mut self, at: usize, output: Output) {
        match output {
            Output::Send { stream, message } => {
                if self.wires.contains_key(&stream) {
                    self.lsas += usize::from(matches!(message, Control::Lsa { .. }));
                    let flood = matches!(message, Control::PresenceFlood { .. } | Control::PresenceGone { .. });
                    self.floods += usize::from(flood);
                    self.say(stream, message);
                }
            }
            Output::Close { stream } => {
                if self.wires.contains_key(&stream) {
                    self.close(stream);
                }
            }
            Output::Data { stream, attachment } => {
                self.hubs[at].data.insert(stream, attachment);
            }
            Output::Forward(command) => self.hubs[at].forwarder.apply(command, self.now),
            Output::Dial { dial, at: place, role: _ } => {
                let target = (0..self.hubs.len()).find(|hub| place.to_string() == format!("192.0.2.{}:443", hub + 1));
                let target =
                    target.filter(|to| self.hubs[*to].alive && !self.is_cut(Some(Who::Hub(at)), Who::Hub(*to)));
                let Some(target) = target else { return self.later(Event::DialFailed { hub: at, dial }) };
                let exporter = Exporter([self.next as u8; 32]);
                let (ours, theirs) = self.wire(Who::Hub(at), Who::Hub(target), exporter, Role::HubControl);
                let opened = |remote, origin| Opened { remote, exporter, origin };
                let (here, there) = (hub_place(at), hub_place(target));
                let now = self.now;
                self.hubs[at].hub.handle_stream_opened(ours, opened(there, StreamOrigin::Dialled(dial)), now);
                self.hubs[target].hub.handle_stream_opened(theirs, opened(here, StreamOrigin::Accepted), now);
            }
            Output::SetAside { network, .. } => {
                self.hubs[at].disk.remove(&network);
                self.hubs[at].aside.push(network);
            }
            Output::Store { token, network, bundle, ratchet } => {
                let site = &mut self.hubs[at];
                if site.disk_slow {
                    return site.writes.push(token);
                }
                let outcome = if site.disk_full { StoreOutcome::Failed } else { StoreOutcome::Stored };
                if outcome == StoreOutcome::Stored {
                    let stored = StoredNetwork { network, bundle: bundle.to_vec(), ratchet };
                    site.disk.insert(network, stored);
                }
                site.hub.handle_stored(token, outcome, self.now);
            }
            Output::Event(event) => self.hubs[at].events.push(event),
        }
    }

    fn at(&self, endpoint: Endpoint) -> Option<Who> {
        if let Some(hub) = (0..self.hubs.len()).find(|hub| hub_udp(*hub) == endpoint) {
            return Some(Who::Hub(hub));
        }
        self.nodes.iter().position(|node| node.endpoint == endpoint).map(Who::Node)
    }

    fn is_cut(&self, a: Option<Who>, b: Who) -> bool {
        a.is_some_and(|a| self.cut.contains(&(a, b)))
    }
}

impl Node {
    fn take(&mut self, bytes: &[u8]) {
        let header = frame::Header::parse(bytes).unwrap();
        self.frames.push((header.label, frame::inner(bytes).unwrap().to_vec()));
    }
}

pub fn hub_secret(hub: usize) -> HubSecret {
    HubSecret::from_bytes(&[hub as u8 + 100; 32])
}

pub fn hub_key(hub: usize) -> HubKey {
    hub_secret(hub).public()
}

pub fn node_secret(seed: u8) -> NodeSecret {
    NodeSeed::from_bytes([seed; 32]).derive()
}

fn hub_udp(hub: usize) -> Endpoint {
    Endpoint::new(format!("192.0.2.{}:51820", hub + 1).parse().unwrap())
}

fn hub_place(hub: usize) -> Endpoint {
    Endpoint::new(format!("192.0.2.{}:443", hub + 1).parse().unwrap())
}

/// A network `lan` with members n0, n1, ... (seeds 1, 2, ...) over these hubs, published to the first.
pub fn lan(hubs: &[usize], members: u8) -> Admin {
    tenant(9, hubs, members)
}

/// Another such network, under another admin's key.
pub fn tenant(seed: u8, hubs: &[usize], members: u8) -> Admin {
    let mut admin = Admin::new(seed, "lan", hubs);
    for n in 0..members {
        admin.member(&format!("n{n}"), &format!("10.77.0.{}", n + 1), Some(&node_secret(n + 1)));
    }
    admin
}

/// Opens invites at a hub.
pub fn open_invites(admin: &mut Admin, hub: usize, count: u16) {
    for n in 0..count {
        let invite = InviteSecret::from_bytes(&numbered(n, 3));
        admin.invite(&format!("new-{n}"), &format!("10.77.{}.{}", 100 + n / 200, 1 + n % 200), &invite, hub);
    }
}

/// The claims for them, without anyone having heard of it.
pub fn redeem_invites(admin: &Admin, hub: usize, count: u16) -> Vec<CountersignedClaim> {
    let roster = admin.last.as_ref().unwrap();
    let redeem = |n| {
        let node = NodeSeed::from_bytes(numbered(n, 5)).derive();
        let claim = Claim::make(&admin.id, &InviteSecret::from_bytes(&numbered(n, 3)), &node);
        roster.countersign(&claim, &hub_secret(hub), START).unwrap()
    };
    (0..count).map(redeem).collect()
}

fn numbered(n: u16, salt: u8) -> [u8; 32] {
    let [a, b] = n.to_be_bytes();
    std::array::from_fn(|at| match at {
        0 => a,
        1 => b,
        _ => salt,
    })
}

/// Makes a network's roster longer than one message carries.
pub fn fatten(admin: &mut Admin) {
    for n in 0..2_500u32 {
        admin.member(&format!("extra-{n}"), &format!("10.77.{}.{}", 1 + n / 200, 1 + n % 200), None);
    }
}

pub fn allow(networks: &[NetworkId]) -> Allow {
    Allow::Networks(networks.iter().copied().collect())
}
