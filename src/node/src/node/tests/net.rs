//! A little internet under a virtual clock: nodes, hubs that do as they are told, and workers that do
//! nothing but deliver peer messages along the labels and endpoints that the machine gave them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{Command, Event, Snapshot};
use flatlan_path::{Leg, PathKind};
use flatlan_relay::{
    Attach, Attached, BindKey, BindSecret, ClaimsSummary, Control, PathOpen, PathReason, Presence, Proof, RefusedCode,
    Role,
    auth::{AttachScope, Exporter, sign_hello},
};
use flatlan_roster::{
    Authority, Claim, CountersignedClaim, DEFAULT_LIFE, Draft, Expiry, HubRecord, Invite, MemberRecord, NetworkRecord,
    Ratchet, Record, Records, VerifiedRoster,
};
use flatlan_types::{
    AdminSecret, BootEpoch, Endpoint, HostPort, HubKey, HubSecret, HubSlot, InviteSecret, Label, MemberId, NetworkId,
    NodeSeed, PeerSlot, Prefix, RecoveryKey, UnixTime, VirtualIp, Workers,
};

use crate::{
    Fatal, Interface, LanLoss, Node, NodeConfig, Output, PersistResult, Persisted, StreamId, Transport,
    peer_message::PeerMessage, persist,
};

/// The admin's desk.
pub(super) struct Admin {
    secret: AdminSecret,
    pub(super) authority: Authority,
    pub(super) network: NetworkId,
    pub(super) expiry: Expiry,
    /// When it signs.
    pub(super) now: UnixTime,
    /// Members that have an invite, which hub 1 redeems, and no key.
    pub(super) invited: Vec<u8>,
    /// Who carries [`SHARED`] together.
    pub(super) carriers: Vec<u8>,
    /// To whom [`MOVED`] moved.
    pub(super) moved: Option<u8>,
}

impl Admin {
    pub(super) fn new() -> Self {
        let (secret, recovery) = (AdminSecret::from_bytes(&[201; 32]), AdminSecret::from_bytes(&[202; 32]));
        let authority = Authority::new(secret.public(), RecoveryKey::of(&recovery));
        let network = authority.network();
        Self {
            secret,
            authority,
            network,
            expiry: Expiry::Warn,
            now: UNIX,
            invited: Vec::new(),
            carriers: Vec::new(),
            moved: None,
        }
    }

    /// A roster of these hubs and members (by number), on top of another.
    pub(super) fn sign(&self, hubs: &[u8], members: &[u8], base: Option<&VerifiedRoster>) -> VerifiedRoster {
        let network = NetworkRecord {
            name: "net".parse().unwrap(),
            range: "10.77.0.0/16".parse().unwrap(),
            mtu: 1400,
            expiry: self.expiry,
        };
        let hub = |n: &u8| HubRecord {
            name: format!("hub{n}").parse().unwrap(),
            key: hub_secret(*n).public(),
            tls: place(*n),
            udp: None,
            region: None,
            weight: 1,
        };
        let member = |n: &u8| MemberRecord {
            ips: vec![VirtualIp::new([10, 77, 0, *n].into())],
            keys: (!self.invited.contains(n)).then(|| seed(*n).derive().public()),
            invite: self.invited.contains(n).then(|| Invite {
                key: invite(*n).public(),
                redeemer: hub_secret(1).public(),
                expires: self.now.after(86_400),
            }),
            routes: self.carriers.contains(n).then(|| SHARED.parse().unwrap()).into_iter().collect(),
            moved: (self.moved == Some(*n)).then(|| MOVED.parse().unwrap()).into_iter().collect(),
            ha: self.carriers.contains(n).then(|| "gateways".parse().unwrap()),
            ..MemberRecord::new(format!("n{n}").parse().unwrap())
        };
        let records = std::iter::once(Record::Network(network))
            .chain(hubs.iter().map(|n| Record::Hub(hub(n))))
            .chain(members.iter().map(|n| Record::Member(member(n))));
        let records = Records::compile(records.collect(), &self.network).unwrap();
        let draft = Draft { authority: &self.authority, records: &records, base, now: self.now, life: DEFAULT_LIFE };
        VerifiedRoster::sign(draft, &self.secret).unwrap()
    }
}

/// A node's claim to an invite, as hub 1 countersigns it on this roster.
pub(super) fn claim(roster: &VerifiedRoster, of: u8, node: u8) -> CountersignedClaim {
    let claim = Claim::make(roster.network_id(), &invite(of), &seed(node).derive());
    roster.countersign(&claim, &hub_secret(1), UNIX).unwrap()
}

fn invite(n: u8) -> InviteSecret {
    InviteSecret::from_bytes(&[n + 50; 32])
}

/// Everything.
pub(super) struct Net {
    pub(super) admin: Admin,
    pub(super) now: Instant,
    pub(super) start: Instant,
    /// What the nodes' clocks show.
    pub(super) unix: UnixTime,
    pub(super) hubs: BTreeMap<u8, TestHub>,
    pub(super) nodes: BTreeMap<u8, TestNode>,
    queue: BTreeMap<(Instant, u64), Happening>,
    next: u64,
    /// Hubs tell of ways over each other.
    pub(super) beyond: bool,
}

#[derive(Debug)]
enum Happening {
    Dialled { node: u8, stream: StreamId, target: HostPort },
    ToHub { hub: u8, conn: Conn, bytes: Vec<u8> },
    ToNode { conn: Conn, bytes: Vec<u8> },
    Ended { conn: Conn },
    Worker { node: u8, life: u32, event: Event },
    Written { node: u8, life: u32, token: crate::PersistToken },
}

/// A stream, by its node, that node's life, and the node's number for it.
pub(super) type Conn = (u8, u32, StreamId);

/// A hub that does as it is told.
pub(super) struct TestHub {
    secret: HubSecret,
    pub(super) alive: bool,
    /// Streams still open, nothing answered.
    pub(super) frozen: bool,
    /// So much further away than others, one way.
    pub(super) far: Duration,
    pub(super) roster: Option<VerifiedRoster>,
    /// Tells of no head that is newer than what it held when it turned bad.
    pub(super) refuses_news: bool,
    /// Answers pings before they were sent.
    pub(super) lies: bool,
    /// Tells whoever opens a path a label that it told the same node before.
    pub(super) repeats: bool,
    /// Gives no part of its roster to whoever asks.
    pub(super) withholds: bool,
    conns: BTreeMap<Conn, HubConn>,
    greatest: BTreeMap<MemberId, Presence>,
    watched: BTreeSet<(MemberId, Conn)>,
    labels: BTreeMap<Label, HubLabel>,
    pending: BTreeMap<u32, (Conn, u32, MemberId)>,
    next: u32,
    /// What nodes said, for assertions.
    pub(super) heard: Vec<(u8, Control)>,
}

struct HubConn {
    exporter: Exporter,
    member: Option<MemberId>,
    role: Option<Role>,
}

struct HubLabel {
    from: Conn,
    to: Conn,
    out: Label,
}

/// A node with a worker that only delivers.
pub(super) struct TestNode {
    pub(super) node: Node,
    pub(super) life: u32,
    /// Killed: it does nothing any more.
    dead: bool,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) disk: Disk,
    pub(super) address: Endpoint,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) interface: Option<Interface>,
    pub(super) epoch: BootEpoch,
    pub(super) hubs: BTreeMap<HubSlot, (bool, bool)>,
    pub(super) labels: BTreeMap<(PeerSlot, HubSlot), Label>,
    /// The hubs behind each.
    pub(super) over: BTreeMap<(PeerSlot, HubSlot), Vec<HubSlot>>,
    pub(super) given: BTreeMap<Label, (HubSlot, PeerSlot)>,
    pub(super) direct: BTreeMap<PeerSlot, Vec<Endpoint>>,
    pub(super) connects: Vec<PeerSlot>,
    /// Peers that it wants kept ready.
    pub(super) kept_warm: Vec<PeerSlot>,
    pub(super) known: Vec<(PeerSlot, BootEpoch)>,
    pub(super) dials: Vec<Instant>,
    pub(super) data: BTreeSet<StreamId>,
    pub(super) fatal: Option<Fatal>,
    pub(super) up: Option<(Instant, usize)>,
    streams: BTreeMap<StreamId, Option<u8>>,
    /// Hubs that it does not reach.
    pub(super) walled: BTreeSet<u8>,
    /// What is walled off does not even refuse.
    pub(super) silence: bool,
    /// No peer message gets through directly.
    pub(super) udp: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Disk {
    Good,
    Fails,
    /// Never answers.
    Hangs,
}

impl Net {
    pub(super) fn new(hubs: &[u8], nodes: &[u8]) -> Self {
        let admin = Admin::new();
        let roster = admin.sign(hubs, nodes, None);
        let start = Instant::now();
        let mut net = Self {
            admin,
            now: start,
            start,
            unix: UNIX,
            hubs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            next: 0,
            beyond: false,
        };
        for n in hubs {
            net.hubs.insert(*n, TestHub::new(*n, Some(roster.clone())));
        }
        for n in nodes {
            net.start_node(*n, BTreeMap::new());
        }
        net
    }

    /// The same, with hubs that nodes do not reach.
    pub(super) fn walled(hubs: &[u8], nodes: &[(u8, &[u8])]) -> Self {
        let mut net = Self::new(hubs, &nodes.iter().map(|(n, _)| *n).collect::<Vec<_>>());
        net.beyond = true;
        for (n, walled) in nodes {
            net.nodes.get_mut(n).unwrap().walled = walled.iter().copied().collect();
        }
        net
    }

    /// Starts (or restarts) a node with these files.
    pub(super) fn start_node(&mut self, n: u8, mut files: BTreeMap<String, Vec<u8>>) {
        self.start_node_as(n, n, &mut files, UnixTime(UNIX.0 + (self.now - self.start).as_secs()));
    }

    /// Starts a node with another's key, or another clock.
    pub(super) fn start_node_as(&mut self, n: u8, key: u8, files: &mut BTreeMap<String, Vec<u8>>, unix: UnixTime) {
        let (epoch, bytes) = persist::next_epoch(files.get(persist::EPOCH).map(Vec::as_slice), unix);
        files.insert(persist::EPOCH.to_owned(), bytes);
        let config = NodeConfig {
            network: self.admin.network,
            secret: Arc::new(seed(key).derive()),
            epoch,
            bootstrap: self.hubs.keys().map(|n| place(*n)).collect(),
            transport: Transport::Auto,
            workers: Workers::ONE,
        };
        let persisted = Persisted {
            roster: files.get(persist::ROSTER).cloned(),
            ratchet: files.get(persist::RATCHET).cloned(),
            peers: files.get(persist::PEERS).cloned(),
        };
        let life = self.nodes.get(&n).map_or(0, |node| node.life + 1);
        let mut node = Node::new(config, persisted, u64::from(n), self.now, self.unix);
        let address = address(n);
        node.handle_host_candidates(vec![address], self.now, self.unix);
        self.nodes.insert(
            n,
            TestNode {
                node,
                life,
                dead: false,
                files: files.clone(),
                disk: Disk::Good,
                address,
                snapshot: Arc::default(),
                interface: None,
                epoch,
                hubs: BTreeMap::new(),
                labels: BTreeMap::new(),
                over: BTreeMap::new(),
                given: BTreeMap::new(),
                direct: BTreeMap::new(),
                connects: Vec::new(),
                kept_warm: Vec::new(),
                known: Vec::new(),
                dials: Vec::new(),
                data: BTreeSet::new(),
                fatal: None,
                up: None,
                streams: BTreeMap::new(),
                walled: BTreeSet::new(),
                silence: false,
                udp: true,
            },
        );
        self.drain(n);
    }

    /// Kills a node without a word; its files are left.
    pub(super) fn kill_node(&mut self, n: u8) -> BTreeMap<String, Vec<u8>> {
        let node = self.nodes.get_mut(&n).unwrap();
        node.life += 1;
        node.dead = true;
        let files = std::mem::take(&mut node.files);
        let (life, streams) = (node.life - 1, std::mem::take(&mut node.streams));
        for (stream, hub) in streams {
            if let Some(hub) = hub {
                self.hub_conn_ended(hub, (n, life, stream));
            }
        }
        files
    }

    pub(super) fn kill_hub(&mut self, n: u8) {
        let hub = self.hubs.get_mut(&n).unwrap();
        hub.alive = false;
        let conns: Vec<Conn> = hub.conns.keys().copied().collect();
        hub.forget();
        for conn in conns {
            self.at(LATENCY, Happening::Ended { conn });
        }
    }

    pub(super) fn revive_hub(&mut self, n: u8) {
        self.hubs.get_mut(&n).unwrap().alive = true;
    }

    /// Gives a hub a roster, of which it tells its nodes (if it is an honest one).
    pub(super) fn publish(&mut self, n: u8, roster: &VerifiedRoster) {
        let hub = self.hubs.get_mut(&n).unwrap();
        if hub.refuses_news {
            return;
        }
        hub.roster = Some(roster.clone());
        let head = hub.head().unwrap();
        let gone: Vec<Conn> = hub
            .conns
            .iter()
            .filter(|(_, conn)| conn.member.is_some_and(|id| roster.by_id(&id).is_none()))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in hub.control_conns() {
            self.tell(conn, &head);
        }
        for conn in gone {
            self.tell(conn, &refused(RefusedCode::NotMember));
        }
    }

    /// A hub says its newest head, with claims that it made up.
    pub(super) fn lie_of_claims(&mut self, n: u8, hash: [u8; 32]) {
        let hub = &self.hubs[&n];
        let roster = hub.roster.as_ref().unwrap();
        let (network, head) = (*roster.network_id(), roster.signed_head().encode());
        for conn in hub.control_conns() {
            let claims = ClaimsSummary { count: 1, hash };
            self.tell(conn, &Control::Head { network, head: head.clone(), claims });
        }
    }

    /// A hub says something to everybody.
    pub(super) fn hub_says(&mut self, n: u8, message: &Control) {
        for conn in self.hubs[&n].control_conns() {
            self.tell(conn, message);
        }
    }

    /// A node learns a roster by other means.
    pub(super) fn learn(&mut self, n: u8, roster: &VerifiedRoster) {
        let node = &mut self.nodes.get_mut(&n).unwrap().node;
        let offered = node.keeper.offer(roster.bundle(), &mut node.out);
        node.on_offered(offered);
        self.drain(n);
    }

    /// A peer's worker passes on what the peer said.
    pub(super) fn peer_says(&mut self, to: u8, from: u8, message: &PeerMessage) {
        let peer = self.slot(to, from);
        let ingress = PathKind::Direct(address(from));
        self.event(to, Event::PeerMessage { peer, ingress, bytes: message.encode() });
    }

    /// A node's driver finds what of its LAN is lost.
    pub(super) fn lan(&mut self, n: u8, lost: BTreeMap<Prefix, LanLoss>) {
        self.nodes.get_mut(&n).unwrap().node.handle_lan(lost, self.now);
        self.drain(n);
    }

    /// A worker's event.
    pub(super) fn event(&mut self, n: u8, event: Event) {
        self.nodes.get_mut(&n).unwrap().node.handle_event(event, self.now, self.unix);
        self.drain(n);
    }

    /// Packets wait at one node for another.
    pub(super) fn need(&mut self, from: u8, to: u8) {
        let peer = self.slot(from, to);
        self.event(from, Event::NeedPath { peer });
    }

    /// A session comes up between two nodes.
    pub(super) fn session(&mut self, a: u8, b: u8) {
        for (from, to) in [(a, b), (b, a)] {
            let peer = self.slot(from, to);
            self.event(from, Event::SessionUp { peer, lane: flatlan_types::LaneId::PRIMARY });
        }
    }

    pub(super) fn slot(&self, of: u8, peer: u8) -> PeerSlot {
        let id = member(peer);
        let found = self.nodes[&of].snapshot.peers().find(|(_, info)| info.keys.member() == Some(id));
        found.expect("it is a member").0
    }

    pub(super) fn knows(&self, of: u8, peer: u8) -> bool {
        let id = member(peer);
        self.nodes[&of].snapshot.peers().any(|(_, info)| info.keys.member() == Some(id))
    }

    pub(super) fn serial(&self, n: u8) -> u64 {
        self.nodes[&n].node.status().network.roster.map_or(0, |version| version.serial)
    }

    /// How many hubs relay from one node to another, with the labels leading there.
    pub(super) fn ways(&self, from: u8, to: u8) -> usize {
        if !self.knows(from, to) {
            return 0;
        }
        let peer = self.slot(from, to);
        let node = &self.nodes[&from];
        node.labels.iter().filter(|((of, _), label)| *of == peer && self.follow(from, **label, to)).count()
    }

    /// Whether a label of a hub leads to a node that would accept it.
    fn follow(&self, from: u8, label: Label, to: u8) -> bool {
        self.hubs.values().any(|hub| {
            hub.alive
                && hub.labels.get(&label).is_some_and(|entry| {
                    entry.from.0 == from && entry.to.0 == to && self.nodes[&to].given.contains_key(&entry.out)
                })
        })
    }

    /// Runs until the condition holds; how long it took.
    pub(super) fn until(&mut self, most: Duration, mut holds: impl FnMut(&Self) -> bool) -> Duration {
        let begin = self.now;
        while !holds(self) {
            assert!(self.now - begin < most, "it does not hold after {most:?}");
            self.step(begin + most);
        }
        self.now - begin
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    /// One happening, or one timeout, or the end.
    fn step(&mut self, end: Instant) {
        let queued = self.queue.keys().next().map(|(at, _)| *at);
        let live = self.nodes.iter().filter(|(_, node)| node.fatal.is_none() && !node.dead);
        let timeout = live.filter_map(|(n, node)| Some((node.node.poll_timeout()?, *n))).min();
        match (queued, timeout) {
            (Some(at), timeout) if timeout.is_none_or(|(t, _)| at <= t) && at <= end => {
                self.now = self.now.max(at);
                if let Some((_, happening)) = self.queue.pop_first() {
                    self.happen(happening);
                }
            }
            (_, Some((at, n))) if at <= end => {
                assert!(at > self.now || !self.busy(n), "node {n} asks for the same moment for ever");
                self.now = self.now.max(at);
                self.nodes.get_mut(&n).unwrap().node.handle_timeout(self.now, self.unix);
                self.drain(n);
            }
            _ => self.now = end,
        }
    }

    /// Whether a timeout changes nothing.
    fn busy(&mut self, n: u8) -> bool {
        let (now, unix) = (self.now, self.unix);
        let node = &mut self.nodes.get_mut(&n).unwrap().node;
        node.handle_timeout(now, unix);
        let again = node.poll_timeout().is_some_and(|at| at <= now);
        self.drain(n);
        again
    }

    fn at(&mut self, after: Duration, happening: Happening) {
        self.next += 1;
        self.queue.insert((self.now + after, self.next), happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Dialled { node, stream, target } => self.dialled(node, stream, &target),
            Happening::ToHub { hub, conn, bytes } => self.hub_message(hub, conn, &bytes),
            Happening::ToNode { conn: (n, life, stream), bytes } => {
                let Some(node) = self.nodes.get_mut(&n).filter(|node| node.life == life) else { return };
                if node.streams.contains_key(&stream) {
                    node.node.handle_message(stream, &bytes, self.now, self.unix);
                    self.drain(n);
                }
            }
            Happening::Ended { conn: (n, life, stream) } => {
                let Some(node) = self.nodes.get_mut(&n).filter(|node| node.life == life) else { return };
                if node.streams.remove(&stream).is_some() {
                    node.data.remove(&stream);
                    node.node.handle_closed(stream, self.now, self.unix);
                    self.drain(n);
                }
            }
            Happening::Worker { node: n, life, event } => {
                if self.nodes.get(&n).is_some_and(|node| node.life == life) {
                    self.event(n, event);
                }
            }
            Happening::Written { node: n, life, token } => {
                let Some(node) = self.nodes.get_mut(&n).filter(|node| node.life == life) else { return };
                let result = if node.disk == Disk::Fails { PersistResult::Failed } else { PersistResult::Written };
                node.node.handle_persisted(token, result, self.now, self.unix);
                self.drain(n);
            }
        }
    }

    fn dialled(&mut self, n: u8, stream: StreamId, target: &HostPort) {
        let life = self.nodes[&n].life;
        let hub = self.hubs.iter().find(|(h, hub)| place(**h) == *target && hub.alive).map(|(h, _)| *h);
        let hub = hub.filter(|h| !self.nodes[&n].walled.contains(h));
        if hub.is_none() && self.nodes[&n].silence {
            return;
        }
        let Some(h) = hub else { return self.happen(Happening::Ended { conn: (n, life, stream) }) };
        let exporter = Exporter([stream.0 as u8; 32]);
        let remote = Endpoint::new(([198, 51, 100, h], 443).into());
        let node = self.nodes.get_mut(&n).unwrap();
        if !node.streams.contains_key(&stream) {
            return;
        }
        node.streams.insert(stream, Some(h));
        node.node.handle_opened(stream, exporter.0, Some(remote), self.now);
        self.drain(n);
        let hub = self.hubs.get_mut(&h).unwrap();
        let conn = (n, life, stream);
        hub.conns.insert(conn, HubConn { exporter, member: None, role: None });
        let signature = sign_hello(&hub.secret, &exporter);
        let hello = Control::HubHello { version: 1, key: hub.secret.public(), signature };
        self.tell(conn, &hello);
    }

    pub(super) fn tell(&mut self, conn: Conn, message: &Control) {
        let hub = self.nodes.get(&conn.0).and_then(|node| *node.streams.get(&conn.2)?);
        let far = hub.and_then(|hub| self.hubs.get(&hub)).map_or(Duration::ZERO, |hub| hub.far);
        self.at(LATENCY + far, Happening::ToNode { conn, bytes: message.encode() });
    }

    /// Does what a node wants done.
    pub(super) fn drain(&mut self, n: u8) {
        while let Some(output) = self.nodes.get_mut(&n).and_then(|node| node.node.poll_output()) {
            let life = self.nodes[&n].life;
            let node = self.nodes.get_mut(&n).unwrap();
            match output {
                Output::Dial { stream, target, .. } => {
                    node.dials.push(self.now);
                    node.streams.insert(stream, None);
                    self.at(LATENCY * 2, Happening::Dialled { node: n, stream, target });
                }
                Output::Send { stream, bytes } => {
                    if let Some(Some(hub)) = node.streams.get(&stream).copied() {
                        let far = self.hubs.get(&hub).map_or(Duration::ZERO, |hub| hub.far);
                        self.at(LATENCY + far, Happening::ToHub { hub, conn: (n, life, stream), bytes });
                    }
                }
                Output::Close { stream } => {
                    node.data.remove(&stream);
                    if let Some(Some(hub)) = node.streams.remove(&stream) {
                        self.hub_conn_ended(hub, (n, life, stream));
                    }
                }
                Output::BindData { stream, .. } => {
                    node.data.insert(stream);
                }
                Output::Worker(command) => self.command(n, command),
                Output::Snapshot(snapshot) => node.snapshot = snapshot,
                Output::Interface(interface) => node.interface = Some(interface),
                Output::Resolve { place } => {
                    let now = self.now;
                    node.node.handle_resolved(&place, &[], now);
                }
                Output::Persist { file, bytes, token } => {
                    if node.disk == Disk::Good {
                        node.files.insert(file, bytes.to_vec());
                    }
                    if let Some(token) = token.filter(|_| node.disk != Disk::Hangs) {
                        self.at(LATENCY, Happening::Written { node: n, life, token });
                    }
                }
                Output::Up { hubs } => node.up = Some((self.now, hubs)),
                Output::Fatal(fatal) => node.fatal = Some(fatal),
            }
        }
    }

    fn command(&mut self, n: u8, command: Command) {
        let address = self.nodes[&n].address;
        let life = self.nodes[&n].life;
        let node = self.nodes.get_mut(&n).unwrap();
        match command {
            Command::SetHub { hub, udp, stream } => {
                let before = node.hubs.insert(hub, (udp.is_some(), stream));
                if udp.is_some() && before.is_none_or(|(udp, _)| !udp) && node.udp {
                    let event = Event::LegUp { hub, reflexive: address, rtt: LATENCY * 2 };
                    self.at(LATENCY * 2, Happening::Worker { node: n, life, event });
                }
            }
            Command::DrainHub { .. } => {}
            Command::RemoveHub { hub } => {
                node.hubs.remove(&hub);
                node.labels.retain(|(_, at), _| *at != hub);
                node.given.retain(|_, (at, _)| *at != hub);
            }
            Command::SetLabel { peer, hub, label } => {
                match label {
                    Some(label) => node.labels.insert((peer, hub), label),
                    None => node.labels.remove(&(peer, hub)),
                };
            }
            Command::SetWay { peer, hub, over } => {
                node.over.insert((peer, hub), over);
            }
            Command::AddInLabel { label, hub, peer } => {
                node.given.insert(label, (hub, peer));
            }
            Command::RemoveInLabel { label } => {
                node.given.remove(&label);
            }
            Command::SetDirect { peer, endpoints } => {
                node.direct.insert(peer, endpoints);
            }
            Command::SendMessage { peer, bytes, path } => self.deliver(n, peer, &bytes, path),
            Command::Connect { peer } => node.connects.push(peer),
            Command::KeepWarm { peer } => node.kept_warm.push(peer),
            Command::SetPeerEpoch { peer, epoch } => node.known.push((peer, epoch)),
            Command::SetEpoch { epoch } => node.epoch = epoch,
            Command::SetHubLeg { .. } | Command::TouchHub { .. } | Command::NetworkChanged => {}
        }
    }

    /// Delivers a peer message by every way there is.
    fn deliver(&mut self, n: u8, peer: PeerSlot, bytes: &[u8], path: Option<PathKind>) {
        let node = &self.nodes[&n];
        let Some(to) = node.snapshot.peer(peer).and_then(|info| info.keys.member()) else { return };
        let from = self.nodes[&n].node.status().me.id;
        let mut arrivals: Vec<(u8, PathKind)> = Vec::new();
        let direct = match path {
            Some(PathKind::Direct(endpoint)) => vec![endpoint],
            Some(PathKind::Relay { .. }) => Vec::new(),
            None => node.direct.get(&peer).cloned().unwrap_or_default(),
        };
        for (other, at) in &self.nodes {
            if direct.contains(&at.address) && at.udp && node.udp && !at.dead && at.node.status().me.id == to {
                arrivals.push((*other, PathKind::Direct(node.address)));
            }
        }
        if path.is_none() {
            for label in node.labels.iter().filter(|((of, _), _)| *of == peer).map(|(_, label)| *label) {
                let entries = self.hubs.values().filter(|hub| hub.alive && !hub.frozen);
                for entry in entries.filter_map(|hub| hub.labels.get(&label)).filter(|entry| entry.from.0 == n) {
                    if let Some((hub, _)) = self.nodes[&entry.to.0].given.get(&entry.out) {
                        arrivals.push((entry.to.0, PathKind::Relay { hub: *hub, leg: Leg::Udp }));
                    }
                }
            }
        }
        for (other, ingress) in arrivals {
            let at = &self.nodes[&other];
            let slot = at.snapshot.peers().find(|(_, info)| info.keys.member() == Some(from)).map(|(slot, _)| slot);
            let Some(peer) = slot else { continue };
            let event = Event::PeerMessage { peer, ingress, bytes: bytes.to_vec() };
            let life = at.life;
            self.at(LATENCY * 2, Happening::Worker { node: other, life, event });
        }
    }

    fn hub_conn_ended(&mut self, h: u8, conn: Conn) {
        let Some(hub) = self.hubs.get_mut(&h) else { return };
        let Some(ended) = hub.conns.remove(&conn) else { return };
        if ended.role != Some(Role::Control) {
            return;
        }
        let mut told = Vec::new();
        hub.labels.retain(|label, entry| {
            if entry.to == conn {
                told.push((entry.from, Control::PathLost { label: *label, reason: PathReason::Detached }));
            } else if entry.from == conn {
                told.push((entry.to, Control::PathClose { label: entry.out }));
            }
            entry.to != conn && entry.from != conn
        });
        hub.watched.retain(|(_, by)| *by != conn);
        if let Some(peer) = ended.member.filter(|_| self.beyond) {
            let absent = Control::Absent { peer, hub: Some(hub.secret.public()) };
            let watching = self.hubs.values().flat_map(|hub| hub.watched.iter().filter(|(of, _)| *of == peer));
            told.extend(watching.map(|(_, by)| (*by, absent.clone())));
        }
        for (conn, message) in told {
            self.tell(conn, &message);
        }
    }

    fn hub_message(&mut self, h: u8, conn: Conn, bytes: &[u8]) {
        let hub = self.hubs.get_mut(&h).unwrap();
        if !hub.alive || hub.frozen {
            return;
        }
        let Some(at) = hub.conns.get(&conn) else { return };
        let message = Control::decode(bytes).unwrap().unwrap();
        let member = at.member;
        hub.heard.push((conn.0, message.clone()));
        let mut answers: Vec<(Conn, Control)> = Vec::new();
        // another hub that holds a member: a way over it is told, and leads nowhere
        let other = |to: &MemberId| {
            let mut others = self.hubs.iter().filter(|(n, _)| **n != h);
            others.find(|(_, hub)| hub.control_of(to).is_some()).map(|(_, hub)| hub.key())
        };
        let beyond =
            if let Control::PathOpen(open) = &message { other(&open.to).filter(|_| self.beyond) } else { None };
        let hub = self.hubs.get_mut(&h).unwrap();
        #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is heard and noted")]
        match message {
            Control::Attach(attach) => {
                answers.extend(hub.attach(conn, attach));
                if hub.lies {
                    answers.extend((0..3).map(|time| (conn, Control::Pong { time })));
                }
                let here = hub.conns[&conn].member.filter(|_| self.beyond).map(|id| (id, hub.greatest[&id].encode()));
                if let Some((id, presence)) = here {
                    for (_, other) in self.hubs.iter().filter(|(n, _)| **n != h) {
                        let watching = other.watched.iter().filter(|(of, _)| *of == id);
                        let told = |by: &Conn| (*by, Control::Presence { presence: presence.clone() });
                        answers.extend(watching.map(|(_, by)| told(by)));
                    }
                }
            }
            Control::Ping { time } if hub.lies => {
                answers.push((conn, Control::Pong { time: time.saturating_add(100_000) }));
                answers.push((conn, Control::Pong { time }));
                answers.extend((0..3).map(|time| (conn, Control::Pong { time })));
            }
            Control::Ping { time } => answers.push((conn, Control::Pong { time })),
            Control::GetRoster { .. } if hub.withholds => {}
            Control::GetRoster { network, offset } => {
                let bundle = hub.roster.as_ref().unwrap().encode();
                let rest = &bundle[offset as usize..];
                // small parts, so that there are several
                let bytes = rest[..rest.len().min(500)].to_vec();
                let total = bundle.len() as u32;
                answers.push((conn, Control::RosterPart { network, version: 1, total, offset, bytes }));
            }
            Control::Head { head, .. } => {
                let ours = hub.roster.as_ref().map(|roster| roster.version());
                let theirs = flatlan_roster::VerifiedHead::decode(&head, &self.admin.network).unwrap().version();
                if Some(theirs) > ours && !hub.refuses_news {
                    answers.push((conn, Control::GetRoster { network: self.admin.network, offset: 0 }));
                }
            }
            Control::RosterPart { bytes, total, offset, .. } if bytes.len() == total as usize && offset == 0 => {
                let ratchet = Ratchet::new(self.admin.network);
                let roster = VerifiedRoster::verify(&bytes, &ratchet, None).unwrap();
                self.publish(h, &roster);
                return;
            }
            Control::Watch { peers } => {
                hub.watched.extend(peers.iter().map(|peer| (*peer, conn)));
                let known = self.hubs.iter().filter(|(n, _)| **n == h || self.beyond);
                for (peer, (_, hub)) in peers.iter().flat_map(|peer| known.clone().map(move |at| (peer, at))) {
                    if hub.control_of(peer).is_some() {
                        answers.push((conn, Control::Presence { presence: hub.greatest[peer].encode() }));
                    }
                }
            }
            Control::Unwatch { peers } => hub.watched.retain(|(peer, by)| *by != conn || !peers.contains(peer)),
            Control::PathOpen(open) => {
                assert_eq!(Some(open.from), member);
                match hub.control_of(&open.to) {
                    None if beyond.is_some() => {
                        hub.next += 1;
                        let label = Label::new(u32::from(h) * 1000 + hub.next, 7);
                        let via = [hub.secret.public()].into_iter().chain(beyond).collect();
                        let request = open.request;
                        answers.push((conn, Control::PathOpened { request, label, via, rtt_us: 0 }));
                    }
                    None => {
                        let reason = PathReason::NotAttached;
                        answers.push((conn, Control::PathFailed { request: open.request, reason }));
                    }
                    Some(to) => {
                        hub.next += 1;
                        hub.pending.insert(hub.next, (conn, open.request, open.to));
                        answers.push((to, Control::PathOpen(PathOpen { request: hub.next, ..open })));
                    }
                }
            }
            Control::PathOpened { request, label: out, .. } => {
                if let Some((asker, request, _)) = hub.pending.remove(&request) {
                    hub.next += 1;
                    let label = Label::new(u32::from(h) * 1000 + hub.next, 7);
                    let before = hub.labels.iter().find(|(_, entry)| hub.repeats && entry.from == asker);
                    let told = before.map_or(label, |(before, _)| *before);
                    hub.labels.insert(label, HubLabel { from: asker, to: conn, out });
                    let via = vec![hub.secret.public()];
                    answers.push((asker, Control::PathOpened { request, label: told, via, rtt_us: 0 }));
                }
            }
            Control::PathFailed { request, reason } => {
                if let Some((asker, request, _)) = hub.pending.remove(&request) {
                    answers.push((asker, Control::PathFailed { request, reason }));
                }
            }
            Control::PathClose { label } => {
                if let Some(entry) = hub.labels.remove(&label) {
                    answers.push((entry.to, Control::PathClose { label: entry.out }));
                }
            }
            Control::PathLost { label, reason } => {
                let of = |entry: &HubLabel| entry.to == conn && entry.out == label;
                let found = hub.labels.iter().find(|(_, entry)| of(entry)).map(|(ours, entry)| (*ours, entry.from));
                if let Some((ours, from)) = found {
                    if reason != PathReason::Leaving {
                        hub.labels.remove(&ours);
                    }
                    answers.push((from, Control::PathLost { label: ours, reason }));
                }
            }
            _ => {}
        }
        for (conn, answer) in answers {
            self.tell(conn, &answer);
        }
    }
}

impl TestHub {
    fn new(n: u8, roster: Option<VerifiedRoster>) -> Self {
        Self {
            secret: hub_secret(n),
            alive: true,
            frozen: false,
            far: Duration::ZERO,
            roster,
            refuses_news: false,
            withholds: false,
            lies: false,
            repeats: false,
            conns: BTreeMap::new(),
            greatest: BTreeMap::new(),
            watched: BTreeSet::new(),
            labels: BTreeMap::new(),
            pending: BTreeMap::new(),
            next: 0,
            heard: Vec::new(),
        }
    }

    /// A hub that was killed knows nobody.
    fn forget(&mut self) {
        self.conns.clear();
        self.greatest.clear();
        self.watched.clear();
        self.labels.clear();
        self.pending.clear();
    }

    pub(super) fn key(&self) -> HubKey {
        self.secret.public()
    }

    fn control_conns(&self) -> Vec<Conn> {
        self.conns.iter().filter(|(_, conn)| conn.role == Some(Role::Control)).map(|(conn, _)| *conn).collect()
    }

    pub(super) fn control_of(&self, id: &MemberId) -> Option<Conn> {
        let of = |conn: &HubConn| conn.member == Some(*id) && conn.role == Some(Role::Control);
        self.conns.iter().find(|(_, conn)| of(conn)).map(|(conn, _)| *conn)
    }

    fn claims(&self) -> ClaimsSummary {
        let claims = self.roster.as_ref().map(VerifiedRoster::claims_summary);
        claims.map_or_else(ClaimsSummary::default, |claims| ClaimsSummary { count: claims.count, hash: claims.hash })
    }

    pub(super) fn head(&self) -> Option<Control> {
        let roster = self.roster.as_ref()?;
        let head = roster.signed_head().encode();
        Some(Control::Head { network: *roster.network_id(), head, claims: self.claims() })
    }

    fn attach(&mut self, conn: Conn, attach: Attach) -> Vec<(Conn, Control)> {
        let key = self.secret.public();
        let exporter = self.conns[&conn].exporter;
        let Proof::Node { id, presence, signature } = &attach.proof else {
            assert_eq!(attach.role, Role::Admin);
            return vec![(conn, Control::Attached(self.attached(conn)))];
        };
        let scope = AttachScope { exporter: &exporter, hub: &key, network: &attach.network, role: attach.role };
        scope.verify_node(id, signature).expect("the proof holds");
        let known = self.roster.as_ref().is_none_or(|roster| roster.by_id(id).is_some());
        if !known {
            return vec![(conn, refused(RefusedCode::NotMember))];
        }
        let mut answers = Vec::new();
        if attach.role == Role::Control {
            let presence = Presence::verify(presence).expect("the presence holds");
            assert_eq!(presence.hub(), key);
            if let Some(greater) = self.greatest.get(id).filter(|greater| greater.order() >= presence.order()) {
                let presence = Some(greater.encode());
                return vec![(conn, Control::Refused { code: RefusedCode::StaleEpoch, text: String::new(), presence })];
            }
            for watcher in self.watched.iter().filter(|(of, _)| of == id).map(|(_, conn)| *conn) {
                answers.push((watcher, Control::Presence { presence: presence.encode() }));
            }
            self.greatest.insert(*id, presence.clone());
            let before: Vec<Conn> = self.conns.keys().filter(|of| **of != conn).copied().collect();
            for of in before.into_iter().filter(|of| self.conns[of].member == Some(*id)) {
                if self.conns[&of].role == Some(Role::Control) {
                    let (code, presence) = (RefusedCode::Replaced, Some(presence.encode()));
                    answers.push((of, Control::Refused { code, text: String::new(), presence }));
                }
            }
        }
        if let Some(at) = self.conns.get_mut(&conn) {
            at.member = Some(*id);
            at.role = Some(attach.role);
        }
        answers.insert(0, (conn, Control::Attached(self.attached(conn))));
        answers
    }

    fn attached(&self, conn: Conn) -> Attached {
        Attached {
            version: 1,
            attachment: 1,
            observed: address(conn.0),
            udp: vec!["0.0.0.0:51820".parse().unwrap()],
            bind: Some(BindKey { id: 1, key: BindSecret::from_bytes([1; 32]) }),
            head: self.roster.as_ref().map(|roster| roster.signed_head().encode()),
            claims: self.claims(),
        }
    }

    /// Remembers a statement as if it had come from another hub.
    pub(super) fn remember(&mut self, presence: Presence) {
        self.greatest.insert(presence.member(), presence);
    }
}

fn refused(code: RefusedCode) -> Control {
    Control::Refused { code, text: String::new(), presence: None }
}

pub(super) fn seed(n: u8) -> NodeSeed {
    NodeSeed::from_bytes([n; 32])
}

pub(super) fn member(n: u8) -> MemberId {
    seed(n).derive().public().id
}

pub(super) fn hub_secret(n: u8) -> HubSecret {
    HubSecret::from_bytes(&[n + 100; 32])
}

fn place(n: u8) -> HostPort {
    format!("hub{n}.example:443").parse().unwrap()
}

pub(super) fn address(n: u8) -> Endpoint {
    Endpoint::new(([192, 0, 2, n], 51820).into())
}

/// One way.
pub(super) const LATENCY: Duration = Duration::from_millis(10);
pub(super) const UNIX: UnixTime = UnixTime(1_800_000_000);
/// The LAN behind the members of an HA group.
pub(super) const SHARED: &str = "10.200.0.0/16";
/// A part of it.
pub(super) const MOVED: &str = "10.200.0.5/32";
