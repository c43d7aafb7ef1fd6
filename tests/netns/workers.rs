//! Nodes and hubs with several workers each: a peer belongs to one of them, and no datagram is lost on another.
//!
//! ```text
//!        h1 ---- inet ---- h2
//!          / / | \ \
//!         a b  c  d e      a speaks to all others, each of its workers to some of them
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use flatlan_lab::{Lab, Nat, RunOptions};
use support::{MIB, PATIENCE, is_direct, is_relay, lab, ping, send, wait_path};

const OTHERS: [&str; 4] = ["b", "c", "d", "e"];
const WORKERS: [&str; 2] = ["--workers", "2"];

/// A lab whose nodes and hubs have two workers each; the nodes are behind routers of this kind; all speak to `a`.
fn shared(hubs: &[&str], nat: Nat) -> Lab {
    let lab = hubs.iter().fold(lab(), |lab, hub| lab.hub(hub));
    let lab = OTHERS.iter().fold(lab.site("a", nat), |lab, site| lab.site(site, nat)).build().unwrap();
    lab.network_create().unwrap();
    for hub in hubs {
        lab.add_hub(lab.hub(hub).unwrap()).unwrap();
    }
    for hub in hubs {
        lab.start_hub_with(hub, &RunOptions::args(WORKERS)).unwrap();
    }
    lab.publish().unwrap();
    for site in ["a"].iter().chain(&OTHERS) {
        lab.join(site).unwrap();
    }
    for site in ["a"].iter().chain(&OTHERS) {
        lab.up_with(site, &RunOptions::args(WORKERS)).unwrap();
    }
    lab
}

/// What came to a worker that knew neither its index nor its label is no more than what a hub that was lost for a
/// moment leaves behind: steered wrongly it would be half.
fn assert_nearly_all_known(lab: &Lab) {
    for site in ["a"].iter().chain(&OTHERS) {
        let status = lab.status(site).unwrap();
        let bytes: u64 =
            status["peers"].as_array().unwrap().iter().map(|peer| peer["rx_bytes"].as_u64().unwrap()).sum();
        let unknown = status["drops"]["unknown"].as_u64().unwrap();
        assert!(unknown < bytes / 1400 / 10, "{site}: {bytes} bytes received: {:#}", status["drops"]);
    }
}

#[test]
fn relayed_peers_of_both_workers_are_reached_and_move_when_a_hub_dies() {
    let lab = shared(&["h1", "h2"], Nat::Symmetric);
    let talks: Vec<_> = OTHERS.iter().map(|site| ping(&lab, "a", site)).collect();
    for site in OTHERS {
        wait_path(&lab, "a", site, "a path over UDP", |path| is_relay(path, "udp"));
        wait_path(&lab, site, "a", "a path over UDP", |path| is_relay(path, "udp"));
        send(&lab, "a", site, 4 * MIB);
        send(&lab, site, "a", 4 * MIB);
    }
    assert_nearly_all_known(&lab);
    lab.kill("h1").unwrap();
    for site in OTHERS {
        let by_the_other = |path: &serde_json::Value| is_relay(path, "udp") && path["via"][0] == "h2";
        wait_path(&lab, "a", site, "a path by the other hub", by_the_other);
    }
    for talk in &talks {
        talk.wait_answers(10, PATIENCE).unwrap();
    }
}

#[test]
fn direct_peers_of_both_workers_are_reached_and_a_node_that_starts_again_is_too() {
    let lab = shared(&["h1"], Nat::FullCone);
    let _talks: Vec<_> = OTHERS.iter().map(|site| ping(&lab, "a", site)).collect();
    for site in OTHERS {
        wait_path(&lab, "a", site, "a direct path", is_direct);
        wait_path(&lab, site, "a", "a direct path", is_direct);
        send(&lab, "a", site, 4 * MIB);
        send(&lab, site, "a", 4 * MIB);
    }
    assert_nearly_all_known(&lab);
    let status = lab.status("a").unwrap();
    let peers = status["peers"].as_array().unwrap();
    let bytes = |peer: &serde_json::Value, way: &str| peer[way].as_u64().unwrap();
    assert!(
        peers.iter().all(|peer| bytes(peer, "tx_bytes") > 4 * MIB && bytes(peer, "rx_bytes") > 4 * MIB),
        "{status:#}"
    );
    for site in ["b", "a"] {
        lab.up_with(site, &RunOptions::args(WORKERS)).unwrap();
    }
    for site in OTHERS {
        let _talk = ping(&lab, site, "a");
        send(&lab, "a", site, MIB);
    }
}
