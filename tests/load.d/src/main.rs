//! Many nodes in one process against one `flatlan-hub` process on this machine's loopback: what a hub holds, how fast it
//! takes nodes in, and what one node, network or stranger may cost another. `tests/long load`, `flood` and `relay`.
//!
//! What runs on the hub's machine here would run on others: the clients' threads are nice, the hub and what measures
//! are not. Each measurement has its control beside it.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a program for people, of which no part outlives a mistake"
)]

mod blast;
mod client;
mod crowd;
mod echo;
mod flood;
mod hub;
mod lan;
#[path = "../../long.d/measure.rs"]
mod measure;
mod node;
mod relay;
mod storm;
mod strangers;
mod tenants;
#[path = "../../netns/usage.rs"]
mod usage;

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};
use flatlan_os::harden;
use measure::Paper;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let run = words.next().unwrap_or_default();
    if run == "relay" {
        let mut paper = Paper::new("relay", "Relays alone");
        relay::run(&mut paper, words)?;
        paper.end();
        return Ok(());
    }
    if run == "flood" {
        let mut paper = Paper::new("flood", "Floods at a node");
        let own = std::env::current_exe().context("cannot find this program")?;
        let binary = words.next().map_or_else(|| own.with_file_name("flatlan"), PathBuf::from);
        flood::run(&mut paper, &binary)?;
        paper.end();
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(be_nice)
        .build()
        .context("no runtime")?;
    match run.as_str() {
        "load" => runtime.block_on(load(words)),
        _ => bail!("which run?: load, flood, relay"),
    }
}

/// Everything about many nodes; or the parts that are named.
async fn load(words: impl Iterator<Item = String>) -> Result<()> {
    let (mut parts, mut nodes) = (Vec::new(), NODES);
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--nodes" => nodes = words.next().and_then(|n| n.parse().ok()).context("--nodes N")?,
            "crowd" | "storm" | "tenants" | "strangers" => parts.push(word),
            _ => bail!("{word}: --nodes N, crowd, storm, tenants, strangers"),
        }
    }
    let files = harden::raise_open_files(WANTED_FILES);
    let all = parts.is_empty();
    let wants = |part: &str| all || parts.iter().any(|word| word == part);
    let mut paper = Paper::new("load", "Many nodes on one hub");
    if !all || nodes != NODES {
        paper.is_part();
    }
    paper.say("One `flatlan-hub` process and its nodes on loopback; the nodes' own work is on the same cores.\n");
    if wants("crowd") {
        crowd::run(&mut paper, nodes, files).await?;
    }
    if wants("storm") {
        storm::run(&mut paper, 1_000).await?;
    }
    if wants("tenants") {
        tenants::run(&mut paper).await?;
    }
    if wants("strangers") {
        strangers::run(&mut paper).await?;
    }
    paper.end();
    Ok(())
}

/// Gives the processor to whoever else wants it: this thread stands for other machines.
fn be_nice() {
    let thread = nix::unistd::gettid().to_string();
    let _ = Command::new("renice").args(["-n", "19", "-p", &thread]).stdout(std::process::Stdio::null()).status();
}

/// Three descriptors a node, and those of the strangers.
const WANTED_FILES: u64 = 65_536;

/// What the issue is about.
const NODES: usize = 10_000;
