//! 1 GiB over every transport, once, with the SHA-256 of both ends compared; `tests/long transfers [--mib N]`.
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

mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::net::IpAddr;
use std::time::Duration;

use flatlan_lab::{Lab, Namespace, Nat, Payload, ProxySpec, SiteSpec, Transfer, TransferReport};
use measure::Paper;
use serde_json::Value;
use support::{MIB, gateway, lab, path, ping, wait_path};

fn main() {
    let bytes = u64::from(measure::number("--mib", 1024)) * MIB;
    flatlan_lab::enter().unwrap();
    let mut paper = Paper::new("transfers", "Much over every transport");
    paper.say("One transfer each. All ends of the internet share these cores.\n");
    paper.head(&["way", "sent", "SHA-256", "s", "Mbit/s", "longest pause, ms"]);
    let relayed_tls = |path: &Value| support::is_relay(path, "tcp");
    let cone = || SiteSpec::new("a").nat(Nat::Cone);
    let walled = SiteSpec::new("a").nat(Nat::ProxyOnly).proxy(ProxySpec::default());
    let symmetric = SiteSpec::new("a").nat(Nat::Symmetric);
    let blocked = SiteSpec::new("a").nat(Nat::UdpBlocked);
    let mut run = |name, a, b, wanted: &dyn Fn(&Value) -> bool| run(&mut paper, bytes, name, a, b, wanted);
    run("direct, UDP", cone(), Nat::Cone, &support::is_direct);
    run("relayed, UDP", symmetric, Nat::Symmetric, &|path| support::is_relay(path, "udp"));
    run("relayed, TLS", blocked, Nat::UdpBlocked, &relayed_tls);
    run("relayed, TLS through a proxy", walled, Nat::Cone, &relayed_tls);

    let bare = lab().hub("h1").site_with(cone()).build().unwrap();
    let hub = bare.hub("h1").unwrap();
    let control = transfer(gateway(&bare, "a"), hub.namespace(), hub.addresses().first().copied().unwrap(), bytes);
    row(&mut paper, "control: no overlay", &control);
    paper.end();
}

fn run(paper: &mut Paper, bytes: u64, name: &str, a: SiteSpec, b: Nat, wanted: &dyn Fn(&Value) -> bool) {
    let lab = lab().hub("h1").site_with(a).site("b", b).build().unwrap();
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", name, wanted);
    for address in lab.virtual_ips("b").unwrap() {
        let report = transfer(gateway(&lab, "a"), gateway(&lab, "b"), address, bytes);
        let name = format!("{name}, {}", if address.is_ipv4() { "IPv4" } else { "IPv6" });
        row(paper, &name, &report);
        paper.must(still(&lab, wanted), &format!("{name}: the path is another at the end"));
    }
}

fn still(lab: &Lab, wanted: impl Fn(&Value) -> bool) -> bool {
    path(&lab.status("a").unwrap(), "b").is_some_and(|path| wanted(&path))
}

fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, bytes: u64) -> TransferReport {
    let report = Transfer::start(from, to, address, Payload::Random, Some(bytes)).unwrap().finish(LIMIT).unwrap();
    assert!(report.equal && report.bytes == bytes && report.broken.is_none(), "{report:?}");
    report
}

fn row(paper: &mut Paper, name: &str, report: &TransferReport) {
    let (seconds, rate) = (report.took.as_secs_f64(), report.megabits_per_second());
    let gap = report.longest_gap.length.as_millis();
    paper.say(format!("| {name} | {} MiB | equal | {seconds:.1} | {rate:.0} | {gap} |", report.bytes / MIB));
}

/// How long one transfer may take: it is not the speed that is judged.
const LIMIT: Duration = Duration::from_secs(900);
