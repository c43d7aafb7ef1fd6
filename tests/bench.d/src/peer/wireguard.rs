//! Every WireGuard that is configured over its UAPI socket: gotatun, boringtun, wireguard-go. MTU 1420, as wg-quick sets
//! it. A hub is a peer that forwards: it opens and seals every packet again.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Peer, Running};
use crate::arena::{Arena, Machine, Mode};

pub(super) fn prepare(arena: &Arena, mode: Mode) -> Result<()> {
    let folder = arena.fresh_folder(FOLDER)?;
    for machine in mode.machines() {
        let namespace = arena.at(machine)?;
        let key = folder.join(machine.word());
        let private = namespace.exec("wg", ["genkey"])?;
        std::fs::write(&key, private).with_context(|| format!("cannot write {}", key.display()))?;
        let public = namespace.exec("sh", ["-c", &format!("wg pubkey < {}", key.display())])?;
        std::fs::write(key.with_extension("pub"), public.trim())?;
    }
    Ok(())
}

pub(super) fn start(running: &mut Running<'_>, peer: Peer, mode: Mode) -> Result<()> {
    for machine in mode.machines() {
        let interface = machine.interface();
        let quiet = ["-f", "--disable-drop-privileges", "-l", "/dev/null"];
        let words: &[&str] = match peer {
            Peer::Gotatun => &[&quiet[..], &["-v", "error", &interface]].concat(),
            Peer::Boringtun => &[&quiet[..], &[&interface]].concat(),
            Peer::Plain
            | Peer::Flatlan
            | Peer::WireguardGo
            | Peer::WireguardGoNew
            | Peer::Nebula
            | Peer::Openvpn
            | Peer::Tinc => &["-f", &interface],
        };
        let program = peer.programs().first().context("a WireGuard is a program")?;
        running.add(machine, running.arena.spawn(machine, program, words)?);
    }
    let arena = running.arena;
    std::thread::scope(|scope| {
        let set_up: Vec<_> = mode.machines().map(|machine| scope.spawn(move || set_up(arena, mode, machine))).collect();
        set_up.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })
}

fn set_up(arena: &Arena, mode: Mode, machine: Machine) -> Result<()> {
    let (namespace, interface) = (arena.at(machine)?, machine.interface());
    let socket = Path::new(crate::arena::SOCKETS).join(format!("{interface}.sock"));
    until("the control socket", || {
        let socket = socket.clone();
        Ok(namespace.run(move || socket.exists()))
    })?;
    let (key, port) = (arena.folder(FOLDER).join(machine.word()), flatlan_lab::UDP_PORT.to_string());
    let key = key.to_str().context("a folder that is no text")?;
    until("the device", || {
        let set = ["set", &interface, "private-key", key, "listen-port", &port];
        Ok(namespace.exec("wg", set).is_ok())
    })?;
    for (peer, allowed) in peers(mode, machine) {
        let public = std::fs::read_to_string(arena.folder(FOLDER).join(peer.word()).with_extension("pub"))?;
        let endpoint = format!("{}:{port}", arena.underlay(peer)?);
        let set = ["set", &interface, "peer", public.trim(), "allowed-ips", &allowed, "endpoint", &endpoint];
        namespace.exec("wg", set)?;
    }
    let own = format!("{}/24", IpAddr::from(machine.overlay()));
    namespace.exec("ip", ["address", "add", &own, "dev", &interface])?;
    namespace.exec("ip", ["link", "set", &interface, "mtu", MTU, "up"])?;
    Ok(())
}

/// Whom a machine talks to, and for which addresses.
fn peers(mode: Mode, machine: Machine) -> Vec<(Machine, String)> {
    let only = |of: Machine| format!("{}/32", of.overlay());
    let whole = || "10.77.0.0/24".to_owned();
    match (mode, machine) {
        (Mode::Direct, Machine::A) => vec![(Machine::B, only(Machine::B))],
        (Mode::Direct, _) => vec![(Machine::A, only(Machine::A))],
        (Mode::Hub2, Machine::H) => vec![(Machine::A, only(Machine::A)), (Machine::G, only(Machine::B))],
        (Mode::Hub2, Machine::G) => vec![(Machine::H, only(Machine::A)), (Machine::B, only(Machine::B))],
        (Mode::Hub2, Machine::B) => vec![(Machine::G, whole())],
        (Mode::Hub | Mode::Tls, Machine::H) => [Machine::A, Machine::B].map(|end| (end, only(end))).into(),
        (Mode::Hub | Mode::Hub2 | Mode::Tls, _) => vec![(Machine::H, whole())],
    }
}

/// Waits for something that takes a moment.
pub(super) fn until(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !condition()? {
        if Instant::now() > deadline {
            bail!("{what} did not come within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

const FOLDER: &str = "wireguard";
const MTU: &str = "1420";
const LIMIT: Duration = Duration::from_secs(5);
