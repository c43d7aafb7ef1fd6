//! The run: rounds in turns, and what becomes of what fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flatlan_lab::{Probe, require};

use crate::Args;
use crate::arena::{Arena, Machine, Mode};
use crate::cpu;
use crate::figure::{Figure, Figures, Flow, Rate};
use crate::limit::{self, Limit, Part};
use crate::peer::{Peer, Running};
use crate::stats::Summary;
use crate::{measure, path, readme, table};

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// The values of all rounds.
    pub(crate) values: BTreeMap<(Mode, Peer), BTreeMap<Figure, Vec<f64>>>,
    /// What the parts of a tunnel took, once a round.
    pub(crate) limits: Vec<Limit>,
    /// The paths that flatlan's nodes told, in words.
    pub(crate) paths: BTreeMap<Mode, BTreeSet<String>>,
    /// Measurements of flatlan that are void or failed: the run fails.
    pub(crate) voids: Vec<String>,
    /// What failed of others.
    pub(crate) failures: Vec<String>,
}

/// Measures everything that the arguments ask for.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    require(["iperf3", "ip", "ping", "nft", "ss"])?;
    let binary = binary(args)?;
    let binary = binary.to_str().context("--flatlan: a path that is no text")?;
    let peers = installed(args.peers.as_deref())?;
    let arena = Arena::open()?;
    let mut results = Results::default();
    for round in 1..=args.rounds {
        eprintln!("round {round}, the limit");
        match limit::measure(&arena) {
            Ok(limit) => {
                eprintln!("  {limit:.2?}");
                results.limits.push(limit);
            }
            Err(error) => results.fail(format!("round {round}, the limit: {error:#}")),
        }
        for mode in &args.modes {
            for peer in peers.iter().filter(|peer| peer.supports(*mode)) {
                let what = format!("round {round}, {}, {}", mode.word(), peer.word());
                eprintln!("{what}");
                let turn = Turn { arena: &arena, mode: *mode, peer: *peer, binary, args };
                match turn.measure(&what, &mut results) {
                    Err(error) if *peer == Peer::Flatlan => results.void(format!("{what}: {error:#}")),
                    Err(error) => results.fail(format!("{what}: {error:#}")),
                    Ok(()) => {}
                }
            }
        }
    }
    drop(arena);
    finish(args, &peers, binary, &results)
}

/// Writes what was measured, and judges whether it counts.
fn finish(args: &Args, peers: &[Peer], binary: &str, results: &Results) -> Result<ExitCode> {
    let invalid = results.invalid();
    let head = table::Head::new(args, peers, binary);
    let text = table::render(&head, args, peers, results);
    println!("{text}");
    let out = args.out.clone().unwrap_or_else(|| root().join("tests/results/bench.md"));
    std::fs::write(&out, &text).with_context(|| format!("cannot write {}", out.display()))?;
    eprintln!("written to {}", out.display());
    if results.voids.is_empty() && invalid.is_none() {
        if args.out.is_none() && !args.quick {
            readme::replace(&root().join("README.md"), &table::short(&head, args, peers, results))?;
            eprintln!("the table in README.md is this run's");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !results.voids.is_empty() {
        eprintln!("error: {} measurements of flatlan do not count", results.voids.len());
    }
    if let Some(invalid) = invalid {
        eprintln!("error: {invalid}");
    }
    Ok(ExitCode::FAILURE)
}

/// The binary that is measured: the one given, else the one beside this program.
fn binary(args: &Args) -> Result<PathBuf> {
    let path = match &args.flatlan {
        Some(given) => given.clone(),
        None => std::env::current_exe().context("cannot find this program")?.with_file_name("flatlan"),
    };
    path.canonicalize().with_context(|| format!("cannot find {}", path.display()))
}

/// The checkout that this was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Whom this machine can measure. Says whom it cannot.
fn installed(wanted: Option<&[Peer]>) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for peer in wanted.unwrap_or(&Peer::ALL) {
        match require(peer.programs()) {
            Ok(()) => peers.push(*peer),
            Err(_) if wanted.is_some() => bail!("{} is not installed: {}", peer.word(), peer.install()),
            Err(_) => eprintln!("without {}, which is not installed: {}", peer.word(), peer.install()),
        }
    }
    Ok(peers)
}

impl Results {
    /// Why no number of this run counts, where that is so. Its ratios still do.
    pub(crate) fn invalid(&self) -> Option<String> {
        if self.limits.is_empty() {
            return Some("the limit of this machine could not be measured".to_owned());
        }
        let slow = |part: &Part| {
            let seconds = self.limit(*part)?.median;
            let percent = (seconds / part.reference() - 1.0) * 100.0;
            part.is_worse(seconds).then(|| format!("{part}: {percent:.0} % worse"))
        };
        let slow: Vec<String> = Part::ALL.iter().filter_map(slow).collect();
        let why = "this machine is slower than the reference, or busy: only the ratios in this run hold";
        (!slow.is_empty()).then(|| format!("{why} ({})", slow.join("; ")))
    }

    /// What a part took, in processor seconds per gigabyte.
    pub(crate) fn limit(&self, part: Part) -> Option<Summary> {
        let of = |limit: &Limit| Part::ALL.into_iter().zip(limit.seconds).find(|(other, _)| *other == part);
        Summary::of(&self.limits.iter().filter_map(of).map(|(_, seconds)| seconds).collect::<Vec<_>>())
    }

    /// The sum of all parts.
    pub(crate) fn whole_limit(&self) -> Option<Summary> {
        Summary::of(&self.limits.iter().map(|limit| limit.seconds.iter().sum()).collect::<Vec<_>>())
    }

    fn add(&mut self, mode: Mode, peer: Peer, figures: Figures) {
        let values = self.values.entry((mode, peer)).or_default();
        for (figure, value) in figures {
            values.entry(figure).or_default().push(value);
        }
    }

    fn void(&mut self, what: String) {
        eprintln!("  VOID: {what}");
        self.voids.push(what);
    }

    fn fail(&mut self, what: String) {
        eprintln!("  failed: {what}");
        self.failures.push(what);
    }
}

/// One overlay in one mode and round.
struct Turn<'a> {
    arena: &'a Arena,
    mode: Mode,
    peer: Peer,
    binary: &'a str,
    args: &'a Args,
}

impl Turn<'_> {
    fn measure(&self, what: &str, results: &mut Results) -> Result<()> {
        self.arena.leave()?;
        self.peer.prepare(self.arena, self.mode, self.binary)?;
        self.arena.enter(self.mode)?;
        let (running, seconds) = measure::start(self.arena, self.peer, self.mode, self.binary)?;
        results.add(self.mode, self.peer, Figures::from([(Figure::Start, seconds)]));
        self.settle(&running)?;
        let mut step = |measurement: &dyn Fn() -> Result<Figures>| -> Result<()> {
            let before = self.path()?;
            let figures = measurement()?;
            let after = self.path();
            if let Some(before) = before {
                eprintln!("  path before: {before}");
                match after {
                    Ok(Some(after)) => {
                        eprintln!("  path after:  {after}");
                        results.paths.entry(self.mode).or_default().extend([before, after]);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        results.void(format!("{what}: {error:#}"));
                        return Ok(());
                    }
                }
            }
            for (figure, value) in &figures {
                eprintln!("  {figure}: {value:.*}", figure.decimals());
            }
            results.add(self.mode, self.peer, figures);
            Ok(())
        };
        step(&|| measure::ping_idle(self.arena))?;
        step(&|| measure::tcp(&running, Flow::One, self.args.seconds))?;
        if !self.args.quick {
            step(&|| measure::tcp(&running, Flow::Four, self.args.seconds))?;
            step(&|| measure::tcp(&running, Flow::Reverse, self.args.seconds))?;
            step(&|| measure::tcp(&running, Flow::Both, self.args.seconds))?;
        }
        step(&|| measure::ping_loaded(&running, self.args.seconds))?;
        for (bytes, rate) in self.datagrams() {
            step(&|| measure::udp(self.arena, bytes, rate))?;
        }
        let (ends, hubs) = cpu::memory(&running);
        let sizes = [(Figure::MemoryEnds, ends), (Figure::MemoryHub, hubs)];
        let sizes = sizes.into_iter().filter(|(_, size)| *size > 0.0);
        results.add(self.mode, self.peer, sizes.collect());
        Ok(())
    }

    /// Lets the overlay come to rest, under a little traffic; flatlan must take the path of the mode.
    fn settle(&self, running: &Running<'_>) -> Result<()> {
        let arena = running.arena;
        let probe = Probe::ping(arena.at(Machine::A)?, Machine::B.overlay().into(), SETTLE / 50)?;
        if self.peer == Peer::Flatlan {
            path::wait(arena, self.mode, self.binary)?;
        }
        probe.wait_answers(50, SETTLE * 20).with_context(|| running.tails())?;
        Ok(())
    }

    /// Where flatlan is measured: both nodes' paths, which must be the mode's.
    fn path(&self) -> Result<Option<String>> {
        (self.peer == Peer::Flatlan).then(|| path::check(self.arena, self.mode, self.binary)).transpose()
    }

    fn datagrams(&self) -> Vec<(u16, Rate)> {
        if self.args.quick {
            return vec![(64, Rate::PerSecond(200_000))];
        }
        let rates = [Rate::PerSecond(50_000), Rate::PerSecond(200_000), Rate::Unlimited];
        [64, 1200].into_iter().flat_map(|bytes| rates.map(|rate| (bytes, rate))).collect()
    }
}

/// How long an overlay has to come to rest.
const SETTLE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn results(seconds: [f64; 5]) -> Results {
        let limit =
            Limit { others: 0.0, cipher_ns: 2200.0, super_packet: 40_000.0, tun_rate: 12.0, udp_rate: 39.0, seconds };
        Results { limits: vec![limit], ..Results::default() }
    }

    #[test]
    fn a_machine_like_the_reference_makes_a_run_that_counts() {
        assert_eq!(results(Part::ALL.map(Part::reference)).invalid(), None);
    }

    #[test]
    fn a_slow_part_is_named_where_it_voids_a_run() {
        let told = results([1.55, 1.07 * 1.5, 0.3, 0.08, 0.05]).invalid().unwrap();
        assert!(told.contains("TUN to TUN") && told.contains("50 % worse") && !told.contains("ChaCha"), "{told}");
    }

    #[test]
    fn a_run_without_a_limit_does_not_count() {
        assert!(Results::default().invalid().is_some());
    }
}
