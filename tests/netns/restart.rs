//! What comes back after it died: nodes, hubs, state directories of yesterday, and a node where no hub is left.
//!
//! ```text
//!         hub h1          hub h2
//!              \          /
//!               router (core)
//!            /       |       \
//!          NAT      NAT      NAT        symmetric where all must cross a hub, full cone where none must
//!           |        |        |
//!      gateway a  gateway b  gateway c  c only where b gets a twin
//! ```

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
#[path = "yesterday.rs"]
mod yesterday;

use std::path::{Path, PathBuf};
use std::process::Command;

use flatlan_lab::{Lab, Nat, RunOptions};

use flows::{Flows, wait_usable};
use support::{PATIENCE, gateway, is_direct, lab, ping, wait_path, wait_status};
use yesterday::yesterday;

fn two_hubs_and(sites: &[(&str, Nat)]) -> Lab {
    let lab = lab().hub("h1").hub("h2");
    sites.iter().fold(lab, |lab, (site, nat)| lab.site(site, *nat)).build().unwrap()
}

fn relayed_pair() -> Lab {
    let lab = two_hubs_and(&[("a", Nat::Symmetric), ("b", Nat::Symmetric)]);
    lab.bring_up().unwrap();
    lab
}

/// A state directory, as a snapshot keeps it.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg("--no-target-directory").args([from, to]).status().unwrap();
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}

fn set_back(snapshot: &Path, state: &Path) {
    std::fs::remove_dir_all(state).unwrap();
    copy(snapshot, state);
}

fn snapshot(lab: &Lab, site: &str) -> PathBuf {
    let to = lab.folder().join("state").join("snapshot");
    copy(lab.site(site).unwrap().state(), &to);
    to
}

#[test]
fn a_node_killed_and_started_again_is_reached_again_even_if_its_clock_is_a_day_behind() {
    let lab = relayed_pair();
    let ping = ping(&lab, "a", "b");
    ping.wait_answers(10, PATIENCE).unwrap();

    lab.kill("b").unwrap();
    lab.restart("b").unwrap();
    ping.wait_answers(10, PATIENCE).unwrap();

    lab.kill("b").unwrap();
    lab.up_with("b", &yesterday()).unwrap();
    ping.wait_answers(10, PATIENCE).unwrap();
}

#[test]
fn a_node_whose_tun_device_is_deleted_ends_and_says_so_and_starts_again() {
    let lab = relayed_pair();
    let ping = ping(&lab, "a", "b");
    ping.wait_answers(10, PATIENCE).unwrap();

    let node = lab.process("b").unwrap();
    gateway(&lab, "b").exec("ip", ["link", "delete", "fl0"]).unwrap();
    let ended = node.wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(1), "{}", node.tail(5));
    assert!(node.tail(5).contains("error: the TUN device fl0 was deleted under us"), "{}", node.tail(5));
    lab.restart("b").unwrap();
    ping.wait_answers(10, PATIENCE).unwrap();
}

#[test]
fn a_hub_killed_and_started_again_serves_again_even_if_its_clock_is_a_day_behind() {
    let lab = relayed_pair();
    let flows = Flows::start(&lab, "a", "b").unwrap();
    for options in [RunOptions::default(), yesterday()] {
        let carrier = flows.wait_carrier();
        lab.kill(&carrier).unwrap();
        let other = flows.wait_carrier_other_than(&carrier);
        lab.start_hub_with(&carrier, &options).unwrap();
        wait_usable(&lab, &carrier);
        // It carries everything when the other one is gone.
        lab.kill(&other).unwrap();
        assert_eq!(flows.wait_carrier_other_than(&other), carrier);
        lab.start_hub(&other).unwrap();
        wait_usable(&lab, &other);
    }
    flows.stop().assert_whole();
}

#[test]
fn a_node_goes_on_with_a_state_directory_of_earlier_even_if_its_clock_is_a_day_behind() {
    let lab = relayed_pair();
    let ping = ping(&lab, "a", "b");
    ping.wait_answers(10, PATIENCE).unwrap();
    lab.kill("b").unwrap();
    let old = snapshot(&lab, "b");
    let state = lab.site("b").unwrap().state().to_owned();
    // Two lives later the copy is behind what peers and hubs have seen.
    for _ in 0..2 {
        lab.restart("b").unwrap();
        ping.wait_answers(10, PATIENCE).unwrap();
        lab.kill("b").unwrap();
    }
    for options in [RunOptions::default(), yesterday()] {
        set_back(&old, &state);
        lab.up_with("b", &options).unwrap();
        ping.wait_answers(10, PATIENCE).unwrap();
        lab.kill("b").unwrap();
    }
}

#[test]
fn two_nodes_with_one_key_both_raise_the_alarm() {
    let lab = two_hubs_and(&[("a", Nat::Symmetric), ("b", Nat::Symmetric), ("c", Nat::Symmetric)]);
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.join("b").unwrap();
    copy(lab.site("b").unwrap().state(), lab.site("c").unwrap().state());
    let b = lab.up("b").unwrap();
    // which may lose to the other before it was ever up: it then leaves the key alone for a minute
    let c = lab.start_node("c", &RunOptions::default()).unwrap();
    for (twin, node) in [("b", b), ("c", c)] {
        node.wait_line("another machine uses this node's key", PATIENCE).unwrap();
        wait_status(&lab, twin, "the alarm", |status| {
            let mut alarms = status["alarms"].as_array()?.iter().filter_map(serde_json::Value::as_str);
            alarms.find(|alarm| alarm.contains("another machine uses this node's key")).map(drop)
        });
    }
}

#[test]
fn nodes_with_a_direct_path_go_on_without_any_hub_and_after_restarts() {
    let lab = two_hubs_and(&[("a", Nat::FullCone), ("b", Nat::FullCone)]);
    lab.bring_up().unwrap();
    let ping = ping(&lab, "a", "b");
    for (site, other) in [("a", "b"), ("b", "a")] {
        wait_path(&lab, site, other, "a direct path", is_direct);
    }
    for hub in ["h1", "h2"] {
        lab.kill(hub).unwrap();
    }
    ping.wait_answers(50, PATIENCE).unwrap();

    lab.kill("b").unwrap();
    lab.start_node("b", &RunOptions::default()).unwrap();
    ping.wait_answers(10, PATIENCE).unwrap();

    for site in ["a", "b"] {
        lab.process(site).unwrap().stop(PATIENCE).unwrap();
    }
    for site in ["a", "b"] {
        lab.start_node(site, &RunOptions::default()).unwrap();
    }
    ping.wait_answers(10, PATIENCE).unwrap();
    let back = lab.site("a").unwrap().virtual_ip();
    lab.wait_reachable(gateway(&lab, "b"), back.into(), PATIENCE).unwrap();
}
