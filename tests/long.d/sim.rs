//! Thousands of seeds: `tests/long sim [--seeds N] [--first SEED] [--kind chaos|ForgedPresence|..] [--trace FILE]`; and
//! many hubs and nodes: `tests/long sim-scale [--hubs N] [--networks N] [--members N]`.
//!
//! A seed is an internet of its own in which everything breaks and is mended ([`flatlan_sim::chaos`]), or one hub of which
//! lies. A seed that fails is told; `--trace` writes what happened with the first seed as text, a line an event.
//! The scale run starts all nodes at once, and tells after each part how long it took in virtual time, what was sent, and
//! how much memory the whole has. Results go to `tests/results/sim.md` and `tests/results/sim-scale.md`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod measure;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use flatlan_sim::{
    Lie,
    chaos::{BOUND, CAUGHT, Outcome, Text, run, run_with_liar},
    scale::{self, Size},
};
use measure::Paper;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.iter().any(|word| word == "--scale") {
        return scale(&words);
    }
    let (first, seeds) = (number(&words, "--first", 1), number(&words, "--seeds", 1000));
    let kinds: Vec<Kind> = match word(&words, "--kind") {
        None => Kind::all().collect(),
        Some(name) => vec![Kind::all().find(|kind| kind.name() == name).expect("chaos, or the name of a lie")],
    };
    if let Some(file) = word(&words, "--trace") {
        let kind = kinds.first().unwrap();
        let outcome = kind.run(first, Text::Kept);
        std::fs::write(&file, outcome.text.join("\n")).unwrap();
        println!("seed {first} ({}): {} events in {file}", kind.name(), outcome.events);
        match outcome.violation {
            Some(violation) => panic!("seed {first}, {:?}: {}", violation.at, violation.what),
            None => return println!("nothing is wrong with it"),
        }
    }
    let mut paper = Paper::new("sim", "Seeds of the simulation");
    paper
        .say(format!("Seeds {first} to {}, each twice where it is chaos: same seed, same trace.\n", first + seeds - 1));
    paper.say("| kind | seeds | events | inner packets | median until all is well | longest | bound | failed |");
    paper.say("|---|---|---|---|---|---|---|---|");
    let mut failed = Vec::new();
    for kind in kinds {
        let count = if kind == Kind::Chaos { seeds } else { seeds.div_ceil(5) };
        let outcomes = run_all(kind, first, count);
        let mut times: Vec<Duration> = outcomes.iter().filter_map(|outcome| outcome.healed).collect();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let longest = times.last().copied().unwrap_or_default();
        let bad: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.violation.is_some()).collect();
        paper.say(format!(
            "| {} | {count} | {} | {} | {median:.0?} | {longest:.0?} | {:?} | {} |",
            kind.name(),
            outcomes.iter().map(|outcome| outcome.events).sum::<u64>(),
            outcomes.iter().map(|outcome| outcome.arrived).sum::<u64>(),
            if kind == Kind::Chaos { BOUND } else { CAUGHT },
            bad.len()
        ));
        for outcome in bad {
            let what = outcome.violation.as_ref().map(|violation| violation.what.as_str()).unwrap_or_default();
            let again =
                format!("tests/long sim --kind {} --first {} --seeds 1 --trace FILE", kind.name(), outcome.seed);
            failed.push(format!("* {} seed {}: {what}: `{again}`", kind.name(), outcome.seed));
        }
    }
    paper.say("");
    failed.iter().for_each(|line| paper.say(line));
    paper.must(failed.is_empty(), &format!("{} seeds failed", failed.len()));
    paper.end();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chaos,
    Liar(Lie),
}

impl Kind {
    fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Chaos).chain(Lie::ALL.map(Self::Liar))
    }

    fn name(self) -> String {
        match self {
            Self::Chaos => "chaos".to_owned(),
            Self::Liar(lie) => format!("{lie:?}"),
        }
    }

    fn run(self, seed: u64, text: Text) -> Outcome {
        match self {
            Self::Chaos => run(seed, text, Instant::now()),
            Self::Liar(lie) => run_with_liar(seed, lie, text, Instant::now()),
        }
    }
}

/// On every core, in any order.
fn run_all(kind: Kind, first: u64, count: u64) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            let _told = Told { kind, seed };
            let outcome = kind.run(seed, Text::No);
            if kind == Kind::Chaos {
                assert_eq!(outcome.hash, kind.run(seed, Text::No).hash, "the same seed gave another trace");
            }
            outcomes.lock().unwrap().push(outcome);
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// Says which seed it was that ended the program.
struct Told {
    kind: Kind,
    seed: u64,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}: tests/long sim --kind {} --first {} --seeds 1", self.seed, self.kind.name(), self.seed);
        }
    }
}

fn scale(words: &[String]) {
    let count = |name, or| number(words, name, or) as usize;
    let size = Size { hubs: count("--hubs", 50), networks: count("--networks", 100), members: count("--members", 100) };
    let mut paper = Paper::new("sim-scale", "Many hubs and nodes, simulated");
    paper.say(format!(
        "{} hubs that all reach each other and serve {} networks with {} members each; all machines in one process, in \
         virtual time. Memory is that of the whole process.\n",
        size.hubs, size.networks, size.members
    ));
    paper.say("| what | virtual time | control messages | their MB | datagrams | their MB | timeouts | memory, MiB | wall time, s |");
    paper.say("|---|---|---|---|---|---|---|---|---|");
    let begin = Instant::now();
    let mut missed = Vec::new();
    scale::run(size, 1, begin, |part| {
        let sent = part.sent;
        paper.say(format!(
            "| {} | {} | {} | {:.1} | {} | {:.1} | {} | {} | {:.0} |",
            part.name,
            part.took.map_or_else(|| "never".to_owned(), |took| format!("{took:.2?}")),
            sent.messages,
            sent.message_bytes as f64 / 1e6,
            sent.datagrams,
            sent.datagram_bytes as f64 / 1e6,
            sent.timeouts,
            resident(),
            begin.elapsed().as_secs_f64()
        ));
        if part.took.is_none() {
            missed.push(part.name);
        }
    });
    paper.must(missed.is_empty(), &format!("never: {missed:?}"));
    paper.end();
}

/// MiB that this process has in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

fn word(words: &[String], name: &str) -> Option<String> {
    let at = words.iter().position(|word| word == name)?;
    words.get(at + 1).cloned()
}

fn number(words: &[String], name: &str, or: u64) -> u64 {
    word(words, name).map_or(or, |text| text.parse().unwrap_or_else(|_| panic!("{name} needs a number, not {text}")))
}
