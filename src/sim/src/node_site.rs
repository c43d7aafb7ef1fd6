//! A site: one node's machines, its disk, its NAT and its TUN.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{DropReason, Event as WorkerEvent, Owner, Sink, Snapshot, Transmit, Worker, WorkerConfig};
use flatlan_node::{Node, NodeConfig, Output, PersistResult, Persisted, StreamId, Transport, persist};
use flatlan_packet::Gro;
use flatlan_path::{MoveReason, PathKind, Spread};
use flatlan_relay::Role;
use flatlan_roster::{OwnerTable, RosterVersion};
use flatlan_types::{Endpoint, HostPort, HubSlot, LaneId, PeerSlot, Prefix, Share, UnixTime, VirtualIp, Workers};
use flatlan_wg::{Engine, Plain};

use crate::{
    admin::{self, node_secret, owner},
    conn::Silent,
    datagram::{Datagram, Trail},
    ledger::{self, FlowId, Wrong},
    nat::{Gate, Nat},
    party::Party,
    sim::{Place, Sim},
    stream::{ConnId, Message, Side},
};

/// The files of a state directory.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// One site.
pub(crate) struct NodeSite {
    pub(crate) place: Place,
    /// Its network's number, and its own in that.
    pub(crate) network: usize,
    pub(crate) number: usize,
    pub(crate) gate: Gate,
    pub(crate) run: Option<Box<Run>>,
    pub(crate) files: Files,
    /// The disk as a snapshot has it.
    pub(crate) kept: Option<Files>,
    /// The greatest roster that this disk has seen.
    greatest: Option<RosterVersion>,
    /// The process dies at this write.
    pub(crate) dies_in: Option<u32>,
    /// It was removed from its network, and knows.
    pub(crate) removed: bool,
    pub(crate) moves: Vec<Move>,
    /// Whether it shares out flows over several hubs.
    pub(crate) spread: Spread,
}

/// A lane took another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// When.
    pub at: Instant,
    /// To whom.
    pub peer: PeerSlot,
    /// Which lane.
    pub lane: LaneId,
    /// The path.
    pub path: Option<PathKind>,
    /// The one before.
    pub was: Option<PathKind>,
    /// Why.
    pub reason: MoveReason,
}

/// A node that runs.
pub(crate) struct Run {
    pub(crate) node: Node,
    pub(crate) worker: Worker<Engine<Plain>>,
    streams: BTreeMap<StreamId, ConnId>,
    data: BTreeMap<HubSlot, StreamId>,
    pub(crate) ips: Vec<VirtualIp>,
    /// Who is a member, as the node has it.
    snapshot: Arc<Snapshot>,
    /// Serial of the roster in use.
    pub(crate) serial: u64,
    pub(crate) up: bool,
}

/// What a worker says, until it is put on the wires.
#[derive(Default)]
pub(crate) struct Out {
    udp: Vec<(Endpoint, Vec<u8>, usize, u8)>,
    streams: Vec<(HubSlot, Vec<u8>)>,
    tun: Vec<Vec<u8>>,
}

impl Sink for Out {
    fn send_udp(&mut self, transmit: &Transmit<'_>) -> Result<(), DropReason> {
        let Transmit { to, contents, segment, traffic_class } = transmit;
        self.udp.push((*to, contents.to_vec(), *segment, *traffic_class));
        Ok(())
    }

    fn send_stream(&mut self, hub: HubSlot, packed: &[u8]) -> Result<(), DropReason> {
        self.streams.push((hub, packed.to_vec()));
        Ok(())
    }

    fn write_tun(&mut self, frame: &mut [u8]) -> Result<(), DropReason> {
        self.tun.push(frame.to_vec());
        Ok(())
    }
}

impl Run {
    /// Hubs that it is attached to.
    pub(crate) fn attached(&self) -> usize {
        let attached = |hub: &&flatlan_node::HubStatus| hub.state == flatlan_node::HubState::Attached;
        self.node.status().hubs.iter().filter(attached).count()
    }
}

impl NodeSite {
    pub(crate) fn new(n: usize, network: usize, number: usize, nat: Nat, now: Instant) -> Self {
        Self {
            place: Place::new(now),
            network,
            number,
            gate: Gate::new(nat, Party::Node(n)),
            run: None,
            files: Files::new(),
            kept: None,
            greatest: None,
            dies_in: None,
            removed: false,
            moves: Vec::new(),
            spread: Spread::Off,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.run.is_some()
    }
}

/// What becomes of a disk at a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// It is as it was.
    Kept,
    /// It is lost; the keys are not.
    Lost,
    /// It is as the last snapshot has it.
    Reverted,
}

impl Sim {
    /// Starts a node with what its disk holds.
    pub(crate) fn start_node(&mut self, n: usize) {
        let (seed, now, unix) = (self.seed, self.now, self.unix(self.nodes[n].place.clock));
        let site = &mut self.nodes[n];
        if site.removed {
            return;
        }
        site.place.life += 1;
        site.place.host_down = false;
        let network = self.admins[site.network].network();
        let secret = Arc::new(node_secret(site.number));
        let (epoch, bytes) = persist::next_epoch(site.files.get(persist::EPOCH).map(Vec::as_slice), unix);
        site.files.insert(persist::EPOCH.to_owned(), bytes);
        let file = |name: &str| site.files.get(name).cloned();
        let persisted =
            Persisted { roster: file(persist::ROSTER), ratchet: file(persist::RATCHET), peers: file(persist::PEERS) };
        let config = NodeConfig {
            network,
            secret: Arc::clone(&secret),
            epoch,
            bootstrap: (0..self.hubs.len()).map(|hub| Party::Hub(hub).tls()).collect(),
            transport: Transport::Auto,
            workers: Workers::ONE,
        };
        let seed = flatlan_link::Chance::new(seed ^ (n as u64) << 20 ^ u64::from(site.place.life)).next();
        let worker = WorkerConfig {
            network,
            secret: Arc::clone(&secret),
            epoch,
            mtu: usize::from(admin::MTU),
            gro: Gro::NONE,
            class_mask: 0xff,
            seed,
            share: Share::default(),
            spread: site.spread,
        };
        let mut node = Node::new(config, persisted, seed, now, unix);
        node.handle_host_candidates(vec![site.gate.host()], now, unix);
        let worker = Worker::new(worker, Engine::shared(&secret, seed, Share::default()));
        let (streams, data) = (BTreeMap::new(), BTreeMap::new());
        let (ips, snapshot) = (Vec::new(), Arc::default());
        site.run = Some(Box::new(Run { node, worker, streams, data, ips, snapshot, serial: 0, up: false }));
        self.note(Party::Node(n), &[1], format_args!("starts, epoch {epoch}"));
        self.drain_node(n, Out::default());
    }

    /// A node's process ends.
    pub(crate) fn stop_node(&mut self, n: usize, silent: Silent) {
        let site = &mut self.nodes[n];
        if site.run.take().is_none() {
            return;
        }
        site.place.host_down = silent == Silent::Yes;
        site.place.wake();
        site.dies_in = None;
        self.disarm(Party::Node(n));
        self.note(Party::Node(n), &[2], format_args!("stops, silent: {silent:?}"));
        self.close_all(Party::Node(n), silent);
    }

    /// What its disk is before it starts again.
    pub(crate) fn set_node_disk(&mut self, n: usize, disk: Disk) {
        let site = &mut self.nodes[n];
        match disk {
            Disk::Kept => return,
            Disk::Lost => site.files.clear(),
            Disk::Reverted => match &site.kept {
                Some(kept) => site.files.clone_from(kept),
                None => return,
            },
        }
        // what it knew is not known any more
        site.greatest = None;
    }

    pub(crate) fn node_timeout(&mut self, n: usize) {
        let (now, site) = (self.now, &mut self.nodes[n]);
        site.place.armed = None;
        if site.place.count_timeout(now) {
            return self.violate(format!("n{n} asks for too many timeouts"));
        }
        self.with_node(n, |run, now, unix, out| {
            if run.node.poll_timeout().is_some_and(|at| at <= now) {
                run.node.handle_timeout(now, unix);
            }
            if run.worker.poll_timeout().is_some_and(|at| at <= now) {
                run.worker.handle_timeout(now, out);
            }
        });
    }

    pub(crate) fn node_receives(&mut self, n: usize, datagram: Datagram) {
        let (now, site) = (self.now, &mut self.nodes[n]);
        if site.run.is_none() || !site.gate.admits(datagram.to, datagram.from, now) {
            return;
        }
        if site.place.frozen.is_some() {
            return site.place.keep(datagram);
        }
        let kind = datagram.bytes.first().copied().unwrap_or_default();
        let (from, len) = (datagram.from, datagram.bytes.len());
        let at = self.elapsed();
        self.trace.note_datagram(at, Party::Node(n), &datagram.bytes, format_args!("<- {from} {kind:#x} {len} B"));
        self.via = datagram.trail.hubs().next();
        self.with_node(n, |run, now, _, out| {
            run.worker.handle_network(datagram.from, &datagram.bytes, len.max(1), datagram.class & 3, now, out);
        });
        self.via = None;
    }

    pub(crate) fn node_opened(&mut self, n: usize, stream: u64, conn: ConnId) {
        let stream = StreamId(stream);
        let Some(to) = self.conns.get(&conn).map(|conn| conn.dialled.party) else { return };
        self.note(Party::Node(n), &[3], format_args!("stream {} to {to} is open", stream.0));
        self.with_node(n, |run, now, _, _| run.node.handle_opened(stream, exporter(conn), Some(tls_of(to)), now));
    }

    pub(crate) fn node_closed(&mut self, n: usize, stream: u64) {
        let stream = StreamId(stream);
        self.note(Party::Node(n), &[4], format_args!("stream {} ended", stream.0));
        self.with_node(n, |run, now, unix, _| {
            run.streams.remove(&stream);
            run.data.retain(|_, data| *data != stream);
            run.node.handle_closed(stream, now, unix);
        });
    }

    pub(crate) fn node_hears(&mut self, n: usize, stream: u64, role: Role, message: Message) {
        let (stream, Message { bytes, trail }) = (StreamId(stream), message);
        let heard = format_args!("<- stream {} {role:?} {}", stream.0, said(role, &bytes));
        self.note_message(Party::Node(n), role, &bytes, heard);
        self.via = trail.hubs().next();
        self.with_node(n, |run, now, unix, out| {
            let hub = run.data.iter().find(|(_, data)| **data == stream).map(|(hub, _)| *hub);
            match hub {
                Some(hub) => run.worker.handle_stream(hub, &bytes, now, out),
                None => run.node.handle_message(stream, &bytes, now, unix),
            }
        });
        self.via = None;
    }

    /// One packet of a flow enters its sender's TUN.
    pub(crate) fn send_inner(&mut self, id: FlowId) {
        let flow = self.ledger.flow(id);
        let (from, to, size, forged) = (flow.from, flow.to, flow.size, flow.forged);
        let own = self.nodes[from].run.as_ref().and_then(|run| run.ips.first().copied());
        let source = forged.map(admin::address).or(own);
        let (network, number) = (self.nodes[to].network, self.nodes[to].number);
        let members = self.admins[network].members();
        let target = members.iter().find(|member| member.number == number).map(|member| admin::address(member.address));
        let (Some(source), Some(target)) = (source, target) else { return };
        if self.nodes[from].place.frozen.is_some() {
            return;
        }
        let mut frame = ledger::packet((source, target), id, self.ledger.send(id, self.now), size);
        self.with_node(from, |run, now, _, out| {
            run.worker.handle_tun(&mut frame, now, out);
            run.worker.flush_outbound(out);
        });
    }

    /// A member whose own worker would let it send from another's address: what a changed program does. It tells its
    /// worker that the address is its own, each time that it learns of a roster.
    fn forge_snapshot(&self, n: usize, honest: &Arc<Snapshot>) -> Arc<Snapshot> {
        let forged: Vec<usize> = self
            .ledger
            .flows()
            .filter(|(_, flow)| flow.from == n && flow.running)
            .filter_map(|(_, flow)| flow.forged)
            .collect();
        if forged.is_empty() {
            return Arc::clone(honest);
        }
        let site = &self.nodes[n];
        let members = self.admins[site.network].members();
        let slot = |number: usize| {
            let name = format!("n{number}");
            honest.peers().find(|(_, info)| info.name.as_str() == name).map(|(slot, _)| slot)
        };
        let mut owners = Vec::new();
        for member in members {
            let owner = match slot(member.number) {
                Some(_) | None if member.number == site.number || forged.contains(&member.address) => Owner::Me,
                Some(slot) => Owner::Peer(slot),
                None => continue,
            };
            owners.push((Prefix::host(admin::address(member.address)), owner));
        }
        let own = site.run.as_ref().map(|run| run.ips.clone()).unwrap_or_default();
        let peers = honest.peers().map(|(slot, info)| (slot, info.clone()));
        let network = self.admins[site.network].network();
        Arc::new(Snapshot::new(honest.generation, &network, peers, OwnerTable::new(owners), own))
    }

    /// A flow whose packets have another member's address as their source.
    pub(crate) fn add_forged_flow(&mut self, from: usize, to: usize, victim: usize) {
        let flow = self.add_flow(from, to, FORGED_EVERY, 100);
        let number = self.nodes[victim].number;
        let member = self.admins[self.nodes[victim].network].members().iter().find(|member| member.number == number);
        self.ledger.flow_mut(flow).forged = member.map(|member| member.address);
    }

    /// Nobody's program is a changed one any more.
    pub(crate) fn end_forgery(&mut self) {
        let forgers: Vec<(FlowId, usize)> =
            self.ledger.flows().filter(|(_, flow)| flow.forged.is_some()).map(|(id, flow)| (id, flow.from)).collect();
        for (id, node) in forgers {
            self.ledger.flow_mut(id).running = false;
            self.with_node(node, |run, now, _, _| run.worker.set_snapshot(Arc::clone(&run.snapshot), now));
        }
    }

    /// The network around a node changed.
    pub(crate) fn network_changed(&mut self, n: usize) {
        self.with_node(n, |run, now, unix, _| run.node.handle_network_changed(now, unix));
    }

    pub(crate) fn with_node(&mut self, n: usize, call: impl FnOnce(&mut Run, Instant, UnixTime, &mut Out)) {
        let (now, unix) = (self.now, self.unix(self.nodes[n].place.clock));
        let site = &mut self.nodes[n];
        let Some(run) = site.run.as_mut().filter(|_| site.place.frozen.is_none()) else { return };
        let mut out = Out::default();
        call(run, now, unix, &mut out);
        self.drain_node(n, out);
    }

    /// Does what the machines of a node want.
    fn drain_node(&mut self, n: usize, mut out: Out) {
        let (now, unix) = (self.now, self.unix(self.nodes[n].place.clock));
        while let Some(run) = self.nodes[n].run.as_mut() {
            run.worker.flush_inbound(now, &mut out);
            while let Some(event) = self.nodes[n].run.as_mut().and_then(|run| run.worker.poll_event()) {
                if let WorkerEvent::PathChanged { peer, lane, path, was, reason } = event {
                    self.nodes[n].moves.push(Move { at: now, peer, lane, path, was, reason });
                    let text = |path: Option<PathKind>| path.map_or_else(|| "none".to_owned(), |path| path.to_string());
                    let (path, was) = (text(path), text(was));
                    let at = self.elapsed();
                    let what = format_args!("peer {} lane {lane}: {was} -> {path}: {reason}", peer.0);
                    self.trace.note(at, Party::Node(n), path.as_bytes(), what);
                }
                let Some(run) = self.nodes[n].run.as_mut() else { break };
                run.node.handle_event(event, now, unix);
            }
            let Some(run) = self.nodes[n].run.as_mut() else { break };
            let Some(output) = run.node.poll_output() else { break };
            self.obey_node(n, output, &mut out);
        }
        let Out { udp, streams, tun } = out;
        for (to, contents, segment, class) in udp {
            for datagram in contents.chunks(segment.max(1)) {
                self.send_datagram(Party::Node(n), to, (datagram.to_vec(), class), Trail::default());
            }
        }
        for (hub, packed) in streams {
            let run = self.nodes[n].run.as_ref();
            let conn = run.and_then(|run| run.streams.get(run.data.get(&hub)?).copied());
            if let Some(conn) = conn {
                self.send_message(conn, Side::Dialler, packed, Trail::default());
            }
        }
        for frame in tun {
            self.deliver(n, &frame);
        }
        self.arm_node(n);
    }

    fn arm_node(&mut self, n: usize) {
        let site = &mut self.nodes[n];
        let due = match &site.run {
            Some(run) if site.place.frozen.is_none() => {
                run.node.poll_timeout().into_iter().chain(run.worker.poll_timeout()).min()
            }
            Some(_) | None => None,
        };
        self.arm(Party::Node(n), due);
    }

    fn obey_node(&mut self, n: usize, output: Output, out: &mut Out) {
        let (now, unix, life) = (self.now, self.unix(self.nodes[n].place.clock), self.nodes[n].place.life);
        let party = Party::Node(n);
        let Some(run) = self.nodes[n].run.as_mut() else { return };
        match output {
            Output::Dial { stream, target, role, hub: _ } => {
                let to = target.literal().and_then(|at| Party::at(at.socket_addr().ip())).unwrap_or(Party::Outside);
                let conn = self.dial((party, life), stream.0, to, role);
                if let Some(run) = self.nodes[n].run.as_mut() {
                    run.streams.insert(stream, conn);
                }
            }
            Output::Send { stream, bytes } => {
                if let Some(conn) = run.streams.get(&stream).copied() {
                    self.send_message(conn, Side::Dialler, bytes, Trail::default());
                }
            }
            Output::Close { stream } => {
                run.data.retain(|_, data| *data != stream);
                if let Some(conn) = run.streams.remove(&stream) {
                    self.close(conn, Side::Dialler);
                }
            }
            Output::BindData { stream, hub } => {
                run.data.insert(hub, stream);
            }
            Output::Worker(command) => run.worker.handle_command(command, now, out),
            Output::Snapshot(snapshot) => {
                let told = self.forge_snapshot(n, &snapshot);
                let Some(run) = self.nodes[n].run.as_mut() else { return };
                run.worker.set_snapshot(told, now);
                run.snapshot = snapshot;
                let version = run.node.status().network.roster;
                run.serial = version.map_or(0, |version| version.serial);
                let before = std::mem::replace(&mut self.nodes[n].greatest, version);
                self.note(party, &[5], format_args!("uses roster {version:?}"));
                if version < before {
                    self.violate(format!("n{n} went back from roster {before:?} to {version:?}"));
                }
            }
            Output::Interface(interface) => run.ips = interface.ips,
            Output::Resolve { place } => {
                let endpoints: Vec<Endpoint> = HostPort::literal(&place).into_iter().collect();
                run.node.handle_resolved(&place, &endpoints, now);
            }
            Output::Persist { file, bytes, token } => {
                let site = &mut self.nodes[n];
                if let Some(left) = &mut site.dies_in {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        return self.stop_node(n, Silent::No);
                    }
                }
                site.files.insert(file, bytes.to_vec());
                if let (Some(token), Some(run)) = (token, site.run.as_mut()) {
                    run.node.handle_persisted(token, PersistResult::Written, now, unix);
                }
            }
            Output::Up { hubs } => {
                run.up = true;
                self.note(party, &[6], format_args!("is up, {hubs} hubs"));
            }
            Output::Fatal(fatal) => {
                self.note(party, &[7], format_args!("cannot go on: {fatal}"));
                self.stop_node(n, Silent::No);
                self.nodes[n].removed = true;
            }
        }
    }

    /// A packet is written to a TUN: is it one that may be?
    fn deliver(&mut self, n: usize, frame: &[u8]) {
        let Some((source, destination, number)) = ledger::parse(frame) else {
            if !ledger::is_silent(frame) {
                self.violate(format!("n{n} got a packet that nobody sent"));
            }
            return;
        };
        self.note(Party::Node(n), &number.to_le_bytes(), format_args!("TUN: packet {number} from {source}"));
        let sent = match self.ledger.arrive(number, self.via, self.now) {
            Ok(sent) => sent,
            Err(Wrong::Invented) => return self.violate(format!("n{n} got packet {number} that nobody sent")),
            Err(Wrong::Twice) => return self.violate(format!("packet {number} came twice, now to n{n}")),
        };
        let from = self.ledger.flow(sent.flow).from;
        let (network, serial) = (self.nodes[n].network, self.nodes[n].run.as_ref().map_or(0, |run| run.serial));
        if self.nodes[from].network != network {
            return self.violate(format!("n{n} got packet {number} of another network, from n{from}"));
        }
        let Some(roster) = self.admins[network].roster(serial) else { return };
        let owns = |ip, node: usize| owner(roster, ip) == Some(self.nodes[node].number);
        let (from_owner, to_owner) = (owns(source, from), owns(destination, n));
        if !from_owner {
            self.violate(format!(
                "n{n} got packet {number} from {source}, which n{from} does not own in roster {serial}"
            ));
        }
        if !to_owner {
            self.violate(format!(
                "n{n} got packet {number} for {destination}, which it does not own in roster {serial}"
            ));
        }
    }

    pub(crate) fn note(&mut self, party: Party, bytes: &[u8], text: std::fmt::Arguments<'_>) {
        let at = self.elapsed();
        self.trace.note(at, party, bytes, text);
    }

    pub(crate) fn note_message(&mut self, party: Party, role: Role, bytes: &[u8], text: std::fmt::Arguments<'_>) {
        let at = self.elapsed();
        match role {
            Role::Data | Role::HubData => self.trace.note_datagram(at, party, bytes, text),
            Role::Control | Role::Join | Role::Admin | Role::HubControl => self.trace.note(at, party, bytes, text),
        }
    }

    pub(crate) fn arm(&mut self, party: Party, due: Option<Instant>) {
        let now = self.now;
        let place = match party {
            Party::Hub(n) => &mut self.hubs[n].place,
            Party::Node(n) => &mut self.nodes[n].place,
            Party::Outside => return,
        };
        // a machine that asks for the past again and again is found by how often it is called
        let due = due.map(|due| due.max(now));
        if place.armed == due {
            return;
        }
        if let Some(before) = std::mem::replace(&mut place.armed, due) {
            self.timers.remove(&(before, party));
        }
        if let Some(due) = due {
            self.timers.insert((due, party));
        }
    }

    pub(crate) fn disarm(&mut self, party: Party) {
        self.arm(party, None);
    }
}

/// Names a channel, for both ends alike.
pub(crate) fn exporter(conn: ConnId) -> [u8; 32] {
    let mut bytes = [7; 32];
    if let Some(place) = bytes.first_chunk_mut() {
        *place = conn.0.to_be_bytes();
    }
    bytes
}

pub(crate) fn tls_of(party: Party) -> Endpoint {
    party.tls().literal().unwrap_or_else(|| party.udp())
}

/// What a message says, for the text.
pub(crate) fn said(role: Role, bytes: &[u8]) -> Said<'_> {
    Said(role, bytes)
}

/// Looked at only where the text is kept.
pub(crate) struct Said<'a>(Role, &'a [u8]);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if matches!(self.0, Role::Data | Role::HubData) {
            return write!(f, "{} B of frames", self.1.len());
        }
        match flatlan_relay::Control::decode(self.1) {
            Ok(Some(message)) => {
                let text = format!("{message:?}");
                let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
                f.write_str(text.get(..end).unwrap_or_default())
            }
            Ok(None) => f.write_str("a later version's message"),
            Err(error) => write!(f, "{} B: {error}", self.1.len()),
        }
    }
}

/// How often a packet with a forged source is sent.
const FORGED_EVERY: Duration = Duration::from_millis(200);
/// Characters of a message that the text shows.
const SHOWN: usize = 160;
