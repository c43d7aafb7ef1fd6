//! What a hub that is stopped (SIGTERM) costs the traffic that it carries: packets lost, and the longest gap.
//! `tests/long drain [--runs N]`; the topologies are in `tests/netns/drain.rs`.
//!
//! Each run: a ping and a TCP echo each 10 ms, and 1,000 numbered datagrams a second each way. The hub that carries most
//! of it is stopped, and started again for the next run. The gap is the worse of ping and echo, over the whole run. The
//! control is the same without stopping a hub.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a program for people")]

#[path = "../netns/datagrams.rs"]
mod datagrams;
#[path = "../netns/drained.rs"]
mod drained;
#[path = "../netns/flows.rs"]
mod flows;
mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::time::Duration;

use drained::{Case, Talk};
use measure::Paper;
use support::PATIENCE;

fn main() {
    let runs = measure::number("--runs", 20) as usize;
    flatlan_lab::enter().unwrap();
    let mut paper = Paper::new("drain", "Drain: the hub in use is stopped");
    paper.say("Flows: ping 10 ms, TCP echo 10 ms, 1,000 datagrams a second each way. Gaps in ms, the worse of ping and echo.\n");
    paper.head(&["hub", "runs", "median", "least", "most", "datagrams sent, lost, pings lost, TCP alive"]);
    for case in [Case::Common, Case::Streams, Case::Between] {
        let lab = case.lab();
        for stopped in [false, true] {
            let (mut gaps, mut sent, mut lost, mut pings, mut alive) = (Vec::new(), 0, 0, 0, 0);
            for number in 1..=runs {
                let talk = Talk::start(&lab);
                let hub = case.wait_carrier(&lab, &talk);
                if stopped {
                    assert!(lab.process(&hub).unwrap().stop(PATIENCE).unwrap().success());
                } else {
                    std::thread::sleep(DRAIN);
                }
                talk.go_on();
                let felt = talk.stop(&lab);
                println!("  {number} of {runs}: {case:?}, stopped: {stopped}: {felt:?}");
                gaps.push(felt.gaps[0].max(felt.gaps[1]));
                sent += felt.sent;
                lost += felt.lost;
                pings += felt.pings_lost;
                alive += usize::from(felt.broken.is_none());
                if stopped {
                    lab.restart(&hub).unwrap();
                }
            }
            let word = match case {
                Case::Common => "in common",
                Case::Streams => "in common, over TLS only",
                Case::Between => "between hubs",
            };
            let row = format!("{word}, {}", if stopped { "stopped" } else { "control" });
            paper.row(&row, &gaps, &format!("{sent}, {lost}, {pings}, {alive} of {runs}"));
            if stopped {
                paper.must(lost == 0 && pings == 0, &format!("{row}: no packet lost"));
                paper.must(alive == runs, &format!("{row}: TCP alive"));
                let good = gaps.iter().filter(|gap| **gap <= GOAL).count();
                paper.must(good * 20 >= runs * 19, &format!("{row}: at most {GOAL:?} in 19 of 20 runs: {good}"));
            }
        }
    }
    paper.end();
}

/// What the issue asks for: 20 ms, and the 10 ms between two answers.
const GOAL: Duration = Duration::from_millis(30);
/// About as long as a hub takes to stop.
const DRAIN: Duration = Duration::from_millis(1500);
