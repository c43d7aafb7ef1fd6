//! nebula at its default MTU of 1300. Hubs are lighthouses and relays; through a relay the encryption stays end to end.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::Running;
use crate::arena::{Arena, Machine, Mode};

pub(super) fn prepare(arena: &Arena, mode: Mode) -> Result<()> {
    let folder = arena.fresh_folder(FOLDER)?;
    let path = |name: String| folder.join(name).to_string_lossy().into_owned();
    let (crt, key) = (path("ca.crt".to_owned()), path("ca.key".to_owned()));
    arena.admin().exec("nebula-cert", ["ca", "-name", "lab", "-out-crt", &crt, "-out-key", &key])?;
    for machine in mode.machines() {
        let name = machine.word();
        let ip = format!("{}/24", machine.overlay());
        let (own_crt, own_key) = (path(format!("{name}.crt")), path(format!("{name}.key")));
        let own = ["-out-crt", &own_crt, "-out-key", &own_key];
        let sign = ["sign", "-ca-crt", &crt, "-ca-key", &key, "-name", name, "-ip", &ip];
        arena.admin().exec("nebula-cert", sign.into_iter().chain(own))?;
        let file = path(format!("{name}.yml"));
        std::fs::write(&file, config(arena, mode, machine)?).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

pub(super) fn start(running: &mut Running<'_>, mode: Mode) -> Result<()> {
    for machine in mode.machines() {
        let file = running.arena.folder(FOLDER).join(format!("{}.yml", machine.word()));
        running.add(machine, running.arena.spawn(machine, "nebula", ["-config".as_ref(), file.as_os_str()])?);
    }
    Ok(())
}

fn config(arena: &Arena, mode: Mode, machine: Machine) -> Result<String> {
    // where there is no hub, B is the lighthouse
    let lighthouses: &[Machine] = if mode == Mode::Direct { &[Machine::B] } else { mode.hubs() };
    let relayed = mode != Mode::Direct;
    let shines = lighthouses.contains(&machine);
    let known: Vec<String> = lighthouses.iter().map(|hub| format!("\"{}\"", hub.overlay())).collect();
    let known = known.join(", ");
    let (folder, name) = (arena.folder(FOLDER).display().to_string(), machine.word());
    let mut text = format!("pki: {{ ca: {folder}/ca.crt, cert: {folder}/{name}.crt, key: {folder}/{name}.key }}\n");
    text.push_str("static_host_map:\n");
    for hub in lighthouses {
        let _ = writeln!(text, "  \"{}\": [\"{}:4242\"]", hub.overlay(), arena.underlay(*hub)?);
    }
    let asked = if shines { "" } else { &known };
    let relays = if shines || !relayed { "" } else { &known };
    let _ = writeln!(text, "lighthouse: {{ am_lighthouse: {shines}, interval: 10, hosts: [{asked}] }}");
    let (relay, uses) = (relayed && shines, relayed && !shines);
    let _ = writeln!(text, "relay: {{ am_relay: {relay}, use_relays: {uses}, relays: [{relays}] }}");
    let _ = writeln!(text, "tun: {{ dev: {}, mtu: 1300 }}", machine.interface());
    text.push_str(
        "listen: { host: 0.0.0.0, port: 4242 }
punchy: { punch: true }
logging: { level: error, format: text }
firewall:
  outbound: [ { port: any, proto: any, host: any } ]
  inbound: [ { port: any, proto: any, host: any } ]
",
    );
    Ok(text)
}

const FOLDER: &str = "nebula";
