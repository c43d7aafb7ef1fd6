//! What `flatlan status --json` prints: the control machine's knowledge and the worker's measurements, as
//! one stable document.

use std::collections::BTreeMap;

use flatlan_datapath::LaneReport;
use flatlan_node::{HubState, NodeStatus, PeerStatus};
use flatlan_path::{Leg, PathKind};
use flatlan_types::{HubKey, HubSlot};
use serde::Serialize;

use crate::packet_loop::Report;

/// The whole document.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The network.
    pub network: Network,
    /// This node.
    #[serde(rename = "self")]
    pub me: Me,
    /// The roster's hubs.
    pub hubs: Vec<Hub>,
    /// Every other member.
    pub peers: Vec<Peer>,
    /// Inner packets that crossed this node's workers.
    pub packets: Packets,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// What the kernel refused as one piece and took in many: nothing of it is lost.
    pub refused: BTreeMap<&'static str, u64>,
    /// Packets and datagrams that came to one worker and belonged to another.
    pub handed: u64,
    /// What a human should look at.
    pub alarms: Vec<String>,
    /// Why this node is of no use yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

/// Inner packets, since the start.
#[derive(Debug, Clone, Serialize)]
pub struct Packets {
    /// Sealed and handed to the underlay.
    pub tx: u64,
    /// Opened and accepted.
    pub rx: u64,
}

/// The network.
#[derive(Debug, Clone, Serialize)]
pub struct Network {
    /// Its name.
    pub name: Option<String>,
    /// Its id.
    pub id: String,
    /// Serial of the roster in use; zero: none.
    pub roster_serial: u64,
    /// Key epoch of the roster in use.
    pub roster_key_epoch: u32,
}

/// This node.
#[derive(Debug, Clone, Serialize)]
pub struct Me {
    /// Its name.
    pub name: Option<String>,
    /// Its virtual IPs.
    pub ips: Vec<String>,
    /// Prefixes of the LAN behind it.
    pub routes: Vec<String>,
    /// Those of them that it cannot reach, and why.
    pub withdrawn: BTreeMap<String, String>,
    /// How often it withdrew something.
    pub withdrawals: u64,
    /// Its boot epoch.
    pub boot_epoch: u64,
    /// The TUN device.
    pub tun: String,
    /// The UDP port.
    pub port: u16,
}

/// A hub.
#[derive(Debug, Clone, Serialize)]
pub struct Hub {
    /// Its name in the roster.
    pub name: Option<String>,
    /// Its key.
    pub key: String,
    /// `attached`, `dialling`, `draining` or `unused`.
    pub state: &'static str,
    /// `udp`, `tcp` or nothing.
    pub transport: Option<&'static str>,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Where the hub sees this node.
    pub reflexive: Option<String>,
}

/// Another member.
#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its virtual IPs.
    pub ips: Vec<String>,
    /// Prefixes of the LAN behind it.
    pub routes: Vec<String>,
    /// What it says that it cannot reach: all of its own that lies in these.
    pub withdrawn: Vec<String>,
    /// The path in use.
    pub path: Option<Path>,
    /// The paths to which its traffic would move.
    pub standby: Vec<Path>,
    /// The lanes that have a path, those that carry flows first.
    pub lanes: Vec<Lane>,
    /// Age of the session, seconds.
    pub last_handshake_s: Option<f64>,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner bytes received.
    pub rx_bytes: u64,
}

/// A lane to a peer.
#[derive(Debug, Clone, Serialize)]
pub struct Lane {
    /// Its number, below four.
    pub lane: u8,
    /// Whether flows go by it; else it stands by, or its last packets are under way.
    pub flows: bool,
    /// Its path.
    pub path: Path,
    /// The path to which it moves when that one dies.
    pub standby: Option<Path>,
    /// Age of its session, seconds.
    pub last_handshake_s: Option<f64>,
}

/// A path to a peer.
#[derive(Debug, Clone, Serialize)]
pub struct Path {
    /// `direct` or `relay`.
    pub kind: &'static str,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// The hubs that it crosses, by name, in order.
    pub via: Vec<String>,
    /// Where datagrams go, for a direct path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Round trip, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Largest datagram that it carries, bytes.
    pub mtu: Option<usize>,
    /// Share of probes lost, 0 to 1.
    pub loss: Option<f32>,
}

impl Status {
    /// Puts both halves together.
    pub(crate) fn new(node: &NodeStatus, report: &Report, tun: &str, port: u16) -> Self {
        let cut = [("truncated", report.udp_cut), ("peer_message", node.refused_messages)];
        Self {
            network: Network {
                name: node.network.name.as_ref().map(ToString::to_string),
                id: node.network.id.full(),
                roster_serial: node.network.roster.map_or(0, |version| version.serial),
                roster_key_epoch: node.network.roster.map_or(0, |version| version.key_epoch),
            },
            me: Me {
                name: node.me.name.as_ref().map(ToString::to_string),
                ips: texts(&node.me.ips),
                routes: texts(&node.me.routes),
                withdrawn: node
                    .me
                    .withdrawn
                    .iter()
                    .map(|(prefix, loss)| (prefix.to_string(), loss.to_string()))
                    .collect(),
                withdrawals: node.me.withdrawals,
                boot_epoch: node.me.epoch.0,
                tun: tun.to_owned(),
                port,
            },
            hubs: node.hubs.iter().map(hub).collect(),
            peers: node.peers.iter().map(|peer| self::peer(peer, node, report)).collect(),
            packets: Packets { tx: report.stats.tx_packets, rx: report.stats.rx_packets },
            drops: report.stats.drops.iter().map(|(reason, count)| (reason.name(), count)).chain(cut).collect(),
            refused: [("tun_super_packets", report.tun_refused), ("udp_runs", report.udp_refused)].into(),
            handed: report.stats.handed,
            alarms: texts(&node.alarms),
            waiting: node.waiting.as_ref().map(ToString::to_string),
        }
    }
}

fn hub(hub: &flatlan_node::HubStatus) -> Hub {
    Hub {
        name: hub.name.as_ref().map(ToString::to_string),
        key: hub.key.full(),
        state: hub.state.name(),
        transport: hub.transport.filter(|_| attached(hub.state)).map(leg),
        rtt_ms: hub.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        reflexive: hub.reflexive.map(|endpoint| endpoint.to_string()),
    }
}

fn attached(state: HubState) -> bool {
    match state {
        HubState::Attached | HubState::Draining => true,
        HubState::Dialling | HubState::Unused => false,
    }
}

fn peer(peer: &PeerStatus, node: &NodeStatus, report: &Report) -> Peer {
    let measured = peer.slot.and_then(|slot| report.peers.iter().find(|report| report.peer == slot));
    let describe = |kind: PathKind| {
        let status = measured.and_then(|report| report.paths.iter().find(|path| path.kind == kind));
        Path {
            kind: if kind.is_direct() { "direct" } else { "relay" },
            transport: match kind {
                PathKind::Direct(_) => "udp",
                PathKind::Relay { leg, .. } => self::leg(leg),
            },
            via: kind.hub().map(|slot| via(slot, peer, node)).unwrap_or_default(),
            endpoint: match kind {
                PathKind::Direct(endpoint) => Some(endpoint.to_string()),
                PathKind::Relay { .. } => None,
            },
            rtt_ms: status.and_then(|status| status.rtt).map(|rtt| rtt.as_secs_f64() * 1e3),
            mtu: status.map(|status| status.mtu),
            loss: status.map(|status| status.loss),
        }
    };
    let lane = |lane: &LaneReport| Lane {
        lane: lane.lane.number(),
        flows: lane.carries,
        path: describe(lane.path),
        standby: lane.standby.map(describe),
        last_handshake_s: lane.last_handshake.map(|age| age.as_secs_f64()),
    };
    Peer {
        name: peer.name.to_string(),
        ips: texts(&peer.ips),
        routes: texts(&peer.routes),
        withdrawn: texts(&peer.withdrawn),
        path: measured.and_then(|report| report.path).map(describe),
        standby: measured.and_then(|report| report.standby).map(describe).into_iter().collect(),
        lanes: measured.map(|report| report.lanes.iter().map(lane).collect()).unwrap_or_default(),
        last_handshake_s: measured.and_then(|report| report.last_handshake).map(|age| age.as_secs_f64()),
        tx_bytes: measured.map_or(0, |report| report.tx_bytes),
        rx_bytes: measured.map_or(0, |report| report.rx_bytes),
    }
}

/// The names of the hubs that frames cross, the first one our own.
fn via(slot: HubSlot, peer: &PeerStatus, node: &NodeStatus) -> Vec<String> {
    let name = |key: &HubKey| {
        let known = node.hubs.iter().find(|hub| hub.key == *key).and_then(|hub| hub.name.as_ref());
        known.map_or_else(|| key.to_string(), ToString::to_string)
    };
    match peer.relays.iter().find(|(of, _)| *of == slot) {
        Some((_, hubs)) if !hubs.is_empty() => hubs.iter().map(name).collect(),
        Some(_) | None => node.hubs.iter().filter(|hub| hub.slot == slot).map(|hub| name(&hub.key)).collect(),
    }
}

fn leg(leg: Leg) -> &'static str {
    match leg {
        Leg::Udp => "udp",
        Leg::Tls => "tcp",
    }
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}
