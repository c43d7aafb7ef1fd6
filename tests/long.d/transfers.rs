//! 1 GiB over every transport, once, with the SHA-256 of both ends compared; `tests/long transfers`.
//!
//! ```text
//!        h1 ---- inet         the control run goes from a to h1 without any overlay
//!              /      \
//!          a-nat      b-nat   the kinds of router are what leaves each pair its only transport
//!            |          |
//!            a          b
//! ```
//!
//! Whatever is not equal, or goes another way than it should, ends the run as failed. The table is written to
//! `tests/results/transfers.md`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that measures for people")]

#[path = "../netns/support.rs"]
mod support;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use flatlan_lab::{Lab, Namespace, Nat, Payload, ProxySpec, SiteSpec, Transfer, TransferReport};
use serde_json::Value;
use support::{MIB, gateway, lab, path, ping, wait_path};

fn main() {
    flatlan_lab::enter().unwrap();
    let mut table = String::new();
    let relayed_tls = |path: &Value| support::is_relay(path, "tcp");
    let cone = || SiteSpec::new("a").nat(Nat::Cone);
    let walled = SiteSpec::new("a").nat(Nat::ProxyOnly).proxy(ProxySpec::default());
    run(&mut table, "direct, UDP", cone(), Nat::Cone, support::is_direct);
    run(&mut table, "relayed, UDP", SiteSpec::new("a").nat(Nat::Symmetric), Nat::Symmetric, |path| {
        support::is_relay(path, "udp")
    });
    run(&mut table, "relayed, TLS", SiteSpec::new("a").nat(Nat::UdpBlocked), Nat::UdpBlocked, relayed_tls);
    run(&mut table, "relayed, TLS through a proxy", walled, Nat::Cone, relayed_tls);

    let bare = lab().hub("h1").site_with(cone()).build().unwrap();
    let hub = bare.hub("h1").unwrap();
    let control = transfer(gateway(&bare, "a"), hub.namespace(), hub.addresses().first().copied().unwrap());
    row(&mut table, "control: no overlay", &control);
    save(&table);
}

fn run(table: &mut String, name: &str, a: SiteSpec, b: Nat, wanted: impl Fn(&Value) -> bool) {
    let lab = lab().hub("h1").site_with(a).site("b", b).build().unwrap();
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", name, &wanted);
    for address in lab.virtual_ips("b").unwrap() {
        let report = transfer(gateway(&lab, "a"), gateway(&lab, "b"), address);
        assert!(still(&lab, &wanted), "{name}: the path is another at the end");
        row(table, &format!("{name}, {}", if address.is_ipv4() { "IPv4" } else { "IPv6" }), &report);
    }
}

fn still(lab: &Lab, wanted: impl Fn(&Value) -> bool) -> bool {
    path(&lab.status("a").unwrap(), "b").is_some_and(|path| wanted(&path))
}

fn transfer(from: &Namespace, to: &Namespace, address: IpAddr) -> TransferReport {
    let report = Transfer::start(from, to, address, Payload::Random, Some(BYTES)).unwrap().finish(LIMIT).unwrap();
    assert!(report.equal && report.bytes == BYTES && report.broken.is_none(), "{report:?}");
    report
}

fn row(table: &mut String, name: &str, report: &TransferReport) {
    let (seconds, rate) = (report.took.as_secs_f64(), report.megabits_per_second());
    let gap = report.longest_gap.length.as_millis();
    let line = format!("| {name} | {} MiB | equal | {seconds:.1} | {rate:.0} | {gap} |", report.bytes / MIB);
    println!("{line}");
    let _ = writeln!(table, "{line}");
}

fn save(table: &str) {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let cores = std::thread::available_parallelism().unwrap();
    let build = if cfg!(debug_assertions) { "not optimised but for the cryptography" } else { "optimised" };
    let text = format!(
        "# 1 GiB over every transport\n\nWritten by `tests/long transfers`. One run each; Linux {}, {cores} cores, build {build}, load before the \
         end {}. All ends of the internet share these cores.\n\n| way | sent | SHA-256 | s | Mbit/s | longest pause, ms |\n|---|---|---|---|---|---|\n{table}",
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" "),
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/results/transfers.md");
    std::fs::write(&file, &text).unwrap();
    println!("\n{text}");
}

/// How much is sent.
const BYTES: u64 = 1024 * MIB;
/// How long one transfer may take: it is not the speed that is judged.
const LIMIT: Duration = Duration::from_secs(900);
