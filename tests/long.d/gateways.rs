//! Two gateways of one site: who carries what, and what held flows feel when one fails.
//! `tests/long gateways [--runs N] [--flatlan PATH]`.
//!
//! Sites, machines and faults are drawn in `pair.rs`. 200 TCP flows are made once, and held through every run. First their
//! bytes are counted, and numbered datagrams sent both ways, while the host of east answers by both gateways (ECMP) and by
//! the one that has the router's address (VRRP): flows come by one gateway and are answered by the other. Then the router
//! fails, in one way after the other, beside a run without a fault. A gap is the longest time in which one of the flows was
//! not answered; each asks ten times a second.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod carried;
mod measure;
mod pair;
#[path = "../netns/support.rs"]
mod support;
#[path = "../../examples/ha-gateways/vrrp.rs"]
mod vrrp;

use std::time::{Duration, Instant};

use carried::{Counters, shares};
use flatlan_lab::{Lab, require};
use measure::{Flags, Paper};
use pair::{Fault, Held, Routers};
use support::PATIENCE;

fn main() {
    let flags = Flags::read(&["--runs", "--flatlan"]);
    let runs = flags.number("--runs", 10);
    flatlan_lab::enter().unwrap();
    require(["keepalived"]).unwrap_or_else(|missing| panic!("{missing}: deploy/setup installs it"));
    let lab = support::lab();
    let lab = pair::built(flags.word("--flatlan").map_or_else(|| lab.clone(), |binary| lab.clone().flatlan(binary)));
    let counters = Counters::start(pair::machines(&lab));
    let mut paper = Paper::new("gateways", "Two gateways of one site: who carries what, and one of them fails");
    paper.say(format!(
        "{FLOWS} TCP flows between hosts of two sites, {runs} runs. Of east's gateways e1 and e2 west's node"
    ));
    paper.say(
        "chooses one for each flow; east's host answers by both (ECMP), or by the one that is the router (VRRP).\n",
    );

    let held = Held::start(&lab, FLOWS);
    let columns = "answers | bytes to east by e1, e2 | share | bytes to west by e1, e2 | share | all by e1, e2 | \
                   there by one, back by the other | datagrams, both ways, of all runs | lost";
    paper.head(&columns.split(" | ").collect::<Vec<_>>());
    share(&mut paper, &lab, &held, &counters, Answers { by: "ECMP", runs });
    let routers = Routers::start(&lab);
    pair::answer_by_router(&lab);
    share(&mut paper, &lab, &held, &counters, Answers { by: "VRRP", runs });

    paper.say(
        "\nThe router, e1, fails; ms in which one of the flows was not answered, the longest of all flows in a run.\n",
    );
    let columns =
        "e1 is | runs | median | least | longest | goal | flows that went on | new connections, from their own address";
    paper.head(&columns.split(" | ").collect::<Vec<_>>());
    let faults = [None].into_iter().chain(Fault::ALL.map(Some));
    let mut felt: Vec<(Option<Fault>, Vec<Felt>)> = faults.map(|fault| (fault, Vec::new())).collect();
    for run in 1..=runs {
        for (fault, felt) in &mut felt {
            let this = one(&lab, &held, &routers, *fault);
            println!("  {run} of {runs}: {}: {this:?}", word(*fault));
            felt.push(this);
        }
    }
    for (fault, felt) in &felt {
        judge(&mut paper, *fault, felt);
    }
    paper.must(held.are_whose_they_are(), "the host of east sees the own address of the host of west in each flow");
    held.stop();
    paper.end();
}

/// How the host of east answers.
struct Answers {
    by: &'static str,
    runs: u32,
}

/// Who carries how much, and whether datagrams arrive.
fn share(paper: &mut Paper, lab: &Lab, held: &Held<'_>, counters: &Counters<'_>, answers: Answers) {
    let [west, east] = ["west", "east"].map(|site| pair::address(lab, site));
    held.wait_answered();
    counters.clear();
    std::thread::sleep(SHARED_FOR);
    let carried = counters.read();
    let [there, back] = [east, west].map(|to| carried.bytes_to(to));
    let both = [there[0] + back[0], there[1] + back[1]];
    let (around, by_both) = (carried.around(east), carried.by_both());
    let (mut sent, mut arrived) = (0, 0);
    for _ in 0..answers.runs {
        counters.clear();
        let these = pair::datagrams(lab, STREAMS, SHARED_FOR);
        (sent, arrived) = (sent + these[0], arrived + these[1]);
        let by = counters.read().streams_to(east);
        paper.must(by.iter().all(|streams| *streams > 0), &format!("{}: streams of datagrams: {by:?}", answers.by));
    }
    let two = |of: [u64; 2]| format!("{}, {}", of[0], of[1]);
    let percent = |bytes| shares(bytes).map(|share| format!("{share} %")).join(", ");
    paper.say(format!(
        "| {} | {} | {} | {} | {} | {} | {around} | {sent} | {} |",
        answers.by,
        two(there),
        percent(there),
        two(back),
        percent(back),
        percent(both),
        sent - arrived
    ));
    let mut judged = vec![("to east", there)];
    if answers.by == "ECMP" {
        judged.extend([("to west", back), ("both ways", both)]);
    }
    for (what, bytes) in judged {
        let least = shares(bytes).into_iter().min().unwrap();
        paper.must(least >= LEAST, &format!("{}, {what}: {bytes:?}: not at least {LEAST} % by each", answers.by));
    }
    paper.must(around > 0 && by_both == 0, &format!("{}: {around} flows around, {by_both} by both", answers.by));
    paper.must(sent > 0 && sent == arrived, &format!("{}: of {sent} datagrams {arrived} arrived", answers.by));
}

/// What one run felt like.
#[derive(Debug)]
struct Felt {
    gap: Duration,
    went_on: usize,
    new_one: bool,
}

/// One run, which ends when everything is as before.
fn one(lab: &Lab, held: &Held<'_>, routers: &Routers<'_>, fault: Option<Fault>) -> Felt {
    held.wait_answered();
    let at = fault.map_or_else(Instant::now, |fault| fault.inject(lab));
    // as long as it takes where nothing comes: what is waited for is time
    std::thread::sleep(WATCHED);
    let gap = held.gaps(at, Instant::now()).pop().unwrap();
    let felt = Felt { gap, went_on: held.unbroken(), new_one: pair::a_new_one_is_whose_it_is(lab) };
    if let Some(fault) = fault {
        fault.mend(lab);
    }
    routers.wait_whole();
    held.wait_answered();
    felt
}

fn judge(paper: &mut Paper, fault: Option<Fault>, felt: &[Felt]) {
    let gaps: Vec<Duration> = felt.iter().map(|felt| felt.gap).collect();
    let went_on = felt.iter().map(|felt| felt.went_on).min().unwrap();
    let new = felt.iter().filter(|felt| felt.new_one).count();
    let goal = fault.map_or_else(|| "-".to_owned(), |fault| fault.limit().as_millis().to_string());
    let (what, runs) = (word(fault), felt.len());
    paper.row(what, &gaps, &format!("{goal} | {went_on} of {FLOWS} | {new} of {runs}"));
    let longest = gaps.iter().max().copied().unwrap();
    if let Some(fault) = fault {
        paper.must(longest <= fault.limit(), &format!("{what}: {longest:?}, not at most {:?}", fault.limit()));
    }
    paper.must(went_on == FLOWS, &format!("{what}: {went_on} of {FLOWS} flows went on"));
    paper.must(new == runs, &format!("{what}: {new} of {runs} new connections show whose they are"));
}

fn word(fault: Option<Fault>) -> &'static str {
    fault.map_or("as it was (control)", Fault::word)
}

const FLOWS: usize = 200;
/// The share of the bytes that each gateway has at least, in hundredths.
const LEAST: u64 = 30;
/// Streams of numbered datagrams each way.
const STREAMS: usize = 24;
/// How long bytes and datagrams are counted.
const SHARED_FOR: Duration = Duration::from_secs(4);
/// From a fault to its end.
const WATCHED: Duration = Duration::from_secs(5);
