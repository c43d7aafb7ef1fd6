//! What a worker holds for one peer with which it has something to do.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use flatlan_path::{Leg, PathKind, PeerPaths, Relay};
use flatlan_types::{BootEpoch, Endpoint, HubSlot, Label, LaneId, LaneKey, PeerSlot};
use flatlan_wg::sealed::{FrameCounter, PairKeys, ReplayWindow};

use crate::{batch::Destination, hub_leg::Hubs, outbound::packets_in};

/// A peer's state. Made on first need; gone with the member only, for it remembers what was seen of the
/// peer (epoch, replay window).
pub(crate) struct Peer {
    pub(crate) slot: PeerSlot,
    pub(crate) link: Link,
    pub(crate) lanes: [Lane; LaneId::COUNT],
    pub(crate) queue: Queue,
    /// Data went either way at this time.
    pub(crate) last_data: Option<Instant>,
    pub(crate) need_told: Option<Instant>,
    pub(crate) stale_told: Option<Instant>,
    pub(crate) hello_told: Option<Instant>,
    /// A session or a path is wanted since then, and there is none.
    pub(crate) waiting: Option<Instant>,
    /// It does not answer, since then.
    pub(crate) silent: Option<Instant>,
    /// Its control messages that wait for the control machine.
    pub(crate) messages: u32,
    /// When its timer is set to.
    pub(crate) armed: Option<Instant>,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
}

/// How a peer is spoken to.
pub(crate) enum Link {
    /// A node of ours.
    Node(Box<NodeLink>),
    /// A plain WireGuard device: it roams as WireGuard does, to wherever its last authentic packet came from.
    Stock { endpoint: Option<Endpoint> },
}

/// All that only nodes of ours have between each other.
pub(crate) struct NodeLink {
    pub(crate) keys: PairKeys,
    pub(crate) paths: PeerPaths,
    /// The greatest epoch that the peer has spoken under; zero: it has not spoken yet.
    pub(crate) epoch: BootEpoch,
    pub(crate) replay: ReplayWindow,
    /// Counter of the sealed frames sent under this node's own epoch: never used twice with one key.
    pub(crate) counter: FrameCounter,
    /// What each hub wants to see on frames to this peer.
    pub(crate) labels: BTreeMap<HubSlot, Label>,
}

/// One lane's handshake state.
#[derive(Default, Clone, Copy)]
pub(crate) struct Lane {
    /// Somebody waits for a session.
    pub(crate) wanted: bool,
    pub(crate) next_try: Option<Instant>,
    pub(crate) tries: u32,
    /// The engine has state for this lane: sessions, or at least the memory of the newest initiation.
    pub(crate) open: bool,
}

/// Packets that wait for a session: few and fresh.
#[derive(Default)]
pub(crate) struct Queue {
    packets: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

/// Where a datagram for a peer goes, and what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Destination,
    pub(crate) label: Option<Label>,
}

impl Peer {
    pub(crate) fn node(slot: PeerSlot, keys: PairKeys, counter: FrameCounter, paths: PeerPaths) -> Self {
        Self::new(
            slot,
            Link::Node(Box::new(NodeLink {
                keys,
                paths,
                epoch: BootEpoch::default(),
                replay: ReplayWindow::new(BootEpoch::default()),
                counter,
                labels: BTreeMap::new(),
            })),
        )
    }

    pub(crate) fn stock(slot: PeerSlot) -> Self {
        Self::new(slot, Link::Stock { endpoint: None })
    }

    fn new(slot: PeerSlot, link: Link) -> Self {
        Self {
            slot,
            link,
            lanes: Default::default(),
            queue: Queue::default(),
            last_data: None,
            need_told: None,
            stale_told: None,
            hello_told: None,
            waiting: None,
            silent: None,
            messages: 0,
            armed: None,
            tx_bytes: 0,
            rx_bytes: 0,
        }
    }

    pub(crate) fn lane_key(&self, lane: LaneId) -> LaneKey {
        LaneKey { peer: self.slot, lane }
    }

    /// Data went either way of late: lanes are kept ready.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        self.last_data.is_some_and(|at| now.saturating_duration_since(at) < BUSY) || !self.queue.is_empty()
    }

    /// The longest packet that its paths carry, where the overlay's MTU is `mtu`.
    pub(crate) fn room(&self, mtu: usize) -> usize {
        self.node_link().map_or(mtu, |link| packet_room(link.paths.mtu()).min(mtu))
    }

    /// When something is to be done although nothing happens.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let paths = self.node_link().and_then(|link| link.paths.poll_timeout());
        let lanes = self.lanes.iter().filter(|lane| lane.wanted).filter_map(|lane| lane.next_try).min();
        [paths, lanes, self.queue.deadline(), self.silent_at()].into_iter().flatten().min()
    }

    /// When it counts as silent unless it answers before.
    pub(crate) fn silent_at(&self) -> Option<Instant> {
        let link = self.node_link().filter(|_| self.silent.is_none())?;
        let unanswered = link.paths.silent_since().map(|since| since + SILENT_AFTER);
        let waiting = self.waiting.map(|since| since + self.patience(link));
        [unanswered, waiting].into_iter().flatten().min()
    }

    /// How long a session or a path may take: round trips, and what is lost of them is sent again.
    fn patience(&self, link: &NodeLink) -> Duration {
        let fixed = if LaneId::all().any(|lane| link.paths.active(lane).is_some()) {
            // somebody is there
            HANDSHAKE_LONG
        } else if link.paths.delivered().is_some() {
            // it has lost its ways all at once: hubs say so when a node is gone
            SILENT_AFTER
        } else {
            WAITED_LONG
        };
        fixed + (link.paths.slowest() * 4).min(WAITED_LONG)
    }

    pub(crate) fn lane_mut(&mut self, lane: LaneId) -> &mut Lane {
        self.lanes.get_mut(lane.index()).expect("a lane's index is below LaneId::COUNT")
    }

    pub(crate) fn node_link(&self) -> Option<&NodeLink> {
        match &self.link {
            Link::Node(link) => Some(link),
            Link::Stock { .. } => None,
        }
    }

    pub(crate) fn node_link_mut(&mut self) -> Option<&mut NodeLink> {
        match &mut self.link {
            Link::Node(link) => Some(link),
            Link::Stock { .. } => None,
        }
    }

    /// Where packets of a lane go at this moment.
    pub(crate) fn lane_route(&self, lane: LaneId, hubs: &Hubs) -> Option<Route> {
        match &self.link {
            Link::Node(link) => link.route(link.paths.active(lane)?, hubs),
            Link::Stock { endpoint } => Some(Route { to: Destination::Udp((*endpoint)?), label: None }),
        }
    }
}

impl NodeLink {
    /// How a path is taken.
    pub(crate) fn route(&self, path: PathKind, hubs: &Hubs) -> Option<Route> {
        match path {
            PathKind::Direct(endpoint) => Some(Route { to: Destination::Udp(endpoint), label: None }),
            PathKind::Relay { hub, leg } => {
                let label = Some(*self.labels.get(&hub)?);
                let to = match leg {
                    Leg::Udp => Destination::Udp(hubs.udp_endpoint(hub)?),
                    Leg::Tls => hubs.has_stream(hub).then_some(Destination::Stream(hub))?,
                };
                Some(Route { to, label })
            }
        }
    }

    /// The relayed ways that exist: a label, and a leg to the hub.
    pub(crate) fn relays(&self, hubs: &Hubs) -> Vec<Relay> {
        let mut relays = Vec::new();
        for hub in self.labels.keys().copied() {
            if let Some(rtt) = hubs.udp_up(hub) {
                relays.push(Relay { hub, leg: Leg::Udp, rtt });
            }
            if hubs.has_stream(hub) {
                relays.push(Relay { hub, leg: Leg::Tls, rtt: hubs.udp_up(hub).unwrap_or_default() });
            }
        }
        relays
    }
}

impl Queue {
    /// Keeps a packet or super-packet (behind its virtio-net header); the oldest go where there are too many.
    /// Returns how many packets were dropped.
    pub(crate) fn push(&mut self, packet: Vec<u8>, now: Instant) -> u64 {
        let mut dropped = self.expire(now);
        if packet.len() > MAX_QUEUE_BYTES {
            return dropped + packets_in(&packet);
        }
        while self.packets.len() >= MAX_QUEUE_PACKETS || self.bytes + packet.len() > MAX_QUEUE_BYTES {
            let Some(oldest) = self.pop() else { break };
            dropped += packets_in(&oldest);
        }
        self.bytes += packet.len();
        self.packets.push_back((now, packet));
        dropped
    }

    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    /// Drops what has waited too long; returns how many packets.
    pub(crate) fn expire(&mut self, now: Instant) -> u64 {
        let mut dropped = 0;
        while self.packets.front().is_some_and(|(at, _)| now.duration_since(*at) >= MAX_QUEUE_AGE) {
            let Some(oldest) = self.pop() else { break };
            dropped += packets_in(&oldest);
        }
        dropped
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.packets.front().map(|(at, _)| *at + MAX_QUEUE_AGE)
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}

/// The longest packet whose sealed datagram has `datagram` bytes: padding included.
fn packet_room(datagram: usize) -> usize {
    datagram.saturating_sub(flatlan_wg::sealed_len(0)) & !15
}

/// A pair that carried data within this time keeps both its lanes ready.
const BUSY: Duration = Duration::from_secs(10);
/// A peer that answers by no path for so long is silent: a way through another hub is found in less.
const SILENT_AFTER: Duration = Duration::from_millis(300);
/// The same for one to which no way is found: that takes some round trips over hubs.
const WAITED_LONG: Duration = Duration::from_millis(600);
/// The same for one that answers probes, and with which no session comes up: three tries.
const HANDSHAKE_LONG: Duration = Duration::from_millis(1200);
const MAX_QUEUE_PACKETS: usize = 32;
const MAX_QUEUE_BYTES: usize = 128 * 1024;
/// A TCP SYN is sent again after a second (RFC 6298): what is older has a successor.
const MAX_QUEUE_AGE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use flatlan_packet::{GsoType, VnetHeader};

    use super::*;

    #[test]
    fn the_queue_keeps_few_and_fresh_packets_and_counts_the_others() {
        let start = Instant::now();
        let mut queue = Queue::default();
        let dropped: u64 = (0..40u8).map(|n| queue.push(vec![n; 100], start)).sum();
        assert_eq!(dropped, 8);
        assert_eq!(queue.pop().unwrap()[0], 8);
        assert_eq!(queue.push(vec![0; MAX_QUEUE_BYTES + 1], start), 1);
        assert_eq!(queue.push(vec![1; 10], start + MAX_QUEUE_AGE), 31);
        assert_eq!(queue.pop().unwrap(), vec![1; 10]);
        assert!(queue.is_empty() && queue.bytes == 0);
    }

    #[test]
    fn a_super_packet_that_waited_in_vain_counts_as_the_packets_in_it() {
        let start = Instant::now();
        let header = VnetHeader { gso_type: GsoType::TcpV4, hdr_len: 40, gso_size: 1000, ..VnetHeader::default() };
        let of = |segments: usize| [&header.to_bytes()[..], &vec![0; 40 + segments * 1000]].concat();
        let mut queue = Queue::default();
        assert_eq!(queue.push(of(60), start), 0);
        assert_eq!(queue.push(of(60), start), 0);
        assert_eq!(queue.push(of(30), start), 60, "the oldest makes room");
        assert_eq!(queue.push(of(200), start), 200, "it never fits");
        assert_eq!(queue.expire(start + MAX_QUEUE_AGE), 90);
        assert!(queue.is_empty() && queue.bytes == 0);
    }
}
