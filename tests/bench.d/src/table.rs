//! What is written: per mode a table of medians and spreads, and one of ratios.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use crate::Args;
use crate::arena::Mode;
use crate::figure::Figure;
use crate::peer::Peer;
use crate::run::{Results, root};
use crate::stats::Summary;

/// The whole text.
pub(crate) fn render(args: &Args, peers: &[Peer], binary: &str, results: &Results) -> String {
    let mut text = head(args, peers, binary);
    for mode in &args.modes {
        let _ = writeln!(text, "\n## {}\n", mode.title());
        text.push_str(&values(*mode, peers, results));
        text.push_str("\nflatlan / other, of medians:\n\n");
        text.push_str(&ratios(*mode, peers, results));
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

fn head(args: &Args, peers: &[Peer], binary: &str) -> String {
    let mut text = "# flatlan beside others\n\n".to_owned();
    text.push_str("`tests/bench`: median (least-most). Everything shares the cores of this one machine: only ratios within one run hold.\n\n");
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let _ = writeln!(text, "* {}, commit {}", command("date", &["-u", "+%Y-%m-%d %H:%M UTC"]), commit());
    let _ = writeln!(text, "* kernel {}, {cores} cores,{}", kernel.trim(), model.unwrap_or(" unknown"));
    let _ = writeln!(text, "* {} rounds in turns, TCP {} s each", args.rounds, args.seconds);
    let versions: Vec<String> = peers.iter().map(|peer| format!("{}: {}", peer.word(), peer.version(binary))).collect();
    let _ = writeln!(text, "* {}", versions.join("; "));
    text
}

fn values(mode: Mode, peers: &[Peer], results: &Results) -> String {
    let peers: Vec<Peer> = peers.iter().copied().filter(|peer| results.values.contains_key(&(mode, *peer))).collect();
    let mut text = row("", peers.iter().map(|peer| peer.word().to_owned()));
    text.push_str(&rule(peers.len()));
    for figure in figures(mode, results) {
        let cell = |peer: &Peer| {
            summary(mode, *peer, figure, results)
                .map_or_else(|| "-".to_owned(), |summary| summary.shown(figure.decimals()))
        };
        text.push_str(&row(&figure.to_string(), peers.iter().map(cell)));
    }
    text
}

fn ratios(mode: Mode, peers: &[Peer], results: &Results) -> String {
    let known = |peer: &Peer| *peer != Peer::Flatlan && results.values.contains_key(&(mode, *peer));
    let peers: Vec<Peer> = peers.iter().copied().filter(known).collect();
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

fn commit() -> String {
    let folder = root().to_string_lossy().into_owned();
    let hash = command("git", &["-C", &folder, "rev-parse", "--short=12", "HEAD"]);
    let changed = !command("git", &["-C", &folder, "status", "--porcelain", "--untracked-files=no"]).is_empty();
    if changed { format!("{hash} with changes") } else { hash }
}

fn command(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
