//! What a revoked node can still do: nothing, at once, wherever the news arrives; and a hub that keeps the news back
//! does not keep it from nodes that can hear of it elsewhere.
//!
//! ```text
//!      admin    hub h1          hub h2
//!         \        \              /
//!          ------- router (core) --------
//!                 /      |       \
//!              NAT      NAT      NAT      full cone: they reach each other directly
//!               |        |        |
//!          gateway a  gateway b  gateway c   c is revoked
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

#[path = "support.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Nat, RunOptions};
use serde_json::Value;

use support::{PATIENCE, is_direct, lab, ping, wait_path, wait_status};

fn three_sites() -> Lab {
    let lab = lab().hub("h1").hub("h2");
    ["a", "b", "c"].into_iter().fold(lab, |lab, site| lab.site(site, Nat::FullCone)).build().unwrap()
}

fn bring_up(lab: &Lab) {
    lab.network_create().unwrap();
    for hub in ["h1", "h2"] {
        lab.add_hub(lab.hub(hub).unwrap()).unwrap();
        lab.start_hub_with(hub, &RunOptions::args(["--admin", METRICS])).unwrap();
    }
    lab.publish().unwrap();
    for site in ["a", "b", "c"] {
        lab.join(site).unwrap();
    }
    for site in ["a", "b", "c"] {
        lab.up(site).unwrap();
    }
}

fn serial(lab: &Lab, site: &str) -> u64 {
    lab.status(site).unwrap()["network"]["roster_serial"].as_u64().unwrap()
}

/// Waits until a site's node knows a newer roster than this one.
fn wait_newer(lab: &Lab, site: &str, than: u64) {
    wait_status(lab, site, "a newer roster", |status| {
        status["network"]["roster_serial"].as_u64().filter(|it| *it > than)
    });
}

/// Whether a site's node knows this member.
fn lists(lab: &Lab, site: &str, member: &str) -> bool {
    lab.status(site).unwrap()["peers"].as_array().unwrap().iter().any(|peer| peer["name"] == member)
}

/// Packets that a node dropped, for whatever reason.
fn drops(lab: &Lab, site: &str) -> u64 {
    lab.status(site).unwrap()["drops"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
}

/// A number of a hub's metrics; of those with several reasons, the sum.
fn metric(lab: &Lab, hub: &str, name: &str) -> u64 {
    let text = lab.hub(hub).unwrap().namespace().run(|| {
        let mut stream = TcpStream::connect(METRICS).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: hub\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Waits until a number has grown by so much.
fn wait_grown(what: &str, by: u64, number: impl Fn() -> u64) {
    let (before, deadline) = (number(), Instant::now() + PATIENCE);
    while number() < before + by {
        assert!(Instant::now() < deadline, "{what} stays at {before}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_revoked_node_that_heard_nothing_of_it_is_refused_by_its_peers_in_the_middle_of_its_session() {
    let lab = three_sites();
    bring_up(&lab);
    let pings = [ping(&lab, "c", "a"), ping(&lab, "c", "b")];
    for to in ["a", "b"] {
        wait_path(&lab, "c", to, "a direct path", is_direct);
    }
    for hub in ["h1", "h2"] {
        lab.cut_between("c", hub).unwrap();
    }
    for ping in &pings {
        ping.wait_answers(50, PATIENCE).unwrap();
    }

    let before = serial(&lab, "a");
    lab.administer(["revoke", "c"]).unwrap();
    let refused = ["a", "b"].map(|site| {
        wait_newer(&lab, site, before);
        wait_grown("what is refused", 1, || drops(&lab, site));
        let refused = Instant::now();
        wait_grown("what is refused", 50, || drops(&lab, site));
        assert!(!lists(&lab, site, "c"), "{site} still lists c");
        refused
    });

    // Nor does it get anywhere once it hears: it ends, and says why.
    lab.heal("c").unwrap();
    let node = lab.process("c").unwrap();
    let ended = node.wait_exit(PATIENCE).expect("the revoked node ends");
    assert!(!ended.success());
    assert!(node.tail(5).contains("this node was removed from the network by its admin"), "{}", node.tail(5));
    for (ping, refused) in pings.into_iter().zip(refused) {
        assert_eq!(ping.stop().answered_of_asked_after(refused), 0, "a node that is no member was answered");
    }
}

#[test]
fn a_revoked_node_is_cut_off_by_its_hubs_in_the_middle_of_its_session() {
    let lab = three_sites();
    lab.forbid_direct().unwrap();
    bring_up(&lab);
    let ping = ping(&lab, "c", "a");
    ping.wait_answers(50, PATIENCE).unwrap();
    for site in ["a", "b", "c"] {
        wait_status(&lab, site, "both hubs", |status| {
            status["hubs"].as_array()?.iter().all(|hub| hub["state"] == "attached").then_some(())
        });
    }
    // It is busy elsewhere while the news comes, and what it was told to send waits. Answers that came before wait with
    // it, and are no harm.
    lab.freeze("c").unwrap();
    let frozen = Instant::now();
    let (before, attached) = (serial(&lab, "a"), metric(&lab, "h1", "flatlan_hub_attachments"));

    lab.administer(["revoke", "c"]).unwrap();
    wait_newer(&lab, "a", before);
    for hub in ["h1", "h2"] {
        let left = |_: &Value| (metric(&lab, hub, "flatlan_hub_attachments") < attached).then_some(());
        wait_status(&lab, "a", &format!("{hub} without c"), left);
    }
    lab.thaw("c").unwrap();
    let ended = lab.process("c").unwrap().wait_exit(PATIENCE).expect("the revoked node ends");
    assert!(!ended.success());
    let answered = ping.stop().answered_of_asked_after(frozen);
    assert_eq!(answered, 0, "a ping of a node that is no member was answered");
    // Nor does anybody let it in again.
    let again = lab.start_node("c", &RunOptions::default()).unwrap();
    again.wait_line("does not list this node: was it removed", PATIENCE).unwrap();
}

#[test]
fn nodes_learn_from_each_other_what_a_hub_keeps_from_them() {
    let lab = three_sites();
    bring_up(&lab);
    let ping = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "a direct path", is_direct);
    wait_path(&lab, "b", "a", "a direct path", is_direct);
    // h2 hears of nothing new, a hears only of h1, b only of h2.
    for (one, other) in [("admin", "h2"), ("h1", "h2"), ("a", "h2"), ("b", "h1"), ("c", "a"), ("c", "b")] {
        lab.cut_between(one, other).unwrap();
    }
    ping.wait_answers(50, PATIENCE).unwrap();

    let before = serial(&lab, "b");
    lab.administer(["revoke", "c"]).unwrap();
    wait_newer(&lab, "a", before);
    wait_newer(&lab, "b", before);
    assert!(!lists(&lab, "b", "c"), "b still lists c");
}

/// Where hubs serve their metrics.
const METRICS: &str = "127.0.0.1:9090";
