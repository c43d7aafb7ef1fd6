mod net;
mod spread;

use proptest::prelude::*;

use self::net::{Fault, Flow, Net, Side, direct, relay, tls};
use super::*;

const A: Side = Side::A;
const B: Side = Side::B;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// Two nodes, three hubs, a ping each 10 ms and a bulk flow: as the failover figures are measured.
fn busy(seed: u64) -> Net {
    let mut net = Net::seeded(seed).hubs(&[ms(1), ms(2), ms(3)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.flow(B, Flow { every: ms(10), packets: 1, size: 128 });
    net.flow(A, Flow { every: ms(10), packets: 50, size: 1440 });
    net.flow(B, Flow { every: ms(10), packets: 25, size: 96 });
    net.run(secs(3));
    net
}

/// The longest gap when `fault` strikes the hub in use, over many phases of the probing.
fn worst_gap(faults: &[(Side, Fault)], traffic: fn(u64) -> Net) -> Duration {
    let gap = |phase: u64| {
        let mut net = traffic(phase);
        net.run(ms(phase * 7));
        let used = net.end(A).active().expect("a path");
        net.reset_gaps();
        for (from, fault) in faults {
            net.fault(*from, used, *fault);
        }
        net.run(secs(3));
        assert_ne!(net.end(A).active(), Some(used), "phase {phase}");
        net.longest_gap()
    };
    (0..16).map(gap).max().unwrap()
}

#[test]
fn a_relay_is_used_before_it_is_proven_and_the_standby_is_on_another_hub() {
    let mut net = Net::seeded(1).hubs(&[ms(5), ms(1), ms(3)]);
    assert_eq!(net.end(A).active(), Some(relay(1)));
    assert_eq!(net.end(A).paths.standby(LaneId::PRIMARY), Some(relay(2)));
    assert_eq!(net.end(A).paths.active(LaneId::STANDBY), Some(relay(2)));
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(5));
    assert_eq!(net.end(A).active(), Some(relay(1)));
    assert!(net.end(A).paths.paths().all(|path| path.state == PathState::Valid));
    assert_eq!(net.end(A).paths.paths().next().unwrap().rtt, Some(ms(2)));
}

#[test]
fn the_standby_shares_no_hub_with_the_path_in_use_where_there_is_such_a_one() {
    let mut net = Net::seeded(1).hubs(&[ms(1), ms(2), ms(9)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(3));
    let way = |net: &Net| {
        let (paths, lane) = (&net.end(A).paths, net.end(A).paths.primary());
        assert_eq!(paths.standby(lane), paths.active(LaneId::STANDBY));
        (paths.active(lane), paths.standby(lane))
    };
    assert_eq!(way(&net), (Some(relay(0)), Some(relay(1))));
    let now = net.now;
    net.end_mut(A).paths.set_over(HubSlot(1), &[HubSlot(0)], now);
    net.run(secs(1));
    assert_eq!(way(&net), (Some(relay(0)), Some(relay(2))), "what leads over the hub in use is no standby");
    let now = net.now;
    net.end_mut(A).paths.set_over(HubSlot(2), &[HubSlot(7), HubSlot(0)], now);
    net.run(secs(1));
    net.fault(A, relay(2), Fault::Cut);
    net.run(secs(5));
    assert_eq!(way(&net), (Some(relay(0)), Some(relay(1))), "better than none");
    net.fault(A, relay(2), Fault::None);
    let now = net.now;
    net.end_mut(A).paths.set_over(HubSlot(2), &[], now);
    net.run(secs(30));
    assert_eq!(way(&net), (Some(relay(0)), Some(relay(2))));
}

#[test]
fn a_dead_hub_is_left_within_a_quarter_of_a_second() {
    let worst = worst_gap(&[(A, Fault::Cut), (B, Fault::Cut)], busy);
    println!("hub cut: {worst:?}");
    assert!(worst <= ms(250), "{worst:?}");
}

#[test]
fn a_one_way_cut_is_left_within_a_quarter_of_a_second() {
    let worst = worst_gap(&[(A, Fault::Cut)], busy);
    assert!(worst <= ms(250), "{worst:?}");
}

#[test]
fn a_cut_of_the_way_back_does_not_move_the_sender() {
    let mut net = busy(3);
    net.reset_gaps();
    net.fault(B, relay(0), Fault::Cut);
    net.run(secs(5));
    assert_eq!(net.end(A).active(), Some(relay(0)), "what A sends arrives");
    assert_eq!(net.end(B).active(), Some(relay(1)), "what B sends did not");
    assert!(net.longest_gap() <= ms(250), "{:?}", net.longest_gap());
}

#[test]
fn one_way_traffic_survives_a_cut_and_needs_no_answering_data() {
    let one_way = |seed| {
        let mut net = Net::seeded(seed).hubs(&[ms(1), ms(2)]);
        net.flow(A, Flow { every: ms(5), packets: 1, size: 1000 });
        net.run(secs(10));
        assert_eq!(net.moves(A), 0);
        net
    };
    let worst = worst_gap(&[(A, Fault::Cut), (B, Fault::Cut)], one_way);
    assert!(worst <= ms(250), "{worst:?}");
}

#[test]
fn a_hub_that_passes_probes_but_drops_data_is_left_within_half_a_second() {
    let worst = worst_gap(&[(A, Fault::Data), (B, Fault::Data)], busy);
    println!("data dropped: {worst:?}");
    assert!(worst <= ms(500), "{worst:?}");
}

#[test]
fn a_hub_that_drops_only_what_is_large_is_left_within_a_second() {
    let gap = |phase: u64| {
        let mut net = busy(phase);
        net.run(ms(phase * 13));
        net.fault(A, relay(0), Fault::Larger(200));
        net.fault(B, relay(0), Fault::Larger(200));
        let start = net.now;
        net.run_until(secs(3), |net| net.end(A).active() != Some(relay(0)));
        net.now - start
    };
    let worst = (0..16).map(gap).max().unwrap();
    println!("large data dropped: {worst:?}");
    assert!(worst <= secs(1), "{worst:?}");
}

#[test]
fn a_hub_that_swallows_data_is_left_for_a_path_that_died_not_long_ago_and_answers_again() {
    let mut net = Net::seeded(5).hubs(&[ms(1)]);
    for side in [A, B] {
        net.flow(side, Flow { every: ms(5), packets: 2, size: 1000 });
    }
    net.offer_direct();
    let reach = |net: &mut Net, path: PathKind, within: Duration| {
        net.run_until(within, |net| net.end(A).active() == Some(path));
        assert_eq!(net.end(A).active(), Some(path));
    };
    let strike = |net: &mut Net, fault: Fault| {
        net.fault(A, direct(B), fault);
        net.fault(B, direct(A), fault);
    };
    for _ in 0..4 {
        reach(&mut net, direct(B), secs(100));
        strike(&mut net, Fault::Cut);
        reach(&mut net, relay(0), secs(2));
        strike(&mut net, Fault::None);
    }
    net.run(secs(2));
    assert_eq!(net.end(A).active(), Some(relay(0)), "what died so often is not gone back to gracefully");
    net.fault(A, relay(0), Fault::Data);
    reach(&mut net, direct(B), secs(1));
}

#[test]
fn a_hub_that_swallows_data_is_not_gone_back_to_at_once() {
    let mut net = busy(5);
    net.fault(A, relay(0), Fault::Data);
    net.run(secs(60));
    assert_eq!(net.moves(A), 1);
}

#[test]
fn flows_are_back_on_datagrams_soon_after_the_last_hub_carries_data_in_them_again_however_often_that_befell() {
    let mut net = Net::seeded(18).hubs(&[ms(1), ms(2), ms(3)]).streams();
    for side in [A, B] {
        net.flow(side, Flow { every: ms(5), packets: 2, size: 1000 });
    }
    let udp = |net: &Net| [A, B].iter().all(|side| (0..3).any(|hub| net.end(*side).active() == Some(relay(hub))));
    for round in 0..20 {
        let start = net.now;
        net.run_until(secs(60), udp);
        assert!(udp(&net) && net.now - start <= secs(15), "round {round}: {:?}", net.now - start);
        net.run(secs(3));
        let used = [A, B].map(|side| net.end(side).active().unwrap());
        for side in [A, B] {
            used.iter().for_each(|path| net.fault(side, *path, Fault::Data));
        }
        net.run(secs(3));
        for side in [A, B] {
            used.iter().for_each(|path| net.fault(side, *path, Fault::None));
        }
    }
}

#[test]
fn a_site_where_no_datagram_carries_data_tries_it_again_ever_less_often() {
    let mut net = Net::seeded(19).hubs(&[ms(1), ms(2)]).streams();
    net.flow(A, Flow { every: ms(5), packets: 2, size: 1000 });
    net.run(secs(3));
    (0..2).for_each(|hub| net.fault(A, relay(hub), Fault::Data));
    net.run(secs(60));
    net.settle_events();
    net.run(secs(600));
    let tries =
        net.events(A).iter().filter(|event| matches!(event, PathEvent::Moved { reason: MoveReason::Evidence, .. }));
    let tries = tries.count();
    assert!((1..=16).contains(&tries), "{tries} times in ten minutes: {:?}", net.events(A));
}

#[test]
fn a_path_that_died_many_times_in_a_moment_has_its_flows_back_within_seconds() {
    let mut net = Net::seeded(20).hubs(&[ms(1), ms(30)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(5));
    for _ in 0..10 {
        for (fault, time) in [(Fault::Cut, ms(1000)), (Fault::None, ms(1500))] {
            net.fault(A, relay(0), fault);
            net.fault(B, relay(0), fault);
            net.run(time);
        }
    }
    let start = net.now;
    net.run_until(secs(60), |net| net.end(A).active() == Some(relay(0)));
    assert!(net.now - start <= secs(8), "{:?}", net.now - start);
}

#[test]
fn a_smaller_mtu_on_every_path_shrinks_the_datagram_and_moves_nothing() {
    let mut net = busy(6);
    assert_eq!(net.end(A).paths.mtu(), 1440);
    for hub in 0..3 {
        net.fault(A, relay(hub), Fault::Larger(1264));
    }
    let start = net.now;
    net.run_until(secs(5), |net| net.end(A).paths.mtu() <= 1264);
    assert!(net.now - start < secs(2), "{:?}", net.now - start);
    assert_eq!(net.end(A).paths.mtu(), 1232);
    net.run(secs(20));
    assert_eq!(net.moves(A), 0);
    for hub in 0..3 {
        net.fault(A, relay(hub), Fault::None);
    }
    net.run(secs(130));
    assert_eq!(net.end(A).paths.mtu(), 1440);
}

#[test]
fn a_direct_path_is_taken_gracefully_once_it_answered_three_times() {
    let mut net = busy(7);
    net.offer_direct();
    let start = net.now;
    net.run_until(secs(2), |net| net.end(A).active() == Some(direct(B)));
    assert!(net.now - start < ms(500), "{:?}", net.now - start);
    let events = net.events(A);
    let moved = PathEvent::Moved {
        lane: LaneId::STANDBY,
        path: Some(direct(B)),
        was: Some(relay(1)),
        reason: MoveReason::Better,
    };
    let promoted = PathEvent::Primary { lane: LaneId::STANDBY, was: LaneId::PRIMARY, reason: MoveReason::Better };
    assert_eq!(events, [moved, promoted], "the lane that carries flows never moves itself");
    net.run(secs(5));
    assert_eq!(net.end(A).paths.active(LaneId::PRIMARY), Some(relay(0)), "the old lane is the standby");
    assert_eq!(net.end(A).paths.standby(LaneId::STANDBY), Some(relay(0)));
    assert!(net.longest_gap() <= ms(10), "{:?}", net.longest_gap());
}

#[test]
fn a_direct_path_that_dies_is_left_at_once_and_not_taken_back_at_once() {
    let mut net = busy(8);
    net.offer_direct();
    net.run(secs(3));
    assert_eq!(net.end(A).active(), Some(direct(B)));
    net.reset_gaps();
    net.fault(A, direct(B), Fault::Cut);
    net.fault(B, direct(A), Fault::Cut);
    net.run(secs(1));
    assert_eq!(net.end(A).active(), Some(relay(0)));
    assert!(net.longest_gap() <= ms(250), "{:?}", net.longest_gap());
    net.fault(A, direct(B), Fault::None);
    net.fault(B, direct(A), Fault::None);
    let start = net.now;
    net.run_until(secs(60), |net| net.end(A).active() == Some(direct(B)));
    assert!((ms(500)..secs(15)).contains(&(net.now - start)), "{:?}", net.now - start);
}

#[test]
fn a_direct_path_without_any_hub_is_enough() {
    let mut net = Net::seeded(9);
    net.offer_direct();
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(1));
    assert_eq!(net.end(A).active(), Some(direct(B)));
    assert_eq!(net.end(A).paths.standby(LaneId::PRIMARY), None);
}

#[test]
fn a_candidate_that_never_answers_is_asked_ten_times() {
    let mut net = busy(10);
    net.fault(A, direct(B), Fault::Cut);
    net.end_mut(A).offer(direct(B));
    net.run(secs(600));
    assert_eq!(net.probes_by(A, direct(B)), 10);
    net.end_mut(A).offer(direct(B));
    net.run(secs(600));
    assert_eq!(net.probes_by(A, direct(B)), 20, "a new list is a new chance");
}

#[test]
fn candidates_that_change_all_the_time_share_one_budget() {
    let now = Instant::now();
    let mut paths = PeerPaths::new(PathConfig::default(), 1, now);
    let mut sent = 0;
    for i in 0..10_000_u32 {
        let now = now + ms(10) * i;
        let candidates = [0, 1, 2, 3, 4, 5, 6, 7].map(|j| {
            let [_, _, c, d] = (i * 8 + j).to_be_bytes();
            Endpoint::new(([203, 0, c, d], 1000).into())
        });
        paths.set_direct(&candidates, now);
        paths.handle_timeout(now);
        while let Some(probe) = paths.poll_transmit() {
            assert!(probe.size <= 100);
            sent += 1;
        }
    }
    assert!(sent <= 80 + 200, "{sent} probes in 100 seconds");
    assert!(paths.paths().count() <= MAX_DIRECT);
}

#[test]
fn senseless_candidates_are_never_probed() {
    let now = Instant::now();
    let mut paths = PeerPaths::new(PathConfig::default(), 1, now);
    let endpoint = |text: &str| Endpoint::new(text.parse().unwrap());
    let bad = ["127.0.0.1:1", "0.0.0.0:1", "224.0.0.1:1", "192.0.2.1:0", "255.255.255.255:1", "[::1]:1", "[ff02::1]:1"];
    paths.set_direct(&bad.map(endpoint), now);
    bad.map(endpoint).into_iter().for_each(|endpoint| paths.add_direct(endpoint, now));
    assert_eq!(paths.poll_transmit(), None);
    let many: Vec<Endpoint> = (1..100).map(|port| Endpoint::new(([192, 0, 2, 1], port).into())).collect();
    paths.set_direct(&many, now);
    assert_eq!(std::iter::from_fn(|| paths.poll_transmit()).count(), MAX_CANDIDATES);
}

#[test]
fn a_peer_that_appears_at_a_new_endpoint_is_followed() {
    let mut net = busy(11);
    net.offer_direct();
    net.run(secs(3));
    assert_eq!(net.end(A).active(), Some(direct(B)));
    net.reset_gaps();
    net.rebind_nat(B);
    net.run(secs(1));
    assert!(net.end(A).active().is_some_and(|path| path.is_direct() || path == relay(0)));
    assert!(net.longest_gap() <= ms(300), "{:?}", net.longest_gap());
    net.run(secs(10));
    assert!(net.end(A).active().is_some_and(PathKind::is_direct));
    assert_ne!(net.end(A).active(), Some(direct(B)));
}

#[test]
fn all_paths_dead_moves_nothing_and_the_first_to_answer_is_taken() {
    let mut net = busy(12);
    for hub in 0..3 {
        net.fault(A, relay(hub), Fault::Cut);
        net.fault(B, relay(hub), Fault::Cut);
    }
    net.run(secs(5));
    let before = net.probes(A);
    net.run(secs(600));
    assert_eq!(net.moves(A), 0);
    assert!(net.probes(A) - before < 600 * 5, "{} probes", net.probes(A) - before);
    net.fault(A, relay(2), Fault::None);
    net.fault(B, relay(2), Fault::None);
    let start = net.now;
    net.run_until(secs(5), |net| net.end(A).active() == Some(relay(2)));
    assert!(net.now - start < ms(1200), "{:?}", net.now - start);
    assert_eq!(net.moves(A), 1);
}

#[test]
fn a_hub_that_flaps_costs_at_most_two_changes_each_time() {
    let mut net = busy(13);
    for _ in 0..85 {
        let before = (net.changes(A), net.changes(B));
        net.fault(A, relay(0), Fault::Cut);
        net.fault(B, relay(0), Fault::Cut);
        net.run(secs(3));
        net.fault(A, relay(0), Fault::None);
        net.fault(B, relay(0), Fault::None);
        net.run(secs(4));
        assert!(net.changes(A) - before.0 <= 2 && net.changes(B) - before.1 <= 2);
    }
    assert!(net.changes(A) <= 6, "a hub that flaps is left alone: {}", net.changes(A));
}

#[test]
fn a_flapping_hub_beside_only_one_other_costs_at_most_two_changes_each_time() {
    let mut net = Net::seeded(14).hubs(&[ms(1), ms(30)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(5));
    for _ in 0..85 {
        let before = net.changes(A);
        net.fault(A, relay(0), Fault::Cut);
        net.fault(B, relay(0), Fault::Cut);
        net.run(secs(3));
        net.fault(A, relay(0), Fault::None);
        net.fault(B, relay(0), Fault::None);
        net.run(secs(4));
        assert!(net.changes(A) - before <= 2, "{:?}", net.events(A));
    }
}

#[test]
fn a_clearly_nearer_relay_is_taken_after_some_time_and_a_slightly_nearer_one_never() {
    let mut net = busy(15);
    net.set_delay(relay(0), ms(4));
    net.run(secs(30));
    assert_eq!(net.end(A).active(), Some(relay(0)));
    net.set_delay(relay(0), ms(60));
    let start = net.now;
    net.run_until(secs(30), |net| net.end(A).active() == Some(relay(1)));
    assert!((secs(1)..secs(3)).contains(&(net.now - start)), "{:?}", net.now - start);
    assert_eq!(net.longest_gap(), ms(10).max(net.longest_gap().min(ms(70))));
}

#[test]
fn the_round_trip_of_a_path_whose_answers_come_by_another_is_not_what_it_was_before() {
    let mut net = busy(17);
    net.set_delay(relay(1), ms(500));
    net.run(secs(20));
    let rtt = |net: &Net| net.end(A).paths.paths().find(|path| path.kind == relay(1)).and_then(|path| path.rtt);
    assert!(rtt(&net).is_some_and(|rtt| rtt > ms(900)), "{:?}", rtt(&net));
    net.fault(B, relay(1), Fault::Cut);
    net.set_delay(relay(1), ms(2));
    net.run(secs(20));
    assert!(rtt(&net).is_some_and(|rtt| rtt < ms(20)), "{:?}", rtt(&net));
}

#[test]
fn a_path_whose_round_trip_took_seconds_dies_like_any_other() {
    let mut net = busy(18);
    for _ in 0..10 {
        for delay in [ms(3500), ms(2000)] {
            net.set_delay(relay(2), delay);
            net.run(secs(8));
        }
    }
    let state = |net: &Net| net.end(A).paths.paths().find(|path| path.kind == relay(2)).map(|path| path.state);
    assert!(matches!(state(&net), Some(PathState::Valid | PathState::Suspect)), "{:?}", state(&net));
    net.fault(A, relay(2), Fault::Cut);
    net.run(secs(12));
    assert_eq!(state(&net), Some(PathState::Dead));
}

#[test]
fn delay_that_follows_the_load_does_not_make_flows_oscillate() {
    let mut net = busy(16);
    for _ in 0..600 {
        for side in [A, B] {
            let loaded = net.end(side).active();
            for hub in 0..3 {
                net.set_delay_from(side, relay(hub), if loaded == Some(relay(hub)) { ms(80) } else { ms(2) });
            }
        }
        net.run(secs(1));
    }
    assert!(net.changes(A) <= 16, "{} changes in 10 minutes", net.changes(A));
}

#[test]
fn streams_are_used_while_udp_is_blocked_and_left_when_it_is_not() {
    let mut net = Net::seeded(17).hubs(&[ms(1), ms(2)]).streams();
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.flow(B, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(3));
    assert_eq!(net.end(A).active(), Some(relay(0)));
    // At A's site: nothing of A's gets out over UDP, and nothing gets in until the hubs use A's streams.
    net.reset_gaps();
    for hub in 0..2 {
        net.fault(A, relay(hub), Fault::Cut);
        net.fault(B, relay(hub), Fault::Cut);
        net.fault(B, tls(hub), Fault::Cut);
    }
    net.run(ms(900));
    for hub in 0..2 {
        net.fault(B, relay(hub), Fault::None);
        net.fault(B, tls(hub), Fault::None);
    }
    net.run(secs(5));
    assert!([Some(tls(0)), Some(tls(1))].contains(&net.end(A).active()), "{:?}", net.end(A).active());
    assert!(net.longest_gap() <= ms(1500), "{:?}", net.longest_gap());
    for hub in 0..2 {
        net.fault(A, relay(hub), Fault::None);
    }
    net.reset_gaps();
    let start = net.now;
    let udp = |net: &Net| [Some(relay(0)), Some(relay(1))].contains(&net.end(A).active());
    net.run_until(secs(30), udp);
    assert!(udp(&net) && net.now - start < secs(10), "{:?}", net.now - start);
    assert!(net.longest_gap() <= ms(20), "{:?}", net.longest_gap());
}

#[test]
fn a_draining_hub_is_left_without_a_gap_and_not_gone_back_to() {
    let mut net = busy(18);
    net.reset_gaps();
    let now = net.now;
    net.end_mut(A).paths.drain(HubSlot(0), now);
    net.end_mut(B).paths.drain(HubSlot(0), now);
    net.run(ms(50));
    assert_eq!(net.end(A).active(), Some(relay(1)));
    assert!(
        net.events(A).contains(&PathEvent::Primary {
            lane: LaneId::STANDBY,
            was: LaneId::PRIMARY,
            reason: MoveReason::Drain
        }),
        "gracefully: {:?}",
        net.events(A)
    );
    net.run(secs(30));
    assert_eq!(net.end(A).active(), Some(relay(1)));
    assert_eq!(net.end(A).paths.standby(net.end(A).paths.primary()), Some(relay(2)));
    assert!(net.longest_gap() <= ms(15), "{:?}", net.longest_gap());
}

#[test]
fn a_draining_hub_is_left_gracefully_for_one_that_failed_not_long_ago() {
    let mut net = Net::seeded(18).hubs(&[ms(1), ms(2)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(3));
    for fault in [Fault::Cut, Fault::None] {
        net.fault(A, relay(1), fault);
        net.fault(B, relay(1), fault);
        net.run(secs(2));
    }
    net.reset_gaps();
    let now = net.now;
    net.end_mut(A).paths.drain(HubSlot(0), now);
    net.run(ms(50));
    assert_eq!(net.end(A).active(), Some(relay(1)));
    assert!(net.events(A).iter().any(|event| matches!(event, PathEvent::Primary { .. })), "{:?}", net.events(A));
}

#[test]
fn a_path_that_is_known_dead_is_left_in_the_same_instant() {
    let mut net = busy(19);
    let now = net.now;
    net.end_mut(A).paths.fail(relay(0), now);
    assert_eq!(net.end(A).active(), Some(relay(1)));
    let moved = PathEvent::Moved {
        lane: LaneId::PRIMARY,
        path: Some(relay(1)),
        was: Some(relay(0)),
        reason: MoveReason::Failed,
    };
    assert_eq!(net.end_mut(A).paths.poll_event(), Some(moved));
}

#[test]
fn a_relay_that_is_no_longer_listed_is_left_in_the_same_instant() {
    let mut net = busy(20);
    let now = net.now;
    let rest = [Relay { hub: HubSlot(2), leg: Leg::Udp, rtt: ms(3) }];
    net.end_mut(A).paths.set_relays(&rest, now);
    assert_eq!(net.end(A).active(), Some(relay(2)));
    net.end_mut(A).paths.set_relays(&[], now);
    assert_eq!(net.end(A).active(), None);
    net.end_mut(A).paths.set_relays(&rest, now);
    assert_eq!(net.end(A).active(), Some(relay(2)));
}

#[test]
fn listing_the_same_relays_again_changes_nothing() {
    let mut net = busy(21);
    let (now, rest) = (net.now, net.relays());
    for _ in 0..100 {
        net.end_mut(A).paths.set_relays(&rest, now);
    }
    assert_eq!(net.end_mut(A).paths.poll_event(), None);
    assert_eq!(net.end_mut(A).paths.poll_transmit(), None);
}

#[test]
fn a_hub_that_comes_back_first_is_taken_before_one_that_was_better_and_is_silent() {
    let mut net = busy(30);
    for hub in 0..3 {
        net.fault(A, relay(hub), Fault::Cut);
        net.fault(B, relay(hub), Fault::Cut);
        net.run(ms(100));
    }
    net.run(secs(20));
    net.fault(A, relay(2), Fault::None);
    net.fault(B, relay(2), Fault::None);
    net.run(secs(2));
    assert_eq!(net.end(A).active(), Some(relay(2)));
    net.settle_events();
    net.run(secs(20));
    assert_eq!(net.moves(A), 0, "{:?}", net.events(A));
}

#[test]
fn an_endpoint_that_is_no_candidate_and_stopped_answering_is_given_up() {
    let mut net = busy(31);
    net.offer_direct();
    net.run(secs(3));
    let now = net.now;
    net.end_mut(A).paths.set_direct(&[], now);
    net.end_mut(B).paths.set_direct(&[], now);
    net.run(secs(3));
    assert_eq!(net.end(A).active(), Some(direct(B)), "it answers, listed or not");
    net.fault(A, direct(B), Fault::Cut);
    net.fault(B, direct(A), Fault::Cut);
    net.run(secs(120));
    let before = net.probes_by(A, direct(B));
    net.run(secs(120));
    assert_eq!(net.probes_by(A, direct(B)), before);
}

#[test]
fn a_peer_that_restarts_is_not_taken_for_a_black_hole() {
    let mut net = busy(22);
    net.restart(B);
    net.run(secs(5));
    assert_eq!(net.moves(A), 0, "{:?}", net.events(A));
    assert_eq!(net.end(B).active(), Some(relay(0)));
}

#[test]
fn a_peer_that_is_away_for_a_minute_is_found_again_within_a_second() {
    let mut net = busy(23);
    net.silence(B);
    net.run(secs(60));
    assert_eq!(net.moves(A), 0);
    net.restart(B);
    let start = net.now;
    net.reset_gaps();
    net.run_until(secs(5), |net| net.end(A).paths.paths().next().unwrap().state == PathState::Valid);
    assert!(net.now - start <= secs(1), "{:?}", net.now - start);
}

#[test]
fn an_idle_pair_sends_almost_nothing_and_then_nothing() {
    let mut net = Net::seeded(24).hubs(&[ms(1), ms(2), ms(3)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(3));
    net.stop_flows();
    net.run(secs(11));
    let before = net.probes(A);
    net.run(secs(100));
    let idle = net.probes(A) - before;
    assert!((4..=20).contains(&idle), "{idle} probes in 100 s: two paths are kept open");
    net.run(secs(100));
    assert_eq!(net.events(A).last(), Some(&PathEvent::Idle));
    let before = net.probes(A);
    net.run(secs(3600));
    assert_eq!(net.probes(A), before);
    assert_eq!(net.events(A).iter().filter(|event| **event == PathEvent::Idle).count(), 1);
    assert_eq!(net.end(A).paths.poll_timeout(), None);
}

/// A keeps B warm for so long, without a packet.
fn keep_warm(net: &mut Net, time: Duration) {
    let end = net.now + time;
    while net.now < end {
        let now = net.now;
        net.end_mut(A).paths.keep_warm(now + secs(10), now);
        net.run(secs(5));
    }
}

#[test]
fn whoever_is_kept_warm_is_at_rest_when_that_is_over_each_time_and_so_is_its_peer() {
    let mut net = Net::seeded(35).hubs(&[ms(1), ms(2)]);
    let rests = |net: &Net, side| net.events(side).iter().filter(|event| **event == PathEvent::Idle).count();
    for time in 1..4 {
        keep_warm(&mut net, secs(600));
        assert_eq!((rests(&net, A), rests(&net, B)), (time - 1, time - 1), "both are at hand");
        net.run(secs(240));
        assert_eq!((rests(&net, A), rests(&net, B)), (time, time), "nobody wants anything");
        let before = (net.probes(A), net.probes(B));
        net.run(secs(3600));
        assert_eq!((net.probes(A), net.probes(B)), before, "nobody keeps the other awake");
    }
}

#[test]
fn a_way_that_is_given_to_a_peer_at_rest_is_at_rest_soon() {
    let mut net = Net::seeded(36).hubs(&[ms(1)]);
    net.run(secs(240));
    assert_eq!(net.events(A).last(), Some(&PathEvent::Idle));
    net.settle_events();
    let (relays, now) = (net.relays(), net.now);
    net.end_mut(A).paths.set_relays(&[], now);
    net.end_mut(A).paths.set_relays(&relays, now);
    net.run(secs(60));
    assert_eq!(net.events(A).iter().filter(|event| **event == PathEvent::Idle).count(), 1, "{:?}", net.events(A));
}

#[test]
fn traffic_after_a_long_silence_finds_a_hub_that_died_meanwhile_within_half_a_second() {
    for phase in 0..8 {
        let mut net = Net::seeded(25 + phase).hubs(&[ms(1), ms(2)]);
        net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
        net.run(secs(3));
        net.stop_flows();
        net.run(secs(60));
        net.fault(A, relay(0), Fault::Cut);
        net.fault(B, relay(0), Fault::Cut);
        net.run(ms(phase * 500));
        net.reset_gaps();
        net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
        net.run(secs(2));
        assert_eq!(net.end(A).active(), Some(relay(1)));
        assert!(net.longest_gap() <= ms(500), "{:?}", net.longest_gap());
    }
}

#[test]
fn a_hub_by_which_nothing_arrives_is_told_of_again_and_again_until_its_label_is_another() {
    let mut net = Net::seeded(27).hubs(&[ms(1), ms(2)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(3));
    net.fault(A, relay(1), Fault::Cut);
    net.run(secs(4));
    assert_eq!(net.end(A).silent(), []);
    net.run(secs(10));
    assert_eq!(net.end(A).silent(), [HubSlot(1); 2]);
    net.fault(A, relay(1), Fault::None);
    let now = net.now;
    net.end_mut(A).paths.renew_relay(HubSlot(1), now);
    net.run(secs(1));
    let state = net.end(A).paths.paths().find(|path| path.kind == relay(1)).map(|path| path.state);
    assert_eq!(state, Some(PathState::Valid));
    net.run(secs(10));
    assert_eq!(net.end(A).silent(), [HubSlot(1); 2]);
}

#[test]
fn a_hub_that_answers_by_one_leg_is_not_silent() {
    let mut net = Net::seeded(28).hubs(&[ms(1)]).streams();
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(3));
    net.fault(A, relay(0), Fault::Cut);
    net.run(secs(20));
    assert_eq!((net.end(A).active(), net.end(A).silent()), (Some(tls(0)), vec![]));
}

#[test]
fn probes_of_an_active_pair_cost_little() {
    let mut net = Net::seeded(26).hubs(&[ms(1), ms(2), ms(3)]);
    net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
    net.run(secs(5));
    let before = (net.probes(A), net.probe_bytes(A));
    net.run(secs(10));
    let (probes, bytes) = (net.probes(A) - before.0, net.probe_bytes(A) - before.1);
    assert!((300..=340).contains(&probes), "{probes} probes in 10 s");
    assert!(bytes < 30_000, "{bytes} bytes in 10 s");
    net.end_mut(A).paths.set_stretch(NonZeroU32::new(4).unwrap());
    net.run(secs(2));
    let before = net.probes(A);
    net.run(secs(10));
    assert!(net.probes(A) - before < 100);
}

#[test]
fn a_lying_reply_about_paths_that_do_not_exist_is_harmless() {
    let mut net = busy(27);
    let now = net.now;
    for i in 0..1000_u16 {
        let received = Some(crate::frame::Received { packets: i.into(), units: u32::MAX, heard: u32::MAX });
        let reply = ProbeReply { path: PathId(i), seq: u32::from(i) * 7, instance: i, about: PathId(i / 2), received };
        net.end_mut(A).paths.handle_reply(reply, relay((i % 5) as u8), now);
    }
    net.run(secs(5));
    assert_eq!(net.end(A).active(), Some(relay(0)));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut net = busy(seed);
        net.lose(0.1);
        net.run(secs(30));
        (net.probes(A), net.probes(B), net.probe_bytes(A), net.events(A).to_vec())
    };
    assert_eq!(trace(28), trace(28));
    assert_ne!(trace(28).2, trace(29).2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn ten_percent_loss_for_ten_minutes_moves_nothing(
        seed: u64,
        delays in prop::array::uniform3(1_u64..60),
        every in 5_u64..300,
        size in 64_u64..1440,
        both_ways: bool,
    ) {
        let mut net = Net::seeded(seed).hubs(&delays.map(ms));
        net.flow(A, Flow { every: ms(every), packets: 1, size });
        if both_ways {
            net.flow(B, Flow { every: ms(10), packets: 2, size: 96 });
        }
        net.run(secs(20));
        net.settle_events();
        net.lose(0.1);
        net.run(secs(600));
        prop_assert_eq!(net.changes(A), 0, "{:?}", net.events(A));
        prop_assert_eq!(net.changes(B), 0, "{:?}", net.events(B));
        prop_assert_eq!(net.end(A).paths.mtu(), 1440);
    }

    #[test]
    fn a_dead_hub_is_left_in_time_whatever_the_delays_and_the_phase(
        seed: u64,
        delays in prop::array::uniform3(1_u64..40),
        jitter in 0_u64..4,
        phase in 0_u64..2000,
        loss in 0.0_f64..0.05,
    ) {
        let mut net = Net::seeded(seed).hubs(&delays.map(ms)).jitter(ms(jitter));
        net.flow(A, Flow { every: ms(10), packets: 1, size: 128 });
        net.flow(B, Flow { every: ms(10), packets: 1, size: 128 });
        net.lose(loss);
        net.run(secs(3) + ms(phase));
        let used = net.end(A).active().unwrap();
        net.reset_gaps();
        net.fault(A, used, Fault::Cut);
        net.fault(B, used, Fault::Cut);
        net.run(secs(3));
        prop_assert_ne!(net.end(A).active(), Some(used));
        let slowest = ms(*delays.iter().max().unwrap());
        prop_assert!(net.longest_gap() <= ms(220) + slowest * 6, "{:?}", net.longest_gap());
    }

    #[test]
    fn whatever_fails_and_heals_traffic_flows_again_soon_after(
        seed: u64,
        chaos in prop::collection::vec((0_u8..3, any::<bool>(), 0_u8..5, 10_u64..3000), 1..40),
    ) {
        let mut net = busy(seed);
        net.offer_direct();
        for (hub, from_a, fault, time) in chaos {
            let fault = [Fault::None, Fault::Cut, Fault::Data, Fault::Larger(200), Fault::Larger(1300)][fault as usize];
            net.fault(if from_a { A } else { B }, relay(hub), fault);
            net.run(ms(time));
        }
        for hub in 0..3 {
            net.fault(A, relay(hub), Fault::None);
            net.fault(B, relay(hub), Fault::None);
        }
        net.run(ms(1500));
        net.reset_gaps();
        net.run(secs(5));
        prop_assert!(net.longest_gap() <= ms(100), "{:?} {:?}", net.longest_gap(), net.events(A));
    }
}
