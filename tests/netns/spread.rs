//! The flows of one pair go by several hubs at once; a hub that dies costs its own flows a moment and no other flow a
//! packet, and one that is stopped costs nobody one.
//!
//! ```text
//!       h1     h2     h3
//!         \     |     /
//!        router (core)         its counters say which hub carries how much
//!         /           \
//!   symmetric NAT   symmetric NAT      no direct path
//!        |             |
//!    gateway a      gateway b          spread = "on" at both
//! ```

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "helpers of tests")]

mod datagrams;
mod support;

use std::time::{Duration, Instant};

use datagrams::{Datagrams, stop_all};
use flatlan_lab::{Lab, Probe, RunOptions};
use serde_json::Value;
use support::{PATIENCE, gateway, joined, starved, wait_status};

/// A lab whose two nodes spread their flows over these hubs.
fn spreading(hubs: &[&str]) -> Lab {
    let lab = joined(hubs);
    for site in ["a", "b"] {
        let config = lab.site(site).unwrap().state().with_extension("toml");
        std::fs::write(&config, "spread = \"on\"\n").unwrap();
        lab.up_with(site, &RunOptions::args(["--config", config.to_str().unwrap()])).unwrap();
    }
    lab.wait_reachable(gateway(&lab, "a"), lab.site("b").unwrap().virtual_ip().into(), PATIENCE).unwrap();
    lab
}

/// The hubs by which the lanes go that carry flows from one site to another.
fn carriers(status: &Value, peer: &str) -> Option<Vec<String>> {
    let peer = status["peers"].as_array()?.iter().find(|entry| entry["name"] == peer)?;
    let lanes = peer["lanes"].as_array()?.iter().filter(|lane| lane["flows"] == true);
    let hub = |lane: &Value| Some(lane["path"]["via"][0].as_str()?.to_owned());
    let mut hubs = lanes.map(hub).collect::<Option<Vec<String>>>()?;
    hubs.sort();
    Some(hubs)
}

/// Waits until the flows of both directions go by these hubs, over UDP, and each lane has where to go.
fn wait_carriers(lab: &Lab, hubs: &[&str]) {
    for (site, peer) in [("a", "b"), ("b", "a")] {
        wait_status(lab, site, &format!("lanes by {hubs:?}"), |status| {
            let entry = status["peers"].as_array()?.iter().find(|entry| entry["name"] == peer)?;
            let ready = |lane: &Value| {
                let path =
                    |path: &Value| path["rtt_ms"].is_number() && path["mtu"].is_number() && path["loss"].is_number();
                path(&lane["path"]) && (lane["flows"] == false || path(&lane["standby"]))
            };
            let ready = entry["lanes"].as_array()?.iter().all(ready);
            (ready && carriers(status, peer)? == hubs).then_some(())
        });
    }
}

/// Datagrams from one site to the other.
fn talk(lab: &Lab, from: &str, to: &str) -> Datagrams {
    let address = lab.site(to).unwrap().virtual_ip();
    Datagrams::start(gateway(lab, from), gateway(lab, to), address.into(), FLOWS, SIZE, EACH)
}

#[test]
fn each_hub_carries_its_part_of_a_pair_and_one_that_is_killed_costs_only_its_own_flows() {
    let lab = spreading(&["h1", "h2", "h3"]);
    let wires = lab.watch_traffic(Duration::from_millis(50)).unwrap();
    let (near, far) = (gateway(&lab, "a"), gateway(&lab, "b"));
    let address = lab.site("b").unwrap().virtual_ip().into();
    let echo = |_| Probe::tcp_echo(near, far, address, Duration::from_millis(20)).unwrap();
    let connections: Vec<Probe> = (0..12).map(echo).collect();
    let talks = [talk(&lab, "a", "b"), talk(&lab, "b", "a")];
    wait_carriers(&lab, &["h1", "h2", "h3"]);

    let from = Instant::now();
    talks[0].wait_arrivals(1000, PATIENCE);
    let crossed = wires.between(from, Instant::now());
    let parts: Vec<u64> = ["h1", "h2", "h3"].map(|hub| crossed.of(hub).received_bytes).to_vec();
    let all: u64 = parts.iter().sum();
    assert!(parts.iter().all(|part| part * 100 >= all * 15), "by hub: {parts:?}");

    lab.kill("h2").unwrap();
    let without =
        |status: &Value, peer: &str| carriers(status, peer).filter(|hubs| !hubs.iter().any(|hub| hub == "h2"));
    wait_status(&lab, "a", "lanes without h2", |status| without(status, "b"));
    wait_status(&lab, "b", "lanes without h2", |status| without(status, "a"));
    for connection in &connections {
        connection.wait_answers(20, PATIENCE).unwrap();
    }
    talks[0].wait_arrivals(300, PATIENCE);
    let arrived = stop_all(talks);
    let starved = starved(&lab, &["a", "b"]);
    for arrivals in arrived {
        let missing = arrivals.missing();
        let hit = missing.iter().filter(|missing| **missing > 0).count();
        let overrun = arrivals.overrun();
        println!("flows that lost something: {hit} of {FLOWS}, overrun {overrun}: {missing:?}");
        // a connection that breaks says at once that the hub is gone: it may be that nothing was under way
        assert!(hit * 100 <= FLOWS * 60 || overrun + starved > 0, "the flows of one hub of three: {missing:?}");
    }
    for connection in connections {
        assert_eq!(connection.stop().broken(), None);
    }
}

#[test]
fn two_hubs_carry_a_third_each_at_the_least_and_one_that_is_stopped_loses_nothing() {
    let lab = spreading(&["h1", "h2"]);
    let wires = lab.watch_traffic(Duration::from_millis(50)).unwrap();
    let talks = [talk(&lab, "a", "b"), talk(&lab, "b", "a")];
    wait_carriers(&lab, &["h1", "h2"]);

    let from = Instant::now();
    talks[0].wait_arrivals(1000, PATIENCE);
    let crossed = wires.between(from, Instant::now());
    let parts: Vec<u64> = ["h1", "h2"].map(|hub| crossed.of(hub).received_bytes).to_vec();
    let all: u64 = parts.iter().sum();
    assert!(parts.iter().all(|part| part * 100 >= all * 30), "by hub: {parts:?}");

    let ended = lab.process("h1").unwrap().stop(PATIENCE).unwrap();
    assert!(ended.success(), "{ended}");
    wait_carriers_without_standby(&lab, "h2");
    talks[0].wait_arrivals(300, PATIENCE);
    let arrived = stop_all(talks);
    let starved = starved(&lab, &["a", "b"]);
    for arrivals in arrived {
        let lost = arrivals.lost().saturating_sub(starved);
        println!("{} sent, {lost} lost, longest gap of a flow {:?}", arrivals.sent(), arrivals.longest_gap());
        assert_eq!((lost, arrivals.doubled()), (0, 0));
    }
}

/// Waits until all flows go by this hub, the only one that is left.
fn wait_carriers_without_standby(lab: &Lab, hub: &str) {
    for (site, peer) in [("a", "b"), ("b", "a")] {
        wait_status(lab, site, "all flows by one hub", |status| {
            carriers(status, peer).filter(|hubs| hubs.iter().all(|by| by == hub))
        });
    }
}

/// So many flows that none of the hubs gets much less than its part by chance.
const FLOWS: usize = 100;
const SIZE: usize = 200;
const EACH: Duration = Duration::from_millis(2);
