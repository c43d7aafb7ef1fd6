//! Random loss for minutes, which must move nobody: `tests/long lossy [--minutes N] [--per-mille N] [--flatlan PATH]`.
//!
//! The topology is that of `tests/long failover`: three hubs, two sites behind symmetric NATs. Of what site a sends and of
//! what it would receive a tenth is lost at random, all that goes to and comes from hubs included. A minute without loss
//! comes first. No lane that carries flows may change its path, and the TCP connections must live and bring every byte. How
//! fast they are is their congestion control's affair: at a tenth of loss CUBIC has a fifteenth of what BBR has.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]
#![allow(clippy::indexing_slicing, reason = "a status is what it is")]

mod felt;
mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::time::{Duration, Instant};

use felt::{Changes, Flows, wait_settled};
use flatlan_lab::{Lab, Nat};
use measure::{Flags, Paper};

fn main() {
    let flags = Flags::read(&["--minutes", "--per-mille", "--flatlan"]);
    let minutes = flags.number("--minutes", 10);
    let per_mille = u16::try_from(flags.number("--per-mille", 100)).unwrap();
    flatlan_lab::enter().unwrap();
    let lab = support::lab().hub("h1").hub("h2").hub("h3");
    let lab = flags.word("--flatlan").map_or_else(|| lab.clone(), |binary| lab.clone().flatlan(binary));
    let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    felt::explain(&lab);
    {
        let _talk = support::ping(&lab, "a", "b");
        wait_settled(&lab, &["h1", "h2", "h3"], "udp");
    }
    let mut paper = Paper::new("lossy", "Random loss for minutes moves nobody");
    if per_mille != 100 {
        paper.is_part();
    }
    paper.say(format!("3 hubs. {minutes} minutes with {per_mille} of 1,000 packets of site a lost, each way.\n"));
    let columns = "what | path changes of a, of b | TCP, Mbit/s | longest gap of ping, echo, bulk, ms | datagrams lost a to \
                   b, b to a | TCP alive and equal";
    paper.head(&columns.split(" | ").collect::<Vec<_>>());
    let control = stretch(&lab, Duration::from_secs(60));
    row(&mut paper, "control", &control);
    let before = felt::reasons(&lab).len();
    lab.lose("a", per_mille).unwrap();
    let lossy = stretch(&lab, Duration::from_secs(60 * u64::from(minutes)));
    row(&mut paper, "lossy", &lossy);
    for reason in &felt::reasons(&lab)[before..] {
        println!("  {reason}");
    }
    paper.must(lossy.0 == [0, 0], &format!("paths changed: {:?}", lossy.0));
    paper.end();
}

fn row(paper: &mut Paper, name: &str, ([a, b], felt): &([usize; 2], felt::Felt)) {
    let rate = felt.transfer.megabits_per_second();
    let [ping, echo, bulk] = [felt.ping, felt.echo, felt.bulk].map(|gap| gap.as_millis());
    let lives = felt.whole && felt.bulk < STOOD_STILL;
    let ([there, back], alive) = (felt.lost, if lives { "yes" } else { "NO" });
    paper.say(format!("| {name} | {a}, {b} | {rate:.1} | {ping}, {echo}, {bulk} | {there}, {back} | {alive} |"));
    paper.must(lives, &format!("{name}: TCP: {:?}", felt.transfer));
}

fn stretch(lab: &Lab, length: Duration) -> ([usize; 2], felt::Felt) {
    let flows = Flows::start(lab);
    let changes = Changes::new(lab);
    let (begun, mut said) = (Instant::now(), Instant::now());
    while begun.elapsed() < length {
        if said.elapsed() >= SAY {
            said = Instant::now();
            println!("  {} s: path changes {:?}", begun.elapsed().as_secs(), changes.counts(lab));
        }
        std::thread::sleep(LOOK);
    }
    (changes.counts(lab), flows.stop(begun))
}

/// A connection that brought nothing for so long does not live: its timer has doubled seven times by then.
const STOOD_STILL: Duration = Duration::from_secs(30);
/// Between two looks at the time.
const LOOK: Duration = Duration::from_millis(150);
/// Between two words about how far it is.
const SAY: Duration = Duration::from_secs(30);
