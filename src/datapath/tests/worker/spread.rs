//! The flows of one pair by several hubs at once.

use std::{collections::BTreeMap, time::Duration};

use flatlan_datapath::{DropReason, Event};
use flatlan_types::{HubSlot, LaneId};

use crate::{
    net::{PlainNet, ip, slot},
    packet::{from_port, udp},
};

const FLOWS: u16 = 30;
const PAUSE: Duration = Duration::from_millis(10);

fn hubs(count: usize, workers: usize, spreads: &[usize]) -> PlainNet {
    let mut net = PlainNet::new(2);
    net.direct = false;
    for n in 0..2 {
        net.share(n, workers);
    }
    spreads.iter().for_each(|n| net.spread(*n));
    for _ in 0..count {
        let hub = net.add_hub();
        net.relay(0, 1, hub);
    }
    net
}

/// Every flow sends a packet each [`PAUSE`] from node 0 to node 1, for so long. How many arrived of how many.
fn talk(net: &mut PlainNet, flows: u16, time: Duration) -> (usize, usize) {
    let (start, before, mut sent) = (net.now, net.nodes[1].tun.len(), 0);
    while net.now < start + time {
        for flow in 0..flows {
            net.send(0, &from_port(udp(ip(0), ip(1), SIZE), 1000 + flow));
            sent += 1;
        }
        net.run_for(PAUSE);
    }
    net.run_for(PAUSE);
    (net.nodes[1].tun.len() - before, sent)
}

/// Data datagrams that node 0 sent to each hub in the meantime.
fn by_hub(net: &mut PlainNet, during: impl FnOnce(&mut PlainNet)) -> Vec<usize> {
    let before = net.nodes[0].sends.len();
    during(net);
    let mut counts = BTreeMap::new();
    for (to, count, stride, _) in &net.nodes[0].sends[before..] {
        if *stride > SIZE {
            *counts.entry(*to).or_insert(0) += count;
        }
    }
    net.hubs.iter().map(|hub| counts.get(&hub.at).copied().unwrap_or_default()).collect()
}

#[test]
fn every_hub_carries_its_part_of_the_flows_of_one_pair() {
    for (count, workers) in [(2, 1), (3, 1), (3, 2)] {
        let mut net = hubs(count, workers, &[0, 1]);
        talk(&mut net, FLOWS, SETTLED);
        let parts = by_hub(&mut net, |net| {
            assert_eq!(talk(net, FLOWS, Duration::from_secs(2)), (6000, 6000));
        });
        // thirty flows do not fall evenly
        assert!(parts.iter().all(|part| part * count * 2 > 6000), "{count} hubs, {workers} workers: {parts:?}");
        assert_eq!(net.drops(1, DropReason::Replayed), 0);
    }
}

#[test]
fn one_flow_goes_by_one_hub() {
    let mut net = hubs(3, 1, &[0, 1]);
    talk(&mut net, 1, SETTLED);
    let parts = by_hub(&mut net, |net| assert_eq!(talk(net, 1, Duration::from_secs(2)), (200, 200)));
    // some probes have the size of the data
    assert_eq!(parts.iter().filter(|part| **part > 50).count(), 1, "{parts:?}");
}

#[test]
fn without_spreading_one_hub_carries_all_flows() {
    let mut net = hubs(3, 1, &[]);
    talk(&mut net, FLOWS, SETTLED);
    let parts = by_hub(&mut net, |net| assert_eq!(talk(net, FLOWS, Duration::from_secs(2)), (6000, 6000)));
    assert_eq!(parts.iter().filter(|part| **part > 100).count(), 1, "{parts:?}");
}

#[test]
fn a_hub_that_dies_costs_only_its_own_flows_a_moment() {
    let mut net = hubs(3, 1, &[0, 1]);
    talk(&mut net, FLOWS, SETTLED);
    net.hubs[1].dead = true;
    let (arrived, sent) = talk(&mut net, FLOWS, Duration::from_millis(500));
    assert!(arrived * 2 >= sent, "most never notice: {arrived} of {sent}");
    assert_eq!(talk(&mut net, FLOWS, Duration::from_secs(2)), (6000, 6000));
    let report = net.nodes[0].worker.report(net.now);
    let carriers: Vec<_> = report[0].lanes.iter().filter(|lane| lane.carries).collect();
    assert_eq!(carriers.len(), 3);
    assert!(carriers.iter().all(|lane| lane.path.hub() != Some(HubSlot(1)) && lane.standby.is_some()), "{carriers:?}");
}

#[test]
fn a_hub_that_is_about_to_stop_loses_its_flows_to_lanes_on_others_and_no_packet() {
    for count in [2, 3] {
        let mut net = hubs(count, 1, &[0, 1]);
        talk(&mut net, FLOWS, SETTLED);
        for n in [0, 1] {
            net.command(n, flatlan_datapath::Command::DrainHub { hub: HubSlot(0) });
        }
        assert_eq!(talk(&mut net, FLOWS, Duration::from_millis(500)), (1500, 1500));
        net.hubs[0].dead = true;
        assert_eq!(talk(&mut net, FLOWS, Duration::from_secs(1)), (3000, 3000), "nothing was left there");
    }
}

#[test]
fn a_peer_that_does_not_spread_takes_all_lanes_and_keeps_their_sessions() {
    let mut net = hubs(3, 1, &[0]);
    talk(&mut net, FLOWS, SETTLED);
    let ups = |net: &PlainNet| {
        let of = |lane| Event::SessionUp { peer: slot(1), lane };
        LaneId::all().map(|lane| net.nodes[0].events.iter().filter(|e| **e == of(lane)).count()).collect::<Vec<_>>()
    };
    let before = ups(&net);
    let parts = by_hub(&mut net, |net| assert_eq!(talk(net, 12, Duration::from_secs(40)), (48_000, 48_000)));
    assert!(parts.iter().all(|part| *part > 4_000), "{parts:?}");
    assert_eq!(ups(&net), before, "no lane has to be made again");
}

#[test]
fn flows_that_wait_for_the_first_session_go_where_they_belong_afterwards() {
    let mut net = hubs(2, 1, &[0, 1]);
    let (arrived, sent) = talk(&mut net, 12, Duration::from_secs(1));
    assert_eq!(arrived, sent);
}

/// After this every lane has left the stream by which it began for UDP.
const SETTLED: Duration = Duration::from_secs(6);
/// Bytes of a packet's payload.
const SIZE: usize = 600;
