//! What people feel of a fault: a ping and a TCP echo each 10 ms, a paced TCP flow whose bytes are compared, numbered
//! datagrams each millisecond both ways; and which hubs carried them, by the router's counters.

#![allow(dead_code, reason = "every program takes what it needs")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatlan_lab::{Gap, Lab, Probe, Report, RunOptions, StallWatch, TrafficLog, Transfer, TransferReport};
use serde_json::Value;

use crate::support::{PATIENCE, gateway, path, wait_status};

/// Flows from site a to site b.
#[derive(Debug)]
pub(crate) struct Flows<'a> {
    lab: &'a Lab,
    wires: TrafficLog,
    machine: Option<StallWatch>,
    ping: Probe,
    echo: Probe,
    datagrams: [Probe; 2],
    bulk: Transfer,
}

impl<'a> Flows<'a> {
    /// Starts them, where b can be reached.
    pub(crate) fn start(lab: &'a Lab) -> Self {
        let (a, b) = (gateway(lab, "a"), gateway(lab, "b"));
        let [to_a, to_b] = ["a", "b"].map(|site| IpAddr::from(lab.site(site).unwrap().virtual_ip()));
        Self {
            lab,
            wires: lab.watch_traffic(SAMPLE).unwrap(),
            machine: StallWatch::start(),
            ping: Probe::ping(a, to_b, EACH).unwrap(),
            echo: Probe::tcp_echo(a, b, to_b, EACH).unwrap(),
            datagrams: [
                Probe::datagrams(a, b, to_b, EACH_DATAGRAM).unwrap(),
                Probe::datagrams(b, a, to_a, EACH_DATAGRAM).unwrap(),
            ],
            bulk: Transfer::start_paced(a, b, to_b, RATE).unwrap(),
        }
    }

    /// Lets them run for a while.
    pub(crate) fn run_for(&self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end {
            self.ping.wait_answers(5, PATIENCE).unwrap();
        }
        self.echo.wait_answers(1, PATIENCE).unwrap();
        self.bulk.wait_received(1, PATIENCE).unwrap();
    }

    /// Gaps of the bulk flow count from here on.
    pub(crate) fn forget_gaps(&self) {
        self.bulk.forget_gaps();
    }

    /// Every hub with what it received between two moments, the busiest first.
    pub(crate) fn carried(&self, from: Instant, to: Instant) -> Vec<Carried<'a>> {
        let crossed = self.wires.between(from, to);
        let share = |name: &'a str| Carried {
            hub: name,
            packets: crossed.of(name).received_packets,
            bytes: crossed.of(name).received_bytes,
        };
        let mut all: Vec<Carried<'a>> = self.lab.hubs().map(|hub| share(hub.name())).collect();
        all.sort_by_key(|carried| std::cmp::Reverse(carried.bytes));
        all
    }

    /// The one hub that carried all flows, both ways, in the last second; `None` where there was not one alone.
    pub(crate) fn carrier(&self) -> Option<&'a str> {
        let now = Instant::now();
        let carried = self.carried(now - Duration::from_secs(1), now);
        let (first, others) = carried.split_first()?;
        let alone = first.bytes > LEAST && others.iter().all(|other| other.packets < QUIET);
        alone.then_some(first.hub)
    }

    /// The hubs that carried something of the flows in the last `span`.
    pub(crate) fn carriers(&self, span: Duration) -> Vec<&'a str> {
        let now = Instant::now();
        let packets = u64::try_from(u128::from(QUIET) * span.as_millis() / 1000).unwrap_or(u64::MAX);
        let busy = self.carried(now - span, now).into_iter().filter(|carried| carried.packets >= packets);
        let mut names: Vec<&str> = busy.map(|carried| carried.hub).collect();
        names.sort_unstable();
        names
    }

    /// Ends them, after all that was sent has arrived or is lost, and says what was felt since `at`.
    pub(crate) fn stop(self, at: Instant) -> Felt {
        let end = Instant::now();
        let longest = |report: &Report| report.longest_gap_between(at, end).length;
        let carried = self.carried(end - Duration::from_secs(1), end);
        let moved = carried.iter().map(|carried| carried.bytes).sum::<u64>() > LEAST;
        let [there, back] = self.datagrams.map(|probe| probe.finish(UNDER_WAY));
        let (ping, echo) = (self.ping.finish(UNDER_WAY), self.echo.finish(UNDER_WAY));
        let bulk = self.bulk.stop(PATIENCE);
        let machine = self.machine.as_ref();
        let away = |from, to| machine.map(|machine| machine.away(from, to)).unwrap_or_default();
        let away_of_one = |from, to| machine.map(|machine| machine.away_of_one(from, to)).unwrap_or_default();
        let without = |report: &Report| report.longest_gap_without(at, end, away);
        let without_one = |report: &Report| report.longest_gap_without(at, end, away_of_one);
        let whole = echo.broken().is_none() && bulk.broken.is_none() && bulk.equal;
        Felt {
            ping: longest(&ping),
            echo: longest(&echo),
            without_one: without_one(&ping).max(without_one(&echo)),
            without: without(&ping).max(without(&echo)),
            bulk: since(bulk.longest_gap, at),
            datagrams: [&there, &back].map(longest),
            lost: [&there, &back].map(|report| report.sent() - report.answered()),
            whole,
            alive: whole && moved,
            transfer: bulk,
        }
    }
}

/// What a hub received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Carried<'a> {
    pub(crate) hub: &'a str,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// What the flows felt: longest gaps, and losses.
#[derive(Debug)]
pub(crate) struct Felt {
    pub(crate) ping: Duration,
    pub(crate) echo: Duration,
    /// The worse of both without the time in which the machine itself stood still, all of it.
    pub(crate) without: Duration,
    /// And without the time in which one core did, for information: what ran there waited, the other core went on.
    pub(crate) without_one: Duration,
    pub(crate) bulk: Duration,
    /// From a to b, and back.
    pub(crate) datagrams: [Duration; 2],
    pub(crate) lost: [usize; 2],
    /// The connections are those of the start, and every byte came as it was sent.
    pub(crate) whole: bool,
    /// And they moved on at their rate to the end.
    pub(crate) alive: bool,
    pub(crate) transfer: TransferReport,
}

impl Felt {
    /// The worse of ping and echo.
    pub(crate) fn gap(&self) -> Duration {
        self.ping.max(self.echo)
    }
}

fn since(gap: Gap, at: Instant) -> Duration {
    if gap.from + gap.length > at { gap.length } else { Duration::ZERO }
}

/// Starts the sites again with a log that says why a path changed.
pub(crate) fn explain(lab: &Lab) {
    for site in ["a", "b"] {
        lab.up_with(site, &RunOptions::args(["--log", "info,flatlan_node::node=debug"])).unwrap();
    }
}

/// What the logs say of it.
pub(crate) fn reasons(lab: &Lab) -> Vec<String> {
    let of = |site: &&str| said(lab, site).into_iter().map(|line| format!("{site}: {line}")).collect::<Vec<_>>();
    ["a", "b"].iter().flat_map(of).collect()
}

/// What a site said of its paths, from its start on.
fn said(lab: &Lab, site: &str) -> Vec<String> {
    let lines = lab.process(site).unwrap().lines().into_iter().map(|line| line.text);
    lines.filter(|line| line.contains(MOVED) || line.contains(LANE)).collect()
}

/// How often the flows of each site to the other went another way: by what it says of every change, so that one which
/// is taken back at once counts as two. [`explain`] comes before.
#[derive(Debug)]
pub(crate) struct Changes {
    before: [usize; 2],
}

impl Changes {
    pub(crate) fn new(lab: &Lab) -> Self {
        Self { before: Self::all(lab) }
    }

    /// Of a and of b, until now.
    pub(crate) fn counts(&self, lab: &Lab) -> [usize; 2] {
        let [a, b] = Self::all(lab);
        [a - self.before[0], b - self.before[1]]
    }

    fn all(lab: &Lab) -> [usize; 2] {
        ["a", "b"].map(|site| count_changes(&said(lab, site)))
    }
}

/// A lane that carries flows went elsewhere, or the flows went to a lane that is elsewhere.
fn count_changes(lines: &[String]) -> usize {
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}="))?;
        let end = rest.find([' ', '"']).filter(|end| *end > 0).unwrap_or(rest.len());
        let quoted = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')).map(|(value, _)| value);
        Some(quoted.unwrap_or(&rest[..end]).to_owned())
    };
    let (mut carrier, mut way, mut count) = ("0".to_owned(), None, 0);
    for line in lines {
        let lane = field(line, "lane").unwrap_or_default();
        if line.contains(LANE) {
            carrier.clone_from(&lane);
        }
        let Some(path) = field(line, "path").filter(|path| lane == carrier && path != "none") else { continue };
        count += usize::from(way.replace(path.clone()).is_some_and(|before| before != path));
    }
    count
}

/// Waits until both sites are attached to all these hubs by this transport, and have a path to each other and another way
/// beside it. Keep traffic going meanwhile.
pub(crate) fn wait_settled(lab: &Lab, hubs: &[&str], transport: &str) {
    for (site, peer) in [("a", "b"), ("b", "a")] {
        wait_status(lab, site, &format!("{hubs:?} by {transport} and a standby"), |status| {
            let attached = |name: &&str| {
                let of = |hub: &&Value| hub["name"] == **name;
                let hub = status["hubs"].as_array().and_then(|all| all.iter().find(of));
                hub.is_some_and(|hub| hub["state"] == "attached" && hub["transport"] == transport)
            };
            let entry = status["peers"].as_array()?.iter().find(|entry| entry["name"] == peer)?;
            let way = path(status, peer)?;
            let other = entry["standby"].as_array()?.iter().any(|standby| standby["via"] != way["via"]);
            (hubs.iter().all(attached) && way["transport"] == transport && other).then_some(())
        });
    }
}

/// Between two questions of the ping and of the echo.
pub(crate) const EACH: Duration = Duration::from_millis(10);
/// Between two datagrams of a way.
const EACH_DATAGRAM: Duration = Duration::from_millis(1);
/// The TCP flow's rate, bits a second.
pub(crate) const RATE: u64 = 30_000_000;
/// What a node says when a lane goes another way, and when flows go to another lane.
const MOVED: &str = "path changed";
const LANE: &str = "flows changed lane";
/// Between two looks at the router's counters.
const SAMPLE: Duration = Duration::from_millis(20);
/// Bytes in a second that only the flows can be.
const LEAST: u64 = 2_000_000;
/// Packets in a second that are fewer than the datagrams of one way alone, and more than what keeps a way warm.
const QUIET: u64 = 400;
/// How long something may be under way.
const UNDER_WAY: Duration = Duration::from_millis(600);
