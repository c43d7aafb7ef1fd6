//! `network move` of one address under traffic, and back: how long until the next packet reaches the new owner, from
//! everywhere. `tests/long move [--rounds N] [--flatlan PATH]`.
//!
//! ```text
//!                   h1           h2
//!                     \         /
//!                      -- inet --
//!                /         |        \
//!         home-nat       dr-nat      office-nat           symmetric NATs: no direct path
//!        /   |    \     /   |   \       |     \
//!   [home] home-1 -2 [dr] dr-1  -2  [office] office-1     [in brackets]: gateways, which run flatlan
//! ```
//!
//! home-1 (192.168.1.11) is pinged each 10 ms by its neighbour home-2, by dr-2, by office-1 and by the gateway of the
//! office, while office-1 sends home-2 data at a steady rate. A round: home-1 dies in silence, dr-1 comes up in
//! its place, the address moves; dr-1 dies, home-1 comes up, the move is undone. The times are from the beginning of
//! the command, which signs, uploads and waits for hubs, to the first answer.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod measure;
#[path = "../netns/support.rs"]
mod support;
mod twin;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Namespace, Nat, Probe, SiteSpec, Transfer};
use measure::{Flags, Goal, Paper};
use support::{PATIENCE, gateway};
use twin::Twin;

fn main() {
    let flags = Flags::read(&["--rounds", "--flatlan"]);
    let rounds = flags.number("--rounds", 10);
    flatlan_lab::enter().unwrap();
    let lab = support::lab().hub("h1").hub("h2");
    let lab = flags.word("--flatlan").map_or_else(|| lab.clone(), |binary| lab.clone().flatlan(binary));
    let site = |name, hosts| SiteSpec::new(name).nat(Nat::Symmetric).hosts(hosts);
    let lab = lab.site_with(site("home", 2)).site_with(site("dr", 2)).site_with(site("office", 1)).build().unwrap();
    lab.bring_up().unwrap();
    let twin = Twin::new(&lab, "home", "dr");
    let [neighbour, beside, office] = [host(&lab, "home", 1), host(&lab, "dr", 1), host(&lab, "office", 0)];
    let places = [
        ("its neighbour at home", neighbour),
        ("a host of the DR site", beside),
        ("a host of a third site", office),
        ("a node of a third site", gateway(&lab, "office")),
    ];
    let pings = places.map(|(place, machine)| (place, Probe::ping(machine, twin.ip(), EACH).unwrap()));
    let [to, _] = lab.site("home").unwrap().hosts().get(1).unwrap().addresses();
    let other = Transfer::start_paced(office, neighbour, to, RATE).unwrap();

    let mut paper = Paper::new("move", "One address moves to another site under traffic, and back");
    paper.say(format!(
        "Three sites, two hubs, {rounds} rounds; each place pings each 10 ms. ms from the beginning of the"
    ));
    paper.say("command to the first answer of the new owner, the old one being dead.\n");
    let prefix = format!("{}/32", twin.ip());
    let ways: [(&str, [&Namespace; 2], &[&str]); 2] = [
        ("fail-over", [twin.home(), twin.away()], &["network", "move", &prefix, "--to", "dr"]),
        ("fail-back", [twin.away(), twin.home()], &["network", "move", "--undo"]),
    ];
    let mut times: BTreeMap<(usize, usize), Vec<Duration>> = BTreeMap::new();
    for round in 1..=rounds {
        for (way, (what, [from, to], command)) in ways.iter().enumerate() {
            for (place, ping) in &pings {
                ping.wait_answers(20, PATIENCE).unwrap_or_else(|e| panic!("before the {what}: {place}: {e}"));
            }
            twin.fail_over(from, to);
            let at = Instant::now();
            lab.administer(*command).unwrap();
            times.entry((way, 0)).or_default().push(at.elapsed());
            for (number, (place, ping)) in pings.iter().enumerate() {
                ping.wait_answers(20, PATIENCE).unwrap_or_else(|e| panic!("{what}: {place}: {e}"));
                // the silence in which the command began
                let silence = ping.report().longest_gap_between(at, at + Duration::from_millis(1));
                times.entry((way, number + 1)).or_default().push((silence.from + silence.length) - at);
            }
        }
        println!("  round {round} of {rounds}");
    }
    paper.head(&["what", "times", "median", "least", "most", "goal"]);
    for (way, (what, ..)) in ways.iter().enumerate() {
        paper.row(&format!("{what}: the command itself"), times.get(&(way, 0)).unwrap(), "");
        for (number, (place, _)) in pings.iter().enumerate() {
            let times = times.get(&(way, number + 1)).unwrap();
            paper.judged_row(&format!("{what}: {place}"), times, Goal::Each(LIMIT));
        }
    }
    let report = other.stop(PATIENCE);
    let whole = report.equal && report.broken.is_none();
    let (rate, gap) = (report.megabits_per_second(), report.longest_gap.length.as_millis());
    paper.say(format!(
        "\nA TCP flow between two other hosts beside it: {rate:.1} Mbit/s, longest pause {gap} ms, {}.",
        if whole { "alive and equal" } else { "NOT WHOLE" }
    ));
    paper.must(whole, &format!("the other flow: {report:?}"));
    paper.end();
}

fn host<'a>(lab: &'a Lab, site: &str, number: usize) -> &'a Namespace {
    lab.site(site).unwrap().hosts().get(number).unwrap().namespace()
}

/// Between two pings.
const EACH: Duration = Duration::from_millis(10);
/// Bits a second of the other flow.
const RATE: u64 = 20_000_000;
/// From the command to the next packet at the new owner.
const LIMIT: Duration = Duration::from_secs(2);
