//! No overlay: its addresses are aliases on the machines, routed by the router. What remains is the price of the wire,
//! of TCP and of the measuring programs.

use std::net::IpAddr;

use anyhow::Result;

use crate::arena::{Arena, Machine};

pub(super) fn start(arena: &Arena) -> Result<()> {
    for (machine, other) in ENDS {
        let (own, far) = (machine.overlay().to_string(), other.overlay().to_string());
        let way: IpAddr = arena.router_before(machine)?;
        let namespace = arena.at(machine)?;
        namespace.exec("ip", ["address", "add", &own, "dev", "lo"])?;
        namespace.exec("ip", ["route", "add", &far, "via", &way.to_string(), "src", &own])?;
        arena.router().exec("ip", ["route", "add", &own, "via", &arena.underlay(machine)?.to_string()])?;
    }
    Ok(())
}

/// Nothing may stay: a route that is left would answer the next overlay's pings past its tunnel.
pub(super) fn stop(arena: &Arena) {
    for (machine, other) in ENDS {
        let (own, far) = (machine.overlay().to_string(), other.overlay().to_string());
        let _ = arena.router().exec("ip", ["route", "del", &own]);
        if let Ok(namespace) = arena.at(machine) {
            let _ = namespace.exec("ip", ["route", "del", &far]);
            let _ = namespace.exec("ip", ["address", "del", &format!("{own}/32"), "dev", "lo"]);
        }
    }
}

const ENDS: [(Machine, Machine); 2] = [(Machine::A, Machine::B), (Machine::B, Machine::A)];
