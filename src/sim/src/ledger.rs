//! Every inner packet that was ever sent, and what became of it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use flatlan_packet::{Fragment, IpView, VNET_LEN, checksum, protocol};
use flatlan_types::VirtualIp;

/// What was sent and what came.
#[derive(Default)]
pub(crate) struct Ledger {
    sent: Vec<Sent>,
    flows: Vec<Flow>,
    pub(crate) arrived: u64,
}

/// One packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) flow: FlowId,
    pub(crate) at: Instant,
    arrived: bool,
}

/// Packets from one node to another, one after the other.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The node that sends.
    pub from: usize,
    /// The node for which they are.
    pub to: usize,
    /// How often.
    pub every: Duration,
    /// Packets sent.
    pub sent: u64,
    /// Packets that came.
    pub arrived: u64,
    /// When the newest packet that came had been sent.
    pub newest: Option<Instant>,
    /// When the last packet came.
    pub last: Option<Instant>,
    /// The longest time without a packet, between two that came.
    pub longest_gap: Duration,
    /// The first hubs over which its packets came, and when the last one did.
    pub hubs: BTreeMap<usize, Instant>,
    /// Bytes of payload.
    pub(crate) size: usize,
    /// The number of the member whose address they have as their source, where that is a lie.
    pub(crate) forged: Option<usize>,
    pub(crate) running: bool,
}

/// Names a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(pub(crate) usize);

/// What is wrong with a packet that came.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// Nobody sent it.
    Invented,
    /// It came before.
    Twice,
}

impl Ledger {
    pub(crate) fn add_flow(&mut self, from: usize, to: usize, every: Duration, size: usize) -> FlowId {
        self.flows.push(Flow {
            from,
            to,
            every,
            sent: 0,
            arrived: 0,
            newest: None,
            last: None,
            longest_gap: Duration::ZERO,
            hubs: BTreeMap::new(),
            size,
            forged: None,
            running: true,
        });
        FlowId(self.flows.len() - 1)
    }

    pub(crate) fn flow(&self, id: FlowId) -> &Flow {
        &self.flows[id.0]
    }

    pub(crate) fn flow_mut(&mut self, id: FlowId) -> &mut Flow {
        &mut self.flows[id.0]
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        self.flows.iter().enumerate().map(|(n, flow)| (FlowId(n), flow))
    }

    /// The number of the next packet of a flow.
    pub(crate) fn send(&mut self, flow: FlowId, now: Instant) -> u64 {
        self.flows[flow.0].sent += 1;
        self.sent.push(Sent { flow, at: now, arrived: false });
        self.sent.len() as u64
    }

    /// A packet came, over this hub first.
    pub(crate) fn arrive(&mut self, number: u64, via: Option<usize>, now: Instant) -> Result<Sent, Wrong> {
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        let sent = index.and_then(|index| self.sent.get_mut(index)).ok_or(Wrong::Invented)?;
        if std::mem::replace(&mut sent.arrived, true) {
            return Err(Wrong::Twice);
        }
        let (sent, flow) = (*sent, &mut self.flows[sent.flow.0]);
        flow.arrived += 1;
        flow.newest = flow.newest.max(Some(sent.at));
        flow.longest_gap = flow.longest_gap.max(flow.last.map_or(Duration::ZERO, |last| now.duration_since(last)));
        flow.last = Some(now);
        flow.hubs.extend(via.map(|hub| (hub, now)));
        self.arrived += 1;
        Ok(sent)
    }
}

/// An inner packet of a flow behind its virtio-net header, with its number.
pub(crate) fn packet((from, to): (VirtualIp, VirtualIp), flow: FlowId, number: u64, size: usize) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from.ip(), to.ip()) else { return Vec::new() };
    let payload = size.max(PAYLOAD);
    let mut packet = vec![0; VNET_LEN];
    packet.extend([0x45, 0]);
    packet.extend(((28 + payload) as u16).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol::UDP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum::finish(checksum::sum(&packet[VNET_LEN..]).into());
    packet[VNET_LEN + 10..VNET_LEN + 12].copy_from_slice(&sum.to_be_bytes());
    // ports, length, and no checksum
    packet.extend((flow.0 as u16).to_be_bytes());
    packet.extend([0x56, 0x78]);
    packet.extend(((8 + payload) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(MAGIC);
    packet.extend(number.to_be_bytes());
    packet.resize(VNET_LEN + 28 + payload, 0x5a);
    packet
}

/// Source, destination and number of a packet that came to a TUN, whole or as its first fragment; `None`: it is none of
/// ours.
pub(crate) fn parse(frame: &[u8]) -> Option<(VirtualIp, VirtualIp, u64)> {
    let packet = frame.get(VNET_LEN..)?;
    let view = IpView::parse(packet).ok()?;
    let number = packet.get(28..)?.strip_prefix(&MAGIC)?.first_chunk()?;
    Some((VirtualIp::new(view.source), VirtualIp::new(view.destination), u64::from_be_bytes(*number)))
}

/// Whether it is an ICMP error that a worker made itself, or a later fragment, which says nothing of its own.
pub(crate) fn is_silent(frame: &[u8]) -> bool {
    let packet = frame.get(VNET_LEN..).unwrap_or_default();
    let later = |view: &IpView| matches!(view.fragment, Fragment::Later { .. });
    IpView::parse(packet).is_ok_and(|view| view.protocol == protocol::ICMP || later(&view))
}

const MAGIC: [u8; 4] = *b"FLAT";
/// Of the least packet: magic and number.
const PAYLOAD: usize = 12;
