//! tinc 1.0 in router mode with its default cipher. A and B only connect to their hub, and the mesh relays; by TCP 443
//! where that is the mode.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Result;

use super::Running;
use crate::arena::{Arena, Machine, Mode};

pub(super) fn prepare(arena: &Arena, mode: Mode) -> Result<()> {
    let folder = arena.fresh_folder(FOLDER)?;
    let machines: Vec<Machine> = mode.machines().collect();
    for machine in &machines {
        let name = machine.word();
        let own = folder.join(name);
        std::fs::create_dir_all(own.join("hosts"))?;
        let mut config = format!("Name = {name}\nInterface = {}\nAddressFamily = ipv4\n", machine.interface());
        for to in connects(mode, *machine) {
            let _ = writeln!(config, "ConnectTo = {}", to.word());
        }
        std::fs::write(own.join("tinc.conf"), config)?;
        let up = own.join("tinc-up");
        let ip = machine.overlay();
        std::fs::write(&up, format!("#!/bin/sh\nip addr add {ip}/24 dev $INTERFACE\nip link set $INTERFACE up\n"))?;
        std::fs::set_permissions(&up, std::fs::Permissions::from_mode(0o755))?;
        let mut host = format!("Address = {}\nSubnet = {ip}/32\n", arena.underlay(*machine)?);
        if mode == Mode::Tls {
            host.push_str("Port = 443\nTCPOnly = yes\n");
        }
        std::fs::write(own.join("hosts").join(name), host)?;
        let keys = ["-c", &own.to_string_lossy(), "-K2048"];
        arena.admin().exec("tincd", keys)?;
    }
    for (from, to) in machines.iter().flat_map(|from| machines.iter().map(move |to| (from, to))) {
        if from != to {
            let hosts = |of: &Machine| folder.join(of.word()).join("hosts").join(from.word());
            std::fs::copy(hosts(from), hosts(to))?;
        }
    }
    Ok(())
}

pub(super) fn start(running: &mut Running<'_>, mode: Mode) -> Result<()> {
    for machine in mode.machines() {
        let own = running.arena.folder(FOLDER).join(machine.word());
        let pid = format!("--pidfile={}", own.with_extension("pid").display());
        running.add(machine, running.arena.spawn(machine, "tincd", ["-c", &own.to_string_lossy(), "-D", &pid])?);
    }
    Ok(())
}

fn connects(mode: Mode, machine: Machine) -> Vec<Machine> {
    match (mode, machine) {
        (Mode::Direct, Machine::A) => vec![Machine::B],
        (Mode::Hub2, Machine::H) => vec![Machine::G],
        (Mode::Hub2, Machine::B) => vec![Machine::G],
        (Mode::Hub | Mode::Hub2 | Mode::Tls, Machine::A) | (Mode::Hub | Mode::Tls, Machine::B) => vec![Machine::H],
        (_, Machine::B | Machine::G | Machine::H) => Vec::new(),
    }
}

const FOLDER: &str = "tinc";
