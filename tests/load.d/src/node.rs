//! A real node without a TUN: control machine, packet engine, streams and UDP socket in one task.
//!
//! It does what `flatlan up` does, with the same machines, but for what a packet meets at its ends: what arrives is
//! answered if it is a question, and told if it is an answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flatlan_datapath::{DropReason, Sink, Transmit, Worker, WorkerConfig};
use flatlan_node::{Node, NodeConfig, Output, PersistResult, Persisted, StreamId, Transport, persist};
use flatlan_os::stream::{DialConfig, dial};
use flatlan_os::{clock, entropy};
use flatlan_packet::{Gro, VNET_LEN};
use flatlan_types::{Endpoint, HostPort, HubSlot, Share, VirtualIp, Workers};
use flatlan_wg::{Boringtun, Engine};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::hub::Site;
use crate::lan::Lan;

/// What a node tells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// Which node, by its number in its network.
    pub(crate) node: usize,
    /// When.
    pub(crate) at: Instant,
    /// What.
    pub(crate) what: What,
}

/// What may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Attached to its hub.
    Up,
    /// A packet came back from whom it asked.
    Answered,
}

/// A node that has its machines and no stream yet.
pub(crate) struct Prepared {
    driver: Box<Driver>,
    questions: mpsc::Receiver<VirtualIp>,
    streams: mpsc::Receiver<StreamEvent>,
    ask: mpsc::Sender<VirtualIp>,
}

/// A node that runs; it ends with this.
#[derive(Debug)]
pub(crate) struct Running {
    ask: mpsc::Sender<VirtualIp>,
    task: JoinHandle<()>,
}

impl Running {
    /// A member as one that has been here before and remembers the roster.
    pub(crate) async fn prepare(lan: &Lan, member: usize, site: Site, told: mpsc::Sender<Told>) -> Result<Prepared> {
        let (ask, questions) = mpsc::channel(16);
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no UDP socket")?;
        let unix = clock::unix();
        let (epoch, _) = persist::next_epoch(None, unix);
        let secret = Arc::new(lan.secret(member));
        let config = NodeConfig {
            network: lan.id,
            secret: secret.clone(),
            epoch,
            bootstrap: vec![HostPort::from(Endpoint::new(site.tls))],
            transport: Transport::Auto,
            workers: Workers::ONE,
        };
        let (roster, ratchet) = (Some(lan.roster.clone()), Some(lan.ratchet.clone()));
        let node = Node::new(config, Persisted { roster, ratchet, peers: None }, entropy::seed(), clock::now(), unix);
        let worker = WorkerConfig {
            network: lan.id,
            secret: secret.clone(),
            epoch,
            mtu: 1400,
            gro: Gro::ALL,
            class_mask: 3,
            seed: entropy::seed(),
            share: Share::default(),
            spread: Default::default(),
        };
        let engine = Engine::<Boringtun>::shared(&secret, worker.seed, Share::default());
        let worker = Worker::new(worker, engine);
        let (events, streams) = mpsc::channel(64);
        let own = Lan::address(member);
        let io = Io { udp, streams: BTreeMap::new(), own, came: Vec::new() };
        let (open, data) = (BTreeMap::new(), BTreeMap::new());
        let driver = Driver { node, worker, io, streams: open, data, events, told, number: member };
        Ok(Prepared { driver: Box::new(driver), questions, streams, ask })
    }

    /// Sends a packet to a peer, who answers it.
    pub(crate) async fn ask(&self, peer: VirtualIp) {
        let _ = self.ask.send(peer).await;
    }
}

impl Prepared {
    /// Lets it go.
    pub(crate) fn start(self) -> Running {
        let Self { driver, questions, streams, ask } = self;
        Running { ask, task: tokio::spawn(driver.run(questions, streams)) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver {
    node: Node,
    worker: Worker<Engine<Boringtun>>,
    io: Io,
    streams: BTreeMap<StreamId, (mpsc::Sender<Bytes>, JoinHandle<()>)>,
    /// Which of them carry frames.
    data: BTreeMap<StreamId, HubSlot>,
    events: mpsc::Sender<StreamEvent>,
    told: mpsc::Sender<Told>,
    number: usize,
}

enum StreamEvent {
    Opened { stream: StreamId, exporter: [u8; 32], remote: Endpoint },
    Message { stream: StreamId, bytes: Bytes },
    Closed { stream: StreamId },
}

struct Io {
    udp: UdpSocket,
    streams: BTreeMap<HubSlot, mpsc::Sender<Bytes>>,
    own: VirtualIp,
    /// Packets that came for this node.
    came: Vec<Vec<u8>>,
}

impl Driver {
    async fn run(
        mut self: Box<Self>,
        mut questions: mpsc::Receiver<VirtualIp>,
        mut streams: mpsc::Receiver<StreamEvent>,
    ) {
        let mut buffer = vec![0; 2048];
        loop {
            self.drain();
            let deadline = [self.node.poll_timeout(), self.worker.poll_timeout()].into_iter().flatten().min();
            let due = deadline.unwrap_or_else(|| clock::now() + Duration::from_secs(60));
            tokio::select! {
                received = self.io.udp.recv_from(&mut buffer) => {
                    let mut received = received.ok();
                    let now = clock::now();
                    // whatever waits, a bounded number at a time
                    for _ in 0..BURST {
                        let Some((length, from)) = received else { break };
                        let datagram = buffer.get(..length).unwrap_or_default();
                        self.worker.handle_network(Endpoint::new(from), datagram, length, 0, now, &mut self.io);
                        received = self.io.udp.try_recv_from(&mut buffer).ok();
                    }
                    self.worker.flush_inbound(now, &mut self.io);
                }
                Some(peer) = questions.recv() => {
                    let packet = packet_of(self.io.own, peer, QUESTION);
                    self.send(packet);
                }
                Some(event) = streams.recv() => self.handle_stream(event),
                () = tokio::time::sleep(clock::until(due)) => {
                    let now = clock::now();
                    self.node.handle_timeout(now, clock::unix());
                    self.worker.handle_timeout(now, &mut self.io);
                }
            }
        }
    }

    fn handle_stream(&mut self, event: StreamEvent) {
        let (now, unix) = (clock::now(), clock::unix());
        match event {
            StreamEvent::Opened { stream, exporter, remote } => {
                self.node.handle_opened(stream, exporter, Some(remote), now);
            }
            StreamEvent::Message { stream, bytes } => match self.data.get(&stream) {
                Some(hub) => {
                    self.worker.handle_stream(*hub, &bytes, now, &mut self.io);
                    self.worker.flush_inbound(now, &mut self.io);
                }
                None => self.node.handle_message(stream, &bytes, now, unix),
            },
            StreamEvent::Closed { stream } => {
                self.close(stream);
                self.node.handle_closed(stream, now, unix);
            }
        }
    }

    /// Both machines, until neither has anything to say.
    fn drain(&mut self) {
        loop {
            let now = clock::now();
            for mut packet in std::mem::take(&mut self.io.came) {
                self.handle_packet(&mut packet);
            }
            let event = self.worker.poll_event();
            let heard = event.is_some();
            if let Some(event) = event {
                self.node.handle_event(event, now, clock::unix());
            }
            let output = self.node.poll_output();
            let said = output.is_some();
            if let Some(output) = output {
                self.handle_output(output, now);
            }
            if !heard && !said && self.io.came.is_empty() {
                return;
            }
        }
    }

    fn handle_output(&mut self, output: Output, now: Instant) {
        match output {
            Output::Dial { stream, target, .. } => {
                let (queue, outgoing) = mpsc::channel(256);
                let task = tokio::spawn(Box::pin(serve(stream, target, outgoing, self.events.clone())));
                self.streams.insert(stream, (queue, task));
            }
            Output::Send { stream, bytes } => {
                if let Some((queue, _)) = self.streams.get(&stream)
                    && queue.try_send(bytes.into()).is_err()
                {
                    self.close(stream);
                    self.node.handle_closed(stream, now, clock::unix());
                }
            }
            Output::Close { stream } => self.close(stream),
            Output::BindData { stream, hub } => {
                if let Some((queue, _)) = self.streams.get(&stream) {
                    self.io.streams.insert(hub, queue.clone());
                    self.data.insert(stream, hub);
                }
            }
            Output::Worker(command) => self.worker.handle_command(command, now, &mut self.io),
            Output::Snapshot(snapshot) => self.worker.set_snapshot(snapshot, now),
            Output::Interface(_) => {}
            Output::Resolve { place } => {
                let found: Vec<_> = place.to_string().parse().ok().map(Endpoint::new).into_iter().collect();
                self.node.handle_resolved(&place, &found, now);
            }
            Output::Persist { token, .. } => {
                if let Some(token) = token {
                    self.node.handle_persisted(token, PersistResult::Written, now, clock::unix());
                }
            }
            Output::Up { .. } => self.tell(What::Up),
            Output::Fatal(fatal) => eprintln!("a node cannot go on: {fatal}"),
        }
    }

    fn close(&mut self, stream: StreamId) {
        if let Some((_, task)) = self.streams.remove(&stream) {
            task.abort();
        }
        if let Some(hub) = self.data.remove(&stream) {
            self.io.streams.remove(&hub);
        }
    }

    /// A question goes back to whom it came from.
    fn handle_packet(&mut self, packet: &mut [u8]) {
        let Some(inner) = packet.get(VNET_LEN..) else { return };
        let (Some(source), Some(kind)) = (inner.get(12..16), inner.get(IP + UDP)) else { return };
        let source: [u8; 4] = source.try_into().unwrap_or_default();
        match *kind {
            QUESTION => {
                let answer = packet_of(self.io.own, VirtualIp::new(IpAddr::from(source)), ANSWER);
                self.send(answer);
            }
            _ => self.tell(What::Answered),
        }
    }

    fn send(&mut self, mut packet: Vec<u8>) {
        self.worker.handle_tun(&mut packet, clock::now(), &mut self.io);
        self.worker.flush_outbound(&mut self.io);
    }

    fn tell(&self, what: What) {
        let _ = self.told.try_send(Told { node: self.number, at: Instant::now(), what });
    }
}

impl Sink for Io {
    fn send_udp(&mut self, transmit: &Transmit<'_>) -> Result<(), DropReason> {
        for datagram in transmit.contents.chunks(transmit.segment.max(1)) {
            self.udp.try_send_to(datagram, transmit.to.socket_addr()).map_err(|_| DropReason::Backpressure)?;
        }
        Ok(())
    }

    fn send_stream(&mut self, hub: HubSlot, packed: &[u8]) -> Result<(), DropReason> {
        let stream = self.streams.get(&hub).ok_or(DropReason::NoPath)?;
        stream.try_send(Bytes::copy_from_slice(packed)).map_err(|_| DropReason::Backpressure)
    }

    fn write_tun(&mut self, header_and_packet: &mut [u8]) -> Result<(), DropReason> {
        self.came.push(header_and_packet.to_vec());
        Ok(())
    }
}

/// Dials, and moves messages both ways until either end is tired of it.
async fn serve(
    stream: StreamId,
    target: HostPort,
    mut outgoing: mpsc::Receiver<Bytes>,
    events: mpsc::Sender<StreamEvent>,
) {
    if let Ok(mut open) = Box::pin(dial(DialConfig::new(&target))).await {
        let opened = StreamEvent::Opened { stream, exporter: open.exporter, remote: open.remote };
        let _ = events.send(opened).await;
        let receive = async {
            while let Ok(Some(bytes)) = open.receiver.recv().await {
                if events.send(StreamEvent::Message { stream, bytes }).await.is_err() {
                    return;
                }
            }
        };
        let send = async {
            while let Some(message) = outgoing.recv().await {
                if open.sender.send(message).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = receive => {}
            () = send => {}
        }
    }
    let _ = events.send(StreamEvent::Closed { stream }).await;
}

/// A UDP datagram of one byte, behind an empty virtio-net header.
fn packet_of(from: VirtualIp, to: VirtualIp, kind: u8) -> Vec<u8> {
    let octets = |ip: VirtualIp| match ip.ip() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let length = (IP + UDP + 1) as u8;
    let mut ip = vec![0x45, 0, 0, length, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip.extend(octets(from));
    ip.extend(octets(to));
    let sum: u32 = ip.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = !((folded & 0xffff) + (folded >> 16)) as u16;
    ip[10..12].copy_from_slice(&folded.to_be_bytes());
    ip.extend([0x1b, 0x58, 0x1b, 0x58, 0, UDP as u8 + 1, 0, 0, kind]);
    [vec![0; VNET_LEN], ip].concat()
}

const QUESTION: u8 = b'?';
const ANSWER: u8 = b'!';
const IP: usize = 20;
const UDP: usize = 8;
/// Datagrams taken before anything else is looked at.
const BURST: usize = 32;
