//! Not everybody reaches every hub: what has no hub in common goes over several of them.
//!
//! ```text
//!      h1 ------ h2 ------ h3            x ---- h1 -- h2 -- h3 -- h4 -- h5 ---- (x)
//!       \       /  \       /             |       |                       |       |
//!        \     /    \     /              +-- a --+                       +-- b --+
//!           a          b                 hubs in a line: each reaches its neighbours only, x reaches all
//! ```
//!
//! The hub in the middle dies, and the others carry what it carried. How fast that is, the benchmark says; here it has
//! to happen, over the hubs that are left and in no circle.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "helpers of tests")]

#[path = "support.rs"]
mod support;

use flatlan_lab::Lab;
use serde_json::{Value, json};
use support::{PATIENCE, joined, ping, wait_path, wait_status};

/// A lab of these hubs and two sites, of which each reaches only some of them, from before its node runs.
fn up(hubs: &[&str], hidden: &[(&str, &[&str])]) -> Lab {
    let lab = joined(hubs);
    for (from, hubs) in hidden {
        for hub in *hubs {
            lab.cut_between(from, hub).unwrap();
        }
    }
    for site in ["a", "b"] {
        lab.up(site).unwrap();
    }
    lab
}

/// Waits until a site's node is attached to these hubs and no other.
fn wait_attached(lab: &Lab, site: &str, hubs: &[&str]) {
    wait_status(lab, site, &format!("only {hubs:?}"), |status| {
        let attached = status["hubs"].as_array()?.iter().filter(|hub| hub["state"] == "attached");
        let mut names: Vec<&str> = attached.filter_map(|hub| hub["name"].as_str()).collect();
        names.sort_unstable();
        (names == hubs).then_some(())
    });
}

/// Waits until the traffic of both directions goes by the hub that both sites reach. All round trips are alike here, so it
/// may have begun on a long way: the other hub of each site is frozen for a moment, by which every long way begins.
fn wait_in_common(lab: &Lab, common: &str, others: [&str; 2]) {
    for other in others {
        lab.freeze(other).unwrap();
    }
    wait_path(lab, "a", "b", "the hub in common", by(&[common]));
    wait_path(lab, "b", "a", "the hub in common", by(&[common]));
    for other in others {
        lab.thaw(other).unwrap();
    }
}

fn by(hubs: &[&str]) -> impl Fn(&Value) -> bool {
    let via = json!(hubs);
    move |path| path["via"] == via
}

#[test]
fn a_hub_that_both_sites_reach_dies_and_the_two_that_only_one_reaches_carry_on() {
    let lab = up(&["h1", "h2", "h3"], &[("a", &["h3"]), ("b", &["h1"])]);
    wait_attached(&lab, "a", &["h1", "h2"]);
    wait_attached(&lab, "b", &["h2", "h3"]);
    let talk = ping(&lab, "a", "b");
    wait_in_common(&lab, "h2", ["h1", "h3"]);
    wait_attached(&lab, "a", &["h1", "h2"]);
    wait_attached(&lab, "b", &["h2", "h3"]);

    lab.kill("h2").unwrap();
    wait_path(&lab, "a", "b", "the way over both others", by(&["h1", "h3"]));
    wait_path(&lab, "b", "a", "the way over both others", by(&["h3", "h1"]));
    talk.wait_answers(50, PATIENCE).unwrap();

    lab.restart("h2").unwrap();
    wait_attached(&lab, "a", &["h1", "h2"]);
    wait_attached(&lab, "b", &["h2", "h3"]);
    lab.kill("h3").unwrap();
    talk.wait_answers(100, PATIENCE).unwrap();
    println!("longest gap: {:?}", talk.stop().longest_gap().length);
}

#[test]
fn what_has_no_hub_in_common_goes_over_five_hubs_in_a_line() {
    let line = ["h1", "h2", "h3", "h4", "h5"];
    let mut hidden: Vec<(&str, &[&str])> = vec![("a", &line[1..]), ("b", &line[..4])];
    hidden.extend(line.iter().enumerate().map(|(place, hub)| (*hub, line.get(place + 2..).unwrap_or_default())));
    let lab = up(&["h1", "h2", "h3", "h4", "h5", "x"], &hidden);
    wait_attached(&lab, "a", &["h1", "x"]);
    wait_attached(&lab, "b", &["h5", "x"]);
    let talk = ping(&lab, "a", "b");
    wait_in_common(&lab, "x", ["h1", "h5"]);
    wait_attached(&lab, "a", &["h1", "x"]);
    wait_attached(&lab, "b", &["h5", "x"]);

    lab.kill("x").unwrap();
    wait_path(&lab, "a", "b", "the way along the line", by(&line));
    wait_path(&lab, "b", "a", "the way along the line", by(&["h5", "h4", "h3", "h2", "h1"]));
    talk.wait_answers(100, PATIENCE).unwrap();
    println!("longest gap: {:?}", talk.stop().longest_gap().length);
}
