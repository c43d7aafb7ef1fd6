//! flatlan by the commands of its command line, as an operator would bring it up. Both nodes are attached to the hubs of
//! the mode, and to hub H in direct mode as well.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use flatlan_lab::{Namespace, Outcome, TLS_PORT, UDP_PORT};

use super::Running;
use crate::arena::{Arena, Machine, Mode};

pub(super) fn prepare(arena: &Arena, mode: Mode, binary: &str) -> Result<()> {
    let folder = arena.fresh_folder(FOLDER)?;
    let admin = folder.join("lab.flatlan");
    let admin = admin.to_str().context("a folder that is no text")?;
    let id = run(arena.admin(), binary, &["network", "create", "lab", "--range", "10.77.0.0/24", "--state", admin])?;
    std::fs::write(id_file(arena), id.last_line()).context("cannot keep the network's id")?;
    for hub in hubs(mode) {
        let key = run(arena.at(*hub)?, binary, &["hub", "init", "--state", &state(arena, *hub)])?;
        let (tls, udp) = listen(arena, *hub)?;
        let words = ["network", "hub", "add", hub.word(), "--key", key.last_line(), "--tls", &tls, "--udp", &udp];
        run(arena.admin(), binary, &[&words[..], &["--state", admin]].concat())?;
    }
    let mut running = Running { arena, peer: super::Peer::Flatlan, processes: Vec::new() };
    run_hubs(&mut running, mode, binary)?;
    for (hub, process) in running.processes() {
        let namespace = arena.at(hub)?;
        super::wireguard::until("the hub's listening socket", || {
            let listening = namespace.exec("ss", ["-ltnH"])?;
            Ok(listening.contains(&format!(":{TLS_PORT} ")))
        })
        .with_context(|| process.tail(8))?;
    }
    run(arena.admin(), binary, &["network", "publish", "--state", admin])?;
    for node in [Machine::A, Machine::B] {
        let ip = node.overlay().to_string();
        let token = run(arena.admin(), binary, &["invite", node.word(), "--ip", &ip, "--state", admin])?;
        let file = folder.join(format!("{}.token", node.word()));
        std::fs::write(&file, token.last_line()).with_context(|| format!("cannot write {}", file.display()))?;
        let file = file.to_str().context("a folder that is no text")?;
        run(arena.at(node)?, binary, &["join", "--token-file", file, "--state", &state(arena, node)])?;
    }
    Ok(())
}

pub(super) fn start(running: &mut Running<'_>, mode: Mode, binary: &str) -> Result<()> {
    run_hubs(running, mode, binary)?;
    for node in [Machine::A, Machine::B] {
        let state = state(running.arena, node);
        let words = ["up", "--state", &state, "--tun", flatlan_lab::TUN, "--log", "warn"];
        running.add(node, running.arena.spawn(node, binary, words)?);
    }
    Ok(())
}

/// A node's status.
pub(crate) fn status(arena: &Arena, node: Machine, binary: &str) -> Result<serde_json::Value> {
    Ok(run(arena.at(node)?, binary, &["status", "--json", "--state", &state(arena, node)])?.json()?)
}

fn run_hubs(running: &mut Running<'_>, mode: Mode, binary: &str) -> Result<()> {
    // hubs dial the other hubs of networks that they allow by name
    let id = std::fs::read_to_string(id_file(running.arena)).context("cannot read the network's id")?;
    for hub in hubs(mode) {
        let (tls, udp) = listen(running.arena, *hub)?;
        let state = state(running.arena, *hub);
        let words = ["hub", "run", "--state", &state, "--tls", &tls, "--udp", &udp, "--allow", &id];
        running.add(*hub, running.arena.spawn(*hub, binary, words)?);
    }
    Ok(())
}

fn hubs(mode: Mode) -> &'static [Machine] {
    match mode {
        Mode::Direct => &[Machine::H],
        Mode::Hub | Mode::Hub2 | Mode::Tls => mode.hubs(),
    }
}

fn listen(arena: &Arena, hub: Machine) -> Result<(String, String)> {
    let address = arena.underlay(hub)?;
    Ok((format!("{address}:{TLS_PORT}"), format!("{address}:{UDP_PORT}")))
}

fn id_file(arena: &Arena) -> PathBuf {
    arena.folder(FOLDER).join("network-id")
}

fn state(arena: &Arena, machine: Machine) -> String {
    arena.folder(FOLDER).join(machine.word()).to_string_lossy().into_owned()
}

fn run(namespace: &Namespace, binary: &str, words: &[&str]) -> Result<Outcome> {
    let mut command = Namespace::command(binary);
    command.args(words);
    Ok(namespace.output(command)?.success()?)
}

const FOLDER: &str = "flatlan";
