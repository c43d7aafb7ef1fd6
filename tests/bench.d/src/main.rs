//! Measures flatlan beside every other overlay that is installed, and beside the limit of the machine: `tests/bench`.
//!
//! The order of a run: look what is installed; per mode and round, each overlay in turn is prepared, started, measured
//! and stopped (`peer`, `measure`), in the namespaces of `arena`; once a round the fixed parts of a tunnel are measured
//! alone (`limit`); then medians, spreads and ratios are written (`table`). What overlays reach on a shared machine moves
//! by a factor of two within an hour, so only ratios within one run say anything.
//!
//! Before and after each measurement flatlan's nodes are asked by which path they reach each other (`path`). A wrong
//! answer voids what was measured, and the run fails.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod arena;
mod cpu;
mod figure;
mod limit;
mod measure;
mod packets;
mod path;
mod peer;
mod readme;
mod run;
mod stats;
mod table;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::arena::Mode;
use crate::peer::Peer;

/// Measures flatlan beside every other overlay that is installed.
#[derive(Debug, Parser)]
#[command(name = "tests/bench", after_help = "Example: tests/bench --modes direct,hub --rounds 3 --seconds 4")]
pub(crate) struct Args {
    /// How often everything is measured, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What the underlay allows: direct, hub, hub2, tls
    #[arg(long, value_delimiter = ',', default_value = "direct,hub,hub2,tls")]
    modes: Vec<Mode>,
    /// Whom to measure; without it everybody who is installed
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<Peer>>,
    /// How long each TCP flow takes, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only one TCP stream, pings idle and beside it, and 64-byte UDP at 200 k/s
    #[arg(long)]
    quick: bool,
    /// Where the tables go; without it tests/results/bench.md, and a short one into README.md
    #[arg(long)]
    out: Option<PathBuf>,
    /// A flatlan binary, in place of the one of this checkout
    #[arg(long)]
    flatlan: Option<PathBuf>,
}

fn main() -> ExitCode {
    match begin() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [packets::SINK, at] => {
            println!("{}", packets::sink(address(at)?)?);
            Ok(ExitCode::SUCCESS)
        }
        [packets::SOURCE, to, bytes, rate, seconds] => {
            let sent = packets::source(address(to)?, bytes.parse()?, rate.parse()?, seconds.parse()?)?;
            println!("{sent}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            let args = Args::parse();
            flatlan_lab::enter()?;
            run::run(&args)
        }
    }
}

fn address(word: &str) -> Result<SocketAddr> {
    word.parse().with_context(|| format!("{word}: ADDRESS:PORT"))
}
