//! Losing the hub in use, in every way, under running flows that must not notice more than a pause.
//!
//! ```text
//!         hub h1          hub h2        the flows cross one of them: the router's counters say which
//!              \          /
//!               router (core)
//!              /          \
//!     symmetric NAT    symmetric NAT    no direct path
//!            |              |
//!        gateway a      gateway b       ping, TCP echo, bulk transfer from a to b
//! ```
//!
//! How long the pauses are is measured by the benchmark `failover`; here the connections must live, the bytes be
//! equal, and the traffic be on the other hub afterwards.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

#[path = "flows.rs"]
mod flows;
#[path = "support.rs"]
mod support;

use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Nat};

use flows::{Flows, wait_usable};
use support::{PATIENCE, lab};

fn two_hubs_two_sites() -> Lab {
    let lab = lab().hub("h1").hub("h2").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    lab
}

#[test]
fn the_same_connections_survive_a_hub_killed_a_hub_cut_and_a_hub_frozen() {
    let lab = two_hubs_two_sites();
    let flows = Flows::start(&lab, "a", "b").unwrap();

    let carrier = flows.wait_carrier();
    lab.kill(&carrier).unwrap();
    flows.wait_carrier_other_than(&carrier);
    lab.restart(&carrier).unwrap();
    wait_usable(&lab, &carrier);
    flows.wait_moving().unwrap();

    // The hub that came back carries everything, now or as soon as the other is gone.
    let carrier = flows.wait_carrier();
    lab.cut(&carrier).unwrap();
    flows.wait_carrier_other_than(&carrier);
    lab.heal(&carrier).unwrap();
    wait_usable(&lab, &carrier);
    flows.wait_moving().unwrap();

    let carrier = flows.wait_carrier();
    lab.freeze(&carrier).unwrap();
    flows.wait_carrier_other_than(&carrier);
    lab.thaw(&carrier).unwrap();
    wait_usable(&lab, &carrier);
    flows.wait_moving().unwrap();

    flows.stop().assert_whole();
}

#[test]
fn a_hub_that_is_stopped_hands_its_flows_over_before_it_ends() {
    let lab = two_hubs_two_sites();
    let flows = Flows::start(&lab, "a", "b").unwrap();
    let carrier = flows.wait_carrier();
    let other = if carrier == "h1" { "h2" } else { "h1" };
    wait_usable(&lab, other);

    let ended = lab.process(&carrier).unwrap().stop(PATIENCE).unwrap();
    let at = Instant::now();
    assert!(ended.success(), "hub {carrier} ended with {ended}");
    assert_eq!(flows.carrier_between(at - BEFORE, at).as_deref(), Some(other), "just before the end of {carrier}");
    flows.wait_carrier_other_than(&carrier);
    flows.stop().assert_whole();
}

/// The time before the end of a hub in which it should carry nothing any more.
const BEFORE: Duration = Duration::from_millis(400);
