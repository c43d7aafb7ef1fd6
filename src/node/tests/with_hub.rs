//! The node's machine against the hub's machine: what each says, the other understands.
//!
//! Streams are queues under a virtual clock; the data plane is absent. Node 1 reaches hub 1 only, and
//! node 2 hub 2 only, unless a test says otherwise; the hubs reach each other.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{Command, Event, Owner, PeerInfo, Snapshot};
use flatlan_hub::{
    Allow, ForwardCommand, Hub, HubConfig, Limits, Opened, Output as HubOutput, StoreOutcome, StoredNetwork,
    StreamId as HubStream, StreamOrigin,
};
use flatlan_node::{Fatal, Node, NodeConfig, Output, PersistResult, Persisted, StreamId, Transport, Waiting, persist};
use flatlan_relay::{Attach, Control, Proof, Role, auth::Exporter};
use flatlan_roster::{
    Authority, DEFAULT_LIFE, Draft, Expiry, HubRecord, MemberRecord, NetworkRecord, Ratchet, Record, Records,
    VerifiedRoster,
};
use flatlan_types::{
    AdminSecret, Endpoint, HostPort, HubSecret, HubSlot, Label, MemberId, NetworkId, NodeSeed, PeerSlot, RecoveryKey,
    SenderHint, UnixTime, VirtualIp, Workers,
};

#[test]
fn a_node_attaches_and_binds_a_data_stream() {
    let mut net = Net::new(&[1], &[(1, &[1])]);
    net.until(|net| net.nodes[&1].up && net.nodes[&1].data);
    assert_eq!(net.nodes[&1].node.waiting(), None);
}

#[test]
fn two_nodes_of_one_hub_get_labels_both_ways() {
    let mut net = Net::new(&[1], &[(1, &[1]), (2, &[1])]);
    net.until(|net| net.nodes.values().all(|node| node.up));
    net.need(1, 2);
    let took = net.until(|net| net.leads(1, 2) && net.leads(2, 1));
    assert!(took < Duration::from_millis(150), "{took:?}");
}

#[test]
fn a_pair_without_a_common_hub_is_relayed_over_two() {
    let mut net = Net::new(&[1, 2], &[(1, &[1]), (2, &[2])]);
    net.until(|net| net.nodes.values().all(|node| node.up));
    net.run(Duration::from_secs(2));
    net.need(1, 2);
    net.until(|net| net.leads(1, 2) && net.leads(2, 1));
    let peer = net.slot(1, 2);
    let status = net.nodes[&1].node.status();
    let relays = &status.peers.iter().find(|of| of.slot == Some(peer)).unwrap().relays;
    assert_eq!(relays[0].1.len(), 2, "over two hubs: {relays:?}");
}

#[test]
fn a_published_roster_reaches_every_node_and_who_is_not_in_it_stops() {
    let mut net = Net::new(&[1, 2], &[(1, &[1]), (2, &[2])]);
    net.until(|net| net.nodes.values().all(|node| node.up));
    net.run(Duration::from_secs(2));
    let newer = net.sign(&[1, 2], &[1], Some(&net.roster.clone()));
    net.upload(1, &newer);
    let took = net.until(|net| net.nodes[&1].snapshot.peers().count() == 0 && net.nodes[&2].fatal.is_some());
    assert_eq!(net.nodes[&2].fatal, Some(Fatal::Removed { serial: 2 }));
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_node_that_followed_its_rosters_knows_what_one_does_that_read_only_the_last() {
    let mut net = Net::new(&[1], &[(1, &[1])]);
    net.until(|net| net.nodes[&1].up);
    for members in [&[1, 2, 3, 4][..], &[1, 2, 4], &[1, 4, 5, 9], &[1], &[1, 9]] {
        let before = net.nodes[&1].snapshot.generation;
        net.roster = net.sign(&[1], members, Some(&net.roster.clone()));
        net.upload(1, &net.roster.clone());
        net.until(|net| net.nodes[&1].snapshot.generation > before);
        let followed = net.nodes.remove(&1).unwrap();
        net.start(1, Vec::new(), followed.files.clone());
        let fresh = net.nodes.insert(1, followed).unwrap();
        assert_eq!(net.known(&net.nodes[&1].snapshot), net.known(&fresh.snapshot), "{members:?}");
        assert_eq!(net.nodes[&1].snapshot.peers().count(), members.len() - 1);
    }
}

#[test]
fn a_node_that_is_no_member_says_so() {
    let mut net = Net::new(&[1], &[(1, &[1]), (9, &[1])]);
    net.until(|net| matches!(net.nodes[&9].node.waiting(), Some(Waiting::NotMember { serial: 1 })));
}

#[test]
fn a_node_gives_the_roster_that_lists_it_to_a_hub_that_missed_it() {
    let mut net = Net::new(&[1], &[(1, &[1])]);
    let newer = net.sign(&[1], &[1, 9], Some(&net.roster.clone()));
    let mut ratchet = Ratchet::new(*newer.network_id());
    ratchet.advance(&newer).unwrap();
    let files = [(persist::ROSTER, newer.encode()), (persist::RATCHET, ratchet.encode())];
    net.start(9, vec![1], files.map(|(name, bytes)| (name.to_owned(), bytes)).into());
    let took = net.until(|net| net.nodes[&9].data && net.nodes[&1].snapshot.peers().count() == 1);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_restarted_node_is_relayed_to_again() {
    let mut net = Net::new(&[1], &[(1, &[1]), (2, &[1])]);
    net.until(|net| net.nodes.values().all(|node| node.up));
    net.need(1, 2);
    net.until(|net| net.leads(1, 2) && net.leads(2, 1));
    net.restart(2);
    let took = net.until(|net| net.leads(1, 2) && net.leads(2, 1));
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn a_restarted_hub_has_its_nodes_and_labels_back() {
    let mut net = Net::new(&[1], &[(1, &[1]), (2, &[1])]);
    net.until(|net| net.nodes.values().all(|node| node.up));
    net.need(1, 2);
    net.until(|net| net.leads(1, 2) && net.leads(2, 1));
    net.restart_hub(1);
    let took = net.until(|net| net.leads(1, 2) && net.leads(2, 1));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

struct Net {
    authority: Authority,
    secret: AdminSecret,
    roster: VerifiedRoster,
    now: Instant,
    hubs: BTreeMap<u8, TestHub>,
    nodes: BTreeMap<u8, TestNode>,
    queue: VecDeque<(Instant, End, Wire)>,
    next: u64,
    /// The other end of each stream.
    pairs: BTreeMap<End, End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Node(u8, StreamId),
    Hub(u8, HubStream),
    /// Who uploads.
    Admin,
}

#[derive(Debug)]
enum Wire {
    Message(Vec<u8>),
    Ended,
}

struct TestHub {
    hub: Hub,
    stored: BTreeMap<NetworkId, StoredNetwork>,
    labels: BTreeMap<Label, Label>,
}

struct TestNode {
    node: Node,
    reaches: Vec<u8>,
    files: BTreeMap<String, Vec<u8>>,
    snapshot: Arc<Snapshot>,
    labels: BTreeMap<(PeerSlot, HubSlot), Label>,
    given: BTreeMap<Label, PeerSlot>,
    up: bool,
    data: bool,
    fatal: Option<Fatal>,
}

impl Net {
    fn new(hubs: &[u8], nodes: &[(u8, &[u8])]) -> Self {
        let (secret, recovery) = (AdminSecret::from_bytes(&[201; 32]), AdminSecret::from_bytes(&[202; 32]));
        let authority = Authority::new(secret.public(), RecoveryKey::of(&recovery));
        let members: Vec<u8> = nodes.iter().map(|(n, _)| *n).filter(|n| *n < 9).collect();
        let roster = sign(&authority, &secret, hubs, &members, None);
        let now = Instant::now();
        let mut net = Self {
            authority,
            secret,
            roster: roster.clone(),
            now,
            hubs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            queue: VecDeque::new(),
            next: 0,
            pairs: BTreeMap::new(),
        };
        let mut ratchet = Ratchet::new(*roster.network_id());
        ratchet.advance(&roster).unwrap();
        for n in hubs {
            let network = *roster.network_id();
            let stored = StoredNetwork { network, bundle: roster.encode(), ratchet: ratchet.encode() };
            net.start_hub(*n, [(network, stored)].into());
        }
        for (n, reaches) in nodes {
            net.start(*n, reaches.to_vec(), BTreeMap::new());
        }
        net
    }

    fn sign(&self, hubs: &[u8], members: &[u8], base: Option<&VerifiedRoster>) -> VerifiedRoster {
        sign(&self.authority, &self.secret, hubs, members, base)
    }

    fn start_hub(&mut self, n: u8, stored: BTreeMap<NetworkId, StoredNetwork>) {
        self.next += 1;
        let config = HubConfig {
            secret: HubSecret::from_bytes(&[n + 100; 32]),
            allow: Allow::Networks([self.authority.network()].into()),
            peers: Vec::new(),
            udp: vec!["0.0.0.0:51820".parse().unwrap()],
            limits: Limits::default(),
            incarnation: self.next,
            seed: [n; 32],
        };
        let hub = Hub::new(config, stored.values().cloned().collect(), self.now, UNIX);
        self.hubs.insert(n, TestHub { hub, stored, labels: BTreeMap::new() });
        self.drain_hub(n);
    }

    fn start(&mut self, n: u8, reaches: Vec<u8>, mut files: BTreeMap<String, Vec<u8>>) {
        let (epoch, bytes) = persist::next_epoch(files.get(persist::EPOCH).map(Vec::as_slice), UNIX);
        files.insert(persist::EPOCH.to_owned(), bytes);
        let config = NodeConfig {
            network: self.authority.network(),
            secret: Arc::new(NodeSeed::from_bytes([n; 32]).derive()),
            epoch,
            bootstrap: self.hubs.keys().map(|hub| place(*hub)).collect(),
            transport: Transport::Auto,
            workers: workers(),
        };
        let file = |name: &str| files.get(name).cloned();
        let persisted =
            Persisted { roster: file(persist::ROSTER), ratchet: file(persist::RATCHET), peers: file(persist::PEERS) };
        let node = Node::new(config, persisted, u64::from(n), self.now, UNIX);
        let (labels, given) = (BTreeMap::new(), BTreeMap::new());
        let snapshot = Arc::default();
        let node = TestNode { node, reaches, files, snapshot, labels, given, up: false, data: false, fatal: None };
        self.nodes.insert(n, node);
        self.drain(n);
    }

    fn restart(&mut self, n: u8) {
        let node = self.nodes.remove(&n).unwrap();
        self.end_all(|end| matches!(end, End::Node(of, _) if *of == n));
        self.run(Duration::from_millis(50));
        self.start(n, node.reaches, node.files);
    }

    fn restart_hub(&mut self, n: u8) {
        let hub = self.hubs.remove(&n).unwrap();
        self.end_all(|end| matches!(end, End::Hub(of, _) if *of == n));
        self.run(Duration::from_millis(50));
        self.start_hub(n, hub.stored);
    }

    fn end_all(&mut self, of: impl Fn(&End) -> bool) {
        for end in self.pairs.keys().copied().filter(|end| of(end)).collect::<Vec<_>>() {
            self.end(end);
        }
    }

    /// What a snapshot says, slots apart: each peer with its keys and the last byte of its addresses, and which of
    /// these are the node's own.
    fn known(&self, snapshot: &Snapshot) -> (BTreeMap<MemberId, Vec<u8>>, Vec<u8>) {
        let owned = |owner| (0..=255).filter(|n| snapshot.owns(owner, [10, 77, 0, *n].into())).collect();
        let peer = |(slot, info): (PeerSlot, &PeerInfo)| {
            let id = info.keys.member().unwrap();
            let hint = SenderHint::of(&self.authority.network(), &id);
            assert!(snapshot.hinted(hint).contains(&slot), "the hint of {id} leads elsewhere");
            (id, owned(Owner::Peer(slot)))
        };
        (snapshot.peers().map(peer).collect(), owned(Owner::Me))
    }

    fn need(&mut self, from: u8, to: u8) {
        let peer = self.slot(from, to);
        self.nodes.get_mut(&from).unwrap().node.handle_event(Event::NeedPath { peer }, self.now, UNIX);
        self.drain(from);
    }

    fn slot(&self, of: u8, peer: u8) -> PeerSlot {
        let id = member(peer);
        self.nodes[&of].snapshot.peers().find(|(_, info)| info.keys.member() == Some(id)).unwrap().0
    }

    /// Whether a label that one node was given leads, hub by hub, to one that the other gave for it.
    fn leads(&self, from: u8, to: u8) -> bool {
        let (Some(sender), Some(receiver)) = (self.nodes.get(&from), self.nodes.get(&to)) else { return false };
        let peer = self.slot(from, to);
        sender.labels.iter().filter(|((of, _), _)| *of == peer).any(|(_, label)| {
            let mut label = *label;
            for _ in 0..4 {
                if receiver.given.contains_key(&label) {
                    return true;
                }
                let Some(next) = self.hubs.values().find_map(|hub| hub.labels.get(&label)) else { return false };
                label = *next;
            }
            false
        })
    }

    fn upload(&mut self, n: u8, roster: &VerifiedRoster) {
        self.next += 1;
        let stream = HubStream(self.next);
        self.pairs.insert(End::Hub(n, stream), End::Admin);
        let hub = &mut self.hubs.get_mut(&n).unwrap().hub;
        let opened = Opened { remote: address(200), exporter: Exporter([9; 32]), origin: StreamOrigin::Accepted };
        hub.handle_stream_opened(stream, opened, self.now);
        let network = *roster.network_id();
        let attach = Attach { version: 1, network, role: Role::Admin, proof: Proof::Nothing };
        hub.handle_control(stream, Control::Attach(attach), self.now);
        let bytes = roster.encode();
        let put = Control::PutRoster { network, total: bytes.len() as u32, offset: 0, bytes };
        hub.handle_control(stream, put, self.now);
        self.drain_hub(n);
    }

    fn until(&mut self, mut holds: impl FnMut(&Self) -> bool) -> Duration {
        let begin = self.now;
        while !holds(self) {
            assert!(self.now - begin < Duration::from_secs(10), "it does not hold after ten seconds");
            self.step(begin + Duration::from_secs(20));
        }
        self.now - begin
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    fn step(&mut self, end: Instant) {
        let nodes = self.nodes.values().filter(|node| node.fatal.is_none()).filter_map(|node| node.node.poll_timeout());
        let hubs = self.hubs.values().map(|hub| hub.hub.poll_timeout());
        let timer = nodes.chain(hubs).min().unwrap_or(end);
        match self.queue.front() {
            Some((at, _, _)) if *at <= timer && *at <= end => {
                let Some((at, to, wire)) = self.queue.pop_front() else { return };
                self.now = self.now.max(at);
                self.arrive(to, wire);
            }
            _ if timer <= end => {
                self.now = self.now.max(timer);
                for n in self.nodes.keys().copied().collect::<Vec<_>>() {
                    self.nodes.get_mut(&n).unwrap().node.handle_timeout(self.now, UNIX);
                    self.drain(n);
                }
                for n in self.hubs.keys().copied().collect::<Vec<_>>() {
                    self.hubs.get_mut(&n).unwrap().hub.handle_timeout(self.now);
                    self.drain_hub(n);
                }
            }
            _ => self.now = end,
        }
    }

    fn arrive(&mut self, to: End, wire: Wire) {
        let now = self.now;
        if matches!(wire, Wire::Ended) {
            self.pairs.remove(&to);
        }
        match (to, wire) {
            (End::Node(n, stream), wire) => {
                let Some(at) = self.nodes.get_mut(&n) else { return };
                match wire {
                    Wire::Message(bytes) => at.node.handle_message(stream, &bytes, now, UNIX),
                    Wire::Ended => at.node.handle_closed(stream, now, UNIX),
                }
                self.drain(n);
            }
            (End::Hub(n, stream), wire) => {
                let Some(at) = self.hubs.get_mut(&n) else { return };
                match wire {
                    Wire::Message(bytes) => at.hub.handle_message(stream, &bytes, now),
                    Wire::Ended => at.hub.handle_stream_closed(stream, now),
                }
                self.drain_hub(n);
            }
            (End::Admin, _) => {}
        }
    }

    fn send(&mut self, from: End, wire: Wire) {
        if let Some(to) = self.pairs.get(&from) {
            self.queue.push_back((self.now + LATENCY, *to, wire));
        }
    }

    fn end(&mut self, from: End) {
        self.send(from, Wire::Ended);
        self.pairs.remove(&from);
    }

    fn drain(&mut self, n: u8) {
        while let Some(output) = self.nodes.get_mut(&n).and_then(|node| node.node.poll_output()) {
            let (now, node) = (self.now, self.nodes.get_mut(&n).unwrap());
            match output {
                Output::Dial { stream, target, .. } => {
                    let there = self.hubs.keys().copied().find(|hub| place(*hub) == target);
                    let Some(hub) = there.filter(|hub| node.reaches.contains(hub)) else {
                        node.node.handle_closed(stream, now, UNIX);
                        continue;
                    };
                    self.next += 1;
                    let (exporter, other) = (Exporter([self.next as u8; 32]), HubStream(self.next));
                    self.pairs.insert(End::Node(n, stream), End::Hub(hub, other));
                    self.pairs.insert(End::Hub(hub, other), End::Node(n, stream));
                    node.node.handle_opened(stream, exporter.0, Some(address(100 + hub)), now);
                    let opened = Opened { remote: address(n), exporter, origin: StreamOrigin::Accepted };
                    self.hubs.get_mut(&hub).unwrap().hub.handle_stream_opened(other, opened, now);
                    self.drain_hub(hub);
                }
                Output::Send { stream, bytes } => self.send(End::Node(n, stream), Wire::Message(bytes)),
                Output::Close { stream } => self.end(End::Node(n, stream)),
                Output::BindData { .. } => node.data = true,
                Output::Worker(command) => node.command(command),
                Output::Snapshot(snapshot) => node.snapshot = snapshot,
                Output::Interface(_) => {}
                Output::Resolve { place } => node.node.handle_resolved(&place, &[], now),
                Output::Persist { file, bytes, token } => {
                    node.files.insert(file, bytes.to_vec());
                    if let Some(token) = token {
                        node.node.handle_persisted(token, PersistResult::Written, now, UNIX);
                    }
                }
                Output::Up { .. } => node.up = true,
                Output::Fatal(fatal) => node.fatal = Some(fatal),
            }
        }
    }

    fn drain_hub(&mut self, n: u8) {
        while let Some(output) = self.hubs.get_mut(&n).and_then(|hub| hub.hub.poll_output()) {
            let (now, at) = (self.now, self.hubs.get_mut(&n).unwrap());
            match output {
                HubOutput::Send { stream, message } => {
                    self.send(End::Hub(n, stream), Wire::Message(message.encode()));
                }
                HubOutput::Close { stream } => self.end(End::Hub(n, stream)),
                HubOutput::Dial { dial, at: target, role: _ } => {
                    let Some(other) = self.hubs.keys().copied().find(|hub| place(*hub) == target) else {
                        self.hubs.get_mut(&n).unwrap().hub.handle_dial_failed(dial, now);
                        continue;
                    };
                    let (near, far) = (HubStream(self.next + 1), HubStream(self.next + 2));
                    self.next += 2;
                    let exporter = Exporter([self.next as u8; 32]);
                    self.pairs.insert(End::Hub(n, near), End::Hub(other, far));
                    self.pairs.insert(End::Hub(other, far), End::Hub(n, near));
                    let open = |remote, origin| Opened { remote: address(100 + remote), exporter, origin };
                    let dialled = open(other, StreamOrigin::Dialled(dial));
                    self.hubs.get_mut(&n).unwrap().hub.handle_stream_opened(near, dialled, now);
                    let accepted = open(n, StreamOrigin::Accepted);
                    self.hubs.get_mut(&other).unwrap().hub.handle_stream_opened(far, accepted, now);
                    self.drain_hub(other);
                }
                HubOutput::Forward(command) => at.forward(command),
                HubOutput::Store { token, network, bundle, ratchet } => {
                    at.stored.insert(network, StoredNetwork { network, bundle: bundle.to_vec(), ratchet });
                    at.hub.handle_stored(token, StoreOutcome::Stored, now);
                }
                HubOutput::Data { .. } | HubOutput::Event(_) | HubOutput::SetAside { .. } => {}
            }
        }
    }
}

impl TestHub {
    fn forward(&mut self, command: ForwardCommand) {
        match command {
            ForwardCommand::AddLabel { label, out, .. } | ForwardCommand::RedirectLabel { label, out, .. } => {
                self.labels.insert(label, out);
            }
            ForwardCommand::RemoveLabel { label } => {
                self.labels.remove(&label);
            }
            ForwardCommand::AddAttachment { .. }
            | ForwardCommand::RemoveAttachment { .. }
            | ForwardCommand::SetStream { .. }
            | ForwardCommand::SetDownlink { .. }
            | ForwardCommand::SetLeg { .. }
            | ForwardCommand::SetEndpoint { .. }
            | ForwardCommand::TouchHub { .. }
            | ForwardCommand::TouchLabel { .. }
            | ForwardCommand::SetNetworkQuota { .. } => {}
        }
    }
}

impl TestNode {
    fn command(&mut self, command: Command) {
        match command {
            Command::SetLabel { peer, hub, label: Some(label) } => {
                self.labels.insert((peer, hub), label);
            }
            Command::SetLabel { peer, hub, label: None } => {
                self.labels.remove(&(peer, hub));
            }
            Command::RemoveHub { hub } => self.labels.retain(|(_, at), _| *at != hub),
            Command::AddInLabel { label, peer, .. } => {
                assert_eq!(workers().of_label(label), self.snapshot.worker(peer, workers()), "who knows the sender");
                self.given.insert(label, peer);
            }
            Command::RemoveInLabel { label } => {
                self.given.remove(&label);
            }
            Command::SetHub { .. }
            | Command::SetWay { .. }
            | Command::DrainHub { .. }
            | Command::SetDirect { .. }
            | Command::SendMessage { .. }
            | Command::Connect { .. }
            | Command::KeepWarm { .. }
            | Command::SetHubLeg { .. }
            | Command::TouchHub { .. }
            | Command::SetEpoch { .. }
            | Command::SetPeerEpoch { .. }
            | Command::NetworkChanged => {}
        }
    }
}

/// Every node has several.
fn workers() -> Workers {
    Workers::new(4).unwrap()
}

fn sign(
    authority: &Authority,
    secret: &AdminSecret,
    hubs: &[u8],
    members: &[u8],
    base: Option<&VerifiedRoster>,
) -> VerifiedRoster {
    let network = NetworkRecord {
        name: "net".parse().unwrap(),
        range: "10.77.0.0/16".parse().unwrap(),
        mtu: 1400,
        expiry: Expiry::Warn,
    };
    let hub = |n: &u8| HubRecord {
        name: format!("hub{n}").parse().unwrap(),
        key: HubSecret::from_bytes(&[n + 100; 32]).public(),
        tls: place(*n),
        udp: None,
        region: None,
        weight: 1,
    };
    let record = |n: &u8| MemberRecord {
        ips: vec![VirtualIp::new([10, 77, 0, *n].into())],
        keys: Some(NodeSeed::from_bytes([*n; 32]).derive().public()),
        ..MemberRecord::new(format!("n{n}").parse().unwrap())
    };
    let records = std::iter::once(Record::Network(network))
        .chain(hubs.iter().map(|n| Record::Hub(hub(n))))
        .chain(members.iter().map(|n| Record::Member(record(n))));
    let records = Records::compile(records.collect(), &authority.network()).unwrap();
    let draft = Draft { authority, records: &records, base, now: UNIX, life: DEFAULT_LIFE };
    VerifiedRoster::sign(draft, secret).unwrap()
}

fn member(n: u8) -> MemberId {
    NodeSeed::from_bytes([n; 32]).derive().public().id
}

fn place(n: u8) -> HostPort {
    format!("hub{n}.example:443").parse().unwrap()
}

fn address(n: u8) -> Endpoint {
    Endpoint::new(([192, 0, 2, n], 51820).into())
}

const LATENCY: Duration = Duration::from_millis(10);
const UNIX: UnixTime = UnixTime(1_800_000_000);
