//! Several workers of one node: each peer has its own, and nothing comes to one that does not know it.

use std::time::Duration;

use flatlan_datapath::DropReason;
use flatlan_path::{Leg, PathKind};
use flatlan_relay::frame;
use flatlan_types::PeerSlot;
use flatlan_wg::{Engine, Tunnel, sealed::FRAME_TYPE};

use crate::{
    net::{Arrival, BoringNet, Net, PlainNet, in_label, ip, slot},
    packet::udp,
};

const PEERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(10);
/// Rounds after which flows are where they stay.
const SETTLED: usize = 500;

/// Node 0 with four workers, and its peers with two each.
fn shared<T: Tunnel>(mut net: Net<Engine<T>>) -> Net<Engine<T>> {
    net.share(0, 4);
    (1..=PEERS).for_each(|n| net.share(n, 2));
    net
}

/// All peers and node 0 send to each other for some time. How many packets each way.
fn talk<T: Tunnel>(net: &mut Net<Engine<T>>, rounds: usize) {
    for _ in 0..rounds {
        for n in 1..=PEERS {
            net.send(0, &udp(ip(0), ip(n), 100));
            net.send(n, &udp(ip(n), ip(0), 100));
        }
        net.run_for(PAUSE);
    }
    net.run_for(Duration::from_millis(100));
}

fn drops<T: Tunnel>(net: &mut Net<Engine<T>>) -> Vec<(usize, DropReason, u64)> {
    let of = |(n, node): (usize, &mut crate::net::Node<_>)| {
        let all = node.workers().flat_map(|worker: &mut flatlan_datapath::Worker<Engine<T>>| {
            worker.stats().drops.iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>()
        });
        all.map(|(reason, count)| (n, reason, count)).collect::<Vec<_>>()
    };
    net.nodes.iter_mut().enumerate().flat_map(of).collect()
}

/// The workers of node 0 that hold a peer, by peer.
fn holders<T: Tunnel>(net: &mut Net<Engine<T>>) -> Vec<(PeerSlot, usize)> {
    let now = net.now;
    let workers = net.nodes[0].workers().enumerate();
    let mut holders: Vec<_> =
        workers.flat_map(|(w, worker)| worker.report(now).into_iter().map(move |peer| (peer.peer, w))).collect();
    holders.sort_unstable();
    holders
}

fn everyone_is_heard<T: Tunnel>(mut net: Net<Engine<T>>) {
    for n in 1..=PEERS {
        net.introduce(0, n);
    }
    talk(&mut net, 10);
    assert_eq!(drops(&mut net), []);
    assert_eq!(net.nodes[0].tun.len(), 10 * PEERS);
    assert!((1..=PEERS).all(|n| net.nodes[n].tun.len() == 10));
    let holders = holders(&mut net);
    assert_eq!(holders.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), (1..=PEERS).map(slot).collect::<Vec<_>>());
    let busy = |w| holders.iter().filter(|(_, worker)| *worker == w).count();
    assert!((0..4).filter(|w| busy(*w) > 0).count() > 1, "{holders:?}");
    // the other queues' packets found their worker
    assert!(net.nodes[0].workers().map(|worker| worker.stats().handed).sum::<u64>() > 0);
}

#[test]
fn each_peer_has_one_worker_and_whatever_queue_a_packet_is_read_from_it_arrives() {
    everyone_is_heard(shared(PlainNet::new(PEERS + 1)));
}

#[test]
fn each_peer_has_one_worker_and_whatever_queue_a_packet_is_read_from_it_arrives_under_boringtun() {
    everyone_is_heard(shared(BoringNet::new(PEERS + 1)));
}

fn relayed(hubs: usize) -> PlainNet {
    let mut net = shared(PlainNet::new(PEERS + 1));
    net.direct = false;
    for _ in 0..hubs {
        let hub = net.add_hub();
        (1..=PEERS).for_each(|n| net.relay(0, n, hub));
    }
    net.run_for(Duration::from_millis(100));
    net
}

#[test]
fn one_worker_binds_and_all_relay_by_labels_of_their_own() {
    let mut net = relayed(1);
    talk(&mut net, SETTLED);
    assert_eq!(drops(&mut net), []);
    assert_eq!(net.nodes[0].tun.len(), SETTLED * PEERS);
    let now = net.now;
    let paths: Vec<_> = net.nodes[0].workers().flat_map(|worker| worker.report(now)).map(|peer| peer.path).collect();
    assert_eq!(paths.len(), PEERS);
    assert!(
        paths.iter().all(|path| matches!(path, Some(PathKind::Relay { leg: Leg::Udp, .. }))),
        "every worker knows that the leg is up: {paths:?}"
    );
    let binds = net.captured.iter().filter(|(_, bytes)| bytes.first() == Some(&flatlan_relay::bind::BIND)).count();
    assert!(binds > 0);
}

#[test]
fn a_hub_that_joins_frames_of_several_peers_loses_none() {
    let mut net = relayed(1);
    talk(&mut net, 5);
    let before = net.nodes[0].tun.len();
    (1..=PEERS).for_each(|n| net.send(n, &udp(ip(n), ip(0), 200)));
    // on their way from the hub
    net.run_for(Duration::from_millis(3));
    let frames: Vec<Vec<u8>> = net.intercept(0).into_iter().filter(|frame| frame.len() > 200).collect();
    assert_eq!(frames.len(), PEERS);
    // the kernel joins what one source sent in one size
    let from = net.hubs[0].at;
    let stride = frames[0].len();
    net.arrive(0, &Arrival::Udp { from, contents: frames.concat(), stride, ecn: 0 });
    assert_eq!(net.nodes[0].tun.len(), before + PEERS);
    assert_eq!(drops(&mut net), []);
}

#[test]
fn runs_of_datagrams_too_short_to_name_a_worker_come_to_an_end() {
    let mut net = shared(PlainNet::new(PEERS + 1));
    let from = net.nodes[1].at;
    for kind in [4, 2, 0x10, 0x11, 0x20, 0x21] {
        for stride in 1..=12 {
            let mut contents: Vec<u8> = (0..60).collect();
            contents[0] = kind;
            net.arrive(0, &Arrival::Udp { from, contents, stride, ecn: 0 });
        }
    }
    assert_eq!(net.nodes[0].tun.len(), 0);
}

#[test]
fn what_was_sealed_for_one_worker_makes_no_second_state_at_another_under_a_label_of_its_own() {
    let mut net = relayed(1);
    talk(&mut net, 5);
    let before = holders(&mut net);
    let worker = |n: usize| before.iter().find(|(peer, _)| *peer == slot(n)).map(|(_, worker)| *worker);
    (1..=PEERS).for_each(|n| net.send(n, &udp(ip(n), ip(0), 20)));
    let sealed: Vec<Vec<u8>> = (0..400)
        .flat_map(|_| {
            net.run_for(Duration::from_millis(1));
            net.intercept(0)
        })
        .filter(|frame| frame.first() == Some(&frame::KIND) && frame.get(frame::HEADER_LEN) == Some(&FRAME_TYPE))
        .collect();
    let from = net.hubs[0].at;
    let mut replayed = 0;
    for frame in sealed {
        let label = frame::Header::parse(&frame).unwrap().label;
        let owner = (1..=PEERS).find(|n| in_label(0, *n, 0) == label).unwrap();
        for other in (1..=PEERS).filter(|n| worker(*n) != worker(owner)) {
            let mut contents = frame.clone();
            frame::Header::new(in_label(0, other, 0)).write(&mut contents);
            let stride = contents.len();
            net.arrive(0, &Arrival::Udp { from, contents, stride, ecn: 0 });
            replayed += 1;
        }
    }
    assert!(replayed > 0);
    assert_eq!(net.nodes[0].workers().map(|worker| worker.stats().drops.of(DropReason::BadTag)).sum::<u64>(), replayed);
    assert_eq!(holders(&mut net), before);
}

#[test]
fn when_a_hub_falls_silent_the_peers_of_all_workers_move() {
    let mut net = relayed(2);
    talk(&mut net, SETTLED);
    net.hubs[0].dead = true;
    talk(&mut net, SETTLED);
    let before = net.nodes[0].tun.len();
    talk(&mut net, 10);
    assert_eq!(net.nodes[0].tun.len(), before + 10 * PEERS);
    let now = net.now;
    for peer in net.nodes[0].workers().flat_map(|worker| worker.report(now)).collect::<Vec<_>>() {
        assert_eq!(peer.path.and_then(PathKind::hub), Some(net.hubs[1].slot), "{peer:?}");
    }
}

#[test]
fn a_member_that_is_revoked_leaves_its_worker_and_the_others_stay() {
    let mut net = shared(PlainNet::new(PEERS + 1));
    (1..=PEERS).for_each(|n| net.introduce(0, n));
    talk(&mut net, 5);
    let members: Vec<usize> = (0..=PEERS).filter(|n| *n != 3).collect();
    net.set_members(2, &members, &[]);
    let left: Vec<PeerSlot> = holders(&mut net).into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(left, (1..=PEERS).filter(|n| *n != 3).map(slot).collect::<Vec<_>>());
    let before = net.nodes[0].tun.len();
    net.send(3, &udp(ip(3), ip(0), 100));
    net.send(4, &udp(ip(4), ip(0), 100));
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.nodes[0].tun.len(), before + 1);
}
