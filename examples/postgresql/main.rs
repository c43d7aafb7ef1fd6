//! PostgreSQL streaming replication between two LANs, and the hub that carries it fails again and again.
//!
//! ```text
//!                 h1        h2        h3          three hubs
//!                   \       |        /
//!                    ---- inet ------
//!                   /                \
//!              a-nat                  b-nat       symmetric NATs: no direct path
//!             /     \                /     \
//!    gateway a      a-1     gateway b       b-1   a and b run flatlan, a-1 and b-1 do not
//!              192.168.1.11           192.168.2.11
//!               primary  ---- WAL ---> standby
//! ```
//!
//! In this order: two sites join a network with three hubs; a-1 gets a primary, b-1 a standby that was cloned from it over
//! the overlay, pgbench writes to the primary at a steady rate; then the hub in use is killed, frozen and cut off in turn,
//! each time for some seconds. All the time `pg_stat_replication` must show the standby's own LAN address and one and the
//! same walsender; the standby must be less than 200 ms behind again within two seconds; and in the end both hold the same
//! rows. What it does not do: fail over the database.
//!
//! `examples/postgresql/run [--rounds N]`, as root; needs Debian's `postgresql`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people"
)]
#![allow(clippy::indexing_slicing, reason = "a status is what it is")]

#[path = "../../tests/long.d/measure.rs"]
mod measure;
mod server;

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Nat, Process, TrafficLog};
use measure::{Flags, Paper};
use server::Cluster;

fn main() {
    let flags = Flags::read(&["--rounds", "--flatlan"]);
    let rounds = flags.number("--rounds", 3);
    let Some(programs) = server::programs() else {
        eprintln!("error: no PostgreSQL server here: apt-get install --no-install-recommends postgresql");
        std::process::exit(3);
    };
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("error: not root: the database's programs must run as the user postgres");
        std::process::exit(3);
    }
    flatlan_lab::enter().unwrap();

    println!("two sites, three hubs");
    let lab = Lab::builder().flatlan(flags.word("--flatlan").unwrap_or(env!("CARGO_BIN_EXE_flatlan")));
    let lab = HUBS.into_iter().fold(lab, |lab, hub| lab.hub(hub));
    let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let [primary_host, standby_host] = ["a", "b"].map(|site| &lab.site(site).unwrap().hosts()[0]);
    let [primary_ip, standby_ip] = [primary_host, standby_host].map(|host| host.addresses()[0]);
    lab.wait_reachable(standby_host.namespace(), primary_ip, PATIENCE).unwrap();

    println!("a primary on a-1 ({primary_ip}), a standby on b-1 ({standby_ip})");
    let cluster = Cluster::new(programs);
    let primary = cluster.primary(primary_host.namespace(), primary_ip, standby_ip);
    primary.pgbench(&["--initialize", "--quiet", "--scale", "2"]);
    let standby = cluster.standby(standby_host.namespace(), standby_ip, &primary);
    let load = primary.load(&["--client", "4", "--rate", RATE, "--time", "86400", "--no-vacuum"]);

    let senders = primary.watch(&format!("SELECT count(*), {SENDER} FROM pg_stat_replication"));
    let lags =
        standby.watch("SELECT round(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)");
    let wires = lab.watch_traffic(Duration::from_millis(20)).unwrap();
    wait(&lags, "a small lag", |line| lag(line).is_some_and(|lag| lag < LAG));

    let mut paper = Paper::new("postgresql", "PostgreSQL replication over hubs that fail");
    paper.say("Streaming replication from LAN host a-1 to LAN host b-1 behind two gateways, three hubs, pgbench at");
    paper.say(format!(
        "{RATE} transactions a second. Lag: age of the newest transaction that the standby has replayed, in ms.\n"
    ));
    let columns = "fault of the hub in use | hub | it carried in the second before, kB | longest lag | below 200 ms again \
                   after | longest lag after 2 s";
    paper.head(&columns.split(" | ").collect::<Vec<_>>());
    calm(&mut paper, &lags);
    for _ in 0..rounds {
        for fault in [Fault::Kill, Fault::Freeze, Fault::Cut] {
            strike(&mut paper, &lab, &wires, &lags, fault);
        }
    }

    load.stop(PATIENCE).unwrap();
    judge_senders(&mut paper, &senders, &standby_ip.to_string());
    let sums = [&primary, &standby].map(|server| {
        server.wait_replayed(&primary);
        server.query(SUM)
    });
    paper.say(format!("Rows on both in the end: {}.", if sums[0] == sums[1] { "the same" } else { "NOT THE SAME" }));
    paper.must(sums[0] == sums[1], &format!("rows differ: {sums:?}"));
    paper.end();
}

/// The control: nothing fails.
fn calm(paper: &mut Paper, lags: &Process) {
    let at = Instant::now();
    std::thread::sleep(DOWN);
    let worst = worst(lags, at, Instant::now());
    paper.say(format!("| none (control) | - | - | {worst} | - | {worst} |"));
}

/// One failure of the hub that carries the replication.
fn strike(paper: &mut Paper, lab: &Lab, wires: &TrafficLog, lags: &Process, fault: Fault) {
    let (hub, bytes) = carrier(lab, wires);
    let at = match fault {
        Fault::Kill => lab.kill(&hub).unwrap(),
        Fault::Freeze => lab.freeze(&hub).unwrap(),
        Fault::Cut => lab.cut(&hub).unwrap(),
    };
    std::thread::sleep(DOWN);
    let end = Instant::now();
    let longest = worst(lags, at, end);
    let late = worst(lags, at + WITHIN, end);
    let back = last_above(lags, at, end).map_or(Duration::ZERO, |last| last - at);
    let (name, bytes) = (fault.word(), bytes / 1000);
    println!("  {name} {hub}: longest lag {longest} ms, below {LAG} ms again after {} ms", back.as_millis());
    paper.say(format!("| {name} | {hub} | {bytes} | {longest} | {} | {late} |", back.as_millis()));
    paper.must(late < LAG, &format!("{name} {hub}: {late} ms behind two seconds later"));
    match fault {
        Fault::Kill => drop(lab.restart(&hub).unwrap()),
        Fault::Freeze => drop(lab.thaw(&hub).unwrap()),
        Fault::Cut => drop(lab.heal(&hub).unwrap()),
    }
    std::thread::sleep(REST);
}

/// What the walsender was in all the looks at it.
fn judge_senders(paper: &mut Paper, senders: &Process, standby: &str) {
    let lines = senders.lines();
    let first = lines.first().map(|line| line.text.clone()).unwrap_or_default();
    let others = lines.iter().filter(|line| line.text != first).count();
    paper.say(format!(
        "\nThe walsender (how many, pid, client_addr, backend_start, state): `{first}` in {} looks, another in {others}.",
        lines.len() - others
    ));
    let fields: Vec<&str> = first.split('|').collect();
    paper.must(fields.first() == Some(&"1") && fields.get(2) == Some(&standby), &format!("the walsender: {first}"));
    let other = lines.iter().find(|line| line.text != first);
    paper.must(other.is_none(), &format!("the walsender changed {others} times: {other:?}"));
}

/// The hub that carried most in the last second, where a's path leads over it: waits until there is one.
fn carrier(lab: &Lab, wires: &TrafficLog) -> (String, u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = Instant::now();
        let crossed = wires.between(now - Duration::from_secs(1), now);
        let hub = lab.hubs().map(|hub| hub.name()).max_by_key(|hub| crossed.of(hub).received_bytes).unwrap();
        let path = lab.path("a", "b").unwrap().unwrap_or_default();
        let bytes = crossed.of(hub).received_bytes;
        if path["via"][0] == hub && bytes > LEAST {
            return (hub.to_owned(), bytes);
        }
        assert!(now < deadline, "no hub carries the replication: {crossed:?}, {path}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn lag(line: &str) -> Option<u64> {
    // the clock of a transaction may be a moment ahead of the question
    line.trim().parse::<i64>().ok().map(|lag| u64::try_from(lag).unwrap_or(0))
}

/// The longest lag that was seen between two moments, in ms.
fn worst(lags: &Process, from: Instant, to: Instant) -> u64 {
    let lines = lags.lines();
    let seen = lines.iter().filter(|line| line.at >= from && line.at <= to).filter_map(|line| lag(&line.text));
    // nothing seen is as bad as it gets
    seen.max().unwrap_or(u64::MAX)
}

fn last_above(lags: &Process, from: Instant, to: Instant) -> Option<Instant> {
    let lines = lags.lines();
    let above = |text: &str| lag(text).is_none_or(|lag| lag >= LAG);
    lines.iter().filter(|line| line.at >= from && line.at <= to && above(&line.text)).map(|line| line.at).max()
}

fn wait(process: &Process, what: &str, wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !process.lines().last().is_some_and(|line| wanted(&line.text)) {
        assert!(Instant::now() < deadline, "never {what}: {}", process.tail(5));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Freeze,
    Cut,
}

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Self::Kill => "killed (SIGKILL)",
            Self::Freeze => "frozen (SIGSTOP)",
            Self::Cut => "cut off in silence",
        }
    }
}

const HUBS: [&str; 3] = ["h1", "h2", "h3"];
/// Transactions a second.
const RATE: &str = "200";
/// What is asked of a walsender.
const SENDER: &str = "min(pid), min(host(client_addr)), min(backend_start), min(state)";
/// Every row counts.
const SUM: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                   (SELECT sum(bbalance) FROM pgbench_branches), (SELECT count(*) FROM pgbench_history), \
                   (SELECT sum(delta) FROM pgbench_history)";
/// The lag that counts as none, in ms, and when it has to be reached.
const LAG: u64 = 200;
const WITHIN: Duration = Duration::from_secs(2);
/// How long a hub is away, and there again.
const DOWN: Duration = Duration::from_secs(6);
const REST: Duration = Duration::from_secs(6);
/// Bytes in a second that only the replication can be.
const LEAST: u64 = 50_000;
const PATIENCE: Duration = Duration::from_secs(30);
