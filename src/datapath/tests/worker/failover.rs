//! Traffic goes on when the way it takes does not.

use std::time::Duration;

use flatlan_datapath::{Command, Event};
use flatlan_path::{Leg, PathKind};
use flatlan_types::{HubSlot, LaneId};

use crate::{
    net::{PlainNet, ip, slot},
    packet::udp,
};

const PAUSE: Duration = Duration::from_millis(10);
/// After this flows are where they stay.
const SETTLED: Duration = Duration::from_secs(5);

fn two_hubs() -> PlainNet {
    let mut net = PlainNet::new(2);
    net.direct = false;
    for _ in 0..2 {
        let hub = net.add_hub();
        net.relay(0, 1, hub);
    }
    net.chat(0, 1, PAUSE, SETTLED);
    net
}

fn path(net: &PlainNet) -> PathKind {
    net.nodes[0].worker.report(net.now)[0].path.unwrap()
}

fn active_hub(net: &PlainNet) -> usize {
    usize::from(path(net).hub().unwrap().0)
}

#[test]
fn a_hub_that_dies_costs_half_a_second_at_the_most() {
    let mut net = two_hubs();
    let hub = active_hub(&net);
    net.hubs[hub].dead = true;
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(2));
    assert!(gap < Duration::from_millis(500), "{gap:?}");
    assert_ne!(active_hub(&net), hub);
}

#[test]
fn a_hub_that_passes_probes_and_swallows_data_is_left() {
    let mut net = two_hubs();
    let hub = active_hub(&net);
    net.hubs[hub].swallows_data = true;
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(3));
    assert!(gap < Duration::from_millis(1000), "{gap:?}");
    assert_ne!(active_hub(&net), hub);
}

#[test]
fn a_hub_whose_udp_fails_is_used_over_its_stream() {
    let mut net = PlainNet::new(2);
    net.direct = false;
    let hub = net.add_hub();
    net.relay(0, 1, hub);
    net.chat(0, 1, PAUSE, SETTLED);
    assert_eq!(path(&net), PathKind::Relay { hub: HubSlot(0), leg: Leg::Udp });
    net.hubs[hub].deaf = true;
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(3));
    assert!(gap < Duration::from_millis(500), "{gap:?}");
    assert_eq!(path(&net), PathKind::Relay { hub: HubSlot(0), leg: Leg::Tls });
    assert!(net.has(0, |e| *e == Event::LegDown { hub: HubSlot(0) }));
    net.hubs[hub].deaf = false;
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(20));
    assert!(gap < Duration::from_millis(100), "the way back costs nothing: {gap:?}");
    assert_eq!(path(&net), PathKind::Relay { hub: HubSlot(0), leg: Leg::Udp });
}

#[test]
fn a_hub_that_is_taken_away_is_left_at_once() {
    let mut net = two_hubs();
    let hub = active_hub(&net);
    net.hubs[hub].dead = true;
    for n in [0, 1] {
        net.command(n, Command::RemoveHub { hub: HubSlot(hub as u8) });
    }
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(1));
    assert!(gap < Duration::from_millis(50), "{gap:?}");
}

#[test]
fn flows_move_to_the_direct_path_without_a_gap_and_back_when_it_is_cut() {
    let mut net = two_hubs();
    net.direct = true;
    net.introduce(0, 1);
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(2));
    assert!(gap <= Duration::from_millis(20), "promotion: {gap:?}");
    assert!(path(&net).is_direct());
    assert!(net.has(0, |e| matches!(e, Event::DirectUp { .. })));
    let promoted = |e: &Event| matches!(e, Event::LaneChanged { path: Some(path), was: Some(was), .. } if path.is_direct() && !was.is_direct());
    assert!(net.has(0, promoted), "and it is told");
    net.direct = false;
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(2));
    assert!(gap < Duration::from_millis(500), "cut: {gap:?}");
    assert!(!path(&net).is_direct());
}

#[test]
fn both_lanes_have_a_session_while_there_is_traffic() {
    let mut net = two_hubs();
    net.chat(0, 1, PAUSE, Duration::from_millis(500));
    for n in [0, 1] {
        for lane in [LaneId::PRIMARY, LaneId::STANDBY] {
            let peer = slot(1 - n);
            assert!(net.has(n, |e| *e == Event::SessionUp { peer, lane }), "node {n} lane {lane}");
        }
    }
}

#[test]
fn the_standby_is_warmed_also_where_the_paths_came_before_the_traffic() {
    let mut net = PlainNet::new(2);
    net.direct = false;
    for _ in 0..2 {
        let hub = net.add_hub();
        net.relay(0, 1, hub);
    }
    net.run_for(Duration::from_secs(1));
    assert!(!net.has(0, |e| matches!(e, Event::SessionUp { .. })), "no session without need");
    net.send(0, &udp(ip(0), ip(1), 100));
    net.run_for(Duration::from_millis(300));
    assert!(net.has(0, |e| *e == Event::SessionUp { peer: slot(1), lane: LaneId::STANDBY }));
}

#[test]
fn a_tenth_of_all_datagrams_lost_moves_nothing() {
    let mut net = two_hubs();
    net.loss = 10;
    let before = path(&net);
    for _ in 0..100 {
        net.chat(0, 1, PAUSE, Duration::from_millis(100));
        assert_eq!(path(&net), before);
    }
}

#[test]
fn a_restarted_peer_behind_hubs_is_recovered_at_once() {
    let mut net = two_hubs();
    net.restart(1);
    for hub in 0..2 {
        net.attach(1, hub);
        net.relay(0, 1, hub);
    }
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(1));
    assert!(gap < Duration::from_millis(200), "{gap:?}");
}

#[test]
fn a_hub_that_is_about_to_stop_is_left_without_a_gap() {
    let mut net = two_hubs();
    let hub = active_hub(&net);
    for n in [0, 1] {
        net.command(n, Command::DrainHub { hub: HubSlot(hub as u8) });
    }
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(1));
    assert!(gap < Duration::from_millis(50), "{gap:?}");
    assert_ne!(active_hub(&net), hub);
    net.hubs[hub].dead = true;
    let gap = net.chat(0, 1, PAUSE, Duration::from_secs(1));
    assert!(gap < Duration::from_millis(50), "nothing was left there: {gap:?}");
}
