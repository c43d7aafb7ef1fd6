//! How long it takes to be there: `join`, `up` to the first answered ping, nodes and hubs started again (also with their
//! clock a day behind, also from an old state directory), and how long a revoked node still gets through.
//! `tests/long startup [--runs N]`.
//!
//! Two hubs; site a, and a site for each run, all behind symmetric NAT: everything crosses a hub.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod measure;
#[path = "../netns/support.rs"]
mod support;
#[path = "../netns/yesterday.rs"]
mod yesterday;

use std::process::Command;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Nat, Probe, RunOptions};
use measure::Paper;
use support::{PATIENCE, gateway};
use yesterday::yesterday;

fn main() {
    let runs = measure::runs(10);
    flatlan_lab::enter().unwrap();
    let sites: Vec<String> = (1..=runs).map(|number| format!("s{number}")).collect();
    let lab = support::lab().hub("h1").hub("h2").site("a", Nat::Symmetric);
    let lab = sites.iter().fold(lab, |lab, site| lab.site(site, Nat::Symmetric)).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.join("a").unwrap();
    lab.up("a").unwrap();

    let mut paper = Paper::new("startup", "Startup: from the command to traffic");
    paper.say(
        "Times in ms; a ping each 10 ms.\n\n| what | runs | median | least | most | goal |\n|---|---|---|---|---|---|",
    );
    let mut rows: [(&str, &str, Vec<Duration>); 6] = [
        ("`join`", "1 s", Vec::new()),
        ("`up` to the first answered ping", "1 s", Vec::new()),
        ("killed, started again: to the first answered ping", "1 s", Vec::new()),
        ("the same with the clock a day behind", "5 s", Vec::new()),
        ("the same with a state directory of earlier", "5 s", Vec::new()),
        ("revoked: from the command to the last answered ping", "2 s", Vec::new()),
    ];
    for site in &sites {
        let token = lab.invite(site).unwrap();
        let join = lab.join_with(site, &token).unwrap().success().unwrap().took;
        let up = first_answer(&lab, site, &RunOptions::default());
        let state = lab.site(site).unwrap().state().to_owned();
        let old = lab.folder().join("state").join(format!("{site}.old"));
        lab.kill(site).unwrap();
        copy(&state, &old);
        let again = first_answer(&lab, site, &RunOptions::default());
        lab.kill(site).unwrap();
        let behind = first_answer(&lab, site, &yesterday());
        lab.kill(site).unwrap();
        std::fs::remove_dir_all(&state).unwrap();
        copy(&old, &state);
        let reverted = first_answer(&lab, site, &yesterday());
        let revoked = revoke(&lab, site);
        for ((.., times), time) in rows.iter_mut().zip([join, up, again, behind, reverted, revoked]) {
            times.push(time);
        }
    }
    for (what, goal, times) in rows {
        paper.row(what, &times, goal);
    }
    paper.write();
}

/// From the start of a node to its first answered ping of a.
fn first_answer(lab: &Lab, site: &str, options: &RunOptions) -> Duration {
    let to = lab.site("a").unwrap().virtual_ip();
    let ping = Probe::ping(gateway(lab, site), to.into(), Duration::from_millis(10)).unwrap();
    let start = Instant::now();
    lab.start_node(site, options).unwrap();
    ping.wait_answers(1, PATIENCE).unwrap().duration_since(start)
}

/// From the command to the last answered ping of the revoked node.
fn revoke(lab: &Lab, site: &str) -> Duration {
    let ping = support::ping(lab, site, "a");
    let start = Instant::now();
    lab.administer(["revoke", site]).unwrap();
    while ping.wait_answers(1, SILENCE).is_ok() {
        assert!(start.elapsed() < PATIENCE, "{site} is still answered");
    }
    // the silence at the end is the longest
    let silence = ping.stop().longest_gap_between(start, Instant::now());
    silence.from.saturating_duration_since(start)
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(Command::new("cp").arg("-a").arg("--no-target-directory").args([from, to]).status().unwrap().success());
}

/// Without an answer for so long there is none any more.
const SILENCE: Duration = Duration::from_secs(1);
