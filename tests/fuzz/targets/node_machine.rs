//! A node's control machine, spoken to by a hub that may mean ill, and by peers, in any order: messages of a real hub,
//! changed or not, late, twice, on the wrong stream.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::Event;
use flatlan_fuzz::{Fuzz, outcome, steps};
use flatlan_hub::{
    Allow, Hub, HubConfig, Limits, Opened, Output as HubOutput, StoreOutcome, StoredNetwork, StreamId as HubStream,
    StreamOrigin,
};
use flatlan_node::{
    Node, NodeConfig, Output, PersistResult, PersistToken, Persisted, StreamId, Transport,
    peer_message::{PeerMessage, Summary},
};
use flatlan_path::PathKind;
use flatlan_relay::auth::Exporter;
use flatlan_roster::Ratchet;
use flatlan_types::{BootEpoch, Endpoint, NetworkId, PeerSlot, UnixTime, Workers};

use crate::{hub, node, roster::world};

#[test]
fn node_machine() {
    let said = Said::new();
    let whole = said.steps.clone();
    assert!(said.messages.len() > 3, "the hub said {} messages", said.messages.len());
    let all = 0..said.messages.len() as u8;
    let seeds = [
        whole.clone(),
        [whole.clone(), all.clone().flat_map(|n| [SAY, 1, n]).collect()].concat(),
        [whole.clone(), vec![PEER, 1, 0, PEER, 1, 1, WAIT, 1, 100, CLOSE, 0, WAIT, 1, 10]].concat(),
        [whole, [NEED, 0, WAIT, 1, 5].to_vec(), all.flat_map(|n| [SAY | 1, 1, n]).collect()].concat(),
        vec![OPEN, 0, RAW, 3, 0x82, 0x18, 0x1e],
    ];
    Fuzz::new("node-machine").seeds(seeds).longest(512).run(|input| {
        let mut net = Net::new(&said);
        let what: Vec<_> = steps(input, 1).take(64).map(|(operation, bytes)| net.step(operation, bytes)).collect();
        outcome(&what.into_iter().take(16).collect::<Vec<_>>())
    });
}

const OPEN: u8 = 0x00;
const SAY: u8 = 0x20;
const RAW: u8 = 0x40;
const CLOSE: u8 = 0x60;
const WAIT: u8 = 0x80;
const PERSISTED: u8 = 0xa0;
const PEER: u8 = 0xc0;
const NEED: u8 = 0xe0;

struct Net<'a> {
    node: Node,
    now: Instant,
    dialled: Vec<StreamId>,
    writes: Vec<PersistToken>,
    said: &'a Said,
}

impl<'a> Net<'a> {
    fn new(said: &'a Said) -> Self {
        let now = Instant::now();
        let mut net = Self { node: new_node(said.network, now), now, dialled: Vec::new(), writes: Vec::new(), said };
        net.drain();
        net
    }

    /// The low bits of the operation choose one of the streams that were dialled last.
    fn step(&mut self, operation: u8, bytes: &[u8]) -> (u16, usize) {
        let back = usize::from(operation & 3);
        let dialled = self.dialled.iter().rev().nth(back).copied().unwrap_or(StreamId(0));
        match operation & 0xe0 {
            OPEN => self.node.handle_opened(dialled, EXPORTER, Some(place()), self.now),
            SAY => {
                let Some(message) = changed(&self.said.messages, bytes) else { return (0, 0) };
                self.node.handle_message(dialled, &message, self.now, NOW);
            }
            RAW => self.node.handle_message(dialled, bytes, self.now, NOW),
            CLOSE => self.node.handle_closed(dialled, self.now, NOW),
            PERSISTED => {
                let Some(token) = self.writes.pop() else { return (0, 1) };
                let failed = bytes.first() == Some(&1);
                let result = if failed { PersistResult::Failed } else { PersistResult::Written };
                self.node.handle_persisted(token, result, self.now, NOW);
            }
            PEER => {
                let Some(bytes) = changed(&self.said.by_peers, bytes) else { return (0, 2) };
                let event = Event::PeerMessage { peer: PeerSlot(0), ingress: PathKind::Direct(place()), bytes };
                self.node.handle_event(event, self.now, NOW);
            }
            NEED => self.node.handle_event(Event::NeedPath { peer: PeerSlot(0) }, self.now, NOW),
            _ => {
                self.now += Duration::from_millis(20) * u32::from(bytes.first().copied().unwrap_or(1));
                self.node.handle_timeout(self.now, NOW);
            }
        }
        self.drain()
    }

    fn drain(&mut self) -> (u16, usize) {
        let (mut kinds, mut count) = (0, 0);
        while let Some(output) = self.node.poll_output() {
            count += 1;
            assert!(count < 1000, "one input, outputs without end");
            kinds |= match output {
                Output::Dial { stream, .. } => {
                    self.dialled.push(stream);
                    1
                }
                Output::Send { .. } => 2,
                Output::Close { .. } => 4,
                Output::BindData { .. } => 8,
                Output::Worker(_) => 16,
                Output::Snapshot(_) => 32,
                Output::Interface(_) => 64,
                Output::Resolve { .. } => 128,
                Output::Persist { token, .. } => {
                    self.writes.extend(token);
                    256
                }
                Output::Up { .. } => 512,
                Output::Fatal(_) => 1024,
            };
        }
        (kinds, count)
    }
}

/// What a hub said to such a node, as it came, and what the node's peers may say.
struct Said {
    network: NetworkId,
    messages: Vec<Vec<u8>>,
    /// The steps of that conversation.
    steps: Vec<u8>,
    by_peers: Vec<Vec<u8>>,
}

impl Said {
    /// A node that knows nothing attaches to a hub and gets the roster.
    fn new() -> Self {
        let (source, admin) = world();
        let network = source.network_id();
        let roster = source.sign(None, &admin, NOW).unwrap();
        let mut ratchet = Ratchet::new(network);
        ratchet.advance(&roster).unwrap();
        let stored = StoredNetwork { network, bundle: roster.encode(), ratchet: ratchet.encode() };
        let config = HubConfig {
            secret: hub(1),
            allow: Allow::Networks([network].into()),
            peers: Vec::new(),
            udp: vec!["0.0.0.0:51820".parse().unwrap()],
            limits: Limits::default(),
            incarnation: 1,
            seed: [3; 32],
        };
        let mut now = Instant::now();
        let mut hub = Hub::new(config, vec![stored], now, NOW);
        let mut node = new_node(network, now);
        let (mut messages, mut steps) = (Vec::new(), Vec::new());
        let mut dialled: Vec<StreamId> = Vec::new();
        let mut ends = BTreeMap::new();
        let mut queue = VecDeque::new();
        for _ in 0..ROUNDS {
            while let Some(output) = node.poll_output() {
                match output {
                    Output::Dial { stream, .. } => {
                        dialled.push(stream);
                        let other = HubStream(stream.0);
                        ends.insert(other, stream);
                        let exporter = Exporter(EXPORTER);
                        let opened = Opened { remote: place(), exporter, origin: StreamOrigin::Accepted };
                        steps.extend([OPEN, 0]);
                        node.handle_opened(stream, EXPORTER, Some(place()), now);
                        hub.handle_stream_opened(other, opened, now);
                    }
                    Output::Send { stream, bytes } => hub.handle_message(HubStream(stream.0), &bytes, now),
                    Output::Persist { token: Some(token), .. } => {
                        steps.extend([PERSISTED, 0]);
                        node.handle_persisted(token, PersistResult::Written, now, NOW);
                    }
                    Output::Resolve { place } => node.handle_resolved(&place, &[], now),
                    Output::Close { .. }
                    | Output::BindData { .. }
                    | Output::Worker(_)
                    | Output::Snapshot(_)
                    | Output::Interface(_)
                    | Output::Persist { token: None, .. }
                    | Output::Up { .. }
                    | Output::Fatal(_) => {}
                }
            }
            while let Some(output) = hub.poll_output() {
                match output {
                    HubOutput::Send { stream, message } => queue.push_back((stream, message.encode())),
                    HubOutput::Store { token, .. } => hub.handle_stored(token, StoreOutcome::Stored, now),
                    HubOutput::Close { .. }
                    | HubOutput::Data { .. }
                    | HubOutput::Dial { .. }
                    | HubOutput::Event(_)
                    | HubOutput::Forward(_)
                    | HubOutput::SetAside { .. } => {}
                }
            }
            if let Some((stream, message)) = queue.pop_front() {
                let stream = ends[&stream];
                let back = dialled.iter().rev().position(|of| *of == stream).unwrap_or(0);
                steps.extend([SAY | back as u8 & 3, 1, messages.len() as u8]);
                node.handle_message(stream, &message, now, NOW);
                messages.push(message);
            } else {
                now += Duration::from_millis(20);
                steps.extend([WAIT, 1, 1]);
                node.handle_timeout(now, NOW);
                hub.handle_timeout(now);
            }
        }
        let summary = Summary { key_epoch: 0, serial: 2, head: [3; 32], claims: 0, claims_hash: [5; 32] };
        let by_peers = [
            PeerMessage { candidates: Some(vec![place()]), answer: Some(true), ..PeerMessage::new() },
            PeerMessage { summary: Some(summary), ..PeerMessage::new() },
        ];
        Self { network, messages, steps, by_peers: by_peers.iter().map(PeerMessage::encode).collect() }
    }
}

/// The first byte names one of them; the others change it, three by three.
fn changed(messages: &[Vec<u8>], bytes: &[u8]) -> Option<Vec<u8>> {
    let [which, changes @ ..] = bytes else { return None };
    let mut message = messages[usize::from(*which) % messages.len()].clone();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % message.len().max(1);
        if let Some(byte) = message.get_mut(at) {
            *byte ^= change[2];
        }
    }
    Some(message)
}

fn new_node(network: NetworkId, now: Instant) -> Node {
    let config = NodeConfig {
        network,
        secret: Arc::new(node(7)),
        epoch: BootEpoch(NOW.0),
        bootstrap: vec!["192.0.2.1:443".parse().unwrap()],
        transport: Transport::Auto,
        workers: Workers::ONE,
    };
    Node::new(config, Persisted { roster: None, ratchet: None, peers: None }, 7, now, NOW)
}

fn place() -> Endpoint {
    Endpoint::new("192.0.2.1:443".parse().unwrap())
}

const EXPORTER: [u8; 32] = [9; 32];
const NOW: UnixTime = UnixTime(1_770_000_000);
/// Enough for everything that a hub tells a new node.
const ROUNDS: usize = 40;
