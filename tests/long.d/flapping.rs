//! A hub that comes and goes for minutes, while it is there the nearest one: `tests/long flapping [--minutes N]
//! [--flatlan PATH]`.
//!
//! ```text
//!        h1 (near)    h2    h3         h1 is down for three seconds and up for four, again and again:
//!              \       |    /          killed and started again, and cut off in silence and mended, in turn
//!               router (core)
//!              /             \
//!     symmetric NAT    symmetric NAT
//!            |               |
//!            a               b         ping, TCP echo, TCP at a rate, datagrams, and an ssh session from a to b
//! ```
//!
//! A minute without it comes first: the control. Then, over all the minutes: the ssh session and the TCP connections are
//! those of the start, no site changes its path to the other more often than twice a flap, and the bulk flow, which does
//! not make up for what it could not send in its time, brings at least 80 % of the control.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]
#![allow(clippy::indexing_slicing, reason = "a status is what it is")]

mod felt;
#[path = "../netns/hand.rs"]
mod hand;
mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::time::{Duration, Instant};

use felt::{Changes, Flows, wait_settled};
use flatlan_lab::{Lab, Nat, Quality};
use hand::Ssh;
use measure::{Flags, Paper};
use support::gateway;

fn main() {
    let flags = Flags::read(&["--minutes", "--flatlan"]);
    let minutes = flags.number("--minutes", 10);
    flatlan_lab::enter().unwrap();
    let lab = support::lab().hub("h1").hub("h2").hub("h3");
    let lab = flags.word("--flatlan").map_or_else(|| lab.clone(), |binary| lab.clone().flatlan(binary));
    let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let _wires: Vec<_> = (1..)
        .zip([("h1", NEAR), ("h2", FAR), ("h3", FAR)])
        .map(|(seed, (hub, delay))| lab.emulate(hub, Quality { delay, ..Quality::default() }, seed).unwrap())
        .collect();
    felt::explain(&lab);
    let server = Ssh::serve(&lab, "b");
    {
        let _talk = support::ping(&lab, "a", "b");
        wait_settled(&lab, &["h1", "h2", "h3"], "udp");
    }
    let mut paper = Paper::new("flapping", "The nearest hub comes and goes for minutes");
    paper.say(format!(
        "3 hubs; h1 answers in {} ms, the others in {} ms. {minutes} minutes: h1 is down for {} s, killed and cut off in",
        NEAR.as_millis(),
        FAR.as_millis(),
        DOWN.as_secs()
    ));
    paper.say(format!("turn, and up for {} s. TCP at {} Mbit/s.\n", UP.as_secs(), felt::RATE / 1_000_000));
    let session = server.session(gateway(&lab, "a"), lab.site("b").unwrap().virtual_ip().into(), TICK);
    session.wait_line("tick", support::PATIENCE).unwrap();
    let control = stretch(&lab, CONTROL, Flaps::None);
    let ticks = session.lines().len();
    let flapping = stretch(&lab, Duration::from_secs(60 * u64::from(minutes)), Flaps::Some);
    let lives = session.is_running() && {
        let seen = session.lines().len();
        session.wait_line_after(seen, "tick", support::PATIENCE).is_ok()
    };
    let shown = session.lines().len() - ticks;
    session.kill();
    let columns = "what | flaps | path changes of a, of b | TCP, Mbit/s | longest gap of ping, echo, bulk, ms | \
                   datagrams lost a to b, b to a | TCP alive and equal";
    paper.head(&columns.split(" | ").collect::<Vec<_>>());
    for (name, stretch) in [("control", &control), ("flapping", &flapping)] {
        let Stretch { flaps, changes: [a, b], felt } = stretch;
        let rate = felt.transfer.megabits_per_second();
        let [ping, echo, bulk] = [felt.ping, felt.echo, felt.bulk].map(|gap| gap.as_millis());
        let ([there, back], alive) = (felt.lost, if felt.alive { "yes" } else { "NO" });
        paper.say(format!(
            "| {name} | {flaps} | {a}, {b} | {rate:.1} | {ping}, {echo}, {bulk} | {there}, {back} | {alive} |"
        ));
        paper.must(felt.alive, &format!("{name}: TCP: {:?}", felt.transfer));
    }
    let share = flapping.felt.transfer.megabits_per_second() / control.felt.transfer.megabits_per_second();
    paper.say(format!("\nGoodput of the control: {:.0} % (at least 80 %).", share * 100.0));
    paper.say(format!("The ssh session of the start lives: {lives}, {shown} lines from it meanwhile."));
    paper.must(share >= 0.8, &format!("goodput is {share:.2} of the control"));
    paper.must(lives && shown > 0, "the ssh session ended");
    for (site, changes) in ["a", "b"].into_iter().zip(flapping.changes) {
        paper.must(
            changes <= 2 * flapping.flaps,
            &format!("{site} changed its path {changes} times in {} flaps", flapping.flaps),
        );
    }
    paper.end();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaps {
    None,
    Some,
}

struct Stretch {
    flaps: usize,
    /// Of a and of b.
    changes: [usize; 2],
    felt: felt::Felt,
}

fn stretch(lab: &Lab, length: Duration, flaps: Flaps) -> Stretch {
    let flows = Flows::start(lab);
    let changes = Changes::new(lab);
    let begun = Instant::now();
    let mut count = 0;
    let mut up = true;
    let mut next = begun + UP;
    let mut said = begun;
    while begun.elapsed() < length || !up {
        if flaps == Flaps::Some && Instant::now() >= next {
            let kills = count % 2 == 0;
            match (up, kills) {
                (true, true) => drop(lab.kill("h1").unwrap()),
                (true, false) => drop(lab.cut("h1").unwrap()),
                (false, true) => drop(lab.restart("h1").unwrap()),
                (false, false) => drop(lab.heal("h1").unwrap()),
            }
            count += usize::from(!up);
            up = !up;
            next = Instant::now() + if up { UP } else { DOWN };
        }
        if said.elapsed() >= SAY {
            said = Instant::now();
            println!("  {} s: {count} flaps, path changes {:?}", begun.elapsed().as_secs(), changes.counts(lab));
        }
        std::thread::sleep(LOOK);
    }
    Stretch { flaps: count, changes: changes.counts(lab), felt: flows.stop(begun) }
}

/// One way of what the hubs send.
const NEAR: Duration = Duration::from_millis(4);
const FAR: Duration = Duration::from_millis(16);
const DOWN: Duration = Duration::from_secs(3);
const UP: Duration = Duration::from_secs(4);
const CONTROL: Duration = Duration::from_secs(60);
/// Between two looks at the time.
const LOOK: Duration = Duration::from_millis(150);
/// Between two words about how far it is.
const SAY: Duration = Duration::from_secs(30);
/// What the ssh session runs.
const TICK: &str = "while sleep 0.5; do echo tick; done";
