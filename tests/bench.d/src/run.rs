//! The run: rounds in turns, and what becomes of what fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use flatlan_lab::{Probe, require};

use crate::Args;
use crate::arena::{Arena, Machine, Mode};
use crate::cpu;
use crate::figure::{Figure, Figures, Flow, Rate};
use crate::peer::{Peer, Running};
use crate::{measure, path, table};

/// Everything that was measured.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// The values of all rounds.
    pub(crate) values: BTreeMap<(Mode, Peer), BTreeMap<Figure, Vec<f64>>>,
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
    let binary = args.flatlan.canonicalize().with_context(|| format!("cannot find {}", args.flatlan.display()))?;
    let binary = binary.to_str().context("--flatlan: a path that is no text")?;
    let peers = installed(args.peers.as_deref())?;
    let arena = Arena::open()?;
    let mut results = Results::default();
    for round in 1..=args.rounds {
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
    let text = table::render(args, &peers, binary, &results);
    println!("{text}");
    let out = args.out.clone().unwrap_or_else(|| root().join("tests/results/bench.md"));
    std::fs::write(&out, &text).with_context(|| format!("cannot write {}", out.display()))?;
    eprintln!("written to {}", out.display());
    if results.voids.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("error: {} measurements of flatlan do not count", results.voids.len());
    Ok(ExitCode::FAILURE)
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
            Err(error) if wanted.is_some() => bail!("{}: {error}: {}", peer.word(), peer.install()),
            Err(_) => eprintln!("without {}, which is not installed: {}", peer.word(), peer.install()),
        }
    }
    Ok(peers)
}

impl Results {
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
            step(&|| measure::ping_loaded(&running, self.args.seconds))?;
        }
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
