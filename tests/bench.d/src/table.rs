//! What is written: the machine and its limit, then per mode a table of medians and spreads, and one of ratios.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use crate::Args;
use crate::arena::{CONGESTION_CONTROL, Mode};
use crate::figure::{Figure, Flow, Part, Rate, Share};
use crate::limit::{self, REFERENCE_MACHINE, SUPER_PACKET};
use crate::peer::Peer;
use crate::run::{Results, root};
use crate::stats::Summary;

/// When, where and what.
#[derive(Debug)]
pub(crate) struct Head {
    date: String,
    commit: String,
    kernel: String,
    cores: usize,
    processor: String,
    versions: String,
}

impl Head {
    /// Looks at the machine.
    pub(crate) fn new(args: &Args, peers: &[Peer], binary: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
        let versions: Vec<String> =
            peers.iter().map(|peer| format!("{}: {}", peer.word(), peer.version(binary))).collect();
        let folder = root().to_string_lossy().into_owned();
        let hash = said("git", &["-C", &folder, "rev-parse", "--short=12", "HEAD"]);
        let changed = !said("git", &["-C", &folder, "status", "--porcelain", "--untracked-files=no"]).is_empty();
        let with_changes = if changed { " with changes" } else { "" };
        let given = if args.flatlan.is_some() { ", flatlan's binary given" } else { "" };
        Self {
            date: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit: format!("{hash}{with_changes}{given}"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: model.unwrap_or("unknown").trim().to_owned(),
            versions: versions.join("; "),
        }
    }
}

/// The whole text.
pub(crate) fn render(head: &Head, args: &Args, peers: &[Peer], results: &Results) -> String {
    let mut text = "# flatlan beside others\n\n".to_owned();
    if let Some(invalid) = results.invalid() {
        let _ = writeln!(text, "**Invalid: {invalid}.**\n");
    }
    if !results.voids.is_empty() {
        let _ = writeln!(text, "**{} measurements of flatlan do not count: see the end.**\n", results.voids.len());
    }
    text.push_str("`tests/bench`: median (least-most). Both ends, hubs, router and the measuring programs share the\n");
    text.push_str("cores of this one machine: only ratios within one run hold.\n\n");
    let _ = writeln!(text, "* {}, commit {}", head.date, head.commit);
    let _ = writeln!(text, "* kernel {}, {} cores, {}", head.kernel, head.cores, head.processor);
    let _ =
        writeln!(text, "* rounds in turns: {}; each TCP flow {} s, {CONGESTION_CONTROL}", args.rounds, args.seconds);
    let _ = writeln!(text, "* {}", head.versions);
    text.push_str("\n## The limit\n\n");
    text.push_str(&limits(results));
    for mode in &args.modes {
        let _ = writeln!(text, "\n## {}\n", mode.title());
        text.push_str(&values(*mode, peers, results));
        let ratios = ratios(*mode, peers, results);
        if !ratios.is_empty() {
            let _ = write!(text, "\nflatlan / other, of medians:\n\n{ratios}");
        }
        if let Some(paths) = results.paths.get(mode) {
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let _ = writeln!(text, "\nflatlan's paths before and after each measurement: {}", paths.join(" · "));
        }
    }
    for (title, lines) in [("Void", &results.voids), ("Failed", &results.failures)] {
        if !lines.is_empty() {
            let _ = writeln!(text, "\n## {title}\n\n* {}", lines.join("\n* "));
        }
    }
    text
}

/// What README.md shows.
pub(crate) fn short(head: &Head, args: &Args, peers: &[Peer], results: &Results) -> String {
    let Head { date, commit, kernel, cores, .. } = head;
    let mut text = format!("{date}, kernel {kernel}, {cores} cores, commit {commit}, medians of {}:\n\n", args.rounds);
    let columns = [
        ("TCP Gbit/s", Figure::Tcp(Flow::One, Part::Rate)),
        ("CPU s/GB, ends", Figure::Tcp(Flow::One, Part::Ends)),
        ("CPU s/GB, hubs", Figure::Tcp(Flow::One, Part::Hubs)),
        ("ping idle p50 ms", Figure::PingIdle(Share::P50)),
        ("ping under TCP p99 ms", Figure::PingLoaded(Share::P99)),
        ("64 B UDP k/s of 200", Figure::Udp(64, Rate::PerSecond(200_000))),
    ];
    text.push_str(&row("", columns.iter().map(|(title, _)| (*title).to_owned())));
    text.push_str(&rule(columns.len()));
    for mode in &args.modes {
        for peer in peers.iter().filter(|peer| results.values.contains_key(&(*mode, **peer))) {
            let cell = |(_, figure): &(_, Figure)| {
                let summary = summary(*mode, *peer, *figure, results);
                summary.map_or_else(|| "-".to_owned(), |summary| format!("{:.*}", figure.decimals(), summary.median))
            };
            text.push_str(&row(&format!("{}, {}", mode.word(), peer.word()), columns.iter().map(cell)));
        }
    }
    if let Some(share) = shares_of_limit(results).into_iter().next() {
        let _ = writeln!(text, "\n{share}");
    }
    text
}

fn limits(results: &Results) -> String {
    let mut text = row("CPU s/GB", ["this run", "reference", "this / reference"].map(str::to_owned).into_iter());
    text.push_str(&rule(3));
    for part in limit::Part::ALL {
        text.push_str(&limit_row(&part.to_string(), results.limit(part), part.reference()));
    }
    let reference = limit::Part::ALL.into_iter().map(limit::Part::reference).sum();
    text.push_str(&limit_row("sum: the limit", results.whole_limit(), reference));
    let of = |of: fn(&limit::Limit) -> f64| Summary::of(&results.limits.iter().map(of).collect::<Vec<_>>());
    let median = |value: fn(&limit::Limit) -> f64| of(value).map_or(f64::NAN, |summary| summary.median);
    let packet = median(|limit| limit.super_packet);
    let least = if packet < SUPER_PACKET { ", less than the reference's 36 KB" } else { "" };
    let _ = writeln!(
        text,
        "\nSealed and opened in {:.0} ns; TUN to TUN {:.1} Gbit/s, mean super-packet {:.1} KB{least}; runs {:.1} Gbit/s.",
        median(|limit| limit.cipher_ns),
        median(|limit| limit.tun_rate),
        packet / 1e3,
        median(|limit| limit.udp_rate),
    );
    let others = of(|limit| limit.others).map_or_else(String::new, |summary| summary.shown(2));
    let _ =
        writeln!(text, "Busy with something else, before each round: {others} cores. Reference: {REFERENCE_MACHINE}.");
    for share in shares_of_limit(results) {
        let _ = writeln!(text, "\n{share}");
    }
    text
}

fn limit_row(name: &str, summary: Option<Summary>, reference: f64) -> String {
    let shown = summary.map_or_else(|| "-".to_owned(), |summary| summary.shown(2));
    let ratio = summary.map_or_else(|| "-".to_owned(), |summary| format!("{:.2}", summary.median / reference));
    row(name, [shown, format!("{reference:.2}"), ratio].into_iter())
}

/// How near flatlan comes to the limit: direct, TCP one stream.
fn shares_of_limit(results: &Results) -> Vec<String> {
    let Some(limit) = results.whole_limit() else { return Vec::new() };
    let of = [(Part::Ends, "flatlan's processes at both ends"), (Part::Host, "the whole machine")];
    let share = |(part, whose): (Part, &str)| {
        let ours = summary(Mode::Direct, Peer::Flatlan, Figure::Tcp(Flow::One, part), results)?;
        let (limit, ours) = (limit.median, ours.median);
        Some(format!(
            "limit / ours, direct, one TCP stream: {:.2} ({limit:.2} / {ours:.2} CPU s/GB of {whose})",
            limit / ours
        ))
    };
    of.into_iter().filter_map(share).collect()
}

fn values(mode: Mode, peers: &[Peer], results: &Results) -> String {
    let peers: Vec<Peer> = peers.iter().copied().filter(|peer| results.values.contains_key(&(mode, *peer))).collect();
    let mut text = row("", peers.iter().map(|peer| peer.word().to_owned()));
    text.push_str(&rule(peers.len()));
    for figure in figures(mode, results) {
        let cell = |peer: &Peer| {
            let summary = summary(mode, *peer, figure, results);
            summary.map_or_else(|| "-".to_owned(), |summary| summary.shown(figure.decimals()))
        };
        text.push_str(&row(&figure.to_string(), peers.iter().map(cell)));
    }
    text
}

fn ratios(mode: Mode, peers: &[Peer], results: &Results) -> String {
    let known = |peer: &Peer| *peer != Peer::Flatlan && results.values.contains_key(&(mode, *peer));
    let peers: Vec<Peer> = peers.iter().copied().filter(known).collect();
    if peers.is_empty() {
        return String::new();
    }
    let mut text = row("", peers.iter().map(|peer| peer.word().to_owned()));
    text.push_str(&rule(peers.len()));
    for figure in figures(mode, results) {
        let Some(ours) = summary(mode, Peer::Flatlan, figure, results) else { continue };
        let cell = |peer: &Peer| {
            let theirs = summary(mode, *peer, figure, results).filter(|theirs| theirs.median > 0.0);
            theirs.map_or_else(|| "-".to_owned(), |theirs| format!("{:.2}", ours.median / theirs.median))
        };
        text.push_str(&row(&figure.to_string(), peers.iter().map(cell)));
    }
    text
}

fn figures(mode: Mode, results: &Results) -> BTreeSet<Figure> {
    let of_mode = results.values.iter().filter(|((of, _), _)| *of == mode);
    of_mode.flat_map(|(_, values)| values.keys().copied()).collect()
}

fn summary(mode: Mode, peer: Peer, figure: Figure, results: &Results) -> Option<Summary> {
    Summary::of(results.values.get(&(mode, peer))?.get(&figure)?)
}

fn row(first: &str, cells: impl Iterator<Item = String>) -> String {
    format!("| {first} | {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

fn rule(columns: usize) -> String {
    format!("|---|{}\n", "---|".repeat(columns))
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser as _;

    use super::*;
    use crate::limit::Limit;

    const RATE: Figure = Figure::Tcp(Flow::One, Part::Rate);
    const ENDS: Figure = Figure::Tcp(Flow::One, Part::Ends);
    const PEERS: [Peer; 2] = [Peer::Flatlan, Peer::WireguardGo];

    fn head() -> Head {
        let text = || "x".to_owned();
        Head { date: text(), commit: text(), kernel: text(), cores: 2, processor: text(), versions: text() }
    }

    /// Three rounds; the parts of the limit are so many times the reference's.
    fn results(slower: f64) -> Results {
        let seconds = limit::Part::ALL.map(|part| part.reference() * slower);
        let limit =
            Limit { others: 0.0, cipher_ns: 2200.0, super_packet: 6e4, tun_rate: 12.0, udp_rate: 39.0, seconds };
        let ours = BTreeMap::from([(RATE, vec![2.0, 4.0, 3.0]), (ENDS, vec![6.1, 6.1, 6.1])]);
        let theirs = BTreeMap::from([(RATE, vec![1.0, 2.0, 1.5]), (ENDS, vec![12.2, 12.2, 12.2])]);
        let values = [((Mode::Direct, Peer::Flatlan), ours), ((Mode::Direct, Peer::WireguardGo), theirs)];
        Results { values: values.into(), limits: vec![limit], ..Results::default() }
    }

    fn args() -> Args {
        Args::parse_from(["bench", "--modes", "direct", "--rounds", "3"])
    }

    #[test]
    fn medians_spreads_and_ratios_of_medians_are_shown() {
        let text = render(&head(), &args(), &PEERS, &results(1.0));
        assert!(text.contains("| TCP one stream, Gbit/s | 3.00 (2.00-4.00) | 1.50 (1.00-2.00) |"), "{text}");
        assert!(text.contains("| TCP one stream, Gbit/s | 2.00 |"), "{text}");
        assert!(text.contains("limit / ours, direct, one TCP stream: 0.50 (3.05 / 6.10"), "{text}");
        assert!(!text.contains("Invalid"), "{text}");
    }

    #[test]
    fn a_slow_machine_is_named_on_top() {
        let text = render(&head(), &args(), &PEERS, &results(1.5));
        let invalid = text.find("**Invalid").unwrap();
        assert!(invalid < text.find("## The limit").unwrap(), "{text}");
    }

    #[test]
    fn the_short_table_has_a_row_for_each_overlay_and_what_was_not_measured_is_a_dash() {
        let text = short(&head(), &args(), &PEERS, &results(1.0));
        assert!(text.contains("| direct, flatlan | 3.00 | 6.10 | - | - | - | - |"), "{text}");
        assert!(text.contains("| direct, wireguard-go | 1.50 | 12.20 |"), "{text}");
        assert!(text.contains("limit / ours"), "{text}");
    }
}
