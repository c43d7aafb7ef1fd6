//! How long traffic stands still when the hub that carries it fails, in every way that a hub fails:
//! `tests/long failover [--runs N] [--tables udp,tls,far] [--faults kill,cut,...] [--flatlan PATH]`.
//!
//! ```text
//!      h1      h2      h3         udp: symmetric NATs, so that there is no direct path
//!        \      |      /          tls: the sites' routers let no UDP out
//!         router (core)           far: as udp, and what each hub sends takes 10 ms and up to 1 ms more
//!          /         \
//!       a-nat       b-nat         every run: flows from a to b and back, all on one hub, which then fails
//!         |           |
//!         a           b
//! ```
//!
//! Each run: a ping and a TCP echo each 10 ms, a paced TCP flow whose bytes must be equal in the end (SHA-256), and
//! numbered datagrams each millisecond both ways. The router's counters must show that one hub carried all of it, both
//! ways, in the second before the fault, else the nodes start again and the run is repeated and counted. The gap is the
//! longest time without an answer that touches the time from the fault to the end, the worse of ping and echo. The control
//! is the same without a fault. Each table is a file of `tests/results`.
//!
//! Machines are shared, and stand still at times: that is seen by real-time threads, one a core, and told beside the gaps.
//! Goals are for the longest gap of all runs; what it is without the time in which no core ran is printed for every run.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]
#![allow(clippy::indexing_slicing, reason = "a status is what it is")]

mod felt;
mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::time::{Duration, Instant};

use felt::{Felt, Flows, wait_settled};
use flatlan_lab::{Emulator, Lab, Nat, Quality, StallWatch};
use measure::{Flags, Paper};
use support::PATIENCE;

fn main() {
    let flags = Flags::read(&["--runs", "--tables", "--faults", "--flatlan"]);
    flatlan_lab::enter().unwrap();
    for table in [Table::Udp, Table::Tls, Table::Far] {
        if flags.wants("--tables", table.name()) {
            measure_table(table, &flags);
        }
    }
}

fn measure_table(table: Table, flags: &Flags) {
    let runs = flags.number("--runs", 30) as usize;
    let lab = support::lab().hub("h1").hub("h2").hub("h3");
    let lab = flags.word("--flatlan").map_or_else(|| lab.clone(), |binary| lab.clone().flatlan(binary));
    let lab = lab.site("a", table.nat()).site("b", table.nat()).build().unwrap();
    lab.bring_up().unwrap();
    let _wires = table.emulate(&lab);
    let mut paper = Paper::new(table.file(), &format!("Failover: the hub in use fails, {}", table.word()));
    if flags.word("--faults").is_some() {
        paper.is_part();
    }
    paper.say(format!(
        "3 hubs. Flows: ping and TCP echo each 10 ms, TCP at {} Mbit/s compared by SHA-256, 1,000 datagrams a",
        felt::RATE / 1_000_000
    ));
    paper.say(
        "second each way. Gaps in ms: the worse of ping and echo; of the bulk flow, for information. Beside them the",
    );
    paper.say("gaps without the time in which no core of the machine ran: less than one would feel on a machine of one's own.");
    paper.say(if StallWatch::start().is_some() {
        ""
    } else {
        "**That time is not seen here: no real-time priority.**\n"
    });
    let columns = "fault | runs | median | least | longest | without the machine's own: median, longest | goal | \
                   bulk: median, longest | datagrams lost of a run: median, most | TCP alive and equal | repeated";
    paper.head(&columns.split(" | ").collect::<Vec<_>>());
    let mut every = Vec::new();
    for fault in Fault::ALL {
        if !flags.wants("--faults", fault.name()) || !fault.is_of(table) {
            continue;
        }
        let (mut felt, mut repeated, mut in_a_row) = (Vec::new(), 0, 0);
        while felt.len() < runs {
            if fault == Fault::DropData {
                // Who has seen one hub after another swallow data trusts none of them for minutes, and its streams more.
                start_again(&lab);
            }
            match run(&lab, table, fault) {
                None => {
                    repeated += 1;
                    in_a_row += 1;
                    assert!(in_a_row <= 20, "no single hub carries the flows");
                    println!("  not one hub carried all of it: again");
                    start_again(&lab);
                }
                Some((hub, this)) => {
                    in_a_row = 0;
                    let ms = |gap: Duration| gap.as_millis();
                    println!(
                        "  {} of {runs}: {} {hub}: ping {} ms, echo {} ms, without the machine's own {} ms (one core's {} ms), \
                         bulk {} ms, datagrams {:?} ms, lost {:?}, alive: {}",
                        felt.len() + 1,
                        fault.name(),
                        ms(this.ping),
                        ms(this.echo),
                        ms(this.without),
                        ms(this.without_one),
                        ms(this.bulk),
                        this.datagrams.map(ms),
                        this.lost,
                        this.alive
                    );
                    felt.push(this);
                }
            }
        }
        judge(&mut paper, fault, &felt, repeated);
        let gaps = sorted(felt.iter().map(|felt| (felt.without.as_millis(), felt.gap().as_millis())).collect());
        let gaps: Vec<String> = gaps.iter().map(|(without, gap)| format!("{without} ({gap})")).collect();
        every.push(format!("* {}: {}", fault.word(), gaps.join(" ")));
    }
    paper.say(format!(
        "\nThe gaps of every run without the machine's own, in order (and with it):\n\n{}",
        every.join("\n")
    ));
    paper.end();
}

fn judge(paper: &mut Paper, fault: Fault, felt: &[Felt], repeated: usize) {
    let runs = felt.len();
    let gaps: Vec<Duration> = felt.iter().map(Felt::gap).collect();
    let alive = felt.iter().filter(|felt| felt.alive).count();
    let lost: Vec<usize> = sorted(felt.iter().map(|felt| felt.lost.iter().sum()).collect());
    let without: Vec<u128> = sorted(felt.iter().map(|felt| felt.without.as_millis()).collect());
    let bulk: Vec<u128> = sorted(felt.iter().map(|felt| felt.bulk.as_millis()).collect());
    let goal = fault.goal().map_or_else(|| "-".to_owned(), |goal| goal.as_millis().to_string());
    let of = |all: &[u128]| format!("{}, {}", all[all.len() / 2], all[all.len() - 1]);
    let lost_of = format!("{}, {}", lost[runs / 2], lost[runs - 1]);
    paper.row(
        fault.word(),
        &gaps,
        &format!("{} | {goal} | {} | {lost_of} | {alive} of {runs} | {repeated}", of(&without), of(&bulk)),
    );
    let longest = gaps.iter().max().copied().unwrap_or_default();
    let own = felt.iter().map(|felt| felt.without).max().unwrap_or_default();
    if let Some(goal) = fault.goal() {
        let missed = format!("{}: {longest:?}, not at most {goal:?} (without the machine's own {own:?})", fault.word());
        paper.must(longest <= goal, &missed);
    }
    paper.must(alive == runs, &format!("{}: TCP alive and equal in {alive} of {runs}", fault.word()));
    if fault == Fault::Drain {
        let worst = lost[runs - 1];
        paper.must(worst == 0, &format!("{}: {worst} datagrams lost", fault.word()));
    }
}

fn sorted<T: Ord>(mut all: Vec<T>) -> Vec<T> {
    all.sort_unstable();
    all
}

/// How the sites reach the hubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Udp,
    Tls,
    Far,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tls => "tls",
            Self::Far => "far",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Udp => "failover",
            Self::Tls => "failover-tls",
            Self::Far => "failover-far",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Udp => "over UDP",
            Self::Tls => "over TLS alone",
            Self::Far => "over UDP with a round trip of 20 ms",
        }
    }

    fn nat(self) -> Nat {
        match self {
            Self::Udp | Self::Far => Nat::Symmetric,
            Self::Tls => Nat::UdpBlocked,
        }
    }

    fn transport(self) -> &'static str {
        match self {
            Self::Udp | Self::Far => "udp",
            Self::Tls => "tcp",
        }
    }

    fn emulate(self, lab: &Lab) -> Vec<Emulator> {
        match self {
            Self::Udp | Self::Tls => Vec::new(),
            Self::Far => (1..)
                .zip(HUBS)
                .map(|(seed, hub)| {
                    lab.emulate(hub, Quality { delay: FAR, jitter: JITTER, ..Quality::default() }, seed).unwrap()
                })
                .collect(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Kill,
    Cut,
    Freeze,
    DropData,
    LoseToHub,
    LoseFromHub,
    Drain,
}

impl Fault {
    const ALL: [Self; 8] = [
        Self::None,
        Self::Kill,
        Self::Cut,
        Self::Freeze,
        Self::DropData,
        Self::LoseToHub,
        Self::LoseFromHub,
        Self::Drain,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::None => "control",
            Self::Kill => "kill",
            Self::Cut => "cut",
            Self::Freeze => "freeze",
            Self::DropData => "drop-data",
            Self::LoseToHub => "lose-to-hub",
            Self::LoseFromHub => "lose-from-hub",
            Self::Drain => "drain",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::None => "none (control)",
            Self::Kill => "hub killed (SIGKILL)",
            Self::Cut => "hub's host dies in silence",
            Self::Freeze => "hub frozen (SIGSTOP)",
            Self::DropData => "hub drops data, passes probes and control",
            Self::LoseToHub => "what a sends to the hub is lost",
            Self::LoseFromHub => "what the hub sends to a is lost",
            Self::Drain => "hub drains (SIGTERM)",
        }
    }

    fn goal(self) -> Option<Duration> {
        let ms = match self {
            Self::None => return None,
            Self::Kill | Self::Cut => 300,
            Self::Freeze | Self::LoseToHub | Self::LoseFromHub => 500,
            Self::DropData => 1000,
            Self::Drain => 20,
        };
        Some(Duration::from_millis(ms))
    }

    /// A router tells data from probes where it sees datagrams.
    fn is_of(self, table: Table) -> bool {
        !(self == Self::DropData && table == Table::Tls)
    }

    /// Since when it is in force.
    fn inject(self, lab: &Lab, hub: &str) -> Instant {
        match self {
            Self::None => Instant::now(),
            Self::Kill => lab.kill(hub).unwrap(),
            Self::Cut => lab.cut(hub).unwrap(),
            Self::Freeze => lab.freeze(hub).unwrap(),
            Self::DropData => lab.drop_data(hub).unwrap(),
            Self::LoseToHub => lab.cut_one_way_between("a", hub).unwrap(),
            Self::LoseFromHub => lab.cut_one_way_between(hub, "a").unwrap(),
            Self::Drain => {
                let at = Instant::now();
                let ended = lab.process(hub).unwrap().stop(PATIENCE).unwrap();
                assert!(ended.success(), "hub {hub} ended with {ended}");
                at
            }
        }
    }

    fn mend(self, lab: &Lab, hub: &str) {
        match self {
            Self::None => {}
            Self::Kill | Self::Drain => drop(lab.restart(hub).unwrap()),
            Self::Cut | Self::DropData | Self::LoseToHub | Self::LoseFromHub => drop(lab.heal(hub).unwrap()),
            Self::Freeze => drop(lab.thaw(hub).unwrap()),
        }
    }
}

/// One run: which hub carried it, and what was felt; `None` where not one hub carried all.
fn run(lab: &Lab, table: Table, fault: Fault) -> Option<(&'static str, Felt)> {
    {
        let _talk = support::ping(lab, "a", "b");
        wait_settled(lab, &HUBS, table.transport());
    }
    let flows = Flows::start(lab);
    flows.run_for(WARM);
    let carrier = flows.carrier()?;
    let hub = HUBS.into_iter().find(|hub| *hub == carrier)?;
    flows.forget_gaps();
    let at = fault.inject(lab, hub);
    // As long as it takes where nothing comes: what is waited for is time.
    std::thread::sleep(AFTER);
    let felt = flows.stop(at);
    fault.mend(lab, hub);
    Some((hub, felt))
}

fn start_again(lab: &Lab) {
    for site in ["a", "b"] {
        lab.restart(site).unwrap();
    }
}

const HUBS: [&str; 3] = ["h1", "h2", "h3"];
/// From the start of the flows to the fault.
const WARM: Duration = Duration::from_millis(1800);
/// From the fault to the end of the flows.
const AFTER: Duration = Duration::from_secs(3);
/// One way of what a hub sends in the table with a round trip, and up to how much more.
const FAR: Duration = Duration::from_millis(10);
const JITTER: Duration = Duration::from_millis(1);
