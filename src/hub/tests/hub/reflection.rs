//! No hub is a reflector: it sends to no address that has not answered, and never more than it received.
//!
//! Both machines of one hub together, under any order of what members, honest or not, and strangers do: attach, detach,
//! bind from anywhere, answer a challenge from elsewhere, repeat what was sent from another address, open paths, send
//! frames with any label from anywhere, over UDP and over streams. After each step, for all that left the hub:
//!
//! * nothing went to the hub itself, to loopback or to port 0;
//! * a frame went only to an address that has answered a challenge, for a member that is attached, and no other was bound;
//! * an address that has not answered got no more bytes than had come from it;
//! * in all, no more bytes of datagrams and frames left than had come.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_hub::{
    AttachmentId, Carried, ForwardConfig, ForwardSink, Forwarder, Hub, HubConfig, Limits, Loopback, Opened, Output,
    Quota, StoreOutcome, StreamId, StreamOrigin, TrafficClass, UdpBatch,
};
use flatlan_relay::{
    Attach, BindKey, Control, Leg, MAX_HOPS, PathOpen, Presence, PresenceOrder, Proof, Role, VERSION,
    auth::{AttachScope, Exporter},
    bind::{self, Bind, Bound, Verdict},
    frame::{self, Header},
};
use flatlan_types::{BootEpoch, Endpoint, Label, NetworkId, Share};
use proptest::prelude::*;

use crate::world::{Admin, START, allow, hub_key, hub_secret, lan, node_secret, tenant};

proptest! {
    #[test]
    fn a_hub_sends_to_no_address_that_has_not_answered_and_never_more_than_it_received(
        acts in prop::collection::vec(act(), 1..120)
    ) {
        let mut net = Net::new();
        for act in acts {
            net.step(act);
        }
    }
}

/// What a random run must reach for the test above to say anything.
#[test]
fn the_acts_of_that_test_bind_addresses_and_carry_frames_by_datagram_and_by_stream() {
    let mut net = Net::new();
    for member in 0..2 {
        net.step(Act::Attach { member });
        net.step(Act::Bind { member, place: member });
        net.step(Act::Answer { member, from: member, learned: member });
    }
    net.step(Act::Open { from: 0, to: 1 });
    net.step(Act::Frame { label: 0, place: 0, count: 3, length: 100 });
    assert_eq!(net.carried, [3 * 108, 0]);
    net.step(Act::Data { member: 1 });
    net.step(Act::Downlink { member: 1, leg: Leg::Tls });
    net.step(Act::Frame { label: 0, place: 0, count: 3, length: 100 });
    assert_eq!(net.carried, [3 * 108, 3 * 108]);
    net.step(Act::Frame { label: 0, place: 2, count: 3, length: 100 });
    net.step(Act::Detach { member: 1 });
    net.step(Act::Frame { label: 0, place: 0, count: 3, length: 100 });
    assert_eq!(net.carried, [3 * 108, 3 * 108]);
}

/// Members 0 to 2 are of one network, 3 is of another. Places are addresses, of whomever.
#[derive(Clone, Debug)]
enum Act {
    /// A control stream, with whatever stood before.
    Attach { member: usize },
    /// A data stream.
    Data { member: usize },
    /// The control stream ends.
    Detach { member: usize },
    /// The data stream ends.
    Hang { member: usize },
    /// The member's own word, from some place.
    Bind { member: usize, place: usize },
    /// What a member answers from one place to a challenge that was sent to another, or to the same.
    Answer { member: usize, from: usize, learned: usize },
    /// An answer out of the air.
    Guess { member: usize, place: usize, nonce: u64 },
    /// A datagram that was sent before, from another place.
    Again { which: usize, place: usize },
    /// A member asks for a label.
    Open { from: usize, to: usize },
    /// Frames with a label that somebody has, or nobody.
    Frame { label: usize, place: usize, count: usize, length: usize },
    /// The same over somebody's data stream.
    Stream { label: usize, member: usize, count: usize, length: usize },
    /// By which leg a member wants its frames.
    Downlink { member: usize, leg: Leg },
    /// Any bytes.
    Junk { place: usize, bytes: Vec<u8>, stride: usize },
    /// Time passes.
    Wait { ms: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    let (member, place, label) = (0usize..4, 0..PLACES.len(), 0usize..12);
    let (count, length) = (1usize..6, 0usize..200);
    let honest = (member.clone(), 0usize..4);
    prop_oneof![
        4 => member.clone().prop_map(|member| Act::Attach { member }),
        2 => member.clone().prop_map(|member| Act::Data { member }),
        1 => member.clone().prop_map(|member| Act::Detach { member }),
        1 => member.clone().prop_map(|member| Act::Hang { member }),
        6 => honest.clone().prop_map(|(member, place)| Act::Bind { member, place }),
        6 => honest.prop_map(|(member, from)| Act::Answer { member, from, learned: from }),
        2 => (member.clone(), place.clone()).prop_map(|(member, place)| Act::Bind { member, place }),
        2 => (member.clone(), place.clone(), place.clone())
            .prop_map(|(member, from, learned)| Act::Answer { member, from, learned }),
        1 => (member.clone(), place.clone(), any::<u64>())
            .prop_map(|(member, place, nonce)| Act::Guess { member, place, nonce }),
        2 => (any::<usize>(), place.clone()).prop_map(|(which, place)| Act::Again { which, place }),
        6 => (member.clone(), member.clone()).prop_map(|(from, to)| Act::Open { from, to }),
        8 => (label.clone(), place.clone(), count.clone(), length.clone())
            .prop_map(|(label, place, count, length)| Act::Frame { label, place, count, length }),
        4 => (label, member.clone(), count, length)
            .prop_map(|(label, member, count, length)| Act::Stream { label, member, count, length }),
        1 => (member, prop_oneof![Just(Leg::Udp), Just(Leg::Tls)])
            .prop_map(|(member, leg)| Act::Downlink { member, leg }),
        1 => (place, prop::collection::vec(any::<u8>(), 1..200), 0usize..80)
            .prop_map(|(place, bytes, stride)| Act::Junk { place, bytes, stride }),
        3 => prop_oneof![0u64..500, Just(11_000), Just(61_000)].prop_map(|ms| Act::Wait { ms }),
    ]
}

/// Four where members may be, a stranger's, and three where nothing is ever sent.
const PLACES: [&str; 8] = [
    "198.51.100.1:1000",
    "198.51.100.2:2000",
    "[2001:db8::3]:3000",
    "198.51.100.1:4000",
    "203.0.113.9:53",
    "192.0.2.1:51820",
    "127.0.0.1:5",
    "198.51.100.7:0",
];
/// From this one on.
const NEVER: usize = 5;

struct Net {
    hub: Hub,
    forwarder: Forwarder,
    now: Instant,
    networks: [NetworkId; 2],
    members: [Member; 4],
    streams: BTreeMap<StreamId, Exporter>,
    owners: BTreeMap<StreamId, usize>,
    next_stream: u64,
    counter: u64,
    /// Labels that the hub gave, the last twelve of them.
    labels: Vec<Label>,
    next_label: u32,
    sent_before: Vec<Vec<u8>>,
    sink: Sink,
    /// What the hub sent to each place: a challenge for an attachment.
    challenges: BTreeMap<(usize, u32), u64>,
    /// Who has answered, where.
    answered: BTreeSet<(usize, u32)>,
    came: BTreeMap<usize, usize>,
    went: BTreeMap<usize, usize>,
    came_in_all: usize,
    went_in_all: usize,
    /// Bytes of frames, by datagrams and by streams.
    carried: [usize; 2],
}

#[derive(Default)]
struct Member {
    control: Option<StreamId>,
    data: Option<StreamId>,
    bind: Option<BindKey>,
}

#[derive(Default)]
struct Sink {
    udp: Vec<(Endpoint, Vec<u8>, usize)>,
    streams: Vec<(StreamId, usize)>,
}

impl ForwardSink for Sink {
    fn udp(&mut self, to: Endpoint, batch: &[u8], stride: usize, _class: TrafficClass) -> Carried {
        self.udp.push((to, batch.to_vec(), stride));
        Carried::default()
    }

    fn stream(&mut self, to: StreamId, batch: &[u8], _stride: usize) -> Carried {
        self.streams.push((to, batch.len()));
        Carried::default()
    }
}

impl Net {
    fn new() -> Self {
        let mut admins = [lan(&[0], 3), tenant(8, &[0], 0)];
        admins[1].member("n3", "10.77.0.4", Some(&node_secret(4)));
        let networks = [admins[0].id, admins[1].id];
        let now = Instant::now();
        let hub = HubConfig {
            secret: hub_secret(0),
            allow: allow(&networks),
            peers: Vec::new(),
            udp: vec!["0.0.0.0:51820".parse().unwrap()],
            limits: Limits::default(),
            incarnation: 1,
            seed: [3; 32],
        };
        let forward = ForwardConfig {
            own: vec![place(NEVER)],
            loopback: Loopback::Refused,
            network_quota: Quota::default(),
            seed: [3; 32],
            share: Share::default(),
            quotas: Arc::default(),
        };
        let mut net = Self {
            hub: Hub::new(hub, Vec::new(), now, START),
            forwarder: Forwarder::new(forward, now),
            now,
            networks,
            members: Default::default(),
            streams: BTreeMap::new(),
            owners: BTreeMap::new(),
            next_stream: 0,
            counter: 0,
            labels: Vec::new(),
            next_label: 1,
            sent_before: Vec::new(),
            sink: Sink::default(),
            challenges: BTreeMap::new(),
            answered: BTreeSet::new(),
            came: BTreeMap::new(),
            went: BTreeMap::new(),
            came_in_all: 0,
            went_in_all: 0,
            carried: [0; 2],
        };
        admins.iter_mut().for_each(|admin| net.publish(admin));
        net
    }

    fn publish(&mut self, admin: &mut Admin) {
        let (bytes, network) = (admin.sign(), admin.id);
        let stream = self.dial();
        let (version, role, proof) = (VERSION, Role::Admin, Proof::Nothing);
        self.say(stream, Control::Attach(Attach { version, network, role, proof }));
        self.say(stream, Control::PutRoster { network, total: bytes.len() as u32, offset: 0, bytes });
        assert!(self.hub.networks().any(|status| status.network == network && status.roster.is_some()));
    }

    fn step(&mut self, act: Act) {
        match act {
            Act::Attach { member } => {
                let stream = self.dial();
                self.owners.insert(stream, member);
                self.members[member].control = Some(stream);
                self.attach(member, stream, Role::Control);
            }
            Act::Data { member } => {
                let stream = self.dial();
                self.members[member].data = Some(stream);
                self.attach(member, stream, Role::Data);
            }
            Act::Detach { member } => self.close(self.members[member].control),
            Act::Hang { member } => self.close(self.members[member].data),
            Act::Bind { member, place } => self.bind(member, place, 0),
            Act::Answer { member, from, learned } => {
                let Some(id) = self.members[member].bind.as_ref().map(|bind| bind.id) else { return };
                let Some(nonce) = self.challenges.get(&(learned, id)).copied() else { return };
                if learned == from {
                    self.answered.insert((from, id));
                }
                self.bind(member, from, nonce);
            }
            Act::Guess { member, place, nonce } => self.bind(member, place, nonce),
            Act::Again { which, place } => {
                if let Some(datagram) = self.sent_before.get(which % self.sent_before.len().max(1)).cloned() {
                    self.udp(place, datagram, 0);
                }
            }
            Act::Open { from, to } => {
                let (from_id, to_id) = (self.id(from), self.id(to));
                let Some(control) = self.members[from].control else { return };
                let (request, network) = (self.next_label, self.network(from));
                let (hops, via, avoid) = (MAX_HOPS, Vec::new(), Vec::new());
                self.say(
                    control,
                    Control::PathOpen(PathOpen { request, network, from: from_id, to: to_id, hops, via, avoid }),
                );
            }
            Act::Frame { label, place, count, length } => {
                let frame = self.frame(label, length);
                self.udp(place, frame.repeat(count), frame.len());
            }
            Act::Stream { label, member, count, length } => {
                let Some(attachment) = self.members[member].bind.as_ref().map(|bind| AttachmentId(bind.id)) else {
                    return;
                };
                if self.members[member].data.is_none() {
                    return;
                }
                let mut message = Vec::new();
                for _ in 0..count {
                    frame::pack(&mut message, &self.frame(label, length)).unwrap();
                }
                self.came_in_all += count * (frame::HEADER_LEN + length);
                self.forwarder.handle_stream(attachment, &mut message, self.now, &mut self.sink);
            }
            Act::Downlink { member, leg } => {
                if let Some(control) = self.members[member].control {
                    self.say(control, Control::Downlink { leg });
                }
            }
            Act::Junk { place, bytes, stride } => self.udp(place, bytes, stride),
            Act::Wait { ms } => {
                self.now += Duration::from_millis(ms);
                self.hub.handle_timeout(self.now);
                self.forwarder.handle_timeout(self.now, &mut self.sink);
            }
        }
        self.drain();
        self.judge();
    }

    fn dial(&mut self) -> StreamId {
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        let exporter = Exporter([self.next_stream as u8; 32]);
        self.streams.insert(stream, exporter);
        let opened = Opened { remote: place(0), exporter, origin: StreamOrigin::Accepted };
        self.hub.handle_stream_opened(stream, opened, self.now);
        self.drain();
        stream
    }

    fn attach(&mut self, member: usize, stream: StreamId, role: Role) {
        let (network, node, key) = (self.network(member), node_secret(member as u8 + 1), hub_key(0));
        self.counter += 1;
        let order = PresenceOrder { epoch: BootEpoch(START.0), counter: self.counter };
        let presence = match role {
            Role::Control => Presence::sign(&node, network, key, order).encode(),
            _ => Vec::new(),
        };
        let exporter = self.streams[&stream];
        let scope = AttachScope { exporter: &exporter, hub: &key, network: &network, role };
        let proof = Proof::Node { id: node.public().id, presence, signature: scope.sign_node(&node) };
        self.say(stream, Control::Attach(Attach { version: VERSION, network, role, proof }));
    }

    fn say(&mut self, stream: StreamId, message: Control) {
        self.hub.handle_message(stream, &message.encode(), self.now);
        self.drain();
    }

    fn close(&mut self, stream: Option<StreamId>) {
        let Some(stream) = stream else { return };
        self.hub.handle_stream_closed(stream, self.now);
        self.ended(stream);
    }

    fn ended(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        for member in &mut self.members {
            if member.control == Some(stream) {
                (member.control, member.bind) = (None, None);
            }
            if member.data == Some(stream) {
                member.data = None;
            }
        }
    }

    fn bind(&mut self, member: usize, place: usize, nonce: u64) {
        let Some(BindKey { id, key }) = self.members[member].bind.clone() else { return };
        self.counter += 1;
        let datagram = Bind { id, counter: self.counter, time: 7, nonce }.encode(&key).to_vec();
        self.sent_before.push(datagram.clone());
        self.udp(place, datagram, 0);
    }

    fn udp(&mut self, from: usize, mut contents: Vec<u8>, stride: usize) {
        *self.came.entry(from).or_default() += contents.len();
        self.came_in_all += contents.len();
        let batch = UdpBatch { from: place(from), contents: &mut contents, stride, class: TrafficClass(0) };
        self.forwarder.handle_udp(batch, self.now, &mut self.sink);
    }

    fn frame(&self, label: usize, length: usize) -> Vec<u8> {
        let label = self.labels.get(label).copied().unwrap_or_else(|| Label::new(label as u32, 1));
        [&Header::new(label).to_bytes()[..], &vec![7; length]].concat()
    }

    fn network(&self, member: usize) -> NetworkId {
        self.networks[usize::from(member == 3)]
    }

    fn id(&self, member: usize) -> flatlan_types::MemberId {
        node_secret(member as u8 + 1).public().id
    }

    /// Both machines, until neither has anything for the other.
    fn drain(&mut self) {
        loop {
            while let Some(event) = self.forwarder.poll_event() {
                self.hub.handle_forward(event, self.now);
            }
            let Some(output) = self.hub.poll_output() else { break };
            match output {
                Output::Forward(command) => self.forwarder.apply(command, self.now),
                Output::Store { token, .. } => self.hub.handle_stored(token, StoreOutcome::Stored, self.now),
                Output::Close { stream } => self.ended(stream),
                Output::Send { stream, message } => self.heard(stream, message),
                Output::Data { .. } | Output::Dial { .. } | Output::Event(_) | Output::SetAside { .. } => {}
            }
        }
        self.forwarder.flush(&mut self.sink);
    }

    fn heard(&mut self, stream: StreamId, message: Control) {
        match message {
            Control::Attached(attached) => {
                if let Some(member) = self.owners.get(&stream).copied() {
                    self.members[member].bind = attached.bind;
                }
            }
            // whoever is asked for a label gives one
            Control::PathOpen(open) => {
                self.next_label += 1;
                let (request, label) = (open.request, Label::new(self.next_label, 9));
                let answer = Control::PathOpened { request, label, via: Vec::new(), rtt_us: 0 };
                self.hub.handle_message(stream, &answer.encode(), self.now);
            }
            Control::PathOpened { label, .. } => {
                self.labels.push(label);
                let old = self.labels.len().saturating_sub(12);
                self.labels.drain(..old);
            }
            _ => {}
        }
    }

    /// Looks at all that left.
    fn judge(&mut self) {
        let attached: BTreeSet<u32> = self.members.iter().filter_map(|member| Some(member.bind.as_ref()?.id)).collect();
        let Sink { udp, streams } = std::mem::take(&mut self.sink);
        for (to, batch, stride) in udp {
            let at = (0..PLACES.len()).find(|at| place(*at) == to).unwrap_or_else(|| panic!("sent to {to}"));
            assert!(at < NEVER, "sent to {to}");
            *self.went.entry(at).or_default() += batch.len();
            self.went_in_all += batch.len();
            for datagram in batch.chunks(stride) {
                if datagram[0] == frame::KIND {
                    self.carried[0] += datagram.len();
                    let may = attached.iter().any(|id| self.answered.contains(&(at, *id)));
                    assert!(may, "a frame to {to}, which no attached member has answered from");
                    continue;
                }
                assert_eq!(datagram[0], bind::BOUND);
                let id = Bound::peek_id(datagram).unwrap();
                let keys = self.members.iter().filter_map(|member| member.bind.as_ref());
                let key = keys.into_iter().find(|bind| bind.id == id).expect("an answer to who is attached");
                let bound = Bound::open(datagram, &key.key).unwrap();
                match bound.verdict {
                    Verdict::Challenge(nonce) => drop(self.challenges.insert((at, id), nonce)),
                    Verdict::Bound => {
                        assert!(self.answered.contains(&(at, id)), "bound to {to}, which has not answered")
                    }
                }
            }
        }
        for (_, length) in streams {
            self.carried[1] += length;
            self.went_in_all += length;
        }
        for (at, went) in &self.went {
            let answered = self.answered.iter().any(|(of, _)| of == at);
            let came = self.came.get(at).copied().unwrap_or(0);
            assert!(answered || *went <= came, "{went} bytes to {}, which sent {came}", PLACES[*at]);
        }
        assert!(self.went_in_all <= self.came_in_all, "{} bytes out for {} in", self.went_in_all, self.came_in_all);
    }
}

fn place(at: usize) -> Endpoint {
    Endpoint::new(PLACES[at].parse().unwrap())
}
