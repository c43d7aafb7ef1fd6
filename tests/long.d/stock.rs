//! The long run of a plain WireGuard device: minutes of traffic both ways with the rekeys of both sides, and what of it was
//! lost. `tests/long stock [--minutes N]`; the topology is in `tests/netns/wireguard.rs`.
//!
//! Pings every 50 ms: device to node, node to device, and another node to the device through the first. WireGuard
//! makes a new session before the old one ends, so that no rekey may cost a packet. The control is a ping between the
//! same machines over the underlay. The table is written to `tests/results/stock.md`.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod measure;
#[path = "../netns/wireguard.rs"]
#[expect(dead_code, reason = "the tests take more of it")]
mod wireguard;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatlan_lab::Probe;
use measure::Paper;
use wireguard::{Initiative, StockLab, wan};

fn main() {
    let minutes = u64::from(measure::number("--minutes", 5));
    flatlan_lab::enter().unwrap();
    let stock = StockLab::bring_up(env!("CARGO_BIN_EXE_flatlan"));
    let lab = &stock.lab;
    let device = stock.run(Initiative::Both);
    let node = lab.site("a").unwrap();
    let (a, b) = (node.gateway(), lab.site("b").unwrap().gateway());
    let address = *stock.addresses().first().unwrap();
    let via: IpAddr = node.virtual_ip().into();
    let ping = |from, to| {
        let probe = Probe::ping(from, to, PACE).unwrap();
        probe.wait_answers(1, Duration::from_secs(30)).unwrap();
        probe
    };
    let probes = [
        ("phone to a", ping(stock.phone(), via)),
        ("a to phone", ping(a, address)),
        ("b to phone through a", ping(b, address)),
        ("control: underlay", ping(a, wan(lab, "phone").ip())),
    ];
    let started = Instant::now();
    let mut handshakes = Vec::new();
    while started.elapsed() < Duration::from_secs(60 * minutes) {
        let last = device.last_handshake();
        if last != 0 && handshakes.last() != Some(&last) {
            handshakes.push(last);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let mut paper = Paper::new("stock", "Debian's wireguard-go as a member");
    let pace = PACE.as_millis();
    paper.say(format!("{minutes} minutes, {} handshakes, pings each {pace} ms.\n", handshakes.len()));
    paper.head(&["what", "sent", "lost", "longest gap ms", "median round trip ms"]);
    let mut lost_in_all = 0;
    for (what, probe) in probes {
        // the last ones may be under way
        let report = probe.stop();
        let lost = report.sent().saturating_sub(report.answered() + UNDER_WAY);
        let (gap, median) = (report.longest_gap().length, report.round_trip_quantile(0.5));
        let (sent, gap, median) = (report.sent(), gap.as_millis(), median.as_secs_f64() * 1e3);
        paper.say(format!("| {what} | {sent} | {lost} | {gap} | {median:.2} |"));
        if !what.starts_with("control") {
            lost_in_all += lost;
        }
    }
    let rekeys = usize::try_from(60 * minutes / REKEY_SECONDS).unwrap();
    paper.must(handshakes.len() > rekeys.saturating_sub(1), &format!("too few handshakes: {handshakes:?}"));
    paper.must(lost_in_all <= handshakes.len(), "more was lost than the handshakes may cost");
    paper.end();
}

/// The pause between two pings.
const PACE: Duration = Duration::from_millis(50);
/// Pings that may still be on their way when the run ends.
const UNDER_WAY: usize = 2;
/// WireGuard's Rekey-After-Time.
const REKEY_SECONDS: u64 = 120;
