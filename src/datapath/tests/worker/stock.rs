//! Peers that run any WireGuard.

use std::{sync::Arc, time::Duration};

use flatlan_datapath::{Command, DropReason, Event, Owner, PeerInfo, PeerKeys, Snapshot};
use flatlan_roster::OwnerTable;
use flatlan_types::{Endpoint, LaneId, LaneKey, PeerSlot, Prefix, VirtualIp};
use flatlan_wg::{Engine, PeerSession, Plain, Sessions as _, Stock, sealed_len};

use crate::{
    net::{Arrival, PlainNet, ip, network, secret, slot, snapshot},
    packet::{from_port, udp},
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

    /// Speaks first: the answers.
    fn initiate(&mut self, net: &mut PlainNet) -> Vec<Vec<u8>> {
        let mut message = [0; flatlan_wg::HANDSHAKE_MAX];
        let len = self.engine.initiate(LANE, net.now, &mut message).unwrap();
        self.say(net, &message[..len])
    }

    /// Speaks first; the answer to its handshake.
    fn connect(&mut self, net: &mut PlainNet) -> usize {
        let answers = self.initiate(net);
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
fn strangers_handshakes_wait_while_the_socket_is_read_late_and_who_brings_a_cookie_is_heard() {
    let mut net = PlainNet::new(2);
    net.nodes[0].worker.set_snapshot(snapshot(2, 0, &[0, 1], &[1]), net.now);
    let stranger = initiation_of_a_stranger(&net);
    assert_eq!(flood(&mut net, &stranger, 1000), 900, "each is answered by a cookie where there is time for it");
    let mut device = device(&net);
    let cookie = device.initiate(&mut net).pop().expect("an answer");
    device.engine.handle_handshake(LANE, &cookie, net.now, &mut [0; flatlan_wg::HANDSHAKE_MAX]).unwrap();

    net.run_for(Duration::from_secs(6));
    net.nodes[0].worker.set_waited(Duration::from_millis(2));
    assert!(flood(&mut net, &stranger, 1000) < 100, "late, most are not looked at");
    let refused = net.drops(0, DropReason::RateLimited);
    assert_eq!(device.initiate(&mut net).len(), 1, "a cookie is heard all the same");
    assert_eq!(net.drops(0, DropReason::RateLimited), refused);
    net.nodes[0].worker.set_waited(Duration::ZERO);
    assert!(flood(&mut net, &stranger, 1000) >= 900, "and in time, each is again");
}

/// How many answers so many copies of a message get, each from an address of its own.
fn flood(net: &mut PlainNet, message: &[u8], copies: u16) -> usize {
    let before = net.captured.len();
    for n in 0..copies {
        let [high, low] = n.to_be_bytes();
        let from = Endpoint::new(([198, 19, high, low], 1024).into());
        net.arrive(0, &Arrival::Udp { from, contents: message.to_vec(), stride: message.len(), ecn: 0 });
    }
    net.captured.len() - before
}

/// What anybody can write who knows the public key of node 0.
fn initiation_of_a_stranger(net: &PlainNet) -> Vec<u8> {
    let mut engine = Engine::<Plain>::new(&secret(9), 7);
    let peer = PeerSession { key: secret(0).public().session, psk: None, stock: Stock::Yes, keepalive: None };
    engine.open_lane(LANE, peer, net.now);
    let mut message = [0; flatlan_wg::HANDSHAKE_MAX];
    let len = engine.initiate(LANE, net.now, &mut message).unwrap();
    message[..len].to_vec()
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

#[test]
fn a_stock_peer_and_another_node_reach_each_other_through_the_member_that_terminates_it() {
    through_the_member_between(PlainNet::new(3));
}

#[test]
fn a_stock_peer_and_another_node_reach_each_other_from_worker_to_worker() {
    let mut net = PlainNet::new(3);
    net.share(0, 16);
    let net = through_the_member_between(net);
    assert!(net.nodes[0].worker.stats().handed > 0, "the other node belongs to another worker than the device");
}

fn through_the_member_between(mut net: PlainNet) -> PlainNet {
    let now = net.now;
    net.nodes[0].workers().for_each(|worker| worker.set_snapshot(snapshot(2, 0, &[0, 1, 2], &[1]), now));
    net.nodes[2].worker.set_snapshot(as_node_2_sees_it(), net.now);
    net.introduce(0, 2);
    let mut device = device(&net);
    device.connect(&mut net);
    device.send(&mut net, &udp(ip(1), ip(2), 30));
    net.run_until(Duration::from_secs(2), |net| !net.nodes[2].tun.is_empty()).expect("it arrives");
    assert_eq!(net.packets(2), [a_hop_less(udp(ip(1), ip(2), 30))]);
    let before = net.captured.len();
    net.send(2, &udp(ip(2), ip(1), 40));
    net.run_for(Duration::from_millis(50));
    let mut opened = vec![0; 2000];
    let came = net.captured[before..].iter().filter(|(to, _)| *to == device.at).map(|(_, sent)| sent.clone());
    let came: Vec<Vec<u8>> = came.collect();
    let came = came.iter().filter_map(|sent| device.engine.open(sent, net.now, &mut opened).ok()).next_back();
    let len = came.expect("it arrives").len;
    let expected = a_hop_less(udp(ip(2), ip(1), 40));
    assert_eq!(opened[..expected.len()], expected);
    assert!(len >= expected.len());
    assert!(net.nodes[0].tun.is_empty(), "the kernel of the member between has nothing to do with it");
    assert_eq!((net.all_drops(0), net.all_drops(2)), (vec![], vec![]));
    net
}

#[test]
fn the_owners_of_a_prefix_are_kept_ready_for_the_flows_of_a_stock_peer_too() {
    let mut net = PlainNet::new(4);
    net.nodes[0].worker.set_snapshot(snapshot(2, 0, &[0, 1, 2, 3], &[1]), net.now);
    let mut device = device(&net);
    device.connect(&mut net);
    for port in 1000..1020 {
        device.send(&mut net, &from_port(udp(ip(1), [10, 200, 0, 9], 30), port));
    }
    assert!(net.has(0, |event| *event == Event::SharedUsed { peer: slot(2) }));
    assert!(net.has(0, |event| *event == Event::SharedUsed { peer: slot(3) }));
}

/// The device's addresses lead to node 0.
fn as_node_2_sees_it() -> Arc<Snapshot> {
    let owners = [(0, Owner::Peer(slot(0))), (1, Owner::Peer(slot(0))), (2, Owner::Me)];
    let owners = OwnerTable::new(owners.map(|(n, owner)| (Prefix::host(VirtualIp::new(ip(n).into())), owner)));
    let keys = PeerKeys::Node(secret(0).public());
    let peer = (slot(0), PeerInfo { name: "n0".parse().unwrap(), keys, psk: None, priority: 0 });
    Arc::new(Snapshot::new(2, &network(), [peer], owners, vec![VirtualIp::new(ip(2).into())]))
}

/// An IPv4 packet after one router.
fn a_hop_less(mut packet: Vec<u8>) -> Vec<u8> {
    packet[8] -= 1;
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    packet
}
