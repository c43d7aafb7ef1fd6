//! Two gateways of one site share its flows, and stand in for each other: on the overlay by flatlan alone, on their LAN by
//! ECMP or by keepalived.
//!
//! Sites, machines and faults are drawn in `pair.rs`. Toward east each flow goes by e1 or by e2, as west's node chooses; what
//! east's host answers goes by the one that the host chooses (ECMP), or by the one that has the router's address (VRRP). So
//! about half of all flows come by one gateway and are answered by the other, and nobody keeps a state of that. 200 TCP flows
//! are held while e1, which is the router, is killed, cut off from the internet, cut off from its LAN. What it shows: who
//! carries how much, that nothing is lost on the way around, and for how long no flow was answered.
//!
//! `examples/ha-gateways/run`

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]

#[path = "../../tests/long.d/carried.rs"]
mod carried;
#[path = "../../tests/long.d/pair.rs"]
mod pair;
#[path = "../story.rs"]
mod story;
mod vrrp;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use carried::{Counters, shares};
use flatlan_lab::{Lab, require};
use pair::{Fault, Held, Routers};
use story::Story;

fn main() -> ExitCode {
    flatlan_lab::enter().unwrap();
    if let Err(missing) = require(["keepalived"]) {
        eprintln!("error: {missing}: deploy/setup installs it");
        return ExitCode::from(3);
    }
    let mut story = Story::default();
    story.say("Site west has one gateway, site east two, e1 and e2. All run flatlan, hosts run nothing.");
    let lab = pair::built(Lab::builder().flatlan(env!("CARGO_BIN_EXE_flatlan")));
    let counters = Counters::start(pair::machines(&lab));

    let [west, east] = ["west", "east"].map(|site| pair::address(&lab, site));
    story.say(format!(
        "{FLOWS} TCP flows from west-1 ({west}) to east-1 ({east}), which answers by both gateways (ECMP):"
    ));
    let held = Held::start(&lab, FLOWS);
    story.claim("east-1 sees west-1's own address in each", held.are_whose_they_are());
    let [there, back] = shared(&mut story, &lab, &held, &counters);
    let [e1, e2] = shares([there[0] + back[0], there[1] + back[1]]);
    let both = format!("both ways together e1 carries {e1} % of the bytes, e2 {e2} %: each at least {LEAST} %");
    story.claim(both, e1.min(e2) >= LEAST);

    story.say(format!("All gateways run keepalived. e1 has {}, and east-1 answers by that (VRRP):", pair::ROUTER));
    let routers = Routers::start(&lab);
    pair::answer_by_router(&lab);
    let [_, [by_e1, by_e2]] = shared(&mut story, &lab, &held, &counters);
    story.claim("everything toward west goes by e1", by_e1 > 0 && by_e2 == 0);

    for fault in Fault::ALL {
        let before = by_e1_to_east(&lab, &held, &counters);
        story.say(format!("e1 is {}. It is the router, and {} flows come by it.", fault.word(), before.len()));
        let at = fault.inject(&lab);
        std::thread::sleep(WATCHED);
        let gaps = held.gaps(at, Instant::now());
        let noticed = gaps.iter().filter(|gap| **gap > pair::EACH * 2).count();
        let longest = gaps.last().copied().unwrap();
        story.say(format!("    {noticed} of {} flows were not answered for a moment.", gaps.len()));
        story.claim_within("each was answered again", longest, fault.limit());
        story.claim("none was reset", held.unbroken() == FLOWS);
        story.claim("a new connection shows west-1's own address", pair::a_new_one_is_whose_it_is(&lab));
        story.claim("e2 has the router's address", routers.has(1));
        let said = pair::alarms(&lab);
        story.claim(format!("west's node says it: {said}"), said.contains("gateway e1"));
        fault.mend(&lab);
        routers.wait_whole();
        let after = by_e1_to_east(&lab, &held, &counters);
        story.claim("it is mended: e1 is the router again, and has the same flows back", after == before);
    }
    story.claim(format!("{} of {FLOWS} flows were never broken", held.unbroken()), held.unbroken() == FLOWS);
    held.stop();
    story.end()
}

/// Who carries how much of the flows, and whether datagrams arrive: the bytes of each gateway toward east, and toward west.
fn shared(story: &mut Story, lab: &Lab, held: &Held<'_>, counters: &Counters<'_>) -> [[u64; 2]; 2] {
    let [west, east] = ["west", "east"].map(|site| pair::address(lab, site));
    held.wait_answered();
    counters.clear();
    std::thread::sleep(SHARED_FOR);
    let carried = counters.read();
    let ways = [carried.bytes_to(east), carried.bytes_to(west)];
    for (place, bytes) in [("east", ways[0]), ("west", ways[1])] {
        let [e1, e2] = shares(bytes);
        story.say(format!("    toward {place} e1 carries {e1} % of the bytes, e2 {e2} %"));
    }
    let [e1, e2] = shares(ways[0]);
    story.claim(format!("each carries at least {LEAST} % of the bytes toward east"), e1.min(e2) >= LEAST);
    story.claim("each flow goes by one of them at a time, each way", carried.by_both() == 0);
    let around = carried.around(east);
    story.claim(format!("{around} of {FLOWS} flows come by one gateway and are answered by the other"), around > 0);

    counters.clear();
    let [sent, arrived] = pair::datagrams(lab, STREAMS, SHARED_FOR);
    let by = counters.read().streams_to(east);
    story.claim(
        format!("{} and {} streams of datagrams go to east by e1 and e2", by[0], by[1]),
        by.iter().all(|n| *n > 0),
    );
    story.claim(format!("of {sent} datagrams both ways {arrived} arrive, which is all"), sent > 0 && sent == arrived);
    ways
}

/// The flows that come to east by e1.
fn by_e1_to_east(lab: &Lab, held: &Held<'_>, counters: &Counters<'_>) -> std::collections::BTreeSet<carried::Flow> {
    held.wait_answered();
    counters.clear();
    held.wait_answered();
    let [by_e1, _] = counters.read().flows_to(pair::address(lab, "east"));
    by_e1
}

const FLOWS: usize = 200;
/// The share of the bytes that each gateway has at least, in hundredths.
const LEAST: u64 = 30;
/// Streams of numbered datagrams each way.
const STREAMS: usize = 24;
/// How long bytes and datagrams are counted.
const SHARED_FOR: Duration = Duration::from_secs(5);
/// How long a fault is watched.
const WATCHED: Duration = Duration::from_secs(6);
const PATIENCE: Duration = Duration::from_secs(30);
