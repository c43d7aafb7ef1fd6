//! How long it takes to be there, to be there again, and to be gone: `tests/long startup [--runs N]`.
//!
//! * Nodes: `join`; `up` to the first answered ping; killed and started again, also with the clock a day behind, also
//!   from a state directory of earlier. All sites behind symmetric NAT: everything crosses a hub.
//! * Hubs: the one in use killed (-9) and started again under a ping and a TCP echo each 10 ms: the longest gap, and
//!   when both nodes are attached to the new process; also with its clock a day behind.
//! * News: a hub that keeps a newer roster back: from when one node has it to when its neighbour has it, which hears
//!   of that hub only.
//! * Revocation of a node that does not hear of it: one that lost its hubs and goes on by direct paths, until the last
//!   answer of each peer; one that is frozen, until no hub lists it, and what is answered to it once it is thawed.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a program for people"
)]

#[path = "../netns/flows.rs"]
mod flows;
mod measure;
#[path = "../netns/support.rs"]
mod support;
#[path = "../netns/yesterday.rs"]
mod yesterday;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Nat, Probe, Process, RunOptions};
use flows::wait_usable;
use measure::{Goal, Paper};
use support::{PATIENCE, gateway, is_direct, path, wait_path, wait_status};
use yesterday::yesterday;

fn main() {
    let runs = measure::number("--runs", 10) as usize;
    flatlan_lab::enter().unwrap();
    let mut paper = Paper::new("startup", "Startup: from the command to traffic, and to its end");
    paper.say("Times in ms; a ping each 10 ms.\n");
    paper.head(&["what", "runs", "median", "least", "most", "goal"]);
    nodes(runs, &mut paper);
    hubs(runs, &mut paper);
    news(runs, &mut paper);
    revocations(runs, &mut paper);
    paper.end();
}

fn nodes(runs: usize, paper: &mut Paper) {
    let sites: Vec<String> = (1..=runs).map(|number| format!("s{number}")).collect();
    let lab = support::lab().hub("h1").hub("h2").site("a", Nat::Symmetric);
    let lab = sites.iter().fold(lab, |lab, site| lab.site(site, Nat::Symmetric)).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.join("a").unwrap();
    lab.up("a").unwrap();
    let mut rows = [
        ("`join`", Goal::Median(SECOND), Vec::new()),
        ("`up` to the first answered ping", Goal::Median(SECOND), Vec::new()),
        ("killed, started again: to the first answered ping", Goal::Each(SECOND), Vec::new()),
        ("the same with the clock a day behind", Goal::Each(5 * SECOND), Vec::new()),
        ("the same with a state directory of earlier", Goal::Each(5 * SECOND), Vec::new()),
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
        let reverted = first_answer(&lab, site, &RunOptions::default());
        lab.kill(site).unwrap();
        for ((.., times), time) in rows.iter_mut().zip([join, up, again, behind, reverted]) {
            times.push(time);
        }
    }
    for (what, goal, times) in rows {
        paper.judged_row(what, &times, goal);
    }
}

/// From the start of a node to its first answered ping of a.
fn first_answer(lab: &Lab, site: &str, options: &RunOptions) -> Duration {
    let to = lab.site("a").unwrap().virtual_ip();
    let ping = Probe::ping(gateway(lab, site), to.into(), EACH).unwrap();
    let start = Instant::now();
    lab.start_node(site, options).unwrap();
    ping.wait_answers(1, PATIENCE).unwrap().duration_since(start)
}

fn hubs(runs: usize, paper: &mut Paper) {
    let lab = support::lab().hub("h1").hub("h2");
    let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    bring_up(&lab, &["a", "b"]);
    let (today, late) = (RunOptions::default(), yesterday());
    for (word, options, limit) in [("", &today, 2 * SECOND), (" with its clock a day behind", &late, 5 * SECOND)] {
        let (mut gaps, mut backs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let (gap, back) = hub_again(&lab, options);
            gaps.push(gap);
            backs.push(back);
        }
        let gap = format!("hub in use killed, started again{word}: longest gap of ping and echo");
        paper.judged_row(&gap, &gaps, Goal::Each(SECOND / 2));
        let back = format!("hub in use killed, started again{word}: from its start to both nodes attached");
        paper.judged_row(&back, &backs, Goal::Each(limit));
    }
}

/// Kills the hub in use and starts it again: the longest gap, and from its start to both nodes attached.
fn hub_again(lab: &Lab, options: &RunOptions) -> (Duration, Duration) {
    let (near, far) = (gateway(lab, "a"), gateway(lab, "b"));
    let address = lab.site("b").unwrap().virtual_ip().into();
    let ping = support::ping(lab, "a", "b");
    for hub in ["h1", "h2"] {
        wait_usable(lab, hub);
    }
    let echo = Probe::tcp_echo(near, far, address, EACH).unwrap();
    for probe in [&ping, &echo] {
        probe.wait_answers(50, PATIENCE).unwrap();
    }
    let way = path(&lab.status("a").unwrap(), "b").unwrap();
    let hub = way["via"][0].as_str().unwrap().to_owned();
    let killed = lab.kill(&hub).unwrap();
    let start = Instant::now();
    let process = lab.start_hub_with(&hub, options).unwrap();
    let attached = (0..2).fold((0, start), |(skip, _), _| wait_said(&process, skip, "node attached")).1;
    thread::sleep(AFTER);
    let (end, ping, echo) = (Instant::now(), ping.stop(), echo.stop());
    assert_eq!(echo.broken(), None, "the TCP connection broke");
    let gap = |report: &flatlan_lab::Report| report.longest_gap_between(killed, end).length;
    (gap(&ping).max(gap(&echo)), attached.duration_since(start))
}

fn news(runs: usize, paper: &mut Paper) {
    let lab = support::lab().hub("h1").hub("h2");
    let lab = lab.site("a", Nat::FullCone).site("b", Nat::FullCone).build().unwrap();
    bring_up(&lab, &["a", "b"]);
    let ping = support::ping(&lab, "a", "b");
    for (from, to) in [("a", "b"), ("b", "a")] {
        wait_path(&lab, from, to, "a direct path", is_direct);
    }
    // h2 hears of nothing new, a hears only of h1, b only of h2
    for (one, other) in [("admin", "h2"), ("h1", "h2"), ("a", "h2"), ("b", "h1")] {
        lab.cut_between(one, other).unwrap();
    }
    let mut times = Vec::new();
    for run in 1..=runs {
        ping.wait_answers(50, PATIENCE).unwrap();
        let before = serial(&lab, "b");
        let name = format!("guest{run}");
        times.push(thread::scope(|scope| {
            // it waits for the hub that it cannot reach, too
            let admin = scope.spawn(|| lab.administer(["invite", &name]).map(drop));
            let known = wait_newer(&lab, "a", before);
            assert_eq!(serial(&lab, "b"), before, "b heard of it elsewhere");
            let learned = wait_newer(&lab, "b", before);
            admin.join().unwrap().unwrap();
            learned.duration_since(known)
        }));
    }
    paper.judged_row("a hub keeps a newer roster back: from peer to peer", &times, Goal::Each(10 * SECOND));
}

fn revocations(runs: usize, paper: &mut Paper) {
    let lab = support::lab().hub("h1").hub("h2");
    let lab = ["a", "b", "c"].into_iter().fold(lab, |lab, site| lab.site(site, Nat::FullCone)).build().unwrap();
    bring_up(&lab, &["a", "b"]);
    let (mut peers, mut hubs, mut late) = (Vec::new(), Vec::new(), 0);
    for _ in 0..runs {
        peers.push(revoke_without_hubs(&lab));
        let (gone, answered) = revoke_frozen(&lab);
        hubs.push(gone);
        late += answered;
    }
    paper.judged_row(
        "revoked without its hubs: from the command to the last answer of a peer, directly",
        &peers,
        Goal::Each(2 * SECOND),
    );
    paper.judged_row("revoked while frozen: from the command until no hub lists it", &hubs, Goal::Each(2 * SECOND));
    paper.say(format!(
        "\nPings answered to nodes that were revoked while frozen, once thawed: {late}; the goal is none."
    ));
    paper.must(late == 0, &format!("{late} pings of revoked nodes were answered"));
}

/// A member that reaches its peers directly, and no hub: from the command to the last answer of either peer.
fn revoke_without_hubs(lab: &Lab) -> Duration {
    join_again(lab);
    let pings = [support::ping(lab, "c", "a"), support::ping(lab, "c", "b")];
    for peer in ["a", "b"] {
        wait_path(lab, "c", peer, "a direct path", is_direct);
        wait_path(lab, peer, "c", "a direct path", is_direct);
    }
    for hub in ["h1", "h2"] {
        lab.cut_between("c", hub).unwrap();
    }
    for ping in &pings {
        ping.wait_answers(50, PATIENCE).unwrap();
    }
    let start = Instant::now();
    lab.administer(["revoke", "c"]).unwrap();
    for ping in &pings {
        while ping.wait_answers(1, SILENCE).is_ok() {
            assert!(start.elapsed() < PATIENCE, "it is still answered");
        }
    }
    let end = Instant::now();
    assert!(lab.process("c").unwrap().is_running(), "it heard that it was revoked");
    lab.kill("c").unwrap();
    lab.heal("c").unwrap();
    // the silence at the end is the longest
    let last = pings.into_iter().map(|ping| ping.stop().longest_gap_between(start, end).from);
    last.max().unwrap().saturating_duration_since(start)
}

/// A member that is frozen: from the command until no hub lists it, and how many of its pings are answered once it
/// is thawed.
fn revoke_frozen(lab: &Lab) -> (Duration, usize) {
    lab.forbid_direct().unwrap();
    join_again(lab);
    let ping = support::ping(lab, "c", "a");
    wait_status(lab, "c", "both hubs", |status| {
        status["hubs"].as_array()?.iter().all(|hub| hub["state"] == "attached").then_some(())
    });
    lab.freeze("c").unwrap();
    let frozen = Instant::now();
    let hubs = ["h1", "h2"].map(|hub| lab.process(hub).unwrap());
    let said = hubs.each_ref().map(|hub| hub.lines().len());
    let start = Instant::now();
    lab.administer(["revoke", "c"]).unwrap();
    let gone = hubs.iter().zip(said).map(|(hub, said)| wait_said(hub, said, "node detached").1).max().unwrap();
    lab.thaw("c").unwrap();
    let ended = lab.process("c").unwrap().wait_exit(PATIENCE);
    assert!(ended.is_some_and(|status| !status.success()), "the revoked node goes on: {ended:?}");
    lab.allow_direct().unwrap();
    (gone.duration_since(start), ping.stop().answered_of_asked_after(frozen))
}

/// c, with a new key and a new state directory.
fn join_again(lab: &Lab) {
    let state = lab.site("c").unwrap().state();
    if state.exists() {
        std::fs::remove_dir_all(state).unwrap();
    }
    lab.join("c").unwrap();
    lab.up("c").unwrap();
}

fn bring_up(lab: &Lab, sites: &[&str]) {
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    for site in sites {
        lab.join(site).unwrap();
        lab.up(site).unwrap();
    }
}

/// When a process said it, beyond the first `skip` of its lines; and how many lines to skip for the next time.
fn wait_said(process: &Process, skip: usize, text: &str) -> (usize, Instant) {
    let line = process.wait_line_after(skip, text, PATIENCE).unwrap();
    (process.lines().iter().position(|other| *other == line).unwrap() + 1, line.at)
}

/// When a site's node had a newer roster than this.
fn wait_newer(lab: &Lab, site: &str, than: u64) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    while serial(lab, site) <= than {
        assert!(Instant::now() < deadline, "{site} stays at roster {than}");
        thread::sleep(LOOK);
    }
    Instant::now()
}

fn serial(lab: &Lab, site: &str) -> u64 {
    lab.status(site).unwrap()["network"]["roster_serial"].as_u64().unwrap()
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg("--no-target-directory").args([from, to]).status().unwrap().success());
}

const SECOND: Duration = Duration::from_secs(1);
const EACH: Duration = Duration::from_millis(10);
/// Between two looks at a node.
const LOOK: Duration = Duration::from_millis(10);
/// From when a hub is back to the end of the probes.
const AFTER: Duration = Duration::from_secs(3);
/// Without an answer for so long there is none any more.
const SILENCE: Duration = Duration::from_secs(1);
