//! Flows to a prefix that several nodes own: nodes 1, 2 and 3 are the gateways, node 0 sends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_datapath::{Command, Event, NewSessions};
use flatlan_types::{HubSlot, PeerSlot};

use crate::{
    net::{PlainNet, ip, slot},
    packet::{from_port, udp},
};

const FLOWS: u16 = 60;
const PAUSE: Duration = Duration::from_millis(10);
/// A host of the LAN behind the gateways.
const HOST: [u8; 4] = [10, 200, 0, 9];

/// When packets of each flow arrived, and at whom.
type Arrivals = BTreeMap<u16, Vec<(Instant, usize)>>;

fn gateways(workers: usize) -> PlainNet {
    let mut net = PlainNet::new(4);
    net.share(0, workers);
    (1..4).for_each(|n| net.introduce(0, n));
    net
}

/// Every flow sends a packet each [`PAUSE`] for so long, while node 0's control machine does what it does.
fn talk(net: &mut PlainNet, flows: u16, time: Duration) -> Arrivals {
    let before: Vec<usize> = net.nodes.iter().map(|node| node.tun.len()).collect();
    let start = net.now;
    while net.now < start + time {
        for flow in 0..flows {
            net.send(0, &from_port(udp(ip(0), HOST, 100), 1000 + flow));
        }
        net.run_for(PAUSE);
        control(net);
    }
    net.run_for(PAUSE);
    let mut arrivals = Arrivals::new();
    for (n, node) in net.nodes.iter().enumerate() {
        for (at, packet) in &node.tun[before[n]..] {
            let ports = flatlan_packet::VNET_LEN + 20;
            let port = u16::from_be_bytes([packet[ports], packet[ports + 1]]);
            arrivals.entry(port - 1000).or_default().push((*at, n));
        }
    }
    arrivals.values_mut().for_each(|times| times.sort());
    arrivals
}

/// What the control machine makes of the workers' events.
fn control(net: &mut PlainNet) {
    let mut events = std::mem::take(&mut net.nodes[0].events);
    let mut away = net.nodes[0].snapshot.away.clone();
    for event in &events {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is not about gateways")]
        match event {
            Event::PeerSilent { peer } => {
                away.silent.insert(*peer);
            }
            Event::PeerAnswers { peer } => {
                away.silent.remove(peer);
            }
            Event::SharedUsed { .. } => (1..4).for_each(|n| net.command(0, Command::KeepWarm { peer: slot(n) })),
            _ => {}
        }
    }
    events.retain(|event| !matches!(event, Event::SharedUsed { .. }));
    net.nodes[0].events.splice(0..0, events);
    let (now, sender) = (net.now, &mut net.nodes[0]);
    if sender.snapshot.away != away {
        let mut snapshot = (*sender.snapshot).clone();
        (snapshot.generation, snapshot.away) = (snapshot.generation + 1, away);
        sender.snapshot = Arc::new(snapshot);
        let snapshot = sender.snapshot.clone();
        sender.workers().for_each(|worker| worker.set_snapshot(snapshot.clone(), now));
    }
}

fn last_of(arrivals: &Arrivals) -> BTreeMap<u16, usize> {
    arrivals.iter().map(|(flow, times)| (*flow, times.last().unwrap().1)).collect()
}

/// The longest pause of any flow.
fn longest_gap(arrivals: &Arrivals) -> Duration {
    let gaps = arrivals.values().flat_map(|times| times.windows(2).map(|pair| pair[1].0 - pair[0].0));
    gaps.max().unwrap()
}

#[test]
fn each_flow_goes_to_one_gateway_and_every_gateway_has_its_part() {
    for workers in [1, 2] {
        let mut net = gateways(workers);
        talk(&mut net, FLOWS, Duration::from_secs(1));
        let arrivals = talk(&mut net, FLOWS, Duration::from_secs(2));
        let mut parts = BTreeMap::new();
        for times in arrivals.values() {
            let at: BTreeSet<usize> = times.iter().map(|(_, n)| *n).collect();
            assert_eq!(at.len(), 1);
            *parts.entry(times[0].1).or_insert(0) += 1;
        }
        assert!(parts.len() == 3 && parts.values().all(|part| *part >= 10), "{parts:?}");
    }
}

#[test]
fn the_flows_of_a_gateway_that_dies_go_on_at_the_others_within_half_a_second_and_come_back_with_it() {
    for workers in [1, 2] {
        let mut net = gateways(workers);
        talk(&mut net, FLOWS, Duration::from_secs(1));
        let before = last_of(&talk(&mut net, FLOWS, Duration::from_secs(2)));
        net.nodes[2].mute = true;
        only_flows_of_the_second_move(&mut net, &before);
        net.nodes[2].mute = false;
        net.restart(2);
        net.introduce(0, 2);
        talk(&mut net, FLOWS, Duration::from_secs(10));
        let after = talk(&mut net, FLOWS, Duration::from_secs(1));
        assert_eq!(last_of(&after), before);
        assert!(longest_gap(&after) < Duration::from_millis(100));
    }
}

#[test]
fn the_flows_of_a_gateway_to_which_every_way_is_taken_back_go_on_at_the_others() {
    let mut net = PlainNet::new(4);
    net.direct = false;
    let hub = net.add_hub();
    (1..4).for_each(|n| net.relay(0, n, hub));
    talk(&mut net, FLOWS, Duration::from_secs(1));
    let before = last_of(&talk(&mut net, FLOWS, Duration::from_secs(2)));
    // a node that is killed closes its streams: its hubs say at once that it is gone
    net.nodes[2].mute = true;
    net.command(0, Command::SetLabel { peer: slot(2), hub: HubSlot(hub as u8), label: None });
    only_flows_of_the_second_move(&mut net, &before);
    net.nodes[2].mute = false;
    net.relay(0, 2, hub);
    talk(&mut net, FLOWS, Duration::from_secs(10));
    assert_eq!(last_of(&talk(&mut net, FLOWS, Duration::from_secs(1))), before);
}

/// All flows go on within half a second, and none of them to gateway 2.
fn only_flows_of_the_second_move(net: &mut PlainNet, before: &BTreeMap<u16, usize>) {
    let during = talk(net, FLOWS, Duration::from_secs(2));
    let now = last_of(&during);
    assert!(now.len() == usize::from(FLOWS) && now.values().all(|n| *n != 2));
    assert!(before.iter().all(|(flow, n)| *n == 2 || now[flow] == *n), "flows of the others stay");
    let gap = longest_gap(&during);
    assert!(gap < Duration::from_millis(500), "{gap:?}");
}

#[test]
fn a_gateway_that_had_nothing_to_do_takes_over_at_once() {
    let mut net = gateways(1);
    talk(&mut net, 1, Duration::from_secs(3));
    let idle = talk(&mut net, 1, Duration::from_secs(60));
    let first = last_of(&idle)[&0];
    net.nodes[first].mute = true;
    let during = talk(&mut net, 1, Duration::from_secs(3));
    assert_ne!(last_of(&during)[&0], first);
    let last_before = idle[&0].last().unwrap().0;
    let gap = longest_gap(&during).max(during[&0][0].0 - last_before);
    assert!(gap < Duration::from_millis(500), "{gap:?}");
}

#[test]
fn a_gateway_that_had_nothing_to_do_for_long_has_a_session_at_any_time() {
    let mut net = gateways(1);
    talk(&mut net, 1, Duration::from_secs(3));
    // sessions end after 180 s, and would be renewed only by data
    for time in 1..46 {
        talk(&mut net, 1, Duration::from_secs(10));
        let ages = net.nodes[0].worker.report(net.now).into_iter().map(|peer| peer.last_handshake);
        let lives = |age: &Option<Duration>| age.is_some_and(|age| age < Duration::from_secs(180));
        assert_eq!(ages.filter(lives).count(), 3, "after {time}0 s");
    }
    assert!(!net.has(0, |event| matches!(event, Event::PeerSilent { .. })));
}

#[test]
fn a_gateway_with_which_no_session_may_begin_gets_no_flows() {
    let mut net = gateways(1);
    talk(&mut net, FLOWS, Duration::from_secs(3));
    let sender = &mut net.nodes[0];
    let mut refusing = (*sender.snapshot).clone();
    (refusing.generation, refusing.new_sessions) = (refusing.generation + 1, NewSessions::Refused);
    sender.snapshot = Arc::new(refusing);
    sender.worker.set_snapshot(sender.snapshot.clone(), net.now);
    net.restart(2);
    net.introduce(0, 2);
    talk(&mut net, FLOWS, Duration::from_secs(5));
    let arrivals = last_of(&talk(&mut net, FLOWS, Duration::from_secs(1)));
    assert!(arrivals.len() == usize::from(FLOWS) && arrivals.values().all(|n| *n != 2), "{arrivals:?}");
}

#[test]
fn a_gateway_far_away_is_not_taken_for_dead_while_its_session_comes_up() {
    let mut net = gateways(1);
    net.delay = Duration::from_millis(350);
    talk(&mut net, FLOWS, Duration::from_secs(5));
    let silent = |event: &Event| matches!(event, Event::PeerSilent { .. });
    assert!(!net.has(0, silent));
    assert_eq!(talk(&mut net, FLOWS, Duration::from_secs(2)).len(), usize::from(FLOWS));
}

#[test]
fn a_gateway_that_was_never_there_gets_a_flow_for_a_moment_only() {
    let mut net = gateways(1);
    net.nodes[3].mute = true;
    talk(&mut net, FLOWS, Duration::from_secs(2));
    assert!(net.has(0, |event| *event == Event::PeerSilent { peer: PeerSlot(3) }));
    let arrivals = talk(&mut net, FLOWS, Duration::from_secs(2));
    assert_eq!(arrivals.len(), usize::from(FLOWS));
    assert!(longest_gap(&arrivals) < Duration::from_millis(100));
}
