//! Flows shared out over the hubs.

use super::*;

/// Twelve flows each way over hubs of these delays.
fn spread(seed: u64, delays: &[Duration]) -> Net {
    let mut net = Net::seeded(seed).hubs(delays).spread();
    for _ in 0..12 {
        net.flow(A, Flow { every: ms(5), packets: 2, size: 1000 });
        net.flow(B, Flow { every: ms(10), packets: 1, size: 200 });
    }
    net.run(secs(3));
    net.reset_gaps();
    net
}

fn three_hubs(seed: u64) -> Net {
    spread(seed, &[ms(2), ms(3), ms(4)])
}

/// The paths of every flow since the last reset.
fn ways(net: &Net) -> Vec<Vec<PathKind>> {
    (0..12).map(|flow| net.end(A).ways(flow)).collect()
}

fn cut(net: &mut Net, hub: u8, fault: Fault) {
    net.fault(A, relay(hub), fault);
    net.fault(B, relay(hub), fault);
}

#[test]
fn flows_are_shared_out_evenly_and_each_stays_on_its_hub() {
    for hubs in [2, 3] {
        let mut net = spread(1, &[ms(2), ms(3), ms(4)][..hubs]);
        net.run(secs(60));
        assert_eq!(net.end(A).carriers(), hubs);
        for hub in 0..hubs {
            let share = net.end(A).share(relay(hub as u8));
            assert!((share * hubs as f64 - 1.0).abs() < 0.01, "hub {hub} of {hubs}: {share}");
        }
        assert!(ways(&net).iter().all(|ways| ways.len() == 1), "{:?}", ways(&net));
        assert!(net.events(A).is_empty(), "{:?}", net.events(A));
        for lane in LaneId::all().filter(|lane| net.end(A).paths.carries(*lane)) {
            let (path, standby) = (net.end(A).paths.active(lane), net.end(A).paths.standby(lane));
            assert!(standby.is_some() && standby.unwrap().hub() != path.unwrap().hub(), "{path:?} {standby:?}");
        }
    }
}

#[test]
fn only_the_flows_of_a_hub_that_dies_move_and_they_come_back_by_a_lane_of_their_own() {
    for fault in [Fault::Cut, Fault::Data] {
        let mut net = three_hubs(2);
        net.run(secs(1));
        let before = ways(&net);
        net.reset_gaps();
        cut(&mut net, 1, fault);
        net.run(secs(2));
        net.reset_gaps();
        net.run(secs(3));
        assert_eq!(net.end(A).share(relay(1)), 0.0, "{fault:?}");
        for (before, now) in before.iter().zip(ways(&net)) {
            assert!(*before == [relay(1)] || *before == now, "{fault:?}: {before:?} {now:?}");
        }
        let lanes = |net: &Net| net.events(A).len();
        cut(&mut net, 1, Fault::None);
        net.run_until(secs(60), |net| net.end(A).share(relay(1)) > 0.0);
        net.run(secs(2));
        net.reset_gaps();
        net.run(secs(5));
        assert_eq!((ways(&net), lanes(&net)), (before, 0), "{fault:?}");
    }
}

#[test]
fn a_hub_that_died_often_has_its_share_back_within_half_a_minute() {
    let mut net = Net::seeded(6).hubs(&[ms(2), ms(3), ms(4)]).spread();
    (0..6).for_each(|_| net.flow(A, Flow { every: ms(50), packets: 1, size: 200 }));
    for _ in 0..8 {
        net.run(secs(40));
        cut(&mut net, 1, Fault::Cut);
        net.run(secs(1));
        cut(&mut net, 1, Fault::None);
    }
    net.reset_gaps();
    let start = net.now;
    net.run_until(secs(200), |net| net.end(A).share(relay(1)) > 0.0);
    assert!(net.now - start <= secs(30), "{:?}", net.now - start);
}

#[test]
fn a_dead_hub_among_several_is_left_within_a_quarter_of_a_second() {
    let gap = |phase: u64| {
        let mut net = three_hubs(phase);
        net.run(ms(phase * 7));
        let start = net.now;
        cut(&mut net, 0, Fault::Cut);
        let left = |net: &Net| {
            LaneId::all().all(|lane| !net.end(A).paths.carries(lane) || net.end(A).paths.active(lane) != Some(relay(0)))
        };
        net.run_until(secs(3), left);
        net.now - start
    };
    let worst = (0..16).map(gap).max().unwrap();
    assert!(worst <= ms(250), "{worst:?}");
}

#[test]
fn a_cut_of_one_hubs_way_back_moves_nobody_who_sends() {
    let mut net = three_hubs(3);
    net.fault(B, relay(1), Fault::Cut);
    net.run(secs(10));
    assert!(net.events(A).is_empty(), "{:?}", net.events(A));
    assert!(net.end(A).share(relay(1)) > 0.3);
    net.reset_gaps();
    net.run(secs(1));
    assert_eq!(net.end(B).share(relay(1)), 0.0);
}

#[test]
fn a_cut_of_the_way_back_by_one_of_two_hubs_moves_nobody_who_sends() {
    for seed in 0..24 {
        for hub in 0..2 {
            let mut net = spread(seed, &[ms(2), ms(3)]);
            net.run(ms(seed * 7));
            net.fault(B, relay(hub), Fault::Cut);
            net.run(secs(10));
            assert!(net.events(A).is_empty(), "seed {seed}, hub {hub}: {:?}", net.events(A));
            assert!(net.end(A).share(relay(hub)) > 0.4, "seed {seed}, hub {hub}");
        }
    }
}

#[test]
fn a_hub_that_is_much_further_away_gets_no_share_and_one_that_becomes_so_loses_it() {
    let mut net = spread(4, &[ms(2), ms(40)]);
    net.run(secs(5));
    assert_eq!((net.end(A).carriers(), net.end(A).share(relay(1))), (1, 0.0));
    let mut net = spread(5, &[ms(2), ms(3)]);
    net.set_delay(relay(1), ms(60));
    net.run(secs(10));
    net.reset_gaps();
    net.run(secs(20));
    assert_eq!((net.end(A).carriers(), net.end(A).share(relay(1))), (1, 0.0));
    assert!(net.events(A).is_empty(), "{:?}", net.events(A));
}

#[test]
fn all_flows_take_a_direct_path_and_are_shared_out_again_when_it_dies() {
    let mut net = three_hubs(6);
    net.offer_direct();
    net.run(secs(2));
    net.reset_gaps();
    net.run(secs(5));
    assert_eq!((net.end(A).carriers(), net.end(A).share(direct(B))), (1, 1.0));
    net.fault(A, direct(B), Fault::Cut);
    net.fault(B, direct(A), Fault::Cut);
    net.run(secs(5));
    assert!(net.longest_gap() <= ms(250), "{:?}", net.longest_gap());
    net.reset_gaps();
    net.run(secs(5));
    assert_eq!(net.end(A).carriers(), 3);
    assert!((0..3).all(|hub| net.end(A).share(relay(hub)) > 0.3));
}

#[test]
fn a_lane_that_nothing_is_sent_by_is_given_up_after_three_minutes() {
    let mut net = Net::seeded(7).hubs(&[ms(2), ms(3), ms(4)]).spread();
    for _ in 0..12 {
        net.flow(A, Flow { every: ms(50), packets: 1, size: 1000 });
    }
    net.run(secs(3));
    assert_eq!(net.end(A).carriers(), 3);
    net.stop_flows();
    net.flow(A, Flow { every: ms(50), packets: 1, size: 1000 });
    net.run(secs(170));
    assert_eq!(net.end(A).carriers(), 3);
    net.run(secs(20));
    assert_eq!(net.end(A).carriers(), 1, "one flow needs one lane");
    assert_eq!(LaneId::all().filter(|lane| net.end(A).paths.active(*lane).is_some()).count(), 2, "and a standby");
}

#[test]
fn one_flow_opens_one_lane() {
    let mut net = Net::seeded(8).hubs(&[ms(2), ms(3), ms(4)]).spread();
    net.flow(A, Flow { every: ms(10), packets: 1, size: 1000 });
    net.run(secs(5));
    assert_eq!(net.end(A).carriers(), 1);
}

#[test]
fn flows_leave_a_draining_hub_without_a_gap_and_those_of_other_hubs_stay() {
    for hubs in [2, 3] {
        let mut net = spread(9, &[ms(2), ms(3), ms(4)][..hubs]);
        net.run(secs(1));
        let before = ways(&net);
        net.reset_gaps();
        let now = net.now;
        net.end_mut(A).paths.drain(HubSlot(0), now);
        net.end_mut(B).paths.drain(HubSlot(0), now);
        net.run(ms(100));
        net.reset_gaps();
        net.run(secs(5));
        assert_eq!(net.end(A).share(relay(0)), 0.0);
        for (before, now) in before.iter().zip(ways(&net)) {
            assert!(*before == [relay(0)] || *before == now, "{before:?} {now:?}");
        }
        assert!(net.longest_gap() <= ms(15), "{:?}", net.longest_gap());
    }
}

#[test]
fn flows_are_shared_out_over_streams_where_udp_is_blocked_and_never_over_both() {
    let mut net = Net::seeded(10).hubs(&[ms(2), ms(3)]).streams().spread();
    for _ in 0..12 {
        net.flow(A, Flow { every: ms(10), packets: 1, size: 1000 });
    }
    net.run(secs(3));
    net.reset_gaps();
    net.run(secs(5));
    assert!((0..2).all(|hub| net.end(A).share(relay(hub)) > 0.4));
    (0..2).for_each(|hub| net.fault(A, relay(hub), Fault::Cut));
    net.run(secs(10));
    net.reset_gaps();
    net.run(secs(5));
    assert!((0..2).all(|hub| net.end(A).share(tls(hub)) > 0.4), "{:?}", net.events(A));
}

#[test]
fn with_one_hub_spreading_changes_nothing() {
    let mut net = spread(11, &[ms(2)]);
    net.run(secs(5));
    assert_eq!((net.end(A).carriers(), net.end(A).share(relay(0))), (1, 1.0));
    assert!(net.events(A).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn ten_percent_loss_for_five_minutes_moves_no_lane(seed: u64, delays in prop::array::uniform3(1_u64..12)) {
        let mut net = spread(seed, &delays.map(ms));
        net.run(secs(20));
        net.settle_events();
        net.lose(0.1);
        net.run(secs(300));
        prop_assert!(net.events(A).is_empty(), "{:?}", net.events(A));
    }

    #[test]
    fn whatever_fails_and_heals_all_flows_go_on_soon_after(
        seed: u64,
        chaos in prop::collection::vec((0_u8..3, any::<bool>(), 0_u8..5, 10_u64..3000), 1..40),
    ) {
        let mut net = three_hubs(seed);
        net.offer_direct();
        for (hub, from_a, fault, time) in chaos {
            let fault = [Fault::None, Fault::Cut, Fault::Data, Fault::Larger(200), Fault::Larger(1300)][fault as usize];
            net.fault(if from_a { A } else { B }, relay(hub), fault);
            net.run(ms(time));
        }
        (0..3).for_each(|hub| cut(&mut net, hub, Fault::None));
        net.run(ms(1500));
        net.reset_gaps();
        net.run(secs(5));
        prop_assert!(net.longest_gap() <= ms(100), "{:?} {:?}", net.longest_gap(), net.events(A));
        prop_assert!((1..=3).contains(&net.end(A).carriers()));
    }
}
