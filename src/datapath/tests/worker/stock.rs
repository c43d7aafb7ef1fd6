//! Peers that run any WireGuard.

use std::time::Duration;

use flatlan_datapath::{Command, DropReason};
use flatlan_types::{Endpoint, LaneId, LaneKey, PeerSlot};
use flatlan_wg::{Engine, PeerSession, Plain, Sessions as _, Stock, sealed_len};

use crate::{
    net::{Arrival, PlainNet, ip, secret, slot, snapshot},
    packet::udp,
};

const LANE: LaneKey = LaneKey { peer: PeerSlot(0), lane: LaneId::PRIMARY };

/// A plain WireGuard device with the keys of node 1, as node 0 meets it.
struct Device {
    engine: Engine<Plain>,
    at: Endpoint,
}

fn device(net: &PlainNet) -> Device {
    let mut engine = Engine::<Plain>::new(&secret(1), 5);
    let peer = PeerSession { key: secret(0).public().session, psk: None, stock: Stock::Yes, keepalive: None };
    engine.open_lane(LANE, peer, net.now);
    Device { engine, at: Endpoint::new(([203, 0, 113, 5], 1234).into()) }
}

impl Device {
    fn say(&self, net: &mut PlainNet, datagram: &[u8]) -> Vec<Vec<u8>> {
        let before = net.captured.len();
        let (contents, stride) = (datagram.to_vec(), datagram.len());
        net.arrive(0, &Arrival::Udp { from: self.at, contents, stride, ecn: 0 });
        net.captured[before..].iter().filter(|(to, _)| *to == self.at).map(|(_, sent)| sent.clone()).collect()
    }

    /// Speaks first; the answer to its handshake.
    fn connect(&mut self, net: &mut PlainNet) -> usize {
        let mut message = [0; flatlan_wg::HANDSHAKE_MAX];
        let len = self.engine.initiate(LANE, net.now, &mut message).unwrap();
        let answers = self.say(net, &message[..len]);
        for answer in &answers {
            let mut out = [0; flatlan_wg::HANDSHAKE_MAX];
            let handled = self.engine.handle_handshake(LANE, answer, net.now, &mut out).unwrap();
            self.say(net, &out[..handled.reply.unwrap()]);
        }
        answers.len()
    }

    fn send(&mut self, net: &mut PlainNet, packet: &[u8]) {
        let mut out = vec![0; sealed_len(packet.len())];
        let len = self.engine.seal(LANE, packet, net.now, &mut out).unwrap();
        self.say(net, &out[..len]);
    }
}

#[test]
fn a_stock_peer_may_speak_first_and_roams_with_its_packets() {
    let mut net = PlainNet::new(2);
    net.nodes[0].worker.set_snapshot(snapshot(2, 0, &[0, 1], &[1]), net.now);
    let mut device = device(&net);
    assert_eq!(device.connect(&mut net), 1);
    device.send(&mut net, &udp(ip(1), ip(0), 30));
    assert_eq!(net.packets(0), [udp(ip(1), ip(0), 30)]);
    net.send(0, &udp(ip(0), ip(1), 30));
    assert_eq!(net.nodes[0].sends.last().unwrap().0, device.at);
    // it moves: only an authentic packet says so
    device.at = Endpoint::new(([203, 0, 113, 77], 4321).into());
    device.say(&mut net, &[4; 64]);
    net.send(0, &udp(ip(0), ip(1), 30));
    assert_ne!(net.nodes[0].sends.last().unwrap().0, device.at);
    device.send(&mut net, &udp(ip(1), ip(0), 31));
    net.send(0, &udp(ip(0), ip(1), 30));
    assert_eq!(net.nodes[0].sends.last().unwrap().0, device.at);
}

#[test]
fn a_stock_peer_is_called_at_its_endpoint() {
    let mut net = PlainNet::new(2);
    net.nodes[0].worker.set_snapshot(snapshot(2, 0, &[0, 1], &[1]), net.now);
    let device = device(&net);
    net.send(0, &udp(ip(0), ip(1), 30));
    assert!(net.nodes[0].sends.is_empty(), "nobody knows where it is");
    net.command(0, Command::SetDirect { peer: slot(1), endpoints: vec![device.at] });
    net.run_for(Duration::from_millis(300));
    assert_eq!(net.nodes[0].sends.first().unwrap().0, device.at);
}

#[test]
fn a_plain_handshake_of_a_node_of_ours_is_refused() {
    let mut net = PlainNet::new(2);
    let mut device = device(&net);
    assert_eq!(device.connect(&mut net), 0);
    assert_eq!(net.drops(0, DropReason::PlainHandshake), 1);
    assert!(net.nodes[0].events.is_empty());
}

#[test]
fn a_revoked_stock_peer_is_not_heard() {
    let mut net = PlainNet::new(2);
    net.nodes[0].worker.set_snapshot(snapshot(2, 0, &[0, 1], &[1]), net.now);
    let mut device = device(&net);
    device.connect(&mut net);
    net.nodes[0].worker.set_snapshot(snapshot(3, 0, &[0], &[]), net.now);
    device.send(&mut net, &udp(ip(1), ip(0), 30));
    net.run_for(Duration::from_secs(6));
    assert_eq!(device.connect(&mut net), 0);
    assert!(net.nodes[0].tun.is_empty());
}
