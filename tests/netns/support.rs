//! What the end-to-end tests share: a lab that runs the real binary, and waits for what its status says.

#![allow(dead_code, reason = "every test takes what it needs")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, LabBuilder, Namespace, Nat, Payload, Probe, Transfer, TransferReport};
use serde_json::Value;

/// How long anything may take that has no number of its own: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How often the status is asked while it is waited for.
const AGAIN: Duration = Duration::from_millis(50);

/// A lab that runs the binary under test.
pub(crate) fn lab() -> LabBuilder {
    Lab::builder().flatlan(env!("CARGO_BIN_EXE_flatlan"))
}

/// A lab of these hubs, whose sites a and b have joined, each behind a NAT that lets them reach each other by hubs only. No
/// node runs yet.
pub(crate) fn joined(hubs: &[&str]) -> Lab {
    let lab = hubs.iter().fold(lab(), |lab, hub| lab.hub(hub));
    let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    for site in ["a", "b"] {
        lab.join(site).unwrap();
    }
    lab
}

/// Waits until the status of a site's node holds a value that is asked for, and returns it.
pub(crate) fn wait_status<T>(lab: &Lab, site: &str, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = lab.status(site).unwrap();
        if let Some(found) = wanted(&status) {
            return found;
        }
        assert!(Instant::now() < deadline, "{site} never had {what}: {status:#}");
        std::thread::sleep(AGAIN);
    }
}

/// Waits until one site's node reaches another's by a path like that. Keep traffic going: idle peers have no path.
pub(crate) fn wait_path(lab: &Lab, from: &str, to: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_status(lab, from, &format!("{what} to {to}"), |status| path(status, to).filter(&wanted))
}

/// The path to a peer in a status.
pub(crate) fn path(status: &Value, peer: &str) -> Option<Value> {
    let peer = status["peers"].as_array()?.iter().find(|other| other["name"] == peer)?;
    Some(peer["path"].clone()).filter(|path| !path.is_null())
}

/// Packets that the nodes of these sites gave up because they got no processor time: the machine was too busy.
pub(crate) fn starved(lab: &Lab, sites: &[&str]) -> usize {
    let dropped = |site: &&str| lab.status(site).unwrap().pointer("/drops/queue_full").and_then(Value::as_u64).unwrap();
    sites.iter().map(dropped).sum::<u64>() as usize
}

/// Whether a path is a direct one.
pub(crate) fn is_direct(path: &Value) -> bool {
    path["kind"] == "direct"
}

/// Whether a path goes over hubs by this transport.
pub(crate) fn is_relay(path: &Value, transport: &str) -> bool {
    path["kind"] == "relay" && path["transport"] == transport
}

/// Pings one site's node from another's, each 10 ms, from when the first answer has come.
pub(crate) fn ping(lab: &Lab, from: &str, to: &str) -> Probe {
    let (from, to) = (lab.site(from).unwrap(), lab.site(to).unwrap());
    let probe = Probe::ping(from.gateway(), to.virtual_ip().into(), Duration::from_millis(10)).unwrap();
    probe.wait_answers(1, PATIENCE).unwrap();
    probe
}

/// Sends so many bytes from one site's node to another's, and insists that every one arrived as it was.
pub(crate) fn send(lab: &Lab, from: &str, to: &str, bytes: u64) -> TransferReport {
    let address = lab.site(to).unwrap().virtual_ip();
    send_to(gateway(lab, from), gateway(lab, to), address.into(), bytes)
}

/// The same to each of its virtual addresses, one after the other.
pub(crate) fn send_by_every_address(lab: &Lab, from: &str, to: &str, bytes: u64) {
    let addresses = lab.virtual_ips(to).unwrap();
    assert!(addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6), "{addresses:?}");
    for address in addresses {
        send_to(gateway(lab, from), gateway(lab, to), address, bytes);
    }
}

/// Sends so many bytes from one machine to an address of another, and insists that every one arrived as it was.
pub(crate) fn send_to(from: &Namespace, to: &Namespace, address: IpAddr, bytes: u64) -> TransferReport {
    let transfer = Transfer::start(from, to, address, Payload::Random, Some(bytes)).unwrap();
    let report = transfer.finish(LONG).unwrap();
    assert!(report.equal && report.bytes == bytes && report.broken.is_none(), "{report:?}");
    report
}

/// The machine that runs a site's node.
pub(crate) fn gateway<'a>(lab: &'a Lab, site: &str) -> &'a Namespace {
    lab.site(site).unwrap().gateway()
}

/// How long a transfer may take.
const LONG: Duration = Duration::from_secs(120);
/// A mebibyte.
pub(crate) const MIB: u64 = 1 << 20;
